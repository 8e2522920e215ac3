//! What is remembered of the catalogue that was last applied or refused, in a file of the campaign folder.

use crate::data_dir::{APPLIED_FILE, CATALOGUE_FILE, Dir, Inode, Stamp};
use serde::{Deserialize, Serialize};
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
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i64,
    changed_ns: i64,
}

impl Applied {
    pub(super) fn new(state: State, has_virtual: bool, inode: Inode, stamp: &Stamp) -> Self {
        let ns = |time: i128| i64::try_from(time).unwrap_or(i64::MAX);
        Self {
            state,
            has_virtual,
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

    /// Whether it is about a catalogue with this identity, size and times.
    fn is_about(&self, inode: Inode, stamp: &Stamp) -> bool {
        *self == Self::new(self.state, self.has_virtual, inode, stamp)
    }
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
    Ok(applied.is_none_or(|applied| !applied.is_about(inode, &stamp)))
}

/// Whether the stored catalogue of a campaign folder has virtual or continued channels. False if that cannot be read.
pub(crate) fn has_virtual_channels(campaign: &Dir) -> bool {
    Applied::read(campaign).is_some_and(|applied| applied.has_virtual)
}
