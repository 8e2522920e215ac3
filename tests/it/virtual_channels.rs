//! Hourly summaries of virtual and continued channels, against sums that the tests compute step by step from the points.
//! See docs/specification.md, section 11.

use crate::harness::{Run, Site, age};
use crate::influx_double::{Double, Fault, Request, is_query};
use crate::real_influx::RealInflux;
use crate::rollup::{
    MIDNIGHT, Points, Server, Summaries, Tags, add_points, deleted, file_of_channels,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The time of the entries of catalogues.
const ENTRY_TIME: i64 = 4_102_444_800;

/// The masters of the tests.
const A: &str = "02001171";
const B: &str = "02009999";

// --- the catalogue --------------------------------------------------------------------------------------------------

/// The id of a channel of a master.
fn id(master: &str, number: u32) -> String {
    format!("M{master}_Ch{number}_M{master}")
}

/// A channel with the times in which it counts.
#[derive(Debug, Clone)]
struct Part(String, Option<i64>, Option<i64>);

/// A channel that counts always.
fn whole(master: &str, number: u32) -> Vec<Part> {
    vec![Part(id(master, number), None, None)]
}

/// Factors, and channels that follow one another.
type Terms = Vec<(i64, Vec<Part>)>;

/// An entry of a virtual channel as `powerview channels --apply` writes it.
struct Entry {
    id: &'static str,
    device: &'static str,
    unit: &'static str,
    terms: Terms,
}

/// A sum in watts.
fn sum(id: &'static str, terms: Terms) -> Entry {
    Entry {
        id,
        device: "virtuel",
        unit: "W",
        terms,
    }
}

/// Writes entries of a campaign.
fn apply(server: &RealInflux, bucket: &str, campaign: &str, entries: &[Entry]) {
    let lines = entries.iter().map(|entry| {
        let terms = entry.terms.iter().map(|(factor, parts)| {
            let parts = parts.iter().map(
                |Part(id, from, until)| json!({"channel_id": id, "from": from, "until": until}),
            );
            json!({"factor": factor, "parts": parts.collect::<Value>()})
        });
        let terms = json!({"unit": entry.unit, "terms": terms.collect::<Value>()}).to_string();
        entry_line(campaign, entry.id, entry.device, &terms, "")
    });
    server.write(bucket, &lines.collect::<String>(), "s");
}

/// Writes that an entry is removed.
fn remove(server: &RealInflux, bucket: &str, campaign: &str, id: &str) {
    server.write(bucket, &entry_line(campaign, id, "", "", "removed"), "s");
}

fn entry_line(campaign: &str, id: &str, device: &str, terms: &str, state: &str) -> String {
    let campaign = campaign
        .replace(' ', "\\ ")
        .replace(',', "\\,")
        .replace('=', "\\=");
    let terms = terms.replace('"', "\\\"");
    format!(
        "powerview_channels,campaign={campaign},channel_id={id} label=\"{id}\",circuit=\"\",phase=\"\",role=\"\",hidden=\"\",merged=\"\",valid=\"\",unit=\"W\",device=\"{device}\",channel=\"\",terms=\"{terms}\",state=\"{state}\" {ENTRY_TIME}\n"
    )
}

/// Notes in a campaign folder that it has virtual channels, as `powerview channels --apply` does.
fn mark(site: &Site, campaign: &str) {
    let file = format!("acme/{campaign}/.channels.applied");
    site.put(file, marker(true));
}

/// The content of the file in a campaign folder.
fn marker(has_virtual: bool) -> String {
    let file = json!({"state": "applied", "has_virtual": has_virtual, "device": 1, "inode": 1, "size": 1,
        "modified_ns": 1, "changed_ns": 1});
    file.to_string()
}

// --- what is expected -----------------------------------------------------------------------------------------------

/// All times of the tests are multiples of this, so that every line is straight for so many seconds.
const STEP: i64 = 30;

/// The value at the begin and the end of a step, or that it is only possible that it was known.
type Step = Option<(f64, f64)>;

/// What is known of a source, step by step.
#[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
fn steps(points: &Points) -> BTreeMap<i64, Step> {
    let points: Vec<_> = points.iter().map(|(time, value)| (*time, *value)).collect();
    let mut lengths: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for pair in points.windows(2) {
        let of_day = lengths.entry(pair[0].0.div_euclid(86_400)).or_default();
        of_day.push(pair[1].0 - pair[0].0);
    }
    let mut found = BTreeMap::new();
    for pair in points.windows(2) {
        let [(start, first), (end, last)] = [pair[0], pair[1]];
        let mut lengths = lengths[&start.div_euclid(86_400)].clone();
        lengths.sort_unstable();
        let limit = (3 * lengths[lengths.len().div_ceil(2) - 1]).clamp(900, 7_200);
        if end - start > 7_200 {
            continue;
        }
        let slope = (last - first) / (end - start) as f64;
        assert_eq!((start % STEP, end % STEP), (0, 0));
        for step in (start..end).step_by(STEP as usize) {
            let from = first + slope * (step - start) as f64;
            let to = from + slope * STEP as f64;
            found.insert(step, (end - start <= limit).then_some((from, to)));
        }
    }
    found
}

/// The summaries of a sum of sources, computed step by step.
#[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
fn summed(sources: &[(i64, Points)], is_power: bool) -> Summaries {
    let hour = |time: i64| time - time.rem_euclid(3_600);
    let lines: Vec<_> = sources.iter().map(|(_, points)| steps(points)).collect();
    // Seconds, and the integrals of the positive and the negative part.
    let mut hours: BTreeMap<i64, [f64; 3]> = BTreeMap::new();
    let mut values: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    'steps: for step in lines[0].keys() {
        let (mut from, mut to, mut is_known) = (0.0, 0.0, true);
        for ((factor, _), line) in sources.iter().zip(&lines) {
            let Some(of_line) = line.get(step) else {
                continue 'steps;
            };
            is_known &= of_line.is_some();
            let (first, last) = of_line.unwrap_or_default();
            from += *factor as f64 * first;
            to += *factor as f64 * last;
        }
        let sums = hours.entry(hour(*step)).or_default();
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
        let length = STEP as f64;
        sums[0] += length;
        sums[1] += positive(from, to) * length / 3_600.0;
        sums[2] += positive(-from, -to) * length / 3_600.0;
    }
    let times: BTreeSet<i64> = sources
        .iter()
        .flat_map(|(_, points)| points.keys().copied())
        .collect();
    'times: for time in times {
        let (mut value, mut is_known) = (0.0, true);
        for ((factor, points), line) in sources.iter().zip(&lines) {
            let of_line = line.get(&time).map(|step| step.map(|(from, _)| from));
            let of_source = points.get(&time).map(|value| Some(*value)).or(of_line);
            let Some(of_source) = of_source else {
                continue 'times;
            };
            is_known &= of_source.is_some();
            value += *factor as f64 * of_source.unwrap_or_default();
        }
        hours.entry(hour(time)).or_default();
        if is_known {
            values.entry(hour(time)).or_default().push(value);
        }
    }
    let mut found = Summaries::new();
    for (hour, [seconds, energy_in, energy_out]) in hours {
        let mut set = |field: &str, value: f64| found.insert((hour, field.to_owned()), value);
        let of_hour = values.remove(&hour).unwrap_or_default();
        set("count", of_hour.len() as f64);
        set("covered_s", seconds);
        if is_power {
            set("energy_in_wh", energy_in);
            set("energy_out_wh", energy_out);
        }
        if !of_hour.is_empty() {
            set("mean", of_hour.iter().sum::<f64>() / of_hour.len() as f64);
            let fold = |start, pick: fn(f64, f64) -> f64| of_hour.iter().copied().fold(start, pick);
            set("min", fold(f64::INFINITY, f64::min));
            set("max", fold(f64::NEG_INFINITY, f64::max));
        }
    }
    found
}

