//! Access to the data folder that is safe against concurrent changes by SFTP users, who own everything below it.
//!
//! Folders are opened one level at a time without following links, files are checked after they are opened, and moves
//! are renames that never overwrite. See docs/specification.md, sections 1 and 9.

mod catalogue_file;
mod device_path;
mod devices;
mod fcntl;
mod file_system;
mod lease;
mod level;
mod listing;
mod lock;
mod new_file;
mod open_writers;
mod owner;
pub(crate) mod pending_files;
mod rename;
mod retired;
mod shard;
mod sidecar;
mod state_file;
mod strays;
mod walk;

pub(crate) use catalogue_file::{APPLIED_FILE, CATALOGUE_FILE, REFUSAL_FILE, is_catalogue_file};
pub use device_path::Campaign;
pub(crate) use device_path::{
    CATALOGUE, Company, DevicePath, DevicePathError, ERROR, PARSED, SUMMARIES, former_bucket,
    is_name_of_rebuild, is_own_measurement, is_processed_dir, parse_former_bucket, rebuild_bucket,
};
pub(crate) use devices::{DEVICE_DEPTH, DeviceItem, devices, devices_in, devices_of};
pub(crate) use file_system::{Hosts, LocalLock, SharedFileSystem};
pub(crate) use lease::{Lease, LeaseError};
pub(crate) use level::meant_data_folder;
pub(crate) use listing::{Entry, EntryKind};
pub(crate) use lock::{DeviceLock, LOCK_FILE, LOCK_PAUSE, LockError, MAX_HOLD, NO_COMMON_COMPANY};
pub(crate) use new_file::NewFile;
pub(crate) use open_writers::OpenWriters;
pub(crate) use owner::{Obstacle, create_dir, give_to_owner_of};
pub(crate) use rename::MoveError;
pub(crate) use retired::RETIRED_MARKER;
pub use shard::Shard;
pub(crate) use sidecar::{SUFFIX as SIDECAR_SUFFIX, Sidecar};
pub(crate) use state_file::{LAYOUT_FILE, PENDING_FILE};
pub(crate) use strays::{DASHBOARD_MARKER, all_below, is_recent_upload, strays};
pub(crate) use walk::is_no_folder;

use crate::remedy::remedy;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, StatxFlags, StatxTimestamp, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT, fchmod, fstat, futimens, mkdirat, openat, statat, statx, unlinkat,
};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Flags for opening a folder; a symbolic link is an error.
const DIR_FLAGS: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

/// An open folder, with its path for messages. Operations use the descriptor and do not depend on the path.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    /// The hosts that work on the data folder which this folder is in.
    hosts: Hosts,
}

/// Bytes that a file name in `error/` must leave free for the suffix of its sidecar.
pub(crate) const SIDECAR_NAME_ROOM: usize = SIDECAR_SUFFIX.len();

/// The maximum difference between the times that a move sets for the file and for the folder, in nanoseconds. The clock of
/// a file system advances in steps of up to 10 ms.
const MOVE_NS: i128 = 10_000_000;

/// Device and inode number, which identify a file independently of its name.
pub(crate) type Inode = (u64, u64);

/// Size and times of a file at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// `mtime` in nanoseconds since 1970. SFTP clients can set it.
    pub modified_ns: i128,
    /// `ctime` in nanoseconds since 1970: the last change of content, name or mode. SFTP clients cannot set it.
    pub changed_ns: i128,
}

/// An open file, with its size and times at the time of opening.
#[derive(Debug)]
pub(crate) struct OpenFile {
    /// The file, opened for reading.
    pub file: Arc<File>,
    /// Device and inode number.
    pub inode: Inode,
    /// Size and times when it was opened.
    pub stamp: Stamp,
    /// The number of its names. More than one is the rest of a move that was killed, or a hard link of a user.
    pub links: u64,
    /// The file system, if other hosts may have the file open.
    shared: Option<SharedFileSystem>,
}

/// Why a file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The file does not exist, for example because another process has moved it.
    #[error("no such file; check the path")]
    Gone,
    /// The name belongs to a link, a folder, a pipe, a socket or a device.
    #[error("not a regular file but {0}; remove it")]
    NotAFile(&'static str),
    /// Any other I/O error, mostly missing permissions.
    #[error(
        "cannot open the file: {error}; {}",
        remedy(.0, "check its permissions and those of its folder"),
        error = .0
    )]
    Io(io::Error),
}

