//! What a client's request to upgrade asks for, and what is answered. Pure.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// How the streams of an exec or attach behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    V1,
    V2,
    /// With a stream for the terminal's size.
    V3,
    /// Its error stream has a `metav1.Status`.
    V4,
    /// WebSocket's: the client can close a channel.
    V5,
}

impl Protocol {
    pub fn resizes(self) -> bool {
        self >= Self::V3
    }

    pub fn reports_status(self) -> bool {
        self >= Self::V4
    }

    pub fn closes_channels(self) -> bool {
        self >= Self::V5
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    Spdy,
    WebSocket,
}

/// Who wants to upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Exec and attach.
    Remote,
    PortForward,
}

/// What was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    pub carrier: Carrier,
    pub protocol: Protocol,
}

/// The answer, and what it agrees to where it does.
pub type Answer = (Response<String>, Option<Agreed>);

const REMOTE: [(&str, Protocol); 4] = [
    ("v4.channel.k8s.io", Protocol::V4),
    ("v3.channel.k8s.io", Protocol::V3),
    ("v2.channel.k8s.io", Protocol::V2),
    ("channel.k8s.io", Protocol::V1),
];
const REMOTE_WEB: [(&str, Protocol); 3] = [
    ("v5.channel.k8s.io", Protocol::V5),
    ("v4.channel.k8s.io", Protocol::V4),
    ("channel.k8s.io", Protocol::V1),
];
const PORT_FORWARD: [(&str, Protocol); 1] = [("portforward.k8s.io", Protocol::V1)];
const PORT_FORWARD_WEB: [(&str, Protocol); 1] = [("SPDY/3.1+portforward.k8s.io", Protocol::V1)];

