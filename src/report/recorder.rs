//! Where the results of all devices come together: the report, the meta points, the counts, the failures to be told.

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

/// Meta points are sent when they have come to this size, in bytes, and at the end.
const META_BLOCK: usize = 256 * 1024;

/// Warnings about files in one run; what is more stands in the report only. An upload must not fill the disk with logs.
const MAX_WARNINGS: u32 = 1_000;

/// Failures that are told one by one at the end of a run.
const MAX_TOLD: usize = 20;

/// The results of a run, as they come.
pub struct RunRecorder {
    head: RunHead,
    report_dir: PathBuf,
    start: Instant,
    meta_bucket: Arc<str>,
    warnings: AtomicU32,
    inner: Mutex<Inner>,
    /// A block of meta points on its way. Apart from the rest: nobody waits for a server with a lock on that.
    flying: Mutex<Option<PendingWrite>>,
    /// That meta points could not be written was said.
    meta_lost: AtomicBool,
}

struct Inner {
    report: Option<ReportWriter>,
    counts: Counts,
    told: Vec<(String, String)>,
    meta: Vec<u8>,
    meta_lines: u32,
    /// Blocks that are ready to be sent.
    ready: Vec<Batch>,
    ticks: MonotonicNanos,
    dry_run: bool,
}

/// What a run came to.
#[derive(Debug)]
pub struct Summary {
    /// All counts.
    pub counts: Counts,
    /// The first failures: file and reason.
    pub failures: Vec<(String, String)>,
    /// Where the report is; none if it went to stdout, or could not be written.
    pub report: Option<PathBuf>,
    /// Whether it could not be written.
    pub report_lost: bool,
    /// In seconds.
    pub duration_s: f64,
}

impl RunRecorder {
    /// Begins the report. That it cannot be written is a warning and changes no file's fate.
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
                told: Vec::new(),
                meta: Vec::new(),
                meta_lines: 0,
                ready: Vec::new(),
                ticks: MonotonicNanos::default(),
                dry_run: settings.dry_run,
            }),
            flying: Mutex::default(),
            meta_lost: AtomicBool::new(false),
        }
    }

    /// The run's id.
    pub fn run_id(&self) -> &str {
        &self.head.run_id
    }

    /// Warns about a file, once a cause.
    pub fn warn(&self, path: &Path, words: &str) {
        match self.warnings.fetch_add(1, Ordering::Relaxed) {
            n if n < MAX_WARNINGS => tracing::warn!("{}: {words}", sanitize(path)),
            MAX_WARNINGS => {
                tracing::warn!("more than {MAX_WARNINGS} warnings; the rest stands in the report")
            }
            _ => {}
        }
    }

    /// Takes a file's result.
    pub fn add(&self, mut file: FileReport) {
        let path = sanitize(&file.file_path);
        let error = file.error.as_deref().map(sanitize);
        match (file.status, &error) {
            (Status::Success, _) => {
                tracing::info!(
                    "{path}: {} points, now {}",
                    file.nb_points,
                    sanitize(file.moved_to.as_deref().unwrap_or("in place"))
                );
            }
            (Status::Skipped, reason) => {
                tracing::info!("{path}: skipped: {}", reason.as_deref().unwrap_or_default())
            }
            // The server's or the installation's fault is not the file's, and was said once already.
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
        if file.status == Status::Error && inner.told.len() < MAX_TOLD {
            inner.told.push((path, error.unwrap_or_default()));
        }
        if !inner.dry_run {
            let time = inner.ticks.next_ns();
            let line = file_point(&mut file, &self.head.run_id, time);
            inner.meta.extend_from_slice(&line);
            inner.meta_lines += 1;
            if inner.meta.len() >= META_BLOCK {
                inner.close_block();
            }
        }
    }

    /// Counts so far.
    pub fn counts(&self) -> Counts {
        locked(&self.inner).counts
    }

    /// Sends the meta points that have gathered.
    pub fn send_meta(&self, sink: &Sink) {
        let ready = std::mem::take(&mut locked(&self.inner).ready);
        for block in ready {
            let mut flying = locked(&self.flying);
            self.await_block(&mut flying);
            *flying = Some(sink.send(&self.meta_bucket, block, Precision::Nanoseconds));
        }
    }

    /// Ends the report and gives it its place; none on stdout. That this fails is said.
    fn publish(&self, report: Option<ReportWriter>, tail: &RunTail) -> Option<Option<PathBuf>> {
        match report?.finish(tail) {
            Ok(place) => Some(place),
            Err(error) if self.head.dry_run => {
                tracing::warn!("the report cannot be written to the standard output: {error}");
                None
            }
            Err(error) => {
                warn_of_report(&self.report_dir, &error);
                None
            }
        }
    }

    fn await_block(&self, flying: &mut Option<PendingWrite>) {
        if let Some(ticket) = flying.take()
            && let Err(failure) = ticket.wait()
            && !self.meta_lost.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("points about this run are not written: {failure}");
        }
    }

    /// Ends the report and sends the last meta points, the run's own among them.
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
            let time = inner.ticks.next_ns();
            let line = run_point(&self.head, &tail, &counts, time);
            inner.meta.extend_from_slice(&line);
            inner.meta_lines += 1;
            inner.close_block();
        }
        let (failures, report) = (std::mem::take(&mut inner.told), inner.report.take());
        drop(inner);
        // The report is brought to the disk while the server takes the last points.
        self.send_meta(sink);
        let report = self.publish(report, &tail);
        self.await_block(&mut locked(&self.flying));
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
    fn close_block(&mut self) {
        let lines = std::mem::take(&mut self.meta);
        let count = std::mem::take(&mut self.meta_lines);
        self.ready.push(Batch::plain(lines, count));
    }
}

/// A lock whose holder cannot panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn warn_of_report(dir: &Path, error: &std::io::Error) {
    tracing::warn!(
        "the report cannot be written to {}: {error}; make room there or set TSV_REPORT_DIR",
        sanitize(dir)
    );
}
