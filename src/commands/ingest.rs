//! The ingestion: settings, log, the run, and its summary on stderr.

use super::eprint_line;
use crate::cli::Ingest;
use crate::config::{Environment, Settings};
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::pipeline;
use crate::report::{self, Progress, Summary};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;

/// Ingests what the command line asks for.
///
/// # Errors
/// Settings that cannot be used, and a run that cannot begin.
pub(super) fn ingest(args: &Ingest) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    let progress = Progress::on_terminal(!args.common.quiet);
    init_logging(&args.common, &env, &progress)?;
    let settings = Settings::resolve(args, &env)?;
    let stop = Shutdown::on_signals()?;
    raise_file_limit();
    let summary = pipeline::run(&settings, &stop, &progress)?;
    print_summary(&summary, args.common.quiet, stop.is_requested());
    let ended_well = summary.counts.failed == 0 && !stop.is_requested();
    if let Some(url) = settings
        .heartbeat
        .as_ref()
        .filter(|_| ended_well && settings.files.is_empty() && !settings.dry_run)
    {
        report::ping(url);
    }
    // A dry run has nothing but its report.
    let failed = summary.counts.failed > 0 || (settings.dry_run && summary.report_lost);
    Ok(if failed || stop.is_requested() {
        ExitCode::GeneralError
    } else {
        ExitCode::Success
    })
}

/// Lets the process open as many files as the system allows it: each device holds some open at a time.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, the usual 1024 do for a dozen devices.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Prints what failed, and one line about the run.
fn print_summary(summary: &Summary, quiet: bool, stopped: bool) {
    let mut last = "";
    for (file, reason) in &summary.failures {
        let reason = if reason == last { "the same" } else { reason };
        eprint_line(&format!("failed: {file}: {reason}"));
        if reason != "the same" {
            last = reason;
        }
    }
    let counts = summary.counts;
    let more = counts.failed.saturating_sub(summary.failures.len() as u64);
    if more > 0 {
        eprint_line(&format!("failed: {more} more, see the report"));
    }
    if quiet {
        return;
    }
    let report = summary.report.as_ref().map_or_else(
        || "no report on disk".to_owned(),
        |path| format!("report {}", sanitize(path)),
    );
    eprint_line(&format!(
        "{}{} files: {} ingested, {} failed, {} skipped; {} points in {:.2} s; {report}",
        if stopped { "stopped; " } else { "" },
        counts.total,
        counts.success,
        counts.failed,
        counts.skipped,
        counts.points,
        summary.duration_s,
    ));
}
