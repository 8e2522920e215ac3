//! Parses one file and passes its points to the sink. Does not wait for the writes and does not move the file.

use crate::data_dir::DevicePath;
use crate::layout::FileLayout;
use crate::logger_file::{
    Channels as Header, Container, FormatError, HeaderMeta, LoggerFile, Problem, ReadOptions,
    RowStats,
};
use crate::points::{Batch, BatchBuilder, BatchOptions, SeriesPrefix, TimeRange};
use crate::report::{ChannelStats, Channels, FileDetails, Progress, iso};
use crate::rollup::{Days, day_of};
use crate::shutdown::Shutdown;
use crate::sink::WriteError;
use crate::time_zone::{FileZones, ZoneSource};
use chrono::DateTime;
use std::collections::HashMap;
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
    /// The time of the upload in seconds since 1970.
    pub uploaded: i64,
    /// The timestamp of the last row before the file.
    pub row_before: &'a dyn Fn() -> Option<i64>,
    /// The share of the values that may be lost.
    pub max_loss: f64,
    /// Chooses the rows to send by their timestamps.
    pub is_sent: &'a dyn Fn(i64) -> bool,
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
    /// Whether the file is truncated. `None` if it was not read to its end.
    pub truncated: Option<bool>,
    /// Counts of rows, points and skipped cells.
    pub stats: RowStats,
    /// Time range of the points.
    pub span: Option<TimeRange>,
    /// The days with points, in days since 1970, by the serial of the master.
    pub days: Days,
    /// Statistics per column.
    pub channels: Vec<ChannelStats>,
    /// Number of bytes read.
    pub bytes: u64,
    /// Timestamp of the last row in seconds since 1970.
    pub last_row: Option<i64>,
    /// Whether the hour of its first rows depends on the row before the file.
    pub depends_on_row_before: bool,
    /// Time zone of the first document and where it comes from.
    pub time_zone: Option<(String, ZoneSource)>,
    /// What headers say about the time zone that was not understood.
    pub zone_warnings: Vec<String>,
    /// The first defects.
    pub problems: Vec<Problem>,
    /// The layouts of the tables.
    pub layout: Option<FileLayout>,
}

