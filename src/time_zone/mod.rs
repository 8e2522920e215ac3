//! Time zones: conversion of wall time to instants. See docs/specification.md, section 3.

mod database;
mod offsets;
#[cfg(test)]
pub(crate) mod testing;

pub use database::ZoneDatabase;
pub(crate) use database::{is_zone_name, read_regular, read_zone_file};
pub(crate) use offsets::Offsets;

use crate::sanitize::sanitize;
use chrono::{DateTime, Duration, LocalResult, NaiveDateTime, Offset as _, TimeZone as _};
use chrono_tz::{IANA_TZDB_VERSION, Tz};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use tz::timezone::TransitionRule;

/// A time zone: a name and rules. Cloning it is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeZone(Arc<Zone>);

#[derive(Debug, PartialEq, Eq)]
struct Zone {
    name: String,
    rules: Rules,
    source: RulesSource,
}

#[derive(Debug, PartialEq, Eq)]
enum Rules {
    Offsets(Offsets),
    BuiltIn(Tz),
}

/// Where the rules of a zone come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RulesSource {
    /// The system's time zone database.
    Database,
    /// A zone file elsewhere, such as /etc/localtime.
    File(PathBuf),
    /// The zone's name is a POSIX string, which is the rules. UTC needs none.
    Name,
    /// The built-in tables, with the reason why they are used.
    BuiltIn(String),
}

impl TimeZone {
    pub(crate) fn new(name: impl Into<String>, offsets: Offsets, source: RulesSource) -> Self {
        Self(Arc::new(Zone {
            name: name.into(),
            rules: Rules::Offsets(offsets),
            source,
        }))
    }

    /// UTC. It needs no database.
    pub(crate) fn utc() -> Self {
        Self(Arc::new(Zone {
            name: "UTC".to_owned(),
            rules: Rules::BuiltIn(Tz::UTC),
            source: RulesSource::Name,
        }))
    }

    /// The zone of a POSIX string such as `CET-1CEST,M3.5.0,M10.5.0/3`, which is also its name. Letter case does not
    /// matter, and times of changes are from -167 to 167 hours (RFC 9636, section 3.3.2). As in libc, abbreviations have
    /// three or more characters; unlike in libc, daylight saving time requires a rule.
    pub(crate) fn of_posix(text: &str) -> Option<Self> {
        let rule = text.trim_ascii().to_ascii_uppercase();
        if !rule.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let rules = tz::TimeZone::from_tz_data(&zone_file_of_rule(&rule)).ok()?;
        let kinds = match rules.as_ref().extra_rule().as_ref()? {
            TransitionRule::Fixed(kind) => vec![kind],
            TransitionRule::Alternate(rule) => vec![rule.std(), rule.dst()],
        };
        if kinds
            .iter()
            .any(|kind| kind.time_zone_designation().len() < 3)
        {
            return None;
        }
        let offsets = Offsets::of_rules(&rules)?;
        Some(Self::new(sanitize(text), offsets, RulesSource::Name))
    }

    /// A zone with built-in rules; `reason` says why they are used.
    pub(crate) fn with_built_in_rules(zone: Tz, reason: impl Into<String>) -> Self {
        Self(Arc::new(Zone {
            name: zone.name().to_owned(),
            rules: Rules::BuiltIn(zone),
            source: RulesSource::BuiltIn(reason.into()),
        }))
    }

    /// The IANA name; for a zone without one, its POSIX string or file.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the built-in rules are used because the system has none.
    pub(crate) fn has_built_in_rules(&self) -> bool {
        matches!(self.0.source, RulesSource::BuiltIn(_))
    }

    /// Converts a wall time to instants in seconds since 1970: one, or two in the night of the autumn change (earlier
    /// first). A wall time that the spring change skips is read with the offset in force before it.
    pub fn instants(&self, wall: NaiveDateTime) -> (i64, Option<i64>) {
        match &self.0.rules {
            Rules::Offsets(offsets) => offsets.instants(wall.and_utc().timestamp()),
            Rules::BuiltIn(zone) => built_in_instants(*zone, wall),
        }
    }

