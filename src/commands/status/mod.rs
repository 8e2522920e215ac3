//! `powerview status`: lists all devices and their problems. It reads the data folder only and needs no server.

mod acknowledge;
mod device_folder;
mod diagnose;
mod notes;
mod retire;
mod scan;
mod table;

use self::device_folder::Locking;
use crate::cli;
use crate::config;
use crate::config::Environment;
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::report::{self, Heartbeat, Progress, VERIFIED_FILE, VerifiedDevices};
use crate::sanitize::sanitize;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// The status of a device, or of a campaign without devices.
///
/// Serialized as an entry of `devices` in the output of `--json`. Its keys are stable; new ones may be added.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DeviceStatus {
    /// Name of the company folder, sanitized.
    pub company: String,
    /// Name of the campaign folder; empty if the company has none or cannot be read.
    pub campaign: String,
    /// Name of the device folder; empty for a campaign without devices.
    pub device: String,
    /// Time of the last measurement in the newest files, ISO 8601 in UTC.
    pub last_measurement: Option<DateTime<Utc>>,
    /// The newest file, relative to the device folder.
    pub last_file: Option<String>,
    /// Arrival of the newest file: its modification time.
    pub last_file_time: Option<DateTime<Utc>>,
    /// Number of files waiting to be ingested.
    pub waiting: u64,
    /// Number of files in `error/` that `--retry-errors` ingests again.
    pub errors_retryable: u64,
    /// Number of files in `error/` that need manual attention.
    pub errors_other: u64,
    /// Whether the device is out of service, and has no problems of the logger.
    pub retired: bool,
    /// When `verify` last found the database equal to the files.
    pub verified: Option<DateTime<Utc>>,
    /// The first time that was compared then; none if all times were.
    pub verified_since: Option<DateTime<Utc>>,
    /// The problems, most severe first.
    pub problems: Vec<Problem>,
    /// Something to know that is not a problem.
    pub note: Option<String>,
}

/// A problem of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Problem {
    /// The kind, for programs.
    pub kind: Kind,
    /// Description, for people.
    pub message: String,
    /// How to solve it.
    pub remedy: String,
}

/// Kinds of problems, most severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A folder or file cannot be read.
    Unreadable,
    /// No file for longer than `--silent-after`.
    Silent,
    /// Files in `error/` need manual attention.
    Errors,
    /// Files in `error/` failed because of the server.
    Retryable,
    /// Files wait because of the rights of a folder.
    Rights,
    /// Files have been waiting for too long.
    Waiting,
    /// Hourly summaries have not been computed for too long.
    Summaries,
    /// An ingested file has lost some of its values.
    Damaged,
    /// Columns changed their meaning, or what they mean is doubtful.
    Layout,
    /// The logger's clock is wrong.
    Clock,
    /// The newest files are all truncated.
    Truncated,
    /// Files that no run takes.
    Stray,
    /// A company without campaigns, a campaign without devices or a device without files.
    Empty,
}

impl Kind {
    /// Whether the logger is the cause, and not the server or what is left to do with the files.
    fn is_of_logger(self) -> bool {
        matches!(
            self,
            Self::Silent
                | Self::Damaged
                | Self::Layout
                | Self::Clock
                | Self::Truncated
                | Self::Empty
        )
    }
}

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Time of the scan.
    time: DateTime<Utc>,
    data_folder: String,
    /// Value of `--silent-after` in seconds.
    silent_after_s: u64,
    /// Whether there are no problems.
    healthy: bool,
    devices: &'a [DeviceStatus],
    /// What an operator should know about folders. It is not a problem.
    notes: &'a [String],
}

/// Prints the status of all devices; exit status 1 if there are problems. With `--acknowledge`, `--retire` or `--unretire`,
/// changes devices instead.
///
/// # Errors
/// The data folder or a setting is unusable.
pub(super) fn status(args: &cli::Status) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    init_logging(&args.common, &env, &Progress::none())?;
    if args.changes_devices() {
        change_devices(args, &env)?;
        return Ok(ExitCode::Success);
    }
    let monitor = config::heartbeat(&env)?;
    let result = print_status(args, &env);
    let failure = match &result {
        Ok(problems) => problems.clone(),
        Err(error) => Some(format!("powerview status failed: {error:#}")),
    };
    let exit_code = if failure.is_some() {
        ExitCode::GeneralError
    } else {
        ExitCode::Success
    };
    // The success of a sweep is not reported here: it would hide a failure of the last sweep.
    if let (Some(url), Some(failure)) = (monitor, failure) {
        report::ping(&url, Heartbeat::Failure(failure));
    }
    result.map(|_| exit_code)
}

