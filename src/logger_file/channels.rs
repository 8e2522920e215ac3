//! Parses the two header lines of a table: the serials, then the format marker and the labels.
//! See docs/specification.md, section 2, "Channels".

use super::cells::trim_spaces;
use super::container::decode;
use super::{FormatError, MAX_CHANNELS, foreign};
use crate::sanitize::sanitize;
use std::collections::HashMap;

/// The supported format markers. To support a new marker with the same table format, add it here.
pub(crate) const MARKERS: [&str; 2] = ["MV_T302_V002", "MV_T302_V003"];

/// What all format markers of these loggers start with.
const MARKER_PREFIX: &[u8] = b"MV_T";

/// The maximum length of a serial or label in bytes. Each stands in several tags of each point.
const MAX_CELL: usize = 256;

/// The role of the device that a column belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The logger that wrote the file.
    Master,
    /// A device connected to the logger.
    Slave,
}

impl Role {
    /// The value of the tag `channel_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave => "slave",
        }
    }
}

/// One column of measurements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// The serial of the device that the column belongs to.
    pub serial: String,
    /// Master or slave.
    pub role: Role,
    /// The 1-based position among the columns of the same device.
    pub number: usize,
    /// `M<serial>_Ch<n>_M<master>` or `S<serial>_Ch<n>_M<master>`.
    pub id: String,
    /// The label up to its last run of spaces.
    pub name: String,
    /// The label after its last run of spaces; empty if it has no space.
    pub unit: String,
}

/// The content of the two header lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channels {
    /// The format marker.
    pub marker: &'static str,
    /// The serial of the master, which is the first cell of its line.
    pub master: String,
    /// The channels in column order, from the second column on.
    pub list: Vec<Channel>,
}

/// The supported marker that a trimmed cell is.
fn supported_marker(cell: &[u8]) -> Option<&'static str> {
    MARKERS.into_iter().find(|marker| marker.as_bytes() == cell)
}

/// Whether a trimmed cell is a format marker, supported or not.
pub(super) fn is_marker(cell: &[u8]) -> bool {
    cell.starts_with(MARKER_PREFIX)
}

/// Whether a cell contains a format marker.
pub(super) fn contains_marker(cell: &[u8]) -> bool {
    memchr::memmem::find(cell, MARKER_PREFIX).is_some()
}

/// The error of a line that has this trimmed cell instead of a supported marker.
pub(super) fn unknown_marker(cell: &[u8], line: u64) -> FormatError {
    FormatError::UnknownMarker {
        line,
        found: sanitize(decode(&cell[..cell.len().min(80)])),
    }
}

impl Channels {
    /// No channels, before the first header is read.
    pub(super) fn none() -> Self {
        Self {
            marker: "",
            master: String::new(),
            list: Vec::new(),
        }
    }

    /// Builds the channels from the cells of the two header lines. Each line comes with its 1-based number, for
    /// messages.
    ///
    /// # Errors
    /// An unknown marker, lines of different length, no channel or too many, and a cell that is empty, too long or
    /// contains a control character.
    pub fn new(
        (serials, serials_line): (&[&[u8]], u64),
        (labels, line): (&[&[u8]], u64),
    ) -> Result<Self, FormatError> {
        let (serials, labels) = (trim_cells(serials), trim_cells(labels));
        let first = labels.first().copied().unwrap_or_default();
        let Some(marker) = supported_marker(first) else {
            let mut after = MARKERS
                .iter()
                .filter_map(|m| first.strip_prefix(m.as_bytes()));
            if let Some(format) = after.find_map(foreign::format_of_table) {
                return Err(FormatError::ForeignTable { line, format });
            }
            return Err(unknown_marker(first, line));
        };
        if serials.len() != labels.len() {
            return Err(FormatError::LengthsDiffer {
                line,
                serials: serials.len(),
                labels: labels.len(),
            });
        }
        let found = serials.len() - 1;
        if found == 0 {
            return Err(FormatError::NoChannel { line });
        }
        if found > MAX_CHANNELS {
            return Err(FormatError::TooManyChannels { line, found });
        }
        let serials = decode_cells(&serials, serials_line, |line, column| {
            FormatError::EmptySerial { line, column }
        })?;
        let labels = decode_cells(&labels, line, |line, column| FormatError::EmptyLabel {
            line,
            column,
        })?;
        let master = serials[0].clone();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let list = serials[1..]
            .iter()
            .zip(&labels[1..])
            .map(|(serial, label)| {
                let number = numbers.entry(serial).or_default();
                *number += 1;
                Channel::new(serial, label, &master, *number)
            })
            .collect();
        Ok(Self {
            marker,
            master,
            list,
        })
    }
}

impl Channel {
    fn new(serial: &str, label: &str, master: &str, number: usize) -> Self {
        let (role, letter) = if serial == master {
            (Role::Master, 'M')
        } else {
            (Role::Slave, 'S')
        };
        let (name, unit) = label.rsplit_once(' ').unwrap_or((label, ""));
        let name = name.trim_end_matches(' ');
        Self {
            serial: serial.to_owned(),
            role,
            number,
            id: format!("{letter}{serial}_Ch{number}_M{master}"),
            name: name.to_owned(),
            unit: unit.to_owned(),
        }
    }
}

/// Trims each cell and removes empty cells at the end, so that trailing tabs and spaces of a header line are ignored.
fn trim_cells<'a>(cells: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut cells: Vec<_> = cells.iter().map(|cell| trim_spaces(cell)).collect();
    while cells.last().is_some_and(|cell| cell.is_empty()) {
        cells.pop();
    }
    cells
}

