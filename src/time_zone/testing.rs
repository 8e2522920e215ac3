//! Time zones for tests.

#[path = "../../tests/it/zone_files.rs"]
mod zone_files;

use super::{FileZones, Offsets, RulesSource, TimeZone, ZoneDatabase};
use chrono::{DateTime, Offset as _, TimeZone as _};
use chrono_tz::Tz;
use std::sync::Arc;
pub(crate) use zone_files::{ZoneFile, write};

pub(crate) const PARIS: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

/// The offset from UTC by the built-in tables.
pub(crate) fn built_in_offset(zone: Tz, at: i64) -> i32 {
    let time = DateTime::from_timestamp(at, 0).unwrap().naive_utc();
    zone.offset_from_utc_datetime(&time).fix().local_minus_utc()
}

/// The changes of the built-in tables from 1999 to 2100, and the offset before the first.
pub(crate) fn built_in_changes(zone: Tz) -> (i32, Vec<(i64, i32)>) {
    const DAY: i64 = 86_400;
    const FROM: i64 = 915_148_800;
    const UNTIL: i64 = 4_102_444_800;
    let first = built_in_offset(zone, FROM);
    let mut last = first;
    let mut changes = Vec::new();
    for day in (FROM..UNTIL).step_by(DAY as usize) {
        let after = built_in_offset(zone, day + DAY);
        if after != last {
            let (mut low, mut high) = (day, day + DAY);
            while high - low > 1 {
                let middle = i64::midpoint(low, high);
                if built_in_offset(zone, middle) == last {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            changes.push((high, after));
            last = after;
        }
    }
    (first, changes)
}

/// The offsets in a zone file.
pub(crate) fn offsets_of(file: &[u8]) -> Option<Offsets> {
    Offsets::of_rules(&tz::TimeZone::from_tz_data(file).ok()?)
}

/// A zone read from a zone file with the changes of the built-in tables.
pub(crate) fn zone_from_a_file(zone: Tz) -> TimeZone {
    let (first, changes) = built_in_changes(zone);
    let mut offsets = vec![first];
    let mut changes_by_kind = Vec::new();
    for (at, offset) in changes {
        let kind = offsets.iter().position(|other| *other == offset);
        changes_by_kind.push((at, kind.unwrap_or(offsets.len())));
        if kind.is_none() {
            offsets.push(offset);
        }
    }
    let kinds: Vec<_> = offsets
        .iter()
        .map(|offset| (*offset, false, "ABC"))
        .collect();
    let file = ZoneFile {
        kinds: &kinds,
        changes: &changes_by_kind,
        ..ZoneFile::default()
    };
    let offsets = offsets_of(&file.bytes()).unwrap();
    TimeZone::new(zone.name(), offsets, RulesSource::Database)
}

/// Creates a database with the given zones, and a default zone.
pub(crate) fn file_zones(
    dir: &std::path::Path,
    rules: &[(&str, &str)],
    default: &str,
) -> FileZones {
    for (name, rule) in rules {
        ZoneFile::of_rule(rule).write(dir, name);
    }
    let database = ZoneDatabase::new(dir);
    FileZones::new(
        database.zone(default).unwrap(),
        super::ZoneSource::Setting,
        Arc::new(database),
    )
}