/// The points of the files of a campaign by the ids of their channels.
fn points_of(files: &[String]) -> BTreeMap<String, Points> {
    let mut channels = BTreeMap::new();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    add_points(&mut channels, "site", &files);
    let channels = channels.into_iter();
    channels
        .map(|(tags, points)| (tags["channel_id"].clone(), points))
        .collect()
}

/// The points of a source.
fn source(points: &BTreeMap<String, Points>, parts: &[Part]) -> Points {
    let mut found = Points::new();
    for Part(id, from, until) in parts {
        let of_part = points.get(id).into_iter().flatten();
        let of_part = of_part.filter(|(time, _)| {
            from.is_none_or(|from| from <= **time) && until.is_none_or(|until| **time < until)
        });
        found.extend(of_part.map(|(time, value)| (*time, *value)));
    }
    found
}

/// The summaries of the virtual channels in a bucket, by their tags.
fn virtual_summaries(server: &RealInflux, bucket: &str) -> BTreeMap<Tags, Summaries> {
    let mut found = server.summaries(bucket);
    found.retain(|tags, _| tags["channel_type"] == "virtual");
    found
}

/// The summaries of the virtual channels by their ids, each of which has one series.
fn by_id(server: &RealInflux, bucket: &str) -> BTreeMap<String, Summaries> {
    let all = virtual_summaries(server, bucket);
    let count = all.len();
    let found: BTreeMap<String, Summaries> = all
        .into_iter()
        .map(|(tags, summaries)| (tags["channel_id"].clone(), summaries))
        .collect();
    assert_eq!(found.len(), count, "a channel has several series");
    found
}

