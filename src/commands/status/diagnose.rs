//! What is wrong with a device, and what to do about it.

use super::scan::{DeviceScan, NEWEST};
use super::{DeviceStatus, Kind, Problem, span};
use crate::sanitize::sanitize;
use chrono::{DateTime, Utc};
use std::path::Path;
use std::time::Duration;

/// A file that waits longer should have been taken by the hook or by a sweep.
const WAITS_TOO_LONG: Duration = Duration::from_secs(2 * 3600);

/// A clock may be this far ahead of the file's arrival before it counts as wrong.
const AHEAD: Duration = Duration::from_secs(3600);

/// The last measurement may be this much older than the file's arrival before the clock counts as wrong.
const BEHIND: Duration = Duration::from_secs(3 * 86_400);

/// Makes a status of what was found.
pub fn diagnose(
    found: DeviceScan,
    data: &Path,
    now: DateTime<Utc>,
    silent_after: Duration,
) -> DeviceStatus {
    let mut parts = found.path.iter().map(sanitize);
    let mut part = || parts.next().unwrap_or_default();
    let (company, campaign, device) = (part(), part(), part());
    let newest = found.newest.first();
    let last_file_time = newest.map(|file| DateTime::<Utc>::from(file.time));
    let last_measurement = found
        .newest
        .iter()
        .filter_map(|file| file.last_measurement)
        .max()
        .and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let age = |time: DateTime<Utc>| (now - time).to_std().unwrap_or_default();
    // Built of its parts: joining an empty path would leave a slash at the end.
    let quoted = |path: &Path| {
        let whole: std::path::PathBuf = data.iter().chain(path).collect();
        format!("'{}'", sanitize(whole).replace('\'', "'\\''"))
    };
    let mut problems = Vec::new();
    let mut problem = |kind, message: String, remedy: String| {
        problems.push(Problem {
            kind,
            message,
            remedy,
        })
    };

    if let Some(error) = &found.unreadable {
        problem(
            Kind::Unreadable,
            format!("the folder cannot be looked into: {error}"),
            format!(
                "give the user of powerview the right to read {}",
                quoted(&found.path)
            ),
        );
    } else if device.is_empty() {
        problem(
            Kind::Empty,
            if campaign.is_empty() {
                "the company has no campaign"
            } else {
                "the campaign has no device"
            }
            .to_owned(),
            "check the folder that the logger uploads to, or remove this one".to_owned(),
        );
    } else {
        match last_file_time {
            None => problem(
                Kind::Empty,
                "no file has ever arrived".to_owned(),
                "check the logger's SFTP settings: user, folder, network".to_owned(),
            ),
            Some(time) if age(time) > silent_after => problem(
                Kind::Silent,
                format!("no file for {}", span(age(time))),
                "check the logger's power and network, then its SFTP user".to_owned(),
            ),
            Some(_) => {}
        }
    }
    if found.errors_other > 0 {
        let folder = quoted(&found.path.join("error"));
        problem(
            Kind::Errors,
            format!(
                "{} in error/ that another try does not help",
                files(found.errors_other)
            ),
            format!("read the reasons: cat {folder}/*.error.json"),
        );
    }
    if found.errors_retryable > 0 {
        problem(
            Kind::Retryable,
            format!(
                "{} in error/ that failed for the server's sake",
                files(found.errors_retryable)
            ),
            format!("powerview -d {} --retry-errors", quoted(Path::new(""))),
        );
    }
    let waits = found.oldest_waiting.map(|time| age(time.into()));
    if let Some(waits) = waits.filter(|waits| *waits > WAITS_TOO_LONG) {
        problem(
            Kind::Waiting,
            format!(
                "{}, the oldest for {}",
                if found.waiting == 1 {
                    "1 file waits".to_owned()
                } else {
                    format!("{} files wait", found.waiting)
                },
                span(waits)
            ),
            format!(
                "powerview -d {}, and see what it says",
                quoted(Path::new(""))
            ),
        );
    }
    if let (Some(file), Some(arrival)) = (newest, last_file_time)
        && let Some(last) = file
            .last_measurement
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
    {
        let off = |ahead: bool, by: Duration| {
            format!(
                "the last measurement is {} {} the file's arrival",
                span(by),
                if ahead { "after" } else { "before" }
            )
        };
        let remedy = "set the logger's clock and time zone (or TSV_TIMEZONE)".to_owned();
        match (last - arrival).to_std() {
            Ok(ahead) if ahead > AHEAD => problem(Kind::Clock, off(true, ahead), remedy),
            Err(_) => {
                let behind = (arrival - last).to_std().unwrap_or_default();
                if behind > BEHIND {
                    problem(Kind::Clock, off(false, behind), remedy);
                }
            }
            Ok(_) => {}
        }
    }
    if found.newest.len() == NEWEST && found.newest.iter().all(|file| file.truncated) {
        problem(
            Kind::Truncated,
            format!("the last {NEWEST} files are all cut off"),
            "check the logger's connection: its uploads break off".to_owned(),
        );
    }
    problems.sort();
    DeviceStatus {
        company,
        campaign,
        device,
        last_measurement,
        last_file: newest.map(|file| sanitize(file.sub.join(&file.name))),
        last_file_time,
        waiting: found.waiting,
        errors_retryable: found.errors_retryable,
        errors_other: found.errors_other,
        problems,
    }
}

