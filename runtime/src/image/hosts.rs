//! Which hosts have a registry's images: `hosts.toml` in containerd's tree, read anew at each pull.
//!
//! ```text
//! <registry.config_path>/<host[:port]>/hosts.toml     or <host_port_>/, or _default/
//!   server = "https://registry.example"               asked last; its keys stand at the top
//!   [host."https://mirror.example"]                    asked in the file's order
//!     capabilities, ca, client, skip_verify, header, override_path, dial_timeout
//! ```
//!
//! A directory without the file may hold docker's certificates: `*.crt`, and `*.cert` with `*.key`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use tracing::warn;

use super::client::{Pair, Trust, is_loopback};
use crate::{Error, Result, config};

const OP: &str = "read hosts.toml";

/// One place to ask.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Host {
    /// Where repositories begin, with a slash at its end: `https://host/v2/`.
    pub(super) base: Url,
    pub(super) role: Role,
    pub(super) resolves: Ability,
    pub(super) pulls: Ability,
    pub(super) trust: Trust,
    pub(super) headers: HeaderMap,
    pub(super) connect: Option<Duration>,
    pub(super) speech: Speech,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Has images of another registry: is told whose, and gets only credentials of its own.
    Mirror,
    /// The registry itself.
    Upstream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ability {
    Able,
    Barred,
}

/// Whether it is known if it speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    Stated,
    /// A registry on loopback of which nobody said anything: tried with TLS first.
    Untold,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    server: String,
    #[serde(default)]
    host: BTreeMap<String, Entry>,
    #[serde(flatten)]
    own: Entry,
}

#[derive(Default, Deserialize)]
struct Entry {
    capabilities: Option<Vec<String>>,
    ca: Option<Files>,
    client: Option<Clients>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, Files>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
    #[serde(flatten)]
    others: BTreeMap<String, toml::Value>,
}

/// A string or several; of headers, too.
#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Files {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    More(Vec<Client>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    /// Certificate and key in one file.
    Both(String),
    Pair([String; 2]),
}

impl From<Files> for Vec<String> {
    fn from(files: Files) -> Self {
        match files {
            Files::One(one) => vec![one],
            Files::More(more) => more,
        }
    }
}

/// The hosts to ask for a registry, in order; without a tree that knows it, the registry alone. Blocks.
pub(super) fn of(registry: &str, config: &config::Registry) -> Result<Vec<Host>> {
    let plain = config.plain_http.iter().any(|host| host == registry);
    let upstream = upstream(registry, plain)?;
    let mut places = config.config_path.iter().flat_map(|root| directories(root, registry));
    let Some(directory) = places.find(|place| place.is_dir()) else { return Ok(vec![upstream]) };
    let path = directory.join("hosts.toml");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let (hosts, unknown) = parse(&text, &directory, upstream)
                .map_err(|cause| Error::invalid(OP, path.display().to_string(), cause))?;
            if !unknown.is_empty() {
                warn!(path = %path.display(), keys = unknown.join(", "), "hosts.toml has keys that are not known");
            }
            Ok(hosts)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let trust = certificates(&directory)
                .map_err(|error| Error::io("read", directory.display().to_string(), error))?;
            Ok(vec![Host { trust, ..upstream }])
        }
        Err(error) => Err(Error::io(OP, path.display().to_string(), error)),
    }
}

/// Where containerd looks, first come first served.
fn directories(root: &Path, registry: &str) -> [PathBuf; 3] {
    let host = registry.trim_start_matches('[').replacen("]:", ":", 1);
    let host = host.trim_end_matches(']');
    let underscored = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => format!("{host}_{port}_"),
        _ => registry.to_owned(),
    };
    let exact = if root.join(registry).is_dir() { registry } else { host };
    [root.join(exact), root.join(underscored), root.join("_default")]
}

/// The registry as it is without any configuration.
pub(super) fn upstream(registry: &str, plain: bool) -> Result<Host> {
    let host = match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    let scheme = if plain { "http" } else { "https" };
    let base = Url::parse(&format!("{scheme}://{host}/v2/"))
        .map_err(|error| Error::invalid("ask registry", host, error.to_string()))?;
    let speech = if !plain && is_loopback(&base) { Speech::Untold } else { Speech::Stated };
    Ok(Host {
        base,
        role: Role::Upstream,
        resolves: Ability::Able,
        pulls: Ability::Able,
        trust: Trust::default(),
        headers: HeaderMap::new(),
        connect: None,
        speech,
    })
}

