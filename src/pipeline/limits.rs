//! Fits the number of files that are open at the same time to the limit of open files (`RLIMIT_NOFILE`).

use crate::config::ConfigError;
use crate::remedy::MORE_OPEN_FILES;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::num::NonZeroUsize;

/// Maximum number of files in a group.
///
/// Files are processed in groups, because the cost of scanning `/proc` and syncing the sink is independent of their
/// number. Between groups the lock is released.
const MAX_GROUP_FILES: usize = 96;
/// Number of files in a group below which fewer devices are processed at the same time instead.
const SMALL_GROUP_FILES: usize = 8;

/// Open files of a run: the data folder and its listing, the report, the leases, the network, and points about files.
const OPEN_PER_RUN: usize = 14;
/// Open files of a device besides those of its groups: its folder and the listing, the lock, connections, and
/// [`RESERVED_PER_DEVICE`].
const OPEN_PER_DEVICE: usize = 12;
/// Open files of a device that are kept free until the files of a group are moved.
pub(super) const RESERVED_PER_DEVICE: usize = 4;
/// Open files per file of a group: the file, and its folder if it is below the device folder.
const OPEN_PER_FILE: usize = 2;

/// How much is processed at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// The number of devices.
    pub jobs: usize,
    /// The number of files of a device.
    pub group_files: usize,
}

impl Limits {
    /// Raises the limit of open files to the maximum that the system allows, and shares it among `jobs` devices.
    ///
    /// # Errors
    /// The limit is too low for a single file.
    pub(super) fn new(jobs: NonZeroUsize) -> Result<Self, ConfigError> {
        let limit = raise_file_limit();
        // Besides the standard streams, a process may have inherited open files.
        let open = std::fs::read_dir("/proc/self/fd").map_or(3, |open| open.count() - 1);
        Self::share(limit.saturating_sub(open), jobs.get()).ok_or_else(|| {
            let needed = open + OPEN_PER_RUN + OPEN_PER_DEVICE + OPEN_PER_FILE;
            ConfigError(format!(
                "the limit of open files is too low: {limit}, but {needed} are needed; {MORE_OPEN_FILES}"
            ))
        })
    }

    /// Shares the number of files that may still be opened among `jobs` devices.
    fn share(available: usize, jobs: usize) -> Option<Self> {
        let available = available.checked_sub(OPEN_PER_RUN)?;
        let jobs = jobs
            .min(available / (OPEN_PER_DEVICE + SMALL_GROUP_FILES * OPEN_PER_FILE))
            .max(1);
        let files = (available / jobs).checked_sub(OPEN_PER_DEVICE)? / OPEN_PER_FILE;
        (files > 0).then_some(Self {
            jobs,
            group_files: files.min(MAX_GROUP_FILES),
        })
    }
}

/// Raises the limit of open files as far as possible and returns it.
pub(crate) fn raise_file_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    limit.map_or(usize::MAX, |limit| limit.try_into().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_files_are_shared_among_the_devices() {
        for (available, jobs, expected) in [
            (27, 1, None),
            (28, 1, Some((1, 1))),
            (28, 4, Some((1, 1))),
            (61, 4, Some((1, 17))),
            (70, 4, Some((2, 8))),
            (200, 4, Some((4, 17))),
            (1021, 4, Some((4, 96))),
            (1021, 100, Some((35, 8))),
            (usize::MAX, 8, Some((8, 96))),
        ] {
            let limits = Limits::share(available, jobs);
            let limits = limits.map(|limits| (limits.jobs, limits.group_files));
            assert_eq!(limits, expected, "{available} files, {jobs} jobs");
        }
    }
}
