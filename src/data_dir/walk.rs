//! Walks of folder trees in the order of their paths, listed in pages of bounded size.

use super::listing::{Filter, PAGE_BYTES, SortedListing};
use super::{Dir, Entry, EntryKind, is_processed_dir};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum number of nested folders that are open at the same time.
const OPEN_DIRS: usize = 2;

/// Something that a walk found. Paths are relative to its root.
#[derive(Debug)]
pub(super) enum WalkItem {
    /// A file: its folder and its name.
    File(PathBuf, OsString),
    /// A symbolic link, a pipe, a socket or a device. It is never followed.
    Special(PathBuf),
    /// A folder that the walk does not enter.
    Dir(PathBuf),
    /// A folder below the root that contains no folder except `parsed/` and `error/`.
    Leaf(PathBuf),
    /// A folder that cannot be listed.
    Unlisted(PathBuf, io::Error),
}

/// An iterator over a tree, depth first, in the order of the names.
pub(super) struct SortedWalk {
    root: Arc<Dir>,
    wants: Filter,
    enters: fn(depth: usize, &OsStr) -> bool,
    /// The number of folders from the root to the one where the walk starts.
    start_depth: usize,
    /// The folders from the start to the current one.
    cursors: Vec<DirCursor>,
}

/// A position in the listing of a folder.
pub(super) struct DirCursor {
    /// Path relative to the root.
    pub(super) sub: PathBuf,
    /// The folder, if it is open.
    folder: Option<Dir>,
    listing: SortedListing,
    /// Whether no folder was found so far.
    is_leaf: bool,
}

impl SortedWalk {
    /// Walks the files and folders below `root` that match `wants`. `enters` decides which folders are entered, by their
    /// depth (1 is directly below the root) and name.
    pub(super) fn new(
        root: &Arc<Dir>,
        wants: Filter,
        enters: fn(depth: usize, &OsStr) -> bool,
    ) -> Self {
        Self::starting_at(PathBuf::new(), root, wants, enters)
    }

    /// Like [`SortedWalk::new`], for the part of the tree below `start`, a path relative to `root`.
    pub(super) fn starting_at(
        start: PathBuf,
        root: &Arc<Dir>,
        wants: Filter,
        enters: fn(depth: usize, &OsStr) -> bool,
    ) -> Self {
        Self {
            root: Arc::clone(root),
            wants,
            enters,
            start_depth: start.components().count(),
            cursors: vec![DirCursor::new(start)],
        }
    }
}

impl Iterator for SortedWalk {
    type Item = WalkItem;

    fn next(&mut self) -> Option<WalkItem> {
        loop {
            let depth = self.start_depth + self.cursors.len();
            let cursor = self.cursors.last_mut()?;
            let entry = match cursor.next(&self.root, self.wants) {
                Some(Ok(entry)) => entry,
                // A folder below the root that was removed counts as empty.
                Some(Err(error)) if depth > 1 && is_no_folder(&error) => {
                    self.cursors.pop();
                    continue;
                }
                Some(Err(error)) => {
                    cursor.is_leaf = false;
                    return Some(WalkItem::Unlisted(cursor.sub.clone(), error));
                }
                None => {
                    let ended = self.cursors.pop()?;
                    if ended.is_leaf && depth > 1 {
                        return Some(WalkItem::Leaf(ended.sub));
                    }
                    continue;
                }
            };
            match entry.kind {
                EntryKind::File => {
                    return Some(WalkItem::File(cursor.sub.clone(), entry.name));
                }
                EntryKind::Special => {
                    return Some(WalkItem::Special(cursor.sub.join(entry.name)));
                }
                EntryKind::Dir => {}
            }
            cursor.is_leaf &= is_processed_dir(&entry.name);
            if !(self.enters)(depth, &entry.name) {
                return Some(WalkItem::Dir(cursor.sub.join(entry.name)));
            }
            let below = cursor.below(&entry.name);
            self.cursors.push(below);
            if let Some(outer) = self.cursors.len().checked_sub(OPEN_DIRS) {
                self.cursors[outer].folder = None;
            }
        }
    }
}

impl DirCursor {
    /// A cursor at the beginning of a folder.
    pub(super) fn new(sub: PathBuf) -> Self {
        Self {
            sub,
            folder: None,
            listing: SortedListing::default(),
            is_leaf: true,
        }
    }

    /// The next entry. Returns an error once if the folder cannot be listed.
    pub(super) fn next(&mut self, root: &Dir, wants: Filter) -> Option<io::Result<Entry>> {
        self.listing.next(|after| {
            let folder = match self.folder.take() {
                Some(folder) => folder,
                None => root.open_below(&self.sub)?,
            };
            self.folder
                .insert(folder)
                .read_page(after, PAGE_BYTES, wants)
        })
    }

    /// A cursor for a sub-folder. It is opened from this folder, because its path may be thousands of components long.
    fn below(&self, name: &OsStr) -> Self {
        let open = |folder: &Dir| folder.open_below(Path::new(name)).ok();
        Self {
            // If this fails, the error is reported when the folder is listed.
            folder: self.folder.as_ref().and_then(open),
            ..Self::new(self.sub.join(name))
        }
    }
}

/// Whether the error means that a folder was removed or replaced by something else.
pub(crate) fn is_no_folder(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::STALE)
    )
}
