//! The time zone database of the system: a folder with one file per zone.
//!
//! The database takes precedence over the tables that are built into this program, because governments change the rules
//! and the system is updated. The tables are used, with a warning, if the database is missing or lacks the zone.

use super::offsets::Offsets;
use super::{RulesSource, TimeZone};
use crate::sanitize::sanitize;
use chrono_tz::{IANA_TZDB_VERSION, TZ_VARIANTS, Tz};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Maximum size of a zone file in bytes; real ones have a few KiB.
const MAX_FILE: u64 = 1 << 20;

/// Maximum number of cached zones; IANA has about 600.
const MAX_ZONES: usize = 1_024;

/// A folder of zone files and a cache of the zones read from it.
#[derive(Debug)]
pub struct ZoneDatabase {
    dir: PathBuf,
    zones: Mutex<HashMap<String, TimeZone>>,
    has_warned: AtomicBool,
}

impl ZoneDatabase {
    /// Creates a database on a folder. Zones are read when they are looked up.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            zones: Mutex::default(),
            has_warned: AtomicBool::new(false),
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Looks up an IANA name, first in the folder, then in the built-in tables. The name is untrusted: it may come from
    /// an uploaded file.
    pub fn zone(&self, name: &str) -> Option<TimeZone> {
        if !is_zone_name(name) {
            return None;
        }
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(zone) = zones.get(name) {
            return Some(zone.clone());
        }
        let zone = self.load(name)?;
        if zones.len() < MAX_ZONES {
            zones.insert(name.to_owned(), zone.clone());
        }
        Some(zone)
    }

    /// Looks up an IANA name in any letter case.
    pub(crate) fn zone_in_any_case(&self, name: &str) -> Option<TimeZone> {
        let canonical = || {
            let zone = TZ_VARIANTS
                .iter()
                .find(|zone| zone.name().eq_ignore_ascii_case(name))?;
            self.zone(zone.name())
        };
        self.zone(name).or_else(canonical)
    }

    /// Reads a zone without using the cache.
    fn load(&self, name: &str) -> Option<TimeZone> {
        let reason = match read_zone_file(&self.dir.join(name)) {
            Ok(file) => {
                let zone = TimeZone::new(name, file.offsets, RulesSource::Database);
                return Some(zone);
            }
            Err(error) => self.reason(name, &error),
        };
        let zone: Tz = name.parse().ok()?;
        let message = format!(
            "using the built-in rules ({IANA_TZDB_VERSION}) of time zone {name}, which may be out of date: {reason}"
        );
        // Warn once per run, because the cause is usually the same for all zones.
        if self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::debug!("{message}");
        } else {
            tracing::warn!("{message}");
        }
        Some(TimeZone::with_built_in_rules(zone, reason))
    }

    /// Why the system's rules of a zone cannot be used, with a remedy.
    fn reason(&self, name: &str, error: &ZoneFileError) -> String {
        let dir = sanitize(&self.dir);
        match error {
            ZoneFileError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.dir.is_dir() {
                    format!("{dir} has no zone {name}; update tzdata")
                } else {
                    format!("no time zone database at {dir}; install tzdata")
                }
            }
            error => format!("{dir}/{name} {error}; reinstall tzdata or correct the permissions"),
        }
    }

    /// Describes the source of the rules and its version, for people.
    pub fn describe(&self) -> String {
        if self.dir.is_dir() {
            let version = self.version();
            let version = version.as_deref().unwrap_or("version unknown");
            format!("{} ({version})", sanitize(&self.dir))
        } else {
            format!(
                "the built-in tables ({IANA_TZDB_VERSION}), because there is no time zone database at {}; install tzdata",
                sanitize(&self.dir)
            )
        }
    }

    /// The release, such as `2026a`, from one of the files beside the zones.
    fn version(&self) -> Option<String> {
        let first_line = |file: &str| {
            let mut bytes = Vec::new();
            open_regular(&self.dir.join(file))
                .ok()?
                .take(64)
                .read_to_end(&mut bytes)
                .ok()?;
            let line = String::from_utf8_lossy(&bytes).lines().next()?.to_owned();
            Some(line)
        };
        let version = first_line("tzdata.zi")
            .and_then(|line| Some(line.strip_prefix("# version ")?.to_owned()))
            .or_else(|| first_line("+VERSION"))?;
        Some(sanitize(version.trim())).filter(|version| !version.is_empty())
    }
}

