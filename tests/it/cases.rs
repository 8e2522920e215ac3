//! Layout changes, damage and times of logger files: which points, counters, warnings and errors each kind gives.
//!
//! The results are written by hand from the specification. The second reader is held against them too.

use crate::harness::{
    Call, DEVICE, FileBuilder, HEADER, Run, Site, age, file_of, good_file, headed, stored,
};
use crate::second_reader::{self, Point};
use crate::skipped::skipped;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const UTC: &str = r#"{"DataTimeSettings":"UTC","TimeZoneName":"Europe/Paris"}"#;

/// The channels of `HEADER`.
const VOLTAGE: &str = "M02001171_Ch1_M02001171";
const POWER: &str = "S04000466_Ch1_M02001171";

/// A file that was ingested into line protocol.
struct Ingested {
    run: Run,
    /// The file's entry in the report.
    file: Value,
    points: Vec<Point>,
}

/// Ingests a file and compares its points and counters with those of the second reader.
fn ingest(bytes: impl AsRef<[u8]>) -> Ingested {
    let ingested = ingest_with(bytes.as_ref(), &[]);
    let whole = second_reader::read_upload(
        bytes.as_ref(),
        "site",
        chrono_tz::Europe::Paris,
        Utc::now() - chrono::Duration::hours(1),
    );
    assert_eq!(shown(&ingested.points), shown(&whole.points), "points");
    let failed = whole.failure_with(second_reader::MAX_LOSS);
    assert_eq!(
        ingested.file["status"],
        if failed.is_some() { "error" } else { "success" },
        "{failed:?}: {:#}",
        ingested.file
    );
    if whole.failure.is_none() {
        for (key, expected) in whole.counters() {
            assert_eq!(ingested.file[key], expected, "{key}: {:#}", ingested.file);
        }
        assert_eq!(ingested.file["truncated"], whole.truncated);
    }
    ingested
}

fn ingest_with(bytes: &[u8], env: &[(&str, &str)]) -> Ingested {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), bytes);
    let mut call = site.lp_run();
    for (key, value) in env {
        call = call.env(key, value);
    }
    let run = call.run().clean();
    let file = file_of(&site.report(), "a.tsv").clone();
    let failed = file["status"] == "error";
    assert_eq!(run.code(), i32::from(failed), "{}", run.stderr);
    let moved = if failed {
        DEVICE.error("a.tsv")
    } else {
        DEVICE.parsed("a.tsv")
    };
    assert_eq!(site.read(moved), bytes);
    let points = site.lp_points("acme");
    assert_eq!(file["nb_points"], points.len(), "{file:#}");
    Ingested { run, file, points }
}

impl Ingested {
    /// Checks the points: lines of the time, the channel and the value.
    #[track_caller]
    fn has(self, expected: &[String]) -> Self {
        assert_eq!(shown(&self.points), expected, "{}", self.run.stderr);
        self
    }

    #[track_caller]
    fn reports(self, expected: Value) -> Self {
        for (key, value) in expected.as_object().expect("an object") {
            assert_eq!(&self.file[key], value, "{key}: {:#}", self.file);
        }
        self
    }

    /// Checks that the file fails with an error that contains these words, in upper or lower case.
    #[track_caller]
    fn fails(self, words: &[&str]) -> Self {
        assert_eq!(self.file["status"], "error", "{:#}", self.file);
        assert_eq!(self.file["retryable"], false, "{:#}", self.file);
        let error = self.file["error"]
            .as_str()
            .expect("an error")
            .to_lowercase();
        for word in words {
            assert!(error.contains(&word.to_lowercase()), "no {word:?}: {error}");
        }
        self
    }

    #[track_caller]
    fn succeeds(self) -> Self {
        assert_eq!(self.file["status"], "success", "{:#}", self.file);
        self
    }

    fn warnings(&self) -> Vec<&str> {
        let lines = self.run.stderr.lines();
        lines.filter(|l| l.contains("WARN")).collect()
    }

    /// Checks that exactly one warning contains these words, in upper or lower case.
    #[track_caller]
    fn warns(self, words: &[&str]) -> Self {
        let holds = |line: &&&str| {
            let line = line.to_lowercase();
            words.iter().all(|w| line.contains(&w.to_lowercase()))
        };
        let count = self.warnings().iter().filter(holds).count();
        assert_eq!(count, 1, "warnings with {words:?}: {}", self.run.stderr);
        self
    }

    #[track_caller]
    fn warns_of_nothing(self) -> Self {
        assert_eq!(self.warnings(), [""; 0], "{}", self.run.stderr);
        self
    }
}

fn shown(points: &[Point]) -> Vec<String> {
    let shown = |p: &Point| {
        let time = DateTime::from_timestamp(p.epoch, 0).expect("a time");
        let time = time.format("%Y-%m-%d %H:%M:%S");
        point(&time.to_string(), &p.tags["channel_id"], p.value)
    };
    points.iter().map(shown).collect()
}

fn point(utc: &str, channel: &str, value: f64) -> String {
    format!("{utc} {channel} {value}")
}

/// The points of a row of the channels of `HEADER` at `utc` on 3 August 2025.
fn row(utc: &str, voltage: f64, power: f64) -> [String; 2] {
    let utc = format!("2025-08-03 {utc}:00");
    [point(&utc, VOLTAGE, voltage), point(&utc, POWER, power)]
}

fn table(rows: &str) -> String {
    format!("{HEADER}{rows}")
}

const AT_0320: &str = "03/08/25 03:20:00\t1.5\t2.5\n";
const AT_0330: &str = "03/08/25 03:30:00\t3.5\t4.5\n";
const AT_0340: &str = "03/08/25 03:40:00\t5.5\t6.5\n";

fn first_row() -> [String; 2] {
    row("01:20", 1.5, 2.5)
}

fn second_row() -> [String; 2] {
    row("01:30", 3.5, 4.5)
}

fn third_row() -> [String; 2] {
    row("01:40", 5.5, 6.5)
}

// Layout changes in the stream.

#[test]
fn a_header_pair_with_the_columns_in_another_order_applies_from_there_on() {
    let text = "04000466\t02001171\nMV_T302_V002\tVoie1 W\tPh 1 V\n";
    let text = text.replace("04000466\t02001171", "02001171\t04000466\t02001171");
    ingest(table(AT_0320) + &text + AT_0330)
        .has(&[first_row(), row_swapped("01:30", 3.5, 4.5)].concat())
        .reports(json!({"nb_tables": 2, "nb_invalid_timestamps": 0, "loss_ratio": 0.0}))
        .warns(&["header"]);
}

