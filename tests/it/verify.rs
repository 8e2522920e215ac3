//! `powerview verify`. The expected numbers come from the second reader and from what each test damages. See
//! docs/specification.md, section 10.

use crate::faults::file_of_ages;
use crate::harness::{Call, DEVICE, FileBuilder, NOBODY, Running, Site, age, good_file};
use crate::influx_double::{
    self, Double, Fault, Gate, Request, Retention, is_data_write, is_query,
};
use crate::line_protocol::Value as Field;
use crate::real_influx::{RealInflux, Stored};
use crate::second_reader::{self, Point};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The time of the first row of `good_file`: 1 August 2025 in Paris.
const START: i64 = 1_753_999_200;

const ALL: Range<i64> = i64::MIN..i64::MAX;

type Tags = BTreeMap<String, String>;

/// A server to compare with.
trait Server {
    fn url(&self) -> String;
    fn token(&self) -> &str;
    fn org(&self) -> &str;
    /// Writes line protocol with times in nanoseconds.
    fn write_ns(&self, bucket: &str, lines: &str);
    /// Deletes the points with this tag in a range of seconds, which includes its end.
    fn delete(&self, bucket: &str, tag: (&str, &str), from: i64, to: i64);
    fn points(&self, bucket: &str) -> Vec<Stored>;
}

impl Stored {
    /// Line protocol that changes the point.
    fn with(&self, fields: &str, time_ns: i64) -> String {
        line(&self.measurement, &self.tags, fields, time_ns)
    }

    fn float(&self) -> Option<f64> {
        (self.field == "value" && self.kind == "double")
            .then(|| self.value.parse().expect("a number"))
    }
}

impl Server for RealInflux {
    fn url(&self) -> String {
        self.url()
    }

    fn token(&self) -> &str {
        self.token()
    }

    fn org(&self) -> &str {
        self.org()
    }

    fn write_ns(&self, bucket: &str, lines: &str) {
        self.write(bucket, lines, "ns");
    }

    fn delete(&self, bucket: &str, (key, value): (&str, &str), from: i64, to: i64) {
        let id = self.bucket_id(bucket).expect("a bucket");
        let path = format!("/api/v2/delete?org={}&bucketID={id}", self.org());
        let body = json!({
            "start": utc(from), "stop": utc(to), "predicate": format!("{key}=\"{value}\""),
        });
        let (status, answer) = self.request("POST", &path, "application/json", &body.to_string());
        assert_eq!(status, 204, "{answer}");
    }

    fn points(&self, bucket: &str) -> Vec<Stored> {
        self.stored(bucket)
    }
}

impl Server for Double {
    fn url(&self) -> String {
        self.url()
    }

    fn token(&self) -> &str {
        influx_double::TOKEN
    }

    fn org(&self) -> &str {
        influx_double::ORG
    }

    fn write_ns(&self, bucket: &str, lines: &str) {
        self.insert(bucket, lines);
    }

    fn delete(&self, bucket: &str, (key, value): (&str, &str), from: i64, to: i64) {
        self.delete(bucket, |tags, time| {
            tags.get(key).is_some_and(|v| v == value)
                && (from * 1_000_000_000..=to * 1_000_000_000).contains(&time)
        });
    }

    fn points(&self, bucket: &str) -> Vec<Stored> {
        let mut points = Vec::new();
        for line in self.points(bucket) {
            for (field, value) in line.fields {
                let (kind, value) = match value {
                    Field::Float(v) => ("double", v.to_string()),
                    Field::Int(v) => ("long", v.to_string()),
                    Field::Bool(v) => ("boolean", v.to_string()),
                    Field::Text(v) => ("string", v),
                };
                points.push(Stored {
                    measurement: line.measurement.clone(),
                    tags: line.tags.clone(),
                    field,
                    kind: kind.to_owned(),
                    time_ns: line.time.expect("a time"),
                    value,
                });
            }
        }
        points
    }
}

fn utc(seconds: i64) -> String {
    let time = DateTime::from_timestamp(seconds, 0).expect("a time");
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// A line of line protocol.
fn line(measurement: &str, tags: &Tags, fields: &str, time_ns: i64) -> String {
    let escape = |text: &str, special: &str| -> String {
        let escaped = |c| [Some('\\').filter(|_| special.contains(c)), Some(c)];
        text.chars().flat_map(escaped).flatten().collect()
    };
    let tags: String = tags
        .iter()
        .map(|(k, v)| format!(",{}={}", escape(k, ",= "), escape(v, ",= ")))
        .collect();
    format!("{}{tags} {fields} {time_ns}\n", escape(measurement, ", "))
}

/// A call that uses the server.
fn to<'a>(call: Call<'a>, server: &dyn Server) -> Call<'a> {
    call.server(&server.url(), server.token(), server.org())
}

fn verify<'a>(site: &'a Site, server: &dyn Server) -> Call<'a> {
    to(site.subcommand("verify"), server)
}

fn ingest(site: &Site, server: &dyn Server) {
    to(site.call(), server).env("TSV_RETRY_FOR", "20").ok();
}

/// Puts a file that was uploaded some minutes ago.
fn upload(site: &Site, path: impl AsRef<Path>, content: impl AsRef<[u8]>, minutes_ago: u64) {
    age(&site.put(path, content), 60 * minutes_ago);
}

/// Expected, found, missing, different and extra points by campaign, device and month.
type Counts = BTreeMap<(String, String, String), [u64; 5]>;

/// The points that the files in `parsed/` give, with the folder of the last upload of their series.
fn expected(site: &Site, company: &str) -> Vec<(Point, String)> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(site.path(company)) {
        let entry = entry.expect("an entry");
        let path = entry
            .path()
            .strip_prefix(site.path(company))
            .expect("below");
        let names: Vec<_> = path
            .iter()
            .map(|n| n.to_string_lossy().into_owned())
            .collect();
        let [campaign, device, parsed, name] = &names[..] else {
            continue;
        };
        if parsed != "parsed" {
            continue;
        }
        let mut parts = name.rsplit('.').skip(1);
        let number: u32 = parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let uploaded = entry
            .metadata()
            .expect("metadata")
            .modified()
            .expect("a time");
        let bytes = std::fs::read(entry.path()).expect("read");
        files.push((uploaded, number, campaign.clone(), device.clone(), bytes));
    }
    files.sort();
    let (mut points, mut devices) = (BTreeMap::new(), BTreeMap::new());
    for (uploaded, _, campaign, device, bytes) in files {
        let file = second_reader::read_upload(
            &bytes,
            &campaign,
            chrono_tz::Europe::Paris,
            DateTime::<Utc>::from(uploaded),
        );
        for point in file.points {
            devices.insert(
                (point.measurement.clone(), point.tags.clone()),
                device.clone(),
            );
            let key = (point.measurement.clone(), point.tags.clone(), point.epoch);
            points.insert(key, point);
        }
    }
    let with_device = points.into_values().map(|point| {
        let key = (point.measurement.clone(), point.tags.clone());
        let device = devices[&key].clone();
        (point, device)
    });
    with_device.collect()
}

