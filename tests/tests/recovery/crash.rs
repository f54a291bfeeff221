//! SIGKILL in the middle of every call: the next daemon comes up, everything can be removed, nothing is left.

use std::{sync::Mutex, thread, time::Duration};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, Pod, Registry, Transport, asked, images};

/// Spreads the moments of the kill over a call; the same in every run, so that a failure comes again.
fn moments(longest: Duration) -> impl Iterator<Item = Duration> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..8).map(move |_| {
        // xorshift*: enough for moments.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let part = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        longest.mul_f64(part as f64 / f64::from(1 << 24))
    })
}

/// Makes a call in a thread, kills the daemon some moment later, and starts it again.
fn killed_during<T: Send>(daemon: &mut Daemon, after: Duration, call: impl FnOnce(&Daemon) -> T + Send) -> T {
    // The call holds the daemon shared, the kill needs it whole: it is done by pid.
    let pid = daemon.pid();
    let answer = Mutex::new(None);
    thread::scope(|scope| {
        let shared = &*daemon;
        let answer = &answer;
        scope.spawn(move || *answer.lock().unwrap() = Some(call(shared)));
        // A moment within the call is what is tested: there is no event to wait for.
        thread::sleep(after);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    });
    daemon.reap();
    daemon.up();
    answer.into_inner().unwrap().expect("the call ended with the daemon")
}

/// Whatever is there can be looked at, stopped and removed.
fn everything_goes(daemon: &Daemon) {
    for container in daemon.list_containers(cri::ContainerFilter::default()) {
        daemon.status(&container.id).unwrap();
        daemon.stop_container(&container.id, 0).unwrap();
        daemon.remove_container(&container.id).unwrap();
    }
    for pod in daemon.list_pods(cri::PodSandboxFilter::default()) {
        daemon.pod_status(&pod.id).unwrap();
        daemon.stop_pod(&pod.id).unwrap();
        daemon.remove_pod(&pod.id).unwrap();
    }
    assert!(daemon.list_containers(cri::ContainerFilter::default()).is_empty());
    assert!(daemon.list_pods(cri::PodSandboxFilter::default()).is_empty());
}

/// The retry of whoever got no answer works.
fn retried(daemon: &Daemon, config: &cri::PodSandboxConfig) -> Pod {
    daemon.run_pod(config.clone()).unwrap_or_else(|status| panic!("the retry of RunPodSandbox: {status}"))
}

#[test]
fn a_kill_while_a_pod_is_made() {
    let mut daemon = Daemon::with_fixture();
    for after in moments(Duration::from_millis(60)) {
        let config = berth_tests::pod("crash");
        // An answer or none: both are good.
        killed_during(&mut daemon, after, |daemon| daemon.run_pod(config.clone()).is_ok());
        let pod = retried(&daemon, &config);
        let (status, _) = daemon.run_to_end(&pod, &asked("c", &["true"])).unwrap();
        assert_eq!(status.exit_code, 0);
        everything_goes(&daemon);
    }
}

#[test]
fn a_kill_while_a_container_is_made_or_started() {
    let mut daemon = Daemon::with_fixture();
    for after in moments(Duration::from_millis(60)) {
        let pod = daemon.plain_pod("crash");
        let request = asked("c", &["sleep", "inf"]);
        killed_during(&mut daemon, after, |daemon| daemon.launch(&pod, &request).is_ok());
        // The kubelet's way on: the same container, or, once that ended, the next attempt.
        let id =
            daemon.create(&pod, &request).unwrap_or_else(|status| panic!("the retry of Create: {status}"));
        let state = daemon.status(&id).unwrap().state();
        if state == cri::ContainerState::ContainerCreated {
            daemon.start_container(&id).unwrap();
        }
        if state != cri::ContainerState::ContainerExited {
            assert_eq!(daemon.exec_ok(&id, &["echo", "alive"]), "alive\n");
        }
        everything_goes(&daemon);
    }
}

#[test]
fn a_kill_while_a_container_stops_or_goes() {
    let mut daemon = Daemon::with_fixture();
    for (number, after) in moments(Duration::from_millis(40)).enumerate() {
        let pod = daemon.plain_pod("crash");
        let id = daemon.launch(&pod, &asked("c", &["tree", "3"])).unwrap();
        killed_during(&mut daemon, after, |daemon| match number % 2 {
            0 => daemon.stop_container(&id, 0).is_ok(),
            _ => daemon.remove_container(&id).is_ok(),
        });
        daemon.stop_container(&id, 0).unwrap();
        daemon.remove_container(&id).unwrap();
        // Whatever was under way, the pod takes another.
        assert_eq!(daemon.run_to_end(&pod, &asked("d", &["true"])).unwrap().0.exit_code, 0);
        everything_goes(&daemon);
    }
}

