//! What nobody owns is swept; what can't be read is kept and told.

use std::{fs, path::Path, process::Command};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, asked, eventually};

#[test]
fn a_record_that_cannot_be_read_is_kept_and_does_not_stop_the_daemon() {
    let mut daemon = Daemon::with_fixture();
    let (good, bad) = (daemon.plain_pod("good"), daemon.plain_pod("bad"));
    let running = daemon.launch(&good, &asked("c", &["sleep", "inf"])).unwrap();
    daemon.kill9();
    let record = daemon.root().join("pods").join(&bad.id).join("record");
    assert!(record.is_file(), "{}", record.display());
    let right = fs::read(&record).unwrap();
    fs::write(&record, &right[..right.len() / 2]).unwrap();
    daemon.up();
    // The rest is as it was.
    assert_eq!(daemon.exec_ok(&running, &["echo", "on"]), "on\n");
    assert!(daemon.log().contains(&bad.id), "it is told in the log");
    assert!(record.is_file() || daemon.list_pods(cri::PodSandboxFilter::default()).len() == 1);
    // Repaired, it is there again.
    if record.is_file() {
        daemon.kill9();
        fs::write(&record, &right).unwrap();
        daemon.up();
        assert_eq!(daemon.pod_status(&bad.id).unwrap().id, bad.id);
    }
}

#[test]
fn a_record_of_a_newer_berthd_is_kept_and_told() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("newer");
    daemon.kill9();
    let record = daemon.root().join("pods").join(&pod.id).join("record");
    let right = fs::read(&record).unwrap();
    // The last field of a number that comes twice is the one that counts: version 99.
    fs::write(&record, [&right[..], &[0x08, 99]].concat()).unwrap();
    daemon.up();
    assert!(daemon.log().contains("start that one again"), "what to do is told");
    assert!(daemon.list_pods(cri::PodSandboxFilter::default()).is_empty());
    daemon.kill9();
    fs::write(&record, &right).unwrap();
    daemon.up();
    assert_eq!(daemon.pod_status(&pod.id).unwrap().state(), cri::PodSandboxState::SandboxReady);
}

#[test]
fn what_nobody_owns_is_swept() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("swept");
    let id = daemon.launch(&pod, &asked("c", &["tree", "2"])).unwrap();
    daemon.kill9();
    // Somebody removed the records by hand: their processes, pins and addresses are nobody's.
    fs::remove_dir_all(daemon.root().join("pods").join(&pod.id)).unwrap();
    daemon.up();
    assert!(daemon.list_pods(cri::PodSandboxFilter::default()).is_empty());
    assert!(daemon.list_containers(cri::ContainerFilter::default()).is_empty());
    // A start waits for it a second at most.
    for left in [daemon.state().join("pods").join(&pod.id), daemon.state().join("containers").join(&id)] {
        eventually(&format!("{} to be swept", left.display()), || (!left.exists()).then_some(()));
    }
}

#[test]
fn what_no_record_names_is_swept_wherever_it_is() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("beside");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    daemon.kill9();
    let other = "7".repeat(64);
    // Layers that a container held, the host end of a pod's link, cgroups.
    let holds = daemon.root().join("images/holds");
    fs::copy(holds.join(&id), holds.join(&other)).unwrap();
    let (link, peer) = (format!("bth{}", &other[..11]), format!("btp{}", &other[..11]));
    for words in [
        vec!["link", "add", &link, "type", "veth", "peer", "name", &peer],
        vec!["link", "set", &link, "master", daemon.bridge()],
    ] {
        assert!(Command::new("ip").args(words).status().unwrap().success());
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots = table.lines().filter_map(|line| {
        let (place, rest) = line.split_once(" - ")?;
        rest.starts_with("cgroup").then(|| Path::new(place.split(' ').nth(4).unwrap()))
    });
    let parent = daemon.cgroup_parent().trim_start_matches('/');
    let parents = roots.map(|root| root.join(parent)).filter(|parent| parent.is_dir());
    let groups: Vec<_> = parents.map(|parent| parent.join(&other)).collect();
    groups.iter().for_each(|group| fs::create_dir(group).unwrap());
    daemon.up();
    let links = Path::new("/sys/class/net").join(&link);
    for left in groups.iter().chain([&holds.join(&other), &links]) {
        eventually(&format!("{} to be swept", left.display()), || (!left.exists()).then_some(()));
    }
    assert!(holds.join(&id).exists());
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
}

