//! The results of a comparison.

use chrono::{DateTime, Datelike as _};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

/// Number of samples of each kind that are kept per device.
const MAX_SAMPLES: usize = 3;

/// Numbers of points.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PointDifferences {
    /// Points that the files give.
    pub expected: u64,
    /// Points of the database.
    pub found: u64,
    /// Expected points that the database does not have.
    pub missing: u64,
    /// Expected points that the database has with another value.
    pub different: u64,
    /// Points of the database that no file gives.
    pub extra: u64,
}

impl PointDifferences {
    /// Whether the database has exactly the expected points.
    pub(crate) fn is_equal(&self) -> bool {
        self.missing == 0 && self.different == 0 && self.extra == 0
    }

    /// The number of points that differ.
    pub(crate) fn differing(&self) -> u64 {
        self.missing + self.different + self.extra
    }
}

impl AddAssign for PointDifferences {
    fn add_assign(&mut self, other: Self) {
        self.expected += other.expected;
        self.found += other.found;
        self.missing += other.missing;
        self.different += other.different;
        self.extra += other.extra;
    }
}

/// A kind of difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Difference {
    Missing,
    Different,
    Extra,
}

/// One of the points that differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Seconds since 1970.
    pub time: i64,
    /// Id, name and unit of the channel, or all tags of a series that no file has.
    pub series: String,
    /// The value that the files give.
    pub expected: Option<f64>,
    /// The value of the database, as the server writes it.
    pub found: Option<String>,
}

/// A month in UTC: year and number.
pub(crate) type Month = (i32, u32);

/// The month of a time in seconds since 1970.
pub(super) fn month_of(time: i64) -> Month {
    // All times of files and databases are within the years that can be represented.
    let day = DateTime::from_timestamp(time, 0).unwrap_or_default();
    (day.year(), day.month())
}

/// The points of a device that were compared.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeviceCounts {
    pub months: BTreeMap<Month, PointDifferences>,
    /// The first points that differ, of each kind.
    pub samples: BTreeMap<Difference, Vec<Sample>>,
    /// The days with extra points, counted from 1970.
    pub extra_days: BTreeSet<i64>,
}

impl DeviceCounts {
    /// The numbers of the month of a time in seconds since 1970.
    pub(super) fn counts(&mut self, time: i64) -> &mut PointDifferences {
        self.months.entry(month_of(time)).or_default()
    }

    /// The numbers of all months.
    pub(crate) fn total(&self) -> PointDifferences {
        let mut total = PointDifferences::default();
        for counts in self.months.values() {
            total += *counts;
        }
        total
    }

    pub(super) fn add_sample(&mut self, kind: Difference, sample: impl FnOnce() -> Sample) {
        let samples = self.samples.entry(kind).or_default();
        if samples.len() < MAX_SAMPLES {
            samples.push(sample());
        }
    }

    /// Adds the points of another range of times.
    pub(super) fn add(&mut self, other: Self) {
        for (month, counts) in other.months {
            *self.months.entry(month).or_default() += counts;
        }
        self.extra_days.extend(other.extra_days);
        for (kind, samples) in other.samples {
            for sample in samples {
                self.add_sample(kind, || sample);
            }
        }
    }
}

/// The points of some devices within a range of times.
#[derive(Debug)]
pub(super) struct PartResult {
    /// In the order of the devices.
    pub devices: Vec<DeviceCounts>,
}

impl PartResult {
    pub(super) fn new(devices: usize) -> Self {
        Self {
            devices: vec![DeviceCounts::default(); devices],
        }
    }

    pub(super) fn device(&mut self, position: usize) -> &mut DeviceCounts {
        &mut self.devices[position]
    }

    /// The numbers of all devices.
    pub(super) fn total(&self) -> PointDifferences {
        let mut total = PointDifferences::default();
        for device in &self.devices {
            total += device.total();
        }
        total
    }
}
