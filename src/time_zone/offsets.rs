//! The offsets of a zone as one table of changes for the years that a row can have (2000 to 2099).
//!
//! A zone file lists changes and may end with a rule for all later years. Both become entries of the table, so that a
//! lookup is one binary search.

use chrono::{Datelike as _, Days, NaiveDate, NaiveDateTime, NaiveTime, Weekday};
use tz::timezone::{AlternateTime, RuleDay, TransitionRule};

/// Years for which changes are computed: one more on each side than a row can have.
const YEARS: std::ops::RangeInclusive<i32> = 1999..=2100;

/// The first instant of the table: 25 December 1999.
const FIRST: i64 = 946_080_000;
/// The last instant of the table: 8 January 2100.
const LAST: i64 = 4_103_049_600;

/// Exclusive limit of offsets from UTC in seconds. RFC 9636 allows -25 h to +26 h, both exclusive.
const MAX_OFFSET: i64 = 26 * 3_600;

/// A change of the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    /// Seconds since 1970.
    at: i64,
    /// Seconds east of UTC from then on.
    offset: i32,
}

/// The offsets of a zone from UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offsets {
    /// Seconds east of UTC before the first change.
    first: i32,
    /// Sorted by time.
    changes: Vec<Change>,
}

impl Offsets {
    /// Computes the offsets of a zone file or POSIX string; none if an offset is out of range.
    pub(crate) fn of_rules(rules: &tz::TimeZone) -> Option<Self> {
        let mut instants = listed_changes(rules);
        if let Some(TransitionRule::Alternate(rule)) = rules.as_ref().extra_rule() {
            instants.extend(YEARS.flat_map(|year| changes_of_year(rule, year)).flatten());
        }
        instants.retain(|at| (FIRST..=LAST).contains(at));
        instants.sort_unstable();
        let first = offset_at(rules, FIRST)?;
        let mut last = first;
        let mut changes = Vec::with_capacity(instants.len());
        for at in instants {
            let offset = offset_at(rules, at)?;
            if offset != last {
                changes.push(Change { at, offset });
                last = offset;
            }
        }
        Some(Self { first, changes })
    }

    /// Seconds east of UTC at an instant.
    pub(crate) fn at(&self, instant: i64) -> i32 {
        self.of_span(self.changes.partition_point(|change| change.at <= instant))
    }

    /// The offset after the first `span` changes.
    fn of_span(&self, span: usize) -> i32 {
        match span {
            0 => self.first,
            span => self.changes[span - 1].offset,
        }
    }

    /// Converts a wall time, in seconds since 1970 as if it were UTC, to instants: one, or two where clocks are set
    /// back (earlier first). A skipped wall time is read with the offset in force before the change.
    pub(crate) fn instants(&self, wall: i64) -> (i64, Option<i64>) {
        let mut span = self
            .changes
            .partition_point(|change| change.at <= wall - MAX_OFFSET);
        let mut by_offset_before = wall - i64::from(self.of_span(span));
        let mut found = None;
        loop {
            let instant = wall - i64::from(self.of_span(span));
            let end = self.changes.get(span).map(|change| change.at);
            if span == 0 || self.changes[span - 1].at <= instant {
                by_offset_before = instant;
                if end.is_none_or(|end| instant < end) {
                    match found {
                        None => found = Some(instant),
                        Some(earlier) => return (earlier, Some(instant)),
                    }
                }
            }
            match end {
                Some(end) if end <= wall + MAX_OFFSET => span += 1,
                _ => return (found.unwrap_or(by_offset_before), None),
            }
        }
    }
}

/// The instants of the changes listed in a file. Files below `right/` count leap seconds; Unix time does not.
fn listed_changes(rules: &tz::TimeZone) -> Vec<i64> {
    let rules = rules.as_ref();
    let leap_seconds = |at: i64| {
        rules
            .leap_seconds()
            .iter()
            .rev()
            .find(|leap| leap.unix_leap_time() < at)
            .map_or(0, |leap| i64::from(leap.correction()))
    };
    rules
        .transitions()
        .iter()
        .map(tz::timezone::Transition::unix_leap_time)
        .map(|at| at.saturating_sub(leap_seconds(at)))
        .collect()
}

