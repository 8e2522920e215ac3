//! Points about runs and files that the server did not accept: kept beside the reports, and sent by a later run.

use crate::grafana::{self, View, panel};
use crate::harness::{DEVICE, Running, Site, bad_file, good_file};
use crate::influx_double::{Double, Fault, Gate, META, Request};
use crate::line_protocol::{self, Line, Value as Field};
use crate::real_influx::RealInflux;
use chrono::{Duration, Utc};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// A server that has the meta bucket.
fn server() -> Double {
    let double = Double::start();
    double.add_bucket(META);
    double
}

/// An address at which nothing listens.
const NO_SERVER: &str = "http://127.0.0.1:1";

fn unsent(site: &Site) -> PathBuf {
    site.reports_dir().with_extension("unsent")
}

/// The kept files, oldest first.
fn kept(site: &Site) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(unsent(site)) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files
}

fn is_meta(request: &Request) -> bool {
    request.is_write() && request.bucket == META
}

fn meta_writes(double: &Double) -> Vec<Request> {
    let mut writes = double.requests();
    writes.retain(is_meta);
    writes
}

fn text(line: &Line, field: &str) -> String {
    match &line.fields[field] {
        Field::Text(text) => text.clone(),
        other => panic!("{field} is {other:?}"),
    }
}

/// What the reports say of runs and files, one entry per point that belongs to them.
fn reported(reports: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for report in reports {
        let run = report["run_id"].as_str().expect("an id");
        found.push(format!(
            "{run} {} of {} failed, outage {}",
            report["nb_files_failed"], report["nb_files_total"], report["outage"]
        ));
        for file in report["files"].as_array().expect("files") {
            let path = file["file_path"].as_str().expect("a path");
            let name = path.rsplit('/').next().expect("a name");
            found.push(format!("{run} {name} {}", file["status"]));
        }
    }
    found.sort();
    found
}

/// The same of the points.
fn stored(points: &[Line]) -> Vec<String> {
    let describe = |point: &Line| {
        let run = text(point, "run_id");
        if point.measurement == "tsv_parser_file" {
            let status = Value::from(point.tags["status"].as_str());
            return format!("{run} {} {status}", text(point, "file_name"));
        }
        let count = |field: &str| match point.fields[field] {
            Field::Int(count) => count,
            ref other => panic!("{field} is {other:?}"),
        };
        format!(
            "{run} {} of {} failed, outage {}",
            count("nb_files_failed"),
            count("nb_files_total"),
            count("outage") == 1
        )
    };
    let mut found: Vec<_> = points.iter().map(describe).collect();
    found.sort();
    found
}

/// Six runs without a server: four of named files, a sweep that fails them all again, and one with nothing to do.
fn outage(site: &Site) {
    for n in 0..4 {
        let file = DEVICE.file(format_args!("{n}.tsv"));
        site.put_old(&file, good_file(1 + 10 * n, 3));
        site.call_to(NO_SERVER).named(&file).run().expect(1);
    }
    site.call_to(NO_SERVER)
        .arg("--retry-errors")
        .run()
        .expect(1);
    site.call_to(NO_SERVER).ok();
    assert_eq!(kept(site).len(), 6, "a file per run");
}

#[test]
fn a_later_run_sends_the_points_of_an_outage() {
    let site = Site::new();
    outage(&site);
    let during = site.reports();
    let failed = during.iter().filter(|r| r["outage"] == true).count();
    assert_eq!((during.len(), failed), (6, 5));

    let double = server();
    let run = site.run_to(&double).arg("--retry-errors").ok();
    assert!(!run.stderr.contains("WARN"), "{}", run.stderr);
    assert_eq!(kept(&site), [] as [PathBuf; 0]);
    let reports = site.reports();
    assert_eq!(reports.len(), 7);
    assert_eq!(stored(&double.points(META)), reported(&reports));
    // The times are those of the outage.
    let points = double.points(META);
    for point in points.iter().filter(|p| p.measurement == "tsv_parser_run") {
        let report = reports
            .iter()
            .find(|r| r["run_id"] == text(point, "run_id").as_str());
        let end = report.expect("a report")["end_time"]
            .as_str()
            .expect("a time");
        let end: chrono::DateTime<Utc> = end.parse().expect("a time");
        let late = point.time.expect("a time") - end.timestamp_nanos_opt().expect("this century");
        assert!(
            (0..1_000_000_000).contains(&late),
            "{late} ns after the end"
        );
    }

    // Nothing is left to send.
    let before = meta_writes(&double).len();
    site.run_to(&double).ok();
    let own = &meta_writes(&double)[before..];
    assert_eq!(own.len(), 1, "its own points only");
}

