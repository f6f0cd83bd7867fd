//! Ethernet frames through what the NIC path is made of: read, decide, rewrite.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::OnceLock,
};

use super::world::{self, EGRESS, FIRST_DESTINATION, INGRESS};
use arbitrary::Arbitrary;
use virga_ebpf::{
    decide::{Verdict, decide_from},
    frame::{Frame, Outer, parse},
    header::{Fields, Flags, NodeId},
    image::{Image, Link, Place, Via},
    limits::{HEADER_BYTES, UDP_PORT},
    memory::MemoryTables,
    rewrite,
    tables::{Address, NextHop, mix},
};

/// A frame of the neighbour's, changed here and there, or any bytes.
#[derive(Arbitrary, Debug)]
struct Input {
    is_raw: bool,
    destination: u8,
    flags: u8,
    changes: Vec<(u8, u8)>,
    tail: Vec<u8>,
    keep: u16,
}

/// The router's image: destinations behind an IPv4, an IPv6 and a tagged next hop.
fn image() -> Image {
    let mut image = world::image(1);
    let v6 = |last| Address::from(IpAddr::from(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, last)));
    image.addresses.insert(v6(1));
    image
        .neighbours
        .insert(Place::new(INGRESS, v6(2)), Link::default());
    for (n, next_hop) in [
        NextHop {
            source: v6(11),
            target: v6(12),
            flags: NextHop::ALIVE | NextHop::IPV6,
            ..NextHop::default()
        },
        NextHop {
            source: v6(11),
            target: v6(13),
            flags: NextHop::ALIVE | NextHop::IPV6,
            vlan: 7,
            ..NextHop::default()
        },
    ]
    .into_iter()
    .enumerate()
    {
        let primary = image.add_next_hop(NextHop {
            port: UDP_PORT,
            ifindex: EGRESS,
            mtu: 1_500,
            ..next_hop
        });
        let id = NodeId(FIRST_DESTINATION.0 + 1 + n as u64);
        image.routes.insert(
            id,
            Via {
                primary,
                backup: None,
            },
        );
    }
    image
}

/// Each thread's own: the tables have cells.
fn tables() -> MemoryTables {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    world::tables(IMAGE.get_or_init(image))
}

thread_local!(static TABLES: MemoryTables = tables());

/// RFC 768, over the pseudo header and all of the datagram; 0 where it fits.
fn checksum(outer: &Outer, datagram: &[u8]) -> u16 {
    let words = datagram
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.sum::<u64>()
        + big_endian(&outer.source)
        + big_endian(&outer.target)
        + 17
        + datagram.len() as u64;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The sum of an address's words; IPv4's prefix does not count.
fn big_endian(address: &Address) -> u64 {
    let ip = IpAddr::from(*address);
    let sum = |bytes: &[u8]| {
        bytes
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]))
            .sum()
    };
    match ip {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    }
}

fn frame_of(input: &Input) -> Vec<u8> {
    let mut header = world::header();
    header.destination = NodeId(FIRST_DESTINATION.0 + u64::from(input.destination % 4));
    header.flags = Flags(input.flags);
    header.sequence = mix(u64::from(input.destination), u64::from(input.keep));
    let mut frame = if input.is_raw {
        Vec::new()
    } else {
        world::frame(&header, UDP_PORT)
    };
    for &(at, value) in &input.changes {
        if let Some(byte) = frame.get_mut(usize::from(at)) {
            *byte = value;
        }
    }
    frame.extend(&input.tail);
    if input.keep != 0 {
        frame.truncate(input.keep.into());
    }
    frame
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(input) = super::read::<Input>(input) else {
        return;
    };
    let mut frame = frame_of(&input);
    TABLES.with(|tables| {
        let settings = tables.current();
        // Where the frame is read at all its checksum is made right, so that it can be followed.
        if let Frame::Mesh(outer, ..) = parse(&frame[..], tables, &settings, INGRESS) {
            let udp = outer.mesh - 8;
            let end = outer.mesh + usize::from(outer.udp_payload_bytes);
            frame[udp + 6..udp + 8].fill(0);
            let made = match checksum(&outer, &frame[udp..end]) {
                0 => 0xffff,
                made => made,
            };
            frame[udp + 6..udp + 8].copy_from_slice(&made.to_be_bytes());
        }
        let Frame::Mesh(outer, header, neighbour) = parse(&frame[..], tables, &settings, INGRESS)
        else {
            return;
        };
        let mesh_end = outer.mesh + usize::from(outer.udp_payload_bytes);
        assert!(
            mesh_end + usize::from(outer.trailing) == frame.len()
                && outer.udp_payload_bytes as usize >= HEADER_BYTES
        );
        let bytes = u32::from(outer.udp_payload_bytes);
        tables.set_now(1_000_000_000);
        let Verdict::Forward(next_hop) = decide_from(tables, &settings, header, bytes, neighbour)
        else {
            return;
        };
        let sent = rewrite::sent(&outer, header, next_hop);
        let mut out = vec![0; rewrite::headers_bytes(next_hop)];
        let mesh = rewrite::write_outer(out.as_mut_slice(), next_hop, &sent)
            .expect("room for all headers");
        out.extend(&frame[outer.mesh..mesh_end]);
        rewrite::write_mesh(out.as_mut_slice(), mesh, &sent).expect("room for the mesh header");
        let next = Outer {
            source: next_hop.source,
            target: next_hop.target,
            ..outer
        };
        assert_eq!(
            checksum(&next, &out[mesh - 8..]),
            0,
            "a right checksum stays right"
        );
        assert!(
            sent.hop_limit < header.hop_limit(),
            "no packet goes round for ever"
        );
    });
}
