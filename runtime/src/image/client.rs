//! The HTTP client for one host: whom it trusts, who it says it is, through which proxy it goes. It follows no
//! redirect: that is decided where the credentials are known.

use std::{
    env, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::{Url, redirect::Policy};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::{Error, Kind, Result, config};

const OP: &str = "prepare registry client";
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// Where distributions keep their certificates, the common ones first.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whom a host is believed to be, and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Trust {
    /// PEM files beside the system's and the configured ones.
    pub(super) ca: Vec<PathBuf>,
    pub(super) client: Option<Pair>,
    /// No certificate is checked.
    pub(super) anybody: bool,
}

/// PEM files of a certificate and its key; may be one and the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Makes a client. Reads certificates anew, so that a changed file needs no restart. Blocks.
pub(super) fn client(
    config: &config::Registry,
    trust: &Trust,
    base: &Url,
    connect: Option<Duration>,
) -> Result<reqwest::Client> {
    let stall = Duration::from_secs(u64::from(config.stall_seconds.max(1)));
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(config, trust)?)
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .referer(false)
        .connect_timeout(connect.unwrap_or(stall.min(CONNECT_MAX)))
        .redirect(Policy::none());
    // A proxy has no business on loopback.
    let builder = if is_loopback(base) { builder.no_proxy() } else { builder };
    builder.build().map_err(|error| Error::new(Kind::Internal, OP, "HTTP").because(error))
}

fn tls(config: &config::Registry, trust: &Trust) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let wrong = |error: rustls::Error| Error::new(Kind::Internal, OP, "TLS").because(error);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?;
    let builder = match trust.anybody {
        true => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        false => builder.with_root_certificates(roots(config, trust)?),
    };
    let Some(pair) = &trust.client else { return Ok(builder.with_no_client_auth()) };
    let unreadable = |path: &Path, error: rustls::pki_types::pem::Error| {
        Error::invalid("read client certificate", path.display().to_string(), error.to_string())
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&pair.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(&pair.certificate, error))?;
    let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(|error| unreadable(&pair.key, error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| {
        Error::invalid("use client certificate", pair.certificate.display().to_string(), error.to_string())
    })
}

fn roots(config: &config::Registry, trust: &Trust) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let named = env::var_os("SSL_CERT_FILE");
    let bundles = named.as_deref().map(Path::new).into_iter().chain(BUNDLES.iter().map(Path::new));
    // None is fine: plain HTTP and configured authorities work without.
    if let Some(pem) = bundles.into_iter().find_map(|path| fs::read(path).ok()) {
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    }
    for path in config.ca_files.iter().chain(&trust.ca) {
        let object = || path.display().to_string();
        let pem = fs::read(path).map_err(|error| Error::io("read certificates", object(), error))?;
        let mut count = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let wrong = |cause: String| Error::invalid("read certificates", object(), cause);
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(Error::invalid("read certificates", object(), "it has no PEM certificate"));
        }
    }
    Ok(roots)
}

/// Believes every certificate, where `skip_verify` says so; signatures are checked all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_the_network() {
        let loopback = |host: &str| is_loopback(&Url::parse(&format!("https://{host}/v2/")).unwrap());
        for yes in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000", "[::1]"] {
            assert!(loopback(yes), "{yes}");
        }
        for no in ["r.io", "localhost.evil.io", "10.0.0.1:5000", "[::2]:5000", "127.0.0.1.evil.io"] {
            assert!(!loopback(no), "{no}");
        }
    }

    #[test]
    fn certificates_that_can_not_be_read_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.pem");
        fs::write(&file, "no certificate").unwrap();
        let base = Url::parse("https://r.io/v2/").unwrap();
        let pair = Pair { certificate: file.clone(), key: file.clone() };
        for trust in [
            Trust { ca: vec![file.clone()], ..Trust::default() },
            Trust { client: Some(pair), ..Trust::default() },
        ] {
            let error = client(&config::Registry::default(), &trust, &base, None).unwrap_err();
            assert!(error.chain().contains("x.pem"), "{}", error.chain());
        }
    }
}