#[test]
fn the_points_of_a_run_are_kept_if_only_the_meta_bucket_fails() {
    for (fault, is_kept) in [
        (Fault::status(503, "down"), true),
        (Fault::status(403, "no permission"), true),
        (Fault::ResetBefore, true),
        // The server will never accept them.
        (Fault::status(400, "unable to parse"), false),
        (Fault::PartialWrite, false),
    ] {
        let double = server();
        double.fault(is_meta, 0, usize::MAX, fault);
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        site.run_to(&double).ok();
        assert_eq!(kept(&site).len(), usize::from(is_kept));
        assert_eq!(site.reports().len(), 1);
        if is_kept {
            double.clear_faults();
            site.run_to(&double).ok();
            assert_eq!(stored(&double.points(META)), reported(&site.reports()));
        }
    }
}

/// Starts a run whose `nth` write of meta points waits at a gate.
fn run_to_gate(site: &Site, double: &Double, nth: usize, gate: Fault, at: &Arc<Gate>) -> Running {
    double.fault(is_meta, nth - 1, 1, gate);
    let run = site.run_to(double).arg("--retry-errors").start();
    at.wait_for(1);
    run
}

#[test]
fn a_run_that_is_killed_while_it_sends_kept_points_doubles_nothing() {
    let site = Site::new();
    outage(&site);
    let double = server();
    // The server has stored them, and the run does not know it.
    let gate = Gate::new();
    let run = run_to_gate(
        &site,
        &double,
        2,
        Fault::GateAfter(Arc::clone(&gate)),
        &gate,
    );
    run.kill();
    gate.open();
    assert_eq!(kept(&site).len(), 6);
    assert_eq!(stored(&double.points(META)), reported(&site.reports()));

    site.run_to(&double).ok();
    assert_eq!(kept(&site), [] as [PathBuf; 0]);
    assert_eq!(site.reports().len(), 8);
    assert_eq!(stored(&double.points(META)), reported(&site.reports()));
}

