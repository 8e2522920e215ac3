//! A reader that limits the length of lines, so that no file can exhaust memory, and records how the file ends.

use std::io::{self, Read};

/// The maximum length of a line, in bytes. A row of 30 channels has about 250.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// A line is longer than [`MAX_LINE`].
#[derive(Debug, thiserror::Error)]
#[error("line {line} is too long")]
pub(super) struct LineTooLong {
    /// The 1-based number of the line.
    pub line: u64,
}

/// Passes bytes through, and counts lines and bytes.
#[derive(Debug)]
pub(super) struct LineTracker<R> {
    inner: R,
    breaks: u64,
    in_line: usize,
    bytes: u64,
    ended: bool,
    too_long: bool,
}

impl<R> LineTracker<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            breaks: 0,
            in_line: 0,
            bytes: 0,
            ended: false,
            too_long: false,
        }
    }

    /// Whether the file has ended within a line.
    pub(super) fn ended_inside_line(&self) -> bool {
        self.ended && self.in_line > 0
    }

    /// Whether the last byte read so far is not a line break. True for an empty file.
    pub(super) fn lacks_final_break(&self) -> bool {
        self.in_line > 0 || self.bytes == 0
    }

    /// The number of bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<R: Read> Read for LineTracker<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.too_long {
            let line = self.breaks + 1;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                LineTooLong { line },
            ));
        }
        let n = self.inner.read(buf)?;
        let chunk = buf.get(..n).unwrap_or_default();
        self.bytes += n as u64;
        self.ended = n == 0 && !buf.is_empty();
        match memchr::memrchr(b'\n', chunk) {
            None => self.in_line += n,
            Some(last) => {
                self.breaks += memchr::memchr_iter(b'\n', chunk).count() as u64;
                self.in_line = n - last - 1;
            }
        }
        // The next read returns the error, so that the lines before this one are still processed.
        self.too_long = self.in_line > MAX_LINE;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_an_error_with_its_number() {
        let text = [b"short\n".to_vec(), vec![b'x'; MAX_LINE + 70_000]].concat();
        let mut tracker = LineTracker::new(text.as_slice());
        let mut buf = vec![0; 64 * 1024];
        let error = loop {
            if let Err(e) = tracker.read(&mut buf) {
                break e;
            }
        };
        assert_eq!(
            error
                .get_ref()
                .unwrap()
                .downcast_ref::<LineTooLong>()
                .unwrap()
                .line,
            2
        );
    }

    #[test]
    fn a_missing_final_line_break_is_detected() {
        for (text, lacks) in [
            ("", true),
            ("a", true),
            ("a\n", false),
            ("a\nb", true),
            ("\n", false),
        ] {
            let mut tracker = LineTracker::new(text.as_bytes());
            io::copy(&mut tracker, &mut io::sink()).unwrap();
            assert_eq!(tracker.lacks_final_break(), lacks, "{text:?}");
        }
    }
}
