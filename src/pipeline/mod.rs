//! A run: finds the device folders, processes them in parallel and writes the report.

mod device;
mod finish;
mod ingest;
mod later_uploads;
mod layout_guard;
mod limits;
mod named_file;
mod outcome;
mod row_before;
mod submit;
mod summaries;
mod sweep;
mod uploads;
mod versions;

use self::limits::Limits;
pub(crate) use self::limits::raise_file_limit;
use self::named_file::ingest_named;
use self::outcome::FileRecord;
pub(crate) use self::row_before::{LastRows, row_before};
use self::summaries::SummaryState;
use self::sweep::sweep;
use crate::config::{ConfigError, Settings};
use crate::data_dir::Dir;
use crate::remedy::remedy;
use crate::report::{
    FileReport, Progress, RUN_MEASUREMENT, ReportTarget, RunHead, RunRecorder, Summary, file_point,
    run_point,
};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::{MetaSender, Sink, UnsentPoints};
use std::path::PathBuf;
use std::sync::Arc;

/// The context that all devices of a run share.
struct RunContext<'a> {
    settings: &'a Settings,
    limits: Limits,
    head: &'a RunHead,
    sink: &'a Sink,
    meta: &'a MetaSender<'a>,
    stop: &'a Shutdown,
    /// The data folder.
    data: &'a Arc<Dir>,
    recorder: &'a RunRecorder,
    progress: &'a Progress,
    summaries: SummaryState,
}

impl RunContext<'_> {
    /// Records a file and sends the blocks of meta points that are full, so that they do not accumulate. This may wait
    /// for the server.
    fn record_and_send(&self, record: FileRecord) {
        self.record(record);
        self.meta.send_full_blocks();
    }

    /// Records a file. Its meta point is sent later, by [`MetaSender::send_full_blocks`].
    fn record(&self, record: FileRecord) {
        let report = FileReport::from(record);
        self.recorder.add(&report);
        self.meta
            .push(|time_ns| file_point(report, &self.head.run_id, time_ns));
    }
}

/// Ingests the named files and folders, or all pending files if none are named, and updates the hourly summaries after that.
/// `finish` is called in between: hourly summaries take time, and do not change the result.
///
/// # Errors
/// If the run cannot start. Errors of single files are part of the summary.
pub(crate) fn run<T>(
    settings: &Settings,
    stop: &Shutdown,
    progress: &Progress,
    finish: impl FnOnce(&Summary) -> T,
) -> anyhow::Result<T> {
    let limits = Limits::new(settings.jobs)?;
    let data = Dir::open(&settings.data_folder)
        .map(|data| Arc::new(data.used_by(settings.hosts)))
        .map_err(|error| {
            ConfigError(format!(
                "cannot open the data folder {}: {error}; {}",
                sanitize(&settings.data_folder),
                remedy(&error, "check its permissions")
            ))
        })?;
    let sink = Sink::open(&settings.destination, stop)?;
    let head = RunHead::now(&settings.data_folder, settings.dry_run);
    let report_target = if settings.dry_run {
        ReportTarget::Stdout
    } else {
        ReportTarget::Dir(settings.report_dir.clone())
    };
    let recorder = RunRecorder::open(report_target, &head);
    let unsent = UnsentPoints::new(&settings.report_dir, head.file_stem(), RUN_MEASUREMENT);
    let meta = MetaSender::new(&sink, &settings.meta_bucket, unsent);
    let context = RunContext {
        settings,
        limits,
        head: &head,
        sink: &sink,
        meta: &meta,
        stop,
        data: &data,
        recorder: &recorder,
        progress,
        summaries: SummaryState::default(),
    };
    let is_sweep = settings.paths.is_empty();
    if is_sweep {
        sweep(&context, &[PathBuf::new()]);
    } else {
        ingest_named(&context);
    }
    progress.finish();
    meta.send_full_blocks();
    let totals = head.totals(recorder.counts(), sink.retries(), sink.has_outage());
    meta.push(|time_ns| run_point(&head, &totals, time_ns));
    // The report is synced to disk while the server writes the last points. It gets its name when they are written or
    // kept, so that no report is without its points if this process is killed.
    meta.send_rest();
    let summary = recorder.finish(totals, || meta.wait());
    meta.wait();
    if !stop.is_requested() {
        meta.send_unsent(is_sweep);
    }
    let result = finish(&summary);
    context.update_summaries(is_sweep);
    Ok(result)
}
