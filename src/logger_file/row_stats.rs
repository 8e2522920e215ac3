//! The counts of the rows and cells of a file, and the cells of a row that contains another. See
//! docs/specification.md, section 4.

use super::cells::{contains_keyword, contains_time, holds_something, trim_spaces};
use super::lines::Line;

/// The share of the values, or of the lines with data, from which on their loss is shown to people.
pub(crate) const KNOWN_LOSS: f64 = 0.05;

/// The counts of rows and values in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowStats {
    /// The number of rows kept.
    pub rows: u64,
    /// The number of values in the rows kept.
    pub points: u64,
    /// The number of cells without a valid value in the rows kept, including missing cells.
    pub invalid_values: u64,
    /// The number of rows skipped because of an invalid time.
    pub invalid_timestamps: u64,
    /// The number of rows skipped because they contain more than one row, as after a lost line break.
    pub malformed_rows: u64,
    /// The number of rows with fewer cells than the header.
    pub short_rows: u64,
    /// The number of lines after `END_DATA`.
    pub lines_after_end: u64,
    /// The number of tables.
    pub tables: u64,
    /// The number of tables whose header differs from the one before.
    pub header_changes: u64,
    /// The number of value cells that hold something, and of the missing cells of short rows.
    pub cells: u64,
    /// The number of these cells that are no point.
    pub lost_cells: u64,
    /// The number of rows before 2010, after the upload, or hours before the previous row.
    pub suspicious_times: u64,
}

impl RowStats {
    /// Counts the cells of a skipped row as lost. The cut last row of a truncated file is left out.
    pub(super) fn lose(&mut self, line: &Line) {
        if !line.is_cut {
            let held = value_cells(line)
                .filter(|(_, cell)| holds_something(cell))
                .count() as u64;
            self.cells += held;
            self.lost_cells += held;
        }
    }

    /// The share of the cells that are no point, 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn loss_ratio(&self) -> f64 {
        self.lost_cells as f64 / self.cells.max(1) as f64
    }

    /// The number of lines with data, including those that are skipped.
    pub(crate) fn data_lines(&self) -> u64 {
        self.rows + self.skipped_lines() + self.lines_after_end
    }

    /// The number of lines that are skipped as a whole. They may hold no cell, if their tabs were lost too.
    pub(crate) fn skipped_lines(&self) -> u64 {
        self.invalid_timestamps + self.malformed_rows
    }

    /// The share of the lines with data that are skipped, 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub(crate) fn skipped_ratio(&self) -> f64 {
        self.skipped_lines() as f64 / self.data_lines().max(1) as f64
    }

    /// The share of the lines with data that are after `END_DATA`, 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub(crate) fn after_end_ratio(&self) -> f64 {
        self.lines_after_end as f64 / self.data_lines().max(1) as f64
    }
}

/// The trimmed cells of a row after its time, with their positions.
pub(super) fn value_cells(line: &Line) -> impl Iterator<Item = (usize, &[u8])> {
    line.record.iter().map(trim_spaces).enumerate().skip(1)
}

/// Finds the cell that shows that a row contains more than one row, and why.
pub(super) fn glued(line: &Line, columns: usize) -> Option<(usize, &[u8], &'static str)> {
    value_cells(line).find_map(|(column, cell)| {
        let reason = if contains_time(cell) || contains_keyword(cell) {
            "the start of another line within a line; the row is skipped"
        } else if column > columns && !cell.is_empty() {
            "a value beyond the last column of the header; the row is skipped"
        } else {
            return None;
        };
        Some((column, cell, reason))
    })
}
