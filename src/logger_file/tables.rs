//! Reads the table of a file row by row. See docs/specification.md, sections 2 and 4.

use super::cells::trim_spaces;
use super::channels::Channels;
use super::container::{self, Container, HeaderMeta, Table};
use super::lines::LineTracker;
use super::timestamps::{TimestampResolver, Zone, parse_wall_time};
use super::{FormatError, cells};
use crate::time_zone::FileZones;
use csv::{ByteRecord, ReaderBuilder, Terminator};
use std::io::Read;

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
    /// The number of rows skipped because they have more cells than the header, as after a lost line break.
    pub malformed_rows: u64,
    /// The number of lines after `END_DATA`.
    pub lines_after_end: u64,
}

/// The error of an invalid header, with the information read before it.
#[derive(Debug)]
pub struct HeaderError {
    /// The error.
    pub error: FormatError,
    /// The container, if it is known.
    pub container: Option<Container>,
    /// The JSON of a headed file.
    pub meta: HeaderMeta,
}

impl From<FormatError> for HeaderError {
    fn from(error: FormatError) -> Self {
        Self {
            error,
            container: None,
            meta: HeaderMeta::None,
        }
    }
}

impl From<HeaderError> for FormatError {
    fn from(header_error: HeaderError) -> Self {
        header_error.error
    }
}

/// One row with a valid time.
#[derive(Debug, PartialEq)]
pub struct Row<'a> {
    /// Seconds since 1970.
    pub time: i64,
    /// One entry per channel; `None` if the cell has no valid value. All values are finite.
    pub values: &'a [Option<f64>],
}

/// A reader for the rows of a logger file.
pub struct LoggerFile<R> {
    container: Container,
    meta: HeaderMeta,
    channels: Channels,
    rows: csv::Reader<Table<LineTracker<R>>>,
    record: ByteRecord,
    resolver: TimestampResolver,
    values: Vec<Option<f64>>,
    stats: RowStats,
    /// The number of rows read, including those skipped.
    data_rows: u64,
    saw_end: bool,
}

impl<R: Read> LoggerFile<R> {
    /// Reads the header. `zones` provides the default time zone, and those that headers name.
    ///
    /// # Errors
    /// An invalid header or an I/O error, with the information read before it.
    pub fn open(input: R, zones: &FileZones) -> Result<Self, HeaderError> {
        let preamble = container::read_preamble(LineTracker::new(input))?;
        let mut rows = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(b'\t')
            .quoting(false)
            // A lone carriage return does not end a line. `next_line` removes the one before a line feed.
            .terminator(Terminator::Any(b'\n'))
            .buffer_capacity(64 * 1024)
            .from_reader(preamble.table);
        let channels = match header(&mut rows, preamble.container, preamble.lines_before) {
            Ok(channels) => channels,
            Err(error) => {
                return Err(HeaderError {
                    error,
                    container: Some(preamble.container),
                    meta: preamble.meta,
                });
            }
        };
        let zone = Zone::of_file(&preamble.meta, zones);
        Ok(Self {
            container: preamble.container,
            meta: preamble.meta,
            values: vec![None; channels.list.len()],
            channels,
            rows,
            record: ByteRecord::new(),
            resolver: TimestampResolver::new(zone),
            stats: RowStats::default(),
            data_rows: 0,
            saw_end: false,
        })
    }

    /// The container of the file.
    pub fn container(&self) -> Container {
        self.container
    }

    /// The JSON of a headed file.
    pub fn meta(&self) -> &HeaderMeta {
        &self.meta
    }

    /// The content of the two header lines.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// The counts so far.
    pub fn stats(&self) -> RowStats {
        self.stats
    }

    /// Whether the file is truncated: a plain file without a final line break, or a headed file without `END_DATA`.
    /// Final after [`LoggerFile::next_row`] has returned `None`.
    pub fn truncated(&self) -> bool {
        match self.container {
            Container::Plain => self.tracker().lacks_final_break(),
            Container::Headed => !self.saw_end,
        }
    }

