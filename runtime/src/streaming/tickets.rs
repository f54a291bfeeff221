//! Tickets: a URL that CRI gives out is good once, and not for long. Who has it needs no other proof.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::rand::{GetRandomFlags, getrandom};

use super::channels::Wanted;
use crate::{
    Error, Kind, Result,
    error::Cause,
    id::{ContainerId, PodId},
};

/// How long a ticket is good.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Given out and not used yet.
const MOST: usize = 1000;
const TOKEN_BYTES: usize = 16;

/// What a ticket lets its bearer do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    Exec { container: ContainerId, command: Vec<String>, wanted: Wanted },
    Attach { container: ContainerId, wanted: Wanted },
    PortForward { pod: PodId },
}

impl Purpose {
    /// The first part of its URL's path.
    pub fn path(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// The tickets of a server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tickets {
    base: Arc<str>,
    given: Arc<Mutex<HashMap<String, Ticket>>>,
}

#[derive(Debug)]
struct Ticket {
    purpose: Purpose,
    until: Instant,
}

impl Tickets {
    /// For a server that listens there and speaks `http` or `https`.
    pub fn new(scheme: &str, mut address: SocketAddr) -> Self {
        // Whoever is given a URL is on this node.
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        Self { base: format!("{scheme}://{address}").into(), given: Arc::default() }
    }

    /// A URL that is good once.
    ///
    /// # Errors
    /// `Exhausted` where too many wait to be used.
    pub fn give(&self, purpose: Purpose) -> Result<String> {
        self.give_at(Instant::now(), purpose)
    }

    /// What the ticket of a URL's path is good for; it is used up by that.
    pub fn take(&self, path: &str) -> Option<Purpose> {
        self.take_at(Instant::now(), path)
    }

    fn give_at(&self, now: Instant, purpose: Purpose) -> Result<String> {
        const OP: &str = "give ticket for";
        let mut bytes = [0; TOKEN_BYTES];
        let filled = getrandom(&mut bytes, GetRandomFlags::empty());
        let filled = filled.map_err(|errno| Error::io(OP, purpose.path(), errno))?;
        if filled < TOKEN_BYTES {
            return Err(Error::new(Kind::Internal, OP, purpose.path())
                .because(Cause("the kernel gave too few random bytes".into())));
        }
        let token = hex::encode(bytes);
        let mut given = self.given();
        given.retain(|_, ticket| ticket.until > now);
        if given.len() >= MOST {
            return Err(Error::new(Kind::Exhausted, OP, purpose.path())
                .because(Cause(format!("{MOST} wait to be used")))
                .hint("try again in a minute"));
        }
        let url = format!("{}/{}/{token}", self.base, purpose.path());
        given.insert(token, Ticket { purpose, until: now + GOOD_FOR });
        Ok(url)
    }

    fn take_at(&self, now: Instant, path: &str) -> Option<Purpose> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut given = self.given();
        let fits = given.get(token).is_some_and(|ticket| ticket.purpose.path() == kind);
        let ticket = if fits { given.remove(token)? } else { return None };
        (ticket.until > now).then_some(ticket.purpose)
    }

    fn given(&self) -> MutexGuard<'_, HashMap<String, Ticket>> {
        // One map, each change of it whole.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(address: &str) -> Tickets {
        Tickets::new("http", address.parse().unwrap())
    }

    fn forward() -> Purpose {
        Purpose::PortForward { pod: PodId::random() }
    }

    #[test]
    fn a_ticket_is_good_once_and_for_a_minute() {
        let tickets = tickets("127.0.0.1:1234");
        let purpose = forward();
        let url = tickets.give(purpose.clone()).unwrap();
        let path = url.strip_prefix("http://127.0.0.1:1234").unwrap();
        assert_eq!(path.len(), "/portforward/".len() + 32);
        for wrong in
            ["", "/", "/portforward/", "/portforward", &path.replace("portforward", "exec"), &path[1..]]
        {
            assert_eq!(tickets.take(wrong), None, "{wrong}");
        }
        assert_eq!(tickets.take(path), Some(purpose.clone()));
        assert_eq!(tickets.take(path), None);
        let now = Instant::now();
        for (after, good) in [(GOOD_FOR - Duration::from_millis(1), true), (GOOD_FOR, false)] {
            let url = tickets.give_at(now, purpose.clone()).unwrap();
            let path = url.strip_prefix("http://127.0.0.1:1234").unwrap();
            assert_eq!(tickets.take_at(now + after, path).is_some(), good);
        }
    }

    #[test]
    fn tickets_that_nobody_uses_fill_no_memory() {
        let tickets = tickets("127.0.0.1:1234");
        let now = Instant::now();
        for _ in 0..MOST {
            tickets.give_at(now, forward()).unwrap();
        }
        assert_eq!(tickets.give_at(now, forward()).unwrap_err().kind, Kind::Exhausted);
        tickets.give_at(now + GOOD_FOR, forward()).unwrap();
        assert_eq!(tickets.given().len(), 1);
    }

    #[test]
    fn a_url_has_a_host_that_can_be_reached() {
        let rows = [
            ("0.0.0.0:7", "http://127.0.0.1:7/"),
            ("[::]:7", "http://[::1]:7/"),
            ("10.0.0.1:7", "http://10.0.0.1:7/"),
        ];
        for (address, expected) in rows {
            assert!(tickets(address).give(forward()).unwrap().starts_with(expected));
        }
    }
}
