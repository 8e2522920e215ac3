//! `powerview status --retire` and `--unretire`: take devices out of service and put them into service again.

use super::device_folder::{DeviceFolder, Locking};
use crate::data_dir::RETIRED_MARKER;
use crate::sanitize::sanitize;
use anyhow::{anyhow, bail};
use std::io;
use std::path::Path;

/// Retires a device, and returns a line that says so.
///
/// # Errors
/// `given` is no device folder, or it cannot be locked or written.
pub(super) fn retire(data: &Path, given: &Path, lock: Locking<'_>) -> anyhow::Result<String> {
    let folder = DeviceFolder::open(data, given, lock)?;
    folder
        .dir
        .retire()
        .map_err(|error| cannot("write", &folder, &error))?;
    Ok(format!(
        "{}: retired, until it sends a file or status --unretire",
        folder.name
    ))
}

/// Puts a retired device into service again, and returns a line that says so.
///
/// # Errors
/// `given` is no device folder or is not retired, or it cannot be locked or written.
pub(super) fn unretire(data: &Path, given: &Path, lock: Locking<'_>) -> anyhow::Result<String> {
    let folder = DeviceFolder::open(data, given, lock)?;
    let was_retired = folder
        .dir
        .unretire()
        .map_err(|error| cannot("remove", &folder, &error))?;
    if !was_retired {
        bail!("{} is not retired", folder.name);
    }
    Ok(format!("{}: in service again", folder.name))
}

fn cannot(action: &str, folder: &DeviceFolder, error: &io::Error) -> anyhow::Error {
    let marker = sanitize(folder.dir.path().join(RETIRED_MARKER));
    anyhow!("cannot {action} {marker}: {error}; run as the user of the hook")
}
