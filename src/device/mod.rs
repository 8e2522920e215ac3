//! The files of one device: locked, taken, ingested, moved, and looked at once more.
//! Source: docs/specification.md, sections 1, 6, 7 and 9.

mod place;
mod take;

use self::place::{Dealt, Moved};
use self::take::{Call, InHand};
use crate::config::Settings;
use crate::courier::Courier;
use crate::folder::{Busy, DeviceLock, EntryKind, Folder, SIDECAR_ROOM, Stamp, numbered};
use crate::ledger::Ledger;
use crate::names::{ERROR, Location, PARSED};
use crate::progress::Progress;
use crate::queue::{Item, Queue, is_no_folder};
use crate::report::{FileReport, Status};
use crate::shown::shown;
use crate::sink::Sink;
use crate::stop::Stop;
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

/// What all devices of a run share.
pub struct Shared<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Where points go.
    pub sink: &'a Sink,
    /// Whether the run should end.
    pub stop: &'a Stop,
    /// The data folder.
    pub data: &'a Folder,
    /// Where results are told.
    pub ledger: &'a Ledger,
    /// Where a person sees how far it is.
    pub progress: &'a Progress,
}

/// One device's folder, open.
pub struct Device<'a> {
    shared: &'a Shared<'a>,
    location: Location,
    folder: Arc<Folder>,
}

impl<'a> Device<'a> {
    /// Opens the folder, `relative` to the data folder.
    ///
    /// # Errors
    /// Where the way leads over a link or the folder is gone.
    pub fn open(shared: &'a Shared<'a>, location: Location, relative: &Path) -> io::Result<Self> {
        Ok(Self {
            shared,
            location,
            folder: Arc::new(shared.data.open_below(relative)?),
        })
    }

    /// Deals with everything that waits in the folder, and with what may be tried again.
    pub fn sweep(&self) {
        let mut queue = Queue::new(&self.folder, self.shared.settings.retry_errors);
        let mut courier = self.courier();
        let mut held = Duration::ZERO;
        let mut next = queue.next();
        let mut moved = Vec::new();
        while let Some(first) = next.take() {
            if self.shared.stop.is_requested() {
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
            self.look_last(std::mem::take(&mut moved));
            let call = Call::sweep();
            let mut group = Vec::new();
            next = Some(first);
            while let Some(item) = next.take() {
                if let Item::File(sub, name) = &item {
                    group.extend(self.take_written_versions(sub, name, &mut courier));
                }
                group.extend(self.take_item(&item, &call, &mut courier));
                next = queue.next();
                if group.len() >= GROUP_FILES
                    || start.elapsed() > GROUP_TIME
                    || self.shared.stop.is_requested()
                {
                    break;
                }
            }
            moved = self.finish(group, &call, &mut courier);
            if next.is_none() {
                self.shared.ledger.send_meta(self.shared.sink);
                self.look_last(std::mem::take(&mut moved));
            }
            drop(lock);
            self.shared.ledger.send_meta(self.shared.sink);
            held += start.elapsed();
            if next.is_some() && held > HOLD {
                held = Duration::ZERO;
                std::thread::sleep(PAUSE);
            }
        }
        self.look_last(moved);
    }

    /// Deals with one file that somebody named: `sub` is the folder below the device's that holds it.
    pub fn take_named(&self, sub: &Path, name: &OsStr) {
        let _lock = match self.lock() {
            Ok(lock) => lock,
            Err(error) => {
                let item = Item::File(sub.to_owned(), name.to_owned());
                return self.give_up(&error, std::iter::once(item));
            }
        };
        let mut courier = self.courier();
        // One file: nothing else hides the time that this takes.
        courier.announce();
        let call = Call::named();
        let mut group = self.take_written_versions(sub, name, &mut courier);
        let moved = match self.take(sub, name, &call, &mut courier) {
            Some(in_hand) => {
                group.push(in_hand);
                self.finish(group, &call, &mut courier)
            }
            None if group.is_empty() => self.take_missing(sub, name, &mut courier),
            None => self.finish(group, &call, &mut courier),
        };
        self.shared.ledger.send_meta(self.shared.sink);
        self.look_last(moved);
    }

    fn courier(&self) -> Courier<'_> {
        Courier::new(self.shared.sink, self.location.company.as_str())
    }

    /// Waits for the points of a group, moves its files and tells what came of them. A file that was changed meanwhile
    /// while nobody wrote to it (rights, times) is taken again at once. Returns the files that were moved.
    fn finish(&self, mut group: Vec<InHand>, call: &Call, courier: &mut Courier<'_>) -> Vec<Moved> {
        let mut moved = Vec::new();
        for attempt in 1.. {
            // Nothing is in flight any more when a file is moved, or the lock let go.
            let landed: Vec<_> = group
                .into_iter()
                .map(|in_hand| self.land(in_hand, courier))
                .collect();
            let (again, dealt): (Vec<_>, _) = landed
                .into_iter()
                .partition(|dealt| dealt.retake.is_some() && attempt < MAX_ATTEMPTS);
            moved.extend(self.place(dealt));
            group = again
                .into_iter()
                .filter_map(|dealt| dealt.retake)
                .filter_map(|(sub, name)| self.take(&sub, &name, call, courier))
                .collect();
            if group.is_empty() {
                break;
            }
        }
        moved
    }

    fn lock(&self) -> Result<Option<DeviceLock>, Busy> {
        let settings = self.shared.settings;
        if settings.dry_run {
            return Ok(None);
        }
        self.folder
            .lock(settings.lock_wait, self.shared.stop)
            .map(Some)
    }

