//! Reads the documents of a file row by row. See docs/specification.md, sections 2 and 3.
//!
//! A file is a sequence of documents, plain or headed, because loggers and transfers concatenate files. A document has a
//! table, or several one after another if the logger was reconfigured.

use super::cells::contains_keyword;
use super::channels::{Channels, contains_marker, is_marker, unknown_marker};
use super::container::{Container, END_DATA, END_HEADER, HeaderMeta, START_DATA, START_HEADER};
use super::lines::{Line, Lines};
use super::problems::Problem;
use super::row_stats::RowStats;
use super::tables::{Row, Tables};
use super::timestamps::{TimestampResolver, Zone, ZoneChoice, parse_wall_time};
use super::{FormatError, MAX_HEADER, foreign};
use crate::layout::FileLayout;
use crate::time_zone::{FileZones, ZoneSource};
use chrono::NaiveDateTime;
use memchr::memmem;
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
    tables: Tables,
    resolver: TimestampResolver,
    /// The timestamp of the last row of the documents before this one.
    last_of_document_before: Option<i64>,
    zone_warnings: Vec<String>,
    /// Whether a document was cut off.
    was_cut: bool,
    /// Whether the end of the file was reached.
    has_ended: bool,
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
        let default = Zone::Local(options.zones.default.clone());
        let mut file = Self {
            options: *options,
            lines: Lines::new(input)?,
            line: Line::default(),
            candidate: None,
            document: Document::Missing,
            boundary: None,
            first: None,
            tables: Tables::new(options.uploaded),
            resolver: TimestampResolver::new(default),
            last_of_document_before: None,
            zone_warnings: Vec::new(),
            was_cut: false,
            has_ended: false,
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
            return self.tables.begin(&first, &self.line);
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
            if self.tables.stats().tables > 0 {
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
        self.tables.channels()
    }

    /// The counts so far.
    pub fn stats(&self) -> RowStats {
        self.tables.stats()
    }

    /// The first defects.
    pub fn problems(&self) -> &[Problem] {
        self.tables.problems()
    }

    /// The layouts of the tables so far.
    pub(crate) fn layout(&self) -> Option<FileLayout> {
        self.tables.layout()
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
                return Ok(Some(self.tables.row(time)));
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
        self.tables.ensure_usable(max_loss)
    }

    /// Reads a line. Returns the timestamp of the row that is in `tables` if it is one.
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

    /// Parses the row with this time into `tables` and returns its timestamp, or `None` if the row is skipped.
    fn read_row(&mut self, wall: NaiveDateTime) -> Result<Option<i64>, FormatError> {
        let boundary = self.boundary.take();
        if let Some(Boundary::Header(line)) = boundary
            && !self.line.contains(START_HEADER)
        {
            return Err(FormatError::DamagedHeader { line });
        }
        if !self.tables.parse_row(&self.line) {
            if self.line.contains(START_HEADER) {
                self.begin_headed()?;
                return Ok(None);
            }
            self.ensure_no_marker()?;
            if !self.tables.examine_row(&self.line) {
                // The rows of the document may go on, because this one has its time.
                self.boundary = self
                    .find_boundary()
                    .map(|_| Boundary::End(self.line.number));
                return Ok(None);
            }
        }
        let before = self.last_of_document_before;
        let row_before = self.options.row_before;
        let previous = self.resolver.last().or(before);
        let time = self.resolver.resolve(wall, || before.or_else(row_before));
        self.tables.add_row(self.line.number, time, previous)?;
        Ok(Some(time))
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
        match self.tables.begin(&serials, &self.line) {
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
        match self.document {
            Document::Missing => self.tables.skip_row_before_header(&line),
            Document::Plain | Document::Headed => self.tables.skip_row(&line),
            Document::Ended => self.tables.skip_line_after_end(),
        }
    }

    /// Begins a document with its time zone. `line` is that of its header.
    fn begin_document(
        &mut self,
        document: Document,
        meta: HeaderMeta,
        line: u64,
    ) -> Result<(), FormatError> {
        self.tables.begin_document(meta.text("MasterType"));
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
            return self.tables.begin(&serials, &self.line);
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
    use crate::logger_file::MAX_LINE;
    use crate::logger_file::testing::{HEAD, OTHER, P, ROW, T, UTC, point, points, read};

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
        let long = "9".repeat(2 * MAX_LINE);
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
