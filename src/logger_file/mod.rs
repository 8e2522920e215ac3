//! A logger's file: bytes in, rows with their instants out.
//!
//! `container` takes the wrapping off, `tables` reads the three parts inside it, `channels` makes channels of the two
//! header lines, `timestamps` gives each row its instant, `cells` reads a cell.
//! Source: docs/specification.md, sections 2 to 4.

mod cells;
mod channels;
mod container;
mod lines;
mod tables;
mod timestamps;

pub use channels::{Channel, Channels, MARKERS, Role};
pub use container::{Container, HeaderMeta};
pub use lines::MAX_LINE;
pub use tables::{HeaderError, LoggerFile, Row, RowStats};
pub use timestamps::{TimestampResolver, Zone, last_instant};

/// The most channels a file may have; real loggers have some thirty.
pub const MAX_CHANNELS: usize = 10_000;

/// Why a file cannot be ingested. All of these are the file's own fault, but for [`FormatError::Read`].
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// No byte, or blanks only.
    #[error(
        "the file is empty: the logger wrote nothing, or the upload broke off before the first byte"
    )]
    Empty,
    /// `START_HEADER` without `END_HEADER`.
    #[error(
        "the header block that START_HEADER opens in line 1 is not closed by END_HEADER; the upload broke off, send the file again"
    )]
    HeaderBlockOpen,
    /// `END_HEADER` without `START_DATA`.
    #[error("line {line}: START_DATA is missing after END_HEADER; send the file again")]
    NoDataBlock {
        /// Where it should have stood, 1-based.
        line: u64,
    },
    /// The file ends before the line of labels.
    #[error(
        "line {line}: the line of labels is missing, the file ends after the serial numbers; send the file again"
    )]
    NoLabels {
        /// Where it should have stood, 1-based.
        line: u64,
    },
    /// A format marker that this program does not know.
    #[error("line {line}: the format marker {found:?} is not supported; supported are {supported}", supported = MARKERS.join(", "))]
    UnknownMarker {
        /// 1-based.
        line: u64,
        /// The first cell of the line of labels, made safe to show.
        found: String,
    },
    /// Only the master's serial, no column behind it.
    #[error(
        "line {line}: the header names no channel, only the first column; check the logger's configuration"
    )]
    NoChannel {
        /// 1-based.
        line: u64,
    },
    /// More serials than labels, or the reverse.
    #[error(
        "line {line}: the two header lines differ in length, {serials} serial numbers and {labels} labels; a cell is missing, send the file again"
    )]
    LengthsDiffer {
        /// The line of labels, 1-based.
        line: u64,
        /// Cells in the line of serials, the master's included.
        serials: usize,
        /// Cells in the line of labels, the marker included.
        labels: usize,
    },
    /// A column without a serial.
    #[error(
        "line {line}: the serial number of column {column} is empty; check the logger's configuration"
    )]
    EmptySerial {
        /// 1-based.
        line: u64,
        /// 1-based; column 1 is the master's serial.
        column: usize,
    },
    /// A column without a label.
    #[error(
        "line {line}: the label of column {column} is empty; name the channel in the logger's configuration"
    )]
    EmptyLabel {
        /// 1-based.
        line: u64,
        /// 1-based; column 1 is the marker.
        column: usize,
    },
    /// A control character in a header cell.
    #[error(
        "line {line}: column {column} of the header holds a control character ({found}); rename it in the logger's configuration"
    )]
    ControlCharacter {
        /// 1-based.
        line: u64,
        /// 1-based.
        column: usize,
        /// The character, escaped.
        found: String,
    },
    /// A header cell that would not fit a series key of the server (65,535 bytes).
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
    /// More than [`MAX_CHANNELS`].
    #[error(
        "line {line}: {found} channels, more than the limit of {MAX_CHANNELS}; this is no logger's file"
    )]
    TooManyChannels {
        /// 1-based.
        line: u64,
        /// Columns but for the first.
        found: usize,
    },
    /// A line longer than [`MAX_LINE`].
    #[error("line {line} is longer than the limit of {MAX_LINE} bytes; this is no logger's file")]
    LineTooLong {
        /// 1-based.
        line: u64,
    },
    /// Nothing follows the header.
    #[error(
        "the file has no data row, only its header; nothing was measured, or the upload broke off"
    )]
    NoRow,
    /// Rows, but no point in them.
    #[error(
        "the file has no valid point: {rows} rows with a valid time, {times} without, {malformed} malformed, {values} invalid values"
    )]
    NoPoint {
        /// Rows kept.
        rows: u64,
        /// Rows skipped for their time.
        times: u64,
        /// Rows skipped because a line break is missing.
        malformed: u64,
        /// Cells without a number.
        values: u64,
    },
    /// The disk, not the file.
    #[error("the file cannot be read: {0}; it stays where it is")]
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
