//! The log: to stderr, at the level that was asked for.

use crate::cli::Common;
use crate::config::{ConfigError, Environment};
use crate::report::{Beside, Progress};
use crate::sanitize::sanitize;
use std::io::IsTerminal as _;
use tracing::level_filters::LevelFilter;

/// Sends the log to stderr, at the level that `-v`, `-q` or `TSV_LOG_LEVEL` asks for.
///
/// # Errors
/// A level that does not exist.
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
    // A second call, as in a test, changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(move || Beside(progress.clone()))
        // A log on a full disk must not end the run: the library would complain to the same stderr, and panic.
        .log_internal_errors(false)
        .try_init();
    Ok(())
}
