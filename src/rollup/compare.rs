//! Compares summaries with those that are computed from the points, and writes those that differ.

use super::compute::{FIELDS, Hours, Run, Tags, Values, campaign_of, unknown};
use super::hours::{DAY, SECOND};
use super::{GapLimit, Lines, MAX_DAYS, Master, Rollup, RollupError, day_of};
use crate::data_dir::{CATALOGUE, SUMMARIES};
use crate::sanitize::sanitize;
use crate::sink::{
    ALL_TIMES, Field, Place, PointQuery, PointSource as _, PointVisitor, ReadError, StoredPoint,
    retried,
};
use chrono::Utc;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::ops::AddAssign;

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
    /// Adds the failure of a master, or returns it if others fail too.
    fn add_failure(&mut self, master: &str, error: RollupError) -> Result<(), RollupError> {
        if error.is_of_server() {
            return Err(error);
        }
        let master = sanitize(master);
        self.failures
            .push(format!("device_master_sn {master:?}: {error}"));
        Ok(())
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
    /// that they add no energy. Nothing is ever deleted: the server cannot be told to delete a series without those that have
    /// more tags.
    ///
    /// # Errors
    /// The server gives no answer, or refuses all requests. What fails for a master only is a part of the result.
    pub(crate) fn repair(&self, scope: Scope<'_>) -> Result<Comparison, RollupError> {
        self.each_part(scope, &|| (), |part| part.repair(part.read()?))
    }

    /// Calls `each` for the summaries of each master and some days, and adds up what it finds. Those that differ are looked
    /// at once more in the end, because an ingestion may have added points or measurements meanwhile.
    fn each_part(
        &self,
        mut scope: Scope<'_>,
        settle: &dyn Fn(),
        each: impl Fn(&Part<'_>) -> Result<Found, RollupError>,
    ) -> Result<Comparison, RollupError> {
        let mut comparison = Comparison::default();
        let Some(bucket) = self.source.find_bucket(scope.bucket)? else {
            return Ok(comparison);
        };
        if let Some(retention_s) = bucket.retention_s {
            // The first summaries may depend on points that the server has already dropped.
            let kept = Utc::now().timestamp() - retention_s + DAY / SECOND;
            scope.since = scope.since.max(kept);
        }
        let mut differing = Vec::new();
        for (master, measurements) in &self.masters(scope)? {
            let mut start = day_of(scope.since);
            loop {
                let part = Part::new(self, scope, master, measurements, start);
                let found = match each(&part) {
                    Ok(found) => found,
                    Err(error) => {
                        comparison.add_failure(master, error)?;
                        break;
                    }
                };
                if found.counts().is_equal() {
                    comparison.counts += found.counts();
                } else {
                    differing.push((master.clone(), start, found.written));
                }
                let Some(next) = found.next else { break };
                // Days without points are left out, except those that a long interval reaches into.
                let reach = match self.gap_limit {
                    GapLimit::Fixed(limit) => limit / SECOND,
                    GapLimit::OfDay => DAY / SECOND,
                };
                let next = day_of(next.saturating_sub(reach));
                start = part.run.days.end.max(next);
            }
        }
        if differing.is_empty() {
            return Ok(comparison);
        }
        settle();
        let masters = self.masters(scope)?;
        for (master, start, written) in differing {
            let measurements = masters.get(&master).map_or(&[][..], Vec::as_slice);
            let part = Part::new(self, scope, &master, measurements, start);
            comparison.counts.written += written;
            match each(&part) {
                Ok(found) => comparison.counts += found.counts(),
                Err(error) => comparison.add_failure(&master, error)?,
            }
        }
        Ok(comparison)
    }

    /// The serials of the masters with points or summaries, with the measurements of the points.
    fn masters(&self, scope: Scope<'_>) -> Result<BTreeMap<String, Vec<String>>, ReadError> {
        let mut masters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let times = scope.since..ALL_TIMES.end;
        for measurement in self.source.measurements(scope.bucket)? {
            if measurement == CATALOGUE {
                continue;
            }
            let is_points = measurement != SUMMARIES;
            if is_points && scope.measurement.is_some_and(|only| only != measurement) {
                continue;
            }
            for master in self.source.masters(scope.bucket, &measurement, &times)? {
                let measurements = masters.entry(master).or_default();
                measurements.extend(is_points.then(|| measurement.clone()));
            }
        }
        Ok(masters)
    }
}

/// The summaries of a master and some days.
struct Part<'a> {
    rollup: &'a Rollup<'a>,
    scope: Scope<'a>,
    master: &'a str,
    /// The measurements that have points of the master.
    measurements: &'a [String],
    run: Run,
}

