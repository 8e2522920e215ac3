//! Reports on runs and files. See docs/specification.md, section 7.

mod file;
mod heartbeat;
mod json;
mod json_file;
mod metrics;
mod progress;
mod recorder;
mod run;
mod verified;

pub(crate) use file::{ChannelStats, Channels, FileDetails, FileReport, FileResult, Status};
pub(crate) use heartbeat::{Heartbeat, ping};
pub(crate) use metrics::{RUN_MEASUREMENT, file_point, run_point};
pub(crate) use progress::{Progress, StderrWriter};
pub(crate) use recorder::{ReportTarget, RunRecorder, Summary};
pub(crate) use run::{Counts, RunHead, RunTotals};
pub(crate) use verified::{VERIFIED_FILE, Verified, VerifiedDevices, add_verified, read_verified};

use chrono::{DateTime, SecondsFormat, Utc};

/// Formats a number of things: "1 file", "2 files".
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Formats a time as ISO 8601 in UTC, with fractions of a second if there are any.
pub(crate) fn iso(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}