/// Compares the files of a company with its points.
fn compare(site: &Site, company: &str, stored: &[Stored], times: &Range<i64>) -> Counts {
    let mut counts = Counts::new();
    let mut add = |campaign: &str, device: &str, time: i64, kinds: &[usize]| {
        let month = utc(time)[..7].to_owned();
        let key = (campaign.to_owned(), device.to_owned(), month);
        let numbers = counts.entry(key).or_default();
        for kind in kinds {
            numbers[*kind] += 1;
        }
    };
    let expected = expected(site, company);
    let mut missing: BTreeMap<_, _> = expected
        .iter()
        .filter(|(point, _)| times.contains(&point.epoch))
        .map(|(p, device)| ((&p.measurement, &p.tags, p.epoch), (p.value, device)))
        .collect();
    let campaigns: Vec<String> = std::fs::read_dir(site.path(company))
        .expect("a company")
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    for ((campaign, _, time), (_, device)) in &missing {
        add(campaign, device, *time, &[0]);
    }
    for point in stored {
        let time = point.time_ns.div_euclid(1_000_000_000);
        if !campaigns.contains(&point.measurement) || !times.contains(&time) {
            continue;
        }
        let key = (&point.measurement, &point.tags, time);
        let is_whole = point.time_ns % 1_000_000_000 == 0;
        let known = point
            .float()
            .filter(|_| is_whole)
            .and_then(|v| Some((v, missing.remove(&key)?)));
        match known {
            Some((value, (wanted, device))) if value.to_bits() == wanted.to_bits() => {
                add(&point.measurement, device, time, &[1]);
            }
            Some((_, (_, device))) => add(&point.measurement, device, time, &[1, 3]),
            None => {
                let master = point.tags.get("device_master_sn");
                let folder = expected
                    .iter()
                    .find(|(p, _)| {
                        p.measurement == point.measurement
                            && p.tags.get("device_master_sn") == master
                    })
                    .map(|(_, device)| device.clone());
                let device = folder.or_else(|| master.cloned()).unwrap_or_default();
                add(&point.measurement, &device, time, &[1, 4]);
            }
        }
    }
    for ((campaign, _, time), (_, device)) in &missing {
        add(campaign, device, *time, &[2]);
    }
    counts
}

fn numbers(object: &Value) -> [u64; 5] {
    ["expected", "found", "missing", "different", "extra"].map(|key| {
        object[key]
            .as_u64()
            .unwrap_or_else(|| panic!("no number {key}: {object:#}"))
    })
}

/// The numbers of an output, which must add up.
fn counts_of(output: &Value, company: &str) -> Counts {
    let sum = |numbers: &mut dyn Iterator<Item = [u64; 5]>| {
        numbers.fold([0; 5], |sum, of| std::array::from_fn(|n| sum[n] + of[n]))
    };
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let devices = list(&output["devices"]);
    assert_eq!(
        numbers(output),
        sum(&mut devices.iter().map(numbers)),
        "{output:#}"
    );
    let mut counts = Counts::new();
    for device in &devices {
        assert_eq!(device["company"], company);
        let months = list(&device["months"]);
        assert_eq!(
            numbers(device),
            sum(&mut months.iter().map(numbers)),
            "{device:#}"
        );
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        for month in &months {
            let key = (
                text(&device["campaign"]),
                text(&device["device"]),
                text(&month["month"]),
            );
            assert_eq!(
                counts.insert(key, numbers(month)),
                None,
                "twice: {output:#}"
            );
        }
    }
    counts
}

