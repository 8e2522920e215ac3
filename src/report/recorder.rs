//! Collects the results of all devices: report, log lines, totals and failures.

use super::json_file::ReportWriter;
use super::{Counts, FileReport, RunHead, RunTotals, Status};
use crate::remedy::remedy;
use crate::sanitize::sanitize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of warnings about files per run, so that uploads cannot fill the disk with logs. The report has all.
const MAX_WARNINGS: u32 = 1_000;

/// Maximum number of failures in the summary.
const MAX_FAILURES: usize = 20;

/// Where the report is written.
#[derive(Debug, Clone)]
pub(crate) enum ReportTarget {
    /// To stdout: a dry run.
    Stdout,
    /// To a new file in this folder, which is created if it is missing.
    Dir(PathBuf),
}

/// Records the results of a run. Shared by all device workers.
pub(crate) struct RunRecorder {
    target: ReportTarget,
    warnings: AtomicU32,
    inner: Mutex<Inner>,
}

struct Inner {
    report: Option<ReportWriter>,
    counts: Counts,
    failures: Vec<(String, String)>,
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Summary {
    /// Totals.
    pub totals: RunTotals,
    /// The first failures: file and reason.
    pub failures: Vec<(String, String)>,
    /// Path of the report; none if it went to stdout or could not be written.
    pub report: Option<PathBuf>,
    /// Whether the report could not be written.
    pub report_lost: bool,
}

impl RunRecorder {
    /// Starts recording. If the report cannot be created, a warning is logged and the run goes on.
    pub(crate) fn open(target: ReportTarget, head: &RunHead) -> Self {
        let report = match &target {
            ReportTarget::Stdout => Some(ReportWriter::on_stdout(head)),
            ReportTarget::Dir(dir) => ReportWriter::in_dir(dir, head)
                .inspect_err(|error| warn_of_report(&target, error))
                .ok(),
        };
        Self {
            target,
            warnings: AtomicU32::new(0),
            inner: Mutex::new(Inner {
                report,
                counts: Counts::default(),
                failures: Vec::new(),
            }),
        }
    }

    /// Logs a warning about a file, up to a maximum per run.
    pub(crate) fn warn(&self, path: &Path, message: &str) {
        match self.warnings.fetch_add(1, Ordering::Relaxed) {
            n if n < MAX_WARNINGS => tracing::warn!("{}: {message}", sanitize(path)),
            MAX_WARNINGS => {
                tracing::warn!("more than {MAX_WARNINGS} warnings; see the report for the rest");
            }
            _ => {}
        }
    }

    /// Records the result of a file.
    pub(crate) fn add(&self, file: &FileReport) {
        let result = &file.result;
        let path = sanitize(&file.file_path);
        let error = result.error.as_deref().map(sanitize).unwrap_or_default();
        match result.status {
            Status::Success => {
                let place = result.moved_to.as_deref().map_or_else(
                    || "not moved".to_owned(),
                    |target| format!("moved to {}", sanitize(target)),
                );
                tracing::info!("{path}: {} points, {place}", file.details.nb_points);
            }
            Status::Skipped => tracing::info!("{path}: skipped: {error}"),
            // The outage was logged once already.
            Status::Error if result.in_outage => tracing::debug!("{path}: {error}"),
            Status::Error => self.warn(Path::new(&file.file_path), &error),
        }
        let mut inner = self.inner();
        inner.counts.add(file);
        if let Some(report) = &mut inner.report {
            report.add(file);
        }
        if result.status == Status::Error && inner.failures.len() < MAX_FAILURES {
            inner.failures.push((path, error));
        }
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.inner().counts
    }

    /// Completes the report and returns the summary. A failure to write the report is logged. `before_naming` is called
    /// when the report is on disk and has no name yet.
    pub(crate) fn finish(&self, totals: RunTotals, before_naming: impl FnOnce()) -> Summary {
        let (failures, report) = {
            let mut inner = self.inner();
            (std::mem::take(&mut inner.failures), inner.report.take())
        };
        let written = report.and_then(|report| {
            report
                .finish(&totals, before_naming)
                .inspect_err(|error| warn_of_report(&self.target, error))
                .ok()
        });
        Summary {
            totals,
            failures,
            report_lost: written.is_none(),
            report: written.flatten(),
        }
    }

    /// Locks the results. A poisoned mutex is used all the same, because its data stays consistent.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn warn_of_report(target: &ReportTarget, error: &std::io::Error) {
    match target {
        ReportTarget::Stdout => tracing::warn!(
            "cannot write the report to stdout: {error}; {}",
            remedy(error, "redirect it to a file that can be written")
        ),
        ReportTarget::Dir(dir) => tracing::warn!(
            "cannot write the report to {}: {error}; {}",
            sanitize(dir),
            remedy(error, "correct the permissions or set TSV_REPORT_DIR")
        ),
    }
}
