//! What is remembered of the layouts of a device.

use super::{ColumnChange, FileLayout, Layout};
use crate::data_dir::{Dir, LAYOUT_FILE};
use chrono::{TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use std::io;

/// The maximum size of a state in bytes. Usual ones have a few thousand.
const MAX_STATE: usize = 1024 * 1024;

/// How far a time may be in the future, because the clock of the machine may be set back.
const MAX_AHEAD: TimeDelta = TimeDelta::days(7);

/// The maximum number of layouts that are remembered.
const MAX_HISTORY: usize = 16;

/// The layouts of a device in the order of uploads, and what is suspect about them.
///
/// It is stored in the device folder, where uploaders can write to it: nothing in it is trusted.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LayoutState {
    /// In the order of the uploads, from the first one that is known to the last one.
    history: Vec<Held>,
    suspicion: Option<Suspicion>,
    acknowledged: Option<Acknowledged>,
}

/// A layout, and the upload since which it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// The time of the upload in nanoseconds since 1970.
    pub since: i64,
    pub layout: Layout,
}

/// A layout that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Suspicion {
    /// The name of the file in which it was found.
    pub file: String,
    /// The time of its upload in nanoseconds since 1970.
    since: i64,
    layout: Layout,
    pub reasons: Vec<String>,
}

/// What a person has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Acknowledged {
    /// Changes up to this upload, in nanoseconds since 1970.
    changes_until: i64,
    /// The contradictions of this layout.
    layout: Option<Layout>,
    reasons: Vec<String>,
}

/// The first upload after a file, among those in `parsed/`.
pub(crate) enum Later {
    /// The file is the last upload.
    None,
    /// An upload with its layout, or `None` if that cannot be read.
    Upload(i64, Option<Layout>),
    /// It is not known whether there is one.
    Unknown,
}

