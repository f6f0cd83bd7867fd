//! The table: what a frame is, what becomes of it, and what it looks like when it goes on.

use virga_ebpf::{
    guard,
    header::{Flags, Header, NodeId, OriginHash},
    reason::Reason,
    tables::{Pair, Tables as _, mix},
    tag::link_tag,
};

use super::{
    frames::{Checksum, Spec},
    paths::{Fate, Memory},
    world::{
        ANOTHER, CHANNEL, CONTROL, HERE, NEIGHBOUR_IN_SUBNET, NEIGHBOUR_SHAKING, NEIGHBOUR_TAGGING,
        NEIGHBOUR_V4, NEIGHBOUR_V6, OWN_V4, OWN_V6, RATED, STRANGER, TAG_KEYS, TAG_KEYS_ONWARD,
        TO_BACKUP, TO_DEAD, TO_FIXED_PORT, TO_NARROW, TO_NOWHERE, TO_SAME_INTERFACE, TO_TAGGED,
        TO_TAGGED_V6, TO_V4, TO_V6, TO_VLAN, TO_VLAN_V6, UNKNOWN_V4, UNKNOWN_V6, header,
    },
};

/// One line of the table.
pub struct Fixture {
    pub name: &'static str,
    /// Sent in this order; the last one's fate is asked for.
    pub frames: Vec<Spec>,
    pub fate: Fate,
    /// The last frame as it goes on, if it does.
    pub out: Option<Spec>,
}

/// Numbers frames, so that none is a duplicate unless it shall be.
#[derive(Default)]
pub struct Table {
    pub lines: Vec<Fixture>,
    sequence: u64,
}

impl Table {
    pub fn v4(&mut self, destination: NodeId) -> Spec {
        self.sequence += 1;
        Spec::new(NEIGHBOUR_V4, OWN_V4, header(destination, self.sequence), 58)
    }

    pub fn v6(&mut self, destination: NodeId) -> Spec {
        self.sequence += 1;
        Spec::new(NEIGHBOUR_V6, OWN_V6, header(destination, self.sequence), 58)
    }

    pub fn line(&mut self, name: &'static str, spec: Spec, fate: Fate) {
        self.lines.push(Fixture {
            name,
            frames: vec![spec],
            fate,
            out: None,
        });
    }

    pub fn drop(&mut self, name: &'static str, spec: Spec, reason: Reason) {
        self.line(name, spec, Fate::Drop(reason));
    }

    pub fn sent(
        &mut self,
        name: &'static str,
        spec: Spec,
        fate: Fate,
        out: impl FnOnce(&mut Spec),
    ) {
        let mut expected = spec.clone();
        expected.macs = [2, 0xbb, 0, 0, 0, 2, 2, 0xaa, 0, 0, 0, 1];
        expected.tags = Vec::new();
        expected.fragment = 0x4000;
        expected.source_port = virga_ebpf::rewrite::source_port(spec.header.session_id);
        expected.header.hop_limit = (spec.header.hop_limit - 1).min(32);
        expected.header.hop_count = spec.header.hop_count.saturating_add(1);
        out(&mut expected);
        self.lines.push(Fixture {
            name,
            frames: vec![spec],
            fate,
            out: Some(expected),
        });
    }
}

pub fn between(source: &str, target: &str) -> impl FnOnce(&mut Spec) {
    let (source, target) = (source.parse().unwrap(), target.parse().unwrap());
    move |spec: &mut Spec| (spec.source, spec.target) = (source, target)
}

/// The whole table. `memory` gives a stranger that the guard lets through.
pub fn table(memory: &Memory) -> Vec<Fixture> {
    let mut t = Table::default();
    passed(&mut t);
    malformed(&mut t);
    forwarded(&mut t);
    refused(&mut t, memory);
    handshakes(&mut t);
    super::boundaries::add(&mut t);
    super::echoes::add(&mut t);
    tags(&mut t);
    t.lines
}

