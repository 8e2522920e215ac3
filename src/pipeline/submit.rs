//! One file is taken: opened, judged whether it has arrived, and its points sent off. Once they have landed, its fate is
//! decided; until then the device's next files are taken.

use super::device::Device;
use super::finish::{Change, ClaimedFile, Outcome, Processed};
use crate::cli::OnOutage;
use crate::data_dir::{Dir, Lease, LeaseError, OpenError, OpenFile, OpenWriters};
use crate::logger_file::{Container, FormatError, HeaderMeta};
use crate::pipeline::ingest::{self, IngestContext, IngestError, ParsedFile};
use crate::points::BatchOptions;
use crate::report::{FileReport, Status};
use crate::sanitize::sanitize;
use crate::sink::WriteError;
use crate::sink::ordered_sender::{FileId, OrderedSender};
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
pub(super) enum Submitted {
    /// Its fate is known.
    Processed(Processed),
    /// Its points are on their way.
    Pending(Pending),
}

/// A file whose points are on their way, or as many as there were before something went wrong.
pub(super) struct Pending {
    file_id: FileId,
    parsed: ParsedFile,
    read: Result<(), IngestError>,
    sub: PathBuf,
    claimed: ClaimedFile,
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
        sender: &mut OrderedSender<'_>,
    ) -> Option<Submitted> {
        let told = |report| Some(Submitted::Processed(Processed::left(report)));
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
                tracing::debug!("{}: {what}, passed over", sanitize(from.path().join(name)));
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
                    Asked::Missing(wanted) => self.restore_name(&from, name, wanted, reason),
                    Asked::Sweep | Asked::Named => reason,
                },
            };
            let mut report = self.unread(sub, name, Status::Skipped, reason);
            report.truncated = looks_truncated(&open).unwrap_or(false);
            return told(report);
        }
        let lease = lease.ok();
        if let Some(outage) = self.context.sink.outage() {
            let mut report = self.unread(sub, name, Status::Error, outage.to_string());
            report.in_outage = true;
            return Some(Submitted::Processed(Processed {
                report,
                outcome: self.outcome_in_outage(),
                claimed: Some(ClaimedFile {
                    lease,
                    open,
                    from,
                    name: name.to_owned(),
                }),
                retake: None,
            }));
        }
        let file_id = sender.begin();
        let same =
            || lease.as_ref().is_none_or(Lease::is_intact) && !open.has_changed().unwrap_or(true);
        let (mut parsed, read) = ingest::ingest(
            self.context.progress.reading(&*open.file),
            &self.ingest_context(),
            &same,
            |batch| sender.send(file_id, batch),
        );
        if parsed.marker.is_none() {
            parsed.truncated = looks_truncated(&open).unwrap_or(false);
        }
        self.warn_about(&from.path().join(name), &parsed);
        Some(Submitted::Pending(Pending {
            file_id,
            parsed,
            read,
            sub: sub.to_owned(),
            claimed: ClaimedFile {
                open,
                lease,
                from,
                name: name.to_owned(),
            },
        }))
    }

    /// Waits for the points of a file and decides what becomes of it.
    pub(super) fn land(&self, submitted: Submitted, sender: &mut OrderedSender<'_>) -> Processed {
        let Pending {
            file_id,
            parsed,
            read,
            sub,
            claimed,
        } = match submitted {
            Submitted::Processed(processed) => return processed,
            Submitted::Pending(underway) => underway,
        };
        let written = sender.wait(file_id);
        let result = read.and_then(|()| Ok(written?));
        let path = claimed.from.path().join(&claimed.name);
        let mut report = FileReport::read(&path, &self.location, parsed);
        if let Err(fault) = &result {
            report.status = Status::Error;
            report.error = Some(fault.to_string());
        }
        if self.context.settings.dry_run {
            return Processed::left(report);
        }
        // Cut files fail for what they lack, and what they lack may just be arriving.
        let change = claimed.change();
        if change != Change::None {
            report.status = Status::Skipped;
            report.error = Some(IngestError::Changed.to_string());
            let retake = (change == Change::Metadata).then_some((sub, claimed.name));
            return Processed {
                retake,
                ..Processed::left(report)
            };
        }
        let outcome = match result {
            Ok(()) => {
                set_delays(&mut report, &claimed.open);
                Outcome::Parsed
            }
            Err(
                IngestError::Format(FormatError::Read(_))
                | IngestError::Sink(WriteError::Storage(_)),
            ) => {
                report.retryable = true;
                Outcome::Stay
            }
            Err(
                IngestError::Format(_)
                | IngestError::Sink(WriteError::Partial(_) | WriteError::Rejected(_)),
            ) => Outcome::Error { retryable: false },
            Err(IngestError::Sink(WriteError::Outage(_))) => {
                report.in_outage = true;
                self.outcome_in_outage()
            }
            Err(IngestError::Changed | IngestError::Sink(WriteError::Stopped)) => {
                report.status = Status::Skipped;
                Outcome::Stay
            }
        };
        Processed {
            report,
            outcome,
            claimed: Some(claimed),
            retake: None,
        }
    }

    /// The folder that holds the file: mostly the device's own.
    fn folder_of(&self, sub: &Path) -> io::Result<Arc<Dir>> {
        if sub.as_os_str().is_empty() {
            Ok(Arc::clone(&self.folder))
        } else {
            self.folder.open_below(sub).map(Arc::new)
        }
    }

    fn outcome_in_outage(&self) -> Outcome {
        match self.context.settings.on_outage {
            OnOutage::Error => Outcome::Error { retryable: true },
            OnOutage::Keep => Outcome::Stay,
        }
    }

    fn ingest_context(&self) -> IngestContext<'_> {
        let settings = self.context.settings;
        IngestContext {
            location: &self.location,
            zones: &settings.zones,
            shape: BatchOptions {
                gzip: self.context.sink.wants_gzip(settings.gzip),
                lines: settings.batch_lines,
            },
            with_lines: !self.context.sink.is_discard(),
            stop: self.context.stop,
            progress: self.context.progress,
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
        let grace = self.context.settings.grace;
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
    fn restore_name(&self, from: &Dir, name: &OsStr, wanted: &OsStr, reason: String) -> String {
        match from.move_into(name, &self.folder, wanted, 0, |_| Ok(true)) {
            Ok(as_name) => {
                if let Err(error) = from.remove_orphan_sidecar(name) {
                    tracing::debug!("{}: not tidied: {error}", sanitize(from.path()));
                }
                format!("{reason}; moved back as {}", sanitize(as_name))
            }
            Err(error) => format!("{reason}; it cannot be moved back: {error}"),
        }
    }

    /// One warning a file and cause, with a count.
    fn warn_about(&self, path: &Path, parsed: &ParsedFile) {
        let warn = |words: String| self.context.recorder.warn(path, &words);
        if parsed.truncated {
            warn(match parsed.container {
                Some(Container::Headed) => "the file is cut off: END_DATA is missing".to_owned(),
                _ => "the file is cut off: what follows its last tab is not taken".to_owned(),
            });
        }
        if let HeaderMeta::Broken(reason) = &parsed.meta {
            warn(format!(
                "the header is not JSON ({}): its time zone is not known",
                sanitize(reason)
            ));
        }
        if let Some(master) = parsed
            .master
            .as_deref()
            .filter(|sn| *sn != self.location.device.as_str())
        {
            warn(format!(
                "the file's master is {:?}, its folder is named {:?}; ingested as {:?}",
                sanitize(master),
                self.location.device.to_string(),
                sanitize(master)
            ));
        }
        let stats = parsed.stats;
        for (count, what) in [
            (
                stats.invalid_timestamps,
                "rows without a valid time, skipped",
            ),
            (
                stats.malformed_rows,
                "rows with more cells than the header, skipped",
            ),
            (stats.invalid_values, "cells without a valid value, skipped"),
            (stats.lines_after_end, "lines after END_DATA, ignored"),
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
