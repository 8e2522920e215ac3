//! Hourly summaries, against summaries that the tests compute second by second from the points. See docs/specification.md,
//! section 11.

use crate::harness::{Call, DEVICE, FileBuilder, Run, Running, Site, age, samples};
use crate::heartbeat::{Monitor, START, SUCCESS};
use crate::influx_double::{Double, Fault, Gate, Request, is_data_write, is_query};
use crate::line_protocol::Value as Field;
use crate::real_influx::RealInflux;
use crate::samples::{copy_to, read_all};
use crate::second_reader;
use chrono::DateTime;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub type Tags = BTreeMap<String, String>;

/// The summaries of a channel: hour and field to value.
pub type Summaries = BTreeMap<(i64, String), f64>;

/// The points of a channel.
pub type Points = BTreeMap<i64, f64>;

/// Midnight in Paris on 24 October 2025, in the week of the autumn change.
pub const MIDNIGHT: i64 = 1_761_256_800;

// --- servers --------------------------------------------------------------------------------------------------------

pub trait Server {
    fn connect<'a>(&self, call: Call<'a>) -> Call<'a>;

    /// The summaries in a bucket by their tags.
    fn summaries(&self, bucket: &str) -> BTreeMap<Tags, Summaries>;

    /// An ingestion that updates summaries.
    fn ingest<'a>(&self, site: &'a Site) -> Call<'a> {
        self.connect(site.call()).env("TSV_ROLLUP", "1")
    }

    fn rollup(&self, site: &Site, args: &[&str]) -> Run {
        let call = site.bare().arg("rollup").args(args);
        self.connect(call.env("TSV_ROLLUP", "1")).run()
    }

    fn verify(&self, site: &Site, args: &[&str]) -> (i32, Value) {
        let call = site.bare().arg("verify").arg("-d").arg(site.data());
        let call = call.arg("--json").args(args).env("TSV_ROLLUP", "1");
        let run = self.connect(call).run().clean();
        let found = serde_json::from_str(&run.stdout);
        (
            run.code(),
            found.unwrap_or_else(|e| panic!("{e}: {}{}", run.stdout, run.stderr)),
        )
    }
}

impl Server for RealInflux {
    fn connect<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.env("INFLUXDB_HOST", self.url())
            .env("INFLUXDB_ADMIN_TOKEN", self.token())
            .env("INFLUXDB_ORG", self.org())
            .env("TSV_REQUEST_TIMEOUT_S", "30")
            .env("TSV_RETRY_FOR", "30")
    }

    fn summaries(&self, bucket: &str) -> BTreeMap<Tags, Summaries> {
        let mut found: BTreeMap<Tags, Summaries> = BTreeMap::new();
        for row in rows(self, bucket, "==") {
            let time = DateTime::parse_from_rfc3339(&row["_time"]).expect("a time");
            let key = (time.timestamp(), row["_field"].clone());
            let value = row["_value"].parse().expect("a number");
            found.entry(tags(row)).or_default().insert(key, value);
        }
        found
    }
}

impl Server for Double {
    fn connect<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.env("INFLUXDB_HOST", self.url())
            .env("INFLUXDB_ADMIN_TOKEN", crate::influx_double::TOKEN)
            .env("INFLUXDB_ORG", crate::influx_double::ORG)
    }

    fn summaries(&self, bucket: &str) -> BTreeMap<Tags, Summaries> {
        let mut found: BTreeMap<Tags, Summaries> = BTreeMap::new();
        for point in self.points(bucket) {
            if point.measurement == "powerview_1h" {
                let hour = point.time.expect("a time") / 1_000_000_000;
                let fields = point.fields.iter().map(|(key, value)| {
                    let value = match value {
                        Field::Int(number) => *number as f64,
                        value => value.float(),
                    };
                    ((hour, key.clone()), value)
                });
                found.entry(point.tags).or_default().extend(fields);
            }
        }
        found
    }
}

/// The rows of a bucket whose measurement is that of the summaries, or is not.
fn rows(server: &RealInflux, bucket: &str, is: &str) -> Vec<BTreeMap<String, String>> {
    server.rows(&format!(
        "from(bucket: \"{bucket}\") |> range(start: -9223372036, stop: 9223372036)
         |> filter(fn: (r) => r._measurement {is} \"powerview_1h\")"
    ))
}

/// The tags of a row.
fn tags(row: BTreeMap<String, String>) -> Tags {
    let is_tag = |name: &str| !name.starts_with('_') && !["", "result", "table"].contains(&name);
    row.into_iter().filter(|(name, _)| is_tag(name)).collect()
}

// --- what is expected ---------------------------------------------------------------------------------------------

/// Computes the summaries of points second by second.
#[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
fn integrated(points: &Points, unit: Option<&str>, max_gap: Option<i64>) -> Summaries {
    let watts = match unit {
        Some("W") => Some(1.0),
        Some("kW") => Some(1_000.0),
        Some("MW") => Some(1_000_000.0),
        _ => None,
    };
    let points: Vec<_> = points.iter().map(|(time, value)| (*time, *value)).collect();
    let mut lengths: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for pair in points.windows(2) {
        let of_day = lengths.entry(pair[0].0.div_euclid(86_400)).or_default();
        of_day.push(pair[1].0 - pair[0].0);
    }
    let limit = |day: i64| {
        let mut lengths = lengths[&day].clone();
        lengths.sort_unstable();
        let median = lengths[lengths.len().div_ceil(2) - 1];
        max_gap.unwrap_or((3 * median).clamp(900, 7_200))
    };
    let hour = |time: i64| time - time.rem_euclid(3_600);
    // Points, seconds, and the integrals of the positive and the negative part.
    let mut hours: BTreeMap<i64, [f64; 4]> = BTreeMap::new();
    for (time, _) in &points {
        hours.entry(hour(*time)).or_default()[0] += 1.0;
    }
    for pair in points.windows(2) {
        let [(start, first), (end, last)] = [pair[0], pair[1]];
        let is_known = end - start <= limit(start.div_euclid(86_400));
        if !is_known && (end - start > 7_200 || max_gap.is_some()) {
            continue;
        }
        let slope = (last - first) / (end - start) as f64;
        for second in start..end {
            let sums = hours.entry(hour(second)).or_default();
            if !is_known {
                continue;
            }
            let from = first + slope * (second - start) as f64;
            let to = from + slope;
            // The integral of the positive part of a line.
            let positive = |from: f64, to: f64| match (from > 0.0, to > 0.0) {
                (true, true) => f64::midpoint(from, to),
                (true, false) => from * from / (from - to) / 2.0,
                (false, true) => to * to / (to - from) / 2.0,
                (false, false) => 0.0,
            };
            sums[1] += 1.0;
            sums[2] += positive(from, to) / 3_600.0;
            sums[3] += positive(-from, -to) / 3_600.0;
        }
    }
    let mut found = Summaries::new();
    for (hour, [count, seconds, energy_in, energy_out]) in hours {
        found.insert((hour, "count".to_owned()), count);
        found.insert((hour, "covered_s".to_owned()), seconds);
        if let Some(watts) = watts {
            found.insert((hour, "energy_in_wh".to_owned()), energy_in * watts);
            found.insert((hour, "energy_out_wh".to_owned()), energy_out * watts);
        }
    }
    let mut values: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for (time, value) in &points {
        values.entry(hour(*time)).or_default().push(*value);
    }
    for (hour, values) in values {
        let mut set = |field: &str, value: f64| found.insert((hour, field.to_owned()), value);
        set("mean", values.iter().sum::<f64>() / values.len() as f64);
        let fold = |start, pick: fn(f64, f64) -> f64| values.iter().copied().fold(start, pick);
        set("min", fold(f64::INFINITY, f64::min));
        set("max", fold(f64::NEG_INFINITY, f64::max));
    }
    found
}

/// Checks summaries against the points of their channels.
#[track_caller]
fn assert_integrated(
    found: &BTreeMap<Tags, Summaries>,
    channels: &BTreeMap<Tags, Points>,
    max_gap: Option<i64>,
) {
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        channels.keys().collect::<Vec<_>>()
    );
    for (tags, points) in channels {
        let expected = integrated(points, tags.get("unit").map(String::as_str), max_gap);
        let found = &found[tags];
        let extra = found.keys().filter(|key| !expected.contains_key(key));
        let missing = expected.keys().filter(|key| !found.contains_key(key));
        let differing: Vec<_> = extra.chain(missing).take(5).collect();
        assert!(differing.is_empty(), "{tags:?} {differing:?}");
        for (key, value) in &expected {
            let difference = (found[key] - value).abs();
            assert!(
                difference <= 1e-9 * (1.0 + value.abs()),
                "{tags:?} {key:?}: {} {value}",
                found[key]
            );
        }
        let sum = |summaries: &Summaries, field: &str| {
            let values = summaries.iter().filter(|((_, key), _)| key == field);
            values.map(|(_, value)| value).sum::<f64>()
        };
        let energies = ["energy_in_wh", "energy_out_wh"];
        let size: f64 = energies.iter().map(|field| sum(&expected, field)).sum();
        for field in energies {
            let (found, expected) = (sum(found, field), sum(&expected, field));
            assert!(
                (found - expected).abs() <= 1e-9 * size,
                "{tags:?} {field}: {found} {expected}"
            );
        }
    }
}

