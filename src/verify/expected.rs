//! The points that files give within a range of times, and how they compare with those of a database.

use super::files::{DAY, DeviceFiles, FileError, Reading};
use super::result::{Difference, PartResult, Sample};
use crate::points::{BatchBuilder, BatchOptions, SeriesPrefix, stored_tags};
use crate::sink::{Field, Place, PointVisitor, StoredPoint};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;

/// The tags of a series as one text.
type Key = Box<str>;

/// Number of points that are collected before repeated ones are removed.
const COMPACT: usize = 1 << 19;

/// The points that the files of devices give within a range of times.
#[derive(Default)]
pub(super) struct Expected {
    ids: HashMap<Key, usize>,
    series: Vec<Series>,
    /// The number of points that were added since repeated ones were removed.
    added: usize,
}

struct Series {
    tags: Vec<(&'static str, String)>,
    /// The position of the device whose file gave it last.
    device: usize,
    points: Vec<Point>,
    /// What was found of each point. Empty until the points are compared.
    found: Vec<Found>,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    /// Seconds since 1970.
    time: i64,
    value: f64,
}

/// What a database has of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Same,
    Other,
}

fn key<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Key {
    let mut key = String::new();
    for (name, value) in tags {
        // No name or value of a file contains control characters.
        key.extend([name, "\0", value, "\0"]);
    }
    key.into()
}

impl Expected {
    /// Reads the files of devices in the order of the uploads. With `moved_since`, only points stay that the last upload of
    /// them was changed or moved since then, in nanoseconds since 1970.
    pub(super) fn read(
        devices: &[DeviceFiles],
        reading: Reading<'_>,
        times: &Range<i64>,
        moved_since: Option<i128>,
    ) -> Result<Self, FileError> {
        let mut expected = Self::default();
        for (device, file) in overlapping(devices, times) {
            let moved = devices[device].files[file].stamp.changed_ns;
            let is_wanted = moved_since.is_none_or(|since| moved >= since);
            expected.add(device, &devices[device], file, reading, times, is_wanted)?;
        }
        expected.compact();
        if moved_since.is_some() {
            for series in &mut expected.series {
                series.points.retain(|point| !point.value.is_nan());
            }
        }
        Ok(expected)
    }

    fn add(
        &mut self,
        position: usize,
        device: &DeviceFiles,
        file: usize,
        reading: Reading<'_>,
        times: &Range<i64>,
        is_wanted: bool,
    ) -> Result<(), FileError> {
        let mut table = None;
        let mut ids: Vec<usize> = Vec::new();
        device.read(file, reading, |row| {
            if !times.contains(&row.time) {
                return;
            }
            if table != Some(row.header_changes) {
                table = Some(row.header_changes);
                ids.clear();
                for channel in &row.channels.list {
                    let campaign = &device.location.campaign;
                    let tags = stored_tags(campaign, &row.channels.master, channel);
                    ids.push(self.id(position, tags));
                }
            }
            for (id, value) in ids.iter().zip(row.values) {
                if let Some(value) = *value {
                    // No file has a value that is not a number.
                    let value = if is_wanted { value } else { f64::NAN };
                    let time = row.time;
                    self.series[*id].points.push(Point { time, value });
                    self.added += 1;
                }
            }
            if self.added >= COMPACT {
                self.compact();
            }
        })?;
        Ok(())
    }