/// Runs `verify` and checks its numbers and exit status. Returns the output.
#[track_caller]
fn checked(
    site: &Site,
    server: &dyn Server,
    company: &str,
    args: &[&str],
    times: &Range<i64>,
    [missing, different, extra]: [u64; 3],
) -> Value {
    let run = verify(site, server).arg("--json").args(args).run().clean();
    let output: Value = serde_json::from_str(&run.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", run.stdout, run.stderr));
    assert_eq!(
        counts_of(&output, company),
        compare(site, company, &server.points(company), times),
        "{output:#}"
    );
    let [.., found_missing, found_different, found_extra] = numbers(&output);
    let found = [found_missing, found_different, found_extra];
    assert_eq!(found, [missing, different, extra], "{output:#}");
    assert_eq!(output["equal"], found == [0; 3], "{output:#}");
    assert_eq!(output["failures"], json!([]), "{output:#}");
    assert_eq!(run.code(), i32::from(found != [0; 3]), "{output:#}");
    output
}

/// The point of a channel at a time.
fn point_at(server: &dyn Server, channel: &str, time: i64) -> Stored {
    let mut points = server.points("acme").into_iter();
    let found =
        points.find(|p| p.time_ns == time * 1_000_000_000 && p.tags["channel_id"] == channel);
    found.unwrap_or_else(|| panic!("no point of {channel} at {time}"))
}

const MASTER: &str = "M02001171_Ch1_M02001171";
const SLAVE: &str = "S04000466_Ch1_M02001171";

/// Two devices, one of them with a correction that was uploaded later.
fn archive(site: &Site) {
    upload(site, DEVICE.file("a.tsv"), good_file(1, 300), 50);
    let rows = [
        "01/08/25 00:00:00\t7.25\t8.25",
        "01/08/25 00:10:00\tNaN\t0",
        "01/08/25 00:20:00\t-0.0\t1e300",
    ];
    let correction = FileBuilder::default().lines(rows).build();
    upload(site, DEVICE.file("b.tsv"), correction, 40);
    let other = good_file(1000, 20).replace("02001171", "02009999");
    upload(site, "acme/site/02009999/a.tsv", other, 30);
}

fn damages_are_counted(server: &dyn Server) {
    let site = Site::new();
    archive(&site);
    ingest(&site, server);
    let row = |n: i64| START + 600 * n;
    let ns = |time: i64| time * 1_000_000_000;
    let check = |what: &str, counts: [u64; 3]| {
        eprintln!("{what}");
        checked(&site, server, "acme", &[], &ALL, counts)
    };
    let output = check("nothing", [0, 0, 0]);
    assert_eq!(numbers(&output), [640, 640, 0, 0, 0]);
    assert_eq!(output["files"], 3);

    server.delete("acme", ("device_master_sn", "02001171"), row(100), row(105));
    check("a deleted range", [12, 0, 0]);
    server.delete("acme", ("channel_id", MASTER), row(50), row(50));
    let output = check("a deleted point", [13, 0, 0]);
    let first = &output["devices"][0]["first"]["missing"][0];
    assert_eq!(
        (&first["time"], &first["expected"], &first["found"]),
        (&json!("2025-08-01T06:20:00Z"), &json!(51.5), &Value::Null),
        "{output:#}"
    );
    assert_eq!(first["series"], format!("{MASTER} Ph 1 V"));

    let mut different = 0;
    for (channel, n, value) in [
        (MASTER, 60, "61.50000000000001"),
        (SLAVE, 60, "61.25"),
        (SLAVE, 1, "-0"),
        (MASTER, 2, "0"),
        (SLAVE, 2, "1.0000000000000002e300"),
    ] {
        let point = point_at(server, channel, row(n));
        server.write_ns(
            "acme",
            &point.with(&format!("value={value}"), point.time_ns),
        );
        different += 1;
        check(
            &format!("{channel} {n} changed to {value}"),
            [13, different, 0],
        );
    }

    let shifted = point_at(server, MASTER, row(70));
    server.delete("acme", ("channel_id", MASTER), row(70), row(70));
    let value = format!("value={}", shifted.value);
    server.write_ns("acme", &shifted.with(&value, ns(row(70) + 1)));
    check("a point shifted by a second", [14, 5, 1]);
    let point = point_at(server, MASTER, row(71));
    let value = format!("value={}", point.value);
    server.write_ns("acme", &point.with(&value, point.time_ns + 500_000_000));
    check("a fraction of a second", [14, 5, 2]);
    server.write_ns("acme", &point.with(&value, point.time_ns + 1));
    check("a nanosecond", [14, 5, 3]);

    let mut extra = 3;
    let mut add = |what: &str, change: &dyn Fn(&mut Stored), fields: &str, time: i64| {
        let mut point = point.clone();
        change(&mut point);
        server.write_ns("acme", &point.with(fields, ns(time)));
        extra += 1;
        check(what, [14, 5, extra])
    };
    let remove = |key: &'static str| move |point: &mut Stored| drop(point.tags.remove(key));
    let set = |key: &'static str, value: &'static str| {
        move |point: &mut Stored| drop(point.tags.insert(key.to_owned(), value.to_owned()))
    };
    add(
        "a series without the tag device",
        &remove("device"),
        &value,
        row(71),
    );
    add(
        "with the tag file_name",
        &set("file_name", "a, \"b\".tsv"),
        &value,
        row(71),
    );
    add(
        "another field",
        &|_| {},
        "note=\"x, \\\"y\\\"\nz\"",
        row(71),
    );
    add("a boolean field", &|_| {}, "fine=true", row(71));
    add(
        "another field of another type",
        &set("channel_id", "other"),
        "counter=5i",
        row(71) + 30 * 86_400,
    );
    add(
        "a year long ago",
        &set("channel_id", "other"),
        "value=5",
        -8_000_000_000,
    );
    add(
        "a year far away",
        &set("channel_id", "other"),
        "value=5",
        9_000_000_000,
    );
    let output = add(
        "another master",
        &set("device_master_sn", "x\\y, \"z\" ${r}="),
        &value,
        row(71),
    );
    let devices: Vec<_> = output["devices"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    let stranger = devices
        .iter()
        .find(|d| d["device"] == "x\\y, \"z\" ${r}=")
        .expect("listed");
    assert_eq!(numbers(stranger), [0, 1, 0, 0, 1], "{stranger:#}");
    let output = add("no master", &remove("device_master_sn"), &value, row(71));
    assert_eq!(output["unexplained_measurements"], json!([]));

    let tags = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    server.write_ns(
        "acme",
        &line("other, \"m\" ${r}", &tags, "value=1,text=\"x\"", ns(row(0))),
    );
    server.write_ns(
        "acme",
        &line("other, \"m\" ${r}", &tags, "value=2", ns(row(1))),
    );
    let output = check("another measurement", [14, 5, 12]);
    assert_eq!(
        output["unexplained_measurements"],
        json!([{"company": "acme", "measurement": "other, \"m\" ${r}", "points": 3}])
    );

    // The repair writes what is missing or different, and nothing else.
    let before = server.points("acme");
    let output = checked(&site, server, "acme", &["--repair"], &ALL, [0, 0, 12]);
    assert_eq!(output["repaired"], 19, "{output:#}");
    let after = server.points("acme");
    assert_eq!(after.len(), before.len() + 14);
    let is_in = |point: &Stored, points: &[Stored]| points.iter().any(|p| p == point);
    assert_eq!(after.iter().filter(|p| !is_in(p, &before)).count(), 19);
    let output = checked(&site, server, "acme", &["--repair"], &ALL, [0, 0, 12]);
    assert_eq!(output["repaired"], 0, "{output:#}");
}

#[test]
fn each_kind_of_damage_is_counted_exactly() {
    damages_are_counted(&Double::start());
}

#[test]
fn each_kind_of_damage_of_a_real_database_is_counted_exactly() {
    if let Some(server) = RealInflux::start() {
        damages_are_counted(&server);
    }
}

fn names_are_escaped(server: &dyn Server) {
    let channels = [
        r"back\slash V",
        r"tail\ V",
        "say \"hi\" V",
        "x,y=z W",
        "${r} W",
        "$x{y} €",
        "Ph é日本 V",
        "{}",
    ];
    let serial = r#"S"n\m,= ${r}"#;
    let row = |n: usize| format!("03/08/25 03:{n}0:00{}", "\t1.5".repeat(channels.len()));
    let file = FileBuilder::with_channels(channels)
        .lines([row(1), row(2)])
        .build()
        .replace("02001171", serial);
    let companies = [
        "a,b=c d",
        "$x{y}",
        "${r}",
        r"back\slash",
        "Société 日本",
        "' or 1",
    ];
    let campaigns = [r"c\d", "p,q=r s", "${1+1}", "$x{y}", "été", "a.b"];
    let site = Site::new();
    for company in companies {
        for campaign in campaigns {
            upload(
                &site,
                format!("{company}/{campaign}/d,e ${{r}}/a.tsv"),
                &file,
                60,
            );
        }
    }
    ingest(&site, server);
    for company in companies {
        let args = ["--company", company];
        let check = |args: &[&str], counts| checked(&site, server, company, args, &ALL, counts);
        let output = check(&args, [0, 0, 0]);
        assert_eq!(numbers(&output), [96, 96, 0, 0, 0], "{company}");
        // One point of each campaign is changed and one removed.
        for point in server.points(company) {
            if point.tags["channel_number"] == "3" && point.time_ns % 1_200_000_000_000 == 0 {
                server.write_ns(company, &point.with("value=2", point.time_ns));
            }
        }
        server.delete(
            company,
            ("channel_number", "4"),
            START + 184_800,
            START + 184_800,
        );
        check(&args, [6, 6, 0]);
        let one = ["--company", company, "--campaign", campaigns[1]];
        let run = verify(&site, server)
            .arg("--json")
            .args(one)
            .run()
            .expect(1);
        let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!(numbers(&output), [16, 15, 1, 1, 0], "{output:#}");
        let output = check(&[args[0], args[1], "--repair"], [0, 0, 0]);
        assert_eq!(output["repaired"], 12, "{company}");
    }
}

#[test]
fn names_need_escaping_everywhere() {
    names_are_escaped(&Double::start());
}

#[test]
fn names_need_escaping_everywhere_on_a_real_server() {
    if let Some(server) = RealInflux::start() {
        names_are_escaped(&server);
    }
}

/// A file of one row at 1 August 2025 10:00 with this value.
fn version(value: u32) -> String {
    let row = format!("01/08/25 10:00:00\t{value}\t{value}");
    FileBuilder::default().line(row).build()
}

/// The same of another device.
fn version_of(serial: &str, value: u32) -> String {
    version(value).replace("02001171", serial)
}

#[test]
fn the_last_upload_of_several_versions_is_expected() {
    let (site, double) = (Site::new(), Double::start());
    for (device, versions) in [
        // The modification time decides, not the number.
        (
            "1",
            vec![("x.tsv", 1, 10), ("x.1.tsv", 2, 30), ("x.2.tsv", 3, 20)],
        ),
        (
            "2",
            vec![("x.tsv", 2, 30), ("x.1.tsv", 3, 20), ("x.2.tsv", 1, 10)],
        ),
        // The number decides between versions of the same time.
        (
            "3",
            vec![("x.9.tsv", 2, 30), ("x.10.tsv", 1, 30), ("x.tsv", 3, 30)],
        ),
        // Other names are uploads of their own.
        ("4", vec![("a.tsv", 1, 10), ("b.tsv", 2, 20)]),
    ] {
        for (name, value, minutes_ago) in versions {
            let file = version(value).replace("02001171", &format!("0200000{device}"));
            let path = site.put(format!("acme/site/{device}/parsed/{name}"), file);
            let time = std::time::SystemTime::UNIX_EPOCH
                + Duration::from_secs(1_790_000_000 - 60 * minutes_ago);
            let file = std::fs::File::options()
                .append(true)
                .open(path)
                .expect("opened");
            file.set_modified(time).expect("time set");
        }
    }
    let output = checked(&site, &double, "acme", &["--repair"], &ALL, [0, 0, 0]);
    assert_eq!(output["repaired"], 8, "{output:#}");
    let points = Server::points(&double, "acme");
    assert!(points.iter().all(|p| p.value == "1"), "{points:#?}");
}

#[test]
fn folders_whose_files_have_the_same_master_are_compared_together() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, DEVICE.file("a.tsv"), good_file(1, 30), 50);
    ingest(&site, &double);
    upload(&site, "acme/site/a copy/b.tsv", good_file(500, 20), 40);
    ingest(&site, &double);
    let output = checked(&site, &double, "acme", &[], &ALL, [0, 0, 0]);
    assert_eq!(numbers(&output), [60, 60, 0, 0, 0]);
    assert_eq!(output["files"], 2);
    let point = point_at(&double, MASTER, START);
    assert_eq!(point.value, "500.5");
    double.write_ns("acme", &point.with("value=1.5", point.time_ns));
    checked(&site, &double, "acme", &[], &ALL, [0, 1, 0]);
    checked(&site, &double, "acme", &["--repair"], &ALL, [0, 0, 0]);
    assert_eq!(point_at(&double, MASTER, START).value, "500.5");
}

