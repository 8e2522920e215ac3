//! Scan of the device folders. All files are listed, and those that were ingested in the last days are read to their end.

use crate::data_dir::pending_files::{Item, PendingFiles, is_tsv};
use crate::data_dir::{
    DASHBOARD_MARKER, DeviceItem, Dir, ERROR, EntryKind, LOCK_FILE, Obstacle, OpenError, OpenFile,
    PARSED, Sidecar, all_below, devices, is_catalogue_file, is_no_folder, is_processed_dir,
    is_recent_upload, strays,
};
use crate::layout::LayoutState;
use crate::logger_file::{
    Container, FormatError, LoggerFile, Problem, ReadOptions, RowStats, last_instant,
};
use crate::pipeline::{LastRows, row_before};
use crate::rollup::PendingDays;
use crate::sanitize::sanitize;
use crate::time_zone::FileZones;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Number of newest files per device that decide whether its clock and its uploads are healthy.
pub(super) const NEWEST_FILES: usize = 3;

/// Number of newest files per device that are opened: more than the 1,008 of a logger that sends every ten minutes.
const MAX_OPENED: usize = 1_500;

/// Number of different reasons of errors that are kept per device.
const MAX_REASONS: usize = 3;

/// Maximum length of a reason in characters. SFTP users can write sidecars.
pub(super) const MAX_REASON_CHARS: usize = 300;

/// Number of names that are kept of the files that no run takes.
const MAX_STRAYS: usize = 5;

/// How long ago a file may have been ingested that is read to its end. The first [`NEWEST_FILES`] are read at any age.
const MAX_AGE: Duration = Duration::from_hours(7 * 24);

/// Number of bytes read at each end of a file.
const BLOCK: usize = 16 * 1024;

/// The files of a device.
#[derive(Debug, Default)]
pub(super) struct DeviceScan {
    /// Path relative to the data folder: company, campaign, device; shorter if there is no device.
    pub path: PathBuf,
    /// Why the folder could not be read.
    pub unreadable: Option<String>,
    /// Number of files waiting to be ingested.
    pub waiting: u64,
    /// Why files of the device cannot be moved.
    pub obstacle: Option<Obstacle>,
    /// Arrival of the oldest waiting file.
    pub oldest_waiting: Option<SystemTime>,
    /// Number of retryable files in `error/`.
    pub errors_retryable: u64,
    /// Number of other files in `error/`.
    pub errors_other: u64,
    /// The first different reasons of those files, sanitized, with the number of files of each.
    pub error_reasons: Vec<(String, u64)>,
    /// The newest files, newest first: [`NEWEST_FILES`], and those that were ingested in the last days.
    pub newest: Vec<NewestFile>,
    /// Whether this is a company without campaigns or a campaign without devices.
    pub empty: bool,
    /// Files that no run takes.
    pub strays: Strays,
    /// Since when the device is retired.
    pub retired: Option<SystemTime>,
    /// What is remembered of the layouts of the files.
    pub layout: LayoutState,
    /// Why that could not be read.
    pub layout_error: Option<String>,
    /// Since when hourly summaries are still to be computed.
    pub summaries_pending: Option<DateTime<Utc>>,
}

/// Files that no run takes.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Their number.
    pub count: u64,
    /// The first ones, relative to the folder of the scan and sanitized.
    pub first: Vec<String>,
}

/// One of the newest files.
#[derive(Debug)]
pub(super) struct NewestFile {
    /// File name.
    pub name: OsString,
    /// Folder, relative to the device folder.
    pub sub: PathBuf,
    /// Modification time.
    pub time: SystemTime,
    /// Time of the first measurement in seconds since 1970.
    pub first_measurement: Option<i64>,
    /// Time of the last measurement in seconds since 1970.
    pub last_measurement: Option<i64>,
    /// Whether the file is truncated.
    pub truncated: bool,
    /// Counts as in the report; all 0 unless the file was ingested.
    pub stats: RowStats,
    /// The first defect of a file with counts.
    pub first_problem: Option<Problem>,
}