#[test]
fn a_kill_while_a_pod_stops_or_goes() {
    let mut daemon = Daemon::with_fixture();
    for (number, after) in moments(Duration::from_millis(60)).enumerate() {
        let pod = daemon.plain_pod("crash");
        daemon.launch(&pod, &asked("c", &["tree", "3"])).unwrap();
        killed_during(&mut daemon, after, |daemon| match number % 2 {
            0 => daemon.stop_pod(&pod.id).is_ok(),
            _ => daemon.remove_pod(&pod.id).is_ok(),
        });
        everything_goes(&daemon);
    }
    // All addresses are free again.
    let pods: Vec<Pod> = (0..3).map(|_| daemon.plain_pod("after")).collect();
    let mut ips: Vec<String> = pods.iter().map(|pod| daemon.pod_ip(pod)).collect();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 3);
}

#[test]
fn a_kill_while_an_exec_runs() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("crash");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    for after in moments(Duration::from_millis(30)) {
        killed_during(&mut daemon, after, |daemon| daemon.exec(&id, &["sleep", "0.2"], 5).is_ok());
        assert_eq!(daemon.exec_ok(&id, &["echo", "again"]), "again\n");
    }
}

#[test]
fn a_kill_while_an_image_is_pulled() {
    let test = "a_kill_while_an_image_is_pulled";
    let Some(registry) = Registry::start(test, Transport::Http) else { return };
    let image = images::layered();
    registry.push("crash:1", &image);
    let reference = registry.reference("crash:1");
    let mut daemon = Daemon::start();
    let spec = || Some(cri::ImageSpec { image: reference.clone(), ..Default::default() });
    let pull = |daemon: &Daemon| {
        let request = cri::PullImageRequest { image: spec(), ..Default::default() };
        daemon.call(daemon.images().pull_image(request))
    };
    for after in moments(Duration::from_millis(250)) {
        killed_during(&mut daemon, after, |daemon| pull(daemon).is_ok());
        // There whole or not at all.
        pull(&daemon).unwrap_or_else(|status| panic!("the retry of PullImage: {status}"));
        let pod = daemon.plain_pod("pulled");
        let read = asked("c", &["cat", "/srv/keep/one"]).image(&reference);
        assert_eq!(daemon.run_to_end(&pod, &read).unwrap().1[0].content, "one");
        everything_goes(&daemon);
        let request = cri::RemoveImageRequest { image: spec() };
        daemon.call(daemon.images().remove_image(request)).unwrap();
    }
}

#[test]
fn a_kill_while_a_standalone_container_runs_and_goes() {
    let mut daemon = Daemon::with_fixture();
    for (number, after) in moments(Duration::from_millis(120)).enumerate() {
        let name = format!("crash-{number}");
        killed_during(&mut daemon, after, |daemon| {
            daemon.berth(&["run", "-d", "--name", &name, images::FIXTURE, "sleep", "inf"]).code
        });
        if daemon.berth(&["inspect", &name]).code == 0 {
            daemon.berth_ok(&["rm", "-f", &name]);
        }
        // The name is free.
        daemon.berth_ok(&["run", "-d", "--name", &name, images::FIXTURE, "sleep", "inf"]);
        killed_during(&mut daemon, after, |daemon| daemon.berth(&["rm", "-f", &name]).code);
        if daemon.berth(&["inspect", &name]).code == 0 {
            daemon.berth_ok(&["rm", "-f", &name]);
        }
        assert_eq!(daemon.berth_ok(&["ps", "-aq"]), "");
    }
}

#[test]
fn a_kill_while_a_network_plugin_works() {
    let mut daemon = Daemon::with_fixture();
    // Each ADD leaves a mark that DEL removes, in two steps with a pause in between; a plugin that outlived the daemon
    // would set its mark after it was undone.
    let marks = daemon.dir().join("cni/cache/marks");
    std::fs::create_dir_all(&marks).unwrap();
    let script = r#"cat >/dev/null
case $CNI_COMMAND in
ADD) sleep 0.05; touch MARKS/$CNI_CONTAINERID; sleep 0.05; touch MARKS/$CNI_CONTAINERID
  echo '{"cniVersion":"1.0.0","ips":[{"address":"10.7.0.9/24"}]}';;
DEL) sleep 0.02; rm -f MARKS/$CNI_CONTAINERID;;
esac"#;
    daemon.cni_script("marks", &script.replace("MARKS", &marks.display().to_string()));
    daemon.cni_list("10.conflist", "1.0.0", &serde_json::json!([{"type": "marks"}]));
    for (number, after) in moments(Duration::from_millis(200)).enumerate() {
        let config = berth_tests::pod("crash");
        if number % 2 == 0 {
            killed_during(&mut daemon, after, |daemon| daemon.run_pod(config.clone()).is_ok());
            let pod = retried(&daemon, &config);
            assert_eq!(daemon.pod_ip(&pod), "10.7.0.9");
        } else {
            let pod = daemon.run_pod(config).unwrap();
            killed_during(&mut daemon, after.mul_f64(0.5), |daemon| daemon.remove_pod(&pod.id).is_ok());
        }
        everything_goes(&daemon);
    }
    // What is undone in the background has its moment; then nothing is left of any.
    berth_tests::eventually("every mark to go", || {
        std::fs::read_dir(&marks).unwrap().next().is_none().then_some(())
    });
}
