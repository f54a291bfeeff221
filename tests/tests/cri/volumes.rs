//! Mounts of host paths: what is written, what is not, what is seen of later mounts.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use berth_cri::v1::{self as cri, MountPropagation};
use berth_tests::{Daemon, asked, eventually, program};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use tonic::Code;

fn mount(source: &Path, destination: &str) -> cri::Mount {
    cri::Mount {
        host_path: source.display().to_string(),
        container_path: destination.into(),
        ..Default::default()
    }
}

#[test]
fn volumes_are_written_unless_read_only() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("volumes");
    let data = daemon.dir().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("given"), "given\n").unwrap();
    let single = daemon.dir().join("single");
    fs::write(&single, "one file\n").unwrap();
    let asked = asked("c", &["sleep", "inf"])
        .mount(mount(&data, "/data"))
        .mount(cri::Mount { readonly: true, ..mount(&data, "/fixed") })
        // Missing parts of the destination are made, and an existing file is covered.
        .mount(mount(&single, "/no/such/place/file"))
        .mount(mount(&single, "/etc/group"));
    let id = daemon.launch(&pod, &asked).unwrap();
    assert_eq!(daemon.exec_ok(&id, &["cat", "/data/given"]), "given\n");
    daemon.exec_ok(&id, &["write", "/data/made", "inside"]);
    assert_eq!(fs::read_to_string(data.join("made")).unwrap(), "inside\n");
    let refused = daemon.exec(&id, &["write", "/fixed/x", "x"], 5).unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only"), "{refused:?}");
    assert_eq!(daemon.exec_ok(&id, &["cat", "/fixed/made"]), "inside\n");
    assert_eq!(daemon.exec_ok(&id, &["cat", "/no/such/place/file", "/etc/group"]), "one file\none file\n");
    let told = daemon.status(&id).unwrap().mounts;
    assert_eq!(told, asked.0.mounts);
}

#[test]
fn what_is_in_a_volume_outlives_its_containers() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("outlive");
    let data = daemon.dir().join("data");
    fs::create_dir(&data).unwrap();
    let first = asked("first", &["write", "/data/x", "kept"]).mount(mount(&data, "/data"));
    daemon.run_to_end(&pod, &first).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
    assert_eq!(fs::read_to_string(data.join("x")).unwrap(), "kept\n");
}

#[test]
fn a_missing_source_is_made_as_the_kubelet_counts_on() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("missing");
    let missing = daemon.dir().join("missing/deep");
    let asked = asked("c", &["ls", "/data"]).mount(mount(&missing, "/data"));
    assert_eq!(daemon.run_to_end(&pod, &asked).unwrap().0.exit_code, 0);
    assert!(missing.is_dir());
}

#[test]
fn destinations_stay_inside_of_the_root() {
    let daemon = Daemon::with_fixture();
    let layer = berth_fixtures::Layer::new().symlink("out", "/../../../../../../tmp");
    daemon.load_image("localhost/link:1", &berth_tests::images::with_layer(layer));
    let pod = daemon.plain_pod("escape");
    let data = daemon.dir().join("data");
    fs::create_dir(&data).unwrap();
    let inside = format!("/out/{}-inside", daemon.dir().file_name().unwrap().display());
    let asked = asked("c", &["ls", "/tmp"]).image("localhost/link:1").mount(mount(&data, &inside));
    let log = daemon.run_to_end(&pod, &asked).unwrap().1;
    let name = inside.trim_start_matches("/out/");
    assert_eq!(log.iter().map(|line| line.content.as_str()).collect::<Vec<_>>(), [name]);
    assert!(!Path::new("/tmp").join(name).exists());
}

/// A mount of the host's that is shared, as the kubelet's directory is. Unmounted when dropped.
struct Shared<'a>(&'a Path);

impl<'a> Shared<'a> {
    fn make(path: &'a Path) -> Self {
        fs::create_dir(path).unwrap();
        rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
        let shared = Self(path);
        rustix::mount::mount_change(path, MountPropagationFlags::SHARED).unwrap();
        shared
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        // What is mounted below goes with it.
        rustix::mount::unmount(self.0, UnmountFlags::DETACH).ok();
    }
}

