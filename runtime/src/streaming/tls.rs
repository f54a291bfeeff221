//! TLS of the streaming server: a certificate that is given and read again when its files change, or one that the daemon
//! makes and renews. A change that can't be used leaves the old one in force, and is told once.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{info, warn};

use crate::{Error, Kind, Result, config, error::Cause};

const OP: &str = "prepare TLS";
/// A made certificate is replaced after so long; nobody keeps it, so nothing depends on which one it is.
const MADE_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Makes TLS sessions. One per server.
#[derive(Debug)]
pub struct Tls {
    source: Source,
    current: Mutex<Current>,
}

#[derive(Debug)]
enum Source {
    Made,
    Files { certificate: PathBuf, key: PathBuf },
}

struct Current {
    config: Arc<ServerConfig>,
    of: Seen,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest holds the key.
        f.debug_struct("Current").field("of", &self.of).finish_non_exhaustive()
    }
}

/// What the current certificate came from, to notice that there is another.
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Made(Instant),
    Files([Stamp; 2]),
}

/// Of a file: device, inode, size, and when it was changed last.
type Stamp = (u64, u64, u64, i64, i64);

impl Tls {
    /// As the configuration says; none where it is off.
    ///
    /// # Errors
    /// `Invalid` names the key of the configuration and what is wrong.
    pub fn of(config: &config::Streaming) -> Result<Option<Self>> {
        let source = match config.tls.as_str() {
            "off" => return Ok(None),
            "made" => Source::Made,
            "files" => {
                let named = [("certificate", &config.certificate), ("key", &config.key)];
                if let Some((key, _)) = named.iter().find(|(_, path)| path.as_os_str().is_empty()) {
                    let key = format!("streaming.{key}");
                    return Err(Error::invalid("read configuration", key, "it names no file")
                        .hint("streaming.tls is \"files\": name the certificate's and the key's"));
                }
                Source::Files { certificate: config.certificate.clone(), key: config.key.clone() }
            }
            other => {
                let why = format!("{other:?} is none of off, made, files");
                return Err(Error::invalid("read configuration", "streaming.tls", why));
            }
        };
        let current = Mutex::new(source.read()?);
        Ok(Some(Self { source, current }))
    }

    /// Speaks TLS with a client, with the certificate of this moment.
    pub async fn accept(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config()).accept(socket).await
    }

    /// Two `stat`s a connection: files may be replaced at any time, by a link that is moved too.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current();
        let now = self.source.look();
        if now.as_ref().is_ok_and(|now| *now == current.of || self.source.is_fresh(&current.of)) {
            return Arc::clone(&current.config);
        }
        match now.and_then(|now| Ok((self.source.read()?, now))) {
            Ok((read, _)) => {
                info!("the streaming server's certificate is replaced");
                *current = read;
            }
            Err(error) => {
                warn!(error = error.chain(), "the streaming server keeps its certificate");
                // Told once: what is there now is known to be of no use.
                if let Ok(now) = self.source.look() {
                    current.of = now;
                }
            }
        }
        Arc::clone(&current.config)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // Replaced whole.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn look(&self) -> Result<Seen> {
        match self {
            Self::Made => Ok(Seen::Made(Instant::now())),
            Self::Files { certificate, key } => Ok(Seen::Files([stamp(certificate)?, stamp(key)?])),
        }
    }

    /// Whether what was made is still young enough. Files say for themselves.
    fn is_fresh(&self, seen: &Seen) -> bool {
        matches!(seen, Seen::Made(at) if at.elapsed() < MADE_FOR)
    }

    fn read(&self) -> Result<Current> {
        let of = self.look()?;
        let (chain, key) = match self {
            Self::Made => made()?,
            Self::Files { certificate, key } => (read_chain(certificate)?, read_key(key)?),
        };
        let wrong = |error: rustls::Error| {
            Error::new(Kind::Invalid, OP, "streaming.certificate and streaming.key").because(error)
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(wrong)?;
        // An upgrade to SPDY or WebSocket is HTTP/1.1's.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Current { config: Arc::new(config), of })
    }
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn made() -> Result<Pair> {
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let made = rcgen::generate_simple_self_signed(names)
        .map_err(|error| Error::new(Kind::Internal, OP, "a certificate").because(error))?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|error| Error::new(Kind::Internal, OP, "a key").because(Cause(error.to_owned())))?;
    Ok((vec![made.cert.der().clone()], key))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |why: String| Error::invalid(OP, format!("streaming.certificate {}", path.display()), why);
    let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error: rustls::pki_types::pem::Error| wrong(error.to_string()))?;
    if chain.is_empty() { Err(wrong("it has no PEM certificate".into())) } else { Ok(chain) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let wrong = |why: String| Error::invalid(OP, format!("streaming.key {}", path.display()), why);
    let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| wrong(error.to_string()))
}

fn stamp(path: &Path) -> Result<Stamp> {
    let found =
        fs::metadata(path).map_err(|error| Error::io("look at", path.display().to_string(), error))?;
    Ok((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> config::Streaming {
        config::Streaming {
            tls: "files".into(),
            certificate: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            ..config::Streaming::default()
        }
    }

    fn write(config: &config::Streaming) -> Vec<u8> {
        let made = rcgen::generate_simple_self_signed(vec!["node".into()]).unwrap();
        fs::write(&config.key, made.signing_key.serialize_pem()).unwrap();
        fs::write(&config.certificate, made.cert.pem()).unwrap();
        made.cert.der().to_vec()
    }

    #[test]
    fn off_is_none_made_needs_no_files_and_another_word_is_told() {
        let of = |tls: &str| Tls::of(&config::Streaming { tls: tls.into(), ..Default::default() });
        assert!(of("off").unwrap().is_none());
        assert!(of("made").unwrap().is_some());
        assert!(of("on").unwrap_err().chain().contains("streaming.tls"));
        assert!(of("files").unwrap_err().chain().contains("streaming.certificate"));
    }

    #[test]
    fn a_made_certificate_stays_while_it_is_young() {
        let tls = Tls::of(&config::Streaming { tls: "made".into(), ..Default::default() }).unwrap().unwrap();
        let first = tls.config();
        assert!(Arc::ptr_eq(&first, &tls.config()));
        let old = Instant::now().checked_sub(MADE_FOR).unwrap();
        tls.current().of = Seen::Made(old);
        assert!(!Arc::ptr_eq(&first, &tls.config()));
    }

    #[test]
    fn changed_files_are_read_again_and_broken_ones_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = files(dir.path());
        write(&config);
        let tls = Tls::of(&config).unwrap().unwrap();
        let first = tls.config();
        assert!(Arc::ptr_eq(&first, &tls.config()));
        fs::write(&config.certificate, "no certificate").unwrap();
        assert!(Arc::ptr_eq(&first, &tls.config()));
        write(&config);
        let second = tls.config();
        assert!(!Arc::ptr_eq(&first, &second));
        fs::remove_file(&config.key).unwrap();
        assert!(Arc::ptr_eq(&second, &tls.config()));
    }
}
