//! A run: the tree is walked, devices are dealt with side by side, the report ends it.

mod device;
mod finish;
pub mod ingest;
mod named_file;
mod submit;
mod sweep;

use self::named_file::ingest_named;
use self::sweep::sweep;
use crate::config::{ConfigError, Settings};
use crate::data_dir::Dir;
use crate::report::{FileReport, Progress, RunRecorder, Summary};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::Sink;

/// What all devices of a run share.
pub struct RunContext<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Where points go.
    pub sink: &'a Sink,
    /// Whether the run should end.
    pub stop: &'a Shutdown,
    /// The data folder.
    pub data: &'a Dir,
    /// Where results are told.
    pub recorder: &'a RunRecorder,
    /// Where a person sees how far it is.
    pub progress: &'a Progress,
}

/// Ingests what the settings ask for.
///
/// # Errors
/// Only where the run cannot begin; what goes wrong with a file is in the summary.
pub fn run(settings: &Settings, stop: &Shutdown, progress: &Progress) -> anyhow::Result<Summary> {
    let data = Dir::open(&settings.data_folder).map_err(|error| {
        ConfigError(format!(
            "the data folder {} cannot be opened: {error}; check its rights",
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

fn tell(context: &RunContext<'_>, report: FileReport) {
    context.recorder.add(report);
    context.recorder.send_meta(context.sink);
}
