//! Converts the times of rows to timestamps. See docs/specification.md, section 3.

use super::container::HeaderMeta;
use super::documents::{LoggerFile, ReadOptions};
use crate::sanitize::sanitize;
use crate::time_zone::{FileZones, TimeZone, ZoneSource};
use chrono::{NaiveDate, NaiveDateTime};
use memchr::memmem;

/// The time zone of the times in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Zone {
    /// UTC.
    Utc,
    /// Local time with daylight saving.
    Local(TimeZone),
}

/// The time zone of a document and how it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ZoneChoice {
    pub zone: Zone,
    pub source: ZoneSource,
    /// What the header says that was not understood.
    pub warning: Option<String>,
}

/// The entries of a header that give the meaning of its times.
const ZONE_ENTRIES: [&str; 3] = ["DataTimeSettings", "TimeZoneName", "TimeZone"];

impl ZoneChoice {
    /// Selects the zone of a document: UTC if its header says so, else the IANA zone or the POSIX string in it, else the
    /// default. `None` if the header is not valid JSON and none of these is found in its text.
    pub(super) fn of_document(meta: &HeaderMeta, zones: &FileZones) -> Option<Self> {
        let [settings, name, posix] = ZONE_ENTRIES.map(|key| meta.text(key));
        let is_broken = matches!(meta, HeaderMeta::Broken { .. });
        if is_broken && settings.or(name).or(posix).is_none() {
            return None;
        }
        let is_set_to =
            |value: &str| settings.is_some_and(|s| s.trim().eq_ignore_ascii_case(value));
        let found = if is_set_to("UTC") {
            Some((Zone::Utc, ZoneSource::Header))
        } else {
            let named = name.and_then(|name| zones.database.zone_in_any_case(name));
            let ruled = || posix.and_then(TimeZone::of_posix);
            named
                .map(|zone| (Zone::Local(zone), ZoneSource::Header))
                .or_else(|| ruled().map(|zone| (Zone::Local(zone), ZoneSource::HeaderPosix)))
        };
        let is_understood = match &found {
            Some((Zone::Local(_), ZoneSource::HeaderPosix)) => name.is_none(),
            Some(_) => true,
            None => name.or(posix).is_none(),
        };
        let (zone, source) =
            found.unwrap_or_else(|| (Zone::Local(zones.default.clone()), zones.default_source));
        let unknown = |what: &str, given: &str| {
            format!(
                "the header's {what} {:?} is not known; {} applies; correct the logger's time zone",
                sanitize(given),
                zone.name()
            )
        };
        let warning = if !is_understood {
            let given = name.or(posix).unwrap_or_default();
            Some(unknown("time zone", given))
        } else if settings.is_some() && !is_set_to("UTC") && !is_set_to("LOCAL") {
            Some(unknown("DataTimeSettings", settings.unwrap_or_default()))
        } else {
            None
        };
        Some(Self {
            zone,
            source,
            warning,
        })
    }
}

impl Zone {
    /// `UTC`, the IANA name, or the POSIX string.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Utc => "UTC",
            Self::Local(zone) => zone.name(),
        }
    }
}

/// Parses `DD/MM/YY HH:MM:SS`, where YY is a year of this century. Returns `None` for anything else.
pub(super) fn parse_wall_time(cell: &[u8]) -> Option<NaiveDateTime> {
    let cell: &[u8; 17] = cell.try_into().ok()?;
    let separators = [(2, b'/'), (5, b'/'), (8, b' '), (11, b':'), (14, b':')];
    if separators.into_iter().any(|(at, byte)| cell[at] != byte) {
        return None;
    }
    let two = |at: usize| {
        let (tens, ones) = (cell[at], cell[at + 1]);
        (tens.is_ascii_digit() && ones.is_ascii_digit())
            .then(|| u32::from(tens - b'0') * 10 + u32::from(ones - b'0'))
    };
    let date = NaiveDate::from_ymd_opt(2000 + i32::try_from(two(6)?).ok()?, two(3)?, two(0)?)?;
    date.and_hms_opt(two(9)?, two(12)?, two(15)?)
}

/// Converts the times of the rows of one document, in order. It keeps state, because a local time that occurs twice is
/// resolved by the time at which the row is expected.
#[derive(Debug, Clone)]
pub(super) struct TimestampResolver {
    zone: Zone,
    /// The timestamp of the previous row, in seconds since 1970.
    previous: Option<i64>,
    /// The last two positive steps between rows in seconds, the newest first.
    steps: [Option<i64>; 2],
}

/// The maximum age in seconds of the row before the first one of a document.
const MAX_AGE_OF_PREVIOUS: i64 = 26 * 3600;

impl TimestampResolver {
    /// Creates a resolver for one document.
    pub(super) fn new(zone: Zone) -> Self {
        Self {
            zone,
            previous: None,
            steps: [None; 2],
        }
    }

