//! A real kubelet over each runtime in turn: a node of a hundred pods, each with an exec probe a second, and what all of it
//! takes together: the kubelet, the daemon, monitors, OCI runtimes, what is probed.
//!
//! ```text
//!   <temporary>/manifests/*.json    static pods: nobody else is asked, no apiserver and no scheduler
//!              /var-log, /var-lib   bound over the machine's, in a mount namespace of the kubelet's
//!              /kubelet.json, root, logs, kubelet.log
//! ```
//! It has a network namespace of its own, so that no port and no table of packet filters is the machine's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Pid;
use serde_json::json;
use tempfile::TempDir;

use super::{
    Group,
    client::words,
    clock::monotonic_nanos,
    contender::{Contender, OURS, is_ours},
    figures::Figures,
};
use crate::{interrupt, leftovers, meter, process};

const PODS: usize = 100;
const CLIENTS: usize = 8;
/// In seconds.
const FIRST_WITHIN: usize = 30;
const ALL_WITHIN: usize = 180;
/// After the last pod runs: what starting it has left to do is done by then.
const SETTLED: Duration = Duration::from_secs(10);
const PROBED: Duration = Duration::from_secs(30);
const ROW: &str = "a kubelet's probes: ";
const READ_ONLY_PORT: u16 = 10255;
/// What a kubelet sets as it wants it, of the whole machine.
const TUNABLES: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// $1: the place, $2: the kubelet, then its arguments.
const WORLD: &str = r#"set -e
place=$1 kubelet=$2
shift 2
mount --bind "$place/var-log" /var/log
mount --bind "$place/var-lib" /var/lib
ip link set lo up
ip link add node0 type bridge
ip addr add 192.168.77.1/24 dev node0
ip link set node0 up
ip route add default via 192.168.77.2 dev node0
exec "$kubelet" "$@"
"#;

/// One after the other; what Berth is on CNI's plugins says nothing more here.
pub fn measure(
    group: &Group,
    contenders: &[Contender],
    programs: &Path,
    under: &Path,
    figures: &mut Figures,
) -> Result<()> {
    let asked = contenders.iter().filter(|contender| contender.name == OURS || !is_ours(&contender.name));
    let mut last = Duration::ZERO;
    for contender in asked {
        interrupt::check()?;
        if !group.until.has_room_for(last) {
            figures.miss(format!("no time for a kubelet over {}", contender.name));
            continue;
        }
        let began = Instant::now();
        if let Err(error) = probed(group, contender, programs, under, figures) {
            figures.fail("a kubelet's probes", &contender.name, &format!("{error:#}"));
        }
        // The kubelet is gone, and nobody makes them anew.
        group.client.measure(contender, &words("down", &[CLIENTS]), "", &mut Figures::default())?;
        last = began.elapsed();
    }
    Ok(())
}

fn probed(
    group: &Group,
    contender: &Contender,
    programs: &Path,
    under: &Path,
    figures: &mut Figures,
) -> Result<()> {
    let node = Node::place(contender, programs, under, &group.client.image)?;
    let began = monotonic_nanos();
    let kubelet = node.start(contender)?;
    let running = |pods: usize, within: usize| {
        let running = group.client.sample(contender, &words("await", &[pods, within]));
        // Of a long story the last word.
        running
            .map_err(|_| anyhow!("not {pods} pods within {within} s; the kubelet's log ends: {}", node.log()))
    };
    // One that can't run any is not waited for.
    running(1, FIRST_WITHIN)?;
    let running = running(PODS, ALL_WITHIN)?;
    interrupt::pause(SETTLED)?;
    let before = (kubelet.probes()?, kubelet.cpu_ms()?, contender.cpu_ms());
    let since = Instant::now();
    interrupt::pause(PROBED)?;
    let after = (kubelet.probes()?, kubelet.cpu_ms()?, contender.cpu_ms());
    let seconds = since.elapsed().as_secs_f64();
    let Probes { good, bad } = after.0.since(before.0);
    // Fewer would be cheaper.
    if good < 0.9 * seconds * PODS as f64 {
        bail!(
            "{good} probes of {PODS} pods succeeded within {seconds:.0} s, and {bad} did not; the kubelet's log ends: {}",
            node.log()
        );
    }
    let (kubelets, all) = (after.1 - before.1, after.2 - before.2);
    let mut add = |what: &str, unit: &str, value: f64| {
        figures.add(&format!("{ROW}{what}"), &contender.name, unit, value);
    };
    add("all pods running", "s", (running - began) / 1e9);
    add("CPU", "%", all / (seconds * 10.0));
    add("CPU but the kubelet's", "%", (all - kubelets) / (seconds * 10.0));
    add("CPU by their number", "ms", all / (good + bad));
    add("failed", "probes", bad);
    Ok(())
}

