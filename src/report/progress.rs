//! A progress bar on a terminal.

use indicatif::{
    HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState,
    ProgressStyle,
};
use std::fmt;
use std::io::{self, IsTerminal as _, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

/// Delay before the progress bar is shown. Shorter runs show none.
const SHOW_AFTER: Duration = Duration::from_millis(700);

/// Maximum number of updates of the progress bar per second.
const REFRESH_RATE: u8 = 5;

/// The progress of a run; inactive if there is no terminal. Clones share their state.
#[derive(Debug, Clone)]
pub(crate) struct Progress(Option<Arc<State>>);

#[derive(Debug)]
struct State {
    /// The bar. Its position and length are in bytes; it has no length until the files are counted.
    bar: ProgressBar,
    /// Completed when the bar is shown.
    shown: Once,
    files: AtomicU64,
    files_total: AtomicU64,
    points: AtomicU64,
}

impl Progress {
    /// Shows progress on stderr if it is a terminal and `wanted` is set.
    pub(crate) fn on_terminal(wanted: bool) -> Self {
        Self((wanted && io::stderr().is_terminal()).then(|| Arc::new(State::new())))
    }

    /// Shows nothing.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Whether progress is shown.
    pub(crate) fn is_watched(&self) -> bool {
        self.0.is_some()
    }

    /// Sets the number of files to be ingested and their size in bytes, from which the remaining time is estimated.
    pub(crate) fn set_total(&self, files: u64, bytes: u64) {
        if let Some(state) = &self.0 {
            state.files_total.store(files, Ordering::Relaxed);
            state.bar.set_length(bytes);
        }
    }

    /// Wraps a reader to count the bytes read.
    pub(crate) fn reading<R: Read>(&self, inner: R) -> CountingReader<R> {
        CountingReader {
            inner,
            bar: self.0.as_ref().map(|state| state.bar.clone()),
        }
    }

    /// Adds to the number of points sent.
    pub(crate) fn points(&self, count: u32) {
        if let Some(state) = &self.0 {
            state.points.fetch_add(u64::from(count), Ordering::Relaxed);
            state.update();
        }
    }

    /// Adds a finished file.
    pub(crate) fn file_done(&self) {
        if let Some(state) = &self.0 {
            state.files.fetch_add(1, Ordering::Relaxed);
            state.update();
        }
    }

    /// Removes the progress bar.
    pub(crate) fn finish(&self) {
        if let Some(state) = &self.0 {
            state.bar.finish_and_clear();
        }
    }
}

impl State {
    /// Creates a bar that is not shown yet.
    fn new() -> Self {
        let bar = ProgressBar::hidden();
        // Only `wide_msg` is cut off at the width of the terminal; other keys would continue on the next line.
        // The template is valid. If it were not, the bar would be drawn in the default style.
        if let Ok(style) = ProgressStyle::with_template("{time}, {wide_msg}") {
            bar.set_style(style.with_key("time", write_time));
        }
        Self {
            bar,
            shown: Once::new(),
            files: AtomicU64::new(0),
            files_total: AtomicU64::new(0),
            points: AtomicU64::new(0),
        }
    }

    /// Updates the message, and shows the bar when it is due.
    fn update(&self) {
        let elapsed = self.bar.elapsed();
        if elapsed < SHOW_AFTER {
            return;
        }
        self.bar.set_message(self.message(elapsed));
        self.shown.call_once(|| {
            self.bar
                .set_draw_target(ProgressDrawTarget::stderr_with_hz(REFRESH_RATE));
        });
    }

    /// Formats what follows the time, most important part first.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate for display"
    )]
    fn message(&self, elapsed: Duration) -> String {
        let files = self.files.load(Ordering::Relaxed);
        let files_total = self.files_total.load(Ordering::Relaxed);
        let points = self.points.load(Ordering::Relaxed);
        let rate = points as f64 / elapsed.as_secs_f64();
        let bytes = self.bar.position();
        let bytes_total = self.bar.length().unwrap_or(0);
        format!(
            "{files}/{} files, {} points/s, {}/{}",
            files_total.max(files),
            HumanCount(rate as u64),
            HumanBytes(bytes),
            HumanBytes(bytes_total.max(bytes))
        )
    }
}

