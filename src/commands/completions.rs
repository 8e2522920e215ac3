//! `powerview completions`: shell completion scripts.

use crate::cli::Cli;
use crate::exit_code::ExitCode;
use clap::CommandFactory as _;
use std::io::Write as _;

/// Prints the completion script of a shell.
///
/// # Errors
/// Stdout cannot be written. A closed pipe is not an error.
pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    // Buffered, because the library panics if the pipe is closed early.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "powerview", &mut script);
    match std::io::stdout().write_all(&script) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(anyhow::anyhow!(
            "cannot write the completions to stdout: {error}; redirect them to a file that can be written"
        )),
        _ => Ok(ExitCode::Success),
    }
}
