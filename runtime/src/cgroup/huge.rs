//! Limits of huge pages: per size a file for what is used, and one for what is reserved, so that a program too many is told
//! by mmap(2) and not by SIGBUS.

use std::path::Path;

use super::{Group, HugePageLimit, file, values};
use crate::{Error, Kind, Result, error::Cause};

const OP: &str = "limit huge pages";

pub fn limits(group: &Group, limits: &[HugePageLimit]) -> Result<()> {
    limits.iter().try_for_each(|limit| one(group, limit))
}

fn one(group: &Group, HugePageLimit { size, bytes }: &HugePageLimit) -> Result<()> {
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Error::invalid(OP, format!("{size:?}"), "a size is written as 2MB"));
    }
    let v1 = format!("hugetlb.{size}.limit_in_bytes");
    if let Some(dir) = group.v1_with(&v1) {
        let text = bytes.map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string());
        return both(dir, &v1, &format!("hugetlb.{size}.rsvd.limit_in_bytes"), &text);
    }
    let v2 = format!("hugetlb.{size}.max");
    if let Some(dir) = group.v2.as_deref().filter(|dir| dir.join(&v2).exists()) {
        let text = bytes.map_or_else(|| values::MAX.to_owned(), |bytes| bytes.to_string());
        return both(dir, &v2, &format!("hugetlb.{size}.rsvd.max"), &text);
    }
    match bytes {
        // The kubelet says nought of each size that a pod doesn't ask for, also where nobody can count them.
        None | Some(0) => Ok(()),
        Some(_) => Err(Error::new(Kind::Precondition, OP, size.as_str())
            .because(Cause("no hugetlb controller here has pages of that size".into()))
            .hint("see /sys/kernel/mm/hugepages for the sizes, and cgroup.controllers or /proc/cgroups for hugetlb")),
    }
}

fn both(dir: &Path, used: &str, reserved: &str, text: &str) -> Result<()> {
    file::write(&dir.join(used), text)?;
    // Linux 5.7 and later have it.
    match dir.join(reserved) {
        path if path.exists() => file::write(&path, text),
        _ => Ok(()),
    }
}