/// Writes the percentage and the remaining time, or the elapsed time while the total is unknown or too small.
fn write_time(state: &ProgressState, out: &mut dyn fmt::Write) {
    let done = state.pos();
    // `out` is a string, so writing does not fail.
    let _ = match state.len() {
        // There is no good estimate in the first percent.
        Some(total) if done > total / 100 && done <= total => write!(
            out,
            "{:3.0}%, {} left",
            state.fraction() * 100.0,
            HumanDuration(state.eta())
        ),
        _ => write!(out, "{}", HumanDuration(state.elapsed())),
    };
}

/// A reader that counts bytes; see [`Progress::reading`].
///
/// [`ProgressBar::wrap_read`] gets and sets the position in two steps, which loses bytes if several threads read.
pub(crate) struct CountingReader<R> {
    inner: R,
    bar: Option<ProgressBar>,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(bar) = &self.bar {
            bar.inc(n as u64);
        }
        Ok(n)
    }
}

/// Stderr writer that hides the progress bar while it writes.
pub(crate) struct StderrWriter(pub Progress);

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
    use indicatif::InMemoryTerm;
    use std::time::Instant;

    /// A bar without delay on a terminal of `columns` columns.
    fn shown(columns: u16) -> (State, InMemoryTerm) {
        let term = InMemoryTerm::new(5, columns);
        let state = State::new();
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        state.shown.call_once(|| state.bar.set_draw_target(target));
        (state, term)
    }

    #[test]
    fn the_line_starts_with_the_most_important_part() {
        let start = Instant::now();
        let (state, term) = shown(100);
        state.bar.set_length(1_000_000);
        state.files.store(3, Ordering::Relaxed);
        state.files_total.store(12, Ordering::Relaxed);
        state.points.store(12_345_670, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(500));
        state.bar.inc(250_000);
        state
            .bar
            .set_message(state.message(Duration::from_secs(10)));

        let contents = term.contents();
        let parts: Vec<_> = contents.splitn(3, ", ").collect();
        let [percent, left, counts] = parts[..] else {
            panic!("{contents}");
        };
        assert_eq!(percent, " 25%");
        assert_eq!(
            counts,
            "3/12 files, 1,234,567 points/s, 244.14 KiB/976.56 KiB"
        );
        // The first quarter took at least 0.5 s; the rest takes three times as long.
        let left: f64 = left.strip_suffix(" seconds left").unwrap().parse().unwrap();
        let longest = 3.0 * start.elapsed().as_secs_f64();
        assert!((2.0..=longest.round()).contains(&left), "{left}, {longest}");
    }

    #[test]
    fn the_elapsed_time_is_shown_while_the_total_is_unknown() {
        let (state, term) = shown(100);
        state.bar.set_elapsed(Duration::from_mins(2));
        state.bar.set_message(state.message(state.bar.elapsed()));
        assert_eq!(term.contents(), "2 minutes, 0/0 files, 0 points/s, 0 B/0 B");
    }

    #[test]
    fn a_narrow_terminal_cuts_off_the_end() {
        let (state, term) = shown(30);
        state.bar.set_elapsed(Duration::from_mins(2));
        state.bar.set_message(state.message(state.bar.elapsed()));
        assert_eq!(term.contents(), "2 minutes, 0/0 files, 0 points");
    }

    #[test]
    fn bytes_read_by_several_threads_are_all_counted() {
        let progress = Progress(Some(Arc::new(State::new())));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut reader = progress.reading(io::repeat(0).take(100_000));
                    while reader.read(&mut [0]).unwrap() > 0 {}
                });
            }
        });
        assert_eq!(progress.0.unwrap().bar.position(), 400_000);
    }
}
