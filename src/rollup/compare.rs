//! Compares summaries with those that are computed from the points, and writes those that differ.

use super::compute::{FIELDS, Hours, Run, Tags, Values, campaign_of, unknown};
use super::hours::{DAY, SECOND};
use super::virtual_channels::{VIRTUAL, VirtualChannels, is_virtual, tags_of_all};
use super::{GapLimit, Lines, MAX_DAYS, Master, Rollup, RollupError, day_of};
use crate::data_dir::{
    CATALOGUE, Campaign, DeviceLock, LOCK_PAUSE, LockError, MAX_HOLD, SUMMARIES,
};
use crate::points::stored_name;
use crate::sanitize::sanitize;
use crate::sink::{
    ALL_TIMES, Field, Place, PointQuery, PointVisitor, ReadError, Series as SeriesOf, SeriesQuery,
    StoredPoint, retried,
};
use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::{AddAssign, Range};
use std::time::Instant;

/// How often summaries are written that an ingestion changes meanwhile.
const MAX_ROUNDS: u32 = 3;

/// The summaries to compare.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub bucket: &'a str,
    /// Only those of this measurement.
    pub measurement: Option<&'a str>,
    /// Only those from the day of this time on, in seconds since 1970.
    pub since: i64,
}

/// Numbers of summaries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct SummaryCounts {
    /// Summaries that the points of the database give.
    pub expected: u64,
    /// Expected ones that the database does not have.
    pub missing: u64,
    /// Expected ones that the database has with other values, or without some.
    pub different: u64,
    /// Those of the database that its points do not give, or that have more values. Those that only say that nothing is known
    /// are not among them.
    pub extra: u64,
    /// Summaries that are not expected, because they cannot be written, or because their points are in several measurements
    /// and do not say which one they belong to.
    pub skipped: u64,
    /// Summaries that were written.
    pub written: u64,
}

/// The result of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub counts: SummaryCounts,
    /// Why the summaries of some masters were not compared or written.
    pub failures: Vec<String>,
}

impl Comparison {
    /// Adds a failure, or returns it if others fail too.
    fn add_failure(&mut self, owner: &Owner, error: RollupError) -> Result<(), RollupError> {
        if error.is_of_server() {
            return Err(error);
        }
        self.failures.push(format!("{owner}: {error}"));
        Ok(())
    }
}

/// Whose summaries are compared together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// A master, by its serial.
    Master(String),
    /// The virtual channels of a campaign, by its measurement.
    Campaign(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master(serial) => write!(f, "device_master_sn {:?}", sanitize(serial)),
            Self::Campaign(name) => write!(f, "virtual channels of {:?}", sanitize(name)),
        }
    }
}

/// What the summaries of an owner are computed from.
#[derive(Debug)]
enum Origin {
    /// The measurements with points of the master.
    Measurements(Vec<String>),
    Virtual(VirtualChannels),
}

impl Origin {
    /// That of an owner without any.
    fn none(owner: &Owner) -> Self {
        match owner {
            Owner::Master(_) => Self::Measurements(Vec::new()),
            Owner::Campaign(measurement) => Self::Virtual(VirtualChannels::none(measurement)),
        }
    }
}

impl SummaryCounts {
    /// Whether the database has exactly the expected summaries.
    pub(crate) fn is_equal(&self) -> bool {
        self.missing + self.different + self.extra == 0
    }
}

impl AddAssign for SummaryCounts {
    fn add_assign(&mut self, other: Self) {
        self.expected += other.expected;
        self.missing += other.missing;
        self.different += other.different;
        self.extra += other.extra;
        self.skipped += other.skipped;
        self.written += other.written;
    }
}

