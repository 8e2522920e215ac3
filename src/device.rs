//! The files of one device: locked, taken, ingested, moved, and looked at once more. Source: SPEC sections 1, 4, 5 and 7.

use crate::batch::Shape;
use crate::cli::OnOutage;
use crate::config::Settings;
use crate::folder::{Folder, MoveError, OpenError, OpenFile, Sidecar, Writers, numbered};
use crate::ingest::{self, Fault, Found, Setup};
use crate::ledger::Ledger;
use crate::logger_file::{Container, FormatError, HeaderMeta};
use crate::names::{ERROR, Location, PARSED};
use crate::queue::{Item, Queue};
use crate::report::{FileReport, Status, iso};
use crate::shown::shown;
use crate::sink::{Failure, Sink};
use crate::stop::Stop;
use chrono::Utc;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Files are dealt with in groups: what costs the same for one and for many (looking through `/proc`, syncing folders) is done
/// once a group, and between groups another process may have the lock.
const GROUP_FILES: usize = 64;
const GROUP_TIME: Duration = Duration::from_millis(250);

/// After having held the lock for this long in all, it is left to others for [`PAUSE`].
const HOLD: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(40);

/// The end of a file that is searched for its end marker, in bytes.
const TAIL: usize = 4096;

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
}

/// One device's folder, open.
pub struct Device<'a> {
    shared: &'a Shared<'a>,
    location: Location,
    folder: Folder,
}

/// A file that was dealt with but for the second look.
struct Dealt {
    report: FileReport,
    /// Where the file came from and where it is now.
    moved: Option<Moved>,
}

struct Moved {
    open: OpenFile,
    /// The processes that had it open for writing when it was taken.
    writers: Vec<u32>,
    from: Folder,
    name: OsString,
    to: Folder,
    as_name: OsString,
    with_sidecar: bool,
}