fn passed(t: &mut Table) {
    let spec = t.v4(HERE).with(|s| s.ethertype = Some(0x0806));
    t.line("ARP", spec, Fate::Pass);
    let spec = t.v4(HERE).with(|s| s.protocol = 6);
    t.line("TCP", spec, Fate::Pass);
    let spec = t.v4(HERE).with(|s| s.target_port = 53);
    t.line("another port", spec, Fate::Pass);
    let spec = t.v4(HERE).with(between(NEIGHBOUR_V4, "10.0.0.77"));
    t.line("our port at an address that is not ours", spec, Fate::Pass);
    let spec = t.v4(HERE).with(|s| s.fragment = 100);
    t.line("a later fragment shows no port", spec, Fate::Pass);
    let spec = t
        .v4(HERE)
        .with(|s| s.tags = vec![(0x8100, 1), (0x8100, 2), (0x8100, 3)]);
    t.line("three VLAN tags", spec, Fate::Pass);
    let spec = t
        .v4(HERE)
        .with(|s| (s.options, s.target_port) = (vec![1; 8], 53));
    t.line("IPv4 options, another port", spec, Fate::Pass);
    let spec = t.v6(HERE).with(|s| {
        s.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])];
        s.target_port = 53;
    });
    t.line("IPv6 extension, another port", spec, Fate::Pass);
    let spec = t
        .v6(HERE)
        .with(|s| s.extensions = vec![(44, vec![0, 0, 8, 0, 0, 0, 1])]);
    t.line("a later IPv6 fragment", spec, Fate::Pass);
    let many = vec![(60, vec![0, 1, 4, 0, 0, 0, 0]); 5];
    let spec = t
        .v6(HERE)
        .with(|s| s.extensions = many)
        .with(between(NEIGHBOUR_V6, "fd00::77"));
    t.line(
        "more IPv6 extensions than are walked, at another's address",
        spec,
        Fate::Pass,
    );
    let spec = t.v4(HERE).with(|s| s.macs[0] |= 1);
    t.line("to a group of hosts", spec, Fate::Pass);
    let spec = t
        .v6(TO_V4)
        .with(between("::ffff:10.0.0.2", "::ffff:10.0.0.1"));
    t.line("IPv4-mapped addresses in an IPv6 header", spec, Fate::Pass);
    let spec = t.v4(HERE).with(|s| s.cut = 150);
    t.line("cut within the IP header", spec, Fate::Pass);
}

fn malformed(t: &mut Table) {
    let spec = t.v4(HERE).with(|s| s.header.magic = 0x5653);
    t.drop("wrong magic", spec, Reason::Magic);
    let spec = t.v6(HERE).with(|s| s.header.version = 2);
    t.drop("wrong version", spec, Reason::Version);
    let spec = t.v4(HERE).with(|s| s.header.priority = 8);
    t.drop("priority 8", spec, Reason::Priority);
    let spec = t.v4(HERE).with(|s| s.header.payload_len -= 1);
    t.drop("payload_len too small", spec, Reason::Length);
    let spec = t.v4(HERE).with(|s| s.header.payload_len += 1);
    t.drop("payload_len too large", spec, Reason::Length);
    let spec = t.v4(HERE).with(|s| s.udp_length_delta = -1);
    t.drop("UDP length is not IP's", spec, Reason::Length);
    let spec = t.v4(HERE).with(|s| s.cut = 1);
    t.drop("shorter than its IP length", spec, Reason::Truncated);
    let spec = t
        .v4(HERE)
        .with(|s| (s.payload, s.ip_length_delta) = (Vec::new(), -1));
    t.drop("no room for a header", spec, Reason::Truncated);
    let spec = t.v4(HERE).with(|s| s.options = vec![1; 4]);
    t.drop("IPv4 options", spec, Reason::IpOptions);
    let spec = t.v4(TO_V4).with(|s| s.options = vec![1; 40]);
    t.drop(
        "as many IPv4 options as there can be",
        spec,
        Reason::IpOptions,
    );
    let spec = t.v4(HERE).with(|s| s.fragment = 0x2000);
    t.drop("first fragment", spec, Reason::IpFragment);
    let spec = t
        .v6(HERE)
        .with(|s| s.extensions = vec![(44, vec![0, 0, 1, 0, 0, 0, 1])]);
    t.drop("first IPv6 fragment", spec, Reason::IpFragment);
    let spec = t
        .v6(HERE)
        .with(|s| s.extensions = vec![(0, vec![0, 5, 2, 0, 0, 1, 0])]);
    t.drop("IPv6 hop-by-hop options", spec, Reason::Ipv6Extension);
    let spec = t.v6(HERE).with(|s| {
        s.extensions = vec![
            (60, vec![0, 1, 4, 0, 0, 0, 0]),
            (51, vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ];
    });
    t.drop(
        "IPv6 destination options and authentication",
        spec,
        Reason::Ipv6Extension,
    );
    let spec = t
        .v6(HERE)
        .with(|s| s.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0]); 5]);
    t.drop(
        "more IPv6 extensions than are walked",
        spec,
        Reason::Ipv6Extension,
    );
    let spec = t.v4(HERE).with(|s| s.checksum = Checksum::Zero);
    t.drop("no UDP checksum", spec, Reason::ZeroChecksum);
}

