//! Reads points from InfluxDB 3 with SQL queries. Answers are streamed. See docs/influxdb-3.md.

use super::reader::InfluxReader;
use crate::sink::retry::ApiError;
use crate::sink::source::{
    ALL_TIMES, Field, Place, PointQuery, PointSource, PointVisitor, ReadError, SeriesQuery,
    StoredBucket, StoredPoint,
};
use chrono::{DateTime, NaiveDateTime, SecondsFormat};
use csv::StringRecord;
use influxdb2::RequestError;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::ops::Range;

/// The beginning of the message of a query that is refused. Its status is 500, as that of a failure.
const REFUSED: &str = "query error";

/// A part of the message of a query for too many files.
const TOO_MANY_FILES: &str = "exceed file limit";

/// The shortest range of times that is divided, in seconds. A file has at least ten minutes.
const SHORTEST: i64 = 600;

/// The times in which the point after others is looked for first, in seconds.
const FIRST_SEARCH: i64 = 3 * 24 * 3600;

/// The database in which the server keeps what it knows of itself.
const INTERNAL: &str = "_internal";

/// Number of rows between two checks of the shutdown flag.
const SHUTDOWN_CHECK_ROWS: u64 = 4096;

/// The reading side of InfluxDB 3.
pub(crate) struct SqlReader<'a>(pub(super) &'a InfluxReader);

