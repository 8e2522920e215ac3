//! Folders, moves, reports and the meta bucket of runs without failures of the server.

use crate::harness::{
    DEVICE, FileBuilder, Site, Tmpfs, bad_file, file_of, file_of_one_row, good_file, headed,
    points_in, stored,
};
use crate::influx_double::{Double, Fault, Gate, META, Request, is_data_write};
use crate::line_protocol::{self, Line, Value as Field};
use crate::second_reader;
use crate::zone_files::ZoneFile;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt::Formatter;

/// The keys of section 7 of the specification.
const RUN_KEYS: [&str; 15] = [
    "run_id",
    "start_time",
    "end_time",
    "duration_s",
    "base_folder",
    "nb_files_total",
    "nb_files_success",
    "nb_files_failed",
    "nb_files_skipped",
    "nb_points_total",
    "nb_retries",
    "outage",
    "status",
    "dry_run",
    "files",
];

const FILE_KEYS: [&str; 35] = [
    "file_path",
    "moved_to",
    "bucket",
    "campaign",
    "device_master_sn",
    "file_format",
    "file_container",
    "status",
    "error",
    "retryable",
    "truncated",
    "nb_rows",
    "nb_channels",
    "nb_points",
    "nb_points_expired",
    "nb_invalid_timestamps",
    "nb_invalid_values",
    "nb_malformed_rows",
    "nb_short_rows",
    "nb_lines_after_end",
    "nb_tables",
    "nb_cells",
    "loss_ratio",
    "nb_suspicious_times",
    "time_zone",
    "time_zone_source",
    "layout_changed",
    "layout_suspect",
    "problems",
    "time_start",
    "time_end",
    "delay_s",
    "arrival_delay_s",
    "file_header_meta",
    "channels",
];

/// The keys of a JSON object. A key that is written twice is listed twice.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeysVisitor;

        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys;

            fn expecting(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }

        deserializer.deserialize_map(KeysVisitor)
    }
}

/// Checks that an object has each of these keys once, and no other.
#[track_caller]
fn assert_has_exactly(object: &str, keys: &[&str]) {
    let Keys(mut found) = serde_json::from_str(object).expect("an object");
    let mut wanted = keys.to_vec();
    found.sort();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

#[test]
fn reports_have_each_key_once() {
    #[derive(Deserialize)]
    struct Report<'a> {
        #[serde(borrow)]
        files: Vec<&'a RawValue>,
    }
    let site = Site::new();
    site.put_old(DEVICE.file("good.tsv"), good_file(1, 3));
    site.put_old(DEVICE.file("bad.tsv"), bad_file());
    site.put(DEVICE.file("cut.tsv"), good_file(1, 3).trim_end());
    let double = Double::start();
    site.run_to(&double).run().expect(1);
    let path = std::fs::read_dir(site.reports_dir())
        .expect("reports")
        .next()
        .expect("a report")
        .expect("entry")
        .path();
    let text = std::fs::read_to_string(path).expect("read");
    assert_has_exactly(&text, &RUN_KEYS);
    let report: Report<'_> = serde_json::from_str(&text).expect("a report");
    assert_eq!(report.files.len(), 3);
    for file in report.files {
        assert_has_exactly(file.get(), &FILE_KEYS);
    }
    let points = double.points(META);
    let points = only(&points, "tsv_parser_file");
    assert_eq!(points.len(), 3);
    for point in points {
        let Field::Text(report) = &point.fields["report"] else {
            panic!("{point:?}")
        };
        assert_has_exactly(report, &FILE_KEYS);
    }
}

#[test]
fn a_file_is_written_moved_and_reported() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    let run = site.lp_run().ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    assert_eq!(
        site.read(DEVICE.parsed("a.tsv")),
        good_file(1, 3).as_bytes()
    );
    assert_eq!(site.lp_points("acme").len(), 6);

    let report = site.report();
    assert_eq!(report["nb_files_total"], 1);
    assert_eq!(report["nb_files_success"], 1);
    assert_eq!(report["nb_files_failed"], 0);
    assert_eq!(report["nb_files_skipped"], 0);
    assert_eq!(report["nb_points_total"], 6);
    assert_eq!(report["status"], "success");
    assert_eq!(report["dry_run"], false);
    let file = file_of(&report, "a.tsv");
    assert_eq!(file["status"], "success");
    assert_eq!(file["bucket"], "acme");
    assert_eq!(file["campaign"], "site");
    assert_eq!(file["device_master_sn"], "02001171");
    assert_eq!(file["error"], Value::Null);
    assert!(
        file["moved_to"]
            .as_str()
            .is_some_and(|p| p.ends_with(&DEVICE.parsed("a.tsv"))),
        "{file:#}"
    );
    let channel = &file["channels"]["S04000466_Ch1_M02001171"];
    assert_eq!(channel["channel_name"], "Voie1");
    assert_eq!(channel["unit"], "W");
    assert_eq!(channel["nb_points"], 3);
    assert_eq!(channel["min"], -3.25);
    assert_eq!(channel["max"], -1.25);
    assert_eq!(channel["mean"], -2.25);
    // The summary names the path of the report.
    let reports = site.reports_dir().to_string_lossy().into_owned();
    assert!(
        run.stderr.contains(&reports),
        "where the report is: {}",
        run.stderr
    );
    assert_eq!(run.stdout, "");
}

#[test]
fn the_report_is_named_by_its_run_and_holds_iso_times() {
    let site = Site::new();
    site.lp_run().ok();
    let report = site.report();
    let id = report["run_id"].as_str().expect("an id");
    let name = format!("tsv_parser_{}.json", id.replace(':', "-"));
    let names: Vec<String> = std::fs::read_dir(site.reports_dir())
        .expect("reports")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, [name]);
    for key in ["start_time", "end_time"] {
        let time = chrono::DateTime::parse_from_rfc3339(report[key].as_str().expect("a time"))
            .expect("ISO 8601");
        assert_eq!(time.offset().local_minus_utc(), 0, "{key} is UTC");
    }
    assert!(
        report["duration_s"]
            .as_f64()
            .is_some_and(|d| (0.0..30.0).contains(&d))
    );
}

#[test]
fn incident_two_runs_in_the_same_second_overwrote_each_others_report() {
    let site = Site::new();
    let runs: Vec<_> = (0..6).map(|_| site.lp_run().start()).collect();
    for run in runs {
        run.wait().expect(0);
    }
    assert_eq!(site.reports().len(), 6);
    let meta = line_protocol::all(&site.lp_text(META));
    let times: std::collections::BTreeSet<_> =
        meta.iter().map(|l| (l.tags.clone(), l.time)).collect();
    assert_eq!((meta.len(), times.len()), (6, 6));
}

#[test]
fn reports_are_beside_the_data_folder_by_default() {
    let site = Site::new();
    site.lp_run().no_env("TSV_REPORT_DIR").ok();
    let reports = std::fs::read_dir(site.dir.path().join("logs/reports"))
        .expect("made")
        .count();
    assert_eq!(reports, 1);
}