impl Rollup<'_> {
    /// Compares summaries with the points. Those that differ are compared again after `settle`, which waits until ingestions
    /// that are going on have ended.
    ///
    /// # Errors
    /// The server gives no answer, or refuses all requests. What fails for a master only is a part of the result.
    pub(crate) fn compare(
        &self,
        scope: Scope<'_>,
        settle: &dyn Fn(),
    ) -> Result<Comparison, RollupError> {
        self.each_part(scope, settle, |part| Ok(part.read()?))
    }

    /// Writes the summaries that are missing or different. Extra ones of channels that still have points are overwritten, so
    /// that they add no energy. They are not deleted: the server cannot be told to delete a series without those that have
    /// more tags. Extra ones of virtual channels are deleted, because only this program writes such series.
    ///
    /// # Errors
    /// The server gives no answer, or refuses all requests. What fails for a master only is a part of the result.
    pub(crate) fn repair(&self, scope: Scope<'_>) -> Result<Comparison, RollupError> {
        self.each_part(scope, &|| (), |part| part.repair(part.read()?))
    }

    /// Calls `each` for the summaries of each owner and some days, and adds up what it finds. Those that differ are looked
    /// at once more in the end, because an ingestion may have added points or measurements meanwhile.
    fn each_part(
        &self,
        scope: Scope<'_>,
        settle: &dyn Fn(),
        each: impl Fn(&Part<'_>) -> Result<Found, RollupError>,
    ) -> Result<Comparison, RollupError> {
        let mut comparison = Comparison::default();
        let Some(scope) = self.kept(scope)? else {
            return Ok(comparison);
        };
        let mut differing = Vec::new();
        for (owner, origin) in &self.owners(scope)? {
            let mut start = day_of(scope.since);
            loop {
                let part = Part::new(self, scope, owner, origin, start);
                let found = match each(&part) {
                    Ok(found) => found,
                    Err(error) => {
                        comparison.add_failure(owner, error)?;
                        break;
                    }
                };
                if found.counts().is_equal() {
                    comparison.counts += found.counts();
                } else {
                    differing.push((owner.clone(), start, found.written));
                }
                let Some(next) = part.next(&found) else { break };
                start = next;
            }
        }
        if differing.is_empty() {
            return Ok(comparison);
        }
        settle();
        let mut owners = self.owners(scope)?;
        for (owner, start, written) in differing {
            let origin = owners.entry(owner.clone());
            let origin = origin.or_insert_with(|| Origin::none(&owner));
            let part = Part::new(self, scope, &owner, origin, start);
            comparison.counts.written += written;
            match each(&part) {
                Ok(found) => comparison.counts += found.counts(),
                Err(error) => comparison.add_failure(&owner, error)?,
            }
        }
        Ok(comparison)
    }

    /// The part of a scope whose points the server keeps. `None` if there is no bucket.
    fn kept<'s>(&self, mut scope: Scope<'s>) -> Result<Option<Scope<'s>>, ReadError> {
        let Some(bucket) = self.source.find_bucket(scope.bucket)? else {
            return Ok(None);
        };
        if let Some(retention_s) = bucket.retention_s {
            // The first summaries may depend on points that the server has already dropped.
            let kept = Utc::now().timestamp() - retention_s + DAY / SECOND;
            scope.since = scope.since.max(kept);
        }
        Ok(Some(scope))
    }

    /// The masters with points or summaries, and the campaigns with virtual channels or their summaries.
    fn owners(&self, scope: Scope<'_>) -> Result<BTreeMap<Owner, Origin>, ReadError> {
        let bucket = scope.bucket;
        let mut masters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut channels: BTreeMap<String, VirtualChannels> = BTreeMap::new();
        let is_chosen =
            |measurement: &str| scope.measurement.is_none_or(|only| only == measurement);
        let times = scope.since..ALL_TIMES.end;
        for measurement in self.source.measurements(bucket)? {
            match measurement.as_str() {
                CATALOGUE => channels.extend(self.virtual_channels(bucket, scope.measurement)?),
                SUMMARIES => {
                    for master in self.source.masters(bucket, &measurement, &times)? {
                        masters.entry(master).or_default();
                    }
                    for campaign in self.campaigns_with_virtual_summaries(bucket)? {
                        if is_chosen(&campaign) {
                            let none = VirtualChannels::none(&campaign);
                            channels.entry(campaign).or_insert(none);
                        }
                    }
                }
                _ if is_chosen(&measurement) => {
                    for master in self.source.masters(bucket, &measurement, &times)? {
                        let measurements = masters.entry(master).or_default();
                        measurements.push(measurement.clone());
                    }
                }
                _ => {}
            }
        }
        let masters = masters.into_iter().map(|(serial, measurements)| {
            (Owner::Master(serial), Origin::Measurements(measurements))
        });
        let channels = channels.into_iter().map(|(measurement, channels)| {
            (Owner::Campaign(measurement), Origin::Virtual(channels))
        });
        Ok(masters.chain(channels).collect())
    }

    /// The campaigns that may have summaries of virtual channels, also of those that have no entry any more.
    fn campaigns_with_virtual_summaries(&self, bucket: &str) -> Result<Vec<String>, ReadError> {
        let types = self.source.tag_values(bucket, SUMMARIES, "channel_type")?;
        if types.iter().any(|of_channel| of_channel == VIRTUAL) {
            self.source.tag_values(bucket, SUMMARIES, "campaign")
        } else {
            Ok(Vec::new())
        }
    }

    /// Makes the summaries of virtual channels of a campaign anew, after its catalogue was written to the database: of those
    /// that were changed or removed, by their ids, or of all without these. A part of them is made at a time, under the lock
    /// of the campaign folder. If this ends early, it can be called again for all of them, or `powerview rollup` goes on.
    /// Returns the number of summaries that were written.
    ///
    /// # Errors
    /// The lock is not acquired, the server gives no answer or refuses a request.
    pub(crate) fn remake_virtual(
        &self,
        bucket: &str,
        campaign: &Campaign,
        changed: Option<&BTreeSet<String>>,
        lock: impl Fn() -> Result<DeviceLock, LockError>,
    ) -> Result<u64, RollupError> {
        let measurement = stored_name(campaign.as_str()).unwrap_or_default();
        let owner = Owner::Campaign(measurement.to_owned());
        let mut written = 0;
        let all = Scope {
            bucket,
            measurement: Some(measurement),
            since: ALL_TIMES.start,
        };
        let mut next = None;
        let mut is_begun = false;
        while !is_begun || next.is_some() {
            if is_begun {
                std::thread::sleep(LOCK_PAUSE);
            }
            let _lock = lock()?;
            let started = Instant::now();
            // It may have been rebuilt.
            self.sink.forget_bucket_id(bucket);
            let Some(scope) = self.kept(all)? else {
                break;
            };
            if !is_begun {
                for id in changed.into_iter().flatten() {
                    let [campaign, kind] = tags_of_all(measurement);
                    let tags = [campaign, kind, ("channel_id", id)];
                    self.source.delete(bucket, SUMMARIES, &tags, &ALL_TIMES)?;
                }
                next = Some(day_of(scope.since));
                is_begun = true;
            }
            // The catalogue may have been applied again meanwhile.
            let mut channels = self.virtual_channels(bucket, Some(measurement))?;
            let channels = channels.remove(measurement);
            let mut channels = channels.unwrap_or_else(|| VirtualChannels::none(measurement));
            if let Some(changed) = changed {
                channels.retain(changed);
            }
            let origin = Origin::Virtual(channels);
            let before = next;
            // One part at least, so that a slow server delays it, but does not stop it.
            while let Some(start) = next.filter(|_| next == before || started.elapsed() < MAX_HOLD)
            {
                let part = Part::new(self, scope, &owner, &origin, start);
                let found = part.read()?;
                // With the lock, no ingestion changes summaries, and those of points that come meanwhile follow.
                written += part.write(&found)?;
                next = part.next(&found);
            }
            if let Some(day) = next.and_then(|day| reached(day, written)) {
                tracing::info!(
                    "{}: hourly summaries of virtual channels are made until {day}",
                    sanitize(measurement)
                );
            }
        }
        Ok(written)
    }
}

