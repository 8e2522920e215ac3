//! Compares the layout of each file with that of the device's previous file, and remembers it.
//!
//! The order is that of the uploads: a file that was uploaded before others is compared with the one before it. See
//! docs/specification.md, section 4.

use super::device::Device;
use super::outcome::{FileRecord, Outcome};
use crate::data_dir::{Dir, LAYOUT_FILE, OpenFile, PARSED, is_no_folder};
use crate::layout::{FileLayout, Held, Later, Layout, LayoutState, describe_changes};
use crate::logger_file::{LoggerFile, ReadOptions};
use crate::remedy::remedy;
use crate::report::counted;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::{Bound, RangeInclusive};
use std::path::Path;

/// The maximum number of uploads that are kept of a listing of `parsed/`, on each side of the file that it was made for. If
/// there are more, the folder is listed again for files that were uploaded at other times.
const MAX_LISTED: usize = 1 << 15;

/// The number of the newest uploads in `parsed/` whose layouts are read if none are remembered.
const MAX_READ: usize = 8;

/// What is known of the layouts of a device while its lock is held.
#[derive(Default)]
pub(super) struct LayoutGuard {
    /// Read for the first file.
    state: RefCell<Option<LayoutState>>,
    /// Whether the state is that of the newest uploads in `parsed/`, because none was remembered.
    is_new: Cell<bool>,
    /// Made for the first file that is not the last upload or changes something.
    listing: RefCell<Option<Listing>>,
    /// Whether this run has said that the state cannot be read.
    is_unreadable: Cell<bool>,
}

/// Uploads in `parsed/` that follow each other.
struct Listing {
    /// By the time of the upload, in nanoseconds since 1970.
    uploads: BTreeMap<i64, OsString>,
    /// The times of which all uploads are listed.
    covers: RangeInclusive<i64>,
}

/// The uploads in `parsed/` just before and after a file.
#[derive(Default)]
struct Neighbours {
    before: Option<Upload>,
    after: Option<Upload>,
}

struct Upload {
    /// In nanoseconds since 1970.
    time: i64,
    name: OsString,
}

impl LayoutGuard {
    /// Forgets what another process may change while the lock is not held.
    pub(super) fn forget(&self) {
        self.state.take();
        self.is_new.take();
        self.listing.take();
    }

    /// Adds a file that was moved to `parsed/`.
    pub(super) fn add_upload(&self, open: &OpenFile, name: &OsStr) {
        if let Some(listing) = self.listing.borrow_mut().as_mut() {
            listing.add(nanoseconds(open.stamp.uploaded_ns()), name);
        }
    }
}

impl Listing {
    /// Lists the uploads around a time, at most `max` before it, and `max` with this time or after it.
    fn around(time: i64, parsed: &Dir, max: usize) -> io::Result<Self> {
        let mut listing = Self {
            uploads: BTreeMap::new(),
            covers: i64::MIN..=i64::MAX,
        };
        let (mut before, mut after) = (0, 0);
        parsed.for_each_upload(|name, uploaded_ns| {
            let uploaded = nanoseconds(uploaded_ns);
            if !listing.add(uploaded, name) {
                return;
            }
            let side = if uploaded < time {
                &mut before
            } else {
                &mut after
            };
            *side += 1;
            if before > max
                && let Some((first, _)) = listing.uploads.pop_first()
            {
                before -= 1;
                listing.covers = first + 1..=*listing.covers.end();
            }
            if after > max
                && let Some((last, _)) = listing.uploads.pop_last()
            {
                after -= 1;
                listing.covers = *listing.covers.start()..=last - 1;
            }
        })?;
        Ok(listing)
    }

    /// Adds an upload. Returns `false` if it is not covered, or if there is one with this time already.
    fn add(&mut self, uploaded: i64, name: &OsStr) -> bool {
        self.covers.contains(&uploaded) && self.uploads.insert(uploaded, name.to_owned()).is_none()
    }

    /// Whether it is certain that no file was uploaded after this time.
    fn is_last(&self, uploaded: i64) -> bool {
        let last = self.uploads.last_key_value();
        *self.covers.end() == i64::MAX && last.is_none_or(|(last, _)| uploaded >= *last)
    }

    /// The uploads before and after this time, or `None` if they are not listed.
    fn neighbours(&self, uploaded: i64) -> Option<Neighbours> {
        let upload = |(time, name): (&i64, &OsString)| Upload {
            time: *time,
            name: name.clone(),
        };
        let before = self.uploads.range(..uploaded).next_back().map(upload);
        let after = (Bound::Excluded(uploaded), Bound::Unbounded);
        let after = self.uploads.range(after).next().map(upload);
        let is_covered = self.covers.contains(&uploaded)
            && (before.is_some() || *self.covers.start() == i64::MIN)
            && (after.is_some() || *self.covers.end() == i64::MAX);
        is_covered.then_some(Neighbours { before, after })
    }
}