#[track_caller]
fn assert_equal(id: &str, found: &Summaries, expected: &Summaries) {
    let extra = found.keys().filter(|key| !expected.contains_key(key));
    let missing = expected.keys().filter(|key| !found.contains_key(key));
    let differing: Vec<_> = extra.chain(missing).take(5).collect();
    assert!(differing.is_empty(), "{id}: {differing:?}");
    for (key, value) in expected {
        let difference = (found[key] - value).abs();
        assert!(
            difference <= 1e-9 * (1_000.0 + value.abs()),
            "{id} {key:?}: {} {value}",
            found[key]
        );
    }
}

/// Checks the summaries of all virtual channels in the bucket `acme` against the points of the files.
#[track_caller]
fn assert_sums(server: &RealInflux, entries: &[Entry], files: &[String]) {
    let points = points_of(files);
    let mut found = by_id(server, "acme");
    found.retain(|_, summaries| !summaries.is_empty());
    for entry in entries {
        let terms = entry.terms.iter();
        let sources: Vec<_> = terms
            .map(|(factor, parts)| (*factor, source(&points, parts)))
            .collect();
        let expected = summed(&sources, entry.unit == "W");
        let found = found.remove(entry.id).unwrap_or_default();
        assert!(!expected.is_empty() || found.is_empty(), "{}", entry.id);
        assert_equal(entry.id, &found, &expected);
    }
    let others: Vec<_> = found.keys().collect();
    assert!(others.is_empty(), "{others:?}");
}

// --- files ----------------------------------------------------------------------------------------------------------

/// A file of a master with two powers and a voltage.
fn file(master: &str, times: impl IntoIterator<Item = i64>, seed: u64) -> String {
    let file = file_of_channels(["Load W", "Net W", "U V"], times, seed);
    file.replace(A, master)
}

/// Times from some hours after midnight on.
fn every(step: i64, from_h: i64, until_h: i64) -> impl Iterator<Item = i64> {
    let (from, until) = (from_h * 3_600, until_h * 3_600);
    (0..)
        .map(move |n| MIDNIGHT + from + n * step)
        .take_while(move |time| *time < MIDNIGHT + until)
}

/// Puts a file of a master and ingests it by its name.
#[track_caller]
fn ingest(server: &RealInflux, site: &Site, master: &str, n: usize, text: &str) -> Run {
    let path = format!("acme/site/{master}/{n}.tsv");
    age(&site.put(&path, text), 7_200 - 60 * n as u64);
    let run = server.ingest(site).named(&path).run().expect(0);
    assert!(!run.stderr.contains("summaries"), "{}", run.stderr);
    run
}

/// The sums of the tests, of channels of two masters.
fn sums() -> Vec<Entry> {
    vec![
        sum("V_sum", vec![(1, whole(A, 1)), (1, whole(A, 2))]),
        // Each point of the second channel has the other sign, often.
        sum("V_net", vec![(1, whole(A, 2)), (-1, whole(A, 1))]),
        sum(
            "V_both",
            vec![(2, whole(A, 1)), (-3, whole(B, 2)), (1, whole(B, 1))],
        ),
        Entry {
            unit: "V",
            ..sum("V_volts", vec![(1, whole(A, 3)), (-1, whole(B, 3))])
        },
        sum("V_alone", vec![(-1, whole(B, 2))]),
        // A channel that has no point yet.
        sum("V_later", vec![(1, whole(A, 1)), (1, whole("02000000", 1))]),
    ]
}

/// Uploads of two masters with different steps and gaps.
fn uploads() -> Vec<(&'static str, String)> {
    vec![
        (A, file(A, every(600, 0, 24), 1)),
        (B, file(B, every(420, 0, 20), 2)),
        // A day is left out, which comes late; with the autumn change.
        (A, file(A, every(600, 48, 73), 3)),
        (B, file(B, every(60, 40, 60), 4)),
        (A, file(A, every(600, 24, 48), 5)),
        (B, file(B, every(900, 60, 80), 6)),
        // A correction, a row alone and a gap of two hours in which nothing is known any more.
        (A, file(A, every(600, 5, 8), 7)),
        (B, file(B, [MIDNIGHT + 90 * 3_600 + 30], 8)),
        (A, file(A, every(7_200, 100, 120), 9)),
        (B, file(B, every(5_400, 101, 121), 10)),
        (A, file(A, every(60, 121, 123), 11)),
        (B, file(B, every(30, 121, 125), 12)),
        // Much later.
        (A, file(A, every(600, 900, 905), 13)),
        (B, file(B, every(300, 902, 904), 14)),
    ]
}