impl<'a> Part<'a> {
    fn new(
        rollup: &'a Rollup<'a>,
        scope: Scope<'a>,
        master: &'a str,
        measurements: &'a [String],
        start: i64,
    ) -> Self {
        let days = start..start + MAX_DAYS;
        Self {
            rollup,
            scope,
            master,
            measurements,
            run: Run { days, new: None },
        }
    }

    /// Computes the summaries, and compares them with those of the database.
    fn read(&self) -> Result<Found, ReadError> {
        let mut expected = HashMap::new();
        let mut skipped = HashMap::new();
        let mut unwritable = 0;
        let mut next: Option<i64> = None;
        for measurement in self.measurements {
            let master = Master {
                bucket: self.scope.bucket,
                measurement,
                serial: self.master,
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
        let seconds = |day: i64| day.saturating_mul(DAY / SECOND);
        let days = &self.run.days;
        let query = PointQuery {
            bucket: self.scope.bucket,
            measurement: SUMMARIES,
            master: Some(self.master),
            times: seconds(days.start).max(ALL_TIMES.start)..seconds(days.end).min(ALL_TIMES.end),
            for_summaries: true,
        };
        let mut found = Found::default();
        retried(|| {
            found = Found::new(&expected, &skipped, self.scope.measurement, next);
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

    /// Writes what is missing or different, and that nothing is known in extra hours. Returns the number of summaries that
    /// were written.
    fn write(&self, found: &Found) -> Result<u64, RollupError> {
        let mut lines = Lines::new(self.rollup, self.scope.bucket);
        for series in found.series.iter().filter(|series| series.has_points) {
            let differing = series
                .hours
                .iter()
                .filter(|(_, expected)| !expected.is_written());
            lines.add(
                &series.tags,
                differing.map(|(hour, expected)| (hour, &expected.values)),
            );
        }
        lines.finish()
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
    current: Option<Current>,
    /// The time of the first point or summary after these days.
    next: Option<i64>,
    written: u64,
}

/// The summaries of a series, those that are expected and those that the database has.
struct Series {
    tags: Tags,
    /// Whether points of it were read. The others may be those of a campaign that has begun meanwhile, and are not written.
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

    /// Whether the database has a field that is not expected. Writing the others does not remove it.
    fn has_extra_field(&self) -> bool {
        let mut fields = self.values.iter().zip(self.found);
        fields.any(|(value, is_found)| is_found && !value.is_finite())
    }
}

impl Found {
    fn new(
        expected: &HashMap<Tags, Hours>,
        skipped: &HashMap<Tags, u64>,
        measurement: Option<&str>,
        next: Option<i64>,
    ) -> Self {
        let mut found = Self {
            skipped: skipped.clone(),
            measurement: measurement.map(str::to_owned),
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

    /// Whether nothing is to be written.
    fn is_written(&self) -> bool {
        let mut series = self.series.iter().filter(|series| series.has_points);
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
            } else if !summary.is_written() || summary.has_extra_field() {
                counts.extra += 1;
            }
        }
        counts
    }
}

impl PointVisitor for Found {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, place: Place) {
        self.current = None;
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
