//! `powerview check`: checks the installation. See docs/specification.md, section 8.

#![expect(clippy::unnecessary_wraps, reason = "all checks have the same type")]

mod grafana;
mod hook_user;
mod sftpgo;
mod space;

use self::grafana::{GrafanaProbe, check_provisioning, check_sign_in};
use self::hook_user::HookUser;
use self::sftpgo::check_sftpgo;
use self::space::{check_data_space, check_report_space};
use super::old_points;
use crate::cli::Check;
use crate::config::{self, ConfigError, Environment, Tuning, env_vars};
use crate::data_dir::{DeviceItem, Dir, Hosts, NO_COMMON_COMPANY, Obstacle, devices, is_no_folder};
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::remedy::remedy;
use crate::report::Progress;
use crate::report::counted;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::{Influx, InfluxReader, Probe, ServerSettings};
use anyhow::Context as _;
use chrono::Utc;
use rustix::fs::Access;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The result of a check, with a message. That of a problem has the remedy.
#[derive(Debug, Clone)]
enum Finding {
    Good(String),
    /// Something that may become a problem. It does not change the exit status.
    Warning(String),
    Failure(String),
    NotConfigured(String),
}

impl From<Result<String, String>> for Finding {
    fn from(result: Result<String, String>) -> Self {
        result.map_or_else(Self::Failure, Self::Good)
    }
}

/// `None` if the check does not apply, because another one reports the problem.
type CheckResult = Option<Finding>;

/// The function of a check.
type CheckFn = fn(&Installation<'_>) -> CheckResult;

/// The names and functions of the checks, in the order of the output.
const CHECKS: [(&str, CheckFn); 20] = [
    ("data folder", check_data_folder),
    ("device folders", check_device_folders),
    ("reports", check_reports),
    ("free space", check_data_space),
    ("free space", check_report_space),
    ("time zone", check_time_zone),
    ("configuration", check_server_settings),
    ("configuration", check_meta_bucket),
    ("configuration", check_tuning),
    ("server", check_server),
    ("InfluxDB 3", check_influx3),
    ("organisation", check_organisation),
    ("token", check_token),
    ("old points", check_old_points),
    ("Grafana", check_sign_in),
    ("provisioning", check_provisioning),
    ("hook", check_hook),
    ("SFTPGo", check_sftpgo),
    ("clock", check_clock),
    ("file system", check_file_system),
];

/// What a person must know of InfluxDB 3.
const INFLUX3_LIMITS: &str = "rebuild, channels, dashboards and the playbooks need InfluxDB 2, hourly summaries are made by powerview rollup only, and of several values for the same second InfluxDB 3 may keep an earlier one; see docs/influxdb-3.md";

/// What is checked: the options and variables, the settings that follow from them, and the server's answers.
struct Installation<'a> {
    args: &'a Check,
    env: &'a Environment,
    data_folder: Result<PathBuf, ConfigError>,
    server: Result<ServerSettings, ConfigError>,
    meta_bucket: Result<String, ConfigError>,
    tuning: Result<Tuning, ConfigError>,
    /// `None` if the settings of the server or the meta bucket are unusable.
    probe: Option<Probe>,
    /// `None` if Grafana is not configured.
    grafana: Option<GrafanaProbe>,
}

impl<'a> Installation<'a> {
    /// Resolves the settings and asks the server.
    fn new(args: &'a Check, env: &'a Environment) -> anyhow::Result<Self> {
        let server = config::influx(&args.server, env);
        let meta_bucket = config::meta_bucket(env);
        let probe = match (&server, &meta_bucket) {
            (Ok(server), Ok(bucket)) => {
                Some(Influx::new(server, Shutdown::default())?.probe(bucket))
            }
            _ => None,
        };
        Ok(Self {
            data_folder: config::data_folder(args.data_folder.as_deref()),
            tuning: Tuning::resolve(None, None, None, env),
            grafana: GrafanaProbe::new(env),
            args,
            env,
            server,
            meta_bucket,
            probe,
        })
    }
}

/// Runs all checks and prints a line for each; exit status 1 if one fails.
///
/// Root runs them with the rights of the user of the hook: rights that root lacks nowhere say nothing about that user.
///
/// # Errors
/// The `.env` file or the log level is unusable, so that no check can run.
pub(super) fn check(args: &Check) -> anyhow::Result<ExitCode> {
    match args.data_folder.as_deref().and_then(HookUser::find) {
        None => check_all(args, None),
        Some(user) => user
            .run(|| check_all(args, Some(&user)))
            .with_context(|| format!("cannot check as the user {user}"))?,
    }
}

