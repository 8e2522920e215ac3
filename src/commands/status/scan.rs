//! What the folders of each device hold. Each file is listed and looked at from outside; of the newest few, head and tail are
//! read.

use crate::data_dir::pending_files::{Item, PAGE_SIZE, PendingFiles, is_no_folder, is_tsv};
use crate::data_dir::{Dir, EntryKind, OpenError};
use crate::data_dir::{ERROR, PARSED, is_processed_dir};
use crate::logger_file::{Container, last_instant};
use crate::sanitize::sanitize;
use crate::time_zone::FileZones;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// How many of the newest files are opened.
pub const NEWEST: usize = 3;

/// What is read of the head and of the tail of a file, in bytes.
const BLOCK: usize = 16 * 1024;

/// What was found of a device.
#[derive(Debug, Default)]
pub struct DeviceScan {
    /// Below the data folder: company, campaign, device; shorter where there is no device.
    pub path: PathBuf,
    /// Why it could not be looked into.
    pub unreadable: Option<String>,
    /// Files that wait.
    pub waiting: u64,
    /// When the one that waits longest arrived.
    pub oldest_waiting: Option<SystemTime>,
    /// Files in `error/` that may be tried again.
    pub errors_retryable: u64,
    /// The others there.
    pub errors_other: u64,
    /// The newest files, the newest first.
    pub newest: Vec<Newest>,
}

/// One of the newest files.
#[derive(Debug)]
pub struct Newest {
    /// Its name.
    pub name: OsString,
    /// Its folder below the device's.
    pub sub: PathBuf,
    /// Its last change.
    pub time: SystemTime,
    /// The last instant in it, in seconds since 1970.
    pub last_measurement: Option<i64>,
    /// Whether it is cut off.
    pub truncated: bool,
}

/// All devices below the data folder, and campaigns without any.
pub fn all(data: &Path, zones: &FileZones) -> Vec<DeviceScan> {
    let mut found = Vec::new();
    descend(data, Path::new(""), 0, zones, &mut found);
    found
}

fn descend(
    data: &Path,
    relative: &Path,
    depth: usize,
    zones: &FileZones,
    found: &mut Vec<DeviceScan>,
) {
    if depth == 3 {
        found.push(device(data, relative, zones));
        return;
    }
    let wanted = |name: &std::ffi::OsStr, kind| kind == EntryKind::Dir && !is_processed_dir(name);
    let folders = match Dir::open(data)
        .and_then(|data| data.open_below(relative))
        .and_then(|folder| folder.read_page(None, usize::MAX, wanted))
    {
        Ok(folders) => folders,
        Err(error) if depth > 0 && is_no_folder(&error) => return,
        Err(error) => {
            found.push(DeviceScan {
                path: relative.to_owned(),
                unreadable: Some(sanitize(error.to_string())),
                ..DeviceScan::default()
            });
            return;
        }
    };
    if depth > 0 && folders.is_empty() {
        found.push(DeviceScan {
            path: relative.to_owned(),
            ..DeviceScan::default()
        });
    }
    for folder in folders {
        descend(data, &relative.join(folder.name), depth + 1, zones, found);
    }
}

