//! Moves processed files to `parsed/` or `error/`, checks that no writer interfered, and records the results.
//!
//! See docs/specification.md, sections 1 and 9.

use super::device::Device;
use super::outcome::{FileRecord, Outcome, Target};
use crate::data_dir::{
    Dir, ERROR, Lease, MoveError, OpenFile, OpenWriters, PARSED, RETIRED_MARKER, Sidecar, Stamp,
};
use crate::pipeline::ingest::IngestError;
use crate::points::TimeRange;
use crate::remedy::remedy;
use crate::sanitize::sanitize;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file whose outcome is decided.
pub(super) struct Processed {
    pub record: FileRecord,
    /// The file itself, or `None` if it was not opened or must not be moved.
    pub claimed: Option<ClaimedFile>,
    /// Folder and name of a file to process again at once, because its mode or times changed but its content did not.
    pub resubmit: Option<(PathBuf, OsString)>,
}

/// How a file changed since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// Its mode or times changed, but no process wrote to it.
    Metadata,
    /// Its content changed, or may have changed.
    Content,
}

/// An open file that is being processed.
pub(super) struct ClaimedFile {
    pub open: OpenFile,
    /// Proof that no process writes to the file. `None` where leases are not available and `/proc` was scanned instead.
    pub lease: Option<Lease>,
    pub from: Arc<Dir>,
    pub name: OsString,
    /// Time range of its points, as far as it was read.
    pub span: Option<TimeRange>,
}

/// A file that was moved.
pub(super) struct Moved {
    claimed: ClaimedFile,
    /// Size and times after the move, if they could be read.
    stamp: Option<Stamp>,
    to: Arc<Dir>,
    as_name: OsString,
    with_sidecar: bool,
}

/// Where a file was moved: folder, name, and whether it has a sidecar. `None` if it was there already.
type Place = Option<(Arc<Dir>, OsString, bool)>;

impl Processed {
    /// A file that stays in place.
    pub(super) fn left_in_place(record: FileRecord) -> Self {
        Self {
            record,
            claimed: None,
            resubmit: None,
        }
    }

    /// Whether the file could not be opened because of the open files of its group.
    pub(super) fn is_not_opened(&self) -> bool {
        self.resubmit.is_some() && matches!(self.record.outcome, Outcome::Retryable(_))
    }
}

/// The folders to which the files of a group are moved, once they are open.
type TargetDirs = BTreeMap<&'static str, Arc<Dir>>;