impl Device<'_> {
    /// Compares the layout of a file that was read with the one before, and remembers it if the file is ingested. The
    /// results are added to the record.
    ///
    /// It is called before the file is moved, so that a run that is killed in between reports a change again.
    pub(super) fn check_layout(&self, record: &mut FileRecord, name: &OsStr, open: &OpenFile) {
        let Some(file) = record.layout.take() else {
            return;
        };
        let uploaded = nanoseconds(open.stamp.uploaded_ns());
        let path = record.path.clone();
        let neighbours = OnceCell::new();
        let neighbours = || {
            neighbours
                .get_or_init(|| self.neighbours(&path, uploaded))
                .as_ref()
        };
        let mut state = self.layout.state.borrow_mut();
        let state = state.get_or_insert_with(|| self.read_layout_state());
        let known = state.before(uploaded, &file).cloned();
        let previous = match known {
            Some(_) => None,
            None => neighbours().and_then(|found| {
                let before = found.before.as_ref()?;
                self.held(before.time, &before.name)
            }),
        };
        let before = known
            .as_ref()
            .or(previous.as_ref().map(|held| &held.layout));
        let is_acknowledged = state.is_acknowledged(&file);
        self.report_layout(record, &file, before, is_acknowledged);
        if record.outcome != Outcome::Ingested {
            return;
        }
        let later = || {
            if self.is_last_upload(uploaded) {
                return Later::None;
            }
            match neighbours() {
                None => Later::Unknown,
                Some(Neighbours { after: None, .. }) => Later::None,
                Some(Neighbours {
                    after: Some(after), ..
                }) => Later::Upload(
                    after.time,
                    self.held(after.time, &after.name).map(|held| held.layout),
                ),
            }
        };
        let name = name.to_string_lossy();
        let is_new = self.layout.is_new.take();
        if (state.record(&name, uploaded, &file, previous, &later) || is_new)
            && !self.context.settings.dry_run
            && let Err(error) = state.write(&self.folder)
        {
            let path = self.folder.path().join(LAYOUT_FILE);
            self.context.recorder.warn(
                &path,
                &format!(
                    "cannot write the layout of the device: {error}; {}",
                    remedy(&error, "check the rights of the folder")
                ),
            );
        }
    }

    /// Adds the results to the record and warns of them.
    fn report_layout(
        &self,
        record: &mut FileRecord,
        file: &FileLayout,
        before: Option<&Layout>,
        is_acknowledged: bool,
    ) {
        let warn = |message: &str| self.context.recorder.warn(&record.path, message);
        let changes = file.changes_since(before);
        if !changes.is_empty() {
            warn(&format!(
                "layout changed in {}: {}; check the logger's configuration, and the dashboards and bills that use these columns",
                counted(changes.len() as u64, "column"),
                describe_changes(&changes)
            ));
        }
        if !file.contradictions.is_empty() && !is_acknowledged {
            warn(&format!(
                "layout contradicts itself: {}; correct the logger's configuration, or accept it with powerview status --acknowledge",
                file.contradictions.join("; ")
            ));
        }
        let details = &mut record.details;
        details.layout_changed = (!changes.is_empty()).then_some(changes);
        details.layout_suspect =
            (!file.contradictions.is_empty()).then(|| file.contradictions.clone());
        details.is_layout_acknowledged = is_acknowledged;
    }

    /// Reads what is remembered. If there is nothing, or it cannot be read, it is found in `parsed/` again.
    fn read_layout_state(&self) -> LayoutState {
        let remembered = LayoutState::read(&self.folder).unwrap_or_else(|error| {
            if !self.layout.is_unreadable.replace(true) {
                let path = self.folder.path().join(LAYOUT_FILE);
                let message = format!(
                    "cannot read the layouts of the device: {error}; the next file is compared with the one before in {PARSED}/"
                );
                self.context.recorder.warn(&path, &message);
            }
            LayoutState::default()
        });
        if !remembered.is_empty() {
            return remembered;
        }
        let found = self.layouts_of_newest();
        self.layout.is_new.set(!found.is_empty());
        found
    }

    /// What would be remembered of the newest uploads in `parsed/`.
    fn layouts_of_newest(&self) -> LayoutState {
        let parsed = self.folder.open_below(Path::new(PARSED));
        // If the folder cannot be listed, there is a warning when a file is compared.
        let Ok(listing) = parsed.and_then(|parsed| Listing::around(i64::MAX, &parsed, MAX_LISTED))
        else {
            return LayoutState::default();
        };
        let newest = listing.uploads.iter().rev().take(MAX_READ);
        let mut layouts: Vec<_> = newest
            .filter_map(|(time, name)| self.held(*time, name))
            .collect();
        layouts.reverse();
        self.layout.listing.replace(Some(listing));
        LayoutState::of(layouts)
    }

    /// Whether it is certain, without listing `parsed/`, that no file in it was uploaded after this time.
    fn is_last_upload(&self, uploaded: i64) -> bool {
        match &*self.layout.listing.borrow() {
            Some(listing) => listing.is_last(uploaded),
            // A file is moved after it is uploaded, which sets the time of the folder.
            None => match self.folder.open_below(Path::new(PARSED)) {
                Ok(parsed) => parsed
                    .modified_ns()
                    .is_ok_and(|moved| nanoseconds(moved) < uploaded),
                Err(error) => is_no_folder(&error),
            },
        }
    }

    /// The uploads in `parsed/` before and after this time. `None` if the folder cannot be listed, with a warning about the
    /// file.
    fn neighbours(&self, path: &Path, uploaded: i64) -> Option<Neighbours> {
        let mut listing = self.layout.listing.borrow_mut();
        let known = listing
            .as_ref()
            .and_then(|listing| listing.neighbours(uploaded));
        if known.is_some() {
            return known;
        }
        let listed = match self.folder.open_below(Path::new(PARSED)) {
            Ok(parsed) => Listing::around(uploaded, &parsed, MAX_LISTED),
            Err(error) if is_no_folder(&error) => return Some(Neighbours::default()),
            Err(error) => Err(error),
        };
        match listed {
            Ok(listed) => listing.insert(listed).neighbours(uploaded),
            Err(error) => {
                let message = format!(
                    "layout not compared with that of the upload before: cannot list {PARSED}/: {error}; {}",
                    remedy(&error, "check the rights of the folder")
                );
                self.context.recorder.warn(path, &message);
                None
            }
        }
    }

    /// Reads the last layout of an upload in `parsed/`.
    fn held(&self, time: i64, name: &OsStr) -> Option<Held> {
        let parsed = self.folder.open_below(Path::new(PARSED)).ok()?;
        let open = parsed.open_file(name).ok()?;
        let options = ReadOptions::new(&self.context.settings.zones);
        let mut file = LoggerFile::open(&*open.file, &options).ok()?;
        while let Ok(Some(_)) = file.next_row() {}
        Some(Held {
            since: time,
            layout: file.layout()?.last,
        })
    }
}