impl ParsedFile {
    /// The details for the report.
    pub(super) fn into_details(self, location: &DevicePath) -> FileDetails {
        let instant = |seconds: i64| DateTime::from_timestamp(seconds, 0).map(iso);
        let span = self.span.as_ref();
        FileDetails {
            file_format: self.marker,
            file_container: self.container.map(Container::name),
            truncated: self.truncated.unwrap_or(false),
            nb_rows: self.stats.rows,
            nb_channels: self.channels.len(),
            nb_points: self.stats.points,
            nb_invalid_timestamps: self.stats.invalid_timestamps,
            nb_invalid_values: self.stats.invalid_values,
            nb_malformed_rows: self.stats.malformed_rows,
            nb_short_rows: self.stats.short_rows,
            nb_lines_after_end: self.stats.lines_after_end,
            nb_tables: self.stats.tables,
            nb_cells: self.stats.cells,
            loss_ratio: self.stats.loss_ratio(),
            nb_suspicious_times: self.stats.suspicious_times,
            time_zone_source: self.time_zone.as_ref().map(|(_, source)| source.as_str()),
            time_zone: self.time_zone.map(|(zone, _)| zone),
            problems: self.problems,
            time_start: span.and_then(|span| instant(*span.start())),
            time_end: span.and_then(|span| instant(*span.end())),
            last_measurement: span.map(|span| *span.end()),
            file_header_meta: match self.meta {
                HeaderMeta::Json(value) => Some(value),
                HeaderMeta::None | HeaderMeta::Broken { .. } => None,
            },
            channels: Channels::of_file(self.channels, self.bytes),
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
    let options = ReadOptions {
        zones: ingest_context.zones,
        uploaded: Some(ingest_context.uploaded),
        row_before: ingest_context.row_before,
    };
    let mut file = match LoggerFile::open(input, &options) {
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
    parsed.time_zone = file
        .time_zone()
        .map(|(zone, source)| (zone.to_owned(), source));
    let result = send_rows(&mut file, &mut parsed, ingest_context, is_unchanged, send)
        .and_then(|()| Ok(file.ensure_usable(ingest_context.max_loss)?));
    parsed.stats = file.stats();
    parsed.problems = file.problems().to_vec();
    parsed.layout = file.layout();
    parsed.zone_warnings = file.zone_warnings().to_vec();
    parsed.truncated = file.truncated();
    parsed.last_row = file.last_row();
    parsed.bytes = file.bytes_read();
    (parsed, result)
}

/// Sends the rows of a file. If the file turns out to be invalid, the rows before that are sent.
fn send_rows<R: Read>(
    file: &mut LoggerFile<'_, R>,
    parsed: &mut ParsedFile,
    ingest_context: &IngestContext<'_>,
    is_unchanged: &impl Fn() -> bool,
    mut send: impl FnMut(Batch) -> Result<(), WriteError>,
) -> Result<(), IngestError> {
    let mut table = Table::default();
    table.begin(file.channels(), parsed, ingest_context);
    let mut header_changes = 0;
    let mut batch = BatchBuilder::new(ingest_context.batch_options);
    let mut send_unchanged = |batch: Batch| {
        if !is_unchanged() {
            return Err(IngestError::Changed);
        }
        ingest_context.progress.points(batch.lines);
        Ok(send(batch)?)
    };
    let mut rows = 0;
    let mut day = None;
    let end = loop {
        let row = match file.next_row() {
            Ok(Some(row)) => row,
            Ok(None) => break Ok(()),
            Err(error @ FormatError::Read(_)) => return Err(error.into()),
            Err(error) => break Err(error.into()),
        };
        rows += 1;
        if rows % SHUTDOWN_CHECK_ROWS == 0 && ingest_context.stop.is_requested() {
            return Err(WriteError::Stopped.into());
        }
        if row.header_changes != header_changes {
            header_changes = row.header_changes;
            if rows == 1 {
                // The tables before had no row.
                parsed.channels.clear();
                table = Table::default();
            }
            table.begin(row.channels, parsed, ingest_context);
            day = None;
        }
        let mut has_point = false;
        for (channel, value) in table.channels.iter().zip(row.values) {
            if let Some(value) = value {
                parsed.channels[*channel].add(*value);
                has_point = true;
            }
        }
        if has_point {
            let span = parsed.span.get_or_insert(row.time..=row.time);
            *span = row.time.min(*span.start())..=row.time.max(*span.end());
            let this_day = day_of(row.time);
            if day.replace(this_day) != Some(this_day) {
                let master = row.channels.master.clone();
                parsed.days.entry(master).or_default().insert(this_day);
            }
        }
        if !(ingest_context.is_sent)(row.time) {
            continue;
        }
        batch
            .push(&table.prefixes, &row)
            .map_err(FormatError::Read)?;
        if batch.is_full()
            && let Some(full) = batch.take().map_err(FormatError::Read)?
        {
            send_unchanged(full)?;
        }
    };
    if let Some(last) = batch.take().map_err(FormatError::Read)? {
        send_unchanged(last)?;
    }
    end
}

/// What a table of a file adds to each of its columns.
#[derive(Default)]
struct Table {
    /// Positions in the statistics of the file.
    channels: Vec<usize>,
    /// Empty if no line protocol is built.
    prefixes: Vec<SeriesPrefix>,
    /// The position of each channel in the statistics, by its id.
    positions: HashMap<String, usize>,
}

impl Table {
    /// Begins a table. A channel that an earlier table has keeps its statistics, with the name and unit of this table.
    fn begin(&mut self, header: &Header, parsed: &mut ParsedFile, context: &IngestContext<'_>) {
        self.channels.clear();
        self.prefixes.clear();
        for channel in &header.list {
            let position = *self
                .positions
                .entry(channel.id.clone())
                .or_insert(parsed.channels.len());
            match parsed.channels.get_mut(position) {
                Some(stats) => stats.rename(channel),
                None => parsed.channels.push(ChannelStats::new(channel.clone())),
            }
            self.channels.push(position);
            if context.with_lines {
                let prefix = SeriesPrefix::new(&context.location.campaign, &header.master, channel);
                self.prefixes.push(prefix);
            }
        }
    }
}
