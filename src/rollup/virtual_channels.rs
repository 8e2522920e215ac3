//! Hourly summaries of virtual channels, from the points of other channels and the stored catalogue. See
//! docs/specification.md, section 11.

use super::compute::{Computed, Hours, Run, Tags, campaign_of, is_writable, runs, values, watts};
use super::hours::{DAY, GapLimit, Point, SECOND};
use super::sum::{Source, sum};
use super::{Lines, MAX_NEW_DAYS, Master, Rollup, RollupError, day_of};
use crate::catalogue::{ENTRY_TIME, Term, TermPart, VirtualChannel};
use crate::data_dir::{CATALOGUE, SUMMARIES};
use crate::points::stored_name;
use crate::sink::{
    ALL_TIMES, Field, Place, PointVisitor, ReadError, Series, SeriesQuery, StoredPoint, retried,
};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

/// The value of the tag `channel_type` of virtual channels.
pub(super) const VIRTUAL: &str = "virtual";

/// The device of channels that are sums.
const NO_DEVICE: &str = "virtuel";

/// Maximum number of points that are in memory at once, unless it takes more for a channel and a day.
const MAX_POINTS: usize = 1_000_000;

/// Number of days that are read at once in the beginning: those that a file of a day needs.
const FIRST_DAYS: i64 = 4;

/// Maximum number of days that are read at once.
const MAX_DAYS: i64 = 32;

/// Maximum number of ids in a query.
const MAX_IDS: usize = 100;

/// Whether these are the tags of a virtual channel.
pub(super) fn is_virtual(tags: &[(String, String)]) -> bool {
    let has = |key: &str, is: fn(&str) -> bool| {
        tags.iter().any(|(other, value)| other == key && is(value))
    };
    has("channel_type", |value| value == VIRTUAL) && has("channel_id", is_virtual_id)
}

/// Whether it is the id of a virtual channel: `V_` and letters, digits or `_`.
fn is_virtual_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    id.starts_with("V_") && id.bytes().all(is_plain)
}

/// The tags that all summaries of the virtual channels of a campaign have.
pub(super) fn tags_of_all(campaign: &str) -> [(&str, &str); 2] {
    [("campaign", campaign), ("channel_type", VIRTUAL)]
}

/// A virtual channel of the stored catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    id: String,
    tags: Tags,
    channel: VirtualChannel,
}

impl Entry {
    /// Reads a stored entry. `None` if it is not what this program writes.
    fn new(campaign: &str, id: &str, stored: &Stored) -> Option<Self> {
        let channel: VirtualChannel = serde_json::from_str(&stored.terms).ok()?;
        let is_valid = |term: &Term| term.factor != 0 && !term.parts.is_empty();
        if !is_virtual_id(id) || channel.terms.is_empty() || !channel.terms.iter().all(is_valid) {
            return None;
        }
        Some(Self {
            tags: tags(campaign, id, &stored.device, &channel),
            id: id.to_owned(),
            channel,
        })
    }

    fn parts(&self) -> impl Iterator<Item = &TermPart> {
        self.channel.terms.iter().flat_map(|term| &term.parts)
    }

    fn uses(&self, ids: &BTreeSet<String>) -> bool {
        self.parts().any(|part| ids.contains(&part.channel_id))
    }
}

/// The tags of the summaries of a virtual channel. They follow from what is computed: if they depended on its name, another
/// name would leave the old series beside the new one.
fn tags(campaign: &str, id: &str, device: &str, channel: &VirtualChannel) -> Tags {
    // One channel, or several that follow one another, are what they are a part of.
    let (device, master) = match &channel.terms[..] {
        [Term { factor: 1, parts }] => {
            let last = parts.last().and_then(|part| device_of(&part.channel_id));
            last.unwrap_or((device, ""))
        }
        _ => (NO_DEVICE, NO_DEVICE),
    };
    let tags = [
        ("campaign", campaign),
        ("channel_id", id),
        ("channel_name", id),
        ("channel_number", "0"),
        ("channel_type", VIRTUAL),
        ("device", device),
        ("device_master_sn", master),
        ("device_sn", device),
        ("unit", &channel.unit),
    ];
    tags.iter()
        .filter_map(|(key, value)| Some(((*key).to_owned(), stored_name(value)?.to_owned())))
        .collect()
}

