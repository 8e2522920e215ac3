//! Detects a data folder that was given some levels too high or too low. See docs/specification.md, section 1.

use super::devices::DEVICE_DEPTH;
use super::pending_files::is_tsv;
use super::{ERROR, PARSED, is_processed_dir};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// How many levels below the right depth device folders are looked for.
const EXTRA_LEVELS: usize = 2;

/// Maximum number of entries that are looked at. In a used data folder, the first device ends the search.
const MAX_ENTRIES: usize = 10_000;

/// The folder that was probably meant if `data` is not the data folder but one above or below it.
///
/// A folder named like a serial number that contains `parsed/` or `error/`, or a logger file too deep, is taken for a
/// device. So is a folder of any name that is too deep and contains `parsed/` or `error/`, which runs create in device
/// folders only, if there is no logger file at the right depth. The search ends with `None` at the first device at the
/// right depth, so that an SFTP user cannot stop the runs of others by creating folders.
pub(crate) fn meant_data_folder(data: &Path) -> Option<PathBuf> {
    search(data, MAX_ENTRIES)
}

fn search(data: &Path, max_entries: usize) -> Option<PathBuf> {
    let mut by_name = None;
    let mut by_structure = None;
    let mut has_file_at_depth = false;
    let mut entries = WalkDir::new(data)
        .min_depth(1)
        .max_depth(DEVICE_DEPTH + EXTRA_LEVELS + 1)
        .into_iter();
    for _ in 0..max_entries {
        let Some(entry) = entries.next() else { break };
        let Ok(entry) = entry else { continue };
        let is_processed = entry.file_type().is_dir() && is_processed_dir(entry.file_name());
        let is_file = entry.file_type().is_file() && is_tsv(entry.file_name());
        let depth = entry.depth() - 1;
        let is_too_deep = depth > DEVICE_DEPTH;
        if is_processed || is_file && is_too_deep {
            // Of a folder that is too deep, one file says as much as all.
            entries.skip_current_dir();
        }
        let folder = entry.path().parent()?;
        let is_serial = folder.file_name().is_some_and(is_serial);
        if depth == DEVICE_DEPTH && (is_processed || is_file && is_serial) {
            return None;
        }
        has_file_at_depth |= depth == DEVICE_DEPTH && is_file;
        let meant = || folder.ancestors().nth(DEVICE_DEPTH).map(Path::to_owned);
        if by_name.is_none() && is_serial && (is_processed || is_file && is_too_deep) {
            by_name = meant();
        }
        let is_device = || is_processed || is_file && has_processed_dir(folder);
        if by_structure.is_none() && is_too_deep && is_device() {
            by_structure = meant();
        }
    }
    by_name.or(by_structure.filter(|_| !has_file_at_depth))
}

fn has_processed_dir(folder: &Path) -> bool {
    [PARSED, ERROR]
        .iter()
        .any(|name| folder.join(name).is_dir())
}

/// Whether a folder is named like the serial number of a logger.
fn is_serial(name: &OsStr) -> bool {
    name.len() >= 6 && name.as_bytes().iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let path = dir.path().join(path);
            if path.extension().is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            } else {
                std::fs::create_dir_all(path).unwrap();
            }
        }
        dir
    }

    #[test]
    fn a_folder_above_or_below_the_data_folder_is_recognised() {
        let dir = tree(&["srv/data/acme/site/02001171/parsed", "srv/logs/reports"]);
        let raw = tree(&["srv/data/acme/site/02001171/x.TSV"]);
        let data = dir.path().join("srv/data");
        for given in [
            "",
            "srv",
            "srv/data/acme",
            "srv/data/acme/site",
            "srv/data/acme/site/02001171",
        ] {
            assert_eq!(
                meant_data_folder(&dir.path().join(given)),
                Some(data.clone()),
                "{given}"
            );
        }
        assert_eq!(meant_data_folder(&data), None);
        assert_eq!(
            meant_data_folder(&raw.path().join("srv")),
            Some(raw.path().join("srv/data"))
        );
        assert_eq!(meant_data_folder(&raw.path().join("srv/data")), None);
    }

    #[test]
    fn one_device_at_the_right_depth_is_enough() {
        let device = "acme/site/02001171/parsed";
        for strange in [
            "b/02001172/parsed",
            "b/site/d/123456/x.tsv",
            "b/site/d/e/123456/parsed",
        ] {
            let data = tree(&[device, strange]);
            assert_eq!(meant_data_folder(data.path()), None, "{strange}");
        }
    }

    #[test]
    fn folders_that_are_not_named_like_a_serial_number_say_nothing() {
        for path in [
            "acme/site/parsed",
            "acme/parsed",
            "a/b/c/sub/x.tsv",
            "a/b/x.tsv",
            "a/b/123456/sub/x.tsv",
        ] {
            let data = tree(&[path]);
            assert_eq!(meant_data_folder(data.path()), None, "{path}");
        }
    }

    #[test]
    fn many_entries_do_not_hide_the_level() {
        let site = "data/acme/site";
        let files = |device: &str| -> Vec<_> {
            (0..60)
                .map(|n| format!("{site}/{device}/{n}.tsv"))
                .collect()
        };
        let mut with_parsed = files("MV2A");
        with_parsed.push(format!("{site}/MV2A/parsed"));
        let devices = (0..60).map(|n| format!("{site}/0200{n:04}/x.tsv"));
        for paths in [files("02001171"), with_parsed, devices.collect()] {
            let paths: Vec<_> = paths.iter().map(String::as_str).collect();
            let data = tree(&paths);
            let meant = data.path().join("data");
            assert_eq!(search(data.path(), 50), Some(meant), "{}", paths[0]);
        }
    }

    #[test]
    fn a_folder_of_processed_files_that_is_too_deep_shows_the_level_under_any_name() {
        for (path, meant) in [
            ("data/acme/site/MV2A/parsed", "data"),
            ("data/acme/site/MV2A/error", "data"),
            ("srv/data/acme/site/MV2A/parsed", "srv/data"),
        ] {
            let dir = tree(&[path]);
            assert_eq!(
                meant_data_folder(dir.path()),
                Some(dir.path().join(meant)),
                "{path}"
            );
        }
        // An uploader may create folders of these names in a device folder.
        for device in ["acme/site/MV2A/x.tsv", "acme/site/MV2A/parsed"] {
            let data = tree(&["acme/site/MV2A/sub/parsed", device]);
            assert_eq!(meant_data_folder(data.path()), None, "{device}");
        }
    }
}
