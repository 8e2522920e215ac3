//! Compares device folders: which of them together, and which again because their files have changed.

use super::group::Group;
use super::{DeviceResult, Measurement, Verification, Verifier, VerifyError};
use crate::data_dir::{DeviceItem, DevicePath, LockError, PARSED};
use crate::sanitize::sanitize;
use crate::sink::ReadError;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// The devices that were compared, by company and measurement.
#[derive(Default)]
pub(crate) struct Devices(pub(super) BTreeMap<(String, String), Vec<Compared>>);

/// Device folders that were compared together.
pub(super) struct Compared {
    pub folders: Vec<(PathBuf, DevicePath)>,
    pub masters: BTreeSet<String>,
    /// When `parsed/` of each folder was last changed before it was listed; none if it may have changed since.
    pub listed: Vec<Option<i128>>,
    /// Whether all files were read.
    pub is_complete: bool,
    /// Whether the folders have to be compared again.
    pub is_outdated: bool,
    pub results: Vec<DeviceResult>,
}

impl Compared {
    /// Folders that cannot be compared. Their points are not those of a device without a folder.
    fn failed(folders: Vec<(PathBuf, DevicePath)>, mut masters: BTreeSet<String>) -> Self {
        let names = folders
            .iter()
            .map(|(_, location)| location.device.as_str().to_owned());
        masters.extend(names);
        Self {
            masters,
            listed: vec![None; folders.len()],
            folders,
            is_complete: true,
            is_outdated: false,
            results: Vec::new(),
        }
    }
}

