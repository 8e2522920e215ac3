//! `powerview status`: does every logger arrive? Read off the folders alone, no server is asked.

mod diagnose;
mod scan;
mod table;

use crate::cli;
use crate::config;
use crate::config::Environment;
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::report::Progress;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// How a device, or a campaign without one, is doing.
///
/// This is also an entry of `devices` in the output of `--json`, whose keys stay as they are: new ones may be added.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceStatus {
    /// The company's folder, made safe to show.
    pub company: String,
    /// The campaign's folder; empty if the company could not be looked into.
    pub campaign: String,
    /// The device's folder; empty for a campaign without devices.
    pub device: String,
    /// The last instant in the newest files, ISO 8601 in UTC.
    pub last_measurement: Option<DateTime<Utc>>,
    /// The newest file, wherever it lies.
    pub last_file: Option<String>,
    /// When it arrived: its last change on disk.
    pub last_file_time: Option<DateTime<Utc>>,
    /// Files that wait.
    pub waiting: u64,
    /// Files in `error/` that `--retry-errors` takes.
    pub errors_retryable: u64,
    /// Files in `error/` that need a person.
    pub errors_other: u64,
    /// What is wrong, the worst first; empty if all is well.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// What kind, for programs.
    pub kind: Kind,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// The kinds of what can be wrong, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A folder cannot be looked into.
    Unreadable,
    /// No file for longer than `--silent-after`.
    Silent,
    /// Files in `error/` that need a person.
    Errors,
    /// Files in `error/` that failed for the server's sake.
    Retryable,
    /// Files wait that should have been taken.
    Waiting,
    /// The logger's clock is wrong.
    Clock,
    /// The newest files are all cut off.
    Truncated,
    /// A campaign without a file.
    Empty,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// When it was looked.
    time: DateTime<Utc>,
    data_folder: String,
    /// In seconds.
    silent_after_s: u64,
    /// Whether nothing is wrong.
    healthy: bool,
    devices: &'a [DeviceStatus],
}

/// Prints the state of all devices; 1 if something is wrong.
///
/// # Errors
/// A data folder that cannot be used.
pub fn status(args: &cli::Status) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    init_logging(&args.common, &env, &Progress::none())?;
    let folder = config::data_folder(args.data_folder.as_deref())?;
    let zones = config::file_zones(&args.common, &env)?;
    let now = Utc::now();
    let silent_after = args.silent_after;
    let mut devices: Vec<_> = scan::all(&folder, &zones)
        .into_iter()
        .map(|found| diagnose::diagnose(found, &folder, now, silent_after))
        .collect();
    devices.sort_by(worst_first);
    let healthy = devices.iter().all(|device| device.problems.is_empty());
    let text = if args.json {
        let report = Report {
            time: now,
            data_folder: folder.to_string_lossy().into_owned(),
            silent_after_s: silent_after.as_secs(),
            healthy,
            devices: &devices,
        };
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        table::table(&devices, now, std::io::stdout().is_terminal())
    };
    // That nobody listens changes nothing: the exit code says it too.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(if healthy {
        ExitCode::Success
    } else {
        ExitCode::GeneralError
    })
}

fn worst_first(a: &DeviceStatus, b: &DeviceStatus) -> std::cmp::Ordering {
    // A device without problems comes last.
    let worst = |d: &DeviceStatus| {
        d.problems
            .first()
            .map_or((true, Kind::Empty), |p| (false, p.kind))
    };
    worst(a).cmp(&worst(b)).then_with(|| {
        (&a.company, &a.campaign, &a.device).cmp(&(&b.company, &b.campaign, &b.device))
    })
}

/// A time span as people say it: "3 h", "2 d".
fn span(duration: Duration) -> String {
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
    fn spans_are_said_as_people_say_them() {
        let said = |minutes: u64| span(Duration::from_secs(minutes * 60));
        assert_eq!(said(0), "0 min");
        assert_eq!(said(119), "119 min");
        assert_eq!(said(120), "2 h");
        assert_eq!(said(26 * 60), "26 h");
        assert_eq!(said(5 * 1440), "5 d");
    }
}
