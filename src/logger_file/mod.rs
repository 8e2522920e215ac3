//! Parses logger files into rows with timestamps. See docs/specification.md, sections 2 to 4.
//!
//! `lines` reads lines of limited length, `documents` the documents of a file, `container` parses the header of a headed
//! one, `tables` reads the rows of tables, `channels` parses the two header lines of a table, `timestamps` converts times
//! to timestamps, `cells` parses values, `row_stats` counts rows and cells, `problems` collects what is wrong, and `foreign`
//! recognises other formats.

mod cells;
mod channels;
mod container;
mod documents;
mod foreign;
mod lines;
mod problems;
mod row_stats;
mod tables;
#[cfg(test)]
mod testing;
mod timestamps;

pub(crate) use channels::MARKERS;
pub use channels::{Channel, Channels, Role};
pub use container::{Container, HeaderMeta};
pub use documents::{HeaderError, LoggerFile, ReadOptions};
pub(crate) use lines::MAX_LINE;
pub use problems::Problem;
pub(crate) use row_stats::KNOWN_LOSS;
pub use row_stats::RowStats;
pub use tables::Row;
pub(crate) use timestamps::last_instant;

use crate::remedy::remedy;

/// The maximum number of channels in a file. Real loggers have about 30.
pub(crate) const MAX_CHANNELS: usize = 4_096;

/// The maximum length of a JSON header in bytes. Real ones have about 500.
pub(crate) const MAX_HEADER: usize = 64 * 1024;

/// The maximum number of weeks that the points of a file touch: ten years.
pub(crate) const MAX_WEEKS: usize = 520;