/// The serials of the device and the master in an id such as `S04000466_Ch1_M02001171`.
fn device_of(id: &str) -> Option<(&str, &str)> {
    let (rest, master) = id.rsplit_once("_M")?;
    let (device, number) = rest.rsplit_once("_Ch")?;
    let serial = device.strip_prefix(['M', 'S'])?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !serial.is_empty() && !master.is_empty()).then_some((serial, master))
}

/// The virtual channels of a campaign.
#[derive(Debug, Clone)]
pub(super) struct VirtualChannels {
    /// The measurement of the campaign.
    pub measurement: String,
    entries: Vec<Entry>,
    /// The ids that are meant, with those that have no entry any more; all of them without this.
    pub only: Option<BTreeSet<String>>,
    /// The number of days that are read at once.
    days_at_once: Cell<i64>,
}

impl VirtualChannels {
    pub(super) fn none(measurement: &str) -> Self {
        Self {
            measurement: measurement.to_owned(),
            entries: Vec::new(),
            only: None,
            days_at_once: Cell::new(FIRST_DAYS),
        }
    }

    /// Leaves out all others.
    pub(super) fn retain(&mut self, ids: &BTreeSet<String>) {
        self.entries.retain(|entry| ids.contains(&entry.id));
        self.only = Some(ids.clone());
    }
}

/// The fields of an entry.
#[derive(Debug, Default)]
struct Stored {
    terms: String,
    device: String,
}

/// Takes the entries of virtual channels.
#[derive(Default)]
struct Entries {
    /// By campaign and id.
    found: BTreeMap<(String, String), Stored>,
    current: Option<((String, String), String)>,
}

/// The fields that are read.
const ENTRY_FIELDS: [&str; 2] = ["terms", "device"];

impl PointVisitor for Entries {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, _: Place) {
        let value = |key: &str| {
            let tag = tags.iter().find(|(other, _)| other == key);
            tag.map(|(_, value)| value.clone())
        };
        let key = value("campaign").zip(value("channel_id"));
        self.current = key.map(|key| (key, field.key.to_owned()));
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        if let Some((key, field)) = &self.current {
            let stored = self.found.entry(key.clone()).or_default();
            let place = match field.as_str() {
                "terms" => &mut stored.terms,
                "device" => &mut stored.device,
                _ => return,
            };
            point.value.clone_into(place);
        }
    }
}

/// When a channel counts, in seconds since 1970.
type Window = (Option<i64>, Option<i64>);

/// The points of a series, with their neighbours.
#[derive(Debug, Default)]
struct SeriesPoints {
    within: Vec<Point>,
    before: Option<Point>,
    after: Option<Point>,
}

/// The points of channels by their ids and tags.
type Channels = BTreeMap<String, BTreeMap<Tags, SeriesPoints>>;

/// The points of the parts of terms.
#[derive(Default)]
struct Points {
    windows: BTreeMap<Window, Channels>,
    /// The number of points within the times.
    count: usize,
}

impl Points {
    /// The channels that follow one another in a term, in the unit of the virtual channel.
    fn of_term(&self, term: &Term, unit: &str) -> TermPoints {
        let mut found = TermPoints::default();
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for part in &term.parts {
            let channels = self.windows.get(&(part.from, part.until));
            let series = channels.and_then(|channels| channels.get(&part.channel_id));
            for (tags, points) in series.into_iter().flatten() {
                let Some(factor) = conversion(tags, unit) else {
                    continue;
                };
                let convert = |(time, value): &Point| (*time, value * factor);
                found.within.extend(points.within.iter().map(convert));
                before.extend(points.before.as_ref().map(convert));
                after.extend(points.after.as_ref().map(convert));
            }
        }
        // Of several series with the same id, the last one counts.
        found.within.sort_by_key(|(time, _)| *time);
        found.within.dedup_by(|later, earlier| {
            let is_same = later.0 == earlier.0;
            if is_same {
                *earlier = *later;
            }
            is_same
        });
        found.before = before.into_iter().max_by_key(|(time, _)| *time);
        found.after = after.into_iter().rev().min_by_key(|(time, _)| *time);
        found
    }
}

/// The points of a term, with their neighbours.
#[derive(Debug, Default)]
struct TermPoints {
    within: Vec<Point>,
    before: Option<Point>,
    after: Option<Point>,
}