/// Where a kubelet is to be, and how the machine was before it.
struct Node {
    programs: PathBuf,
    directory: TempDir,
    tunables: Vec<(PathBuf, String)>,
}

impl Node {
    fn place(contender: &Contender, programs: &Path, under: &Path, image: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("k-").tempdir_in(under);
        let directory = directory.context("make a temporary directory")?;
        let tunables = TUNABLES.map(|name| Path::new("/proc/sys").join(name)).into_iter();
        let tunables = tunables.filter_map(|path| fs::read_to_string(&path).ok().map(|value| (path, value)));
        let node = Self { programs: programs.to_path_buf(), tunables: tunables.collect(), directory };
        for name in ["manifests", "var-log", "var-lib", "root", "logs", "plugins"] {
            fs::create_dir(node.path(name)).with_context(|| format!("make {name}"))?;
        }
        for number in 0..PODS {
            let name = format!("probed-{number}");
            let file = node.path("manifests").join(format!("{name}.json"));
            fs::write(&file, pod(&name, image).to_string()).context("write a manifest")?;
        }
        fs::write(node.path("kubelet.json"), node.configuration(contender).to_string())
            .context("write the kubelet's configuration")?;
        make_cgroups(&contender.pods())?;
        Ok(node)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configuration(&self, contender: &Contender) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": contender.address(),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": contender.pods(),
            "failCgroupV1": false,
            "failSwapOn": false,
            "staticPodPath": self.path("manifests"),
            "podLogsDir": self.path("logs"),
            "volumePluginDir": self.path("plugins"),
            "registerNode": false,
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "readOnlyPort": READ_ONLY_PORT,
            "clusterDNS": [],
            "makeIPTablesUtilChains": false,
            // The machine's disk and memory are not what is measured.
            "evictionHard": {"memory.available": "10Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            // Lower takes a capability that may be missing.
            "oomScoreAdj": 0,
        })
    }

    fn start(&self, contender: &Contender) -> Result<Kubelet> {
        let log = fs::File::create(self.path("kubelet.log")).context("make the kubelet's log")?;
        // In the runtime's own cgroup: what both take is counted together.
        let child = meter::command(contender.cgroup(), Path::new("unshare"))
            .args(["--mount", "--net", "--propagation", "slave", "sh", "-c", WORLD, "sh"])
            .arg(self.directory.path())
            .arg(self.programs.join("kubelet"))
            .arg("--config")
            .arg(self.path("kubelet.json"))
            .arg("--root-dir")
            .arg(self.path("root"))
            .args(["--hostname-override", "node", "--node-ip", "192.168.77.1"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .context("start a kubelet")?;
        Ok(Kubelet { child, kubectl: self.programs.join("kubectl") })
    }

    /// The last line of its log that tells of an error, the first part of it.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.path("kubelet.log")).unwrap_or_default();
        let last = log.lines().rev().find(|line| line.starts_with('E')).unwrap_or_default();
        last.chars().take(400).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for (path, value) in &self.tunables {
            if let Err(error) = fs::write(path, value) {
                eprintln!("xtask: give {} its value back: {error}", path.display());
            }
        }
    }
}

