//! Reads the tables of a file row by row. See docs/specification.md, sections 2 and 4.
//!
//! A file is a sequence of documents, plain or headed, because loggers and transfers concatenate files. A document has a
//! table, or several one after another if the logger was reconfigured.

use super::cells::{contains_keyword, holds_something, trim_spaces};
use super::channels::{Channels, contains_marker, is_marker, unknown_marker};
use super::container::{
    BYTE_ORDER_MARK, Container, END_DATA, END_HEADER, HeaderMeta, START_DATA, START_HEADER,
};
use super::lines::{Line, Lines};
use super::problems::{Problem, Problems};
use super::row_stats::{RowStats, glued, value_cells};
use super::timestamps::{TimestampResolver, ZoneChoice, parse_wall_time};
use super::{FormatError, MAX_CHANNELS, MAX_HEADER, MAX_WEEKS, cells, foreign};
use crate::layout::{FileLayout, LayoutScan};
use crate::time_zone::{FileZones, ZoneSource};
use chrono::NaiveDateTime;
use memchr::memmem;
use std::collections::HashSet;
use std::io::Read;

/// The error of an invalid header, with the information read before it.
#[derive(Debug)]
pub struct HeaderError {
    /// The error.
    pub error: FormatError,
    /// The container, if it is known.
    pub container: Option<Container>,
    /// The JSON of a headed file.
    pub meta: HeaderMeta,
}

impl From<FormatError> for Box<HeaderError> {
    fn from(error: FormatError) -> Self {
        Self::new(HeaderError {
            error,
            container: None,
            meta: HeaderMeta::None,
        })
    }
}

impl From<Box<HeaderError>> for FormatError {
    fn from(header_error: Box<HeaderError>) -> Self {
        header_error.error
    }
}

/// One row with a valid time.
#[derive(Debug, PartialEq)]
pub struct Row<'a> {
    /// Seconds since 1970.
    pub time: i64,
    /// One entry per channel; `None` if the cell has no valid value. All values are finite.
    pub values: &'a [Option<f64>],
    /// The header that applies.
    pub channels: &'a Channels,
    /// The number of different headers before that one in the file.
    pub header_changes: u64,
}

/// What the meaning of a file depends on besides its content.
#[derive(Clone, Copy)]
pub struct ReadOptions<'a> {
    /// The default time zone, and those that headers name.
    pub zones: &'a FileZones,
    /// The time of the upload in seconds since 1970.
    pub uploaded: Option<i64>,
    /// The timestamp of the last row before this file. It is asked for only if the first row needs it.
    pub row_before: &'a dyn Fn() -> Option<i64>,
}

impl<'a> ReadOptions<'a> {
    /// Options for a file whose upload and predecessor are not known.
    pub fn new(zones: &'a FileZones) -> Self {
        Self {
            zones,
            uploaded: None,
            row_before: &|| None,
        }
    }
}

/// The time before which a row is suspicious: 2010-01-01, in seconds since 1970.
const FIRST_PLAUSIBLE_TIME: i64 = 1_262_304_000;

/// The time by which a row may be later than the upload, in seconds.
const MAX_AHEAD: i64 = 24 * 3600;

/// The time by which a row may be earlier than the previous one, in seconds.
const MAX_STEP_BACK: i64 = 2 * 3600;

/// The length of a shard of the database in seconds.
const WEEK: i64 = 7 * 24 * 3600;

/// A reader for the rows of a logger file.
pub struct LoggerFile<'a, R> {
    options: ReadOptions<'a>,
    lines: Lines<R>,
    /// The line that is being read.
    line: Line,
    /// The line before it, if it may be the serials of a header.
    candidate: Option<Line>,
    document: Document,
    /// Where a document seems to begin or end, since its last row.
    boundary: Option<Boundary>,
    /// The first document.
    first: Option<FirstDocument>,
    channels: Channels,
    /// The ids of all channels, if the file has several headers.
    ids: HashSet<String>,
    resolver: TimestampResolver,
    /// The timestamp of the last row of the documents before this one.
    last_of_document_before: Option<i64>,
    values: Vec<Option<f64>>,
    stats: RowStats,
    problems: Problems,
    layout: LayoutScan,
    zone_warnings: Vec<String>,
    weeks: HashSet<i64>,
    week: Option<i64>,
    /// The number of rows read, including those skipped.
    data_rows: u64,
    /// The number of rows whose time is in another form.
    reformatted_times: u64,
    /// Whether a document was cut off.
    was_cut: bool,
    /// Whether the end of the file was reached.
    has_ended: bool,
    /// Whether the document has no table so far.
    is_first_table: bool,
}

/// The document that is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Document {
    /// No header was read so far.
    Missing,
    Plain,
    Headed,
    /// `END_DATA` was read.
    Ended,
}

/// A damaged line, with its number, after which the meaning of times is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boundary {
    /// A part of a header without what must stand before it.
    Header(u64),
    /// `END_DATA` with other text, most of it, or a keyword in a row. Rows that follow belong to the document, a table may
    /// not.
    End(u64),
}

/// What stands in the lines of a header, except `START_HEADER`, and nowhere else.
const HEADER_PARTS: [&[u8]; 5] = [
    END_HEADER,
    START_DATA,
    b"\"DataTimeSettings\"",
    b"\"TimeZoneName\"",
    b"\"TimeZone\"",
];

/// What the report says about the first document.
struct FirstDocument {
    container: Container,
    meta: HeaderMeta,
    zone: String,
    zone_source: ZoneSource,
}

/// The maximum number of different warnings about time zones per file.
const MAX_ZONE_WARNINGS: usize = 3;

impl<'a, R: Read> LoggerFile<'a, R> {
    /// Reads the first header.
    ///
    /// # Errors
    /// An invalid header or an I/O error, with the information read before it.
    pub fn open(input: R, options: &ReadOptions<'a>) -> Result<Self, Box<HeaderError>> {
        let default = super::timestamps::Zone::Local(options.zones.default.clone());
        let mut file = Self {
            options: *options,
            lines: Lines::new(input)?,
            line: Line::default(),
            candidate: None,
            document: Document::Missing,
            boundary: None,
            first: None,
            channels: Channels::none(),
            ids: HashSet::new(),
            resolver: TimestampResolver::new(default),
            last_of_document_before: None,
            values: Vec::new(),
            stats: RowStats::default(),
            problems: Problems::default(),
            layout: LayoutScan::default(),
            zone_warnings: Vec::new(),
            weeks: HashSet::new(),
            week: None,
            data_rows: 0,
            reformatted_times: 0,
            was_cut: false,
            has_ended: false,
            is_first_table: true,
        };
        match file.begin() {
            Ok(()) => Ok(file),
            Err(error) => Err(Box::new(file.header_error(error))),
        }
    }

