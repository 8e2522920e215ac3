//! Hourly summaries of the points of a channel. See docs/specification.md, section 11.

use std::collections::BTreeMap;
use std::ops::Range;

/// Nanoseconds in a second. All times and lengths of this module are in nanoseconds, as InfluxDB stores them.
pub(super) const SECOND: i64 = 1_000_000_000;

/// Length of an hour.
pub(super) const HOUR: i64 = 3_600 * SECOND;

/// Length of a day.
pub(super) const DAY: i64 = 24 * HOUR;

/// Limits of the gap limit, unless it is set: 15 minutes and 2 hours.
const MIN_GAP: i64 = HOUR / 4;
const MAX_GAP: i64 = 2 * HOUR;

/// The longest interval between two points in which the value is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GapLimit {
    /// This many nanoseconds.
    Fixed(i64),
    /// Three times the lower median of the intervals that begin on the same day in UTC, at least 15 minutes and at most 2
    /// hours.
    OfDay,
}

/// A point of a channel: the time since 1970, and the value.
pub(super) type Point = (i64, f64);

/// The summary of an hour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hour {
    /// The number of points in the hour.
    pub count: u32,
    /// Their sum.
    sum: f64,
    /// The smallest value; infinite without a point.
    pub min: f64,
    /// The largest value; infinite without a point.
    pub max: f64,
    /// The part of the hour in which the value is known.
    covered: i64,
    /// The integral of the positive part in the unit of the channel times hours.
    pub energy_in: f64,
    /// The integral of the negative part, which is not negative.
    pub energy_out: f64,
}

impl Default for Hour {
    fn default() -> Self {
        Self {
            count: 0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            covered: 0,
            energy_in: 0.0,
            energy_out: 0.0,
        }
    }
}

impl Hour {
    /// The mean of the points; not a number without a point.
    pub(super) fn mean(&self) -> f64 {
        self.sum / f64::from(self.count)
    }

    /// The part of the hour in which the value is known, in whole seconds.
    pub(super) fn covered_s(&self) -> i64 {
        self.covered / SECOND
    }

    fn add_point(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Adds a part of an interval, in which the value runs linearly from `from` to `to`.
    #[expect(clippy::cast_precision_loss, reason = "a part is at most an hour long")]
    fn add_part(&mut self, length: i64, from: f64, to: f64) {
        self.covered += length;
        let hours = length as f64 / HOUR as f64;
        if from * to >= 0.0 {
            self.add_energy(f64::midpoint(from, to) * hours);
        } else {
            // The value is zero after this share of the part.
            let share = from / (from - to);
            self.add_energy(from / 2.0 * hours * share);
            self.add_energy(to / 2.0 * hours * (1.0 - share));
        }
    }

    fn add_energy(&mut self, energy: f64) {
        self.energy_in += energy.max(0.0);
        self.energy_out += (-energy).max(0.0);
    }
}

/// What is known between two neighbouring points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Knowledge {
    /// The value runs linearly from one point to the other.
    Known,
    /// Nothing is known, but the gap limit may be such that the value was known before points were added: a day's limit
    /// falls when short intervals are added to it.
    Possible,
    /// Nothing is known, whatever the gap limit of the day.
    Unknown,
}

/// The time between two neighbouring points of a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval {
    pub from: Point,
    pub to: Point,
    pub knowledge: Knowledge,
}

/// Finds the intervals between the points of a channel, which are added in the order of their times.
///
/// Only the points of one day are kept, because the gap limit depends on the day in which an interval begins.
pub(super) struct Intervals {
    gap_limit: GapLimit,
    /// The points of the current day.
    day: Vec<Point>,
}

impl Intervals {
    pub(super) fn new(gap_limit: GapLimit) -> Self {
        Self {
            gap_limit,
            day: Vec::new(),
        }
    }

    /// Adds a point. If it is the first one of a day, the intervals that begin on the day before are passed on.
    pub(super) fn add(&mut self, point: Point, each: impl FnMut(Interval)) {
        if let Some((time, _)) = self.day.first()
            && time.div_euclid(DAY) != point.0.div_euclid(DAY)
        {
            self.end_day(Some(point), each);
        }
        self.day.push(point);
    }

