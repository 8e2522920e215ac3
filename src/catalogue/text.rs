//! The text of a catalogue: its encoding, and what is plainly something else.

use super::problem::Cause;
use encoding_rs::WINDOWS_1252;
use std::borrow::Cow;

/// Maximum size of a catalogue in bytes.
pub(crate) const MAX_SIZE: usize = 4 << 20;

/// The byte order mark of UTF-8.
pub(super) const MARK: &str = "\u{feff}";

/// How catalogues of spreadsheets begin: zip (xlsx, ods) and the older container (xls).
const SPREADSHEETS: [&[u8]; 2] = [b"PK\x03\x04", b"\xd0\xcf\x11\xe0"];

/// Decodes a catalogue: UTF-8 with or without byte order mark, otherwise Windows-1252.
pub(super) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, Cause> {
    if bytes.len() > MAX_SIZE {
        return Err(Cause::TooLarge);
    }
    if SPREADSHEETS.iter().any(|start| bytes.starts_with(start)) {
        return Err(Cause::Spreadsheet);
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(Cause::Utf16);
    }
    if let Some(at) = memchr::memchr(0, bytes) {
        // Without a mark, UTF-16 shows as a NUL beside each ASCII character.
        return Err(if at < 2 { Cause::Utf16 } else { Cause::Nul });
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Cow::Borrowed(text.strip_prefix(MARK).unwrap_or(text))),
        Err(_) if bytes.starts_with(MARK.as_bytes()) => Err(Cause::NotUtf8),
        Err(_) => Ok(WINDOWS_1252.decode_without_bom_handling(bytes).0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_8_is_read_with_and_without_its_mark_and_windows_1252_otherwise() {
        for bytes in [
            "é;€".as_bytes(),
            "\u{feff}é;€".as_bytes(),
            b"\xe9;\x80".as_slice(),
        ] {
            assert_eq!(decode(bytes).unwrap(), "é;€");
        }
    }

    #[test]
    fn other_formats_are_called_by_their_names() {
        for (bytes, expected) in [
            (b"\xff\xfec\0".as_slice(), Cause::Utf16),
            (b"\xfe\xff\0c", Cause::Utf16),
            (b"c\0h\0", Cause::Utf16),
            (b"\0c\0h", Cause::Utf16),
            (b"channel_id\0", Cause::Nul),
            (b"PK\x03\x04x", Cause::Spreadsheet),
            (b"\xd0\xcf\x11\xe0x", Cause::Spreadsheet),
            (b"\xef\xbb\xbf\xe9", Cause::NotUtf8),
        ] {
            assert_eq!(decode(bytes), Err(expected), "{bytes:?}");
        }
        assert!(decode(&vec![b' '; MAX_SIZE]).is_ok());
        assert_eq!(decode(&vec![b' '; MAX_SIZE + 1]), Err(Cause::TooLarge));
    }
}