impl Device<'_> {
    /// Syncs the written points, moves the files of a group, rechecks them and records the results. Returns the files
    /// that were moved, except those that were moved back.
    pub(super) fn move_and_record(&self, mut group: Vec<Processed>) -> Vec<Moved> {
        self.reserve.take();
        self.is_out_of_files.set(false);
        let mut ingested = group
            .iter_mut()
            .filter(|processed| processed.record.outcome == Outcome::Ingested)
            .peekable();
        if ingested.peek().is_some()
            && let Err(error) = self.context.sink.sync(self.location.company.as_str())
        {
            for processed in ingested {
                processed.record.outcome = Outcome::Retryable(error.to_string());
            }
        }
        self.keep_days();
        let mut targets = TargetDirs::new();
        let moved = group
            .into_iter()
            .map(|processed| self.move_file(processed, &mut targets))
            .collect();
        self.recheck(moved)
    }

    /// Moves a file according to its outcome. A file that cannot be moved stays, with the reason in its outcome.
    fn move_file(
        &self,
        processed: Processed,
        targets: &mut TargetDirs,
    ) -> (FileRecord, Option<Moved>) {
        let mut record = processed.record;
        let Some(claimed) = processed.claimed else {
            return (record, None);
        };
        self.check_layout(&mut record, &claimed.name, &claimed.open);
        let target = record.outcome.target(self.context.settings.on_outage);
        let place = match target {
            Target::Stay => Ok(None),
            Target::Parsed | Target::Error => match claimed.begin_move() {
                Err(error) => Err(MoveError::Io(error)),
                Ok(false) => {
                    record.outcome = Outcome::of(Err(IngestError::Changed));
                    Ok(None)
                }
                Ok(true) if target == Target::Parsed => self.move_to_parsed(&claimed, targets),
                Ok(true) => self.move_to_error(&record.outcome, &claimed, targets),
            },
        };
        let (to, as_name, with_sidecar) = match place {
            Ok(Some(place)) => place,
            Ok(None) => return (record, None),
            Err(error) => {
                record.outcome = self.outcome_of_failed_move(record.outcome, &error, &claimed);
                return (record, None);
            }
        };
        let moved = Moved {
            stamp: claimed.open.stamp_now().ok(),
            claimed,
            to,
            as_name,
            with_sidecar,
        };
        if let Some(reason) = moved.changed_during_move() {
            record.outcome = self.move_back(&moved, &reason);
            return (record, None);
        }
        record.moved_to = Some(moved.path());
        // A later change of the file is then later than the last change of the folder.
        let changed = moved.stamp.map_or(0, |stamp| stamp.changed_ns);
        if let Err(error) = moved.to.touch(changed) {
            tracing::debug!(
                "{}: cannot set its time: {error}",
                sanitize(moved.to.path())
            );
        }
        // A waiting writer continues only now, after the move is complete.
        moved.claimed.release();
        if record.outcome == Outcome::Ingested {
            self.end_retirement(&moved.claimed.open);
        }
        (record, Some(moved))
    }

    /// Puts a retired device into service again, if it was retired before this upload.
    fn end_retirement(&self, upload: &OpenFile) {
        let warn = |message: &str| self.context.recorder.warn(self.folder.path(), message);
        match self.folder.unretire_after(&upload.stamp) {
            Ok(true) => {
                warn("the device was retired and sends again; it is in service from now on");
            }
            Ok(false) => {}
            Err(error) => warn(&format!(
                "the device was retired and sends again, but {RETIRED_MARKER} cannot be removed: {error}; {}",
                remedy(&error, "check the rights of the folder")
            )),
        }
    }

    fn outcome_of_failed_move(
        &self,
        outcome: Outcome,
        error: &MoveError,
        claimed: &ClaimedFile,
    ) -> Outcome {
        match error {
            MoveError::Gone => {
                let path = claimed.from.path().join(&claimed.name);
                self.context
                    .recorder
                    .warn(&path, "file was moved or deleted during ingestion; check which other program changes the data folder");
                outcome
            }
            MoveError::Replaced => {
                Outcome::Skipped(format!("{error}; the new file is left for the next run"))
            }
            _ => Outcome::Retryable(match outcome.reason() {
                None => format!(
                    "points are written, but the file cannot be moved: {error}; file left in place"
                ),
                Some(reason) => {
                    format!("{reason}; cannot move the file: {error}; file left in place")
                }
            }),
        }
    }

    fn move_to_parsed(
        &self,
        claimed: &ClaimedFile,
        targets: &mut TargetDirs,
    ) -> Result<Place, MoveError> {
        let ClaimedFile {
            from,
            name,
            open,
            span,
            ..
        } = claimed;
        let parsed = self.target(PARSED, targets)?;
        if parsed.is_same_file(name, open.inode)? {
            // The file was written to after an earlier move. Its new ctime marks this content as ingested.
            let mark = || parsed.touch(open.mark_as_read()?.changed_ns);
            if let Err(error) = mark() {
                tracing::debug!(
                    "{}: cannot update the times of a file: {error}",
                    sanitize(parsed.path())
                );
            }
            self.uploads
                .borrow_mut()
                .add(&open.stamp, name, span.as_ref());
            return Ok(None);
        }
        from.ensure_same_file(name, open.inode)?;
        let as_name = from.move_into(name, &parsed, name, 0, |_| Ok(true))?;
        self.uploads
            .borrow_mut()
            .add(&open.stamp, &as_name, span.as_ref());
        self.layout.add_upload(open, &as_name);
        // A retried file, or one whose move a killed run has prepared, has a sidecar in `error/`. A failure to remove
        // it does not affect the move.
        if let Ok(errors) = self.folder.open_below(Path::new(ERROR))
            && let Err(error) = errors.remove_leftover_sidecars(name)
        {
            tracing::debug!(
                "{}: cannot remove leftover sidecars: {error}",
                sanitize(errors.path())
            );
        }
        Ok(Some((parsed, as_name, false)))
    }

    fn move_to_error(
        &self,
        outcome: &Outcome,
        claimed: &ClaimedFile,
        targets: &mut TargetDirs,
    ) -> Result<Place, MoveError> {
        let ClaimedFile {
            from, name, open, ..
        } = claimed;
        let errors = self.target(ERROR, targets)?;
        let sidecar = outcome.sidecar(&self.context.head.run_id);
        if errors.is_same_file(name, open.inode)? {
            errors.replace_sidecar(name, &sidecar)?;
            return Ok(None);
        }
        from.ensure_same_file(name, open.inode)?;
        let as_name = from.move_into_error(name, &errors, name, &sidecar)?;
        Ok(Some((errors, as_name, true)))
    }

    /// Opens or makes a folder to which files are moved, unless it is open already.
    fn target(&self, name: &'static str, targets: &mut TargetDirs) -> io::Result<Arc<Dir>> {
        if let Some(open) = targets.get(name) {
            return Ok(Arc::clone(open));
        }
        let open = Arc::new(self.folder.open_or_make(name)?);
        targets.insert(name, Arc::clone(&open));
        Ok(open)
    }

    /// Rechecks files after their move and records their results. A file with a writer or a change is moved back.
    ///
    /// Moves are not synced to disk: if a power failure undoes one, the file is ingested again with the same points.
    fn recheck(&self, mut group: Vec<(FileRecord, Option<Moved>)>) -> Vec<Moved> {
        // The report is sorted by path, although the files were written in the order of their uploads.
        group.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        let writers = Moved::writers(group.iter().filter_map(|(_, moved)| moved.as_ref()));
        let mut finished = Vec::new();
        for (mut record, moved) in group {
            if let Some(moved) = moved {
                match moved.changed_after_move(&writers) {
                    Some(reason) => {
                        record.outcome = self.move_back(&moved, &reason);
                        record.moved_to = None;
                    }
                    None => finished.push(moved),
                }
            }
            self.record(record);
        }
        finished
    }

    /// Rechecks moved files again after some time, because a writer may have resolved the old name just before the move
    /// and opened the file just after it.
    pub(super) fn recheck_later(&self, group: Vec<Moved>) {
        let writers = Moved::writers(group.iter());
        let mut targets = BTreeMap::new();
        for moved in group {
            targets
                .entry(moved.to.path().to_owned())
                .or_insert_with(|| (Arc::clone(&moved.to), Vec::new()))
                .1
                .push(moved.as_name.clone());
            if let Some(reason) = moved.changed_after_move(&writers) {
                let outcome = self.move_back(&moved, &reason);
                self.context
                    .recorder
                    .warn(&moved.path(), outcome.reason().unwrap_or_default());
            }
        }
        for (folder, names) in targets.into_values() {
            if let Err(error) = folder.touch_after_closing(&names) {
                tracing::debug!("{}: cannot set its time: {error}", sanitize(folder.path()));
            }
        }
    }

    /// Moves a file back to its original place and returns its new outcome.
    fn move_back(&self, moved: &Moved, reason: &str) -> Outcome {
        let outcome = Outcome::Skipped(format!("{reason}; moved back for the next run"));
        match moved.move_back(&outcome.sidecar(&self.context.head.run_id)) {
            Ok(()) => outcome,
            Err(error) => Outcome::Retryable(format!(
                "{reason}, and the file cannot be moved back: {error}; move it to the device folder manually"
            )),
        }
    }
}

