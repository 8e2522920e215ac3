//! InfluxDB 2 over HTTP. Everything that is known about the crate `influxdb2` stays in this module.
//!
//! Read in its source (0.5.2): it keeps scheme, host and port of the address only, panics on one that does not parse (the
//! settings have checked it), has no time-out but those of the HTTP client it is given, and compresses nothing that is handed
//! over as bytes; a body we compressed goes through a client of its own whose every request says `Content-Encoding: gzip`. An
//! error carries status and text, no header. A bucket kept for more than 68 years is an answer it cannot read.

mod buckets;
mod health;
mod redact;
mod response;

pub use health::Probe;

use self::redact::Token;
use self::response::status_of;
use super::retry::{Answer, Patience, Trouble};
use super::{Failure, Precision, Ticket};
use crate::config::InfluxSettings;
use crate::points::Batch;
use crate::sanitize::shown;
use crate::shutdown::Stop;
use anyhow::Context as _;
use influxdb2::api::write::TimestampPrecision;
use influxdb2::{Client, ClientBuilder};
use reqwest::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{OnceCell, Semaphore, oneshot};

/// Requests in flight at a time, of all devices together.
const MAX_IN_FLIGHT: usize = 4;

/// How long the points about a run are tried, at most: files wait for them, and they are worth less.
const META_RETRY_FOR: Duration = Duration::from_secs(10);

/// A server, shared by all devices of a run.
pub struct Influx {
    /// Some until it is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    link: Arc<Link>,
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
    pub fn new(settings: &InfluxSettings, stop: Stop) -> anyhow::Result<Self> {
        // One thread: requests only wait, the work of a run is done by the threads of its devices.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4)
            .enable_all()
            .build()
            .context("the network thread cannot be started")?;
        let link = Arc::new(Link::new(settings, stop)?);
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
            link,
        })
    }

    /// Sends a batch; blocks only while too many are in flight.
    pub fn send(&self, bucket: &Arc<str>, batch: Batch, precision: Precision) -> Ticket {
        if let Some(outage) = self.link.patience(precision).outage() {
            return Ticket::Done(Err(outage));
        }
        let (sender, receiver) = oneshot::channel();
        let (link, bucket) = (Arc::clone(&self.link), Arc::clone(bucket));
        self.handle.spawn(async move {
            let result = link.deliver(&bucket, batch, precision).await;
            // Nobody waits any more: the run has ended.
            let _ = sender.send(result);
        });
        Ticket::Flying(receiver)
    }

    /// Looks a bucket up, while its first batch is still being made. It makes none: the batch may never come.
    pub fn look_up(&self, bucket: &Arc<str>) {
        let (link, bucket) = (Arc::clone(&self.link), Arc::clone(bucket));
        self.handle
            .spawn(async move { link.look_up(&bucket).await });
    }

    /// Why the server counts as gone, once it does.
    pub fn outage(&self) -> Option<Failure> {
        self.link.patience.outage()
    }

    /// How many requests were sent again.
    pub fn retries(&self) -> u64 {
        self.link.patience.retries() + self.link.meta_patience.retries()
    }

    /// Asks the server how it is, once each and without patience.
    pub fn probe(&self, meta_bucket: &str) -> Probe {
        self.handle.block_on(self.link.probe(meta_bucket))
    }
}

struct Link {
    /// For bodies that we compressed.
    compressed: Client,
    /// For all other requests.
    plain: Client,
    org: String,
    address: String,
    /// What is said must not hold it.
    token: Token,
    patience: Patience,
    /// With the bucket of the reports, whose trouble must not touch the fate of any file.
    meta_patience: Patience,
    in_flight: Semaphore,
    /// The buckets that are known to exist, by the name that a write gives.
    buckets: Mutex<HashMap<Arc<str>, Arc<OnceCell<String>>>>,
    /// Those that an early look-up did not find.
    missing: Mutex<HashSet<Arc<str>>>,
}

