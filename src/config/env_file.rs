//! Environment variables and the `.env` file.

use super::env_vars::{DefaultValue, EnvVar};
use crate::sanitize::sanitize;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// A missing or unusable setting: message with remedy. Exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(pub String);

/// Returns a [`ConfigError`].
pub(crate) fn config_error<T>(message: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(message.into()))
}

/// The variables of the process and of `.env`. Those of the process take precedence.
#[derive(Debug, Default, Clone)]
pub(crate) struct Environment(HashMap<String, String>);

impl Environment {
    /// Reads `env_file`, or `.env` in the working directory if it exists, and the variables of the process.
    ///
    /// # Errors
    /// `env_file` is missing, or the file cannot be read or parsed.
    pub(crate) fn load(env_file: Option<&Path>) -> Result<Self, ConfigError> {
        let default = Path::new(".env");
        let path = env_file.unwrap_or(default);
        let mut variables = HashMap::new();
        match std::fs::read(path) {
            Ok(text) => {
                let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
                for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
                    let place = || format!("{}, line {}", sanitize(path), at + 1);
                    // Comments may be in any encoding. A value must be UTF-8, because a lossy conversion would change it.
                    let text = String::from_utf8_lossy(line);
                    let entry = parse_line(&text).map_err(|NotAnEntry| {
                        // The line is not shown, because it may contain a secret.
                        ConfigError(format!(
                            "{}: not KEY=VALUE; put values with spaces, #, $ or \\ in single quotes",
                            place()
                        ))
                    })?;
                    let Some((key, value)) = entry else { continue };
                    if matches!(text, Cow::Owned(_)) && value.contains(char::REPLACEMENT_CHARACTER)
                    {
                        return config_error(format!(
                            "{}: the value of {key} is not UTF-8; save the file as UTF-8",
                            place()
                        ));
                    }
                    variables.insert(key.to_owned(), value);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && env_file.is_none() => {}
            Err(error) => {
                return config_error(format!(
                    "cannot read {}: {error}; correct its permissions or name another file with --env-file",
                    sanitize(path)
                ));
            }
        }
        for (key, value) in std::env::vars_os() {
            if let (Ok(key), false) = (key.into_string(), value.is_empty()) {
                variables.insert(key, value.to_string_lossy().into_owned());
            }
        }
        Ok(Self(variables))
    }

    /// Returns the trimmed value of a variable that is set and not empty.
    pub(crate) fn get(&self, var: &EnvVar) -> Option<&str> {
        self.get_by_name(var.name)
    }

    fn get_by_name(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|v| v.trim()).filter(|v| !v.is_empty())
    }

    /// Returns the value of a variable or its default.
    ///
    /// # Errors
    /// The variable is not set and its table entry has no default value.
    pub(crate) fn value(&self, var: &EnvVar) -> Result<&str, ConfigError> {
        match (self.get(var), &var.default) {
            (Some(value), _) => Ok(value),
            (None, DefaultValue::Value(default)) => Ok(default),
            (None, _) => config_error(format!(
                "{} is not set; set it in the environment or in .env ({})",
                var.name,
                var.description()
            )),
        }
    }

    /// Parses the value of a variable or its default.
    ///
    /// # Errors
    /// As [`Environment::value`], or the value is not valid.
    pub(crate) fn parse<T>(
        &self,
        var: &EnvVar,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let value = self.value(var)?;
        parse(value).map_err(|reason| var.invalid(value, &reason))
    }

    /// Creates an environment from the given variables.
    #[cfg(test)]
    pub(crate) fn of<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }
}

/// A line that is neither empty, a comment nor an assignment.
#[derive(Debug)]
struct NotAnEntry;

/// Parses a line of `.env` exactly as `read_env_file` of `on-upload.sh` does, so that hook and binary use the same values.
/// Returns `None` for a comment or an empty line.
///
/// Single quotes are literal. Double quotes support `\"`, `\\`, `\$` and `\n`. Unquoted values are literal and end before
/// ` #`. Nothing is expanded. In contrast to the hook, which skips them, lines that are not valid are errors.
fn parse_line(line: &str) -> Result<Option<(&str, String)>, NotAnEntry> {
    const BLANKS: [char; 2] = [' ', '\t'];
    let line = line.strip_suffix('\r').unwrap_or(line).trim_matches(BLANKS);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (key, value) = line.split_once('=').ok_or(NotAnEntry)?;
    let key = match key.strip_prefix("export") {
        Some(exported) if exported.starts_with(BLANKS) => exported,
        _ => key,
    }
    .trim_matches(BLANKS);
    let is_in_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if key.is_empty()
        || key.starts_with(|c: char| c.is_ascii_digit())
        || !key.chars().all(is_in_key)
    {
        return Err(NotAnEntry);
    }
    let value = value.trim_start_matches(BLANKS);
    let (value, rest) = match value.as_bytes().first() {
        Some(b'\'') => {
            let (value, rest) = value[1..].split_once('\'').ok_or(NotAnEntry)?;
            (value.to_owned(), rest)
        }
        Some(b'"') => unescape(&value[1..]).ok_or(NotAnEntry)?,
        _ => {
            let is_comment = |(at, _): &(usize, &str)| *at == 0 || value[..*at].ends_with(BLANKS);
            let end = value.match_indices('#').find(is_comment);
            let value = &value[..end.map_or(value.len(), |(at, _)| at)];
            let value = value.trim_end_matches(BLANKS);
            if value.contains(BLANKS) {
                return Err(NotAnEntry);
            }
            (value.to_owned(), "")
        }
    };
    // Only a comment, after a blank, may follow the closing quote.
    let comment = rest.trim_start_matches(BLANKS);
    if comment.is_empty() || (comment.starts_with('#') && comment.len() < rest.len()) {
        Ok(Some((key, value)))
    } else {
        Err(NotAnEntry)
    }
}

/// Reads a value in double quotes, without the first one. Returns the value and what follows it, or `None` if the quotes
/// are not closed.
fn unescape(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => match chars.next()? {
                'n' => value.push('\n'),
                c @ ('"' | '\\' | '$') => value.push(c),
                c => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_line_is_named_by_its_number_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(
            &path,
            "\u{feff}A=1\n# a comment\nINFLUXDB_ORG=my secret org\nB=2\n",
        )
        .unwrap();
        let message = Environment::load(Some(&path)).unwrap_err().to_string();
        assert!(
            message.contains("line 3") && !message.contains("secret"),
            "{message}"
        );
        std::fs::write(&path, "\u{feff}A_VARIABLE_OF_THIS_TEST='a b'\n").unwrap();
        let env = Environment::load(Some(&path)).unwrap();
        assert_eq!(env.get_by_name("A_VARIABLE_OF_THIS_TEST"), Some("a b"));
    }

    #[test]
    fn a_comment_may_be_in_any_encoding_but_a_value_must_be_utf8() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        let load = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            Environment::load(Some(&path))
        };
        let env =
            load(b"# soci\xe9t\xe9\nA_TEST=1 # \xe9t\xe9\n  # \xff\nB_TEST='\xc3\xa9'\n").unwrap();
        assert_eq!(
            (env.get_by_name("A_TEST"), env.get_by_name("B_TEST")),
            (Some("1"), Some("é"))
        );
        let message = load(b"# \xe9\nA_TEST=1\nexport B_TEST=secret\xe9\n")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("line 3") && message.contains("B_TEST") && !message.contains("secret"),
            "{message}"
        );
        // Such a comment counts as a line too.
        let message = load(b"# \xe9\nnot a line\n").unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
    }
}
