//! What the node says of itself, and what it says of calls that are not there yet.

use berth_cri::v1 as cri;
use berth_tests::Daemon;
use tonic::{Code, Status};

#[test]
fn the_node_is_ready() {
    let daemon = Daemon::start();
    let version = daemon.call(daemon.runtime().version(cri::VersionRequest::default())).unwrap();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("0.1.0", "berth"));
    assert_eq!(version.runtime_api_version, "v1");
    assert_eq!(version.runtime_version.split('.').count(), 3, "semver: {}", version.runtime_version);
    let status = daemon.call(daemon.runtime().status(cri::StatusRequest { verbose: true })).unwrap();
    let conditions = status.status.unwrap().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let found = conditions.iter().find(|condition| condition.r#type == name).unwrap();
        assert!(found.status, "{found:?}");
    }
    assert!(status.runtime_handlers.iter().any(|handler| handler.name.is_empty()));
    assert!(status.features.unwrap().supplemental_groups_policy);
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert_eq!(config["stateDir"], daemon.state().to_str().unwrap());
    let driver = daemon.call(daemon.runtime().runtime_config(cri::RuntimeConfigRequest {})).unwrap();
    assert_eq!(driver.linux.unwrap().cgroup_driver(), cri::CgroupDriver::Cgroupfs);
}

#[test]
fn calls_that_come_later_say_what_to_use_instead() {
    let daemon = Daemon::start();
    let told = |status: Result<(), Status>, words: &str| {
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
        assert!(status.message().contains(words), "{words}: {status}");
    };
    let runtime = || daemon.runtime();
    let request = cri::CheckpointContainerRequest::default();
    told(daemon.call(runtime().checkpoint_container(request)).map(drop), "checkpoint");
}

#[test]
fn the_range_of_pods_is_noted_or_refused() {
    let daemon = Daemon::start();
    let note = |range: &str| {
        let network = cri::NetworkConfig { pod_cidr: range.into() };
        let config = cri::RuntimeConfig { network_config: Some(network) };
        let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(config) };
        daemon.call(daemon.runtime().update_runtime_config(request))
    };
    for range in ["", "10.1.0.0/24", "10.1.0.0/24,fd01::/64"] {
        note(range).unwrap();
    }
    for range in ["10.1.0.0", "x/24", "10.1.0.0/24;reboot"] {
        let status = note(range).unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().contains("pod_cidr"), "{status}");
    }
}

#[test]
fn the_callers_deadline_is_answered_as_one() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("deadline");
    let id = daemon.launch(&pod, &berth_tests::asked("c", &["sleep", "inf"])).unwrap();
    let mut request = tonic::Request::new(cri::ExecSyncRequest {
        container_id: id,
        cmd: vec!["sleep".into(), "inf".into()],
        timeout: 0,
    });
    request.set_timeout(std::time::Duration::from_millis(200));
    let late = daemon.call(daemon.runtime().exec_sync(request)).unwrap_err();
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late}");
}

#[test]
fn two_daemons_do_not_share_a_root() {
    let daemon = Daemon::start();
    let output = std::process::Command::new(berth_tests::program("berthd"))
        .arg("--config")
        .arg(daemon.dir().join("berthd.toml"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert_eq!(told.trim().lines().count(), 1, "{told}");
    assert!(told.contains(daemon.dir().to_str().unwrap()), "{told}");
    // The first is not disturbed.
    daemon.plain_pod("still");
}
