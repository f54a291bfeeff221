//! Names that are none of a network's: asked of the servers in the node's resolv.conf(5), which is read each time, in
//! its order, as the question came: over UDP or TCP.

use std::{
    fs,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tracing::debug;

use super::message::{Answer, Query, is_evasive, with_id};
use crate::{Error, net::blocking};

const PORT: u16 = 53;
/// As many as a libc asks (MAXNS).
const SERVERS: usize = 3;
/// For each of them: the three come before a libc gives up, or asks again.
const WITHIN: Duration = Duration::from_millis(1500);
const LONGEST_FILE: u64 = 64 << 10;

/// The node's way of finding names.
#[derive(Debug)]
pub struct Host {
    resolv_conf: PathBuf,
}

/// What its file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub servers: Vec<SocketAddr>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Datagram,
    Stream,
}

impl Host {
    pub fn new(resolv_conf: PathBuf) -> Self {
        Self { resolv_conf }
    }

    /// What the file says now; nothing where it can't be read.
    pub async fn read(&self) -> ResolvConf {
        let path = self.resolv_conf.clone();
        let read = blocking(move || {
            read(&path).map_err(|error| Error::io("read", path.display().to_string(), error))
        });
        let text = read.await.unwrap_or_else(|error| {
            debug!(error = error.chain(), "nobody can be asked for the names of elsewhere");
            String::new()
        });
        ResolvConf::parse(&text, index)
    }

    /// The packet that answers a question: of the first server that does, or what the last one said who would not, or
    /// that it failed.
    pub async fn ask(&self, query: &Query, way: Way) -> Vec<u8> {
        let limit = match way {
            Way::Datagram => query.limit(),
            Way::Stream => usize::from(u16::MAX),
        };
        let mut evasive = None;
        for server in self.read().await.servers.into_iter().take(SERVERS) {
            let asked = async {
                match way {
                    Way::Datagram => by_datagram(query, server, limit).await,
                    Way::Stream => by_stream(query, server).await,
                }
            };
            match timeout(WITHIN, asked).await {
                Ok(Ok(packet)) if is_evasive(&packet) => evasive = Some(packet),
                Ok(Ok(packet)) => return with_id(packet, query.id()),
                Ok(Err(error)) => debug!(%server, %error, "a server for names does not answer"),
                Err(_) => debug!(%server, "a server for names does not answer in time"),
            }
        }
        let evasive = evasive.map(|packet| with_id(packet, query.id()));
        evasive.unwrap_or_else(|| query.reply(&Answer::Failed, limit))
    }
}

async fn by_datagram(query: &Query, server: SocketAddr, limit: usize) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Of a port that nobody knows beforehand, and to this server only: so none but it can answer, or whoever guesses.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = some_id();
    socket.send(&query.packet(id)).await?;
    let mut packet = vec![0; limit + 1];
    loop {
        let length = socket.recv(&mut packet).await?;
        if !query.is_answered_by(&packet[..length.min(limit)], id) {
            continue;
        }
        if length > limit {
            return Ok(query.reply(&Answer::Truncated, limit));
        }
        packet.truncate(length);
        return Ok(packet);
    }
}

async fn by_stream(query: &Query, server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = some_id();
    stream.write_all(&framed(&query.packet(id))).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut packet).await?;
    match query.is_answered_by(&packet, id) {
        true => Ok(packet),
        false => Err(io::Error::other("it answers another question")),
    }
}

/// As messages go over TCP (RFC 1035, 4.2.2).
pub fn framed(packet: &[u8]) -> Vec<u8> {
    let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&packet[..usize::from(length)]);
    framed
}

fn some_id() -> u16 {
    let mut bytes = [0; 2];
    // Without it the port alone is to be guessed.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok();
    u16::from_be_bytes(bytes)
}

fn read(path: &Path) -> io::Result<String> {
    // A FIFO would keep us waiting.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LONGEST_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The number of an interface, for an address of its link.
fn index(link: &str) -> Option<u32> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'@' | b':');
    if !link.bytes().all(plain) {
        return None;
    }
    fs::read_to_string(format!("/sys/class/net/{link}/ifindex")).ok()?.trim().parse().ok()
}

impl ResolvConf {
    /// resolv.conf(5); what can't be understood is passed over, as a libc does. `index` knows links by name.
    fn parse(text: &str, index: impl Fn(&str) -> Option<u32>) -> Self {
        let mut read = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    read.servers.extend(words.next().and_then(|word| server(word, &index)));
                }
                // The last of these lines counts; a root in it says nothing.
                Some("search" | "domain") => {
                    read.searches = words.filter(|word| *word != ".").map(str::to_owned).collect();
                }
                Some("options") => read.options.extend(words.map(str::to_owned)),
                Some(_) | None => {}
            }
        }
        read
    }
}

fn server(word: &str, index: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((address, link)) = word.split_once('%') else {
        return Some(SocketAddr::new(word.parse().ok()?, PORT));
    };
    let number = link.parse().ok().or_else(|| index(link))?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, number).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_is_read_as_a_libc_reads_it() {
        let text = "# the node's\nnameserver 127.0.0.53\nnameserver\tfe80::1%eth7 ; its router\nnameserver nobody\n\
                    domain old.example\nsearch a.example b.example .\noptions edns0 ndots:5\noptions rotate\nsortlist x\n";
        let read = ResolvConf::parse(text, |link| (link == "eth7").then_some(7));
        let servers: Vec<String> = read.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53:53", "[fe80::1%7]:53"]);
        assert_eq!(read.searches, ["a.example", "b.example"]);
        assert_eq!(read.options, ["edns0", "ndots:5", "rotate"]);
        assert_eq!(ResolvConf::parse("nameserver fe80::1%eth8", |_| None), ResolvConf::default());
        assert_eq!(ResolvConf::parse("search .\n\0\u{fffd}", |_| None), ResolvConf::default());
    }

    #[tokio::test]
    async fn where_nobody_can_be_asked_the_question_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let host = Host::new(path.clone());
        let query = Query::of("example.com", "A");
        let failed = query.reply(&Answer::Failed, 512);
        assert_eq!(host.ask(&query, Way::Datagram).await, failed);
        fs::write(&path, "search a.example\n").unwrap();
        assert_eq!(host.ask(&query, Way::Stream).await, failed);
        assert_eq!(host.read().await.searches, ["a.example"]);
        let fifo = Host::new("/dev/zero".into());
        assert_eq!(fifo.read().await, ResolvConf::default());
    }
}