impl Dir {
    /// Opens a folder by a path from the configuration or the command line. Links in the path are followed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self {
            fd: openat(CWD, path, flags, Mode::empty())?,
            path: path.to_owned(),
            hosts: Hosts::default(),
        })
    }

    /// The same folder, as one that these hosts work on. So are all that are opened from it.
    pub(crate) fn used_by(self, hosts: Hosts) -> Self {
        Self { hosts, ..self }
    }

    /// The hosts that work on it.
    pub(crate) fn hosts(&self) -> Hosts {
        self.hosts
    }

    /// Opens a folder below this one. Every component must be a real folder: a link is an error (`ELOOP` or `ENOTDIR`).
    pub(crate) fn open_below(&self, relative: &Path) -> io::Result<Self> {
        let mut fd = self.fd.try_clone()?;
        for part in relative.components() {
            let Component::Normal(name) = part else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            fd = openat(&fd, name, DIR_FLAGS, Mode::empty())?;
        }
        Ok(Self {
            fd,
            path: self.path.join(relative),
            hosts: self.hosts,
        })
    }

    /// Opens the folder that this one is in.
    pub(crate) fn open_parent(&self) -> io::Result<Self> {
        Ok(Self {
            fd: openat(&self.fd, "..", DIR_FLAGS, Mode::empty())?,
            path: self.path.parent().unwrap_or(&self.path).to_owned(),
            hosts: self.hosts,
        })
    }

    /// Opens a folder directly in this one and creates it if it is missing. Fails if it is not a folder.
    ///
    /// A folder that root creates belongs to the owner of this folder.
    pub(crate) fn open_or_make(&self, name: &str) -> io::Result<Self> {
        match self.open_below(Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_created = match mkdirat(&self.fd, name, Mode::from_raw_mode(0o775)) {
                    Ok(()) => true,
                    Err(rustix::io::Errno::EXIST) => false,
                    Err(error) => return Err(error.into()),
                };
                let folder = self.open_below(Path::new(name))?;
                if is_created {
                    give_to_owner_of(&self.fd, &folder.fd)?;
                }
                Ok(folder)
            }
            result => result,
        }
    }

    /// Duplicates of the descriptor of the folder.
    pub(crate) fn duplicates(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        (0..count).map(|_| self.fd.try_clone()).collect()
    }

    /// The path under which the folder was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file for reading. Does not follow links and does not block on pipes.
    pub(crate) fn open_file(&self, name: &OsStr) -> Result<OpenFile, OpenError> {
        use rustix::io::Errno;
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            // A file on NFS that another host has removed is stale.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => return Err(OpenError::Gone),
            Err(Errno::LOOP) => return Err(OpenError::NotAFile("a symbolic link")),
            Err(Errno::NXIO) => return Err(OpenError::NotAFile("a socket or a device")),
            Err(error) => return Err(OpenError::Io(error.into())),
        };
        let stat = fstat(&fd).map_err(|e| OpenError::Io(e.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let shared = self.shared_file_system().map_err(OpenError::Io)?;
                Ok(OpenFile {
                    inode: (stat.st_dev, stat.st_ino),
                    stamp: match shared {
                        None => Stamp::of(&stat),
                        Some(_) => {
                            stamp_of_server(&fd, OsStr::new(""))
                                .map_err(|e| OpenError::Io(e.into()))?
                                .0
                        }
                    },
                    links: stat.st_nlink,
                    shared,
                    file: Arc::new(File::from(fd)),
                })
            }
            FileType::Directory => Err(OpenError::NotAFile("a folder")),
            FileType::Fifo => Err(OpenError::NotAFile("a pipe")),
            _ => Err(OpenError::NotAFile("a device")),
        }
    }

    /// Writes a file that does not exist yet. After an error, there is none. A file that root writes belongs to the owner
    /// of this folder.
    fn write_new(&self, name: &OsStr, content: &[u8]) -> io::Result<File> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.fd, name, flags, Mode::from_raw_mode(0o664))?);
        give_to_owner_of(&self.fd, &file)
            .and_then(|()| file.write_all(content))
            .inspect_err(|_| {
                let _ = unlinkat(&self.fd, name, AtFlags::empty());
            })?;
        Ok(file)
    }

    /// Removes a file or an empty folder, if there is one.
    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = match unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => unlinkat(&self.fd, name, AtFlags::REMOVEDIR),
            result => result,
        };
        match removed {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The inode that `name` currently refers to, or `None` if there is none. Links are not followed.
    pub(crate) fn inode_of(&self, name: &OsStr) -> io::Result<Option<Inode>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Size and times of a regular file, or `None` if `name` is missing or something else.
    pub(crate) fn stamp_of(&self, name: &OsStr) -> io::Result<Option<Stamp>> {
        match self.stat(name) {
            Ok((stamp, file_type)) => Ok(file_type.is_file().then_some(stamp)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Time of the last change of a folder directly in this one, in nanoseconds since 1970: the last move into it or out
    /// of it. `None` if it is missing.
    pub(crate) fn folder_modified_ns(&self, name: &str) -> io::Result<Option<i128>> {
        match self.stat(OsStr::new(name)) {
            Ok((stamp, _)) => Ok(Some(stamp.modified_ns)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Time of the last change of this folder, in nanoseconds since 1970.
    pub(crate) fn modified_ns(&self) -> io::Result<i128> {
        Ok(self.stat(OsStr::new(""))?.0.modified_ns)
    }

    /// Size, times and type of a name in this folder, or of the folder itself if `name` is empty. Links are not followed.
    fn stat(&self, name: &OsStr) -> rustix::io::Result<(Stamp, FileType)> {
        match self.hosts {
            // It is the same on a local file system, and the type of this one is not known here.
            Hosts::Several | Hosts::Sharded => stamp_of_server(&self.fd, name),
            Hosts::One => stamp_of(&self.fd, name),
        }
    }

    /// The file system, if several hosts use it.
    fn shared_file_system(&self) -> io::Result<Option<SharedFileSystem>> {
        match self.hosts {
            Hosts::One => Ok(None),
            Hosts::Several | Hosts::Sharded => SharedFileSystem::of(&self.fd),
        }
    }

    /// Sets the time of the last change of this folder to now, so that it is later than the changes of its files so far, of
    /// which `changed_ns` is the last one.
    pub(crate) fn touch(&self, changed_ns: i128) -> io::Result<()> {
        self.set_modified(Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        })?;
        // On some shared file systems, "now" is the time of this host, and that of the files the time of the server.
        if self.shared_file_system()?.is_some() && self.modified_ns()? < changed_ns {
            self.set_modified(timespec(changed_ns))?;
        }
        Ok(())
    }

    /// Does what [`Dir::touch`] does once files of these names in this folder, which were open during their moves, are
    /// closed. Clients of shared file systems keep the old name of such a file under another one until then, and `ctime`
    /// changes when they remove it.
    pub(crate) fn touch_after_closing(&self, names: &[OsString]) -> io::Result<()> {
        if self.shared_file_system()?.is_none() {
            return Ok(());
        }
        let mut changed_ns = i128::MIN;
        for name in names {
            if let Some(stamp) = self.stamp_of(name)? {
                changed_ns = changed_ns.max(stamp.changed_ns);
            }
        }
        self.touch(changed_ns)
    }

    /// Sets the time of the last access too: programs behind FUSE ignore requests to set one of the two only.
    fn set_modified(&self, time: Timespec) -> io::Result<()> {
        Ok(futimens(
            &self.fd,
            &Timestamps {
                last_access: time,
                last_modification: time,
            },
        )?)
    }

    /// Time of the last change of a regular file's content, or `None` if `name` is missing or something else.
    ///
    /// See [`Stamp::uploaded_ns`] for times in the future.
    pub(crate) fn modified(&self, name: &OsStr) -> io::Result<Option<SystemTime>> {
        let since_1970 = |stamp: Stamp| {
            Duration::from_nanos(u64::try_from(stamp.uploaded_ns()).unwrap_or_default())
        };
        Ok(self
            .stamp_of(name)?
            .map(|stamp| SystemTime::UNIX_EPOCH + since_1970(stamp)))
    }
}

impl OpenFile {
    /// Takes a read lease, which is granted only if no process has the file open for writing.
    pub(crate) fn lease(&self) -> Result<Lease, LeaseError> {
        Lease::take(&self.file)
    }

    /// The file system, if another host may have the file open for writing, although a lease was granted if `has_lease`.
    pub(crate) fn shared_despite(&self, has_lease: bool) -> Option<SharedFileSystem> {
        self.shared
            .filter(|shared| !(has_lease && shared.lease_excludes_other_hosts(&self.file)))
    }

    /// Current size and times.
    pub(crate) fn stamp_now(&self) -> io::Result<Stamp> {
        if self.shared.is_some() {
            return Ok(stamp_of_server(&self.file, OsStr::new(""))?.0);
        }
        Ok(Stamp::of(&fstat(&self.file)?))
    }

    /// Whether size or times have changed since the file was opened.
    pub(crate) fn has_changed(&self) -> io::Result<bool> {
        Ok(self.stamp_now()? != self.stamp)
    }

    /// Sets the modification time of a file to the time of its upload, for one that a client has dated in the future: the
    /// next move changes `ctime`, by which its upload would become a later one.
    ///
    /// The caller must hold a lease, so that no write to the file is missed. Fails if the file belongs to another user.
    pub(crate) fn set_time_to_upload(&mut self) -> io::Result<()> {
        let time = timespec(self.stamp.uploaded_ns());
        let last_access = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        };
        futimens(
            &self.file,
            &Timestamps {
                last_access,
                last_modification: time,
            },
        )?;
        self.stamp = self.stamp_now()?;
        Ok(())
    }

    /// Updates `ctime` so that it is later than `mtime`, which marks the current content as ingested. Returns the new times.
    ///
    /// Fails if the file belongs to another user.
    pub(crate) fn mark_as_read(&self) -> io::Result<Stamp> {
        let mode = Mode::from_raw_mode(fstat(&self.file)?.st_mode);
        fchmod(&self.file, mode)?;
        self.stamp_now()
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

    /// Whether a client has set `mtime` to a time that was in the future.
    pub(crate) fn is_dated_ahead(&self) -> bool {
        self.modified_ns > self.changed_ns
    }

    /// Whether size and `mtime` are equal. `ctime` is ignored because a move changes it.
    pub(crate) fn has_same_content(&self, other: &Self) -> bool {
        (self.size, self.modified_ns) == (other.size, other.modified_ns)
    }

    /// Whether the content may have been written after the file was moved to a folder that was last changed at
    /// `folder_modified_ns`.
    ///
    /// A move sets `ctime` only, a write sets both times to the same one. A client may set `mtime` afterwards; then `ctime` is
    /// later than the last move into the folder. One that had set it ahead before the move has written nothing since.
    pub(crate) fn may_be_written_after_its_move(&self, folder_modified_ns: i128) -> bool {
        let ahead = self.modified_ns - self.changed_ns;
        (0..=MOVE_NS).contains(&ahead) || self.changed_ns > folder_modified_ns + MOVE_NS
    }

    /// Whether the file was last changed or moved at most this long ago.
    pub(crate) fn changed_within(&self, age: Duration) -> bool {
        let changed = u64::try_from(self.changed_ns).map(Duration::from_nanos);
        let changed = SystemTime::UNIX_EPOCH + changed.unwrap_or_default();
        changed.elapsed().unwrap_or_default() <= age
    }

    /// Time of the upload, in nanoseconds since 1970. `ctime` is the upper limit because clients may set `mtime` to a
    /// time in the future.
    pub(crate) fn uploaded_ns(&self) -> i128 {
        self.modified_ns.min(self.changed_ns)
    }
}

/// Size, times and type of a name in an open folder, or of what is open if `name` is empty.
fn stamp_of(open: impl AsFd, name: &OsStr) -> rustix::io::Result<(Stamp, FileType)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let stat = statat(open, name, flags)?;
    Ok((Stamp::of(&stat), FileType::from_raw_mode(stat.st_mode)))
}

/// Like [`stamp_of`], as the server of a shared file system knows them. What this host remembers of them may be a minute
/// old.
fn stamp_of_server(open: impl AsFd, name: &OsStr) -> rustix::io::Result<(Stamp, FileType)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let stat = match statx(open.as_fd(), name, flags, StatxFlags::BASIC_STATS) {
        // Old kernels do not know this call, and old container engines forbid it.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => return stamp_of(open, name),
        result => result?,
    };
    let time = |time: StatxTimestamp| nanoseconds(time.tv_sec, time.tv_nsec);
    let stamp = Stamp {
        size: stat.stx_size,
        modified_ns: time(stat.stx_mtime),
        changed_ns: time(stat.stx_ctime),
    };
    Ok((stamp, FileType::from_raw_mode(stat.stx_mode.into())))
}

/// A time in nanoseconds since 1970 in the form of the system.
fn timespec(nanoseconds: i128) -> Timespec {
    let second = 1_000_000_000;
    Timespec {
        tv_sec: nanoseconds
            .div_euclid(second)
            .try_into()
            .unwrap_or_default(),
        tv_nsec: nanoseconds
            .rem_euclid(second)
            .try_into()
            .unwrap_or_default(),
    }
}

fn nanoseconds(seconds: impl Into<i128>, nanoseconds: impl Into<i128>) -> i128 {
    seconds.into() * 1_000_000_000 + nanoseconds.into()
}

/// Returns `<stem>.<n>.<extension>`, or the name itself for 0.
///
/// The stem is shortened so that the name and `room` more bytes fit into the 255 bytes that file systems allow.
pub(crate) fn numbered_name(name: &OsStr, n: u32, room: usize) -> OsString {
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
    // Do not cut a UTF-8 character in two.
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
    fn numbered_names_keep_their_extension_and_fit_the_limit() {
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
    fn a_link_in_the_path_is_not_followed() {
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
    fn a_change_of_the_content_is_detected() {
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