    fn id(&mut self, device: usize, tags: Vec<(&'static str, String)>) -> usize {
        let key = key(tags.iter().map(|(name, value)| (*name, value.as_str())));
        let next = self.series.len();
        let id = *self.ids.entry(key).or_insert(next);
        match self.series.get_mut(id) {
            Some(series) => series.device = device,
            None => self.series.push(Series {
                tags,
                device,
                points: Vec::new(),
                found: Vec::new(),
            }),
        }
        id
    }

    /// The tags of all series, by their positions.
    pub(super) fn series_tags(&self) -> impl Iterator<Item = (usize, &[(&'static str, String)])> {
        self.series
            .iter()
            .map(|series| series.tags.as_slice())
            .enumerate()
    }

    /// The position of the series with these tags.
    pub(super) fn id_of(&self, tags: &[(String, String)]) -> Option<usize> {
        let key = key(tags.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        self.ids.get(&key).copied()
    }

    /// The value of a series at a time.
    pub(super) fn value_at(&self, series: usize, time: i64) -> Option<f64> {
        let points = &self.series[series].points;
        let position = points
            .binary_search_by_key(&time, |point| point.time)
            .ok()?;
        Some(points[position].value)
    }

    /// Sorts the points of each series by time. Of points with the same time, the last one stays.
    fn compact(&mut self) {
        self.added = 0;
        for series in &mut self.series {
            let points = &mut series.points;
            points.sort_by_key(|point| point.time);
            points.reverse();
            points.dedup_by_key(|point| point.time);
            points.reverse();
        }
    }

    /// Starts a comparison with the points of a database.
    pub(super) fn compare(&mut self, devices: usize) -> Comparison<'_> {
        for series in &mut self.series {
            series.found.clear();
            series.found.resize(series.points.len(), Found::Nothing);
        }
        Comparison {
            expected: self,
            current: Current::default(),
            result: PartResult::new(devices),
        }
    }

    /// Writes the points that the last comparison did not find, or with another value, as line protocol. Passes full
    /// batches to `send`, until it fails.
    pub(super) fn write_missing<E: From<io::Error>>(
        &self,
        measurement: &str,
        options: BatchOptions,
        mut send: impl FnMut(crate::points::Batch) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut batch = BatchBuilder::new(options);
        for series in &self.series {
            let tags: Vec<_> = series.tags.iter().map(|(k, v)| (*k, v.as_str())).collect();
            let prefix = [SeriesPrefix::of_tags(measurement, &tags)];
            for (point, found) in series.points.iter().zip(&series.found) {
                if *found == Found::Same {
                    continue;
                }
                batch.push_values(&prefix, point.time, &[Some(point.value)])?;
                if batch.is_full()
                    && let Some(full) = batch.take()?
                {
                    send(full)?;
                }
            }
        }
        batch.take()?.map_or(Ok(()), send)
    }
}

/// The number of values per unit of time within a range, counting repeated ones.
pub(super) fn count(
    devices: &[DeviceFiles],
    reading: Reading<'_>,
    times: &Range<i64>,
    length: i64,
) -> Result<BTreeMap<i64, u64>, FileError> {
    let mut units = BTreeMap::new();
    for (device, file) in overlapping(devices, times) {
        devices[device].read(file, reading, |row| {
            if times.contains(&row.time) {
                let values = row.values.iter().flatten().count() as u64;
                *units.entry(row.time.div_euclid(length)).or_default() += values;
            }
        })?;
    }
    Ok(units)
}

/// The files with points within a range of times, in the order of the uploads, as positions of device and file.
fn overlapping(devices: &[DeviceFiles], times: &Range<i64>) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (position, device) in devices.iter().enumerate() {
        for (file, uploaded) in device.files.iter().enumerate() {
            let span = uploaded.span.as_ref();
            if span.is_some_and(|span| *span.start() < times.end && times.start <= *span.end()) {
                found.push((position, file));
            }
        }
    }
    // The files of each device are in this order already.
    found.sort_by_key(|(device, file)| devices[*device].files[*file].stamp.uploaded_ns());
    found
}

/// A comparison of expected points with those of a database, which come in any order.
pub(super) struct Comparison<'a> {
    expected: &'a mut Expected,
    current: Current,
    result: PartResult,
}

/// The series whose points are being compared.
#[derive(Default)]
struct Current {
    /// The expected series; none if there is no such series.
    id: Option<usize>,
    /// The position of the next point, if the points come in the order of their times.
    next: usize,
    /// What to call the series, for samples.
    label: String,
}

impl PointVisitor for Comparison<'_> {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, _: Place) {
        let id = self.expected.id_of(tags).filter(|_| field.is_value());
        let tags: Vec<_> = tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let label = if id.is_some() {
            label(&tags)
        } else {
            let tags = tags.iter().map(|(k, v)| format!("{k}={v}"));
            let field =
                (!field.is_value()).then(|| format!("field {} ({})", field.key, field.kind));
            tags.chain(field).collect::<Vec<_>>().join(", ")
        };
        self.current = Current { id, next: 0, label };
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        let known = self.current.id.map(|id| &mut self.expected.series[id]);
        let device = known.as_ref().map_or(0, |series| series.device);
        let position = match &known {
            Some(series) if point.nanos == 0 => series.position(point.time, self.current.next),
            _ => None,
        };
        let counts = self.result.device(device).counts(point.time);
        counts.found += 1;
        let (Some(series), Some(position)) = (known, position) else {
            counts.extra += 1;
            let result = self.result.device(device);
            result.extra_days.insert(point.time.div_euclid(DAY));
            result.add_sample(Difference::Extra, || Sample {
                time: point.time,
                series: self.current.label.clone(),
                expected: None,
                found: Some(point.value.to_owned()),
            });
            return;
        };
        self.current.next = position + 1;
        let expected = series.points[position].value;
        let found: Option<f64> = point.value.parse().ok();
        let is_same = found.is_some_and(|found| found.to_bits() == expected.to_bits());
        series.found[position] = if is_same { Found::Same } else { Found::Other };
        if !is_same {
            counts.different += 1;
            self.result
                .device(device)
                .add_sample(Difference::Different, || Sample {
                    time: point.time,
                    series: self.current.label.clone(),
                    expected: Some(expected),
                    found: Some(point.value.to_owned()),
                });
        }
    }
}

