//! `powerview status`: healthy devices and devices with problems, recognised by their folders alone.

use crate::harness::{FileBuilder, Site, age};
use chrono::{Duration, TimeDelta, Utc};
use serde_json::Value;

const HOUR: u64 = 3600;

/// A file whose last row was measured `hours` hours ago.
fn file(hours: i64) -> String {
    let last = Utc::now() - Duration::hours(hours);
    let before = last - TimeDelta::minutes(10);
    let row = |at: chrono::DateTime<Utc>| at.format("%d/%m/%y %H:%M:%S").to_string();
    FileBuilder::with_channels(["Voie1 W"])
        .line(format_args!("{}\t1.5", row(before)))
        .line(format_args!("{}\t2.5", row(last)))
        .build()
}

/// Writes a file that arrived `hours` hours ago.
fn put(site: &Site, path: &str, text: &str, hours: u64) {
    age(&site.put(path, text), hours * HOUR);
}

/// A healthy device, and one with each problem that status knows.
fn scene() -> Site {
    let site = Site::new();
    put(&site, "acme/site/healthy/parsed/b.tsv", &file(3), 3);
    put(&site, "acme/site/healthy/parsed/a.tsv", &file(27), 27);
    put(&site, "acme/site/silent/parsed/a.tsv", &file(50), 50);
    put(&site, "acme/site/ahead/parsed/a.tsv", &file(-30), 2);
    put(&site, "acme/site/behind/parsed/a.tsv", &file(24 * 200), 2);
    for (name, hours) in [("a", 20), ("b", 10), ("c", 2)] {
        put(
            &site,
            &format!("acme/site/cut/parsed/{name}.tsv"),
            file(hours).trim_end(),
            hours.unsigned_abs(),
        );
    }
    put(&site, "acme/site/waits/a.tsv", &file(5), 5);
    put(&site, "acme/site/retry/error/a.tsv", &file(5), 5);
    site.put(
        "acme/site/retry/error/a.tsv.error.json",
        r#"{"error":"no server","retryable":true,"time":"2026-01-01T00:00:00Z","run_id":"x"}"#,
    );
    put(&site, "acme/site/errors/error/a.tsv", &file(5), 5);
    put(&site, "acme/site/errors/error/b.tsv", &file(5), 5);
    site.put("acme/site/errors/error/b.tsv.error.json", "{ not json");
    site.make_dir("acme/empty");
    site.make_dir("acme/site/never");
    site
}

fn status(site: &Site) -> crate::harness::Call<'_> {
    site.bare()
        .arg("status")
        .arg("-d")
        .arg(site.data())
        .env("TSV_TIMEZONE", "UTC")
}

