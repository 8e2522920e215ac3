//! The names in a folder, in order, a bounded number at a time: a folder may hold a million.

use super::{Dir, FOLDER};
use rustix::fs::{AtFlags, Dir as DirStream, FileType, Mode, openat, statat};
use rustix::io::Errno;
use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;

/// What a name stands for, as the folder itself says: no file is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKind {
    /// A file.
    File,
    /// A folder.
    Dir,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// File or folder; links, pipes and devices are no entries.
    pub kind: EntryKind,
}

impl Dir {
    /// Calls `each` with every name in the folder and what it stands for; links, pipes and devices are left out.
    ///
    /// # Errors
    /// Where the folder cannot be read to its end: no name is left out without a word.
    pub fn for_each_entry(&self, mut each: impl FnMut(&OsStr, EntryKind)) -> io::Result<()> {
        // An opening of its own, and so a position of its own.
        let fd = openat(&self.fd, ".", FOLDER, Mode::empty())?;
        for entry in DirStream::new(fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not say.
                FileType::Unknown => match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(file) => FileType::from_raw_mode(file.st_mode),
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                },
                kind => kind,
            };
            match kind {
                FileType::RegularFile => each(name, EntryKind::File),
                FileType::Directory => each(name, EntryKind::Dir),
                _ => {}
            }
        }
        Ok(())
    }

    /// The first `limit` entries, by name, that come after `after` and that `wanted` accepts.
    ///
    /// # Errors
    /// As [`Dir::for_each_entry`].
    pub fn read_page(
        &self,
        after: Option<&OsStr>,
        limit: usize,
        wanted: impl Fn(&OsStr, EntryKind) -> bool,
    ) -> io::Result<Vec<Entry>> {
        let mut first: BinaryHeap<Entry> = BinaryHeap::new();
        self.for_each_entry(|name, kind| {
            if after.is_some_and(|after| name <= after) || !wanted(name, kind) {
                return;
            }
            if first.len() == limit {
                match first.peek() {
                    Some(last) if name < last.name.as_os_str() => {
                        first.pop();
                    }
                    _ => return,
                }
            }
            first.push(Entry {
                name: name.to_owned(),
                kind,
            });
        })?;
        Ok(first.into_sorted_vec())
    }
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
        let folder = Dir::open(dir.path()).unwrap();
        let mut found = Vec::new();
        loop {
            let after = found.last().map(|e: &Entry| e.name.clone());
            let more = folder.read_page(after.as_deref(), 2, |_, _| true).unwrap();
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        let names: Vec<_> = found.iter().map(|e| e.name.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e", "folder"]);
        assert_eq!(found[5].kind, EntryKind::Dir);
    }
}
