//! The exit codes of the process. Source: docs/specification.md, section 8.

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// All files done, or none to do; nothing found wrong.
    Success,
    /// At least one file failed, something is wrong, or the run was stopped.
    GeneralError,
    /// Wrong usage or configuration.
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
