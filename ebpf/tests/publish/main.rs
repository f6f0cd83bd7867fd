//! Tables follow images: whatever the way, they decide as tables made from scratch would, and no packet
//! that both the old and the new image admit is refused on the way.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod subnets;
mod world;

use std::collections::BTreeSet;

use virga_ebpf::{
    decide::{Arrival, find, route_to},
    header::{ChannelHash, Header, NodeId, OriginHash},
    image::{Image, Link, NextHopKey, Place, Via},
    limits::{NEIGHBOURS_MAX, NEXT_HOPS_MAX, OWN_ADDRESSES_MAX, ROUTES_MAX},
    memory::MemoryTables,
    publish::{PublishError, Publisher, Store, held_pairs},
    reason::Reason,
    tables::{Address, NextHop, OWN_ADDRESS, Pair},
};

use world::{Asking, Fate, HERE, Seeded, address, fate, fresh, image, judge, packets};

#[test]
fn any_sequence_of_images_ends_where_the_last_one_alone_would() {
    for seed in 0..40 {
        let mut seeded = Seeded(seed << 32);
        let mut tables = MemoryTables::with_destinations(5_000);
        let mut publisher = Publisher::recover(&tables).unwrap();
        for step in 0..12 {
            // At times the daemon is restarted in between.
            if seeded.below(3) == 0 {
                publisher = Publisher::recover(&tables).unwrap();
            }
            let image = image(&mut seeded);
            publisher
                .apply(&mut tables, &image, || seeded.next())
                .unwrap();
            let scratch = fresh(&image, &mut seeded);
            for packet in packets(step << 32) {
                let (followed, made) = (fate(&tables, &packet), fate(&scratch, &packet));
                assert_eq!(followed, made, "seed {seed}, step {step}: {packet:?}");
            }
            let held = held_pairs(&tables).unwrap().into_iter();
            let pairs: BTreeSet<Pair> = held.filter(|p| p.denied_by == 0).collect();
            assert_eq!(pairs, image.pairs, "seed {seed}, step {step}");
        }
    }
}

#[test]
fn no_single_write_refuses_a_packet_that_both_images_admit() {
    let mut looked = 0;
    for seed in 0..60 {
        let mut seeded = Seeded(seed << 40 | 1);
        let (mut old, mut new) = (image(&mut seeded), image(&mut seeded));
        // Rates depend on how often one looks: not here.
        for rules in old.channels.values_mut().chain(new.channels.values_mut()) {
            rules.interval_ns = 0;
        }
        let (old, new) = (old, new);
        let (before, after) = (fresh(&old, &mut seeded), fresh(&new, &mut seeded));
        let is_admitted = |tables: &MemoryTables, packet: &(Header, Arrival)| !matches!(fate(tables, packet), Fate::Drop(reason) if reason != Reason::Duplicate);
        let packets_watched = packets(0);
        let mut writes = 0;
        // Before every write: is what both images admit admitted now?
        let look = |tables: &MemoryTables| {
            writes += 1;
            for (n, packet) in packets_watched.iter().enumerate() {
                // What changes its subnet or its judge may be held to the other of old and new for a moment.
                let destination = packet.0.destination;
                let subnet = |image: &Image| match destination {
                    HERE => image.subnet,
                    _ => image.subnet_of(destination),
                };
                let may_wait = subnet(&old) != subnet(&new)
                    || judge(&old, destination) != judge(&new, destination);
                if !may_wait && is_admitted(&before, packet) && is_admitted(&after, packet) {
                    let mut packet = *packet;
                    packet.0.sequence = writes << 32 | n as u64;
                    let now = fate(tables, &packet);
                    let is_dropped = matches!(now, Fate::Drop(_));
                    assert!(!is_dropped, "before write {writes}: {now:?} for {packet:?}");
                }
            }
            Ok(())
        };
        let tables = fresh(&old, &mut seeded);
        let mut publisher = Publisher::recover(&tables).unwrap();
        let mut watched = Asking {
            tables,
            before_write: look,
        };
        publisher
            .apply(&mut watched, &new, || seeded.next())
            .unwrap();
        // What was looked at on the way is cached now: none of it may outlive its image.
        for packet in packets(u64::from(u32::MAX) << 8) {
            let (followed, made) = (fate(&watched.tables, &packet), fate(&after, &packet));
            assert_eq!(followed, made, "seed {seed}: {packet:?}");
        }
        looked += writes;
    }
    assert!(looked > 1_000, "{looked} writes were watched");
}

