//! kubectl, against the kubelet's own API or an apiserver.

use std::{
    env,
    io::{Seek, Write},
    path::PathBuf,
    process::Command,
};

/// A program of Kubernetes, as xtask built it.
pub fn program(name: &str) -> PathBuf {
    let directory = env::var_os("BERTH_KUBERNETES").expect("xtask says where Kubernetes is");
    PathBuf::from(directory).join(name)
}

/// Asks the kubelet's own server. What it says, or its error.
pub fn raw(verb: &str, path: &str) -> Result<String, String> {
    // Without any credentials kubectl would ask a person for some; the kubelet takes whoever comes.
    let server = ["--server", "https://127.0.0.1:10250", "--insecure-skip-tls-verify", "--token", "anybody"];
    let mut command = Command::new(program("kubectl"));
    command.env_remove("KUBECONFIG").env("HOME", "/nonexistent").args(server);
    command.args([verb, "--raw", path]);
    // It wants a body.
    let mut body = tempfile::tempfile().expect("make a file");
    if verb == "create" {
        command.args(["-f", "-"]);
        body.write_all(b"{}").and_then(|()| body.rewind()).expect("write a file");
    }
    let output = command.stdin(body).output().expect("run kubectl");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Runs a command in a container through the kubelet, which takes its words apart at spaces.
pub fn run_in(pod: &str, container: &str, words: &[&str]) -> Result<String, String> {
    raw("create", &format!("/run/default/{pod}-{}/{container}?cmd={}", crate::node::NAME, words.join("%20")))
}
