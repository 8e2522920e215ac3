//! The files of a campaign folder that belong to its catalogue of channels. See docs/specification.md, section 12.

use super::state_file::temporary;
use super::{Dir, Inode, OpenError, OpenFile, Stamp};
use rustix::fs::{AtFlags, FileType, statat};
use std::ffi::OsStr;
use std::io;
use std::path::Path;

/// The catalogue.
pub(crate) const CATALOGUE_FILE: &str = "channels.csv";

/// Why the catalogue was refused.
pub(crate) const REFUSAL_FILE: &str = "channels.error.txt";

/// Remembers which catalogue was applied.
pub(crate) const APPLIED_FILE: &str = ".channels.applied";

/// Whether a path below the data folder is one of these files, or one that a killed run left while it replaced one.
pub(crate) fn is_catalogue_file(path: &Path) -> bool {
    let depth = path.components().count();
    let name = path.file_name().unwrap_or_default();
    depth == 3
        && [CATALOGUE_FILE, REFUSAL_FILE, APPLIED_FILE]
            .iter()
            .any(|file| name == *file || name == temporary(file).as_str())
}

impl Dir {
    /// Identity, size and times of whatever has a name in this folder. Links are not followed.
    pub(crate) fn entry_stamp(&self, name: &str) -> io::Result<Option<(Inode, Stamp)>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(((stat.st_dev, stat.st_ino), Stamp::of(&stat)))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a name in this folder is that of a regular file.
    pub(crate) fn is_file(&self, name: &OsStr) -> io::Result<bool> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode).is_file()),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the catalogue of this campaign folder. `None` if there is none.
    ///
    /// # Errors
    /// It is not a regular file, or cannot be opened.
    pub(crate) fn open_catalogue(&self) -> Result<Option<OpenFile>, OpenError> {
        match self.open_file(OsStr::new(CATALOGUE_FILE)) {
            Ok(file) => Ok(Some(file)),
            Err(OpenError::Gone) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_directly_in_a_campaign_belong_to_its_catalogue() {
        for name in [
            "channels.csv",
            "channels.error.txt",
            ".channels.applied",
            ".channels.csv.tmp",
            ".channels.error.txt.tmp",
            ".channels.applied.tmp",
        ] {
            assert!(
                is_catalogue_file(&Path::new("acme/site").join(name)),
                "{name}"
            );
            assert!(!is_catalogue_file(&Path::new("acme").join(name)), "{name}");
            assert!(
                !is_catalogue_file(&Path::new("acme/site/1").join(name)),
                "{name}"
            );
        }
        for name in [
            "Channels.csv",
            "channels.csv.bak",
            "channels.txt",
            "channels",
        ] {
            assert!(
                !is_catalogue_file(&Path::new("acme/site").join(name)),
                "{name}"
            );
        }
    }
}
