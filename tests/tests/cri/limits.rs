//! Limits: in the cgroups, and what happens to those who reach them.

use std::{fs, path::PathBuf};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, asked, pod, skip};
use tonic::Code;

/// A control file of a container: the v1 one, or the v2 one where the host has it there.
fn control(path: &str, v1: (&str, &str), v2: &str) -> Option<String> {
    let below = path.trim_start_matches('/');
    let old = PathBuf::from("/sys/fs/cgroup").join(v1.0).join(below).join(v1.1);
    let new = PathBuf::from("/sys/fs/cgroup").join(below).join(v2);
    fs::read_to_string(old).or_else(|_| fs::read_to_string(new)).ok().map(|text| text.trim().to_owned())
}

#[test]
fn limits_are_in_the_cgroup() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("limits");
    let asked = asked("c", &["sleep", "inf"]).limited(|limits| {
        limits.memory_limit_in_bytes = 64 << 20;
        limits.cpu_shares = 512;
        limits.cpu_period = 100_000;
        limits.cpu_quota = 50_000;
        limits.cpuset_cpus = "0".into();
    });
    let id = daemon.launch(&pod, &asked).unwrap();
    let path = daemon.details(&id)["cgroup"].as_str().unwrap().to_owned();
    assert!(path.starts_with(daemon.cgroup_parent()) && path.ends_with(&id), "{path}");
    let bytes = control(&path, ("memory", "memory.limit_in_bytes"), "memory.max");
    assert_eq!(bytes.as_deref(), Some("67108864"));
    let quota = control(&path, ("cpu", "cpu.cfs_quota_us"), "cpu.max").unwrap();
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    let cpus = control(&path, ("cpuset", "cpuset.cpus"), "cpuset.cpus");
    assert_eq!(cpus.as_deref(), Some("0"));
    let shares = control(&path, ("cpu", "cpu.shares"), "cpu.weight").unwrap();
    assert!(shares != "1024" && shares != "100", "{shares}");
    let info: serde_json::Value = serde_json::from_str(&daemon.exec_ok(&id, &["info"])).unwrap();
    assert_eq!(info["cpus_allowed"], "0");
    // The status tells them again.
    let resources = daemon.status(&id).unwrap().resources.unwrap().linux.unwrap();
    assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
}

#[test]
fn an_update_is_in_the_cgroup_and_the_status_or_nothing_of_it_is() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("update");
    let asked = asked("c", &["sleep", "inf"]).limited(|limits| limits.memory_limit_in_bytes = 64 << 20);
    let id = daemon.launch(&pod, &asked).unwrap();
    let path = daemon.details(&id)["cgroup"].as_str().unwrap().to_owned();
    let memory = || control(&path, ("memory", "memory.limit_in_bytes"), "memory.max").unwrap();
    let update = |linux: cri::LinuxContainerResources| {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        daemon.call(daemon.runtime().update_container_resources(request))
    };
    update(cri::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() }).unwrap();
    assert_eq!(memory(), (96u64 << 20).to_string());
    // Memory could be changed, a CPU that no machine has can't: then memory is not changed either.
    let impossible = cri::LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        cpuset_cpus: "1023".into(),
        ..Default::default()
    };
    let refused = update(impossible).unwrap_err();
    assert!(refused.message().contains("1023"), "{refused}");
    assert_eq!(memory(), (96u64 << 20).to_string());
    let told = daemon.status(&id).unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((told.memory_limit_in_bytes, told.cpuset_cpus.as_str()), (96 << 20, ""));
    daemon.stop_container(&id, 0).unwrap();
    let late = update(cri::LinuxContainerResources { cpu_shares: 100, ..Default::default() }).unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
}

