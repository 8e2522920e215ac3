//! Meta points: one per run and one per file, for the operator's dashboard. See docs/specification.md, section 7.

use crate::layout::describe_changes;
use crate::points::Line;
use crate::report::{FileReport, RunHead, RunTotals};
use crate::sanitize::sanitize;

/// The measurement of the points about runs.
pub(crate) const RUN_MEASUREMENT: &str = "tsv_parser_run";
/// InfluxDB's limit for a text field, in bytes before escaping.
const MAX_FIELD: usize = 65_535;
/// Limit for the other text fields in bytes.
const MAX_TEXT: usize = 4_000;

/// Encodes the meta point of a file. Removes parts of the report that do not fit.
pub(crate) fn file_point(mut file: FileReport, run_id: &str, time_ns: i64) -> Vec<u8> {
    let (result, details) = (&file.result, &file.details);
    let mut line = Line::new("tsv_parser_file");
    line.tag("bucket", details.bucket.as_deref().unwrap_or_default());
    line.tag("campaign", details.campaign.as_deref().unwrap_or_default());
    line.tag(
        "device_master_sn",
        details.device_master_sn.as_deref().unwrap_or_default(),
    );
    line.tag("status", result.status.as_str());
    let mut fields = line.fields();
    let name = file.file_path.rsplit('/').next().unwrap_or_default();
    fields.text("file_name", &sanitize(name), MAX_TEXT);
    fields.text("run_id", run_id, MAX_TEXT);
    fields.integer("nb_rows", count(details.nb_rows));
    fields.integer("nb_channels", count(details.nb_channels as u64));
    fields.integer("nb_points", count(details.nb_points));
    fields.integer("nb_points_expired", count(details.nb_points_expired));
    fields.integer(
        "nb_invalid_timestamps",
        count(details.nb_invalid_timestamps),
    );
    fields.integer("nb_invalid_values", count(details.nb_invalid_values));
    fields.integer("nb_malformed_rows", count(details.nb_malformed_rows));
    fields.integer("nb_short_rows", count(details.nb_short_rows));
    fields.integer("nb_lines_after_end", count(details.nb_lines_after_end));
    fields.integer("nb_tables", count(details.nb_tables));
    fields.integer("nb_cells", count(details.nb_cells));
    fields.float("loss_ratio", details.loss_ratio);
    fields.integer("nb_suspicious_times", count(details.nb_suspicious_times));
    let first_problem = details.problems.first().map(ToString::to_string);
    fields.text(
        "first_problem",
        &first_problem.unwrap_or_default(),
        MAX_TEXT,
    );
    fields.boolean("truncated", details.truncated);
    fields.boolean("retryable", result.retryable);
    if let Some(last) = details.last_measurement {
        fields.integer("last_measurement_s", last);
    }
    if let Some(delay) = details.delay_s {
        fields.float("delay_s", delay);
    }
    if let Some(delay) = details.arrival_delay_s {
        fields.float("arrival_delay_s", delay);
    }
    fields.text(
        "error",
        result.error.as_deref().unwrap_or_default(),
        MAX_TEXT,
    );
    let changes = details.layout_changed.as_deref().unwrap_or_default();
    fields.text("layout_changed", &describe_changes(changes), MAX_TEXT);
    let contradictions = details.layout_suspect.as_deref().unwrap_or_default();
    let open = if details.is_layout_acknowledged {
        &[]
    } else {
        contradictions
    };
    fields.text("layout_suspect", &open.join("; "), MAX_TEXT);
    fields.text("report", &file.compact(MAX_FIELD), MAX_FIELD);
    fields.at(time_ns)
}

/// Encodes the meta point of a run.
pub(crate) fn run_point(head: &RunHead, totals: &RunTotals, time_ns: i64) -> Vec<u8> {
    let mut line = Line::new(RUN_MEASUREMENT);
    line.tag("status", totals.status);
    let mut fields = line.fields();
    let counts = totals.counts;
    fields.text("run_id", &head.run_id, MAX_TEXT);
    fields.integer("nb_files_total", count(counts.nb_files_total));
    fields.integer("nb_files_success", count(counts.nb_files_success));
    fields.integer("nb_files_failed", count(counts.nb_files_failed));
    fields.integer("nb_files_skipped", count(counts.nb_files_skipped));
    fields.integer("nb_points_total", count(counts.nb_points_total));
    fields.integer("nb_retries", count(totals.nb_retries));
    fields.integer("outage", i64::from(totals.outage));
    fields.float("duration_s", totals.duration_s);
    fields.text("base_folder", &sanitize(&head.base_folder), MAX_TEXT);
    fields.at(time_ns)
}

fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logger_file::Problem;
    use crate::report::Counts;
    use crate::report::file::tests::failed;
    use influxdb_line_protocol::{FieldValue, parse_lines};

    #[test]
    fn a_file_point_is_one_line_that_influxdatas_parser_reads() {
        let mut file = failed("/d/a\nb.tsv", "x\"y\\z\n");
        file.details.bucket = Some("acme, rec=1".to_owned());
        let line = String::from_utf8(file_point(file, "r", 1_700_000_000_000_000_001)).unwrap();
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

    /// Each count that is added to a report must be added to its point too.
    #[test]
    fn the_points_have_all_counts_of_the_reports() {
        let file = failed("/d/a.tsv", "x");
        let report = serde_json::to_value(&file).unwrap();
        let head = RunHead::now(std::path::Path::new("/d"), false);
        let totals = head.totals(Counts::default(), 0, false);
        let counts_of = |report: serde_json::Value| -> Vec<String> {
            let keys = report.as_object().unwrap().keys().cloned();
            keys.filter(|key| key.starts_with("nb_")).collect()
        };
        for (point, counts, known) in [
            (file_point(file, "r", 1), counts_of(report), "nb_cells"),
            (
                run_point(&head, &totals, 1),
                counts_of(serde_json::to_value(&totals).unwrap()),
                "nb_retries",
            ),
        ] {
            let line = String::from_utf8(point).unwrap();
            let parsed = parse_lines(&line).next().unwrap().unwrap();
            assert!(counts.iter().any(|count| count == known), "{counts:?}");
            for count in counts {
                let value = parsed.field_value(&count);
                assert_eq!(value, Some(&FieldValue::I64(0)), "{count}");
            }
        }
    }

    #[test]
    fn a_file_point_has_the_loss_and_the_first_defect() {
        let mut file = failed("/d/a.tsv", "x");
        let line = file_point(file.clone(), "r", 1);
        assert!(
            String::from_utf8(line)
                .unwrap()
                .contains(r#",first_problem="","#)
        );
        for line in [3, 4] {
            file.details.problems.push(Problem {
                line,
                column: 2,
                text: "1,5".to_owned(),
                reason: "not a number",
            });
        }
        file.details.loss_ratio = 0.25;
        let line = String::from_utf8(file_point(file, "r", 1)).unwrap();
        assert!(line.contains(",loss_ratio=0.25,"), "{line}");
        let first = r#",first_problem="line 3, column 2, \"1,5\": not a number","#;
        assert!(line.contains(first), "{line}");
    }
}