/// The day until which summaries are made, which is not worth a message as long as there are none.
pub(super) fn reached(day: i64, written: u64) -> Option<NaiveDate> {
    let time = DateTime::from_timestamp(day.checked_mul(DAY / SECOND)?, 0)?;
    (written > 0).then(|| time.date_naive())
}

/// The summaries of an owner and some days.
struct Part<'a> {
    rollup: &'a Rollup<'a>,
    scope: Scope<'a>,
    owner: &'a Owner,
    origin: &'a Origin,
    run: Run,
}

impl<'a> Part<'a> {
    fn new(
        rollup: &'a Rollup<'a>,
        scope: Scope<'a>,
        owner: &'a Owner,
        origin: &'a Origin,
        start: i64,
    ) -> Self {
        let days = start..start + MAX_DAYS;
        Self {
            rollup,
            scope,
            owner,
            origin,
            run: Run { days, new: None },
        }
    }

    /// The first day of the next part, if there is one.
    fn next(&self, found: &Found) -> Option<i64> {
        // Days without points are left out, except those that a long interval reaches into.
        let reach = match self.rollup.gap_limit {
            GapLimit::Fixed(limit) => limit / SECOND,
            GapLimit::OfDay => DAY / SECOND,
        };
        let next = day_of(found.next?.saturating_sub(reach));
        Some(self.run.days.end.max(next))
    }

