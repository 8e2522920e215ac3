//! The destinations of points: an InfluxDB server, line protocol files, or nothing (a dry run).

mod influx2;
mod line_protocol_dir;
mod meta_sender;
pub(crate) mod ordered_sender;
mod outage_log;
mod retry;
mod source;
mod unsent_points;

pub(crate) use influx2::{Influx, InfluxReader, Probe, SUMMARY_TIME};
pub(crate) use line_protocol_dir::{CreateDirError, LineProtocolDir};
pub(crate) use meta_sender::MetaSender;
pub(crate) use source::{
    ALL_TIMES, BucketAdmin, BucketInfo, CopySource, Field, FieldTypes, Place, PointQuery,
    PointSource, PointVisitor, ReadError, Series, SeriesQuery, StoredPoint, retried,
};
pub(crate) use unsent_points::UnsentPoints;

use crate::points::Batch;
use crate::shutdown::Shutdown;
use clap::ValueEnum;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A configured destination of points.
#[derive(Debug, Clone)]
pub(crate) enum Destination {
    /// An InfluxDB server.
    Influx(ServerSettings),
    /// Line protocol files in this folder.
    LineProtocolDir(PathBuf),
    /// Discard all points, as a dry run does.
    Discard,
}

/// The address, credentials and timeouts of an InfluxDB server.
#[derive(Clone)]
pub(crate) struct ServerSettings {
    /// Scheme, host and port; no path.
    pub url: url::Url,
    /// The API token. It must never appear in output.
    pub token: String,
    /// The name of the organisation.
    pub org: String,
    /// Limit for establishing a connection.
    pub connect_timeout: Duration,
    /// Limit for a request and its response.
    pub request_timeout: Duration,
    /// How long requests to a failing server are retried.
    pub retry_for: Duration,
    /// The version of the server.
    pub flavor: Flavor,
}

/// A value of `INFLUXDB_FLAVOR`: what server the points are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flavor {
    /// Find out from the answers of the server.
    Auto,
    /// InfluxDB 2, and the clouds with its API of buckets.
    #[value(name = "2")]
    Influx2,
    /// InfluxDB 3: no buckets and organisations, but databases.
    #[value(name = "3")]
    Influx3,
}

impl std::fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerSettings({}, org {:?})", self.url, self.org)
    }
}

/// Why a batch was not written, or only in part. The variant decides the outcome of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// The server or the bucket is unavailable for the rest of the run. The file is valid and can be retried later.
    #[error("{0}")]
    Outage(String),
    /// The server accepts other writes, but all retries of this batch failed. The file can be retried later.
    #[error("{0}")]
    Unwritten(String),
    /// The server wrote only a part of this batch. The remaining batches of the file are still sent.
    #[error("{0}")]
    Partial(String),
    /// The server rejected the data of this file.
    #[error("{0}")]
    Rejected(String),
    /// A line protocol file cannot be written. The input file is left in place.
    #[error("{0}")]
    Storage(String),
    /// A shutdown was requested.
    #[error("the run was stopped; run it again")]
    Stopped,
}

/// What the points of a batch are about. It decides the unit of their timestamps and how long they are retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Measurements of loggers, with timestamps in seconds.
    Measurements,
    /// Points that are copied from another bucket, with timestamps in nanoseconds and text that may have line breaks.
    Copies,
    /// Hourly summaries after an ingestion, with timestamps in seconds, which are not written after this time. Their failures
    /// never change the outcome of a file.
    Summaries(Instant),
    /// Points about runs and files, with timestamps in nanoseconds, so that two runs never share one. Their failures
    /// never change the outcome of a file.
    Meta,
}

/// An open destination of points.
pub(crate) enum Sink {
    /// InfluxDB 2 or 3.
    Influx(Influx),
    /// One line protocol file per bucket.
    LineProtocolDir(LineProtocolDir),
    /// Nothing is written: a dry run.
    Discard,
}

/// What became of the points of a batch or of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PointCounts {
    /// The number of points that the destination accepted.
    pub accepted: u64,
    /// The number of points that are older than the retention of the bucket.
    pub expired: u64,
}

/// The result of writing a batch or all batches of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// Counts, also of a write that failed in part.
    pub points: PointCounts,
    /// Whether all points were written or are expired.
    pub result: Result<(), WriteError>,
    /// Whether a request got no answer, so that the server may still write its points later.
    pub unanswered: bool,
}

