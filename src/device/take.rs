//! One file is taken: opened, judged whether it has arrived, and its points sent off. Once they have landed, its fate is
//! decided; until then the device's next files are taken.

use super::Device;
use super::place::{Dealt, Fate, Taken};
use crate::batch::Shape;
use crate::cli::OnOutage;
use crate::courier::{Courier, Parcel};
use crate::folder::{Folder, OpenError, OpenFile, Writers};
use crate::ingest::{self, Fault, Found, Setup};
use crate::logger_file::{Container, FormatError, HeaderMeta};
use crate::report::{FileReport, Status};
use crate::shown::shown;
use crate::sink::Failure;
use chrono::Utc;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
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
    taken: Taken,
}

impl Device<'_> {
    /// Takes a file and sends its points off. None where there is nothing to tell: it is gone, or in a sweep no file at all.
    /// `writers` are those that the sweep has found; a named file is taken without asking.
    pub(super) fn take(
        &self,
        sub: &Path,
        name: &OsStr,
        writers: Option<&Writers>,
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
            let mut report = self.unread(sub, name, Status::Skipped, reason);
            report.truncated = looks_truncated(&open).unwrap_or(false);
            return told(report);
        }
        // A sweep takes no file that anybody writes; of a named one it must be known who does, to see later who began.
        let writers = match writers {
            None if !self.shared.settings.dry_run => {
                Writers::now_of(&[open.inode]).of(open.inode).to_vec()
            }
            _ => Vec::new(),
        };
        if let Some(outage) = self.shared.sink.outage() {
            let mut report = self.unread(sub, name, Status::Error, outage.to_string());
            report.in_outage = true;
            return Some(InHand::Decided(Dealt {
                report,
                fate: self.fate_in_outage(),
                taken: Some(Taken {
                    writers,
                    open,
                    from,
                    name: name.to_owned(),
                }),
            }));
        }
        let parcel = courier.begin();
        let same = || !open.has_changed().unwrap_or(true);
        let (mut found, read) = ingest::ingest(
            self.shared.progress.reading(&open.file),
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
            taken: Taken {
                open,
                writers,
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
        if taken.open.has_changed().unwrap_or(true) {
            report.status = Status::Skipped;
            report.error = Some(Fault::Changed.to_string());
            return Dealt::left(report);
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
            zone: settings.zone,
            shape: Shape {
                gzip: self.shared.sink.wants_gzip(settings.gzip),
                lines: settings.batch_lines,
            },
            with_lines: !self.shared.sink.is_nowhere(),
            stop: self.shared.stop,
            progress: self.shared.progress,
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
        if writers.may_miss_one_of(open.owner) {
            return Some(format!(
                "it is younger than {} s, and whether it is still being written cannot be seen: other users' processes are hidden; left for the next run",
                grace.as_secs()
            ));
        }
        looks_truncated(open).unwrap_or(true).then(|| {
            format!("it is cut off and younger than {} s, so it may still be arriving; left for the next run", grace.as_secs())
        })
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
    let start = open.size.saturating_sub(ENDS as u64);
    let tail_read = open.file.read_at(&mut tail, start)?;
    Ok(Container::looks_truncated(
        &head[..read],
        &tail[..tail_read],
    ))
}

fn set_delays(report: &mut FileReport, open: &OpenFile) {
    let now = Utc::now().timestamp_millis() as f64 / 1e3;
    report.delay_s = report.last_measurement.map(|last| now - last as f64);
    report.arrival_delay_s = Some((now - (open.modified_ns / 1_000_000) as f64 / 1e3).max(0.0));
}