    /// Passes on the intervals that begin on the current day. The last one ends with the next point.
    pub(super) fn end_day(&mut self, next: Option<Point>, mut each: impl FnMut(Interval)) {
        let mut points = std::mem::take(&mut self.day);
        points.extend(next);
        let (limit, max) = match self.gap_limit {
            GapLimit::Fixed(limit) => (limit, limit),
            GapLimit::OfDay => (limit_of_day(&points), MAX_GAP),
        };
        for pair in points.windows(2) {
            let [from, to] = [pair[0], pair[1]];
            let length = to.0.saturating_sub(from.0);
            each(Interval {
                from,
                to,
                knowledge: if length <= limit {
                    Knowledge::Known
                } else if length <= max {
                    Knowledge::Possible
                } else {
                    Knowledge::Unknown
                },
            });
        }
        points.clear();
        self.day = points;
    }
}

/// Sums of the hours that begin within some times.
pub(super) struct HourlySums {
    times: Range<i64>,
    pub(super) hours: BTreeMap<i64, Hour>,
}

impl HourlySums {
    pub(super) fn new(times: Range<i64>) -> Self {
        Self {
            times,
            hours: BTreeMap::new(),
        }
    }

    /// The hour of a time, if it is summarized. It has a summary from now on.
    pub(super) fn hour(&mut self, time: i64) -> Option<&mut Hour> {
        let hour = start_of_hour(time);
        let is_summarized = self.times.contains(&hour);
        is_summarized.then(|| self.hours.entry(hour).or_default())
    }

    pub(super) fn add_point(&mut self, (time, value): Point) {
        if let Some(hour) = self.hour(time) {
            hour.add_point(value);
        }
    }

    pub(super) fn add_interval(&mut self, interval: Interval) {
        let Interval {
            from,
            to,
            knowledge,
        } = interval;
        // Hours that had a summary keep one, with zeros, so that new points never leave an old summary behind.
        if knowledge == Knowledge::Unknown {
            return;
        }
        let mut start = from.0.max(self.times.start);
        let stop = to.0.min(self.times.end);
        while start < stop {
            let hour = start_of_hour(start);
            let end = stop.min(hour.saturating_add(HOUR));
            let summary = self.hours.entry(hour).or_default();
            if knowledge == Knowledge::Known {
                let at = |time| value_at(time, from, to);
                summary.add_part(end - start, at(start), at(end));
            }
            start = end;
        }
    }
}

/// Summarizes the points of a channel, which are added in the order of their times.
///
/// Only the points of one day are kept. All points must be added that lie within the hours, in the day before them, or
/// less than a fixed gap limit before them.
pub(super) struct Summarizer {
    intervals: Intervals,
    sums: HourlySums,
}

impl Summarizer {
    /// The hours that are summarized are those that begin within these times.
    pub(super) fn new(times: Range<i64>, gap_limit: GapLimit) -> Self {
        Self {
            intervals: Intervals::new(gap_limit),
            sums: HourlySums::new(times),
        }
    }

    /// Whether no point was added.
    pub(super) fn is_empty(&self) -> bool {
        self.intervals.day.is_empty()
    }

    pub(super) fn add(&mut self, point: Point) {
        let sums = &mut self.sums;
        self.intervals
            .add(point, |interval| sums.add_interval(interval));
        sums.add_point(point);
    }

    /// Ends with the first point after the last one that was added, if there is one, and returns the summaries by the
    /// start of their hours.
    pub(super) fn finish(mut self, next: Option<Point>) -> BTreeMap<i64, Hour> {
        let sums = &mut self.sums;
        self.intervals
            .end_day(next, |interval| sums.add_interval(interval));
        self.sums.hours
    }
}

/// The start of the hour of a time.
pub(super) fn start_of_hour(time: i64) -> i64 {
    time.saturating_sub(time.rem_euclid(HOUR))
}

/// The value of an interval at a time within it.
#[expect(
    clippy::cast_precision_loss,
    reason = "the intervals of which this matters are short"
)]
pub(super) fn value_at(time: i64, (start, first): Point, (end, last): Point) -> f64 {
    if time == start {
        first
    } else if time == end {
        last
    } else {
        let share = time.saturating_sub(start) as f64 / end.saturating_sub(start) as f64;
        // Unlike `first + share * (last - first)`, this does not overflow.
        first * (1.0 - share) + last * share
    }
}

