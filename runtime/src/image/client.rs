//! The HTTP client of one pull: whom it trusts, where it follows redirects, through which proxy it goes.

use std::{env, fs, path::Path, sync::Arc, time::Duration};

use reqwest::redirect::{Attempt, Policy};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::{Error, Kind, Result, config};

const OP: &str = "prepare registry client";
const CONNECT_MAX: Duration = Duration::from_secs(20);
const REDIRECTS_MAX: usize = 10;
/// Where distributions keep their certificates, the common ones first.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where a proxy has no business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Loopback,
    Network,
}

/// Makes a client. Reads certificates anew, so that a changed file needs no restart. Blocks.
pub(super) fn client(config: &config::Registry, reach: Reach) -> Result<reqwest::Client> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Kind::Internal, OP, "TLS").because(error))?
        .with_root_certificates(roots(config)?)
        .with_no_client_auth();
    let stall = Duration::from_secs(u64::from(config.stall_seconds.max(1)));
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .referer(false)
        .connect_timeout(stall.min(CONNECT_MAX))
        .redirect(Policy::custom(redirect));
    let builder = match reach {
        Reach::Loopback => builder.no_proxy(),
        Reach::Network => builder,
    };
    builder.build().map_err(|error| Error::new(Kind::Internal, OP, "HTTP").because(error))
}

/// Follows, but never from https to http. reqwest itself takes Authorization off for another host.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let secure_before = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if secure_before && attempt.url().scheme() != "https" {
        return attempt.error("the registry redirects from https to http");
    }
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("too many redirects");
    }
    attempt.follow()
}

fn roots(config: &config::Registry) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let named = env::var_os("SSL_CERT_FILE");
    let bundles = named.as_deref().map(Path::new).into_iter().chain(BUNDLES.iter().map(Path::new));
    // None is fine: plain HTTP and configured authorities work without.
    if let Some(pem) = bundles.into_iter().find_map(|path| fs::read(path).ok()) {
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    }
    for path in &config.ca_files {
        let object = || path.display().to_string();
        let pem = fs::read(path).map_err(|error| Error::io("read registry.ca_files", object(), error))?;
        let mut count = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let wrong = |cause: String| Error::invalid("read registry.ca_files", object(), cause);
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(Error::invalid("read registry.ca_files", object(), "it has no PEM certificate"));
        }
    }
    Ok(roots)
}
