//! A file is put where its fate has it, looked at once more, and only then told.

use super::device::Device;
use crate::data_dir::{Dir, Lease, MoveError, OpenFile, OpenWriters, Sidecar, Stamp};
use crate::data_dir::{ERROR, PARSED};
use crate::pipeline::ingest::IngestError;
use crate::report::{FileReport, Status, iso};
use crate::sanitize::sanitize;
use chrono::Utc;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What should become of a file.
pub(super) enum Outcome {
    Parsed,
    /// To `error/`; whether another try is worth it.
    Error {
        retryable: bool,
    },
    Stay,
}

/// A file whose fate is decided.
pub(super) struct Processed {
    pub report: FileReport,
    pub outcome: Outcome,
    /// The file itself; none where nothing was opened, or nothing is to be touched.
    pub claimed: Option<ClaimedFile>,
    /// Folder and name of a file that is to be taken again at once: its rights or times were changed, its content was not.
    pub retake: Option<(PathBuf, OsString)>,
}

/// What happened to a file while it was in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// Its rights or times: nobody wrote to it.
    Metadata,
    /// Its content, or that cannot be excluded.
    Content,
}

/// A file in hand.
pub(super) struct ClaimedFile {
    pub open: OpenFile,
    /// The proof that nobody writes it; none where leases cannot be had, and `/proc` was looked through.
    pub lease: Option<Lease>,
    pub from: Arc<Dir>,
    pub name: OsString,
}

/// A file in its new place.
pub(super) struct Moved {
    claimed: ClaimedFile,
    /// Size and times after the move; none where they could not be had.
    stamp: Option<Stamp>,
    to: Dir,
    as_name: OsString,
    with_sidecar: bool,
}

/// Where a file went: folder, name, and whether a sidecar went with it. None if it was there already.
type Target = Option<(Dir, OsString, bool)>;

impl Processed {
    /// A file that stays where it is.
    pub(super) fn left(report: FileReport) -> Self {
        Self {
            report,
            outcome: Outcome::Stay,
            claimed: None,
            retake: None,
        }
    }
}

