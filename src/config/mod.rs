//! Resolution of options, environment and `.env` to settings.

mod env_file;
pub mod env_vars;
mod parse;
mod time_zone;

pub(crate) use self::env_file::{ConfigError, Environment, read as read_env_file};
pub(crate) use self::parse::{
    DURATION_FORMS, parse_choice, parse_duration, parse_instant, parse_number,
};

use self::env_file::config_error;
use self::env_vars::{EnvVar, OnOutage};
use self::parse::{parse_http_url, parse_share, parse_switch};
use self::time_zone::{FoundZone, ZonePaths, machine_zone};
use crate::cli::{Ingest, ServerOptions};
use crate::data_dir::{Hosts, Shard, meant_data_folder};
use crate::points::BatchOptions;
use crate::remedy::remedy;
use crate::rollup::GapLimit;
use crate::sanitize::sanitize;
use crate::sink::{Destination, Flavor, ServerSettings};
use crate::time_zone::{FileZones, ZoneDatabase, ZoneSource};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The settings of an ingestion.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Data folder, absolute, with symbolic links resolved.
    pub data_folder: PathBuf,
    /// Data folder as given, made absolute.
    pub data_folder_given: PathBuf,
    /// Files and folders named on the command line; empty for a sweep of the data folder.
    pub paths: Vec<PathBuf>,
    /// Write, move and send nothing.
    pub dry_run: bool,
    /// Also ingest the retryable files in `error/`.
    pub retry_errors: bool,
    /// What to do with files during an outage.
    pub on_outage: OnOutage,
    /// Time zones of files.
    pub zones: FileZones,
    /// Number of devices processed in parallel, 1 to 64.
    pub jobs: NonZeroUsize,
    /// Where points are written.
    pub destination: Destination,
    /// Folder of the run reports.
    pub report_dir: PathBuf,
    /// Bucket of the meta points.
    pub meta_bucket: String,
    /// Age below which a file that may still be arriving stays in place.
    pub grace: Duration,
    /// Longest wait for a device folder that another process has locked.
    pub lock_wait: Duration,
    /// The companies that are ingested, unless all are.
    pub shard: Option<Shard>,
    /// The hosts that work on the data folder.
    pub hosts: Hosts,
    /// Points per request, 1 to 100,000.
    pub batch_lines: u32,
    /// Whether requests are compressed.
    pub gzip: bool,
    /// The share of a file's values that may be lost, 0 to 1. If more are, the file fails.
    pub max_loss: f64,
    /// URL of the monitor that is told about the start and the result of each sweep.
    pub heartbeat: Option<url::Url>,
    /// How hourly summaries are computed. `None` if they are not updated.
    pub rollup: Option<GapLimit>,
}

impl Settings {
    /// Resolves the settings of an ingestion.
    ///
    /// # Errors
    /// The first setting that is missing or unusable.
    pub(crate) fn resolve(args: &Ingest, env: &Environment) -> Result<Self, ConfigError> {
        let data_folder = data_folder(args.data_folder.as_deref())?;
        if args.tsv_file.iter().any(|path| path.as_os_str().is_empty()) {
            return config_error(
                "--tsvFile \"\" is empty; name a file, or omit the option for a sweep",
            );
        }
        let destination = if args.dry_run {
            Destination::Discard
        } else if let Some(dir) = &args.line_protocol_dir {
            Destination::LineProtocolDir(dir.clone())
        } else {
            Destination::Influx(influx(&args.server, env)?)
        };
        let Tuning {
            on_outage,
            jobs,
            grace,
            lock_wait,
            shard,
            is_single_host,
            batch_lines,
            gzip,
            max_loss,
            heartbeat,
            rollup,
        } = Tuning::resolve(args.jobs, args.on_outage, args.shard.as_ref(), env)?;
        Ok(Self {
            report_dir: report_dir(&data_folder, env),
            data_folder_given: args
                .data_folder
                .as_deref()
                .and_then(|given| std::path::absolute(given).ok())
                .unwrap_or_else(|| data_folder.clone()),
            data_folder,
            paths: args.tsv_file.clone(),
            dry_run: args.dry_run,
            retry_errors: args.retry_errors,
            on_outage,
            zones: file_zones(args.common.timezone.as_deref(), env)?,
            jobs,
            destination,
            meta_bucket: meta_bucket(env)?,
            grace,
            lock_wait,
            hosts: hosts_of(is_single_host, shard.as_ref()),
            shard,
            batch_lines,
            gzip,
            max_loss,
            heartbeat,
            rollup,
        })
    }
}