// --- ingestion ------------------------------------------------------------------------------------------------------

#[test]
fn sums_are_up_to_date_after_each_file() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let entries = sums();
    apply(&server, "acme", "site", &entries);
    mark(&site, "site");
    let mut ingested = Vec::new();
    for (n, (master, text)) in uploads().into_iter().enumerate() {
        ingest(&server, &site, master, n, &text);
        ingested.push(text);
        assert_sums(&server, &entries, &ingested);
    }
    let run = server.rollup(&site, &["--company", "acme"]).expect(0);
    assert!(
        run.stdout.ends_with(" hourly summaries\n"),
        "{}",
        run.stdout
    );
    assert_sums(&server, &entries, &ingested);
    let (code, found) = server.verify(&site, &[]);
    assert_eq!(
        (code, &found["summaries"]["equal"]),
        (0, &json!(true)),
        "{found:#}"
    );
}

/// Midnight of a day in Paris.
fn midnight(year: i32, month: u32, day: u32) -> i64 {
    use chrono::TimeZone as _;
    let midnight = chrono_tz::Europe::Paris.with_ymd_and_hms(year, month, day, 0, 0, 0);
    midnight.single().expect("a time").timestamp()
}

/// The master of the last meter.
const C: &str = "02003333";

/// The channels of three meters that follow one another: on the day of the autumn change, after it at noon, and on the day of
/// the spring change.
fn chain() -> (Vec<Part>, [i64; 3]) {
    let switches = [
        midnight(2025, 10, 26),
        midnight(2025, 10, 27) + 12 * 3_600 + 600,
        midnight(2026, 3, 29),
    ];
    let [first, second, third] = switches;
    let parts = vec![
        Part(id(A, 2), None, Some(first)),
        Part(id(B, 2), Some(first), Some(second)),
        Part(id(C, 2), Some(second), Some(third)),
        Part(id(C, 1), Some(third), None),
    ];
    (parts, switches)
}

#[test]
fn meters_that_follow_one_another_are_one_channel() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let (parts, [first, second, third]) = chain();
    let entries = [
        Entry {
            device: C,
            ..sum("V_M02003333_Ch1_M02003333", vec![(1, parts.clone())])
        },
        sum("V_less", vec![(2, whole(A, 1)), (-1, parts)]),
        sum(
            "V_two",
            vec![(
                1,
                vec![
                    Part(id(A, 1), None, Some(first)),
                    Part(id(B, 1), Some(first), None),
                ],
            )],
        ),
    ];
    apply(&server, "acme", "site", &entries);
    mark(&site, "site");
    let around = |time: i64, step: i64, hours: i64| {
        (-hours * 3_600 / step..hours * 3_600 / step).map(move |n| time + n * step)
    };
    let uploads = [
        // Both meters run before and after the first switch, with a gap at the switch of one of them.
        (A, file(A, around(first, 600, 30), 21)),
        (B, file(B, around(first + 7_200, 420, 1), 22)),
        (
            B,
            file(B, around(first + 40_000 - 40_000 % 30, 300, 20), 23),
        ),
        // The last point of a meter that counts is days before the first one of the next.
        (C, file(C, around(second + 50 * 3_600, 600, 40), 24)),
        (C, file(C, around(second, 900, 5), 25)),
        (B, file(B, around(second, 600, 6), 26)),
        (C, file(C, around(third, 600, 20), 27)),
        // Late ones.
        (A, file(A, around(first, 60, 1), 28)),
        (B, file(B, around(first - 80 * 3_600, 600, 2), 29)),
        (B, file(B, around(third, 600, 20), 30)),
    ];
    let mut ingested = Vec::new();
    for (n, (master, text)) in uploads.into_iter().enumerate() {
        ingest(&server, &site, master, n, &text);
        ingested.push(text);
        assert_sums(&server, &entries, &ingested);
    }
    let (code, found) = server.verify(&site, &[]);
    assert_eq!((code, &found["equal"]), (0, &json!(true)), "{found:#}");
    assert_eq!(found["summaries"]["equal"], json!(true), "{found:#}");

    let tags = |device: &str, id: &str| -> Tags {
        let tags = [
            ("campaign", "site"),
            ("channel_id", id),
            ("channel_name", id),
            ("channel_number", "0"),
            ("channel_type", "virtual"),
            ("device", device),
            ("device_master_sn", device),
            ("device_sn", device),
            ("unit", "W"),
        ];
        tags.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    let found: BTreeSet<_> = virtual_summaries(&server, "acme").into_keys().collect();
    let expected = [
        tags(C, "V_M02003333_Ch1_M02003333"),
        tags("virtuel", "V_less"),
        tags(B, "V_two"),
    ];
    assert_eq!(found, expected.into());
}

