//! A second, simple reader of logger files, written from the specification alone. It reads a whole file into memory.
//! The tests compare the program's results with those of this reader.

use chrono::{DateTime, Datelike, Duration, NaiveDate, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// One value of one channel at one second.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    pub measurement: String,
    /// Sorted by key, not escaped.
    pub tags: BTreeMap<String, String>,
    pub value: f64,
    pub epoch: i64,
}

/// The content of a file.
#[derive(Debug, Default)]
pub struct Whole {
    pub points: Vec<Point>,
    pub nb_rows: u64,
    /// The channels of all tables with rows, each once.
    pub nb_channels: u64,
    pub nb_invalid_timestamps: u64,
    pub nb_invalid_values: u64,
    pub nb_malformed_rows: u64,
    pub nb_short_rows: u64,
    pub nb_lines_after_end: u64,
    pub nb_tables: u64,
    pub nb_cells: u64,
    /// The cells of `nb_cells` that became no point.
    pub nb_lost_cells: u64,
    pub nb_suspicious_times: u64,
    pub truncated: bool,
    pub headed: bool,
    pub file_header_meta: Option<Value>,
    /// The name and the source of the zone of each document.
    pub zones: Vec<(String, &'static str)>,
    /// Per `channel_id`.
    pub channels: BTreeMap<String, Channel>,
    /// Why the file fails, apart from its losses. The points are those before the failure.
    pub failure: Option<Refusal>,
}

#[derive(Debug, Default, Clone)]
pub struct Channel {
    pub channel_name: String,
    pub unit: String,
    pub values: Vec<f64>,
}

impl Whole {
    /// The first and last times of the points.
    pub fn time_range(&self) -> Option<(i64, i64)> {
        let epochs = || self.points.iter().map(|p| p.epoch);
        Some((epochs().min()?, epochs().max()?))
    }

    /// The share of `nb_cells` that became no point.
    pub fn loss_ratio(&self) -> f64 {
        if self.nb_cells == 0 {
            return 0.0;
        }
        self.nb_lost_cells as f64 / self.nb_cells as f64
    }

    /// Why the file fails if `max_loss` is the setting for the losses.
    pub fn failure_with(&self, max_loss: f64) -> Option<Refusal> {
        let lossy = self.loss_ratio() > max_loss;
        self.failure.or(lossy.then_some("too much was lost"))
    }

