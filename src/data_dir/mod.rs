//! The data folder on disk, seen so that an upload cannot lead astray: folders are opened one by one without following
//! links, files are opened and then looked at, moves are renames that never overwrite.
//!
//! An SFTP user owns everything below the data folder and may change it at any moment.

mod device_path;
mod fcntl;
mod lease;
mod listing;
mod lock;
mod open_writers;
pub mod pending_files;
mod rename;
mod sidecar;

pub use device_path::{
    Campaign, Company, Device, DevicePath, DevicePathError, ERROR, NameError, PARSED,
    is_processed_dir,
};
pub use lease::{Lease, LeaseError};
pub use listing::{Entry, EntryKind};
pub use lock::{DeviceLock, LockError};
pub use open_writers::OpenWriters;
pub use rename::MoveError;
pub use sidecar::{SUFFIX as SIDECAR_SUFFIX, Sidecar};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, fchmod, fstat, mkdirat, openat, statat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

/// A folder held open, with its path for messages. What is done in it is done there, even if the path leads elsewhere by now.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// The room that a name in `error/` must leave for its sidecar's, in bytes.
pub const SIDECAR_NAME_ROOM: usize = SIDECAR_SUFFIX.len();

/// What identifies a file, whatever its name.
pub type Inode = (u64, u64);

/// Size and times of a file at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// In bytes.
    pub size: u64,
    /// Last change of the content, in nanoseconds since 1970; an uploader may set it.
    pub modified_ns: i128,
    /// Last change of content, name or rights, in nanoseconds since 1970; no upload can set it.
    pub changed_ns: i128,
}

/// A file held open, and what it was like when it was opened.
#[derive(Debug)]
pub struct OpenFile {
    /// For reading.
    pub file: Arc<File>,
    /// Device and inode.
    pub inode: Inode,
    /// Size and times when it was opened.
    pub stamp: Stamp,
}

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is gone: another process has dealt with it.
    #[error("there is no such file")]
    Gone,
    /// A link, a folder, a pipe or a device.
    #[error("it is {0}, not a file; remove it")]
    NotAFile(&'static str),
    /// Rights, or the disk.
    #[error("it cannot be opened: {0}; check the rights of the folder")]
    Io(io::Error),
}

impl Dir {
    /// Opens a folder that an operator named; links in its path are followed.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self {
            fd: openat(CWD, path, flags, Mode::empty())?,
            path: path.to_owned(),
        })
    }

    /// Opens a folder below this one. Every part of the way must be a real folder: a link is an error (`ELOOP`, `ENOTDIR`).
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open_below(&self, relative: &Path) -> io::Result<Self> {
        let mut fd = self.fd.try_clone()?;
        for part in relative.components() {
            let Component::Normal(name) = part else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            fd = openat(&fd, name, FOLDER, Mode::empty())?;
        }
        Ok(Self {
            fd,
            path: self.path.join(relative),
        })
    }

    /// Opens a folder directly in this one and makes it if it is missing.
    ///
    /// # Errors
    /// Those of the file system; also where the name belongs to something that is no folder.
    pub fn open_or_make(&self, name: &str) -> io::Result<Self> {
        match self.open_below(Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match mkdirat(&self.fd, name, Mode::from_raw_mode(0o775)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                self.open_below(Path::new(name))
            }
            result => result,
        }
    }

    /// Where it was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file for reading, without following a link and without waiting for a pipe, and then looks at what it is.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_file(&self, name: &OsStr) -> Result<OpenFile, OpenError> {
        use rustix::io::Errno;
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(OpenError::Gone),
            Err(Errno::LOOP) => return Err(OpenError::NotAFile("a symbolic link")),
            Err(Errno::NXIO) => return Err(OpenError::NotAFile("a socket or a device")),
            Err(error) => return Err(OpenError::Io(error.into())),
        };
        let stat = fstat(&fd).map_err(|e| OpenError::Io(e.into()))?;
        use rustix::fs::FileType;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(OpenFile {
                inode: (stat.st_dev, stat.st_ino),
                stamp: Stamp::of(&stat),
                file: Arc::new(File::from(fd)),
            }),
            FileType::Directory => Err(OpenError::NotAFile("a folder")),
            FileType::Fifo => Err(OpenError::NotAFile("a pipe")),
            _ => Err(OpenError::NotAFile("a device")),
        }
    }

    /// What the name stands for now; none if there is nothing. A link counts for itself.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn inode_of(&self, name: &OsStr) -> io::Result<Option<Inode>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Size and times of a file; none where there is no such file, or it is something else.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn stamp_of(&self, name: &OsStr) -> io::Result<Option<Stamp>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() => {
                Ok(Some(Stamp::of(&stat)))
            }
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The last change of a file's content; none where there is no such file, or it is something else. Where the client has
    /// set it to a time to come, the system's own mark of the last change counts, which nobody can set.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn modified(&self, name: &OsStr) -> io::Result<Option<SystemTime>> {
        let since_1970 = |stamp: Stamp| {
            Duration::from_nanos(u64::try_from(stamp.uploaded_ns()).unwrap_or_default())
        };
        Ok(self
            .stamp_of(name)?
            .map(|stamp| SystemTime::UNIX_EPOCH + since_1970(stamp)))
    }
}