#[test]
fn the_first_point_after_a_silence_changes_the_gap_limit_of_the_day_before_it() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let switch = MIDNIGHT + 2 * 86_400;
    let meters = |number: u32| {
        vec![
            Part(id(A, number), None, Some(switch)),
            Part(id(B, number), Some(switch), None),
        ]
    };
    let entries = [
        sum("V_one", vec![(1, meters(1))]),
        sum("V_sum", vec![(1, meters(1)), (1, meters(2))]),
        sum("V_a", vec![(1, whole(A, 1)), (-1, whole(A, 2))]),
    ];
    apply(&server, "acme", "site", &entries);
    mark(&site, "site");
    // The lower median of two intervals is the first one, and that of three the second one: then 22 minutes are known.
    let noon = MIDNIGHT + 36_000;
    let uploads = [
        (A, file(A, [0, 300, 1_620].map(|n| noon + n), 1)),
        // This one does not count yet.
        (B, file(B, [0, 600, 1_200].map(|n| noon + 86_400 + n), 2)),
        (
            B,
            file(B, [0, 600, 1_200].map(|n| noon + 5 * 86_400 + n), 3),
        ),
        (
            A,
            file(A, [0, 600, 1_200].map(|n| noon + 9 * 86_400 + n), 4),
        ),
    ];
    let mut ingested = Vec::new();
    let mut covered = Vec::new();
    for (n, (master, text)) in uploads.into_iter().enumerate() {
        ingest(&server, &site, master, n, &text);
        ingested.push(text);
        assert_sums(&server, &entries, &ingested);
        let found = by_id(&server, "acme");
        covered.push(["V_one", "V_sum", "V_a"].map(|id| {
            let of_day = found[id]
                .iter()
                .filter(|((hour, field), _)| field == "covered_s" && *hour < noon + 7_200);
            of_day.map(|(_, seconds)| *seconds).sum::<f64>()
        }));
    }
    let (few, all) = (300.0, 1_620.0);
    assert_eq!(covered, [[few; 3], [few; 3], [all, all, few], [all; 3]]);
}

#[test]
fn powers_are_added_in_watts_and_other_units_as_they_are() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let entries = [
        sum(
            "V_power",
            vec![(1, whole(A, 1)), (-1, whole(A, 2)), (1, whole(A, 3))],
        ),
        // Points in another unit than that of a channel of the same id do not count.
        Entry {
            unit: "V",
            ..sum("V_volts", vec![(1, whole(A, 1)), (1, whole(A, 2))])
        },
    ];
    apply(&server, "acme", "site", &entries);
    mark(&site, "site");
    let files = [
        file_of_channels(["Load kW", "Net W", "All MW"], every(600, 0, 30), 31),
        file_of_channels(["Load V", "Net V", "Heat °C"], every(600, 40, 50), 32),
        file_of_channels(["Renamed kW", "Net W", "All MW"], every(600, 48, 60), 33),
    ];
    for (n, file) in files.iter().enumerate() {
        ingest(&server, &site, A, n, file);
    }
    let points = |n: usize, channel: u32| points_of(&[files[n].clone()])[&id(A, channel)].clone();
    let in_watts = |channel: u32, factor: f64| -> Points {
        let mut found = points(0, channel);
        found.extend(points(2, channel));
        found
            .into_iter()
            .map(|(time, value)| (time, value * factor))
            .collect()
    };
    let sources = [
        (1, in_watts(1, 1e3)),
        (-1, in_watts(2, 1.0)),
        (1, in_watts(3, 1e6)),
    ];
    let found = by_id(&server, "acme");
    let expected = summed(&sources, true);
    for (key, value) in &expected {
        let difference = (found["V_power"][key] - value).abs();
        assert!(difference <= 1e-9 * value.abs().max(1e6), "{key:?}");
    }
    assert_eq!(found["V_power"].len(), expected.len());
    let volts = summed(&[(1, points(1, 1)), (1, points(1, 2))], false);
    assert_equal("V_volts", &found["V_volts"], &volts);
    server.rollup(&site, &[]).expect(0);
    assert_eq!(by_id(&server, "acme"), found);
}

