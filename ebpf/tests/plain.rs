//! What is read of a plain frame at places that are known is what is read of any frame.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*};
use virga_ebpf::{
    frame::{Frame, Outer, Outside, parse},
    header::{Fields, Header, NodeId},
    image::{Image, Link, Place},
    memory::MemoryTables,
    plain::{PLAIN_BYTES, Plain},
    publish::Publisher,
    rewrite::{fold, headers_bytes, write_outer},
    tables::{Address, NextHop, mix},
};

const INGRESS: u32 = 3;
const PORT: u16 = 4783;

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// The way of a neighbour to this node.
fn hop() -> NextHop {
    NextHop {
        source: address("10.0.0.2"),
        target: address("10.0.0.1"),
        source_mac: [2, 0, 0, 0, 0, 1],
        target_mac: [2, 0, 0, 0, 0, 2],
        port: PORT,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    }
    .completed()
}

/// A node with one neighbour.
fn node() -> MemoryTables {
    let mut image = Image {
        node_id: NodeId(1),
        port: PORT,
        ..Image::default()
    };
    let (neighbour, own) = (hop().source, hop().target);
    image.addresses.extend([own, address("10.0.0.9")]);
    let place = Place::new(INGRESS, neighbour);
    image.neighbours.insert(place, Link::default());
    let mut tables = MemoryTables::new();
    let mut n = 0;
    let entropy = || {
        n += 1;
        mix(0x5eed, n)
    };
    let mut publisher = Publisher::recover(&tables).unwrap();
    publisher.apply(&mut tables, &image, entropy).unwrap();
    tables
}

/// A frame of the neighbour, with bytes after its mesh header and after its IP packet.
fn frame(payload: usize, trailing: usize) -> Vec<u8> {
    let header = Header {
        payload_len: u16::try_from(payload).unwrap(),
        link_tag: 0x0102_0304_0506_0708,
        ..Header::default()
    };
    let sent = virga_ebpf::rewrite::Sent {
        traffic_class: 0xb8,
        udp_payload_bytes: 64 + header.payload_len,
        source_port: 49_999,
        checksum: 0x1234,
        hop_limit: 0,
        hop_count: 0,
        link_tag: 0,
    };
    let mut frame = vec![0; headers_bytes(&hop())];
    write_outer(frame.as_mut_slice(), &hop(), &sent).unwrap();
    frame.extend(header.encode());
    frame.extend(vec![0x5a; payload + trailing]);
    frame
}

/// What both say of a frame, in words: the same, or the test fails. `None` where it is no plain one.
fn both(tables: &MemoryTables, frame: &[u8]) -> Option<String> {
    let settings = tables.current();
    let words: [u8; PLAIN_BYTES] = *frame.first_chunk()?;
    let plain = Plain::of(&words, frame.len())?;
    let said = match plain.neighbour(tables, &settings, INGRESS) {
        None => "not ours".to_owned(),
        Some(Err(reason)) => format!("{reason:?}"),
        Some(Ok(neighbour)) => {
            let header = plain.header().decoded();
            let words = plain.header().words();
            format!("{} {neighbour:?} {header:?} {words:?}", outside(&plain))
        }
    };
    let expected = match parse(frame, tables, &settings, INGRESS) {
        Frame::NotOurs => "not ours".to_owned(),
        Frame::Malformed(reason) => format!("{reason:?}"),
        Frame::Mesh(outer, header, neighbour) => {
            let header = Header::decode(header);
            assert_eq!(outer.vlan, 0);
            let words = header.words();
            format!(
                "{} {neighbour:?} {header:?} {words:?}",
                outside::<Outer>(&outer)
            )
        }
    };
    assert_eq!(said, expected);
    Some(said)
}

fn outside<O: Outside>(o: &O) -> String {
    format!(
        "{} {} {} {} {} {}",
        o.mesh(),
        fold(o.ends_sum()),
        o.checksum(),
        o.traffic_class(),
        o.udp_payload_bytes(),
        o.trailing()
    )
}

#[test]
fn a_neighbours_frame_is_plain_and_read_alike() {
    let tables = node();
    for (payload, trailing) in [(16, 0), (0, 0), (1_200, 0), (16, 7)] {
        let said = both(&tables, &frame(payload, trailing)).unwrap();
        assert!(said.contains("Some(Neighbour"), "{said}");
    }
}

#[test]
fn a_frame_that_is_otherwise_is_left_to_the_reader_of_all() {
    let tables = node();
    // A group address, a tag, IPv6, options, another protocol, a first and a later fragment.
    for (at, byte) in [
        (0, 1),
        (12, 0x81),
        (13, 0xdd),
        (14, 0x46),
        (23, 6),
        (20, 0x20),
        (21, 1),
    ] {
        let mut frame = frame(16, 0);
        frame[at] = byte;
        assert_eq!(both(&tables, &frame), None, "byte {at}");
    }
    let short = frame(0, 0);
    assert_eq!(both(&tables, &short[..PLAIN_BYTES - 1]), None);
    // What may be set without harm: do not fragment, a reserved bit, any hop limit.
    for (at, byte) in [(20, 0x40), (20, 0xc0), (22, 1)] {
        let mut frame = frame(16, 0);
        frame[at] = byte;
        assert!(both(&tables, &frame).is_some(), "byte {at}");
    }
}

thread_local! {
    static NODE: MemoryTables = node();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Every outcome comes up: the port, an address, a length or the checksum is among what changes.
    #[test]
    fn changed_frames_are_read_alike(
        payload in 0_usize..64,
        trailing in 0_usize..4,
        cut in prop_oneof![9 => Just(0_usize), 1 => 0_usize..40],
        changes in vec((0_usize..PLAIN_BYTES, any::<u8>()), 0..4),
    ) {
        let mut frame = frame(payload, trailing);
        for (at, byte) in changes {
            frame[at] = byte;
        }
        frame.truncate(frame.len() - cut.min(frame.len()));
        NODE.with(|node| both(node, &frame));
    }
}
