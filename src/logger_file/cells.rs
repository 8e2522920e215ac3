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

/// Trims spaces, but no other white space, from both ends of a cell.
pub(super) fn trim_spaces(mut cell: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = cell {
        cell = rest;
    }
    while let [rest @ .., b' '] = cell {
        cell = rest;
    }
    cell
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
