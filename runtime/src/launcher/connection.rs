//! One SOCK_SEQPACKET connection: a task sends requests and sorts what comes back.

use std::{
    cell::RefCell,
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_launch::{
    PACKET_BYTES, SOCKET,
    v1::{
        Event, ExecExited, FromShim, Request, Status, event,
        from_shim::Message as FromShimMessage,
        reply::Result as Answer,
        request::Call,
        status::{self, Held},
    },
};
use prost::Message;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::unix::AsyncFd,
    sync::{broadcast, mpsc, oneshot},
};

/// Changes that a slow listener may have before it. It may miss older ones: the newest says how things are. Their room is there
/// from the start, once for each container.
const EVENTS: usize = 16;

/// The most descriptors beside a message of a shim's: a container's four ends, its init, and two files with output on its way
/// into the log.
const FDS: usize = 7;

/// What a shim gave to hold for its successor.
pub type Reserve = Vec<(Held, OwnedFd)>;

/// Who waits for the end of what was executed, by its id.
type Execs = Arc<Mutex<HashMap<String, oneshot::Sender<ExecExited>>>>;

/// The end of something executed, to be waited for: no other event can come before it.
#[derive(Debug)]
pub struct ExecEnd {
    id: String,
    execs: Execs,
    ended: oneshot::Receiver<ExecExited>,
}

impl ExecEnd {
    /// None: the shim has gone.
    pub async fn told(mut self) -> Option<ExecExited> {
        (&mut self.ended).await.ok()
    }
}

impl Drop for ExecEnd {
    fn drop(&mut self) {
        lock(&self.execs).remove(&self.id);
    }
}

type Reply = (Answer, Option<OwnedFd>);

#[derive(Debug)]
pub struct Connection {
    /// By reference: the queue's room is there once for each container.
    calls: mpsc::Sender<Box<Asked>>,
    events: broadcast::Receiver<Arc<Event>>,
    execs: Execs,
    status: Arc<Mutex<Status>>,
    reserve: Arc<Mutex<Reserve>>,
    /// The shim's process, if it was there still when it was asked for.
    peer: Option<OwnedFd>,
}

#[derive(Debug)]
struct Asked {
    call: Call,
    fds: Vec<OwnedFd>,
    reply: oneshot::Sender<Reply>,
}

/// Connects to the socket of a shim's directory, by the directory's descriptor: its path may be longer than a socket's.
pub fn connect(dir: &Path) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, rustix::fs::Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

impl Connection {
    /// Takes the socket into a task of its own; must be called in a runtime.
    pub fn open(socket: OwnedFd) -> io::Result<Self> {
        // It listened a moment ago: its number can't be another's yet.
        let peer = rustix::net::sockopt::socket_peercred(&socket)?.pid;
        let peer = pidfd_open(peer, PidfdFlags::empty()).ok();
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd upholds what that asks for")]
        let socket = AsyncFd::new(socket)?;
        let (calls, asked) = mpsc::channel(64);
        let (sender, events) = broadcast::channel(EVENTS);
        let status = Arc::new(Mutex::new(Status::default()));
        let (reserve, execs) = (Arc::default(), Execs::default());
        let told = Told {
            events: sender,
            execs: Arc::clone(&execs),
            status: Arc::clone(&status),
            reserve: Arc::clone(&reserve),
        };
        tokio::spawn(carry(socket, asked, told));
        Ok(Self { calls, events, execs, status, reserve, peer })
    }

    /// Sends a request and waits for its answer; none when the shim has gone.
    pub async fn call(&self, call: Call, fds: Vec<OwnedFd>) -> Option<Reply> {
        let (reply, mut answer) = oneshot::channel();
        self.calls.send(Box::new(Asked { call, fds, reply })).await.ok()?;
        tokio::select! {
            biased;
            answer = &mut answer => answer.ok(),
            // A request that was sent as the task left lies in the channel, and nobody lets its sender go.
            () = self.calls.closed() => answer.try_recv().ok(),
        }
    }

    pub fn events(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.resubscribe()
    }

