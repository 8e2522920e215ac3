//! The files in `parsed/` of a device, in the order of their uploads.

use crate::data_dir::pending_files::unnumbered;
use crate::data_dir::{DevicePath, Dir, OpenError, PARSED, Stamp, is_no_folder};
use crate::logger_file::{FormatError, LoggerFile, ReadOptions, Row};
use crate::pipeline::{LastRows, row_before};
use crate::points::TimeRange;
use crate::report::Progress;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::time_zone::FileZones;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Length of a day in seconds.
pub(super) const DAY: i64 = 86_400;

/// How long ago a folder must have been changed so that each later change is noticed, in nanoseconds. The clock of a file
/// system advances in steps, and may be that of another machine.
const SETTLED_NS: i128 = 2_000_000_000;

fn now_ns() -> i128 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i128::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(i128::MAX)
}

/// Number of files with defects that are named per device.
const MAX_DEFECTS: usize = 3;

/// How files are read.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub zones: &'a FileZones,
    pub stop: &'a Shutdown,
    pub progress: &'a Progress,
}

/// The files in `parsed/` of a device folder.
pub(super) struct DeviceFiles {
    pub location: DevicePath,
    pub folder: Arc<Dir>,
    /// In the order of their uploads.
    pub files: Vec<UploadedFile>,
    /// The serials of masters in the files that were read.
    pub masters: BTreeSet<String>,
    /// The number of values in the files that were read, by the day.
    pub days: BTreeMap<i64, u64>,
    /// Files that are not valid to their end, with the reason. Their points before that are expected.
    pub defects: Vec<String>,
    /// When `parsed/` was last changed before it was listed.
    changed: Option<i128>,
}

/// A file in `parsed/`.
pub(super) struct UploadedFile {
    pub name: OsString,
    pub stamp: Stamp,
    /// Whether it was read.
    pub is_read: bool,
    /// The time range of its points, if it was read and has any.
    pub span: Option<TimeRange>,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It is no longer there, or was changed. The folder has to be listed again.
    #[error("the files of the device change all the time; try again later")]
    Changed,
    /// Any other error.
    #[error("{0}")]
    Io(String),
    /// A shutdown was requested.
    #[error("the run was stopped; run it again")]
    Stopped,
}

impl DeviceFiles {
    /// Opens a device folder. No file is listed yet.
    pub(super) fn open(data: &Dir, relative: &Path, location: DevicePath) -> io::Result<Self> {
        Ok(Self {
            location,
            folder: Arc::new(data.open_below(relative)?),
            files: Vec::new(),
            masters: BTreeSet::new(),
            days: BTreeMap::new(),
            defects: Vec::new(),
            changed: None,
        })
    }

    /// Lists the files again if the folder has changed since it was last listed. Files that were read and have not changed
    /// are not read again. Returns the time ranges of the points of files that have gone or were replaced.
    pub(super) fn list(&mut self) -> io::Result<Vec<TimeRange>> {
        let changed = self.folder.folder_modified_ns(PARSED)?;
        if changed.is_some() && changed == self.changed {
            return Ok(Vec::new());
        }
        let known = std::mem::take(&mut self.files).into_iter();
        let mut known: HashMap<_, _> = known.map(|file| (file.name.clone(), file)).collect();
        match self.folder.open_below(Path::new(PARSED)) {
            Ok(parsed) => {
                let mut entries = 0;
                parsed.for_each_entry(|_, _| entries += 1)?;
                // There may be hundreds of thousands, which a growing list would copy.
                self.files.reserve_exact(entries);
                parsed.for_each_logger_file(|name, stamp| {
                    let is_unchanged = known.get(name).is_some_and(|file| file.stamp == stamp);
                    let unchanged = is_unchanged.then(|| known.remove(name)).flatten();
                    self.files.push(unchanged.unwrap_or_else(|| UploadedFile {
                        name: name.to_owned(),
                        stamp,
                        is_read: false,
                        span: None,
                    }));
                })?;
            }
            Err(error) if is_no_folder(&error) => {}
            Err(error) => return Err(error),
        }
        sort_by_upload(&mut self.files);
        // A later change within the same step of the clock would not be noticed.
        self.changed = changed.filter(|changed| now_ns() - changed > SETTLED_NS);
        Ok(known.into_values().filter_map(|file| file.span).collect())
    }

