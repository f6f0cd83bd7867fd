//! Port mapping: a node behind a router asks it to pass on what comes to one of its ports, so that others can send to the
//! node first, whatever kind of NAT the router is.
//!
//! - [`limits`]: every number.
//! - [`route`]: which router that is, as the kernel's table has it.
//! - [`pmp`]: PCP (RFC 6887) and NAT-PMP (RFC 6886), with the crate `crab_nat`; [`epoch`] sees that the router has restarted.
//! - [`igd`]: UPnP's Internet Gateway Device, with [`ssdp`], [`url`], [`http`] and [`xml`].
//! - [`keeper`]: one mapping, by the first of the three that works: made, renewed, made again, given back; [`shown`] is what
//!   others see of it.
//!
//! IPv4 alone: IPv6 has no ports to map, and no pinholes in firewalls are asked for.
//!
//! **Why UPnP is not another crate's.** `igd-next`, the one that is kept up, reads what answers with an XML parser that
//! expands entities without bound, and follows whatever address an answer names: any host of the LAN could take a
//! daemon's memory with a page of text, or have it ask another host. Here an answer has so many bytes, a document so many
//! levels and no entities of its own, and the router of the default route is asked, and no other host.
//!
//! **Who is believed.** Nobody signs any of this. The router that the default route leads to can say what it likes: it has
//! all packets anyway. What another host of the LAN sends in its name, with its address, may be taken for its word: PCP's numbers are looked at by
//! `crab_nat` only once an answer says yes, so that a no counts when it comes twice, and NAT-PMP has no numbers at all; a
//! UPnP router's page is asked for at its own address, without a question in it. What either can do is to name a port
//! that leads nowhere: neighbours take the address only where they see the node at the same IP address themselves
//! (`virga-nat`), and it is one that is tried beside others.
#![deny(unsafe_code)]

mod caught;
pub mod epoch;
pub mod http;
pub mod igd;
pub mod keeper;
mod left;
pub mod limits;
pub mod pmp;
pub mod route;
pub mod shown;
pub mod ssdp;
pub mod url;
pub mod xml;

#[cfg(test)]
mod tests;

use limits::{LEASE_MAX, LEASE_MIN};

pub use keeper::{Keeper, Setup};
pub use route::Route;
pub use shown::{Counts, Held, Shown, State, Wish};

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU16,
    time::Duration,
};

/// How a router is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP's Internet Gateway Device.
    Upnp,
}

impl Protocol {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Upnp];

    /// Its name, the same everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        }
    }
}

/// Why there is no mapping.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody answers.
    #[error("no answer")]
    Silent,
    /// The router has nothing at that port.
    #[error("the router does not have it")]
    Absent,
    /// What answers does not keep to the protocol.
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
    /// The router says no.
    #[error("the router refuses: {0}")]
    Refused(String),
    /// The operating system does.
    #[error("cannot send to the router: {0}")]
    System(#[from] io::Error),
    /// What asks it has a defect.
    #[error("what asks the router panicked: {0}")]
    Panicked(String),
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The node's own port.
    pub port: NonZeroU16,
    /// The router's, if it has it free.
    pub external: NonZeroU16,
    /// By which PCP knows whose mapping it is: the same after a restart, so that the mapping is taken over.
    pub nonce: [u32; 3],
}

/// What the router gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Where others send to.
    pub external: SocketAddrV4,
    /// How long it lasts; none: until it is deleted.
    pub lease: Option<Duration>,
    /// The router's own time, where it says it.
    pub epoch: Option<u32>,
}

/// Whether a mapping is one to go by.
pub(crate) fn judged(made: Made) -> Result<Made, Failure> {
    if made.external.ip().is_unspecified() {
        return Err(Failure::Refused("it has no outer address".into()));
    }
    match made.lease {
        Some(lease) if lease < LEASE_MIN => Err(Failure::Refused(format!(
            "its mapping would last {} s, and at least {} are needed",
            lease.as_secs(),
            LEASE_MIN.as_secs()
        ))),
        lease => Ok(Made {
            lease: lease.map(|lease| lease.min(LEASE_MAX)),
            ..made
        }),
    }
}

/// What an address is that says nothing outside some network (RFC 6890's registry); none where anybody can send to it.
#[must_use]
pub const fn not_public(ip: Ipv4Addr) -> Option<&'static str> {
    Some(match ip.octets() {
        [0, ..] => "none",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => {
            "a private one (RFC 1918), so that there is a second NAT behind it"
        }
        [100, 64..=127, ..] => {
            "one of a provider's NAT (RFC 6598), so that many customers share one behind it"
        }
        [192, 0, 0, _] => {
            "one of DS-Lite (RFC 6333) or its like, so that the provider's NAT is behind it"
        }
        [169, 254, ..] => "one of its link alone (RFC 3927), so that it has got none from outside",
        [127, ..] => "its own loopback",
        [198, 18 | 19, ..] => "one for measurements (RFC 2544)",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "one for documentation (RFC 5737)",
        [224..=239, ..] => "one of a group (multicast)",
        [240..=255, ..] => "a reserved one",
        _ => return None,
    })
}

/// Whether an address says nothing outside some network.
#[must_use]
pub const fn is_private(ip: Ipv4Addr) -> bool {
    not_public(ip).is_some()
}
