//! Sidecars: `<file>.error.json` beside each file in `error/`, with the error and whether the file is retryable.
//!
//! A sidecar is written before its file is moved in and removed after the file is moved out, so that every file in
//! `error/` has one at any time. A run that is killed in between leaves a sidecar without a file, which is removed when
//! the file is processed again or `error/` is listed. See docs/specification.md, section 7.

use super::{Dir, OpenError};
use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};

/// Suffix that is appended to the file's name.
pub(crate) const SUFFIX: &str = ".error.json";

/// Temporary name for replacing a sidecar. It is constant, so that the next run removes what a killed run left.
pub(super) const TEMPORARY: &str = ".powerview-sidecar.tmp";

/// Maximum number of bytes read of a sidecar. Sidecars written by this program have a few hundred.
const MAX_SIZE: u64 = 64 * 1024;

/// The content of a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sidecar {
    /// Error message.
    pub error: String,
    /// Whether the file itself is valid, so that it can be retried.
    pub retryable: bool,
    /// Time of the error, ISO 8601 in UTC.
    pub time: String,
    /// Time when the file was moved to `error/`, ISO 8601 in UTC.
    #[serde(default)]
    pub arrived: String,
    /// Id of the run that wrote the sidecar.
    pub run_id: String,
}

/// The name of the sidecar of `file`.
pub(super) fn name_for(file: &OsStr) -> OsString {
    let mut name = file.to_owned();
    name.push(SUFFIX);
    name
}

impl Dir {
    /// Writes the sidecar of a file before it is moved in. An existing sidecar of a killed run is replaced.
    ///
    /// The caller must hold the device lock.
    pub(crate) fn write_sidecar(&self, file: &OsStr, sidecar: &Sidecar) -> io::Result<()> {
        self.remove_sidecar(file)?;
        self.write_new_sidecar(&name_for(file), sidecar)
    }

    /// Atomically replaces the sidecar of a file that stays in the folder, and keeps its time of arrival.
    ///
    /// The caller must hold the device lock.
    pub(crate) fn replace_sidecar(&self, file: &OsStr, sidecar: &Sidecar) -> io::Result<()> {
        let mut sidecar = sidecar.clone();
        if let Ok(Some(previous)) = self.read_sidecar(file) {
            sidecar.arrived = previous.arrived;
        }
        self.remove_unfinished_sidecar()?;
        self.write_new_sidecar(OsStr::new(TEMPORARY), &sidecar)?;
        Ok(renameat(&self.fd, TEMPORARY, &self.fd, name_for(file))?)
    }

    /// Removes the sidecar that a file left when it was moved to `parsed/`, under the name `file` or a numbered one.
    ///
    /// The caller must hold the device lock.
    pub(crate) fn remove_leftover_sidecars(&self, file: &OsStr) -> io::Result<()> {
        self.remove_unfinished_sidecar()?;
        for n in 0.. {
            let candidate = super::numbered_name(file, n, super::SIDECAR_NAME_ROOM);
            if self.inode_of(&candidate)?.is_none() {
                return self.remove_sidecar(&candidate);
            }
        }
        Ok(())
    }

    /// Removes the temporary file of a run that was killed while it replaced a sidecar.
    ///
    /// The caller must hold the device lock.
    pub(crate) fn remove_unfinished_sidecar(&self) -> io::Result<()> {
        match unlinkat(&self.fd, TEMPORARY, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_new_sidecar(&self, name: &OsStr, sidecar: &Sidecar) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(sidecar)?;
        text.push(b'\n');
        self.write_new(name, &text)?.sync_all().inspect_err(|_| {
            let _ = unlinkat(&self.fd, name, AtFlags::empty());
        })
    }

    /// Reads the sidecar of `file`. `None` if there is none or its content is not valid.
    ///
    /// # Errors
    /// If the sidecar exists but cannot be read.
    pub(crate) fn read_sidecar(&self, file: &OsStr) -> io::Result<Option<Sidecar>> {
        let open = match self.open_file(&name_for(file)) {
            Ok(open) => open,
            Err(OpenError::Io(error)) => return Err(error),
            Err(OpenError::Gone | OpenError::NotAFile(_)) => return Ok(None),
        };
        let mut text = Vec::new();
        (&*open.file).take(MAX_SIZE).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text).ok())
    }

    /// Removes the sidecar of `file`, if it exists.
    pub(crate) fn remove_sidecar(&self, file: &OsStr) -> io::Result<()> {
        match unlinkat(&self.fd, name_for(file), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the sidecar of `file` if the file itself does not exist.
    pub(crate) fn remove_orphan_sidecar(&self, file: &OsStr) -> io::Result<()> {
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
    fn a_sidecar_is_written_read_and_removed() {
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
            "its file exists"
        );
        std::fs::remove_file(dir.path().join("x.tsv")).unwrap();
        folder.remove_orphan_sidecar(name).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn invalid_json_is_not_a_sidecar() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.tsv.error.json"), "{").unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        assert_eq!(folder.read_sidecar(OsStr::new("x.tsv")).unwrap(), None);
    }
}
