//! The bridge's configuration, checked before any of it becomes a command, a path or a message. Pure.

use super::subnet::Subnet;
use crate::{Error, Result, config};

/// The interface's name in every pod.
pub const POD_LINK: &str = "eth0";

/// Checks all keys.
///
/// # Errors
/// `Invalid` names the key.
pub fn check(bridge: &config::Bridge) -> Result<Subnet> {
    let config::Bridge { name, subnet, mtu, table } = bridge;
    if !link_name(name) {
        let cause = "an interface's name is 1 to 15 letters, digits, dots, dashes and underscores";
        return Err(Error::invalid("read network.bridge.name", format!("{name:?}"), cause));
    }
    if name.starts_with("bth") {
        let cause = "bth is what the links of pods start with";
        return Err(Error::invalid("read network.bridge.name", format!("{name:?}"), cause));
    }
    if !table_name(table) {
        let cause = "a table's name is a letter and up to 31 letters, digits and underscores";
        return Err(Error::invalid("read network.bridge.table", format!("{table:?}"), cause));
    }
    if *mtu != 0 && !(68..=65_535).contains(mtu) {
        let cause = "not one of 68 to 65535, or 0 for the kernel's choice";
        return Err(Error::invalid("read network.bridge.mtu", mtu.to_string(), cause));
    }
    Subnet::parse(subnet)
}

fn link_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=15).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['.', '-'])
}

fn table_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=32).contains(&name.len())
        && name.bytes().all(allowed)
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_settings_are_refused_with_their_key() {
        let good = config::Bridge::default();
        assert!(check(&good).is_ok());
        assert!(check(&config::Bridge { mtu: 0, ..good.clone() }).is_ok());
        for name in ["", ".", "..", "-x", "a/b", "a b", "sixteen-letters-", "x\"; flush", "x\n", "bth0", "é"]
        {
            let error = check(&config::Bridge { name: name.into(), ..good.clone() }).unwrap_err();
            assert!(error.chain().contains("network.bridge.name"), "{}", error.chain());
        }
        for table in ["", "1x", "a b", "x;flush ruleset", "x\n", "{}", &"x".repeat(33)] {
            let error = check(&config::Bridge { table: table.into(), ..good.clone() }).unwrap_err();
            assert!(error.chain().contains("network.bridge.table"), "{}", error.chain());
        }
        for mtu in [1, 67, 65_536, u32::MAX] {
            let error = check(&config::Bridge { mtu, ..good.clone() }).unwrap_err();
            assert!(error.chain().contains("network.bridge.mtu"), "{}", error.chain());
        }
    }
}
