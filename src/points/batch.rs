//! A request body that grows row by row, compressed as it grows: what is held is a few kilobytes a thousand points.

use crate::logger_file::Row;
use crate::points::{SeriesPrefix, TimeRange, append_row};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use std::io::{Read as _, Write as _};

/// Lines are handed to the compressor in blocks of about this size, in bytes.
const BLOCK: usize = 64 * 1024;

/// An uncompressed body ends at about this size, in bytes, whatever its number of lines.
const MAX_PLAIN: usize = 1 << 20;

/// How bodies are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Compress with gzip, level 1: the server reads it at no cost, and higher levels gain little.
    pub gzip: bool,
    /// Points a body, at most (the last row may exceed it).
    pub lines: u32,
}

/// A finished body.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Line protocol, compressed if `gzip`.
    pub body: Bytes,
    /// Whether `body` is compressed.
    pub gzip: bool,
    /// How many points it holds.
    pub lines: u32,
    /// From the first to the last instant in it.
    pub span: TimeRange,
}

impl Batch {
    /// Ready-made lines, not compressed.
    pub fn plain(lines: Vec<u8>, count: u32) -> Self {
        Self {
            body: lines.into(),
            gzip: false,
            lines: count,
            span: i64::MIN..=i64::MAX,
        }
    }

    /// The lines as text.
    ///
    /// # Errors
    /// Those of the decompressor; none on a body made here.
    pub fn text(&self) -> std::io::Result<Vec<u8>> {
        if !self.gzip {
            return Ok(self.body.to_vec());
        }
        let mut text = Vec::new();
        GzDecoder::new(self.body.as_ref()).read_to_end(&mut text)?;
        Ok(text)
    }

    /// The first and the second half, for a server that finds the whole too large; none where there is but one line.
    ///
    /// # Errors
    /// Those of the decompressor; none on a body made here.
    pub fn halves(&self) -> std::io::Result<Option<(Self, Self)>> {
        let text = self.text()?;
        let half = self.lines / 2;
        let middle = memchr::memchr_iter(b'\n', &text).nth((half as usize).wrapping_sub(1));
        let Some(middle) = middle.filter(|_| half > 0) else {
            return Ok(None);
        };
        let (first, second) = text.split_at(middle + 1);
        let part = |text: &[u8], lines| -> std::io::Result<Self> {
            Ok(Self {
                body: if self.gzip {
                    compressed(text)?
                } else {
                    text.to_vec()
                }
                .into(),
                gzip: self.gzip,
                lines,
                span: self.span.clone(),
            })
        };
        Ok(Some((part(first, half)?, part(second, self.lines - half)?)))
    }
}

/// Line protocol, compressed as [`BatchOptions::gzip`] says.
///
/// # Errors
/// None in memory.
pub fn compressed(text: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text)?;
    encoder.finish()
}

/// Collects rows into bodies.
pub struct BatchBuilder {
    shape: BatchOptions,
    pending: Vec<u8>,
    encoder: Option<GzEncoder<Vec<u8>>>,
    lines: u32,
    span: Option<(i64, i64)>,
}

impl BatchBuilder {
    /// An empty one.
    pub fn new(shape: BatchOptions) -> Self {
        Self {
            shape,
            pending: Vec::with_capacity(BLOCK + BLOCK / 8),
            encoder: None,
            lines: 0,
            span: None,
        }
    }

    /// Adds the points of a row.
    ///
    /// # Errors
    /// Those of the compressor; none in memory.
    pub fn push(&mut self, prefixes: &[SeriesPrefix], row: &Row<'_>) -> std::io::Result<()> {
        let points = append_row(&mut self.pending, prefixes, row);
        if points > 0 {
            self.lines += points;
            let (first, last) = self.span.unwrap_or((row.time, row.time));
            self.span = Some((first.min(row.time), last.max(row.time)));
        }
        if self.shape.gzip && self.pending.len() >= BLOCK {
            self.compress_pending()?;
        }
        Ok(())
    }

