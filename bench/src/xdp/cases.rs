//! The verdicts that are measured, each with the frame that it is about, and the tables that they meet.

use std::net::IpAddr;

use virga_ebpf::{
    guard::Guard,
    header::{ChannelHash, Flags, Header, NodeId, OriginHash, Subnet},
    image::{ChannelRules, ForeignGuard, Image, Link, Place, Via},
    limits::UDP_PORT,
    reason::{Outcome, Reason},
    replay::{FRAME_BYTES, MESH, MESH_IPV6, MESH_TAGGED, ORIGIN_STEP, Replay},
    subnet::Visibility,
    tables::{Address, NextHop, Pair},
    tag::TagKey,
};

use super::{DROP, PASS, REDIRECT, WALK};
use crate::world::{
    self, CHANNEL, EGRESS, FIRST_DESTINATION, HERE, INGRESS, MEMBER, TAG_KEY, frame, frame_by,
    header, ingress, local_header, strangers_header, tagged_frame, tagged_header,
};

/// A channel with a rate that is used up.
const RATED: ChannelHash = ChannelHash(0x0202);
/// The sessions' own channel.
const CONTROL: ChannelHash = ChannelHash(0);
/// Destinations, and what leads there.
const BY_IPV6: NodeId = NodeId(0x2001);
const BY_VLAN: NodeId = NodeId(0x2002);
const BY_NARROW: NodeId = NodeId(0x2003);
const BY_DEAD: NodeId = NodeId(0x2004);
const NOWHERE: NodeId = NodeId(0x2fff);
const VLAN: u16 = 5;
const DAY_NS: u64 = 86_400_000_000_000;
/// A channel that does not leave its subnet.
const LOCAL_CHANNEL: ChannelHash = ChannelHash(0x0303);
/// Subnets: a gateway's own, one whose filter it has, and one whose it has not.
const HOME: Subnet = Subnet(0x0101_0000);
const ABROAD: Subnet = Subnet(0x0102_0000);
const ABROAD_UNKNOWN: Subnet = Subnet(0x0103_0000);
/// The member's pair.
const MEMBERS: Pair = Pair::new(MEMBER, CHANNEL);
const ALL_BITS: u64 = u64::MAX;
/// Origins that strangers come from, in no order: their slots of the flow cache stay in the nearest cache, or do not.
const FEW_STRANGERS: u64 = 1 << 6;
const MANY_STRANGERS: u64 = 1 << 20;
/// Packets that a bucket of transit handshakes may have filled up with in a run.
const REFILLED: u64 = 512;

fn address(text: &str) -> Address {
    let address: IpAddr = text.parse().expect("a literal address");
    address.into()
}

/// One verdict.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) frame: Vec<u8>,
    /// What varies from run to run; its frame and sequence are not looked at.
    pub(super) vary: Replay,
    pub(super) counter: u32,
    pub(super) action: u32,
    /// Runs of a round that may end otherwise.
    pub(super) others_max: u64,
    /// Nanoseconds that it shall not cost more than.
    pub(super) limit: Option<f64>,
}

impl Case {
    /// Whether its verdict comes once others have used something up, or left something behind.
    pub(super) const fn uses_something_up(&self) -> bool {
        self.counter == Reason::Rate.counter()
            || self.counter == Reason::HandshakeRate.counter()
            || self.counter == Reason::Duplicate.counter()
    }
}

fn case(name: &'static str, header: Header, frame: Vec<u8>, counter: u32, action: u32) -> Case {
    Case {
        name,
        frame,
        vary: Replay {
            frame: [0; FRAME_BYTES / 8],
            sequence: 0,
            destination: header.destination.0,
            destination_mask: 0,
            sequence_mask: ALL_BITS,
            origin: header.origin_hash.0,
            origin_mask: 0,
            mesh: MESH as u64,
            tagged: 0,
            tag_key: TagKey::default(),
        },
        counter,
        action,
        others_max: 0,
        limit: None,
    }
}

/// An untagged IPv4 packet that goes on, or reaches this node.
fn outcome(name: &'static str, header: Header, outcome: Outcome) -> Case {
    let action = if outcome == Outcome::Redirect {
        REDIRECT
    } else {
        PASS
    };
    case(
        name,
        header,
        frame(&header, UDP_PORT),
        outcome.counter(),
        action,
    )
}