    /// The counters of the file's report by key.
    pub fn counters(&self) -> [(&'static str, u64); 11] {
        [
            ("nb_rows", self.nb_rows),
            ("nb_channels", self.nb_channels),
            ("nb_points", self.points.len() as u64),
            ("nb_invalid_timestamps", self.nb_invalid_timestamps),
            ("nb_invalid_values", self.nb_invalid_values),
            ("nb_malformed_rows", self.nb_malformed_rows),
            ("nb_short_rows", self.nb_short_rows),
            ("nb_lines_after_end", self.nb_lines_after_end),
            ("nb_tables", self.nb_tables),
            ("nb_cells", self.nb_cells),
            ("nb_suspicious_times", self.nb_suspicious_times),
        ]
    }
}

/// Why a file fails. The program's messages differ.
pub type Refusal = &'static str;

/// Reads a file that was uploaded just now and must not fail. `fallback` is the zone if the file's header names none.
pub fn read(bytes: &[u8], campaign: &str, fallback: Tz) -> Result<Whole, Refusal> {
    let whole = read_upload(bytes, campaign, fallback, Utc::now());
    match whole.failure_with(MAX_LOSS) {
        Some(why) => Err(why),
        None => Ok(whole),
    }
}

/// Reads a file that was uploaded at `uploaded`.
pub fn read_upload(bytes: &[u8], campaign: &str, fallback: Tz, uploaded: DateTime<Utc>) -> Whole {
    let mut reader = Reader {
        campaign,
        fallback,
        uploaded,
        whole: Whole::default(),
        zone: Zone::Named(fallback),
        clock: Clock::default(),
        table: None,
        doubt: Doubt::None,
        weeks: BTreeSet::new(),
    };
    let end = reader.file(bytes);
    let mut whole = reader.whole;
    whole.nb_channels = whole.channels.len() as u64;
    whole.failure = match end {
        Err(why) => Some(why),
        Ok(()) if whole.points.is_empty() => Some("no valid point"),
        Ok(()) => None,
    };
    whole
}

/// The default of `TSV_MAX_LOSS`.
pub const MAX_LOSS: f64 = 0.5;

const MAX_LINE: usize = 1 << 20;
const MAX_JSON: usize = 64 << 10;
const MAX_CHANNELS: usize = 4096;
const MAX_NAME: usize = 256;
const MAX_WEEKS: usize = 520;
const SECONDS_OF_A_WEEK: i64 = 7 * 86_400;

/// The part of a file that a line belongs to.
enum Part {
    /// The lines before the first header.
    NoHeader,
    /// The JSON lines so far.
    Json(Vec<u8>),
    BeforeStartData,
    Serials,
    Labels,
    Rows,
    AfterEnd,
}

/// What a damaged line leaves unknown.
#[derive(PartialEq)]
enum Doubt {
    None,
    /// Whether a table that follows belongs to the document. Its rows do.
    NextTable,
    /// What the times mean that follow.
    Times,
}

/// The header lines of a table.
struct Table {
    serials: Vec<String>,
    labels: Vec<String>,
    /// The channel id, the tags and the channel of each column.
    columns: Vec<(String, BTreeMap<String, String>, Channel)>,
}

struct Reader<'a> {
    campaign: &'a str,
    fallback: Tz,
    uploaded: DateTime<Utc>,
    whole: Whole,
    /// The zone of the current document.
    zone: Zone,
    clock: Clock,
    /// The current table of the current document.
    table: Option<Table>,
    doubt: Doubt,
    weeks: BTreeSet<i64>,
}

impl Reader<'_> {
    fn file(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        self.whole.truncated = end < bytes.len();
        let lines = lines_of(&bytes[..end]);
        if lines.is_empty() {
            return Err("the file is empty");
        }
        let mut part = Part::NoHeader;
        let mut headed = false;
        for (at, line) in lines.iter().enumerate() {
            if line.bytes.len() > MAX_LINE {
                return Err("a line is too long");
            }
            if let Some((before, json)) = line.text.rsplit_once("START_HEADER") {
                self.cut_document(&part, headed, before);
                headed = true;
                self.whole.headed |= self.whole.zones.is_empty();
                self.table = None;
                part = Part::Json(json.as_bytes().to_vec());
                continue;
            }
            part = match part {
                Part::NoHeader if at == 0 && lines.get(1).is_some_and(Line::begins_table) => {
                    self.plain_document();
                    Part::Labels
                }
                Part::NoHeader if line.is("END_DATA") => {
                    self.doubt = Doubt::None;
                    Part::AfterEnd
                }
                Part::NoHeader if line.text.contains("MV_T") => {
                    return Err("a table of an unknown document");
                }
                Part::NoHeader => {
                    self.unplaced(line);
                    Part::NoHeader
                }
                Part::Json(json) if line.is("END_HEADER") => {
                    self.document(&json)?;
                    Part::BeforeStartData
                }
                Part::Json(_)
                    if line.is("START_DATA")
                        || line.is("END_DATA")
                        || line.begins_with_marker()
                        || line.time().is_some() =>
                {
                    return Err("the header is never closed");
                }
                Part::Json(mut json) => {
                    json.push(b'\n');
                    json.extend_from_slice(&line.bytes);
                    if json.len() > MAX_JSON {
                        return Err("the JSON header is too long");
                    }
                    Part::Json(json)
                }
                Part::BeforeStartData if line.is("START_DATA") => Part::Serials,
                Part::BeforeStartData => return Err("no START_DATA after the header"),
                Part::Serials => Part::Labels,
                Part::Labels => {
                    if !headed && !lines[at - 1].may_be_serials() {
                        return Err("a marker without serials");
                    }
                    self.begin_table(&lines[at - 1], line)?;
                    Part::Rows
                }
                Part::Rows if headed && line.is("END_DATA") => {
                    self.table = None;
                    self.doubt = Doubt::None;
                    Part::AfterEnd
                }
                Part::Rows | Part::AfterEnd if line.begins_with_marker() => {
                    let serials = &lines[at - 1];
                    if !serials.may_be_serials() {
                        return Err("a marker without serials");
                    }
                    if self.doubt != Doubt::None {
                        return Err("a table of an unknown document");
                    }
                    if matches!(part, Part::AfterEnd) {
                        headed = false;
                        self.plain_document();
                    }
                    let begun = self.begin_table(serials, line);
                    if line.ended {
                        begun?;
                    }
                    // Otherwise the rest of the header may be missing.
                    Part::Rows
                }
                Part::Rows | Part::AfterEnd if line.text.contains("MV_T") => {
                    return Err("a marker within a line");
                }
                // The serials of a header pair, which the next line completes.
                part @ (Part::Rows | Part::AfterEnd)
                    if lines.get(at + 1).is_some_and(Line::begins_with_marker)
                        && wall_time(&line.cells()[0]).is_none() =>
                {
                    part
                }
                Part::Rows => {
                    self.row(line, headed)?;
                    Part::Rows
                }
                Part::AfterEnd => {
                    self.note_doubt(line, false);
                    self.whole.nb_lines_after_end += u64::from(!line.is_blank());
                    Part::AfterEnd
                }
            };
        }
        match part {
            Part::NoHeader => Err("no header"),
            Part::Json(_) => Err("the header is never closed"),
            Part::BeforeStartData => Err("no START_DATA after the header"),
            Part::Serials | Part::Labels => Err("no header lines"),
            Part::Rows => {
                let ended = lines.last().is_some_and(|l| l.ended);
                self.whole.truncated |= headed || !ended;
                Ok(())
            }
            Part::AfterEnd if self.whole.nb_tables == 0 => Err("no header"),
            Part::AfterEnd => Ok(()),
        }
    }

