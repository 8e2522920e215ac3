//! Parses logger files into rows with timestamps. See docs/specification.md, sections 2 to 4.
//!
//! `lines` limits the length of lines, `container` reads the header of a headed file, `tables` reads the table,
//! `channels` parses its two header lines, `timestamps` converts times to timestamps, and `cells` parses values.

mod cells;
mod channels;
mod container;
mod lines;
mod tables;
mod timestamps;

pub(crate) use channels::MARKERS;
pub use channels::{Channel, Channels, Role};
pub use container::{Container, HeaderMeta};
pub(crate) use lines::MAX_LINE;
pub use tables::{HeaderError, LoggerFile, Row, RowStats};
pub(crate) use timestamps::last_instant;

/// The maximum number of channels in a file. Real loggers have about 30.
pub(crate) const MAX_CHANNELS: usize = 10_000;

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
        "line 1: START_HEADER without END_HEADER, so the upload was interrupted; send the file again"
    )]
    HeaderBlockOpen,
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
    /// A header cell is too long for a series key of the server (65,535 bytes).
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
        "the file has no valid point: {rows} rows with a valid time, {times} with an invalid time, {malformed} malformed, {values} invalid values; check the logger"
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
    },
    /// An I/O error. The file itself may be valid.
    #[error(
        "cannot read the file: {0}; check the disk and the file's permissions; file left in place"
    )]
    Read(std::io::Error),
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
