//! `powerview rollup`: brings the hourly summaries up to date. See docs/specification.md, section 11.

use super::comparison::open_data_folder;
use super::eprint_line;
use crate::cli;
use crate::config::{self, ConfigError, Environment};
use crate::data_dir::{Company, DeviceItem, DevicePath, Dir, PENDING_FILE, devices_in};
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::report::Progress;
use crate::rollup::{Comparison, Days, Rollup, RollupError, Scope, SummaryCounts};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::{ALL_TIMES, BucketAdmin as _, Destination, InfluxReader, Sink, Stream};
use indicatif::HumanCount;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Brings the summaries of a company, or of all companies, up to date; exit status 1 if some cannot be.
///
/// # Errors
/// A setting is unusable, the company has no bucket, or the server gives no answer.
pub(super) fn rollup(args: &cli::Rollup) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    let progress = Progress::on_terminal(!args.common.quiet);
    init_logging(&args.common, &env, &progress)?;
    let Some(gap_limit) = config::rollup(&env)? else {
        eprint_line("hourly summaries are turned off: TSV_ROLLUP is 0");
        return Ok(ExitCode::Success);
    };
    let server = config::influx(&args.server, &env)?;
    let meta_bucket = config::meta_bucket(&env)?;
    let shard = match &args.company {
        Some(_) => None,
        None => config::shard(args.shard.as_ref(), &env)?,
    };
    let hosts = match &args.company {
        Some(company) => config::hosts_for(&env, Some(company))?,
        None => config::hosts(&env, shard.as_ref())?,
    };
    let stop = Shutdown::on_signals()?;
    let devices = match &args.data_folder {
        Some(folder) => Some(Devices {
            data: open_data_folder(&config::data_folder(Some(folder))?, hosts)?,
            meta_bucket: &meta_bucket,
            lock_wait: config::lock_wait(&env)?,
            stop: &stop,
        }),
        None => None,
    };
    let source = InfluxReader::new(&server, &stop)?;
    let is_influx3 = source.is_influx3();
    let sql = source.sql();
    let sink = Sink::open(&Destination::Influx(server), &stop)?;
    let rollup = Rollup {
        source: if is_influx3 { &sql } else { &source },
        sink: &sink,
        stream: Stream::Measurements,
        gap_limit,
        batch_lines: config::batch_options(&env)?.lines,
        notes: RefCell::default(),
    };
    // Ingestions leave no days for InfluxDB 3.
    let devices = devices.filter(|_| !is_influx3);
    let mut buckets = if is_influx3 {
        sql.databases()?
    } else {
        let buckets = source.buckets()?.into_iter();
        buckets.map(|bucket| bucket.name).collect()
    };
    buckets.extend(devices.iter().flat_map(Devices::pending_companies));
    let mut buckets = chosen(buckets, args.company.as_deref(), &meta_bucket);
    if let Some(shard) = &shard {
        buckets.retain(|name| shard.has(Path::new(name)));
    }
    if let (Some(company), true) = (&args.company, buckets.is_empty()) {
        return Err(ConfigError(format!(
            "--company: there is no bucket {:?}; correct the name",
            sanitize(company)
        ))
        .into());
    }
    let mut code = ExitCode::Success;
    for bucket in &buckets {
        if stop.is_requested() {
            eprint_line("the run was stopped; run it again");
            code = ExitCode::GeneralError;
            break;
        }
        let scope = Scope {
            bucket,
            measurement: None,
            since: args.since.unwrap_or(ALL_TIMES.start),
        };
        let (is_equal, failures) = update(&rollup, devices.as_ref(), scope, is_influx3);
        if !is_equal {
            code = ExitCode::GeneralError;
        }
        for failure in failures {
            eprint_line(&format!("{}: {failure}", sanitize(bucket)));
            code = ExitCode::GeneralError;
        }
    }
    progress.finish();
    Ok(code)
}

