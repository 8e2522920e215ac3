//! One file is taken: opened, judged whether it has arrived, and its points sent off. Once they have landed, its fate is
//! decided; until then the device's next files are taken.

use super::device::Device;
use super::finish::{Change, Dealt, Fate, Taken};
use crate::cli::OnOutage;
use crate::data_dir::{Folder, Lease, LeaseError, OpenError, OpenFile, OpenWriters};
use crate::logger_file::{Container, FormatError, HeaderMeta};
use crate::pipeline::ingest::{self, Fault, Found, Setup};
use crate::points::Shape;
use crate::report::{FileReport, Status};
use crate::sanitize::shown;
use crate::sink::Failure;
use crate::sink::ordered_sender::{Courier, Parcel};
use chrono::Utc;
use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How much of a file's two ends is looked at to tell whether it was cut off, in bytes.
const ENDS: usize = 4096;

/// A file that was taken.
pub(super) enum InHand {
    /// Its fate is known.
    Decided(Dealt),
    /// Its points are on their way.
    Underway(Underway),
}

/// A file whose points are on their way, or as many as there were before something went wrong.
pub(super) struct Underway {
    parcel: Parcel,
    found: Found,
    read: Result<(), Fault>,
    sub: PathBuf,
    taken: Taken,
}

/// How files are asked for, and what a group of them shares.
pub(super) struct Call {
    asked: Asked,
    /// Looked through once a group, and only where a lease cannot be had.
    writers: OnceCell<OpenWriters>,
}

/// Who asks for a file.
enum Asked {
    Sweep,
    /// A person or the upload's hook, which says that the file is whole.
    Named,
    /// As `Named`, by this name; the file has moved to `parsed/` or `error/`.
    Missing(OsString),
}

impl Call {
    pub(super) fn sweep() -> Self {
        Self::new(Asked::Sweep)
    }

    pub(super) fn named() -> Self {
        Self::new(Asked::Named)
    }

    pub(super) fn missing(name: &OsStr) -> Self {
        Self::new(Asked::Missing(name.to_owned()))
    }

    fn new(asked: Asked) -> Self {
        Self {
            asked,
            writers: OnceCell::new(),
        }
    }

    fn is_sweep(&self) -> bool {
        matches!(self.asked, Asked::Sweep)
    }

    fn writers(&self) -> &OpenWriters {
        self.writers.get_or_init(OpenWriters::scan)
    }
}

/// Why a file is left where it is.
enum Incomplete {
    /// It is open for writing.
    Written(String),
    /// It may still be arriving.
    Young(String),
}

