//! The layout guard: columns that changed their meaning, and layouts that contradict themselves.

use crate::harness::{Call, DEVICE, LAYOUT_FILE, NOBODY, Run, Site, age, file_of, headed, samples};
use crate::influx_double::Double;
use crate::line_protocol::Value as Field;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// The serials of the device of the tests.
const MASTER: &str = "02001171";
const SLAVE: &str = "04000466";

/// A voltage and two powers, the second one of a slave.
const USUAL: [(&str, &str); 3] = [(MASTER, "Ph 1 V"), (MASTER, "A W"), (SLAVE, "B W")];

/// A table of the master with these columns and rows, ten minutes apart.
fn table<const N: usize>(columns: [(&str, &str); N], rows: &[[&str; N]]) -> String {
    let serials = columns.map(|(serial, _)| serial).join("\t");
    let labels = columns.map(|(_, label)| label).join("\t");
    let mut text = format!("{MASTER}\t{serials}\nMV_T302_V002\t{labels}\n");
    for (number, row) in rows.iter().enumerate() {
        let (day, hour, minute) = (3 + number / 144, number / 6 % 24, number % 6 * 10);
        text += &format!(
            "{day:02}/08/25 {hour:02}:{minute:02}:00\t{}\n",
            row.join("\t")
        );
    }
    text
}

/// A file with these columns, whose values are not those of voltages.
fn file<const N: usize>(columns: [(&str, &str); N]) -> String {
    let values: [&str; N] = std::array::from_fn(|at| if at == 0 { "240.5" } else { "31.5" });
    table(columns, &[values; 7])
}

fn usual() -> String {
    file(USUAL)
}

/// Puts a file that was uploaded the given number of hours ago.
fn put(site: &Site, path: &str, text: &str, hours: u64) {
    age(&site.put(path, text), hours * 3600);
}

/// Puts a file of the device, ingests it by its name and returns its entry in the report.
fn ingest(site: &Site, name: &str, text: &str, hours: u64) -> Value {
    put(site, &DEVICE.file(name), text, hours);
    named(site, &DEVICE.file(name))
}

/// Ingests a file by its name and returns its entry in the report.
fn named(site: &Site, path: &str) -> Value {
    let run = site.lp_run().named(path).run();
    let report = site.reports().pop().expect("a report");
    assert_eq!(report["files"].as_array().map(Vec::len), Some(1), "{run:?}");
    report["files"][0].clone()
}

fn changes(column: usize, before: Option<&str>, after: Option<&str>) -> Value {
    json!([{"column": column, "before": before, "after": after}])
}

fn status(site: &Site) -> Call<'_> {
    site.bare().arg("status").arg("-d").arg(site.data())
}

/// The messages of the problems with the layout of all devices.
fn layout_problems(site: &Site) -> Vec<String> {
    let run = status(site).arg("--json").run();
    let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let devices = report["devices"].as_array().expect("devices");
    devices
        .iter()
        .flat_map(|device| device["problems"].as_array().expect("problems"))
        .filter(|problem| problem["kind"] == "layout")
        .map(|problem| problem["message"].as_str().expect("a text").to_owned())
        .collect()
}

fn acknowledge(site: &Site, device: &str) -> Run {
    status(site).args(["--acknowledge", device]).run()
}

fn state_path(site: &Site) -> PathBuf {
    site.path(DEVICE.file(LAYOUT_FILE))
}

/// Six values near a voltage of 240, and the voltage.
fn like_voltages() -> String {
    table(
        [(MASTER, "Ph 1 V"), (MASTER, "A W")],
        &[["240", "239.1"]; 6],
    )
}

#[test]
fn the_first_file_and_one_with_the_same_layout_are_no_change() {
    let site = Site::new();
    let first = ingest(&site, "a.tsv", &usual(), 5);
    let equal = ingest(&site, "b.tsv", &usual(), 4);
    // Neither a marker nor the number of spaces before a unit is part of the layout.
    let text = usual()
        .replace("_V002", "_V003")
        .replace("Ph 1 V", "Ph 1  V");
    let same = ingest(&site, "c.tsv", &text, 3);
    for file in [first, equal, same] {
        assert_eq!(file["status"], "success");
        assert_eq!(file["layout_changed"], Value::Null, "{file:#}");
        assert_eq!(file["layout_suspect"], Value::Null, "{file:#}");
    }
    assert_eq!(layout_problems(&site), [""; 0]);
}

#[test]
fn each_kind_of_change_is_reported_with_its_columns() {
    let [voltage, a, b] = USUAL;
    let cases: [(String, Value); 7] = [
        (
            file([voltage, (MASTER, "A kW"), b]),
            changes(3, Some("02001171 A W"), Some("02001171 A kW")),
        ),
        (
            file([voltage, (MASTER, "A"), b]),
            changes(3, Some("02001171 A W"), Some("02001171 A")),
        ),
        (
            file([voltage, a, (SLAVE, "C W")]),
            changes(4, Some("04000466 B W"), Some("04000466 C W")),
        ),
        (
            file([voltage, (SLAVE, "A W"), (MASTER, "B W")]),
            json!([
                {"column": 3, "before": "02001171 A W", "after": "04000466 A W"},
                {"column": 4, "before": "04000466 B W", "after": "02001171 B W"},
            ]),
        ),
        (
            file([voltage, a, b, (SLAVE, "C W")]),
            changes(5, None, Some("04000466 C W")),
        ),
        (file([voltage, a]), changes(4, Some("04000466 B W"), None)),
        (
            usual().replacen(MASTER, "02001172", 1),
            changes(1, Some("02001171"), Some("02001172")),
        ),
    ];
    for (text, expected) in cases {
        let site = Site::new();
        ingest(&site, "a.tsv", &usual(), 5);
        put(&site, &DEVICE.file("b.tsv"), &text, 4);
        let run = site.lp_run().ok();
        let warnings = run.stderr.matches("layout changed in ").count();
        assert_eq!(warnings, 1, "{}", run.stderr);
        let file = &site.reports()[1]["files"][0];
        assert_eq!(file["layout_changed"], expected, "{text}");
        assert_eq!(file["status"], "success");
        let problems = layout_problems(&site);
        assert_eq!(problems.len(), 1, "{problems:?}");
        // The next file is compared with this one.
        let next = ingest(&site, "c.tsv", &text, 3);
        assert_eq!(next["layout_changed"], Value::Null);
        assert_eq!(layout_problems(&site), problems);
    }
}

#[test]
fn a_change_is_shown_for_seven_days_after_the_upload() {
    for (hours, shown) in [(7 * 24 - 1, 1), (7 * 24 + 1, 0)] {
        let site = Site::new();
        ingest(&site, "a.tsv", &usual(), 1_000);
        ingest(&site, "b.tsv", &file([USUAL[0], USUAL[1]]), hours);
        assert_eq!(layout_problems(&site).len(), shown, "{hours}");
    }
}