#[test]
fn as_many_neighbours_as_promised_find_a_place_and_are_found() {
    let mut seeded = Seeded(99);
    let mut image = Image {
        node_id: HERE,
        port: 4783,
        ..Image::default()
    };
    for n in 0..u64::from(OWN_ADDRESSES_MAX) {
        image.addresses.insert(address(1_000_000 + n));
    }
    for n in 1..=u64::from(NEIGHBOURS_MAX) {
        image.neighbours.insert(
            Place::new(u32::try_from(n % 7).unwrap(), address(n)),
            Link::default(),
        );
    }
    let tables = fresh(&image, &mut seeded);
    let settings = tables.current();
    for &Place {
        ifindex,
        vlan,
        address,
    } in image.neighbours.keys()
    {
        assert!(find(&tables, &settings, ifindex, vlan, address).is_some());
        assert!(find(&tables, &settings, ifindex + 7, vlan, address).is_none());
        assert!(find(&tables, &settings, ifindex, 9, address).is_none());
    }
    for own in &image.addresses {
        assert!(find(&tables, &settings, OWN_ADDRESS, 0, *own).is_some());
    }
    let mut numbers: Vec<u32> = tables
        .neighbours()
        .unwrap()
        .iter()
        .filter(|n| n.used == 1 && n.ifindex != OWN_ADDRESS)
        .map(|n| n.index)
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..NEIGHBOURS_MAX).collect::<Vec<u32>>());
    let mut refused = |image: &Image| {
        let mut tables = MemoryTables::with_destinations(5_000);
        let mut publisher = Publisher::recover(&tables).unwrap();
        publisher.apply(&mut tables, image, || seeded.next())
    };
    let mut more = image.clone();
    more.neighbours
        .insert(Place::new(1, address(100_000)), Link::default());
    let full = PublishError::Full("neighbours", NEIGHBOURS_MAX);
    assert_eq!(refused(&more), Err(full));
    image.addresses.insert(address(100_000));
    let full = refused(&image).unwrap_err();
    let said = "more than 512 addresses: let it listen on the one that peers know";
    assert!(full.to_string().contains(said), "{full}");
}

#[test]
fn more_routes_than_places_are_refused_by_name() {
    let mut seeded = Seeded(5);
    let mut image = Image {
        node_id: HERE,
        port: 4783,
        ..Image::default()
    };
    let keys: Vec<NextHopKey> = (0..100)
        .map(|n| {
            image.add_next_hop(NextHop {
                target: address(n),
                ifindex: 2,
                ..NextHop::default()
            })
        })
        .collect();
    for n in 0..=u64::from(ROUTES_MAX) {
        let key = |n: u64| keys[usize::try_from(n % 100).unwrap()];
        let via = Via {
            primary: key(n),
            backup: Some(key(n / 100)),
        };
        image.routes.insert(NodeId(1_000 + n), via);
    }
    let mut tables = MemoryTables::with_destinations(5_000);
    let full = Publisher::recover(&tables)
        .unwrap()
        .apply(&mut tables, &image, || seeded.next());
    assert_eq!(full, Err(PublishError::Full("routes", ROUTES_MAX)));
}

/// `count` destinations, each over a next hop of its own behind an interface; `target_from` numbers them.
fn star(count: u64, ifindex: u32, target_from: u64) -> Image {
    let mut image = Image {
        node_id: HERE,
        port: 4783,
        ..Image::default()
    };
    image
        .neighbours
        .insert(Place::new(1, address(1)), Link::default());
    image.pairs.insert(Pair::new(OriginHash(1), ChannelHash(1)));
    for n in 0..count {
        let primary = image.add_next_hop(NextHop {
            target: address(target_from + n),
            ifindex,
            mtu: 1_500,
            flags: NextHop::ALIVE,
            ..NextHop::default()
        });
        let via = Via {
            primary,
            backup: None,
        };
        image.routes.insert(NodeId(10_000 + n), via);
    }
    image
}

/// An authorised packet to each of the destinations.
fn to_each(image: &Image, sequence: u64) -> Vec<(Header, Arrival)> {
    let arrival = Arrival {
        ifindex: 1,
        vlan: 0,
        source: address(1),
        udp_payload_bytes: 80,
    };
    let header = |destination: &NodeId| Header {
        destination: *destination,
        origin_hash: OriginHash(1),
        channel_hash: ChannelHash(1),
        sequence,
        payload_len: 16,
        hop_limit: 8,
        ..Header::default()
    };
    let destinations = image.routes.keys();
    destinations.map(|d| (header(d), arrival)).collect()
}

