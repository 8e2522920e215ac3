//! The versions of an upload: files in `parsed/` and `error/` that arrived under one name.
//!
//! An upload that begins before its file is moved continues in the moved file, under whatever name the move gave to it.
//! See docs/specification.md, section 9.

use super::device::Device;
use super::finish::Moved;
use super::outcome::{FileRecord, Outcome};
use super::submit::{Group, Request};
use crate::data_dir::{
    ERROR, EntryKind, OpenError, PARSED, SIDECAR_NAME_ROOM, Stamp, is_no_folder, numbered_name,
};
use crate::sanitize::sanitize;
use crate::sink::ordered_sender::OrderedSender;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

/// A file in `parsed/` or `error/` that was uploaded under a given name.
struct Version {
    dir: &'static str,
    name: OsString,
    number: u32,
    stamp: Stamp,
    /// Whether its content may have been written after it was moved.
    is_written: bool,
}

/// The folders of moved files, and the bytes that file names leave free there.
const PROCESSED_DIRS: [(&str, usize); 2] = [(PARSED, 0), (ERROR, SIDECAR_NAME_ROOM)];

/// How many numbers may be missing in the sequence of versions.
const MAX_GAPS: u32 = 2;

fn sort_by_upload(versions: &mut [Version]) {
    versions.sort_by_key(|version| (version.stamp.uploaded_ns(), version.number));
}

/// The number of the moved file `moved`, or `None` if it was not uploaded as `name`.
fn version_number(moved: &OsStr, name: &OsStr, room: usize) -> Option<u32> {
    let number = match Path::new(Path::new(moved).file_stem()?).extension() {
        Some(number) => number.to_str().and_then(|number| number.parse().ok()),
        None => None,
    };
    [Some(0), number]
        .into_iter()
        .flatten()
        .find(|number| numbered_name(name, *number, room) == moved)
}