/// Adds the points of files of a campaign, in the order of their uploads.
pub fn add_points(channels: &mut BTreeMap<Tags, Points>, campaign: &str, files: &[&str]) {
    for file in files {
        let read = second_reader::read(file.as_bytes(), campaign, chrono_tz::Europe::Paris);
        for point in read.expect("a file").points {
            let channel = channels.entry(point.tags).or_default();
            channel.insert(point.epoch, point.value);
        }
    }
}

/// Checks the summaries of a bucket against the points of the files of a campaign, in the order of their uploads.
#[track_caller]
fn assert_summaries(server: &impl Server, bucket: &str, files: &[&str]) {
    let mut channels = BTreeMap::new();
    add_points(&mut channels, "site", files);
    assert_integrated(&server.summaries(bucket), &channels, None);
}

// --- files ----------------------------------------------------------------------------------------------------------

/// A file of three channels with a point at each time, in the local time of Paris. The second one is often negative.
fn file_of_times(times: impl IntoIterator<Item = i64>, seed: u64) -> String {
    file_of_channels(["Load W", "Net W", "U V"], times, seed)
}

pub fn file_of_channels(
    labels: [&str; 3],
    times: impl IntoIterator<Item = i64>,
    seed: u64,
) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |from: i64, to: i64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        from + i64::try_from(state % 1_000_000).expect("small") % (to - from)
    };
    let lines = times.into_iter().map(|time| {
        let utc = DateTime::from_timestamp(time, 0).expect("a time");
        let local = utc.with_timezone(&chrono_tz::Europe::Paris);
        let (load, net, voltage) = (
            random(0, 9_000),
            random(-5_000, 5_000),
            random(22_000, 24_000),
        );
        let time = local.format("%d/%m/%y %H:%M:%S");
        format!(
            "{time}\t{load}.25\t{net}.5\t{}.{:02}",
            voltage / 100,
            voltage % 100
        )
    });
    FileBuilder::with_channels(labels).lines(lines).build()
}

/// Every ten minutes of the local day of 24 October 2025 plus `day` days. The night of 26 October has the autumn change.
fn day_file(day: i64) -> String {
    let midnight = MIDNIGHT + day * 86_400 + if day > 2 { 3_600 } else { 0 };
    let rows = if day == 2 { 150 } else { 144 };
    let seed = day.unsigned_abs() + 1;
    file_of_times((0..rows).map(|n| midnight + n * 600), seed)
}

/// Puts files and ingests them all in one run.
fn ingest_all(server: &impl Server, site: &Site, company: &str, files: &[String]) -> Run {
    for (n, file) in files.iter().enumerate() {
        let path = site.put(format!("{company}/site/02001171/{n}.tsv"), file);
        age(&path, 7_200 - 60 * n as u64);
    }
    let run = server.ingest(site).run().expect(0);
    assert!(!run.stderr.contains("summaries"), "{}", run.stderr);
    run
}

// --- ingestion ------------------------------------------------------------------------------------------------------

#[test]
fn summaries_are_up_to_date_after_each_file() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let uploads = [
        // A day, the one after the next, and the one between, which is late.
        day_file(0),
        day_file(2),
        day_file(1),
        // A month later, so that the last day before it is computed again.
        file_of_times((0..50).map(|n| MIDNIGHT + 30 * 86_400 + n * 600), 7),
        // Between them: an interval over midnight, and gaps of 29, 30 and 31 minutes.
        file_of_times(
            [0, 600, 1_200, 1_800, 3_540, 5_340, 7_200, 7_800]
                .map(|n| MIDNIGHT + 10 * 86_400 - 900 + n),
            8,
        ),
        // A correction of a part of the first day, and one row alone.
        file_of_times((40..60).map(|n| MIDNIGHT + n * 600), 9),
        file_of_times([MIDNIGHT + 6 * 86_400 + 5], 10),
        // Each second for ten minutes, over midnight.
        file_of_times((0..600).map(|n| MIDNIGHT + 3 * 86_400 - 300 + n), 11),
        // Two hours apart, so that an hour without a point is covered. Later points of the same day end that.
        file_of_times(
            (0..6).map(|n| MIDNIGHT + 15 * 86_400 + 10_800 + n * 7_200),
            12,
        ),
        file_of_times(
            (0..60).map(|n| MIDNIGHT + 15 * 86_400 + 60_000 + n * 60),
            13,
        ),
        // The end of a month and of a year, and the change in spring.
        file_of_times((0..300).map(|n| 1_764_500_000 + n * 600), 14),
        file_of_times((0..300).map(|n| 1_767_100_000 + n * 600), 15),
        file_of_times((0..300).map(|n| 1_774_700_000 + n * 600), 16),
    ];
    let mut ingested: Vec<&str> = Vec::new();
    for (n, upload) in uploads.iter().enumerate() {
        let file = site.put(DEVICE.file(format!("{n}.tsv")), upload);
        age(&file, 3_600 - 60 * n as u64);
        let call = server.ingest(&site);
        let run = call.named(DEVICE.file(format!("{n}.tsv"))).run().expect(0);
        assert!(!run.stderr.contains("summaries"), "{}", run.stderr);
        ingested.push(upload);
        assert_summaries(&server, "acme", &ingested);
    }
    // Nothing is to be written again.
    let run = server.rollup(&site, &["--company", "acme"]).expect(0);
    assert!(run.stdout.starts_with("acme: "), "{}", run.stdout);
    assert!(
        run.stdout.ends_with(" hourly summaries\n"),
        "{}",
        run.stdout
    );
    assert_summaries(&server, "acme", &ingested);
}

#[test]
fn summaries_of_the_past_are_computed_on_request() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let files = [day_file(0), day_file(2), day_file(40), day_file(400)];
    for (n, file) in files.iter().enumerate() {
        site.put_old(DEVICE.file(format!("{n}.tsv")), file);
    }
    server.connect(site.call()).run().expect(0);
    assert_eq!(server.summaries("acme"), BTreeMap::new(), "TSV_ROLLUP=0");
    let all: Vec<&str> = files.iter().map(String::as_str).collect();
    server.rollup(&site, &["--since", "2026-01-01"]).expect(0);
    let hours = |summaries: BTreeMap<Tags, Summaries>| -> BTreeSet<i64> {
        let keys = summaries.into_values().flat_map(BTreeMap::into_keys);
        keys.map(|(hour, _)| hour).collect()
    };
    let first = hours(server.summaries("acme")).into_iter().next();
    assert_eq!(first, Some(MIDNIGHT + 400 * 86_400 + 3_600));
    server.rollup(&site, &[]).expect(0);
    assert_summaries(&server, "acme", &all);

    // The sweep has the same result.
    let other = Site::new();
    ingest_all(&server, &other, "other", &files);
    assert_summaries(&server, "other", &all);
    let off = server.connect(site.bare().arg("rollup")).run().expect(0);
    assert_eq!(off.stdout, "", "TSV_ROLLUP=0");
    assert!(off.stderr.contains("TSV_ROLLUP"), "{}", off.stderr);
    let nobody = server.rollup(&site, &["--company", "nobody"]).expect(2);
    assert!(nobody.stderr.contains("no bucket"), "{}", nobody.stderr);
}

#[test]
fn the_gap_limit_can_be_set() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    // Every three hours, of which nothing is known without the setting. The last file comes a day and a half later.
    let files = [
        file_of_times((0..40).map(|n| MIDNIGHT + n * 10_800), 3),
        file_of_times((0..40).map(|n| MIDNIGHT + 560_000 + n * 10_800), 4),
    ];
    for (gap, seconds) in [("3h", 10_800), ("40h", 144_000)] {
        let company = format!("acme{gap}");
        for (n, file) in files.iter().enumerate() {
            let path = format!("{company}/site/02001171/{n}.tsv");
            age(&site.put(&path, file), 3_600 - 60 * n as u64);
            let call = server.ingest(&site).named(&path);
            call.env("TSV_MAX_GAP", gap).run().expect(0);
        }
        let mut channels = BTreeMap::new();
        add_points(&mut channels, "site", &[&files[0], &files[1]]);
        assert_integrated(&server.summaries(&company), &channels, Some(seconds));
    }
}

/// The sum of the energies of all channels.
fn energy(summaries: &BTreeMap<Tags, Summaries>) -> f64 {
    let fields = summaries.values().flatten();
    let energies = fields.filter(|((_, field), _)| field.starts_with("energy_"));
    energies.map(|(_, value)| value).sum()
}

#[test]
fn a_lower_gap_limit_leaves_no_energy_in_hours_where_nothing_is_known() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    for (company, interval, before, after) in
        [("a", 10_800, Some("4h"), "1h"), ("b", 7_200, None, "15m")]
    {
        let file = file_of_times((0..24).map(|n| MIDNIGHT + n * interval), 5);
        let path = format!("{company}/site/02001171/0.tsv");
        site.put_old(&path, &file);
        let call = server.ingest(&site).named(&path);
        let call = before
            .into_iter()
            .fold(call, |call, gap| call.env("TSV_MAX_GAP", gap));
        call.run().expect(0);
        assert!(energy(&server.summaries(company)) > 0.0);
        let run = |command: &str, args: &[&str]| {
            let call = site.bare().arg(command).args(args);
            let call = server.connect(call).env("TSV_ROLLUP", "1");
            call.env("TSV_MAX_GAP", after).run().expect(0)
        };
        run("rollup", &["--company", company]);
        let mut found = server.summaries(company);
        assert_eq!(energy(&found), 0.0, "{company}");
        // The hours between the points say that nothing is known, and are no difference.
        let mut channels = BTreeMap::new();
        add_points(&mut channels, "site", &[&file]);
        for (tags, points) in &channels {
            let unit = tags.get("unit").map(String::as_str);
            let expected = integrated(points, unit, Some(900));
            let more = found.get_mut(tags).expect("a channel");
            more.retain(|key, value| expected.contains_key(key) || *value != 0.0);
        }
        assert_integrated(&found, &channels, Some(900));
        let again = run("rollup", &["--company", company]);
        assert_eq!(again.stdout, format!("{company}: 72 hourly summaries\n"));
        let data = site.data();
        let data = data.to_str().expect("a name");
        run("verify", &["-d", data, "--company", company]);
    }
}