#[test]
fn status_names_the_columns_of_a_change() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 5);
    ingest(
        &site,
        "b.tsv",
        &file([USUAL[0], USUAL[1], (SLAVE, "B kW")]),
        4,
    );
    let run = status(&site).run().expect(1);
    let text = "column 4 was \"04000466 B W\" and is \"04000466 B kW\"";
    assert!(run.stdout.contains(text), "{}", run.stdout);
    assert!(
        run.stdout.lines().any(|line| line.starts_with("LAYOUT ")),
        "{}",
        run.stdout
    );
}

#[test]
fn the_first_file_after_an_update_is_compared_with_the_last_one_in_parsed() {
    let site = Site::new();
    let other = file([USUAL[0], USUAL[1]]);
    put(&site, &DEVICE.parsed("z-old.tsv"), &other, 50);
    put(&site, &DEVICE.parsed("a-last.tsv"), &usual(), 10);
    put(&site, &DEVICE.parsed("later.tsv"), &other, 1);
    let file = ingest(&site, "b.tsv", &other, 5);
    let expected = changes(4, Some("04000466 B W"), None);
    assert_eq!(file["layout_changed"], expected);
}

#[test]
fn an_ordinary_call_does_not_write_the_state() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 5);
    let before = state_path(&site).metadata().expect("a state");
    for hours in [4, 3] {
        ingest(&site, &format!("{hours}.tsv"), &usual(), hours);
    }
    let after = state_path(&site).metadata().expect("a state");
    assert_eq!(before.ino(), after.ino());
    assert_eq!(
        (before.mtime(), before.mtime_nsec()),
        (after.mtime(), after.mtime_nsec())
    );
}

#[test]
fn a_dry_run_compares_and_writes_nothing() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 5);
    let state = std::fs::read(state_path(&site)).expect("a state");
    let other = file([USUAL[0], USUAL[1]]);
    put(&site, &DEVICE.file("b.tsv"), &other, 4);
    put(&site, &DEVICE.file("c.tsv"), &other, 3);
    put(&site, "acme/site/new/a.tsv", &usual(), 3);
    let run = site.call().arg("--dry-run").run().expect(0);
    let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let found: Vec<_> = report["files"]
        .as_array()
        .expect("files")
        .iter()
        .map(|file| file["layout_changed"].clone())
        .collect();
    let change = changes(4, Some("04000466 B W"), None);
    // The second one is equal to the first, and the third belongs to another device.
    assert_eq!(found.iter().filter(|found| **found == change).count(), 1);
    assert_eq!(found.iter().filter(|found| found.is_null()).count(), 2);
    assert_eq!(std::fs::read(state_path(&site)).expect("a state"), state);
    assert!(!site.exists(format!("acme/site/new/{LAYOUT_FILE}")));
}

#[test]
fn a_file_that_fails_is_compared_but_not_remembered() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 5);
    let other = table([USUAL[0], USUAL[1]], &[["x", "y"]; 3]);
    let failed = ingest(&site, "b.tsv", &other, 4);
    assert_eq!(failed["status"], "error");
    let expected = changes(4, Some("04000466 B W"), None);
    assert_eq!(failed["layout_changed"], expected);
    assert_eq!(layout_problems(&site), [""; 0]);
    let next = ingest(&site, "c.tsv", &usual(), 3);
    assert_eq!(next["layout_changed"], Value::Null);
}

#[test]
fn a_header_that_is_cut_off_is_no_change() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 5);
    let text = usual();
    let label = text.find("B W").expect("a label");
    let file = ingest(&site, "b.tsv", &text[..=label], 4);
    assert_eq!(file["status"], "error");
    assert_eq!(file["layout_changed"], Value::Null);
    let more = format!("{text}{}", &text[..=label]);
    let file = ingest(&site, "c.tsv", &more, 3);
    assert_eq!(file["status"], "success");
    assert_eq!(file["layout_changed"], Value::Null);
}

#[test]
fn files_are_compared_in_the_order_of_their_uploads() {
    let site = Site::new();
    let (old, new) = (usual(), file([USUAL[0], USUAL[1]]));
    let change = changes(4, Some("04000466 B W"), None);
    let change_back = changes(4, None, Some("04000466 B W"));
    ingest(&site, "01.tsv", &old, 100);
    ingest(&site, "02.tsv", &new, 50);
    // Files from before and after the change that come late.
    let late = ingest(&site, "03.tsv", &old, 80);
    assert_eq!(late["layout_changed"], Value::Null);
    let late = ingest(&site, "04.tsv", &new, 40);
    assert_eq!(late["layout_changed"], Value::Null);
    // One that was the first with the new layout, and then the change is not new any more.
    let first = ingest(&site, "05.tsv", &new, 60);
    assert_eq!(first["layout_changed"], change);
    let late = ingest(&site, "06.tsv", &new, 55);
    assert_eq!(late["layout_changed"], Value::Null);
    assert_eq!(layout_problems(&site).len(), 1);
    // An episode in the past.
    let late = ingest(&site, "07.tsv", &old, 45);
    assert_eq!(late["layout_changed"], change_back);
    let late = ingest(&site, "08.tsv", &old, 44);
    assert_eq!(late["layout_changed"], Value::Null);
    // What follows it is compared with what is really before it.
    let last = ingest(&site, "09.tsv", &new, 1);
    assert_eq!(last["layout_changed"], Value::Null, "{last:#}");
    let late = ingest(&site, "10.tsv", &new, 42);
    assert_eq!(late["layout_changed"], change);
}

#[test]
fn replaying_parsed_gives_the_same_results_in_any_order() {
    let site = Site::new();
    let (old, new) = (usual(), file([USUAL[0], USUAL[1]]));
    let uploads = [
        ("a", &old),
        ("b", &old),
        ("c", &new),
        ("d", &new),
        ("e", &old),
    ];
    let mut expected = Vec::new();
    for (number, (name, text)) in uploads.iter().enumerate() {
        let hours = 60 - 10 * number as u64;
        let file = ingest(&site, &format!("{name}.tsv"), text, hours);
        expected.push(file["layout_changed"].clone());
    }
    assert_eq!(expected.iter().filter(|found| !found.is_null()).count(), 2);
    let problems = layout_problems(&site);
    let state = std::fs::read(state_path(&site)).expect("a state");
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
        for at in order {
            let path = DEVICE.parsed(format!("{}.tsv", uploads[at].0));
            let file = named(&site, &path);
            assert_eq!(file["layout_changed"], expected[at], "{path} of {order:?}");
        }
        let now = std::fs::read(state_path(&site)).expect("a state");
        assert_eq!(now, state, "{order:?}");
    }
    // Without what was remembered, each is compared with its predecessor in parsed/, and the end is the same.
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
        std::fs::remove_file(state_path(&site)).expect("removed");
        for at in order {
            let path = DEVICE.parsed(format!("{}.tsv", uploads[at].0));
            let file = named(&site, &path);
            assert_eq!(file["layout_changed"], expected[at], "{path} of {order:?}");
        }
        assert_eq!(layout_problems(&site), problems, "{order:?}");
    }
}

