//! The table for people.

use super::{DeviceStatus, Kind, format_duration};
use crate::report::counted;
use chrono::{DateTime, Utc};
use std::fmt::Write as _;
use unicode_width::UnicodeWidthStr as _;

const HEADER: [&str; 9] = [
    "",
    "company",
    "campaign",
    "device",
    "last measurement",
    "last file",
    "waiting",
    "in error",
    "verified",
];

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const RESET: &str = "\x1b[0m";

/// Formats one line per device, its problems below it, the notes, and a summary line.
pub(super) fn table(
    devices: &[DeviceStatus],
    notes: &[String],
    now: DateTime<Utc>,
    colours: bool,
) -> String {
    let rows: Vec<[String; 9]> = devices.iter().map(|device| row(device, now)).collect();
    let mut widths = HEADER.map(unicode_width::UnicodeWidthStr::width);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let line = |cells: [&str; 9]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(text, "{cell}{}  ", " ".repeat(width - cell.width()));
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(HEADER);
    for (device, row) in devices.iter().zip(&rows) {
        let line = line(row.each_ref().map(String::as_str));
        match colours.then(|| colour(device)) {
            Some(colour) => {
                let _ = writeln!(text, "{colour}{}{RESET}", line.trim_end());
            }
            None => text.push_str(&line),
        }
        for problem in &device.problems {
            let _ = writeln!(text, "      {}: {}", problem.message, problem.remedy);
        }
        if let Some(note) = &device.note {
            let _ = writeln!(text, "      {note}");
        }
    }
    for note in notes {
        let _ = writeln!(text, "note: {note}");
    }
    text + &summary(devices) + "\n"
}

/// The line about all devices.
pub(super) fn summary(devices: &[DeviceStatus]) -> String {
    let unhealthy = devices
        .iter()
        .filter(|device| !device.problems.is_empty())
        .count();
    let all = counted(devices.len() as u64, "device");
    match (devices.len(), unhealthy) {
        (0, _) => "no device yet".to_owned(),
        (1, 0) => "1 device is healthy".to_owned(),
        (_, 0) => format!("all {all} are healthy"),
        (_, 1) => format!("1 of {all} needs attention"),
        (_, unhealthy) => format!("{unhealthy} of {all} need attention"),
    }
}

fn row(device: &DeviceStatus, now: DateTime<Utc>) -> [String; 9] {
    let mark = match device.problems.first().map(|problem| problem.kind) {
        None if device.retired => "retired",
        None => "ok",
        Some(Kind::Silent) => "SILENT",
        Some(Kind::Unreadable | Kind::Errors) => "ERROR",
        Some(Kind::Retryable) => "RETRY",
        Some(Kind::Rights | Kind::Waiting) => "WAITS",
        Some(Kind::Summaries) => "SUMMARY",
        Some(Kind::Damaged) => "DAMAGED",
        Some(Kind::Layout) => "LAYOUT",
        Some(Kind::Clock) => "CLOCK",
        Some(Kind::Truncated) => "CUT",
        Some(Kind::Stray) => "STRAY",
        Some(Kind::Empty) => "EMPTY",
    };
    let dash = || "-".to_owned();
    let ago = |at: DateTime<Utc>| {
        let age = (now - at).to_std().unwrap_or_default();
        format!("{} ago", format_duration(age))
    };
    [
        mark.to_owned(),
        device.company.clone(),
        device.campaign.clone(),
        device.device.clone(),
        device
            .last_measurement
            .map_or_else(dash, |at| at.format("%Y-%m-%d %H:%MZ").to_string()),
        device.last_file_time.map_or_else(dash, ago),
        device.waiting.to_string(),
        match (device.errors_retryable, device.errors_other) {
            (0, 0) => "0".to_owned(),
            (retryable, other) => format!("{other} + {retryable} retryable"),
        },
        device.verified.map_or_else(dash, ago),
    ]
}

fn colour(device: &DeviceStatus) -> &'static str {
    match device.problems.first().map(|problem| problem.kind) {
        None => GREEN,
        Some(Kind::Unreadable | Kind::Silent | Kind::Errors) => RED,
        Some(_) => YELLOW,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::Problem;

    fn device(name: &str, problem: Option<Kind>) -> DeviceStatus {
        DeviceStatus {
            company: "Société".to_owned(),
            campaign: "site".to_owned(),
            device: name.to_owned(),
            last_measurement: DateTime::from_timestamp(1_800_000_000, 0),
            last_file: None,
            last_file_time: DateTime::from_timestamp(1_800_000_000, 0),
            waiting: 0,
            errors_retryable: 0,
            errors_other: 0,
            retired: false,
            verified: None,
            verified_since: None,
            note: None,
            problems: problem
                .map(|kind| Problem {
                    kind,
                    message: "wrong".to_owned(),
                    remedy: "do this".to_owned(),
                })
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn a_pipe_gets_no_colours_and_columns_line_up() {
        let now = DateTime::from_timestamp(1_800_010_800, 0).unwrap();
        let verified = DeviceStatus {
            verified: DateTime::from_timestamp(1_799_700_000, 0),
            ..device("02000002", None)
        };
        let text = table(
            &[device("1", Some(Kind::Silent)), verified],
            &["a note".to_owned()],
            now,
            false,
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1],
            "SILENT  Société  site      1         2027-01-15 08:00Z  3 h ago    0        0         -"
        );
        assert_eq!(lines[2], "      wrong: do this");
        assert_eq!(
            lines[3],
            "ok      Société  site      02000002  2027-01-15 08:00Z  3 h ago    0        0         3 d ago"
        );
        assert_eq!(lines[4], "note: a note");
        assert_eq!(lines[5], "1 of 2 devices needs attention");
    }

    #[test]
    fn the_summary_uses_singulars() {
        let (healthy, silent) = (device("1", None), device("2", Some(Kind::Silent)));
        for (devices, expected) in [
            (vec![], "no device yet"),
            (vec![&healthy], "1 device is healthy"),
            (vec![&healthy, &healthy], "all 2 devices are healthy"),
            (vec![&silent], "1 of 1 device needs attention"),
            (vec![&silent, &healthy], "1 of 2 devices needs attention"),
            (vec![&silent, &silent], "2 of 2 devices need attention"),
        ] {
            let devices: Vec<_> = devices.into_iter().cloned().collect();
            assert_eq!(summary(&devices), expected);
        }
    }

    #[test]
    fn a_terminal_gets_colours() {
        let text = table(&[device("1", Some(Kind::Silent))], &[], Utc::now(), true);
        assert!(text.contains(RED) && text.contains(RESET));
    }
}
