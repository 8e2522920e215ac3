//! One process at a time works on a device's folder: an advisory lock on the folder itself, which dies with its holder and
//! leaves nothing to clean up. Source: docs/specification.md, section 9.

use super::Dir;
use crate::sanitize::sanitize;
use crate::shutdown::{POLL_INTERVAL, Shutdown};
use rustix::fs::{FlockOperation, Mode, flock, fstat, openat};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Held until it is dropped.
#[derive(Debug)]
pub struct DeviceLock(#[expect(dead_code, reason = "closing it releases the lock")] OwnedFd);

/// Another process holds the lock and does not let go.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The wait is over.
    #[error("the folder is being worked on by {holder} since more than {} s; look at that process, the file stays where it is", .waited.as_secs())]
    Held {
        /// "process 4711", or words for one that cannot be named.
        holder: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The run was asked to end.
    #[error("the run was asked to stop")]
    Stopped,
    /// The file system knows no locks, or the folder is gone.
    #[error("the folder cannot be locked: {0}; the file stays where it is")]
    Io(std::io::Error),
}

impl Dir {
    /// Waits for the lock, at most `wait`.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn lock(&self, wait: Duration, stop: &Shutdown) -> Result<DeviceLock, LockError> {
        let start = Instant::now();
        // A duplicate of this descriptor would share its lock: the lock needs an opening of its own.
        let own = openat(&self.fd, ".", super::FOLDER, Mode::empty())
            .map_err(|e| LockError::Io(e.into()))?;
        let mut told = false;
        loop {
            match flock(&own, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(DeviceLock(own)),
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
            if !told && waited > Duration::from_secs(2) {
                told = true;
                tracing::info!("{}: waiting for {}", sanitize(&self.path), self.holder());
            }
            std::thread::sleep(POLL_INTERVAL.min(wait - waited));
        }
    }

    /// Who holds the lock, as far as the system says.
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

/// The process that holds a lock on this inode. A line reads `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`. The device
/// is not compared: some file systems give another one here than to `stat`.
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
    fn a_second_lock_waits_no_longer_than_it_may_and_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        let held = folder.lock(Duration::ZERO, &Shutdown::default()).unwrap();
        let other = Dir::open(dir.path()).unwrap();
        let busy = other
            .lock(Duration::from_millis(30), &Shutdown::default())
            .unwrap_err();
        let words = busy.to_string();
        assert!(
            words.contains(&format!("process {}", std::process::id())),
            "{words}"
        );
        drop(held);
        assert!(other.lock(Duration::ZERO, &Shutdown::default()).is_ok());
    }

    #[test]
    fn waiters_are_not_taken_for_holders() {
        let locks = "1: POSIX  ADVISORY  WRITE 10 fe:00:5 0 EOF\n2: FLOCK  ADVISORY  WRITE 11 fe:00:5 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 12 fe:00:5 0 EOF\n";
        assert_eq!(holder_in(locks, 5), Some(11));
        assert_eq!(holder_in(locks, 6), None);
    }
}
