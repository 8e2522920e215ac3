//! The days of a device whose summaries are still to be computed, in a file of its folder. See docs/specification.md,
//! section 11.

use super::{MAX_NEW_DAYS, Master, Rollup, RollupError, day_of};
use crate::catalogue::has_virtual_channels;
use crate::data_dir::{
    Campaign, DeviceLock, DevicePath, Dir, LOCK_PAUSE, LockError, MAX_HOLD, PENDING_FILE,
};
use crate::points::stored_name;
use crate::shutdown::Shutdown;
use crate::sink::{ALL_TIMES, ReadError};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

/// Maximum size of the file in bytes. Usual ones have less than a hundred.
const MAX_SIZE: usize = 64 * 1024;

/// Maximum number of days in the file, those of all masters together: more than a century.
const MAX_DAYS: i64 = 40_000;

/// Intended time for the summaries of a part of the days.
const PART_TIME: Duration = Duration::from_secs(2);

/// Days since 1970, by the serial of a master.
pub(crate) type Days = BTreeMap<String, BTreeSet<i64>>;

/// Days since 1970, by the campaign that the folder belonged to, and the serial of a master.
type DaysOfSeries = BTreeMap<(Campaign, String), BTreeSet<i64>>;

/// The first and the last day of periods without a gap.
type Periods = Vec<(i64, i64)>;

/// The days of a device whose summaries are still to be computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingDays {
    /// When the first of them was added.
    pub since: DateTime<Utc>,
    days: DaysOfSeries,
    /// Whether the time was over before the summaries of a part were computed: the next part has to be shorter.
    was_late: bool,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// In seconds since 1970.
    since: i64,
    #[serde(default)]
    was_late: bool,
    /// By the campaign, whose folder may be renamed meanwhile, and the serial of the master.
    days: BTreeMap<String, BTreeMap<String, Periods>>,
}

impl PendingDays {
    /// Reads the file of a device. `None` if there is none.
    ///
    /// # Errors
    /// It exists but cannot be read, or its content is not what this program writes.
    pub(crate) fn read(folder: &Dir) -> io::Result<Option<Self>> {
        let Some(text) = folder.read_state_file(PENDING_FILE, MAX_SIZE)? else {
            return Ok(None);
        };
        let stored = serde_json::from_slice(&text).ok();
        let pending = stored.and_then(Self::from_stored).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "its content is not valid")
        })?;
        Ok(Some(pending))
    }

    fn from_stored(stored: Stored) -> Option<Self> {
        let possible = day_of(ALL_TIMES.start)..=day_of(ALL_TIMES.end);
        let mut total = 0;
        let mut days = DaysOfSeries::new();
        let periods = stored.days.into_iter().flat_map(|(campaign, masters)| {
            let masters = masters.into_iter();
            masters.map(move |(serial, periods)| (campaign.clone(), serial, periods))
        });
        for (campaign, serial, periods) in periods {
            let campaign = Campaign::new(campaign.as_ref()).ok()?;
            if serial.contains(char::is_control) {
                return None;
            }
            let of_serial = days.entry((campaign, serial)).or_default();
            for (first, last) in periods {
                if first > last || !possible.contains(&first) || !possible.contains(&last) {
                    return None;
                }
                total += last - first + 1;
                if total > MAX_DAYS {
                    return None;
                }
                of_serial.extend(first..=last);
            }
        }
        days.retain(|_, days| !days.is_empty());
        // A time in the future would hide for how long they have been waiting.
        let since = DateTime::from_timestamp(stored.since, 0)?.min(Utc::now());
        Some(Self {
            since,
            days,
            was_late: stored.was_late,
        })
    }

    fn to_stored(&self) -> Stored {
        let periods = |days: &BTreeSet<i64>| {
            let mut periods = Periods::new();
            for &day in days {
                match periods.last_mut() {
                    Some((_, last)) if *last + 1 == day => *last = day,
                    _ => periods.push((day, day)),
                }
            }
            periods
        };
        let mut stored = Stored {
            since: self.since.timestamp(),
            was_late: self.was_late,
            days: BTreeMap::new(),
        };
        for ((campaign, serial), days) in &self.days {
            let masters = stored.days.entry(campaign.as_str().to_owned());
            let masters = masters.or_default();
            masters.insert(serial.clone(), periods(days));
        }
        stored
    }

    /// Adds days of a campaign to those in the file. The caller must hold the device lock.
    ///
    /// # Errors
    /// The file cannot be read or written, or there are too many days.
    pub(crate) fn add(folder: &Dir, campaign: &Campaign, days: Days) -> io::Result<()> {
        let known = match Self::read(folder) {
            // It is replaced.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            known => known?,
        };
        let mut pending = known.clone().unwrap_or_else(|| Self {
            since: Utc::now(),
            days: DaysOfSeries::new(),
            was_late: false,
        });
        for (serial, mut days) in days {
            let of_serial = pending.days.entry((campaign.clone(), serial));
            of_serial.or_default().append(&mut days);
        }
        if known.as_ref() == Some(&pending) {
            return Ok(());
        }
        pending.write(folder)
    }

    /// Writes the file, or removes it if no day is left.
    fn write(&self, folder: &Dir) -> io::Result<()> {
        if self.days.is_empty() {
            return folder.remove_state_file(PENDING_FILE);
        }
        let stored = self.to_stored();
        let text = serde_json::to_vec(&stored)?;
        if text.len() > MAX_SIZE || Self::from_stored(stored).is_none() {
            return Err(io::Error::other(
                "there are too many of them, or the serial of a master has control characters",
            ));
        }
        folder.replace_state_file(PENDING_FILE, &text)
    }
}

