//! Reports on runs and files. See docs/specification.md, section 7.

mod heartbeat;
mod json_file;
mod metrics;
mod progress;
mod recorder;

pub use heartbeat::ping;
pub use json_file::ReportWriter;
pub use progress::{Progress, StderrWriter};
pub use recorder::{RunRecorder, Summary};

use crate::data_dir::DevicePath;
use crate::logger_file::{Container, HeaderMeta};
use crate::pipeline::ingest::{ChannelStats, ParsedFile};
use crate::sanitize::needs_escape;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};
use std::io::{self, Write};
use std::path::Path;

/// The final status of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All points are written.
    Success,
    /// The file failed.
    Error,
    /// The file stays in place for now: it is still being uploaded, or has changed.
    Skipped,
}

impl Status {
    /// The value in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Skipped => "skipped",
        }
    }
}

/// The report on a file.
#[derive(Debug, Clone, Serialize)]
pub struct FileReport {
    /// Absolute path from which the file was ingested.
    pub file_path: String,
    /// Absolute path after the move, if the file was moved.
    pub moved_to: Option<String>,
    /// Company.
    pub bucket: Option<String>,
    /// Campaign.
    pub campaign: Option<String>,
    /// Device folder.
    pub device_master_sn: Option<String>,
    /// Format marker.
    pub file_format: Option<&'static str>,
    /// `plain` or `headed`.
    pub file_container: Option<&'static str>,
    /// Final status.
    pub status: Status,
    /// Why the file failed or was skipped.
    pub error: Option<String>,
    /// Whether another attempt may succeed.
    pub retryable: bool,
    /// Whether the file is truncated.
    pub truncated: bool,
    /// Number of rows kept.
    pub nb_rows: u64,
    /// Number of channels.
    pub nb_channels: usize,
    /// Number of points sent.
    pub nb_points: u64,
    /// Number of rows skipped because of an invalid timestamp.
    pub nb_invalid_timestamps: u64,
    /// Number of cells without a valid value in rows that were kept.
    pub nb_invalid_values: u64,
    /// Number of rows skipped because they have too many cells.
    pub nb_malformed_rows: u64,
    /// Time of the first point, ISO 8601 in UTC.
    pub time_start: Option<String>,
    /// Time of the last point, ISO 8601 in UTC.
    pub time_end: Option<String>,
    /// Seconds from the last measurement until it was written.
    pub delay_s: Option<f64>,
    /// Seconds from the file's last modification until it was written.
    pub arrival_delay_s: Option<f64>,
    /// JSON header of a headed file.
    pub file_header_meta: Option<serde_json::Value>,
    /// Channels by id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
    /// Time of the last point in seconds since 1970.
    #[serde(skip)]
    pub last_measurement: Option<i64>,
    /// Whether the file failed because of an outage.
    #[serde(skip)]
    pub in_outage: bool,
}

/// The channels of a file in column order.
#[derive(Debug, Clone, Default)]
pub struct Channels(Vec<ChannelStats>);

#[derive(Serialize)]
struct ChannelReport<'a> {
    channel_name: &'a str,
    unit: &'a str,
    nb_points: u64,
    min: Option<f64>,
    max: Option<f64>,
    mean: Option<f64>,
}

impl Serialize for Channels {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|stats| {
            let any = stats.points > 0;
            let report = ChannelReport {
                channel_name: &stats.channel.name,
                unit: &stats.channel.unit,
                nb_points: stats.points,
                min: any.then_some(stats.min),
                max: any.then_some(stats.max),
                mean: stats.mean(),
            };
            (&stats.channel.id, report)
        }))
    }
}

impl FileReport {
    /// Creates the report on a file that was not read.
    pub fn unread(
        path: &Path,
        location: Option<&DevicePath>,
        status: Status,
        error: impl Into<String>,
    ) -> Self {
        Self {
            file_path: path.to_string_lossy().into_owned(),
            moved_to: None,
            bucket: location.map(|l| l.company.as_str().to_owned()),
            campaign: location.map(|l| l.campaign.as_str().to_owned()),
            device_master_sn: location.map(|l| l.device.as_str().to_owned()),
            file_format: None,
            file_container: None,
            status,
            error: Some(error.into()),
            retryable: false,
            truncated: false,
            nb_rows: 0,
            nb_channels: 0,
            nb_points: 0,
            nb_invalid_timestamps: 0,
            nb_invalid_values: 0,
            nb_malformed_rows: 0,
            time_start: None,
            time_end: None,
            delay_s: None,
            arrival_delay_s: None,
            file_header_meta: None,
            channels: Some(Channels::default()),
            last_measurement: None,
            in_outage: false,
        }
    }

