//! Compares the points of a database with the files in `parsed/`. See docs/specification.md, section 10.
//!
//! Each device is compared in parts of time, so that memory does not grow with the archive. A part that differs is compared
//! again under the lock of the device, so that a file that is being ingested is no difference.

mod expected;
mod explain;
mod files;
mod group;
mod result;

pub(crate) use self::explain::{Cause, Causes};
pub(crate) use self::result::{DeviceCounts, Difference, Month, PointDifferences, Sample};

use self::expected::Expected;
use self::files::{FileError, Reading};
use self::group::Group;
use crate::data_dir::{
    DEVICE_DEPTH, DeviceItem, DevicePath, Dir, LockError, PARSED, devices_in, rebuild_bucket,
};
use crate::points::{BatchOptions, stored_name};
use crate::report::Progress;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::{ALL_TIMES, PointQuery, PointSource, PointVisitor, ReadError, Sink, WriteError};
use crate::time_zone::FileZones;
use chrono::Utc;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often a query is sent whose answer ends early.
const MAX_QUERIES: u32 = 3;

/// What to compare, and how.
pub(crate) struct Options<'a> {
    /// Only this company.
    pub company: Option<&'a str>,
    /// Only this campaign of the company.
    pub campaign: Option<&'a str>,
    /// Only points from this time on, in seconds since 1970.
    pub since: Option<i64>,
    /// Write what is missing or different.
    pub repair: bool,
    /// Another bucket than that of the company.
    pub bucket: Option<&'a str>,
    /// Whether the points of devices and measurements without a folder are left out.
    pub only_of_files: bool,
    /// Only the points of files that were changed or moved at this time or later, in nanoseconds since 1970, and only those
    /// that no later upload gives.
    pub moved_since: Option<i128>,
    /// Whether the caller holds the locks of all devices.
    pub holds_locks: bool,
    /// Find out why the database has points that no file gives, and pass those on that remain unexplained.
    pub explain: Option<&'a RefCell<dyn Unexplained + 'a>>,
    pub zones: &'a FileZones,
    pub meta_bucket: &'a str,
    pub lock_wait: Duration,
    pub batch: BatchOptions,
}

/// Takes the points that remain unexplained.
pub(crate) trait Unexplained: PointVisitor {
    /// Begins a measurement. A measurement may come several times.
    fn measurement(&mut self, name: &str);
}

/// Everything that a comparison needs.
pub(crate) struct Verifier<'a> {
    pub options: Options<'a>,
    pub data: &'a Arc<Dir>,
    pub source: &'a dyn PointSource,
    /// Where missing points are written.
    pub sink: &'a Sink,
    pub stop: &'a Shutdown,
    pub progress: &'a Progress,
}

/// The result of all comparisons.
#[derive(Debug, Default)]
pub(crate) struct Verification {
    pub devices: Vec<DeviceResult>,
    pub unexplained: Vec<UnexplainedMeasurement>,
    /// The number of files that were read.
    pub files: u64,
    /// The number of points that were written.
    pub repaired: u64,
    /// Why some devices or companies could not be compared. Without any, the result is complete.
    pub failures: Vec<String>,
    pub notes: Vec<String>,
}

impl Verification {
    /// The numbers of all devices.
    pub(crate) fn total(&self) -> PointDifferences {
        let mut total = PointDifferences::default();
        for device in &self.devices {
            total += device.counts.total();
        }
        total
    }

    /// Whether everything was compared and is equal.
    pub(crate) fn is_equal(&self) -> bool {
        self.failures.is_empty() && self.total().is_equal()
    }
}

/// The result of a device.
#[derive(Debug, Default)]
pub(crate) struct DeviceResult {
    pub company: String,
    pub campaign: String,
    /// The device folder; for points of a device without a folder, its serial.
    pub device: String,
    pub files: u64,
    pub counts: DeviceCounts,
    /// Why the database has points that no file gives, if that was asked for.
    pub causes: Causes,
}

