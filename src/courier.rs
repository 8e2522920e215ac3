//! The batches of one device on their way: what is written is as if its files and rows had been written one after another.
//! Source: docs/specification.md, section 5.

use crate::batch::Batch;
use crate::line_protocol::Span;
use crate::sink::{Failure, Precision, Sink, Ticket};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// How many batches of one device may be in flight: while the server takes one, the next arrives.
const WINDOW: usize = 3;

/// Sends batches so that those whose times do not touch fly together, whichever files they are of; others wait for each other.
pub struct Courier<'a> {
    sink: &'a Sink,
    bucket: Arc<str>,
    flying: VecDeque<Flight>,
    /// What is known so far of the batches of each file that has not landed.
    outcomes: HashMap<Parcel, Result<(), Failure>>,
    files: usize,
    /// The disk does not take what should be written: of this device nothing more is, for it would overtake what stays.
    full: Option<Failure>,
}

struct Flight {
    file: Parcel,
    span: Span,
    ticket: Ticket,
}

/// The batches of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Parcel(usize);

impl<'a> Courier<'a> {
    /// For files of one bucket and device.
    pub fn new(sink: &'a Sink, bucket: &str) -> Self {
        Self {
            sink,
            bucket: bucket.into(),
            flying: VecDeque::new(),
            outcomes: HashMap::new(),
            files: 0,
            full: None,
        }
    }

    /// Says that a batch will come soon.
    pub fn announce(&self) {
        self.sink.look_up(&self.bucket);
    }

    /// Begins with the next file.
    pub fn begin(&mut self) -> Parcel {
        self.files += 1;
        let file = Parcel(self.files);
        self.outcomes.insert(file, Ok(()));
        file
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
        match (self.outcomes.get(&file), &self.full) {
            (Some(Err(Failure::Partial(_)) | Ok(())) | None, None) => {}
            (Some(Err(failure)), None) | (_, Some(failure)) => return Err(failure.clone()),
        }
        match self.sink.send(&self.bucket, batch, Precision::Seconds) {
            Ticket::Done(result) => self.record(file, result),
            ticket => self.flying.push_back(Flight { file, span, ticket }),
        }
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
        self.outcomes.remove(&file).unwrap_or(Ok(()))
    }

    fn await_oldest(&mut self) {
        if let Some(Flight { file, ticket, .. }) = self.flying.pop_front() {
            self.record(file, ticket.wait());
        }
    }

    fn record(&mut self, file: Parcel, result: Result<(), Failure>) {
        let Err(failure) = result else { return };
        if matches!(failure, Failure::Storage(_)) {
            self.full.get_or_insert_with(|| failure.clone());
        }
        let outcome = self.outcomes.entry(file).or_insert(Ok(()));
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
    use crate::sink::LineProtocolDir;

    fn batch(line: &str) -> Batch {
        Batch::plain(line.as_bytes().to_vec(), 1)
    }

    #[test]
    fn what_the_disk_does_not_take_is_not_overtaken() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Sink::LineProtocolDir(LineProtocolDir::new(dir.path()).unwrap());
        let mut courier = Courier::new(&sink, "acme");
        // Nothing can be written for a moment.
        let in_the_way = dir.path().join("acme.lp");
        std::fs::create_dir(&in_the_way).unwrap();
        let first = courier.begin();
        let _ = courier.send(first, batch("m,a=b value=1 1\n"));
        assert!(matches!(courier.land(first), Err(Failure::Storage(_))));
        std::fs::remove_dir(&in_the_way).unwrap();
        let second = courier.begin();
        let sent = courier.send(second, batch("m,a=b value=2 1\n"));
        assert!(matches!(sent, Err(Failure::Storage(_))));
        assert!(!in_the_way.exists());
        // Another device, or the next run, may have more luck.
        let mut courier = Courier::new(&sink, "acme");
        let third = courier.begin();
        courier.send(third, batch("m,a=b value=3 1\n")).unwrap();
        assert_eq!(courier.land(third), Ok(()));
    }

    #[test]
    fn spans_touch_where_they_share_a_second() {
        assert!(touch(&(1..=5), &(5..=9)));
        assert!(touch(&(5..=9), &(1..=5)));
        assert!(touch(&(1..=9), &(3..=4)));
        assert!(!touch(&(1..=4), &(5..=9)));
    }
}