#[test]
fn a_sweep_ingests_raw_files_only() {
    let site = Site::new();
    let good = good_file(1, 1);
    site.put_old(DEVICE.file("b.tsv"), &good);
    site.put_old(DEVICE.file("a.tsv"), &good);
    site.put_old(DEVICE.parsed("old.tsv"), &good);
    site.put_old(DEVICE.error("bad.tsv"), &good);
    site.put_old(DEVICE.file(".hidden.tsv"), &good);
    site.put_old(
        DEVICE.file(".sftpgo-upload.abcdefghijklmnopqrst.x.tsv"),
        &good,
    );
    site.put_old(DEVICE.file("notes.txt"), "hello");
    site.put_old(DEVICE.file("x.tsv.part"), &good);
    site.put_old("acme/another site/02001171/a.tsv", &good);
    site.put_old("Besançon énergie/été/02001171/a.tsv", &good);
    site.lp_run().args(["--jobs", "1"]).ok();
    let report = site.report();
    let files = report["files"].as_array().expect("a list");
    let paths: Vec<&str> = files
        .iter()
        .map(|f| f["file_path"].as_str().expect("a path"))
        .collect();
    let expected = [
        "Besançon énergie/été/02001171/a.tsv",
        "acme/another site/02001171/a.tsv",
        "acme/site/02001171/a.tsv",
        "acme/site/02001171/b.tsv",
    ];
    assert_eq!(paths.len(), expected.len(), "{paths:?}");
    for (path, end) in paths.iter().zip(expected) {
        assert!(path.ends_with(end), "sorted by path: {paths:?}");
    }
    assert_eq!(
        site.tree(),
        [
            "Besançon énergie/été/02001171/parsed/a.tsv",
            "acme/another site/02001171/parsed/a.tsv",
            "acme/site/02001171/.hidden.tsv",
            "acme/site/02001171/.sftpgo-upload.abcdefghijklmnopqrst.x.tsv",
            "acme/site/02001171/error/bad.tsv",
            "acme/site/02001171/notes.txt",
            "acme/site/02001171/parsed/a.tsv",
            "acme/site/02001171/parsed/b.tsv",
            "acme/site/02001171/parsed/old.tsv",
            "acme/site/02001171/x.tsv.part",
        ]
    );
    assert_eq!(site.lp_points("Besançon énergie").len(), 2);
}

#[test]
fn a_file_too_high_in_the_tree_is_reported_and_left() {
    for place in ["x.tsv", "acme/x.tsv", "acme/site/x.tsv"] {
        let site = Site::new();
        site.put_old(place, good_file(1, 1));
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        site.lp_run().run().expect(1);
        let report = site.report();
        assert_eq!(file_of(&report, "x.tsv")["status"], "error", "{place}");
        assert_eq!(file_of(&report, "a.tsv")["status"], "success", "{place}");
        assert!(site.exists(place), "{place}");
        assert!(site.exists(DEVICE.parsed("a.tsv")));
    }
}

#[test]
fn incident_a_rename_overwrote_a_file_of_the_same_name() {
    let site = Site::new();
    for n in 0..4 {
        site.put_old(DEVICE.file("a.b.tsv"), good_file(n, 1));
        site.lp_run().ok();
    }
    let parsed = |name: &str| site.read(DEVICE.parsed(name));
    assert_eq!(parsed("a.b.tsv"), good_file(0, 1).as_bytes());
    assert_eq!(parsed("a.b.1.tsv"), good_file(1, 1).as_bytes());
    assert_eq!(parsed("a.b.2.tsv"), good_file(2, 1).as_bytes());
    assert_eq!(parsed("a.b.3.tsv"), good_file(3, 1).as_bytes());
}

#[test]
fn failed_files_of_one_name_keep_their_own_sidecars() {
    let site = Site::new();
    for n in 0..3 {
        site.put_old(
            DEVICE.file("a.tsv"),
            FileBuilder::default()
                .line(format_args!("rubbish {n}"))
                .build(),
        );
        site.lp_run().run().expect(1);
    }
    let error = |name: &str| DEVICE.error(name);
    assert_eq!(
        site.tree(),
        [
            "a.1.tsv",
            "a.1.tsv.error.json",
            "a.2.tsv",
            "a.2.tsv.error.json",
            "a.tsv",
            "a.tsv.error.json"
        ]
        .map(error)
    );
    for n in ["a.tsv", "a.1.tsv", "a.2.tsv"] {
        let sidecar = site.sidecar(&error(n));
        assert_eq!(sidecar["retryable"], false, "{sidecar:#}");
        assert!(
            sidecar.to_string().len() > 40,
            "what went wrong, when: {sidecar:#}"
        );
    }
}

#[test]
fn only_named_files_are_ingested() {
    let site = Site::new();
    for name in ["a.tsv", "b.tsv", "c.tsv"] {
        site.put_old(DEVICE.file(name), good_file(1, 1));
    }
    site.lp_run().named(DEVICE.file("b.tsv")).ok();
    assert_eq!(
        site.tree(),
        ["a.tsv", "c.tsv", "parsed/b.tsv"].map(|n| DEVICE.file(n))
    );
    site.lp_run()
        .named(DEVICE.file("a.tsv"))
        .named(DEVICE.file("c.tsv"))
        .ok();
    assert_eq!(
        site.tree(),
        ["parsed/a.tsv", "parsed/b.tsv", "parsed/c.tsv"].map(|n| DEVICE.file(n))
    );
}

#[test]
fn a_named_file_in_parsed_is_ingested_again_and_stays() {
    let site = Site::new();
    site.put_old(DEVICE.parsed("a.tsv"), good_file(1, 2));
    site.lp_run().named(DEVICE.parsed("a.tsv")).ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    assert_eq!(site.lp_points("acme").len(), 4);
    let report = site.report();
    let file = file_of(&report, "a.tsv");
    assert_eq!(
        (&file["campaign"], &file["bucket"]),
        (&"site".into(), &"acme".into())
    );
    assert_eq!(site.lp_points("acme")[0].measurement, "site");
}

