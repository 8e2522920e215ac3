//! The token, which must never show, however an answer spells it: escaped as in an address, in JSON or in HTML, in capitals,
//! without the `=` at its end. Source: docs/specification.md, section 6.

use std::ops::Range;

/// The part of a token that gives it away, in lower case.
pub(super) struct Token(Vec<char>);

impl Token {
    /// Of the token itself. What follows its last other character are `=`, and of no use alone.
    pub(super) fn new(token: &str) -> Self {
        let stem = token.trim_end_matches('=');
        let stem = if stem.is_empty() { token } else { stem };
        Self(stem.to_ascii_lowercase().chars().collect())
    }

    /// `text` with `<token>` wherever the token stands in it.
    pub(super) fn taken_out_of(&self, text: &str) -> String {
        let letters = letters(text);
        let mut redact = String::with_capacity(text.len());
        let mut at = 0;
        while at < letters.len() {
            let here = &letters[at..];
            let found = here.len() >= self.0.len()
                && self.0.iter().zip(here).all(|(a, (b, _))| a == b)
                && !self.0.is_empty();
            if found {
                redact.push_str("<token>");
                at += self.0.len();
            } else {
                redact.push_str(&text[here[0].1.clone()]);
                at += 1;
            }
        }
        redact
    }
}

/// The characters that a text means, in lower case, and where each of them stands.
fn letters(text: &str) -> Vec<(char, Range<usize>)> {
    let mut letters = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let (letter, length) = escaped(&text[at..]).unwrap_or((first, first.len_utf8()));
        letters.push((letter.to_ascii_lowercase(), at..at + length));
        at += length;
    }
    letters
}

/// The character that an escape at the beginning of `text` stands for, and the escape's length in bytes.
fn escaped(text: &str) -> Option<(char, usize)> {
    let hex = |digits: &str| char::from_u32(u32::from_str_radix(digits, 16).ok()?);
    if text.starts_with('%') {
        return Some((hex(text.get(1..3)?).filter(char::is_ascii)?, 3));
    }
    if let Some(rest) = text.strip_prefix('\\') {
        return match rest.chars().next()? {
            'u' => Some((hex(text.get(2..6)?)?, 6)),
            same @ ('/' | '"' | '\\') => Some((same, 2)),
            _ => None,
        };
    }
    let entity = text.strip_prefix('&')?;
    // The longest are numbers with a few leading zeros.
    let (name, _) = entity.get(..12).unwrap_or(entity).split_once(';')?;
    let letter = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => match name.strip_prefix('#')?.strip_prefix(['x', 'X']) {
            Some(digits) => hex(digits)?,
            None => char::from_u32(name.strip_prefix('#')?.parse().ok()?)?,
        },
    };
    Some((letter, name.len() + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_known_however_it_is_spelled() {
        let token = Token::new("aB+cret/tok~1==");
        for spelling in [
            "aB+cret/tok~1==",
            "aB+cret/tok~1%3D%3D",
            "AB+CRET/TOK~1&#61;&#61;",
            "aB%2Bcret%2Ftok%7E1%3D%3D",
            "aB%2Bcret/tok~1",
            "ab%2bcret%2ftok~1",
            r"aB\u002bcret\/tok~1\u003d",
            "aB+cret&#x2F;tok~1",
            "aB&#43;cret&#0047;tok&#126;1",
        ] {
            let found = token.taken_out_of(&format!("é <{spelling}> é"));
            assert!(
                found.starts_with("é <<token>") && !found.to_lowercase().contains("cret"),
                "{spelling}: {found}"
            );
        }
        let twice = token.taken_out_of("aB+cret/tok~1aB+cret/tok~1");
        assert_eq!(twice, "<token><token>");
    }

    #[test]
    fn any_other_text_stays_as_it_is() {
        let token = Token::new("secret");
        for text in [
            "",
            "100 %",
            "%zz %e9 %C3%A9 \\ \\u12 \\ud800 &; &#; &#x110000; &nbsp; &amp",
            "secre",
            "é%€&é;\\é",
            "<p>a&amp;b</p>",
        ] {
            assert_eq!(token.taken_out_of(text), text);
        }
        assert_eq!(Token::new("").taken_out_of("a"), "a");
    }
}
