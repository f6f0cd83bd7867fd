//! DNS messages.
//!
//! ```text
//! _virga._udp.local.        PTR   ID._virga._udp.local.
//! ID._virga._udp.local.     SRV   0 0 PORT virga-ID.local.    TXT   see the text module
//! virga-ID.local.           A, AAAA                           the record's addresses
//! ```
//! ID: the node's, 16 hexadecimal digits.

use crate::{
    limits::{HOPS_MAX, HOST_TTL_S, MESSAGE_BYTES_MAX, RECORDS_MAX, SERVICES_MAX, TTL_S},
    reason::Reason,
    text,
};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
    rdata::{PTR, RData, SRV},
};
use std::net::IpAddr;
use virga_discovery::Record;
use virga_ebpf::header::NodeId;

/// What nodes are called as a service.
pub const SERVICE: &str = "_virga._udp.local";
/// The question for all services there are (RFC 6763, section 9).
const SERVICES: &str = "_services._dns-sd._udp.local";
/// Where a message says how many questions and records it has.
const COUNTS: std::ops::Range<usize> = 4..12;

fn instance(node: NodeId) -> String {
    format!("{node}.{SERVICE}")
}

fn host(node: NodeId) -> String {
    format!("virga-{node}.local")
}

fn name(text: &str) -> Option<Name<'_>> {
    Name::new(text).ok()
}

/// What a node says of itself.
#[must_use]
pub fn announcement(own: &Record) -> Option<Vec<u8>> {
    service(own, TTL_S, HOST_TTL_S)
}

/// It says that no more.
#[must_use]
pub fn goodbye(own: &Record) -> Option<Vec<u8>> {
    service(own, 0, 0)
}

fn service(own: &Record, ttl: u32, host_ttl: u32) -> Option<Vec<u8>> {
    let (instance, host) = (instance(own.node()), host(own.node()));
    let (service, services) = (name(SERVICE)?, name(SERVICES)?);
    let (instance, host) = (name(&instance)?, name(&host)?);
    let addresses = &own.claim().addresses;
    let port = addresses.first()?.port();
    let located = SRV {
        priority: 0,
        weight: 0,
        port,
        target: host.clone(),
    };
    let record =
        |name: &Name<'static>, ttl, data| ResourceRecord::new(name.clone(), CLASS::IN, ttl, data);
    let (all, of, at) = (
        services.into_owned(),
        instance.clone().into_owned(),
        host.into_owned(),
    );
    let mut packet = Packet::new_reply(0);
    packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    let named = service.clone().into_owned();
    packet.answers = vec![
        record(&named, ttl, RData::PTR(PTR(instance))),
        record(&of, host_ttl, RData::SRV(located)),
        record(&of, ttl, RData::TXT(text::write(own.bytes())?)),
    ];
    if ttl > 0 {
        // Others may be of this service still.
        packet
            .answers
            .push(record(&all, ttl, RData::PTR(PTR(service))));
    }
    for address in addresses {
        let data = match address.ip() {
            IpAddr::V4(ip) => RData::A(ip.into()),
            IpAddr::V6(ip) => RData::AAAA(ip.into()),
        };
        packet.answers.push(record(&at, host_ttl, data));
    }
    packet.build_bytes_vec_compressed().ok()
}

/// What a node has said of itself before it said something newer.
#[must_use]
pub fn take_back(before: &Record) -> Option<Vec<u8>> {
    let instance = instance(before.node());
    let data = RData::TXT(text::write(before.bytes())?);
    let mut packet = Packet::new_reply(0);
    packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    let said = ResourceRecord::new(name(&instance)?, CLASS::IN, 0, data);
    packet.answers.push(said);
    packet.build_bytes_vec_compressed().ok()
}

/// The question who is there. It does not say who is known already (RFC 6762, section 7.1): that is what somebody in
/// the LAN has said, true or not, and a lie about a node would silence it.
#[must_use]
pub fn question() -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(0);
    let asked = Question::new(name(SERVICE)?, TYPE::PTR.into(), CLASS::IN.into(), false);
    packet.questions.push(asked);
    packet.build_bytes_vec_compressed().ok()
}

/// A pointer to a name begins with such a byte, or a higher one (RFC 1035, section 4.1.4).
const POINTER: u8 = 0xc0;

/// What somebody said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Something that has to do with no node.
    Nothing,
    /// A question that this node is to answer.
    Question,
    /// Services of nodes, each with the seconds for which it counts; 0: it does no more.
    Services(Vec<Result<(Record, u32), Reason>>),
}