fn device(data: &Path, relative: &Path, zones: &FileZones) -> DeviceScan {
    let mut found = DeviceScan {
        path: relative.to_owned(),
        ..DeviceScan::default()
    };
    let look = |found: &mut DeviceScan| -> io::Result<()> {
        let folder = Arc::new(Dir::open(data)?.open_below(relative)?);
        waiting(&folder, found)?;
        for sub in [PARSED, ERROR] {
            match folder.open_below(Path::new(sub)) {
                Ok(done) => list(&done, Path::new(sub), found)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        for newest in &mut found.newest {
            let folder = folder.open_below(&newest.sub)?;
            match folder.open_file(&newest.name) {
                Ok(open) => newest.look_inside(&open.file, open.stamp.size, zones)?,
                Err(OpenError::Io(error)) => {
                    return Err(at(&newest.sub.join(&newest.name), &error));
                }
                Err(OpenError::Gone | OpenError::NotAFile(_)) => {}
            }
        }
        Ok(())
    };
    if let Err(error) = look(&mut found) {
        found.unreadable = Some(sanitize(error.to_string()));
    }
    found
}

/// The files that wait.
fn waiting(folder: &Arc<Dir>, found: &mut DeviceScan) -> io::Result<()> {
    for item in PendingFiles::new(folder, false) {
        let (sub, name) = match item {
            Item::File(sub, name) => (sub, name),
            Item::Unlisted(sub, error) => return Err(at(&sub, &error)),
            Item::Retry(_) | Item::Sidecar(_) => continue,
        };
        let below = match folder.open_below(&sub) {
            Ok(below) => below,
            Err(error) if is_no_folder(&error) => continue,
            Err(error) => return Err(at(&sub, &error)),
        };
        let Some(time) = below.modified(&name)? else {
            continue;
        };
        found.waiting += 1;
        let oldest = found.oldest_waiting.get_or_insert(time);
        *oldest = time.min(*oldest);
        if let Err(OpenError::Io(error)) = below.open_file(&name) {
            return Err(at(&sub.join(&name), &error));
        }
        found.keep(sub, name, time);
    }
    Ok(())
}

/// An error that names where below the device's folder it happened.
fn at(path: &Path, error: &impl ToString) -> io::Error {
    if path.as_os_str().is_empty() {
        return io::Error::other(error.to_string());
    }
    io::Error::other(format!("{}: {}", sanitize(path), error.to_string()))
}

/// The files of `parsed/` or `error/`.
fn list(folder: &Dir, sub: &Path, found: &mut DeviceScan) -> io::Result<()> {
    let wanted = |name: &std::ffi::OsStr, kind| kind == EntryKind::File && is_tsv(name);
    let mut last = None;
    loop {
        let entries = folder.read_page(last.as_deref(), PAGE_SIZE, wanted)?;
        let ended = entries.len() < PAGE_SIZE;
        last = entries.last().map(|entry| entry.name.clone());
        for entry in entries {
            if let Some(time) = folder.modified(&entry.name)? {
                if sub == Path::new(ERROR) {
                    match folder.read_sidecar(&entry.name)? {
                        Some(sidecar) if sidecar.retryable => found.errors_retryable += 1,
                        _ => found.errors_other += 1,
                    }
                }
                found.keep(sub.to_owned(), entry.name, time);
            }
        }
        if ended {
            return Ok(());
        }
    }
}

impl DeviceScan {
    /// Keeps a file if it is among the newest.
    fn keep(&mut self, sub: PathBuf, name: OsString, time: SystemTime) {
        let place = self
            .newest
            .partition_point(|other| (other.time, &other.name) > (time, &name));
        if place < NEWEST {
            self.newest.truncate(NEWEST - 1);
            let newest = Newest {
                name,
                sub,
                time,
                last_measurement: None,
                truncated: false,
            };
            self.newest.insert(place.min(self.newest.len()), newest);
        }
    }
}

impl Newest {
    fn look_inside(
        &mut self,
        file: &std::fs::File,
        size: u64,
        zones: &FileZones,
    ) -> io::Result<()> {
        let block = |start: u64| -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; BLOCK];
            let read = file.read_at(&mut bytes, start)?;
            bytes.truncate(read);
            Ok(bytes)
        };
        let head = block(0)?;
        let tail_start = size.saturating_sub(BLOCK as u64);
        let tail = block(tail_start)?;
        self.truncated = Container::looks_truncated(&head, &tail);
        self.last_measurement = last_instant(&head, &tail, tail_start == 0, zones);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_newest_files_are_kept_in_order() {
        let mut found = DeviceScan::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (name, time) in [("a", 5), ("b", 9), ("c", 1), ("d", 7), ("e", 9), ("f", 2)] {
            found.keep(PathBuf::new(), name.into(), at(time));
        }
        let names: Vec<_> = found
            .newest
            .iter()
            .map(|n| n.name.to_str().unwrap())
            .collect();
        assert_eq!(names, ["e", "b", "d"]);
    }
}
