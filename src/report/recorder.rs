//! Collects the results of all devices: report, meta points, totals and failures.

use crate::config::Settings;
use crate::points::Batch;
use crate::report::ReportWriter;
use crate::report::metrics::{MonotonicNanos, file_point, run_point};
use crate::report::{Counts, FileReport, RunHead, RunTail, Status, iso};
use crate::sanitize::sanitize;
use crate::sink::{PendingWrite, Precision, Sink};
use chrono::Utc;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Size in bytes at which a block of meta points is sent. The rest is sent at the end of the run.
const META_BLOCK: usize = 256 * 1024;

/// Maximum number of warnings about files per run, so that uploads cannot fill the disk with logs. The report has all.
const MAX_WARNINGS: u32 = 1_000;

/// Maximum number of failures in the summary.
const MAX_FAILURES: usize = 20;

/// Records the results of a run. Shared by all device workers.
pub struct RunRecorder {
    head: RunHead,
    report_dir: PathBuf,
    start: Instant,
    meta_bucket: Arc<str>,
    warnings: AtomicU32,
    inner: Mutex<Inner>,
    /// The block of meta points being written. It has its own lock, so that waiting for the server does not block
    /// `inner`.
    in_flight: Mutex<Option<PendingWrite>>,
    /// Whether a warning about lost meta points was logged.
    meta_lost: AtomicBool,
}

struct Inner {
    report: Option<ReportWriter>,
    counts: Counts,
    failures: Vec<(String, String)>,
    meta: Vec<u8>,
    meta_lines: u32,
    /// Blocks ready to be sent.
    ready: Vec<Batch>,
    clock: MonotonicNanos,
    dry_run: bool,
}

/// The result of a run.
#[derive(Debug)]
pub struct Summary {
    /// Totals.
    pub counts: Counts,
    /// The first failures: file and reason.
    pub failures: Vec<(String, String)>,
    /// Path of the report; none if it went to stdout or could not be written.
    pub report: Option<PathBuf>,
    /// Whether the report could not be written.
    pub report_lost: bool,
    /// Duration in seconds.
    pub duration_s: f64,
}

impl RunRecorder {
    /// Starts recording. If the report cannot be created, a warning is logged and the run goes on.
    pub fn open(settings: &Settings) -> Self {
        let head = RunHead::now(&settings.data_folder, settings.dry_run);
        let report = if settings.dry_run {
            Some(ReportWriter::on_stdout(&head))
        } else {
            match ReportWriter::in_dir(&settings.report_dir, &head) {
                Ok(report) => Some(report),
                Err(error) => {
                    warn_of_report(&settings.report_dir, &error);
                    None
                }
            }
        };
        Self {
            head,
            report_dir: settings.report_dir.clone(),
            start: Instant::now(),
            meta_bucket: settings.meta_bucket.as_str().into(),
            warnings: AtomicU32::new(0),
            inner: Mutex::new(Inner {
                report,
                counts: Counts::default(),
                failures: Vec::new(),
                meta: Vec::new(),
                meta_lines: 0,
                ready: Vec::new(),
                clock: MonotonicNanos::default(),
                dry_run: settings.dry_run,
            }),
            in_flight: Mutex::default(),
            meta_lost: AtomicBool::new(false),
        }
    }

    /// The id of the run.
    pub fn run_id(&self) -> &str {
        &self.head.run_id
    }

    /// Logs a warning about a file, up to a maximum per run.
    pub fn warn(&self, path: &Path, message: &str) {
        match self.warnings.fetch_add(1, Ordering::Relaxed) {
            n if n < MAX_WARNINGS => tracing::warn!("{}: {message}", sanitize(path)),
            MAX_WARNINGS => {
                tracing::warn!("more than {MAX_WARNINGS} warnings; see the report for the rest")
            }
            _ => {}
        }
    }

