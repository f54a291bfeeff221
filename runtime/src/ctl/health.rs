//! Health checks: the flags of `run` and `create`, and how they are shown.

use berth_cri::berth::{
    Health, HealthCheck, HttpCheck, TcpCheck,
    health::State,
    health_check::{Action, Check},
};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{
    failure::{Failure, Result},
    flags::text,
    inspect::time,
};

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Flags {
    /// A command in it, by its shell, that says by exit code 0 that it is healthy
    #[arg(long, value_name = "COMMAND", group = "check")]
    health_cmd: Option<String>,
    /// What it answers with a status from 200 to 399: PORT[/PATH], http://[IP]:PORT/PATH
    #[arg(long, value_name = "URL", value_parser = text(http), group = "check")]
    health_http: Option<HttpCheck>,
    /// Where it takes connections: PORT, IP:PORT
    #[arg(long, value_name = "PORT", value_parser = text(tcp), group = "check")]
    health_tcp: Option<TcpCheck>,
    /// Leave out the check that the image says
    #[arg(long, group = "check")]
    no_healthcheck: bool,
    /// From one check to the next [default: the image's, else 30s]
    #[arg(long, value_name = "TIME", value_parser = text(milliseconds))]
    health_interval: Option<u64>,
    /// After so long a check has failed [default: the image's, else 30s]
    #[arg(long, value_name = "TIME", value_parser = text(milliseconds))]
    health_timeout: Option<u64>,
    /// So long failures don't count, unless it was healthy before [default: the image's, else 0s]
    #[arg(long, value_name = "TIME", value_parser = text(milliseconds))]
    health_start_period: Option<u64>,
    /// From one check to the next within the start period [default: the image's, else 5s]
    #[arg(long, value_name = "TIME", value_parser = text(milliseconds))]
    health_start_interval: Option<u64>,
    /// So many failures in a row make it unhealthy [default: the image's, else 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    health_retries: Option<u32>,
    /// What to do with it then
    #[arg(long, value_name = "ACTION", default_value = "none")]
    health_on_failure: OnFailure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnFailure {
    /// Only show it
    None,
    /// End it and start it again
    Restart,
    /// End it
    Stop,
}

impl Flags {
    /// What is said of it; none where nothing is.
    pub(super) fn check(self) -> Option<HealthCheck> {
        let check = if self.no_healthcheck { Some(Check::None(true)) } else { None };
        let check = check
            .or(self.health_cmd.map(Check::Shell))
            .or(self.health_http.map(Check::Http))
            .or(self.health_tcp.map(Check::Tcp));
        let action = match self.health_on_failure {
            OnFailure::None => Action::Nothing,
            OnFailure::Restart => Action::Restart,
            OnFailure::Stop => Action::Stop,
        };
        let said = HealthCheck {
            check,
            interval_ms: self.health_interval.unwrap_or(0),
            timeout_ms: self.health_timeout.unwrap_or(0),
            start_period_ms: self.health_start_period.unwrap_or(0),
            start_interval_ms: self.health_start_interval.unwrap_or(0),
            retries: self.health_retries.unwrap_or(0),
            action: action.into(),
        };
        (said != HealthCheck::default()).then_some(said)
    }
}

/// PORT[/PATH], HOST:PORT[/PATH], with or without `http://`.
fn http(url: &str) -> Result<HttpCheck> {
    if url.starts_with("https:") {
        return Err(Failure::new(format!("{url:?}: only http is asked; a command can ask by TLS")));
    }
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let (host, port) = match (url.starts_with("http://"), address(authority)) {
        // A URL may leave its port out.
        (true, Err(_)) if !authority.is_empty() => (bare(authority), 80),
        (_, parsed) => parsed?,
    };
    Ok(HttpCheck { host, port, path })
}

fn tcp(text: &str) -> Result<TcpCheck> {
    let (host, port) = address(text)?;
    Ok(TcpCheck { host, port })
}

/// PORT or HOST:PORT; `localhost` is no host, which means the same.
fn address(text: &str) -> Result<(String, u32)> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let port = port.parse::<u16>().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Failure::new(format!("{text:?} names no port; write PORT or IP:PORT")))?;
    Ok((bare(host), port.into()))
}

fn bare(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host == "localhost" { String::new() } else { host.to_owned() }
}

