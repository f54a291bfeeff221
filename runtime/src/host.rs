//! Whether this host is fit to run containers: what Berth needs of the kernel, of programs, of room and of the clock, each
//! with what to do about it. Reads only; needs no daemon and knows none.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// One look at the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at: "cgroups", "kernel".
    pub name: &'static str,
    pub level: Level,
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Good,
    /// Something that Berth can do is not there.
    Note,
    /// Containers, or some of them, will not run.
    Wrong,
}

/// Where Berth's things are on this host.
#[derive(Debug, Clone)]
pub struct Places {
    /// What survives a reboot.
    pub root: PathBuf,
    /// What doesn't.
    pub state: PathBuf,
    /// Where network plugins are configured, and where their programs are.
    pub conf_dir: PathBuf,
    pub bin_dirs: Vec<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        }
    }
}

/// The oldest kernel that Berth is made for.
const FLOOR: (u32, u32) = (5, 15);
/// From here on a container outlives its shim.
const KEEPS_STATUSES: (u32, u32) = (6, 15);
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// Less room than this, in bytes and in shares of all there is, is soon none.
const LEAST_FREE_BYTES: u64 = 512 << 20;
const LEAST_FREE_INODES: u64 = 1000;

/// Looks at all of it.
pub fn checks(places: &Places) -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mounts = read("/proc/self/mountinfo");
    let mut all = vec![
        kernel(&release),
        cgroups(&mounts, &read("/proc/cgroups"), |root| read(&format!("{root}/cgroup.controllers"))),
        namespaces(),
        file_system(&read("/proc/filesystems")),
        seccomp(Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()),
        switch("ip_forward", "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        program("nft", "nftables"),
        plugins(places),
        clock(SystemTime::now()),
    ];
    if Path::new("/proc/sys/net/ipv6").exists() {
        all.push(switch(
            "ip6_forward",
            "/proc/sys/net/ipv6/conf/all/forwarding",
            "net.ipv6.conf.all.forwarding",
        ));
    }
    all.extend([("root", &places.root), ("state", &places.state)].map(|(name, path)| room(name, path)));
    all
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn check(name: &'static str, level: Level, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, level, found: found.into(), remedy: remedy.into() }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("Linux {release}");
    match version {
        older if older < FLOOR => check(
            "kernel",
            Level::Wrong,
            found,
            "Berth is made for Linux 5.15 and later: boot a newer kernel",
        ),
        older if older < KEEPS_STATUSES => check(
            "kernel",
            Level::Note,
            format!("{found}: a container whose shim is killed is ended"),
            "from Linux 6.15 on it runs on",
        ),
        _ => check("kernel", Level::Good, found, ""),
    }
}

fn cgroups(mounts: &str, v1: &str, controllers: impl Fn(&str) -> String) -> Check {
    let of_kind = |kind: &str| {
        mounts.lines().find_map(|line| {
            let (place, rest) = line.split_once(" - ")?;
            (rest.split(' ').next() == Some(kind)).then(|| place.split(' ').nth(4)).flatten()
        })
    };
    let has_v1 = of_kind("cgroup").is_some();
    match of_kind("cgroup2") {
        None if !has_v1 => {
            check("cgroups", Level::Wrong, "none are mounted", "mount -t cgroup2 none /sys/fs/cgroup")
        }
        None => check(
            "cgroups",
            Level::Note,
            "v1",
            "a v2 hierarchy tells more: exec's trees, pressure, OOM kills",
        ),
        Some(root) => {
            let there = controllers(root);
            let on_v1 =
                |name: &str| has_v1 && v1.lines().any(|line| line.split_whitespace().next() == Some(name));
            let lacks: Vec<_> = CONTROLLERS
                .into_iter()
                .filter(|name| !there.split_whitespace().any(|one| one == *name))
                // v1 calls it blkio.
                .filter(|name| !on_v1(if *name == "io" { "blkio" } else { name }))
                .collect();
            let mode = if has_v1 { "v1 controllers beside a v2 hierarchy" } else { "v2" };
            match lacks.as_slice() {
                [] => check("cgroups", Level::Good, mode, ""),
                lacks => check(
                    "cgroups",
                    Level::Wrong,
                    format!("{mode} without the controllers {}", lacks.join(", ")),
                    "see cgroup_disable= and cgroup_no_v1= on the kernel's command line",
                ),
            }
        }
    }
}

fn namespaces() -> Check {
    let lacks: Vec<_> = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .into_iter()
        .filter(|kind| !Path::new("/proc/self/ns").join(kind).exists())
        .collect();
    match lacks.as_slice() {
        [] => check("namespaces", Level::Good, "all kinds", ""),
        ["user"] => {
            check("namespaces", Level::Note, "no user namespaces", "pods with hostUsers: false need them")
        }
        lacks => check(
            "namespaces",
            Level::Wrong,
            format!("this kernel lacks {}", lacks.join(", ")),
            "boot a kernel with CONFIG_NAMESPACES and all of its kinds",
        ),
    }
}

fn file_system(known: &str) -> Check {
    match known.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay") {
        true => check("overlayfs", Level::Good, "there", ""),
        // Where it is a module the first container loads it, if it can.
        false => check(
            "overlayfs",
            Level::Note,
            "not loaded",
            "modprobe overlay, and write it to /etc/modules-load.d",
        ),
    }
}

