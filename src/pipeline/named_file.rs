//! Ingestion of files and folders that are named on the command line. See docs/specification.md, section 1.

use super::RunContext;
use super::device::{Device, unlisted_folder};
use super::outcome::{FileRecord, Outcome};
use super::sweep::{RESERVED, sweep};
use crate::data_dir::pending_files::{Item, PendingFiles, may_be_named, sort_by_upload};
use crate::data_dir::{DEVICE_DEPTH, DevicePath, Dir, is_no_folder, is_processed_dir};
use crate::remedy::remedy;
use crate::sanitize::sanitize;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// The named files of a device.
struct NamedFiles {
    location: DevicePath,
    /// The device folder, relative to the data folder.
    device: PathBuf,
    /// The folders, relative to the device folder, and the names.
    files: Vec<(PathBuf, OsString)>,
}

/// Ingests what is named on the command line: files, device by device, in the order of their uploads, then the files that
/// wait in the folders.
pub(super) fn ingest_named(context: &RunContext<'_>) {
    let mut files = Vec::new();
    let mut folders = Vec::new();
    for given in &context.settings.paths {
        // A folder with the name of a logger file is an error: the hook names what was uploaded.
        if !given.is_dir() || given.file_name().is_some_and(may_be_named) {
            files.push(given.clone());
            continue;
        }
        match relative_folder(context, given) {
            Ok(folder) if folder.components().count() <= DEVICE_DEPTH => {
                match skipped_shard(context, &folder) {
                    None => folders.push(folder),
                    Some(skipped) => record(context, given, skipped),
                }
            }
            Ok(folder) => add_files_below(context, &folder, &mut files),
            Err(message) => record(context, given, Outcome::Rejected(message)),
        }
    }
    ingest_named_files(context, files);
    folders.sort();
    folders.dedup_by(|folder, before| folder.starts_with(before));
    if !folders.is_empty() {
        sweep(context, &folders);
    }
}

/// The path of a named folder relative to the data folder. The levels of companies, campaigns and devices contain no folder
/// of processed files.
fn relative_folder(context: &RunContext<'_>, given: &Path) -> Result<PathBuf, String> {
    let settings = context.settings;
    let absolute = absolute(given)?;
    let folder = below_data_folder(
        &settings.data_folder,
        &settings.data_folder_given,
        &absolute,
    )?;
    if folder.iter().take(DEVICE_DEPTH).any(is_processed_dir) {
        return Err(RESERVED.to_owned());
    }
    Ok(folder)
}

/// Adds the logger files below a folder in a device folder, such as `parsed/`.
fn add_files_below(context: &RunContext<'_>, folder: &Path, files: &mut Vec<PathBuf>) {
    let path = context.settings.data_folder.join(folder);
    let unlisted = |path, error| context.record_and_send(unlisted_folder(path, None, &error));
    let opened = match context.data.open_below(folder) {
        Ok(opened) => Arc::new(opened),
        Err(error) => return unlisted(path, error),
    };
    for item in PendingFiles::new(&opened, false) {
        match item {
            Item::File(sub, name) => files.push(path.join(sub).join(name)),
            Item::Unlisted(sub, error) => unlisted(path.join(sub), error.into()),
            Item::Retry(_) | Item::Sidecar(_) => {}
        }
    }
}

fn ingest_named_files(context: &RunContext<'_>, mut files: Vec<PathBuf>) {
    sort_by_upload(&mut files, |file| {
        let parent = Dir::open(
            file.parent()
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(Path::new(".")),
        );
        let name = file.file_name()?;
        let stamp = parent.and_then(|parent| parent.stamp_of(name));
        Some((
            stamp.ok().flatten().map(|stamp| stamp.uploaded_ns()),
            name.to_owned(),
        ))
    });
    let mut devices: Vec<NamedFiles> = Vec::new();
    let mut positions: HashMap<PathBuf, usize> = HashMap::new();
    for given in files {
        let (location, folder, name) = match locate(context, &given) {
            Ok(located) => located,
            Err(message) => {
                record(context, &given, Outcome::Rejected(message));
                continue;
            }
        };
        if let Some(skipped) = skipped_shard(context, &folder) {
            record(context, &given, skipped);
            continue;
        }
        let device: PathBuf = folder.iter().take(DEVICE_DEPTH).collect();
        let position = *positions.entry(device.clone()).or_insert_with(|| {
            devices.push(NamedFiles {
                location,
                device,
                files: Vec::new(),
            });
            devices.len() - 1
        });
        let sub = folder.iter().skip(DEVICE_DEPTH).collect();
        devices[position].files.push((sub, name));
    }
    for device in devices {
        if context.stop.is_requested() {
            return;
        }
        device.ingest(context);
    }
}

/// The outcome of what is named in a folder, relative to the data folder, that this host leaves to another one.
fn skipped_shard(context: &RunContext<'_>, folder: &Path) -> Option<Outcome> {
    let shard = context.settings.shard.as_ref()?;
    (!shard.has(folder)).then(|| {
        let owner = shard.describe(folder);
        Outcome::Skipped(format!(
            "company is in shard {owner}, not {shard}; left for the next sweep of its host, or name it with --shard {owner}"
        ))
    })
}