    /// Whether it is time to [`BatchBuilder::take`].
    pub fn is_full(&self) -> bool {
        self.lines >= self.shape.lines || (!self.shape.gzip && self.pending.len() >= MAX_PLAIN)
    }

    /// The body so far, none if it has no line; the builder is empty afterwards.
    ///
    /// # Errors
    /// Those of the compressor; none in memory.
    pub fn take(&mut self) -> std::io::Result<Option<Batch>> {
        let Some((first, last)) = self.span.take() else {
            return Ok(None);
        };
        let body = if self.shape.gzip {
            self.compress_pending()?;
            match self.encoder.take() {
                Some(encoder) => encoder.finish()?,
                None => Vec::new(),
            }
        } else {
            std::mem::take(&mut self.pending)
        };
        Ok(Some(Batch {
            body: body.into(),
            gzip: self.shape.gzip,
            lines: std::mem::take(&mut self.lines),
            span: first..=last,
        }))
    }

    fn compress_pending(&mut self) -> std::io::Result<()> {
        let encoder = self
            .encoder
            .get_or_insert_with(|| GzEncoder::new(Vec::new(), Compression::fast()));
        encoder.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::Campaign;
    use crate::logger_file::LoggerFile;
    use std::ffi::OsStr;

    fn batches(gzip: bool, lines: u32, rows: usize) -> Vec<Batch> {
        let mut text = String::from("1\t1\t1\nMV_T302_V002\tA W\tB W\n");
        for row in 0..rows {
            text += &format!(
                "03/08/25 03:{:02}:{:02}\t{row}\t-{row}.5\n",
                row / 60,
                row % 60
            );
        }
        let mut file = LoggerFile::open(
            text.as_bytes(),
            &crate::time_zone::FileZones::built_in(chrono_tz::UTC),
        )
        .unwrap();
        let campaign = Campaign::new(OsStr::new("c")).unwrap();
        let prefixes: Vec<_> = file
            .channels()
            .list
            .iter()
            .map(|c| SeriesPrefix::new(&campaign, "1", c))
            .collect();
        let mut builder = BatchBuilder::new(BatchOptions { gzip, lines });
        let mut found = Vec::new();
        while let Some(row) = file.next_row().unwrap() {
            builder.push(&prefixes, &row).unwrap();
            if builder.is_full() {
                found.extend(builder.take().unwrap());
            }
        }
        found.extend(builder.take().unwrap());
        found
    }

    fn text(batches: &[Batch]) -> Vec<u8> {
        batches.iter().flat_map(|b| b.text().unwrap()).collect()
    }

    #[test]
    fn size_and_compression_of_batches_change_no_byte_of_the_lines() {
        let whole = text(&batches(false, 100_000, 700));
        for (gzip, lines) in [
            (true, 100_000),
            (true, 1),
            (true, 7),
            (false, 3),
            (true, 1400),
        ] {
            assert_eq!(text(&batches(gzip, lines, 700)), whole, "{gzip} {lines}");
        }
    }

    #[test]
    fn a_batch_knows_its_lines_and_its_span() {
        let found = batches(true, 4, 5);
        let shape: Vec<_> = found.iter().map(|b| (b.lines, b.span.clone())).collect();
        let t = 1_754_190_000;
        assert_eq!(
            shape,
            [(4, t..=t + 1), (4, t + 2..=t + 3), (2, t + 4..=t + 4)]
        );
    }

    #[test]
    fn halves_are_the_whole_and_one_line_has_none() {
        for gzip in [true, false] {
            let whole = &batches(gzip, 100, 5)[0];
            let (first, second) = whole.halves().unwrap().unwrap();
            assert_eq!((first.lines, second.lines), (5, 5));
            assert_eq!(
                text(&[first.clone(), second]),
                text(std::slice::from_ref(whole))
            );
            let (one, _) = first
                .halves()
                .unwrap()
                .unwrap()
                .0
                .halves()
                .unwrap()
                .unwrap();
            assert_eq!(one.lines, 1);
            assert_eq!(one.halves().unwrap(), None);
        }
    }
}
