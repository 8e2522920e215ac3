//! Resolution of options, environment and `.env` to settings.

mod env_file;
mod time_zone;

pub use self::env_file::{ConfigError, Environment};

use self::env_file::{config_error, seconds};
use self::time_zone::{FoundZone, ZonePaths, machine_zone};
use crate::cli::{Common, Ingest, OnOutage};
use crate::sanitize::sanitize;
use crate::sink::{Destination, ServerSettings};
use crate::time_zone::{FileZones, ZoneDatabase};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The settings of an ingestion.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Data folder, absolute, with symbolic links resolved.
    pub data_folder: PathBuf,
    /// Data folder as given, made absolute.
    pub data_folder_given: PathBuf,
    /// Files named on the command line; empty for a sweep.
    pub files: Vec<PathBuf>,
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
    /// Points per request, 1 to 100,000.
    pub batch_lines: u32,
    /// Whether requests are compressed.
    pub gzip: bool,
    /// URL requested after each successful sweep.
    pub heartbeat: Option<url::Url>,
}

impl Settings {
    /// Resolves the settings of an ingestion.
    ///
    /// # Errors
    /// The first setting that is missing or unusable.
    pub fn resolve(args: &Ingest, env: &Environment) -> Result<Self, ConfigError> {
        let data_folder = data_folder(args.data_folder.as_deref())?;
        if let Some(empty) = args.tsv_file.iter().find(|f| f.as_os_str().is_empty()) {
            return config_error(format!(
                "--tsvFile {empty:?} is empty; name a file, or omit the option for a sweep"
            ));
        }
        let destination = if args.dry_run {
            Destination::Discard
        } else if let Some(dir) = &args.line_protocol_dir {
            Destination::LineProtocolDir(dir.clone())
        } else {
            Destination::Influx(influx(&args.common, env)?)
        };
        let Tuning {
            on_outage,
            jobs,
            grace,
            lock_wait,
            batch_lines,
            gzip,
            heartbeat,
        } = Tuning::resolve(args.jobs, &args.common, env)?;
        Ok(Self {
            report_dir: report_dir(&data_folder, env),
            data_folder_given: args
                .data_folder
                .as_deref()
                .and_then(|given| std::path::absolute(given).ok())
                .unwrap_or_else(|| data_folder.clone()),
            data_folder,
            files: args.tsv_file.clone(),
            dry_run: args.dry_run,
            retry_errors: args.retry_errors,
            on_outage,
            zones: file_zones(&args.common, env)?,
            jobs,
            destination,
            meta_bucket: meta_bucket(env)?,
            grace,
            lock_wait,
            batch_lines,
            gzip,
            heartbeat,
        })
    }
}

/// The part of [`Settings`] that `check` validates too; see its fields.
#[derive(Debug)]
pub struct Tuning {
    on_outage: OnOutage,
    jobs: NonZeroUsize,
    grace: Duration,
    lock_wait: Duration,
    batch_lines: u32,
    gzip: bool,
    heartbeat: Option<url::Url>,
}

impl Tuning {
    /// Resolves the settings; `jobs` is the value of `--jobs`.
    ///
    /// # Errors
    /// The first setting that is unusable.
    pub fn resolve(
        jobs: Option<usize>,
        common: &Common,
        env: &Environment,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            jobs: self::jobs(jobs, env)?,
            gzip: gzip(env)?,
            batch_lines: batch_lines(env)?,
            on_outage: on_outage(common, env)?,
            grace: env.seconds("TSV_INCOMPLETE_GRACE_S", 600.0)?,
            lock_wait: env.seconds("TSV_LOCK_WAIT_S", 120.0)?,
            heartbeat: heartbeat(env)?,
        })
    }
}

fn jobs(given: Option<usize>, env: &Environment) -> Result<NonZeroUsize, ConfigError> {
    let jobs = match given {
        Some(n) => Some(n),
        None => env.number("TSV_JOBS", "a number of devices")?,
    };
    match jobs.map(NonZeroUsize::new) {
        None => Ok(
            std::thread::available_parallelism().map_or(NonZeroUsize::MIN, |n| {
                n.min(NonZeroUsize::MIN.saturating_add(3))
            }),
        ),
        Some(Some(n)) if n.get() <= 64 => Ok(n),
        Some(_) => {
            config_error("the number of jobs must be from 1 to 64; correct --jobs or TSV_JOBS")
        }
    }
}

fn gzip(env: &Environment) -> Result<bool, ConfigError> {
    match env.get("TSV_GZIP").map(str::to_ascii_lowercase).as_deref() {
        None | Some("1" | "true" | "yes" | "on") => Ok(true),
        Some("0" | "false" | "no" | "off") => Ok(false),
        Some(_) => config_error("TSV_GZIP must be 1 or 0; correct or unset it"),
    }
}

fn batch_lines(env: &Environment) -> Result<u32, ConfigError> {
    match env.number("TSV_BATCH_LINES", "a number of points")? {
        None => Ok(10_000),
        Some(n @ 1..=100_000) => Ok(n),
        Some(_) => config_error("TSV_BATCH_LINES must be from 1 to 100000; correct or unset it"),
    }
}

/// Resolves the data folder to an absolute path without symbolic links.
///
/// # Errors
/// The folder is not given, cannot be opened, or is not a folder.
pub fn data_folder(given: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let Some(given) = given else {
        return config_error("no data folder given; set it with --dataFolder DIR");
    };
    match given.canonicalize() {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(_) => config_error(format!(
            "data folder {} is not a folder; correct --dataFolder",
            sanitize(given)
        )),
        Err(error) => config_error(format!(
            "cannot open data folder {}: {error}; correct --dataFolder",
            sanitize(given)
        )),
    }
}

