//! A device folder that is given on the command line, for the commands of `status` that change something.

use crate::config::{self, ConfigError, Environment};
use crate::data_dir::{DeviceLock, Dir, LockError, is_processed_dir};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use anyhow::anyhow;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a device folder is locked.
#[derive(Clone, Copy)]
pub(super) struct Locking<'a> {
    /// Longest wait for the lock.
    pub wait: Duration,
    /// The settings, in which the companies of this host are.
    pub env: &'a Environment,
}

/// An open and locked device folder.
pub(super) struct DeviceFolder {
    /// Its path below the data folder, sanitized.
    pub name: String,
    pub dir: Dir,
    _lock: DeviceLock,
}

impl DeviceFolder {
    /// Opens and locks a device folder, given relative to the data folder or in any other way.
    ///
    /// # Errors
    /// `given` is no device folder, or it cannot be opened or locked.
    pub(super) fn open(data: &Path, given: &Path, lock: Locking<'_>) -> anyhow::Result<Self> {
        let path = device_path(data, given)?;
        let name = sanitize(&path);
        let company = path.iter().next().and_then(OsStr::to_str);
        let hosts = config::hosts_for(lock.env, company)?;
        let dir = Dir::open(data)
            .and_then(|data| data.used_by(hosts).open_below(&path))
            .map_err(|error| anyhow!("cannot open {name}: {error}; check its permissions"))?;
        let lock = dir
            .lock(lock.wait, &Shutdown::default())
            .map_err(|error| match error {
                LockError::Held { holder, .. } => {
                    anyhow!("{name} is locked by {holder}; try again when it has ended")
                }
                error => anyhow!("{name}: {error}; {}", error.remedy().unwrap_or("try again")),
            })?;
        Ok(Self {
            name,
            dir,
            _lock: lock,
        })
    }
}

/// The path of a device folder below the data folder, given relative to the data folder or in any other way.
fn device_path(data: &Path, given: &Path) -> Result<PathBuf, ConfigError> {
    let candidates = [data.join(given), given.to_owned()];
    let mut resolved = candidates.iter().filter_map(|path| {
        let path = path.canonicalize().ok().filter(|path| path.is_dir())?;
        path.strip_prefix(data).ok().map(Path::to_owned)
    });
    resolved
        .find(|path| path.iter().count() == 3 && !path.iter().any(is_processed_dir))
        .ok_or_else(|| {
            ConfigError(format!(
                "{} is not a device folder in {}; give it as <company>/<campaign>/<device>",
                sanitize(given),
                sanitize(data)
            ))
        })
}
