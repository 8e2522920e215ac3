//! InfluxDB 2 over HTTP, and InfluxDB 3 through its compatible endpoint for writes. This is the only module that depends on
//! the crate `influxdb2`.
//!
//! Limits of `influxdb2` 0.5.2 that this module works around:
//!
//! - It keeps only scheme, host and port of the URL, and panics on a URL that does not parse. The settings check the URL.
//! - It has no timeouts of its own. They are set on the HTTP client.
//! - It depends on reqwest 0.11, whose TLS crates have open advisories. `src/compat/reqwest` replaces it by the current one.
//! - It reads the bodies of responses without a limit. `src/compat/reqwest` limits them.
//! - It does not compress bodies that are passed as bytes. Compressed bodies use a second client, which adds
//!   `Content-Encoding: gzip` to every request.
//! - Its errors carry status and text, but no response headers.
//! - It cannot parse a bucket with a retention of more than 68 years.

mod admin;
mod buckets;
mod channels;
mod client;
mod copying;
mod flux;
mod health;
mod influx3;
mod reader;
mod redact;
mod response;
mod sql;

pub(crate) use client::SUMMARY_TIME;
pub(crate) use health::Probe;
pub(crate) use reader::InfluxReader;

use self::buckets::is_bucket_id;
use self::client::Client;
use super::{PendingWrite, ServerSettings, Stream, WriteError, Written};
use crate::points::Batch;
use crate::remedy::{MORE_THREADS, remedy};
use crate::shutdown::Shutdown;
use anyhow::anyhow;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

/// The connection to an InfluxDB server, shared by all devices of a run.
pub(crate) struct Influx {
    handle: Handle,
    client: Arc<Client>,
    #[expect(dead_code, reason = "dropping it ends the network thread")]
    running: oneshot::Sender<()>,
}

/// The error of a write that is not answered in time.
fn late_write() -> WriteError {
    WriteError::Unwritten("the server did not answer in time".to_owned())
}

impl Influx {
    /// Sets up the client without sending a request.
    ///
    /// # Errors
    /// The network thread cannot be started, or TLS cannot be set up.
    pub(crate) fn new(settings: &ServerSettings, stop: Shutdown) -> anyhow::Result<Self> {
        let client = Arc::new(Client::new(settings, stop)?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| {
                anyhow!(
                    "cannot set up the network: {error}; {}",
                    remedy(&error, "check the limits of the process")
                )
            })?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel();
        // One thread suffices, because requests only wait. Parsing and compression run on the threads of the devices.
        // The multi-threaded runtime would panic if its thread could not be started.
        std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || {
                let _ = runtime.block_on(ended);
            })
            .map_err(|error| anyhow!("cannot start the network thread: {error}; {MORE_THREADS}"))?;
        Ok(Self {
            handle,
            client,
            running,
        })
    }

    /// Sends a batch in the background.
    pub(crate) fn send(&self, bucket: &Arc<str>, batch: Batch, stream: Stream) -> PendingWrite {
        if let Some(outage) = self.client.retry(stream).outages().of(bucket) {
            return PendingWrite::Done(Written::whole(batch.lines, Err(outage)));
        }
        let (sender, receiver) = oneshot::channel();
        let (client, bucket) = (Arc::clone(&self.client), Arc::clone(bucket));
        self.handle.spawn(async move {
            let lines = batch.lines;
            let write = client.write_batch(&bucket, batch, stream);
            let written = match stream {
                Stream::Summaries(deadline) => timeout_at(deadline.into(), write)
                    .await
                    .unwrap_or_else(|_| Written::whole(lines, Err(late_write()))),
                Stream::Measurements | Stream::Copies | Stream::Meta => write.await,
            };
            // The receiver is gone if the run has ended.
            let _ = sender.send(written);
        });
        PendingWrite::InFlight(receiver)
    }

    /// Looks up a bucket in the background. It does not create the bucket, because the file may turn out to be invalid.
    pub(crate) fn prefetch_bucket(&self, bucket: &Arc<str>) {
        let (client, bucket) = (Arc::clone(&self.client), Arc::clone(bucket));
        self.handle
            .spawn(async move { client.prefetch_bucket(&bucket).await });
    }

    /// Looks a bucket up again before the next write, if writes use its id.
    pub(crate) fn forget_bucket_id(&self, bucket: &str) {
        if is_bucket_id(bucket) {
            self.client.forget(bucket);
        }
    }

    /// The outage, once the bucket or the server counts as unavailable.
    pub(crate) fn outage(&self, bucket: &str) -> Option<WriteError> {
        self.client.retry.outages().of(bucket)
    }

    /// Whether the server or a bucket counts as unavailable for measurements.
    pub(crate) fn has_outage(&self) -> bool {
        self.client.retry.outages().has_any()
    }

    /// Whether the server is known to be InfluxDB 3.
    pub(crate) fn is_influx3(&self) -> bool {
        self.client.is_influx3()
    }

    /// The number of retries so far.
    pub(crate) fn retries(&self) -> u64 {
        self.client.retry.retries() + self.client.meta_retry.retries()
    }

    /// Checks server, organisation and token with one request each, without retries.
    pub(crate) fn probe(&self, meta_bucket: &str) -> Probe {
        self.handle.block_on(self.client.probe(meta_bucket))
    }
}