fn check_all(args: &Check, user: Option<&HookUser>) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    init_logging(&args.common, &env, &Progress::none())?;
    let installation = Installation::new(args, &env)?;
    let mut code = ExitCode::Success;
    let mut out = std::io::stdout().lock();
    let mut print = |mark: &str, name: &str, message: &str| {
        // Write errors are ignored: the exit code has the result too.
        let _ = writeln!(out, "{mark} {name:14} {message}");
    };
    if let Some(user) = user {
        let message = format!("rights are those of the user {user}, to whom the data belongs");
        print("ok  ", "user", &message);
    }
    for (name, check) in CHECKS {
        let (mark, message) = match check(&installation) {
            None => continue,
            Some(Finding::Good(message)) => ("ok  ", message),
            Some(Finding::Warning(message)) => ("warn", message),
            Some(Finding::NotConfigured(message)) => ("-   ", message),
            Some(Finding::Failure(message)) => {
                code = ExitCode::GeneralError;
                ("FAIL", message)
            }
        };
        print(mark, name, &message);
    }
    Ok(code)
}

fn check_data_folder(installation: &Installation<'_>) -> CheckResult {
    Some(match &installation.data_folder {
        Ok(dir) => check_writable(dir).into(),
        Err(error) => Finding::Failure(error.to_string()),
    })
}

/// Checks that files can be moved in each device folder, down to `parsed/` and `error/`. Reports only problems.
fn check_device_folders(installation: &Installation<'_>) -> CheckResult {
    let path = installation.data_folder.as_ref().ok()?;
    let data = Arc::new(Dir::open(path).ok()?);
    let mut first = None;
    let mut failed = 0;
    for item in devices(&data) {
        let DeviceItem::Device(device) = item else {
            continue;
        };
        let rights = || Some(Obstacle::Rights(path.join(&device)));
        let obstacle = match data.open_below(&device) {
            Ok(folder) => folder.obstacle().unwrap_or_else(|_| rights()),
            Err(error) if is_no_folder(&error) => None,
            Err(_) => rights(),
        };
        if let Some(obstacle) = obstacle {
            failed += 1;
            first.get_or_insert(obstacle);
        }
    }
    Some(Finding::Failure(format!(
        "files of {} cannot be moved; {}",
        counted(failed, "device"),
        first?
    )))
}

fn check_reports(installation: &Installation<'_>) -> CheckResult {
    let data = installation.data_folder.as_ref().ok()?;
    let reports = config::report_dir(data, installation.env);
    Some(match std::fs::create_dir_all(&reports) {
        Ok(()) => check_writable(&reports).into(),
        Err(error) => Finding::Failure(not_writable(&reports, &error)),
    })
}

/// Checks the time zone of files that name none. Machines are often set to UTC and loggers to local time, so UTC is a
/// warning unless it was set on purpose.
fn check_time_zone(installation: &Installation<'_>) -> CheckResult {
    let Installation { args, env, .. } = installation;
    let is_set = args.common.timezone.is_some() || env.get(&env_vars::TSV_TIMEZONE).is_some();
    let found = config::zone_database(env).and_then(|database| {
        let default = config::zone(args.common.timezone.as_deref(), env, &database)?;
        let text = format!(
            "{} ({}) for files that name no zone; {}",
            default.zone,
            default.source,
            default.zone.describe_rules(&database)
        );
        Ok(if !is_set && is_utc(default.zone.name()) {
            Finding::Warning(format!(
                "{text}; set TSV_TIMEZONE to the zone of the loggers, such as Europe/Paris, or to UTC"
            ))
        } else {
            Finding::Good(text)
        })
    });
    Some(found.unwrap_or_else(|error| Finding::Failure(error.to_string())))
}

/// Whether a name of the time zone database, or a POSIX string, means UTC.
fn is_utc(zone: &str) -> bool {
    let name = zone.strip_prefix("Etc/").unwrap_or(zone);
    ["UTC", "UCT", "Universal", "Zulu", "UTC0"].contains(&name)
}

/// Checks the settings of the server. Confirms the configuration only if the other settings are valid too.
fn check_server_settings(installation: &Installation<'_>) -> CheckResult {
    match &installation.server {
        Err(error) => Some(Finding::Failure(error.to_string())),
        Ok(_) if installation.meta_bucket.is_err() || installation.tuning.is_err() => None,
        Ok(server) => Some(Finding::Good(format!(
            "{}, organisation {:?}, {}",
            server.url,
            sanitize(&server.org),
            match installation.env.file() {
                Some(path) => format!("variables of {}", sanitize(path)),
                None => "variables of the environment".to_owned(),
            }
        ))),
    }
}

fn check_meta_bucket(installation: &Installation<'_>) -> CheckResult {
    let error = installation.meta_bucket.as_ref().err()?;
    Some(Finding::Failure(error.to_string()))
}

fn check_tuning(installation: &Installation<'_>) -> CheckResult {
    let error = installation.tuning.as_ref().err()?;
    Some(Finding::Failure(error.to_string()))
}

fn check_server(installation: &Installation<'_>) -> CheckResult {
    Some(installation.probe.as_ref()?.health.clone().into())
}

