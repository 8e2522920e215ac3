//! The heartbeat: a URL requested after each successful sweep, so that an external monitor can detect when sweeps stop
//! or fail.

use crate::http::HttpSettings;
use std::time::Duration;

/// Timeout of the request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Requests the URL. A failure is only a warning. The message names the host alone, because the path is often a secret.
pub(crate) fn ping(url: &url::Url) {
    let request = || -> anyhow::Result<u16> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let client = HttpSettings::new(url)?
                .client_builder()
                .timeout(TIMEOUT)
                .build()?;
            let response = client
                .get(url.clone())
                .send()
                .await
                .map_err(reqwest::Error::without_url)?;
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
