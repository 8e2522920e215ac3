//! Writes catalogues: a new one, and new channels at the end of an existing one.

use super::guess;
use super::known::{KnownChannel, KnownChannels};
use super::problem::Problems;
use super::table::{Column, MAX_ENTRIES, Row, Table, with_apostrophe};
use super::text::{self, MARK, MAX_SIZE};
use std::borrow::Cow;
use std::collections::HashSet;

/// The end of a line as spreadsheets write it.
const LINE_END: &str = "\r\n";

/// A catalogue with the channels that it lacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extended {
    /// The text; `None` if there is nothing to add.
    pub text: Option<Vec<u8>>,
    /// The number of lines that were added.
    pub added: usize,
    /// The number of lines that were there.
    pub before: usize,
    /// The number of channels that were not added, because the catalogue would have too many lines or be too large.
    pub left_out: usize,
}

/// Adds the known channels that a catalogue lacks at its end. Its own lines stay as they are, byte for byte if it is UTF-8.
///
/// # Errors
/// The catalogue has problems, so that it is unknown what it lacks.
pub fn extend(existing: Option<&[u8]>, known: &KnownChannels) -> Result<Extended, Problems> {
    let table = existing.map(Table::read).transpose()?;
    let columns = table
        .as_ref()
        .map_or(&Column::ALL[..], |table| &table.columns);
    let rows = table.as_ref().map_or(&[][..], |table| &table.rows);
    let ids: HashSet<&str> = rows.iter().map(|row| row.cell(Column::ChannelId)).collect();
    let channels = known.sorted();
    let guesses = guess::circuits(&channels);
    let missing: Vec<_> = channels
        .iter()
        .filter(|channel| !ids.contains(channel.id.trim()))
        .collect();
    let mut extended = Extended {
        text: None,
        added: 0,
        before: rows.len(),
        left_out: missing.len(),
    };
    if missing.is_empty() && existing.is_some() {
        return Ok(extended);
    }
    let mut text = MARK.to_owned();
    if let Some(existing) = existing {
        // It was decoded before.
        let existing = text::decode(existing).map_err(Problems::of_file)?;
        text.push_str(&existing);
        if !text.ends_with(['\n', '\r']) {
            text.push_str(LINE_END);
        }
    } else {
        let titles = columns.iter().map(|column| Cow::Borrowed(column.title()));
        push_line(&mut text, titles);
    }
    // What is written here must be readable.
    let mut line = String::new();
    for channel in missing.iter().take(MAX_ENTRIES.saturating_sub(rows.len())) {
        line.clear();
        let guess = guesses.get(channel.id.as_str());
        push_row(&mut line, columns, &row(channel, guess));
        if text.len() + line.len() > MAX_SIZE {
            break;
        }
        text.push_str(&line);
        extended.added += 1;
    }
    extended.left_out -= extended.added;
    if extended.added > 0 || existing.is_none() {
        extended.text = Some(text.into_bytes());
    }
    Ok(extended)
}

