//! Points without the tag `device`, which an old script wrote. Their channels have summaries of their own, and energy is not
//! exact in an hour in which both programs wrote.

use crate::report::counted;
use crate::sanitize::sanitize;
use crate::sink::{InfluxReader, PointSource as _, ReadError};

/// Describes the points of a company without the tag `device`, a line per measurement.
///
/// # Errors
/// The server gives no answer, or refuses the request.
pub(super) fn describe(source: &InfluxReader, company: &str) -> Result<Vec<String>, ReadError> {
    if source.find_bucket(company)?.is_none() {
        return Ok(Vec::new());
    }
    let channels = source.channels_without_device(company)?.into_iter();
    let lines = channels.map(|(measurement, channels)| {
        format!(
            "bucket {}: points of {} in the measurement {} have no tag \"device\", as an old script wrote them; energy is \
             not exact in hours with points of both programs, so make the bucket anew with powerview rebuild",
            sanitize(company),
            counted(channels, "channel"),
            sanitize(&measurement)
        )
    });
    Ok(lines.collect())
}
