//! Finds the last row before a file, which decides the hour of a first row in the night of the autumn change.
//!
//! See docs/specification.md, section 3.

use super::device::Device;
use crate::data_dir::pending_files::unnumbered;
use crate::data_dir::{Dir, OpenFile, PARSED};
use crate::logger_file::{LoggerFile, ReadOptions};
use crate::time_zone::FileZones;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The number of files of a run whose last rows are remembered.
const MAX_REMEMBERED: usize = 4096;

/// The number of uploads that are read one after another, because each may start in the repeated hour.
const MAX_DEPTH: usize = 32;

/// The last rows of the files of a device that this run has read, in the order in which they were read.
#[derive(Default)]
pub(crate) struct LastRows(Vec<LastRow>);

struct LastRow {
    upload: Upload,
    /// Seconds since 1970.
    time: i64,
}

/// The place of a file in the order of the uploads. See docs/specification.md, section 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Upload {
    uploaded_ns: i128,
    /// The name, without the number of a version.
    stem: OsString,
    /// The number of the version, or one that is part of the logger's name.
    number: u32,
}

impl Upload {
    fn new(uploaded_ns: i128, name: &OsStr) -> Self {
        let (stem, number) = unnumbered(name).unwrap_or_else(|| (name.to_owned(), 0));
        Self {
            uploaded_ns,
            stem,
            number,
        }
    }

    /// Whether this is another upload than `other` and not a version of it. A number makes a version of a name only if
    /// that name exists.
    fn is_no_version_of(&self, other: &Self, stem_exists: bool) -> bool {
        self.stem != other.stem || self.number != 0 && other.number != 0 && !stem_exists
    }
}

impl LastRows {
    /// Remembers the last row of a file.
    pub(super) fn add(&mut self, open: &OpenFile, name: &OsStr, time: i64) {
        if self.0.len() == MAX_REMEMBERED {
            self.0.remove(0);
        }
        let upload = Upload::new(open.stamp.uploaded_ns(), name);
        self.0.push(LastRow { upload, time });
    }

    /// The row of the upload before this one. Of equal ones, the one that was read last counts.
    fn before(&self, this: &Upload, stem_exists: bool) -> Option<&LastRow> {
        self.0
            .iter()
            .filter(|row| row.upload < *this && row.upload.is_no_version_of(this, stem_exists))
            .max_by(|a, b| a.upload.cmp(&b.upload))
    }
}

impl Device<'_> {
    /// See [`row_before`].
    pub(super) fn row_before(&self, open: &OpenFile, name: &OsStr) -> Option<i64> {
        let zones = &self.context.settings.zones;
        self.with_reserve(|| {
            let last_rows = self.last_rows.borrow();
            row_before(&self.folder, zones, &last_rows, open, name)
        })
    }
}

/// The timestamp of the last row of the upload before a file, among the files of the run and of `parsed/` in the device
/// folder. Versions of the file itself do not count. Errors are ignored: without that row, the first of the two hours
/// applies.
pub(crate) fn row_before(
    folder: &Dir,
    zones: &FileZones,
    last_rows: &LastRows,
    open: &OpenFile,
    name: &OsStr,
) -> Option<i64> {
    let uploads = Uploads {
        folder,
        zones,
        last_rows,
    };
    let this = Upload::new(open.stamp.uploaded_ns(), name);
    uploads.last_row_before(&this, MAX_DEPTH)
}

/// The uploads of a device.
struct Uploads<'a> {
    folder: &'a Dir,
    zones: &'a FileZones,
    last_rows: &'a LastRows,
}

impl Uploads<'_> {
    fn last_row_before(&self, this: &Upload, depth: usize) -> Option<i64> {
        let (in_parsed, stem_exists) = self.parsed_before(this).unwrap_or_default();
        let in_run = self.last_rows.before(this, stem_exists);
        match (in_run, in_parsed) {
            (Some(row), Some((upload, _))) if row.upload >= upload => Some(row.time),
            (_, Some((upload, name))) if depth > 0 => self.last_row_of(&upload, &name, depth - 1),
            (row, _) => row.map(|row| row.time),
        }
    }

    /// The file of `parsed/` that was uploaded last before this one, and whether there is a file with the stem of this one
    /// as its name. `None` if the folder cannot be listed.
    fn parsed_before(&self, this: &Upload) -> Option<(Option<(Upload, OsString)>, bool)> {
        let parsed = self.folder.open_below(Path::new(PARSED)).ok()?;
        let mut stem_exists = false;
        let mut before = None;
        let mut numbered = None;
        let set = |newest: &mut Option<(Upload, OsString)>, upload: Upload, name: &OsStr| {
            if newest.as_ref().is_none_or(|(newest, _)| *newest < upload) {
                *newest = Some((upload, name.to_owned()));
            }
        };
        parsed
            .for_each_upload(|name, uploaded_ns| {
                stem_exists |= name == this.stem;
                let upload = Upload::new(uploaded_ns, name);
                if upload >= *this {
                    return;
                }
                if upload.is_no_version_of(this, true) {
                    set(&mut before, upload, name);
                } else if upload.is_no_version_of(this, false) {
                    set(&mut numbered, upload, name);
                }
            })
            .ok()?;
        if !stem_exists {
            before = before.max(numbered);
        }
        Some((before, stem_exists))
    }

    fn last_row_of(&self, upload: &Upload, name: &OsStr, depth: usize) -> Option<i64> {
        let parsed = self.folder.open_below(Path::new(PARSED)).ok()?;
        let open = parsed.open_file(name).ok()?;
        let row_before = || self.last_row_before(upload, depth);
        let options = ReadOptions {
            row_before: &row_before,
            ..ReadOptions::new(self.zones)
        };
        let mut file = LoggerFile::open(&*open.file, &options).ok()?;
        while let Ok(Some(_)) = file.next_row() {}
        file.last_row()
    }
}