#[test]
fn a_folder_has_the_points_of_the_master_that_was_replaced() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, DEVICE.file("a.tsv"), good_file(1, 30), 50);
    let replaced = good_file(100, 10).replace("02001171", "02002222");
    upload(&site, DEVICE.file("b.tsv"), replaced, 40);
    ingest(&site, &double);
    checked(&site, &double, "acme", &[], &ALL, [0, 0, 0]);
    Server::delete(
        &double,
        "acme",
        ("device_master_sn", "02002222"),
        START,
        START + 600,
    );
    let output = checked(&site, &double, "acme", &[], &ALL, [4, 0, 0]);
    assert_eq!(output["devices"][0]["device"], "02001171");
    assert_eq!(output["devices"].as_array().expect("a list").len(), 1);
}

#[test]
fn the_repeated_hour_of_autumn_may_begin_in_one_file_and_end_in_the_next() {
    let (site, double) = (Site::new(), Double::start());
    let night = |times: &[&str]| {
        let rows = times.iter().map(|t| format!("26/10/25 {t}:00\t1\t2"));
        FileBuilder::default().lines(rows).build()
    };
    upload(
        &site,
        DEVICE.file("a.tsv"),
        night(&["01:40", "02:00", "02:20", "02:40"]),
        50,
    );
    upload(
        &site,
        DEVICE.file("b.tsv"),
        night(&["02:00", "02:20", "02:40", "03:00"]),
        40,
    );
    ingest(&site, &double);
    let mut times: Vec<_> = Server::points(&double, "acme")
        .iter()
        .filter(|p| p.tags["channel_id"] == MASTER)
        .map(|p| utc(p.time_ns / 1_000_000_000)[11..16].to_owned())
        .collect();
    times.sort();
    assert_eq!(
        times,
        [
            "00:00", "00:20", "00:40", "01:00", "01:20", "01:40", "02:00", "23:40"
        ]
    );
    let run = verify(&site, &double).ok();
    assert!(
        run.stdout
            .contains("16 points in 2 files; 0 missing, 0 different, 0 extra"),
        "{}",
        run.stdout
    );
}

#[test]
fn points_of_a_file_in_error_are_extra() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, DEVICE.file("a.tsv"), good_file(1, 10), 50);
    let later = good_file(1, 20).replace("/08/25", "/09/25");
    upload(&site, DEVICE.file("b.tsv"), later, 40);
    ingest(&site, &double);
    checked(&site, &double, "acme", &[], &ALL, [0, 0, 0]);
    site.rename(DEVICE.parsed("b.tsv"), DEVICE.error("b.tsv"));
    checked(&site, &double, "acme", &[], &ALL, [0, 0, 40]);
    // A file that waits gives no points yet.
    site.rename(DEVICE.error("b.tsv"), DEVICE.file("b.tsv"));
    checked(&site, &double, "acme", &[], &ALL, [0, 0, 40]);
}

fn expired_points_are_not_expected(server: &dyn Server) {
    let site = Site::new();
    let ages = [86_400 * 400, 86_400 * 20, 86_400 * 2, 7200];
    upload(&site, DEVICE.file("a.tsv"), file_of_ages(&ages), 50);
    to(site.call(), server).env("TSV_TIMEZONE", "UTC").ok();
    let run = verify(&site, server).env("TSV_TIMEZONE", "UTC").ok();
    assert!(
        run.stdout.contains("4 points in 1 file; 0 missing"),
        "{}",
        run.stdout
    );
}

#[test]
fn points_older_than_the_retention_are_not_expected() {
    let double = Double::start();
    let week = Retention {
        shown: 7 * 86_400,
        applied: 7 * 86_400,
    };
    double.add_bucket_with_retention("acme", week);
    expired_points_are_not_expected(&double);
}

#[test]
fn points_older_than_the_retention_of_a_real_bucket_are_not_expected() {
    if let Some(server) = RealInflux::start() {
        server.create_bucket("acme", 7 * 86_400);
        expired_points_are_not_expected(&server);
    }
}

#[test]
fn points_that_expire_during_a_repair_are_not_missing() {
    let (site, double) = (Site::new(), Double::start());
    let two_hours = Retention {
        shown: 7200,
        applied: 7200,
    };
    double.add_bucket_with_retention("acme", two_hours);
    let ages: Vec<_> = (7140..7210).rev().collect();
    upload(&site, DEVICE.parsed("a.tsv"), file_of_ages(&ages), 50);
    let gate = Gate::new();
    double.fault(is_query, 0, 1, Fault::Gate(gate.clone()));
    let call = verify(&site, &double).env("TSV_TIMEZONE", "UTC");
    let running = call.args(["--json", "--repair"]).start();
    gate.wait_for(1);
    // A row expires every second.
    std::thread::sleep(Duration::from_secs(3));
    gate.open();
    let run = running.wait().clean();
    let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let [expected, found, missing, different, extra] = numbers(&output);
    assert_eq!([missing, different, extra], [0, 0, 0], "{output:#}");
    assert_eq!(expected, found, "{output:#}");
    assert!(expected > 0, "{output:#}");
    assert_eq!(run.code(), 0, "{output:#}");
}

#[test]
fn a_comparison_can_begin_at_a_day_or_at_a_time() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    // Each hour of the first device lacks a row.
    for hour in 0..50 {
        let time = START + 3600 * hour;
        Server::delete(
            &double,
            "acme",
            ("device_master_sn", "02001171"),
            time,
            time,
        );
    }
    checked(&site, &double, "acme", &[], &ALL, [100, 0, 0]);
    for (since, start, missing) in [
        ("2025-08-01", 1_754_006_400, 96),
        ("2025-08-02T00:00:00+02:00", START + 86_400, 52),
        ("2025-08-02T22:00:01Z", START + 2 * 86_400 + 1, 2),
        ("2025-08-04", START + 3 * 86_400, 0),
    ] {
        let times = start..i64::MAX;
        checked(
            &site,
            &double,
            "acme",
            &["--since", since],
            &times,
            [missing, 0, 0],
        );
    }
}

#[test]
fn a_comparison_can_begin_some_days_ago() {
    let (site, double) = (Site::new(), Double::start());
    let ages = [86_400 * 9, 86_400 * 7, 3600];
    upload(&site, DEVICE.file("a.tsv"), file_of_ages(&ages), 50);
    to(site.call(), &double).env("TSV_TIMEZONE", "UTC").ok();
    double.delete("acme", |_, _| true);
    for (since, missing) in [("8d", 4), ("10d", 6), ("169h", 4), ("30m", 0)] {
        let run = verify(&site, &double)
            .env("TSV_TIMEZONE", "UTC")
            .args(["--json", "--since", since])
            .run()
            .expect(i32::from(missing > 0));
        let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!(numbers(&output), [missing, 0, missing, 0, 0], "{since}");
    }
}

#[test]
fn an_older_file_may_have_points_of_the_future() {
    let (site, double) = (Site::new(), Double::start());
    let future = good_file(1, 10).replace("/25 ", "/61 ");
    upload(&site, DEVICE.file("a.tsv"), future, 50);
    ingest(&site, &double);
    let args = ["--since", "2060-01-01"];
    let output = checked(
        &site,
        &double,
        "acme",
        &args,
        &(2_840_140_800..i64::MAX),
        [0, 0, 0],
    );
    assert_eq!(numbers(&output), [20, 20, 0, 0, 0]);
}

