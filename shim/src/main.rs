//! berth-shim: launches and supervises one container, or makes one pod's namespaces. The plan comes as a sealed memfd on
//! standard input, the outcome goes to standard output, one fact a line to standard error. See `launch.proto`.

/// Writes a line to our own log, or not: one whose disk is full is no reason to end, as it is to `eprintln!`.
macro_rules! complain {
    ($($words:tt)*) => {
        std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($words)*))).ok()
    };
}
pub(crate) use complain;

mod adopt;
mod attach;
mod clock;
mod denied;
mod dial;
mod framer;
mod group;
mod health;
mod kernel;
mod launch;
mod log;
mod oneshot;
mod oom;
mod own;
mod probe;
mod rate;
mod record;
mod report;
mod requests;
mod run;
mod sent;
mod server;
mod stage;
mod streams;
mod supervise;
mod wait;
mod watch;

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::AsFd,
    process::ExitCode,
};

use berth_launch::v1::{
    Birth, ContainerPlan, Failure, Ready, SandboxPlan, Step, Unsupported, birth::Outcome,
};
use berth_launch::{fault, needs};
use prost::Message;

fn main() -> ExitCode {
    let mode = std::env::args().nth(1);
    let launches = ["sandbox", "container", "adopt", "oneshot", "oneshot-exec"];
    if mode.as_deref().is_some_and(|mode| launches.contains(&mode))
        && let Err(error) = own::shut_away()
    {
        crate::complain!("berth-shim: mount our own program read-only: {error}");
        return ExitCode::FAILURE;
    }
    match mode.as_deref() {
        Some("sandbox") => sandbox(),
        Some("container") => container(),
        Some("adopt") => adopt(),
        Some("dial") => dial(),
        Some("lend") => told(dial::answer(own::mount())),
        Some("oneshot") => oneshot::create(),
        Some("oneshot-exec") => oneshot::exec(),
        Some("signal") => oneshot::signal(),
        Some("devices") => oneshot::devices(),
        Some("keep") => keep(),
        Some("--version") => {
            println!("berth-shim {} (launch protocol {})", env!("CARGO_PKG_VERSION"), berth_launch::VERSION);
            ExitCode::SUCCESS
        }
        _ => {
            crate::complain!(
                "berth-shim: started by berthd as `berth-shim sandbox` or `berth-shim container`, plan on stdin"
            );
            ExitCode::from(2)
        }
    }
}

#[inline(never)]
fn sandbox() -> ExitCode {
    kernel::exec::setsid();
    let outcome = match read_plan::<SandboxPlan>() {
        Ok(plan) => match lacking(plan.version, &plan.needs, &needs::sandbox(&plan)) {
            Some(unsupported) => Outcome::Unsupported(unsupported),
            None => match launch::sandbox::create(&plan) {
                Ok(ready) => Outcome::Ready(ready),
                Err(failure) => Outcome::Failure(failure),
            },
        },
        Err(failure) => Outcome::Failure(failure),
    };
    report(outcome)
}

