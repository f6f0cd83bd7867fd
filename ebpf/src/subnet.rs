//! Subnets, and how far a channel's packets go among them.
//!
//! A subnet is four levels of 8 bits, and ends at its last level that is not 0: `0.0.0.0` is the root of all,
//! `1.0.0.0` lies in it, `1.2.0.0` in that. So the four bytes in a header say all there is to know: no length
//! goes with them. Two subnets are the same only where all four levels are: between `1.0.0.0` and `1.2.0.0`
//! is a boundary. One subnet is another's ancestor where the other's levels begin with its own.
//!
//! What crosses a boundary is decided by the sender's subnet (the header's, held to what the ingress link may
//! carry), the destination's (its route's) and the channel. Control traffic (channel 0) and handshakes cross
//! every boundary: a session's acknowledgements and credit are of no channel, and a channel that may cross
//! needs the session that it is in. They are bounded by the guard and by each neighbour's rate of handshakes.

use crate::{
    header::{ChannelHash, Subnet},
    limits::EXPORTS_PER_CHANNEL,
};

/// How far the packets of a channel go, as a table's two bits say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Visibility {
    /// Never across a boundary. So is every channel that nothing is said of.
    #[default]
    SubnetLocal = 0,
    /// To ancestors of the sender's subnet.
    ParentVisible = 1,
    /// To what the channel's export table names.
    Exported = 2,
    /// Everywhere.
    Global = 3,
}

/// A subnet and all whose levels begin with it, down to bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SubnetPrefix {
    /// What a subnet must equal under the mask.
    pub subnet: Subnet,
    /// The bits that count.
    pub mask: u32,
}

/// Where a channel's packets may go; what is not used is all zeros.
pub type Exports = [SubnetPrefix; EXPORTS_PER_CHANNEL as usize];

impl Subnet {
    /// The bits of its levels.
    #[inline(always)]
    #[must_use]
    pub const fn mask(self) -> u32 {
        if self.0 & 0xff != 0 {
            0xffff_ffff
        } else if self.0 & 0xff00 != 0 {
            0xffff_ff00
        } else if self.0 & 0x00ff_0000 != 0 {
            0xffff_0000
        } else if self.0 != 0 {
            0xff00_0000
        } else {
            0
        }
    }

    /// Whether `other` is another subnet that lies in this one.
    #[inline(always)]
    #[must_use]
    pub const fn is_ancestor_of(self, other: Self) -> bool {
        self.0 != other.0 && other.0 & self.mask() == self.0
    }

    /// The subnet and all that lie in it.
    #[must_use]
    pub const fn with_descendants(self) -> SubnetPrefix {
        SubnetPrefix {
            subnet: self,
            mask: self.mask(),
        }
    }
}

impl SubnetPrefix {
    /// Every subnet.
    pub const ALL: Self = Self {
        subnet: Subnet(0),
        mask: 0,
    };

    /// Whether a subnet lies within.
    #[inline(always)]
    #[must_use]
    pub const fn contains(self, subnet: Subnet) -> bool {
        subnet.0 & self.mask == self.subnet.0
    }
}

/// Whether an export table names the subnet. An empty place names none.
#[inline(always)]
#[must_use]
pub const fn names(exports: &Exports, subnet: Subnet) -> bool {
    let mut found = false;
    let mut n = 0;
    while n < exports.len() {
        let prefix = exports[n];
        found |= prefix.mask != 0 && prefix.contains(subnet);
        n += 1;
    }
    found
}

/// Whether a packet of a channel may go from one subnet to another. `exports` is asked only for an exported
/// channel; `None` names nothing.
#[inline(always)]
#[must_use]
pub fn may_cross<'a>(
    channel: ChannelHash,
    visibility: Visibility,
    exports: impl FnOnce() -> Option<&'a Exports>,
    from: Subnet,
    to: Subnet,
) -> bool {
    if from.0 == to.0 || channel.0 == 0 {
        return true;
    }
    match visibility {
        Visibility::SubnetLocal => false,
        Visibility::ParentVisible => to.is_ancestor_of(from),
        Visibility::Exported => exports().is_some_and(|exports| names(exports, to)),
        Visibility::Global => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Subnet = Subnet(0);
    const ONE: Subnet = Subnet(0x0100_0000);
    const ONE_TWO: Subnet = Subnet(0x0102_0000);
    const TWO: Subnet = Subnet(0x0200_0000);

    fn crosses(visibility: Visibility, from: Subnet, to: Subnet) -> bool {
        let mut exports = Exports::default();
        exports[1] = TWO.with_descendants();
        may_cross(ChannelHash(1), visibility, || Some(&exports), from, to)
    }

    #[test]
    fn a_subnet_ends_at_its_last_level_that_is_not_zero() {
        let masks = [
            (ROOT, 0),
            (ONE, 0xff00_0000),
            (ONE_TWO, 0xffff_0000),
            (Subnet(0x0100_0300), 0xffff_ff00),
            (Subnet(4), 0xffff_ffff),
        ];
        for (subnet, mask) in masks {
            assert_eq!(subnet.mask(), mask, "{subnet:?}");
        }
        for (ancestor, other) in [(ROOT, ONE), (ROOT, ONE_TWO), (ONE, ONE_TWO)] {
            assert!(ancestor.is_ancestor_of(other));
            assert!(!other.is_ancestor_of(ancestor));
        }
        assert!(!ONE.is_ancestor_of(ONE) && !ROOT.is_ancestor_of(ROOT));
        assert!(!TWO.is_ancestor_of(ONE_TWO));
    }

    #[test]
    fn each_visibility_crosses_where_it_says() {
        use Visibility::{Exported, Global, ParentVisible, SubnetLocal};
        for visibility in [SubnetLocal, ParentVisible, Exported, Global] {
            assert!(crosses(visibility, ONE, ONE), "{visibility:?}");
        }
        let allowed = |visibility| {
            [
                (ONE_TWO, ONE),
                (ONE_TWO, ROOT),
                (ONE, ONE_TWO),
                (ROOT, ONE),
                (ONE, TWO),
                (ONE, Subnet(0x0203_0000)),
            ]
            .map(|(from, to)| crosses(visibility, from, to))
        };
        assert_eq!(allowed(SubnetLocal), [false; 6]);
        let upwards = [true, true, false, false, false, false];
        assert_eq!(allowed(ParentVisible), upwards);
        assert_eq!(allowed(Exported), [false, false, false, false, true, true]);
        assert_eq!(allowed(Global), [true; 6]);
    }

    #[test]
    fn an_empty_export_table_names_nothing_and_control_crosses() {
        let none = Exports::default();
        assert!(!names(&none, ROOT) && !names(&none, ONE));
        let crosses = |channel| {
            let local = Visibility::SubnetLocal;
            may_cross(ChannelHash(channel), local, || None, ONE, TWO)
        };
        assert!(crosses(0) && !crosses(1));
    }
}
