//! What a process is given beside its program, as the kernel tells of it from outside: scheduling, limits, capabilities,
//! personality, clocks, names.

use std::{fs, process::Command};

use berth_tests::{
    oci::{Oci, text},
    required, skip,
};
use serde_json::{Value, json};

/// What /proc says of a process; nothing where the kernel has no such file.
fn told(pid: i32, file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

/// A line of /proc/PID/status.
fn status(pid: i32, name: &str) -> String {
    let text = told(pid, "status").expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).trim().to_owned()
}

/// A field of /proc/PID/stat, counted from 1 as in `proc_pid_stat(5)`, behind the name of the program.
fn stat(pid: i32, number: usize) -> i64 {
    let text = told(pid, "stat").expect("it lives");
    let rest = text.rsplit_once(')').expect("it has a name").1;
    rest.split_whitespace().nth(number - 3).expect("a field").parse().expect("a number")
}

/// A mask of capabilities by their numbers.
fn mask(numbers: &[u32]) -> String {
    format!("{:016x}", numbers.iter().fold(0u64, |mask, number| mask | 1 << number))
}

/// Runs a container with this process to its end, and returns what it printed.
fn run(oci: &Oci, config: &Value) -> String {
    oci.write(config);
    oci.ok(&["run", "c1"])
}

#[test]
fn scheduling_is_what_the_spec_says() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
    config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    config["linux"]["personality"] = json!({"domain": "LINUX32"});
    oci.start("c1", &config);
    let pid = oci.pid("c1");
    const SCHED_BATCH: i64 = 3;
    assert_eq!((stat(pid, 41), stat(pid, 19)), (SCHED_BATCH, 7));
    assert_eq!(told(pid, "personality").unwrap().trim(), "00000008");
    if required("scheduling_is_what_the_spec_says", &["ionice"]) {
        let said = Command::new("ionice").args(["-p", &pid.to_string()]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "best-effort: prio 6");
    }
    oci.ok(&["delete", "--force", "c1"]);
    oci.reap("c1");

    // What the kernel refuses is told with its name.
    config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "priority": 5});
    oci.write(&config);
    assert!(oci.refused(&["create", "c1"]).contains("set scheduling"));
}

#[test]
fn a_process_runs_where_its_exec_says() {
    let test = "a_process_runs_where_its_exec_says";
    let allowed = status(std::process::id() as i32, "Cpus_allowed_list");
    let mut ours = allowed.split([',', '-']).map(|cpu| cpu.parse::<u32>().unwrap());
    let (first, Some(last)) = (ours.next().unwrap(), ours.next_back()) else {
        return skip(test, "there is one CPU only");
    };
    let oci = Oci::new();
    oci.start("c1", &oci.config("c1", &["sleep", "1000"]));
    let cpus = |affinity: Value| -> String {
        let document = oci.dir().join("process.json");
        let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["cat", "/proc/self/status"], "execCPUAffinity": affinity});
        fs::write(&document, process.to_string()).unwrap();
        let said = oci.ok(&["exec", "--process", text(&document), "c1"]);
        let line = said.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        line.trim().to_owned()
    };
    assert_eq!(cpus(json!({})), allowed);
    assert_eq!(cpus(json!({"initial": last.to_string()})), last.to_string());
    assert_eq!(cpus(json!({"initial": last.to_string(), "final": first.to_string()})), first.to_string());
}

#[test]
fn memory_comes_from_the_nodes_that_a_policy_names() {
    let test = "memory_comes_from_the_nodes_that_a_policy_names";
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    if told(std::process::id() as i32, "numa_maps").is_none() {
        config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
        oci.write(&config);
        assert!(oci.refused(&["create", "c1"]).contains("memory policy"));
        return skip(test, "this kernel has no memory policies (CONFIG_NUMA)");
    }
    for (policy, said) in [
        (json!({"mode": "MPOL_BIND", "nodes": "0"}), " bind:0 "),
        (
            json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
            " interleave=static:0 ",
        ),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), " prefer:0 "),
    ] {
        config["linux"]["memoryPolicy"] = policy;
        oci.start("c1", &config);
        let maps = told(oci.pid("c1"), "numa_maps").unwrap();
        assert!(maps.lines().all(|line| format!("{line} ").contains(said)), "{said}: {maps}");
        oci.ok(&["delete", "--force", "c1"]);
        oci.reap("c1");
    }
    // Modes that take nodes, and get none, are the kernel's to refuse.
    config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": ""});
    oci.write(&config);
    assert!(oci.refused(&["create", "c1"]).contains("memory policy"));
}