#[test]
fn a_name_without_a_folder_is_a_usage_error() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    let requests = double.requests().len();
    for (args, message) in [
        (vec!["--company", "acm"], "there is no folder acm"),
        (
            vec!["--company", "acme", "--campaign", "sit"],
            "there is no folder acme/sit",
        ),
        (vec!["--company", ".."], "there is no folder"),
        (vec!["--company", "acme/site"], "there is no folder"),
        (vec!["--company", ""], "there is no folder"),
        (
            vec!["--company", "acme", "--campaign", "."],
            "there is no folder",
        ),
        (vec!["--campaign", "site"], "--company"),
        (vec!["--since", "yesterday"], "not a time"),
        (vec!["--since", "2025-13-01"], "not a time"),
    ] {
        let run = verify(&site, &double).args(&args).run().expect(2);
        assert!(run.stderr.contains(message), "{args:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{args:?}");
    }
    let run = verify(&site, &double)
        .no_env("INFLUXDB_ADMIN_TOKEN")
        .run()
        .expect(2);
    assert!(
        run.stderr.contains("INFLUXDB_ADMIN_TOKEN"),
        "{}",
        run.stderr
    );
    assert_eq!(double.requests().len(), requests);
}

#[test]
fn only_the_chosen_company_or_campaign_is_compared() {
    let (site, double) = (Site::new(), Double::start());
    for path in ["a/one/1", "a/two/1", "b/one/1"] {
        upload(&site, format!("{path}/x.tsv"), good_file(1, 5), 50);
    }
    ingest(&site, &double);
    for bucket in ["a", "b"] {
        double.delete(bucket, |_, _| true);
    }
    for (args, missing) in [
        (vec!["--company", "a"], 20),
        (vec!["--company", "a", "--campaign", "two"], 10),
        (vec!["--company", "b"], 10),
        (vec![], 30),
    ] {
        let run = verify(&site, &double)
            .arg("--json")
            .args(&args)
            .run()
            .expect(1);
        let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!(output["missing"], missing, "{args:?}: {output:#}");
    }
}

#[test]
fn the_output_has_the_keys_of_the_specification() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    Server::delete(&double, "acme", ("channel_id", MASTER), START, START + 6000);
    let run = verify(&site, &double).arg("--json").run().expect(1);
    let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let keys = |value: &Value| -> Vec<String> {
        let mut keys: Vec<_> = value
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect();
        keys.sort();
        keys
    };
    assert_eq!(
        keys(&output),
        [
            "data_folder",
            "devices",
            "different",
            "equal",
            "expected",
            "extra",
            "failures",
            "files",
            "found",
            "missing",
            "notes",
            "repaired",
            "summaries",
            "time",
            "unexplained_measurements",
        ]
    );
    let device = &output["devices"][0];
    assert_eq!(
        keys(device),
        [
            "campaign",
            "company",
            "device",
            "different",
            "equal",
            "expected",
            "extra",
            "files",
            "first",
            "found",
            "missing",
            "months",
        ]
    );
    assert_eq!(device["equal"], false);
    assert_eq!(output["devices"][1]["equal"], true);
    assert_eq!(
        keys(&device["months"][0]),
        [
            "different",
            "expected",
            "extra",
            "found",
            "missing",
            "month"
        ]
    );
    let missing = device["first"]["missing"].as_array().expect("a list");
    assert_eq!(missing.len(), 3);
    assert_eq!(keys(&missing[0]), ["expected", "found", "series", "time"]);
}

#[test]
fn the_text_names_the_worst_device_first() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    Server::delete(
        &double,
        "acme",
        ("device_master_sn", "02001171"),
        START,
        START,
    );
    Server::delete(
        &double,
        "acme",
        ("device_master_sn", "02009999"),
        START,
        START + 600,
    );
    let run = verify(&site, &double).run().expect(1);
    let lines: Vec<_> = run.stdout.lines().filter(|l| !l.starts_with(' ')).collect();
    assert_eq!(
        lines,
        [
            "acme/site/02009999: 4 missing, 0 different, 0 extra",
            "acme/site/02001171: 2 missing, 0 different, 0 extra",
            "640 points in 3 files; 6 missing, 0 different, 0 extra",
        ]
    );
}

#[test]
fn folders_of_the_same_measurement_are_compared_together() {
    let (site, double) = (Site::new(), Double::start());
    // InfluxDB stores no backslash at the end of a name.
    upload(&site, "acme/site/1/a.tsv", good_file(1, 5), 50);
    let other = good_file(1, 10).replace("02001171", "02002222");
    upload(&site, r"acme/site\/2/a.tsv", other, 50);
    let elsewhere = good_file(1, 20).replace("02001171", "02003333");
    upload(&site, "acme/elsewhere/3/a.tsv", elsewhere, 50);
    ingest(&site, &double);
    for campaign in ["site", r"site\"] {
        let args = ["--json", "--company", "acme", "--campaign", campaign];
        let run = verify(&site, &double).args(args).run().expect(0);
        let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!(numbers(&output), [30, 30, 0, 0, 0], "{output:#}");
    }
}

#[test]
fn a_company_that_is_named_like_another_bucket_is_not_compared() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    double.add_bucket("acme.rebuild");
    let names = ["_monitoring", "acme.rebuild", "powerview_meta"];
    for name in names {
        double.insert(name, "site,device_master_sn=02001171 value=1 1\n");
        for device in ["1", "2"] {
            site.put(format!("{name}/site/{device}/parsed/a.tsv"), version(1));
        }
    }
    let run = verify(&site, &double).arg("--json").run().clean();
    let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(numbers(&output), [640, 640, 0, 0, 0], "{output:#}");
    assert_eq!(run.code(), 0, "{output:#}");
    let notes = output["notes"].as_array().expect("a list");
    assert_eq!(notes.len(), names.len(), "{output:#}");
    for (note, name) in notes.iter().zip(names) {
        let start = format!("invalid company folder name {name:?}: ");
        assert!(note.as_str().expect("a text").starts_with(&start), "{note}");
    }
}

#[test]
fn a_bucket_that_is_gone_is_made_again() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    double.delete_bucket("acme");
    checked(&site, &double, "acme", &[], &ALL, [640, 0, 0]);
    assert!(!double.bucket_names().contains(&"acme".to_owned()));
    let output = checked(&site, &double, "acme", &["--repair"], &ALL, [0, 0, 0]);
    assert_eq!(output["repaired"], 640);
}

#[test]
fn a_bucket_that_is_being_rebuilt_is_not_compared() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    // As between the two renames of a rebuild.
    double.delete_bucket("acme");
    double.add_bucket("acme.rebuild");
    let run = verify(&site, &double).arg("--repair").run().expect(1);
    let failure = "not compared: acme: the bucket is being rebuilt";
    assert!(run.stdout.contains(failure), "{}", run.stdout);
    assert!(!double.bucket_names().contains(&"acme".to_owned()));
}

#[test]
fn a_write_that_the_server_lost_is_found_and_repaired() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, DEVICE.file("a.tsv"), good_file(1, 30), 50);
    // The server says that it has stored the points.
    double.fault_writes(1, Fault::Status(204, String::new()));
    ingest(&site, &double);
    assert!(site.exists(DEVICE.parsed("a.tsv")));
    checked(&site, &double, "acme", &[], &ALL, [60, 0, 0]);
    // It loses the repair too: the points are read again after they are written.
    double.fault_writes(1, Fault::Status(204, String::new()));
    checked(&site, &double, "acme", &["--repair"], &ALL, [60, 0, 0]);
    checked(&site, &double, "acme", &["--repair"], &ALL, [0, 0, 0]);
}

