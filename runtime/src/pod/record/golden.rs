//! Records as version 1 wrote them: whoever comes later reads the same out of them. The files in `golden/` are never
//! rewritten; what a record learns later is absent in them. A new `VERSION` gets files of its own beside them.

use std::{fs, path::Path};

use super::*;

fn pod() -> PodRecord {
    PodRecord {
        version: 1,
        id: "a pod".into(),
        client: By::Standalone.into(),
        handler: "berth".into(),
        config: Some(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "name".into(),
                uid: "uid".into(),
                namespace: "namespace".into(),
                attempt: 3,
            }),
            hostname: "host".into(),
            labels: [("label".into(), "value".into())].into(),
            ..Default::default()
        }),
        created_at: 1_700_000_000_000_000_000,
        phase: Phase::Stopping.into(),
        ips: vec!["10.0.0.1".into(), "fd00::1".into()],
        reaper_pid: 7,
        reaper_start_time: 8,
        boot_id: "boot".into(),
        overhead: Some(cri::LinuxContainerResources { cpu_shares: 9, ..Default::default() }),
        resources: Some(cri::LinuxContainerResources { cpu_quota: 10, ..Default::default() }),
        cgroup_path: String::new(),
    }
}

fn container() -> ContainerRecord {
    ContainerRecord {
        version: 1,
        id: "a container".into(),
        pod: "a pod".into(),
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "name".into(), attempt: 2 }),
            command: vec!["sleep".into()],
            ..Default::default()
        }),
        options: Some(OptionsRecord {
            restart: Some(launch::Restart { policy: 1, max_retries: 5 }),
            log_max_bytes: 11,
            log_max_files: 12,
            entrypoint: Some("/entry".into()),
            user: Some("user".into()),
            create_bind_sources: true,
            stop_signal: Some(15),
            pids: Some(-1),
            health: None,
            layer_max_bytes: 0,
        }),
        keep_layer: true,
        standalone: Some(berth::ContainerSpec { name: "given".into(), ..Default::default() }),
        image_id: "sha256:1".into(),
        cgroup_path: "/berth/c".into(),
        log: "/log".into(),
        created_at: 13,
        phase: Phase::Made.into(),
        uid: 14,
        gid: 15,
        groups: vec![16, 17],
        boot_id: "boot".into(),
        spec: "{}".into(),
        env: vec![b"A=\xff".to_vec()],
        volume_images: vec![String::new(), "sha256:2".into()],
        started: true,
        ..Default::default()
    }
}

fn exit() -> launch::Exit {
    launch::Exit {
        exit_code: 137,
        signal: 9,
        oom_killed: true,
        started_at: 18,
        finished_at: 19,
        message: "why".into(),
        ..Default::default()
    }
}

/// The file's bytes, written as hexadecimal digits.
fn written(name: &str, now: &impl Message) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pod/record/golden").join(name);
    let Ok(digits) = fs::read_to_string(&path) else {
        fs::write(&path, hex::encode(now.encode_to_vec()) + "\n").unwrap();
        panic!("{} was absent and is written: look at it, and add it", path.display());
    };
    hex::decode(digits.trim()).unwrap()
}

#[test]
fn a_record_of_version_1_says_what_it_said_then() {
    assert_eq!(PodRecord::decode(written("pod.1.hex", &pod()).as_slice()).unwrap(), pod());
    assert_eq!(
        ContainerRecord::decode(written("container.1.hex", &container()).as_slice()).unwrap(),
        container()
    );
    assert_eq!(launch::Exit::decode(written("exit.1.hex", &exit()).as_slice()).unwrap(), exit());
}
