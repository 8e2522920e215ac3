//! The advisory lock on a device folder, which only one process holds at a time.
//!
//! The lock is on the folder itself, so it ends with its process and leaves no lock file. On a file system that several
//! hosts share, it is on a file in the folder: NFS, SMB and FUSE pass on locks of files only, and a lock on a folder would
//! be granted to each host. See docs/specification.md, section 9.

use super::{Dir, Hosts, LocalLock, Obstacle, SharedFileSystem, give_to_owner_of};
use crate::remedy::lock_remedy;
use crate::sanitize::sanitize;
use crate::shutdown::{POLL_INTERVAL, Shutdown};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, fstat, openat};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Once;
use std::time::{Duration, Instant};

/// The file that is locked on a shared file system. It stays in the folder, and is never removed.
pub(crate) const LOCK_FILE: &str = ".powerview-lock";

/// What to do if other hosts do not see the locks.
const SHARE_LOCKS: &str = "mount it so that all hosts see them, or set TSV_SHARD on each host, or TSV_SINGLE_HOST=1 if no other host uses the folder";

/// What to do if it is not known whether other hosts see the locks.
const SHOW_MOUNTS: &str = "mount /proc, or run powerview outside of the chroot, or set TSV_SHARD on each host, or TSV_SINGLE_HOST=1 if no other host uses the folder";

/// What must hold if other hosts do not see the locks and each has a shard.
pub(crate) const NO_COMMON_COMPANY: &str = "no two hosts may have the same shard, all must have the same number of them, and the hooks must have it too (TSV_SHARD in .env)";

/// Total time of holding the lock after which the process pauses for [`LOCK_PAUSE`], so that others can acquire it.
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(1);
/// See [`MAX_HOLD`].
pub(crate) const LOCK_PAUSE: Duration = Duration::from_millis(40);

/// The lock on a device folder. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct DeviceLock(#[expect(dead_code, reason = "closing it releases the lock")] OwnedFd);

/// Why the lock was not acquired. The message says only what happened: the caller adds what it does with its files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another process held the lock until the time limit.
    #[error("device folder is locked by {holder} (waited {} s)", .waited.as_secs())]
    Held {
        /// For example "process 4711", or "another process" if it is unknown.
        holder: String,
        /// Time spent waiting.
        waited: Duration,
    },
    /// Shutdown was requested.
    #[error("run was stopped")]
    Stopped,
    /// Files of the device cannot be moved, so none is read.
    #[error("files cannot be moved: {0}")]
    Obstacle(Obstacle),
    /// The file system does not support locks, or the folder was removed.
    #[error("cannot lock the folder {}: {error}", sanitize(.folder))]
    Io {
        folder: PathBuf,
        error: std::io::Error,
    },
    /// Other hosts may work on the folder and do not see the lock.
    #[error("a lock on the folder {} ({file_system}) {} seen by other hosts: {reason}", sanitize(.folder), .reason.not("is"))]
    Local {
        folder: PathBuf,
        file_system: &'static str,
        reason: LocalLock,
    },
}

impl LockError {
    /// What to do, as far as the message does not say it.
    pub(crate) fn remedy(&self) -> Option<&str> {
        match self {
            Self::Held { .. } => Some("check that process"),
            Self::Stopped | Self::Obstacle(_) => None,
            Self::Io { error, .. } => Some(lock_remedy(error)),
            Self::Local {
                reason: LocalLock::Unknown,
                ..
            } => Some(SHOW_MOUNTS),
            Self::Local { .. } => Some(SHARE_LOCKS),
        }
    }

    /// The message, with what to do.
    pub(crate) fn with_remedy(&self) -> String {
        match self.remedy() {
            Some(remedy) => format!("{self}; {remedy}"),
            None => self.to_string(),
        }
    }
}

