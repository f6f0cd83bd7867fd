//! What is read of a plain frame at places that are known is what is read of any frame.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*};
use virga_ebpf::{
    frame::{Frame, Outer, Outside, parse},
    header::{Fields, Header, NodeId},
    image::{Image, Link, Place},
    memory::MemoryTables,
    plain::{OVER_IPV4, OVER_IPV6, Plain},
    publish::Publisher,
    rewrite::{fold, headers_bytes, write_outer},
    tables::{Address, NextHop, mix},
};

const INGRESS: u32 = 3;
const PORT: u16 = 4783;

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// The ways of a neighbour to this node.
fn hop(is_ipv6: bool) -> NextHop {
    let (source, target, family) = if is_ipv6 {
        ("fd00::2", "fd00::1", NextHop::IPV6)
    } else {
        ("10.0.0.2", "10.0.0.1", 0)
    };
    NextHop {
        source: address(source),
        target: address(target),
        source_mac: [2, 0, 0, 0, 0, 1],
        target_mac: [2, 0, 0, 0, 0, 2],
        port: PORT,
        flags: NextHop::ALIVE | family,
        ..NextHop::default()
    }
    .completed()
}

/// A node with one neighbour at an address of each family.
fn node() -> MemoryTables {
    let mut image = Image {
        node_id: NodeId(1),
        port: PORT,
        ..Image::default()
    };
    image
        .addresses
        .extend([address("10.0.0.9"), address("fd00::9")]);
    for is_ipv6 in [false, true] {
        let (neighbour, own) = (hop(is_ipv6).source, hop(is_ipv6).target);
        image.addresses.insert(own);
        let place = Place::new(INGRESS, neighbour);
        image.neighbours.insert(place, Link::default());
    }
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
fn frame(is_ipv6: bool, payload: usize, trailing: usize) -> Vec<u8> {
    let hop = hop(is_ipv6);
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
    let mut frame = vec![0; headers_bytes(&hop)];
    write_outer(frame.as_mut_slice(), &hop, &sent).unwrap();
    frame.extend(header.encode());
    frame.extend(vec![0x5a; payload + trailing]);
    frame
}

/// What both say of a frame, in words: the same, or the test fails. `None` where it is no plain one.
fn both(tables: &MemoryTables, frame: &[u8]) -> Option<String> {
    let said = said::<OVER_IPV4, { Plain::<(), OVER_IPV4>::BYTES }>(tables, frame)
        .or_else(|| said::<OVER_IPV6, { Plain::<(), OVER_IPV6>::BYTES }>(tables, frame))?;
    let expected = match parse(frame, tables, &tables.current(), INGRESS) {
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

/// What is said of a plain frame with the mesh header at `MESH`, the last of its first `BYTES`.
fn said<const MESH: usize, const BYTES: usize>(
    tables: &MemoryTables,
    frame: &[u8],
) -> Option<String> {
    let words: [u8; BYTES] = *frame.first_chunk()?;
    let plain = Plain::<_, MESH>::of(&words, frame.len())?;
    Some(match plain.neighbour(tables, &tables.current(), INGRESS) {
        None => "not ours".to_owned(),
        Some(Err(reason)) => format!("{reason:?}"),
        Some(Ok(neighbour)) => {
            let header = plain.header().decoded();
            let words = plain.header().words();
            format!("{} {neighbour:?} {header:?} {words:?}", outside(&plain))
        }
    })
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
        for is_ipv6 in [false, true] {
            let said = both(&tables, &frame(is_ipv6, payload, trailing)).unwrap();
            assert!(said.contains("Some(Neighbour"), "{said}");
        }
    }
}

/// That a frame with other bytes at some places is no plain one, or is one still.
fn with_each(is_ipv6: bool, changes: &[(usize, u8)], is_plain: bool) {
    let tables = node();
    for &(at, byte) in changes {
        let mut frame = frame(is_ipv6, 16, 0);
        frame[at] = byte;
        let said = both(&tables, &frame);
        assert_eq!(said.is_some(), is_plain, "byte {at}: {said:?}");
    }
}

#[test]
fn a_frame_that_is_otherwise_is_left_to_the_reader_of_all() {
    // A group address, a tag, the other family, options, another protocol, a first and a later fragment.
    let otherwise = [
        (0, 1),
        (12, 0x81),
        (13, 0xdd),
        (14, 0x46),
        (23, 6),
        (20, 0x20),
        (21, 1),
    ];
    with_each(false, &otherwise, false);
    // Do not fragment, a reserved bit, any hop limit.
    with_each(false, &[(20, 0x40), (20, 0xc0), (22, 1)], true);
    // A group address, a tag, the other family, another version, an extension header.
    let otherwise = [(0, 1), (12, 0x81), (12, 8), (14, 0x70), (20, 0), (20, 44)];
    with_each(true, &otherwise, false);
    // Any traffic class, flow label and hop limit.
    with_each(true, &[(14, 0x6f), (15, 0xff), (17, 1), (21, 1)], true);
    let tables = node();
    for is_ipv6 in [false, true] {
        let short = frame(is_ipv6, 0, 0);
        assert_eq!(both(&tables, &short[..short.len() - 1]), None);
    }
}

#[test]
fn a_mapped_address_is_none_on_the_wire() {
    let tables = node();
    for (at, mapped) in [(22, "10.0.0.2"), (38, "10.0.0.1")] {
        let mut frame = frame(true, 16, 0);
        let Address { high, low } = address(mapped);
        frame[at..at + 8].copy_from_slice(&high.to_be_bytes());
        frame[at + 8..at + 16].copy_from_slice(&low.to_be_bytes());
        assert_eq!(both(&tables, &frame).as_deref(), Some("not ours"));
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
        is_ipv6: bool,
        payload in 0_usize..64,
        trailing in 0_usize..4,
        cut in prop_oneof![9 => Just(0_usize), 1 => 0_usize..40],
        changes in vec((0_usize..Plain::<(), OVER_IPV4>::BYTES, any::<u8>()), 0..4),
    ) {
        let mut frame = frame(is_ipv6, payload, trailing);
        for (at, byte) in changes {
            frame[at] = byte;
        }
        frame.truncate(frame.len() - cut.min(frame.len()));
        NODE.with(|node| both(node, &frame));
    }
}
