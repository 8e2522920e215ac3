//! Explains points of a database that no file gives: what earlier programs did to the points of files.
//!
//! The first script took the day for the month where that was possible, and its series lacked a tag or had one more. Both old
//! programs read local times as UTC.

use super::expected::Expected;
use super::files::DAY;
use super::result::{Month, month_of};
use crate::sink::{Field, Place, PointVisitor, StoredPoint};
use crate::time_zone::TimeZone;
use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, NaiveTime};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What is wrong with a point that no file gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// Day and month are swapped. The point belongs to this day of its logger's clock.
    Swapped(NaiveDate),
    /// The local time was read as UTC.
    LocalTime,
    /// Another series has a point of the same channel and time.
    OtherTags,
    /// Its file is gone, or none of the above.
    Unexplained,
}

/// The numbers of points by the month in which the database has them and the cause.
pub(crate) type Causes = BTreeMap<(Month, Cause), u64>;

/// The times of the points of files that the points of a day may belong to.
pub(super) struct Candidates {
    /// Around the day itself.
    pub near: Range<i64>,
    /// Around the dates of the day, in UTC and in local time, with day and month swapped.
    pub swapped: Vec<Range<i64>>,
}

impl Candidates {
    /// The candidates for a day, in days since 1970.
    pub(super) fn of(day: i64, zone: &TimeZone) -> Self {
        // A difference between two time zones is less than two days.
        let around = |day: i64| (day - 2) * DAY..(day + 3) * DAY;
        let (start, end) = (day * DAY, (day + 1) * DAY - 1);
        let local = |time| time + i64::from(zone.offset_at(time));
        let dates: BTreeSet<NaiveDate> = [start, local(start), local(end)]
            .into_iter()
            .filter_map(|wall| swapped_date(DateTime::from_timestamp(wall, 0)?.date_naive()))
            .collect();
        let days = dates.into_iter().map(|date| {
            let midnight = date.and_time(NaiveTime::MIN).and_utc();
            midnight.timestamp().div_euclid(DAY)
        });
        Self {
            near: around(day),
            swapped: days.map(around).collect(),
        }
    }
}

/// The date with day and month swapped, if that is another date.
fn swapped_date(date: NaiveDate) -> Option<NaiveDate> {
    (date.day() != date.month())
        .then(|| NaiveDate::from_ymd_opt(date.year(), date.day(), date.month()))
        .flatten()
}

/// Finds the causes of the points that no file gives, and passes those without one on.
pub(super) struct Explainer<'a> {
    /// The points of files around the times of the points, and around the same times with day and month swapped.
    near: &'a ByChannel<'a>,
    swapped: &'a [ByChannel<'a>],
    zone: &'a TimeZone,
    /// Takes the points without a cause.
    unexplained: &'a mut dyn PointVisitor,
    /// Whether the series was passed on.
    is_passed_on: bool,
    series: Series,
    pub(super) causes: Causes,
}

#[derive(Default)]
struct Series {
    tags: Vec<(String, String)>,
    field: (String, String),
    /// The position in the points of files; none if there is no such series.
    id: Option<usize>,
    /// Whether the field is that of a measurement. No file gives any other.
    is_value: bool,
    /// The series of files with the same channel.
    near: Vec<usize>,
    swapped: Vec<Vec<usize>>,
}

/// The points of files, by the ids of the channels.
pub(super) struct ByChannel<'a> {
    expected: &'a Expected,
    channels: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> ByChannel<'a> {
    pub(super) fn new(expected: &'a Expected) -> Self {
        let mut channels: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (id, tags) in expected.series_tags() {
            if let Some((_, channel)) = tags.iter().find(|(key, _)| *key == "channel_id") {
                channels.entry(channel).or_default().push(id);
            }
        }
        Self { expected, channels }
    }

    fn of(&self, channel: &str) -> Vec<usize> {
        self.channels.get(channel).cloned().unwrap_or_default()
    }

    /// Whether one of the series has a point at this time, with this value if one is given.
    fn has(&self, series: &[usize], time: i64, value: Option<f64>) -> bool {
        series.iter().any(|id| {
            let found = self.expected.value_at(*id, time);
            found.is_some_and(|found| value.is_none_or(|value| value.to_bits() == found.to_bits()))
        })
    }
}

impl<'a> Explainer<'a> {
    pub(super) fn new(
        near: &'a ByChannel<'a>,
        swapped: &'a [ByChannel<'a>],
        zone: &'a TimeZone,
        unexplained: &'a mut dyn PointVisitor,
    ) -> Self {
        Self {
            near,
            swapped,
            zone,
            unexplained,
            is_passed_on: false,
            series: Series::default(),
            causes: Causes::new(),
        }
    }

    fn cause(&self, time: i64, value: f64) -> Cause {
        if self.near.has(&self.series.near, time, None) {
            return Cause::OtherTags;
        }
        let Some(utc) = DateTime::from_timestamp(time, 0).map(|time| time.naive_utc()) else {
            return Cause::Unexplained;
        };
        let has = |time| self.near.has(&self.series.near, time, Some(value));
        if self.readings(utc).any(has) {
            return Cause::LocalTime;
        }
        let local = DateTime::from_timestamp(time + i64::from(self.zone.offset_at(time)), 0);
        let local = local.map(|time| time.naive_utc());
        for wall in [local, Some(utc)].into_iter().flatten() {
            let Some(date) = swapped_date(wall.date()) else {
                continue;
            };
            let has = |time| {
                let mut candidates = self.swapped.iter().zip(&self.series.swapped);
                candidates.any(|(points, series)| points.has(series, time, Some(value)))
            };
            if self.readings(date.and_time(wall.time())).any(has) {
                return Cause::Swapped(date);
            }
        }
        Cause::Unexplained
    }

    /// The instants that a wall time may mean: as local time, and as UTC.
    fn readings(&self, wall: NaiveDateTime) -> impl Iterator<Item = i64> {
        let (first, second) = self.zone.instants(wall);
        [Some(first), second, Some(wall.and_utc().timestamp())]
            .into_iter()
            .flatten()
    }
}

impl PointVisitor for Explainer<'_> {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, _: Place) {
        let channel = tags.iter().find(|(key, _)| key == "channel_id");
        let channel = channel.map_or("", |(_, channel)| channel.as_str());
        self.is_passed_on = false;
        self.series = Series {
            tags: tags.to_vec(),
            field: (field.key.to_owned(), field.kind.to_owned()),
            id: self.near.expected.id_of(tags).filter(|_| field.is_value()),
            is_value: field.is_value(),
            near: self.near.of(channel),
            swapped: self
                .swapped
                .iter()
                .map(|points| points.of(channel))
                .collect(),
        };
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        let expected = &self.near.expected;
        let is_extra = |id| expected.value_at(id, point.time).is_none();
        if point.nanos == 0 && !self.series.id.is_none_or(is_extra) {
            return;
        }
        let value: Option<f64> = point.value.parse().ok();
        let cause = match value {
            Some(value) if self.series.is_value && point.nanos == 0 => {
                self.cause(point.time, value)
            }
            _ => Cause::Unexplained,
        };
        *self
            .causes
            .entry((month_of(point.time), cause))
            .or_default() += 1;
        if cause == Cause::Unexplained {
            if !self.is_passed_on {
                let (key, kind) = &self.series.field;
                let tags = &self.series.tags;
                self.unexplained
                    .series(tags, Field { key, kind }, Place::Within);
                self.is_passed_on = true;
            }
            self.unexplained.point(point);
        }
    }
}
