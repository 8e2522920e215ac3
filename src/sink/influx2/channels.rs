//! Queries about the channels of a campaign. See docs/specification.md, section 12.

use super::InfluxReader;
use super::flux;
use crate::sink::source::{ALL_TIMES, PointVisitor, ReadError};

impl InfluxReader {
    /// Passes the last point of each series of a measurement to `visitor` that has the tag `channel_id`.
    ///
    /// # Errors
    /// The server gives no answer, refuses the request or ends the answer early.
    pub(crate) fn last_points(
        &self,
        bucket: &str,
        measurement: &str,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        let query = format!(
            "{} |> filter(fn: (r) => r._field == \"value\" and exists r.channel_id) |> last() \
             |> drop(columns: [\"_start\", \"_stop\", \"_measurement\"])",
            flux::measurement(bucket, measurement, &ALL_TIMES)
        );
        self.pass_points(bucket, &query, visitor)
    }

    /// Passes the points of some fields of a measurement to `visitor` that have a value of the tag `campaign`.
    ///
    /// # Errors
    /// As for [`Self::last_points`].
    pub(crate) fn points_of_campaign(
        &self,
        bucket: &str,
        measurement: &str,
        campaign: &str,
        fields: &[&str],
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        let fields: Vec<_> = fields
            .iter()
            .map(|field| format!("r._field == {}", flux::string(field)))
            .collect();
        let query = format!(
            "{} |> filter(fn: (r) => r.campaign == {} and ({})) |> drop(columns: [\"_start\", \"_stop\", \"_measurement\"])",
            flux::measurement(bucket, measurement, &ALL_TIMES),
            flux::string(campaign),
            fields.join(" or ")
        );
        self.pass_points(bucket, &query, visitor)
    }

    /// The measurements with points of channels that have no tag `device`, and the number of these channels.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    pub(crate) fn channels_without_device(
        &self,
        bucket: &str,
    ) -> Result<Vec<(String, u64)>, ReadError> {
        let query = format!(
            "from(bucket: {}) |> range(start: {}, stop: {}) \
             |> filter(fn: (r) => exists r.channel_id and not exists r.device and r._field == \"value\") |> last() \
             |> keep(columns: [\"_measurement\", \"channel_id\"]) |> group(columns: [\"_measurement\"]) |> count(column: \"channel_id\")",
            flux::string(bucket),
            ALL_TIMES.start,
            ALL_TIMES.end
        );
        let mut found = Vec::new();
        self.rows(bucket, &query, |columns, record| {
            let cell = |name| columns.position(name).and_then(|n| record.get(n));
            let text = |name| cell(name).map(String::from_utf8_lossy);
            if let (Some(measurement), Some(count)) = (text("_measurement"), text("channel_id"))
                && let Ok(count) = count.parse()
            {
                found.push((measurement.into_owned(), count));
            }
            true
        })?;
        Ok(found)
    }
}
