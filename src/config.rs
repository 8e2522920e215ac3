//! From options, `.env` and environment to one resolved set of settings.

use crate::cli::{Common, Ingest, OnOutage};
use crate::machine_zone::{FoundZone, Places, machine_zone};
use crate::shown::shown;
use chrono_tz::Tz;
use std::borrow::Cow;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A setting that cannot be used: one sentence, with the remedy. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

fn wrong<T>(words: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(words.into()))
}

/// The variables of the process, and behind them those of `.env`.
#[derive(Debug, Default, Clone)]
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// Reads `env_file`, else `.env` in the working directory if there is one, and puts the process's own variables
    /// before it.
    ///
    /// # Errors
    /// A named file that is missing, and a file that cannot be read.
    pub fn load(env_file: Option<&Path>) -> Result<Self, ConfigError> {
        let default = Path::new(".env");
        let path = env_file.unwrap_or(default);
        let mut variables = HashMap::new();
        match std::fs::read(path) {
            Ok(text) => {
                let bytes = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
                // A comment may be in any encoding; a value may not, it would be another one.
                let text = String::from_utf8_lossy(bytes);
                let is_utf8 = matches!(text, Cow::Borrowed(_));
                for entry in dotenvy::from_read_iter(text.as_bytes()) {
                    let (key, value) =
                        entry.map_err(|error| unreadable_line(path, &text, &error))?;
                    if !is_utf8 && value.contains(char::REPLACEMENT_CHARACTER) {
                        return Err(foreign_value(path, bytes, &key));
                    }
                    variables.insert(key, value);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && env_file.is_none() => {}
            Err(error) => {
                return wrong(format!(
                    "the file {} cannot be read: {error}; correct its rights or name another with --env-file",
                    shown(path)
                ));
            }
        }
        for (key, value) in std::env::vars_os() {
            if let (Ok(key), false) = (key.into_string(), value.is_empty()) {
                variables.insert(key, value.to_string_lossy().into_owned());
            }
        }
        Ok(Self(variables))
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|v| v.trim()).filter(|v| !v.is_empty())
    }

    /// Of variables given by hand, for tests.
    pub fn of<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }

    fn number<T: std::str::FromStr>(
        &self,
        name: &str,
        what: &str,
    ) -> Result<Option<T>, ConfigError> {
        match self.get(name).map(str::parse) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => wrong(format!(
                "{name} is {:?}, which is no {what}; correct or unset it",
                shown(self.get(name).unwrap_or_default())
            )),
        }
    }

    fn seconds(&self, name: &str, default: f64) -> Result<Duration, ConfigError> {
        match self.get(name) {
            None => Ok(Duration::from_secs_f64(default)),
            Some(text) => seconds(name, text),
        }
    }
}

/// Names the line, never what stands in it: it may hold a secret.
fn unreadable_line(path: &Path, text: &str, error: &dotenvy::Error) -> ConfigError {
    let place = match error {
        dotenvy::Error::LineParse(line, _) => {
            // The parser gives the line, or what stands behind its `=`.
            let line = line.lines().next().unwrap_or_default().trim();
            text.lines()
                .position(|other| !line.is_empty() && other.trim().ends_with(line))
                .map_or_else(|| "a line".to_owned(), |at| format!("line {}", at + 1))
        }
        _ => "a line".to_owned(),
    };
    ConfigError(format!(
        "the file {}: {place} is not KEY=VALUE; put a value with blanks, #, $ or \\ into '...'",
        shown(path)
    ))
}

/// Names the line of a value that is not UTF-8.
fn foreign_value(path: &Path, bytes: &[u8], key: &str) -> ConfigError {
    let of_key = |line: &[u8]| {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_start();
        text.strip_prefix("export")
            .map_or(text, str::trim_start)
            .starts_with(key)
            && std::str::from_utf8(line).is_err()
    };
    let line = bytes.split(|byte| *byte == b'\n').position(of_key);
    ConfigError(format!(
        "the file {}{}: the value of {key} is not UTF-8; save the file as UTF-8",
        shown(path),
        line.map_or_else(String::new, |at| format!(", line {}", at + 1))
    ))
}

fn seconds(name: &str, text: &str) -> Result<Duration, ConfigError> {
    text.parse()
        .ok()
        .and_then(|s: f64| Duration::try_from_secs_f64(s).ok())
        .filter(|d| *d <= Duration::from_secs(365 * 86_400))
        .ok_or_else(|| {
            ConfigError(format!(
                "{name} is {:?}, which is no number of seconds; give one such as 60",
                shown(text)
            ))
        })
}

