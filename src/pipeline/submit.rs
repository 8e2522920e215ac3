//! Opens a file, checks that its upload is complete, submits its points and decides its outcome once they are written.
//!
//! Points of several files are in flight at the same time. See docs/specification.md, sections 4 to 6 and 9.

use super::device::Device;
use super::finish::{Change, ClaimedFile, Moved, Processed};
use super::later_uploads::WrittenAgain;
use super::outcome::{FileRecord, Outcome};
use crate::data_dir::{
    Dir, ERROR, Lease, LeaseError, OpenError, OpenFile, OpenWriters, PARSED, is_no_folder,
};
use crate::logger_file::Container;
use crate::pipeline::ingest::{self, IngestContext, IngestError, ParsedFile};
use crate::points::{BatchOptions, TimeRange};
use crate::remedy::{MORE_OPEN_FILES, is_out_of_files, remedy};
use crate::report::{FileDetails, counted, iso};
use crate::sanitize::sanitize;
use crate::sink::ordered_sender::{FileId, OrderedSender};
use chrono::{DateTime, Utc};
use std::cell::{Cell, OnceCell};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Number of bytes read at both ends of a file to detect truncation.
const PROBE_SIZE: usize = 4096;

/// A file that was submitted.
pub(super) enum Submitted {
    /// The outcome is known.
    Processed(Processed),
    /// The points are in flight.
    Pending(Pending),
}

impl Submitted {
    /// Whether the file is to be opened again after the files of its group are moved.
    pub(super) fn is_not_opened(&self) -> bool {
        matches!(self, Self::Processed(processed) if processed.is_not_opened())
    }
}

/// A file whose points are in flight, possibly only those before an error.
pub(super) struct Pending {
    file_id: FileId,
    parsed: ParsedFile,
    read: Result<(), IngestError>,
    sub: PathBuf,
    claimed: ClaimedFile,
}

/// Files that are processed together, and the later uploads that are written again after them.
#[derive(Default)]
pub(super) struct Group {
    pub(super) files: Vec<Submitted>,
    /// The files that were moved already, because a later file of the group was uploaded before them.
    pub(super) moved: Vec<Moved>,
    /// The latest upload of the group.
    newest: Option<i128>,
    pub(super) again: WrittenAgain,
}

/// Why the files of a group are processed, and the scan for writers that they share.
pub(super) struct Request {
    kind: RequestKind,
    /// Scanned once per group, and only if a lease is not available.
    writers: OnceCell<OpenWriters>,
}

/// Why a file is processed.
enum RequestKind {
    /// A sweep found it.
    Sweep,
    /// A user or the upload hook named it, so its upload is complete.
    Named,
    /// Like `Named` with this name, but the file was already moved to `parsed/` or `error/`.
    Missing(OsString),
}

impl Submitted {
    /// The file itself, if its points were submitted.
    fn claimed(&self) -> Option<&ClaimedFile> {
        match self {
            Self::Processed(processed) => processed.claimed.as_ref(),
            Self::Pending(pending) => Some(&pending.claimed),
        }
    }
}

impl Request {
    pub(super) fn sweep() -> Self {
        Self::new(RequestKind::Sweep)
    }

    pub(super) fn named() -> Self {
        Self::new(RequestKind::Named)
    }

    pub(super) fn missing(name: &OsStr) -> Self {
        Self::new(RequestKind::Missing(name.to_owned()))
    }

    fn new(kind: RequestKind) -> Self {
        Self {
            kind,
            writers: OnceCell::new(),
        }
    }

    fn is_sweep(&self) -> bool {
        matches!(self.kind, RequestKind::Sweep)
    }

    fn writers(&self) -> &OpenWriters {
        self.writers.get_or_init(OpenWriters::scan)
    }
}

/// Why a file is left for a later run.
struct Incomplete {
    reason: String,
    /// How such files are not left any more, if that is possible.
    remedy: Option<&'static str>,
}

impl Incomplete {
    fn message(&self, done: &str) -> String {
        let reason = &self.reason;
        match self.remedy {
            Some(remedy) => format!("{reason}; {done}; {remedy}"),
            None => format!("{reason}; {done}"),
        }
    }
}

impl From<String> for Incomplete {
    fn from(reason: String) -> Self {
        Self {
            reason,
            remedy: None,
        }
    }
}

