//! Sends the batches of one device so that the result equals writing its files and rows one after another.
//! See docs/specification.md, section 5.

use crate::points::Batch;
use crate::points::TimeRange;
use crate::sink::{PendingWrite, PointCounts, Sink, Stream, WriteError, Written};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The maximum number of batches of one device in flight. More than one keeps the server busy while the next arrives.
const WINDOW: usize = 3;

/// Sends the batches of one device. Batches whose time ranges do not overlap may be in flight together, whichever files
/// they belong to; a batch that overlaps an earlier one waits for it.
pub(crate) struct OrderedSender<'a> {
    sink: &'a Sink,
    bucket: Arc<str>,
    in_flight: VecDeque<InFlight>,
    /// The result so far of each file that was begun and not yet waited for.
    results: HashMap<FileId, Written>,
    files: usize,
    /// The first storage error. Nothing more is written for this device after it, because later points would then
    /// precede those of the file that is left in place.
    storage_error: Option<WriteError>,
}

/// The result of a file without batches.
const NOTHING_WRITTEN: Written = Written {
    points: PointCounts {
        accepted: 0,
        expired: 0,
    },
    result: Ok(()),
    unanswered: false,
};

struct InFlight {
    file: FileId,
    span: TimeRange,
    write: PendingWrite,
}

/// The batches of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileId(usize);

impl<'a> OrderedSender<'a> {
    /// Creates a sender for the files of one device, which go to one bucket.
    pub(crate) fn new(sink: &'a Sink, bucket: &str) -> Self {
        Self {
            sink,
            bucket: bucket.into(),
            in_flight: VecDeque::new(),
            results: HashMap::new(),
            files: 0,
            storage_error: None,
        }
    }

    /// Looks up the bucket in the background, before the first batch is ready.
    pub(crate) fn prefetch_bucket(&self) {
        self.sink.prefetch_bucket(&self.bucket);
    }

    /// Begins the next file.
    pub(crate) fn begin(&mut self) -> FileId {
        self.files += 1;
        let file = FileId(self.files);
        self.results.insert(file, NOTHING_WRITTEN);
        file
    }

    /// Sends the next batch of a file, after all earlier batches that it overlaps have completed.
    ///
    /// # Errors
    /// An earlier error of the same file or a storage error of the device, if it makes further batches useless.
    pub(crate) fn send(&mut self, file: FileId, batch: Batch) -> Result<(), WriteError> {
        let span = batch.span.clone();
        while self.in_flight.len() >= WINDOW
            || self.in_flight.iter().any(|f| overlaps(&f.span, &span))
        {
            self.await_oldest();
        }
        let result = self.results.get(&file).map(|written| &written.result);
        match (result, &self.storage_error) {
            (Some(Err(WriteError::Partial(_)) | Ok(())) | None, None) => {}
            (Some(Err(failure)), None) | (_, Some(failure)) => return Err(failure.clone()),
        }
        match self.sink.send(&self.bucket, batch, Stream::Measurements) {
            PendingWrite::Done(written) => self.record(file, written),
            write @ PendingWrite::InFlight(_) => {
                self.in_flight.push_back(InFlight { file, span, write });
            }
        }
        Ok(())
    }

    /// Waits until all batches of a file have completed. Returns how many of its points were written, with the first error
    /// that ended the file, else its first [`WriteError::Partial`].
    pub(crate) fn wait(&mut self, file: FileId) -> Written {
        while self
            .in_flight
            .iter()
            .any(|in_flight| in_flight.file == file)
        {
            self.await_oldest();
        }
        self.results.remove(&file).unwrap_or(NOTHING_WRITTEN)
    }

    fn await_oldest(&mut self) {
        if let Some(InFlight { file, write, .. }) = self.in_flight.pop_front() {
            self.record(file, write.wait());
        }
    }

    fn record(&mut self, file: FileId, written: Written) {
        let so_far = self.results.entry(file).or_insert(NOTHING_WRITTEN);
        so_far.points.accepted += written.points.accepted;
        so_far.points.expired += written.points.expired;
        so_far.unanswered |= written.unanswered;
        let Err(failure) = written.result else { return };
        if matches!(failure, WriteError::Storage(_)) {
            self.storage_error.get_or_insert_with(|| failure.clone());
        }
        // An error that ends the file replaces a partial write; otherwise the first error is kept.
        let replaces = match so_far.result {
            Ok(()) => true,
            Err(WriteError::Partial(_)) => !matches!(failure, WriteError::Partial(_)),
            Err(_) => false,
        };
        if replaces {
            so_far.result = Err(failure);
        }
    }
}

impl Drop for OrderedSender<'_> {
    /// Waits for all requests in flight, so that none is pending when another process locks the device.
    fn drop(&mut self) {
        while !self.in_flight.is_empty() {
            self.await_oldest();
        }
    }
}

/// Whether two time ranges share a second.
pub(crate) fn overlaps(a: &TimeRange, b: &TimeRange) -> bool {
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
    fn nothing_is_written_after_a_storage_error() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Sink::LineProtocolDir(LineProtocolDir::new(dir.path()).unwrap());
        let mut sender = OrderedSender::new(&sink, "acme");
        // A folder in place of the file makes the first write fail.
        let obstacle = dir.path().join("acme.lp");
        std::fs::create_dir(&obstacle).unwrap();
        let first = sender.begin();
        let _ = sender.send(first, batch("m,a=b value=1 1\n"));
        let written = sender.wait(first);
        assert!(matches!(written.result, Err(WriteError::Storage(_))));
        assert_eq!(written.points.accepted, 0);
        std::fs::remove_dir(&obstacle).unwrap();
        let second = sender.begin();
        let sent = sender.send(second, batch("m,a=b value=2 1\n"));
        assert!(matches!(sent, Err(WriteError::Storage(_))));
        assert!(!obstacle.exists());
        // Another device, or the next run, uses a new sender.
        let mut sender = OrderedSender::new(&sink, "acme");
        let third = sender.begin();
        sender.send(third, batch("m,a=b value=3 1\n")).unwrap();
        let written = sender.wait(third);
        assert_eq!((written.points.accepted, written.result), (1, Ok(())));
    }

    #[test]
    fn time_ranges_overlap_if_they_share_a_second() {
        assert!(overlaps(&(1..=5), &(5..=9)));
        assert!(overlaps(&(5..=9), &(1..=5)));
        assert!(overlaps(&(1..=9), &(3..=4)));
        assert!(!overlaps(&(1..=4), &(5..=9)));
    }
}
