//! HTTPS: the server's certificate is verified against the system's root certificates, and HTTP/1.1 is spoken.

use crate::harness::{DEVICE, Site, file_of, good_file, points_in};
use crate::influx_double::Double;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("a root certificate"),
        }
    }

    /// Writes the root certificate to a file of this name beside the data folder.
    fn write(&self, site: &Site, name: &str) -> PathBuf {
        let path = site.dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("folder");
        std::fs::write(&path, self.issuer.pem()).expect("root certificate written");
        path
    }
}

/// A TLS proxy in front of a server on 127.0.0.1. It offers HTTP/2 first, then HTTP/1.1.
struct TlsProxy {
    _runtime: tokio::runtime::Runtime,
    port: u16,
    protocols: Arc<Mutex<Vec<String>>>,
}

impl TlsProxy {
    /// Starts a proxy whose certificate the authority issues for `host`.
    fn start(server: &Double, authority: &Authority, host: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new([host.to_owned()])
            .and_then(|params| params.signed_by(&key, &authority.issuer))
            .expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("certificate and key match");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let upstream = server.url().replace("http://", "");
        let protocols: Arc<Mutex<Vec<String>>> = Arc::default();
        let negotiated = Arc::clone(&protocols);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
                let negotiated = Arc::clone(&negotiated);
                tokio::spawn(async move {
                    let mut client = acceptor.accept(client).await?;
                    let protocol = client.get_ref().1.alpn_protocol().unwrap_or_default();
                    let protocol = String::from_utf8_lossy(protocol).into_owned();
                    negotiated.lock().unwrap().push(protocol);
                    let mut server = tokio::net::TcpStream::connect(upstream).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self {
            _runtime: runtime,
            port,
            protocols,
        }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The protocols of the connections, without repetitions.
    fn protocols(&self) -> Vec<String> {
        let mut protocols = self.protocols.lock().unwrap().clone();
        protocols.dedup();
        protocols
    }
}

#[test]
fn a_certificate_of_a_known_authority_is_accepted() {
    let authority = Authority::new("known");
    for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        let double = Double::start();
        let proxy = TlsProxy::start(&double, &authority, "127.0.0.1");
        let site = Site::new();
        let root = authority.write(&site, "roots/root.pem");
        let value = match variable {
            "SSL_CERT_DIR" => root.parent().expect("has a parent"),
            _ => &root,
        };
        site.put_old(format!("{DEVICE}/a.tsv"), good_file(1, 3));
        site.call_to(&proxy.url()).env(variable, value).ok();
        assert_eq!(points_in(&double, "acme").len(), 6, "{variable}");
        assert_eq!(proxy.protocols(), ["http/1.1"], "{variable}");
    }
}

#[test]
fn a_certificate_that_does_not_verify_is_refused() {
    let (known, unknown) = (Authority::new("known"), Authority::new("unknown"));
    for (authority, host, reason) in [
        (&unknown, "127.0.0.1", "UnknownIssuer"),
        (&known, "other.example", "other.example"),
    ] {
        let double = Double::start();
        let proxy = TlsProxy::start(&double, authority, host);
        let site = Site::new();
        let root = known.write(&site, "root.pem");
        site.put_old(format!("{DEVICE}/a.tsv"), good_file(1, 3));
        let run = site
            .call_to(&proxy.url())
            .env("SSL_CERT_FILE", &root)
            .run()
            .expect(1);
        let report = site.report();
        let error = file_of(&report, "a.tsv")["error"].to_string();
        for part in [&proxy.url(), "certificate", reason, "SSL_CERT_FILE"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(double.requests().is_empty(), "{reason}");
        assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
    }
}
