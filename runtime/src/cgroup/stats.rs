//! What a group used, from v1, v2 or both. The parsing is pure; a controller that isn't there counts nothing.

use super::{Group, Stats, file, pressure, values};
use crate::{Error, Result};

/// Reads all counters.
///
/// # Errors
/// `NotFound` where the group is in no hierarchy.
pub fn read(group: &Group) -> Result<Stats> {
    if !group.v2.iter().chain(&group.v1).any(|dir| dir.exists()) {
        let named = group.v2.iter().chain(&group.v1).next();
        return Err(Error::not_found(
            "read stats of group",
            named.map_or("", |dir| dir.to_str().unwrap_or("")),
        ));
    }
    let mut stats = Stats::default();
    cpu(group, &mut stats)?;
    memory(group, &mut stats)?;
    if let Some(text) = v1_or_v2(group, "pids.current")? {
        stats.pids = number(&text);
    }
    io(group, &mut stats)?;
    stats.cpu_pressure = pressure::read(group, "cpu.pressure");
    stats.memory_pressure = pressure::read(group, "memory.pressure");
    stats.io_pressure = pressure::read(group, "io.pressure");
    Ok(stats)
}

fn cpu(group: &Group, stats: &mut Stats) -> Result<()> {
    if let Some(text) = v1(group, "cpuacct.usage")? {
        stats.cpu_usage_ns = number(&text);
    } else if let Some(text) = v2(group, "cpu.stat")? {
        // Every v2 group has it, also without the cpu controller.
        stats.cpu_usage_ns = keyed(&text, "usage_usec").saturating_mul(1000);
    }
    Ok(())
}

fn memory(group: &Group, stats: &mut Stats) -> Result<()> {
    let inactive = if let Some(usage) = v1(group, "memory.usage_in_bytes")? {
        let detail = v1(group, "memory.stat")?.unwrap_or_default();
        stats.memory_usage_bytes = number(&usage);
        stats.memory_rss_bytes = keyed(&detail, "total_rss");
        stats.page_faults = keyed(&detail, "total_pgfault");
        stats.major_page_faults = keyed(&detail, "total_pgmajfault");
        stats.memory_limit_bytes = v1(group, "memory.limit_in_bytes")?.as_deref().and_then(values::v1_bytes);
        // Memory and the sum are read one after the other, the sum may be the smaller one.
        let sum = v1(group, "memory.memsw.usage_in_bytes")?;
        stats.swap_usage_bytes = sum.map(|sum| number(&sum).saturating_sub(stats.memory_usage_bytes));
        let sum = v1(group, "memory.memsw.limit_in_bytes")?.as_deref().and_then(values::v1_bytes);
        stats.swap_limit_bytes =
            sum.zip(stats.memory_limit_bytes).map(|(sum, memory)| sum.saturating_sub(memory));
        keyed(&detail, "total_inactive_file")
    } else if let Some(usage) = v2(group, "memory.current")? {
        let detail = v2(group, "memory.stat")?.unwrap_or_default();
        stats.memory_usage_bytes = number(&usage);
        stats.memory_rss_bytes = keyed(&detail, "anon");
        stats.page_faults = keyed(&detail, "pgfault");
        stats.major_page_faults = keyed(&detail, "pgmajfault");
        stats.memory_limit_bytes = v2(group, "memory.max")?.as_deref().and_then(values::v2_bytes);
        stats.swap_usage_bytes = v2(group, "memory.swap.current")?.map(|text| number(&text));
        stats.swap_limit_bytes = v2(group, "memory.swap.max")?.as_deref().and_then(values::v2_bytes);
        keyed(&detail, "inactive_file")
    } else {
        0
    };
    stats.memory_working_set_bytes = stats.memory_usage_bytes.saturating_sub(inactive);
    Ok(())
}

fn io(group: &Group, stats: &mut Stats) -> Result<()> {
    // The plain file leaves out the groups below; kernels before 4.17 have only that one.
    let recursive = v1(group, "blkio.throttle.io_service_bytes_recursive")?;
    let bytes = match recursive {
        Some(text) => Some(text),
        None => v1(group, "blkio.throttle.io_service_bytes")?,
    };
    if let Some(text) = bytes {
        (stats.read_bytes, stats.write_bytes) = v1_io(&text);
    } else if let Some(text) = v2(group, "io.stat")? {
        (stats.read_bytes, stats.write_bytes) = v2_io(&text);
    }
    Ok(())
}

