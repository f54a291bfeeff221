//! A user's own systemd: where its bus is, and who we are to it. systemd(1) --user, pam_systemd(8).

use std::{env, fs};

/// The address of the user's bus: what the session says, else where each user has one.
pub fn bus(user: u32) -> String {
    address(&|name| env::var(name).ok().filter(|value| !value.is_empty()), user)
}

fn address(var: &dyn Fn(&str) -> Option<String>, user: u32) -> String {
    if let Some(address) = var("DBUS_SESSION_BUS_ADDRESS") {
        return address;
    }
    let directory = var("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{user}"));
    format!("unix:path={directory}/bus")
}

/// Our user's id as a process outside of our user namespace has it: podman calls us in one of its own, as root there.
pub fn outside() -> u32 {
    let own = rustix::process::geteuid().as_raw();
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    mapped(&map, own).unwrap_or(own)
}

/// `proc_pid_uid_map(5)`: first inside, first outside, how many.
fn mapped(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().ok());
        let (inside, outside, length) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let offset = id.checked_sub(inside).filter(|offset| *offset < length)?;
        outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_the_sessions_or_in_the_users_directory() {
        let of = |vars: &[(&str, &str)]| {
            let var = |name: &str| Some(vars.iter().find(|(key, _)| *key == name)?.1.to_owned());
            address(&var, 1000)
        };
        assert_eq!(of(&[]), "unix:path=/run/user/1000/bus");
        assert_eq!(of(&[("XDG_RUNTIME_DIR", "/x")]), "unix:path=/x/bus");
        let both = [("XDG_RUNTIME_DIR", "/x"), ("DBUS_SESSION_BUS_ADDRESS", "unix:abstract=y")];
        assert_eq!(of(&both), "unix:abstract=y");
    }

    #[test]
    fn who_is_root_inside_is_the_user_outside() {
        let podmans = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(mapped(podmans, 0), Some(1000));
        assert_eq!(mapped(podmans, 5), Some(100_004));
        assert_eq!(mapped(podmans, 70_000), None);
        assert_eq!(mapped("         0          0 4294967295\n", 1000), Some(1000));
        assert_eq!(mapped("garbage\n", 0), None);
    }
}
