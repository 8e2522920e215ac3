//! The outcome of a file, from which its report and its sidecar, and the exit code of the run, are derived.
//!
//! See docs/specification.md, sections 6 and 7.

use crate::config::env_vars::OnOutage;
use crate::data_dir::{DevicePath, Sidecar};
use crate::layout::FileLayout;
use crate::logger_file::FormatError;
use crate::pipeline::ingest::IngestError;
use crate::report::{FileDetails, FileReport, FileResult, Status, iso};
use crate::sink::WriteError;
use chrono::Utc;
use std::path::{Path, PathBuf};

/// What became of a file, with the reason unless it succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All points are written.
    Ingested,
    /// The file is invalid, or the server rejected its data, so another attempt fails too.
    Rejected(String),
    /// The file could not be read, written or moved, which another attempt may.
    Retryable(String),
    /// The server works, but did not write this file, which another attempt may.
    Unwritten(String),
    /// The server or the bucket is unavailable for the rest of the run.
    Outage(String),
    /// The file is left for a later run, or nothing is left to do.
    Skipped(String),
}

/// The folder that a file with some outcome belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// `parsed/`.
    Parsed,
    /// `error/`.
    Error,
    /// The folder where the file is.
    Stay,
}

impl Outcome {
    /// The outcome of a file whose points were sent.
    pub(super) fn of(result: Result<(), IngestError>) -> Self {
        let Err(error) = result else {
            return Self::Ingested;
        };
        let reason = error.to_string();
        match error {
            IngestError::Format(FormatError::Read(_))
            | IngestError::Sink(WriteError::Storage(_)) => Self::Retryable(reason),
            IngestError::Format(_)
            | IngestError::Sink(WriteError::Partial(_) | WriteError::Rejected(_)) => {
                Self::Rejected(reason)
            }
            IngestError::Sink(WriteError::Unwritten(_)) => Self::Unwritten(reason),
            IngestError::Sink(WriteError::Outage(_)) => Self::Outage(reason),
            IngestError::Changed | IngestError::Sink(WriteError::Stopped) => Self::Skipped(reason),
        }
    }

    /// Where the file belongs.
    pub(super) fn target(&self, on_outage: OnOutage) -> Target {
        match (self, on_outage) {
            (Self::Ingested, _) => Target::Parsed,
            (Self::Rejected(_) | Self::Unwritten(_), _) | (Self::Outage(_), OnOutage::Error) => {
                Target::Error
            }
            (Self::Outage(_), OnOutage::Keep) | (Self::Retryable(_) | Self::Skipped(_), _) => {
                Target::Stay
            }
        }
    }

    /// Why the file was not ingested.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Ingested => None,
            Self::Rejected(reason)
            | Self::Retryable(reason)
            | Self::Unwritten(reason)
            | Self::Outage(reason)
            | Self::Skipped(reason) => Some(reason),
        }
    }

    /// The sidecar of a file that is moved to `error/` now.
    pub(super) fn sidecar(&self, run_id: &str) -> Sidecar {
        let now = iso(Utc::now());
        Sidecar {
            error: self.reason().unwrap_or_default().to_owned(),
            retryable: !matches!(self, Self::Rejected(_)),
            time: now.clone(),
            arrived: now,
            run_id: run_id.to_owned(),
        }
    }

    fn status(&self) -> Status {
        match self {
            Self::Ingested => Status::Success,
            Self::Rejected(_) | Self::Retryable(_) | Self::Unwritten(_) | Self::Outage(_) => {
                Status::Error
            }
            Self::Skipped(_) => Status::Skipped,
        }
    }
}

/// A file and its outcome, to be recorded.
#[derive(Debug)]
pub(super) struct FileRecord {
    pub path: PathBuf,
    pub details: FileDetails,
    pub outcome: Outcome,
    /// Path after the move, if the file was moved.
    pub moved_to: Option<PathBuf>,
    /// The layouts of the file, until they are compared with the one before.
    pub layout: Option<FileLayout>,
}

impl FileRecord {
    /// The record of a file, or a folder, that was not read. `location` is `None` outside of device folders.
    pub(super) fn unread(path: PathBuf, location: Option<&DevicePath>, outcome: Outcome) -> Self {
        Self {
            path,
            details: FileDetails::unread(location),
            outcome,
            moved_to: None,
            layout: None,
        }
    }
}

impl From<FileRecord> for FileReport {
    fn from(record: FileRecord) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Self {
            file_path: text(&record.path),
            result: FileResult {
                status: record.outcome.status(),
                error: record.outcome.reason().map(str::to_owned),
                retryable: matches!(
                    record.outcome,
                    Outcome::Retryable(_) | Outcome::Unwritten(_) | Outcome::Outage(_)
                ),
                moved_to: record.moved_to.as_deref().map(text),
                in_outage: matches!(record.outcome, Outcome::Outage(_)),
            },
            details: record.details,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: Outcome) -> FileReport {
        FileRecord::unread(PathBuf::from("/data/x.tsv"), None, outcome).into()
    }

    #[test]
    fn report_sidecar_and_folder_follow_from_the_outcome() {
        let reason = || "r".to_owned();
        for (outcome, status, retryable, in_sidecar, target) in [
            (
                Outcome::Rejected(reason()),
                Status::Error,
                false,
                false,
                Target::Error,
            ),
            (
                Outcome::Retryable(reason()),
                Status::Error,
                true,
                true,
                Target::Stay,
            ),
            (
                Outcome::Unwritten(reason()),
                Status::Error,
                true,
                true,
                Target::Error,
            ),
            (
                Outcome::Outage(reason()),
                Status::Error,
                true,
                true,
                Target::Error,
            ),
            (
                Outcome::Skipped(reason()),
                Status::Skipped,
                false,
                true,
                Target::Stay,
            ),
        ] {
            let what = format!("{outcome:?}");
            assert_eq!(outcome.target(OnOutage::Error), target, "{what}");
            let sidecar = outcome.sidecar("run");
            assert_eq!(
                (sidecar.error.as_str(), sidecar.retryable),
                ("r", in_sidecar),
                "{what}"
            );
            let result = report(outcome).result;
            assert_eq!(
                (result.status, result.error.as_deref(), result.retryable),
                (status, Some("r"), retryable),
                "{what}"
            );
        }
        assert_eq!(Outcome::Ingested.target(OnOutage::Keep), Target::Parsed);
        assert_eq!(
            Outcome::Unwritten(reason()).target(OnOutage::Keep),
            Target::Error
        );
        assert_eq!(
            Outcome::Outage(reason()).target(OnOutage::Keep),
            Target::Stay
        );
        assert_eq!(report(Outcome::Ingested).result.error, None);
    }
}
