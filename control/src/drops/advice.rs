//! What reasons mean, and what to do about them.

use super::{NOT_DELIVERED, Place};
use crate::channel::reason::Reason as ChannelReason;
use virga_carrier::Reason as Carrier;
use virga_ebpf::reason::Reason;
use virga_transport::DropReason;

pub(super) fn meaning(place: Place, reason: &str) -> Option<&'static str> {
    match place {
        Place::Nic | Place::Userspace => Some(forwarder(reason)?.0),
        Place::Sockets => Some(socket(reason)?.0),
        Place::Carriers => Some(carrier(reason)?.0),
        Place::Sessions => {
            let known = DropReason::ALL.iter().find(|r| r.name() == reason);
            known.map(|reason| reason.meaning())
        }
        Place::Channels if reason == NOT_DELIVERED => Some(
            "Events of the channel that programs on this node were not given, for all reasons.",
        ),
        Place::Channels => {
            let known = ChannelReason::ALL.iter().find(|r| r.name() == reason);
            known.map(|reason| reason.meaning())
        }
        Place::Logs => Some("Events that the channel's log had taken and could not write."),
    }
}

pub(super) fn fix(place: Place, reason: &str) -> Option<&'static str> {
    match place {
        Place::Nic | Place::Userspace => Some(forwarder(reason)?.1),
        Place::Sockets => Some(socket(reason)?.1),
        Place::Carriers => Some(carrier(reason)?.1),
        Place::Sessions => session(reason),
        Place::Channels => channel(reason),
        Place::Logs => Some("see the daemon's log: a full disk, often; then start the node again"),
    }
}

fn forwarder(name: &str) -> Option<(&'static str, &'static str)> {
    let reason = Reason::ALL.iter().find(|reason| reason.name() == name)?;
    Some(of_forwarder(*reason))
}

const NOT_OURS: &str = "something else sends to the mesh's port: find it by its address (tcpdump -n udp port 4783), or give the mesh another port";
const UNREADABLE: &str = "a NIC or a tunnel on the way changes packets, or somebody sends broken ones: look at them (tcpdump -n udp port 4783)";

fn of_forwarder(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::Magic => ("On the mesh's port, and no packet of the mesh.", NOT_OURS),
        Reason::Version => (
            "Of another version of the header.",
            "run the same version of Virga on all nodes",
        ),
        Reason::Priority => ("A priority that there is not.", UNREADABLE),
        Reason::Length => ("Lengths in the packet contradict each other.", UNREADABLE),
        Reason::Truncated => ("Shorter than a header, or than it says.", UNREADABLE),
        Reason::IpOptions => (
            "With IPv4 options.",
            "let nothing on the way add IP options: no forwarder reads past them",
        ),
        Reason::IpFragment => (
            "A fragment of an IP packet.",
            "raise the MTU of the smallest link on the way, or lower that of the sender's interface",
        ),
        Reason::Ipv6Extension => (
            "With IPv6 extension headers.",
            "let nothing on the way add extension headers: no forwarder reads past them",
        ),
        Reason::ZeroChecksum => (
            "Without a UDP checksum.",
            "have the sender's tunnel or interface write UDP checksums: ethtool -K IFACE tx off on the sender",
        ),
        Reason::Neighbour => (
            "From an address that no neighbour has, and not for this node.",
            "give the sender a [[peers]] block with the address that it sends from (a NAT, or a second interface, changes it)",
        ),
        Reason::Subnet => (
            "From a subnet that its neighbour does not carry, or has shown no membership of.",
            "write what it carries as `subnet` in its [[peers]] block; where [subnets] names issuers: virga subnet present, at that neighbour",
        ),
        Reason::Unauthorised => (
            "Of an entity that may not publish on the channel.",
            "virga why CHANNEL ENTITY says which check refuses it; list it under `publish` of the channel here, or give it a token (virga token issue)",
        ),
        Reason::Rate => (
            "Beyond the channel's rate.",
            "raise `max_rate_pps` of the channel here, or publish less",
        ),
        Reason::HandshakeRate => (
            "A handshake beyond the neighbour's rate of them.",
            "see which node behind that neighbour begins so many: its log says why its sessions do not come up",
        ),
        Reason::HopLimit => (
            "Its hops are used up.",
            "look for a loop: each node's `via` on the way must lead nearer to the destination",
        ),
        Reason::NoRoute => (
            "To a node that this one does not know.",
            "give the destination a [[peers]] block here, with `via` or an address",
        ),
        Reason::NextHopDown => (
            "No next hop to the destination is alive.",
            "virga status shows the next hops: virga node link NODE PEER up, where one was taken down; ip neigh, where its address is unknown; a second name in `via` is a backup",
        ),
        Reason::TooBig => (
            "Larger than the next hop's link takes.",
            "raise the MTU of the interface to the next hop (ip link set IFACE mtu N): at least that of the link it came by",
        ),
        Reason::Duplicate => (
            "Sent on already within the last second.",
            "look for a loop or a mirrored port on the way; a few are no fault",
        ),
        Reason::LinkTag => (
            "From a neighbour's address, without its link tag.",
            "virga status at both ends says why tags are not agreed on; where they are, somebody sends in the neighbour's name: find out who can",
        ),
        Reason::Visibility => (
            "The channel does not go from that subnet to the destination's.",
            "write `visibility` (and `export_to`) of the channel as wide as it is meant to go",
        ),
        Reason::SubnetUnknown => (
            "Into a subnet whose filter is not known.",
            "see whether the neighbour that leads there has a session with this node (virga status)",
        ),
        Reason::Echo => (
            "Sent back as if this node had sent it to a neighbour, and it had not, or long ago.",
            "a few follow a restart; where they go on, somebody copies packets of the link: find out who can",
        ),
    }
}

