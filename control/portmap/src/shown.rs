//! What others see of a mapping, and what is wanted.

use crate::{Protocol, not_public};
use std::{net::SocketAddrV4, time::Instant};

/// What the node wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// No mapping.
    #[default]
    Off,
    /// One.
    On,
    /// None any more: the node stops.
    End,
}

/// A mapping, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whom it was asked of.
    pub protocol: Protocol,
    /// Where others send to.
    pub external: SocketAddrV4,
    /// Until when; none: until it is deleted.
    pub until: Option<Instant>,
}

impl Held {
    /// What that address is where nobody outside can send to it: there is a second NAT behind the router, or no network.
    #[must_use]
    pub fn useless(&self) -> Option<&'static str> {
        not_public(*self.external.ip())
    }
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing, and nothing is wanted.
    #[default]
    Off,
    /// Nothing yet.
    Searching,
    /// A mapping.
    Held(Held),
    /// Nothing, for this reason.
    Failed(String),
}

impl State {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Held(one), Self::Held(other)) => {
                (one.protocol, one.external) == (other.protocol, other.external)
            }
            (one, other) => one == other,
        }
    }

    /// Says what is new, once.
    pub(crate) fn log(&self, before: &Self) {
        match self {
            _ if self.is_same(before) => {}
            Self::Off => tracing::info!("no port of the router's is mapped any more"),
            Self::Searching => {}
            Self::Held(held) => match held.useless() {
                Some(why) => tracing::warn!(
                    protocol = held.protocol.name(), external = %held.external,
                    "the router maps a port, but its own address is {why}: others are not told of the port"
                ),
                None => tracing::info!(
                    protocol = held.protocol.name(), external = %held.external,
                    "the router passes on what comes to a port of its own"
                ),
            },
            Self::Failed(why) => tracing::warn!(%why, "no port of a router's is mapped"),
        }
    }
}

/// How often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Mappings made, by protocol; the same again included where the router had forgotten it.
    pub made: [u64; 3],
    /// And renewed.
    pub renewed: [u64; 3],
    /// Requests in vain.
    pub failed: [u64; 3],
    /// Ports that the router gave to another host while they were this node's.
    pub taken: u64,
    /// Panics of what keeps the mapping.
    pub panics: u64,
}

/// What others see of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// What there is.
    pub state: State,
    /// What there was.
    pub counts: Counts,
    /// What keeps it has panicked, in its words, and has done nothing since.
    pub broken: Option<String>,
}

impl Shown {
    /// The address that others may be told.
    #[must_use]
    pub fn announced(&self) -> Option<SocketAddrV4> {
        match &self.state {
            State::Held(held) if held.useless().is_none() => Some(held.external),
            _ => None,
        }
    }
}
