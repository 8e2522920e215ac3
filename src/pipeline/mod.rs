//! A run: finds the device folders, processes them in parallel and writes the report.

mod device;
mod finish;
pub mod ingest;
mod named_file;
mod submit;
mod sweep;
mod versions;

use self::named_file::ingest_named;
use self::sweep::sweep;
use crate::config::{ConfigError, Settings};
use crate::data_dir::Dir;
use crate::report::{FileReport, Progress, RunRecorder, Summary};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::Sink;

/// The context that all devices of a run share.
pub struct RunContext<'a> {
    /// The settings of the run.
    pub settings: &'a Settings,
    /// Destination of the points.
    pub sink: &'a Sink,
    /// Shutdown flag.
    pub stop: &'a Shutdown,
    /// The data folder.
    pub data: &'a Dir,
    /// Recorder of results and warnings.
    pub recorder: &'a RunRecorder,
    /// Progress bar.
    pub progress: &'a Progress,
}

/// Ingests the named files, or all pending files if none are named.
///
/// # Errors
/// If the run cannot start. Errors of single files are part of the summary.
pub fn run(settings: &Settings, stop: &Shutdown, progress: &Progress) -> anyhow::Result<Summary> {
    let data = Dir::open(&settings.data_folder).map_err(|error| {
        ConfigError(format!(
            "cannot open the data folder {}: {error}; check its permissions",
            sanitize(&settings.data_folder)
        ))
    })?;
    let sink = Sink::open(&settings.destination, stop)?;
    let recorder = RunRecorder::open(settings);
    let context = RunContext {
        settings,
        sink: &sink,
        stop,
        data: &data,
        recorder: &recorder,
        progress,
    };
    if settings.files.is_empty() {
        sweep(&context);
    } else {
        for file in &settings.files {
            if stop.is_requested() {
                break;
            }
            ingest_named(&context, file);
        }
    }
    progress.finish();
    Ok(recorder.finish(&sink))
}

fn record(context: &RunContext<'_>, report: FileReport) {
    context.recorder.add(report);
    context.recorder.send_meta(context.sink);
}
