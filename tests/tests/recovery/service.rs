//! What a service manager is told: that it is ready, that it goes on, that it stops.

use std::{io, os::unix::net::UnixDatagram, time::Duration};

use berth_tests::{BOUND, Daemon, Options};

/// The next word that is another than `skipped`.
fn next(socket: &UnixDatagram, skipped: &str) -> io::Result<String> {
    loop {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer)?;
        let word = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if word != skipped {
            return Ok(word);
        }
    }
}

#[test]
fn a_service_manager_is_told_of_the_start_of_the_end_and_all_the_time_between() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    let env = [("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "100000".to_owned())];
    let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let mut daemon = Daemon::start_with(Options { env, ..Options::default() });
    assert_eq!(next(&socket, "").unwrap(), "READY=1");
    for _ in 0..3 {
        assert_eq!(next(&socket, "").unwrap(), "WATCHDOG=1");
    }
    // One that hangs says nothing more.
    nix::sys::signal::kill(daemon.pid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let silent = next(&socket, "WATCHDOG=1").unwrap_err();
    assert_eq!(silent.kind(), io::ErrorKind::WouldBlock);
    nix::sys::signal::kill(daemon.pid(), nix::sys::signal::Signal::SIGCONT).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    assert_eq!(next(&socket, "").unwrap(), "WATCHDOG=1");
    assert!(daemon.stop().success());
    assert_eq!(next(&socket, "WATCHDOG=1").unwrap(), "STOPPING=1");
    // Its successor is to talk to nobody that is gone.
    daemon.up();
}