#[test]
fn late_files_with_many_changes_are_all_compared() {
    let site = Site::new();
    ingest(&site, "last.tsv", &usual(), 1);
    let name = |number: u64| format!("{number:02}.tsv");
    for number in 0..40 {
        let text = file([USUAL[0], (MASTER, &format!("C{number} W"))]);
        put(&site, &DEVICE.file(name(number)), &text, 100 - number);
    }
    site.lp_run().ok();
    let report = site.reports().pop().expect("a report");
    let column = |number: u64| format!("02001171 C{number} W");
    assert_eq!(file_of(&report, &name(0))["layout_changed"], Value::Null);
    for number in 1..40 {
        let expected = changes(3, Some(&column(number - 1)), Some(&column(number)));
        let file = file_of(&report, &name(number));
        assert_eq!(file["layout_changed"], expected, "{number}");
    }
    let last = named(&site, &DEVICE.parsed("last.tsv"));
    assert_eq!(
        last["layout_changed"],
        json!([
            {"column": 3, "before": "02001171 C39 W", "after": "02001171 A W"},
            {"column": 4, "before": null, "after": "04000466 B W"},
        ])
    );
}

#[test]
fn without_what_was_remembered_old_files_say_nothing_of_the_last_layout() {
    // More uploads than are read again.
    let site = Site::new();
    let [old, new] = ["C0 W", "C1 W"].map(|column| file([USUAL[0], (MASTER, column)]));
    for number in 0..20 {
        let text = if number < 5 { &old } else { &new };
        put(
            &site,
            &DEVICE.file(format!("{number:02}.tsv")),
            text,
            100 - number,
        );
    }
    site.lp_run().ok();
    std::fs::remove_file(state_path(&site)).expect("removed");
    for name in ["00.tsv", "02.tsv"] {
        let file = named(&site, &DEVICE.parsed(name));
        assert_eq!(file["layout_changed"], Value::Null, "{name}");
    }
    assert_eq!(
        ingest(&site, "20.tsv", &new, 10)["layout_changed"],
        Value::Null
    );
    let change = changes(3, Some("02001171 C0 W"), Some("02001171 C1 W"));
    assert_eq!(
        named(&site, &DEVICE.parsed("05.tsv"))["layout_changed"],
        change
    );
}

#[test]
fn without_what_was_remembered_the_last_table_of_the_upload_before_counts() {
    let site = Site::new();
    let [old, new] = ["C0 W", "C1 W"].map(|column| file([USUAL[0], (MASTER, column)]));
    ingest(&site, "a.tsv", &format!("{old}{new}"), 9);
    std::fs::remove_file(state_path(&site)).expect("removed");
    let next = ingest(&site, "b.tsv", &new, 8);
    assert_eq!(next["layout_changed"], Value::Null);
}

#[test]
fn a_retried_file_is_compared_with_the_upload_before_it() {
    let site = Site::new();
    let (old, new) = (usual(), file([USUAL[0], USUAL[1]]));
    ingest(&site, "a.tsv", &old, 10);
    ingest(&site, "c.tsv", &new, 5);
    for (name, text, expected) in [
        ("b1.tsv", &old, Value::Null),
        ("b2.tsv", &new, changes(4, Some("04000466 B W"), None)),
    ] {
        put(&site, &DEVICE.error(name), text, 7);
        let sidecar = json!({"error": "no server", "retryable": true, "time": "t", "run_id": "r"});
        site.put(DEVICE.sidecar(name), sidecar.to_string());
        site.lp_run().arg("--retry-errors").ok();
        let file = &site.reports().pop().expect("a report")["files"][0];
        assert_eq!(file["layout_changed"], expected, "{name}");
    }
    let next = ingest(&site, "d.tsv", &new, 1);
    assert_eq!(next["layout_changed"], Value::Null);
}

#[test]
fn a_sweep_compares_all_files_of_a_device() {
    let site = Site::new();
    let (old, new) = (usual(), file([USUAL[0], USUAL[1]]));
    for number in 0..200_u64 {
        let text = if number < 150 { &old } else { &new };
        put(
            &site,
            &DEVICE.file(format!("{number:03}.tsv")),
            text,
            300 - number,
        );
    }
    site.lp_run().ok();
    let report = site.report();
    let files = report["files"].as_array().expect("files");
    let changed: Vec<_> = files
        .iter()
        .filter(|file| !file["layout_changed"].is_null())
        .map(|file| file["file_path"].as_str().expect("a path"))
        .collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert!(changed[0].ends_with("/150.tsv"), "{changed:?}");
}

#[test]
fn a_change_within_a_file_is_reported_and_the_last_table_is_remembered() {
    let site = Site::new();
    let (old, new) = (usual(), file([USUAL[0], USUAL[1]]));
    let change = changes(4, Some("04000466 B W"), None);
    let both = ingest(&site, "a.tsv", &format!("{old}{new}"), 9);
    assert_eq!(both["layout_changed"], change);
    assert_eq!(layout_problems(&site).len(), 1);
    acknowledge(&site, DEVICE.0).expect(0);
    let next = ingest(&site, "b.tsv", &new, 8);
    assert_eq!(next["layout_changed"], Value::Null);
    // To another layout and back.
    let other = file([USUAL[0], (MASTER, "A kW")]);
    let episode = ingest(&site, "c.tsv", &format!("{new}{other}{new}"), 7);
    assert_eq!(
        episode["layout_changed"],
        json!([
            {"column": 3, "before": "02001171 A W", "after": "02001171 A kW"},
            {"column": 3, "before": "02001171 A kW", "after": "02001171 A W"},
        ])
    );
    assert_eq!(layout_problems(&site).len(), 1);
    let next = ingest(&site, "d.tsv", &new, 6);
    assert_eq!(next["layout_changed"], Value::Null);
    // Headed documents too.
    let json = r#"{"DataTimeSettings":"UTC"}"#;
    let two = headed(json, &new) + &headed(json, &old);
    let two = ingest(&site, "e.tsv", &two, 5);
    assert_eq!(
        two["layout_changed"],
        changes(4, None, Some("04000466 B W"))
    );
    // Equal header pairs are none.
    let twice = ingest(&site, "f.tsv", &format!("{old}{old}"), 4);
    assert_eq!(twice["layout_changed"], Value::Null);
}

