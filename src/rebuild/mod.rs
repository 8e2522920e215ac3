//! Makes a company's bucket anew from its files. See docs/specification.md, section 10.
//!
//! The names of the buckets are the state: a run that was killed is continued by the next one. A new bucket is filled while
//! uploads go on. Then all devices are locked, the rest is added, and the buckets are renamed. Between the two renames there
//! is no bucket of the company, and no ingestion makes one.

mod copy;

use self::copy::Copier;
use crate::data_dir::{
    CATALOGUE, DEVICE_DEPTH, DeviceItem, DeviceLock, Dir, LockError, devices_in, former_bucket,
    parse_former_bucket, rebuild_bucket,
};
use crate::pipeline::raise_file_limit;
use crate::points::BatchOptions;
use crate::remedy::remedy;
use crate::report::Progress;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::{
    ALL_TIMES, BucketAdmin, BucketInfo, Field, FieldTypes, Place, PointQuery, PointSource,
    PointVisitor, ReadError, Sink, StoredPoint, retried,
};
use crate::time_zone::FileZones;
use crate::verify::{Devices, Options, Unexplained, Verification, Verifier};
use chrono::{NaiveDate, NaiveTime, Utc};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a device that is new during a swap is waited for. Meanwhile there is no bucket of the company, and an upload of
/// the device may be waiting for it.
const NEW_DEVICE_WAIT: Duration = Duration::from_secs(2);

/// The depth of campaign folders: company, campaign.
const CAMPAIGN_DEPTH: usize = DEVICE_DEPTH - 1;

/// How often a swap is tried if new devices are locked.
const MAX_SWAPS: u32 = 5;

/// Everything that rebuilding a bucket needs.
pub(crate) struct Rebuild<'a, S> {
    pub company: &'a str,
    pub data: &'a Arc<Dir>,
    pub server: &'a S,
    pub sink: &'a Sink,
    pub zones: &'a FileZones,
    pub meta_bucket: &'a str,
    pub lock_wait: Duration,
    pub batch: BatchOptions,
    pub stop: &'a Shutdown,
    pub progress: &'a Progress,
}

/// The buckets of a company.
#[derive(Debug, Clone)]
pub(crate) struct Buckets {
    /// The bucket with the name of the company.
    pub current: Option<BucketInfo>,
    /// The one that is being filled.
    pub new: Option<BucketInfo>,
    /// The former ones with the day on which they were renamed, the oldest first.
    pub former: Vec<(NaiveDate, BucketInfo)>,
}

