//! The text of logger files.

use std::fmt::Display;

/// The header of `FileBuilder::default()`: one voltage of the master, one power of a slave.
pub const HEADER: &str = "02001171\t02001171\t04000466\nMV_T302_V002\tPh 1 V\tVoie1 W\n";

/// A file with a valid header and no valid row, which cannot be ingested.
pub fn bad_file() -> String {
    FileBuilder::default().line("rubbish").build()
}

/// A valid file of `rows` rows, ten minutes apart from 1 August 2025 on, with two channels. Values count up from
/// `from`.
pub fn good_file(from: u32, rows: u32) -> String {
    let mut file = FileBuilder::default();
    for i in 0..rows {
        let (value, minutes) = (from + i, i * 10);
        let day = minutes / 1440;
        file = file.line(format_args!(
            "{:02}/{:02}/25 {:02}:{:02}:00\t{value}.5\t-{value}.25",
            1 + day % 28,
            8 + day / 28,
            minutes / 60 % 24,
            minutes % 60,
        ));
    }
    file.build()
}

/// A valid file of one row, with these channels.
pub fn file_of_one_row(labels: impl IntoIterator<Item = impl Display>) -> String {
    let labels: Vec<_> = labels.into_iter().collect();
    let row = format!("03/08/25 03:20:00{}", "\t1.5".repeat(labels.len()));
    FileBuilder::with_channels(labels).line(row).build()
}

/// Wraps a table in the container with a JSON header.
pub fn headed(json: impl Display, table: &str) -> String {
    format!("START_HEADER\n{json}\nEND_HEADER\nSTART_DATA\n{table}END_DATA\n")
}

/// Builds the text of a plain file line by line.
pub struct FileBuilder {
    text: String,
}

/// A file with `HEADER`.
impl Default for FileBuilder {
    fn default() -> Self {
        Self {
            text: HEADER.to_owned(),
        }
    }
}

impl FileBuilder {
    /// A file of the same master as `HEADER`, with channels of the master only.
    pub fn with_channels(labels: impl IntoIterator<Item = impl Display>) -> Self {
        let (mut serials, mut header) = ("02001171".to_owned(), "MV_T302_V002".to_owned());
        for label in labels {
            serials += "\t02001171";
            header += &format!("\t{label}");
        }
        Self {
            text: format!("{serials}\n{header}\n"),
        }
    }

    /// Adds a line, which is usually a row: the time and the values, separated by tabs.
    pub fn line(mut self, line: impl Display) -> Self {
        self.text += &format!("{line}\n");
        self
    }

    pub fn lines(self, lines: impl IntoIterator<Item = impl Display>) -> Self {
        lines.into_iter().fold(self, Self::line)
    }

    pub fn build(self) -> String {
        self.text
    }
}
