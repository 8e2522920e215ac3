//! `powerview status --acknowledge`: accepts the layouts of devices as they are.

use super::device_folder::{DeviceFolder, Locking};
use super::diagnose::layout_problems;
use crate::data_dir::LAYOUT_FILE;
use crate::layout::LayoutState;
use crate::sanitize::sanitize;
use anyhow::anyhow;
use chrono::Utc;
use std::io::ErrorKind;
use std::path::Path;

/// Acknowledges the changed or suspect layout of a device, and returns what was acknowledged, a line each.
///
/// # Errors
/// `given` is no device folder, there is nothing to acknowledge, or the device folder cannot be locked or written.
pub(super) fn acknowledge(
    data: &Path,
    given: &Path,
    lock: Locking<'_>,
) -> anyhow::Result<Vec<String>> {
    let DeviceFolder { name, dir, .. } = &DeviceFolder::open(data, given, lock)?;
    let file = sanitize(dir.path().join(LAYOUT_FILE));
    let mut state = LayoutState::read(dir).map_err(|error| match error.kind() {
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
        .write(dir)
        .map_err(|error| anyhow!("cannot write {file}: {error}; run as the user of the hook"))?;
    let lines = problems.into_iter();
    Ok(lines
        .map(|(message, _)| format!("{name}: acknowledged: {message}"))
        .collect())
}