    /// Counts a line that stands before any header.
    fn unplaced(&mut self, line: &Line) {
        let held = line.nb_held();
        self.whole.nb_cells += held;
        self.whole.nb_lost_cells += held;
        if line.time().is_some() {
            self.whole.nb_malformed_rows += 1;
        } else {
            self.whole.nb_invalid_timestamps += 1;
        }
        self.note_doubt(line, false);
    }

    /// Examines a line that is no row for what remains of the lines around a document.
    fn note_doubt(&mut self, line: &Line, headed: bool) {
        const PARTS: [&str; 5] = [
            "END_HEADER",
            "START_DATA",
            "\"DataTimeSettings\"",
            "\"TimeZoneName\"",
            "\"TimeZone\"",
        ];
        let text = &line.text;
        let header = PARTS.iter().any(|part| text.contains(part))
            || ["START_HEADER", "END_HEADER", "START_DATA"]
                .iter()
                .any(|word| resembles(text, word));
        if header {
            self.doubt = Doubt::Times;
        } else if headed
            && self.doubt == Doubt::None
            && (text.contains("END_DATA") || resembles(text, "END_DATA"))
        {
            self.doubt = Doubt::NextTable;
        }
    }

    /// Ends the current document where another one begins, behind `before` in the same line.
    fn cut_document(&mut self, part: &Part, headed: bool, before: &str) {
        let before = before.trim_matches(is_space);
        let complete = match part {
            Part::NoHeader => before.is_empty(),
            Part::Serials | Part::Labels | Part::Rows if !headed => before.is_empty(),
            Part::Rows => before == "END_DATA",
            Part::AfterEnd => true,
            _ => false,
        };
        self.whole.truncated |= !complete;
    }

    fn plain_document(&mut self) {
        self.doubt = Doubt::None;
        self.clock.begin_document();
        self.zone = Zone::Named(self.fallback);
        self.whole
            .zones
            .push((self.fallback.name().to_owned(), "setting"));
    }

    /// Begins a headed document with this header.
    fn document(&mut self, json: &[u8]) -> Result<(), Refusal> {
        let meta: Option<Value> = serde_json::from_slice(json).ok();
        let keys = ["DataTimeSettings", "TimeZoneName", "TimeZone"];
        let [settings, name, posix] = if let Some(meta) = &meta {
            keys.map(|k| meta.get(k).and_then(Value::as_str).map(str::to_owned))
        } else {
            let text = String::from_utf8_lossy(json);
            let found = keys.map(|k| text_of_key(&text, k));
            if found.iter().all(Option::is_none) {
                return Err("the JSON is broken and names no zone");
            }
            found
        };
        let settings = settings.unwrap_or_default();
        self.doubt = Doubt::None;
        self.clock.begin_document();
        let named = name.and_then(|n| {
            let same = |tz: &&Tz| tz.name().eq_ignore_ascii_case(&n);
            chrono_tz::TZ_VARIANTS.iter().find(same).copied()
        });
        let (zone, text, source) = if settings.eq_ignore_ascii_case("UTC") {
            (Zone::Utc, "UTC".to_owned(), "header")
        } else if let Some(tz) = named {
            (Zone::Named(tz), tz.name().to_owned(), "header")
        } else if let Some(rule) = posix.as_deref().and_then(Posix::parse) {
            let text = posix.unwrap_or_default();
            (Zone::Posix(rule), text, "header_posix")
        } else {
            let text = self.fallback.name().to_owned();
            (Zone::Named(self.fallback), text, "setting")
        };
        self.zone = zone;
        self.whole.zones.push((text, source));
        if self.whole.file_header_meta.is_none() {
            self.whole.file_header_meta = meta;
        }
        Ok(())
    }

