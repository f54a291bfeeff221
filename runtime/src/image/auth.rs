//! Who we are to a registry: credentials from the request, challenges answered by Basic or a token.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use reqwest::Url;
use serde::Deserialize;

use super::Auth;
use crate::{Error, Kind, Result};

const OP: &str = "authenticate";

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Anonymous,
    Password {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    Identity {
        token: String,
    },
    /// A bearer token, ready for use.
    Bearer {
        token: String,
    },
}

// Never the secrets.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Password { .. } => "password",
            Self::Identity { .. } => "identity token",
            Self::Bearer { .. } => "bearer token",
        })
    }
}

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Token { realm: String, service: Option<String>, scope: Option<String> },
}

impl Credentials {
    /// # Errors
    /// `Invalid` for an `auth` that is not `user:password` in base64.
    pub(super) fn from_auth(auth: Option<&Auth>, registry: &str) -> Result<Self> {
        let Some(auth) = auth else { return Ok(Self::Anonymous) };
        // The kubelet passes what it has; a password goes to the server it is for.
        if !auth.server_address.is_empty() && canonical_host(&auth.server_address) != canonical_host(registry)
        {
            return Ok(Self::Anonymous);
        }
        if !auth.registry_token.is_empty() {
            return Ok(Self::Bearer { token: auth.registry_token.clone() });
        }
        if !auth.identity_token.is_empty() {
            return Ok(Self::Identity { token: auth.identity_token.clone() });
        }
        if !auth.username.is_empty() {
            return Ok(Self::Password { username: auth.username.clone(), password: auth.password.clone() });
        }
        if auth.auth.is_empty() {
            return Ok(Self::Anonymous);
        }
        let wrong = || Error::invalid(OP, registry, "auth is not base64 of user:password");
        let bytes = STANDARD.decode(auth.auth.trim()).map_err(|_| wrong())?;
        let text = String::from_utf8(bytes).map_err(|_| wrong())?;
        let (username, password) = text.split_once(':').ok_or_else(wrong)?;
        // Docker pads with NUL.
        let password = password.trim_matches('\0');
        Ok(Self::Password { username: username.into(), password: password.into() })
    }

    pub(super) fn basic(&self) -> Option<HeaderValue> {
        match self {
            Self::Password { username, password } => {
                secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            }
            Self::Anonymous | Self::Identity { .. } | Self::Bearer { .. } => None,
        }
    }
}

/// A header that is never logged.
pub(super) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The host of an address, docker's own under its one name.
pub(super) fn canonical_host(address: &str) -> String {
    let text = address.split_once("://").map_or(address, |(_, rest)| rest);
    let text = text.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match text.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => text,
    }
}