    /// Creates the report on a file that was read, with status success. The caller adds errors.
    pub fn read(path: &Path, location: &DevicePath, parsed: ParsedFile) -> Self {
        let instant = |seconds: i64| DateTime::from_timestamp(seconds, 0).map(iso);
        Self {
            error: None,
            file_format: parsed.marker,
            file_container: parsed.container.map(Container::name),
            truncated: parsed.truncated,
            nb_rows: parsed.stats.rows,
            nb_channels: parsed.channels.len(),
            nb_points: parsed.stats.points,
            nb_invalid_timestamps: parsed.stats.invalid_timestamps,
            nb_invalid_values: parsed.stats.invalid_values,
            nb_malformed_rows: parsed.stats.malformed_rows,
            time_start: parsed.span.as_ref().and_then(|span| instant(*span.start())),
            time_end: parsed.span.as_ref().and_then(|span| instant(*span.end())),
            last_measurement: parsed.span.as_ref().map(|span| *span.end()),
            file_header_meta: match parsed.meta {
                HeaderMeta::Json(value) => Some(value),
                HeaderMeta::None | HeaderMeta::Broken(_) => None,
            },
            channels: Some(Channels(parsed.channels)),
            ..Self::unread(path, Some(location), Status::Success, "")
        }
    }

    /// Serializes to compact JSON. If it is longer than `max` bytes, the channels are removed, then the header.
    pub fn compact(&mut self, max: usize) -> String {
        let mut text = to_json(self);
        if text.len() > max {
            self.channels = None;
            text = to_json(self);
        }
        if text.len() > max {
            self.file_header_meta = None;
            text = to_json(self);
        }
        text
    }
}

/// Formats a time as ISO 8601 in UTC, with fractions of a second if there are any.
pub fn iso(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Totals of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of files.
    pub total: u64,
    /// Number of ingested files.
    pub success: u64,
    /// Number of failed files.
    pub failed: u64,
    /// Number of skipped files.
    pub skipped: u64,
    /// Number of points.
    pub points: u64,
}

impl Counts {
    /// Adds a file.
    pub fn add(&mut self, file: &FileReport) {
        self.total += 1;
        self.points += file.nb_points;
        match file.status {
            Status::Success => self.success += 1,
            Status::Error => self.failed += 1,
            Status::Skipped => self.skipped += 1,
        }
    }
}

/// Keys of a run that are known at its start.
#[derive(Debug, Clone)]
pub struct RunHead {
    /// Unique id.
    pub run_id: String,
    /// Start time.
    pub start: DateTime<Utc>,
    /// Data folder.
    pub base_folder: String,
    /// Whether it is a dry run.
    pub dry_run: bool,
}

impl RunHead {
    /// Creates the head of a run that starts now. The id contains the process id, because runs may start at the same
    /// time.
    pub fn now(base_folder: &Path, dry_run: bool) -> Self {
        let start = Utc::now();
        let time = start.to_rfc3339_opts(SecondsFormat::Micros, true);
        Self {
            run_id: format!("{time}-{}", std::process::id()),
            start,
            base_folder: base_folder.to_string_lossy().into_owned(),
            dry_run,
        }
    }
}

/// Keys of a run that are known at its end.
#[derive(Debug, Clone, Serialize)]
pub struct RunTail {
    /// End time, ISO 8601 in UTC.
    pub end_time: String,
    /// Duration in seconds.
    pub duration_s: f64,
    /// Number of files.
    pub nb_files_total: u64,
    /// Number of ingested files.
    pub nb_files_success: u64,
    /// Number of failed files.
    pub nb_files_failed: u64,
    /// Number of skipped files.
    pub nb_files_skipped: u64,
    /// Number of points of all files.
    pub nb_points_total: u64,
    /// Number of retried requests.
    pub nb_retries: u64,
    /// Whether there was an outage.
    pub outage: bool,
    /// `success` or `partial_failure`.
    pub status: &'static str,
}

/// Serializes to compact JSON without raw control or invisible characters.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut bytes, EscapingFormatter(CompactFormatter));
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        // Cannot happen: all keys are strings and all numbers are finite.
        Err(error) => format!("{{\"error\":{:?}}}", error.to_string()),
    }
}

/// Formatter that escapes control and invisible characters as `\u`, including those that JSON allows.
struct EscapingFormatter(CompactFormatter);

impl Formatter for EscapingFormatter {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| needs_escape(*c)) {
            out.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        out.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        self.0.write_char_escape(out, escape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> FileReport {
        FileReport::unread(Path::new(path), None, Status::Error, "no")
    }

    #[test]
    fn control_characters_are_escaped_in_json_and_read_back() {
        let text = "a\u{1b}[2J\u{9b}\u{202e}\u{e0001}\u{7f}\"\\\né";
        let json = to_json(&text);
        assert!(!json.chars().any(needs_escape), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn a_compact_report_drops_what_does_not_fit() {
        let mut report = file("x");
        report.file_header_meta = Some(serde_json::Value::String("x".repeat(70_000)));
        assert!(report.compact(64_000).len() < 2_000);
        assert!(report.channels.is_none());
    }
}
