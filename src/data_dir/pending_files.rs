//! The pending files of a device folder, listed in pages of bounded size, in the order of their uploads.
//!
//! See docs/specification.md, section 1.

use super::listing::PAGE_SIZE;
use super::walk::{DirCursor, SortedWalk, WalkItem, is_no_folder};
use super::{Dir, ERROR, EntryKind, SIDECAR_SUFFIX, Stamp, is_processed_dir};
use crate::shutdown::Shutdown;
use rustix::io::Errno;
use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walkdir::WalkDir;

/// Something to process in a device folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// A pending file: its folder relative to the device folder (mostly empty) and its name.
    File(PathBuf, OsString),
    /// A file in `error/`, to be retried if its sidecar marks it as retryable.
    Retry(OsString),
    /// The sidecar in `error/` of the file of this name, which may be missing.
    Sidecar(OsString),
    /// A folder (relative to the device folder) that cannot be listed, and the error. It may contain pending files.
    Unlisted(PathBuf, Errno),
}

/// Whether a sweep takes a file of this name for a logger file. Hidden files are uploads in progress.
pub(crate) fn is_tsv(name: &OsStr) -> bool {
    may_be_named(name) && !is_hidden(name)
}

/// Whether a file of this name may be named on the command line, hidden or not. Some loggers and clients write the
/// extension in upper case.
pub(crate) fn may_be_named(name: &OsStr) -> bool {
    let extension = name.as_bytes().last_chunk::<4>();
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case(b".tsv"))
}

/// Whether a file of this name is hidden, like SFTPGo's uploads in progress.
pub(super) fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// Counts the pending files below the data folder, and their bytes, for an estimate. Returns `None` if a shutdown was
/// requested meanwhile.
///
/// It does not sort and ignores errors, so it is much faster than [`PendingFiles`].
pub(crate) fn count(data_folder: &Path, shutdown: &Shutdown) -> Option<(u64, u64)> {
    let entries = WalkDir::new(data_folder)
        .into_iter()
        .filter_entry(|entry| !(entry.file_type().is_dir() && is_processed_dir(entry.file_name())));
    let (mut files, mut bytes) = (0, 0);
    for entry in entries.flatten() {
        if shutdown.is_requested() {
            return None;
        }
        if entry.file_type().is_file() && is_tsv(entry.file_name()) {
            files += 1;
            bytes += entry.metadata().map_or(0, |file| file.len());
        }
    }
    Some((files, bytes))
}

/// Iterator over the items of a device folder, in the order of their names.
pub(crate) struct PendingFiles {
    waiting: Peekable<Waiting>,
    errors: Option<Peekable<Errors>>,
}

impl PendingFiles {
    /// Iterates over the device folder `folder`, and over `error/` as well if `with_errors` is set.
    pub(crate) fn new(folder: &Arc<Dir>, with_errors: bool) -> Self {
        let waiting = Waiting(SortedWalk::new(folder, is_waiting, |_, _| true));
        let errors = Errors {
            root: Arc::clone(folder),
            cursor: DirCursor::new(PathBuf::from(ERROR)),
        };
        Self {
            waiting: waiting.peekable(),
            errors: with_errors.then(|| errors.peekable()),
        }
    }
}

impl Iterator for PendingFiles {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let Some(errors) = &mut self.errors else {
            return self.waiting.next().map(|next| next.item);
        };
        let error_first = match (errors.peek(), self.waiting.peek()) {
            (Some(error), Some(waiting)) => error.key <= waiting.key,
            (error, _) => error.is_some(),
        };
        let next = if error_first {
            errors.next()
        } else {
            self.waiting.next()
        };
        next.map(|next| next.item)
    }
}

/// An item with its sort key.
struct Ordered {
    key: OsString,
    item: Item,
}

/// Chooses `*.tsv` and the folders that may contain them.
fn is_waiting(name: &OsStr, kind: EntryKind) -> bool {
    match kind {
        EntryKind::File => is_tsv(name),
        EntryKind::Dir => !is_processed_dir(name),
        EntryKind::Special => false,
    }
}