#[test]
fn a_named_file_in_error_that_succeeds_is_moved_and_its_sidecar_removed() {
    let site = Site::new();
    let file = DEVICE.error("a.tsv");
    site.put_old(DEVICE.file("a.tsv"), bad_file());
    site.lp_run().run().expect(1);
    assert!(site.exists(format!("{file}.error.json")));
    site.put_old(&file, good_file(1, 1)); // corrected by the operator
    site.lp_run().named(&file).ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

#[test]
fn a_named_file_in_error_that_fails_again_stays_with_one_sidecar() {
    let site = Site::new();
    let file = DEVICE.error("a.tsv");
    site.put_old(&file, bad_file());
    site.lp_run().named(&file).run().expect(1);
    assert_eq!(site.tree(), [file.clone(), format!("{file}.error.json")]);
}

#[test]
fn a_dry_run_does_not_remove_a_sidecar_without_a_file() {
    let site = Site::new();
    site.put_old(DEVICE.parsed("a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.sidecar("a.tsv"), "{}");
    let before = site.tree();
    site.call()
        .arg("--dry-run")
        .named(DEVICE.error("a.tsv"))
        .ok();
    assert_eq!(site.tree(), before);
}

#[test]
fn folders_named_like_sidecars_do_not_stop_a_file() {
    let site = Site::new();
    for name in [
        "a.tsv.error.json",
        "b.tsv.error.json",
        ".powerview-sidecar.tmp",
    ] {
        site.make_dir(DEVICE.error(format_args!("{name}/x")));
    }
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("b.tsv"), "rubbish");
    site.lp_run().run().expect(1);
    let report = site.report();
    assert_eq!(file_of(&report, "a.tsv")["status"], "success", "{report:#}");
    assert_eq!(
        site.tree(),
        ["error/b.1.tsv", "error/b.1.tsv.error.json", "parsed/a.tsv"].map(|n| DEVICE.file(n))
    );
}

#[test]
fn a_named_file_in_parsed_that_fails_goes_to_error() {
    let site = Site::new();
    site.put_old(DEVICE.parsed("a.tsv"), bad_file());
    site.lp_run().named(DEVICE.parsed("a.tsv")).run().expect(1);
    assert_eq!(
        site.tree(),
        ["a.tsv", "a.tsv.error.json"].map(|n| DEVICE.error(n))
    );
}

#[test]
fn a_named_file_that_was_already_processed_is_no_error() {
    let site = Site::new();
    site.put_old(DEVICE.parsed("a.tsv"), good_file(1, 1));
    site.lp_run().named(DEVICE.file("a.tsv")).ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

#[test]
fn a_named_file_outside_the_data_folder_is_refused() {
    let site = Site::new();
    let outside = site.dir.path().join("outside/acme/site/02001171");
    std::fs::create_dir_all(&outside).expect("made");
    std::fs::write(outside.join("a.tsv"), good_file(1, 1)).expect("written");
    site.link("../outside", "link");
    for path in [
        outside.join("a.tsv"),
        site.path("../outside/acme/site/02001171/a.tsv"),
        site.path("link/acme/site/02001171/a.tsv"),
    ] {
        site.lp_run().arg("--tsvFile").arg(&path).run().expect(1);
        assert!(outside.join("a.tsv").exists(), "{}", path.display());
        assert_eq!(site.lp_points("acme"), [], "{}", path.display());
    }
}

#[test]
fn names_that_cannot_be_a_bucket_or_a_tag_are_refused_before_anything_is_written() {
    for folder in [
        "_acme/site/02001171",
        "powerview_meta/site/02001171",
        "ac\"me/site/02001171",
        "ac\nme/site/02001171",
        "ac\u{7f}me/site/02001171",
        "ac\u{9b}me/site/02001171",
        "acme/_site/02001171",
        "acme/si\nte/02001171",
        "acme/si\tte/02001171",
        "acme/si\u{1b}[31mte/02001171",
    ] {
        let site = Site::new();
        site.put_old(format!("{folder}/a.tsv"), good_file(1, 1));
        site.put_old("other/site/02001171/a.tsv", good_file(1, 1));
        let double = Double::start();
        site.run_to(&double).run().expect(1);
        let report = site.report();
        assert_eq!(report["nb_files_failed"], 1, "{folder}");
        assert_eq!(report["nb_files_success"], 1, "{folder}");
        let mut buckets = double.bucket_names();
        buckets.sort();
        assert_eq!(
            buckets,
            ["_monitoring", "_tasks", "other", META],
            "{folder}"
        );
        assert_eq!(points_in(&double, "other").len(), 2, "{folder}");
        let tree = site.tree();
        assert_eq!(
            tree.iter().filter(|p| p.ends_with("a.tsv")).count(),
            2,
            "{tree:?}"
        );
    }
}

#[test]
fn a_campaign_that_looks_like_a_comment_is_refused() {
    // InfluxDB ignores lines that start with '#'.
    let site = Site::new();
    site.put_old("acme/#1 site/02001171/a.tsv", good_file(1, 1));
    let double = Double::start();
    site.run_to(&double).run().expect(1);
    assert_eq!(double.data_writes().len(), 0);
    assert_eq!(file_of(&site.report(), "a.tsv")["status"], "error");
}

#[test]
fn a_campaign_that_ends_in_a_backslash_does_not_escape_a_separator() {
    let site = Site::new();
    site.put_old("acme/site\\/02001171/a.tsv", good_file(1, 1));
    site.put_old("acme/si\\te/02001171/a.tsv", good_file(1, 1));
    let double = Double::start();
    site.run_to(&double).ok();
    let points = points_in(&double, "acme");
    assert_eq!(
        points
            .iter()
            .filter(|p| p.measurement == "si\\te" && p.tags["campaign"] == "si\\te")
            .count(),
        2
    );
    assert_eq!(points.len(), 4);
    assert!(
        points
            .iter()
            .all(|p| p.tags["channel_type"] == "master" || p.tags["channel_type"] == "slave")
    );
}

#[test]
fn a_company_named_like_another_buckets_id_gets_its_own_bucket() {
    let double = Double::start();
    let victim = double.add_bucket("victim");
    let site = Site::new();
    site.put_old(format!("{victim}/site/02001171/a.tsv"), good_file(1, 1));
    site.run_to(&double).ok();
    assert_eq!(points_in(&double, "victim"), []);
    assert_eq!(points_in(&double, &victim).len(), 2);
}

#[test]
fn old_script_failed_25_buckets() {
    // The script listed the first twenty buckets only and created those that it did not find.
    let double = Double::start();
    for i in 0..25 {
        double.add_bucket(&format!("company{i:02}"));
    }
    let site = Site::new();
    site.put_old("company24/site/02001171/a.tsv", good_file(1, 1));
    site.run_to(&double).ok();
    assert_eq!(points_in(&double, "company24").len(), 2);
    let requests = double.requests();
    let created: Vec<String> = requests
        .iter()
        .filter(|r| r.path == "/api/v2/buckets" && r.method == "POST")
        .map(super::influx_double::Request::text)
        .collect();
    assert!(
        created.iter().all(|c| !c.contains("company24")),
        "{created:?}"
    );
    let unnamed = requests
        .iter()
        .filter(|r| r.path == "/api/v2/buckets" && r.method == "GET");
    assert_eq!(
        unnamed.filter(|r| r.param("name").is_none()).count(),
        0,
        "the list is never paged"
    );
}

#[test]
fn a_bucket_is_looked_up_once_per_run() {
    let double = Double::start();
    let site = Site::new();
    for n in 0..5 {
        site.put_old(format!("acme/site/0200117{n}/a.tsv"), good_file(1, 1));
        site.put_old(format!("acme/site/0200117{n}/b.tsv"), good_file(9, 1));
    }
    site.run_to(&double).ok();
    let requests = double.requests();
    let asked = |name: &str| {
        requests
            .iter()
            .filter(|r| {
                r.path == "/api/v2/buckets" && r.method == "GET" && r.param("name") == Some(name)
            })
            .count()
    };
    assert_eq!(asked("acme"), 1);
    let created = requests
        .iter()
        .filter(|r| r.path == "/api/v2/buckets" && r.method == "POST");
    assert_eq!(created.filter(|r| r.text().contains("\"acme\"")).count(), 1);
}

#[test]
fn a_named_file_makes_no_needless_request() {
    let site = Site::new();
    let double = Double::start();
    // For the first file, neither its bucket, nor one that is being rebuilt, nor the meta bucket exists.
    for (name, expected) in [
        (
            "a.tsv",
            [
                "GET /api/v2/buckets",
                "GET /api/v2/buckets",
                "GET /api/v2/orgs",
                "POST /api/v2/buckets",
                "POST /api/v2/write",
            ]
            .as_slice(),
        ),
        ("b.tsv", &["GET /api/v2/buckets", "POST /api/v2/write"]),
    ] {
        let before = double.requests().len();
        site.put(DEVICE.file(name), good_file(1, 3));
        site.run_to(&double).named(DEVICE.file(name)).ok();
        let requests = double.requests().split_off(before);
        let to_meta = |r: &&Request| r.is_write() && r.bucket == META;
        let first_meta = requests
            .iter()
            .position(|r| to_meta(&r))
            .expect("meta points");
        let made: Vec<_> = requests[..first_meta]
            .iter()
            .map(|r| format!("{} {}", r.method, r.path))
            .collect();
        assert_eq!(made, expected, "{name}");
    }
    let last = double.requests().pop().expect("requests");
    assert!(last.is_write() && last.bucket == META);
    assert_eq!(
        last.nb_lines(),
        2,
        "the file's point and the run's together"
    );
}

#[test]
fn bodies_are_compressed_by_default_and_have_times_in_seconds() {
    for (gzip, expected) in [(None, Some("gzip")), (Some("0"), None)] {
        let double = Double::start();
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 50));
        let mut call = site.run_to(&double);
        if let Some(gzip) = gzip {
            call = call.env("TSV_GZIP", gzip);
        }
        call.ok();
        let writes = double.data_writes();
        assert_eq!(writes.len(), 1);
        assert_eq!(
            writes[0]
                .headers
                .get("content-encoding")
                .map(String::as_str),
            expected
        );
        assert_eq!(writes[0].param("precision"), Some("s"));
        assert_eq!(writes[0].nb_lines(), 100);
        assert_eq!(points_in(&double, "acme").len(), 100);
    }
}

#[test]
fn batch_size_changes_nothing() {
    let file = good_file(1, 101);
    let whole =
        second_reader::read(file.as_bytes(), "site", chrono_tz::Europe::Paris).expect("good");
    for lines in ["1", "2", "7", "100", "202", "203", "100000"] {
        let site = Site::new();
        let double = Double::start();
        site.put_old(DEVICE.file("a.tsv"), &file);
        site.run_to(&double).env("TSV_BATCH_LINES", lines).ok();
        assert_eq!(
            points_in(&double, "acme"),
            stored(&whole.points),
            "batches of {lines}"
        );
        let most = double
            .data_writes()
            .iter()
            .map(super::influx_double::Request::nb_lines)
            .max()
            .expect("some");
        // A row of two values is not split.
        assert!(
            most <= lines.parse::<usize>().expect("a number") + 1,
            "{most} lines in batches of {lines}"
        );
    }
}

#[test]
fn the_last_row_of_a_second_wins_across_batches() {
    // Batches of two lines with the same times must arrive in order.
    let rows = (0..200).map(|i| format!("03/08/25 03:20:{:02}\t{i}\t{}", i % 5, i * 2));
    let text = FileBuilder::default().lines(rows).build();
    let whole =
        second_reader::read(text.as_bytes(), "site", chrono_tz::Europe::Paris).expect("good");
    let site = Site::new();
    let double = Double::start();
    site.put_old(DEVICE.file("a.tsv"), &text);
    site.run_to(&double).env("TSV_BATCH_LINES", "2").ok();
    assert_eq!(points_in(&double, "acme"), stored(&whole.points));
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn a_batch_that_is_sent_again_does_not_overtake_a_later_one() {
    // Each batch has the same seconds as the one before it.
    let rows = (0..30).map(|i| format!("03/08/25 03:20:{:02}\t{i}\t{}", i % 2, i * 2));
    let text = FileBuilder::default().lines(rows).build();
    let whole =
        second_reader::read(text.as_bytes(), "site", chrono_tz::Europe::Paris).expect("good");
    for fault in [
        Fault::status(503, "down"),
        Fault::ResetBefore,
        Fault::ResetAfterApply,
        Fault::CutAnswer,
        Fault::SilenceAfterApply,
    ] {
        for n in [1, 2, 7] {
            let site = Site::new();
            let double = Double::start();
            double.fault_nth_write(n, fault.clone());
            site.put_old(DEVICE.file("a.tsv"), &text);
            site.run_to(&double)
                .env("TSV_BATCH_LINES", "4")
                .env("TSV_RETRY_FOR", "20")
                .env("TSV_REQUEST_TIMEOUT_S", "0.3")
                .ok();
            assert_eq!(points_in(&double, "acme"), stored(&whole.points));
        }
    }
}

#[test]
fn a_retried_file_does_not_override_a_later_upload() {
    // One file failed in an outage, and the other with the same times arrived since. The later upload wins.
    for (failed, raw) in [("f0.tsv", "f1.tsv"), ("f1.tsv", "f0.tsv")] {
        let site = Site::new();
        let double = Double::start();
        double.fault_writes(usize::MAX, Fault::status(503, "down"));
        let content = |name: &str| {
            if name == "f0.tsv" {
                good_file(100, 3)
            } else {
                good_file(200, 3)
            }
        };
        site.put_old(DEVICE.file(failed), content(failed));
        site.run_to(&double)
            .args(["--retry-for", "0"])
            .run()
            .expect(1);
        double.clear_faults();
        site.put_old(DEVICE.file(raw), content(raw));
        site.run_to(&double).arg("--retry-errors").ok();
        let last = second_reader::read(content(raw).as_bytes(), "site", chrono_tz::Europe::Paris);
        assert_eq!(
            points_in(&double, "acme"),
            stored(&last.expect("good").points),
            "{failed} failed"
        );
    }
}

#[test]
fn a_sidecar_without_a_file_does_not_apply_to_a_new_file() {
    let site = Site::new();
    let file = DEVICE.error("a.tsv");
    site.put_old(
        format!("{file}.error.json"),
        r#"{"error":"old","retryable":true}"#,
    );
    site.put_old(DEVICE.file("a.tsv"), bad_file());
    site.lp_run().run().expect(1);
    let failed: Vec<String> = site
        .tree()
        .into_iter()
        .filter(|p| p.ends_with(".tsv"))
        .collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(site.sidecar(&failed[0])["retryable"], false, "{failed:?}");
    site.lp_run().arg("--retry-errors").ok();
    assert!(site.exists(&failed[0]), "not retryable");
}

#[test]
fn a_file_that_is_named_twice_is_ingested_once() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.lp_run()
        .named(DEVICE.file("a.tsv"))
        .named(DEVICE.file("../02001171/a.tsv"))
        .ok();
    assert_eq!(site.lp_points("acme").len(), 2);
    assert_eq!(site.report()["nb_files_success"], 1);
}

#[test]
fn a_file_below_the_device_folder_is_ingested() {
    let site = Site::new();
    site.put_old(DEVICE.file("deeper/x.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("a.tsv"), good_file(2, 1));
    site.lp_run().ok();
    assert_eq!(
        site.tree(),
        [DEVICE.parsed("a.tsv"), DEVICE.parsed("x.tsv")]
    );
    assert_eq!(
        site.read(DEVICE.parsed("x.tsv")),
        good_file(1, 1).as_bytes()
    );
}

#[test]
fn the_data_folder_may_be_a_link() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("b.tsv"), good_file(1, 1));
    let link = site.dir.path().join("link");
    std::os::unix::fs::symlink(site.data(), &link).expect("linked");
    let call = || {
        site.bare()
            .arg("-d")
            .arg(&link)
            .arg("--line-protocol-dir")
            .arg(site.lp_dir())
    };
    call().arg("-t").arg(link.join(DEVICE.file("a.tsv"))).ok();
    assert!(site.exists(DEVICE.parsed("a.tsv")) && site.exists(DEVICE.file("b.tsv")));
    call().ok();
    assert!(site.exists(DEVICE.parsed("b.tsv")));
}

#[test]
#[ignore = "slow: writes 600,000 points twice"]
fn memory_does_not_grow_with_the_file() {
    // 600,000 points.
    let channels = (0..30).map(|i| format!("Voie{i} W"));
    let rows = (0..20_000).map(|i| {
        let mut row = format!(
            "{:02}/{:02}/25 {:02}:{:02}:00",
            1 + i / 1440 % 28,
            1 + i / 40_320,
            i / 60 % 24,
            i % 60
        );
        for c in 0..30 {
            row += &format!("\t{}.{c}", i % 977);
        }
        row
    });
    let text = FileBuilder::with_channels(channels).lines(rows).build();
    let double = Double::start();
    double.fault_writes(usize::MAX, Fault::Status(204, String::new()));
    // The code of a debug build takes 12 MiB more: 24 MiB were measured where
    // a release build has 12.
    let limit = if cfg!(debug_assertions) { 32 } else { 20 };
    for to_lp in [true, false] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), &text);
        let call = if to_lp {
            site.lp_run()
        } else {
            site.run_to(&double)
        };
        let mut run = call.start();
        let peak = run.peak_kib();
        run.wait().expect(0);
        assert_eq!(site.report()["nb_points_total"], 600_000);
        assert!(peak < limit * 1024, "{peak} KiB");
    }
}

