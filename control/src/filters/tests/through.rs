//! What a gateway of ONE lets through to TWO by TWO's filter, and what TWO's own gateway then delivers.

use super::*;

const NEIGHBOUR: Address = Address::v4([10, 0, 0, 1]);
const THERE: NodeId = NodeId(9);

/// The tables of a node whose neighbour brings anything and leads to THERE, in TWO.
fn tables(own: SubnetPrefix, foreign: &Foreign, pairs: BTreeSet<Pair>) -> MemoryTables {
    tables_to(TWO.subnet, own, foreign, pairs)
}

/// The same with THERE in a subnet.
fn tables_to(
    there: Subnet,
    own: SubnetPrefix,
    foreign: &Foreign,
    pairs: BTreeSet<Pair>,
) -> MemoryTables {
    let mut image = Image {
        node_id: NodeId(1),
        subnet: own.subnet,
        pairs,
        ..Image::default()
    };
    let place = Place::new(0, NEIGHBOUR);
    image.neighbours.insert(place, Link::default());
    for hash in 1..=u16::MAX {
        let rules = ChannelRules {
            visibility: Visibility::Global,
            ..ChannelRules::default()
        };
        image.channels.insert(hash, rules);
    }
    let hop = image.add_next_hop(NextHop {
        target: NEIGHBOUR,
        port: 4_783,
        mtu: 1_500,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    });
    let via = Via {
        primary: hop,
        backup: None,
    };
    image.routes.insert(THERE, via);
    image.subnets.insert(THERE, there);
    foreign.write(0, &mut image);
    let mut tables = MemoryTables::new();
    let mut drawn = 0;
    let entropy = || {
        drawn += 1;
        mix(99, drawn)
    };
    let mut publisher = Publisher::recover(&tables).unwrap();
    publisher.apply(&mut tables, &image, entropy).unwrap();
    tables
}

fn sent(tables: &MemoryTables, pair: &Pair, sequence: u64) -> Result<(), Reason> {
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        hop_limit: 9,
        channel_hash: ChannelHash(u16::try_from(pair.channel).unwrap()),
        subnet: ONE.subnet,
        destination: THERE,
        origin_hash: pair.origin,
        sequence,
        ..Header::default()
    };
    let arrival = Arrival {
        ifindex: 0,
        vlan: 0,
        source: NEIGHBOUR,
        udp_payload_bytes: u32::try_from(HEADER_BYTES).unwrap(),
    };
    match decide(tables, &tables.current(), &header, &arrival) {
        Verdict::Drop(reason) => Err(reason),
        Verdict::Local | Verdict::Echo | Verdict::Forward(_) => Ok(()),
    }
}

#[test]
fn what_passes_a_filter_by_chance_is_as_rare_as_estimated_and_is_not_delivered() {
    let admitted = pairs(0..1_600);
    let mut filters = filters();
    let filter = says(&mut signer(2), &admitted, at(0)).unwrap();
    take(&mut filters, &filter, at(0)).unwrap();
    let first = tables(ONE, &filters.foreign(at(0)), BTreeSet::new());
    first.set_now(at(1).monotonic_ns);
    let theirs = Foreign {
        own: TWO,
        ..Foreign::default()
    };
    let last = tables(TWO, &theirs, admitted.clone());
    for (sequence, pair) in (0..).zip(&admitted) {
        assert_eq!(sent(&first, pair, sequence), Ok(()));
        assert_eq!(sent(&last, pair, sequence), Ok(()));
    }
    let strangers = 400_000;
    let (mut forwarded, mut delivered) = (0, 0);
    for number in 1_000_000..1_000_000 + strangers {
        let stranger = pair(number);
        match sent(&first, &stranger, number) {
            Ok(()) => forwarded += 1,
            Err(reason) => assert_eq!(reason, Reason::Unauthorised),
        }
        delivered += u32::from(sent(&last, &stranger, number).is_ok());
    }
    let status = filters.status(&key(1).public, at(1));
    let estimated = status.filters[1].false_positive_rate;
    let measured = f64::from(forwarded) / 400_000.0;
    println!(
        "{estimated:.6} of strangers estimated, {measured:.6} measured: {forwarded} of {strangers}"
    );
    assert_eq!(delivered, 0);
    assert!(estimated > 0.0001 && estimated < 0.001, "{estimated}");
    let ratio = measured / estimated;
    assert!((0.7..1.4).contains(&ratio), "{ratio}");
}

#[test]
fn withdrawn_and_late_pairs_are_dropped_at_the_first_gateway() {
    let mut filters = filters();
    let mut one = signer(2);
    let passes = |filters: &Filters, seconds: u64, number| {
        let now = at(seconds);
        let tables = tables(ONE, &filters.foreign(now), BTreeSet::new());
        tables.set_now(now.monotonic_ns);
        sent(&tables, &pair(number), 1)
    };
    assert_eq!(passes(&filters, 0, 0), Err(Reason::SubnetUnknown));
    take(
        &mut filters,
        &says(&mut one, &pairs(0..2), at(0)).unwrap(),
        at(0),
    )
    .unwrap();
    assert_eq!(passes(&filters, 0, 0), Ok(()));
    take(
        &mut filters,
        &says(&mut one, &pairs(1..2), at(1)).unwrap(),
        at(1),
    )
    .unwrap();
    assert_eq!(passes(&filters, 1, 0), Err(Reason::Unauthorised));
    assert_eq!(passes(&filters, 1, 1), Ok(()));
    assert_eq!(passes(&filters, 30, 1), Err(Reason::SubnetUnknown));
}

#[test]
fn a_subnet_within_ones_own_is_judged_by_its_own_filter() {
    let within = Subnet(0x0101_0000).with_descendants();
    let mut filters = Filters::new(ONE, &[gateway(1, ONE), gateway(2, within)]);
    let passes = |filters: &Filters, there: Subnet, number| {
        let tables = tables_to(there, ONE, &filters.foreign(at(0)), pairs(0..1));
        tables.set_now(at(0).monotonic_ns);
        sent(&tables, &pair(number), 1)
    };
    assert_eq!(passes(&filters, ONE.subnet, 0), Ok(()));
    let unknown = Err(Reason::SubnetUnknown);
    assert_eq!(passes(&filters, within.subnet, 0), unknown);
    let mut signer = Signer::new(key(2), within, LIFE_S);
    let filter = says(&mut signer, &pairs(1..2), at(0)).unwrap();
    take(&mut filters, &filter, at(0)).unwrap();
    let there = [0, 1].map(|number| passes(&filters, within.subnet, number));
    assert_eq!(there, [Err(Reason::Unauthorised), Ok(())]);
    assert_eq!(passes(&filters, Subnet(0x0102_0000), 0), Ok(()));
}