fn seccomp(is_there: bool) -> Check {
    match is_there {
        true => check("seccomp", Level::Good, "there", ""),
        false => {
            check("seccomp", Level::Wrong, "this kernel has none", "boot a kernel with CONFIG_SECCOMP_FILTER")
        }
    }
}

/// berthd turns them on itself, where it may.
fn switch(name: &'static str, path: &str, key: &str) -> Check {
    match read(path).trim() {
        "1" => check(name, Level::Good, "1", ""),
        other => {
            let found = if other.is_empty() { "it can't be read".to_owned() } else { other.to_owned() };
            let remedy = format!("pods reach nothing beyond the node: sysctl -w {key}=1");
            check(name, Level::Note, found, remedy)
        }
    }
}

fn program(name: &'static str, package: &str) -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A person's PATH may lack them, berthd's has them.
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|path| path.is_file());
    match found {
        Some(path) => check(name, Level::Good, path.display().to_string(), ""),
        None => check(
            name,
            Level::Wrong,
            "not found",
            format!("install {package}: the built-in network needs it"),
        ),
    }
}

/// The programs that the first configuration names, where there is one.
fn plugins(places: &Places) -> Check {
    const NAME: &str = "cni";
    let entries = fs::read_dir(&places.conf_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_configuration = |path: &PathBuf| {
        path.extension().is_some_and(|kind| ["conf", "conflist", "json"].iter().any(|one| kind == *one))
    };
    let Some(first) = entries.filter(is_configuration).min() else {
        let found = format!("no configuration in {}: the built-in bridge serves", places.conf_dir.display());
        return check(NAME, Level::Good, found, "");
    };
    let text = fs::read_to_string(&first).unwrap_or_default();
    let Ok(document) = serde_json::from_str::<serde_json::Value>(&text) else {
        return check(
            NAME,
            Level::Wrong,
            format!("{} is no JSON", first.display()),
            "repair it, or move it away",
        );
    };
    let lacks: Vec<String> = named(&document)
        .into_iter()
        .filter(|program| !places.bin_dirs.iter().any(|dir| dir.join(program).is_file()))
        .collect();
    let dirs: Vec<_> = places.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    match lacks.as_slice() {
        [] => check(NAME, Level::Good, first.display().to_string(), ""),
        lacks => check(
            NAME,
            Level::Wrong,
            format!("{} names {}, not found", first.display(), lacks.join(", ")),
            format!("install these plugins in {}", dirs.join(" or ")),
        ),
    }
}

fn named(configuration: &serde_json::Value) -> Vec<String> {
    let list = configuration["plugins"].as_array().cloned().unwrap_or_else(|| vec![configuration.clone()]);
    let mut programs: Vec<String> = list
        .iter()
        .flat_map(|plugin| [&plugin["type"], &plugin["ipam"]["type"]])
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    programs.sort();
    programs.dedup();
    programs
}

/// A clock that is behind makes every certificate one of the future.
fn clock(now: SystemTime) -> Check {
    let built = std::env::current_exe().and_then(fs::metadata).and_then(|found| found.modified());
    match built {
        Ok(built) if now < built => check(
            "clock",
            Level::Wrong,
            "it is before the time that this program was installed",
            "set it, and keep it set by NTP: registries' certificates are refused until then",
        ),
        Ok(_) | Err(_) => check("clock", Level::Good, "after the time that this program was installed", ""),
    }
}

fn room(name: &'static str, path: &Path) -> Check {
    // Before the first start there is only something above.
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(found) => free(
            name,
            &there.display().to_string(),
            found.f_bavail * found.f_frsize,
            found.f_favail,
            found.f_files,
        ),
        Err(errno) => {
            check(name, Level::Wrong, format!("{}: {errno}", there.display()), "see whether its disk hangs")
        }
    }
}