#[test]
fn each_set_of_capabilities_is_its_own() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_CHOWN", "CAP_KILL"],
        "ambient": ["CAP_KILL"],
    });
    // Root's would be those of the bounding set after execve(2).
    config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "umask": 0o027});
    oci.start("c1", &config);
    let pid = oci.pid("c1");
    let sets = ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"].map(|set| status(pid, set));
    // capabilities(7): what was not ambient is not permitted after execve(2).
    let ambient = mask(&[5]);
    assert_eq!(sets, [mask(&[0, 5, 7, 10]), ambient.clone(), ambient.clone(), mask(&[0, 5]), ambient]);
    assert_eq!((status(pid, "Umask"), status(pid, "NoNewPrivs")), ("0027".into(), "1".into()));
}

#[test]
fn limits_of_a_process_are_set_and_a_score_too() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    config["process"]["oomScoreAdj"] = json!(555);
    oci.start("c1", &config);
    let pid = oci.pid("c1");
    let limits = told(pid, "limits").unwrap();
    let words = |name: &str| -> Vec<String> {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect()
    };
    assert_eq!(words("Max open files"), ["123", "456"]);
    assert_eq!(words("Max core file size"), ["0", "0"]);
    assert_eq!(told(pid, "oom_score_adj").unwrap().trim(), "555");
}

#[test]
fn a_score_that_may_not_be_given_is_as_low_as_may_be_and_told() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["cat", "/proc/self/oom_score_adj"]);
    config["process"]["oomScoreAdj"] = json!(-999);
    oci.write(&config);
    let said = oci.run(&["run", "c1"]);
    assert_eq!(said.code, 0, "{said:?}");
    const SYS_RESOURCE: u32 = 24;
    let held = u64::from_str_radix(&status(std::process::id() as i32, "CapEff"), 16).unwrap();
    if held >> SYS_RESOURCE & 1 == 1 {
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("-999\n", ""));
    } else {
        let own = told(std::process::id() as i32, "oom_score_adj").unwrap();
        assert_eq!(said.stdout, own);
        assert!(said.stderr.contains("-999") && said.stderr.contains("CAP_SYS_RESOURCE"), "{}", said.stderr);
    }
}

#[test]
fn names_and_kernel_parameters_are_the_containers_own() {
    let oci = Oci::new();
    let mut config = oci.config(
        "c1",
        &[
            "cat",
            "/proc/sys/kernel/hostname",
            "/proc/sys/kernel/domainname",
            "/proc/sys/kernel/msgmax",
            "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        ],
    );
    config["domainname"] = json!("example.nis");
    config["linux"]["sysctl"] = json!({"kernel.msgmax": "4242", "net.ipv4.ip_unprivileged_port_start": "42"});
    let before = fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
    assert_eq!(run(&oci, &config), "box\nexample.nis\n4242\n42\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(), before);
}

#[test]
fn clocks_are_moved_in_a_time_namespace_of_its_own() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["cat", "/proc/uptime"]);
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    config["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 7, "nanosecs": 5}});
    if !fs::exists("/proc/self/ns/time").unwrap() {
        oci.write(&config);
        assert!(oci.refused(&["create", "c1"]).contains("time"));
        return skip("clocks_are_moved_in_a_time_namespace_of_its_own", "this kernel has no time namespaces");
    }
    let uptime = run(&oci, &config);
    assert!(uptime.split('.').next().unwrap().parse::<u64>().unwrap() >= 1_000_000, "{uptime}");
    config["process"]["args"] = json!(["sleep", "1000"]);
    oci.start("c1", &config);
    let offsets = told(oci.pid("c1"), "timens_offsets").unwrap();
    let words: Vec<Vec<&str>> = offsets.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words, [vec!["monotonic", "7", "5"], vec!["boottime", "1000000", "0"]]);
    // Who joins it later has its clocks, and may not move them.
    let path = format!("/proc/{}/ns/time", oci.pid("c1"));
    let mut joined = oci.config("c2", &["cat", "/proc/uptime"]);
    joined["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time", "path": path}));
    oci.write(&joined);
    let uptime = oci.ok(&["run", "c2"]);
    assert!(uptime.split('.').next().unwrap().parse::<u64>().unwrap() >= 1_000_000, "{uptime}");
}
