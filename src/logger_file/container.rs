//! Reads the container of a table: nothing in a plain file, a JSON header in a headed one. To support a new
//! container, add a variant to [`Container`]. See docs/specification.md, section 2.

use super::{FormatError, HeaderError};
use serde_json::Value;
use std::io::{BufRead, BufReader, Chain, Cursor, Read};

const START_HEADER: &[u8] = b"START_HEADER";
const END_HEADER: &[u8] = b"END_HEADER";
const START_DATA: &[u8] = b"START_DATA";
const END_DATA: &[u8] = b"END_DATA";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The structure around a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// The table alone. Its times are local.
    Plain,
    /// The table between `START_DATA` and `END_DATA`, after a JSON header.
    Headed,
}

impl Container {
    /// The name for the report key `file_container`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Headed => "headed",
        }
    }

    /// Whether this line ends the table.
    pub fn is_end(self, line: &[u8]) -> bool {
        match self {
            Self::Plain => false,
            Self::Headed => trimmed(line) == END_DATA,
        }
    }

    /// Whether a file that starts with `head` and ends with `tail` is truncated: a plain file without a final line
    /// break, or a headed file without `END_DATA`. Used for files that are not read to their end.
    pub fn looks_truncated(mut head: &[u8], tail: &[u8]) -> bool {
        // Skip blank lines and byte-order marks, as `read_preamble` does.
        loop {
            let before = head.len();
            head = head.trim_ascii_start();
            head = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
            if head.len() == before {
                break;
            }
        }
        let first_line = head.split(|b| *b == b'\n').next().unwrap_or_default();
        if trimmed(first_line) == START_HEADER {
            !tail
                .split(|b| *b == b'\n')
                .any(|line| Self::Headed.is_end(line))
        } else {
            tail.last() != Some(&b'\n')
        }
    }
}

/// The JSON of a headed file.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum HeaderMeta {
    /// No JSON: the file is plain.
    #[default]
    None,
    /// Any JSON value. Loggers write an object.
    Json(Value),
    /// A header that is not valid JSON, with the message of the parser.
    Broken(String),
}

impl HeaderMeta {
    /// Returns a string entry of the object.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self {
            Self::Json(value) => value.get(key)?.as_str(),
            _ => None,
        }
    }
}

/// The part of a file before its table, and a reader for the rest.
pub(super) struct Preamble<R> {
    pub container: Container,
    pub meta: HeaderMeta,
    /// The number of lines before the first line of the table.
    pub lines_before: u64,
    /// The table and everything after it.
    pub table: Table<R>,
}

/// A reader that starts at the first line of the table.
pub(super) type Table<R> = Chain<Cursor<Vec<u8>>, BufReader<R>>;

/// The size of the read buffer, in bytes.
const BLOCK: usize = 64 * 1024;

/// Reads a file up to its table.
///
/// # Errors
/// An empty file, a header block without `END_HEADER`, a missing `START_DATA`, or a line that is too long.
pub(super) fn read_preamble<R: Read>(input: R) -> Result<Preamble<R>, HeaderError> {
    let mut input = BufReader::with_capacity(BLOCK, input);
    let mut lines_before = 0;
    let line = first_line(&mut input, &mut lines_before)?;
    if trimmed(&line) != START_HEADER {
        return Ok(Preamble {
            container: Container::Plain,
            meta: HeaderMeta::None,
            lines_before,
            table: Cursor::new(line).chain(input),
        });
    }
    lines_before += 1;
    let mut meta = HeaderMeta::None;
    match table_start(&mut input, &mut lines_before, &mut meta) {
        Ok(line) => Ok(Preamble {
            container: Container::Headed,
            meta,
            lines_before,
            table: Cursor::new(line).chain(input),
        }),
        Err(error) => Err(HeaderError {
            error,
            container: Some(Container::Headed),
            meta,
        }),
    }
}

/// Reads the first line that is not blank.
fn first_line(input: &mut impl BufRead, lines_before: &mut u64) -> Result<Vec<u8>, FormatError> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Err(FormatError::Empty);
        }
        while *lines_before == 0 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        if !trimmed(&line).is_empty() {
            return Ok(line);
        }
        *lines_before += 1;
    }
}

