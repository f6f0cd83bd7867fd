//! Random images, the packets that their small names can make, and tables that are watched while they change.

use std::net::Ipv4Addr;

use virga_ebpf::{
    decide::{Arrival, Verdict, decide},
    directory::Line,
    guard::Guard,
    header::{ChannelHash, Header, NodeId, OriginHash, Subnet},
    image::{ChannelRules, ForeignGuard, Image, Link, NextHopKey, Place, Via},
    memory::MemoryTables,
    pair_set,
    publish::{Publisher, Store},
    reason::Reason,
    subnet::{Exports, SubnetPrefix, Visibility},
    tables::{Address, ChannelPolicy, Filter, Neighbour, NextHop, Pair, Route, Settings, mix},
};

pub const HERE: NodeId = NodeId(1);

/// A seeded source of numbers.
pub struct Seeded(pub u64);

impl Seeded {
    pub fn next(&mut self) -> u64 {
        self.0 += 1;
        mix(mix(self.0, 0x5eed), 7)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub fn address(n: u64) -> Address {
    Address::v4(Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).unwrap()).octets())
}

/// A random small image; few names, so that successive ones overlap.
pub fn image(seeded: &mut Seeded) -> Image {
    let mut image = Image {
        node_id: HERE,
        port: 4783,
        ..Image::default()
    };
    image.addresses.insert(address(0));
    for _ in 0..seeded.below(30) {
        let link = Link {
            demands_tag: seeded.below(3) == 0,
            ..Link::default()
        };
        image
            .neighbours
            .insert(Place::new(1, address(1 + seeded.below(40))), link);
    }
    for _ in 0..seeded.below(60) {
        image.pairs.insert(pair(seeded));
    }
    let keys: Vec<NextHopKey> = (0..1 + seeded.below(6))
        .map(|_| {
            let flags = if seeded.below(4) == 0 {
                0
            } else {
                NextHop::ALIVE
            };
            let target = address(100 + seeded.below(8));
            image.add_next_hop(NextHop {
                target,
                port: 4783,
                mtu: 1500,
                ifindex: 2,
                flags,
                ..NextHop::default()
            })
        })
        .collect();
    let one = |seeded: &mut Seeded| keys[usize::try_from(seeded.below(keys.len() as u64)).unwrap()];
    for _ in 0..seeded.below(20) {
        let via = Via {
            primary: one(seeded),
            backup: (seeded.below(2) == 0).then(|| one(seeded)),
        };
        image.routes.insert(NodeId(100 + seeded.below(15)), via);
    }
    add_subnets(&mut image, seeded);
    if seeded.below(2) == 0 {
        image.add_rate(ChannelHash(3), 1 + seeded.below(1_000));
    }
    image
}

/// The subnets there are.
const SUBNETS: [Subnet; 5] = [
    Subnet(0),
    Subnet(0x0100_0000),
    Subnet(0x0102_0000),
    Subnet(0x0200_0000),
    Subnet(0x0203_0000),
];

/// The subnet of a destination or an origin, the same in every image.
pub fn subnet_of(name: u64) -> Subnet {
    SUBNETS[usize::try_from(name % 5).unwrap()]
}

fn pair(seeded: &mut Seeded) -> Pair {
    let channel = ChannelHash(u16::try_from(seeded.below(6)).unwrap());
    Pair::new(OriginHash(seeded.below(20)), channel)
}

/// In half of all images there are none; in others, channels have a visibility, and some subnets a filter.
fn add_subnets(image: &mut Image, seeded: &mut Seeded) {
    if seeded.below(2) == 0 {
        return;
    }
    image.subnet = Subnet(0x0102_0000);
    image.subnet_mask = [0, 0xff00_0000, 0xffff_0000][usize::try_from(seeded.below(3)).unwrap()];
    for destination in 100..115 {
        image
            .subnets
            .insert(NodeId(destination), subnet_of(destination));
    }
    let some = |seeded: &mut Seeded| SUBNETS[usize::try_from(seeded.below(5)).unwrap()];
    for channel in 0..6 {
        let visibilities = [
            Visibility::SubnetLocal,
            Visibility::ParentVisible,
            Visibility::Exported,
            Visibility::Global,
        ];
        let mut rules = ChannelRules {
            visibility: visibilities[usize::try_from(seeded.below(4)).unwrap()],
            ..ChannelRules::default()
        };
        for _ in 0..seeded.below(4) {
            rules.exports.insert(some(seeded).with_descendants());
        }
        image.channels.insert(channel, rules);
    }
    for _ in 0..seeded.below(6) {
        let pairs: Vec<Pair> = (0..seeded.below(80)).map(|_| pair(seeded)).collect();
        let filter = ForeignGuard {
            // At times one that was there.
            salt: [seeded.below(3), 0],
            lines: Guard::build([seeded.below(3), 0], pairs.iter()).lines,
            expires_ns: 1 << (40 + seeded.below(2)),
        };
        let prefix = some(seeded).with_descendants();
        for denied in pairs
            .iter()
            .take(usize::try_from(seeded.below(20)).unwrap())
        {
            image.denied.insert((prefix, *denied));
        }
        image.filters.insert(prefix, filter);
    }
}