/// The part of [`Settings`] that `check` validates too; see its fields.
#[derive(Debug)]
pub(crate) struct Tuning {
    on_outage: OnOutage,
    jobs: NonZeroUsize,
    grace: Duration,
    lock_wait: Duration,
    shard: Option<Shard>,
    is_single_host: bool,
    batch_lines: u32,
    gzip: bool,
    max_loss: f64,
    heartbeat: Option<url::Url>,
    rollup: Option<GapLimit>,
}

impl Tuning {
    /// Resolves the settings; `jobs`, `on_outage` and `shard` are the values of options.
    ///
    /// # Errors
    /// The first setting that is unusable.
    pub(crate) fn resolve(
        jobs: Option<u32>,
        on_outage: Option<OnOutage>,
        shard: Option<&Shard>,
        env: &Environment,
    ) -> Result<Self, ConfigError> {
        let duration = |var| env.parse(var, parse_duration);
        let BatchOptions {
            gzip,
            lines: batch_lines,
        } = batch_options(env)?;
        Ok(Self {
            jobs: self::jobs(jobs, env)?,
            gzip,
            max_loss: env.parse(&env_vars::TSV_MAX_LOSS, parse_share)?,
            batch_lines,
            on_outage: match on_outage {
                Some(given) => given,
                None => env.parse(&env_vars::TSV_ON_OUTAGE, parse_choice)?,
            },
            grace: duration(&env_vars::TSV_INCOMPLETE_GRACE_S)?,
            lock_wait: lock_wait(env)?,
            shard: self::shard(shard, env)?,
            is_single_host: is_single_host(env)?,
            heartbeat: heartbeat(env)?,
            rollup: rollup(env)?,
        })
    }

    /// The hosts that work on the data folder.
    pub(crate) fn hosts(&self) -> Hosts {
        hosts_of(self.is_single_host, self.shard.as_ref())
    }
}

/// The hosts that work on the data folder.
fn hosts_of(is_single_host: bool, shard: Option<&Shard>) -> Hosts {
    match shard {
        _ if is_single_host => Hosts::One,
        Some(_) => Hosts::Sharded,
        None => Hosts::Several,
    }
}

/// The size and compression of requests.
///
/// # Errors
/// A setting is unusable.
pub(crate) fn batch_options(env: &Environment) -> Result<BatchOptions, ConfigError> {
    Ok(BatchOptions {
        gzip: env.parse(&env_vars::TSV_GZIP, parse_switch)?,
        lines: env.parse(&env_vars::TSV_BATCH_LINES, |text| {
            parse_number(text, &env_vars::BATCH_LINES)
        })?,
    })
}

/// The longest wait for the lock on a device folder.
///
/// # Errors
/// The setting is unusable.
pub(crate) fn lock_wait(env: &Environment) -> Result<Duration, ConfigError> {
    env.parse(&env_vars::TSV_LOCK_WAIT_S, parse_duration)
}

/// The companies that this host works on: those of `--shard`, else of `TSV_SHARD`, else all.
///
/// # Errors
/// The setting is unusable.
pub(crate) fn shard(
    given: Option<&Shard>,
    env: &Environment,
) -> Result<Option<Shard>, ConfigError> {
    let var = &env_vars::TSV_SHARD;
    match given {
        Some(given) => Ok(Some(given.clone())),
        None if env.get(var).is_none() => Ok(None),
        None => env.parse(var, str::parse).map(Some),
    }
}

