//! A sweep: the tree is walked down to the devices, which are dealt with side by side.

use super::device::{Device, unlisted_folder};
use super::{RunContext, tell};
use crate::data_dir::pending_files::{Item, PAGE_SIZE, PendingFiles, is_no_folder, is_tsv};
use crate::data_dir::{DevicePath, EntryKind, is_processed_dir};
use crate::report::{FileReport, Status};
use crate::sanitize::sanitize;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Walks the tree down to the devices and deals with them, several at a time.
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

/// Goes down to the device folders, at depth three, in the order of their paths.
fn walk(
    context: &RunContext<'_>,
    folder: &Path,
    depth: usize,
    devices: &mpsc::SyncSender<PathBuf>,
) {
    let path = context.settings.data_folder.join(folder);
    let unlisted = |error: &io::Error| {
        if depth == 0 || !is_no_folder(error) {
            tell_unlisted(context, &path, error);
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
                EntryKind::File => refuse(context, &below),
                EntryKind::Dir if is_processed_dir(&entry.name) => {
                    let path = context.settings.data_folder.join(&below);
                    let words = "a folder of this name is never entered; give the company, campaign or device another";
                    context.recorder.warn(&path, words);
                }
                // The receivers outlive the walk.
                EntryKind::Dir if depth == 2 => drop(devices.send(below)),
                EntryKind::Dir => walk(context, &below, depth + 1, devices),
            }
        }
        if ended {
            return;
        }
    }
}

/// A folder that cannot be listed: files may wait in it.
fn tell_unlisted(context: &RunContext<'_>, folder: &Path, error: &impl std::fmt::Display) {
    let words = unlisted_folder(error);
    tell(
        context,
        FileReport::unread(folder, None, Status::Error, words),
    );
}

/// A file that belongs to no device, and stays where it is.
fn refuse(context: &RunContext<'_>, file: &Path) {
    let words =
        match DevicePath::of_folder(file.parent().unwrap_or(file), &context.settings.meta_bucket) {
            Err(error) => error.to_string(),
            Ok(_) => return,
        };
    let path = context.settings.data_folder.join(file);
    tell(
        context,
        FileReport::unread(&path, None, Status::Error, words),
    );
}

fn sweep_device(context: &RunContext<'_>, relative: &Path) {
    match DevicePath::of_folder(relative, &context.settings.meta_bucket) {
        Ok(location) => match Device::open(context, location, relative) {
            Ok(device) => device.sweep(),
            Err(error) if is_no_folder(&error) => {
                tracing::info!("{}: passed over: {error}", sanitize(relative));
            }
            Err(error) => {
                let path = context.settings.data_folder.join(relative);
                let words = format!("the folder cannot be opened: {error}; check its rights");
                tell(
                    context,
                    FileReport::unread(&path, None, Status::Error, words),
                );
            }
        },
        Err(error) => {
            // Nothing can be written for this folder; each file that waits in it says so.
            let folder = match context.data.open_below(relative) {
                Ok(folder) => Arc::new(folder),
                Err(error) if is_no_folder(&error) => return,
                Err(error) => {
                    let path = context.settings.data_folder.join(relative);
                    return tell_unlisted(context, &path, &error);
                }
            };
            for item in PendingFiles::new(&folder, false) {
                match item {
                    Item::File(sub, name) => {
                        let path = folder.path().join(sub).join(name);
                        let words = error.to_string();
                        tell(
                            context,
                            FileReport::unread(&path, None, Status::Error, words),
                        );
                    }
                    Item::Unlisted(sub, error) => {
                        tell_unlisted(context, &folder.path().join(sub), &error);
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