    fn begin(&mut self) -> Result<(), FormatError> {
        if !self.next_line()? {
            return Err(FormatError::Empty);
        }
        if self.line.contains(START_HEADER) {
            return self.begin_headed();
        }
        self.ensure_no_marker()?;
        self.boundary = self.find_boundary();
        let is_end = self.line.is_keyword(END_DATA);
        let first = std::mem::take(&mut self.line);
        let line = first.number + 1;
        if !self.next_line()? {
            return Err(FormatError::NoLabels { line });
        }
        if is_marker(self.line.first_cell()) && !self.line.contains(START_HEADER) {
            if !may_be_serials(&first) {
                return Err(FormatError::NoSerials {
                    line: self.line.number,
                });
            }
            self.begin_document(Document::Plain, HeaderMeta::None, 1)?;
            return self.begin_table(&first);
        }
        let error = unknown_marker(self.line.first_cell(), self.line.number);
        if is_end {
            self.document = Document::Ended;
        } else {
            self.candidate = Some(first);
        }
        if self.find_document()? {
            return Ok(());
        }
        self.begin_document(Document::Plain, HeaderMeta::None, 1)?;
        Err(error)
    }

    /// Reads from the second line to the header of the first document that is complete. Returns false if there is none.
    fn find_document(&mut self) -> Result<bool, FormatError> {
        loop {
            // The times of this table may be those of a headed document whose beginning is missing.
            let has_unplaced_table = self.document == Document::Missing
                && self.boundary.is_none()
                && !self.line.contains(START_HEADER)
                && self.line.record.iter().any(contains_marker);
            if has_unplaced_table {
                return Ok(false);
            }
            self.read_line()?;
            if self.stats.tables > 0 {
                return Ok(true);
            }
            match self.next_line() {
                Ok(true) => {}
                Ok(false) | Err(FormatError::LineTooLong { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    fn header_error(self, error: FormatError) -> HeaderError {
        let is_format_error = !matches!(error, FormatError::Read(_) | FormatError::Empty);
        let format = foreign::format_of(self.lines.tracker().head());
        let (container, meta) = match self.first {
            Some(first) => (Some(first.container), first.meta),
            None => (None, HeaderMeta::None),
        };
        HeaderError {
            error: match format.filter(|_| is_format_error && container != Some(Container::Headed))
            {
                Some(format) => FormatError::Foreign(format),
                None => error,
            },
            container,
            meta,
        }
    }

    /// The container of the first document.
    pub fn container(&self) -> Container {
        self.first
            .as_ref()
            .map_or(Container::Plain, |first| first.container)
    }

    /// The JSON of the first document.
    pub fn meta(&self) -> &HeaderMeta {
        self.first
            .as_ref()
            .map_or(&HeaderMeta::None, |first| &first.meta)
    }

    /// The time zone of the first document, and where it comes from.
    pub fn time_zone(&self) -> Option<(&str, ZoneSource)> {
        let first = self.first.as_ref()?;
        Some((&first.zone, first.zone_source))
    }

    /// What headers say about the time zone that was not understood.
    pub fn zone_warnings(&self) -> &[String] {
        &self.zone_warnings
    }

    /// The content of the two header lines of the current table. It changes with [`RowStats::header_changes`].
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// The counts so far.
    pub fn stats(&self) -> RowStats {
        self.stats
    }

    /// The first defects.
    pub fn problems(&self) -> &[Problem] {
        self.problems.list()
    }

    /// The layouts of the tables so far.
    pub(crate) fn layout(&self) -> Option<FileLayout> {
        self.layout.file()
    }

    /// Whether the file is truncated: it has a plain document without a final line break, or a headed one without
    /// `END_DATA`, or ends with NUL bytes. `None` until [`LoggerFile::next_row`] has returned `None`.
    pub fn truncated(&self) -> Option<bool> {
        let tracker = self.lines.tracker();
        self.has_ended.then(|| {
            self.was_cut
                || tracker.ended_with_nuls()
                || match self.document {
                    Document::Missing | Document::Plain => tracker.lacks_final_break(),
                    Document::Headed => true,
                    Document::Ended => false,
                }
        })
    }

    /// The timestamp of the last row so far.
    pub fn last_row(&self) -> Option<i64> {
        self.resolver.last().or(self.last_of_document_before)
    }

    /// The number of bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.lines.tracker().bytes()
    }

    /// Returns the next valid row, or `None` at the end of the data.
    ///
    /// # Errors
    /// A header that is invalid, a line that is too long, too many weeks, or an I/O error. The rows before it are valid.
    pub fn next_row(&mut self) -> Result<Option<Row<'_>>, FormatError> {
        while self.next_line()? {
            if let Some(time) = self.read_line()? {
                return Ok(Some(Row {
                    time,
                    values: &self.values,
                    channels: &self.channels,
                    header_changes: self.stats.header_changes,
                }));
            }
        }
        self.skip_candidate();
        Ok(None)
    }

    /// Checks that a file that was read to its end has points, and that it lost at most a share of `max_loss`.
    ///
    /// # Errors
    /// [`FormatError::NoRow`], [`FormatError::NoPoint`] or [`FormatError::TooMuchLost`].
    pub fn ensure_usable(&self, max_loss: f64) -> Result<(), FormatError> {
        let stats = self.stats;
        if self.data_rows == 0 {
            Err(FormatError::NoRow)
        } else if self.reformatted_times == self.data_rows {
            Err(FormatError::Foreign(foreign::REFORMATTED))
        } else if stats.points == 0 {
            Err(FormatError::NoPoint {
                rows: stats.rows,
                times: stats.invalid_timestamps,
                malformed: stats.malformed_rows,
                values: stats.invalid_values,
                first: self.problems.first(),
            })
        } else if stats.loss_ratio() > max_loss {
            Err(FormatError::TooMuchLost {
                lost: stats.lost_cells,
                cells: stats.cells,
                first: self.problems.first(),
            })
        } else {
            Ok(())
        }
    }

    /// Reads a line. Returns the timestamp of the row if there is one in `values`.
    fn read_line(&mut self) -> Result<Option<i64>, FormatError> {
        let has_table = matches!(self.document, Document::Plain | Document::Headed);
        let Some(wall) = self.wall_time().filter(|_| has_table) else {
            self.read_other_line()?;
            return Ok(None);
        };
        self.skip_candidate();
        self.read_row(wall)
    }

    /// The time in the first cell of the line, unless the line may be cut off in it.
    fn wall_time(&self) -> Option<NaiveDateTime> {
        let is_cut = self.line.is_cut && self.line.record.len() == 1;
        parse_wall_time(self.line.first_cell()).filter(|_| !is_cut)
    }

    /// Parses the row with this time into `values` and returns its timestamp, or `None` if the row is skipped.
    fn read_row(&mut self, wall: NaiveDateTime) -> Result<Option<i64>, FormatError> {
        let boundary = self.boundary.take();
        if let Some(Boundary::Header(line)) = boundary
            && !self.line.contains(START_HEADER)
        {
            return Err(FormatError::DamagedHeader { line });
        }
        self.data_rows += 1;
        let columns = self.values.len();
        // Without a final line break, the last cell may be an incomplete number.
        let is_cut = self.line.is_cut;
        let is_short = !is_cut && self.line.record.len() <= columns;
        let complete = self.line.record.len() - usize::from(is_cut || is_short);
        let mut record = self
            .line
            .record
            .iter()
            .take(complete)
            .skip(1)
            .map(trim_spaces);
        let mut points = 0;
        for slot in &mut self.values {
            *slot = record.next().and_then(cells::parse);
            points += u64::from(slot.is_some());
        }
        if points == columns as u64 && self.line.record.len() == columns + 1 {
            self.stats.cells += points;
        } else if self.line.contains(START_HEADER) {
            self.begin_headed()?;
            return Ok(None);
        } else {
            self.ensure_no_marker()?;
            if !self.examine_row(is_cut, is_short) {
                return Ok(None);
            }
        }
        let before = self.last_of_document_before;
        let row_before = self.options.row_before;
        let previous = self.resolver.last();
        let time = self.resolver.resolve(wall, || before.or_else(row_before));
        if points > 0 {
            self.check_week(time)?;
        }
        self.check_time(time, previous.or(before));
        self.stats.rows += 1;
        self.stats.points += points;
        self.stats.invalid_values += columns as u64 - points;
        self.layout.add_row(&self.values);
        Ok(Some(time))
    }

    /// Counts the cells of a row that is not perfect. Returns false if it is malformed: it contains more than one row.
    fn examine_row(&mut self, is_cut: bool, is_short: bool) -> bool {
        let columns = self.values.len();
        let line = self.line.number;
        let cells = || value_cells(&self.line.record, is_cut);
        // The cell that may be cut off shows all the same that the row does not fit.
        if let Some((column, cell, reason)) = glued(value_cells(&self.line.record, false), columns)
        {
            self.problems.add(line, column + 1, cell, reason);
            self.stats.malformed_rows += 1;
            self.stats.lose(cells(), is_cut);
            // The rows of the document may go on, because this one has its time.
            self.boundary = self.find_boundary().map(|_| Boundary::End(line));
            return false;
        }
        // The cut last row of a truncated file is left out of the counts of cells.
        if is_cut {
            return true;
        }
        let last = self.line.record.len() - 1;
        for (column, cell) in cells() {
            let is_lost = self.values.get(column - 1).is_some_and(Option::is_none);
            if !is_lost || !holds_something(cell) {
                continue;
            }
            let reason = if is_short && column == last {
                continue;
            } else if cell.contains(&b',') {
                "a decimal comma; numbers need a point"
            } else {
                "not a number"
            };
            self.problems.add(line, column + 1, cell, reason);
        }
        let values = cells().filter(|(column, cell)| *column <= columns && holds_something(cell));
        let points = self.values.iter().flatten().count() as u64;
        let mut held = values.count() as u64;
        if is_short {
            let cell = self.line.record.get(last).unwrap_or_default();
            let reason = "fewer cells than the header; the last one may be cut off and is skipped";
            self.problems.add(line, last + 1, cell, reason);
            self.stats.short_rows += 1;
            held += (columns - last) as u64;
        }
        self.stats.cells += held;
        self.stats.lost_cells += held - points;
        true
    }

    fn check_time(&mut self, time: i64, previous: Option<i64>) {
        let is_early = time < FIRST_PLAUSIBLE_TIME;
        let is_late = self
            .options
            .uploaded
            .is_some_and(|uploaded| time > uploaded.saturating_add(MAX_AHEAD));
        let is_back = previous.is_some_and(|previous| time < previous - MAX_STEP_BACK);
        if is_early || is_late || is_back {
            self.stats.suspicious_times += 1;
        }
    }

    /// Counts the week of a row. Each is a shard of the database, whose number a file must not exhaust.
    fn check_week(&mut self, time: i64) -> Result<(), FormatError> {
        let week = time.div_euclid(WEEK);
        if self.week == Some(week) {
            return Ok(());
        }
        self.week = Some(week);
        self.weeks.insert(week);
        if self.weeks.len() > MAX_WEEKS {
            return Err(FormatError::TooManyWeeks {
                line: self.line.number,
            });
        }
        Ok(())
    }

    /// Reads a line that is no row of a table.
    fn read_other_line(&mut self) -> Result<(), FormatError> {
        if self.line.contains(START_HEADER) {
            return self.begin_headed();
        }
        let may_end = matches!(self.document, Document::Missing | Document::Headed);
        if may_end && self.line.is_keyword(END_DATA) {
            self.skip_candidate();
            self.document = Document::Ended;
            self.boundary = None;
            return Ok(());
        }
        if !is_marker(self.line.first_cell()) {
            self.ensure_no_marker()?;
            self.skip_candidate();
            if !matches!(self.boundary, Some(Boundary::Header(_))) {
                self.boundary = self.find_boundary().or(self.boundary);
            }
            self.candidate = Some(std::mem::take(&mut self.line));
            return Ok(());
        }
        if let Some(Boundary::Header(line) | Boundary::End(line)) = self.boundary {
            return Err(FormatError::DamagedHeader { line });
        }
        let serials = self.candidate.take().filter(may_be_serials);
        let Some(serials) = serials else {
            return Err(FormatError::NoSerials {
                line: self.line.number,
            });
        };
        if self.document == Document::Ended {
            self.begin_document(Document::Plain, HeaderMeta::None, serials.number)?;
        }
        match self.begin_table(&serials) {
            // The rest of the line may be missing.
            Err(_) if self.line.is_cut => Ok(()),
            result => result,
        }
    }

    /// Checks that the line, which does not begin with a marker, has none: a lost line break would hide a new header.
    fn ensure_no_marker(&self) -> Result<(), FormatError> {
        if self.line.record.iter().any(contains_marker) {
            return Err(FormatError::NoSerials {
                line: self.line.number,
            });
        }
        Ok(())
    }

    /// Whether the line looks like a damaged line between two documents.
    fn find_boundary(&self) -> Option<Boundary> {
        let line = self.line.joined();
        let line = line.trim_ascii();
        let contains = |part: &[u8]| memmem::find(line, part).is_some();
        let is_header = HEADER_PARTS.into_iter().any(contains)
            || [START_HEADER, END_HEADER, START_DATA]
                .into_iter()
                .any(|keyword| resembles(line, keyword));
        let is_end =
            self.document == Document::Headed && (contains(END_DATA) || resembles(line, END_DATA));
        if is_header {
            Some(Boundary::Header(self.line.number))
        } else {
            is_end.then_some(Boundary::End(self.line.number))
        }
    }

    /// Counts the candidate, which turned out to be no header, as a skipped line.
    fn skip_candidate(&mut self) {
        let Some(line) = self.candidate.take() else {
            return;
        };
        if self.document == Document::Ended {
            self.stats.lines_after_end += 1;
            return;
        }
        self.data_rows += 1;
        self.stats
            .lose(value_cells(&line.record, line.is_cut), line.is_cut);
        let first = line.record.get(0).map(trim_spaces).unwrap_or_default();
        if self.document == Document::Missing {
            match parse_wall_time(first) {
                Some(_) => self.stats.malformed_rows += 1,
                None => self.stats.invalid_timestamps += 1,
            }
            let reason = "a row before any header; it is skipped";
            self.problems.add(line.number, 1, first, reason);
            return;
        }
        let cells = value_cells(&line.record, false);
        if let Some((column, cell, reason)) = glued(cells, self.values.len()) {
            self.stats.malformed_rows += 1;
            self.problems.add(line.number, column + 1, cell, reason);
            return;
        }
        self.stats.invalid_timestamps += 1;
        let reason = if foreign::is_reformatted_time(first) {
            self.reformatted_times += 1;
            "a time in another form than DD/MM/YY HH:MM:SS; the row is skipped"
        } else {
            "not a date and time; the row is skipped"
        };
        self.problems.add(line.number, 1, first, reason);
    }

    /// Begins a document with its time zone. `line` is that of its header.
    fn begin_document(
        &mut self,
        document: Document,
        meta: HeaderMeta,
        line: u64,
    ) -> Result<(), FormatError> {
        self.layout.begin_document(meta.text("MasterType"));
        let choice = ZoneChoice::of_document(&meta, self.options.zones);
        let name = choice.as_ref().map(|choice| choice.zone.name().to_owned());
        if self.first.is_none() {
            self.first = Some(FirstDocument {
                container: match document {
                    Document::Headed => Container::Headed,
                    Document::Missing | Document::Plain | Document::Ended => Container::Plain,
                },
                zone: name.unwrap_or_default(),
                zone_source: choice
                    .as_ref()
                    .map_or(ZoneSource::Header, |choice| choice.source),
                meta: meta.clone(),
            });
        }
        let Some(choice) = choice else {
            let reason = match meta {
                HeaderMeta::Broken { reason, .. } => reason,
                HeaderMeta::None | HeaderMeta::Json(_) => String::new(),
            };
            return Err(FormatError::NoTimeZone { line, reason });
        };
        let mut warnings = Vec::from_iter(choice.warning);
        if let HeaderMeta::Broken { reason, .. } = meta {
            let meaning = match choice.source {
                ZoneSource::Header | ZoneSource::HeaderPosix => {
                    "its time zone is read from its text"
                }
                ZoneSource::Setting | ZoneSource::Machine => {
                    "no time zone in its text is understood"
                }
            };
            warnings.push(format!(
                "header is not valid JSON ({}); {meaning}: {} applies",
                crate::sanitize::sanitize(reason),
                choice.zone.name()
            ));
        }
        for warning in warnings {
            self.add_zone_warning(warning);
        }
        self.last_of_document_before = self.resolver.last().or(self.last_of_document_before);
        self.resolver = TimestampResolver::new(choice.zone);
        self.document = document;
        self.boundary = None;
        self.is_first_table = true;
        Ok(())
    }

    fn add_zone_warning(&mut self, warning: String) {
        if self.zone_warnings.len() < MAX_ZONE_WARNINGS && !self.zone_warnings.contains(&warning) {
            self.zone_warnings.push(warning);
        }
    }

    /// Reads from the line that begins a headed document to the header of its table. What stands before `START_HEADER` in
    /// the line is the cut end of a row.
    fn begin_headed(&mut self) -> Result<(), FormatError> {
        self.skip_candidate();
        self.end_document();
        loop {
            let start = self.line.number;
            let Some(header) = self.read_header(start)? else {
                continue;
            };
            self.begin_document(Document::Headed, HeaderMeta::parse(&header), start)?;
            let has_line = self.next_line()?;
            if self.begins_again() {
                continue;
            }
            if !has_line || !self.line.is_keyword(START_DATA) {
                return Err(FormatError::NoDataBlock {
                    line: self.line.number,
                });
            }
            let line = self.line.number + 1;
            if !self.next_line()? || self.line.is_keyword(END_DATA) {
                return Err(FormatError::NoLabels { line });
            }
            if self.begins_again() {
                continue;
            }
            let serials = std::mem::take(&mut self.line);
            let line = serials.number + 1;
            if !self.next_line()? || self.line.is_keyword(END_DATA) {
                return Err(FormatError::NoLabels { line });
            }
            if self.begins_again() {
                continue;
            }
            return self.begin_table(&serials);
        }
    }

    /// Notes whether the document before the line, which begins a headed one, was cut off.
    fn end_document(&mut self) {
        let line = self.line.joined();
        let before = memmem::find(&line, START_HEADER).map_or(&[][..], |at| &line[..at]);
        self.was_cut |= match self.document {
            Document::Missing | Document::Plain => !before.trim_ascii().is_empty(),
            Document::Headed => memmem::find(before, END_DATA).is_none(),
            Document::Ended => false,
        };
    }

    /// Whether the line begins another document before this one has a table, which was cut off then.
    fn begins_again(&mut self) -> bool {
        let begins_again = self.line.contains(START_HEADER);
        self.was_cut |= begins_again;
        begins_again
    }

    /// Reads the JSON up to `END_HEADER`, from what follows `START_HEADER` in its line. Returns `None` if another document
    /// begins before.
    fn read_header(&mut self, start: u64) -> Result<Option<Vec<u8>>, FormatError> {
        let mut json = self.line.joined();
        if let Some(at) = memmem::rfind(&json, START_HEADER) {
            json.drain(..at + START_HEADER.len());
        }
        loop {
            if json.len() > MAX_HEADER {
                return Err(FormatError::HeaderTooLong { line: start });
            }
            let has_line = self.next_line()?;
            if has_line && self.line.is_keyword(END_HEADER) {
                return Ok(Some(json));
            }
            if has_line && self.begins_again() {
                return Ok(None);
            }
            if !has_line || self.follows_header() {
                return Err(FormatError::HeaderBlockOpen { line: start });
            }
            json.push(b'\n');
            json.extend_from_slice(&self.line.joined());
        }
    }

    /// Whether the line belongs to what follows a header.
    fn follows_header(&self) -> bool {
        self.line.is_keyword(START_DATA)
            || self.line.is_keyword(END_DATA)
            || is_marker(self.line.first_cell())
            || self.wall_time().is_some()
    }

    /// Begins a table whose labels are the current line.
    fn begin_table(&mut self, serials: &Line) -> Result<(), FormatError> {
        let mut cells: Vec<_> = serials.record.iter().collect();
        // A concatenated file may have a byte-order mark here.
        while let Some(rest) = cells
            .first()
            .and_then(|cell| cell.strip_prefix(BYTE_ORDER_MARK))
        {
            cells[0] = rest;
        }
        let labels: Vec<_> = self.line.record.iter().collect();
        let line = self.line.number;
        let channels = Channels::new((&cells, serials.number), (&labels, line))?;
        let is_equal =
            channels.master == self.channels.master && channels.list == self.channels.list;
        // A label line that is cut off may lack a unit.
        if !self.line.is_cut {
            self.layout.begin_table(&channels);
        }
        self.stats.tables += u64::from(self.is_first_table || !is_equal);
        self.is_first_table = false;
        if is_equal {
            return Ok(());
        }
        if self.stats.tables > 1 {
            self.stats.header_changes += 1;
            for list in [&self.channels.list, &channels.list] {
                self.ids
                    .extend(list.iter().map(|channel| channel.id.clone()));
            }
            if self.ids.len() > MAX_CHANNELS {
                return Err(FormatError::TooManyChannels {
                    line,
                    found: self.ids.len(),
                });
            }
        }
        self.values.clear();
        self.values.resize(channels.list.len(), None);
        self.channels = channels;
        Ok(())
    }

    /// Reads the next line that is not blank. Returns false at the end.
    fn next_line(&mut self) -> Result<bool, FormatError> {
        let has_line = self.lines.read(&mut self.line)?;
        self.has_ended = !has_line;
        Ok(has_line)
    }
}

/// Whether a line may be the serials of a header, and not the cut end of a row that runs into them.
fn may_be_serials(line: &Line) -> bool {
    let first = line.record.get(0).unwrap_or_default();
    !contains_keyword(first) && !first.iter().any(|byte| matches!(byte, b'/' | b':'))
}

/// Whether a line has the start and the end of a keyword, in any letter case, without at most two characters between.
fn resembles(line: &[u8], keyword: &[u8]) -> bool {
    let is_same = |(a, b): &(&u8, &u8)| a.eq_ignore_ascii_case(b);
    let start = line.iter().zip(keyword).take_while(is_same).count();
    let end = line.iter().rev().zip(keyword.iter().rev());
    start + end.take_while(is_same).count() + 2 >= keyword.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "10\t10\t20\nMV_T302_V002\tA W\tB W\n";

    type Rows = Vec<(i64, Vec<Option<f64>>)>;

    fn read(text: &str) -> (Rows, RowStats, bool) {
        read_in_blocks(text.as_bytes(), usize::MAX).unwrap()
    }

    /// A reader that returns at most the given number of bytes per read.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let n = buf.len().min(self.1);
            self.0.read(&mut buf[..n])
        }
    }

    fn read_in_blocks(text: &[u8], block: usize) -> Result<(Rows, RowStats, bool), FormatError> {
        let zones = FileZones::built_in(chrono_tz::UTC);
        let mut file = LoggerFile::open(Slow(text, block), &ReadOptions::new(&zones))?;
        let mut rows = Vec::new();
        while let Some(row) = file.next_row()? {
            rows.push((row.time, row.values.to_vec()));
        }
        Ok((rows, file.stats(), file.truncated() == Some(true)))
    }

    /// 3 August 2025, 03:20 UTC.
    const T: i64 = 1_754_191_200;

    #[test]
    fn a_row_has_its_time_and_one_value_per_channel() {
        let (rows, stats, truncated) = read(&format!("{HEAD}03/08/25 03:20:00\t1.5\t-2\n"));
        assert_eq!(rows, [(T, vec![Some(1.5), Some(-2.0)])]);
        assert_eq!((stats.rows, stats.points, truncated), (1, 2, false));
    }

    #[test]
    fn the_last_cell_of_an_unfinished_line_is_never_a_value() {
        let (rows, stats, truncated) = read(&format!("{HEAD}03/08/25 03:20:00\t1.5\t245."));
        assert_eq!(rows, [(T, vec![Some(1.5), None])]);
        assert_eq!(
            (stats.points, stats.invalid_values, truncated),
            (1, 1, true)
        );
        let (rows, ..) = read(&format!("{HEAD}03/08/25 03:20:00\t1.5\t"));
        assert_eq!(rows, [(T, vec![Some(1.5), None])]);
        let (rows, ..) = read(&format!("{HEAD}03/08/25 03:20:00\t1"));
        assert_eq!(rows, [(T, vec![None, None])]);
    }

    #[test]
    fn a_row_with_too_many_cells_is_skipped_and_counted() {
        let (rows, stats, _) = read(&format!(
            "{HEAD}03/08/25 03:20:00\t1\t203/08/25 03:30:00\t3\t4\n03/08/25 03:20:00\t5\t6\t \t\n"
        ));
        assert_eq!(rows, [(T, vec![Some(5.0), Some(6.0)])]);
        assert_eq!(stats.malformed_rows, 1);
    }

    #[test]
    fn missing_and_invalid_cells_are_counted_and_the_rest_of_the_row_is_kept() {
        let (rows, stats, _) = read(&format!(
            "{HEAD}03/08/25 03:20:00\tx\t2\n03/08/25 03:20:00\t1\n03/08/25 03:20:00\n yesterday\t1\t2\n"
        ));
        assert_eq!(
            rows,
            [
                (T, vec![None, Some(2.0)]),
                (T, vec![None, None]),
                (T, vec![None, None])
            ]
        );
        assert_eq!((stats.rows, stats.points, stats.invalid_values), (3, 1, 5));
        assert_eq!((stats.invalid_timestamps, stats.short_rows), (1, 2));
        // x and 2; 1 and a missing cell; two missing cells; 1 and 2.
        assert_eq!((stats.cells, stats.lost_cells), (8, 7));
    }

    #[test]
    fn crlf_white_space_and_quotation_marks_have_no_effect() {
        let plain = read(&format!(
            "{HEAD}03/08/25 03:20:00\t1\t2\n03/08/25 03:20:01\t\"\t4\n"
        ));
        let other = read(
            "\u{feff}10\t10\t20\t \r\nMV_T302_V002\tA W\tB W \t\r\n\r\n03/08/25 03:20:00\t 1 \t2\r\n 03/08/25 03:20:01 \t\"\t4\r\n",
        );
        assert_eq!(plain, other);
        assert_eq!(plain.0[1].1, [None, Some(4.0)]);
    }

    #[test]
    fn a_lone_carriage_return_does_not_end_a_line() {
        let (rows, ..) = read(&format!("{HEAD}03/08/25 03:20:00\t1\r2\t3\n"));
        assert_eq!(rows, [(T, vec![None, Some(3.0)])]);
    }

    #[test]
    fn a_headed_file_ends_with_its_end_marker() {
        let headed = |tail: &str| {
            read(&format!(
                "START_HEADER\n{{}}\nEND_HEADER\nSTART_DATA\n{HEAD}03/08/25 03:20:00\t1\t2{tail}"
            ))
        };
        assert!(!headed("\nEND_DATA\n").2);
        assert!(!headed("\r\nEND_DATA \t").2);
        assert!(headed("\n").2);
        assert_eq!(headed("\nEND_DATA\nmore\n\n").1.lines_after_end, 1);
        assert_eq!(headed("\nEND_\tDATA\n").1.invalid_timestamps, 1);
        assert_eq!(headed("").0, [(T, vec![Some(1.0), None])]);
    }

    #[test]
    fn the_block_size_has_no_effect() {
        let text = format!("\u{feff}{HEAD}03/08/25 03:20:00\t1\t2\r\n03/08/25 03:30:00\t3\t4");
        let whole = read_in_blocks(text.as_bytes(), usize::MAX).unwrap();
        for block in 1..9 {
            let found = read_in_blocks(text.as_bytes(), block).unwrap();
            assert_eq!(found, whole, "{block}");
        }
    }

    #[test]
    fn a_file_without_rows_or_points_is_an_error() {
        let check = |text: &str| {
            let zones = FileZones::built_in(chrono_tz::UTC);
            let mut file = LoggerFile::open(text.as_bytes(), &ReadOptions::new(&zones)).unwrap();
            while file.next_row().unwrap().is_some() {}
            file.ensure_usable(1.0)
        };
        assert!(matches!(check(HEAD), Err(FormatError::NoRow)));
        assert!(matches!(
            check(&format!("{HEAD}yesterday\t1\t2\ntoday\t1\t2\n")),
            Err(FormatError::NoPoint { times: 2, .. })
        ));
        assert!(check(&format!("{HEAD}03/08/25 03:20:00\t1\t2\n")).is_ok());
    }

    #[test]
    fn a_line_that_is_too_long_is_an_error_and_the_rows_before_it_are_read() {
        let text = format!(
            "{HEAD}03/08/25 03:20:00\t1\t2\n{}",
            "9".repeat(3 * super::super::MAX_LINE)
        );
        let zones = FileZones::built_in(chrono_tz::UTC);
        let mut file = LoggerFile::open(text.as_bytes(), &ReadOptions::new(&zones)).unwrap();
        assert!(file.next_row().unwrap().is_some());
        assert!(matches!(
            file.next_row(),
            Err(FormatError::LineTooLong { line: 4 })
        ));
    }

    const OTHER: &str = "10\t20\t10\nMV_T302_V003\tB W\tA W\n";
    const UTC: &str = "START_HEADER\n{\"DataTimeSettings\":\"UTC\"}\nEND_HEADER\nSTART_DATA\n";

    /// Reads a file in Paris: time, value of each channel by its id, and the error at the end.
    fn points(text: &str) -> (Vec<(i64, String, f64)>, RowStats, Option<FormatError>) {
        let zones = FileZones::built_in(chrono_tz::Europe::Paris);
        let mut file = match LoggerFile::open(text.as_bytes(), &ReadOptions::new(&zones)) {
            Ok(file) => file,
            Err(error) => return (Vec::new(), RowStats::default(), Some(error.error)),
        };
        let mut points = Vec::new();
        let error = loop {
            match file.next_row() {
                Ok(Some(row)) => {
                    for (channel, value) in row.channels.list.iter().zip(row.values) {
                        points.extend(value.map(|value| (row.time, channel.id.clone(), value)));
                    }
                }
                Ok(None) => break file.ensure_usable(0.5).err(),
                Err(error) => break Some(error),
            }
        };
        (points, file.stats(), error)
    }

    fn point(time: i64, id: &str, value: f64) -> (i64, String, f64) {
        (time, format!("{id}_M10"), value)
    }

    /// 3 August 2025, 03:20 in Paris.
    const P: i64 = T - 7200;

    #[test]
    fn a_header_pair_among_the_rows_begins_a_table() {
        let (found, stats, error) = points(&format!(
            "{HEAD}03/08/25 03:20:00\t1\t2\n{OTHER}03/08/25 03:30:00\t3\t4\n{OTHER}03/08/25 03:40:00\t5\t6\n"
        ));
        assert_eq!(
            found,
            [
                point(P, "M10_Ch1", 1.0),
                point(P, "S20_Ch1", 2.0),
                point(P + 600, "S20_Ch1", 3.0),
                point(P + 600, "M10_Ch1", 4.0),
                point(P + 1200, "S20_Ch1", 5.0),
                point(P + 1200, "M10_Ch1", 6.0),
            ]
        );
        // The second header is repeated.
        assert_eq!((stats.tables, stats.header_changes), (2, 1));
        assert_eq!((stats.invalid_timestamps, error.is_none()), (0, true));
    }

    #[test]
    fn a_marker_without_usable_serials_ends_the_file() {
        for (middle, line) in [
            ("MV_T302_V002\tA W\tB W\n", 4),
            ("10\t10\nMV_T302_V002\tA W\tB W\n", 5),
            ("10\t\t20\nMV_T302_V002\tA W\tB W\n", 4),
            ("10\t10\t20\nMV_T302_V009\tA W\tB W\n", 5),
            (
                "03/08/25 03:30:00\t1\t202001171\t1\nMV_T302_V002\tA W\tB W\n",
                5,
            ),
            ("03/0810\t10\t20\nMV_T302_V002\tB W\tA W\n", 5),
            ("10\t10\t20MV_T302_V002\tB W\tA W\n", 4),
            ("03/08/25 03:30:00\t1MV_T302_V002\tB W\tA W\n", 4),
        ] {
            let (found, _, error) = points(&format!(
                "{HEAD}03/08/25 03:20:00\t1\t2\n{middle}03/08/25 03:30:00\t3\t4\n"
            ));
            assert_eq!(found.len(), 2, "{middle:?}: {found:?}");
            let message = error.expect("an error").to_string();
            assert!(
                message.starts_with(&format!("line {line}:")),
                "{middle:?}: {message}"
            );
        }
    }

    #[test]
    fn start_header_begins_a_document_wherever_it_stands() {
        let row = "03/08/25 03:20:00\t1\t2\n";
        for (before, cut) in [
            ("", false),
            ("03/08/25 03:30:00\t3\t4\n", false),
            ("03/08/25 03:30:00\t3\t", true),
            ("03/08", true),
        ] {
            let text = format!("{HEAD}{row}{before}{UTC}{HEAD}{row}END_DATA\n");
            let (found, stats, error) = points(&text);
            assert!(error.is_none(), "{before:?}: {error:?}");
            assert_eq!(found.first(), Some(&point(P, "M10_Ch1", 1.0)), "{before:?}");
            assert_eq!(found.last(), Some(&point(T, "S20_Ch1", 2.0)), "{before:?}");
            assert_eq!((stats.tables, stats.lost_cells), (2, 0), "{before:?}");
            assert_eq!(read(&text).2, cut, "{before:?}");
        }
    }

    #[test]
    fn documents_follow_one_another_and_each_has_its_time() {
        let row = "03/08/25 03:20:00\t1\t2\n";
        let text = format!(
            "{UTC}{HEAD}{row}END_DATA\nnoise\n\n{HEAD}{row}{UTC}{HEAD}{row}END_DATA\nmore\n"
        );
        let (found, stats, error) = points(&text);
        assert!(error.is_none(), "{error:?}");
        let times: Vec<_> = found.iter().map(|point| point.0).collect();
        assert_eq!(times, [T, T, P, P, T, T]);
        assert_eq!((stats.tables, stats.lines_after_end), (3, 2));
        // The second header was cut off, so its document begins again.
        let cut = format!("{UTC}{HEAD}{row}START_HEADER\n{{\"DataTime{UTC}{HEAD}{row}END_DATA\n");
        let (found, _, error) = points(&cut);
        assert_eq!((found.len(), error.is_none()), (4, true));
        assert!(read(&cut).2, "END_DATA is missing once");
        for start in ["START_HEADER\n{\"DataTi", "10\t1"] {
            let text = format!("{start}{UTC}{HEAD}{row}END_DATA\n");
            let (found, _, error) = points(&text);
            assert_eq!((found.len(), error.is_none()), (2, true), "{start:?}");
            assert!(read(&text).2, "{start:?} is cut off");
        }
    }

    const ROW: &str = "03/08/25 03:20:00\t1\t2\n";

    #[test]
    fn rows_before_the_first_header_are_counted_and_the_document_after_them_is_read() {
        for (before, malformed, times, cells, cut) in [
            ("03/08/25 03:10:00\t7\t8\n", 1, 0, 2, false),
            (
                "03/08/25 03:00:00\t7\tNaN\n03/08/25 03:10:00\t\t8\n",
                2,
                0,
                2,
                false,
            ),
            ("8/25 03:00:00\t7\t8\n03/08/25 03:10:00\n", 1, 1, 2, false),
            ("03/08/25 03:00:00\t7\t8\n03/08/25 03:1", 1, 0, 2, true),
            ("03/08/25 03:10:00\t7\t", 0, 0, 0, true),
            ("noise\n\n10\t10\t20\n", 0, 2, 2, false),
            ("03/08/25 03:10:00\t7\t8\nEND_DATA\n", 1, 0, 2, false),
        ] {
            let text = format!("{before}{UTC}{HEAD}{ROW}END_DATA\n");
            let (found, stats, error) = points(&text);
            assert!(error.is_none(), "{before:?}: {error:?}");
            assert_eq!(
                found,
                [point(T, "M10_Ch1", 1.0), point(T, "S20_Ch1", 2.0)],
                "{before:?}"
            );
            assert_eq!(
                (stats.malformed_rows, stats.invalid_timestamps),
                (malformed, times),
                "{before:?}"
            );
            assert_eq!(
                (stats.cells, stats.lost_cells),
                (cells + 2, cells),
                "{before:?}"
            );
            assert_eq!((stats.tables, stats.lines_after_end), (1, 0), "{before:?}");
            assert_eq!(read(&text).2, cut, "{before:?}");
        }
        let zones = FileZones::built_in(chrono_tz::UTC);
        let text = format!("{ROW}{UTC}{HEAD}{ROW}");
        let file = LoggerFile::open(text.as_bytes(), &ReadOptions::new(&zones)).unwrap();
        assert_eq!(
            file.problems()[0].to_string(),
            "line 1, column 1, \"03/08/25 03:20:00\": a row before any header; it is skipped"
        );
    }

    #[test]
    fn rows_before_any_header_are_the_error_of_a_file_without_a_headed_document() {
        let long = "9".repeat(2 * super::super::MAX_LINE);
        for after in ["", &format!("{HEAD}{ROW}"), "noise\n", "END_DATA\n", &long] {
            let (found, _, error) = points(&format!("{ROW}{ROW}{after}"));
            assert_eq!(found, []);
            assert!(
                matches!(&error, Some(FormatError::UnknownMarker { line: 2, found }) if found == "03/08/25 03:20:00"),
                "{error:?}"
            );
        }
        // After END_DATA, a plain document begins.
        let (found, stats, error) = points(&format!("{ROW}END_DATA\nnoise\n{HEAD}{ROW}"));
        assert_eq!(found, [point(P, "M10_Ch1", 1.0), point(P, "S20_Ch1", 2.0)]);
        assert_eq!((stats.malformed_rows, stats.lines_after_end), (1, 1));
        assert!(error.is_none(), "{error:?}");
    }

    #[test]
    fn a_first_marker_without_usable_serials_is_an_error() {
        for before in [ROW, "8/25 03:20:00\t1\t2\n"] {
            let (found, _, error) = points(&format!("{before}MV_T302_V002\tA W\tB W\n{ROW}"));
            assert_eq!(found, [], "{before:?}");
            assert!(
                matches!(error, Some(FormatError::NoSerials { line: 2 })),
                "{before:?}: {error:?}"
            );
        }
        for after in [ROW, "MV_T302_V002\tA W\tB W\n", UTC] {
            let (found, _, error) = points(&format!("MV_T302_V002\tA W\tB W\n{after}{HEAD}{ROW}"));
            assert_eq!(found, [], "{after:?}");
            assert!(
                matches!(error, Some(FormatError::NoSerials { line: 1 })),
                "{after:?}: {error:?}"
            );
        }
    }

    /// Files of one row in Paris before damage: its points, the number of its lines, and the file.
    fn files_before_damage() -> [(usize, u64, String); 4] {
        [
            (2, 3, format!("{HEAD}{ROW}")),
            (2, 7, format!("{UTC}{HEAD}{ROW}")),
            (2, 8, format!("{UTC}{HEAD}{ROW}END_DATA\n")),
            (0, 1, ROW.to_owned()),
        ]
    }

    #[test]
    fn nothing_is_read_in_a_guessed_time_zone_after_a_damaged_header() {
        for damage in [
            "END_HEADER\n",
            "START_DATA\n",
            "TART_HEADER\nEND_HEADER\nSTART_DATA\n",
            "START HEADER\n",
            "start_header\n",
            "\"DataTimeSettings\":\"UTC\"}\nEND_HEADER\nSTART_DATA\n",
            "UTC\",\"TimeZoneName\":\"Europe/Paris\"}\nEND_HEADER\nSTART_DATA\n",
            "{\"TimeZoneName\":\"Europe/Paris\"}\nEND_HEADER\nSTART_DATA\n",
            "{\"DataTimeSettings\":\"UTC\"}\nEND_HEADER\nSTART_DATA\n",
            "{\"DataTimeSettings\":\"UTC\"}\n",
            "03/08/25 03:30:00\t1END_HEADER\n",
            "03/08/25 03:30:00\t1\t2\tSTART_DATA\n",
            "xEND_HEADER y\n",
        ] {
            for (count, lines, before) in files_before_damage() {
                let (found, _, error) = points(&format!("{before}{damage}{HEAD}{ROW}"));
                assert_eq!(found.len(), count, "{before:?} {damage:?}");
                assert!(
                    matches!(error, Some(FormatError::DamagedHeader { line }) if line == lines + 1),
                    "{before:?} {damage:?}: {error:?}"
                );
            }
        }
        // Rows without a header pair are not read either, and START_HEADER begins a document all the same.
        let (found, _, error) = points(&format!("{HEAD}{ROW}START_DATA\n{ROW}"));
        assert_eq!(found.len(), 2);
        assert!(matches!(
            error,
            Some(FormatError::DamagedHeader { line: 4 })
        ));
        let (found, stats, error) = points(&format!("{HEAD}{ROW}START_DATA\n{UTC}{HEAD}{ROW}"));
        assert_eq!((found.len(), found[2].0), (4, T));
        assert_eq!((stats.invalid_timestamps, error.is_none()), (1, true));
    }

    #[test]
    fn the_header_begins_after_start_header_in_its_line() {
        let (found, _, error) = points(&format!(
            "{HEAD}{ROW}03/08/25 03:3START_HEADER {{\"DataTimeSettings\":\"UTC\",\n\"TimeZoneName\":\"Europe/Paris\"}}\n\
             END_HEADER\nSTART_DATA\n{HEAD}{ROW}"
        ));
        assert!(error.is_none(), "{error:?}");
        assert_eq!((found.len(), found[2].0), (4, T));
    }

    #[test]
    fn start_header_after_a_row_behind_end_data_begins_a_document() {
        let (found, stats, error) = points(&format!(
            "{UTC}{HEAD}{ROW}END_DATA\n03/08/25 03:30:00\t3\t{UTC}{HEAD}{ROW}END_DATA\n"
        ));
        assert!(error.is_none(), "{error:?}");
        assert_eq!((found.len(), found[2].0), (4, T));
        assert_eq!((stats.tables, stats.lines_after_end), (2, 0));
    }

    #[test]
    fn a_header_that_is_not_closed_hides_no_document() {
        let open = "START_HEADER\n{\"DataTimeSettings\":\"UTC\"}\nND_HEADER\n";
        for after in [
            format!("START_DATA\n{HEAD}{ROW}"),
            format!("{HEAD}{ROW}"),
            ROW.to_owned(),
            "END_DATA\n".to_owned(),
        ] {
            let (found, _, error) = points(&format!(
                "{HEAD}{ROW}{open}{after}END_DATA\n{UTC}{HEAD}{ROW}END_DATA\n"
            ));
            assert_eq!(found.len(), 2, "{after:?}");
            assert!(
                matches!(error, Some(FormatError::HeaderBlockOpen { line: 4 })),
                "{after:?}: {error:?}"
            );
        }
    }

    #[test]
    fn a_table_after_a_damaged_end_data_is_not_read_in_the_time_zone_before_it() {
        for damage in [
            "ND_DATA\n",
            "END_DAT\n",
            "END DATA\n",
            "end_data\n",
            "xEND_DATA y\n",
            "03/08/25 03:30:00\t1\t2END_DATA\n",
        ] {
            let (found, _, error) = points(&format!("{UTC}{HEAD}{ROW}{damage}{HEAD}{ROW}"));
            assert_eq!(found.len(), 2, "{damage:?}");
            assert!(
                matches!(error, Some(FormatError::DamagedHeader { line: 8 })),
                "{damage:?}: {error:?}"
            );
            // The rows of the document go on, or the next one says what its times mean.
            let (found, stats, error) =
                points(&format!("{UTC}{HEAD}{ROW}{damage}{ROW}{OTHER}{ROW}"));
            assert_eq!((found.len(), stats.tables), (6, 2), "{damage:?}");
            assert!(found.iter().all(|point| point.0 == T) && error.is_none());
            let (found, ..) = points(&format!("{UTC}{HEAD}{ROW}{damage}{UTC}{HEAD}{ROW}"));
            assert_eq!(found.len(), 4, "{damage:?}");
        }
        // In a plain document it is no end.
        let (found, ..) = points(&format!("{HEAD}{ROW}END_DATA\n{OTHER}{ROW}"));
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn two_rows_in_a_line_are_skipped_wherever_they_meet() {
        for line in [
            "03/08/25 03:30:00\t103/08/25 04:10:00\t2\t",
            "03/08/25 03:30:00\t1\t203/08/25 04:10:00\n",
            "03/08/25 03:30:00\t1\t2\t3",
            "03/08/25 03:30:00\t\t\t3",
            "03/08/25 03:30:00\t1\tEND_DATA",
        ] {
            let (found, stats, error) = points(&format!(
                "{HEAD}03/08/25 03:20:00\t1\t2\n{line}\n03/08/25 03:40:00\t1\t2\n"
            ));
            assert_eq!(
                (found.len(), stats.malformed_rows),
                (4, 1),
                "{line:?}: {found:?}"
            );
            assert!(error.is_none() && stats.lost_cells > 0, "{line:?}");
        }
    }

    #[test]
    fn what_is_lost_is_counted_and_quoted() {
        let (_, stats, error) = points(&format!(
            "{HEAD}03/08/25 03:20:00\t1,5\t2\n03/08/25 03:30:00\tNaN\t\n03/08/25 03:40:00\t1,5\tx\n"
        ));
        assert_eq!((stats.cells, stats.lost_cells), (4, 3));
        let message = error.expect("an error").to_string();
        for part in ["3 of 4", "line 3, column 2", "1,5", "decimal comma"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_weeks_of_a_file_are_limited() {
        let mut text = HEAD.to_owned();
        let start = chrono::NaiveDate::from_ymd_opt(2010, 1, 1).unwrap();
        for week in 0..=MAX_WEEKS as u64 {
            let day = start + chrono::Days::new(7 * week);
            text += &format!("{}\t1\t2\n", day.format("%d/%m/%y 12:00:00"));
        }
        let (found, _, error) = points(&text);
        assert_eq!(found.len(), 2 * MAX_WEEKS);
        assert!(
            matches!(error, Some(FormatError::TooManyWeeks { line: 523 })),
            "{error:?}"
        );
    }

    #[test]
    fn suspicious_times_are_counted() {
        let zones = FileZones::built_in(chrono_tz::UTC);
        let options = ReadOptions {
            uploaded: Some(T),
            ..ReadOptions::new(&zones)
        };
        let text = format!(
            "{HEAD}03/08/25 03:20:00\t1\t2\n04/08/25 03:20:00\t1\t2\n04/08/25 03:20:01\t1\t2\n\
             04/08/25 01:20:01\t1\t2\n03/08/25 23:20:00\t1\t2\n01/01/00 00:00:00\t1\t2\n"
        );
        let mut file = LoggerFile::open(text.as_bytes(), &options).unwrap();
        while file.next_row().unwrap().is_some() {}
        // One second too late, two hours and a second back, and in 2000.
        assert_eq!(file.stats().suspicious_times, 3);
    }

    #[test]
    fn two_carriage_returns_before_a_line_feed_and_no_break_spaces_have_no_effect() {
        let plain = read(&format!("{HEAD}03/08/25 03:20:00\t1\t2\n"));
        let other = read(
            "10\t10\t20\r\r\nMV_T302_V002\tA\u{a0}W\tB  W\r\r\n\u{a0}03/08/25 03:20:00\t1\u{202f}\t2\r\r\n",
        );
        assert_eq!(plain, other);
    }

    #[test]
    fn nul_bytes_at_the_end_are_a_truncated_file() {
        let text = format!("{HEAD}03/08/25 03:20:00\t1\t2\n");
        let (rows, stats, truncated) = read(&format!("{text}{}", "\0".repeat(3_000_000)));
        assert_eq!((rows.len(), stats.lost_cells, truncated), (1, 0, true));
        let (rows, ..) = read(&format!("{HEAD}03/08/25 03:20:00\t1\t2\0\0"));
        assert_eq!(rows, [(T, vec![Some(1.0), None])]);
    }

    #[test]
    fn a_header_that_does_not_say_what_its_times_mean_is_refused() {
        let row = "03/08/25 03:20:00\t1\t2\n";
        let document = |json: &str| {
            points(&format!(
                "START_HEADER\n{json}\nEND_HEADER\nSTART_DATA\n{HEAD}{row}END_DATA\n"
            ))
        };
        assert!(matches!(
            document("{oops").2,
            Some(FormatError::NoTimeZone { line: 1, .. })
        ));
        let (found, _, error) = document("{\"DataTimeSettings\":\"UTC\",}");
        assert_eq!((found[0].0, error.is_none()), (T, true));
        let long = format!("{{\"Site\":\"{}\"}}", "x".repeat(MAX_HEADER));
        assert!(matches!(
            document(&long).2,
            Some(FormatError::HeaderTooLong { line: 1 })
        ));
    }
}
