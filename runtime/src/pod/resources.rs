//! A container's resources: as CRI says them, as the meter takes them, and how the old and the new ones are merged. Pure.

use berth_cri::v1 as cri;

use crate::{cgroup, oci};

/// The limits that a configuration and its options come to.
pub fn limits(config: &cri::ContainerConfig, options: &oci::Options) -> cgroup::Limits {
    let linux = config.linux.as_ref();
    let none = cri::LinuxContainerResources::default();
    let asked = linux.and_then(|linux| linux.resources.as_ref()).unwrap_or(&none);
    cgroup::Limits { pids: options.pids, ..of(asked) }
}

/// What CRI leaves at zero or empty it does not say.
pub fn of(asked: &cri::LinuxContainerResources) -> cgroup::Limits {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let some = |value: i64| (value != 0).then_some(value);
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value != 0);
    let mut unified: Vec<_> =
        asked.unified.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    unified.sort();
    cgroup::Limits {
        cpu_shares: positive(asked.cpu_shares),
        cpu_quota_us: some(asked.cpu_quota),
        cpu_period_us: positive(asked.cpu_period),
        cpuset_cpus: text(&asked.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems),
        memory_bytes: some(asked.memory_limit_in_bytes),
        memory_swap_bytes: some(asked.memory_swap_limit_in_bytes),
        pids: None,
        huge_pages: asked
            .hugepage_limits
            .iter()
            .map(|limit| cgroup::HugePageLimit { size: limit.page_size.clone(), bytes: Some(limit.limit) })
            .collect(),
        unified,
    }
}

/// The resources after an update: what it says, and what it doesn't as before.
pub fn merged(
    before: &cri::LinuxContainerResources,
    update: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &str, new: &str| if new.is_empty() { old } else { new }.to_owned();
    let mut unified = before.unified.clone();
    unified.extend(update.unified.clone());
    let hugepage_limits = match update.hugepage_limits.is_empty() {
        true => before.hugepage_limits.clone(),
        false => update.hugepage_limits.clone(),
    };
    cri::LinuxContainerResources {
        cpu_period: number(before.cpu_period, update.cpu_period),
        cpu_quota: number(before.cpu_quota, update.cpu_quota),
        cpu_shares: number(before.cpu_shares, update.cpu_shares),
        memory_limit_in_bytes: number(before.memory_limit_in_bytes, update.memory_limit_in_bytes),
        // Of a running process it stays: lowering it again may be denied.
        oom_score_adj: before.oom_score_adj,
        cpuset_cpus: text(&before.cpuset_cpus, &update.cpuset_cpus),
        cpuset_mems: text(&before.cpuset_mems, &update.cpuset_mems),
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes: number(
            before.memory_swap_limit_in_bytes,
            update.memory_swap_limit_in_bytes,
        ),
    }
}

/// What takes an update back: the old value of each limit that it says, or the kernel's where there was none.
pub fn back(before: &cgroup::Limits, update: &cgroup::Limits) -> cgroup::Limits {
    fn old<T: Clone>(before: &Option<T>, update: &Option<T>, default: Option<T>) -> Option<T> {
        update.as_ref().and_then(|_| before.clone().or(default))
    }
    cgroup::Limits {
        cpu_shares: old(&before.cpu_shares, &update.cpu_shares, Some(1024)),
        cpu_quota_us: old(&before.cpu_quota_us, &update.cpu_quota_us, Some(-1)),
        cpu_period_us: old(&before.cpu_period_us, &update.cpu_period_us, Some(100_000)),
        cpuset_cpus: old(&before.cpuset_cpus, &update.cpuset_cpus, None),
        cpuset_mems: old(&before.cpuset_mems, &update.cpuset_mems, None),
        memory_bytes: old(&before.memory_bytes, &update.memory_bytes, Some(-1)),
        memory_swap_bytes: old(&before.memory_swap_bytes, &update.memory_swap_bytes, Some(-1)),
        pids: None,
        huge_pages: update.huge_pages.iter().map(|limit| huge_before(before, limit)).collect(),
        unified: before
            .unified
            .iter()
            .filter(|(name, _)| update.unified.iter().any(|(other, _)| other == name))
            .cloned()
            .collect(),
    }
}

fn huge_before(before: &cgroup::Limits, changed: &cgroup::HugePageLimit) -> cgroup::HugePageLimit {
    let unlimited = cgroup::HugePageLimit { size: changed.size.clone(), bytes: None };
    before.huge_pages.iter().find(|limit| limit.size == changed.size).cloned().unwrap_or(unlimited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_what_it_says_and_nothing_else() {
        let before = cri::LinuxContainerResources {
            cpu_shares: 100,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: 5,
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        let update = cri::LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            cpuset_cpus: "0".into(),
            oom_score_adj: 7,
            unified: [("memory.low".to_owned(), "2".to_owned())].into(),
            ..Default::default()
        };
        let after = merged(&before, &update);
        assert_eq!((after.cpu_shares, after.memory_limit_in_bytes, after.oom_score_adj), (100, 32 << 20, 5));
        assert_eq!((after.cpuset_cpus.as_str(), after.unified.len()), ("0", 2));
    }

    #[test]
    fn an_update_is_taken_back_to_the_old_value_or_the_kernels() {
        let before = cgroup::Limits { memory_bytes: Some(9), ..Default::default() };
        let update = cgroup::Limits { memory_bytes: Some(5), cpu_quota_us: Some(1000), ..Default::default() };
        let back = back(&before, &update);
        assert_eq!((back.memory_bytes, back.cpu_quota_us, back.cpu_shares), (Some(9), Some(-1), None));
        let pages = |size: &str, bytes| cgroup::HugePageLimit { size: size.into(), bytes };
        let before = cgroup::Limits { huge_pages: vec![pages("2MB", Some(9))], ..Default::default() };
        let update = cgroup::Limits {
            huge_pages: vec![pages("2MB", Some(1)), pages("1GB", Some(0))],
            ..Default::default()
        };
        assert_eq!(super::back(&before, &update).huge_pages, [pages("2MB", Some(9)), pages("1GB", None)]);
    }
}
