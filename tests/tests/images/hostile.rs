//! Broken archives, images that reach out of their root, registries that misbehave: refused in words, nothing left.

use std::time::{Duration, Instant};

use berth_fixtures::{Compression, Layout, damage::Damage, damage::damaged, escaped, escaping_images_on};
use berth_tests::{Daemon, Hostile, Options, Trick, asked, images};
use tonic::Code;

use crate::{files, list, pull};

#[test]
fn damaged_archives_are_refused_and_leave_nothing() {
    let daemon = Daemon::start();
    let before = files(&daemon);
    for damage in Damage::ALL {
        let layout = damaged("localhost/damaged:1", &images::base(), damage).unwrap();
        let archive = layout.tar(Compression::None).unwrap();
        let refused = daemon.load(&archive, None).expect_err(&format!("{damage:?}"));
        assert!(matches!(refused.code(), Code::InvalidArgument | Code::NotFound), "{damage:?}: {refused}");
        assert!(
            refused.message().contains("sha256") || refused.message().contains("layer"),
            "{damage:?}: {refused}"
        );
        assert!(list(&daemon).is_empty(), "{damage:?}");
        assert_eq!(files(&daemon), before, "{damage:?}");
    }
    // A damaged one does not spoil the right one.
    daemon.load_image("localhost/damaged:1", &images::base());
    let pod = daemon.plain_pod("right");
    let (status, _) = daemon.run_to_end(&pod, &asked("c", &["true"]).image("localhost/damaged:1")).unwrap();
    assert_eq!(status.exit_code, 0);
}

#[test]
fn images_do_not_reach_out_of_their_root() {
    let daemon = Daemon::start();
    let host = |path: &str| std::fs::read(path).unwrap_or_default();
    let files_of_host = ["/etc/passwd", "/etc/hostname", "/etc/shadow", "/etc/resolv.conf", "/etc/hosts"];
    let before: Vec<Vec<u8>> = files_of_host.iter().map(|path| host(path)).collect();
    let pod = daemon.plain_pod("escape");
    for (number, (name, image)) in escaping_images_on(&images::base()).into_iter().enumerate() {
        let reference = format!("localhost/{name}:1");
        let archive = images::archive(&reference, &image);
        // Refused or unpacked without harm; then run, or refused in words.
        if let Err(refused) = daemon.load(&archive, None) {
            assert_eq!(refused.code(), Code::InvalidArgument, "{name}: {refused}");
            continue;
        }
        let run = asked(&format!("c{number}"), &["true"]).image(&reference);
        match daemon.create(&pod, &run) {
            Ok(id) => {
                daemon.start_container(&id).ok();
                daemon.remove_container(&id).unwrap_or_else(|status| panic!("{name}: {status}"));
            }
            Err(refused) => assert!(!refused.message().is_empty(), "{name}"),
        }
        assert_eq!(escaped(&daemon.root()), Vec::<std::path::PathBuf>::new(), "{name}");
    }
    let after: Vec<Vec<u8>> = files_of_host.iter().map(|path| host(path)).collect();
    assert!(before == after, "a file of the host was changed");
}