/// The instants at which daylight saving time starts and ends in a year by a rule such as `CET-1CEST,M3.5.0,M10.5.0/3`.
fn changes_of_year(rule: &AlternateTime, year: i32) -> [Option<i64>; 2] {
    let at = |day: &RuleDay, time: i32, offset: i32| {
        let midnight = date(*day, year)?.and_time(NaiveTime::default());
        Some(seconds(midnight) + i64::from(time) - i64::from(offset))
    };
    [
        at(
            rule.dst_start(),
            rule.dst_start_time(),
            rule.std().ut_offset(),
        ),
        at(rule.dst_end(), rule.dst_end_time(), rule.dst().ut_offset()),
    ]
}

/// The date of a rule's day in a year.
fn date(day: RuleDay, year: i32) -> Option<NaiveDate> {
    match day {
        // 1 to 365; 29 February is never counted.
        RuleDay::Julian1WithoutLeap(day) => {
            let in_common_year = NaiveDate::from_yo_opt(2001, day.get().into())?;
            in_common_year.with_year(year)
        }
        // 0 to 365; 29 February is counted. In common years, 365 is 1 January of the next year.
        RuleDay::Julian0WithLeap(day) => {
            NaiveDate::from_yo_opt(year, 1)?.checked_add_days(Days::new(day.get().into()))
        }
        RuleDay::MonthWeekDay(day) => {
            let month = u32::from(day.month());
            // 0 is Sunday; chrono counts from Monday.
            let weekday = Weekday::try_from((day.week_day() + 6) % 7).ok()?;
            // Week 5 is the last week of the month.
            (1..=day.week())
                .rev()
                .find_map(|week| NaiveDate::from_weekday_of_month_opt(year, month, weekday, week))
        }
    }
}

/// Seconds east of UTC by the rules themselves; none if out of range.
fn offset_at(rules: &tz::TimeZone, at: i64) -> Option<i32> {
    let offset = if let Ok(kind) = rules.find_local_time_type(at) {
        kind.ut_offset()
    } else {
        // Without a rule for later years, the last offset stays in force.
        let rules = rules.as_ref();
        let last = rules.transitions().last()?.local_time_type_index();
        rules.local_time_types().get(last)?.ut_offset()
    };
    (i64::from(offset).abs() < MAX_OFFSET).then_some(offset)
}

