//! Swaps the new bucket of a company in, and out again.

use super::{Rebuild, RebuildError};
use crate::data_dir::{
    DEVICE_DEPTH, DeviceItem, DeviceLock, LockError, devices_in, former_bucket, rebuild_bucket,
};
use crate::pipeline::raise_file_limit;
use crate::sink::{BucketAdmin, BucketInfo, CopySource, ReadError};
use crate::verify::Devices;
use chrono::{NaiveTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a device that is new during a swap is waited for. Meanwhile there is no bucket of the company, and an upload of
/// the device may be waiting for it.
const NEW_DEVICE_WAIT: Duration = Duration::from_secs(2);

/// The depth of campaign folders: company, campaign.
const CAMPAIGN_DEPTH: usize = DEVICE_DEPTH - 1;

/// How often a swap is tried if new devices are locked.
const MAX_SWAPS: u32 = 5;

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

/// The bucket that gets the company's name.
pub(super) struct Next<'a> {
    pub(super) bucket: &'a BucketInfo,
    /// For an undo, since when files arrived whose points may be missing, in nanoseconds since 1970.
    pub(super) undone_since: Option<i128>,
    /// Whether it may have points that no file gives.
    pub(super) has_others: bool,
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

impl<S: CopySource + BucketAdmin> Rebuild<'_, S> {
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
}
