//! The common settings of the HTTP clients for InfluxDB and for the heartbeat.

/// Starts a client for `url` that speaks HTTP/1.1, trusts the system's root certificates and uses no proxy.
pub(crate) fn client_builder(url: &url::Url) -> reqwest::ClientBuilder {
    // Fails if a provider is installed already, which is then this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().http1_only().no_proxy();
    if url.scheme() == "https" {
        builder
    } else {
        // Loading the root certificates takes longer than ingesting a day file, so plain HTTP does without.
        builder.tls_certs_only([])
    }
}