    /// Lists the files again the next time, because one of them has changed.
    pub(super) fn forget_listing(&mut self) {
        self.changed = None;
    }

    /// When `parsed/` was last changed before it was listed.
    pub(super) fn listed(&self) -> Option<i128> {
        self.changed
    }

    /// Reads the files that were not read yet and have changed since `since`, in nanoseconds since 1970. Returns the time
    /// ranges of their points.
    pub(super) fn read_new(
        &mut self,
        reading: Reading<'_>,
        since: Option<i128>,
    ) -> Result<Vec<TimeRange>, FileError> {
        let mut spans = Vec::new();
        for position in 0..self.files.len() {
            let file = &self.files[position];
            let is_old = since.is_some_and(|since| file.stamp.changed_ns < since);
            if file.is_read || is_old {
                continue;
            }
            let mut span: Option<TimeRange> = None;
            let mut days: BTreeMap<i64, u64> = BTreeMap::new();
            let mut masters = BTreeSet::new();
            let mut table = None;
            let defect = self.read(position, reading, |row| {
                let values = row.values.iter().flatten().count() as u64;
                if values == 0 {
                    return;
                }
                if table != Some(row.header_changes) {
                    table = Some(row.header_changes);
                    masters.insert(row.channels.master.clone());
                }
                *days.entry(row.time.div_euclid(DAY)).or_default() += values;
                let span = span.get_or_insert(row.time..=row.time);
                *span = row.time.min(*span.start())..=row.time.max(*span.end());
            })?;
            for (day, values) in days {
                *self.days.entry(day).or_default() += values;
            }
            self.masters.append(&mut masters);
            if let Some(defect) = defect
                && self.defects.len() < MAX_DEFECTS
            {
                let name = sanitize(Path::new(PARSED).join(&self.files[position].name));
                self.defects.push(format!(
                    "{name}: {defect}; its points before that are expected"
                ));
            }
            reading.progress.file_done();
            spans.extend(span.clone());
            let file = &mut self.files[position];
            file.is_read = true;
            file.span = span;
        }
        Ok(spans)
    }

    /// Whether all files were read.
    pub(super) fn is_read(&self) -> bool {
        self.files.iter().all(|file| file.is_read)
    }

    /// The number of files that were read.
    pub(super) fn nb_read(&self) -> u64 {
        self.files.iter().filter(|file| file.is_read).count() as u64
    }

