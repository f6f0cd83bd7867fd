//! Generated frames are what forwarders take for real ones, in the mix that was asked for, and the sink
//! counts them right.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use virga_ebpf::{
    decide::{Arrival, Verdict, decide},
    frame::{Frame, Outer, parse},
    header::{ChannelHash, Header, NodeId, OriginHash, Subnet},
    image::{Image, Link, Place, Via},
    memory::MemoryTables,
    publish::Publisher,
    reason::Reason,
    sink::{self, Counts, Kind},
    tables::{Address, NextHop, Pair, mix},
    workload::{Lane, SIZES_MAX, Step, Workload, is_stranger, write},
};

const INGRESS: u32 = 3;
const EGRESS: u32 = 4;
const MEMBER: OriginHash = OriginHash(0xaaaa);
const CHANNEL: ChannelHash = ChannelHash(0x0101);
const FIRST: NodeId = NodeId(0x2000);
const FLOWS: u32 = 7;

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

fn hop(source: &str, target: &str, vlan: u16) -> NextHop {
    NextHop {
        source: address(source),
        target: address(target),
        source_mac: [2, 0, 0, 0, 0, 1],
        target_mac: [2, 0, 0, 0, 0, 2],
        vlan,
        port: 4783,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    }
    .completed()
}

fn hops() -> Vec<NextHop> {
    [0, 5]
        .into_iter()
        .flat_map(|vlan| {
            [
                hop("10.0.0.2", "10.0.0.1", vlan),
                hop("fd00::2", "fd00::1", vlan),
            ]
        })
        .collect()
}

fn workload(hop: NextHop, sizes: &[u16]) -> Workload {
    let mut turn = [0; SIZES_MAX];
    turn[..sizes.len()].copy_from_slice(sizes);
    Workload {
        hop,
        destination: FIRST,
        destination_step: 1,
        origin: MEMBER,
        channel: u32::from(CHANNEL.0),
        subnet: Subnet(0),
        run: 9,
        size_count: u32::try_from(sizes.len()).unwrap(),
        frame_bytes: u32::from(*sizes.iter().max().unwrap()),
        sizes: turn,
        ..Workload::default()
    }
}

fn lane() -> Lane {
    Lane {
        flows: FLOWS,
        limit: u64::MAX,
        ..Lane::default()
    }
}

/// The next frame of a workload.
fn next(workload: &Workload, lane: &mut Lane, now_ns: u64) -> Vec<u8> {
    let step = lane.step(workload);
    let mut frame = vec![0; usize::from(step.frame_bytes)];
    write(frame.as_mut_slice(), workload, &step, now_ns).unwrap();
    frame
}

/// A router that knows the generator, its member, and a way to every flow's destination.
fn router() -> MemoryTables {
    let mut image = Image {
        node_id: NodeId(1),
        port: 4783,
        ..Image::default()
    };
    for hop in hops() {
        image.addresses.insert(hop.target);
        let place = Place {
            vlan: u32::from(hop.vlan),
            ..Place::new(INGRESS, hop.source)
        };
        image.neighbours.insert(place, Link::default());
    }
    image.pairs.insert(Pair::new(MEMBER, CHANNEL));
    let onward = NextHop {
        ifindex: EGRESS,
        mtu: 1_500,
        ..hop("10.1.0.1", "10.1.0.2", 0)
    };
    let primary = image.add_next_hop(onward);
    for flow in 0..FLOWS {
        let via = Via {
            primary,
            backup: None,
        };
        let destination = NodeId(FIRST.0 + u64::from(flow));
        image.routes.insert(destination, via);
    }
    let mut tables = MemoryTables::new();
    let mut publisher = Publisher::recover(&tables).unwrap();
    let mut n = 0;
    let entropy = || {
        n += 1;
        mix(0x5eed, n)
    };
    publisher.apply(&mut tables, &image, entropy).unwrap();
    tables.set_now(1 << 40);
    tables
}

fn read(tables: &MemoryTables, frame: &[u8]) -> (Outer, Header) {
    match parse(frame, tables, &tables.current(), INGRESS) {
        Frame::Mesh(outer, header, _) => (outer, Header::decode(header)),
        other => panic!("{other:?}"),
    }
}

fn verdict(tables: &MemoryTables, frame: &[u8]) -> Result<u32, Reason> {
    let (outer, header) = read(tables, frame);
    let arrival = Arrival {
        ifindex: INGRESS,
        vlan: outer.vlan,
        source: outer.source,
        udp_payload_bytes: u32::from(outer.udp_payload_bytes),
    };
    match decide(tables, &tables.current(), &header, &arrival) {
        Verdict::Forward(next_hop) => Ok(next_hop.ifindex),
        Verdict::Drop(reason) => Err(reason),
        Verdict::Local | Verdict::Echo => panic!("local"),
    }
}

