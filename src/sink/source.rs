//! The reading side: what a database holds, for comparing it with the files.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A database that points are read from.
pub(crate) trait PointSource {
    /// Looks up a bucket by its name.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn find_bucket(&self, name: &str) -> Result<Option<StoredBucket>, ReadError>;

    /// The names of all measurements of a bucket.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn measurements(&self, bucket: &str) -> Result<Vec<String>, ReadError>;

    /// The number of points of a measurement.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn count(&self, bucket: &str, measurement: &str) -> Result<u64, ReadError>;

    /// The values of the tag `device_master_sn` in a measurement; the empty one for points without that tag. A value whose
    /// points are outside the times may be among them.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn masters(
        &self,
        bucket: &str,
        measurement: &str,
        times: &Range<i64>,
    ) -> Result<Vec<String>, ReadError>;

    /// The values of a tag in a measurement. A value whose points were deleted may be among them.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn tag_values(
        &self,
        bucket: &str,
        measurement: &str,
        tag: &str,
    ) -> Result<Vec<String>, ReadError>;

    /// Passes points to `visitor`, series by series. Of a series with values of several types, only those of one type may
    /// be passed on. Line breaks in texts may be changed.
    ///
    /// # Errors
    /// The server gives no answer, refuses the request or ends the answer early. The points so far were passed on.
    fn points(
        &self,
        query: &PointQuery<'_>,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError>;

    /// Passes the points of some series to `visitor`, until it wants no more.
    ///
    /// # Errors
    /// As for [`Self::points`].
    fn points_of(
        &self,
        query: &SeriesQuery<'_>,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError>;

    /// Deletes the points of series at times in seconds since 1970. Series that have more tags than these are deleted too.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn delete(
        &self,
        bucket: &str,
        measurement: &str,
        tags: &[(&str, &str)],
        times: &Range<i64>,
    ) -> Result<(), ReadError>;
}

/// A database whose points are copied: what [`PointSource::points`] changes or does not pass on.
pub(crate) trait CopySource: PointSource {
    /// The keys of tags in a measurement that [`PointSource::points`] does not pass on, because columns of an answer have the
    /// same names.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn unreadable_tags(
        &self,
        bucket: &str,
        measurement: &str,
    ) -> Result<Vec<&'static str>, ReadError>;

    /// What of the tags of a measurement has a line break, in words. [`PointSource::points`] changes line breaks.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn line_break_in_tags(
        &self,
        bucket: &str,
        measurement: &str,
    ) -> Result<Option<String>, ReadError>;

    /// The types of the fields of a bucket.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn field_types(&self, bucket: &str) -> Result<FieldTypes, ReadError>;

    /// Passes the points of a field of texts to `visitor` whose values have line breaks, unchanged.
    ///
    /// # Errors
    /// As for [`PointSource::points`].
    fn texts_with_line_breaks(
        &self,
        bucket: &str,
        measurement: &str,
        field: &str,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError>;
}

/// The types of fields in the words of `InfluxQL`, such as `float`, by measurement and key. A field may have several, because
/// the server checks the type only within some days.
pub(crate) type FieldTypes = BTreeMap<(String, String), BTreeSet<String>>;

/// A bucket, as its server describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredBucket {
    /// How long it keeps points, in seconds. `None` if it keeps them for ever.
    pub retention_s: Option<i64>,
}

/// A server on which buckets are created and renamed.
pub(crate) trait BucketAdmin {
    /// All buckets of the organisation.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn buckets(&self) -> Result<Vec<BucketInfo>, ReadError>;

    /// Creates an empty bucket with the description and retention of another one. It is no error if it exists.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn create_like(&self, model: &BucketInfo, name: &str) -> Result<(), ReadError>;

    /// Renames a bucket. The server refuses a name that another bucket has. Neither a shutdown nor an earlier failure
    /// prevents it, so that the names of buckets can be restored.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn rename(&self, id: &str, name: &str) -> Result<(), ReadError>;

    /// The descriptions of the tokens that were made for a bucket; the id of a token without one.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    fn tokens_of(&self, bucket_id: &str) -> Result<Vec<String>, ReadError>;
}

