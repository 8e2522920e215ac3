//! `<file>.error.json` beside a file in `error/`: what went wrong, when, and whether another try is worth it.
//!
//! It is written before its file is moved in, and removed after the file is moved out: at every instant a file in `error/` has
//! its sidecar. A run that was killed in between leaves a sidecar without a file; whoever deals with the file next, or
//! looks through `error/`, removes it.

use super::{Dir, OpenError};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};

/// What follows a file's name, and so the room that the name must leave.
pub const SUFFIX: &str = ".error.json";

/// A sidecar that is to replace another. Always the same name: what a killed run left is used up by the next one.
const TEMPORARY: &str = ".powerview-sidecar.tmp";

/// Sidecars are a few hundred bytes; a larger one is nobody's.
const MAX_SIZE: u64 = 64 * 1024;

/// The content of a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// What went wrong.
    pub error: String,
    /// Whether the file is fine and another try is worth it.
    pub retryable: bool,
    /// When, ISO 8601 in UTC.
    pub time: String,
    /// When the file came to `error/`, ISO 8601 in UTC: of several that came with one name, the order.
    #[serde(default)]
    pub arrived: String,
    /// The run that put it there.
    pub run_id: String,
}

/// The sidecar's name for a file's name.
pub fn name_for(file: &OsStr) -> OsString {
    let mut name = file.to_owned();
    name.push(SUFFIX);
    name
}

impl Dir {
    /// Writes the sidecar for a file that is about to be moved in; the caller holds the device's lock. One that a killed run
    /// left half written has no file and is written anew.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_sidecar(&self, file: &OsStr, sidecar: &Sidecar) -> io::Result<()> {
        self.remove_sidecar(file)?;
        self.write_new(&name_for(file), sidecar)
    }

    /// Replaces the sidecar of a file that stays in the folder, whole or not at all; the caller holds the device's lock. When the
    /// file came stays as it was.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn replace_sidecar(&self, file: &OsStr, sidecar: &Sidecar) -> io::Result<()> {
        let mut sidecar = sidecar.clone();
        if let Ok(Some(former)) = self.read_sidecar(file) {
            sidecar.arrived = former.arrived;
        }
        self.remove_unfinished_sidecar()?;
        self.write_new(OsStr::new(TEMPORARY), &sidecar)?;
        Ok(renameat(&self.fd, TEMPORARY, &self.fd, name_for(file))?)
    }

    /// Removes the sidecar that is left of a file which went from here, under `file`'s name or a numbered one, to `parsed/`; the
    /// caller holds the device's lock.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn tidy_sidecars(&self, file: &OsStr) -> io::Result<()> {
        self.remove_unfinished_sidecar()?;
        for n in 0.. {
            let candidate = super::numbered_name(file, n, super::SIDECAR_NAME_ROOM);
            if self.inode_of(&candidate)?.is_none() {
                return self.remove_sidecar(&candidate);
            }
        }
        Ok(())
    }

    /// Removes what a run left that was killed while it replaced a sidecar; the caller holds the device's lock.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_unfinished_sidecar(&self) -> io::Result<()> {
        match unlinkat(&self.fd, TEMPORARY, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_new(&self, name: &OsStr, sidecar: &Sidecar) -> io::Result<()> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut out = File::from(openat(&self.fd, name, flags, Mode::from_raw_mode(0o664))?);
        let mut text = serde_json::to_vec_pretty(sidecar)?;
        text.push(b'\n');
        out.write_all(&text)
            .and_then(|()| out.sync_all())
            .inspect_err(|_| {
                let _ = unlinkat(&self.fd, name, AtFlags::empty());
            })
    }

    /// Reads the sidecar of `file`; none where there is none, or it is no sidecar.
    ///
    /// # Errors
    /// Where it is there and cannot be read.
    pub fn read_sidecar(&self, file: &OsStr) -> io::Result<Option<Sidecar>> {
        let open = match self.open_file(&name_for(file)) {
            Ok(open) => open,
            Err(OpenError::Io(error)) => return Err(error),
            Err(OpenError::Gone | OpenError::NotAFile(_)) => return Ok(None),
        };
        let mut text = Vec::new();
        (&*open.file).take(MAX_SIZE).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text).ok())
    }

    /// Removes the sidecar of `file`, if there is one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_sidecar(&self, file: &OsStr) -> io::Result<()> {
        match unlinkat(&self.fd, name_for(file), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the sidecar of `file` if the file itself is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_orphan_sidecar(&self, file: &OsStr) -> io::Result<()> {
        match self.inode_of(file)? {
            Some(_) => Ok(()),
            None => self.remove_sidecar(file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_reads_back_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        let name = OsStr::new("x.tsv");
        let sidecar = Sidecar {
            error: "é\n".to_owned(),
            retryable: true,
            time: "2025-08-03T03:20:00Z".to_owned(),
            arrived: "2025-08-03T03:20:00Z".to_owned(),
            run_id: "r".to_owned(),
        };
        assert_eq!(folder.read_sidecar(name).unwrap(), None);
        folder.write_sidecar(name, &sidecar).unwrap();
        assert_eq!(folder.read_sidecar(name).unwrap(), Some(sidecar.clone()));
        let other = Sidecar {
            retryable: false,
            arrived: "2025-08-04T03:20:00Z".to_owned(),
            ..sidecar.clone()
        };
        folder.replace_sidecar(name, &other).unwrap();
        let replaced = Sidecar {
            arrived: sidecar.arrived,
            ..other
        };
        assert_eq!(folder.read_sidecar(name).unwrap(), Some(replaced));
        std::fs::write(dir.path().join("x.tsv"), "").unwrap();
        folder.remove_orphan_sidecar(name).unwrap();
        assert!(
            folder.read_sidecar(name).unwrap().is_some(),
            "its file is there"
        );
        std::fs::remove_file(dir.path().join("x.tsv")).unwrap();
        folder.remove_orphan_sidecar(name).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn rubbish_is_no_sidecar() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.tsv.error.json"), "{").unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        assert_eq!(folder.read_sidecar(OsStr::new("x.tsv")).unwrap(), None);
    }
}