impl ClaimedFile {
    /// How the file has changed since it was opened. Fails if the file system does not answer.
    pub(super) fn change(&self) -> io::Result<Change> {
        let is_intact = self.lease.as_ref().is_none_or(Lease::is_intact);
        let now = match self.open.stamp_now() {
            Ok(now) => now,
            Err(error) if is_gone(&error) => return Ok(Change::Content),
            Err(error) => return Err(error),
        };
        let change = if !is_intact {
            Change::Content
        } else if now == self.open.stamp {
            Change::None
        } else if now.has_same_content(&self.open.stamp)
            && !self
                .from
                .is_same_file(&self.name, self.open.inode)
                .unwrap_or(true)
        {
            // The file was removed or replaced by another one, which the move reports.
            Change::None
        } else if self.lease.is_some() && self.open.shared_despite(true).is_none() {
            Change::Metadata
        } else {
            Change::Content
        };
        Ok(change)
    }

    /// Makes new writers wait. Returns whether the file is unchanged since it was opened. Fails if the file system does not
    /// answer.
    fn begin_move(&self) -> io::Result<bool> {
        let is_intact = self.lease.as_ref().is_none_or(Lease::begin_move);
        Ok(is_intact && self.change()? == Change::None)
    }

    fn release(&self) {
        if let Some(lease) = &self.lease {
            lease.release();
        }
    }
}

/// Whether another host has moved or removed an open file, which a shared file system says in one of these ways.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::STALE)
    )
}

impl Moved {
    /// The path of the file after its move.
    fn path(&self) -> PathBuf {
        self.to.path().join(&self.as_name)
    }

    /// Scans for writers of the files in a group that have no lease.
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

    /// Checks a file right after its move, before its lease is released. Returns the reason if it must be moved back.
    fn changed_during_move(&self) -> Option<String> {
        let ClaimedFile { open, lease, .. } = &self.claimed;
        if !self
            .to
            .is_same_file(&self.as_name, open.inode)
            .unwrap_or(true)
        {
            return Some("another file took its name during ingestion".to_owned());
        }
        if !lease.as_ref().is_none_or(Lease::is_intact) {
            return Some("a process opened the file for writing during the move".to_owned());
        }
        let has_same_content = |stamp: Stamp| stamp.has_same_content(&open.stamp);
        if !self.stamp.is_some_and(has_same_content) {
            return Some("file was changed during the move".to_owned());
        }
        None
    }

    /// Checks a file after its lease is released. Returns the reason if it must be moved back.
    fn changed_after_move(&self, writers: &OpenWriters) -> Option<String> {
        let ClaimedFile { open, lease, .. } = &self.claimed;
        if lease.as_ref().is_some_and(Lease::has_writer) {
            return Some("a process opened the file for writing during the move".to_owned());
        }
        if let Some(pid) = writers.of(open.inode).first() {
            return Some(format!(
                "process {pid} opened the file for writing during the move"
            ));
        }
        if open.stamp_now().ok() != self.stamp {
            return Some("file was changed during the move".to_owned());
        }
        None
    }

    /// Moves the file back to its original place. If that is `error/`, `sidecar` is written too.
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