/// Scans all devices below the data folder. Companies and campaigns without devices are listed too.
pub(super) fn all(data: &Path, zones: &FileZones) -> Vec<DeviceScan> {
    let data = match Dir::open(data) {
        Ok(data) => Arc::new(data),
        Err(error) => return vec![DeviceScan::unreadable(PathBuf::new(), &error)],
    };
    let mut scans: BTreeMap<PathBuf, DeviceScan> = BTreeMap::new();
    for item in devices(&data) {
        let (path, scan) = match item {
            DeviceItem::Device(path) => (path.clone(), device(&data, path, zones)),
            DeviceItem::Unlisted(path, error) => {
                (path.clone(), DeviceScan::unreadable(path, &error))
            }
            DeviceItem::Empty(path) => {
                DeviceScan::at(&mut scans, &path).empty = true;
                continue;
            }
            DeviceItem::Misplaced(file) | DeviceItem::Other(file) => {
                add_other(&data, &mut scans, &file);
                continue;
            }
            DeviceItem::Reserved(path) => {
                let mut files = Vec::new();
                if let Err(error) = all_below(&data, &path, &mut |file| files.push(file)) {
                    scans.insert(path.clone(), DeviceScan::unreadable(path, &error));
                }
                for file in files {
                    add_stray(&mut scans, &file);
                }
                continue;
            }
        };
        scans.insert(path, scan);
    }
    scans.into_values().collect()
}

/// Adds a file above the device folders, unless it is an upload in progress, the marker of a dashboard, a lock or a file of a
/// catalogue.
fn add_other(data: &Dir, scans: &mut BTreeMap<PathBuf, DeviceScan>, file: &Path) {
    // A file whose age is unknown is listed.
    let is_recent = is_recent_upload(data, file).unwrap_or(false);
    let is_of_catalogue = is_catalogue_file(file) && is_regular(data, file).unwrap_or(false);
    let is_own = file.ends_with(DASHBOARD_MARKER) || file.ends_with(LOCK_FILE);
    if !is_recent && !is_of_catalogue && !is_own {
        add_stray(scans, file);
    }
}

/// Whether a path below the data folder is that of a regular file.
fn is_regular(data: &Dir, file: &Path) -> io::Result<bool> {
    let folder = data.open_below(file.parent().unwrap_or(Path::new("")))?;
    folder.is_file(file.file_name().unwrap_or_default())
}

/// Adds a file that no run takes to the scan of its folder, or of its company and campaign.
fn add_stray(scans: &mut BTreeMap<PathBuf, DeviceScan>, file: &Path) {
    let folder: PathBuf = file
        .parent()
        .unwrap_or(Path::new(""))
        .iter()
        .take_while(|name| !is_processed_dir(name))
        .collect();
    let below = file.strip_prefix(&folder).unwrap_or(file);
    DeviceScan::at(scans, &folder).strays.add(below);
}

