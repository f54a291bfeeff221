//! A registry that stops answering in the middle of a layer, while `berthd` dies and comes back.

use std::{fs, thread};

use berth_cri::v1 as cri;
use berth_fixtures::{Image, Layer};
use berth_tests::{Answer, Daemon, Hostile, Trick, asked, eventually};
use nix::sys::signal::{Signal, kill};

fn pull(daemon: &Daemon, reference: &str) -> Answer<cri::PullImageResponse> {
    let image = Some(cri::ImageSpec { image: reference.into(), ..Default::default() });
    daemon.call(daemon.images().pull_image(cri::PullImageRequest { image, ..Default::default() }))
}

#[test]
fn a_registry_that_hangs_keeps_nobody_from_ending_or_coming_back() {
    // Another than the fixture's, whose layers are there.
    let image = Image::new().layer(Layer::new().file("big", 0o644, "x".repeat(1 << 20)));
    let hangs = Hostile::start(Trick::Stall, &image);
    let works = Hostile::start(Trick::None, &image);
    let mut daemon = Daemon::with_fixture();
    let partial = daemon.root().join("images/partial");
    let half = || fs::read_dir(&partial).is_ok_and(|mut entries| entries.next().is_some());
    let under_way = |daemon: &Daemon, signal| {
        thread::scope(|scope| {
            let call = scope.spawn(|| pull(daemon, &hangs.reference()));
            eventually("half a layer to be there", || half().then_some(()));
            kill(daemon.pid(), signal).unwrap();
            call.join().unwrap().unwrap_err();
        });
    };
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        under_way(&daemon, signal);
        eventually("berthd to end", || daemon.has_died().then_some(()));
        daemon.up();
        assert_eq!(
            daemon.run_to_end(&daemon.plain_pod("beside"), &asked("c", &["true"])).unwrap().0.exit_code,
            0
        );
    }
    // The retry is told, and the same image is had from where it can be.
    let told = pull(&daemon, &hangs.reference()).unwrap_err();
    assert!(told.message().contains("RegistryUnavailable") && told.message().contains("stall"), "{told}");
    pull(&daemon, &works.reference()).unwrap();
}
