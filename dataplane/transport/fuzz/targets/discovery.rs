//! A node between peers that say what they like in their sessions, and strangers that introduce themselves as whom they
//! like: what it reads it would write the same, what it says can be read and goes to peers, and its memory has its bounds.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use arbitrary::Arbitrary;
use ed25519_dalek::{Signer as _, SigningKey};
use virga_discovery::{
    Authority, Claim, Discovery, MemberState, Now, Record, Setup,
    limits::{ASKED_MAX, RECORDS_MAX, UPDATES_MAX},
    record,
    swim::{Kind, Said, Update},
    wire::{Ask, MESSAGE_BYTES_MAX, Message},
};
use virga_ebpf::{
    hash,
    header::{NodeId, Subnet},
};

use super::MS;

/// Nodes that there are; the first is this one.
const NODES: u8 = 24;
/// Of them those that may be peers, from the second on.
const PEERS: u8 = 4;
/// Nodes that this one has room for.
const PEERS_MAX: usize = 8;
/// Unix seconds at the beginning.
const BEGINNING_S: u64 = 1_800_000_000;

#[derive(Arbitrary, Debug)]
enum Act {
    Began(u8),
    Ended(u8),
    Raw {
        peer: u8,
        bytes: Vec<u8>,
    },
    Records {
        peer: u8,
        of: Vec<Of>,
    },
    Asked {
        peer: u8,
        from: u64,
        to: u64,
        known: Vec<(u8, u8)>,
    },
    Swim {
        peer: u8,
        kind: u8,
        target: u8,
        incarnation: u8,
        updates: Vec<(u8, u8, u8, u8)>,
    },
    Introduced {
        address: u8,
        of: Of,
        changes: Vec<(u16, u8)>,
    },
    Wait(u16),
    /// The clock on the wall is set.
    Clock(i16),
}

/// Whose record, and which.
#[derive(Arbitrary, Debug)]
struct Of {
    node: u8,
    entity: u8,
    instance: u8,
    sequence: u8,
    age_s: u16,
    address: u8,
    is_elsewhere: bool,
}

struct Keys;

impl Authority for Keys {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        entity(0).sign(message).to_bytes()
    }

    fn admits(&self, claim: &Claim) -> bool {
        claim.node_key != key(NODES - 1)
    }
}

fn entity(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number % NODES + 1; 32])
}

fn entity_key(number: u8) -> [u8; 32] {
    entity(number).verifying_key().to_bytes()
}

fn key(number: u8) -> [u8; 32] {
    [number % NODES + 101; 32]
}

fn id(number: u8) -> NodeId {
    hash::node_id(&key(number))
}

fn peer(number: u8) -> u8 {
    number % PEERS + 1
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 4783))
}

fn issued(of: &Of) -> Option<Record> {
    let claim = Claim {
        node_key: key(of.node),
        entity_key: entity_key(of.entity),
        network: record::network(if of.is_elsewhere { "other" } else { "fuzz" }),
        subnet: Subnet(0),
        instance: of.instance.into(),
        sequence: BEGINNING_S * 1_000 + u64::from(of.sequence),
        issued_s: BEGINNING_S - u64::from(of.age_s),
        lifetime_s: 1_800,
        name: format!("n{}", of.node % NODES),
        addresses: vec![address(of.address)],
    };
    Record::issue(&claim, |message| entity(of.entity).sign(message).to_bytes())
}