#[test]
fn later_mounts_come_in_where_asked() {
    let daemon = Daemon::with_fixture();
    let path = daemon.dir().join("shared");
    let _shared = Shared::make(&path);
    let pod = daemon.plain_pod("propagation");
    let with =
        |propagation: MountPropagation| cri::Mount { propagation: propagation.into(), ..mount(&path, "/v") };
    let own = asked("private", &["sleep", "inf"]).mount(with(MountPropagation::PropagationPrivate));
    let from = asked("slave", &["sleep", "inf"]).mount(with(MountPropagation::PropagationHostToContainer));
    let own = daemon.launch(&pod, &own).unwrap();
    let from = daemon.launch(&pod, &from).unwrap();
    let later = path.join("later");
    fs::create_dir(&later).unwrap();
    rustix::mount::mount("tmpfs", &later, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(later.join("x"), "mounted\n").unwrap();
    eventually("the mount to arrive", || (daemon.exec_ok(&from, &["ls", "/v/later"]) == "x\n").then_some(()));
    assert_eq!(daemon.exec_ok(&own, &["ls", "/v/later"]), "");
    daemon.remove_pod(&pod.id).unwrap();
    rustix::mount::unmount(&later, UnmountFlags::empty()).unwrap();
}

#[test]
fn a_bidirectional_volume_is_shared_with_the_host() {
    let daemon = Daemon::with_fixture();
    let path = daemon.dir().join("shared");
    let _shared = Shared::make(&path);
    let pod = daemon.plain_pod("bidirectional");
    let volume =
        cri::Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..mount(&path, "/v") };
    let info = daemon
        .info(&pod, &asked("c", &["info"]).mount(volume).secured(|security| security.privileged = true));
    let mounts = info["mounts"].as_array().unwrap();
    let found = mounts.iter().find(|mount| mount["target"] == "/v").unwrap();
    let tags = found["propagation"].as_array().unwrap();
    assert!(tags.iter().any(|tag| tag.as_str().unwrap().starts_with("shared:")), "{found}");
}

#[test]
fn a_propagation_that_cannot_be_is_told() {
    let daemon = Daemon::with_fixture();
    let path = daemon.dir().join("private");
    fs::create_dir(&path).unwrap();
    rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), None).unwrap();
    rustix::mount::mount_change(&path, MountPropagationFlags::PRIVATE).unwrap();
    let pod = daemon.plain_pod("private");
    let volume =
        cri::Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..mount(&path, "/v") };
    let refused = daemon.create(&pod, &asked("c", &["true"]).mount(volume));
    rustix::mount::unmount(&path, UnmountFlags::DETACH).unwrap();
    let refused = refused.unwrap_err();
    assert!(refused.message().contains("/private") && refused.message().contains("shared"), "{refused}");
}

/// What a mount may ask for beside the usual holds in the kernel's own words, and for a program that is run from it.
#[test]
fn a_volume_is_without_programs_devices_and_set_ids_where_asked() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("options");
    let data = daemon.dir().join("data");
    fs::create_dir(&data).unwrap();
    fs::copy(program("fixture"), data.join("fixture")).unwrap();
    let volume = |at: &str, options: &[&str]| cri::Mount {
        mount_options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..mount(&data, at)
    };
    let asked = asked("c", &["sleep", "inf"])
        .mount(volume("/plain", &[]))
        .mount(volume("/strict", &["noexec", "nodev", "nosuid"]));
    let id = daemon.launch(&pod, &asked).unwrap();
    let table = daemon.exec_ok(&id, &["cat", "/proc/self/mountinfo"]);
    let flags = |at: &str| -> Vec<&str> {
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(at)).unwrap();
        line.split(' ').nth(5).unwrap().split(',').collect()
    };
    for option in ["noexec", "nodev", "nosuid"] {
        assert!(flags("/strict").contains(&option) && !flags("/plain").contains(&option), "{table}");
    }
    assert_eq!(daemon.exec_ok(&id, &["/plain/fixture", "echo", "runs"]), "runs\n");
    let refused = daemon.exec(&id, &["/strict/fixture", "echo", "runs"], 5).unwrap_err();
    assert!(refused.message().contains("noexec"), "{refused}");
    assert_eq!(daemon.status(&id).unwrap().mounts, asked.0.mounts);
    let unknown = berth_tests::asked("odd", &["true"]).mount(volume("/odd", &["suid"]));
    let refused = daemon.create(&pod, &unknown).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("suid"), "{refused}");
}

