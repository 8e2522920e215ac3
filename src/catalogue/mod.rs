//! The catalogue of a campaign: what a person says about its channels. See docs/specification.md, section 12.
//!
//! `table` reads the lines of `channels.csv`, `check` compares them with the known channels and computes what is stored, and
//! `points` writes it. `apply` does all of it for a campaign.

mod applied;
mod apply;
mod chains;
mod check;
mod formula;
mod guess;
mod known;
mod labels;
mod points;
mod problem;
mod sources;
mod sums;
mod table;
mod text;
mod virtual_channel;
mod write;

pub(crate) use self::applied::{has_virtual_channels, is_catalogue_new};
pub(crate) use self::apply::{CatalogueError, CatalogueOf, Missing, Outcome, Sources, Target};
pub use self::check::Catalogue;
pub use self::known::{KnownChannel, KnownChannels};
pub(crate) use self::points::ENTRY_TIME;
pub use self::problem::{Problem, Problems};
pub(crate) use self::table::MAX_ENTRIES;
pub(crate) use self::text::MAX_SIZE;
pub(crate) use self::virtual_channel::{Term, TermPart, VirtualChannel};
pub use self::write::{Extended, extend};

use self::table::Table;
use crate::time_zone::TimeZone;

/// Reads a catalogue and checks it, so that all problems of its cells and lines are found together.
///
/// # Errors
/// What is wrong with it.
pub fn check(bytes: &[u8], known: &KnownChannels, zone: &TimeZone) -> Result<Catalogue, Problems> {
    match Table::read_all(bytes) {
        (Some(table), problems) => check::check(&table, problems, known, zone).result,
        (None, problems) => Err(problems),
    }
}

/// The catalogue of a campaign, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sheet(Table);

impl Sheet {
    /// Reads a catalogue.
    ///
    /// # Errors
    /// It is no catalogue, or a cell is not valid.
    pub fn read(bytes: &[u8]) -> Result<Self, Problems> {
        Table::read(bytes).map(Self)
    }

    /// Checks it against the known channels of its campaign. The dates of continued channels begin at midnight in `zone`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, known: &KnownChannels, zone: &TimeZone) -> Result<Catalogue, Problems> {
        check::check(&self.0, Problems::default(), known, zone).result
    }

    /// Writes it anew, with all columns.
    pub fn to_text(&self) -> Vec<u8> {
        self.0.to_text()
    }
}