/// A headed file whose header says `master_type`, with these numbers of voltages of master and slave.
fn with_master_type(json: &str, master: usize, slave: usize) -> String {
    let mut columns = vec![(MASTER, "Voie1 W".to_owned())];
    columns.extend((1..=master).map(|n| (MASTER, format!("Ph {n} V"))));
    columns.extend((1..=slave).map(|n| (SLAVE, format!("Ph {n} V"))));
    let cells = |text: &dyn Fn(&(&str, String)) -> String| {
        let cells: Vec<_> = columns.iter().map(text).collect();
        cells.join("\t")
    };
    let table = format!(
        "{MASTER}\t{}\nMV_T302_V003\t{}\n03/08/25 03:20:00\t{}\n",
        cells(&|(serial, _)| (*serial).to_owned()),
        cells(&|(_, label)| label.clone()),
        cells(&|_| "1.5".to_owned()),
    );
    headed(json, &table)
}

#[test]
fn the_number_of_voltages_must_fit_the_type_of_the_master() {
    let header =
        |master_type: &str| format!(r#"{{"DataTimeSettings":"UTC","MasterType":"{master_type}"}}"#);
    let broken = r#"{"DataTimeSettings":"UTC","MasterType":"Tri",}"#.to_owned();
    for (json, master, slave, is_suspect) in [
        (header("Tri"), 3, 0, false),
        (header("Tri"), 4, 0, false),
        (header("Tri"), 1, 0, true),
        (header("tRI"), 2, 3, true),
        (header("Tri"), 0, 0, true),
        (header("Mono"), 1, 0, false),
        (header("Mono"), 2, 0, false),
        (header("Mono"), 1, 3, false),
        (header("Mono"), 3, 0, true),
        (header("MONO"), 3, 0, true),
        (header("Bi"), 3, 0, false),
        (header("Bi"), 1, 0, false),
        (broken, 1, 0, true),
        (r#"{"DataTimeSettings":"UTC"}"#.to_owned(), 1, 0, false),
        (
            r#"{"DataTimeSettings":"UTC","MasterType":3}"#.to_owned(),
            1,
            0,
            false,
        ),
    ] {
        let site = Site::new();
        let text = with_master_type(&json, master, slave);
        let file = ingest(&site, "a.tsv", &text, 3);
        assert_eq!(file["status"], "success", "{file:#}");
        let reasons = file["layout_suspect"].as_array().map_or(0, Vec::len);
        assert_eq!(reasons, usize::from(is_suspect), "{json} {master} {slave}");
        if is_suspect {
            let reason = file["layout_suspect"][0].as_str().expect("a text");
            assert!(reason.starts_with("MasterType is "), "{reason}");
        }
        assert_eq!(layout_problems(&site).len(), reasons, "{json}");
    }
}

#[test]
fn the_type_of_the_master_is_that_of_each_document() {
    let document = |master_type: &str, voltages| {
        let json = format!(r#"{{"DataTimeSettings":"UTC","MasterType":"{master_type}"}}"#);
        with_master_type(&json, voltages, 0)
    };
    let site = Site::new();
    for (name, text, reasons) in [
        ("a.tsv", document("Tri", 3) + &document("Mono", 1), 0),
        ("b.tsv", document("Mono", 1) + &document("Tri", 1), 1),
        ("c.tsv", document("Tri", 1) + &document("Mono", 1), 1),
        // A plain document after a headed one has no type.
        ("d.tsv", document("Mono", 1) + &usual(), 0),
    ] {
        let file = ingest(&site, name, &text, 3);
        let found = file["layout_suspect"].as_array().map_or(0, Vec::len);
        assert_eq!(found, reasons, "{name}: {file:#}");
    }
}

#[test]
fn a_power_with_the_values_of_a_voltage_is_suspect() {
    let columns = [(MASTER, "Ph 1 V"), (MASTER, "Ph 2 V"), (MASTER, "A W")];
    let usual = ["240", "200", "240"];
    let with = |row: [&'static str; 3]| [usual, usual, row, usual, usual, usual];
    let suspect = |rows: &[[&str; 3]]| {
        let site = Site::new();
        let file = ingest(&site, "a.tsv", &table(columns, rows), 3);
        assert_eq!(file["status"], "success");
        file["layout_suspect"].clone()
    };
    let reason =
        json!(["column 4 \"02001171 A W\" is in W, but its values are those of a voltage"]);
    // Five percent of either voltage: 228 to 252, and 190 to 210.
    for value in ["228", "252", "190", "210", "240.0"] {
        assert_eq!(suspect(&with(["240", "200", value])), reason, "{value}");
    }
    for value in ["227.9", "252.1", "189.9", "210.1", "0", "-240", "219"] {
        assert_eq!(
            suspect(&with(["240", "200", value])),
            Value::Null,
            "{value}"
        );
    }
    // Five rows are too few, and rows without a voltage or a value do not count.
    assert_eq!(suspect(&[usual; 5]), Value::Null);
    assert_eq!(suspect(&[usual; 6]), reason);
    for row in [
        ["0", "0", "240"],
        ["0", "0", "0"],
        ["", "NaN", "7"],
        ["240", "200", ""],
        ["240", "200", "x"],
    ] {
        let six = with(row);
        assert_eq!(suspect(&six), Value::Null, "{row:?}");
        let seven = [&six[..], &[usual]].concat();
        assert_eq!(suspect(&seven), reason, "{row:?}");
    }
    // A power cut of all rows is no evidence.
    assert_eq!(suspect(&[["0", "0", "0"]; 20]), Value::Null);
}

#[test]
fn a_power_with_the_values_of_a_voltage_is_suspect_although_the_phase_fails_later() {
    let columns = [(MASTER, "Ph 1 V"), (MASTER, "A W"), (MASTER, "B W")];
    let suspect = |good: usize| {
        let mut rows = vec![["240.5", "239.9", "31.5"]; good];
        rows.extend([["240.5", "6.9", "31.5"]; 100]);
        let site = Site::new();
        let file = ingest(&site, "a.tsv", &table(columns, &rows), 3);
        assert_eq!(file["nb_points"], 3 * (good + 100));
        file["layout_suspect"].clone()
    };
    assert_eq!(suspect(999), Value::Null);
    assert_eq!(
        suspect(1_000),
        json!(["column 3 \"02001171 A W\" is in W, but its values are those of a voltage"])
    );
}

#[test]
fn only_powers_are_compared_with_voltages() {
    for label in ["A V", "A kW", "A", "W", "A VA"] {
        let site = Site::new();
        let columns = [(MASTER, "Ph 1 V"), (MASTER, label)];
        let file = ingest(&site, "a.tsv", &table(columns, &[["240", "240"]; 9]), 3);
        assert_eq!(file["layout_suspect"], Value::Null, "{label}");
    }
}

#[test]
fn a_single_phase_header_on_a_three_phase_logger_is_suspect() {
    let Some(dir) = samples() else { return };
    let name = "company1/campaign1/02001084/T302_251012_031720.tsv";
    let text = std::fs::read_to_string(dir.join(name)).expect("a sample");
    let site = Site::new();
    let good = ingest(&site, "a.tsv", &text, 5);
    assert_eq!(good["layout_suspect"], Value::Null);
    let wrong = text.replacen("\tPh 2 V\tPh 3 V\t", "\tVoie1 W\tVoie2 W\t", 1);
    assert_ne!(wrong, text);
    put(&site, &DEVICE.file("b.tsv"), &wrong, 4);
    let run = site.lp_run().ok();
    for cause in [
        "layout changed in 2 columns: ",
        "layout contradicts itself: ",
    ] {
        assert_eq!(run.stderr.matches(cause).count(), 1, "{}", run.stderr);
    }
    let file = &site.reports()[1]["files"][0];
    assert_eq!(
        file["layout_changed"],
        json!([
            {"column": 3, "before": "02001171 Ph 2 V", "after": "02001171 Voie1 W"},
            {"column": 4, "before": "02001171 Ph 3 V", "after": "02001171 Voie2 W"},
        ])
    );
    assert_eq!(
        file["layout_suspect"],
        json!([
            "column 3 \"02001171 Voie1 W\" is in W, but its values are those of a voltage",
            "column 4 \"02001171 Voie2 W\" is in W, but its values are those of a voltage",
        ])
    );
    assert_eq!(layout_problems(&site).len(), 2);
}

#[test]
fn no_sample_is_suspect() {
    let Some(dir) = samples() else { return };
    let site = Site::new();
    let mut files = 0;
    for entry in walkdir::WalkDir::new(&dir) {
        let entry = entry.expect("an entry");
        if entry.path().extension().is_some_and(|e| e == "tsv") {
            let path = entry.path().strip_prefix(&dir).expect("below");
            site.put_old(path, std::fs::read(entry.path()).expect("a sample"));
            files += 1;
        }
    }
    site.lp_run().run().expect(1);
    let report = site.report();
    let reported = report["files"].as_array().expect("files");
    assert_eq!(reported.len(), files);
    for file in reported {
        assert_eq!(file["layout_suspect"], Value::Null, "{file:#}");
        assert_eq!(file["layout_changed"], Value::Null, "{file:#}");
    }
}

#[test]
fn a_suspicion_ends_with_a_later_file_that_is_consistent() {
    let site = Site::new();
    let columns = [(MASTER, "Ph 1 V"), (MASTER, "A W")];
    let consistent = table(columns, &[["240", "31"]; 6]);
    ingest(&site, "a.tsv", &like_voltages(), 10);
    assert_eq!(layout_problems(&site).len(), 1);
    // Too few rows prove nothing, nor does an earlier upload.
    ingest(&site, "b.tsv", &table(columns, &[["240", "240"]; 5]), 9);
    ingest(&site, "c.tsv", &consistent, 11);
    assert_eq!(layout_problems(&site).len(), 1);
    ingest(&site, "d.tsv", &consistent, 8);
    assert_eq!(layout_problems(&site), [""; 0]);
    // A suspect file that was uploaded before it does not raise the suspicion again.
    ingest(&site, "e.tsv", &like_voltages(), 9);
    assert_eq!(layout_problems(&site), [""; 0]);
    ingest(&site, "f.tsv", &like_voltages(), 7);
    assert_eq!(layout_problems(&site).len(), 1);
}

#[test]
fn an_acknowledged_suspicion_is_raised_again_only_if_it_differs() {
    let site = Site::new();
    ingest(&site, "a.tsv", &like_voltages(), 10);
    let run = acknowledge(&site, DEVICE.0).expect(0);
    assert!(run.stdout.contains("acme/site/02001171"), "{}", run.stdout);
    assert!(
        run.stdout.contains("column 3 \"02001171 A W\""),
        "{}",
        run.stdout
    );
    assert_eq!(layout_problems(&site), [""; 0]);
    let run = acknowledge(&site, DEVICE.0).expect(1);
    assert!(
        run.stderr.contains("nothing to acknowledge"),
        "{}",
        run.stderr
    );
    // The same again, also after a consistent file, stays acknowledged. The report still has it.
    let columns = [(MASTER, "Ph 1 V"), (MASTER, "A W")];
    ingest(&site, "b.tsv", &table(columns, &[["240", "31"]; 6]), 9);
    put(&site, &DEVICE.file("c.tsv"), &like_voltages(), 8);
    let run = site.lp_run().ok();
    assert!(!run.stderr.contains("contradicts"), "{}", run.stderr);
    let file = &site.reports()[2]["files"][0];
    assert_eq!(file["layout_suspect"].as_array().map(Vec::len), Some(1));
    assert_eq!(layout_problems(&site), [""; 0]);
    // Another reason with the same layout.
    let json = r#"{"DataTimeSettings":"UTC","MasterType":"Tri"}"#;
    ingest(&site, "d.tsv", &headed(json, &like_voltages()), 7);
    assert_eq!(layout_problems(&site).len(), 1);
    acknowledge(&site, DEVICE.0).expect(0);
    assert_eq!(layout_problems(&site), [""; 0]);
    // Another layout with a reason of the same kind.
    let other = like_voltages().replace("A W", "B W");
    ingest(&site, "e.tsv", &other, 6);
    let problems = layout_problems(&site);
    assert_eq!(
        problems.len(),
        2,
        "the change, and the suspicion: {problems:?}"
    );
}

#[test]
fn the_same_contradiction_of_another_layout_is_raised_again() {
    let site = Site::new();
    let json = r#"{"DataTimeSettings":"UTC","MasterType":"Tri"}"#;
    let first = ingest(&site, "a.tsv", &with_master_type(json, 1, 0), 10);
    acknowledge(&site, DEVICE.0).expect(0);
    let second = ingest(&site, "b.tsv", &with_master_type(json, 1, 1), 9);
    assert_eq!(first["layout_suspect"], second["layout_suspect"]);
    assert_eq!(
        layout_problems(&site).len(),
        2,
        "the change, and the suspicion"
    );
}

#[test]
fn a_change_can_be_acknowledged_and_the_next_one_is_shown() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 10);
    ingest(&site, "b.tsv", &file([USUAL[0], USUAL[1]]), 9);
    acknowledge(&site, DEVICE.0).expect(0);
    assert_eq!(layout_problems(&site), [""; 0]);
    ingest(&site, "c.tsv", &usual(), 8);
    assert_eq!(layout_problems(&site).len(), 1);
}

#[test]
fn a_device_is_acknowledged_by_any_path_that_leads_to_it() {
    for form in [
        "relative",
        "absolute",
        "working directory",
        "link",
        "parsed",
    ] {
        let site = Site::new();
        ingest(&site, "a.tsv", &like_voltages(), 10);
        let call = status(&site).arg("--acknowledge");
        let run = match form {
            "relative" => call.arg("acme/site/../site/02001171/"),
            "absolute" => call.arg(site.path(DEVICE.0)),
            "working directory" => call.arg(".").cwd(site.path(DEVICE.0)),
            "link" => {
                let link = site.dir.path().join("link");
                std::os::unix::fs::symlink(site.path("acme"), &link).expect("a link");
                call.arg(link.join("site/02001171"))
            }
            _ => {
                let run = call.arg(DEVICE.parsed("")).run().expect(2);
                assert!(run.stderr.contains("not a device folder"), "{}", run.stderr);
                continue;
            }
        };
        run.run().expect(0);
        assert_eq!(layout_problems(&site), [""; 0], "{form}");
    }
}

#[test]
fn several_devices_are_acknowledged_in_one_call() {
    let site = Site::new();
    for device in ["acme/site/1", "acme/site/2"] {
        put(&site, &format!("{device}/a.tsv"), &like_voltages(), 3);
    }
    site.lp_run().ok();
    assert_eq!(layout_problems(&site).len(), 2);
    let both = [
        "--acknowledge",
        "acme/site/1",
        "--acknowledge",
        "acme/site/2",
    ];
    let run = status(&site).args(both).run().expect(0);
    assert_eq!(run.stdout.lines().count(), 2, "{}", run.stdout);
    assert_eq!(layout_problems(&site), [""; 0]);
}

#[test]
fn what_is_no_device_cannot_be_acknowledged() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 3);
    std::fs::create_dir_all(site.dir.path().join("a/b/c")).expect("folders");
    for path in ["acme", "acme/site", "acme/site/0", "..", "../a/b/c", "/"] {
        let run = acknowledge(&site, path).expect(2);
        assert!(run.stderr.contains("not a device folder"), "{}", run.stderr);
    }
    let run = acknowledge(&site, DEVICE.0).expect(1);
    assert!(
        run.stderr.contains("nothing to acknowledge"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_device_that_is_locked_is_not_acknowledged() {
    let site = Site::new();
    ingest(&site, "a.tsv", &like_voltages(), 3);
    let folder = std::fs::File::open(site.path(DEVICE.0)).expect("a folder");
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
    let call = status(&site).args(["--acknowledge", DEVICE.0]);
    let run = call.env("TSV_LOCK_WAIT_S", "0").run().expect(1);
    assert!(
        run.stderr.contains("is locked by process"),
        "{}",
        run.stderr
    );
    drop(folder);
    acknowledge(&site, DEVICE.0).expect(0);
}

#[test]
fn meta_points_say_what_changed_and_what_is_suspect_until_it_is_acknowledged() {
    let site = Site::new();
    let double = Double::start();
    let fields = |name: &str, text: &str, hours| {
        put(&site, &DEVICE.file(name), text, hours);
        double.forget_requests();
        site.run_to(&double).ok();
        let points = double.points("powerview_meta");
        let point = points
            .into_iter()
            .filter(|p| p.measurement == "tsv_parser_file")
            .max_by_key(|point| point.time)
            .expect("a point");
        ["layout_changed", "layout_suspect"].map(|key| match &point.fields[key] {
            Field::Text(text) => text.clone(),
            other => panic!("{key}: {other:?}"),
        })
    };
    assert_eq!(fields("a.tsv", &usual(), 9), ["", ""]);
    let [changed, suspect] = fields("b.tsv", &like_voltages(), 8);
    assert_eq!(changed, "column 4 is gone: \"04000466 B W\"");
    assert_eq!(
        suspect,
        "column 3 \"02001171 A W\" is in W, but its values are those of a voltage"
    );
    let [changed, suspect] = fields("c.tsv", &like_voltages(), 7);
    assert_eq!((changed.as_str(), suspect.is_empty()), ("", false));
    acknowledge(&site, DEVICE.0).expect(0);
    assert_eq!(fields("d.tsv", &like_voltages(), 6), ["", ""]);
}

#[test]
fn a_change_outlives_a_kill_at_any_moment() {
    let new = file([USUAL[0], USUAL[1]]);
    for moment in 0..24 {
        let site = Site::new();
        ingest(&site, "a.tsv", &usual(), 9);
        put(&site, &DEVICE.file("b.tsv"), &new, 8);
        let run = site.lp_run().start();
        std::thread::sleep(Duration::from_micros(moment * 1_000));
        run.kill();
        site.lp_run().ok();
        assert!(site.exists(DEVICE.parsed("b.tsv")), "{moment}");
        let file = ingest(&site, "c.tsv", &new, 7);
        assert_eq!(file["layout_changed"], Value::Null, "{moment}");
        assert_eq!(layout_problems(&site).len(), 1, "{moment}");
    }
}

#[test]
fn a_run_that_was_killed_before_the_move_reports_the_change_again() {
    let site = Site::new();
    let change = changes(4, Some("04000466 B W"), None);
    ingest(&site, "a.tsv", &usual(), 9);
    let new = file([USUAL[0], USUAL[1]]);
    let old_state = std::fs::read(state_path(&site)).expect("a state");
    assert_eq!(ingest(&site, "b.tsv", &new, 8)["layout_changed"], change);
    site.rename(DEVICE.parsed("b.tsv"), DEVICE.file("b.tsv"));
    let again = named(&site, &DEVICE.file("b.tsv"));
    assert_eq!(again["layout_changed"], change);
    // A state that is older than the files heals with the next file.
    std::fs::write(state_path(&site), old_state).expect("written");
    assert_eq!(ingest(&site, "c.tsv", &new, 7)["layout_changed"], change);
    let next = ingest(&site, "d.tsv", &new, 6);
    assert_eq!(next["layout_changed"], Value::Null);
}

/// Replaces the state of a device with one file, ingests two more, and checks that nothing depends on it.
fn check_hostile_state(what: &str, make: impl Fn(&Site, &std::path::Path)) {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 9);
    let path = state_path(&site);
    std::fs::remove_file(&path).expect("removed");
    make(&site, &path);
    status(&site).run().clean();
    let started = SystemTime::now();
    let new = file([USUAL[0], USUAL[1]]);
    let file = ingest(&site, "b.tsv", &new, 8);
    assert_eq!(file["status"], "success", "{what}");
    let change = changes(4, Some("04000466 B W"), None);
    assert_eq!(file["layout_changed"], change, "{what}: parsed/ shows it");
    let file = ingest(&site, "c.tsv", &new, 7);
    assert_eq!(file["layout_changed"], Value::Null, "{what}");
    let took = started.elapsed().expect("a duration");
    assert!(took < Duration::from_secs(20), "{what}: {took:?}");
    status(&site).run().clean();
}

#[test]
fn a_hostile_state_is_no_state() {
    check_hostile_state("binary", |_, path| {
        std::fs::write(path, b"\xff\0\x1b[2J").expect("written");
    });
    check_hostile_state("empty", |_, path| {
        std::fs::write(path, "").expect("written");
    });
    check_hostile_state("other JSON", |_, path| {
        std::fs::write(path, r#"{"history":[{"since":"x"}]}"#).expect("written");
    });
    check_hostile_state("deep JSON", |_, path| {
        std::fs::write(path, "[".repeat(100_000)).expect("written");
    });
    check_hostile_state("sparse, 1 TiB", |_, path| {
        let file = std::fs::File::create(path).expect("created");
        file.set_len(1 << 40).expect("sized");
    });
    check_hostile_state("a symbolic link", |site, path| {
        let target = site.dir.path().join("target");
        std::fs::write(&target, r#"{"history":[]}"#).expect("written");
        std::os::unix::fs::symlink(target, path).expect("a link");
    });
    check_hostile_state("a pipe", |_, path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).expect("a pipe");
    });
    check_hostile_state("a folder", |_, path| {
        std::fs::create_dir(path).expect("a folder");
        std::fs::write(path.join("x"), "").expect("written");
    });
}

/// The layout of a file with these columns, as it is remembered.
fn remembered<const N: usize>(columns: [(&str, &str); N]) -> Value {
    json!({"master": MASTER, "columns": columns.to_vec()})
}

/// Nanoseconds from 1970 to a number of days from now.
fn days_from_now(days: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("now").as_nanos() as i64 + days * 24 * 3600 * 1_000_000_000
}

/// States that would show a layout for ever, or hide changes for ever.
fn states_of_the_future() -> Vec<(&'static str, Value)> {
    let [usual, other] = [remembered(USUAL), remembered([USUAL[0]])];
    let mut states = Vec::new();
    for since in [i64::MAX, days_from_now(30)] {
        states.push((
            "a change",
            json!({"history": [{"since": 0, "layout": other}, {"since": since, "layout": usual}]}),
        ));
        states.push((
            "a suspicion",
            json!({
                "history": [{"since": 0, "layout": usual}],
                "suspicion": {"file": "x.tsv", "since": since, "layout": usual, "reasons": ["x"]},
            }),
        ));
        states.push((
            "an acknowledgement",
            json!({
                "history": [{"since": 0, "layout": usual}],
                "acknowledged": {"changes_until": since, "layout": usual, "reasons": ["x"]},
            }),
        ));
    }
    states
}

#[test]
fn a_state_from_the_future_is_said_and_replaced() {
    let text = "the remembered layouts cannot be read, so changes may not be shown: its content is not valid";
    for (what, state) in states_of_the_future() {
        let site = Site::new();
        ingest(&site, "a.tsv", &usual(), 9);
        std::fs::write(state_path(&site), state.to_string()).expect("written");
        assert_eq!(layout_problems(&site), [text], "{what}");
        let run = acknowledge(&site, DEVICE.0).expect(1);
        assert!(
            run.stderr.contains("its content is not valid; remove it"),
            "{}",
            run.stderr
        );
        put(&site, &DEVICE.file("b.tsv"), &usual(), 8);
        let run = site.lp_run().ok();
        let warnings = run
            .stderr
            .matches("cannot read the layouts of the device")
            .count();
        assert_eq!(warnings, 1, "{what}: {}", run.stderr);
        assert_eq!(layout_problems(&site), [""; 0], "{what}");
        // A change is shown.
        let change = changes(4, Some("04000466 B W"), None);
        let file = ingest(&site, "c.tsv", &file([USUAL[0], USUAL[1]]), 7);
        assert_eq!(file["layout_changed"], change, "{what}");
        assert_eq!(layout_problems(&site).len(), 1, "{what}");
    }
}

#[test]
fn a_state_that_repeats_a_layout_shows_no_change() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 9);
    let held = |days| json!({"since": days_from_now(days), "layout": remembered(USUAL)});
    let state = json!({"history": [held(-1), held(-2), held(1)]});
    std::fs::write(state_path(&site), state.to_string()).expect("written");
    assert_eq!(layout_problems(&site), [""; 0]);
    let file = ingest(&site, "b.tsv", &usual(), 1);
    assert_eq!(file["layout_changed"], Value::Null);
    assert_eq!(layout_problems(&site), [""; 0]);
}