/// A measurement without a campaign folder.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct UnexplainedMeasurement {
    pub company: String,
    pub measurement: String,
    /// The number of its points.
    pub points: u64,
}

/// Why a device cannot be compared.
#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot read the folder: {0}")]
    Folder(#[from] io::Error),
    #[error("the missing points cannot be written: {0}")]
    Write(#[from] WriteError),
    #[error("the bucket is being rebuilt; run this again when powerview rebuild has ended")]
    Rebuilt,
}

impl VerifyError {
    fn is_stop(&self) -> bool {
        matches!(
            self,
            Self::Read(ReadError::Stopped)
                | Self::File(FileError::Stopped)
                | Self::Write(WriteError::Stopped)
        )
    }
}

/// The measurement of a campaign, and the times that are compared.
struct Measurement<'a> {
    company: &'a str,
    bucket: &'a str,
    /// As the server stores it.
    name: &'a str,
    times: Range<i64>,
    bucket_exists: &'a Cell<bool>,
}

/// The devices that were compared, by company and measurement.
#[derive(Default)]
pub(crate) struct Devices(BTreeMap<(String, String), Vec<Compared>>);

/// Device folders that were compared together.
struct Compared {
    folders: Vec<(PathBuf, DevicePath)>,
    masters: BTreeSet<String>,
    /// When `parsed/` of each folder was last changed before it was listed; none if it may have changed since.
    listed: Vec<Option<i128>>,
    /// Whether all files were read.
    is_complete: bool,
    results: Vec<DeviceResult>,
}