/// The hosts that work on the data folder, for a command that works on companies of a shard, or of all.
///
/// # Errors
/// The setting is unusable.
pub(crate) fn hosts(env: &Environment, shard: Option<&Shard>) -> Result<Hosts, ConfigError> {
    Ok(hosts_of(is_single_host(env)?, shard))
}

/// The hosts that work on the data folder, for a command that works on one company, or on all without a name.
///
/// # Errors
/// The setting is unusable.
pub(crate) fn hosts_for(env: &Environment, company: Option<&str>) -> Result<Hosts, ConfigError> {
    let has = |shard: &Shard| company.is_some_and(|company| shard.has(Path::new(company)));
    let shard = shard(None, env)?.filter(has);
    hosts(env, shard.as_ref())
}

fn is_single_host(env: &Environment) -> Result<bool, ConfigError> {
    env.parse(&env_vars::TSV_SINGLE_HOST, parse_switch)
}

/// How hourly summaries are computed, or `None` if they are not kept up to date.
///
/// # Errors
/// A setting is unusable.
pub(crate) fn rollup(env: &Environment) -> Result<Option<GapLimit>, ConfigError> {
    let gap_limit = gap_limit(env)?;
    let is_on = env.parse(&env_vars::TSV_ROLLUP, parse_switch)?;
    Ok(is_on.then_some(gap_limit))
}

/// The longest interval that counts as known in the hourly summaries.
///
/// # Errors
/// The setting is unusable.
fn gap_limit(env: &Environment) -> Result<GapLimit, ConfigError> {
    let var = &env_vars::TSV_MAX_GAP;
    if env.get(var).is_none() {
        return Ok(GapLimit::OfDay);
    }
    let limit = env.parse(var, |text| match parse_duration(text)? {
        Duration::ZERO => Err(
            "too short, because nothing would be known; use a longer one or unset it".to_owned(),
        ),
        limit => Ok(limit.as_nanos()),
    })?;
    Ok(GapLimit::Fixed(limit.try_into().unwrap_or(i64::MAX)))
}

/// The URL of the monitor, if one is set.
///
/// # Errors
/// The setting is unusable.
pub(crate) fn heartbeat(env: &Environment) -> Result<Option<url::Url>, ConfigError> {
    let var = &env_vars::TSV_HEARTBEAT_URL;
    if env.get(var).is_none() {
        return Ok(None);
    }
    env.parse(var, |text| parse_http_url(text, "correct or unset it"))
        .map(Some)
}

/// The number of devices processed in parallel: `--jobs`, else `TSV_JOBS`, else the number of CPUs, up to 4.
fn jobs(given: Option<u32>, env: &Environment) -> Result<NonZeroUsize, ConfigError> {
    let var = &env_vars::TSV_JOBS;
    let jobs = match given {
        Some(jobs) => jobs,
        None if env.get(var).is_some() => {
            env.parse(var, |text| parse_number(text, &env_vars::JOBS))?
        }
        None => {
            let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
            return Ok(cpus.min(NonZeroUsize::MIN.saturating_add(3)));
        }
    };
    let jobs = usize::try_from(jobs).ok().and_then(NonZeroUsize::new);
    Ok(jobs.unwrap_or(NonZeroUsize::MIN))
}

