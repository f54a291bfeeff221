//! The mistakes that people make, and the sentences they get: what failed, why, what to do about it.

use berth_cri::v1 as cri;
use berth_fixtures::{Image, Layer};
use berth_tests::{Asked, Daemon, asked, images};
use tonic::{Code, Status};

/// A program of another machine: the head of an ELF file is enough to be told apart.
fn foreign() -> Vec<u8> {
    const RISCV: u16 = 243;
    let mut head = vec![0_u8; 120];
    head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    head[16..18].copy_from_slice(&2_u16.to_le_bytes());
    head[18..20].copy_from_slice(&RISCV.to_le_bytes());
    head[20] = 1;
    head[52..54].copy_from_slice(&64_u16.to_le_bytes());
    head[54..56].copy_from_slice(&56_u16.to_le_bytes());
    head
}

/// The fixture's program, made to ask for a loader that the image lacks.
fn mistakes() -> Image {
    images::with_layer(
        Layer::new()
            .file("bin/dos.sh", 0o755, "#!/bin/fixture\r\necho hi\r\n")
            .file("bin/no-interpreter.sh", 0o755, "#!/bin/bash\necho hi\n")
            .file("bin/no-exec-bit", 0o644, "#!/bin/fixture\n")
            .file("bin/foreign", 0o755, foreign())
            .file("bin/empty", 0o755, "")
            .file("bin/text", 0o755, "echo no first line\n")
            .directory("bin/directory", 0o755)
            .file("srv/file", 0o644, ""),
    )
}

/// Creates and starts; one of the two must fail, and nothing may stay.
fn refused(daemon: &Daemon, asked: &Asked) -> Status {
    let pod = daemon.plain_pod("mistake");
    let status = daemon.launch(&pod, asked).expect_err("a mistake");
    daemon.remove_pod(&pod.id).unwrap();
    status
}

fn told(daemon: &Daemon, asked: &Asked, words: &[&str]) {
    let status = refused(daemon, asked);
    for word in words {
        assert!(status.message().contains(word), "no {word:?} in: {}", status.message());
    }
    assert!(!status.message().contains('\n'), "one line: {}", status.message());
}

#[test]
fn a_program_that_cannot_run_says_why_and_what_to_do() {
    let daemon = Daemon::start();
    daemon.load_image("localhost/mistakes:1", &mistakes());
    let run = |word: &str| asked("c", &[word]).image("localhost/mistakes:1");
    told(&daemon, &run("nosuch"), &["nosuch", "PATH", "check the name"]);
    told(&daemon, &run("/bin/nosuch"), &["/bin/nosuch", "No such file"]);
    told(&daemon, &run("dos.sh"), &["/bin/dos.sh", "CRLF", "dos2unix"]);
    told(&daemon, &run("no-interpreter.sh"), &["/bin/no-interpreter.sh", "/bin/bash is missing"]);
    told(&daemon, &run("no-exec-bit"), &["/bin/no-exec-bit", "no exec permission", "chmod +x"]);
    told(&daemon, &run("foreign"), &["/bin/foreign", "riscv64", "architecture"]);
    told(&daemon, &run("empty"), &["/bin/empty", "empty"]);
    told(&daemon, &run("text"), &["/bin/text", "#!", "first line"]);
    told(&daemon, &run("/bin/directory"), &["/bin/directory", "directory"]);
}

#[test]
fn a_working_directory_that_cannot_be_is_told() {
    let daemon = Daemon::start();
    daemon.load_image("localhost/mistakes:1", &mistakes());
    let at = |path: &str| {
        asked("c", &["true"]).image("localhost/mistakes:1").with(|config| config.working_dir = path.into())
    };
    told(&daemon, &at("/srv/file"), &["/srv/file", "not a directory"]);
    let read_only = at("/srv/missing").secured(|security| security.readonly_rootfs = true);
    // It is made before the root becomes read-only, or refused with the reason.
    let pod = daemon.plain_pod("ro");
    if let Err(status) = daemon.launch(&pod, &read_only) {
        assert!(status.message().contains("read-only"), "{status}");
    }
}

#[test]
fn an_unknown_user_or_group_is_told() {
    let daemon = Daemon::with_fixture();
    let user = asked("c", &["true"]).secured(|security| security.run_as_username = "nobody-here".into());
    told(&daemon, &user, &["nobody-here", "/etc/passwd", "use a number"]);
    daemon.load_image("localhost/group:1", &images::base().user("app:no-group"));
    told(&daemon, &asked("c", &["true"]).image("localhost/group:1"), &["no-group", "/etc/group"]);
}

#[test]
fn an_image_that_is_not_here_is_told() {
    let daemon = Daemon::start();
    let pod = daemon.plain_pod("image");
    let status = daemon.create(&pod, &asked("c", &["true"]).image("localhost/nosuch:1")).unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("localhost/nosuch:1") && status.message().contains("pull"), "{status}");
}

#[test]
fn a_pod_that_is_not_there_or_stopped_takes_no_container() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("gone");
    daemon.stop_pod(&pod.id).unwrap();
    let status = daemon.create(&pod, &asked("c", &["true"])).unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    daemon.remove_pod(&pod.id).unwrap();
    let status = daemon.create(&pod, &asked("c", &["true"])).unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
}

#[test]
fn an_image_without_a_command_needs_one() {
    let daemon = Daemon::start();
    let program = std::fs::read(berth_tests::program("fixture")).unwrap();
    daemon
        .load_image("localhost/silent:1", &Image::new().layer(Layer::new().file("fixture", 0o755, program)));
    told(&daemon, &asked("c", &[]).image("localhost/silent:1"), &["command"]);
}

#[test]
fn a_log_that_cannot_be_written_is_told() {
    let daemon = Daemon::with_fixture();
    let mut config = berth_tests::pod("log");
    let file = daemon.dir().join("file");
    std::fs::write(&file, "").unwrap();
    config.log_directory = file.display().to_string();
    let told = daemon.run_pod(config).and_then(|pod| daemon.launch(&pod, &asked("c", &["true"])));
    let status = told.unwrap_err();
    assert!(status.message().contains(file.to_str().unwrap()), "{status}");
}

#[test]
fn what_failed_leaves_no_container() {
    let daemon = Daemon::start();
    daemon.load_image("localhost/mistakes:1", &mistakes());
    let pod = daemon.plain_pod("none");
    let wrong = asked("c", &["true"])
        .image("localhost/mistakes:1")
        .secured(|security| security.run_as_username = "nobody-here".into());
    for _ in 0..3 {
        daemon.launch(&pod, &wrong).unwrap_err();
    }
    assert!(daemon.list_containers(cri::ContainerFilter::default()).is_empty());
    // The name is free for the next try.
    let right = asked("c", &["true"]).image("localhost/mistakes:1");
    assert_eq!(daemon.run_to_end(&pod, &right).unwrap().0.exit_code, 0);
}

#[test]
fn a_start_that_failed_shows_as_ended() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("start");
    let id = daemon.create(&pod, &asked("c", &["nosuch"])).unwrap();
    let status = daemon.start_container(&id).unwrap_err();
    assert!(status.message().contains("nosuch"), "{status}");
    let ended = daemon.exited(&id);
    assert_ne!(ended.exit_code, 0);
    assert!(ended.finished_at > 0);
    assert!(ended.message.contains("nosuch"), "{ended:?}");
}
