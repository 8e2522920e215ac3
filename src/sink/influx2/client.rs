//! The HTTP client: writes batches, and maps responses to [`WriteError`].

use super::buckets::KnownBucket;
use super::influx3::Version;
use super::redact::Token;
use crate::http::HttpSettings;
use crate::points::Batch;
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::retry::{ApiError, RetryError, RetryPolicy, Scope};
use crate::sink::{Flavor, PointCounts, ServerSettings, Stream, WriteError, Written, locked};
use anyhow::Context as _;
use influxdb2::api::write::TimestampPrecision;
use influxdb2::models::Status;
use influxdb2::{Client as HttpClient, ClientBuilder};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, HeaderMap, HeaderValue, RETRY_AFTER};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// The maximum retry time for meta points. They matter less than measurements, and files wait for them.
const META_RETRY_FOR: Duration = Duration::from_secs(10);

/// How long the requests for the summaries of an ingestion may take in all. Other files of the device wait for them.
pub(crate) const SUMMARY_TIME: Duration = Duration::from_secs(10);

/// The timeout of the requests that show whether a server is available.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Used for the summaries of an ingestion, for the same reason.
    summary_retry: RetryPolicy,
    /// The id of the organisation, once it is needed.
    pub(super) org_id: OnceCell<String>,
    /// The buckets that were looked up.
    pub(super) buckets: Mutex<HashMap<Arc<str>, Arc<OnceCell<KnownBucket>>>>,
    /// The buckets that a prefetch did not find.
    pub(super) missing: Mutex<HashSet<Arc<str>>>,
    /// When the server accepts requests again after the last 429 with that time.
    not_before: Arc<Mutex<Option<Instant>>>,
    /// The version of the server, once it is known. Until then it counts as InfluxDB 2.
    pub(super) version: OnceCell<Version>,
    /// Used for what only InfluxDB 3 has.
    pub(super) influx3: OnceCell<reqwest::Client>,
    pub(super) settings: ServerSettings,
}

/// The longest time that `Retry-After` is believed: a longer one is an error of the server.
const MAX_RETRY_AFTER: u64 = 24 * 3600;

/// The value of `Retry-After`, if it is a number of seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds.min(MAX_RETRY_AFTER)))
}