#[test]
fn a_repair_that_the_server_refuses_is_a_failure() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    Server::delete(&double, "acme", ("channel_id", MASTER), START, START);
    for (status, message) in [(401, "token revoked"), (403, "no right"), (422, "dropped")] {
        double.fault_writes(usize::MAX, Fault::status(status, message));
        let run = verify(&site, &double)
            .args(["--json", "--repair"])
            .run()
            .expect(1);
        let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!(output["equal"], false, "{status}");
        assert_eq!(output["repaired"], 0, "{status}");
        let failure = output["failures"][0].as_str().expect("a failure");
        let start = "acme: the missing points cannot be written: ";
        assert!(
            failure.starts_with(start) && failure.contains(message),
            "{failure}"
        );
        double.clear_faults();
    }
    checked(&site, &double, "acme", &[], &ALL, [1, 0, 0]);
}

#[test]
fn a_server_that_does_not_answer_is_no_equal_database() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    let query: fn(&Request) -> bool = is_query;
    let failing = |what: &str, skip: usize, fault: Fault, message: &str| {
        double.fault(query, skip, usize::MAX, fault);
        for args in [&["--json"][..], &[]] {
            let run = verify(&site, &double)
                .env("TSV_REQUEST_TIMEOUT_S", "0.5")
                .args(args)
                .run()
                .expect(1);
            assert!(
                run.stdout.contains(message),
                "{what}: {}{}",
                run.stdout,
                run.stderr
            );
            if !args.is_empty() {
                let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
                assert_eq!(output["equal"], false, "{what}: {output:#}");
            }
        }
        double.clear_faults();
    };
    failing(
        "token revoked",
        0,
        Fault::status(401, "unauthorized access"),
        "unauthorized access",
    );
    failing(
        "no right to read",
        0,
        Fault::status(403, "insufficient permissions"),
        "insufficient",
    );
    failing(
        "revoked in the middle",
        1,
        Fault::status(401, "unauthorized access"),
        "unauthorized access",
    );
    failing("unavailable", 1, Fault::status(503, "down"), "503");
    failing("answers cut", 0, Fault::CutBody, "cannot be read");
    failing("answers cut later", 1, Fault::CutBody, "cannot be read");
    failing(
        "errors in answers",
        0,
        Fault::ErrorInAnswer("out of memory"),
        "out of memory",
    );
    failing("silence", 0, Fault::Silence, "no response within");
    failing("a proxy's page", 0, Fault::Html(200), "not annotated CSV");
    failing(
        "a redirect",
        0,
        Fault::Redirect(302, "http://127.0.0.1:1/".to_owned()),
        "302",
    );
    verify(&site, &double).ok();

    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let url = format!("http://{}", closed.expect("a port"));
    let run = verify(&site, &double)
        .env("INFLUXDB_HOST", url)
        .run()
        .expect(1);
    assert!(
        run.stdout.contains("not compared: acme: "),
        "{}",
        run.stdout
    );
}

#[test]
fn an_answer_that_ends_early_is_asked_for_again() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    for (what, fault, times) in [
        ("cut", Fault::CutBody, 2),
        ("error", Fault::ErrorInAnswer("cancelled"), 2),
        ("unavailable", Fault::status(503, "down"), 1),
        ("reset", Fault::ResetBefore, 1),
        ("silence", Fault::Silence, 1),
    ] {
        for skip in 0..2 {
            double.fault(is_query, skip, times, fault.clone());
            let run = verify(&site, &double)
                .env("TSV_REQUEST_TIMEOUT_S", "1")
                .env("TSV_RETRY_FOR", "20")
                .run();
            assert_eq!(run.code(), 0, "{what} {skip}: {}{}", run.stdout, run.stderr);
            double.clear_faults();
        }
    }
}

#[test]
fn an_endless_row_does_not_fill_the_memory() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    double.fault(is_query, 0, usize::MAX, Fault::Flood(200));
    let mut run = verify(&site, &double).start();
    let peak = run.peak_kib();
    run.wait().expect(1);
    assert!(peak < 64 * 1024, "{peak} KiB");
}

#[test]
fn a_hook_is_not_held_up_by_a_comparison() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    let gate = Gate::new();
    double.fault(is_query, 0, 1, Fault::Gate(gate.clone()));
    let running = verify(&site, &double).start();
    gate.wait_for(1);
    let later = good_file(1, 20).replace("/08/25", "/09/25");
    upload(&site, DEVICE.file("c.tsv"), later, 20);
    to(site.call(), &double).named(DEVICE.file("c.tsv")).ok();
    assert!(site.exists(DEVICE.parsed("c.tsv")));
    gate.open();
    let run = running.wait().expect(0);
    assert!(
        run.stdout.contains("680 points in 4 files; 0 missing"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_hook_waits_at_most_for_the_second_comparison_of_a_part_of_its_device() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    Server::delete(&double, "acme", ("channel_id", MASTER), START, START);
    // The second query of the first device follows a difference.
    let gate = Gate::new();
    double.fault(is_query, 1, 1, Fault::Gate(gate.clone()));
    let running = verify(&site, &double).start();
    gate.wait_for(1);
    let later = good_file(1, 20).replace("/08/25", "/09/25");
    let of_other = later.replace("02001171", "02009999");
    upload(&site, "acme/site/02009999/c.tsv", of_other, 20);
    to(site.call(), &double)
        .named("acme/site/02009999/c.tsv")
        .ok();
    upload(&site, DEVICE.file("c.tsv"), later, 20);
    let mut hook = to(site.call(), &double).named(DEVICE.file("c.tsv")).start();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!hook.is_done());
    gate.open();
    hook.wait().expect(0);
    let run = running.wait().expect(1);
    assert!(
        run.stdout.contains("; 1 missing, 0 different, 0 extra"),
        "{}",
        run.stdout
    );
    checked(&site, &double, "acme", &["--repair"], &ALL, [0, 0, 0]);
}

#[test]
fn a_device_that_stays_locked_is_compared_with_a_note() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, DEVICE.file("a.tsv"), good_file(1, 20), 20);
    ingest(&site, &double);
    Server::delete(&double, "acme", ("channel_id", MASTER), START, START);
    let _lock = site.lock(DEVICE.0);
    let call = verify(&site, &double).arg("--json");
    let run = call.env("TSV_LOCK_WAIT_S", "0").run().expect(1);
    let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let note = format!(
        "{}: compared without its lock, so that a file which is being ingested counts as a difference: device folder is \
         locked by process {} (waited 0 s); check that process",
        site.path(DEVICE.0).display(),
        std::process::id()
    );
    assert_eq!(output["notes"], json!([note]), "{output:#}");
    assert_eq!(output["missing"], 1, "{output:#}");
}

#[test]
fn nothing_is_written_without_the_lock_of_the_device() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, "acme/site/1/a.tsv", version(1), 50);
    upload(&site, "acme/site/2/a.tsv", version_of("02002222", 5), 50);
    ingest(&site, &double);
    // The hook has written a later upload, and has not moved it yet.
    let gate = Gate::new();
    let hook = start_hook(&site, &double, "acme/site/1/b.tsv", version(2), &gate);
    let call = verify(&site, &double).args(["--json", "--repair"]);
    let run = call.env("TSV_LOCK_WAIT_S", "0").run().expect(1);
    let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let failure = format!(
        "acme/site/1: nothing is written without the lock of {}: device folder is locked by process {} (waited 0 s); check \
         that process",
        site.path("acme/site/1").display(),
        hook.pid()
    );
    assert_eq!(output["failures"], json!([failure]), "{output:#}");
    assert_eq!(output["repaired"], 0, "{output:#}");
    // Its points are not those of a device without a file.
    assert_eq!(numbers(&output), [2, 2, 0, 0, 0], "{output:#}");
    let verified = verified(&site);
    assert_eq!(verified["1"].0, Value::Null);
    assert!(verified["2"].0.is_string());
    gate.open();
    hook.wait().expect(0);
    assert_eq!(point_at(&double, MASTER, START + 36_000).value, "2");
    checked(&site, &double, "acme", &[], &ALL, [0, 0, 0]);
}