impl Verifier<'_> {
    /// Compares the device folders again whose files have changed since they were compared.
    pub(super) fn compare_changed(
        &self,
        measurement: &Measurement<'_>,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        for earlier in compared.iter_mut() {
            for ((path, _), listed) in earlier.folders.iter().zip(&earlier.listed) {
                earlier.is_outdated |= self.has_changed(path, *listed);
            }
        }
        self.compare_outdated(measurement, compared, verification)
    }

    /// Whether `parsed/` of a folder was changed after it was listed, or cannot be found any more.
    fn has_changed(&self, path: &Path, listed: Option<i128>) -> bool {
        let folder = self.data.open_below(path);
        let modified = folder.and_then(|folder| folder.folder_modified_ns(PARSED));
        modified.map_or(true, |modified| modified != listed)
    }

    /// Compares the device folders again that are outdated. The others stay in `compared` meanwhile, because the new files
    /// of a folder may be of their masters.
    fn compare_outdated(
        &self,
        measurement: &Measurement<'_>,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        while let Some(position) = compared.iter().position(|earlier| earlier.is_outdated) {
            let Compared {
                folders, masters, ..
            } = compared.remove(position);
            self.compare_folders(measurement, folders, masters, true, compared, verification)?;
        }
        Ok(())
    }

    /// Compares the device folders that were not compared yet.
    pub(super) fn compare_new(
        &self,
        measurement: &Measurement<'_>,
        campaigns: &BTreeSet<PathBuf>,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        for campaign in campaigns {
            for item in self.folders_in(campaign, verification) {
                if let DeviceItem::Device(path) = item {
                    self.compare_if_new(measurement, path, compared, verification)?;
                }
            }
        }
        Ok(())
    }

    /// Compares a device folder that was not compared yet.
    fn compare_if_new(
        &self,
        measurement: &Measurement<'_>,
        path: PathBuf,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        let is_compared = compared
            .iter()
            .flat_map(|compared| &compared.folders)
            .any(|(folder, _)| *folder == path);
        if is_compared {
            return Ok(());
        }
        match DevicePath::of_folder(&path, self.options.meta_bucket) {
            Ok(location) => {
                let folders = vec![(path, location)];
                let masters = BTreeSet::new();
                self.compare_folders(measurement, folders, masters, false, compared, verification)
            }
            Err(error) => {
                verification.notes.push(error.to_string());
                Ok(())
            }
        }
    }

    /// Compares folders, together with those that have files of the same masters. `masters` are those that they had.
    fn compare_folders(
        &self,
        measurement: &Measurement<'_>,
        mut folders: Vec<(PathBuf, DevicePath)>,
        mut masters: BTreeSet<String>,
        reads_old_files: bool,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<(), VerifyError> {
        let is_removed = |path: &Path| {
            let opened = self.data.open_below(path);
            opened.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        loop {
            // The points of a folder that was removed are those of devices without a folder.
            folders.retain(|(path, _)| !is_removed(path));
            if folders.is_empty() {
                return Ok(());
            }
            let opened = Group::open(self, measurement, &folders, reads_old_files);
            let result = opened.and_then(|mut group| {
                masters = group.masters();
                if add_shared(&mut folders, compared, &masters) {
                    return Ok(None);
                }
                let counts = group.compare()?;
                // Files have arrived meanwhile.
                masters = group.masters();
                let is_shared = add_shared(&mut folders, compared, &masters);
                Ok((!is_shared).then_some((group, counts)))
            });
            match result {
                Ok(None) => {}
                Ok(Some((group, counts))) => {
                    verification.repaired += group.repaired;
                    verification.notes.extend(group.notes());
                    compared.push(group.end(folders, counts));
                    return Ok(());
                }
                Err(error @ (VerifyError::Read(_) | VerifyError::Write(_))) => return Err(error),
                Err(error) if error.is_stop() => return Err(error),
                Err(error) => {
                    let path = sanitize(&folders[0].0);
                    verification.failures.push(format!("{path}: {error}"));
                    compared.push(Compared::failed(folders, masters));
                    return Ok(());
                }
            }
        }
    }

    /// Waits until the files that are being ingested are moved, and compares the folders again whose files have changed.
    /// Returns the folders that stay locked, with the reason.
    pub(super) fn wait_for_files_on_the_way(
        &self,
        measurement: &Measurement<'_>,
        campaigns: &BTreeSet<PathBuf>,
        compared: &mut Vec<Compared>,
        verification: &mut Verification,
    ) -> Result<Vec<String>, VerifyError> {
        let mut locked = Vec::new();
        self.compare_new(measurement, campaigns, compared, verification)?;
        for earlier in compared.iter_mut() {
            earlier.is_outdated |= !earlier.is_complete;
            for ((path, _), listed) in earlier.folders.iter().zip(&earlier.listed) {
                let folder = self.data.open_below(path);
                // The lock is free once a file that is being ingested is moved.
                match folder.map(|folder| folder.lock(self.options.lock_wait, self.stop)) {
                    Ok(Ok(_)) | Err(_) => {}
                    Ok(Err(LockError::Stopped)) => return Err(ReadError::Stopped.into()),
                    Ok(Err(error)) => locked.push(format!(
                        "{}: points without a file may belong to one that is being ingested: {error}; {}",
                        sanitize(path),
                        error.remedy().unwrap_or("run it again")
                    )),
                }
                earlier.is_outdated |= self.has_changed(path, *listed);
            }
        }
        self.compare_outdated(measurement, compared, verification)?;
        Ok(locked)
    }
}

/// Takes the folders with files of `masters` out of those that were compared, and adds them. Returns whether there were any.
fn add_shared(
    folders: &mut Vec<(PathBuf, DevicePath)>,
    compared: &mut Vec<Compared>,
    masters: &BTreeSet<String>,
) -> bool {
    let shares = |other: &mut Compared| !other.masters.is_disjoint(masters);
    let shared: Vec<_> = compared.extract_if(.., shares).collect();
    folders.extend(shared.iter().flat_map(|other| other.folders.clone()));
    // Locks are acquired in this order.
    folders.sort_by(|(a, _), (b, _)| a.cmp(b));
    !shared.is_empty()
}
