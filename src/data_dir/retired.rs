//! The marker of a device that is out of service: an empty file in the device folder. See docs/specification.md, section 8.
//!
//! It is hidden, so that no run takes it. Its modification time says since when.

use super::{Dir, Stamp};
use std::ffi::OsStr;
use std::io;
use std::time::SystemTime;

/// The name of the marker.
pub(crate) const RETIRED_MARKER: &str = ".powerview-retired";

impl Dir {
    /// Since when the device is retired, or `None` if it is in service.
    pub(crate) fn retired(&self) -> io::Result<Option<SystemTime>> {
        self.modified(OsStr::new(RETIRED_MARKER))
    }

    /// Retires the device from now on.
    ///
    /// The caller must hold the device lock.
    pub(crate) fn retire(&self) -> io::Result<()> {
        self.remove(RETIRED_MARKER)?;
        self.write_new(OsStr::new(RETIRED_MARKER), b"").map(drop)
    }

    /// Puts the device into service again. Returns whether it was retired.
    ///
    /// The caller must hold the device lock.
    pub(crate) fn unretire(&self) -> io::Result<bool> {
        let is_retired = self.retired()?.is_some();
        self.remove(RETIRED_MARKER)?;
        Ok(is_retired)
    }

    /// Puts the device into service again if a file was uploaded after it was retired. Returns whether it was.
    ///
    /// The caller must hold the device lock.
    pub(crate) fn unretire_after(&self, upload: &Stamp) -> io::Result<bool> {
        match self.stamp_of(OsStr::new(RETIRED_MARKER))? {
            Some(marker) if upload.uploaded_ns() > marker.uploaded_ns() => self.unretire(),
            _ => Ok(false),
        }
    }
}
