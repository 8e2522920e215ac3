//! Writes one line protocol file per bucket, for use without a server. See docs/specification.md, section 8.

use super::WriteError;
use crate::data_dir::{SharedFileSystem, create_dir, give_to_owner_of};
use crate::points::Batch;
use crate::remedy::{lock_remedy, remedy};
use crate::sanitize::sanitize;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// A folder with one file `<bucket>.lp` per bucket.
#[derive(Debug)]
pub(crate) struct LineProtocolDir {
    dir: PathBuf,
    /// Set when it was logged that other hosts do not see the locks.
    has_warned: Once,
}

/// The folder cannot be created.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot create the folder {}: {error}; {}",
    sanitize(.dir),
    remedy(.error, "correct --line-protocol-dir")
)]
pub(crate) struct CreateDirError {
    dir: PathBuf,
    error: io::Error,
}

impl LineProtocolDir {
    /// Creates the folder if it is missing.
    pub(crate) fn new(dir: &Path) -> Result<Self, CreateDirError> {
        create_dir(dir).map_err(|error| CreateDirError {
            dir: dir.to_owned(),
            error,
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            has_warned: Once::new(),
        })
    }

    /// Appends a batch to the file of its bucket, under an advisory lock. An incomplete last line, left by a killed run,
    /// is removed first.
    ///
    /// # Errors
    /// [`WriteError::Storage`]; the file then has the same end as before.
    pub(crate) fn append(&self, bucket: &str, batch: &Batch) -> Result<(), WriteError> {
        let path = self.path(bucket);
        let write = || -> io::Result<()> {
            let mut file = open_locked(&path)?;
            self.warn_of_local_lock(&file);
            let is_file = file.metadata()?.is_file();
            let end = if is_file {
                remove_incomplete_line(&file)?
            } else {
                0
            };
            let result = if batch.gzip {
                batch.text().and_then(|text| file.write_all(&text))
            } else {
                file.write_all(&batch.body)
            };
            if result.is_err() && is_file {
                file.set_len(end)?;
            }
            result
        };
        write().map_err(|error| storage(&path, &error))
    }

    /// Warns, once, of locks that programs on other hosts do not see.
    fn warn_of_local_lock(&self, locked: &File) {
        self.has_warned.call_once(|| {
            if let Ok(Some(shared)) = SharedFileSystem::of(locked)
                && let Some(reason) = shared.reason_of_local_lock(locked)
            {
                tracing::warn!(
                    "{}: locks on {} {} seen by other hosts: {reason}; write to it from one host only",
                    sanitize(&self.dir),
                    shared.name(),
                    reason.not("are")
                );
            }
        });
    }

    /// Flushes the file of a bucket and its directory entry to disk.
    ///
    /// # Errors
    /// [`WriteError::Storage`].
    pub(crate) fn sync(&self, bucket: &str) -> Result<(), WriteError> {
        let path = self.path(bucket);
        let sync = || -> io::Result<()> {
            let file = File::open(&path)?;
            if file.metadata()?.is_file() {
                file.sync_all()?;
            }
            File::open(&self.dir)?.sync_all()
        };
        match sync() {
            // This bucket has no file, because nothing was written to it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|error| storage(&path, &error)),
        }
    }

    fn path(&self, bucket: &str) -> PathBuf {
        self.dir.join(format!("{bucket}.lp"))
    }
}

/// Opens a file for appending, creates it if it is missing, and locks it.
///
/// Another program may move or delete the file while it holds the lock. The lock is then on a file without this name, so
/// the file that has the name now is opened instead.
fn open_locked(path: &Path) -> io::Result<File> {
    loop {
        let file = open_or_create(path)?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| io::Error::other(NotLocked(error.into())))?;
        let locked = file.metadata()?;
        match std::fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => {
                return Ok(file);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}

/// An error of the lock on a file.
#[derive(Debug, thiserror::Error)]
#[error("the file cannot be locked: {0}")]
struct NotLocked(io::Error);

/// Opens a file for appending. If it is missing, it is created; one that root creates belongs to the owner of its folder.
fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            give_to_owner_of(File::open(path.parent().unwrap_or(path))?, &file)?;
            Ok(file)
        }
        // Another run created it meanwhile, or it is a link to a missing file.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options.create(true).open(path)
        }
        Err(error) => Err(error),
    }
}

fn storage(path: &Path, error: &io::Error) -> WriteError {
    let lock = error.get_ref();
    let lock = lock.and_then(|error| error.downcast_ref::<NotLocked>());
    let remedy = match (lock, error.kind()) {
        (Some(NotLocked(error)), _) => lock_remedy(error),
        // A folder name may have 255 bytes, and `.lp` makes the file name longer.
        (None, io::ErrorKind::InvalidFilename) => {
            "the company name is too long for a file name; rename its folder"
        }
        (None, _) => remedy(error, "correct --line-protocol-dir"),
    };
    WriteError::Storage(format!(
        "cannot write {}: {error}; {remedy}; input file left in place",
        sanitize(path)
    ))
}

