//! One file's bytes become points on their way; what was found is told, nothing is awaited or moved.

use crate::data_dir::DevicePath;
use crate::logger_file::{Channel, Container, FormatError, HeaderMeta, LoggerFile, RowStats};
use crate::points::{Batch, BatchBuilder, BatchOptions};
use crate::points::{SeriesPrefix, TimeRange};
use crate::report::Progress;
use crate::shutdown::Shutdown;
use crate::sink::WriteError;
use crate::time_zone::FileZones;
use std::io::Read;

/// How often, in rows, a long file looks whether the run should end.
const ROWS_A_GLANCE: u64 = 256;

/// What ingesting needs beside the bytes.
pub struct IngestContext<'a> {
    /// Whose file it is.
    pub location: &'a DevicePath,
    /// The zones of files.
    pub zones: &'a FileZones,
    /// How bodies are made.
    pub shape: BatchOptions,
    /// Whether lines are worth making at all: a dry run only counts.
    pub with_lines: bool,
    /// Whether the run should end.
    pub stop: &'a Shutdown,
    /// Where points are counted for a person.
    pub progress: &'a Progress,
}

/// Why a file did not arrive whole.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The file's own fault.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Somebody wrote to it meanwhile: what was read since may be half of one content and half of another.
    #[error("it was changed while it was being read; left for the next run")]
    Changed,
    /// On the way.
    #[error(transparent)]
    Sink(#[from] WriteError),
}

/// What is known of one channel after a file was read.
#[derive(Debug, Clone)]
pub struct ChannelStats {
    /// The column.
    pub channel: Channel,
    /// Values.
    pub points: u64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
    /// Of all values; infinite where it overflows.
    sum: f64,
    /// The same, of values made so small that it cannot.
    small_sum: f64,
}

/// A power of two: what is multiplied by it and divided again is the same number.
const SMALL: f64 = 1.0 / (1_u64 << 40) as f64;

impl ChannelStats {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            points: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sum: 0.0,
            small_sum: 0.0,
        }
    }

    /// The mean of all values; none where there are none.
    pub fn mean(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let points = self.points as f64;
        (self.points > 0).then(|| {
            if self.sum.is_finite() {
                self.sum / points
            } else {
                self.small_sum / points / SMALL
            }
        })
    }

    fn add(&mut self, value: f64) {
        self.points += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum += value;
        self.small_sum += value * SMALL;
    }
}

/// What was found in a file, as far as it was read.
#[derive(Debug, Default)]
pub struct ParsedFile {
    /// Plain or headed, if that was seen.
    pub container: Option<Container>,
    /// The format marker, once the header was read.
    pub marker: Option<&'static str>,
    /// The master's serial, from the file's header.
    pub master: Option<String>,
    /// The JSON of a headed file.
    pub meta: HeaderMeta,
    /// Cut off before its end; of a file whose header cannot be used, that is not seen here.
    pub truncated: bool,
    /// Rows, points and what was skipped.
    pub stats: RowStats,
    /// From the first to the last instant that has a point.
    pub span: Option<TimeRange>,
    /// One entry a column.
    pub channels: Vec<ChannelStats>,
    /// The size read, in bytes.
    pub bytes: u64,
}

/// Reads a file to its end and hands its batches to `send`, until that fails. Where it succeeds they are on their way, no more.
///
/// `same` tells whether the file is still the one that was opened; it is asked before each batch, and what was read of a
/// changing file is not sent.
pub fn ingest(
    input: impl Read,
    ingest_context: &IngestContext<'_>,
    same: &impl Fn() -> bool,
    send: impl FnMut(Batch) -> Result<(), WriteError>,
) -> (ParsedFile, Result<(), IngestError>) {
    let mut parsed = ParsedFile::default();
    let mut file = match LoggerFile::open(input, ingest_context.zones) {
        Ok(file) => file,
        Err(header_error) => {
            parsed.container = header_error.container;
            parsed.meta = header_error.meta;
            return (parsed, Err(header_error.error.into()));
        }
    };
    parsed.container = Some(file.container());
    parsed.marker = Some(file.channels().marker);
    parsed.master = Some(file.channels().master.clone());
    parsed.meta = file.meta().clone();
    parsed.channels = file
        .channels()
        .list
        .iter()
        .cloned()
        .map(ChannelStats::new)
        .collect();
    let result = send_rows(&mut file, &mut parsed, ingest_context, same, send)
        .and_then(|()| Ok(file.ensure_has_points()?));
    parsed.stats = file.stats();
    parsed.truncated = file.truncated();
    parsed.bytes = file.bytes_read();
    (parsed, result)
}

fn send_rows<R: Read>(
    file: &mut LoggerFile<R>,
    parsed: &mut ParsedFile,
    ingest_context: &IngestContext<'_>,
    same: &impl Fn() -> bool,
    mut send: impl FnMut(Batch) -> Result<(), WriteError>,
) -> Result<(), IngestError> {
    let prefixes: Vec<_> = if ingest_context.with_lines {
        let channels = file.channels();
        let prefix = |channel| {
            SeriesPrefix::new(&ingest_context.location.campaign, &channels.master, channel)
        };
        channels.list.iter().map(prefix).collect()
    } else {
        Vec::new()
    };
    let mut batch = BatchBuilder::new(ingest_context.shape);
    let mut send_unchanged = |batch: Batch| {
        if !same() {
            return Err(IngestError::Changed);
        }
        ingest_context.progress.points(batch.lines);
        Ok(send(batch)?)
    };
    let mut rows = 0;
    while let Some(row) = file.next_row()? {
        rows += 1;
        if rows % ROWS_A_GLANCE == 0 && ingest_context.stop.is_requested() {
            return Err(WriteError::Stopped.into());
        }
        let mut has_point = false;
        for (channel, value) in parsed.channels.iter_mut().zip(row.values) {
            if let Some(value) = value {
                channel.add(*value);
                has_point = true;
            }
        }
        if has_point {
            let span = parsed.span.get_or_insert(row.time..=row.time);
            *span = row.time.min(*span.start())..=row.time.max(*span.end());
        }
        batch.push(&prefixes, &row).map_err(FormatError::Read)?;
        if batch.is_full()
            && let Some(full) = batch.take().map_err(FormatError::Read)?
        {
            send_unchanged(full)?;
        }
    }
    if let Some(rest) = batch.take().map_err(FormatError::Read)? {
        send_unchanged(rest)?;
    }
    Ok(())
}
