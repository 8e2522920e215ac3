//! Sorted folder listings in pages of bounded size, because a folder may contain a million names.

use super::{DIR_FLAGS, Dir};
use rustix::fs::{AtFlags, Dir as DirStream, FileType, Mode, openat, statat};
use rustix::io::Errno;
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
    /// A symbolic link, a pipe, a socket or a device, which no run takes.
    Special,
}

/// A folder entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// The name without the folder.
    pub name: OsString,
    /// The type.
    pub kind: EntryKind,
}

/// Number of names that a reader of a listing may collect, for example to sort them by another key.
pub(super) const PAGE_SIZE: usize = 4096;

/// Size of the names in a page, in bytes. The folder is read once per page, so a page is large enough for some 100,000
/// names. While it is read, it may take twice its size.
pub(super) const PAGE_BYTES: usize = 4 << 20;

/// Chooses the entries of a folder by name and type.
pub(super) type Filter = fn(&OsStr, EntryKind) -> bool;

/// A position in the sorted listing of a folder, which is read in pages.
#[derive(Debug, Default)]
pub(super) struct SortedListing {
    page: Page,
    /// Whether the last page was read.
    ended: bool,
}

impl SortedListing {
    /// The next entry. Calls `read_page` for the page after a name if there is no entry left. The listing ends after an
    /// error.
    pub(super) fn next(
        &mut self,
        read_page: impl FnOnce(Option<&OsStr>) -> io::Result<Page>,
    ) -> Option<io::Result<Entry>> {
        if self.page.is_done() && !self.ended {
            // The names of the last page are freed before the next ones are read.
            let after = std::mem::take(&mut self.page)
                .last_name()
                .map(OsStr::to_owned);
            match read_page(after.as_deref()) {
                Ok(page) => {
                    self.ended = page.end.is_none();
                    self.page = page;
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        self.page.next().map(Ok)
    }
}

/// The first names of a folder that follow some name, in one block of memory.
#[derive(Debug)]
pub(super) struct Page {
    /// The names, one after another.
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    /// The number of entries that were returned.
    returned: usize,
    /// Size of `bytes` from which names are dropped.
    max_bytes: usize,
    /// The first name that was dropped. It and all names after it belong to later pages.
    end: Option<OsString>,
}

/// The position of a name, and its type.
#[derive(Debug, Clone, Copy)]
struct Slot {
    start: usize,
    len: u8,
    kind: EntryKind,
}

impl Default for Page {
    fn default() -> Self {
        Self::new(PAGE_BYTES)
    }
}

impl Page {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            bytes: Vec::new(),
            slots: Vec::new(),
            returned: 0,
            max_bytes,
            end: None,
        }
    }

    /// Adds an entry, unless it belongs to a later page. Names have 255 bytes at most.
    fn add(&mut self, name: &OsStr, kind: EntryKind) {
        let Ok(len) = u8::try_from(name.len()) else {
            return;
        };
        if self.end.as_deref().is_some_and(|end| name >= end) {
            return;
        }
        self.slots.push(Slot {
            start: self.bytes.len(),
            len,
            kind,
        });
        self.bytes.extend_from_slice(name.as_bytes());
        // Sorting only when the page has twice its size keeps the time per name independent of the number of names.
        if self.bytes.len() >= 2 * self.max_bytes {
            self.sort();
        }
    }

    /// Sorts the entries by name, and drops the last ones if the page is too large.
    fn sort(&mut self) {
        let name = |slot: &Slot| &self.bytes[slot.start..][..usize::from(slot.len)];
        self.slots.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        if self.bytes.len() <= self.max_bytes {
            return;
        }
        let mut bytes = Vec::with_capacity(self.max_bytes);
        for n in 0..self.slots.len() {
            let slot = &self.slots[n];
            let name = &self.bytes[slot.start..][..usize::from(slot.len)];
            if n > 0 && bytes.len() + name.len() > self.max_bytes {
                self.end = Some(OsStr::from_bytes(name).to_owned());
                self.slots.truncate(n);
                break;
            }
            self.slots[n].start = bytes.len();
            bytes.extend_from_slice(name);
        }
        self.bytes = bytes;
    }

    fn name(&self, slot: &Slot) -> &OsStr {
        OsStr::from_bytes(&self.bytes[slot.start..][..usize::from(slot.len)])
    }

    /// The last name of the page.
    fn last_name(&self) -> Option<&OsStr> {
        self.slots.last().map(|slot| self.name(slot))
    }

    fn is_done(&self) -> bool {
        self.returned == self.slots.len()
    }
}

impl Iterator for Page {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let slot = self.slots.get(self.returned)?;
        self.returned += 1;
        Some(Entry {
            name: self.name(slot).to_owned(),
            kind: slot.kind,
        })
    }
}