    /// Computes the summaries, and compares them with those of the database.
    fn read(&self) -> Result<Found, ReadError> {
        match (self.owner, self.origin) {
            (Owner::Master(serial), Origin::Measurements(measurements)) => {
                self.read_master(serial, measurements)
            }
            (_, Origin::Virtual(channels)) => self.read_virtual(channels),
            (Owner::Campaign(_), Origin::Measurements(_)) => Ok(Found::default()),
        }
    }

    fn read_virtual(&self, channels: &VirtualChannels) -> Result<Found, ReadError> {
        let mut expected: HashMap<Tags, Hours> = HashMap::new();
        let bucket = self.scope.bucket;
        let computed = self
            .rollup
            .compute_virtual(bucket, channels, &self.run, &mut |found| {
                expected.entry(found.tags).or_default().extend(found.hours);
            })?;
        let times = self.times();
        let query = SeriesQuery {
            bucket,
            measurement: SUMMARIES,
            series: SeriesOf::Tags(&tags_of_all(&channels.measurement)),
            within: times.start..ALL_TIMES.end,
            times,
        };
        let mut found = Found::default();
        retried(|| {
            found = Found::new(&expected, computed.next);
            found.is_virtual = true;
            found.only.clone_from(&channels.only);
            self.rollup.source.points_of(&query, &mut found)
        })?;
        found.unwritable = computed.unwritable;
        Ok(found)
    }

    /// The times of the days, in seconds since 1970.
    fn times(&self) -> Range<i64> {
        let seconds = |day: i64| day.saturating_mul(DAY / SECOND);
        let days = &self.run.days;
        seconds(days.start).max(ALL_TIMES.start)..seconds(days.end).min(ALL_TIMES.end)
    }

    fn read_master(&self, serial: &str, measurements: &[String]) -> Result<Found, ReadError> {
        let mut expected = HashMap::new();
        let mut skipped = HashMap::new();
        let mut unwritable = 0;
        let mut next: Option<i64> = None;
        for measurement in measurements {
            let master = Master {
                bucket: self.scope.bucket,
                measurement,
                serial,
            };
            let add = |tags: Tags, hours: Hours| {
                let campaign = campaign_of(&tags);
                if self.scope.measurement.is_some() && campaign.is_none() {
                    // Other measurements may have such points too.
                    return;
                }
                if campaign.is_none() && expected.contains_key(&tags) {
                    self.rollup.note(
                        measurement,
                        "points without the tag campaign have no hourly summaries, because another measurement has the same channel",
                    );
                    *skipped.entry(tags).or_default() += hours.len() as u64;
                } else {
                    expected.insert(tags, hours);
                }
            };
            let computed = self.rollup.compute(master, &self.run, add)?;
            unwritable += computed.unwritable;
            next = next.into_iter().chain(computed.next).min();
        }
        for (tags, hours) in &mut skipped {
            *hours += expected.remove(tags).map_or(0, |hours| hours.len() as u64);
        }
        let query = PointQuery {
            bucket: self.scope.bucket,
            measurement: SUMMARIES,
            master: Some(serial),
            times: self.times(),
            for_summaries: true,
        };
        let mut found = Found::default();
        retried(|| {
            found = Found::new(&expected, next);
            found.skipped.clone_from(&skipped);
            found.measurement = self.scope.measurement.map(str::to_owned);
            self.rollup.source.points(&query, &mut found)
        })?;
        found.unwritable = unwritable;
        Ok(found)
    }

