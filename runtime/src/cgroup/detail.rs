//! What a monitor wants to know beside `Stats`: kinds of memory, throttling, devices, limits, descriptors. Each value
//! is `None` where this host, or this kernel, doesn't tell it.

use std::{collections::BTreeMap, path::Path};

use super::{
    Detail, Device, Faults, Group, HugePages,
    stats::{keyed_if, number, v1, v2},
    values,
};
use crate::Result;

/// Of all processes of a group together; one with more is not looked through.
const DESCRIPTORS: u64 = 65_536;
const PROCESSES: usize = 4096;

pub fn read(group: &Group) -> Result<Detail> {
    let mut detail = Detail::default();
    cpu(group, &mut detail)?;
    memory(group, &mut detail)?;
    limits(group, &mut detail)?;
    detail.devices = devices(group)?;
    detail.huge_pages = huge_pages(group);
    processes(group, &mut detail);
    Ok(detail)
}

fn cpu(group: &Group, detail: &mut Detail) -> Result<()> {
    let unified = v2(group, "cpu.stat")?;
    let us = |key| Some(keyed_if(unified.as_deref()?, key)?.saturating_mul(1000));
    detail.cpu_user_ns = match v1(group, "cpuacct.usage_user")? {
        Some(text) => Some(number(&text)),
        None => us("user_usec"),
    };
    detail.cpu_system_ns = match v1(group, "cpuacct.usage_sys")? {
        Some(text) => Some(number(&text)),
        None => us("system_usec"),
    };
    // v1's has these and not the times; v2's has them where the controller is.
    let Some(text) = v1(group, "cpu.stat")?.or(unified) else { return Ok(()) };
    detail.periods = keyed_if(&text, "nr_periods");
    detail.throttled_periods = keyed_if(&text, "nr_throttled");
    let v2_ns = || Some(keyed_if(&text, "throttled_usec")?.saturating_mul(1000));
    detail.throttled_ns = keyed_if(&text, "throttled_time").or_else(v2_ns);
    Ok(())
}

fn memory(group: &Group, detail: &mut Detail) -> Result<()> {
    if let Some(text) = v1(group, "memory.stat")? {
        let one = |name: &str| Ok::<_, crate::Error>(v1(group, name)?.map(|text| number(&text)));
        detail.cache_bytes = keyed_if(&text, "total_cache");
        detail.rss_bytes = keyed_if(&text, "total_rss");
        detail.mapped_bytes = keyed_if(&text, "total_mapped_file");
        detail.swap_bytes = keyed_if(&text, "total_swap");
        detail.kernel_bytes = one("memory.kmem.usage_in_bytes")?;
        detail.most_bytes = one("memory.max_usage_in_bytes")?;
        detail.limit_hits = one("memory.failcnt")?;
        let faults = |all: &str, major: &str| {
            Some(Faults { all: keyed_if(&text, all)?, major: keyed_if(&text, major)? })
        };
        detail.faults = faults("pgfault", "pgmajfault");
        detail.faults_below = faults("total_pgfault", "total_pgmajfault");
        detail.oom_kills = v1(group, "memory.oom_control")?.and_then(|text| keyed_if(&text, "oom_kill"));
    } else if let Some(text) = v2(group, "memory.stat")? {
        let one = |name: &str| Ok::<_, crate::Error>(v2(group, name)?.map(|text| number(&text)));
        detail.cache_bytes = keyed_if(&text, "file");
        detail.rss_bytes = keyed_if(&text, "anon");
        detail.mapped_bytes = keyed_if(&text, "file_mapped");
        detail.swap_bytes = one("memory.swap.current")?;
        detail.kernel_bytes = keyed_if(&text, "kernel");
        detail.most_bytes = one("memory.peak")?;
        // v2 counts groups with all below them.
        detail.faults_below = keyed_if(&text, "pgfault")
            .zip(keyed_if(&text, "pgmajfault"))
            .map(|(all, major)| Faults { all, major });
        detail.faults = detail.faults_below;
        let events = v2(group, "memory.events")?.unwrap_or_default();
        detail.limit_hits = keyed_if(&events, "max");
        detail.oom_kills = keyed_if(&events, "oom_kill");
    }
    Ok(())
}

