//! The file in a device folder that remembers the layouts of its files. See docs/specification.md, section 4.
//!
//! It is hidden, so that no run takes it. Uploaders can write to it, so it may be anything.

use super::{Dir, OpenError};
use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io::{self, Read as _};

/// The name of the file.
pub(crate) const LAYOUT_FILE: &str = ".powerview-layout.json";

/// Temporary name for replacing it. It is constant, so that the next replacement removes what a killed run left.
const TEMPORARY: &str = ".powerview-layout.tmp";

/// Whether a file of this name in a device folder belongs to the program.
pub(super) fn is_layout_file(name: &OsStr) -> bool {
    name == LAYOUT_FILE || name == TEMPORARY
}

impl Dir {
    /// Reads the file. `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read, is not a regular file, or is longer than `max` bytes.
    pub(crate) fn read_layout_file(&self, max: usize) -> io::Result<Option<Vec<u8>>> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let open = match self.open_file(OsStr::new(LAYOUT_FILE)) {
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

    /// Atomically replaces the file. It is not synced: if a power failure undoes this, the layout is read from
    /// `parsed/` again.
    ///
    /// The caller must hold the device lock.
    pub(crate) fn replace_layout_file(&self, text: &[u8]) -> io::Result<()> {
        self.remove(TEMPORARY)?;
        self.write_new(OsStr::new(TEMPORARY), text)?;
        let rename = || renameat(&self.fd, TEMPORARY, &self.fd, LAYOUT_FILE);
        let renamed = match rename() {
            Err(Errno::ISDIR) => self.remove(LAYOUT_FILE).and_then(|()| Ok(rename()?)),
            result => result.map_err(io::Error::from),
        };
        renamed.inspect_err(|_| {
            let _ = unlinkat(&self.fd, TEMPORARY, AtFlags::empty());
        })
    }
}