/// Starts the hook for a file that was uploaded 20 minutes ago. Its points are in the database, and the file is not moved
/// until the gate opens.
fn start_hook(
    site: &Site,
    double: &Double,
    path: &str,
    content: impl AsRef<[u8]>,
    gate: &Arc<Gate>,
) -> Running {
    double.fault(is_data_write, 0, 1, Fault::GateAfter(gate.clone()));
    upload(site, path, content, 20);
    let hook = to(site.call(), double).named(path).start();
    gate.wait_for(1);
    hook
}

fn wait_for_queries(double: &Double, number: usize) {
    while double.requests().iter().filter(|r| is_query(r)).count() < number {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn files_of_new_devices_may_be_on_their_way() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    let start = |serial: &str, gate| {
        let path = format!("acme/site/{serial}/a.tsv");
        let content = good_file(1, 5).replace("02001171", serial);
        start_hook(&site, &double, &path, content, gate)
    };
    let gates = [Gate::new(), Gate::new()];
    let first = start("02000001", &gates[0]);
    let running = verify(&site, &double).start();
    wait_for_queries(&double, 4);
    std::thread::sleep(Duration::from_millis(500));
    let second = start("02000002", &gates[1]);
    gates[0].open();
    first.wait().expect(0);
    let run = running.wait().expect(0);
    assert!(
        run.stdout
            .contains("650 points in 4 files; 0 missing, 0 different, 0 extra"),
        "{}",
        run.stdout
    );
    gates[1].open();
    second.wait().expect(0);
    checked(&site, &double, "acme", &[], &ALL, [0, 0, 0]);
}

#[test]
fn points_of_a_new_device_that_stays_locked_are_not_extra() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    let gate = Gate::new();
    let content = good_file(1, 5).replace("02001171", "02000007");
    let hook = start_hook(&site, &double, "acme/site/7/a.tsv", content, &gate);
    let call = verify(&site, &double).arg("--json");
    let run = call.env("TSV_LOCK_WAIT_S", "0").run().expect(1);
    let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(numbers(&output), [640, 640, 0, 0, 0], "{output:#}");
    let failure = format!(
        "acme/site/7: points without a file may belong to one that is being ingested: device folder is locked by process {} \
         (waited 0 s); check that process",
        hook.pid()
    );
    assert_eq!(output["failures"], json!([failure]), "{output:#}");
    gate.open();
    hook.wait().expect(0);
    checked(&site, &double, "acme", &[], &ALL, [0, 0, 0]);
}

/// Runs `change` after `verify` has compared the devices in the folders 1 and 2, and before it looks at them again.
fn changed_meanwhile(site: &Site, double: &Double, change: impl FnOnce()) -> Value {
    for (folder, value) in [("1", 1), ("2", 2)] {
        let path = format!("acme/site/{folder}/a.tsv");
        upload(
            site,
            path,
            version_of(&format!("0200000{folder}"), value),
            40,
        );
    }
    upload(site, "acme/tail/5/a.tsv", version_of("02000005", 5), 40);
    ingest(site, double);
    for folder in ["1", "2"] {
        let parsed = site.path(format!("acme/site/{folder}/parsed"));
        let parsed = std::fs::File::open(parsed).expect("opened");
        let time = std::time::SystemTime::now() - Duration::from_mins(1);
        parsed.set_modified(time).expect("time set");
    }
    let gate = Gate::new();
    let file = version_of("02000000", 0);
    let hook = start_hook(site, double, "acme/site/0/a.tsv", file, &gate);
    let running = verify(site, double).arg("--json").start();
    // One for each of the two devices, and two for the one without a file.
    wait_for_queries(double, 4);
    change();
    gate.open();
    hook.wait().expect(0);
    let run = running.wait().clean();
    serde_json::from_str(&run.stdout).expect("JSON")
}

#[test]
fn a_file_of_a_master_of_another_folder_may_arrive_meanwhile() {
    let (site, double) = (Site::new(), Double::start());
    let output = changed_meanwhile(&site, &double, || {
        let earlier = version_of("02000002", 9);
        upload(&site, "acme/site/1/parsed/b.tsv", earlier, 60);
    });
    assert_eq!(numbers(&output), [8, 8, 0, 0, 0], "{output:#}");
    assert_eq!(output["files"], 5, "{output:#}");
    assert_eq!(output["equal"], true, "{output:#}");
}

#[test]
fn points_of_a_folder_that_is_removed_meanwhile_are_extra() {
    let (site, double) = (Site::new(), Double::start());
    let output = changed_meanwhile(&site, &double, || {
        std::fs::remove_dir_all(site.path("acme/site/1")).expect("removed");
    });
    assert_eq!(output["failures"], json!([]), "{output:#}");
    assert_eq!(numbers(&output), [6, 8, 0, 0, 2], "{output:#}");
    let devices = output["devices"].as_array().expect("a list").iter();
    let numbers: BTreeMap<_, _> = devices
        .map(|device| (device["device"].as_str().expect("a name"), numbers(device)))
        .collect();
    let equal = [2, 2, 0, 0, 0];
    let removed = [0, 2, 0, 0, 2];
    let expected = [
        ("0", equal),
        ("02000001", removed),
        ("2", equal),
        ("5", equal),
    ];
    assert_eq!(numbers, BTreeMap::from(expected), "{output:#}");
}

#[test]
fn a_folder_that_cannot_be_opened_meanwhile_is_named() {
    let (site, double) = (Site::new(), Double::start());
    let output = changed_meanwhile(&site, &double, || {
        std::fs::remove_dir_all(site.path("acme/site/1")).expect("removed");
        site.link("2", "acme/site/1");
    });
    let failure = "acme/site/1: cannot read the folder: Not a directory (os error 20)";
    assert_eq!(output["failures"], json!([failure]), "{output:#}");
    assert_eq!(numbers(&output), [6, 6, 0, 0, 0], "{output:#}");
}

/// The times of the last comparisons in the output of `status`, by device.
fn verified(site: &Site) -> BTreeMap<String, (Value, Value)> {
    let call = site
        .bare()
        .args(["status", "--json", "-d"])
        .arg(site.data());
    let run = call.run().clean();
    let output: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let devices = output["devices"].as_array().expect("a list").iter();
    devices
        .map(|device| {
            let name = device["device"].as_str().expect("a name").to_owned();
            (
                name,
                (device["verified"].clone(), device["verified_since"].clone()),
            )
        })
        .collect()
}

#[test]
fn status_shows_when_a_device_was_last_found_equal() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    upload(&site, "other/site/1/a.tsv", good_file(1, 5), 50);
    ingest(&site, &double);
    let never = (Value::Null, Value::Null);
    assert!(verified(&site).values().all(|v| *v == never));
    let start = Utc::now();
    Server::delete(&double, "acme", ("channel_id", MASTER), START, START);
    verify(&site, &double)
        .args(["--company", "acme"])
        .run()
        .expect(1);
    let devices = verified(&site);
    assert_eq!((&devices["02001171"], &devices["1"]), (&never, &never));
    let (time, since) = &devices["02009999"];
    let time: DateTime<Utc> = time.as_str().expect("a time").parse().expect("a time");
    assert!(start <= time && time <= Utc::now(), "{devices:?}");
    assert_eq!(*since, Value::Null);
    let text = site
        .bare()
        .args(["status", "-d"])
        .arg(site.data())
        .run()
        .clean()
        .stdout;
    let lines: Vec<_> = text.lines().filter(|l| l.contains(" site ")).collect();
    let column = |device: &str| {
        let line = lines.iter().find(|l| l.contains(device)).expect("a line");
        line.rsplit("  ")
            .next()
            .expect("a column")
            .trim()
            .to_owned()
    };
    assert_eq!(
        (column("02001171"), column("02009999")),
        ("-".to_owned(), "0 min ago".to_owned())
    );

    // Another company leaves the entries of this one, and a part of the time is named.
    verify(&site, &double)
        .args(["--company", "other", "--since", "2025-07-01"])
        .ok();
    let later = verified(&site);
    assert_eq!(later["02009999"], devices["02009999"]);
    assert_eq!(later["1"].1, "2025-07-01T00:00:00Z");
    // A difference that comes later leaves the time of the last equal comparison.
    double.delete("acme", |_, _| true);
    verify(&site, &double).run().expect(1);
    assert_eq!(verified(&site)["02009999"], devices["02009999"]);
    // A device that could not be compared is not verified.
    double.fault(is_query, 0, usize::MAX, Fault::status(401, "no"));
    let before = verified(&site);
    verify(&site, &double).run().expect(1);
    assert_eq!(verified(&site), before);
}

