//! Logging to stderr.

use crate::cli::Common;
use crate::config::{ConfigError, Environment};
use crate::report::{Progress, StderrWriter};
use crate::sanitize::sanitize;
use std::io::IsTerminal as _;
use tracing::level_filters::LevelFilter;

/// Initializes the log on stderr with the level of `-v` or `-q`, else of `TSV_LOG_LEVEL`, else INFO.
///
/// # Errors
/// The value of `TSV_LOG_LEVEL` is unknown.
pub fn init_logging(
    common: &Common,
    env: &Environment,
    progress: &Progress,
) -> Result<(), ConfigError> {
    let level = if common.quiet {
        LevelFilter::ERROR
    } else if common.verbose > 0 {
        if common.verbose == 1 {
            LevelFilter::DEBUG
        } else {
            LevelFilter::TRACE
        }
    } else {
        match env
            .get("TSV_LOG_LEVEL")
            .unwrap_or("INFO")
            .to_ascii_uppercase()
            .as_str()
        {
            "TRACE" => LevelFilter::TRACE,
            "DEBUG" => LevelFilter::DEBUG,
            "INFO" => LevelFilter::INFO,
            "WARNING" | "WARN" => LevelFilter::WARN,
            "ERROR" | "CRITICAL" => LevelFilter::ERROR,
            "OFF" => LevelFilter::OFF,
            other => {
                return Err(ConfigError(format!(
                    "TSV_LOG_LEVEL is {:?}; it must be DEBUG, INFO, WARNING or ERROR",
                    sanitize(other)
                )));
            }
        }
    };
    let progress = progress.clone();
    // A second call, as in tests, has no effect.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(move || StderrWriter(progress.clone()))
        // A log that cannot be written (full disk) must not end the run: the library would report it on stderr and
        // panic.
        .log_internal_errors(false)
        .try_init();
    Ok(())
}