/// `8:0 Read 4096` per device and kind.
fn v1_io(text: &str) -> (u64, u64) {
    let (mut read, mut written) = (0u64, 0u64);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, "Read", bytes] => read = read.saturating_add(number(bytes)),
            [_, "Write", bytes] => written = written.saturating_add(number(bytes)),
            _ => {}
        }
    }
    (read, written)
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 ...` per device.
fn v2_io(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let values = text.split_whitespace().filter_map(|word| word.strip_prefix(key));
        values.map(number).fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// `key value` lines; an absent key counts nothing.
fn keyed(text: &str, key: &str) -> u64 {
    keyed_if(text, key).unwrap_or(0)
}

pub fn keyed_if(text: &str, key: &str) -> Option<u64> {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    values.next().map(number)
}

pub fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

pub fn v1(group: &Group, name: &str) -> Result<Option<String>> {
    group.v1_with(name).map_or(Ok(None), |dir| file::read(&dir.join(name)))
}

pub fn v2(group: &Group, name: &str) -> Result<Option<String>> {
    group.v2.as_ref().map_or(Ok(None), |dir| file::read(&dir.join(name)))
}

fn v1_or_v2(group: &Group, name: &str) -> Result<Option<String>> {
    match v1(group, name)? {
        Some(text) => Ok(Some(text)),
        None => v2(group, name),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
                ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
                ("memory.current", "1000\n"),
                ("memory.stat", "anon 300\nanon_thp 7\ninactive_file 400\npgfault 5\npgmajfault 2\n"),
                ("memory.max", "max\n"),
                ("memory.swap.current", "9\n"),
                ("memory.swap.max", "50\n"),
                ("pids.current", "3\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=1\n8:16 rbytes=1 wbytes=2\n"),
            ],
        );
        let group = Group { v2: Some(dir.path().to_owned()), v1: vec![] };
        let expected = Stats {
            cpu_usage_ns: 1_500_000,
            memory_usage_bytes: 1000,
            memory_working_set_bytes: 600,
            memory_rss_bytes: 300,
            memory_limit_bytes: None,
            page_faults: 5,
            major_page_faults: 2,
            swap_usage_bytes: Some(9),
            swap_limit_bytes: Some(50),
            pids: 3,
            read_bytes: 11,
            write_bytes: 22,
            ..Stats::default()
        };
        assert_eq!(read(&group).unwrap(), expected);
    }

    #[test]
    fn on_hybrid_hosts_each_counter_comes_from_where_its_controller_is() {
        let dir = tempfile::tempdir().unwrap();
        let (memory, blkio, unified) =
            (dir.path().join("memory"), dir.path().join("blkio"), dir.path().join("unified"));
        files(
            &memory,
            &[
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.memsw.usage_in_bytes", "1040\n"),
                ("memory.memsw.limit_in_bytes", "5096\n"),
                ("memory.limit_in_bytes", "4096\n"),
                (
                    "memory.stat",
                    "rss 1\ntotal_rss 300\ntotal_inactive_file 2000\ntotal_pgfault 5\ntotal_pgmajfault 2\n",
                ),
            ],
        );
        files(
            &blkio,
            &[(
                "blkio.throttle.io_service_bytes",
                "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\n8:0 Total 30\nTotal 31\n",
            )],
        );
        files(&unified, &[("cpu.stat", "usage_usec 2\n"), ("pids.current", "x\n")]);
        let group = Group { v2: Some(unified), v1: vec![memory, blkio] };
        let stats = read(&group).unwrap();
        assert_eq!((stats.cpu_usage_ns, stats.pids), (2000, 0));
        assert_eq!((stats.memory_limit_bytes, stats.swap_usage_bytes), (Some(4096), Some(40)));
        assert_eq!(stats.swap_limit_bytes, Some(1000));
        assert_eq!((stats.memory_rss_bytes, stats.memory_working_set_bytes), (300, 0));
        assert_eq!((stats.read_bytes, stats.write_bytes), (11, 20));
    }

    #[test]
    fn a_group_that_is_nowhere_is_not_found() {
        let group = Group { v2: Some("/nonexistent/berth".into()), v1: vec!["/nonexistent/v1".into()] };
        assert_eq!(read(&group).unwrap_err().kind, crate::Kind::NotFound);
    }
}