/// Chooses `*.tsv` and their sidecars.
fn is_retried(name: &OsStr, kind: EntryKind) -> bool {
    kind == EntryKind::File && (is_tsv(name) || sidecar_of(name).is_some_and(|file| is_tsv(&file)))
}

/// The file that the sidecar `name` belongs to, or `None` if `name` is not a sidecar.
fn sidecar_of(name: &OsStr) -> Option<OsString> {
    let file = name.as_bytes().strip_suffix(SIDECAR_SUFFIX.as_bytes())?;
    Some(OsStr::from_bytes(file).to_owned())
}

/// Whether a file of this name in `error/` is the sidecar of a logger file.
pub(super) fn is_sidecar(name: &OsStr) -> bool {
    sidecar_of(name).is_some_and(|file| may_be_named(&file))
}

/// Iterator over the items of a device folder, in the order of the uploads as far as the memory allows: pages of items
/// follow each other in the order of the names.
pub(crate) struct InUploadOrder {
    folder: Arc<Dir>,
    pending: PendingFiles,
    page: VecDeque<Item>,
}

impl InUploadOrder {
    /// Iterates over the same items as [`PendingFiles::new`].
    pub(crate) fn new(folder: &Arc<Dir>, with_errors: bool) -> Self {
        Self {
            folder: Arc::clone(folder),
            pending: PendingFiles::new(folder, with_errors),
            page: VecDeque::new(),
        }
    }
}

impl Iterator for InUploadOrder {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.page.is_empty() {
            let mut page: Vec<_> = self.pending.by_ref().take(PAGE_SIZE).collect();
            sort_by_upload(&mut page, |item| {
                let (sub, name) = match item {
                    Item::File(sub, name) => (sub.as_path(), name),
                    Item::Retry(name) | Item::Sidecar(name) => (Path::new(ERROR), name),
                    Item::Unlisted(..) => return None,
                };
                let uploaded = uploaded_ns(&self.folder, sub, name);
                Some((uploaded, name.clone()))
            });
            self.page = page.into();
        }
        self.page.pop_front()
    }
}

impl Dir {
    /// Calls `each` with the name and the time of the upload, in nanoseconds since 1970, of each logger file in this
    /// folder. A file that is removed meanwhile is no upload.
    ///
    /// # Errors
    /// If the folder cannot be listed to its end.
    pub(crate) fn for_each_upload(&self, mut each: impl FnMut(&OsStr, i128)) -> io::Result<()> {
        self.for_each_logger_file(|name, stamp| each(name, stamp.uploaded_ns()))
    }

    /// Calls `each` with the name, size and times of each logger file in this folder. A file that is removed meanwhile is
    /// left out.
    ///
    /// # Errors
    /// If the folder cannot be listed to its end.
    pub(crate) fn for_each_logger_file(
        &self,
        mut each: impl FnMut(&OsStr, Stamp),
    ) -> io::Result<()> {
        self.for_each_entry(|name, kind| {
            if kind == EntryKind::File
                && is_tsv(name)
                && let Ok(Some(stamp)) = self.stamp_of(name)
            {
                each(name, stamp);
            }
        })
    }
}

/// The time of the upload of a file, or `None` if there is no such file.
fn uploaded_ns(root: &Dir, sub: &Path, name: &OsStr) -> Option<i128> {
    let stamp = if sub.as_os_str().is_empty() {
        root.stamp_of(name)
    } else {
        root.open_below(sub)
            .and_then(|folder| folder.stamp_of(name))
    };
    Some(stamp.ok()??.uploaded_ns())
}