#[test]
fn each_problem_is_named_and_the_healthy_device_has_none() {
    let site = scene();
    let run = status(&site).arg("--json").run().expect(1);
    let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(report["healthy"], false);
    let problem = &report["devices"][0]["problems"][0];
    for key in ["message", "remedy"] {
        let text = problem[key].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{key}: {problem:#}");
    }
    let devices = report["devices"].as_array().expect("devices");
    let kinds = |name: &str| -> Vec<&str> {
        let device = devices
            .iter()
            .find(|d| d["device"] == name || (name == "empty" && d["campaign"] == "empty"))
            .unwrap_or_else(|| panic!("no {name}"));
        device["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["kind"].as_str().unwrap())
            .collect()
    };
    for (name, expected) in [
        ("healthy", vec![]),
        ("silent", vec!["silent"]),
        ("ahead", vec!["clock"]),
        ("behind", vec!["clock"]),
        ("cut", vec!["truncated"]),
        ("waits", vec!["waiting"]),
        ("retry", vec!["retryable"]),
        ("errors", vec!["errors"]),
        ("empty", vec!["empty"]),
        ("never", vec!["empty"]),
    ] {
        assert_eq!(kinds(name), expected, "{name}");
    }
    let errors = devices.iter().find(|d| d["device"] == "errors").unwrap();
    assert_eq!(
        errors["errors_other"], 2,
        "neither a missing nor a broken sidecar makes a file retryable"
    );
    let healthy = devices.iter().find(|d| d["device"] == "healthy").unwrap();
    assert_eq!(healthy["last_file"], "parsed/b.tsv");
    let last: chrono::DateTime<Utc> = healthy["last_measurement"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        (Utc::now() - Duration::hours(3) - last).num_seconds().abs() < 60,
        "{last}"
    );
}

#[test]
fn the_most_severe_problem_comes_first_with_its_remedy() {
    let site = scene();
    let run = status(&site).run().expect(1);
    assert!(!run.stdout.contains('\u{1b}'), "a pipe gets no colours");
    let lines: Vec<_> = run.stdout.lines().collect();
    assert!(lines[1].starts_with("SILENT"), "{}", run.stdout);
    let retry = format!(
        "powerview -d '{}' --retry-errors",
        site.data().canonicalize().unwrap().display()
    );
    assert!(run.stdout.contains(&retry), "{}", run.stdout);
    assert!(
        lines
            .last()
            .unwrap()
            .contains("9 of 10 devices need attention"),
        "{}",
        run.stdout
    );
}

#[test]
fn the_time_after_which_a_logger_is_silent_is_a_setting() {
    let site = Site::new();
    put(&site, "acme/site/1/parsed/a.tsv", &file(50), 50);
    status(&site).args(["--silent-after", "3d"]).run().expect(0);
    status(&site)
        .args(["--silent-after", "49h"])
        .run()
        .expect(1);
    status(&site)
        .args(["--silent-after", "soon"])
        .run()
        .expect(2);
    site.bare()
        .args(["status", "-d", "/nowhere"])
        .run()
        .expect(2);
}

#[test]
fn names_are_escaped_and_links_are_not_followed() {
    let site = Site::new();
    put(&site, "acme/site/a\u{1b}[2Jb/parsed/a.tsv", &file(50), 50);
    put(&site, "other/site/1/parsed/a.tsv", &file(1), 1);
    site.link(site.path("other/site"), "acme/linked");
    let run = status(&site).run().expect(1);
    assert!(
        !run.stdout.contains('\u{1b}') && !run.stdout.contains("linked"),
        "{}",
        run.stdout
    );
}

#[test]
fn an_empty_data_folder_is_healthy() {
    let site = Site::new();
    let run = status(&site).run().expect(0);
    assert!(run.stdout.contains("no device yet"), "{}", run.stdout);
}

#[test]
fn status_changes_nothing() {
    let site = scene();
    let before = site.tree();
    status(&site).run().expect(1);
    assert_eq!(site.tree(), before);
}

/// SFTP users can write sidecars, so an operator should not have to print them to a terminal.
#[test]
fn the_reasons_of_errors_are_printed_sanitized_with_the_number_of_files() {
    let site = Site::new();
    let error = |name: &str, reason: &str| {
        put(&site, &format!("acme/site/1/error/{name}.tsv"), &file(5), 5);
        let sidecar =
            serde_json::json!({"error": reason, "retryable": false, "time": "t", "run_id": "r"});
        site.put(
            format!("acme/site/1/error/{name}.tsv.error.json"),
            sidecar.to_string(),
        );
    };
    error("a", "the file is empty");
    error("b", "the file is empty");
    error("c", "evil \u{1b}[2J\u{202e}\nok  all is well");
    error("d", &format!("long{}", "x".repeat(5_000)));
    error("e", "a fourth reason");
    put(&site, "acme/site/2/error/a.tsv", &file(5), 5);
    let run = status(&site).run().expect(1);
    for part in [
        "5 files in error/ that cannot be retried: the file is empty (2 files) | evil",
        r"evil \u{1b}[2J\u{202e}\nok  all is well (1 file) | longxx",
        " | other reasons (1 file): ",
        "1 file in error/ that cannot be retried: no reason recorded (1 file)",
    ] {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
    assert!(!run.stdout.contains('\u{1b}') && !run.stdout.contains("cat "));
    assert!(run.stdout.lines().all(|line| line.len() < 1_000));
}

#[test]
fn files_that_no_run_takes_are_named() {
    let site = Site::new();
    put(&site, "acme/site/1/parsed/a.tsv", &file(3), 3);
    put(&site, "acme/site/2/parsed/a.TSV", &file(3), 3);
    for (path, hours) in [
        ("acme/site/1/b.csv", 0),
        ("acme/site/1/parsed/sub/c.tsv", 0),
        ("acme/site/1/.sftpgo-upload.x.d.tsv", 25),
        ("acme/site/2/.sftpgo-upload.x.e.tsv", 23),
        ("acme/site/2/f.tsv.filepart", 23),
        ("acme/site/g.tsv", 0),
        ("acme/site/.dashboard.created", 100),
        ("acme/parsed/h.tsv", 0),
        ("i.xlsx", 0),
    ] {
        put(&site, path, "", hours);
    }
    let run = status(&site).arg("--json").run().expect(1);
    let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let strays: Vec<_> = report["devices"]
        .as_array()
        .expect("devices")
        .iter()
        .map(|device| {
            let name = ["company", "campaign", "device"].map(|key| device[key].as_str().unwrap());
            let problems = device["problems"].as_array().unwrap();
            assert!(
                problems.iter().all(|problem| problem["kind"] == "stray"),
                "{device:#}"
            );
            let message = problems
                .first()
                .map_or("", |problem| problem["message"].as_str().unwrap());
            (name.join("/"), message.to_owned())
        })
        .collect();
    let expected = [
        ("//", "1 file that no run takes: i.xlsx"),
        ("acme//", "1 file that no run takes: parsed/h.tsv"),
        ("acme/site/", "1 file that no run takes: g.tsv"),
        (
            "acme/site/1",
            "3 files that no run takes: .sftpgo-upload.x.d.tsv, b.csv, parsed/sub/c.tsv",
        ),
        ("acme/site/2", ""),
    ];
    assert_eq!(
        strays,
        expected.map(|(name, text)| (name.to_owned(), text.to_owned()))
    );
}

#[test]
fn files_of_a_device_are_seen_whatever_the_case_of_their_extension() {
    let site = Site::new();
    put(&site, "acme/site/1/a.TSV", &file(5), 5);
    put(&site, "acme/site/1/error/b.Tsv", &file(5), 5);
    let run = status(&site).arg("--json").run().expect(1);
    let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let device = &report["devices"][0];
    assert_eq!(
        (&device["waiting"], &device["errors_other"]),
        (&1.into(), &1.into())
    );
}

#[test]
fn old_data_loaded_today_is_healthy_and_said() {
    let site = Site::new();
    put(&site, "acme/site/1/parsed/today.tsv", &file(5), 5);
    put(&site, "acme/site/1/parsed/old.tsv", &file(24 * 200), 1);
    let day = (Utc::now() - Duration::hours(24 * 300)).format("%y%m%d");
    let name = format!("acme/site/2/parsed/T302_{day}_031719.tsv");
    put(&site, &name, &file(24 * 300), 1);
    let run = status(&site).run().expect(0);
    assert_eq!(
        run.stdout.matches("old data loaded").count(),
        2,
        "{}",
        run.stdout
    );
}

#[test]
fn campaigns_without_a_dashboard_and_names_with_two_spellings_are_noted() {
    let site = Site::new();
    for path in [
        "acme/e\u{301}te\u{301}/1",
        "acme/\u{e9}t\u{e9}/1",
        "acme/with/1",
    ] {
        put(&site, &format!("{path}/parsed/a.tsv"), &file(3), 3);
    }
    site.put("acme/with/.dashboard.created", "");
    let run = status(&site).arg("--json").run().expect(0);
    let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let notes: Vec<_> = report["notes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_str().unwrap())
        .collect();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(
        notes[0].contains(r"(e\u{301}te\u{301}, \u{e9}t\u{e9})"),
        "{notes:?}"
    );
    assert!(
        notes[1..]
            .iter()
            .all(|note| note.contains("has no dashboard yet")),
        "{notes:?}"
    );
    let run = status(&site).run().expect(0);
    assert_eq!(run.stdout.matches("\nnote: ").count(), 3, "{}", run.stdout);
}
