//! A second, simple reader of logger files, written from the specification alone. It reads a whole file into memory.
//! The tests compare the program's results with those of this reader.

use chrono::{DateTime, Duration, NaiveDate, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;
use serde_json::Value;
use std::collections::BTreeMap;

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
    pub nb_channels: u64,
    pub nb_invalid_timestamps: u64,
    pub nb_invalid_values: u64,
    pub nb_malformed_rows: u64,
    pub truncated: bool,
    pub headed: bool,
    pub file_header_meta: Option<Value>,
    /// Per `channel_id`.
    pub channels: BTreeMap<String, Channel>,
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
}

/// Why a file has no points. The program's messages differ.
pub type Refusal = &'static str;

/// The zone to use if the file's header names none.
pub fn read(bytes: &[u8], campaign: &str, fallback: Tz) -> Result<Whole, Refusal> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.is_empty() {
        return Err("the file is empty");
    }
    let mut lines = lines_of(bytes);
    let mut whole = Whole::default();
    let mut zone = Some(fallback);

    if is(&lines[0].bytes, "START_HEADER") {
        whole.headed = true;
        let end = lines
            .iter()
            .position(|l| is(&l.bytes, "END_HEADER"))
            .ok_or("the header is never closed")?;
        let json: Vec<u8> = lines[1..end]
            .iter()
            .flat_map(|l| l.bytes.iter().copied().chain([b'\n']))
            .collect();
        whole.file_header_meta = serde_json::from_slice(&json).ok();
        if let Some(meta) = &whole.file_header_meta {
            let text = |key: &str| meta.get(key).and_then(Value::as_str);
            if text("DataTimeSettings") == Some("UTC") {
                zone = None;
            } else if let Some(named) = text("TimeZoneName").and_then(|n| n.parse().ok()) {
                zone = Some(named);
            }
        }
        lines.drain(..=end);
        if lines.is_empty() || !is(&lines[0].bytes, "START_DATA") {
            return Err("no START_DATA after the header");
        }
        lines.remove(0);
        match lines.iter().position(|l| is(&l.bytes, "END_DATA")) {
            Some(end) => lines.truncate(end),
            None => whole.truncated = true,
        }
    } else {
        whole.truncated = lines.last().is_some_and(|l| !l.ended);
    }

    if lines.len() < 2 {
        return Err("no header lines");
    }
    let serials = header_cells(&lines[0].bytes);
    let labels = header_cells(&lines[1].bytes);
    if !["MV_T302_V002", "MV_T302_V003"].contains(&labels[0].as_str()) {
        return Err("unknown marker");
    }
    if serials.len() != labels.len() {
        return Err("header lines of different length");
    }
    if serials.len() < 2 {
        return Err("no channel");
    }
    for cell in serials.iter().chain(&labels) {
        if cell.is_empty() {
            return Err("an empty serial or label");
        }
        if cell.chars().any(char::is_control) {
            return Err("a control character in a serial or label");
        }
    }
    let master = serials[0].clone();
    let columns = serials.len() - 1;
    whole.nb_channels = columns as u64;

    let mut tags_of = Vec::new();
    for i in 1..=columns {
        let serial = &serials[i];
        let number = serials[1..=i].iter().filter(|s| *s == serial).count();
        let (kind, letter) = if *serial == master {
            ("master", "M")
        } else {
            ("slave", "S")
        };
        let id = format!("{letter}{serial}_Ch{number}_M{master}");
        let (name, unit) = labels[i].rsplit_once(' ').unwrap_or((&labels[i], ""));
        whole.channels.insert(
            id.clone(),
            Channel {
                channel_name: name.to_owned(),
                unit: unit.to_owned(),
                values: Vec::new(),
            },
        );
        let tags: BTreeMap<String, String> = [
            ("campaign", campaign),
            ("channel_id", &id),
            ("channel_name", name),
            ("channel_number", &number.to_string()),
            ("channel_type", kind),
            ("device", serial),
            ("device_master_sn", &master),
            ("device_sn", serial),
            ("unit", unit),
        ]
        .iter()
        .map(|(k, v)| (k.to_string(), v.trim_end_matches('\\').to_owned()))
        .filter(|(_, v)| !v.is_empty())
        .collect();
        tags_of.push((id.clone(), tags));
    }

    let mut clock = Clock::new(zone);
    for line in &lines[2..] {
        let mut cells: Vec<&[u8]> = line.bytes.split(|b| *b == b'\t').map(trim_spaces).collect();
        if !line.ended {
            // The text after the last tab may be incomplete.
            *cells.last_mut().expect("split gives at least one") = b"";
            whole.truncated = true;
        } else if cells.iter().all(|c| c.is_empty()) {
            continue; // blank lines are skipped
        }
        if cells.iter().filter(|c| !c.is_empty()).count() > columns + 1 {
            whole.nb_malformed_rows += 1;
            continue;
        }
        let Some(wall) = wall_time(cells[0]) else {
            whole.nb_invalid_timestamps += 1;
            continue;
        };
        let epoch = clock.instant(wall).timestamp();
        whole.nb_rows += 1;
        for (i, (id, tags)) in tags_of.iter().enumerate() {
            match cells.get(i + 1).and_then(|cell| number(cell)) {
                None => whole.nb_invalid_values += 1,
                Some(value) => {
                    let channel = whole.channels.get_mut(id).expect("known");
                    channel.values.push(value);
                    whole.points.push(Point {
                        measurement: campaign.to_owned(),
                        tags: tags.clone(),
                        value,
                        epoch,
                    });
                }
            }
        }
    }
    if whole.points.is_empty() {
        return Err("no valid point");
    }
    Ok(whole)
}

