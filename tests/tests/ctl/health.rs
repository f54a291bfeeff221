//! Health checks: what runs them, what they find, what is done about it.

use std::{fs, net::TcpListener};

use berth_fixtures::{Image, Layer};
use berth_tests::{Daemon, eventually, images, skip};
use serde_json::Value;

use crate::{IMAGE, inspect, wait};

/// Quick enough for a test; what counts is the order.
const QUICK: &[&str] = &["--health-interval", "50ms", "--health-retries", "2"];
const CHECKED: &str = "localhost/checked:1";

/// Loads the fixture's image with a HEALTHCHECK of these words.
fn with_check(daemon: &Daemon, test: &[&str]) {
    daemon.load_image(CHECKED, &images::base().healthcheck(test));
}

fn run(daemon: &Daemon, name: &str, flags: &[&str], words: &[&str]) {
    daemon.berth_ok(&[&["run", "-d", "--name", name], QUICK, flags, words].concat());
}

fn health(daemon: &Daemon, name: &str) -> Value {
    inspect(daemon, name)["State"]["Health"].clone()
}

/// Waits until it is said to be in that state.
fn until(daemon: &Daemon, name: &str, status: &str) -> Value {
    eventually(&format!("{name} to be {status}"), || {
        let health = health(daemon, name);
        (health["Status"] == status).then_some(health)
    })
}

fn last(health: &Value) -> &Value {
    health["Log"].as_array().unwrap().last().unwrap()
}

#[test]
fn the_images_check_is_run_and_shown() {
    let daemon = Daemon::with_fixture();
    with_check(&daemon, &["CMD", "cat", "/tmp/well"]);
    run(&daemon, "web", &[], &[CHECKED, "sleep", "inf"]);
    let ill = until(&daemon, "web", "unhealthy");
    assert!(ill["FailingStreak"].as_u64().unwrap() >= 2, "{ill}");
    assert_eq!(last(&ill)["ExitCode"], 1);
    assert!(last(&ill)["Output"].as_str().unwrap().contains("/tmp/well"), "{ill}");
    assert!(daemon.berth_ok(&["ps"]).contains("(unhealthy)"));
    daemon.berth_ok(&["exec", "web", "write", "/tmp/well", "as ever"]);
    let well = until(&daemon, "web", "healthy");
    assert_eq!(well["FailingStreak"], 0);
    assert!(last(&well)["Output"].as_str().unwrap().starts_with("as ever"), "{well}");
    assert!(well["Log"].as_array().unwrap().len() <= 5, "{well}");
    assert!(daemon.berth_ok(&["ps"]).contains("(healthy)"));
    let told = inspect(&daemon, "web");
    assert_eq!(told["State"]["Running"], true);
    let check = &told["Config"]["Healthcheck"];
    assert_eq!(check["Test"], serde_json::json!(["CMD", "cat", "/tmp/well"]));
    assert_eq!((&check["Interval"], &check["Retries"]), (&50_000_000.into(), &2.into()));
    // The same image without.
    daemon.berth_ok(&["run", "-d", "--name", "plain", "--no-healthcheck", CHECKED, "sleep", "inf"]);
    let plain = inspect(&daemon, "plain");
    assert!(
        plain["State"].get("Health").is_none() && plain["Config"].get("Healthcheck").is_none(),
        "{plain}"
    );
}

#[test]
fn it_runs_as_the_container_does() {
    let daemon = Daemon::with_fixture();
    with_check(&daemon, &["CMD", "id"]);
    run(&daemon, "as", &["-u", "app"], &[CHECKED, "sleep", "inf"]);
    let well = until(&daemon, "as", "healthy");
    assert_eq!(last(&well)["Output"], "uid=1000 gid=1000 groups=1000,2001\n");
}

#[test]
fn a_shell_runs_what_is_given() {
    let Ok(busybox) = images::busybox() else {
        return skip("a_shell_runs_what_is_given", "busybox-static is not installed");
    };
    let daemon = Daemon::start();
    daemon.load_image(images::BUSYBOX, &busybox);
    run(&daemon, "sh", &["--health-cmd", "echo $((6 * 7)); exit 0"], &[images::BUSYBOX, "sleep", "1000"]);
    assert_eq!(last(&until(&daemon, "sh", "healthy"))["Output"], "42\n");
}

#[test]
fn what_hangs_is_ended_with_all_that_it_started() {
    let daemon = Daemon::with_fixture();
    with_check(&daemon, &["CMD", "tree", "3"]);
    // Its init waits for orphans: nobody else takes the dead away.
    run(&daemon, "hung", &["--health-timeout", "200ms"], &[CHECKED, "tree", "1"]);
    let ill = until(&daemon, "hung", "unhealthy");
    assert_eq!(last(&ill)["ExitCode"], -1);
    // One more could be under way; those before it are gone.
    let cgroup = inspect(&daemon, "hung")["Berth"]["Cgroup"].as_str().unwrap().to_owned();
    eventually("only the container's own two", || {
        (berth_tests::processes_in(&cgroup).len() == 2).then_some(())
    });
}