/// Keeps a cgroup in being, which without a process would go, until whoever started us lets our standard input go.
#[inline(never)]
fn keep() -> ExitCode {
    match std::io::copy(&mut std::io::stdin(), &mut std::io::sink()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Connects in a pod's network for berthd, and ends.
#[inline(never)]
fn dial() -> ExitCode {
    let mut arguments = std::env::args().skip(2);
    let (netns, port) = (arguments.next(), arguments.next().and_then(|port| port.parse().ok()));
    let (Some(netns), Some(port)) = (netns, port) else {
        crate::complain!("berth-shim: dial takes a network namespace and a port");
        return ExitCode::from(2);
    };
    told(dial::dial(&netns, port))
}

fn told(answer: std::io::Result<()>) -> ExitCode {
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::complain!("berth-shim: answer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Brings the container to CREATED, says so, and stays with it until its end. Of the frames above [`stay`]'s each page is
/// held as long: what needs much room only at a launch has frames of its own, and so have the other modes.
#[inline(never)]
fn container() -> ExitCode {
    settle();
    match launched() {
        Ok((supervisor, ready)) => stay(supervisor, ready),
        Err(outcome) => report(outcome),
    }
}

#[inline(never)]
fn launched() -> Result<(Box<supervise::Supervisor>, Ready), Outcome> {
    let plan = read_plan::<ContainerPlan>().map_err(Outcome::Failure)?;
    if let Some(unsupported) = lacking(plan.version, &plan.needs, &needs::container(&plan)) {
        return Err(Outcome::Unsupported(unsupported));
    }
    born(plan).map_err(|failure| {
        // The failure is the story; a socket that stays is bound over.
        std::fs::remove_file(berth_launch::SOCKET).ok();
        Outcome::Failure(failure)
    })
}

/// Takes a container over whose shim was killed, and stays with it until its end.
#[inline(never)]
fn adopt() -> ExitCode {
    settle();
    match adopt::adopt() {
        Ok((supervisor, ready)) => stay(supervisor, ready),
        Err(failure) => report(Outcome::Failure(failure)),
    }
}

/// A host that goes down signals everybody: we leave after our container, by its end. Its program starts with all
/// signals at their defaults.
fn settle() {
    kernel::exec::setsid();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        kernel::signal::ignore(signal);
    }
}

/// Says that all is well, and lives until the container's end.
fn stay(supervisor: Box<supervise::Supervisor>, ready: Ready) -> ExitCode {
    let reported = report(Outcome::Ready(ready));
    let let_go = launch::null().and_then(|null| {
        // Standard input stays: a restart reads the plan from it again.
        rustix::stdio::dup2_stdout(&null).map_err(|errno| failed(Step::Stdio, "/dev/null", errno.into()))
    });
    if let Err(failure) = let_go {
        crate::complain!("berth-shim: let go of the streams: {failure:?}");
    }
    supervisor.run();
    fault::point("shim.leaving");
    reported
}

fn born(plan: ContainerPlan) -> Result<(Box<supervise::Supervisor>, Ready), Failure> {
    std::env::set_current_dir(&plan.dir).map_err(|error| failed(Step::Socket, &plan.dir, error))?;
    let listener = server::bind_here().map_err(|error| failed(Step::Socket, berth_launch::SOCKET, error))?;
    fault::point("shim.bound");
    let log = plan.log.clone().unwrap_or_default();
    let log = log::Log::open(&log).map_err(|error| failed(Step::LogOpen, &log.path, error))?;
    let streams = streams::Streams::new(log, plan.stdio.unwrap_or_default().stdin());
    let created = launch::create(&plan, launch::Keeper::Us).inspect_err(|_| streams.log.remove_unused())?;
    fault::point("shim.created");
    protect();
    let ready = Ready {
        shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
        pid: created.pid,
        pid_start_time: created.start_time,
        uid: created.uid,
        gid: created.gid,
        groups: created.groups.clone(),
        warnings: created.warnings.clone(),
    };
    let supervisor = supervise::Supervisor::new(plan, listener, streams, created)
        .map_err(|errno| failed(Step::Stdio, "pipe", errno.into()))?;
    Ok((Box::new(supervisor), ready))
}

/// The OOM killer takes the container before the one who tells of it; where lowering is denied, as low as we are.
fn protect() {
    std::fs::write("/proc/self/oom_score_adj", "-999").ok();
}

fn failed(step: Step, object: &str, error: std::io::Error) -> Failure {
    Failure {
        step: step.into(),
        errno: error.raw_os_error().unwrap_or(0),
        object: object.into(),
        detail: String::new(),
    }
}

/// Reads the plan from the memfd that is our standard input.
fn read_plan<P: Message + Default>() -> Result<P, Failure> {
    let failed = |errno, detail: &str| Failure {
        step: Step::Plan.into(),
        errno,
        object: "standard input".into(),
        detail: detail.into(),
    };
    let io = |error: std::io::Error| failed(error.raw_os_error().unwrap_or(0), "");
    let mut file = File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(io)?);
    file.rewind().map_err(io)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io)?;
    P::decode(bytes.as_slice()).map_err(|error| failed(0, &error.to_string()))
}

/// What a plan needs, or holds though it does not say so, and this shim lacks.
fn lacking(version: u32, needs: &[String], used: &[String]) -> Option<Unsupported> {
    let mut features: Vec<String> = Vec::new();
    for need in needs.iter().chain(used) {
        if !berth_launch::FEATURES.contains(&need.as_str()) && !features.contains(need) {
            features.push(need.clone());
        }
    }
    if version > berth_launch::VERSION {
        features.push(format!("plan version {version}"));
    }
    (!features.is_empty()).then_some(Unsupported { features })
}

fn report(outcome: Outcome) -> ExitCode {
    let bytes = Birth { outcome: Some(outcome) }.encode_to_vec();
    // Standard output is buffered by lines, and a byte of ours may be a newline.
    let mut stdout = std::io::stdout();
    match stdout.write_all(&bytes).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
