//! A sweep: finds all device folders and processes them in parallel. See docs/specification.md, section 1.

use super::RunContext;
use super::device::{Device, unlisted_folder};
use super::outcome::{FileRecord, Outcome};
use crate::data_dir::pending_files::{Item, PAGE_SIZE, PendingFiles, is_no_folder, is_tsv};
use crate::data_dir::{DevicePath, EntryKind, is_processed_dir};
use crate::sanitize::sanitize;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Finds all device folders and processes them, `jobs` at a time.
pub(super) fn sweep(context: &RunContext<'_>) {
    let (sender, receiver) = mpsc::sync_channel::<PathBuf>(16);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        if context.progress.is_watched() {
            scope.spawn(|| {
                context
                    .progress
                    .count(&context.settings.data_folder, context.stop)
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
        walk(context, Path::new(""), 0, &sender);
        drop(sender);
    });
}

/// Sends the device folders, at depth three, in the order of their paths to `devices`.
fn walk(
    context: &RunContext<'_>,
    folder: &Path,
    depth: usize,
    devices: &mpsc::SyncSender<PathBuf>,
) {
    let path = context.settings.data_folder.join(folder);
    let unlisted = |error: &io::Error| {
        if depth == 0 || !is_no_folder(error) {
            record_unlisted(context, &path, error);
        }
    };
    let open = match context.data.open_below(folder) {
        Ok(open) => open,
        Err(error) => return unlisted(&error),
    };
    let wanted = |name: &OsStr, kind| match kind {
        EntryKind::File => is_tsv(name),
        EntryKind::Dir => true,
    };
    let mut last = None;
    loop {
        let entries = match open.read_page(last.as_deref(), PAGE_SIZE, wanted) {
            Ok(entries) => entries,
            Err(error) => return unlisted(&error),
        };
        let ended = entries.len() < PAGE_SIZE;
        last = entries.last().map(|entry| entry.name.clone());
        for entry in entries {
            if context.stop.is_requested() {
                return;
            }
            let below = folder.join(&entry.name);
            match entry.kind {
                EntryKind::File => record_misplaced(context, &below),
                EntryKind::Dir if is_processed_dir(&entry.name) => {
                    let path = context.settings.data_folder.join(&below);
                    let message = "folder name is reserved for processed files, so its files are not ingested; rename the folder";
                    context.recorder.warn(&path, message);
                }
                // The receivers live longer than this walk, so `send` does not fail.
                EntryKind::Dir if depth == 2 => drop(devices.send(below)),
                EntryKind::Dir => walk(context, &below, depth + 1, devices),
            }
        }
        if ended {
            return;
        }
    }
}

/// Records that a folder cannot be listed.
fn record_unlisted(context: &RunContext<'_>, folder: &Path, error: &impl std::fmt::Display) {
    context.record(unlisted_folder(folder.to_owned(), None, error));
}

/// Records the error of a file that is not in a device folder. The file stays in place.
fn record_misplaced(context: &RunContext<'_>, file: &Path) {
    let message =
        match DevicePath::of_folder(file.parent().unwrap_or(file), &context.settings.meta_bucket) {
            Err(error) => error.to_string(),
            Ok(_) => return,
        };
    let path = context.settings.data_folder.join(file);
    context.record(FileRecord::unread(path, None, Outcome::Rejected(message)));
}

fn sweep_device(context: &RunContext<'_>, relative: &Path) {
    match DevicePath::of_folder(relative, &context.settings.meta_bucket) {
        Ok(location) => match Device::open(context, location, relative) {
            Ok(device) => device.sweep(),
            Err(error) if is_no_folder(&error) => {
                tracing::info!("{}: skipped: {error}", sanitize(relative));
            }
            Err(error) => {
                let path = context.settings.data_folder.join(relative);
                let message = format!("cannot open the folder: {error}; check its permissions");
                context.record(FileRecord::unread(path, None, Outcome::Rejected(message)));
            }
        },
        Err(error) => {
            // The folder name is not valid, which is an error of each pending file in it.
            let folder = match context.data.open_below(relative) {
                Ok(folder) => Arc::new(folder),
                Err(error) if is_no_folder(&error) => return,
                Err(error) => {
                    let path = context.settings.data_folder.join(relative);
                    return record_unlisted(context, &path, &error);
                }
            };
            for item in PendingFiles::new(&folder, false) {
                match item {
                    Item::File(sub, name) => {
                        let path = folder.path().join(sub).join(name);
                        let message = error.to_string();
                        context.record(FileRecord::unread(path, None, Outcome::Rejected(message)));
                    }
                    Item::Unlisted(sub, error) => {
                        record_unlisted(context, &folder.path().join(sub), &error);
                    }
                    Item::Retry(_) | Item::Sidecar(_) => {}
                }
                if context.stop.is_requested() {
                    return;
                }
            }
        }
    }
}