/// Why a bucket was not rebuilt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RebuildError {
    /// The server gives no answer, or refuses a request.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The company has no bucket.
    #[error(
        "there is no bucket {0:?}; ingest the files, or write their points with powerview verify --repair"
    )]
    NoBucket(String),
    /// The new bucket was deleted after it was filled.
    #[error("there is no bucket {0:?} any more; the buckets are as before, run it again")]
    NewBucketGone(String),
    /// There is no former bucket.
    #[error("there is no former bucket of {0:?}, so nothing can be undone")]
    NothingToUndo(String),
    /// A rebuild has begun since.
    #[error(
        "the rebuild of {0:?} is not complete; run powerview rebuild again first, or delete the bucket {bucket:?}",
        bucket = rebuild_bucket(.0)
    )]
    Incomplete(String),
    /// There are points, but no files.
    #[error(
        "no file of {company} was found, but its bucket has {points} points; check that -d is the data folder and that its volume is mounted; the buckets are as before",
        company = sanitize(.company)
    )]
    NoFiles { company: String, points: u64 },
    /// The new bucket has points that are not those of the files any more.
    #[error(
        "the bucket {bucket:?} has {points} points that no file gives, because files were removed or replaced since it was filled; delete that bucket and run it again, or keep them with --keep-unexplained"
    )]
    Stale { bucket: String, points: u64 },
    /// The new bucket does not have the points of all files.
    #[error("the new bucket does not have the points of all files: {0}; run it again")]
    NotFilled(String),
    /// Points cannot be copied.
    #[error("points without a file cannot be copied: {0}")]
    NotCopied(String),
    /// Points have a tag that cannot be copied.
    #[error(
        "measurement {measurement:?} has the tag {tag:?}, which InfluxDB returns with no query, so that its points cannot be copied; leave the unexplained points in the former bucket with --yes instead of --keep-unexplained"
    )]
    UnreadableTag {
        measurement: String,
        tag: &'static str,
    },
    /// A field has values of several types, of which a query returns one.
    #[error(
        "{0}, so that its points cannot be copied; leave the unexplained points in the former bucket with --yes instead of --keep-unexplained"
    )]
    SeveralTypes(SeveralTypes),
    /// A name or the value of a tag has a line break, which queries change.
    #[error(
        "measurement {measurement:?} has a line break in {place}, which queries change, so that its points cannot be copied; leave the unexplained points in the former bucket with --yes instead of --keep-unexplained"
    )]
    LineBreak { measurement: String, place: String },
    /// A device is locked for too long.
    #[error(
        "{folder}: {error}; the buckets are as before; {}run it again",
        .error.remedy().map_or_else(String::new, |remedy| format!("{remedy}, then ")),
        folder = sanitize(.folder)
    )]
    Locked {
        /// Below the data folder.
        folder: PathBuf,
        error: LockError,
    },
    /// A bucket cannot be created.
    #[error("cannot create the bucket {bucket:?}: {error}")]
    NotCreated { bucket: String, error: ReadError },
    /// A bucket cannot be renamed.
    #[error("cannot rename the bucket {from:?} to {to:?}: {error}; run {command} again")]
    NotRenamed {
        from: String,
        to: String,
        error: ReadError,
        command: &'static str,
    },
    /// The current bucket was renamed, and could not be renamed back.
    #[error("{error}; until then, there may be no bucket {company:?}")]
    NoName {
        company: String,
        error: Box<RebuildError>,
    },
    /// A folder cannot be listed or opened.
    #[error(
        "{folder}: cannot read the folder: {error}; {}",
        remedy(.error, "check its permissions"),
        folder = sanitize(.folder)
    )]
    Folder {
        /// Below the data folder.
        folder: PathBuf,
        error: io::Error,
    },
}

/// The result of a swap.
#[derive(Debug)]
pub(crate) struct Swapped {
    /// Whether the former bucket is back.
    pub is_undo: bool,
    /// The name of the bucket that no longer has the company's name; none if it was deleted.
    pub other: Option<String>,
    /// The tokens of that bucket.
    pub tokens: Result<Vec<String>, ReadError>,
}

/// A field with values of several types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeveralTypes {
    measurement: String,
    field: String,
    types: Vec<String>,
}

impl fmt::Display for SeveralTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            measurement,
            field,
            types,
        } = self;
        let types = types.join(", ");
        write!(
            f,
            "measurement {measurement:?} has values of the types {types} in the field {field:?}, of which a query returns one"
        )
    }
}

/// The fields with values of several types.
fn several_types(fields: FieldTypes) -> impl Iterator<Item = SeveralTypes> {
    let fields = fields.into_iter().filter(|(_, types)| types.len() > 1);
    fields.map(|((measurement, field), types)| SeveralTypes {
        measurement,
        field,
        types: types.into_iter().collect(),
    })
}

/// The bucket that gets the company's name.
struct Next<'a> {
    bucket: &'a BucketInfo,
    /// For an undo, since when files arrived whose points may be missing, in nanoseconds since 1970.
    undone_since: Option<i128>,
    /// Whether it may have points that no file gives.
    has_others: bool,
}

impl Next<'_> {
    /// The command that is continued if it is interrupted.
    fn command(&self) -> &'static str {
        if self.undone_since.is_some() {
            "powerview rebuild --undo"
        } else {
            "powerview rebuild"
        }
    }
}

/// The locks of device and campaign folders, by their paths.
type Locks = BTreeMap<PathBuf, DeviceLock>;