/// The challenge we can answer best.
pub(super) fn challenge<'a>(headers: impl Iterator<Item = &'a HeaderValue>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers.filter_map(|value| value.to_str().ok()) {
        let Ok(challenges) = http_auth::parse_challenges(header) else { continue };
        for challenge in challenges {
            let find = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = find("realm")
            {
                return Some(Challenge::Token { realm, service: find("service"), scope: find("scope") });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// How a token is asked for.
#[derive(Debug)]
pub(super) struct TokenRequest {
    pub(super) url: Url,
    pub(super) basic: Option<HeaderValue>,
    /// A form to POST; else it is a GET.
    pub(super) form: Option<String>,
}

/// Composes the request for a token; `registry` is the URL that challenged us.
pub(super) fn token_request(
    credentials: &Credentials,
    challenge: (&str, Option<&str>, &str),
    registry: &Url,
) -> Result<TokenRequest> {
    let (realm, service, scope) = challenge;
    let object = || format!("{realm:.200?}");
    let mut url = Url::parse(realm)
        .map_err(|error| Error::invalid(OP, object(), format!("the registry names a bad realm: {error}")))?;
    let secure = url.scheme() == "https" || (url.scheme() == "http" && registry.scheme() == "http");
    if !secure {
        return Err(Error::new(Kind::Denied, OP, object()).because(crate::error::Cause(
            "the registry speaks https and wants the credentials sent elsewhere without".into(),
        )));
    }
    let mut pairs = vec![("scope", scope)];
    if let Some(service) = service {
        pairs.push(("service", service));
    }
    if let Credentials::Identity { token } = credentials {
        pairs.extend([("grant_type", "refresh_token"), ("client_id", "berth"), ("refresh_token", token)]);
        let mut form = url.clone();
        form.set_query(None);
        form.query_pairs_mut().extend_pairs(pairs);
        return Ok(TokenRequest { url, basic: None, form: form.query().map(str::to_owned) });
    }
    url.query_pairs_mut().extend_pairs(pairs);
    if let Credentials::Password { username, .. } = credentials {
        url.query_pairs_mut().append_pair("account", username);
    }
    Ok(TokenRequest { url, basic: credentials.basic(), form: None })
}

/// Takes the token out of the answer.
pub(super) fn token_in(bytes: &[u8], realm: &str) -> Result<HeaderValue> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let wrong = |cause: String| Error::new(Kind::Unavailable, OP, realm).because(crate::error::Cause(cause));
    let answer: Answer =
        serde_json::from_slice(bytes).map_err(|_| wrong("the answer is no token document".into()))?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
    let token = token.ok_or_else(|| wrong("the answer has no token".into()))?;
    secret(&format!("Bearer {token}")).ok_or_else(|| wrong("the token has odd characters".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> Credentials {
        Credentials::Password { username: username.into(), password: password.into() }
    }

    #[test]
    fn credentials_come_from_whichever_field_is_filled_and_only_for_their_server() {
        let auth = Auth { auth: STANDARD.encode("joe:se:cret\0"), ..Auth::default() };
        assert_eq!(Credentials::from_auth(Some(&auth), "r.io").unwrap(), password("joe", "se:cret"));
        let auth = Auth { username: "joe".into(), password: "x".into(), ..Auth::default() };
        assert_eq!(Credentials::from_auth(Some(&auth), "r.io").unwrap(), password("joe", "x"));
        for (server, registry, fits) in [
            ("https://index.docker.io/v1/", "docker.io", true),
            ("r.io:5000", "r.io:5000", true),
            ("https://r.io", "evil.io", false),
        ] {
            let auth = Auth { server_address: server.into(), ..auth.clone() };
            let found = Credentials::from_auth(Some(&auth), registry).unwrap();
            assert_eq!(found != Credentials::Anonymous, fits, "{server}");
        }
        let auth = Auth { auth: "???".into(), ..Auth::default() };
        assert!(Credentials::from_auth(Some(&auth), "r.io").is_err());
        assert!(!format!("{:?}", password("joe", "secret")).contains("secret"));
    }

    #[test]
    fn a_token_challenge_is_preferred_and_read_whole() {
        let headers = [
            HeaderValue::from_static("Basic realm=\"x\""),
            HeaderValue::from_static(
                "Bearer realm=\"https://a.io/token\",service=\"r.io\",scope=\"repository:x:pull\"",
            ),
        ];
        assert_eq!(challenge(headers[..1].iter()), Some(Challenge::Basic));
        let Some(Challenge::Token { realm, service, scope }) = challenge(headers.iter()) else {
            panic!("a token challenge")
        };
        assert_eq!(realm, "https://a.io/token");
        assert_eq!((service.as_deref(), scope.as_deref()), (Some("r.io"), Some("repository:x:pull")));
        assert_eq!(challenge([HeaderValue::from_static("nonsense\"=,,")].iter()), None);
    }

    #[test]
    fn credentials_never_leave_https_for_http() {
        let https = Url::parse("https://r.io/v2/").unwrap();
        let http = Url::parse("http://r.io/v2/").unwrap();
        let ask = |realm, registry| token_request(&password("joe", "x"), (realm, Some("s"), "sc"), registry);
        assert_eq!(ask("http://evil.io/token", &https).unwrap_err().kind, Kind::Denied);
        assert_eq!(ask("file:///etc/passwd", &http).unwrap_err().kind, Kind::Denied);
        let asked = ask("http://r.io/token?a=b", &http).unwrap();
        assert_eq!(asked.url.as_str(), "http://r.io/token?a=b&scope=sc&service=s&account=joe");
        assert!(asked.basic.is_some());
    }

    #[test]
    fn both_names_of_the_token_are_understood() {
        for good in
            [r#"{"token":"abc"}"#, r#"{"access_token":"abc"}"#, r#"{"token":"","access_token":"abc"}"#]
        {
            assert_eq!(token_in(good.as_bytes(), "r").unwrap().to_str().unwrap(), "Bearer abc");
        }
        for bad in ["", "{}", r#"{"token":"a\nb"}"#] {
            assert!(token_in(bad.as_bytes(), "r").is_err(), "{bad}");
        }
    }
}