/// The columns of a table that points are read from.
#[derive(Default)]
struct Columns {
    tags: Vec<String>,
    /// The columns of fields, with their types in the words of Flux.
    fields: Vec<(String, &'static str)>,
}

impl SqlReader<'_> {
    /// Calls `each` for all rows that answer a query, until it returns false. Does nothing if there is no database.
    fn rows(
        &self,
        database: &str,
        sql: &str,
        mut each: impl FnMut(&StringRecord) -> bool,
    ) -> Result<(), ReadError> {
        let reader = self.0;
        let answer = reader.retried(&reader.retry, database, || self.send(database, sql))?;
        let Some(answer) = answer else { return Ok(()) };
        let mut answer = csv::Reader::from_reader(reader.stream(answer));
        let mut record = StringRecord::new();
        let mut rows = 0_u64;
        loop {
            match answer.read_record(&mut record) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    let reason = reader.client.redact(&error.to_string());
                    return Err(ReadError::Interrupted(format!(
                        "{}: the answer to a query cannot be read: {reason}",
                        reader.client.address
                    )));
                }
            }
            rows += 1;
            if rows.is_multiple_of(SHUTDOWN_CHECK_ROWS) && reader.stop.is_requested() {
                return Err(ReadError::Stopped);
            }
            if !each(&record) {
                return Ok(());
            }
        }
    }

    /// Sends a query and waits for the head of the answer. `None` if there is no database.
    async fn send(&self, database: &str, sql: &str) -> Result<Option<reqwest::Response>, ApiError> {
        let client = &self.0.client;
        let mut url = self.0.url.clone();
        url.set_path("/api/v3/query_sql");
        url.set_query(None);
        let body = json!({ "db": database, "q": sql, "format": "csv" });
        let error = |source| client.api_error(&RequestError::ReqwestProcessing { source });
        let request = self.0.http.post(url).body(body.to_string());
        let answer = request.send().await.map_err(error)?;
        let status = answer.status();
        if status == reqwest::StatusCode::OK {
            return Ok(Some(answer));
        }
        let text = InfluxReader::text(answer).await;
        if status.as_u16() == 404 && text.contains("database not found") {
            return Ok(None);
        }
        if text.starts_with(REFUSED) {
            return Err(ApiError::Refused(client.describe(status.as_u16(), &text)));
        }
        Err(client.api_error(&RequestError::Http { status, text }))
    }

    fn columns(&self, database: &str, table: &str) -> Result<Columns, ReadError> {
        let mut columns = Columns::default();
        let query = format!(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'iox' AND table_name = {}",
            text(table)
        );
        self.rows(database, &query, |row| {
            if let (Some(name), Some(kind)) = (row.get(0), row.get(1)) {
                match flux_type(kind) {
                    Some(kind) => columns.fields.push((name.to_owned(), kind)),
                    None if kind.starts_with("Dictionary") => columns.tags.push(name.to_owned()),
                    None => {}
                }
            }
            true
        })?;
        columns.tags.sort_unstable();
        Ok(columns)
    }

    /// The values of a tag of a table, in their order.
    fn distinct(
        &self,
        database: &str,
        table: &str,
        columns: &Columns,
        tag: &str,
        times: &Range<i64>,
    ) -> Result<Vec<String>, ReadError> {
        let mut values = BTreeSet::new();
        if !columns.tags.iter().any(|key| key == tag) {
            return Ok(Vec::new());
        }
        let tag = identifier(tag);
        divided(times.clone(), &mut |times| {
            let query = format!(
                "SELECT DISTINCT {tag} FROM {} WHERE {tag} IS NOT NULL AND {}",
                identifier(table),
                within(times)
            );
            self.rows(database, &query, |row| {
                values.extend(row.get(0).map(str::to_owned));
                true
            })
        })?;
        Ok(values.into_iter().collect())
    }

    /// Passes the first point of each series after the times of a query on, at least those of the series in `wanted`, by the
    /// values of their tags. They are looked for in times that are longer and longer, because the server does not read many
    /// files for one query, and each query takes a while.
    fn points_after(
        &self,
        query: &PointQuery<'_>,
        columns: &Columns,
        selection: &Selection,
        mut wanted: BTreeSet<Vec<String>>,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        let mut found = BTreeSet::new();
        let (mut start, mut length) = (query.times.end, FIRST_SEARCH);
        while start < ALL_TIMES.end && (found.is_empty() || !wanted.is_empty()) {
            let end = start.saturating_add(length).min(ALL_TIMES.end);
            divided(start..end, &mut |times| {
                // The times are divided in their order.
                if !found.is_empty() && wanted.is_empty() {
                    return Ok(());
                }
                let sql = selection.first_of_each_series(times);
                let mut rows = Rows::new(columns, Place::After);
                self.pass_rows(query.bucket, &sql, |row| {
                    let series = series_of(row, columns);
                    wanted.remove(&series);
                    if found.insert(series) {
                        rows.row(row, visitor)?;
                    }
                    Some(())
                })
            })?;
            start = end;
            length = length.saturating_mul(8);
        }
        Ok(())
    }

    /// Calls `each` for all rows that answer a query. It returns `None` if a row has no time.
    fn pass_rows(
        &self,
        database: &str,
        sql: &str,
        mut each: impl FnMut(&StringRecord) -> Option<()>,
    ) -> Result<(), ReadError> {
        let mut is_valid = true;
        self.rows(database, sql, |row| {
            is_valid = each(row).is_some();
            is_valid
        })?;
        if is_valid {
            return Ok(());
        }
        Err(ReadError::Refused(format!(
            "{}: the answer to a query has a point without a time",
            self.0.client.address
        )))
    }

    /// The names of all databases but that of the server itself.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    pub(crate) fn databases(&self) -> Result<Vec<String>, ReadError> {
        let reader = self.0;
        let path = "/api/v3/configure/database";
        let query = [("format", "json")];
        let databases: Vec<Database> =
            reader.request(&reader.retry, &Method::GET, path, &query, None)?;
        let names = databases.into_iter().map(|database| database.name);
        Ok(names.filter(|name| name != INTERNAL).collect())
    }

    /// What is not done with InfluxDB 3: points are not deleted, and virtual channels have no summaries.
    fn unsupported<T>() -> Result<T, ReadError> {
        Err(ReadError::Refused(
            "this is not done with InfluxDB 3".to_owned(),
        ))
    }
}

