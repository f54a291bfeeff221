//! What a registry's failure means, and what helps. Pure.

use std::time::{Duration, SystemTime};

use super::auth::Credentials;

pub(super) const STALLED: &str =
    "look at the network, or change registry.stall_seconds and stall_bytes_per_second";
pub(super) const LIMITED: &str = "log in or wait: the registry limits pulls";

/// What helps against a refusal.
pub(super) fn denied(credentials: &Credentials, remark: Option<&str>) -> String {
    let hint = match credentials {
        Credentials::Anonymous => "the repository is private or does not exist: log in",
        Credentials::Password { .. } | Credentials::Identity { .. } | Credentials::Bearer { .. } => {
            "the credentials are wrong or do not reach so far"
        }
    };
    match remark {
        None => hint.to_owned(),
        Some(remark) => format!("{hint}; the node's own credentials could not be had: {remark}"),
    }
}

/// What helps against a connection that could not be made.
pub(super) fn transport(text: &str) -> Option<&'static str> {
    if text.contains("certificate") {
        return Some("add the authority to registry.ca_files or to `ca` in hosts.toml");
    }
    if text.contains("corrupt message") || text.contains("InvalidContentType") {
        return Some("it may speak plain HTTP: list it in registry.plain_http");
    }
    text.contains("dns error").then_some("check the name of the registry and the resolver of this node")
}

/// How long a Retry-After asks to wait: seconds or a date.
pub(super) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(SystemTime::from(at).duration_since(now).unwrap_or_default())
}

/// `: CODE: message` of the registry's first error, in bounds and in one line.
pub(super) fn message_in(body: &[u8]) -> String {
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(body) else { return String::new() };
    let first = &document["errors"][0];
    let part = |name: &str| {
        let text = first[name].as_str().unwrap_or_default();
        text.chars().filter(|c| !c.is_control()).take(200).collect::<String>()
    };
    match (part("code"), part("message")) {
        (code, message) if code.is_empty() && message.is_empty() => String::new(),
        (code, message) => format!(": {code}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_bounded_and_one_line() {
        let body = serde_json::json!({ "errors": [{ "code": "DENIED", "message": "no\nway ".repeat(100) }] });
        let said = message_in(body.to_string().as_bytes());
        assert!(said.starts_with(": DENIED: noway"));
        assert!(said.len() < 260 && !said.contains('\n'));
        assert_eq!(message_in(b"<html>"), "");
    }

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        assert_eq!(retry_after(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        for bad in ["", "soon", "-1", "1.5"] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
    }

    #[test]
    fn a_refusal_tells_why_there_are_no_better_credentials() {
        let hint = denied(&Credentials::Anonymous, Some("docker-credential-x: gone"));
        assert!(hint.contains("log in") && hint.ends_with("docker-credential-x: gone"), "{hint}");
    }
}
