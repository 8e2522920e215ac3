//! The batches of one device on their way: what is written is as if its files and rows had been written one after another.
//! Source: SPEC section 3.

use crate::batch::Batch;
use crate::line_protocol::Span;
use crate::sink::{Failure, Precision, Sink, Ticket};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many batches of one device may be in flight: while the server takes one, the next arrives.
const WINDOW: usize = 3;

/// Sends batches so that those whose times do not touch fly together, whichever files they are of; others wait for each other.
pub struct Courier<'a> {
    sink: &'a Sink,
    bucket: Arc<str>,
    flying: VecDeque<Flight>,
    /// What is known of each file's batches so far.
    outcomes: Vec<Result<(), Failure>>,
}

struct Flight {
    file: Parcel,
    span: Span,
    ticket: Ticket,
}

/// The batches of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parcel(usize);

impl<'a> Courier<'a> {
    /// For files of one bucket and device.
    pub fn new(sink: &'a Sink, bucket: &str) -> Self {
        Self {
            sink,
            bucket: bucket.into(),
            flying: VecDeque::new(),
            outcomes: Vec::new(),
        }
    }

    /// Says that a batch will come soon.
    pub fn announce(&self) {
        self.sink.look_up(&self.bucket);
    }

    /// Begins with the next file.
    pub fn begin(&mut self) -> Parcel {
        self.outcomes.push(Ok(()));
        Parcel(self.outcomes.len() - 1)
    }

    /// Sends the next batch of a file, once those that it must not overtake have arrived.
    ///
    /// # Errors
    /// What another batch of the same file has met with, if further ones are no use.
    pub fn send(&mut self, file: Parcel, batch: Batch) -> Result<(), Failure> {
        let span = batch.span.clone();
        while self.flying.len() >= WINDOW || self.flying.iter().any(|f| touch(&f.span, &span)) {
            self.await_oldest();
        }
        match &self.outcomes[file.0] {
            Ok(()) | Err(Failure::Partial(_)) => {}
            Err(failure) => return Err(failure.clone()),
        }
        let ticket = self.sink.send(&self.bucket, batch, Precision::Seconds);
        self.flying.push_back(Flight { file, span, ticket });
        Ok(())
    }

    /// Waits until all batches of a file have arrived or failed.
    ///
    /// # Errors
    /// What ended it, else the first answer that said "not all of it".
    pub fn land(&mut self, file: Parcel) -> Result<(), Failure> {
        while self.flying.iter().any(|flight| flight.file == file) {
            self.await_oldest();
        }
        self.outcomes[file.0].clone()
    }

    fn await_oldest(&mut self) {
        let Some(Flight { file, ticket, .. }) = self.flying.pop_front() else {
            return;
        };
        let Err(failure) = ticket.wait() else { return };
        let outcome = &mut self.outcomes[file.0];
        // What ends a file weighs more than a part that the server dropped; of two that weigh the same, the first is told.
        let outweighs = match outcome {
            Ok(()) => true,
            Err(Failure::Partial(_)) => !matches!(failure, Failure::Partial(_)),
            Err(_) => false,
        };
        if outweighs {
            *outcome = Err(failure);
        }
    }
}

impl Drop for Courier<'_> {
    /// Whatever the reason for giving up: nothing is in flight any more when another process gets the device.
    fn drop(&mut self) {
        while !self.flying.is_empty() {
            self.await_oldest();
        }
    }
}

fn touch(a: &Span, b: &Span) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_touch_where_they_share_a_second() {
        assert!(touch(&(1..=5), &(5..=9)));
        assert!(touch(&(5..=9), &(1..=5)));
        assert!(touch(&(1..=9), &(3..=4)));
        assert!(!touch(&(1..=4), &(5..=9)));
    }
}
