//! The clock of the day is set under all of it, an hour and a year back and forth: what is timed is neither early nor late,
//! nothing is lost, and what is newer is said to be newer. Only where `BERTH_TEST_CLOCK` says that nobody else needs it.

use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use berth_cri::v1::{self as cri, ContainerState::ContainerRunning as Running};
use berth_fixtures::{Image, Layer};
use berth_tests::{Daemon, Hostile, Trick, asked, eventually, images, skip};
use nix::unistd::Pid;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde_json::Value;
use tonic::Code;

use crate::attempts::{attempt, attempts, comes, end, pid_of, pod_with};

const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 86_400;
const JUMPS: [i64; 4] = [HOUR, -HOUR, YEAR, -YEAR];

/// One at a time: all the tests of this program have the same clock.
static CLOCK: Mutex<()> = Mutex::new(());

/// The machine's clock, set right again when it is dropped.
struct Clock {
    before: Duration,
    began: Instant,
    _alone: MutexGuard<'static, ()>,
}

impl Clock {
    /// None, and the test is skipped, where the clock is not ours to set.
    fn ours(test: &str) -> Option<Self> {
        if std::env::var_os("BERTH_TEST_CLOCK").is_none() {
            skip(
                test,
                "it sets the machine's clock: BERTH_TEST_CLOCK says where that may be, as in tests/vm/run",
            );
            return None;
        }
        let alone = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Self { before: now(), began: Instant::now(), _alone: alone })
    }

    /// So many seconds away from the right time.
    fn jumps(&self, seconds: i64) {
        let right = self.before + self.began.elapsed();
        let time = Timespec {
            tv_sec: i64::try_from(right.as_secs()).unwrap() + seconds,
            tv_nsec: i64::from(right.subsec_nanos()),
        };
        clock_settime(ClockId::Realtime, time).expect("set the clock");
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.jumps(0);
    }
}