/// Why a file cannot be ingested. All variants but [`FormatError::Read`] mean that the file is invalid.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// No bytes, or white space only.
    #[error(
        "the file is empty: the logger wrote nothing, or the upload was interrupted; send the file again"
    )]
    Empty,
    /// `START_HEADER` without `END_HEADER`.
    #[error(
        "line {line}: START_HEADER without END_HEADER, so the upload was interrupted; send the file again"
    )]
    HeaderBlockOpen {
        /// The 1-based line of `START_HEADER`.
        line: u64,
    },
    /// The JSON header is longer than [`MAX_HEADER`].
    #[error(
        "line {line}: the JSON header is longer than {MAX_HEADER} bytes; check the origin of the file"
    )]
    HeaderTooLong {
        /// The 1-based line of `START_HEADER`.
        line: u64,
    },
    /// The header is not valid JSON, and its text does not say what its times mean.
    #[error(
        "line {line}: the header is not valid JSON ({reason}) and names no time zone, so whether its times are UTC is unknown; correct the header and ingest the file again"
    )]
    NoTimeZone {
        /// The 1-based line of `START_HEADER`.
        line: u64,
        /// The message of the JSON parser.
        reason: String,
    },
    /// A header whose start is damaged, or a table after a damaged `END_DATA`.
    #[error(
        "line {line}: a header or END_DATA is damaged here, so whether the times after it are UTC is unknown; the rows before it are ingested; correct the line and ingest the file again"
    )]
    DamagedHeader {
        /// The 1-based number of the damaged line.
        line: u64,
    },
    /// A format marker in mid-file without a line of serials before it.
    #[error(
        "line {line}: a new header begins without its line of serial numbers, so the values after it belong to unknown channels; the rows before it are ingested; send the rest again"
    )]
    NoSerials {
        /// 1-based.
        line: u64,
    },
    /// The file is in another format.
    #[error("not a logger file but {0}")]
    Foreign(&'static str),
    /// A table is in another format.
    #[error("line {line}: not a logger's table but {format}")]
    ForeignTable {
        /// The 1-based line of the format marker.
        line: u64,
        /// The name of the format, with the remedy.
        format: &'static str,
    },
    /// The points touch more than [`MAX_WEEKS`] weeks.
    #[error(
        "line {line}: the points of the file touch more than {MAX_WEEKS} different weeks, which would exhaust the database; the rows before it are ingested; check the logger's clock, or split the file"
    )]
    TooManyWeeks {
        /// 1-based.
        line: u64,
    },
    /// Too much of the file is not ingested.
    #[error(
        "{lost} of {cells} values were lost, more than TSV_MAX_LOSS allows; the first defect: {first}; what could be read is in the database; correct the file and ingest it again"
    )]
    TooMuchLost {
        /// The number of cells that are no point.
        lost: u64,
        /// The number of cells that hold something.
        cells: u64,
        /// The first problem.
        first: String,
    },
    /// `END_HEADER` without `START_DATA`.
    #[error("line {line}: START_DATA is missing after END_HEADER; send the file again")]
    NoDataBlock {
        /// The 1-based line where it is expected.
        line: u64,
    },
    /// The file ends before the label line.
    #[error("line {line}: the label line is missing after the serial numbers; send the file again")]
    NoLabels {
        /// The 1-based line where it is expected.
        line: u64,
    },
    /// The format marker is not one of [`MARKERS`].
    #[error("line {line}: the format marker {found:?} is not supported; supported are {supported}; check the file or update powerview", supported = MARKERS.join(", "))]
    UnknownMarker {
        /// 1-based.
        line: u64,
        /// The first cell of the label line, sanitized.
        found: String,
    },
    /// The header has only its first column.
    #[error("line {line}: the header has no channel; check the logger's configuration")]
    NoChannel {
        /// 1-based.
        line: u64,
    },
    /// The two header lines have a different number of cells.
    #[error(
        "line {line}: the header lines have different lengths, {serials} serial numbers and {labels} labels; send the file again"
    )]
    LengthsDiffer {
        /// The 1-based number of the label line.
        line: u64,
        /// The number of cells in the serial line, including the master's.
        serials: usize,
        /// The number of cells in the label line, including the marker.
        labels: usize,
    },
    /// A column without a serial.
    #[error(
        "line {line}: the serial number of column {column} is empty; check the logger's configuration"
    )]
    EmptySerial {
        /// 1-based.
        line: u64,
        /// 1-based. Column 1 is the serial of the master.
        column: usize,
    },
    /// A column without a label.
    #[error(
        "line {line}: the label of column {column} is empty; name the channel in the logger's configuration"
    )]
    EmptyLabel {
        /// 1-based.
        line: u64,
        /// 1-based. Column 1 is the format marker.
        column: usize,
    },
    /// A header cell contains a control character.
    #[error(
        "line {line}: column {column} of the header contains the control character {found}; rename it in the logger's configuration"
    )]
    ControlCharacter {
        /// 1-based.
        line: u64,
        /// 1-based.
        column: usize,
        /// The character, escaped.
        found: String,
    },
    /// A header cell is too long.
    #[error(
        "line {line}: column {column} of the header is {length} bytes long, the limit is {max}; shorten the name in the logger's configuration"
    )]
    CellTooLong {
        /// 1-based.
        line: u64,
        /// 1-based.
        column: usize,
        /// In bytes.
        length: usize,
        /// In bytes.
        max: usize,
    },
    /// The header has more than [`MAX_CHANNELS`] channels.
    #[error(
        "not a logger file: line {line}: {found} channels, the limit is {MAX_CHANNELS}; check the origin of the file"
    )]
    TooManyChannels {
        /// 1-based.
        line: u64,
        /// The number of columns without the first.
        found: usize,
    },
    /// A line is longer than [`MAX_LINE`].
    #[error(
        "not a logger file: line {line} is longer than {MAX_LINE} bytes; check the origin of the file"
    )]
    LineTooLong {
        /// 1-based.
        line: u64,
    },
    /// No data row follows the header.
    #[error(
        "the file has no data row: nothing was measured, or the upload was interrupted; send the file again"
    )]
    NoRow,
    /// The rows contain no valid point.
    #[error(
        "the file has no valid point: {rows} rows with a valid time, {times} with an invalid time, {malformed} malformed, {values} invalid values{}; check the logger",
        first_defect(first)
    )]
    NoPoint {
        /// The number of rows kept.
        rows: u64,
        /// The number of rows skipped because of an invalid time.
        times: u64,
        /// The number of rows skipped because they have too many cells.
        malformed: u64,
        /// The number of cells without a valid number.
        values: u64,
        /// The first problem.
        first: String,
    },
    /// An I/O error. The file itself may be valid.
    #[error(
        "cannot read the file: {error}; {}; file left in place",
        remedy(.0, "check the disk and the file's permissions"),
        error = .0
    )]
    Read(std::io::Error),
}

fn first_defect(first: &str) -> String {
    if first.is_empty() {
        String::new()
    } else {
        format!("; the first defect: {first}")
    }
}

impl From<std::io::Error> for FormatError {
    fn from(error: std::io::Error) -> Self {
        match error
            .get_ref()
            .and_then(|e| e.downcast_ref::<lines::LineTooLong>())
        {
            Some(too_long) => Self::LineTooLong {
                line: too_long.line,
            },
            None => Self::Read(error),
        }
    }
}
