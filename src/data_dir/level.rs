//! Detects a data folder that was given some levels too high or too low. See docs/specification.md, section 1.

use super::devices::DEVICE_DEPTH;
use super::is_processed_dir;
use super::pending_files::is_tsv;
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
/// device. The search ends with `None` at the first device at the right depth, so that an SFTP user cannot stop the
/// runs of others by creating folders.
pub(crate) fn meant_data_folder(data: &Path) -> Option<PathBuf> {
    let mut meant = None;
    let mut entries = WalkDir::new(data)
        .min_depth(1)
        .max_depth(DEVICE_DEPTH + EXTRA_LEVELS + 1)
        .into_iter();
    for _ in 0..MAX_ENTRIES {
        let Some(entry) = entries.next() else {
            return meant;
        };
        let Ok(entry) = entry else { continue };
        let is_processed = entry.file_type().is_dir() && is_processed_dir(entry.file_name());
        if is_processed {
            entries.skip_current_dir();
        }
        let is_file = entry.file_type().is_file() && is_tsv(entry.file_name());
        let depth = entry.depth() - 1;
        let is_device = entry
            .path()
            .parent()
            .and_then(Path::file_name)
            .is_some_and(is_serial);
        if depth == DEVICE_DEPTH && (is_processed || is_file && is_device) {
            return None;
        }
        if meant.is_none() && is_device && (is_processed || is_file && depth > DEVICE_DEPTH) {
            let device = entry.path().parent()?;
            meant = device.ancestors().nth(DEVICE_DEPTH).map(Path::to_owned);
        }
    }
    None
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
}
