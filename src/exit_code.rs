//! Exit codes of the process. See docs/specification.md, section 8.

/// Exit status of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// 0: all files are ingested, or there were none; no problem was found.
    Success,
    /// 1: at least one file failed, a problem was found, or the run was stopped.
    GeneralError,
    /// 2: wrong usage or configuration.
    UsageError,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(match code {
            ExitCode::Success => 0,
            ExitCode::GeneralError => 1,
            ExitCode::UsageError => 2,
        })
    }
}