/// Where points go.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A server.
    Influx(InfluxSettings),
    /// Files of line protocol in this folder.
    LineProtocolDir(PathBuf),
    /// Nowhere: a dry run.
    Nowhere,
}

/// The server and how to speak with it.
#[derive(Clone)]
pub struct InfluxSettings {
    /// Scheme, host and port; no path.
    pub url: url::Url,
    /// Never shown.
    pub token: String,
    /// The organisation's name.
    pub org: String,
    /// Until the connection stands.
    pub connect_timeout: Duration,
    /// Until a request is answered.
    pub request_timeout: Duration,
    /// How long a failing server is asked again.
    pub retry_for: Duration,
}

impl std::fmt::Debug for InfluxSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InfluxSettings({}, org {:?})", self.url, self.org)
    }
}

/// Everything an ingestion needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Absolute, links resolved.
    pub data_folder: PathBuf,
    /// Absolute, as it was given.
    pub data_folder_given: PathBuf,
    /// Files named on the command line; none: a sweep.
    pub files: Vec<PathBuf>,
    /// Touch nothing.
    pub dry_run: bool,
    /// Take the retryable files in `error/` too.
    pub retry_errors: bool,
    /// See [`OnOutage`].
    pub on_outage: OnOutage,
    /// Zone of files that name none.
    pub zone: Tz,
    /// Devices at a time.
    pub jobs: NonZeroUsize,
    /// Where points go.
    pub destination: Destination,
    /// Folder of the reports.
    pub report_dir: PathBuf,
    /// Bucket of the reports.
    pub meta_bucket: String,
    /// A file that is cut off and younger stays in a sweep.
    pub grace: Duration,
    /// Longest wait for another process.
    pub lock_wait: Duration,
    /// Points a request.
    pub batch_lines: u32,
    /// Compress request bodies.
    pub gzip: bool,
    /// Asked for after a sweep that ended well.
    pub heartbeat: Option<url::Url>,
}

