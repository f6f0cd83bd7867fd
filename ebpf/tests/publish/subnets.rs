//! Filters, denials and boundaries of subnets: what they admit, when they end, and how they are replaced.

use virga_ebpf::{
    decide::Arrival,
    guard::Guard,
    header::{ChannelHash, Header, NodeId, OriginHash, Subnet},
    image::{ChannelRules, ForeignGuard, Image, Link, NextHopKey, Place, Via},
    limits::{FILTERS_MAX, GUARD_LINES_PER_BANK},
    memory::MemoryTables,
    publish::{PublishError, Publisher, held_pairs},
    reason::Reason,
    subnet::Visibility,
    tables::{NextHop, Pair},
};

use super::world::{Asking, Fate, HERE, Seeded, address, fate};

const THERE: NodeId = NodeId(100);
const OWN: Subnet = Subnet(0x0100_0000);
const OTHER: Subnet = Subnet(0x0200_0000);
const CHANNEL: ChannelHash = ChannelHash(7);
const MEMBER: OriginHash = OriginHash(1);
const GUEST: OriginHash = OriginHash(2);

/// A gateway of subnet 1, with a destination in subnet 2, and no filter of it.
fn image() -> Image {
    let mut image = Image {
        node_id: HERE,
        port: 4783,
        subnet: OWN,
        subnet_mask: OWN.mask(),
        ..Image::default()
    };
    image
        .neighbours
        .insert(Place::new(1, address(1)), Link::default());
    let primary = image.add_next_hop(NextHop {
        target: address(2),
        ifindex: 2,
        mtu: 1_500,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    });
    add(&mut image, THERE, OTHER, primary);
    image.pairs.insert(Pair::new(MEMBER, CHANNEL));
    let rules = ChannelRules {
        visibility: Visibility::Global,
        ..ChannelRules::default()
    };
    image.channels.insert(CHANNEL.0, rules);
    image
}

fn add(image: &mut Image, destination: NodeId, subnet: Subnet, primary: NextHopKey) {
    let via = Via {
        primary,
        backup: None,
    };
    image.routes.insert(destination, via);
    image.subnets.insert(destination, subnet);
}

fn filter(salt: u64, origins: &[OriginHash], expires_ns: u64) -> ForeignGuard {
    let pairs: Vec<Pair> = origins.iter().map(|o| Pair::new(*o, CHANNEL)).collect();
    ForeignGuard {
        salt: [salt, 1],
        lines: Guard::build([salt, 1], pairs.iter()).lines,
        expires_ns,
    }
}

/// Tables that follow images, and packets of ever new sequences.
struct Stage {
    tables: MemoryTables,
    publisher: Publisher,
    seeded: Seeded,
    sequence: u64,
}

impl Stage {
    fn new(image: &Image) -> Self {
        let tables = MemoryTables::with_destinations(5_000);
        let mut stage = Self {
            publisher: Publisher::recover(&tables).unwrap(),
            tables,
            seeded: Seeded(1),
            sequence: 0,
        };
        stage.apply(image);
        stage
    }

    fn apply(&mut self, image: &Image) {
        let seeded = &mut self.seeded;
        let applied = self
            .publisher
            .apply(&mut self.tables, image, || seeded.next());
        assert_eq!(applied, Ok(()));
    }

    fn fate(&mut self, origin: OriginHash, destination: NodeId) -> Fate {
        self.sequence += 1;
        let packet = packet(origin, destination, self.sequence);
        fate(&self.tables, &packet)
    }
}

fn packet(origin: OriginHash, destination: NodeId, sequence: u64) -> (Header, Arrival) {
    let header = Header {
        destination,
        origin_hash: origin,
        channel_hash: CHANNEL,
        subnet: OWN,
        sequence,
        payload_len: 16,
        ..Header::default()
    };
    let arrival = Arrival {
        ifindex: 1,
        vlan: 0,
        source: address(1),
        udp_payload_bytes: 80,
    };
    (header, arrival)
}

#[test]
fn another_subnets_filter_judges_what_goes_there_until_it_ends() {
    const SECOND_NS: u64 = 1_000_000_000;
    let mut image = image();
    let mut stage = Stage::new(&image);
    let sent = Fate::Forward(address(2));
    // Without a filter nothing goes there, whoever may publish here.
    let unknown = Fate::Drop(Reason::SubnetUnknown);
    assert_eq!(stage.fate(MEMBER, THERE), unknown);
    assert_eq!(stage.fate(MEMBER, HERE), Fate::Local);
    let ends = 10 * SECOND_NS;
    let prefix = OTHER.with_descendants();
    image.filters.insert(prefix, filter(5, &[GUEST], ends));
    stage.apply(&image);
    for _ in 0..2 {
        assert_eq!(stage.fate(GUEST, THERE), sent);
        assert_eq!(stage.fate(MEMBER, THERE), Fate::Drop(Reason::Unauthorised));
    }
    // A warm flow ends with the filter; until then it goes on.
    stage.tables.set_now(ends - 1);
    assert_eq!(stage.fate(GUEST, THERE), sent);
    stage.tables.set_now(ends);
    assert_eq!(stage.fate(GUEST, THERE), unknown);
    // The same one, prolonged, holds again; shortened, it ends what is cached.
    image.filters.get_mut(&prefix).unwrap().expires_ns = 100 * SECOND_NS;
    stage.apply(&image);
    assert_eq!(stage.fate(GUEST, THERE), sent);
    image.filters.get_mut(&prefix).unwrap().expires_ns = SECOND_NS;
    stage.apply(&image);
    assert_eq!(stage.fate(GUEST, THERE), unknown);
}