/// `500ms`, `30s`, `1m30s`, `2h`, as docker writes times; at least a millisecond, or `0s`.
fn milliseconds(text: &str) -> Result<u64> {
    let wrong = || Failure::new(format!("{text:?} is no time; write it as 500ms, 30s, 1m30s"));
    let (mut total, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0).ok_or_else(wrong)?;
        let (count, after) = rest.split_at(end);
        let length = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(length);
        let unit = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let count: u64 = count.parse().map_err(|_| wrong())?;
        total = count.checked_mul(unit).and_then(|more| total.checked_add(more)).ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// As docker's `ps` has it.
pub(super) fn in_a_list(state: State) -> &'static str {
    match state {
        State::Starting => "health: starting",
        State::Healthy => "healthy",
        State::Unhealthy => "unhealthy",
    }
}

/// docker's `State.Health`.
pub(super) fn of_state(health: &Health) -> Value {
    let status = match health.state() {
        State::Starting => "starting",
        State::Healthy => "healthy",
        State::Unhealthy => "unhealthy",
    };
    let log = health.last.iter().map(|result| {
        json!({
            "Start": time(result.started_at),
            "End": time(result.ended_at),
            "ExitCode": result.exit_code,
            "Output": result.output,
        })
    });
    json!({ "Status": status, "FailingStreak": health.failing_streak, "Log": log.collect::<Vec<_>>() })
}

/// docker's `Config.Healthcheck`, with `HTTP` and `TCP` beside its kinds of tests.
pub(super) fn of_config(check: &HealthCheck) -> Value {
    let host = |host: &str| match host {
        "" => "localhost".to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]"),
        v4 => v4.to_owned(),
    };
    let test = match &check.check {
        Some(Check::Shell(line)) => json!(["CMD-SHELL", line]),
        Some(Check::Command(command)) => {
            json!(std::iter::once("CMD").chain(command.words.iter().map(String::as_str)).collect::<Vec<_>>())
        }
        Some(Check::Http(http)) => {
            json!(["HTTP", format!("http://{}:{}{}", host(&http.host), http.port, http.path)])
        }
        Some(Check::Tcp(tcp)) => json!(["TCP", format!("{}:{}", host(&tcp.host), tcp.port)]),
        Some(Check::None(_)) | None => json!(["NONE"]),
    };
    let nanoseconds = |ms: u64| ms.saturating_mul(1_000_000);
    let action = match check.action() {
        Action::Nothing => "none",
        Action::Restart => "restart",
        Action::Stop => "stop",
    };
    json!({
        "Test": test,
        "Interval": nanoseconds(check.interval_ms),
        "Timeout": nanoseconds(check.timeout_ms),
        "StartPeriod": nanoseconds(check.start_period_ms),
        "StartInterval": nanoseconds(check.start_interval_ms),
        "Retries": check.retries,
        "OnFailure": action,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_be_as_short_as_a_port() {
        let rows = [
            ("80", Some(("", 80, "/"))),
            ("80/health?x=1", Some(("", 80, "/health?x=1"))),
            ("localhost:8080", Some(("", 8080, "/"))),
            ("http://localhost/", Some(("", 80, "/"))),
            ("http://10.0.0.1:81/a", Some(("10.0.0.1", 81, "/a"))),
            ("http://[::1]:81", Some(("::1", 81, "/"))),
            ("http://:81/b", Some(("", 81, "/b"))),
            ("https://localhost/", None),
            ("/health", None),
            ("0", None),
            ("", None),
        ];
        for (url, expected) in rows {
            let check = http(url).ok();
            let found = check.as_ref().map(|check| (check.host.as_str(), check.port, check.path.as_str()));
            assert_eq!(found, expected, "{url:?}");
        }
        let check = tcp("[fd00::1]:5432").unwrap();
        assert_eq!((check.host.as_str(), check.port), ("fd00::1", 5432));
    }

    #[test]
    fn times_are_written_as_docker_has_them() {
        let rows = [
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("1m30s", Some(90_000)),
            ("2h", Some(7_200_000)),
            ("0s", Some(0)),
            ("30", None),
            ("s", None),
            ("1.5s", None),
            ("1d", None),
            ("", None),
            ("99999999999999999999s", None),
        ];
        for (text, expected) in rows {
            assert_eq!(milliseconds(text).ok(), expected, "{text:?}");
        }
    }
}