/// What values of a series are multiplied by for another unit. `None` if it is another quantity.
fn conversion(tags: &[(String, String)], unit: &str) -> Option<f64> {
    let of_series = tags.iter().find(|(key, _)| key == "unit");
    let of_series = of_series.map_or("", |(_, unit)| unit);
    if of_series == unit {
        return Some(1.0);
    }
    Some(watts(of_series)? / watts(unit)?)
}

/// Takes the points of a window.
struct Reader<'a> {
    measurement: &'a str,
    channels: &'a mut Channels,
    /// The number of points, and their maximum.
    count: usize,
    max: usize,
    /// The series whose points come, and where they are.
    current: Option<(String, Tags, Place)>,
    points: Vec<Point>,
}

impl Reader<'_> {
    fn end_series(&mut self) {
        let Some((id, tags, place)) = self.current.take() else {
            return;
        };
        let mut points = std::mem::take(&mut self.points);
        let series = self
            .channels
            .entry(id)
            .or_default()
            .entry(tags)
            .or_default();
        match place {
            Place::Within => series.within.append(&mut points),
            Place::Before => series.before = points.pop(),
            Place::After => series.after = points.pop(),
        }
    }
}

impl PointVisitor for Reader<'_> {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, place: Place) {
        self.end_series();
        // Points of other campaigns belong to their measurements.
        let is_other = campaign_of(tags).is_some_and(|campaign| campaign != self.measurement);
        let id = tags.iter().find(|(key, _)| key == "channel_id");
        if let Some((_, id)) = id
            && field.is_value()
            && !is_other
        {
            self.current = Some((id.clone(), tags.to_vec(), place));
        }
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        if self.current.is_none() {
            return;
        }
        if let Ok(value) = point.value.parse() {
            self.points
                .push((point.time * SECOND + i64::from(point.nanos), value));
            self.count += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.count > self.max
    }
}

/// The summaries of a virtual channel.
pub(super) struct VirtualSummaries {
    pub tags: Tags,
    pub hours: Hours,
    /// The hours that have no point any more, but may have had one.
    lost: Hours,
}