    /// Returns the timestamp of the next row, in seconds since 1970. Rows are never sorted, dropped or corrected.
    ///
    /// `row_before` is the timestamp of the row before the document. It is asked for only if the first row has two.
    pub(super) fn resolve(
        &mut self,
        wall: NaiveDateTime,
        row_before: impl FnOnce() -> Option<i64>,
    ) -> i64 {
        let timestamp = match &self.zone {
            Zone::Utc => wall.and_utc().timestamp(),
            Zone::Local(zone) => match zone.instants(wall) {
                (only, None) => only,
                (earlier, Some(later)) => {
                    let previous = self.previous.or_else(|| {
                        let is_recent = |at: &i64| {
                            *at <= later && earlier.saturating_sub(*at) <= MAX_AGE_OF_PREVIOUS
                        };
                        row_before().filter(is_recent)
                    });
                    self.nearer_to_expected(previous, earlier, later)
                }
            },
        };
        if let Some(previous) = self.previous {
            let step = timestamp - previous;
            if step > 0 {
                self.steps = [Some(step), self.steps[0]];
            }
        }
        self.previous = Some(timestamp);
        timestamp
    }

    /// The timestamp of the last row.
    pub(super) fn last(&self) -> Option<i64> {
        self.previous
    }

    /// Selects the timestamp that is nearer to the expected one; the earlier one on a tie.
    fn nearer_to_expected(&self, previous: Option<i64>, earlier: i64, later: i64) -> i64 {
        let Some(previous) = previous else {
            return earlier;
        };
        let step = self.steps.into_iter().flatten().min().unwrap_or_default();
        let expected = previous + step;
        if (later - expected).abs() < (earlier - expected).abs() {
            later
        } else {
            earlier
        }
    }
}

