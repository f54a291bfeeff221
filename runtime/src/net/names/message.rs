//! DNS messages: what a packet asks, and what it is told. Anybody may have sent it, so what can't be read is answered as
//! the protocol says, or not at all. Pure; reading and writing are hickory's.

use std::net::IpAddr;

use hickory_proto::{
    op::{self, Edns, Header, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
    serialize::binary::{BinDecodable, BinDecoder},
};

/// What a datagram may have where its sender does not say more (RFC 1035, 4.2.1).
pub const PLAIN: usize = 512;
/// The most that we send in a datagram: what passes every IPv6 link whole is told as ours (DNS flag day 2020), and more
/// than this is cut into pieces on any.
const OURS: u16 = 1232;
const MOST: usize = 4096;
/// A question with all that EDNS may bring along is far shorter.
pub const LONGEST_QUERY: usize = 4096;
/// As many addresses of one name as fit into what TCP carries, and more than anybody reads.
const MOST_ADDRESSES: usize = 1000;

/// One question, as it came.
#[derive(Debug, Clone)]
pub struct Query {
    metadata: Metadata,
    question: op::Query,
    edns: Option<Edns>,
    packet: Vec<u8>,
}

/// What kind of record is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Ipv4,
    Ipv6,
    Any,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Those that the name has of the kind that was asked for.
    Addresses(Vec<IpAddr>),
    /// Of an address.
    Name(String),
    /// There is nobody of that name.
    Unknown,
    /// It could not be found out.
    Failed,
    /// It is longer than a datagram: to be asked for again over TCP.
    Truncated,
}

