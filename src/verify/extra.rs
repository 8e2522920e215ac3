//! The points of a database that no file gives: those of devices without a folder, and why there are any.

use super::expected::Expected;
use super::folders::Compared;
use super::group::Group;
use super::{Cause, Causes, DeviceResult, Measurement, Unexplained, Verifier, VerifyError};
use crate::sink::retried;
use std::collections::BTreeSet;

impl Verifier<'_> {
    /// The points of masters that no folder has a file of.
    pub(super) fn unknown_devices(
        &self,
        measurement: &Measurement<'_>,
        compared: &[Compared],
    ) -> Result<Vec<DeviceResult>, VerifyError> {
        if !measurement.bucket_exists.get() {
            return Ok(Vec::new());
        }
        let Measurement { name, times, .. } = measurement;
        let mut found = Vec::new();
        for master in self.source.masters(measurement.bucket, name, times)? {
            if compared
                .iter()
                .any(|compared| compared.masters.contains(&master))
            {
                continue;
            }
            let counts = retried(|| {
                let mut nothing = Expected::default();
                let mut comparison = nothing.compare(1);
                self.points(measurement, &master, times, &mut comparison)?;
                Ok(comparison.finish().devices.swap_remove(0))
            })?;
            if counts.total().found == 0 {
                continue;
            }
            found.push(DeviceResult {
                company: measurement.company.to_owned(),
                campaign: (*name).to_owned(),
                device: master,
                files: 0,
                counts,
                causes: Causes::new(),
            });
        }
        Ok(found)
    }

    /// Finds out why the database has points that no file gives, and passes those on that remain unexplained.
    pub(super) fn explain(
        &self,
        measurement: &Measurement<'_>,
        compared: &mut [Compared],
        unknown: &mut [DeviceResult],
        unexplained: &mut dyn Unexplained,
    ) -> Result<(), VerifyError> {
        unexplained.measurement(measurement.name);
        for compared in compared {
            let days = compared
                .results
                .iter()
                .flat_map(|result| &result.counts.extra_days);
            let days: BTreeSet<i64> = days.copied().collect();
            if let Some(first) = compared.results.first_mut()
                && !days.is_empty()
            {
                let mut group = Group::open(self, measurement, &compared.folders, true)?;
                // A point without a file belongs to none of the devices.
                first.causes = group.explain(&days, unexplained)?;
            }
        }
        for device in unknown {
            retried(|| self.points(measurement, &device.device, &measurement.times, unexplained))?;
            let months = device.counts.months.iter();
            device.causes = months
                .map(|(month, counts)| ((*month, Cause::Unexplained), counts.found))
                .collect();
        }
        Ok(())
    }
}