impl Rollup<'_> {
    /// Reads the virtual channels of a campaign, or of all, by the measurements of the campaigns.
    pub(super) fn virtual_channels(
        &self,
        bucket: &str,
        measurement: Option<&str>,
    ) -> Result<BTreeMap<String, VirtualChannels>, ReadError> {
        let times = ENTRY_TIME..ENTRY_TIME + 1;
        let query = SeriesQuery {
            bucket,
            measurement: CATALOGUE,
            series: Series::Virtual {
                campaign: measurement,
                fields: &ENTRY_FIELDS,
            },
            within: times.clone(),
            times,
        };
        let found = retried(|| {
            let mut entries = Entries::default();
            self.source.points_of(&query, &mut entries)?;
            Ok(entries.found)
        })?;
        let mut channels = BTreeMap::new();
        for ((campaign, id), stored) in found {
            if stored.terms.is_empty() {
                continue;
            }
            let of_campaign = channels
                .entry(campaign.clone())
                .or_insert_with(|| VirtualChannels::none(&campaign));
            match Entry::new(&campaign, &id, &stored) {
                Some(entry) => of_campaign.entries.push(entry),
                None => self.note(
                    &campaign,
                    &format!("the entry of the virtual channel {id:?} is not valid, so that it has no hourly summaries; apply the catalogue again"),
                ),
            }
        }
        Ok(channels)
    }

    /// Computes and writes the summaries of the virtual channels that use some channels, after those of these channels were
    /// written because of new points.
    pub(super) fn update_virtual(
        &self,
        master: Master<'_>,
        run: &Run,
        ids: &BTreeSet<String>,
    ) -> Result<(), RollupError> {
        let Master {
            bucket,
            measurement,
            ..
        } = master;
        let mut all = self.virtual_channels(bucket, Some(measurement))?;
        let Some(mut channels) = all.remove(measurement) else {
            return Ok(());
        };
        channels.entries.retain(|entry| entry.uses(ids));
        if channels.entries.is_empty() {
            return Ok(());
        }
        let mut lines = Lines::new(self, bucket);
        let mut lost = Vec::new();
        let mut add = |found: VirtualSummaries| {
            lines.add(&found.tags, &found.hours);
            if !found.lost.is_empty() {
                lost.push(found);
            }
        };
        let computed = self.compute_virtual(bucket, &channels, run, &mut add)?;
        for run in &runs(&computed.earlier, self.margin(), MAX_NEW_DAYS) {
            self.compute_virtual(bucket, &channels, run, &mut add)?;
        }
        lines.finish()?;
        for found in &lost {
            self.remove_lost(bucket, found)?;
        }
        Ok(())
    }

    /// Writes hours anew that have no point any more, if the database has values of their points: writing the others does not
    /// remove these.
    fn remove_lost(&self, bucket: &str, found: &VirtualSummaries) -> Result<(), RollupError> {
        let hours = found.lost.keys().map(|hour| hour / SECOND);
        let (Some(first), Some(last)) = (hours.clone().min(), hours.max()) else {
            return Ok(());
        };
        let tags = found.tags.iter();
        let tags: Vec<_> = tags.map(|(key, value)| (&**key, &**value)).collect();
        let times = first..last + 1;
        let query = SeriesQuery {
            bucket,
            measurement: SUMMARIES,
            series: Series::Tags(&tags),
            within: times.clone(),
            times,
        };
        let mut means = Means::default();
        retried(|| self.source.points_of(&query, &mut means))?;
        let mut lines = Lines::new(self, bucket);
        for (hour, values) in &found.lost {
            let hour_s = hour / SECOND;
            if means.hours.contains(&hour_s) {
                self.source
                    .delete(bucket, SUMMARIES, &tags, &(hour_s..hour_s + 1))?;
                lines.add(&found.tags, [(hour, values)]);
            }
        }
        lines.finish().map(drop)
    }

    /// Computes the summaries of virtual channels in a run, and passes them on: those of each channel and of some days at a
    /// time, also if there are none.
    pub(super) fn compute_virtual(
        &self,
        bucket: &str,
        channels: &VirtualChannels,
        run: &Run,
        each: &mut dyn FnMut(VirtualSummaries),
    ) -> Result<Computed, ReadError> {
        let mut computed = Computed::default();
        let at_once = &channels.days_at_once;
        let mut work = vec![(run.days.clone(), &channels.entries[..])];
        while let Some((days, entries)) = work.pop() {
            let length = days.end - days.start;
            if length > at_once.get() {
                let middle = days.start + at_once.get();
                work.push((middle..days.end, entries));
                work.push((days.start..middle, entries));
                continue;
            }
            let is_smallest = length <= 1 && entries.len() <= 1;
            let part = VirtualPart {
                bucket,
                measurement: &channels.measurement,
                entries,
                is_first: days.start == run.days.start,
                days,
                run,
            };
            let max = if is_smallest { usize::MAX } else { MAX_POINTS };
            let Some(points) = self.read_points(&part, max)? else {
                let days = part.days;
                if length > 1 {
                    at_once.set(length / 2);
                    work.push((days, entries));
                } else {
                    let (first, second) = entries.split_at(entries.len() / 2);
                    work.push((days.clone(), second));
                    work.push((days, first));
                }
                continue;
            };
            if points.count <= MAX_POINTS / 2 && length == at_once.get() {
                at_once.set((length * 2).min(MAX_DAYS));
            }
            for entry in entries {
                // Many sums take long, also if the server is quick.
                if self.time_left() == Some(Duration::ZERO) {
                    return Err(ReadError::Late);
                }
                self.compute_entry(&part, entry, &points, &mut computed, each);
            }
        }
        Ok(computed)
    }

    /// Computes the summaries of a virtual channel in a part of a run.
    fn compute_entry(
        &self,
        part: &VirtualPart<'_>,
        entry: &Entry,
        points: &Points,
        computed: &mut Computed,
        each: &mut dyn FnMut(VirtualSummaries),
    ) {
        let unit = &entry.channel.unit;
        let mut sources = Vec::with_capacity(entry.channel.terms.len());
        for term in &entry.channel.terms {
            let found = points.of_term(term, unit);
            if let Some((time, _)) = found.after
                && part.days.end == part.run.days.end
            {
                let next = time.div_euclid(SECOND);
                computed.next = Some(computed.next.unwrap_or(next).min(next));
            }
            if part.is_first && self.gap_limit == GapLimit::OfDay {
                computed.earlier.extend(part.earlier_day(&found));
            }
            #[expect(clippy::cast_precision_loss, reason = "factors are small")]
            sources.push(Source {
                factor: term.factor as f64,
                points: found.within,
                next: found.after,
            });
        }
        let nanos = |day: i64| day.saturating_mul(DAY);
        let times = nanos(part.days.start)..nanos(part.days.end);
        let summed = sum(sources, &times, self.gap_limit);
        if !is_writable(&entry.tags) {
            computed.unwritable += summed.hours.len() as u64;
            return;
        }
        let watts = watts(unit);
        let hours = summed.hours.iter();
        let hours: Hours = hours
            .map(|(hour, summary)| (*hour, values(summary, watts)))
            .collect();
        let lost = summed.lost.iter();
        each(VirtualSummaries {
            tags: entry.tags.clone(),
            lost: lost
                .filter_map(|hour| Some((*hour, *hours.get(hour)?)))
                .collect(),
            hours,
        });
    }

    /// Reads the points that the entries of a part need. `None` if there are more than `max`.
    fn read_points(&self, part: &VirtualPart<'_>, max: usize) -> Result<Option<Points>, ReadError> {
        let mut windows: BTreeMap<Window, BTreeSet<&str>> = BTreeMap::new();
        for used in part.entries.iter().flat_map(Entry::parts) {
            let ids = windows.entry((used.from, used.until)).or_default();
            ids.insert(&used.channel_id);
        }
        let mut found = Points::default();
        let times = super::compute::times_of(&part.days, self.gap_limit);
        for (window, ids) in windows {
            let mut channels = Channels::new();
            let ids: Vec<_> = ids.into_iter().collect();
            for ids in ids.chunks(MAX_IDS) {
                let within = part.within(window, &times);
                let query = SeriesQuery {
                    bucket: part.bucket,
                    measurement: part.measurement,
                    series: Series::Channels(ids),
                    times: clamped(times.start, window)..clamped(times.end, window),
                    within,
                };
                let of_query = retried(|| {
                    let mut channels = Channels::new();
                    let mut reader = Reader {
                        measurement: part.measurement,
                        channels: &mut channels,
                        count: found.count,
                        max,
                        current: None,
                        points: Vec::new(),
                    };
                    self.source.points_of(&query, &mut reader)?;
                    reader.end_series();
                    let count = reader.count;
                    Ok((channels, count))
                })?;
                channels.extend(of_query.0);
                found.count = of_query.1;
                if found.count > max {
                    return Ok(None);
                }
            }
            found.windows.insert(window, channels);
        }
        Ok(Some(found))
    }
}

