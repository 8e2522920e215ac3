//! The advisory lock on a device folder, which only one process holds at a time.
//!
//! The lock is on the folder itself, so it ends with its process and leaves no lock file.
//! See docs/specification.md, section 9.

use super::{Dir, Obstacle};
use crate::remedy::remedy;
use crate::sanitize::sanitize;
use crate::shutdown::{POLL_INTERVAL, Shutdown};
use rustix::fs::{FlockOperation, Mode, flock, fstat, openat};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

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
    #[error("cannot lock the device folder: {0}")]
    Io(std::io::Error),
}

impl LockError {
    /// What to do, as far as the message does not say it.
    pub(crate) fn remedy(&self) -> Option<&str> {
        match self {
            Self::Held { .. } => Some("check that process"),
            Self::Stopped | Self::Obstacle(_) => None,
            Self::Io(error) => Some(remedy(error, "check that the file system supports locks")),
        }
    }
}

impl Dir {
    /// Acquires the lock. Waits for it for `wait` at most.
    pub(crate) fn lock(&self, wait: Duration, stop: &Shutdown) -> Result<DeviceLock, LockError> {
        let start = Instant::now();
        // The lock needs its own open file description: a duplicate of the descriptor would share the lock.
        let own_fd = openat(&self.fd, ".", super::DIR_FLAGS, Mode::empty())
            .map_err(|e| LockError::Io(e.into()))?;
        let mut wait_logged = false;
        loop {
            match flock(&own_fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(DeviceLock(own_fd)),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(LockError::Io(error.into())),
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

    /// Describes the process that holds the lock, if `/proc/locks` lists it.
    fn holder(&self) -> String {
        let pid = fstat(&self.fd).ok().and_then(|stat| {
            let locks = std::fs::read_to_string("/proc/locks").ok()?;
            holder_in(&locks, stat.st_ino)
        });
        pid.map_or_else(
            || "another process".to_owned(),
            |pid| format!("process {pid}"),
        )
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
