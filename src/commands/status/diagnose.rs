//! Diagnosis of a device: its problems and their remedies.

use super::scan::{DeviceScan, MAX_REASON_CHARS, NEWEST_FILES, NewestFile};
use super::{DeviceStatus, Kind, Problem, format_duration};
use crate::data_dir::{LAYOUT_FILE, Obstacle, PARSED};
use crate::layout::{LayoutState, describe_changes};
use crate::logger_file::KNOWN_LOSS;
use crate::remedy::remedy;
use crate::report::counted;
use crate::sanitize::sanitize;
use chrono::{DateTime, TimeDelta, Utc};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Maximum waiting time of a file. The hook or a sweep should have ingested it by then.
const MAX_WAITING: Duration = Duration::from_hours(2);

/// Maximum time for which hourly summaries may be pending. Sweeps should have computed them by then.
const MAX_PENDING: Duration = Duration::from_hours(24);

/// Maximum time by which the last measurement may be after the file's arrival. More means a wrong clock.
const MAX_CLOCK_AHEAD: Duration = Duration::from_hours(1);

/// Maximum time by which the last measurement may be before the file's arrival. More means a wrong clock.
const MAX_CLOCK_BEHIND: Duration = Duration::from_hours(72);

/// Difference between the delays of two files, in seconds, up to which a wrong clock may be the cause of both.
const SAME_DELAY: i64 = 12 * 3600;

/// Time between the arrivals of two files, in seconds, from which on they are separate uploads of a logger.
const SEPARATE_UPLOADS: i64 = 6 * 3600;

/// Time for which a change of the layout is shown.
const CHANGE_IS_SHOWN: TimeDelta = TimeDelta::days(7);

/// Number of files that are named per device and kind of problem.
const MAX_NAMED: usize = 3;

/// 2010-01-01, before which no logger measured.
const YEAR_2010: i64 = 1_262_304_000;

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
    let mut diagnosis = Diagnosis {
        scan,
        data,
        now,
        problems: Vec::new(),
        note: None,
    };
    if let Some(error) = &scan.unreadable {
        diagnosis.unreadable(error);
    } else if scan.empty {
        diagnosis.without_device(campaign.is_empty());
    } else if !device.is_empty() {
        diagnosis.arrival(silent_after);
    }
    diagnosis.errors();
    diagnosis.obstacle();
    diagnosis.waiting();
    diagnosis.summaries();
    diagnosis.damaged();
    diagnosis.layout();
    diagnosis.clock();
    diagnosis.suspicious_times();
    diagnosis.truncated();
    diagnosis.strays();
    let Diagnosis {
        mut problems, note, ..
    } = diagnosis;
    let newest = scan.newest.first();
    let retired = scan
        .retired
        .is_some_and(|since| newest.is_none_or(|file| file.time <= since));
    if retired {
        problems.retain(|problem| !problem.kind.is_of_logger());
    }
    problems.sort();
    DeviceStatus {
        company,
        campaign,
        device,
        last_measurement: scan
            .newest
            .iter()
            .filter_map(|file| file.last_measurement)
            .max()
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0)),
        last_file: newest.map(|file| sanitize(file.sub.join(&file.name))),
        last_file_time: newest.map(|file| file.time.into()),
        waiting: scan.waiting,
        errors_retryable: scan.errors_retryable,
        errors_other: scan.errors_other,
        retired,
        verified: None,
        verified_since: None,
        problems,
        note,
    }
}

/// The problems of a device that were found so far.
struct Diagnosis<'a> {
    scan: &'a DeviceScan,
    /// The data folder.
    data: &'a Path,
    now: DateTime<Utc>,
    problems: Vec<Problem>,
    note: Option<String>,
}

/// Quotes a text for a shell.
fn quoted(text: impl AsRef<OsStr>) -> String {
    format!("'{}'", sanitize(text).replace('\'', "'\\''"))
}

