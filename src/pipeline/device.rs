//! Processes one device folder: locks it, ingests and moves its files, and rechecks them after the move.
//!
//! See docs/specification.md, sections 1, 6, 7 and 9.

use super::RunContext;
use super::finish::{Moved, Processed};
use super::later_uploads::Late;
use super::layout_guard::LayoutGuard;
use super::limits::RESERVED_PER_DEVICE;
use super::outcome::{FileRecord, Outcome};
use super::row_before::LastRows;
use super::submit::{Group, Request, Submitted};
use super::uploads::Uploads;
use crate::data_dir::pending_files::{InUploadOrder, Item};
use crate::data_dir::{
    DeviceLock, DevicePath, Dir, ERROR, LOCK_PAUSE, LockError, MAX_HOLD, Obstacle, PARSED,
    is_no_folder,
};
use crate::remedy::remedy;
use crate::rollup::Days;
use crate::sanitize::sanitize;
use crate::sink::ordered_sender::OrderedSender;
use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time after which a group is closed.
const GROUP_TIME: Duration = Duration::from_millis(250);

/// How often a file is processed whose mode or times keep changing.
const MAX_ATTEMPTS: u32 = 3;

/// An open device folder.
pub(super) struct Device<'a> {
    pub(super) context: &'a RunContext<'a>,
    pub(super) location: DevicePath,
    pub(super) folder: Arc<Dir>,
    pub(super) last_rows: RefCell<LastRows>,
    pub(super) uploads: RefCell<Uploads>,
    /// Files that were written by requests without an answer.
    pub(super) unanswered: RefCell<Vec<Late>>,
    pub(super) layout: LayoutGuard,
    /// The days of points that this run has written, until they are in the file of pending days.
    pub(super) days: RefCell<Days>,
    /// Open files that are closed before the files of a group are moved, so that the files for that can be opened.
    pub(super) reserve: RefCell<Vec<OwnedFd>>,
    /// Whether a file could not be opened because of the open files of the group. The files after it wait for it, so
    /// that the order is kept.
    pub(super) is_out_of_files: Cell<bool>,
}

impl<'a> Device<'a> {
    /// Opens the device folder `relative`, a path below the data folder.
    ///
    /// # Errors
    /// If the path contains a symbolic link or the folder does not exist.
    pub(super) fn open(
        context: &'a RunContext<'a>,
        location: DevicePath,
        relative: &Path,
    ) -> io::Result<Self> {
        let folder = Arc::new(context.data.open_below(relative)?);
        context.note_pending_days(&folder, relative, &location);
        Ok(Self {
            context,
            location,
            folder,
            last_rows: RefCell::default(),
            uploads: RefCell::default(),
            unanswered: RefCell::default(),
            layout: LayoutGuard::default(),
            days: RefCell::default(),
            reserve: RefCell::default(),
            is_out_of_files: Cell::default(),
        })
    }

    /// Processes all pending files, and retryable files in `error/` if the settings ask for it.
    pub(super) fn sweep(&self) {
        let mut pending = InUploadOrder::new(&self.folder, self.context.settings.retry_errors);
        let mut sender = self.sender();
        let mut held = Duration::ZERO;
        let mut next = pending.next();
        let mut moved = Vec::new();
        while let Some(first) = next.take() {
            if self.context.stop.is_requested() {
                break;
            }
            let start = Instant::now();
            let lock = match self.lock() {
                Ok(lock) => lock,
                Err(error) => {
                    self.record_lock_error(&error, std::iter::once(first).chain(pending));
                    break;
                }
            };
            // A writer that resolved an old name before the previous group was moved has opened the file by now.
            self.recheck_later(std::mem::take(&mut moved));
            let request = Request::sweep();
            let mut group = Group::default();
            next = Some(first);
            while let Some(item) = next.take() {
                if let Item::File(sub, name) = &item {
                    self.submit_written_versions(sub, name, &mut group, &mut sender);
                }
                self.submit_item(&item, &request, &mut group, &mut sender);
                next = pending.next();
                if group.files.len() >= self.context.limits.group_files
                    || group.files.last().is_some_and(Submitted::is_not_opened)
                    || start.elapsed() > GROUP_TIME
                    || self.context.stop.is_requested()
                {
                    break;
                }
            }
            moved = self.finish(group, &request, &mut sender);
            if next.is_none() {
                self.write_again_after_unanswered(&request, &mut sender);
                self.keep_days();
                self.context.meta.send_full_blocks();
                self.recheck_later(std::mem::take(&mut moved));
            }
            drop(lock);
            self.context.meta.send_full_blocks();
            held += start.elapsed();
            if next.is_some() && held > MAX_HOLD {
                held = Duration::ZERO;
                std::thread::sleep(LOCK_PAUSE);
            }
        }
        self.recheck_later(moved);
    }

