//! Parsers of options and variables. Their errors complete the sentence "the value is ..." and name the remedy.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use clap::ValueEnum;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The forms of a duration, for people.
pub(crate) const DURATION_FORMS: &str = "60 (seconds), 90s, 10m, 26h, 7d or 1h 30m";

/// The longest duration: a hundred years, which can be added to any time.
const MAX_DURATION: Duration = Duration::from_hours(878_400);

/// Parses a duration: a number of seconds, or numbers with units; at most a hundred years.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    let duration = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        None => humantime::parse_duration(text).ok(),
    };
    duration
        .filter(|duration| *duration <= MAX_DURATION)
        .ok_or_else(|| format!("not a duration; use a form like {DURATION_FORMS}"))
}

/// Parses an instant: a day, which begins at 00:00 UTC, a time as in RFC 3339, or a duration before `now`. Returns seconds
/// since 1970.
pub(crate) fn parse_instant(text: &str, now: DateTime<Utc>) -> Result<i64, String> {
    if let Ok(day) = text.parse::<NaiveDate>() {
        return Ok(day.and_time(NaiveTime::MIN).and_utc().timestamp());
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.timestamp());
    }
    let before = parse_duration(text)
        .ok()
        .filter(|_| text.ends_with(|c: char| c.is_ascii_alphabetic()))
        .and_then(|duration| chrono::Duration::from_std(duration).ok());
    before.map(|before| (now - before).timestamp()).ok_or_else(|| {
        "not a time; use a day such as 2026-03-01, a time such as 2026-03-01T12:00:00Z, or a duration before now such as 8d"
            .to_owned()
    })
}

/// Parses a whole number in a range.
pub(crate) fn parse_number(text: &str, range: &RangeInclusive<u32>) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!(
            "not a valid number; use one from {} to {}",
            range.start(),
            range.end()
        )
    })
}

/// Parses a share: a decimal number from 0 to 1.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "not a share; use a number from 0 to 1, such as 0.5".to_owned())
}

/// Parses a switch.
pub(crate) fn parse_switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("not a switch; use 1 or 0".to_owned()),
    }
}

/// Parses one of several words, in any case.
pub(crate) fn parse_choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, true).map_err(|_| format!("not a known value; use {}", choices::<T>()))
}

/// Lists the words of a choice: `a, b or c`.
pub(crate) fn choices<T: ValueEnum>() -> String {
    let names: Vec<_> = T::value_variants()
        .iter()
        .filter_map(ValueEnum::to_possible_value)
        .map(|value| value.get_name().to_owned())
        .collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// Parses an http:// or https:// URL.
pub(crate) fn parse_http_url(text: &str, remedy: &str) -> Result<url::Url, String> {
    url::Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| format!("not an http:// or https:// URL; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_seconds_or_has_units() {
        for (text, seconds) in [
            ("0", 0.0),
            ("60", 60.0),
            ("0.5", 0.5),
            ("90s", 90.0),
            ("10m", 600.0),
            ("26h", 93_600.0),
            ("7d", 604_800.0),
            ("1h 30m", 5_400.0),
            ("1h30m", 5_400.0),
            ("250ms", 0.25),
        ] {
            let expected = Duration::from_secs_f64(seconds);
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn any_other_duration_is_refused_with_the_accepted_forms() {
        for text in ["", "soon", "-1", "-1h", "nan", "inf", "1e99", "1 x", "101y"] {
            let reason = parse_duration(text).unwrap_err();
            assert!(
                reason.contains("not a duration") && reason.contains(DURATION_FORMS),
                "{text}: {reason}"
            );
        }
    }

    #[test]
    fn switches_have_several_forms() {
        for text in ["1", "true", "Yes", "ON"] {
            assert_eq!(parse_switch(text), Ok(true), "{text}");
        }
        for text in ["0", "false", "No", "OFF"] {
            assert_eq!(parse_switch(text), Ok(false), "{text}");
        }
        assert!(parse_switch("2").is_err());
    }
}