#[test]
fn devices_are_ingested_in_parallel() {
    let site = Site::new();
    let double = Double::start();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old("acme/site/02001172/a.tsv", good_file(50, 1));
    let gate = Gate::new();
    double.fault(is_data_write, 0, 2, Fault::Gate(gate.clone()));
    let run = site.run_to(&double).args(["--jobs", "2"]).start();
    gate.wait_for(2);
    gate.open();
    run.wait().expect(0);
}

#[test]
fn files_of_one_device_are_in_flight_together_if_their_times_do_not_overlap() {
    let of_day = |day: u32| good_file(day, 3).replace("01/08/25", &format!("{day:02}/08/25"));
    let site = Site::new();
    let double = Double::start();
    for day in 1..=3 {
        site.put_old(DEVICE.file(format_args!("{day}.tsv")), of_day(day));
    }
    let gate = Gate::new();
    double.fault(is_data_write, 0, usize::MAX, Fault::Gate(gate.clone()));
    let run = site.run_to(&double).args(["--jobs", "1"]).start();
    gate.wait_for(3);
    assert!(
        site.tree().iter().all(|path| !path.contains("/parsed/")),
        "no file is moved before its points are stored: {:?}",
        site.tree()
    );
    gate.open();
    run.wait().expect(0);
    assert_eq!(site.tree().len(), 3);
    let all: Vec<_> = (1..=3)
        .flat_map(|day| {
            second_reader::read(of_day(day).as_bytes(), "site", chrono_tz::Europe::Paris)
                .expect("good")
                .points
        })
        .collect();
    assert_eq!(points_in(&double, "acme"), stored(&all));
}