    /// The number of bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.tracker().bytes()
    }

    /// Returns the next valid row, or `None` at the end of the data.
    ///
    /// # Errors
    /// A line that is too long, or an I/O error.
    pub fn next_row(&mut self) -> Result<Option<Row<'_>>, FormatError> {
        while next_line(&mut self.rows, &mut self.record)? {
            if self.saw_end {
                self.stats.lines_after_end += 1;
                continue;
            }
            if self.at_end_marker() {
                self.saw_end = true;
                continue;
            }
            self.data_rows += 1;
            if let Some(time) = self.read_row() {
                return Ok(Some(Row {
                    time,
                    values: &self.values,
                }));
            }
        }
        Ok(None)
    }

    /// Checks that a file that was read to its end has at least one point.
    ///
    /// # Errors
    /// [`FormatError::NoRow`] or [`FormatError::NoPoint`].
    pub fn ensure_has_points(&self) -> Result<(), FormatError> {
        let stats = self.stats;
        if self.data_rows == 0 {
            Err(FormatError::NoRow)
        } else if stats.points == 0 {
            Err(FormatError::NoPoint {
                rows: stats.rows,
                times: stats.invalid_timestamps,
                malformed: stats.malformed_rows,
                values: stats.invalid_values,
            })
        } else {
            Ok(())
        }
    }

    /// Whether the record is the `END_DATA` line: the marker in the first cell, followed by white space only.
    fn at_end_marker(&self) -> bool {
        self.container.is_end(self.record.as_slice())
            && self
                .record
                .get(0)
                .is_some_and(|cell| self.container.is_end(cell))
    }

    fn tracker(&self) -> &LineTracker<R> {
        self.rows.get_ref().get_ref().1.get_ref()
    }

    /// Parses the record into `values` and returns its time, or `None` if the row is skipped.
    fn read_row(&mut self) -> Option<i64> {
        // Without a final line break, the last cell may be an incomplete number.
        let unfinished = self.tracker().ended_inside_line();
        let cells = self.record.len() - usize::from(unfinished);
        let mut record = self.record.iter().take(cells).map(trim_spaces);
        let columns = self.values.len();
        if cells > columns + 1 {
            let filled = record.clone().filter(|cell| !cell.is_empty()).count();
            if filled > columns + 1 {
                self.stats.malformed_rows += 1;
                return None;
            }
        }
        let Some(wall) = record.next().and_then(parse_wall_time) else {
            self.stats.invalid_timestamps += 1;
            return None;
        };
        let mut points = 0;
        for slot in &mut self.values {
            *slot = record.next().and_then(cells::parse);
            points += u64::from(slot.is_some());
        }
        self.stats.rows += 1;
        self.stats.points += points;
        self.stats.invalid_values += columns as u64 - points;
        Some(self.resolver.resolve(wall))
    }
}

/// Reads the two header lines of a table. `before` is the number of lines before the table, for line numbers.
fn header<R: Read>(
    rows: &mut csv::Reader<Table<LineTracker<R>>>,
    container: Container,
    before: u64,
) -> Result<Channels, FormatError> {
    let mut serials = ByteRecord::new();
    let mut labels = ByteRecord::new();
    if !next_line(rows, &mut serials)? {
        return Err(match container {
            Container::Plain => FormatError::Empty,
            Container::Headed => FormatError::NoLabels { line: before + 1 },
        });
    }
    let serials_line = before + last_line(rows);
    if !next_line(rows, &mut labels)? || container.is_end(labels.as_slice()) {
        let line = serials_line + 1;
        return Err(FormatError::NoLabels { line });
    }
    let labels_line = before + last_line(rows);
    Channels::new(
        (&cells(&serials), serials_line),
        (&cells(&labels), labels_line),
    )
}

