//! Writes later uploads again after a file that is ingested late, so that the last upload wins.
//!
//! A file is late if a file in `parsed/` was uploaded after it: because it is retried, was kept or left by an earlier run,
//! or is named. See docs/specification.md, section 1.

use super::device::Device;
use super::finish::{ClaimedFile, Processed};
use super::outcome::Outcome;
use super::submit::{Group, Request};
use super::uploads::{Key, Listing, Uploads, start};
use crate::data_dir::pending_files::unnumbered;
use crate::data_dir::{Dir, Inode, LeaseError, OpenError, PARSED};
use crate::logger_file::FormatError;
use crate::pipeline::ingest::IngestError;
use crate::points::TimeRange;
use crate::report::counted;
use crate::sanitize::sanitize;
use crate::sink::WriteError;
use crate::sink::ordered_sender::{FileId, OrderedSender, overlaps};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Maximum number of files whose answers are awaited at the same time when they are written again.
const MAX_IN_FLIGHT: usize = 32;

/// Maximum number of files without an answer that are remembered one by one.
const MAX_UNANSWERED: usize = 96;

/// The time after a late file, in seconds, in which the first row of a later one may be in the hour that occurs twice. Which
/// of the two it is depends on the late file.
const DOUBLED_HOUR_REACH: i64 = 3 * 3600;

/// A late file.
pub(super) struct Late {
    inode: Inode,
    /// Its position in the group, if its outcome is not decided.
    position: Option<usize>,
    uploaded: i128,
    path: PathBuf,
    span: TimeRange,
    is_in_parsed: bool,
}

/// The late files of a group, and the later uploads that are written again after them.
#[derive(Default)]
pub(super) struct WrittenAgain {
    late: Vec<Late>,
    /// The last file in `parsed/` that was considered.
    cursor: Option<Key>,
    in_flight: VecDeque<Again>,
    /// The late files that fail, by their position in the group.
    failures: Vec<(usize, Outcome)>,
    /// Whether the rest is not written, because of an error.
    is_stopped: bool,
}

/// A file that is being written again.
struct Again {
    key: Key,
    path: PathBuf,
    file_id: FileId,
    /// The time range of its points, if it was read.
    span: Option<TimeRange>,
    read: Result<(), IngestError>,
}

impl Late {
    /// The times of the rows in later files that may depend on this file.
    fn reach(&self) -> TimeRange {
        *self.span.start()..=self.span.end().saturating_add(DOUBLED_HOUR_REACH)
    }

    /// Whether a file in `parsed/` was uploaded later. Of versions with the same time, the number decides.
    fn precedes(&self, (uploaded, later, name): &Key) -> bool {
        let version = |name: &OsStr| unnumbered(name).unwrap_or_else(|| (name.to_owned(), 0));
        let is_earlier_version = || {
            let (this, number) = version(self.path.file_name().unwrap_or_default());
            let (other, _) = version(name);
            this == other && number < *later
        };
        match self.uploaded.cmp(uploaded) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => is_earlier_version(),
            std::cmp::Ordering::Greater => false,
        }
    }
}

impl WrittenAgain {
    /// The next file that has to be written again, among those that were uploaded before `until`.
    fn next(
        &mut self,
        uploads: &mut Uploads,
        folder: &Dir,
        until: Option<i128>,
    ) -> io::Result<Option<Key>> {
        let Some(first) = self.late.iter().map(|late| late.uploaded).min() else {
            return Ok(None);
        };
        let hull = self.hull();
        loop {
            let from = self.cursor.take().unwrap_or_else(|| start(first));
            let listed = uploads.list(folder, &from)?;
            let mut last = &from;
            let mut found = None;
            let mut is_over = false;
            for (key, listing) in listed.following(&from) {
                if until.is_some_and(|until| key.0 >= until) {
                    is_over = true;
                    break;
                }
                last = key;
                if listing.may_overlap(&hull) && self.has_to_follow(key, listing) {
                    found = Some(key.clone());
                    break;
                }
            }
            self.cursor = Some(last.clone());
            if found.is_some() || is_over || listed.is_complete {
                return Ok(found);
            }
        }
    }

    /// Whether a file in `parsed/` has to be written again. A file that is named is written again anyway, but a late file
    /// that is moved does not wait for that.
    fn has_to_follow(&self, key: &Key, listing: &Listing) -> bool {
        self.late.iter().any(|late| {
            listing.may_overlap(&late.reach())
                && late.precedes(key)
                && !(listing.is_named && late.is_in_parsed)
        })
    }

    /// The times that the late files reach, from the first to the last. Most files are outside of it.
    fn hull(&self) -> TimeRange {
        let starts = self.late.iter().map(|late| *late.reach().start());
        let ends = self.late.iter().map(|late| *late.reach().end());
        starts.min().unwrap_or_default()..=ends.max().unwrap_or_default()
    }

    /// Fails all late files.
    fn stop(&mut self, outcome: &Outcome) {
        self.is_stopped = true;
        let positions = self.late.iter().filter_map(|late| late.position);
        self.failures
            .extend(positions.map(|position| (position, outcome.clone())));
    }
}