#[test]
fn a_pods_own_parent_is_kept() {
    let daemon = Daemon::with_fixture();
    let parent = format!("{}/kubepods/pod1", daemon.cgroup_parent());
    let mut config = pod("parent");
    config.linux.as_mut().unwrap().cgroup_parent = parent.clone();
    let pod = daemon.run_pod(config).unwrap();
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let path = daemon.details(&id)["cgroup"].as_str().unwrap().to_owned();
    assert_eq!(path, format!("{parent}/{id}"));
    daemon.remove_pod(&pod.id).unwrap();
    // The kubelet made it and the kubelet removes it; here that is us.
    for top in fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .chain(["/sys/fs/cgroup".into()])
    {
        for below in ["kubepods/pod1", "kubepods"] {
            // Not every hierarchy has it.
            fs::remove_dir(top.join(daemon.cgroup_parent().trim_start_matches('/')).join(below)).ok();
        }
    }
}

#[test]
fn who_eats_too_much_is_oomkilled() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("oom");
    let limited = |name: &str, words: &[&str]| {
        asked(name, words).limited(|limits| limits.memory_limit_in_bytes = 32 << 20)
    };
    let (status, _) = daemon.run_to_end(&pod, &limited("eats", &["eat", "512M"])).unwrap();
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137));
    // Whoever ends otherwise was not.
    let (status, _) = daemon.run_to_end(&pod, &limited("ends", &["exit", "137"])).unwrap();
    assert_eq!((status.reason.as_str(), status.exit_code), ("Error", 137));
}

#[test]
fn the_oom_score_is_as_asked_where_the_host_lets_it() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("score");
    let asked_for = asked("c", &["info"]).limited(|limits| limits.oom_score_adj = 500);
    assert_eq!(daemon.info(&pod, &asked_for)["oom_score_adj"], 500);
    // A guaranteed pod's: without CAP_SYS_RESOURCE it is clamped, not refused.
    let low = asked("low", &["info"]).limited(|limits| limits.oom_score_adj = -998);
    let found = daemon.info(&pod, &low)["oom_score_adj"].as_i64().unwrap();
    assert!(found == -998 || found >= 0, "{found}");
}

#[test]
fn huge_or_senseless_limits_are_told() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("wrong");
    let asked = asked("c", &["true"]).limited(|limits| limits.cpuset_cpus = "9999".into());
    let refused = daemon.create(&pod, &asked).unwrap_err();
    assert!(refused.message().contains("cpuset") && refused.message().contains("9999"), "{refused}");
    assert!(matches!(refused.code(), Code::InvalidArgument | Code::Internal), "{refused}");
    assert!(daemon.list_containers(cri::ContainerFilter::default()).is_empty());
}

#[test]
fn huge_pages_are_limited_where_they_are_counted() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("huge");
    let pages = |size: &str, limit| cri::HugepageLimit { page_size: size.into(), limit };
    let with = |name: &str, limits: Vec<cri::HugepageLimit>| {
        asked(name, &["sleep", "inf"]).limited(|resources| resources.hugepage_limits = limits)
    };
    // As the kubelet sends it for who asks for none.
    let id = daemon.launch(&pod, &with("none", vec![pages("2MB", 0), pages("1GB", 0)])).unwrap();
    let path = daemon.details(&id)["cgroup"].as_str().unwrap().to_owned();
    let says = |path: &str, files: [&str; 2]| {
        control(path, ("hugetlb", files[0]), files[1])
            .or_else(|| control(path, ("unified", files[1]), files[1]))
    };
    let used = ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"];
    let Some(none) = says(&path, used) else {
        let refused = daemon.create(&pod, &with("some", vec![pages("2MB", 4 << 20)])).unwrap_err();
        assert!(refused.message().contains("hugetlb"), "{refused}");
        return skip(
            "huge_pages_are_limited_where_they_are_counted",
            "no hugetlb controller has pages of 2 MiB",
        );
    };
    assert_eq!(none, "0");
    let id = daemon.launch(&pod, &with("some", vec![pages("2MB", 4 << 20)])).unwrap();
    let path = daemon.details(&id)["cgroup"].as_str().unwrap().to_owned();
    let reserved = ["hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.rsvd.max"];
    for files in [used, reserved] {
        assert_eq!(says(&path, files).as_deref(), Some("4194304"), "{files:?}");
    }
    let update = cri::UpdateContainerResourcesRequest {
        container_id: id,
        linux: Some(cri::LinuxContainerResources {
            hugepage_limits: vec![pages("2MB", 8 << 20)],
            ..Default::default()
        }),
        ..Default::default()
    };
    daemon.call(daemon.runtime().update_container_resources(update)).unwrap();
    assert_eq!(says(&path, used).as_deref(), Some("8388608"));
    let refused = daemon.create(&pod, &with("odd", vec![pages("3MB", 3 << 20)])).unwrap_err();
    assert!(refused.message().contains("3MB"), "{refused}");
}

