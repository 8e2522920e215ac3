//! InfluxDB 2 over HTTP. Everything that is known about the crate `influxdb2` stays in this module.
//!
//! Read in its source (0.5.2): it keeps scheme, host and port of the address only, panics on one that does not parse (the
//! settings have checked it), has no time-out but those of the HTTP client it is given, and compresses nothing that is handed
//! over as bytes; a body we compressed goes through a client of its own whose every request says `Content-Encoding: gzip`. An
//! error carries status and text, no header. A bucket kept for more than 68 years is an answer it cannot read.

mod buckets;
mod client;
mod health;
mod redact;
mod response;

pub use health::Probe;

use self::client::Client;
use super::{PendingWrite, Precision, ServerSettings, WriteError};
use crate::points::Batch;
use crate::shutdown::Shutdown;
use anyhow::Context as _;
use std::sync::Arc;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;

/// A server, shared by all devices of a run.
pub struct Influx {
    /// Some until it is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    client: Arc<Client>,
}

impl Drop for Influx {
    /// Does not wait for a name that nobody resolves.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Influx {
    /// Prepares the client; no request is made.
    ///
    /// # Errors
    /// Where the system refuses threads or the TLS library cannot be set up.
    pub fn new(settings: &ServerSettings, stop: Shutdown) -> anyhow::Result<Self> {
        // One thread: requests only wait, the work of a run is done by the threads of its devices.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4)
            .enable_all()
            .build()
            .context("the network thread cannot be started")?;
        let client = Arc::new(Client::new(settings, stop)?);
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
            client,
        })
    }

    /// Sends a batch; blocks only while too many are in flight.
    pub fn send(&self, bucket: &Arc<str>, batch: Batch, precision: Precision) -> PendingWrite {
        if let Some(outage) = self.client.retry(precision).outage() {
            return PendingWrite::Done(Err(outage));
        }
        let (sender, receiver) = oneshot::channel();
        let (client, bucket) = (Arc::clone(&self.client), Arc::clone(bucket));
        self.handle.spawn(async move {
            let result = client.write_batch(&bucket, batch, precision).await;
            // Nobody waits any more: the run has ended.
            let _ = sender.send(result);
        });
        PendingWrite::InFlight(receiver)
    }

    /// Looks a bucket up, while its first batch is still being made. It makes none: the batch may never come.
    pub fn prefetch_bucket(&self, bucket: &Arc<str>) {
        let (client, bucket) = (Arc::clone(&self.client), Arc::clone(bucket));
        self.handle
            .spawn(async move { client.prefetch_bucket(&bucket).await });
    }

    /// Why the server counts as gone, once it does.
    pub fn outage(&self) -> Option<WriteError> {
        self.client.retry.outage()
    }

    /// How many requests were sent again.
    pub fn retries(&self) -> u64 {
        self.client.retry.retries() + self.client.meta_retry.retries()
    }

    /// Asks the server how it is, once each and without patience.
    pub fn probe(&self, meta_bucket: &str) -> Probe {
        self.handle.block_on(self.client.probe(meta_bucket))
    }
}
