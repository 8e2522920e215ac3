//! The files of one device: locked, taken, ingested, moved, and looked at once more.
//! Source: docs/specification.md, sections 1, 6, 7 and 9.

use super::RunContext;
use super::finish::{Moved, Processed};
use super::submit::{Call, Submitted};
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

/// Files are dealt with in groups: what costs the same for one and for many (looking through `/proc`, syncing folders) is done
/// once a group, and between groups another process may have the lock.
const GROUP_FILES: usize = 96;
const GROUP_TIME: Duration = Duration::from_millis(250);

/// How often a file is taken that keeps being changed while nobody writes to it.
const MAX_ATTEMPTS: u32 = 3;

/// After having held the lock for this long in all, it is left to others for [`PAUSE`].
const HOLD: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(40);

/// One device's folder, open.
pub struct Device<'a> {
    pub(super) context: &'a RunContext<'a>,
    pub(super) location: DevicePath,
    pub(super) folder: Arc<Dir>,
}

impl<'a> Device<'a> {
    /// Opens the folder, `relative` to the data folder.
    ///
    /// # Errors
    /// Where the way leads over a link or the folder is gone.
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

    /// Deals with everything that waits in the folder, and with what may be tried again.
    pub fn sweep(&self) {
        let mut queue = PendingFiles::new(&self.folder, self.context.settings.retry_errors);
        let mut sender = self.sender();
        let mut held = Duration::ZERO;
        let mut next = queue.next();
        let mut moved = Vec::new();
        while let Some(first) = next.take() {
            if self.context.stop.is_requested() {
                break;
            }
            let start = Instant::now();
            let lock = match self.lock() {
                Ok(lock) => lock,
                Err(error) => {
                    self.give_up(&error, std::iter::once(first).chain(queue));
                    break;
                }
            };
            // Those of the group before: a writer that had found a file by its old name has opened it by now.
            self.recheck_later(std::mem::take(&mut moved));
            let call = Call::sweep();
            let mut group = Vec::new();
            next = Some(first);
            while let Some(item) = next.take() {
                if let Item::File(sub, name) = &item {
                    group.extend(self.submit_written_versions(sub, name, &mut sender));
                }
                group.extend(self.submit_item(&item, &call, &mut sender));
                next = queue.next();
                if group.len() >= GROUP_FILES
                    || start.elapsed() > GROUP_TIME
                    || self.context.stop.is_requested()
                {
                    break;
                }
            }
            moved = self.finish(group, &call, &mut sender);
            if next.is_none() {
                self.context.recorder.send_meta(self.context.sink);
                self.recheck_later(std::mem::take(&mut moved));
            }
            drop(lock);
            self.context.recorder.send_meta(self.context.sink);
            held += start.elapsed();
            if next.is_some() && held > HOLD {
                held = Duration::ZERO;
                std::thread::sleep(PAUSE);
            }
        }
        self.recheck_later(moved);
    }

    /// Deals with one file that somebody named: `sub` is the folder below the device's that holds it.
    pub fn ingest_named(&self, sub: &Path, name: &OsStr) {
        let _lock = match self.lock() {
            Ok(lock) => lock,
            Err(error) => {
                let item = Item::File(sub.to_owned(), name.to_owned());
                return self.give_up(&error, std::iter::once(item));
            }
        };
        let mut sender = self.sender();
        // One file: nothing else hides the time that this takes.
        sender.prefetch_bucket();
        let call = Call::named();
        let mut group = self.submit_written_versions(sub, name, &mut sender);
        let moved = match self.take(sub, name, &call, &mut sender) {
            Some(submitted) => {
                group.push(submitted);
                self.finish(group, &call, &mut sender)
            }
            None if group.is_empty() => self.submit_missing(sub, name, &mut sender),
            None => self.finish(group, &call, &mut sender),
        };
        self.context.recorder.send_meta(self.context.sink);
        self.recheck_later(moved);
    }

