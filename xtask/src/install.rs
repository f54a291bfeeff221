//! `install`: programs, a systemd unit and a configuration below a prefix; DESTDIR as make has it.
//!
//! ```text
//!   PREFIX/bin/{berthd,berth,berth-oci,berth-shim}
//!   PREFIX/lib/systemd/system/berthd.service
//!   /etc/berth/berthd.toml                     kept if it is there
//! ```

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo;

pub const CONFIGURATION: &str = "etc/berth/berthd.toml";

#[derive(Debug, Args)]
pub struct Flags {
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Put everything below this directory, for a package
    #[arg(long, value_name = "DIR", default_value = "/")]
    destdir: PathBuf,
}

pub fn run(flags: &Flags) -> Result<()> {
    if !flags.prefix.is_absolute() {
        bail!("the prefix {} is no absolute path", flags.prefix.display());
    }
    let programs = programs()?;
    for put in put(&programs, &flags.prefix, &flags.destdir)? {
        println!("{put}");
    }
    Ok(())
}

/// Builds what is installed, for release.
pub fn programs() -> Result<cargo::Programs> {
    let mut programs = cargo::build(&["--release", "--workspace", "--bins"])?;
    programs.extend(cargo::shim()?);
    Ok(programs)
}

/// Puts all of it below `destdir` and tells what went where.
pub fn put(programs: &cargo::Programs, prefix: &Path, destdir: &Path) -> Result<Vec<String>> {
    let place_of = |path: PathBuf| destdir.join(path.strip_prefix("/").unwrap_or(&path));
    let mut all = Vec::new();
    for name in ["berthd", "berth", "berth-oci", "berth-shim"] {
        let to = place_of(prefix.join("bin").join(name));
        place(programs.path(name)?, &to)?;
        all.push(to.display().to_string());
    }
    let to = place_of(prefix.join("lib/systemd/system/berthd.service"));
    write(&to, &unit(prefix))?;
    all.push(to.display().to_string());

    let to = destdir.join(CONFIGURATION);
    if to.exists() {
        all.push(format!("{} (kept as it was)", to.display()));
    } else {
        let default = cargo::root().join("runtime/src/config/default.toml");
        let default = fs::read_to_string(&default).with_context(|| format!("read {}", default.display()))?;
        write(&to, &commented(&default))?;
        all.push(to.display().to_string());
    }
    Ok(all)
}

/// Puts a copy of a program in a place, whole for whoever starts it meanwhile.
pub fn place(from: &Path, to: &Path) -> Result<()> {
    let text = || format!("copy {} to {}", from.display(), to.display());
    make_parent(to)?;
    let new = beside(to);
    // What an interrupted run left may be a program that runs.
    remove(&new)?;
    fs::copy(from, &new).with_context(text)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).with_context(text)?;
    fs::rename(&new, to).with_context(text)
}

pub fn write(to: &Path, text: &str) -> Result<()> {
    make_parent(to)?;
    let new = beside(to);
    fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, to).with_context(|| format!("rename {} to {}", new.display(), to.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A name in the same directory, from where a rename is one step.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// Keys at their default as comments: a later version's default then counts.
fn commented(default: &str) -> String {
    let line = |line: &str| match line.as_bytes().first() {
        None | Some(b'#' | b'[') => format!("{line}\n"),
        Some(_) => format!("#{line}\n"),
    };
    default.lines().map(line).collect()
}

fn unit(prefix: &Path) -> String {
    let prefix = prefix.display();
    format!(
        "\
[Unit]
Description=Berth, a container runtime
After=network.target local-fs.target

[Service]
Type=notify
# Says each half of it that it answers; one that does not is ended, and started again.
WatchdogSec=60
ExecStart={prefix}/bin/berthd
ExecReload=/bin/kill -HUP $MAINPID
# Shims live in this unit and outlive the daemon: it alone is stopped.
KillMode=process
Delegate=yes
Restart=always
RestartSec=1
OOMScoreAdjust=-999
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_leaves_containers_alone_and_starts_what_was_installed() {
        let unit = unit(Path::new("/opt/berth"));
        for line in [
            "ExecStart=/opt/berth/bin/berthd",
            "KillMode=process",
            "Delegate=yes",
            "Type=notify",
            "WatchdogSec=60",
        ] {
            assert!(unit.lines().any(|found| found == line), "{line}\n{unit}");
        }
    }

    #[test]
    fn defaults_are_comments() {
        let text = "# What.\n\n[daemon]\nroot = \"/var/lib/berth\"\n";
        assert_eq!(commented(text), "# What.\n\n[daemon]\n#root = \"/var/lib/berth\"\n");
    }

    #[test]
    fn a_program_is_placed_over_one_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("a/b/program");
        make_parent(&to).unwrap();
        // As an earlier version put berth-oci there.
        std::os::unix::fs::symlink("berth", &to).unwrap();
        place(Path::new("/bin/false"), &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), fs::read("/bin/false").unwrap());
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 1);
    }
}