/// Resolves the data folder to an absolute path without symbolic links.
///
/// # Errors
/// The folder is not given, cannot be opened, is not a folder, or is some levels above or below the data folder.
pub(crate) fn data_folder(given: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let Some(given) = given else {
        return config_error("no data folder given; set it with --dataFolder DIR");
    };
    let found = given.canonicalize().and_then(|path| {
        let is_dir = path.metadata()?.is_dir();
        Ok((path, is_dir))
    });
    match found {
        Ok((path, true)) => match meant_data_folder(&path) {
            None => Ok(path),
            Some(meant) => config_error(format!(
                "{} is not the data folder, whose device folders are <company>/<campaign>/<device>; use --dataFolder {}",
                sanitize(path),
                sanitize(meant)
            )),
        },
        Ok(_) => config_error(format!(
            "data folder {} is not a folder; correct --dataFolder",
            sanitize(given)
        )),
        Err(error) => config_error(format!(
            "cannot open data folder {}: {error}; {}",
            sanitize(given),
            remedy(&error, "correct --dataFolder")
        )),
    }
}

/// The folder of the run reports: `TSV_REPORT_DIR`, else `logs/reports` beside the data folder.
pub(crate) fn report_dir(data_folder: &Path, env: &Environment) -> PathBuf {
    match env.get(&env_vars::TSV_REPORT_DIR) {
        Some(dir) => PathBuf::from(dir),
        None => data_folder
            .parent()
            .unwrap_or(data_folder)
            .join("logs/reports"),
    }
}

/// The bucket of the meta points.
///
/// # Errors
/// The name is not valid for a bucket.
pub(crate) fn meta_bucket(env: &Environment) -> Result<String, ConfigError> {
    env.parse(
        &env_vars::TSV_META_BUCKET,
        |name| match crate::data_dir::Company::new(name.as_ref(), "") {
            Ok(_) if !name.contains('/') => Ok(name.to_owned()),
            _ => Err("not a valid bucket name; correct or unset it".to_owned()),
        },
    )
}

/// The time zone database that libc uses: the folder `TZDIR`.
pub(crate) fn zone_database(env: &Environment) -> Result<ZoneDatabase, ConfigError> {
    env.value(&env_vars::TZDIR).map(ZoneDatabase::new)
}

/// The default time zone of files, and the database for zones named in files. `timezone` is the value of `--timezone`.
///
/// # Errors
/// See [`zone`].
pub(crate) fn file_zones(
    timezone: Option<&str>,
    env: &Environment,
) -> Result<FileZones, ConfigError> {
    let database = zone_database(env)?;
    let default = zone(timezone, env, &database)?.zone;
    let source = if timezone.is_some() || env.get(&env_vars::TSV_TIMEZONE).is_some() {
        ZoneSource::Setting
    } else {
        ZoneSource::Machine
    };
    Ok(FileZones::new(default, source, Arc::new(database)))
}

/// The time zone of files that name none: `--timezone`, else `TSV_TIMEZONE`, else the zone of the machine.
///
/// # Errors
/// The name is not an IANA time zone, or the zone of the machine cannot be determined.
pub(crate) fn zone(
    timezone: Option<&str>,
    env: &Environment,
    database: &ZoneDatabase,
) -> Result<FoundZone, ConfigError> {
    let var = &env_vars::TSV_TIMEZONE;
    let given = timezone
        .map(|zone| (zone, "--timezone"))
        .or_else(|| env.get(var).map(|zone| (zone, var.name)));
    let Some((name, source)) = given else {
        return machine_zone(env.get(&env_vars::TZ), &ZonePaths::default(), database).or_else(|source| {
            config_error(format!(
                "cannot determine the time zone of the machine from {source}; set {}, for example to Europe/Paris",
                var.name
            ))
        });
    };
    let source = source.to_owned();
    match database.zone(name) {
        Some(zone) => Ok(FoundZone { zone, source }),
        None => config_error(format!(
            "{source} is {:?}, which is not a time zone; use an IANA name such as Europe/Paris",
            sanitize(name)
        )),
    }
}