#[test]
fn no_report_gets_its_name_before_its_points_are_written_or_kept() {
    let site = Site::new();
    let double = server();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let gate = Gate::new();
    let run = run_to_gate(&site, &double, 1, Fault::Gate(Arc::clone(&gate)), &gate);
    run.kill();
    gate.open();
    assert_eq!(site.reports(), [] as [Value; 0]);
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

#[test]
fn a_run_that_is_stopped_keeps_its_points() {
    let site = Site::new();
    let double = server();
    let gate = Gate::new();
    let run = run_to_gate(&site, &double, 1, Fault::Gate(Arc::clone(&gate)), &gate);
    run.signal(rustix::process::Signal::TERM);
    run.wait().clean();
    gate.open();
    assert_eq!((kept(&site).len(), site.reports().len()), (1, 1));
    let double = server();
    site.run_to(&double).ok();
    assert_eq!(stored(&double.points(META)), reported(&site.reports()));
}

/// Keeps the points of this many more runs, a minute apart.
fn copies(site: &Site, count: i64) {
    let file = kept(site).pop().expect("a kept file");
    let block = std::fs::read_to_string(&file).expect("line protocol");
    for n in 1..=count {
        let mut copy = String::new();
        for line in block.lines() {
            let (point, time) = line.rsplit_once(' ').expect("a time");
            let time = time.parse::<i64>().expect("nanoseconds") - n * 60_000_000_000;
            copy += &format!("{point} {time}\n");
        }
        std::fs::write(unsent(site).join(format!("2000-{n:05}-0001.lp")), copy).expect("written");
    }
}

#[test]
fn an_outage_of_days_is_sent_in_large_batches_with_little_memory() {
    let site = Site::new();
    let file = DEVICE.file("a.tsv");
    site.put_old(&file, good_file(1, 3));
    site.call_to(NO_SERVER).named(&file).run().expect(1);
    copies(&site, 3_000);
    let size = |files: &[PathBuf]| -> u64 {
        files
            .iter()
            .map(|f| f.metadata().expect("a file").len())
            .sum()
    };
    let files = kept(&site);
    let total = size(&files);
    assert!(total > 4 << 20, "{total} bytes are more than four batches");

    // A call of the hook sends one batch, the oldest.
    let double = server();
    let other = DEVICE.file("b.tsv");
    site.put_old(&other, good_file(1, 3));
    site.run_to(&double).named(&other).ok();
    let meta = meta_writes(&double);
    assert_eq!(meta.len(), 2, "its own points and a batch");
    assert!((1 << 19..=1 << 20).contains(&meta[1].body.len()));
    let left = kept(&site);
    assert_eq!(
        left,
        files[files.len() - left.len()..],
        "the oldest were sent"
    );
    assert_eq!(total - size(&left), meta[1].body.len() as u64);

    // A sweep sends all.
    let mut run = site
        .run_to(&double)
        .env("TSV_RETRY_FOR", "60")
        .env("TSV_REQUEST_TIMEOUT_S", "60")
        .start();
    let peak = run.peak_kib();
    run.wait().expect(0);
    assert!(peak < 32 * 1024, "{peak} KiB");
    assert_eq!(kept(&site), [] as [PathBuf; 0]);
    let writes = meta_writes(&double);
    let meta = &writes[2..];
    assert!(meta.iter().all(|r| r.body.len() <= 1 << 20));
    // Its own points, and batches that are more than half full.
    let most = 2 + (total >> 19) as usize;
    assert!((4..=most).contains(&meta.len()), "{} requests", meta.len());
    let runs = double.points(META);
    let runs = runs.iter().filter(|p| p.measurement == "tsv_parser_run");
    assert_eq!(runs.count(), 3_001 + 2);
}

#[test]
fn kept_points_have_a_limit() {
    let fail = |site: &Site| {
        let file = DEVICE.file("a.tsv");
        site.put_old(&file, good_file(1, 3));
        let run = site.call_to(NO_SERVER).named(&file).run().expect(1);
        let lost = run.stderr.contains("cannot keep points about this run");
        (lost, run.stderr)
    };
    // 64 MiB: only the point about the run is kept.
    let site = Site::new();
    std::fs::create_dir_all(unsent(&site)).expect("a folder");
    let large = std::fs::File::create(unsent(&site).join("2000-00001-0001.lp")).expect("a file");
    large.set_len((64 << 20) - 100).expect("a size");
    let (lost, log) = fail(&site);
    assert!(lost, "{log}");
    let files = kept(&site);
    let [_, own] = &files[..] else {
        panic!("{files:?}")
    };
    let lines = line_protocol::all(&std::fs::read_to_string(own).expect("line protocol"));
    let measurements: Vec<_> = lines.iter().map(|l| l.measurement.as_str()).collect();
    assert_eq!(measurements, ["tsv_parser_run"]);

    // 10,000 files: nothing is kept.
    let site = Site::new();
    std::fs::create_dir_all(unsent(&site)).expect("a folder");
    for n in 1..10_000 {
        std::fs::write(unsent(&site).join(format!("2000-{n:05}-0001.lp")), "").expect("written");
    }
    let (lost, log) = fail(&site);
    assert!(!lost, "{log}");
    assert_eq!(kept(&site).len(), 10_000);
    let (lost, log) = fail(&site);
    assert!(lost, "{log}");
    assert_eq!(kept(&site).len(), 10_000);
}

#[test]
fn the_points_of_a_long_run_are_kept_in_several_files() {
    let site = Site::new();
    // A failed file has a point, and its name is in it twice.
    let name = "x".repeat(200);
    for n in 0..1_000 {
        site.put_old(DEVICE.file(format_args!("{name}{n:04}.tsv")), bad_file());
    }
    site.call_to(NO_SERVER).run().expect(1);
    let files = kept(&site);
    assert!(files.len() > 1, "{files:?}");
    let double = server();
    site.run_to(&double).ok();
    assert_eq!(stored(&double.points(META)), reported(&site.reports()));
}

#[test]
fn a_run_without_a_folder_for_points_keeps_nothing_and_goes_on() {
    let site = Site::new();
    std::fs::write(unsent(&site), "not a folder").expect("written");
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let run = site.call_to(NO_SERVER).run().expect(1);
    assert!(
        run.stderr.contains("cannot keep points about this run"),
        "{}",
        run.stderr
    );
    let double = server();
    site.run_to(&double).arg("--retry-errors").ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

#[test]
fn a_dry_run_and_a_run_to_files_leave_kept_points_alone() {
    let site = Site::new();
    site.call_to(NO_SERVER).ok();
    let before = kept(&site);
    assert_eq!(before.len(), 1);
    site.lp_run().ok();
    site.call_to(NO_SERVER).arg("--dry-run").ok();
    assert_eq!(kept(&site), before);
}

#[test]
fn the_reception_dashboard_shows_an_outage_afterwards() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    outage(&site);
    let call = || {
        site.call_to(&server.url())
            .env("INFLUXDB_ADMIN_TOKEN", server.token())
            .env("INFLUXDB_ORG", server.org())
    };
    call().arg("--retry-errors").ok();
    let dashboard = grafana::dashboard("reception");
    let to = Utc::now() + Duration::seconds(1);
    let stamp = |t: chrono::DateTime<Utc>| t.to_rfc3339();
    let range = (stamp(to - Duration::days(7)), stamp(to));
    let view = View::of(&dashboard, META, "", (&range.0, &range.1), 600);
    let outages = panel(&dashboard, "stat", "Pannes de la base");
    assert_eq!(view.value(&server, outages).as_deref(), Some("5"));
    let failed = panel(&dashboard, "stat", "Fichiers en erreur");
    let none = Some("0");
    assert_eq!(
        view.value(&server, failed).as_deref(),
        none,
        "all are ingested"
    );

    let count = || {
        let flux = format!(
            "from(bucket: \"{META}\") |> range(start: -1h) |> filter(fn: (r) => r._field == \"run_id\") |> group() |> count()"
        );
        server.rows(&flux).pop().expect("a count")["_value"].clone()
    };
    // Seven runs: a file in each of four, four files in two, and one without files.
    assert_eq!(count(), (7 + 4 + 4 + 4).to_string());
    let ids: BTreeSet<_> = site
        .reports()
        .iter()
        .map(|r| r["run_id"].to_string())
        .collect();
    assert_eq!(ids.len(), 7);
}