    /// The difference between the local time and UTC at an instant, in seconds; positive east of Greenwich.
    pub(crate) fn offset_at(&self, instant: i64) -> i32 {
        match &self.0.rules {
            Rules::Offsets(offsets) => offsets.at(instant),
            Rules::BuiltIn(zone) => {
                let time = DateTime::from_timestamp(instant, 0).unwrap_or_default();
                zone.offset_from_utc_datetime(&time.naive_utc())
                    .fix()
                    .local_minus_utc()
            }
        }
    }

    /// Describes where the rules come from, for people; `database` is the one in which the zone was looked up.
    pub fn describe_rules(&self, database: &ZoneDatabase) -> String {
        let named_zones = || format!("rules of zones named in files from {}", database.describe());
        match &self.0.source {
            RulesSource::Database => format!("rules from {}", database.describe()),
            RulesSource::File(path) => {
                format!("rules from {}; {}", sanitize(path), named_zones())
            }
            RulesSource::Name => named_zones(),
            RulesSource::BuiltIn(reason) => {
                format!("built-in rules ({IANA_TZDB_VERSION}), because {reason}")
            }
        }
    }
}

impl fmt::Display for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

/// A zone file with nothing but a rule. The library reads times of more than a day in a rule only from such a file.
fn zone_file_of_rule(rule: &str) -> Vec<u8> {
    // A header with its counts, of which only those of types and characters are not 0, and the type UTC.
    let mut block = b"TZif3".to_vec();
    block.extend([0; 15 + 4 * 4]);
    for count in [1_u32, 4] {
        block.extend(count.to_be_bytes());
    }
    block.extend(b"\0\0\0\0\0\0UTC\0");
    // The same block with 32-bit and with 64-bit times.
    [&block, &block, b"\n".as_slice(), rule.as_bytes(), b"\n"].concat()
}

/// [`TimeZone::instants`] for the built-in tables.
fn built_in_instants(zone: Tz, wall: NaiveDateTime) -> (i64, Option<i64>) {
    match zone.from_local_datetime(&wall) {
        LocalResult::Single(only) => (only.timestamp(), None),
        LocalResult::Ambiguous(a, b) => {
            let (a, b) = (a.timestamp(), b.timestamp());
            (a.min(b), Some(a.max(b)))
        }
        LocalResult::None => {
            // Gaps are at most one day long (Samoa, 30 December 2011) and start at a quarter of an hour.
            let before = (1..=100)
                .map(|quarters| wall - Duration::minutes(15 * quarters))
                .find_map(|earlier| {
                    zone.from_local_datetime(&earlier)
                        .latest()
                        .map(|at| (at, earlier))
                });
            match before {
                Some((at, earlier)) => (at.timestamp() + (wall - earlier).num_seconds(), None),
                None => (wall.and_utc().timestamp(), None),
            }
        }
    }
}

/// Where the time zone of a file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneSource {
    /// The file's header: UTC, or an IANA name.
    Header,
    /// The POSIX string in the file's header.
    HeaderPosix,
    /// `--timezone` or `TSV_TIMEZONE`.
    Setting,
    /// The machine.
    Machine,
}

impl ZoneSource {
    /// The value of the report key `time_zone_source`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::HeaderPosix => "header_posix",
            Self::Setting => "setting",
            Self::Machine => "machine",
        }
    }
}

/// The time zones of logger files.
#[derive(Debug, Clone)]
pub struct FileZones {
    /// The zone of files that name none.
    pub default: TimeZone,
    /// Where the default comes from.
    pub default_source: ZoneSource,
    /// The database for zones named in files.
    pub database: Arc<ZoneDatabase>,
}

impl FileZones {
    /// Creates the zones from a default, its source and a database.
    pub fn new(default: TimeZone, default_source: ZoneSource, database: Arc<ZoneDatabase>) -> Self {
        Self {
            default,
            default_source,
            database,
        }
    }

    /// A default zone with built-in rules and no database, for tests and benchmarks.
    pub fn built_in(default: Tz) -> Self {
        Self::new(
            TimeZone::with_built_in_rules(default, "no database is configured"),
            ZoneSource::Setting,
            Arc::new(ZoneDatabase::new("/nonexistent")),
        )
    }
}