fn now() -> Duration {
    let time = clock_gettime(ClockId::Realtime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

fn init_of(daemon: &Daemon, container: &str) -> Pid {
    let pid = inspect(daemon, container)["State"]["Pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap())
}

fn inspect(daemon: &Daemon, container: &str) -> Value {
    let mut found: Vec<Value> = serde_json::from_str(&daemon.berth_ok(&["inspect", container])).unwrap();
    found.remove(0)
}

#[test]
fn health_and_restarts_go_on_when_the_clock_is_set() {
    let Some(clock) = Clock::ours("health_and_restarts_go_on_when_the_clock_is_set") else { return };
    const CHECKED: &str = "localhost/checked:1";
    let daemon = Daemon::with_fixture();
    daemon.load_image(CHECKED, &images::base().healthcheck(&["CMD", "cat", "/well"]));
    let quick = ["--health-interval", "50ms", "--health-retries", "2", "--restart", "always"];
    daemon
        .berth_ok(&[&["run", "-d", "--name", "web"], &quick[..], &[CHECKED, "trap", "--exit", "3"]].concat());
    let comes_to = |status: &str, when: i64| {
        eventually(&format!("it to be {status} {when} s away"), || {
            (inspect(&daemon, "web")["State"]["Health"]["Status"] == status).then_some(())
        });
    };
    for (restarts, jump) in JUMPS.into_iter().enumerate() {
        comes_to("unhealthy", jump);
        clock.jumps(jump);
        daemon.berth_ok(&["exec", "web", "write", "/well", "x"]);
        comes_to("healthy", jump);
        daemon.berth_ok(&["exec", "web", "rm", "/well"]);
        // It ends, and its delay passes by no clock of the day's.
        end(init_of(&daemon, "web"));
        clock.jumps(-jump);
        eventually("it to run again", || {
            let told = inspect(&daemon, "web");
            let runs = told["State"]["Running"] == true && told["RestartCount"] == restarts + 1;
            runs.then_some(())
        });
    }
}

#[test]
fn an_attempt_that_ran_for_a_moment_is_not_taken_for_a_long_one() {
    let Some(clock) = Clock::ours("an_attempt_that_ran_for_a_moment_is_not_taken_for_a_long_one") else {
        return;
    };
    let daemon = Daemon::with_fixture();
    let pod = pod_with(&daemon, &[("berth.dev/restart.web", "on-failure:2")]);
    daemon.launch(&pod, &attempt(&daemon, 0, &["wait-file", "/tmp/go"])).unwrap();
    let mut made = Vec::new();
    for (number, jump) in [HOUR, YEAR, -HOUR].into_iter().enumerate() {
        let runs = comes(&daemon, &pod, u32::try_from(number).unwrap(), Running);
        clock.jumps(jump);
        daemon
            .call(daemon.runtime().container_status(cri::ContainerStatusRequest {
                container_id: runs.id.clone(),
                verbose: false,
            }))
            .unwrap();
        end(pid_of(&daemon, &runs.id));
        assert_eq!(daemon.exited(&runs.id).exit_code, 137);
        made.push(runs.created_at);
    }
    // Three that failed, of which none had been there for long: it is over.
    let last = attempts(&daemon, &pod).remove(&2).unwrap();
    let told = daemon.berth_ok(&["explain", &last.id]);
    assert!(told.contains("ended") && !told.contains("is to be started again"), "{told}");
    // A kubelet takes the newest for the present one.
    assert!(made.is_sorted_by(|one, next| one < next), "{made:?}");
}

#[test]
fn a_pull_that_stalls_ends_when_the_clock_is_set() {
    let Some(clock) = Clock::ours("a_pull_that_stalls_ends_when_the_clock_is_set") else { return };
    let image = Image::new().layer(Layer::new().file("big", 0o644, "x".repeat(1 << 20)));
    let (hangs, works) = (Hostile::start(Trick::Stall, &image), Hostile::start(Trick::None, &image));
    let daemon = Daemon::start();
    let pull = |reference: String| {
        let image = Some(cri::ImageSpec { image: reference, ..Default::default() });
        daemon.call(daemon.images().pull_image(cri::PullImageRequest { image, ..Default::default() }))
    };
    let partial = daemon.root().join("images/partial");
    let half = || std::fs::read_dir(&partial).is_ok_and(|mut entries| entries.next().is_some());
    for jump in [-YEAR, YEAR] {
        clock.jumps(0);
        thread::scope(|scope| {
            let call = scope.spawn(|| pull(hangs.reference()));
            eventually("half a layer to be there", || half().then_some(()));
            clock.jumps(jump);
            let told = call.join().unwrap().unwrap_err();
            assert!(told.message().contains("stall"), "{jump}: {told}");
        });
    }
    pull(works.reference()).unwrap();
}

/// A stop's grace and an exec's time are so long by no clock of the day's: neither over at once nor after an hour.
#[test]
fn a_stop_and_an_exec_take_their_time_when_the_clock_is_set() {
    let Some(clock) = Clock::ours("a_stop_and_an_exec_take_their_time_when_the_clock_is_set") else { return };
    const SECONDS: i64 = 3;
    let allowed = Duration::from_secs(3)..Duration::from_secs(60);
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("clock");
    for jump in JUMPS {
        clock.jumps(0);
        let (stops, execs) = (asked("stops", &["trap"]), asked("execs", &["sleep", "inf"]));
        let stops_id = daemon.launch(&pod, &stops).unwrap();
        let execs_id = daemon.launch(&pod, &execs).unwrap();
        daemon.logged(&pod, &stops, "ready");
        let began = Instant::now();
        thread::scope(|scope| {
            let stop = scope.spawn(|| (daemon.stop_container(&stops_id, SECONDS), began.elapsed()));
            let exec = scope.spawn(|| (daemon.exec(&execs_id, &["sleep", "inf"], SECONDS), began.elapsed()));
            daemon.logged(&pod, &stops, "SIGTERM");
            clock.jumps(jump);
            let (stopped, after) = stop.join().unwrap();
            stopped.unwrap();
            assert!(allowed.contains(&after), "{jump}: a stop after {after:?}");
            let (timed_out, after) = exec.join().unwrap();
            assert_eq!(timed_out.unwrap_err().code(), Code::DeadlineExceeded, "{jump}");
            assert!(allowed.contains(&after), "{jump}: an exec after {after:?}");
        });
        let status = daemon.status(&stops_id).unwrap();
        assert_eq!(status.exit_code, 137, "{jump}: {status:?}");
        assert!(status.message.contains("had not ended 3s after"), "{jump}: {status:?}");
        assert_eq!(daemon.exec_ok(&execs_id, &["echo", "on"]), "on\n");
        [&stops_id, &execs_id].iter().for_each(|id| daemon.remove_container(id).unwrap());
        fs::remove_file(daemon.log_path_of(&pod, &stops)).unwrap();
    }
}