/// A pod whose container is idle but for its probe.
fn pod(name: &str, image: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "first", "image": image, "imagePullPolicy": "Never",
                "command": ["/bin/sleep", "100000"],
                "livenessProbe": {
                    "exec": {"command": ["/bin/true"]}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 100,
                },
            }],
        },
    })
}

/// In every hierarchy, with what its children can't do without: v1's cpuset takes no process without processors.
fn make_cgroups(parent: &str) -> Result<()> {
    for root in leftovers::cgroup_mounts() {
        let mut directory = root.clone();
        for part in parent.trim_start_matches('/').split('/') {
            directory.push(part);
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
            for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|_| root.join("tasks").exists()) {
                let Ok(all) = fs::read_to_string(root.join(file)) else { continue };
                fs::write(directory.join(file), all.trim())
                    .with_context(|| format!("write {file} of {}", directory.display()))?;
            }
        }
    }
    Ok(())
}

/// Killed when it is dropped: nothing of it needs an orderly end.
struct Kubelet {
    child: Child,
    kubectl: PathBuf,
}

/// How many there were, by how they came out.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Probes {
    good: f64,
    bad: f64,
}

impl Probes {
    fn since(self, before: Self) -> Self {
        Self { good: self.good - before.good, bad: self.bad - before.bad }
    }

    /// Of the kubelet's `/metrics/probes`.
    fn read(metrics: &str) -> Self {
        let lines = metrics.lines().filter(|line| line.starts_with("prober_probe_total{"));
        let counted = lines.filter_map(|line| {
            let (labels, count) = line.rsplit_once(' ')?;
            Some((labels.contains("result=\"successful\""), count.parse::<f64>().ok()?))
        });
        counted.fold(Self::default(), |sum, (good, count)| match good {
            true => Self { good: sum.good + count, ..sum },
            false => Self { bad: sum.bad + count, ..sum },
        })
    }
}

impl Kubelet {
    fn probes(&self) -> Result<Probes> {
        let mut ask = Command::new("nsenter");
        ask.arg("--target").arg(self.child.id().to_string()).arg("--net").arg(&self.kubectl);
        ask.args([
            "--server",
            &format!("http://127.0.0.1:{READ_ONLY_PORT}"),
            "get",
            "--raw",
            "/metrics/probes",
        ]);
        Ok(Probes::read(&process::output(&mut ask)?))
    }

    /// Processor time of its process alone.
    fn cpu_ms(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", Pid::from_child(&self.child).as_raw_nonzero());
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let ticks = ticks(&stat).with_context(|| format!("no times in {path}"))?;
        Ok(ticks as f64 * 1000.0 / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // Ended already is as well.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// utime and stime of proc_pid_stat(5), behind a name that may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_counted_by_how_they_came_out() {
        let metrics = "# TYPE prober_probe_total counter\n\
            prober_probe_total{container=\"first\",pod=\"a\",probe_type=\"Liveness\",result=\"successful\"} 30\n\
            prober_probe_total{container=\"first\",pod=\"b\",probe_type=\"Liveness\",result=\"successful\"} 12\n\
            prober_probe_total{container=\"first\",pod=\"b\",probe_type=\"Liveness\",result=\"failed\"} 2\n\
            prober_probe_duration_seconds_count{pod=\"a\"} 99\n";
        let read = Probes::read(metrics);
        assert_eq!(read, Probes { good: 42.0, bad: 2.0 });
        assert_eq!(read.since(Probes { good: 40.0, bad: 2.0 }), Probes { good: 2.0, bad: 0.0 });
    }

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 0 0 20 0 9 0 100";
        assert_eq!(ticks(stat), Some(175));
        assert_eq!(ticks("7 (a) S 1"), None);
    }
}