fn drop(name: &'static str, header: Header, reason: Reason) -> Case {
    case(
        name,
        header,
        frame(&header, UDP_PORT),
        reason.counter(),
        DROP,
    )
}

/// A packet that is malformed outside of its mesh header.
fn damaged(name: &'static str, reason: Reason, damage: impl FnOnce(&mut [u8])) -> Case {
    let mut case = drop(name, header(), reason);
    damage(&mut case.frame);
    case
}

/// Packets of so many origins that may not publish.
fn strangers(name: &'static str, origins: u64) -> Case {
    let one = drop(name, strangers_header(), Reason::Unauthorised);
    Case {
        vary: Replay {
            origin_mask: origins - 1,
            ..one.vary
        },
        ..one
    }
}

fn from(source: &str, header: &Header) -> Vec<u8> {
    frame_by(&ingress(address(source), address("10.0.0.1")), header)
}

/// The routers that are measured, each with the cases that it meets.
pub(super) fn all() -> [(Image, Vec<Case>); 3] {
    let mut cases = passed();
    cases.extend(malformed());
    cases.extend(refused());
    cases.extend(forwarded());
    [
        (member(), cases),
        (gateway(), between_subnets()),
        (crowded(), of_many_origins()),
    ]
}

/// [`world::image`], and what the other verdicts need.
fn member() -> Image {
    let mut image = world::image(WALK);
    world::add_tagged(&mut image);
    image.addresses.insert(address("fd00::1"));
    let neighbour = |text| Place::new(INGRESS, address(text));
    let tagged = Place {
        vlan: VLAN.into(),
        ..neighbour("10.0.0.2")
    };
    // The handshakes of the last are those that use a bucket up.
    for place in [neighbour("fd00::2"), tagged, neighbour("10.0.0.5")] {
        image.neighbours.insert(place, Link::default());
    }
    let link = Link {
        subnet: Subnet(0x0102_0000),
        mask: 0xffff_0000,
        ..Link::default()
    };
    image.neighbours.insert(neighbour("10.0.0.4"), link);
    for channel in [RATED, CONTROL] {
        image.pairs.insert(Pair::new(MEMBER, channel));
    }
    let rules = ChannelRules {
        interval_ns: DAY_NS,
        tolerance_ns: DAY_NS,
        ..ChannelRules::default()
    };
    image.channels.insert(RATED.0, rules);
    for (destination, hop) in hops() {
        let primary = image.add_next_hop(hop);
        let via = Via {
            primary,
            backup: None,
        };
        image.routes.insert(destination, via);
    }
    image
}

/// Next hops of every kind, each with what lies behind.
fn hops() -> [(NodeId, NextHop); 4] {
    let hop = |source, target| NextHop {
        source_mac: [2, 0xaa, 0, 0, 0, 1],
        target_mac: [2, 0xbb, 0, 0, 0, 2],
        ifindex: EGRESS,
        mtu: 1_500,
        flags: NextHop::ALIVE,
        ..ingress(address(source), address(target))
    };
    let tagged = NextHop {
        vlan: VLAN,
        ..hop("10.1.0.1", "10.1.0.7")
    };
    let narrow = NextHop {
        mtu: 100,
        ..hop("10.1.0.1", "10.1.0.8")
    };
    let dead = NextHop {
        flags: 0,
        ..hop("10.1.0.1", "10.1.0.9")
    };
    [
        (BY_IPV6, hop("fd01::1", "fd01::2")),
        (BY_VLAN, tagged),
        (BY_NARROW, narrow),
        (BY_DEAD, dead),
    ]
}

/// A router between subnets: what it lets into another, that subnet's filter says.
fn gateway() -> Image {
    let mut image = world::image(4);
    image.subnet = HOME;
    image.subnet_mask = HOME.mask();
    let subnets = [HOME, ABROAD, ABROAD_UNKNOWN];
    for (n, subnet) in (0..).zip(subnets) {
        image.subnets.insert(destination(n), subnet);
    }
    let members: Vec<Pair> = (1..world::PAIRS).map(world::pair).collect();
    let known = members.iter().chain([&MEMBERS]);
    let guard = Guard::build([0x5a17, 0x5a18], known);
    let filter = ForeignGuard {
        salt: guard.info.salt,
        lines: guard.lines,
        expires_ns: u64::MAX,
    };
    image.filters.insert(ABROAD.with_descendants(), filter);
    let rules = ChannelRules {
        visibility: Visibility::Global,
        ..ChannelRules::default()
    };
    image.channels.insert(CHANNEL.0, rules);
    image.pairs.insert(Pair::new(MEMBER, LOCAL_CHANNEL));
    image
}