fn socket(name: &str) -> Option<(&'static str, &'static str)> {
    const MORE_WORKERS: &str = "give the node more workers, or cores of their own (`workers`, `worker_cores` under [node])";
    Some(match name {
        "socket_lost" => (
            "the kernel's socket had no room: its worker did not read in time",
            MORE_WORKERS,
        ),
        "xsk_lost" => (
            "an AF_XDP queue had no room, as its worker did not read in time, or its frames were too small",
            MORE_WORKERS,
        ),
        "hand_over_full" => ("another worker's, which had no room for it", MORE_WORKERS),
        "forward_blocked" => (
            "to be sent on while the socket had no room",
            "let the NIC forward (`mode`, `interfaces` under [forwarding]): user space is slower",
        ),
        "unroutable" => (
            "this node's own, to a node that no live next hop leads to",
            "virga status shows the next hops; a second name in `via` is a backup",
        ),
        _ => return None,
    })
}

fn carrier(name: &str) -> Option<(&'static str, &'static str)> {
    const ALIEN: &str = "something else connects to the ports of [fallback]: find it by its address (ss -tn), or let a firewall keep it away";
    let reason = Carrier::ALL.iter().find(|reason| reason.name() == name)?;
    Some(match reason {
        Carrier::Full => (
            "Connections: too many at once had not proven whose they are; the oldest of the source that had most gave way.",
            ALIEN,
        ),
        Carrier::Slow => (
            "Connections: they had not proven whose they are in time.",
            ALIEN,
        ),
        Carrier::Garbage => (
            "Connections: what they said first is not what a carrier says.",
            ALIEN,
        ),
        Carrier::Stranger => (
            "Connections: of no neighbour here, or of one that could not prove it.",
            "give the node that dials a [[peers]] block with an `address` here, and both the same network.psk: virga id, typed there",
        ),
        Carrier::Second => (
            "Connections: both ends had dialled, and one of the two is enough.",
            "nothing: a few are normal",
        ),
        Carrier::Broken => (
            "Connections: they were cut, or silent for too long.",
            "see what is on the way: proxies and firewalls cut connections that last",
        ),
        Carrier::Malformed => (
            "Connections: something came over them that is no mesh packet.",
            "the two nodes differ in their version of virga: virga --version on both",
        ),
        Carrier::Useless => (
            "Connections: no session came up over them.",
            "virga status at both ends says what handshakes are refused for",
        ),
        Carrier::Queue => (
            "Packets: a connection took less than was sent.",
            "nothing: sessions send slower then; reliable data travels again",
        ),
        Carrier::Rate => (
            "Packets: more came over one connection a second than it may bring.",
            "see what that neighbour sends",
        ),
        Carrier::Local => (
            "Packets: this node's own UDP port took no more.",
            "see socket_lost: the workers do not keep up",
        ),
    })
}

/// For those that a wrong configuration leads to.
fn session(name: &str) -> Option<&'static str> {
    let reason = DropReason::ALL
        .iter()
        .find(|reason| reason.name() == name)?;
    Some(match reason {
        DropReason::NotForUs => {
            "see whose [[peers]] block has this node's address with another node's key"
        }
        DropReason::HandshakePskGeneration | DropReason::HandshakeTag => {
            "carry the same network.psk, and the same `psk_generation`, to both nodes"
        }
        DropReason::HandshakePeer => {
            "give the node that begins a [[peers]] block here: virga id, typed there, prints it"
        }
        DropReason::HandshakeNoise => {
            "`network` must be the same on both, and each one's [[peers]] block hold the other's keys: virga id, typed there, prints it"
        }
        DropReason::HandshakeStale => {
            "see whether that node's clock went back (timedatectl); it gets in by a cookie"
        }
        DropReason::Proof => {
            "the peer's block has another `entity_key` than it: virga id, typed there"
        }
        _ => return None,
    })
}

/// For those that a wrong configuration, or a slow program, leads to.
fn channel(name: &str) -> Option<&'static str> {
    let reason = ChannelReason::ALL.iter().find(|r| r.name() == name)?;
    Some(match reason {
        ChannelReason::StreamUnknownChannel => "give the channel a [[channels]] block here, too",
        ChannelReason::StreamSalt | ChannelReason::StreamMode => {
            "write `salt`, `reliable` and `ordered` of the channel alike on all nodes"
        }
        ChannelReason::StreamPublisher
        | ChannelReason::SubscribeRefused
        | ChannelReason::TokenIssuer
        | ChannelReason::TokenScope
        | ChannelReason::TokenWidened
        | ChannelReason::TokenNotYetValid
        | ChannelReason::TokenOperation
        | ChannelReason::TokenRevoked
        | ChannelReason::Capability
        | ChannelReason::ReadRefused => "virga why CHANNEL ENTITY says which check refuses it",
        ChannelReason::SubscribeSubnet => {
            "write `visibility` (and `export_to`) of the channel as wide as it is meant to go"
        }
        ChannelReason::SubmissionRate => {
            "write `max_rate_pps` of the channel alike on all nodes: publishers then wait by themselves"
        }
        ChannelReason::SubscribeRate => {
            "see what that node's programs do: they subscribe and unsubscribe without end"
        }
        ChannelReason::SubscriberFull | ChannelReason::SubscriberStalled => {
            "the program reads too slowly: virga status shows which; more `hold_max_s` waits longer for it"
        }
        ChannelReason::PeerFull => {
            "the path to a subscriber is slower than its publisher: publish less, or make the channel reliable"
        }
        ChannelReason::TokenMissing => "virga token present, at the node of that entity",
        ChannelReason::TokenExpired => "virga token issue, and present the new one",
        _ => return None,
    })
}
