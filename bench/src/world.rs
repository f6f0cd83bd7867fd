//! The tables that are measured with, and frames that meet them.

use std::net::{IpAddr, Ipv4Addr};

use virga_ebpf::{
    decide::{Arrival, Verdict, decide_from},
    frame::{Frame, parse},
    header::{ChannelHash, Header, NodeId, OriginHash, SessionId, StreamId},
    image::{Image, Link, Place, Via},
    limits::{HEADER_BYTES, TAG_BYTES, UDP_PORT},
    memory::MemoryTables,
    publish::Publisher,
    rewrite,
    tables::{Address, NextHop, Pair, Settings, mix},
    tag::{TagKey, link_tag},
};

/// Where packets come in: test runs arrive on the loopback device.
pub const INGRESS: u32 = 1;
/// Where redirected packets go out; never looked at in a test run but for being another one.
pub const EGRESS: u32 = 2;
/// This node.
pub const HERE: NodeId = NodeId(0x1111);
/// The first destination; the others follow.
pub const FIRST_DESTINATION: NodeId = NodeId(0x1000_0000);
/// May publish on [`CHANNEL`].
pub const MEMBER: OriginHash = OriginHash(0xaaaa_0001);
/// May not.
pub const STRANGER: OriginHash = OriginHash(0xbbbb_0001);
/// The channel.
pub const CHANNEL: ChannelHash = ChannelHash(0x0101);
/// Pairs in the guard: as many as one bank of 4 KiB is made for.
pub const PAIRS: u64 = 1_800;

/// An empty sealed payload: the AEAD tag.
const PAYLOAD_BYTES: u16 = 16;
const MESH_BYTES: u16 = 64;
/// Bytes of UDP payload of [`header`]'s packet.
pub const UDP_PAYLOAD_BYTES: u32 = (MESH_BYTES + PAYLOAD_BYTES) as u32;
const _: () = assert!(PAYLOAD_BYTES as usize == TAG_BYTES && MESH_BYTES as usize == HEADER_BYTES);

const OWN: [u8; 4] = [10, 0, 0, 1];
const NEIGHBOUR: [u8; 4] = [10, 0, 0, 2];
/// Its packets carry link tags.
const NEIGHBOUR_TAGGING: [u8; 4] = [10, 0, 0, 3];
/// Behind a next hop that wants link tags.
const TAGGED: NodeId = NodeId(0x2000_0000);
/// Key of the link tags from that neighbour.
pub const TAG_KEY: TagKey = TagKey([0x7a61, 0x7a62]);

fn v4(bytes: [u8; 4]) -> Address {
    Address::from(IpAddr::from(Ipv4Addr::from(bytes)))
}

/// The router of test runs, with `destinations` of them behind one next hop.
#[must_use]
pub fn image(destinations: u64) -> Image {
    let next_hop = NextHop {
        source: v4([10, 1, 0, 1]),
        target: v4([10, 1, 0, 2]),
        source_mac: [2, 0xaa, 0, 0, 0, 1],
        target_mac: [2, 0xbb, 0, 0, 0, 2],
        ifindex: EGRESS,
        ..NextHop::default()
    };
    let neighbour = Place::new(INGRESS, v4(NEIGHBOUR));
    router(v4(OWN), neighbour, next_hop, destinations)
}

/// A router with one address, one neighbour, a guard of [`PAIRS`], and `destinations` behind one next
/// hop, of which the addresses, link-layer and other, and the interface are given.
#[must_use]
pub fn router(own: Address, neighbour: Place, next_hop: NextHop, destinations: u64) -> Image {
    let mut image = Image {
        node_id: HERE,
        port: UDP_PORT,
        ..Image::default()
    };
    image.addresses.insert(own);
    image.neighbours.insert(neighbour, Link::default());
    image.pairs.insert(Pair::new(MEMBER, CHANNEL));
    image.pairs.extend((1..PAIRS).map(pair));
    let primary = image.add_next_hop(NextHop {
        port: UDP_PORT,
        egress: 0,
        mtu: 1_500,
        flags: NextHop::ALIVE,
        ..next_hop
    });
    let via = Via {
        primary,
        backup: None,
    };
    image
        .routes
        .extend((0..destinations).map(|n| (NodeId(FIRST_DESTINATION.0 + n), via)));
    image
}

/// Adds a neighbour whose packets must carry link tags, and a destination behind a next hop that wants them.
pub fn add_tagged(image: &mut Image) {
    let link = Link {
        demands_tag: true,
        tag_keys: [TAG_KEY; 2],
        ..Link::default()
    };
    let place = Place::new(INGRESS, v4(NEIGHBOUR_TAGGING));
    image.neighbours.insert(place, link);
    let plain = image.next_hops.values().next().copied();
    let primary = image.add_next_hop(NextHop {
        target: v4([10, 1, 0, 3]),
        flags: NextHop::ALIVE | NextHop::TAGGED,
        tag_keys: [TagKey([0x7a63, 0x7a64]); 2],
        ..plain.unwrap_or_default()
    });
    let backup = None;
    image.routes.insert(TAGGED, Via { primary, backup });
}