/// Whether a name has the form of an IANA zone name: up to three parts that start with a capital letter. This excludes
/// the other files of the folder (`posix/`, `right/`, `localtime`, `tzdata.zi`) and paths that leave the folder.
pub(crate) fn is_zone_name(name: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_uppercase())
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
    };
    // `Factory` is the placeholder for an unset zone.
    name.len() <= 64
        && name.split('/').count() <= 3
        && name.split('/').all(is_part)
        && name != "Factory"
}

/// The content of a zone file.
#[derive(Debug)]
pub(crate) struct ZoneFile {
    /// The offsets from UTC.
    pub offsets: Offsets,
    /// The rule for later years, such as `CET-1CEST,M3.5.0,M10.5.0/3`, if there is one.
    pub rule: Option<String>,
}

/// Why a file cannot be used as a zone file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ZoneFileError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file is damaged or not a zone file.
    #[error("is not a usable zone file: {0}")]
    Format(String),
}

/// Reads a zone file. Only regular files are opened.
pub(crate) fn read_zone_file(path: &Path) -> Result<ZoneFile, ZoneFileError> {
    let bytes = read_regular(path)?;
    let rules =
        tz::TimeZone::from_tz_data(&bytes).map_err(|e| ZoneFileError::Format(e.to_string()))?;
    // Debian's files below `right/` end where the table of leap seconds expires; after that, daylight saving time would
    // never change.
    if !rules.as_ref().leap_seconds().is_empty() && rules.as_ref().extra_rule().is_none() {
        let message = "it has leap seconds and no rule for later years";
        return Err(ZoneFileError::Format(message.to_owned()));
    }
    let offsets = Offsets::of_rules(&rules)
        .ok_or_else(|| ZoneFileError::Format("its offsets are out of range".to_owned()))?;
    // The rule is the last line. Version 1 of the format has none.
    let rule = rules.as_ref().extra_rule().and_then(|_| {
        let text = std::str::from_utf8(bytes.strip_suffix(b"\n")?.rsplit(|b| *b == b'\n').next()?);
        Some(sanitize(text.ok()?))
    });
    Ok(ZoneFile { offsets, rule })
}

/// Reads a regular file, up to `MAX_FILE` bytes.
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a regular file; a device or a pipe could block.
fn open_regular(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    File::open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time_zone::testing::{PARIS, ZoneFile};

    #[test]
    fn iana_names_are_accepted_and_all_others_refused() {
        for zone in chrono_tz::TZ_VARIANTS {
            assert!(is_zone_name(zone.name()), "{zone}");
        }
        for name in [
            "",
            "/",
            ".",
            "..",
            "Europe/..",
            "Europe/../Europe/Paris",
            "/Europe/Paris",
            "Europe/Paris/",
            "Europe//Paris",
            "Europe/Paris\0",
            "Europe/Paris ",
            "Europe/Par\u{ef}s",
            "A/B/C/D",
            "posix/Europe/Paris",
            "right/Europe/Paris",
            "localtime",
            "tzdata.zi",
            "+VERSION",
            "Factory",
        ] {
            assert!(!is_zone_name(name), "{name}");
        }
        assert!(!is_zone_name(&"A".repeat(65)));
    }

    #[test]
    fn a_zone_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        ZoneFile::of_rule(PARIS).write(dir.path(), "Europe/Paris");
        let database = ZoneDatabase::new(dir.path());
        let zone = database.zone("Europe/Paris").unwrap();
        assert!(!zone.has_built_in_rules());
        std::fs::remove_dir_all(dir.path().join("Europe")).unwrap();
        assert_eq!(database.zone("Europe/Paris"), Some(zone));
        // A zone that was missing at the first lookup keeps its built-in rules for the rest of the run.
        let tokyo = database.zone("Asia/Tokyo").unwrap();
        assert!(tokyo.has_built_in_rules());
        ZoneFile::of_rule("JST-9").write(dir.path(), "Asia/Tokyo");
        assert_eq!(database.zone("Asia/Tokyo"), Some(tokyo));
    }

    #[test]
    fn a_zone_newer_than_the_tables_is_found_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let database = ZoneDatabase::new(dir.path());
        assert_eq!(database.zone("Europe/Atlantis"), None);
        ZoneFile::of_rule("XYZ-3").write(dir.path(), "Europe/Atlantis");
        assert_eq!(
            database.zone("Europe/Atlantis").unwrap().name(),
            "Europe/Atlantis"
        );
    }

    #[test]
    fn the_rule_of_a_file_is_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        ZoneFile::of_rule(PARIS).write(dir.path(), "Zone");
        let file = read_zone_file(&dir.path().join("Zone")).unwrap();
        assert_eq!(file.rule.as_deref(), Some(PARIS));
    }
}