/// Reads from `START_HEADER` to the first line of the table, which it returns.
fn table_start(
    input: &mut impl BufRead,
    lines_before: &mut u64,
    meta: &mut HeaderMeta,
) -> Result<Vec<u8>, FormatError> {
    let mut line = Vec::new();
    let mut json = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 || json.len() > super::MAX_LINE {
            return Err(FormatError::HeaderBlockOpen);
        }
        *lines_before += 1;
        if trimmed(&line) == END_HEADER {
            break;
        }
        json.extend_from_slice(&line);
    }
    *meta = parse_meta(&json);
    loop {
        line.clear();
        let end = input.read_until(b'\n', &mut line)? == 0;
        *lines_before += 1;
        match trimmed(&line) {
            START_DATA => break,
            b"" if !end => (),
            _ => {
                return Err(FormatError::NoDataBlock {
                    line: *lines_before,
                });
            }
        }
    }
    // A concatenated file may have a byte-order mark here. It is removed here, because the csv crate removes it only for
    // some sizes of the first read.
    line.clear();
    input.read_until(b'\n', &mut line)?;
    while line.starts_with(BYTE_ORDER_MARK) {
        line.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(line)
}

fn parse_meta(json: &[u8]) -> HeaderMeta {
    // Invalid UTF-8, such as a site name in Windows-1252, must not make the whole header invalid.
    match serde_json::from_str(&decode(json)) {
        Ok(value) => HeaderMeta::Json(value),
        Err(error) => HeaderMeta::Broken(error.to_string()),
    }
}

/// Decodes bytes as UTF-8. Invalid sequences are decoded as Windows-1252, because loggers are configured in French.
pub(super) fn decode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.push_str(
            &encoding_rs::WINDOWS_1252
                .decode_without_bom_handling(chunk.invalid())
                .0,
        );
    }
    text
}

/// Trims the line break and ASCII white space from a line.
pub(super) fn trimmed(mut line: &[u8]) -> &[u8] {
    line = line.strip_suffix(b"\n").unwrap_or(line);
    line = line.strip_suffix(b"\r").unwrap_or(line);
    line.trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preamble(text: &str) -> Result<(Container, HeaderMeta, String), FormatError> {
        let mut found = read_preamble(text.as_bytes())?;
        let mut table = String::new();
        found.table.read_to_string(&mut table).unwrap();
        Ok((found.container, found.meta, table))
    }

    #[test]
    fn a_file_that_does_not_start_with_start_header_is_plain() {
        assert_eq!(
            preamble("1\t1\nM\tV\n").unwrap(),
            (
                Container::Plain,
                HeaderMeta::None,
                "1\t1\nM\tV\n".to_owned()
            )
        );
    }

    #[test]
    fn a_headed_file_has_json_and_a_table() {
        let (container, meta, table) =
            preamble("\u{feff}START_HEADER\t \r\n{\"TimeZoneName\":\n\"Europe/Paris\"}\r\nEND_HEADER\nSTART_DATA\nx\n").unwrap();
        assert_eq!(container, Container::Headed);
        assert_eq!(meta.text("TimeZoneName"), Some("Europe/Paris"));
        assert_eq!(table, "x\n");
    }

    #[test]
    fn invalid_json_is_kept_as_broken_and_is_no_error() {
        let (_, meta, _) = preamble("START_HEADER\n{oops\nEND_HEADER\nSTART_DATA\n").unwrap();
        assert!(matches!(meta, HeaderMeta::Broken(_)));
    }

    #[test]
    fn a_header_in_windows_1252_keeps_its_time_zone() {
        let bytes = b"START_HEADER\n{\"Site\":\"Caf\xe9\",\"DataTimeSettings\":\"UTC\"}\nEND_HEADER\nSTART_DATA\n";
        let meta = read_preamble(bytes.as_slice()).unwrap().meta;
        assert_eq!(meta.text("DataTimeSettings"), Some("UTC"));
        assert_eq!(meta.text("Site"), Some("Café"));
    }

    #[test]
    fn an_open_header_block_missing_data_and_an_empty_file_have_their_own_errors() {
        assert!(matches!(
            preamble("START_HEADER\n{}\n"),
            Err(FormatError::HeaderBlockOpen)
        ));
        assert!(matches!(
            preamble("START_HEADER\n{}\nEND_HEADER\n1\t1\n"),
            Err(FormatError::NoDataBlock { line: 4 })
        ));
        assert!(matches!(preamble(""), Err(FormatError::Empty)));
        assert!(matches!(preamble(" \r\n\n"), Err(FormatError::Empty)));
    }

    #[test]
    fn head_and_tail_show_whether_a_file_is_truncated() {
        let truncated = Container::looks_truncated;
        assert!(truncated(b"", b""));
        assert!(truncated(b"1\t1\n", b"1\t1\nx"));
        assert!(!truncated(b"1\t1\n", b"1\t1\n"));
        assert!(truncated(b"START_HEADER\n", b"1\t2\n"));
        assert!(!truncated(
            b"\xef\xbb\xbfSTART_HEADER\r\n",
            b"1\t2\r\nEND_DATA \r\n"
        ));
        assert!(!truncated(b"START_HEADER\n", b"1\t2\nEND_DATA"));
    }
}