/// What an act says, and which peer.
fn said(act: &Act) -> Option<(u8, Message)> {
    Some(match act {
        Act::Records { peer, of } => {
            let records: Vec<Record> = of.iter().take(RECORDS_MAX).filter_map(issued).collect();
            (*peer, Message::Records(records))
        }
        Act::Asked {
            peer,
            from,
            to,
            known,
        } => {
            let known: BTreeMap<NodeId, u64> = known
                .iter()
                .take(ASKED_MAX)
                .map(|(node, sequence)| (id(*node), u64::from(*sequence)))
                .filter(|(node, _)| (*from..=*to).contains(&node.0))
                .collect();
            let (from, to, known) = (*from, *to, known.into_iter().collect());
            (*peer, Message::Ask(Ask { from, to, known }))
        }
        Act::Swim {
            peer,
            kind,
            target,
            incarnation,
            updates,
        } => {
            let states = [MemberState::Alive, MemberState::Suspect, MemberState::Dead];
            let update = |(node, state, incarnation, by): &(u8, u8, u8, u8)| Update {
                node: id(*node),
                state: states[usize::from(state % 3)],
                incarnation: (*incarnation).into(),
                by: id(*by),
            };
            let target = id(*target);
            let kinds = [
                Kind::Ping,
                Kind::Ack,
                Kind::Ask { target },
                Kind::Nack,
                Kind::Tell,
            ];
            let said = Said {
                incarnation: (*incarnation).into(),
                kind: kinds[usize::from(kind % 5)],
                number: u32::from(*kind),
                updates: updates.iter().take(UPDATES_MAX).map(update).collect(),
            };
            (*peer, Message::Swim(said))
        }
        _ => return None,
    })
}

/// Whatever was read is written as it came.
fn read(bytes: &[u8]) {
    if let Some(message) = Message::parse(bytes) {
        assert_eq!(message.encode(), bytes, "one way to write a message");
    }
    if let Some(record) = Record::parse(bytes) {
        assert_eq!(record.bytes(), bytes);
    }
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(acts) = super::read::<Vec<Act>>(input) else {
        return;
    };
    let mut now = Now {
        ns: 1_000 * MS,
        unix_s: BEGINNING_S,
    };
    let setup = Setup {
        node_key: key(0),
        entity_key: entity_key(0),
        network: record::network("fuzz"),
        name: "n0".to_owned(),
        subnet: Subnet(0),
        addresses: vec![address(1)],
        instance: 1,
        started_ms: BEGINNING_S * 1_000,
        exchanges: true,
        is_ipv4: true,
        peers_max: PEERS_MAX,
        configured: BTreeMap::new(),
        seed: 1,
    };
    let mut node = Discovery::new(now, setup, Keys).expect("its own record counts");
    let mut sessions = BTreeSet::new();
    for act in acts.iter().take(200) {
        match act {
            Act::Began(n) => {
                sessions.insert(id(peer(*n)));
                node.session_began(now, id(peer(*n)), entity_key(peer(*n)));
            }
            Act::Ended(n) => {
                sessions.remove(&id(peer(*n)));
                node.session_ended(now, id(peer(*n)));
            }
            Act::Raw { peer: n, bytes } => {
                read(bytes);
                node.handle(now, id(peer(*n)), bytes);
            }
            Act::Introduced {
                address: from,
                of,
                changes,
            } => {
                let Some(record) = issued(of) else { continue };
                let mut words = record.bytes().to_vec();
                for (at, by) in changes {
                    let at = usize::from(*at) % words.len();
                    words[at] ^= by;
                }
                read(&words);
                node.introduced(now, address(*from), &words);
            }
            Act::Wait(ms) => now.ns += u64::from(*ms) * MS,
            Act::Clock(seconds) => {
                now.unix_s = now.unix_s.saturating_add_signed((*seconds).into());
            }
            act => {
                let Some((n, message)) = said(act) else {
                    continue;
                };
                let bytes = message.encode();
                read(&bytes);
                node.handle(now, id(peer(n)), &bytes);
            }
        }
        node.handle_timeout(now);
        while let Some((to, bytes)) = node.poll_transmit() {
            assert!(bytes.len() <= MESSAGE_BYTES_MAX && Message::parse(&bytes).is_some());
            assert!(to != node.node(), "it tells itself nothing");
        }
        while node.poll_introduction().is_some() {}
        while node.poll_notice().is_some() {}
        let adopted = node.adopted();
        let places: BTreeSet<SocketAddr> = adopted.iter().map(|one| one.address).collect();
        assert_eq!(places.len(), adopted.len(), "no two at one address");
        assert!(adopted.iter().all(|one| one.node_key != key(NODES - 1)));
        // Those that were reached, and those that never were.
        assert!(node.known().count() <= 2 * PEERS_MAX);
    }
}
