//! Logging to stderr.

use crate::cli::Common;
use crate::config::env_vars::{self, LogLevel};
use crate::config::{ConfigError, Environment, parse_choice};
use crate::report::{Progress, StderrWriter};
use std::io::IsTerminal as _;
use tracing::level_filters::LevelFilter;

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warning => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Initializes the log on stderr with the level of `-v` or `-q`, else of `TSV_LOG_LEVEL`.
///
/// # Errors
/// The value of `TSV_LOG_LEVEL` is unknown.
pub(crate) fn init_logging(
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
        env.parse(&env_vars::TSV_LOG_LEVEL, parse_choice::<LogLevel>)?
            .into()
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
