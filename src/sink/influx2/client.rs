//! The requests to the server: batches in, an answer that the sink understands out.

use super::redact::Token;
use super::response::status_of;
use crate::points::Batch;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::retry::{ApiError, RetryError, RetryPolicy};
use crate::sink::{Precision, ServerSettings, WriteError};
use anyhow::Context as _;
use influxdb2::api::write::TimestampPrecision;
use influxdb2::{Client as HttpClient, ClientBuilder};
use reqwest::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};

/// Requests in flight at a time, of all devices together.
const MAX_IN_FLIGHT: usize = 4;

/// The longest time for which points about a run are tried again: files wait for them, and they are worth less.
const META_RETRY_FOR: Duration = Duration::from_secs(10);

/// One server, by the crate `influxdb2`.
pub(super) struct Client {
    /// For bodies that we compressed.
    pub(super) compressed: HttpClient,
    /// For all other requests.
    pub(super) plain: HttpClient,
    pub(super) org: String,
    pub(super) address: String,
    /// What is said must not hold it.
    pub(super) token: Token,
    pub(super) retry: RetryPolicy,
    /// With the bucket of the reports, whose trouble must not touch the fate of any file.
    pub(super) meta_retry: RetryPolicy,
    pub(super) in_flight: Semaphore,
    /// The buckets that are known to exist, by the name that a write gives.
    pub(super) buckets: Mutex<HashMap<Arc<str>, Arc<OnceCell<String>>>>,
    /// Those that an early look-up did not find.
    pub(super) missing: Mutex<HashSet<Arc<str>>>,
}

impl Client {
    pub(super) fn new(settings: &ServerSettings, stop: Shutdown) -> anyhow::Result<Self> {
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

    /// How a failing server is asked again for points of this kind. Without the server for measurements, there is none for
    /// reports either.
    pub(super) fn retry(&self, precision: Precision) -> &RetryPolicy {
        match precision {
            Precision::Nanoseconds if self.retry.outage().is_none() => &self.meta_retry,
            _ => &self.retry,
        }
    }

    /// Writes a batch, whatever it takes: in halves where it is too large, into a bucket made anew where it is gone.
    pub(super) async fn write_batch(
        &self,
        bucket: &Arc<str>,
        batch: Batch,
        precision: Precision,
    ) -> Result<(), WriteError> {
        let _permit = self
            .in_flight
            .acquire()
            .await
            .map_err(|_| WriteError::Stopped)?;
        let retry = self.retry(precision);
        let mut recreated = false;
        let mut partial = None;
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            // The bucket of the reports is not looked up: it is nearly always there, and a write says so if it is not.
            let name = match precision {
                Precision::Seconds => self.known_bucket(bucket, retry).await?,
                Precision::Nanoseconds => bucket.to_string(),
            };
            let attempt = || self.write(&name, &part, precision);
            let api_error = match retry.run(attempt).await {
                Ok(()) => {
                    retry.record_success();
                    continue;
                }
                Err(RetryError::GaveUp(failure)) => return Err(failure),
                Err(RetryError::Permanent(api_error)) => api_error,
            };
            match api_error {
                ApiError::TooLarge(words) => match part.halves() {
                    Ok(Some((first, second))) => parts.extend([second, first]),
                    Ok(None) => {
                        let text = part.text().unwrap_or_default();
                        return Err(WriteError::Rejected(format!(
                            "{words}; even the single line {:?} of bucket {:?} is too large for the server",
                            sanitize(String::from_utf8_lossy(&text).trim_end()),
                            sanitize(&**bucket)
                        )));
                    }
                    Err(error) => return Err(WriteError::Rejected(error.to_string())),
                },
                ApiError::NotFound(words) if recreated => {
                    return Err(WriteError::Rejected(format!(
                        "bucket {:?}: {words}",
                        sanitize(&**bucket)
                    )));
                }
                ApiError::NotFound(_) => {
                    recreated = true;
                    self.forget(bucket);
                    self.known_bucket(bucket, retry).await?;
                    parts.push(part);
                }
                ApiError::Partial(words) => {
                    retry.record_success();
                    partial.get_or_insert_with(|| {
                        format!("bucket {:?}: {words}", sanitize(&**bucket))
                    });
                }
                ApiError::Refused(words)
                | ApiError::Transient(words)
                | ApiError::Installation(words) => {
                    return Err(WriteError::Rejected(format!(
                        "bucket {:?}: {words}",
                        sanitize(&**bucket)
                    )));
                }
            }
        }
        partial.map_or(Ok(()), |words| Err(WriteError::Partial(words)))
    }

    pub(super) async fn write(
        &self,
        bucket: &str,
        batch: &Batch,
        precision: Precision,
    ) -> Result<(), ApiError> {
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
            .map_err(|error| match self.api_error(&error) {
                // A write knows 422 as "kept the rest"; other requests do not.
                ApiError::Refused(words) if status_of(&error) == Some(422) => {
                    ApiError::Partial(words)
                }
                api_error => api_error,
            })
    }
}
