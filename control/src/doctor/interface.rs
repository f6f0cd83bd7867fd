//! What is known of one interface, from the kernel and its driver.

use super::link::{self, Link, Wanted};
use crate::io::ethtool::Ethtool;
use std::{collections::BTreeSet, fmt, io};

pub use crate::io::ethtool::Channels;

/// Everything that decides whether and how well an interface forwards.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Whether it was set up.
    pub is_up: bool,
    /// Whether it has a carrier.
    pub has_carrier: bool,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// The driver's name, as `ethtool -i` prints it.
    pub driver: Option<String>,
    /// The kind of a virtual interface: `veth`, `bridge`, `macvlan`.
    pub kind: Option<String>,
    /// Receive queues as the kernel counts them.
    pub rx_queues: u32,
    /// Send queues as the kernel counts them.
    pub tx_queues: u32,
    /// Queues as the driver counts them, where it does.
    pub channels: Option<Channels>,
    /// Active features, named as in the kernel (`rx-lro`); `None` where it does not say.
    pub features: Option<BTreeSet<String>>,
    /// XDP programs that are attached.
    pub programs: Vec<AttachedProgram>,
    /// What the driver's XDP can do; `None` before kernel 6.3.
    pub xdp_features: Option<XdpFeatures>,
    /// The other end of a veth.
    pub peer: Option<Peer>,
}

impl InterfaceFacts {
    /// Whether a feature is active; `None` where that is unknown.
    #[must_use]
    pub fn has_feature(&self, name: &str) -> Option<bool> {
        self.features
            .as_ref()
            .map(|features| features.contains(name))
    }

    /// Whether this is one end of a veth pair.
    #[must_use]
    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AttachedProgram {
    /// Where it runs.
    pub mode: XdpMode,
    /// The kernel's id of it.
    pub id: u32,
    /// Its name, where this process may ask for it.
    pub name: Option<String>,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's generic path.
    Generic,
    /// On the card.
    Offloaded,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offloaded => "offloaded",
        })
    }
}

/// Bits of `NETDEV_A_DEV_XDP_FEATURES` (`linux/netdev.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Pass, drop, transmit.
    pub const BASIC: Self = Self(1);
    /// Redirect to another interface.
    pub const REDIRECT: Self = Self(1 << 1);
    /// Be the target of a redirect.
    pub const TARGET: Self = Self(1 << 2);
    /// AF_XDP without a copy.
    pub const ZERO_COPY: Self = Self(1 << 3);
    /// Programs on the card.
    pub const OFFLOAD: Self = Self(1 << 4);
    /// Packets in several buffers.
    pub const FRAGMENTS: Self = Self(1 << 5);
    /// Be the target of a redirect of those.
    pub const TARGET_FRAGMENTS: Self = Self(1 << 6);

    /// Whether every bit of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Words for the bits that are set.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        const NAMES: [(XdpFeatures, &str); 7] = [
            (XdpFeatures::BASIC, "basic"),
            (XdpFeatures::REDIRECT, "redirect"),
            (XdpFeatures::TARGET, "redirect-target"),
            (XdpFeatures::ZERO_COPY, "zero-copy"),
            (XdpFeatures::OFFLOAD, "offload"),
            (XdpFeatures::FRAGMENTS, "fragments"),
            (XdpFeatures::TARGET_FRAGMENTS, "redirect-target-fragments"),
        ];
        NAMES
            .iter()
            .filter(|(bit, _)| self.contains(*bit))
            .map(|(_, name)| *name)
            .collect()
    }
}

/// The other end of a veth.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Peer {
    /// In this network namespace.
    Here {
        /// Its name.
        name: String,
        /// Whether it has a native XDP program.
        has_native_program: bool,
        /// Whether it has GRO on, which readies it for redirected frames as a program does.
        has_gro: bool,
        /// Its send queues.
        tx_queues: u32,
    },
    /// In another one, where this process does not look.
    Elsewhere {
        /// Its index there.
        ifindex: Option<u32>,
        /// What /run/netns calls that namespace, where it does.
        namespace: Option<String>,
    },
}

