//! Channels that are computed from others.

use serde::{Deserialize, Serialize};

/// A channel that is computed from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtualChannel {
    /// Unit of the result.
    pub unit: String,
    pub terms: Vec<Term>,
}

/// A part of a sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Term {
    /// A whole number, not 0.
    pub factor: i64,
    /// The channels that follow one another, in the order of their times, which do not overlap.
    pub parts: Vec<TermPart>,
}

/// A channel, and when it counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TermPart {
    pub channel_id: String,
    /// In seconds since 1970; `None` is without limit.
    pub from: Option<i64>,
    pub until: Option<i64>,
}