impl Dir {
    /// The entries that match `wants`, in the order of their names.
    pub(crate) fn sorted_entries(&self, wants: Filter) -> impl Iterator<Item = io::Result<Entry>> {
        let mut listing = SortedListing::default();
        std::iter::from_fn(move || listing.next(|after| self.read_page(after, PAGE_BYTES, wants)))
    }

    /// Calls `each` for every entry of the folder.
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
                _ => each(name, EntryKind::Special),
            }
        }
        Ok(())
    }

    /// The first entries in the order of their names that follow `after` and match `wants`. Their names have
    /// `max_bytes` at most.
    pub(super) fn read_page(
        &self,
        after: Option<&OsStr>,
        max_bytes: usize,
        wants: Filter,
    ) -> io::Result<Page> {
        let mut page = Page::new(max_bytes);
        self.for_each_entry(|name, kind| {
            if after.is_none_or(|after| name > after) && wants(name, kind) {
                page.add(name, kind);
            }
        })?;
        page.sort();
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in a folder in pages of `max_bytes`, and the number of pages.
    fn listed(folder: &Dir, max_bytes: usize) -> (Vec<String>, usize) {
        let mut listing = SortedListing::default();
        let mut pages = 0;
        let next = || {
            listing.next(|after| {
                pages += 1;
                folder.read_page(after, max_bytes, |_, kind| kind != EntryKind::Special)
            })
        };
        let names = std::iter::from_fn(next)
            .map(|entry| entry.unwrap().name.into_string().unwrap())
            .collect();
        (names, pages)
    }

    #[test]
    fn a_folder_is_read_in_sorted_pages() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["c", "a", "e", "b", "d"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        let names = ["a", "b", "c", "d", "e", "folder"].map(str::to_owned);
        for (max_bytes, pages) in [(1, 6), (2, 4), (5, 2), (11, 1)] {
            let found = listed(&folder, max_bytes);
            assert_eq!(found, (names.to_vec(), pages), "{max_bytes} bytes");
        }
        let kinds = folder.sorted_entries(|_, kind| kind != EntryKind::Special);
        let kinds: Vec<_> = kinds.map(|entry| entry.unwrap().kind).collect();
        assert_eq!(kinds[4..], [EntryKind::File, EntryKind::Dir]);
    }

    #[test]
    fn a_page_keeps_the_first_names_in_whatever_order_they_come() {
        let names: Vec<_> = (100..400).map(|n| OsString::from(n.to_string())).collect();
        for step in [1, 7, 299] {
            let mut page = Page::new(60);
            for n in 0..names.len() {
                page.add(&names[n * step % names.len()], EntryKind::File);
                assert!(page.bytes.len() < 120, "memory is bounded");
            }
            page.sort();
            assert_eq!(page.end.as_ref(), Some(&names[20]), "step {step}");
            let first: Vec<_> = page.map(|entry| entry.name).collect();
            assert_eq!(first, names[..20], "step {step}");
        }
    }

    #[test]
    fn a_large_folder_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..3 * PAGE_SIZE {
            std::fs::write(dir.path().join(format!("{n:05}")), "").unwrap();
        }
        let folder = Dir::open(dir.path()).unwrap();
        let (names, pages) = listed(&folder, PAGE_BYTES);
        assert!(names.is_sorted());
        assert_eq!((names.len(), pages), (3 * PAGE_SIZE, 1));
    }
}