impl Query {
    /// Reads a packet.
    ///
    /// # Errors
    /// What is said to its sender about a packet that is no question; none: nothing.
    pub fn read(packet: &[u8]) -> Result<Self, Option<Vec<u8>>> {
        let header = Header::read(&mut BinDecoder::new(packet)).map_err(|_| None)?;
        let metadata = header.metadata;
        // An answer that is answered would come back for ever.
        if metadata.message_type != MessageType::Query {
            return Err(None);
        }
        let refused = |code| Err(written(&Message::error_msg(metadata.id, metadata.op_code, code)));
        if metadata.op_code != OpCode::Query {
            return refused(ResponseCode::NotImp);
        }
        let read = (packet.len() <= LONGEST_QUERY).then(|| Message::from_vec(packet));
        let Some(Ok(mut message)) = read else { return refused(ResponseCode::FormErr) };
        let question = match (message.queries.pop(), message.queries.is_empty()) {
            (Some(question), true) => question,
            _ => return refused(ResponseCode::FormErr),
        };
        let transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR);
        if transfer || question.query_class() != DNSClass::IN {
            return refused(ResponseCode::Refused);
        }
        Ok(Self { metadata, question, edns: message.edns, packet: packet.to_vec() })
    }

    pub fn id(&self) -> u16 {
        self.metadata.id
    }

    /// The same with another id, to be asked elsewhere.
    pub fn packet(&self, id: u16) -> Vec<u8> {
        with_id(self.packet.clone(), id)
    }

    /// The name in lower case, without a dot at its end; none where it has what no name of ours has.
    pub fn name(&self) -> Option<String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let mut text = String::new();
        for label in self.question.name().iter() {
            if !label.iter().all(|byte| plain(*byte)) {
                return None;
            }
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
        }
        Some(text)
    }

    /// The address whose name is asked for.
    pub fn pointer(&self) -> Option<IpAddr> {
        if !matches!(self.question.query_type(), RecordType::PTR | RecordType::ANY) {
            return None;
        }
        let net = self.question.name().parse_arpa_name().ok()?;
        (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
    }

    pub fn asked(&self) -> Asked {
        match self.question.query_type() {
            RecordType::A => Asked::Ipv4,
            RecordType::AAAA => Asked::Ipv6,
            RecordType::ANY => Asked::Any,
            _ => Asked::Other,
        }
    }

    /// What a datagram with its answer may have.
    pub fn limit(&self) -> usize {
        self.edns.as_ref().map_or(PLAIN, |edns| usize::from(edns.max_payload()).clamp(PLAIN, MOST))
    }

    /// Whether a packet is the answer to this question, asked with that id.
    pub fn is_answered_by(&self, packet: &[u8], id: u16) -> bool {
        let mut decoder = BinDecoder::new(packet);
        let Ok(header) = Header::read(&mut decoder) else { return false };
        let Metadata { id: told, message_type, op_code, .. } = header.metadata;
        if (told, message_type, op_code) != (id, MessageType::Response, OpCode::Query) {
            return false;
        }
        // One that could not read the question need not repeat it.
        if header.counts.queries == 0 {
            return header.metadata.response_code != ResponseCode::NoError;
        }
        let same = |question: &op::Query| {
            question.query_type() == self.question.query_type()
                && question.query_class() == self.question.query_class()
                && question.name() == self.question.name()
        };
        header.counts.queries == 1 && op::Query::read(&mut decoder).is_ok_and(|question| same(&question))
    }

    /// The packet that tells an answer, of this many bytes at most: what is longer is told to be.
    pub fn reply(&self, answer: &Answer, limit: usize) -> Vec<u8> {
        let whole = written(&self.message(answer)).filter(|packet| packet.len() <= limit);
        let fits = whole.or_else(|| written(&self.message(&Answer::Truncated)));
        // Of a name of 255 bytes that came in a message, and 12 bytes before it.
        fits.unwrap_or_default()
    }

    fn message(&self, answer: &Answer) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.add_query(self.question.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(OURS);
            message.set_edns(edns);
        }
        // It may be another's, or nobody's, a moment later: kept by nobody.
        let record = |data: RData| Record::from_rdata(self.question.name().clone(), 0, data);
        let data = |address: &IpAddr| match address {
            IpAddr::V4(ip) => RData::A(rdata::A(*ip)),
            IpAddr::V6(ip) => RData::AAAA(rdata::AAAA(*ip)),
        };
        match answer {
            Answer::Addresses(addresses) => {
                message.metadata.authoritative = true;
                message.add_answers(addresses.iter().take(MOST_ADDRESSES).map(data).map(record));
            }
            Answer::Name(text) => {
                message.metadata.authoritative = true;
                if let Some(name) = name(text) {
                    message.add_answer(record(RData::PTR(rdata::PTR(name))));
                }
            }
            Answer::Unknown => {
                message.metadata.authoritative = true;
                message.metadata.response_code = ResponseCode::NXDomain;
            }
            Answer::Failed => message.metadata.response_code = ResponseCode::ServFail,
            Answer::Truncated => message.metadata.truncation = true,
        }
        message
    }
}

