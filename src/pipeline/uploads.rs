//! The uploads in `parsed/` of a device, in the order of their times. See docs/specification.md, section 1.

use crate::data_dir::pending_files::unnumbered;
use crate::data_dir::{Dir, PARSED, Stamp, is_no_folder};
use crate::points::TimeRange;
use crate::sink::ordered_sender::overlaps;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Bound;
use std::path::Path;

/// Maximum number of files in `parsed/` that are kept in memory. If there are more, the folder is listed several times.
const MAX_LISTED: usize = 1 << 18;

/// Time of the upload in nanoseconds since 1970, number of the version, and name in `parsed/`.
pub(super) type Key = (i128, u32, OsString);

fn key(uploaded: i128, name: &OsStr) -> Key {
    let number = unnumbered(name).map_or(0, |(_, number)| number);
    (uploaded, number, name.to_owned())
}

/// The key before those of all files that were uploaded at this time or later.
pub(super) fn start(uploaded: i128) -> Key {
    (uploaded, 0, OsString::new())
}

/// The uploads in the folder `parsed/` of a device, as far as they are needed to find those after a late file.
#[derive(Default)]
pub(super) struct Uploads {
    /// The latest upload that this run has ingested.
    newest: Option<i128>,
    /// When another process last changed the folder. What it moved there was uploaded before.
    changed_by_others: Option<i128>,
    /// When the folder was last changed, as far as is known.
    pub changed: Option<i128>,
    /// The names in `parsed/` that the command line contains.
    named: HashSet<OsString>,
    /// The files of the folder, once a late file was found.
    listed: Option<Listed>,
}

/// Files of `parsed/` that follow each other in the order of their uploads.
pub(super) struct Listed {
    /// The file before the first one.
    after: Option<Key>,
    files: BTreeMap<Key, Listing>,
    /// Whether the last upload is among them.
    pub is_complete: bool,
}

/// What is known about a file in `parsed/`.
pub(super) struct Listing {
    span: Span,
    pub is_named: bool,
}

/// The time range of the points of a file.
enum Span {
    Unread,
    Read(Option<TimeRange>),
}

impl Uploads {
    pub(super) fn new(named: HashSet<OsString>) -> Self {
        Self {
            named,
            ..Self::default()
        }
    }

    /// Takes note of the time of the last change of the folder when its lock was acquired.
    pub(super) fn locked(&mut self, changed: Option<i128>) {
        if changed != self.changed {
            self.changed = changed;
            self.changed_by_others = changed;
            self.listed = None;
        }
    }

    /// Adds a file that this run has moved to the folder or ingested there.
    pub(super) fn add(&mut self, stamp: &Stamp, name: &OsStr, span: Option<&TimeRange>) {
        let uploaded = stamp.uploaded_ns();
        self.newest = self.newest.max(Some(uploaded));
        if let Some(listed) = &mut self.listed {
            listed.add(key(uploaded, name), span.cloned());
        }
    }

    /// Whether a file may have been uploaded after one of this time. It costs nothing for the latest upload.
    pub(super) fn may_have_later(&self, uploaded: i128) -> bool {
        [self.newest, self.changed_by_others]
            .into_iter()
            .flatten()
            .any(|latest| uploaded <= latest)
    }

    /// The files that follow `from`, or the first of them.
    pub(super) fn list(&mut self, folder: &Dir, from: &Key) -> io::Result<&mut Listed> {
        if self.listed.is_none() {
            self.listed = Some(self.read_page(folder, None)?);
        }
        let covers = |listed: &Listed| listed.covers(from);
        if !self.listed.as_ref().is_some_and(covers) {
            self.listed = Some(self.read_page(folder, Some(from.clone()))?);
        }
        Ok(self.listed.get_or_insert_with(Listed::empty))
    }

    /// Reads the first files after `after` in the order of their uploads. What was known about them is kept.
    fn read_page(&mut self, folder: &Dir, after: Option<Key>) -> io::Result<Listed> {
        let parsed = match folder.open_below(Path::new(PARSED)) {
            Ok(parsed) => parsed,
            Err(error) if is_no_folder(&error) => return Ok(Listed::empty()),
            Err(error) => return Err(error),
        };
        let mut first: BinaryHeap<Key> = BinaryHeap::new();
        let mut is_complete = true;
        parsed.for_each_upload(|name, uploaded| {
            let key = key(uploaded, name);
            if after.as_ref().is_some_and(|after| key <= *after) {
                return;
            }
            first.push(key);
            if first.len() > MAX_LISTED {
                first.pop();
                is_complete = false;
            }
        })?;
        let mut known = self.listed.take().map_or_else(BTreeMap::new, |l| l.files);
        let files = first.into_iter().map(|key| {
            let listing = known.remove(&key).unwrap_or_else(|| Listing {
                span: Span::Unread,
                is_named: self.named.contains(&key.2),
            });
            (key, listing)
        });
        Ok(Listed {
            files: files.collect(),
            after,
            is_complete,
        })
    }

    pub(super) fn set_span(&mut self, key: &Key, span: Option<TimeRange>) {
        let listing = self.listed.as_mut().and_then(|l| l.files.get_mut(key));
        if let Some(listing) = listing {
            listing.span = Span::Read(span);
        }
    }
}

impl Listed {
    fn empty() -> Self {
        Self {
            after: None,
            files: BTreeMap::new(),
            is_complete: true,
        }
    }

    /// Whether the file after `key` is listed, if there is one.
    fn covers(&self, key: &Key) -> bool {
        let has_next = || self.files.last_key_value().is_some_and(|(k, _)| k > key);
        self.after.as_ref() <= Some(key) && (self.is_complete || has_next())
    }

    /// The files that follow `from`, in order.
    pub(super) fn following(&self, from: &Key) -> impl Iterator<Item = (&Key, &Listing)> {
        let range = (Bound::Excluded(from), Bound::Unbounded);
        self.files.range::<Key, _>(range)
    }

    fn add(&mut self, key: Key, span: Option<TimeRange>) {
        if self.after.as_ref() >= Some(&key) || !self.is_complete && !self.covers(&key) {
            return;
        }
        let listing = Listing {
            span: Span::Read(span),
            is_named: false,
        };
        self.files.insert(key, listing);
        if self.files.len() > MAX_LISTED {
            self.files.pop_last();
            self.is_complete = false;
        }
    }
}

impl Listing {
    pub(super) fn may_overlap(&self, range: &TimeRange) -> bool {
        match &self.span {
            Span::Unread => true,
            Span::Read(span) => span.as_ref().is_some_and(|span| overlaps(span, range)),
        }
    }
}
