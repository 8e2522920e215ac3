//! The checks of the server for `powerview check`.

use super::client::Client;
use super::influx3::Version;
use crate::points::Batch;
use crate::sanitize::sanitize;
use crate::sink::retry::ApiError;
use crate::sink::{Flavor, Stream};
use influxdb2::RequestError;

/// The results of the server checks: a confirmation, or the reason of the failure and the remedy.
#[derive(Debug)]
pub(crate) struct Probe {
    /// Whether the server is InfluxDB 3.
    pub is_influx3: bool,
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
            ApiError::Transient(m)
            | ApiError::Unanswered(m)
            | ApiError::Throttled { message: m, .. } => {
                format!("{m}; start InfluxDB or see its log, or correct INFLUXDB_HOST")
            }
            ApiError::Installation(m) | ApiError::Forbidden(m) => m,
            error => format!(
                "{}: {}; correct INFLUXDB_HOST if this is not InfluxDB 2",
                self.address,
                error.into_message()
            ),
        };
        // If this fails, the other requests say why.
        if let Ok(Version::Influx3) = self.find_version().await {
            return self.probe_influx3(meta_bucket, message).await;
        }
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
                    is_influx3: false,
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
            is_influx3: false,
            health,
            organisation,
            write,
        }
    }

    /// The checks of InfluxDB 3, which has no organisations.
    async fn probe_influx3(
        &self,
        meta_bucket: &str,
        message: impl Fn(ApiError) -> String,
    ) -> Probe {
        let health = match self.ping().await {
            Ok(pong) => Ok(format!(
                "{} is ready, InfluxDB 3 {} (INFLUXDB_FLAVOR={})",
                self.address,
                pong.name,
                match self.settings.flavor {
                    Flavor::Auto => "auto",
                    Flavor::Influx2 => "2",
                    Flavor::Influx3 => "3",
                }
            )),
            Err(api_error) => Err(message(api_error)),
        };
        let nothing = Batch::plain(Vec::new(), 0);
        let write = match self.write(meta_bucket, &nothing, Stream::Meta).await {
            Ok(()) => Ok(format!(
                "accepted for writes; the first one makes a database such as {:?}",
                sanitize(meta_bucket)
            )),
            Err(api_error) => Err(message(api_error)),
        };
        Probe {
            is_influx3: true,
            health,
            organisation: Ok("InfluxDB 3 has none, and ignores INFLUXDB_ORG".to_owned()),
            write,
        }
    }
}
