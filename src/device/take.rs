//! One file is taken: opened, judged whether it has arrived, ingested, and its fate decided.

use super::Device;
use super::place::{Dealt, Fate, Taken};
use crate::batch::Shape;
use crate::cli::OnOutage;
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

/// The end of a file that is searched for its end marker, in bytes.
const TAIL: usize = 4096;

impl Device<'_> {
    /// Takes a file, ingests it and moves it. None where there is nothing to tell: it is gone, or in a sweep no file at all.
    /// `writers` are those that the sweep has found; a named file is taken without asking.
    pub(super) fn deal_with_file(
        &self,
        sub: &Path,
        name: &OsStr,
        writers: Option<&Writers>,
    ) -> Option<Dealt> {
        let told = |report| Some(Dealt::left(report));
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
            return told(self.unread(sub, name, Status::Skipped, reason));
        }
        if let Some(outage) = self.shared.sink.outage() {
            let mut report = self.unread(sub, name, Status::Error, outage.to_string());
            report.in_outage = true;
            return Some(Dealt {
                report,
                fate: self.fate_in_outage(),
                taken: Some(Taken {
                    writers: match writers {
                        Some(_) => Vec::new(),
                        None => Writers::now_of(&[open.inode]).of(open.inode).to_vec(),
                    },
                    open,
                    from,
                    name: name.to_owned(),
                }),
            });
        }
        let path = from.path().join(name);
        let progress = self.shared.progress;
        let same = || !open.has_changed().unwrap_or(true);
        let ((found, result), writing) = std::thread::scope(|scope| {
            // Who writes to a named file as it is taken is looked up while the server takes its points.
            let look = (writers.is_none() && !self.shared.settings.dry_run)
                .then(|| scope.spawn(|| Writers::now_of(&[open.inode])));
            let ingested = ingest::ingest(progress.reading(&open.file), &self.setup(), &same);
            let writers = look.and_then(|look| look.join().ok()).unwrap_or_default();
            (ingested, writers.of(open.inode).to_vec())
        });
        self.warn_of(&path, &found);
        let mut report = FileReport::read(&path, &self.location, found);
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
        Some(Dealt {
            report,
            fate,
            taken: Some(Taken {
                open,
                writers: writing,
                from,
                name: name.to_owned(),
            }),
        })
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
            sink: self.shared.sink,
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
        if writers.may_miss_one_of(open.owner) {
            return Some(format!(
                "it is younger than {} s, and whether it is still being written cannot be seen: other users' processes are hidden; left for the next run",
                grace.as_secs()
            ));
        }
        looks_truncated().unwrap_or(true).then(|| {
            format!("it is cut off and younger than {} s, so it may still be arriving; left for the next run", grace.as_secs())
        })
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

fn set_delays(report: &mut FileReport, open: &OpenFile) {
    let now = Utc::now().timestamp_millis() as f64 / 1e3;
    report.delay_s = report.last_measurement.map(|last| now - last as f64);
    report.arrival_delay_s = Some((now - (open.modified_ns / 1_000_000) as f64 / 1e3).max(0.0));
}
