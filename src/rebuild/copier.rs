//! Copies points of another bucket, whatever their tags, fields and types.

use crate::points::{Batch, BatchOptions, Line};
use crate::sink::{Field, Place, PointVisitor, Sink, StoredPoint, Stream};
use crate::verify::Unexplained;
use std::sync::Arc;

/// The size of a body above which it is sent, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Writes points to a bucket.
pub(super) struct Copier<'a> {
    sink: &'a Sink,
    bucket: Arc<str>,
    options: BatchOptions,
    measurement: String,
    /// The tags of the series, and the key and type of its field.
    tags: Vec<(String, String)>,
    field: (String, String),
    lines: Vec<u8>,
    /// The number of points in `lines`.
    waiting: u32,
    copied: u64,
    /// Why points were not copied.
    failure: Option<String>,
}

impl<'a> Copier<'a> {
    pub(super) fn new(sink: &'a Sink, bucket: &str, options: BatchOptions) -> Self {
        Self {
            sink,
            bucket: bucket.into(),
            options,
            measurement: String::new(),
            tags: Vec::new(),
            field: Default::default(),
            lines: Vec::new(),
            waiting: 0,
            copied: 0,
            failure: None,
        }
    }

    /// Writes the rest. Returns the number of points that were copied.
    pub(super) fn finish(mut self) -> Result<u64, String> {
        self.flush();
        self.failure.map_or(Ok(self.copied), Err)
    }

    fn flush(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let waiting = std::mem::take(&mut self.waiting);
        if waiting == 0 || self.failure.is_some() {
            return;
        }
        let batch = Batch::plain(lines, waiting);
        let written = self.sink.send(&self.bucket, batch, Stream::Copies).wait();
        self.copied += written.points.accepted;
        if let Err(error) = written.result {
            self.failure = Some(error.to_string());
        }
    }

    fn fail(&mut self, reason: &str) {
        let measurement = &self.measurement;
        self.failure
            .get_or_insert_with(|| format!("measurement {measurement:?}: {reason}"));
    }
}

impl Unexplained for Copier<'_> {
    fn measurement(&mut self, name: &str) {
        name.clone_into(&mut self.measurement);
    }
}

impl PointVisitor for Copier<'_> {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, _: Place) {
        self.tags = tags.to_vec();
        self.field = (field.key.to_owned(), field.kind.to_owned());
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        let mut line = Line::new(&self.measurement);
        for (key, value) in &self.tags {
            line.tag(key, value);
        }
        let (key, kind) = &self.field;
        let mut fields = line.fields();
        let is_copied = match kind.as_str() {
            "double" => point
                .value
                .parse()
                .map(|value| fields.float(key, value))
                .is_ok(),
            "long" => point
                .value
                .parse()
                .map(|value| fields.integer(key, value))
                .is_ok(),
            "unsignedLong" => point
                .value
                .parse()
                .map(|value| fields.unsigned(key, value))
                .is_ok(),
            "boolean" => point
                .value
                .parse()
                .map(|value| fields.boolean(key, value))
                .is_ok(),
            "string" => {
                fields.whole_text(key, point.value);
                true
            }
            _ => false,
        };
        if !is_copied {
            return self.fail(&format!("the field {key:?} has the type {kind}"));
        }
        // All times of a database are within the range of its nanoseconds.
        let nanos = point.time.saturating_mul(1_000_000_000);
        let time = nanos.saturating_add(point.nanos.into());
        self.lines.extend(fields.at(time));
        self.waiting += 1;
        if self.waiting >= self.options.lines || self.lines.len() >= MAX_BODY {
            self.flush();
        }
    }
}