/// Reads the next line that is not blank, without the carriage return before its line break. Returns false at the end.
fn next_line<R: Read>(
    rows: &mut csv::Reader<R>,
    record: &mut ByteRecord,
) -> Result<bool, FormatError> {
    loop {
        let more = rows
            .read_byte_record(record)
            .map_err(|error| match error.into_kind() {
                csv::ErrorKind::Io(error) => FormatError::from(error),
                other => FormatError::Read(std::io::Error::other(format!("{other:?}"))),
            })?;
        if !more {
            return Ok(false);
        }
        if record.as_slice().ends_with(b"\r") {
            let last = record.len() - 1;
            let end = record.range(last).map_or(0, |range| range.len());
            if end > 0 {
                remove_last_byte(record);
            }
        }
        if record.iter().any(|cell| !trim_spaces(cell).is_empty()) {
            return Ok(true);
        }
    }
}

/// Removes the last byte of the last cell.
fn remove_last_byte(record: &mut ByteRecord) {
    let last = record.len() - 1;
    let cell = record.get(last).map(|cell| cell[..cell.len() - 1].to_vec());
    record.truncate(last);
    record.push_field(&cell.unwrap_or_default());
}

/// The 1-based number of the last line read, counted from the first line of the table. The position of the record
/// does not serve, because it is that of the blank lines before it.
fn last_line<R: Read>(rows: &csv::Reader<Table<LineTracker<R>>>) -> u64 {
    let unfinished = rows.get_ref().get_ref().1.get_ref().ended_inside_line();
    rows.position()
        .line()
        .saturating_sub(u64::from(!unfinished))
}