#[test]
fn hours_of_a_sum_that_are_not_known_any_more_have_no_values() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let entries = [sum("V_sum", vec![(1, whole(A, 1)), (1, whole(B, 1))])];
    apply(&server, "acme", "site", &entries);
    mark(&site, "site");
    // Midnight in UTC.
    let day = 1_761_264_000;
    let files = [
        (A, file(A, (0..12).map(|n| day + n * 7_200), 1)),
        (B, file(B, (0..144).map(|n| day + n * 600), 2)),
        // The gap limit falls from two hours to 15 minutes.
        (A, file(A, (0..200).map(|n| day + 72_000 + n * 60), 3)),
    ];
    let mut ingested = Vec::new();
    let mut with_mean = Vec::new();
    for (n, (master, text)) in files.into_iter().enumerate() {
        ingest(&server, &site, master, n, &text);
        ingested.push(text);
        assert_sums(&server, &entries, &ingested);
        let found = by_id(&server, "acme").remove("V_sum").unwrap_or_default();
        let means = found.keys().filter(|(_, field)| field == "mean");
        with_mean.push(means.count());
    }
    assert_eq!(with_mean, [0, 23, 14]);
    let run = server.rollup(&site, &[]).expect(0);
    assert!(
        run.stdout.ends_with(" hourly summaries\n"),
        "{}",
        run.stdout
    );
}

#[test]
fn processes_for_several_devices_leave_the_sums_of_all_points() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let entries = sums();
    apply(&server, "acme", "site", &entries);
    mark(&site, "site");
    let mut files = Vec::new();
    for round in 0..3 {
        let mut runs = Vec::new();
        for (n, master) in [A, B].into_iter().enumerate() {
            let from = 24 * round;
            let text = file(
                master,
                every(600 - 300 * n as i64, from, from + 24),
                50 + round as u64,
            );
            let path = format!("acme/site/{master}/{round}.tsv");
            age(&site.put(&path, &text), 60);
            files.push(text);
            runs.push(server.ingest(&site).named(&path).start());
        }
        for run in runs {
            let run = run.wait().expect(0);
            assert!(!run.stderr.contains("summaries"), "{}", run.stderr);
        }
        assert_sums(&server, &entries, &files);
    }
}

// --- requests -------------------------------------------------------------------------------------------------------

/// The number of queries for entries that an ingestion sends, and what it says.
fn queries_for_entries(marker: Option<&str>) -> (usize, String) {
    let (double, site) = (Double::start(), Site::new());
    let path = format!("acme/site/{A}/0.tsv");
    site.put_old(&path, file(A, every(600, 0, 24), 1));
    if let Some(marker) = marker {
        site.put("acme/site/.channels.applied", marker);
    }
    let run = double.ingest(&site).named(&path).run().expect(0);
    let requests = double.requests();
    let queries = requests.iter().filter(|request| is_query(request));
    let of_entries = queries.filter(|request| request.text().contains("powerview_channels"));
    (of_entries.count(), run.stderr)
}

#[test]
fn a_campaign_without_virtual_channels_needs_no_request() {
    let long = marker(true) + &" ".repeat(5_000);
    let without = marker(false);
    for text in [
        None,
        Some(without.as_str()),
        Some("{}"),
        Some("rubbish"),
        Some(&long),
    ] {
        let (queries, stderr) = queries_for_entries(text);
        assert_eq!(queries, 0, "{text:?}");
        assert!(!stderr.contains("summaries"), "{stderr}");
    }
    assert_eq!(queries_for_entries(Some(&marker(true))).0, 1);
}

#[test]
fn a_server_that_refuses_the_queries_for_sums_is_a_warning_and_days_stay_pending() {
    let (double, site) = (Double::start(), Site::new());
    let path = format!("acme/site/{A}/0.tsv");
    site.put_old(&path, file(A, every(600, 0, 24), 1));
    mark(&site, "site");
    let is_of_entries =
        |request: &Request| is_query(request) && request.text().contains("powerview_channels");
    double.fault(is_of_entries, 0, 1, Fault::status(400, "no"));
    let run = double.ingest(&site).named(&path).run().expect(0);
    assert!(
        run.stderr
            .contains("the hourly summaries of acme/site/02001171 are not up to date: "),
        "{}",
        run.stderr
    );
    assert!(site.exists(format!("acme/site/{A}/parsed/0.tsv")));
    let pending = format!("acme/site/{A}/.powerview-rollup.json");
    assert!(site.exists(&pending));
    double.ingest(&site).run().expect(0);
    assert!(!site.exists(&pending));
}

// --- comparison and repair ------------------------------------------------------------------------------------------

/// The numbers of summaries that `verify` finds.
fn numbers(found: &Value) -> [u64; 4] {
    let summaries = &found["summaries"];
    ["missing", "different", "extra", "written"].map(|key| summaries[key].as_u64().expect(key))
}

