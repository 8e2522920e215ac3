//! Makes a company's bucket anew from its files. See docs/specification.md, section 10.
//!
//! The names of the buckets are the state: a run that was killed is continued by the next one. A new bucket is filled while
//! uploads go on. Then all devices are locked, the rest is added, and the buckets are renamed. Between the two renames there
//! is no bucket of the company, and no ingestion makes one.

mod copier;
mod copy;
mod error;
mod swap;

pub(crate) use self::error::RebuildError;
pub(crate) use self::swap::Swapped;

use self::swap::Next;
use crate::data_dir::{Dir, parse_former_bucket, rebuild_bucket};
use crate::points::BatchOptions;
use crate::report::Progress;
use crate::shutdown::Shutdown;
use crate::sink::{
    BucketAdmin, BucketInfo, CopySource, Field, Place, PointVisitor, ReadError, Sink, StoredPoint,
};
use crate::time_zone::FileZones;
use crate::verify::{Devices, Options, Unexplained, Verification, Verifier};
use chrono::NaiveDate;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

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

impl<S: CopySource + BucketAdmin> Rebuild<'_, S> {
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
