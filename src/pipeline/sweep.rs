//! A sweep: finds the device folders and processes them in parallel. See docs/specification.md, section 1.

use super::RunContext;
use super::device::{Device, unlisted_folder};
use super::outcome::{FileRecord, Outcome};
use crate::data_dir::pending_files::{Item, PendingFiles, count};
use crate::data_dir::{DeviceItem, DevicePath, DevicePathError, devices_of, is_no_folder};
use crate::remedy::{MORE_THREADS, remedy};
use crate::sanitize::sanitize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::Builder;

/// Why the files of a folder above the device folders that is named `parsed` or `error` are not ingested.
pub(super) const RESERVED: &str =
    "folder name is reserved for processed files, so its files are not ingested; rename the folder";

/// Maximum number of folders with rejected files that have a record each. All others have one record together.
const MAX_REJECTED_FOLDERS: usize = 100;

/// Finds the device folders below some folders, relative to the data folder, and processes them, `jobs` at a time. None of
/// the folders may be below another one.
pub(super) fn sweep(context: &RunContext<'_>, folders: &[PathBuf]) {
    let (sender, receiver) = mpsc::sync_channel::<PathBuf>(16);
    let receiver = Mutex::new(receiver);
    let rejected = RejectedFolders::default();
    std::thread::scope(|scope| {
        if context.progress.is_watched() && context.settings.shard.is_none() {
            // Without this thread there is no estimate of the remaining time.
            let _ = Builder::new().spawn_scoped(scope, || {
                let counted = folders.iter().try_fold((0, 0), |(files, bytes), folder| {
                    let folder = context.settings.data_folder.join(folder);
                    let (more_files, more_bytes) = count(&folder, context.stop)?;
                    Some((files + more_files, bytes + more_bytes))
                });
                if let Some((files, bytes)) = counted {
                    context.progress.set_total(files, bytes);
                }
            });
        }
        let jobs = context.limits.jobs;
        let mut workers = 0;
        while workers < jobs {
            let worker = Builder::new().spawn_scoped(scope, || {
                loop {
                    let next = receiver
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .recv();
                    let Ok(device) = next else { return };
                    sweep_device(context, &device, &rejected);
                }
            });
            if let Err(error) = worker {
                tracing::warn!(
                    "{workers} of {jobs} threads can be started: {error}; devices wait for each other, {MORE_THREADS}"
                );
                break;
            }
            workers += 1;
        }
        for_each_device(context, folders, &rejected, |device| {
            if workers == 0 {
                sweep_device(context, &device, &rejected);
            } else {
                // The receivers live longer than this loop, so `send` does not fail.
                let _ = sender.send(device);
            }
        });
        drop(sender);
    });
    rejected.record_others(context);
}

/// Calls `each` with the device folders, in the order of their paths. What is misplaced above them is recorded.
fn for_each_device(
    context: &RunContext<'_>,
    folders: &[PathBuf],
    rejected: &RejectedFolders,
    each: impl Fn(PathBuf),
) {
    let mut misplaced: BTreeMap<PathBuf, RejectedFiles> = BTreeMap::new();
    let items = folders
        .iter()
        .flat_map(|folder| devices_of(context.data, folder, context.settings.shard.as_ref()));
    for item in items {
        if context.stop.is_requested() {
            return;
        }
        match item {
            DeviceItem::Device(path) => each(path),
            DeviceItem::Misplaced(file) => {
                let folder = file.parent().unwrap_or(Path::new("")).to_owned();
                if misplaced.len() < MAX_REJECTED_FOLDERS || misplaced.contains_key(&folder) {
                    misplaced.entry(folder).or_default().add(file);
                } else {
                    let mut files = RejectedFiles::default();
                    files.add(file);
                    rejected.add_other(files);
                }
            }
            DeviceItem::Reserved(path) => {
                let path = context.settings.data_folder.join(path);
                context.recorder.warn(&path, RESERVED);
            }
            DeviceItem::Unlisted(path, error) => {
                let path = context.settings.data_folder.join(path);
                context.record_and_send(unlisted_folder(path, None, &error));
            }
            DeviceItem::Empty(_) | DeviceItem::Other(_) => {}
        }
    }
    for (folder, files) in misplaced {
        if let Err(error) = DevicePath::of_folder(&folder, &context.settings.meta_bucket) {
            rejected.add(context, files, &error);
        }
    }
}

/// The files of a folder that are rejected for the same reason. They stay in place and are rejected by every sweep, so
/// there is one record for all of them: an SFTP user could fill the reports and the meta bucket otherwise.
#[derive(Default)]
struct RejectedFiles {
    /// The first file, relative to the data folder.
    first: PathBuf,
    count: u64,
}

impl RejectedFiles {
    fn add(&mut self, file: PathBuf) {
        if self.count == 0 {
            self.first = file;
        }
        self.count += 1;
    }

    fn record(self, context: &RunContext<'_>, reason: &str, place: &str) {
        let message = match self.count {
            0 => return,
            1 => reason.to_owned(),
            count => format!("{reason} (and {} more in {place})", count - 1),
        };
        let path = context.settings.data_folder.join(self.first);
        let outcome = Outcome::Rejected(message);
        context.record_and_send(FileRecord::unread(path, None, outcome));
    }
}

/// The folders with rejected files. Those after the first [`MAX_REJECTED_FOLDERS`] have one record together.
#[derive(Default)]
struct RejectedFolders {
    recorded: AtomicUsize,
    others: Mutex<RejectedFiles>,
}

