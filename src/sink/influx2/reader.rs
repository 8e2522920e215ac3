//! Reads points with Flux queries. Answers are streamed: the crate `influxdb2` would collect them in memory.

use super::Influx;
use super::client::Client;
use super::flux::{self, AnswerError, Columns};
use super::influx3::Version;
use super::sql::SqlReader;
use crate::http::HttpSettings;
use crate::shutdown::Shutdown;
use crate::sink::retry::{ApiError, RetryError, RetryPolicy, Scope};
use crate::sink::source::{
    ALL_TIMES, CopySource as _, Field, Place, PointQuery, PointSource, PointVisitor, ReadError,
    Series, SeriesQuery, StoredBucket, StoredPoint,
};
use crate::sink::{ServerSettings, WriteError};
use anyhow::Context as _;
use bytes::{Buf as _, Bytes};
use chrono::{DateTime, SecondsFormat};
use csv::ByteRecord;
use influxdb2::RequestError;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::json;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

/// Maximum number of blocks of an answer that wait to be read.
const MAX_WAITING: usize = 16;

/// Maximum length of the body of an error, in bytes.
const MAX_ERROR: usize = 64 * 1024;

/// Number of rows between two checks of the shutdown flag.
const SHUTDOWN_CHECK_ROWS: u64 = 4096;

/// A connection for queries.
pub(crate) struct InfluxReader {
    pub(super) client: Arc<Client>,
    handle: Handle,
    /// Used for queries, so that their failures never change the outcome of a file.
    pub(super) retry: RetryPolicy,
    /// The connection that runs the requests, unless it is shared.
    /// Dropping it ends the network thread.
    influx: Option<Influx>,
    pub(super) http: reqwest::Client,
    /// The address of queries.
    pub(super) url: url::Url,
    /// When all requests end.
    deadline: Option<Instant>,
    pub(super) stop: Shutdown,
}

impl InfluxReader {
    /// Sets up the client without sending a request.
    ///
    /// # Errors
    /// The network thread cannot be started, or TLS cannot be set up.
    pub(crate) fn new(settings: &ServerSettings, stop: &Shutdown) -> anyhow::Result<Self> {
        let influx = Influx::new(settings, stop.clone())?;
        let mut reader = Self::set_up(&influx, settings, stop, true)?;
        reader.influx = Some(influx);
        Ok(reader)
    }

