//! Removes the token from text that is shown. See docs/specification.md, section 6.

use url::form_urlencoded::byte_serialize;

/// The spellings of a token to remove: as it is, and percent-encoded if that differs.
pub(super) struct Token(Vec<String>);

impl Token {
    pub(super) fn new(token: &str) -> Self {
        let mut spellings = vec![token.to_owned(), byte_serialize(token.as_bytes()).collect()];
        spellings.dedup();
        spellings.retain(|spelling| !spelling.is_empty());
        Self(spellings)
    }

    /// Returns `text` with each occurrence of the token replaced by `<token>`.
    pub(super) fn redact(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, spelling| {
            text.replace(spelling, "<token>")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_removed_raw_and_percent_encoded() {
        let token = Token::new("aB+cret/tok~1==");
        for spelling in ["aB+cret/tok~1==", "aB%2Bcret%2Ftok%7E1%3D%3D"] {
            assert_eq!(
                token.redact(&format!("é <{spelling}> é")),
                "é <<token>> é",
                "{spelling}"
            );
        }
        let twice = token.redact("aB+cret/tok~1==aB+cret/tok~1==");
        assert_eq!(twice, "<token><token>");
        // A token whose two spellings are the same is not searched in its own replacement.
        assert_eq!(Token::new("token").redact("a token"), "a <token>");
    }

    #[test]
    fn other_text_is_unchanged() {
        let token = Token::new("secret");
        for text in ["", "100 %", "%zz %e9 %C3%A9", "secre", "<p>a&amp;b</p>"] {
            assert_eq!(token.redact(text), text);
        }
        assert_eq!(Token::new("").redact("a"), "a");
    }
}