/// Removes everything after the last line break. Returns the new length in bytes.
fn remove_incomplete_line(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut end = length;
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..usize::try_from(end - start).unwrap_or_default()];
        file.read_exact_at(part, start)?;
        if let Some(last) = memchr::memrchr(b'\n', part) {
            end = start + last as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skipped::skipped;

    /// An unprivileged user.
    const OWNER: u32 = 65_534;

    fn batch(text: &str) -> Batch {
        Batch::plain(text.as_bytes().to_vec(), 1)
    }

    #[test]
    fn an_incomplete_line_of_a_killed_run_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let sink = LineProtocolDir::new(dir.path()).unwrap();
        for (before, after) in [
            ("", "new 1\n"),
            ("old 1\n", "old 1\nnew 1\n"),
            ("old 1\nhal", "old 1\nnew 1\n"),
            ("half", "new 1\n"),
        ] {
            std::fs::write(dir.path().join("b.lp"), before).unwrap();
            sink.append("b", &batch("new 1\n")).unwrap();
            assert_eq!(
                std::fs::read_to_string(dir.path().join("b.lp")).unwrap(),
                after
            );
        }
        std::fs::write(
            dir.path().join("b.lp"),
            format!("a\n{}", "x".repeat(10_000)),
        )
        .unwrap();
        sink.append("b", &batch("new 1\n")).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("b.lp")).unwrap(),
            "a\nnew 1\n"
        );
    }

    #[test]
    fn what_root_creates_belongs_to_the_owner_of_the_folder_above() {
        if !rustix::process::geteuid().is_root() {
            return skipped("root", "run the tests as root");
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(OWNER), Some(OWNER)).unwrap();
        let made = [dir.path().join("a"), dir.path().join("a/b")];
        let sink = LineProtocolDir::new(&made[1]).unwrap();
        sink.append("b", &batch("new 1\n")).unwrap();
        for path in [&made[0], &made[1], &made[1].join("b.lp")] {
            let file = std::fs::metadata(path).unwrap();
            assert_eq!((file.uid(), file.gid()), (OWNER, OWNER), "{path:?}");
        }
        // A file that exists keeps its owner.
        std::fs::write(made[1].join("c.lp"), "").unwrap();
        sink.append("c", &batch("new 1\n")).unwrap();
        assert_eq!(std::fs::metadata(made[1].join("c.lp")).unwrap().uid(), 0);
    }

    #[test]
    fn a_file_that_is_taken_away_under_the_lock_is_created_again() {
        for take_away in ["move", "delete", "replace"] {
            let dir = tempfile::tempdir().unwrap();
            let sink = LineProtocolDir::new(dir.path()).unwrap();
            let path = dir.path().join("b.lp");
            let taken = dir.path().join("taken");
            sink.append("b", &batch("old 1\n")).unwrap();
            let consumer = File::open(&path).unwrap();
            flock(&consumer, FlockOperation::LockExclusive).unwrap();
            std::thread::scope(|scope| {
                let append = scope.spawn(|| sink.append("b", &batch("new 1\n")));
                wait_for_second_opening(&consumer);
                match take_away {
                    "delete" => std::fs::remove_file(&path).unwrap(),
                    _ => std::fs::rename(&path, &taken).unwrap(),
                }
                if take_away == "replace" {
                    std::fs::write(&path, "other 1\n").unwrap();
                }
                flock(&consumer, FlockOperation::Unlock).unwrap();
                append.join().unwrap().unwrap();
            });
            let before = if take_away == "replace" {
                "other 1\n"
            } else {
                ""
            };
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                format!("{before}new 1\n"),
                "{take_away}"
            );
            if take_away != "delete" {
                assert_eq!(std::fs::read_to_string(&taken).unwrap(), "old 1\n");
            }
        }
    }

    /// Waits until this process has opened a file twice.
    fn wait_for_second_opening(file: &File) {
        let inode = file.metadata().unwrap().ino();
        let openings = || {
            std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|fd| std::fs::metadata(fd.ok()?.path()).ok())
                .filter(|metadata| metadata.ino() == inode)
                .count()
        };
        while openings() < 2 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_name_that_is_too_long_has_its_own_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let sink = LineProtocolDir::new(dir.path()).unwrap();
        let error = sink
            .append(&"x".repeat(255), &batch("new 1\n"))
            .unwrap_err();
        assert!(
            matches!(&error, WriteError::Storage(message) if message.contains("too long") && !message.contains("disk space")),
            "{error}"
        );
    }

    #[test]
    fn a_full_disk_is_a_storage_error() {
        let dir = tempfile::tempdir().unwrap();
        let sink = LineProtocolDir::new(dir.path()).unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("b.lp")).unwrap();
        let error = sink.append("b", &batch("new 1\n")).unwrap_err();
        assert!(
            matches!(&error, WriteError::Storage(message) if message.contains("No space left")),
            "{error}"
        );
    }
}