#[test]
fn the_file_of_the_last_comparisons_is_not_believed() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    let file = site.reports_dir().join("verified.json");
    let status = || {
        site.bare()
            .args(["status", "-d"])
            .arg(site.data())
            .run()
            .clean()
    };
    for content in [
        "not JSON",
        r#"{"acme/site/02001171": {"time": "2999-01-01T00:00:00Z", "since": null}}"#,
        r#"{"acme/site/02001171": {"time": "\u001b[31m", "since": null}}"#,
    ] {
        std::fs::write(&file, content).expect("written");
        let run = status();
        let note = "verified.json cannot be read, so it is unknown when devices were verified";
        assert!(run.stdout.contains(note), "{}", run.stdout);
        assert!(verified(&site).values().all(|(time, _)| time.is_null()));
    }
    verify(&site, &double).ok();
    assert!(verified(&site).values().all(|(time, _)| time.is_string()));
    // A folder in its place cannot be replaced.
    std::fs::remove_file(&file).expect("removed");
    std::fs::create_dir_all(file.join("x")).expect("a folder");
    let run = verify(&site, &double).ok();
    assert!(
        run.stderr.contains("verified.json is not written"),
        "{}",
        run.stderr
    );
    assert!(status().stdout.contains("verified.json cannot be read"));
}

#[test]
fn the_file_of_the_last_comparisons_belongs_to_the_user_of_the_hook() {
    let (site, double) = (Site::new(), Double::start());
    archive(&site);
    ingest(&site, &double);
    if !rustix::process::geteuid().is_root() {
        return;
    }
    std::os::unix::fs::chown(site.reports_dir(), Some(NOBODY), Some(NOBODY)).expect("chown");
    verify(&site, &double).ok();
    upload(&site, DEVICE.file("c.tsv"), good_file(1, 1), 20);
    ingest(&site, &double);
    let files = std::fs::read_dir(site.reports_dir()).expect("reports");
    let files: BTreeSet<_> = files
        .map(|file| {
            let file = file.expect("an entry").metadata().expect("there");
            (file.uid(), file.gid(), file.mode())
        })
        .filter(|(user, ..)| *user == NOBODY)
        .collect();
    // That of the last run and verified.json.
    assert_eq!(files.len(), 1, "{files:?}");
    let file = site.reports_dir().join("verified.json").metadata();
    assert_eq!(file.expect("there").uid(), NOBODY);
}

/// Stops a thread when the test ends or fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "slow: 50 comparisons"]
fn files_that_arrive_meanwhile_are_no_difference() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    archive(&site);
    ingest(&site, &server);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // New and repeated times, of a known and now and then of a new device.
                let device = if n % 5 == 0 {
                    format!("0300{:04}", n / 5 % 10)
                } else {
                    "02001171".to_owned()
                };
                let file = good_file(n, 30).replace("/08/25", &format!("/{:02}/25", 1 + n % 8));
                let path = format!("acme/site/{device}/x{}.tsv", n % 3);
                site.put("upload", file.replace("02001171", &device));
                site.rename("upload", &path);
                to(site.call(), &server)
                    .named(&path)
                    .env("TSV_INCOMPLETE_GRACE_S", "0")
                    .ok();
                // Otherwise the archive grows faster than it is compared.
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        let _stop = StopOnDrop(&stop);
        for n in 0..50 {
            let call = verify(&site, &server).arg("--json");
            let run = call.timeout(Duration::from_mins(5)).run();
            assert_eq!(
                run.code(),
                0,
                "comparison {n}: {}{}",
                run.stdout,
                run.stderr
            );
        }
    });
    checked(&site, &server, "acme", &[], &ALL, [0, 0, 0]);
}

/// A file of this number of rows with 30 channels.
fn large_file(rows: usize) -> String {
    let channels = (0..30).map(|n| format!("Voie{n} W"));
    let rows = (0..rows).map(|n| {
        let mut row = format!(
            "{:02}/{:02}/25 {:02}:{:02}:{:02}",
            1 + n / 86_400 % 28,
            1 + n / 86_400 / 28,
            n / 3600 % 24,
            n / 60 % 60,
            n % 60
        );
        for channel in 0..30 {
            row += &format!("\t{}.{channel}", n % 977);
        }
        row
    });
    FileBuilder::with_channels(channels).lines(rows).build()
}

#[track_caller]
fn assert_small(call: Call<'_>, code: i32) -> String {
    let mut running = call.timeout(Duration::from_mins(15)).start();
    let peak = running.peak_kib();
    let run = running.wait().expect(code);
    assert!(peak < 64 * 1024, "{peak} KiB");
    run.stdout
}

#[test]
#[ignore = "slow: two million points"]
fn memory_does_not_grow_with_the_number_of_points() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    upload(&site, DEVICE.file("a.tsv"), large_file(66_667), 50);
    to(site.call(), &server)
        .env("TSV_RETRY_FOR", "60")
        .timeout(Duration::from_mins(15))
        .ok();
    let call = verify(&site, &server).env("TSV_REQUEST_TIMEOUT_S", "60");
    let text = assert_small(call, 0);
    assert!(
        text.contains("2,000,010 points in 1 file; 0 missing, 0 different, 0 extra"),
        "{text}"
    );
}

#[test]
#[ignore = "slow: two million points"]
fn memory_does_not_grow_with_the_number_of_points_that_are_missing_or_written() {
    let (site, double) = (Site::new(), Double::start());
    site.put_old(DEVICE.parsed("a.tsv"), large_file(66_667));
    double.forget_requests();
    double.fault_writes(usize::MAX, Fault::Status(204, String::new()));
    let text = assert_small(verify(&site, &double).arg("--repair"), 1);
    assert!(
        text.contains("2,000,010 missing, 0 different, 0 extra"),
        "{text}"
    );
}

#[test]
#[ignore = "slow: 100,000 files"]
fn memory_is_small_for_many_files() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, DEVICE.file("first.tsv"), good_file(1, 1), 50);
    to(site.call(), &double).env("TSV_TIMEZONE", "UTC").ok();
    // The first row of `good_file` in UTC.
    let series = [MASTER, SLAVE].map(|channel| point_at(&double, channel, START + 7200));
    let mut lines = String::new();
    for n in 0..100_000 {
        let time = START + 86_400 + 60 * n;
        let row = DateTime::from_timestamp(time, 0).expect("a time");
        let row = format!("{}\t{n}\t{n}", row.format("%d/%m/%y %H:%M:%S"));
        let file = FileBuilder::default().line(row).build();
        site.put_old(DEVICE.parsed(format!("T302_{n:08}.tsv")), file);
        for series in &series {
            lines += &series.with(&format!("value={n}"), time * 1_000_000_000);
        }
    }
    double.insert("acme", &lines);
    let call = verify(&site, &double).env("TSV_TIMEZONE", "UTC");
    let text = assert_small(call, 0);
    assert!(
        text.contains("200,002 points in 100001 files; 0 missing"),
        "{text}"
    );
}
