//! Where points go, behind one narrow seam: a server, files of line protocol, or nowhere.

mod influx2;
mod line_protocol_dir;
pub mod ordered_sender;
mod retry;

pub use influx2::{Influx, Probe};
pub use line_protocol_dir::LineProtocolDir;

use crate::points::Batch;
use crate::shutdown::Shutdown;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Where points go.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A server.
    Influx(ServerSettings),
    /// Files of line protocol in this folder.
    LineProtocolDir(PathBuf),
    /// Nowhere: a dry run.
    Discard,
}

/// The server and how to speak with it.
#[derive(Clone)]
pub struct ServerSettings {
    /// Scheme, host and port; no path.
    pub url: url::Url,
    /// Never shown.
    pub token: String,
    /// The organisation's name.
    pub org: String,
    /// Until the connection stands.
    pub connect_timeout: Duration,
    /// Until a request is answered.
    pub request_timeout: Duration,
    /// How long a failing server is asked again.
    pub retry_for: Duration,
}

impl std::fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerSettings({}, org {:?})", self.url, self.org)
    }
}

/// Why a batch is not, or not wholly, where it should be. What becomes of the file follows from the kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
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
    Discard,
}

/// A batch on its way.
pub enum PendingWrite {
    /// It has arrived, or failed, already.
    Done(Result<(), WriteError>),
    /// In flight.
    InFlight(oneshot::Receiver<Result<(), WriteError>>),
}

impl PendingWrite {
    /// Blocks until the batch has arrived or failed.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn wait(self) -> Result<(), WriteError> {
        match self {
            Self::Done(result) => result,
            Self::InFlight(answer) => answer.blocking_recv().unwrap_or(Err(WriteError::Stopped)),
        }
    }
}

impl Sink {
    /// Opens a destination. No request is made yet.
    ///
    /// # Errors
    /// A folder that cannot be made, or a client that cannot be built.
    pub fn open(destination: &Destination, stop: &Shutdown) -> anyhow::Result<Self> {
        Ok(match destination {
            Destination::Influx(server) => Self::Influx(Influx::new(server, stop.clone())?),
            Destination::LineProtocolDir(dir) => Self::LineProtocolDir(LineProtocolDir::new(dir)?),
            Destination::Discard => Self::Discard,
        })
    }

    /// Sends a batch off. Blocks only while too many are in flight.
    pub fn send(&self, bucket: &Arc<str>, batch: Batch, precision: Precision) -> PendingWrite {
        match self {
            Self::Influx(server) => server.send(bucket, batch, precision),
            Self::LineProtocolDir(dir) => PendingWrite::Done(dir.append(bucket, &batch)),
            Self::Discard => PendingWrite::Done(Ok(())),
        }
    }

    /// Tells which bucket will be written to, so that it is known by then.
    pub fn prefetch_bucket(&self, bucket: &Arc<str>) {
        if let Self::Influx(server) = self {
            server.prefetch_bucket(bucket);
        }
    }

    /// Makes sure of what was written: after this a power cut takes nothing of it away.
    ///
    /// # Errors
    /// [`WriteError::Storage`].
    pub fn sync(&self, bucket: &str) -> Result<(), WriteError> {
        match self {
            Self::LineProtocolDir(dir) => dir.sync(bucket),
            // A server that has answered has written its log.
            Self::Influx(_) | Self::Discard => Ok(()),
        }
    }

    /// Why the run does without the server from now on, once that is decided.
    pub fn outage(&self) -> Option<WriteError> {
        match self {
            Self::Influx(server) => server.outage(),
            Self::LineProtocolDir(_) | Self::Discard => None,
        }
    }

    /// How many requests were sent again so far.
    pub fn retries(&self) -> u64 {
        match self {
            Self::Influx(server) => server.retries(),
            Self::LineProtocolDir(_) | Self::Discard => 0,
        }
    }

    /// Whether bodies should be compressed for this place.
    pub fn wants_gzip(&self, gzip: bool) -> bool {
        gzip && matches!(self, Self::Influx(_))
    }

    /// Whether lines are worth making at all.
    pub fn is_discard(&self) -> bool {
        matches!(self, Self::Discard)
    }
}