/// Removes the days of a master that are done.
fn keep_only(left: &BTreeSet<i64>, series: &(Campaign, String), days: &mut DaysOfSeries) {
    if let Some(days) = days.get_mut(series) {
        days.retain(|day| left.contains(day));
    }
    days.retain(|_, days| !days.is_empty());
}

impl Rollup<'_> {
    /// Computes the summaries of the pending days of a device, a part of them at a time. Each part is computed under the locks
    /// of the device and its campaign, so that files can be ingested in between, and its days are removed from the file of the
    /// device.
    ///
    /// `unsaved` are pending days that could not be added to the file. `wait` is the time that may be spent waiting for locks.
    /// The time that was spent is subtracted.
    ///
    /// # Errors
    /// A lock is not acquired, the file cannot be read or written, the points not read, or the summaries not written.
    pub(crate) fn update_pending(
        &self,
        folder: &Dir,
        location: &DevicePath,
        unsaved: Days,
        wait: &mut Duration,
        stop: &Shutdown,
    ) -> Result<(), RollupError> {
        let bucket = location.company.as_str();
        let unsaved = unsaved.into_iter();
        let campaign = &location.campaign;
        let mut unsaved: DaysOfSeries = unsaved
            .map(|(serial, days)| ((campaign.clone(), serial), days))
            .collect();
        let has_unsaved = !unsaved.is_empty();
        let mut length = None;
        let mut failed = BTreeSet::new();
        let mut result = Ok(());
        let mut held = Duration::ZERO;
        let mut has_progress = false;
        while !unsaved.is_empty() || folder.has_state_file(PENDING_FILE)? {
            if held > MAX_HOLD {
                held = Duration::ZERO;
                std::thread::sleep(LOCK_PAUSE);
            }
            let _locks = self.lock(folder, wait, stop)?;
            let started = Instant::now();
            self.sink.forget_bucket_id(bucket);
            let mut pending = match PendingDays::read(folder) {
                Ok(pending) => pending,
                // There was a warning when days could not be added.
                Err(_) if has_unsaved => None,
                Err(error) => {
                    if error.kind() == io::ErrorKind::InvalidData {
                        folder.remove_state_file(PENDING_FILE)?;
                    }
                    return Err(error.into());
                }
            };
            let mut all = unsaved.clone();
            for (series, days) in pending.iter().flat_map(|pending| &pending.days) {
                all.entry(series.clone()).or_default().extend(days);
            }
            let mut all = all.into_iter();
            let Some((series, mut days)) = all.find(|(series, _)| !failed.contains(series)) else {
                if let Some(pending) = pending.filter(|pending| pending.days.is_empty()) {
                    pending.write(folder)?;
                }
                break;
            };
            let (campaign, serial) = &series;
            let master = Master {
                bucket,
                measurement: stored_name(campaign.as_str()).unwrap_or_default(),
                serial: stored_name(serial).unwrap_or_default(),
            };
            let was_late = pending.as_ref().is_some_and(|pending| pending.was_late);
            // Without a limit, the first part is short too, because files wait for the lock.
            let is_short = was_late || self.time_left().is_none();
            let length = length.get_or_insert(if is_short { 1 } else { MAX_NEW_DAYS });
            // Other campaigns and those without virtual channels need no request.
            let has_virtual = folder
                .open_parent()
                .is_ok_and(|campaign| has_virtual_channels(&campaign));
            let updated = self.update_first(master, &mut days, *length, has_virtual);
            if let Err(RollupError::Read(ReadError::Refused(_))) = updated
                && self.source.find_bucket(bucket)?.is_none()
            {
                // Its points are gone too.
                if pending.is_some() {
                    folder.remove_state_file(PENDING_FILE)?;
                }
                break;
            }
            let is_late = updated.is_err() && self.time_left() == Some(Duration::ZERO);
            keep_only(&days, &series, &mut unsaved);
            if let Some(pending) = &mut pending {
                let before = pending.clone();
                keep_only(&days, &series, &mut pending.days);
                pending.was_late = is_late || was_late && updated.is_err();
                if *pending != before {
                    pending.write(folder)?;
                }
            }
            match updated {
                Ok(()) => has_progress = true,
                Err(error) if error.is_of_server() => return Err(error),
                Err(_) if is_late && has_progress => return Err(RollupError::Unfinished),
                Err(_) if is_late => return Err(ReadError::Late.into()),
                Err(error) => {
                    failed.insert(series);
                    result = Err(error);
                }
            }
            let time = started.elapsed();
            held += time;
            if time < PART_TIME {
                *length = (*length * 2).min(MAX_NEW_DAYS);
            } else if time > PART_TIME * 2 {
                *length = (*length / 2).max(1);
            }
        }
        result
    }

    /// Acquires the locks of a device and of its campaign. Several folders of a campaign may have points of the same master:
    /// summaries that were computed before the points of another folder must not be written after those with them.
    fn lock(
        &self,
        folder: &Dir,
        wait: &mut Duration,
        stop: &Shutdown,
    ) -> Result<[DeviceLock; 2], RollupError> {
        let start = Instant::now();
        let limit = self.time_left().map_or(*wait, |left| left.min(*wait));
        let left = || limit.saturating_sub(start.elapsed());
        let locks = folder.lock(limit, stop).map_err(RollupError::from);
        let locks = locks.and_then(|device| match folder.open_parent()?.lock(left(), stop) {
            Ok(campaign) => Ok([device, campaign]),
            Err(LockError::Held { holder, .. }) => Err(RollupError::CampaignHeld(holder)),
            Err(error) => Err(error.into()),
        });
        *wait = wait.saturating_sub(start.elapsed());
        locks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> Campaign {
        Campaign::new("site".as_ref()).unwrap()
    }

    fn days(days: &[(&str, &[i64])]) -> Days {
        let days = days.iter();
        days.map(|(serial, days)| ((*serial).to_owned(), days.iter().copied().collect()))
            .collect()
    }

    /// Days of the campaign `site`.
    fn of_site(days: Days) -> DaysOfSeries {
        let days = days.into_iter();
        days.map(|(serial, days)| ((site(), serial), days))
            .collect()
    }

    #[test]
    fn days_are_added_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        assert_eq!(PendingDays::read(&folder).unwrap(), None);
        PendingDays::add(&folder, &site(), days(&[("a", &[1, 2, 3, 5])])).unwrap();
        PendingDays::add(&folder, &site(), days(&[("a", &[4, -7]), ("b", &[9])])).unwrap();
        let mut pending = PendingDays::read(&folder).unwrap().unwrap();
        assert_eq!(
            pending.days,
            of_site(days(&[("a", &[-7, 1, 2, 3, 4, 5]), ("b", &[9])]))
        );
        pending.days.clear();
        pending.write(&folder).unwrap();
        assert!(!folder.has_state_file(PENDING_FILE).unwrap());
    }

    #[test]
    fn the_time_since_which_days_wait_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        let put = |text: &str| std::fs::write(dir.path().join(PENDING_FILE), text).unwrap();
        put(r#"{"since":1000,"days":{"site":{"a":[[1,2]]}}}"#);
        PendingDays::add(&folder, &site(), days(&[("a", &[3])])).unwrap();
        let pending = PendingDays::read(&folder).unwrap().unwrap();
        assert_eq!(pending.since.timestamp(), 1_000);
        put(r#"{"since":99999999999,"days":{"site":{"a":[[1,2]]}}}"#);
        let pending = PendingDays::read(&folder).unwrap().unwrap();
        assert!(pending.since <= Utc::now());
    }

    #[test]
    fn other_content_is_refused_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        let long = format!(
            r#"{{"since":1,"days":{{"site":{{"{}":[]}}}}}}"#,
            "x".repeat(MAX_SIZE)
        );
        for text in [
            "",
            "[]",
            r#"{"since":1}"#,
            r#"{"since":1,"days":{"site":{"a":[[2,1]]}}}"#,
            r#"{"since":1,"days":{"site":{"a":[[0,40000]]}}}"#,
            r#"{"since":1,"days":{"site":{"a":[[0,39000]],"b":[[0,39000]]}}}"#,
            r#"{"since":1,"days":{"site":{"a":[[9223372036854775806,9223372036854775807]]}}}"#,
            r#"{"since":1,"days":{"site":{"a":[[-9223372036854775808,9223372036854775807]]}}}"#,
            r#"{"since":1,"days":{"site":{"a\u0000":[[1,2]]}}}"#,
            r#"{"since":1,"days":{"powerview_1h":{"a":[[1,2]]}}}"#,
            r#"{"since":9223372036854775807,"days":{"site":{"a":[[1,2]]}}}"#,
            &long,
        ] {
            std::fs::write(dir.path().join(PENDING_FILE), text).unwrap();
            let error = PendingDays::read(&folder).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text}");
            PendingDays::add(&folder, &site(), days(&[("a", &[1])])).unwrap();
            let pending = PendingDays::read(&folder).unwrap().unwrap();
            assert_eq!(pending.days, of_site(days(&[("a", &[1])])), "{text}");
        }
    }

    #[test]
    fn too_many_days_are_refused_and_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        PendingDays::add(&folder, &site(), days(&[("a", &[1])])).unwrap();
        let every_other: BTreeSet<_> = (0..MAX_DAYS).map(|n| 2 * n).collect();
        for many in [(0..=MAX_DAYS).collect(), every_other] {
            assert!(PendingDays::add(&folder, &site(), [("a".to_owned(), many)].into()).is_err());
            let pending = PendingDays::read(&folder).unwrap().unwrap();
            assert_eq!(pending.days, of_site(days(&[("a", &[1])])));
        }
    }
}