impl Diagnosis<'_> {
    fn add(&mut self, kind: Kind, message: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem {
            kind,
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    fn age(&self, time: impl Into<DateTime<Utc>>) -> Duration {
        (self.now - time.into()).to_std().unwrap_or_default()
    }

    /// A path below the data folder, quoted for a shell.
    fn quoted(&self, path: &Path) -> String {
        // Collected from components, because joining an empty path would add a trailing slash.
        let whole: PathBuf = self.data.iter().chain(path).collect();
        quoted(&whole)
    }

    fn unreadable(&mut self, error: &str) {
        let folder = self.quoted(&self.scan.path);
        self.add(
            Kind::Unreadable,
            format!("the folder cannot be read: {error}"),
            format!("grant read access to {folder} to the user that runs powerview"),
        );
    }

    fn without_device(&mut self, is_company: bool) {
        self.add(
            Kind::Empty,
            if is_company {
                "the company has no campaign"
            } else {
                "the campaign has no device"
            },
            "check the folder that the logger uploads to, or remove this folder",
        );
    }

    fn arrival(&mut self, silent_after: Duration) {
        match self.scan.newest.first().map(|file| self.age(file.time)) {
            None => self.add(
                Kind::Empty,
                "no file has arrived yet",
                "check the logger's SFTP settings: user, folder, network",
            ),
            Some(age) if age > silent_after => self.add(
                Kind::Silent,
                format!("no file for {}", format_duration(age)),
                "check the logger's power and network, then its SFTP user",
            ),
            Some(_) => {}
        }
    }

    fn errors(&mut self) {
        let scan = self.scan;
        if scan.errors_other > 0 {
            let mut message = format!(
                "{} in error/ that cannot be retried",
                counted(scan.errors_other, "file")
            );
            let mut unnamed = scan.errors_other;
            for (number, (reason, files)) in scan.error_reasons.iter().enumerate() {
                unnamed -= files;
                let separator = if number == 0 { ": " } else { " | " };
                let _ = write!(message, "{separator}{reason} ({})", counted(*files, "file"));
            }
            if unnamed > 0 {
                let _ = write!(message, " | other reasons ({})", counted(unnamed, "file"));
            }
            let folder = self.quoted(&scan.path.join("error"));
            self.add(
                Kind::Errors,
                message,
                format!("correct the cause, send the files again and delete those in {folder}"),
            );
        }
        if scan.errors_retryable > 0 {
            let message = format!(
                "{} in error/ that failed because of the server",
                counted(scan.errors_retryable, "file")
            );
            let data = self.quoted(Path::new(""));
            self.add(
                Kind::Retryable,
                message,
                format!("powerview -d {data} --retry-errors"),
            );
        }
    }

    fn obstacle(&mut self) {
        let waiting = counted(self.scan.waiting, "file");
        let (message, remedy) = match &self.scan.obstacle {
            // The next file will wait.
            Some(Obstacle::NotAFolder(path)) => (
                format!(
                    "{waiting} waiting, because files cannot be moved: {} is not a folder",
                    self.quoted(path)
                ),
                "rename or remove it".to_owned(),
            ),
            Some(_) if self.scan.waiting == 0 => return,
            Some(Obstacle::ReadOnly(path)) => (
                format!(
                    "{waiting} waiting, because {} is on a read-only file system",
                    self.quoted(path)
                ),
                remedy(&Errno::ROFS.into(), "").to_owned(),
            ),
            Some(Obstacle::Rights(path)) => (
                format!(
                    "{waiting} waiting because the rights of {} do not allow to move files",
                    self.quoted(path)
                ),
                format!(
                    "make {} and the folders in it belong to the user of the hook: chown -R",
                    self.quoted(&self.scan.path)
                ),
            ),
            None => return,
        };
        self.add(Kind::Rights, message, remedy);
    }

    fn waiting(&mut self) {
        let Some(waiting_for) = self.scan.oldest_waiting.map(|time| self.age(time)) else {
            return;
        };
        if waiting_for > MAX_WAITING {
            let message = format!(
                "{} waiting, the oldest for {}",
                counted(self.scan.waiting, "file"),
                format_duration(waiting_for)
            );
            let data = self.quoted(Path::new(""));
            self.add(
                Kind::Waiting,
                message,
                format!("run powerview -d {data} and read its messages"),
            );
        }
    }

    fn summaries(&mut self) {
        let Some(pending_for) = self.scan.summaries_pending.map(|since| self.age(since)) else {
            return;
        };
        if pending_for > MAX_PENDING {
            let company = self.scan.path.iter().next().unwrap_or_default();
            let company = quoted(company);
            let data = self.quoted(Path::new(""));
            self.add(
                Kind::Summaries,
                format!(
                    "hourly summaries have not been computed for {}",
                    format_duration(pending_for)
                ),
                format!("run powerview rollup -d {data} --company {company} and read its messages"),
            );
        }
    }

    fn damaged(&mut self) {
        let newest = &self.scan.newest;
        let is_replaced = |position: usize| {
            let newer = &newest[..position];
            newer.iter().any(|newer| newer.replaces(&newest[position]))
        };
        let damaged: Vec<_> = newest
            .iter()
            .enumerate()
            .filter_map(|(position, file)| Some((position, file, file.loss()?)))
            .filter(|(position, ..)| !is_replaced(*position))
            .collect();
        let (named, others) = damaged.split_at(damaged.len().min(MAX_NAMED));
        if !others.is_empty() {
            let files = counted(others.len() as u64, "more file");
            self.add(
                Kind::Damaged,
                format!("{files} of the last days with lost values"),
                "see the dashboard of the receptions and the reports",
            );
        }
        for (_, file, loss) in named {
            let path = file.sub.join(&file.name);
            let message = format!("{}: {loss}", sanitize(&path));
            let remedy = format!(
                "correct the cause at the logger and send the file again, or correct the file and run powerview -d {} -t {}",
                self.quoted(Path::new("")),
                self.quoted(&self.scan.path.join(path))
            );
            self.add(Kind::Damaged, message, remedy);
        }
    }

    fn layout(&mut self) {
        if let Some(error) = &self.scan.layout_error {
            let file = self.quoted(&self.scan.path.join(LAYOUT_FILE));
            self.add(
                Kind::Layout,
                format!(
                    "the remembered layouts cannot be read, so changes may not be shown: {error}"
                ),
                format!(
                    "remove {file}; the next file is compared with the one before in {PARSED}/"
                ),
            );
        }
        for (message, is_suspect) in layout_problems(&self.scan.layout, self.now) {
            let remedy = if is_suspect {
                let data = self.quoted(Path::new(""));
                let device = sanitize(&self.scan.path).replace('\'', "'\\''");
                format!(
                    "correct the logger's configuration, or accept it with powerview status -d {data} --acknowledge '{device}'"
                )
            } else {
                "check the logger's configuration, and the dashboards and bills that use these columns"
                    .to_owned()
            };
            self.add(Kind::Layout, message, remedy);
        }
    }

    fn clock(&mut self) {
        let Some(file) = self.scan.newest.first() else {
            return;
        };
        let Some(last) = file
            .last_measurement
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
        else {
            return;
        };
        let difference = last - DateTime::<Utc>::from(file.time);
        let by = difference.abs().to_std().unwrap_or_default();
        let is_ahead = difference > TimeDelta::zero();
        let limit = if is_ahead {
            MAX_CLOCK_AHEAD
        } else {
            MAX_CLOCK_BEHIND
        };
        if by > limit && !is_ahead && is_old_data(first_of(&self.scan.newest)) {
            self.note = Some(format!(
                "old data loaded: the last measurement in {} is {} before its arrival",
                sanitize(file.sub.join(&file.name)),
                format_duration(by)
            ));
        } else if by > limit {
            self.add(
                Kind::Clock,
                format!(
                    "the last measurement is {} {} the file's arrival",
                    format_duration(by),
                    if is_ahead { "after" } else { "before" }
                ),
                "correct the logger's clock and time zone, or TSV_TIMEZONE",
            );
        }
    }

    fn suspicious_times(&mut self) {
        let is_known = |problem: &Problem| problem.kind == Kind::Clock;
        if self.problems.iter().any(is_known) {
            return;
        }
        let mut files: Vec<_> = self
            .scan
            .newest
            .iter()
            .filter(|file| file.stats.suspicious_times > 0)
            .map(|file| {
                let rows = counted(file.stats.suspicious_times, "row");
                format!("{rows} in {}", sanitize(file.sub.join(&file.name)))
            })
            .collect();
        if files.len() > MAX_NAMED {
            let others = files.split_off(MAX_NAMED).len() as u64;
            files.push(counted(others, "more file"));
        }
        if !files.is_empty() {
            self.add(
                Kind::Clock,
                format!(
                    "suspicious times (before 2010, more than 24 h after the upload, or more than 2 h before the previous row): {}",
                    files.join(", ")
                ),
                "correct the logger's clock and time zone; the points are in the database at these times",
            );
        }
    }

    fn strays(&mut self) {
        let strays = &self.scan.strays;
        if strays.count > 0 {
            let more = if strays.count > strays.first.len() as u64 {
                ", ..."
            } else {
                ""
            };
            let message = format!(
                "{} that no run takes: {}{more}",
                counted(strays.count, "file"),
                strays.first.join(", ")
            );
            self.add(
                Kind::Stray,
                message,
                "move logger files to <company>/<campaign>/<device>/<name>.tsv and delete the others",
            );
        }
    }

    fn truncated(&mut self) {
        let newest = first_of(&self.scan.newest);
        if newest.len() == NEWEST_FILES && newest.iter().all(|file| file.truncated) {
            self.add(
                Kind::Truncated,
                format!("the last {NEWEST_FILES} files are all truncated"),
                "check the logger's network connection, which interrupts its uploads",
            );
        }
    }
}

impl NewestFile {
    /// What the file has lost, for people, if it is more than [`KNOWN_LOSS`].
    fn loss(&self) -> Option<String> {
        let stats = &self.stats;
        let mut losses = Vec::new();
        if stats.loss_ratio() > KNOWN_LOSS {
            let mut loss = format!(
                "{:.1} % of the values are lost ({} of {})",
                stats.loss_ratio() * 100.0,
                stats.lost_cells,
                stats.cells
            );
            if let Some(problem) = &self.first_problem {
                let _ = write!(loss, ", the first defect: {problem}");
            }
            losses.push(loss);
        } else if stats.skipped_ratio() > KNOWN_LOSS {
            let mut loss = format!(
                "{:.1} % of the lines are skipped ({} of {})",
                stats.skipped_ratio() * 100.0,
                stats.skipped_lines(),
                stats.data_lines()
            );
            if let Some(problem) = &self.first_problem {
                let _ = write!(loss, ", the first defect: {problem}");
            }
            losses.push(loss);
        }
        if stats.after_end_ratio() > KNOWN_LOSS {
            losses.push(format!(
                "{:.1} % of the lines are after END_DATA and not ingested ({} of {})",
                stats.after_end_ratio() * 100.0,
                stats.lines_after_end,
                stats.data_lines()
            ));
        }
        (!losses.is_empty()).then(|| losses.join("; "))
    }

    /// Whether this file has the times of an older one and as many points as that one would have without its loss.
    fn replaces(&self, older: &Self) -> bool {
        let span = |file: &Self| file.first_measurement.zip(file.last_measurement);
        let covers = match (span(self), span(older)) {
            (Some(own), Some(other)) => own.0 <= other.0 && own.1 >= other.1,
            _ => false,
        };
        covers && self.stats.points >= older.stats.cells.max(1) && self.loss().is_none()
    }
}

/// What is wrong with the layouts of a device and not acknowledged, and whether it is a suspicion.
pub(super) fn layout_problems(state: &LayoutState, now: DateTime<Utc>) -> Vec<(String, bool)> {
    let mut problems = Vec::new();
    let after = (now - CHANGE_IS_SHOWN).timestamp_nanos_opt();
    let changes = state.open_changes(after.unwrap_or_default());
    if let Some((time, columns)) = changes.last() {
        let time = DateTime::from_timestamp_nanos(*time);
        problems.push((
            format!(
                "the layout changed in {} with the upload of {}: {}{}",
                counted(columns.len() as u64, "column"),
                time.format("%Y-%m-%d %H:%MZ"),
                describe_changes(columns),
                match changes.len() - 1 {
                    0 => String::new(),
                    more => format!(" (and {} before)", counted(more as u64, "change")),
                }
            ),
            false,
        ));
    }
    if let Some(suspicion) = state.open_suspicion() {
        let reasons: String = suspicion.reasons.join("; ");
        let shown: String = reasons.chars().take(MAX_REASON_CHARS).collect();
        problems.push((
            format!(
                "the layout contradicts itself in {}: {}",
                sanitize(&suspicion.file),
                sanitize(shown)
            ),
            true,
        ));
    }
    problems
}

/// The files that decide whether the clock and the uploads are healthy.
fn first_of(newest: &[NewestFile]) -> &[NewestFile] {
    &newest[..newest.len().min(NEWEST_FILES)]
}

/// Whether the newest file contains old data that was loaded later, so that its times say nothing about the clock.
///
/// Its span or its name says so: it covers days, other files are not late by the same time, or its name has a date between
/// its last measurement and the last days before its arrival. A clock that shows a year before 2010 was reset, and one that is behind by the same time in files
/// that arrived hours apart is wrong.
fn is_old_data(newest: &[NewestFile]) -> bool {
    let late = |file: &NewestFile| {
        let arrival = DateTime::<Utc>::from(file.time).timestamp();
        Some((arrival, arrival - file.last_measurement?))
    };
    let Some((file, others)) = newest.split_first() else {
        return false;
    };
    let (Some((arrival, delay)), Some(last)) = (late(file), file.last_measurement) else {
        return false;
    };
    let others: Vec<_> = others.iter().filter_map(late).collect();
    let is_equally_late = |other: i64| (delay - other).abs() <= SAME_DELAY;
    let is_clock = last < YEAR_2010
        || others
            .iter()
            .any(|(at, other)| is_equally_late(*other) && arrival - at >= SEPARATE_UPLOADS);
    let span = file.first_measurement.map_or(0, |first| last - first);
    let has_date = |days: i64| {
        let date = DateTime::from_timestamp(last + days * 86_400, 0).unwrap_or_default();
        let name = file.name.to_string_lossy();
        ["%Y%m%d", "%Y-%m-%d", "%Y_%m_%d", "%y%m%d"]
            .iter()
            .any(|form| name.contains(&date.format(form).to_string()))
    };
    !is_clock
        && (span > MAX_CLOCK_BEHIND.as_secs().cast_signed()
            || others.iter().any(|(_, other)| !is_equally_late(*other))
            || (-1..=1.max(delay / 86_400 - 3)).any(has_date))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logger_file::RowStats;

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
                    first_measurement: Some(now().timestamp() - measured * 3600 - 600),
                    last_measurement: Some(now().timestamp() - measured * 3600),
                    truncated: *truncated,
                    stats: RowStats::default(),
                    first_problem: None,
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
    fn old_data_that_is_loaded_later_is_not_a_wrong_clock() {
        let note = |scan: &DeviceScan| {
            let status = diagnose(
                scan,
                Path::new("/data"),
                now(),
                Duration::from_secs(26 * HOUR),
            );
            assert_eq!(status.problems, [], "{scan:?}");
            status.note.unwrap_or_default()
        };
        // Beside files of the day, and with files of other days loaded at the same time.
        for files in [
            [(1, 2_000), (5, 5)],
            [(1, 2_000), (1, 2_024)],
            [(1, 100), (1, 200)],
        ] {
            let scan = device(&files.map(|(hours, measured)| (hours, measured, false)));
            assert!(note(&scan).starts_with("old data loaded: "), "{files:?}");
        }
        // 80 h before now is 2027-01-11 24:00, 2,000 h is 2026-10-24.
        for (name, hours) in [
            ("T302_270112_000000.tsv", 80),
            ("2026-10-24.tsv", 2_000),
            // The logger wrote the file weeks after its last measurement, and long before its arrival.
            ("T302_261201_031720.tsv", 2_000),
        ] {
            let mut scan = device(&[(1, hours, false)]);
            scan.newest[0].name = name.into();
            assert!(note(&scan).contains(name), "{name}");
        }
        // A file that was just written has old times.
        let mut scan = device(&[(1, 2_000, false)]);
        scan.newest[0].name = "T302_270114_031720.tsv".into();
        assert_eq!(kinds(&scan), [Kind::Clock]);
        let mut scan = device(&[(1, 2_000, false)]);
        scan.newest[0].first_measurement = Some(now().timestamp() - 2_100 * 3600);
        assert!(note(&scan).starts_with("old data loaded: "));
    }

    #[test]
    fn a_clock_that_stays_behind_or_was_reset_is_a_problem_whatever_the_name() {
        let mut scan = device(&[(1, 100, false), (25, 124, false)]);
        scan.newest[0].name = "T302_270111_040000.tsv".into();
        assert_eq!(kinds(&scan), [Kind::Clock]);
        let mut reset = device(&[(1, 3, false), (25, 25, false)]);
        reset.newest[0].last_measurement = Some(946_684_800);
        reset.newest[0].name = "T302_000101_000000.tsv".into();
        assert_eq!(kinds(&reset), [Kind::Clock]);
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
            empty: path == "acme/site",
            ..DeviceScan::default()
        };
        assert_eq!(kinds(&at("acme/site")), [Kind::Empty]);
        assert_eq!(kinds(&at("acme/site/0200")), [Kind::Empty]);
    }
}
