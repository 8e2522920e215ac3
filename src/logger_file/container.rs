//! The container of a table: nothing in a plain document, a JSON header in a headed one. To support a new container,
//! add a variant to [`Container`]. See docs/specification.md, section 2.

use memchr::memmem;
use serde_json::Value;

pub(super) const START_HEADER: &[u8] = b"START_HEADER";
pub(super) const END_HEADER: &[u8] = b"END_HEADER";
pub(super) const START_DATA: &[u8] = b"START_DATA";
pub(super) const END_DATA: &[u8] = b"END_DATA";
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

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

    /// Whether a file that starts with `head` and ends with `tail` is truncated: its last document is a plain one without
    /// a final line break, or a headed one without `END_DATA`. Used for files that are not read to their end.
    pub fn looks_truncated(head: &[u8], tail: &[u8]) -> bool {
        if tail.last() == Some(&0) {
            return true;
        }
        let document = memmem::rfind(tail, START_HEADER);
        let is_headed = document.is_some() || memmem::find(head, START_HEADER).is_some();
        if is_headed {
            !tail[document.unwrap_or_default()..]
                .split(|b| *b == b'\n')
                .any(|line| trimmed(line) == END_DATA)
        } else {
            tail.last() != Some(&b'\n')
        }
    }
}

/// The JSON of a headed document.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum HeaderMeta {
    /// No JSON: the document is plain.
    #[default]
    None,
    /// Any JSON value. Loggers write an object.
    Json(Value),
    /// A header that is not valid JSON.
    Broken {
        /// The message of the parser.
        reason: String,
        /// The header.
        text: String,
    },
}

impl HeaderMeta {
    /// Parses a header. Invalid UTF-8, such as a site name in Windows-1252, does not make the whole header invalid.
    pub(super) fn parse(header: &[u8]) -> Self {
        let text = decode(header);
        match serde_json::from_str(&text) {
            Ok(value) => Self::Json(value),
            Err(error) => Self::Broken {
                reason: error.to_string(),
                text,
            },
        }
    }

    /// Returns a string entry of the object, unless it is empty. In a header that is not valid JSON, the text
    /// is searched for the entry.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let value = match self {
            Self::None => None,
            Self::Json(value) => value.get(key)?.as_str(),
            Self::Broken { text, .. } => entry_in_text(text, key),
        };
        value.filter(|value| !value.is_empty())
    }
}

/// Finds `"key" : "value"` in a text.
fn entry_in_text<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("\"{key}\""))?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let (value, _) = rest.strip_prefix('"')?.split_once('"')?;
    Some(value)
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

    #[test]
    fn an_entry_is_found_in_a_header_that_is_not_valid_json() {
        let meta = HeaderMeta::parse(b"{\"A\":\"x\", \"DataTimeSettings\" :\n \"UTC\",}");
        assert!(matches!(meta, HeaderMeta::Broken { .. }));
        assert_eq!(meta.text("DataTimeSettings"), Some("UTC"));
        assert_eq!(meta.text("TimeZone"), None);
        let cut = HeaderMeta::parse(b"{\"DataTimeSettings\":\"UT");
        assert_eq!(cut.text("DataTimeSettings"), None);
    }

    #[test]
    fn a_header_in_windows_1252_is_valid() {
        let meta = HeaderMeta::parse(b"{\"Site\":\"Caf\xe9\",\"DataTimeSettings\":\"UTC\"}");
        assert_eq!(meta.text("DataTimeSettings"), Some("UTC"));
        assert_eq!(meta.text("Site"), Some("Café"));
    }

    #[test]
    fn head_and_tail_show_whether_a_file_is_truncated() {
        let truncated = Container::looks_truncated;
        assert!(truncated(b"", b""));
        assert!(truncated(b"1\t1\n", b"1\t1\nx"));
        assert!(!truncated(b"1\t1\n", b"1\t1\n"));
        assert!(truncated(b"1\t1\n", b"1\t1\n\0\0"));
        assert!(truncated(b"START_HEADER\n", b"1\t2\n"));
        assert!(!truncated(
            b"\xef\xbb\xbfSTART_HEADER\r\n",
            b"1\t2\r\nEND_DATA \r\n"
        ));
        assert!(!truncated(b"START_HEADER\n", b"1\t2\nEND_DATA"));
        // The header may follow the rest of another document.
        assert!(truncated(
            b"03/08/25 03:20:00\t1\nSTART_HEADER\n",
            b"1\t2\n"
        ));
        // The last document decides.
        assert!(truncated(b"1\t1\n", b"1\t2START_HEADER\n{}\n"));
        assert!(truncated(
            b"START_HEADER\n",
            b"END_DATA\nSTART_HEADER\n{}\n"
        ));
        assert!(!truncated(b"1\t1\n", b"START_HEADER\n{}\nEND_DATA\n"));
    }
}