/// A time that is moved into a window.
fn clamped(time: i64, (from, until): Window) -> i64 {
    let time = from.map_or(time, |from| time.max(from));
    until.map_or(time, |until| time.min(until))
}

/// Some days of a run, and the virtual channels that are computed together.
struct VirtualPart<'a> {
    bucket: &'a str,
    measurement: &'a str,
    entries: &'a [Entry],
    days: Range<i64>,
    /// Whether they are the first days of the run.
    is_first: bool,
    run: &'a Run,
}

impl VirtualPart<'_> {
    /// Where the neighbours of points are looked for.
    fn within(&self, window: Window, times: &Range<i64>) -> Range<i64> {
        let start = if self.run.new.is_some() && self.is_first {
            clamped(ALL_TIMES.start, window)
        } else {
            clamped(times.start, window)
        };
        start..clamped(ALL_TIMES.end, window)
    }

    /// The day before the run in which an interval begins that ends with a new point.
    fn earlier_day(&self, points: &TermPoints) -> Option<i64> {
        let new = self.run.new?;
        // The points of other days of the run are not known here.
        let is_whole = self.days == self.run.days;
        if is_whole && points.within.is_empty() {
            return None;
        }
        let mut within = points.within.iter().rev();
        let last = within.find(|(time, _)| day_of(time.div_euclid(SECOND)) < new);
        let (time, _) = last.copied().or(points.before)?;
        let day = time.div_euclid(DAY);
        (day < self.run.days.start).then_some(day)
    }
}

/// Takes the hours that have a mean, in seconds since 1970.
#[derive(Default)]
struct Means {
    hours: BTreeSet<i64>,
    is_mean: bool,
}

impl PointVisitor for Means {
    fn series(&mut self, _: &[(String, String)], field: Field<'_>, _: Place) {
        self.is_mean = field.key == "mean";
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        if self.is_mean {
            self.hours.insert(point.time);
        }
    }
}
