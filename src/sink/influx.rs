//! InfluxDB 2 over HTTP. Everything that is known about the crate `influxdb2` stays in this module.
//!
//! Read in its source (0.5.2): it keeps scheme, host and port of the address only, panics on one that does not parse (the
//! settings have checked it), has no time-out but those of the HTTP client it is given, and compresses nothing that is handed
//! over as bytes; a body we compressed goes through a client of its own whose every request says `Content-Encoding: gzip`. An
//! error carries status and text, no header. A bucket kept for more than 68 years is an answer it cannot read.

use super::retry::{Answer, Patience, Trouble};
use super::{Failure, Precision, Ticket};
use crate::batch::Batch;
use crate::config::InfluxSettings;
use crate::shown::shown;
use crate::stop::Stop;
use anyhow::Context as _;
use influxdb2::api::buckets::ListBucketsRequest;
use influxdb2::api::organization::ListOrganizationRequest;
use influxdb2::api::write::TimestampPrecision;
use influxdb2::models::PostBucketRequest;
use influxdb2::{Client, ClientBuilder, RequestError};
use reqwest::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{OnceCell, Semaphore, oneshot};

/// Requests in flight at a time, of all devices together.
const MAX_IN_FLIGHT: usize = 4;

/// How long the points about a run are tried, at most: files wait for them, and they are worth less.
const META_RETRY_FOR: Duration = Duration::from_secs(10);

/// How long an early look-up may hold up the write that waits for it: a server that takes longer is asked with patience.
const EARLY_LOOK_UP: Duration = Duration::from_secs(1);

/// How much of a server's answer is worth repeating, in bytes.
const MAX_ANSWER: usize = 1_000;

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

/// What `check` wants to know; each either a word of confirmation or the reason.
#[derive(Debug)]
pub struct Probe {
    /// Whether the server answers and is ready.
    pub health: Result<String, String>,
    /// Whether the token is accepted and the organisation exists.
    pub organisation: Result<String, String>,
    /// Whether the token may see and write the bucket of the reports.
    pub write: Result<String, String>,
}

struct Link {
    /// For bodies that we compressed.
    compressed: Client,
    /// For all other requests.
    plain: Client,
    org: String,
    address: String,
    /// What is said must not hold the token, in any of these spellings.
    secrets: Vec<String>,
    patience: Patience,
    /// With the bucket of the reports, whose trouble must not touch the fate of any file.
    meta_patience: Patience,
    in_flight: Semaphore,
    /// The buckets that are known to exist, by the name that a write gives.
    buckets: Mutex<HashMap<Arc<str>, Arc<OnceCell<String>>>>,
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
            secrets: spellings(&settings.token),
            patience: Patience::new(
                settings.retry_for,
                settings.request_timeout,
                stop.clone(),
                true,
            ),
            meta_patience: Patience::new(
                settings.retry_for.min(META_RETRY_FOR),
                settings.request_timeout,
                stop,
                false,
            ),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            buckets: Mutex::default(),
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

    /// Looks a bucket up without patience: if this comes to nothing, the write asks again.
    async fn look_up(&self, bucket: &Arc<str>) {
        if self.patience.outage().is_some() {
            return;
        }
        let found = || async { self.find(bucket).await.ok().flatten().ok_or(()) };
        let cell = self.cell(bucket);
        let _ = tokio::time::timeout(EARLY_LOOK_UP, cell.get_or_try_init(found)).await;
    }

