//! berth-shim: launches and supervises one container, or makes one pod's namespaces. The plan comes as a sealed memfd on
//! standard input, the outcome goes to standard output, one fact a line to standard error. See `launch.proto`.

mod kernel;
mod launch;

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::AsFd,
    process::ExitCode,
};

use berth_launch::v1::{Birth, Failure, SandboxPlan, Step, Unsupported, birth::Outcome};
use prost::Message;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("sandbox") => sandbox(),
        Some("--version") => {
            println!("berth-shim {} (launch protocol {})", env!("CARGO_PKG_VERSION"), berth_launch::VERSION);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "berth-shim: started by berthd as `berth-shim sandbox` or `berth-shim container`, plan on stdin"
            );
            ExitCode::from(2)
        }
    }
}

fn sandbox() -> ExitCode {
    kernel::exec::setsid();
    let outcome = match read_plan::<SandboxPlan>() {
        Ok(plan) => match lacking(plan.version, &plan.needs) {
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

/// What a plan needs and this shim lacks.
fn lacking(version: u32, needs: &[String]) -> Option<Unsupported> {
    let mut features: Vec<String> =
        needs.iter().filter(|need| !berth_launch::FEATURES.contains(&need.as_str())).cloned().collect();
    if version > berth_launch::VERSION {
        features.push(format!("plan version {version}"));
    }
    (!features.is_empty()).then_some(Unsupported { features })
}

fn report(outcome: Outcome) -> ExitCode {
    let bytes = Birth { outcome: Some(outcome) }.encode_to_vec();
    match std::io::stdout().write_all(&bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
