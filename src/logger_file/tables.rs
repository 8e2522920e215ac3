//! Reads the tables of a file: the channels of each, and the values of its rows. See docs/specification.md, sections 2
//! and 4.

use super::cells::{self, holds_something, trim_spaces};
use super::channels::Channels;
use super::container::BYTE_ORDER_MARK;
use super::lines::Line;
use super::problems::{Problem, Problems};
use super::row_stats::{RowStats, glued, value_cells};
use super::timestamps::parse_wall_time;
use super::{FormatError, MAX_CHANNELS, MAX_WEEKS, foreign};
use crate::layout::{FileLayout, LayoutScan};
use std::collections::HashSet;

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

/// The time before which a row is suspicious: 2010-01-01, in seconds since 1970.
const FIRST_PLAUSIBLE_TIME: i64 = 1_262_304_000;

/// The time by which a row may be later than the upload, in seconds.
const MAX_AHEAD: i64 = 24 * 3600;

/// The time by which a row may be earlier than the previous one, in seconds.
const MAX_STEP_BACK: i64 = 2 * 3600;

/// The length of a shard of the database in seconds.
const WEEK: i64 = 7 * 24 * 3600;

/// The tables of a file so far: the header and the row that apply, and the counts.
pub(super) struct Tables {
    /// The time of the upload in seconds since 1970.
    uploaded: Option<i64>,
    channels: Channels,
    /// The ids of all channels, if the file has several headers.
    ids: HashSet<String>,
    /// Whether the document has no table so far.
    is_first_of_document: bool,
    /// The values of the row, one entry per channel.
    values: Vec<Option<f64>>,
    /// The number of values that the row has.
    points: u64,
    stats: RowStats,
    problems: Problems,
    layout: LayoutScan,
    weeks: HashSet<i64>,
    week: Option<i64>,
    /// The number of rows read, including those skipped.
    data_rows: u64,
    /// The number of rows whose time is in another form.
    reformatted_times: u64,
}

impl Tables {
    pub(super) fn new(uploaded: Option<i64>) -> Self {
        Self {
            uploaded,
            channels: Channels::none(),
            ids: HashSet::new(),
            is_first_of_document: true,
            values: Vec::new(),
            points: 0,
            stats: RowStats::default(),
            problems: Problems::default(),
            layout: LayoutScan::default(),
            weeks: HashSet::new(),
            week: None,
            data_rows: 0,
            reformatted_times: 0,
        }
    }

    /// The channels of the current table.
    pub(super) fn channels(&self) -> &Channels {
        &self.channels
    }

    /// The counts so far.
    pub(super) fn stats(&self) -> RowStats {
        self.stats
    }

    /// The first defects.
    pub(super) fn problems(&self) -> &[Problem] {
        self.problems.list()
    }

    /// The layouts of the tables so far.
    pub(super) fn layout(&self) -> Option<FileLayout> {
        self.layout.file()
    }