struct Line {
    bytes: Vec<u8>,
    /// The line ends in a line break.
    ended: bool,
}

fn lines_of(bytes: &[u8]) -> Vec<Line> {
    let mut parts: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
    let rest = parts.pop().expect("split gives at least one");
    let mut lines: Vec<Line> = parts
        .into_iter()
        .map(|l| Line {
            bytes: l.strip_suffix(b"\r").unwrap_or(l).to_vec(),
            ended: true,
        })
        .collect();
    if !rest.is_empty() {
        lines.push(Line {
            bytes: rest.to_vec(),
            ended: false,
        });
    }
    lines
}

fn is(line: &[u8], word: &str) -> bool {
    let text = String::from_utf8_lossy(line);
    text.trim_end_matches([' ', '\t', '\r']) == word
}

fn header_cells(line: &[u8]) -> Vec<String> {
    let mut text = String::new();
    for chunk in line.utf8_chunks() {
        text.push_str(chunk.valid());
        let (western, _) = encoding_rs::WINDOWS_1252.decode_without_bom_handling(chunk.invalid());
        text.push_str(&western);
    }
    text.trim_end_matches([' ', '\t'])
        .split('\t')
        .map(|cell| cell.trim_matches(' ').to_owned())
        .collect()
}

fn trim_spaces(mut cell: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = cell {
        cell = rest;
    }
    while let [rest @ .., b' '] = cell {
        cell = rest;
    }
    cell
}

/// Parses `DD/MM/YY HH:MM:SS`.
fn wall_time(cell: &[u8]) -> Option<NaiveDateTime> {
    let shape = b"00/00/00 00:00:00";
    let fits = |(c, s): (&u8, &u8)| {
        if *s == b'0' {
            c.is_ascii_digit()
        } else {
            c == s
        }
    };
    if cell.len() != shape.len() || !cell.iter().zip(shape).all(fits) {
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

/// Converts the wall times of a file into instants, row by row.
struct Clock {
    /// None: the file's times are UTC.
    zone: Option<Tz>,
    previous: Option<DateTime<Utc>>,
    /// All positive steps so far.
    steps: Vec<Duration>,
}

impl Clock {
    fn new(zone: Option<Tz>) -> Self {
        Self {
            zone,
            previous: None,
            steps: Vec::new(),
        }
    }

    fn instant(&mut self, wall: NaiveDateTime) -> DateTime<Utc> {
        let instant = match self.zone {
            None => wall.and_utc(),
            Some(zone) => self.choose(&instants_of(zone, wall)),
        };
        if let Some(previous) = self.previous
            && instant > previous
        {
            self.steps.push(instant - previous);
        }
        self.previous = Some(instant);
        instant
    }

    fn choose(&self, candidates: &[DateTime<Utc>]) -> DateTime<Utc> {
        let Some(previous) = self.previous else {
            return candidates[0];
        };
        let step = self.steps.iter().rev().take(2).min().copied();
        let due = previous + step.unwrap_or_default();
        // min_by_key returns the first of equals, which is the earlier one
        *candidates
            .iter()
            .min_by_key(|c| (**c - due).abs())
            .expect("a wall time has at least one instant")
    }
}

/// All instants at which the clocks of `zone` showed `wall`, earliest first; where the spring change skips it, the one
/// that the offset before the change gives. Found by trying the offsets that were in force around it.
fn instants_of(zone: Tz, wall: NaiveDateTime) -> Vec<DateTime<Utc>> {
    let offset_at =
        |utc: NaiveDateTime| zone.offset_from_utc_datetime(&utc).fix().local_minus_utc();
    let mut found: Vec<DateTime<Utc>> = (-30..=30)
        .map(|hours| offset_at(wall + Duration::hours(hours)))
        .map(|offset| wall - Duration::seconds(i64::from(offset)))
        .filter(|utc| *utc + Duration::seconds(i64::from(offset_at(*utc))) == wall)
        .map(|utc| utc.and_utc())
        .collect();
    found.sort();
    found.dedup();
    if found.is_empty() {
        let before = offset_at(wall - Duration::hours(30));
        found.push((wall - Duration::seconds(i64::from(before))).and_utc());
    }
    found
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
            instants_of(chrono_tz::Europe::Paris, wall("2025-10-26T02:30:00")),
            [utc("2025-10-26T00:30:00Z"), utc("2025-10-26T01:30:00Z")]
        );
        assert_eq!(
            instants_of(chrono_tz::Australia::Lord_Howe, wall("2025-04-06T01:45:00")),
            [utc("2025-04-05T14:45:00Z"), utc("2025-04-05T15:15:00Z")]
        );
    }

    #[test]
    fn a_skipped_wall_time_uses_the_offset_before_the_change() {
        assert_eq!(
            instants_of(chrono_tz::Europe::Paris, wall("2025-03-30T02:30:00")),
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
}