#[test]
fn recursively_read_only_is_so_or_refused() {
    let daemon = Daemon::with_fixture();
    let path = daemon.dir().join("shared");
    let _shared = Shared::make(&path);
    let below = path.join("below");
    fs::create_dir(&below).unwrap();
    rustix::mount::mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None).unwrap();
    let pod = daemon.plain_pod("rro");
    let volume = cri::Mount { readonly: true, recursive_read_only: true, ..mount(&path, "/v") };
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"]).mount(volume.clone())).unwrap();
    let refused = daemon.exec(&id, &["write", "/v/below/x", "x"], 5).unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only"), "{refused:?}");
    for (name, wrong) in [
        ("writable", cri::Mount { readonly: false, ..volume.clone() }),
        (
            "slave",
            cri::Mount { propagation: MountPropagation::PropagationHostToContainer.into(), ..volume.clone() },
        ),
    ] {
        let refused = daemon.create(&pod, &asked(name, &["true"]).mount(wrong)).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name}: {refused}");
    }
    daemon.remove_pod(&pod.id).unwrap();
    rustix::mount::unmount(&below, UnmountFlags::empty()).unwrap();
}

#[test]
fn an_images_writable_layer_is_the_containers_own() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("layer");
    let one = daemon.launch(&pod, &asked("one", &["sleep", "inf"])).unwrap();
    let two = daemon.launch(&pod, &asked("two", &["sleep", "inf"])).unwrap();
    daemon.exec_ok(&one, &["write", "/tmp/x", "mine"]);
    daemon.exec_ok(&one, &["rm", "/etc/group"]);
    assert_eq!(daemon.exec(&two, &["cat", "/tmp/x"], 5).unwrap().exit_code, 1);
    daemon.exec_ok(&two, &["cat", "/etc/group"]);
    let upper = daemon.details(&one)["upperDir"].as_str().unwrap().to_owned();
    assert_eq!(fs::read_to_string(Path::new(&upper).join("tmp/x")).unwrap(), "mine\n");
    let mode = fs::metadata(Path::new(&upper).join("tmp")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o1777);
    daemon.remove_container(&one).unwrap();
    assert!(!Path::new(&upper).exists());
}