/// RFC 1071 over the UDP pseudo-header and the packet: 0 where the checksum is right.
fn udp_residue(frame: &[u8], outer: &Outer) -> u16 {
    let udp = outer.mesh - 8;
    let address_bytes = if outer.source.is_v4() { 8 } else { 32 };
    let mut bytes = frame[udp - address_bytes..].to_vec();
    let length = u16::try_from(frame.len() - udp).unwrap();
    bytes.extend(vec![0; bytes.len() % 2]);
    bytes.extend([0, 17]);
    bytes.extend(length.to_be_bytes());
    internet_checksum(&bytes)
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

#[test]
fn every_generated_frame_is_forwarded_as_a_real_one_would_be() {
    let tables = router();
    for hop in hops() {
        for stamped in [0, 1] {
            let min = Workload::frame_bytes_min(&hop);
            let workload = Workload {
                stamped,
                // Another run each time: the same packets within a second would be duplicates.
                run: stamped + 10 * u32::from(hop.vlan) + hop.flags + 1,
                ..workload(hop, &[min, 257, 1_514])
            };
            let mut lane = lane();
            for n in 0..60 {
                let frame = next(&workload, &mut lane, 0x0123_4567_89ab_cdef + n);
                let (outer, _) = read(&tables, &frame);
                assert_eq!(udp_residue(&frame, &outer), 0, "frame {n} of {workload:?}");
                if outer.source.is_v4() {
                    let ip = outer.mesh - 28;
                    assert_eq!(internet_checksum(&frame[ip..ip + 20]), 0);
                }
                assert_eq!(outer.trailing, 0);
                assert_eq!(verdict(&tables, &frame), Ok(EGRESS), "frame {n}");
                assert_eq!(verdict(&tables, &frame), Err(Reason::Duplicate));
            }
        }
    }
}

#[test]
fn a_frame_too_short_for_its_headers_is_not_written() {
    let workload = workload(hops()[0], &[122]);
    let step = lane().step(&workload);
    for bytes in 0..106 {
        let mut frame = vec![0; bytes];
        assert_eq!(write(frame.as_mut_slice(), &workload, &step, 0), None);
    }
}

#[test]
fn the_mix_is_exact_and_strangers_take_no_sequence_from_members() {
    let tables = router();
    let workload = Workload {
        hostile_permille: 900,
        ..workload(hops()[0], &[122])
    };
    let mut lane = lane();
    let mut sequences: HashMap<NodeId, Vec<u64>> = HashMap::new();
    let mut strangers = Vec::new();
    for _ in 0..10_000 {
        let frame = next(&workload, &mut lane, 0);
        let (_, header) = read(&tables, &frame);
        match verdict(&tables, &frame) {
            Ok(_) => {
                let sequences = sequences.entry(header.destination).or_default();
                sequences.push(header.sequence & 0xffff_ffff);
            }
            Err(Reason::Unauthorised) => strangers.push(header.origin_hash),
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (lane.authorised.packets, lane.hostile.packets),
        (1_000, 9_000)
    );
    assert_eq!(lane.authorised.bytes, 122 * 1_000);
    assert_eq!(strangers.len(), 9_000);
    strangers.sort_unstable();
    strangers.dedup();
    assert_eq!(strangers.len(), 9_000, "each stranger is a new one");
    assert_eq!(sequences.len(), FLOWS as usize);
    for (destination, sequences) in sequences {
        assert!(
            sequences.iter().copied().eq(0..sequences.len() as u64),
            "{destination}"
        );
        assert!(sequences.len() >= 1_000 / FLOWS as usize);
    }
}

/// The Internet mix: 7, 4 and 1 of these.
const MIX: [u16; 12] = [122, 122, 122, 122, 122, 122, 122, 590, 590, 590, 590, 1_514];

/// How many frames there are of each size.
fn sizes_of(frames: &[Step]) -> HashMap<u16, usize> {
    let mut sizes = HashMap::new();
    for frame in frames {
        *sizes.entry(frame.frame_bytes).or_default() += 1;
    }
    sizes
}

#[test]
fn every_class_and_every_flow_has_its_share_of_each_size() {
    for hostile_permille in [0, 250, 500, 750, 900, 990, 1_000] {
        for flows in [1, 5, 11, 12, 24] {
            let workload = Workload {
                hostile_permille,
                ..workload(hops()[0], &MIX)
            };
            let mut lane = Lane { flows, ..lane() };
            // Whole turns of sizes for every flow, in both classes.
            let count = 12 * flows as usize * 1_000;
            let steps: Vec<Step> = (0..count).map(|_| lane.step(&workload)).collect();
            let (hostile, authorised): (Vec<Step>, Vec<Step>) = steps
                .iter()
                .partition(|step| is_stranger(step.header.origin_hash));
            assert_eq!(hostile.len() * 1_000, count * hostile_permille as usize);
            for class in [hostile, authorised] {
                let case = format!("{hostile_permille} of 1,000 hostile, {flows} flows");
                let twelfth = class.len() / 12;
                let wanted = [(122, 7 * twelfth), (590, 4 * twelfth), (1_514, twelfth)];
                let wanted = wanted.into_iter().filter(|(_, count)| *count > 0).collect();
                assert_eq!(sizes_of(&class), wanted, "{case}");
                for flow in 0..flows {
                    let of_flow = |step: &&Step| step.header.stream_id.0 == flow + 1;
                    let of_flow: Vec<Step> = class.iter().filter(of_flow).copied().collect();
                    assert_eq!(of_flow.len() * flows as usize, class.len(), "{case}");
                    let large = sizes_of(&of_flow).get(&1_514).copied().unwrap_or(0);
                    assert_eq!(large * 12, of_flow.len(), "{case}");
                }
            }
        }
    }
}

#[test]
fn strangers_come_from_every_flows_port_and_go_to_every_flows_destination() {
    let hop = hops()[0];
    let workload = Workload {
        hostile_permille: 1_000,
        ..workload(hop, &[122])
    };
    let mut lane = Lane {
        flows: 64,
        ..lane()
    };
    let (mut ports, mut destinations) = (HashSet::new(), HashSet::new());
    for _ in 0..640 {
        let frame = next(&workload, &mut lane, 0);
        ports.insert([frame[34], frame[35]]);
        let (header, _) = sink::read(frame.as_slice(), 4783).unwrap();
        destinations.insert(header.destination);
    }
    assert_eq!((ports.len(), destinations.len()), (64, 64));
}

#[test]
fn a_paced_lane_keeps_its_rate_and_does_not_make_up_for_a_long_pause() {
    let workload = Workload {
        interval: 1_000 << 8,
        burst_ns: 50_000_000,
        ..workload(hops()[0], &[122])
    };
    let mut lane = lane();
    let from = 10_000_000_000;
    let mut admitted = |ns: std::ops::Range<u64>| {
        ns.step_by(100)
            .filter(|ns| lane.is_due(&workload, from + ns))
            .count()
    };
    assert_eq!(
        admitted(0..100_000_000) / 1_000,
        150,
        "a burst to begin with"
    );
    assert_eq!(admitted(100_000_000..200_000_000) / 1_000, 100);
    let after_a_pause = admitted(5_000_000_000..5_010_000_000);
    assert_eq!(after_a_pause / 1_000, 60, "one burst");
}

#[test]
fn the_sink_reads_what_the_generator_writes_and_counts_what_is_missing() {
    for hop in hops() {
        let workload = Workload {
            hostile_permille: 250,
            stamped: 1,
            ..workload(hop, &[256])
        };
        let mut lane = lane();
        let mut flows = [0; FLOWS as usize];
        let mut counts = Counts::default();
        let mut held = None;
        for n in 0..400_u64 {
            let frame = next(&workload, &mut lane, n + 1);
            let (header, mesh) = sink::read(frame.as_slice(), 4783).unwrap();
            assert_eq!(frame[mesh + 64..mesh + 72], (n + 1).to_be_bytes());
            assert_eq!(sink::read(frame.as_slice(), 4784), None);
            let Kind::Authorised(flow) = sink::kind(&header) else {
                assert_eq!(sink::kind(&header), Kind::Stranger);
                continue;
            };
            let round = header.sequence & 0xffff_ffff;
            match (flow, round) {
                // Lost: the first of a flow, and two in a row of another.
                (0, 0) | (1, 10 | 11) => {}
                // Comes after the next one.
                (2, 5) => held = Some(header.sequence),
                _ => counts.follow(&mut flows[flow as usize], header.sequence),
            }
            if (flow, round) == (2, 6) {
                counts.follow(&mut flows[2], held.unwrap());
            }
        }
        assert_eq!((counts.missing, counts.late), (3, 1));
        // Another run begins anew.
        let mut expected = flows[0];
        counts.follow(&mut expected, 10 << 32 | 1);
        assert_eq!((counts.missing, expected), (4, 10 << 32 | 2));
    }
    let mut other = next(&workload(hops()[0], &[122]), &mut lane(), 0);
    other[42] ^= 1;
    assert_eq!(sink::read(other.as_slice(), 4783), None, "no mesh packet");
    let foreign = Header::default();
    assert_eq!(sink::kind(&foreign), Kind::Other);
}

#[test]
fn buckets_are_contiguous_and_narrow() {
    for bucket in 0..sink::BUCKETS {
        let (from, above) = sink::bucket_bounds(bucket);
        assert_eq!(sink::bucket(from), bucket);
        assert_eq!(sink::bucket(above - 1), bucket);
        if bucket + 1 < sink::BUCKETS {
            assert_eq!(sink::bucket_bounds(bucket + 1).0, above);
        }
        assert!((above - from - 1) * 16 <= from);
    }
    assert_eq!(sink::bucket(u64::MAX), sink::BUCKETS - 1);
}