/// Warns of what does not work with InfluxDB 3.
fn check_influx3(installation: &Installation<'_>) -> CheckResult {
    let is_influx3 = installation.probe.as_ref()?.is_influx3;
    is_influx3.then(|| Finding::Warning(INFLUX3_LIMITS.to_owned()))
}

fn check_organisation(installation: &Installation<'_>) -> CheckResult {
    Some(installation.probe.as_ref()?.organisation.clone().into())
}

fn check_token(installation: &Installation<'_>) -> CheckResult {
    Some(installation.probe.as_ref()?.write.clone().into())
}

/// Warns of points that an old script wrote beside ours. Reports only those.
fn check_old_points(installation: &Installation<'_>) -> CheckResult {
    let probe = installation.probe.as_ref()?;
    if probe.is_influx3 || probe.write.is_err() {
        return None;
    }
    let server = ServerSettings {
        retry_for: Duration::ZERO,
        ..installation.server.as_ref().ok()?.clone()
    };
    let source = InfluxReader::new(&server, &Shutdown::default()).ok()?;
    let data = Arc::new(Dir::open(installation.data_folder.as_ref().ok()?).ok()?);
    let companies: BTreeSet<_> = devices(&data)
        .filter_map(|item| match item {
            DeviceItem::Device(path) => Some(path.iter().next()?.to_str()?.to_owned()),
            _ => None,
        })
        .collect();
    let found = companies
        .iter()
        .map(|company| old_points::describe(&source, company))
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    let found = found.concat();
    (!found.is_empty()).then(|| Finding::Warning(found.join("; ")))
}

/// Checks that files can be created in a folder, by creating one.
fn check_writable(dir: &Path) -> Result<String, String> {
    let probe = dir.join(format!(".powerview-check-{}", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)
        .and_then(|_| std::fs::remove_file(&probe))
        .map(|()| format!("{} is writable", sanitize(dir)))
        .map_err(|error| not_writable(dir, &error))
}

fn not_writable(dir: &Path, error: &std::io::Error) -> String {
    format!(
        "{} is not writable: {error}; {}",
        sanitize(dir),
        remedy(error, "grant write access to the user that runs powerview")
    )
}

/// Checks that the upload hook, if installed, is executable for this user.
fn check_hook(installation: &Installation<'_>) -> CheckResult {
    let path = config::hook(installation.env);
    let shown = sanitize(&path);
    Some(match rustix::fs::access(&path, Access::EXEC_OK) {
        Ok(()) => Finding::Good(format!("{shown} is executable")),
        Err(Errno::NOENT) => Finding::Good(format!(
            "{shown} is not installed, so uploads wait for the next sweep; set POWERVIEW_BASE if it is elsewhere"
        )),
        Err(_) => Finding::Failure(format!("{shown} is not executable; run chmod +x on it")),
    })
}

/// Checks that the clock is not before 2025. A machine without a hardware clock starts in 1970.
fn check_clock(_: &Installation<'_>) -> CheckResult {
    let now = Utc::now();
    Some(if now.timestamp() < 1_735_689_600 {
        Finding::Failure(format!(
            "the clock shows {now:.0}, which is before this program was released; set the clock or start a time service"
        ))
    } else {
        Finding::Good(format!("{}", now.format("%Y-%m-%d %H:%M:%S UTC")))
    })
}

/// Checks that there are locks, and that other hosts see them if the file system is shared. Reports only problems, and how
/// far a shared file system is safe.
fn check_file_system(installation: &Installation<'_>) -> CheckResult {
    let data = installation.data_folder.as_ref().ok()?;
    let hosts = installation.tuning.as_ref().ok()?.hosts();
    let shown = sanitize(data);
    let found = Dir::open(data).ok()?.used_by(hosts).probe_lock();
    let (shared, local) = match found {
        Ok(None) => return None,
        Ok(Some(found)) => found,
        Err(error) => {
            let remedy = error.remedy().unwrap_or("try again");
            return Some(Finding::Failure(format!("{error}; {remedy}")));
        }
    };
    let kind = shared.name();
    Some(Finding::Warning(match hosts {
        Hosts::One => format!(
            "{shown} is on {kind}, and TSV_SINGLE_HOST is set: no other host may write to it or run powerview on it"
        ),
        Hosts::Sharded | Hosts::Several => format!(
            "{shown} is on {kind}: {}files younger than TSV_INCOMPLETE_GRACE_S stay {}; see docs/scaling.md",
            local.map_or_else(String::new, |reason| format!(
                "locks {} seen by other hosts ({reason}), so {NO_COMMON_COMPANY}; ",
                reason.not("are")
            )),
            if shared.leases_reach_hosts() {
                "unless the server grants a lease"
            } else {
                "because a lease does not reach other hosts"
            }
        ),
    }))
}
