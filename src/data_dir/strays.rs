//! Files, links and other entries in a device folder that no run takes. See docs/specification.md, section 1.

use super::lock::LOCK_FILE;
use super::pending_files::{is_hidden, is_sidecar, is_tsv, may_be_named};
use super::retired::RETIRED_MARKER;
use super::sidecar;
use super::state_file::is_state_file;
use super::walk::{SortedWalk, WalkItem, is_no_folder};
use super::{Dir, Entry, EntryKind, is_processed_dir};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Age below which a partial upload may still be completed and renamed.
const MAX_UPLOAD: Duration = Duration::from_hours(24);

/// Extensions that clients give to an upload in progress.
const PARTIAL_EXTENSIONS: [&[u8]; 3] = [b"filepart", b"part", b"tmp"];

/// The marker of a campaign whose dashboard exists. The playbooks create it.
pub(crate) const DASHBOARD_MARKER: &str = ".dashboard.created";

/// Calls `each` with the path, relative to `folder`, of each file in the device folder `folder` that no run takes:
/// files without the extension of logger files, files in folders below `parsed/` and `error/`, links, pipes, sockets and
/// devices.
///
/// # Errors
/// If a folder cannot be listed.
pub(crate) fn strays(folder: &Arc<Dir>, mut each: impl FnMut(PathBuf)) -> io::Result<()> {
    let other = |name: &OsStr, kind| kind != EntryKind::File || !is_tsv(name);
    for item in SortedWalk::new(folder, other, |_, name| !is_processed_dir(name)) {
        match item {
            WalkItem::File(sub, name) if sub.as_os_str().is_empty() && is_own_file(&name) => {}
            // An obstacle, which is a problem of its own.
            WalkItem::File(sub, name) if sub.as_os_str().is_empty() && is_processed_dir(&name) => {}
            WalkItem::Special(path) if is_processed_dir(path.as_os_str()) => {}
            WalkItem::File(sub, name) => add(folder, &sub.join(name), &mut each)?,
            WalkItem::Special(path) => add(folder, &path, &mut each)?,
            WalkItem::Dir(path) if path.components().count() == 1 => {
                let processed = folder.open_below(&path)?;
                for entry in processed.sorted_entries(was_not_moved) {
                    let Entry { name, kind } = entry?;
                    let path = path.join(name);
                    match kind {
                        EntryKind::Dir => all_below(folder, &path, &mut each)?,
                        EntryKind::File | EntryKind::Special => add(folder, &path, &mut each)?,
                    }
                }
            }
            WalkItem::Dir(path) => all_below(folder, &path, &mut each)?,
            WalkItem::Leaf(_) => {}
            WalkItem::Unlisted(_, error) if is_no_folder(&error) => {}
            WalkItem::Unlisted(_, error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a file of this name in a device folder belongs to the program.
fn is_own_file(name: &OsStr) -> bool {
    is_state_file(name) || name == RETIRED_MARKER || name == LOCK_FILE
}

/// Whether an entry of `parsed/` or `error/` is neither a logger file nor a file of the program.
fn was_not_moved(name: &OsStr, kind: EntryKind) -> bool {
    let was_moved = may_be_named(name) || is_sidecar(name) || name == sidecar::TEMPORARY;
    kind != EntryKind::File || !was_moved
}

/// Calls `each` for all files in `sub` and in the folders below it.
pub(crate) fn all_below(
    folder: &Dir,
    sub: &Path,
    each: &mut impl FnMut(PathBuf),
) -> io::Result<()> {
    let below = match folder.open_below(sub) {
        Ok(below) => Arc::new(below),
        Err(error) if is_no_folder(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for item in SortedWalk::new(&below, |_, _| true, |_, _| true) {
        match item {
            WalkItem::File(inner, name) => add(folder, &sub.join(inner).join(name), each)?,
            WalkItem::Special(inner) => add(folder, &sub.join(inner), each)?,
            WalkItem::Unlisted(_, error) if !is_no_folder(&error) => return Err(error),
            WalkItem::Dir(_) | WalkItem::Leaf(_) | WalkItem::Unlisted(..) => {}
        }
    }
    Ok(())
}

/// Calls `each` for a file unless it may be an upload in progress.
fn add(folder: &Dir, path: &Path, each: &mut impl FnMut(PathBuf)) -> io::Result<()> {
    if !is_recent_upload(folder, path)? {
        each(path.to_owned());
    }
    Ok(())
}

/// Whether a file below `folder` has the name of a partial upload and is less than a day old, or no longer exists.
pub(crate) fn is_recent_upload(folder: &Dir, path: &Path) -> io::Result<bool> {
    let name = path.file_name().unwrap_or_default();
    let extension = path.extension().map(|e| e.as_bytes().to_ascii_lowercase());
    let is_partial = extension.is_some_and(|e| PARTIAL_EXTENSIONS.contains(&e.as_slice()));
    if !is_hidden(name) && !is_partial {
        return Ok(false);
    }
    let parent = match folder.open_below(path.parent().unwrap_or(Path::new(""))) {
        Ok(parent) => parent,
        Err(error) if is_no_folder(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    Ok(parent.modified(name)?.is_none_or(|modified| {
        SystemTime::now()
            .duration_since(modified)
            .is_ok_and(|age| age < MAX_UPLOAD)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strays_of(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        strays(&Arc::new(Dir::open(folder).unwrap()), |path| {
            found.push(path.into_os_string().into_string().unwrap());
        })
        .unwrap();
        found.sort();
        found
    }

    #[test]
    fn files_that_no_run_takes_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, hours: u64| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = std::fs::File::create(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_hours(hours))
                .unwrap();
        };
        for taken in [
            "a.tsv",
            "b.TSV",
            "sub/c.tsv",
            "parsed/d.tsv",
            "parsed/.named.tsv",
            "error/f.tsv",
            "error/f.tsv.error.json",
            "error/gone.TSV.error.json",
            "error/.powerview-sidecar.tmp",
            ".powerview-layout.json",
            ".powerview-layout.tmp",
            ".powerview-retired",
            ".powerview-rollup.json",
            ".powerview-rollup.tmp",
        ] {
            put(taken, 25);
        }
        for recent in [".sftpgo-upload.1.x.tsv", "x.tsv.filepart", "y.TMP"] {
            put(recent, 23);
        }
        let expected = [
            ".powerview-layout.old",
            ".sftpgo-upload.2.x.tsv",
            "a.csv",
            "error/sub/x.tsv",
            "error/w.txt",
            "noextension",
            "parsed/e",
            "parsed/sub/deep/x.tsv",
            "parsed/w.csv",
            "sub/.powerview-layout.json",
            "sub/.powerview-rollup.json",
            "sub/parsed/x.tsv",
            "sub/x.tsv.gz",
            "z.filepart",
        ];
        for path in expected {
            put(path, 25);
        }
        assert_eq!(strays_of(dir.path()), expected);
    }

    #[test]
    fn links_pipes_and_sockets_are_found_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("x.tsv"), "").unwrap();
        for folder in ["sub", "parsed/sub", "error"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for (name, target) in [
            ("folder", "."),
            ("link.tsv", "x.tsv"),
            ("dangling.tsv", "gone.tsv"),
            ("sub/link.tsv", "x.tsv"),
            ("parsed/link.tsv", "x.tsv"),
            ("parsed/sub/folder", "."),
            ("error/link.tsv", "x.tsv"),
        ] {
            let target = elsewhere.path().join(target);
            std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let pipe = dir.path().join("pipe.tsv");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        assert_eq!(
            strays_of(dir.path()),
            [
                "dangling.tsv",
                "error/link.tsv",
                "folder",
                "link.tsv",
                "parsed/link.tsv",
                "parsed/sub/folder",
                "pipe.tsv",
                "socket",
                "sub/link.tsv",
            ]
        );
    }
}
