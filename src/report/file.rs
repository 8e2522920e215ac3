//! The report on a file: its serde types. A key of the report is a field of one of them.

use super::json::to_json;
use crate::data_dir::DevicePath;
use crate::layout::ColumnChange;
use crate::logger_file::{Channel, Problem};
use serde::Serialize;

/// The final status of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// All points are written.
    Success,
    /// The file failed.
    Error,
    /// The file stays in place for now: it is still being uploaded, or has changed.
    Skipped,
}

impl Status {
    /// The value in the report.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Skipped => "skipped",
        }
    }
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The report on a file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FileReport {
    /// Absolute path from which the file was ingested.
    pub file_path: String,
    /// What became of the file.
    #[serde(flatten)]
    pub result: FileResult,
    /// What is known about its content.
    #[serde(flatten)]
    pub details: FileDetails,
}

/// What became of a file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FileResult {
    /// Final status.
    pub status: Status,
    /// Why the file failed or was skipped.
    pub error: Option<String>,
    /// Whether another attempt may succeed.
    pub retryable: bool,
    /// Absolute path after the move, if the file was moved.
    pub moved_to: Option<String>,
    /// Whether the file failed because of an outage.
    #[serde(skip)]
    pub in_outage: bool,
}

/// What is known about a file. All counts of a file that was not read are 0.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct FileDetails {
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
    /// Whether the file is truncated.
    pub truncated: bool,
    /// Number of rows kept.
    pub nb_rows: u64,
    /// Number of channels.
    pub nb_channels: usize,
    /// Number of points that the server or the disk accepted. In a dry run, the number of valid points.
    pub nb_points: u64,
    /// Number of points that were not written because they are older than the retention of the bucket.
    pub nb_points_expired: u64,
    /// Number of rows skipped because of an invalid timestamp.
    pub nb_invalid_timestamps: u64,
    /// Number of cells without a valid value in rows that were kept.
    pub nb_invalid_values: u64,
    /// Number of rows skipped because they contain more than one row.
    pub nb_malformed_rows: u64,
    /// Number of rows with fewer cells than the header.
    pub nb_short_rows: u64,
    /// Number of lines after `END_DATA`.
    pub nb_lines_after_end: u64,
    /// Number of tables.
    pub nb_tables: u64,
    /// Number of value cells that hold something, and of the missing cells of short rows.
    pub nb_cells: u64,
    /// Share of these cells that are no point, 0 to 1.
    pub loss_ratio: f64,
    /// Number of rows before 2010, after the upload, or hours before the previous row.
    pub nb_suspicious_times: u64,
    /// Time zone of the file's times.
    pub time_zone: Option<String>,
    /// `header`, `header_posix`, `setting` or `machine`.
    pub time_zone_source: Option<&'static str>,
    /// How the layout changed since the previous file of the device, and within the file.
    pub layout_changed: Option<Vec<ColumnChange>>,
    /// What contradicts the layout, in plain words.
    pub layout_suspect: Option<Vec<String>>,
    /// The first defects of the file.
    pub problems: Vec<Problem>,
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
    /// Whether a person has acknowledged what contradicts the layout.
    #[serde(skip)]
    pub is_layout_acknowledged: bool,
}

impl FileDetails {
    /// The details of a file that was not read; `location` is `None` if it is not in a device folder.
    pub(crate) fn unread(location: Option<&DevicePath>) -> Self {
        Self {
            bucket: location.map(|l| l.company.as_str().to_owned()),
            campaign: location.map(|l| l.campaign.as_str().to_owned()),
            device_master_sn: location.map(|l| l.device.as_str().to_owned()),
            channels: Some(Channels::default()),
            ..Self::default()
        }
    }
}

impl FileReport {
    /// Serializes to compact JSON. If it is longer than `max` bytes, the channels are removed, then the header.
    pub(super) fn compact(&mut self, max: usize) -> String {
        let mut text = to_json(self);
        if text.len() > max {
            self.details.channels = None;
            text = to_json(self);
        }
        if text.len() > max {
            self.details.file_header_meta = None;
            text = to_json(self);
        }
        text
    }
}

/// The channels of a file in column order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Channels(pub Vec<ChannelStats>);

/// Statistics of one channel of a file.
#[derive(Debug, Clone)]
pub(crate) struct ChannelStats {
    channel: Channel,
    points: u64,
    min: f64,
    max: f64,
    /// Sum of the values, infinite if it overflows.
    sum: f64,
    /// Sum of the values times [`SCALE`], which does not overflow.
    scaled_sum: f64,
}

/// Scale factor of `scaled_sum`. As a power of two (2^-40) it does not change the precision.
const SCALE: f64 = 1.0 / 1_099_511_627_776.0;

/// The size of the channels in a report up to which they are never left out, in bytes.
const MIN_CHANNELS_SIZE: u64 = 64 * 1024;

/// How many times as large as the file the channels in its report may be.
const MAX_CHANNELS_FACTOR: u64 = 16;

/// The size of a channel in a report without its texts, in bytes: keys, numbers and punctuation.
const CHANNEL_SIZE: usize = 150;

impl Channels {
    /// The channels of a file of this size in bytes. `None` if they are so many, or their names so long, that the report
    /// would be many times as large as the file.
    pub(crate) fn of_file(channels: Vec<ChannelStats>, file_size: u64) -> Option<Self> {
        let text = |c: &Channel| c.id.len() + c.name.len() + c.unit.len();
        let size: usize = channels
            .iter()
            .map(|stats| text(&stats.channel) + CHANNEL_SIZE)
            .sum();
        let limit = MIN_CHANNELS_SIZE.max(MAX_CHANNELS_FACTOR * file_size);
        (size as u64 <= limit).then_some(Self(channels))
    }
}

impl ChannelStats {
    /// The statistics of a channel without values.
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel,
            points: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sum: 0.0,
            scaled_sum: 0.0,
        }
    }

    /// Takes the name and unit from a later header.
    pub(crate) fn rename(&mut self, channel: &Channel) {
        self.channel.name.clone_from(&channel.name);
        self.channel.unit.clone_from(&channel.unit);
    }

    /// Adds a value.
    pub(crate) fn add(&mut self, value: f64) {
        self.points += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum += value;
        self.scaled_sum += value * SCALE;
    }

    /// Mean of the values, or `None` if there are none.
    fn mean(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let points = self.points as f64;
        (self.points > 0).then(|| {
            if self.sum.is_finite() {
                self.sum / points
            } else {
                self.scaled_sum / points / SCALE
            }
        })
    }
}

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
            let has_points = stats.points > 0;
            let report = ChannelReport {
                channel_name: &stats.channel.name,
                unit: &stats.channel.unit,
                nb_points: stats.points,
                min: has_points.then_some(stats.min),
                max: has_points.then_some(stats.max),
                mean: stats.mean(),
            };
            (&stats.channel.id, report)
        }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::report) fn failed(path: &str, error: &str) -> FileReport {
        FileReport {
            file_path: path.to_owned(),
            result: FileResult {
                status: Status::Error,
                error: Some(error.to_owned()),
                retryable: false,
                moved_to: None,
                in_outage: false,
            },
            details: FileDetails::unread(None),
        }
    }

    #[test]
    fn a_compact_report_drops_what_does_not_fit() {
        let mut report = failed("x", "no");
        report.details.file_header_meta = Some(serde_json::Value::String("x".repeat(70_000)));
        assert!(report.compact(64_000).len() < 2_000);
        assert!(report.details.channels.is_none());
    }
}
