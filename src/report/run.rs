//! The report on a run: its serde types. A key of the report is a field of one of them.

use super::file::{FileReport, Status};
use super::iso;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Keys of a run that are known at its start.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RunHead {
    /// Unique id.
    pub run_id: String,
    /// Start time, ISO 8601 in UTC.
    pub start_time: String,
    /// Data folder.
    pub base_folder: String,
    /// Whether it is a dry run.
    pub dry_run: bool,
    /// When the run started, for its duration.
    #[serde(skip)]
    started: Instant,
}

impl RunHead {
    /// Creates the head of a run that starts now. The id contains the process id, because runs may start at the same
    /// time.
    pub(crate) fn now(base_folder: &Path, dry_run: bool) -> Self {
        let now: DateTime<Utc> = Utc::now();
        let time = now.to_rfc3339_opts(SecondsFormat::Micros, true);
        Self {
            run_id: format!("{time}-{}", std::process::id()),
            start_time: iso(now),
            base_folder: base_folder.to_string_lossy().into_owned(),
            dry_run,
            started: Instant::now(),
        }
    }

    /// The id in a form for names of files.
    pub(crate) fn file_stem(&self) -> String {
        self.run_id.replace(':', "-")
    }

    /// The totals of the run, which ends now.
    pub(crate) fn totals(&self, counts: Counts, nb_retries: u64, outage: bool) -> RunTotals {
        RunTotals {
            end_time: iso(Utc::now()),
            duration_s: self.started.elapsed().as_secs_f64(),
            counts,
            nb_retries,
            outage,
            status: if counts.nb_files_failed == 0 {
                "success"
            } else {
                "partial_failure"
            },
        }
    }
}

/// Keys of a run that are known at its end.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RunTotals {
    /// End time, ISO 8601 in UTC.
    pub end_time: String,
    /// Duration in seconds.
    pub duration_s: f64,
    /// What is counted over all files.
    #[serde(flatten)]
    pub counts: Counts,
    /// Number of retried requests.
    pub nb_retries: u64,
    /// Whether there was an outage.
    pub outage: bool,
    /// `success` or `partial_failure`.
    pub status: &'static str,
}

/// What is counted over all files of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Number of files.
    pub nb_files_total: u64,
    /// Number of ingested files.
    pub nb_files_success: u64,
    /// Number of failed files.
    pub nb_files_failed: u64,
    /// Number of skipped files.
    pub nb_files_skipped: u64,
    /// Number of points.
    pub nb_points_total: u64,
}

impl Counts {
    /// Adds a file.
    pub(super) fn add(&mut self, file: &FileReport) {
        self.nb_files_total += 1;
        self.nb_points_total += file.details.nb_points;
        match file.result.status {
            Status::Success => self.nb_files_success += 1,
            Status::Error => self.nb_files_failed += 1,
            Status::Skipped => self.nb_files_skipped += 1,
        }
    }
}
