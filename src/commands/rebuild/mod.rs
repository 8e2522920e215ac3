//! `powerview rebuild`: makes a company's bucket anew from its files. See docs/specification.md, section 10.

mod output;

use super::comparison::{Endpoints, ensure_folder, ensure_influx2};
use super::eprint_line;
use super::rollup::update_summaries;
use crate::cli;
use crate::commands::verify::points;
use crate::config::{self, ConfigError, Environment};
use crate::data_dir::{Company, LockError, rebuild_bucket};
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::rebuild::{Buckets, Rebuild, Swapped};
use crate::report::Progress;
use crate::rollup::Rollup;
use crate::sanitize::sanitize;
use crate::sink::{InfluxReader, Stream};
use crate::verify::Verification;
use anyhow::{Context as _, anyhow};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

/// Makes a bucket anew and swaps it in, or undoes that; exit status 1 if it is not swapped in, or if its hourly summaries are
/// not up to date.
///
/// # Errors
/// A setting is unusable, the server gives no answer, or some points cannot be written.
pub(super) fn rebuild(args: &cli::Rebuild) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    let progress = Progress::on_terminal(!args.common.quiet);
    init_logging(&args.common, &env, &progress)?;
    let folder = config::data_folder(Some(&args.data_folder.path))?;
    ensure_folder(&folder, "--company", &[&args.company])?;
    let server = config::influx(&args.server, &env)?;
    let zones = config::file_zones(args.common.timezone.as_deref(), &env)?;
    let meta_bucket = config::meta_bucket(&env)?;
    ensure_company(&args.company, &meta_bucket)?;
    let endpoints = Endpoints::open(
        &folder,
        config::hosts_for(&env, Some(&args.company))?,
        server,
    )?;
    ensure_influx2(&endpoints.source, "rebuild")?;
    let company = endpoints
        .data
        .open_below(Path::new(&args.company))
        .with_context(|| format!("cannot open the folder of {}", sanitize(&args.company)))?;
    // Ingestions lock device folders only.
    let _lock = company
        .lock(Duration::ZERO, &endpoints.stop)
        .map_err(|error| match error {
            LockError::Held { holder, .. } => anyhow!(
                "another rebuild of {} runs, {holder}; run this again when it has ended",
                sanitize(&args.company)
            ),
            error => anyhow!(error.with_remedy()),
        })?;
    let rebuild = Rebuild {
        company: &args.company,
        data: &endpoints.data,
        server: &endpoints.source,
        sink: &endpoints.sink,
        zones: &zones,
        meta_bucket: &meta_bucket,
        lock_wait: config::lock_wait(&env)?,
        batch: config::batch_options(&env)?,
        stop: &endpoints.stop,
        progress: &progress,
    };
    let rollup = config::rollup(&env)?.map(|gap_limit| Rollup {
        source: &endpoints.source,
        sink: &endpoints.sink,
        stream: Stream::Measurements,
        gap_limit,
        batch_lines: rebuild.batch.lines,
        notes: RefCell::default(),
    });
    let result = if args.undo {
        rebuild
            .undo()
            .map(End::Swapped)
            .map_err(anyhow::Error::from)
    } else {
        run(&rebuild, rollup.as_ref(), args)
    };
    progress.finish();
    match result? {
        End::Swapped(swapped) => {
            print(&output::swapped(&args.company, &swapped));
            // Files may have arrived meanwhile.
            let failures = rollup.map(|rollup| update_summaries(&rollup, &args.company));
            let mut code = ExitCode::Success;
            for failure in failures.into_iter().flatten() {
                let company = sanitize(&args.company);
                eprint_line(&format!(
                    "the hourly summaries of {company} are not up to date: {failure}; powerview rollup --company {company:?} computes them"
                ));
                code = ExitCode::GeneralError;
            }
            Ok(code)
        }
        End::NotNeeded => Ok(ExitCode::Success),
        End::Refused => Ok(ExitCode::GeneralError),
    }
}