impl Settings {
    /// Resolves the options of an ingestion.
    ///
    /// # Errors
    /// One sentence for the first setting that is missing or unusable.
    pub fn resolve(args: &Ingest, env: &Environment) -> Result<Self, ConfigError> {
        let data_folder = data_folder(args.data_folder.as_deref())?;
        if let Some(empty) = args.tsv_file.iter().find(|f| f.as_os_str().is_empty()) {
            return wrong(format!(
                "--tsvFile {empty:?} names no file; leave the option out for a sweep"
            ));
        }
        let destination = if args.dry_run {
            Destination::Nowhere
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
            zone: zone(&args.common, env)?.zone,
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

/// How an ingestion goes about its work; see the fields of [`Settings`]. Apart from them, because `check` asks for the same.
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
    /// Resolves what is set, `jobs` being what an option says.
    ///
    /// # Errors
    /// One sentence for the first setting that is unusable.
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
        None => env.number("TSV_JOBS", "number of devices")?,
    };
    match jobs.map(NonZeroUsize::new) {
        None => Ok(
            std::thread::available_parallelism().map_or(NonZeroUsize::MIN, |n| {
                n.min(NonZeroUsize::MIN.saturating_add(3))
            }),
        ),
        Some(Some(n)) if n.get() <= 64 => Ok(n),
        Some(_) => wrong("the number of jobs must be from 1 to 64; correct --jobs or TSV_JOBS"),
    }
}

fn gzip(env: &Environment) -> Result<bool, ConfigError> {
    match env.get("TSV_GZIP").map(str::to_ascii_lowercase).as_deref() {
        None | Some("1" | "true" | "yes" | "on") => Ok(true),
        Some("0" | "false" | "no" | "off") => Ok(false),
        Some(_) => wrong("TSV_GZIP must be 1 or 0; correct or unset it"),
    }
}

fn batch_lines(env: &Environment) -> Result<u32, ConfigError> {
    match env.number("TSV_BATCH_LINES", "number of points")? {
        None => Ok(10_000),
        Some(n @ 1..=100_000) => Ok(n),
        Some(_) => wrong("TSV_BATCH_LINES must be from 1 to 100000; correct or unset it"),
    }
}

/// The data folder, absolute and with its links resolved.
///
/// # Errors
/// Not given, missing, or not a folder.
pub fn data_folder(given: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let Some(given) = given else {
        return wrong("no data folder is given; name it with --dataFolder DIR");
    };
    match given.canonicalize() {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(_) => wrong(format!(
            "the data folder {} is not a folder; correct --dataFolder",
            shown(given)
        )),
        Err(error) => wrong(format!(
            "the data folder {} cannot be opened: {error}; correct --dataFolder",
            shown(given)
        )),
    }
}

/// Where run reports go: `TSV_REPORT_DIR`, else `logs/reports` beside the data folder.
pub fn report_dir(data_folder: &Path, env: &Environment) -> PathBuf {
    match env.get("TSV_REPORT_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => data_folder
            .parent()
            .unwrap_or(data_folder)
            .join("logs/reports"),
    }
}

/// The bucket of the reports.
///
/// # Errors
/// A name that InfluxDB refuses.
pub fn meta_bucket(env: &Environment) -> Result<String, ConfigError> {
    let name = env.get("TSV_META_BUCKET").unwrap_or("powerview_meta");
    match crate::names::Company::new(name.as_ref(), "") {
        Ok(_) if !name.contains('/') => Ok(name.to_owned()),
        _ => wrong(format!(
            "TSV_META_BUCKET is {:?}, which cannot be a bucket's name; correct or unset it",
            shown(name)
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
        Some(other) => wrong(format!(
            "TSV_ON_OUTAGE is {:?}; it must be error or keep",
            shown(other)
        )),
    }
}

/// The zone of files that name none: the option, the variable, else the machine's.
///
/// # Errors
/// A name that is no IANA zone, and a machine whose zone cannot be told.
pub fn zone(common: &Common, env: &Environment) -> Result<FoundZone, ConfigError> {
    let given = common
        .timezone
        .as_deref()
        .map(|zone| (zone, "--timezone"))
        .or_else(|| env.get("TSV_TIMEZONE").map(|zone| (zone, "TSV_TIMEZONE")));
    let Some((name, source)) = given else {
        return machine_zone(env.get("TZ"), &Places::default()).or_else(|source| {
            wrong(format!(
                "the machine's time zone cannot be told from {source}; set TSV_TIMEZONE, for instance to Europe/Paris"
            ))
        });
    };
    let source = source.to_owned();
    match name.parse() {
        Ok(zone) => Ok(FoundZone { zone, source }),
        Err(_) => wrong(format!(
            "{source} is {:?}, which is no time zone; give an IANA name such as Europe/Paris",
            shown(name)
        )),
    }
}

fn heartbeat(env: &Environment) -> Result<Option<url::Url>, ConfigError> {
    let Some(text) = env.get("TSV_HEARTBEAT_URL") else {
        return Ok(None);
    };
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Some(url)),
        // Its path is often a secret, so it is not shown.
        _ => wrong("TSV_HEARTBEAT_URL is no http:// or https:// address; correct or unset it"),
    }
}

/// The server's address and the rest that a request needs.
///
/// # Errors
/// A variable that is missing, or an address that the client would not reach as it stands.
pub fn influx(common: &Common, env: &Environment) -> Result<InfluxSettings, ConfigError> {
    let (name, text) = match (env.get("INFLUXDB_HOST"), env.get("INFLUXDB_URL")) {
        (Some(host), _) => ("INFLUXDB_HOST", host),
        (None, Some(url)) => ("INFLUXDB_URL", url),
        (None, None) => {
            return wrong(
                "INFLUXDB_HOST is not set; set it in the environment or in .env, for instance to http://127.0.0.1:8086",
            );
        }
    };
    let url = server_url(name, text)?;
    let variable = |name: &str, what: &str| match env.get(name) {
        Some(value) => Ok(value.to_owned()),
        None => wrong(format!(
            "{name} is not set; set it in the environment or in .env to {what}"
        )),
    };
    let token = variable(
        "INFLUXDB_ADMIN_TOKEN",
        "a token that may create buckets and write",
    )?;
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return wrong(
            "INFLUXDB_ADMIN_TOKEN holds a blank or a character that no token has; correct it",
        );
    }
    let org = variable("INFLUXDB_ORG", "the organisation's name")?;
    let retry_for = match &common.retry_for {
        Some(text) => seconds("--retry-for", text)?,
        None => env.seconds("TSV_RETRY_FOR", 60.0)?,
    };
    Ok(InfluxSettings {
        url,
        token,
        org,
        connect_timeout: env.seconds("TSV_CONNECT_TIMEOUT_S", 5.0)?,
        request_timeout: env.seconds("TSV_REQUEST_TIMEOUT_S", 30.0)?,
        retry_for,
    })
}

