//! AppArmor on this host: whether it is there, which profiles are loaded, and Berth's own, loaded when it is first
//! needed. `apparmor(7)`, `apparmor_parser(8)`.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    sync::Mutex,
};

use crate::{
    Error, Kind, Result,
    error::Cause,
    oci::{Apparmor, DEFAULT_PROFILE},
};

const OP: &str = "find AppArmor profile";
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const OWN: &str = include_str!("apparmor.profile");

/// One load at a time.
static LOADING: Mutex<()> = Mutex::new(());

/// The name of the profile that a container is to run under; empty: none. Blocks.
///
/// # Errors
/// `Precondition` where the host has no AppArmor and one is asked for; `NotFound` for a profile that nobody has loaded.
pub fn profile(wanted: &Apparmor) -> Result<String> {
    let there = fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'));
    match (wanted, there) {
        (Apparmor::Unconfined, true) => Ok("unconfined".into()),
        (Apparmor::Unconfined | Apparmor::IfThere, false) => Ok(String::new()),
        (Apparmor::Default | Apparmor::Named(_), false) => {
            Err(Error::new(Kind::Precondition, OP, name(wanted))
                .because(Cause("this kernel has no AppArmor, or it is switched off".into()))
                .hint("leave the profile out, or say Unconfined"))
        }
        (Apparmor::Default | Apparmor::IfThere, true) => load_own().map(|()| DEFAULT_PROFILE.into()),
        (Apparmor::Named(name), true) => match is_loaded(name)? {
            true => Ok(name.clone()),
            false => Err(Error::not_found(OP, name).hint("load it on the node: apparmor_parser -r FILE")),
        },
    }
}

fn name(wanted: &Apparmor) -> &str {
    match wanted {
        Apparmor::Named(name) => name,
        Apparmor::Default | Apparmor::IfThere => DEFAULT_PROFILE,
        Apparmor::Unconfined => "unconfined",
    }
}

fn is_loaded(name: &str) -> Result<bool> {
    let listing = fs::read_to_string(LOADED).map_err(|error| {
        Error::io("read", LOADED, error).hint("mount -t securityfs none /sys/kernel/security")
    })?;
    Ok(lists(&listing, name))
}

/// Lines are `name (mode)`; a name may have spaces.
fn lists(listing: &str, name: &str) -> bool {
    listing.lines().filter_map(|line| line.rsplit_once(" (")).any(|(there, _)| there == name)
}

fn load_own() -> Result<()> {
    const OP: &str = "load AppArmor profile";
    // Poisoned or not, it guards nothing but the turn.
    let _turn = LOADING.lock();
    if is_loaded(DEFAULT_PROFILE)? {
        return Ok(());
    }
    let failed = |error| {
        Error::io(OP, DEFAULT_PROFILE, error)
            .hint("apparmor_parser has to be installed: apt install apparmor")
    };
    let mut parser = Command::new("apparmor_parser")
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = parser.stdin.take() {
        input.write_all(OWN.as_bytes()).map_err(failed)?;
    }
    let done = parser.wait_with_output().map_err(failed)?;
    match done.status.success() {
        true => Ok(()),
        false => Err(Error::new(Kind::Internal, OP, DEFAULT_PROFILE)
            .because(Cause(String::from_utf8_lossy(&done.stderr).trim().replace('\n', ", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_loaded_when_its_whole_name_is_listed() {
        let listing = "/usr/bin/man (enforce)\nberth-default (enforce)\nmy own (complain)\n";
        for (name, there) in [("berth-default", true), ("my own", true), ("berth", false), ("my", false)] {
            assert_eq!(lists(listing, name), there, "{name}");
        }
    }

    #[test]
    fn a_host_without_it_refuses_what_is_asked_and_lets_the_rest_be() {
        if fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y')) {
            return eprintln!("SKIPPED: this host has AppArmor, and the rule is for those without");
        }
        assert_eq!(profile(&Apparmor::IfThere).unwrap(), "");
        assert_eq!(profile(&Apparmor::Unconfined).unwrap(), "");
        for wanted in [Apparmor::Default, Apparmor::Named("x".into())] {
            assert_eq!(profile(&wanted).unwrap_err().kind, Kind::Precondition);
        }
    }
}