/// The image in the tables of user space. Panics where it does not fit: it is made to.
#[must_use]
pub fn tables(image: &Image) -> MemoryTables {
    let destinations = u32::try_from(image.routes.len()).unwrap_or(u32::MAX);
    let mut tables = MemoryTables::with_destinations(destinations);
    let Ok(mut publisher) = Publisher::recover(&tables);
    publisher
        .apply(&mut tables, image, entropy())
        .expect("an image that fits");
    tables
}

/// The `n`th pair of the guard.
#[must_use]
pub fn pair(n: u64) -> Pair {
    Pair::new(OriginHash(mix(0xf111, n)), CHANNEL)
}

/// The `n`th pair that is not in the guard.
#[must_use]
pub fn stranger(n: u64) -> Pair {
    Pair::new(OriginHash(mix(0xbad << 32, n)), CHANNEL)
}

/// Numbers for keys and salts: the same in every run, so that runs can be compared.
pub fn entropy() -> impl FnMut() -> u64 {
    let mut n = 0;
    move || {
        n += 1;
        mix(0x5eed, n)
    }
}

/// An authorised header with an empty sealed payload.
#[must_use]
pub fn header() -> Header {
    Header {
        destination: FIRST_DESTINATION,
        origin_hash: MEMBER,
        channel_hash: CHANNEL,
        session_id: SessionId(0x5e55_0000),
        stream_id: StreamId(1),
        event_count: 1,
        payload_len: PAYLOAD_BYTES,
        ..Header::default()
    }
}

/// What else is known of a packet with such a header, from the neighbour.
#[must_use]
pub fn arrival() -> Arrival {
    Arrival {
        ifindex: INGRESS,
        vlan: 0,
        source: v4(NEIGHBOUR),
        udp_payload_bytes: UDP_PAYLOAD_BYTES,
    }
}

/// The same for this node.
#[must_use]
pub fn local_header() -> Header {
    Header {
        destination: HERE,
        ..header()
    }
}

/// The same of an origin that may not publish.
#[must_use]
pub fn strangers_header() -> Header {
    Header {
        origin_hash: STRANGER,
        ..header()
    }
}

/// An authorised header with a link tag, to where one is wanted.
#[must_use]
pub fn tagged_header() -> Header {
    let header = Header {
        destination: TAGGED,
        ..header()
    };
    let link_tag = link_tag(&[TAG_KEY; 2], 0, &header);
    Header { link_tag, ..header }
}

/// The frame of that, from the neighbour whose packets must carry one.
#[must_use]
pub fn tagged_frame() -> Vec<u8> {
    frame_from(NEIGHBOUR_TAGGING, &tagged_header(), UDP_PORT)
}

/// An untagged IPv4 frame from the neighbour to `port` of this node.
#[must_use]
pub fn frame(header: &Header, port: u16) -> Vec<u8> {
    frame_from(NEIGHBOUR, header, port)
}

fn frame_from(neighbour: [u8; 4], header: &Header, port: u16) -> Vec<u8> {
    let hop = NextHop {
        port,
        ..ingress(v4(neighbour), v4(OWN))
    };
    frame_by(&hop, header)
}

/// How frames come from one address to another of this node.
#[must_use]
pub fn ingress(source: Address, target: Address) -> NextHop {
    NextHop {
        source,
        target,
        source_mac: [2, 0, 0, 0, 0, 2],
        target_mac: [2, 0, 0, 0, 0, 1],
        port: UDP_PORT,
        ..NextHop::default()
    }
    .completed()
}

/// A frame as a hop's sender makes it.
#[must_use]
pub fn frame_by(hop: &NextHop, header: &Header) -> Vec<u8> {
    // A forwarder updates the checksum and does not verify it: any but 0 will do.
    let sent = rewrite::Sent {
        traffic_class: 0,
        udp_payload_bytes: MESH_BYTES + header.payload_len,
        source_port: rewrite::source_port(header.session_id),
        checksum: 0x1234,
        hop_limit: header.hop_limit,
        hop_count: header.hop_count,
        link_tag: header.link_tag,
    };
    let mut frame = vec![0; rewrite::headers_bytes(hop)];
    rewrite::write_outer(frame.as_mut_slice(), hop, &sent);
    frame.extend(header.encode());
    frame.resize(frame.len() + usize::from(header.payload_len), 0x5a);
    frame
}

/// A router's tables, and the decision over them: from a frame to its verdict.
pub struct Scene {
    tables: MemoryTables,
    settings: Settings,
}

impl Scene {
    /// With so many destinations.
    #[must_use]
    pub fn new(destinations: u64) -> Self {
        let tables = tables(&image(destinations));
        let settings = tables.current();
        Self { tables, settings }
    }

    /// What shall become of a frame that came in from the neighbour. Panics where it is not a mesh packet.
    #[inline]
    #[must_use]
    pub fn verdict(&self, frame: &[u8]) -> Verdict<'_> {
        match parse(frame, &self.tables, &self.settings, INGRESS) {
            Frame::Mesh(outer, header, neighbour) => {
                let bytes = u32::from(outer.udp_payload_bytes);
                decide_from(&self.tables, &self.settings, header, bytes, neighbour)
            }
            other => panic!("{other:?}"),
        }
    }
}