    /// Begins a table with these header lines, unless they equal the current ones.
    fn begin_table(&mut self, serials: &Line, labels: &Line) -> Result<(), Refusal> {
        let (serials, labels) = (serials.header_cells(), labels.header_cells());
        if !["MV_T302_V002", "MV_T302_V003"].contains(&labels[0].as_str()) {
            return Err("unknown marker");
        }
        if serials.len() != labels.len() {
            return Err("header lines of different length");
        }
        if serials.len() < 2 {
            return Err("no channel");
        }
        if serials.len() - 1 > MAX_CHANNELS {
            return Err("too many channels");
        }
        for cell in serials.iter().chain(&labels) {
            if cell.is_empty() {
                return Err("an empty serial or label");
            }
            if cell.chars().any(char::is_control) {
                return Err("a control character in a serial or label");
            }
            if cell.len() > MAX_NAME {
                return Err("a serial or label is too long");
            }
        }
        if let Some(table) = &self.table
            && table.serials == serials
            && table.labels == labels
        {
            return Ok(());
        }
        self.whole.nb_tables += 1;
        let master = &serials[0];
        let mut columns = Vec::new();
        for i in 1..serials.len() {
            let serial = &serials[i];
            let number = serials[1..=i].iter().filter(|s| *s == serial).count();
            let (kind, letter) = if serial == master {
                ("master", "M")
            } else {
                ("slave", "S")
            };
            let id = format!("{letter}{serial}_Ch{number}_M{master}");
            let (name, unit) = labels[i].rsplit_once(' ').unwrap_or((&labels[i], ""));
            let name = name.trim_end_matches(' ');
            let channel = Channel {
                channel_name: name.to_owned(),
                unit: unit.to_owned(),
                values: Vec::new(),
            };
            let tags: BTreeMap<String, String> = [
                ("campaign", self.campaign),
                ("channel_id", &id),
                ("channel_name", name),
                ("channel_number", &number.to_string()),
                ("channel_type", kind),
                ("device", serial),
                ("device_master_sn", master),
                ("device_sn", serial),
                ("unit", unit),
            ]
            .iter()
            .map(|(k, v)| (k.to_string(), v.trim_end_matches('\\').to_owned()))
            .filter(|(_, v)| !v.is_empty())
            .collect();
            columns.push((id, tags, channel));
        }
        self.table = Some(Table {
            serials,
            labels,
            columns,
        });
        Ok(())
    }

    fn row(&mut self, line: &Line, headed: bool) -> Result<(), Refusal> {
        if line.time().is_some() {
            if self.doubt == Doubt::Times {
                return Err("a row of an unknown document");
            }
            self.doubt = Doubt::None;
        }
        let table = self.table.as_ref().expect("rows follow a header");
        let whole = &mut self.whole;
        let width = table.columns.len() + 1;
        let mut cells = line.cells();
        let nb_held = line.nb_held();
        let malformed = cells[1..].iter().any(|c| holds_another_row(c))
            || cells.iter().skip(width).any(|c| !c.is_empty());
        if !line.ended {
            // The text after the last tab may be incomplete.
            cells.last_mut().expect("split gives at least one").clear();
        }
        let short = line.ended && cells.len() < width;
        if short && cells.len() > 1 {
            cells.last_mut().expect("more than one").clear();
        }
        // The cut last row is left out of the loss.
        let nb_held = if line.ended { nb_held } else { 0 };
        if malformed {
            whole.nb_malformed_rows += 1;
            whole.nb_cells += nb_held;
            whole.nb_lost_cells += nb_held;
            self.note_doubt(line, headed);
            // The row has its time: the document goes on.
            if line.time().is_some() && self.doubt == Doubt::Times {
                self.doubt = Doubt::NextTable;
            }
            return Ok(());
        }
        let Some(wall) = wall_time(&cells[0]) else {
            whole.nb_invalid_timestamps += 1;
            whole.nb_cells += nb_held;
            whole.nb_lost_cells += nb_held;
            self.note_doubt(line, headed);
            return Ok(());
        };
        let previous = self.clock.previous;
        let instant = self.clock.instant(&self.zone, wall);
        let values: Vec<Option<f64>> = (1..width)
            .map(|i| cells.get(i).and_then(|cell| number(cell.as_bytes())))
            .collect();
        let nb_points = values.iter().flatten().count() as u64;
        let epoch = instant.timestamp();
        if nb_points > 0 {
            self.weeks.insert(epoch.div_euclid(SECONDS_OF_A_WEEK));
            if self.weeks.len() > MAX_WEEKS {
                return Err("too many weeks");
            }
        }
        let back = previous.is_some_and(|p| p - instant > Duration::hours(2));
        let suspicious =
            back || instant.year() < 2010 || instant - self.uploaded > Duration::hours(24);
        whole.nb_suspicious_times += u64::from(suspicious);
        whole.nb_rows += 1;
        if short {
            whole.nb_short_rows += 1;
        }
        if line.ended {
            let nb_cells = nb_held + width.saturating_sub(cells.len()) as u64;
            whole.nb_cells += nb_cells;
            whole.nb_lost_cells += nb_cells - nb_points;
        }
        for ((id, tags, channel), value) in table.columns.iter().zip(values) {
            let channel = whole
                .channels
                .entry(id.clone())
                .or_insert_with(|| channel.clone());
            let Some(value) = value else {
                whole.nb_invalid_values += 1;
                continue;
            };
            channel.values.push(value);
            whole.points.push(Point {
                measurement: self.campaign.to_owned(),
                tags: tags.clone(),
                value,
                epoch,
            });
        }
        Ok(())
    }
}