/// Checks that the company has a bucket that can be rebuilt.
fn ensure_company(company: &str, meta_bucket: &str) -> Result<(), ConfigError> {
    Company::new(OsStr::new(company), meta_bucket)
        .map(drop)
        .map_err(|error| ConfigError(format!("--company: {error}")))
}

/// How a rebuild ends.
enum End {
    Swapped(Swapped),
    /// Only the report was wanted, or there is nothing to swap.
    NotNeeded,
    /// Neither an option nor a person has agreed to the swap.
    Refused,
}

/// Rebuilds the bucket.
fn run(
    rebuild: &Rebuild<'_, InfluxReader>,
    rollup: Option<&Rollup<'_>>,
    args: &cli::Rebuild,
) -> anyhow::Result<End> {
    let buckets = rebuild.buckets()?;
    if args.dry_run {
        report(rebuild, &buckets)?;
        return Ok(End::NotNeeded);
    }
    if rebuild.has_ended(&buckets) {
        print(&format!(
            "{}: the bucket was rebuilt and equals the files; nothing was swapped\n",
            sanitize(&args.company)
        ));
        return Ok(End::NotNeeded);
    }
    let devices = rebuild.fill(&buckets, args.keep_unexplained)?;
    // Without a current bucket, a swap was interrupted.
    if let Some(found) = report(rebuild, &buckets)? {
        rebuild.ensure_files(&found)?;
        let unexplained = found.unexplained_points();
        if unexplained > 0 && !args.keep_unexplained && !args.yes {
            eprint_line(&format!(
                "not swapped: the bucket has {} that no file explains; copy them with --keep-unexplained, or leave them in the \
                 former bucket with --yes",
                points(unexplained)
            ));
            return Ok(End::Refused);
        }
        if !args.yes && !is_confirmed(&args.company) {
            eprint_line(
                "not swapped; the new bucket is kept, and the next rebuild goes on from it",
            );
            return Ok(End::Refused);
        }
        if args.keep_unexplained && unexplained > 0 {
            let copied = rebuild.copy_unexplained()?;
            print(&format!("copied {copied} points that no file explains\n"));
        }
    }
    // The summaries of virtual channels depend on them. They are copied again when nothing changes them any more.
    rebuild.copy_catalogues(&rebuild_bucket(rebuild.company))?;
    if let Some(rollup) = rollup {
        // Dashboards read them from the moment of the swap.
        for failure in update_summaries(rollup, &rebuild_bucket(rebuild.company)) {
            tracing::warn!(
                "hourly summaries of the new bucket cannot be computed: {failure}; this is tried again after the swap"
            );
        }
    }
    let swapped = rebuild.swap(devices, args.keep_unexplained)?;
    Ok(End::Swapped(swapped))
}

/// Prints and returns how the current bucket differs from the files; `None` without a current bucket.
fn report(
    rebuild: &Rebuild<'_, InfluxReader>,
    buckets: &Buckets,
) -> anyhow::Result<Option<Verification>> {
    if buckets.current.is_none() {
        print("there is no bucket with the name of the company\n");
        return Ok(None);
    }
    let mut verification = rebuild.report();
    for field in rebuild.several_types()? {
        let note = format!("{field}; numbers may be too low");
        verification.notes.push(note);
    }
    rebuild.progress.finish();
    print(&output::report(&verification));
    if let Some(failure) = verification.failures.first() {
        anyhow::bail!("the bucket cannot be compared with the files: {failure}");
    }
    Ok(Some(verification))
}

/// Asks a person on the terminal. Without one, the answer is no.
fn is_confirmed(company: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        eprint_line("to swap the buckets without a terminal, use --yes");
        return false;
    }
    print(&format!(
        "Swap the buckets of {}? [y/N] ",
        sanitize(company)
    ));
    let mut answer = String::new();
    let _ = std::io::stdin().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Writes to stdout. Write errors are ignored.
fn print(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}
