//! Reads the lines of a file. Their length is limited, so that no file can exhaust memory.

use super::FormatError;
use super::cells::trim_spaces;
use super::container::BYTE_ORDER_MARK;
use csv::{ByteRecord, ReaderBuilder, Terminator};
use memchr::memmem;
use std::io::{self, Chain, Cursor, Read};

/// The maximum length of a line, in bytes. A row of 30 channels has about 250.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// The number of bytes of the start of a file that are kept, to recognise other formats.
const HEAD: usize = 1024;

/// A line is longer than [`MAX_LINE`].
#[derive(Debug, thiserror::Error)]
#[error("line {line} is too long")]
pub(super) struct LineTooLong {
    /// The 1-based number of the line.
    pub line: u64,
}

/// A line of a file.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The cells, without the carriage returns before the line break.
    pub record: ByteRecord,
    /// 1-based.
    pub number: u64,
    /// Whether the file ends within it.
    pub is_cut: bool,
}

impl Line {
    /// The first cell, trimmed.
    pub(super) fn first_cell(&self) -> &[u8] {
        self.record.get(0).map(trim_spaces).unwrap_or_default()
    }

    /// Whether a cell contains these bytes.
    pub(super) fn contains(&self, bytes: &[u8]) -> bool {
        self.record
            .iter()
            .any(|cell| memmem::find(cell, bytes).is_some())
    }

    /// Whether the line is this keyword, followed by white space only.
    pub(super) fn is_keyword(&self, keyword: &[u8]) -> bool {
        let mut cells = self.record.iter().map(<[u8]>::trim_ascii);
        cells.next() == Some(keyword) && cells.all(<[u8]>::is_empty)
    }

    /// The cells with the tabs between them.
    pub(super) fn joined(&self) -> Vec<u8> {
        self.record.iter().collect::<Vec<_>>().join(&b'\t')
    }
}

/// A reader for the lines of a file that are not blank.
pub(super) struct Lines<R>(csv::Reader<LineTracker<WithoutMark<R>>>);

/// A reader after the byte-order marks of a file.
type WithoutMark<R> = Chain<Cursor<Vec<u8>>, R>;

impl<R: Read> Lines<R> {
    /// Skips the byte-order marks.
    pub(super) fn new(input: R) -> Result<Self, FormatError> {
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(b'\t')
            .quoting(false)
            // A lone carriage return does not end a line. `read` removes those before a line feed.
            .terminator(Terminator::Any(b'\n'))
            .buffer_capacity(64 * 1024)
            .from_reader(LineTracker::new(skip_marks(input)?));
        Ok(Self(reader))
    }

    /// Reads the next line that is not blank. Returns false at the end; `line` is empty then, and its number is that of
    /// the last line.
    pub(super) fn read(&mut self, line: &mut Line) -> Result<bool, FormatError> {
        loop {
            let has_line =
                self.0.read_byte_record(&mut line.record).map_err(|error| {
                    match error.into_kind() {
                        csv::ErrorKind::Io(error) => FormatError::from(error),
                        other => FormatError::Read(io::Error::other(format!("{other:?}"))),
                    }
                })?;
            if line.record.as_slice().ends_with(b"\r") {
                remove_carriage_returns(&mut line.record);
            }
            let mut cells = line.record.iter();
            if !has_line || cells.any(|cell| !trim_spaces(cell).is_empty()) {
                line.is_cut = self.tracker().ended_inside_line();
                // The position of the record does not serve, because it is that of the blank lines before it.
                let next = self.0.position().line();
                line.number = next.saturating_sub(u64::from(!line.is_cut));
                return Ok(has_line);
            }
        }
    }

    /// What was read so far.
    pub(super) fn tracker(&self) -> &LineTracker<WithoutMark<R>> {
        self.0.get_ref()
    }
}

/// Removes up to two carriage returns at the end of the last cell. A transfer in ASCII mode adds a second one.
fn remove_carriage_returns(record: &mut ByteRecord) {
    let last = record.len() - 1;
    let cell = record.get(last).unwrap_or_default();
    let stripped = cell.strip_suffix(b"\r").unwrap_or(cell);
    let stripped = stripped.strip_suffix(b"\r").unwrap_or(stripped).to_vec();
    record.truncate(last);
    record.push_field(&stripped);
}

/// Skips byte-order marks. The csv crate takes a first read of only a mark for the end of the file.
fn skip_marks<R: Read>(mut input: R) -> io::Result<WithoutMark<R>> {
    loop {
        let mut start = Vec::with_capacity(BYTE_ORDER_MARK.len());
        input
            .by_ref()
            .take(BYTE_ORDER_MARK.len() as u64)
            .read_to_end(&mut start)?;
        if start != BYTE_ORDER_MARK {
            return Ok(Cursor::new(start).chain(input));
        }
    }
}

