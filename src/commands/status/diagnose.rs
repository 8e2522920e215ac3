//! Diagnosis of a device: its problems and their remedies.

use super::scan::{DeviceScan, NEWEST_FILES};
use super::{DeviceStatus, Kind, Problem, format_duration};
use crate::report::counted;
use crate::sanitize::sanitize;
use chrono::{DateTime, Utc};
use std::path::Path;
use std::time::Duration;

/// Maximum waiting time of a file. The hook or a sweep should have ingested it by then.
const MAX_WAITING: Duration = Duration::from_hours(2);

/// Maximum time by which the last measurement may be after the file's arrival. More means a wrong clock.
const MAX_CLOCK_AHEAD: Duration = Duration::from_hours(1);

/// Maximum time by which the last measurement may be before the file's arrival. More means a wrong clock.
const MAX_CLOCK_BEHIND: Duration = Duration::from_hours(72);

/// Derives the status of a device from its scan.
pub(super) fn diagnose(
    scan: &DeviceScan,
    data: &Path,
    now: DateTime<Utc>,
    silent_after: Duration,
) -> DeviceStatus {
    let mut parts = scan.path.iter().map(sanitize);
    let mut part = || parts.next().unwrap_or_default();
    let (company, campaign, device) = (part(), part(), part());
    let newest = scan.newest.first();
    let last_file_time = newest.map(|file| DateTime::<Utc>::from(file.time));
    let last_measurement = scan
        .newest
        .iter()
        .filter_map(|file| file.last_measurement)
        .max()
        .and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let age = |time: DateTime<Utc>| (now - time).to_std().unwrap_or_default();
    // Collected from components, because joining an empty path would add a trailing slash.
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
        });
    };

    if let Some(error) = &scan.unreadable {
        problem(
            Kind::Unreadable,
            format!("the folder cannot be read: {error}"),
            format!(
                "grant read access to {} to the user that runs powerview",
                quoted(&scan.path)
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
            "check the folder that the logger uploads to, or remove this folder".to_owned(),
        );
    } else {
        match last_file_time {
            None => problem(
                Kind::Empty,
                "no file has arrived yet".to_owned(),
                "check the logger's SFTP settings: user, folder, network".to_owned(),
            ),
            Some(time) if age(time) > silent_after => problem(
                Kind::Silent,
                format!("no file for {}", format_duration(age(time))),
                "check the logger's power and network, then its SFTP user".to_owned(),
            ),
            Some(_) => {}
        }
    }
    if scan.errors_other > 0 {
        let folder = quoted(&scan.path.join("error"));
        problem(
            Kind::Errors,
            format!(
                "{} in error/ that cannot be retried",
                counted(scan.errors_other, "file")
            ),
            format!("read the reasons: cat {folder}/*.error.json"),
        );
    }
    if scan.errors_retryable > 0 {
        problem(
            Kind::Retryable,
            format!(
                "{} in error/ that failed because of the server",
                counted(scan.errors_retryable, "file")
            ),
            format!("powerview -d {} --retry-errors", quoted(Path::new(""))),
        );
    }
    let waiting_for = scan.oldest_waiting.map(|time| age(time.into()));
    if let Some(waiting_for) = waiting_for.filter(|waiting_for| *waiting_for > MAX_WAITING) {
        problem(
            Kind::Waiting,
            format!(
                "{} waiting, the oldest for {}",
                counted(scan.waiting, "file"),
                format_duration(waiting_for)
            ),
            format!(
                "run powerview -d {} and read its messages",
                quoted(Path::new(""))
            ),
        );
    }
    if let (Some(file), Some(arrival)) = (newest, last_file_time)
        && let Some(last) = file
            .last_measurement
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
    {
        let message = |ahead: bool, by: Duration| {
            format!(
                "the last measurement is {} {} the file's arrival",
                format_duration(by),
                if ahead { "after" } else { "before" }
            )
        };
        let remedy = "correct the logger's clock and time zone, or TSV_TIMEZONE".to_owned();
        match (last - arrival).to_std() {
            Ok(ahead) if ahead > MAX_CLOCK_AHEAD => {
                problem(Kind::Clock, message(true, ahead), remedy);
            }
            Err(_) => {
                let behind = (arrival - last).to_std().unwrap_or_default();
                if behind > MAX_CLOCK_BEHIND {
                    problem(Kind::Clock, message(false, behind), remedy);
                }
            }
            Ok(_) => {}
        }
    }
    if scan.newest.len() == NEWEST_FILES && scan.newest.iter().all(|file| file.truncated) {
        problem(
            Kind::Truncated,
            format!("the last {NEWEST_FILES} files are all truncated"),
            "check the logger's network connection, which interrupts its uploads".to_owned(),
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
        waiting: scan.waiting,
        errors_retryable: scan.errors_retryable,
        errors_other: scan.errors_other,
        problems,
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::NewestFile;
    use super::*;
    use std::path::PathBuf;

    const HOUR: u64 = 3600;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    /// A device whose newest files have the given arrival and last measurement, in hours before now.
    fn device(files: &[(u64, i64, bool)]) -> DeviceScan {
        DeviceScan {
            path: PathBuf::from("acme/site/0200"),
            newest: files
                .iter()
                .map(|(hours, measured, truncated)| NewestFile {
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

    fn kinds(scan: &DeviceScan) -> Vec<Kind> {
        let status = diagnose(
            scan,
            Path::new("/data"),
            now(),
            Duration::from_secs(26 * HOUR),
        );
        status.problems.iter().map(|p| p.kind).collect()
    }

    #[test]
    fn a_logger_that_uploads_every_day_is_healthy() {
        assert_eq!(kinds(&device(&[(3, 3, false), (27, 27, false)])), []);
    }

    #[test]
    fn a_logger_is_silent_after_the_given_time() {
        assert_eq!(kinds(&device(&[(27, 27, false)])), [Kind::Silent]);
        assert_eq!(kinds(&device(&[(25, 25, false)])), []);
    }

    #[test]
    fn a_clock_that_is_ahead_or_behind_is_a_problem() {
        assert_eq!(kinds(&device(&[(1, -2, false)])), [Kind::Clock]);
        assert_eq!(kinds(&device(&[(1, 80, false)])), [Kind::Clock]);
        assert_eq!(kinds(&device(&[(1, 60, false)])), []);
    }

    #[test]
    fn only_repeated_truncation_is_a_problem() {
        assert_eq!(
            kinds(&device(&[(1, 1, true), (2, 2, true), (3, 3, true)])),
            [Kind::Truncated]
        );
        assert_eq!(
            kinds(&device(&[(1, 1, true), (2, 2, false), (3, 3, true)])),
            []
        );
        assert_eq!(kinds(&device(&[(1, 1, true), (2, 2, true)])), []);
    }

    #[test]
    fn failed_and_waiting_files_are_problems_with_a_command_as_remedy() {
        let mut scan = device(&[(1, 1, false)]);
        scan.errors_other = 1;
        scan.errors_retryable = 2;
        scan.waiting = 3;
        scan.oldest_waiting = Some((now() - Duration::from_secs(3 * HOUR)).into());
        let status = diagnose(
            &scan,
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
        assert_eq!(kinds(&at("acme/site")), [Kind::Empty]);
        assert_eq!(kinds(&at("acme/site/0200")), [Kind::Empty]);
    }
}
