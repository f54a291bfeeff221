//! Health checks of a person's container: what they ask for over what the image says, and the plan of it. Pure.

use std::net::IpAddr;

use berth_cri::berth::{self, HealthCheck, health_check::Check};
use berth_launch::v1::{self as launch, health};
use serde::Deserialize;

use super::{Document, Exec, exec_process};
use crate::{Error, Kind, Result};

const OP: &str = "read health check";

/// docker's, where neither the person nor the image says anything.
const INTERVAL_MS: u64 = 30_000;
const TIMEOUT_MS: u64 = 30_000;
const START_INTERVAL_MS: u64 = 5_000;
const RETRIES: u32 = 3;

/// docker's `Healthcheck` in an image's configuration; times are nanoseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct OfImage {
    test: Vec<String>,
    interval: u64,
    timeout: u64,
    start_period: u64,
    start_interval: u64,
    retries: u32,
}

/// The check that is carried out: the person's words over the image's, whose configuration comes as it was read. None
/// where there is none, or it was turned off.
///
/// # Errors
/// `Invalid` for an image's check that can't be read, a host that is no IP address, a port or path that is none, and times
/// of no check.
pub fn health(asked: &HealthCheck, image: &[u8]) -> Result<Option<HealthCheck>> {
    let own = match &asked.check {
        Some(Check::None(true)) => return Ok(None),
        Some(Check::None(false)) | None => None,
        Some(check) => Some(check.clone()),
    };
    let image = match own {
        // What the image says is of another check: its times are not for this one.
        Some(_) => OfImage::default(),
        None => of_image(image)?,
    };
    let Some(check) = own.or(check_of(&image.test)?) else {
        return match *asked == HealthCheck::default() || asked.check == Some(Check::None(false)) {
            true => Ok(None),
            false => Err(Error::invalid(OP, "times", "neither the image nor the request says a check")
                .hint("give --health-cmd, --health-http or --health-tcp")),
        };
    };
    match &check {
        Check::Http(http) => target(&http.host, http.port).and_then(|()| path(&http.path))?,
        Check::Tcp(tcp) => target(&tcp.host, tcp.port)?,
        Check::None(_) | Check::Shell(_) | Check::Command(_) => {}
    }
    let first = |values: [u64; 3]| values.into_iter().find(|value| *value != 0).unwrap_or_default();
    let ms = |nanoseconds: u64| nanoseconds.div_ceil(1_000_000);
    Ok(Some(HealthCheck {
        check: Some(check),
        interval_ms: first([asked.interval_ms, ms(image.interval), INTERVAL_MS]),
        timeout_ms: first([asked.timeout_ms, ms(image.timeout), TIMEOUT_MS]),
        start_period_ms: first([asked.start_period_ms, ms(image.start_period), 0]),
        start_interval_ms: first([asked.start_interval_ms, ms(image.start_interval), START_INTERVAL_MS]),
        retries: [asked.retries, image.retries].into_iter().find(|n| *n != 0).unwrap_or(RETRIES),
        action: asked.action,
    }))
}

/// The plan of a check that [`health`] gave, in a container of that document and environment.
///
/// # Errors
/// As of an exec.
pub fn health_plan(check: &HealthCheck, document: &Document, env: &[Vec<u8>]) -> Result<launch::Health> {
    let command = |args: Vec<String>| {
        let exec = Exec { args, own_env: env.to_vec(), ..Exec::default() };
        exec_process(document, &exec).map(health::Check::Command)
    };
    let planned = match &check.check {
        Some(Check::Shell(line)) => Some(command(vec!["/bin/sh".into(), "-c".into(), line.clone()])?),
        Some(Check::Command(berth::Words { words })) => Some(command(words.clone())?),
        Some(Check::Http(http)) => Some(health::Check::Http(launch::HttpCheck {
            host: http.host.clone(),
            port: http.port,
            path: http.path.clone(),
        })),
        Some(Check::Tcp(tcp)) => {
            Some(health::Check::Tcp(launch::TcpCheck { host: tcp.host.clone(), port: tcp.port }))
        }
        Some(Check::None(_)) | None => None,
    };
    let action = match check.action() {
        berth::health_check::Action::Nothing => health::Action::Nothing,
        berth::health_check::Action::Restart => health::Action::Restart,
        berth::health_check::Action::Stop => health::Action::Stop,
    };
    Ok(launch::Health {
        check: planned,
        interval_ms: check.interval_ms,
        timeout_ms: check.timeout_ms,
        start_period_ms: check.start_period_ms,
        start_interval_ms: check.start_interval_ms,
        retries: check.retries,
        action: action.into(),
    })
}

fn of_image(configuration: &[u8]) -> Result<OfImage> {
    #[derive(Deserialize)]
    struct Outer {
        #[serde(default)]
        config: Option<Inner>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        #[serde(default)]
        healthcheck: Option<OfImage>,
    }
    let outer: Outer = serde_json::from_slice(configuration).map_err(|error| {
        Error::new(Kind::Invalid, OP, "Healthcheck of the image")
            .because(error)
            .hint("--no-healthcheck goes without")
    })?;
    Ok(outer.config.and_then(|inner| inner.healthcheck).unwrap_or_default())
}