/// The line of a new channel.
fn row(channel: &KnownChannel, guess: Option<&(&str, &'static str)>) -> Row {
    let mut row = Row::new(0);
    for (column, text) in [
        (Column::ChannelId, &channel.id),
        (Column::Device, &channel.device),
        (Column::Channel, &channel.channel),
        (Column::Unit, &channel.unit),
    ] {
        row.set(column, text.trim());
    }
    if let Some((circuit, phase)) = guess
        && circuit.chars().count() <= Column::Circuit.limit()
    {
        row.set(Column::Circuit, circuit);
        row.set(Column::Phase, phase);
    }
    row
}

impl Table {
    /// The lines as a new file, with all columns.
    pub(super) fn to_text(&self) -> Vec<u8> {
        let mut text = MARK.to_owned();
        let titles = Column::ALL.map(|column| Cow::Borrowed(column.title()));
        push_line(&mut text, titles.into_iter());
        for row in &self.rows {
            push_row(&mut text, &Column::ALL, row);
        }
        text.into_bytes()
    }
}

fn push_row(text: &mut String, columns: &[Column], row: &Row) {
    let cells = columns.iter().map(|column| {
        let cell = row.cell(*column);
        if column.is_text() {
            with_apostrophe(cell)
        } else {
            cell.into()
        }
    });
    push_line(text, cells);
}

/// Appends a line. Cells with separators or quotation marks are quoted.
fn push_line<'a>(text: &mut String, cells: impl Iterator<Item = Cow<'a, str>>) {
    for (n, cell) in cells.enumerate() {
        if n > 0 {
            text.push(';');
        }
        if cell.contains([';', '"', '\r', '\n']) {
            text.push('"');
            text.push_str(&cell.replace('"', "\"\""));
            text.push('"');
        } else {
            text.push_str(&cell);
        }
    }
    text.push_str(LINE_END);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::KnownChannel;

    fn known(channels: &[(&str, &str, &str, &str)]) -> KnownChannels {
        let mut known = KnownChannels::default();
        for (id, device, channel, unit) in channels {
            known.add(
                0,
                KnownChannel {
                    id: (*id).to_owned(),
                    device: (*device).to_owned(),
                    channel: (*channel).to_owned(),
                    unit: (*unit).to_owned(),
                },
            );
        }
        known
    }

    fn channels() -> KnownChannels {
        known(&[
            ("M02_Ch1_M02", "02", "Ph 1", "V"),
            ("M02_Ch2_M02", "02", "-D39L1", "W"),
            ("M02_Ch3_M02", "02", "-D39L2", "W"),
            ("M02_Ch4_M02", "02", "-D39L3", "W"),
            ("S04_Ch1_M02", "04", "a;\"b\"", ""),
        ])
    }

    const TITLES: &str = "\u{feff}channel_id;device;channel;unit;name;circuit;phase;role;hidden;formula;continues\r\n";

    fn text(extended: &Extended) -> String {
        String::from_utf8(extended.text.clone().unwrap()).unwrap()
    }

    #[test]
    fn a_new_catalogue_has_all_channels_with_guesses() {
        let found = extend(None, &channels()).unwrap();
        let expected = format!(
            "{TITLES}M02_Ch1_M02;02;Ph 1;V;;;;;;;\r\n\
             M02_Ch2_M02;02;'-D39L1;W;;'-D39;L1;;;;\r\n\
             M02_Ch3_M02;02;'-D39L2;W;;'-D39;L2;;;;\r\n\
             M02_Ch4_M02;02;'-D39L3;W;;'-D39;L3;;;;\r\n\
             S04_Ch1_M02;04;\"a;\"\"b\"\"\";;;;;;;;\r\n"
        );
        assert_eq!(text(&found), expected);
        assert_eq!((found.added, found.before), (5, 0));
        let again = extend(Some(expected.as_bytes()), &channels()).unwrap();
        assert_eq!(
            again,
            Extended {
                text: None,
                added: 0,
                before: 5,
                left_out: 0,
            }
        );
        assert_eq!(text(&extend(None, &known(&[])).unwrap()), TITLES);
    }

    #[test]
    fn new_channels_are_added_in_the_columns_of_an_existing_catalogue_whose_lines_stay() {
        let header = "Unit;CHANNEL_ID;device;channel;name;hidden;role;phase;circuit";
        let lines =
            "V ; M02_Ch1_M02;x;y;\"Tension \"\"1\"\"\";no;;;\n\n;;;;;;;;\nW;S04_Ch1_M02;;;Four;;;;";
        let existing = format!("{header}\n{lines}");
        let found = extend(Some(existing.as_bytes()), &channels()).unwrap();
        let new = "W;M02_Ch2_M02;02;'-D39L1;;;;L1;'-D39\r\n\
                   W;M02_Ch3_M02;02;'-D39L2;;;;L2;'-D39\r\n\
                   W;M02_Ch4_M02;02;'-D39L3;;;;L3;'-D39\r\n";
        assert_eq!(text(&found), format!("\u{feff}{existing}\r\n{new}"));
        assert_eq!((found.added, found.before), (3, 2));
    }

    #[test]
    fn a_catalogue_in_windows_1252_becomes_utf_8() {
        let mut existing = TITLES.trim_start_matches('\u{feff}').as_bytes().to_vec();
        existing.extend_from_slice(b"M02_Ch1_M02;;;;Entr\xe9e;;;;;;\r\n");
        let one = known(&[("M02_Ch1_M02", "", "", ""), ("S04_Ch1_M02", "04", "x", "W")]);
        let found = text(&extend(Some(&existing), &one).unwrap());
        let lines = "M02_Ch1_M02;;;;Entrée;;;;;;\r\nS04_Ch1_M02;04;x;W;;;;;;;\r\n";
        assert_eq!(found, format!("{TITLES}{lines}"));
    }

    #[test]
    fn a_catalogue_that_cannot_be_read_is_not_extended() {
        let problems = extend(Some(b"channel_id;name\r\n"), &channels()).unwrap_err();
        assert_eq!(problems.len(), 1);
    }
}
