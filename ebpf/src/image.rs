//! What the NIC path's tables shall say, as plain data: the control plane makes an [`Image`] out of its
//! configuration and of what it learns, and [`crate::publish`] brings the tables there.

extern crate std;
use core::net::SocketAddr;
use std::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::{
    header::{ChannelHash, NodeId, Subnet},
    rewrite::{IPV4_CONSTANTS_SUM, fold},
    subnet::{Exports, SubnetPrefix, Visibility},
    tables::{Address, NextHop, Pair},
    tag::TagKey,
};

/// The whole content of the tables, without places and numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// This node.
    pub node_id: NodeId,
    /// The mesh's UDP port on this node.
    pub port: u16,
    /// This node's subnet.
    pub subnet: Subnet,
    /// The bits of it that a destination's subnet must share for `pairs` to be all that is admitted there, if
    /// it lies in no longer prefix of `filters`. All others are judged by `filters`. 0: `pairs` holds for every
    /// destination that no filter is for.
    pub subnet_mask: u32,
    /// This node's own addresses.
    pub addresses: BTreeSet<Address>,
    /// Adjacent nodes, by where they are.
    pub neighbours: BTreeMap<Place, Link>,
    /// The neighbours that user space sends to, and where they are: what it may follow when they move.
    pub adjacent: BTreeMap<NodeId, SocketAddr>,
    /// Who may publish on what.
    pub pairs: BTreeSet<Pair>,
    /// What other subnets admit, as they have said it: the longest prefix that a destination's subnet lies in.
    pub filters: BTreeMap<SubnetPrefix, ForeignGuard>,
    /// Pairs withdrawn from a filter since it was made.
    pub denied: BTreeSet<(SubnetPrefix, Pair)>,
    /// Channels, by hash. Those that are not here have no rate and cross no boundary of subnets.
    pub channels: BTreeMap<u16, ChannelRules>,
    /// Next hops.
    pub next_hops: BTreeMap<NextHopKey, NextHop>,
    /// Next hops of each destination.
    pub routes: BTreeMap<NodeId, Via>,
    /// Subnets of the destinations; of those that are not here, the root.
    pub subnets: BTreeMap<NodeId, Subnet>,
}

/// What the tables hold a channel to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelRules {
    /// Nanoseconds that one packet costs; 0 is no limit.
    pub interval_ns: u64,
    /// Nanoseconds of credit that a pause may save up.
    pub tolerance_ns: u64,
    /// How far its packets go among subnets.
    pub visibility: Visibility,
    /// Where they go if it is exported; at most [`crate::limits::EXPORTS_PER_CHANNEL`].
    pub exports: BTreeSet<SubnetPrefix>,
}

/// The export table of some prefixes, of which it takes as many as it has places.
#[must_use]
pub fn exports_of<'a>(prefixes: impl IntoIterator<Item = &'a SubnetPrefix>) -> Exports {
    let mut table = Exports::default();
    for (entry, prefix) in table.iter_mut().zip(prefixes) {
        *entry = *prefix;
    }
    table
}

/// Which pairs another subnet admits: a [`crate::guard::Guard`] that one of its nodes has built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignGuard {
    /// Salt of this publication.
    pub salt: [u64; 2],
    /// Its lines: of 1, 2, 4 … up to [`crate::limits::FILTER_BANKS_MAX`] banks.
    pub lines: Vec<[u64; 8]>,
    /// When it ends, on the clock that the tables go by.
    pub expires_ns: u64,
}

/// Where a neighbour's packets come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Ingress interface; 0 where none is known, [`crate::tables::OWN_ADDRESS`] for an own address.
    pub ifindex: u32,
    /// VLAN, see [`crate::tables::vlan_key`].
    pub vlan: u32,
    /// Outer source address.
    pub address: Address,
}

impl Place {
    /// Untagged packets of an address behind an interface.
    #[must_use]
    pub const fn new(ifindex: u32, address: Address) -> Self {
        Self {
            ifindex,
            vlan: 0,
            address,
        }
    }
}

/// What is enforced on a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// What its packets' subnet must equal under `mask`.
    pub subnet: Subnet,
    /// Mask of the link's subnet; 0 allows any.
    pub mask: u32,
    /// Whether its packets must have link tags.
    pub demands_tag: bool,
    /// Keys of those, by parity.
    pub tag_keys: [TagKey; 2],
}

impl Link {
    /// Of a neighbour whose subnet nobody vouches for: handshakes and members' control traffic alone.
    pub const CONTROL_ONLY: Self = Self {
        subnet: Subnet(u32::MAX),
        mask: 0,
        demands_tag: false,
        tag_keys: [TagKey([0; 2]); 2],
    };
}

/// What makes a next hop the same one in the next image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHopKey {
    /// Egress interface; 0 in user space, where the kernel's route decides.
    pub ifindex: u32,
    /// The neighbour's outer address.
    pub target: Address,
    /// The neighbour's UDP port.
    pub port: u16,
    /// Whether it is [`NextHop::AVOIDABLE`].
    pub is_avoidable: bool,
}

