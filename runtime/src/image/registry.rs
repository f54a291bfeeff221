//! Speaks the distribution protocol to one repository at one host, for one pull.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Client, Response, Url};
use tokio::time::{sleep, timeout};
use tokio_util::bytes::Bytes;

use super::{
    auth::{self, Challenge, Credentials},
    client::{self, Trust},
    digest::Digest,
    document::{
        DOCKER_INDEX, DOCKER_MANIFEST, DOCUMENT_MAX_BYTES, Descriptor, Document, Manifest, OCI_INDEX,
        OCI_MANIFEST,
    },
    hosts::{Host, Role, Speech},
    install::blocking,
    pace::Pace,
    reference::{Reference, Version},
    remedy,
    tries::Tries,
};
use crate::{Error, Kind, Result, config, error::Cause};

const OP: &str = "ask registry";
/// A request and three more.
const ATTEMPTS: u32 = 4;
const BACKOFF: Duration = Duration::from_millis(200);
/// How long a registry may ask us to wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a loopback registry may take to refuse https.
const PROBE: Duration = Duration::from_secs(3);
const INDEX_DEPTH_MAX: u32 = 3;
const REDIRECTS_MAX: usize = 10;

/// A conversation with a repository at one host.
#[derive(Debug)]
pub(super) struct Session {
    host: Host,
    client: Client,
    /// For where we are sent to: shows no client certificate.
    outside: Client,
    /// `https://host/v2/name/`.
    base: Url,
    reference: Reference,
    credentials: Credentials,
    /// Why there may be no better credentials.
    remark: Option<String>,
    /// What the last challenge was answered with.
    authorization: Mutex<Option<HeaderValue>>,
    stall: Duration,
    least: u32,
}

/// Which bytes of a blob are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: u64,
    /// The last one; None: to the end.
    pub(super) to: Option<u64>,
}

impl Span {
    /// Of one that has an end.
    pub(super) fn length(self) -> u64 {
        self.to.map_or(0, |to| to + 1 - self.from)
    }

    fn header(self) -> HeaderValue {
        let to = self.to.map(|to| to.to_string()).unwrap_or_default();
        HeaderValue::from_str(&format!("bytes={}-{to}", self.from)).expect("digits are ASCII")
    }
}

/// Why a request did not give what it was to give.
#[derive(Debug)]
pub(super) enum Failure {
    /// Worth another try.
    Passing(Error),
    /// The same, but not before.
    Later(Error, Duration),
    /// No byte for too long, or too few.
    Stalled(Error),
    Lasting(Error),
}

impl Failure {
    pub(super) fn error(&self) -> &Error {
        match self {
            Self::Passing(error) | Self::Later(error, _) | Self::Stalled(error) | Self::Lasting(error) => {
                error
            }
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Passing(error)
            | Failure::Later(error, _)
            | Failure::Stalled(error)
            | Failure::Lasting(error) => error,
        }
    }
}

/// A manifest for this machine, and under which digest it was asked for.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) digest: Digest,
    pub(super) bytes: Vec<u8>,
    pub(super) manifest: Manifest,
}

impl Session {
    /// Finds out how the host is spoken to.
    pub(super) async fn open(
        host: &Host,
        credentials: Credentials,
        remark: Option<String>,
        reference: &Reference,
        config: &config::Registry,
    ) -> Result<Self> {
        let (settings, asked) = (config.clone(), host.clone());
        let (client, outside) = blocking("prepare registry client", move || {
            let client = client::client(&settings, &asked.trust, &asked.base, asked.connect)?;
            let outside = match asked.trust.client {
                None => client.clone(),
                Some(_) => {
                    let trust = Trust { client: None, ..asked.trust.clone() };
                    client::client(&settings, &trust, &asked.base, asked.connect)?
                }
            };
            Ok((client, outside))
        })
        .await?;
        let mut root = host.base.clone();
        if host.speech == Speech::Untold && !speaks_https(&client, &root).await {
            root.set_scheme("http").map_err(|()| Error::new(Kind::Internal, OP, root.to_string()))?;
        }
        let base = root
            .join(&format!("{}/", reference.repository))
            .map_err(|error| Error::new(Kind::Invalid, OP, host.name()).because(error))?;
        Ok(Self {
            host: host.clone(),
            client,
            outside,
            base,
            reference: reference.clone(),
            credentials,
            remark,
            authorization: Mutex::new(None),
            stall: Duration::from_secs(u64::from(config.stall_seconds.max(1))),
            least: config.stall_bytes_per_second,
        })
    }

