//! What people write behind flags -> what the daemon takes. Pure.

use std::{
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use berth_cri::berth::{Port, Restart, Volume, port, restart::Policy};
use jiff::Timestamp;

use super::failure::{Failure, Result};

/// Bytes: a number, a fraction, or either with b, k, m, g, t (1024 each; `kb` and `KiB` are the same).
pub(super) fn memory(text: &str) -> Result<i64> {
    let wrong = || Failure::new(format!("{text:?} is no size; write it as 512m, 1.5g or a number of bytes"));
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let bytes = decimal(number).ok_or_else(wrong)? * (1_u64 << shift) as f64;
    // Beyond 2^53 the fraction is lost anyway, and no machine has it.
    if (1.0..9.0e15).contains(&bytes) { Ok(bytes as i64) } else { Err(wrong()) }
}

/// Thousandths of a CPU.
pub(super) fn cpus(text: &str) -> Result<i64> {
    let wrong = || Failure::new(format!("{text:?} is no number of CPUs; write it as 2 or 0.5"));
    let cpus = decimal(text.trim()).ok_or_else(wrong)?;
    let millicpu = (cpus * 1000.0).round();
    if (1.0..1.0e9).contains(&millicpu) { Ok(millicpu as i64) } else { Err(wrong()) }
}

/// Digits and at most one point: no sign, no exponent, no infinity.
fn decimal(text: &str) -> Option<f64> {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let points = text.bytes().filter(|byte| *byte == b'.').count();
    if digits == 0 || points > 1 || digits + points != text.len() {
        return None;
    }
    text.parse().ok()
}

pub(super) fn restart(text: &str) -> Result<Restart> {
    let (policy, retries) = text.split_once(':').map_or((text, None), |(policy, n)| (policy, Some(n)));
    let policy = match (policy, retries) {
        ("no", None) => Policy::Never,
        ("always", None) => Policy::Always,
        ("on-failure", _) => Policy::OnFailure,
        ("unless-stopped", None) => {
            return Err(Failure::new(
                "there is no restart policy unless-stopped; a stopped container stays \
                                     stopped with `always`, too",
            ));
        }
        _ => {
            return Err(Failure::new(format!(
                "{text:?} is no restart policy; one of no, on-failure, on-failure:N, always"
            )));
        }
    };
    let max_retries = retries
        .map_or(Ok(0), str::parse)
        .map_err(|_| Failure::new(format!("{text:?}: the number of retries is a whole number from 0 on")))?;
    Ok(Restart { policy: policy.into(), max_retries })
}

/// What one -p asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ports(pub(super) Vec<Port>);

/// [IP:]HOST:CONTAINER[/tcp|udp|sctp], ports or ranges of the same length.
pub(super) fn ports(text: &str) -> Result<Ports> {
    let wrong = |cause: &str| {
        Failure::new(format!("ports {text:?}: {cause}; write them as [IP:]HOST:CONTAINER[/udp], as 8080:80"))
    };
    let (ends, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => port::Protocol::Tcp,
        "udp" => port::Protocol::Udp,
        "sctp" => port::Protocol::Sctp,
        _ => return Err(wrong("the protocol is none of tcp, udp, sctp")),
    };
    let (host, container) = ends.rsplit_once(':').ok_or_else(|| wrong("it names one port only"))?;
    let (address, host) = host.rsplit_once(':').unwrap_or(("", host));
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong("the address is no IP address"));
    }
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(first..=last),
            _ => Err(wrong("a port is one of 1 to 65535, a range goes upwards")),
        }
    };
    let (host, container) = (range(host)?, range(container)?);
    if host.len() != container.len() {
        return Err(wrong("the ranges are not equally long"));
    }
    let port = |(host, container): (u16, u16)| Port {
        host_ip: address.to_owned(),
        host_port: host.into(),
        container_port: container.into(),
        protocol: protocol.into(),
    };
    Ok(Ports(host.zip(container).map(port).collect()))
}