#[test]
fn what_is_no_valid_state_is_a_problem_and_a_warning() {
    let size = |path: &std::path::Path| {
        let file = std::fs::File::create(path).expect("created");
        file.set_len(1 << 40).expect("sized");
    };
    type Make<'a> = &'a dyn Fn(&std::path::Path);
    let states: [(&str, Make<'_>); 4] = [
        ("its content is not valid", &|path| {
            std::fs::write(path, "{}x").expect("written");
        }),
        ("it is longer than 1048576 bytes", &size),
        ("it is a symbolic link", &|path| {
            std::os::unix::fs::symlink("/etc/passwd", path).expect("a link");
        }),
        ("it is a folder", &|path| {
            std::fs::create_dir(path).expect("a folder");
        }),
    ];
    for (reason, make) in states {
        let site = Site::new();
        ingest(&site, "a.tsv", &usual(), 9);
        std::fs::remove_file(state_path(&site)).expect("removed");
        make(&state_path(&site));
        let problems = layout_problems(&site);
        assert!(
            problems.len() == 1 && problems[0].ends_with(reason),
            "{problems:?}"
        );
        put(&site, &DEVICE.file("b.tsv"), &file([USUAL[0], USUAL[1]]), 8);
        let run = site.lp_run().ok();
        let text = format!("cannot read the layouts of the device: {reason}; ");
        assert_eq!(run.stderr.matches(&text).count(), 1, "{}", run.stderr);
        let report = site.reports().pop().expect("a report");
        let change = changes(4, Some("04000466 B W"), None);
        assert_eq!(report["files"][0]["layout_changed"], change, "{reason}");
        // It is replaced, an empty folder too.
        assert!(
            state_path(&site)
                .symlink_metadata()
                .expect("a state")
                .is_file()
        );
        let problems = layout_problems(&site);
        assert!(
            problems.len() == 1 && problems[0].contains("changed in 1 column"),
            "{problems:?}"
        );
    }
}

#[test]
fn an_empty_folder_in_place_of_the_temporary_file_is_replaced() {
    let site = Site::new();
    site.make_dir(DEVICE.file(".powerview-layout.tmp"));
    ingest(&site, "a.tsv", &usual(), 9);
    assert!(state_path(&site).is_file());
    ingest(&site, "b.tsv", &file([USUAL[0], USUAL[1]]), 8);
    assert_eq!(layout_problems(&site).len(), 1);
}

#[test]
fn a_state_that_cannot_be_read_hides_no_other_problem() {
    let site = Site::new();
    site.put(DEVICE.error("bad.tsv"), "x");
    site.put(DEVICE.file(LAYOUT_FILE), "[");
    let run = status(&site).run().expect(1);
    for text in ["the remembered layouts", "1 file in error/"] {
        assert!(run.stdout.contains(text), "{}", run.stdout);
    }
    assert!(
        !run.stdout.contains("the folder cannot be read"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_state_that_cannot_be_written_is_a_warning() {
    let site = Site::new();
    site.put(DEVICE.file(format!("{LAYOUT_FILE}/x")), "");
    put(&site, &DEVICE.file("a.tsv"), &usual(), 3);
    let run = site.lp_run().ok();
    let text = "cannot write the layout of the device";
    assert_eq!(run.stderr.matches(text).count(), 1, "{}", run.stderr);
    assert!(site.exists(DEVICE.parsed("a.tsv")));
}

#[test]
fn a_link_in_place_of_the_state_is_replaced_and_not_written_through() {
    let site = Site::new();
    let target = site.dir.path().join("target");
    std::fs::write(&target, "precious").expect("written");
    site.link(&target, DEVICE.file(LAYOUT_FILE));
    site.link(&target, DEVICE.file(".powerview-layout.tmp"));
    ingest(&site, "a.tsv", &usual(), 3);
    assert_eq!(std::fs::read(&target).expect("read"), b"precious");
    let state = state_path(&site).symlink_metadata().expect("a state");
    assert!(state.is_file());
}

#[test]
fn what_a_hostile_state_says_is_shown_sanitized_and_short() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 3);
    let evil = format!("evil \u{1b}[2J\u{202e}\nok {}", "x".repeat(10_000));
    let layout = |label: &str| json!({"master": evil, "columns": vec![["1", label]; 50]});
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("now");
    let since = now.as_nanos() as i64 - 1_000;
    let state = json!({
        "history": [
            {"since": 0, "layout": layout("a")},
            {"since": since, "layout": layout(&evil)},
        ],
        "suspicion": {"file": evil, "since": 0, "layout": layout("a"), "reasons": [evil, evil]},
    });
    std::fs::write(state_path(&site), state.to_string()).expect("written");
    let run = status(&site).run().expect(1);
    // Five columns, the file and the first of the reasons.
    assert_eq!(run.stdout.matches("evil").count(), 7, "{}", run.stdout);
    assert!(!run.stdout.contains('\u{202e}'), "{}", run.stdout);
    assert!(
        run.stdout.lines().all(|line| line.len() < 2_500),
        "{}",
        run.stdout
    );
}

/// A file with a row of 4,000 channels, whose names have this length and end.
fn wide(length: usize, end: char) -> String {
    let labels: Vec<_> = (0..4_000)
        .map(|number| format!("{number:0length$}{end} W"))
        .collect();
    format!(
        "{}\nMV_T302_V002\t{}\n03/08/25 03:20:00{}\n",
        vec![MASTER; 4_001].join("\t"),
        labels.join("\t"),
        "\t1".repeat(4_000)
    )
}

#[test]
fn the_report_of_a_small_file_stays_small_after_a_large_header() {
    let site = Site::new();
    ingest(&site, "a.tsv", &wide(100, 'a'), 5);
    let file = ingest(&site, "b.tsv", &file([USUAL[0]]), 4);
    assert_eq!(file["layout_changed"].as_array().map(Vec::len), Some(32));
    let report = file.to_string();
    assert!(report.len() < 12_000, "{}", report.len());
}

#[test]
fn the_size_of_the_state_is_limited() {
    let site = Site::new();
    for (hours, end) in (1..=6).rev().zip('a'..) {
        let file = ingest(&site, &format!("{end}.tsv"), &wide(100, end), hours);
        assert_eq!(file["layout_changed"].is_null(), end == 'a', "{end}");
    }
    let size = state_path(&site).metadata().expect("a state").len();
    assert!((400_000..=1_048_576).contains(&size), "{size}");
}

#[test]
fn a_layout_that_is_too_large_for_the_state_is_compared_all_the_same() {
    let site = Site::new();
    for (hours, end) in [(3, 'a'), (2, 'b'), (1, 'b')] {
        let name = DEVICE.file(format!("{hours}.tsv"));
        put(&site, &name, &wide(250, end), hours);
        let run = site.lp_run().ok();
        let text = "cannot write the layout of the device";
        assert_eq!(run.stderr.matches(text).count(), 1, "{}", run.stderr);
        let file = &site.reports().pop().expect("a report")["files"][0];
        assert_eq!(file["layout_changed"].is_null(), hours != 2, "{hours}");
    }
    assert!(!state_path(&site).exists());
}

#[test]
fn labels_are_escaped_in_the_warning() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 5);
    put(
        &site,
        &DEVICE.file("b.tsv"),
        &usual().replace("A W", "A\u{202e}\u{200b} W"),
        4,
    );
    let run = site.lp_run().ok().clean();
    assert!(
        run.stderr.contains(r"A\u{202e}\u{200b} W"),
        "{}",
        run.stderr
    );
}