    /// Gets the manifest for this machine, through indexes.
    pub(super) async fn resolve(&self) -> Result<Resolved> {
        let wanted = match &self.reference.version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        };
        let mut bytes = self.document(&format!("manifests/{wanted}"), DOCUMENT_MAX_BYTES).await?;
        let digest = Digest::of(&bytes);
        if let Version::Digest(asked) = &self.reference.version
            && *asked != digest
        {
            return Err(mismatch(asked, &digest));
        }
        for _ in 0..=INDEX_DEPTH_MAX {
            match Document::parse(&bytes, &self.reference.to_string())? {
                Document::Manifest(manifest) => return Ok(Resolved { digest, bytes, manifest }),
                Document::Index(index) => {
                    let chosen = index.choose(&self.reference.to_string())?;
                    bytes = self.described(&format!("manifests/{}", chosen.digest), chosen).await?;
                }
            }
        }
        Err(Error::invalid("read manifest", self.reference.to_string(), "indexes within indexes, too deep"))
    }

    /// Gets a config.
    pub(super) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.described(&format!("blobs/{}", descriptor.digest), descriptor).await
    }

    pub(super) async fn described(&self, path: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > DOCUMENT_MAX_BYTES {
            return Err(too_big(&descriptor.digest.to_string()));
        }
        let bytes = self.document(path, descriptor.size).await?;
        let found = Digest::of(&bytes);
        if found == descriptor.digest { Ok(bytes) } else { Err(mismatch(&descriptor.digest, &found)) }
    }

    /// Reads a small answer, whole, never more than `max` bytes.
    pub(super) async fn document(&self, path: &str, max: u64) -> Result<Vec<u8>> {
        let (mut tried, mut tries) = (0, Tries::default());
        loop {
            tried += 1;
            let read = async {
                let response = self.get(path, None).await?;
                self.read(response, max, path).await
            };
            let failure = match read.await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failure,
            };
            tries.note(&failure);
            match failure {
                Failure::Passing(_) if tried < ATTEMPTS => sleep(backoff(tried)).await,
                Failure::Later(_, wait) if tried < ATTEMPTS => sleep(wait).await,
                failure => return Err(tries.error(failure)),
            }
        }
    }

    async fn read(&self, mut response: Response, max: u64, object: &str) -> Result<Vec<u8>, Failure> {
        if response.content_length().is_some_and(|length| length > max) {
            return Err(Failure::Lasting(too_big(object)));
        }
        let mut bytes = Vec::new();
        let mut pace = self.pace();
        while let Some(chunk) = self.chunk(&mut response, &mut pace).await? {
            if (bytes.len() + chunk.len()) as u64 > max {
                return Err(Failure::Lasting(too_big(object)));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Sends a GET below the repository, answering a challenge if one comes; gives a success only.
    pub(super) async fn get(&self, path: &str, span: Option<Span>) -> Result<Response, Failure> {
        let mut url = self.base.join(path).map_err(|error| {
            Failure::Lasting(Error::new(Kind::Invalid, OP, path.to_owned()).because(error))
        })?;
        if self.host.role == Role::Mirror {
            url.query_pairs_mut().append_pair("ns", &self.reference.registry);
        }
        let response = self.follow(&url, span).await?;
        let ours = response.url().origin() == self.base.origin();
        if response.status() != StatusCode::UNAUTHORIZED || !ours {
            return self.judge(response, path).await;
        }
        let Some(challenge) = auth::challenge(response.headers().get_all(header::WWW_AUTHENTICATE).iter())
        else {
            return self.judge(response, path).await;
        };
        match self.answer(challenge).await? {
            Some(value) => *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value),
            None => return self.judge(response, path).await,
        }
        let response = self.follow(&url, span).await?;
        self.judge(response, path).await
    }

    /// Sends a GET and goes where it is sent. What says who we are goes to the host itself only.
    async fn follow(&self, url: &Url, span: Option<Span>) -> Result<Response, Failure> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(&url, span).await?;
            let Some(next) = redirect(&response) else { return Ok(response) };
            let next = next.map_err(|cause| Failure::Lasting(self.unavailable(cause)))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                let cause = "it redirects from https to http".to_owned();
                return Err(Failure::Lasting(self.unavailable(cause)));
            }
            url = next;
        }
        Err(Failure::Lasting(self.unavailable("too many redirects".into())))
    }

    async fn send(&self, url: &Url, span: Option<Span>) -> Result<Response, Failure> {
        let ours = url.origin() == self.base.origin();
        let mut headers = if ours { self.host.headers.clone() } else { HeaderMap::new() };
        if url.path().contains("/manifests/") || url.path().contains("/referrers/") {
            let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
            headers.insert(header::ACCEPT, HeaderValue::from_str(&accept).expect("media types are ASCII"));
        }
        if let Some(span) = span {
            headers.insert(header::RANGE, span.header());
        }
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(value) = authorization.filter(|_| ours) {
            headers.insert(header::AUTHORIZATION, value);
        }
        let client = if ours { &self.client } else { &self.outside };
        self.patiently(client.request(Method::GET, url.clone()).headers(headers).send()).await
    }

    /// The value for Authorization; None when we have no credentials of the kind.
    async fn answer(&self, challenge: Challenge) -> Result<Option<HeaderValue>, Failure> {
        let (realm, service, scope) = match (challenge, &self.credentials) {
            (Challenge::Basic, credentials) => return Ok(credentials.basic()),
            (Challenge::Token { .. }, Credentials::Bearer { token }) => {
                return Ok(auth::secret(&format!("Bearer {token}")));
            }
            (Challenge::Token { realm, service, scope }, _) => (realm, service, scope),
        };
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
        let challenge = (realm.as_str(), service.as_deref(), scope.as_str());
        let asked =
            auth::token_request(&self.credentials, challenge, &self.base).map_err(Failure::Lasting)?;
        let client = if asked.url.origin() == self.base.origin() { &self.client } else { &self.outside };
        let mut request = match asked.form {
            None => client.get(asked.url),
            Some(form) => client
                .post(asked.url)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form),
        };
        if let Some(basic) = asked.basic {
            request = request.header(header::AUTHORIZATION, basic);
        }
        // A redirect is not followed: the credentials are for the realm alone.
        let response = self.patiently(request.send()).await?;
        let response = self.judge(response, &realm).await?;
        let bytes = self.read(response, DOCUMENT_MAX_BYTES, &realm).await?;
        auth::token_in(&bytes, &realm).map(Some).map_err(Failure::Lasting)
    }

    pub(super) fn pace(&self) -> Pace {
        Pace::new(self.stall, self.least)
    }

    /// The next bytes of a body, if they come fast enough.
    pub(super) async fn chunk(
        &self,
        response: &mut Response,
        pace: &mut Pace,
    ) -> Result<Option<Bytes>, Failure> {
        let begun = Instant::now();
        let chunk = self.patiently(response.chunk()).await?;
        let Some(bytes) = &chunk else { return Ok(chunk) };
        match pace.note(begun.elapsed(), bytes.len()) {
            Ok(()) => Ok(chunk),
            Err(brought) => {
                let cause = format!("stalled: {brought} bytes in {} s", self.stall.as_secs());
                let error = self.unavailable(cause).hint(remedy::STALLED);
                Err(Failure::Stalled(error))
            }
        }
    }

    /// Waits for the next bytes, but not for ever.
    pub(super) async fn patiently<T>(
        &self,
        wait: impl Future<Output = reqwest::Result<T>>,
    ) -> Result<T, Failure> {
        match timeout(self.stall, wait).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.transport(error)),
            Err(_) => {
                let cause = format!("stalled: no byte for {} s", self.stall.as_secs());
                Err(Failure::Stalled(self.unavailable(cause).hint(remedy::STALLED)))
            }
        }
    }

    fn transport(&self, error: reqwest::Error) -> Failure {
        let lasting = error.is_builder();
        // A redirect's URL may carry a signature.
        let error = error.without_url();
        let text = words(&error);
        let hint = remedy::transport(&text);
        let certificate = text.contains("certificate");
        let error = Error { hint: hint.map(str::to_owned), ..self.unavailable(text) };
        if lasting || certificate { Failure::Lasting(error) } else { Failure::Passing(error) }
    }

    pub(super) fn unavailable(&self, cause: String) -> Error {
        Error::new(Kind::Unavailable, OP, self.host.name())
            .because(Cause(format!("RegistryUnavailable: {cause}")))
    }

    /// Lets a success pass and makes an error of the rest.
    async fn judge(&self, response: Response, object: &str) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = wait.and_then(|text| remedy::retry_after(text, SystemTime::now()));
        let said = self.read(response, 64 << 10, object).await;
        let said = said.map(|body| remedy::message_in(&body)).unwrap_or_default();
        let cause = Cause(format!("{status}{said}"));
        let error = |kind| Error::new(kind, OP, format!("{object:.300} of {}", self.host.name()));
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let hint = remedy::denied(&self.credentials, self.remark.as_deref());
                Failure::Lasting(error(Kind::Denied).because(cause).hint(hint))
            }
            StatusCode::NOT_FOUND => {
                let hint = format!("check the name and the tag of {}", self.reference);
                Failure::Lasting(error(Kind::NotFound).because(cause).hint(hint))
            }
            StatusCode::TOO_MANY_REQUESTS => passing(self.unavailable(cause.0).hint(remedy::LIMITED), wait),
            status if status.is_server_error() => passing(self.unavailable(cause.0), wait),
            _ => Failure::Lasting(error(Kind::Internal).because(cause)),
        })
    }
}