/// Like `row`, with the power in the first column.
fn row_swapped(utc: &str, power: f64, voltage: f64) -> [String; 2] {
    let [voltage, power] = row(utc, voltage, power);
    [power, voltage]
}

#[test]
fn a_header_pair_with_another_number_of_columns_applies_from_there_on() {
    for marker in ["MV_T302_V002", "MV_T302_V003"] {
        let wider = format!(
            "02001171\t02001171\t04000466\t04000466\n{marker}\tPh 1 V\tVoie1 W\tVoie2 W\n03/08/25 03:30:00\t3.5\t4.5\t9\n"
        );
        let third = point("2025-08-03 01:30:00", "S04000466_Ch2_M02001171", 9.0);
        ingest(table(AT_0320) + &wider)
            .has(&[&first_row()[..], &second_row(), &[third]].concat())
            .reports(json!({"nb_tables": 2, "nb_malformed_rows": 0, "nb_channels": 3}));
        let narrower = format!("02001171\t04000466\n{marker}\tVoie1 W\n03/08/25 03:30:00\t4.5\n");
        ingest(table(AT_0320) + &narrower)
            .has(&[&first_row()[..], &second_row()[1..]].concat())
            .reports(json!({"nb_tables": 2, "nb_short_rows": 0}));
    }
}

#[test]
fn a_header_pair_of_another_master_books_the_values_on_that_device() {
    let other = HEADER.replace("02001171", "02001172");
    let time = "2025-08-03 01:30:00";
    let points = [
        point(time, "M02001172_Ch1_M02001172", 3.5),
        point(time, "S04000466_Ch1_M02001172", 4.5),
    ];
    ingest(table(AT_0320) + &other + AT_0330)
        .has(&[first_row(), points].concat())
        .reports(json!({"nb_tables": 2}));
}

#[test]
fn an_equal_header_pair_changes_nothing() {
    for repeated in [
        HEADER.to_owned(),
        HEADER.replace('\n', "\t \r\n"),
        format!("\n{}\n", HEADER.replace('\n', "\n\n")),
        format!("{HEADER}{HEADER}"),
    ] {
        ingest(table(AT_0320) + &repeated + AT_0330)
            .has(&[first_row(), second_row()].concat())
            .reports(json!({"nb_tables": 1, "nb_invalid_timestamps": 0, "nb_rows": 2}))
            .warns_of_nothing();
    }
}

#[test]
fn a_marker_without_usable_serials_ends_the_file_with_the_number_of_its_line() {
    let marker = "MV_T302_V002\tPh 1 V\tVoie1 W\n";
    let cases = [
        ("no line before but a row", String::new(), 4),
        ("a shorter line", "02001171\t02001171\n".into(), 5),
        (
            "a longer line",
            "02001171\t02001171\t04000466\t04000466\n".into(),
            5,
        ),
        ("an empty serial", "02001171\t\t04000466\n".into(), 4),
        ("an empty master", "\t02001171\t04000466\n".into(), 4),
        (
            "a row glued to the serials",
            format!("03/08/25 03:25:00\t1\t2{HEADER}"),
            5,
        ),
        ("a marker", marker.into(), 4),
    ];
    for (what, before, line) in cases {
        println!("{what}");
        ingest(table(AT_0320) + &before + marker + AT_0330)
            .has(&first_row())
            .fails(&[&format!("line {line}")]);
    }
}

#[test]
fn a_header_pair_in_mid_file_with_a_bad_label_ends_the_file() {
    for labels in ["Ph 1 V\t", "Ph 1 V", "Ph 1 V\tVoie\u{1}1 W"] {
        let pair = format!("02001171\t02001171\t04000466\nMV_T302_V002\t{labels}\n");
        let ingested = ingest(table(AT_0320) + &pair + AT_0330);
        ingested.has(&first_row()).fails(&[]);
    }
}

#[test]
fn an_unknown_marker_in_mid_file_ends_the_file_and_is_named() {
    for found in ["MV_T302_V009", "MV_T202_V002"] {
        let pair = HEADER.replace("MV_T302_V002", found);
        ingest(table(AT_0320) + &pair + AT_0330)
            .has(&first_row())
            .fails(&[found, "MV_T302_V002", "MV_T302_V003"]);
        ingest(headed(UTC, &table(AT_0320)) + &pair + AT_0330)
            .has(&row("03:20", 1.5, 2.5))
            .fails(&[found]);
    }
}

