//! Processes one device folder: locks it, ingests and moves its files, and rechecks them after the move.
//!
//! See docs/specification.md, sections 1, 6, 7 and 9.

use super::RunContext;
use super::finish::{Moved, Processed};
use super::submit::{Request, Submitted};
use crate::data_dir::pending_files::{Item, PendingFiles, is_no_folder};
use crate::data_dir::{
    DeviceLock, Dir, EntryKind, LockError, SIDECAR_NAME_ROOM, Stamp, numbered_name,
};
use crate::data_dir::{DevicePath, ERROR, PARSED};
use crate::report::{FileReport, Status};
use crate::sanitize::sanitize;
use crate::sink::ordered_sender::OrderedSender;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Maximum number of files in a group.
///
/// Files are processed in groups, because the cost of scanning `/proc` and syncing the sink is independent of their
/// number. Between groups the lock is released.
const GROUP_FILES: usize = 96;
/// Time after which a group is closed.
const GROUP_TIME: Duration = Duration::from_millis(250);

/// How often a file is processed whose mode or times keep changing.
const MAX_ATTEMPTS: u32 = 3;

/// Total time of holding the lock after which the process pauses for [`LOCK_PAUSE`], so that others can acquire it.
const MAX_HOLD: Duration = Duration::from_secs(1);
/// See [`MAX_HOLD`].
const LOCK_PAUSE: Duration = Duration::from_millis(40);

/// An open device folder.
pub struct Device<'a> {
    pub(super) context: &'a RunContext<'a>,
    pub(super) location: DevicePath,
    pub(super) folder: Arc<Dir>,
}

impl<'a> Device<'a> {
    /// Opens the device folder `relative`, a path below the data folder.
    ///
    /// # Errors
    /// If the path contains a symbolic link or the folder does not exist.
    pub fn open(
        context: &'a RunContext<'a>,
        location: DevicePath,
        relative: &Path,
    ) -> io::Result<Self> {
        Ok(Self {
            context,
            location,
            folder: Arc::new(context.data.open_below(relative)?),
        })
    }