#[test]
fn the_summaries_of_real_files_are_those_of_their_points() {
    let (Some(dir), Some(server)) = (samples(), RealInflux::start()) else {
        return;
    };
    let site = Site::new();
    let samples = read_all(&dir);
    copy_to(&site, &dir, &samples);
    let call = server.ingest(&site).timeout(Duration::from_mins(5));
    // Some of them cannot be ingested.
    let run = call.run().expect(1);
    assert!(!run.stderr.contains("summaries"), "{}", run.stderr);
    let companies: BTreeSet<_> = samples.iter().map(|sample| &sample.company).collect();
    let mut energies = 0;
    for company in companies {
        if server.bucket_id(company).is_none() {
            continue;
        }
        let mut channels: BTreeMap<Tags, Points> = BTreeMap::new();
        for row in rows(&server, company, "!=") {
            let time = DateTime::parse_from_rfc3339(&row["_time"]).expect("a time");
            let value = row["_value"].parse().expect("a number");
            let channel = channels.entry(tags(row)).or_default();
            channel.insert(time.timestamp(), value);
        }
        let found = server.summaries(company);
        assert_integrated(&found, &channels, None);
        let fields = found.values().flat_map(BTreeMap::keys);
        energies += fields.filter(|(_, field)| field == "energy_in_wh").count();
    }
    assert!(energies > 0, "no sample has a power");
}