/// SOURCE:DESTINATION[:ro|rw]; a relative source is below `here`.
pub(super) fn volume(text: &str, here: &Path) -> Result<Volume> {
    let wrong = |cause: &str| {
        Failure::new(format!("volume {text:?}: {cause}; write it as /on/the/host:/in/the/container[:ro]"))
    };
    let parts: Vec<_> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [source, destination] => (source, destination, ""),
        [source, destination, options] => (source, destination, options),
        [_] => return Err(wrong("it names no host path")),
        _ => return Err(wrong("it has too many parts")),
    };
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            other => return Err(wrong(&format!("there is no option {other:?}"))),
        }
    }
    if !destination.starts_with('/') {
        return Err(wrong("the path in the container is not absolute"));
    }
    let source = match source.as_bytes() {
        [b'/', ..] => source.to_owned(),
        [b'.'] | [b'.', b'/', ..] | [b'.', b'.', ..] => {
            let joined = std::path::absolute(here.join(source)).ok();
            joined.and_then(|path| path.to_str().map(str::to_owned)).ok_or_else(|| wrong("no such path"))?
        }
        _ => return Err(wrong("there are no named volumes")),
    };
    Ok(Volume { source, destination: destination.to_owned(), read_only })
}

/// NAME=VALUE, or NAME alone for the value that it has here; `None` where it has none.
pub(super) fn variable(text: &[u8]) -> Result<Option<Vec<u8>>> {
    let name = text.split(|byte| *byte == b'=').next().unwrap_or_default();
    if name.is_empty() {
        return Err(Failure::new(format!("variable {:?} has no name", String::from_utf8_lossy(text))));
    }
    if name.len() < text.len() {
        return Ok(Some(text.to_vec()));
    }
    let here = std::env::var_os(std::ffi::OsStr::from_bytes(name));
    Ok(here.map(|value| [name, b"=", &value.into_vec()].concat()))
}

/// The variables of an --env-file: a line each; empty lines and those that begin with # are none.
pub(super) fn env_file(content: &[u8]) -> Result<Vec<Vec<u8>>> {
    let lines = content.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let lines = lines.map(<[u8]>::trim_ascii_start);
    let variables = lines.filter(|line| !line.is_empty() && line[0] != b'#').map(variable);
    variables.filter_map(Result::transpose).collect()
}

pub(super) fn label(text: &str) -> Result<(String, String)> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err(Failure::new(format!("label {text:?} has no name"))),
        (name, value) => Ok((name.to_owned(), value.to_owned())),
    }
}

