//! Where this host mounts its cgroup hierarchies, read from the texts of /proc/self/mountinfo and /proc/cgroups. Pure.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::Mode;

/// The mount points that groups are made below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    pub mode: Mode,
    /// One per hierarchy that has a controller; those with only a name (`name=systemd`) are somebody else's.
    pub v1: Vec<PathBuf>,
    pub v2: Option<PathBuf>,
}

/// Controllers of every kernel that has v1, for hosts whose /proc/cgroups is absent or leaves some out.
const KNOWN: [&str; 13] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "perf_event",
    "pids",
];

/// One cgroup line of mountinfo.
struct Mounted<'a> {
    /// major:minor, the same for every mount of one hierarchy.
    device: &'a str,
    /// The part of the hierarchy that is visible: `/`, or less in a container.
    root: &'a str,
    point: PathBuf,
    kind: &'a str,
    /// Options of the hierarchy itself, its controllers among them.
    options: &'a str,
}

/// Finds the hierarchies; `None` where no cgroup is mounted at all.
pub fn parse(mountinfo: &str, cgroups: &str) -> Option<Roots> {
    let controllers: Vec<&str> = cgroups
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next())
        .chain(KNOWN)
        .collect();
    let mounts: Vec<Mounted<'_>> = mountinfo.lines().filter_map(line).collect();
    let has_controller = |mount: &&Mounted<'_>| {
        mount.kind == "cgroup" && mount.options.split(',').any(|option| controllers.contains(&option))
    };

    let mut seen: Vec<&str> = Vec::new();
    let mut v1 = Vec::new();
    for mount in mounts.iter().filter(has_controller) {
        if !seen.contains(&mount.device) {
            seen.push(mount.device);
            v1.push(best(&mounts, mount.device)?.point.clone());
        }
    }
    let v2 = mounts.iter().find(|mount| mount.kind == "cgroup2");
    let v2 = v2.and_then(|mount| best(&mounts, mount.device)).map(|mount| mount.point.clone());
    let mode = match (v1.is_empty(), &v2) {
        (true, None) => return None,
        (true, Some(_)) => Mode::V2,
        (false, None) => Mode::V1,
        (false, Some(_)) => Mode::Hybrid,
    };
    Some(Roots { mode, v1, v2 })
}

/// Of several mounts of one hierarchy the one that shows the whole of it and is where people expect it: programs bind
/// parts of it elsewhere.
fn best<'a>(mounts: &'a [Mounted<'a>], device: &str) -> Option<&'a Mounted<'a>> {
    mounts.iter().filter(|mount| mount.device == device).min_by_key(|mount| {
        let expected = mount.point.starts_with(Path::new("/sys/fs/cgroup"));
        (mount.root != "/", !expected)
    })
}

/// `36 35 98:0 /root /point options [optional fields] - type source super-options`, proc_pid_mountinfo(5).
fn line(text: &str) -> Option<Mounted<'_>> {
    let (head, tail) = text.split_once(" - ")?;
    let mut head = head.split(' ').skip(2);
    let (device, root, point) = (head.next()?, head.next()?, head.next()?);
    let mut tail = tail.split(' ');
    let kind = tail.next()?;
    let options = tail.nth(1).unwrap_or_default();
    let cgroup = kind == "cgroup" || kind == "cgroup2";
    cgroup.then(|| Mounted { device, root, point: unescape(point), kind, options })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match value.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CGROUPS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t4\t31\t1\n";
    const V2_ONLY: &str = "\
22 28 0:21 / /sys rw,nosuid - sysfs sysfs rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";
    const V1_ONLY: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
";
    const UNIFIED: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn v1_paths() -> Vec<PathBuf> {
        vec!["/sys/fs/cgroup/cpu,cpuacct".into(), "/sys/fs/cgroup/memory".into()]
    }

    #[test]
    fn every_kind_of_host_is_recognised() {
        let hybrid = format!("{V1_ONLY}{UNIFIED}");
        let table = [
            (V2_ONLY, Mode::V2, vec![], Some("/sys/fs/cgroup")),
            (V1_ONLY, Mode::V1, v1_paths(), None),
            (hybrid.as_str(), Mode::Hybrid, v1_paths(), Some("/sys/fs/cgroup/unified")),
        ];
        for (text, mode, v1, v2) in table {
            let roots = parse(text, CGROUPS).unwrap();
            assert_eq!(roots, Roots { mode, v1, v2: v2.map(PathBuf::from) });
            // Without /proc/cgroups too.
            assert_eq!(parse(text, "").unwrap(), roots);
        }
        assert_eq!(parse("22 28 0:21 / /sys rw - sysfs sysfs rw\n", CGROUPS), None);
        assert_eq!(parse("garbage\n- - -\n", "\n\n"), None);
    }

    #[test]
    fn of_many_mounts_of_a_hierarchy_the_whole_one_in_its_place_wins() {
        let text = "\
50 31 0:32 /docker/x /var/lib/agent/part rw - cgroup cgroup rw,memory
51 31 0:32 / /host/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
52 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
        assert_eq!(parse(text, CGROUPS).unwrap().v1, [PathBuf::from("/sys/fs/cgroup/memory")]);
        // In a container without a cgroup namespace there is only a part.
        let part = "50 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(parse(part, CGROUPS).unwrap().v1, [PathBuf::from("/sys/fs/cgroup/memory")]);
    }

    #[test]
    fn a_controller_that_only_the_kernel_lists_counts() {
        let text = "50 31 0:32 / /sys/fs/cgroup/new rw - cgroup cgroup rw,brandnew\n";
        assert_eq!(parse(text, ""), None);
        assert_eq!(parse(text, "brandnew 1 1 1\n").unwrap().mode, Mode::V1);
    }

    #[test]
    fn octal_escapes_of_mount_points_are_read() {
        for (text, path) in
            [(r"/a\040b", "/a b"), (r"/a\134", r"/a\"), (r"/a\9", r"/a\9"), (r"/\04", r"/\04")]
        {
            assert_eq!(unescape(text), PathBuf::from(path), "{text}");
        }
    }
}
