//! SELinux: files of a volume get the label that the container's processes may use. `selinux(8)`, `xattr(7)`.

use std::{fs, path::Path};

use berth_cri::v1 as cri;
use rustix::fs::{XattrFlags, lsetxattr};

use crate::{Error, Result};

const OP: &str = "relabel volume";
const ATTRIBUTE: &str = "security.selinux";
/// What is the node's own: a label on it would lock the node out of itself.
const NEVER: [&str; 9] = ["/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr", "/var"];

/// Relabels each volume that asks for it. Blocks, as long as the volumes are large.
///
/// # Errors
/// `Invalid` for a path that is the node's own; the kernel's refusal of a label.
pub fn relabel(mounts: &[cri::Mount], label: &str) -> Result<()> {
    for mount in mounts.iter().filter(|mount| mount.selinux_relabel && mount.image.is_none()) {
        let path = Path::new(&mount.host_path);
        if NEVER.iter().any(|own| path.components().eq(Path::new(own).components())) {
            return Err(Error::invalid(OP, &mount.host_path, "it is the node's own")
                .hint("mount a directory below it, or leave the label alone"));
        }
        tree(path, label.as_bytes())?;
    }
    Ok(())
}

fn tree(path: &Path, label: &[u8]) -> Result<()> {
    let failed = |error: std::io::Error| Error::io(OP, path.display().to_string(), error);
    match lsetxattr(path, ATTRIBUTE, label, XattrFlags::empty()) {
        // Gone meanwhile, or on a file system that keeps no labels and has one for all.
        Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTSUP) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    // A link is labelled, never followed.
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        for entry in fs::read_dir(path).map_err(failed)? {
            tree(&entry.map_err(failed)?.path(), label)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_directories_are_never_relabelled() {
        let mount = |path: &str, selinux_relabel| {
            [cri::Mount { host_path: path.into(), selinux_relabel, ..Default::default() }]
        };
        for path in ["/", "/etc/", "/usr", "//var"] {
            assert!(relabel(&mount(path, true), "x").is_err(), "{path}");
            assert!(relabel(&mount(path, false), "x").is_ok(), "{path}");
        }
    }
}