    /// Processes all pending files, and retryable files in `error/` if the settings ask for it.
    pub fn sweep(&self) {
        let mut pending = PendingFiles::new(&self.folder, self.context.settings.retry_errors);
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
            let mut group = Vec::new();
            next = Some(first);
            while let Some(item) = next.take() {
                if let Item::File(sub, name) = &item {
                    group.extend(self.submit_written_versions(sub, name, &mut sender));
                }
                group.extend(self.submit_item(&item, &request, &mut sender));
                next = pending.next();
                if group.len() >= GROUP_FILES
                    || start.elapsed() > GROUP_TIME
                    || self.context.stop.is_requested()
                {
                    break;
                }
            }
            moved = self.finish(group, &request, &mut sender);
            if next.is_none() {
                self.context.recorder.send_meta(self.context.sink);
                self.recheck_later(std::mem::take(&mut moved));
            }
            drop(lock);
            self.context.recorder.send_meta(self.context.sink);
            held += start.elapsed();
            if next.is_some() && held > MAX_HOLD {
                held = Duration::ZERO;
                std::thread::sleep(LOCK_PAUSE);
            }
        }
        self.recheck_later(moved);
    }

    /// Processes a file named on the command line. `sub` is its folder relative to the device folder.
    pub fn ingest_named(&self, sub: &Path, name: &OsStr) {
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
        let mut group = self.submit_written_versions(sub, name, &mut sender);
        let moved = match self.submit(sub, name, &request, &mut sender) {
            Some(submitted) => {
                group.push(submitted);
                self.finish(group, &request, &mut sender)
            }
            None if group.is_empty() => self.submit_missing(sub, name, &mut sender),
            None => self.finish(group, &request, &mut sender),
        };
        self.context.recorder.send_meta(self.context.sink);
        self.recheck_later(moved);
    }

    fn sender(&self) -> OrderedSender<'_> {
        OrderedSender::new(self.context.sink, self.location.company.as_str())
    }

    /// Waits until the points of a group are written, moves its files and records the results. Returns the moved files.
    ///
    /// A file whose mode or times changed, but not its content, is processed again at once.
    fn finish(
        &self,
        mut group: Vec<Submitted>,
        request: &Request,
        sender: &mut OrderedSender<'_>,
    ) -> Vec<Moved> {
        let mut moved = Vec::new();
        for attempt in 1.. {
            // No points are in flight when a file is moved or the lock is released.
            let written: Vec<_> = group
                .into_iter()
                .map(|submitted| self.decide_outcome(submitted, sender))
                .collect();
            let (retakes, processed): (Vec<_>, _) = written
                .into_iter()
                .partition(|processed| processed.retake.is_some() && attempt < MAX_ATTEMPTS);
            moved.extend(self.move_and_record(processed));
            group = retakes
                .into_iter()
                .filter_map(|processed| processed.retake)
                .filter_map(|(sub, name)| self.submit(&sub, &name, request, sender))
                .collect();
            if group.is_empty() {
                break;
            }
        }
        moved
    }

    fn lock(&self) -> Result<Option<DeviceLock>, LockError> {
        let settings = self.context.settings;
        if settings.dry_run {
            return Ok(None);
        }
        self.folder
            .lock(settings.lock_wait, self.context.stop)
            .map(Some)
    }

    /// Records the lock error for each file. The files stay in place.
    fn record_lock_error(&self, error: &LockError, items: impl Iterator<Item = Item>) {
        for item in items {
            let Item::File(sub, name) = item else {
                continue;
            };
            let status = match error {
                LockError::Stopped => return,
                _ => Status::Error,
            };
            let mut report = self.unread(&sub, &name, status, error.to_string());
            report.retryable = true;
            self.record(report);
        }
    }

    fn submit_item(
        &self,
        item: &Item,
        request: &Request,
        sender: &mut OrderedSender<'_>,
    ) -> Option<Submitted> {
        let left_in_place = |report| Some(Submitted::Processed(Processed::left_in_place(report)));
        match item {
            Item::File(sub, name) => self.submit(sub, name, request, sender),
            Item::Retry(name) => {
                let errors = match self.folder.open_below(Path::new(ERROR)) {
                    Ok(errors) => errors,
                    Err(error) if is_no_folder(&error) => return None,
                    Err(error) => return left_in_place(self.unlisted(Path::new(ERROR), &error)),
                };
                match errors.read_sidecar(name) {
                    Ok(Some(sidecar)) if sidecar.retryable => {
                        self.submit(Path::new(ERROR), name, request, sender)
                    }
                    Ok(_) => None,
                    Err(error) => {
                        let message = format!(
                            "cannot read {}.error.json: {error}; check its permissions",
                            sanitize(name)
                        );
                        let mut report =
                            self.unread(Path::new(ERROR), name, Status::Error, message);
                        report.retryable = true;
                        left_in_place(report)
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
                None
            }
            Item::Unlisted(sub, error) => left_in_place(self.unlisted(sub, error)),
        }
    }

    /// Submits earlier versions of a file that were written to after their move. They are found by trying their
    /// numbers, because listing the folder may be slow.
    fn submit_written_versions(
        &self,
        sub: &Path,
        name: &OsStr,
        sender: &mut OrderedSender<'_>,
    ) -> Vec<Submitted> {
        if self.context.settings.dry_run || !sub.as_os_str().is_empty() {
            return Vec::new();
        }
        let mut written = Vec::new();
        for (dir, room) in PROCESSED_DIRS {
            // An error is reported when the file itself is moved there.
            let Ok(folder) = self.folder.open_below(Path::new(dir)) else {
                continue;
            };
            let mut gaps = 0;
            for number in 0.. {
                let name = numbered_name(name, number, room);
                match folder.stamp_of(&name) {
                    Ok(Some(stamp)) if stamp.is_written_after_its_move() => {
                        written.push(Version {
                            dir,
                            name,
                            number,
                            stamp,
                        });
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => gaps += 1,
                }
                if gaps > MAX_GAPS {
                    break;
                }
            }
        }
        sort_by_upload(&mut written);
        self.submit_versions(&written, name, sender)
    }

    fn submit_versions<'v>(
        &self,
        versions: impl IntoIterator<Item = &'v Version>,
        name: &OsStr,
        sender: &mut OrderedSender<'_>,
    ) -> Vec<Submitted> {
        let request = Request::missing(name);
        versions
            .into_iter()
            .filter_map(|version| {
                self.submit(Path::new(version.dir), &version.name, &request, sender)
            })
            .collect()
    }

    /// Handles a named file that does not exist, mostly because another process has moved it.
    ///
    /// An upload that began before the move continues in the moved file. Therefore each version of the name that was
    /// written to after its move is submitted again, in the order of the uploads.
    fn submit_missing(
        &self,
        sub: &Path,
        name: &OsStr,
        sender: &mut OrderedSender<'_>,
    ) -> Vec<Moved> {
        let versions = match self.versions_of(name) {
            Ok(versions) => versions,
            Err((dir, error)) => {
                self.record(self.unlisted(Path::new(dir), &error));
                return Vec::new();
            }
        };
        let is_named_there = [PARSED, ERROR].map(Path::new).contains(&sub);
        let request = Request::missing(name);
        let mut group = Vec::new();
        if !is_named_there && !self.context.settings.dry_run {
            let written = versions
                .iter()
                .filter(|version| version.stamp.is_written_after_its_move());
            group = self.submit_versions(written, name, sender);
        }
        if group.is_empty() {
            self.record(self.missing(sub, name, &versions));
            return Vec::new();
        }
        self.finish(group, &request, sender)
    }

    /// The files in `parsed/` and `error/` that were uploaded as `name`, in the order of their uploads.
    fn versions_of(&self, name: &OsStr) -> Result<Vec<Version>, (&'static str, io::Error)> {
        let mut versions = Vec::new();
        for (dir, room) in PROCESSED_DIRS {
            let mut find = || -> io::Result<()> {
                let folder = match self.folder.open_below(Path::new(dir)) {
                    Ok(folder) => folder,
                    Err(error) if is_no_folder(&error) => return Ok(()),
                    Err(error) => return Err(error),
                };
                let mut names = Vec::new();
                folder.for_each_entry(|entry, kind| {
                    let number = (kind == EntryKind::File)
                        .then(|| version_number(entry, name, room))
                        .flatten();
                    names.extend(number.map(|number| (entry.to_owned(), number)));
                })?;
                for (name, number) in names {
                    let stamp = folder.stamp_of(&name)?;
                    versions.extend(stamp.map(|stamp| Version {
                        dir,
                        name,
                        number,
                        stamp,
                    }));
                }
                Ok(())
            };
            find().map_err(|error| (dir, error))?;
        }
        sort_by_upload(&mut versions);
        Ok(versions)
    }

    /// Reports on a named file that does not exist and of which no version has to be ingested.
    fn missing(&self, sub: &Path, name: &OsStr, versions: &[Version]) -> FileReport {
        if sub == Path::new(ERROR)
            && !self.context.settings.dry_run
            && let Ok(errors) = self.folder.open_below(sub)
        {
            let _ = errors.remove_orphan_sidecar(name);
        }
        let raw = || {
            let is_there = self
                .folder
                .stamp_of(name)
                .is_ok_and(|stamp| stamp.is_some());
            (is_there && !sub.as_os_str().is_empty()).then_some(Path::new("the device folder"))
        };
        let version = versions.iter().next_back();
        let version = version.map(|version| Path::new(version.dir).join(&version.name));
        match version.as_deref().or_else(raw) {
            Some(dir) => {
                let message = format!("already processed; now in {}", sanitize(dir));
                self.unread(sub, name, Status::Skipped, message)
            }
            None => self.unread(sub, name, Status::Error, "no such file; check the path"),
        }
    }

    /// Reports on a folder that cannot be listed.
    fn unlisted(&self, sub: &Path, error: &impl std::fmt::Display) -> FileReport {
        let path: PathBuf = self.folder.path().iter().chain(sub).collect();
        let message = unlisted_folder(error);
        let mut report = FileReport::unread(&path, Some(&self.location), Status::Error, message);
        report.retryable = true;
        report
    }

    /// Reports on a file that was not read.
    pub(super) fn unread(
        &self,
        sub: &Path,
        name: &OsStr,
        status: Status,
        error: impl Into<String>,
    ) -> FileReport {
        let path = self.folder.path().join(sub).join(name);
        FileReport::unread(&path, Some(&self.location), status, error)
    }

    /// Records the result of a file.
    pub(super) fn record(&self, report: FileReport) {
        self.context.recorder.add(report);
        self.context.progress.file_done();
    }
}

/// The message for a folder that cannot be listed.
pub fn unlisted_folder(error: &impl std::fmt::Display) -> String {
    format!(
        "cannot list the folder: {error}; it may contain pending files, check its permissions and the disk"
    )
}

/// A file in `parsed/` or `error/` that was uploaded under a given name.
struct Version {
    dir: &'static str,
    name: OsString,
    number: u32,
    stamp: Stamp,
}

/// The folders of moved files, and the bytes that file names leave free there.
const PROCESSED_DIRS: [(&str, usize); 2] = [(PARSED, 0), (ERROR, SIDECAR_NAME_ROOM)];

/// How many numbers may be missing in the sequence of versions.
const MAX_GAPS: u32 = 2;

fn sort_by_upload(versions: &mut [Version]) {
    versions.sort_by_key(|version| (version.stamp.uploaded_ns(), version.number));
}

/// The number of the moved file `moved`, or `None` if it was not uploaded as `name`.
fn version_number(moved: &OsStr, name: &OsStr, room: usize) -> Option<u32> {
    let number = match Path::new(Path::new(moved).file_stem()?).extension() {
        Some(number) => number.to_str().and_then(|number| number.parse().ok()),
        None => None,
    };
    [Some(0), number]
        .into_iter()
        .flatten()
        .find(|number| numbered_name(name, *number, room) == moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_a_name_are_the_names_that_a_move_creates() {
        let number = |moved: &str, name: &str, room| {
            version_number(OsStr::new(moved), OsStr::new(name), room)
        };
        assert_eq!(number("x.tsv", "x.tsv", 0), Some(0));
        assert_eq!(number("x.12.tsv", "x.tsv", 0), Some(12));
        assert_eq!(number("x.1.2.tsv", "x.tsv", 0), None);
        assert_eq!(number("x.1.2.tsv", "x.1.tsv", 0), Some(2));
        assert_eq!(number("x.1.tsv", "x.1.tsv", 0), Some(0));
        assert_eq!(number("y.1.tsv", "x.tsv", 0), None);
        assert_eq!(number("x.01.tsv", "x.tsv", 0), None);
        let long = format!("{}.tsv", "a".repeat(251));
        let moved = numbered_name(OsStr::new(&long), 3, SIDECAR_NAME_ROOM);
        assert_eq!(
            version_number(&moved, OsStr::new(&long), SIDECAR_NAME_ROOM),
            Some(3)
        );
    }
}