/// Acknowledges layouts, retires devices and puts devices into service again, as far as each is asked for.
fn change_devices(args: &cli::Status, env: &Environment) -> anyhow::Result<()> {
    let folder = config::data_folder(Some(&args.data_folder.path))?;
    let lock = Locking {
        wait: config::lock_wait(env)?,
        env,
    };
    let print = |line: &str| {
        let _ = writeln!(std::io::stdout(), "{line}");
    };
    for device in &args.acknowledge {
        for line in acknowledge::acknowledge(&folder, device, lock)? {
            print(&line);
        }
    }
    for device in &args.retire {
        print(&retire::retire(&folder, device, lock)?);
    }
    for device in &args.unretire {
        print(&retire::unretire(&folder, device, lock)?);
    }
    Ok(())
}

/// Prints the status of all devices. Returns a summary of the problems, if there are any.
fn print_status(args: &cli::Status, env: &Environment) -> anyhow::Result<Option<String>> {
    let folder = config::data_folder(Some(&args.data_folder.path))?;
    let zones = config::file_zones(args.common.timezone.as_deref(), env)?;
    let now = Utc::now();
    let silent_after = args.silent_after;
    let mut scans = scan::all(&folder, &zones);
    if config::rollup(env)?.is_none() {
        // No run computes them.
        for scan in &mut scans {
            scan.summaries_pending = None;
        }
    }
    let mut notes = notes::notes(&scans, &folder);
    let reports = config::report_dir(&folder, env);
    let verified = report::read_verified(&reports).unwrap_or_else(|error| {
        let file = sanitize(reports.join(VERIFIED_FILE));
        notes.push(format!(
            "{file} cannot be read, so it is unknown when devices were verified: {error}"
        ));
        VerifiedDevices::new()
    });
    let mut devices: Vec<_> = scans
        .iter()
        .map(|device| {
            let verified = device.path.to_str().and_then(|path| verified.get(path));
            DeviceStatus {
                verified: verified.map(|verified| verified.time),
                verified_since: verified.and_then(|verified| verified.since),
                ..diagnose::diagnose(device, &folder, now, silent_after)
            }
        })
        .collect();
    devices.sort_by(by_severity);
    let healthy = devices.iter().all(|device| device.problems.is_empty());
    let text = if args.json {
        let report = Report {
            time: now,
            data_folder: folder.to_string_lossy().into_owned(),
            silent_after_s: silent_after.as_secs(),
            healthy,
            devices: &devices,
            notes: &notes,
        };
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        table::table(&devices, &notes, now, std::io::stdout().is_terminal())
    };
    // Write errors are ignored: the exit code has the result too.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok((!healthy).then(|| {
        format!(
            "{}; run powerview status -d {} for the problems and remedies",
            table::summary(&devices),
            sanitize(&folder)
        )
    }))
}

fn by_severity(a: &DeviceStatus, b: &DeviceStatus) -> std::cmp::Ordering {
    // Devices without problems come last.
    let worst = |d: &DeviceStatus| {
        d.problems
            .first()
            .map_or((true, Kind::Empty), |p| (false, p.kind))
    };
    worst(a).cmp(&worst(b)).then_with(|| {
        (&a.company, &a.campaign, &a.device).cmp(&(&b.company, &b.campaign, &b.device))
    })
}

/// Formats a duration in one unit: "90 min", "3 h", "2 d".
fn format_duration(duration: Duration) -> String {
    let minutes = duration.as_secs() / 60;
    match minutes {
        0..120 => format!("{minutes} min"),
        120..2880 => format!("{} h", minutes / 60),
        _ => format!("{} d", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_formatted_in_the_largest_suitable_unit() {
        let format = |minutes: u64| format_duration(Duration::from_secs(minutes * 60));
        assert_eq!(format(0), "0 min");
        assert_eq!(format(119), "119 min");
        assert_eq!(format(120), "2 h");
        assert_eq!(format(26 * 60), "26 h");
        assert_eq!(format(5 * 1440), "5 d");
    }
}
