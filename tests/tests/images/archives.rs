//! Archives in every form, and what a container finds of a layered image.

use berth_fixtures::{Compression, Expected, Found, Image, Layout, docker, layered_expectations};
use berth_tests::{Daemon, asked, images};
use serde_json::Value;

use crate::{list, status};

#[test]
fn all_forms_of_archives_are_taken() {
    let daemon = Daemon::start();
    let image = images::base();
    let layout = |name: &str, layers: Compression, whole: Compression| {
        Layout::of(name, &image.clone().compression(layers)).unwrap().tar(whole).unwrap()
    };
    let rows = [
        ("localhost/gzip:1", layout("localhost/gzip:1", Compression::Gzip, Compression::None)),
        ("localhost/zstd:1", layout("localhost/zstd:1", Compression::Zstd, Compression::None)),
        ("localhost/plain:1", layout("localhost/plain:1", Compression::None, Compression::Gzip)),
        ("localhost/whole:1", layout("localhost/whole:1", Compression::None, Compression::Zstd)),
        (
            "localhost/docker:1",
            docker::archive(&[("localhost/docker:1", &image)], Compression::None).unwrap(),
        ),
        (
            "localhost/docker:2",
            docker::archive(&[("localhost/docker:2", &image)], Compression::Gzip).unwrap(),
        ),
    ];
    let id = image.build().unwrap().config.digest;
    let pod = daemon.plain_pod("forms");
    for (number, (name, archive)) in rows.iter().enumerate() {
        let loaded = daemon.load(archive, None).unwrap_or_else(|status| panic!("{name}: {status}"));
        assert_eq!((loaded.len(), loaded[0].id.as_str()), (1, id.as_str()), "{name}");
        let echo = asked(&format!("c{number}"), &["echo", name]).image(name);
        assert_eq!(daemon.run_to_end(&pod, &echo).unwrap().1[0].content, *name);
    }
    // The same content is one image with six names.
    let all = list(&daemon);
    assert_eq!((all.len(), all[0].repo_tags.len()), (1, 6), "{all:?}");
}

#[test]
fn a_load_tells_the_name_that_the_archive_gives() {
    let daemon = Daemon::with_fixture();
    // The same content, by then known under another name.
    let again = images::archive("localhost/again:1", &images::base());
    assert_eq!(daemon.load(&again, None).unwrap()[0].reference, "localhost/again:1");
}

#[test]
fn an_archive_of_several_gives_all() {
    let daemon = Daemon::start();
    let (one, two) = (images::base(), images::base().env("TWO", "2"));
    let both =
        docker::archive(&[("localhost/one:1", &one), ("localhost/two:1", &two)], Compression::None).unwrap();
    assert_eq!(daemon.load(&both, None).unwrap().len(), 2);
    assert!(status(&daemon, "localhost/one:1").is_some() && status(&daemon, "localhost/two:1").is_some());
}

#[test]
fn the_platform_of_this_machine_is_chosen() {
    let daemon = Daemon::start();
    let foreign = images::base().platform("linux", "s390x").env("WHOSE", "theirs");
    let own = images::base().env("WHOSE", "ours");
    let layout = Layout::new().multi_platform("localhost/multi:1", &[foreign.clone(), own]).unwrap();
    daemon.load(&layout.tar(Compression::None).unwrap(), None).unwrap();
    let pod = daemon.plain_pod("multi");
    let info = daemon.info(&pod, &asked("c", &["info"]).image("localhost/multi:1"));
    assert_eq!(info["env"]["WHOSE"], "ours");
    // One that is only for others is refused, here or when it is run, with the reason.
    let only = Layout::new().multi_platform("localhost/only:1", &[foreign]).unwrap();
    let refused = daemon.load(&only.tar(Compression::None).unwrap(), None).unwrap_err();
    assert!(refused.message().contains("s390x"), "{refused}");
}

#[test]
fn a_container_finds_what_the_layers_say() {
    let daemon = Daemon::start();
    daemon.load_layered();
    let pod = daemon.plain_pod("layered");
    let main = asked("c", &["sleep", "inf"]).image(images::LAYERED);
    let id = daemon.launch(&pod, &main).unwrap();
    let expectations = layered_expectations();
    assert!(expectations.len() > 50);
    let wrong: Vec<String> =
        expectations.iter().filter_map(|expected| mismatch(&daemon, &id, expected)).collect();
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    // And on the merged root, as the host sees it.
    let pid = daemon.details(&id)["pid"].as_i64().unwrap();
    let root = std::path::PathBuf::from(format!("/proc/{pid}/root"));
    let wrong: Vec<String> = expectations.iter().filter_map(|expected| expected.mismatch(&root)).collect();
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

/// Asks the `stat` applet inside of the container.
fn mismatch(daemon: &Daemon, id: &str, expected: &Expected) -> Option<String> {
    let path = format!("/{}", expected.path);
    let answer = daemon.exec(id, &["/bin/fixture", "stat", &path], 10).expect("exec");
    let there = answer.exit_code == 0;
    if expected.found == Found::Absent || !there {
        let right = (expected.found == Found::Absent) != there;
        return (!right)
            .then(|| format!("{path}: expected {:?}, exit code {}", expected.found, answer.exit_code));
    }
    let told: Value = serde_json::from_slice(&answer.stdout).expect("stat prints JSON");
    let kind = match &expected.found {
        Found::Absent => unreachable!("answered above"),
        Found::Directory => "directory",
        Found::File(_) | Found::SameFile(_) => "file",
        Found::Symlink(_) => "symlink",
        Found::Device(berth_fixtures::Device::Char { .. }) => "char",
        Found::Device(berth_fixtures::Device::Block { .. }) => "block",
        Found::Fifo => "fifo",
    };
    let mode = expected.mode.map(|mode| format!("{mode:04o}"));
    let wrong = told["kind"] != kind
        || mode.is_some_and(|mode| expected.found_mode_counts() && told["mode"] != mode)
        || (told["uid"].as_u64(), told["gid"].as_u64())
            != (Some(expected.owner.0.into()), Some(expected.owner.1.into()))
        || expected.xattr.as_ref().is_some_and(|(name, value)| {
            let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            told["xattrs"][name] != hex
        });
    wrong.then(|| format!("{path}: expected {expected:?}, found {told}"))
}

trait Counts {
    /// The mode of a symbolic link says nothing.
    fn found_mode_counts(&self) -> bool;
}

impl Counts for Expected {
    fn found_mode_counts(&self) -> bool {
        !matches!(self.found, Found::Symlink(_))
    }
}

#[test]
fn an_empty_image_of_nothing_is_no_crash() {
    let daemon = Daemon::start();
    let nothing = images::archive("localhost/nothing:1", &Image::new());
    // Loaded or refused; the daemon goes on.
    daemon.load(&nothing, None).ok();
    daemon.load(b"", None).unwrap_err();
    daemon.load(b"this is no archive", None).unwrap_err();
    daemon.load(&vec![0_u8; 10_240], None).unwrap_err();
    assert!(daemon.is_up());
    daemon.plain_pod("still");
}