fn files(count: u64) -> String {
    if count == 1 {
        "1 file".to_owned()
    } else {
        format!("{count} files")
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::Newest;
    use super::*;
    use std::path::PathBuf;

    const HOUR: u64 = 3600;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    /// A device whose newest files arrived so many hours ago, with measurements up to so many hours before now.
    fn device(files: &[(u64, i64, bool)]) -> DeviceScan {
        DeviceScan {
            path: PathBuf::from("acme/site/0200"),
            newest: files
                .iter()
                .map(|(hours, measured, truncated)| Newest {
                    name: "x.tsv".into(),
                    sub: "parsed".into(),
                    time: (now() - Duration::from_secs(hours * HOUR)).into(),
                    last_measurement: Some(now().timestamp() - measured * 3600),
                    truncated: *truncated,
                })
                .collect(),
            ..DeviceScan::default()
        }
    }

    fn kinds(found: DeviceScan) -> Vec<Kind> {
        let status = diagnose(
            found,
            Path::new("/data"),
            now(),
            Duration::from_secs(26 * HOUR),
        );
        status.problems.iter().map(|p| p.kind).collect()
    }

    #[test]
    fn a_logger_that_sends_every_day_is_well() {
        assert_eq!(kinds(device(&[(3, 3, false), (27, 27, false)])), []);
    }

    #[test]
    fn a_logger_is_silent_after_the_given_time() {
        assert_eq!(kinds(device(&[(27, 27, false)])), [Kind::Silent]);
        assert_eq!(kinds(device(&[(25, 25, false)])), []);
    }

    #[test]
    fn a_clock_is_off_ahead_and_behind() {
        assert_eq!(kinds(device(&[(1, -2, false)])), [Kind::Clock]);
        assert_eq!(kinds(device(&[(1, 80, false)])), [Kind::Clock]);
        assert_eq!(kinds(device(&[(1, 60, false)])), []);
    }

    #[test]
    fn only_cuts_again_and_again_are_told() {
        assert_eq!(
            kinds(device(&[(1, 1, true), (2, 2, true), (3, 3, true)])),
            [Kind::Truncated]
        );
        assert_eq!(
            kinds(device(&[(1, 1, true), (2, 2, false), (3, 3, true)])),
            []
        );
        assert_eq!(kinds(device(&[(1, 1, true), (2, 2, true)])), []);
    }

    #[test]
    fn errors_and_files_that_wait_are_told_with_the_command_that_helps() {
        let mut found = device(&[(1, 1, false)]);
        found.errors_other = 1;
        found.errors_retryable = 2;
        found.waiting = 3;
        found.oldest_waiting = Some((now() - Duration::from_secs(3 * HOUR)).into());
        let status = diagnose(
            found,
            Path::new("/da'ta"),
            now(),
            Duration::from_secs(26 * HOUR),
        );
        let kinds: Vec<_> = status.problems.iter().map(|p| p.kind).collect();
        assert_eq!(kinds, [Kind::Errors, Kind::Retryable, Kind::Waiting]);
        assert_eq!(
            status.problems[1].remedy,
            r"powerview -d '/da'\''ta' --retry-errors"
        );
    }

    #[test]
    fn a_campaign_without_a_device_and_a_device_without_a_file_are_empty() {
        let at = |path: &str| DeviceScan {
            path: path.into(),
            ..DeviceScan::default()
        };
        assert_eq!(kinds(at("acme/site")), [Kind::Empty]);
        assert_eq!(kinds(at("acme/site/0200")), [Kind::Empty]);
    }
}
