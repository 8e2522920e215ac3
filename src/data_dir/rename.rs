//! Moves by rename, which never overwrite and never copy. See docs/specification.md, section 1.

use super::{Dir, EntryKind, Inode, SIDECAR_NAME_ROOM, Sidecar, numbered_name};
use crate::remedy::remedy;
use rustix::fs::{AtFlags, RenameFlags, linkat, renameat_with, unlinkat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;

/// Why a file cannot be moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MoveError {
    /// The file no longer exists.
    #[error("the file no longer exists")]
    Gone,
    /// The name now belongs to another file.
    #[error("another file took its name during ingestion")]
    Replaced,
    /// The target folder is on another file system.
    #[error("the target folder is on another file system; replace it by a folder on the same one")]
    OtherFileSystem,
    /// Any other I/O error.
    #[error(
        "{error}; {}",
        remedy(.0, "check the permissions of the folder"),
        error = .0
    )]
    Io(#[from] io::Error),
}

impl Dir {
    /// Moves `name` into `target` as `wanted`, or as `<stem>.1.tsv`, `.2` and so on if that exists.
    ///
    /// Returns the new name. It leaves `room` bytes free for a suffix. Names that `accept` rejects are skipped. After
    /// an error the file is still in its old place.
    pub(crate) fn move_into(
        &self,
        name: &OsStr,
        target: &Dir,
        wanted: &OsStr,
        room: usize,
        mut accept: impl FnMut(&OsStr) -> io::Result<bool>,
    ) -> Result<OsString, MoveError> {
        for n in 0..u32::MAX {
            let candidate = numbered_name(wanted, n, room);
            if !accept(&candidate)? {
                continue;
            }
            match rename_no_replace(self, name, target, &candidate) {
                Ok(()) => return Ok(candidate),
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Err(MoveError::Gone),
                Err(Errno::XDEV) => return Err(MoveError::OtherFileSystem),
                Err(error) => return Err(MoveError::Io(error.into())),
            }
        }
        Err(MoveError::Io(io::ErrorKind::AlreadyExists.into()))
    }

    /// Moves a file like [`Dir::move_into`] into a device's `error/`. The sidecar is written first, so that the file
    /// always has one.
    pub(crate) fn move_into_error(
        &self,
        name: &OsStr,
        errors: &Dir,
        wanted: &OsStr,
        sidecar: &Sidecar,
    ) -> Result<OsString, MoveError> {
        let mut written = None;
        let result = self.move_into(name, errors, wanted, SIDECAR_NAME_ROOM, |candidate| {
            if errors.inode_of(candidate)?.is_some() {
                return Ok(false);
            }
            match errors.write_sidecar(candidate, sidecar) {
                // A folder has the sidecar's name.
                Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(false),
                result => result?,
            }
            written = Some(candidate.to_owned());
            Ok(true)
        });
        if let (Err(_), Some(candidate)) = (&result, written) {
            let _ = errors.remove_orphan_sidecar(&candidate);
        }
        result
    }

    /// Checks that `name` still refers to the file `inode`, so that no other file is moved.
    ///
    /// # Errors
    /// [`MoveError::Gone`] or [`MoveError::Replaced`] if it does not.
    pub(crate) fn ensure_same_file(&self, name: &OsStr, inode: Inode) -> Result<(), MoveError> {
        match self.inode_of(name)? {
            Some(found) if found == inode => Ok(()),
            Some(_) => Err(MoveError::Replaced),
            None => Err(MoveError::Gone),
        }
    }

    /// Removes the names of the file `inode` from this folder, with their sidecars. Returns whether there were any.
    ///
    /// The caller must know that the file has another name.
    pub(crate) fn remove_links(&self, inode: Inode) -> io::Result<bool> {
        let mut links = Vec::new();
        self.for_each_entry(|name, kind| {
            if kind == EntryKind::File && self.is_same_file(name, inode).unwrap_or(false) {
                links.push(name.to_owned());
            }
        })?;
        for name in &links {
            unlinkat(&self.fd, name, AtFlags::empty())?;
            self.remove_sidecar(name)?;
        }
        Ok(!links.is_empty())
    }

    /// Whether `name` refers to the file `inode`.
    pub(crate) fn is_same_file(&self, name: &OsStr, inode: Inode) -> io::Result<bool> {
        Ok(self.inode_of(name)? == Some(inode))
    }
}

fn rename_no_replace(from: &Dir, name: &OsStr, to: &Dir, target: &OsStr) -> Result<(), Errno> {
    match renameat_with(&from.fd, name, &to.fd, target, RenameFlags::NOREPLACE) {
        // Some network file systems do not support the flag. A hard link and an unlink do not overwrite either.
        Err(Errno::INVAL | Errno::NOSYS) => {
            linkat(&from.fd, name, &to.fd, target, AtFlags::empty())?;
            match unlinkat(&from.fd, name, AtFlags::empty()) {
                // The old name is gone, so the new one is the only one.
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => {
                    let _ = unlinkat(&to.fd, target, AtFlags::empty());
                    Err(error)
                }
            }
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skipped::skipped;

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let from = Dir::open(dir.path()).unwrap();
        let to = from.open_or_make("parsed").unwrap();
        for (n, expected) in [(0, "x.tsv"), (1, "x.1.tsv"), (2, "x.2.tsv")] {
            std::fs::write(dir.path().join("x.tsv"), n.to_string()).unwrap();
            let got = from
                .move_into(OsStr::new("x.tsv"), &to, OsStr::new("x.tsv"), 0, |_| {
                    Ok(true)
                })
                .unwrap();
            assert_eq!(got, expected);
            assert_eq!(
                std::fs::read_to_string(dir.path().join("parsed").join(got)).unwrap(),
                n.to_string()
            );
        }
        assert!(matches!(
            from.move_into(OsStr::new("x.tsv"), &to, OsStr::new("x.tsv"), 0, |_| Ok(
                true
            )),
            Err(MoveError::Gone)
        ));
    }

    #[test]
    fn a_move_to_another_file_system_fails_and_copies_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(shm) = tempfile::tempdir_in("/dev/shm") else {
            return skipped("/dev/shm", "mount a second file system there");
        };
        let from = Dir::open(dir.path()).unwrap();
        let to = Dir::open(shm.path()).unwrap();
        std::fs::write(dir.path().join("x.tsv"), "1").unwrap();
        let result = from.move_into(OsStr::new("x.tsv"), &to, OsStr::new("x.tsv"), 0, |_| {
            Ok(true)
        });
        assert!(
            matches!(result, Err(MoveError::OtherFileSystem)),
            "{result:?}"
        );
        assert!(dir.path().join("x.tsv").exists());
        assert_eq!(std::fs::read_dir(shm.path()).unwrap().count(), 0);
    }
}