impl PointSource for SqlReader<'_> {
    fn find_bucket(&self, name: &str) -> Result<Option<StoredBucket>, ReadError> {
        let mut is_found = false;
        self.rows(name, "SELECT 1", |_| {
            is_found = true;
            false
        })?;
        // Its retention is not known.
        Ok(is_found.then_some(StoredBucket { retention_s: None }))
    }

    fn measurements(&self, bucket: &str) -> Result<Vec<String>, ReadError> {
        let mut names = Vec::new();
        let query = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'iox' ORDER BY table_name";
        self.rows(bucket, query, |row| {
            names.extend(row.get(0).map(str::to_owned));
            true
        })?;
        Ok(names)
    }

    fn count(&self, bucket: &str, measurement: &str) -> Result<u64, ReadError> {
        let mut count = 0;
        divided(ALL_TIMES, &mut |times| {
            let query = format!(
                "SELECT count(*) FROM {} WHERE {}",
                identifier(measurement),
                within(times)
            );
            self.rows(bucket, &query, |row| {
                count += row.get(0).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                true
            })
        })?;
        Ok(count)
    }

    fn masters(
        &self,
        bucket: &str,
        measurement: &str,
        times: &Range<i64>,
    ) -> Result<Vec<String>, ReadError> {
        let columns = self.columns(bucket, measurement)?;
        let mut masters = self.distinct(bucket, measurement, &columns, MASTER, times)?;
        masters.insert(0, String::new());
        Ok(masters)
    }

    fn tag_values(
        &self,
        bucket: &str,
        measurement: &str,
        tag: &str,
    ) -> Result<Vec<String>, ReadError> {
        let columns = self.columns(bucket, measurement)?;
        self.distinct(bucket, measurement, &columns, tag, &ALL_TIMES)
    }

    fn points_of(&self, _: &SeriesQuery<'_>, _: &mut dyn PointVisitor) -> Result<(), ReadError> {
        Self::unsupported()
    }

    fn delete(
        &self,
        _: &str,
        _: &str,
        _: &[(&str, &str)],
        _: &Range<i64>,
    ) -> Result<(), ReadError> {
        Self::unsupported()
    }

    fn points(
        &self,
        query: &PointQuery<'_>,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        let columns = self.columns(query.bucket, query.measurement)?;
        let Some(selection) = Selection::new(query, &columns) else {
            return Ok(());
        };
        let order = if query.for_summaries {
            format!(" ORDER BY {}", selection.series_and_time())
        } else {
            String::new()
        };
        let mut series = BTreeSet::new();
        divided(query.times.clone(), &mut |times| {
            let sql = format!("{}{order}", selection.sql(times));
            let mut rows = Rows::new(&columns, Place::Within);
            self.pass_rows(query.bucket, &sql, |row| {
                let begins = rows.row(row, visitor)?;
                if begins && query.for_summaries {
                    series.insert(series_of(row, &columns));
                }
                Some(())
            })
        })?;
        if query.for_summaries {
            self.points_after(query, &columns, &selection, series, visitor)?;
        }
        Ok(())
    }
}

/// Calls `read` for a range of times, or for parts of it if the server reads no more than a number of files.
fn divided(
    times: Range<i64>,
    read: &mut dyn FnMut(&Range<i64>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    match read(&times) {
        Err(ReadError::Refused(reason))
            if reason.contains(TOO_MANY_FILES) && times.end - times.start > SHORTEST =>
        {
            let middle = times.start.midpoint(times.end);
            divided(times.start..middle, read)?;
            divided(middle..times.end, read)
        }
        result => result,
    }
}

/// The tag with the serial of the master.
const MASTER: &str = "device_master_sn";

/// The tag with the id of a channel.
const CHANNEL: &str = "channel_id";

/// The field of a measurement.
const VALUE: &str = "value";

/// The columns and the condition of a query for points. All names are quoted.
struct Selection {
    tags: Vec<String>,
    fields: Vec<String>,
    from: String,
    condition: String,
}

impl Selection {
    /// `None` if no point of the table fulfils the condition.
    fn new(query: &PointQuery<'_>, columns: &Columns) -> Option<Self> {
        let has_tag = |key: &str| columns.tags.iter().any(|tag| tag == key);
        let mut condition = match query.master {
            Some("") if has_tag(MASTER) => format!(" AND {MASTER} IS NULL"),
            None | Some("") => String::new(),
            Some(master) if has_tag(MASTER) => format!(" AND {MASTER} = {}", text(master)),
            Some(_) => return None,
        };
        if query.for_summaries {
            if !has_tag(CHANNEL) {
                return None;
            }
            condition += &format!(" AND {CHANNEL} IS NOT NULL");
            // A point of a measurement counts if it has this field. Summaries have others.
            if columns.fields.iter().any(|(field, _)| field == VALUE) {
                condition += &format!(" AND {VALUE} IS NOT NULL");
            }
        }
        let fields = columns.fields.iter().map(|(name, _)| identifier(name));
        Some(Self {
            tags: columns.tags.iter().map(|tag| identifier(tag)).collect(),
            fields: fields.collect(),
            from: identifier(query.measurement),
            condition,
        })
    }

    /// The query for the points of some times.
    fn sql(&self, times: &Range<i64>) -> String {
        let Self {
            from, condition, ..
        } = self;
        let columns = self.tags.iter().chain(&self.fields).map(String::as_str);
        let columns: Vec<_> = ["time"].into_iter().chain(columns).collect();
        format!(
            "SELECT {} FROM {from} WHERE {}{condition}",
            columns.join(", "),
            within(times)
        )
    }

    /// The query for the first point of each series.
    fn first_of_each_series(&self, times: &Range<i64>) -> String {
        // A window function is planned ten times as long.
        let firsts = self.fields.iter();
        let firsts = firsts.map(|field| format!(", first_value({field} ORDER BY time)"));
        let Self {
            from, condition, ..
        } = self;
        let tags = self.tags.join(", ");
        format!(
            "SELECT min(time), {tags}{} FROM {from} WHERE {}{condition} GROUP BY {tags}",
            firsts.collect::<String>(),
            within(times)
        )
    }

    /// What rows are sorted by, so that a series comes as a whole.
    fn series_and_time(&self) -> String {
        let tags = self.tags.iter().map(String::as_str);
        tags.chain(["time"]).collect::<Vec<_>>().join(", ")
    }
}

/// The values of the tags of a row. A tag that it does not have is an empty text.
fn series_of(row: &StringRecord, columns: &Columns) -> Vec<String> {
    let values = row.iter().skip(1).take(columns.tags.len());
    values.map(str::to_owned).collect()
}

/// A database in the list of all databases.
#[derive(Deserialize)]
struct Database {
    #[serde(rename = "iox::database")]
    name: String,
}

/// The rows of an answer: the time, the tags and the fields.
struct Rows<'a> {
    columns: &'a Columns,
    place: Place,
    /// The values of the tags and the number of the field of the last point.
    last: Option<(Vec<String>, usize)>,
}

