//! Hourly summaries of the points of a company, in a measurement of their own. See docs/specification.md, section 11.
//!
//! They are computed from the points in the database, so that late, repeated and corrected files count as they are there.

mod compare;
mod compute;
mod hours;
mod pending;
#[cfg(test)]
mod remake_tests;
mod sum;
mod virtual_channels;

pub(crate) use self::compare::{Comparison, Scope, SummaryCounts};
pub(crate) use self::hours::GapLimit;
pub(crate) use self::pending::{Days, PendingDays};

use self::compute::{Computed, Run, Summaries, runs};
use self::hours::DAY;
use crate::data_dir::{LockError, PENDING_FILE, SUMMARIES};
use crate::points::{Batch, Line};
use crate::sanitize::sanitize;
use crate::sink::{PointSource, ReadError, Sink, Stream, WriteError, retried};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Number of days that are compared at once.
const MAX_DAYS: i64 = 16;

/// Maximum number of days within which the new points are whose summaries are computed at once.
const MAX_NEW_DAYS: i64 = 30;

/// Approximate maximum size of a request with summaries, in bytes. Those of a file fit into one.
const MAX_BODY: usize = 4 << 20;

/// Maximum number of notes.
const MAX_NOTES: usize = 100;

/// The points whose summaries are computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Master<'a> {
    pub bucket: &'a str,
    /// The measurement of the campaign.
    pub measurement: &'a str,
    /// The value of the tag `device_master_sn`; empty for points without it.
    pub serial: &'a str,
}

/// Everything that computing summaries needs.
pub(crate) struct Rollup<'a> {
    pub source: &'a dyn PointSource,
    pub sink: &'a Sink,
    /// How summaries are written. It decides how long that is retried.
    pub stream: Stream,
    pub gap_limit: GapLimit,
    /// Maximum number of summaries per request.
    pub batch_lines: u32,
    /// Which points have no summaries, and why.
    pub notes: RefCell<BTreeSet<String>>,
}

/// Why summaries were not computed or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RollupError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{}", .0.with_remedy())]
    Lock(#[from] LockError),
    /// The summaries of another device of the campaign are being computed.
    #[error("campaign folder is locked by {0}")]
    CampaignHeld(String),
    #[error("{PENDING_FILE}: {0}")]
    Pending(#[from] io::Error),
    /// The time is over, but a part is done.
    #[error("there was not enough time for all")]
    Unfinished,
}

impl RollupError {
    /// Whether the requests for other masters fail too.
    pub(crate) fn is_of_server(&self) -> bool {
        match self {
            Self::Read(error) => {
                matches!(error, ReadError::Unavailable(_) | ReadError::Stopped)
            }
            Self::Write(error) => matches!(error, WriteError::Outage(_) | WriteError::Stopped),
            Self::Lock(_) | Self::CampaignHeld(_) | Self::Pending(_) | Self::Unfinished => false,
        }
    }
}

/// The day of a time in seconds since 1970, in days since 1970.
pub(crate) fn day_of(time: i64) -> i64 {
    time.div_euclid(DAY / hours::SECOND)
}

impl Rollup<'_> {
    /// Computes the summaries of the first days that have new points, in days since 1970, and of all days whose summaries
    /// depend on these, with those of the virtual channels if the campaign has any. The new points are within `length` days.
    /// Days that are done are removed.
    ///
    /// # Errors
    /// The points cannot be read, or the summaries not written.
    fn update_first(
        &self,
        master: Master<'_>,
        days: &mut BTreeSet<i64>,
        length: i64,
        has_virtual: bool,
    ) -> Result<(), RollupError> {
        let margin = self.margin();
        if let Some(run) = runs(days, margin, length).first() {
            let ids = self.update_run(master, run)?;
            if has_virtual && !ids.is_empty() {
                self.update_virtual(master, run, &ids)?;
            }
            days.retain(|day| day + margin + 1 > run.days.end);
        }
        Ok(())
    }

    /// Returns the ids of the channels with summaries.
    fn update_run(&self, master: Master<'_>, run: &Run) -> Result<BTreeSet<String>, RollupError> {
        let mut lines = Lines::new(self, master.bucket);
        let mut ids = BTreeSet::new();
        let computed = self.compute(master, run, |tags, hours| {
            lines.add(&tags, &hours);
            let id = tags.into_iter().find(|(key, _)| key == "channel_id");
            ids.extend(id.filter(|_| !hours.is_empty()).map(|(_, id)| id));
        })?;
        // The last interval of these days now ends with a new point, which may change their gap limit.
        for run in &runs(&computed.earlier, self.margin(), MAX_NEW_DAYS) {
            if lines.result.is_err() {
                break;
            }
            self.compute(master, run, |tags, hours| lines.add(&tags, &hours))?;
        }
        lines.finish()?;
        Ok(ids)
    }

    /// The time that is left, if it is limited.
    fn time_left(&self) -> Option<Duration> {
        match self.stream {
            Stream::Summaries(deadline) => Some(deadline.saturating_duration_since(Instant::now())),
            Stream::Measurements | Stream::Copies | Stream::Meta => None,
        }
    }

    /// Logs which points of a bucket have no summaries.
    pub(crate) fn log_notes(&self, bucket: &str) {
        for note in self.notes.take() {
            tracing::warn!("bucket {}: {note}", sanitize(bucket));
        }
    }

    /// The number of days before and after new points whose summaries may depend on them.
    fn margin(&self) -> i64 {
        match self.gap_limit {
            GapLimit::Fixed(limit) => limit / DAY + 1,
            GapLimit::OfDay => 1,
        }
    }

    /// Computes the summaries of a run and passes them on, one series after the other.
    fn compute(
        &self,
        master: Master<'_>,
        run: &Run,
        mut each: impl FnMut(compute::Tags, compute::Hours),
    ) -> Result<Computed, ReadError> {
        let computed = retried(|| {
            let mut summaries = Summaries::new(master.measurement, run, self.gap_limit);
            self.source
                .points(&summaries.query(master), &mut summaries)?;
            Ok(summaries.finish(&mut each))
        })?;
        for campaign in &computed.other_campaigns {
            self.note(
                master.measurement,
                &format!(
                    "points with the tag campaign={} have no hourly summaries, because they belong to the measurement of that name",
                    sanitize(campaign)
                ),
            );
        }
        if computed.has_virtual {
            self.note(
                master.measurement,
                "points with the tag channel_type=virtual and the id of a virtual channel have no hourly summaries",
            );
        }
        if computed.unwritable > 0 {
            self.note(
                master.measurement,
                "channels whose tags have a line break, or a backslash at the end, have no hourly summaries",
            );
        }
        Ok(computed)
    }

    /// Adds a note about points of a measurement.
    fn note(&self, measurement: &str, note: &str) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() < MAX_NOTES {
            notes.insert(format!("measurement {}: {note}", sanitize(measurement)));
        }
    }
}

