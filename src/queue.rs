//! What waits in a device's folder, in the order of its names, read a bounded number of names at a time.

use crate::folder::{EntryKind, SIDECAR_SUFFIX, names_after};
use crate::names::{ERROR, is_done_folder};
use crate::shown::shown;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Names read of a folder at a time.
pub const CHUNK: usize = 4096;

/// Something to deal with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A file that waits: its folder below the device's (mostly none) and its name.
    File(PathBuf, OsString),
    /// A file in `error/` that may be tried again if its sidecar says so.
    Retry(OsString),
    /// The sidecar in `error/` of a file of this name, which may be gone.
    Sidecar(OsString),
}

impl Item {
    /// What the device's files are ordered by.
    fn key(&self) -> &OsStr {
        match self {
            Self::File(sub, name) => sub.iter().next().unwrap_or(name),
            Self::Retry(name) | Self::Sidecar(name) => name,
        }
    }
}

/// Whether a file of this name is one that loggers upload. Hidden ones are uploads in progress.
pub fn is_tsv(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.ends_with(b".tsv") && !name.starts_with(b".")
}

/// The items of a device.
pub struct Queue {
    waiting: Listing,
    errors: Option<Listing>,
    next_error: Option<Item>,
    next_waiting: Option<Item>,
}

impl Queue {
    /// Of the device in `folder`; with those in `error/` if they are to be tried again.
    pub fn new(folder: &Path, with_errors: bool) -> Self {
        Self {
            waiting: Listing::new(folder.to_owned(), Pick::Waiting),
            errors: with_errors.then(|| Listing::new(folder.join(ERROR), Pick::Errors)),
            next_error: None,
            next_waiting: None,
        }
    }
}

impl Iterator for Queue {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.next_waiting.is_none() {
            self.next_waiting = self.waiting.next();
        }
        if self.next_error.is_none() {
            self.next_error = self.errors.as_mut().and_then(Iterator::next);
        }
        let error_first = match (&self.next_error, &self.next_waiting) {
            (Some(error), Some(waiting)) => error.key() <= waiting.key(),
            (error, _) => error.is_some(),
        };
        if error_first {
            &mut self.next_error
        } else {
            &mut self.next_waiting
        }
        .take()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pick {
    /// `*.tsv` here and in folders below, but not in `parsed/` and `error/`.
    Waiting,
    /// `*.tsv` and their sidecars, here only.
    Errors,
}

impl Pick {
    fn wants(self, name: &OsStr, kind: EntryKind) -> bool {
        match (self, kind) {
            (Self::Waiting, EntryKind::File) => is_tsv(name),
            (Self::Waiting, EntryKind::Folder) => !is_done_folder(name),
            (Self::Errors, EntryKind::File) => {
                is_tsv(name) || sidecar_of(name).is_some_and(|file| is_tsv(&file))
            }
            (Self::Errors, EntryKind::Folder) => false,
        }
    }
}

/// The name of the file that a sidecar of this name belongs to.
fn sidecar_of(name: &OsStr) -> Option<OsString> {
    let file = name.as_bytes().strip_suffix(SIDECAR_SUFFIX.as_bytes())?;
    Some(OsStr::from_bytes(file).to_owned())
}

/// What the files of `error/` are ordered by: of those that came with the same name the later one has the higher number, so
/// `x.tsv` comes before `x.1.tsv`, and what it corrects is not put back.
fn order_of_arrival(name: &OsStr) -> (OsString, u32) {
    let file = sidecar_of(name).unwrap_or_else(|| name.to_owned());
    let path = Path::new(&file);
    let numbered = path.file_stem().map(Path::new).and_then(|stem| {
        let number = stem.extension()?.to_str()?.parse().ok()?;
        Some((stem.file_stem()?.to_owned(), number))
    });
    numbered.unwrap_or_else(|| (path.file_stem().unwrap_or(&file).to_owned(), 0))
}

/// The entries of a folder and of those below it, depth first.
struct Listing {
    root: PathBuf,
    pick: Pick,
    levels: Vec<Level>,
}

struct Level {
    /// Below the root.
    sub: PathBuf,
    chunk: VecDeque<crate::folder::Entry>,
    last: Option<OsString>,
    /// The folder has no further names.
    ended: bool,
}

impl Listing {
    fn new(root: PathBuf, pick: Pick) -> Self {
        Self {
            root,
            pick,
            levels: vec![Level::new(PathBuf::new())],
        }
    }
}

impl Level {
    fn new(sub: PathBuf) -> Self {
        Self {
            sub,
            chunk: VecDeque::new(),
            last: None,
            ended: false,
        }
    }

