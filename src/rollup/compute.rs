//! Computes the summaries of series from their points, as a server sends them.

use super::hours::{DAY, GapLimit, Hour, Point, SECOND, Summarizer};
use super::virtual_channels::is_virtual;
use super::{Master, day_of};
use crate::sink::{ALL_TIMES, Field, Place, PointQuery, PointVisitor, StoredPoint};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// The tags of a series in the order of their keys.
pub(super) type Tags = Vec<(String, String)>;

/// The summaries of a series by the start of their hours, in nanoseconds since 1970.
pub(super) type Hours = BTreeMap<i64, Values>;

/// The values of a summary in the order of [`FIELDS`]. Not a finite number for a field that it does not have.
pub(super) type Values = [f64; FIELDS.len()];

/// A field of a summary.
pub(super) struct SummaryField {
    pub key: &'static str,
    pub is_integer: bool,
}

/// The fields of a summary.
pub(super) const FIELDS: [SummaryField; 7] = {
    const fn field(key: &'static str, is_integer: bool) -> SummaryField {
        SummaryField { key, is_integer }
    }
    [
        field("count", true),
        field("covered_s", true),
        field("energy_in_wh", false),
        field("energy_out_wh", false),
        field("max", false),
        field("mean", false),
        field("min", false),
    ]
};

/// The values of the fields of an hour.
#[expect(clippy::cast_precision_loss, reason = "an hour has 3600 seconds")]
pub(super) fn values(hour: &Hour, watts: Option<f64>) -> Values {
    let watts = watts.unwrap_or(f64::NAN);
    [
        hour.count.into(),
        hour.covered_s() as f64,
        hour.energy_in * watts,
        hour.energy_out * watts,
        hour.max,
        hour.mean(),
        hour.min,
    ]
}

/// The watts of a unit, if it is one of power.
pub(super) fn watts(unit: &str) -> Option<f64> {
    match unit {
        "W" => Some(1.0),
        "kW" => Some(1e3),
        "MW" => Some(1e6),
        _ => None,
    }
}

/// The watts of the unit of a series, if it is one of power.
fn watts_of(tags: &[(String, String)]) -> Option<f64> {
    let unit = tags.iter().find(|(key, _)| key == "unit");
    unit.and_then(|(_, unit)| watts(unit))
}

/// The values of an hour of a series without a point, in which nothing is known.
pub(super) fn unknown(tags: &[(String, String)]) -> Values {
    values(&Hour::default(), watts_of(tags))
}

/// Days that are summarized together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// In days since 1970.
    pub days: Range<i64>,
    /// The first day with new points, if these days are summarized because of them.
    pub new: Option<i64>,
}

/// Joins days, with `margin` days before and after each, to runs. The new points of a run are within `length` days.
pub(super) fn runs(days: &BTreeSet<i64>, margin: i64, length: i64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &day in days {
        let (start, end) = (day - margin, day + margin + 1);
        match runs.last_mut() {
            Some(last)
                if start <= last.days.end && last.new.is_some_and(|new| day - new < length) =>
            {
                last.days.end = end;
            }
            _ => runs.push(Run {
                days: start..end,
                new: Some(day),
            }),
        }
    }
    runs
}

/// What a run gives besides the summaries.
#[derive(Debug, Default)]
pub(super) struct Computed {
    /// The time of the first point after those of the run, in seconds since 1970.
    pub next: Option<i64>,
    /// The days before the run in which an interval begins that ends with a new point.
    pub earlier: BTreeSet<i64>,
    /// The campaigns of points that belong to other measurements.
    pub other_campaigns: BTreeSet<String>,
    /// The number of summaries that cannot be written because of their tags.
    pub unwritable: u64,
    /// Whether there are points with the tags of virtual channels.
    pub has_virtual: bool,
}

/// The times in seconds since 1970 of the points that the summaries of some days depend on: those of all intervals that
/// reach into the days, and all that decide the gap limits of these.
pub(super) fn times_of(days: &Range<i64>, gap_limit: GapLimit) -> Range<i64> {
    let seconds = |day: i64| day.saturating_mul(DAY / SECOND);
    let before = match gap_limit {
        GapLimit::Fixed(limit) => limit / SECOND + 1,
        // An interval that is known has two hours at most, and its gap limit depends on the day in which it begins.
        GapLimit::OfDay => DAY / SECOND,
    };
    let start = seconds(days.start).saturating_sub(before);
    start.max(ALL_TIMES.start)..seconds(days.end).min(ALL_TIMES.end)
}

/// Whether line protocol can have these tags: a line ends with a line break, and the server takes a backslash at the end of a
/// key or a value for a part of what follows.
pub(super) fn is_writable(tags: &[(String, String)]) -> bool {
    let mut texts = tags.iter().flat_map(|(key, value)| [key, value]);
    texts.all(|text| !text.contains('\n') && !text.ends_with('\\'))
}

/// The value of the tag `campaign`.
pub(super) fn campaign_of(tags: &[(String, String)]) -> Option<&str> {
    let campaign = tags.iter().find(|(key, _)| key == "campaign");
    campaign.map(|(_, campaign)| campaign.as_str())
}

/// Computes the summaries of series as their points come, in any order of the series.
pub(super) struct Summaries<'a> {
    measurement: &'a str,
    run: &'a Run,
    gap_limit: GapLimit,
    series: HashMap<Tags, Series>,
    /// The series whose points come, and where they are.
    current: Option<(Tags, Series, Place)>,
    /// The time of the first point after those of the run.
    next: Option<i64>,
    other_campaigns: BTreeSet<String>,
    has_virtual: bool,
}