/// Reads a message that `own` heard.
///
/// # Errors
/// Why it cannot be read.
pub fn read(own: NodeId, bytes: &[u8]) -> Result<Said, Reason> {
    // What a message says of its length is made room for: so it is looked at first.
    let counts = bytes.get(COUNTS).ok_or(Reason::Malformed)?.chunks_exact(2);
    let count: usize = counts
        .map(|two| usize::from(u16::from_be_bytes([two[0], two[1]])))
        .sum();
    if count > RECORDS_MAX || bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Reason::Malformed);
    }
    // A name may lead from pointer to pointer: how many there are, times the names that can begin there, is the work.
    let pointers = bytes.iter().filter(|byte| **byte >= POINTER).count();
    if pointers * count > HOPS_MAX {
        return Err(Reason::Malformed);
    }
    let packet = Packet::parse(bytes).map_err(|_| Reason::Malformed)?;
    if packet.opcode() != OPCODE::StandardQuery || packet.rcode() != RCODE::NoError {
        return Err(Reason::Malformed);
    }
    match packet.has_flags(PacketFlag::RESPONSE) {
        true => Ok(services(&packet)),
        false => Ok(asked(own, &packet)),
    }
}

fn services(packet: &Packet<'_>) -> Said {
    let all = packet.answers.iter().chain(&packet.additional_records);
    let texts = all.filter_map(|record| match &record.rdata {
        RData::TXT(text) => Some((label(&record.name)?, text, record.ttl)),
        _ => None,
    });
    let mut services = Vec::new();
    for (label, said, ttl) in texts {
        if services.len() == SERVICES_MAX {
            services.push(Err(Reason::Busy));
            break;
        }
        let record = text::read(said)
            .filter(|record| label.eq_ignore_ascii_case(record.node().to_string().as_bytes()));
        services.push(match record {
            Some(record) => Ok((record, ttl.min(TTL_S))),
            None => Err(Reason::NoRecord),
        });
    }
    match services.is_empty() {
        true => Said::Nothing,
        false => Said::Services(services),
    }
}

/// What a name has before that of the service; none where it is another one.
fn label<'a>(full: &'a Name<'_>) -> Option<&'a [u8]> {
    let mut labels = full.as_bytes();
    let first = labels.next()?;
    let is_ours = labels
        .map(<[u8]>::to_ascii_lowercase)
        .eq(SERVICE.split('.').map(|label| label.as_bytes().to_vec()));
    is_ours.then_some(first)
}

