//! A file is put where its fate has it, looked at once more, and only then told.

use super::Device;
use crate::folder::{Folder, MoveError, OpenFile, SIDECAR_ROOM, Sidecar, Writers, numbered};
use crate::names::{ERROR, PARSED};
use crate::report::{FileReport, Status, iso};
use crate::shown::shown;
use chrono::Utc;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

/// What should become of a file.
pub(super) enum Fate {
    Parsed,
    /// To `error/`; whether another try is worth it.
    Error {
        retryable: bool,
    },
    Stay,
}

/// A file whose fate is decided.
pub(super) struct Dealt {
    pub report: FileReport,
    pub fate: Fate,
    /// The file itself; none where nothing was opened, or nothing is to be touched.
    pub taken: Option<Taken>,
}

/// A file in hand.
pub(super) struct Taken {
    pub open: OpenFile,
    /// The processes that had it open for writing when it was taken.
    pub writers: Vec<u32>,
    pub from: Arc<Folder>,
    pub name: OsString,
}

/// A file in its new place.
struct Moved {
    taken: Taken,
    to: Folder,
    as_name: OsString,
    with_sidecar: bool,
}

/// Where a file went: folder, name, and whether a sidecar went with it. None if it was there already.
type Target = Option<(Folder, OsString, bool)>;

impl Dealt {
    /// A file that stays where it is.
    pub(super) fn left(report: FileReport) -> Self {
        Self {
            report,
            fate: Fate::Stay,
            taken: None,
        }
    }
}

impl Device<'_> {
    /// Makes sure of what was written, moves the files of a group, looks at them once more, and tells what came of it.
    pub(super) fn place(&self, mut group: Vec<Dealt>) {
        if group.iter().any(|dealt| matches!(dealt.fate, Fate::Parsed))
            && let Err(failure) = self.shared.sink.settle(self.location.company.as_str())
        {
            for dealt in &mut group {
                if matches!(dealt.fate, Fate::Parsed) {
                    dealt.fate = Fate::Stay;
                    dealt.report.status = Status::Error;
                    dealt.report.retryable = true;
                    dealt.report.error = Some(failure.to_string());
                }
            }
        }
        let moved = group.into_iter().map(|dealt| self.put(dealt)).collect();
        self.look_again(moved);
        self.shared.ledger.send_meta(self.shared.sink);
    }

    /// Moves a file where its fate has it. What cannot be moved stays, and says why.
    fn put(&self, dealt: Dealt) -> (FileReport, Option<Moved>) {
        let Dealt {
            mut report,
            fate,
            taken,
        } = dealt;
        let Some(taken) = taken else {
            return (report, None);
        };
        let target = match fate {
            Fate::Stay => {
                report.retryable |= report.status == Status::Error;
                Ok(None)
            }
            Fate::Parsed => self.move_to_parsed(&taken),
            Fate::Error { retryable } => {
                report.retryable = retryable;
                self.move_to_error(&report, &taken)
            }
        };
        match target {
            Ok(Some((to, as_name, with_sidecar))) => {
                report.moved_to = Some(to.path().join(&as_name).to_string_lossy().into_owned());
                let moved = Moved {
                    taken,
                    to,
                    as_name,
                    with_sidecar,
                };
                (report, Some(moved))
            }
            Ok(None) => (report, None),
            Err(MoveError::Gone) => {
                let path = taken.from.path().join(&taken.name);
                self.shared
                    .ledger
                    .warn(&path, "taken away while it was being ingested");
                (report, None)
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
                (report, None)
            }
        }
    }

    fn move_to_parsed(&self, taken: &Taken) -> Result<Target, MoveError> {
        let Taken {
            from, name, open, ..
        } = taken;
        let parsed = self.folder.open_or_make(PARSED)?;
        if parsed.holds(name, open.inode)? {
            return Ok(None);
        }
        let as_name = from.move_into(name, &parsed, name, 0, |_| Ok(true))?;
        // The sidecar of a file that was tried again, or one that a killed run wrote before it could move the file.
        if let Ok(errors) = self.folder.open_below(Path::new(ERROR)) {
            errors.remove_unfinished_sidecar()?;
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

    fn move_to_error(&self, report: &FileReport, taken: &Taken) -> Result<Target, MoveError> {
        let Taken {
            from, name, open, ..
        } = taken;
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
    fn look_again(&self, mut group: Vec<(FileReport, Option<Moved>)>) {
        let inodes: Vec<_> = group
            .iter()
            .filter_map(|(_, moved)| Some(moved.as_ref()?.taken.open.inode))
            .collect();
        let writers = if inodes.is_empty() {
            Writers::default()
        } else {
            Writers::now_of(&inodes)
        };
        for (report, moved) in &mut group {
            let Some(moved) = moved else { continue };
            if let Some(reason) = moved.unfinished(&writers) {
                report.status = Status::Skipped;
                report.retryable = true;
                report.moved_to = None;
                report.error = Some(match moved.give_back() {
                    Ok(()) => format!("{reason}; given back for the next run"),
                    Err(error) => format!("{reason}, but it cannot be given back: {error}"),
                });
            }
        }
        let mut synced: Vec<&Path> = Vec::new();
        for moved in group.iter().filter_map(|(_, moved)| moved.as_ref()) {
            for folder in [&moved.to, moved.taken.from.as_ref()] {
                if synced.contains(&folder.path()) {
                    continue;
                }
                synced.push(folder.path());
                if let Err(error) = folder.sync() {
                    tracing::warn!("{}: not synced to disk: {error}", shown(folder.path()));
                }
            }
        }
        for (report, _) in group {
            self.tell(report);
        }
    }
}

impl Moved {
    /// Why this file is not finished, if it is not.
    fn unfinished(&self, writers: &Writers) -> Option<String> {
        if !self
            .to
            .holds(&self.as_name, self.taken.open.inode)
            .unwrap_or(true)
        {
            return Some("another file took its name while it was being ingested".to_owned());
        }
        if self.taken.open.has_changed().unwrap_or(true) {
            return Some("it was changed while it was being moved".to_owned());
        }
        writers
            .of(self.taken.open.inode)
            .iter()
            .find(|pid| !self.taken.writers.contains(pid))
            .map(|pid| format!("process {pid} began to write to it while it was being ingested"))
    }

    fn give_back(&self) -> Result<(), MoveError> {
        self.to
            .move_into(&self.as_name, &self.taken.from, &self.taken.name, 0, |_| {
                Ok(true)
            })
            .map(|_| ())?;
        if self.with_sidecar {
            self.to.remove_orphan_sidecar(&self.as_name)?;
        }
        Ok(())
    }
}