/// Ingests a day and a half of both masters in one run.
fn ingest_both(server: &RealInflux, site: &Site, campaign: &str) -> Vec<String> {
    let files = vec![
        file(A, every(600, 0, 36), 1),
        file(B, every(420, 0, 36), 2),
        file(A, every(600, 900, 910), 3),
        file(B, every(420, 900, 910), 4),
    ];
    for (n, text) in files.iter().enumerate() {
        let master = [A, B][n % 2];
        site.put_old(format!("acme/{campaign}/{master}/{n}.tsv"), text);
    }
    server.ingest(site).run().expect(0);
    files
}

#[test]
fn sums_of_the_past_are_computed_on_request() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let files = ingest_both(&server, &site, "site");
    let entries = sums();
    apply(&server, "acme", "site", &entries);
    // An ingestion knows nothing of them without the note in the folder.
    server.ingest(&site).run().expect(0);
    assert_eq!(virtual_summaries(&server, "acme"), BTreeMap::new());
    let (code, found) = server.verify(&site, &[]);
    let [missing, others @ ..] = numbers(&found);
    assert_eq!((code, others), (1, [0; 3]), "{found:#}");
    let run = server.rollup(&site, &[]).expect(0);
    assert!(
        run.stdout
            .contains(&format!(" hourly summaries, {missing} written\n")),
        "{missing} {}",
        run.stdout
    );
    assert_sums(&server, &entries, &files);
}

#[test]
fn verify_finds_and_repairs_sums_that_differ() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let files = ingest_both(&server, &site, "site");
    let entries = sums();
    apply(&server, "acme", "site", &entries);
    server.rollup(&site, &[]).expect(0);
    let (code, found) = server.verify(&site, &[]);
    assert_eq!((code, numbers(&found)), (0, [0; 4]), "{found:#}");

    // Two hours of five sums are missing, one has another value, and two are too many, in months without points as well.
    let hour = MIDNIGHT - MIDNIGHT.rem_euclid(3_600);
    let of_virtual = "_measurement=\"powerview_1h\" AND channel_type=\"virtual\"";
    deleted(&server, of_virtual, hour, hour + 7_199);
    let all = virtual_summaries(&server, "acme");
    let tags = all.keys().find(|tags| tags["channel_id"] == "V_net");
    let line = |fields: &str, hour: i64| {
        let tags = tags.into_iter().flatten();
        let tags = tags.map(|(key, value)| format!(",{key}={value}"));
        format!("powerview_1h{} {fields} {hour}\n", tags.collect::<String>())
    };
    server.write("acme", &line("mean=1", hour + 5 * 3_600), "s");
    server.write(
        "acme",
        &line("count=0i,covered_s=0i", hour + 100 * 3_600),
        "s",
    );
    server.write("acme", &line("mean=2", hour + 5_000 * 3_600), "s");
    let (code, found) = server.verify(&site, &[]);
    assert_eq!((code, numbers(&found)), (1, [10, 1, 2, 0]), "{found:#}");
    let (_, campaign) = server.verify(&site, &["--company=acme", "--campaign=site"]);
    assert_eq!(numbers(&campaign), [10, 1, 2, 0], "{campaign:#}");
    // The points themselves do not differ, and have no other masters.
    let points = ["missing", "different", "extra"].map(|key| found[key].as_u64());
    assert_eq!((points, &found["equal"]), ([Some(0); 3], &json!(true)));
    let devices = found["devices"].as_array().expect("devices");
    let devices: BTreeSet<_> = devices
        .iter()
        .map(|device| device["device"].as_str())
        .collect();
    assert_eq!(devices, [Some(A), Some(B)].into());

    let (code, found) = server.verify(&site, &["--repair"]);
    let [rest @ .., written] = numbers(&found);
    assert_eq!((code, rest), (0, [0; 3]), "{found:#}");
    assert!(written >= 11, "{found:#}");
    assert_sums(&server, &entries, &files);
}

