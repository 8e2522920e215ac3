//! What a query for points changes or does not return, for copying a bucket.

use super::InfluxReader;
use super::flux;
use crate::sink::source::{
    ALL_TIMES, CopySource, Field, FieldTypes, Place, PointVisitor, ReadError, StoredPoint,
};
use reqwest::Method;
use serde::Deserialize;

/// A regular expression for texts with a line break.
const LINE_BREAK: &str = "/[\\n\\r]/";

/// The answer to statements of `InfluxQL`.
#[derive(Deserialize)]
struct Statements {
    results: Vec<Statement>,
}

#[derive(Deserialize)]
struct Statement {
    #[serde(default)]
    series: Vec<FieldsOfMeasurement>,
    error: Option<String>,
}

/// The keys and types of the fields of a measurement.
#[derive(Deserialize)]
struct FieldsOfMeasurement {
    name: String,
    values: Vec<(String, String)>,
}

impl CopySource for InfluxReader {
    fn unreadable_tags(
        &self,
        bucket: &str,
        measurement: &str,
    ) -> Result<Vec<&'static str>, ReadError> {
        let keys = self.schema(bucket, measurement, "tagKeys(", "")?;
        let found = |key| keys.iter().filter(|found| *found == key).count();
        // The server lists the first two of each measurement, and once more if they are tags.
        let own = [("_start", 1), ("_stop", 1), ("_time", 0), ("_value", 0)];
        let tags = own.iter().filter(|(key, columns)| found(*key) > *columns);
        Ok(tags.map(|(key, _)| *key).collect())
    }

    fn line_break_in_tags(
        &self,
        bucket: &str,
        measurement: &str,
    ) -> Result<Option<String>, ReadError> {
        let breaks = &format!(" |> filter(fn: (r) => r._value =~ {LINE_BREAK}) |> limit(n: 1)");
        if !self
            .schema(bucket, measurement, "tagKeys(", breaks)?
            .is_empty()
        {
            return Ok(Some("the name of a tag".to_owned()));
        }
        let keys = self.schema(bucket, measurement, "tagKeys(", "")?;
        for key in keys.iter().filter(|key| !key.starts_with('_')) {
            let values = format!("tagValues(tag: {}, ", flux::string(key));
            if !self
                .schema(bucket, measurement, &values, breaks)?
                .is_empty()
            {
                return Ok(Some(format!("a value of the tag {key:?}")));
            }
        }
        Ok(None)
    }

    fn field_types(&self, bucket: &str) -> Result<FieldTypes, ReadError> {
        // Queries with Flux return one type of a field. Each bucket is also a database of this name.
        let query = [("db", bucket), ("rp", "autogen"), ("q", "SHOW FIELD KEYS")];
        let retry = &self.retry;
        let answer: Statements = self.request(retry, &Method::GET, "/query", &query, None)?;
        let mut types = FieldTypes::new();
        for statement in answer.results {
            if let Some(error) = statement.error {
                let address = &self.client.address;
                return Err(ReadError::Refused(format!(
                    "{address}: the fields of bucket {bucket:?} cannot be listed: {error}"
                )));
            }
            for FieldsOfMeasurement { name, values } in statement.series {
                for (field, kind) in values {
                    types.entry((name.clone(), field)).or_default().insert(kind);
                }
            }
        }
        Ok(types)
    }

    fn texts_with_line_breaks(
        &self,
        bucket: &str,
        measurement: &str,
        field: &str,
        visitor: &mut dyn PointVisitor,
    ) -> Result<(), ReadError> {
        let points = flux::measurement(bucket, measurement, &ALL_TIMES);
        let query = format!(
            "import \"strings\"\n\
             {points} |> filter(fn: (r) => r._field == {} and r._value =~ {LINE_BREAK}) \
             |> drop(columns: [\"_start\", \"_stop\", \"_measurement\"]) \
             |> map(fn: (r) => ({{r with _value: {}}}))",
            flux::string(field),
            flux::escaped("r._value")
        );
        self.pass_points(bucket, &query, &mut Unescaped(visitor))
    }
}

/// Passes points on whose values are escaped texts.
struct Unescaped<'a>(&'a mut dyn PointVisitor);

impl PointVisitor for Unescaped<'_> {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, place: Place) {
        self.0.series(tags, field, place);
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        let value = &flux::unescaped(point.value);
        self.0.point(StoredPoint { value, ..point });
    }
}
