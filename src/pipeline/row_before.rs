//! Finds the last row before a file, which decides the hour of a first row in the night of the autumn change.
//!
//! See docs/specification.md, section 3.

use super::device::Device;
use crate::data_dir::{Dir, Inode, OpenFile, PARSED};
use crate::logger_file::{LoggerFile, ReadOptions};
use crate::time_zone::FileZones;
use std::path::Path;

/// The number of files of a run whose last rows are remembered.
const MAX_REMEMBERED: usize = 4096;

/// The number of uploads that are read one after another, because each may start in the repeated hour.
const MAX_DEPTH: usize = 32;

/// The last rows of the files of a device that this run has read, in the order in which they were read.
#[derive(Default)]
pub(crate) struct LastRows(Vec<LastRow>);

struct LastRow {
    uploaded_ns: i128,
    /// Seconds since 1970.
    time: i64,
}

impl LastRows {
    /// Remembers the last row of a file.
    pub(super) fn add(&mut self, open: &OpenFile, time: i64) {
        if self.0.len() == MAX_REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(LastRow {
            uploaded_ns: open.stamp.uploaded_ns(),
            time,
        });
    }

    /// The row of the last upload up to a time. Of simultaneous uploads, the one that was read last counts.
    fn before(&self, uploaded_ns: i128) -> Option<&LastRow> {
        self.0
            .iter()
            .filter(|row| row.uploaded_ns <= uploaded_ns)
            .max_by_key(|row| row.uploaded_ns)
    }
}

impl Device<'_> {
    /// See [`row_before`].
    pub(super) fn row_before(&self, open: &OpenFile) -> Option<i64> {
        let zones = &self.context.settings.zones;
        self.with_reserve(|| row_before(&self.folder, zones, &self.last_rows.borrow(), open))
    }
}

/// The timestamp of the last row of the upload before a file, among the files of the run and of `parsed/` in the device
/// folder. Errors are ignored: without that row, the first of the two hours applies.
pub(crate) fn row_before(
    folder: &Dir,
    zones: &FileZones,
    last_rows: &LastRows,
    open: &OpenFile,
) -> Option<i64> {
    let uploads = Uploads {
        folder,
        zones,
        last_rows,
    };
    uploads.last_row_before(open.stamp.uploaded_ns(), open.inode, MAX_DEPTH)
}

/// The uploads of a device.
struct Uploads<'a> {
    folder: &'a Dir,
    zones: &'a FileZones,
    last_rows: &'a LastRows,
}

impl Uploads<'_> {
    fn last_row_before(&self, uploaded_ns: i128, this: Inode, depth: usize) -> Option<i64> {
        let in_run = self.last_rows.before(uploaded_ns);
        let in_parsed = self.parsed_before(uploaded_ns, this);
        match (in_run, in_parsed) {
            (Some(row), Some(file)) if row.uploaded_ns >= file.stamp.uploaded_ns() => {
                Some(row.time)
            }
            (_, Some(file)) if depth > 0 => self.last_row_of(&file, depth - 1),
            (row, _) => row.map(|row| row.time),
        }
    }

    /// The file of `parsed/` that was uploaded last before a time.
    fn parsed_before(&self, uploaded_ns: i128, this: Inode) -> Option<OpenFile> {
        let parsed = self.folder.open_below(Path::new(PARSED)).ok()?;
        let mut newest = None;
        parsed
            .for_each_upload(|name, uploaded| {
                let is_newer = newest.as_ref().is_none_or(|(newest, _)| *newest < uploaded);
                if uploaded < uploaded_ns && is_newer {
                    newest = Some((uploaded, name.to_owned()));
                }
            })
            .ok()?;
        let file = parsed.open_file(&newest?.1).ok()?;
        (file.inode != this).then_some(file)
    }

    fn last_row_of(&self, open: &OpenFile, depth: usize) -> Option<i64> {
        let row_before = || self.last_row_before(open.stamp.uploaded_ns(), open.inode, depth);
        let options = ReadOptions {
            row_before: &row_before,
            ..ReadOptions::new(self.zones)
        };
        let mut file = LoggerFile::open(&*open.file, &options).ok()?;
        while let Ok(Some(_)) = file.next_row() {}
        file.last_row()
    }
}
