//! The files in a device folder in which the program remembers something. See docs/specification.md, sections 4 and 11.
//!
//! They are hidden, so that no run takes them. Uploaders may be able to write to them, so they may be anything.

use super::{Dir, OpenError};
use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};

/// Remembers the layouts of the files.
pub(crate) const LAYOUT_FILE: &str = ".powerview-layout.json";

/// Remembers the days whose hourly summaries are still to be computed.
pub(crate) const PENDING_FILE: &str = ".powerview-rollup.json";

/// The temporary name for replacing a file. It is constant, so that the next replacement removes what a killed run left, and
/// hidden, so that no run takes it.
pub(super) fn temporary(name: &str) -> String {
    match name.strip_suffix(".json") {
        Some(stem) => format!("{stem}.tmp"),
        None => format!(".{}.tmp", name.trim_start_matches('.')),
    }
}

/// Whether a file of this name in a device folder is one of them.
pub(super) fn is_state_file(name: &OsStr) -> bool {
    [LAYOUT_FILE, PENDING_FILE]
        .iter()
        .any(|file| name == *file || name == temporary(file).as_str())
}

impl Dir {
    /// Reads a file. `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read, is not a regular file, or is longer than `max` bytes.
    pub(crate) fn read_state_file(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let open = match self.open_file(OsStr::new(name)) {
            Ok(open) => open,
            Err(OpenError::Gone) => return Ok(None),
            Err(OpenError::NotAFile(what)) => return Err(invalid(format!("it is {what}"))),
            Err(OpenError::Io(error)) => return Err(error),
        };
        let size = usize::try_from(open.stamp.size).ok();
        let Some(size) = size.filter(|size| *size <= max) else {
            return Err(invalid(format!("it is longer than {max} bytes")));
        };
        // Room for one byte more, so that a single read finds the end.
        let mut text = Vec::with_capacity(size + 1);
        (&*open.file).take(max as u64).read_to_end(&mut text)?;
        Ok(Some(text))
    }

    /// Atomically replaces a file. It is not synced, so a power failure may undo this.
    ///
    /// The caller must hold the lock of the folder.
    pub(crate) fn replace_state_file(&self, name: &str, text: &[u8]) -> io::Result<()> {
        self.replace(name, text, |_| Ok(()))
    }

    /// Atomically replaces a file that is written to the disk before, unless `is_wanted` says otherwise just before that.
    /// Returns whether it was replaced.
    ///
    /// The caller must hold the lock of the folder.
    pub(crate) fn replace_file(
        &self,
        name: &str,
        text: &[u8],
        is_wanted: impl FnOnce() -> io::Result<bool>,
    ) -> io::Result<bool> {
        let mut is_replaced = true;
        self.replace(name, text, |file| {
            file.sync_all()?;
            is_replaced = is_wanted()?;
            if is_replaced {
                Ok(())
            } else {
                Err(io::ErrorKind::Interrupted.into())
            }
        })
        .or_else(|error| if is_replaced { Err(error) } else { Ok(()) })?;
        Ok(is_replaced)
    }

    /// Writes a temporary file, calls `before` and renames the file.
    fn replace(
        &self,
        name: &str,
        text: &[u8],
        before: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let temporary = temporary(name);
        self.remove(&temporary)?;
        let file = self.write_new(OsStr::new(&temporary), text)?;
        let remove = |_: &io::Error| {
            let _ = unlinkat(&self.fd, &temporary, AtFlags::empty());
        };
        before(&file).inspect_err(remove)?;
        let rename = || renameat(&self.fd, &temporary, &self.fd, name);
        let renamed = match rename() {
            Err(Errno::ISDIR) => self.remove(name).and_then(|()| Ok(rename()?)),
            result => result.map_err(io::Error::from),
        };
        renamed.inspect_err(remove)
    }

    /// Removes a file, if there is one.
    ///
    /// The caller must hold the device lock.
    pub(crate) fn remove_state_file(&self, name: &str) -> io::Result<()> {
        self.remove(name)
    }

    /// Whether there is a file of this name, or something else.
    pub(crate) fn has_state_file(&self, name: &str) -> io::Result<bool> {
        Ok(self.inode_of(OsStr::new(name))?.is_some())
    }
}
