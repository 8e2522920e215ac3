//! The texts of formulas, and of cells that say which channel another one continues.

use super::problem::Cause;
use chrono::{Datelike as _, NaiveDate};

/// The words that a cell with a formula may begin with.
const FORMULA_WORDS: [&str; 2] = ["formula", "formule"];

/// The words that a cell with a continued channel may begin with.
const CONTINUES_WORDS: [&str; 2] = ["continues", "continue"];

/// The words before the date on which a channel begins to continue another one.
const UNTIL_WORDS: [&str; 3] = [" until ", " jusqu'au ", " jusqu’au "];

/// The minus signs: that of a keyboard, the mathematical one, and the dash that spreadsheets make of the first.
const MINUS: [char; 3] = ['-', '−', '–'];

/// A channel in a formula, with its sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FormulaTerm<'a> {
    pub(super) is_negative: bool,
    /// As it is written, without brackets.
    pub(super) channel: &'a str,
}

/// Removes a word and the colon after it from the beginning of a cell.
fn without_word<'a>(cell: &'a str, words: &[&str]) -> &'a str {
    for word in words {
        if let Some((start, rest)) = cell.split_at_checked(word.len())
            && start.eq_ignore_ascii_case(word)
            && let Some(rest) = rest.trim_start().strip_prefix(':')
        {
            return rest.trim();
        }
    }
    cell
}

/// Parses a formula: channels with `+` or `-` between them, and perhaps a sign before the first.
pub(super) fn parse_formula(cell: &str) -> Result<Vec<FormulaTerm<'_>>, Cause> {
    let mut rest = without_word(cell, &FORMULA_WORDS).trim();
    let mut terms = Vec::new();
    loop {
        let sign = rest.chars().next();
        let is_negative = sign.is_some_and(|sign| MINUS.contains(&sign));
        match sign {
            Some(sign) if is_negative || sign == '+' => rest = rest[sign.len_utf8()..].trim_start(),
            _ if terms.is_empty() => {}
            None => return Ok(terms),
            Some(_) => return Err(Cause::FormulaSyntax(rest.to_owned())),
        }
        let (channel, after) = first_channel(rest)?;
        terms.push(FormulaTerm {
            is_negative,
            channel,
        });
        rest = after.trim_start();
    }
}

/// The channel at the beginning of a text, and what follows it.
fn first_channel(text: &str) -> Result<(&str, &str), Cause> {
    let error = || Cause::FormulaSyntax(text.to_owned());
    let (channel, after) = if let Some(inner) = text.strip_prefix('[') {
        inner.split_once(']').ok_or_else(error)?
    } else {
        let is_end =
            |c: char| c.is_whitespace() || c == '+' || MINUS.contains(&c) || matches!(c, '[' | ']');
        text.split_at(text.find(is_end).unwrap_or(text.len()))
    };
    let channel = channel.trim();
    if channel.is_empty() {
        return Err(error());
    }
    Ok((channel, after))
}

/// Parses which channel another one continues, and from which day on: `<channel_id> until 2026-03-01`.
pub(super) fn parse_continues(cell: &str) -> Result<(&str, NaiveDate), Cause> {
    let text = without_word(cell, &CONTINUES_WORDS).trim();
    let lower = text.to_ascii_lowercase();
    let found = UNTIL_WORDS
        .iter()
        .filter_map(|word| Some((lower.rfind(word)?, word.len())))
        .max();
    let Some((at, length)) = found else {
        return Err(Cause::ContinuesSyntax(text.to_owned()));
    };
    let channel = text[..at].trim();
    let channel = channel
        .strip_prefix('[')
        .and_then(|channel| channel.strip_suffix(']'))
        .map_or(channel, str::trim);
    if channel.is_empty() {
        return Err(Cause::ContinuesSyntax(text.to_owned()));
    }
    let date = text[at + length..].trim();
    let day = ["%Y-%m-%d", "%d/%m/%Y"]
        .iter()
        .find_map(|format| NaiveDate::parse_from_str(date, format).ok())
        .filter(|day| (2000..2100).contains(&day.year()));
    day.map(|day| (channel, day))
        .ok_or_else(|| Cause::ContinuesDate(date.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(cell: &str) -> Vec<(bool, &str)> {
        let terms = parse_formula(cell).unwrap().into_iter();
        terms.map(|term| (term.is_negative, term.channel)).collect()
    }

    #[test]
    fn a_formula_has_channels_with_signs_between_them() {
        let expected = [(false, "Ch1"), (false, "Ch2"), (true, "S04000466_Ch1")];
        for text in [
            "Ch1 + Ch2 - S04000466_Ch1",
            "Ch1+Ch2-S04000466_Ch1",
            "+Ch1 + Ch2 – S04000466_Ch1",
            "formula: Ch1 + [Ch2] − [ S04000466_Ch1 ]",
            "Formule : Ch1+Ch2-S04000466_Ch1",
        ] {
            assert_eq!(terms(text), expected, "{text}");
        }
        assert_eq!(terms("-[a - b]"), [(true, "a - b")]);
    }

    #[test]
    fn what_is_no_formula_is_refused_with_the_place() {
        for (text, rest) in [
            ("", ""),
            ("formula:", ""),
            ("Ch1 +", ""),
            ("Ch1 Ch2", "Ch2"),
            ("Ch1 + - Ch2", "- Ch2"),
            ("Ch1 + [Ch2", "[Ch2"),
            ("Ch1 + []", "[]"),
            ("Ch1 ] Ch2", "] Ch2"),
            ("--Ch1", "-Ch1"),
        ] {
            let expected = Err(Cause::FormulaSyntax(rest.to_owned()));
            assert_eq!(parse_formula(text), expected, "{text}");
        }
        assert_eq!(terms("2*Ch1"), [(false, "2*Ch1")], "an unknown channel");
    }

    #[test]
    fn a_continued_channel_has_an_id_and_a_date() {
        let day = NaiveDate::from_ymd_opt(2026, 3, 1).unwrap();
        for text in [
            "S04_Ch1_M02 until 2026-03-01",
            "S04_Ch1_M02 Until 01/03/2026",
            "continues: S04_Ch1_M02 jusqu'au 01/03/2026",
            "[S04_Ch1_M02] jusqu’au 2026-03-01",
        ] {
            assert_eq!(parse_continues(text), Ok(("S04_Ch1_M02", day)), "{text}");
        }
        assert_eq!(
            parse_continues("a until b until 01/03/2026"),
            Ok(("a until b", day))
        );
        for text in ["S04_Ch1_M02", "until 2026-03-01", "2026-03-01"] {
            let expected = Err(Cause::ContinuesSyntax(text.to_owned()));
            assert_eq!(parse_continues(text), expected, "{text}");
        }
        for date in [
            "2026-13-01",
            "31/02/2026",
            "03/2026",
            "01/03/26",
            "1999-01-01",
            "+12026-03-01",
        ] {
            let expected = Err(Cause::ContinuesDate(date.to_owned()));
            assert_eq!(
                parse_continues(&format!("a until {date}")),
                expected,
                "{date}"
            );
        }
    }
}
