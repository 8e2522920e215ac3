//! Text that a stranger chose, made safe for a terminal and a log.
//!
//! Folder names, labels, file names and a server's answers may hold escape sequences, line breaks or
//! characters that turn the reading direction. None of them reaches a person raw.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

/// The longest text shown in one piece, in characters; a file name of 255 bytes always fits.
const MAX_SHOWN: usize = 1_000;

/// Whether a character could move the cursor, break a line, hide itself or turn the direction of writing.
pub fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` with control and invisible characters written as `\n`, `\t` or `\u{..}`, bytes that are not
/// UTF-8 as `\xNN`, and cut after 1,000 characters.
pub fn sanitize(text: impl AsRef<OsStr>) -> String {
    let mut out = String::new();
    let mut count = 0;
    for chunk in text.as_ref().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            count += 1;
            if count > MAX_SHOWN {
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
    fn escape_sequences_and_line_breaks_are_spelled_out() {
        assert_eq!(sanitize("a\x1b[31mb\nc\r"), "a\\u{1b}[31mb\\nc\\r");
    }

    #[test]
    fn turned_writing_and_hidden_characters_are_spelled_out() {
        assert_eq!(sanitize("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_shown_in_hexadecimal() {
        assert_eq!(sanitize(OsStr::from_bytes(b"\xe9t\xe9")), "\\xe9t\\xe9");
    }

    #[test]
    fn letters_of_any_language_stay() {
        assert_eq!(sanitize("Société Générale 東京"), "Société Générale 東京");
    }

    #[test]
    fn a_long_text_is_cut() {
        assert_eq!(sanitize("x".repeat(5_000)).chars().count(), MAX_SHOWN + 1);
    }
}
