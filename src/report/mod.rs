//! What a report says of a run and its files. Source: docs/specification.md, section 7.

mod heartbeat;
mod json_file;
mod metrics;
mod progress;
mod recorder;

pub use heartbeat::ping;
pub use json_file::ReportWriter;
pub use progress::{Beside, Progress};
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

/// How a file ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All its points are where they should be.
    Success,
    /// It failed.
    Error,
    /// It was left alone for now: still being uploaded, or changed meanwhile.
    Skipped,
}

impl Status {
    /// As in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Skipped => "skipped",
        }
    }
}

/// What the report says of a file.
#[derive(Debug, Clone, Serialize)]
pub struct FileReport {
    /// Where it was taken from, absolute.
    pub file_path: String,
    /// Where it is now, if it was moved.
    pub moved_to: Option<String>,
    /// The company.
    pub bucket: Option<String>,
    /// The campaign.
    pub campaign: Option<String>,
    /// The device folder.
    pub device_master_sn: Option<String>,
    /// The format marker.
    pub file_format: Option<&'static str>,
    /// `plain` or `headed`.
    pub file_container: Option<&'static str>,
    /// How it ended.
    pub status: Status,
    /// Why it failed or was skipped.
    pub error: Option<String>,
    /// Whether another try is worth it.
    pub retryable: bool,
    /// Cut off before its end.
    pub truncated: bool,
    /// Rows kept.
    pub nb_rows: u64,
    /// Columns.
    pub nb_channels: usize,
    /// Values read and sent.
    pub nb_points: u64,
    /// Rows skipped for their time.
    pub nb_invalid_timestamps: u64,
    /// Cells of the rows kept that hold no value.
    pub nb_invalid_values: u64,
    /// Rows skipped because a line break is missing.
    pub nb_malformed_rows: u64,
    /// The first instant that has a point, ISO 8601 in UTC.
    pub time_start: Option<String>,
    /// The last instant that has a point.
    pub time_end: Option<String>,
    /// From the last measurement to the moment it was in the database, in seconds.
    pub delay_s: Option<f64>,
    /// From the file's last change on disk to the moment it was in the database, in seconds.
    pub arrival_delay_s: Option<f64>,
    /// The JSON of a headed file.
    pub file_header_meta: Option<serde_json::Value>,
    /// By channel id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
    /// The last instant that has a point, in seconds since 1970.
    #[serde(skip)]
    pub last_measurement: Option<i64>,
    /// Whether it failed because the server is given up for the whole run.
    #[serde(skip)]
    pub in_outage: bool,
}

/// The channels of a file, in the order of its columns.
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
    /// Of a file that was not read.
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

    /// Of a file that was read, as a success; what speaks against it is added by whoever knows.
    pub fn read(path: &Path, location: &DevicePath, found: ParsedFile) -> Self {
        let instant = |seconds: i64| DateTime::from_timestamp(seconds, 0).map(iso);
        Self {
            error: None,
            file_format: found.marker,
            file_container: found.container.map(Container::name),
            truncated: found.truncated,
            nb_rows: found.stats.rows,
            nb_channels: found.channels.len(),
            nb_points: found.stats.points,
            nb_invalid_timestamps: found.stats.invalid_timestamps,
            nb_invalid_values: found.stats.invalid_values,
            nb_malformed_rows: found.stats.malformed_rows,
            time_start: found.span.as_ref().and_then(|span| instant(*span.start())),
            time_end: found.span.as_ref().and_then(|span| instant(*span.end())),
            last_measurement: found.span.as_ref().map(|span| *span.end()),
            file_header_meta: match found.meta {
                HeaderMeta::Json(value) => Some(value),
                HeaderMeta::None | HeaderMeta::Broken(_) => None,
            },
            channels: Some(Channels(found.channels)),
            ..Self::unread(path, Some(location), Status::Success, "")
        }
    }

    /// Compact JSON of at most `max` bytes: without the channels where they would make it longer, then without the header.
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

/// ISO 8601 in UTC, with microseconds where there are any.
pub fn iso(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// What is counted over all files of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub total: u64,
    /// Those that arrived.
    pub success: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were left alone.
    pub skipped: u64,
    /// Their points.
    pub points: u64,
}

impl Counts {
    /// Counts a file.
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

/// What is known of a run from its beginning.
#[derive(Debug, Clone)]
pub struct RunHead {
    /// Unlike any other run's.
    pub run_id: String,
    /// When it began.
    pub start: DateTime<Utc>,
    /// The data folder.
    pub base_folder: String,
    /// Whether it only looks.
    pub dry_run: bool,
}

impl RunHead {
    /// Of a run that begins now. Time alone would not tell two runs apart.
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

/// What is known of a run at its end.
#[derive(Debug, Clone, Serialize)]
pub struct RunTail {
    /// ISO 8601 in UTC.
    pub end_time: String,
    /// In seconds.
    pub duration_s: f64,
    /// All files.
    pub nb_files_total: u64,
    /// Those that arrived.
    pub nb_files_success: u64,
    /// Those that failed.
    pub nb_files_failed: u64,
    /// Those that were left alone.
    pub nb_files_skipped: u64,
    /// Points of all files.
    pub nb_points_total: u64,
    /// Requests that were sent again.
    pub nb_retries: u64,
    /// Whether the server was given up.
    pub outage: bool,
    /// `success` or `partial_failure`.
    pub status: &'static str,
}

/// JSON in which no character can do harm to a terminal.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut bytes, EscapingFormatter(CompactFormatter));
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        // All keys are text and all numbers are finite: there is nothing that JSON could not say.
        Err(error) => format!("{{\"error\":{:?}}}", error.to_string()),
    }
}

/// Writes control and invisible characters as `\u` escapes, also those that JSON would let pass.
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
    fn no_raw_control_character_is_in_the_json_and_all_of_them_read_back() {
        let text = "a\u{1b}[2J\u{9b}\u{202e}\u{e0001}\u{7f}\"\\\né";
        let json = to_json(&text);
        assert!(!json.chars().any(needs_escape), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn a_compact_report_sheds_what_does_not_fit() {
        let mut report = file("x");
        report.file_header_meta = Some(serde_json::Value::String("x".repeat(70_000)));
        assert!(report.compact(64_000).len() < 2_000);
        assert!(report.channels.is_none());
    }
}