#[test]
fn nothing_is_left_of_a_changed_formula_or_a_removed_entry() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let odd = "it's \\d, a=b";
    let files = ingest_both(&server, &site, "site");
    ingest_both(&server, &site, odd);
    let entries = sums();
    for campaign in ["site", odd] {
        apply(&server, "acme", campaign, &entries);
    }
    server.rollup(&site, &[]).expect(0);
    let of_campaign = |campaign: &str| {
        let mut found = virtual_summaries(&server, "acme");
        found.retain(|tags, _| tags["campaign"] == campaign);
        found
    };
    let before = [of_campaign("site"), of_campaign(odd)];
    assert_eq!(before[0].len(), before[1].len());
    assert!(!before[0].is_empty());

    // A channel that has no points in some of the days, another sign, another unit, and two that are removed.
    let changed = [
        sum(
            "V_sum",
            vec![
                (1, whole(A, 1)),
                (1, vec![Part(id(B, 1), Some(MIDNIGHT + 86_400), None)]),
            ],
        ),
        sum("V_net", vec![(-1, whole(A, 2)), (1, whole(A, 1))]),
        Entry {
            unit: "VAr",
            ..sum("V_volts", vec![(1, whole(A, 3))])
        },
        sum("V_alone", vec![(-1, whole(B, 2))]),
    ];
    apply(&server, "acme", odd, &changed);
    for id in ["V_both", "V_later"] {
        remove(&server, "acme", odd, id);
    }
    let (code, found) = server.verify(&site, &[]);
    assert_eq!(
        (code, &found["summaries"]["equal"]),
        (1, &json!(false)),
        "{found:#}"
    );
    server.rollup(&site, &[]).expect(0);
    // Those of the other campaign are as before.
    assert_eq!(of_campaign("site"), before[0]);
    let points = points_of(&files);
    let after = of_campaign(odd);
    assert_eq!(after.len(), 3, "{:?}", after.keys());
    for entry in changed {
        let terms = entry.terms.iter();
        let sources: Vec<_> = terms
            .map(|(factor, parts)| (*factor, source(&points, parts)))
            .collect();
        let found = after
            .iter()
            .find(|(tags, _)| tags["channel_id"] == entry.id);
        if entry.unit == "VAr" {
            assert_eq!(found, None);
            continue;
        }
        let (_, found) = found.expect(entry.id);
        assert_equal(entry.id, found, &summed(&sources, true));
    }
    let (code, found) = server.verify(&site, &[]);
    assert_eq!((code, numbers(&found)), (0, [0; 4]), "{found:#}");

    // A campaign without any entry.
    for entry in &entries {
        remove(&server, "acme", odd, entry.id);
    }
    server.rollup(&site, &[]).expect(0);
    assert_eq!(of_campaign(odd), BTreeMap::new());
    assert_eq!(of_campaign("site"), before[0]);
}

#[test]
fn an_entry_that_is_not_valid_is_a_note() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let files = ingest_both(&server, &site, "site");
    let entries = [sum("V_sum", vec![(1, whole(A, 1)), (1, whole(B, 1))])];
    apply(&server, "acme", "site", &entries);
    mark(&site, "site");
    for (n, terms) in [
        "rubbish",
        "[]",
        r#"{"unit":"W","terms":[]}"#,
        r#"{"unit":"W","terms":[{"factor":0,"parts":[{"channel_id":"x","from":null,"until":null}]}]}"#,
        r#"{"unit":"W","terms":[{"factor":1,"parts":[]}]}"#,
        r#"{"unit":"W","terms":[{"factor":1.5,"parts":[{"channel_id":"x","from":null,"until":null}]}]}"#,
    ]
    .into_iter()
    .enumerate()
    {
        let line = entry_line("site", &format!("V_bad{n}"), "", terms, "");
        server.write("acme", &line, "s");
    }
    let line = entry_line(
        "site",
        "V_b-d",
        "",
        r#"{"unit":"W","terms":[{"factor":1,"parts":[{"channel_id":"x","from":null,"until":null}]}]}"#,
        "",
    );
    server.write("acme", &line, "s");
    // Points of another program that look like a sum.
    let tags = "campaign=site,channel_id=V_x,channel_type=virtual,unit=W";
    server.write("acme", &format!("site,{tags} value=1 {MIDNIGHT}\n"), "s");
    let run = server.rollup(&site, &[]).expect(0);
    for n in 0..6 {
        assert!(run.stderr.contains(&format!("V_bad{n}")), "{}", run.stderr);
    }
    assert!(run.stderr.contains("V_b-d"), "{}", run.stderr);
    assert!(
        run.stderr.contains("channel_type=virtual"),
        "{}",
        run.stderr
    );
    assert_sums(&server, &entries, &files);
}

#[test]
fn a_rebuilt_bucket_has_the_summaries_of_its_virtual_channels() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let files = ingest_both(&server, &site, "site");
    let entries = sums();
    apply(&server, "acme", "site", &entries);
    let call = site.subcommand("rebuild").env("TSV_ROLLUP", "1");
    let call = call.args(["--company=acme", "--yes", "--keep-unexplained"]);
    server.connect(call).run().expect(0);
    assert_sums(&server, &entries, &files);
}
