//! Hourly summaries of a sum of channels. See docs/specification.md, section 11.

use super::hours::{
    GapLimit, Hour, HourlySums, Interval, Intervals, Knowledge, Point, start_of_hour, value_at,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A channel that is added, or several that follow one another.
#[derive(Debug)]
pub(super) struct Source {
    /// What its values are multiplied by.
    pub factor: f64,
    /// The points in the order of their times, as a summary of the channel needs them.
    pub points: Vec<Point>,
    /// The first point after them.
    pub next: Option<Point>,
}

/// The summaries of a sum.
#[derive(Debug, Default)]
pub(super) struct Summed {
    /// By the start of their hours.
    pub hours: BTreeMap<i64, Hour>,
    /// The hours without a point that may have had one before points were added.
    pub lost: BTreeSet<i64>,
}

/// Summarizes the sum of sources in the hours that begin within some times.
///
/// The sum is known wherever all sources are: at their points, and in the intervals that are known by their own gap limits.
/// Its points are at all times at which a source has one.
pub(super) fn sum(sources: Vec<Source>, times: &Range<i64>, gap_limit: GapLimit) -> Summed {
    let mut sums = HourlySums::new(times.clone());
    let mut lost = BTreeSet::new();
    let sources = sources.into_iter();
    let mut lines: Vec<Line> = sources.map(|source| Line::new(source, gap_limit)).collect();
    let points = lines.iter().flat_map(|line| &line.points);
    let mut instants: Vec<i64> = points.map(|(time, _)| *time).collect();
    instants.sort_unstable();
    instants.dedup();
    for (n, &time) in instants.iter().enumerate() {
        if time >= times.end {
            break;
        }
        let next = instants.get(n + 1).copied();
        for line in &mut lines {
            line.advance(time);
        }
        if next.is_some_and(|next| next <= times.start) {
            continue;
        }
        let at = added(&lines, |line| line.at(time));
        match at.knowledge {
            Knowledge::Known => sums.add_point((time, at.value)),
            Knowledge::Possible => {
                if sums.hour(time).is_some() {
                    lost.insert(start_of_hour(time));
                }
            }
            Knowledge::Unknown => {}
        }
        let Some(next) = next else { break };
        let from = added(&lines, |line| line.between(time));
        let to = added(&lines, |line| line.between(next));
        sums.add_interval(Interval {
            from: (time, from.value),
            to: (next, to.value),
            knowledge: from.knowledge,
        });
    }
    let hours = sums.hours;
    lost.retain(|hour| hours.get(hour).is_some_and(|hour| hour.count == 0));
    Summed { hours, lost }
}

/// A value, and whether it is known.
#[derive(Debug, Clone, Copy)]
struct Value {
    knowledge: Knowledge,
    value: f64,
}

impl Value {
    const UNKNOWN: Self = Self {
        knowledge: Knowledge::Unknown,
        value: 0.0,
    };
}

/// The sum of the values of all lines.
fn added(lines: &[Line], value: impl Fn(&Line) -> Value) -> Value {
    let mut sum = Value {
        knowledge: Knowledge::Known,
        value: 0.0,
    };
    for line in lines {
        let of_line = value(line);
        sum.knowledge = sum.knowledge.max(of_line.knowledge);
        sum.value += line.factor * of_line.value;
    }
    sum
}

/// A source with what is known between its points.
struct Line {
    factor: f64,
    points: Vec<Point>,
    /// Between each point and the next one.
    knowledge: Vec<Knowledge>,
    /// The number of points until the current time.
    passed: usize,
}

impl Line {
    fn new(source: Source, gap_limit: GapLimit) -> Self {
        let Source {
            factor,
            mut points,
            next,
        } = source;
        let mut knowledge = Vec::with_capacity(points.len());
        let mut intervals = Intervals::new(gap_limit);
        for point in &points {
            intervals.add(*point, |interval| knowledge.push(interval.knowledge));
        }
        intervals.end_day(next, |interval| knowledge.push(interval.knowledge));
        // Without a point before it, no interval ends with the next one.
        points.extend(next.filter(|_| !points.is_empty()));
        Self {
            factor,
            points,
            knowledge,
            passed: 0,
        }
    }

    /// Moves on to a time.
    fn advance(&mut self, time: i64) {
        let rest = &self.points[self.passed..];
        let passed = rest.iter().take_while(|(other, _)| *other <= time);
        self.passed += passed.count();
    }

    /// The value at the current time.
    fn at(&self, time: i64) -> Value {
        match self.points[..self.passed].last() {
            Some((last, value)) if *last == time => Value {
                knowledge: Knowledge::Known,
                value: *value,
            },
            _ => self.between(time),
        }
    }

    /// The value at a time of the interval that the current time is in or begins.
    fn between(&self, time: i64) -> Value {
        let interval = self.passed.checked_sub(1).and_then(|before| {
            let knowledge = self.knowledge.get(before)?;
            Some((
                *knowledge,
                self.points[before],
                self.points.get(self.passed)?,
            ))
        });
        let Some((knowledge, from, to)) = interval else {
            return Value::UNKNOWN;
        };
        Value {
            knowledge,
            value: if knowledge == Knowledge::Known {
                value_at(time, from, *to)
            } else {
                0.0
            },
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::cast_precision_loss,
    reason = "the numbers of the tests are small"
)]
mod tests {
    use super::super::hours::{DAY, SECOND, Summarizer};
    use super::*;
    use proptest::prelude::*;

    /// Midnight, in seconds.
    const START: i64 = 20_000 * 86_400;

    /// A factor, and points with times in seconds.
    type Term = (i32, Vec<Point>);

    /// The first hours of the tests, and days.
    fn days(from: i64, until: i64) -> Range<i64> {
        START * SECOND + from * DAY..START * SECOND + until * DAY
    }

    fn nanos((time, value): &Point) -> Point {
        (time * SECOND, *value)
    }

    /// Sums the terms in some hours, with the points that are needed for these.
    fn summed(terms: &[Term], times: &Range<i64>, limit: GapLimit) -> Summed {
        let before = match limit {
            GapLimit::OfDay => DAY,
            GapLimit::Fixed(limit) => limit,
        };
        let sources = terms.iter().map(|(factor, points)| {
            let mut points = points.iter().map(nanos);
            let of_times = times.start - before..times.end;
            let needed = points
                .by_ref()
                .skip_while(|(time, _)| *time < of_times.start);
            let mut needed = needed.peekable();
            let mut within = Vec::new();
            while let Some(point) = needed.next_if(|(time, _)| *time < of_times.end) {
                within.push(point);
            }
            Source {
                factor: f64::from(*factor),
                points: within,
                next: needed.next(),
            }
        });
        sum(sources.collect(), times, limit)
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

    /// The values at the begin and the end of each second in which a source is known.
    fn known_seconds(points: &[Point], fixed: Option<i64>) -> BTreeMap<i64, (f64, f64)> {
        let mut seconds = BTreeMap::new();
        for pair in points.windows(2) {
            let [(start, first), (end, last)] = [pair[0], pair[1]];
            if end - start > fixed.unwrap_or_else(|| limit_at(points, start)) {
                continue;
            }
            let slope = (last - first) / (end - start) as f64;
            for second in start..end {
                let from = first + slope * (second - start) as f64;
                seconds.insert(second, (from, from + slope));
            }
        }
        seconds
    }

    /// What is expected in an hour.
    #[derive(Debug, Default)]
    struct Expected {
        values: Vec<f64>,
        covered_s: i64,
        energy_in: f64,
        energy_out: f64,
    }

    /// The sum, second by second, by the hour.
    fn integrated(terms: &[Term], fixed: Option<i64>) -> BTreeMap<i64, Expected> {
        let seconds: Vec<_> = terms
            .iter()
            .map(|(_, points)| known_seconds(points, fixed))
            .collect();
        let mut hours: BTreeMap<i64, Expected> = BTreeMap::new();
        let hour = |time: i64| time - time.rem_euclid(3_600);
        for second in seconds[0].keys() {
            let (mut from, mut to) = (0.0, 0.0);
            let mut is_known = true;
            for ((factor, _), seconds) in terms.iter().zip(&seconds) {
                let Some((first, last)) = seconds.get(second) else {
                    is_known = false;
                    break;
                };
                from += f64::from(*factor) * first;
                to += f64::from(*factor) * last;
            }
            if !is_known {
                continue;
            }
            // The integral of the positive part of a line.
            let positive = |from: f64, to: f64| match (from > 0.0, to > 0.0) {
                (true, true) => f64::midpoint(from, to),
                (true, false) => from * from / (from - to) / 2.0,
                (false, true) => to * to / (to - from) / 2.0,
                (false, false) => 0.0,
            };
            let expected = hours.entry(hour(*second)).or_default();
            expected.covered_s += 1;
            expected.energy_in += positive(from, to) / 3_600.0;
            expected.energy_out += positive(-from, -to) / 3_600.0;
        }
        let times: BTreeSet<i64> = terms
            .iter()
            .flat_map(|(_, points)| points.iter().map(|(time, _)| *time))
            .collect();
        for time in times {
            let values = terms
                .iter()
                .zip(&seconds)
                .map(|((factor, points), seconds)| {
                    let point = points.iter().find(|(other, _)| *other == time);
                    let value = point.map(|(_, value)| *value);
                    let value = value.or_else(|| Some(seconds.get(&time)?.0))?;
                    Some(f64::from(*factor) * value)
                });
            if let Some(values) = values.collect::<Option<Vec<f64>>>() {
                let expected = hours.entry(hour(time)).or_default();
                expected.values.push(values.iter().sum());
            }
        }
        hours
    }

    /// Points with these steps between them, beginning somewhere in the first hours.
    fn term() -> impl Strategy<Value = Term> {
        let steps = prop::collection::vec((1_i64..9_000, -3_000.0..5_000.0_f64), 2..40);
        let factor = prop::sample::select(vec![1, 1, -1, 2, -3]);
        (factor, 0_i64..20_000, steps).prop_map(|(factor, first, steps)| {
            let mut time = START - 100 + first;
            let points = steps.into_iter().map(|(step, value)| {
                time += step;
                (time, value)
            });
            (factor, points.collect())
        })
    }

    /// Times of which many sources have the same.
    fn regular_term() -> impl Strategy<Value = Term> {
        let step = prop::sample::select(vec![300_i64, 600, 900, 3_600]);
        let rows = prop::collection::vec(prop::option::weighted(0.9, -3_000.0..5_000.0_f64), 2..60);
        let factor = prop::sample::select(vec![1, -1, 2]);
        (factor, step, rows).prop_map(|(factor, step, rows)| {
            let times = (0..).map(|n| START + n * step);
            let points = times
                .zip(rows)
                .filter_map(|(time, value)| Some((time, value?)));
            (factor, points.collect())
        })
    }

    fn terms() -> impl Strategy<Value = Vec<Term>> {
        prop_oneof![
            prop::collection::vec(term(), 1..5),
            prop::collection::vec(regular_term(), 1..5),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_summaries_of_a_sum_are_those_of_the_sum_of_the_lines(
            terms in terms(),
            fixed in prop::option::of(60_i64..9_000),
        ) {
            let limit = fixed.map_or(GapLimit::OfDay, |limit| GapLimit::Fixed(limit * SECOND));
            let found = summed(&terms, &days(-1, 40), limit).hours;
            let expected = integrated(&terms, fixed);
            let size: f64 = terms.iter().map(|(factor, _)| f64::from(factor.abs()) * 5_000.0).sum();
            for (start, hour) in &found {
                let none = Expected::default();
                let expected = expected.get(&(start / SECOND)).unwrap_or(&none);
                prop_assert_eq!(hour.covered_s(), expected.covered_s);
                prop_assert!((hour.energy_in - expected.energy_in).abs() <= 1e-9 * size);
                prop_assert!((hour.energy_out - expected.energy_out).abs() <= 1e-9 * size);
                let values = &expected.values;
                prop_assert_eq!(hour.count as usize, values.len());
                if !values.is_empty() {
                    let mean = values.iter().sum::<f64>() / values.len() as f64;
                    prop_assert!((hour.mean() - mean).abs() <= 1e-9 * size);
                    let fold = |start, pick: fn(f64, f64) -> f64| values.iter().copied().fold(start, pick);
                    prop_assert!((hour.min - fold(f64::INFINITY, f64::min)).abs() <= 1e-9 * size);
                    prop_assert!((hour.max - fold(f64::NEG_INFINITY, f64::max)).abs() <= 1e-9 * size);
                }
            }
            prop_assert!(expected.keys().all(|start| found.contains_key(&(start * SECOND))));
        }

        #[test]
        fn a_source_alone_is_summarized_like_a_channel(
            (_, points) in term(),
            fixed in prop::option::of(60_i64..9_000),
        ) {
            let limit = fixed.map_or(GapLimit::OfDay, |limit| GapLimit::Fixed(limit * SECOND));
            let mut summarizer = Summarizer::new(days(-1, 40), limit);
            for point in &points {
                summarizer.add(nanos(point));
            }
            let expected = summarizer.finish(None);
            prop_assert_eq!(summed(&[(1, points)], &days(-1, 40), limit).hours, expected);
        }

        #[test]
        fn the_hours_of_a_sum_in_some_days_are_those_of_all(terms in terms(), day in 0_i64..4) {
            let found = summed(&terms, &days(day, day + 2), GapLimit::OfDay).hours;
            let mut expected = summed(&terms, &days(-1, 40), GapLimit::OfDay).hours;
            expected.retain(|start, _| days(day, day + 2).contains(start));
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn more_points_take_no_summary_of_a_sum_away(
            terms in terms(),
            chosen in prop::collection::vec(any::<bool>(), 60),
        ) {
            let fewer = terms.iter().map(|(factor, points)| {
                let points = points.iter().zip(&chosen).filter(|(_, is_chosen)| **is_chosen);
                (*factor, points.map(|(point, _)| *point).collect())
            });
            let fewer: Vec<Term> = fewer.collect();
            let before = summed(&fewer, &days(-1, 40), GapLimit::OfDay);
            let after = summed(&terms, &days(-1, 40), GapLimit::OfDay);
            for (start, hour) in &before.hours {
                let later = after.hours.get(start);
                prop_assert!(later.is_some());
                let is_lost = hour.count > 0 && later.is_some_and(|later| later.count == 0);
                // It is known that the values of the points have to be removed.
                prop_assert!(!is_lost || after.lost.contains(start));
            }
        }
    }

    #[test]
    fn a_sum_is_known_where_all_sources_are() {
        let every = |step: i64, from: i64, until: i64, value: f64| -> Vec<Point> {
            let times = (from..=until).filter(|second| second % step == 0);
            times.map(|time| (START + time, value)).collect()
        };
        // The second one begins at 00:20 and ends at 02:30, the third one has a gap of half an hour and a minute from 01:00 on.
        let mut third = every(60, 0, 3_600, 7.0);
        third.extend(every(60, 5_460, 10_800, 7.0));
        let terms = [
            (1, every(600, 0, 10_800, 100.0)),
            (-2, every(300, 1_200, 9_000, 30.0)),
            (1, third),
        ];
        let hours = summed(&terms, &days(0, 1), GapLimit::OfDay).hours;
        let found: Vec<_> = hours
            .iter()
            .map(|(start, hour)| {
                let energies = (hour.energy_in * 3_600.0).round();
                ((start / SECOND - START) / 3_600, hour.covered_s(), energies)
            })
            .collect();
        assert_eq!(
            found,
            [
                (0, 2_400, 2_400.0 * 47.0),
                (1, 1_740, 1_740.0 * 47.0),
                (2, 1_800, 1_800.0 * 47.0)
            ]
        );
        // From 00:20 to 00:59 each minute; at 01:00 and from 01:31 to 01:59; from 02:00 to 02:30.
        let counts: Vec<_> = hours.values().map(|hour| hour.count).collect();
        assert_eq!(counts, [40, 30, 31]);
    }

    #[test]
    fn a_sum_of_nothing_has_no_summaries() {
        let none = |terms: &[Term]| summed(terms, &days(0, 1), GapLimit::OfDay).hours.is_empty();
        assert!(none(&[]));
        assert!(none(&[(1, vec![(START, 1.0)]), (1, vec![])]));
        assert!(none(&[
            (1, vec![(START, 1.0)]),
            (1, vec![(START + 1, 1.0)])
        ]));
        // Points at the same time are known, as that of a channel alone is.
        let both = summed(
            &[(1, vec![(START, 1.0)]), (1, vec![(START, 2.0)])],
            &days(0, 1),
            GapLimit::OfDay,
        );
        let hour = both.hours[&(START * SECOND)];
        assert_eq!((hour.count, hour.covered_s()), (1, 0));
        assert!((hour.mean() - 3.0).abs() < f64::EPSILON);
    }
}