impl Dir {
    /// Acquires the lock. Waits for it for `wait` at most.
    pub(crate) fn lock(&self, wait: Duration, stop: &Shutdown) -> Result<DeviceLock, LockError> {
        let start = Instant::now();
        let shared = self.shared_file_system();
        let shared = shared.map_err(|error| self.lock_error(error))?;
        let mut own_fd = self.open_to_lock(shared)?;
        let mut wait_logged = false;
        loop {
            match flock(&own_fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if shared.is_none() || self.has_lock_file(&own_fd)? => {
                    self.ensure_shared_lock(shared, &own_fd)?;
                    return Ok(DeviceLock(own_fd));
                }
                // A client has removed the file, and the next process would lock another one.
                Ok(()) => own_fd = self.open_to_lock(shared)?,
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.lock_error(error.into())),
            }
            if stop.is_requested() {
                return Err(LockError::Stopped);
            }
            let waited = start.elapsed();
            if waited >= wait {
                let holder = self.holder();
                return Err(LockError::Held { holder, waited });
            }
            if !wait_logged && waited > Duration::from_secs(2) {
                wait_logged = true;
                tracing::info!(
                    "{}: waiting for the lock held by {}",
                    sanitize(&self.path),
                    self.holder()
                );
            }
            std::thread::sleep(POLL_INTERVAL.min(wait.saturating_sub(waited)));
        }
    }

    /// Acquires a lock like [`Dir::lock`], but on a new file of its own, and releases it. Returns the file system, if several
    /// hosts may share it, and why they do not see its locks.
    pub(crate) fn probe_lock(
        &self,
    ) -> Result<Option<(SharedFileSystem, Option<LocalLock>)>, LockError> {
        let io = |error| self.lock_error(error);
        let Some(shared) = SharedFileSystem::of(&self.fd).map_err(io)? else {
            // Of a local folder itself, for which it need not be writable. That another process has the lock is no error.
            return match flock(
                &self.open_to_lock(None)?,
                FlockOperation::NonBlockingLockShared,
            ) {
                Ok(()) | Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
                Err(error) => Err(self.lock_error(error.into())),
            };
        };
        let name = format!("{LOCK_FILE}-check-{}", std::process::id());
        let file = self.write_new(name.as_ref(), b"").map_err(io)?;
        let probe = || {
            flock(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|error| self.lock_error(error.into()))?;
            self.ensure_shared_lock(Some(shared), &file)?;
            Ok(Some((shared, shared.reason_of_local_lock(&file))))
        };
        let result = probe();
        let _ = self.remove(&name);
        result
    }

    /// Opens what is locked: the folder, or the file in it on a shared file system.
    fn open_to_lock(&self, shared: Option<SharedFileSystem>) -> Result<OwnedFd, LockError> {
        let open = || -> std::io::Result<OwnedFd> {
            if shared.is_none() {
                // The lock needs its own open file description: a duplicate of the descriptor would share the lock.
                return Ok(openat(&self.fd, ".", super::DIR_FLAGS, Mode::empty())?);
            }
            // NFS grants an exclusive lock only to a file that is open for writing.
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let create = OFlags::CREATE | OFlags::EXCL;
            let mode = Mode::from_raw_mode(0o664);
            loop {
                match openat(&self.fd, LOCK_FILE, flags, mode) {
                    Err(rustix::io::Errno::NOENT) => {}
                    result => return Ok(result?),
                }
                match openat(&self.fd, LOCK_FILE, flags | create, mode) {
                    Err(rustix::io::Errno::EXIST) => {}
                    result => {
                        let created = result?;
                        give_to_owner_of(&self.fd, &created)?;
                        return Ok(created);
                    }
                }
            }
        };
        let opened = open().map_err(|error| self.lock_error(error))?;
        let stat = fstat(&opened).map_err(|error| self.lock_error(error.into()))?;
        if shared.is_some() && !FileType::from_raw_mode(stat.st_mode).is_file() {
            let text = format!("{LOCK_FILE} is not a regular file; remove it");
            return Err(self.lock_error(std::io::Error::other(text)));
        }
        Ok(opened)
    }

    /// Whether the lock file in the folder is still the one that was opened.
    fn has_lock_file(&self, opened: &OwnedFd) -> Result<bool, LockError> {
        let stat = fstat(opened).map_err(|error| self.lock_error(error.into()))?;
        let named = self.inode_of(LOCK_FILE.as_ref());
        let named = named.map_err(|error| self.lock_error(error))?;
        Ok(named == Some((stat.st_dev, stat.st_ino)))
    }

    /// Refuses a lock that other hosts do not see, unless each of them has companies of its own. Then there is a warning, once.
    fn ensure_shared_lock(
        &self,
        shared: Option<SharedFileSystem>,
        locked: impl AsFd,
    ) -> Result<(), LockError> {
        static WARNING: Once = Once::new();
        let Some(shared) = shared else {
            return Ok(());
        };
        match self.hosts {
            Hosts::One => {}
            Hosts::Sharded => {
                if WARNING.is_completed() {
                    return Ok(());
                }
                if let Some(reason) = shared.reason_of_local_lock(locked) {
                    WARNING.call_once(|| {
                        tracing::warn!(
                            "locks on {} {} seen by other hosts: {reason}; {NO_COMMON_COMPANY}",
                            shared.name(),
                            reason.not("are")
                        );
                    });
                }
            }
            Hosts::Several => {
                if let Some(reason) = shared.reason_of_local_lock(locked) {
                    return Err(LockError::Local {
                        folder: self.path.clone(),
                        file_system: shared.name(),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }

    /// An error of the system while the folder was locked.
    pub(crate) fn lock_error(&self, error: std::io::Error) -> LockError {
        LockError::Io {
            folder: self.path.clone(),
            error,
        }
    }

    /// Describes the process that holds the lock, if `/proc/locks` lists it.
    fn holder(&self) -> String {
        let shared = self.shared_file_system().ok().flatten();
        // A process of another host is not listed.
        let inode = if shared.is_some() {
            let file = self.inode_of(LOCK_FILE.as_ref()).ok().flatten();
            file.map(|(_, inode)| inode)
        } else {
            fstat(&self.fd).ok().map(|stat| stat.st_ino)
        };
        let pid = inode.and_then(|inode| {
            let locks = std::fs::read_to_string("/proc/locks").ok()?;
            holder_in(&locks, inode)
        });
        match (pid, shared) {
            (Some(pid), _) => format!("process {pid}"),
            (None, None) => "another process".to_owned(),
            (None, Some(_)) => "another process, perhaps of another host".to_owned(),
        }
    }
}

/// Finds the process that holds a lock on this inode in the text of `/proc/locks`.
///
/// A line reads `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`. The device number is ignored because on some file
/// systems it differs from the one of `stat`.
fn holder_in(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else {
            return None;
        };
        let found: u64 = file.rsplit(':').next()?.parse().ok()?;
        (found == inode).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_fails_after_the_time_limit_and_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        let held = folder.lock(Duration::ZERO, &Shutdown::default()).unwrap();
        let other = Dir::open(dir.path()).unwrap();
        let error = other
            .lock(Duration::from_millis(30), &Shutdown::default())
            .unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(&format!("process {}", std::process::id())),
            "{message}"
        );
        drop(held);
        assert!(other.lock(Duration::ZERO, &Shutdown::default()).is_ok());
    }

    #[test]
    fn waiters_are_not_reported_as_holders() {
        let locks = "1: POSIX  ADVISORY  WRITE 10 fe:00:5 0 EOF\n2: FLOCK  ADVISORY  WRITE 11 fe:00:5 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 12 fe:00:5 0 EOF\n";
        assert_eq!(holder_in(locks, 5), Some(11));
        assert_eq!(holder_in(locks, 6), None);
    }
}
