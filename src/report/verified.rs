//! `verified.json` beside the run reports: when the points of each device were last found equal to its files. See
//! docs/specification.md, section 10.

use super::json::write_json;
use crate::data_dir::{Dir, LockError, OpenError, create_dir, give_to_owner_of};
use crate::shutdown::Shutdown;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// The name of the file.
pub(crate) const VERIFIED_FILE: &str = "verified.json";

/// Permissions of the file, which are those of a report.
const MODE: u32 = 0o664;

/// The maximum size of the file in bytes. A device has about a hundred.
const MAX_SIZE: u64 = 16 * 1024 * 1024;

/// How far a time may be in the future, because the clock of the machine may be set back.
const MAX_AHEAD: TimeDelta = TimeDelta::days(1);

/// How long to wait for another process that writes the file.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// When a device was last found equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verified {
    /// The end of the comparison.
    pub time: DateTime<Utc>,
    /// The first time that was compared. `None` if all times were.
    pub since: Option<DateTime<Utc>>,
}

/// The devices by their paths, `company/campaign/device`.
pub(crate) type VerifiedDevices = BTreeMap<String, Verified>;

/// Reads the file in the folder of the reports. It is empty if there is none.
///
/// # Errors
/// It cannot be read, or its content is not what this program writes.
pub(crate) fn read_verified(reports: &Path) -> io::Result<VerifiedDevices> {
    match Dir::open(reports) {
        Ok(folder) => read(&folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(VerifiedDevices::new()),
        Err(error) => Err(error),
    }
}

fn read(folder: &Dir) -> io::Result<VerifiedDevices> {
    let open = match folder.open_file(OsStr::new(VERIFIED_FILE)) {
        Ok(open) => open,
        Err(OpenError::Gone) => return Ok(VerifiedDevices::new()),
        Err(OpenError::Io(error)) => return Err(error),
        Err(error @ OpenError::NotAFile(_)) => return Err(io::Error::other(error.to_string())),
    };
    let mut text = Vec::new();
    (&*open.file).take(MAX_SIZE).read_to_end(&mut text)?;
    let latest = Utc::now() + MAX_AHEAD;
    let devices = serde_json::from_slice(&text).ok();
    devices
        .filter(|devices: &VerifiedDevices| devices.values().all(|device| device.time <= latest))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its content is not valid"))
}

/// Adds devices to the file in the folder of the reports, which is created if it is missing. Devices without a folder in
/// `data` are removed. A file whose content is not valid is replaced.
///
/// # Errors
/// The file cannot be written, or another process does not release it.
pub(crate) fn add_verified(
    reports: &Path,
    data: &Dir,
    devices: VerifiedDevices,
    stop: &Shutdown,
) -> io::Result<()> {
    create_dir(reports)?;
    let folder = Dir::open(reports)?.used_by(data.hosts());
    // Two processes that read the file before either writes it would lose devices.
    let _lock = folder.lock(LOCK_WAIT, stop).map_err(|error| match error {
        LockError::Held { holder, .. } => {
            io::Error::other(format!("the folder is locked by {holder}"))
        }
        error => io::Error::other(error.with_remedy()),
    })?;
    let mut all = read(&folder).unwrap_or_default();
    all.extend(devices);
    all.retain(|path, _| data.open_below(Path::new(path)).is_ok());
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(reports)?;
    give_to_owner_of(std::fs::File::open(reports)?, &file)?;
    write_json(file.as_file_mut(), &all)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(reports.join(VERIFIED_FILE))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(path: &str) -> VerifiedDevices {
        let time = DateTime::from_timestamp(1_750_000_000, 0).unwrap();
        VerifiedDevices::from([(path.to_owned(), Verified { time, since: None })])
    }

    #[test]
    fn devices_are_added_and_those_without_a_folder_removed() {
        let dir = tempfile::tempdir().unwrap();
        let reports = dir.path().join("logs/reports");
        for path in ["data/a/b/1", "data/a/b/2"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let data = Dir::open(&dir.path().join("data")).unwrap();
        let add =
            |path| add_verified(&reports, &data, verified(path), &Shutdown::default()).unwrap();
        assert_eq!(read_verified(&reports).unwrap(), VerifiedDevices::new());
        add("a/b/1");
        add("a/b/2");
        let mut both = verified("a/b/1");
        both.extend(verified("a/b/2"));
        assert_eq!(read_verified(&reports).unwrap(), both);
        std::fs::remove_dir(dir.path().join("data/a/b/1")).unwrap();
        add("a/b/2");
        assert_eq!(read_verified(&reports).unwrap(), verified("a/b/2"));
        assert_eq!(std::fs::read_dir(&reports).unwrap().count(), 1);
    }

    #[test]
    fn processes_that_write_at_the_same_time_keep_the_devices_of_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let data = Dir::open(dir.path()).unwrap();
        let reports = dir.path().join("reports");
        std::thread::scope(|scope| {
            for n in 0..20 {
                let path = format!("a/b/{n}");
                std::fs::create_dir_all(dir.path().join(&path)).unwrap();
                let (reports, data) = (&reports, &data);
                scope.spawn(move || {
                    add_verified(reports, data, verified(&path), &Shutdown::default()).unwrap();
                });
            }
        });
        assert_eq!(read_verified(&reports).unwrap().len(), 20);
    }

    #[test]
    fn other_content_is_an_error_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b/1")).unwrap();
        let data = Dir::open(dir.path()).unwrap();
        let file = dir.path().join(VERIFIED_FILE);
        for text in [
            "",
            "{",
            "[]",
            r#"{"a/b/1": "2025-01-01T00:00:00Z"}"#,
            r#"{"a/b/1": {"time": "yesterday", "since": null}}"#,
            r#"{"a/b/1": {"time": "2999-01-01T00:00:00Z", "since": null}}"#,
        ] {
            std::fs::write(&file, text).unwrap();
            assert!(read_verified(dir.path()).is_err(), "{text}");
        }
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("elsewhere", &file).unwrap();
        assert!(read_verified(dir.path()).is_err());
        add_verified(dir.path(), &data, verified("a/b/1"), &Shutdown::default()).unwrap();
        assert_eq!(read_verified(dir.path()).unwrap(), verified("a/b/1"));
        assert!(!dir.path().join("elsewhere").exists());
    }
}
