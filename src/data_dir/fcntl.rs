//! `F_SETLEASE` and `F_GETLEASE`, which no safe crate wraps. The only unsafe code of the program.
#![allow(
    unsafe_code,
    reason = "fcntl's lease commands take integers and touch no memory of the process"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Takes a read lease on the open file. The process gets `SIGIO` when somebody wants to write to the file.
///
/// # Errors
/// `EAGAIN` if the file is open for writing anywhere; `EACCES` if it belongs to another user; `EINVAL` and others if the
/// file system knows no leases.
pub(super) fn set_read_lease(file: BorrowedFd<'_>) -> io::Result<()> {
    set_lease(file, libc::F_RDLCK)
}

/// Gives the lease back.
///
/// # Errors
/// `EAGAIN` if there is none.
pub(super) fn release_lease(file: BorrowedFd<'_>) -> io::Result<()> {
    set_lease(file, libc::F_UNLCK)
}

/// Whether the read lease still stands. A broken one does not: a writer waits for its release, or it is gone.
///
/// # Errors
/// Those of the file system.
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