/// docker's `Test`: NONE, CMD and words, CMD-SHELL and a line; empty: as the image below, which has been looked at when
/// the image was built.
fn check_of(test: &[String]) -> Result<Option<Check>> {
    match test {
        [] => Ok(None),
        [kind] if kind == "NONE" => Ok(None),
        [kind, words @ ..] if kind == "CMD" && !words.is_empty() => {
            Ok(Some(Check::Command(berth::Words { words: words.to_vec() })))
        }
        [kind, line] if kind == "CMD-SHELL" => Ok(Some(Check::Shell(line.clone()))),
        _ => Err(Error::invalid(OP, format!("Test {test:?} of the image"), "it is no check")
            .hint("--no-healthcheck goes without")),
    }
}

fn target(host: &str, port: u32) -> Result<()> {
    if !host.is_empty() && host.parse::<IpAddr>().is_err() {
        return Err(Error::invalid(OP, format!("host {host:?}"), "it is no IP address")
            .hint("leave it out for the container's own loopback"));
    }
    match port {
        1..=65_535 => Ok(()),
        _ => Err(Error::invalid(OP, format!("port {port}"), "it is none of 1 to 65535")),
    }
}

/// It goes into a line of a request as it is.
fn path(path: &str) -> Result<()> {
    match path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => {
            Err(Error::invalid(OP, format!("path {path:?}"), "it begins with no slash, or holds a blank")
                .hint("write what is special as %20"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn image(healthcheck: serde_json::Value) -> Vec<u8> {
        json!({ "config": { "Cmd": ["x"], "Healthcheck": healthcheck } }).to_string().into_bytes()
    }

    fn shell(line: &str) -> Option<Check> {
        Some(Check::Shell(line.into()))
    }

    #[test]
    fn the_images_check_is_taken_with_dockers_defaults_and_the_persons_times_over_them() {
        let nothing = HealthCheck::default();
        let image = image(json!({
            "Test": ["CMD-SHELL", "curl -f localhost"], "Interval": 2_000_000_000_u64, "Retries": 7,
        }));
        let found = health(&nothing, &image).unwrap().unwrap();
        let expected = HealthCheck {
            check: shell("curl -f localhost"),
            interval_ms: 2000,
            timeout_ms: 30_000,
            start_period_ms: 0,
            start_interval_ms: 5000,
            retries: 7,
            action: 0,
        };
        assert_eq!(found, expected);
        let faster = HealthCheck { interval_ms: 100, retries: 2, ..nothing.clone() };
        let found = health(&faster, &image).unwrap().unwrap();
        assert_eq!((found.check, found.interval_ms, found.retries), (expected.check, 100, 2));
        let own = HealthCheck { check: shell("true"), ..nothing.clone() };
        let found = health(&own, &image).unwrap().unwrap();
        assert_eq!((found.check, found.interval_ms, found.retries), (shell("true"), 30_000, 3));
        let off = HealthCheck { check: Some(Check::None(true)), ..nothing };
        assert_eq!(health(&off, &image).unwrap(), None);
    }

    #[test]
    fn an_image_says_none_a_line_or_words() {
        let words = Check::Command(berth::Words { words: vec!["a".into(), "b".into()] });
        let rows = [
            (json!(["NONE"]), Some(None)),
            (json!([]), Some(None)),
            (json!(["CMD", "a", "b"]), Some(Some(words))),
            (json!(["CMD-SHELL", "a b"]), Some(shell("a b"))),
            (json!(["CMD"]), None),
            (json!(["CMD-SHELL", "a", "b"]), None),
            (json!(["FOO", "a"]), None),
            (json!("CMD a"), None),
        ];
        for (test, expected) in rows {
            let found = health(&HealthCheck::default(), &image(json!({ "Test": test })));
            assert_eq!(found.ok().map(|found| found.and_then(|found| found.check)), expected, "{test}");
        }
        assert_eq!(health(&HealthCheck::default(), b"{}").unwrap(), None);
    }

    #[test]
    fn what_cannot_be_asked_is_refused_by_name() {
        let http = |host: &str, port, path: &str| HealthCheck {
            check: Some(Check::Http(berth::HttpCheck { host: host.into(), port, path: path.into() })),
            ..Default::default()
        };
        let rows = [
            (http("web", 80, "/"), "host \"web\""),
            (http("", 0, "/"), "port 0"),
            (http("", 65_536, "/"), "port 65536"),
            (http("", 80, "x"), "path \"x\""),
            (http("", 80, "/ HTTP/1.1\r\nX: y"), "path"),
            (HealthCheck { interval_ms: 5, ..Default::default() }, "times"),
        ];
        for (asked, named) in rows {
            let error = health(&asked, b"{}").unwrap_err();
            assert_eq!(error.kind, Kind::Invalid);
            assert!(error.chain().contains(named), "{}", error.chain());
        }
        assert!(health(&http("::1", 80, "/a?b=c"), b"{}").unwrap().is_some());
    }
}