/// An image as a volume; its name is also how the daemon finds it.
fn image_volume(image: &str, at: &str, sub_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: at.into(),
        readonly: true,
        image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

/// Two layers above the fixture's: the upper one changes and removes what the lower one has.
fn models() -> berth_fixtures::Image {
    use berth_fixtures::Layer;
    let lower = Layer::new()
        .file("models/one/weights", 0o644, "old\n")
        .file("models/gone", 0o644, "gone\n")
        .symlink("out", "/../../../../../../etc")
        .symlink("up", "../../../../../..");
    let upper = Layer::new().file("models/one/weights", 0o644, "new\n").file("models/.wh.gone", 0o644, "");
    berth_tests::images::with_layer(lower).layer(upper)
}

#[test]
fn an_image_is_a_read_only_volume_and_its_status_says_which() {
    let daemon = Daemon::with_fixture();
    daemon.load_image("localhost/models:1", &models());
    let request = cri::ImageStatusRequest {
        image: Some(cri::ImageSpec { image: "localhost/models:1".into(), ..Default::default() }),
        verbose: false,
    };
    let id_of = daemon.call(daemon.images().image_status(request)).unwrap().image.unwrap().id;
    let pod = daemon.plain_pod("models");
    let asked = asked("c", &["sleep", "inf"])
        .mount(image_volume("localhost/models:1", "/all", ""))
        .mount(image_volume("localhost/models:1", "/part", "models"))
        .mount(image_volume("localhost/models:1", "/file", "models/one/weights"))
        .mount(image_volume("localhost/models:1", "/linked", "out/passwd"));
    let id = daemon.launch(&pod, &asked).unwrap();
    assert_eq!(daemon.exec_ok(&id, &["cat", "/all/models/one/weights"]), "new\n");
    assert_eq!(daemon.exec_ok(&id, &["ls", "/part"]), "one\n");
    assert_eq!(daemon.exec_ok(&id, &["cat", "/file"]), "new\n");
    // A link of the image's leads inside of it, not to the node.
    let own = daemon.exec_ok(&id, &["cat", "/etc/passwd"]);
    assert_eq!(daemon.exec_ok(&id, &["cat", "/linked"]), own);
    for at in ["/all/x", "/part/x", "/part/one/weights"] {
        let refused = daemon.exec(&id, &["write", at, "x"], 5).unwrap();
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only"), "{at}: {refused:?}");
    }
    // Its programs run.
    daemon.exec_ok(&id, &["/all/bin/cat", "/all/etc/group"]);
    let told = daemon.status(&id).unwrap().mounts;
    assert_eq!(told.len(), 4);
    for (told, asked) in told.iter().zip(&asked.0.mounts) {
        assert_eq!(told.image.as_ref().unwrap().image_ref, id_of);
        assert_eq!(
            (&told.container_path, &told.image_sub_path),
            (&asked.container_path, &asked.image_sub_path)
        );
    }
}

#[test]
fn an_image_that_is_a_volume_stays_until_its_container_goes() {
    let daemon = Daemon::with_fixture();
    daemon.load_image("localhost/models:1", &models());
    let pod = daemon.plain_pod("models");
    let asked = asked("c", &["sleep", "inf"]).mount(image_volume("localhost/models:1", "/part", "models"));
    let id = daemon.launch(&pod, &asked).unwrap();
    let request = cri::RemoveImageRequest {
        image: Some(cri::ImageSpec { image: "localhost/models:1".into(), ..Default::default() }),
    };
    daemon.call(daemon.images().remove_image(request)).unwrap();
    assert_eq!(daemon.exec_ok(&id, &["cat", "/part/one/weights"]), "new\n");
    let held = |daemon: &Daemon| fs::read_dir(daemon.root().join("images/holds")).unwrap().count();
    assert_eq!(held(&daemon), 2);
    let layers = |daemon: &Daemon| fs::read_dir(daemon.root().join("images/layers")).unwrap().count();
    let before = layers(&daemon);
    daemon.remove_container(&id).unwrap();
    assert_eq!(held(&daemon), 0);
    assert_eq!(layers(&daemon), before - 2);
}

#[test]
fn an_image_that_cannot_be_a_volume_is_told_by_the_kubelets_word() {
    let daemon = Daemon::with_fixture();
    daemon.load_image("localhost/models:1", &models());
    let pod = daemon.plain_pod("models");
    let create = |mount| daemon.create(&pod, &asked("c", &["true"]).mount(mount)).unwrap_err();
    for (mount, why) in [
        (image_volume("localhost/nosuch:1", "/v", ""), "localhost/nosuch:1"),
        (image_volume("localhost/models:1", "/v", "models/nosuch"), "models/nosuch"),
        (image_volume("localhost/models:1", "/v", "models/gone"), "models/gone"),
    ] {
        let status = create(mount);
        assert!(status.message().starts_with("ImageVolumeMountFailed"), "{status}");
        assert!(status.message().contains(why) && status.message().contains("/v"), "{status}");
    }
    let whole = image_volume("localhost/models:1", "/v", "");
    for wrong in [
        cri::Mount { readonly: false, ..whole.clone() },
        cri::Mount { host_path: "/tmp".into(), ..whole.clone() },
        cri::Mount { propagation: MountPropagation::PropagationHostToContainer.into(), ..whole.clone() },
        image_volume("localhost/models:1", "/v", "../x"),
        image_volume("localhost/models:1", "/v", "/x"),
    ] {
        assert_eq!(create(wrong.clone()).code(), Code::InvalidArgument, "{wrong:?}");
    }
    assert!(daemon.list_containers(Default::default()).is_empty());
    assert_eq!(fs::read_dir(daemon.root().join("images/holds")).unwrap().count(), 0);
}
