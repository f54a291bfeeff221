//! Against the kernel, as root: a group with a `sleep` in it, from made to removed. Skipped loudly elsewhere.

use std::{
    fs,
    process::{Child, Command},
};

use super::*;

/// A group of this test alone; whatever happens it is killed and removed.
struct Scratch {
    hierarchy: Hierarchy,
    path: String,
    children: Vec<Child>,
}

impl Scratch {
    fn new() -> Option<Self> {
        let hierarchy = Hierarchy::detect().ok()?;
        let path = format!("/berth-test-{}-{}", std::process::id(), crate::id::PodId::random().short());
        match hierarchy.create(&path, &Limits::default()) {
            Ok(_) => Some(Self { hierarchy, path, children: Vec::new() }),
            Err(error) => {
                eprintln!("SKIPPED: needs root and writable cgroups: {}", error.chain());
                None
            }
        }
    }

    fn group(&self) -> Group {
        self.hierarchy.group(&self.path)
    }

    /// Starts a process and moves it into the group, in every hierarchy.
    fn sleep_in(&mut self, group: &Group) -> u32 {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        for dir in group.v2.iter().chain(&group.v1) {
            fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        pid
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let group = self.group();
        // After a failed test: the failure is what counts.
        group.kill().ok();
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
        group.remove().ok();
    }
}

/// What a control file says, from whichever hierarchy has the first or second name.
fn says(group: &Group, v1: &str, v2: &str) -> String {
    let dir = group.v1_with(v1).map(|dir| dir.join(v1));
    let path = dir.unwrap_or_else(|| group.v2.as_ref().unwrap().join(v2));
    fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
fn a_group_has_its_limits_counts_and_goes_with_all_in_it() {
    let Some(mut scratch) = Scratch::new() else { return };
    let path = format!("{}/container", scratch.path);
    let limits = Limits {
        cpu_shares: Some(512),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(200_000),
        cpuset_cpus: Some("0".into()),
        memory_bytes: Some(64 << 20),
        memory_swap_bytes: Some(96 << 20),
        pids: Some(20),
        ..Limits::default()
    };
    let group = scratch.hierarchy.create(&path, &limits).unwrap();
    assert_eq!(group, scratch.hierarchy.group(&path));
    assert!(group.is_empty());
    assert!(["512", "59"].contains(&says(&group, "cpu.shares", "cpu.weight").as_str()));
    assert!(["50000", "50000 200000"].contains(&says(&group, "cpu.cfs_quota_us", "cpu.max").as_str()));
    assert_eq!(says(&group, "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(says(&group, "pids.max", "pids.max"), "20");
    assert_eq!(says(&group, "cpuset.cpus", "cpuset.cpus"), "0");
    // Again is the same.
    assert_eq!(scratch.hierarchy.create(&path, &limits).unwrap(), group);

    scratch.sleep_in(&group);
    assert!(!group.is_empty());
    let stats = group.stats().unwrap();
    assert_eq!((stats.pids, stats.memory_limit_bytes), (1, Some(64 << 20)));
    assert!(stats.memory_working_set_bytes <= stats.memory_usage_bytes);

    assert_eq!(group.remove().unwrap_err().kind, Kind::Precondition);
    scratch.group().kill().unwrap();
    assert!(group.is_empty() && scratch.group().is_empty());
    scratch.group().remove().unwrap();
    for dir in scratch.group().v2.iter().chain(&scratch.group().v1) {
        assert!(!dir.exists(), "{dir:?}");
    }
    // Absent is success, everywhere.
    group.remove().unwrap();
    group.kill().unwrap();
    assert!(group.is_empty());
    assert_eq!(group.stats().unwrap_err().kind, Kind::NotFound);
}

#[test]
fn memory_goes_up_and_down_in_the_order_the_kernel_wants() {
    let Some(scratch) = Scratch::new() else { return };
    let group = scratch.group();
    for mebibytes in [64, 256, 32, -1, 48] {
        let bytes = if mebibytes < 0 { -1 } else { mebibytes << 20 };
        let limits =
            Limits { memory_bytes: Some(bytes), memory_swap_bytes: Some(bytes), ..Limits::default() };
        group.update(&limits).unwrap();
        group.update(&limits).unwrap();
        assert_eq!(group.stats().unwrap().memory_limit_bytes, u64::try_from(bytes).ok());
    }
    group
        .update(&Limits { cpu_quota_us: Some(10_000), cpu_period_us: Some(20_000), ..Limits::default() })
        .unwrap();
    group.update(&Limits { cpu_quota_us: Some(-1), pids: Some(-1), ..Limits::default() }).unwrap();
    assert_eq!(says(&group, "pids.max", "pids.max"), "max");
}

#[test]
fn a_refused_value_names_the_file_and_leaves_no_directory() {
    let Some(scratch) = Scratch::new() else { return };
    let path = format!("{}/bad", scratch.path);
    let limits = Limits { cpuset_cpus: Some("100000".into()), ..Limits::default() };
    let error = scratch.hierarchy.create(&path, &limits).unwrap_err();
    let text = error.chain();
    assert!(text.contains("cpuset.cpus") && text.contains("\"100000\""), "{text}");
    let group = scratch.hierarchy.group(&path);
    assert!(!group.v2.iter().chain(&group.v1).any(|dir| dir.exists()));

    let unified = Limits { unified: vec![("../cgroup.kill".into(), "1".into())], ..Limits::default() };
    assert_eq!(scratch.group().update(&unified).unwrap_err().kind, Kind::Invalid);
    assert_eq!(scratch.hierarchy.create("/../x", &Limits::default()).unwrap_err().kind, Kind::Invalid);
}

#[test]
fn without_cgroup_kill_processes_are_killed_one_by_one_also_below() {
    let Some(mut scratch) = Scratch::new() else { return };
    let limits = Limits::default();
    let below = scratch.hierarchy.create(&format!("{}/a/b", scratch.path), &limits).unwrap();
    scratch.sleep_in(&below);
    scratch.sleep_in(&below);
    // A host with v1 alone has no v2 directory; one with v2 alone is the same test with cgroup.kill.
    let mut group = scratch.group();
    if !group.v1.is_empty() {
        group.v2 = None;
    }
    assert!(!group.is_empty());
    group.kill().unwrap();
    assert!(group.is_empty());
}

#[test]
fn a_control_file_is_found_whatever_its_hierarchy_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let v1: Vec<_> = ["any", "cpu,pids", "memory"].map(|name| dir.path().join(name)).into();
    for (place, file) in [("any/x", "pids.max"), ("any/x", "cpu.shares"), ("cpu,pids/x", "pids.max")] {
        fs::create_dir_all(dir.path().join(place)).unwrap();
        fs::write(dir.path().join(place).join(file), "").unwrap();
    }
    let group = Group { v2: None, v1: v1.iter().map(|root| root.join("x")).collect() };
    assert_eq!(group.v1_with("pids.max"), Some(group.v1[1].as_path()));
    assert_eq!(group.v1_with("cpu.shares"), Some(group.v1[0].as_path()));
    assert_eq!(group.v1_with("memory.limit_in_bytes"), None);
}

#[test]
fn a_group_is_narrowed_to_the_usual_devices_and_made_again_with_children_in_it() {
    let Some(scratch) = Scratch::new() else { return };
    let path = format!("{}/narrow", scratch.path);
    let group = scratch.hierarchy.create(&path, &Limits::default()).unwrap();
    let rules = DeviceRules::default();
    let program = group.allow_devices(&rules).unwrap();
    let Some(dir) = group.v1_with("devices.list") else {
        assert_eq!(program, rules.program());
        return;
    };
    assert!(program.is_empty());
    let list = fs::read_to_string(dir.join("devices.list")).unwrap();
    assert!(list.contains("c 1:3 rwm") && list.contains("c 136:* rwm") && !list.contains("a *:*"), "{list}");
    scratch.hierarchy.create(&format!("{path}/below"), &Limits::default()).unwrap();
    scratch.hierarchy.create(&path, &Limits::default()).unwrap().allow_devices(&rules).unwrap();
}

#[test]
fn huge_pages_are_limited_where_they_are_counted_and_refused_elsewhere() {
    let Some(scratch) = Scratch::new() else { return };
    let group = scratch.hierarchy.create(&format!("{}/huge", scratch.path), &Limits::default()).unwrap();
    let limit = |size: &str, bytes| {
        let huge_pages = vec![HugePageLimit { size: size.into(), bytes }];
        group.update(&Limits { huge_pages, ..Limits::default() })
    };
    // The kubelet says nought of what a pod doesn't ask for; there need not be any.
    limit("2MB", Some(0)).unwrap();
    limit("3MB", Some(0)).unwrap();
    assert_eq!(limit("3MB", Some(3 << 20)).unwrap_err().kind, Kind::Precondition);
    assert_eq!(limit("../2MB", Some(0)).unwrap_err().kind, Kind::Invalid);
    let files = ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"];
    let counted =
        group.v1_with(files[0]).is_some() || group.v2.as_ref().is_some_and(|dir| dir.join(files[1]).exists());
    if !counted {
        assert_eq!(limit("2MB", Some(4 << 20)).unwrap_err().kind, Kind::Precondition);
        eprintln!("SKIPPED: no hugetlb controller with pages of 2 MiB");
        return;
    }
    limit("2MB", Some(4 << 20)).unwrap();
    for kind in ["", "rsvd."] {
        let says =
            says(&group, &format!("hugetlb.2MB.{kind}limit_in_bytes"), &format!("hugetlb.2MB.{kind}max"));
        assert_eq!(says, (4 << 20).to_string(), "{kind}");
    }
    limit("2MB", None).unwrap();
    assert_ne!(says(&group, files[0], files[1]), (4 << 20).to_string());
}

#[test]
fn v2_files_get_the_converted_values() {
    let dir = tempfile::tempdir().unwrap();
    let names =
        ["cpu.weight", "cpu.max", "cpuset.cpus", "memory.max", "memory.swap.max", "pids.max", "io.max"];
    for name in names {
        fs::write(dir.path().join(name), "").unwrap();
    }
    let group = Group { v2: Some(dir.path().to_owned()), v1: Vec::new() };
    let limits = Limits {
        cpu_shares: Some(1024),
        cpu_quota_us: Some(5_000),
        cpuset_cpus: Some("0-1".into()),
        memory_bytes: Some(100),
        memory_swap_bytes: Some(300),
        pids: Some(-1),
        unified: vec![("io.max".into(), "8:0 rbps=1".into())],
        ..Limits::default()
    };
    group.update(&limits).unwrap();
    let written = names.map(|name| fs::read_to_string(dir.path().join(name)).unwrap());
    assert_eq!(written, ["100", "5000 100000", "0-1", "100", "200", "max", "8:0 rbps=1"]);

    // Swap alone counts from the memory limit that is there, and no swap accounting is no failure.
    fs::remove_file(dir.path().join("memory.swap.max")).unwrap();
    group.update(&Limits { memory_swap_bytes: Some(150), ..Limits::default() }).unwrap();
    let error = group.update(&Limits { memory_swap_bytes: Some(50), ..Limits::default() }).unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    // Nothing else is touched by an update that says nothing; a controller that isn't there is named.
    group.update(&Limits::default()).unwrap();
    let error = group.update(&Limits { cpuset_mems: Some("0".into()), ..Limits::default() }).unwrap_err();
    assert!(error.chain().contains("controller cpuset not enabled"), "{}", error.chain());
}
