//! JSON without raw control or invisible characters, so that a report can be printed on any terminal.

use crate::sanitize::needs_escape;
use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};
use std::io::{self, Write};

/// Serializes to compact JSON.
pub(super) fn to_json(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    match write_json(&mut bytes, value) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        // Cannot happen: all keys are strings and all numbers are finite.
        Err(error) => format!("{{\"error\":{:?}}}", error.to_string()),
    }
}

/// Writes a value as compact JSON.
///
/// # Errors
/// The first error of `out`.
pub(super) fn write_json(
    out: &mut (impl Write + ?Sized),
    value: &impl Serialize,
) -> io::Result<()> {
    let formatter = EscapingFormatter(CompactFormatter);
    let mut serializer = serde_json::Serializer::with_formatter(out, formatter);
    Ok(value.serialize(&mut serializer)?)
}

/// Formatter that escapes control and invisible characters as `\u`, including those that JSON allows.
struct EscapingFormatter(CompactFormatter);

impl Formatter for EscapingFormatter {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| needs_escape(*c)) {
            out.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        out.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        self.0.write_char_escape(out, escape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_in_json_and_read_back() {
        let text = "a\u{1b}[2J\u{9b}\u{202e}\u{e0001}\u{7f}\"\\\né";
        let json = to_json(&text);
        assert!(!json.chars().any(needs_escape), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
