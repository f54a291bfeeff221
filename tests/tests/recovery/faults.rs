//! Death at every named point of the code: what is there afterwards can be looked at and removed, the retry works, and
//! nothing is left. The points are found in the sources, so that a new one is tested the day it is written.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_cri::{berth, v1 as cri};
use berth_tests::{Answer, Daemon, asked, eventually, images, skip};

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
fn life(daemon: &Daemon) -> Answer<()> {
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

/// Points of this half; two tests share the work, and the machine's cores.
fn each(test: &str, wanted: fn(&str) -> bool, check: impl Fn(&mut Daemon, &str)) {
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
        daemon.stop();
        daemon.up_to(point, &mark);
        check(&mut daemon, point);
        assert!(mark.is_file(), "{point} was not reached");
        fs::remove_file(mark).unwrap();
        everything_goes(&daemon, point);
    }
}

#[test]
fn berthd_may_die_at_every_point() {
    let of_daemon = |name: &str| !name.starts_with("shim.");
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
