//! Logger files for tests, and functions that read them.

use super::{FormatError, LoggerFile, ReadOptions, RowStats};
use crate::time_zone::FileZones;
use std::io::Read;

/// The header lines of a table with two channels.
pub(super) const HEAD: &str = "10\t10\t20\nMV_T302_V002\tA W\tB W\n";

/// Those of a table with the same channels in the other order.
pub(super) const OTHER: &str = "10\t20\t10\nMV_T302_V003\tB W\tA W\n";

/// What stands before the table of a headed document in UTC.
pub(super) const UTC: &str =
    "START_HEADER\n{\"DataTimeSettings\":\"UTC\"}\nEND_HEADER\nSTART_DATA\n";

/// A row.
pub(super) const ROW: &str = "03/08/25 03:20:00\t1\t2\n";

/// 3 August 2025, 03:20 UTC.
pub(super) const T: i64 = 1_754_191_200;

/// 3 August 2025, 03:20 in Paris.
pub(super) const P: i64 = T - 7200;

/// The timestamps of rows, with their values.
pub(super) type Rows = Vec<(i64, Vec<Option<f64>>)>;

/// Reads a file in UTC: its rows, the counts, and whether it is truncated.
pub(super) fn read(text: &str) -> (Rows, RowStats, bool) {
    read_in_blocks(text.as_bytes(), usize::MAX).unwrap()
}

/// Reads a file in UTC, at most `block` bytes at a time.
pub(super) fn read_in_blocks(
    text: &[u8],
    block: usize,
) -> Result<(Rows, RowStats, bool), FormatError> {
    let zones = FileZones::built_in(chrono_tz::UTC);
    let mut file = LoggerFile::open(Slow(text, block), &ReadOptions::new(&zones))?;
    let mut rows = Vec::new();
    while let Some(row) = file.next_row()? {
        rows.push((row.time, row.values.to_vec()));
    }
    Ok((rows, file.stats(), file.truncated() == Some(true)))
}

/// A reader that returns at most the given number of bytes per read.
pub(super) struct Slow<'a>(pub &'a [u8], pub usize);

impl Read for Slow<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = buf.len().min(self.1);
        self.0.read(&mut buf[..n])
    }
}

/// Reads a file in Paris: time, value of each channel by its id, and the error at the end.
pub(super) fn points(text: &str) -> (Vec<(i64, String, f64)>, RowStats, Option<FormatError>) {
    let zones = FileZones::built_in(chrono_tz::Europe::Paris);
    let mut file = match LoggerFile::open(text.as_bytes(), &ReadOptions::new(&zones)) {
        Ok(file) => file,
        Err(error) => return (Vec::new(), RowStats::default(), Some(error.error)),
    };
    let mut points = Vec::new();
    let error = loop {
        match file.next_row() {
            Ok(Some(row)) => {
                for (channel, value) in row.channels.list.iter().zip(row.values) {
                    points.extend(value.map(|value| (row.time, channel.id.clone(), value)));
                }
            }
            Ok(None) => break file.ensure_usable(0.5).err(),
            Err(error) => break Some(error),
        }
    };
    (points, file.stats(), error)
}

/// A point of the logger with serial 10. `id` is that of its channel without the logger.
pub(super) fn point(time: i64, id: &str, value: f64) -> (i64, String, f64) {
    (time, format!("{id}_M10"), value)
}