/// A router with a pair for every step of a walk over origins.
fn crowded() -> Image {
    let mut image = world::image(1);
    let origin = |n: u64| OriginHash(MEMBER.0 ^ n.wrapping_mul(ORIGIN_STEP));
    image.pairs = (0..WALK).map(|n| Pair::new(origin(n), CHANNEL)).collect();
    image
}

/// A flow that is not cached, each of another origin: what the exact set costs that lies far away.
fn of_many_origins() -> Vec<Case> {
    let one = outcome("xdp.forward_origins_ns", header(), Outcome::Redirect);
    vec![Case {
        vary: Replay {
            origin_mask: WALK - 1,
            ..one.vary
        },
        ..one
    }]
}

const fn destination(n: u64) -> NodeId {
    NodeId(FIRST_DESTINATION.0 + n)
}

/// A packet of another protocol.
pub(super) fn not_ours() -> Case {
    let member = header();
    let pass = Outcome::Pass.counter();
    Case {
        limit: Some(10.0),
        ..case("xdp.not_ours_ns", member, frame(&member, 53), pass, PASS)
    }
}

fn passed() -> Vec<Case> {
    let local = local_header();
    let shake = Header {
        flags: Flags::HANDSHAKE,
        ..strangers_header()
    };
    vec![
        not_ours(),
        outcome("xdp.local_ns", local, Outcome::Local),
        outcome(
            "xdp.local_control_ns",
            Header {
                channel_hash: CONTROL,
                flags: Flags::CONTROL,
                ..local
            },
            Outcome::Local,
        ),
        outcome(
            "xdp.local_handshake_ns",
            Header {
                destination: HERE,
                channel_hash: CONTROL,
                ..shake
            },
            Outcome::Local,
        ),
    ]
}

fn malformed() -> Vec<Case> {
    let member = header();
    vec![
        drop(
            "xdp.malformed_ns",
            Header { magic: 0, ..member },
            Reason::Magic,
        ),
        drop(
            "xdp.version_ns",
            Header {
                version: 0x7f,
                ..member
            },
            Reason::Version,
        ),
        drop(
            "xdp.priority_ns",
            Header {
                priority: 9,
                ..member
            },
            Reason::Priority,
        ),
        damaged("xdp.length_ns", Reason::Length, |frame| {
            // One byte more of payload than there is.
            frame[MESH + virga_ebpf::header::offset::PAYLOAD_LEN + 1] += 1;
        }),
        damaged("xdp.ip_fragment_ns", Reason::IpFragment, |frame| {
            // More fragments follow.
            frame[20] = 0x20;
        }),
        damaged("xdp.zero_checksum_ns", Reason::ZeroChecksum, |frame| {
            frame[MESH - 2..MESH].fill(0);
        }),
    ]
}

fn refused() -> Vec<Case> {
    let (member, stranger) = (header(), strangers_header());
    let to = |destination| Header {
        destination,
        ..member
    };
    let outside = Header {
        subnet: Subnet(0x0103_0000),
        ..member
    };
    let shaken = Header {
        flags: Flags::HANDSHAKE,
        channel_hash: CONTROL,
        ..stranger
    };
    // Of a link that this node does not watch.
    let echo = Header {
        flags: Flags::ECHO,
        ..local_header()
    };
    let duplicate = drop("xdp.duplicate_ns", member, Reason::Duplicate);
    let rated = Header {
        channel_hash: RATED,
        ..member
    };
    vec![
        Case {
            frame: from("10.9.9.9", &member),
            ..drop("xdp.neighbour_ns", member, Reason::Neighbour)
        },
        drop("xdp.echo_ns", echo, Reason::Echo),
        Case {
            frame: from("10.0.0.4", &outside),
            ..drop("xdp.subnet_ns", outside, Reason::Subnet)
        },
        Case {
            limit: Some(20.0),
            ..drop("xdp.guard_miss_ns", stranger, Reason::Unauthorised)
        },
        strangers("xdp.guard_miss_few_ns", FEW_STRANGERS),
        strangers("xdp.guard_miss_many_ns", MANY_STRANGERS),
        Case {
            frame: from("10.0.0.3", &member),
            ..drop("xdp.link_tag_ns", member, Reason::LinkTag)
        },
        drop("xdp.rate_ns", rated, Reason::Rate),
        Case {
            frame: from("10.0.0.5", &shaken),
            others_max: REFILLED,
            ..drop("xdp.handshake_rate_ns", shaken, Reason::HandshakeRate)
        },
        drop(
            "xdp.hop_limit_ns",
            Header {
                hop_limit: 1,
                ..member
            },
            Reason::HopLimit,
        ),
        drop("xdp.no_route_ns", to(NOWHERE), Reason::NoRoute),
        drop("xdp.next_hop_down_ns", to(BY_DEAD), Reason::NextHopDown),
        drop("xdp.too_big_ns", to(BY_NARROW), Reason::TooBig),
        Case {
            vary: Replay {
                sequence_mask: 0,
                ..duplicate.vary
            },
            ..duplicate
        },
    ]
}

