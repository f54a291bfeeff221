//! What a kubelet's pod asks of Berth by its annotations, for all its containers or for one by name. Pure.
//!
//! ```text
//! berth.dev/restart[.CONTAINER]     never | on-failure[:N] | always
//! berth.dev/log-rate[.CONTAINER]    bytes that go into the log in a second: 65536, 64Ki, 10Mi; 0: no limit
//! berth.dev/storage[.CONTAINER]     bytes that its own layer may take, likewise
//! ```

use berth_cri::v1 as cri;
use berth_launch::v1::{Restart, restart::Policy};

use crate::{Error, Result};

const RESTART: &str = "berth.dev/restart";
const LOG_RATE: &str = "berth.dev/log-rate";
const STORAGE: &str = "berth.dev/storage";

/// When a container that has ended is started again without its kubelet.
///
/// # Errors
/// `Invalid` names the annotation.
pub fn restart(config: &cri::PodSandboxConfig, container: &str) -> Result<Restart> {
    said(config, RESTART, container).map_or(Ok(Restart::default()), |(key, text)| policy(&key, text))
}

/// The most that goes into a container's log in a second; 0: all of it. `usual` is what the node gives.
///
/// # Errors
/// `Invalid` names the annotation.
pub fn log_rate(config: &cri::PodSandboxConfig, container: &str, usual: u64) -> Result<u64> {
    said(config, LOG_RATE, container).map_or(Ok(usual), |(key, text)| bytes(&key, text))
}

/// The most that a container's own layer may take; 0: no limit. `usual` is what the node gives.
///
/// # Errors
/// `Invalid` names the annotation.
pub fn storage(config: &cri::PodSandboxConfig, container: &str, usual: u64) -> Result<u64> {
    said(config, STORAGE, container).map_or(Ok(usual), |(key, text)| bytes(&key, text))
}

/// Refuses what can't be understood before there is a pod that does otherwise than it says.
///
/// # Errors
/// `Invalid` names the annotation.
pub fn check(config: &cri::PodSandboxConfig) -> Result<()> {
    for (key, text) in &config.annotations {
        let is =
            |name: &str| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if is(RESTART) {
            policy(key, text)?;
        } else if is(LOG_RATE) || is(STORAGE) {
            bytes(key, text)?;
        }
    }
    Ok(())
}

/// The annotation of this container, else that of all.
fn said<'a>(config: &'a cri::PodSandboxConfig, name: &str, container: &str) -> Option<(String, &'a str)> {
    let keys = [format!("{name}.{container}"), name.to_owned()];
    keys.into_iter().find_map(|key| config.annotations.get(&key).map(|text| (key, text.as_str())))
}

fn policy(key: &str, text: &str) -> Result<Restart> {
    let wrong = || invalid(key, text, "no restart policy", "one of never, on-failure, on-failure:N, always");
    let of = |policy: Policy, max_retries| Restart { policy: policy.into(), max_retries };
    match text.split_once(':') {
        None => match text {
            "never" => Ok(of(Policy::Never, 0)),
            "on-failure" => Ok(of(Policy::OnFailure, 0)),
            "always" => Ok(of(Policy::Always, 0)),
            _ => Err(wrong()),
        },
        Some(("on-failure", most)) => match most.parse() {
            Ok(most) if most > 0 => Ok(of(Policy::OnFailure, most)),
            Ok(_) | Err(_) => Err(wrong()),
        },
        Some(_) => Err(wrong()),
    }
}

fn bytes(key: &str, text: &str) -> Result<u64> {
    const UNITS: [(&str, u64); 3] = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)];
    let unit = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)));
    let (digits, unit) = unit.unwrap_or((text, 1));
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse::<u64>().ok().filter(|_| plain);
    number
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| invalid(key, text, "no number of bytes", "as 65536, 64Ki, 10Mi"))
}

fn invalid(key: &str, text: &str, what: &str, hint: &str) -> Error {
    Error::invalid("run pod", format!("config.annotations[{key}]"), format!("{text:?} is {what}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(pairs: &[(&str, &str)]) -> cri::PodSandboxConfig {
        let annotations = pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
        cri::PodSandboxConfig { annotations, ..Default::default() }
    }

    #[test]
    fn a_container_goes_by_its_own_annotation_before_that_of_all() {
        let config = annotated(&[
            ("berth.dev/restart", "on-failure:3"),
            ("berth.dev/restart.web", "always"),
            ("berth.dev/restart.init", "never"),
            ("berth.dev/log-rate.web", "64Ki"),
            ("berth.dev/storage", "1Gi"),
            ("berth.dev/storage.web", "0"),
        ]);
        check(&config).unwrap();
        let of =
            |name| restart(&config, name).map(|restart| (restart.policy(), restart.max_retries)).unwrap();
        assert_eq!(of("web"), (Policy::Always, 0));
        assert_eq!(of("init"), (Policy::Never, 0));
        assert_eq!(of("other"), (Policy::OnFailure, 3));
        assert_eq!(log_rate(&config, "web", 7).unwrap(), 65536);
        assert_eq!(log_rate(&config, "other", 7).unwrap(), 7);
        assert_eq!(
            (storage(&config, "web", 7).unwrap(), storage(&config, "other", 7).unwrap()),
            (0, 1 << 30)
        );
        assert_eq!(storage(&annotated(&[]), "web", 7).unwrap(), 7);
        assert_eq!(restart(&annotated(&[]), "web").unwrap(), Restart::default());
    }

    #[test]
    fn what_cannot_be_understood_is_refused_by_name() {
        for (key, text) in [
            ("berth.dev/restart", ""),
            ("berth.dev/restart", "Always"),
            ("berth.dev/restart", "on-failure:0"),
            ("berth.dev/restart.web", "on-failure:"),
            ("berth.dev/restart.web", "always:3"),
            ("berth.dev/log-rate", ""),
            ("berth.dev/log-rate", "+1"),
            ("berth.dev/log-rate", "1k"),
            ("berth.dev/log-rate.web", "99999999999Gi"),
            ("berth.dev/storage.web", "much"),
        ] {
            let told = check(&annotated(&[(key, text)])).unwrap_err().chain();
            assert!(told.contains(key), "{told}");
        }
        check(&annotated(&[("berth.dev/restarts", "x"), ("berth.dev/log-rate.web", "0")])).unwrap();
    }
}
