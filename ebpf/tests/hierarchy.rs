//! Random hierarchies of subnets with gateways anywhere in them: whatever path a packet takes, no gateway
//! sends it where its channel does not go, and every gateway sends it where that does.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use proptest::prelude::*;
use virga_ebpf::{
    decide::{Arrival, Verdict, decide},
    header::{ChannelHash, Header, NodeId, OriginHash, Subnet},
    image::{ChannelRules, Image, Link, Place, Via},
    memory::MemoryTables,
    publish::Publisher,
    reason::Reason,
    subnet::{SubnetPrefix, Visibility},
    tables::{Address, NextHop, Pair, mix},
};

const CHANNEL: ChannelHash = ChannelHash(7);
const CONTROL: ChannelHash = ChannelHash(0);
const ORIGIN: OriginHash = OriginHash(9);

/// The levels of a subnet, as many as it has: none is the root.
type Levels = Vec<u8>;

fn subnet(levels: &Levels) -> Subnet {
    let mut bytes = [0; 4];
    bytes[..levels.len()].copy_from_slice(levels);
    Subnet(u32::from_be_bytes(bytes))
}

fn prefix(levels: &Levels) -> SubnetPrefix {
    let bits = 8 * u32::try_from(levels.len()).unwrap();
    SubnetPrefix {
        subnet: subnet(levels),
        mask: u32::MAX.checked_shl(32 - bits).unwrap_or(0),
    }
}

/// Whether a channel goes from one subnet to another, by the levels alone.
fn goes(visibility: Visibility, exports: &[Levels], from: &Levels, to: &Levels) -> bool {
    from == to
        || match visibility {
            Visibility::SubnetLocal => false,
            Visibility::ParentVisible => from.starts_with(to),
            Visibility::Exported => exports.iter().any(|prefix| to.starts_with(prefix)),
            Visibility::Global => true,
        }
}

/// Few numbers a level, so that subnets are often related.
fn levels() -> impl Strategy<Value = Levels> {
    prop::collection::vec(1_u8..4, 0..=4)
}

fn visibility() -> impl Strategy<Value = Visibility> {
    prop_oneof![
        Just(Visibility::SubnetLocal),
        Just(Visibility::ParentVisible),
        Just(Visibility::Exported),
        Just(Visibility::Global),
    ]
}

fn address(n: usize) -> Address {
    Address::v4(Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).unwrap()).octets())
}

fn node(n: usize) -> NodeId {
    NodeId(100 + n as u64)
}

/// Node `here` of all, a gateway to all others; a link to each, held to `link` of that node's subnet.
fn gateway(
    here: usize,
    nodes: &[Levels],
    rules: &ChannelRules,
    link: impl Fn(&Levels) -> Link,
) -> MemoryTables {
    let mut image = Image {
        node_id: node(here),
        port: 4783,
        subnet: subnet(&nodes[here]),
        ..Image::default()
    };
    image.pairs.insert(Pair::new(ORIGIN, CHANNEL));
    image.pairs.insert(Pair::new(ORIGIN, CONTROL));
    image.channels.insert(CHANNEL.0, rules.clone());
    for (n, levels) in nodes.iter().enumerate().filter(|(n, _)| *n != here) {
        let place = Place::new(1, address(n));
        image.neighbours.insert(place, link(levels));
        let primary = image.add_next_hop(NextHop {
            target: address(n),
            ifindex: 2,
            mtu: 1_500,
            flags: NextHop::ALIVE,
            ..NextHop::default()
        });
        let via = Via {
            primary,
            backup: None,
        };
        image.routes.insert(node(n), via);
        image.subnets.insert(node(n), subnet(levels));
    }
    let mut tables = MemoryTables::with_destinations(200);
    let mut publisher = Publisher::recover(&tables).unwrap();
    let mut n = 0;
    let entropy = || {
        n += 1;
        mix(0x5eed, n)
    };
    publisher.apply(&mut tables, &image, entropy).unwrap();
    tables
}

/// Where the gateway sends a packet that comes from a neighbour: `Ok` if on to its destination.
fn sent(
    tables: &MemoryTables,
    neighbour: usize,
    claimed: Subnet,
    to: usize,
    channel: ChannelHash,
    sequence: u64,
) -> Result<(), Reason> {
    let header = Header {
        destination: node(to),
        origin_hash: ORIGIN,
        channel_hash: channel,
        subnet: claimed,
        sequence,
        payload_len: 16,
        ..Header::default()
    };
    let arrival = Arrival {
        ifindex: 1,
        vlan: 0,
        source: address(neighbour),
        udp_payload_bytes: 80,
    };
    match decide(tables, &tables.current(), &header, &arrival) {
        Verdict::Drop(reason) => Err(reason),
        Verdict::Local | Verdict::Echo => {
            assert_eq!(tables.current().node_id, node(to));
            Ok(())
        }
        Verdict::Forward(next_hop) => {
            assert_eq!(next_hop.target, address(to));
            Ok(())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn no_gateway_sends_a_packet_where_its_channel_does_not_go(
        nodes in prop::collection::vec(levels(), 3..7),
        exports in prop::collection::vec(levels().prop_filter("not all", |l| !l.is_empty()), 0..4),
        visibility in visibility(),
    ) {
        let rules = ChannelRules {
            visibility,
            exports: exports.iter().map(prefix).collect(),
            ..ChannelRules::default()
        };
        let mut sequence = 0;
        for here in 0..nodes.len() {
            let tables = gateway(here, &nodes, &rules, |_| Link::default());
            // A packet of any sender may come in by any link: it may have gone anywhere before.
            for (neighbour, sender, to) in triples(nodes.len()) {
                if neighbour == here || sender == to {
                    continue;
                }
                let (from, into) = (&nodes[sender], &nodes[to]);
                for again in 0..2 {
                    sequence += 1;
                    let got = sent(&tables, neighbour, subnet(from), to, CHANNEL, sequence);
                    let expected = match goes(visibility, &exports, from, into) {
                        true => Ok(()),
                        false => Err(Reason::Visibility),
                    };
                    prop_assert_eq!(
                        got, expected,
                        "{:?} at {:?}, from {:?} to {:?}, time {}",
                        visibility, nodes[here], from, into, again
                    );
                }
                sequence += 1;
                let control = sent(&tables, neighbour, subnet(from), to, CONTROL, sequence);
                prop_assert_eq!(control, Ok(()));
            }
        }
    }

    #[test]
    fn whatever_subnet_a_sender_claims_a_subnet_local_channel_stays_within_its_links(
        nodes in prop::collection::vec(levels(), 3..7),
    ) {
        let rules = ChannelRules::default();
        let held = |levels: &Levels| {
            let SubnetPrefix { subnet, mask } = prefix(levels);
            Link {
                subnet,
                mask,
                ..Link::default()
            }
        };
        let mut sequence = 0;
        for here in 0..nodes.len() {
            let tables = gateway(here, &nodes, &rules, held);
            for (neighbour, claimed, to) in triples(nodes.len()) {
                if neighbour == here {
                    continue;
                }
                sequence += 1;
                let claimed = subnet(&nodes[claimed]);
                let got = sent(&tables, neighbour, claimed, to, CHANNEL, sequence);
                if got.is_ok() {
                    let (link, into) = (&nodes[neighbour], &nodes[to]);
                    prop_assert!(into.starts_with(link), "from {:?} to {:?}", link, into);
                }
            }
        }
    }
}

fn triples(count: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..count).flat_map(move |a| (0..count).flat_map(move |b| (0..count).map(move |c| (a, b, c))))
}
