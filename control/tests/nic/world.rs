//! The tables that fixtures and mutations meet: the same image in plain memory and in the kernel.

use std::net::IpAddr;

use virga_ebpf::{
    guard::Guard,
    header::{ChannelHash, Header, NodeId, OriginHash, SessionId, Subnet},
    image::{ChannelRules, ForeignGuard, Image, Link, NextHopKey, Place, Via},
    subnet::Visibility,
    tables::{NextHop, Pair, mix},
    tag::TagKey,
};

/// This node.
pub const HERE: NodeId = NodeId(0x1111);
/// Where packets come in: BPF test runs arrive on the loopback device.
pub const INGRESS: u32 = 1;
/// Where redirected packets go out. Never looked at in a test run but for being another one.
pub const EGRESS: u32 = 2;

pub const MEMBER: OriginHash = OriginHash(0xaaaa_0001);
pub const STRANGER: OriginHash = OriginHash(0xbbbb_0001);
pub const CHANNEL: ChannelHash = ChannelHash(0x0101);
pub const RATED: ChannelHash = ChannelHash(0x0202);
pub const CONTROL: ChannelHash = ChannelHash(0);
/// A channel of each visibility; all others are global.
pub const LOCAL: ChannelHash = ChannelHash(0x0303);
pub const UPWARDS: ChannelHash = ChannelHash(0x0404);
pub const EXPORTED: ChannelHash = ChannelHash(0x0505);
/// May publish on the rated channel as well.
pub const ANOTHER: OriginHash = OriginHash(0xaaaa_0003);
/// Every channel that a member may publish on.
pub const CHANNELS: [ChannelHash; 6] = [CHANNEL, RATED, CONTROL, LOCAL, UPWARDS, EXPORTED];
/// Stands in the filter of [`SUBNET`], and was withdrawn since.
pub const WITHDRAWN: OriginHash = OriginHash(0xaaaa_0002);
/// A subnet whose filter is known; this node is in the root.
pub const SUBNET: Subnet = Subnet(0x0200_0000);

pub const OWN_V4: &str = "10.0.0.1";
pub const OWN_V6: &str = "fd00::1";
pub const NEIGHBOUR_V4: &str = "10.0.0.2";
pub const NEIGHBOUR_V6: &str = "fd00::2";
/// The VLANs that the same neighbour is also reached in: single tags, and one pair.
pub const VLANS: [u32; 3] = [5, 9, 5 << 12 | 6];
/// Its packets must lie in subnet 1.2.0.0/16.
pub const NEIGHBOUR_IN_SUBNET: &str = "10.0.0.3";
/// Nobody vouches for its subnet.
pub const NEIGHBOUR_UNVOUCHED: &str = "10.0.0.5";
/// Used only to exhaust its handshake bucket.
pub const NEIGHBOUR_SHAKING: &str = "10.0.0.4";
/// Its packets must carry link tags.
pub const NEIGHBOUR_TAGGING: &str = "10.0.0.6";
/// Keys of those.
pub const TAG_KEYS: [TagKey; 2] = [TagKey([11, 12]), TagKey([13, 14])];
/// Keys of the tags that a next hop wants.
pub const TAG_KEYS_ONWARD: [TagKey; 2] = [TagKey([21, 22]), TagKey([23, 24])];
pub const UNKNOWN_V4: &str = "10.9.9.9";
pub const UNKNOWN_V6: &str = "fd00::99";

/// Places of the echoes that come back from each of these neighbours, and what all of them carry.
pub const ECHO_PLACES: [(u32, &str); 3] = [
    (ECHO_PLACE, NEIGHBOUR_V4),
    (ECHO_PLACE_IN_SUBNET, NEIGHBOUR_IN_SUBNET),
    (ECHO_PLACE_TAGGING, NEIGHBOUR_TAGGING),
];
pub const ECHO_PLACE: u32 = 7;
pub const ECHO_PLACE_IN_SUBNET: u32 = 8;
pub const ECHO_PLACE_TAGGING: u32 = 9;
pub const ECHO_SECRET: SessionId = SessionId(0x5ec2_e700);