impl Device<'_> {
    /// Opens a file, submits its points and adds it to a group. Returns whether it exists and, in a sweep, is a regular
    /// file.
    ///
    /// The points are submitted in the order of the uploads: later uploads that are written again after an earlier file
    /// of the group, but precede this one, are submitted first.
    pub(super) fn submit(
        &self,
        sub: &Path,
        name: &OsStr,
        request: &Request,
        group: &mut Group,
        sender: &mut OrderedSender<'_>,
    ) -> bool {
        let Some(submitted) = self.open_and_send(sub, name, request, group, sender) else {
            return false;
        };
        let claimed = submitted.claimed();
        let uploaded = claimed.map(|claimed| claimed.open.stamp.uploaded_ns());
        if uploaded.is_some() && uploaded < group.newest {
            let earlier = std::mem::take(group);
            group.moved = self.with_reserve(|| self.finish(earlier, request, sender));
        }
        group.newest = group.newest.max(uploaded);
        if let Some(claimed) = claimed {
            self.note_if_late(claimed, group.files.len(), &mut group.again);
        }
        group.files.push(submitted);
        true
    }

    fn open_and_send(
        &self,
        sub: &Path,
        name: &OsStr,
        request: &Request,
        group: &mut Group,
        sender: &mut OrderedSender<'_>,
    ) -> Option<Submitted> {
        if self.is_out_of_files.get() {
            let message = format!("too many open files; {MORE_OPEN_FILES}");
            return Some(self.not_opened(sub, name, message, true));
        }
        let left_in_place = |record| Some(Submitted::Processed(Processed::left_in_place(record)));
        let from = match self.folder_of(sub) {
            Ok(from) => from,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                let message = format!(
                    "cannot open the folder: {error}; {}",
                    remedy(&error, "symbolic links are not followed, check the path")
                );
                return Some(self.not_opened(sub, name, message, is_out_of_files(&error)));
            }
        };
        let opened = from.open_file(name).and_then(|open| {
            if open.links > 1 && self.undo_interrupted_move(&from, &open) {
                from.open_file(name)
            } else {
                Ok(open)
            }
        });
        let mut open = match opened {
            Ok(open) => open,
            Err(OpenError::Gone) => return None,
            Err(OpenError::NotAFile(what)) if request.is_sweep() => {
                tracing::debug!("{}: skipped: {what}", sanitize(from.path().join(name)));
                return None;
            }
            Err(error) => {
                let again = matches!(&error, OpenError::Io(error) if is_out_of_files(error));
                return Some(self.not_opened(sub, name, error.to_string(), again));
            }
        };
        let lease = open.lease();
        if let Some(incomplete) = self.incomplete(&open, &lease, request) {
            let outcome = match &request.kind {
                // A sweep looks for it in the device folder only, where its own hook names it too.
                RequestKind::Missing(wanted) => self.restore_name(&from, name, wanted, &incomplete),
                RequestKind::Sweep | RequestKind::Named => {
                    Outcome::Skipped(incomplete.message("left for the next run"))
                }
            };
            let mut record = self.unread(sub, name, outcome);
            record.details.truncated = looks_truncated(&open).unwrap_or(false);
            return left_in_place(record);
        }
        let lease = lease.ok();
        if open.stamp.is_dated_ahead() {
            self.correct_time(&mut open, lease.as_ref(), &from.path().join(name));
        }
        if let Some(outage) = self.context.sink.outage(self.location.company.as_str()) {
            return Some(Submitted::Processed(Processed {
                record: self.unread(sub, name, Outcome::Outage(outage.to_string())),
                claimed: Some(ClaimedFile {
                    lease,
                    open,
                    from,
                    name: name.to_owned(),
                    span: None,
                }),
                resubmit: None,
            }));
        }
        self.write_again_until(Some(open.stamp.uploaded_ns()), &mut group.again, sender);
        let (file_id, mut parsed, read) =
            self.read_and_send(&open, name, lease.as_ref(), None, sender);
        if parsed.truncated.is_none() {
            parsed.truncated = looks_truncated(&open).ok();
        }
        if let Some(time) = parsed.last_row {
            self.last_rows.borrow_mut().add(&open, name, time);
        }
        self.warn_about(&from.path().join(name), &parsed);
        Some(Submitted::Pending(Pending {
            file_id,
            read,
            sub: sub.to_owned(),
            claimed: ClaimedFile {
                span: parsed.span.clone(),
                open,
                lease,
                from,
                name: name.to_owned(),
            },
            parsed,
        }))
    }

    /// Reads a file and sends its points, or those within the time ranges `only`. All are sent if their hour depends on the
    /// file before: it may have been read as another one when that file was missing.
    pub(super) fn read_and_send(
        &self,
        open: &OpenFile,
        name: &OsStr,
        lease: Option<&Lease>,
        only: Option<&[TimeRange]>,
        sender: &mut OrderedSender<'_>,
    ) -> (FileId, ParsedFile, Result<(), IngestError>) {
        let file_id = sender.begin();
        let is_unchanged =
            || lease.is_none_or(Lease::is_intact) && !open.has_changed().unwrap_or(true);
        let depends_on_row_before = Cell::new(false);
        let row_before = || {
            depends_on_row_before.set(true);
            self.row_before(open, name)
        };
        let is_sent = |time| {
            only.is_none_or(|ranges| {
                depends_on_row_before.get() || ranges.iter().any(|range| range.contains(&time))
            })
        };
        let context = self.ingest_context(open, &row_before, &is_sent);
        let (mut parsed, read) = ingest::ingest(
            self.context.progress.reading(&*open.file),
            &context,
            &is_unchanged,
            |batch| sender.send(file_id, batch),
        );
        parsed.depends_on_row_before = depends_on_row_before.get();
        (file_id, parsed, read)
    }

    /// Removes the names of a file in `parsed/` and `error/` that a move which was killed has left. Returns whether there
    /// were any.
    ///
    /// Where a rename cannot refuse to overwrite, a move is a link and an unlink. Whether the file was moved in or out is
    /// not known, so it is ingested again under the name that is left, and moved.
    fn undo_interrupted_move(&self, from: &Dir, open: &OpenFile) -> bool {
        if self.context.settings.dry_run {
            return false;
        }
        let mut is_undone = false;
        for dir in [PARSED, ERROR] {
            if from.path() == self.folder.path().join(dir) {
                continue;
            }
            let removed = match self.folder.open_below(Path::new(dir)) {
                Ok(folder) => folder.remove_links(open.inode),
                Err(error) if is_no_folder(&error) => Ok(false),
                Err(error) => Err(error),
            };
            match removed {
                Ok(removed) => is_undone |= removed,
                Err(error) => {
                    tracing::debug!("{dir}: cannot look for a second name of a file: {error}");
                }
            }
        }
        is_undone
    }

    /// Waits until the points of a file are written and decides its outcome.
    pub(super) fn decide_outcome(
        &self,
        submitted: Submitted,
        sender: &mut OrderedSender<'_>,
    ) -> Processed {
        let Pending {
            file_id,
            mut parsed,
            read,
            sub,
            claimed,
        } = match submitted {
            Submitted::Processed(processed) => return processed,
            Submitted::Pending(pending) => pending,
        };
        let written = sender.wait(file_id);
        if written.unanswered {
            self.note_unanswered(&claimed);
        }
        if written.points.accepted > 0 || written.unanswered {
            self.note_days(std::mem::take(&mut parsed.days));
        }
        let path = claimed.from.path().join(&claimed.name);
        let mut record = FileRecord {
            path,
            layout: parsed.layout.take(),
            details: parsed.into_details(&self.location),
            outcome: Outcome::of(read.and_then(|()| Ok(written.result?))),
            moved_to: None,
        };
        if self.context.settings.dry_run {
            self.check_layout(&mut record, &claimed.name, &claimed.open);
            return Processed::left_in_place(record);
        }
        record.details.nb_points = written.points.accepted;
        record.details.nb_points_expired = written.points.expired;
        if written.points.expired > 0 {
            let message = format!(
                "{} points skipped: older than the retention of the bucket; if they are wanted, extend it and ingest the file again",
                written.points.expired
            );
            self.context.recorder.warn(&record.path, &message);
        }
        // Any error of a file that was changed may be due to the change.
        let change = match claimed.change() {
            Ok(change) => change,
            Err(error) => {
                record.outcome = Outcome::Retryable(format!(
                    "cannot check whether the file was changed: {error}; file left in place, {}",
                    remedy(&error, "check the file system")
                ));
                return Processed::left_in_place(record);
            }
        };
        if change != Change::None {
            record.outcome = Outcome::of(Err(IngestError::Changed));
            let resubmit = (change == Change::Metadata).then_some((sub, claimed.name));
            return Processed {
                resubmit,
                ..Processed::left_in_place(record)
            };
        }
        if record.outcome == Outcome::Ingested {
            set_delays(&mut record.details, &claimed.open);
        }
        Processed {
            record,
            claimed: Some(claimed),
            resubmit: None,
        }
    }

    /// A file that could not be opened. If `again` is set, it is opened again after the files of its group are moved.
    fn not_opened(&self, sub: &Path, name: &OsStr, message: String, again: bool) -> Submitted {
        self.is_out_of_files.set(again);
        let record = self.unread(sub, name, Outcome::Retryable(message));
        Submitted::Processed(Processed {
            resubmit: again.then(|| (sub.to_owned(), name.to_owned())),
            ..Processed::left_in_place(record)
        })
    }

    /// Warns of a file that a client has dated in the future, and sets its time to that of its upload.
    fn correct_time(&self, open: &mut OpenFile, lease: Option<&Lease>, path: &Path) {
        let time = |ns: i128| {
            let seconds = i64::try_from(ns / 1_000_000_000).ok();
            let time = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
            time.map_or_else(|| "?".to_owned(), iso)
        };
        let message = format!(
            "modification time {} is after the upload at {}, which counts; check the clock of the logger, and set SFTPGO_COMMON__SETSTAT_MODE=1",
            time(open.stamp.modified_ns),
            time(open.stamp.uploaded_ns())
        );
        self.context.recorder.warn(path, &message);
        if lease.is_some()
            && !self.context.settings.dry_run
            && let Err(error) = open.set_time_to_upload()
        {
            tracing::debug!("{}: cannot set its time: {error}", sanitize(path));
        }
    }

    /// Opens the folder `sub`, relative to the device folder. It is empty for most files.
    fn folder_of(&self, sub: &Path) -> io::Result<Arc<Dir>> {
        if sub.as_os_str().is_empty() {
            Ok(Arc::clone(&self.folder))
        } else {
            self.folder.open_below(sub).map(Arc::new)
        }
    }

    fn ingest_context<'c>(
        &'c self,
        open: &OpenFile,
        row_before: &'c dyn Fn() -> Option<i64>,
        is_sent: &'c dyn Fn(i64) -> bool,
    ) -> IngestContext<'c> {
        let settings = self.context.settings;
        IngestContext {
            location: &self.location,
            zones: &settings.zones,
            batch_options: BatchOptions {
                gzip: self.context.sink.wants_gzip(settings.gzip),
                lines: settings.batch_lines,
            },
            with_lines: !self.context.sink.is_discard(),
            stop: self.context.stop,
            progress: self.context.progress,
            uploaded: i64::try_from(open.stamp.uploaded_ns() / 1_000_000_000).unwrap_or(i64::MAX),
            row_before,
            max_loss: settings.max_loss,
            is_sent,
        }
    }

    /// Checks whether a file may be incomplete. Returns the reason if it must be left for a later run.
    fn incomplete(
        &self,
        open: &OpenFile,
        lease: &Result<Lease, LeaseError>,
        request: &Request,
    ) -> Option<Incomplete> {
        let unleased = match lease {
            Ok(_) => None,
            Err(LeaseError::Writer) => Some(None),
            Err(LeaseError::Unavailable(error)) => Some(Some(error)),
        };
        if let Some(unavailable) = unleased {
            let writer = match request.writers().of(open.inode).first() {
                Some(pid) => Some(format!("process {pid}")),
                None if unavailable.is_none() => Some("another process".to_owned()),
                None => None,
            };
            if let Some(writer) = writer {
                return Some(format!("still open for writing by {writer}").into());
            }
        }
        let grace = self.context.settings.grace;
        let now = i128::from(Utc::now().timestamp_nanos_opt()?);
        let age = (now - open.stamp.uploaded_ns()).max(0);
        if Duration::from_nanos(u64::try_from(age).unwrap_or(u64::MAX)) >= grace {
            return None;
        }
        if let Some(shared) = open.shared_despite(lease.is_ok()) {
            let reason = match unleased {
                Some(Some(error)) => format!("no lease: {error}"),
                _ => "a lease does not reach other hosts".to_owned(),
            };
            return Some(Incomplete {
                reason: format!(
                    "younger than {} s and possibly still open for writing on another host ({}, {reason})",
                    grace.as_secs(),
                    shared.name()
                ),
                remedy: Some("set TSV_INCOMPLETE_GRACE_S=0 if the uploads of all hosts are atomic"),
            });
        }
        if let Some(Some(error)) = unleased
            && request.writers().is_incomplete()
        {
            let reason = format!(
                "younger than {} s and possibly still open for writing (no lease: {error}; some processes are hidden)",
                grace.as_secs()
            );
            return Some(reason.into());
        }
        (request.is_sweep() && looks_truncated(open).unwrap_or(true)).then(|| {
            let reason = format!(
                "truncated and younger than {} s, so possibly still being uploaded",
                grace.as_secs()
            );
            reason.into()
        })
    }

    /// Moves a file in `parsed/` or `error/` that may be open for writing back to the device folder, under its original
    /// name `wanted`. Returns its outcome. No run looks for one that stays.
    fn restore_name(
        &self,
        from: &Dir,
        name: &OsStr,
        wanted: &OsStr,
        incomplete: &Incomplete,
    ) -> Outcome {
        match from.move_into(name, &self.folder, wanted, 0, |_| Ok(true)) {
            Ok(as_name) => {
                if let Err(error) = from.remove_orphan_sidecar(name) {
                    tracing::debug!(
                        "{}: cannot remove a leftover sidecar: {error}",
                        sanitize(from.path())
                    );
                }
                let done = format!("moved back as {} for the next run", sanitize(as_name));
                Outcome::Skipped(incomplete.message(&done))
            }
            Err(error) => Outcome::Retryable(format!(
                "{}, and the file cannot be moved back: {error}; move it to the device folder manually",
                incomplete.reason
            )),
        }
    }

    /// Logs one warning per file and cause, with a count.
    fn warn_about(&self, path: &Path, parsed: &ParsedFile) {
        let warn = |message: String| self.context.recorder.warn(path, &message);
        if parsed.truncated == Some(true) {
            warn(match parsed.container {
                Some(Container::Headed) => {
                    "file is truncated: END_DATA is missing; check the upload".to_owned()
                }
                _ => "file is truncated: the value after the last tab is skipped; check the upload"
                    .to_owned(),
            });
        }
        for warning in &parsed.zone_warnings {
            warn(warning.clone());
        }
        if let Some(master) = parsed
            .master
            .as_deref()
            .filter(|sn| *sn != self.location.device.as_str())
        {
            warn(format!(
                "header names the master {:?}, the device folder {:?}; ingested as {:?}",
                sanitize(master),
                self.location.device.to_string(),
                sanitize(master)
            ));
        }
        let stats = parsed.stats;
        for (count, noun, what) in [
            (
                stats.header_changes,
                "change",
                "of the header within the file",
            ),
            (
                stats.invalid_timestamps,
                "row",
                "skipped: invalid timestamp",
            ),
            (stats.malformed_rows, "row", "skipped: malformed"),
            (stats.short_rows, "row", "cut off: the last cell is skipped"),
            (stats.invalid_values, "cell", "skipped: invalid value"),
            (stats.lines_after_end, "line", "ignored: after END_DATA"),
            (
                stats.suspicious_times,
                "row",
                "with a suspicious time; check the logger's clock",
            ),
        ] {
            if count > 0 {
                warn(format!("{} {what}", counted(count, noun)));
            }
        }
        if let Some(problem) = parsed.problems.first() {
            warn(format!("first defect: {problem}; check the logger"));
        }
    }
}

/// Detects truncation from both ends of a file.
fn looks_truncated(open: &OpenFile) -> io::Result<bool> {
    let mut head = [0; PROBE_SIZE];
    let read = open.file.read_at(&mut head, 0)?;
    let mut tail = [0; PROBE_SIZE];
    let start = open.stamp.size.saturating_sub(PROBE_SIZE as u64);
    let tail_read = open.file.read_at(&mut tail, start)?;
    Ok(Container::looks_truncated(
        &head[..read],
        &tail[..tail_read],
    ))
}

/// Sets the seconds since the last measurement and since the upload.
#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds since 1970 are below 2^53"
)]
fn set_delays(details: &mut FileDetails, open: &OpenFile) {
    let now = Utc::now().timestamp_millis() as f64 / 1e3;
    details.delay_s = details.last_measurement.map(|last| now - last as f64);
    details.arrival_delay_s =
        Some((now - (open.stamp.modified_ns / 1_000_000) as f64 / 1e3).max(0.0));
}
