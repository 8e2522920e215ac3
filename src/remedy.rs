//! What to do about an error of the operating system.

use rustix::io::Errno;
use std::io;

/// What to do if no thread can be started.
pub(crate) const MORE_THREADS: &str =
    "raise the limit of processes (ulimit -u, TasksMax= of the systemd unit)";

/// What to do if the limit of open files is too low.
pub(crate) const MORE_OPEN_FILES: &str =
    "raise the limit of open files (ulimit -n, LimitNOFILE= of the systemd unit)";

/// What to do if a file system has no locks.
pub(crate) const LOCKS: &str = "mount the file system with locks (NFS: version 4, or version 3 with rpc.statd), or use another one";

/// What to do if the file system is no longer connected: its server has excluded this host, or its program has ended.
const MOUNT_AGAIN: &str = "unmount the file system and mount it again";

/// What to do about an error. Where it does not depend on the error, it is `otherwise`.
pub(crate) fn remedy<'a>(error: &io::Error, otherwise: &'a str) -> &'a str {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC) => "free disk space or inodes",
        Some(Errno::DQUOT) => "free disk space or raise the quota (of the user, or of the folder)",
        Some(Errno::ROFS) => {
            "mount the file system writable, or add the folder to ReadWritePaths= of the systemd unit; a disk error may be the cause, see the kernel log"
        }
        Some(Errno::IO) => "check the disk, see the kernel log",
        Some(Errno::FBIG) => {
            "raise the limit of file sizes (ulimit -f, LimitFSIZE= of the systemd unit)"
        }
        Some(Errno::MFILE) => MORE_OPEN_FILES,
        Some(Errno::NFILE) => "raise the limit of open files of the system (sysctl fs.file-max)",
        Some(Errno::NOMEM) => "free memory or raise its limit",
        Some(Errno::SHUTDOWN | Errno::NOTCONN) => MOUNT_AGAIN,
        _ => otherwise,
    }
}

/// What to do about an error of a lock.
pub(crate) fn lock_remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        // EOPNOTSUPP and ENOTSUP are the same on Linux.
        Some(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => LOCKS,
        Some(Errno::ACCESS | Errno::PERM) => {
            "check the permissions of the folder, and of .powerview-lock in it if there is one"
        }
        _ => remedy(error, "check that the file system supports locks"),
    }
}

/// Whether the error means that this process or the system has too many open files.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_a_quota_and_a_failing_disk_have_their_own_remedies() {
        for (errno, expected) in [
            (Errno::NOSPC, "disk space"),
            (Errno::DQUOT, "quota"),
            (Errno::ROFS, "writable"),
            (Errno::IO, "check the disk"),
            (Errno::FBIG, "file sizes"),
            (Errno::MFILE, "ulimit -n"),
            (Errno::NFILE, "fs.file-max"),
            (Errno::NOMEM, "memory"),
            // Of a client of CephFS that was evicted, and of a mount of FUSE whose program has ended.
            (Errno::SHUTDOWN, "mount it again"),
            (Errno::NOTCONN, "mount it again"),
            (Errno::ACCESS, "check the permissions"),
            (Errno::PERM, "check the permissions"),
        ] {
            let remedy = remedy(&errno.into(), "check the permissions");
            assert!(remedy.contains(expected), "{errno:?}: {remedy}");
        }
        for (errno, expected) in [
            (Errno::NOLCK, "with locks"),
            (Errno::OPNOTSUPP, "with locks"),
            (Errno::ACCESS, ".powerview-lock"),
            (Errno::IO, "check the disk"),
            (Errno::SHUTDOWN, "mount it again"),
            (Errno::INVAL, "supports locks"),
        ] {
            let remedy = lock_remedy(&errno.into());
            assert!(remedy.contains(expected), "{errno:?}: {remedy}");
        }
        // Other calls than locks fail with it too.
        assert_eq!(remedy(&Errno::NOSYS.into(), "try again"), "try again");
        let other = io::Error::other("no errno");
        assert_eq!(remedy(&other, "try again"), "try again");
    }
}