impl Verifier<'_> {
    /// Compares all devices that the options choose.
    pub(crate) fn run(&self) -> Verification {
        self.run_again(&mut Devices::default())
    }

    /// Compares the devices that are new or have changed since they were last compared.
    pub(crate) fn run_again(&self, devices: &mut Devices) -> Verification {
        let mut verification = Verification::default();
        // The folders of the campaigns, by company and measurement.
        let mut companies: BTreeMap<String, BTreeMap<String, BTreeSet<PathBuf>>> = BTreeMap::new();
        for path in self.campaigns(&mut verification) {
            let mut names = path.iter().map(|name| name.to_string_lossy());
            let (company, campaign) = (names.next(), names.next());
            let measurement = campaign
                .as_deref()
                .and_then(stored_name)
                .unwrap_or_default()
                .to_owned();
            let measurements = companies
                .entry(company.unwrap_or_default().into_owned())
                .or_default();
            measurements.entry(measurement).or_default().insert(path);
        }
        for (company, measurements) in &companies {
            let result = self.company(company, measurements, devices, &mut verification);
            if let Err(error) = result {
                let company = sanitize(company);
                verification.failures.push(format!("{company}: {error}"));
                if error.is_stop() {
                    break;
                }
            }
        }
        verification
    }

    fn reading(&self) -> Reading<'_> {
        Reading {
            zones: self.options.zones,
            stop: self.stop,
            progress: self.progress,
        }
    }

    /// The chosen campaigns, as paths below the data folder.
    fn campaigns(&self, verification: &mut Verification) -> BTreeSet<PathBuf> {
        let company = self.options.company.unwrap_or_default();
        let chosen = Path::new(company).join(self.options.campaign.unwrap_or_default());
        let mut found = BTreeSet::new();
        for item in devices_in(self.data, &chosen) {
            match item {
                DeviceItem::Device(path) => {
                    found.extend(path.parent().map(Path::to_owned));
                }
                DeviceItem::Empty(path) if path.iter().count() == DEVICE_DEPTH - 1 => {
                    found.insert(path);
                }
                DeviceItem::Unlisted(path, error) => verification.failures.push(format!(
                    "{}: cannot list the folder: {error}",
                    sanitize(&path)
                )),
                _ => {}
            }
        }
        found
    }

    fn company(
        &self,
        company: &str,
        measurements: &BTreeMap<String, BTreeSet<PathBuf>>,
        devices: &mut Devices,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        let bucket = self.options.bucket.unwrap_or(company);
        let found = self.source.find_bucket(bucket)?;
        // Between the two renames of a rebuild there is no bucket of the company.
        let is_rebuilt = || self.source.find_bucket(&rebuild_bucket(company));
        if found.is_none() && self.options.bucket.is_none() && is_rebuilt()?.is_some() {
            return Err(VerifyError::Rebuilt);
        }
        let bucket_exists = Cell::new(found.is_some());
        let mut times = self.options.since.unwrap_or(ALL_TIMES.start)..ALL_TIMES.end;
        if let Some(retention_s) = found.and_then(|found| found.retention_s) {
            times.start = times.start.max(Utc::now().timestamp() - retention_s);
        }
        for (name, campaigns) in measurements {
            let measurement = Measurement {
                company,
                bucket,
                name,
                times: times.clone(),
                bucket_exists: &bucket_exists,
            };
            let compared = devices
                .0
                .entry((company.to_owned(), name.clone()))
                .or_default();
            self.measurement(&measurement, campaigns, compared, verification)?;
        }
        let is_whole = self.options.campaign.is_none() && !self.options.only_of_files;
        if !is_whole || !bucket_exists.get() {
            return Ok(());
        }
        for measurement in self.source.measurements(bucket)? {
            if !measurements.contains_key(&measurement) {
                verification.unexplained.push(UnexplainedMeasurement {
                    company: company.to_owned(),
                    points: self.source.count(bucket, &measurement)?,
                    measurement,
                });
            }
        }
        Ok(())
    }

    /// Compares the devices of a measurement, then the points of devices that have no folder.
    fn measurement(
        &self,
        measurement: &Measurement<'_>,
        campaigns: &BTreeSet<PathBuf>,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        self.compare_changed(measurement, compared, verification)?;
        self.compare_new(measurement, campaigns, compared, verification)?;
        let mut unknown = Vec::new();
        if !self.options.only_of_files {
            unknown = self.unknown_devices(measurement, compared)?;
            if !unknown.is_empty() {
                // A file of a new device, or of a master that is new in its folder, may be on its way.
                self.wait_for_files_on_the_way(measurement, campaigns, compared, verification)?;
                let before: BTreeSet<_> = unknown.into_iter().map(|device| device.device).collect();
                unknown = self.unknown_devices(measurement, compared)?;
                // The files of those that came meanwhile may be on their way too.
                unknown.retain(|device| before.contains(&device.device));
            }
        }
        if let Some(unexplained) = self.options.explain {
            // Not before it is known which folders have files of the same masters.
            let unexplained = &mut *unexplained.borrow_mut();
            self.explain(measurement, compared, &mut unknown, unexplained)?;
        }
        let results = compared
            .iter_mut()
            .flat_map(|compared| compared.results.drain(..));
        for result in results {
            verification.files += result.files;
            verification.devices.push(result);
        }
        verification.devices.extend(unknown);
        Ok(())
    }

    /// Finds out why the database has points that no file gives, and passes those on that remain unexplained.
    fn explain(
        &self,
        measurement: &Measurement<'_>,
        compared: &mut [Compared],
        unknown: &mut [DeviceResult],
        unexplained: &mut dyn Unexplained,
    ) -> Result<(), VerifyError> {
        unexplained.measurement(measurement.name);
        for compared in compared {
            let days = compared
                .results
                .iter()
                .flat_map(|result| &result.counts.extra_days);
            let days: BTreeSet<i64> = days.copied().collect();
            if let Some(first) = compared.results.first_mut()
                && !days.is_empty()
            {
                let mut group = Group::open(self, measurement, &compared.folders, true)?;
                // A point without a file belongs to none of the devices.
                first.causes = group.explain(&days, unexplained)?;
            }
        }
        for device in unknown {
            retried(|| self.points(measurement, &device.device, &measurement.times, unexplained))?;
            let months = device.counts.months.iter();
            device.causes = months
                .map(|(month, counts)| ((*month, Cause::Unexplained), counts.found))
                .collect();
        }
        Ok(())
    }

    /// Compares the device folders again whose files have changed since they were compared.
    fn compare_changed(
        &self,
        measurement: &Measurement<'_>,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        for earlier in std::mem::take(compared) {
            let mut is_settled = true;
            for ((path, _), listed) in earlier.folders.iter().zip(&earlier.listed) {
                let folder = self.data.open_below(path)?;
                is_settled &= folder.folder_modified_ns(PARSED)? == *listed;
            }
            if is_settled {
                compared.push(earlier);
            } else {
                self.compare_again(measurement, earlier, compared, verification)?;
            }
        }
        Ok(())
    }

    /// Compares device folders again, unless they are among those that were compared meanwhile.
    fn compare_again(
        &self,
        measurement: &Measurement<'_>,
        earlier: Compared,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        for folder in earlier.folders {
            let has = |other: &Compared| other.folders.iter().any(|(path, _)| *path == folder.0);
            if !compared.iter().any(has) {
                self.compare_folder(measurement, folder, true, compared, verification)?;
            }
        }
        Ok(())
    }

    /// Compares the device folders that were not compared yet.
    fn compare_new(
        &self,
        measurement: &Measurement<'_>,
        campaigns: &BTreeSet<PathBuf>,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        for item in campaigns
            .iter()
            .flat_map(|campaign| devices_in(self.data, campaign))
        {
            let path = match item {
                DeviceItem::Device(path) => path,
                DeviceItem::Unlisted(path, error) => {
                    let path = sanitize(&path);
                    verification
                        .failures
                        .push(format!("{path}: cannot list the folder: {error}"));
                    continue;
                }
                _ => continue,
            };
            let is_compared = compared
                .iter()
                .flat_map(|compared: &Compared| &compared.folders)
                .any(|(folder, _)| *folder == path);
            if is_compared {
                continue;
            }
            match DevicePath::of_folder(&path, self.options.meta_bucket) {
                Ok(location) => {
                    self.compare_folder(
                        measurement,
                        (path, location),
                        false,
                        compared,
                        verification,
                    )?;
                }
                Err(error) => verification.notes.push(error.to_string()),
            }
        }
        Ok(())
    }

    /// Compares a folder, together with those that have files of the same masters.
    fn compare_folder(
        &self,
        measurement: &Measurement<'_>,
        folder: (PathBuf, DevicePath),
        reads_old_files: bool,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        let mut folders = vec![folder];
        loop {
            let opened = Group::open(self, measurement, &folders, reads_old_files);
            let result = opened.and_then(|mut group| {
                if add_shared(&mut folders, compared, &group.masters()) {
                    return Ok(None);
                }
                let counts = group.compare()?;
                // Files have arrived meanwhile.
                let is_shared = add_shared(&mut folders, compared, &group.masters());
                Ok((!is_shared).then_some((group, counts)))
            });
            match result {
                Ok(None) => {}
                Ok(Some((group, counts))) => {
                    verification.repaired += group.repaired;
                    verification.notes.extend(group.notes());
                    compared.push(group.end(folders, counts));
                    return Ok(());
                }
                Err(error @ (VerifyError::Read(_) | VerifyError::Write(_))) => return Err(error),
                Err(error) if error.is_stop() => return Err(error),
                Err(error) => {
                    let path = sanitize(&folders[0].0);
                    verification.failures.push(format!("{path}: {error}"));
                    compared.push(Compared::failed(folders));
                    return Ok(());
                }
            }
        }
    }

    /// Waits until the files that are being ingested are moved, and compares the folders again whose files have changed.
    fn wait_for_files_on_the_way(
        &self,
        measurement: &Measurement<'_>,
        campaigns: &BTreeSet<PathBuf>,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        self.compare_new(measurement, campaigns, compared, verification)?;
        for earlier in std::mem::take(compared) {
            let mut is_settled = earlier.is_complete;
            for ((path, _), listed) in earlier.folders.iter().zip(&earlier.listed) {
                let folder = self.data.open_below(path)?;
                // The lock is free once a file that is being ingested is moved.
                if let Err(LockError::Stopped) = folder.lock(self.options.lock_wait, self.stop) {
                    return Err(ReadError::Stopped.into());
                }
                is_settled &= folder.folder_modified_ns(PARSED)? == *listed;
            }
            if is_settled {
                compared.push(earlier);
            } else {
                self.compare_again(measurement, earlier, compared, verification)?;
            }
        }
        Ok(())
    }

    /// The points of masters that no folder has a file of.
    fn unknown_devices(
        &self,
        measurement: &Measurement<'_>,
        compared: &[Compared],
    ) -> Result<Vec<DeviceResult>, VerifyError> {
        if !measurement.bucket_exists.get() {
            return Ok(Vec::new());
        }
        let Measurement { name, times, .. } = measurement;
        let mut found = Vec::new();
        for master in self.source.masters(measurement.bucket, name, times)? {
            if compared
                .iter()
                .any(|compared| compared.masters.contains(&master))
            {
                continue;
            }
            let counts = retried(|| {
                let mut nothing = Expected::default();
                let mut comparison = nothing.compare(1);
                self.points(measurement, &master, times, &mut comparison)?;
                Ok(comparison.finish().devices.swap_remove(0))
            })?;
            if counts.total().found == 0 {
                continue;
            }
            found.push(DeviceResult {
                company: measurement.company.to_owned(),
                campaign: (*name).to_owned(),
                device: master,
                files: 0,
                counts,
                causes: Causes::new(),
            });
        }
        Ok(found)
    }

    /// Reads the points of a master.
    fn points(
        &self,
        measurement: &Measurement<'_>,
        master: &str,
        times: &Range<i64>,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        if !measurement.bucket_exists.get() {
            return Ok(());
        }
        let query = PointQuery {
            bucket: measurement.bucket,
            measurement: measurement.name,
            master: Some(master),
            times: times.clone(),
        };
        self.source.points(&query, visitor)
    }
}