struct Line {
    bytes: Vec<u8>,
    text: String,
    /// The line ends in a line break.
    ended: bool,
}

impl Line {
    fn new(bytes: &[u8], ended: bool) -> Self {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        Self {
            bytes: bytes.to_vec(),
            text: decode(bytes),
            ended,
        }
    }

    fn is(&self, word: &str) -> bool {
        let end = |c| is_space(c) || c == '\t' || c == '\r';
        self.text.trim_end_matches(end) == word
    }

    fn is_blank(&self) -> bool {
        self.cells().iter().all(String::is_empty)
    }

    fn cells(&self) -> Vec<String> {
        let trimmed = |cell: &str| cell.trim_matches(is_space).to_owned();
        self.text.split('\t').map(trimmed).collect()
    }

    /// The cells without the blanks at the end of the line.
    fn header_cells(&self) -> Vec<String> {
        let text = self.text.replace(is_space, " ");
        let text = text.trim_end_matches([' ', '\t']);
        let trimmed = |cell: &str| cell.trim_matches(' ').to_owned();
        text.split('\t').map(trimmed).collect()
    }

    /// The time of a row, unless the line is cut within it.
    fn time(&self) -> Option<NaiveDateTime> {
        let cells = self.cells();
        let complete = self.ended || cells.len() > 1;
        wall_time(&cells[0]).filter(|_| complete)
    }

    /// The number of value cells that hold something.
    fn nb_held(&self) -> u64 {
        let holds = |c: &&String| !c.is_empty() && !c.eq_ignore_ascii_case("NaN");
        self.cells()[1..].iter().filter(holds).count() as u64
    }

    /// Neither a row, whole or cut, nor a marker or keyword.
    fn may_be_serials(&self) -> bool {
        let first = self.text.split('\t').next().unwrap_or_default();
        !self.begins_with_marker()
            && !["/", ":", "START_", "END_"]
                .iter()
                .any(|part| first.contains(part))
    }

    /// The line holds the labels of a table.
    fn begins_table(&self) -> bool {
        self.begins_with_marker() && !self.text.contains("START_HEADER")
    }

    /// The first cell begins like a marker, supported or not, whole or cut.
    fn begins_with_marker(&self) -> bool {
        self.cells()[0].starts_with("MV_T")
    }
}

/// The lines of a file without the blank ones.
fn lines_of(bytes: &[u8]) -> Vec<Line> {
    let mut parts: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
    let rest = parts.pop().expect("split gives at least one");
    let mut lines: Vec<Line> = parts
        .into_iter()
        .map(|l| {
            let l = l.strip_suffix(b"\r").unwrap_or(l);
            Line::new(l.strip_suffix(b"\r").unwrap_or(l), true)
        })
        .filter(|l| !l.is_blank())
        .collect();
    if !rest.is_empty() {
        lines.push(Line::new(rest, false));
    }
    lines
}

/// Spaces and no-break spaces.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\u{a0}' | '\u{2007}' | '\u{202f}')
}

/// UTF-8; other bytes are Windows-1252.
fn decode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        let (western, _) = encoding_rs::WINDOWS_1252.decode_without_bom_handling(chunk.invalid());
        text.push_str(&western);
    }
    text
}

