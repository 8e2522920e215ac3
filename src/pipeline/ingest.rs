//! Parses one file and passes its points to the sink. Does not wait for the writes and does not move the file.

use crate::data_dir::DevicePath;
use crate::logger_file::{Container, FormatError, HeaderMeta, LoggerFile, RowStats};
use crate::points::{Batch, BatchBuilder, BatchOptions, SeriesPrefix, TimeRange};
use crate::report::{ChannelStats, Channels, FileDetails, Progress, iso};
use crate::shutdown::Shutdown;
use crate::sink::WriteError;
use crate::time_zone::FileZones;
use chrono::DateTime;
use std::io::Read;

/// Number of rows between two checks of the shutdown flag.
const SHUTDOWN_CHECK_ROWS: u64 = 256;

/// Everything that ingesting a file needs besides its content.
pub(super) struct IngestContext<'a> {
    /// Device folder of the file.
    pub location: &'a DevicePath,
    /// Time zones of the files.
    pub zones: &'a FileZones,
    /// Size and compression of batches.
    pub batch_options: BatchOptions,
    /// Whether line protocol is built. A dry run only counts points.
    pub with_lines: bool,
    /// Shutdown flag.
    pub stop: &'a Shutdown,
    /// Progress bar, which counts the points.
    pub progress: &'a Progress,
}

/// Why a file was not ingested completely.
#[derive(Debug, thiserror::Error)]
pub(super) enum IngestError {
    /// The file is not valid.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file was changed while it was read, so its content may be mixed from two versions.
    #[error("file was changed during ingestion; left for the next run")]
    Changed,
    /// Writing the points failed.
    #[error(transparent)]
    Sink(#[from] WriteError),
}

/// The result of parsing a file, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct ParsedFile {
    /// Plain or headed, once known.
    pub container: Option<Container>,
    /// Format marker, once the header was read.
    pub marker: Option<&'static str>,
    /// Serial number of the master, from the file's header.
    pub master: Option<String>,
    /// JSON of a headed file.
    pub meta: HeaderMeta,
    /// Whether the file is truncated. Always false if the header is not valid.
    pub truncated: bool,
    /// Counts of rows, points and skipped cells.
    pub stats: RowStats,
    /// Time range of the points.
    pub span: Option<TimeRange>,
    /// Statistics per column.
    pub channels: Vec<ChannelStats>,
    /// Number of bytes read.
    pub bytes: u64,
}

impl ParsedFile {
    /// The details for the report.
    pub(super) fn into_details(self, location: &DevicePath) -> FileDetails {
        let instant = |seconds: i64| DateTime::from_timestamp(seconds, 0).map(iso);
        let span = self.span.as_ref();
        FileDetails {
            file_format: self.marker,
            file_container: self.container.map(Container::name),
            truncated: self.truncated,
            nb_rows: self.stats.rows,
            nb_channels: self.channels.len(),
            nb_points: self.stats.points,
            nb_invalid_timestamps: self.stats.invalid_timestamps,
            nb_invalid_values: self.stats.invalid_values,
            nb_malformed_rows: self.stats.malformed_rows,
            time_start: span.and_then(|span| instant(*span.start())),
            time_end: span.and_then(|span| instant(*span.end())),
            last_measurement: span.map(|span| *span.end()),
            file_header_meta: match self.meta {
                HeaderMeta::Json(value) => Some(value),
                HeaderMeta::None | HeaderMeta::Broken(_) => None,
            },
            channels: Some(Channels(self.channels)),
            ..FileDetails::unread(Some(location))
        }
    }
}

/// Reads a file to its end and passes its batches to `send`. Stops at the first error.
///
/// `is_unchanged` is checked before each batch, so that nothing is sent of a file that has changed since it was opened.
/// After success the batches have been submitted, but not necessarily written.
pub(super) fn ingest(
    input: impl Read,
    ingest_context: &IngestContext<'_>,
    is_unchanged: &impl Fn() -> bool,
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
    let result = send_rows(&mut file, &mut parsed, ingest_context, is_unchanged, send)
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
    is_unchanged: &impl Fn() -> bool,
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
    let mut batch = BatchBuilder::new(ingest_context.batch_options);
    let mut send_unchanged = |batch: Batch| {
        if !is_unchanged() {
            return Err(IngestError::Changed);
        }
        ingest_context.progress.points(batch.lines);
        Ok(send(batch)?)
    };
    let mut rows = 0;
    while let Some(row) = file.next_row()? {
        rows += 1;
        if rows % SHUTDOWN_CHECK_ROWS == 0 && ingest_context.stop.is_requested() {
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
    if let Some(last) = batch.take().map_err(FormatError::Read)? {
        send_unchanged(last)?;
    }
    Ok(())
}