impl<'a> Rows<'a> {
    fn new(columns: &'a Columns, place: Place) -> Self {
        Self {
            columns,
            place,
            last: None,
        }
    }

    /// Passes a row on. Returns whether a series begins with it; `None` if it has no time.
    fn row(&mut self, row: &StringRecord, visitor: &mut dyn PointVisitor) -> Option<bool> {
        let mut begins = false;
        let Columns { tags, fields } = self.columns;
        let time = row.get(0)?.parse::<NaiveDateTime>().ok()?.and_utc();
        let values = || row.iter().skip(1).take(tags.len());
        for (n, (key, kind)) in fields.iter().enumerate() {
            let value = row.get(1 + tags.len() + n)?;
            // An empty cell is no value.
            if value.is_empty() {
                continue;
            }
            let is_same = self
                .last
                .as_ref()
                .is_some_and(|(last, field)| *field == n && values().eq(last.iter()));
            if !is_same {
                let series: Vec<_> = tags
                    .iter()
                    .zip(values())
                    .filter(|(_, value)| !value.is_empty())
                    .map(|(tag, value)| (tag.clone(), value.to_owned()))
                    .collect();
                visitor.series(&series, Field { key, kind }, self.place);
                self.last = Some((series_of(row, self.columns), n));
                begins = true;
            }
            visitor.point(StoredPoint {
                time: time.timestamp(),
                nanos: time.timestamp_subsec_nanos(),
                value,
            });
        }
        Some(begins)
    }
}

/// The type of a column of a field in the words of Flux, or `None` for a tag or the time.
fn flux_type(kind: &str) -> Option<&'static str> {
    match kind {
        "Float64" => Some("double"),
        "Int64" => Some("long"),
        "UInt64" => Some("unsignedLong"),
        "Boolean" => Some("boolean"),
        "Utf8" => Some("string"),
        _ => None,
    }
}

/// A condition for a range of times in seconds.
fn within(times: &Range<i64>) -> String {
    let time = |seconds: i64| {
        let time = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        time.to_rfc3339_opts(SecondsFormat::Secs, true)
    };
    format!(
        "time >= '{}' AND time < '{}'",
        time(times.start),
        time(times.end)
    )
}

/// A text in SQL.
fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name in SQL.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(identifier(r#"a "b" 'c' \"#), r#""a ""b"" 'c' \""#);
        assert_eq!(text(r#"a "b" 'c' \"#), r#"'a "b" ''c'' \'"#);
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(
            within(&(-1..1_754_184_000)),
            "time >= '1969-12-31T23:59:59Z' AND time < '2025-08-03T01:20:00Z'"
        );
        assert_eq!(
            within(&ALL_TIMES),
            "time >= '1677-09-21T00:12:44Z' AND time < '2262-04-11T23:47:16Z'"
        );
    }
}