/// Nanoseconds since 1970, which fit from 1678 to 2262.
fn nanoseconds(time: i128) -> i64 {
    let limit = if time < 0 { i64::MIN } else { i64::MAX };
    i64::try_from(time).unwrap_or(limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_neighbours_in_a_folder_of_any_size_are_found() {
        let dir = tempfile::tempdir().unwrap();
        // Every ten seconds, with two files at some times.
        let times: Vec<i64> = (0..30).map(|n| 1_000 + 10 * (n - n % 7 / 6)).collect();
        for (n, seconds) in times.iter().enumerate() {
            let file = std::fs::File::create(dir.path().join(format!("{n}.tsv"))).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.cast_unsigned());
            file.set_modified(time).unwrap();
        }
        let folder = Dir::open(dir.path()).unwrap();
        let nanoseconds: Vec<_> = times.iter().map(|time| time * 1_000_000_000).collect();
        for at in (990..1_310).step_by(5) {
            let at = at * 1_000_000_000;
            let earlier = nanoseconds.iter().filter(|time| **time < at);
            let later = nanoseconds.iter().filter(|time| **time > at);
            let expected = (earlier.max().copied(), later.min().copied());
            let found = |listing: &Listing| {
                let found = listing.neighbours(at)?;
                let time = |upload: Option<Upload>| upload.map(|upload| upload.time);
                Some((time(found.before), time(found.after)))
            };
            for max in [2, 4, 100] {
                let listing = Listing::around(at, &folder, max).unwrap();
                assert!(listing.uploads.len() <= 2 * max);
                assert_eq!(found(&listing), Some(expected), "{at}, {max}");
                // One that was made for another file says so, or is right.
                let other = Listing::around(1_111_000_000_000, &folder, max).unwrap();
                assert!(
                    found(&other).is_none_or(|found| found == expected),
                    "{at}, {max}"
                );
                assert!(max < 100 || found(&other).is_some());
            }
        }
    }
}
