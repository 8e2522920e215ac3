//! The commands of the program: dispatch, and the message of a command that cannot be carried out.

mod check;
mod completions;
mod ingest;
mod status;

use crate::cli::{Cli, Command};
use crate::config::ConfigError;
use crate::exit_code::ExitCode;
use std::io::Write as _;

/// Runs the command and says on stderr why it could not be carried out.
pub fn run(cli: &Cli) -> std::process::ExitCode {
    let result = match &cli.command {
        None => ingest::ingest(&cli.ingest),
        Some(Command::Check(args)) => check::check(args),
        Some(Command::Status(args)) => status::status(args),
        Some(Command::Completions { shell }) => completions::completions(*shell),
    };
    let code = result.unwrap_or_else(|error| {
        eprint_line(&format!("powerview: {error:#}"));
        if error.is::<ConfigError>() {
            ExitCode::UsageError
        } else {
            ExitCode::GeneralError
        }
    });
    code.into()
}

/// Writes a line to stderr. That it cannot be written is no reason to fail.
fn eprint_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