/// Sorts files by the times of their uploads, which `upload` returns with the names.
///
/// Files with the same time are sorted by their names, except that the versions of a name are sorted by their numbers: a
/// number alone may belong to the name that the logger gave.
pub(crate) fn sort_by_upload<T>(
    files: &mut Vec<T>,
    upload: impl Fn(&T) -> Option<(Option<i128>, OsString)>,
) {
    let uploads: Vec<_> = files.iter().map(upload).collect();
    let names: HashSet<_> = uploads.iter().flatten().map(|(_, name)| name).collect();
    let keys = uploads.iter().map(|upload| {
        let (uploaded, name) = upload.as_ref()?;
        let numbered = unnumbered(name).filter(|(first, _)| names.contains(first));
        Some((*uploaded, numbered.unwrap_or_else(|| (name.clone(), 0))))
    });
    let mut keyed: Vec<_> = keys.zip(files.drain(..)).collect();
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    files.extend(keyed.into_iter().map(|(_, file)| file));
}

/// Splits `<stem>.<n>.tsv`, the name of a renamed file, into `<stem>.tsv` and `n`. `None` for other names.
pub(crate) fn unnumbered(file: &OsStr) -> Option<(OsString, u32)> {
    let path = Path::new(file);
    let stem = Path::new(path.file_stem()?);
    let number = stem.extension()?.to_str()?.parse().ok()?;
    let mut first = stem.file_stem()?.to_owned();
    first.push(".");
    first.push(path.extension()?);
    Some((first, number))
}

/// Iterator over the pending files of a folder and of the folders below it.
struct Waiting(SortedWalk);

/// Iterator over the files and sidecars of `error/`.
struct Errors {
    root: Arc<Dir>,
    cursor: DirCursor,
}

impl Iterator for Waiting {
    type Item = Ordered;

    fn next(&mut self) -> Option<Ordered> {
        loop {
            return Some(match self.0.next()? {
                WalkItem::File(sub, name) => Ordered {
                    key: sub.iter().next().unwrap_or(&name).to_owned(),
                    item: Item::File(sub, name),
                },
                // The device folder was removed.
                WalkItem::Unlisted(_, error) if is_no_folder(&error) => continue,
                WalkItem::Unlisted(sub, error) => unlisted(sub, &error),
                WalkItem::Special(_) | WalkItem::Dir(_) | WalkItem::Leaf(_) => continue,
            });
        }
    }
}

fn unlisted(sub: PathBuf, error: &io::Error) -> Ordered {
    Ordered {
        key: sub.iter().next().unwrap_or_default().to_owned(),
        item: Item::Unlisted(sub, Errno::from_io_error(error).unwrap_or(Errno::IO)),
    }
}

impl Iterator for Errors {
    type Item = Ordered;