    /// Processes files named on the command line, in this order. Each is a folder relative to the device folder and a name.
    pub(super) fn ingest_named(&self, files: &[(PathBuf, OsString)]) {
        let in_parsed = files.iter().filter(|(sub, _)| sub == Path::new(PARSED));
        *self.uploads.borrow_mut() =
            Uploads::new(in_parsed.map(|(_, name)| name.clone()).collect());
        for (position, (sub, name)) in files.iter().enumerate() {
            if self.context.stop.is_requested() {
                break;
            }
            self.ingest_one(sub, name, position + 1 == files.len());
        }
    }

    fn ingest_one(&self, sub: &Path, name: &OsStr, is_last: bool) {
        let _lock = match self.lock() {
            Ok(lock) => lock,
            Err(error) => {
                let item = Item::File(sub.to_owned(), name.to_owned());
                return self.record_lock_error(&error, std::iter::once(item));
            }
        };
        let mut sender = self.sender();
        // The look-up runs while the file is parsed.
        sender.prefetch_bucket();
        let request = Request::named();
        let mut group = Group::default();
        self.submit_written_versions(sub, name, &mut group, &mut sender);
        let is_there = self.submit(sub, name, &request, &mut group, &mut sender);
        let moved = if is_there || !group.files.is_empty() {
            self.finish(group, &request, &mut sender)
        } else {
            self.submit_missing(sub, name, &mut sender)
        };
        if is_last {
            self.write_again_after_unanswered(&request, &mut sender);
            self.keep_days();
        }
        self.context.meta.send_full_blocks();
        self.recheck_later(moved);
    }

