//! The time zone database of the system: a folder of zone files, one for each zone.
//!
//! Governments change the rules, so the system's database, which is updated, decides over the tables that are built into this
//! program. The tables are used where the database is missing or lacks the zone, and the log says so.

use super::offsets::Offsets;
use super::{RulesSource, TimeZone};
use crate::config::Environment;
use crate::sanitize::sanitize;
use chrono_tz::{IANA_TZDB_VERSION, Tz};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Where libc looks unless `TZDIR` is set.
const DEFAULT_DIR: &str = "/usr/share/zoneinfo";

/// Size limit of a zone file in bytes; real ones have a few KiB.
const MAX_FILE: u64 = 1 << 20;

/// How many zones are kept; IANA has some 600.
const MAX_ZONES: usize = 1_024;

/// The folder of zone files, and the zones that were read from it.
#[derive(Debug)]
pub struct ZoneDatabase {
    dir: PathBuf,
    zones: Mutex<HashMap<String, TimeZone>>,
    has_warned: AtomicBool,
}

impl ZoneDatabase {
    /// The database in a folder. Nothing is read until a zone is asked for.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            zones: Mutex::default(),
            has_warned: AtomicBool::new(false),
        }
    }

    /// The database that libc uses: in `TZDIR` if that is set, else in /usr/share/zoneinfo.
    pub fn of_system(env: &Environment) -> Self {
        Self::new(env.get("TZDIR").unwrap_or(DEFAULT_DIR))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The zone of an IANA name, with the system's rules if it has them, else with the built-in ones. None if neither knows
    /// the name. The name may come from an uploaded file.
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

    fn load(&self, name: &str) -> Option<TimeZone> {
        let reason = match read_zone_file(&self.dir.join(name)) {
            Ok(file) => {
                let zone = TimeZone::new(name, file.offsets, RulesSource::Database);
                return Some(zone);
            }
            Err(error) => self.reason(name, &error),
        };
        let zone: Tz = name.parse().ok()?;
        let words = format!(
            "using the built-in rules ({IANA_TZDB_VERSION}) of time zone {name}, which may be out of date: {reason}"
        );
        // One line in each run: the cause is usually the same for all zones.
        if self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::debug!("{words}");
        } else {
            tracing::warn!("{words}");
        }
        Some(TimeZone::with_built_in_rules(zone, reason))
    }

    /// Why the system's rules of a zone cannot be used, and what to do about it.
    fn reason(&self, name: &str, error: &ZoneFileError) -> String {
        let dir = sanitize(&self.dir);
        match error {
            ZoneFileError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.dir.is_dir() {
                    format!("{dir} has no zone {name}; update tzdata")
                } else {
                    format!("there is no time zone database at {dir}; install tzdata")
                }
            }
            error => format!("{dir}/{name} {error}; reinstall tzdata or correct its rights"),
        }
    }

    /// What the zones that files name are read from, with the version, for a person.
    pub fn describe(&self) -> String {
        if self.dir.is_dir() {
            let version = self.version();
            let version = version.as_deref().unwrap_or("version unknown");
            format!("{} ({version})", sanitize(&self.dir))
        } else {
            format!(
                "the built-in rules ({IANA_TZDB_VERSION}), there is no time zone database at {}; install tzdata",
                sanitize(&self.dir)
            )
        }
    }

    /// The release such as `2026a`, as one of the files beside the zones tells it.
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

/// Whether a name can be that of an IANA zone: up to three parts that begin with a capital letter. That leaves out everything
/// else in the folder (`posix/`, `right/`, `localtime`, `tzdata.zi`), and no such name leads out of the folder.
pub fn is_zone_name(name: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_uppercase())
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
    };
    // Factory stands for a zone that nobody has set.
    name.len() <= 64
        && name.split('/').count() <= 3
        && name.split('/').all(is_part)
        && name != "Factory"
}

/// What was read from a zone file.
#[derive(Debug)]
pub struct ZoneFile {
    /// Its offsets.
    pub offsets: Offsets,
    /// The rule for later years, such as `CET-1CEST,M3.5.0,M10.5.0/3`, if there is one.
    pub rule: Option<String>,
}

/// Why a file cannot be used as a zone file.
#[derive(Debug, thiserror::Error)]
pub enum ZoneFileError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is damaged or something else.
    #[error("is not a usable zone file: {0}")]
    Format(String),
}

/// Reads a zone file. A device or a pipe is not opened.
pub fn read_zone_file(path: &Path) -> Result<ZoneFile, ZoneFileError> {
    let bytes = read_regular(path)?;
    let rules =
        tz::TimeZone::from_tz_data(&bytes).map_err(|e| ZoneFileError::Format(e.to_string()))?;
    // Debian's files below `right/` end where the table of leap seconds expires: later on summer time would never end.
    if !rules.as_ref().leap_seconds().is_empty() && rules.as_ref().extra_rule().is_none() {
        let words = "it has leap seconds and no rule for later years";
        return Err(ZoneFileError::Format(words.to_owned()));
    }
    let offsets = Offsets::of_rules(&rules)
        .ok_or_else(|| ZoneFileError::Format("its offsets are impossible".to_owned()))?;
    // The rule is the last line; version 1 has none.
    let rule = rules.as_ref().extra_rule().and_then(|_| {
        let text = std::str::from_utf8(bytes.strip_suffix(b"\n")?.rsplit(|b| *b == b'\n').next()?);
        Some(sanitize(text.ok()?))
    });
    Ok(ZoneFile { offsets, rule })
}

/// The content of a regular file, up to a limit that no file here reaches.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

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
    fn every_name_of_iana_is_one_and_nothing_else_is() {
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
        // What was not there the first time is the fallback for the rest of the run.
        let tokyo = database.zone("Asia/Tokyo").unwrap();
        assert!(tokyo.has_built_in_rules());
        ZoneFile::of_rule("JST-9").write(dir.path(), "Asia/Tokyo");
        assert_eq!(database.zone("Asia/Tokyo"), Some(tokyo));
    }

    #[test]
    fn a_zone_newer_than_the_tables_is_known_by_its_file() {
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
