//! Who hears of what where subnets are announced as one.
//!
//! A node is told exactly of the nodes of its own subnet and of those that its subnet lies in; of each other
//! subnet there is one destination, of as few levels as tell it from this node's own. Any node of a subnet
//! that has a neighbour outside is a gateway: it announces the subnet there, and knows all that is within.
//! Where it reaches no other node of it, it says so by a long way ([`crate::limits::ALONE`]), and until its
//! neighbours know that it has restarted it says nothing.
//!
//! ```text
//!   destination               is told of to nodes in          and not to those in
//!   node in 1.2.0.0           1.2.0.0/16                       -
//!   node in 0.0.0.0           everywhere                       -
//!   subnet 1.2.0.0/16         1.0.0.0/8                        1.2.0.0/16
//!   subnet 1.0.0.0/8          everywhere                       1.0.0.0/8
//! ```
//! A packet for a node of 1.2.3.0 that comes from 5.0.0.0 follows 1.0.0.0/8, then 1.2.0.0/16, then 1.2.3.0/24,
//! then the node. Each is followed within the scope of the one before, so it goes to a longer one only, and
//! what is loop-free for each is so for all. A subnet must hang together by itself: what is cut off from a
//! gateway within its subnet is not reached over another.
//!
//! A level of 0 in the middle is a level like others, and a node of 1.0.0.0 has none of it: it is not in
//! 1.0.0.0/16, which it follows for 1.0.3.0 as all of 1.0.0.0/8 do, or rather 1.0.3.0/24, as it can.

use crate::announcement::Destination;
use virga_ebpf::{
    header::{NodeId, Subnet},
    subnet::SubnetPrefix,
};

/// Whether nodes of other subnets are destinations of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aggregation {
    /// Every node is known everywhere.
    #[default]
    Exact,
    /// Other subnets are one destination each.
    BySubnet,
}

/// The prefix of so many bits of a subnet.
fn leading(subnet: Subnet, bits: u32) -> SubnetPrefix {
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    let subnet = Subnet(subnet.0 & mask);
    SubnetPrefix { subnet, mask }
}

/// Whether a node in `place` belongs to a prefix: it has as many levels, and they are these.
fn is_in(prefix: SubnetPrefix, place: Subnet) -> bool {
    prefix.contains(place) && place.mask() >= prefix.mask
}

/// Whether a destination, whose announcement comes from `subnet`, is one of a prefix's.
pub(crate) fn is_part(prefix: SubnetPrefix, destination: Destination, subnet: Subnet) -> bool {
    match destination {
        Destination::Node(_) => is_in(prefix, subnet),
        Destination::Subnet(part) => part.mask > prefix.mask && prefix.contains(part.subnet),
    }
}

impl Aggregation {
    /// Whether a node in `place` is told of a destination, whose announcement comes from `subnet`.
    #[must_use]
    pub fn tells(self, destination: Destination, subnet: Subnet, place: Subnet) -> bool {
        match (self, destination) {
            (Self::Exact, Destination::Node(_)) => true,
            (Self::Exact, Destination::Subnet(_)) => false,
            (Self::BySubnet, Destination::Node(_)) => subnet.with_descendants().contains(place),
            (Self::BySubnet, Destination::Subnet(prefix)) => {
                let parent = leading(prefix.subnet, prefix.mask.leading_ones().saturating_sub(8));
                parent.contains(place) && !is_in(prefix, place)
            }
        }
    }

    /// Leading bits of its subnet that a node announces, 0 for itself.
    pub fn announced(self, subnet: Subnet) -> impl Iterator<Item = u8> {
        let most = match self {
            Self::Exact => 0,
            Self::BySubnet => u8::try_from(subnet.mask().leading_ones()).unwrap_or(0),
        };
        [0, 8, 16, 24, 32]
            .into_iter()
            .filter(move |&bits| bits <= most)
    }

    /// What a node in `place` follows for a node in `subnet`.
    #[must_use]
    pub fn follows(self, node: NodeId, subnet: Subnet, place: Subnet) -> Destination {
        let exact = Destination::Node(node);
        if self.tells(exact, subnet, place) {
            return exact;
        }
        // The longest: see the module.
        let mut prefixes = [32, 24, 16, 8].map(|bits| Destination::Subnet(leading(subnet, bits)));
        prefixes.sort_by_key(|&prefix| !self.tells(prefix, subnet, place));
        prefixes[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    fn prefix(levels: [u8; 4], bits: u32) -> Destination {
        Destination::Subnet(leading(Subnet(u32::from_be_bytes(levels)), bits))
    }

    #[test]
    fn from_afar_a_subnet_is_one_destination_and_within_it_each_node_is() {
        let to = Subnet(0x0102_0300);
        let follows = |from: u32| Aggregation::BySubnet.follows(NODE, to, Subnet(from));
        assert_eq!(follows(0x0500_0000), prefix([1, 0, 0, 0], 8));
        assert_eq!(follows(0), prefix([1, 0, 0, 0], 8));
        assert_eq!(follows(0x0100_0000), prefix([1, 2, 0, 0], 16));
        assert_eq!(follows(0x0103_0300), prefix([1, 2, 0, 0], 16));
        assert_eq!(follows(0x0102_0000), prefix([1, 2, 3, 0], 24));
        assert_eq!(follows(0x0102_0400), prefix([1, 2, 3, 0], 24));
        assert_eq!(follows(0x0102_0300), Destination::Node(NODE));
        assert_eq!(follows(0x0102_0304), Destination::Node(NODE));
    }

    #[test]
    fn whatever_a_node_follows_it_is_told_of_and_where_it_leads_a_longer_one_is_followed() {
        for (to, from) in (0..81_u32).flat_map(|to| (0..81).map(move |from| (to, from))) {
            // Levels of 0 to 2, such as 2.0.1.0: what is 0 in the middle is a level like others.
            let subnet = |n: u32| Subnet((0..4).fold(0, |s, i| (s << 8) | (n / 3_u32.pow(i) % 3)));
            let (to, from) = (subnet(to), subnet(from));
            let followed = Aggregation::BySubnet.follows(NODE, to, from);
            assert!(
                Aggregation::BySubnet.tells(followed, to, from),
                "{followed} {from}"
            );
            if let Destination::Subnet(prefix) = followed {
                assert!(is_in(prefix, to) && !is_in(prefix, from));
                let next = Aggregation::BySubnet.follows(NODE, to, to);
                assert_eq!(next, Destination::Node(NODE));
            }
        }
    }

    #[test]
    fn a_node_announces_itself_and_each_level_that_it_is_in() {
        let announced = |subnet| Aggregation::BySubnet.announced(Subnet(subnet));
        assert!(announced(0).eq([0]));
        assert!(announced(0x0102_0000).eq([0, 8, 16]));
        assert!(announced(0x0102_0304).eq([0, 8, 16, 24, 32]));
        assert!(Aggregation::Exact.announced(Subnet(0x0102_0304)).eq([0]));
    }
}
