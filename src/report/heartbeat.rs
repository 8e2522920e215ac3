//! The heartbeat: requests that tell an external monitor when a sweep starts, succeeds or fails, so that it can detect
//! failures and the absence of sweeps. The paths are the convention of Healthchecks.

use crate::http::HttpSettings;
use std::time::Duration;

/// Timeout of the request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a heartbeat reports.
#[derive(Debug)]
pub(crate) enum Heartbeat {
    /// A sweep starts: `<url>/start`.
    Start,
    /// A sweep succeeded: the URL itself.
    Success,
    /// A sweep or `status` failed: `<url>/fail`, with the reason and the remedy as body.
    Failure(String),
}

impl Heartbeat {
    /// Adds the path of the event to that of `base`.
    fn url(&self, base: &url::Url) -> url::Url {
        let mut url = base.clone();
        let segment = match self {
            Self::Start => "start",
            Self::Success => return url,
            Self::Failure(_) => "fail",
        };
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(segment);
        }
        url
    }
}

/// Sends a heartbeat to the monitor at `base`. A failure is only a warning, because the next heartbeat repeats the state.
/// The message names the host alone, because the path is often a secret.
pub(crate) fn ping(base: &url::Url, heartbeat: Heartbeat) {
    let url = heartbeat.url(base);
    let request = || -> anyhow::Result<u16> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let client = HttpSettings::new(&url)?
                .client_builder()
                .timeout(TIMEOUT)
                .build()?;
            let request = match heartbeat {
                Heartbeat::Failure(reason) => client.post(url.clone()).body(reason),
                Heartbeat::Start | Heartbeat::Success => client.get(url.clone()),
            };
            let response = request.send().await.map_err(reqwest::Error::without_url)?;
            Ok(response.status().as_u16())
        })
    };
    let host = url.host_str().unwrap_or_default();
    match request() {
        Ok(200..=299) => tracing::debug!("heartbeat sent to {host}"),
        Ok(status) => tracing::warn!(
            "heartbeat to {host} failed with status {status}; check TSV_HEARTBEAT_URL"
        ),
        Err(error) => {
            tracing::warn!("heartbeat to {host} failed: {error:#}; check TSV_HEARTBEAT_URL");
        }
    }
}