fn free(name: &'static str, path: &str, bytes: u64, inodes: u64, all_inodes: u64) -> Check {
    let remedy = "make room: `berth image prune --all` removes what no container uses";
    // File systems that make inodes as they need them tell of none.
    if all_inodes > 0 && inodes < LEAST_FREE_INODES {
        return check(name, Level::Wrong, format!("{path} has {inodes} inodes free"), remedy);
    }
    let level = if bytes < LEAST_FREE_BYTES { Level::Wrong } else { Level::Good };
    let remedy = if level == Level::Wrong { remedy } else { "" };
    check(name, level, format!("{path} has {} MiB free", bytes >> 20), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_what_they_can() {
        let rows = [
            ("5.10.0-8-amd64", Level::Wrong),
            ("5.15.0", Level::Note),
            ("6.12.48+deb13-amd64", Level::Note),
            ("6.15.1", Level::Good),
            ("7.0-rc1", Level::Good),
        ];
        for (release, level) in rows {
            assert_eq!(kernel(release).level, level, "{release}");
        }
    }

    #[test]
    fn cgroups_are_told_with_the_controllers_that_are_missing() {
        const V2: &str = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        const V1: &str = "31 20 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let all = |_: &str| "cpuset cpu io memory pids".to_owned();
        assert_eq!(cgroups(V2, "", all).level, Level::Good);
        let few = cgroups(V2, "", |_| "cpu pids".into());
        assert_eq!(
            (few.level, few.found.as_str()),
            (Level::Wrong, "v2 without the controllers cpuset, io, memory")
        );
        let v1 = "#subsys_name\ncpuset 1 1 1\ncpu 1 1 1\nblkio 1 1 1\nmemory 1 1 1\npids 1 1 1\n";
        assert_eq!(cgroups(&format!("{V1}{V2}"), v1, |_| String::new()).level, Level::Good);
        assert_eq!(cgroups(V1, v1, all).level, Level::Note);
        assert_eq!(cgroups("", "", all).level, Level::Wrong);
    }

    #[test]
    fn plugins_that_a_configuration_names_have_to_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let (conf_dir, bin) = (dir.path().join("net.d"), dir.path().join("bin"));
        let places = Places { conf_dir: conf_dir.clone(), bin_dirs: vec![bin.clone()], ..Places::default() };
        assert_eq!(plugins(&places).level, Level::Good);
        fs::create_dir_all(&conf_dir).unwrap();
        fs::create_dir_all(&bin).unwrap();
        let list =
            r#"{"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]}"#;
        fs::write(conf_dir.join("10-a.conflist"), list).unwrap();
        fs::write(bin.join("bridge"), "").unwrap();
        let told = plugins(&places);
        assert!(told.level == Level::Wrong && told.found.contains("names host-local, portmap"), "{told:?}");
        fs::write(conf_dir.join("00-broken.conf"), "{").unwrap();
        assert!(plugins(&places).found.contains("00-broken.conf is no JSON"));
    }

    #[test]
    fn little_room_is_told_with_what_to_do() {
        assert_eq!(free("root", "/", 100 << 20, 5000, 9000).level, Level::Wrong);
        assert_eq!(free("root", "/", 10 << 30, 5, 9000).level, Level::Wrong);
        assert_eq!(free("root", "/", 10 << 30, 0, 0).level, Level::Good);
    }

    #[test]
    fn every_remedy_is_said_where_something_is_wrong() {
        for check in checks(&Places::default()) {
            assert!(check.level != Level::Wrong || !check.remedy.is_empty(), "{check:?}");
            assert!(!check.found.is_empty(), "{check:?}");
        }
    }
}
