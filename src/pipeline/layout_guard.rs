//! Compares the layout of each file with that of the device's previous file, and remembers it.
//!
//! The order is that of the uploads: a file that was uploaded before others is compared with the one before it. See
//! docs/specification.md, section 4.

use super::device::Device;
use super::outcome::{FileRecord, Outcome};
use crate::data_dir::{LAYOUT_FILE, OpenFile, PARSED, is_no_folder};
use crate::layout::{FileLayout, Held, Later, Layout, LayoutState, describe_changes};
use crate::logger_file::{LoggerFile, ReadOptions};
use crate::remedy::remedy;
use crate::report::counted;
use crate::sanitize::sanitize;
use std::cell::{Cell, OnceCell, RefCell};
use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// How often `parsed/` is listed while the lock is held. It may have many files, and each may have another layout.
const MAX_LISTINGS: u32 = 8;

/// What is known of the layouts of a device while its lock is held.
#[derive(Default)]
pub(super) struct LayoutGuard {
    /// Read for the first file.
    state: RefCell<Option<LayoutState>>,
    /// The time of the last upload in `parsed/`, once it was listed.
    last_upload: Cell<Option<i64>>,
    listings: Cell<u32>,
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
        self.last_upload.take();
        self.listings.take();
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
        let neighbours = OnceCell::new();
        let neighbours = || {
            neighbours
                .get_or_init(|| self.neighbours(uploaded))
                .as_ref()
        };
        let mut state = self.layout.state.borrow_mut();
        let state = state.get_or_insert_with(|| self.read_layout_state());
        let known = state.before(uploaded, &file).cloned();
        let previous = match known {
            Some(_) => None,
            None => neighbours().and_then(|found| self.held(found.before.as_ref()?)),
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
                }) => Later::Upload(after.time, self.held(after).map(|held| held.layout)),
            }
        };
        let name = name.to_string_lossy();
        if state.record(&name, uploaded, &file, previous, &later)
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
        let last = self.layout.last_upload.get();
        self.layout
            .last_upload
            .set(last.map(|last| last.max(uploaded)));
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

    /// Reads what is remembered. What cannot be read is found in `parsed/` again.
    fn read_layout_state(&self) -> LayoutState {
        LayoutState::read(&self.folder).unwrap_or_else(|error| {
            tracing::debug!(
                "{}: cannot read {LAYOUT_FILE}: {error}",
                sanitize(self.folder.path())
            );
            LayoutState::default()
        })
    }

    /// Whether it is certain, without listing `parsed/`, that no file in it was uploaded after this time.
    fn is_last_upload(&self, uploaded: i64) -> bool {
        match self.layout.last_upload.get() {
            Some(last) => uploaded >= last,
            // A file is moved after it is uploaded, which sets the time of the folder.
            None => match self.folder.open_below(Path::new(PARSED)) {
                Ok(parsed) => parsed
                    .modified_ns()
                    .is_ok_and(|moved| nanoseconds(moved) < uploaded),
                Err(error) => is_no_folder(&error),
            },
        }
    }

    /// Lists `parsed/` for the uploads before and after this time. `None` if that is not possible, or was done too often.
    fn neighbours(&self, uploaded: i64) -> Option<Neighbours> {
        let parsed = match self.folder.open_below(Path::new(PARSED)) {
            Ok(parsed) => parsed,
            Err(error) => return is_no_folder(&error).then(Neighbours::default),
        };
        let listings = self.layout.listings.get();
        if listings == MAX_LISTINGS {
            return None;
        }
        self.layout.listings.set(listings + 1);
        let mut found = Neighbours::default();
        let mut last = i64::MIN;
        let listed = parsed.for_each_upload(|name, uploaded_ns| {
            let time = nanoseconds(uploaded_ns);
            last = last.max(time);
            let (slot, nearer) = match time.cmp(&uploaded) {
                Ordering::Less => (&mut found.before, Ordering::Greater),
                Ordering::Equal => return,
                Ordering::Greater => (&mut found.after, Ordering::Less),
            };
            let is_nearer = |upload: &Upload| time.cmp(&upload.time) == nearer;
            if slot.as_ref().is_none_or(is_nearer) {
                *slot = Some(Upload {
                    time,
                    name: name.to_owned(),
                });
            }
        });
        listed.ok()?;
        self.layout.last_upload.set(Some(last));
        Some(found)
    }

    /// Reads the header of an upload in `parsed/`.
    fn held(&self, upload: &Upload) -> Option<Held> {
        let parsed = self.folder.open_below(Path::new(PARSED)).ok()?;
        let open = parsed.open_file(&upload.name).ok()?;
        let options = ReadOptions::new(&self.context.settings.zones);
        let file = LoggerFile::open(&*open.file, &options).ok()?;
        Some(Held {
            since: upload.time,
            layout: file.layout()?.last,
        })
    }
}

/// Nanoseconds since 1970, which fit until 2262.
fn nanoseconds(time: i128) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}
