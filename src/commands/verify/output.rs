//! The result for people and for programs.

use super::summaries::Summaries;
use crate::report::{counted, iso};
use crate::sanitize::sanitize;
use crate::verify::{
    DeviceResult, Difference, Month, PointDifferences, Sample, UnexplainedMeasurement, Verification,
};
use chrono::{DateTime, Utc};
use indicatif::HumanCount;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// The output of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    /// Time at the end of the comparison.
    time: DateTime<Utc>,
    data_folder: String,
    /// Whether the database has exactly the points of the files.
    equal: bool,
    #[serde(flatten)]
    points: PointDifferences,
    /// Number of files that were read.
    files: u64,
    /// Number of points that were written.
    repaired: u64,
    devices: Vec<Device<'a>>,
    /// Measurements that no campaign folder accounts for.
    unexplained_measurements: &'a [UnexplainedMeasurement],
    /// Why some points were not compared.
    failures: &'a [String],
    notes: &'a [String],
    /// The comparison of the hourly summaries. `null` if they are turned off.
    summaries: Option<&'a Summaries>,
}

/// An entry of `devices`.
#[derive(Serialize)]
struct Device<'a> {
    company: &'a str,
    campaign: &'a str,
    device: &'a str,
    equal: bool,
    #[serde(flatten)]
    points: PointDifferences,
    files: u64,
    months: Vec<MonthOfDevice>,
    /// The first points that differ, of each kind.
    first: BTreeMap<Difference, Vec<Point<'a>>>,
}

/// An entry of `months`.
#[derive(Serialize)]
struct MonthOfDevice {
    month: String,
    #[serde(flatten)]
    points: PointDifferences,
}

/// A point that differs.
#[derive(Serialize)]
struct Point<'a> {
    time: String,
    series: &'a str,
    expected: Option<f64>,
    found: Option<&'a str>,
}

/// Formats the result as a JSON object.
pub(super) fn json(
    verification: &Verification,
    summaries: Option<&Summaries>,
    folder: &Path,
) -> serde_json::Result<String> {
    let report = Report {
        time: Utc::now(),
        data_folder: folder.to_string_lossy().into_owned(),
        equal: verification.is_equal(),
        points: verification.total(),
        files: verification.files,
        repaired: verification.repaired,
        devices: verification.devices.iter().map(device).collect(),
        unexplained_measurements: &verification.unexplained,
        failures: &verification.failures,
        notes: &verification.notes,
        summaries,
    };
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}

fn device(result: &DeviceResult) -> Device<'_> {
    let points = result.counts.total();
    let months = result
        .counts
        .months
        .iter()
        .map(|(month, points)| MonthOfDevice {
            month: format_month(*month),
            points: *points,
        });
    let first = result.counts.samples.iter().map(|(kind, samples)| {
        let samples = samples.iter().map(|sample| Point {
            time: time(sample),
            series: &sample.series,
            expected: sample.expected,
            found: sample.found.as_deref(),
        });
        (*kind, samples.collect())
    });
    Device {
        company: &result.company,
        campaign: &result.campaign,
        device: &result.device,
        equal: points.is_equal(),
        points,
        files: result.files,
        months: months.collect(),
        first: first.collect(),
    }
}

/// Formats a line per device that differs, with its months and first points, the worst first, and a summary.
pub(super) fn text(verification: &Verification) -> String {
    let mut text = String::new();
    let mut differing: Vec<_> = verification
        .devices
        .iter()
        .map(|device| (device.counts.total(), device))
        .filter(|(points, _)| !points.is_equal())
        .collect();
    differing.sort_by_key(|(points, _)| Reverse(points.differing()));
    for (points, device) in &differing {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}: {}", path(device), differences(points));
        for (month, points) in &device.counts.months {
            if !points.is_equal() {
                let _ = writeln!(
                    text,
                    "    {}: {}",
                    format_month(*month),
                    differences(points)
                );
            }
        }
        for (kind, samples) in &device.counts.samples {
            for sample in samples {
                let _ = writeln!(text, "    {}", point(*kind, sample));
            }
        }
    }
    for measurement in &verification.unexplained {
        let _ = writeln!(
            text,
            "note: bucket {}: {} in the measurement {}, which has no campaign folder",
            sanitize(&measurement.company),
            points(measurement.points),
            sanitize(&measurement.measurement)
        );
    }
    for note in &verification.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for failure in &verification.failures {
        let _ = writeln!(text, "not compared: {failure}");
    }
    if verification.repaired > 0 {
        let _ = writeln!(text, "repaired: {} written", points(verification.repaired));
    }
    let total = verification.total();
    let _ = writeln!(
        text,
        "{} in {}; {}",
        points(total.expected),
        counted(verification.files, "file"),
        differences(&total)
    );
    text
}

pub(in crate::commands) fn points(number: u64) -> String {
    let noun = if number == 1 { "point" } else { "points" };
    format!("{} {noun}", HumanCount(number))
}

fn differences(points: &PointDifferences) -> String {
    format!(
        "{} missing, {} different, {} extra",
        HumanCount(points.missing),
        HumanCount(points.different),
        HumanCount(points.extra)
    )
}

fn path(device: &DeviceResult) -> String {
    let name = if device.files == 0 && device.counts.total().expected == 0 {
        format!(
            "device_master_sn {:?} without a file",
            sanitize(&device.device)
        )
    } else {
        sanitize(&device.device)
    };
    format!(
        "{}/{}/{name}",
        sanitize(&device.company),
        sanitize(&device.campaign)
    )
}

fn point(kind: Difference, sample: &Sample) -> String {
    let series = sanitize(&sample.series);
    let expected = sample.expected.unwrap_or_default();
    let found = sanitize(sample.found.as_deref().unwrap_or_default());
    let time = time(sample);
    match kind {
        Difference::Missing => format!("missing {time} {series}: {expected} in the files"),
        Difference::Different => {
            format!("different {time} {series}: {expected} in the files, {found} in the database")
        }
        Difference::Extra => format!("extra {time} {series}: {found} in the database"),
    }
}

fn time(sample: &Sample) -> String {
    DateTime::from_timestamp(sample.time, 0).map_or_else(|| sample.time.to_string(), iso)
}

fn format_month((year, month): Month) -> String {
    format!("{year:04}-{month:02}")
}