    /// Calls `each` for the rows of a file. Returns why the file is invalid from some line on.
    pub(super) fn read(
        &self,
        position: usize,
        reading: Reading<'_>,
        mut each: impl FnMut(&Row<'_>),
    ) -> Result<Option<FormatError>, FileError> {
        let file = &self.files[position];
        let io_error = |error: &dyn std::fmt::Display| {
            let name = sanitize(self.folder.path().join(PARSED).join(&file.name));
            FileError::Io(format!("{name}: {error}"))
        };
        let parsed = self.folder.open_below(Path::new(PARSED));
        let parsed = parsed.map_err(|error| io_error(&error))?;
        let open = match parsed.open_file(&file.name) {
            Ok(open) if open.stamp == file.stamp => open,
            Ok(_) | Err(OpenError::Gone | OpenError::NotAFile(_)) => {
                return Err(FileError::Changed);
            }
            Err(error) => return Err(io_error(&error)),
        };
        let uploaded = file.stamp.uploaded_ns() / 1_000_000_000;
        let options = ReadOptions {
            zones: reading.zones,
            uploaded: Some(i64::try_from(uploaded).unwrap_or(i64::MAX)),
            row_before: &|| {
                let none = LastRows::default();
                row_before(&self.folder, reading.zones, &none, &open, &file.name)
            },
        };
        let input = reading.progress.reading(&*open.file);
        let mut rows = match LoggerFile::open(input, &options).map_err(FormatError::from) {
            Ok(rows) => rows,
            Err(FormatError::Read(error)) => return Err(io_error(&error)),
            Err(error) => return Ok(Some(error)),
        };
        loop {
            match rows.next_row() {
                Ok(Some(row)) => each(&row),
                Ok(None) => break Ok(None),
                Err(FormatError::Read(error)) => break Err(io_error(&error)),
                Err(error) => break Ok(Some(error)),
            }
            if reading.stop.is_requested() {
                return Err(FileError::Stopped);
            }
        }
        .and_then(|defect| match open.has_changed() {
            Ok(false) => Ok(defect),
            Ok(true) => Err(FileError::Changed),
            Err(error) => Err(io_error(&error)),
        })
    }
}

/// Sorts files by the times of their uploads, those with the same time like `pending_files::sort_by_upload`, but without a
/// copy of all names.
fn sort_by_upload(files: &mut [UploadedFile]) {
    let uploaded = |file: &UploadedFile| file.stamp.uploaded_ns();
    files.sort_unstable_by_key(uploaded);
    let is_same = |a: &UploadedFile, b: &UploadedFile| uploaded(a) == uploaded(b);
    let tied = files.chunk_by(is_same).filter(|tied| tied.len() > 1);
    let stems: HashSet<_> = tied
        .flatten()
        .filter_map(|file| Some(unnumbered(&file.name)?.0))
        .collect();
    let names = files.iter().map(|file| &file.name);
    let stems: HashSet<_> = names
        .filter(|name| stems.contains(*name))
        .cloned()
        .collect();
    for tied in files.chunk_by_mut(is_same) {
        tied.sort_by_cached_key(|file| {
            let numbered = unnumbered(&file.name).filter(|(stem, _)| stems.contains(stem));
            numbered.unwrap_or_else(|| (file.name.clone(), 0))
        });
    }
}

/// Divides times into parts with at most `max` values each, as far as a second has fewer. `days` is the number of values per
/// day, and `count` returns it for shorter units within a range.
pub(super) fn parts<E>(
    times: &Range<i64>,
    days: &BTreeMap<i64, u64>,
    max: u64,
    mut count: impl FnMut(Range<i64>, i64) -> Result<BTreeMap<i64, u64>, E>,
) -> Result<Vec<Range<i64>>, E> {
    let mut cuts = Vec::new();
    cut(days, DAY, max, &mut count, &mut cuts)?;
    // The end of a unit may also be that of a longer one.
    cuts.dedup();
    cuts.retain(|cut| times.start < *cut && *cut < times.end);
    cuts.push(times.end);
    let mut start = times.start;
    Ok(cuts
        .into_iter()
        .map(|end| std::mem::replace(&mut start, end)..end)
        .collect())
}

fn cut<E>(
    units: &BTreeMap<i64, u64>,
    length: i64,
    max: u64,
    count: &mut impl FnMut(Range<i64>, i64) -> Result<BTreeMap<i64, u64>, E>,
    cuts: &mut Vec<i64>,
) -> Result<(), E> {
    let shorter = match length {
        DAY => Some(3600),
        3600 => Some(60),
        60 => Some(1),
        _ => None,
    };
    let mut values = 0;
    for (unit, in_unit) in units {
        let start = unit * length;
        if values > 0 && values + in_unit > max {
            cuts.push(start);
            values = 0;
        }
        values += in_unit;
        if let Some(shorter) = shorter
            && *in_unit > max
        {
            let end = start + length;
            cut(&count(start..end, shorter)?, shorter, max, count, cuts)?;
            cuts.push(end);
            values = 0;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::pending_files;
    use std::convert::Infallible;

    fn divided(times: Range<i64>, values: &[(i64, u64)], max: u64) -> Vec<Range<i64>> {
        let in_units = |length: i64, range: Range<i64>| {
            let mut units = BTreeMap::new();
            for (time, count) in values.iter().filter(|(time, _)| range.contains(time)) {
                *units.entry(time.div_euclid(length)).or_default() += count;
            }
            units
        };
        let days = in_units(DAY, i64::MIN..i64::MAX);
        let count = |range: Range<i64>, length| Ok::<_, Infallible>(in_units(length, range));
        parts(&times, &days, max, count).unwrap()
    }

    #[test]
    fn parts_cover_all_times_without_gaps_and_hold_few_values() {
        let dense: Vec<_> = (0..200).map(|n| (5 * DAY + 17 * n, 7)).collect();
        let sparse: Vec<_> = (-400..400).map(|n| (n * DAY / 3 - 1, 5)).collect();
        let one = vec![(0, 1_000)];
        for values in [&dense, &sparse, &one, &vec![]] {
            for max in [1, 10, 100, 1_000, 100_000] {
                let times = -300 * DAY..300 * DAY;
                let found = divided(times.clone(), values, max);
                assert_eq!(found[0].start, times.start);
                assert_eq!(found.last().unwrap().end, times.end);
                assert!(found.windows(2).all(|pair| pair[0].end == pair[1].start));
                for part in found {
                    assert!(part.start < part.end);
                    let within = values.iter().filter(|(time, _)| part.contains(time));
                    let sums: Vec<u64> = within.map(|(_, count)| *count).collect();
                    let total: u64 = sums.iter().sum();
                    // One second cannot be divided.
                    assert!(total <= max || sums.len() == 1, "{part:?}: {total}");
                }
            }
        }
    }

    #[test]
    fn files_are_in_the_order_of_other_runs() {
        let names = [
            "b.tsv", "x.10.tsv", "x.2.tsv", "x.tsv", "y.10.tsv", "y.2.tsv", "a.tsv",
        ];
        for times in [[5; 7], [5, 5, 5, 4, 5, 5, 6], [7, 6, 5, 4, 3, 2, 1]] {
            let file = |(name, time): (&str, i128)| UploadedFile {
                name: name.into(),
                stamp: Stamp {
                    size: 0,
                    modified_ns: time,
                    changed_ns: 9,
                },
                is_read: false,
                span: None,
            };
            let files = || names.into_iter().zip(times).map(file).collect::<Vec<_>>();
            let (mut found, mut expected) = (files(), files());
            sort_by_upload(&mut found);
            pending_files::sort_by_upload(&mut expected, |file| {
                Some((Some(file.stamp.uploaded_ns()), file.name.clone()))
            });
            let names = |files: Vec<UploadedFile>| {
                files.into_iter().map(|file| file.name).collect::<Vec<_>>()
            };
            assert_eq!(names(found), names(expected), "{times:?}");
        }
    }

    #[test]
    fn a_file_that_is_replaced_changes_both_of_its_time_ranges() {
        let dir = tempfile::tempdir().unwrap();
        let device = Path::new("acme/site/1");
        let parsed = dir.path().join(device).join(PARSED);
        std::fs::create_dir_all(&parsed).unwrap();
        let write = |name: &str, day: &str, value: u32| {
            let text = format!("1\t1\nMV_T302_V002\tA W\n{day} 00:00:00\t{value}\n");
            std::fs::write(parsed.join(name), text).unwrap();
        };
        write("a.tsv", "01/08/25", 1);
        let data = Dir::open(dir.path()).unwrap();
        let location = DevicePath::of_folder(device, "meta").unwrap();
        let mut files = DeviceFiles::open(&data, device, location).unwrap();
        let reading = Reading {
            zones: &FileZones::built_in(chrono_tz::UTC),
            stop: &Shutdown::default(),
            progress: &Progress::none(),
        };
        let (august, september) = (1_754_006_400, 1_756_684_800);
        assert_eq!(files.list().unwrap(), []);
        assert_eq!(files.read_new(reading, None).unwrap(), [august..=august]);
        // Of another size, because all of this may happen within one step of the file system's clock.
        write("b", "01/09/25", 10);
        std::fs::rename(parsed.join("b"), parsed.join("a.tsv")).unwrap();
        assert_eq!(files.list().unwrap(), [august..=august]);
        let new = files.read_new(reading, None).unwrap();
        assert_eq!(new, [september..=september]);
        assert_eq!(files.list().unwrap(), []);
    }

    #[test]
    fn few_values_are_one_part() {
        assert_eq!(divided(0..100, &[(5, 3), (80, 3)], 6), vec![0..100; 1]);
    }
}
