//! Network devices that are moved into a container, `netDevices` of `config-linux.md`.

use berth_launch::v1 as launch;
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::refused;
use crate::Result;

const WHERE: &str = "linux.netDevices";

/// The devices, by their names on the host.
pub fn all(linux: &Linux) -> Result<Vec<launch::NetDevice>> {
    let mut devices: Vec<launch::NetDevice> = Vec::new();
    for (host_name, device) in linux.net_devices().iter().flatten() {
        let name = device.name().clone().filter(|name| !name.is_empty()).unwrap_or_else(|| host_name.clone());
        for one in [host_name, &name] {
            check(one)?;
        }
        devices.push(launch::NetDevice { host_name: host_name.clone(), name });
    }
    devices.sort_by(|one, other| one.host_name.cmp(&other.host_name));
    for (n, device) in devices.iter().enumerate() {
        if devices[..n].iter().any(|other| other.name == device.name) {
            return Err(refused(WHERE, &format!("two devices would be {} in the container", device.name)));
        }
    }
    let mut namespaces = linux.namespaces().iter().flatten();
    match devices.is_empty() || namespaces.any(|one| one.typ() == LinuxNamespaceType::Network) {
        true => Ok(devices),
        false => Err(refused(WHERE, "there is no network namespace to move them to")),
    }
}

/// The kernel's rule for names, `dev_valid_name`; `%` would have it choose a number.
fn check(name: &str) -> Result<()> {
    let fits = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '%' | '\0');
    match (1..16).contains(&name.len()) && !matches!(name, "." | "..") && name.chars().all(fits) {
        true => Ok(()),
        false => Err(refused(WHERE, &format!("{name:?} is no name of a network device"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(devices: Value, namespace: &str) -> Result<Vec<launch::NetDevice>> {
        let linux = json!({"namespaces": [{"type": namespace}], "netDevices": devices});
        all(&serde_json::from_value(linux).unwrap())
    }

    #[test]
    fn a_device_keeps_its_name_or_gets_another() {
        let devices = of(json!({"eth2": {}, "eth1": {"name": "net0"}}), "network").unwrap();
        let names: Vec<_> = devices.iter().map(|one| (one.host_name.as_str(), one.name.as_str())).collect();
        assert_eq!(names, [("eth1", "net0"), ("eth2", "eth2")]);
        assert!(of(json!({}), "mount").unwrap().is_empty());
    }

    #[test]
    fn names_that_are_none_twice_or_have_no_place_to_go_are_refused() {
        for bad in ["", "..", "a/b", "a b", "eth%d", "sixteen-letters."] {
            assert!(of(json!({"eth0": {"name": bad}}), "network").is_err() || bad.is_empty(), "{bad}");
            assert!(of(json!({bad: {}}), "network").is_err(), "{bad}");
        }
        assert!(of(json!({"eth0": {"name": "eth1"}, "eth1": {}}), "network").is_err());
        assert!(of(json!({"eth0": {}}), "mount").is_err());
    }
}
