//! `powerview status`: healthy devices and devices with problems, recognised by their folders alone.

use crate::harness::{FileBuilder, Site, age, file_of, headed, samples};
use chrono::{Duration, TimeDelta, Utc};
use serde_json::Value;
use std::collections::BTreeMap;

const HOUR: u64 = 3600;

/// A file whose last row was measured `hours` hours ago.
pub fn file(hours: i64) -> String {
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
        ("acme/site/2/parsed/w.csv", 0),
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
    for link in ["acme/site/link", "acme/site/2/x.tsv"] {
        std::os::unix::fs::symlink("/nonexistent", site.path(link)).expect("a link");
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
        ("acme/site/", "2 files that no run takes: g.tsv, link"),
        (
            "acme/site/1",
            "3 files that no run takes: .sftpgo-upload.x.d.tsv, b.csv, parsed/sub/c.tsv",
        ),
        (
            "acme/site/2",
            "2 files that no run takes: parsed/w.csv, x.tsv",
        ),
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
fn the_first_file_of_a_device_may_be_old() {
    let Some(dir) = samples() else { return };
    let file = "company1/campaign1/02001084/T302_251012_031720.tsv";
    let text = std::fs::read_to_string(dir.join(file)).expect("a sample");
    let site = Site::new();
    // The logger wrote it in October, with measurements of August.
    put(
        &site,
        "acme/site/02001171/parsed/T302_251012_031720.tsv",
        &text,
        1,
    );
    let run = status(&site).run().expect(0);
    assert!(run.stdout.contains("old data loaded"), "{}", run.stdout);
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

/// The time `minutes` before now, as in a logger file.
fn time(minutes: i64) -> String {
    (Utc::now() - TimeDelta::minutes(minutes))
        .format("%d/%m/%y %H:%M:%S")
        .to_string()
}

/// Rows of two values, the last one 100 minutes ago.
fn rows(number: i64) -> Vec<String> {
    let row = |n: i64| format!("{}\t230.5\t{n}", time(100 + 10 * (number - n)));
    (1..=number).map(row).collect()
}

/// A file of 8 good rows and one line.
fn with_line(line: &str) -> String {
    FileBuilder::default().lines(rows(8)).line(line).build()
}

/// The problems of each device, by its folder: their kinds and messages.
fn problems(report: &Value, device: &str) -> Vec<(String, String)> {
    let devices = report["devices"].as_array().expect("devices");
    let found = devices.iter().find(|d| d["device"] == device);
    let problems = found.unwrap_or_else(|| panic!("no {device}"))["problems"].as_array();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    problems
        .expect("problems")
        .iter()
        .map(|p| (text(&p["kind"]), text(&p["message"])))
        .collect()
}

fn status_json(site: &Site, code: i32) -> Value {
    let run = status(site).arg("--json").run().expect(code);
    serde_json::from_str(&run.stdout).expect("JSON")
}

/// Ingests what is in the data folder and returns the reports on its files by device folder.
fn ingest(site: &Site) -> BTreeMap<String, Value> {
    site.lp_run().env("TSV_TIMEZONE", "UTC").run().expect(0);
    let report = site.report();
    let files = report["files"].as_array().expect("files").iter();
    let device = |file: &Value| {
        file["device_master_sn"]
            .as_str()
            .expect("a device")
            .to_owned()
    };
    files.map(|file| (device(file), file.clone())).collect()
}

#[test]
fn a_file_that_lost_values_is_damaged_with_the_numbers_of_its_report() {
    let now = time(90);
    let after = |lines: &str| headed(r#"{"DataTimeSettings":"UTC"}"#, &with_line("")) + lines;
    let cases = [
        (
            "comma",
            with_line(&format!("{now}\t1,5\t2")),
            "5.6 % of the values are lost (1 of 18), the first defect: line 11, column 2, \"1,5\": a decimal comma; numbers need a point",
        ),
        (
            "text",
            with_line(&format!("{now}\t1\t\u{1b}[2J\u{202e}")),
            r#"5.6 % of the values are lost (1 of 18), the first defect: line 11, column 3, "\\u{1b}[2J\\u{202e}": not a number"#,
        ),
        (
            "glued",
            with_line(&format!("{now}\t1\t2{now}\t3")),
            &format!(
                "15.8 % of the values are lost (3 of 19), the first defect: line 11, column 3, \"2{now}\": the start of another line within a line; the row is skipped"
            ),
        ),
        (
            "short",
            with_line(&format!("{now}\t1")),
            "11.1 % of the values are lost (2 of 18), the first defect: line 11, column 2, \"1\": fewer cells than the header; the last one may be cut off and is skipped",
        ),
        (
            "beyond",
            with_line(&format!("{now}\t1\t2\t3")),
            "15.8 % of the values are lost (3 of 19), the first defect: line 11, column 4, \"3\": a value beyond the last column of the header; the row is skipped",
        ),
        (
            "untimed",
            with_line("yesterday\t1\t2"),
            "11.1 % of the values are lost (2 of 18), the first defect: line 11, column 1, \"yesterday\": not a date and time; the row is skipped",
        ),
        (
            "after",
            after(&format!("{now}\t1\t2\n")),
            "11.1 % of the lines are after END_DATA and not ingested (1 of 9)",
        ),
        (
            "separators",
            with_line(&format!("{now};1;2")),
            &format!(
                "11.1 % of the lines are skipped (1 of 9), the first defect: line 11, column 1, \"{now};1;2\": not a date and time; the row is skipped"
            ),
        ),
        (
            "both",
            headed(
                "{\"DataTimeSettings\":\"UTC\"}",
                &with_line(&format!("{now}\tx\t2")),
            ) + "a\nb\nc\n",
            "5.6 % of the values are lost (1 of 18), the first defect: line 15, column 2, \"x\": not a number; 25.0 % of the lines are after END_DATA and not ingested (3 of 12)",
        ),
    ];
    let site = Site::new();
    for (device, text, _) in &cases {
        site.put_old(format!("acme/site/{device}/a.tsv"), text);
    }
    let files = ingest(&site);
    let report = status_json(&site, 1);
    for (device, _, expected) in &cases {
        let found = problems(&report, device);
        let expected = format!("parsed/a.tsv: {expected}");
        assert_eq!(
            found,
            [("damaged".to_owned(), expected.clone())],
            "{device}"
        );
        let file = &files[*device];
        let loss = 100.0 * file["loss_ratio"].as_f64().expect("a ratio");
        assert!(
            loss == 0.0 && ["after", "separators"].contains(device)
                || expected.contains(&format!("{loss:.1} % of the values")),
            "{device}: {file:#}"
        );
        if loss > 0.0 {
            assert!(
                expected.contains(&format!(" of {})", file["nb_cells"])),
                "{device}: {file:#}"
            );
            let line = format!("line {},", file["problems"][0]["line"]);
            assert!(expected.contains(&line), "{device}: {file:#}");
        }
    }
    let run = status(&site).run().expect(1);
    assert_eq!(
        run.stdout.matches("\nDAMAGED  ").count(),
        cases.len(),
        "{}",
        run.stdout
    );
    let data = site.data().canonicalize().unwrap();
    let remedy = format!(
        "send the file again, or correct the file and run powerview -d '{0}' -t '{0}/acme/site/after/parsed/a.tsv'",
        data.display()
    );
    assert!(run.stdout.contains(&remedy), "{}", run.stdout);
    assert!(
        !run.stdout.contains(['\u{1b}', '\u{202e}']),
        "{}",
        run.stdout
    );
}

#[test]
fn a_loss_of_up_to_five_percent_is_healthy() {
    let row = |value: &str| format!("{}\t{value}\t2", time(90));
    let file = |bad: &str| FileBuilder::default().lines(rows(9)).line(row(bad)).build();
    let after = |good: i64| {
        let table = FileBuilder::default().lines(rows(good)).build();
        headed(r#"{"DataTimeSettings":"UTC"}"#, &table) + "1\n"
    };
    let site = Site::new();
    for (device, text) in [
        ("of-20", file("x")),
        ("of-19", file("x").replacen("230.5", "", 1)),
        ("after-20", after(19)),
        ("after-19", after(18)),
        ("empty", file("NaN").replace("230.5", "")),
    ] {
        site.put_old(format!("acme/site/{device}/a.tsv"), text);
    }
    let files = ingest(&site);
    assert_eq!(files["of-20"]["loss_ratio"], 0.05);
    let report = status_json(&site, 1);
    for (device, expected) in [
        ("of-20", None),
        ("of-19", Some("5.3 % of the values are lost (1 of 19)")),
        ("after-20", None),
        (
            "after-19",
            Some("5.3 % of the lines are after END_DATA and not ingested (1 of 19)"),
        ),
        ("empty", None),
    ] {
        let found = problems(&report, device);
        assert_eq!(
            found.len(),
            usize::from(expected.is_some()),
            "{device}: {found:?}"
        );
        assert!(
            found
                .iter()
                .all(|(_, text)| text.contains(expected.unwrap())),
            "{found:?}"
        );
    }
}

#[test]
fn damage_is_shown_of_ingested_files_of_the_last_seven_days() {
    let site = Site::new();
    let bad = with_line("yesterday\t1\t2");
    let good = |hours: i64| file(hours);
    for (path, text, hours) in [
        ("third/parsed/a.tsv", &bad, 3),
        ("third/parsed/b.tsv", &good(2), 2),
        ("third/parsed/c.tsv", &good(1), 1),
        ("fourth/parsed/a.tsv", &bad, 3),
        ("fourth/parsed/b.tsv", &good(2), 2),
        ("fourth/parsed/c.tsv", &good(1), 1),
        ("fourth/parsed/d.tsv", &good(1), 0),
        ("backlog/parsed/a.tsv", &bad, 7 * 24 + 1),
        ("backlog/parsed/b.tsv", &good(1), 1),
        ("waits/a.tsv", &bad, 1),
        ("failed/error/a.tsv", &bad, 1),
        // Accepted by another version of the program.
        ("unreadable/parsed/a.tsv", &"rubbish\n".to_owned(), 1),
    ] {
        put(&site, &format!("acme/site/{path}"), text, hours);
    }
    put(&site, "acme/site/hundred/parsed/a.tsv", &bad, 3);
    for n in 0..100 {
        put(
            &site,
            &format!("acme/site/hundred/parsed/b{n}.tsv"),
            &good(1),
            1,
        );
    }
    for n in 0..5 {
        put(&site, &format!("acme/site/many/parsed/{n}.tsv"), &bad, 1);
    }
    let report = status_json(&site, 1);
    let kinds = |device| -> Vec<_> {
        let found = problems(&report, device).into_iter();
        found.map(|(kind, _)| kind).collect()
    };
    for (device, expected) in [
        ("third", vec!["damaged"]),
        ("fourth", vec!["damaged"]),
        // It was ingested now. Its rows are later than its upload too.
        ("backlog", vec!["damaged", "clock"]),
        ("hundred", vec!["damaged"]),
        ("many", vec!["damaged"; 4]),
        ("waits", vec![]),
        ("failed", vec!["errors"]),
        ("unreadable", vec![]),
    ] {
        assert_eq!(kinds(device), expected, "{device}");
    }
}

#[test]
fn a_damaged_file_is_healthy_once_its_times_are_sent_again() {
    let site = Site::new();
    let bad = with_line(&format!("{}\t1,5\t2", time(90)));
    let repaired = bad.replace("1,5", "1.5");
    let shorter = FileBuilder::default().lines(&rows(8)[1..]).build();
    // A file of two rows, at the same first and last time.
    let all = repaired.lines().collect::<Vec<_>>();
    let ends = [all[0], all[1], all[2], all[all.len() - 1], ""].join("\n");
    for (path, text, hours) in [
        ("again/parsed/a.tsv", &bad, 1),
        ("again/parsed/a.1.tsv", &repaired, 0),
        ("other-name/parsed/a.tsv", &bad, 1),
        ("other-name/parsed/z.tsv", &repaired, 0),
        ("before/parsed/a.tsv", &repaired, 1),
        ("before/parsed/a.1.tsv", &bad, 0),
        ("other-times/parsed/a.tsv", &bad, 1),
        ("other-times/parsed/a.1.tsv", &shorter, 0),
        ("other-channel/parsed/a.tsv", &bad, 1),
        ("other-channel/parsed/z.tsv", &ends, 0),
        ("not-ingested/parsed/a.tsv", &bad, 1),
        ("not-ingested/a.tsv", &repaired, 0),
    ] {
        put(&site, &format!("acme/site/{path}"), text, hours);
    }
    let report = status_json(&site, 1);
    for (device, damaged) in [
        ("again", None),
        ("other-name", None),
        ("before", Some("parsed/a.1.tsv: ")),
        ("other-times", Some("parsed/a.tsv: ")),
        ("other-channel", Some("parsed/a.tsv: ")),
        ("not-ingested", Some("parsed/a.tsv: ")),
    ] {
        let found = problems(&report, device);
        assert_eq!(
            found.len(),
            usize::from(damaged.is_some()),
            "{device}: {found:?}"
        );
        assert!(
            found
                .iter()
                .all(|(_, text)| text.starts_with(damaged.unwrap())),
            "{found:?}"
        );
    }
}

#[test]
fn rows_with_suspicious_times_are_a_clock_problem_with_the_number_of_the_report() {
    let table = |times: &[&str]| {
        let row = |time: &&str| format!("{time}\t1\t2");
        FileBuilder::default().lines(times.iter().map(row)).build()
    };
    let at = time;
    let cases = [
        (
            "reset",
            table(&[&at(300), "01/01/00 00:00:00", "01/01/00 00:10:00", &at(90)]),
            2,
        ),
        // Files that were joined.
        (
            "tables",
            table(&[&at(300)]) + &table(&["31/12/09 23:50:00"]) + &table(&[&at(90)]),
            1,
        ),
        ("ahead", table(&[&at(90 - 25 * 60), &at(90), &at(80)]), 2),
        ("back", table(&[&at(300), &at(600), &at(100), &at(90)]), 1),
        ("hour", table(&[&at(300), &at(400), &at(100), &at(90)]), 0),
    ];
    let site = Site::new();
    for (device, text, _) in &cases {
        site.put_old(format!("acme/site/{device}/a.tsv"), text);
    }
    let files = ingest(&site);
    let report = status_json(&site, 1);
    for (device, _, rows) in &cases {
        assert_eq!(files[*device]["nb_suspicious_times"], *rows, "{device}");
        let found = problems(&report, device);
        if *rows == 0 {
            assert_eq!(found, [], "{device}");
            continue;
        }
        let [(kind, message)] = &found[..] else {
            panic!("{device}: {found:?}")
        };
        assert_eq!(kind, "clock", "{device}");
        let expected = format!(
            "{rows} row{} in parsed/a.tsv",
            if *rows == 1 { "" } else { "s" }
        );
        assert!(message.ends_with(&expected), "{device}: {message}");
    }
    let run = status(&site).run().expect(1);
    assert_eq!(run.stdout.matches("\nCLOCK  ").count(), 4, "{}", run.stdout);
}

/// The first row is in the second of two hours only because of the upload before it.
#[test]
fn suspicious_times_in_the_night_of_the_change_are_those_of_the_report() {
    let site = Site::new();
    let before = ["02:50", "02:10", "02:50"];
    let table = |times: &[&str]| {
        let row = |time: &&str| format!("26/10/25 {time}:00\t1\t2");
        FileBuilder::default().lines(times.iter().map(row)).build()
    };
    put(&site, "acme/site/1/T302_251026_a.tsv", &table(&before), 2);
    put(
        &site,
        "acme/site/1/T302_251026_b.tsv",
        &table(&["02:55", "01:00"]),
        1,
    );
    site.lp_run().run().expect(0);
    let report = site.report();
    assert_eq!(file_of(&report, "_b.tsv")["nb_suspicious_times"], 1);
    let run = status(&site)
        .env("TSV_TIMEZONE", "Europe/Paris")
        .run()
        .expect(1);
    assert!(
        run.stdout.contains(": 1 row in parsed/T302_251026_b.tsv: "),
        "{}",
        run.stdout
    );
}

/// A clock that was reset, in a file whose last row shows it, is one problem and not two.
#[test]
fn a_clock_that_is_wrong_at_the_end_of_a_file_is_said_once() {
    let site = Site::new();
    let file = FileBuilder::default()
        .line("01/01/00 00:00:00\t1\t2")
        .line("01/01/00 00:10:00\t1\t2");
    put(&site, "acme/site/1/parsed/a.tsv", &file.build(), 1);
    let found = problems(&status_json(&site, 1), "1");
    let [(kind, message)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(kind, "clock");
    assert!(message.starts_with("the last measurement is "), "{message}");
}

/// The devices of `status --json`, by their names.
fn devices(site: &Site, exit_code: i32) -> BTreeMap<String, Value> {
    let run = status(site).arg("--json").run().expect(exit_code);
    let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let devices = report["devices"].as_array().expect("devices").iter();
    devices
        .map(|device| {
            (
                device["device"].as_str().unwrap().to_owned(),
                device.clone(),
            )
        })
        .collect()
}

#[test]
fn a_retired_logger_raises_no_alarm_until_it_sends_again() {
    let site = Site::new();
    let device = "acme/site/02001171";
    put(
        &site,
        &format!("{device}/parsed/a.tsv"),
        &file(24 * 30),
        600,
    );
    put(
        &site,
        &format!("{device}/parsed/cut.tsv"),
        file(600).trim_end(),
        600,
    );
    site.make_dir("acme/site/never");
    assert_eq!(
        devices(&site, 1)["02001171"]["problems"][0]["kind"],
        "silent"
    );

    let retire = ["--retire", device, "--retire", "acme/site/never"];
    let run = status(&site).args(retire).run().expect(0);
    let both = [
        "acme/site/02001171: retired, until it sends a file or status --unretire",
        "acme/site/never: retired, until it sends a file or status --unretire",
    ];
    assert_eq!(run.stdout.lines().collect::<Vec<_>>(), both);
    let found = devices(&site, 0);
    for name in ["02001171", "never"] {
        assert_eq!(found[name]["retired"], true, "{name}");
        assert_eq!(found[name]["problems"], serde_json::json!([]), "{name}");
    }
    let table = status(&site).run().expect(0).stdout;
    let marks = table.lines().filter(|line| line.starts_with("retired "));
    assert_eq!(marks.count(), 2, "{table}");
    // A sweep without a new upload changes nothing.
    site.lp_run().ok();
    assert_eq!(devices(&site, 0)["02001171"]["retired"], true);

    // An upload that waits or fails is enough for status.
    let upload = site.put(format!("{device}/b.tsv"), file(0));
    assert_eq!(devices(&site, 0)["02001171"]["retired"], false);
    let said = "was retired and sends again; it is in service from now on";
    let run = site.lp_run().ok();
    assert_eq!(run.stderr.matches(said).count(), 1, "{}", run.stderr);
    assert!(!upload.exists());
    site.put(format!("{device}/c.tsv"), file(0));
    let run = site.lp_run().ok();
    assert_eq!(run.stderr.matches(said).count(), 0, "{}", run.stderr);
    let found = devices(&site, 0);
    assert_eq!(found["02001171"]["retired"], false);
    assert_eq!(found["never"]["retired"], true);

    // Its next silence is a problem.
    for name in ["b.tsv", "c.tsv"] {
        age(&site.path(format!("{device}/parsed/{name}")), 30 * HOUR);
    }
    assert_eq!(
        devices(&site, 1)["02001171"]["problems"][0]["kind"],
        "silent"
    );
}

#[test]
fn files_of_before_do_not_end_a_retirement_and_what_is_left_to_do_with_them_is_shown() {
    let site = Site::new();
    let device = "acme/site/02001171";
    put(&site, &format!("{device}/a.tsv"), &file(600), 600);
    put(&site, &format!("{device}/error/b.tsv"), "no file", 600);
    status(&site).args(["--retire", device]).run().expect(0);
    let kinds = |device: &Value| {
        let problems = device["problems"].as_array().expect("problems").iter();
        let kinds = problems.map(|problem| problem["kind"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<_>>()
    };
    let found = devices(&site, 1);
    assert_eq!(found["02001171"]["retired"], true);
    assert_eq!(kinds(&found["02001171"]), ["errors", "waiting"]);

    let run = site.lp_run().ok();
    assert!(!run.stderr.contains("retired"), "{}", run.stderr);
    let found = devices(&site, 1);
    assert_eq!(found["02001171"]["retired"], true);
    assert_eq!(kinds(&found["02001171"]), ["errors"]);
}

#[test]
fn a_device_is_unretired_once() {
    let site = Site::new();
    let device = "acme/site/02001171";
    put(&site, &format!("{device}/parsed/a.tsv"), &file(50), 50);
    status(&site).args(["--retire", device]).run().expect(0);
    assert_eq!(devices(&site, 0)["02001171"]["retired"], true);
    let run = status(&site).args(["--unretire", device]).run().expect(0);
    assert_eq!(run.stdout, "acme/site/02001171: in service again\n");
    assert_eq!(devices(&site, 1)["02001171"]["retired"], false);
    let run = status(&site).args(["--unretire", device]).run().expect(1);
    assert!(run.stderr.contains("is not retired"), "{}", run.stderr);
    for option in ["--retire", "--unretire"] {
        let run = status(&site).args([option, "acme/site"]).run().expect(2);
        assert!(run.stderr.contains("not a device folder"), "{}", run.stderr);
    }
}
