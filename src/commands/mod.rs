//! What the process does with its command line: settings, log, the command, and what is said to a person at the end.

mod check;
mod status;

use crate::cli::{Cli, Command, Ingest};
use crate::config::Settings;
use crate::config::{ConfigError, Environment};
use crate::exit_code::{DONE, FAILED, MISUSED};
use crate::logging::init_logging;
use crate::pipeline;
use crate::report;
use crate::report::Progress;
use crate::report::Summary;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use clap::CommandFactory as _;
use std::io::Write as _;
use std::process::ExitCode;

/// Runs the command and says how it ended.
pub fn run(cli: &Cli) -> ExitCode {
    let result = match &cli.command {
        None => ingest(&cli.ingest),
        Some(Command::Check(args)) => check::check(args),
        Some(Command::Status(args)) => status::status(args),
        Some(Command::Completions { shell }) => {
            // Through memory: the library takes a pipe that closes early for a defect, and panics.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "powerview", &mut script);
            match std::io::stdout().write_all(&script) {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(
                    anyhow::anyhow!("the completions cannot be written: {error}"),
                ),
                _ => Ok(DONE),
            }
        }
    };
    ExitCode::from(result.unwrap_or_else(|error| {
        say(&format!("powerview: {error:#}"));
        if error.is::<ConfigError>() {
            MISUSED
        } else {
            FAILED
        }
    }))
}

fn ingest(args: &Ingest) -> anyhow::Result<u8> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    let progress = Progress::on_terminal(!args.common.quiet);
    init_logging(&args.common, &env, &progress)?;
    let settings = Settings::resolve(args, &env)?;
    let stop = Shutdown::on_signals()?;
    raise_file_limit();
    let summary = pipeline::run(&settings, &stop, &progress)?;
    tell(&summary, args.common.quiet, stop.is_requested());
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
        FAILED
    } else {
        DONE
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

/// The end of a run for a person: what failed, and one line.
fn tell(summary: &Summary, quiet: bool, stopped: bool) {
    let mut last = "";
    for (file, reason) in &summary.failures {
        let reason = if reason == last { "the same" } else { reason };
        say(&format!("failed: {file}: {reason}"));
        if reason != "the same" {
            last = reason;
        }
    }
    let counts = summary.counts;
    let untold = counts.failed.saturating_sub(summary.failures.len() as u64);
    if untold > 0 {
        say(&format!("failed: {untold} more, see the report"));
    }
    if quiet {
        return;
    }
    let report = summary.report.as_ref().map_or_else(
        || "no report on disk".to_owned(),
        |path| format!("report {}", sanitize(path)),
    );
    say(&format!(
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

/// The one place that writes for a person. That nobody listens is no reason to fail.
pub fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}
