//! What is different in InfluxDB 3. See docs/influxdb-3.md.

use super::client::Client;
use crate::http::HttpSettings;
use crate::points::Batch;
use crate::sanitize::sanitize;
use crate::sink::retry::ApiError;
use crate::sink::{Flavor, Stream, WriteError};
use influxdb2::RequestError;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// The version of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Influx2,
    Influx3,
}

/// How long the question for the version may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request that only explains an error may take.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest body that is read, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// What InfluxDB 3 Core answers to the write of nothing, if the token and the name of the database are accepted.
const EMPTY_WRITE: &str = "incoming write was empty";

/// What InfluxDB 3 Core answers to a batch with an invalid line, without saying which.
const INVALID_LINE: &str = "parsing for line protocol failed";

/// Parts of the messages about the name of a database.
const INVALID_NAMES: [&str; 4] = [
    "namespace name ",
    "invalid character in database or rp name",
    "db name did not start with",
    "db name too long",
];

/// Parts of the messages about a limit of the server for databases, tables or columns.
const LIMITS: [&str; 2] = [
    "Adding a new database would exceed limit",
    "Update to schema would exceed number of",
];

/// The error of `/api/v3/write_lp`, which names the line.
#[derive(Deserialize)]
struct InvalidLine {
    data: InvalidLineData,
}

#[derive(Deserialize)]
struct InvalidLineData {
    error_message: String,
    line_number: u64,
    original_line: String,
}

impl Client {
    /// Whether the server is known to be InfluxDB 3.
    pub(super) fn is_influx3(&self) -> bool {
        self.version.get() == Some(&Version::Influx3)
    }

    /// Finds out the version of the server, once, with a request to `/ping`.
    ///
    /// # Errors
    /// The server gives no answer.
    pub(super) async fn find_version(&self) -> Result<Version, ApiError> {
        let find = || async {
            Ok(match self.ping().await {
                Ok(pong) if pong.is_influx3 => Version::Influx3,
                Ok(_) | Err(ApiError::NotFound(_) | ApiError::Refused(_)) => Version::Influx2,
                Err(error) => return Err(error),
            })
        };
        self.version.get_or_try_init(find).await.copied()
    }

    /// Whether the failure of a look-up shows that the server is InfluxDB 3, which has no buckets. InfluxDB 2 is asked nothing:
    /// its errors are JSON with a code.
    ///
    /// # Errors
    /// The server gives no answer to the question for its version.
    pub(super) async fn is_influx3_answer(&self, error: &RequestError) -> Result<bool, ApiError> {
        let RequestError::Http { status, text } = error else {
            return Ok(false);
        };
        let is_unknown_path = status.as_u16() == 404 && !has_code(text);
        if self.settings.flavor != Flavor::Auto || !is_unknown_path {
            return Ok(false);
        }
        Ok(self.find_version().await? == Version::Influx3)
    }