/// Returns the timestamp of the last row, in seconds since 1970, from the first and last bytes of a file. `whole`
/// means that `tail` starts at the start of a line. In the repeated hour of autumn the result may be an hour too
/// early.
pub(crate) fn last_instant(
    head: &[u8],
    tail: &[u8],
    whole: bool,
    zones: &FileZones,
) -> Option<i64> {
    // The last document decides. Its header may lie between the two parts; then that of the first serves.
    let document = memmem::rfind(tail, super::container::START_HEADER);
    let header = document.map_or(head, |at| &tail[at..]);
    let zone = LoggerFile::open(header, &ReadOptions::new(zones)).map_or_else(
        |error| ZoneChoice::of_document(&error.meta, zones),
        |file| ZoneChoice::of_document(file.meta(), zones),
    )?;
    let mut resolver = TimestampResolver::new(zone.zone);
    tail[document.unwrap_or_default()..]
        .split(|byte| *byte == b'\n')
        .skip(usize::from(!whole && document.is_none()))
        .filter_map(|line| {
            // A time without a tab after it may be incomplete.
            let (time, _) = line.split_at(memchr::memchr(b'\t', line)?);
            parse_wall_time(super::cells::trim_spaces(time))
        })
        .map(|wall| resolver.resolve(wall, || None))
        .last()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time_zone::testing::{PARIS, file_zones, zone_from_a_file};
    use chrono::DateTime;

    /// Resolves the times of a file, and checks that the built-in rules and those of a zone file agree.
    fn times(zone: &str, walls: &[&str]) -> Vec<String> {
        let zone = zone.parse().unwrap();
        let built_in = FileZones::built_in(zone).default;
        let times = times_in(built_in, walls);
        assert_eq!(times_in(zone_from_a_file(zone), walls), times);
        times
    }

    fn times_in(zone: TimeZone, walls: &[&str]) -> Vec<String> {
        let mut resolver = TimestampResolver::new(Zone::Local(zone));
        walls
            .iter()
            .map(|wall| {
                let at = resolver.resolve(parse_wall_time(wall.as_bytes()).unwrap(), || None);
                DateTime::from_timestamp(at, 0)
                    .unwrap()
                    .format("%d %H:%M:%S")
                    .to_string()
            })
            .collect()
    }

    #[test]
    fn the_day_comes_first() {
        let wall = parse_wall_time(b"03/08/25 03:20:00").unwrap();
        assert_eq!(wall.to_string(), "2025-08-03 03:20:00");
    }

    #[test]
    fn any_other_format_is_rejected() {
        for cell in [
            "",
            "3/8/25 03:20:00",
            "03/08/2025 03:20:00",
            "2025-08-03 03:20",
            "31/02/25 00:00:00",
            "03/13/25 00:00:00",
            "03/08/25 24:00:00",
            "03/08/25 03:60:00",
            "03/08/25 03:20:60",
            "03/08/25  3:20:00",
            "03/08/25T03:20:00",
            "+3/08/25 03:20:00",
            "00/08/25 03:20:00",
        ] {
            assert_eq!(parse_wall_time(cell.as_bytes()), None, "{cell}");
        }
    }

    #[test]
    fn ten_minute_rows_pass_through_the_repeated_hour() {
        let found = times(
            "Europe/Paris",
            &[
                "26/10/25 01:40:00",
                "26/10/25 01:50:00",
                "26/10/25 02:00:00",
                "26/10/25 02:10:00",
                "26/10/25 02:20:00",
                "26/10/25 02:30:00",
                "26/10/25 02:40:00",
                "26/10/25 02:50:00",
                "26/10/25 02:00:00",
                "26/10/25 02:10:00",
                "26/10/25 02:20:00",
                "26/10/25 02:30:00",
                "26/10/25 02:40:00",
                "26/10/25 02:50:00",
                "26/10/25 03:00:00",
            ],
        );
        let hours_utc: Vec<_> = found.iter().map(|t| &t[3..8]).collect();
        assert_eq!(
            hours_utc,
            [
                "23:40", "23:50", "00:00", "00:10", "00:20", "00:30", "00:40", "00:50", "01:00",
                "01:10", "01:20", "01:30", "01:40", "01:50", "02:00"
            ]
        );
    }

    #[test]
    fn hourly_rows_pass_through_the_repeated_hour() {
        let found = times(
            "Europe/Paris",
            &[
                "26/10/25 00:30:00",
                "26/10/25 01:30:00",
                "26/10/25 02:30:00",
                "26/10/25 02:30:00",
                "26/10/25 03:30:00",
            ],
        );
        assert_eq!(
            found,
            [
                "25 22:30:00",
                "25 23:30:00",
                "26 00:30:00",
                "26 01:30:00",
                "26 02:30:00"
            ]
        );
    }

    #[test]
    fn a_repeated_second_does_not_start_the_second_hour() {
        let found = times(
            "Europe/Paris",
            &[
                "26/10/25 02:00:00",
                "26/10/25 02:10:00",
                "26/10/25 02:10:00",
                "26/10/25 02:09:59",
                "26/10/25 02:20:00",
            ],
        );
        assert_eq!(
            found,
            [
                "26 00:00:00",
                "26 00:10:00",
                "26 00:10:00",
                "26 00:09:59",
                "26 00:20:00"
            ]
        );
    }

    #[test]
    fn after_a_gap_the_timestamp_nearer_to_the_expected_one_is_used() {
        let found = times(
            "Europe/Paris",
            &[
                "26/10/25 02:30:00",
                "26/10/25 02:40:00",
                "26/10/25 02:20:00",
                "26/10/25 02:30:00",
            ],
        );
        // Expected at 00:50 UTC: 02:20 is 00:20 or 01:20, both 30 minutes off, so the earlier one is used. The last
        // positive step is still ten minutes, so 02:30 is expected at 00:30.
        assert_eq!(
            found,
            ["26 00:30:00", "26 00:40:00", "26 00:20:00", "26 00:30:00"]
        );
        let found = times(
            "Europe/Paris",
            &[
                "25/10/25 22:00:00",
                "25/10/25 22:10:00",
                "26/10/25 02:50:00",
                "26/10/25 02:00:00",
            ],
        );
        assert_eq!(
            found,
            ["25 20:00:00", "25 20:10:00", "26 00:50:00", "26 01:00:00"]
        );
    }

    #[test]
    fn the_smaller_of_the_last_two_steps_is_used() {
        // After steps of 10 and 70 minutes, the next row is expected 10 minutes later, not 70.
        let found = times(
            "Europe/Paris",
            &[
                "26/10/25 00:20:00",
                "26/10/25 00:30:00",
                "26/10/25 01:40:00",
                "26/10/25 02:10:00",
            ],
        );
        assert_eq!(found[3], "26 00:10:00");
    }

    #[test]
    fn the_first_row_of_a_file_has_the_earlier_timestamp() {
        assert_eq!(
            times("Europe/Paris", &["26/10/25 02:30:00"]),
            ["26 00:30:00"]
        );
    }

    #[test]
    fn a_time_skipped_in_spring_uses_the_offset_before_the_change() {
        let found = times(
            "Europe/Paris",
            &[
                "30/03/25 01:50:00",
                "30/03/25 02:00:00",
                "30/03/25 02:30:00",
                "30/03/25 03:00:00",
            ],
        );
        assert_eq!(
            found,
            ["30 00:50:00", "30 01:00:00", "30 01:30:00", "30 01:00:00"]
        );
        // Zones that skipped half an hour and a whole day.
        assert_eq!(
            times("Australia/Lord_Howe", &["05/10/25 02:15:00"]),
            ["04 15:45:00"]
        );
        assert_eq!(
            times("Pacific/Apia", &["30/12/11 12:00:00"]),
            ["30 22:00:00"]
        );
    }

    #[test]
    fn zones_west_of_greenwich_repeat_an_hour_too() {
        let found = times(
            "America/New_York",
            &[
                "02/11/25 00:30:00",
                "02/11/25 01:30:00",
                "02/11/25 01:30:00",
                "02/11/25 02:30:00",
            ],
        );
        assert_eq!(
            found,
            ["02 04:30:00", "02 05:30:00", "02 06:30:00", "02 07:30:00"]
        );
    }

    #[test]
    fn daylight_saving_applies_until_the_end_of_the_century() {
        assert_eq!(
            times("Europe/Paris", &["01/07/99 12:00:00"]),
            ["01 10:00:00"]
        );
    }

    #[test]
    fn the_last_timestamp_is_read_from_head_and_tail() {
        let paris = &FileZones::built_in(chrono_tz::Europe::Paris);
        let plain =
            b"1\t1\nMV_T302_V002\tA W\n03/08/25 03:20:00\t1\n03/08/25 03:30:00\t2\n03/08/25 03:4";
        assert_eq!(last_instant(plain, plain, true, paris), Some(1_754_184_600));
        assert_eq!(
            last_instant(plain, b"5 03:20:00\t1\n03/08/25 03:30:00\t", false, paris),
            Some(1_754_184_600)
        );
        let headed =
            b"START_HEADER\n{\"DataTimeSettings\":\"UTC\"}\nEND_HEADER\nSTART_DATA\n1\t1\n";
        assert_eq!(
            last_instant(headed, b"03/08/25 03:30:00\t2\nEND_DATA\n", true, paris),
            Some(1_754_191_800)
        );
        assert_eq!(last_instant(b"", b"", true, paris), None);
    }

    #[test]
    fn the_first_row_follows_the_row_before_the_document() {
        let paris = FileZones::built_in(chrono_tz::Europe::Paris).default;
        let first = |before: Option<i64>| {
            let wall = parse_wall_time(b"26/10/25 02:00:00").unwrap();
            TimestampResolver::new(Zone::Local(paris.clone())).resolve(wall, || before)
        };
        // 02:00 in Paris, first in summer time, then in winter time.
        let (earlier, later) = (1_761_436_800, 1_761_440_400);
        assert_eq!(first(None), earlier);
        assert_eq!(first(Some(earlier - 600)), earlier);
        assert_eq!(first(Some(later - 600)), later);
        assert_eq!(first(Some(later + 600)), earlier, "after the row");
        assert_eq!(first(Some(earlier - 27 * 3600)), earlier, "too old");
    }

    #[test]
    fn the_header_overrides_the_default_zone() {
        let dir = tempfile::tempdir().unwrap();
        let rules = [("Europe/Paris", PARIS), ("Asia/Tokyo", "JST-9")];
        let zones = file_zones(dir.path(), &rules, "Europe/Paris");
        let choice = |json: &str| {
            let choice = ZoneChoice::of_document(&HeaderMeta::parse(json.as_bytes()), &zones)?;
            let zone = choice.zone.name().to_owned();
            Some((zone, choice.source, choice.warning.is_some()))
        };
        let found = |zone: &str, source, warned| Some((zone.to_owned(), source, warned));
        let (header, posix) = (ZoneSource::Header, ZoneSource::HeaderPosix);
        let default = zones.default_source;
        for (json, expected) in [
            (
                r#"{"DataTimeSettings":"utc","TimeZoneName":"Asia/Tokyo"}"#,
                found("UTC", header, false),
            ),
            (
                r#"{"DataTimeSettings":"LOCAL","TimeZoneName":"ASIA/tokyo"}"#,
                found("Asia/Tokyo", header, false),
            ),
            (r#"{"TimeZone":"JST-9"}"#, found("JST-9", posix, false)),
            (
                r#"{"TimeZoneName":"nowhere","TimeZone":"JST-9"}"#,
                found("JST-9", posix, true),
            ),
            (
                r#"{"TimeZoneName":"nowhere"}"#,
                found("Europe/Paris", default, true),
            ),
            (
                r#"{"TimeZone":"nonsense"}"#,
                found("Europe/Paris", default, true),
            ),
            (r#"{"Site":"x"}"#, found("Europe/Paris", default, false)),
            (
                r#"{"DataTimeSettings":"UTC",}"#,
                found("UTC", header, false),
            ),
            (r#"{"Site":"x",}"#, None),
        ] {
            assert_eq!(choice(json), expected, "{json}");
        }
        let plain = ZoneChoice::of_document(&HeaderMeta::None, &zones).unwrap();
        assert_eq!((plain.zone.name(), plain.source), ("Europe/Paris", default));
    }
}
