//! `powerview status --acknowledge`: accepts the layouts of devices as they are.

use super::diagnose::layout_problems;
use crate::config::ConfigError;
use crate::data_dir::{Dir, LAYOUT_FILE, LockError, is_processed_dir};
use crate::layout::LayoutState;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use anyhow::anyhow;
use chrono::Utc;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Acknowledges the changed or suspect layout of a device, and returns what was acknowledged, a line each.
///
/// # Errors
/// `given` is no device folder, there is nothing to acknowledge, or the device folder cannot be locked or written.
pub(super) fn acknowledge(
    data: &Path,
    given: &Path,
    lock_wait: Duration,
) -> anyhow::Result<Vec<String>> {
    let device = device_path(data, given)?;
    let name = sanitize(&device);
    let folder = Dir::open(data)
        .and_then(|data| data.open_below(&device))
        .map_err(|error| anyhow!("cannot open {name}: {error}; check its permissions"))?;
    let _lock = folder
        .lock(lock_wait, &Shutdown::default())
        .map_err(|error| match error {
            LockError::Held { holder, .. } => {
                anyhow!("{name} is locked by {holder}; try again when it has ended")
            }
            error => anyhow!("cannot acknowledge the layout of {name}: {error}"),
        })?;
    let file = sanitize(folder.path().join(LAYOUT_FILE));
    let mut state = LayoutState::read(&folder).map_err(|error| match error.kind() {
        ErrorKind::InvalidData => anyhow!("cannot read {file}: {error}; remove it"),
        _ => anyhow!("cannot read {file}: {error}; run as the user of the hook"),
    })?;
    let problems = layout_problems(&state, Utc::now());
    if problems.is_empty() {
        return Err(anyhow!(
            "{name} has nothing to acknowledge: its layout has not changed for seven days and does not contradict itself"
        ));
    }
    state.acknowledge();
    state
        .write(&folder)
        .map_err(|error| anyhow!("cannot write {file}: {error}; run as the user of the hook"))?;
    let lines = problems.into_iter();
    Ok(lines
        .map(|(message, _)| format!("{name}: acknowledged: {message}"))
        .collect())
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
