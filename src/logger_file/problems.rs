//! The defects of a file that are quoted to people. See docs/specification.md, section 4.

use super::container::decode;
use crate::sanitize::sanitize;
use serde::Serialize;

/// The maximum number of problems per file.
const MAX_PROBLEMS: usize = 10;

/// The maximum number of characters that are quoted.
const MAX_TEXT: usize = 40;

/// A defect of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The 1-based number of the line.
    pub line: u64,
    /// The 1-based number of the column.
    pub column: usize,
    /// The text of the cell, sanitized, at most 40 characters.
    pub text: String,
    /// What is wrong.
    pub reason: &'static str,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            line,
            column,
            text,
            reason,
        } = self;
        write!(f, "line {line}, column {column}, {text:?}: {reason}")
    }
}

/// The first problems of a file.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem with a cell, unless there are enough.
    pub(super) fn add(&mut self, line: u64, column: usize, cell: &[u8], reason: &'static str) {
        if self.0.len() < MAX_PROBLEMS {
            // A character has at most four bytes.
            let start = &cell[..cell.len().min(4 * MAX_TEXT)];
            let text: String = sanitize(decode(start)).chars().take(MAX_TEXT).collect();
            self.0.push(Problem {
                line,
                column,
                text,
                reason,
            });
        }
    }

    /// The problems in the order of the file.
    pub(super) fn list(&self) -> &[Problem] {
        &self.0
    }

    /// The first problem as a text, for messages.
    pub(super) fn first(&self) -> String {
        self.0.first().map(ToString::to_string).unwrap_or_default()
    }
}