/// The connection settings of InfluxDB. See docs/specification.md, section 6.
///
/// # Errors
/// A variable is missing or unusable.
pub(crate) fn influx(
    options: &ServerOptions,
    env: &Environment,
) -> Result<ServerSettings, ConfigError> {
    let host = match env.get(&env_vars::INFLUXDB_HOST) {
        None if env.get(&env_vars::INFLUXDB_URL).is_some() => &env_vars::INFLUXDB_URL,
        _ => &env_vars::INFLUXDB_HOST,
    };
    let url = server_url(host, env)?;
    let token = env.parse(&env_vars::INFLUXDB_ADMIN_TOKEN, |token| {
        if token.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(token.to_owned())
        } else {
            Err("not a token: it contains a space or another character that is not allowed; correct it".to_owned())
        }
    })?;
    let flavor = env.parse(&env_vars::INFLUXDB_FLAVOR, parse_choice)?;
    let org = match flavor {
        // It has no organisations, and ignores the name of one.
        Flavor::Influx3 => env.get(&env_vars::INFLUXDB_ORG).unwrap_or_default(),
        Flavor::Auto | Flavor::Influx2 => env.value(&env_vars::INFLUXDB_ORG)?,
    };
    Ok(ServerSettings {
        url,
        token,
        org: org.to_owned(),
        flavor,
        connect_timeout: env.parse(&env_vars::TSV_CONNECT_TIMEOUT_S, parse_duration)?,
        request_timeout: env.parse(&env_vars::TSV_REQUEST_TIMEOUT_S, parse_duration)?,
        retry_for: match options.retry_for {
            Some(given) => given,
            None => env.parse(&env_vars::TSV_RETRY_FOR, parse_duration)?,
        },
    })
}

/// The hook: `on-upload.sh` in `POWERVIEW_BASE`, else that of an installed package, else the default of the variable.
pub(crate) fn hook(env: &Environment) -> PathBuf {
    let packaged = Path::new("/usr/share/powerview/on-upload.sh");
    match env.value(&env_vars::POWERVIEW_BASE) {
        Ok(base) if env.get(&env_vars::POWERVIEW_BASE).is_some() || !packaged.exists() => {
            Path::new(base).join("on-upload.sh")
        }
        _ => packaged.to_owned(),
    }
}

/// The address of Grafana and its administrator.
pub(crate) struct GrafanaSettings {
    pub url: url::Url,
    pub user: String,
    pub password: String,
}

impl GrafanaSettings {
    /// The settings, or `None` if there is no URL.
    ///
    /// # Errors
    /// The URL is unusable, or there is no password.
    pub(crate) fn resolve(env: &Environment) -> Result<Option<Self>, ConfigError> {
        let var = &env_vars::GRAFANA_URL;
        if env.get(var).is_none() {
            return Ok(None);
        }
        let remedy = "set it to a URL such as http://127.0.0.1:8088";
        Ok(Some(Self {
            url: env.parse(var, |text| parse_http_url(text, remedy))?,
            user: env.value(&env_vars::GRAFANA_USERNAME)?.to_owned(),
            password: env.value(&env_vars::GRAFANA_PASSWORD)?.to_owned(),
        }))
    }
}