    /// Records the result of a file.
    pub fn add(&self, mut file: FileReport) {
        let path = sanitize(&file.file_path);
        let error = file.error.as_deref().map(sanitize);
        match (file.status, &error) {
            (Status::Success, _) => {
                let place = file.moved_to.as_deref().map_or_else(
                    || "not moved".to_owned(),
                    |target| format!("moved to {}", sanitize(target)),
                );
                tracing::info!("{path}: {} points, {place}", file.nb_points);
            }
            (Status::Skipped, reason) => {
                tracing::info!("{path}: skipped: {}", reason.as_deref().unwrap_or_default())
            }
            // The outage was logged once already.
            (Status::Error, reason) if file.in_outage => {
                tracing::debug!("{path}: {}", reason.as_deref().unwrap_or_default());
            }
            (Status::Error, reason) => self.warn(
                Path::new(&file.file_path),
                reason.as_deref().unwrap_or_default(),
            ),
        }
        let mut inner = locked(&self.inner);
        inner.counts.add(&file);
        if let Some(report) = &mut inner.report {
            report.add(&file);
        }
        if file.status == Status::Error && inner.failures.len() < MAX_FAILURES {
            inner.failures.push((path, error.unwrap_or_default()));
        }
        if !inner.dry_run {
            let time = inner.clock.next_ns();
            let line = file_point(&mut file, &self.head.run_id, time);
            inner.meta.extend_from_slice(&line);
            inner.meta_lines += 1;
            if inner.meta.len() >= META_BLOCK {
                inner.close_block();
            }
        }
    }

    /// The totals so far.
    pub fn counts(&self) -> Counts {
        locked(&self.inner).counts
    }

    /// Sends the blocks of meta points that are ready.
    pub fn send_meta(&self, sink: &Sink) {
        let ready = std::mem::take(&mut locked(&self.inner).ready);
        for block in ready {
            let mut in_flight = locked(&self.in_flight);
            self.await_block(&mut in_flight);
            *in_flight = Some(sink.send(&self.meta_bucket, block, Precision::Nanoseconds));
        }
    }

    /// Completes the report and returns its path; `Some(None)` on stdout. A failure is logged.
    fn publish(&self, report: Option<ReportWriter>, tail: &RunTail) -> Option<Option<PathBuf>> {
        match report?.finish(tail) {
            Ok(path) => Some(path),
            Err(error) if self.head.dry_run => {
                tracing::warn!(
                    "cannot write the report to stdout: {error}; redirect it to a file that can be written"
                );
                None
            }
            Err(error) => {
                warn_of_report(&self.report_dir, &error);
                None
            }
        }
    }

    /// Waits for the block being written and logs its failure, once per run.
    fn await_block(&self, in_flight: &mut Option<PendingWrite>) {
        if let Some(write) = in_flight.take()
            && let Err(error) = write.wait()
            && !self.meta_lost.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("cannot write points about this run: {error}");
        }
    }

    /// Completes the report, sends the remaining meta points and that of the run, and returns the summary.
    pub fn finish(&self, sink: &Sink) -> Summary {
        self.send_meta(sink);
        let mut inner = locked(&self.inner);
        let counts = inner.counts;
        let duration_s = self.start.elapsed().as_secs_f64();
        let tail = RunTail {
            end_time: iso(Utc::now()),
            duration_s,
            nb_files_total: counts.total,
            nb_files_success: counts.success,
            nb_files_failed: counts.failed,
            nb_files_skipped: counts.skipped,
            nb_points_total: counts.points,
            nb_retries: sink.retries(),
            outage: sink.outage().is_some(),
            status: if counts.failed == 0 {
                "success"
            } else {
                "partial_failure"
            },
        };
        if !inner.dry_run {
            let time = inner.clock.next_ns();
            let line = run_point(&self.head, &tail, &counts, time);
            inner.meta.extend_from_slice(&line);
            inner.meta_lines += 1;
            inner.close_block();
        }
        let (failures, report) = (std::mem::take(&mut inner.failures), inner.report.take());
        drop(inner);
        // The report is synced to disk while the server writes the last points.
        self.send_meta(sink);
        let report = self.publish(report, &tail);
        self.await_block(&mut locked(&self.in_flight));
        Summary {
            counts,
            failures,
            report_lost: report.is_none(),
            report: report.flatten(),
            duration_s,
        }
    }
}

impl Inner {
    /// Makes the collected meta points a block that is ready to be sent.
    fn close_block(&mut self) {
        let lines = std::mem::take(&mut self.meta);
        let count = std::mem::take(&mut self.meta_lines);
        self.ready.push(Batch::plain(lines, count));
    }
}

/// Locks a mutex. A poisoned one is used all the same, because its data stays consistent.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn warn_of_report(dir: &Path, error: &std::io::Error) {
    tracing::warn!(
        "cannot write the report to {}: {error}; free disk space, correct the permissions or set TSV_REPORT_DIR",
        sanitize(dir)
    );
}
