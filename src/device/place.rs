//! A file is put where its fate has it, looked at once more, and only then told.

use super::Device;
use crate::folder::{Folder, MoveError, OpenFile, Sidecar, Writers};
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
            Err(MoveError::Replaced) => {
                report.status = Status::Skipped;
                report.retryable = true;
                report.error = Some(format!(
                    "{}; the next run takes that one",
                    MoveError::Replaced
                ));
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
        from.check_holds(name, open.inode)?;
        let as_name = from.move_into(name, &parsed, name, 0, |_| Ok(true))?;
        // The sidecar of a file that was tried again, or one that a killed run wrote before it could move the file. What hinders
        // that is somebody's own folder of such a name: no reason to doubt the move.
        if let Ok(errors) = self.folder.open_below(Path::new(ERROR))
            && let Err(error) = errors.tidy_sidecars(name)
        {
            tracing::debug!("{}: not tidied: {error}", shown(errors.path()));
        }
        Ok(Some((parsed, as_name, false)))
    }

    fn move_to_error(&self, report: &FileReport, taken: &Taken) -> Result<Target, MoveError> {
        let Taken {
            from, name, open, ..
        } = taken;
        let errors = self.folder.open_or_make(ERROR)?;
        let sidecar = self.sidecar(report);
        if errors.holds(name, open.inode)? {
            errors.replace_sidecar(name, &sidecar)?;
            return Ok(None);
        }
        from.check_holds(name, open.inode)?;
        let as_name = from.move_into_error(name, &errors, name, &sidecar)?;
        Ok(Some((errors, as_name, true)))
    }

    fn sidecar(&self, report: &FileReport) -> Sidecar {
        let now = iso(Utc::now());
        Sidecar {
            error: report.error.clone().unwrap_or_default(),
            retryable: report.retryable,
            time: now.clone(),
            arrived: now,
            run_id: self.shared.ledger.run_id().to_owned(),
        }
    }

    /// The second look at files that were moved: one that is still being written, or was changed, is not finished and goes
    /// back. Only then it is told. Nobody waits for the disk to have the moves: one that a power cut takes back leaves a file to
    /// be ingested once more, and the same points overwrite themselves.
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
                report.error = Some(format!("{reason}; given back for the next run"));
                if let Err(error) = moved.give_back(&self.sidecar(report)) {
                    report.error = Some(format!("{reason}, but it cannot be given back: {error}"));
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

    /// Back to where it was taken from; with a sidecar that asks for another try where that is `error/`.
    fn give_back(&self, sidecar: &Sidecar) -> Result<(), MoveError> {
        let Taken { from, name, .. } = &self.taken;
        if from.path().ends_with(ERROR) {
            self.to
                .move_into_error(&self.as_name, from, name, sidecar)?;
        } else {
            self.to
                .move_into(&self.as_name, from, name, 0, |_| Ok(true))?;
        }
        if self.with_sidecar {
            self.to.remove_orphan_sidecar(&self.as_name)?;
        }
        Ok(())
    }
}