    /// To be asked for before the exec is: its end may come with the answer.
    pub fn exec_end(&self, id: &str) -> ExecEnd {
        let (sender, ended) = oneshot::channel();
        lock(&self.execs).insert(id.to_owned(), sender);
        ExecEnd { id: id.to_owned(), execs: Arc::clone(&self.execs), ended }
    }

    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn take_reserve(&self) -> Reserve {
        std::mem::take(&mut *self.reserve.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether nobody answers any more.
    pub fn is_gone(&self) -> bool {
        self.calls.is_closed()
    }

    pub fn kill_peer(&self) -> io::Result<()> {
        match &self.peer {
            Some(peer) => Ok(pidfd_send_signal(peer, Signal::KILL)?),
            None => Ok(()),
        }
    }

    pub fn set_status(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Whom the shim's words reach.
struct Told {
    events: broadcast::Sender<Arc<Event>>,
    execs: Execs,
    status: Arc<Mutex<Status>>,
    reserve: Arc<Mutex<Reserve>>,
}

impl Told {
    fn event(&self, event: Event, fds: Vec<OwnedFd>) {
        note(&self.status, &event);
        match event.event {
            Some(event::Event::ExecExited(exited)) => {
                let waits = lock(&self.execs).remove(&exited.exec_id);
                // Whoever started it may have left.
                waits.map(|waits| waits.send(exited).ok());
                return;
            }
            Some(event::Event::Changed(ref status)) => hold(&self.reserve, status, fds),
            Some(event::Event::Exited(_)) | None => {}
        }
        // Nobody need listen.
        self.events.send(Arc::new(event)).ok();
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        lock(&self.execs).clear();
    }
}

/// Until either end has gone. What waits for an answer then learns it by its dropped sender.
async fn carry(socket: AsyncFd<OwnedFd>, asked: mpsc::Receiver<Box<Asked>>, told: Told) {
    let mut waiting: HashMap<u64, oneshot::Sender<Reply>> = HashMap::new();
    // Let go before those who wait: who hears that no reply comes finds the shim gone.
    let mut asked = asked;
    let mut seq = 0;
    loop {
        tokio::select! {
            received = receive(&socket) => match received {
                Some((FromShimMessage::Reply(reply), mut fds)) => {
                    if let Some(Answer::Status(status)) = &reply.result && !status.held.is_empty() {
                        hold(&told.reserve, status, std::mem::take(&mut fds));
                    }
                    if let (Some(waits), Some(answer)) = (waiting.remove(&reply.seq), reply.result) {
                        // Whoever asked may have stopped waiting.
                        waits.send((answer, fds.into_iter().next())).ok();
                    }
                }
                Some((FromShimMessage::Event(event), fds)) => told.event(event, fds),
                None => return,
            },
            request = asked.recv() => match request {
                Some(request) => {
                    seq += 1;
                    let needs = berth_launch::needs::request(&request.call);
                    let message = Request { seq, needs, call: Some(request.call) };
                    waiting.insert(seq, request.reply);
                    if send(&socket, &message.encode_to_vec(), &request.fds).await.is_err() {
                        return;
                    }
                }
                None => return,
            },
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(status: &Mutex<Status>, event: &Event) {
    let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
    match &event.event {
        Some(event::Event::Changed(changed)) => *status = changed.clone(),
        Some(event::Event::Exited(exit)) => {
            status.set_state(status::State::Exited);
            status.pid = 0;
            status.last_exit = Some(exit.clone());
        }
        Some(event::Event::ExecExited(_)) | None => {}
    }
}

/// In place of what was held of an earlier run.
fn hold(reserve: &Mutex<Reserve>, status: &Status, fds: Vec<OwnedFd>) {
    *reserve.lock().unwrap_or_else(PoisonError::into_inner) = status.held().zip(fds).collect();
}

thread_local! {
    /// One for all: a packet is decoded before anything else is read, and most containers are silent.
    static PACKET: RefCell<Vec<u8>> = RefCell::new(vec![0; PACKET_BYTES]);
}

/// None: the shim has gone, or said what nobody understands.
async fn receive(socket: &AsyncFd<OwnedFd>) -> Option<(FromShimMessage, Vec<OwnedFd>)> {
    let read = |socket: &OwnedFd, buffer: &mut [u8]| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        let message = match message.bytes {
            0 => None,
            length => FromShim::decode(&buffer[..length]).ok().and_then(|packet| packet.message),
        };
        Ok(message.map(|message| (message, fds)))
    };
    let interest = tokio::io::Interest::READABLE;
    let received =
        socket.async_io(interest, |socket| PACKET.with_borrow_mut(|buffer| read(socket, buffer))).await;
    received.ok().flatten()
}

async fn send(socket: &AsyncFd<OwnedFd>, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    socket
        .async_io(tokio::io::Interest::WRITABLE, |socket| {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use berth_launch::v1::Hello;
    use rustix::net::socketpair;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_hears_that_no_reply_comes_finds_the_shim_gone() {
        for _ in 0..500 {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            let connection = Connection::open(ours).unwrap();
            let leaves = tokio::spawn(async move { drop(theirs) });
            assert!(connection.call(Call::Hello(Hello {}), Vec::new()).await.is_none());
            assert!(connection.is_gone());
            leaves.await.unwrap();
        }
    }
}