#[test]
fn a_file_waits_for_the_previous_one_if_their_times_overlap() {
    let site = Site::new();
    let double = Double::start();
    for n in 1..=3 {
        site.put_old(DEVICE.file(format_args!("{n}.tsv")), good_file(n, 3));
    }
    let gate = Gate::new();
    double.fault_nth_write(1, Fault::Gate(gate.clone()));
    let run = site.run_to(&double).args(["--jobs", "1"]).start();
    gate.wait_for(1);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(double.data_writes().len(), 0, "no other file was sent");
    gate.open();
    run.wait().expect(0);
    let last = second_reader::read(good_file(3, 3).as_bytes(), "site", chrono_tz::Europe::Paris)
        .expect("good");
    assert_eq!(points_in(&double, "acme"), stored(&last.points));
}

#[test]
fn each_file_in_flight_has_its_own_outcome() {
    let of_day = |day: u32| good_file(day, 3).replace("01/08/25", &format!("{day:02}/08/25"));
    let site = Site::new();
    let double = Double::start();
    for day in 1..=5 {
        site.put_old(DEVICE.file(format_args!("{day}.tsv")), of_day(day));
    }
    let day_of = |request: &Request| {
        request
            .text()
            .lines()
            .next()
            .map(|line| line.contains("value=2.5 ") || line.contains("value=4.5 "))
    };
    double.fault(
        move |r| is_data_write(r) && day_of(r) == Some(true),
        0,
        usize::MAX,
        Fault::status(400, "unable to parse"),
    );
    site.run_to(&double).args(["--jobs", "1"]).run().expect(1);
    let tree = site.tree();
    assert_eq!(
        tree,
        [
            "error/2.tsv",
            "error/2.tsv.error.json",
            "error/4.tsv",
            "error/4.tsv.error.json",
            "parsed/1.tsv",
            "parsed/3.tsv",
            "parsed/5.tsv"
        ]
        .map(|path| DEVICE.file(path))
    );
    let kept: Vec<_> = [1, 3, 5]
        .into_iter()
        .flat_map(|day| {
            second_reader::read(of_day(day).as_bytes(), "site", chrono_tz::Europe::Paris)
                .expect("good")
                .points
        })
        .collect();
    assert_eq!(points_in(&double, "acme"), stored(&kept));
}

#[test]
fn a_later_file_of_a_device_wins_over_an_earlier_one() {
    let site = Site::new();
    let double = Double::start();
    for n in 0..9 {
        site.put_old(DEVICE.file(format_args!("f{n}.tsv")), good_file(n, 3));
    }
    site.run_to(&double).env("TSV_JOBS", "4").ok();
    let last = second_reader::read(good_file(8, 3).as_bytes(), "site", chrono_tz::Europe::Paris)
        .expect("good");
    assert_eq!(points_in(&double, "acme"), stored(&last.points));
}

fn only<'a>(lines: &'a [Line], measurement: &str) -> Vec<&'a Line> {
    lines
        .iter()
        .filter(|l| l.measurement == measurement)
        .collect()
}

#[test]
fn the_meta_bucket_has_a_point_per_run_and_per_file() {
    let site = Site::new();
    let double = Double::start();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 2));
    site.put_old(DEVICE.file("b.tsv"), bad_file());
    let before = chrono::Utc::now()
        .timestamp_nanos_opt()
        .expect("this century");
    site.run_to(&double).run().expect(1);
    let after = chrono::Utc::now()
        .timestamp_nanos_opt()
        .expect("this century");

    let lines = double.points(META);
    let runs = only(&lines, "tsv_parser_run");
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].tags["status"], "partial_failure");
    let number = |field: &Field| match field {
        Field::Float(v) => *v,
        Field::Int(v) => *v as f64,
        other => panic!("not a number: {other:?}"),
    };
    for (key, value) in [
        ("nb_files_total", 2.0),
        ("nb_files_success", 1.0),
        ("nb_files_failed", 1.0),
        ("nb_points_total", 4.0),
    ] {
        assert_eq!(number(&runs[0].fields[key]), value, "{key}");
    }
    assert!(runs[0].fields.contains_key("duration_s"));
    assert!(runs[0].fields.contains_key("base_folder"));

    let files = only(&lines, "tsv_parser_file");
    assert_eq!(files.len(), 2);
    for file in &files {
        assert_eq!(file.tags["bucket"], "acme");
        assert_eq!(file.tags["campaign"], "site");
        assert_eq!(file.tags["device_master_sn"], "02001171");
        let Field::Text(report) = &file.fields["report"] else {
            panic!("{file:?}")
        };
        let report: Value = serde_json::from_str(report).expect("the report is JSON");
        assert_eq!(report["status"], file.tags["status"].as_str());
        assert_eq!(
            file.fields["file_name"],
            Field::Text(
                if file.tags["status"] == "success" {
                    "a.tsv"
                } else {
                    "b.tsv"
                }
                .into()
            )
        );
    }
    let good = files
        .iter()
        .find(|f| f.tags["status"] == "success")
        .expect("one");
    assert_eq!(number(&good.fields["nb_points"]), 4.0);
    let bad = files
        .iter()
        .find(|f| f.tags["status"] == "error")
        .expect("one");
    assert!(matches!(&bad.fields["error"], Field::Text(t) if !t.is_empty()));
    for line in &lines {
        let time = line.time.expect("a time");
        assert!(
            (before..=after).contains(&time),
            "nanoseconds of now: {time}"
        );
    }
}

