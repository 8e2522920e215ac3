//! Compares the points of a database with the files in `parsed/`. See docs/specification.md, section 10.
//!
//! Each device is compared in parts of time, so that memory does not grow with the archive. A part that differs is compared
//! again under the lock of the device, so that a file that is being ingested is no difference.

mod expected;
mod explain;
mod extra;
mod files;
mod folders;
mod group;
mod result;

pub(crate) use self::explain::{Cause, Causes};
pub(crate) use self::folders::Devices;
pub(crate) use self::result::{DeviceCounts, Difference, Month, PointDifferences, Sample};

use self::files::{FileError, Reading};
use self::folders::Compared;
use crate::data_dir::{
    Company, DeviceItem, Dir, LockError, devices_in, is_own_measurement, rebuild_bucket,
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
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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

    /// The number of points that no file explains, if the causes were asked for.
    pub(crate) fn unexplained_points(&self) -> u64 {
        let causes = self.devices.iter().flat_map(|device| &device.causes);
        let in_campaigns = causes
            .filter(|((_, cause), _)| *cause == Cause::Unexplained)
            .map(|(_, points)| points);
        let elsewhere = self.unexplained.iter().map(|other| &other.points);
        in_campaigns.chain(elsewhere).sum()
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
    #[error(
        "nothing is written without the lock of {folder}: {error}; {}",
        .error.remedy().unwrap_or("run it again"),
        folder = sanitize(.folder)
    )]
    Locked { folder: PathBuf, error: LockError },
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
    /// How long the bucket keeps points, in seconds. None if it keeps them for ever.
    retention_s: Option<i64>,
    bucket_exists: &'a Cell<bool>,
}

impl Measurement<'_> {
    /// The times within a range whose points have not expired by now.
    fn unexpired(&self, times: &Range<i64>) -> Range<i64> {
        // For the server, a part of the current second has passed.
        let oldest = |retention_s| Utc::now().timestamp() - retention_s + 1;
        let start = times.start.max(self.retention_s.map_or(i64::MIN, oldest));
        start.min(times.end)..times.end
    }
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
        if let Some(company) = self.options.company {
            companies.entry(company.to_owned()).or_default();
        }
        for path in self.campaigns(&mut verification) {
            let mut names = path.iter().map(|name| name.to_string_lossy());
            let company = names.next().unwrap_or_default().into_owned();
            let measurements = companies.entry(company).or_default();
            if let Some(campaign) = names.next() {
                let measurement = stored_name(&campaign).unwrap_or_default().to_owned();
                measurements.entry(measurement).or_default().insert(path);
            }
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

    /// The chosen campaigns, and companies without a campaign, as paths below the data folder.
    fn campaigns(&self, verification: &mut Verification) -> BTreeSet<PathBuf> {
        let company = self.options.company.unwrap_or_default();
        let mut found = BTreeSet::new();
        for item in self.folders_in(Path::new(company), verification) {
            match item {
                DeviceItem::Device(path) => {
                    found.extend(path.parent().map(Path::to_owned));
                }
                DeviceItem::Empty(path) => {
                    found.insert(path);
                }
                _ => {}
            }
        }
        found
    }

    /// Whether a path below the data folder is that of the chosen campaign, or of another one with the same measurement.
    fn is_chosen(&self, path: &Path) -> bool {
        match (self.options.campaign, path.iter().nth(1)) {
            (Some(chosen), Some(campaign)) => {
                stored_name(&campaign.to_string_lossy()) == stored_name(chosen)
            }
            _ => true,
        }
    }

    /// The device folders and the empty folders of chosen campaigns in a folder below the data folder. One that cannot be
    /// listed is a failure.
    fn folders_in(&self, folder: &Path, verification: &mut Verification) -> Vec<DeviceItem> {
        let items = devices_in(self.data, folder).filter_map(|item| match item {
            DeviceItem::Device(ref path) | DeviceItem::Empty(ref path) => {
                self.is_chosen(path).then_some(item)
            }
            DeviceItem::Unlisted(path, error) if self.is_chosen(&path) => {
                verification.failures.push(format!(
                    "{}: cannot list the folder: {error}",
                    sanitize(&path)
                ));
                None
            }
            _ => None,
        });
        items.collect()
    }

    fn company(
        &self,
        company: &str,
        measurements: &BTreeMap<String, BTreeSet<PathBuf>>,
        devices: &mut Devices,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        // The bucket of this name is not that of a company.
        if let Err(error) = Company::new(OsStr::new(company), self.options.meta_bucket) {
            verification.notes.push(error.to_string());
            return Ok(());
        }
        let bucket = self.options.bucket.unwrap_or(company);
        let found = self.source.find_bucket(bucket)?;
        // Between the two renames of a rebuild there is no bucket of the company.
        let is_rebuilt = || self.source.find_bucket(&rebuild_bucket(company));
        if found.is_none() && self.options.bucket.is_none() && is_rebuilt()?.is_some() {
            return Err(VerifyError::Rebuilt);
        }
        let bucket_exists = Cell::new(found.is_some());
        let mut times = self.options.since.unwrap_or(ALL_TIMES.start)..ALL_TIMES.end;
        let retention_s = found.and_then(|found| found.retention_s);
        if let Some(retention_s) = retention_s {
            times.start = times.start.max(Utc::now().timestamp() - retention_s);
        }
        for (name, campaigns) in measurements {
            let measurement = Measurement {
                company,
                bucket,
                name,
                times: times.clone(),
                retention_s,
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
            if !is_own_measurement(&measurement) && !measurements.contains_key(&measurement) {
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
            if !unknown.is_empty() && !self.options.holds_locks {
                // A file of a new device, or of a master that is new in its folder, may be on its way.
                let mut before: BTreeSet<_> =
                    unknown.into_iter().map(|device| device.device).collect();
                before.extend(compared.iter().flat_map(|known| known.masters.clone()));
                let locked =
                    self.wait_for_files_on_the_way(measurement, campaigns, compared, verification)?;
                unknown = self.unknown_devices(measurement, compared)?;
                // The files of those that came meanwhile may be on their way too.
                unknown.retain(|device| before.contains(&device.device));
                // Uploads write to the bucket of the company only, and the swap of a rebuild waits for all locks.
                let is_verify = self.options.bucket.is_none() && self.options.explain.is_none();
                if is_verify && !unknown.is_empty() && !locked.is_empty() {
                    verification.failures.extend(locked);
                    unknown.clear();
                }
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

    /// Reads the points of a master.
    fn points(
        &self,
        measurement: &Measurement<'_>,
        master: &str,
        times: &Range<i64>,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        if !measurement.bucket_exists.get() || times.is_empty() {
            return Ok(());
        }
        let query = PointQuery {
            bucket: measurement.bucket,
            measurement: measurement.name,
            master: Some(master),
            times: times.clone(),
            for_summaries: false,
        };
        self.source.points(&query, visitor)
    }
}
