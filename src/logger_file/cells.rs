//! One cell: trimmed, and read as a decimal number or nothing.

/// Reads a cell that was trimmed of spaces, to the nearest double.
///
/// The grammar is `[+-]? (digits [. digits?] | . digits) ([eE] [+-]? digits)?`, which is what the standard library reads
/// once the letters of `inf` and `nan` are kept out. What overflows to infinity is no value.
pub fn parse(cell: &[u8]) -> Option<f64> {
    if !cell
        .iter()
        .all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'))
    {
        return None;
    }
    let value: f64 = std::str::from_utf8(cell).ok()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// A cell without the spaces around it.
pub fn trim_spaces(mut cell: &[u8]) -> &[u8] {
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
    fn decimal_numbers_are_values() {
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
    fn anything_else_is_none() {
        for cell in [
            "", "NaN", "nan", "inf", "-inf", "infinity", "1e999", "-1e999", "abc", "12,5", "0x10",
            ".", "+", "-", "e5", "1e", "1e+", "1.2.3", "1 2", "--1", "1_000", "é", "1d",
        ] {
            assert_eq!(parse(cell.as_bytes()), None, "{cell}");
        }
        assert_eq!(parse(b"\xff1"), None);
    }
}