#[test]
fn neither_runs_nor_status_take_the_state_for_a_file() {
    let site = Site::new();
    ingest(&site, "a.tsv", &usual(), 30);
    age(&state_path(&site), 30 * 3600);
    put(&site, &DEVICE.file(".powerview-layout.tmp"), "{", 30);
    let run = site.lp_run().ok();
    let report = site.reports().pop().expect("a report");
    assert_eq!(report["nb_files_total"], 0, "{}", run.stderr);
    let run = status(&site)
        .args(["--json", "--silent-after", "100d"])
        .run();
    let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let problems = report["devices"][0]["problems"]
        .as_array()
        .expect("problems");
    let kinds: Vec<_> = problems.iter().map(|problem| &problem["kind"]).collect();
    assert_eq!(kinds, ["clock"], "the rows are old");
    assert!(state_path(&site).exists());
}

#[test]
fn a_state_that_root_writes_belongs_to_the_owner_of_the_device_folder() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let site = Site::new();
    put(&site, &DEVICE.file("a.tsv"), &usual(), 5);
    let Some(_) = site.call().unprivileged() else {
        return;
    };
    site.lp_run().ok();
    let owner = || state_path(&site).metadata().expect("a state").uid();
    assert_eq!(owner(), NOBODY);
    // The user of the hook goes on, and then root again acknowledges.
    put(&site, &DEVICE.file("b.tsv"), &like_voltages(), 4);
    site.lp_run().unprivileged().expect("as before").ok();
    assert_eq!(layout_problems(&site).len(), 2);
    acknowledge(&site, DEVICE.0).expect(0);
    assert_eq!((owner(), layout_problems(&site).len()), (NOBODY, 0));
}

#[test]
fn a_user_without_rights_is_told_so_and_acknowledges_nothing() {
    let site = Site::new();
    ingest(&site, "a.tsv", &like_voltages(), 5);
    let call = status(&site).args(["--acknowledge", DEVICE.0]);
    let Some(call) = call.unprivileged() else {
        return;
    };
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(site.path(DEVICE.0), Some(0), Some(0)).expect("chown");
    } else {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o555);
        std::fs::set_permissions(site.path(DEVICE.0), mode).expect("chmod");
    }
    let run = call.run().expect(1);
    assert!(
        run.stderr.contains("run as the user of the hook"),
        "{}",
        run.stderr
    );
    assert_eq!(layout_problems(&site).len(), 1);
}