#[test]
fn the_meta_buckets_report_stays_below_64_kib() {
    let columns = 1500;
    let text = file_of_one_row((0..columns).map(|i| format!("Une voie au nom assez long {i} W")));
    let site = Site::new();
    let double = Double::start();
    site.put_old(DEVICE.file("a.tsv"), text);
    site.run_to(&double).ok();
    let lines = double.points(META);
    let files = only(&lines, "tsv_parser_file");
    let Field::Text(report) = &files[0].fields["report"] else {
        panic!("a text")
    };
    assert!(report.len() < 65_536, "{} bytes", report.len());
    let report: Value = serde_json::from_str(report).expect("JSON");
    assert_eq!(report["nb_channels"], columns);
    assert_eq!(
        site.report()["files"][0]["channels"]
            .as_object()
            .map(serde_json::Map::len),
        Some(columns),
        "complete on disk"
    );
}

#[test]
fn the_meta_buckets_report_has_its_channels_up_to_64_kib() {
    let report_of = |columns: usize| {
        let site = Site::new();
        let double = Double::start();
        let labels = (0..columns).map(|i| format!("Voie {i} W"));
        site.put_old(DEVICE.file("a.tsv"), file_of_one_row(labels));
        site.run_to(&double).ok();
        let lines = double.points(META);
        match &only(&lines, "tsv_parser_file")[0].fields["report"] {
            Field::Text(report) => serde_json::from_str::<Value>(report).expect("JSON"),
            other => panic!("{other:?}"),
        }
    };
    // A channel takes a little over a hundred bytes. A binary search finds the largest report that fits.
    let (mut fits, mut too_large) = (400, 800);
    let mut largest = report_of(fits);
    assert!(largest["channels"].is_object());
    assert!(report_of(too_large)["channels"].is_null());
    while too_large - fits > 1 {
        let middle = usize::midpoint(fits, too_large);
        let report = report_of(middle);
        if report["channels"].is_object() {
            (fits, largest) = (middle, report);
        } else {
            too_large = middle;
        }
    }
    let length = serde_json::to_string(&largest).expect("JSON").len();
    assert!(
        (65_536 - 250..65_536).contains(&length),
        "{fits} channels, {length} bytes"
    );
}

#[test]
fn the_meta_bucket_may_have_another_name() {
    let site = Site::new();
    let double = Double::start();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old("powerview_meta/site/02001171/a.tsv", good_file(1, 1));
    site.put_old("runs/site/02001171/a.tsv", good_file(1, 1));
    site.run_to(&double)
        .env("TSV_META_BUCKET", "runs")
        .run()
        .expect(1);
    assert_eq!(only(&double.points("runs"), "tsv_parser_run").len(), 1);
    assert_eq!(
        only(&double.points("runs"), "site").len(),
        0,
        "no company writes to the meta bucket"
    );
    assert_eq!(points_in(&double, META).len(), 2, "an ordinary company now");
}

#[test]
fn an_incomplete_line_of_a_killed_run_is_removed() {
    let site = Site::new();
    std::fs::create_dir(site.lp_dir()).expect("made");
    let whole = "site,campaign=site value=1 1754184000\n";
    std::fs::write(
        site.lp_dir().join("acme.lp"),
        format!("{whole}site,campaign=site,channel_id=M0200"),
    )
    .expect("written");
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.lp_run().ok();
    let text = site.lp_text("acme");
    assert!(text.starts_with(whole), "{text}");
    assert_eq!(line_protocol::all(&text).len(), 3);
}

#[test]
fn a_damaged_file_does_not_fill_the_log() {
    let lines = (0..2000).flat_map(|i| {
        [
            format!("03/08/25 03:20:00\tbad{i}\t1"),
            format!("rubbish {i}\t1"),
            format!("03/08/25 03:20:00\t1\t2\t3\t{i}"),
        ]
    });
    let text = FileBuilder::default().lines(lines).build();
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), text);
    // Most of its values are lost.
    let run = site.lp_run().run().expect(1);
    assert!(run.stderr.lines().count() < 12, "{}", run.stderr);
    assert!(
        run.stderr.contains("2000"),
        "with the count: {}",
        run.stderr
    );
}

#[test]
fn each_kind_of_damage_to_a_file_is_a_warning() {
    let good = good_file(1, 2);
    for (what, text, expected) in [
        // The value that is cut off is missing too.
        ("truncated plain", good.trim_end().to_owned(), 2),
        (
            "truncated headed",
            headed("{}", &good).replace("END_DATA\n", ""),
            1,
        ),
        (
            "broken JSON",
            headed(r#"{"DataTimeSettings":"LOCAL",}"#, &good),
            1,
        ),
        // The first defect is quoted too.
        ("invalid value", good.replace("1.5", "1,5"), 2),
        ("invalid time", format!("{good}rubbish\t1\t2\n"), 2),
        (
            "malformed row",
            format!("{good}03/08/25 10:00:00\t1\t2\t3\n"),
            2,
        ),
    ] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), &text);
        let run = site.lp_run().ok();
        let warnings = run.stderr.lines().filter(|l| l.contains("WARN"));
        let of_file = warnings.filter(|l| l.contains("a.tsv")).count();
        assert_eq!(of_file, expected, "{what}: {}", run.stderr);
    }
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good);
    // A time zone database of the test, because there is a warning if the machine has none.
    let zones = site.dir.path().join("zones");
    ZoneFile::of_rule("CET-1CEST,M3.5.0,M10.5.0/3").write(&zones, "Europe/Paris");
    let run = site.lp_run().env("TZDIR", &zones).ok();
    assert!(!run.stderr.contains("WARN"), "nothing to warn of");
}

#[test]
fn the_report_of_a_refused_header_has_the_known_values() {
    for (what, text, truncated, meta) in [
        (
            "cut in the serials",
            "1\t1\t1".to_owned(),
            true,
            Value::Null,
        ),
        ("empty", String::new(), true, Value::Null),
        (
            "whole",
            "1\t1\nMV_X\tA W\n03/08/25 03:20:00\t1\n".to_owned(),
            false,
            Value::Null,
        ),
        (
            "headed, cut",
            "START_HEADER\n{\"a\":1}\nEND_HEADER\nSTART_DATA\n1\t1\nMV_X\tA W\n".to_owned(),
            true,
            serde_json::json!({"a": 1}),
        ),
        (
            "headed, whole",
            "START_HEADER\n{\"a\":1}\nEND_HEADER\nSTART_DATA\n1\t1\nMV_X\tA W\nEND_DATA\n"
                .to_owned(),
            false,
            serde_json::json!({"a": 1}),
        ),
        (
            "no data block",
            "START_HEADER\n{\"a\":1}\nEND_HEADER\n".to_owned(),
            true,
            serde_json::json!({"a": 1}),
        ),
    ] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), text);
        let run = site.lp_run().run().expect(1);
        let report = site.report();
        let entry = file_of(&report, "a.tsv");
        assert_eq!(entry["truncated"], truncated, "{what}");
        assert_eq!(entry["file_header_meta"], meta, "{what}");
        assert_eq!(
            run.stderr.contains("file is truncated: "),
            truncated,
            "{what}: {}",
            run.stderr
        );
    }
}

