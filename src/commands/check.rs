//! `powerview check`: is everything set up? One line a point, with what to do about it.
//! Source: docs/specification.md, section 8.

use crate::cli::Check;
use crate::config::Environment;
use crate::config::{self, Tuning};
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::report::Progress;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::Influx;
use crate::time_zone::ZoneDatabase;
use chrono::Utc;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

/// Looks at each point and prints a line for it; 1 if one fails.
///
/// # Errors
/// Only where nothing can be looked at: an unusable `.env`.
pub fn check(args: &Check) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    init_logging(&args.common, &env, &Progress::none())?;
    let mut points: Vec<(&str, Result<String, String>)> = Vec::new();

    let data = config::data_folder(args.data_folder.as_deref());
    points.push((
        "data folder",
        data.as_ref()
            .map_err(ToString::to_string)
            .and_then(|dir| usable(dir)),
    ));
    if let Ok(data) = &data {
        let reports = config::report_dir(data, &env);
        points.push((
            "reports",
            std::fs::create_dir_all(&reports)
                .map_err(|e| unusable(&reports, &e))
                .and_then(|()| usable(&reports)),
        ));
    }
    let database = ZoneDatabase::of_system(&env);
    points.push((
        "time zone",
        config::zone(&args.common, &env, &database)
            .map(|found| {
                format!(
                    "{} by {}, for files that name none; {}",
                    found.zone,
                    found.source,
                    found.zone.describe_rules(&database)
                )
            })
            .map_err(|error| error.to_string()),
    ));
    let server = config::influx(&args.common, &env);
    let meta = config::meta_bucket(&env);
    let tuning = Tuning::resolve(None, &args.common, &env);
    let faults: Vec<_> = [
        server.as_ref().err(),
        meta.as_ref().err(),
        tuning.as_ref().err(),
    ]
    .into_iter()
    .flatten()
    .map(|error| ("configuration", Err(error.to_string())))
    .collect();
    let configured = faults.is_empty();
    points.extend(faults);
    if let (Ok(settings), Ok(meta)) = (server, meta) {
        if configured {
            let words = format!(
                "{} and organisation {:?}",
                settings.url,
                sanitize(&settings.org)
            );
            points.push(("configuration", Ok(words)));
        }
        let probe = Influx::new(&settings, Shutdown::default())?.probe(&meta);
        points.push(("server", probe.health));
        points.push(("organisation", probe.organisation));
        points.push(("token", probe.write));
    }
    points.push(("hook", hook(&env)));
    points.push(("clock", clock()));

    let mut out = std::io::stdout().lock();
    for (name, result) in &points {
        let (mark, words) = match result {
            Ok(words) => ("ok  ", words),
            Err(words) => ("FAIL", words),
        };
        // Nobody listens: the exit code still says it.
        let _ = writeln!(out, "{mark} {name:14} {words}");
    }
    Ok(if points.iter().all(|(_, result)| result.is_ok()) {
        ExitCode::Success
    } else {
        ExitCode::GeneralError
    })
}

/// Whether files can be made in a folder, tried by making one.
fn usable(dir: &Path) -> Result<String, String> {
    let probe = dir.join(format!(".powerview-check-{}", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)
        .and_then(|_| std::fs::remove_file(&probe))
        .map(|()| format!("{} can be written", sanitize(dir)))
        .map_err(|error| unusable(dir, &error))
}

fn unusable(dir: &Path, error: &std::io::Error) -> String {
    format!(
        "{} cannot be written: {error}; give the user that runs powerview the right to",
        sanitize(dir)
    )
}

/// The upload hook beside the installation, where there is one.
fn hook(env: &Environment) -> Result<String, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let base = env.get("POWERVIEW_BASE").unwrap_or("/srv/powerview");
    let path = Path::new(base).join("on-upload.sh");
    match path.metadata() {
        Ok(file) if file.permissions().mode() & 0o111 != 0 => {
            Ok(format!("{} can be run", sanitize(&path)))
        }
        Ok(_) => Err(format!("{} cannot be run; chmod +x it", sanitize(&path))),
        Err(_) => Ok(format!(
            "{} is not installed: uploads wait for a sweep (set POWERVIEW_BASE if it lies elsewhere)",
            sanitize(&path)
        )),
    }
}

/// Whether the clock can be right: a machine without one starts in 1970.
fn clock() -> Result<String, String> {
    let now = Utc::now();
    if now.timestamp() < 1_735_689_600 {
        Err(format!(
            "it is {now:.0}, before this program was made; set the clock or start a time service"
        ))
    } else {
        Ok(format!("{}", now.format("%Y-%m-%d %H:%M:%S UTC")))
    }
}
