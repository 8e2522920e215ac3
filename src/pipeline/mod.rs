//! A run: the tree is walked, devices are dealt with side by side, the report ends it.

mod device;
mod finish;
pub mod ingest;
mod named_file;
mod submit;
mod sweep;

use self::named_file::take_named;
use self::sweep::sweep;
use crate::config::{ConfigError, Settings};
use crate::data_dir::Folder;
use crate::report::{FileReport, Ledger, Progress, Summary};
use crate::sanitize::shown;
use crate::shutdown::Stop;
use crate::sink::Sink;

/// What all devices of a run share.
pub struct Shared<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Where points go.
    pub sink: &'a Sink,
    /// Whether the run should end.
    pub stop: &'a Stop,
    /// The data folder.
    pub data: &'a Folder,
    /// Where results are told.
    pub ledger: &'a Ledger,
    /// Where a person sees how far it is.
    pub progress: &'a Progress,
}

/// Ingests what the settings ask for.
///
/// # Errors
/// Only where the run cannot begin; what goes wrong with a file is in the summary.
pub fn run(settings: &Settings, stop: &Stop, progress: &Progress) -> anyhow::Result<Summary> {
    let data = Folder::open(&settings.data_folder).map_err(|error| {
        ConfigError(format!(
            "the data folder {} cannot be opened: {error}; check its rights",
            shown(&settings.data_folder)
        ))
    })?;
    let sink = Sink::open(settings, stop)?;
    let ledger = Ledger::open(settings);
    let shared = Shared {
        settings,
        sink: &sink,
        stop,
        data: &data,
        ledger: &ledger,
        progress,
    };
    if settings.files.is_empty() {
        sweep(&shared);
    } else {
        for file in &settings.files {
            if stop.is_requested() {
                break;
            }
            take_named(&shared, file);
        }
    }
    progress.finish();
    Ok(ledger.finish(&sink))
}

fn tell(shared: &Shared<'_>, report: FileReport) {
    shared.ledger.add(report);
    shared.ledger.send_meta(shared.sink);
}
