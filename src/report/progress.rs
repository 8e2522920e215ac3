//! A progress line on a terminal.

use crate::data_dir::is_processed_dir;
use crate::data_dir::pending_files::is_tsv;
use indicatif::{
    HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle,
};
use std::io::{self, IsTerminal as _, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use walkdir::WalkDir;

/// Delay before the progress line is shown. Shorter runs show none.
const SHOW_AFTER: Duration = Duration::from_millis(700);

/// Minimum interval between two updates of the line.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// The progress of a run; inactive if there is no terminal. Clones share their state.
#[derive(Debug, Clone)]
pub struct Progress(Option<Arc<State>>);

#[derive(Debug)]
struct State {
    bar: ProgressBar,
    start: Instant,
    /// Whether the line has been shown.
    visible: AtomicBool,
    files: AtomicU64,
    files_total: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
    points: AtomicU64,
    /// Time of the last update in milliseconds after the start.
    redrawn: AtomicU64,
}

impl Progress {
    /// Shows progress on stderr if it is a terminal and `wanted` is set.
    pub fn on_terminal(wanted: bool) -> Self {
        if !wanted || !io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        // The template is valid. If it were not, the bar would be drawn in the default style.
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        Self(Some(Arc::new(State {
            bar,
            start: Instant::now(),
            visible: AtomicBool::new(false),
            files: AtomicU64::new(0),
            files_total: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            points: AtomicU64::new(0),
            redrawn: AtomicU64::new(0),
        })))
    }

    /// Shows nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether progress is shown.
    pub fn is_watched(&self) -> bool {
        self.0.is_some()
    }

    /// Counts the files and bytes waiting below `folder`, from which the remaining time is estimated.
    pub fn count(&self, folder: &Path, shutdown: &crate::shutdown::Shutdown) {
        let Some(state) = &self.0 else { return };
        let entries = WalkDir::new(folder).into_iter().filter_entry(|entry| {
            !(entry.file_type().is_dir() && is_processed_dir(entry.file_name()))
        });
        for entry in entries.flatten() {
            if shutdown.is_requested() {
                return;
            }
            if entry.file_type().is_file() && is_tsv(entry.file_name()) {
                state.files_total.fetch_add(1, Ordering::Relaxed);
                let size = entry.metadata().map_or(0, |file| file.len());
                state.bytes_total.fetch_add(size, Ordering::Relaxed);
            }
        }
    }

    /// Wraps a reader to count the bytes read.
    pub fn reading<R: Read>(&self, inner: R) -> CountingReader<R> {
        CountingReader {
            inner,
            progress: self.clone(),
        }
    }

    /// Adds to the number of points sent.
    pub fn points(&self, count: u32) {
        if let Some(state) = &self.0 {
            state.points.fetch_add(u64::from(count), Ordering::Relaxed);
        }
    }

    /// Adds a finished file.
    pub fn file_done(&self) {
        if let Some(state) = &self.0 {
            state.files.fetch_add(1, Ordering::Relaxed);
            state.redraw();
        }
    }

    /// Removes the line.
    pub fn finish(&self) {
        if let Some(state) = &self.0 {
            state.bar.finish_and_clear();
        }
    }
}

impl State {
    /// Updates the line if the last update is long enough ago.
    fn redraw(&self) {
        let elapsed = self.start.elapsed();
        let now = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let last = self.redrawn.load(Ordering::Relaxed);
        if elapsed < SHOW_AFTER || u128::from(now - last.min(now)) < REDRAW_INTERVAL.as_millis() {
            return;
        }
        self.redrawn.store(now, Ordering::Relaxed);
        if !self.visible.swap(true, Ordering::Relaxed) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let counts = Counts {
            elapsed,
            files: get(&self.files),
            files_total: get(&self.files_total),
            bytes: get(&self.bytes),
            bytes_total: get(&self.bytes_total),
            points: get(&self.points),
        };
        self.bar.set_message(counts.line());
        self.bar.tick();
    }
}

/// The state of a run at one moment.
struct Counts {
    elapsed: Duration,
    files: u64,
    files_total: u64,
    bytes: u64,
    bytes_total: u64,
    points: u64,
}

impl Counts {
    /// Formats the line, most important part first, because narrow terminals cut off its end.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate for display"
    )]
    fn line(&self) -> String {
        let seconds = self.elapsed.as_secs_f64().max(0.001);
        let rate = HumanCount((self.points as f64 / seconds) as u64);
        let done = self.bytes as f64 / self.bytes_total.max(1) as f64;
        let progress = if self.bytes_total > 0 && done > 0.01 && done <= 1.0 {
            let left = Duration::from_secs_f64(seconds / done - seconds);
            format!("{:3.0}%, {} left", done * 100.0, HumanDuration(left))
        } else {
            HumanDuration(self.elapsed).to_string()
        };
        format!(
            "{progress}, {}/{} files, {rate} points/s, {}/{}",
            self.files,
            self.files_total.max(self.files),
            HumanBytes(self.bytes),
            HumanBytes(self.bytes_total.max(self.bytes))
        )
    }
}

/// A reader that counts bytes; see [`Progress::reading`].
pub struct CountingReader<R> {
    inner: R,
    progress: Progress,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(state) = &self.progress.0 {
            state.bytes.fetch_add(n as u64, Ordering::Relaxed);
            state.redraw();
        }
        Ok(n)
    }
}

/// Stderr writer that hides the progress line while it writes.
pub struct StderrWriter(pub Progress);

impl Write for StderrWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0.0 {
            Some(state) => state.bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_starts_with_the_most_important_part() {
        let counts = Counts {
            elapsed: Duration::from_secs(10),
            files: 3,
            files_total: 12,
            bytes: 250_000,
            bytes_total: 1_000_000,
            points: 12_345_670,
        };
        assert_eq!(
            counts.line(),
            " 25%, 30 seconds left, 3/12 files, 1,234,567 points/s, 244.14 KiB/976.56 KiB"
        );
    }

    #[test]
    fn the_elapsed_time_is_shown_while_the_total_is_unknown() {
        let counts = Counts {
            elapsed: Duration::from_secs(2),
            files: 0,
            files_total: 0,
            bytes: 0,
            bytes_total: 0,
            points: 0,
        };
        assert!(
            counts.line().starts_with("2 seconds, 0/0 files"),
            "{}",
            counts.line()
        );
    }
}