    /// The row that was added last. `time` is its timestamp.
    pub(super) fn row(&self, time: i64) -> Row<'_> {
        Row {
            time,
            values: &self.values,
            channels: &self.channels,
            header_changes: self.stats.header_changes,
        }
    }

    /// Begins a document. `master_type` is the type of the logger that its header names.
    pub(super) fn begin_document(&mut self, master_type: Option<&str>) {
        self.layout.begin_document(master_type);
        self.is_first_of_document = true;
    }

    /// Begins a table with its two header lines.
    pub(super) fn begin(&mut self, serials: &Line, labels: &Line) -> Result<(), FormatError> {
        let line = labels.number;
        let is_cut = labels.is_cut;
        let mut cells: Vec<_> = serials.record.iter().collect();
        // A concatenated file may have a byte-order mark here.
        while let Some(rest) = cells
            .first()
            .and_then(|cell| cell.strip_prefix(BYTE_ORDER_MARK))
        {
            cells[0] = rest;
        }
        let labels: Vec<_> = labels.record.iter().collect();
        let channels = Channels::new((&cells, serials.number), (&labels, line))?;
        let is_equal =
            channels.master == self.channels.master && channels.list == self.channels.list;
        // A label line that is cut off may lack a unit.
        if !is_cut {
            self.layout.begin_table(&channels);
        }
        self.stats.tables += u64::from(self.is_first_of_document || !is_equal);
        self.is_first_of_document = false;
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

    /// Parses the values of a row. Returns false if it is not perfect, that is, if it has not one value per channel and
    /// nothing else. Such a row needs [`Tables::examine_row`].
    pub(super) fn parse_row(&mut self, line: &Line) -> bool {
        self.data_rows += 1;
        let columns = self.values.len();
        // Without a final line break, the last cell may be an incomplete number.
        let is_last_cut = line.is_cut || self.is_short(line);
        let complete = line.record.len() - usize::from(is_last_cut);
        let mut cells = line.record.iter().take(complete).skip(1).map(trim_spaces);
        let mut points = 0;
        for slot in &mut self.values {
            *slot = cells.next().and_then(cells::parse);
            points += u64::from(slot.is_some());
        }
        self.points = points;
        let is_perfect = points == columns as u64 && line.record.len() == columns + 1;
        if is_perfect {
            self.stats.cells += points;
        }
        is_perfect
    }

    /// Whether a row, which is not cut off by the end of the file, has fewer cells than the header.
    fn is_short(&self, line: &Line) -> bool {
        !line.is_cut && line.record.len() <= self.values.len()
    }

    /// Counts the cells of a row that is not perfect. Returns false if it is malformed: it contains more than one row.
    pub(super) fn examine_row(&mut self, line: &Line) -> bool {
        let columns = self.values.len();
        // The cell that may be cut off shows all the same that the row does not fit.
        if let Some((column, cell, reason)) = glued(line, columns) {
            self.problems.add(line.number, column + 1, cell, reason);
            self.stats.malformed_rows += 1;
            self.stats.lose(line);
            return false;
        }
        // The cut last row of a truncated file is left out of the counts of cells.
        if line.is_cut {
            return true;
        }
        let is_short = self.is_short(line);
        let last = line.record.len() - 1;
        for (column, cell) in value_cells(line) {
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
            self.problems.add(line.number, column + 1, cell, reason);
        }
        let values =
            value_cells(line).filter(|(column, cell)| *column <= columns && holds_something(cell));
        let mut held = values.count() as u64;
        if is_short {
            let cell = line.record.get(last).unwrap_or_default();
            let reason = "fewer cells than the header; the last one may be cut off and is skipped";
            self.problems.add(line.number, last + 1, cell, reason);
            self.stats.short_rows += 1;
            held += (columns - last) as u64;
        }
        self.stats.cells += held;
        self.stats.lost_cells += held - self.points;
        true
    }

    /// Adds the row that was parsed. `line` is its number, `time` its timestamp, and `previous` that of the row before it.
    pub(super) fn add_row(
        &mut self,
        line: u64,
        time: i64,
        previous: Option<i64>,
    ) -> Result<(), FormatError> {
        if self.points > 0 {
            self.check_week(line, time)?;
        }
        self.check_time(time, previous);
        self.stats.rows += 1;
        self.stats.points += self.points;
        self.stats.invalid_values += self.values.len() as u64 - self.points;
        self.layout.add_row(&self.values);
        Ok(())
    }

    fn check_time(&mut self, time: i64, previous: Option<i64>) {
        let is_early = time < FIRST_PLAUSIBLE_TIME;
        let is_late = self
            .uploaded
            .is_some_and(|uploaded| time > uploaded.saturating_add(MAX_AHEAD));
        let is_back = previous.is_some_and(|previous| time < previous - MAX_STEP_BACK);
        if is_early || is_late || is_back {
            self.stats.suspicious_times += 1;
        }
    }

    /// Counts the week of a row. Each is a shard of the database, whose number a file must not exhaust.
    fn check_week(&mut self, line: u64, time: i64) -> Result<(), FormatError> {
        let week = time.div_euclid(WEEK);
        if self.week == Some(week) {
            return Ok(());
        }
        self.week = Some(week);
        self.weeks.insert(week);
        if self.weeks.len() > MAX_WEEKS {
            return Err(FormatError::TooManyWeeks { line });
        }
        Ok(())
    }

    /// Counts a line after `END_DATA`.
    pub(super) fn skip_line_after_end(&mut self) {
        self.stats.lines_after_end += 1;
    }

    /// Counts a line before the first header as a skipped row.
    pub(super) fn skip_row_before_header(&mut self, line: &Line) {
        self.data_rows += 1;
        self.stats.lose(line);
        let first = line.first_cell();
        match parse_wall_time(first) {
            Some(_) => self.stats.malformed_rows += 1,
            None => self.stats.invalid_timestamps += 1,
        }
        let reason = "a row before any header; it is skipped";
        self.problems.add(line.number, 1, first, reason);
    }

    /// Counts a line of a table that has no valid time as a skipped row.
    pub(super) fn skip_row(&mut self, line: &Line) {
        self.data_rows += 1;
        self.stats.lose(line);
        if let Some((column, cell, reason)) = glued(line, self.values.len()) {
            self.stats.malformed_rows += 1;
            self.problems.add(line.number, column + 1, cell, reason);
            return;
        }
        self.stats.invalid_timestamps += 1;
        let first = line.first_cell();
        let reason = if foreign::is_reformatted_time(first) {
            self.reformatted_times += 1;
            "a time in another form than DD/MM/YY HH:MM:SS; the row is skipped"
        } else {
            "not a date and time; the row is skipped"
        };
        self.problems.add(line.number, 1, first, reason);
    }

    /// See [`LoggerFile::ensure_usable`](super::LoggerFile::ensure_usable).
    pub(super) fn ensure_usable(&self, max_loss: f64) -> Result<(), FormatError> {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logger_file::testing::{HEAD, OTHER, P, T, point, points, read};
    use crate::logger_file::{LoggerFile, ReadOptions};
    use crate::time_zone::FileZones;

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
}