#[test]
fn ten_thousand_leftovers_are_swept_and_what_runs_is_found() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("among");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    daemon.kill9();
    // Directories of the state without a record, directories of records that were never written, a layer, odd names, a file.
    let (state, root) = (daemon.state().to_path_buf(), daemon.root().to_path_buf());
    let id_of = |n: usize| format!("{n:064x}");
    for n in 0..2_500 {
        for directory in [&state, &root] {
            fs::create_dir(directory.join("containers").join(id_of(2 * n))).unwrap();
            fs::create_dir(directory.join("pods").join(id_of(2 * n + 1))).unwrap();
        }
        fs::write(state.join("containers").join(id_of(2 * n)).join("plan"), "left").unwrap();
    }
    let layer = root.join("containers").join(id_of(0)).join("upper");
    fs::create_dir(&layer).unwrap();
    (0..10_000).for_each(|n| fs::write(layer.join(n.to_string()), "").unwrap());
    let odd = root.join("containers").join("not-an-id");
    fs::create_dir(&odd).unwrap();
    fs::write(root.join("pods").join("a-file"), "").unwrap();
    daemon.up();
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
    for directory in [&state, &root] {
        for (kind, kept) in [("containers", &id), ("pods", &pod.id)] {
            eventually(&format!("the {kind} in {} to be swept", directory.display()), || {
                let names = fs::read_dir(directory.join(kind)).unwrap();
                let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                (names.filter(|name| name != kept && name.len() == 64).count() == 0).then_some(())
            });
        }
    }
    // What has no id of Berth's is somebody else's.
    fs::remove_dir(odd).unwrap();
    fs::remove_file(root.join("pods").join("a-file")).unwrap();
}

#[test]
fn many_restarts_change_nothing() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("many");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let before = daemon.status(&id).unwrap();
    for round in 0..5 {
        match round % 2 {
            0 => daemon.kill9(),
            _ => assert!(daemon.stop().success()),
        }
        daemon.up();
        assert_eq!(daemon.status(&id).unwrap(), before, "round {round}");
    }
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
}

/// As a power cut leaves them: a hold is on the disk only once its image is removed.
#[test]
fn holds_that_are_lost_or_torn_are_taken_again() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("held");
    let [lost, torn] =
        ["lost", "torn"].map(|name| daemon.launch(&pod, &asked(name, &["sleep", "inf"])).unwrap());
    daemon.kill9();
    let (holds, layers) = (daemon.root().join("images/holds"), daemon.root().join("images/layers"));
    fs::remove_file(holds.join(&lost)).unwrap();
    fs::write(holds.join(&torn), "").unwrap();
    let count = || fs::read_dir(&layers).unwrap().count();
    let before = count();
    daemon.up();
    let image = cri::ImageSpec { image: berth_tests::images::FIXTURE.into(), ..Default::default() };
    let request = cri::RemoveImageRequest { image: Some(image) };
    daemon.call(daemon.images().remove_image(request)).unwrap();
    assert!(before > 0 && count() == before, "layers in use stay: {} of {before}", count());
    for id in [&lost, &torn] {
        assert!(fs::read(holds.join(id)).is_ok_and(|hold| !hold.is_empty()), "{id} has its hold");
        assert_eq!(daemon.exec_ok(id, &["echo", "on"]), "on\n");
        daemon.remove_container(id).unwrap();
    }
    assert_eq!((count(), fs::read_dir(&holds).unwrap().count()), (0, 0), "with their last user they go");
}