impl Written {
    /// The result of a write that succeeded or failed as a whole.
    fn whole(lines: u32, result: Result<(), WriteError>) -> Self {
        let accepted = if result.is_ok() { lines.into() } else { 0 };
        Self {
            points: PointCounts {
                accepted,
                expired: 0,
            },
            result,
            unanswered: false,
        }
    }
}

/// A batch that was handed to a sink.
pub(crate) enum PendingWrite {
    /// The write has already succeeded or failed.
    Done(Written),
    /// The request is in flight; the result arrives on this channel.
    InFlight(oneshot::Receiver<Written>),
}

impl PendingWrite {
    /// Blocks until the write has succeeded or failed.
    pub(crate) fn wait(self) -> Written {
        match self {
            Self::Done(written) => written,
            Self::InFlight(receiver) => receiver
                .blocking_recv()
                .unwrap_or_else(|_| Written::whole(0, Err(WriteError::Stopped))),
        }
    }
}

impl Sink {
    /// Opens a destination without sending a request.
    ///
    /// # Errors
    /// The folder cannot be created ([`CreateDirError`]), or the HTTP client cannot be set up.
    pub(crate) fn open(destination: &Destination, stop: &Shutdown) -> anyhow::Result<Self> {
        Ok(match destination {
            Destination::Influx(server) => Self::Influx(Influx::new(server, stop.clone())?),
            Destination::LineProtocolDir(dir) => Self::LineProtocolDir(LineProtocolDir::new(dir)?),
            Destination::Discard => Self::Discard,
        })
    }

    /// Starts writing a batch. A server takes it in the background; a line protocol file is written before this returns.
    pub(crate) fn send(&self, bucket: &Arc<str>, batch: Batch, stream: Stream) -> PendingWrite {
        match self {
            Self::Influx(server) => server.send(bucket, batch, stream),
            Self::LineProtocolDir(dir) => {
                PendingWrite::Done(Written::whole(batch.lines, dir.append(bucket, &batch)))
            }
            Self::Discard => PendingWrite::Done(Written::whole(batch.lines, Ok(()))),
        }
    }

    /// Looks up a bucket in the background, so that the first write does not wait for the lookup.
    pub(crate) fn prefetch_bucket(&self, bucket: &Arc<str>) {
        if let Self::Influx(server) = self {
            server.prefetch_bucket(bucket);
        }
    }

    /// Makes all completed writes to a bucket durable.
    ///
    /// # Errors
    /// [`WriteError::Storage`].
    pub(crate) fn sync(&self, bucket: &str) -> Result<(), WriteError> {
        match self {
            Self::LineProtocolDir(dir) => dir.sync(bucket),
            // InfluxDB writes its write-ahead log before it responds.
            Self::Influx(_) | Self::Discard => Ok(()),
        }
    }

    /// The outage that ended the use of the server or of a bucket for this run, if there was one.
    pub(crate) fn outage(&self, bucket: &str) -> Option<WriteError> {
        match self {
            Self::Influx(server) => server.outage(bucket),
            Self::LineProtocolDir(_) | Self::Discard => None,
        }
    }

    /// Looks a bucket up again if writes use its id. Call it when a device is locked: a rebuild gives the name to another
    /// bucket while it holds the locks of all devices.
    pub(crate) fn forget_bucket_id(&self, bucket: &str) {
        match self {
            Self::Influx(server) => server.forget_bucket_id(bucket),
            Self::LineProtocolDir(_) | Self::Discard => {}
        }
    }

    /// Whether there was an outage of the server or of a bucket.
    pub(crate) fn has_outage(&self) -> bool {
        match self {
            Self::Influx(server) => server.has_outage(),
            Self::LineProtocolDir(_) | Self::Discard => false,
        }
    }

    /// The number of retries so far.
    pub(crate) fn retries(&self) -> u64 {
        match self {
            Self::Influx(server) => server.retries(),
            Self::LineProtocolDir(_) | Self::Discard => 0,
        }
    }

    /// Whether hourly summaries can be computed in the destination, as far as its answers so far show: only in InfluxDB 2.
    pub(crate) fn has_summaries(&self) -> bool {
        matches!(self, Self::Influx(server) if !server.is_influx3())
    }

    /// Whether request bodies should be compressed, given the setting.
    pub(crate) fn wants_gzip(&self, gzip: bool) -> bool {
        gzip && matches!(self, Self::Influx(_))
    }

    /// Whether all points are discarded, so that no line protocol needs to be built.
    pub(crate) fn is_discard(&self) -> bool {
        matches!(self, Self::Discard)
    }
}

/// Locks a mutex. A poisoned one is used all the same, because its data stays consistent.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