/// A series, as far as its points have come.
struct Series {
    summarizer: Summarizer,
    /// The last point among those that are read, before the new ones.
    last: Option<Point>,
    /// The last point before those that are read.
    before: Option<Point>,
    /// The first point after the run.
    after: Option<Point>,
}

impl<'a> Summaries<'a> {
    pub(super) fn new(measurement: &'a str, run: &'a Run, gap_limit: GapLimit) -> Self {
        Self {
            measurement,
            run,
            gap_limit,
            series: HashMap::new(),
            current: None,
            next: None,
            other_campaigns: BTreeSet::new(),
            has_virtual: false,
        }
    }

    /// The query for the points that are needed.
    pub(super) fn query<'m>(&self, master: Master<'m>) -> PointQuery<'m> {
        PointQuery {
            bucket: master.bucket,
            measurement: master.measurement,
            master: Some(master.serial),
            times: times_of(&self.run.days, self.gap_limit),
            for_summaries: true,
        }
    }

    /// Passes the summaries of all series on.
    pub(super) fn finish(mut self, mut each: impl FnMut(Tags, Hours)) -> Computed {
        self.end_series();
        let mut computed = Computed {
            next: self.next,
            earlier: BTreeSet::new(),
            other_campaigns: self.other_campaigns,
            unwritable: 0,
            has_virtual: self.has_virtual,
        };
        for (tags, series) in self.series {
            let watts = watts_of(&tags);
            let has_points = !series.summarizer.is_empty();
            let hours = series.summarizer.finish(series.after).into_iter();
            if is_writable(&tags) {
                let hours = hours.map(|(hour, summary)| (hour, values(&summary, watts)));
                each(tags, hours.collect());
            } else {
                computed.unwritable += hours.len() as u64;
            }
            if let (Some(_), GapLimit::OfDay, true) = (self.run.new, self.gap_limit, has_points)
                && let Some((time, _)) = series.last.or(series.before)
            {
                let day = time.div_euclid(DAY);
                if day < self.run.days.start {
                    computed.earlier.insert(day);
                }
            }
        }
        computed
    }

    fn end_series(&mut self) {
        if let Some((tags, series, _)) = self.current.take() {
            self.series.insert(tags, series);
        }
    }
}

impl PointVisitor for Summaries<'_> {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, place: Place) {
        self.end_series();
        if !field.is_value() {
            return;
        }
        // A summary does not say which measurement it is of: that of a copied point would take the place of the right one.
        if let Some(campaign) = campaign_of(tags)
            && campaign != self.measurement
        {
            self.other_campaigns.insert(campaign.to_owned());
            return;
        }
        // Their summaries would be taken for those of a channel of the catalogue.
        if is_virtual(tags) {
            self.has_virtual = true;
            return;
        }
        let (tags, series) = self.series.remove_entry(tags).unwrap_or_else(|| {
            let nanos = |day: i64| day.saturating_mul(DAY);
            let times = nanos(self.run.days.start)..nanos(self.run.days.end);
            let series = Series {
                summarizer: Summarizer::new(times, self.gap_limit),
                last: None,
                before: None,
                after: None,
            };
            (tags.to_vec(), series)
        });
        self.current = Some((tags, series, place));
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        let Some((_, series, place)) = &mut self.current else {
            return;
        };
        let Ok(value) = point.value.parse() else {
            return;
        };
        let of_series = (point.time * SECOND + i64::from(point.nanos), value);
        match place {
            Place::Before => series.before = Some(of_series),
            Place::After => {
                series.after = Some(of_series);
                self.next = Some(self.next.unwrap_or(point.time).min(point.time));
            }
            Place::Within => {
                series.summarizer.add(of_series);
                let new = self.run.new;
                if new.is_some_and(|new| day_of(point.time) < new) {
                    series.last = Some(of_series);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_that_line_protocol_cannot_have_are_found() {
        let is_writable = |key: &str, value: &str| {
            super::is_writable(&[("a".to_owned(), "b".to_owned()), (key.into(), value.into())])
        };
        assert!(is_writable("c d", "\\e, f=\"g\"\r\t"));
        assert!(!is_writable("c", "d\ne") && !is_writable("c\nd", "e"));
        assert!(!is_writable("c", "d\\") && !is_writable("c\\", "d"));
    }

    #[test]
    fn days_with_their_neighbours_are_joined() {
        let runs_of = |days: &[i64], margin| runs(&days.iter().copied().collect(), margin, 30);
        let run = |days, first| Run {
            days,
            new: Some(first),
        };
        assert_eq!(runs_of(&[5], 1), [run(4..7, 5)]);
        assert_eq!(runs_of(&[5, 6, 9], 1), [run(4..11, 5)]);
        assert_eq!(runs_of(&[5, 9], 1), [run(4..7, 5), run(8..11, 9)]);
        assert_eq!(runs_of(&[5, 9], 3), [run(2..13, 5)]);
        let year = (0..365).collect();
        let runs_of_year = runs(&year, 1, 30);
        assert_eq!(runs_of_year.len(), 13);
        assert_eq!(runs_of_year[0], run(-1..31, 0));
        assert_eq!(runs_of_year[1], run(29..61, 30));
        assert_eq!(runs_of_year[12], run(359..366, 360));
        assert_eq!(runs(&year, 1, 1).len(), 365);
        // A run is longer than the margins, whatever they are.
        assert_eq!(runs(&year, 31, 30)[0], run(-31..61, 0));
    }
}
