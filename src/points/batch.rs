//! Builds request bodies row by row. Bodies are compressed while they grow, so that memory use stays small.

use crate::logger_file::Row;
use crate::points::line_protocol::append_values;
use crate::points::{SeriesPrefix, TimeRange};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use std::collections::HashMap;
use std::io::{Read as _, Write as _};

/// The size of the blocks that are passed to the compressor, in bytes.
const BLOCK: usize = 64 * 1024;

/// The approximate maximum size of an uncompressed body, in bytes. It applies in addition to the maximum number of
/// points.
const MAX_PLAIN: usize = 1 << 20;

/// Options for building batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Compress with gzip at level 1. Higher levels gain little.
    pub gzip: bool,
    /// The maximum number of points per batch. The last row may exceed it.
    pub lines: u32,
}

/// A finished request body.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The line protocol, compressed if `gzip` is true.
    pub body: Bytes,
    /// Whether `body` is compressed.
    pub gzip: bool,
    /// The number of points.
    pub lines: u32,
    /// The earliest and latest timestamp of the points.
    pub span: TimeRange,
}

impl Batch {
    /// Creates an uncompressed batch from `count` lines. Its time range overlaps every other one.
    pub fn plain(lines: Vec<u8>, count: u32) -> Self {
        Self {
            body: lines.into(),
            gzip: false,
            lines: count,
            span: i64::MIN..=i64::MAX,
        }
    }

    /// Returns the uncompressed lines.
    pub fn text(&self) -> std::io::Result<Vec<u8>> {
        if !self.gzip {
            return Ok(self.body.to_vec());
        }
        let mut text = Vec::new();
        GzDecoder::new(self.body.as_ref()).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Splits the batch in two, for a server that rejects it as too large. Returns `None` for a single line.
    pub fn halves(&self) -> std::io::Result<Option<(Self, Self)>> {
        let text = self.text()?;
        let half = self.lines / 2;
        let middle = memchr::memchr_iter(b'\n', &text).nth((half as usize).wrapping_sub(1));
        let Some(middle) = middle.filter(|_| half > 0) else {
            return Ok(None);
        };
        let (first, second) = text.split_at(middle + 1);
        Ok(Some((
            self.part(first, half)?,
            self.part(second, self.lines - half)?,
        )))
    }

    /// Returns the points at or after an instant, or `None` if there are none.
    pub fn since(self, instant: i64) -> std::io::Result<Option<Self>> {
        if *self.span.start() >= instant {
            return Ok(Some(self));
        }
        if *self.span.end() < instant {
            return Ok(None);
        }
        let mut kept = Vec::new();
        let mut lines = 0;
        for line in self.text()?.split_inclusive(|byte| *byte == b'\n') {
            if time(line).is_none_or(|time| time >= instant) {
                kept.extend_from_slice(line);
                lines += 1;
            }
        }
        if lines == 0 {
            return Ok(None);
        }
        let mut part = self.part(&kept, lines)?;
        part.span = instant..=*self.span.end();
        Ok(Some(part))
    }

    /// Returns the batch without points that a later one of the same series and second replaces. Only for points with one
    /// field of a number. The order of the others stays.
    pub fn without_repeats(self) -> std::io::Result<Self> {
        let text = self.text()?;
        let mut last = HashMap::new();
        let lines: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').collect();
        for (n, line) in lines.iter().enumerate() {
            if let Some(identity) = identity(line) {
                last.insert(identity, n);
            }
        }
        if last.len() == lines.len() {
            return Ok(self);
        }
        let is_last = |(n, line): &(usize, &&[u8])| {
            identity(line).is_none_or(|identity| last.get(&identity) == Some(n))
        };
        let kept: Vec<_> = lines.iter().enumerate().filter(is_last).collect();
        if kept.len() == lines.len() {
            return Ok(self);
        }
        let count = u32::try_from(kept.len()).unwrap_or(self.lines);
        let kept: Vec<u8> = kept
            .into_iter()
            .flat_map(|(_, line)| *line)
            .copied()
            .collect();
        self.part(&kept, count)
    }

    /// Creates a batch from some of the lines.
    fn part(&self, text: &[u8], lines: u32) -> std::io::Result<Self> {
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
    }
}

/// The timestamp at the end of a line.
fn time(line: &[u8]) -> Option<i64> {
    let line = line.trim_ascii_end();
    let digits = &line[memchr::memrchr(b' ', line)? + 1..];
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The series and the timestamp of a line with one field of a number.
fn identity(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.trim_ascii_end();
    let time = memchr::memrchr(b' ', line)?;
    let field = memchr::memrchr(b' ', &line[..time])?;
    Some((&line[..field], &line[time..]))
}

/// Compresses line protocol in the same way as [`BatchOptions::gzip`].
pub fn compressed(text: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text)?;
    encoder.finish()
}

/// Collects rows into batches.
pub struct BatchBuilder {
    options: BatchOptions,
    pending: Vec<u8>,
    encoder: Option<GzEncoder<Vec<u8>>>,
    lines: u32,
    span: Option<(i64, i64)>,
}

impl BatchBuilder {
    /// Creates an empty builder.
    pub fn new(options: BatchOptions) -> Self {
        Self {
            options,
            pending: Vec::with_capacity(BLOCK + BLOCK / 8),
            encoder: None,
            lines: 0,
            span: None,
        }
    }

