//! Recognises files that are plainly something else than a logger file. See docs/specification.md, section 2.

use memchr::{memchr, memmem};

/// The first bytes of binary formats, and their names with the remedy.
const SIGNATURES: [(&[u8], &str); 7] = [
    (
        b"\x1f\x8b",
        "a gzip archive; unpack it and upload the file in it",
    ),
    (
        b"\xfd7zXZ\0",
        "an xz archive; unpack it and upload the file in it",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        "a zstd archive; unpack it and upload the file in it",
    ),
    (
        b"7z\xbc\xaf\x27\x1c",
        "a 7z archive; unpack it and upload the file in it",
    ),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "a document of Microsoft Office such as .xls; upload the logger's own file",
    ),
    (b"\xff\xfe\0\0", UTF_32),
    (b"\0\0\xfe\xff", UTF_32),
];

/// Names the format of a file by its first bytes, with the remedy. `None` if it may be a logger file.
pub(super) fn format_of(head: &[u8]) -> Option<&'static str> {
    let text = head
        .strip_prefix(super::container::BYTE_ORDER_MARK)
        .unwrap_or(head);
    if let Some((_, name)) = SIGNATURES.iter().find(|(bytes, _)| head.starts_with(bytes)) {
        return Some(name);
    }
    match head {
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', ..] => {
            Some("a bzip2 archive; unpack it and upload the file in it")
        }
        [b'P', b'K', 3, 4, ..] if memmem::find(head, b"[Content_Types].xml").is_some() => {
            Some("a spreadsheet (.xlsx) or another Office document; upload the logger's own file")
        }
        [b'P', b'K', 3 | 5, 4 | 6, ..] => {
            Some("a zip archive or a spreadsheet such as .xlsx; upload the logger's own file")
        }
        _ if is_encrypted_by_sftpgo(head) => Some(
            "encrypted by SFTPGo; set the storage of the user to \"Local disk\" and upload the file again",
        ),
        _ if is_utf_32_without_mark(head) => Some(UTF_32),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(UTF_16),
        _ if is_utf_16_without_mark(head) => Some(UTF_16),
        _ if is_html(text) => Some("a web page (HTML); upload the logger's own file"),
        _ if ends_lines_with_cr(text) => Some(
            "text whose lines end in a carriage return alone; save it with line feeds, or upload the logger's own file",
        ),
        _ if is_separated_by(text, b';') => Some(SEMICOLONS),
        _ if is_separated_by(text, b',') => Some(COMMAS),
        _ => None,
    }
}

/// Names the format of a table by what follows the format marker in its cell. `None` if it is not a spreadsheet's.
pub(super) fn format_of_table(after_marker: &[u8]) -> Option<&'static str> {
    match after_marker.trim_ascii_start().first() {
        Some(b';') => Some(SEMICOLONS),
        Some(b',') => Some(COMMAS),
        _ => None,
    }
}

const SEMICOLONS: &str =
    "a spreadsheet's CSV with semicolons; upload the logger's own file, which has tabs";
const COMMAS: &str =
    "a spreadsheet's CSV with commas; upload the logger's own file, which has tabs";

const UTF_16: &str = "text in UTF-16; save it in UTF-8, or upload the logger's own file";

const UTF_32: &str = "text in UTF-32; save it in UTF-8, or upload the logger's own file";

/// Whether a file begins like one in SFTPGo's encrypted local storage: its version 1, 32 random bytes, and the version 2 and
/// the cipher of the format DARE.
fn is_encrypted_by_sftpgo(head: &[u8]) -> bool {
    head.first() == Some(&0x10) && matches!(head.get(33..35), Some([0x20, 0 | 1]))
}

/// Whether the first characters are those of a text with three NUL bytes each.
fn is_utf_32_without_mark(head: &[u8]) -> bool {
    let characters = head.chunks_exact(4).take(4);
    let is_padded = |character: &[u8], at: usize| {
        character
            .iter()
            .enumerate()
            .all(|(n, byte)| (*byte != 0) == (n == at))
    };
    characters.len() == 4
        && [0, 3].iter().any(|at| {
            characters
                .clone()
                .all(|character| is_padded(character, *at))
        })
}

/// Whether a text begins like a web page.
fn is_html(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    [b"<!doctype html".as_slice(), b"<html"].iter().any(|tag| {
        text.get(..tag.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(tag))
    })
}

/// Whether every other byte of the first line is NUL.
fn is_utf_16_without_mark(head: &[u8]) -> bool {
    let pairs = head.chunks_exact(2).take(8);
    pairs.len() == 8
        && (pairs.clone().all(|pair| pair[0] == 0 && pair[1] != 0)
            || pairs.clone().all(|pair| pair[0] != 0 && pair[1] == 0))
}