impl OpenFile {
    /// Takes a read lease: nobody has the file open for writing.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn lease(&self) -> Result<Lease, LeaseError> {
        Lease::take(&self.file)
    }

    /// Size and times now.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn stamp_now(&self) -> io::Result<Stamp> {
        Ok(Stamp::of(&fstat(&self.file)?))
    }

    /// Whether size or times differ from when it was opened.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn has_changed(&self) -> io::Result<bool> {
        Ok(self.stamp_now()? != self.stamp)
    }

    /// Sets the mark of the last change to now, so that it is later than that of the content: read since it was written.
    ///
    /// # Errors
    /// Those of the file system; also where the file belongs to another user.
    pub fn mark_as_read(&self) -> io::Result<()> {
        let mode = Mode::from_raw_mode(fstat(&self.file)?.st_mode);
        Ok(fchmod(&self.file, mode)?)
    }
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Whether the content is the same, as far as size and time tell. A move changes the mark of the last change.
    pub fn has_same_content(&self, other: &Self) -> bool {
        (self.size, self.modified_ns) == (other.size, other.modified_ns)
    }

    /// Whether the content was written after the file got its name: a move leaves a newer mark on the file than on its
    /// content, a write leaves the same on both.
    pub fn is_written_after_its_move(&self) -> bool {
        self.modified_ns >= self.changed_ns
    }

    /// When the file was uploaded, in nanoseconds since 1970. A time in the future was set by the uploader; the mark of the
    /// last change never lies ahead.
    pub fn uploaded_ns(&self) -> i128 {
        self.modified_ns.min(self.changed_ns)
    }
}

fn nanoseconds(seconds: impl Into<i128>, nanoseconds: impl Into<i128>) -> i128 {
    seconds.into() * 1_000_000_000 + nanoseconds.into()
}

/// `<stem>.<n>.<extension>` for n > 0, the name itself for 0, shortened so that `room` more bytes still fit into the 255 that
/// a file system allows.
pub fn numbered_name(name: &OsStr, n: u32, room: usize) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let bytes = name.as_bytes();
    let dot = memchr::memrchr(b'.', bytes)
        .filter(|at| *at > 0)
        .unwrap_or(bytes.len());
    let (stem, extension) = bytes.split_at(dot);
    let number = if n == 0 {
        String::new()
    } else {
        format!(".{n}")
    };
    let tail = number.len() + extension.len() + room;
    let mut keep = stem.len().min(255_usize.saturating_sub(tail));
    // Not in the middle of a character.
    while keep < stem.len() && keep > 0 && stem[keep] & 0xc0 == 0x80 {
        keep -= 1;
    }
    OsString::from_vec([&stem[..keep], number.as_bytes(), extension].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn numbered_names_keep_their_ending_and_fit() {
        let n = |name: &str, n, room| {
            numbered_name(OsStr::new(name), n, room)
                .into_string()
                .unwrap()
        };
        assert_eq!(n("x.tsv", 0, 0), "x.tsv");
        assert_eq!(n("x.tsv", 2, 0), "x.2.tsv");
        assert_eq!(n("a.b.tsv", 1, 0), "a.b.1.tsv");
        let long = format!("{}.tsv", "é".repeat(125));
        assert_eq!(n(&long, 0, 0), long);
        assert!(n(&long, 7, 11).len() <= 244 && n(&long, 7, 11).ends_with("é.7.tsv"));
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/x.tsv"), "x").unwrap();
        symlink(dir.path().join("a"), dir.path().join("link")).unwrap();
        symlink("x.tsv", dir.path().join("a/b/y.tsv")).unwrap();
        let data = Dir::open(dir.path()).unwrap();
        assert!(data.open_below(Path::new("link/b")).is_err());
        assert!(data.open_below(Path::new("a/../a")).is_err());
        let folder = data.open_below(Path::new("a/b")).unwrap();
        assert!(matches!(
            folder.open_file(OsStr::new("y.tsv")),
            Err(OpenError::NotAFile("a symbolic link"))
        ));
        assert!(matches!(
            folder.open_file(OsStr::new("z.tsv")),
            Err(OpenError::Gone)
        ));
        assert_eq!(folder.open_file(OsStr::new("x.tsv")).unwrap().stamp.size, 1);
    }

    #[test]
    fn a_change_of_the_content_shows() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "1").unwrap();
        let file = Dir::open(dir.path())
            .unwrap()
            .open_file(OsStr::new("x"))
            .unwrap();
        assert!(!file.has_changed().unwrap());
        std::fs::write(dir.path().join("x"), "22").unwrap();
        assert!(file.has_changed().unwrap());
    }
}
