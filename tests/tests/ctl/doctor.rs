//! `berth doctor`: each kind of orphan, made for real, is told and with --fix gone; what lives is left alone.

use std::{fs, path::PathBuf, process::Command};

use berth_tests::{Daemon, Finished, asked, eventually, web};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use serde_json::Value;

use crate::IMAGE;

fn report(daemon: &Daemon, flags: &[&str]) -> (Finished, Value) {
    let said = daemon.berth(&[&["doctor", "-o", "json"], flags].concat());
    let report = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    (said, report)
}

fn findings(report: &Value) -> Vec<Value> {
    report["findings"].as_array().cloned().unwrap_or_default()
}

/// A container of a person's and a pod of a kubelet's, which nothing below may touch.
struct Living {
    daemon: Daemon,
    container: String,
    port: u16,
}

impl Living {
    fn new() -> Self {
        let daemon = Daemon::with_fixture();
        let pod = daemon.plain_pod("living");
        let container = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
        let port = web::free_port();
        let ports = format!("127.0.0.1:{port}:80");
        daemon.berth_ok(&["run", "-d", "--name", "alive", "-p", &ports, IMAGE, "sleep", "inf"]);
        let (_, report) = report(&daemon, &[]);
        assert_eq!(findings(&report), Vec::<Value>::new());
        Self { daemon, container, port }
    }

    /// One orphan is told and left alone, then told and removed; afterwards there is none.
    fn mends(&self, kind: &str, object: &str, is_there: impl Fn() -> bool) {
        let daemon = &self.daemon;
        assert!(is_there(), "{kind} {object} was made");
        for (flags, outcome) in [(&[][..], None), (&["--fix"], Some("FIXED"))] {
            let (said, report) = report(daemon, flags);
            let found = findings(&report);
            assert_eq!(found.len(), 1, "{kind}: {report:#}");
            assert_eq!(found[0]["kind"], kind, "{report:#}");
            assert!(found[0]["object"].as_str().unwrap().contains(object), "{report:#}");
            assert!(
                !found[0]["why"].as_str().unwrap().is_empty()
                    && !found[0]["remedy"].as_str().unwrap().is_empty()
            );
            // The first value of an enum is left out.
            assert_eq!(
                found[0]["outcome"].as_str().filter(|said| *said != "MENDABLE"),
                outcome,
                "{report:#}"
            );
            match outcome {
                None => assert!(said.code == 1 && is_there(), "{said:?}"),
                Some(_) => eventually("it to be gone", || (!is_there()).then_some(())),
            }
        }
        assert_eq!(findings(&report(daemon, &[]).1), Vec::<Value>::new(), "{kind}");
        self.lives();
    }

    fn lives(&self) {
        assert_eq!(self.daemon.exec_ok(&self.container, &["echo", "on"]), "on\n");
        assert_eq!(self.daemon.berth_ok(&["exec", "alive", "echo", "on"]), "on");
    }
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn cgroups(daemon: &Daemon, id: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots = table.lines().filter_map(|line| {
        let (place, rest) = line.split_once(" - ")?;
        rest.starts_with("cgroup").then(|| PathBuf::from(place.split(' ').nth(4).unwrap()))
    });
    let parents = roots.map(|root| root.join(daemon.cgroup_parent().trim_start_matches('/')));
    parents.filter(|parent| parent.is_dir()).map(|parent| parent.join(id)).collect()
}

fn run(program: &str, words: &[&str]) -> String {
    let said = Command::new(program).args(words).output().unwrap();
    assert!(said.status.success(), "{program} {words:?}: {said:?}");
    String::from_utf8(said.stdout).unwrap()
}

#[test]
fn each_orphan_is_told_and_mended_and_what_lives_is_left_alone() {
    let living = Living::new();
    let daemon = &living.daemon;

    // A cgroup in which nothing runs.
    let groups = cgroups(daemon, &id('1'));
    groups.iter().for_each(|group| fs::create_dir(group).unwrap());
    living.mends("cgroup", &id('1'), || groups.iter().any(|group| group.exists()));

    // The state of a pod: files, a pinned namespace, something mounted where nothing should be.
    let pod = daemon.state().join("pods").join(id('2'));
    fs::create_dir_all(pod.join("ns")).unwrap();
    fs::create_dir(pod.join("odd")).unwrap();
    fs::write(pod.join("ns/net"), "").unwrap();
    fs::write(pod.join("hosts"), "").unwrap();
    mount_bind("/proc/self/ns/net", pod.join("ns/net")).unwrap();
    mount("none", pod.join("odd"), "tmpfs", MountFlags::empty(), None).unwrap();
    living.mends("directory", &id('2'), || pod.exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&id('2')), "what was mounted there is let go");

    // The state of a container.
    let container = daemon.state().join("containers").join(id('3'));
    fs::create_dir_all(&container).unwrap();
    fs::write(container.join("plan"), "torn").unwrap();
    living.mends("directory", &id('3'), || container.exists());

    // A host link of a pod on the bridge.
    let link = format!("bth{}", &id('4')[..11]);
    let peer = link.replace("bth", "btp");
    run("ip", &["link", "add", &link, "type", "veth", "peer", "name", &peer]);
    run("ip", &["link", "set", &link, "master", daemon.bridge()]);
    let links = PathBuf::from("/sys/class/net").join(&link);
    living.mends("link", &link, || links.exists());

