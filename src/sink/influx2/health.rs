//! What `check` wants to know of the server.

use super::Link;
use crate::points::Batch;
use crate::sanitize::shown;
use crate::sink::Precision;
use crate::sink::retry::Answer;
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

impl Link {
    pub(super) async fn probe(&self, meta_bucket: &str) -> Probe {
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
