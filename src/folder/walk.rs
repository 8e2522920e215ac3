//! The names in a folder, in order, a bounded number at a time: a folder may hold a million.

use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use walkdir::WalkDir;

/// What a name stands for, as the folder itself says: no file is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKind {
    /// A file.
    File,
    /// A folder.
    Folder,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// File or folder; links, pipes and devices are no entries.
    pub kind: EntryKind,
}

/// The first `limit` entries of `folder`, by name, that come after `after` and that `wanted` accepts. Neither a link nor
/// anything but files and folders is ever among them.
///
/// # Errors
/// Those of the file system, for the folder itself.
pub fn names_after(
    folder: &Path,
    after: Option<&OsStr>,
    limit: usize,
    wanted: impl Fn(&OsStr, EntryKind) -> bool,
) -> io::Result<Vec<Entry>> {
    let mut first = BinaryHeap::new();
    let walk = WalkDir::new(folder)
        .min_depth(1)
        .max_depth(1)
        .follow_links(false)
        .follow_root_links(false);
    for entry in walk {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                // A name that vanished meanwhile concerns nobody; a folder that cannot be read does.
                if error.depth() == 0 || error.path() == Some(folder) {
                    return Err(error.into());
                }
                continue;
            }
        };
        let kind = match entry.file_type() {
            kind if kind.is_file() => EntryKind::File,
            kind if kind.is_dir() => EntryKind::Folder,
            _ => continue,
        };
        let name = entry.file_name();
        if after.is_some_and(|after| name <= after) || !wanted(name, kind) {
            continue;
        }
        if first.len() == limit {
            match first.peek() {
                Some(Entry { name: last, .. }) if name < last.as_os_str() => {
                    first.pop();
                }
                _ => continue,
            }
        }
        first.push(Entry {
            name: name.to_owned(),
            kind,
        });
    }
    Ok(first.into_sorted_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_order_a_few_names_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["c", "a", "e", "b", "d"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let mut found = Vec::new();
        loop {
            let after = found.last().map(|e: &Entry| e.name.clone());
            let more = names_after(dir.path(), after.as_deref(), 2, |_, _| true).unwrap();
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        let names: Vec<_> = found.iter().map(|e| e.name.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e", "folder"]);
        assert_eq!(found[5].kind, EntryKind::Folder);
        assert!(names_after(&dir.path().join("missing"), None, 2, |_, _| true).is_err());
    }
}