    fn cell(&self, bucket: &Arc<str>) -> Arc<OnceCell<String>> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(buckets.entry(Arc::clone(bucket)).or_default())
    }

    /// The name by which a write finds the bucket; looked up once a run, made if it is missing.
    async fn known_bucket(
        &self,
        bucket: &Arc<str>,
        patience: &Patience,
    ) -> Result<String, Failure> {
        let cell = self.cell(bucket);
        cell.get_or_try_init(|| async {
            let attempt = || self.find_or_create(bucket);
            patience
                .insist(attempt)
                .await
                .map_err(|trouble| match trouble {
                    Trouble::Over(failure) => failure,
                    Trouble::Said(
                        Answer::Transient(words)
                        | Answer::Installation(words)
                        | Answer::NotFound(words)
                        | Answer::TooLarge(words)
                        | Answer::Partial(words)
                        | Answer::Refused(words),
                    ) => Failure::Rejected(format!(
                        "the bucket {:?} cannot be made: {words}",
                        shown(&**bucket)
                    )),
                })
        })
        .await
        .cloned()
    }

    fn forget(&self, bucket: &str) {
        self.buckets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(bucket);
    }

    async fn find_or_create(&self, name: &str) -> Result<String, Answer> {
        if let Some(found) = self.find(name).await? {
            return Ok(found);
        }
        let org_id = self.org_id().await?;
        let request = PostBucketRequest::new(org_id, name.to_owned());
        match self.plain.create_bucket(Some(request)).await {
            Ok(()) if is_id(name) => self.find(name).await?.ok_or_else(|| {
                Answer::Transient(format!("the bucket {name:?} was made and cannot be found"))
            }),
            Ok(()) => {
                tracing::info!("bucket {:?} made", shown(name));
                Ok(name.to_owned())
            }
            // Another process was faster (409, or 422 with the code "conflict").
            Err(error) if matches!(status_of(&error), Some(409 | 422)) => {
                self.find(name).await?.ok_or_else(|| self.answer(&error))
            }
            Err(error) => Err(self.answer(&error)),
        }
    }

    /// By what name a write finds the bucket, if it exists. A name of 16 hexadecimal digits would be taken for another
    /// bucket's id, so such a bucket is written to by its own id.
    async fn find(&self, name: &str) -> Result<Option<String>, Answer> {
        let request = ListBucketsRequest {
            name: Some(name.to_owned()),
            org: Some(self.org.clone()),
            ..ListBucketsRequest::default()
        };
        match self.plain.list_buckets(Some(request)).await {
            Ok(list) => Ok(list
                .buckets
                .into_iter()
                .find(|bucket| bucket.name == name)
                .and_then(|bucket| {
                    if is_id(name) {
                        bucket.id
                    } else {
                        Some(bucket.name)
                    }
                })),
            // Not a refusal, yet unreadable: the write will tell whether the bucket is there.
            Err(RequestError::ReqwestProcessing { source })
                if source.is_decode() && !is_id(name) =>
            {
                Ok(Some(name.to_owned()))
            }
            Err(error) => match self.answer(&error) {
                Answer::NotFound(_) => Ok(None),
                answer => Err(answer),
            },
        }
    }

    /// The id of the organisation. That it is missing is the installation's fault.
    async fn org_id(&self) -> Result<String, Answer> {
        let request = ListOrganizationRequest {
            org: Some(self.org.clone()),
            ..ListOrganizationRequest::default()
        };
        let missing = || {
            Answer::Installation(format!(
                "InfluxDB at {} knows no organisation {:?}; correct INFLUXDB_ORG",
                self.address,
                shown(&self.org)
            ))
        };
        match self.plain.list_organizations(request).await {
            Ok(list) => list
                .orgs
                .into_iter()
                .find(|org| org.name == self.org)
                .and_then(|org| org.id)
                .ok_or_else(missing),
            Err(error) => match self.answer(&error) {
                Answer::NotFound(_) => Err(missing()),
                answer => Err(answer),
            },
        }
    }

    /// What an error means, by its status alone. Source: SPEC section 4.
    fn answer(&self, error: &RequestError) -> Answer {
        let RequestError::Http { status, text } = error else {
            return Answer::Transient(format!("{}: {}", self.address, self.reason(error)));
        };
        let said = self.said(status.as_u16(), text);
        match status.as_u16() {
            401 | 403 => Answer::Installation(format!(
                "InfluxDB at {} refuses the token, or does not let it do this ({said}); correct INFLUXDB_ADMIN_TOKEN",
                self.address
            )),
            300..=399 => Answer::Installation(format!(
                "{} redirects to another address ({said}); set INFLUXDB_HOST to the server itself",
                self.address
            )),
            404 => Answer::NotFound(said),
            413 => Answer::TooLarge(said),
            408 | 425 | 429 | 500.. => Answer::Transient(format!("{}: {said}", self.address)),
            400..=499 => Answer::Refused(said),
            // A success that is not the one a write has: something else answers at this address.
            _ => Answer::Transient(format!(
                "{} does not answer as InfluxDB does ({said})",
                self.address
            )),
        }
    }

    /// Status and message of an answer, safe to show. InfluxDB wraps its message in JSON; a proxy sends a page.
    fn said(&self, status: u16, text: &str) -> String {
        let message = match serde_json::from_str::<serde_json::Value>(text) {
            Ok(json) => match json.get("message").and_then(|message| message.as_str()) {
                Some(message) => message.to_owned(),
                // Its escapes are undone, for they could hide the token.
                None => json.to_string(),
            },
            Err(_) => text.to_owned(),
        };
        let message = self.safe(message.trim());
        let message = &message[..message.floor_char_boundary(MAX_ANSWER)];
        if message.is_empty() {
            format!("status {status}")
        } else {
            format!("status {status}: {message}")
        }
    }

    /// What a server said, without the token and without what a terminal would obey.
    fn safe(&self, text: &str) -> String {
        shown(without_secrets(text, &self.secrets))
    }

    /// The innermost reason of a request that had no answer.
    fn reason(&self, error: &RequestError) -> String {
        let mut reason: &dyn std::error::Error = match error {
            RequestError::ReqwestProcessing { source } if source.is_timeout() => {
                return if source.is_connect() {
                    "no connection in time".to_owned()
                } else {
                    "no answer in time".to_owned()
                };
            }
            RequestError::ReqwestProcessing { source } => source,
            other => other,
        };
        while let Some(inner) = reason.source() {
            reason = inner;
        }
        self.safe(&reason.to_string())
    }

    async fn probe(&self, meta_bucket: &str) -> Probe {
        let words = |answer: Answer| match answer {
            Answer::Transient(w) => {
                format!("{w}; start InfluxDB or read its log, or correct INFLUXDB_HOST")
            }
            Answer::Installation(w) => w,
            Answer::NotFound(w) | Answer::TooLarge(w) | Answer::Partial(w) | Answer::Refused(w) => {
                format!(
                    "{}: {w}; correct INFLUXDB_HOST if that is no InfluxDB 2",
                    self.address
                )
            }
        };
        let health = match self.plain.health().await {
            Ok(health) if matches!(health.status, influxdb2::models::Status::Pass) => Ok(format!(
                "{} answers, version {}",
                self.address,
                self.safe(&health.version.unwrap_or_default())
            )),
            Ok(health) => Err(format!(
                "{} is not ready: {}; wait, or read its log",
                self.address,
                self.safe(&health.message.unwrap_or_default())
            )),
            Err(error @ RequestError::ReqwestProcessing { .. }) => {
                let health = match &error {
                    RequestError::ReqwestProcessing { source } if source.is_decode() => format!(
                        "{}: something other than InfluxDB answers at this address; correct INFLUXDB_HOST",
                        self.address
                    ),
                    _ => words(self.answer(&error)),
                };
                let untold = || Err("cannot be asked; see the line of the server".to_owned());
                return Probe {
                    health: Err(health),
                    organisation: untold(),
                    write: untold(),
                };
            }
            Err(error) => Err(words(self.answer(&error))),
        };
        let organisation = match self.org_id().await {
            Ok(id) => Ok(format!(
                "{:?} has the id {}",
                shown(&self.org),
                self.safe(&id)
            )),
            Err(answer) => Err(words(answer)),
        };
        // An empty body is a write that changes nothing.
        let write = match self
            .write(
                meta_bucket,
                &Batch::plain(Vec::new(), 0),
                Precision::Nanoseconds,
            )
            .await
        {
            Ok(()) => Ok(format!("the token may write to {:?}", shown(meta_bucket))),
            // The organisation is what was not found, as far as one can tell.
            Err(Answer::NotFound(_)) if organisation.is_err() => {
                Err("cannot be tried without the organisation; see its line".to_owned())
            }
            Err(Answer::NotFound(_)) => Ok(format!(
                "the bucket {:?} will be made by the first run",
                shown(meta_bucket)
            )),
            Err(answer) => Err(words(answer)),
        };
        Probe {
            health,
            organisation,
            write,
        }
    }
}

