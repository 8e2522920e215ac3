//! The batches of one device on their way: what is written is as if its files and rows had been written one after another.
//! Source: docs/specification.md, section 5.

use crate::points::Batch;
use crate::points::TimeRange;
use crate::sink::{PendingWrite, Precision, Sink, WriteError};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// How many batches of one device may be in flight: while the server takes one, the next arrives.
const WINDOW: usize = 3;

/// Sends batches so that those whose times do not touch fly together, whichever files they are of; others wait for each other.
pub struct OrderedSender<'a> {
    sink: &'a Sink,
    bucket: Arc<str>,
    in_flight: VecDeque<InFlight>,
    /// What is known so far of the batches of each file that has not landed.
    results: HashMap<FileId, Result<(), WriteError>>,
    files: usize,
    /// The disk does not take what should be written: of this device nothing more is, for it would overtake what stays.
    storage_error: Option<WriteError>,
}

struct InFlight {
    file: FileId,
    span: TimeRange,
    ticket: PendingWrite,
}

/// The batches of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(usize);

impl<'a> OrderedSender<'a> {
    /// For files of one bucket and device.
    pub fn new(sink: &'a Sink, bucket: &str) -> Self {
        Self {
            sink,
            bucket: bucket.into(),
            in_flight: VecDeque::new(),
            results: HashMap::new(),
            files: 0,
            storage_error: None,
        }
    }

    /// Says that a batch will come soon.
    pub fn prefetch_bucket(&self) {
        self.sink.prefetch_bucket(&self.bucket);
    }

    /// Begins with the next file.
    pub fn begin(&mut self) -> FileId {
        self.files += 1;
        let file = FileId(self.files);
        self.results.insert(file, Ok(()));
        file
    }

    /// Sends the next batch of a file, once those that it must not overtake have arrived.
    ///
    /// # Errors
    /// What another batch of the same file has met with, if further ones are no use.
    pub fn send(&mut self, file: FileId, batch: Batch) -> Result<(), WriteError> {
        let span = batch.span.clone();
        while self.in_flight.len() >= WINDOW
            || self.in_flight.iter().any(|f| overlaps(&f.span, &span))
        {
            self.await_oldest();
        }
        match (self.results.get(&file), &self.storage_error) {
            (Some(Err(WriteError::Partial(_)) | Ok(())) | None, None) => {}
            (Some(Err(failure)), None) | (_, Some(failure)) => return Err(failure.clone()),
        }
        match self.sink.send(&self.bucket, batch, Precision::Seconds) {
            PendingWrite::Done(result) => self.record(file, result),
            ticket => self.in_flight.push_back(InFlight { file, span, ticket }),
        }
        Ok(())
    }

    /// Waits until all batches of a file have arrived or failed.
    ///
    /// # Errors
    /// What ended it, else the first answer that said "not all of it".
    pub fn wait(&mut self, file: FileId) -> Result<(), WriteError> {
        while self
            .in_flight
            .iter()
            .any(|in_flight| in_flight.file == file)
        {
            self.await_oldest();
        }
        self.results.remove(&file).unwrap_or(Ok(()))
    }

    fn await_oldest(&mut self) {
        if let Some(InFlight { file, ticket, .. }) = self.in_flight.pop_front() {
            self.record(file, ticket.wait());
        }
    }

    fn record(&mut self, file: FileId, result: Result<(), WriteError>) {
        let Err(failure) = result else { return };
        if matches!(failure, WriteError::Storage(_)) {
            self.storage_error.get_or_insert_with(|| failure.clone());
        }
        let result_so_far = self.results.entry(file).or_insert(Ok(()));
        // What ends a file weighs more than a part that the server dropped; of two that weigh the same, the first is told.
        let outweighs = match result_so_far {
            Ok(()) => true,
            Err(WriteError::Partial(_)) => !matches!(failure, WriteError::Partial(_)),
            Err(_) => false,
        };
        if outweighs {
            *result_so_far = Err(failure);
        }
    }
}

impl Drop for OrderedSender<'_> {
    /// Whatever the reason for giving up: nothing is in flight any more when another process gets the device.
    fn drop(&mut self) {
        while !self.in_flight.is_empty() {
            self.await_oldest();
        }
    }
}

fn overlaps(a: &TimeRange, b: &TimeRange) -> bool {
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
        let mut sender = OrderedSender::new(&sink, "acme");
        // Nothing can be written for a moment.
        let in_the_way = dir.path().join("acme.lp");
        std::fs::create_dir(&in_the_way).unwrap();
        let first = sender.begin();
        let _ = sender.send(first, batch("m,a=b value=1 1\n"));
        assert!(matches!(sender.wait(first), Err(WriteError::Storage(_))));
        std::fs::remove_dir(&in_the_way).unwrap();
        let second = sender.begin();
        let sent = sender.send(second, batch("m,a=b value=2 1\n"));
        assert!(matches!(sent, Err(WriteError::Storage(_))));
        assert!(!in_the_way.exists());
        // Another device, or the next run, may have more luck.
        let mut sender = OrderedSender::new(&sink, "acme");
        let third = sender.begin();
        sender.send(third, batch("m,a=b value=3 1\n")).unwrap();
        assert_eq!(sender.wait(third), Ok(()));
    }

    #[test]
    fn spans_touch_where_they_share_a_second() {
        assert!(overlaps(&(1..=5), &(5..=9)));
        assert!(overlaps(&(5..=9), &(1..=5)));
        assert!(overlaps(&(1..=9), &(3..=4)));
        assert!(!overlaps(&(1..=4), &(5..=9)));
    }
}
