//! Death at every named point of the code: what is there afterwards can be looked at and removed, the retry works, and
//! nothing is left. The points are found in the sources, so that a new one is tested the day it is written.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_cri::{berth, v1 as cri};
use berth_tests::{Answer, Daemon, asked, eventually, images, skip};
use nix::sys::signal::{Signal, kill};

/// The names in calls of `fault::point`.
fn points(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            points(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let calls = text.split("fault::point(\"").skip(1);
            found.extend(calls.filter_map(|rest| rest.split_once('"').map(|(name, _)| name.to_owned())));
        }
    }
}

/// A person's network, a container in it, and both removed. What an earlier try left is removed first.
fn network(daemon: &Daemon) -> Answer<()> {
    let name = || "fault".to_owned();
    let list = berth::ListRequest { all: true, all_clients: false };
    for left in daemon.call(daemon.containers().list(list))?.containers {
        let remove = berth::RemoveRequest { container: left.id, force: true };
        daemon.call(daemon.containers().remove(remove))?;
    }
    match daemon.call(daemon.networks().remove(berth::RemoveNetworkRequest { network: name() })) {
        Err(status) if status.code() != tonic::Code::NotFound => return Err(status),
        Ok(_) | Err(_) => {}
    }
    let spec = berth::NetworkSpec { name: name(), ..Default::default() };
    daemon.call(daemon.networks().create(berth::CreateNetworkRequest { spec: Some(spec) }))?;
    let spec = berth::ContainerSpec {
        image: images::FIXTURE.into(),
        network: name(),
        command: vec!["true".into()],
        ..Default::default()
    };
    let made =
        daemon.call(daemon.containers().create(berth::CreateRequest { spec: Some(spec), start: true }))?;
    let remove = berth::RemoveRequest { container: made.id, force: true };
    daemon.call(daemon.containers().remove(remove))?;
    daemon.call(daemon.networks().remove(berth::RemoveNetworkRequest { network: name() }))?;
    Ok(())
}

/// All that a kubelet and a person do with a pod and a container, as far as it goes.
pub fn life(daemon: &Daemon) -> Answer<()> {
    let pod = daemon.run_pod(berth_tests::pod("fault"))?;
    let id = daemon.launch(&pod, &asked("c", &["trap", "--exit", "3"]))?;
    daemon.stop_container(&id, 10)?;
    daemon.remove_container(&id)?;
    daemon.stop_pod(&pod.id)?;
    daemon.remove_pod(&pod.id)?;
    Ok(())
}

fn everything_goes(daemon: &Daemon, point: &str) {
    daemon.remove_all().unwrap_or_else(|left| panic!("{point}: {left}"));
    for container in daemon.list_containers(cri::ContainerFilter::default()) {
        daemon.status(&container.id).unwrap();
        daemon.stop_container(&container.id, 0).unwrap_or_else(|status| panic!("{point}: {status}"));
        daemon.remove_container(&container.id).unwrap_or_else(|status| panic!("{point}: {status}"));
    }
    for pod in daemon.list_pods(cri::PodSandboxFilter::default()) {
        daemon.remove_pod(&pod.id).unwrap_or_else(|status| panic!("{point}: {status}"));
    }
    eventually(&format!("nothing to be left after {point}"), || {
        daemon.left_behind().is_empty().then_some(())
    });
}

/// The points that are wanted, each for a berthd that dies, or whose shim does, at the first time it comes there.
pub fn each(test: &str, wanted: fn(&str) -> bool, check: impl Fn(&mut Daemon, &str)) {
    each_by_itself(test, wanted, |daemon, point, mark| {
        daemon.stop();
        daemon.up_to(point, mark);
        check(daemon, point);
    });
}

/// The same where the check sees to the death itself.
pub fn each_by_itself(test: &str, wanted: fn(&str) -> bool, check: impl Fn(&mut Daemon, &str, &Path)) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for part in ["runtime/src", "shim/src"] {
        points(&root.join(part), &mut found);
    }
    if found.is_empty() {
        return skip(test, "the sources are not here");
    }
    let mut names = found.clone();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), found.len(), "two points have one name: {found:?}");
    let mut daemon = Daemon::with_fixture();
    for point in names.iter().filter(|name| wanted(name)) {
        let mark = daemon.dir().join("mark");
        let before = daemon.log().len();
        check(&mut daemon, point, &mark);
        assert!(mark.is_file(), "{point} was not reached");
        fs::remove_file(mark).unwrap();
        everything_goes(&daemon, point);
        told_once(&daemon.log()[before..], point);
    }
}

/// No warning and no error of a log is there twice, of the same thing with the same cause.
fn told_once(log: &str, point: &str) {
    let complaints = log.lines().filter_map(|line| line.split_once(' ').map(|(_, rest)| rest.trim_start()));
    let mut seen = std::collections::HashSet::new();
    let again = complaints
        .filter(|text| text.starts_with("WARN") || text.starts_with("ERROR"))
        .find(|text| !seen.insert(*text));
    assert_eq!(again, None, "{point}: told twice in\n{log}");
}

#[test]
fn berthd_may_die_at_every_point() {
    let of_daemon =
        |name: &str| !["shim.", "start.", "adopt.", "output."].iter().any(|room| name.starts_with(room));
    each("berthd_may_die_at_every_point", of_daemon, |daemon, point| {
        // The call under way gets no answer, those after it nobody.
        life(daemon).and_then(|()| network(daemon)).ok();
        eventually(&format!("berthd to die at {point}"), || daemon.has_died().then_some(()));
        daemon.up();
        // What is there is told, and the retry of the whole works beside it.
        let again = life(daemon).and_then(|()| network(daemon));
        again.unwrap_or_else(|status| panic!("the retry after {point}: {status}"));
    });
}