#[test]
fn a_user_is_looked_up_without_waiting_for_ever() {
    let daemon = Daemon::start();
    let pod = daemon.plain_pod("passwd");
    for (name, image) in escaping_images_on(&images::base()) {
        if !name.starts_with("passwd-") {
            continue;
        }
        let reference = format!("localhost/{name}:1");
        daemon.load_image(&reference, &image);
        let run = asked(name, &["true"])
            .image(&reference)
            .secured(|security| security.run_as_username = "root".into());
        let begun = Instant::now();
        if let Err(refused) = daemon.launch(&pod, &run) {
            assert!(
                refused.message().contains("passwd") || refused.message().contains("root"),
                "{name}: {refused}"
            );
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{name} took {:?}", begun.elapsed());
    }
}

#[test]
fn a_layout_without_its_blobs_is_told() {
    let daemon = Daemon::start();
    let image = images::base();
    let built = image.build().unwrap();
    for digest in [&built.manifest.digest, &built.config.digest] {
        let layout = Layout::new().built("localhost/hole:1", &built).without_blob(digest);
        let refused = daemon.load(&layout.tar(Compression::None).unwrap(), None).unwrap_err();
        let hex = digest.trim_start_matches("sha256:");
        assert!(refused.message().contains(hex), "{refused}");
    }
}

fn impatient() -> Daemon {
    Daemon::start_with(Options { stall_seconds: 1, ..Options::default() })
}

#[test]
fn registries_that_misbehave_are_given_up_in_words() {
    let daemon = impatient();
    let before = files(&daemon);
    let image = images::base();
    let tricks = [
        Trick::Stall,
        Trick::Cut,
        Trick::EndlessManifest,
        Trick::EndlessLayer,
        Trick::WrongBlob,
        Trick::Broken,
        Trick::RedirectLoop,
        Trick::WebPage,
    ];
    for trick in tricks {
        let registry = Hostile::start(trick, &image);
        let begun = Instant::now();
        let refused = pull(&daemon, &registry.reference()).expect_err(&format!("{trick:?}"));
        assert!(refused.message().contains("127.0.0.1"), "{trick:?}: {refused}");
        assert!(!refused.message().contains('\n'), "{trick:?}: {refused}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{trick:?} took {:?}", begun.elapsed());
        assert!(list(&daemon).is_empty(), "{trick:?}");
    }
    // What was fetched may wait for the next try, but no more than that.
    let kept: Vec<String> = files(&daemon).into_iter().filter(|file| !before.contains(file)).collect();
    assert!(kept.len() <= 4, "{kept:?}");
    assert!(memory_kib(&daemon) < 256 << 10, "berthd grew to {} KiB", memory_kib(&daemon));
    // And the next try is good.
    let good = Hostile::start(Trick::None, &image);
    pull(&daemon, &good.reference()).unwrap();
}

#[test]
fn a_connection_that_is_cut_once_is_no_failure() {
    let daemon = impatient();
    let image = images::base();
    let registry = Hostile::start(Trick::CutOnce, &image);
    assert_eq!(pull(&daemon, &registry.reference()).unwrap(), image.build().unwrap().config.digest);
}

#[test]
fn a_pull_that_hangs_keeps_nobody_else_waiting() {
    let daemon = Daemon::start_with(Options { stall_seconds: 5, ..Options::default() });
    // With a layer that the other has not.
    let layer = berth_fixtures::Layer::new().file("srv/only", 0o644, "here");
    let stalls = Hostile::start(Trick::Stall, &images::with_layer(layer));
    let good = Hostile::start(Trick::None, &images::base().env("OTHER", "1"));
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| pull(&daemon, &stalls.reference()));
        let begun = Instant::now();
        // A layer may be the same; then this pull waits for the other's at most its own stall time.
        pull(&daemon, &good.reference()).unwrap();
        list(&daemon);
        daemon.plain_pod("meanwhile");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        hanging.join().unwrap().unwrap_err();
    });
    // Who reads the log knows what that pull was at, in bytes.
    let log = daemon.log();
    // The other may have been slow as well.
    let said = |line: &&str| line.contains("image is being pulled") && line.contains(&stalls.reference());
    let told = log.lines().find(said).expect("a slow pull is told of");
    assert!(told.contains("bytes=") && told.contains("total="), "{told}");
}

/// The most that berthd has used so far.
fn memory_kib(daemon: &Daemon) -> u64 {
    let name = daemon.dir().join("berthd.toml").display().to_string();
    let status = berth_tests::processes_naming(daemon.dir().file_name().unwrap().to_str().unwrap())
        .into_iter()
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&name)
        })
        .find_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .expect("berthd runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("status has VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("it is a number")
}