#[test]
fn errors_in_a_header_have_the_line_number_of_an_editor() {
    for (text, line) in [
        ("1\t1\n\n\nMV_T302_V009\tA W\n", 4),
        ("\n\n1\t1\n\r\n\n\nMV_T302_V002\tA\x01 W\n", 7),
        ("\n1\t\x01\n\nMV_T302_V002\tA W\n", 2),
        ("1\t1\nMV_T302_V009\tA W", 2),
        (
            "START_HEADER\n{}\nEND_HEADER\nSTART_DATA\n\n1\t1\n\nMV_T302_V009\tA W\n",
            8,
        ),
        ("1\t1\n\n\n", 2),
    ] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), text);
        site.lp_run().run().expect(1);
        let report = site.report();
        let error = file_of(&report, "a.tsv")["error"]
            .as_str()
            .expect("words")
            .to_owned();
        assert!(
            error.contains(&format!("line {line}:")),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn a_file_with_any_valid_json_in_its_header_is_ingested() {
    let long = format!("{{\"x\":\"{}\"}}", "y".repeat(60_000));
    for json in [
        "null",
        "[]",
        "[1,2]",
        "\"text\"",
        "5",
        r#"{"TimeZoneName":5,"DataTimeSettings":["UTC"]}"#,
        r#"{"TimeZoneName":""}"#,
        r#"{"TimeZoneName":"../../etc/passwd"}"#,
        r#"{"DataTimeSettings":"UTC","DataTimeSettings":"LOCAL"}"#,
        r#"{"x":123456789012345678901234567890}"#,
        r#"{"x":1e999,"DataTimeSettings":"UTC"}"#,
        &long,
    ] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), headed(json, &good_file(1, 2)));
        let run = site.lp_run().ok();
        let shown = &json[..json.len().min(60)];
        assert_eq!(site.lp_points("acme").len(), 4, "{shown}");
        assert!(run.stderr.len() < 5000, "{shown}");
        let report = site.report();
        assert_eq!(file_of(&report, "a.tsv")["status"], "success", "{shown}");
    }
}

#[test]
fn a_header_that_does_not_say_whether_its_times_are_utc_is_refused() {
    let deep = "[".repeat(60_000);
    let too_long = format!("{{\"x\":\"{}\"}}", "y".repeat(100_000));
    for json in [
        "",
        "{",
        r#"{"x":1e999}"#,
        "{\"x\":\"\\ud800\"}",
        &deep,
        &too_long,
    ] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), headed(json, &good_file(1, 2)));
        let run = site.lp_run().run().expect(1);
        let shown = &json[..json.len().min(60)];
        assert_eq!(site.lp_points("acme"), [], "{shown}");
        assert!(
            run.stderr.contains("line 1: the") && run.stderr.len() < 5000,
            "{shown}"
        );
        assert!(site.path(DEVICE.error("a.tsv")).exists(), "{shown}");
    }
}

#[test]
fn a_company_or_campaign_called_parsed_or_error_is_left_with_a_warning() {
    for folder in ["parsed/site", "error/site", "acme/parsed", "acme/error"] {
        let site = Site::new();
        let path = site.put_old(format!("{folder}/02001171/x.tsv"), good_file(1, 1));
        let run = site.lp_run().ok();
        assert!(
            path.exists() && site.lp_points("acme").is_empty(),
            "{folder}: never entered"
        );
        let mut warnings = run.stderr.lines().filter(|l| l.contains("WARN"));
        let named = folder
            .rsplit('/')
            .find(|n| ["parsed", "error"].contains(n))
            .expect("one of them");
        assert!(
            warnings.any(|l| l.contains(named)),
            "{folder}: {}",
            run.stderr
        );
    }
}

#[test]
fn a_named_file_too_high_in_the_tree_fails_and_stays() {
    for place in [
        "x.tsv",
        "acme/x.tsv",
        "acme/site/x.tsv",
        "acme/parsed/x.tsv",
    ] {
        let site = Site::new();
        site.put_old(place, good_file(1, 1));
        site.lp_run().named(place).run().expect(1);
        assert_eq!(site.tree(), [place]);
        assert_eq!(
            file_of(&site.report(), "x.tsv")["status"],
            "error",
            "{place}"
        );
    }
}

#[test]
fn the_meta_buckets_file_has_nanoseconds() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.lp_run().ok();
    let lines = line_protocol::all(&site.lp_text(META));
    assert_eq!(only(&lines, "tsv_parser_run").len(), 1);
    assert_eq!(only(&lines, "tsv_parser_file").len(), 1);
    let year_2020 = 1_577_836_800_000_000_000;
    assert!(lines.iter().all(|l| l.time.is_some_and(|t| t > year_2020)));
}

#[test]
fn a_folder_that_differs_from_the_header_is_a_single_warning() {
    let site = Site::new();
    site.put_old("acme/site/02009999/a.tsv", good_file(1, 50));
    let run = site.lp_run().ok();
    let reported = run
        .stderr
        .lines()
        .filter(|l| l.contains("02009999") && l.contains("02001171"))
        .count();
    assert_eq!(reported, 1, "{}", run.stderr);
    assert_eq!(
        site.lp_points("acme")[0].tags["device_master_sn"],
        "02001171"
    );
}
#[test]
fn the_mean_of_large_values_is_a_number() {
    let site = Site::new();
    let text = FileBuilder::default()
        .line("03/08/25 03:20:00\t1.7e308\t-1.7e308")
        .line("03/08/25 03:30:00\t1.7e308\t1.7e308")
        .build();
    site.put_old(DEVICE.file("a.tsv"), text);
    site.lp_run().ok();
    let report = site.report();
    let channels = &file_of(&report, "a.tsv")["channels"];
    assert_eq!(channels["M02001171_Ch1_M02001171"]["mean"], 1.7e308);
    assert_eq!(channels["S04000466_Ch1_M02001171"]["mean"], 0.0);
}

#[test]
fn the_case_of_the_extension_does_not_matter_and_is_kept() {
    let site = Site::new();
    for name in ["a.TSV", "b.Tsv", "c.tsv"] {
        site.put_old(DEVICE.file(name), good_file(1, 1));
    }
    site.put_old(DEVICE.parsed("a.TSV"), good_file(1, 1));
    site.put_old(DEVICE.file("bad.TSV"), bad_file());
    site.lp_run().run().expect(1);
    for moved in [
        DEVICE.parsed("a.1.TSV"),
        DEVICE.parsed("b.Tsv"),
        DEVICE.parsed("c.tsv"),
        DEVICE.error("bad.TSV"),
        DEVICE.sidecar("bad.TSV"),
    ] {
        assert!(site.exists(&moved), "{moved}: {:?}", site.tree());
    }
    site.put_old(DEVICE.file("d.TSV"), good_file(1, 1));
    site.lp_run().named(DEVICE.file("d.TSV")).ok();
    assert!(site.exists(DEVICE.parsed("d.TSV")));
}

/// A data folder that is given one level too high would make a bucket `data`.
#[test]
fn a_data_folder_at_the_wrong_level_is_refused_with_the_right_one() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.parsed("b.tsv"), good_file(1, 1));
    let before = site.tree();
    let data = site.data().canonicalize().expect("a path");
    for given in [
        site.dir.path().to_owned(),
        site.path("acme"),
        site.path("acme/site"),
    ] {
        for command in [None, Some("status"), Some("check")] {
            let mut call = site.bare();
            if let Some(command) = command {
                call = call.arg(command);
            } else {
                call = call.arg("--line-protocol-dir").arg(site.lp_dir());
            }
            let run = call.arg("-d").arg(&given).run();
            let code = if command == Some("check") { 1 } else { 2 };
            let run = run.expect(code);
            let remedy = format!("use --dataFolder {}", data.display());
            let printed = run.stdout + &run.stderr;
            assert!(
                printed.contains(&remedy),
                "{given:?} {command:?}: {printed}"
            );
        }
    }
    assert_eq!(site.tree(), before);
    assert!(!site.lp_dir().exists() && !site.reports_dir().exists());
}

/// The owner of each file and folder below a folder.
fn owners(folder: &std::path::Path) -> Vec<(std::path::PathBuf, u32)> {
    use std::os::unix::fs::MetadataExt;
    let entries = walkdir::WalkDir::new(folder).into_iter().flatten();
    entries
        .map(|entry| {
            (
                entry.path().to_owned(),
                entry.metadata().expect("metadata").uid(),
            )
        })
        .collect()
}