/// As v1 and the monitors say them: shares, and nought for no limit.
fn limits(group: &Group, detail: &mut Detail) -> Result<()> {
    let v1_limit =
        |name: &str| Ok::<_, crate::Error>(v1(group, name)?.map(|text| values::v1_bytes(&text).unwrap_or(0)));
    let v2_limit =
        |name: &str| Ok::<_, crate::Error>(v2(group, name)?.map(|text| values::v2_bytes(&text).unwrap_or(0)));
    if let Some(shares) = v1(group, "cpu.shares")? {
        detail.cpu_shares = Some(number(&shares));
        detail.cpu_period_us = v1(group, "cpu.cfs_period_us")?.map(|text| number(&text));
        // Negative: unlimited, which is no number here.
        detail.cpu_quota_us = v1(group, "cpu.cfs_quota_us")?.and_then(|text| text.trim().parse().ok());
    } else if let Some(weight) = v2(group, "cpu.weight")? {
        detail.cpu_shares = Some(values::shares(number(&weight)));
        let max = v2(group, "cpu.max")?.unwrap_or_default();
        let mut words = max.split_whitespace().map(|word| word.parse().ok());
        detail.cpu_quota_us = words.next().flatten();
        detail.cpu_period_us = words.next().flatten();
    }
    if let Some(limit) = v1_limit("memory.limit_in_bytes")? {
        detail.memory_limit_bytes = Some(limit);
        detail.memory_reservation_bytes = v1_limit("memory.soft_limit_in_bytes")?;
        detail.swap_limit_bytes = v1_limit("memory.memsw.limit_in_bytes")?;
    } else {
        detail.memory_limit_bytes = v2_limit("memory.max")?;
        detail.memory_reservation_bytes = v2_limit("memory.low")?;
        detail.swap_limit_bytes = v2_limit("memory.swap.max")?;
    }
    let threads = match v1(group, "pids.max")? {
        Some(text) => Some(text),
        None => v2(group, "pids.max")?,
    };
    detail.threads_limit = threads.map(|text| values::v2_bytes(&text).unwrap_or(0));
    Ok(())
}

fn devices(group: &Group) -> Result<Vec<Device>> {
    let either = |recursive: &str, plain: &str| match v1(group, recursive)? {
        Some(text) => Ok::<_, crate::Error>(Some(text)),
        None => v1(group, plain),
    };
    let bytes = either("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes")?;
    if let Some(bytes) = bytes {
        let counts = either("blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced")?;
        return Ok(v1_devices(&bytes, &counts.unwrap_or_default()));
    }
    Ok(v2_devices(&v2(group, "io.stat")?.unwrap_or_default()))
}

/// `8:0 Read 4096`.
fn v1_devices(bytes: &str, counts: &str) -> Vec<Device> {
    let mut found: BTreeMap<(u32, u32), Device> = BTreeMap::new();
    for (text, counted) in [(bytes, false), (counts, true)] {
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [device, what, value] = words[..] else { continue };
            let Some((major, minor)) = device_number(device) else { continue };
            let new = Device { major, minor, ..Device::default() };
            let device = found.entry((major, minor)).or_insert(new);
            match (what, counted) {
                ("Read", false) => device.read_bytes = number(value),
                ("Write", false) => device.write_bytes = number(value),
                ("Read", true) => device.reads = number(value),
                ("Write", true) => device.writes = number(value),
                _ => {}
            }
        }
    }
    found.into_values().collect()
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn v2_devices(text: &str) -> Vec<Device> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = device_number(words.next()?)?;
        let pairs: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
        let value = |key| pairs.get(key).map_or(0, |text| number(text));
        Some(Device {
            major,
            minor,
            read_bytes: value("rbytes"),
            write_bytes: value("wbytes"),
            reads: value("rios"),
            writes: value("wios"),
        })
    };
    text.lines().filter_map(line).collect()
}

fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `hugetlb.2MB.usage_in_bytes`, or `.current` of v2: a pair of files per size.
fn huge_pages(group: &Group) -> Vec<HugePages> {
    let suffixes = [(".usage_in_bytes", ".max_usage_in_bytes"), (".current", "")];
    let dirs = group.v1.iter().chain(&group.v2);
    let names = dirs.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    let mut found: BTreeMap<String, HugePages> = BTreeMap::new();
    for entry in names {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("hugetlb.")) else { continue };
        for (usage, most) in suffixes {
            // `hugetlb.2MB.max_usage_in_bytes` has no size before `.usage_in_bytes`; `rsvd.` is what is reserved.
            let size = rest.strip_suffix(usage).filter(|size| !size.contains('.'));
            let Some(size) = size else { continue };
            let read = |name: &str| std::fs::read_to_string(entry.path().with_file_name(name)).ok();
            let most = Some(most).filter(|most| !most.is_empty());
            let most = most.and_then(|most| read(&format!("hugetlb.{size}{most}")));
            if let Some(usage) = read(&format!("hugetlb.{size}{usage}")) {
                let pages = HugePages {
                    size: size.to_owned(),
                    bytes: number(&usage),
                    most_bytes: most.map(|text| number(&text)),
                };
                found.insert(size.to_owned(), pages);
            }
        }
    }
    found.into_values().collect()
}

/// Counts what the processes have open; they end meanwhile, which counts nothing.
fn processes(group: &Group, detail: &mut Detail) {
    let Some(dir) = group.v2.as_ref().or(group.v1.first()) else { return };
    let mut pids = Vec::new();
    collect(dir, &mut pids);
    detail.processes = Some(pids.len() as u64);
    if pids.len() > PROCESSES {
        return;
    }
    let (mut descriptors, mut sockets) = (0, 0);
    for pid in pids {
        let Ok(listed) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in listed.flatten() {
            descriptors += 1;
            if descriptors > DESCRIPTORS {
                return;
            }
            let target = std::fs::read_link(entry.path());
            sockets +=
                u64::from(target.is_ok_and(|path| path.as_os_str().to_string_lossy().starts_with("socket:")));
        }
    }
    (detail.descriptors, detail.sockets) = (Some(descriptors), Some(sockets));
}

