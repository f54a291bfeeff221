//! The applets of the program, run as a test or a container runs them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use berth_fixtures::APPLETS;
use rustix::process::{Pid, Signal, kill_process};

const FIXTURE: &str = env!("CARGO_BIN_EXE_fixture");

fn run(words: &[&str]) -> Output {
    Command::new(FIXTURE).args(words).output().unwrap()
}

fn stdout_of(words: &[&str]) -> String {
    let output = run(words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A program that runs until the test is over, and its output.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(words: &[&str]) -> Self {
        let mut command = Command::new(FIXTURE);
        let mut child = command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn port(&mut self) -> u16 {
        self.line().strip_prefix("listening ").unwrap().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already is as good as killed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn the_list_is_what_the_image_links() {
    let listed = stdout_of(&["--list"]);
    assert_eq!(listed.lines().collect::<Vec<_>>(), APPLETS);
}

#[test]
fn the_name_of_the_program_chooses_the_applet() {
    let output = Command::new(FIXTURE).arg0("/bin/echo").args(["echo", "twice"]).output().unwrap();
    assert_eq!(output.stdout, b"echo twice\n");
    assert_eq!(run(&["no-such-applet"]).status.code(), Some(127));
}

#[test]
fn the_program_is_static() {
    let program = std::fs::read(FIXTURE).unwrap();
    let head = &program[..4096];
    assert!(!head.windows(9).any(|window| window == b"/ld-linux"), "the program asks for a loader");
}

#[test]
fn exit_codes_and_deaths_are_as_asked() {
    assert_eq!(run(&["true"]).status.code(), Some(0));
    assert_eq!(run(&["false"]).status.code(), Some(1));
    assert_eq!(run(&["exit", "42"]).status.code(), Some(42));
    assert_eq!(run(&["exit", "many"]).status.code(), Some(2));
    assert_eq!(run(&["crash"]).status.signal(), Some(Signal::SEGV.as_raw()));
    assert_eq!(run(&["sleep", "0.01"]).status.code(), Some(0));
    assert_eq!(run(&["burn", "0.01"]).status.code(), Some(0));
}

#[test]
fn sleep_dies_of_the_signal() {
    let mut sleep = Running::start(&["sleep", "inf"]);
    sleep.signal(Signal::TERM);
    assert_eq!(sleep.child.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn trap_names_signals_and_ends_as_told() {
    let mut trap = Running::start(&["trap", "USR1", "SIGHUP", "--exit", "7"]);
    assert_eq!(trap.line(), "ready");
    trap.signal(Signal::USR1);
    assert_eq!(trap.line(), "SIGUSR1");
    trap.signal(Signal::HUP);
    assert_eq!(trap.line(), "SIGHUP");
    trap.signal(Signal::TERM);
    assert_eq!(trap.line(), "SIGTERM");
    assert_eq!(trap.child.wait().unwrap().code(), Some(7));
}

#[test]
fn trap_without_exit_outlives_term() {
    let mut trap = Running::start(&["trap", "TERM", "USR2"]);
    assert_eq!(trap.line(), "ready");
    trap.signal(Signal::TERM);
    assert_eq!(trap.line(), "SIGTERM");
    trap.signal(Signal::USR2);
    assert_eq!(trap.line(), "SIGUSR2");
}

#[test]
fn text_goes_where_it_should() {
    assert_eq!(stdout_of(&["echo", "a", "b"]), "a b\n");
    assert_eq!(stdout_of(&["noeol", "half"]), "half");
    assert_eq!(stdout_of(&["spam", "2"]), "line 000001 xxxx\nline 000002 xxxx\n");
    assert_eq!(stdout_of(&["spam", "1", "1000", "20000"]).len(), 20_001);
    let output = run(&["stderr", "to the other"]);
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (b"".as_slice(), b"to the other\n".as_slice())
    );
}

#[test]
fn spam_stops_quietly_when_nobody_reads() {
    let mut spam = Command::new(FIXTURE)
        .args(["spam", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(spam.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    drop(out);
    let output = spam.wait_with_output().unwrap();
    assert_eq!(line, "line 000001 xxxx\n");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(141), b"".as_slice()));
}

#[test]
fn standard_input_is_read_at_once() {
    let mut lines = Running::start(&["lines"]);
    let mut input = lines.child.stdin.take().unwrap();
    input.write_all(b"one\n").unwrap();
    assert_eq!(lines.line(), "got: one");
    input.write_all(b"two").unwrap();
    drop(input);
    assert_eq!(lines.line(), "got: two");
    assert!(lines.child.wait().unwrap().success());

    let mut cat = Running::start(&["cat"]);
    let mut input = cat.child.stdin.take().unwrap();
    input.write_all(b"half").unwrap();
    let mut half = [0_u8; 4];
    cat.out.read_exact(&mut half).unwrap();
    assert_eq!(&half, b"half");
}

#[test]
fn files_are_written_listed_and_removed() {
    let directory = Scratch::new("files");
    let path = directory.path("note");
    assert!(run(&["write", &path, "a", "note"]).status.success());
    assert_eq!(stdout_of(&["cat", &path]), "a note\n");
    assert_eq!(stdout_of(&["ls", &directory.0]), "note\n");
    let about: serde_json::Value = serde_json::from_str(&stdout_of(&["stat", &path])).unwrap();
    assert_eq!((about["kind"].as_str(), about["size"].as_u64()), (Some("file"), Some(7)));
    assert!(run(&["rm", &path]).status.success());
    let missing = run(&["cat", &path]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains(&path), "{missing:?}");
}

#[test]
fn wait_file_ends_when_the_file_comes() {
    let directory = Scratch::new("wait");
    let path = directory.path("sign");
    let mut wait = Running::start(&["wait-file", &path]);
    assert!(wait.child.try_wait().unwrap().is_none());
    std::fs::write(&path, "").unwrap();
    assert!(wait.child.wait().unwrap().success());
}

#[test]
fn eat_keeps_what_it_ate() {
    let mut eat = Running::start(&["eat", "8M"]);
    assert_eq!(eat.line(), "ate 8388608 bytes");
    let status = std::fs::read_to_string(format!("/proc/{}/status", eat.child.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes >= 8192, "{kilobytes}");
}

#[test]
fn tree_waits_for_its_children() {
    let mut tree = Running::start(&["tree", "3"]);
    let children: Vec<i32> = (0..3).map(|_| tree.line().parse().unwrap()).collect();
    assert!(tree.child.try_wait().unwrap().is_none());
    for child in children {
        kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
    }
    assert!(tree.child.wait().unwrap().success());
}

/// Field 6 of /proc/PID/stat. It is 0, which is no process id, where the leader is in an outer PID namespace.
fn session_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn daemonize_leaves_a_process_in_a_session_of_its_own() {
    let mut daemonize = Running::start(&["daemonize"]);
    let line = daemonize.line();
    let daemon: i32 = line.strip_prefix("daemon ").unwrap().parse().unwrap();
    assert!(daemonize.child.wait().unwrap().success());
    let (session, own) = (session_of(daemon), session_of(std::process::id().cast_signed()));
    kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL).unwrap();
    assert_ne!(session, own);
    assert_ne!(session, daemon);
}

#[test]
fn http_answers_and_get_asks() {
    let mut server = Running::start(&["http", "0", "hello"]);
    let port = server.port().to_string();
    assert_eq!(stdout_of(&["get", "127.0.0.1", &port]), "hello\n");
    assert_eq!(stdout_of(&["get", "127.0.0.1", &port, "/again"]), "hello\n");
    drop(server);
    assert_eq!(run(&["get", "127.0.0.1", &port]).status.code(), Some(1));
}

#[test]
fn tcp_and_udp_send_back() {
    let mut server = Running::start(&["tcp", "0"]);
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.write_all(b"ping").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ping");

    let mut server = Running::start(&["udp", "0"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    socket.send_to(b"pong", ("127.0.0.1", server.port())).unwrap();
    let mut answer = [0_u8; 16];
    let (length, _) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"pong");
}

#[test]
fn info_tells_what_the_process_sees() {
    let output = Command::new(FIXTURE)
        .args(["info", "an argument"])
        .env_clear()
        .env("GREETING", "hello")
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["env"], serde_json::json!({ "GREETING": "hello" }));
    assert_eq!(info["args"][2], "an argument");
    assert_eq!(info["cwd"], "/");
    assert_eq!(info["uid"], rustix::process::getuid().as_raw());
    assert_eq!(info["ppid"], std::process::id());
    assert_eq!(info["tty"], serde_json::json!([false, false, false]));
    assert_eq!(info["caps"]["effective"].as_str().unwrap().len(), 16);
    assert!(info["namespaces"]["mnt"].as_str().unwrap().starts_with("mnt:["));
    assert!(info["mounts"].as_array().unwrap().iter().any(|mount| mount["target"] == "/"));
    assert!(info["limits"]["nofile"][0].as_u64().unwrap() > 0);
    assert!(info["interfaces"]["lo"].is_object(), "{}", info["interfaces"]);
}

#[test]
fn identity_and_surroundings_are_printed() {
    let uid = rustix::process::getuid().as_raw();
    assert!(stdout_of(&["id"]).starts_with(&format!("uid={uid} gid=")));
    let output = Command::new(FIXTURE).arg("pwd").current_dir("/").output().unwrap();
    assert_eq!(output.stdout, b"/\n");
    let output = Command::new(FIXTURE).arg("env").env_clear().env("A", "b c").output().unwrap();
    assert_eq!(output.stdout, b"A=b c\n");
    let output = Command::new(FIXTURE).arg("stty").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn stty_tells_the_size_of_the_terminal() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal, size).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let other = std::fs::File::options().read(true).write(true).open(name).unwrap();
    let output = Command::new(FIXTURE).arg("stty").stdin(other).output().unwrap();
    assert_eq!(output.stdout, b"33 101\n");
}

/// A directory that goes with the test.
struct Scratch(String);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path.to_str().unwrap().to_owned())
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A test that failed may have left nothing to remove.
        std::fs::remove_dir_all(&self.0).ok();
    }
}
