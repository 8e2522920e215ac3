//! Sends the meta points of a run in blocks. See docs/specification.md, section 7.

use crate::points::Batch;
use crate::sink::{PendingWrite, Sink, Stream, locked};
use chrono::Utc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Size in bytes at which a block of meta points is sent. The rest is sent at the end of the run.
const BLOCK: usize = 256 * 1024;

/// Collects the meta points of all devices and sends them. A failure is logged once and has no other effect.
///
/// A dry run has no meta points.
pub(crate) struct MetaSender<'a> {
    sink: &'a Sink,
    bucket: Arc<str>,
    lines: Mutex<Lines>,
    /// The block being written. It has its own lock, so that waiting for the server does not block `lines`.
    in_flight: Mutex<Option<PendingWrite>>,
    /// Whether a warning about lost meta points was logged.
    has_warned: AtomicBool,
}

#[derive(Default)]
struct Lines {
    block: Vec<u8>,
    count: u32,
    /// Blocks to be sent.
    ready: Vec<Batch>,
    clock: MonotonicNanos,
}

/// A clock in nanoseconds that never repeats within a run. Points with the same tags and time would overwrite each
/// other.
#[derive(Debug, Default)]
struct MonotonicNanos(i64);

impl MonotonicNanos {
    /// The current time, but at least one nanosecond after the previous one.
    fn next_ns(&mut self) -> i64 {
        let now = Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX - 1);
        self.0 = now.max(self.0 + 1);
        self.0
    }
}

impl<'a> MetaSender<'a> {
    /// Creates a sender to a bucket.
    pub(crate) fn new(sink: &'a Sink, bucket: &str) -> Self {
        Self {
            sink,
            bucket: bucket.into(),
            lines: Mutex::default(),
            in_flight: Mutex::default(),
            has_warned: AtomicBool::new(false),
        }
    }

    /// Adds the point that `encode` makes for a timestamp in nanoseconds, as one line.
    pub(crate) fn push(&self, encode: impl FnOnce(i64) -> Vec<u8>) {
        if self.sink.is_discard() {
            return;
        }
        let mut lines = locked(&self.lines);
        let time_ns = lines.clock.next_ns();
        lines.block.extend_from_slice(&encode(time_ns));
        lines.count += 1;
        if lines.block.len() >= BLOCK {
            lines.close_block();
        }
    }

    /// Sends the blocks that are full, each after the one before it is written.
    pub(crate) fn send_full_blocks(&self) {
        let ready = std::mem::take(&mut locked(&self.lines).ready);
        for block in ready {
            let mut in_flight = locked(&self.in_flight);
            self.await_block(&mut in_flight);
            *in_flight = Some(self.sink.send(&self.bucket, block, Stream::Meta));
        }
    }

    /// Sends all points that are left.
    pub(crate) fn send_rest(&self) {
        locked(&self.lines).close_block();
        self.send_full_blocks();
    }

    /// Waits until all points that were sent are written or lost.
    pub(crate) fn wait(&self) {
        self.await_block(&mut locked(&self.in_flight));
    }

    fn await_block(&self, in_flight: &mut Option<PendingWrite>) {
        if let Some(write) = in_flight.take()
            && let Err(error) = write.wait().result
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("cannot write points about this run: {error}");
        }
    }
}

impl Lines {
    /// Makes the collected points a block to be sent.
    fn close_block(&mut self) {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            let block = std::mem::take(&mut self.block);
            self.ready.push(Batch::plain(block, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_never_repeat() {
        let mut clock = MonotonicNanos::default();
        let found: Vec<_> = (0..1000).map(|_| clock.next_ns()).collect();
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
