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
                let bytes = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
                // Comments may be in any encoding. A value must be UTF-8, because a lossy conversion would change it.
                let text = String::from_utf8_lossy(bytes);
                let is_utf8 = matches!(text, Cow::Borrowed(_));
                for entry in dotenvy::from_read_iter(text.as_bytes()) {
                    let (key, value) = entry.map_err(|error| invalid_line(path, &text, &error))?;
                    if !is_utf8 && value.contains(char::REPLACEMENT_CHARACTER) {
                        return Err(non_utf8_value(path, bytes, &key));
                    }
                    variables.insert(key, value);
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

/// Names the line but not its content, which may be a secret.
fn invalid_line(path: &Path, text: &str, error: &dotenvy::Error) -> ConfigError {
    let location = match error {
        dotenvy::Error::LineParse(line, _) => {
            // The parser returns the line, or the part after its `=`.
            let line = line.lines().next().unwrap_or_default().trim();
            text.lines()
                .position(|other| !line.is_empty() && other.trim().ends_with(line))
                .map_or_else(|| "a line".to_owned(), |at| format!("line {}", at + 1))
        }
        _ => "a line".to_owned(),
    };
    ConfigError(format!(
        "{}: {location} is not KEY=VALUE; put values with spaces, #, $ or \\ in single quotes",
        sanitize(path)
    ))
}

/// Names the line of a value that is not UTF-8.
fn non_utf8_value(path: &Path, bytes: &[u8], key: &str) -> ConfigError {
    let of_key = |line: &[u8]| {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_start();
        text.strip_prefix("export")
            .map_or(text, str::trim_start)
            .starts_with(key)
            && std::str::from_utf8(line).is_err()
    };
    let line = bytes.split(|byte| *byte == b'\n').position(of_key);
    ConfigError(format!(
        "{}{}: the value of {key} is not UTF-8; save the file as UTF-8",
        sanitize(path),
        line.map_or_else(String::new, |at| format!(", line {}", at + 1))
    ))
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
