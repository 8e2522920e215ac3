//! A file that gets its name when it is complete, so that a killed run leaves nothing behind.

use super::give_to_owner_of;
use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tempfile::TempPath;

/// Permissions of the file.
const MODE: u32 = 0o664;

/// A new file without a name.
pub(crate) struct NewFile {
    path: PathBuf,
    file: File,
    /// The path of the file on file systems that do not support unnamed files. Only there a killed run leaves a file.
    temporary: Option<TempPath>,
}

impl NewFile {
    /// Creates a file that belongs to the owner of its folder.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(crate) fn create(dir: &Path, name: &str) -> io::Result<Self> {
        let unnamed = OpenOptions::new()
            .write(true)
            .mode(MODE)
            .custom_flags(OFlags::TMPFILE.bits().cast_signed())
            .open(dir);
        let (file, temporary) = if let Ok(file) = unnamed {
            (file, None)
        } else {
            let (file, path) = tempfile::Builder::new()
                .permissions(Permissions::from_mode(MODE))
                .tempfile_in(dir)?
                .into_parts();
            (file, Some(path))
        };
        give_to_owner_of(File::open(dir)?, &file)?;
        Ok(Self {
            path: dir.join(name),
            file,
            temporary,
        })
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Flushes the file to disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Gives the file its name and returns its path. An existing file is never replaced.
    ///
    /// # Errors
    /// The file cannot be linked, or the name exists.
    pub(crate) fn publish(self) -> io::Result<PathBuf> {
        match self.temporary {
            None => {
                let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(CWD, unnamed, CWD, &self.path, AtFlags::SYMLINK_FOLLOW)?;
            }
            Some(temporary) => temporary.persist_noclobber(&self.path)?,
        }
        Ok(self.path)
    }
}