impl NamedFiles {
    fn ingest(self, context: &RunContext<'_>) {
        let error = match Device::open(context, self.location, &self.device) {
            Ok(device) => return device.ingest_named(&self.files),
            Err(error) => error,
        };
        for (sub, name) in &self.files {
            let path: PathBuf = [&context.settings.data_folder, &self.device, sub]
                .iter()
                .collect();
            record(
                context,
                &path.join(name),
                if is_no_folder(&error) {
                    Outcome::Rejected(format!(
                        "cannot open the device folder: {error}; check the path"
                    ))
                } else {
                    Outcome::Retryable(format!(
                        "cannot open the device folder: {error}; {}",
                        remedy(&error, "check its permissions")
                    ))
                },
            );
        }
    }
}

/// The device of a named file, its folder relative to the data folder, and its name.
fn locate(
    context: &RunContext<'_>,
    given: &Path,
) -> Result<(DevicePath, PathBuf, OsString), String> {
    let settings = context.settings;
    let (folder, name) =
        folder_and_name(&settings.data_folder, &settings.data_folder_given, given)?;
    let location =
        DevicePath::of_folder(&folder, &settings.meta_bucket).map_err(|error| error.to_string())?;
    Ok((location, folder, name))
}

fn record(context: &RunContext<'_>, path: &Path, outcome: Outcome) {
    context.record_and_send(FileRecord::unread(path.to_owned(), None, outcome));
}

/// Splits the path of a named file into its folder, relative to the data folder, and its name.
fn folder_and_name(
    data: &Path,
    given_data: &Path,
    given: &Path,
) -> Result<(PathBuf, OsString), String> {
    let absolute = absolute(given)?;
    let name = match absolute.components().next_back() {
        Some(Component::Normal(name)) => name.to_owned(),
        _ => return Err("path has no file name; correct it".to_owned()),
    };
    if !may_be_named(&name) {
        return Err(
            "not a logger file: the name does not end in '.tsv'; file left in place".to_owned(),
        );
    }
    let parent = absolute.parent().unwrap_or(&absolute);
    Ok((below_data_folder(data, given_data, parent)?, name))
}

fn absolute(given: &Path) -> Result<PathBuf, String> {
    std::path::absolute(given).map_err(|error| format!("invalid path: {error}; correct it"))
}

/// The path of a folder, given as an absolute path, relative to the data folder.
///
/// Symbolic links inside the data folder are rejected, because they could lead into another company.
fn below_data_folder(data: &Path, given_data: &Path, folder: &Path) -> Result<PathBuf, String> {
    let resolved = folder
        .canonicalize()
        .map_err(|error| format!("cannot resolve the folder: {error}; check the path"))?;
    let Ok(relative) = resolved.strip_prefix(data) else {
        return Err(format!(
            "path is outside the data folder {}; move it there or correct --dataFolder",
            sanitize(data)
        ));
    };
    // Links in the path of the data folder itself are allowed, so only the components below it are compared.
    let normalized = normalize(folder);
    let has_no_link = [data, given_data]
        .into_iter()
        .find_map(|data| normalized.strip_prefix(data).ok())
        .map_or_else(|| normalized.ends_with(relative), |below| below == relative);
    if !has_no_link {
        return Err("path contains a symbolic link; use the real path".to_owned());
    }
    Ok(relative.to_owned())
}

/// Resolves `.` and `..` in a path without following links.
fn normalize(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normalized.pop();
            }
            Component::CurDir => {}
            part => normalized.push(part),
        }
    }
    normalized
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_named_file_must_lie_below_the_data_folder_by_its_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let data = root.join("data");
        std::fs::create_dir_all(data.join("a/s/1/parsed")).unwrap();
        std::fs::create_dir_all(data.join("b/s")).unwrap();
        std::fs::create_dir_all(root.join("other/a/s/1")).unwrap();
        symlink(data.join("a/s/1"), data.join("b/s/1")).unwrap();
        symlink(&data, root.join("alias")).unwrap();
        let folder_of = |path: &str| {
            folder_and_name(&data, &root.join("alias"), &root.join(path)).map(|(folder, _)| folder)
        };
        assert_eq!(folder_of("data/a/s/1/x.tsv"), Ok("a/s/1".into()));
        assert_eq!(
            folder_of("data/a/s/1/parsed/x.tsv"),
            Ok("a/s/1/parsed".into())
        );
        assert_eq!(folder_of("alias/a/s/1/x.tsv"), Ok("a/s/1".into()));
        assert_eq!(
            folder_of("data/a/../b/s/../../a/s/1/x.tsv"),
            Ok("a/s/1".into())
        );
        assert!(
            folder_of("data/b/s/1/../1/x.tsv").is_err(),
            "a link, and back"
        );
        assert!(
            folder_of("data/b/s/1/x.tsv").is_err(),
            "a link into another company"
        );
        symlink(&data, data.join("b/a")).unwrap();
        for path in ["data/b/a/a/s/1/x.tsv", "alias/b/a/a/s/1/x.tsv"] {
            assert!(
                folder_of(path).is_err(),
                "{path}: a link inside the data folder"
            );
        }
        assert!(folder_of("other/a/s/1/x.tsv").is_err());
        assert!(folder_of("data/../other/a/s/1/x.tsv").is_err());
        assert!(folder_of("data/a/s/1/x.txt").is_err());
        assert!(folder_of("data/a/s/2/x.tsv").is_err());
    }
}
