//! What is remembered of the catalogue that was last applied or refused, in a file of the campaign folder.

use crate::data_dir::{APPLIED_FILE, CATALOGUE_FILE, Dir, Inode, Stamp};
use serde::{Deserialize, Serialize};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;

/// Maximum size of the file in bytes.
const MAX_SIZE: usize = 4096;

/// What became of a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// Its entries are stored, and the hourly summaries of its virtual channels are up to date.
    Applied,
    Refused,
    /// Its entries may be stored, but summaries are missing.
    Begun,
}

/// The content of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied {
    pub(super) state: State,
    /// Whether the stored catalogue has virtual or continued channels.
    pub(super) has_virtual: bool,
    /// Whether hourly summaries of virtual channels may be missing or those of an earlier catalogue, whatever became of this one.
    #[serde(default)]
    pub(super) lacks_summaries: bool,
    /// A checksum of the names of company and campaign: a renamed folder keeps the file.
    #[serde(default)]
    names: u64,
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i64,
    changed_ns: i64,
}

impl Applied {
    pub(super) fn new(
        state: State,
        has_virtual: bool,
        folder: &Dir,
        inode: Inode,
        stamp: &Stamp,
    ) -> Self {
        let ns = |time: i128| i64::try_from(time).unwrap_or(i64::MAX);
        Self {
            state,
            has_virtual,
            lacks_summaries: state == State::Begun,
            names: names(folder),
            device: inode.0,
            inode: inode.1,
            size: stamp.size,
            modified_ns: ns(stamp.modified_ns),
            changed_ns: ns(stamp.changed_ns),
        }
    }

    /// Reads the file of a campaign folder. `None` if there is none, or it is not what this program writes.
    pub(super) fn read(folder: &Dir) -> Option<Self> {
        let text = folder.read_state_file(APPLIED_FILE, MAX_SIZE).ok()??;
        serde_json::from_slice(&text).ok()
    }

    /// Writes the file. The caller must hold the lock of the campaign folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, folder: &Dir) -> io::Result<()> {
        folder.replace_state_file(APPLIED_FILE, &serde_json::to_vec(self)?)
    }

    /// Whether it is about the catalogue of this folder, with this identity, size and times.
    fn is_about(&self, folder: &Dir, inode: Inode, stamp: &Stamp) -> bool {
        let mut same = Self::new(self.state, self.has_virtual, folder, inode, stamp);
        same.lacks_summaries = self.lacks_summaries;
        *self == same
    }
}

/// A checksum of the names of the company and the campaign of a folder.
fn names(campaign: &Dir) -> u64 {
    let mut hasher = DefaultHasher::new();
    let names = campaign.path().iter().rev().take(2);
    names.for_each(|name| name.hash(&mut hasher));
    hasher.finish()
}

/// Whether a campaign folder has a catalogue that was neither applied nor refused.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn is_catalogue_new(campaign: &Dir) -> io::Result<bool> {
    let Some((inode, stamp)) = campaign.entry_stamp(CATALOGUE_FILE)? else {
        return Ok(false);
    };
    let applied = Applied::read(campaign).filter(|applied| applied.state != State::Begun);
    Ok(applied.is_none_or(|applied| !applied.is_about(campaign, inode, &stamp)))
}

/// Whether the stored catalogue of a campaign folder has virtual or continued channels. False if that cannot be read.
pub(crate) fn has_virtual_channels(campaign: &Dir) -> bool {
    Applied::read(campaign).is_some_and(|applied| applied.has_virtual)
}
