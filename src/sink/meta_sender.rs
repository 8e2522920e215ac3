//! Sends the meta points of a run in blocks. See docs/specification.md, section 7.

use crate::points::Batch;
use crate::remedy::remedy;
use crate::sink::{PendingWrite, Sink, Stream, UnsentPoints, WriteError, locked};
use chrono::Utc;
use std::io;
use std::sync::{Arc, Mutex};

/// Size in bytes at which a block of meta points is sent. The rest is sent at the end of the run.
const BLOCK: usize = 256 * 1024;

/// Collects the meta points of all devices and sends them. Those that cannot be written are kept for a later run. A
/// failure is logged once and has no other effect.
///
/// A dry run has no meta points.
pub(crate) struct MetaSender<'a> {
    sink: &'a Sink,
    bucket: Arc<str>,
    lines: Mutex<Lines>,
    /// The block being written. It has its own lock, so that waiting for the server does not block `lines`.
    in_flight: Mutex<InFlight>,
    unsent: UnsentPoints,
}

/// The block being written, and what became of those before it.
#[derive(Default)]
struct InFlight {
    block: Option<(PendingWrite, Batch)>,
    /// Number of blocks that were not written.
    failed: u32,
    /// Whether a warning was logged that some of them are not kept.
    has_warned: bool,
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
    pub(crate) fn new(sink: &'a Sink, bucket: &str, unsent: UnsentPoints) -> Self {
        Self {
            sink,
            bucket: bucket.into(),
            lines: Mutex::default(),
            in_flight: Mutex::default(),
            unsent,
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
            let write = self.send(block.clone());
            in_flight.block = Some((write, block));
        }
    }

    /// Sends all points that are left.
    pub(crate) fn send_rest(&self) {
        locked(&self.lines).close_block();
        self.send_full_blocks();
    }

    /// Waits until all points that were sent are written, kept or lost.
    pub(crate) fn wait(&self) {
        self.await_block(&mut locked(&self.in_flight));
    }

    /// Sends the points that earlier runs kept: all of them, or at most one batch. Does nothing if points of this run were
    /// not written.
    pub(crate) fn send_unsent(&self, is_all: bool) {
        if !matches!(self.sink, Sink::Influx(_)) || locked(&self.in_flight).failed > 0 {
            return;
        }
        loop {
            match self.send_oldest() {
                Ok(true) if is_all => {}
                Ok(_) => return,
                Err(error) => {
                    let remedy = remedy(
                        &error,
                        "check the permissions of the folder that ends in .unsent, beside that of the reports",
                    );
                    tracing::warn!("cannot read the points about earlier runs: {error}; {remedy}");
                    return;
                }
            }
        }
    }

    /// Sends a batch of kept points and removes its files. Returns false if there is none or the server is unavailable.
    fn send_oldest(&self) -> io::Result<bool> {
        let Some(kept) = self.unsent.oldest()? else {
            return Ok(false);
        };
        match self.send(kept.points.clone()).wait().result {
            Ok(()) => tracing::info!("sent {} points about earlier runs", kept.points.lines),
            Err(error) if is_worth_keeping(&error) => {
                tracing::warn!("cannot write points about earlier runs: {error}; still kept");
                return Ok(false);
            }
            Err(error) => tracing::warn!("points about earlier runs are lost: {error}"),
        }
        kept.remove()?;
        Ok(true)
    }

    fn send(&self, block: Batch) -> PendingWrite {
        self.sink.send(&self.bucket, block, Stream::Meta)
    }

    fn await_block(&self, in_flight: &mut InFlight) {
        let Some((write, block)) = in_flight.block.take() else {
            return;
        };
        let Err(error) = write.wait().result else {
            return;
        };
        in_flight.failed += 1;
        let lost = is_worth_keeping(&error).then(|| self.keep(&block, in_flight.failed));
        if in_flight.failed == 1 {
            tracing::warn!("cannot write points about this run: {error}");
        }
        if let Some(Err(reason)) = lost
            && !std::mem::replace(&mut in_flight.has_warned, true)
        {
            tracing::warn!("cannot keep points about this run for a later one: {reason}");
        }
    }

    /// Keeps a block for a later run.
    fn keep(&self, block: &Batch, number: u32) -> Result<(), String> {
        match self.unsent.keep(&block.body, number) {
            Ok(true) => Ok(()),
            Ok(false) => Err("too many are kept already".to_owned()),
            Err(error) => Err(format!(
                "{error}; {}",
                remedy(&error, "correct the permissions or set TSV_REPORT_DIR")
            )),
        }
    }
}

/// Whether the points of a failed write may be accepted later.
fn is_worth_keeping(error: &WriteError) -> bool {
    match error {
        WriteError::Outage(_) | WriteError::Unwritten(_) | WriteError::Stopped => true,
        WriteError::Partial(_) | WriteError::Rejected(_) | WriteError::Storage(_) => false,
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