fn forwarded() -> Vec<Case> {
    let member = header();
    let uncached = outcome("xdp.forward_uncached_ns", member, Outcome::Redirect);
    let ipv6 = Header {
        destination: BY_IPV6,
        ..member
    };
    let tagged = Header {
        destination: BY_VLAN,
        ..member
    };
    let by_ipv6 = outcome("xdp.forward_ipv6_ns", ipv6, Outcome::Redirect);
    let by_vlan = outcome("xdp.forward_vlan_ns", tagged, Outcome::Redirect);
    let by_tag = outcome(
        "xdp.forward_link_tag_ns",
        tagged_header(),
        Outcome::Redirect,
    );
    let vlan = NextHop {
        vlan: VLAN,
        ..ingress(address("10.0.0.2"), address("10.0.0.1"))
    };
    vec![
        Case {
            limit: Some(60.0),
            ..outcome("xdp.forward_ns", member, Outcome::Redirect)
        },
        Case {
            vary: Replay {
                destination_mask: WALK - 1,
                ..uncached.vary
            },
            ..uncached
        },
        Case {
            frame: frame_by(&ingress(address("fd00::2"), address("fd00::1")), &ipv6),
            vary: Replay {
                mesh: MESH_IPV6 as u64,
                ..by_ipv6.vary
            },
            limit: Some(60.0),
            ..by_ipv6
        },
        Case {
            frame: frame_by(&vlan, &tagged),
            vary: Replay {
                mesh: MESH_TAGGED as u64,
                ..by_vlan.vary
            },
            ..by_vlan
        },
        // One tag is checked and another written: at most as much again as a forward without.
        Case {
            frame: tagged_frame(),
            vary: Replay {
                tagged: 1,
                tag_key: TAG_KEY,
                ..by_tag.vary
            },
            limit: Some(120.0),
            ..by_tag
        },
    ]
}

/// What a gateway decides by the destination's subnet.
fn between_subnets() -> Vec<Case> {
    let of = |header, to, subnet| Header {
        destination: destination(to),
        subnet,
        ..header
    };
    let local = Header {
        channel_hash: LOCAL_CHANNEL,
        ..header()
    };
    vec![
        drop(
            "xdp.visibility_ns",
            of(local, 0, ABROAD),
            Reason::Visibility,
        ),
        drop(
            "xdp.subnet_unknown_ns",
            of(header(), 2, HOME),
            Reason::SubnetUnknown,
        ),
        drop(
            "xdp.filter_miss_ns",
            of(strangers_header(), 1, HOME),
            Reason::Unauthorised,
        ),
        outcome(
            "xdp.forward_abroad_ns",
            of(header(), 1, HOME),
            Outcome::Redirect,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_that_one_frame_again_and_again_can_meet_is_measured() {
        let cases: Vec<Case> = all().into_iter().flat_map(|(_, cases)| cases).collect();
        let measured: HashSet<u32> = cases.iter().map(|case| case.counter).collect();
        // Their frames are of other lengths than what is written anew.
        let left_out = [Reason::Truncated, Reason::IpOptions, Reason::Ipv6Extension];
        for reason in Reason::ALL {
            assert_eq!(
                measured.contains(&reason.counter()),
                !left_out.contains(reason),
                "{}",
                reason.name()
            );
        }
        let names: HashSet<&str> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len());
    }
}