fn forwarded(t: &mut Table) {
    let v4 = || between("10.1.0.1", "10.1.0.2");
    let v6 = || between("fd01::1", "fd01::2");
    let spec = t.v4(HERE);
    t.line("for this node", spec, Fate::Local);
    let spec = t.v6(HERE);
    t.line("for this node, IPv6", spec, Fate::Local);
    let spec = t.v4(HERE).with(between(UNKNOWN_V4, OWN_V4));
    t.line("for this node, from an unknown address", spec, Fate::Local);
    let spec = t.v4(HERE).with(|s| s.header.hop_limit = 0);
    t.line("for this node, hop limit 0", spec, Fate::Local);
    let spec = t.v4(TO_V4);
    t.sent("IPv4 to IPv4", spec, Fate::Redirect, v4());
    let spec = t.v4(TO_V4);
    t.sent(
        "the same flow again, now cached",
        spec,
        Fate::Redirect,
        v4(),
    );
    let spec = t.v4(TO_V4).with(|s| s.traffic_class = 0xb9);
    t.sent("DSCP and ECN stay", spec, Fate::Redirect, v4());
    let spec = t.v4(TO_V4).with(|s| s.header.hop_count = 254);
    t.sent("hops are counted", spec, Fate::Redirect, v4());
    let spec = t.v4(TO_V4).with(|s| s.header.hop_count = 255);
    let name = "a count of hops that is full stays so";
    t.sent(name, spec, Fate::Redirect, v4());
    let spec = t.v4(TO_V4).with(|s| s.header.hop_limit = 255);
    t.sent("hop limit is clamped", spec, Fate::Redirect, v4());
    let spec = t
        .v4(TO_V4)
        .with(|s| (s.header.hop_limit, s.header.hop_count) = (2, 255));
    t.sent(
        "the last hop but one; hop count wraps",
        spec,
        Fate::Redirect,
        v4(),
    );
    let spec = t.v4(TO_V4).with(|s| s.trailing = 7);
    t.sent(
        "padding after the packet is not sent on",
        spec,
        Fate::Redirect,
        |s| {
            v4()(s);
            s.trailing = 0;
        },
    );
    let spec = t.v4(TO_V4).with(|s| s.tags = vec![(0x8100, 5)]);
    t.sent("a VLAN tag is taken off", spec, Fate::Redirect, v4());
    let spec = t
        .v4(TO_V4)
        .with(|s| s.tags = vec![(0x88a8, 5), (0x8100, 6)]);
    t.sent("two VLAN tags are taken off", spec, Fate::Redirect, v4());
    let spec = t.v6(TO_V6);
    t.sent("IPv6 to IPv6", spec, Fate::Redirect, v6());
    let spec = t.v4(TO_V6).with(|s| s.traffic_class = 3);
    t.sent("IPv4 to IPv6", spec, Fate::Redirect, v6());
    let spec = t.v6(TO_V4);
    t.sent("IPv6 to IPv4", spec, Fate::Redirect, v4());
    let spec = t.v4(TO_SAME_INTERFACE);
    t.sent(
        "back out of the same interface",
        spec,
        Fate::Transmit,
        between(OWN_V4, "10.0.0.7"),
    );
    let spec = t.v4(TO_VLAN);
    t.sent("a VLAN tag is put on", spec, Fate::Redirect, |s| {
        between("10.2.0.1", "10.2.0.2")(s);
        s.tags = vec![(0x8100, 100)];
    });
    let spec = t.v4(TO_VLAN_V6).with(|s| s.tags = vec![(0x8100, 9)]);
    t.sent("another tag, another family", spec, Fate::Redirect, |s| {
        between("fd02::1", "fd02::2")(s);
        s.tags = vec![(0x8100, 0x2064)];
    });
    let spec = t.v4(TO_BACKUP);
    t.sent(
        "the primary is dead, the backup takes it",
        spec,
        Fate::Redirect,
        v4(),
    );
    let spec = t.v4(TO_FIXED_PORT);
    t.sent("a fixed source port", spec, Fate::Redirect, |s| {
        between("10.5.0.1", "10.5.0.2")(s);
        s.source_port = 4783;
    });
    let spec = t.v4(TO_V4).with(|s| {
        between(NEIGHBOUR_IN_SUBNET, OWN_V4)(s);
        s.header.subnet.0 = 0x0102_0304;
    });
    t.sent("in the link's subnet", spec, Fate::Redirect, v4());
    zero_sum(t);
}