/// The folder of the run reports: `TSV_REPORT_DIR`, else `logs/reports` beside the data folder.
pub fn report_dir(data_folder: &Path, env: &Environment) -> PathBuf {
    match env.get("TSV_REPORT_DIR") {
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
pub fn meta_bucket(env: &Environment) -> Result<String, ConfigError> {
    let name = env.get("TSV_META_BUCKET").unwrap_or("powerview_meta");
    match crate::data_dir::Company::new(name.as_ref(), "") {
        Ok(_) if !name.contains('/') => Ok(name.to_owned()),
        _ => config_error(format!(
            "TSV_META_BUCKET is {:?}, which is not a valid bucket name; correct or unset it",
            sanitize(name)
        )),
    }
}

fn on_outage(common: &Common, env: &Environment) -> Result<OnOutage, ConfigError> {
    if let Some(given) = common.on_outage {
        return Ok(given);
    }
    match env.get("TSV_ON_OUTAGE") {
        None | Some("error") => Ok(OnOutage::Error),
        Some("keep") => Ok(OnOutage::Keep),
        Some(other) => config_error(format!(
            "TSV_ON_OUTAGE is {:?}; it must be error or keep",
            sanitize(other)
        )),
    }
}

/// The default time zone of files, and the database for zones named in files.
///
/// # Errors
/// See [`zone`].
pub fn file_zones(common: &Common, env: &Environment) -> Result<FileZones, ConfigError> {
    let database = ZoneDatabase::of_system(env);
    let default = zone(common, env, &database)?.zone;
    Ok(FileZones::new(default, Arc::new(database)))
}

/// The time zone of files that name none: `--timezone`, else `TSV_TIMEZONE`, else the zone of the machine.
///
/// # Errors
/// The name is not an IANA time zone, or the zone of the machine cannot be determined.
pub fn zone(
    common: &Common,
    env: &Environment,
    database: &ZoneDatabase,
) -> Result<FoundZone, ConfigError> {
    let given = common
        .timezone
        .as_deref()
        .map(|zone| (zone, "--timezone"))
        .or_else(|| env.get("TSV_TIMEZONE").map(|zone| (zone, "TSV_TIMEZONE")));
    let Some((name, source)) = given else {
        return machine_zone(env.get("TZ"), &ZonePaths::default(), database).or_else(|source| {
            config_error(format!(
                "cannot determine the time zone of the machine from {source}; set TSV_TIMEZONE, for example to Europe/Paris"
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

fn heartbeat(env: &Environment) -> Result<Option<url::Url>, ConfigError> {
    let Some(text) = env.get("TSV_HEARTBEAT_URL") else {
        return Ok(None);
    };
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Some(url)),
        // The URL is not shown, because its path is often a secret.
        _ => {
            config_error("TSV_HEARTBEAT_URL is not an http:// or https:// URL; correct or unset it")
        }
    }
}

/// The connection settings of InfluxDB. See docs/specification.md, section 6.
///
/// # Errors
/// A variable is missing or unusable.
pub fn influx(common: &Common, env: &Environment) -> Result<ServerSettings, ConfigError> {
    let (name, text) = match (env.get("INFLUXDB_HOST"), env.get("INFLUXDB_URL")) {
        (Some(host), _) => ("INFLUXDB_HOST", host),
        (None, Some(url)) => ("INFLUXDB_URL", url),
        (None, None) => {
            return config_error(
                "INFLUXDB_HOST is not set; set it in the environment or in .env, for example to http://127.0.0.1:8086",
            );
        }
    };
    let url = server_url(name, text)?;
    let variable = |name: &str, example: &str| match env.get(name) {
        Some(value) => Ok(value.to_owned()),
        None => config_error(format!(
            "{name} is not set; set it in the environment or in .env to {example}"
        )),
    };
    let token = variable(
        "INFLUXDB_ADMIN_TOKEN",
        "a token with the right to create buckets and to write",
    )?;
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return config_error(
            "INFLUXDB_ADMIN_TOKEN contains a space or another character that is not allowed in tokens; correct it",
        );
    }
    let org = variable("INFLUXDB_ORG", "the name of the organisation")?;
    let retry_for = match &common.retry_for {
        Some(text) => seconds("--retry-for", text)?,
        None => env.seconds("TSV_RETRY_FOR", 60.0)?,
    };
    Ok(ServerSettings {
        url,
        token,
        org,
        connect_timeout: env.seconds("TSV_CONNECT_TIMEOUT_S", 5.0)?,
        request_timeout: env.seconds("TSV_REQUEST_TIMEOUT_S", 30.0)?,
        retry_for,
    })
}

/// Parses the server URL. Anything beside scheme, host and port is an error, because the client would drop it.
fn server_url(name: &str, text: &str) -> Result<url::Url, ConfigError> {
    let remedy = "set it to a URL such as http://127.0.0.1:8086";
    let url = match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => {
            return config_error(format!(
                "{name} is {:?}, which is not an http:// or https:// URL; {remedy}",
                sanitize(text)
            ));
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        return config_error(format!(
            "{name} contains a user name or password; {remedy}, and INFLUXDB_ADMIN_TOKEN to the token"
        ));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return config_error(format!(
            "{name} is {:?}, but a path after the host is not supported; {remedy}",
            sanitize(text)
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
        let cli = Cli::try_parse_from([&["powerview", "-d", "/tmp"], args].concat()).unwrap();
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
