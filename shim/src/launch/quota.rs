//! A bound of what a container's own layer takes: a project of its file system's quotas.

use std::{os::fd::AsFd, path::Path};

use berth_launch::v1::{Overlay, Step};
use rustix::{
    fs::{CWD, Mode, OFlags, fstat, openat},
    thread::{CapabilitySet, capabilities, set_capabilities},
};

use super::failure::{At, Result, fail};
use crate::kernel;

/// Bounds the upper layer and the work directory, from which files are renamed to it, as one project. Its number is that of
/// the upper directory's inode: nobody else's for as long as that is there, and nothing to keep account of.
pub(super) fn limit(overlay: &Overlay) -> Result<()> {
    let refuse = |errno: Option<i32>, about: &str| {
        let words = match errno {
            Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::ESRCH | libc::ENOSYS) => {
                "a limit of the container's own layer needs project quotas, and its file system has none: use ext4 made \
                 with -O project,quota or XFS, mounted with prjquota"
            }
            _ => "",
        };
        fail(Step::Overlay, about, errno.unwrap_or(0), words)
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path: &str| openat(CWD, path, flags, Mode::empty()).at(Step::Overlay, path);
    let (upper, work) = (open(&overlay.upper)?, open(&overlay.work)?);
    let inode = fstat(&upper).at(Step::Overlay, &overlay.upper)?.st_ino;
    let project = u32::try_from(inode).map_err(|_| {
        fail(
            Step::Overlay,
            &overlay.upper,
            libc::EOVERFLOW,
            "its inode's number is beyond what numbers projects",
        )
    })?;
    for (directory, path) in [(&upper, &overlay.upper), (&work, &overlay.work)] {
        kernel::quota::set_project(directory.as_fd(), project)
            .map_err(|error| refuse(error.raw_os_error(), path))?;
    }
    kernel::quota::set_limit(upper.as_fd(), project, overlay.max_bytes)
        .map_err(|error| refuse(error.raw_os_error(), &overlay.upper))
}

/// Does `mount` as somebody whom quotas are for: an overlay writes as who mounted it, and who has CAP_SYS_RESOURCE may exceed
/// ext4's limits.
pub(super) fn bounded<T>(object: &Path, mount: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = capabilities(None).at(Step::Capabilities, object)?;
    let mut without = before;
    without.effective.remove(CapabilitySet::SYS_RESOURCE);
    set_capabilities(None, without).at(Step::Capabilities, object)?;
    let mounted = mount();
    set_capabilities(None, before).at(Step::Capabilities, object)?;
    mounted
}
