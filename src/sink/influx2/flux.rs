//! Flux queries, and the annotated CSV that answers them.

use csv::ByteRecord;
use std::cell::Cell;
use std::io::{self, Read};
use std::ops::Range;

/// Maximum length of a row of an answer in bytes. Longer ones could fill the memory.
const MAX_ROW: usize = 8 * 1024 * 1024;

/// Writes a text as a Flux string. Line breaks, quotation marks, backslashes and `$` are escaped, so that a name from a
/// folder or a file is never a part of the query.
pub(super) fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // Flux has `\${`, but no `\$` before another character.
            '$' => out.push_str("\\x24"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A Flux expression that escapes backslashes and line breaks in a text. Answers in CSV have no line breaks but `\r\n`.
pub(super) fn escaped(text: &str) -> String {
    let pairs = [("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r")];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| {
        let (from, to) = (string(from), string(to));
        format!("strings.replaceAll(v: {text}, t: {from}, u: {to})")
    })
}

/// The text that [`escaped`] has escaped.
pub(super) fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|c| match c {
                'n' => '\n',
                'r' => '\r',
                c => c,
            })),
            c => out.push(c),
        }
    }
    out
}

/// The beginning of a query: the points of a measurement, at times in seconds since 1970.
pub(super) fn measurement(bucket: &str, measurement: &str, times: &Range<i64>) -> String {
    format!(
        "from(bucket: {}) |> range(start: {}, stop: {}) |> filter(fn: (r) => r._measurement == {})",
        string(bucket),
        times.start,
        times.end,
        string(measurement)
    )
}

/// The columns of the rows of an answer that follow each other.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// Counts the headers of the answer.
    pub number: u32,
    /// Names, without that of the annotations.
    pub names: Vec<String>,
    /// Types, such as `double` or `string`.
    types: Vec<String>,
}

impl Columns {
    /// The position of a column in a record.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|other| other == name)
    }

    /// The type of a column.
    pub(super) fn type_of(&self, name: &str) -> &str {
        let position = self.position(name);
        position
            .and_then(|position| self.types.get(position))
            .map_or("", String::as_str)
    }
}

/// Why an answer cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    /// The connection failed, or the CSV is not valid.
    #[error("{0}")]
    Csv(#[from] csv::Error),
    /// The server reports an error after it has begun to answer.
    #[error("{0}")]
    Server(String),
    /// Something else than annotated CSV.
    #[error("the answer is not annotated CSV")]
    Format,
}

/// Calls `each` for all rows of an answer, until it returns false. The answer has the annotation `datatype`.
pub(super) fn rows(
    answer: impl Read,
    mut each: impl FnMut(&Columns, &ByteRecord) -> bool,
) -> Result<(), AnswerError> {
    let left = Cell::new(MAX_ROW);
    let answer = Limited {
        answer,
        left: &left,
    };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(64 * 1024)
        .from_reader(answer);
    let mut columns = Columns::default();
    let mut is_header = false;
    let mut record = ByteRecord::new();
    let texts = |record: &ByteRecord| -> Vec<String> {
        let cells = record.iter();
        cells
            .map(|cell| String::from_utf8_lossy(cell).into_owned())
            .collect()
    };
    while reader.read_byte_record(&mut record)? {
        left.set(MAX_ROW);
        let first = record.get(0).unwrap_or_default();
        if first == b"#datatype" {
            columns.types = texts(&record);
            is_header = true;
        } else if !first.is_empty() {
            return Err(AnswerError::Format);
        } else if is_header {
            columns.names = texts(&record);
            columns.number += 1;
            is_header = false;
        } else if columns.number == 0 {
            return Err(AnswerError::Format);
        } else if columns.position("error") == Some(1) {
            let message = record.get(1).unwrap_or_default();
            return Err(AnswerError::Server(
                String::from_utf8_lossy(message).into_owned(),
            ));
        } else if record.len() != columns.names.len() {
            return Err(AnswerError::Format);
        } else if !each(&columns, &record) {
            return Ok(());
        }
    }
    Ok(())
}

/// An answer whose rows have a maximum length.
struct Limited<'a, R> {
    answer: R,
    /// The number of bytes until the row is too long.
    left: &'a Cell<usize>,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::other("a row of it is too long"));
        }
        let length = self.answer.read(out)?;
        self.left.set(self.left.get().saturating_sub(length));
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(u32, String)>, String> {
        let mut found = Vec::new();
        rows(text.as_bytes(), |columns, row| {
            let value = columns.position("_value").unwrap();
            let value = String::from_utf8(row[value].to_vec()).unwrap();
            found.push((columns.number, value));
            true
        })
        .map(|()| found)
        .map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_escaped_in_strings() {
        assert_eq!(string("acme"), "\"acme\"");
        assert_eq!(
            string("a\"b\\c${d}$e\n"),
            "\"a\\\"b\\\\c\\x24{d}\\x24e\\n\"",
            "the text ends the string or starts an expression"
        );
    }

    #[test]
    fn escaped_texts_are_read_back() {
        assert_eq!(unescaped(r"a\nb\\nc\rd\\\ne"), "a\nb\\nc\rd\\\ne");
    }

    #[test]
    fn tables_with_other_columns_follow_each_other() {
        let text = "#datatype,string,long,double,string\r\n,result,table,_value,unit\r\n,_result,0,1.5,\"a\r\nb\"\r\n,_result,1,2,\r\n\r\n\
                    #datatype,string,long,string\r\n,result,table,_value\r\n,_result,2,x\r\n\r\n";
        let expected = [(1, "1.5"), (1, "2"), (2, "x")];
        let expected = expected.map(|(n, value)| (n, value.to_owned()));
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn an_error_after_rows_is_not_the_end() {
        let rows = "#datatype,string,long,double\r\n,result,table,_value\r\n,_result,0,1\r\n\r\n";
        let error =
            "#datatype,string,string\r\n,error,reference\r\n,the query was cancelled,897\r\n";
        assert_eq!(
            read(&format!("{rows}{error}")).unwrap_err(),
            "the query was cancelled"
        );
    }

    #[test]
    fn a_row_may_be_long_but_not_endless() {
        let head = "#datatype,string,long,string\r\n,result,table,_value\r\n";
        let row = |length| format!(",_result,0,{}\r\n", "x".repeat(length));
        let long = row(MAX_ROW / 2);
        assert_eq!(read(&format!("{head}{long}{long}{long}")).unwrap().len(), 3);
        let error = read(&format!("{head}{}", row(MAX_ROW + 100_000))).unwrap_err();
        assert_eq!(error, "a row of it is too long");
    }

    #[test]
    fn another_format_is_an_error() {
        for text in [
            "<html>no</html>",
            ",a,b\r\n,1,2\r\n",
            "#datatype,string\r\n,_value\r\n,1,2\r\n",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