/// Repeats a query whose answer ended early.
fn retried<T>(mut query: impl FnMut() -> Result<T, ReadError>) -> Result<T, ReadError> {
    for _ in 1..MAX_QUERIES {
        match query() {
            Err(ReadError::Interrupted(_)) => {}
            result => return result,
        }
    }
    query()
}

/// Takes the folders with files of `masters` out of those that were compared, and adds them. Returns whether there were any.
fn add_shared(
    folders: &mut Vec<(PathBuf, DevicePath)>,
    compared: &mut Vec<Compared>,
    masters: &BTreeSet<String>,
) -> bool {
    let shares = |other: &mut Compared| !other.masters.is_disjoint(masters);
    let shared: Vec<_> = compared.extract_if(.., shares).collect();
    folders.extend(shared.iter().flat_map(|other| other.folders.clone()));
    // Locks are acquired in this order.
    folders.sort_by(|(a, _), (b, _)| a.cmp(b));
    !shared.is_empty()
}

impl Compared {
    /// Folders that cannot be compared. Their points are not those of a device without a folder.
    fn failed(folders: Vec<(PathBuf, DevicePath)>) -> Self {
        let names = folders
            .iter()
            .map(|(_, location)| location.device.as_str().to_owned());
        Self {
            masters: names.collect(),
            listed: vec![None; folders.len()],
            folders,
            is_complete: true,
            results: Vec::new(),
        }
    }
}