pub const TO_V4: NodeId = NodeId(0x2001);
pub const TO_V6: NodeId = NodeId(0x2002);
pub const TO_SAME_INTERFACE: NodeId = NodeId(0x2003);
pub const TO_VLAN: NodeId = NodeId(0x2004);
pub const TO_VLAN_V6: NodeId = NodeId(0x2005);
pub const TO_BACKUP: NodeId = NodeId(0x2006);
pub const TO_DEAD: NodeId = NodeId(0x2007);
pub const TO_NARROW: NodeId = NodeId(0x2008);
pub const TO_FIXED_PORT: NodeId = NodeId(0x2009);
/// Wants link tags under the second key; over IPv6 under the first.
pub const TO_TAGGED: NodeId = NodeId(0x200d);
pub const TO_TAGGED_V6: NodeId = NodeId(0x200e);
pub const TO_NOWHERE: NodeId = NodeId(0x2fff);
/// In [`SUBNET`].
pub const TO_SUBNET: NodeId = NodeId(0x200a);
/// In a subnet whose filter has ended, and in one that never had any.
pub const TO_EXPIRED: NodeId = NodeId(0x200b);
pub const TO_UNKNOWN: NodeId = NodeId(0x200c);

/// Every destination that a mutation may pick.
pub const DESTINATIONS: [NodeId; 16] = [
    TO_SUBNET,
    TO_EXPIRED,
    TO_UNKNOWN,
    HERE,
    TO_V4,
    TO_V6,
    TO_SAME_INTERFACE,
    TO_VLAN,
    TO_VLAN_V6,
    TO_BACKUP,
    TO_DEAD,
    TO_NARROW,
    TO_FIXED_PORT,
    TO_TAGGED,
    TO_TAGGED_V6,
    TO_NOWHERE,
];

/// Pairs that fill the guard, so that some strangers hit it.
pub const FILLER: u64 = 1_700;

/// The image.
pub fn image() -> Image {
    let mut image = Image {
        node_id: HERE,
        port: 4783,
        subnet_mask: u32::MAX,
        ..Image::default()
    };
    for own in [OWN_V4, OWN_V6] {
        image.addresses.insert(address(own));
    }
    for neighbour in [NEIGHBOUR_V4, NEIGHBOUR_V6, NEIGHBOUR_SHAKING] {
        image
            .neighbours
            .insert(Place::new(INGRESS, address(neighbour)), Link::default());
    }
    for vlan in VLANS {
        let place = Place {
            vlan,
            ..Place::new(INGRESS, address(NEIGHBOUR_V4))
        };
        image.neighbours.insert(place, Link::default());
    }
    let link = Link {
        subnet: Subnet(0x0102_0000),
        mask: 0xffff_0000,
        ..Link::default()
    };
    let tagging = Link {
        demands_tag: true,
        tag_keys: TAG_KEYS,
        ..Link::default()
    };
    for (neighbour, link) in [(NEIGHBOUR_IN_SUBNET, link), (NEIGHBOUR_TAGGING, tagging)] {
        image
            .neighbours
            .insert(Place::new(INGRESS, address(neighbour)), link);
    }
    let unvouched = Place::new(INGRESS, address(NEIGHBOUR_UNVOUCHED));
    image.neighbours.insert(unvouched, Link::CONTROL_ONLY);
    for channel in CHANNELS {
        image.pairs.insert(Pair::new(MEMBER, channel));
    }
    image.pairs.insert(Pair::new(ANOTHER, RATED));
    image.pairs.extend((0..FILLER).map(filler));
    add_channels(&mut image);
    for (destination, via) in routes(&mut image) {
        image.routes.insert(destination, via);
    }
    add_subnets(&mut image);
    image
}

fn add_channels(image: &mut Image) {
    let visibilities = [
        (CHANNEL, Visibility::Global),
        (RATED, Visibility::Global),
        (LOCAL, Visibility::SubnetLocal),
        (UPWARDS, Visibility::ParentVisible),
        (EXPORTED, Visibility::Exported),
    ];
    for (channel, visibility) in visibilities {
        let rules = ChannelRules {
            visibility,
            exports: [Subnet(9).with_descendants(), SUBNET.with_descendants()].into(),
            ..ChannelRules::default()
        };
        image.channels.insert(channel.0, rules);
    }
    // Two packets at once and the next after a day: no clock decides a test.
    let day_ns = 86_400_000_000_000;
    let rated = image.channels.get_mut(&RATED.0).unwrap();
    (rated.interval_ns, rated.tolerance_ns) = (day_ns, day_ns);
}

