//! The default command: ingests files and prints a summary to stderr.

use super::channels::apply_changed;
use super::eprint_line;
use crate::cli::Ingest;
use crate::config::{Environment, Settings};
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::pipeline;
use crate::report::{self, Heartbeat, Progress, Summary, counted};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;

/// Ingests the named files and folders, or all files of the data folder.
///
/// # Errors
/// A setting is unusable, or the run cannot start.
pub(super) fn ingest(args: &Ingest) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    let progress = Progress::on_terminal(!args.common.quiet);
    init_logging(&args.common, &env, &progress)?;
    let settings = Settings::resolve(args, &env)?;
    let shutdown = Shutdown::on_signals()?;
    let is_sweep = settings.paths.is_empty() && !settings.dry_run;
    let monitor = settings.heartbeat.as_ref().filter(|_| is_sweep);
    let ping = |heartbeat| {
        if let Some(url) = monitor {
            report::ping(url, heartbeat);
        }
    };
    ping(Heartbeat::Start);
    let result = pipeline::run(&settings, &shutdown, &progress, |summary| {
        let stopped = shutdown.is_requested();
        print_summary(summary, args.common.quiet, stopped);
        if let Some(reason) = failure(summary, &settings, stopped) {
            ping(Heartbeat::Failure(reason));
            ExitCode::GeneralError
        } else {
            ping(Heartbeat::Success);
            ExitCode::Success
        }
    });
    if is_sweep && !shutdown.is_requested() {
        apply_changed(&settings, &shutdown);
    }
    if let Err(error) = &result {
        let reason = format!("the sweep cannot start: {error:#}");
        ping(Heartbeat::Failure(reason));
    }
    result
}

/// Why a run failed, and what to do. `None` if it succeeded.
fn failure(summary: &Summary, settings: &Settings, stopped: bool) -> Option<String> {
    let counts = summary.totals.counts;
    if counts.nb_files_failed > 0 {
        Some(format!(
            "{} of {} failed; run powerview status -d {} for the reasons and remedies",
            counts.nb_files_failed,
            counted(counts.nb_files_total, "file"),
            sanitize(&settings.data_folder)
        ))
    } else if stopped {
        Some("the run was stopped; the next one takes the remaining files".to_owned())
    } else {
        // The report is the only result of a dry run, so losing it is a failure.
        (settings.dry_run && summary.report_lost)
            .then(|| "the report was lost; see the error on stderr".to_owned())
    }
}

/// Prints the failures, and one line about the run.
fn print_summary(summary: &Summary, quiet: bool, stopped: bool) {
    let mut last = "";
    for (file, reason) in &summary.failures {
        let text = if reason == last {
            "same reason as above"
        } else {
            reason
        };
        eprint_line(&format!("failed: {file}: {text}"));
        last = reason;
    }
    let counts = summary.totals.counts;
    let more = counts
        .nb_files_failed
        .saturating_sub(summary.failures.len() as u64);
    if more > 0 {
        eprint_line(&format!(
            "failed: {}; see the report",
            counted(more, "more file")
        ));
    }
    if quiet {
        return;
    }
    let report = summary.report.as_ref().map_or_else(
        || "no report file".to_owned(),
        |path| format!("report {}", sanitize(path)),
    );
    eprint_line(&format!(
        "{}{}: {} ingested, {} failed, {} skipped; {} in {:.2} s; {report}",
        if stopped { "stopped; " } else { "" },
        counted(counts.nb_files_total, "file"),
        counts.nb_files_success,
        counts.nb_files_failed,
        counts.nb_files_skipped,
        counted(counts.nb_points_total, "point"),
        summary.totals.duration_s,
    ));
}