impl<S: PointSource + BucketAdmin> Rebuild<'_, S> {
    /// Looks up the buckets of the company.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    pub(crate) fn buckets(&self) -> Result<Buckets, RebuildError> {
        let all = self.server.buckets()?;
        let named = |name: &str| all.iter().find(|bucket| bucket.name == name).cloned();
        let mut former: Vec<_> = all
            .iter()
            .filter_map(|bucket| {
                let place = parse_former_bucket(self.company, &bucket.name)?;
                Some((place, bucket.clone()))
            })
            .collect();
        former.sort_by_key(|(place, _)| *place);
        let former = former.into_iter().map(|((day, _), bucket)| (day, bucket));
        Ok(Buckets {
            current: named(self.company),
            new: named(&rebuild_bucket(self.company)),
            former: former.collect(),
        })
    }

    /// Whether an earlier rebuild has ended and its bucket still equals the files. Another one would make another former bucket,
    /// which an undo would bring back.
    pub(crate) fn has_ended(&self, buckets: &Buckets) -> bool {
        if buckets.current.is_none() || buckets.new.is_some() || buckets.former.is_empty() {
            return false;
        }
        let found = self.verifier(self.options()).run();
        found.is_equal() && found.unexplained.is_empty()
    }

    /// Compares the current bucket with the files, and explains the points that no file gives.
    pub(crate) fn report(&self) -> Verification {
        self.explained(&RefCell::new(Ignored))
    }

    fn explained(&self, unexplained: &RefCell<dyn Unexplained + '_>) -> Verification {
        let options = Options {
            explain: Some(unexplained),
            ..self.options()
        };
        self.verifier(options).run()
    }

    /// The fields of the current bucket with values of several types, of which the report counts one.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    pub(crate) fn several_types(&self) -> Result<Vec<SeveralTypes>, RebuildError> {
        Ok(several_types(self.server.field_types(self.company)?).collect())
    }

    /// Checks that files were found, unless the current bucket has no points either.
    ///
    /// # Errors
    /// No file was read for the report, but there are points.
    pub(crate) fn ensure_files(&self, report: &Verification) -> Result<(), RebuildError> {
        let points = report.unexplained_points();
        if report.files > 0 || points == 0 {
            return Ok(());
        }
        let company = self.company.to_owned();
        Err(RebuildError::NoFiles { company, points })
    }

    /// Creates the new bucket, if it is missing, and writes the points of all files to it. It may have more points only if
    /// `keep_unexplained` is set.
    ///
    /// # Errors
    /// The company has no bucket, the new one has other points, or some points cannot be written.
    pub(crate) fn fill(
        &self,
        buckets: &Buckets,
        keep_unexplained: bool,
    ) -> Result<Devices, RebuildError> {
        let name = rebuild_bucket(self.company);
        let is_continued = buckets.new.is_some();
        if !is_continued {
            let former = buckets.former.last().map(|(_, former)| former);
            let model = buckets.current.as_ref().or(former);
            let model = model.ok_or_else(|| RebuildError::NoBucket(self.company.to_owned()))?;
            let created = self.server.create_like(model, &name);
            created.map_err(|error| RebuildError::NotCreated {
                bucket: name.clone(),
                error,
            })?;
        }
        let options = Options {
            bucket: Some(&name),
            repair: true,
            only_of_files: !is_continued || keep_unexplained,
            ..self.options()
        };
        let mut devices = Devices::default();
        let verification = self.write_missing(options, &mut devices)?;
        // Without a current bucket, an earlier run has chosen to keep or to leave them.
        if !keep_unexplained && buckets.current.is_some() {
            ensure_points_of_files(&name, &verification)?;
        }
        Ok(devices)
    }

    /// Writes the points of files to a bucket that does not have them: of the devices that are new or have changed since
    /// `devices` were compared.
    fn add_missing(
        &self,
        next: &Next<'_>,
        holds_locks: bool,
        devices: &mut Devices,
    ) -> Result<(), RebuildError> {
        let options = Options {
            bucket: Some(&next.bucket.name),
            repair: true,
            only_of_files: next.has_others,
            moved_since: next.undone_since,
            holds_locks,
            ..self.options()
        };
        let verification = self.write_missing(options, devices)?;
        if next.has_others {
            return Ok(());
        }
        ensure_points_of_files(&next.bucket.name, &verification)
    }

    fn write_missing<'v>(
        &'v self,
        options: Options<'v>,
        devices: &mut Devices,
    ) -> Result<Verification, RebuildError> {
        let verification = self.verifier(options).run_again(devices);
        if self.stop.is_requested() {
            return Err(ReadError::Stopped.into());
        }
        if let Some(failure) = verification.failures.first() {
            return Err(RebuildError::NotFilled(failure.clone()));
        }
        let total = verification.total();
        if total.missing + total.different > 0 {
            return Err(RebuildError::NotFilled(format!(
                "{} missing, {} different",
                total.missing, total.different
            )));
        }
        Ok(verification)
    }

    /// Copies the points that no file explains from the current bucket to the new one. Returns their number.
    ///
    /// # Errors
    /// Points cannot be read or written.
    pub(crate) fn copy_unexplained(&self) -> Result<u64, RebuildError> {
        let new = rebuild_bucket(self.company);
        let fields = self.ensure_readable(&new)?;
        let copier = RefCell::new(Copier::new(self.sink, &new, self.batch));
        let report = self.explained(&copier);
        let mut copier = copier.into_inner();
        if let Some(failure) = report.failures.first() {
            return Err(RebuildError::NotCopied(failure.clone()));
        }
        for unexplained in &report.unexplained {
            copier.measurement(&unexplained.measurement);
            let query = PointQuery {
                bucket: self.company,
                measurement: &unexplained.measurement,
                master: None,
                times: ALL_TIMES,
                for_summaries: false,
            };
            self.server.points(&query, &mut copier)?;
        }
        let copied = copier.finish().map_err(RebuildError::NotCopied)?;
        let found = report.unexplained_points();
        if copied < found {
            let reason = format!("{copied} of {found} were copied; run it again");
            return Err(RebuildError::NotCopied(reason));
        }
        // No file gives a text, so that all of them were copied.
        let mut copier = Copier::new(self.sink, &new, self.batch);
        for ((measurement, field), types) in &fields {
            if types.contains("string") {
                copier.measurement(measurement);
                self.server.texts_with_line_breaks(
                    self.company,
                    measurement,
                    field,
                    &mut copier,
                )?;
            }
        }
        copier.finish().map_err(RebuildError::NotCopied)?;
        Ok(copied)
    }

    /// Copies the catalogues of channels from the current bucket, which files do not have, to another one.
    ///
    /// # Errors
    /// Points cannot be read or written.
    pub(crate) fn copy_catalogues(&self, bucket: &str) -> Result<(), RebuildError> {
        if self.server.find_bucket(self.company)?.is_none() {
            return Ok(());
        }
        let query = PointQuery {
            bucket: self.company,
            measurement: CATALOGUE,
            master: None,
            times: ALL_TIMES,
            for_summaries: false,
        };
        let mut copier = Copier::new(self.sink, bucket, self.batch);
        copier.measurement(CATALOGUE);
        retried(|| self.server.points(&query, &mut copier))?;
        copier.finish().map_err(RebuildError::NotCopied)?;
        Ok(())
    }

    /// Checks that all points of the current bucket can be copied to the new one. Returns the fields of the current one.
    fn ensure_readable(&self, new: &str) -> Result<FieldTypes, RebuildError> {
        let fields = self.server.field_types(self.company)?;
        // Values of another type would hide those of the files. If the new bucket is gone, nothing can be written to it.
        let mut all = match self.server.find_bucket(new)? {
            Some(_) => self.server.field_types(new)?,
            None => FieldTypes::new(),
        };
        for (field, types) in &fields {
            all.entry(field.clone()).or_default().extend(types.clone());
        }
        if let Some(field) = several_types(all).next() {
            return Err(RebuildError::SeveralTypes(field));
        }
        let has_break = |text: &str| text.contains(['\n', '\r']);
        for (measurement, field) in fields.keys() {
            let place = if has_break(measurement) {
                "its name"
            } else if has_break(field) {
                "the name of a field"
            } else {
                continue;
            };
            return Err(RebuildError::LineBreak {
                measurement: measurement.clone(),
                place: place.to_owned(),
            });
        }
        for measurement in self.server.measurements(self.company)? {
            let tags = self.server.unreadable_tags(self.company, &measurement)?;
            if let Some(&tag) = tags.first() {
                return Err(RebuildError::UnreadableTag { measurement, tag });
            }
            if let Some(place) = self.server.line_break_in_tags(self.company, &measurement)? {
                return Err(RebuildError::LineBreak { measurement, place });
            }
        }
        Ok(fields)
    }

    /// Gives the new bucket the company's name, and the current one that of a former bucket. The new one may have points
    /// that no file gives only if `keep_unexplained` is set.
    ///
    /// # Errors
    /// A device is locked for too long, some points cannot be written, the new bucket has other points, or a bucket cannot be
    /// renamed.
    pub(crate) fn swap(
        &self,
        mut devices: Devices,
        keep_unexplained: bool,
    ) -> Result<Swapped, RebuildError> {
        let buckets = self.buckets()?;
        let new = buckets.new.as_ref();
        let new = new.ok_or_else(|| RebuildError::NewBucketGone(rebuild_bucket(self.company)))?;
        let former = buckets.current.as_ref().map(|current| {
            let is_free =
                |name: &String| buckets.former.iter().all(|(_, other)| other.name != *name);
            let today = Utc::now().date_naive();
            let mut names = (1..).map(|number| former_bucket(self.company, today, number));
            (current, names.find(is_free).unwrap_or_default())
        });
        let next = Next {
            bucket: new,
            undone_since: None,
            // Without a current bucket, an earlier run has made the choice.
            has_others: keep_unexplained || former.is_none(),
        };
        self.exchange(former.as_ref(), &next, &mut devices)?;
        let renamed_before = buckets.former.last().map(|(_, bucket)| bucket);
        Ok(self.swapped(false, former, renamed_before))
    }

    /// Gives the latest former bucket the company's name again, with the points of files that arrived since, and the
    /// current one the name of a new bucket.
    ///
    /// # Errors
    /// As for a swap, or there is no former bucket.
    pub(crate) fn undo(&self) -> Result<Swapped, RebuildError> {
        let buckets = self.buckets()?;
        let company = || self.company.to_owned();
        let former = buckets.former.last();
        let (day, former) = former.ok_or_else(|| RebuildError::NothingToUndo(company()))?;
        if buckets.new.is_some() && buckets.current.is_some() {
            return Err(RebuildError::Incomplete(company()));
        }
        // Files that arrived earlier on that day do no harm.
        let since = day.and_time(NaiveTime::MIN).and_utc().timestamp();
        let since = i128::from(since) * 1_000_000_000;
        let next = Next {
            bucket: former,
            undone_since: Some(since),
            has_others: true,
        };
        let mut devices = Devices::default();
        self.add_missing(&next, false, &mut devices)?;
        let current = buckets.current.as_ref();
        let current = current.map(|current| (current, rebuild_bucket(self.company)));
        self.exchange(current.as_ref(), &next, &mut devices)?;
        Ok(self.swapped(true, current, buckets.new.as_ref()))
    }

    /// Describes a swap: of the current bucket with its new name, or of one that an earlier run has renamed.
    fn swapped(
        &self,
        is_undo: bool,
        current: Option<(&BucketInfo, String)>,
        renamed_before: Option<&BucketInfo>,
    ) -> Swapped {
        let renamed_before = renamed_before.map(|bucket| (bucket, bucket.name.clone()));
        let other = current.or(renamed_before);
        Swapped {
            is_undo,
            tokens: other.as_ref().map_or(Ok(Vec::new()), |(bucket, _)| {
                self.server.tokens_of(&bucket.id)
            }),
            other: other.map(|(_, name)| name),
        }
    }

    /// Renames the current bucket as given, and then `next` to the company's name. Meanwhile all devices are locked.
    fn exchange(
        &self,
        current: Option<&(&BucketInfo, String)>,
        next: &Next<'_>,
        devices: &mut Devices,
    ) -> Result<(), RebuildError> {
        raise_file_limit();
        let mut locks = Locks::new();
        for swaps in 1.. {
            self.lock_new(&mut locks, self.lock_wait)?;
            // Catalogues are applied under the locks of campaigns. A process that holds one does not wait for that of a
            // device.
            self.lock_campaigns(&mut locks)?;
            self.add_missing(next, true, devices)?;
            if current.is_some() {
                self.copy_catalogues(&next.bucket.name)?;
            }
            match self.rename_both(current, next, devices, &mut locks) {
                // An upload of a new device ends once the current bucket has its name again.
                Err(RebuildError::Locked {
                    error: LockError::Held { .. },
                    ..
                }) if swaps < MAX_SWAPS => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Renames both buckets. If that fails, the current one has its name again.
    fn rename_both(
        &self,
        current: Option<&(&BucketInfo, String)>,
        next: &Next<'_>,
        devices: &mut Devices,
        locks: &mut Locks,
    ) -> Result<(), RebuildError> {
        let mut rename = || {
            if let Some((current, name)) = current {
                self.rename(current, name, next)?;
            }
            // From now on no write succeeds. What a new device has sent to the current bucket until now is added.
            while self.lock_new(locks, NEW_DEVICE_WAIT)? {
                self.add_missing(next, true, devices)?;
            }
            self.rename(next.bucket, self.company, next)
        };
        let (error, current) = match (rename(), current) {
            (Err(error), Some((current, _))) => (error, current),
            (result, _) => return result,
        };
        // A request without an answer may have been carried out.
        if matches!(self.server.find_bucket(self.company), Ok(Some(_)))
            || self.server.rename(&current.id, self.company).is_ok()
        {
            return Err(error);
        }
        Err(RebuildError::NoName {
            company: self.company.to_owned(),
            error: Box::new(error),
        })
    }

    fn rename(&self, bucket: &BucketInfo, name: &str, next: &Next<'_>) -> Result<(), RebuildError> {
        let renamed = self.server.rename(&bucket.id, name);
        renamed.map_err(|error| RebuildError::NotRenamed {
            from: bucket.name.clone(),
            to: name.to_owned(),
            error,
            command: next.command(),
        })
    }

    /// Locks the device folders of the company that are not locked yet. Returns whether there were any.
    fn lock_new(&self, locks: &mut Locks, wait: Duration) -> Result<bool, RebuildError> {
        let mut is_new = false;
        for item in devices_in(self.data, Path::new(self.company)) {
            let path = match item {
                DeviceItem::Device(path) => path,
                DeviceItem::Unlisted(folder, error) => {
                    return Err(RebuildError::Folder { folder, error });
                }
                _ => continue,
            };
            if locks.contains_key(&path) {
                continue;
            }
            let known = locks.len();
            self.lock(path, wait, locks)?;
            is_new |= locks.len() > known;
        }
        Ok(is_new)
    }

    /// Locks the campaign folders of the company that are not locked yet.
    fn lock_campaigns(&self, locks: &mut Locks) -> Result<(), RebuildError> {
        let mut campaigns = BTreeSet::new();
        for item in devices_in(self.data, Path::new(self.company)) {
            match item {
                DeviceItem::Device(path) => campaigns.extend(path.parent().map(Path::to_owned)),
                DeviceItem::Empty(path) if path.components().count() == CAMPAIGN_DEPTH => {
                    campaigns.insert(path);
                }
                _ => {}
            }
        }
        for path in campaigns {
            if !locks.contains_key(&path) {
                self.lock(path, self.lock_wait, locks)?;
            }
        }
        Ok(())
    }

    /// Locks a folder. One that is gone needs no lock.
    fn lock(&self, path: PathBuf, wait: Duration, locks: &mut Locks) -> Result<(), RebuildError> {
        let folder = match self.data.open_below(&path) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(RebuildError::Folder {
                    folder: path,
                    error,
                });
            }
        };
        let lock = folder
            .lock(wait, self.stop)
            .map_err(|error| RebuildError::Locked {
                folder: path.clone(),
                error,
            })?;
        locks.insert(path, lock);
        Ok(())
    }

    fn options(&self) -> Options<'_> {
        Options {
            company: Some(self.company),
            campaign: None,
            since: None,
            repair: false,
            bucket: None,
            only_of_files: false,
            moved_since: None,
            holds_locks: false,
            explain: None,
            zones: self.zones,
            meta_bucket: self.meta_bucket,
            lock_wait: self.lock_wait,
            batch: self.batch,
        }
    }

    fn verifier<'v>(&'v self, options: Options<'v>) -> Verifier<'v> {
        Verifier {
            options,
            data: self.data,
            source: self.server,
            sink: self.sink,
            stop: self.stop,
            progress: self.progress,
        }
    }
}

/// Checks that a new bucket has no points but those of the files.
fn ensure_points_of_files(bucket: &str, found: &Verification) -> Result<(), RebuildError> {
    let elsewhere = found.unexplained.iter().map(|other| other.points);
    let points = found.total().extra + elsewhere.sum::<u64>();
    if points == 0 {
        return Ok(());
    }
    Err(RebuildError::Stale {
        bucket: bucket.to_owned(),
        points,
    })
}

/// Takes points and does nothing with them.
struct Ignored;

impl PointVisitor for Ignored {
    fn series(&mut self, _: &[(String, String)], _: Field<'_>, _: Place) {}

    fn point(&mut self, _: StoredPoint<'_>) {}
}

impl Unexplained for Ignored {
    fn measurement(&mut self, _: &str) {}
}
