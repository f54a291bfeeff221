//! Credentials kept on the node: docker's `config.json` or containers' `auth.json`, and the helpers that these name.
//!
//! Read anew at each pull. What can't be read is no reason not to pull what is public: it becomes a remark, which is
//! told when the registry refuses.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

use super::{Auth, auth::canonical_host, install::blocking};
use crate::{Error, Result};

/// How long a helper may take: it may talk to a cloud, but not to a person.
const HELPER_MAX: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// The key under which docker keeps what is for its own registry.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// What helpers print when they have nothing.
const HAS_NONE: &str = "credentials not found";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Keyring {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// A program `docker-credential-<name>` and what it is asked about.
#[derive(Debug, PartialEq, Eq)]
struct Helper {
    name: String,
    server: String,
}

/// What the node knows of a registry.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) auth: Option<Auth>,
    /// Why it may know less than it should.
    pub(super) remark: Option<String>,
}

/// Looks for credentials: a helper's first, then those in the file itself.
pub(super) async fn look_up(auth_file: &Path, registry: &str, repository: &str) -> Known {
    let Some(path) = place(auth_file) else { return Known::default() };
    let keyring = match blocking("read credentials", move || read(&path)).await {
        Ok(keyring) => keyring,
        Err(error) => return Known { auth: None, remark: Some(error.chain()) },
    };
    let (auth, remark) = match keyring.helper(registry) {
        None => (None, None),
        Some(helper) => match ask(&helper).await {
            Ok(auth) => (auth, None),
            Err(cause) => {
                (None, Some(format!("docker-credential-{} for {}: {cause}", helper.name, helper.server)))
            }
        },
    };
    Known { auth: auth.or_else(|| keyring.entry(registry, repository)), remark }
}

/// The file that is configured, else the one that the environment names.
fn place(configured: &Path) -> Option<PathBuf> {
    if !configured.as_os_str().is_empty() {
        return Some(configured.to_owned());
    }
    env::var_os("REGISTRY_AUTH_FILE").filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn read(path: &Path) -> Result<Keyring> {
    let object = || path.display().to_string();
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Keyring::default()),
        Err(error) => return Err(Error::io("read credentials", object(), error)),
    };
    // The parser's message may quote a secret; where it stands is enough.
    serde_json::from_slice(&bytes).map_err(|error| {
        let at = format!("line {} column {}", error.line(), error.column());
        Error::invalid("read credentials", object(), format!("it is no docker config.json: {at}"))
    })
}

impl Keyring {
    /// The helper for a registry: one of its own, else the store of all.
    fn helper(&self, registry: &str) -> Option<Helper> {
        let own = self.helpers.iter().find(|(key, _)| normal(key) == registry).map(|(_, name)| name);
        let name = own.unwrap_or(&self.store);
        let server = if registry == "docker.io" { DOCKER_KEY } else { registry };
        (!name.is_empty()).then(|| Helper { name: name.clone(), server: server.to_owned() })
    }

    /// The entry for the repository, or for the nearest namespace above it, or for the registry.
    fn entry(&self, registry: &str, repository: &str) -> Option<Auth> {
        let whole = format!("{registry}/{repository}");
        let mut wanted = whole.as_str();
        loop {
            let found = self.auths.iter().find(|(key, _)| normal(key) == wanted);
            if let Some(auth) = found.and_then(|(_, entry)| entry.auth()) {
                return Some(auth);
            }
            if wanted == registry {
                return None;
            }
            wanted = wanted.rsplit_once('/').map_or(registry, |(above, _)| above);
        }
    }
}

impl Entry {
    /// None for an entry that is empty: docker leaves one where a helper has the secret.
    fn auth(&self) -> Option<Auth> {
        let auth = Auth {
            username: self.username.clone(),
            password: self.password.clone(),
            auth: self.auth.clone(),
            identity_token: self.identitytoken.clone(),
            registry_token: self.registrytoken.clone(),
            server_address: String::new(),
        };
        (auth != Auth::default()).then_some(auth)
    }
}

/// A key as registry or registry/namespace. One with a scheme is docker's: its path says nothing.
fn normal(key: &str) -> String {
    if let Some((_, rest)) = key.split_once("://") {
        return canonical_host(rest);
    }
    match key.trim_end_matches('/').split_once('/') {
        None | Some((_, "v1" | "v2")) => canonical_host(key),
        Some((host, path)) => format!("{}/{path}", canonical_host(host)),
    }
}

/// Runs the helper's `get`. None: it has nothing for the server.
async fn ask(helper: &Helper) -> Result<Option<Auth>, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !helper.name.bytes().all(plain) {
        return Err("this is no name of a helper".into());
    }
    match timeout(HELPER_MAX, get(helper)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", HELPER_MAX.as_secs())),
    }
}