/// Unix nanoseconds: a time (RFC 3339), unix seconds, or so long before `now` (10s, 5m, 1h30m, 2d).
pub(super) fn since(text: &str, now: i64) -> Result<i64> {
    const SECOND: i64 = 1_000_000_000;
    let wrong =
        || Failure::new(format!("{text:?} is no time; write it as 10m, 1h30m or 2026-01-02T03:04:05Z"));
    if let Ok(at) = text.parse::<Timestamp>() {
        return i64::try_from(at.as_nanosecond()).map_err(|_| wrong());
    }
    if let Some(seconds) = decimal(text) {
        return Ok((seconds * SECOND as f64) as i64);
    }
    let (mut before, mut rest) = (0_i64, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0).ok_or_else(wrong)?;
        let unit = match rest.as_bytes()[end] {
            b's' => SECOND,
            b'm' => 60 * SECOND,
            b'h' => 3600 * SECOND,
            b'd' => 24 * 3600 * SECOND,
            _ => return Err(wrong()),
        };
        let count: i64 = rest[..end].parse().map_err(|_| wrong())?;
        before = count.checked_mul(unit).and_then(|more| before.checked_add(more)).ok_or_else(wrong)?;
        rest = &rest[end + 1..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(now.saturating_sub(before)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_a_range_of_one_address_or_all() {
        let told = |text: &str| {
            let ports = ports(text).unwrap().0;
            let shown = |port: &Port| {
                format!("{} {} {} {:?}", port.host_ip, port.host_port, port.container_port, port.protocol())
            };
            ports.iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(told("8080:80"), [" 8080 80 Tcp"]);
        assert_eq!(told("127.0.0.1:53:5353/udp"), ["127.0.0.1 53 5353 Udp"]);
        assert_eq!(told("[::1]:1:2/sctp"), ["::1 1 2 Sctp"]);
        assert_eq!(told("8000-8001:80-81"), [" 8000 80 Tcp", " 8001 81 Tcp"]);
        for bad in
            ["80", "0:80", "80:0", "80:x", "65536:1", "1-3:1-2", "3-1:3-1", "host:1:1", "1:1/icmp", ":", ""]
        {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_is_a_number_with_a_unit_of_1024s() {
        let rows = [
            ("1", Some(1)),
            ("512m", Some(512 << 20)),
            ("512M", Some(512 << 20)),
            ("1.5g", Some(3 << 29)),
            ("64 KiB", Some(64 << 10)),
            ("2gb", Some(2 << 30)),
            ("10b", Some(10)),
            ("1t", Some(1 << 40)),
            ("0", None),
            ("", None),
            ("m", None),
            ("-1m", None),
            ("1.2.3m", None),
            ("1e3", None),
            ("1x", None),
            ("99999999t", None),
            ("infinity", None),
        ];
        for (text, expected) in rows {
            assert_eq!(memory(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn cpus_are_counted_in_thousandths() {
        let rows = [
            ("1", Some(1000)),
            ("0.5", Some(500)),
            (".25", Some(250)),
            ("1.0005", Some(1001)),
            ("0", None),
            ("-1", None),
            ("", None),
            (".", None),
            ("nan", None),
            ("1e9", None),
        ];
        for (text, expected) in rows {
            assert_eq!(cpus(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_restart_policy_may_bound_its_retries_where_that_means_something() {
        let rows = [
            ("no", Some((Policy::Never, 0))),
            ("always", Some((Policy::Always, 0))),
            ("on-failure", Some((Policy::OnFailure, 0))),
            ("on-failure:5", Some((Policy::OnFailure, 5))),
            ("on-failure:", None),
            ("on-failure:-1", None),
            ("always:3", None),
            ("unless-stopped", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let restart = restart(text).ok();
            assert_eq!(restart.map(|restart| (restart.policy(), restart.max_retries)), expected, "{text:?}");
        }
    }

    #[test]
    fn a_volume_is_a_host_path_at_a_path_in_the_container() {
        let rows = [
            ("/a:/b", Some(("/a", "/b", false))),
            ("/a:/b:ro", Some(("/a", "/b", true))),
            ("/a:/b:rw", Some(("/a", "/b", false))),
            ("./x:/b", Some(("/here/x", "/b", false))),
            (".:/b", Some(("/here", "/b", false))),
            ("/b", None),
            ("data:/b", None),
            ("/a:b", None),
            ("/a:/b:zz", None),
            ("/a:/b:ro:x", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let volume = volume(text, Path::new("/here")).ok();
            let volume = volume.as_ref().map(|v| (v.source.as_str(), v.destination.as_str(), v.read_only));
            assert_eq!(volume, expected, "{text:?}");
        }
    }

    #[test]
    fn a_variable_without_a_value_has_the_one_it_has_here() {
        let path = std::env::var_os("PATH").unwrap().into_vec();
        assert_eq!(variable(b"A=1=2").unwrap().unwrap(), b"A=1=2");
        assert_eq!(variable(b"A=").unwrap().unwrap(), b"A=");
        assert_eq!(variable(b"A=\xff").unwrap().unwrap(), b"A=\xff");
        assert_eq!(variable(b"PATH").unwrap().unwrap(), [b"PATH=", &path[..]].concat());
        assert_eq!(variable(b"BERTH_TEST_UNSET").unwrap(), None);
        assert!(variable(b"=x").is_err() && variable(b"").is_err());
    }

    #[test]
    fn an_env_file_has_a_variable_a_line() {
        let content = b"# comment\nA=1\r\n\n  B=two words \nBERTH_TEST_UNSET\nC=#x";
        let expected = [&b"A=1"[..], b"B=two words ", b"C=#x"];
        assert_eq!(env_file(content).unwrap(), expected);
        assert!(env_file(b"=x").is_err());
        assert_eq!(env_file(b"").unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_label_may_have_no_value() {
        assert_eq!(label("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert_eq!(label("a").unwrap(), ("a".into(), String::new()));
        assert!(label("=b").is_err());
    }

    #[test]
    fn a_time_is_absolute_or_so_long_ago() {
        const SECOND: i64 = 1_000_000_000;
        let now = 1_000_000 * SECOND;
        let rows = [
            ("1970-01-01T00:00:05Z", Some(5 * SECOND)),
            ("1970-01-01T01:00:05+01:00", Some(5 * SECOND)),
            ("7", Some(7 * SECOND)),
            ("1.5", Some(1_500_000_000)),
            ("10s", Some(now - 10 * SECOND)),
            ("1h30m", Some(now - 5400 * SECOND)),
            ("2d", Some(now - 172_800 * SECOND)),
            ("", None),
            ("s", None),
            ("10", Some(10 * SECOND)),
            ("10x", None),
            ("10ä", None),
            ("5m3", None),
            ("99999999999999999999d", None),
            ("yesterday", None),
        ];
        for (text, expected) in rows {
            assert_eq!(since(text, now).ok(), expected, "{text:?}");
        }
    }
}