/// A run as root must not block the user of the hook.
#[test]
fn what_root_makes_belongs_to_the_owner_of_the_device_folder() {
    if !rustix::process::geteuid().is_root() {
        return crate::skipped::skipped("root", "run the tests as root");
    }
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("bad.tsv"), bad_file());
    // Gives everything to an unprivileged user.
    let Some(_) = site.call().unprivileged() else {
        return;
    };
    let reports = site.dir.path().join("logs/reports");
    site.lp_run()
        .env("TSV_REPORT_DIR", &reports)
        .run()
        .expect(1);
    for made in [
        DEVICE.parsed("a.tsv"),
        DEVICE.error("bad.tsv"),
        DEVICE.sidecar("bad.tsv"),
    ] {
        assert!(site.exists(&made), "{made}");
    }
    assert_eq!(std::fs::read_dir(&reports).expect("reports").count(), 1);
    let made = [owners(&site.data()), owners(&site.dir.path().join("logs"))].concat();
    for (path, owner) in made {
        assert_eq!(owner, crate::harness::NOBODY, "{}", path.display());
    }
    // The user of the hook goes on.
    site.put_old(DEVICE.file("b.tsv"), good_file(2, 1));
    let run = site.lp_run().env("TSV_REPORT_DIR", &reports).unprivileged();
    run.expect("the user can start the program").ok();
    assert!(site.exists(DEVICE.parsed("b.tsv")));
}

/// `parsed/` of an earlier run as root: `check` and `status` name it, to root and to the user of the hook.
#[test]
fn a_folder_that_blocks_the_user_of_the_hook_is_named_by_check_and_status() {
    if !rustix::process::geteuid().is_root() {
        return crate::skipped::skipped("root", "run the tests as root");
    }
    for sub in ["parsed", "error"] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        let folder = site.make_dir(format!("{DEVICE}/{sub}"));
        for as_root in [true, false] {
            for (command, text) in [
                (
                    "check",
                    "FAIL device folders files of 1 device cannot be moved",
                ),
                ("status", "1 file waiting because the rights of"),
            ] {
                let call = site.bare().arg(command).arg("-d").arg(site.data());
                let Some(call) = call.unprivileged() else {
                    return;
                };
                std::os::unix::fs::lchown(&folder, Some(0), Some(0)).expect("chown");
                let call = if as_root {
                    site.bare().arg(command).arg("-d").arg(site.data())
                } else {
                    call
                };
                let run = call.run().expect(1);
                assert!(run.stdout.contains(text), "{sub} {as_root}: {}", run.stdout);
                let path = format!("{DEVICE}/{sub}");
                assert!(
                    run.stdout.contains(&path),
                    "{sub} {as_root}: {}",
                    run.stdout
                );
            }
        }
    }
}

/// Checks that `check` and `status` name what prevents moves, and that a sweep sends nothing because of it.
fn assert_named_and_nothing_sent(site: &Site, parts: &[&str]) {
    let run = site.lp_run().run().expect(1);
    let error = file_of(&site.report(), "a.tsv")["error"].clone();
    let command = |command: &str| {
        let call = site.bare().arg(command).arg("-d").arg(site.data());
        call.run().expect(1).stdout
    };
    let (check, status) = (command("check"), command("status"));
    for part in parts {
        assert!(error.as_str().unwrap().contains(part), "{part}: {error}");
        assert!(check.contains(part), "{part}: {check}");
        assert!(status.contains(part), "{part}: {status}");
    }
    assert!(
        check.contains("FAIL device folders files of 1 device cannot be moved"),
        "{check}"
    );
    assert!(!status.contains("cannot be read"), "{status}");
    assert!(
        !site.lp_dir().join("acme.lp").exists(),
        "nothing is sent: {}",
        run.stderr
    );
    assert!(site.exists(DEVICE.file("a.tsv")));
}

#[test]
fn a_name_of_a_folder_for_processed_files_that_is_something_else_stops_the_device() {
    for sub in ["parsed", "error"] {
        for kind in ["file", "link to a folder", "dangling link", "pipe"] {
            let site = Site::new();
            let path = site
                .put_old(DEVICE.file("a.tsv"), good_file(1, 1))
                .with_file_name(sub);
            match kind {
                "file" => std::fs::write(&path, "").expect("written"),
                "pipe" => {
                    let mode = rustix::fs::Mode::from_raw_mode(0o644);
                    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).expect("a pipe");
                }
                _ => {
                    let target = site.dir.path().join("elsewhere");
                    if kind == "link to a folder" {
                        std::fs::create_dir(&target).expect("made");
                    }
                    std::os::unix::fs::symlink(target, &path).expect("a link");
                }
            }
            println!("{sub}: {kind}");
            let name = format!("{DEVICE}/{sub}");
            assert_named_and_nothing_sent(
                &site,
                &[&name, "is not a folder", "rename or remove it"],
            );
            std::fs::remove_file(&path).expect("removed");
            site.lp_run().ok();
            assert!(site.exists(DEVICE.parsed("a.tsv")));
        }
    }
}

#[test]
fn a_read_only_file_system_is_found_before_anything_is_sent() {
    let site = Site::new();
    let device = site.make_dir(DEVICE.0);
    let Some(disk) = Tmpfs::mount(&device, "size=64k") else {
        return;
    };
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    disk.set_read_only(true);
    assert_named_and_nothing_sent(&site, &[DEVICE.0, "read-only file system", "mount"]);
}

/// Files that no sweep can take stay, so each sweep would report all of them again.
#[test]
fn files_that_every_sweep_refuses_are_reported_once_per_folder() {
    let site = Site::new();
    let folders = ["acme", "acme/site", "acme/#bad/1"];
    for folder in folders {
        for n in 0..50 {
            site.put_old(format!("{folder}/{n:02}.tsv"), "");
        }
    }
    site.put_old("acme/other/only.tsv", "");
    site.lp_run().run().expect(1);
    let report = site.report();
    let files = report["files"].as_array().expect("files");
    assert_eq!(files.len(), 4, "{files:#?}");
    for folder in folders {
        let error = file_of(&report, &format!("{folder}/00.tsv"))["error"]
            .as_str()
            .unwrap();
        assert!(error.ends_with(" (and 49 more in this folder)"), "{error}");
    }
    let only = file_of(&report, "only.tsv")["error"].as_str().unwrap();
    assert!(!only.contains("more in this folder"), "{only}");
    let points = site.lp_text("powerview_meta");
    assert_eq!(
        points
            .lines()
            .filter(|line| line.starts_with("tsv_parser_file"))
            .count(),
        4
    );
}

/// A user who makes many folders would fill the reports and the meta bucket with each sweep.
#[test]
fn files_that_every_sweep_refuses_in_many_folders_are_counted_together() {
    for folder in ["acme/k", "acme/#k/d"] {
        let site = Site::new();
        for n in 0..150 {
            for name in ["x.tsv", "y.tsv"] {
                site.put_old(format!("{folder}{n:05}/{name}"), "");
            }
        }
        site.lp_run().run().expect(1);
        let report = site.report();
        let files = report["files"].as_array().expect("files");
        assert_eq!(files.len(), 101, "{folder}");
        let points = site.lp_text("powerview_meta");
        let of_files = points
            .lines()
            .filter(|line| line.starts_with("tsv_parser_file"));
        assert_eq!(of_files.count(), 101, "{folder}");
        let together: Vec<_> = files
            .iter()
            .filter_map(|file| file["error"].as_str())
            .filter(|error| error.ends_with("(and 99 more in such folders)"))
            .collect();
        assert_eq!(together.len(), 1, "{folder}: {files:#?}");
    }
}
