//! EIO, EROFS and ENOSPC at every change that is made on a disk: the caller is told which, lists are answered, nothing half
//! made stays, and once the disk is well the next try works.

use std::fs;

use berth_cri::v1 as cri;
use berth_fixtures::{Compression, Image, Layer, Layout};
use berth_tests::{Answer, Daemon, Mood, Sick, Stream, asked, eventually, images};
use nix::errno::Errno;

use crate::faults::life;

const ERRNOS: [Errno; 3] = [Errno::EIO, Errno::EROFS, Errno::ENOSPC];

/// As an error of the kernel's is told.
fn words(errno: Errno) -> String {
    std::io::Error::from(errno).to_string()
}

fn told(errno: Errno, status: &tonic::Status) -> bool {
    [words(errno), format!("{errno:?}")].iter().any(|words| status.message().contains(words))
}

/// A daemon with one of its directories on such a disk.
fn on_disk(test: &str, directory: impl Fn(&Daemon) -> std::path::PathBuf) -> Option<(Daemon, Sick)> {
    let mut daemon = Daemon::start();
    daemon.stop();
    let target = directory(&daemon);
    fs::remove_dir_all(&target).ok();
    let sick = Sick::mount(test, &target);
    daemon.up();
    Some((daemon, sick?))
}

/// What is left, the disk aside.
fn nothing_left(daemon: &Daemon, sick: &Sick, when: &str) {
    let disk = format!("mount {}", sick.path().display());
    let mut left = Vec::new();
    let gone = berth_tests::until(berth_tests::BOUND, || {
        left = daemon.left_behind();
        left.retain(|leak| *leak != disk);
        left.is_empty().then_some(())
    });
    assert!(gone.is_some(), "{when}: {left:#?}");
}

/// Does something as often as it makes changes, each time with one more of them before the first that is refused.
fn at_every_change(sick: &Sick, mut act: impl FnMut(Errno, &str)) {
    for errno in ERRNOS {
        for change in 0.. {
            sick.refuses_after(change, errno as i32);
            act(errno, &format!("{errno:?} from change {change} on"));
            let reached = sick.mood() != Mood::Well;
            sick.is_now(Mood::Well);
            if !reached {
                assert!(change > 0, "nothing is changed on this disk");
                break;
            }
        }
    }
}

fn failed_lives(test: &str, directory: impl Fn(&Daemon) -> std::path::PathBuf) {
    let Some((mut daemon, sick)) = on_disk(test, directory) else { return };
    daemon.load_image(images::FIXTURE, &images::base());
    at_every_change(&sick, |errno, when| {
        let outcome = life(&daemon);
        // Answered from memory, whatever the disk does.
        daemon.list_pods(cri::PodSandboxFilter::default());
        if let Err(status) = outcome {
            assert!(told(errno, &status), "{when}: {status}");
        }
        let mood = sick.mood();
        sick.is_now(Mood::Well);
        daemon.remove_all().unwrap_or_else(|left| panic!("{when}: {left}"));
        nothing_left(&daemon, &sick, when);
        sick.is_now(mood);
    });
    // What runs is found again though nothing can be written.
    let pod = daemon.plain_pod("found");
    let id = daemon.launch(&pod, &asked("c", &["trap", "--exit", "3"])).unwrap();
    daemon.kill9();
    sick.is_now(Mood::Refusing(Errno::EROFS as i32));
    daemon.up();
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
    sick.is_now(Mood::Well);
    daemon.stop_container(&id, 10).unwrap();
    assert_eq!(daemon.status(&id).unwrap().exit_code, 3);
    life(&daemon).unwrap();
    daemon.remove_all().unwrap();
    nothing_left(&daemon, &sick, "at the end");
    daemon.stop();
    drop(sick);
    daemon.up();
}

#[test]
fn a_disk_of_records_may_refuse_any_change() {
    failed_lives("a_disk_of_records_may_refuse_any_change", |daemon| daemon.root().join("pods"));
}

#[test]
fn a_disk_of_the_state_may_refuse_any_change() {
    failed_lives("a_disk_of_the_state_may_refuse_any_change", |daemon| daemon.state().join("containers"));
}

