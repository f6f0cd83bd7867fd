//! The program that takes samples: it decides as the other does, and tells of each frame as it came. The other has nothing
//! of it.

use std::collections::BTreeSet;

use aya::maps::MapInfo;
use virga::nic::{FORWARD, SAMPLE, maps};
use virga_ebpf::{
    header::OriginHash,
    limits::DESTINATIONS_MAX,
    sample::{ANY_CHANNEL, Order},
};

use super::{
    check, fixtures,
    paths::{Kernel, Memory, NEVER_NS},
    shaking,
    world::{self, INGRESS, MEMBER, STRANGER, TO_V4},
};

/// Everything that there is.
const ALL: Order = Order {
    until_ns: u64::MAX,
    counters: u64::MAX,
    origin: OriginHash(0),
    destination: virga_ebpf::header::NodeId(0),
    session: virga_ebpf::header::SessionId(0),
    interval_ns: 0,
    channel: ANY_CHANNEL,
    ifindex: 0,
    one_in: 1,
    bytes: 1_536,
};

#[test]
fn every_fixture_ends_the_same_and_is_told_as_it_came() {
    let image = world::image();
    let memory = Memory::new(&image);
    let Some((mut kernel, mut samples)) = Kernel::sampling(&image) else {
        return;
    };
    kernel.set_handshake_bucket(shaking(&memory), NEVER_NS);
    kernel.watch();
    samples.begin(&ALL).unwrap();
    let mut last_ns = 0;
    let table = fixtures::table(&memory);
    let mut frames = 0;
    for fixture in &table {
        check(fixture, "sampling", |frame| {
            let (fate, out) = kernel.run(frame);
            frames += 1;
            let told = samples.read().expect(fixture.name);
            assert_eq!(told.head.counter, fate.counter(), "{}", fixture.name);
            assert_eq!(told.bytes, frame, "{}", fixture.name);
            assert_eq!(told.head.frame_bytes as usize, frame.len());
            assert_eq!((told.head.ifindex, told.head.one_in), (INGRESS, 1));
            assert!(told.head.at_ns > last_ns);
            last_ns = told.head.at_ns;
            (fate, out)
        });
    }
    assert!(samples.read().is_none());
    let tally = samples.tally().unwrap();
    assert_eq!((tally.matched, tally.taken), (frames, frames));
}

#[test]
fn an_order_picks_by_verdict_and_header_keeps_so_many_bytes_and_ends() {
    let image = world::image();
    let Some((mut kernel, mut samples)) = Kernel::sampling(&image) else {
        return;
    };
    let mut table = fixtures::Table::default();
    let mut frame = |origin| {
        let spec = table.v4(TO_V4).with(|s| s.header.origin_hash = origin);
        spec.build()
    };
    let mut told = |order: &Order, origin| {
        samples.begin(order).unwrap();
        kernel.run(&frame(origin));
        let told = samples.read().map(|told| told.bytes.len());
        (told, samples.tally().unwrap().matched)
    };
    let unauthorised = Order {
        counters: 1 << virga_ebpf::reason::Reason::Unauthorised.counter(),
        bytes: 106,
        ..ALL
    };
    assert_eq!(told(&unauthorised, STRANGER), (Some(106), 1));
    assert_eq!(told(&unauthorised, MEMBER), (None, 0));
    let of_member = Order {
        origin: MEMBER,
        ..ALL
    };
    assert_eq!(told(&of_member, STRANGER), (None, 0));
    assert!(told(&of_member, MEMBER).0.is_some());
    let other_interface = Order {
        ifindex: INGRESS + 1,
        ..ALL
    };
    assert_eq!(told(&other_interface, MEMBER), (None, 0));
    // Nobody has renewed it.
    let ended = Order { until_ns: 1, ..ALL };
    assert_eq!(told(&ended, MEMBER), (None, 0));
    assert_eq!(told(&Order::default(), MEMBER), (None, 0));
    let hour_ns = 3_600_000_000_000;
    let slow = Order {
        interval_ns: hour_ns,
        ..ALL
    };
    samples.begin(&slow).unwrap();
    for _ in 0..100 {
        kernel.run(&frame(STRANGER));
    }
    let tally = samples.tally().unwrap();
    assert_eq!(tally.matched, 100);
    assert!(tally.taken >= 1 && tally.taken <= 34, "{tally:?}");
    assert_eq!(tally.taken + tally.over_rate, 100);
}

#[test]
fn what_has_no_room_in_the_ring_is_counted() {
    let Some((mut kernel, mut samples)) = Kernel::sampling(&world::image()) else {
        return;
    };
    samples.begin(&ALL).unwrap();
    let mut table = fixtures::Table::default();
    let mut frame = table
        .v4(TO_V4)
        .with(|s| s.header.origin_hash = STRANGER)
        .build();
    frame.resize(1_500, 0x5a);
    for _ in 0..1_000 {
        kernel.run(&frame);
    }
    let tally = samples.tally().unwrap();
    assert_eq!(tally.matched, 1_000);
    assert!(tally.no_room > 0 && tally.taken > 300, "{tally:?}");
    let mut read = 0;
    while let Some(told) = samples.read() {
        assert_eq!(told.bytes, frame);
        read += 1;
    }
    assert_eq!((read, tally.taken + tally.no_room), (tally.taken, 1_000));
}

#[test]
fn the_usual_program_has_nothing_of_captures_in_it() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: loading a BPF program needs root");
        return;
    }
    let (mut ebpf, _maps) = maps::load(None, DESTINATIONS_MAX).unwrap();
    // By their maps: what an order is, what it did, where a sample is put together, and the ring.
    let mut uses = |program| {
        let info = maps::program(&mut ebpf, program).unwrap().info().unwrap();
        let ids = info.map_ids().unwrap().expect("since Linux 4.15");
        let maps = ids.into_iter().map(|id| MapInfo::from_id(id).unwrap());
        maps.map(|map| map.name_as_str().unwrap().to_owned())
            .collect::<BTreeSet<_>>()
    };
    let (usual, sampling) = (uses(FORWARD), uses(SAMPLE));
    let of_captures: Vec<&String> = sampling.difference(&usual).collect();
    assert_eq!(
        of_captures,
        ["sample_space", "sampled", "samples", "sampling"]
    );
    assert!(usual.is_subset(&sampling) && usual.len() > 10, "{usual:?}");
}