/// The hosts of a file in its order, the server last; and the keys that are not known.
fn parse(text: &str, directory: &Path, upstream: Host) -> Result<(Vec<Host>, Vec<String>), String> {
    let read = |error: toml::de::Error| {
        let line =
            error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        format!("line {line}: {}", error.message().trim_end().replace('\n', ", "))
    };
    let order = order(&DeTable::parse(text).map_err(read)?);
    let mut file: File = toml::from_str(text).map_err(read)?;
    let mut hosts = Vec::new();
    let mut unknown: Vec<String> = file.own.others.keys().cloned().collect();
    for name in order {
        let Some(entry) = file.host.remove(&name) else { continue };
        unknown.extend(entry.others.keys().map(|key| format!("host.{name:?}.{key}")));
        let base = base(&name, entry.override_path).map_err(|cause| format!("host {name:?}: {cause}"))?;
        let same = base.host_str() == upstream.base.host_str() && base.port() == upstream.base.port();
        let role = if same { Role::Upstream } else { Role::Mirror };
        let host = Host { base, role, speech: Speech::Stated, ..upstream.clone() };
        hosts.push(filled(host, entry, directory).map_err(|cause| format!("host {name:?}: {cause}"))?);
    }
    let server = match file.server.as_str() {
        "" => upstream,
        server => {
            let base = base(server, file.own.override_path).map_err(|cause| format!("server: {cause}"))?;
            Host { base, speech: Speech::Stated, ..upstream }
        }
    };
    hosts.push(filled(server, file.own, directory)?);
    Ok((hosts, unknown))
}

/// The names of the hosts as the file has them.
fn order(table: &toml::Spanned<DeTable<'_>>) -> Vec<String> {
    let Some(DeValue::Table(hosts)) = table.get_ref().get("host").map(toml::Spanned::get_ref) else {
        return Vec::new();
    };
    let mut names: Vec<(usize, String)> =
        hosts.keys().map(|key| (key.span().start, key.get_ref().to_string())).collect();
    names.sort();
    names.into_iter().map(|(_, name)| name).collect()
}

/// `/v2` goes behind the path unless it is there or the path is to be left alone.
fn base(text: &str, override_path: bool) -> Result<Url, String> {
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("it is no http or https URL".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into the URL; put them into registry.auth_file".into());
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    let version = if override_path || path.ends_with("/v2") { "" } else { "/v2" };
    url.set_path(&format!("{path}{version}/"));
    Ok(url)
}

fn filled(host: Host, entry: Entry, directory: &Path) -> Result<Host, String> {
    let (resolves, pulls) = abilities(entry.capabilities.as_deref())?;
    let at = |name: String| directory.join(name);
    let ca = entry.ca.map(Vec::from).unwrap_or_default().into_iter().map(at).collect();
    let clients = match entry.client {
        None => Vec::new(),
        Some(Clients::One(one)) => vec![Client::Both(one)],
        Some(Clients::More(more)) => more,
    };
    let pair = |client| match client {
        Client::Both(both) => Pair { certificate: at(both.clone()), key: at(both) },
        Client::Pair([certificate, key]) if key.is_empty() => {
            Pair { certificate: at(certificate.clone()), key: at(certificate) }
        }
        Client::Pair([certificate, key]) => Pair { certificate: at(certificate), key: at(key) },
    };
    let trust = Trust { ca, client: clients.into_iter().map(pair).next(), anybody: entry.skip_verify };
    let connect = entry.dial_timeout.as_deref().map(duration).transpose()?;
    Ok(Host { resolves, pulls, trust, headers: headers(entry.header)?, connect, ..host })
}

/// What it may be asked: for what a tag means, and for content.
fn abilities(named: Option<&[String]>) -> Result<(Ability, Ability), String> {
    let Some(named) = named else { return Ok((Ability::Able, Ability::Able)) };
    if let Some(other) = named.iter().find(|name| !matches!(name.as_str(), "pull" | "resolve" | "push")) {
        return Err(format!("there is no capability {other:?}: pull, resolve, push"));
    }
    let able = |name: &str| if named.iter().any(|it| it == name) { Ability::Able } else { Ability::Barred };
    Ok((able("resolve"), able("pull")))
}

fn headers(named: BTreeMap<String, Files>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in named {
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no header"))?;
        for value in Vec::from(values) {
            let mut value =
                HeaderValue::from_str(&value).map_err(|_| format!("header {name}: odd characters"))?;
            // It may well be a token.
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// Go's durations, as far as a dial takes: `500ms`, `30s`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("dial_timeout {text:?} is no duration as 10s");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let number: f64 = text[..end].parse().map_err(|_| wrong())?;
    let seconds = match &text[end..] {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|it| !it.is_zero()).ok_or_else(wrong)
}

/// Docker's certificates of a registry.
fn certificates(directory: &Path) -> io::Result<Trust> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.path());
    }
    names.sort();
    let ends = |path: &Path, with: &str| path.extension().is_some_and(|extension| extension == with);
    let client = names.iter().find(|path| ends(path, "cert") && path.with_extension("key").is_file());
    let client = client.map(|path| Pair { certificate: path.clone(), key: path.with_extension("key") });
    let ca = names.iter().filter(|path| ends(path, "crt")).cloned().collect();
    Ok(Trust { ca, client, anybody: false })
}

#[cfg(test)]
mod tests;