impl RejectedFolders {
    /// Records the files of a folder that are rejected because of `error`, now or with those of other folders.
    fn add(&self, context: &RunContext<'_>, files: RejectedFiles, error: &DevicePathError) {
        if files.count == 0 {
            return;
        }
        if self.recorded.fetch_add(1, Ordering::Relaxed) < MAX_REJECTED_FOLDERS {
            files.record(context, &error.to_string(), "this folder");
        } else {
            self.add_other(files);
        }
    }

    fn add_other(&self, files: RejectedFiles) {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if others.count == 0 {
            others.first = files.first;
        }
        others.count += files.count;
    }

    fn record_others(self, context: &RunContext<'_>) {
        let others = self.others.into_inner();
        others.unwrap_or_else(PoisonError::into_inner).record(
            context,
            "not in a device folder with a valid path, as in more than 100 other folders; run powerview status to list them",
            "such folders",
        );
    }
}

fn sweep_device(context: &RunContext<'_>, relative: &Path, rejected: &RejectedFolders) {
    if context.stop.is_requested() {
        return;
    }
    let location = match DevicePath::of_folder(relative, &context.settings.meta_bucket) {
        Ok(location) => location,
        Err(error) => return reject_files(context, relative, &error, rejected),
    };
    match Device::open(context, location, relative) {
        Ok(device) => device.sweep(),
        Err(error) if is_no_folder(&error) => {
            tracing::info!("{}: skipped: {error}", sanitize(relative));
        }
        Err(error) => {
            let path = context.settings.data_folder.join(relative);
            let outcome = Outcome::Retryable(format!(
                "cannot open the folder: {error}; {}",
                remedy(&error, "check its permissions")
            ));
            context.record_and_send(FileRecord::unread(path, None, outcome));
        }
    }
}

/// Records `error` for the pending files of a device folder whose path is not valid. The files stay in place.
fn reject_files(
    context: &RunContext<'_>,
    relative: &Path,
    error: &DevicePathError,
    rejected: &RejectedFolders,
) {
    let path = context.settings.data_folder.join(relative);
    let folder = match context.data.open_below(relative) {
        Ok(folder) => Arc::new(folder),
        Err(error) if is_no_folder(&error) => return,
        Err(error) => return context.record_and_send(unlisted_folder(path, None, &error)),
    };
    let mut files = RejectedFiles::default();
    for item in PendingFiles::new(&folder, false) {
        match item {
            Item::File(sub, name) => files.add(relative.join(sub).join(name)),
            Item::Unlisted(sub, error) => {
                context.record_and_send(unlisted_folder(path.join(sub), None, &error.into()));
            }
            Item::Retry(_) | Item::Sidecar(_) => {}
        }
        if context.stop.is_requested() {
            return;
        }
    }
    rejected.add(context, files, error);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use crate::config::{Environment, Settings};
    use crate::data_dir::Dir;
    use crate::pipeline::{Limits, SummaryState};
    use crate::report::{Progress, RUN_MEASUREMENT, ReportTarget, RunHead, RunRecorder};
    use crate::shutdown::Shutdown;
    use crate::sink::{MetaSender, Sink, UnsentPoints};
    use clap::Parser as _;

    /// More files than one block of meta points holds.
    const FILES: u32 = 1_000;

    /// Sweeps a data folder with many files in `folder`, and returns the number of meta points that were sent before
    /// the end of the run.
    fn points_sent_during_sweep(folder: &str, is_locked: bool) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let (data, out) = (dir.path().join("data"), dir.path().join("out"));
        std::fs::create_dir_all(data.join(folder)).unwrap();
        for number in 0..FILES {
            std::fs::write(data.join(folder).join(format!("{number}.tsv")), "").unwrap();
        }
        let args = [
            Path::new("powerview"),
            Path::new("--dataFolder"),
            &data,
            Path::new("--line-protocol-dir"),
            &out,
        ];
        let env = Environment::of([("TSV_TIMEZONE", "UTC"), ("TSV_LOCK_WAIT_S", "0")]);
        let settings = Settings::resolve(&Cli::parse_from(args).ingest, &env).unwrap();
        let stop = Shutdown::default();
        let data = Arc::new(Dir::open(&settings.data_folder).unwrap());
        let _lock = is_locked.then(|| {
            let folder = data.open_below(Path::new(folder)).unwrap();
            folder.lock(settings.lock_wait, &stop).unwrap()
        });
        let sink = Sink::open(&settings.destination, &stop).unwrap();
        let head = RunHead::now(&settings.data_folder, false);
        let reports = dir.path().join("reports");
        let unsent = UnsentPoints::new(&reports, head.file_stem(), RUN_MEASUREMENT);
        let target = ReportTarget::Dir(reports);
        let context = RunContext {
            settings: &settings,
            limits: Limits::new(settings.jobs).unwrap(),
            head: &head,
            sink: &sink,
            meta: &MetaSender::new(&sink, &settings.meta_bucket, unsent),
            stop: &stop,
            data: &data,
            recorder: &RunRecorder::open(target, &head),
            progress: &Progress::none(),
            summaries: SummaryState::default(),
        };
        sweep(&context, &[PathBuf::new()]);
        let sent = std::fs::read_to_string(out.join("powerview_meta.lp")).unwrap_or_default();
        sent.lines().count()
    }

    #[test]
    fn points_about_files_that_are_not_ingested_do_not_accumulate() {
        let sent = points_sent_during_sweep("company/campaign/device", true);
        assert!(sent > FILES as usize / 2, "{sent}");
    }
}
