//! Read leases, which prove that no process has a file open for writing.
//!
//! The kernel grants a read lease only if no process at all has the file open for writing. While the lease is held, the
//! `open` call of a new writer blocks in the kernel, and this process gets `SIGIO`. The writer has resolved the inode
//! by then and will write to the same file wherever it is moved. Therefore a file whose lease is broken before the move
//! stays, and one whose lease is broken during the move is moved back before the writer continues.
//!
//! See docs/specification.md, section 9.

use super::fcntl::{has_read_lease, release_lease, set_read_lease};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Interval at which all leases are checked even without `SIGIO`, which may be blocked. Limits the wait of a writer.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Why a lease was not granted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// The file is open for writing in this or another process.
    #[error("the file is open for writing")]
    Writer,
    /// The file system does not support leases or refused one, or the file belongs to another user.
    #[error("no lease: {0}")]
    Unavailable(io::Error),
}

/// A read lease on an open file. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lease {
    id: u64,
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    file: Arc<File>,
    phase: Mutex<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A new writer breaks the lease, which is then released at once.
    Guarding,
    /// A new writer waits until the file is moved.
    Moving,
    /// A writer broke the lease, and it was released.
    Broken,
    /// The lease was released after the move.
    Released,
}

impl Lease {
    /// Takes a read lease on `file`, which must be open for reading only.
    pub(super) fn take(file: &Arc<File>) -> Result<Self, LeaseError> {
        let registry = registry().map_err(|error| {
            LeaseError::Unavailable(io::Error::new(error.kind(), error.to_string()))
        })?;
        set_read_lease(file.as_fd()).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock if refusal_proves_writer(file) => LeaseError::Writer,
            _ => LeaseError::Unavailable(error),
        })?;
        let held = Arc::new(Held {
            file: Arc::clone(file),
            phase: Mutex::new(Phase::Guarding),
        });
        let id = registry.add(Arc::clone(&held));
        Ok(Self { id, held })
    }

    /// Whether no process has opened the file for writing since the lease was taken.
    pub(crate) fn is_intact(&self) -> bool {
        match *self.held.phase() {
            Phase::Guarding | Phase::Moving => self.held.has_lease(),
            Phase::Broken | Phase::Released => false,
        }
    }

    /// Makes new writers wait until [`Lease::release`]. Returns whether the lease is intact.
    pub(crate) fn begin_move(&self) -> bool {
        let mut phase = self.held.phase();
        if *phase == Phase::Guarding && self.held.has_lease() {
            *phase = Phase::Moving;
            return true;
        }
        false
    }

    /// Releases the lease. A waiting writer continues.
    pub(crate) fn release(&self) {
        let mut phase = self.held.phase();
        if matches!(*phase, Phase::Guarding | Phase::Moving) {
            *phase = Phase::Released;
            self.held.release();
        }
    }

    /// Whether a process has the file open for writing now. For use after the release.
    pub(crate) fn has_writer(&self) -> bool {
        let file = self.held.file.as_fd();
        match set_read_lease(file) {
            Ok(()) => {
                let broken = !self.held.has_lease();
                self.held.release();
                broken
            }
            Err(error) => {
                error.kind() == io::ErrorKind::WouldBlock && refusal_proves_writer(&self.held.file)
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Ok(registry) = registry() {
            registry.leases().remove(&self.id);
        }
        self.release();
    }
}

impl Held {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_lease(&self) -> bool {
        has_read_lease(self.file.as_fd()).unwrap_or(false)
    }

    fn release(&self) {
        // This fails only if the kernel has revoked the lease already.
        if let Err(error) = release_lease(self.file.as_fd()) {
            tracing::debug!("lease was already released: {error}");
        }
    }

    /// Releases the lease if a writer waits for it, unless the file is being moved.
    fn yield_to_writer(&self) {
        let mut phase = self.phase();
        if *phase == Phase::Guarding && !self.has_lease() {
            *phase = Phase::Broken;
            self.release();
        }
    }
}

/// `f_type` of the network file systems NFS, CIFS and SMB2. They also refuse a lease if their server has not granted
/// one to this machine.
const REMOTE_FILE_SYSTEMS: [i64; 3] = [0x6969, 0xFF53_4D42, 0xFE53_4D42];

/// Whether a refused lease proves that there is a writer.
fn refusal_proves_writer(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| !REMOTE_FILE_SYSTEMS.contains(&fs.f_type))
}

