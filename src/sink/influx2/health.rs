//! The checks of the server for `powerview check`.

use super::client::Client;
use crate::points::Batch;
use crate::sanitize::sanitize;
use crate::sink::Stream;
use crate::sink::retry::ApiError;
use influxdb2::RequestError;

/// The results of the server checks: a confirmation, or the reason of the failure and the remedy.
#[derive(Debug)]
pub(crate) struct Probe {
    /// Whether the server responds and is ready.
    pub health: Result<String, String>,
    /// Whether the token is accepted and the organisation exists.
    pub organisation: Result<String, String>,
    /// Whether the token may write to the meta bucket.
    pub write: Result<String, String>,
}

impl Client {
    pub(super) async fn probe(&self, meta_bucket: &str) -> Probe {
        let message = |api_error: ApiError| match api_error {
            ApiError::Transient(m) | ApiError::Unanswered(m) => {
                format!("{m}; start InfluxDB or see its log, or correct INFLUXDB_HOST")
            }
            ApiError::Installation(m) | ApiError::Forbidden(m) => m,
            error => format!(
                "{}: {}; correct INFLUXDB_HOST if this is not InfluxDB 2",
                self.address,
                error.into_message()
            ),
        };
        let health = match self.plain.health().await {
            Ok(health) if matches!(health.status, influxdb2::models::Status::Pass) => Ok(format!(
                "{} is ready, version {}",
                self.address,
                self.redact(&health.version.unwrap_or_default())
            )),
            Ok(health) => Err(format!(
                "{} is not ready: {}; wait, or see its log",
                self.address,
                self.redact(&health.message.unwrap_or_default())
            )),
            Err(error @ RequestError::ReqwestProcessing { .. }) => {
                let health = match &error {
                    RequestError::ReqwestProcessing { source } if source.is_decode() => format!(
                        "{}: something other than InfluxDB answers at this address; correct INFLUXDB_HOST",
                        self.address
                    ),
                    _ => message(self.api_error(&error)),
                };
                let unknown = || Err("not checked; fix the server first".to_owned());
                return Probe {
                    health: Err(health),
                    organisation: unknown(),
                    write: unknown(),
                };
            }
            Err(error) => Err(message(self.api_error(&error))),
        };
        let organisation = match self.org_id().await {
            Ok(id) => Ok(format!(
                "{:?} has the id {}",
                sanitize(&self.org),
                self.redact(&id)
            )),
            Err(api_error) => Err(message(api_error)),
        };
        // A write with an empty body tests the permission and changes nothing.
        let write = match self
            .write(meta_bucket, &Batch::plain(Vec::new(), 0), Stream::Meta)
            .await
        {
            Ok(()) => Ok(format!(
                "the token can write to bucket {:?}",
                sanitize(meta_bucket)
            )),
            // The write returns 404 for the missing organisation, too.
            Err(ApiError::NotFound(_)) if organisation.is_err() => {
                Err("not checked; fix the organisation first".to_owned())
            }
            Err(ApiError::NotFound(_)) => Ok(format!(
                "bucket {:?} does not exist; the first run creates it",
                sanitize(meta_bucket)
            )),
            Err(api_error) => Err(message(api_error)),
        };
        Probe {
            health,
            organisation,
            write,
        }
    }
}
