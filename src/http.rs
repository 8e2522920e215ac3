//! The common settings of the HTTP clients for InfluxDB and for the heartbeat.

use crate::remedy::MORE_THREADS;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::{load_certs_from_paths, load_native_certs};
use std::net::ToSocketAddrs as _;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Debian's bundle of all root certificates.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What the clients of one server share.
pub(crate) struct HttpSettings(ClientConfig);

impl HttpSettings {
    /// Loads the root certificates of the system, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, if `url` is HTTPS.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(crate) fn new(url: &url::Url) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        // Loading takes milliseconds, so plain HTTP does without.
        if url.scheme() == "https" {
            // A certificate that cannot be read is left out; the servers that need it are refused.
            roots.add_parsable_certificates(root_certificates().certs);
        }
        let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(tls))
    }

    /// Starts a client that speaks HTTP/1.1 and uses no proxy.
    pub(crate) fn client_builder(&self) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .tls_backend_preconfigured(self.0.clone())
            .dns_resolver(Arc::new(Resolver))
            .http1_only()
            .no_proxy()
    }
}

/// Looks up host names, each in a thread of its own, because the look-up may hang. The library's resolver panics if it
/// cannot start a thread.
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (sender, addresses) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("resolver".to_owned())
            .spawn(move || {
                // The receiver is gone after a time-out.
                let _ = sender.send((name.as_str(), 0).to_socket_addrs());
            });
        Box::pin(async move {
            thread.map_err(|error| format!("cannot start a thread: {error}; {MORE_THREADS}"))?;
            Ok(Box::new(addresses.await??) as Addrs)
        })
    }
}

fn root_certificates() -> rustls_native_certs::CertificateResult {
    let is_configured = ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let bundle = Path::new(BUNDLE);
    if !is_configured && bundle.exists() {
        // The folder of the bundle has the same certificates once more, in a file each.
        load_certs_from_paths(Some(bundle), None)
    } else {
        load_native_certs()
    }
}