/// Checks and decodes the cells of a header line. `empty` makes the error for an empty cell.
fn decode_cells(
    cells: &[&[u8]],
    line: u64,
    empty: impl Fn(u64, usize) -> FormatError,
) -> Result<Vec<String>, FormatError> {
    cells
        .iter()
        .enumerate()
        .map(|(index, cell)| {
            let column = index + 1;
            if cell.is_empty() {
                return Err(empty(line, column));
            }
            if cell.len() > MAX_CELL {
                return Err(FormatError::CellTooLong {
                    line,
                    column,
                    length: cell.len(),
                    max: MAX_CELL,
                });
            }
            let text = decode(cell).replace(['\u{a0}', '\u{2007}', '\u{202f}'], " ");
            match text
                .chars()
                .find(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
            {
                Some(found) => Err(FormatError::ControlCharacter {
                    line,
                    column,
                    found: found.escape_default().to_string(),
                }),
                None => Ok(text),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels(serials: &str, labels: &str) -> Result<Channels, FormatError> {
        let split = |line: &'static str| line.split('\t').map(str::as_bytes).collect::<Vec<_>>();
        Channels::new(
            (&split(serials.to_owned().leak()), 1),
            (&split(labels.to_owned().leak()), 2),
        )
    }

    #[test]
    fn a_table_of_a_spreadsheet_is_called_by_its_name() {
        for (serials, labels, name) in [
            ("1;1", "MV_T302_V002;A W", "semicolons"),
            ("1,1", "MV_T302_V003,A W", "commas"),
        ] {
            let message = channels(serials, labels).unwrap_err().to_string();
            assert!(
                message.contains("line 2: ") && message.contains(name),
                "{message}"
            );
        }
        for labels in ["MV_T302_V004;A W", "MV_T302_V002 ;A W"] {
            let error = channels("1;1", labels).unwrap_err();
            let is_unknown = matches!(error, FormatError::UnknownMarker { .. });
            assert_eq!(is_unknown, labels.contains("V004"), "{labels}");
        }
    }

    #[test]
    fn columns_are_numbered_per_device() {
        let found = channels(
            "10\t10\t10\t20\t10\t20",
            "MV_T302_V002\tPh 1 V\tA W\tA W\tB W\tC",
        )
        .unwrap();
        let ids: Vec<_> = found.list.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(
            ids,
            [
                "M10_Ch1_M10",
                "M10_Ch2_M10",
                "S20_Ch1_M10",
                "M10_Ch3_M10",
                "S20_Ch2_M10"
            ]
        );
        let first = &found.list[0];
        assert_eq!(
            (first.name.as_str(), first.unit.as_str(), first.role),
            ("Ph 1", "V", Role::Master)
        );
        let last = &found.list[4];
        assert_eq!(
            (last.name.as_str(), last.unit.as_str(), last.role),
            ("C", "", Role::Slave)
        );
    }

    #[test]
    fn an_unknown_marker_is_named_with_the_supported_ones() {
        let message = channels("1\t1", "MV_T202_V002\tA W")
            .unwrap_err()
            .to_string();
        for part in ["MV_T202_V002", "MV_T302_V002", "MV_T302_V003"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_label_is_split_at_its_last_run_of_spaces_of_any_kind() {
        for label in [
            "Ph 1  V",
            "Ph 1\u{a0}V",
            "\u{a0}Ph 1 \u{202f}V\u{a0}",
            "Ph\u{a0}1 V",
        ] {
            let found = channels("1\t1", &format!("MV_T302_V002\t{label}")).unwrap();
            let channel = &found.list[0];
            assert_eq!(
                (channel.name.as_str(), channel.unit.as_str()),
                ("Ph 1", "V"),
                "{label:?}"
            );
        }
    }

    #[test]
    fn trailing_tabs_and_spaces_of_a_header_line_are_ignored() {
        assert_eq!(
            channels("1\t1 \t \t", "MV_T302_V003\tA W\t").unwrap(),
            channels("1\t1", "MV_T302_V003\tA W").unwrap()
        );
    }

    #[test]
    fn each_defect_has_its_own_error() {
        use FormatError as E;
        let m = "MV_T302_V002";
        let error = |serials: &str, labels: &str| channels(serials, labels).unwrap_err();
        assert!(matches!(error("1", m), E::NoChannel { .. }));
        assert!(matches!(
            error("1\t1\t1", &format!("{m}\tA W")),
            E::LengthsDiffer {
                serials: 3,
                labels: 2,
                ..
            }
        ));
        assert!(matches!(
            error("1\t\t1", &format!("{m}\tA W\tB W")),
            E::EmptySerial { column: 2, .. }
        ));
        assert!(matches!(
            error("\t1\t1", &format!("{m}\tA W\tB W")),
            E::EmptySerial { column: 1, .. }
        ));
        assert!(matches!(
            error("1\t1\t1", &format!("{m}\t \tB W")),
            E::EmptyLabel { column: 2, .. }
        ));
        assert!(matches!(
            error("1\t1", &format!("{m}\tA\u{1}B W")),
            E::ControlCharacter { column: 2, .. }
        ));
        assert!(matches!(
            error("1\t1", &format!("{m}\t{} W", "x".repeat(MAX_CELL))),
            E::CellTooLong { column: 2, .. }
        ));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_decoded_as_windows_1252() {
        let found = Channels::new(
            (&[b"1", b"1"], 1),
            (&[b"MV_T302_V002", b"Cuisine \xe9t\xe9 \x80"], 2),
        )
        .unwrap();
        assert_eq!(
            (found.list[0].name.as_str(), found.list[0].unit.as_str()),
            ("Cuisine été", "€")
        );
    }
}