impl NextHopKey {
    /// Whether both lead to the same place, avoidable or not.
    #[must_use]
    pub fn leads_where(&self, other: &Self) -> bool {
        (self.ifindex, self.target, self.port) == (other.ifindex, other.target, other.port)
    }
}

/// Primary and backup of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// Used while alive.
    pub primary: NextHopKey,
    /// Used while the primary is not alive.
    pub backup: Option<NextHopKey>,
}

impl From<&NextHop> for NextHopKey {
    fn from(n: &NextHop) -> Self {
        Self {
            ifindex: n.ifindex,
            target: n.target,
            port: n.port,
            is_avoidable: n.is(NextHop::AVOIDABLE),
        }
    }
}

impl NextHop {
    /// Named by routes that have another next hop: it is not [`NextHop::ALIVE`] while its neighbour is found
    /// silent. Where there is no other, packets are sent whatever is found: a neighbour's tables may go on
    /// forwarding where its daemon does not run. Nothing but the publisher reads it.
    pub const AVOIDABLE: u32 = 1 << 16;

    /// With both sums and the family flag as addresses and port say, and an MTU that IP can carry.
    #[must_use]
    pub fn completed(mut self) -> Self {
        let addresses = self.source.sum() + self.target.sum();
        self.sum = fold(addresses + u64::from(self.port));
        self.ipv4_sum = fold(addresses + IPV4_CONSTANTS_SUM);
        self.mtu = self.mtu.min(u32::from(u16::MAX));
        self.flags &= !Self::IPV6;
        if !self.target.is_v4() {
            self.flags |= Self::IPV6;
        }
        self
    }
}

impl Image {
    /// Adds a next hop and gives the key that routes name it by.
    pub fn add_next_hop(&mut self, next_hop: NextHop) -> NextHopKey {
        let next_hop = next_hop.completed();
        let key = NextHopKey::from(&next_hop);
        self.next_hops.insert(key, next_hop);
        key
    }

    /// Has routes that have two next hops name them as [`NextHop::AVOIDABLE`]. After all routes are there.
    pub fn make_avoidable(&mut self) {
        let (routes, next_hops) = (&mut self.routes, &mut self.next_hops);
        let mut avoidable = |key: &mut NextHopKey| {
            if let Some(&next_hop) = next_hops.get(key) {
                let flags = next_hop.flags | NextHop::AVOIDABLE;
                let next_hop = NextHop { flags, ..next_hop };
                *key = NextHopKey::from(&next_hop);
                next_hops.insert(*key, next_hop);
            }
        };
        for via in routes.values_mut() {
            if let Some(backup) = &mut via.backup {
                avoidable(&mut via.primary);
                avoidable(backup);
            }
        }
    }

    /// Routes that have another next hop do without this neighbour.
    pub fn avoid(&mut self, target: Address, port: u16) {
        for (key, next_hop) in &mut self.next_hops {
            if key.is_avoidable && (key.target, key.port) == (target, port) {
                next_hop.flags &= !NextHop::ALIVE;
            }
        }
    }

    /// Gives a channel a rate, in packets a second; a pause saves up a tenth of a second's packets.
    pub fn add_rate(&mut self, channel: ChannelHash, packets_per_second: u64) {
        let rate = packets_per_second.max(1);
        let rules = self.channels.entry(channel.0).or_default();
        rules.interval_ns = (1_000_000_000 / rate).max(1);
        rules.tolerance_ns = rules.interval_ns.saturating_mul((rate / 10).max(1));
    }

    /// The own address that a neighbour there most likely sends to: the one that it is sent to from, else the first of
    /// its family. Where there is none, its own: nothing comes from there and goes there.
    #[must_use]
    pub fn own_towards(&self, place: &Place) -> Address {
        let first = NextHopKey {
            ifindex: place.ifindex,
            target: place.address,
            ..NextHopKey::default()
        };
        let mut from_there = self.next_hops.range(first..).take(1);
        let source = from_there
            .find(|(key, _)| (key.ifindex, key.target) == (place.ifindex, place.address))
            .map(|(_, next_hop)| next_hop.source)
            .filter(|source| self.addresses.contains(source));
        let is_v4 = place.address.is_v4();
        let of_family = || self.addresses.iter().find(|a| a.is_v4() == is_v4).copied();
        source.or_else(of_family).unwrap_or(place.address)
    }

    /// The subnet of a destination.
    #[must_use]
    pub fn subnet_of(&self, destination: NodeId) -> Subnet {
        self.subnets.get(&destination).copied().unwrap_or_default()
    }

    /// Interfaces that next hops lead to, each with its place in the device map.
    #[must_use]
    pub fn egress(&self) -> Vec<(u32, u32)> {
        let places: BTreeSet<(u32, u32)> = self
            .next_hops
            .values()
            .map(|n| (n.egress, n.ifindex))
            .collect();
        places.into_iter().collect()
    }
}