    fn sender(&self) -> OrderedSender<'_> {
        OrderedSender::new(self.context.sink, self.location.company.as_str())
    }

    /// Waits until the points of a group are written, moves its files and records the results. Returns the moved files.
    ///
    /// A file whose mode or times changed, but not its content, is processed again at once. So is a file that could not
    /// be opened because of the open files of the group.
    pub(super) fn finish(
        &self,
        mut group: Group,
        request: &Request,
        sender: &mut OrderedSender<'_>,
    ) -> Vec<Moved> {
        let mut moved = Vec::new();
        for attempt in 1.. {
            moved.append(&mut group.moved);
            self.write_again_until(None, &mut group.again, sender);
            // No file is moved before its points, and those that are written again after them, are written.
            let mut written: Vec<_> = group
                .files
                .into_iter()
                .map(|submitted| self.decide_outcome(submitted, sender))
                .collect();
            self.end_writing_again(group.again, &mut written, sender);
            let may_open_more = written.iter().any(|processed| !processed.is_not_opened());
            let (changed, processed): (Vec<_>, _) = written.into_iter().partition(|processed| {
                processed.resubmit.is_some()
                    && (attempt < MAX_ATTEMPTS || (processed.is_not_opened() && may_open_more))
            });
            moved.extend(self.move_and_record(processed));
            if changed.iter().any(Processed::is_not_opened) {
                self.with_reserve(|| self.recheck_later(std::mem::take(&mut moved)));
            }
            group = Group::default();
            for (sub, name) in changed.into_iter().filter_map(|p| p.resubmit) {
                self.submit(&sub, &name, request, &mut group, sender);
            }
            if group.files.is_empty() {
                break;
            }
        }
        self.note_own_moves();
        moved
    }

    fn lock(&self) -> Result<Option<DeviceLock>, LockError> {
        let settings = self.context.settings;
        if settings.dry_run {
            return Ok(None);
        }
        let lock = self.folder.lock(settings.lock_wait, self.context.stop)?;
        self.note_moves_of_others();
        let bucket = self.location.company.as_str();
        self.context.sink.forget_bucket_id(bucket);
        self.layout.forget();
        // Without this, each run would send the points of a file that it cannot move. Wrong rights of `error/` alone do
        // not affect files that are ingested.
        let lock_error = |error| self.folder.lock_error(error);
        match self.folder.obstacle().map_err(lock_error)? {
            None | Some(Obstacle::Rights(_)) => {}
            Some(obstacle) => return Err(LockError::Obstacle(obstacle)),
        }
        self.fill_reserve().map_err(lock_error)?;
        Ok(Some(lock))
    }

    fn fill_reserve(&self) -> io::Result<()> {
        self.reserve
            .replace(self.folder.duplicates(RESERVED_PER_DEVICE)?);
        Ok(())
    }

    /// Does something that opens files while those of a group are open.
    pub(super) fn with_reserve<T>(&self, action: impl FnOnce() -> T) -> T {
        self.reserve.take();
        let result = action();
        // Without the reserve, a move may fail, which is recorded then.
        let _ = self.fill_reserve();
        result
    }

    /// Records the lock error for each pending file, and each folder that cannot be listed. The files stay in place.
    fn record_lock_error(&self, error: &LockError, items: impl Iterator<Item = Item>) {
        if matches!(error, LockError::Stopped) {
            return;
        }
        let remedy = error.remedy().map(|remedy| format!(", {remedy}"));
        let reason = format!("{error}; file left in place{}", remedy.unwrap_or_default());
        for item in items {
            match item {
                Item::File(sub, name) => {
                    let outcome = Outcome::Retryable(reason.clone());
                    self.record(self.unread(&sub, &name, outcome));
                }
                Item::Unlisted(sub, error) => self.record(self.unlisted(&sub, &error.into())),
                Item::Retry(_) | Item::Sidecar(_) => {}
            }
            self.context.meta.send_full_blocks();
        }
    }

    fn submit_item(
        &self,
        item: &Item,
        request: &Request,
        group: &mut Group,
        sender: &mut OrderedSender<'_>,
    ) {
        let mut leave_in_place = |record| {
            let processed = Processed::left_in_place(record);
            group.files.push(Submitted::Processed(processed));
        };
        match item {
            Item::File(sub, name) => {
                self.submit(sub, name, request, group, sender);
            }
            Item::Retry(name) => {
                let errors = match self.folder.open_below(Path::new(ERROR)) {
                    Ok(errors) => errors,
                    Err(error) if is_no_folder(&error) => return,
                    Err(error) => return leave_in_place(self.unlisted(Path::new(ERROR), &error)),
                };
                match errors.read_sidecar(name) {
                    Ok(Some(sidecar)) if sidecar.retryable => {
                        self.submit(Path::new(ERROR), name, request, group, sender);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        let message = format!(
                            "cannot read {}.error.json: {error}; {}",
                            sanitize(name),
                            remedy(&error, "check its permissions")
                        );
                        let outcome = Outcome::Retryable(message);
                        leave_in_place(self.unread(Path::new(ERROR), name, outcome));
                    }
                }
            }
            Item::Sidecar(name) => {
                if let (false, Ok(errors)) = (
                    self.context.settings.dry_run,
                    self.folder.open_below(Path::new(ERROR)),
                ) {
                    // A run that was killed after it moved the file left the sidecar.
                    let _ = errors.remove_orphan_sidecar(name);
                }
            }
            Item::Unlisted(sub, error) => leave_in_place(self.unlisted(sub, &(*error).into())),
        }
    }

    /// The record of a folder that cannot be listed.
    pub(super) fn unlisted(&self, sub: &Path, error: &io::Error) -> FileRecord {
        let path: PathBuf = self.folder.path().iter().chain(sub).collect();
        unlisted_folder(path, Some(&self.location), error)
    }

    /// The record of a file that was not read.
    pub(super) fn unread(&self, sub: &Path, name: &OsStr, outcome: Outcome) -> FileRecord {
        let path = self.folder.path().join(sub).join(name);
        FileRecord::unread(path, Some(&self.location), outcome)
    }

    /// Records a file.
    pub(super) fn record(&self, record: FileRecord) {
        self.context.record(record);
        self.context.progress.file_done();
    }
}

/// The record of a folder that cannot be listed.
pub(super) fn unlisted_folder(
    path: PathBuf,
    location: Option<&DevicePath>,
    error: &io::Error,
) -> FileRecord {
    let outcome = Outcome::Retryable(format!(
        "cannot list the folder: {error}; it may contain pending files, {}",
        remedy(error, "check its permissions and the disk")
    ));
    FileRecord::unread(path, location, outcome)
}