impl Client {
    pub(super) fn new(settings: &ServerSettings, stop: Shutdown) -> anyhow::Result<Self> {
        let http_settings = HttpSettings::new(&settings.url).context("cannot set up TLS")?;
        let not_before = Arc::new(Mutex::new(None));
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
            let not_before = Arc::clone(&not_before);
            let observer = move |status: StatusCode, headers: &HeaderMap| {
                if status == StatusCode::TOO_MANY_REQUESTS {
                    *locked(&not_before) = retry_after(headers).map(|wait| Instant::now() + wait);
                }
            };
            ClientBuilder::with_builder(
                (http, observer).into(),
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
                stop.clone(),
                false,
            ),
            summary_retry: RetryPolicy::new(
                settings.retry_for,
                settings.request_timeout,
                stop,
                false,
            ),
            org_id: OnceCell::new(),
            buckets: Mutex::default(),
            missing: Mutex::default(),
            not_before,
            version: match settings.flavor {
                Flavor::Auto => OnceCell::new(),
                Flavor::Influx2 => OnceCell::new_with(Some(Version::Influx2)),
                Flavor::Influx3 => OnceCell::new_with(Some(Version::Influx3)),
            },
            influx3: OnceCell::new(),
            settings: settings.clone(),
        })
    }

    /// How long the server asks to wait, if its last answer with 429 says so.
    pub(super) fn take_wait(&self) -> Option<Duration> {
        let time = locked(&self.not_before).take()?;
        Some(time.saturating_duration_since(Instant::now()))
    }

    /// The retry policy of a stream. An outage of the server for measurements also applies to the others.
    pub(super) fn retry(&self, stream: Stream) -> &RetryPolicy {
        match stream {
            Stream::Meta if !self.retry.outages().has_server() => &self.meta_retry,
            Stream::Summaries(_) if !self.retry.outages().has_server() => &self.summary_retry,
            Stream::Meta | Stream::Summaries(_) | Stream::Measurements | Stream::Copies => {
                &self.retry
            }
        }
    }

    /// Writes a batch. Leaves out expired points, splits the batch in halves if it is too large, and creates the bucket
    /// again once if it was deleted.
    pub(super) async fn write_batch(
        &self,
        bucket: &Arc<str>,
        batch: Batch,
        stream: Stream,
    ) -> Written {
        let mut points = PointCounts::default();
        let unanswered = AtomicU32::new(0);
        let result = self
            .write_parts(bucket, batch, stream, &mut points, &unanswered)
            .await;
        Written {
            points,
            result,
            unanswered: unanswered.into_inner() > 0,
        }
    }

    async fn write_parts(
        &self,
        bucket: &Arc<str>,
        batch: Batch,
        stream: Stream,
        points: &mut PointCounts,
        unanswered: &AtomicU32,
    ) -> Result<(), WriteError> {
        let retry = self.retry(stream);
        if let Stream::Summaries(deadline) = stream {
            self.summary_retry.end_before(deadline);
        }
        let named = |message| format!("bucket {:?}: {message}", sanitize(&**bucket));
        let mut recreated = false;
        let mut partial = None;
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            let known = match stream {
                Stream::Measurements | Stream::Summaries(_) => {
                    self.known_bucket(bucket, retry).await?
                }
                // These buckets are not looked up: they nearly always exist, and a write fails with 404 if they do not.
                Stream::Meta | Stream::Copies => KnownBucket::named(bucket),
            };
            let lines = u64::from(part.lines);
            let part = known
                .without_expired(part)
                .map_err(|error| WriteError::Rejected(error.to_string()))?;
            points.expired += lines - part.as_ref().map_or(0, |part| u64::from(part.lines));
            let Some(part) = part else { continue };
            let lines = u64::from(part.lines);
            let part = self.without_repeats(part, stream)?;
            let attempt = || async {
                // An attempt that times out is dropped here.
                unanswered.fetch_add(1, Ordering::Relaxed);
                let result = self.write(&known.key, &part, stream).await;
                if !matches!(result, Err(ApiError::Unanswered(_))) {
                    unanswered.fetch_sub(1, Ordering::Relaxed);
                }
                result
            };
            let find_scope = self.find_scope(bucket, stream);
            let api_error = match retry.run(bucket, find_scope, attempt).await {
                Ok(()) => {
                    retry.record_success(bucket);
                    points.accepted += lines;
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
                ApiError::NotFound(_) if !recreated => {
                    recreated = true;
                    self.forget(bucket);
                    self.known_bucket(bucket, retry).await?;
                    parts.push(part);
                }
                ApiError::Partial {
                    message,
                    dropped,
                    expired,
                } => {
                    retry.record_success(bucket);
                    // Without a number, all points may have been dropped.
                    let dropped = dropped.unwrap_or(lines).min(lines);
                    points.accepted += lines - dropped;
                    if expired {
                        points.expired += dropped;
                    } else {
                        partial.get_or_insert_with(|| named(message));
                    }
                }
                error => return Err(WriteError::Rejected(named(error.into_message()))),
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
            Stream::Measurements | Stream::Summaries(_) => TimestampPrecision::Seconds,
            Stream::Meta | Stream::Copies => TimestampPrecision::Nanoseconds,
        };
        let org = self.org_key().await?;
        let result = client
            .write_line_protocol_with_precision(org, bucket, batch.body.clone(), precision)
            .await;
        match result {
            Err(error) if self.is_influx3() => {
                self.influx3_write_error(&error, bucket, batch, stream)
                    .await
            }
            result => result.map_err(|error| self.write_error(&error)),
        }
    }

    /// Finds out why a write still fails after its retries, with an empty write to the same bucket.
    pub(super) async fn find_scope(&self, bucket: &Arc<str>, stream: Stream) -> Scope {
        if matches!(stream, Stream::Meta | Stream::Summaries(_)) {
            // The points about a run have one bucket, and summaries are not written any more.
            return Scope::Server;
        }
        let known = self.cell(bucket).get().cloned();
        let key = known.unwrap_or_else(|| KnownBucket::named(bucket)).key;
        let nothing = Batch::plain(Vec::new(), 0);
        let write = timeout(PROBE_TIMEOUT, self.write(&key, &nothing, stream));
        let health = timeout(PROBE_TIMEOUT, self.is_healthy());
        match tokio::join!(write, health) {
            (Ok(Ok(())), _) => Scope::Request,
            (_, Ok(true)) => Scope::Bucket,
            _ => Scope::Server,
        }
    }

    async fn is_healthy(&self) -> bool {
        if self.is_influx3() {
            return self.ping().await.is_ok();
        }
        let health = self.plain.health().await;
        health.is_ok_and(|health| matches!(health.status, Status::Pass))
    }
}