#[test]
fn a_disk_of_images_may_refuse_any_change() {
    const TEST: &str = "a_disk_of_images_may_refuse_any_change";
    let Some((mut daemon, sick)) = on_disk(TEST, |daemon| daemon.root().join("images")) else { return };
    let layer = || Layer::new().file("etc/one", 0o644, "one").file("two", 0o600, "two");
    let archive = |name: &str, layers: &[Layer]| {
        let image = layers.iter().cloned().fold(Image::new(), Image::layer);
        Layout::of(name, &image).and_then(|layout| layout.tar(Compression::None)).unwrap()
    };
    let kept = archive("localhost/kept:1", &[layer().file("kept", 0o644, "kept")]);
    let tried = archive("localhost/tried:1", &[layer()]);
    daemon.load(&kept, None).unwrap();
    let names = |daemon: &Daemon| {
        let listed = daemon.call(daemon.images().list_images(cri::ListImagesRequest::default())).unwrap();
        let mut names: Vec<String> = listed.images.into_iter().flat_map(|image| image.repo_tags).collect();
        names.sort();
        names
    };
    let remove = |daemon: &Daemon| -> Answer<()> {
        let image = Some(cri::ImageSpec { image: "localhost/tried:1".into(), ..Default::default() });
        daemon.call(daemon.images().remove_image(cri::RemoveImageRequest { image })).map(drop)
    };
    at_every_change(&sick, |errno, when| {
        let outcome = daemon.load(&tried, None).map(drop).and_then(|()| remove(&daemon));
        if let Err(status) = &outcome {
            assert!(told(errno, status), "{when}: {status}");
        }
        assert!(names(&daemon).contains(&"localhost/kept:1".to_owned()), "{when}");
        let mood = sick.mood();
        sick.is_now(Mood::Well);
        let checked = daemon.berth(&["image", "check"]);
        assert_eq!(checked.code, 0, "{when}: {checked:?}");
        remove(&daemon).unwrap_or_else(|status| panic!("{when}: {status}"));
        assert_eq!(names(&daemon), ["localhost/kept:1"], "{when}");
        sick.is_now(mood);
    });
    daemon.load(&tried, None).unwrap();
    daemon.restart();
    assert_eq!(names(&daemon), ["localhost/kept:1", "localhost/tried:1"]);
    daemon.stop();
    drop(sick);
    daemon.up();
}

#[test]
fn a_log_whose_disk_refuses_is_drained_and_says_how_much_is_missing() {
    const TEST: &str = "a_log_whose_disk_refuses_is_drained_and_says_how_much_is_missing";
    let daemon = Daemon::with_fixture();
    let Some(sick) = Sick::mount(TEST, &daemon.dir().join("logs")) else { return };
    for errno in ERRNOS {
        let log_directory = sick.path().join(format!("{errno:?}"));
        fs::create_dir(&log_directory).unwrap();
        let log_directory = log_directory.display().to_string();
        let pod = daemon.run_pod(cri::PodSandboxConfig { log_directory, ..berth_tests::pod("log") }).unwrap();
        let spam = asked("c", &["spam", "0", "200"]);
        let id = daemon.launch(&pod, &spam).unwrap();
        daemon.logged_lines(&pod, &spam, 10);
        sick.is_now(Mood::Refusing(errno as i32));
        let own = daemon.state().join("containers").join(&id).join("shim.log");
        eventually("the shim to tell", || {
            fs::read_to_string(&own).unwrap().contains(&words(errno)).then_some(())
        });
        // It is not held up.
        assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
        sick.is_now(Mood::Well);
        let lost = |line: &berth_tests::Line| {
            line.content
                .strip_prefix("berth: ")
                .and_then(|rest| rest.strip_suffix(" bytes of log lost")?.parse().ok())
        };
        let said: u64 =
            eventually("the loss to be told", || daemon.log_of(&pod, &spam).iter().find_map(lost));
        daemon.stop_container(&id, 0).unwrap();
        // What is missing is what was said, to the byte.
        let log = daemon.log_of(&pod, &spam);
        let number = |line: &berth_tests::Line| -> u64 { line.content[5..11].parse().unwrap() };
        let all: Vec<u64> = log.iter().filter(|line| line.stream == Stream::Stdout).map(number).collect();
        let length = log.iter().find(|line| line.stream == Stream::Stdout).unwrap().content.len() as u64;
        let missing = all.last().unwrap() - all.len() as u64;
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        assert_eq!(said, missing * (30 + 8 + 2 + length + 1), "{errno:?}: {missing} lines");
        assert!(missing > 0);
        daemon.remove_pod(&pod.id).unwrap();
    }
}
