//! What `check` wants to know of the server.

use super::client::Client;
use crate::points::Batch;
use crate::sanitize::sanitize;
use crate::sink::Precision;
use crate::sink::retry::ApiError;
use influxdb2::RequestError;

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

impl Client {
    pub(super) async fn probe(&self, meta_bucket: &str) -> Probe {
        let words = |api_error: ApiError| match api_error {
            ApiError::Transient(w) => {
                format!("{w}; start InfluxDB or read its log, or correct INFLUXDB_HOST")
            }
            ApiError::Installation(w) => w,
            ApiError::NotFound(w)
            | ApiError::TooLarge(w)
            | ApiError::Partial(w)
            | ApiError::Refused(w) => {
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
                self.redact(&health.version.unwrap_or_default())
            )),
            Ok(health) => Err(format!(
                "{} is not ready: {}; wait, or read its log",
                self.address,
                self.redact(&health.message.unwrap_or_default())
            )),
            Err(error @ RequestError::ReqwestProcessing { .. }) => {
                let health = match &error {
                    RequestError::ReqwestProcessing { source } if source.is_decode() => format!(
                        "{}: something other than InfluxDB answers at this address; correct INFLUXDB_HOST",
                        self.address
                    ),
                    _ => words(self.api_error(&error)),
                };
                let unknown = || Err("cannot be asked; see the line of the server".to_owned());
                return Probe {
                    health: Err(health),
                    organisation: unknown(),
                    write: unknown(),
                };
            }
            Err(error) => Err(words(self.api_error(&error))),
        };
        let organisation = match self.org_id().await {
            Ok(id) => Ok(format!(
                "{:?} has the id {}",
                sanitize(&self.org),
                self.redact(&id)
            )),
            Err(api_error) => Err(words(api_error)),
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
            Ok(()) => Ok(format!(
                "the token may write to {:?}",
                sanitize(meta_bucket)
            )),
            // The organisation is what was not found, as far as one can tell.
            Err(ApiError::NotFound(_)) if organisation.is_err() => {
                Err("cannot be tried without the organisation; see its line".to_owned())
            }
            Err(ApiError::NotFound(_)) => Ok(format!(
                "the bucket {:?} will be made by the first run",
                sanitize(meta_bucket)
            )),
            Err(api_error) => Err(words(api_error)),
        };
        Probe {
            health,
            organisation,
            write,
        }
    }
}