pub fn negotiate(method: &Method, headers: &HeaderMap, door: Door) -> Answer {
    if !tokens(headers, header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return (refusal(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is needed\n"), None);
    }
    let asked = |name| tokens(headers, header::UPGRADE).any(|token: &str| token.eq_ignore_ascii_case(name));
    match (asked("websocket"), asked("spdy/3.1")) {
        (true, _) => web_socket(method, headers, door),
        (false, true) => spdy(method, headers, door),
        (false, false) => {
            (refusal(StatusCode::BAD_REQUEST, "only upgrades to SPDY/3.1 and websocket are known\n"), None)
        }
    }
}

fn spdy(method: &Method, headers: &HeaderMap, door: Door) -> Answer {
    if ![Method::GET, Method::POST].contains(method) {
        return (refusal(StatusCode::METHOD_NOT_ALLOWED, "GET or POST\n"), None);
    }
    let known: &[_] = match door {
        Door::Remote => &REMOTE,
        Door::PortForward => &PORT_FORWARD,
    };
    let Some((name, protocol)) = choose(tokens(headers, STREAM_PROTOCOL), known) else {
        let mut refused = refusal(StatusCode::FORBIDDEN, "none of these stream protocols is known\n");
        for (name, _) in known {
            refused.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        return (refused, None);
    };
    let mut answer = switching("SPDY/3.1");
    if let Some(name) = name {
        answer.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    }
    (answer, Some(Agreed { carrier: Carrier::Spdy, protocol }))
}

fn web_socket(method: &Method, headers: &HeaderMap, door: Door) -> Answer {
    if method != Method::GET {
        return (refusal(StatusCode::METHOD_NOT_ALLOWED, "GET\n"), None);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut refused = refusal(StatusCode::UPGRADE_REQUIRED, "websocket version 13 is needed\n");
        refused.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return (refused, None);
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return (refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing\n"), None);
    };
    let known: &[_] = match door {
        Door::Remote => &REMOTE_WEB,
        Door::PortForward => &PORT_FORWARD_WEB,
    };
    let offered = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let Some((name, protocol)) = choose(offered, known) else {
        return (refusal(StatusCode::BAD_REQUEST, "none of these websocket protocols is known\n"), None);
    };
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    let Ok(accept) = accept else {
        return (refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is wrong\n"), None);
    };
    let mut answer = switching("websocket");
    answer.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(name) = name {
        answer.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    (answer, Some(Agreed { carrier: Carrier::WebSocket, protocol }))
}

/// The client's first that we know; one that offers none means the first ever, and is told no name.
fn choose<'a>(
    offered: impl Iterator<Item = &'a str>,
    known: &[(&'static str, Protocol)],
) -> Option<(Option<&'static str>, Protocol)> {
    let mut offered = offered.peekable();
    if offered.peek().is_none() {
        return Some((None, Protocol::V1));
    }
    offered
        .find_map(|name| known.iter().find(|(there, _)| *there == name))
        .map(|(name, protocol)| (Some(*name), *protocol))
}

/// What a header lists, over all its lines.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn switching(to: &'static str) -> Response<String> {
    let mut answer = refusal(StatusCode::SWITCHING_PROTOCOLS, "");
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(to));
    answer
}

/// An answer in plain text.
pub fn refusal(status: StatusCode, text: &str) -> Response<String> {
    let mut answer = Response::new(text.to_owned());
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn the_clients_first_known_protocol_is_agreed_to() {
        type Row = (&'static [&'static str], Option<(Option<&'static str>, Protocol)>);
        let offers: [Row; 6] = [
            (&["v4.channel.k8s.io", "v3.channel.k8s.io"], Some((Some("v4.channel.k8s.io"), Protocol::V4))),
            (&["v5.channel.k8s.io", "v2.channel.k8s.io"], Some((Some("v2.channel.k8s.io"), Protocol::V2))),
            (&["v9, channel.k8s.io"], Some((Some("channel.k8s.io"), Protocol::V1))),
            (&[], Some((None, Protocol::V1))),
            (&["v9"], None),
            (&["portforward.k8s.io"], None),
        ];
        for (offered, expected) in offers {
            let mut request = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")]);
            for name in offered {
                request.append(STREAM_PROTOCOL, HeaderValue::from_static(name));
            }
            let (answer, agreed) = negotiate(&Method::POST, &request, Door::Remote);
            let said = answer.headers().get(STREAM_PROTOCOL).map(|value| value.to_str().unwrap());
            match expected {
                Some((name, protocol)) => {
                    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
                    assert_eq!(agreed, Some(Agreed { carrier: Carrier::Spdy, protocol }), "{offered:?}");
                    assert_eq!(said, name);
                }
                None => {
                    assert_eq!((answer.status(), agreed), (StatusCode::FORBIDDEN, None), "{offered:?}");
                    assert_eq!(answer.headers().get_all(ACCEPTED_PROTOCOLS).iter().count(), 4);
                }
            }
        }
    }

    #[test]
    fn a_websocket_handshake_is_answered_as_the_rfc_says() {
        let request = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            // RFC 6455, 1.3.
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        let (answer, agreed) = negotiate(&Method::GET, &request, Door::Remote);
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert_eq!(agreed, Some(Agreed { carrier: Carrier::WebSocket, protocol: Protocol::V5 }));
        let (answer, agreed) = negotiate(&Method::GET, &request, Door::PortForward);
        assert_eq!((answer.status(), agreed), (StatusCode::BAD_REQUEST, None));
    }

    #[test]
    fn what_is_no_upgrade_is_refused() {
        let rows = [
            (Method::GET, headers(&[]), StatusCode::BAD_REQUEST),
            (Method::GET, headers(&[("connection", "upgrade"), ("upgrade", "h2c")]), StatusCode::BAD_REQUEST),
            (
                Method::PUT,
                headers(&[("connection", "upgrade"), ("upgrade", "spdy/3.1")]),
                StatusCode::METHOD_NOT_ALLOWED,
            ),
            (
                Method::GET,
                headers(&[("connection", "upgrade"), ("upgrade", "websocket")]),
                StatusCode::UPGRADE_REQUIRED,
            ),
            (
                Method::GET,
                headers(&[
                    ("connection", "upgrade"),
                    ("upgrade", "websocket"),
                    ("sec-websocket-version", "13"),
                ]),
                StatusCode::BAD_REQUEST,
            ),
        ];
        for (method, headers, expected) in rows {
            let (answer, agreed) = negotiate(&method, &headers, Door::Remote);
            assert_eq!((answer.status(), agreed), (expected, None), "{method} {headers:?}");
        }
    }
}