impl Device<'_> {
    /// Makes sure of what was written, moves the files of a group, looks at them once more, and tells what came of it. Returns
    /// the files that were moved and stayed there.
    pub(super) fn place(&self, mut group: Vec<Processed>) -> Vec<Moved> {
        if group
            .iter()
            .any(|processed| matches!(processed.outcome, Outcome::Parsed))
            && let Err(failure) = self.context.sink.sync(self.location.company.as_str())
        {
            for processed in &mut group {
                if matches!(processed.outcome, Outcome::Parsed) {
                    processed.outcome = Outcome::Stay;
                    processed.report.status = Status::Error;
                    processed.report.retryable = true;
                    processed.report.error = Some(failure.to_string());
                }
            }
        }
        let moved = group
            .into_iter()
            .map(|processed| self.move_file(processed))
            .collect();
        self.recheck(moved)
    }

    /// Moves a file where its fate has it. What cannot be moved stays, and says why.
    fn move_file(&self, processed: Processed) -> (FileReport, Option<Moved>) {
        let Processed {
            mut report,
            outcome,
            claimed,
            retake: _,
        } = processed;
        let Some(claimed) = claimed else {
            return (report, None);
        };
        let target = match outcome {
            Outcome::Stay => {
                report.retryable |= report.status == Status::Error;
                Ok(None)
            }
            Outcome::Parsed | Outcome::Error { .. } if !claimed.begin_move() => {
                report.status = Status::Skipped;
                report.error = Some(IngestError::Changed.to_string());
                Ok(None)
            }
            Outcome::Parsed => self.move_to_parsed(&claimed),
            Outcome::Error { retryable } => {
                report.retryable = retryable;
                self.move_to_error(&report, &claimed)
            }
        };
        match target {
            Ok(Some((to, as_name, with_sidecar))) => {
                report.moved_to = Some(to.path().join(&as_name).to_string_lossy().into_owned());
                let moved = Moved {
                    stamp: claimed.open.stamp_now().ok(),
                    claimed,
                    to,
                    as_name,
                    with_sidecar,
                };
                if let Some(reason) = moved.changed_during_move() {
                    self.move_back(&mut report, &moved, &reason);
                    return (report, None);
                }
                // A writer that waits goes on only now, in a file that has its own name.
                moved.claimed.release();
                (report, Some(moved))
            }
            Ok(None) => (report, None),
            Err(MoveError::Gone) => {
                let path = claimed.from.path().join(&claimed.name);
                self.context
                    .recorder
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

    fn move_to_parsed(&self, claimed: &ClaimedFile) -> Result<Target, MoveError> {
        let ClaimedFile {
            from, name, open, ..
        } = claimed;
        let parsed = self.folder.open_or_make(PARSED)?;
        if parsed.is_same_file(name, open.inode)? {
            // It was taken because it was written after its move; what is written from now on is newer than this mark.
            if let Err(error) = open.mark_as_read() {
                tracing::debug!("{}: not marked: {error}", sanitize(parsed.path()));
            }
            return Ok(None);
        }
        from.ensure_same_file(name, open.inode)?;
        let as_name = from.move_into(name, &parsed, name, 0, |_| Ok(true))?;
        // The sidecar of a file that was tried again, or one that a killed run wrote before it could move the file. What hinders
        // that is somebody's own folder of such a name: no reason to doubt the move.
        if let Ok(errors) = self.folder.open_below(Path::new(ERROR))
            && let Err(error) = errors.remove_leftover_sidecars(name)
        {
            tracing::debug!("{}: not tidied: {error}", sanitize(errors.path()));
        }
        Ok(Some((parsed, as_name, false)))
    }

    fn move_to_error(
        &self,
        report: &FileReport,
        claimed: &ClaimedFile,
    ) -> Result<Target, MoveError> {
        let ClaimedFile {
            from, name, open, ..
        } = claimed;
        let errors = self.folder.open_or_make(ERROR)?;
        let sidecar = self.sidecar(report);
        if errors.is_same_file(name, open.inode)? {
            errors.replace_sidecar(name, &sidecar)?;
            return Ok(None);
        }
        from.ensure_same_file(name, open.inode)?;
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
            run_id: self.context.recorder.run_id().to_owned(),
        }
    }

    /// The second look at files that were moved: one that is being written, or was changed, is not finished and goes back.
    /// Only then it is told. Nobody waits for the disk to have the moves: one that a power cut takes back leaves a file to be
    /// ingested once more, and the same points overwrite themselves.
    fn recheck(&self, group: Vec<(FileReport, Option<Moved>)>) -> Vec<Moved> {
        let writers = Moved::writers(group.iter().filter_map(|(_, moved)| moved.as_ref()));
        let mut finished = Vec::new();
        for (mut report, moved) in group {
            if let Some(moved) = moved {
                match moved.reopened(&writers) {
                    Some(reason) => self.move_back(&mut report, &moved, &reason),
                    None => finished.push(moved),
                }
            }
            self.tell(report);
        }
        finished
    }

    /// The last look, a while later: a writer that had found a file by its old name just before the move opens it just after.
    pub(super) fn recheck_later(&self, group: Vec<Moved>) {
        let writers = Moved::writers(group.iter());
        for moved in group {
            if let Some(reason) = moved.reopened(&writers) {
                let path = moved.to.path().join(&moved.as_name);
                let mut report =
                    FileReport::unread(&path, Some(&self.location), Status::Skipped, "");
                self.move_back(&mut report, &moved, &reason);
                self.context
                    .recorder
                    .warn(&path, &report.error.unwrap_or_default());
            }
        }
    }

    /// Moves a file back to where it was taken from, and says so in its report.
    fn move_back(&self, report: &mut FileReport, moved: &Moved, reason: &str) {
        report.status = Status::Skipped;
        report.retryable = true;
        report.moved_to = None;
        report.error = Some(format!("{reason}; given back for the next run"));
        if let Err(error) = moved.move_back(&self.sidecar(report)) {
            report.status = Status::Error;
            report.error = Some(format!(
                "{reason}, but it cannot be given back: {error}; move it to the device's folder by hand"
            ));
        }
    }
}

impl ClaimedFile {
    /// What happened to the file since it was opened.
    pub(super) fn change(&self) -> Change {
        let is_intact = self.lease.as_ref().is_none_or(Lease::is_intact);
        let Ok(now) = self.open.stamp_now() else {
            return Change::Content;
        };
        if !is_intact {
            Change::Content
        } else if now == self.open.stamp {
            Change::None
        } else if now.has_same_content(&self.open.stamp)
            && !self
                .from
                .is_same_file(&self.name, self.open.inode)
                .unwrap_or(true)
        {
            // Removed, or another file was renamed over it: the move says so.
            Change::None
        } else if self.lease.is_some() {
            Change::Metadata
        } else {
            Change::Content
        }
    }

    /// From now on a writer waits. Returns whether the file is as it was opened.
    fn begin_move(&self) -> bool {
        self.lease.as_ref().is_none_or(Lease::begin_move) && self.change() == Change::None
    }

    fn release(&self) {
        if let Some(lease) = &self.lease {
            lease.release();
        }
    }
}

impl Moved {
    /// Who writes the files of a group, where that is not known by leases.
    fn writers<'a>(group: impl Iterator<Item = &'a Moved>) -> OpenWriters {
        let unleased: Vec<_> = group
            .filter(|moved| moved.claimed.lease.is_none())
            .map(|moved| moved.claimed.open.inode)
            .collect();
        if unleased.is_empty() {
            OpenWriters::default()
        } else {
            OpenWriters::scan_for(&unleased)
        }
    }

    /// Why this file is not finished, if it is not, right after its move and before its lease is released.
    fn changed_during_move(&self) -> Option<String> {
        let ClaimedFile { open, lease, .. } = &self.claimed;
        if !self
            .to
            .is_same_file(&self.as_name, open.inode)
            .unwrap_or(true)
        {
            return Some("another file took its name while it was being ingested".to_owned());
        }
        if !lease.as_ref().is_none_or(Lease::is_intact) {
            return Some("a process began to write to it while it was being moved".to_owned());
        }
        let has_same_content = |stamp: Stamp| stamp.has_same_content(&open.stamp);
        if !self.stamp.is_some_and(has_same_content) {
            return Some("it was changed while it was being moved".to_owned());
        }
        None
    }

    /// Why this file is not finished, if it is not, when its lease is released.
    fn reopened(&self, writers: &OpenWriters) -> Option<String> {
        let ClaimedFile { open, lease, .. } = &self.claimed;
        if lease.as_ref().is_some_and(Lease::has_writer) {
            return Some("a process began to write to it while it was being moved".to_owned());
        }
        if let Some(pid) = writers.of(open.inode).first() {
            return Some(format!(
                "process {pid} began to write to it while it was being moved"
            ));
        }
        if open.stamp_now().ok() != self.stamp {
            return Some("it was changed while it was being moved".to_owned());
        }
        None
    }

    /// Back to where it was taken from; with a sidecar that asks for another try where that is `error/`.
    fn move_back(&self, sidecar: &Sidecar) -> Result<(), MoveError> {
        let ClaimedFile { from, name, .. } = &self.claimed;
        self.to
            .ensure_same_file(&self.as_name, self.claimed.open.inode)?;
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
