//! `powerview verify`: compares the database with the files. See docs/specification.md, section 10.

mod output;
mod summaries;

pub(super) use output::points;

use self::summaries::Summaries;
use super::comparison::{Endpoints, ensure_folder};
use super::old_points;
use crate::cli;
use crate::config::{self, ConfigError, Environment};
use crate::data_dir::SUMMARIES;
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::report::{Progress, VERIFIED_FILE, Verified, VerifiedDevices, add_verified};
use crate::rollup::Rollup;
use crate::sanitize::sanitize;
use crate::sink::{PointSource, Stream};
use crate::verify::{Options, Verification, Verifier};
use chrono::{DateTime, Utc};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

/// Compares the database with the files, and its summaries with its points; exit status 1 if they differ.
///
/// # Errors
/// A setting is unusable, or the data folder cannot be opened.
pub(super) fn verify(args: &cli::Verify) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    let progress = Progress::on_terminal(!args.common.quiet);
    init_logging(&args.common, &env, &progress)?;
    let folder = config::data_folder(Some(&args.data_folder.path))?;
    ensure_chosen(&folder, args)?;
    let server = config::influx(&args.server, &env)?;
    let zones = config::file_zones(args.common.timezone.as_deref(), &env)?;
    let meta_bucket = config::meta_bucket(&env)?;
    let options = Options {
        company: args.company.as_deref(),
        campaign: args.campaign.as_deref(),
        since: args.since,
        repair: args.repair,
        bucket: None,
        only_of_files: false,
        moved_since: None,
        holds_locks: false,
        explain: None,
        zones: &zones,
        meta_bucket: &meta_bucket,
        lock_wait: config::lock_wait(&env)?,
        batch: config::batch_options(&env)?,
    };
    let gap_limit = config::rollup(&env)?;
    let endpoints = Endpoints::open(
        &folder,
        config::hosts_for(&env, args.company.as_deref())?,
        server,
    )?;
    let is_influx3 = endpoints.source.is_influx3();
    let sql = endpoints.source.sql();
    let verifier = Verifier {
        options,
        data: &endpoints.data,
        source: if is_influx3 { &sql } else { &endpoints.source },
        sink: &endpoints.sink,
        stop: &endpoints.stop,
        progress: &progress,
    };
    let mut verification = verifier.run();
    let companies: BTreeSet<_> = verification
        .devices
        .iter()
        .map(|device| device.company.clone())
        .collect();
    // An old script wrote to InfluxDB 2 only.
    let companies_with_others = companies.iter().filter(|_| !is_influx3);
    for company in companies_with_others {
        match old_points::describe(&endpoints.source, company) {
            Ok(notes) => verification.notes.extend(notes),
            Err(error) => {
                let failure = format!("{}: {error}", sanitize(company));
                verification.failures.push(failure);
            }
        }
    }
    // Ingestions make no summaries in InfluxDB 3.
    let companies = if is_influx3 && gap_limit.is_some() {
        with_summaries(&sql, companies, &mut verification)
    } else {
        companies
    };
    let gap_limit = gap_limit.filter(|_| !is_influx3 || !companies.is_empty());
    let summaries = gap_limit.map(|gap_limit| {
        let rollup = Rollup {
            source: verifier.source,
            sink: &endpoints.sink,
            stream: Stream::Measurements,
            gap_limit,
            batch_lines: verifier.options.batch.lines,
            notes: RefCell::default(),
        };
        Summaries::compare(&rollup, &verifier, companies, &mut verification)
    });
    progress.finish();
    let equal = equal_devices(&verification, args.since);
    let reports = config::report_dir(&folder, &env);
    if !equal.is_empty()
        && let Err(error) = add_verified(&reports, &endpoints.data, equal, &endpoints.stop)
    {
        let file = sanitize(reports.join(VERIFIED_FILE));
        tracing::warn!("{file} is not written, so status does not show this comparison: {error}");
    }
    let text = if args.json {
        output::json(&verification, summaries.as_ref(), &folder)?
    } else {
        output::text(&verification) + &summaries.as_ref().map_or_else(String::new, Summaries::text)
    };
    // Write errors are ignored: the exit code has the result too.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let has_equal_summaries = summaries.as_ref().is_none_or(Summaries::is_equal);
    Ok(if verification.is_equal() && has_equal_summaries {
        ExitCode::Success
    } else {
        ExitCode::GeneralError
    })
}

/// The devices that were compared and are equal.
fn equal_devices(verification: &Verification, since: Option<i64>) -> VerifiedDevices {
    let verified = Verified {
        time: Utc::now(),
        since: since.and_then(|since| DateTime::from_timestamp(since, 0)),
    };
    let devices = verification.devices.iter();
    devices
        .filter(|device| device.counts.total().is_equal())
        .map(|device| {
            let path = format!("{}/{}/{}", device.company, device.campaign, device.device);
            (path, verified)
        })
        .collect()
}

/// Checks that the company and the campaign have folders.
fn ensure_chosen(data: &Path, args: &cli::Verify) -> Result<(), ConfigError> {
    let Some(company) = args.company.as_deref() else {
        return Ok(());
    };
    ensure_folder(data, "--company", &[company])?;
    match args.campaign.as_deref() {
        Some(campaign) => ensure_folder(data, "--campaign", &[company, campaign]),
        None => Ok(()),
    }
}

/// The companies whose databases have hourly summaries.
fn with_summaries(
    source: &dyn PointSource,
    mut companies: BTreeSet<String>,
    verification: &mut Verification,
) -> BTreeSet<String> {
    companies.retain(|company| match source.measurements(company) {
        Ok(measurements) => measurements.iter().any(|name| name == SUMMARIES),
        Err(error) => {
            let failure = format!("{}: {error}", sanitize(company));
            verification.failures.push(failure);
            false
        }
    });
    companies
}
