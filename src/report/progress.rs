//! A line on a terminal while there is something to wait for; nothing where nobody looks.

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

/// Work that ends sooner than this shows nothing.
const PATIENCE: Duration = Duration::from_millis(700);

/// How often the line is renewed.
const RENEWAL: Duration = Duration::from_millis(200);

/// The state of a run, as far as somebody at a terminal wants to know it.
#[derive(Debug, Clone)]
pub struct Progress(Option<Arc<State>>);

#[derive(Debug)]
struct State {
    bar: ProgressBar,
    start: Instant,
    sanitize: AtomicBool,
    files: AtomicU64,
    files_total: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
    points: AtomicU64,
    /// Milliseconds after the start at which the line was last renewed.
    renewed: AtomicU64,
}

impl Progress {
    /// For a person at a terminal, if there is one.
    pub fn on_terminal(wanted: bool) -> Self {
        if !wanted || !io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        // Without a style it would be a bar of its own; the template has no mistake, and a mistake costs no more than looks.
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        Self(Some(Arc::new(State {
            bar,
            start: Instant::now(),
            sanitize: AtomicBool::new(false),
            files: AtomicU64::new(0),
            files_total: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            points: AtomicU64::new(0),
            renewed: AtomicU64::new(0),
        })))
    }

    /// For nobody.
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether anybody looks.
    pub fn is_watched(&self) -> bool {
        self.0.is_some()
    }

    /// Adds up what waits below `folder`, so that what is left can be told.
    pub fn count(&self, folder: &Path, stop: &crate::shutdown::Shutdown) {
        let Some(state) = &self.0 else { return };
        let entries = WalkDir::new(folder).into_iter().filter_entry(|entry| {
            !(entry.file_type().is_dir() && is_processed_dir(entry.file_name()))
        });
        for entry in entries.flatten() {
            if stop.is_requested() {
                return;
            }
            if entry.file_type().is_file() && is_tsv(entry.file_name()) {
                state.files_total.fetch_add(1, Ordering::Relaxed);
                let size = entry.metadata().map_or(0, |file| file.len());
                state.bytes_total.fetch_add(size, Ordering::Relaxed);
            }
        }
    }

    /// `inner`, counted as it is read.
    pub fn reading<R: Read>(&self, inner: R) -> Counted<R> {
        Counted {
            inner,
            progress: self.clone(),
        }
    }

    /// Points were sent.
    pub fn points(&self, count: u32) {
        if let Some(state) = &self.0 {
            state.points.fetch_add(u64::from(count), Ordering::Relaxed);
        }
    }

    /// A file was dealt with.
    pub fn file_done(&self) {
        if let Some(state) = &self.0 {
            state.files.fetch_add(1, Ordering::Relaxed);
            state.renew();
        }
    }

    /// Takes the line away.
    pub fn finish(&self) {
        if let Some(state) = &self.0 {
            state.bar.finish_and_clear();
        }
    }
}

impl State {
    fn renew(&self) {
        let elapsed = self.start.elapsed();
        let now = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let last = self.renewed.load(Ordering::Relaxed);
        if elapsed < PATIENCE || u128::from(now - last.min(now)) < RENEWAL.as_millis() {
            return;
        }
        self.renewed.store(now, Ordering::Relaxed);
        if !self.sanitize.swap(true, Ordering::Relaxed) {
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

struct Counts {
    elapsed: Duration,
    files: u64,
    files_total: u64,
    bytes: u64,
    bytes_total: u64,
    points: u64,
}

impl Counts {
    /// The most important first: a narrow terminal cuts the end off.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate for a person"
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

/// See [`Progress::reading`].
pub struct Counted<R> {
    inner: R,
    progress: Progress,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(state) = &self.progress.0 {
            state.bytes.fetch_add(n as u64, Ordering::Relaxed);
            state.renew();
        }
        Ok(n)
    }
}

/// Standard error, with the line of progress out of the way while something else is written.
pub struct Beside(pub Progress);

impl Write for Beside {
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
    fn the_line_begins_with_what_matters_most() {
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
    fn before_anything_is_known_only_the_time_is_told() {
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
