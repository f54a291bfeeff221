//! Overlays: made in the host's user namespace as mounts without a place, and unmounted by the kernel with their last
//! holder. Inside another user namespace an overlay would ignore trusted.overlay.* and deleted files would reappear.
//!
//! An overlay can't be id-mapped, its layers can (Linux 5.19). The lower ones are, so that an image's 0 is root inside; in
//! the upper one are the node's ids, as overlayfs itself, which is the host's root, could not make its work there else.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{Failure, MountIds, Overlay, Ready, Step};
use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
        open_tree,
    },
};

use super::{
    channel::{Channel, Message_},
    end,
    failure::{At, Result, fail},
    mounts,
    prepare::map_ids,
    quota,
};
use crate::kernel::{
    self,
    clone::{Parent, Side},
};

/// What of an overlay is wanted, and the mount's destination to tell of.
type Part<'a> = Option<(&'a Path, &'a Path)>;

/// Makes an overlay, with lower layers as `ids` say where they say something.
pub fn mount(
    overlay: &Overlay,
    ids: Option<&MountIds>,
    users: Option<&OwnedFd>,
    part: Part<'_>,
) -> Result<OwnedFd> {
    if overlay.max_bytes == 0 {
        return unbounded(overlay, ids, users, part);
    }
    quota::limit(overlay)?;
    quota::bounded(Path::new(&overlay.upper), || unbounded(overlay, ids, users, part))
}

fn unbounded(
    overlay: &Overlay,
    ids: Option<&MountIds>,
    users: Option<&OwnedFd>,
    part: Part<'_>,
) -> Result<OwnedFd> {
    if ids.is_none() {
        return part_of(build(overlay, &overlay.lowers)?, part);
    }
    let layers: Vec<OwnedFd> =
        overlay.lowers.iter().map(|lower| layer(lower, ids, users)).collect::<Result<_>>()?;
    // From Linux 6.15 on a layer needs no place. Not found out by trying: a try that fails can leave the mark of a volatile
    // upper layer behind.
    if kernel_version() < (6, 15) {
        return staged(overlay, &layers, part);
    }
    let names: Vec<String> =
        layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
    part_of(build(overlay, &names)?, part)
}

fn kernel_version() -> (u32, u32) {
    version(&rustix::system::uname().release().to_string_lossy())
}

/// Of `6.18.44-name`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|one: char| !one.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn part_of(tree: OwnedFd, part: Part<'_>) -> Result<OwnedFd> {
    match part {
        Some((sub_path, destination)) => mounts::below(&tree, sub_path, destination),
        None => Ok(tree),
    }
}

/// Before Linux 6.15 layers have to have a place: each gets its own, in a mount namespace that ends with the helper which
/// makes the overlay there.
fn staged(overlay: &Overlay, layers: &[OwnedFd], part: Part<'_>) -> Result<OwnedFd> {
    let (ours, theirs) = Channel::pair()?;
    let cloned = kernel::clone::clone3(libc::CLONE_NEWNS as u64, None, Parent::Us);
    match cloned.at(Step::Overlay, "mount namespace")? {
        Side::Child => {
            drop(ours);
            match stage(overlay, layers, part) {
                Ok(tree) => theirs.hand_over(Ready::default(), tree.as_fd()),
                Err(failure) => theirs.send_failure(failure),
            }
            kernel::clone::exit_now(0)
        }
        Side::Parent { pidfd, .. } => {
            drop(theirs);
            let told = ours.receive();
            end(&pidfd);
            match told? {
                Message_::Ready(_, Some(tree)) => Ok(tree),
                Message_::Failure(failure) => Err(failure),
                Message_::Ready(_, None) | Message_::Closed => {
                    Err(fail(Step::Overlay, "layers", 0, "the helper died before it had mounted them"))
                }
            }
        }
    }
}

fn stage(overlay: &Overlay, layers: &[OwnedFd], part: Part<'_>) -> Result<OwnedFd> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).at(Step::Overlay, "/")?;
    for (lower, layer) in overlay.lowers.iter().zip(layers) {
        move_mount(layer, "", CWD, lower, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .at(Step::Overlay, lower)?;
    }
    let tree = build(overlay, &overlay.lowers)?;
    match (part, overlay.lowers.first()) {
        (Some((sub_path, destination)), Some(staging)) => {
            mounts::part_of(&tree, sub_path, Path::new(staging), destination)
        }
        _ => Ok(tree),
    }
}

fn layer(lower: &str, ids: Option<&MountIds>, users: Option<&OwnedFd>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, lower, flags).at(Step::Overlay, lower)?;
    map_ids(&tree, ids, users, Path::new(lower)).map(|()| tree)
}

fn build(overlay: &Overlay, lowers: &[String]) -> Result<OwnedFd> {
    let object = overlay.lowers.first().cloned().unwrap_or_default();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(Step::Overlay, "overlay")?;
    let set = |key: &str, value: &str| fsconfig_set_string(context.as_fd(), key, value);
    // `lowerdir+` takes one layer a call, of any length, from 6.5 on. Before it any name of an option is taken, and refused
    // when the file system is made: there it is one string of at most a page.
    if kernel_version() >= (6, 5) {
        for (lower, shown) in lowers.iter().zip(&overlay.lowers) {
            set("lowerdir+", lower).at(Step::Overlay, shown).map_err(|e| explained(&context, e))?;
        }
    } else {
        set("lowerdir", &lowers.join(":")).at(Step::Overlay, &object).map_err(|e| explained(&context, e))?;
    }
    if !overlay.upper.is_empty() {
        set("upperdir", &overlay.upper)
            .at(Step::Overlay, &overlay.upper)
            .map_err(|e| explained(&context, e))?;
        set("workdir", &overlay.work).at(Step::Overlay, &overlay.work).map_err(|e| explained(&context, e))?;
        if overlay.volatile {
            fsconfig_set_flag(context.as_fd(), "volatile").at(Step::Overlay, "volatile")?;
        }
    }
    if !overlay.label.is_empty() {
        set("context", &overlay.label).at(Step::Overlay, &overlay.label)?;
    }
    fsconfig_create(context.as_fd()).at(Step::Overlay, &object).map_err(|e| explained(&context, e))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .at(Step::Overlay, &object)
}

/// Adds what the file system said of the failure: messages are read from its context fd, `fsopen(2)`.
fn explained(context: &OwnedFd, mut failure: Failure) -> Failure {
    let mut message = [0u8; 512];
    while let Ok(length) = rustix::io::read(context, &mut message[..]) {
        let text = String::from_utf8_lossy(&message[..length]);
        if !failure.detail.is_empty() {
            failure.detail.push_str(", ");
        }
        failure.detail.push_str(text.trim_start_matches(['e', 'w', 'i', ' ']).trim());
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_version_is_read_whatever_follows_it() {
        for (release, expected) in
            [("6.18.44-fc", (6, 18)), ("6.1.0-13-amd64", (6, 1)), ("7.0-rc1", (7, 0)), ("", (0, 0))]
        {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
