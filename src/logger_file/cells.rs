//! Parses single cells. See docs/specification.md, section 4.

/// Parses a trimmed cell as a decimal number, to the nearest double. Returns `None` for anything else.
///
/// The grammar is `[+-]? (digits [. digits?] | . digits) ([eE] [+-]? digits)?`. This is the grammar of the standard
/// library without `inf` and `nan`. A number that overflows to infinity is rejected.
pub(super) fn parse(cell: &[u8]) -> Option<f64> {
    if !cell
        .iter()
        .all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'))
    {
        return None;
    }
    let value: f64 = std::str::from_utf8(cell).ok()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// The no-break spaces in UTF-8: U+00A0, U+2007 and U+202F.
const NO_BREAK_SPACES: [&[u8]; 3] = [b"\xc2\xa0", b"\xe2\x80\x87", b"\xe2\x80\xaf"];

/// A no-break space in Windows-1252.
const NO_BREAK_SPACE_1252: u8 = 0xa0;

/// Trims spaces and no-break spaces, but no other white space, from both ends of a cell.
pub(super) fn trim_spaces(mut cell: &[u8]) -> &[u8] {
    loop {
        match cell {
            [b' ' | NO_BREAK_SPACE_1252, rest @ ..] => cell = rest,
            [0x80..=0xff, ..] => match strip_any(|space| cell.strip_prefix(space)) {
                Some(rest) => cell = rest,
                None => break,
            },
            _ => break,
        }
    }
    loop {
        match cell {
            [rest @ .., b' '] => cell = rest,
            [.., 0x80..=0xff] => match strip_any(|space| cell.strip_suffix(space)) {
                Some(rest) => cell = rest,
                None => match cell {
                    // After a byte of ASCII it is not the end of a character in UTF-8.
                    [rest @ .., NO_BREAK_SPACE_1252] if rest.last().is_none_or(u8::is_ascii) => {
                        cell = rest;
                    }
                    _ => break,
                },
            },
            _ => break,
        }
    }
    cell
}

fn strip_any<'a>(strip: impl Fn(&[u8]) -> Option<&'a [u8]>) -> Option<&'a [u8]> {
    NO_BREAK_SPACES.into_iter().find_map(strip)
}

/// Whether a trimmed cell holds something: it is neither empty nor `NaN`, which a logger writes for no value.
pub(super) fn holds_something(cell: &[u8]) -> bool {
    !cell.is_empty() && !cell.eq_ignore_ascii_case(b"nan")
}

/// Whether a cell contains a date and time, which is the start of another row.
pub(super) fn contains_time(cell: &[u8]) -> bool {
    memchr::memchr_iter(b'/', cell).any(|at| {
        let start = at.checked_sub(2);
        start
            .and_then(|start| cell.get(start..start + 17))
            .and_then(super::timestamps::parse_wall_time)
            .is_some()
    })
}

/// Whether a cell contains a keyword of a headed file, which is the start of another line.
pub(super) fn contains_keyword(cell: &[u8]) -> bool {
    [b"START_".as_slice(), b"END_"]
        .into_iter()
        .any(|keyword| memchr::memmem::find(cell, keyword).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_numbers_are_parsed() {
        for (cell, value) in [
            ("242.25", 242.25),
            ("-5.3", -5.3),
            ("+5", 5.0),
            ("5.", 5.0),
            (".5", 0.5),
            ("1e3", 1000.0),
            ("1E+3", 1000.0),
            ("2.5e-2", 0.025),
            ("007", 7.0),
            ("-.5e1", -5.0),
            ("0", 0.0),
            ("1e-400", 0.0),
        ] {
            assert_eq!(parse(cell.as_bytes()), Some(value), "{cell}");
        }
        assert!(parse(b"-0.0").is_some_and(|v| v == 0.0 && v.is_sign_negative()));
    }

    #[test]
    fn spaces_and_no_break_spaces_are_trimmed_and_characters_are_kept() {
        for (cell, trimmed) in [
            (" 1 ", "1"),
            ("\u{a0}1\u{202f}\u{a0} ", "1"),
            (" \u{2007}", ""),
            ("à", "à"),
            ("€\u{a0}", "€"),
            ("\t1", "\t1"),
        ] {
            assert_eq!(trim_spaces(cell.as_bytes()), trimmed.as_bytes(), "{cell:?}");
        }
        assert_eq!(trim_spaces(b"\xa01 V\xa0"), b"1 V");
        assert_eq!(trim_spaces(b"\xa0\xa0"), b"");
    }

    #[test]
    fn the_start_of_another_row_is_found_in_a_cell() {
        assert!(contains_time(b"24103/08/25 04:10:00"));
        assert!(contains_time(b"03/08/25 04:10:00"));
        assert!(!contains_time(b"03/08/25 04:10"));
        assert!(!contains_time(b"1/2"));
        assert!(contains_keyword(b"24END_DATA") && contains_keyword(b"2START_HEADER"));
        assert!(!contains_keyword(b"END"));
    }

    #[test]
    fn anything_else_is_rejected() {
        for cell in [
            "", "NaN", "nan", "inf", "-inf", "infinity", "1e999", "-1e999", "abc", "12,5", "0x10",
            ".", "+", "-", "e5", "1e", "1e+", "1.2.3", "1 2", "--1", "1_000", "é", "1d",
        ] {
            assert_eq!(parse(cell.as_bytes()), None, "{cell}");
        }
        assert_eq!(parse(b"\xff1"), None);
    }
}