impl Device<'_> {
    /// Takes note of the moves of other processes. Called when the lock was acquired.
    pub(super) fn note_moves_of_others(&self) {
        let changed = self.folder.folder_modified_ns(PARSED).unwrap_or_default();
        self.uploads.borrow_mut().locked(changed);
    }

    /// Takes note of the moves of this process. Called before the lock is released.
    pub(super) fn note_own_moves(&self) {
        let changed = self.folder.folder_modified_ns(PARSED).unwrap_or_default();
        self.uploads.borrow_mut().changed = changed;
    }

    /// Adds the next file of a group to its late files, if a file in `parsed/` was uploaded later.
    pub(super) fn note_if_late(
        &self,
        claimed: &ClaimedFile,
        position: usize,
        again: &mut WrittenAgain,
    ) {
        let uploaded = claimed.open.stamp.uploaded_ns();
        let mut uploads = self.uploads.borrow_mut();
        if self.context.sink.is_discard() || !uploads.may_have_later(uploaded) {
            return;
        }
        let Some(mut late) = self.late(claimed) else {
            return;
        };
        late.position = Some(position);
        let from = start(uploaded);
        let listed = self.with_reserve(|| uploads.list(&self.folder, &from));
        let is_late =
            listed.map(|listed| listed.following(&from).any(|(key, _)| late.precedes(key)));
        match is_late {
            Ok(true) => again.late.push(late),
            Ok(false) => {}
            Err(error) => again.failures.push((position, unlisted(&error))),
        }
    }

    /// Remembers a file whose points the server may write once more, later than those of the files after it.
    pub(super) fn note_unanswered(&self, claimed: &ClaimedFile) {
        let Some(late) = self.late(claimed) else {
            return;
        };
        let mut uploads = self.uploads.borrow_mut();
        let from = start(late.uploaded);
        // From now on, the time ranges of the files that are moved are remembered.
        if let Err(error) = self.with_reserve(|| uploads.list(&self.folder, &from)) {
            tracing::debug!("{}: cannot list parsed/: {error}", sanitize(&late.path));
        }
        let mut unanswered = self.unanswered.borrow_mut();
        let is_full = unanswered.len() == MAX_UNANSWERED;
        match unanswered.last_mut() {
            Some(last) if is_full => {
                last.uploaded = last.uploaded.min(late.uploaded);
                last.span = *last.span.start().min(late.span.start())
                    ..=*last.span.end().max(late.span.end());
            }
            _ => unanswered.push(late),
        }
    }

    /// Writes the later uploads again after the files that were written by requests without an answer.
    pub(super) fn write_again_after_unanswered(
        &self,
        request: &Request,
        sender: &mut OrderedSender<'_>,
    ) {
        let mut group = Group::default();
        group.again.late = self.unanswered.take();
        if !group.again.late.is_empty() && !self.context.stop.is_requested() {
            self.finish(group, request, sender);
        }
    }

    fn late(&self, claimed: &ClaimedFile) -> Option<Late> {
        Some(Late {
            inode: claimed.open.inode,
            position: None,
            uploaded: claimed.open.stamp.uploaded_ns(),
            path: claimed.from.path().join(&claimed.name),
            span: claimed.span.clone()?,
            is_in_parsed: claimed.from.path() == self.folder.path().join(PARSED),
        })
    }

    /// Writes files of `parsed/` again that were uploaded after a late file of a group, but before `until`.
    pub(super) fn write_again_until(
        &self,
        until: Option<i128>,
        again: &mut WrittenAgain,
        sender: &mut OrderedSender<'_>,
    ) {
        while !again.late.is_empty() && !again.is_stopped {
            if self.context.stop.is_requested() {
                again.stop(&Outcome::Skipped(WriteError::Stopped.to_string()));
                return;
            }
            let next = self.with_reserve(|| {
                let mut uploads = self.uploads.borrow_mut();
                again.next(&mut uploads, &self.folder, until)
            });
            match next {
                Ok(Some(key)) => self.with_reserve(|| self.write_again(key, again, sender)),
                Ok(None) => return,
                Err(error) => again.stop(&unlisted(&error)),
            }
        }
    }

    /// Writes a file of `parsed/` again, as far as it overlaps late files.
    fn write_again(&self, key: Key, again: &mut WrittenAgain, sender: &mut OrderedSender<'_>) {
        let path = self.folder.path().join(PARSED).join(&key.2);
        let opened = match self.folder.open_below(Path::new(PARSED)) {
            Ok(parsed) => parsed.open_file(&key.2),
            Err(error) => Err(OpenError::Io(error)),
        };
        let open = match opened {
            Ok(open) => open,
            Err(OpenError::Gone | OpenError::NotAFile(_)) => {
                return self.uploads.borrow_mut().set_span(&key, None);
            }
            Err(OpenError::Io(error)) => {
                let error = IngestError::Format(FormatError::Read(error));
                return self.fail_late(&key, &path, None, &error, again);
            }
        };
        let lease = match open.lease() {
            // The upload that is going on replaces the content, and is ingested when it is complete.
            Err(LeaseError::Writer) => return,
            lease => lease.ok(),
        };
        // A file that was moved after it was noted has another name now, but does not follow itself.
        let preceding = |late: &&Late| late.precedes(&key) && late.inode != open.inode;
        let preceding = again.late.iter().filter(preceding);
        let ranges: Vec<_> = preceding.map(|late| late.span.clone()).collect();
        if ranges.is_empty() {
            return;
        }
        let (file_id, parsed, read) =
            self.read_and_send(&open, &key.2, lease.as_ref(), Some(&ranges), sender);
        if parsed.depends_on_row_before {
            self.context.recorder.warn(
                &path,
                "written again, because its first row is in the hour that occurs twice and an earlier upload came late; if it was read as the other hour before, delete those points",
            );
            self.note_days(parsed.days);
        }
        if matches!(
            read,
            Ok(()) | Err(IngestError::Format(_) | IngestError::Changed)
        ) {
            let span = parsed.span.clone();
            self.uploads.borrow_mut().set_span(&key, span);
        }
        again.in_flight.push_back(Again {
            key,
            path,
            file_id,
            span: parsed.span,
            read,
        });
        if again.in_flight.len() > MAX_IN_FLIGHT {
            self.end_oldest(again, sender);
        }
    }

    /// Waits until all files that are written again are written. Files of the group whose later uploads cannot be written
    /// fail.
    pub(super) fn end_writing_again(
        &self,
        mut again: WrittenAgain,
        group: &mut [Processed],
        sender: &mut OrderedSender<'_>,
    ) {
        while !again.in_flight.is_empty() {
            self.end_oldest(&mut again, sender);
        }
        for (position, outcome) in again.failures {
            let record = &mut group[position].record;
            if matches!(record.outcome, Outcome::Ingested | Outcome::Rejected(_)) {
                record.outcome = outcome;
            }
        }
    }

    fn end_oldest(&self, again: &mut WrittenAgain, sender: &mut OrderedSender<'_>) {
        let Some(oldest) = again.in_flight.pop_front() else {
            return;
        };
        let written = sender.wait(oldest.file_id);
        let (read, is_read) = match oldest.read {
            Err(error @ (IngestError::Format(FormatError::Read(_)) | IngestError::Sink(_))) => {
                (Err(error), false)
            }
            // What could be read is written, and an upload that changes the file is ingested when it is complete.
            Ok(()) | Err(IngestError::Format(_) | IngestError::Changed) => (Ok(()), true),
        };
        if let Err(error) = read.and_then(|()| Ok(written.result?)) {
            let span = oldest.span.as_ref().filter(|_| is_read);
            return self.fail_late(&oldest.key, &oldest.path, span, &error, again);
        }
        let late = again.late.iter().find(|late| late.precedes(&oldest.key));
        if let (1.., Some(late)) = (written.points.accepted, late) {
            tracing::info!(
                "{}: {} written again, because it was uploaded after {}",
                sanitize(&oldest.path),
                counted(written.points.accepted, "point"),
                sanitize(&late.path)
            );
        }
    }

    /// Fails the late files after which a file cannot be written again. `span` is its time range, if it is known.
    fn fail_late(
        &self,
        key: &Key,
        path: &Path,
        span: Option<&TimeRange>,
        error: &IngestError,
        again: &mut WrittenAgain,
    ) {
        let reason = format!(
            "points are written, but {} was uploaded later and cannot be written again: {error}",
            sanitize(path)
        );
        let outcome = match error {
            IngestError::Sink(WriteError::Outage(_)) => Outcome::Outage(reason),
            IngestError::Sink(WriteError::Stopped) => Outcome::Skipped(reason),
            IngestError::Sink(WriteError::Storage(_)) | IngestError::Format(_) => {
                Outcome::Retryable(reason)
            }
            IngestError::Sink(_) | IngestError::Changed => Outcome::Unwritten(reason),
        };
        if matches!(
            error,
            IngestError::Sink(WriteError::Outage(_) | WriteError::Stopped)
        ) {
            again.stop(&outcome);
        }
        let overlaps = |late: &Late| span.is_none_or(|span| overlaps(span, &late.span));
        let mut unanswered = None;
        for late in again.late.iter().filter(|late| late.precedes(key)) {
            match late.position {
                Some(position) if overlaps(late) => {
                    again.failures.push((position, outcome.clone()));
                }
                Some(_) => {}
                None => unanswered = Some(late),
            }
        }
        if let Some(late) = unanswered {
            let reason = format!(
                "cannot be written again after {}, whose points the server may write once more: {error}; ingest it again with --tsvFile",
                sanitize(&late.path)
            );
            self.record(self.unread(Path::new(PARSED), &key.2, Outcome::Retryable(reason)));
        }
    }
}

/// The outcome of a file if the later uploads cannot be found.
fn unlisted(error: &io::Error) -> Outcome {
    Outcome::Retryable(format!(
        "points are written, but parsed/ cannot be listed to find later uploads: {error}; file left in place, check the permissions of the folder"
    ))
}
