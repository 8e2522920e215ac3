//! The files of one device: locked, taken, ingested, moved, and looked at once more. Source: SPEC sections 1, 4, 5 and 7.

mod place;
mod take;

use self::take::InHand;
use crate::config::Settings;
use crate::courier::Courier;
use crate::folder::{Busy, DeviceLock, Folder, Writers};
use crate::ledger::Ledger;
use crate::names::{ERROR, Location, PARSED};
use crate::progress::Progress;
use crate::queue::{Item, Queue};
use crate::report::{FileReport, Status};
use crate::sink::Sink;
use crate::stop::Stop;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Files are dealt with in groups: what costs the same for one and for many (looking through `/proc`, syncing folders) is done
/// once a group, and between groups another process may have the lock.
const GROUP_FILES: usize = 96;
const GROUP_TIME: Duration = Duration::from_millis(250);

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
        let mut queue = Queue::new(self.folder.path(), self.shared.settings.retry_errors);
        let mut courier = self.courier();
        let mut held = Duration::ZERO;
        let mut next = queue.next();
        while let Some(first) = next.take() {
            if self.shared.stop.is_requested() {
                return;
            }
            let start = Instant::now();
            let lock = match self.lock() {
                Ok(lock) => lock,
                Err(error) => return self.give_up(&error, std::iter::once(first).chain(queue)),
            };
            let writers = Writers::now();
            let mut group = Vec::new();
            next = Some(first);
            while let Some(item) = next.take() {
                group.extend(self.take_item(&item, &writers, &mut courier));
                next = queue.next();
                if group.len() >= GROUP_FILES
                    || start.elapsed() > GROUP_TIME
                    || self.shared.stop.is_requested()
                {
                    break;
                }
            }
            self.land_and_place(group, &mut courier);
            drop(lock);
            self.shared.ledger.send_meta(self.shared.sink);
            held += start.elapsed();
            if next.is_some() && held > HOLD {
                held = Duration::ZERO;
                std::thread::sleep(PAUSE);
            }
        }
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
        let in_hand = self.take(sub, name, None, &mut courier).or_else(|| {
            // Not there any more. Where it was written to after it was moved, the upload has gone into the moved file.
            let place = self.written_after_its_move(sub, name)?;
            self.take(place, name, None, &mut courier)
        });
        match in_hand {
            Some(in_hand) => self.land_and_place(vec![in_hand], &mut courier),
            None => self.tell(self.missing(sub, name)),
        }
    }

    fn courier(&self) -> Courier<'_> {
        Courier::new(self.shared.sink, self.location.company.as_str())
    }

    /// Nothing is in flight any more when a file is moved, or the lock let go.
    fn land_and_place(&self, group: Vec<InHand>, courier: &mut Courier<'_>) {
        let land = |in_hand| self.land(in_hand, courier);
        self.place(group.into_iter().map(land).collect());
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

    fn take_item(
        &self,
        item: &Item,
        writers: &Writers,
        courier: &mut Courier<'_>,
    ) -> Option<InHand> {
        match item {
            Item::File(sub, name) => self.take(sub, name, Some(writers), courier),
            Item::Retry(name) => {
                let errors = self.folder.open_below(Path::new(ERROR)).ok()?;
                errors
                    .read_sidecar(name)
                    .is_some_and(|sidecar| sidecar.retryable)
                    .then(|| self.take(Path::new(ERROR), name, Some(writers), courier))
                    .flatten()
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
        }
    }

    /// Which of `parsed/` and `error/` holds a file of this name whose content was written after it was moved there: a move
    /// leaves a newer mark on the name than on the content, a write leaves the same on both.
    fn written_after_its_move(&self, sub: &Path, name: &OsStr) -> Option<&'static Path> {
        if !sub.as_os_str().is_empty() || self.shared.settings.dry_run {
            return None;
        }
        [PARSED, ERROR].map(Path::new).into_iter().find(|place| {
            self.folder.open_below(place).is_ok_and(|folder| {
                folder
                    .open_file(name)
                    .is_ok_and(|file| file.modified_ns >= file.changed_ns)
            })
        })
    }

    /// A named file that is not there: another process has dealt with it, or it never was.
    fn missing(&self, sub: &Path, name: &OsStr) -> FileReport {
        let elsewhere = ["", PARSED, ERROR]
            .into_iter()
            .filter(|other| Path::new(other) != sub)
            .find(|other| {
                self.folder
                    .open_below(Path::new(other))
                    .is_ok_and(|folder| folder.inode_of(name).is_ok_and(|inode| inode.is_some()))
            });
        match elsewhere {
            Some(place) => {
                if sub == Path::new(ERROR)
                    && !self.shared.settings.dry_run
                    && let Ok(errors) = self.folder.open_below(sub)
                {
                    let _ = errors.remove_orphan_sidecar(name);
                }
                let place = if place.is_empty() {
                    "the device's folder"
                } else {
                    place
                };
                self.unread(
                    sub,
                    name,
                    Status::Skipped,
                    format!("another process has dealt with it: it lies in {place}"),
                )
            }
            None => self.unread(
                sub,
                name,
                Status::Error,
                "there is no such file; check the path",
            ),
        }
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