/// CRI's limit is of memory and swap together, as v1 writes it; v2 has swap by itself.
#[test]
fn swap_is_limited_where_it_is_counted_and_raised_and_lowered_with_the_memory() {
    const TEST: &str = "swap_is_limited_where_it_is_counted_and_raised_and_lowered_with_the_memory";
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("swap");
    let limits = |memory: i64, together: i64| cri::LinuxContainerResources {
        memory_limit_in_bytes: memory << 20,
        memory_swap_limit_in_bytes: together << 20,
        ..Default::default()
    };
    let asked = |name: &str, memory, together| {
        asked(name, &["sleep", "inf"]).limited(|asked| *asked = limits(memory, together))
    };
    let id = daemon.launch(&pod, &asked("some", 64, 96)).unwrap();
    let path = daemon.details(&id)["cgroup"].as_str().unwrap().to_owned();
    let says = |path: &str| {
        let memory = control(path, ("memory", "memory.limit_in_bytes"), "memory.max")?;
        let v1 = control(path, ("memory", "memory.memsw.limit_in_bytes"), "nothing");
        let v2 = control(path, ("nothing", "nothing"), "memory.swap.max");
        let number = |text: String| text.parse::<u64>().map(|bytes| bytes >> 20).unwrap();
        let memory = number(memory);
        Some((memory, v1.map(|sum| number(sum) - memory).or(v2.map(number))?))
    };
    let Some(there) = says(&path) else { return skip(TEST, "this kernel counts no swap") };
    assert_eq!(there, (64, 32));
    let stats = daemon
        .call(daemon.runtime().container_stats(cri::ContainerStatsRequest { container_id: id.clone() }));
    let swap = stats.unwrap().stats.unwrap().swap.unwrap();
    assert_eq!(
        (swap.swap_usage_bytes.unwrap().value, swap.swap_available_bytes.unwrap().value),
        (0, 32 << 20)
    );
    // On v1 the sum may never be below the memory: which is written first depends.
    for (memory, together, expected) in [(128, 192, (128, 64)), (32, 32, (32, 0)), (48, 49, (48, 1))] {
        let update = cri::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(limits(memory, together)),
            ..Default::default()
        };
        daemon.call(daemon.runtime().update_container_resources(update)).unwrap();
        assert_eq!(says(&path), Some(expected));
    }
    // As much as there is of it is -1; less than the memory can't be.
    let id = daemon.launch(&pod, &asked("none", 64, 64)).unwrap();
    let path = daemon.details(&id)["cgroup"].as_str().unwrap().to_owned();
    assert_eq!(says(&path), Some((64, 0)));
    let refused = daemon.create(&pod, &asked("odd", 64, 32)).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("memory_swap_limit_in_bytes"), "{refused}");
}

#[test]
fn unified_limits_are_written_on_v2() {
    if !PathBuf::from("/sys/fs/cgroup/cgroup.controllers").exists() {
        return skip("unified_limits_are_written_on_v2", "the controllers of this host are on cgroup v1");
    }
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("unified");
    let asked = asked("c", &["sleep", "inf"]).limited(|limits| {
        limits.unified.insert("memory.high".into(), "33554432".into());
    });
    let id = daemon.launch(&pod, &asked).unwrap();
    let path = daemon.details(&id)["cgroup"].as_str().unwrap().to_owned();
    assert_eq!(control(&path, ("none", "none"), "memory.high").as_deref(), Some("33554432"));
}