/// The ways in which an answer could spell the token: as it is, without the `=` that ends most tokens (they have as many
/// spellings as there are encodings), and as in an address.
fn spellings(token: &str) -> Vec<String> {
    let stem = token.trim_end_matches('=');
    let encoded: String = url::form_urlencoded::byte_serialize(stem.as_bytes()).collect();
    let mut found = vec![token.to_owned(), stem.to_owned(), encoded];
    found.retain(|spelling| !spelling.is_empty());
    found.dedup();
    found
}

/// `text` with each of the secrets replaced, whether in capitals or not.
fn without_secrets(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        let (lower, wanted) = (text.to_ascii_lowercase(), secret.to_ascii_lowercase());
        let mut rest = 0;
        let mut safe = String::with_capacity(text.len());
        for (at, found) in lower.match_indices(&wanted) {
            safe.push_str(&text[rest..at]);
            safe.push_str("<token>");
            rest = at + found.len();
        }
        safe.push_str(&text[rest..]);
        text = safe;
    }
    text
}

fn status_of(error: &RequestError) -> Option<u16> {
    match error {
        RequestError::Http { status, .. } => Some(status.as_u16()),
        _ => None,
    }
}

/// Whether the server's write would take this name for an id.
fn is_id(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn link() -> Link {
        let settings = InfluxSettings {
            url: "http://127.0.0.1:1".parse().unwrap(),
            token: "s3cret".to_owned(),
            org: "o".to_owned(),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
            retry_for: Duration::ZERO,
        };
        Link::new(&settings, Stop::default()).unwrap()
    }

    fn answer(status: u16, text: &str) -> Answer {
        link().answer(&RequestError::Http {
            status: status.try_into().unwrap(),
            text: text.to_owned(),
        })
    }

    #[test]
    fn the_status_alone_decides_what_an_answer_means() {
        for (statuses, kind) in [
            (
                vec![408, 429, 500, 502, 503, 504, 520, 200, 202],
                "Transient",
            ),
            (vec![401, 403, 301, 302, 307, 308], "Installation"),
            (vec![404], "NotFound"),
            (vec![413], "TooLarge"),
            (vec![400, 405, 409, 415, 418, 422], "Refused"),
        ] {
            for status in statuses {
                let found = format!("{:?}", answer(status, "x"));
                assert!(found.starts_with(kind), "{status}: {found}");
            }
        }
    }

    #[test]
    fn the_servers_own_message_is_shown_and_the_token_never() {
        let found = answer(
            400,
            r#"{"code":"invalid","message":"unable to parse 'm,a= value=': missing tag value s3cret"}"#,
        );
        assert_eq!(
            found,
            Answer::Refused(
                "status 400: unable to parse 'm,a= value=': missing tag value <token>".to_owned()
            )
        );
    }

    #[test]
    fn the_token_is_known_in_other_spellings() {
        let secrets = spellings("aB+cret/tok==");
        for spelling in [
            "aB+cret/tok==",
            "aB+cret/tok%3D%3D",
            "AB+CRET/TOK&#61;&#61;",
            "aB%2Bcret%2Ftok%3D%3D",
            "ab%2bcret%2ftok",
        ] {
            let found = without_secrets(&format!("é <{spelling}> é"), &secrets);
            assert!(
                found.starts_with("é <<token>") && !found.to_lowercase().contains("cret"),
                "{found}"
            );
        }
        let escaped: String = "s3cret"
            .chars()
            .map(|c| format!("\\u{:04x}", c as u32))
            .collect();
        let found = answer(400, &format!(r#"{{"error":"{escaped}"}}"#));
        assert_eq!(
            found,
            Answer::Refused(r#"status 400: {"error":"<token>"}"#.to_owned())
        );
    }

    #[test]
    fn a_page_of_a_proxy_is_cut_and_made_safe() {
        let Answer::Transient(words) =
            answer(502, &format!("<html>\x1b[2J{}", "x".repeat(100_000)))
        else {
            panic!("502 is worth another try");
        };
        assert!(words.len() < 3_000 && !words.contains('\x1b'), "{words}");
    }

    #[test]
    fn a_name_that_looks_like_an_id_is_known() {
        assert!(is_id("88cb3911be3f2ed6") && is_id("88CB3911BE3F2ED6"));
        assert!(!is_id("acme") && !is_id("88cb3911be3f2edg") && !is_id("88cb3911be3f2ed"));
    }
}