#[test]
fn what_is_withdrawn_is_denied_until_the_next_filter_and_another_daemon_knows_of_it() {
    let mut image = image();
    let prefix = OTHER.with_descendants();
    let (both, ends) = ([MEMBER, GUEST], 1 << 50);
    image.filters.insert(prefix, filter(5, &both, ends));
    let mut stage = Stage::new(&image);
    let sent = Fate::Forward(address(2));
    assert_eq!([MEMBER, GUEST].map(|o| stage.fate(o, THERE)), [sent, sent]);
    image.denied.insert((prefix, Pair::new(GUEST, CHANNEL)));
    stage.apply(&image);
    let refused = Fate::Drop(Reason::Unauthorised);
    assert_eq!(
        [MEMBER, GUEST].map(|o| stage.fate(o, THERE)),
        [sent, refused]
    );
    stage.publisher = Publisher::recover(&stage.tables).unwrap();
    stage.apply(&image);
    assert_eq!(
        [MEMBER, GUEST].map(|o| stage.fate(o, THERE)),
        [sent, refused]
    );
    image.denied.clear();
    image.filters.insert(prefix, filter(6, &[MEMBER], ends));
    stage.apply(&image);
    assert_eq!(
        [MEMBER, GUEST].map(|o| stage.fate(o, THERE)),
        [sent, refused]
    );
    let held = held_pairs(&stage.tables).unwrap();
    assert!(held.iter().all(|pair| pair.denied_by == 0), "{held:?}");
}

#[test]
fn no_write_admits_a_pair_that_is_withdrawn_from_a_filter_as_that_is_published() {
    let mut image = image();
    let prefix = OTHER.with_descendants();
    image.filters.insert(prefix, filter(5, &[MEMBER], 1 << 50));
    let mut stage = Stage::new(&image);
    image
        .filters
        .insert(prefix, filter(6, &[MEMBER, GUEST], 1 << 50));
    image.denied.insert((prefix, Pair::new(GUEST, CHANNEL)));
    let mut writes = 0;
    let mut watched = Asking {
        tables: stage.tables,
        before_write: |tables: &MemoryTables| {
            writes += 1;
            let guest = fate(tables, &packet(GUEST, THERE, 1_000 + writes));
            assert_eq!(guest, Fate::Drop(Reason::Unauthorised), "write {writes}");
            let member = fate(tables, &packet(MEMBER, THERE, 2_000 + writes));
            assert_eq!(member, Fate::Forward(address(2)), "write {writes}");
            Ok(())
        },
    };
    let seeded = &mut stage.seeded;
    let applied = stage
        .publisher
        .apply(&mut watched, &image, || seeded.next());
    assert_eq!(applied, Ok(()));
    assert!(writes >= 4, "{writes} writes");
}

#[test]
fn as_many_filters_as_there_are_numbers_are_replaced_by_others() {
    let ends = 1 << 50;
    let prefix = |n: u32| Subnet(0x0200_0000 + (n << 16)).with_descendants();
    let filled = |from: u32| {
        let mut image = image();
        let primary = *image.next_hops.keys().next().unwrap();
        for n in from..from + FILTERS_MAX {
            let there = NodeId(1_000 + u64::from(n));
            add(&mut image, there, prefix(n).subnet, primary);
            let origin = OriginHash(u64::from(n));
            image
                .filters
                .insert(prefix(n), filter(u64::from(n), &[origin], ends));
        }
        image
    };
    let mut stage = Stage::new(&filled(1));
    for from in [1, 65, 30, 129] {
        let image = filled(from);
        stage.apply(&image);
        for n in from..from + FILTERS_MAX {
            let there = NodeId(1_000 + u64::from(n));
            let (own, other) = (OriginHash(u64::from(n)), OriginHash(u64::from(n ^ 1)));
            assert_eq!(stage.fate(own, there), Fate::Forward(address(2)));
            assert_eq!(stage.fate(other, there), Fate::Drop(Reason::Unauthorised));
        }
    }
    let mut image = filled(1);
    image.filters.insert(prefix(200), filter(1, &[], ends));
    let full = stage.publisher.apply(&mut stage.tables, &image, || 1);
    assert_eq!(full, Err(PublishError::Full("filters", FILTERS_MAX)));
}

#[test]
fn filters_of_other_than_whole_banks_and_too_long_export_tables_are_refused() {
    let lines = GUARD_LINES_PER_BANK as usize;
    for count in [0, 1, lines - 1, 3 * lines, 16 * lines] {
        let (mut odd, prefix) = (image(), OTHER.with_descendants());
        let mut filter = filter(1, &[], 1);
        filter.lines.resize(count, [0; 8]);
        odd.filters.insert(prefix, filter);
        let mut stage = Stage::new(&image());
        let refused = stage.publisher.apply(&mut stage.tables, &odd, || 1);
        assert_eq!(refused, Err(PublishError::Filter(prefix, count)));
    }
    let mut long = image();
    let rules = long.channels.get_mut(&CHANNEL.0).unwrap();
    rules.exports = (0..9).map(|n| Subnet(n).with_descendants()).collect();
    let mut stage = Stage::new(&image());
    let refused = stage.publisher.apply(&mut stage.tables, &long, || 1);
    let full = PublishError::Full("export (of one channel)", 8);
    assert_eq!(refused, Err(full));
}