#[test]
fn a_shim_may_die_at_every_point() {
    let of_shim = |name: &str| name.starts_with("shim.");
    each("a_shim_may_die_at_every_point", of_shim, |daemon, point| {
        let outcome = life(daemon);
        assert!(!daemon.has_died(), "{point}: berthd died");
        let pod =
            daemon.run_pod(berth_tests::pod("fault")).unwrap_or_else(|status| panic!("{point}: {status}"));
        let next = asked("next", &["true"]);
        let (status, _) = daemon.run_to_end(&pod, &next).unwrap_or_else(|status| panic!("{point}: {status}"));
        assert_eq!(status.exit_code, 0, "{point}: {outcome:?}");
        // Every end is told.
        for container in daemon.list_containers(cri::ContainerFilter::default()) {
            daemon.exited(&container.id);
        }
    });
}

#[test]
fn a_persons_container_comes_whole_out_of_a_death_of_berthd() {
    let mut daemon = Daemon::with_fixture();
    let mark = daemon.dir().join("mark");
    for point in ["container.born", "container.started", "container.released"] {
        daemon.stop();
        daemon.up_to(point, &mark);
        let run = ["run", "-d", "--name", "fault", images::FIXTURE, "sleep", "inf"];
        daemon.berth(&run);
        daemon.berth(&["rm", "-f", "fault"]);
        eventually(&format!("berthd to die at {point}"), || daemon.has_died().then_some(()));
        fs::remove_file(&mark).unwrap();
        daemon.up();
        if daemon.berth(&["inspect", "fault"]).code == 0 {
            daemon.berth_ok(&["rm", "-f", "fault"]);
        }
        daemon.berth_ok(&run);
        daemon.berth_ok(&["rm", "-f", "fault"]);
    }
}

/// What a start finds: a container that runs, one whose shim is dead, one that was being made.
struct Scene {
    runs: String,
    lost: String,
    begun_in: String,
}

fn scene(daemon: &mut Daemon, mark: &Path) -> Scene {
    let pod = daemon.plain_pod("scene");
    let [runs, lost] =
        ["runs", "lost"].map(|name| daemon.launch(&pod, &asked(name, &["sleep", "inf"])).unwrap());
    let shim = crate::shim::shim_of(crate::shim::pid_of(daemon, &lost));
    daemon.stop();
    daemon.up_to("container.grouped", mark);
    let other = daemon.plain_pod("begun");
    daemon.create(&other, &asked("begun", &["sleep", "inf"])).unwrap_err();
    eventually("berthd to die", || daemon.has_died().then_some(()));
    fs::remove_file(mark).unwrap();
    kill(shim, Signal::SIGKILL).unwrap();
    Scene { runs, lost, begun_in: other.id }
}

#[test]
fn berthd_may_die_at_every_point_of_its_start() {
    let of_start = |name: &str| name.starts_with("start.");
    let keeps = crate::kernel_keeps();
    each_by_itself("berthd_may_die_at_every_point_of_its_start", of_start, |daemon, point, mark| {
        if point == "start.adopted" && !keeps {
            // No shim takes over there.
            fs::write(mark, "").unwrap();
            return;
        }
        let scene = scene(daemon, mark);
        daemon.dies_at(point, mark);
        daemon.up();
        assert_eq!(daemon.exec_ok(&scene.runs, &["echo", "on"]), "on\n", "{point}");
        if keeps {
            assert_eq!(daemon.exec_ok(&scene.lost, &["echo", "on"]), "on\n", "{point}");
        } else {
            assert_eq!(daemon.exited(&scene.lost).exit_code, 137, "{point}");
        }
        let all = daemon.list_containers(cri::ContainerFilter::default());
        assert!(all.iter().all(|found| found.pod_sandbox_id != scene.begun_in), "{point}: {all:?}");
        let again = life(daemon).and_then(|()| network(daemon));
        again.unwrap_or_else(|status| panic!("after {point}: {status}"));
    });
}

#[test]
fn a_shim_that_takes_over_may_die_at_every_point() {
    const TEST: &str = "a_shim_that_takes_over_may_die_at_every_point";
    if !crate::kernel_keeps() {
        return skip(TEST, "the kernel keeps no exit statuses (before Linux 6.15)");
    }
    let of_adoption = |name: &str| name.starts_with("adopt.");
    each(TEST, of_adoption, |daemon, point| {
        let pod = daemon.plain_pod("fault");
        let id = daemon.launch(&pod, &asked("c", &["trap", "--exit", "3"])).unwrap();
        crate::shim::kill_shim_of(crate::shim::pid_of(daemon, &id));
        let mark = daemon.dir().join("mark");
        eventually(&format!("the shim to die at {point}"), || mark.is_file().then_some(()));
        // It runs on under a third, or its end is told.
        let status = eventually(&format!("the container to be settled after {point}"), || {
            let status = daemon.status(&id).unwrap();
            let over = status.state() == cri::ContainerState::ContainerExited;
            (over || daemon.exec(&id, &["true"], 5).is_ok()).then_some(status)
        });
        if status.state() == cri::ContainerState::ContainerExited {
            assert!(status.exit_code == 137 && status.message.contains("its shim was killed"), "{status:?}");
        }
        assert_eq!(daemon.run_to_end(&pod, &asked("next", &["true"])).unwrap().0.exit_code, 0, "{point}");
    });
}