fn add_subnets(image: &mut Image) {
    let expired = Subnet(0x0300_0000);
    let below = Subnet(SUBNET.0 | 0x0007_0000);
    for (destination, subnet) in [
        (TO_SUBNET, below),
        (TO_EXPIRED, expired),
        (TO_UNKNOWN, Subnet(0x0400_0000)),
    ] {
        image.subnets.insert(destination, subnet);
    }
    let mut pairs = CHANNELS.map(|channel| Pair::new(MEMBER, channel)).to_vec();
    let withdrawn = Pair::new(WITHDRAWN, CHANNEL);
    pairs.push(withdrawn);
    let mut filter = ForeignGuard {
        salt: [3, 5],
        lines: Guard::build([3, 5], pairs.iter()).lines,
        expires_ns: u64::MAX,
    };
    let prefix = SUBNET.with_descendants();
    image.filters.insert(prefix, filter.clone());
    image.denied.insert((prefix, withdrawn));
    filter.expires_ns = 1;
    image.filters.insert(expired.with_descendants(), filter);
}

fn routes(image: &mut Image) -> Vec<(NodeId, Via)> {
    let alone = |primary: NextHopKey| Via {
        primary,
        backup: None,
    };
    let v4 = image.add_next_hop(next_hop("10.1.0.1", "10.1.0.2"));
    let v6 = image.add_next_hop(next_hop("fd01::1", "fd01::2"));
    let same = image.add_next_hop(NextHop {
        ifindex: INGRESS,
        ..next_hop(OWN_V4, "10.0.0.7")
    });
    let vlan = image.add_next_hop(NextHop {
        vlan: 100,
        ..next_hop("10.2.0.1", "10.2.0.2")
    });
    let vlan_v6 = image.add_next_hop(NextHop {
        vlan: 0x2064,
        ..next_hop("fd02::1", "fd02::2")
    });
    let dead = image.add_next_hop(NextHop {
        flags: 0,
        ..next_hop("10.3.0.1", "10.3.0.2")
    });
    let narrow = image.add_next_hop(NextHop {
        mtu: 200,
        ..next_hop("10.4.0.1", "10.4.0.2")
    });
    let fixed = image.add_next_hop(NextHop {
        source_port: 4783,
        ..next_hop("10.5.0.1", "10.5.0.2")
    });
    let tagged = image.add_next_hop(NextHop {
        flags: NextHop::ALIVE | NextHop::TAGGED | NextHop::ODD,
        tag_keys: TAG_KEYS_ONWARD,
        ..next_hop("10.6.0.1", "10.6.0.2")
    });
    let tagged_v6 = image.add_next_hop(NextHop {
        flags: NextHop::ALIVE | NextHop::TAGGED,
        tag_keys: TAG_KEYS_ONWARD,
        ..next_hop("fd06::1", "fd06::2")
    });
    vec![
        (TO_TAGGED, alone(tagged)),
        (TO_TAGGED_V6, alone(tagged_v6)),
        (TO_V4, alone(v4)),
        (TO_V6, alone(v6)),
        (TO_SAME_INTERFACE, alone(same)),
        (TO_VLAN, alone(vlan)),
        (TO_VLAN_V6, alone(vlan_v6)),
        (
            TO_BACKUP,
            Via {
                primary: dead,
                backup: Some(v4),
            },
        ),
        (TO_DEAD, alone(dead)),
        (TO_NARROW, alone(narrow)),
        (TO_FIXED_PORT, alone(fixed)),
        (TO_SUBNET, alone(v4)),
        (TO_EXPIRED, alone(v4)),
        (TO_UNKNOWN, alone(v4)),
    ]
}

fn next_hop(source: &str, target: &str) -> NextHop {
    NextHop {
        source: address(source),
        target: address(target),
        source_mac: [2, 0xaa, 0, 0, 0, 1],
        target_mac: [2, 0xbb, 0, 0, 0, 2],
        port: 4783,
        ifindex: EGRESS,
        egress: 0,
        mtu: 1_500,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    }
}

/// A pair of the filling.
pub fn filler(n: u64) -> Pair {
    Pair::new(OriginHash(mix(0xf111, n)), CHANNEL)
}

/// An address as the tables hold it.
pub fn address(text: &str) -> virga_ebpf::tables::Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// The same numbers for memory and kernel, so that both pick the same keys, slots and salts.
pub fn entropy() -> impl FnMut() -> u64 {
    let mut n = 0;
    move || {
        n += 1;
        mix(0x5eed, n)
    }
}

/// An authorised data header.
pub fn header(destination: NodeId, sequence: u64) -> Header {
    Header {
        destination,
        origin_hash: MEMBER,
        channel_hash: CHANNEL,
        session_id: SessionId(0x5e55_0000 + destination.0),
        stream_id: virga_ebpf::header::StreamId(1),
        event_count: 1,
        sequence,
        link_tag: 0,
        ..Header::default()
    }
}