/// Passes bytes through, counts lines and bytes, and records how the file starts and ends. NUL bytes at its end, however
/// many, are removed.
#[derive(Debug)]
pub(super) struct LineTracker<R> {
    inner: R,
    head: Vec<u8>,
    breaks: u64,
    in_line: usize,
    bytes: u64,
    ended: bool,
    is_too_long: bool,
    /// The NUL bytes that were read and not yet passed on, because they may be the end of the file.
    nuls: u64,
    /// What was read after them, up to its last byte that is not NUL.
    rest: Vec<u8>,
    /// The number of NUL bytes after `rest`.
    nuls_after_rest: u64,
}

impl<R> LineTracker<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            head: Vec::new(),
            breaks: 0,
            in_line: 0,
            bytes: 0,
            ended: false,
            is_too_long: false,
            nuls: 0,
            rest: Vec::new(),
            nuls_after_rest: 0,
        }
    }

    /// The first bytes of the file.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Whether the file has ended within a line.
    pub(super) fn ended_inside_line(&self) -> bool {
        self.ended && self.in_line > 0
    }

    /// Whether the last byte read so far is not a line break. True for an empty file.
    pub(super) fn lacks_final_break(&self) -> bool {
        self.in_line > 0 || self.bytes == 0
    }

    /// Whether the file has ended with NUL bytes, which a logger reserved and did not write.
    pub(super) fn ended_with_nuls(&self) -> bool {
        self.ended && self.nuls > 0
    }

    fn too_long(&self) -> io::Error {
        let line = self.breaks + 1;
        io::Error::new(io::ErrorKind::InvalidData, LineTooLong { line })
    }

    /// The number of bytes read so far, without the NUL bytes at the end.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<R: Read> LineTracker<R> {
    /// Reads from the file, without NUL bytes that may be its end.
    fn read_without_nul_tail(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.rest.is_empty() {
                return Ok(self.pass_on(buf));
            }
            let n = self.inner.read(buf)?;
            let chunk = buf.get(..n).unwrap_or_default();
            let last = chunk.iter().rposition(|byte| *byte != 0);
            let kept = last.map_or(0, |last| last + 1);
            let nuls = (n - kept) as u64;
            if self.nuls > 0 && kept > 0 {
                self.rest = chunk[..kept].to_vec();
                self.nuls_after_rest = nuls;
            } else {
                self.nuls += nuls;
                if kept > 0 || n == 0 {
                    return Ok(kept);
                }
            }
        }
    }

    /// Passes on NUL bytes that were not the end of the file, and then what follows them.
    fn pass_on(&mut self, buf: &mut [u8]) -> usize {
        if self.nuls > 0 {
            let n = buf
                .len()
                .min(usize::try_from(self.nuls).unwrap_or(usize::MAX));
            buf[..n].fill(0);
            self.nuls -= n as u64;
            return n;
        }
        let n = buf.len().min(self.rest.len());
        buf[..n].copy_from_slice(&self.rest[..n]);
        self.rest.drain(..n);
        if self.rest.is_empty() {
            self.nuls = self.nuls_after_rest;
        }
        n
    }
}

