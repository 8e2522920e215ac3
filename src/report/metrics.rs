//! Meta points: one per run and one per file, for the operator's dashboard. See docs/specification.md, section 7.

use crate::points::Line;
use crate::report::{Counts, FileReport, RunHead, RunTail};
use chrono::Utc;

/// InfluxDB's limit for a text field, in bytes before escaping.
const MAX_FIELD: usize = 65_535;
/// Limit for the other text fields in bytes.
const MAX_ERROR: usize = 4_000;

/// A clock in nanoseconds that never repeats within a run. Points with the same tags and time would overwrite each
/// other.
#[derive(Debug, Default)]
pub struct MonotonicNanos(i64);

impl MonotonicNanos {
    /// The current time, but at least one nanosecond after the previous one.
    pub fn next_ns(&mut self) -> i64 {
        let now = Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX - 1);
        self.0 = now.max(self.0 + 1);
        self.0
    }
}

/// Encodes the meta point of a file. Removes parts of the report that do not fit.
pub fn file_point(file: &mut FileReport, run_id: &str, time_ns: i64) -> Vec<u8> {
    let mut line = Line::new("tsv_parser_file");
    line.tag("bucket", file.bucket.as_deref().unwrap_or_default());
    line.tag("campaign", file.campaign.as_deref().unwrap_or_default());
    line.tag(
        "device_master_sn",
        file.device_master_sn.as_deref().unwrap_or_default(),
    );
    line.tag("status", file.status.as_str());
    let mut fields = line.fields();
    let name = file.file_path.rsplit('/').next().unwrap_or_default();
    fields.text("file_name", &crate::sanitize::sanitize(name), MAX_ERROR);
    fields.text("run_id", run_id, MAX_ERROR);
    fields.integer("nb_rows", count(file.nb_rows));
    fields.integer("nb_channels", count(file.nb_channels as u64));
    fields.integer("nb_points", count(file.nb_points));
    fields.integer("nb_invalid_timestamps", count(file.nb_invalid_timestamps));
    fields.integer("nb_invalid_values", count(file.nb_invalid_values));
    fields.integer("nb_malformed_rows", count(file.nb_malformed_rows));
    fields.boolean("truncated", file.truncated);
    fields.boolean("retryable", file.retryable);
    if let Some(last) = file.last_measurement {
        fields.integer("last_measurement_s", last);
    }
    if let Some(delay) = file.delay_s {
        fields.float("delay_s", delay);
    }
    if let Some(delay) = file.arrival_delay_s {
        fields.float("arrival_delay_s", delay);
    }
    fields.text(
        "error",
        file.error.as_deref().unwrap_or_default(),
        MAX_ERROR,
    );
    fields.text("report", &file.compact(MAX_FIELD), MAX_FIELD);
    fields.at(time_ns)
}

/// Encodes the meta point of a run.
pub fn run_point(head: &RunHead, tail: &RunTail, counts: &Counts, time_ns: i64) -> Vec<u8> {
    let mut line = Line::new("tsv_parser_run");
    line.tag("status", tail.status);
    let mut fields = line.fields();
    fields.text("run_id", &head.run_id, MAX_ERROR);
    fields.integer("nb_files_total", count(counts.total));
    fields.integer("nb_files_success", count(counts.success));
    fields.integer("nb_files_failed", count(counts.failed));
    fields.integer("nb_files_skipped", count(counts.skipped));
    fields.integer("nb_points_total", count(counts.points));
    fields.integer("nb_retries", count(tail.nb_retries));
    fields.integer("outage", i64::from(tail.outage));
    fields.float("duration_s", tail.duration_s);
    fields.text(
        "base_folder",
        &crate::sanitize::sanitize(&head.base_folder),
        MAX_ERROR,
    );
    fields.at(time_ns)
}

fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Status;
    use influxdb_line_protocol::{FieldValue, parse_lines};
    use std::path::Path;

    #[test]
    fn a_file_point_is_one_line_that_influxdatas_parser_reads() {
        let mut file =
            FileReport::unread(Path::new("/d/a\nb.tsv"), None, Status::Error, "x\"y\\z\n");
        file.bucket = Some("acme, rec=1".to_owned());
        let line =
            String::from_utf8(file_point(&mut file, "r", 1_700_000_000_000_000_001)).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let parsed = parse_lines(&line).next().unwrap().unwrap();
        assert_eq!(parsed.tag_value("bucket").unwrap().as_str(), "acme, rec=1");
        assert_eq!(parsed.tag_value("status").unwrap().as_str(), "error");
        assert_eq!(parsed.timestamp, Some(1_700_000_000_000_000_001));
        assert_eq!(parsed.field_value("nb_rows"), Some(&FieldValue::I64(0)));
        let Some(FieldValue::String(report)) = parsed.field_value("report") else {
            panic!("no report");
        };
        let report: serde_json::Value = serde_json::from_str(report.as_str()).unwrap();
        assert_eq!(report["error"], "x\"y\\z\n");
    }

    #[test]
    fn instants_never_repeat() {
        let mut clock = MonotonicNanos::default();
        let found: Vec<_> = (0..1000).map(|_| clock.next_ns()).collect();
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
