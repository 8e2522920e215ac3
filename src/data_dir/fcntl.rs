//! Wrappers of `F_SETLEASE` and `F_GETLEASE`, for which there is no safe crate.
//!
//! This is the only unsafe code of the program.
#![allow(
    unsafe_code,
    reason = "fcntl's lease commands take integers and do not access memory of the process"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Takes a read lease on the open file. The process gets `SIGIO` when another process opens the file for writing.
///
/// # Errors
/// `EAGAIN` if the file is open for writing in any process, `EACCES` if it belongs to another user, `EINVAL` or others
/// if the file system does not support leases.
pub(super) fn set_read_lease(file: BorrowedFd<'_>) -> io::Result<()> {
    set_lease(file, libc::F_RDLCK)
}

/// Releases the lease.
///
/// # Errors
/// `EAGAIN` if there is no lease.
pub(super) fn release_lease(file: BorrowedFd<'_>) -> io::Result<()> {
    set_lease(file, libc::F_UNLCK)
}

/// Whether the read lease is held and not broken. It is broken once a writer waits for its release.
pub(super) fn has_read_lease(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: the descriptor is open while it is borrowed, and F_GETLEASE takes no argument.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) } {
        -1 => Err(io::Error::last_os_error()),
        kind => Ok(kind == libc::F_RDLCK),
    }
}

fn set_lease(file: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open while it is borrowed, and F_SETLEASE takes an integer.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