/// Whether another server may know better: it says that it can't, or won't.
pub fn is_evasive(packet: &[u8]) -> bool {
    let header = Header::read(&mut BinDecoder::new(packet));
    !header.is_ok_and(|header| {
        matches!(header.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
    })
}

/// A packet with an id in the place of its own.
pub fn with_id(mut packet: Vec<u8>, id: u16) -> Vec<u8> {
    if let Some(place) = packet.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
    packet
}

/// Whether DNS has room for a name.
pub fn is_writable(text: &str) -> bool {
    name(text).is_some()
}

fn name(text: &str) -> Option<Name> {
    Name::from_labels(text.split('.').map(str::as_bytes)).ok()
}

/// None where it can't be written, as a name that is too long.
fn written(message: &Message) -> Option<Vec<u8>> {
    message.to_vec().ok()
}

#[cfg(test)]
impl Query {
    /// A question as a libc asks it.
    pub fn of(name: &str, kind: &str) -> Self {
        let mut message = Message::query();
        let labels = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
        let name = Name::from_labels(labels).unwrap();
        message.add_query(op::Query::query(name, kind.parse().unwrap()));
        message.metadata.recursion_desired = true;
        Self::read(&message.to_vec().unwrap()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn read(packet: &[u8]) -> Message {
        Message::from_vec(packet).unwrap()
    }

    #[test]
    fn an_answer_repeats_the_question_and_is_kept_by_nobody() {
        let query = Query::of("Web", "A");
        let addresses = Answer::Addresses(vec![ip("10.9.0.2"), ip("10.9.0.3")]);
        let told = read(&query.reply(&addresses, PLAIN));
        assert_eq!((told.metadata.id, told.metadata.response_code), (query.id(), ResponseCode::NoError));
        assert!(told.metadata.authoritative && told.metadata.recursion_desired);
        assert!(told.metadata.recursion_available && !told.metadata.truncation && told.edns.is_none());
        assert_eq!(told.queries, std::slice::from_ref(&query.question));
        assert_eq!(told.answers.len(), 2);
        for (record, address) in told.answers.iter().zip(["10.9.0.2", "10.9.0.3"]) {
            assert_eq!((record.ttl, &record.name), (0, query.question.name()));
            assert_eq!(record.data.ip_addr(), Some(ip(address)));
        }
        let name =
            read(&Query::of("2.0.9.10.in-addr.arpa", "PTR").reply(&Answer::Name("w_1.Blue".into()), PLAIN));
        assert_eq!(name.answers[0].data.to_string(), "w_1.Blue.");
        for (answer, code) in
            [(Answer::Unknown, ResponseCode::NXDomain), (Answer::Failed, ResponseCode::ServFail)]
        {
            let told = read(&query.reply(&answer, PLAIN));
            assert_eq!((told.metadata.response_code, told.answers.len()), (code, 0));
        }
    }

    #[test]
    fn what_is_too_long_for_a_datagram_is_told_to_be_and_whole_over_tcp() {
        let many = Answer::Addresses((0..2000_u32).map(|n| std::net::Ipv4Addr::from(n).into()).collect());
        let mut query = Query::of("web", "A");
        let told = read(&query.reply(&many, query.limit()));
        assert!(told.metadata.truncation && told.answers.is_empty() && told.queries.len() == 1);
        let told = read(&query.reply(&many, usize::from(u16::MAX)));
        assert!(!told.metadata.truncation && told.answers.len() == MOST_ADDRESSES);
        for (said, limit) in [(0, PLAIN), (1400, 1400), (u16::MAX, MOST)] {
            let mut edns = Edns::new();
            edns.set_max_payload(said);
            query.edns = Some(edns);
            assert_eq!(query.limit(), limit);
        }
        let few = Answer::Addresses(vec![ip("10.9.0.2")]);
        assert_eq!(read(&query.reply(&few, PLAIN)).edns.unwrap().max_payload(), OURS);
    }

    #[test]
    fn what_is_no_question_is_refused_as_the_protocol_has_it_or_not_heeded() {
        let good = Query::of("web", "A").packet(7);
        let changed = |at: usize, bits: u8| {
            let mut packet = good.clone();
            packet[at] ^= bits;
            Query::read(&packet).map(|_| ()).map_err(|told| told.map(|told| read(&told).metadata))
        };
        assert_eq!(changed(2, 0x80), Err(None), "an answer");
        let code = |told: Result<(), Option<Metadata>>| told.unwrap_err().unwrap().response_code;
        assert_eq!(code(changed(2, 0x28)), ResponseCode::NotImp, "an update");
        assert_eq!(code(changed(5, 0x03)), ResponseCode::FormErr, "two questions, of which there is one");
        assert_eq!(code(changed(5, 0x01)), ResponseCode::FormErr, "none");
        assert_eq!(code(changed(good.len() - 1, 0x02)), ResponseCode::Refused, "class CHAOS");
        assert_eq!(code(changed(12, 0x40)), ResponseCode::FormErr, "a label of no known kind");
        assert_eq!(Query::read(&good[..11]).unwrap_err(), None);
        let mut transfer = good.clone();
        let at = good.len() - 3;
        transfer[at] = 252;
        assert_eq!(
            read(&Query::read(&transfer).unwrap_err().unwrap()).metadata.response_code,
            ResponseCode::Refused
        );
        let long = [&good[..], &[0; LONGEST_QUERY]].concat();
        assert_eq!(
            read(&Query::read(&long).unwrap_err().unwrap()).metadata.response_code,
            ResponseCode::FormErr
        );
        // A name that points at itself.
        let loops = [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
        assert!(Query::read(&loops).is_err());
    }

    #[test]
    fn only_the_answer_to_the_question_that_was_asked_is_one() {
        let query = Query::of("Example.COM", "A");
        let other = |name: &str, kind: &str| Query::of(name, kind).reply(&Answer::Unknown, PLAIN);
        let same = with_id(other("example.com", "A"), 9);
        assert!(query.is_answered_by(&same, 9) && !query.is_answered_by(&same, 8));
        for (name, kind) in [("example.org", "A"), ("example.com", "AAAA")] {
            assert!(!query.is_answered_by(&with_id(other(name, kind), 9), 9), "{name} {kind}");
        }
        assert!(!query.is_answered_by(&query.packet(9), 9), "the question itself");
        let code = |code| with_id(written(&Message::error_msg(0, OpCode::Query, code)).unwrap(), 9);
        assert!(query.is_answered_by(&code(ResponseCode::FormErr), 9));
        assert!(!query.is_answered_by(&code(ResponseCode::NoError), 9));
        assert!(is_evasive(&code(ResponseCode::Refused)) && !is_evasive(&same) && is_evasive(&[]));
    }

    #[test]
    fn names_with_what_ours_never_have_are_none_of_ours() {
        assert_eq!(Query::of("Web_1.Blue.", "A").name().as_deref(), Some("web_1.blue"));
        assert_eq!(Query::of(".", "A").name().as_deref(), Some(""));
        let label = |bytes: &[u8]| {
            let mut message = Message::query();
            message.add_query(op::Query::query(Name::from_labels([bytes]).unwrap(), RecordType::A));
            Query::read(&message.to_vec().unwrap()).unwrap().name()
        };
        assert_eq!((label(b"a.b"), label(b"\xff"), label(b"a b"), label(b"a\0")), (None, None, None, None));
    }

    proptest! {
        #[test]
        fn no_packet_hurts(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            match Query::read(&packet) {
                Ok(query) => {
                    prop_assert!(query.reply(&Answer::Unknown, PLAIN).len() <= PLAIN);
                    query.name();
                    query.pointer();
                }
                Err(Some(told)) => prop_assert!(told.len() <= packet.len()),
                Err(None) => {}
            }
            let query = Query::of("web", "A");
            query.is_answered_by(&packet, 1);
            is_evasive(&packet);
        }

        #[test]
        fn no_changed_question_hurts(at in 0..64_usize, byte in any::<u8>(), cut in 0..64_usize) {
            let mut packet = Query::of("2.0.9.10.in-addr.arpa", "PTR").packet(3);
            let end = packet.len();
            packet[at % end] = byte;
            packet.truncate(end - cut % end);
            if let Ok(query) = Query::read(&packet) {
                let told = query.reply(&Answer::Name("web.blue".into()), PLAIN);
                prop_assert!(told.len() <= PLAIN);
                prop_assert!(Message::from_vec(&told).is_ok());
                prop_assert!(query.is_answered_by(&told, query.id()));
            }
        }

        #[test]
        fn whatever_name_and_number_an_answer_is_read_as_written(
            name in "[a-zA-Z0-9_-]{1,63}(\\.[a-zA-Z0-9_-]{1,30}){0,4}",
            addresses in proptest::collection::vec(any::<u32>(), 0..200),
            limit in PLAIN..4096_usize,
        ) {
            let query = Query::of(&name, "A");
            prop_assert_eq!(query.name(), Some(name.to_ascii_lowercase()));
            let addresses: Vec<IpAddr> = addresses.into_iter().map(|n| std::net::Ipv4Addr::from(n).into()).collect();
            let packet = query.reply(&Answer::Addresses(addresses.clone()), limit);
            prop_assert!(packet.len() <= limit);
            let told = read(&packet);
            let found: Vec<IpAddr> = told.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
            prop_assert!(told.metadata.truncation || found == addresses);
            prop_assert!(query.is_answered_by(&packet, query.id()));
        }
    }
}
