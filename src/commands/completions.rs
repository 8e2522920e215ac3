//! `powerview completions`.

use crate::cli::Cli;
use crate::exit_code::ExitCode;
use clap::CommandFactory as _;
use std::io::Write as _;

/// Prints the completions for a shell.
///
/// # Errors
/// Where stdout cannot be written, unless its reader has closed it.
pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    // Through memory: the library panics if a pipe closes early.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "powerview", &mut script);
    match std::io::stdout().write_all(&script) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(anyhow::anyhow!(
            "the completions cannot be written: {error}"
        )),
        _ => Ok(ExitCode::Success),
    }
}