#[test]
fn what_answers_in_the_containers_network_is_healthy() {
    let daemon = Daemon::with_fixture();
    run(&daemon, "http", &["--health-http", "8080/x"], &[IMAGE, "http", "8080", "hi"]);
    let well = until(&daemon, "http", "healthy");
    assert_eq!(last(&well)["Output"], "HTTP/1.1 200 OK");
    run(&daemon, "tcp", &["--health-tcp", "9"], &[IMAGE, "tcp", "9"]);
    until(&daemon, "tcp", "healthy");
    run(&daemon, "deaf", &["--health-tcp", "10"], &[IMAGE, "tcp", "9"]);
    let ill = until(&daemon, "deaf", "unhealthy");
    assert!(last(&ill)["Output"].as_str().unwrap().contains("127.0.0.1:10"), "{ill}");
    run(&daemon, "echo", &["--health-http", "9"], &[IMAGE, "tcp", "9"]);
    let ill = until(&daemon, "echo", "unhealthy");
    assert!(last(&ill)["Output"].as_str().unwrap().contains("no HTTP"), "{ill}");
    // Nobody accepts: the connection is there, the answer is not.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://127.0.0.1:{}/", silent.local_addr().unwrap().port());
    let flags = ["--network", "host", "--health-http", &url, "--health-timeout", "100ms"];
    run(&daemon, "silent", &flags, &[IMAGE, "sleep", "inf"]);
    assert_eq!(last(&until(&daemon, "silent", "unhealthy"))["ExitCode"], -1);
}

#[test]
fn an_unhealthy_one_is_started_again_or_ended_where_that_was_asked_for() {
    let daemon = Daemon::with_fixture();
    with_check(&daemon, &["CMD", "false"]);
    run(&daemon, "again", &["--health-on-failure", "restart"], &[CHECKED, "trap", "--exit", "0"]);
    eventually("it to be started again", || {
        (inspect(&daemon, "again")["RestartCount"].as_u64() >= Some(2)).then_some(())
    });
    daemon.berth_ok(&["stop", "again"]);
    assert_eq!(inspect(&daemon, "again")["State"]["Status"], "exited");
    run(
        &daemon,
        "ended",
        &["--restart", "always", "--health-on-failure", "stop"],
        &[CHECKED, "sleep", "inf"],
    );
    wait(&daemon, "ended");
    let told = inspect(&daemon, "ended");
    assert_eq!(told["RestartCount"], 0);
    let why = told["State"]["Error"].as_str().unwrap();
    assert!(why.contains("unhealthy: 2 checks in a row failed"), "{why}");
}

#[test]
fn retries_bound_the_restarts_of_one_that_is_never_healthy() {
    let daemon = Daemon::with_fixture();
    with_check(&daemon, &["CMD", "false"]);
    let flags = ["--restart", "on-failure:1", "--health-on-failure", "restart"];
    run(&daemon, "bounded", &flags, &[CHECKED, "sleep", "inf"]);
    wait(&daemon, "bounded");
    assert_eq!(inspect(&daemon, "bounded")["RestartCount"], 1);
}

#[test]
fn checks_go_on_while_the_daemon_is_away() {
    let mut daemon = Daemon::with_fixture();
    let layer = Layer::new().file("well", 0o644, b"as ever\n".to_vec());
    let image: Image = images::with_layer(layer).healthcheck(&["CMD", "cat", "/well"]);
    daemon.load_image(CHECKED, &image);
    let flags = ["--health-on-failure", "restart"];
    run(&daemon, "alone", &flags, &[CHECKED, "trap", "--exit", "0"]);
    until(&daemon, "alone", "healthy");
    let told = inspect(&daemon, "alone");
    let log = told["LogPath"].as_str().unwrap().to_owned();
    let starts = || fs::read_to_string(&log).unwrap().lines().filter(|line| line.ends_with("ready")).count();
    assert_eq!(starts(), 1);
    daemon.berth_ok(&["exec", "alone", "rm", "/well"]);
    daemon.kill9();
    eventually("its shim to start it again", || (starts() >= 2).then_some(()));
    daemon.up();
    assert!(inspect(&daemon, "alone")["RestartCount"].as_u64() >= Some(1));
    // It may be between two starts.
    eventually("it to be well again", || {
        (daemon.berth(&["exec", "alone", "write", "/well", "again"]).code == 0).then_some(())
    });
    until(&daemon, "alone", "healthy");
}

#[test]
fn the_start_period_excuses_failures() {
    let daemon = Daemon::with_fixture();
    with_check(&daemon, &["CMD", "false"]);
    let flags = ["--health-start-period", "1h", "--health-start-interval", "20ms"];
    run(&daemon, "slow", &flags, &[CHECKED, "sleep", "inf"]);
    let starting = eventually("some failures", || {
        let health = health(&daemon, "slow");
        (health["Log"].as_array()?.len() == 5).then_some(health)
    });
    assert_eq!((&starting["Status"], &starting["FailingStreak"]), (&"starting".into(), &0.into()));
    assert!(daemon.berth_ok(&["ps"]).contains("(health: starting)"));
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let daemon = Daemon::with_fixture();
    let rows: [(&[&str], &str); 5] = [
        (&["--health-interval", "1s"], "neither the image nor the request says a check"),
        (&["--health-http", "https://localhost/"], "only http"),
        (&["--health-http", "http://web:80/"], "no IP address"),
        (&["--health-tcp", "0"], "names no port"),
        (&["--health-cmd", "x", "--health-tcp", "1"], "cannot be used with"),
    ];
    for (flags, why) in rows {
        let said = daemon.berth(&[&["run", "-d"], flags, &[IMAGE, "true"]].concat());
        assert!(said.code == 125 && said.stderr.contains(why), "{flags:?}: {said:?}");
    }
    assert_eq!(daemon.berth_ok(&["ps", "-aq"]), "");
}
