//! Whether a volume's host path can propagate mounts as it is asked to: a promise that the kernel would break in
//! silence. `mount_namespaces(7)`, `proc_pid_mountinfo(5)`.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, path::Path};

use berth_cri::v1 as cri;

use crate::{Error, Result};

/// Checks all mounts of a container against this process's mounts. Blocks.
///
/// # Errors
/// `Invalid` names the path, what is asked of it and how to make it so.
pub fn check(mounts: &[cri::Mount]) -> Result<()> {
    let asks = |mount: &&cri::Mount| mount.propagation() != cri::MountPropagation::PropagationPrivate;
    if !mounts.iter().any(|mount| asks(&mount)) {
        return Ok(());
    }
    let listing =
        fs::read("/proc/self/mountinfo").map_err(|error| Error::io("read", "/proc/self/mountinfo", error))?;
    for mount in mounts.iter().filter(asks) {
        // A path that isn't there is made on the mount that its nearest ancestor is on.
        let there = Path::new(&mount.host_path).ancestors().find_map(|path| fs::canonicalize(path).ok());
        allowed(mount, there.as_deref().unwrap_or(Path::new("/")), &listing)?;
    }
    Ok(())
}

fn allowed(mount: &cri::Mount, path: &Path, listing: &[u8]) -> Result<()> {
    let (shared, slave) = propagation(path, listing);
    let (fits, name) = match mount.propagation() {
        cri::MountPropagation::PropagationPrivate => (true, ""),
        cri::MountPropagation::PropagationHostToContainer => (shared || slave, "shared or slave"),
        cri::MountPropagation::PropagationBidirectional => (shared, "shared"),
    };
    match fits {
        true => Ok(()),
        false => Err(Error::invalid(
            "mount volume",
            &mount.host_path,
            format!(
                "{} is asked for and the mount it is on is not {name}",
                mount.propagation().as_str_name()
            ),
        )
        .hint(format!("make it so on the node: mount --make-shared {}", mount_point(path, listing)))),
    }
}

/// Whether the mount that a path is on is shared, and whether it is a slave.
fn propagation(path: &Path, listing: &[u8]) -> (bool, bool) {
    let fields = holder(path, listing).map(|(_, optional)| optional).unwrap_or_default();
    let has = |name: &[u8]| fields.iter().any(|field| field.starts_with(name));
    (has(b"shared:"), has(b"master:"))
}

fn mount_point(path: &Path, listing: &[u8]) -> String {
    holder(path, listing)
        .map_or_else(|| "/".into(), |(point, _)| String::from_utf8_lossy(&point).into_owned())
}

/// The mount point a path is below, and the optional fields of its line. Of several the longest, and of equals the
/// last: it lies on top.
fn holder<'a>(path: &Path, listing: &'a [u8]) -> Option<(Vec<u8>, Vec<&'a [u8]>)> {
    listing
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let point = unescaped(fields.nth(4)?);
            let optional = fields.skip(1).take_while(|field| *field != b"-").collect();
            path.starts_with(Path::new(OsStr::from_bytes(&point))).then_some((point, optional))
        })
        .max_by_key(|(point, _)| point.len())
}

/// Spaces and their like are written as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, octal.and_then(|digits| u8::from_str_radix(digits, 8).ok())) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &[u8] = b"21 1 8:1 / / rw - ext4 /dev/sda rw\n\
        22 21 8:2 / /mnt rw shared:5 - ext4 /dev/sdb rw\n\
        23 22 8:3 / /mnt/a\\040b rw master:5 - ext4 /dev/sdc rw\n\
        24 21 8:4 / /over rw - tmpfs t rw\n\
        25 21 8:5 / /over rw shared:9 master:2 - tmpfs t rw\n";

    fn asked(propagation: cri::MountPropagation, path: &str) -> Result<()> {
        let mount =
            cri::Mount { host_path: path.into(), propagation: propagation.into(), ..Default::default() };
        allowed(&mount, Path::new(path), LISTING)
    }

    #[test]
    fn only_what_the_mount_below_can_do_may_be_asked() {
        use cri::MountPropagation::{PropagationBidirectional as Both, PropagationHostToContainer as In};
        for (propagation, path, expected) in [
            (Both, "/mnt/x", true),
            (In, "/mnt/x", true),
            (Both, "/mnt/a b/c", false),
            (In, "/mnt/a b/c", true),
            (Both, "/var", false),
            (In, "/var", false),
            (Both, "/over/y", true),
            (Both, "/mntx", false),
        ] {
            assert_eq!(asked(propagation, path).is_ok(), expected, "{propagation:?} {path}");
        }
        let text = asked(Both, "/mnt/a b/c").unwrap_err().chain();
        assert!(text.contains("mount --make-shared /mnt/a b"), "{text}");
    }
}