/// What should become of a file.
enum Fate {
    Parsed,
    /// To `error/`; whether another try is worth it.
    Error {
        retryable: bool,
    },
    Stay,
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
            folder: shared.data.open_below(relative)?,
        })
    }

    /// Deals with everything that waits in the folder, and with what may be tried again.
    pub fn sweep(&self) {
        let mut queue = Queue::new(self.folder.path(), self.shared.settings.retry_errors);
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
            let mut dealt = Vec::new();
            next = Some(first);
            while let Some(item) = next.take() {
                dealt.extend(self.deal_with_item(&item, &writers));
                next = queue.next();
                if dealt.len() >= GROUP_FILES
                    || start.elapsed() > GROUP_TIME
                    || self.shared.stop.is_requested()
                {
                    break;
                }
            }
            self.look_again(dealt);
            drop(lock);
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
        let dealt = self.deal_with_file(sub, name, None).or_else(|| {
            // Not there any more. Where it was overwritten after it was moved, the upload has gone into the moved file.
            self.written_after_its_move(sub, name)
                .then(|| self.deal_with_file(Path::new(PARSED), name, None))
                .flatten()
        });
        match dealt {
            Some(dealt) => self.look_again(vec![dealt]),
            None => self.tell(self.missing(sub, name)),
        }
    }

    fn lock(&self) -> Result<Option<crate::folder::DeviceLock>, crate::folder::Busy> {
        let settings = self.shared.settings;
        if settings.dry_run {
            return Ok(None);
        }
        self.folder
            .lock(settings.lock_wait, self.shared.stop)
            .map(Some)
    }

    /// The lock cannot be had: the files stay where they are.
    fn give_up(&self, error: &crate::folder::Busy, items: impl Iterator<Item = Item>) {
        for item in items {
            let Item::File(sub, name) = item else {
                continue;
            };
            let status = match error {
                crate::folder::Busy::Stopped => return,
                _ => Status::Error,
            };
            let mut report = self.unread(&sub, &name, status, error.to_string());
            report.retryable = true;
            self.tell(report);
        }
    }

    fn deal_with_item(&self, item: &Item, writers: &Writers) -> Option<Dealt> {
        match item {
            Item::File(sub, name) => self.deal_with_file(sub, name, Some(writers)),
            Item::Retry(name) => {
                let errors = self.folder.open_below(Path::new(ERROR)).ok()?;
                errors
                    .read_sidecar(name)
                    .is_some_and(|sidecar| sidecar.retryable)
                    .then(|| self.deal_with_file(Path::new(ERROR), name, Some(writers)))
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

    /// Takes a file, ingests it and moves it. None where there is nothing to tell: it is gone, or in a sweep no file at all.
    /// `writers` are those that the sweep has found; a named file is taken without asking.
    fn deal_with_file(&self, sub: &Path, name: &OsStr, writers: Option<&Writers>) -> Option<Dealt> {
        let told = |report| {
            Some(Dealt {
                report,
                moved: None,
            })
        };
        let from = match self.folder.open_below(sub) {
            Ok(from) => from,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                let words =
                    format!("its folder cannot be opened: {error}; a link there is not followed");
                return told(self.unread(sub, name, Status::Error, words));
            }
        };
        let open = match from.open_file(name) {
            Ok(open) => open,
            Err(OpenError::Gone) => return None,
            Err(OpenError::NotAFile(what)) if writers.is_some() => {
                tracing::debug!("{}: {what}, passed over", shown(from.path().join(name)));
                return None;
            }
            Err(error) => {
                let mut report = self.unread(sub, name, Status::Error, error.to_string());
                report.retryable = true;
                return told(report);
            }
        };
        if let Some(writers) = writers
            && let Some(reason) = self.still_arriving(&open, writers)
        {
            return told(self.unread(sub, name, Status::Skipped, reason));
        }
        if let Some(outage) = self.shared.sink.outage() {
            let mut report = self.unread(sub, name, Status::Error, outage.to_string());
            report.in_outage = true;
            let writing = Writers::now_of(&[open.inode]).of(open.inode).to_vec();
            return Some(self.finish(report, &self.fate_in_outage(), open, writing, from, name));
        }
        let path = from.path().join(name);
        let same = || !open.has_changed().unwrap_or(true);
        let ((found, result), writing) = std::thread::scope(|scope| {
            // Who writes to a named file as it is taken is looked up while the server takes its points.
            let look = (writers.is_none() && !self.shared.settings.dry_run)
                .then(|| scope.spawn(|| Writers::now_of(&[open.inode])));
            let ingested = ingest::ingest(&open.file, &self.setup(), &same);
            let writers = look.and_then(|look| look.join().ok()).unwrap_or_default();
            (ingested, writers.of(open.inode).to_vec())
        });
        self.warn_of(&path, &found);
        let mut report = FileReport::read(&path, &self.location, found);
        let mut result = result;
        if result.is_ok() {
            result = self
                .shared
                .sink
                .settle(self.location.company.as_str())
                .map_err(Fault::Sink);
        }
        if self.shared.settings.dry_run {
            if let Err(fault) = result {
                report.status = Status::Error;
                report.error = Some(fault.to_string());
            }
            return told(report);
        }
        // Cut files fail for what they lack, and what they lack may just be arriving.
        if !same() {
            report.status = Status::Skipped;
            report.error =
                Some("it was changed while it was being read; left for the next run".to_owned());
            return told(report);
        }
        let fate = match &result {
            Ok(()) => {
                set_delays(&mut report, &open);
                Fate::Parsed
            }
            Err(fault) => {
                report.status = Status::Error;
                report.error = Some(fault.to_string());
                match fault {
                    Fault::Format(FormatError::Read(_)) | Fault::Sink(Failure::Storage(_)) => {
                        report.retryable = true;
                        Fate::Stay
                    }
                    Fault::Format(_) | Fault::Sink(Failure::Partial(_) | Failure::Rejected(_)) => {
                        Fate::Error { retryable: false }
                    }
                    Fault::Sink(Failure::Outage(_)) => {
                        report.in_outage = true;
                        self.fate_in_outage()
                    }
                    Fault::Changed | Fault::Sink(Failure::Stopped) => {
                        report.status = Status::Skipped;
                        Fate::Stay
                    }
                }
            }
        };
        Some(self.finish(report, &fate, open, writing, from, name))
    }

    fn fate_in_outage(&self) -> Fate {
        match self.shared.settings.on_outage {
            OnOutage::Error => Fate::Error { retryable: true },
            OnOutage::Keep => Fate::Stay,
        }
    }

    fn setup(&self) -> Setup<'_> {
        let settings = self.shared.settings;
        Setup {
            location: &self.location,
            zone: settings.zone,
            shape: Shape {
                gzip: self.shared.sink.wants_gzip(settings.gzip),
                lines: settings.batch_lines,
            },
            sink: self.shared.sink,
            stop: self.shared.stop,
        }
    }

    /// Why a file must be left for a later sweep, if it must.
    fn still_arriving(&self, open: &OpenFile, writers: &Writers) -> Option<String> {
        if let Some(pid) = writers.of(open.inode).first() {
            return Some(format!(
                "it is still open for writing by process {pid}; left for the next run"
            ));
        }
        let grace = self.shared.settings.grace;
        let now = i128::from(Utc::now().timestamp_nanos_opt()?);
        // A time in the future was set by the client; the system's own mark of the last change never lies ahead.
        let last = if open.modified_ns > now {
            open.changed_ns
        } else {
            open.modified_ns
        };
        let age = Duration::from_nanos(u64::try_from(now - last).unwrap_or_default());
        if age >= grace {
            return None;
        }
        let looks_truncated = || -> io::Result<bool> {
            let mut head = [0; 64];
            let read = open.file.read_at(&mut head, 0)?;
            let mut tail = [0; TAIL];
            let start = open.size.saturating_sub(TAIL as u64);
            let tail_read = open.file.read_at(&mut tail, start)?;
            Ok(Container::looks_truncated(
                &head[..read],
                &tail[..tail_read],
            ))
        };
        if writers.partly_blind() {
            return Some(format!(
                "it is younger than {} s, and whether it is still being written cannot be seen: other users' processes are hidden; left for the next run",
                grace.as_secs()
            ));
        }
        looks_truncated().unwrap_or(true).then(|| {
            format!("it is cut off and younger than {} s, so it may still be arriving; left for the next run", grace.as_secs())
        })
    }

    /// Moves a file where its fate has it. What cannot be moved stays, and says why.
    fn finish(
        &self,
        mut report: FileReport,
        fate: &Fate,
        open: OpenFile,
        writers: Vec<u32>,
        from: Folder,
        name: &OsStr,
    ) -> Dealt {
        let retryable = match fate {
            Fate::Error { retryable } => *retryable,
            Fate::Stay => report.retryable || report.status == Status::Error,
            Fate::Parsed => false,
        };
        report.retryable = retryable;
        let moved = match fate {
            Fate::Stay => Ok(None),
            _ if self.shared.settings.dry_run => Ok(None),
            Fate::Parsed => self.move_to_parsed(&from, name, &open),
            Fate::Error { .. } => self.move_to_error(&report, &from, name, &open),
        };
        let moved = match moved {
            Ok(moved) => moved,
            Err(MoveError::Gone) => {
                tracing::warn!(
                    "{}: taken away while it was being ingested",
                    shown(&report.file_path)
                );
                None
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
                None
            }
        };
        let moved = moved.map(|(to, as_name, with_sidecar)| {
            report.moved_to = Some(to.path().join(&as_name).to_string_lossy().into_owned());
            Moved {
                open,
                writers,
                from,
                name: name.to_owned(),
                to,
                as_name,
                with_sidecar,
            }
        });
        Dealt { report, moved }
    }

    fn move_to_parsed(
        &self,
        from: &Folder,
        name: &OsStr,
        open: &OpenFile,
    ) -> Result<Option<(Folder, OsString, bool)>, MoveError> {
        let parsed = self.folder.open_or_make(PARSED)?;
        if parsed.holds(name, open.inode)? {
            return Ok(None);
        }
        let as_name = from.move_into(name, &parsed, name, 0, |_| Ok(true))?;
        // The sidecar of a file that was tried again, or one that a killed run wrote before it could move the file.
        if let Ok(errors) = self.folder.open_below(Path::new(ERROR)) {
            let left = (0..).map(|n| numbered(name, n, crate::folder::SIDECAR_ROOM));
            for candidate in left {
                if errors.inode_of(&candidate)?.is_none() {
                    errors.remove_sidecar(&candidate)?;
                    break;
                }
            }
        }
        Ok(Some((parsed, as_name, false)))
    }

    fn move_to_error(
        &self,
        report: &FileReport,
        from: &Folder,
        name: &OsStr,
        open: &OpenFile,
    ) -> Result<Option<(Folder, OsString, bool)>, MoveError> {
        let errors = self.folder.open_or_make(ERROR)?;
        let sidecar = Sidecar {
            error: report.error.clone().unwrap_or_default(),
            retryable: report.retryable,
            time: iso(Utc::now()),
            run_id: self.shared.ledger.run_id().to_owned(),
        };
        if errors.holds(name, open.inode)? {
            errors.replace_sidecar(name, &sidecar)?;
            return Ok(None);
        }
        let mut written = None;
        let result = from.move_into(
            name,
            &errors,
            name,
            crate::folder::SIDECAR_ROOM,
            |candidate| {
                if errors.inode_of(candidate)?.is_some() {
                    return Ok(false);
                }
                errors.write_sidecar(candidate, &sidecar)?;
                written = Some(candidate.to_owned());
                Ok(true)
            },
        );
        match result {
            Ok(as_name) => Ok(Some((errors, as_name, true))),
            Err(error) => {
                if let Some(candidate) = written {
                    let _ = errors.remove_orphan_sidecar(&candidate);
                }
                Err(error)
            }
        }
    }

    /// The second look at files that were moved: one that is still being written, or was changed, is not finished and goes
    /// back. Then the folders are synced, and only then it is told.
    fn look_again(&self, dealt: Vec<Dealt>) {
        let moved: Vec<_> = dealt
            .iter()
            .filter_map(|d| Some(d.moved.as_ref()?.open.inode))
            .collect();
        let writers = if moved.is_empty() {
            Writers::default()
        } else {
            Writers::now_of(&moved)
        };
        let mut synced: Vec<PathBuf> = Vec::new();
        let mut reports = Vec::with_capacity(dealt.len());
        for Dealt { mut report, moved } in dealt {
            if let Some(moved) = moved {
                if let Some(reason) = moved.unfinished(&writers) {
                    report.status = Status::Skipped;
                    report.retryable = true;
                    report.moved_to = None;
                    report.error = Some(match moved.give_back() {
                        Ok(()) => format!("{reason}; given back for the next run"),
                        Err(error) => format!("{reason}, but it cannot be given back: {error}"),
                    });
                }
                for folder in [&moved.to, &moved.from] {
                    if synced.iter().any(|path| path == folder.path()) {
                        continue;
                    }
                    match folder.sync() {
                        Ok(()) => synced.push(folder.path().to_owned()),
                        Err(error) => {
                            tracing::warn!("{}: not synced to disk: {error}", shown(folder.path()))
                        }
                    }
                }
            }
            reports.push(report);
        }
        for report in reports {
            self.tell(report);
        }
    }

    /// Whether `parsed/` holds a file of this name whose content was written after it was moved there: a move leaves a newer
    /// mark on the name than on the content, a write leaves the same on both.
    fn written_after_its_move(&self, sub: &Path, name: &OsStr) -> bool {
        sub.as_os_str().is_empty()
            && !self.shared.settings.dry_run
            && self
                .folder
                .open_below(Path::new(PARSED))
                .is_ok_and(|parsed| {
                    parsed
                        .open_file(name)
                        .is_ok_and(|file| file.modified_ns >= file.changed_ns)
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
    }

    /// One warning a file and cause, with a count.
    fn warn_of(&self, path: &Path, found: &Found) {
        let warn = |words: String| self.shared.ledger.warn(path, &words);
        if found.truncated {
            warn("the file is cut off: its last value is not taken".to_owned());
        }
        if let HeaderMeta::Broken(reason) = &found.meta {
            warn(format!(
                "the header is not JSON ({}): its time zone is not known",
                shown(reason)
            ));
        }
        if let Some(master) = found
            .master
            .as_deref()
            .filter(|sn| *sn != self.location.device.as_str())
        {
            warn(format!(
                "the file's master is {:?}, its folder is named {:?}; ingested as {:?}",
                shown(master),
                self.location.device.to_string(),
                shown(master)
            ));
        }
        let tally = found.tally;
        for (count, what) in [
            (
                tally.invalid_timestamps,
                "rows without a valid time, skipped",
            ),
            (
                tally.malformed_rows,
                "rows with more cells than the header, skipped",
            ),
            (tally.invalid_values, "cells without a valid value, skipped"),
            (tally.lines_after_end, "lines after END_DATA, ignored"),
        ] {
            if count > 0 {
                warn(format!("{count} {what}"));
            }
        }
    }
}

impl Moved {
    /// Why this file is not finished, if it is not.
    fn unfinished(&self, writers: &Writers) -> Option<String> {
        if !self
            .to
            .holds(&self.as_name, self.open.inode)
            .unwrap_or(true)
        {
            return Some("another file took its name while it was being ingested".to_owned());
        }
        if self.open.has_changed().unwrap_or(true) {
            return Some("it was changed while it was being moved".to_owned());
        }
        writers
            .of(self.open.inode)
            .iter()
            .find(|pid| !self.writers.contains(pid))
            .map(|pid| format!("process {pid} began to write to it while it was being ingested"))
    }

    fn give_back(&self) -> Result<(), MoveError> {
        self.to
            .move_into(&self.as_name, &self.from, &self.name, 0, |_| Ok(true))
            .map(|_| ())?;
        if self.with_sidecar {
            self.to.remove_orphan_sidecar(&self.as_name)?;
        }
        Ok(())
    }
}

/// How long it took from the last measurement, and from the file's arrival, until the database had the points.
#[expect(
    clippy::cast_precision_loss,
    reason = "seconds since 1970 are far below 2^52"
)]
fn set_delays(report: &mut FileReport, open: &OpenFile) {
    let now = Utc::now().timestamp_millis() as f64 / 1e3;
    report.delay_s = report.last_measurement.map(|last| now - last as f64);
    report.arrival_delay_s = Some((now - (open.modified_ns / 1_000_000) as f64 / 1e3).max(0.0));
}
