//! Compares the device folders that share the serials of their masters: mostly one folder.

use super::expected::{Expected, count};
use super::explain::{ByChannel, Candidates, Causes, Explainer};
use super::files::{DAY, DeviceFiles, FileError, parts};
use super::folders::Compared;
use super::result::{DeviceCounts, PartResult};
use super::{DeviceResult, Measurement, Verifier, VerifyError};
use crate::data_dir::{DeviceLock, DevicePath, LockError};
use crate::points::TimeRange;
use crate::sanitize::sanitize;
use crate::sink::ordered_sender::OrderedSender;
use crate::sink::{PointVisitor, ReadError, WriteError, retried};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Maximum number of values in a part.
const MAX_PART: u64 = 500_000;

/// How often the files may change while they are compared.
const MAX_ROUNDS: u32 = 5;

/// Device folders that share the serials of their masters.
pub(super) struct Group<'a, 'v> {
    verifier: &'a Verifier<'v>,
    measurement: &'a Measurement<'a>,
    devices: Vec<DeviceFiles>,
    /// Whether files are read that have not changed since the first time that is compared.
    reads_old_files: bool,
    /// The time ranges of files that came or went since the last look at it.
    changed: Vec<TimeRange>,
    /// The number of points that were written.
    pub(super) repaired: u64,
    notes: Vec<String>,
}

impl<'a, 'v> Group<'a, 'v> {
    /// Opens the folders and reads their files.
    pub(super) fn open(
        verifier: &'a Verifier<'v>,
        measurement: &'a Measurement<'a>,
        folders: &[(PathBuf, DevicePath)],
        reads_old_files: bool,
    ) -> Result<Self, VerifyError> {
        let mut devices = Vec::new();
        for (path, location) in folders {
            devices.push(DeviceFiles::open(verifier.data, path, location.clone())?);
        }
        let mut group = Self {
            verifier,
            measurement,
            devices,
            reads_old_files: reads_old_files || verifier.options.since.is_none(),
            changed: Vec::new(),
            repaired: 0,
            notes: Vec::new(),
        };
        group.refresh()?;
        group.changed.clear();
        Ok(group)
    }

    /// The serials of the masters.
    pub(super) fn masters(&self) -> BTreeSet<String> {
        let masters = self.devices.iter().flat_map(|device| &device.masters);
        masters.cloned().collect()
    }

