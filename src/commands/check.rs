//! `powerview check`: checks the installation. See docs/specification.md, section 8.

use crate::cli::Check;
use crate::config::{self, Environment, Tuning, env_vars};
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::report::Progress;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::Influx;
use chrono::Utc;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

/// Runs all checks and prints a line for each; exit status 1 if one fails.
///
/// # Errors
/// The `.env` file or the log level is unusable, so that no check can run.
pub fn check(args: &Check) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    init_logging(&args.common, &env, &Progress::none())?;
    let mut checks: Vec<(&str, Result<String, String>)> = Vec::new();

    let data = config::data_folder(args.data_folder.as_deref());
    checks.push((
        "data folder",
        data.as_ref()
            .map_err(ToString::to_string)
            .and_then(|dir| check_writable(dir)),
    ));
    if let Ok(data) = &data {
        let reports = config::report_dir(data, &env);
        checks.push((
            "reports",
            std::fs::create_dir_all(&reports)
                .map_err(|e| not_writable(&reports, &e))
                .and_then(|()| check_writable(&reports)),
        ));
    }
    let zone = config::zone_database(&env).and_then(|database| {
        let default = config::zone(args.common.timezone.as_deref(), &env, &database)?;
        Ok(format!(
            "{} ({}) for files that name no zone; {}",
            default.zone,
            default.source,
            default.zone.describe_rules(&database)
        ))
    });
    checks.push(("time zone", zone.map_err(|error| error.to_string())));
    let server = config::influx(&args.server, &env);
    let meta = config::meta_bucket(&env);
    let tuning = Tuning::resolve(None, &args.server, &env);
    let errors: Vec<_> = [
        server.as_ref().err(),
        meta.as_ref().err(),
        tuning.as_ref().err(),
    ]
    .into_iter()
    .flatten()
    .map(|error| ("configuration", Err(error.to_string())))
    .collect();
    let configured = errors.is_empty();
    checks.extend(errors);
    if let (Ok(settings), Ok(meta)) = (server, meta) {
        if configured {
            let message = format!(
                "{}, organisation {:?}",
                settings.url,
                sanitize(&settings.org)
            );
            checks.push(("configuration", Ok(message)));
        }
        let probe = Influx::new(&settings, Shutdown::default())?.probe(&meta);
        checks.push(("server", probe.health));
        checks.push(("organisation", probe.organisation));
        checks.push(("token", probe.write));
    }
    checks.push((
        "hook",
        hook(Path::new(env.value(&env_vars::POWERVIEW_BASE)?)),
    ));
    checks.push(("clock", clock()));

    let mut out = std::io::stdout().lock();
    for (name, result) in &checks {
        let (mark, message) = match result {
            Ok(message) => ("ok  ", message),
            Err(message) => ("FAIL", message),
        };
        // Write errors are ignored: the exit code has the result too.
        let _ = writeln!(out, "{mark} {name:14} {message}");
    }
    Ok(if checks.iter().all(|(_, result)| result.is_ok()) {
        ExitCode::Success
    } else {
        ExitCode::GeneralError
    })
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
        "{} is not writable: {error}; grant write access to the user that runs powerview",
        sanitize(dir)
    )
}

/// Checks that the upload hook, if installed, is executable.
fn hook(base: &Path) -> Result<String, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = base.join("on-upload.sh");
    match path.metadata() {
        Ok(file) if file.permissions().mode() & 0o111 != 0 => {
            Ok(format!("{} is executable", sanitize(&path)))
        }
        Ok(_) => Err(format!(
            "{} is not executable; run chmod +x on it",
            sanitize(&path)
        )),
        Err(_) => Ok(format!(
            "{} is not installed, so uploads wait for the next sweep; set POWERVIEW_BASE if it is elsewhere",
            sanitize(&path)
        )),
    }
}

/// Checks that the clock is not before 2025. A machine without a hardware clock starts in 1970.
fn clock() -> Result<String, String> {
    let now = Utc::now();
    if now.timestamp() < 1_735_689_600 {
        Err(format!(
            "the clock shows {now:.0}, which is before this program was released; set the clock or start a time service"
        ))
    } else {
        Ok(format!("{}", now.format("%Y-%m-%d %H:%M:%S UTC")))
    }
}
