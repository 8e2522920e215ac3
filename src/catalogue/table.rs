//! The lines of a catalogue: cells by their columns. See docs/specification.md, section 12.

use super::problem::{Cause, Problem, Problems};
use super::text;
use crate::sanitize::needs_escape;
use std::borrow::Cow;
use std::fmt;

/// Maximum number of entries.
pub(crate) const MAX_ENTRIES: usize = 10_000;

/// A column of a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    /// Identifies the channel.
    ChannelId,
    /// The serial of the device, for the reader.
    Device,
    /// What the logger calls the channel, for the reader.
    Channel,
    /// The unit, for the reader.
    Unit,
    /// What people call it.
    Name,
    /// The circuit that it belongs to.
    Circuit,
    /// The phase that it measures.
    Phase,
    /// How it counts in the site.
    Role,
    /// Whether charts leave it out.
    Hidden,
    /// Of which channels it is a sum.
    Formula,
    /// Which channel it replaces.
    Continues,
}

impl Column {
    /// All columns in the order in which they are written.
    pub(super) const ALL: [Self; 11] = [
        Self::ChannelId,
        Self::Device,
        Self::Channel,
        Self::Unit,
        Self::Name,
        Self::Circuit,
        Self::Phase,
        Self::Role,
        Self::Hidden,
        Self::Formula,
        Self::Continues,
    ];

    /// The columns that must be there.
    const REQUIRED: &[Self] = Self::ALL.split_at(9).0;

    /// The title.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::ChannelId => "channel_id",
            Self::Device => "device",
            Self::Channel => "channel",
            Self::Unit => "unit",
            Self::Name => "name",
            Self::Circuit => "circuit",
            Self::Phase => "phase",
            Self::Role => "role",
            Self::Hidden => "hidden",
            Self::Formula => "formula",
            Self::Continues => "continues",
        }
    }

    /// Maximum length of a cell in characters. Serials and labels of loggers have up to 256 bytes, and an id has two serials.
    pub(super) fn limit(self) -> usize {
        match self {
            Self::ChannelId | Self::Device | Self::Channel | Self::Unit => 1_024,
            Self::Name | Self::Circuit | Self::Role | Self::Hidden => 128,
            Self::Phase => 16,
            Self::Formula | Self::Continues => 4_096,
        }
    }

    /// Whether a spreadsheet must not take the text of a cell for a formula of its own. Those of catalogues may begin with a sign.
    pub(super) fn is_text(self) -> bool {
        !matches!(self, Self::Formula | Self::Continues)
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// The characters with which a cell begins that a spreadsheet computes.
const COMPUTED: [char; 4] = ['=', '+', '-', '@'];

/// Whether a spreadsheet would compute a cell.
pub(super) fn is_computed(cell: &str) -> bool {
    cell.starts_with(COMPUTED)
}

/// Whether a text would be computed without the apostrophes before it. In a cell, it has one apostrophe more.
fn needs_apostrophe(text: &str) -> bool {
    is_computed(text.trim_start_matches('\''))
}

/// The text of a cell without the apostrophe that keeps spreadsheets from computing it.
fn without_apostrophe(cell: &str) -> &str {
    cell.strip_prefix('\'')
        .filter(|text| needs_apostrophe(text))
        .unwrap_or(cell)
}

/// Adds the apostrophe that keeps spreadsheets from computing a cell.
pub(super) fn with_apostrophe(text: &str) -> Cow<'_, str> {
    if needs_apostrophe(text) {
        format!("'{text}").into()
    } else {
        text.into()
    }
}

/// A line with the text of its cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// 1-based.
    pub(super) line: u64,
    /// In the order of [`Column::ALL`], trimmed.
    cells: [String; Column::ALL.len()],
    /// Which of the cells have problems, so that they are empty here.
    damaged: [bool; Column::ALL.len()],
}

impl Row {
    pub(super) fn new(line: u64) -> Self {
        Self {
            line,
            cells: Default::default(),
            damaged: Default::default(),
        }
    }

    /// The text of a cell; empty if there is none.
    pub(super) fn cell(&self, column: Column) -> &str {
        &self.cells[column as usize]
    }

    pub(super) fn set(&mut self, column: Column, text: &str) {
        text.clone_into(&mut self.cells[column as usize]);
    }