/// That every packet goes where the image says, and that the tables hold no next hop besides its own.
fn check_star(tables: &MemoryTables, image: &Image, sequence: u64) {
    for packet in to_each(image, sequence) {
        let target = image.routes[&packet.0.destination].primary.target;
        assert_eq!(fate(tables, &packet), Fate::Forward(target));
    }
    let held = tables.next_hops().unwrap();
    let held = held.iter().filter(|n| n.target != Address::default());
    assert_eq!(held.count(), image.next_hops.len());
}

#[test]
fn next_hops_that_fill_most_of_their_table_move_without_a_lost_packet() {
    let mut seeded = Seeded(11);
    let mut sequence = 0;
    let mut tables = fresh(&star(600, 1, 5_000), &mut seeded);
    let mut publisher = Publisher::recover(&tables).unwrap();
    for (ifindex, target_from) in [(0, 5_000), (2, 5_000), (2, 90_000)] {
        let image = star(600, ifindex, target_from);
        let mut writes = 0;
        let mut watched = Asking {
            tables,
            before_write: |tables: &MemoryTables| {
                writes += 1;
                sequence += 1;
                for packet in to_each(&image, sequence) {
                    let now = fate(tables, &packet);
                    assert!(matches!(now, Fate::Forward(_)), "write {writes}: {now:?}");
                }
                Ok(())
            },
        };
        let applied = publisher.apply(&mut watched, &image, || seeded.next());
        assert_eq!(applied, Ok(()));
        tables = watched.tables;
        assert!(writes > 1_800, "{writes} writes");
        sequence += 1;
        check_star(&tables, &image, sequence);
    }
}

#[test]
fn full_tables_move_and_what_an_earlier_daemon_left_half_way_does_not_stick() {
    let mut seeded = Seeded(12);
    let all = u64::from(NEXT_HOPS_MAX);
    let mut sequence = 0;
    let mut tables = fresh(&star(all, 1, 5_000), &mut seeded);
    for step in 0..6 {
        let image = star(all, 2 + step % 2, 5_000 + u64::from(step) * 2_000);
        // Cached before and on the way.
        for packet in to_each(&image, u64::MAX - u64::from(step)) {
            fate(&tables, &packet);
        }
        let mut writes_left = 1_200 * (step + 1);
        let mut failing = Asking {
            tables,
            before_write: |_: &MemoryTables| {
                writes_left -= 1;
                if writes_left > 0 {
                    Ok(())
                } else {
                    Err("killed")
                }
            },
        };
        let mut publisher = Publisher::recover(&failing.tables).unwrap();
        let killed = publisher.apply(&mut failing, &image, || seeded.next());
        assert_eq!(killed.is_err(), step < 4, "{step}: {killed:?}");
        tables = failing.tables;
        // The interface comes back as yet another one.
        let image = star(all, 4 + step, 5_000);
        let mut publisher = Publisher::recover(&tables).unwrap();
        let applied = publisher.apply(&mut tables, &image, || seeded.next());
        assert_eq!(applied, Ok(()));
        sequence += 1;
        check_star(&tables, &image, sequence);
    }
}

#[test]
fn routes_that_fill_most_of_their_table_are_replaced() {
    let mut seeded = Seeded(13);
    let routes = |shift: u64| {
        let mut image = star(200, 1, 5_000);
        let keys: Vec<NextHopKey> = image.next_hops.keys().copied().collect();
        let key = |n: u64| keys[usize::try_from(n % 200).unwrap()];
        for n in 0..u64::from(ROUTES_MAX) - 200 {
            let via = Via {
                primary: key(n),
                backup: Some(key(n + 1 + n / 200 + shift)),
            };
            image.routes.insert(NodeId(1_000_000 + n), via);
        }
        image
    };
    let mut tables = fresh(&routes(0), &mut seeded);
    let mut publisher = Publisher::recover(&tables).unwrap();
    for (sequence, shift) in [(1, 50), (2, 100), (3, 0)] {
        let image = routes(shift);
        let applied = publisher.apply(&mut tables, &image, || seeded.next());
        assert_eq!(applied, Ok(()));
        check_star(&tables, &image, sequence);
        let scratch = fresh(&image, &mut seeded);
        let hops = |tables: &MemoryTables, destination: NodeId| {
            let number = route_to(tables, &tables.current(), destination);
            let (routes, held) = (tables.routes().unwrap(), tables.next_hops().unwrap());
            let route = routes[number as usize];
            [route.primary, route.backup].map(|n| held.get(n as usize).map(|h| h.target))
        };
        for destination in image.routes.keys().filter(|d| d.0 % 97 == 0) {
            assert_eq!(hops(&tables, *destination), hops(&scratch, *destination));
        }
    }
}

