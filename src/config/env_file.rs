//! Environment variables and the `.env` file.

use super::env_vars::{self, DefaultValue, EnvVar};
use crate::sanitize::sanitize;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A missing or unusable setting: message with remedy. Exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(pub String);

/// Returns a [`ConfigError`].
pub(crate) fn config_error<T>(message: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(message.into()))
}

/// The folder of the configuration of an installed package.
const PACKAGE_CONFIG: &str = "/etc/powerview";

/// The variables of the process and of `.env`. Those of the process take precedence.
#[derive(Debug, Default, Clone)]
pub(crate) struct Environment {
    variables: HashMap<String, String>,
    file: EnvFile,
}

/// Where `.env` was read from.
#[derive(Debug, Clone)]
enum EnvFile {
    Read(PathBuf),
    /// None of these paths exists.
    Missing(Vec<PathBuf>),
}

impl Default for EnvFile {
    fn default() -> Self {
        Self::Missing(Vec::new())
    }
}

impl Environment {
    /// Reads `env_file`, or the first `.env` that exists (see [`places`]), and the variables of the process.
    ///
    /// # Errors
    /// `env_file` is missing, or the file cannot be read or parsed.
    pub(crate) fn load(env_file: Option<&Path>) -> Result<Self, ConfigError> {
        let file = if let Some(path) = env_file {
            EnvFile::Read(path.to_owned())
        } else {
            let base = std::env::var_os(env_vars::POWERVIEW_BASE.name);
            let base = base.filter(|base| !base.is_empty()).map(PathBuf::from);
            EnvFile::find(places(base, std::env::current_exe().ok().as_deref()))?
        };
        let mut variables = match &file {
            EnvFile::Read(path) => read(path)?,
            EnvFile::Missing(_) => HashMap::new(),
        };
        for (key, value) in std::env::vars_os() {
            if let (Ok(key), false) = (key.into_string(), value.is_empty()) {
                variables.insert(key, value.to_string_lossy().into_owned());
            }
        }
        Ok(Self { variables, file })
    }

    /// The `.env` that was read.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.file {
            EnvFile::Read(path) => Some(path),
            EnvFile::Missing(_) => None,
        }
    }

    /// Returns the trimmed value of a variable that is set and not empty.
    pub(crate) fn get(&self, var: &EnvVar) -> Option<&str> {
        self.get_by_name(var.name)
    }

    fn get_by_name(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(|v| v.trim())
            .filter(|v| !v.is_empty())
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
                "{} is not set; set it in the environment or in {} ({})",
                var.name,
                self.file,
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
        Self {
            variables: pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            file: EnvFile::default(),
        }
    }
}

impl EnvFile {
    /// Finds the first of these files that exists. If the permissions hide whether one does, it is an error, except for
    /// the working directory: a user who was switched to often starts in a folder of another user.
    fn find(places: Vec<PathBuf>) -> Result<Self, ConfigError> {
        for place in &places {
            match place.metadata() {
                Ok(_) => return Ok(Self::Read(place.clone())),
                Err(error) => match error.kind() {
                    ErrorKind::NotFound | ErrorKind::NotADirectory => {}
                    ErrorKind::PermissionDenied if place == Path::new(".env") => {}
                    _ => return cannot_read(place, &error),
                },
            }
        }
        Ok(Self::Missing(places))
    }
}

impl fmt::Display for EnvFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path) => write!(f, "{}", sanitize(path)),
            Self::Missing(places) => {
                f.write_str(".env")?;
                for (at, place) in places.iter().enumerate() {
                    let before = if at == 0 { "; no such file:" } else { "," };
                    write!(f, "{before} {}", sanitize(place))?;
                }
                Ok(())
            }
        }
    }
}

/// The paths of `.env` in the order of the search: in the working directory, in `base`, in `/etc/powerview`, and beside
/// the binary, or in the folder above if the binary is in `bin/`.
fn places(base: Option<PathBuf>, binary: Option<&Path>) -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::new()];
    folders.extend(base);
    folders.push(PathBuf::from(PACKAGE_CONFIG));
    if let Some(folder) = binary.and_then(Path::parent) {
        folders.push(folder.to_owned());
        if let (true, Some(above)) = (folder.ends_with("bin"), folder.parent()) {
            folders.push(above.to_owned());
        }
    }
    let mut places: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let place = folder.join(".env");
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Reads the variables of a file.
pub(crate) fn read(path: &Path) -> Result<HashMap<String, String>, ConfigError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => return cannot_read(path, &error),
    };
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let mut variables = HashMap::new();
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
        if matches!(text, Cow::Owned(_)) && value.contains(char::REPLACEMENT_CHARACTER) {
            return config_error(format!(
                "{}: the value of {key} is not UTF-8; save the file as UTF-8",
                place()
            ));
        }
        variables.insert(key.to_owned(), value);
    }
    Ok(variables)
}

fn cannot_read<T>(path: &Path, error: &std::io::Error) -> Result<T, ConfigError> {
    config_error(format!(
        "cannot read {}: {error}; correct its permissions or name another file with --env-file",
        sanitize(path)
    ))
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

    #[test]
    fn dot_env_is_searched_in_the_working_directory_the_base_etc_and_beside_the_binary() {
        let of = |base: Option<&str>, binary: &str| {
            places(base.map(PathBuf::from), Some(Path::new(binary)))
        };
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            of(None, "/opt/p/powerview"),
            paths(&[".env", "/etc/powerview/.env", "/opt/p/.env"])
        );
        assert_eq!(
            of(Some("/srv/powerview"), "/srv/powerview/bin/powerview"),
            paths(&[
                ".env",
                "/srv/powerview/.env",
                "/etc/powerview/.env",
                "/srv/powerview/bin/.env"
            ])
        );
        assert_eq!(
            of(Some("base"), "/usr/bin/powerview"),
            paths(&[
                ".env",
                "base/.env",
                "/etc/powerview/.env",
                "/usr/bin/.env",
                "/usr/.env"
            ])
        );
    }
}