fn cells(record: &ByteRecord) -> Vec<&[u8]> {
    record.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "10\t10\t20\nMV_T302_V002\tA W\tB W\n";

    type Rows = Vec<(i64, Vec<Option<f64>>)>;

    fn read(text: &str) -> (Rows, RowStats, bool) {
        read_in_blocks(text.as_bytes(), usize::MAX).unwrap()
    }

    /// A reader that returns at most the given number of bytes per read.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let n = buf.len().min(self.1);
            self.0.read(&mut buf[..n])
        }
    }

    fn read_in_blocks(text: &[u8], block: usize) -> Result<(Rows, RowStats, bool), FormatError> {
        let mut file = LoggerFile::open(Slow(text, block), &FileZones::built_in(chrono_tz::UTC))?;
        let mut rows = Vec::new();
        while let Some(row) = file.next_row()? {
            rows.push((row.time, row.values.to_vec()));
        }
        Ok((rows, file.stats(), file.truncated()))
    }

    /// 3 August 2025, 03:20 UTC.
    const T: i64 = 1_754_191_200;

    #[test]
    fn a_row_has_its_time_and_one_value_per_channel() {
        let (rows, stats, truncated) = read(&format!("{HEAD}03/08/25 03:20:00\t1.5\t-2\n"));
        assert_eq!(rows, [(T, vec![Some(1.5), Some(-2.0)])]);
        assert_eq!((stats.rows, stats.points, truncated), (1, 2, false));
    }

    #[test]
    fn the_last_cell_of_an_unfinished_line_is_never_a_value() {
        let (rows, stats, truncated) = read(&format!("{HEAD}03/08/25 03:20:00\t1.5\t245."));
        assert_eq!(rows, [(T, vec![Some(1.5), None])]);
        assert_eq!(
            (stats.points, stats.invalid_values, truncated),
            (1, 1, true)
        );
        let (rows, ..) = read(&format!("{HEAD}03/08/25 03:20:00\t1.5\t"));
        assert_eq!(rows, [(T, vec![Some(1.5), None])]);
        let (rows, ..) = read(&format!("{HEAD}03/08/25 03:20:00\t1"));
        assert_eq!(rows, [(T, vec![None, None])]);
    }

    #[test]
    fn a_row_with_too_many_cells_is_skipped_and_counted() {
        let (rows, stats, _) = read(&format!(
            "{HEAD}03/08/25 03:20:00\t1\t203/08/25 03:30:00\t3\t4\n03/08/25 03:20:00\t5\t6\t \t\n"
        ));
        assert_eq!(rows, [(T, vec![Some(5.0), Some(6.0)])]);
        assert_eq!(stats.malformed_rows, 1);
    }

    #[test]
    fn missing_and_invalid_cells_are_counted_and_the_rest_of_the_row_is_kept() {
        let (rows, stats, _) = read(&format!(
            "{HEAD}03/08/25 03:20:00\tx\t2\n03/08/25 03:20:00\t1\n03/08/25 03:20:00\n yesterday\t1\t2\n"
        ));
        assert_eq!(
            rows,
            [
                (T, vec![None, Some(2.0)]),
                (T, vec![Some(1.0), None]),
                (T, vec![None, None])
            ]
        );
        assert_eq!((stats.rows, stats.points, stats.invalid_values), (3, 2, 4));
        assert_eq!(stats.invalid_timestamps, 1);
    }

    #[test]
    fn crlf_white_space_and_quotation_marks_have_no_effect() {
        let plain = read(&format!(
            "{HEAD}03/08/25 03:20:00\t1\t2\n03/08/25 03:20:01\t\"\t4\n"
        ));
        let other = read(
            "\u{feff}10\t10\t20\t \r\nMV_T302_V002\tA W\tB W \t\r\n\r\n03/08/25 03:20:00\t 1 \t2\r\n 03/08/25 03:20:01 \t\"\t4\r\n",
        );
        assert_eq!(plain, other);
        assert_eq!(plain.0[1].1, [None, Some(4.0)]);
    }

    #[test]
    fn a_lone_carriage_return_does_not_end_a_line() {
        let (rows, ..) = read(&format!("{HEAD}03/08/25 03:20:00\t1\r2\t3\n"));
        assert_eq!(rows, [(T, vec![None, Some(3.0)])]);
    }

    #[test]
    fn a_headed_file_ends_with_its_end_marker() {
        let headed = |tail: &str| {
            read(&format!(
                "START_HEADER\n{{}}\nEND_HEADER\nSTART_DATA\n{HEAD}03/08/25 03:20:00\t1\t2{tail}"
            ))
        };
        assert!(!headed("\nEND_DATA\n").2);
        assert!(!headed("\r\nEND_DATA \t").2);
        assert!(headed("\n").2);
        assert_eq!(headed("\nEND_DATA\nmore\n\n").1.lines_after_end, 1);
        assert_eq!(headed("\nEND_\tDATA\n").1.invalid_timestamps, 1);
        assert_eq!(headed("").0, [(T, vec![Some(1.0), None])]);
    }

    #[test]
    fn the_block_size_has_no_effect() {
        let text = format!("\u{feff}{HEAD}03/08/25 03:20:00\t1\t2\r\n03/08/25 03:30:00\t3\t4");
        let whole = read_in_blocks(text.as_bytes(), usize::MAX).unwrap();
        for block in 1..9 {
            assert_eq!(
                read_in_blocks(text.as_bytes(), block).unwrap(),
                whole,
                "{block}"
            );
        }
    }

    #[test]
    fn a_file_without_rows_or_points_is_an_error() {
        let check = |text: &str| {
            let mut file =
                LoggerFile::open(text.as_bytes(), &FileZones::built_in(chrono_tz::UTC)).unwrap();
            while file.next_row().unwrap().is_some() {}
            file.ensure_has_points()
        };
        assert!(matches!(check(HEAD), Err(FormatError::NoRow)));
        assert!(matches!(
            check(&format!("{HEAD}{HEAD}")),
            Err(FormatError::NoPoint { times: 2, .. })
        ));
        assert!(check(&format!("{HEAD}03/08/25 03:20:00\t1\t2\n")).is_ok());
    }

    #[test]
    fn a_line_that_is_too_long_is_an_error_and_the_rows_before_it_are_read() {
        let text = format!(
            "{HEAD}03/08/25 03:20:00\t1\t2\n{}",
            "9".repeat(3 * super::super::MAX_LINE)
        );
        let mut file =
            LoggerFile::open(text.as_bytes(), &FileZones::built_in(chrono_tz::UTC)).unwrap();
        assert!(file.next_row().unwrap().is_some());
        assert!(matches!(
            file.next_row(),
            Err(FormatError::LineTooLong { line: 4 })
        ));
    }
}