/// Scans a device folder.
fn device(data: &Dir, path: PathBuf, zones: &FileZones) -> DeviceScan {
    let mut scan = DeviceScan {
        path,
        ..DeviceScan::default()
    };
    let read = |scan: &mut DeviceScan| -> io::Result<()> {
        let folder = Arc::new(data.open_below(&scan.path)?);
        scan.obstacle = folder.obstacle()?;
        scan.retired = folder.retired()?;
        match LayoutState::read(&folder) {
            Ok(layout) => scan.layout = layout,
            Err(error) => scan.layout_error = Some(error.to_string()),
        }
        // One that cannot be read is replaced by the next run.
        let pending = PendingDays::read(&folder).ok().flatten();
        scan.summaries_pending = pending.map(|pending| pending.since);
        add_waiting(&folder, scan)?;
        strays(&folder, |file| scan.strays.add(&file))?;
        for sub in [PARSED, ERROR] {
            match folder.open_below(Path::new(sub)) {
                Ok(processed) => add_processed(&processed, Path::new(sub), scan)?,
                // Missing, or an obstacle.
                Err(error) if is_no_folder(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mut position = 0;
        let mut result = Ok(());
        scan.newest.retain_mut(|newest| {
            position += 1;
            match newest.read(&folder, zones, position <= NEWEST_FILES) {
                Ok(is_kept) => is_kept,
                Err(error) => {
                    result = Err(with_path(&newest.sub.join(&newest.name), &error));
                    true
                }
            }
        });
        result
    };
    if let Err(error) = read(&mut scan) {
        scan.unreadable = Some(sanitize(error.to_string()));
    }
    scan
}

/// Adds the files that wait to be ingested.
fn add_waiting(folder: &Arc<Dir>, scan: &mut DeviceScan) -> io::Result<()> {
    for item in PendingFiles::new(folder, false) {
        let (sub, name) = match item {
            Item::File(sub, name) => (sub, name),
            Item::Unlisted(sub, error) => return Err(with_path(&sub, &error)),
            Item::Retry(_) | Item::Sidecar(_) => continue,
        };
        let below = match folder.open_below(&sub) {
            Ok(below) => below,
            Err(error) if is_no_folder(&error) => continue,
            Err(error) => return Err(with_path(&sub, &error)),
        };
        let Some(time) = below.modified(&name)? else {
            continue;
        };
        scan.waiting += 1;
        let oldest = scan.oldest_waiting.get_or_insert(time);
        *oldest = time.min(*oldest);
        if let Err(OpenError::Io(error)) = below.open_file(&name) {
            return Err(with_path(&sub.join(&name), &error));
        }
        scan.add_newest(sub, name, time);
    }
    Ok(())
}

/// Adds a path relative to the device folder to an error.
fn with_path(path: &Path, error: &impl ToString) -> io::Error {
    if path.as_os_str().is_empty() {
        return io::Error::other(error.to_string());
    }
    io::Error::other(format!("{}: {}", sanitize(path), error.to_string()))
}

/// Adds the files of `parsed/` or `error/`.
fn add_processed(folder: &Dir, sub: &Path, scan: &mut DeviceScan) -> io::Result<()> {
    for entry in folder.sorted_entries(|name, kind| kind == EntryKind::File && is_tsv(name)) {
        let name = entry?.name;
        let Some(time) = folder.modified(&name)? else {
            continue;
        };
        if sub == Path::new(ERROR) {
            match folder.read_sidecar(&name)? {
                Some(sidecar) if sidecar.retryable => scan.errors_retryable += 1,
                sidecar => scan.add_error(sidecar.as_ref()),
            }
        }
        scan.add_newest(sub.to_owned(), name, time);
    }
    Ok(())
}

impl Strays {
    fn add(&mut self, file: &Path) {
        self.count += 1;
        if self.first.len() < MAX_STRAYS {
            self.first.push(sanitize(file));
        }
    }
}

impl DeviceScan {
    /// The scan of a folder above the devices, which is added if it is missing.
    fn at<'a>(scans: &'a mut BTreeMap<PathBuf, Self>, path: &Path) -> &'a mut Self {
        scans.entry(path.to_owned()).or_insert_with(|| Self {
            path: path.to_owned(),
            ..Self::default()
        })
    }

    fn unreadable(path: PathBuf, error: &io::Error) -> Self {
        Self {
            path,
            unreadable: Some(sanitize(error.to_string())),
            ..Self::default()
        }
    }

    /// Adds a file in `error/` that cannot be retried.
    fn add_error(&mut self, sidecar: Option<&Sidecar>) {
        self.errors_other += 1;
        let reason = sidecar.map_or_else(
            || "no reason recorded".to_owned(),
            |sidecar| {
                sanitize(
                    sidecar
                        .error
                        .chars()
                        .take(MAX_REASON_CHARS)
                        .collect::<String>(),
                )
            },
        );
        let reasons = &mut self.error_reasons;
        if let Some((_, files)) = reasons.iter_mut().find(|(known, _)| *known == reason) {
            *files += 1;
        } else if reasons.len() < MAX_REASONS {
            reasons.push((reason, 1));
        }
    }

    /// Adds a file to the newest ones if it is among them.
    fn add_newest(&mut self, sub: PathBuf, name: OsString, time: SystemTime) {
        let position = self
            .newest
            .partition_point(|other| (other.time, &other.name) > (time, &name));
        if position < MAX_OPENED {
            self.newest.truncate(MAX_OPENED - 1);
            let newest = NewestFile {
                name,
                sub,
                time,
                first_measurement: None,
                last_measurement: None,
                truncated: false,
                stats: RowStats::default(),
                first_problem: None,
            };
            self.newest.insert(position.min(self.newest.len()), newest);
        }
    }
}

impl NewestFile {
    /// Reads the file, unless it is one of the others and was ingested long ago or not at all. Returns whether it was read
    /// or is one of the first [`NEWEST_FILES`].
    fn read(&mut self, device: &Dir, zones: &FileZones, is_among_first: bool) -> io::Result<bool> {
        let open = match device.open_below(&self.sub)?.open_file(&self.name) {
            Ok(open) => open,
            Err(OpenError::Io(error)) => return Err(error),
            Err(OpenError::Gone | OpenError::NotAFile(_)) => return Ok(is_among_first),
        };
        let is_ingested = self.sub == Path::new(PARSED);
        if !(is_among_first || is_ingested && open.stamp.changed_within(MAX_AGE)) {
            return Ok(false);
        }
        self.read_ends(&open.file, open.stamp.size, zones)?;
        if is_ingested {
            self.read_rows(&open, device, zones)?;
        }
        Ok(true)
    }

    /// Reads both ends of the file to find the last measurement and whether the file is truncated.
    fn read_ends(&mut self, file: &std::fs::File, size: u64, zones: &FileZones) -> io::Result<()> {
        let block = |start: u64| -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; BLOCK];
            let read = file.read_at(&mut bytes, start)?;
            bytes.truncate(read);
            Ok(bytes)
        };
        let head = block(0)?;
        let tail_start = size.saturating_sub(BLOCK as u64);
        let tail = block(tail_start)?;
        self.truncated = Container::looks_truncated(&head, &tail);
        self.first_measurement = head
            .split_inclusive(|byte| *byte == b'\n')
            .find_map(|line| last_instant(&head, line, true, zones));
        self.last_measurement = last_instant(&head, &tail, tail_start == 0, zones);
        Ok(())
    }

    /// Reads the file to its end, or to where it becomes invalid, for the counts of its report.
    fn read_rows(&mut self, open: &OpenFile, device: &Dir, zones: &FileZones) -> io::Result<()> {
        let options = ReadOptions {
            zones,
            uploaded: Some(DateTime::<Utc>::from(self.time).timestamp()),
            row_before: &|| row_before(device, zones, &LastRows::default(), open, &self.name),
        };
        let mut file = match LoggerFile::open(&*open.file, &options).map_err(FormatError::from) {
            Ok(file) => file,
            Err(FormatError::Read(error)) => return Err(error),
            // An earlier version of the program may have accepted the header.
            Err(_) => return Ok(()),
        };
        loop {
            match file.next_row() {
                Ok(Some(_)) => {}
                Err(FormatError::Read(error)) => return Err(error),
                Ok(None) | Err(_) => break,
            }
        }
        self.stats = file.stats();
        self.first_problem = file.problems().first().cloned();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_newest_files_are_kept_in_order() {
        let mut scan = DeviceScan::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let older = (0..MAX_OPENED as u64 - 3).map(|_| ("x", 4));
        let files = [("a", 5), ("b", 9), ("c", 1), ("d", 7), ("e", 9), ("f", 2)];
        for (name, time) in files.into_iter().chain(older) {
            scan.add_newest(PathBuf::new(), name.into(), at(time));
        }
        let names: Vec<_> = scan
            .newest
            .iter()
            .map(|n| n.name.to_str().unwrap())
            .collect();
        assert_eq!(names.len(), MAX_OPENED);
        assert_eq!(names[..5], ["e", "b", "d", "a", "x"]);
        assert!(names[5..].iter().all(|name| *name == "x"), "{names:?}");
    }
}