    /// Asks `/ping`.
    pub(super) async fn ping(&self) -> Result<Pong, ApiError> {
        let request = self.influx3()?.get(self.url("/ping")).timeout(PING_TIMEOUT);
        let answer = self.send(request).await?;
        let header = |name| {
            answer
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let (build, version) = (header("x-influxdb-build"), header("x-influxdb-version"));
        let version = version.unwrap_or_default().trim_start_matches('v');
        Ok(Pong {
            // Cloud Dedicated names no version here.
            is_influx3: version.starts_with("3."),
            name: self.redact(&format!(
                "{} {version}",
                build.unwrap_or("of unknown build")
            )),
        })
    }

    /// Classifies the error of a write to InfluxDB 3. A write of nothing may be no error.
    pub(super) async fn influx3_write_error(
        &self,
        error: &RequestError,
        bucket: &str,
        batch: &Batch,
        stream: Stream,
    ) -> Result<(), ApiError> {
        let RequestError::Http { status, text } = error else {
            return Err(self.api_error(error));
        };
        let message = self.describe(status.as_u16(), text);
        let of_database = |remedy: &str| {
            let name = sanitize(bucket);
            ApiError::Forbidden(format!("database {name:?}: {message}; {remedy}"))
        };
        let has = |part: &&str| text.contains(*part);
        match status.as_u16() {
            400 if batch.lines == 0 && has(&EMPTY_WRITE) => Ok(()),
            400 if INVALID_NAMES.iter().any(has) => Err(of_database(
                "rename the folder of the company: the name of a database has only letters without accents, digits, _ and -, at most 64",
            )),
            400 | 422 if LIMITS.iter().any(has) => Err(of_database(
                "delete databases or tables that are not needed, or use an edition with a higher limit",
            )),
            400 if has(&INVALID_LINE) => {
                match self.find_invalid_line(bucket, batch, stream).await {
                    Some(result) => result,
                    None => Err(ApiError::Refused(message)),
                }
            }
            400 if message_of(text).starts_with("partial write") => Err(ApiError::Partial {
                message,
                dropped: None,
                expired: false,
            }),
            // The token is known, but not for this database.
            401 if has_code(text) => Err(of_database("correct the permissions of the token")),
            404 => Err(of_database("create the database")),
            _ => Err(self.write_error(error)),
        }
    }

    /// Sends a refused batch to the endpoint that names the invalid line. It refuses the whole batch as well. `None` if it
    /// says nothing.
    async fn find_invalid_line(
        &self,
        bucket: &str,
        batch: &Batch,
        stream: Stream,
    ) -> Option<Result<(), ApiError>> {
        let precision = match stream {
            Stream::Measurements | Stream::Summaries(_) => "second",
            Stream::Meta | Stream::Copies => "nanosecond",
        };
        let mut url = self.url("/api/v3/write_lp");
        url.query_pairs_mut().extend_pairs([
            ("db", bucket),
            ("precision", precision),
            ("accept_partial", "false"),
        ]);
        let mut request = self.influx3().ok()?.post(url).body(batch.body.clone());
        if batch.gzip {
            request = request.header(CONTENT_ENCODING, "gzip");
        }
        match timeout(EXPLAIN_TIMEOUT, self.send(request)).await.ok()? {
            // What refused it is gone.
            Ok(_) => Some(Ok(())),
            Err(ApiError::Refused(text)) => {
                let json = &text[text.find('{')?..];
                let InvalidLine { data } = serde_json::from_str(json).ok()?;
                Some(Err(ApiError::Refused(format!(
                    "status 400: line {} of a batch, {:?}: {}",
                    data.line_number,
                    self.redact(&data.original_line),
                    self.redact(&data.error_message)
                ))))
            }
            Err(_) => None,
        }
    }

    /// Removes points that are replaced by later ones of the batch: InfluxDB 3 keeps any of them.
    pub(super) fn without_repeats(
        &self,
        batch: Batch,
        stream: Stream,
    ) -> Result<Batch, WriteError> {
        if !self.is_influx3() || stream != Stream::Measurements {
            return Ok(batch);
        }
        batch
            .without_repeats()
            .map_err(|error| WriteError::Rejected(error.to_string()))
    }

    fn url(&self, path: &str) -> url::Url {
        let mut url = self.settings.url.clone();
        url.set_path(path);
        url
    }

    /// The HTTP client for what only InfluxDB 3 has. An ordinary run sets up none.
    fn influx3(&self) -> Result<reqwest::Client, ApiError> {
        if let Some(client) = self.influx3.get() {
            return Ok(client.clone());
        }
        let settings = &self.settings;
        let failed = |error: &dyn std::fmt::Display| {
            ApiError::Transient(format!("cannot set up the HTTP client: {error}"))
        };
        let mut token = HeaderValue::try_from(format!("Bearer {}", settings.token))
            .map_err(|error| failed(&error))?;
        token.set_sensitive(true);
        let client = HttpSettings::new(&settings.url)
            .map_err(|error| failed(&error))?
            .client_builder()
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.request_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("powerview/", env!("CARGO_PKG_VERSION")))
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, token)]))
            .build()
            .map_err(|error| failed(&error))?;
        // Another task may have been faster.
        let _ = self.influx3.set(client.clone());
        Ok(client)
    }

    /// Sends a request and reads its answer. The text of an error is not shortened.
    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Reply, ApiError> {
        let error = |source| self.api_error(&RequestError::ReqwestProcessing { source });
        let mut answer = request.send().await.map_err(error)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut body = Vec::new();
        while body.len() < MAX_BODY
            && let Some(chunk) = answer.chunk().await.map_err(error)?
        {
            body.extend_from_slice(&chunk[..chunk.len().min(MAX_BODY - body.len())]);
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        match status.as_u16() {
            200..=299 => Ok(Reply { headers }),
            400 => Err(ApiError::Refused(text)),
            _ => Err(self.api_error(&RequestError::Http { status, text })),
        }
    }
}

/// The head of a successful answer.
struct Reply {
    headers: HeaderMap,
}

/// The answer to `/ping`.
pub(super) struct Pong {
    /// Whether it names a version 3.
    pub is_influx3: bool,
    /// Build and version.
    pub name: String,
}

/// Whether a text is a JSON object with a code, as the errors of InfluxDB 2 are.
fn has_code(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|json| json["code"].is_string())
}

/// The message of an error.
fn message_of(text: &str) -> String {
    let json: Value = serde_json::from_str(text).unwrap_or_default();
    json["message"].as_str().unwrap_or_default().to_owned()
}
