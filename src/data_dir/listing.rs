//! Sorted folder listings in pages of bounded size, because a folder may contain a million names.

use super::{DIR_FLAGS, Dir};
use rustix::fs::{AtFlags, Dir as DirStream, FileType, Mode, openat, statat};
use rustix::io::Errno;
use std::collections::{BinaryHeap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;

/// The type of a folder entry, as recorded in the folder itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Dir,
}

/// A folder entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// The name without the folder.
    pub name: OsString,
    /// The type. Links, pipes and devices are never listed.
    pub kind: EntryKind,
}

/// Maximum number of names per page of a folder listing.
pub(super) const PAGE_SIZE: usize = 4096;

/// Chooses the entries of a folder by name and type.
pub(super) type Filter = fn(&OsStr, EntryKind) -> bool;

/// A position in the sorted listing of a folder, which is read in pages.
#[derive(Debug, Default)]
pub(super) struct SortedListing {
    page: VecDeque<Entry>,
    /// The last name of the page.
    last: Option<OsString>,
    /// Whether the last page was read.
    ended: bool,
}

impl SortedListing {
    /// The next entry. Calls `read_page` for the page after a name if there is no entry left. The listing ends after an
    /// error.
    pub(super) fn next(
        &mut self,
        read_page: impl FnOnce(Option<&OsStr>) -> io::Result<Vec<Entry>>,
    ) -> Option<io::Result<Entry>> {
        if self.page.is_empty() && !self.ended {
            match read_page(self.last.as_deref()) {
                Ok(page) => {
                    self.ended = page.len() < PAGE_SIZE;
                    self.last = page.last().map(|entry| entry.name.clone());
                    self.page = page.into();
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        self.page.pop_front().map(Ok)
    }
}

impl Dir {
    /// The entries that match `wants`, in the order of their names.
    pub(crate) fn sorted_entries(&self, wants: Filter) -> impl Iterator<Item = io::Result<Entry>> {
        let mut listing = SortedListing::default();
        std::iter::from_fn(move || listing.next(|after| self.read_page(after, PAGE_SIZE, wants)))
    }

    /// Calls `each` for every file and folder in the folder. Links, pipes and devices are skipped.
    ///
    /// # Errors
    /// If the folder cannot be read to its end, so that no name is missed silently.
    pub(crate) fn for_each_entry(&self, mut each: impl FnMut(&OsStr, EntryKind)) -> io::Result<()> {
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

    /// The first `limit` entries in the order of their names that follow `after` and match `wants`.
    pub(super) fn read_page(
        &self,
        after: Option<&OsStr>,
        limit: usize,
        wants: Filter,
    ) -> io::Result<Vec<Entry>> {
        let mut first: BinaryHeap<Entry> = BinaryHeap::new();
        self.for_each_entry(|name, kind| {
            if after.is_some_and(|after| name <= after) || !wants(name, kind) {
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
