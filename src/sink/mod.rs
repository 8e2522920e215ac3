//! Where points go, behind one narrow seam: a server, files of line protocol, or nowhere.

mod influx2;
mod line_protocol_dir;
pub mod ordered_sender;
mod retry;

pub use influx2::{Influx, Probe};
pub use line_protocol_dir::LineProtocolDir;

use crate::config::{Destination, Settings};
use crate::points::Batch;
use crate::shutdown::Stop;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Why a batch is not, or not wholly, where it should be. What becomes of the file follows from the kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server cannot be used, for the whole run: the file is fine and is worth another try.
    #[error("{0}")]
    Outage(String),
    /// The server kept only a part of this batch; further batches are still worth sending.
    #[error("{0}")]
    Partial(String),
    /// The server refuses this file's data.
    #[error("{0}")]
    Rejected(String),
    /// A file of line protocol cannot be written; the input stays where it is.
    #[error("{0}")]
    Storage(String),
    /// The run was asked to end.
    #[error("the run was asked to stop")]
    Stopped,
}

/// The unit of the times in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Measurements.
    Seconds,
    /// Reports: so that two never overwrite each other.
    Nanoseconds,
}

/// A place to write to.
pub enum Sink {
    /// InfluxDB 2.
    Influx(Influx),
    /// One file a bucket.
    LineProtocolDir(LineProtocolDir),
    /// A dry run.
    Nowhere,
}

/// A batch on its way.
pub enum Ticket {
    /// It has arrived, or failed, already.
    Done(Result<(), Failure>),
    /// In flight.
    Flying(oneshot::Receiver<Result<(), Failure>>),
}

impl Ticket {
    /// Blocks until the batch has arrived or failed.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn wait(self) -> Result<(), Failure> {
        match self {
            Self::Done(result) => result,
            Self::Flying(answer) => answer.blocking_recv().unwrap_or(Err(Failure::Stopped)),
        }
    }
}

impl Sink {
    /// Opens the destination of the settings. No request is made yet.
    ///
    /// # Errors
    /// A folder that cannot be made, or a client that cannot be built.
    pub fn open(settings: &Settings, stop: &Stop) -> anyhow::Result<Self> {
        Ok(match &settings.destination {
            Destination::Influx(server) => Self::Influx(Influx::new(server, stop.clone())?),
            Destination::LineProtocolDir(dir) => Self::LineProtocolDir(LineProtocolDir::new(dir)?),
            Destination::Nowhere => Self::Nowhere,
        })
    }

    /// Sends a batch off. Blocks only while too many are in flight.
    pub fn send(&self, bucket: &Arc<str>, batch: Batch, precision: Precision) -> Ticket {
        match self {
            Self::Influx(server) => server.send(bucket, batch, precision),
            Self::LineProtocolDir(dir) => Ticket::Done(dir.append(bucket, &batch)),
            Self::Nowhere => Ticket::Done(Ok(())),
        }
    }

    /// Tells which bucket will be written to, so that it is known by then.
    pub fn look_up(&self, bucket: &Arc<str>) {
        if let Self::Influx(server) = self {
            server.look_up(bucket);
        }
    }

    /// Makes sure of what was written: after this a power cut takes nothing of it away.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub fn settle(&self, bucket: &str) -> Result<(), Failure> {
        match self {
            Self::LineProtocolDir(dir) => dir.sync(bucket),
            // A server that has answered has written its log.
            Self::Influx(_) | Self::Nowhere => Ok(()),
        }
    }

    /// Why the run does without the server from now on, once that is decided.
    pub fn outage(&self) -> Option<Failure> {
        match self {
            Self::Influx(server) => server.outage(),
            Self::LineProtocolDir(_) | Self::Nowhere => None,
        }
    }

    /// How many requests were sent again so far.
    pub fn retries(&self) -> u64 {
        match self {
            Self::Influx(server) => server.retries(),
            Self::LineProtocolDir(_) | Self::Nowhere => 0,
        }
    }

    /// Whether bodies should be compressed for this place.
    pub fn wants_gzip(&self, gzip: bool) -> bool {
        gzip && matches!(self, Self::Influx(_))
    }

    /// Whether lines are worth making at all.
    pub fn is_nowhere(&self) -> bool {
        matches!(self, Self::Nowhere)
    }
}
