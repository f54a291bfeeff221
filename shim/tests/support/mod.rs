//! Starts the shim as berthd does: plan on stdin as a memfd, Birth on stdout.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod container;

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

/// A connection to a container's shim.
pub struct Client {
    socket: std::os::fd::OwnedFd,
    seq: u64,
    pub events: Vec<berth_launch::v1::Event>,
}

impl Client {
    /// Connects and says Hello.
    pub fn connect(dir: &std::path::Path) -> Self {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(dir.join("s")).unwrap()).unwrap();
        let mut client = Self { socket, seq: 0, events: Vec::new() };
        client.call(berth_launch::v1::request::Call::Hello(Default::default()), &[]);
        client
    }

    pub fn call(
        &mut self,
        call: berth_launch::v1::request::Call,
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> berth_launch::v1::reply::Result {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        self.seq += 1;
        let request = berth_launch::v1::Request { seq: self.seq, needs: vec![], call: Some(call) };
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let bytes = request.encode_to_vec();
        sendmsg(&self.socket, &[std::io::IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).unwrap();
        loop {
            match self.receive().expect("the shim answers before it leaves") {
                berth_launch::v1::from_shim::Message::Reply(reply) if reply.seq == self.seq => {
                    return reply.result.unwrap();
                }
                berth_launch::v1::from_shim::Message::Reply(reply) => panic!("{reply:?}"),
                berth_launch::v1::from_shim::Message::Event(event) => self.events.push(event),
            }
        }
    }

    /// Waits for an event that `wanted` takes.
    pub fn event<T>(&mut self, wanted: impl Fn(&berth_launch::v1::event::Event) -> Option<T>) -> T {
        loop {
            for event in std::mem::take(&mut self.events) {
                if let Some(found) = event.event.as_ref().and_then(&wanted) {
                    return found;
                }
            }
            match self.receive().expect("an event comes before the end") {
                berth_launch::v1::from_shim::Message::Event(event) => self.events.push(event),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits for the container's final exit, then for the shim's.
    pub fn exited(&mut self) -> berth_launch::v1::Exit {
        let exit = self.event(|event| match event {
            berth_launch::v1::event::Event::Exited(exit) => Some(exit.clone()),
            _ => None,
        });
        while self.receive().is_some() {}
        exit
    }

    fn receive(&mut self) -> Option<berth_launch::v1::from_shim::Message> {
        let mut bytes = vec![0; berth_launch::PACKET_BYTES];
        let length = match rustix::net::recv(&self.socket, &mut bytes[..], rustix::net::RecvFlags::empty()) {
            Ok((_, length)) => length,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(errno) => panic!("{errno}"),
        };
        (length > 0).then(|| berth_launch::v1::FromShim::decode(&bytes[..length]).unwrap().message.unwrap())
    }
}

/// Waits until a file holds what `wanted` looks for.
pub fn wait_for_text(path: &std::path::Path, wanted: impl Fn(&str) -> bool) -> String {
    let mut tries = 0u32;
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if wanted(&text) {
            return text;
        }
        tries += 1;
        assert!(tries < 20_000, "{} has only {text:?}", path.display());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
