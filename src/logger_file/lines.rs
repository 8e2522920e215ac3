//! The innermost reader: watches the length of lines, so that no upload can make memory grow, and
//! remembers how the file ended.

use std::io::{self, Read};

/// The longest line that is read, in bytes. A row of 30 channels has about 250.
pub const MAX_LINE: usize = 1 << 20;

/// A line passed [`MAX_LINE`].
#[derive(Debug, thiserror::Error)]
#[error("line {line} is too long")]
pub struct LineTooLong {
    /// 1-based.
    pub line: u64,
}

/// Passes bytes through and counts.
#[derive(Debug)]
pub struct LineTracker<R> {
    inner: R,
    breaks: u64,
    in_line: usize,
    bytes: u64,
    ended: bool,
    too_long: bool,
}

impl<R> LineTracker<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            breaks: 0,
            in_line: 0,
            bytes: 0,
            ended: false,
            too_long: false,
        }
    }

    /// Whether the end of the file was reached in the middle of a line.
    pub fn ended_inside_line(&self) -> bool {
        self.ended && self.in_line > 0
    }

    /// Whether the last byte read so far was not a line break (true for an empty file).
    pub fn lacks_final_break(&self) -> bool {
        self.in_line > 0 || self.bytes == 0
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
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
        // Told at the next read, so that the lines before it are still handed out.
        self.too_long = self.in_line > MAX_LINE;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_over_the_limit_is_an_error_that_names_it() {
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
    fn the_end_of_the_file_says_whether_a_line_break_is_missing() {
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
