//! Sorted folder listings in pages of bounded size, because a folder may contain a million names.

use super::{DIR_FLAGS, Dir};
use rustix::fs::{AtFlags, Dir as DirStream, FileType, Mode, openat, statat};
use rustix::io::Errno;
use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;

/// The type of a folder entry, as recorded in the folder itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Dir,
}

/// A folder entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name without the folder.
    pub name: OsString,
    /// The type. Links, pipes and devices are never listed.
    pub kind: EntryKind,
}

impl Dir {
    /// Calls `each` for every file and folder in the folder. Links, pipes and devices are skipped.
    ///
    /// # Errors
    /// If the folder cannot be read to its end, so that no name is missed silently.
    pub fn for_each_entry(&self, mut each: impl FnMut(&OsStr, EntryKind)) -> io::Result<()> {
        // A descriptor of its own has a read position of its own.
        let fd = openat(&self.fd, ".", DIR_FLAGS, Mode::empty())?;
        for entry in DirStream::new(fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not record the type.
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

    /// The first `limit` entries in the order of their names that follow `after` and match `wanted`.
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
    fn a_folder_is_read_in_sorted_pages() {
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
            let page = folder.read_page(after.as_deref(), 2, |_, _| true).unwrap();
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        let names: Vec<_> = found.iter().map(|e| e.name.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e", "folder"]);
        assert_eq!(found[5].kind, EntryKind::Dir);
    }
}
