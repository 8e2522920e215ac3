//! The free space of the file systems that a run writes to.

use super::{CheckResult, Finding, Installation};
use crate::config;
use crate::sanitize::sanitize;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The free space below which `check` warns, unless a smaller share of the file system is free.
const LOW_BYTES: u64 = 1 << 30;

/// The share of the file system below which `check` warns: one part of so many.
const LOW_PARTS: u64 = 20;

pub(super) fn check_data_space(installation: &Installation<'_>) -> CheckResult {
    Some(free_space(installation.data_folder.as_ref().ok()?))
}

/// Checks the file system of the reports, if it is another one than that of the data folder.
pub(super) fn check_report_space(installation: &Installation<'_>) -> CheckResult {
    let data = installation.data_folder.as_ref().ok()?;
    let reports = config::report_dir(data, installation.env);
    let is_same = reports.metadata().ok()?.dev() == data.metadata().ok()?.dev();
    (!is_same).then(|| free_space(&reports))
}

fn free_space(folder: &Path) -> Finding {
    let shown = sanitize(folder);
    let stat = match rustix::fs::statvfs(folder) {
        Ok(stat) => stat,
        Err(error) => {
            return Finding::Warning(format!("the free space of {shown} is unknown: {error}"));
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    let remedy = "delete old reports and files, or extend the file system";
    // Some file systems have no fixed number of inodes.
    if stat.f_files > 0 && stat.f_favail == 0 {
        Finding::Failure(format!("no inode is free in {shown}; {remedy}"))
    } else if free == 0 {
        Finding::Failure(format!("no space is free in {shown}; {remedy}"))
    } else if free < LOW_BYTES.min(total / LOW_PARTS) {
        Finding::Warning(format!(
            "only {} of {} are free in {shown}; {remedy}",
            mebibytes(free),
            mebibytes(total)
        ))
    } else {
        Finding::Good(format!("{} are free in {shown}", mebibytes(free)))
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