/// All leases of the process.
struct Registry {
    leases: Mutex<HashMap<u64, Arc<Held>>>,
    next: AtomicU64,
}

impl Registry {
    fn add(&self, held: Arc<Held>) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.leases().insert(id, held);
        id
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<u64, Arc<Held>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn yield_to_writers(&self) {
        let held: Vec<_> = self.leases().values().cloned().collect();
        for held in held {
            held.yield_to_writer();
        }
    }
}

/// Returns the registry, and starts its thread that handles `SIGIO` on first use.
///
/// No lease is taken if the thread cannot be started: the signal would end the process, and writers would wait
/// for 45 s.
fn registry() -> Result<&'static Registry, &'static io::Error> {
    static REGISTRY: OnceLock<io::Result<Registry>> = OnceLock::new();
    REGISTRY
        .get_or_init(|| {
            let (mut wake, signal) = UnixStream::pair()?;
            wake.set_read_timeout(Some(POLL_INTERVAL))?;
            signal_hook::low_level::pipe::register(signal_hook::consts::SIGIO, signal)?;
            std::thread::Builder::new()
                .name("leases".to_owned())
                .spawn(move || {
                    let mut signals = [0; 64];
                    loop {
                        // The result does not matter: all leases are checked, also after a time-out.
                        let _ = wake.read(&mut signals);
                        if let Some(Ok(registry)) = REGISTRY.get() {
                            registry.yield_to_writers();
                        }
                    }
                })?;
            Ok(Registry {
                leases: Mutex::default(),
                next: AtomicU64::new(0),
            })
        })
        .as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::path::Path;
    use std::time::Instant;

    fn file(dir: &tempfile::TempDir) -> (std::path::PathBuf, Arc<File>) {
        let path = dir.path().join("x.tsv");
        std::fs::write(&path, "old").unwrap();
        let open = Arc::new(File::open(&path).unwrap());
        (path, open)
    }

    fn overwrite(path: &Path) -> std::thread::JoinHandle<Instant> {
        let path = path.to_owned();
        std::thread::spawn(move || {
            let mut writer = File::create(path).unwrap();
            let opened = Instant::now();
            writer.write_all(b"new").unwrap();
            opened
        })
    }

    #[test]
    fn no_lease_is_granted_for_a_file_that_is_open_for_writing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, open) = file(&dir);
        let writer = File::options().append(true).open(&path).unwrap();
        assert!(matches!(Lease::take(&open), Err(LeaseError::Writer)));
        drop(writer);
        assert!(Lease::take(&open).unwrap().is_intact());
    }

    #[test]
    fn a_refusal_proves_a_writer_on_local_file_systems() {
        let dir = tempfile::tempdir().unwrap();
        let (_, open) = file(&dir);
        assert!(refusal_proves_writer(&open));
    }

    #[test]
    fn a_writer_breaks_the_lease_and_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (path, open) = file(&dir);
        let lease = Lease::take(&open).unwrap();
        let start = Instant::now();
        let opened = overwrite(&path).join().unwrap();
        assert!(
            opened - start < Duration::from_secs(5),
            "not the kernel's 45 s"
        );
        assert!(!lease.is_intact());
        assert!(!lease.begin_move());
    }

    #[test]
    fn a_writer_that_opens_the_file_during_a_move_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (path, open) = file(&dir);
        let lease = Lease::take(&open).unwrap();
        assert!(lease.begin_move());
        let writer = overwrite(&path);
        let deadline = Instant::now() + Duration::from_secs(20);
        while lease.is_intact() {
            assert!(
                Instant::now() < deadline,
                "the writer does not open the file"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(2 * POLL_INTERVAL);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        let released = Instant::now();
        lease.release();
        assert!(writer.join().unwrap() >= released);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_writer_is_detected_after_the_release() {
        let dir = tempfile::tempdir().unwrap();
        let (path, open) = file(&dir);
        let lease = Lease::take(&open).unwrap();
        lease.release();
        assert!(!lease.has_writer());
        let _writer = File::options().append(true).open(&path).unwrap();
        assert!(lease.has_writer());
    }

    #[test]
    fn a_lease_that_is_dropped_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let (path, open) = file(&dir);
        drop(Lease::take(&open).unwrap());
        assert!(!has_read_lease(open.as_fd()).unwrap());
        File::options().append(true).open(&path).unwrap();
    }
}
