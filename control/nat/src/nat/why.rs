//! Why a peer is relayed.

use crate::wire::No;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// Why a peer is relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing was tried.
    Fresh,
    /// It has the lower id, and asks.
    Theirs,
    /// There is no neighbour to ask.
    Nobody,
    No(No),
    /// The neighbour does not answer.
    Unanswered,
    /// Packets were sent there.
    Vain(SocketAddr),
    /// Another one that is sent to straight is there.
    Taken(IpAddr),
    /// This node cannot have it as a neighbour.
    Full,
    /// It was sent to straight until the link was silent.
    Closed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh => f.write_str("nothing was tried yet"),
            Self::Theirs => f.write_str("it asks for a meeting, having the lower node id"),
            Self::Nobody => f.write_str("no neighbour here has [nat]"),
            Self::No(No::NotCommon) => {
                f.write_str("no neighbour with [nat] has both of us as neighbours by UDP")
            }
            Self::No(No::Symmetric) => {
                f.write_str("both of us are behind symmetric NATs, and ports are not guessed")
            }
            Self::No(No::Busy) => f.write_str("who was asked is asked too often, or has no room"),
            Self::No(No::Taken) => f.write_str(
                "it sends to another node straight that is at the IP address where it sees this one",
            ),
            Self::Taken(ip) => {
                write!(f, "another node that is sent to straight is at its IP address, {ip}")
            }
            Self::Unanswered => f.write_str("the neighbour that was asked does not answer"),
            Self::Vain(address) => write!(f, "no packet came through from {address}"),
            Self::Full => f.write_str("this node has no room for another neighbour"),
            Self::Closed => f.write_str("the link through the NATs fell silent"),
        }
    }
}