impl Series {
    /// The position of the point with this time, which is `next` if the points come in order.
    fn position(&self, time: i64, next: usize) -> Option<usize> {
        match self.points.get(next) {
            Some(point) if point.time == time => Some(next),
            _ => self
                .points
                .binary_search_by_key(&time, |point| point.time)
                .ok(),
        }
    }
}

impl Comparison<'_> {
    /// Ends the comparison: what was not found is missing.
    pub(super) fn finish(mut self) -> PartResult {
        for series in &self.expected.series {
            let tags: Vec<_> = series.tags.iter().map(|(k, v)| (*k, v.as_str())).collect();
            let device = self.result.device(series.device);
            for (point, found) in series.points.iter().zip(&series.found) {
                let counts = device.counts(point.time);
                counts.expected += 1;
                if *found == Found::Nothing {
                    counts.missing += 1;
                    device.add_sample(Difference::Missing, || Sample {
                        time: point.time,
                        series: label(&tags),
                        expected: Some(point.value),
                        found: None,
                    });
                }
            }
        }
        self.result
    }
}

/// Id, name and unit of a channel.
fn label(tags: &[(&str, &str)]) -> String {
    let value = |key: &str| tags.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| v);
    let label = format!(
        "{} {} {}",
        value("channel_id"),
        value("channel_name"),
        value("unit")
    );
    label.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::{DevicePath, Dir};
    use crate::report::Progress;
    use crate::shutdown::Shutdown;
    use crate::time_zone::FileZones;
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    #[test]
    fn points_that_a_later_upload_gives_are_not_those_of_files_moved_since() {
        let dir = tempfile::tempdir().unwrap();
        let device = Path::new("acme/site/1");
        let parsed = dir.path().join(device).join("parsed");
        fs::create_dir_all(&parsed).unwrap();
        // The second file is moved later, but was uploaded before the first one.
        for (name, age, rows) in [("a", 60, ["00", "10"]), ("b", 120, ["10", "20"])] {
            let value = age;
            let rows = rows.map(|minute| format!("03/08/25 03:{minute}:00\t{value}\n"));
            let text = format!("1\t1\nMV_T302_V002\tA W\n{}", rows.concat());
            let file = parsed.join(format!("{name}.tsv"));
            fs::write(&file, text).unwrap();
            let uploaded = SystemTime::now() - Duration::from_secs(age);
            let file = fs::File::options().write(true).open(file).unwrap();
            file.set_modified(uploaded).unwrap();
            std::thread::sleep(Duration::from_millis(30));
        }
        let data = Dir::open(dir.path()).unwrap();
        let location = DevicePath::of_folder(device, "meta").unwrap();
        let mut files = DeviceFiles::open(&data, device, location).unwrap();
        files.list().unwrap();
        let reading = Reading {
            zones: &FileZones::built_in(chrono_tz::UTC),
            stop: &Shutdown::default(),
            progress: &Progress::none(),
        };
        files.read_new(reading, None).unwrap();
        let moved = |name: &str| {
            let file = files.files.iter().find(|file| file.name == name);
            file.unwrap().stamp.changed_ns
        };
        let since = [None, Some(moved("a.tsv")), Some(moved("b.tsv"))];
        let points = since.map(|since| {
            let files = std::slice::from_ref(&files);
            let expected = Expected::read(files, reading, &(0..i64::MAX), since).unwrap();
            let points = expected.series[0].points.iter();
            points
                .map(|point| (point.time - 1_754_190_000, point.value))
                .collect::<Vec<_>>()
        });
        let all = vec![(0, 60.0), (600, 60.0), (1_200, 120.0)];
        assert_eq!(points, [all.clone(), all, vec![(1_200, 120.0)]]);
    }
}