fn asked(own: NodeId, packet: &Packet<'_>) -> Said {
    let (instance, host) = (instance(own), host(own));
    let (Some(service), Some(services)) = (name(SERVICE), name(SERVICES)) else {
        return Said::Nothing;
    };
    let (Some(instance), Some(host)) = (name(&instance), name(&host)) else {
        return Said::Nothing;
    };
    let is_asked = |question: &Question<'_>| {
        let of = |types: &[TYPE]| types.iter().any(|&one| question.qtype == QTYPE::TYPE(one));
        let is_type = match &question.qname {
            name if *name == service || *name == services => of(&[TYPE::PTR]),
            name if *name == instance => of(&[TYPE::SRV, TYPE::TXT]),
            name if *name == host => of(&[TYPE::A, TYPE::AAAA]),
            _ => return false,
        };
        let is_class = matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
        is_class && (is_type || question.qtype == QTYPE::ANY)
    };
    let mut asked = packet
        .questions
        .iter()
        .filter(|question| is_asked(question))
        .peekable();
    if asked.peek().is_none() {
        return Said::Nothing;
    }
    // Who asks for the service alone and knows this node has its answer (RFC 6762, section 7.1).
    let is_for_all = asked.all(|question| question.qname == service);
    let is_known = packet.answers.iter().any(|answer| {
        let is_fresh = answer.ttl >= TTL_S / 2 && answer.name == service;
        is_fresh && matches!(&answer.rdata, RData::PTR(PTR(of)) if *of == instance)
    });
    match is_for_all && is_known {
        true => Said::Nothing,
        false => Said::Question,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::record;
    use proptest::prelude::*;

    fn services_of(bytes: &[u8]) -> Vec<Result<(Record, u32), Reason>> {
        match read(NodeId(1), bytes) {
            Ok(Said::Services(services)) => services,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_node_says_of_itself_is_read_and_fits_into_a_packet() {
        let own = record(1, 2);
        let bytes = announcement(&own).unwrap();
        assert!(bytes.len() < 1_400, "{}", bytes.len());
        assert_eq!(services_of(&bytes), [Ok((own.clone(), TTL_S))]);
        for gone in [goodbye(&own), take_back(&own)] {
            assert_eq!(services_of(&gone.unwrap()), [Ok((own.clone(), 0))]);
        }
    }

    #[test]
    fn who_is_there_is_asked_and_who_is_known_does_not_answer() {
        let [one, two] = [NodeId(1), NodeId(2)];
        assert_eq!(read(one, &question().unwrap()), Ok(Said::Question));
        let knowing = |node: NodeId, ttl| {
            let (asked, instance) = (question().unwrap(), instance(node));
            let mut packet = Packet::parse(&asked).unwrap();
            let data = RData::PTR(PTR(Name::new(&instance).unwrap()));
            let name = Name::new(SERVICE).unwrap();
            packet
                .answers
                .push(ResourceRecord::new(name, CLASS::IN, ttl, data));
            read(one, &packet.build_bytes_vec_compressed().unwrap())
        };
        assert_eq!(knowing(one, TTL_S), Ok(Said::Nothing));
        assert_eq!(knowing(one, TTL_S / 3), Ok(Said::Question), "for too short");
        assert_eq!(knowing(two, TTL_S), Ok(Said::Question));
        let ask = |name: &str, kind: QTYPE| {
            let mut packet = Packet::new_query(7);
            let name = Name::new(name).unwrap();
            packet
                .questions
                .push(Question::new(name, kind, CLASS::IN.into(), true));
            read(one, &packet.build_bytes_vec().unwrap())
        };
        let (own, others) = (instance(one), instance(two));
        assert_eq!(
            ask(&own.to_uppercase(), TYPE::SRV.into()),
            Ok(Said::Question)
        );
        assert_eq!(ask(&host(one), QTYPE::ANY), Ok(Said::Question));
        assert_eq!(ask(SERVICES, TYPE::PTR.into()), Ok(Said::Question));
        assert_eq!(ask(&others, TYPE::SRV.into()), Ok(Said::Nothing));
        assert_eq!(ask(&own, TYPE::A.into()), Ok(Said::Nothing));
        assert_eq!(ask("_ipp._tcp.local", TYPE::PTR.into()), Ok(Said::Nothing));
    }

    #[test]
    fn a_service_that_is_called_as_another_node_counts_for_nothing() {
        let (own, bytes) = (record(1, 2), announcement(&record(1, 2)).unwrap());
        let id = own.node().to_string();
        let at = bytes
            .windows(id.len())
            .position(|part| part == id.as_bytes())
            .unwrap();
        let mut lie = bytes.clone();
        lie[at] = if lie[at] == b'0' { b'1' } else { b'0' };
        assert_eq!(services_of(&lie), [Err(Reason::NoRecord)]);
        let mut many = bytes;
        many[COUNTS].copy_from_slice(&[0xff; 8]);
        assert_eq!(read(own.node(), &many), Err(Reason::Malformed));
    }

    #[test]
    fn of_a_message_with_many_services_so_many_are_looked_at() {
        let mut packet = Packet::new_reply(0);
        let name = instance(NodeId(9));
        for _ in 0..SERVICES_MAX + 9 {
            let text = simple_dns::rdata::TXT::new().with_string("r0=x").unwrap();
            let name = Name::new(&name).unwrap();
            packet
                .answers
                .push(ResourceRecord::new(name, CLASS::IN, 9, RData::TXT(text)));
        }
        let mut all = services_of(&packet.build_bytes_vec_compressed().unwrap());
        assert_eq!(all.pop(), Some(Err(Reason::Busy)));
        assert_eq!(all, vec![Err(Reason::NoRecord); SERVICES_MAX]);
    }

    #[test]
    fn a_message_of_names_that_lead_from_pointer_to_pointer_is_not_read() {
        // A record of an unknown type holds the pointers, each to the one before.
        let mut bytes = vec![0, 0, 0x84, 0, 0, 0, 0, 200, 0, 0, 0, 0];
        let chain: Vec<u8> = (0..2_000_u16)
            .flat_map(|n| (0xc000 | (23 + 2 * n.saturating_sub(1))).to_be_bytes())
            .collect();
        bytes.extend([0, 0xff, 0xf0, 0, 1, 0, 0, 0, 1]);
        bytes.extend(u16::try_from(chain.len()).unwrap().to_be_bytes());
        bytes.extend(&chain);
        for _ in 1..200 {
            // A name: a pointer to the last one.
            let last = u16::try_from(bytes.len().min(4_000)).unwrap();
            bytes.extend((0xc000 | last).to_be_bytes());
            bytes.extend([0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 10, 0, 0, 1]);
        }
        assert!(bytes.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(read(NodeId(1), &bytes), Err(Reason::Malformed));
    }

    proptest! {
        #[test]
        fn no_message_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..9),
        ) {
            let _any = read(NodeId(1), &bytes);
            for mut real in [announcement(&record(1, 2)).unwrap(), question().unwrap()] {
                for &(at, byte) in &changes {
                    let length = real.len();
                    real[at % length] = byte;
                }
                let _any = read(NodeId(1), &real);
                let _any = read(NodeId(1), &real[..bytes.len().min(real.len())]);
            }
        }
    }
}