#[test]
fn a_grant_keeps_the_generation_and_a_revocation_bumps_it() {
    let mut seeded = Seeded(3);
    let mut image = Image {
        node_id: HERE,
        port: 4783,
        ..Image::default()
    };
    let mut tables = MemoryTables::with_destinations(5_000);
    let mut publisher = Publisher::recover(&tables).unwrap();
    let pair = Pair::new(OriginHash(1), ChannelHash(1));
    let mut apply = |image: &Image, tables: &mut MemoryTables| {
        publisher.apply(tables, image, || seeded.next()).unwrap();
        tables.current().generation
    };
    let first = apply(&image, &mut tables);
    image.pairs.insert(pair);
    assert_eq!(apply(&image, &mut tables), first, "a grant");
    image.pairs.remove(&pair);
    assert_eq!(apply(&image, &mut tables), first + 1, "a revocation");
    assert_eq!(apply(&image, &mut tables), first + 1, "nothing");
}

#[test]
fn an_image_that_fails_or_is_killed_anywhere_is_made_good_by_the_next() {
    for seed in 0..12 {
        for left in 0..60 {
            let mut seeded = Seeded(seed << 40 | 77);
            let (old, new) = (image(&mut seeded), image(&mut seeded));
            let mut writes_left: u32 = left;
            let mut failing = Asking {
                // Some are the first image of all.
                tables: match seed % 3 {
                    0 => MemoryTables::with_destinations(5_000),
                    _ => fresh(&old, &mut seeded),
                },
                before_write: |_: &MemoryTables| {
                    writes_left = writes_left.checked_sub(1).ok_or("no more writes")?;
                    Ok(())
                },
            };
            // Every flow of the old image is cached.
            for packet in packets(0) {
                fate(&failing.tables, &packet);
            }
            let mut publisher = Publisher::recover(&failing.tables).unwrap();
            let failed = publisher
                .apply(&mut failing, &new, || seeded.next())
                .is_err();
            for packet in packets(1 << 32) {
                fate(&failing.tables, &packet);
            }
            if seeded.below(2) == 0 {
                publisher = Publisher::recover(&failing.tables).unwrap();
            }
            let mut tables = failing.tables;
            publisher
                .apply(&mut tables, &new, || seeded.next())
                .unwrap();
            let scratch = fresh(&new, &mut seeded);
            for packet in packets(2 << 32) {
                let (followed, made) = (fate(&tables, &packet), fate(&scratch, &packet));
                assert_eq!(
                    followed, made,
                    "seed {seed}, {left} writes, failed {failed}: {packet:?}"
                );
            }
        }
    }
}

#[test]
fn a_neighbours_entry_has_the_own_address_that_it_is_sent_to_from_as_long_as_this_is_one() {
    let place = Place::new(1, address(9));
    let v6 = Place::new(1, Address { high: 1, low: 9 });
    let mut image = Image::default();
    image.addresses.extend([address(1), address(2)]);
    image.neighbours.insert(place, Link::default());
    image.neighbours.insert(v6, Link::default());
    image.add_next_hop(NextHop {
        source: address(2),
        target: place.address,
        ifindex: place.ifindex,
        ..NextHop::default()
    });
    let mut seeded = Seeded(1);
    let mut tables = fresh(&image, &mut seeded);
    let own = |tables: &MemoryTables, place: Place| {
        let settings = tables.current();
        find(tables, &settings, place.ifindex, 0, place.address).map(|n| n.own)
    };
    assert_eq!(own(&tables, place), Some(address(2)));
    assert_eq!(own(&tables, v6), Some(v6.address), "none of its family");

    let mut publisher = Publisher::recover(&tables).unwrap();
    image.addresses.remove(&address(2));
    publisher
        .apply(&mut tables, &image, || seeded.next())
        .unwrap();
    assert_eq!(own(&tables, place), Some(address(1)));
    image.addresses.clear();
    publisher
        .apply(&mut tables, &image, || seeded.next())
        .unwrap();
    assert_eq!(own(&tables, place), Some(place.address));
}