/// Whether there are carriage returns and no line feeds. A file that is shorter than `head` ends in one or has several.
fn ends_lines_with_cr(text: &[u8]) -> bool {
    memchr(b'\n', text).is_none() && memchr(b'\r', text).is_some()
}

/// Whether the first two lines have this separator and no tab.
fn is_separated_by(text: &[u8], separator: u8) -> bool {
    let mut lines = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .take(2)
        .peekable();
    lines.peek().is_some()
        && lines.all(|line| memchr(b'\t', line).is_none() && memchr(separator, line).is_some())
}

/// A table whose times are not those of a logger but [`is_reformatted_time`].
pub(super) const REFORMATTED: &str = "a table that a spreadsheet has saved, which changed the form of its times; upload the logger's own file, with times like 03/08/25 03:20:00";

/// Whether a cell is a date, or a date and time, in another form than that of loggers.
pub(super) fn is_reformatted_time(cell: &[u8]) -> bool {
    let has = |separator: u8| memchr::memchr_iter(separator, cell).count() >= 2;
    cell.iter()
        .all(|byte| byte.is_ascii_digit() || b"/-.: TZ".contains(byte))
        && cell.iter().filter(|byte| byte.is_ascii_digit()).count() >= 4
        && (has(b'/') || has(b'-') || has(b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_a_spreadsheet_writes_are_recognised() {
        for cell in [
            "03/08/2025 03:20",
            "3/8/25",
            "2025-08-03 03:20:00",
            "03.08.2025",
            "2025-08-03T03:20:00Z",
        ] {
            assert!(is_reformatted_time(cell.as_bytes()), "{cell}");
        }
        for cell in [
            "",
            "02001171",
            "yesterday",
            "1/2",
            "45872.14",
            "12:30:00",
            "1-2",
        ] {
            assert!(!is_reformatted_time(cell.as_bytes()), "{cell}");
        }
    }

    #[test]
    fn other_formats_are_called_by_their_names() {
        let utf_16 =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let utf_32 = |text: &str, bytes: fn(u32) -> [u8; 4]| -> Vec<u8> {
            text.chars().flat_map(|c| bytes(c.into())).collect()
        };
        for (head, name) in [
            (b"\x1f\x8b\x08\x00".to_vec(), "gzip"),
            (
                [&b"\x10"[..], &[b'\t'; 32], b"\x20\x00\x3e\x00"].concat(),
                "SFTPGo",
            ),
            (b"PK\x03\x04\x14".to_vec(), "zip"),
            (
                b"PK\x03\x04\x14\0\x06\0[Content_Types].xml".to_vec(),
                "(.xlsx)",
            ),
            (b"BZh91AY&SY;\n;".to_vec(), "bzip2"),
            (b"\xfd7zXZ\0\0\x04;\n;\n".to_vec(), "xz"),
            (b"\x28\xb5\x2f\xfd,\n,\n".to_vec(), "zstd"),
            (b"7z\xbc\xaf\x27\x1c\0\x04".to_vec(), "7z"),
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0".to_vec(), ".xls"),
            (b"\n<!DOCTYPE html>\n<p>a, b\n".to_vec(), "HTML"),
            (b"<html lang=\"de\">\r<body>\r".to_vec(), "HTML"),
            (utf_32("\u{feff}02001171\t", u32::to_le_bytes), "UTF-32"),
            (utf_32("\u{feff}02001171\t", u32::to_be_bytes), "UTF-32"),
            (utf_32("02001171\t", u32::to_le_bytes), "UTF-32"),
            (utf_32("02001171\t", u32::to_be_bytes), "UTF-32"),
            (utf_16("\u{feff}02001171\t"), "UTF-16"),
            (utf_16("02001171\t02001171\n"), "UTF-16"),
            (b"1\t1\rMV_T302_V002\tA W\r".to_vec(), "carriage return"),
            (b"1;1\r\nMV_T302_V002;A W\r\n".to_vec(), "semicolons"),
            (b"\xef\xbb\xbf1,1\nMV_T302_V002,A W\n".to_vec(), "commas"),
        ] {
            assert!(
                format_of(&head).is_some_and(|found| found.contains(name)),
                "{name}"
            );
        }
        for head in [
            "",
            "1\t1\nMV_T302_V002\tA, b; c W\n",
            "02001171",
            "\r\n\r\n1\t1\r\n",
        ] {
            assert_eq!(format_of(head.as_bytes()), None, "{head:?}");
        }
    }
}