    /// Lists the files if they have changed, and reads the new ones.
    fn refresh(&mut self) -> Result<(), VerifyError> {
        let since = self.verifier.options.since;
        let since = since.filter(|_| !self.reads_old_files);
        let since = since.map(|since| i128::from(since) * 1_000_000_000);
        let reading = self.verifier.reading();
        for device in &mut self.devices {
            for round in 1.. {
                self.changed.extend(device.list()?);
                match device.read_new(reading, since) {
                    Ok(spans) => {
                        self.changed.extend(spans);
                        break;
                    }
                    Err(FileError::Changed) if round < MAX_ROUNDS => device.forget_listing(),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Compares all points. The result is in the order of the devices.
    pub(super) fn compare(&mut self) -> Result<Vec<DeviceCounts>, VerifyError> {
        let mut days: BTreeMap<i64, u64> = BTreeMap::new();
        for device in &self.devices {
            for (day, values) in &device.days {
                *days.entry(*day).or_default() += values;
            }
        }
        let times = &self.times();
        if times.is_empty() {
            return Ok(vec![DeviceCounts::default(); self.devices.len()]);
        }
        let reading = self.verifier.reading();
        let in_units = |times: Range<i64>, length| count(&self.devices, reading, &times, length);
        let parts = match parts(times, &days, MAX_PART, in_units) {
            Err(FileError::Changed) => {
                self.devices
                    .iter_mut()
                    .for_each(DeviceFiles::forget_listing);
                self.refresh()?;
                let in_units =
                    |times: Range<i64>, length| count(&self.devices, reading, &times, length);
                parts(times, &days, MAX_PART, in_units)
            }
            result => result,
        }?;
        let mut results = Vec::new();
        for part in &parts {
            results.push(self.compare_part(part)?);
        }
        for _ in 0..MAX_ROUNDS {
            self.refresh()?;
            let changed = std::mem::take(&mut self.changed);
            if changed.is_empty() {
                break;
            }
            for (part, result) in parts.iter().zip(&mut results) {
                if changed
                    .iter()
                    .any(|span| *span.start() < part.end && part.start <= *span.end())
                {
                    *result = self.compare_part(part)?;
                }
            }
        }
        let mut devices = vec![DeviceCounts::default(); self.devices.len()];
        for result in results {
            for (device, counts) in devices.iter_mut().zip(result.devices) {
                device.add(counts);
            }
        }
        Ok(devices)
    }

    /// The times to compare. Those of some files only need no comparison with points of other times.
    fn times(&self) -> Range<i64> {
        let mut times = self.measurement.times.clone();
        if let Some(since) = self.verifier.options.moved_since {
            let files = self.devices.iter().flat_map(|device| &device.files);
            let moved = files.filter(|file| file.stamp.changed_ns >= since);
            let spans: Vec<_> = moved.filter_map(|file| file.span.as_ref()).collect();
            let start = spans.iter().map(|span| *span.start()).min();
            let end = spans.iter().map(|span| *span.end() + 1).max();
            times.start = times.start.max(start.unwrap_or(times.end));
            times.end = times.end.min(end.unwrap_or(times.end)).max(times.start);
        }
        times
    }

    /// Compares the points of a range of times. If they differ, they are compared again under the locks of the devices, and
    /// repaired if that is wanted.
    fn compare_part(&mut self, times: &Range<i64>) -> Result<PartResult, VerifyError> {
        match self.compare_once(times) {
            Ok((_, result)) if result.total().is_equal() => return Ok(result),
            Ok(_) => {}
            Err(VerifyError::File(FileError::Changed)) => {
                self.devices
                    .iter_mut()
                    .for_each(DeviceFiles::forget_listing);
            }
            Err(error) => return Err(error),
        }
        let _locks = self.lock()?;
        self.reads_old_files = true;
        let (expected, result) = self.compare_settled(times)?;
        let total = result.total();
        if !self.verifier.options.repair || total.missing + total.different == 0 {
            return Ok(result);
        }
        self.write(&expected)?;
        Ok(self.compare_settled(times)?.1)
    }

    /// Compares the points of a range of times until no file changes meanwhile.
    fn compare_settled(
        &mut self,
        times: &Range<i64>,
    ) -> Result<(Expected, PartResult), VerifyError> {
        let mut rounds = 1;
        loop {
            self.refresh()?;
            match self.compare_once(times) {
                Err(VerifyError::File(FileError::Changed)) if rounds < MAX_ROUNDS => {
                    self.devices
                        .iter_mut()
                        .for_each(DeviceFiles::forget_listing);
                }
                result => return result,
            }
            rounds += 1;
        }
    }

    fn compare_once(&self, times: &Range<i64>) -> Result<(Expected, PartResult), VerifyError> {
        // Points go on to expire, and the server drops those that have expired when they are written.
        let times = &self.measurement.unexpired(times);
        let reading = self.verifier.reading();
        let moved_since = self.verifier.options.moved_since;
        let mut expected = Expected::read(&self.devices, reading, times, moved_since)?;
        let result = retried(|| {
            let mut comparison = expected.compare(self.devices.len());
            for master in self.masters() {
                self.verifier
                    .points(self.measurement, &master, times, &mut comparison)?;
            }
            Ok(comparison.finish())
        })?;
        let points = u32::try_from(result.total().expected).unwrap_or(u32::MAX);
        self.verifier.progress.points(points);
        Ok((expected, result))
    }

    /// Finds out why the database has points that no file gives, and passes those on that remain unexplained.
    pub(super) fn explain(
        &mut self,
        days: &BTreeSet<i64>,
        unexplained: &mut dyn PointVisitor,
    ) -> Result<Causes, VerifyError> {
        let mut causes = Causes::new();
        for &day in days {
            let mut rounds = 1;
            let found = loop {
                match self.explain_day(day, unexplained) {
                    Err(VerifyError::File(FileError::Changed)) if rounds < MAX_ROUNDS => {
                        self.devices
                            .iter_mut()
                            .for_each(DeviceFiles::forget_listing);
                        self.refresh()?;
                    }
                    result => break result?,
                }
                rounds += 1;
            };
            for (cause, points) in found {
                *causes.entry(cause).or_default() += points;
            }
        }
        Ok(causes)
    }

    fn explain_day(
        &self,
        day: i64,
        unexplained: &mut dyn PointVisitor,
    ) -> Result<Causes, VerifyError> {
        let reading = self.verifier.reading();
        let zone = &reading.zones.default;
        let candidates = Candidates::of(day, zone);
        let read = |times| Expected::read(&self.devices, reading, times, None);
        let near = read(&candidates.near)?;
        let swapped: Vec<_> = candidates
            .swapped
            .iter()
            .map(read)
            .collect::<Result<_, _>>()?;
        let near = ByChannel::new(&near);
        let swapped: Vec<_> = swapped.iter().map(ByChannel::new).collect();
        let all = &self.measurement.times;
        let times = all.start.max(day * DAY)..all.end.min((day + 1) * DAY);
        Ok(retried(|| {
            let mut explainer = Explainer::new(&near, &swapped, zone, &mut *unexplained);
            for master in self.masters() {
                self.verifier
                    .points(self.measurement, &master, &times, &mut explainer)?;
            }
            Ok(explainer.causes)
        })?)
    }

    /// Acquires the locks of the devices. Without them, the comparison goes on, but the result may be wrong. It does not if
    /// points may be written that an upload writes too.
    fn lock(&mut self) -> Result<Vec<DeviceLock>, VerifyError> {
        let mut locks = Vec::new();
        if self.verifier.options.holds_locks {
            return Ok(locks);
        }
        let wait = self.verifier.options.lock_wait;
        // Uploads do not write to another bucket than that of the company.
        let is_required = self.verifier.options.repair && self.verifier.options.bucket.is_none();
        for device in &self.devices {
            match device.folder.lock(wait, self.verifier.stop) {
                Ok(lock) => locks.push(lock),
                Err(LockError::Stopped) => return Err(ReadError::Stopped.into()),
                Err(error) if is_required => {
                    let folder = device.folder.path().to_owned();
                    return Err(VerifyError::Locked { folder, error });
                }
                Err(error) => self.notes.push(format!(
                    "{}: compared without its lock, so that a file which is being ingested counts as a difference: {error}; {}",
                    sanitize(device.folder.path()),
                    error.remedy().unwrap_or("run it again")
                )),
            }
        }
        let bucket = self.measurement.bucket;
        self.verifier.sink.forget_bucket_id(bucket);
        Ok(locks)
    }

    /// What an operator should know about the files.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        let defects = self.devices.iter().flat_map(|device| {
            let folder = sanitize(device.folder.path());
            device
                .defects
                .iter()
                .map(move |defect| format!("{folder}/{defect}"))
        });
        self.notes.iter().cloned().chain(defects)
    }

    /// Ends the comparison of these folders with its result.
    pub(super) fn end(
        &self,
        folders: Vec<(PathBuf, DevicePath)>,
        counts: Vec<DeviceCounts>,
    ) -> Compared {
        let results = self
            .devices
            .iter()
            .zip(counts)
            .map(|(device, counts)| DeviceResult {
                company: device.location.company.as_str().to_owned(),
                campaign: device.location.campaign.as_str().to_owned(),
                device: device.location.device.as_str().to_owned(),
                files: device.nb_read(),
                counts,
                causes: Causes::new(),
            });
        Compared {
            folders,
            masters: self.masters(),
            listed: self.devices.iter().map(DeviceFiles::listed).collect(),
            is_complete: self.devices.iter().all(DeviceFiles::is_read),
            is_outdated: false,
            results: results.collect(),
        }
    }

    /// Writes the points that are missing or different.
    fn write(&mut self, expected: &Expected) -> Result<(), VerifyError> {
        let mut sender = OrderedSender::new(self.verifier.sink, self.measurement.bucket);
        let file = sender.begin();
        let sent = expected.write_missing(
            self.measurement.name,
            self.verifier.options.batch,
            |batch| sender.send(file, batch).map_err(SendError::Write),
        );
        let written = sender.wait(file);
        self.repaired += written.points.accepted;
        self.measurement.bucket_exists.set(true);
        written.result?;
        match sent {
            Ok(()) => Ok(()),
            Err(SendError::Write(error)) => Err(error.into()),
            Err(SendError::Io(error)) => Err(error.into()),
        }
    }
}

/// Why points cannot be sent.
enum SendError {
    Io(io::Error),
    Write(WriteError),
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