    /// The lock cannot be had: the files stay where they are.
    fn give_up(&self, error: &Busy, items: impl Iterator<Item = Item>) {
        for item in items {
            let Item::File(sub, name) = item else {
                continue;
            };
            let status = match error {
                Busy::Stopped => return,
                _ => Status::Error,
            };
            let mut report = self.unread(&sub, &name, status, error.to_string());
            report.retryable = true;
            self.tell(report);
        }
    }

    fn take_item(&self, item: &Item, call: &Call, courier: &mut Courier<'_>) -> Option<InHand> {
        let told = |report| Some(InHand::Decided(Dealt::left(report)));
        match item {
            Item::File(sub, name) => self.take(sub, name, call, courier),
            Item::Retry(name) => {
                let errors = match self.folder.open_below(Path::new(ERROR)) {
                    Ok(errors) => errors,
                    Err(error) if is_no_folder(&error) => return None,
                    Err(error) => return told(self.unlisted(Path::new(ERROR), &error)),
                };
                match errors.read_sidecar(name) {
                    Ok(Some(sidecar)) if sidecar.retryable => {
                        self.take(Path::new(ERROR), name, call, courier)
                    }
                    Ok(_) => None,
                    Err(error) => {
                        let words = format!(
                            "{}.error.json cannot be read: {error}; check its rights",
                            shown(name)
                        );
                        let mut report = self.unread(Path::new(ERROR), name, Status::Error, words);
                        report.retryable = true;
                        told(report)
                    }
                }
            }
            Item::Sidecar(name) => {
                if let (false, Ok(errors)) = (
                    self.shared.settings.dry_run,
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
    fn take_written_versions(
        &self,
        sub: &Path,
        name: &OsStr,
        courier: &mut Courier<'_>,
    ) -> Vec<InHand> {
        if self.shared.settings.dry_run || !sub.as_os_str().is_empty() {
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
                let name = numbered(name, number, room);
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
        self.take_versions(&written, name, courier)
    }

    fn take_versions<'v>(
        &self,
        versions: impl IntoIterator<Item = &'v Version>,
        name: &OsStr,
        courier: &mut Courier<'_>,
    ) -> Vec<InHand> {
        let call = Call::missing(name);
        versions
            .into_iter()
            .filter_map(|version| {
                self.take(Path::new(version.place), &version.name, &call, courier)
            })
            .collect()
    }

    /// A named file that is not there: another process has dealt with it, or it never was. An upload that began before the
    /// file was moved has gone on in the moved file, under whatever name that got: each version of the name that was written
    /// after its move is taken again, in the order of the uploads.
    fn take_missing(&self, sub: &Path, name: &OsStr, courier: &mut Courier<'_>) -> Vec<Moved> {
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
        if !is_named_there && !self.shared.settings.dry_run {
            let written = versions
                .iter()
                .filter(|version| version.stamp.is_written_after_its_move());
            group = self.take_versions(written, name, courier);
        }
        if group.is_empty() {
            self.tell(self.missing(sub, name, &versions));
            return Vec::new();
        }
        self.finish(group, &call, courier)
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
            && !self.shared.settings.dry_run
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
                let words = format!("already processed; now in {}", shown(place));
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

    fn unread(
        &self,
        sub: &Path,
        name: &OsStr,
        status: Status,
        error: impl Into<String>,
    ) -> FileReport {
        let path = self.folder.path().join(sub).join(name);
        FileReport::unread(&path, Some(&self.location), status, error)
    }

    fn tell(&self, report: FileReport) {
        self.shared.ledger.add(report);
        self.shared.progress.file_done();
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
const PLACES: [(&str, usize); 2] = [(PARSED, 0), (ERROR, SIDECAR_ROOM)];

/// How many numbers may be missing among the versions of a name.
const MAX_GAPS: u32 = 2;

fn in_order_of_upload(versions: &mut [Version]) {
    versions.sort_by_key(|version| (version.stamp.uploaded_ns(), version.number));
}

/// The number that a move gave to the file `found`, if it arrived as `name`.
fn number_in(found: &OsStr, name: &OsStr, room: usize) -> Option<u32> {
    let number = match Path::new(Path::new(found).file_stem()?).extension() {
        Some(number) => number.to_str().and_then(|number| number.parse().ok()),
        None => None,
    };
    [Some(0), number]
        .into_iter()
        .flatten()
        .find(|number| numbered(name, *number, room) == found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_a_name_are_those_that_a_move_makes() {
        let number =
            |found: &str, name: &str, room| number_in(OsStr::new(found), OsStr::new(name), room);
        assert_eq!(number("x.tsv", "x.tsv", 0), Some(0));
        assert_eq!(number("x.12.tsv", "x.tsv", 0), Some(12));
        assert_eq!(number("x.1.2.tsv", "x.tsv", 0), None);
        assert_eq!(number("x.1.2.tsv", "x.1.tsv", 0), Some(2));
        assert_eq!(number("x.1.tsv", "x.1.tsv", 0), Some(0));
        assert_eq!(number("y.1.tsv", "x.tsv", 0), None);
        assert_eq!(number("x.01.tsv", "x.tsv", 0), None);
        let long = format!("{}.tsv", "a".repeat(251));
        let moved = numbered(OsStr::new(&long), 3, SIDECAR_ROOM);
        assert_eq!(number_in(&moved, OsStr::new(&long), SIDECAR_ROOM), Some(3));
    }
}
