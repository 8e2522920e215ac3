//! InfluxDB 2 over HTTP. This is the only module that depends on the crate `influxdb2`.
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

mod buckets;
mod client;
mod health;
mod redact;
mod response;

pub(crate) use health::Probe;

use self::client::Client;
use super::{PendingWrite, ServerSettings, Stream, WriteError, Written};
use crate::points::Batch;
use crate::shutdown::Shutdown;
use anyhow::Context as _;
use std::sync::Arc;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;

/// The connection to an InfluxDB server, shared by all devices of a run.
pub(crate) struct Influx {
    /// `Some` until the value is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    client: Arc<Client>,
}

impl Drop for Influx {
    /// Shuts the runtime down without waiting for blocking tasks, such as a DNS lookup that hangs.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Influx {
    /// Sets up the client without sending a request.
    ///
    /// # Errors
    /// The network thread cannot be started, or TLS cannot be set up.
    pub(crate) fn new(settings: &ServerSettings, stop: Shutdown) -> anyhow::Result<Self> {
        // One thread suffices, because requests only wait. Parsing and compression run on the threads of the devices.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4)
            .enable_all()
            .build()
            .context("cannot start the network thread")?;
        let client = Arc::new(Client::new(settings, stop)?);
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
            client,
        })
    }

    /// Sends a batch in the background.
    pub(crate) fn send(&self, bucket: &Arc<str>, batch: Batch, stream: Stream) -> PendingWrite {
        if let Some(outage) = self.client.retry(stream).outage(bucket) {
            return PendingWrite::Done(Written::whole(batch.lines, Err(outage)));
        }
        let (sender, receiver) = oneshot::channel();
        let (client, bucket) = (Arc::clone(&self.client), Arc::clone(bucket));
        self.handle.spawn(async move {
            let written = client.write_batch(&bucket, batch, stream).await;
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

    /// The outage, once the bucket or the server counts as unavailable.
    pub(crate) fn outage(&self, bucket: &str) -> Option<WriteError> {
        self.client.retry.outage(bucket)
    }

    /// Whether the server or a bucket counts as unavailable for measurements.
    pub(crate) fn has_outage(&self) -> bool {
        self.client.retry.has_outage()
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
