//! A sweep: the tree is walked down to the devices, which are dealt with side by side.

use super::device::{Device, unlisted_folder};
use super::{Shared, tell};
use crate::data_dir::pending_files::{CHUNK, Item, Queue, is_no_folder, is_tsv};
use crate::data_dir::{EntryKind, Location, is_done_folder};
use crate::report::{FileReport, Status};
use crate::sanitize::shown;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Walks the tree down to the devices and deals with them, several at a time.
pub(super) fn sweep(shared: &Shared<'_>) {
    let (sender, receiver) = mpsc::sync_channel::<PathBuf>(16);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        if shared.progress.is_watched() {
            scope.spawn(|| {
                shared
                    .progress
                    .count(&shared.settings.data_folder, shared.stop)
            });
        }
        for _ in 0..shared.settings.jobs.get() {
            scope.spawn(|| {
                loop {
                    let next = receiver
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .recv();
                    let Ok(device) = next else { return };
                    if !shared.stop.is_requested() {
                        sweep_device(shared, &device);
                    }
                }
            });
        }
        walk(shared, Path::new(""), 0, &sender);
        drop(sender);
    });
}

/// Goes down to the device folders, at depth three, in the order of their paths.
fn walk(shared: &Shared<'_>, folder: &Path, depth: usize, devices: &mpsc::SyncSender<PathBuf>) {
    let path = shared.settings.data_folder.join(folder);
    let unlisted = |error: &io::Error| {
        if depth == 0 || !is_no_folder(error) {
            tell_unlisted(shared, &path, error);
        }
    };
    let open = match shared.data.open_below(folder) {
        Ok(open) => open,
        Err(error) => return unlisted(&error),
    };
    let wanted = |name: &OsStr, kind| match kind {
        EntryKind::File => is_tsv(name),
        EntryKind::Folder => true,
    };
    let mut last = None;
    loop {
        let entries = match open.read_page(last.as_deref(), CHUNK, wanted) {
            Ok(entries) => entries,
            Err(error) => return unlisted(&error),
        };
        let ended = entries.len() < CHUNK;
        last = entries.last().map(|entry| entry.name.clone());
        for entry in entries {
            if shared.stop.is_requested() {
                return;
            }
            let below = folder.join(&entry.name);
            match entry.kind {
                EntryKind::File => refuse(shared, &below),
                EntryKind::Folder if is_done_folder(&entry.name) => {
                    let path = shared.settings.data_folder.join(&below);
                    let words = "a folder of this name is never entered; give the company, campaign or device another";
                    shared.ledger.warn(&path, words);
                }
                // The receivers outlive the walk.
                EntryKind::Folder if depth == 2 => drop(devices.send(below)),
                EntryKind::Folder => walk(shared, &below, depth + 1, devices),
            }
        }
        if ended {
            return;
        }
    }
}

/// A folder that cannot be listed: files may wait in it.
fn tell_unlisted(shared: &Shared<'_>, folder: &Path, error: &impl std::fmt::Display) {
    let words = unlisted_folder(error);
    tell(
        shared,
        FileReport::unread(folder, None, Status::Error, words),
    );
}

/// A file that belongs to no device, and stays where it is.
fn refuse(shared: &Shared<'_>, file: &Path) {
    let words =
        match Location::of_folder(file.parent().unwrap_or(file), &shared.settings.meta_bucket) {
            Err(error) => error.to_string(),
            Ok(_) => return,
        };
    let path = shared.settings.data_folder.join(file);
    tell(
        shared,
        FileReport::unread(&path, None, Status::Error, words),
    );
}

fn sweep_device(shared: &Shared<'_>, relative: &Path) {
    match Location::of_folder(relative, &shared.settings.meta_bucket) {
        Ok(location) => match Device::open(shared, location, relative) {
            Ok(device) => device.sweep(),
            Err(error) if is_no_folder(&error) => {
                tracing::info!("{}: passed over: {error}", shown(relative));
            }
            Err(error) => {
                let path = shared.settings.data_folder.join(relative);
                let words = format!("the folder cannot be opened: {error}; check its rights");
                tell(
                    shared,
                    FileReport::unread(&path, None, Status::Error, words),
                );
            }
        },
        Err(error) => {
            // Nothing can be written for this folder; each file that waits in it says so.
            let folder = match shared.data.open_below(relative) {
                Ok(folder) => Arc::new(folder),
                Err(error) if is_no_folder(&error) => return,
                Err(error) => {
                    let path = shared.settings.data_folder.join(relative);
                    return tell_unlisted(shared, &path, &error);
                }
            };
            for item in Queue::new(&folder, false) {
                match item {
                    Item::File(sub, name) => {
                        let path = folder.path().join(sub).join(name);
                        let words = error.to_string();
                        tell(
                            shared,
                            FileReport::unread(&path, None, Status::Error, words),
                        );
                    }
                    Item::Unlisted(sub, error) => {
                        tell_unlisted(shared, &folder.path().join(sub), &error);
                    }
                    Item::Retry(_) | Item::Sidecar(_) => {}
                }
                if shared.stop.is_requested() {
                    return;
                }
            }
        }
    }
}
