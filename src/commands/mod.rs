//! The commands: dispatch and error messages.

mod channels;
mod check;
mod comparison;
mod completions;
mod ingest;
mod man;
mod old_points;
mod rebuild;
mod rollup;
mod status;
mod verify;

use crate::cli::{Cli, Command};
use crate::config::ConfigError;
use crate::exit_code::ExitCode;
use crate::sink::CreateDirError;
use std::io::Write as _;

/// Runs the command and prints its error, if any, to stderr.
pub fn run(cli: &Cli) -> std::process::ExitCode {
    let result = match &cli.command {
        None => ingest::ingest(&cli.ingest),
        Some(Command::Check(args)) => check::check(args),
        Some(Command::Status(args)) => status::status(args),
        Some(Command::Verify(args)) => verify::verify(args),
        Some(Command::Rebuild(args)) => rebuild::rebuild(args),
        Some(Command::Rollup(args)) => rollup::rollup(args),
        Some(Command::Channels(args)) => channels::channels(args),
        Some(Command::Completions { shell }) => completions::completions(*shell),
        Some(Command::Man { dir }) => man::man(dir),
    };
    let code = result.unwrap_or_else(|error| {
        eprint_line(&format!("powerview: {error:#}"));
        if error.is::<ConfigError>() || error.is::<CreateDirError>() {
            ExitCode::UsageError
        } else {
            ExitCode::GeneralError
        }
    });
    code.into()
}

/// Writes a line to stderr. Write errors are ignored.
fn eprint_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