fn collect(dir: &Path, pids: &mut Vec<u32>) {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid > 0));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if pids.len() <= PROCESSES && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn v2_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        files(
            dir.path(),
            &[
                (
                    "cpu.stat",
                    "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
                ),
                ("memory.stat", "anon 300\nfile 40\nkernel 7\nfile_mapped 6\npgfault 5\npgmajfault 2\n"),
                ("memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n"),
                ("memory.peak", "500\n"),
                ("memory.swap.current", "9\n"),
                ("cpu.weight", "100\n"),
                ("cpu.max", "20000 100000\n"),
                ("memory.max", "max\n"),
                ("memory.low", "0\n"),
                ("memory.swap.max", "64\n"),
                ("pids.max", "max\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n"),
                ("hugetlb.2MB.current", "4096\n"),
                ("hugetlb.2MB.rsvd.current", "1\n"),
            ],
        );
        let detail = read(&Group { v2: Some(dir.path().to_owned()), v1: vec![] }).unwrap();
        let faults = Some(Faults { all: 5, major: 2 });
        let expected = Detail {
            cpu_user_ns: Some(5000),
            cpu_system_ns: Some(4000),
            periods: Some(3),
            throttled_periods: Some(2),
            throttled_ns: Some(1000),
            cache_bytes: Some(40),
            rss_bytes: Some(300),
            mapped_bytes: Some(6),
            swap_bytes: Some(9),
            kernel_bytes: Some(7),
            most_bytes: Some(500),
            limit_hits: Some(4),
            faults,
            faults_below: faults,
            oom_kills: Some(1),
            cpu_shares: Some(1024),
            cpu_period_us: Some(100_000),
            cpu_quota_us: Some(20_000),
            memory_limit_bytes: Some(0),
            memory_reservation_bytes: Some(0),
            swap_limit_bytes: Some(64),
            threads_limit: Some(0),
            devices: vec![Device {
                major: 8,
                minor: 0,
                read_bytes: 10,
                write_bytes: 20,
                reads: 1,
                writes: 2,
            }],
            huge_pages: vec![HugePages { size: "2MB".into(), bytes: 4096, most_bytes: None }],
            processes: Some(0),
            descriptors: Some(0),
            sockets: Some(0),
        };
        assert_eq!(detail, expected);
    }

    #[test]
    fn on_hybrid_hosts_each_value_comes_from_where_its_controller_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        files(
            &at("cpu"),
            &[
                ("cpu.shares", "512\n"),
                ("cpu.cfs_quota_us", "-1\n"),
                ("cpu.cfs_period_us", "100000\n"),
                ("cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 1500\n"),
            ],
        );
        files(
            &at("memory"),
            &[
                (
                    "memory.stat",
                    "cache 1\npgfault 3\npgmajfault 1\ntotal_cache 40\ntotal_rss 3\ntotal_pgfault 5\ntotal_pgmajfault 2\n",
                ),
                ("memory.failcnt", "8\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ],
        );
        files(
            &at("blkio"),
            &[
                ("blkio.throttle.io_service_bytes", "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n"),
                ("blkio.throttle.io_serviced", "8:0 Read 1\n"),
            ],
        );
        files(&at("unified"), &[("cpu.stat", "usage_usec 9\nuser_usec 5\nsystem_usec 4\n")]);
        let v1 = ["cpu", "memory", "blkio"].map(at).to_vec();
        let detail = read(&Group { v2: Some(at("unified")), v1 }).unwrap();
        assert_eq!((detail.cpu_user_ns, detail.throttled_ns), (Some(5000), Some(1500)));
        assert_eq!((detail.cpu_shares, detail.cpu_quota_us), (Some(512), None));
        assert_eq!((detail.cache_bytes, detail.limit_hits, detail.oom_kills), (Some(40), Some(8), Some(2)));
        assert_eq!(detail.faults, Some(Faults { all: 3, major: 1 }));
        assert_eq!(detail.faults_below, Some(Faults { all: 5, major: 2 }));
        assert_eq!((detail.memory_limit_bytes, detail.swap_limit_bytes), (Some(0), None));
        let device = Device { major: 8, minor: 0, read_bytes: 10, write_bytes: 20, reads: 1, writes: 0 };
        assert_eq!(detail.devices, [device]);
    }

    #[test]
    fn a_host_that_tells_nothing_gives_nothing() {
        let group = Group { v2: Some("/nonexistent/berth".into()), v1: vec!["/nonexistent/v1".into()] };
        let nothing =
            Detail { processes: Some(0), descriptors: Some(0), sockets: Some(0), ..Detail::default() };
        assert_eq!(read(&group).unwrap(), nothing);
    }
}
