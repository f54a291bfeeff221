//! How long a gigabyte of lines of 74 bytes takes into a container's log, beside the same producer without a log, and how
//! much of a processor its shim takes for it. By `cargo xtask soak --gigabyte`, which takes the shim as it is shipped; or
//! `cargo run -p berth-tests --example gigabyte -- [MEBIBYTES] [ROUNDS]`, of 1024 and 3. Needs root and busybox-static.

use std::{
    fs, io,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use berth_tests::{Asked, Daemon, Options, asked, images};

/// With its end.
const LINE_BYTES: u64 = 74;
/// What the log adds to a line: the time, the stream, the tag.
const ADDED_BYTES: u64 = 40;

fn main() -> ExitCode {
    let numbers: Option<Vec<u64>> = std::env::args().skip(1).map(|word| word.parse().ok()).collect();
    let Some(numbers) = numbers.filter(|numbers| numbers.len() <= 2) else {
        eprintln!("usage: gigabyte [MEBIBYTES] [ROUNDS]");
        return ExitCode::FAILURE;
    };
    let bytes = numbers.first().copied().unwrap_or(1024) << 20;
    let rounds = numbers.get(1).copied().unwrap_or(3);
    let image = match images::busybox() {
        Ok(image) => image,
        Err(reason) => {
            eprintln!("gigabyte: {reason}");
            return ExitCode::FAILURE;
        }
    };
    let lines = bytes / LINE_BYTES;
    let text = "x".repeat(LINE_BYTES as usize - 1);
    // It stays until it is told to go: while it is there its shim's time can be read.
    let script = format!("yes {text} | head -n {lines}; while [ ! -e /gate/go ]; do sleep 0.05; done");
    let options = Options { over: "[daemon]\nlog_level = \"info\"\n".into(), ..Options::default() };
    let daemon = Daemon::start_with(options);
    daemon.load_image(images::BUSYBOX, &image);
    println!("{lines} lines of {LINE_BYTES} bytes, {} MiB; seconds", bytes >> 20);
    println!("nowhere  to a pipe  into the log  shim's CPU");
    for round in 0..rounds {
        let (nowhere, pipe) = match (alone(&text, lines, false), alone(&text, lines, true)) {
            (Ok(nowhere), Ok(pipe)) => (nowhere, pipe),
            (Err(error), _) | (_, Err(error)) => {
                eprintln!("gigabyte: run busybox: {error}");
                return ExitCode::FAILURE;
            }
        };
        let (logged, cpu) = logged(&daemon, &script, lines, round);
        let seconds = |time: Duration| time.as_secs_f64();
        println!(
            "{:7.2}  {:9.2}  {:12.2}  {:10.2}",
            seconds(nowhere),
            seconds(pipe),
            seconds(logged),
            seconds(cpu)
        );
    }
    ExitCode::SUCCESS
}

/// The producer by itself, thrown away at once or by a reader of its pipe.
fn alone(text: &str, lines: u64, to_a_pipe: bool) -> io::Result<Duration> {
    let script = format!("yes {text} | head -n {lines}");
    let began = Instant::now();
    let mut producer = Command::new("busybox");
    producer.args(["sh", "-c", &script]).stdin(Stdio::null());
    if to_a_pipe {
        let mut child = producer.stdout(Stdio::piped()).spawn()?;
        if let Some(mut output) = child.stdout.take() {
            io::copy(&mut output, &mut fs::File::create("/dev/null")?)?;
        }
        child.wait()?;
    } else {
        producer.stdout(Stdio::null()).status()?;
    }
    Ok(began.elapsed())
}

/// From the start to the last byte in the log, and what the shim has used by then.
fn logged(daemon: &Daemon, script: &str, lines: u64, round: u64) -> (Duration, Duration) {
    let gate = daemon.dir().join(format!("gate-{round}"));
    fs::create_dir(&gate).expect("make the gate");
    let pod = daemon.plain_pod("gigabyte");
    let volume = berth_cri::v1::Mount {
        host_path: gate.display().to_string(),
        container_path: "/gate".into(),
        ..Default::default()
    };
    let writes: Asked = asked("writes", &[]).image(images::BUSYBOX).mount(volume);
    let writes = writes.with(|config| config.command = ["sh", "-c", script].map(Into::into).into());
    let id = daemon.create(&pod, &writes).expect("create the container");
    let (log, whole) = (daemon.log_path_of(&pod, &writes), lines * (LINE_BYTES + ADDED_BYTES));
    let shim = shim_of(daemon, &id);
    let began = Instant::now();
    daemon.start_container(&id).expect("start the container");
    let length = || fs::metadata(&log).map_or(0, |found| found.len());
    let done = berth_tests::until(Duration::from_secs(600), || (length() >= whole).then(|| began.elapsed()));
    let took = done.unwrap_or_else(|| panic!("{} of {whole} bytes in the log after ten minutes", length()));
    let cpu = cpu_of(shim);
    assert_eq!(length(), whole, "lines are split, or some are there twice");
    fs::write(gate.join("go"), "").expect("open the gate");
    daemon.exited(&id);
    daemon.remove_pod(&pod.id).expect("remove the pod");
    fs::remove_file(&log).expect("remove the log");
    (took, cpu)
}

fn shim_of(daemon: &Daemon, id: &str) -> u32 {
    let init = daemon.details(id)["pid"].as_i64().expect("a created container has a process");
    let status = fs::read_to_string(format!("/proc/{init}/status")).expect("read the process's status");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.and_then(|pid| pid.trim().parse().ok()).expect("it has a parent")
}

/// User and system, `proc_pid_stat(5)`.
fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("read the shim's times");
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks: u64 =
        fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number of ticks")).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}