    fn sender(&self) -> OrderedSender<'_> {
        OrderedSender::new(self.context.sink, self.location.company.as_str())
    }

    /// Waits for the points of a group, moves its files and tells what came of them. A file that was changed meanwhile
    /// while nobody wrote to it (rights, times) is taken again at once. Returns the files that were moved.
    fn finish(
        &self,
        mut group: Vec<Submitted>,
        call: &Call,
        sender: &mut OrderedSender<'_>,
    ) -> Vec<Moved> {
        let mut moved = Vec::new();
        for attempt in 1.. {
            // Nothing is in flight any more when a file is moved, or the lock let go.
            let written: Vec<_> = group
                .into_iter()
                .map(|submitted| self.land(submitted, sender))
                .collect();
            let (again, processed): (Vec<_>, _) = written
                .into_iter()
                .partition(|processed| processed.retake.is_some() && attempt < MAX_ATTEMPTS);
            moved.extend(self.place(processed));
            group = again
                .into_iter()
                .filter_map(|processed| processed.retake)
                .filter_map(|(sub, name)| self.take(&sub, &name, call, sender))
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

    /// The lock cannot be had: the files stay where they are.
    fn give_up(&self, error: &LockError, items: impl Iterator<Item = Item>) {
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
            self.tell(report);
        }
    }

    fn submit_item(
        &self,
        item: &Item,
        call: &Call,
        sender: &mut OrderedSender<'_>,
    ) -> Option<Submitted> {
        let told = |report| Some(Submitted::Processed(Processed::left(report)));
        match item {
            Item::File(sub, name) => self.take(sub, name, call, sender),
            Item::Retry(name) => {
                let errors = match self.folder.open_below(Path::new(ERROR)) {
                    Ok(errors) => errors,
                    Err(error) if is_no_folder(&error) => return None,
                    Err(error) => return told(self.unlisted(Path::new(ERROR), &error)),
                };
                match errors.read_sidecar(name) {
                    Ok(Some(sidecar)) if sidecar.retryable => {
                        self.take(Path::new(ERROR), name, call, sender)
                    }
                    Ok(_) => None,
                    Err(error) => {
                        let words = format!(
                            "{}.error.json cannot be read: {error}; check its rights",
                            sanitize(name)
                        );
                        let mut report = self.unread(Path::new(ERROR), name, Status::Error, words);
                        report.retryable = true;
                        told(report)
                    }
                }
            }
            Item::Sidecar(name) => {
                if let (false, Ok(errors)) = (
                    self.context.settings.dry_run,
                    self.folder.open_below(Path::new(ERROR)),
                ) {
                    // A run that was killed after it had moved the file out.
                    let _ = errors.remove_orphan_sidecar(name);
                }
                None
            }
            Item::Unlisted(sub, error) => told(self.unlisted(sub, error)),
        }
    }

    /// Takes the earlier versions of a file that an upload has gone on in after they were moved. They are looked for by their
    /// numbers, without listing what may be a large folder.
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
        for (place, room) in PLACES {
            // What cannot be opened is found again, and told, when the file itself is moved there.
            let Ok(folder) = self.folder.open_below(Path::new(place)) else {
                continue;
            };
            let mut gaps = 0;
            for number in 0.. {
                let name = numbered_name(name, number, room);
                match folder.stamp_of(&name) {
                    Ok(Some(stamp)) if stamp.is_written_after_its_move() => {
                        written.push(Version {
                            place,
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
        in_order_of_upload(&mut written);
        self.submit_versions(&written, name, sender)
    }

    fn submit_versions<'v>(
        &self,
        versions: impl IntoIterator<Item = &'v Version>,
        name: &OsStr,
        sender: &mut OrderedSender<'_>,
    ) -> Vec<Submitted> {
        let call = Call::missing(name);
        versions
            .into_iter()
            .filter_map(|version| self.take(Path::new(version.place), &version.name, &call, sender))
            .collect()
    }

    /// A named file that is not there: another process has dealt with it, or it never was. An upload that began before the
    /// file was moved has gone on in the moved file, under whatever name that got: each version of the name that was written
    /// after its move is taken again, in the order of the uploads.
    fn submit_missing(
        &self,
        sub: &Path,
        name: &OsStr,
        sender: &mut OrderedSender<'_>,
    ) -> Vec<Moved> {
        let versions = match self.versions_of(name) {
            Ok(versions) => versions,
            Err((place, error)) => {
                self.tell(self.unlisted(Path::new(place), &error));
                return Vec::new();
            }
        };
        let is_named_there = [PARSED, ERROR].map(Path::new).contains(&sub);
        let call = Call::missing(name);
        let mut group = Vec::new();
        if !is_named_there && !self.context.settings.dry_run {
            let written = versions
                .iter()
                .filter(|version| version.stamp.is_written_after_its_move());
            group = self.submit_versions(written, name, sender);
        }
        if group.is_empty() {
            self.tell(self.missing(sub, name, &versions));
            return Vec::new();
        }
        self.finish(group, &call, sender)
    }

    /// The files in `parsed/` and `error/` that arrived as `name`, in the order in which they were uploaded.
    fn versions_of(&self, name: &OsStr) -> Result<Vec<Version>, (&'static str, io::Error)> {
        let mut versions = Vec::new();
        for (place, room) in PLACES {
            let mut find = || -> io::Result<()> {
                let folder = match self.folder.open_below(Path::new(place)) {
                    Ok(folder) => folder,
                    Err(error) if is_no_folder(&error) => return Ok(()),
                    Err(error) => return Err(error),
                };
                let mut names = Vec::new();
                folder.for_each_entry(|entry, kind| {
                    let number = (kind == EntryKind::File)
                        .then(|| number_in(entry, name, room))
                        .flatten();
                    names.extend(number.map(|number| (entry.to_owned(), number)));
                })?;
                for (name, number) in names {
                    let stamp = folder.stamp_of(&name)?;
                    versions.extend(stamp.map(|stamp| Version {
                        place,
                        name,
                        number,
                        stamp,
                    }));
                }
                Ok(())
            };
            find().map_err(|error| (place, error))?;
        }
        in_order_of_upload(&mut versions);
        Ok(versions)
    }

    /// What is said of a named file that is not there, and of which no version is to be taken.
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
        let version = version.map(|version| Path::new(version.place).join(&version.name));
        match version.as_deref().or_else(raw) {
            Some(place) => {
                let words = format!("already processed; now in {}", sanitize(place));
                self.unread(sub, name, Status::Skipped, words)
            }
            None => self.unread(
                sub,
                name,
                Status::Error,
                "there is no such file; check the path",
            ),
        }
    }

    /// A folder that cannot be listed: files may wait in it.
    fn unlisted(&self, sub: &Path, error: &impl std::fmt::Display) -> FileReport {
        let path: PathBuf = self.folder.path().iter().chain(sub).collect();
        let words = unlisted_folder(error);
        let mut report = FileReport::unread(&path, Some(&self.location), Status::Error, words);
        report.retryable = true;
        report
    }

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

    pub(super) fn tell(&self, report: FileReport) {
        self.context.recorder.add(report);
        self.context.progress.file_done();
    }
}

/// What is said of a folder that cannot be listed.
pub fn unlisted_folder(error: &impl std::fmt::Display) -> String {
    format!(
        "the folder cannot be listed: {error}; files may wait in it, check its rights and the disk"
    )
}

/// A file in `parsed/` or `error/` that arrived under a given name.
struct Version {
    place: &'static str,
    name: OsString,
    number: u32,
    stamp: Stamp,
}

/// Where moved files lie, and the room that their names leave there, in bytes.
const PLACES: [(&str, usize); 2] = [(PARSED, 0), (ERROR, SIDECAR_NAME_ROOM)];

/// How many numbers may be missing among the versions of a name.
const MAX_GAPS: u32 = 2;

fn in_order_of_upload(versions: &mut [Version]) {
    versions.sort_by_key(|version| (version.stamp.uploaded_ns(), version.number));
}

/// The number that a move gave to the file `parsed`, if it arrived as `name`.
fn number_in(parsed: &OsStr, name: &OsStr, room: usize) -> Option<u32> {
    let number = match Path::new(Path::new(parsed).file_stem()?).extension() {
        Some(number) => number.to_str().and_then(|number| number.parse().ok()),
        None => None,
    };
    [Some(0), number]
        .into_iter()
        .flatten()
        .find(|number| numbered_name(name, *number, room) == parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_a_name_are_those_that_a_move_makes() {
        let number =
            |parsed: &str, name: &str, room| number_in(OsStr::new(parsed), OsStr::new(name), room);
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
            number_in(&moved, OsStr::new(&long), SIDECAR_NAME_ROOM),
            Some(3)
        );
    }
}