/// Brings the summaries of a bucket up to date, and prints their numbers. Returns whether all are as they should be, and why
/// some cannot be.
fn update(
    rollup: &Rollup<'_>,
    devices: Option<&Devices<'_>>,
    scope: Scope<'_>,
    is_influx3: bool,
) -> (bool, Vec<String>) {
    let bucket = scope.bucket;
    let pending = devices.map_or_else(|| Ok(Vec::new()), |devices| devices.update(rollup, bucket));
    let result = pending.and_then(|failures| Ok((failures, rollup.repair(scope)?)));
    rollup.log_notes(bucket);
    let (
        mut failures,
        Comparison {
            counts,
            failures: of_masters,
        },
    ) = match result {
        Ok(result) => result,
        Err(error) => return (false, vec![error.to_string()]),
    };
    let text = format!("{}: {}\n", sanitize(bucket), describe(&counts));
    let _ = std::io::stdout().write_all(text.as_bytes());
    if is_influx3 && counts.missing + counts.different > 0 {
        eprint_line(
            "InfluxDB 3 keeps the last of several values for certain only if they are written ten minutes apart: run it again after that time",
        );
    }
    failures.extend(of_masters);
    (counts.is_equal(), failures)
}

/// The buckets of companies, or that of one.
fn chosen(mut buckets: Vec<String>, company: Option<&str>, meta_bucket: &str) -> BTreeSet<String> {
    buckets.retain(|name| match company {
        Some(company) => name == company,
        None => Company::new(name.as_ref(), meta_bucket).is_ok(),
    });
    buckets.into_iter().collect()
}

/// The device folders, in which the days that ingestions have left are kept.
struct Devices<'a> {
    data: Arc<Dir>,
    meta_bucket: &'a str,
    lock_wait: Duration,
    stop: &'a Shutdown,
}

impl Devices<'_> {
    /// The device folders below a folder, relative to the data folder.
    fn below(&self, folder: &Path) -> impl Iterator<Item = (PathBuf, DevicePath)> {
        devices_in(&self.data, folder).filter_map(|item| {
            let DeviceItem::Device(path) = item else {
                return None;
            };
            let location = DevicePath::of_folder(&path, self.meta_bucket).ok()?;
            Some((path, location))
        })
    }

    /// The companies with pending days. They may have no bucket.
    fn pending_companies(&self) -> impl Iterator<Item = String> {
        let devices = self.below(Path::new(""));
        let devices = devices.filter(|(path, _)| {
            let folder = self.data.open_below(path);
            folder.is_ok_and(|folder| folder.has_state_file(PENDING_FILE).unwrap_or(false))
        });
        devices.map(|(_, location)| location.company.as_str().to_owned())
    }

    /// Computes the summaries of the pending days of a company. Returns the failures of single devices. The wait for locks is
    /// limited for all of them together.
    fn update(&self, rollup: &Rollup<'_>, company: &str) -> Result<Vec<String>, RollupError> {
        let mut failures = Vec::new();
        let mut wait = self.lock_wait;
        for (path, location) in self.below(Path::new(company)) {
            let folder = self.data.open_below(&path).map_err(RollupError::from);
            let result = folder.and_then(|folder| {
                rollup.update_pending(&folder, &location, Days::new(), &mut wait, self.stop)
            });
            match result {
                Err(error) if error.is_of_server() => return Err(error),
                Err(error) => failures.push(format!("{}: {error}", sanitize(&path))),
                Ok(()) => {}
            }
        }
        Ok(failures)
    }
}

/// Formats the numbers of summaries.
pub(super) fn describe(counts: &SummaryCounts) -> String {
    let mut text = format!("{} hourly summaries", HumanCount(counts.expected));
    for (number, what) in [
        (counts.missing, "missing"),
        (counts.different, "different"),
        (counts.extra, "extra"),
        (counts.skipped, "skipped"),
        (counts.written, "written"),
    ] {
        if number > 0 {
            text += &format!(", {} {what}", HumanCount(number));
        }
    }
    text
}

/// Brings the summaries of a bucket up to date after its points were written by another command. Returns why some are not.
pub(super) fn update_summaries(rollup: &Rollup<'_>, bucket: &str) -> Vec<String> {
    let scope = Scope {
        bucket,
        measurement: None,
        since: ALL_TIMES.start,
    };
    let result = rollup.repair(scope);
    rollup.log_notes(bucket);
    match result {
        Ok(Comparison {
            counts,
            mut failures,
        }) => {
            if counts.missing + counts.different > 0 {
                failures.push(describe(&counts));
            }
            failures
        }
        Err(error) => vec![error.to_string()],
    }
}
