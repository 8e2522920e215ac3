//! A file is put where its fate has it, looked at once more, and only then told.

use super::Device;
use crate::folder::{Folder, MoveError, OpenFile, SIDECAR_ROOM, Sidecar, Writers, numbered};
use crate::names::{ERROR, PARSED};
use crate::report::{FileReport, Status, iso};
use crate::shown::shown;
use chrono::Utc;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What should become of a file.
pub(super) enum Fate {
    Parsed,
    /// To `error/`; whether another try is worth it.
    Error {
        retryable: bool,
    },
    Stay,
}

/// A file that was dealt with but for the second look.
pub(super) struct Dealt {
    pub report: FileReport,
    /// Where the file came from and where it is now.
    pub moved: Option<Moved>,
}

/// A file in its new place.
pub(super) struct Moved {
    open: OpenFile,
    /// The processes that had it open for writing when it was taken.
    writers: Vec<u32>,
    from: Folder,
    name: OsString,
    to: Folder,
    as_name: OsString,
    with_sidecar: bool,
}

impl Device<'_> {
    /// Moves a file where its fate has it. What cannot be moved stays, and says why.
    pub(super) fn finish(
        &self,
        mut report: FileReport,
        fate: &Fate,
        open: OpenFile,
        writers: Vec<u32>,
        from: Folder,
        name: &OsStr,
    ) -> Dealt {
        let retryable = match fate {
            Fate::Error { retryable } => *retryable,
            Fate::Stay => report.retryable || report.status == Status::Error,
            Fate::Parsed => false,
        };
        report.retryable = retryable;
        let moved = match fate {
            Fate::Stay => Ok(None),
            _ if self.shared.settings.dry_run => Ok(None),
            Fate::Parsed => self.move_to_parsed(&from, name, &open),
            Fate::Error { .. } => self.move_to_error(&report, &from, name, &open),
        };
        let moved = match moved {
            Ok(moved) => moved,
            Err(MoveError::Gone) => {
                tracing::warn!(
                    "{}: taken away while it was being ingested",
                    shown(&report.file_path)
                );
                None
            }
            Err(error) => {
                let done = match report.status {
                    Status::Success => "its points are written, but it",
                    _ => "it",
                };
                report.status = Status::Error;
                report.retryable = true;
                let words = format!("{done} cannot be moved: {error}; it stays where it is");
                report.error = Some(match report.error.take() {
                    Some(first) => format!("{first}; {words}"),
                    None => words,
                });
                None
            }
        };
        let moved = moved.map(|(to, as_name, with_sidecar)| {
            report.moved_to = Some(to.path().join(&as_name).to_string_lossy().into_owned());
            Moved {
                open,
                writers,
                from,
                name: name.to_owned(),
                to,
                as_name,
                with_sidecar,
            }
        });
        Dealt { report, moved }
    }

    fn move_to_parsed(
        &self,
        from: &Folder,
        name: &OsStr,
        open: &OpenFile,
    ) -> Result<Option<(Folder, OsString, bool)>, MoveError> {
        let parsed = self.folder.open_or_make(PARSED)?;
        if parsed.holds(name, open.inode)? {
            return Ok(None);
        }
        let as_name = from.move_into(name, &parsed, name, 0, |_| Ok(true))?;
        // The sidecar of a file that was tried again, or one that a killed run wrote before it could move the file.
        if let Ok(errors) = self.folder.open_below(Path::new(ERROR)) {
            let left = (0..).map(|n| numbered(name, n, SIDECAR_ROOM));
            for candidate in left {
                if errors.inode_of(&candidate)?.is_none() {
                    errors.remove_sidecar(&candidate)?;
                    break;
                }
            }
        }
        Ok(Some((parsed, as_name, false)))
    }

    fn move_to_error(
        &self,
        report: &FileReport,
        from: &Folder,
        name: &OsStr,
        open: &OpenFile,
    ) -> Result<Option<(Folder, OsString, bool)>, MoveError> {
        let errors = self.folder.open_or_make(ERROR)?;
        let sidecar = Sidecar {
            error: report.error.clone().unwrap_or_default(),
            retryable: report.retryable,
            time: iso(Utc::now()),
            run_id: self.shared.ledger.run_id().to_owned(),
        };
        if errors.holds(name, open.inode)? {
            errors.replace_sidecar(name, &sidecar)?;
            return Ok(None);
        }
        let mut written = None;
        let result = from.move_into(name, &errors, name, SIDECAR_ROOM, |candidate| {
            if errors.inode_of(candidate)?.is_some() {
                return Ok(false);
            }
            errors.write_sidecar(candidate, &sidecar)?;
            written = Some(candidate.to_owned());
            Ok(true)
        });
        match result {
            Ok(as_name) => Ok(Some((errors, as_name, true))),
            Err(error) => {
                if let Some(candidate) = written {
                    let _ = errors.remove_orphan_sidecar(&candidate);
                }
                Err(error)
            }
        }
    }

    /// The second look at files that were moved: one that is still being written, or was changed, is not finished and goes
    /// back. Then the folders are synced, and only then it is told.
    pub(super) fn look_again(&self, dealt: Vec<Dealt>) {
        let moved: Vec<_> = dealt
            .iter()
            .filter_map(|d| Some(d.moved.as_ref()?.open.inode))
            .collect();
        let writers = if moved.is_empty() {
            Writers::default()
        } else {
            Writers::now_of(&moved)
        };
        let mut synced: Vec<PathBuf> = Vec::new();
        let mut reports = Vec::with_capacity(dealt.len());
        for Dealt { mut report, moved } in dealt {
            if let Some(moved) = moved {
                if let Some(reason) = moved.unfinished(&writers) {
                    report.status = Status::Skipped;
                    report.retryable = true;
                    report.moved_to = None;
                    report.error = Some(match moved.give_back() {
                        Ok(()) => format!("{reason}; given back for the next run"),
                        Err(error) => format!("{reason}, but it cannot be given back: {error}"),
                    });
                }
                for folder in [&moved.to, &moved.from] {
                    if synced.iter().any(|path| path == folder.path()) {
                        continue;
                    }
                    match folder.sync() {
                        Ok(()) => synced.push(folder.path().to_owned()),
                        Err(error) => {
                            tracing::warn!("{}: not synced to disk: {error}", shown(folder.path()))
                        }
                    }
                }
            }
            reports.push(report);
        }
        for report in reports {
            self.tell(report);
        }
    }
}

impl Moved {
    /// Why this file is not finished, if it is not.
    fn unfinished(&self, writers: &Writers) -> Option<String> {
        if !self
            .to
            .holds(&self.as_name, self.open.inode)
            .unwrap_or(true)
        {
            return Some("another file took its name while it was being ingested".to_owned());
        }
        if self.open.has_changed().unwrap_or(true) {
            return Some("it was changed while it was being moved".to_owned());
        }
        writers
            .of(self.open.inode)
            .iter()
            .find(|pid| !self.writers.contains(pid))
            .map(|pid| format!("process {pid} began to write to it while it was being ingested"))
    }

    fn give_back(&self) -> Result<(), MoveError> {
        self.to
            .move_into(&self.as_name, &self.from, &self.name, 0, |_| Ok(true))
            .map(|_| ())?;
        if self.with_sidecar {
            self.to.remove_orphan_sidecar(&self.as_name)?;
        }
        Ok(())
    }
}
