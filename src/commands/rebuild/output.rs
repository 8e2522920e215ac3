//! What is printed before and after a swap.

use crate::commands::verify::points;
use crate::rebuild::Swapped;
use crate::sanitize::sanitize;
use crate::verify::{Cause, Month, PointDifferences, Verification};
use chrono::NaiveDate;
use indicatif::HumanCount;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Maximum number of lines about points that files explain, per campaign.
const MAX_DAYS: usize = 40;

/// The points of a campaign by month.
#[derive(Default)]
struct Campaign {
    months: BTreeMap<Month, PointDifferences>,
    causes: BTreeMap<(Month, Cause), u64>,
}

/// Formats how a bucket differs from the files: per campaign and month, and in words.
pub(super) fn report(verification: &Verification) -> String {
    let mut campaigns: BTreeMap<&str, Campaign> = BTreeMap::new();
    for device in &verification.devices {
        let campaign = campaigns.entry(&device.campaign).or_default();
        for (month, points) in &device.counts.months {
            *campaign.months.entry(*month).or_default() += *points;
        }
        for (cause, points) in &device.causes {
            *campaign.causes.entry(*cause).or_default() += points;
        }
    }
    let mut text = String::new();
    for (name, campaign) in &campaigns {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", sanitize(name));
        for (month, points) in &campaign.months {
            let _ = writeln!(
                text,
                "    {}: {} equal, {} only in the new bucket, {} only in the old one",
                format_month(*month),
                HumanCount(points.expected - points.missing - points.different),
                HumanCount(points.missing + points.different),
                HumanCount(points.extra + points.different),
            );
        }
        let is_unexplained =
            |((_, cause), _): &(&(Month, Cause), &u64)| *cause == Cause::Unexplained;
        let unexplained = campaign.causes.iter().filter(is_unexplained);
        let explained = campaign
            .causes
            .iter()
            .filter(|cause| !is_unexplained(cause));
        let shown = explained.clone().take(MAX_DAYS).chain(unexplained);
        for ((month, cause), number) in shown {
            let _ = writeln!(
                text,
                "    {}: {} of the old bucket {}",
                format_month(*month),
                points(*number),
                describe(*cause)
            );
        }
        if let Some(more @ 1..) = explained.count().checked_sub(MAX_DAYS) {
            let _ = writeln!(
                text,
                "    and {more} more lines about points that are in files"
            );
        }
    }
    for measurement in &verification.unexplained {
        let _ = writeln!(
            text,
            "{}: {} of a measurement that has no campaign folder",
            sanitize(&measurement.measurement),
            points(measurement.points)
        );
    }
    for note in &verification.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn describe(cause: Cause) -> String {
    match cause {
        Cause::Swapped(day) => format!("for {}", day.format("%-d %B %Y")),
        Cause::LocalTime => "whose local time was read as UTC".to_owned(),
        Cause::OtherTags => {
            "with other tags than those of the files, such as series without the tag device"
                .to_owned()
        }
        Cause::Unexplained => "whose file is gone".to_owned(),
    }
}

fn format_month((year, month): Month) -> String {
    NaiveDate::from_ymd_opt(year, month, 1)
        .map_or_else(String::new, |day| day.format("%B %Y").to_string())
}

/// Formats what was renamed, and the tokens that have to be made anew.
pub(super) fn swapped(company: &str, swapped: &Swapped) -> String {
    let company = sanitize(company);
    let state = if swapped.is_undo {
        "the former bucket is back"
    } else {
        "the new bucket is in use"
    };
    let other = swapped.other.as_deref().map(|other| {
        let other = sanitize(other);
        if swapped.is_undo {
            format!("; the other one is now {other}")
        } else {
            format!("; the old one is now {other}, and powerview rebuild --undo brings it back")
        }
    });
    let mut text = format!("{company}: {state}{}\n", other.unwrap_or_default());
    match &swapped.tokens {
        Ok(tokens) => {
            for token in tokens {
                let _ = writeln!(
                    text,
                    "the token {:?} is for the bucket that had this name; powerview-company add {company:?} replaces the one of Grafana",
                    sanitize(token)
                );
            }
        }
        Err(error) => {
            let _ = writeln!(
                text,
                "the read tokens of the bucket cannot be listed: {error}; powerview-company add {company:?} replaces the one of Grafana"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{Causes, DeviceResult};

    #[test]
    fn points_whose_file_is_gone_are_shown_after_many_days() {
        let first = NaiveDate::from_ymd_opt(2023, 1, 2).unwrap();
        let days = first.iter_days().take(100);
        let mut causes: Causes = days
            .map(|day| (((2023, 1), Cause::Swapped(day)), 7))
            .collect();
        causes.insert(((2025, 6), Cause::Unexplained), 500);
        let device = DeviceResult {
            causes,
            ..DeviceResult::default()
        };
        let verification = Verification {
            devices: vec![device],
            ..Verification::default()
        };
        let report = report(&verification);
        let gone = "    June 2025: 500 points of the old bucket whose file is gone\n";
        assert!(report.contains(gone), "{report}");
        assert!(report.contains("    and 60 more lines"), "{report}");
        assert_eq!(report.lines().count(), 1 + 40 + 1 + 1);
    }
}