/// A payload chosen so that the new checksum comes out as 0 and is sent as 0xFFFF.
fn zero_sum(t: &mut Table) {
    let v4 = between("10.1.0.1", "10.1.0.2");
    let mut spec = t.v4(TO_V4);
    let mut expected = spec.clone();
    between("10.1.0.1", "10.1.0.2")(&mut expected);
    expected.source_port = virga_ebpf::rewrite::source_port(spec.header.session_id);
    (expected.header.hop_limit, expected.header.hop_count) = (31, 1);
    expected.payload[0..2].fill(0);
    let frame = expected.build();
    // With these two bytes set to the checksum itself, the sum of all words is zero.
    let checksum: [u8; 2] = frame[40..42].try_into().unwrap();
    spec.payload[0..2].copy_from_slice(&checksum);
    t.sent("a checksum of 0 becomes 0xFFFF", spec, Fate::Redirect, v4);
}

fn refused(t: &mut Table, memory: &Memory) {
    let spec = t.v4(TO_V4).with(|s| s.tags = vec![(0x8100, 77)]);
    t.drop(
        "a neighbour's address in a VLAN that it is not in",
        spec,
        Reason::Neighbour,
    );
    let spec = t.v4(TO_V4).with(between(UNKNOWN_V4, OWN_V4));
    t.drop("transit from an unknown address", spec, Reason::Neighbour);
    let spec = t.v6(TO_V4).with(between(UNKNOWN_V6, OWN_V6));
    t.drop(
        "transit from an unknown IPv6 address",
        spec,
        Reason::Neighbour,
    );
    let spec = t.v4(TO_V4).with(|s| {
        between(NEIGHBOUR_IN_SUBNET, OWN_V4)(s);
        s.header.subnet.0 = 0x0103_0304;
    });
    t.drop("outside the link's subnet", spec, Reason::Subnet);
    let spec = t.v4(TO_V4).with(|s| s.header.origin_hash = STRANGER);
    t.drop("an unauthorised origin", spec, Reason::Unauthorised);
    let spec = t.v4(HERE).with(|s| s.header.channel_hash.0 = 0x7777);
    t.drop(
        "an unauthorised channel, for this node",
        spec,
        Reason::Unauthorised,
    );
    let origin = false_positive(memory);
    let spec = t.v4(TO_V4).with(|s| s.header.origin_hash = origin);
    t.drop("a false positive of the guard", spec, Reason::Unauthorised);
    for hop_limit in [0, 1] {
        let spec = t.v4(TO_V4).with(|s| s.header.hop_limit = hop_limit);
        t.drop("no hop left", spec, Reason::HopLimit);
    }
    let spec = t.v4(TO_NOWHERE);
    t.drop("no route", spec, Reason::NoRoute);
    let spec = t.v4(TO_DEAD);
    t.drop("the only next hop is dead", spec, Reason::NextHopDown);
    let spec = t.v4(TO_NARROW);
    t.sent(
        "fits the narrow link",
        spec,
        Fate::Redirect,
        between("10.4.0.1", "10.4.0.2"),
    );
    t.sequence += 1;
    let largest = Spec::new(
        NEIGHBOUR_V4,
        OWN_V4,
        header(TO_NARROW, t.sequence),
        200 - 92,
    );
    t.sent(
        "just fits it",
        largest,
        Fate::Redirect,
        between("10.4.0.1", "10.4.0.2"),
    );
    t.sequence += 1;
    let spec = Spec::new(
        NEIGHBOUR_V4,
        OWN_V4,
        header(TO_NARROW, t.sequence),
        200 - 91,
    );
    t.drop("one byte too big", spec, Reason::TooBig);
    let spec = t.v4(TO_V4);
    let again = spec
        .clone()
        .with(|s| (s.header.hop_limit, s.header.link_tag) = (9, 77));
    t.lines.push(Fixture {
        name: "a packet seen already, by another way",
        frames: vec![spec, again],
        fate: Fate::Drop(Reason::Duplicate),
        out: None,
    });
    let rated = |t: &mut Table| t.v4(TO_V4).with(|s| s.header.channel_hash = RATED);
    let frames = vec![rated(t), rated(t), rated(t)];
    let (name, fate) = ("above the channel's rate", Fate::Drop(Reason::Rate));
    t.lines.push(Fixture {
        name,
        frames,
        fate,
        out: None,
    });
    // It stays above it for the rest of the table.
    let spec = rated(t).with(|s| s.header.origin_hash = ANOTHER);
    t.line("another origin has a rate of its own", spec, Fate::Redirect);
    let spec = rated(t);
    t.drop("and leaves the first none of it", spec, Reason::Rate);
}

