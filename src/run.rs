//! A run: the tree is walked, devices are dealt with side by side, the report ends it.

use crate::config::Settings;
use crate::device::{Device, Shared, unlisted_folder};
use crate::environment::ConfigError;
use crate::folder::{EntryKind, Folder};
use crate::ledger::{Ledger, Summary};
use crate::names::{Location, is_done_folder};
use crate::progress::Progress;
use crate::queue::{CHUNK, Item, Queue, is_no_folder, is_tsv};
use crate::report::{FileReport, Status};
use crate::shown::shown;
use crate::sink::Sink;
use crate::stop::Stop;
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Ingests what the settings ask for.
///
/// # Errors
/// Only where the run cannot begin; what goes wrong with a file is in the summary.
pub fn run(settings: &Settings, stop: &Stop, progress: &Progress) -> anyhow::Result<Summary> {
    let data = Folder::open(&settings.data_folder).map_err(|error| {
        ConfigError(format!(
            "the data folder {} cannot be opened: {error}; check its rights",
            shown(&settings.data_folder)
        ))
    })?;
    let sink = Sink::open(settings, stop)?;
    let ledger = Ledger::open(settings);
    let shared = Shared {
        settings,
        sink: &sink,
        stop,
        data: &data,
        ledger: &ledger,
        progress,
    };
    if settings.files.is_empty() {
        sweep(&shared);
    } else {
        for file in &settings.files {
            if stop.is_requested() {
                break;
            }
            take_named(&shared, file);
        }
    }
    progress.finish();
    Ok(ledger.finish(&sink))
}

/// Walks the tree down to the devices and deals with them, several at a time.
fn sweep(shared: &Shared<'_>) {
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

fn tell(shared: &Shared<'_>, report: FileReport) {
    shared.ledger.add(report);
    shared.ledger.send_meta(shared.sink);
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

/// Deals with a file that somebody named.
fn take_named(shared: &Shared<'_>, given: &Path) {
    let told = |words: String| {
        tell(
            shared,
            FileReport::unread(given, None, Status::Error, words),
        )
    };
    let settings = shared.settings;
    let (folder, name) =
        match folder_and_name(&settings.data_folder, &settings.data_folder_given, given) {
            Ok(found) => found,
            Err(words) => return told(words),
        };
    let location = match Location::of_folder(&folder, &shared.settings.meta_bucket) {
        Ok(location) => location,
        Err(error) => return told(error.to_string()),
    };
    let device: PathBuf = folder.iter().take(3).collect();
    let sub: PathBuf = folder.iter().skip(3).collect();
    match Device::open(shared, location, &device) {
        Ok(device) => device.take_named(&sub, &name),
        Err(error) => told(format!(
            "its folder cannot be opened: {error}; check the path"
        )),
    }
}

/// The folder of a named file below the data folder, and its name. The way there must not lead over a link that somebody
/// made inside the data folder: it could lead into another company.
fn folder_and_name(
    data: &Path,
    given_data: &Path,
    given: &Path,
) -> Result<(PathBuf, std::ffi::OsString), String> {
    let absolute =
        std::path::absolute(given).map_err(|error| format!("its path cannot be used: {error}"))?;
    let name = match absolute.components().next_back() {
        Some(Component::Normal(name)) => name.to_owned(),
        _ => return Err("its path names no file; check it".to_owned()),
    };
    if !name
        .to_string_lossy()
        .to_ascii_lowercase()
        .ends_with(".tsv")
    {
        return Err(
            "its name does not end in .tsv, so it is no logger's file; it stays where it is"
                .to_owned(),
        );
    }
    let parent = absolute.parent().unwrap_or(&absolute);
    let resolved = parent
        .canonicalize()
        .map_err(|error| format!("its folder cannot be found: {error}; check the path"))?;
    let Ok(relative) = resolved.strip_prefix(data) else {
        return Err(format!(
            "it lies outside the data folder {}; nothing is done",
            shown(data)
        ));
    };
    // However the data folder itself was reached, below it each part of the way must be what it says.
    let spelled = without_detours(parent);
    let spelled_out = [data, given_data]
        .into_iter()
        .find_map(|data| spelled.strip_prefix(data).ok())
        .map_or_else(|| spelled.ends_with(relative), |below| below == relative);
    if !spelled_out {
        return Err(
            "the way to it leads over a symbolic link; name it by its real path".to_owned(),
        );
    }
    Ok((relative.to_owned(), name))
}

/// The path as it is spelled, each `..` with the folder before it taken out.
fn without_detours(path: &Path) -> PathBuf {
    let mut spelled = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                spelled.pop();
            }
            Component::CurDir => {}
            part => spelled.push(part),
        }
    }
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_named_file_must_lie_below_the_data_folder_by_its_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let data = root.join("data");
        std::fs::create_dir_all(data.join("a/s/1/parsed")).unwrap();
        std::fs::create_dir_all(data.join("b/s")).unwrap();
        std::fs::create_dir_all(root.join("other/a/s/1")).unwrap();
        symlink(data.join("a/s/1"), data.join("b/s/1")).unwrap();
        symlink(&data, root.join("alias")).unwrap();
        let found = |path: &str| {
            folder_and_name(&data, &root.join("alias"), &root.join(path)).map(|(folder, _)| folder)
        };
        assert_eq!(found("data/a/s/1/x.tsv"), Ok("a/s/1".into()));
        assert_eq!(found("data/a/s/1/parsed/x.tsv"), Ok("a/s/1/parsed".into()));
        assert_eq!(found("alias/a/s/1/x.tsv"), Ok("a/s/1".into()));
        assert_eq!(found("data/a/../b/s/../../a/s/1/x.tsv"), Ok("a/s/1".into()));
        assert!(found("data/b/s/1/../1/x.tsv").is_err(), "a link, and back");
        assert!(
            found("data/b/s/1/x.tsv").is_err(),
            "a link into another company"
        );
        symlink(&data, data.join("b/a")).unwrap();
        for way in ["data/b/a/a/s/1/x.tsv", "alias/b/a/a/s/1/x.tsv"] {
            assert!(found(way).is_err(), "{way}: a link inside the data folder");
        }
        assert!(found("other/a/s/1/x.tsv").is_err());
        assert!(found("data/../other/a/s/1/x.tsv").is_err());
        assert!(found("data/a/s/1/x.txt").is_err());
        assert!(found("data/a/s/2/x.tsv").is_err());
    }
}
