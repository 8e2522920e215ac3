//! A dead man's switch: an address that is asked for after a sweep that ended well, so that somebody elsewhere notices when none
//! does any more.

use std::time::Duration;

/// What a run waits for the answer, at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for the address. That it fails is a warning and nothing else; its path is often a secret, so it is not shown.
pub fn ping(url: &url::Url) {
    let ask = || -> anyhow::Result<u16> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answer = runtime.block_on(async {
            let client = reqwest::Client::builder()
                .use_rustls_tls()
                .tls_built_in_root_certs(url.scheme() == "https")
                .no_proxy()
                .timeout(PATIENCE)
                .build()?;
            let answer = client
                .get(url.clone())
                .send()
                .await
                .map_err(reqwest::Error::without_url)?;
            Ok(answer.status().as_u16())
        });
        // A name that nobody resolves is not waited for.
        runtime.shutdown_background();
        answer
    };
    let host = url.host_str().unwrap_or_default();
    match ask() {
        Ok(200..=299) => tracing::debug!("the heartbeat at {host} was heard"),
        Ok(status) => tracing::warn!(
            "the heartbeat at {host} was answered with status {status}; check TSV_HEARTBEAT_URL"
        ),
        Err(error) => tracing::warn!(
            "the heartbeat at {host} was not heard: {error:#}; check TSV_HEARTBEAT_URL"
        ),
    }
}