    /// Whether a cell has a problem, so that it is unknown what it says.
    pub(super) fn is_damaged(&self, column: Column) -> bool {
        self.damaged[column as usize]
    }
}

/// The lines of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// The columns in the order of the file.
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Row>,
    /// Whether these are all lines of the file.
    pub(super) is_whole: bool,
}

impl Table {
    /// Reads a catalogue without problems.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Problems> {
        match Self::read_all(bytes) {
            (Some(table), problems) if problems.is_empty() => Ok(table),
            (_, problems) => Err(problems),
        }
    }

    /// Reads a catalogue as far as it can be understood, and what is wrong with it. Without a table, it is no catalogue.
    pub(super) fn read_all(bytes: &[u8]) -> (Option<Self>, Problems) {
        let mut problems = Problems::default();
        let table = match text::decode(bytes) {
            Ok(text) => Self::parse(&text, &mut problems),
            Err(cause) => {
                problems.add(Problem::of_file(cause));
                None
            }
        };
        (table, problems)
    }

    fn parse(text: &str, problems: &mut Problems) -> Option<Self> {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(b';')
            .has_headers(false)
            .flexible(true)
            .from_reader(text.as_bytes());
        let mut columns: Option<Vec<Option<Column>>> = None;
        let mut is_first = true;
        let mut is_whole = true;
        let mut rows = Vec::new();
        let mut record = csv::StringRecord::new();
        let mut lines = LineCount::new(text);
        let mut last = (0, 1);
        // Reading UTF-8 from memory does not fail.
        while reader.read_record(&mut record).unwrap_or(false) {
            let position = record.position().map_or(0, csv::Position::byte);
            let line = lines.line_at(position);
            last = (position, line);
            if record.iter().all(|cell| cell.trim().is_empty()) {
                continue;
            }
            if std::mem::take(&mut is_first)
                && let Some(separator) = separator_line(&record)
            {
                if separator != ";" {
                    let cause = Cause::SeparatorLine(separator.to_owned());
                    problems.add(Problem::at(line, cause));
                    return None;
                }
                continue;
            }
            let Some(columns) = &columns else {
                columns = Some(header(&record, line, problems)?);
                continue;
            };
            if rows.len() == MAX_ENTRIES {
                // What the lines say would hide it.
                problems.add(Problem::at(line, Cause::TooManyEntries));
                return None;
            }
            // A quotation mark that is never closed swallows lines.
            is_whole &= !record.iter().any(|cell| cell.trim().contains(['\n', '\r']));
            rows.push(row(&record, line, columns, problems));
        }
        if is_whole && is_open_at_end(text, last.0) {
            problems.add(Problem::at(last.1, Cause::LineBreak));
            is_whole = false;
        }
        let Some(columns) = columns else {
            problems.add(Problem::of_file(Cause::Empty));
            return None;
        };
        Some(Self {
            columns: columns.into_iter().flatten().collect(),
            rows,
            is_whole,
        })
    }
}

/// The separator that a line such as `sep=;` names, with which spreadsheets are told how to open a file. `None` for another line.
fn separator_line(record: &csv::StringRecord) -> Option<&str> {
    let mut cells = record.iter().skip(1);
    let first = record.get(0)?;
    let (start, rest) = first.trim_start().split_at_checked(4)?;
    if !start.eq_ignore_ascii_case("sep=") || !cells.all(|cell| cell.trim().is_empty()) {
        return None;
    }
    // The separator itself ends the cell, unless it is in quotation marks.
    Some(if rest.is_empty() && record.len() > 1 {
        ";"
    } else {
        rest
    })
}

/// Whether the last line, which begins at a position, has a quotation mark that is never closed. A line after it would be a part
/// of it.
fn is_open_at_end(text: &str, position: u64) -> bool {
    let start = usize::try_from(position).unwrap_or(usize::MAX);
    let last = text.get(start..).unwrap_or_default();
    let with_another = format!("{}\nx", last.trim_start_matches(['\r', '\n']));
    let records = csv::ReaderBuilder::new()
        .delimiter(b';')
        .has_headers(false)
        .flexible(true)
        .from_reader(with_another.as_bytes())
        .into_records();
    !last.trim().is_empty() && records.count() < 2
}