impl<R: Read> Read for LineTracker<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.is_too_long {
            return Err(self.too_long());
        }
        let n = self.read_without_nul_tail(buf)?;
        let chunk = buf.get(..n).unwrap_or_default();
        let rest_of_line = memchr::memchr(b'\n', chunk).unwrap_or(n);
        if self.in_line + rest_of_line > MAX_LINE {
            // All lines before this one have been passed on and processed.
            self.is_too_long = true;
            return Err(self.too_long());
        }
        if self.head.len() < HEAD {
            self.head
                .extend_from_slice(&chunk[..n.min(HEAD - self.head.len())]);
        }
        self.bytes += n as u64;
        self.ended = n == 0 && !buf.is_empty();
        match memchr::memrchr(b'\n', chunk) {
            None => self.in_line += n,
            Some(last) => {
                self.breaks += memchr::memchr_iter(b'\n', chunk).count() as u64;
                self.in_line = n - last - 1;
            }
        }
        // The next read returns the error, so that the lines before this one are still processed.
        self.is_too_long = self.in_line > MAX_LINE;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logger_file::testing::{HEAD, Slow, T, read, read_in_blocks};
    use crate::logger_file::{LoggerFile, ReadOptions};
    use crate::time_zone::FileZones;

    /// Reads a file whose second line has this length. Returns the number of the line that is too long.
    fn too_long(length: usize, block: usize) -> Option<u64> {
        let line = vec![b'x'; length];
        let text = [b"short\n", line.as_slice(), b"\nmore\n"].concat();
        let mut tracker = LineTracker::new(text.as_slice());
        let mut buf = vec![0; block];
        loop {
            match tracker.read(&mut buf) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => {
                    let error = error.get_ref().unwrap();
                    return Some(error.downcast_ref::<LineTooLong>().unwrap().line);
                }
            }
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_an_error_with_its_number() {
        for block in [1000, 64 * 1024, 4 << 20] {
            assert_eq!(too_long(MAX_LINE, block), None, "{block}");
        }
        for block in [1000, 64 * 1024] {
            assert_eq!(too_long(MAX_LINE + 1, block), Some(2), "{block}");
            assert_eq!(too_long(MAX_LINE + 70_000, block), Some(2), "{block}");
        }
    }

    #[test]
    fn a_missing_final_line_break_is_detected() {
        for (text, lacks) in [
            ("", true),
            ("a", true),
            ("a\n", false),
            ("a\nb", true),
            ("\n", false),
        ] {
            let mut tracker = LineTracker::new(text.as_bytes());
            io::copy(&mut tracker, &mut io::sink()).unwrap();
            assert_eq!(tracker.lacks_final_break(), lacks, "{text:?}");
        }
    }

    #[test]
    fn nul_bytes_are_removed_at_the_end_of_a_file_only() {
        for (text, passed, nuls) in [
            ("a\n\0\0\0", "a\n", true),
            ("a\0b\0\0c", "a\0b\0\0c", false),
            ("\0\0a\0\0\0b\n\0", "\0\0a\0\0\0b\n", true),
            ("\0\0", "", true),
            ("a", "a", false),
        ] {
            for block in 1..8 {
                for size in 1..8 {
                    let mut tracker = LineTracker::new(Slow(text.as_bytes(), block));
                    let (mut found, mut buf) = (Vec::new(), vec![0; size]);
                    loop {
                        let n = tracker.read(&mut buf).unwrap();
                        if n == 0 {
                            break;
                        }
                        found.extend_from_slice(&buf[..n]);
                    }
                    let what = format!("{text:?} in blocks of {block}, read by {size}");
                    assert_eq!(String::from_utf8(found).unwrap(), passed, "{what}");
                    assert_eq!(tracker.ended_with_nuls(), nuls, "{what}");
                }
            }
        }
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
    fn the_block_size_has_no_effect() {
        let text = format!("\u{feff}{HEAD}03/08/25 03:20:00\t1\t2\r\n03/08/25 03:30:00\t3\t4");
        let whole = read_in_blocks(text.as_bytes(), usize::MAX).unwrap();
        for block in 1..9 {
            let found = read_in_blocks(text.as_bytes(), block).unwrap();
            assert_eq!(found, whole, "{block}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_an_error_and_the_rows_before_it_are_read() {
        let text = format!(
            "{HEAD}03/08/25 03:20:00\t1\t2\n{}",
            "9".repeat(3 * MAX_LINE)
        );
        let zones = FileZones::built_in(chrono_tz::UTC);
        let mut file = LoggerFile::open(text.as_bytes(), &ReadOptions::new(&zones)).unwrap();
        assert!(file.next_row().unwrap().is_some());
        assert!(matches!(
            file.next_row(),
            Err(FormatError::LineTooLong { line: 4 })
        ));
    }

    #[test]
    fn two_carriage_returns_before_a_line_feed_and_no_break_spaces_have_no_effect() {
        let plain = read(&format!("{HEAD}03/08/25 03:20:00\t1\t2\n"));
        let other = read(
            "10\t10\t20\r\r\nMV_T302_V002\tA\u{a0}W\tB  W\r\r\n\u{a0}03/08/25 03:20:00\t1\u{202f}\t2\r\r\n",
        );
        assert_eq!(plain, other);
    }

    #[test]
    fn nul_bytes_at_the_end_are_a_truncated_file() {
        let text = format!("{HEAD}03/08/25 03:20:00\t1\t2\n");
        let (rows, stats, truncated) = read(&format!("{text}{}", "\0".repeat(3_000_000)));
        assert_eq!((rows.len(), stats.lost_cells, truncated), (1, 0, true));
        let (rows, ..) = read(&format!("{HEAD}03/08/25 03:20:00\t1\t2\0\0"));
        assert_eq!(rows, [(T, vec![Some(1.0), None])]);
    }
}