/// What judges the pairs that publish to a destination: the exact set, or a filter, or nothing.
pub fn judge(image: &Image, destination: NodeId) -> (bool, Option<(SubnetPrefix, &ForeignGuard)>) {
    let subnet = image.subnet_of(destination);
    if subnet.0 & image.subnet_mask == image.subnet.0 & image.subnet_mask {
        return (true, None);
    }
    let filters = image.filters.iter().filter(|(p, _)| p.contains(subnet));
    let longest = filters.max_by_key(|(prefix, _)| prefix.mask);
    (false, longest.map(|(prefix, filter)| (*prefix, filter)))
}

/// Every packet that the small names can make, with a sequence of its own.
pub fn packets(mut sequence: u64) -> Vec<(Header, Arrival)> {
    let mut all = Vec::new();
    for neighbour in [1, 2, 9, 33] {
        for origin in 0..20 {
            for channel in 0..3 {
                for destination in [1, 100, 101, 107, 114] {
                    sequence += 1;
                    let header = Header {
                        destination: NodeId(destination),
                        origin_hash: OriginHash(origin),
                        channel_hash: ChannelHash(channel),
                        subnet: subnet_of(origin),
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
                    all.push((header, arrival));
                }
            }
        }
    }
    all
}

/// A verdict without places and numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Local,
    Forward(Address),
    Drop(Reason),
}

pub fn fate(tables: &MemoryTables, packet: &(Header, Arrival)) -> Fate {
    match decide(tables, &tables.current(), &packet.0, &packet.1) {
        Verdict::Local | Verdict::Echo => Fate::Local,
        Verdict::Drop(reason) => Fate::Drop(reason),
        Verdict::Forward(next_hop) => Fate::Forward(next_hop.target),
    }
}

pub fn fresh(image: &Image, seeded: &mut Seeded) -> MemoryTables {
    let mut tables = MemoryTables::with_destinations(5_000);
    let mut publisher = Publisher::recover(&tables).unwrap();
    publisher
        .apply(&mut tables, image, || seeded.next())
        .unwrap();
    tables
}

/// Tables that ask before every single write, and are not written when the answer is an error.
pub struct Asking<F> {
    pub tables: MemoryTables,
    pub before_write: F,
}

macro_rules! write {
    ($($set:ident($($name:ident: $type:ty),*)),* $(,)?) => {
        $(fn $set(&mut self, $($name: $type),*) -> Result<(), Self::Error> {
            (self.before_write)(&self.tables)?;
            self.tables.$set($($name),*).map_err(|never| match never {})
        })*
    };
}

macro_rules! read {
    ($($get:ident: $type:ty),* $(,)?) => {
        $(fn $get(&self) -> Result<$type, Self::Error> {
            self.tables.$get().map_err(|never| match never {})
        })*
    };
}

impl<F: FnMut(&MemoryTables) -> Result<(), &'static str>> Store for Asking<F> {
    type Error = &'static str;
    write! {
        set_settings(settings: &Settings),
        set_neighbour(slot: u32, neighbour: &Neighbour),
        set_guard_lines(from: u32, lines: &[[u64; 8]]),
        set_filter(place: u32, filter: &Filter),
        set_exports(place: u32, exports: &Exports),
        set_pair_line(line: u32, entries: &pair_set::Line),
        set_channel(hash: u16, policy: &ChannelPolicy),
        set_destinations(line: u32, entries: &Line),
        set_route(number: u32, route: &Route),
        set_next_hop(number: u32, next_hop: &NextHop),
    }
    read! {
        settings: Settings, neighbours: Vec<Neighbour>, filters: Vec<Filter>, exports: Vec<Exports>,
        channels: Vec<ChannelPolicy>, destinations: Vec<Line>, routes: Vec<Route>,
        next_hops: Vec<NextHop>,
    }
    fn pair_lines(&self, from: u32, count: u32) -> Result<Vec<pair_set::Line>, Self::Error> {
        (self.tables.pair_lines(from, count)).map_err(|never| match never {})
    }
}