    fn next(&mut self, root: &Path, pick: Pick) -> Option<crate::folder::Entry> {
        if self.chunk.is_empty() && !self.ended {
            let wanted = |name: &OsStr, kind| pick.wants(name, kind);
            let folder = root.join(&self.sub);
            let mut names = names_after(&folder, self.last.as_deref(), CHUNK, wanted)
                .unwrap_or_else(|error| {
                    if error.kind() != std::io::ErrorKind::NotFound {
                        tracing::warn!(
                            "{}: cannot be listed: {}",
                            shown(&folder),
                            shown(error.to_string())
                        );
                    }
                    Vec::new()
                });
            self.ended = names.len() < CHUNK;
            self.last = names.last().map(|entry| entry.name.clone());
            if pick == Pick::Errors {
                names.sort_by_cached_key(|entry| order_of_arrival(&entry.name));
            }
            self.chunk = names.into();
        }
        self.chunk.pop_front()
    }
}

impl Iterator for Listing {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            let level = self.levels.last_mut()?;
            let Some(entry) = level.next(&self.root, self.pick) else {
                self.levels.pop();
                continue;
            };
            match (self.pick, entry.kind) {
                (_, EntryKind::Folder) => {
                    let sub = level.sub.join(entry.name);
                    self.levels.push(Level::new(sub));
                }
                (Pick::Waiting, EntryKind::File) => {
                    return Some(Item::File(level.sub.clone(), entry.name));
                }
                (Pick::Errors, EntryKind::File) => {
                    return Some(match sidecar_of(&entry.name) {
                        Some(file) => Item::Sidecar(file),
                        None => Item::Retry(entry.name),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    fn file(path: &str) -> Item {
        let path = Path::new(path);
        Item::File(
            path.parent().unwrap().to_owned(),
            path.file_name().unwrap().to_owned(),
        )
    }

    #[test]
    fn only_files_that_wait_are_listed_in_the_order_of_their_paths() {
        let dir = tree(&[
            "b.tsv",
            "a.tsv",
            "parsed/x.tsv",
            "error/y.tsv",
            "error/y.tsv.error.json",
            ".sftpgo-upload.abc.z.tsv",
            "c.txt",
            "sub/d.tsv",
            "sub/parsed/e.tsv",
            "z.TSV",
        ]);
        let found: Vec<_> = Queue::new(dir.path(), false).collect();
        assert_eq!(found, [file("a.tsv"), file("b.tsv"), file("sub/d.tsv")]);
    }

    #[test]
    fn files_to_be_tried_again_take_their_place_among_the_others() {
        let dir = tree(&[
            "a.tsv",
            "c.tsv",
            "error/b.tsv",
            "error/b.tsv.error.json",
            "error/sub/x.tsv",
        ]);
        let found: Vec<_> = Queue::new(dir.path(), true).collect();
        assert_eq!(
            found,
            [
                file("a.tsv"),
                Item::Retry("b.tsv".into()),
                Item::Sidecar("b.tsv".into()),
                file("c.tsv")
            ]
        );
    }

    #[test]
    fn of_files_in_error_that_came_with_one_name_the_first_comes_first() {
        let names = ["w.tsv", "x.tsv", "x.1.tsv", "x.2.tsv", "x.10.tsv", "y.tsv"];
        let dir = tree(
            &names
                .map(|name| format!("error/{name}"))
                .each_ref()
                .map(String::as_str),
        );
        let found: Vec<_> = Queue::new(dir.path(), true).collect();
        assert_eq!(found, names.map(|name| Item::Retry(name.into())));
    }

    #[test]
    fn a_folder_with_more_names_than_fit_at_once_is_listed_whole() {
        let names: Vec<_> = (0..CHUNK + 10).map(|n| format!("{n:06}.tsv")).collect();
        let dir = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let found: Vec<_> = Queue::new(dir.path(), false).collect();
        assert_eq!(found, names.iter().map(|n| file(n)).collect::<Vec<_>>());
    }
}
