//! Starts the shim as berthd does: plan on stdin as a memfd, Birth on stdout.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use berth_launch::v1::{Birth, birth::Outcome};
use prost::Message;

/// Starts `berth-shim MODE` and reads its Birth.
pub fn birth(mode: &str, plan: &impl Message) -> (Child, Outcome) {
    let memfd = rustix::fs::memfd_create("plan", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(memfd);
    file.write_all(&plan.encode_to_vec()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_berth-shim"))
        .arg(mode)
        .stdin(Stdio::from(file))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut bytes = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
    (child, Birth::decode(bytes.as_slice()).unwrap().outcome.expect("the shim says how it went"))
}

/// A directory below /tmp, of this test alone.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("berth-shim-").tempdir().unwrap()
}

/// Runs a program and gives its output; fails the test when it fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A name that no other test of this machine uses.
pub fn unique(prefix: &str) -> String {
    let mut bytes = [0u8; 3];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    format!("{prefix}{:02x}{:02x}{:02x}", bytes[0], bytes[1], bytes[2])
}

/// Unmounts what is mounted below a directory.
pub fn mounts_below(directory: &std::path::Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let below = directory.to_str().unwrap();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| path.starts_with(below))
        .map(PathBuf::from)
        .collect()
}
