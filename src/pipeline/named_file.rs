//! A file that is named on the command line.

use super::device::Device;
use super::{RunContext, tell};
use crate::data_dir::DevicePath;
use crate::report::{FileReport, Status};
use crate::sanitize::sanitize;
use std::path::{Component, Path, PathBuf};

/// Deals with a file that somebody named.
pub(super) fn ingest_named(context: &RunContext<'_>, given: &Path) {
    let told = |words: String| {
        tell(
            context,
            FileReport::unread(given, None, Status::Error, words),
        )
    };
    let settings = context.settings;
    let (folder, name) =
        match folder_and_name(&settings.data_folder, &settings.data_folder_given, given) {
            Ok(parsed) => parsed,
            Err(words) => return told(words),
        };
    let location = match DevicePath::of_folder(&folder, &context.settings.meta_bucket) {
        Ok(location) => location,
        Err(error) => return told(error.to_string()),
    };
    let device: PathBuf = folder.iter().take(3).collect();
    let sub: PathBuf = folder.iter().skip(3).collect();
    match Device::open(context, location, &device) {
        Ok(device) => device.ingest_named(&sub, &name),
        Err(error) => told(format!(
            "its folder cannot be opened: {error}; check the path"
        )),
    }
}

/// The folder of a named file below the data folder, and its name. The way there must not lead over a link that somebody
/// made inside the data folder: it could lead into another company.
fn folder_and_name(
    data: &Path,
    given_data: &Path,
    given: &Path,
) -> Result<(PathBuf, std::ffi::OsString), String> {
    let absolute =
        std::path::absolute(given).map_err(|error| format!("its path cannot be used: {error}"))?;
    let name = match absolute.components().next_back() {
        Some(Component::Normal(name)) => name.to_owned(),
        _ => return Err("its path names no file; check it".to_owned()),
    };
    if !name
        .to_string_lossy()
        .to_ascii_lowercase()
        .ends_with(".tsv")
    {
        return Err(
            "its name does not end in .tsv, so it is no logger's file; it stays where it is"
                .to_owned(),
        );
    }
    let parent = absolute.parent().unwrap_or(&absolute);
    let resolved = parent
        .canonicalize()
        .map_err(|error| format!("its folder cannot be found: {error}; check the path"))?;
    let Ok(relative) = resolved.strip_prefix(data) else {
        return Err(format!(
            "it lies outside the data folder {}; nothing is done",
            sanitize(data)
        ));
    };
    // However the data folder itself was reached, below it each part of the way must be what it says.
    let spelled = without_detours(parent);
    let spelled_out = [data, given_data]
        .into_iter()
        .find_map(|data| spelled.strip_prefix(data).ok())
        .map_or_else(|| spelled.ends_with(relative), |below| below == relative);
    if !spelled_out {
        return Err(
            "the way to it leads over a symbolic link; name it by its real path".to_owned(),
        );
    }
    Ok((relative.to_owned(), name))
}

/// The path as it is spelled, each `..` with the folder before it taken out.
fn without_detours(path: &Path) -> PathBuf {
    let mut spelled = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                spelled.pop();
            }
            Component::CurDir => {}
            part => spelled.push(part),
        }
    }
    spelled
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
        let parsed = |path: &str| {
            folder_and_name(&data, &root.join("alias"), &root.join(path)).map(|(folder, _)| folder)
        };
        assert_eq!(parsed("data/a/s/1/x.tsv"), Ok("a/s/1".into()));
        assert_eq!(parsed("data/a/s/1/parsed/x.tsv"), Ok("a/s/1/parsed".into()));
        assert_eq!(parsed("alias/a/s/1/x.tsv"), Ok("a/s/1".into()));
        assert_eq!(
            parsed("data/a/../b/s/../../a/s/1/x.tsv"),
            Ok("a/s/1".into())
        );
        assert!(parsed("data/b/s/1/../1/x.tsv").is_err(), "a link, and back");
        assert!(
            parsed("data/b/s/1/x.tsv").is_err(),
            "a link into another company"
        );
        symlink(&data, data.join("b/a")).unwrap();
        for way in ["data/b/a/a/s/1/x.tsv", "alias/b/a/a/s/1/x.tsv"] {
            assert!(parsed(way).is_err(), "{way}: a link inside the data folder");
        }
        assert!(parsed("other/a/s/1/x.tsv").is_err());
        assert!(parsed("data/../other/a/s/1/x.tsv").is_err());
        assert!(parsed("data/a/s/1/x.txt").is_err());
        assert!(parsed("data/a/s/2/x.tsv").is_err());
    }
}