async fn get(helper: &Helper) -> Result<Option<Auth>, String> {
    let mut child = Command::new(format!("docker-credential-{}", helper.name))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{error}; install it in the PATH of berthd"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read has ended, and its exit tells more.
        stdin.write_all(helper.server.as_bytes()).await.ok();
    }
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut said).await.map_err(|error| error.to_string())?;
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    match status.success() {
        true => answer(&said).map(Some),
        false => refusal(&said).map_or(Ok(None), |said| Err(format!("{status}: {said}"))),
    }
}

fn answer(said: &[u8]) -> Result<Auth, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Answer =
        serde_json::from_slice(said).map_err(|_| "its answer has no Username and Secret".to_owned())?;
    // Docker's way to say that the secret is a refresh token.
    Ok(match answer.username.as_str() {
        "<token>" => Auth { identity_token: answer.secret, ..Auth::default() },
        _ => Auth { username: answer.username, password: answer.secret, ..Auth::default() },
    })
}

/// What it said when it failed, in one bounded line; None when it only has nothing.
fn refusal(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let said: String = said.trim().chars().filter(|c| !c.is_control()).take(200).collect();
    (!said.contains(HAS_NONE)).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(text: &str) -> Keyring {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_nearest_namespace_has_the_credentials() {
        let keyring = keyring(
            r#"{"auths": {
                "r.io": {"username": "registry", "password": "x"}, "r.io/team": {"username": "team"},
                "r.io/team/app": {"username": "app"}, "empty.io": {},
                "https://index.docker.io/v1/": {"auth": "ZG9ja2VyOng="}, "https://old.io/v2/": {"username": "old"},
                "port.io:5000": {"identitytoken": "t"}, "slash.io/v1/": {"registrytoken": "r"}}}"#,
        );
        let user = |registry, repository| keyring.entry(registry, repository).map(|auth| auth.username);
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(user("r.io", "team/app"), some("app"));
        assert_eq!(user("r.io", "team/app/deep"), some("app"));
        assert_eq!(user("r.io", "team/application"), some("team"));
        assert_eq!(user("r.io", "teams"), some("registry"));
        assert_eq!(user("old.io", "x"), some("old"));
        assert_eq!(user("port.io", "x"), None);
        assert_eq!(user("empty.io", "x"), None);
        assert_eq!(keyring.entry("docker.io", "library/busybox").unwrap().auth, "ZG9ja2VyOng=");
        assert_eq!(keyring.entry("port.io:5000", "x").unwrap().identity_token, "t");
        assert_eq!(keyring.entry("slash.io", "x").unwrap().registry_token, "r");
    }

    #[test]
    fn a_registrys_own_helper_comes_before_the_store_of_all() {
        let keyring = keyring(r#"{"credHelpers": {"gcr.io": "gcr", "plain.io": ""}, "credsStore": "pass"}"#);
        let helper = |registry| keyring.helper(registry).map(|helper| (helper.name, helper.server));
        let some = |name: &str, server: &str| Some((name.to_owned(), server.to_owned()));
        assert_eq!(helper("gcr.io"), some("gcr", "gcr.io"));
        assert_eq!(helper("docker.io"), some("pass", DOCKER_KEY));
        assert_eq!(helper("plain.io"), None);
        assert_eq!(Keyring::default().helper("gcr.io"), None);
    }

    #[test]
    fn what_a_helper_says_is_understood() {
        let auth = answer(br#"{"ServerURL": "r.io", "Username": "joe", "Secret": "x"}"#).unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("joe", "x"));
        assert_eq!(answer(br#"{"Username": "<token>", "Secret": "t"}"#).unwrap().identity_token, "t");
        assert!(!answer(br#"{"Secret": "hush"}"#).unwrap_err().contains("hush"));
        assert_eq!(refusal(b"credentials not found in native keychain\n"), None);
        assert_eq!(refusal(b"no\nkey "), Some("nokey".into()));
    }

    #[tokio::test]
    async fn what_can_not_be_read_is_a_remark_without_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        let known = look_up(&file, "r.io", "x").await;
        assert!(known.auth.is_none() && known.remark.is_none());
        fs::write(&file, r#"{"auths": {"r.io": {"auth": 7, "password": "hush"}}}"#).unwrap();
        let remark = look_up(&file, "r.io", "x").await.remark.unwrap();
        assert!(remark.contains("config.json") && remark.contains("line 1") && !remark.contains("hush"));
        for (name, cause) in [("berth-no-such", "install it"), ("../../bin/sh", "no name of a helper")] {
            let text = format!(r#"{{"credsStore": "{name}", "auths": {{"r.io": {{"username": "joe"}}}}}}"#);
            fs::write(&file, text).unwrap();
            let known = look_up(&file, "r.io", "x").await;
            assert!(known.remark.as_ref().unwrap().contains(cause), "{:?}", known.remark);
            assert_eq!(known.auth.unwrap().username, "joe", "the file's own are left");
        }
    }
}