/// Finds the numbers of lines.
struct LineCount<'a> {
    rest: &'a [u8],
    /// The position of `rest`.
    position: u64,
    line: u64,
}

impl<'a> LineCount<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.as_bytes(),
            position: 0,
            line: 1,
        }
    }

    /// The 1-based line of the record at a position, which is not before that of the last call. The line breaks at the position
    /// do not belong to the record.
    fn line_at(&mut self, position: u64) -> u64 {
        while let [byte, rest @ ..] = self.rest
            && (self.position < position || matches!(byte, b'\r' | b'\n'))
        {
            let is_end = *byte == b'\n' || *byte == b'\r' && rest.first() != Some(&b'\n');
            self.line += u64::from(is_end);
            self.position += 1;
            self.rest = rest;
        }
        self.line
    }
}

/// The columns of the header line; `None` for a cell at the end that is empty.
fn header(
    record: &csv::StringRecord,
    line: u64,
    problems: &mut Problems,
) -> Option<Vec<Option<Column>>> {
    let cells: Vec<_> = record.iter().map(str::trim).collect();
    if let [cell] = cells[..]
        && let Some(separator) = [',', '\t'].into_iter().find(|c| cell.contains(*c))
    {
        problems.add(Problem::at(line, Cause::Separator(separator)));
        return None;
    }
    let last = cells.iter().rposition(|cell| !cell.is_empty());
    let mut columns: Vec<Option<Column>> = Vec::with_capacity(cells.len());
    let mut is_valid = true;
    for (n, cell) in cells.iter().enumerate() {
        let is_title = |column: &Column| column.title().eq_ignore_ascii_case(cell);
        let column = Column::ALL.into_iter().find(is_title);
        let cause = match column {
            Some(column) if columns.contains(&Some(column)) => Some(Cause::ColumnTwice(column)),
            None if last.is_none_or(|last| n <= last) => {
                Some(Cause::UnknownColumn((*cell).to_owned()))
            }
            _ => None,
        };
        columns.push(column);
        if let Some(cause) = cause {
            problems.add(Problem::at(line, cause));
            is_valid = false;
        }
        if problems.len() > super::problem::MAX_SHOWN {
            break;
        }
    }
    let missing = Column::REQUIRED.iter().copied();
    let missing: Vec<_> = missing
        .filter(|column| !columns.contains(&Some(*column)))
        .collect();
    if !missing.is_empty() {
        problems.add(Problem::at(line, Cause::MissingColumns(missing)));
        is_valid = false;
    }
    is_valid.then_some(columns)
}