/// An origin that hits the live guard without standing in the exact set.
pub fn false_positive(memory: &Memory) -> OriginHash {
    let settings = memory.tables.current();
    let info = *settings.guard();
    (0..)
        .map(|n| OriginHash(mix(0xfa15e, n)))
        .find(|origin| {
            let hash = guard::key_hash(info.salt, &Pair::new(*origin, CHANNEL));
            let line = guard::line_of(settings.live_guard, &info, hash);
            guard::is_hit(memory.tables.guard_line(line).unwrap(), hash)
        })
        .unwrap()
}

fn handshakes(t: &mut Table) {
    let spec = t.v4(HERE).with(|s| shake(&mut s.header));
    t.line(
        "a handshake for this node skips the guard",
        spec,
        Fate::Local,
    );
    let spec = t
        .v4(HERE)
        .with(|s| shake(&mut s.header))
        .with(between(UNKNOWN_V4, OWN_V4));
    t.line(
        "a handshake for this node, from an unknown address",
        spec,
        Fate::Local,
    );
    let spec = t.v4(TO_V4).with(|s| shake(&mut s.header));
    t.sent(
        "a handshake in transit",
        spec,
        Fate::Redirect,
        between("10.1.0.1", "10.1.0.2"),
    );
    let spec = t
        .v4(TO_V4)
        .with(|s| shake(&mut s.header))
        .with(between(UNKNOWN_V4, OWN_V4));
    t.drop(
        "a handshake in transit, from an unknown address",
        spec,
        Reason::Neighbour,
    );
    let spec = t.v4(TO_V4).with(|s| shake(&mut s.header));
    let (first, target) = (spec.clone(), between("10.1.0.1", "10.1.0.2"));
    t.sent(
        "a handshake sent again is no duplicate",
        spec,
        Fate::Redirect,
        target,
    );
    if let Some(line) = t.lines.last_mut() {
        line.frames.insert(0, first);
    }
    let spec = t.v4(TO_V4).with(|s| shake(&mut s.header)).with(|s| {
        between(NEIGHBOUR_IN_SUBNET, OWN_V4)(s);
        s.header.subnet.0 = 0x0103_0304;
    });
    t.drop(
        "a handshake from outside the link's subnet",
        spec,
        Reason::Subnet,
    );
    let spec = t.v4(TO_NOWHERE).with(|s| shake(&mut s.header));
    t.drop("a handshake to nowhere", spec, Reason::NoRoute);
    t.drop(
        "too many handshakes of one neighbour",
        handshake_of_shaking(),
        Reason::HandshakeRate,
    );
}