    // A rule that leads to nobody.
    let rule = "tcp dport 9 dnat to 192.0.2.1:9";
    let rules = || run("nft", &["-n", "list", "table", "ip", &daemon.table()]);
    run(
        "nft",
        &[&["add", "rule", "ip", &daemon.table(), "ports"], &rule.split(' ').collect::<Vec<_>>()[..]]
            .concat(),
    );
    living.mends("rules", &daemon.table(), || rules().contains("192.0.2.1"));
    // And one that is missing.
    let before = rules();
    run("nft", &["flush", "chain", "ip", &daemon.table(), "ports"]);
    living.mends("rules", &daemon.table(), || !rules().contains(&living.port.to_string()));
    assert_eq!(rules(), before);

    // A story of nobody's.
    let story = daemon.state().join("stories").join(id('7'));
    fs::write(&story, "once upon a time").unwrap();
    living.mends("story", &id('7'), || story.exists());

    // Logs, and a directory in which no record was ever written, that are older than what is being made.
    for (kind, directory) in [("logs", "logs"), ("record", "containers")] {
        let left = daemon.root().join(directory).join(id('5'));
        fs::create_dir_all(&left).unwrap();
        let (said, young) = report(daemon, &["--fix"]);
        assert!(findings(&young).is_empty() && left.exists(), "{said:?}");
        run("touch", &["-d", "1 hour ago", left.to_str().unwrap()]);
        living.mends(kind, &id('5'), || left.exists());
    }
}

#[test]
fn a_lease_of_nobody_is_given_back() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("was");
    let lease = daemon.root().join("network/leases").join(&pod.id);
    assert!(lease.exists());
    // Its record is taken away under the daemon: the next one knows nothing of it.
    daemon.kill9();
    let record = daemon.root().join("pods").join(&pod.id);
    let aside = daemon.dir().join("record");
    fs::rename(&record, &aside).unwrap();
    fs::create_dir(&record).unwrap();
    fs::write(record.join("record"), [0xff]).unwrap();
    daemon.up();
    let (said, told) = report(&daemon, &["--fix"]);
    let found = findings(&told);
    // A record that can't be read is kept, and so is what it names.
    assert_eq!((said.code, found.len()), (1, 1), "{told:#}");
    assert_eq!((&found[0]["kind"], &found[0]["outcome"]), (&"record".into(), &"TOLD".into()), "{told:#}");
    assert!(lease.exists());
    fs::remove_dir_all(&record).unwrap();
    let (_, told) = report(&daemon, &["--fix"]);
    let found = findings(&told);
    assert_eq!(
        (found.len(), &found[0]["kind"], &found[0]["outcome"]),
        (1, &"network".into(), &"FIXED".into()),
        "{told:#}"
    );
    eventually("the address to be free", || (!lease.exists()).then_some(()));
    assert!(!daemon.state().join("pods").join(&pod.id).exists(), "its namespaces went with it");
    assert!(findings(&report(&daemon, &[]).1).is_empty());
}

#[test]
fn what_runs_in_nobodys_cgroup_is_told_and_not_killed() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "first", IMAGE, "sleep", "inf"]);
    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    let groups = cgroups(&daemon, &id('6'));
    for group in &groups {
        fs::create_dir(group).unwrap();
        // A v1 cpuset takes nobody before it is set up.
        fs::write(group.join("cgroup.procs"), sleeper.id().to_string()).ok();
    }
    let (said, told) = report(&daemon, &["--fix"]);
    let found = findings(&told);
    assert_eq!((said.code, found.len()), (1, 1), "{told:#}");
    assert_eq!((&found[0]["kind"], &found[0]["outcome"]), (&"cgroup".into(), &"TOLD".into()), "{told:#}");
    assert!(sleeper.try_wait().unwrap().is_none(), "it lives");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    eventually("an empty group to be removed", || {
        findings(&report(&daemon, &["--fix"]).1).is_empty().then_some(())
    });
    assert!(groups.iter().all(|group| !group.exists()));
}

#[test]
fn a_namespace_that_is_not_pinned_any_more_is_told() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("loose");
    let pin = daemon.state().join("pods").join(&pod.id).join("ns/ipc");
    unmount(&pin, UnmountFlags::DETACH).unwrap();
    let (said, told) = report(&daemon, &["--fix"]);
    let found = findings(&told);
    assert_eq!((said.code, found.len(), &found[0]["kind"]), (1, 1, &"namespace".into()), "{told:#}");
}

#[test]
fn the_host_is_looked_at_without_a_daemon_too() {
    let mut daemon = Daemon::start();
    let with = report(&daemon, &[]).1;
    daemon.stop();
    let (said, without) = report(&daemon, &[]);
    assert_eq!(said.code, 1);
    assert!(without["unreachable"].as_str().unwrap().contains("berth.sock"), "{without:#}");
    let names = |report: &Value| -> Vec<String> {
        report["host"]
            .as_array()
            .unwrap()
            .iter()
            .map(|check| check["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&with), names(&without));
    for name in ["kernel", "cgroups", "overlayfs", "ip_forward", "nft", "cni", "clock", "root", "state"] {
        assert!(names(&with).iter().any(|one| one == name), "{name}: {with:#}");
    }
    let people = daemon.berth(&["doctor"]).stdout;
    assert!(people.starts_with("HOST\n") && people.contains("not looked at: "), "{people}");
    daemon.up();
}