#[test]
fn names_and_units_are_those_of_the_points() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let campaign = "my site, 1=2";
    let times = || (0..20).map(|n| MIDNIGHT + n * 600);
    let files = [
        file_of_channels(["a,b=c d kW", "\"quoted\" MW", "back\\slash W"], times(), 1),
        file_of_channels(["${x} W", "Temp °C", "x"], times(), 2),
    ];
    for (n, file) in files.iter().enumerate() {
        site.put_old(format!("acme/{campaign}/02001171/{n}.tsv"), file);
    }
    server.ingest(&site).run().expect(0);
    let mut channels = BTreeMap::new();
    add_points(&mut channels, campaign, &[&files[0], &files[1]]);
    assert_eq!(channels.len(), 6);
    assert_integrated(&server.summaries("acme"), &channels, None);
    let run = server.rollup(&site, &["--company", "acme"]).expect(0);
    assert!(
        run.stdout.ends_with(" hourly summaries\n"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_file_with_several_masters_has_the_summaries_of_all() {
    let double = Double::start();
    let site = Site::new();
    let first = file_of_times((0..30).map(|n| MIDNIGHT + n * 600), 1);
    let second = file_of_times((0..30).map(|n| MIDNIGHT + 864_000 + n * 600), 2);
    let file = first + &second.replace("02001171", "02001172");
    site.put_old(DEVICE.file("0.tsv"), &file);
    double.ingest(&site).run().expect(0);
    assert_summaries(&double, "acme", &[&file]);
    let tags = double.summaries("acme").into_keys();
    let masters: BTreeSet<_> = tags.map(|tags| tags["device_master_sn"].clone()).collect();
    assert_eq!(masters.len(), 2);
}

#[test]
fn points_of_other_programs_have_summaries_of_their_own() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    // A field has one type in each shard, so its shards have to be short.
    server.create_bucket("acme", 0);
    let file = day_file(0);
    site.put_old(DEVICE.file("0.tsv"), &file);
    server.ingest(&site).run().expect(0);
    let check = site.bare().arg("check").arg("-d").arg(site.data());
    let check = server.connect(check).run().clean();
    assert!(!check.stdout.contains("old points"), "{}", check.stdout);
    let tags = "campaign=site,channel_id=S02001171_Ch1_M02001171,channel_name=Load,channel_number=1,\
                channel_type=master,device_master_sn=02001171,device_sn=02001171,unit=W";
    let ns = |seconds: i64| seconds * 1_000_000_000;
    // The old script wrote no tag device: before, at the same time as and after ours.
    let mut old = BTreeMap::new();
    let mut lines = String::new();
    for n in -20..180 {
        let time = MIDNIGHT + n * 600 + if n % 3 == 0 { 0 } else { 7 };
        old.insert(time, 100.0 + n as f64);
        lines += &format!("site,{tags} value={} {}\n", 100 + n, ns(time));
    }
    // Neither of these is a point of a channel.
    lines += &format!("site,{tags} note=\"x\",ok=true {}\n", ns(MIDNIGHT));
    lines += &format!("site,kind=other value=1 {}\n", ns(MIDNIGHT));
    lines += &format!(
        "cpu,host=a,device_master_sn=02001171 value=1 {}\n",
        ns(MIDNIGHT)
    );
    server.write("acme", &lines, "ns");
    // Other types are possible in weeks without points of ours.
    let week = MIDNIGHT - 20 * 604_800;
    for (n, value) in ["1i", "true", "\"text\""].iter().enumerate() {
        let time = ns(week - 604_800 * n as i64);
        server.write("acme", &format!("site,{tags} value={value} {time}\n"), "ns");
    }
    server.write(
        "telegraf",
        &format!("cpu,host=a value=1 {}\n", ns(MIDNIGHT)),
        "ns",
    );

    let (code, found) = server.verify(&site, &[]);
    assert_eq!((code, &found["summaries"]["equal"]), (1, &json!(false)));
    let note = "bucket acme: points of 1 channel in the measurement site have no tag \"device\"";
    let notes = found["notes"].as_array().expect("a list");
    assert_eq!(notes.len(), 1, "{notes:#?}");
    assert!(
        notes[0].as_str().is_some_and(|n| n.starts_with(note)),
        "{notes:#?}"
    );
    let check = site.bare().arg("check").arg("-d").arg(site.data());
    let check = server.connect(check).run().clean();
    let line = check
        .stdout
        .lines()
        .find(|line| line.contains("old points"));
    let line = line.unwrap_or_else(|| panic!("{}", check.stdout));
    assert!(line.starts_with("warn") && line.contains(note), "{line}");
    server.rollup(&site, &[]).expect(0);
    let mut channels = BTreeMap::new();
    add_points(&mut channels, "site", &[&file]);
    let old_tags = tags.split(',').map(|tag| {
        let (key, value) = tag.split_once('=').expect("a tag");
        (key.to_owned(), value.to_owned())
    });
    channels.insert(old_tags.collect(), old);
    assert_integrated(&server.summaries("acme"), &channels, None);
    assert_eq!(server.summaries("telegraf"), BTreeMap::new());

    // A fraction of a second: 3600 W for 2 s are 2 Wh.
    let channel = "channel_id=a,device_master_sn=b,unit=W";
    let times = [0, 500_000_000, 2_000_000_000].map(|after| ns(MIDNIGHT) + after);
    let lines = times.map(|time| format!("site,{channel} value=3600 {time}\n"));
    server.write("fractions", &lines.concat(), "ns");
    server.rollup(&site, &["--company=fractions"]).expect(0);
    let found = server.summaries("fractions").into_values().next();
    let expected = [
        ("count", 3.0),
        ("covered_s", 2.0),
        ("energy_in_wh", 2.0),
        ("energy_out_wh", 0.0),
        ("max", 3_600.0),
        ("mean", 3_600.0),
        ("min", 3_600.0),
    ];
    let expected = expected.map(|(field, value)| ((MIDNIGHT, field.to_owned()), value));
    assert_eq!(found, Some(Summaries::from(expected)));
}

/// The line of a channel with a value.
fn line_of(measurement: &str, tags: &str, value: f64, time: i64) -> String {
    format!("{measurement},{tags} value={value} {time}000000000\n")
}

#[test]
fn points_that_belong_to_another_measurement_have_no_summaries() {
    let (double, site) = (Double::start(), Site::new());
    let file = day_file(0);
    site.put_old(DEVICE.file("0.tsv"), &file);
    double.ingest(&site).run().expect(0);
    let mut channels = BTreeMap::new();
    add_points(&mut channels, "site", &[&file]);
    // A person has copied the measurement with its tags, and changed the points.
    for (tags, points) in &channels {
        let tags = tags.iter().map(|(key, value)| {
            let value = value.replace(' ', "\\ ");
            format!("{key}={value}")
        });
        let tags = tags.collect::<Vec<_>>().join(",");
        let lines = points
            .iter()
            .map(|(time, value)| line_of("site_copy", &tags, value * 3.0, time + 7));
        double.insert("acme", &lines.collect::<String>());
    }
    let note = "measurement site_copy: points with the tag campaign=site have no hourly summaries";
    let run = double.rollup(&site, &[]).expect(0);
    assert!(run.stderr.contains(note), "{}", run.stderr);
    assert_eq!(run.stdout, "acme: 72 hourly summaries\n");
    assert_integrated(&double.summaries("acme"), &channels, None);
    for args in [&[][..], &["--company=acme", "--campaign=site"]] {
        let (_, found) = double.verify(&site, args);
        assert_eq!(found["summaries"]["equal"], true, "{args:?} {found:#}");
        let notes = found["notes"].as_array().expect("a list");
        let is_noted = notes
            .iter()
            .any(|n| n.as_str().is_some_and(|n| n.contains(note)));
        assert_eq!(is_noted, args.is_empty(), "{notes:#?}");
    }
    // Nor are they summarized if the measurement has points of its own.
    let own = "acme/site_copy/02001171/0.tsv";
    site.put_old(own, &file);
    let run = double.ingest(&site).named(own).run().expect(0);
    assert!(run.stderr.contains(note), "{}", run.stderr);
    add_points(&mut channels, "site_copy", &[&file]);
    assert_integrated(&double.summaries("acme"), &channels, None);
}

#[test]
fn points_without_a_campaign_have_summaries_unless_they_are_in_several_measurements() {
    let (double, site) = (Double::start(), Site::new());
    let file = day_file(0);
    site.put_old(DEVICE.file("0.tsv"), &file);
    double.ingest(&site).run().expect(0);
    let tags = "channel_id=x,device_master_sn=02001171,unit=W";
    let points: Points = (0..20).map(|n| (MIDNIGHT + n * 600, n as f64)).collect();
    let lines = |measurement| {
        let lines = points
            .iter()
            .map(|(time, value)| line_of(measurement, tags, *value, *time));
        lines.collect::<String>()
    };
    double.insert("acme", &lines("site"));
    let equal = |args: &[&str]| double.verify(&site, args).1["summaries"]["equal"].clone();
    let campaign = ["--company=acme", "--campaign=site"];
    assert_eq!((equal(&[]), equal(&campaign)), (json!(false), json!(true)));
    double.rollup(&site, &[]).expect(0);
    let mut channels = BTreeMap::new();
    add_points(&mut channels, "site", &[&file]);
    let own_tags = tags.split(',').filter_map(|tag| tag.split_once('='));
    let own_tags: Tags = own_tags
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    channels.insert(own_tags, points.clone());
    assert_integrated(&double.summaries("acme"), &channels, None);
    assert_eq!((equal(&[]), equal(&campaign)), (json!(true), json!(true)));

    double.insert("acme", &lines("other"));
    let run = double.rollup(&site, &[]).expect(0);
    // Four hours in each of two measurements.
    assert_eq!(run.stdout, "acme: 72 hourly summaries, 8 skipped\n");
    assert!(
        run.stderr.contains("points without the tag campaign"),
        "{}",
        run.stderr
    );
    assert_integrated(&double.summaries("acme"), &channels, None);
    assert_eq!((equal(&[]), equal(&campaign)), (json!(true), json!(true)));
}

#[test]
fn a_channel_whose_summaries_cannot_be_written_does_not_prevent_others() {
    let (double, site) = (Double::start(), Site::new());
    let file = day_file(0);
    site.put_old(DEVICE.file("0.tsv"), &file);
    double.connect(site.call()).run().expect(0);
    let tags = [
        ("channel_id", "a\nb"),
        ("device_master_sn", "02001171"),
        ("unit", "W"),
    ];
    let tags: Tags = tags
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    for n in 0..7 {
        let time = (MIDNIGHT + n * 600) * 1_000_000_000;
        double.insert_value("acme", "site", tags.clone(), 1.0, time);
    }
    let note = "measurement site: channels whose tags have a line break";
    let run = double.rollup(&site, &[]).expect(0);
    // It has points in two hours.
    assert_eq!(
        run.stdout,
        "acme: 72 hourly summaries, 2 skipped, 72 written\n"
    );
    assert!(run.stderr.contains(note), "{}", run.stderr);
    assert_summaries(&double, "acme", &[&file]);
    let next = day_file(1);
    site.put_old(DEVICE.file("1.tsv"), &next);
    let run = double.ingest(&site).run().expect(0);
    assert!(run.stderr.contains(note), "{}", run.stderr);
    assert_summaries(&double, "acme", &[&file, &next]);
}

#[test]
fn a_request_that_is_refused_for_a_device_does_not_end_the_company() {
    for status in [400, 404] {
        let (double, site) = (Double::start(), Site::new());
        let first = day_file(0);
        let second = day_file(1).replace("02001171", "02001172");
        site.put_old(DEVICE.file("0.tsv"), &first);
        site.put_old("acme/site/02001172/0.tsv", &second);
        double.connect(site.call()).run().expect(0);
        let is_of_first = |request: &Request| {
            is_query(request)
                && request.text().contains("yield")
                && request.text().contains("02001171")
        };
        let refused = Fault::status(status, "no");
        double.fault(is_of_first, 0, usize::MAX, refused.clone());
        let run = double.rollup(&site, &[]).expect(1);
        let failure = "acme: device_master_sn \"02001171\": ";
        assert!(run.stderr.contains(failure), "{status}: {}", run.stderr);
        assert_summaries(&double, "acme", &[&second]);
        let (code, found) = double.verify(&site, &[]);
        assert_eq!(code, 1, "{found:#}");
        let failures = found["failures"].as_array().expect("a list");
        assert_eq!(failures.len(), 1, "{status}: {failures:#?}");
        assert_eq!(found["summaries"]["different"], 0, "{found:#}");
        assert_eq!(found["summaries"]["equal"], false, "{found:#}");

        // A batch that is refused is one of a device too.
        double.clear_faults();
        double.fault(is_of_summaries, 0, 1, refused.clone());
        site.put_old(
            "acme/site/02001172/1.tsv",
            day_file(20).replace("02001171", "02001172"),
        );
        double.connect(site.call()).run().expect(0);
        let run = double.rollup(&site, &[]).expect(i32::from(status == 400));
        assert_eq!(
            run.stderr.contains(failure),
            status == 400,
            "{}",
            run.stderr
        );
        double.rollup(&site, &[]).expect(0);
    }
    // Without the right to read, nothing else is tried.
    for status in [401, 403] {
        let (double, site) = (Double::start(), Site::new());
        for serial in ["02001171", "02001172", "02001173"] {
            let file = day_file(0).replace("02001171", serial);
            site.put_old(format!("acme/site/{serial}/0.tsv"), file);
        }
        double.connect(site.call()).run().expect(0);
        let is_of_points =
            |request: &Request| is_query(request) && request.text().contains("yield");
        double.fault(is_of_points, 0, usize::MAX, Fault::status(status, "no"));
        double.rollup(&site, &[]).expect(1);
        let requests = double.requests();
        assert_eq!(
            requests.iter().filter(|r| is_of_points(r)).count(),
            1,
            "{status}"
        );
        let (code, found) = double.verify(&site, &[]);
        assert_eq!((code, &found["summaries"]["equal"]), (1, &json!(false)));
    }
}

// --- cost and failures ----------------------------------------------------------------------------------------------

fn is_of_summaries(request: &Request) -> bool {
    is_data_write(request) && request.text().starts_with("powerview_1h,")
}

/// The requests about summaries of an ingestion of named files, or of a sweep: queries and writes. All others are the same
/// as without summaries.
fn requests_of(files: &[String], are_named: bool) -> (usize, usize) {
    let others = ["0", "1"].map(|is_on| {
        let (double, site) = (Double::start(), Site::new());
        for (n, file) in files.iter().enumerate() {
            let path = site.put(DEVICE.file(format!("{n}.tsv")), file);
            age(&path, 7_200 - 60 * n as u64);
        }
        let mut call = double.ingest(&site).env("TSV_ROLLUP", is_on);
        for n in 0..if are_named { files.len() } else { 0 } {
            call = call.named(DEVICE.file(format!("{n}.tsv")));
        }
        call.run().expect(0);
        let (summaries, others): (Vec<_>, Vec<_>) = double
            .requests()
            .into_iter()
            .partition(|request| is_query(request) || is_of_summaries(request));
        let queries = summaries.iter().filter(|request| is_query(request)).count();
        let mut others: Vec<_> = others
            .into_iter()
            .map(|request| format!("{} {} {}", request.method, request.path, request.bucket))
            .collect();
        others.sort();
        (others, (queries, summaries.len() - queries))
    });
    let [(without, none), (with, counts)] = others;
    assert_eq!(without, with);
    assert_eq!(none, (0, 0));
    counts
}

#[test]
fn an_ingestion_sends_one_query_and_one_write_more() {
    assert_eq!(requests_of(&[day_file(0)], true), (1, 1));
    let week: Vec<_> = (0..7).map(day_file).collect();
    assert_eq!(requests_of(&week, true), (1, 1));
    assert_eq!(requests_of(&week, false), (1, 1));
    // After a silence, the last day before it is read too: its last interval has changed.
    let (double, site) = (Double::start(), Site::new());
    for (n, day) in [0, 20].into_iter().enumerate() {
        age(
            &site.put(DEVICE.file(format!("{n}.tsv")), day_file(day)),
            7_200 - n as u64,
        );
        let before = double.requests().len();
        double.ingest(&site).run().expect(0);
        let requests = double.requests().split_off(before);
        let queries = requests.iter().filter(|request| is_query(request)).count();
        let writes = requests
            .iter()
            .filter(|request| is_of_summaries(request))
            .count();
        assert_eq!((queries, writes), (n + 1, 1), "file {n}");
    }
    assert_summaries(&double, "acme", &[&day_file(0), &day_file(20)]);
}

#[test]
fn a_sweep_reads_each_point_about_once() {
    let (double, site) = (Double::start(), Site::new());
    let files: Vec<_> = (0..70).map(day_file).collect();
    ingest_all(&double, &site, "acme", &files);
    let all: Vec<&str> = files.iter().map(String::as_str).collect();
    assert_summaries(&double, "acme", &all);
    let queries = double.requests();
    let queries = queries.iter().filter(|request| is_query(request));
    let days = queries.map(days_read);
    let days: i64 = days.sum();
    assert!((71..100).contains(&days), "{days} days are read for 70");
}

#[test]
fn nothing_is_read_if_nothing_is_written() {
    let (double, site) = (Double::start(), Site::new());
    double.add_bucket("acme");
    site.put_old(DEVICE.file("0.tsv"), crate::harness::bad_file());
    double.ingest(&site).run().expect(1);
    site.put_old(DEVICE.file("1.tsv"), day_file(0));
    double.ingest(&site).arg("--dry-run").run().expect(0);
    let call = double.ingest(&site).arg("--line-protocol-dir");
    let run = call.arg(site.lp_dir()).run().expect(0);
    assert!(!run.stderr.contains("summaries"), "{}", run.stderr);
    assert_eq!(double.requests().iter().filter(|r| is_query(r)).count(), 0);
    assert!(!site.lp_text("acme").contains("powerview_1h"));
}

/// Ingests a file with the default times to retry while requests about summaries get this answer. Only a warning may
/// follow.
#[track_caller]
fn assert_only_a_warning(what: &str, is_faulty: fn(&Request) -> bool, fault: Fault, named: bool) {
    let (double, site) = (Double::start(), Site::new());
    double.fault(is_faulty, 0, usize::MAX, fault);
    let name = DEVICE.file("0.tsv");
    site.put_old(&name, day_file(0));
    site.put_old(DEVICE.file("1.tsv"), day_file(30));
    let call = double
        .ingest(&site)
        .no_env("TSV_RETRY_FOR")
        .no_env("TSV_REQUEST_TIMEOUT_S");
    let call = if named { call.named(&name) } else { call };
    let run = call.run().expect(0);
    assert!(run.took < Duration::from_secs(15), "{what}: {:?}", run.took);
    assert!(site.exists(DEVICE.parsed("0.tsv")), "{what}");
    let report = site.report();
    assert_eq!(report["status"], "success", "{what}");
    assert_eq!(report["outage"], false, "{what}: {report:#}");
    let warnings: Vec<_> = run
        .stderr
        .lines()
        .filter(|line| {
            line.contains("the hourly summaries of acme") && line.contains("are not up to date")
        })
        .collect();
    assert_eq!(warnings.len(), 1, "{what}: {}", run.stderr);
    assert!(warnings[0].contains("WARN"), "{what}: {}", warnings[0]);
    let remedy = format!(
        "; the next run goes on, or run powerview rollup -d {}",
        site.data().display()
    );
    assert!(warnings[0].contains(&remedy), "{what}: {}", warnings[0]);
    assert!(!run.stderr.contains("ERROR"), "{what}: {}", run.stderr);
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn a_server_without_queries_is_a_warning() {
    for (status, message) in [
        (404, "path not found"),
        (401, "unauthorized access"),
        (403, "no"),
    ] {
        let fault = Fault::status(status, message);
        assert_only_a_warning(message, is_query, fault, true);
    }
    let nothing = Fault::Status(204, String::new());
    assert_only_a_warning("204", is_query, nothing.clone(), true);
    assert_only_a_warning("204 in a sweep", is_query, nothing, false);
    assert_only_a_warning("a page", is_query, Fault::Html(200), true);
    assert_only_a_warning("half an answer", is_query, Fault::CutBody, true);
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn a_server_that_fails_to_answer_queries_delays_a_run_by_seconds() {
    assert_only_a_warning("half a body", is_query, Fault::StallBody, true);
    assert_only_a_warning("500", is_query, Fault::status(500, "no"), true);
    assert_only_a_warning("silence", is_query, Fault::Silence, true);
    assert_only_a_warning("silence in a sweep", is_query, Fault::Silence, false);
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn a_server_that_refuses_summaries_is_a_warning() {
    let refused = Fault::status(422, "partial write: dropped=1");
    assert_only_a_warning("422", is_of_summaries, refused, true);
    assert_only_a_warning("503", is_of_summaries, Fault::status(503, "no"), true);
    assert_only_a_warning("silence", is_of_summaries, Fault::Silence, true);
}

#[test]
#[ignore = "slow: waits for the time limit"]
fn a_slow_server_delays_a_run_by_seconds_and_the_next_run_goes_on() {
    let (double, site) = (Double::start(), Site::new());
    let files: Vec<_> = (0..5).map(|n| day_file(40 * n)).collect();
    for (n, file) in files.iter().enumerate() {
        site.put_old(DEVICE.file(format!("{n}.tsv")), file);
    }
    // Each file needs two queries.
    double.fault(is_query, 0, usize::MAX, Fault::Slow(Duration::from_secs(2)));
    let mut call = double.ingest(&site).env("TSV_REQUEST_TIMEOUT_S", "30");
    for n in 0..5 {
        call = call.named(DEVICE.file(format!("{n}.tsv")));
    }
    let run = call.run().expect(0);
    assert!(run.took < Duration::from_secs(15), "{:?}", run.took);
    assert!(run.stderr.contains("not enough time"), "{}", run.stderr);
    let hours: usize = double.summaries("acme").values().map(BTreeMap::len).sum();
    assert!(hours > 0);
    let before = double.requests().len();
    double.clear_faults();
    double.ingest(&site).run().expect(0);
    let all: Vec<&str> = files.iter().map(String::as_str).collect();
    assert_summaries(&double, "acme", &all);
    // What was done is not done again.
    let requests = double.requests().split_off(before);
    let queries = requests.iter().filter(|request| is_query(request)).count();
    assert!((2..9).contains(&queries), "{queries}");
    assert!(!site.exists(DEVICE.file(PENDING_FILE)));
}

#[test]
fn nothing_is_read_after_a_failed_write() {
    for status in [400, 503] {
        let (double, site) = (Double::start(), Site::new());
        let no = Fault::status(status, "no");
        double.fault(is_of_summaries, 0, usize::MAX, no);
        for n in 0..3 {
            site.put_old(DEVICE.file(format!("{n}.tsv")), day_file(40 * n));
        }
        double.ingest(&site).run().expect(0);
        let requests = double.requests();
        let queries = requests.iter().filter(|request| is_query(request)).count();
        assert_eq!(queries, 1, "{status}");
    }
}

/// The number of days that a query for points is about, the one before the summaries included.
fn days_read(request: &Request) -> i64 {
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    let query = body["query"].as_str().expect("a query");
    let points = query.lines().find(|line| line.contains("\"points\""));
    let range = points
        .and_then(|line| line.split_once("start: "))
        .expect("a range");
    let range = range.1.split(')').next().expect("its end");
    let (start, end) = range.split_once(", stop: ").expect("two times");
    let [start, end] = [start, end].map(|time| time.parse::<i64>().expect("a time"));
    (end - start) / 86_400
}

/// Puts the file of pending days of the device for the files of these days.
fn put_pending(site: &Site, days: impl Iterator<Item = i64>) {
    let first = MIDNIGHT / 86_400;
    let days: Vec<_> = days.map(|day| [first + day, first + day + 1]).collect();
    let text = json!({"since": MIDNIGHT, "days": {"site": {"02001171": days}}});
    site.put(DEVICE.file(PENDING_FILE), text.to_string());
}

#[test]
#[ignore = "slow: waits for the time limit"]
fn a_period_that_takes_too_long_is_divided() {
    let (double, site) = (Double::start(), Site::new());
    let files: Vec<_> = (0..40).map(day_file).collect();
    for (n, file) in files.iter().enumerate() {
        age(
            &site.put(DEVICE.file(format!("{n}.tsv")), file),
            7_200 - 60 * n as u64,
        );
    }
    double.connect(site.call()).run().expect(0);
    put_pending(&site, 0..40);
    let is_long = |request: &Request| is_query(request) && days_read(request) > 12;
    double.fault(is_long, 0, usize::MAX, Fault::Silence);
    let ingest = || double.ingest(&site).no_env("TSV_REQUEST_TIMEOUT_S");
    ingest().run().expect(0);
    assert_eq!(double.summaries("acme"), BTreeMap::new());
    // The next runs do as much as the server can do in that time.
    for _ in 0..6 {
        if site.exists(DEVICE.file(PENDING_FILE)) {
            ingest().run().expect(0);
        }
    }
    let all: Vec<&str> = files.iter().map(String::as_str).collect();
    assert_summaries(&double, "acme", &all);
    assert!(!site.exists(DEVICE.file(PENDING_FILE)));
}

#[test]
#[ignore = "slow: waits for the time limit"]
fn a_device_that_takes_too_long_does_not_prevent_others() {
    let (double, site) = (Double::start(), Site::new());
    let serials = ["02001171", "02001172", "02001173"];
    let files = serials.map(|serial| day_file(0).replace("02001171", serial));
    for (serial, file) in serials.iter().zip(&files) {
        site.put_old(format!("acme/site/{serial}/0.tsv"), file);
    }
    let is_of_first = |request: &Request| is_query(request) && request.text().contains("02001171");
    double.fault(is_of_first, 0, usize::MAX, Fault::Silence);
    let call = double.ingest(&site).no_env("TSV_REQUEST_TIMEOUT_S");
    call.run().expect(0);
    assert_summaries(&double, "acme", &[&files[1], &files[2]]);
    assert!(site.exists(DEVICE.file(PENDING_FILE)));
}

#[test]
#[ignore = "slow: waits for the time limit"]
fn a_server_that_fails_for_all_companies_is_given_up_once() {
    let companies = ["a", "b", "c", "d", "e", "f", "g"];
    let silence = (Fault::Silence, 4, "did not answer in time");
    let faulty = (Fault::status(500, "faulty"), 1, "faulty");
    for (fault, number, reason) in [faulty, silence] {
        let (double, site) = (Double::start(), Site::new());
        for company in companies {
            site.put_old(format!("{company}/site/02001171/0.tsv"), day_file(0));
        }
        double.fault(is_query, 0, usize::MAX, fault);
        let call = double.ingest(&site).no_env("TSV_RETRY_FOR");
        let run = call.no_env("TSV_REQUEST_TIMEOUT_S").run().expect(0);
        let requests = double.requests();
        let queries = requests.iter().filter(|request| is_query(request));
        let bucket = |request: &Request| {
            let text = request.text();
            let bucket = text.split("bucket: ").nth(1).expect("a bucket");
            bucket.split(')').next().expect("its end").to_owned()
        };
        let tried: BTreeSet<_> = queries.map(bucket).collect();
        assert_eq!(tried.len(), number, "{reason}: {tried:?}");
        assert!(run.stderr.contains(reason), "{reason}: {}", run.stderr);
    }
}

#[test]
fn nothing_more_is_computed_for_a_period_after_a_failed_write() {
    let (double, site) = (Double::start(), Site::new());
    site.put_old(DEVICE.file("0.tsv"), day_file(0));
    double.ingest(&site).run().expect(0);
    let before = double.requests().len();
    // The last day before the silence would be read too.
    double.fault(is_of_summaries, 0, usize::MAX, Fault::status(400, "no"));
    site.put_old(DEVICE.file("1.tsv"), day_file(20));
    let call = double.ingest(&site).env("TSV_BATCH_LINES", "10");
    call.run().expect(0);
    let requests = double.requests().split_off(before);
    let queries = requests.iter().filter(|request| is_query(request)).count();
    assert_eq!(queries, 1);
}

#[test]
fn files_are_ingested_while_a_rollup_computes_what_is_pending() {
    let (double, site) = (Double::start(), Site::new());
    let days = (0..16).map(|n| 40 * n);
    let files: Vec<_> = days.clone().map(day_file).collect();
    for (n, file) in files.iter().enumerate() {
        site.put_old(DEVICE.file(format!("{n}.tsv")), file);
    }
    double.connect(site.call()).run().expect(0);
    put_pending(&site, days);
    double.fault(
        is_query,
        0,
        usize::MAX,
        Fault::Slow(Duration::from_millis(500)),
    );
    let call = site.bare().arg("rollup").arg("-d").arg(site.data());
    let mut rollup = double.connect(call.env("TSV_ROLLUP", "1")).start();
    while !double.requests().iter().any(is_query) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let name = DEVICE.file("x.tsv");
    site.put_old(&name, day_file(7));
    let call = double.connect(site.call()).env("TSV_LOCK_WAIT_S", "4");
    call.named(&name).run().expect(0);
    assert!(!rollup.is_done());
    rollup.wait().expect(0);
    assert!(!site.exists(DEVICE.file(PENDING_FILE)));
}

// --- kills and other processes --------------------------------------------------------------------------------------

/// The file in a device folder that remembers the days whose summaries are still to be computed.
const PENDING_FILE: &str = ".powerview-rollup.json";

/// Starts an ingestion that waits for the answer to its first query: its file is moved, and has no summaries.
fn start_and_wait(
    double: &Double,
    site: &Site,
    name: &str,
    gate: &std::sync::Arc<Gate>,
) -> Running {
    double.fault(is_query, 0, 1, Fault::Gate(gate.clone()));
    let running = double.ingest(site).named(DEVICE.file(name)).start();
    gate.wait_for(1);
    assert!(site.exists(DEVICE.parsed(name)));
    running
}

#[test]
fn summaries_begin_after_all_files_are_moved_and_the_report_is_written() {
    let (double, site) = (Double::start(), Site::new());
    let names = [DEVICE.file("0.tsv"), "acme/other/02001172/1.tsv".to_owned()];
    for name in &names {
        site.put_old(name, day_file(0));
    }
    for are_named in [true, false] {
        let gate = Gate::new();
        double.fault(is_query, 0, 1, Fault::Gate(gate.clone()));
        let mut call = double.ingest(&site);
        for name in names.iter().filter(|_| are_named) {
            call = call.named(name);
        }
        let running = call.start();
        gate.wait_for(1);
        assert!(names.iter().all(|name| !site.exists(name)));
        let reports = site.reports();
        let last = reports.last().expect("a report");
        assert_eq!(last["nb_files_success"], 2, "{last:#}");
        gate.open();
        running.wait().expect(0);
        for name in &names {
            site.put_old(name, day_file(1));
        }
    }
}

#[test]
fn a_sweep_has_its_result_before_the_summaries_and_keeps_it_if_it_is_stopped() {
    let (double, site) = (Double::start(), Site::new());
    site.put_old(DEVICE.file("0.tsv"), day_file(0));
    let gate = Gate::new();
    double.fault(is_query, 0, usize::MAX, Fault::Gate(gate.clone()));
    let monitor = Monitor::start(200);
    let call = double.ingest(&site).env("TSV_HEARTBEAT_URL", &monitor.url);
    let running = call.start();
    gate.wait_for(1);
    assert_eq!([(); 2].map(|()| monitor.next().0), [START, SUCCESS]);
    running.signal(rustix::process::Signal::TERM);
    let run = running.wait().expect(0);
    gate.open();
    let line = run.stderr.lines().find(|line| line.contains("1 ingested"));
    let line = line.unwrap_or_else(|| panic!("{}", run.stderr));
    assert!(line.starts_with("1 file: "), "{line}");
    assert!(
        run.stderr
            .ends_with("because the run was stopped; the next one goes on\n"),
        "{}",
        run.stderr
    );
    assert!(monitor.is_silent());
    assert!(site.exists(DEVICE.file(PENDING_FILE)));
}

#[test]
fn the_next_run_computes_what_a_killed_ingestion_did_not() {
    let next = day_file(-30);
    for how in ["a file", "a sweep", "a rollup"] {
        let (double, site) = (Double::start(), Site::new());
        let file = day_file(0);
        site.put_old(DEVICE.file("0.tsv"), &file);
        let gate = Gate::new();
        start_and_wait(&double, &site, "0.tsv", &gate).kill();
        gate.open();
        assert_eq!(double.summaries("acme"), BTreeMap::new());
        assert!(site.exists(DEVICE.file(PENDING_FILE)), "{how}");
        let mut files = vec![file.as_str()];
        match how {
            "a file" => {
                site.put_old(DEVICE.file("1.tsv"), &next);
                let call = double.ingest(&site).named(DEVICE.file("1.tsv"));
                call.run().expect(0);
                files.push(&next);
            }
            "a sweep" => {
                double.ingest(&site).run().expect(0);
            }
            _ => {
                let data = site.data();
                let data = data.to_str().expect("a name");
                // Its days are older than those that are compared.
                double
                    .rollup(&site, &["-d", data, "--since", "1d"])
                    .expect(0);
            }
        }
        assert_summaries(&double, "acme", &files);
        assert!(!site.exists(DEVICE.file(PENDING_FILE)), "{how}");
    }
}

#[test]
fn days_are_pending_for_the_campaign_that_their_points_belong_to() {
    let (double, site) = (Double::start(), Site::new());
    let file = day_file(0);
    site.put_old(DEVICE.file("0.tsv"), &file);
    let gate = Gate::new();
    start_and_wait(&double, &site, "0.tsv", &gate).kill();
    gate.open();
    let rename = |from: &str, to: &str| {
        std::fs::rename(site.data().join(from), site.data().join(to)).expect("renamed");
    };
    rename("acme/site", "acme/other");
    let next = day_file(1);
    site.put_old("acme/other/02001171/1.tsv", &next);
    double.ingest(&site).run().expect(0);
    let mut channels = BTreeMap::new();
    add_points(&mut channels, "site", &[&file]);
    add_points(&mut channels, "other", &[&next]);
    assert_integrated(&double.summaries("acme"), &channels, None);
}

#[test]
fn days_of_a_bucket_that_is_gone_are_not_pending() {
    let data = |site: &Site| site.data().to_str().expect("a name").to_owned();
    for how in ["a sweep", "a rollup", "a rollup of the company"] {
        let (double, site) = (Double::start(), Site::new());
        let gate = Gate::new();
        site.put_old(DEVICE.file("0.tsv"), day_file(0));
        start_and_wait(&double, &site, "0.tsv", &gate).kill();
        gate.open();
        double.delete_bucket("acme");
        let run = match how {
            "a sweep" => double.ingest(&site).run(),
            "a rollup" => double.rollup(&site, &["-d", &data(&site)]),
            _ => double.rollup(&site, &["-d", &data(&site), "--company=acme"]),
        };
        let run = run.expect(0);
        assert!(
            !run.stderr.contains("not up to date"),
            "{how}: {}",
            run.stderr
        );
        assert!(!site.exists(DEVICE.file(PENDING_FILE)), "{how}");
        let run = double.rollup(&site, &["-d", &data(&site), "--company=acme"]);
        assert!(run.expect(2).stderr.contains("no bucket"));
    }
}

#[test]
fn points_in_many_separate_periods_are_summarized() {
    let (double, site) = (Double::start(), Site::new());
    // A clock that jumps.
    let file = file_of_times((0..120).map(|n| MIDNIGHT + n * 10 * 86_400), 22);
    site.put_old(DEVICE.file("0.tsv"), &file);
    double.ingest(&site).run().expect(0);
    // What it has left for lack of time.
    let data = site.data();
    let data = data.to_str().expect("a name");
    double
        .rollup(&site, &["-d", data, "--since", "1d"])
        .expect(0);
    assert_summaries(&double, "acme", &[&file]);
    assert!(!site.exists(DEVICE.file(PENDING_FILE)));
}

#[test]
fn summaries_that_are_pending_for_long_are_a_problem_in_status() {
    let site = Site::new();
    site.put(DEVICE.parsed("0.tsv"), day_file(0));
    let status = |since: i64, is_on: &str| {
        let text = json!({"since": since, "days": {"site": {"02001171": [[20_000, 20_000]]}}});
        site.put(DEVICE.file(PENDING_FILE), text.to_string());
        let call = site
            .subcommand("status")
            .arg("--json")
            .env("TSV_ROLLUP", is_on);
        let found: Value = serde_json::from_str(&call.run().clean().stdout).expect("JSON");
        let problems = found["devices"][0]["problems"]
            .as_array()
            .expect("a list")
            .clone();
        let mut kinds = problems
            .iter()
            .filter(|problem| problem["kind"] == "summaries");
        kinds.next().cloned()
    };
    let now = chrono::Utc::now().timestamp();
    let problem = status(now - 3 * 86_400, "1").expect("a problem");
    assert_eq!(
        problem["message"],
        "hourly summaries have not been computed for 3 d"
    );
    let remedy = problem["remedy"].as_str().expect("a text");
    assert!(remedy.contains("--company 'acme'"), "{remedy}");
    assert_eq!(status(now - 3_600, "1"), None);
    assert_eq!(status(now + 100 * 86_400, "1"), None);
    assert_eq!(status(now - 3 * 86_400, "0"), None, "TSV_ROLLUP=0");
}

#[test]
fn whatever_is_in_the_place_of_the_pending_days_does_no_harm() {
    let file = day_file(0);
    let long = format!(
        "{{\"since\":1,\"days\":{{\"site\":{{\"{}\":[]}}}}}}",
        "x".repeat(100_000)
    );
    let contents = [
        "",
        "null",
        &long,
        r#"{"since":1,"days":{"site":{"02001171":[[-100000,100000]]}}}"#,
        r#"{"since":1,"days":{"site":{"\" or true or \"":[[20000,20010]]}}}"#,
        r#"{"since":1,"days":{"site":{"02001171\u0000":[[20000,20010]]}}}"#,
    ];
    for content in contents {
        let (double, site) = (Double::start(), Site::new());
        site.put(DEVICE.file(PENDING_FILE), content);
        site.put_old(DEVICE.file("0.tsv"), &file);
        double.ingest(&site).run().expect(0);
        assert_summaries(&double, "acme", &[&file]);
        assert!(!site.exists(DEVICE.file(PENDING_FILE)), "{content:.60}");
    }
    let (double, site) = (Double::start(), Site::new());
    let target = site.dir.path().join("target");
    std::fs::write(&target, "keep").expect("a file");
    site.link(&target, DEVICE.file(PENDING_FILE));
    site.link(&target, DEVICE.file(".powerview-rollup.tmp"));
    site.put_old(DEVICE.file("0.tsv"), &file);
    double.ingest(&site).run().expect(0);
    assert_summaries(&double, "acme", &[&file]);
    assert_eq!(std::fs::read(&target).expect("a file"), b"keep");
    assert!(!site.exists(DEVICE.file(PENDING_FILE)));
    // A folder with content cannot be replaced. There is a warning, and the summaries are computed all the same.
    site.put(DEVICE.file(format!("{PENDING_FILE}/x")), "");
    let next = day_file(1);
    site.put_old(DEVICE.file("1.tsv"), &next);
    let run = double.ingest(&site).run().expect(0);
    assert!(site.exists(DEVICE.parsed("1.tsv")));
    assert!(run.stderr.contains(PENDING_FILE), "{}", run.stderr);
    assert_summaries(&double, "acme", &[&file, &next]);
}

#[test]
fn processes_for_the_same_device_leave_the_summaries_of_all_points() {
    let (double, site) = (Double::start(), Site::new());
    // All files are about the same day.
    let files: Vec<_> = (0..8)
        .map(|n| file_of_times((0..36).map(|row| MIDNIGHT + (row * 8 + n) * 300), 20))
        .collect();
    for (n, file) in files.iter().enumerate() {
        age(
            &site.put(DEVICE.file(format!("{n}.tsv")), file),
            7_200 - 60 * n as u64,
        );
    }
    let runs: Vec<_> = (0..files.len())
        .map(|n| {
            double
                .ingest(&site)
                .named(DEVICE.file(format!("{n}.tsv")))
                .start()
        })
        .collect();
    for run in runs {
        run.wait().expect(0);
    }
    let all: Vec<&str> = files.iter().map(String::as_str).collect();
    assert_summaries(&double, "acme", &all);
}

#[test]
fn folders_with_the_same_master_leave_the_summaries_of_all_points() {
    let (double, site) = (Double::start(), Site::new());
    let files =
        [0, 300].map(|after| file_of_times((0..100).map(|row| MIDNIGHT + row * 600 + after), 22));
    let names = [DEVICE.file("0.tsv"), "acme/site/other/1.tsv".to_owned()];
    // The first folder has computed its summaries, and not written them.
    let gate = Gate::new();
    double.fault(is_of_summaries, 0, 1, Fault::Gate(gate.clone()));
    site.put_old(&names[0], &files[0]);
    let first = double.ingest(&site).named(&names[0]).start();
    gate.wait_for(1);
    site.put_old(&names[1], &files[1]);
    let mut second = double.ingest(&site).named(&names[1]).start();
    // If it does not wait for the first one, it ends first.
    for _ in 0..30 {
        if second.is_done() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    gate.open();
    first.wait().expect(0);
    second.wait().expect(0);
    assert_summaries(&double, "acme", &[&files[0], &files[1]]);
}

#[test]
fn a_rollup_beside_an_ingestion_leaves_the_summaries_of_all_points() {
    let (double, site) = (Double::start(), Site::new());
    let files =
        [0, 300].map(|after| file_of_times((0..100).map(|row| MIDNIGHT + row * 600 + after), 21));
    site.put_old(DEVICE.file("0.tsv"), &files[0]);
    double.connect(site.call()).run().expect(0);
    // The rollup has computed the summaries of the first file, and an ingestion those of both files, when it writes.
    let gate = Gate::new();
    double.fault(is_of_summaries, 0, 1, Fault::Gate(gate.clone()));
    let call = site.bare().arg("rollup").env("TSV_ROLLUP", "1");
    let rollup = double.connect(call).start();
    gate.wait_for(1);
    site.put_old(DEVICE.file("1.tsv"), &files[1]);
    double.ingest(&site).run().expect(0);
    gate.open();
    rollup.wait().expect(0);
    assert_summaries(&double, "acme", &[&files[0], &files[1]]);
}

// --- verify and rebuild -----------------------------------------------------------------------------------------------

pub fn deleted(server: &RealInflux, predicate: &str, start: i64, end: i64) {
    let time = |seconds| {
        DateTime::from_timestamp(seconds, 0)
            .expect("a time")
            .to_rfc3339()
    };
    let body = json!({"start": time(start), "stop": time(end), "predicate": predicate});
    let path = format!("/api/v2/delete?org={}&bucket=acme", server.org());
    let (status, answer) = server.request("POST", &path, "application/json", &body.to_string());
    assert_eq!(status, 204, "{answer}");
}

#[test]
fn verify_finds_and_repairs_summaries_that_differ() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let files = [day_file(0), day_file(1), day_file(40)];
    ingest_all(&server, &site, "acme", &files);
    let all: Vec<&str> = files.iter().map(String::as_str).collect();
    let numbers = |found: &Value| {
        let summaries = &found["summaries"];
        let of = |key: &str| summaries[key].as_u64().expect(key);
        ["missing", "different", "extra", "written"].map(of)
    };
    let (code, found) = server.verify(&site, &[]);
    assert_eq!((code, numbers(&found)), (0, [0; 4]), "{found:#}");
    // 48 hours and 24 hours of three channels.
    assert_eq!(found["summaries"]["expected"], 3 * 72);
    assert_eq!(found["summaries"]["equal"], true);

    // Two hours of three channels are missing, and one has another value.
    let summaries = "_measurement=\"powerview_1h\"";
    deleted(&server, summaries, MIDNIGHT, MIDNIGHT + 7_199);
    let all_tags: Vec<_> = server.summaries("acme").into_keys().collect();
    let line = |measurement: &str, tags: &Tags, fields: &str, time: i64| {
        let tags = tags.iter().map(|(key, value)| format!(",{key}={value}"));
        format!(
            "{measurement}{} {fields} {time}\n",
            tags.collect::<String>()
        )
    };
    let hour = MIDNIGHT + 40 * 86_400 + 7_200 - MIDNIGHT.rem_euclid(3_600);
    server.write(
        "acme",
        &line("powerview_1h", &all_tags[1], "mean=1", hour),
        "s",
    );
    let (code, found) = server.verify(&site, &[]);
    assert_eq!((code, numbers(&found)), (1, [6, 1, 0, 0]), "{found:#}");
    let points = ["missing", "different", "extra"].map(|key| found[key].as_u64());
    assert_eq!((points, &found["equal"]), ([Some(0); 3], &json!(true)));
    assert_eq!(found["summaries"]["companies"][0]["company"], "acme");
    let (_, since) = server.verify(&site, &["--since", "2025-11-20"]);
    assert_eq!(numbers(&since), [0, 1, 0, 0], "{since:#}");
    let (_, campaign) = server.verify(&site, &["--company=acme", "--campaign=site"]);
    assert_eq!(numbers(&campaign), [6, 1, 0, 0], "{campaign:#}");
    let call = site.bare().arg("verify").arg("-d").arg(site.data());
    let text = server.connect(call.env("TSV_ROLLUP", "1")).run().expect(1);
    assert!(
        text.stdout
            .contains("acme: 216 hourly summaries, 6 missing, 1 different\n"),
        "{}",
        text.stdout
    );
    let call = site
        .bare()
        .arg("verify")
        .arg("-d")
        .arg(site.data())
        .arg("--json");
    let off: Value =
        serde_json::from_str(&server.connect(call).run().expect(0).stdout).expect("JSON");
    assert_eq!(off["summaries"], Value::Null, "TSV_ROLLUP=0");

    let (code, found) = server.verify(&site, &["--repair"]);
    assert_eq!((code, numbers(&found)), (0, [0, 0, 0, 7]), "{found:#}");
    assert_summaries(&server, "acme", &all);
}

#[test]
fn verify_waits_for_summaries_that_an_ingestion_is_to_compute() {
    let (double, site) = (Double::start(), Site::new());
    site.put_old(DEVICE.file("0.tsv"), day_file(0));
    double.connect(site.call()).run().expect(0);
    let first = MIDNIGHT / 86_400;
    let days = json!({"since": MIDNIGHT, "days": {"site": {"02001171": [[first, first + 1]]}}});
    site.put(DEVICE.file(PENDING_FILE), days.to_string());
    let call = site.subcommand("verify").env("TSV_ROLLUP", "1");
    let verify = double.connect(call).env("TSV_LOCK_WAIT_S", "30").start();
    std::thread::sleep(Duration::from_secs(2));
    double.ingest(&site).run().expect(0);
    verify.wait().expect(0);
}

#[test]
fn verify_waits_once_for_a_device_that_stays_locked() {
    let (double, site) = (Double::start(), Site::new());
    for n in 0..5 {
        site.put_old(DEVICE.file(format!("{n}.tsv")), day_file(40 * n));
    }
    double.connect(site.call()).run().expect(0);
    let _lock = site.lock(DEVICE.to_string());
    let call = site.subcommand("verify").env("TSV_ROLLUP", "1");
    let call = double.connect(call).env("TSV_LOCK_WAIT_S", "8");
    let run = call.run().expect(1);
    assert!(run.stdout.contains("360 missing"), "{}", run.stdout);
    let times = Duration::from_secs(8)..Duration::from_secs(16);
    assert!(times.contains(&run.took), "{:?}", run.took);
}

#[test]
fn summaries_without_points_are_reported_and_never_deleted() {
    let (double, site) = (Double::start(), Site::new());
    ingest_all(&double, &site, "acme", &[day_file(0), day_file(40)]);
    let before = double.summaries("acme");
    // The points of three hours, of one hour, and of a whole file are deleted.
    let hours = |from: i64, to: i64| MIDNIGHT + from * 3_600..MIDNIGHT + to * 3_600;
    let deleted = [hours(3, 6), hours(12, 13), hours(35 * 24, 45 * 24)];
    let is_deleted = |time: i64| {
        deleted
            .iter()
            .any(|times| times.contains(&(time / 1_000_000_000)))
    };
    double.delete_of("acme", "site", is_deleted);
    let numbers = |found: &Value| {
        let summaries = &found["summaries"];
        ["missing", "different", "extra"].map(|key| summaries[key].as_u64().expect(key))
    };
    let (code, found) = double.verify(&site, &[]);
    // Of three channels: three hours and those of the file are extra. The single hour has no point but a summary, and the
    // hours before the gaps end earlier.
    assert_eq!((code, numbers(&found)), (1, [0, 9, 81]), "{found:#}");

    let run = double.rollup(&site, &["--company=acme"]).expect(1);
    // The values of the deleted points remain, also those of the single hour, but they have no energy.
    assert!(
        run.stdout.contains(" 84 extra, 90 written\n"),
        "{}",
        run.stdout
    );
    let after = double.summaries("acme");
    let mut channels = BTreeMap::new();
    add_points(&mut channels, "site", &[&day_file(0)]);
    for points in channels.values_mut() {
        points.retain(|time, _| !is_deleted(*time * 1_000_000_000));
    }
    let expected = channels.iter().map(|(tags, points)| {
        let unit = tags.get("unit").map(String::as_str);
        (tags.clone(), integrated(points, unit, None))
    });
    let expected = energy(&expected.collect());
    assert!((energy(&after) / expected - 1.0).abs() < 1e-9);
    let keys = |summaries: &BTreeMap<Tags, Summaries>| -> BTreeSet<(Tags, (i64, String))> {
        let series = summaries.iter();
        let keys = series
            .flat_map(|(tags, hours)| hours.keys().map(move |key| (tags.clone(), key.clone())));
        keys.collect()
    };
    assert_eq!(keys(&before), keys(&after));

    // A person deletes them, and the summaries are computed again.
    double.delete_of("acme", "powerview_1h", is_deleted);
    double.rollup(&site, &["--company=acme"]).expect(0);
    assert_integrated(&double.summaries("acme"), &channels, None);
}

#[test]
fn summaries_of_a_campaign_that_begins_meanwhile_are_no_difference() {
    let (double, site) = (Double::start(), Site::new());
    let file = day_file(0);
    site.put_old(DEVICE.file("0.tsv"), &file);
    double.ingest(&site).run().expect(0);
    // The measurements are listed, and the points of the first one are not read.
    let gate = Gate::new();
    let is_of_points = |request: &Request| is_query(request) && request.text().contains("yield");
    double.fault(is_of_points, 0, 1, Fault::Gate(gate.clone()));
    let call = site.bare().arg("rollup").env("TSV_ROLLUP", "1");
    let rollup = double.connect(call).start();
    gate.wait_for(1);
    let other = "acme/other/02001171/0.tsv";
    site.put_old(other, &file);
    double.ingest(&site).named(other).run().expect(0);
    gate.open();
    let run = rollup.wait().expect(0);
    assert!(
        run.stdout.ends_with(" 144 hourly summaries\n"),
        "{}",
        run.stdout
    );
    let mut channels = BTreeMap::new();
    add_points(&mut channels, "site", &[&file]);
    add_points(&mut channels, "other", &[&file]);
    assert_integrated(&double.summaries("acme"), &channels, None);
}

#[test]
fn a_rebuilt_bucket_has_summaries() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    let files = [day_file(0), day_file(1)];
    ingest_all(&server, &site, "acme", &files);
    let all: Vec<&str> = files.iter().map(String::as_str).collect();
    // The old bucket has others.
    let tags = "campaign=site,channel_id=x,device_master_sn=02001171,unit=W";
    let line = format!("powerview_1h,{tags} mean=1 {MIDNIGHT}\n");
    server.write("acme", &line, "s");
    let call = site.bare().arg("rebuild").arg("-d").arg(site.data());
    let call = call
        .args(["--company=acme", "--yes"])
        .env("TSV_ROLLUP", "1");
    server.connect(call).run().expect(0);
    assert_summaries(&server, "acme", &all);
}

#[test]
fn a_rebuild_whose_summaries_cannot_be_written_fails_after_the_swap() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    ingest_all(&server, &site, "acme", &[day_file(0)]);
    // A field of another type in the new bucket, which an interrupted rebuild has made.
    let line = format!("powerview_1h,x=y count=1 {MIDNIGHT}\n");
    server.write("acme.rebuild", &line, "s");
    let call = site.subcommand("rebuild").env("TSV_ROLLUP", "1");
    let call = call.args(["--company=acme", "--yes"]);
    let run = server.connect(call).run().expect(1);
    assert!(
        run.stdout.contains("acme: the new bucket is in use"),
        "{}",
        run.stdout
    );
    let last = run.stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("the hourly summaries of acme are not up to date: ")
            && last.ends_with("powerview rollup --company \"acme\" computes them"),
        "{}",
        run.stderr
    );
    assert!(
        !run.stderr.contains("--company \"acme.rebuild\""),
        "{}",
        run.stderr
    );
}
