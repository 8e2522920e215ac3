//! Notes about folders that are not problems: campaigns without a dashboard, and names with two spellings.

use super::scan::DeviceScan;
use crate::data_dir::{DASHBOARD_MARKER, Dir};
use crate::sanitize::sanitize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use unicode_normalization::UnicodeNormalization as _;

/// The notes about the folders of all scans.
pub(super) fn notes(scans: &[DeviceScan], data: &Path) -> Vec<String> {
    let folders: BTreeSet<&Path> = scans
        .iter()
        .flat_map(|scan| scan.path.ancestors())
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    let mut notes = two_spellings(&folders);
    notes.extend(without_dashboard(&folders, data));
    notes
}

/// Pairs of folders whose names are composed (NFC) and decomposed (NFD) forms of one name. They look alike, but the
/// database has two buckets or measurements.
fn two_spellings(folders: &BTreeSet<&Path>) -> Vec<String> {
    let mut spellings: BTreeMap<(PathBuf, String), Vec<&str>> = BTreeMap::new();
    for folder in folders {
        let parent = folder.parent().unwrap_or(Path::new(""));
        if let Some(name) = folder.file_name().and_then(OsStr::to_str) {
            let key = (parent.to_owned(), name.nfc().collect());
            spellings.entry(key).or_default().push(name);
        }
    }
    let several = spellings.iter().filter(|(_, names)| names.len() > 1);
    several
        .map(|((parent, name), names)| {
            let names: Vec<_> = names.iter().map(|name| escape_non_ascii(name)).collect();
            format!(
                "{} is spelled in {} ways ({}), which the database keeps apart: rename one of the folders",
                sanitize(parent.join(name)),
                names.len(),
                names.join(", ")
            )
        })
        .collect()
}

fn escape_non_ascii(name: &str) -> String {
    let escape = |c: char| {
        let is_plain = c.is_ascii() && !c.is_ascii_control();
        if is_plain {
            c.to_string()
        } else {
            c.escape_unicode().to_string()
        }
    };
    name.chars().map(escape).collect()
}

/// Campaigns in whose folder the playbook has not left its marker.
fn without_dashboard(folders: &BTreeSet<&Path>, data: &Path) -> Vec<String> {
    let Ok(root) = Dir::open(data) else {
        return Vec::new();
    };
    let has_marker = |campaign: &Path| {
        let folder = root.open_below(campaign);
        folder.and_then(|folder| folder.inode_of(OsStr::new(DASHBOARD_MARKER)))
    };
    folders
        .iter()
        .filter(|folder| folder.components().count() == 2)
        .filter(|campaign| matches!(has_marker(campaign), Ok(None)))
        .map(|campaign| {
            format!(
                "{} has no dashboard yet: the next upload creates it; see uploads.log if it does not",
                sanitize(campaign)
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_spellings_of_one_name_are_noted_at_each_level() {
        let (nfc, nfd) = ("\u{e9}t\u{e9}", "e\u{301}te\u{301}");
        let scans: Vec<_> = [
            format!("a{nfc}/site/1"),
            format!("a{nfd}/site/1"),
            format!("b/{nfc}/1"),
            format!("b/{nfd}/1"),
            format!("c/{nfd}/1"),
            format!("d/{nfc}/1"),
            "e/ete/1".to_owned(),
        ]
        .map(|path| DeviceScan {
            path: path.into(),
            ..DeviceScan::default()
        })
        .into();
        let notes = notes(&scans, Path::new("/nonexistent"));
        let parts = [
            "a\u{e9}t\u{e9} is spelled in 2 ways (ae\\u{301}te\\u{301}, a\\u{e9}t\\u{e9})",
            "b/\u{e9}t\u{e9} is spelled in 2 ways (e\\u{301}te\\u{301}, \\u{e9}t\\u{e9})",
        ];
        assert_eq!(notes.len(), parts.len(), "{notes:?}");
        for (note, part) in notes.iter().zip(parts) {
            assert!(note.starts_with(part), "{note}");
        }
    }
}
