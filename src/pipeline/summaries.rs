//! Updates the hourly summaries of devices, after all files are moved and the report is written. See docs/specification.md,
//! section 11.

use super::RunContext;
use super::device::Device;
use crate::data_dir::{DevicePath, Dir, PENDING_FILE, is_no_folder};
use crate::rollup::{Days, PendingDays, Rollup, RollupError};
use crate::sanitize::sanitize;
use crate::sink::{Destination, InfluxReader, ReadError, SUMMARY_TIME, Sink, Stream};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// How many devices may be late in a row, without any of their summaries. Each has half the time of the one before.
const MAX_LATE_IN_A_ROW: u32 = 4;

/// The devices with pending days: the folders, relative to the data folder, with the days that are not in the file of
/// pending ones.
#[derive(Default)]
pub(super) struct SummaryState(Mutex<BTreeMap<PathBuf, (DevicePath, Days)>>);

impl SummaryState {
    fn add(&self, device: PathBuf, location: &DevicePath, unsaved: Days) {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || (location.clone(), Days::new());
        let (_, known) = devices.entry(device).or_insert_with(new);
        add_days(known, unsaved);
    }

    fn take(&self) -> BTreeMap<PathBuf, (DevicePath, Days)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Adds the days of each master to those that are known.
fn add_days(known: &mut Days, days: Days) {
    for (master, mut days) in days {
        known.entry(master).or_default().append(&mut days);
    }
}

impl RunContext<'_> {
    /// Whether summaries are updated.
    fn has_summaries(&self) -> bool {
        self.settings.rollup.is_some() && self.sink.has_summaries()
    }

    /// Takes note of a device with days that an earlier run has left.
    pub(super) fn note_pending_days(&self, folder: &Dir, device: &Path, location: &DevicePath) {
        // If this is unknown, its next file shows it.
        if self.has_summaries() && folder.has_state_file(PENDING_FILE).unwrap_or(false) {
            self.summaries.add(device.to_owned(), location, Days::new());
        }
    }

    /// Computes the summaries of the pending days. Failing is a warning, and what fails stays pending.
    pub(super) fn update_summaries(&self, is_sweep: bool) {
        let devices = self.summaries.take();
        if devices.is_empty() || !self.has_summaries() {
            return;
        }
        let Some(gap_limit) = self.settings.rollup else {
            return;
        };
        let (Sink::Influx(influx), Destination::Influx(server)) =
            (self.sink, &self.settings.destination)
        else {
            return;
        };
        let mut reader = match InfluxReader::sharing(influx, server, self.stop) {
            Ok(reader) => reader,
            Err(error) => {
                tracing::warn!("the hourly summaries are not up to date: {error:#}");
                return;
            }
        };
        let mut deadline = Instant::now() + SUMMARY_TIME;
        let mut late_in_a_row = 0;
        let mut failed = HashSet::new();
        let mut devices = devices.into_iter();
        while let Some((device, (location, unsaved))) = devices.next() {
            if self.stop.is_requested() {
                return;
            }
            let company = location.company.as_str();
            if failed.contains(company) {
                continue;
            }
            if is_sweep {
                // If the server is too slow for all devices, the run ends soon.
                deadline = Instant::now() + SUMMARY_TIME / 2_u32.pow(late_in_a_row);
            }
            reader.set_deadline(deadline);
            let rollup = Rollup {
                source: &reader,
                sink: self.sink,
                stream: Stream::Summaries(deadline),
                gap_limit,
                batch_lines: self.settings.batch_lines,
                notes: RefCell::default(),
            };
            let result = self.update_device(&rollup, &device, &location, unsaved);
            rollup.log_notes(company);
            match &result {
                Ok(()) | Err(RollupError::Unfinished) => late_in_a_row = 0,
                Err(RollupError::Read(ReadError::Late)) => late_in_a_row += 1,
                Err(_) => {}
            }
            let Err(error) = result else { continue };
            if self.stop.is_requested() {
                tracing::warn!(
                    "the hourly summaries of {} are not up to date, because the run was stopped; the next one goes on",
                    sanitize(&device)
                );
                return;
            }
            let data = sanitize(&self.settings.data_folder);
            if error.is_of_server() {
                let name = sanitize(company);
                tracing::warn!(
                    "the hourly summaries of {name} are not up to date: {error}; the next run goes on, or run powerview rollup -d {data} --company {name:?}"
                );
                failed.insert(company.to_owned());
                continue;
            }
            tracing::warn!(
                "the hourly summaries of {} are not up to date: {error}; the next run goes on, or run powerview rollup -d {data}",
                sanitize(&device)
            );
            let is_over = !is_sweep && deadline <= Instant::now();
            if is_over || late_in_a_row == MAX_LATE_IN_A_ROW {
                if devices.next().is_some() {
                    tracing::warn!(
                        "this run updates no more hourly summaries, because the time is over; the next one goes on, or run powerview rollup -d {data}"
                    );
                }
                return;
            }
        }
    }

    fn update_device(
        &self,
        rollup: &Rollup<'_>,
        device: &Path,
        location: &DevicePath,
        unsaved: Days,
    ) -> Result<(), RollupError> {
        if let Some(outage) = self.sink.outage(location.company.as_str()) {
            return Err(outage.into());
        }
        let folder = match self.data.open_below(device) {
            Ok(folder) => folder,
            Err(error) if is_no_folder(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut wait = self.settings.lock_wait;
        rollup.update_pending(&folder, location, unsaved, &mut wait, self.stop)
    }
}

impl Device<'_> {
    /// Takes note of the days of points that were written, if they are to be summarized.
    pub(super) fn note_days(&self, days: Days) {
        if !self.context.has_summaries() {
            return;
        }
        add_days(&mut self.days.borrow_mut(), days);
    }

    /// Adds the days to the file of pending ones. It is called before the files are moved: a run that is killed leaves them
    /// to the next one.
    ///
    /// The caller holds the lock of the device.
    pub(super) fn keep_days(&self) {
        let days = self.days.take();
        // The version of the server may have become known after the days were noted.
        if days.is_empty() || !self.context.has_summaries() {
            return;
        }
        let mut unsaved = Days::new();
        if let Err(error) = PendingDays::add(&self.folder, &self.location.campaign, days.clone()) {
            let path = self.folder.path().join(PENDING_FILE);
            self.context.recorder.warn(
                &path,
                &format!(
                    "cannot add the days whose hourly summaries are to be computed: {error}; if this run does not compute them, powerview rollup does"
                ),
            );
            unsaved = days;
        }
        let DevicePath {
            company,
            campaign,
            device,
        } = &self.location;
        let path = [company.as_str(), campaign.as_str(), device.as_str()];
        self.context
            .summaries
            .add(path.iter().collect(), &self.location, unsaved);
    }
}