#[test]
fn several_headed_documents_are_read_each_in_its_own_zone() {
    let zone = |name| format!(r#"{{"DataTimeSettings":"LOCAL","TimeZoneName":"{name}"}}"#);
    let text = headed(UTC, &table(AT_0320))
        + &headed(zone("Asia/Tokyo"), &table("03/08/25 12:30:00\t3.5\t4.5\n"))
        + &headed(
            zone("America/New_York"),
            &table("02/08/25 23:40:00\t5.5\t6.5\n"),
        );
    let points = [
        row("03:20", 1.5, 2.5),
        row("03:30", 3.5, 4.5),
        row("03:40", 5.5, 6.5),
    ];
    for text in [text.clone(), text.replace("END_DATA\n", "END_DATA\n\n\r\n")] {
        ingest(text)
            .has(&points.concat())
            .reports(json!({"nb_tables": 3, "nb_lines_after_end": 0, "truncated": false}));
    }
}

#[test]
fn a_plain_document_after_the_end_of_a_headed_one_has_the_zone_of_the_settings() {
    ingest(headed(UTC, &table(AT_0320)) + &table("03/08/25 05:30:00\t3.5\t4.5\n"))
        .has(&[row("03:20", 1.5, 2.5), row("03:30", 3.5, 4.5)].concat())
        .reports(json!({"nb_tables": 2, "nb_lines_after_end": 0, "truncated": false}));
}

#[test]
fn a_headed_document_follows_a_plain_one() {
    let second = headed(UTC, &table(AT_0330));
    let expected = [first_row(), row("03:30", 3.5, 4.5)].concat();
    ingest(table(AT_0320) + &second)
        .has(&expected)
        .reports(json!({"nb_tables": 2, "nb_invalid_timestamps": 0}));
}

#[test]
fn start_header_behind_a_cut_row_begins_a_document() {
    let second = headed(UTC, &table(AT_0330));
    let expected = [first_row(), row("03:30", 3.5, 4.5)].concat();
    for cut in 1..AT_0340.len() - 1 {
        let text = table(AT_0320) + &AT_0340[..cut] + &second;
        ingest(text)
            .has(&expected)
            .reports(json!({"nb_rows": 2, "nb_tables": 2, "nb_malformed_rows": 0}));
    }
}

#[test]
fn start_header_behind_the_end_of_the_data_begins_a_document() {
    let first = headed(UTC, &table(AT_0320));
    let text = first.trim_end().to_owned() + &headed(UTC, &table(AT_0330));
    ingest(text)
        .has(&[row("03:20", 1.5, 2.5), row("03:30", 3.5, 4.5)].concat())
        .reports(json!({"nb_tables": 2, "nb_lines_after_end": 0}));
}

#[test]
fn start_header_in_a_json_header_begins_the_document_anew() {
    let good = headed(UTC, &table(AT_0320));
    for cut in ["START_HEADER\n", "START_HEADER\n{\"DataTimeSettings\":\"LO"] {
        ingest(cut.to_owned() + &good)
            .has(&row("03:20", 1.5, 2.5))
            .reports(json!({"nb_tables": 1, "time_zone": "UTC"}));
    }
}

#[test]
fn start_header_in_the_header_lines_begins_a_document() {
    let good = headed(UTC, &table(AT_0320));
    for cut in [
        "02001171\t0200",
        "02001171\t02001171\t04000466\nMV_T302_V002\tPh",
    ] {
        ingest(cut.to_owned() + &good).has(&row("03:20", 1.5, 2.5));
    }
}

#[test]
fn a_headed_document_without_its_end_is_truncated_when_another_one_begins() {
    let first = headed(UTC, &table(AT_0320)).replace("END_DATA\n", "");
    ingest(first + &headed(UTC, &table(AT_0330)))
        .has(&[row("03:20", 1.5, 2.5), row("03:30", 3.5, 4.5)].concat())
        .reports(json!({"nb_tables": 2, "truncated": true}));
}

#[test]
fn lines_after_the_end_are_counted_and_not_read() {
    let text = headed(UTC, &table(AT_0320)) + AT_0330 + "\n\t\nrubbish\n";
    ingest(text)
        .has(&row("03:20", 1.5, 2.5))
        .reports(json!({"nb_lines_after_end": 2, "nb_tables": 1}))
        .warns(&["END_DATA"]);
}

#[test]
fn a_second_document_that_cannot_be_read_leaves_the_points_of_the_first() {
    let first = headed(UTC, &table(AT_0320));
    for second in [
        "START_HEADER\n{}\n".to_owned(),
        "START_HEADER\n{}\nEND_HEADER\nrubbish\n".to_owned(),
        headed("{\"FileVersion\":3", &table(AT_0330)),
        headed(UTC, AT_0330),
    ] {
        ingest(first.clone() + &second)
            .has(&row("03:20", 1.5, 2.5))
            .fails(&[]);
    }
}

#[test]
fn a_file_that_fails_in_mid_file_is_truncated_only_if_its_end_is() {
    let marker = "MV_T302_V002\tPh 1 V\tVoie1 W\n";
    let rows = format!("{AT_0320}{marker}{}", AT_0330.repeat(10_000));
    for (text, truncated) in [
        (table(&rows), false),
        (table(&rows) + "03/08/25 03:4", true),
        (headed(UTC, &table(&rows)), false),
        (headed(UTC, &table(&rows)).replace("END_DATA\n", ""), true),
    ] {
        ingest(text)
            .fails(&["header begins without its line of serial numbers"])
            .reports(json!({"truncated": truncated}));
    }
}

// Damage.

#[test]
fn a_row_cut_at_any_byte_and_glued_to_the_next_gives_no_point() {
    let text = |glued: &str| table(AT_0320) + glued + "03/08/25 04:20:00\t7.5\t8.5\n";
    for next in [
        AT_0340,
        "03/08/25 03:40:00\t5.5\t\n",
        "03/08/25 03:40:00\t\t\n",
    ] {
        for cut in 1..AT_0330.len() {
            let glued = AT_0330[..cut].trim_end_matches('\n').to_owned() + next;
            ingest(text(&glued))
                .succeeds()
                .has(&[first_row(), row("02:20", 7.5, 8.5)].concat());
        }
    }
}

#[test]
fn a_keyword_in_a_cell_makes_the_row_malformed() {
    for keyword in ["START_DATA", "END_HEADER", "END_DATA"] {
        let glued = AT_0330.trim_end().to_owned() + keyword + "\n";
        ingest(table(AT_0320) + &glued + AT_0340)
            .has(&[first_row(), third_row()].concat())
            .reports(json!({"nb_malformed_rows": 1, "nb_invalid_values": 0}));
    }
}

#[test]
fn a_value_beyond_the_last_column_makes_the_row_malformed_wherever_the_others_are() {
    for glued in [
        "\t3.5\t4.5\t9",
        "\t3.5\t\t9",
        "\t\t\t9",
        "\t\t\t\t\t9",
        "\t3.5\t4.5\t\tx",
    ] {
        let text = format!("{}03/08/25 03:30:00{glued}\n{AT_0340}", table(AT_0320));
        ingest(text)
            .has(&[first_row(), third_row()].concat())
            .reports(json!({"nb_malformed_rows": 1, "nb_invalid_values": 0, "nb_rows": 2}));
    }
    // Empty cells beyond the last column are no value.
    let text = format!("{}03/08/25 03:30:00\t3.5\t4.5\t \t\u{a0}\n", table(AT_0320));
    ingest(text).has(&[first_row(), second_row()].concat());
}

#[test]
fn a_last_row_that_does_not_fit_is_malformed_though_its_last_cell_may_be_cut_off() {
    for last in [
        "1\t2\t3",
        "1\t2\t\t3",
        "1\tEND_DATA",
        "1\t03/08/25 03:30:00",
    ] {
        ingest(table(&format!("{AT_0320}03/08/25 03:25:00\t{last}")))
            .has(&first_row())
            .reports(json!({"nb_malformed_rows": 1, "truncated": true, "nb_cells": 2}));
    }
}

#[test]
fn a_short_row_loses_its_last_cell_and_keeps_the_others() {
    let time = "2025-08-03 01:30:00";
    let header = "02001171\t02001171\t02001171\t02001171\nMV_T302_V002\tPh 1 V\tPh 2 V\tPh 3 V\n";
    let channel = |n| format!("M02001171_Ch{n}_M02001171");
    let full = |utc, values: [f64; 3]| (1..=3).map(move |n| point(utc, &channel(n), values[n - 1]));
    let cases = [
        ("", vec![], 3, 3),
        ("\t", vec![], 3, 2),
        ("\t24", vec![], 3, 3),
        ("\t24.5\t", vec![24.5], 2, 2),
        ("\t24.5\t3", vec![24.5], 2, 3),
    ];
    for ending in ["\n", "\r\n", "\r\r\n"] {
        for (cells, kept, invalid, cells_counted) in &cases {
            let text = format!(
                "{header}03/08/25 03:20:00\t1\t2\t3\n03/08/25 03:30:00{cells}{ending}03/08/25 03:40:00\t4\t5\t6\n"
            );
            let mut expected: Vec<String> = full("2025-08-03 01:20:00", [1.0, 2.0, 3.0]).collect();
            expected.extend(kept.iter().map(|v| point(time, &channel(1), *v)));
            expected.extend(full("2025-08-03 01:40:00", [4.0, 5.0, 6.0]));
            ingest(text).has(&expected).reports(json!({
                "nb_rows": 3,
                "nb_short_rows": 1,
                "nb_invalid_values": invalid,
                "nb_malformed_rows": 0,
                "nb_cells": 6 + cells_counted,
            }));
        }
    }
}

#[test]
fn a_tail_of_nul_bytes_is_truncated_and_no_error() {
    let all = [first_row(), second_row()].concat();
    for size in [1, 4096, 3 << 20] {
        let tail = "\0".repeat(size);
        ingest(table(AT_0320) + AT_0330 + &tail)
            .succeeds()
            .has(&all)
            .reports(json!({"truncated": true, "nb_invalid_timestamps": 0, "loss_ratio": 0.0}));
        // The tail follows half a row: its last cell may be half a number.
        ingest(table(AT_0320) + AT_0330.trim_end() + &tail)
            .has(&all[..3])
            .reports(json!({"truncated": true, "nb_rows": 2}));
        ingest(headed(UTC, &table(AT_0320)) + &tail)
            .succeeds()
            .has(&row("03:20", 1.5, 2.5));
    }
}

#[test]
fn lines_that_end_in_cr_cr_lf_are_read_like_others() {
    for text in [
        table(AT_0320) + AT_0330,
        headed(UTC, &(table(AT_0320) + AT_0330)),
    ] {
        let expected = ingest(&text);
        for ending in ["\r\n", "\r\r\n"] {
            ingest(text.replace('\n', ending))
                .has(&shown(&expected.points))
                .reports(json!({"nb_invalid_values": 0, "nb_short_rows": 0, "truncated": false}))
                .warns_of_nothing();
        }
    }
}

#[test]
fn no_break_spaces_and_runs_of_spaces_separate_the_unit() {
    let labels = [
        ("Ph 1\u{a0}V", "Ph 1", "V"),
        ("Ph 1\u{a0} V", "Ph 1", "V"),
        ("Voie1  W", "Voie1", "W"),
        ("Voie1 \u{202f}W", "Voie1", "W"),
        ("\u{a0}Vol m³\u{a0}", "Vol", "m³"),
        ("Compteur", "Compteur", ""),
    ];
    for (label, name, unit) in labels {
        let text = FileBuilder::with_channels([label]).line("03/08/25 03:20:00\t\u{a0}1.5 ");
        let ingested = ingest(text.build()).succeeds();
        let tags = &ingested.points[0].tags;
        assert_eq!(tags["channel_name"], name, "{label:?}");
        assert_eq!(
            tags.get("unit").map_or("", String::as_str),
            unit,
            "{label:?}"
        );
        assert_eq!(ingested.points[0].value, 1.5);
    }
    let mut western = b"02001171\t02001171\nMV_T302_V002\tPh 1\xa0V\n".to_vec();
    western.extend(b"03/08/25 03:20:00\t1.5\n");
    assert_eq!(ingest(western).points[0].tags["unit"], "V");
}

// Losses.

/// A file of one channel and 100 rows, of which `bad` have this value.
fn lossy(bad: usize, value: &str) -> String {
    let rows = (0..100).map(|i| {
        let value = if i < bad { value } else { "1.5" };
        format!("03/08/25 {:02}:{:02}:00\t{value}", 3 + i / 60, i % 60)
    });
    FileBuilder::with_channels(["Ph 1 V"]).lines(rows).build()
}

#[test]
fn a_file_that_loses_more_than_half_fails_and_keeps_what_could_be_read() {
    for bad in ["1,5", "x", "1e999", "0x1"] {
        let ingested = ingest(lossy(51, bad)).fails(&[bad, "line 3"]);
        assert_eq!(ingested.points.len(), 49);
        ingested.reports(json!({"loss_ratio": 0.51, "nb_cells": 100, "nb_invalid_values": 51}));
        for count in [49, 50] {
            let ingested = ingest(lossy(count, bad)).succeeds().warns(&["line 3", bad]);
            assert_eq!(ingested.points.len(), 100 - count);
        }
    }
}

#[test]
fn empty_cells_and_nan_are_no_loss() {
    for bad in ["", " ", "NaN"] {
        let ingested = ingest(lossy(90, bad)).succeeds();
        assert_eq!(ingested.points.len(), 10);
        ingested.reports(json!({"loss_ratio": 0.0, "nb_cells": 10, "nb_invalid_values": 90}));
    }
}

#[test]
fn cells_of_skipped_rows_are_lost() {
    let text = |first: &str| {
        FileBuilder::default()
            .line(first)
            .lines([AT_0330.trim_end(), AT_0340.trim_end()])
    };
    let cases = [
        ("rubbish\t1\t2", 6, 2.0 / 6.0),
        ("03/08/25 03:20:00\t1\t2\t3", 7, 3.0 / 7.0),
        ("03/08/25 03:20:00\t1", 6, 2.0 / 6.0),
        ("31/02/25 03:20:00\t1\t", 5, 1.0 / 5.0),
    ];
    for (first, nb_cells, ratio) in cases {
        let ingested = ingest(text(first).build()).succeeds();
        assert_eq!(ingested.file["nb_cells"], nb_cells, "{first}");
        let got = ingested.file["loss_ratio"].as_f64().expect("a number");
        assert!((got - ratio).abs() < 1e-4, "{first}: {got}");
    }
}

#[test]
fn the_limit_of_the_losses_is_a_setting() {
    let text = lossy(60, "1,5");
    let ingested = ingest_with(text.as_bytes(), &[("TSV_MAX_LOSS", "0.6")]);
    assert_eq!(ingested.succeeds().points.len(), 40);
    let ingested = ingest_with(lossy(6, "1,5").as_bytes(), &[("TSV_MAX_LOSS", "0.05")]);
    assert_eq!(ingested.fails(&[]).points.len(), 94);
}

#[test]
fn problems_are_the_first_ten_with_line_column_text_and_reason() {
    let long = "x".repeat(60);
    let text = FileBuilder::default()
        .line("03/08/25 03:20:00\t1,5\t2.5")
        .line("03/08/25 03:30:00\t3.5\t\u{1b}[31m")
        .line(format_args!("03/08/25 03:40:00\t{long}\t6.5"))
        .lines((0..30).map(|m| format!("03/08/25 04:{m:02}:00\t1.5\t2.5")))
        .build();
    let ingested = ingest(text).succeeds();
    let problems = ingested.file["problems"].as_array().expect("a list");
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert_eq!(problems[0]["line"], 3);
    assert_eq!(problems[0]["column"], 2);
    assert_eq!(problems[0]["text"], "1,5");
    assert!(
        problems[0]["reason"]
            .as_str()
            .is_some_and(|r| r.contains("comma"))
    );
    assert_eq!(problems[1]["line"], 4);
    assert_eq!(problems[1]["column"], 3);
    let escaped = problems[1]["text"].as_str().expect("text");
    assert!(
        !escaped.contains('\u{1b}') && escaped.contains("[31m"),
        "{escaped}"
    );
    let text = problems[2]["text"].as_str().expect("text");
    assert!(
        text.chars().count() <= 40 && text.starts_with("xxx"),
        "{text}"
    );
    let ingested = ingest(lossy(30, "1,5"));
    assert_eq!(ingested.file["problems"].as_array().map(Vec::len), Some(10));
}

// Bounds.

/// A file of one channel with one row a week.
fn weekly(weeks: usize) -> String {
    let start = chrono::NaiveDate::from_ymd_opt(2012, 1, 2).expect("a day");
    let days = start.iter_weeks().take(weeks);
    let rows = days.map(|day| format!("{} 12:00:00\t1.5", day.format("%d/%m/%y")));
    FileBuilder::with_channels(["Ph 1 V"]).lines(rows).build()
}

#[test]
fn a_file_of_more_than_520_weeks_fails_where_it_passes_the_limit() {
    assert_eq!(ingest(weekly(520)).succeeds().points.len(), 520);
    for weeks in [521, 600] {
        let ingested = ingest(weekly(weeks)).fails(&["520", "week"]);
        assert_eq!(ingested.points.len(), 520);
    }
}

#[test]
fn headers_are_bounded() {
    let one = |serial: &str, label: &str| {
        format!("{serial}\t{serial}\nMV_T302_V002\t{label}\n03/08/25 03:20:00\t1.5\n")
    };
    let channels = |n: usize| {
        let rows = format!("03/08/25 03:20:00{}", "\t1.5".repeat(n));
        FileBuilder::with_channels(vec!["Ph 1 V"; n])
            .line(rows)
            .build()
    };
    let json = |n: usize| {
        let json = format!(r#"{{"DataTimeSettings":"UTC","Note":"{}"}}"#, "x".repeat(n));
        headed(json, &table(AT_0320))
    };
    let name = |n: usize| "x".repeat(n);
    for good in [
        one(&name(256), "Ph 1 V"),
        one("02001171", &name(256)),
        channels(4096),
        json(60 << 10),
    ] {
        ingest(good).succeeds();
    }
    for (bad, words) in [
        (one(&name(257), "Ph 1 V"), "256"),
        (one("02001171", &name(257)), "256"),
        (channels(4097), "4096"),
        (json(64 << 10), "65536"),
    ] {
        let ingested = ingest(&bad);
        let error = ingested.file["error"].as_str().expect("an error");
        let error = error.replace("4,096", "4096");
        assert!(error.contains(words), "no {words:?}: {error}");
        // The same header in mid-file ends the file.
        ingest(table(AT_0320) + &bad).has(&first_row()).fails(&[]);
    }
}

#[test]
fn a_line_that_is_too_long_leaves_the_rows_before_it_in_the_database() {
    let long = "x".repeat(2 << 20);
    for file in [
        table(AT_0320),
        table(AT_0320) + AT_0330,
        good_file(0, 3_000),
    ] {
        let before = ingest(&file);
        ingest(file + &long + "\n" + AT_0340)
            .has(&shown(&before.points))
            .fails(&["line"]);
    }
}

// Content that is plainly something else.

#[test]
fn other_content_is_called_by_its_name() {
    let text = table(AT_0320) + AT_0330;
    let utf16 = |mark: bool, order: fn(u16) -> [u8; 2]| -> Vec<u8> {
        let mark = mark.then_some('\u{feff}');
        let units = mark.into_iter().chain(text.chars());
        units.flat_map(|c| order(c as u16)).collect()
    };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, text.as_bytes()).expect("in memory");
    let spreadsheet = "02001171;02001171\nMV_T302_V002;Ph 1 V\n03/08/2025 03:20;1,5\n";
    let cases = [
        (gzip.finish().expect("in memory"), "gzip"),
        (b"PK\x03\x04\x14\0\0\0\x08\0a.tsv".to_vec(), "zip"),
        (utf16(true, u16::to_le_bytes), "UTF-16"),
        (utf16(true, u16::to_be_bytes), "UTF-16"),
        (utf16(false, u16::to_le_bytes), "UTF-16"),
        (utf16(false, u16::to_be_bytes), "UTF-16"),
        (text.replace('\n', "\r").into(), "carriage return"),
        (
            headed(UTC, &text).replace('\n', "\r").into(),
            "carriage return",
        ),
        (text.replace('\t', ";").into(), "semicolon"),
        (text.replace('\t', ",").into(), "comma"),
        (spreadsheet.into(), "semicolon"),
    ];
    for (bytes, word) in cases {
        println!("{}", String::from_utf8_lossy(&bytes));
        ingest(bytes).has(&[]).fails(&[word]);
    }
}

// The meaning of times.

/// A headed file of one row at 03:20 on 3 August 2025.
fn with_header(json: &str) -> String {
    headed(json, &table(AT_0320))
}

fn local(name: &str, posix: &str) -> String {
    with_header(&format!(
        r#"{{"DataTimeSettings":"LOCAL","TimeZone":"{posix}","TimeZoneName":"{name}"}}"#
    ))
}

const PARIS: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

#[test]
fn utc_is_recognised_in_any_letter_case() {
    for utc in ["UTC", "utc", "Utc"] {
        ingest(with_header(&format!(r#"{{"DataTimeSettings":"{utc}"}}"#)))
            .has(&row("03:20", 1.5, 2.5))
            .reports(json!({"time_zone": "UTC", "time_zone_source": "header"}))
            .warns_of_nothing();
    }
}

#[test]
fn a_zone_name_in_any_letter_case_is_the_zone() {
    for name in ["Asia/Tokyo", "asia/tokyo", "ASIA/TOKYO", "aSiA/tOkYo"] {
        let utc = "2025-08-02 18:20:00";
        ingest(local(name, PARIS))
            .has(&[point(utc, VOLTAGE, 1.5), point(utc, POWER, 2.5)])
            .reports(json!({"time_zone": "Asia/Tokyo", "time_zone_source": "header"}))
            .warns_of_nothing();
    }
}

#[test]
fn a_posix_zone_is_used_where_no_name_is_understood() {
    let cases = [
        (PARIS, "2025-08-03 01:20:00"),
        ("<+04>-4", "2025-08-02 23:20:00"),
        ("EST5EDT,M3.2.0,M11.1.0", "2025-08-03 07:20:00"),
        ("<-0330>3:30", "2025-08-03 06:50:00"),
        ("AEST-10AEDT,M10.1.0,M4.1.0/3", "2025-08-02 17:20:00"),
        ("XXX-1YYY,J60/0,J300", "2025-08-03 01:20:00"),
        ("XXX-1YYY-3,59/0,300", "2025-08-03 00:20:00"),
    ];
    for (posix, utc) in cases {
        let expected = [point(utc, VOLTAGE, 1.5), point(utc, POWER, 2.5)];
        let source = json!({"time_zone_source": "header_posix"});
        ingest(with_header(&format!(r#"{{"TimeZone":"{posix}"}}"#)))
            .has(&expected)
            .reports(source.clone());
        ingest(local("Mars/Olympus", posix))
            .has(&expected)
            .reports(source);
    }
}

#[test]
fn a_posix_zone_has_a_doubled_hour() {
    let rows = "26/10/25 02:40:00\t1\t2\n26/10/25 02:50:00\t3\t4\n26/10/25 02:00:00\t5\t6\n";
    let times = ["00:40", "00:50", "01:00"].map(|t| format!("2025-10-26 {t}:00"));
    let expected: Vec<String> = times
        .iter()
        .zip([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        .flat_map(|(t, [a, b])| [point(t, VOLTAGE, a), point(t, POWER, b)])
        .collect();
    ingest(headed(format!(r#"{{"TimeZone":"{PARIS}"}}"#), &table(rows))).has(&expected);
}

#[test]
fn a_zone_that_is_not_understood_is_a_warning_that_names_it_and_the_one_used() {
    for posix in [
        "",
        "CET",
        "CET-1CEST,M3.5.0",
        "CET-99",
        "CET-1CEST,M13.5.0,M10.5.0",
    ] {
        ingest(local("Mars/Olympus", posix))
            .has(&first_row())
            .reports(json!({"time_zone": "Europe/Paris", "time_zone_source": "setting"}))
            .warns(&["Mars/Olympus", "Europe/Paris"]);
    }
    ingest(with_header(r#"{"TimeZone":"rubbish"}"#))
        .has(&first_row())
        .warns(&["rubbish", "Europe/Paris"]);
}

#[test]
fn a_header_without_a_zone_has_the_zone_of_the_settings() {
    ingest(with_header(r#"{"FileVersion":3}"#))
        .has(&first_row())
        .reports(json!({"time_zone": "Europe/Paris", "time_zone_source": "setting"}))
        .warns_of_nothing();
}

#[test]
fn other_words_for_the_meaning_of_times_are_a_warning_that_names_the_zone_used() {
    for (settings, zone) in [("GMT", "Asia/Tokyo"), ("UTC+1", "Asia/Tokyo")] {
        let json = format!(r#"{{"DataTimeSettings":"{settings}","TimeZoneName":"Asia/Tokyo"}}"#);
        ingest(with_header(&json)).warns(&["DataTimeSettings", settings, zone]);
    }
    let ingested = ingest_with(
        with_header(r#"{"DataTimeSettings":" utc ","TimeZoneName":"Asia/Tokyo"}"#).as_bytes(),
        &[],
    );
    assert_eq!(ingested.file["time_zone"], "UTC");
    ingested.warns_of_nothing();
}

#[test]
fn broken_json_whose_zone_is_cut_off_is_not_said_to_name_one() {
    let json = r#"{"DataTimeSettings":"LOCAL","TimeZoneName":"Asia/Tok"#;
    ingest(with_header(json)).warns(&[
        "not valid JSON",
        "no time zone in its text is understood: Europe/Paris applies",
    ]);
}

#[test]
fn broken_json_that_names_its_zone_is_a_warning() {
    for json in [
        r#"{"DataTimeSettings":"UTC","TimeZoneName":"Europe/Paris",}"#,
        r#"{"DataTimeSettings":"UTC""#,
        r#"{"DataTimeSettings" : "utc", "Note": "a"b"}"#,
        "{\"DataTimeSettings\":\n\"UTC\",,}",
    ] {
        ingest(with_header(json))
            .has(&row("03:20", 1.5, 2.5))
            .reports(json!({"time_zone": "UTC", "file_header_meta": null}))
            .warns(&["JSON"]);
    }
    let json = r#"{"DataTimeSettings":"LOCAL","TimeZoneName":"asia/tokyo",}"#;
    ingest(with_header(json)).reports(json!({"time_zone": "Asia/Tokyo"}));
    let json = r#"{"TimeZone":"<+04>-4",}"#;
    ingest(with_header(json)).reports(json!({"time_zone_source": "header_posix"}));
}

#[test]
fn broken_json_that_names_no_zone_is_an_error() {
    for json in [
        "",
        "{",
        r#"{"FileVersion":3,}"#,
        r#"{"DataTimeSettings":"#,
        "rubbish",
    ] {
        ingest(with_header(json)).has(&[]).fails(&["JSON"]);
    }
}

#[test]
fn suspicious_times_are_written_and_counted() {
    let text = |rows: [&str; 3]| {
        let rows = rows.map(|time| format!("{time}\t1.5\t2.5"));
        FileBuilder::default().lines(rows).build()
    };
    let cases = [
        (
            [
                "31/12/09 12:00:00",
                "01/01/10 12:00:00",
                "02/01/10 12:00:00",
            ],
            1,
        ),
        (
            [
                "01/01/00 00:00:00",
                "01/01/00 00:10:00",
                "03/08/25 03:20:00",
            ],
            2,
        ),
        (
            [
                "03/08/25 03:20:00",
                "03/08/25 03:30:00",
                "03/08/99 03:40:00",
            ],
            1,
        ),
        (
            [
                "03/08/25 05:20:00",
                "03/08/25 03:19:59",
                "03/08/25 03:40:00",
            ],
            1,
        ),
        (
            [
                "03/08/25 05:20:00",
                "03/08/25 03:20:00",
                "03/08/25 03:40:00",
            ],
            0,
        ),
    ];
    for (times, count) in cases {
        println!("{times:?}");
        let ingested = ingest(text(times)).succeeds();
        assert_eq!(ingested.points.len(), 6);
        assert_eq!(ingested.warnings().len(), usize::from(count > 0));
        ingested.reports(json!({"nb_suspicious_times": count}));
    }
}

// The files of ../shared/cases.

/// The folder of cases beside the repository. Skips the calling test if there is none.
fn cases() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/cases");
    if dir.is_dir() {
        return Some(dir);
    }
    skipped("../shared", "put the folder of cases beside the repository");
    None
}

#[test]
fn the_cases_that_were_read_wrong_are_read_as_their_readme_says() {
    let Some(dir) = cases() else { return };
    let case = |name: &str| {
        println!("{name}");
        ingest(std::fs::read(dir.join(name)).expect(name))
    };
    let channel = ["M02001171_Ch1_M02001171", "M02001171_Ch2_M02001171", POWER];
    let three = |utc: &str, values: [f64; 3]| -> [String; 3] {
        [0, 1, 2].map(|i| point(&format!("2025-08-03 {utc}:00"), channel[i], values[i]))
    };
    let two = |utc: &str, values: [f64; 2]| -> [String; 2] {
        [0, 1].map(|i| point(&format!("2025-08-03 {utc}:00"), channel[i], values[i]))
    };

    let [voltage, second, slave] = three("01:30", [241.9, 30.2, 160.1]);
    case("header_changes.tsv")
        .has(
            &[
                &three("01:20", [242.25, 31.5, 163.8])[..],
                &[voltage, slave, second],
            ]
            .concat(),
        )
        .reports(json!({"nb_tables": 2}))
        .warns(&["header"]);
    let good = [
        three("01:20", [242.25, 31.5, 163.8]),
        three("02:20", [241.6, 29.9, 160.3]),
    ];
    case("glued_row.tsv")
        .has(&good.concat())
        .reports(json!({"nb_malformed_rows": 1}));
    let both = [two("03:20", [242.25, 31.5]), two("03:30", [241.9, 30.2])].concat();
    case("two_documents.tsv").has(&both).succeeds();
    case("plain_then_headed.tsv").has(&both).succeeds();
    let reunion = [0, 1].map(|i| point("2025-08-02 23:20:00", channel[i], [242.25, 31.5][i]));
    case("zone_lower_case.tsv").has(&reunion);
    case("json_broken.tsv")
        .has(&two("03:20", [242.25, 31.5]))
        .succeeds()
        .warns(&["JSON"]);
    case("added_channel.tsv").fails(&["5.5", "line 7"]);
    case("decimal_comma.tsv").fails(&["242,25", "line 3", "comma"]);
    case("value_beyond_columns.tsv")
        .has(&three("01:20", [242.25, 31.5, 163.8]))
        .reports(json!({"nb_malformed_rows": 1, "nb_invalid_values": 0}));
    let mut short = vec![three("01:20", [242.25, 0.0, 0.0])[0].clone()];
    let at = |i: usize, value| point("2025-08-03 01:20:41", channel[i], value);
    short.extend([at(0, 241.9), at(1, 30.2), at(2, 160.0)]);
    case("half_number_before_line_break.tsv")
        .has(&short)
        .reports(json!({"nb_short_rows": 1}));
    let ingested = case("nbsp_before_unit.tsv");
    let names: Vec<[&str; 2]> = ingested
        .points
        .iter()
        .map(|p| [p.tags["channel_name"].as_str(), &p.tags["unit"]])
        .collect();
    assert_eq!(names, [["Ph 1", "V"], ["Voie1", "W"], ["Vol", "m³"]]);
    case("gzip.tsv").fails(&["gzip"]);
    case("utf16.tsv").fails(&["UTF-16"]);
    case("spreadsheet.tsv").fails(&["spreadsheet"]);
}

/// The three uploads of an autumn night: their names, rows and modification times in seconds ago.
fn autumn_night() -> [(&'static str, String, u64); 3] {
    let file = |hour: &str, hundred: u32| {
        let rows = (0..6).map(|i| format!("26/10/25 {hour}:{i}0:00\t{hundred}{i}0"));
        rows.fold(
            "02001171\t02001171\nMV_T302_V002\tVoie1 W\n".to_owned(),
            |text, row| text + &row + "\n",
        )
    };
    [
        ("a_0200.tsv", file("01", 1), 3 * 3600),
        ("b_0259.tsv", file("02", 2), 2 * 3600),
        ("c_0300.tsv", file("02", 3), 3600),
    ]
}

/// 18 values, ten minutes apart.
#[track_caller]
fn check_autumn_night(site: &Site) {
    let start: DateTime<Utc> = "2025-10-25T23:00:00Z".parse().expect("a time");
    let expected: Vec<String> = (0..18)
        .map(|i| {
            let time = start + chrono::Duration::minutes(10 * i);
            let value = 100 * (i / 6 + 1) + 10 * (i % 6);
            let time = time.format("%Y-%m-%d %H:%M:%S").to_string();
            point(&time, VOLTAGE, value as f64)
        })
        .collect();
    assert_eq!(shown(&stored(&site.lp_points("acme"))), expected);
}

fn put_autumn_night(site: &Site, index: usize) -> String {
    let (name, text, seconds) = &autumn_night()[index];
    let path = site.put(DEVICE.file(name), text);
    age(&path, *seconds);
    DEVICE.file(name)
}

#[test]
fn an_autumn_night_in_three_uploads_of_one_sweep_has_18_instants() {
    let site = Site::new();
    for index in 0..3 {
        put_autumn_night(&site, index);
    }
    site.lp_run().ok();
    check_autumn_night(&site);
}

#[test]
fn an_autumn_night_in_three_named_uploads_has_18_instants() {
    let site = Site::new();
    for index in 0..3 {
        let path = put_autumn_night(&site, index);
        site.lp_run().named(path).ok();
    }
    check_autumn_night(&site);
}

#[test]
fn an_autumn_night_in_three_uploads_named_in_one_call_has_18_instants() {
    let site = Site::new();
    let paths = [0, 1, 2].map(|index| put_autumn_night(&site, index));
    let call = paths.iter().rev().fold(site.lp_run(), Call::named);
    call.ok();
    check_autumn_night(&site);
}

#[test]
fn an_autumn_night_in_uploads_of_one_row_has_18_instants() {
    let site = Site::new();
    let mut count = 0;
    for (_, text, _) in autumn_night() {
        for row in text.lines().skip(2) {
            let path = DEVICE.file(format!("{count:02}.tsv"));
            let file = FileBuilder::with_channels(["Voie1 W"]).line(row);
            age(&site.put(&path, file.build()), 3 * 3600 - 60 * count);
            site.lp_run().named(path).ok();
            count += 1;
        }
    }
    assert_eq!(count, 18);
    check_autumn_night(&site);
}

/// Ingests these uploads of the autumn night, each in a run of its own.
fn ingest_one_by_one(site: &Site, indices: &[usize]) {
    for index in indices {
        put_autumn_night(site, *index);
        site.lp_run().ok();
    }
}

#[test]
fn an_autumn_night_whose_first_hour_comes_late_has_18_instants() {
    let site = Site::new();
    ingest_one_by_one(&site, &[0, 2, 1]);
    check_autumn_night(&site);
}

#[test]
fn an_autumn_night_with_two_versions_of_the_first_hour_has_18_instants() {
    let site = Site::new();
    ingest_one_by_one(&site, &[0, 1, 1, 2]);
    assert!(site.exists(DEVICE.parsed("b_0259.1.tsv")));
    check_autumn_night(&site);
}

#[test]
fn an_autumn_night_whose_files_have_the_same_time_is_in_the_order_of_their_names() {
    let site = Site::new();
    for index in 0..3 {
        let path = put_autumn_night(&site, index);
        age(&site.path(path), 3 * 3600);
        site.lp_run().ok();
    }
    check_autumn_night(&site);
}

/// The name of the second upload of the autumn night.
const SECOND: &str = "b_0259.tsv";

/// The second upload of the autumn night in two forms that fail after their rows are written: in mid-file, and because of
/// its losses.
fn failing_second_uploads() -> [String; 2] {
    let (_, text, _) = &autumn_night()[1];
    let lost = "26/10/25 99:00:00\t1\n".repeat(7);
    [
        format!("{text}MV_T302_V002\tVoie1 W\n"),
        text.clone() + &lost,
    ]
}

/// Puts the second upload of the autumn night with this content.
fn put_second_upload(site: &Site, path: String, text: &str) -> String {
    age(&site.put(&path, text), 2 * 3600);
    path
}

#[test]
fn an_autumn_night_whose_second_upload_fails_in_the_same_run_has_18_instants() {
    for text in failing_second_uploads() {
        // A sweep.
        let site = Site::new();
        put_autumn_night(&site, 0);
        put_second_upload(&site, DEVICE.file(SECOND), &text);
        put_autumn_night(&site, 2);
        site.lp_run().run().expect(1);
        check_autumn_night(&site);
        // Named files.
        let site = Site::new();
        let paths = [
            put_autumn_night(&site, 2),
            put_second_upload(&site, DEVICE.file(SECOND), &text),
            put_autumn_night(&site, 0),
        ];
        let call = paths.iter().fold(site.lp_run(), Call::named);
        call.run().expect(1);
        check_autumn_night(&site);
        // A retry, together with an upload that waits.
        let site = Site::new();
        ingest_one_by_one(&site, &[0]);
        let path = put_second_upload(&site, DEVICE.error(SECOND), &text);
        let sidecar = json!({"error": "no server", "retryable": true, "time": "t", "run_id": "r"});
        site.put(format!("{path}.error.json"), sidecar.to_string());
        put_autumn_night(&site, 2);
        site.lp_run().arg("--retry-errors").run().expect(1);
        check_autumn_night(&site);
        assert_eq!(site.sidecar(&path)["retryable"], false);
    }
}

#[test]
fn a_file_that_failed_in_an_earlier_run_is_no_previous_upload() {
    for text in failing_second_uploads() {
        let site = Site::new();
        ingest_one_by_one(&site, &[0]);
        put_second_upload(&site, DEVICE.file(SECOND), &text);
        site.lp_run().run().expect(1);
        put_autumn_night(&site, 2);
        site.lp_run().ok();
        // The first of the two hours follows the upload in parsed/.
        let points = shown(&stored(&site.lp_points("acme")));
        assert_eq!(points[6], point("2025-10-26 00:00:00", VOLTAGE, 300.0));
        assert_eq!(points.len(), 12);
    }
}

#[test]
fn the_autumn_night_of_the_cases_is_the_one_of_these_tests() {
    let Some(dir) = cases() else { return };
    for (name, text, _) in autumn_night() {
        let case = std::fs::read_to_string(dir.join("autumn_night").join(name)).expect(name);
        assert_eq!(case, text, "{name}");
    }
}

#[test]
fn the_first_row_of_the_doubled_hour_is_the_earlier_one_without_a_recent_upload() {
    let (_, text, _) = &autumn_night()[2];
    let early = "2025-10-26 00:00:00";
    let first = ingest(text);
    assert_eq!(shown(&first.points)[0], point(early, VOLTAGE, 300.0));
    // The last row of the previous upload is 26 h older than the earlier instant, or more.
    for (time, utc) in [
        ("24/10/25 23:00:00", early),
        ("25/10/25 05:00:00", early),
        ("26/10/25 02:50:00", "2025-10-26 01:00:00"),
    ] {
        let site = Site::new();
        let previous = FileBuilder::with_channels(["Voie1 W"]).line(format_args!("{time}\t1"));
        let path = site.put(DEVICE.file("a.tsv"), previous.build());
        age(&path, 7200);
        site.put_old(DEVICE.file("b.tsv"), text);
        site.lp_run().ok();
        let points = shown(&site.lp_points("acme"));
        assert_eq!(points[1], point(utc, VOLTAGE, 300.0), "after {time}");
    }
}
