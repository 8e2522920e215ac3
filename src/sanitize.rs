//! Escaping of untrusted text for terminals and logs.
//!
//! Folder names, file names, channel labels and server responses may contain escape sequences, line breaks or
//! characters that change the text direction.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

/// Maximum length of a sanitized text in characters. A file name of 255 bytes always fits.
const MAX_CHARS: usize = 1_000;

/// Whether a character is a control character, is invisible or changes the text direction.
pub(crate) fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Returns `text` with control and invisible characters escaped as `\n`, `\t` or `\u{..}` and invalid UTF-8 as `\xNN`,
/// cut after 1,000 characters.
pub(crate) fn sanitize(text: impl AsRef<OsStr>) -> String {
    let mut out = String::new();
    let mut count = 0;
    for chunk in text.as_ref().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            count += 1;
            if count > MAX_CHARS {
                out.push('…');
                return out;
            }
            if needs_escape(c) {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            count += 1;
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_line_breaks_are_escaped() {
        assert_eq!(sanitize("a\x1b[31mb\nc\r"), "a\\u{1b}[31mb\\nc\\r");
    }

    #[test]
    fn direction_marks_and_invisible_characters_are_escaped() {
        assert_eq!(sanitize("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
    }

    #[test]
    fn invalid_utf8_is_escaped_in_hexadecimal() {
        assert_eq!(sanitize(OsStr::from_bytes(b"\xe9t\xe9")), "\\xe9t\\xe9");
    }

    #[test]
    fn letters_of_any_language_are_kept() {
        assert_eq!(sanitize("Société Générale 東京"), "Société Générale 東京");
    }

    #[test]
    fn a_long_text_is_cut() {
        assert_eq!(sanitize("x".repeat(5_000)).chars().count(), MAX_CHARS + 1);
    }
}