/// Why an interface could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// There is none of that name.
    #[error("there is no interface of that name")]
    Missing,
    /// The kernel did not answer.
    #[error("netlink: {0}")]
    Netlink(io::Error),
}

impl FactsError {
    /// What to do.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Missing => "ip -brief link".into(),
            Self::Netlink(_) => "let this process open netlink sockets (seccomp, container)".into(),
        }
    }
}

/// Looks at one interface. Blocks for some microseconds; needs no runtime and no privilege.
///
/// # Errors
/// When there is no such interface, or netlink is closed to this process. What a driver does not
/// tell is `None`, not an error.
pub fn facts(name: &str) -> Result<InterfaceFacts, FactsError> {
    let link = link::read(&Wanted::Name(name))?;
    let ethtool = Ethtool::open(name).ok();
    let features = ethtool.as_ref().and_then(|ethtool| ethtool.features().ok());
    let peer = if link.kind.as_deref() == Some("veth") {
        peer(&link)
    } else {
        None
    };
    Ok(InterfaceFacts {
        name: link.name,
        ifindex: link.ifindex,
        is_up: link.is_up,
        has_carrier: link.has_carrier,
        mtu: link.mtu,
        driver: ethtool
            .as_ref()
            .and_then(|ethtool| ethtool.driver().ok())
            .or_else(|| driver_link(name)),
        kind: link.kind,
        rx_queues: link.rx_queues,
        tx_queues: link.tx_queues,
        channels: ethtool.as_ref().and_then(|ethtool| ethtool.channels().ok()),
        features: features.map(|features| features.into_iter().collect()),
        programs: link.programs.into_iter().map(named).collect(),
        xdp_features: link::xdp_features(link.ifindex),
        peer,
    })
}

/// The driver of the interface of that name, where the system says.
pub(crate) fn driver(name: &str) -> Option<String> {
    let asked = Ethtool::open(name).and_then(|ethtool| ethtool.driver());
    asked.ok().or_else(|| driver_link(name))
}

/// The driver as sysfs links it.
fn driver_link(name: &str) -> Option<String> {
    let driver = std::fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

fn peer(link: &Link) -> Option<Peer> {
    if let Some(namespace) = link.peer_namespace {
        return Some(Peer::Elsewhere {
            ifindex: link.peer,
            namespace: link::namespace_name(namespace),
        });
    }
    let peer = link::read(&Wanted::Index(link.peer?)).ok()?;
    let features = Ethtool::open(&peer.name).and_then(|ethtool| ethtool.features());
    Some(Peer::Here {
        has_native_program: peer
            .programs
            .iter()
            .any(|program| program.mode == XdpMode::Native),
        has_gro: features.is_ok_and(|features| features.iter().any(|name| name == "rx-gro")),
        tx_queues: peer.tx_queues,
        name: peer.name,
    })
}

/// Adds the program's name, which takes privilege to ask for.
fn named(program: AttachedProgram) -> AttachedProgram {
    let mut loaded = aya::programs::loaded_programs().flatten();
    let info = loaded.find(|info| info.id() == program.id);
    let name = info.and_then(|info| info.name_as_str().map(str::to_owned));
    AttachedProgram {
        name: name.filter(|name| !name.is_empty()),
        ..program
    }
}

/// Every interface that is up, but loopback.
#[must_use]
pub fn all_up() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_up = |name: &String| {
        name != "lo" && link::read(&Wanted::Name(name)).is_ok_and(|link| link.is_up)
    };
    names.filter(is_up).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_and_nonsense_is_not() {
        let facts = facts("lo").unwrap();
        assert_eq!((facts.name.as_str(), facts.ifindex), ("lo", 1));
        assert!(facts.mtu > 0 && !facts.is_veth() && facts.peer.is_none());
        assert!(matches!(
            super::facts("virga-none"),
            Err(FactsError::Missing)
        ));
        assert!(super::facts("").is_err());
        assert!(!all_up().contains("lo"));
    }
}