impl Link {
    fn new(settings: &InfluxSettings, stop: Stop) -> anyhow::Result<Self> {
        let client = |headers: HeaderMap| {
            let http = reqwest::Client::builder()
                .use_rustls_tls()
                // Loading the system's roots takes longer than a day's file.
                .tls_built_in_root_certs(settings.url.scheme() == "https")
                .connect_timeout(settings.connect_timeout)
                .timeout(settings.request_timeout)
                // Data go where the settings say and nowhere else: no proxy of the environment, no redirect.
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .tcp_nodelay(true)
                .user_agent(concat!("powerview/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers);
            ClientBuilder::with_builder(http, settings.url.as_str(), &settings.org, &settings.token)
                .build()
                .context("the HTTP client cannot be set up")
        };
        let gzip = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        Ok(Self {
            compressed: client(gzip)?,
            plain: client(HeaderMap::new())?,
            org: settings.org.clone(),
            address: settings.url.as_str().trim_end_matches('/').to_owned(),
            token: Token::new(&settings.token),
            patience: Patience::new(
                settings.retry_for,
                settings.request_timeout,
                stop.clone(),
                true,
            ),
            meta_patience: Patience::new(
                settings.retry_for.min(META_RETRY_FOR),
                settings.request_timeout.min(META_RETRY_FOR),
                stop,
                false,
            ),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            buckets: Mutex::default(),
            missing: Mutex::default(),
        })
    }

    /// How a failing server is asked again for points of this kind. Without the server for measurements, there is none for
    /// reports either.
    fn patience(&self, precision: Precision) -> &Patience {
        match precision {
            Precision::Nanoseconds if self.patience.outage().is_none() => &self.meta_patience,
            _ => &self.patience,
        }
    }

    /// Writes a batch, whatever it takes: in halves where it is too large, into a bucket made anew where it is gone.
    async fn deliver(
        &self,
        bucket: &Arc<str>,
        batch: Batch,
        precision: Precision,
    ) -> Result<(), Failure> {
        let _permit = self
            .in_flight
            .acquire()
            .await
            .map_err(|_| Failure::Stopped)?;
        let patience = self.patience(precision);
        let mut remade = false;
        let mut partial = None;
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            // The bucket of the reports is not looked up: it is nearly always there, and a write says so if it is not.
            let name = match precision {
                Precision::Seconds => self.known_bucket(bucket, patience).await?,
                Precision::Nanoseconds => bucket.to_string(),
            };
            let attempt = || self.write(&name, &part, precision);
            let answer = match patience.insist(attempt).await {
                Ok(()) => {
                    patience.written();
                    continue;
                }
                Err(Trouble::Over(failure)) => return Err(failure),
                Err(Trouble::Said(answer)) => answer,
            };
            match answer {
                Answer::TooLarge(words) => match part.halves() {
                    Ok(Some((first, second))) => parts.extend([second, first]),
                    Ok(None) => {
                        let text = part.text().unwrap_or_default();
                        return Err(Failure::Rejected(format!(
                            "{words}; even the single line {:?} of bucket {:?} is too large for the server",
                            shown(String::from_utf8_lossy(&text).trim_end()),
                            shown(&**bucket)
                        )));
                    }
                    Err(error) => return Err(Failure::Rejected(error.to_string())),
                },
                Answer::NotFound(words) if remade => {
                    return Err(Failure::Rejected(format!(
                        "bucket {:?}: {words}",
                        shown(&**bucket)
                    )));
                }
                Answer::NotFound(_) => {
                    remade = true;
                    self.forget(bucket);
                    self.known_bucket(bucket, patience).await?;
                    parts.push(part);
                }
                Answer::Partial(words) => {
                    patience.written();
                    partial
                        .get_or_insert_with(|| format!("bucket {:?}: {words}", shown(&**bucket)));
                }
                Answer::Refused(words) | Answer::Transient(words) | Answer::Installation(words) => {
                    return Err(Failure::Rejected(format!(
                        "bucket {:?}: {words}",
                        shown(&**bucket)
                    )));
                }
            }
        }
        partial.map_or(Ok(()), |words| Err(Failure::Partial(words)))
    }

    async fn write(&self, bucket: &str, batch: &Batch, precision: Precision) -> Result<(), Answer> {
        let client = if batch.gzip {
            &self.compressed
        } else {
            &self.plain
        };
        let precision = match precision {
            Precision::Seconds => TimestampPrecision::Seconds,
            Precision::Nanoseconds => TimestampPrecision::Nanoseconds,
        };
        client
            .write_line_protocol_with_precision(&self.org, bucket, batch.body.clone(), precision)
            .await
            .map_err(|error| match self.answer(&error) {
                // A write knows 422 as "kept the rest"; other requests do not.
                Answer::Refused(words) if status_of(&error) == Some(422) => Answer::Partial(words),
                answer => answer,
            })
    }
}