    /// Writes the summaries that are missing or different, and compares them again: an ingestion may have added points
    /// meanwhile.
    fn repair(&self, mut found: Found) -> Result<Found, RollupError> {
        for _ in 0..MAX_ROUNDS {
            if found.is_written() {
                break;
            }
            let written = found.written + self.write(&found)?;
            found = self.read()?;
            found.written = written;
        }
        Ok(found)
    }

    /// Writes what is missing or different, and that nothing is known in extra hours. Those of virtual channels are deleted.
    /// Returns the number of summaries that were written.
    fn write(&self, found: &Found) -> Result<u64, RollupError> {
        let mut lines = Lines::new(self.rollup, self.scope.bucket);
        for series in &found.series {
            let is_deleted = found.is_virtual && series.hours.values().any(Summary::is_extra);
            if is_deleted {
                self.delete(series)?;
            }
            if !series.has_points {
                continue;
            }
            let differing = series.hours.iter().filter(|(_, expected)| {
                if is_deleted {
                    expected.is_expected
                } else {
                    !expected.is_written()
                }
            });
            lines.add(
                &series.tags,
                differing.map(|(hour, expected)| (hour, &expected.values)),
            );
        }
        lines.finish()
    }

    /// Deletes the summaries of these days of a virtual channel, with those of all later days if it has no entry.
    fn delete(&self, series: &Series) -> Result<(), ReadError> {
        let mut times = self.times();
        if !series.has_points {
            times.end = ALL_TIMES.end;
        }
        let tags = series.tags.iter();
        let tags: Vec<_> = tags.map(|(key, value)| (&**key, &**value)).collect();
        let source = self.rollup.source;
        source.delete(self.scope.bucket, SUMMARIES, &tags, &times)
    }
}

/// The result of a comparison. It takes the fields of the summaries, which come as points.
#[derive(Default)]
struct Found {
    series: Vec<Series>,
    ids: HashMap<Tags, usize>,
    /// The series that are not compared, with the number of their hours.
    skipped: HashMap<Tags, u64>,
    /// The number of summaries that cannot be written.
    unwritable: u64,
    /// The measurement of which summaries are compared; all of them without one.
    measurement: Option<String>,
    /// Whether summaries of virtual channels are compared, or those of others.
    is_virtual: bool,
    /// The ids of the virtual channels that are compared; all of them without this.
    only: Option<BTreeSet<String>>,
    current: Option<Current>,
    /// The time of the first point or summary after these days.
    next: Option<i64>,
    written: u64,
}

/// The summaries of a series, those that are expected and those that the database has.
struct Series {
    tags: Tags,
    /// Whether points of it were read, or it has an entry in the catalogue. The others may be those of a campaign that has begun
    /// meanwhile, and are not written.
    has_points: bool,
    hours: BTreeMap<i64, Summary>,
}

/// A summary, and what was found of it.
struct Summary {
    /// Those of an hour in which nothing is known, if it is not expected.
    values: Values,
    is_expected: bool,
    /// Which of its fields the database has.
    found: [bool; FIELDS.len()],
    has_other_value: bool,
}

/// The field whose values come.
struct Current {
    /// The position of its series in [`Found::series`].
    id: usize,
    /// The position in [`FIELDS`].
    field: usize,
    place: Place,
}

impl Summary {
    fn new(values: Values, is_expected: bool) -> Self {
        Self {
            values,
            is_expected,
            found: [false; FIELDS.len()],
            has_other_value: false,
        }
    }

    fn is_missing(&self) -> bool {
        !self.found.contains(&true)
    }