    fn next(&mut self) -> Option<Ordered> {
        loop {
            let name = match self.cursor.next(&self.root, is_retried)? {
                Ok(entry) => entry.name,
                Err(error) if is_no_folder(&error) => continue,
                Err(error) => return Some(unlisted(self.cursor.sub.clone(), &error)),
            };
            return Some(match sidecar_of(&name) {
                Some(file) => Ordered {
                    key: file.clone(),
                    item: Item::Sidecar(file),
                },
                None => Ordered {
                    key: name.clone(),
                    item: Item::Retry(name),
                },
            });
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

    fn pending(folder: &Path, with_errors: bool) -> PendingFiles {
        PendingFiles::new(&Arc::new(Dir::open(folder).unwrap()), with_errors)
    }

    fn file(path: &str) -> Item {
        let path = Path::new(path);
        Item::File(
            path.parent().unwrap().to_owned(),
            path.file_name().unwrap().to_owned(),
        )
    }

    #[test]
    fn only_pending_files_are_listed_in_the_order_of_their_paths() {
        let dir = tree(&[
            "b.tsv",
            "a.tsv",
            "parsed/x.tsv",
            "error/y.tsv",
            "error/y.tsv.error.json",
            ".sftpgo-upload.abc.z.tsv",
            "c.txt",
            "tsv",
            "y.tsv.gz",
            "sub/d.tsv",
            "sub/parsed/e.tsv",
            "z.TSV",
        ]);
        let found: Vec<_> = pending(dir.path(), false).collect();
        assert_eq!(
            found,
            [
                file("a.tsv"),
                file("b.tsv"),
                file("sub/d.tsv"),
                file("z.TSV")
            ]
        );
    }

    #[test]
    fn files_to_be_retried_are_sorted_among_the_others() {
        let dir = tree(&[
            "a.tsv",
            "c.tsv",
            "error/b.tsv",
            "error/b.tsv.error.json",
            "error/sub/x.tsv",
        ]);
        let found: Vec<_> = pending(dir.path(), true).collect();
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

    /// The files of `dir` in the order in which a run with `--retry-errors` ingests them.
    fn retried(dir: &Path) -> Vec<String> {
        let folder = Arc::new(Dir::open(dir).unwrap());
        let items = InUploadOrder::new(&folder, true).filter_map(|item| match item {
            Item::File(sub, name) => Some(sub.join(name)),
            Item::Retry(name) => Some(Path::new(ERROR).join(name)),
            Item::Sidecar(_) | Item::Unlisted(..) => None,
        });
        items
            .map(|path| path.into_os_string().into_string().unwrap())
            .collect()
    }

    /// A tree of files, each with the time of its upload in seconds since 1970.
    fn uploads(files: &[(&str, u64)]) -> tempfile::TempDir {
        let dir = tree(&files.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for (name, uploaded) in files {
            let file = std::fs::File::options()
                .write(true)
                .open(dir.path().join(name))
                .unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(*uploaded);
            file.set_modified(time).unwrap();
        }
        dir
    }

    #[test]
    fn files_are_in_the_order_of_their_uploads_wherever_they_are() {
        let dir = uploads(&[
            ("x.tsv", 3),
            ("error/x.tsv", 5),
            ("error/x.1.tsv", 2),
            ("x.1.tsv", 4),
            ("sub/x.tsv", 1),
            ("a.tsv", 6),
        ]);
        let expected = [
            "sub/x.tsv",
            "error/x.1.tsv",
            "x.tsv",
            "x.1.tsv",
            "error/x.tsv",
            "a.tsv",
        ];
        assert_eq!(retried(dir.path()), expected);
    }

    #[test]
    fn files_in_error_that_arrived_with_the_same_name_are_in_order_of_arrival() {
        let names = ["w.tsv", "x.tsv", "x.1.tsv", "x.2.tsv", "x.10.tsv", "y.tsv"];
        let names = names.map(|name| format!("error/{name}"));
        let dir = uploads(&names.each_ref().map(|name| (name.as_str(), 1)));
        assert_eq!(retried(dir.path()), names);
    }

    #[test]
    fn a_number_that_became_free_does_not_reverse_the_order() {
        // x.tsv was moved, x.1.tsv stayed, and another x.tsv arrived.
        let dir = uploads(&[("error/x.1.tsv", 1), ("error/x.tsv", 2), ("x.tsv", 3)]);
        assert_eq!(
            retried(dir.path()),
            ["error/x.1.tsv", "error/x.tsv", "x.tsv"]
        );
    }

    #[test]
    fn numbers_in_the_loggers_own_names_are_part_of_the_name() {
        let dir = uploads(&[
            ("error/log.9.tsv", 1),
            ("error/log.10.tsv", 1),
            ("log.11.tsv", 1),
        ]);
        assert_eq!(
            retried(dir.path()),
            ["error/log.10.tsv", "log.11.tsv", "error/log.9.tsv"]
        );
        let names = ["2025.08.03.tsv", "2025.08.03.1.tsv", "2025.08.04.tsv"];
        let names = names.map(|name| format!("error/{name}"));
        let dir = uploads(&names.each_ref().map(|name| (name.as_str(), 1)));
        assert_eq!(retried(dir.path()), names);
    }

    #[test]
    fn a_folder_with_more_names_than_a_page_is_listed_completely() {
        let names: Vec<_> = (0..PAGE_SIZE + 10).map(|n| format!("{n:06}.tsv")).collect();
        let dir = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let found: Vec<_> = pending(dir.path(), false).collect();
        assert_eq!(found, names.iter().map(|n| file(n)).collect::<Vec<_>>());
    }
}
