//! What NAT this node is behind, by what others see of its address.
//!
//! Mapping and filtering are RFC 4787's; that others' words tell of them is RFC 5780's, with neighbours in the place of
//! servers. Mapping takes two that see the node: two that see the same address say that it does not depend on whom it
//! sends to, two that see different ones that it does. Those on this side of the NAT see the address that the node itself
//! has, and say nothing of it, unless all do. Filtering shows when a peer asks before this node has sent it
//! anything.

use crate::limits::OBSERVERS_MAX;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};
use virga_ebpf::header::NodeId;

/// How inner addresses become outer ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapping {
    /// Too few have said what they see.
    #[default]
    Unknown,
    /// They do not: others see the address that the node itself has.
    None,
    /// One inner address is one outer address, whomever it sends to.
    Independent,
    /// It is another one for other destinations.
    Dependent,
}

impl Mapping {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Unknown,
        Self::None,
        Self::Independent,
        Self::Dependent,
    ];

    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    pub(crate) fn of(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// Whose packets come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Nothing has shown it.
    #[default]
    Unknown,
    /// Also those of whom nothing was sent to.
    Unfiltered,
    /// Only those of whom something was sent to.
    Filtered,
}

/// In a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No NAT.
    Open,
    /// A NAT with one outer address for all destinations.
    Cone,
    /// A NAT with another one for each.
    Symmetric,
    /// Nobody knows.
    Unknown,
}

impl Class {
    /// Its name, the same everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cone => "cone",
            Self::Symmetric => "symmetric",
            Self::Unknown => "unknown",
        }
    }
}

/// What others have said of this node's address, and what has shown of its NAT.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Where each sees this node, and the address of the one that sees it.
    seen: BTreeMap<NodeId, (IpAddr, SocketAddr)>,
    /// The addresses that this node itself has.
    locals: BTreeSet<SocketAddr>,
    filtering: Filtering,
}

impl Evidence {
    /// `peer`, which is at `from`, sees this node at `address`. One too many is not noted.
    pub(crate) fn note(&mut self, peer: NodeId, from: IpAddr, address: SocketAddr) {
        if self.seen.contains_key(&peer) || self.seen.len() < OBSERVERS_MAX {
            self.seen.insert(peer, (from, address));
        }
    }

    /// What others say that are not meant counts no more.
    pub(crate) fn retain(&mut self, mut is_kept: impl FnMut(NodeId) -> bool) {
        self.seen.retain(|peer, _| is_kept(*peer));
    }

    pub(crate) fn set_locals(&mut self, locals: BTreeSet<SocketAddr>) {
        self.locals = locals;
    }

    pub(crate) const fn set_filtering(&mut self, filtering: Filtering) {
        self.filtering = filtering;
    }

    /// Where others see this node, each address once.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut all: Vec<_> = self.seen.values().map(|(_, address)| *address).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What those see that are on the other side of the NAT, if there is one.
    fn outside(&self) -> impl Iterator<Item = &(IpAddr, SocketAddr)> {
        let seen = self.seen.values();
        seen.filter(|(_, address)| !self.locals.contains(address))
    }

    /// By all that is known.
    #[must_use]
    pub fn mapping(&self) -> Mapping {
        let from: BTreeSet<IpAddr> = self.outside().map(|(from, _)| *from).collect();
        let addresses: BTreeSet<SocketAddr> = self.outside().map(|(_, at)| *at).collect();
        match addresses.len() {
            0 if self.seen.is_empty() => Mapping::Unknown,
            0 => Mapping::None,
            1 if from.len() > 1 => Mapping::Independent,
            1 => Mapping::Unknown,
            _ => Mapping::Dependent,
        }
    }

    /// Whose packets come in.
    #[must_use]
    pub const fn filtering(&self) -> Filtering {
        self.filtering
    }

    /// In a word.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.mapping() {
            Mapping::Unknown => Class::Unknown,
            Mapping::None => Class::Open,
            Mapping::Independent => Class::Cone,
            Mapping::Dependent => Class::Symmetric,
        }
    }

    /// In a sentence.
    #[must_use]
    pub fn words(&self) -> String {
        let outside: BTreeSet<String> = self.outside().map(|(_, at)| at.to_string()).collect();
        let all = outside.into_iter().collect::<Vec<_>>().join(" and ");
        let others = self.outside().count();
        let mapping = match self.mapping() {
            Mapping::Unknown if others == 0 => "nobody has said where it sees this node".to_owned(),
            Mapping::Unknown => {
                format!("one address, {all}, is not enough: it takes two that see this node")
            }
            Mapping::None => {
                let own: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
                format!("others see this node where it is, at {}", own.join(" and "))
            }
            Mapping::Independent => {
                format!("{others} nodes at different addresses see this one at {all}")
            }
            Mapping::Dependent => format!("{others} nodes see this one at {all}"),
        };
        let filtering = match self.filtering {
            Filtering::Unknown => "",
            Filtering::Unfiltered => "; packets come in unasked",
            Filtering::Filtered => "; packets come in only from where some were sent to",
        };
        mapping + filtering
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAN: &str = "10.0.0.3";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn seen(all: &[(u64, &str, &str)]) -> Evidence {
        let mut evidence = Evidence::default();
        evidence.set_locals([at("10.0.0.2:4783"), at("10.9.0.2:4783")].into());
        for &(node, from, address) in all {
            evidence.note(NodeId(node), from.parse().unwrap(), at(address));
        }
        evidence
    }

    #[test]
    fn it_takes_two_at_different_addresses_to_tell_a_cone_and_two_views_to_tell_a_symmetric_nat() {
        let (one, two) = ("192.0.2.1:4783", "192.0.2.1:9");
        for (all, class) in [
            (&[][..], Class::Unknown),
            (&[(1, "1.1.1.1", one)], Class::Unknown),
            (&[(1, "1.1.1.1", one), (2, "1.1.1.1", one)], Class::Unknown),
            (&[(1, "1.1.1.1", one), (2, "1.1.1.2", one)], Class::Cone),
            (
                &[(1, "1.1.1.1", one), (2, "1.1.1.2", two)],
                Class::Symmetric,
            ),
            (&[(1, "1.1.1.1", "10.0.0.2:4783")], Class::Open),
            (
                &[(1, LAN, "10.0.0.2:4783"), (2, LAN, "10.9.0.2:4783")],
                Class::Open,
            ),
            // Who is on this side of the NAT says nothing of it.
            (
                &[(1, LAN, "10.0.0.2:4783"), (2, "1.1.1.1", one)],
                Class::Unknown,
            ),
            (
                &[
                    (1, LAN, "10.0.0.2:4783"),
                    (2, "1.1.1.1", one),
                    (3, "1.1.1.2", one),
                ],
                Class::Cone,
            ),
        ] {
            let evidence = seen(all);
            assert_eq!(evidence.class(), class, "{}", evidence.words());
        }
        // The newest word of each counts, and of those that are gone none.
        let mut evidence = seen(&[
            (1, "1.1.1.1", two),
            (2, "1.1.1.2", one),
            (1, "1.1.1.1", one),
        ]);
        assert_eq!(evidence.class(), Class::Cone);
        evidence.retain(|peer| peer == NodeId(1));
        assert_eq!(evidence.class(), Class::Unknown);
    }

    #[test]
    fn of_many_only_so_many_are_noted() {
        let all: Vec<(u64, &str, &str)> = (0..99).map(|n| (n, "1.1.1.1", "192.0.2.1:1")).collect();
        assert_eq!(seen(&all).seen.len(), OBSERVERS_MAX);
    }
}