/// Parses the server URL. Anything beside scheme, host and port is an error, because the client would drop it.
fn server_url(var: &EnvVar, env: &Environment) -> Result<url::Url, ConfigError> {
    let name = var.name;
    let remedy = "set it to a URL such as http://127.0.0.1:8086";
    let url = env.parse(var, |text| parse_http_url(text, remedy))?;
    if !url.username().is_empty() || url.password().is_some() {
        return config_error(format!(
            "{name} contains a user name or password; {remedy}, and {} to the token",
            env_vars::INFLUXDB_ADMIN_TOKEN.name
        ));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return config_error(format!(
            "{name} is {:?}, but a path after the host is not supported; {remedy}",
            sanitize(env.value(var)?)
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser as _;

    fn resolve<const N: usize>(
        args: &[&str],
        env: [(&str, &str); N],
    ) -> Result<Settings, ConfigError> {
        let cli = Cli::try_parse_from(
            [
                &[
                    "powerview",
                    "-d",
                    concat!(env!("CARGO_MANIFEST_DIR"), "/src"),
                ],
                args,
            ]
            .concat(),
        )
        .unwrap();
        Settings::resolve(&cli.ingest, &Environment::of(env))
    }

    fn message<const N: usize>(args: &[&str], env: [(&str, &str); N]) -> String {
        resolve(args, env).unwrap_err().to_string()
    }

    const SERVER: [(&str, &str); 4] = [
        ("INFLUXDB_HOST", "http://127.0.0.1:8086"),
        ("INFLUXDB_ADMIN_TOKEN", "secret"),
        ("INFLUXDB_ORG", "o"),
        ("TZ", "Europe/Paris"),
    ];

    #[test]
    fn a_missing_variable_is_named() {
        assert!(message(&[], []).contains("INFLUXDB_HOST is not set"));
        let host = ("INFLUXDB_HOST", "http://x");
        assert!(message(&[], [host]).contains("INFLUXDB_ADMIN_TOKEN is not set"));
        assert!(
            message(&[], [host, ("INFLUXDB_ADMIN_TOKEN", "t")]).contains("INFLUXDB_ORG is not set")
        );
    }

    #[test]
    fn a_url_that_the_client_would_change_is_refused() {
        for url in [
            "http://host/influx",
            "localhost:8086",
            "ftp://host",
            "http://",
            "not a url",
            "http://u:p@host",
            "http://h/?a=b",
            "/x",
        ] {
            let env = [
                ("INFLUXDB_HOST", url),
                ("INFLUXDB_ADMIN_TOKEN", "t"),
                ("INFLUXDB_ORG", "o"),
                ("TZ", "UTC"),
            ];
            assert!(resolve(&[], env).is_err(), "{url}");
        }
    }

    #[test]
    fn a_dry_run_and_line_protocol_need_no_server() {
        assert!(matches!(
            resolve(&["--dry-run"], []).unwrap().destination,
            Destination::Discard
        ));
        let found = resolve(&["--line-protocol-dir", "x"], [])
            .unwrap()
            .destination;
        assert!(matches!(found, Destination::LineProtocolDir(_)));
    }

    #[test]
    fn debug_output_does_not_contain_the_token() {
        let settings = resolve(&[], SERVER).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn options_take_precedence_over_variables() {
        let env = [
            ("TSV_TIMEZONE", "Asia/Tokyo"),
            ("TSV_ON_OUTAGE", "keep"),
            ("TSV_JOBS", "3"),
        ];
        let found = resolve(&["--dry-run"], env).unwrap();
        assert_eq!(
            (
                found.zones.default.name(),
                found.on_outage,
                found.jobs.get()
            ),
            ("Asia/Tokyo", OnOutage::Keep, 3)
        );
        let found = resolve(
            &[
                "--dry-run",
                "--timezone",
                "Europe/Paris",
                "--on-outage",
                "error",
                "--jobs",
                "2",
            ],
            env,
        )
        .unwrap();
        assert_eq!(
            (
                found.zones.default.name(),
                found.on_outage,
                found.jobs.get()
            ),
            ("Europe/Paris", OnOutage::Error, 2)
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (name, value) in [
            ("TSV_JOBS", "0"),
            ("TSV_JOBS", "x"),
            ("TSV_BATCH_LINES", "0"),
            ("TSV_GZIP", "maybe"),
            ("TSV_ON_OUTAGE", "drop"),
            ("TSV_TIMEZONE", "Paris"),
            ("TSV_INCOMPLETE_GRACE_S", "-1"),
            ("TSV_META_BUCKET", "_x"),
            ("TSV_HEARTBEAT_URL", "x"),
        ] {
            assert!(
                message(&["--dry-run"], [(name, value)]).contains(name),
                "{name}={value}"
            );
        }
    }
}