/// Summaries that are written in batches.
struct Lines<'a> {
    rollup: &'a Rollup<'a>,
    bucket: Arc<str>,
    lines: Vec<u8>,
    /// The number of lines that wait.
    waiting: u32,
    written: u64,
    result: Result<(), WriteError>,
}

impl<'a> Lines<'a> {
    fn new(rollup: &'a Rollup<'a>, bucket: &str) -> Self {
        Self {
            rollup,
            bucket: bucket.into(),
            lines: Vec::new(),
            waiting: 0,
            written: 0,
            result: Ok(()),
        }
    }

    /// Adds the summaries of a series.
    fn add<'h>(
        &mut self,
        tags: &[(String, String)],
        hours: impl IntoIterator<Item = (&'h i64, &'h compute::Values)>,
    ) {
        for (hour, values) in hours {
            let mut line = Line::new(SUMMARIES);
            for (key, value) in tags {
                line.tag(key, value);
            }
            let mut fields = line.fields();
            for (field, value) in compute::FIELDS.iter().zip(values) {
                if field.is_integer {
                    #[expect(clippy::cast_possible_truncation, reason = "whole and small")]
                    fields.integer(field.key, *value as i64);
                } else {
                    fields.float(field.key, *value);
                }
            }
            self.lines.extend(fields.at(hour / hours::SECOND));
            self.waiting += 1;
            if self.waiting >= self.rollup.batch_lines || self.lines.len() >= MAX_BODY {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let waiting = std::mem::take(&mut self.waiting);
        if waiting == 0 || self.result.is_err() {
            return;
        }
        let batch = Batch::plain(lines, waiting);
        let sent = self
            .rollup
            .sink
            .send(&self.bucket, batch, self.rollup.stream);
        let written = sent.wait();
        self.written += written.points.accepted;
        self.result = written.result;
    }

    /// Writes the rest. Returns the number of summaries that were written.
    fn finish(mut self) -> Result<u64, RollupError> {
        self.flush();
        self.result?;
        Ok(self.written)
    }
}