/// A cell contains a date and time or a keyword.
fn holds_another_row(cell: &str) -> bool {
    const KEYWORDS: [&str; 4] = ["START_HEADER", "END_HEADER", "START_DATA", "END_DATA"];
    KEYWORDS.iter().any(|k| cell.contains(k))
        || cell.as_bytes().windows(SHAPE.len()).any(has_shape_of_time)
}

/// The line starts and ends as the word does, in any letter case, but for two neighbouring characters of it at most.
fn resembles(line: &str, word: &str) -> bool {
    let line = line.trim().to_ascii_uppercase();
    (0..=2).any(|gap| {
        (0..=word.len() - gap)
            .any(|at| line.starts_with(&word[..at]) && line.ends_with(&word[at + gap..]))
    })
}

/// The string behind `"key":` in a text that is no JSON.
fn text_of_key(text: &str, key: &str) -> Option<String> {
    let quoted = format!("\"{key}\"");
    text.match_indices(&quoted).find_map(|(at, _)| {
        let value = text[at + quoted.len()..].trim_start().strip_prefix(':')?;
        let mut values = serde_json::Deserializer::from_str(value).into_iter::<String>();
        values.next()?.ok()
    })
}

const SHAPE: &[u8] = b"00/00/00 00:00:00";

/// `DD/MM/YY HH:MM:SS` with any digits.
fn has_shape_of_time(cell: &[u8]) -> bool {
    let fits = |(c, s): (&u8, &u8)| {
        if *s == b'0' {
            c.is_ascii_digit()
        } else {
            c == s
        }
    };
    cell.len() == SHAPE.len() && cell.iter().zip(SHAPE).all(fits)
}

/// Parses `DD/MM/YY HH:MM:SS`.
fn wall_time(cell: &str) -> Option<NaiveDateTime> {
    let cell = cell.as_bytes();
    if !has_shape_of_time(cell) {
        return None;
    }
    let two = |i: usize| u32::from(cell[i] - b'0') * 10 + u32::from(cell[i + 1] - b'0');
    NaiveDate::from_ymd_opt(2000 + two(6) as i32, two(3), two(0))?.and_hms_opt(
        two(9),
        two(12),
        two(15),
    )
}

/// `[+-]? (digits [. digits?] | . digits) ([eE] [+-]? digits)?`, finite.
pub fn number(cell: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(cell).ok()?;
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if !digits(before) || !digits(after) || (before.is_empty() && after.is_empty()) {
        return None;
    }
    if let Some(exponent) = exponent {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if exponent.is_empty() || !digits(exponent) {
            return None;
        }
    }
    text.parse::<f64>().ok().filter(|v| v.is_finite())
}

/// The meaning of a document's times.
enum Zone {
    Utc,
    Named(Tz),
    Posix(Posix),
}

impl Zone {
    /// Seconds east of Greenwich.
    fn offset_at(&self, utc: NaiveDateTime) -> i64 {
        match self {
            Self::Utc => 0,
            Self::Named(tz) => tz
                .offset_from_utc_datetime(&utc)
                .fix()
                .local_minus_utc()
                .into(),
            Self::Posix(posix) => posix.offset_at(utc),
        }
    }

    /// All instants at which the clocks showed `wall`, earliest first; where the spring change skips it, the one that
    /// the offset before the change gives. Found by trying the offsets that were in force around it.
    fn instants_of(&self, wall: NaiveDateTime) -> Vec<DateTime<Utc>> {
        let mut found: Vec<DateTime<Utc>> = (-30..=30)
            .map(|hours| self.offset_at(wall + Duration::hours(hours)))
            .map(|offset| (offset, wall - Duration::seconds(offset)))
            .filter(|(offset, utc)| self.offset_at(*utc) == *offset)
            .map(|(_, utc)| utc.and_utc())
            .collect();
        found.sort();
        found.dedup();
        if found.is_empty() {
            let before = self.offset_at(wall - Duration::hours(30));
            found.push((wall - Duration::seconds(before)).and_utc());
        }
        found
    }
}

/// A POSIX zone such as `CET-1CEST,M3.5.0,M10.5.0/3`.
struct Posix {
    /// Seconds east of Greenwich.
    standard: i64,
    daylight: Option<Daylight>,
}

struct Daylight {
    offset: i64,
    start: (Day, i64),
    end: (Day, i64),
}

/// A day of the year on which the offset changes.
enum Day {
    Month {
        month: u32,
        week: u32,
        weekday: u32,
    },
    /// From 1 on; 29 February is never counted.
    Julian(i64),
    /// From 0 on; 29 February is counted.
    Zero(i64),
}