fn row(
    record: &csv::StringRecord,
    line: u64,
    columns: &[Option<Column>],
    problems: &mut Problems,
) -> Row {
    let mut row = Row::new(line);
    for (n, cell) in record.iter().enumerate() {
        let cell = cell.trim();
        let Some(column) = columns.get(n).copied().flatten() else {
            if !cell.is_empty() {
                problems.add(Problem::at(line, Cause::ExtraCell(cell.to_owned())));
                // The cells before it may have moved.
                row.damaged = [true; Column::ALL.len()];
                break;
            }
            continue;
        };
        let cause = if cell.contains(['\n', '\r']) {
            Some(Cause::LineBreak)
        } else if let Some(found) = cell.chars().find(|c| needs_escape(*c)) {
            Some(Cause::ControlCharacter(found))
        } else if column.is_text() && is_computed(cell) {
            Some(Cause::Computed(cell.to_owned()))
        } else if without_apostrophe(cell).chars().count() > column.limit() {
            Some(Cause::CellTooLong(column.limit()))
        } else {
            None
        };
        match cause {
            Some(cause) => {
                row.damaged[column as usize] = true;
                problems.add(Problem::in_cell(line, column, cause));
            }
            None if column.is_text() => row.set(column, without_apostrophe(cell)),
            None => row.set(column, cell),
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: &str = "channel_id;device;channel;unit;name;circuit;phase;role;hidden";

    fn cells(text: &str) -> Vec<(u64, String)> {
        let rows = Table::read(text.as_bytes()).unwrap().rows.into_iter();
        rows.map(|row| (row.line, row.cell(Column::Name).to_owned()))
            .collect()
    }

    #[test]
    fn lines_are_counted_with_every_kind_of_line_end() {
        for end in ["\n", "\r\n", "\r"] {
            let text = [TITLES, "a;;;;x", "", ";;;;", "\"b\";;;;y", "c;;;;z"].join(end);
            let expected = [(2, "x"), (5, "y"), (6, "z")].map(|(n, name)| (n, name.to_owned()));
            assert_eq!(cells(&text), expected, "{end:?}");
            assert_eq!(cells(&(text + end)), expected, "{end:?}");
        }
    }

    #[test]
    fn a_quotation_mark_that_is_never_closed_is_found_at_the_end_too() {
        for line in ["a;;;;\"x", "\"", "a;;;;\"x\n"] {
            let problems = Table::read(format!("{TITLES}\n{line}").as_bytes()).unwrap_err();
            assert!(problems.english()[0].starts_with("line 2"), "{line:?}");
        }
        assert_eq!(
            cells(&format!("{TITLES}\na;;;;x\"")),
            [(2, "x\"".to_owned())]
        );
        assert_eq!(
            cells(&format!("{TITLES}\na;;;;\"x\"\"\"")),
            [(2, "x\"".to_owned())]
        );
    }

    #[test]
    fn an_apostrophe_keeps_text_from_being_computed() {
        for (cell, text) in [
            ("'=x", "=x"),
            ("''=x", "'=x"),
            ("'x", "'x"),
            ("'", "'"),
            ("'-", "-"),
        ] {
            let table = Table::read(format!("{TITLES}\na;;;;{cell}").as_bytes()).unwrap();
            assert_eq!(table.rows[0].cell(Column::Name), text);
            assert_eq!(with_apostrophe(text), cell);
        }
    }

    #[test]
    fn titles_may_be_in_any_order_and_cells_may_be_missing() {
        let text = "Hidden ;ROLE;phase;circuit;name;unit;channel;device; channel_id;;\n;;;;x\n;;;;y;;;;;;\n";
        assert_eq!(cells(text), [(2, "x".to_owned()), (3, "y".to_owned())]);
        for (titles, words) in [
            (
                "channel_id;device;channel;unit;name;circuit;phase;role",
                "lacks hidden",
            ),
            (
                "channel_id;device;channel;unit;name;circuit;phase;role;hidden;name",
                "name is there twice",
            ),
            (
                "channel_id;device;channel;unit;name;circuit;phase;role;hidden;nom",
                "no column \"nom\"",
            ),
            (
                "channel_id;device;channel;unit;;name;circuit;phase;role;hidden",
                "no column \"\"",
            ),
        ] {
            let problems = Table::read(titles.as_bytes()).unwrap_err().english();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(
                problems[0].starts_with("line 1: ") && problems[0].contains(words),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn a_line_that_names_the_semicolon_as_separator_is_skipped_and_counted() {
        for line in ["sep=;", "SEP=;", "\"sep=;\"", "sep=;;;;;;;;;", "\"sep=\";"] {
            for start in ["", "\u{feff}", "\u{feff}\r\n"] {
                let text = format!("{start}{line}\r\n{TITLES}\r\na;;;;x\r\n");
                let number = 3 + u64::from(start.len() > 3);
                assert_eq!(cells(&text), [(number, "x".to_owned())], "{text:?}");
            }
        }
        for (line, separator) in [
            ("sep=,", ","),
            ("sep=\t", "\\t"),
            ("sep=|", "|"),
            ("sep=", ""),
            ("\"sep=,\"", ","),
        ] {
            let text = format!("{line}\r\n{TITLES}\r\n");
            let problems = Table::read(text.as_bytes()).unwrap_err();
            let expected = format!(
                "line 1: the line says that cells are separated by \"{separator}\"; save the file with semicolons as separators, or write sep=; if it has them"
            );
            assert_eq!(problems.english(), [expected]);
        }
        // Only the first line can be one, and a catalogue needs titles.
        let text = format!("{TITLES}\r\nsep=;\r\n");
        assert_eq!(Table::read(text.as_bytes()).unwrap().rows.len(), 1);
        let problems = Table::read(b"sep=;\r\n").unwrap_err().english();
        assert!(problems[0].contains("the file is empty"), "{problems:?}");
    }
}