/// Worth another try, unless it is too long to wait for.
fn passing(error: Error, wait: Option<Duration>) -> Failure {
    match wait {
        None => Failure::Passing(error),
        Some(wait) if wait <= WAIT_MAX => Failure::Later(error, wait),
        Some(wait) => {
            Failure::Lasting(error.hint(format!("it asks to be left alone for {} s", wait.as_secs())))
        }
    }
}

/// Where the answer sends us, if it does.
fn redirect(response: &Response) -> Option<Result<Url, String>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let Some(location) = location else { return Some(Err("it redirects to nowhere".into())) };
    let next = response.url().join(location).map_err(|error| format!("it redirects to a bad place: {error}"));
    Some(next.and_then(|next| match next.scheme() {
        "http" | "https" => Ok(next),
        other => Err(format!("it redirects to {other}:")),
    }))
}

/// Whether the other end answers a TLS handshake, be it with a certificate we don't trust.
async fn speaks_https(client: &Client, base: &Url) -> bool {
    match timeout(PROBE, client.get(base.clone()).send()).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => words(&error).contains("certificate"),
        Err(_) => false,
    }
}

/// The error with all its causes in one line.
fn words(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

pub(super) fn backoff(tried: u32) -> Duration {
    BACKOFF * 2u32.pow(tried.saturating_sub(1).min(4))
}

fn too_big(object: &str) -> Error {
    let cause = format!("it is bigger than announced or than {} MiB", DOCUMENT_MAX_BYTES >> 20);
    Error::invalid("read manifest", object, cause)
}

fn mismatch(asked: &Digest, found: &Digest) -> Error {
    Error::invalid("verify blob", asked.to_string(), format!("its content has the digest {found}"))
        .hint("something between here and the registry changes content")
}