/// Seconds since 1970 of a UTC time.
pub(super) fn seconds(time: NaiveDateTime) -> i64 {
    time.and_utc().timestamp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skipped::skipped;
    use crate::time_zone::testing::{
        PARIS, ZoneFile, built_in_changes, offsets_of, zone_from_a_file,
    };
    use crate::time_zone::{TimeZone, built_in_instants};
    use chrono::{DateTime, Duration};
    use chrono_tz::Tz;
    use std::path::Path;

    /// Compares a zone with the built-in tables at all wall times near the changes of some years.
    fn compare(zone: &TimeZone, tables: Tz, years: std::ops::Range<i32>) {
        let changes = built_in_changes(tables).1;
        let mut count = 0;
        for (change, _) in changes {
            let at = DateTime::from_timestamp(change, 0).unwrap().naive_utc();
            if !years.contains(&at.year()) {
                continue;
            }
            for quarter in -110..110 {
                for second in [-1, 0, 1] {
                    let wall = at + Duration::seconds(quarter * 900 + second);
                    let expected = built_in_instants(tables, wall);
                    assert_eq!(zone.instants(wall), expected, "{zone}: {wall}");
                    count += 1;
                }
            }
        }
        assert!(count > 600, "{zone}: {count} wall times");
    }

    #[test]
    fn a_zone_file_is_read_as_the_built_in_tables_are() {
        for zone in [
            Tz::Europe__Paris,
            Tz::Europe__Dublin,
            Tz::America__New_York,
            Tz::America__St_Johns,
            Tz::Africa__Casablanca,
            Tz::Africa__Cairo,
            Tz::Asia__Pyongyang,
            Tz::Australia__Lord_Howe,
            Tz::America__Santiago,
            Tz::Pacific__Apia,
            Tz::Pacific__Chatham,
            Tz::Antarctica__Troll,
        ] {
            compare(&zone_from_a_file(zone), zone, 2005..2030);
        }
    }

    #[test]
    fn the_rule_of_a_posix_string_applies_until_the_end_of_the_century() {
        for (rule, zone) in [
            (PARIS, Tz::Europe__Paris),
            ("IST-1GMT0,M10.5.0,M3.5.0/1", Tz::Europe__Dublin),
            ("EST5EDT,M3.2.0,M11.1.0", Tz::America__New_York),
            ("AEST-10AEDT,M10.1.0,M4.1.0/3", Tz::Australia__Sydney),
            (
                "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
                Tz::Australia__Lord_Howe,
            ),
        ] {
            let zone_of_rule = TimeZone::of_posix(rule).unwrap();
            compare(&zone_of_rule, zone, 2009..2037);
            compare(&zone_of_rule, zone, 2090..2100);
        }
    }

    /// The instants are those of `mktime` of the GNU C library.
    #[test]
    fn posix_strings_with_long_times_seconds_and_lower_case_are_read_as_by_libc() {
        let jerusalem = "IST-2IDT,M3.4.4/26,M10.5.0";
        let nuuk = "<-03>3<-02>,M3.5.0/-2,M10.5.0/-1";
        let longest = "AAA0BBB,J60/-167,J300/167";
        let lower = "cet-1cest,m3.5.0,m10.5.0/3";
        for (rule, wall, expected) in [
            (jerusalem, "2025-03-28T01:59:59", 1_743_119_999),
            (jerusalem, "2025-03-28T03:00:00", 1_743_120_000),
            (jerusalem, "2025-10-26T00:59:59", 1_761_429_599),
            (jerusalem, "2025-10-26T02:00:00", 1_761_436_800),
            (nuuk, "2025-03-29T21:59:59", 1_743_296_399),
            (nuuk, "2025-03-29T23:00:00", 1_743_296_400),
            (nuuk, "2025-10-25T21:59:59", 1_761_436_799),
            (nuuk, "2025-10-25T23:00:00", 1_761_444_000),
            (longest, "2025-02-22T00:59:59", 1_740_185_999),
            (longest, "2025-02-22T02:00:00", 1_740_186_000),
            (longest, "2025-11-02T21:59:59", 1_762_117_199),
            (longest, "2025-11-02T23:00:00", 1_762_124_400),
            (lower, "2025-03-30T01:59:59", 1_743_296_399),
            (lower, "2025-03-30T03:00:00", 1_743_296_400),
            (
                "AAA-1:30:15BBB,M3.5.0,M10.5.0/3",
                "2025-07-15T12:00:00",
                1_752_571_785,
            ),
            ("AAA-24:59:59", "2025-01-15T12:00:00", 1_736_852_401),
            ("AAA24:59:59", "2025-01-15T12:00:00", 1_737_032_399),
        ] {
            let zone = TimeZone::of_posix(rule).unwrap();
            let instants = zone.instants(wall.parse().unwrap());
            assert_eq!(instants, (expected, None), "{rule}: {wall}");
        }
        for rule in [
            "",
            "AAA25",
            "AAA0BBB,J60/168,J300",
            "AAA0BBB,J60/-168,J300",
            "AAA0BBB",
            "AA0",
            "AAA0\nBBB0",
        ] {
            assert_eq!(TimeZone::of_posix(rule), None, "{rule}");
        }
    }

    #[test]
    fn days_of_the_year_are_counted_with_and_without_the_leap_day() {
        // J60 is 1 March in every year; day 60, counted from 0, is 1 March or in leap years 29 February.
        for (rule, begin) in [
            ("AAA0BBB,J60/0,J300/0", ["2027-03-01", "2028-03-01"]),
            ("AAA0BBB,60/0,J300/0", ["2027-03-02", "2028-03-01"]),
            ("AAA0BBB,59/0,J300/0", ["2027-03-01", "2028-02-29"]),
        ] {
            let offsets = Offsets::of_rules(
                &tz::TimeZoneSettings::new(&[], |_| Err("no file".into()))
                    .parse_posix_tz(rule)
                    .unwrap(),
            )
            .unwrap();
            for day in begin {
                let midnight = format!("{day}T00:00:00Z").parse::<DateTime<chrono::Utc>>();
                let at = midnight.unwrap().timestamp();
                assert_eq!((offsets.at(at - 1), offsets.at(at)), (0, 3_600), "{rule}");
            }
        }
    }

    #[test]
    fn leap_seconds_of_a_file_below_right_are_subtracted() {
        let change = 1_743_296_400;
        let file = ZoneFile {
            kinds: &[(3_600, false, "CET"), (7_200, true, "CEST")],
            changes: &[(change + 2, 1)],
            leap_seconds: &[(1_000_000_000, 1), (1_200_000_001, 2)],
            rule: PARIS,
        };
        let offsets = offsets_of(&file.bytes()).unwrap();
        assert_eq!((offsets.at(change - 1), offsets.at(change)), (3_600, 7_200));
    }

    #[test]
    fn a_file_without_a_rule_keeps_its_last_offset() {
        let file = ZoneFile {
            kinds: &[(0, false, "AAA"), (3_600, false, "BBB")],
            changes: &[(1_500_000_000, 1)],
            ..ZoneFile::default()
        };
        let offsets = offsets_of(&file.bytes()).unwrap();
        assert_eq!(offsets.at(1_499_999_999), 0);
        assert_eq!(offsets.at(4_000_000_000), 3_600);
    }

    #[test]
    fn an_offset_out_of_range_is_refused() {
        for (offset, is_good) in [
            (93_599, true),
            (93_600, false),
            (-93_600, false),
            (i32::MAX, false),
        ] {
            let file = ZoneFile {
                kinds: &[(0, false, "AAA"), (offset, false, "BBB")],
                changes: &[(1_500_000_000, 1)],
                ..ZoneFile::default()
            };
            assert_eq!(offsets_of(&file.bytes()).is_some(), is_good, "{offset}");
        }
    }

    #[test]
    fn a_damaged_zone_file_does_not_panic() {
        let whole = ZoneFile {
            kinds: &[(3_600, false, "CET"), (7_200, true, "CEST")],
            changes: &[(1_743_296_402, 1)],
            leap_seconds: &[(1_000_000_000, 1), (1_200_000_001, 2)],
            rule: PARIS,
        }
        .bytes();
        let check = |bytes: &[u8]| {
            if let Some(offsets) = offsets_of(bytes) {
                for wall in [0, 1_743_296_400, 4_102_444_799] {
                    let (earlier, later) = offsets.instants(wall);
                    assert!(later.is_none_or(|later| earlier < later));
                    assert!((wall - earlier).abs() < MAX_OFFSET);
                }
            }
        };
        check(&whole);
        for at in 0..whole.len() {
            check(&whole[..at]);
            for byte in [0, 1, 0x7f, 0x80, 0xff, b'\n', b',', b'9'] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                check(&bytes);
            }
        }
    }

    /// Real changes are never closer together than their offsets differ. Such a file still gives an instant for each
    /// wall time.
    #[test]
    fn changes_in_quick_succession_do_not_panic() {
        let file = ZoneFile {
            kinds: &[
                (0, false, "AAA"),
                (50_000, false, "BBB"),
                (-50_000, false, "CCC"),
            ],
            changes: &[
                (1_500_000_000, 1),
                (1_500_000_001, 2),
                (1_500_000_002, 1),
                (1_500_010_000, 0),
                (1_500_010_003, 2),
            ],
            ..ZoneFile::default()
        };
        let offsets = offsets_of(&file.bytes()).unwrap();
        for wall in 1_499_900_000..1_500_110_000 {
            let (earlier, later) = offsets.instants(wall);
            for instant in [Some(earlier), later].into_iter().flatten() {
                assert!((wall - instant).abs() <= 50_000, "{wall}");
            }
        }
    }

    #[test]
    fn the_systems_zone_files_give_the_offsets_of_their_rules() {
        for name in [
            "Europe/Paris",
            "Europe/London",
            "Europe/Dublin",
            "America/New_York",
            "Africa/Casablanca",
            "Africa/Cairo",
            "Asia/Kolkata",
            "Australia/Lord_Howe",
            "America/Santiago",
            "Pacific/Chatham",
            "UTC",
        ] {
            let Ok(bytes) = std::fs::read(Path::new("/usr/share/zoneinfo").join(name)) else {
                skipped("tzdata", "apt install tzdata");
                return;
            };
            let rules = tz::TimeZone::from_tz_data(&bytes).unwrap();
            let offsets = Offsets::of_rules(&rules).unwrap();
            for at in (946_684_800..4_102_444_800).step_by(6 * 3_600) {
                assert_eq!(Some(offsets.at(at)), offset_at(&rules, at), "{name}: {at}");
            }
        }
    }
}