    /// Adds the points of a row.
    pub fn push(&mut self, prefixes: &[SeriesPrefix], row: &Row<'_>) -> std::io::Result<()> {
        self.push_values(prefixes, row.time, row.values)
    }

    /// Adds the values of series at a time in seconds since 1970.
    pub(crate) fn push_values(
        &mut self,
        prefixes: &[SeriesPrefix],
        time: i64,
        values: &[Option<f64>],
    ) -> std::io::Result<()> {
        let points = append_values(&mut self.pending, prefixes, time, values);
        if points > 0 {
            self.lines += points;
            let (first, last) = self.span.unwrap_or((time, time));
            self.span = Some((first.min(time), last.max(time)));
        }
        if self.options.gzip && self.pending.len() >= BLOCK {
            self.compress_pending()?;
        }
        Ok(())
    }

    /// Whether the batch is complete and [`BatchBuilder::take`] should be called.
    pub fn is_full(&self) -> bool {
        self.lines >= self.options.lines || (!self.options.gzip && self.pending.len() >= MAX_PLAIN)
    }

    /// Returns the batch, or `None` if it has no points, and clears the builder.
    pub fn take(&mut self) -> std::io::Result<Option<Batch>> {
        let Some((first, last)) = self.span.take() else {
            return Ok(None);
        };
        let body = if self.options.gzip {
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
            gzip: self.options.gzip,
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
    use crate::logger_file::{LoggerFile, ReadOptions};
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
        let zones = crate::time_zone::FileZones::built_in(chrono_tz::UTC);
        let mut file = LoggerFile::open(text.as_bytes(), &ReadOptions::new(&zones)).unwrap();
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
    fn batch_size_and_compression_do_not_change_the_lines() {
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
    fn a_batch_has_its_line_count_and_time_range() {
        let found = batches(true, 4, 5);
        let sizes: Vec<_> = found.iter().map(|b| (b.lines, b.span.clone())).collect();
        let t = 1_754_190_000;
        assert_eq!(
            sizes,
            [(4, t..=t + 1), (4, t + 2..=t + 3), (2, t + 4..=t + 4)]
        );
    }

    #[test]
    fn points_before_an_instant_are_removed() {
        let t = 1_754_190_000;
        for gzip in [true, false] {
            let whole = &batches(gzip, 100, 5)[0];
            for (instant, rows) in [(t - 1, 5), (t, 5), (t + 1, 4), (t + 4, 1), (t + 5, 0)] {
                let kept = whole.clone().since(instant).unwrap();
                let expected: Vec<u8> = text(std::slice::from_ref(whole))
                    .split_inclusive(|byte| *byte == b'\n')
                    .skip(2 * (5 - rows))
                    .flatten()
                    .copied()
                    .collect();
                let found = kept.as_ref().map(|batch| batch.text().unwrap());
                assert_eq!(found.unwrap_or_default(), expected, "{instant}");
                assert_eq!(kept.map_or(0, |batch| batch.lines) as usize, 2 * rows);
            }
        }
    }

    #[test]
    fn points_that_a_later_one_replaces_are_removed() {
        let lines = [
            "m,a=b\\ c value=1 10\n",
            "m,a=b\\ d value=2 10\n",
            "m,a=b\\ c value=3 11\n",
            "m,a=b\\ c value=4.5e3 10\n",
        ];
        for gzip in [true, false] {
            let batch = |lines: &[&str]| {
                let text = lines.concat().into_bytes();
                let mut batch = Batch::plain(text.clone(), lines.len().try_into().unwrap());
                batch.gzip = gzip;
                if gzip {
                    batch.body = compressed(&text).unwrap().into();
                }
                batch
            };
            let found = batch(&lines).without_repeats().unwrap();
            assert_eq!(found.text().unwrap(), lines[1..].concat().into_bytes());
            assert_eq!((found.lines, found.gzip), (3, gzip));
            let whole = batch(&lines[..3]);
            assert_eq!(whole.clone().without_repeats().unwrap(), whole);
        }
    }

    #[test]
    fn halves_add_up_to_the_whole_and_a_single_line_has_none() {
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