impl Posix {
    fn parse(text: &str) -> Option<Self> {
        let (zone, rules) = match text.split_once(',') {
            Some((zone, rules)) => (zone, Some(rules)),
            None => (text, None),
        };
        let (standard, rest) = Self::offset(Self::name(zone)?)?;
        if rest.is_empty() {
            let standard = -standard;
            return rules.is_none().then_some(Self {
                standard,
                daylight: None,
            });
        }
        let rest = Self::name(rest)?;
        let offset = if rest.is_empty() {
            3600 - standard
        } else {
            match Self::offset(rest)? {
                (offset, "") => -offset,
                _ => return None,
            }
        };
        let (start, end) = rules?.split_once(',')?;
        Some(Self {
            standard: -standard,
            daylight: Some(Daylight {
                offset,
                start: Self::change(start)?,
                end: Self::change(end)?,
            }),
        })
    }

    /// Skips an abbreviation.
    fn name(text: &str) -> Option<&str> {
        let (name, rest) = if let Some(quoted) = text.strip_prefix('<') {
            let (name, rest) = quoted.split_once('>')?;
            let good = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'-';
            if !name.bytes().all(good) {
                return None;
            }
            (name, rest)
        } else {
            let end = text.find(|c: char| !c.is_ascii_alphabetic());
            text.split_at(end.unwrap_or(text.len()))
        };
        (name.len() >= 3).then_some(rest)
    }

    /// Like `hours`, at most 24 of them.
    fn offset(text: &str) -> Option<(i64, &str)> {
        Self::hours(text).filter(|(seconds, _)| seconds.abs() < 25 * 3600)
    }

    /// Seconds of `[+-]h[:m[:s]]`, and what follows.
    fn hours(text: &str) -> Option<(i64, &str)> {
        let (sign, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != ':');
        let (number, rest) = unsigned.split_at(end.unwrap_or(unsigned.len()));
        let parts: Vec<i64> = number
            .split(':')
            .map(|p| p.parse().ok())
            .collect::<Option<_>>()?;
        let (h, m, s) = match parts[..] {
            [h] => (h, 0, 0),
            [h, m] => (h, m, 0),
            [h, m, s] => (h, m, s),
            _ => return None,
        };
        (h <= 167 && m < 60 && s < 60).then_some((sign * (h * 3600 + m * 60 + s), rest))
    }

    fn change(rule: &str) -> Option<(Day, i64)> {
        let (day, time) = match rule.split_once('/') {
            Some((day, time)) => match Self::hours(time)? {
                (seconds, "") => (day, seconds),
                _ => return None,
            },
            None => (rule, 7200),
        };
        let day = if let Some(parts) = day.strip_prefix('M') {
            let parts: Vec<u32> = parts
                .split('.')
                .map(|p| p.parse().ok())
                .collect::<Option<_>>()?;
            let [month @ 1..=12, week @ 1..=5, weekday @ 0..=6] = parts[..] else {
                return None;
            };
            Day::Month {
                month,
                week,
                weekday,
            }
        } else if let Some(day) = day.strip_prefix('J') {
            Day::Julian(day.parse().ok().filter(|d| (1..=365).contains(d))?)
        } else {
            Day::Zero(day.parse().ok().filter(|d| (0..=365).contains(d))?)
        };
        Some((day, time))
    }

    fn offset_at(&self, utc: NaiveDateTime) -> i64 {
        let Some(daylight) = &self.daylight else {
            return self.standard;
        };
        // The state is that after the last change so far.
        let year = utc.year();
        let mut changes = Vec::new();
        for year in year - 1..=year + 1 {
            let (day, time) = &daylight.start;
            changes.push((day.at(year, *time - self.standard), daylight.offset));
            let (day, time) = &daylight.end;
            changes.push((day.at(year, *time - daylight.offset), self.standard));
        }
        changes.sort();
        let before = changes.iter().rev().find(|(at, _)| *at <= utc);
        before.expect("last year's changes").1
    }
}

impl Day {
    /// `seconds` after the day's midnight.
    fn at(&self, year: i32, seconds: i64) -> NaiveDateTime {
        let first = |month| NaiveDate::from_ymd_opt(year, month, 1).expect("a month");
        let date = match *self {
            Self::Month {
                month,
                week,
                weekday,
            } => {
                let same = first(month)
                    .iter_days()
                    .take_while(|d| d.month() == month)
                    .filter(|d| d.weekday().num_days_from_sunday() == weekday)
                    .collect::<Vec<_>>();
                same[same.len().min(week as usize) - 1]
            }
            Self::Julian(n) => {
                let leap_day = first(1).leap_year() && n >= 60;
                first(1) + Duration::days(n - 1 + i64::from(leap_day))
            }
            Self::Zero(n) => first(1) + Duration::days(n),
        };
        date.and_hms_opt(0, 0, 0).expect("midnight") + Duration::seconds(seconds)
    }
}

