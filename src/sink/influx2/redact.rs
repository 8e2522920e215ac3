//! Removes the token from text that is shown. Finds it percent-encoded, escaped as in JSON or HTML, in any case, and
//! without its trailing `=`. See docs/specification.md, section 6.

use std::ops::Range;

/// A token to remove: its characters in lower case, without trailing `=`.
pub(super) struct Token(Vec<char>);

impl Token {
    /// Prepares a token. Its trailing `=` is padding, which a response may leave out or spell in another way.
    pub(super) fn new(token: &str) -> Self {
        let stem = token.trim_end_matches('=');
        let stem = if stem.is_empty() { token } else { stem };
        Self(stem.to_ascii_lowercase().chars().collect())
    }

    /// Returns `text` with each occurrence of the token replaced by `<token>`.
    pub(super) fn redact(&self, text: &str) -> String {
        let letters = decode(text);
        let mut redacted = String::with_capacity(text.len());
        let mut at = 0;
        while at < letters.len() {
            let here = &letters[at..];
            let found = here.len() >= self.0.len()
                && self.0.iter().zip(here).all(|(a, (b, _))| a == b)
                && !self.0.is_empty();
            if found {
                redacted.push_str("<token>");
                at += self.0.len();
            } else {
                redacted.push_str(&text[here[0].1.clone()]);
                at += 1;
            }
        }
        redacted
    }
}

/// Decodes the escapes of a text. Returns each character in lower case with its byte range in the text.
fn decode(text: &str) -> Vec<(char, Range<usize>)> {
    let mut letters = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let (letter, length) = decode_escape(&text[at..]).unwrap_or((first, first.len_utf8()));
        letters.push((letter.to_ascii_lowercase(), at..at + length));
        at += length;
    }
    letters
}

/// Decodes an escape at the start of `text`. Returns the character and the length of the escape in bytes.
fn decode_escape(text: &str) -> Option<(char, usize)> {
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
    // The longest entities are numbers with leading zeros.
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
    fn the_token_is_removed_in_every_spelling() {
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
            let found = token.redact(&format!("é <{spelling}> é"));
            assert!(
                found.starts_with("é <<token>") && !found.to_lowercase().contains("cret"),
                "{spelling}: {found}"
            );
        }
        let twice = token.redact("aB+cret/tok~1aB+cret/tok~1");
        assert_eq!(twice, "<token><token>");
    }

    #[test]
    fn other_text_is_unchanged() {
        let token = Token::new("secret");
        for text in [
            "",
            "100 %",
            "%zz %e9 %C3%A9 \\ \\u12 \\ud800 &; &#; &#x110000; &nbsp; &amp",
            "secre",
            "é%€&é;\\é",
            "<p>a&amp;b</p>",
        ] {
            assert_eq!(token.redact(text), text);
        }
        assert_eq!(Token::new("").redact("a"), "a");
    }
}