impl LayoutState {
    /// Reads the state of a device folder. It is empty if there is none.
    ///
    /// # Errors
    /// It exists but cannot be read, or its content is not what this program writes.
    pub(crate) fn read(folder: &Dir) -> io::Result<Self> {
        let Some(text) = folder.read_state_file(LAYOUT_FILE, MAX_STATE)? else {
            return Ok(Self::default());
        };
        let state = serde_json::from_slice(&text).ok();
        let mut state: Self = state.filter(Self::is_plausible).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "its content is not valid")
        })?;
        state.history.sort_by_key(|held| held.since);
        state.remove_repetitions();
        state.forget_oldest();
        Ok(state)
    }

    /// The state after these uploads, oldest first.
    pub(crate) fn of(uploads: Vec<Held>) -> Self {
        let mut state = Self {
            history: uploads,
            ..Self::default()
        };
        state.remove_repetitions();
        state.forget_oldest();
        state
    }

    /// Whether nothing is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.history.is_empty()
    }

    /// Whether no time is in the future. Otherwise a change or a suspicion would be shown, or an acknowledgement would hold,
    /// for ever.
    fn is_plausible(&self) -> bool {
        let latest = (Utc::now() + MAX_AHEAD).timestamp_nanos_opt();
        let history = self.history.iter().map(|held| held.since);
        let suspicion = self.suspicion.as_ref().map(|suspicion| suspicion.since);
        let acknowledged = self.acknowledged.as_ref();
        let acknowledged = acknowledged.map(|acknowledged| acknowledged.changes_until);
        let mut times = history.chain(suspicion).chain(acknowledged);
        times.all(|time| latest.is_none_or(|latest| time <= latest))
            && self
                .suspicion
                .as_ref()
                .is_none_or(|s| !s.reasons.is_empty())
    }

    /// Writes the state, without the oldest layouts if it would be too large. The caller must hold the device lock.
    ///
    /// # Errors
    /// The folder cannot be written, or a single layout is too large.
    pub(crate) fn write(&mut self, folder: &Dir) -> io::Result<()> {
        loop {
            let text = serde_json::to_vec(self)?;
            if text.len() <= MAX_STATE {
                return folder.replace_state_file(LAYOUT_FILE, &text);
            }
            if self.history.len() <= 1 {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            self.history.remove(0);
        }
    }

    /// The layout that held before an upload. The entries of the file itself do not count.
    pub(crate) fn before(&self, uploaded: i64, file: &FileLayout) -> Option<&Layout> {
        let is_known = self.has(uploaded, file);
        let earlier = |held: &&Held| held.since < uploaded || held.since == uploaded && !is_known;
        self.history
            .iter()
            .rev()
            .find(earlier)
            .map(|held| &held.layout)
    }

    /// Whether the file, or one that is equal to it, is the start of an entry.
    fn has(&self, uploaded: i64, file: &FileLayout) -> bool {
        let mut entries = self.history.iter();
        entries.any(|held| held.since == uploaded && held.layout == file.last)
    }

    /// Remembers a file that is ingested. `previous` is the upload before it, if only `parsed/` shows it. `later` is
    /// asked for only if something changes. Returns whether something has changed.
    pub(crate) fn record(
        &mut self,
        name: &str,
        uploaded: i64,
        file: &FileLayout,
        previous: Option<Held>,
        later: &dyn Fn() -> Later,
    ) -> bool {
        let has_changed = self.record_layout(uploaded, file, previous, later);
        self.record_suspicion(name, uploaded, file, later) || has_changed
    }

    fn record_layout(
        &mut self,
        uploaded: i64,
        file: &FileLayout,
        previous: Option<Held>,
        later: &dyn Fn() -> Later,
    ) -> bool {
        let before = self.before(uploaded, file);
        let is_uniform = file.second.is_none();
        if self.has(uploaded, file) || before == Some(&file.last) && is_uniform {
            return false;
        }
        let before = before.or(previous.as_ref().map(|held| &held.layout));
        // Shows a change within the file that the layouts before it and at its end do not show.
        let in_between = if before.is_none_or(|before| *before == file.last) {
            let mut layouts = std::iter::once(&file.first).chain(&file.second);
            layouts.find(|layout| **layout != file.last)
        } else {
            None
        };
        let at = |layout: &Layout| Held {
            since: uploaded,
            layout: layout.clone(),
        };
        let mut entries: Vec<_> = previous.into_iter().collect();
        entries.extend(in_between.map(at));
        entries.push(at(&file.last));
        match later() {
            Later::None => {}
            Later::Upload(since, layout) => {
                // The history has no gaps: what is not known of other uploads is read from `parsed/`.
                if self.history.first().is_none_or(|first| since < first.since) {
                    return false;
                }
                let is_known = |held: &Held| held.since > uploaded && held.since <= since;
                if !self.history.iter().any(is_known) {
                    entries.extend(layout.map(|layout| Held { since, layout }));
                }
            }
            Later::Unknown => return false,
        }
        let old = self.history.clone();
        for entry in entries {
            let place = self
                .history
                .partition_point(|held| held.since <= entry.since);
            self.history.insert(place, entry);
        }
        self.remove_repetitions();
        self.forget_oldest();
        self.history != old
    }

    fn remove_repetitions(&mut self) {
        self.history
            .dedup_by(|held, before| held.layout == before.layout);
    }

    fn forget_oldest(&mut self) {
        let surplus = self.history.len().saturating_sub(MAX_HISTORY);
        self.history.drain(..surplus);
    }

    fn record_suspicion(
        &mut self,
        name: &str,
        uploaded: i64,
        file: &FileLayout,
        later: &dyn Fn() -> Later,
    ) -> bool {
        let is_last = || matches!(later(), Later::None);
        let current = self.suspicion.as_ref();
        let new = if file.contradictions.is_empty() {
            // A file with too few rows does not refute what is known of its layout.
            let is_refuted = current.is_some_and(|suspicion| {
                uploaded > suspicion.since && !(file.is_undecided && file.last == suspicion.layout)
            });
            if !is_refuted || !is_last() {
                return false;
            }
            None
        } else {
            let is_new = current.is_none_or(|suspicion| {
                uploaded >= suspicion.since && !suspicion.covers(&file.last, &file.contradictions)
            });
            if !is_new || !is_last() {
                return false;
            }
            Some(Suspicion {
                file: name.to_owned(),
                since: uploaded,
                layout: file.last.clone(),
                reasons: file.contradictions.clone(),
            })
        };
        self.suspicion = new;
        true
    }

    /// Whether a person has acknowledged all contradictions of the file.
    pub(crate) fn is_acknowledged(&self, file: &FileLayout) -> bool {
        self.acknowledges(&file.last, &file.contradictions)
    }

    fn acknowledges(&self, layout: &Layout, reasons: &[String]) -> bool {
        self.acknowledged.as_ref().is_some_and(|acknowledged| {
            acknowledged.layout.as_ref() == Some(layout)
                && is_subset(reasons, &acknowledged.reasons)
        })
    }

    /// The suspicion that is not acknowledged.
    pub(crate) fn open_suspicion(&self) -> Option<&Suspicion> {
        self.suspicion
            .as_ref()
            .filter(|suspicion| !self.acknowledges(&suspicion.layout, &suspicion.reasons))
    }

    /// The changes after a time that are not acknowledged, in the order of the uploads: when, and which columns.
    pub(crate) fn open_changes(&self, after: i64) -> Vec<(i64, Vec<ColumnChange>)> {
        let acknowledged = self.acknowledged.as_ref();
        let after =
            acknowledged.map_or(after, |acknowledged| acknowledged.changes_until.max(after));
        let pairs = self.history.iter().zip(self.history.iter().skip(1));
        pairs
            .filter(|(_, held)| held.since > after)
            .map(|(before, held)| {
                let changes = held.layout.changes_since(&before.layout);
                (held.since, changes.collect())
            })
            .collect()
    }

    /// Acknowledges what is open: the changes so far, and the suspicion.
    pub(crate) fn acknowledge(&mut self) {
        let suspicion = self.suspicion.as_ref();
        self.acknowledged = Some(Acknowledged {
            changes_until: self.history.last().map_or(i64::MIN, |held| held.since),
            layout: suspicion.map(|suspicion| suspicion.layout.clone()),
            reasons: suspicion.map_or_else(Vec::new, |suspicion| suspicion.reasons.clone()),
        });
    }
}

impl Suspicion {
    /// Whether this is known of the layout already.
    fn covers(&self, layout: &Layout, reasons: &[String]) -> bool {
        self.layout == *layout && is_subset(reasons, &self.reasons)
    }
}

fn is_subset(reasons: &[String], of: &[String]) -> bool {
    reasons.iter().all(|reason| of.contains(reason))
}