    /// Sets up the client without sending a request. It shares the network thread of `influx`, and logs no outages.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(crate) fn sharing(
        influx: &Influx,
        settings: &ServerSettings,
        stop: &Shutdown,
    ) -> anyhow::Result<Self> {
        Self::set_up(influx, settings, stop, false)
    }

    fn set_up(
        influx: &Influx,
        settings: &ServerSettings,
        stop: &Shutdown,
        log_outages: bool,
    ) -> anyhow::Result<Self> {
        let mut authorization = HeaderValue::try_from(format!("Token {}", settings.token))
            .context("cannot use the token")?;
        authorization.set_sensitive(true);
        let headers = HeaderMap::from_iter([
            (AUTHORIZATION, authorization),
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        ]);
        let http = HttpSettings::new(&settings.url)
            .context("cannot set up TLS")?
            .client_builder()
            .connect_timeout(settings.connect_timeout)
            // An answer may take long, but not the wait for its next part.
            .read_timeout(settings.request_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("powerview/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .build()
            .context("cannot set up the HTTP client")?;
        let mut url = settings.url.clone();
        url.set_path("/api/v2/query");
        url.query_pairs_mut().append_pair("org", &settings.org);
        Ok(Self {
            client: Arc::clone(&influx.client),
            handle: influx.handle.clone(),
            retry: RetryPolicy::new(
                settings.retry_for,
                settings.request_timeout,
                stop.clone(),
                log_outages,
            ),
            influx: None,
            http,
            url,
            deadline: None,
            stop: stop.clone(),
        })
    }

    /// Whether the server is InfluxDB 3. False as well if it gives no answer.
    pub(crate) fn is_influx3(&self) -> bool {
        let version = self.handle.block_on(self.client.find_version());
        version == Ok(Version::Influx3)
    }

    /// The same connection for queries with SQL, which InfluxDB 3 understands.
    pub(crate) fn sql(&self) -> SqlReader<'_> {
        SqlReader(self)
    }

    /// Sets the time at which all requests end, answers included.
    pub(crate) fn set_deadline(&mut self, deadline: Instant) {
        self.retry.end_before(deadline);
        self.deadline = Some(deadline);
    }

    fn is_late(&self) -> bool {
        is_past(self.deadline)
    }

    /// Calls `each` for all rows that answer a query, until it returns false.
    pub(super) fn rows(
        &self,
        bucket: &str,
        query: &str,
        mut each: impl FnMut(&Columns, &ByteRecord) -> bool,
    ) -> Result<(), ReadError> {
        let retry = &self.retry;
        let answer = self.retried(retry, bucket, || self.send(query))?;
        let mut rows = 0_u64;
        let result = flux::rows(self.stream(answer), |columns, record| {
            rows += 1;
            let is_stopped = rows.is_multiple_of(SHUTDOWN_CHECK_ROWS) && self.stop.is_requested();
            !is_stopped && each(columns, record)
        });
        if self.stop.is_requested() {
            return Err(ReadError::Stopped);
        }
        if result.is_err() && self.is_late() {
            return Err(ReadError::Late);
        }
        result.map_err(|error| {
            let address = &self.client.address;
            let reason = self.client.redact(&error.to_string());
            let message = format!("{address}: the answer to a query cannot be read: {reason}");
            match error {
                AnswerError::Csv(_) => ReadError::Interrupted(message),
                AnswerError::Server(_) => {
                    ReadError::Interrupted(format!("{address}: the server ended a query: {reason}"))
                }
                AnswerError::Format => ReadError::Refused(message),
            }
        })
    }

    /// Repeats a request until it succeeds, fails permanently or reaches the deadline.
    pub(super) fn retried<T, F>(
        &self,
        retry: &RetryPolicy,
        bucket: &str,
        attempt: impl Fn() -> F,
    ) -> Result<T, ReadError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let bucket: Arc<str> = bucket.into();
        let run = retry.run(&bucket, async { Scope::Server }, attempt);
        let result = self
            .handle
            .block_on(until(self.deadline, run))
            .ok_or(ReadError::Late)?;
        result
            .inspect(|_| retry.record_success(&bucket))
            .map_err(|error| match error {
                RetryError::GaveUp(WriteError::Stopped) => ReadError::Stopped,
                RetryError::GaveUp(error) => ReadError::Unavailable(error.to_string()),
                RetryError::Permanent(error) => {
                    ReadError::Refused(format!("{}: {}", self.client.address, error.into_message()))
                }
            })
    }

    /// Sends a query and waits for the head of the answer.
    async fn send(&self, query: &str) -> Result<reqwest::Response, ApiError> {
        let client = &self.client;
        let body = json!({
            "query": query,
            "type": "flux",
            "dialect": { "annotations": ["datatype"], "header": true },
        });
        let request = self.http.post(self.url.clone()).body(body.to_string());
        let response = request.send().await;
        let response = response
            .map_err(|source| client.api_error(&RequestError::ReqwestProcessing { source }))?;
        let status = response.status();
        if status == reqwest::StatusCode::OK {
            return Ok(response);
        }
        let text = Self::text(response).await;
        Err(client.api_error(&RequestError::Http { status, text }))
    }

    /// The body of an error, as far as it is read.
    pub(super) async fn text(mut response: reqwest::Response) -> String {
        let mut text = Vec::new();
        while text.len() < MAX_ERROR
            && let Ok(Some(chunk)) = response.chunk().await
        {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Reads the body of an answer on the network thread.
    pub(super) fn stream(&self, mut answer: reqwest::Response) -> impl io::Read + use<> {
        let (sender, blocks) = mpsc::channel(MAX_WAITING);
        let deadline = self.deadline;
        self.handle.spawn(async move {
            loop {
                let block = match until(deadline, answer.chunk()).await {
                    Some(Ok(Some(block))) => Ok(block),
                    Some(Ok(None)) => return,
                    Some(Err(error)) => Err(io::Error::other(error)),
                    None => Err(io::ErrorKind::TimedOut.into()),
                };
                // The receiver is gone if the rest is not wanted.
                if sender.send(block).await.is_err() {
                    return;
                }
            }
        });
        Answer {
            blocks,
            current: Bytes::new(),
        }
    }

    /// The values that a function of the schema returns for a measurement: the beginning of its call, and what follows it.
    pub(super) fn schema(
        &self,
        bucket: &str,
        measurement: &str,
        function: &str,
        filter: &str,
    ) -> Result<Vec<String>, ReadError> {
        let query = format!(
            "import \"influxdata/influxdb/schema\"\n\
             schema.{function}bucket: {}, predicate: (r) => r._measurement == {}, start: {}, stop: {}){filter}",
            flux::string(bucket),
            flux::string(measurement),
            ALL_TIMES.start,
            ALL_TIMES.end
        );
        self.values(bucket, &query)
    }

    /// The values of a tag in a measurement.
    fn schema_values(
        &self,
        bucket: &str,
        measurement: &str,
        tag: &str,
        times: &Range<i64>,
    ) -> Result<Vec<String>, ReadError> {
        let query = format!(
            "import \"influxdata/influxdb/schema\"\n\
             schema.tagValues(bucket: {}, tag: {}, predicate: (r) => r._measurement == {}, start: {}, stop: {})",
            flux::string(bucket),
            flux::string(tag),
            flux::string(measurement),
            times.start,
            times.end
        );
        self.values(bucket, &query)
    }

    /// Passes the points that answer a query on.
    pub(super) fn pass_points(
        &self,
        bucket: &str,
        query: &str,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        let mut tables = Tables::default();
        let mut is_valid = true;
        self.rows(bucket, query, |columns, record| {
            is_valid = tables.row(columns, record, visitor).is_some();
            is_valid && !visitor.is_full()
        })?;
        if is_valid {
            Ok(())
        } else {
            Err(ReadError::Refused(format!(
                "{}: the answer to a query has a point without a time or a value",
                self.client.address
            )))
        }
    }

    /// The values of the first column of the answer to a query.
    pub(super) fn values(&self, bucket: &str, query: &str) -> Result<Vec<String>, ReadError> {
        let mut values = Vec::new();
        self.rows(bucket, query, |columns, record| {
            let value = columns.position("_value").and_then(|n| record.get(n));
            values.extend(value.map(|value| String::from_utf8_lossy(value).into_owned()));
            true
        })?;
        Ok(values)
    }
}

fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// Waits for a result until the deadline. `None` afterwards, even if there is a result.
async fn until<T>(deadline: Option<Instant>, result: impl Future<Output = T>) -> Option<T> {
    match deadline {
        _ if is_past(deadline) => None,
        Some(deadline) => timeout_at(deadline.into(), result).await.ok(),
        None => Some(result.await),
    }
}

impl PointSource for InfluxReader {
    fn find_bucket(&self, name: &str) -> Result<Option<StoredBucket>, ReadError> {
        let client = &self.client;
        let found = self.retried(&self.retry, name, || client.find(name))?;
        Ok(found.map(|bucket| StoredBucket {
            retention_s: bucket.retention_s,
        }))
    }

    fn measurements(&self, bucket: &str) -> Result<Vec<String>, ReadError> {
        let query = format!(
            "import \"influxdata/influxdb/schema\"\n\
             schema.tagValues(bucket: {}, tag: \"_measurement\", start: {}, stop: {})",
            flux::string(bucket),
            ALL_TIMES.start,
            ALL_TIMES.end
        );
        self.values(bucket, &query)
    }

    fn count(&self, bucket: &str, measurement: &str) -> Result<u64, ReadError> {
        let points = flux::measurement(bucket, measurement, &ALL_TIMES);
        // The server counts without reading the points, which fails if tags have these names.
        let tags = self.unreadable_tags(bucket, measurement)?;
        let drop = if tags.contains(&"_start") || tags.contains(&"_stop") {
            " |> drop(columns: [\"_start\", \"_stop\"])"
        } else {
            ""
        };
        // Without grouping, the counts of fields of different types would not add up.
        let query = format!("{points}{drop} |> count() |> group() |> sum()");
        let counts = self.values(bucket, &query)?;
        Ok(counts
            .iter()
            .filter_map(|count| count.parse::<u64>().ok())
            .sum())
    }

    fn masters(
        &self,
        bucket: &str,
        measurement: &str,
        times: &Range<i64>,
    ) -> Result<Vec<String>, ReadError> {
        let mut masters = self.schema_values(bucket, measurement, "device_master_sn", times)?;
        masters.retain(|master| !master.is_empty());
        masters.push(String::new());
        Ok(masters)
    }

    fn tag_values(
        &self,
        bucket: &str,
        measurement: &str,
        tag: &str,
    ) -> Result<Vec<String>, ReadError> {
        let mut values = self.schema_values(bucket, measurement, tag, &ALL_TIMES)?;
        values.retain(|value| !value.is_empty());
        Ok(values)
    }

    fn points(
        &self,
        query: &PointQuery<'_>,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        self.pass_points(query.bucket, &point_query(query), visitor)
    }

    fn points_of(
        &self,
        query: &SeriesQuery<'_>,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        let chosen = filter_of(&query.series);
        let neighbours = [
            query.times.end..query.within.end,
            query.within.start..query.times.start,
        ];
        let text = queries_with_neighbours(&query.times, neighbours, |times, selected| {
            chosen_points(query.bucket, query.measurement, &chosen, times, selected)
        });
        if text.is_empty() {
            return Ok(());
        }
        self.pass_points(query.bucket, &text, visitor)
    }

    fn delete(
        &self,
        bucket: &str,
        measurement: &str,
        tags: &[(&str, &str)],
        times: &Range<i64>,
    ) -> Result<(), ReadError> {
        if times.is_empty() {
            return Ok(());
        }
        let time = |seconds, nanos| {
            let time = DateTime::from_timestamp(seconds, nanos).unwrap_or_default();
            time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
        };
        let body = json!({
            "start": time(times.start, 0),
            // The server deletes the points of this time too.
            "stop": time(times.end - 1, 999_999_999),
            "predicate": predicate(measurement, tags),
        });
        let query = [("org", self.client.org.as_str()), ("bucket", bucket)];
        let path = "/api/v2/delete";
        self.request_text(&self.retry, &Method::POST, path, &query, Some(&body))
            .map(drop)
    }
}

/// The Flux of a query for points. The server sends its results in any order.
fn point_query(query: &PointQuery<'_>) -> String {
    let mut chosen = match query.master {
        None => "true".to_owned(),
        Some("") => "not exists r.device_master_sn".to_owned(),
        Some(master) => format!("r.device_master_sn == {}", flux::string(master)),
    };
    if query.for_summaries {
        chosen += " and exists r.channel_id";
    }
    let points = |times: &Range<i64>, selected: &str| {
        chosen_points(query.bucket, query.measurement, &chosen, times, selected)
    };
    let times = &query.times;
    if !query.for_summaries {
        return points(times, "");
    }
    let neighbours = [times.end..ALL_TIMES.end, ALL_TIMES.start..times.start];
    queries_with_neighbours(times, neighbours, points)
}

/// The Flux of a query for the points of a measurement that a filter chooses.
fn chosen_points(
    bucket: &str,
    measurement: &str,
    filter: &str,
    times: &Range<i64>,
    selected: &str,
) -> String {
    format!(
        "{} |> filter(fn: (r) => {filter}){selected} |> drop(columns: [\"_start\", \"_stop\", \"_measurement\"])",
        flux::measurement(bucket, measurement, times)
    )
}

/// The Flux of queries for points, for the first one of each series after them, and for the last one before them.
fn queries_with_neighbours(
    times: &Range<i64>,
    [after, before]: [Range<i64>; 2],
    points: impl Fn(&Range<i64>, &str) -> String,
) -> String {
    let queries = [
        (times, "", "points"),
        (&after, " |> first()", "after"),
        (&before, " |> last()", "before"),
    ];
    // The server refuses an empty range.
    let queries = queries.iter().filter(|(times, ..)| !times.is_empty());
    let queries = queries.map(|(times, selected, name)| {
        format!("{} |> yield(name: \"{name}\")\n", points(times, selected))
    });
    queries.collect()
}

/// The condition of a filter for some series.
fn filter_of(series: &Series<'_>) -> String {
    let equal =
        |key: &str, value: &str| format!("r[{}] == {}", flux::string(key), flux::string(value));
    let any_of = |key: &str, values: &[&str]| -> String {
        let conditions: Vec<_> = values.iter().map(|value| equal(key, value)).collect();
        format!("({})", conditions.join(" or "))
    };
    match series {
        Series::Channels(ids) => any_of("channel_id", ids),
        Series::Tags(tags) => {
            let conditions: Vec<_> = tags.iter().map(|(key, value)| equal(key, value)).collect();
            conditions.join(" and ")
        }
        Series::Virtual { campaign, fields } => {
            let campaign = campaign.map(|campaign| equal("campaign", campaign) + " and ");
            format!(
                "{}r.channel_id =~ /^V_/ and {}",
                campaign.unwrap_or_default(),
                any_of("_field", fields)
            )
        }
    }
}

/// A predicate that series with these tags fulfil. It has quoted texts as `InfluxQL` has identifiers.
fn predicate(measurement: &str, tags: &[(&str, &str)]) -> String {
    let quoted = |text: &str| {
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        format!("\"{}\"", text.replace('\n', "\\n"))
    };
    let tags = tags.iter().map(|(key, value)| (*key, *value));
    let conditions = [("_measurement", measurement)].into_iter().chain(tags);
    let conditions: Vec<_> = conditions
        .map(|(key, value)| format!("{} = {}", quoted(key), quoted(value)))
        .collect();
    conditions.join(" AND ")
}

/// The tables of an answer with points, each of which is a series.
#[derive(Default)]
struct Tables {
    /// Number of the header.
    header: u32,
    /// Id of the table.
    table: Vec<u8>,
    /// Positions of the columns `table`, `_time` and `_value`.
    positions: (usize, usize, usize),
}

impl Tables {
    /// Passes a row on. `None` if it is no point.
    fn row(
        &mut self,
        columns: &Columns,
        record: &ByteRecord,
        visitor: &mut dyn PointVisitor,
    ) -> Option<()> {
        if columns.number != self.header {
            let position = |name| columns.position(name);
            self.positions = (position("table")?, position("_time")?, position("_value")?);
        }
        let (table, time, value) = self.positions;
        let table = record.get(table)?;
        if columns.number != self.header || table != self.table {
            self.header = columns.number;
            self.table = table.to_vec();
            let key = columns.position("_field").and_then(|n| record.get(n));
            let field = Field {
                key: std::str::from_utf8(key.unwrap_or_default()).ok()?,
                kind: columns.type_of("_value"),
            };
            let result = columns.position("result").and_then(|n| record.get(n));
            let place = match result {
                Some(b"after") => Place::After,
                Some(b"before") => Place::Before,
                _ => Place::Within,
            };
            visitor.series(&tags(columns, record), field, place);
        }
        let time = DateTime::parse_from_rfc3339(std::str::from_utf8(record.get(time)?).ok()?);
        let time = time.ok()?;
        visitor.point(StoredPoint {
            time: time.timestamp(),
            nanos: time.timestamp_subsec_nanos(),
            value: std::str::from_utf8(record.get(value)?).ok()?,
        });
        Some(())
    }
}

/// The tags of the series of a row, in the order of their keys.
fn tags(columns: &Columns, record: &ByteRecord) -> Vec<(String, String)> {
    let is_tag = |name: &str| !matches!(name, "_time" | "_value" | "_field");
    // The first columns are those of the annotation, the result and the table. Tags may have the same names.
    let cells = columns.names.iter().zip(record).skip(3);
    let mut tags: Vec<_> = cells
        .filter(|(name, value)| is_tag(name) && !value.is_empty())
        .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned()))
        .collect();
    tags.sort_unstable();
    tags
}

/// The body of an answer. It is read block by block as it arrives.
struct Answer {
    blocks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl io::Read for Answer {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.blocks.blocking_recv() {
                Some(block) => self.current = block?,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..length]);
        Ok(length)
    }
}
