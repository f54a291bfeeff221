//! `deb`: what `install` puts below a prefix, as a Debian package (deb-control(5), Debian Policy 6 and 9.3).
//!
//! ```text
//!   DEBIAN/{control,conffiles,postinst,prerm,postrm}
//!   usr/bin, usr/lib/systemd/system, etc/berth     as `install --prefix /usr`
//!   usr/share/doc/berth/copyright
//! ```
//! An upgrade restarts the daemon alone: containers run on. A removal stops it and leaves containers, images and
//! records; a purge removes the configuration, and never what people's containers have written.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{cargo, install, process};

const PREFIX: &str = "/usr";

pub fn run() -> Result<()> {
    let package = pack(&install::programs()?, &cargo::room()?)?;
    println!("{}", package.display());
    Ok(())
}

/// Makes the package of these programs in `directory`.
fn pack(programs: &cargo::Programs, directory: &Path) -> Result<PathBuf> {
    let architecture = process::output(Command::new("dpkg").arg("--print-architecture"))
        .context("a Debian package is made on Debian, where dpkg is")?;
    let architecture = architecture.trim();
    let staging = tempfile::tempdir_in(directory).context("make a directory for the package")?;
    let root = staging.path();
    // Readable by all, as dpkg wants directories of a package to be.
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).context("open the package's directory")?;
    install::put(programs, Path::new(PREFIX), root)?;
    let licence = cargo::root().join("LICENSE");
    let licence = fs::read_to_string(&licence).with_context(|| format!("read {}", licence.display()))?;
    install::write(&root.join("usr/share/doc/berth/copyright"), &licence)?;
    let version = env!("CARGO_PKG_VERSION");
    let kibibytes = bytes_below(root)?.div_ceil(1024);
    install::write(&root.join("DEBIAN/control"), &control(version, architecture, kibibytes))?;
    install::write(&root.join("DEBIAN/conffiles"), &format!("/{}\n", install::CONFIGURATION))?;
    for (name, script) in [("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)] {
        let path = root.join("DEBIAN").join(name);
        install::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", path.display()))?;
    }
    let package = directory.join(format!("berth_{version}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build"]).arg(root).arg(&package);
    process::output(&mut build)?;
    Ok(package)
}

/// The programs are static: nothing is depended on. `nft` is what the built-in bridge masquerades by.
fn control(version: &str, architecture: &str, kibibytes: u64) -> String {
    format!(
        "\
Package: berth
Version: {version}
Architecture: {architecture}
Maintainer: The Berth developers <berth@localhost>
Installed-Size: {kibibytes}
Section: admin
Priority: optional
Recommends: nftables
Suggests: apparmor, containernetworking-plugins
Description: container runtime for Kubernetes nodes
 A daemon that runs pods and containers over CRI v1, a supervisor of a
 few dozen KiB per container, a tool for people without Kubernetes, and
 an OCI runtime that can stand in for runc.
"
    )
}

/// The first installation enables and starts the daemon; an upgrade restarts it if it runs.
const POSTINST: &str = r#"#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ -z "$2" ]; then
        systemctl enable berthd.service
        systemctl start berthd.service
    else
        systemctl try-restart berthd.service
    fi
fi
"#;

/// Containers outlive the daemon (KillMode=process): who removes a runtime under them is told.
const PRERM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ]; then
    if [ -S /run/berth/berth.sock ]; then
        running=$(berth ps --all-clients -q 2>/dev/null | wc -l) || running=0
        [ "$running" = 0 ] || echo "berth: $running containers run on without a daemon"
    fi
    if [ -d /run/systemd/system ]; then
        systemctl disable --now berthd.service
    fi
fi
"#;

const POSTRM: &str = r#"#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
if [ "$1" = purge ] && [ -d /var/lib/berth ]; then
    echo "berth: /var/lib/berth with images and containers' files is left; remove it by hand"
fi
"#;

fn bytes_below(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", directory.display()))?;
        let metadata = entry.metadata().with_context(|| format!("look at {}", entry.path().display()))?;
        bytes += if metadata.is_dir() { bytes_below(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_holds_what_install_puts() {
        if !process::succeeds(Command::new("dpkg-deb").arg("--version")) {
            println!("skipped: deb: there is no dpkg-deb here");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let program = Path::new("/bin/true");
        let programs =
            cargo::Programs::of(&["berthd", "berth", "berth-oci", "berth-shim"].map(|name| (name, program)));
        let package = pack(&programs, directory.path()).unwrap();
        let told = |flag: &str| process::output(Command::new("dpkg-deb").arg(flag).arg(&package)).unwrap();
        let contents = told("--contents");
        for line in [
            "./usr/bin/berthd",
            "./usr/bin/berth-shim",
            "./usr/bin/berth-oci",
            "./usr/lib/systemd/system/berthd.service",
            "./etc/berth/berthd.toml",
            "./usr/share/doc/berth/copyright",
        ] {
            let found = contents.lines().find(|found| found.ends_with(line));
            assert!(found.is_some_and(|found| found.contains(" root/root ")), "{line}\n{contents}");
        }
        let info = told("--info");
        for line in ["Package: berth", "conffiles", "postinst", "prerm", "postrm"] {
            assert!(info.contains(line), "{line}\n{info}");
        }
        // Nothing but the package itself is left beside it.
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn scripts_are_scripts() {
        for script in [POSTINST, PRERM, POSTRM] {
            let checked = Command::new("sh").args(["-n", "-c", script]).status().unwrap();
            assert!(checked.success(), "{script}");
        }
    }
}