impl Device<'_> {
    /// Takes a file and sends its points off. None where there is nothing to tell: it is gone, or in a sweep no file at all.
    pub(super) fn take(
        &self,
        sub: &Path,
        name: &OsStr,
        call: &Call,
        courier: &mut Courier<'_>,
    ) -> Option<InHand> {
        let told = |report| Some(InHand::Decided(Dealt::left(report)));
        let from = match self.folder_of(sub) {
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
            Err(OpenError::NotAFile(what)) if call.is_sweep() => {
                tracing::debug!("{}: {what}, passed over", shown(from.path().join(name)));
                return None;
            }
            Err(error) => {
                let mut report = self.unread(sub, name, Status::Error, error.to_string());
                report.retryable = true;
                return told(report);
            }
        };
        let lease = open.lease();
        if let Some(incomplete) = self.incomplete(&open, &lease, call) {
            let reason = match incomplete {
                Incomplete::Young(reason) => reason,
                Incomplete::Written(reason) => match &call.asked {
                    // It goes on under its own name, for its own hook or the next sweep.
                    Asked::Missing(wanted) => self.put_back(&from, name, wanted, reason),
                    Asked::Sweep | Asked::Named => reason,
                },
            };
            let mut report = self.unread(sub, name, Status::Skipped, reason);
            report.truncated = looks_truncated(&open).unwrap_or(false);
            return told(report);
        }
        let lease = lease.ok();
        if let Some(outage) = self.shared.sink.outage() {
            let mut report = self.unread(sub, name, Status::Error, outage.to_string());
            report.in_outage = true;
            return Some(InHand::Decided(Dealt {
                report,
                fate: self.fate_in_outage(),
                taken: Some(Taken {
                    lease,
                    open,
                    from,
                    name: name.to_owned(),
                }),
                retake: None,
            }));
        }
        let parcel = courier.begin();
        let same =
            || lease.as_ref().is_none_or(Lease::is_intact) && !open.has_changed().unwrap_or(true);
        let (mut found, read) = ingest::ingest(
            self.shared.progress.reading(&*open.file),
            &self.setup(),
            &same,
            |batch| courier.send(parcel, batch),
        );
        if found.marker.is_none() {
            found.truncated = looks_truncated(&open).unwrap_or(false);
        }
        self.warn_of(&from.path().join(name), &found);
        Some(InHand::Underway(Underway {
            parcel,
            found,
            read,
            sub: sub.to_owned(),
            taken: Taken {
                open,
                lease,
                from,
                name: name.to_owned(),
            },
        }))
    }

    /// Waits for the points of a file and decides what becomes of it.
    pub(super) fn land(&self, in_hand: InHand, courier: &mut Courier<'_>) -> Dealt {
        let Underway {
            parcel,
            found,
            read,
            sub,
            taken,
        } = match in_hand {
            InHand::Decided(dealt) => return dealt,
            InHand::Underway(underway) => underway,
        };
        let landed = courier.land(parcel);
        let result = read.and_then(|()| Ok(landed?));
        let path = taken.from.path().join(&taken.name);
        let mut report = FileReport::read(&path, &self.location, found);
        if let Err(fault) = &result {
            report.status = Status::Error;
            report.error = Some(fault.to_string());
        }
        if self.shared.settings.dry_run {
            return Dealt::left(report);
        }
        // Cut files fail for what they lack, and what they lack may just be arriving.
        let change = taken.change();
        if change != Change::None {
            report.status = Status::Skipped;
            report.error = Some(Fault::Changed.to_string());
            let retake = (change == Change::Marks).then_some((sub, taken.name));
            return Dealt {
                retake,
                ..Dealt::left(report)
            };
        }
        let fate = match result {
            Ok(()) => {
                set_delays(&mut report, &taken.open);
                Fate::Parsed
            }
            Err(Fault::Format(FormatError::Read(_)) | Fault::Sink(Failure::Storage(_))) => {
                report.retryable = true;
                Fate::Stay
            }
            Err(Fault::Format(_) | Fault::Sink(Failure::Partial(_) | Failure::Rejected(_))) => {
                Fate::Error { retryable: false }
            }
            Err(Fault::Sink(Failure::Outage(_))) => {
                report.in_outage = true;
                self.fate_in_outage()
            }
            Err(Fault::Changed | Fault::Sink(Failure::Stopped)) => {
                report.status = Status::Skipped;
                Fate::Stay
            }
        };
        Dealt {
            report,
            fate,
            taken: Some(taken),
            retake: None,
        }
    }

    /// The folder that holds the file: mostly the device's own.
    fn folder_of(&self, sub: &Path) -> io::Result<Arc<Folder>> {
        if sub.as_os_str().is_empty() {
            Ok(Arc::clone(&self.folder))
        } else {
            self.folder.open_below(sub).map(Arc::new)
        }
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
            zones: &settings.zones,
            shape: Shape {
                gzip: self.shared.sink.wants_gzip(settings.gzip),
                lines: settings.batch_lines,
            },
            with_lines: !self.shared.sink.is_nowhere(),
            stop: self.shared.stop,
            progress: self.shared.progress,
        }
    }

    /// Why a file must be left for a later run, if it must.
    fn incomplete(
        &self,
        open: &OpenFile,
        lease: &Result<Lease, LeaseError>,
        call: &Call,
    ) -> Option<Incomplete> {
        let unleased = match lease {
            Ok(_) => None,
            Err(LeaseError::Writer) => Some(None),
            Err(LeaseError::Unavailable(error)) => Some(Some(error)),
        };
        if let Some(unavailable) = unleased {
            let writer = match call.writers().of(open.inode).first() {
                Some(pid) => Some(format!("process {pid}")),
                None if unavailable.is_none() => Some("another process".to_owned()),
                None => None,
            };
            if let Some(writer) = writer {
                return Some(Incomplete::Written(format!(
                    "still open for writing by {writer}; left for the next run"
                )));
            }
        }
        let grace = self.shared.settings.grace;
        let now = i128::from(Utc::now().timestamp_nanos_opt()?);
        let age = now - open.stamp.uploaded_ns();
        if Duration::from_nanos(u64::try_from(age).unwrap_or_default()) >= grace {
            return None;
        }
        if let Some(Some(error)) = unleased
            && call.writers().is_incomplete()
        {
            return Some(Incomplete::Young(format!(
                "younger than {} s, and it cannot be seen whether it is still being written (no lease: {error}; some processes are hidden); left for the next run",
                grace.as_secs()
            )));
        }
        (call.is_sweep() && looks_truncated(open).unwrap_or(true)).then(|| {
            Incomplete::Young(format!(
                "truncated and younger than {} s, so it may still be arriving; left for the next run",
                grace.as_secs()
            ))
        })
    }

    /// Moves a file that is being written in `parsed/` or `error/` back to the device's folder, where it arrived as `wanted`.
    /// Returns what is said of it.
    fn put_back(&self, from: &Folder, name: &OsStr, wanted: &OsStr, reason: String) -> String {
        match from.move_into(name, &self.folder, wanted, 0, |_| Ok(true)) {
            Ok(as_name) => {
                if let Err(error) = from.remove_orphan_sidecar(name) {
                    tracing::debug!("{}: not tidied: {error}", shown(from.path()));
                }
                format!("{reason}; moved back as {}", shown(as_name))
            }
            Err(error) => format!("{reason}; it cannot be moved back: {error}"),
        }
    }

    /// One warning a file and cause, with a count.
    fn warn_of(&self, path: &Path, found: &Found) {
        let warn = |words: String| self.shared.ledger.warn(path, &words);
        if found.truncated {
            warn(match found.container {
                Some(Container::Headed) => "the file is cut off: END_DATA is missing".to_owned(),
                _ => "the file is cut off: what follows its last tab is not taken".to_owned(),
            });
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

/// Whether a file was cut off, by its two ends.
fn looks_truncated(open: &OpenFile) -> io::Result<bool> {
    let mut head = [0; ENDS];
    let read = open.file.read_at(&mut head, 0)?;
    let mut tail = [0; ENDS];
    let start = open.stamp.size.saturating_sub(ENDS as u64);
    let tail_read = open.file.read_at(&mut tail, start)?;
    Ok(Container::looks_truncated(
        &head[..read],
        &tail[..tail_read],
    ))
}

fn set_delays(report: &mut FileReport, open: &OpenFile) {
    let now = Utc::now().timestamp_millis() as f64 / 1e3;
    report.delay_s = report.last_measurement.map(|last| now - last as f64);
    report.arrival_delay_s =
        Some((now - (open.stamp.modified_ns / 1_000_000) as f64 / 1e3).max(0.0));
}