    /// Whether the database has all of its values.
    fn is_written(&self) -> bool {
        let mut fields = self.values.iter().zip(self.found);
        !self.has_other_value && fields.all(|(value, is_found)| is_found || !value.is_finite())
    }

    /// Whether the database has it or one of its fields, but should not.
    fn is_extra(&self) -> bool {
        !self.is_missing() && (!self.is_expected || self.has_extra_field())
    }

    /// Whether the database has a field that is not expected. Writing the others does not remove it.
    fn has_extra_field(&self) -> bool {
        let mut fields = self.values.iter().zip(self.found);
        fields.any(|(value, is_found)| is_found && !value.is_finite())
    }
}

impl Found {
    fn new(expected: &HashMap<Tags, Hours>, next: Option<i64>) -> Self {
        let mut found = Self {
            next,
            ..Self::default()
        };
        for (tags, hours) in expected {
            let hours = hours.iter();
            let id = found.add_series(tags, true);
            found.series[id].hours = hours
                .map(|(hour, values)| (*hour, Summary::new(*values, true)))
                .collect();
        }
        found
    }

    /// Adds a series. Returns its position.
    fn add_series(&mut self, tags: &[(String, String)], has_points: bool) -> usize {
        let id = self.series.len();
        self.ids.insert(tags.to_vec(), id);
        self.series.push(Series {
            tags: tags.to_vec(),
            has_points,
            hours: BTreeMap::new(),
        });
        id
    }

    /// Whether nothing is to be written or deleted.
    fn is_written(&self) -> bool {
        let mut series = self.series.iter();
        if self.is_virtual {
            let is_equal = |summary: &Summary| summary.is_written() && !summary.is_extra();
            return series.all(|series| series.hours.values().all(is_equal));
        }
        let mut series = series.filter(|series| series.has_points);
        series.all(|series| series.hours.values().all(Summary::is_written))
    }

    fn counts(&self) -> SummaryCounts {
        let mut counts = SummaryCounts {
            skipped: self.unwritable + self.skipped.values().sum::<u64>(),
            written: self.written,
            ..SummaryCounts::default()
        };
        for summary in self.series.iter().flat_map(|series| series.hours.values()) {
            counts.expected += u64::from(summary.is_expected);
            if summary.is_missing() {
                counts.missing += 1;
            } else if summary.is_expected && !summary.is_written() {
                counts.different += 1;
            } else if !summary.is_written()
                || summary.has_extra_field()
                || self.is_virtual && summary.is_extra()
            {
                counts.extra += 1;
            }
        }
        counts
    }
}

impl PointVisitor for Found {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, place: Place) {
        self.current = None;
        // Those of continued channels have the master of the last one.
        if is_virtual(tags) != self.is_virtual {
            return;
        }
        if let Some(only) = &self.only {
            let id = tags.iter().find(|(key, _)| key == "channel_id");
            if id.is_none_or(|(_, id)| !only.contains(id)) {
                return;
            }
        }
        let is_other = |only: &str| campaign_of(tags) != Some(only);
        if self.measurement.as_deref().is_some_and(is_other) || self.skipped.contains_key(tags) {
            return;
        }
        let Some(field) = FIELDS.iter().position(|other| other.key == field.key) else {
            return;
        };
        let id = self.ids.get(tags).copied();
        let id = id.unwrap_or_else(|| self.add_series(tags, false));
        self.current = Some(Current { id, field, place });
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        let Some(current) = &self.current else {
            return;
        };
        match current.place {
            Place::Before => return,
            Place::After => {
                self.next = Some(self.next.unwrap_or(point.time).min(point.time));
                return;
            }
            Place::Within => {}
        }
        let time = point.time * SECOND + i64::from(point.nanos);
        let Series { tags, hours, .. } = &mut self.series[current.id];
        let summary = hours.entry(time);
        let summary = summary.or_insert_with(|| Summary::new(unknown(tags), false));
        let value = summary.values[current.field];
        summary.has_other_value |= value.is_finite() && point.value.parse() != Ok(value);
        summary.found[current.field] = true;
    }
}