/// Converts the wall times of a file into instants, row by row.
#[derive(Default)]
struct Clock {
    previous: Option<DateTime<Utc>>,
    /// All positive steps of the document so far.
    steps: Vec<Duration>,
    /// The document has rows.
    has_begun: bool,
}

impl Clock {
    fn begin_document(&mut self) {
        self.steps.clear();
        self.has_begun = false;
    }

    fn instant(&mut self, zone: &Zone, wall: NaiveDateTime) -> DateTime<Utc> {
        let instant = self.choose(&zone.instants_of(wall));
        if let Some(previous) = self.previous
            && self.has_begun
            && instant > previous
        {
            self.steps.push(instant - previous);
        }
        self.previous = Some(instant);
        self.has_begun = true;
        instant
    }

    fn choose(&self, candidates: &[DateTime<Utc>]) -> DateTime<Utc> {
        let Some(previous) = self.previous else {
            return candidates[0];
        };
        // A row of the document before counts if it is older, by 26 h at most.
        let is_recent = *candidates.last().expect("an instant") >= previous
            && candidates[0] - previous <= Duration::hours(26);
        if !self.has_begun && !is_recent {
            return candidates[0];
        }
        let step = self.steps.iter().rev().take(2).min().copied();
        let due = previous + step.unwrap_or_default();
        // min_by_key returns the first of equals, which is the earlier one
        *candidates
            .iter()
            .min_by_key(|c| (**c - due).abs())
            .expect("a wall time has at least one instant")
    }
}

mod tests {
    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    fn wall(text: &str) -> NaiveDateTime {
        text.parse().expect("a wall time")
    }

    #[test]
    fn a_wall_time_of_the_autumn_night_has_two_instants() {
        assert_eq!(
            Zone::Named(chrono_tz::Europe::Paris).instants_of(wall("2025-10-26T02:30:00")),
            [utc("2025-10-26T00:30:00Z"), utc("2025-10-26T01:30:00Z")]
        );
        assert_eq!(
            Zone::Named(chrono_tz::Australia::Lord_Howe).instants_of(wall("2025-04-06T01:45:00")),
            [utc("2025-04-05T14:45:00Z"), utc("2025-04-05T15:15:00Z")]
        );
    }

    #[test]
    fn a_skipped_wall_time_uses_the_offset_before_the_change() {
        assert_eq!(
            Zone::Named(chrono_tz::Europe::Paris).instants_of(wall("2025-03-30T02:30:00")),
            [utc("2025-03-30T01:30:00Z")]
        );
    }

    #[test]
    fn numbers_are_those_of_the_grammar() {
        for (text, value) in [
            ("+5", 5.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("1E3", 1000.0),
            ("-1.5e-1", -0.15),
        ] {
            assert_eq!(number(text.as_bytes()), Some(value), "{text}");
        }
        for text in [
            "", ".", "+", "1e", "1,5", "0x1", "nan", "inf", "1e999", "1 0", "1_0",
        ] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn posix_zones_have_the_offsets_of_the_zones_that_they_describe() {
        use chrono_tz::Tz;
        let zones = [
            ("CET-1CEST,M3.5.0,M10.5.0/3", Tz::Europe__Paris),
            ("<+04>-4", Tz::Indian__Reunion),
            ("EST5EDT,M3.2.0,M11.1.0", Tz::America__New_York),
            (
                "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
                Tz::Australia__Lord_Howe,
            ),
            ("<-02>2<-01>,M3.5.0/-1,M10.5.0/0", Tz::America__Nuuk),
            ("IST-1GMT0,M10.5.0,M3.5.0/1", Tz::Europe__Dublin),
        ];
        for (text, tz) in zones {
            let zone = Zone::Posix(Posix::parse(text).expect(text));
            let start = wall("2025-01-01T00:00:00");
            for hours in 0..365 * 24 {
                let utc = start + Duration::hours(hours);
                assert_eq!(
                    zone.offset_at(utc),
                    Zone::Named(tz).offset_at(utc),
                    "{text} {utc}"
                );
            }
        }
        for text in [
            "",
            "Mars/Olympus",
            "CET",
            "CE-1",
            "CET-1CEST",
            "CET-1CEST,M3.5.0",
            "CET-1x",
        ] {
            assert!(Posix::parse(text).is_none(), "{text}");
        }
    }
}
