//! Reports on runs and files. See docs/specification.md, section 7.

mod file;
mod heartbeat;
mod json;
mod json_file;
mod metrics;
mod progress;
mod recorder;
mod run;

pub use file::{ChannelStats, Channels, FileDetails, FileReport, FileResult, Status};
pub use heartbeat::ping;
pub use metrics::{file_point, run_point};
pub use progress::{Progress, StderrWriter};
pub use recorder::{ReportTarget, RunRecorder, Summary};
pub use run::{Counts, RunHead, RunTotals};

use chrono::{DateTime, SecondsFormat, Utc};

/// Formats a time as ISO 8601 in UTC, with fractions of a second if there are any.
pub fn iso(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}
