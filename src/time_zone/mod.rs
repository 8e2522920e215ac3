//! Time zones: a name and the rules by which wall time becomes an instant. Source: docs/specification.md, section 3.

mod database;
mod offsets;
#[cfg(test)]
pub(crate) mod testing;

pub use database::ZoneDatabase;
pub(crate) use database::{is_zone_name, read_regular, read_zone_file};
pub(crate) use offsets::Offsets;

use crate::sanitize::sanitize;
use chrono::{Duration, LocalResult, NaiveDateTime, TimeZone as _};
use chrono_tz::{IANA_TZDB_VERSION, Tz};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A time zone. Cloning it is cheap.
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
    /// The tables of this program, and why.
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

    /// UTC, which no database can change.
    pub(crate) fn utc() -> Self {
        Self(Arc::new(Zone {
            name: "UTC".to_owned(),
            rules: Rules::BuiltIn(Tz::UTC),
            source: RulesSource::Name,
        }))
    }

    /// The zone of a POSIX string such as `CET-1CEST,M3.5.0,M10.5.0/3`, which is its name too. As in libc, abbreviations have
    /// three characters or more; unlike there, daylight saving needs its rule.
    pub(crate) fn of_posix(text: &str) -> Option<Self> {
        // The library would look for a file of that name.
        let rules = tz::TimeZoneSettings::new(&[], |_| Err("no file".into()))
            .parse_posix_tz(text)
            .ok()?;
        let kinds = rules.as_ref().local_time_types();
        if kinds
            .iter()
            .any(|kind| kind.time_zone_designation().len() < 3)
        {
            return None;
        }
        let offsets = Offsets::of_rules(&rules)?;
        Some(Self::new(sanitize(text), offsets, RulesSource::Name))
    }

    /// A zone with the rules that are built into this program, and why they are used.
    pub(crate) fn with_built_in_rules(zone: Tz, reason: impl Into<String>) -> Self {
        Self(Arc::new(Zone {
            name: zone.name().to_owned(),
            rules: Rules::BuiltIn(zone),
            source: RulesSource::BuiltIn(reason.into()),
        }))
    }

    /// The IANA name; of a zone that has none, its POSIX string or the file.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the rules are those built into this program, for want of the system's.
    pub(crate) fn has_built_in_rules(&self) -> bool {
        matches!(self.0.source, RulesSource::BuiltIn(_))
    }

    /// The instants, in seconds since 1970, at which the clocks of the zone show `wall`: one, or two in the night of the autumn
    /// change (the earlier first). A time that the spring change skips is read with the offset in force before it.
    pub fn instants(&self, wall: NaiveDateTime) -> (i64, Option<i64>) {
        match &self.0.rules {
            Rules::Offsets(offsets) => offsets.instants(wall.and_utc().timestamp()),
            Rules::BuiltIn(zone) => built_in_instants(*zone, wall),
        }
    }

    /// Where the rules come from, for a person; `database` is the one that the zone was looked up in.
    pub fn describe_rules(&self, database: &ZoneDatabase) -> String {
        let and_named = || format!("zones that files name from {}", database.describe());
        match &self.0.source {
            RulesSource::Database => format!("rules from {}", database.describe()),
            RulesSource::File(path) => {
                format!("rules from {}; {}", sanitize(path), and_named())
            }
            RulesSource::Name => and_named(),
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

/// [`TimeZone::instants`] by the built-in tables.
fn built_in_instants(zone: Tz, wall: NaiveDateTime) -> (i64, Option<i64>) {
    match zone.from_local_datetime(&wall) {
        LocalResult::Single(only) => (only.timestamp(), None),
        LocalResult::Ambiguous(a, b) => {
            let (a, b) = (a.timestamp(), b.timestamp());
            (a.min(b), Some(a.max(b)))
        }
        LocalResult::None => {
            // Gaps are at most a day long (Samoa, 30 December 2011) and begin at a full quarter of an hour.
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

/// The zones of logger files.
#[derive(Debug, Clone)]
pub struct FileZones {
    /// The zone of files that name none.
    pub default: TimeZone,
    /// Has the zones that files name.
    pub database: Arc<ZoneDatabase>,
}

impl FileZones {
    /// A default zone and the database for all others.
    pub fn new(default: TimeZone, database: Arc<ZoneDatabase>) -> Self {
        Self { default, database }
    }

    /// A default zone with the built-in rules and no database: for tests and benchmarks.
    pub fn built_in(default: Tz) -> Self {
        Self::new(
            TimeZone::with_built_in_rules(default, "no other was asked for"),
            Arc::new(ZoneDatabase::new("/nonexistent")),
        )
    }
}