/// A bucket in the list of all buckets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BucketInfo {
    /// The id, which tokens refer to.
    pub id: String,
    /// The name.
    pub name: String,
    /// The description.
    pub description: String,
    /// The rules of retention, as the server sends them.
    pub retention_rules: serde_json::Value,
    /// The id of the organisation.
    pub org_id: String,
}

/// The points to read.
#[derive(Debug, Clone)]
pub(crate) struct PointQuery<'a> {
    /// The name of the bucket.
    pub bucket: &'a str,
    /// The name of the measurement.
    pub measurement: &'a str,
    /// The value of the tag `device_master_sn`; empty for points without that tag. `None` for all points.
    pub master: Option<&'a str>,
    /// Times in seconds since 1970.
    pub times: Range<i64>,
    /// Whether hourly summaries are computed from them, or are read: only the points of channels, in the order of their times,
    /// with the first one of each series after these times and the last one before them. The last one is left out with SQL,
    /// with which it takes a query for each three days of the past.
    pub for_summaries: bool,
}

/// The points of some series to read, with the last one of each series before the times and the first one after them.
#[derive(Debug, Clone)]
pub(crate) struct SeriesQuery<'a> {
    /// The name of the bucket.
    pub bucket: &'a str,
    /// The name of the measurement.
    pub measurement: &'a str,
    pub series: Series<'a>,
    /// Times in seconds since 1970.
    pub times: Range<i64>,
    /// Where the points before and after the times are looked for.
    pub within: Range<i64>,
}

/// Some series of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Series<'a> {
    /// Those with one of these values of the tag `channel_id`.
    Channels(&'a [&'a str]),
    /// Those with all of these tags.
    Tags(&'a [(&'a str, &'a str)]),
    /// Those of the fields of `fields`, with a value of the tag `channel_id` that begins with `V_`. Those of a campaign, or of
    /// all.
    Virtual {
        campaign: Option<&'a str>,
        fields: &'a [&'a str],
    },
}

/// Where a series of points is relative to the times of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its first point after the times.
    After,
    /// Its points within the times.
    Within,
    /// Its last point before the times.
    Before,
}

/// The first second that a database has points of, and the one after the last: InfluxDB counts nanoseconds in 64 bits.
pub(crate) const ALL_TIMES: Range<i64> = -9_223_372_036..9_223_372_036;

/// A point as it is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredPoint<'a> {
    /// Seconds since 1970.
    pub time: i64,
    /// Nanoseconds after that second.
    pub nanos: u32,
    /// The value, as the server writes it.
    pub value: &'a str,
}

/// The field of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    /// The key.
    pub key: &'a str,
    /// The type in the words of Flux, such as `double`.
    pub kind: &'a str,
}

impl Field<'_> {
    /// Whether it is the field of a measurement: `value` with floating-point numbers.
    pub(crate) fn is_value(self) -> bool {
        self.key == "value" && self.kind == "double"
    }
}

/// Takes the points of a query.
pub(crate) trait PointVisitor {
    /// Begins a series, given as its tags in the order of their keys and its field. A series may come several times.
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, place: Place);

    /// Takes a point of the series.
    fn point(&mut self, point: StoredPoint<'_>);

    /// Whether the rest of the points is not wanted.
    fn is_full(&self) -> bool {
        false
    }
}

/// How often a query is sent whose answer ends early.
const MAX_QUERIES: u32 = 3;

/// Repeats a query whose answer ended early.
pub(crate) fn retried<T>(mut query: impl FnMut() -> Result<T, ReadError>) -> Result<T, ReadError> {
    for _ in 1..MAX_QUERIES {
        match query() {
            Err(ReadError::Interrupted(_)) => {}
            result => return result,
        }
    }
    query()
}

/// Why a database cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    /// The server gives no answer, or denies this token its requests: others fail too.
    #[error("{0}")]
    Unavailable(String),
    /// The server refuses the request, or its answer cannot be understood. Others may succeed.
    #[error("{0}")]
    Refused(String),
    /// The answer ended early, or cannot be read. The request can be repeated.
    #[error("{0}")]
    Interrupted(String),
    /// The answer was not complete in time.
    #[error("the server did not answer in time")]
    Late,
    /// A shutdown was requested.
    #[error("the run was stopped; run it again")]
    Stopped,
}
