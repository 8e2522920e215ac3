//! A sweep: finds all device folders and processes them in parallel. See docs/specification.md, section 1.

use super::RunContext;
use super::device::{Device, unlisted_folder};
use super::outcome::{FileRecord, Outcome};
use crate::data_dir::pending_files::{Item, PendingFiles, count};
use crate::data_dir::{DeviceItem, DevicePath, devices, is_no_folder};
use crate::sanitize::sanitize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Finds all device folders and processes them, `jobs` at a time.
pub(super) fn sweep(context: &RunContext<'_>) {
    let (sender, receiver) = mpsc::sync_channel::<PathBuf>(16);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        if context.progress.is_watched() {
            scope.spawn(|| {
                if let Some((files, bytes)) = count(&context.settings.data_folder, context.stop) {
                    context.progress.set_total(files, bytes);
                }
            });
        }
        for _ in 0..context.settings.jobs.get() {
            scope.spawn(|| {
                loop {
                    let next = receiver
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .recv();
                    let Ok(device) = next else { return };
                    if !context.stop.is_requested() {
                        sweep_device(context, &device);
                    }
                }
            });
        }
        send_devices(context, &sender);
        drop(sender);
    });
}

/// Sends the device folders, in the order of their paths, to `workers`. What is misplaced above them is recorded.
fn send_devices(context: &RunContext<'_>, workers: &mpsc::SyncSender<PathBuf>) {
    for item in devices(context.data) {
        if context.stop.is_requested() {
            return;
        }
        match item {
            // The receivers live longer than this loop, so `send` does not fail.
            DeviceItem::Device(path) => drop(workers.send(path)),
            DeviceItem::Misplaced(file) => record_misplaced(context, &file),
            DeviceItem::Reserved(path) => {
                let path = context.settings.data_folder.join(path);
                let message = "folder name is reserved for processed files, so its files are not ingested; rename the folder";
                context.recorder.warn(&path, message);
            }
            DeviceItem::Unlisted(path, error) => {
                let path = context.settings.data_folder.join(path);
                context.record(unlisted_folder(path, None, &error));
            }
            DeviceItem::Empty(_) => {}
        }
    }
}

/// Records the error of a file that is not in a device folder. The file stays in place.
fn record_misplaced(context: &RunContext<'_>, file: &Path) {
    if let Err(error) =
        DevicePath::of_folder(file.parent().unwrap_or(file), &context.settings.meta_bucket)
    {
        let path = context.settings.data_folder.join(file);
        let outcome = Outcome::Rejected(error.to_string());
        context.record(FileRecord::unread(path, None, outcome));
    }
}

fn sweep_device(context: &RunContext<'_>, relative: &Path) {
    let path = context.settings.data_folder.join(relative);
    let invalid_name = match DevicePath::of_folder(relative, &context.settings.meta_bucket) {
        Err(error) => error,
        Ok(location) => {
            return match Device::open(context, location, relative) {
                Ok(device) => device.sweep(),
                Err(error) if is_no_folder(&error) => {
                    tracing::info!("{}: skipped: {error}", sanitize(relative));
                }
                Err(error) => {
                    let outcome = Outcome::Retryable(format!(
                        "cannot open the folder: {error}; check its permissions"
                    ));
                    context.record(FileRecord::unread(path, None, outcome));
                }
            };
        }
    };
    let folder = match context.data.open_below(relative) {
        Ok(folder) => Arc::new(folder),
        Err(error) if is_no_folder(&error) => return,
        Err(error) => return context.record(unlisted_folder(path, None, &error)),
    };
    for item in PendingFiles::new(&folder, false) {
        match item {
            Item::File(sub, name) => {
                let outcome = Outcome::Rejected(invalid_name.to_string());
                let path = path.join(sub).join(name);
                context.record(FileRecord::unread(path, None, outcome));
            }
            Item::Unlisted(sub, error) => {
                context.record(unlisted_folder(path.join(sub), None, &error));
            }
            Item::Retry(_) | Item::Sidecar(_) => {}
        }
        context.meta.send_full_blocks();
        if context.stop.is_requested() {
            return;
        }
    }
}
