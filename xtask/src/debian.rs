//! Debian packages: tells which are missing, says so, installs them.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// What running pods needs: a shell's image, the masquerade table, `ip` for what tests look at.
pub const RUNTIME: &[&str] = &["busybox-static", "nftables", "iproute2"];

/// What the tests through the public doors need beside that: a registry, a tool that fills it, and who uses `berth oci`.
pub const REGISTRY: &[&str] = &["docker-registry", "skopeo", "podman"];

/// What is measured beside Berth, as far as Debian has it, what builds the rest, and what makes file systems for that.
pub const PEERS: &[&str] = &["podman", "runc", "crun", "e2fsprogs", "libseccomp-dev", "pkgconf"];

/// Installs those of the packages that are missing, after saying so.
///
/// # Errors
/// Says what to install where we can't: no root, or no apt-get.
pub fn install(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !process::succeeds(Command::new("apt-get").arg("--version")) {
        bail!("missing programs: install what Debian has in the packages {list}; there is no apt-get here");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("missing Debian packages: {list}; as root: apt-get install {list}");
    }
    println!("xtask: installing the Debian packages {list}");
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-o", "DPkg::Lock::Timeout=600"]).args(words);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        process::run(&mut command)
    };
    apt(&["update"])?;
    let mut words = vec!["install", "-y", "--no-install-recommends"];
    words.extend(&missing);
    apt(&words)
}

/// Asks dpkg; where there is none, looks for the program that the package is wanted for.
fn installed(package: &str) -> bool {
    match Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).contains("ok installed"),
        Err(_) => match package {
            "busybox-static" => process::succeeds(Command::new("busybox").arg("true")),
            "nftables" => process::succeeds(Command::new("nft").arg("--version")),
            "iproute2" => process::succeeds(Command::new("ip").arg("-V")),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_no_one_has_is_missing() {
        assert!(!installed("berth-no-such-package"));
    }
}