/// The gap limit of the intervals between the points of a day and the one after them.
fn limit_of_day(points: &[Point]) -> i64 {
    let lengths = points
        .windows(2)
        .map(|pair| pair[1].0.saturating_sub(pair[0].0));
    let mut lengths: Vec<i64> = lengths.collect();
    if lengths.is_empty() {
        return MIN_GAP;
    }
    let middle = (lengths.len() - 1) / 2;
    let (_, median, _) = lengths.select_nth_unstable(middle);
    median.saturating_mul(3).clamp(MIN_GAP, MAX_GAP)
}

#[cfg(test)]
#[expect(
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "the numbers of the tests are small"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Midnight, in seconds.
    const START: i64 = 20_000 * 86_400;

    /// Summarizes points with times in seconds. The hours of the result are in seconds too.
    fn summarize(points: &[Point], times: Range<i64>, limit: GapLimit) -> BTreeMap<i64, Hour> {
        let mut summarizer = Summarizer::new(times.start * SECOND..times.end * SECOND, limit);
        for (time, value) in points {
            summarizer.add((time * SECOND, *value));
        }
        let hours = summarizer.finish(None).into_iter();
        hours
            .map(|(hour, summary)| (hour / SECOND, summary))
            .collect()
    }

    fn all(points: &[Point], limit: GapLimit) -> BTreeMap<i64, Hour> {
        summarize(points, START - 86_400..START + 40 * 86_400, limit)
    }

    /// The gap limit of an interval as the specification says it, in seconds.
    fn limit_at(points: &[Point], time: i64) -> i64 {
        let day = |time: i64| time.div_euclid(86_400);
        let pairs = points.windows(2).filter(|pair| day(pair[0].0) == day(time));
        let mut lengths: Vec<i64> = pairs.map(|pair| pair[1].0 - pair[0].0).collect();
        lengths.sort_unstable();
        let median = lengths[lengths.len().div_ceil(2) - 1];
        (3 * median).clamp(900, 7_200)
    }

    /// The parts of the intervals that are known, second by second: by the hour, the seconds and the integrals of the
    /// positive and the negative part.
    fn integrated(points: &[Point], limit: impl Fn(i64) -> i64) -> BTreeMap<i64, (i64, f64, f64)> {
        let mut hours: BTreeMap<i64, (i64, f64, f64)> = BTreeMap::new();
        for pair in points.windows(2) {
            let [(start, first), (end, last)] = [pair[0], pair[1]];
            if end - start > limit(start) {
                continue;
            }
            let slope = (last - first) / (end - start) as f64;
            for second in start..end {
                let from = first + slope * (second - start) as f64;
                let to = from + slope;
                // The integral of the positive part of a line.
                let positive = |from: f64, to: f64| match (from > 0.0, to > 0.0) {
                    (true, true) => f64::midpoint(from, to),
                    (true, false) => from * from / (from - to) / 2.0,
                    (false, true) => to * to / (to - from) / 2.0,
                    (false, false) => 0.0,
                };
                let hour = hours.entry(second - second.rem_euclid(3_600)).or_default();
                hour.0 += 1;
                hour.1 += positive(from, to) / 3600.0;
                hour.2 += positive(-from, -to) / 3600.0;
            }
        }
        hours
    }

    /// Points with these steps between them.
    fn points_of(steps: &[(i64, f64)]) -> Vec<Point> {
        let mut time = START - 100;
        let step = |(step, value): &(i64, f64)| {
            time += step;
            (time, *value)
        };
        steps.iter().map(step).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn summaries_are_those_of_the_line_between_the_points(
            steps in prop::collection::vec((1_i64..9_000, -3_000.0..5_000.0_f64), 2..60),
            fixed in prop::option::of(60_i64..9_000),
        ) {
            let points = points_of(&steps);
            let limit = fixed.map_or(GapLimit::OfDay, |limit| GapLimit::Fixed(limit * SECOND));
            let found = all(&points, limit);
            let expected = integrated(&points, |time| {
                fixed.unwrap_or_else(|| limit_at(&points, time))
            });
            for (start, hour) in &found {
                let (covered_s, energy_in, energy_out) =
                    expected.get(start).copied().unwrap_or_default();
                prop_assert_eq!(hour.covered_s(), covered_s);
                prop_assert!((hour.energy_in - energy_in).abs() <= 1e-9 * (1.0 + energy_in));
                prop_assert!((hour.energy_out - energy_out).abs() <= 1e-9 * (1.0 + energy_out));
                let within = points.iter().filter(|(time, _)| (*start..start + 3_600).contains(time));
                let values: Vec<f64> = within.map(|(_, value)| *value).collect();
                prop_assert_eq!(hour.count as usize, values.len());
                if !values.is_empty() {
                    let mean = values.iter().sum::<f64>() / values.len() as f64;
                    prop_assert!((hour.mean() - mean).abs() < 1e-9 * (1.0 + mean.abs()));
                    prop_assert_eq!(hour.min, values.iter().copied().fold(f64::MAX, f64::min));
                    prop_assert_eq!(hour.max, values.iter().copied().fold(f64::MIN, f64::max));
                }
            }
            prop_assert!(expected.keys().all(|start| found.contains_key(start)));
            let total: f64 = found.values().map(|hour| hour.energy_in - hour.energy_out).sum();
            let size: f64 = expected.values().map(|(_, energy_in, energy_out)| energy_in + energy_out).sum();
            let net: f64 = expected.values().map(|(_, energy_in, energy_out)| energy_in - energy_out).sum();
            prop_assert!((total - net).abs() <= 1e-9 * size);
        }

        #[test]
        fn the_hours_of_some_days_are_those_of_all(
            steps in prop::collection::vec((1_i64..9_000, -3_000.0..5_000.0_f64), 2..60),
            day in 0_i64..6,
        ) {
            let points = points_of(&steps);
            let times = START + day * 86_400..START + (day + 2) * 86_400;
            let mut summarizer =
                Summarizer::new(times.start * SECOND..times.end * SECOND, GapLimit::OfDay);
            let first = times.start - 86_400;
            for (time, value) in points.iter().filter(|(time, _)| (first..times.end).contains(time)) {
                summarizer.add((time * SECOND, *value));
            }
            let next = points.iter().find(|(time, _)| *time >= times.end);
            let found = summarizer.finish(next.map(|(time, value)| (time * SECOND, *value)));
            let mut expected = all(&points, GapLimit::OfDay);
            expected.retain(|start, _| times.contains(start));
            let found: BTreeMap<_, _> =
                found.into_iter().map(|(hour, summary)| (hour / SECOND, summary)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn more_points_take_no_summary_away(
            steps in prop::collection::vec((1_i64..9_000, -3_000.0..5_000.0_f64, any::<bool>()), 2..60),
        ) {
            let steps_of: Vec<_> = steps.iter().map(|(step, value, _)| (*step, *value)).collect();
            let points = points_of(&steps_of);
            let chosen = points.iter().zip(&steps).filter(|(_, (.., is_chosen))| *is_chosen);
            let chosen: Vec<Point> = chosen.map(|(point, _)| *point).collect();
            let after = all(&points, GapLimit::OfDay);
            let before = all(&chosen, GapLimit::OfDay);
            prop_assert!(before.keys().all(|hour| after.contains_key(hour)));
        }
    }

    /// A point every ten minutes from a time on.
    fn every_ten_minutes(from: i64, count: i64) -> Vec<Point> {
        (0..count).map(|n| (from + n * 600, 100.0)).collect()
    }

    fn covered(points: &[Point], limit: GapLimit) -> i64 {
        all(points, limit).values().map(Hour::covered_s).sum()
    }

    #[test]
    fn a_gap_of_three_times_the_median_is_known_and_a_longer_one_is_not() {
        for (gap, known) in [(1_800, 1_800), (1_801, 0)] {
            let mut points = every_ten_minutes(START, 10);
            points.extend(every_ten_minutes(points[9].0 + gap, 10));
            let fixed = |limit| covered(&points, GapLimit::Fixed(limit * SECOND));
            assert_eq!(
                covered(&points, GapLimit::OfDay),
                18 * 600 + known,
                "{gap} s"
            );
            assert_eq!(fixed(gap - 1), 18 * 600, "{gap} s");
            assert_eq!(fixed(gap), 18 * 600 + gap, "{gap} s");
        }
    }

    #[test]
    fn the_gap_limit_is_at_least_15_minutes_and_at_most_2_hours() {
        for (interval, gap, is_known) in [
            (1, 900, true),
            (1, 901, false),
            (3_600, 7_200, true),
            (3_600, 7_201, false),
        ] {
            let mut points: Vec<Point> = (0..5).map(|n| (START + n * interval, 1.0)).collect();
            points.push((START + 4 * interval + gap, 1.0));
            let expected = 4 * interval + if is_known { gap } else { 0 };
            assert_eq!(
                covered(&points, GapLimit::OfDay),
                expected,
                "{interval} s, {gap} s"
            );
        }
    }

    #[test]
    fn the_median_of_an_even_number_of_intervals_is_the_lower_one() {
        // 400, 400, 1000, 1300: three times 400 is 1200.
        let points = [0, 400, 800, 1_800, 3_100].map(|time| (START + time, 1.0));
        assert_eq!(covered(&points, GapLimit::OfDay), 1_800);
    }

    #[test]
    fn an_interval_counts_for_the_day_in_which_it_begins() {
        let midnight = START + 86_400;
        let mut points = every_ten_minutes(midnight - 6 * 600, 6);
        points.extend((0..20).map(|n| (midnight + 1_200 + n, 1.0)));
        // The interval over midnight has 30 minutes. The limit of the next day is 15 minutes.
        assert_eq!(covered(&points, GapLimit::OfDay), 5 * 600 + 1_800 + 19);
    }

    #[test]
    fn a_value_of_zero_is_known_and_has_no_energy() {
        let points = [(START, 0.0), (START + 600, 0.0)];
        let hour = all(&points, GapLimit::OfDay)[&START];
        assert_eq!((hour.count, hour.covered_s()), (2, 600));
        assert_eq!((hour.energy_in, hour.energy_out), (0.0, 0.0));
        assert_eq!((hour.mean(), hour.min, hour.max), (0.0, 0.0, 0.0));
    }

    #[test]
    fn an_hour_without_a_point_may_be_covered() {
        let points = [(START, 10.0), (START + 7_200, 10.0)];
        let hour = all(&points, GapLimit::OfDay)[&(START + 3_600)];
        let found = (hour.count, hour.covered_s(), hour.energy_in);
        assert_eq!(found, (0, 3_600, 10.0));
        assert!(hour.mean().is_nan() && hour.min.is_infinite() && hour.max.is_infinite());
    }

    #[test]
    fn an_hour_that_is_not_known_any_more_has_a_summary_of_zeros() {
        let mut points = vec![(START, 10.0), (START + 7_200, 10.0)];
        points.extend((0..60).map(|n| (START + 36_000 + n * 60, 10.0)));
        let hours = all(&points, GapLimit::OfDay);
        let hour = hours[&(START + 3_600)];
        assert_eq!((hour.count, hour.covered_s(), hour.energy_in), (0, 0, 0.0));
        // Nothing was ever known in a longer gap.
        assert!(!hours.contains_key(&(START + 18_000)));
    }

    #[test]
    fn fractions_of_seconds_count() {
        let points = [(0, 3_600.0), (SECOND / 2, 3_600.0), (2 * SECOND, 3_600.0)];
        let mut summarizer = Summarizer::new(0..DAY, GapLimit::OfDay);
        for point in points {
            summarizer.add(point);
        }
        let hour = summarizer.finish(None)[&0];
        assert_eq!((hour.count, hour.covered_s(), hour.energy_in), (3, 2, 2.0));
    }

    #[test]
    fn the_first_and_the_last_time_that_a_database_has_are_no_exceptions() {
        let (first, last) = (-9_223_372_036 * SECOND, 9_223_372_035 * SECOND);
        for limit in [GapLimit::OfDay, GapLimit::Fixed(i64::MAX)] {
            let mut summarizer = Summarizer::new(0..DAY, limit);
            summarizer.add((first, 1.0));
            summarizer.add((last, 1.0));
            let hours = summarizer.finish(None).len();
            assert_eq!(hours, if limit == GapLimit::OfDay { 0 } else { 24 });
        }
    }
}