impl Device<'_> {
    /// Submits earlier versions of a file that were written to after their move. They are found by trying their
    /// numbers, because listing the folder may be slow.
    pub(super) fn submit_written_versions(
        &self,
        sub: &Path,
        name: &OsStr,
        group: &mut Group,
        sender: &mut OrderedSender<'_>,
    ) {
        if self.context.settings.dry_run || !sub.as_os_str().is_empty() {
            return;
        }
        let mut written = Vec::new();
        for (dir, room) in PROCESSED_DIRS {
            // An error is reported when the file itself is moved there.
            let Ok(folder) = self.folder.open_below(Path::new(dir)) else {
                continue;
            };
            let Ok(folder_modified_ns) = folder.modified_ns() else {
                continue;
            };
            let mut gaps = 0;
            for number in 0.. {
                let name = numbered_name(name, number, room);
                match folder.stamp_of(&name) {
                    Ok(Some(stamp)) if stamp.may_be_written_after_its_move(folder_modified_ns) => {
                        written.push(Version {
                            dir,
                            name,
                            number,
                            stamp,
                            is_written: true,
                        });
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => gaps += 1,
                }
                if gaps > MAX_GAPS {
                    break;
                }
            }
        }
        sort_by_upload(&mut written);
        self.submit_versions(&written, name, group, sender);
    }

    fn submit_versions<'v>(
        &self,
        versions: impl IntoIterator<Item = &'v Version>,
        name: &OsStr,
        group: &mut Group,
        sender: &mut OrderedSender<'_>,
    ) {
        let request = Request::missing(name);
        for version in versions {
            self.submit(
                Path::new(version.dir),
                &version.name,
                &request,
                group,
                sender,
            );
        }
    }

    /// Handles a named file that does not exist, mostly because another process has moved it.
    ///
    /// An upload that began before the move continues in the moved file. Therefore each version of the name that was
    /// written to after its move is submitted again, in the order of the uploads.
    pub(super) fn submit_missing(
        &self,
        sub: &Path,
        name: &OsStr,
        sender: &mut OrderedSender<'_>,
    ) -> Vec<Moved> {
        let versions = match self.versions_of(name) {
            Ok(versions) => versions,
            Err((dir, error)) => {
                self.record(self.unlisted(Path::new(dir), &error));
                return Vec::new();
            }
        };
        let is_named_there = [PARSED, ERROR].map(Path::new).contains(&sub);
        let request = Request::missing(name);
        let mut group = Group::default();
        if !is_named_there && !self.context.settings.dry_run {
            let written = versions.iter().filter(|version| version.is_written);
            self.submit_versions(written, name, &mut group, sender);
        }
        if group.files.is_empty() {
            self.record(self.missing(sub, name, &versions));
            return Vec::new();
        }
        self.finish(group, &request, sender)
    }

    /// The files in `parsed/` and `error/` that were uploaded as `name`, in the order of their uploads.
    fn versions_of(&self, name: &OsStr) -> Result<Vec<Version>, (&'static str, io::Error)> {
        let mut versions = Vec::new();
        for (dir, room) in PROCESSED_DIRS {
            let mut find = || -> io::Result<()> {
                let folder = match self.folder.open_below(Path::new(dir)) {
                    Ok(folder) => folder,
                    Err(error) if is_no_folder(&error) => return Ok(()),
                    Err(error) => return Err(error),
                };
                let folder_modified_ns = folder.modified_ns()?;
                let mut names = Vec::new();
                folder.for_each_entry(|entry, kind| {
                    let number = (kind == EntryKind::File)
                        .then(|| version_number(entry, name, room))
                        .flatten();
                    names.extend(number.map(|number| (entry.to_owned(), number)));
                })?;
                for (name, number) in names {
                    let stamp = folder.stamp_of(&name)?;
                    versions.extend(stamp.map(|stamp| Version {
                        dir,
                        name,
                        number,
                        is_written: stamp.may_be_written_after_its_move(folder_modified_ns),
                        stamp,
                    }));
                }
                Ok(())
            };
            find().map_err(|error| (dir, error))?;
        }
        sort_by_upload(&mut versions);
        Ok(versions)
    }

    /// The record of a named file that does not exist and of which no version has to be ingested.
    fn missing(&self, sub: &Path, name: &OsStr, versions: &[Version]) -> FileRecord {
        if sub == Path::new(ERROR)
            && !self.context.settings.dry_run
            && let Ok(errors) = self.folder.open_below(sub)
        {
            let _ = errors.remove_orphan_sidecar(name);
        }
        let raw = || {
            let is_there = self
                .folder
                .stamp_of(name)
                .is_ok_and(|stamp| stamp.is_some());
            (is_there && !sub.as_os_str().is_empty()).then_some(Path::new("the device folder"))
        };
        let version = versions.iter().next_back();
        let version = version.map(|version| Path::new(version.dir).join(&version.name));
        let outcome = match version.as_deref().or_else(raw) {
            Some(dir) => Outcome::Skipped(format!("already processed; now in {}", sanitize(dir))),
            None => Outcome::Rejected(OpenError::Gone.to_string()),
        };
        self.unread(sub, name, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_a_name_are_the_names_that_a_move_creates() {
        let number = |moved: &str, name: &str, room| {
            version_number(OsStr::new(moved), OsStr::new(name), room)
        };
        assert_eq!(number("x.tsv", "x.tsv", 0), Some(0));
        assert_eq!(number("x.12.tsv", "x.tsv", 0), Some(12));
        assert_eq!(number("x.1.2.tsv", "x.tsv", 0), None);
        assert_eq!(number("x.1.2.tsv", "x.1.tsv", 0), Some(2));
        assert_eq!(number("x.1.tsv", "x.1.tsv", 0), Some(0));
        assert_eq!(number("y.1.tsv", "x.tsv", 0), None);
        assert_eq!(number("x.01.tsv", "x.tsv", 0), None);
        let long = format!("{}.tsv", "a".repeat(251));
        let moved = numbered_name(OsStr::new(&long), 3, SIDECAR_NAME_ROOM);
        assert_eq!(
            version_number(&moved, OsStr::new(&long), SIDECAR_NAME_ROOM),
            Some(3)
        );
    }
}