fn tags(t: &mut Table) {
    let v4 = || between("10.1.0.1", "10.1.0.2");
    let onward = |parity| {
        move |s: &mut Spec| {
            s.header.link_tag = link_tag(&TAG_KEYS_ONWARD, parity, &s.header);
        }
    };
    for parity in [0, 1] {
        let spec = tagged(t, TO_V4, parity);
        t.sent("a right link tag", spec, Fate::Redirect, |s| {
            v4()(s);
            s.header.link_tag = 0;
        });
    }
    let spec = t.v4(TO_TAGGED);
    let name = "a link tag is put on, under the second key";
    t.sent(name, spec, Fate::Redirect, |s| {
        between("10.6.0.1", "10.6.0.2")(s);
        onward(1)(s);
    });
    let spec = tagged(t, TO_TAGGED_V6, 1).with(|s| s.header.hop_limit = 255);
    let spec = spec.with(|s| s.header.link_tag = link_tag(&TAG_KEYS, 1, &s.header));
    let name = "a link tag for another, under the first key, over IPv6";
    t.sent(name, spec, Fate::Redirect, |s| {
        between("fd06::1", "fd06::2")(s);
        onward(0)(s);
    });
    let spec = t.v4(TO_V4).with(|s| s.header.link_tag = 99);
    let name = "a link tag that nobody asked for is taken off";
    t.sent(name, spec, Fate::Redirect, |s| {
        v4()(s);
        s.header.link_tag = 0;
    });
    let spec = tagged(t, HERE, 0);
    t.line("a right link tag, for this node", spec, Fate::Local);
    let bare = |s: &mut Spec| s.header.link_tag = 0;
    for destination in [TO_V4, HERE] {
        let spec = tagged(t, destination, 0).with(bare);
        t.drop("no link tag", spec, Reason::LinkTag);
    }
    let spec = tagged(t, TO_V4, 0).with(|s| s.header.link_tag ^= 1 << 63);
    t.drop("a link tag of the other key", spec, Reason::LinkTag);
    let spec = tagged(t, TO_V4, 1).with(|s| s.header.hop_limit += 1);
    t.drop("a link tag of another hop", spec, Reason::LinkTag);
    let stranger = |s: &mut Spec| s.header.origin_hash = STRANGER;
    let spec = tagged(t, TO_V4, 1).with(stranger);
    t.drop(
        "the guard comes before the link tag",
        spec,
        Reason::Unauthorised,
    );
    let control = |s: &mut Spec| s.header.channel_hash = CONTROL;
    let spec = tagged(t, HERE, 0).with(bare).with(control);
    let name = "control traffic for this node passes without a link tag";
    t.line(name, spec, Fate::Local);
    let spec = tagged(t, TO_V4, 0).with(bare).with(control);
    t.drop("control traffic in transit does not", spec, Reason::LinkTag);
    let spec = tagged(t, TO_V4, 0)
        .with(bare)
        .with(|s| shake(&mut s.header));
    t.sent(
        "a handshake passes without a link tag",
        spec,
        Fate::Redirect,
        v4(),
    );
}

/// From the neighbour whose packets must carry link tags, with the right one.
pub fn tagged(t: &mut Table, destination: NodeId, parity: u64) -> Spec {
    let spec = t.v4(destination).with(between(NEIGHBOUR_TAGGING, OWN_V4));
    spec.with(|s| s.header.link_tag = link_tag(&TAG_KEYS, parity, &s.header))
}

/// In transit, from the neighbour whose bucket the table's users fill.
pub fn handshake_of_shaking() -> Spec {
    Spec::new(NEIGHBOUR_SHAKING, OWN_V4, header(TO_V4, 0), 58).with(|s| shake(&mut s.header))
}

pub fn shake(header: &mut Header) {
    header.flags = Flags::HANDSHAKE;
    header.origin_hash = STRANGER;
    header.channel_hash.0 = 0;
}
