//! The HTTP client: writes batches, and maps responses to [`WriteError`].

use super::redact::Token;
use super::response::status_of;
use crate::http::HttpSettings;
use crate::points::Batch;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::retry::{ApiError, RetryError, RetryPolicy};
use crate::sink::{ServerSettings, Stream, WriteError};
use anyhow::Context as _;
use influxdb2::api::write::TimestampPrecision;
use influxdb2::{Client as HttpClient, ClientBuilder};
use reqwest::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};

/// The maximum number of writes in flight, for all devices together.
const MAX_IN_FLIGHT: usize = 4;

/// The maximum retry time for meta points. They matter less than measurements, and files wait for them.
const META_RETRY_FOR: Duration = Duration::from_secs(10);

/// A client of one InfluxDB server.
pub(super) struct Client {
    /// Used for compressed bodies.
    pub(super) compressed: HttpClient,
    /// Used for all other requests.
    pub(super) plain: HttpClient,
    pub(super) org: String,
    pub(super) address: String,
    /// Removed from all messages.
    pub(super) token: Token,
    /// Used for measurements.
    pub(super) retry: RetryPolicy,
    /// Used for meta points, so that their failures never change the outcome of a file.
    pub(super) meta_retry: RetryPolicy,
    pub(super) in_flight: Semaphore,
    /// The buckets that were looked up, with the name or id that a write uses.
    pub(super) buckets: Mutex<HashMap<Arc<str>, Arc<OnceCell<String>>>>,
    /// The buckets that a prefetch did not find.
    pub(super) missing: Mutex<HashSet<Arc<str>>>,
}

impl Client {
    pub(super) fn new(settings: &ServerSettings, stop: Shutdown) -> anyhow::Result<Self> {
        let http_settings = HttpSettings::new(&settings.url).context("cannot set up TLS")?;
        let client = |headers: HeaderMap| {
            let http = http_settings
                .client_builder()
                .connect_timeout(settings.connect_timeout)
                .timeout(settings.request_timeout)
                // Data and token go only to the configured server.
                .redirect(reqwest::redirect::Policy::none())
                .tcp_nodelay(true)
                .user_agent(concat!("powerview/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers);
            ClientBuilder::with_builder(
                http.into(),
                settings.url.as_str(),
                &settings.org,
                &settings.token,
            )
            .build()
            .context("cannot set up the HTTP client")
        };
        let gzip = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        Ok(Self {
            compressed: client(gzip)?,
            plain: client(HeaderMap::new())?,
            org: settings.org.clone(),
            address: settings.url.as_str().trim_end_matches('/').to_owned(),
            token: Token::new(&settings.token),
            retry: RetryPolicy::new(
                settings.retry_for,
                settings.request_timeout,
                stop.clone(),
                true,
            ),
            meta_retry: RetryPolicy::new(
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

    /// The retry policy of a stream. An outage for measurements also applies to meta points.
    pub(super) fn retry(&self, stream: Stream) -> &RetryPolicy {
        match stream {
            Stream::Meta if self.retry.outage().is_none() => &self.meta_retry,
            Stream::Meta | Stream::Measurements => &self.retry,
        }
    }

    /// Writes a batch. Splits it in halves if it is too large, and creates the bucket again once if it was deleted.
    pub(super) async fn write_batch(
        &self,
        bucket: &Arc<str>,
        batch: Batch,
        stream: Stream,
    ) -> Result<(), WriteError> {
        let _permit = self
            .in_flight
            .acquire()
            .await
            .map_err(|_| WriteError::Stopped)?;
        let retry = self.retry(stream);
        let mut recreated = false;
        let mut partial = None;
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            // The meta bucket is not looked up: it nearly always exists, and a write fails with 404 if it does not.
            let name = match stream {
                Stream::Measurements => self.known_bucket(bucket, retry).await?,
                Stream::Meta => bucket.to_string(),
            };
            let attempt = || self.write(&name, &part, stream);
            let api_error = match retry.run(attempt).await {
                Ok(()) => {
                    retry.record_success();
                    continue;
                }
                Err(RetryError::GaveUp(error)) => return Err(error),
                Err(RetryError::Permanent(api_error)) => api_error,
            };
            match api_error {
                ApiError::TooLarge(message) => match part.halves() {
                    Ok(Some((first, second))) => parts.extend([second, first]),
                    Ok(None) => {
                        let text = part.text().unwrap_or_default();
                        return Err(WriteError::Rejected(format!(
                            "{message}; line {:?} for bucket {:?} is too large for the server; raise its limit for request bodies",
                            sanitize(String::from_utf8_lossy(&text).trim_end()),
                            sanitize(&**bucket)
                        )));
                    }
                    Err(error) => return Err(WriteError::Rejected(error.to_string())),
                },
                ApiError::NotFound(message) if recreated => {
                    return Err(WriteError::Rejected(format!(
                        "bucket {:?}: {message}",
                        sanitize(&**bucket)
                    )));
                }
                ApiError::NotFound(_) => {
                    recreated = true;
                    self.forget(bucket);
                    self.known_bucket(bucket, retry).await?;
                    parts.push(part);
                }
                ApiError::Partial(message) => {
                    retry.record_success();
                    partial.get_or_insert_with(|| {
                        format!("bucket {:?}: {message}", sanitize(&**bucket))
                    });
                }
                ApiError::Refused(message)
                | ApiError::Transient(message)
                | ApiError::Installation(message) => {
                    return Err(WriteError::Rejected(format!(
                        "bucket {:?}: {message}",
                        sanitize(&**bucket)
                    )));
                }
            }
        }
        partial.map_or(Ok(()), |message| Err(WriteError::Partial(message)))
    }

    pub(super) async fn write(
        &self,
        bucket: &str,
        batch: &Batch,
        stream: Stream,
    ) -> Result<(), ApiError> {
        let client = if batch.gzip {
            &self.compressed
        } else {
            &self.plain
        };
        let precision = match stream {
            Stream::Measurements => TimestampPrecision::Seconds,
            Stream::Meta => TimestampPrecision::Nanoseconds,
        };
        client
            .write_line_protocol_with_precision(&self.org, bucket, batch.body.clone(), precision)
            .await
            .map_err(|error| match self.api_error(&error) {
                // For a write, 422 means that the server wrote the other points.
                ApiError::Refused(message) if status_of(&error) == Some(422) => {
                    ApiError::Partial(message)
                }
                api_error => api_error,
            })
    }
}