/// An address that the client can use as it stands: it keeps scheme, host and port and drops everything else.
fn server_url(name: &str, text: &str) -> Result<url::Url, ConfigError> {
    let example = "give it as http://127.0.0.1:8086";
    let url = match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => {
            return wrong(format!(
                "{name} is {:?}, which is no http:// or https:// address; {example}",
                shown(text)
            ));
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        return wrong(format!(
            "{name} holds a user name or password; {example}, and the token in INFLUXDB_ADMIN_TOKEN"
        ));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return wrong(format!(
            "{name} is {:?}: a path behind the host is not supported, it would be dropped; {example}",
            shown(text)
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

    fn words<const N: usize>(args: &[&str], env: [(&str, &str); N]) -> String {
        resolve(args, env).unwrap_err().to_string()
    }

    const SERVER: [(&str, &str); 4] = [
        ("INFLUXDB_HOST", "http://127.0.0.1:8086"),
        ("INFLUXDB_ADMIN_TOKEN", "secret"),
        ("INFLUXDB_ORG", "o"),
        ("TZ", "Europe/Paris"),
    ];

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        assert!(words(&[], []).contains("INFLUXDB_HOST is not set"));
        let host = ("INFLUXDB_HOST", "http://x");
        assert!(words(&[], [host]).contains("INFLUXDB_ADMIN_TOKEN is not set"));
        assert!(
            words(&[], [host, ("INFLUXDB_ADMIN_TOKEN", "t")]).contains("INFLUXDB_ORG is not set")
        );
    }

    #[test]
    fn an_address_that_would_be_changed_is_refused() {
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
            Destination::Nowhere
        ));
        let found = resolve(&["--line-protocol-dir", "x"], [])
            .unwrap()
            .destination;
        assert!(matches!(found, Destination::LineProtocolDir(_)));
    }

    #[test]
    fn the_token_shows_in_no_debug_output() {
        let settings = resolve(&[], SERVER).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn options_win_over_variables() {
        let env = [
            ("TSV_TIMEZONE", "Asia/Tokyo"),
            ("TSV_ON_OUTAGE", "keep"),
            ("TSV_JOBS", "3"),
        ];
        let found = resolve(&["--dry-run"], env).unwrap();
        assert_eq!(
            (found.zone, found.on_outage, found.jobs.get()),
            (Tz::Asia__Tokyo, OnOutage::Keep, 3)
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
            (found.zone, found.on_outage, found.jobs.get()),
            (Tz::Europe__Paris, OnOutage::Error, 2)
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
                words(&["--dry-run"], [(name, value)]).contains(name),
                "{name}={value}"
            );
        }
    }

    #[test]
    fn a_line_of_env_that_cannot_be_read_is_named_by_its_number_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(
            &path,
            "\u{feff}A=1\n# a comment\nINFLUXDB_ORG=my secret org\nB=2\n",
        )
        .unwrap();
        let words = Environment::load(Some(&path)).unwrap_err().to_string();
        assert!(
            words.contains("line 3") && !words.contains("secret"),
            "{words}"
        );
        std::fs::write(&path, "\u{feff}A_VARIABLE_OF_THIS_TEST='a b'\n").unwrap();
        let env = Environment::load(Some(&path)).unwrap();
        assert_eq!(env.get("A_VARIABLE_OF_THIS_TEST"), Some("a b"));
    }

    #[test]
    fn a_comment_of_env_may_be_in_any_encoding_and_a_value_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        let load = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            Environment::load(Some(&path))
        };
        let env =
            load(b"# soci\xe9t\xe9\nA_TEST=1 # \xe9t\xe9\n  # \xff\nB_TEST='\xc3\xa9'\n").unwrap();
        assert_eq!(
            (env.get("A_TEST"), env.get("B_TEST")),
            (Some("1"), Some("é"))
        );
        let words = load(b"# \xe9\nA_TEST=1\nexport B_TEST=secret\xe9\n")
            .unwrap_err()
            .to_string();
        assert!(
            words.contains("line 3") && words.contains("B_TEST") && !words.contains("secret"),
            "{words}"
        );
        // The line is counted over such a comment too.
        let words = load(b"# \xe9\nnot a line\n").unwrap_err().to_string();
        assert!(words.contains("line 2"), "{words}");
    }
}
