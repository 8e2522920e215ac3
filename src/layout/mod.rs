//! The layout guard: recognises columns that changed their meaning. See docs/specification.md, section 4.
//!
//! `scan` finds the layouts of a file and what contradicts them, `state` remembers those of a device.

mod scan;
mod state;

pub(crate) use scan::{FileLayout, LayoutScan};
pub(crate) use state::{Held, Later, LayoutState};

use crate::logger_file::Channels;
use crate::sanitize::sanitize;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The maximum number of column changes that are kept per file. Real loggers have about 30 columns.
const MAX_CHANGES: usize = 32;

/// The maximum number of characters that are quoted of a column.
const MAX_TEXT: usize = 120;

/// The maximum number of column changes in a message.
const MAX_IN_MESSAGE: usize = 5;

/// The meaning of the columns of a table, in their order. The format marker is no part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// The serial of the master, which stands in the first column of the header.
    master: String,
    /// Serial, and name with unit, of each further column.
    columns: Vec<(String, String)>,
}

/// A column whose meaning changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ColumnChange {
    /// The 1-based number of the column in the header. Column 1 is the serial of the master.
    pub column: usize,
    /// What the column was, such as `02001171 Voie1 W`; `None` if it is new.
    pub before: Option<String>,
    /// What the column is; `None` if it is gone.
    pub after: Option<String>,
}

impl Layout {
    /// The layout of a header.
    pub(crate) fn of(header: &Channels) -> Self {
        let columns = header.list.iter().map(|channel| {
            let label = if channel.unit.is_empty() {
                channel.name.clone()
            } else {
                format!("{} {}", channel.name, channel.unit)
            };
            (channel.serial.clone(), label)
        });
        Self {
            master: header.master.clone(),
            columns: columns.collect(),
        }
    }

    /// The columns that differ from those of the layout before, in their order.
    pub(crate) fn changes_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = ColumnChange> + 'a {
        let master = (self.master != before.master).then(|| ColumnChange {
            column: 1,
            before: Some(quotable(&before.master)),
            after: Some(quotable(&self.master)),
        });
        let columns = 0..self.columns.len().max(before.columns.len());
        let columns = columns
            .filter(|index| self.columns.get(*index) != before.columns.get(*index))
            .map(|index| ColumnChange {
                column: index + 2,
                before: before.column_text(index),
                after: self.column_text(index),
            });
        master.into_iter().chain(columns)
    }

    fn column_text(&self, index: usize) -> Option<String> {
        let (serial, label) = self.columns.get(index)?;
        Some(quotable(&format!("{serial} {label}")))
    }
}

/// Sanitizes and shortens the text of a column.
fn quotable(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_TEXT).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    sanitize(short)
}

impl fmt::Display for ColumnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = self.column;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                write!(f, "column {column} was \"{before}\" and is \"{after}\"")
            }
            (None, Some(after)) => write!(f, "column {column} is new: \"{after}\""),
            (Some(before), None) => write!(f, "column {column} is gone: \"{before}\""),
            (None, None) => Ok(()),
        }
    }
}

/// Lists the first changes for a message.
pub(crate) fn describe_changes(changes: &[ColumnChange]) -> String {
    let shown = changes.iter().take(MAX_IN_MESSAGE);
    let mut text: Vec<_> = shown.map(ToString::to_string).collect();
    if changes.len() > MAX_IN_MESSAGE {
        text.push(format!("and {} more", changes.len() - MAX_IN_MESSAGE));
    }
    text.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layout of the master `1` with these labels.
    pub(super) fn layout(labels: &[&str]) -> Layout {
        Layout {
            master: "1".to_owned(),
            columns: labels
                .iter()
                .map(|label| ("1".to_owned(), (*label).to_owned()))
                .collect(),
        }
    }

    fn changes(before: &Layout, after: &Layout) -> Vec<String> {
        after
            .changes_since(before)
            .map(|change| change.to_string())
            .collect()
    }

    #[test]
    fn changes_are_numbered_like_the_columns_of_the_header() {
        let before = layout(&["Ph 1 V", "A W", "B W"]);
        assert!(changes(&before, &before).is_empty());
        assert_eq!(
            changes(&before, &layout(&["Ph 1 V", "A kW"])),
            [
                "column 3 was \"1 A W\" and is \"1 A kW\"",
                "column 4 is gone: \"1 B W\""
            ]
        );
        assert_eq!(
            changes(&layout(&["Ph 1 V", "A W"]), &before),
            ["column 4 is new: \"1 B W\""]
        );
        let mut other = before.clone();
        other.master = "2".to_owned();
        other.columns[0].0 = "2".to_owned();
        assert_eq!(
            changes(&before, &other),
            [
                "column 1 was \"1\" and is \"2\"",
                "column 2 was \"1 Ph 1 V\" and is \"2 Ph 1 V\""
            ]
        );
    }

    #[test]
    fn the_text_of_a_column_is_short_and_has_no_invisible_characters() {
        let long = "x".repeat(200);
        let found = changes(&layout(&["A W"]), &layout(&[&format!("\u{202e}{long}")]));
        assert!(found[0].contains("\\u{202e}xxx"), "{found:?}");
        assert!(found[0].chars().count() < 200, "{found:?}");
    }
}
