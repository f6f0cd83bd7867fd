//! What nodes tell each other in their sessions.
//!
//! ```text
//! about    1 | mapping 1                                  what NAT the sender is behind, to its neighbours
//! seen     2 | address                                    where the sender sees the neighbour that it tells
//! ask      3 | number 8 | node 8                          for a meeting with another node
//! meet     4 | number 8 | node 8 | address                another node is there, and is told the same now
//! no       5 | number 8 | why 1                           there is no meeting, or not with the sender any more
//! proven   6 | number 8 | address                         the sender had an answer from the peer, who is there
//! follows  7                                              the sender has the receiver as a neighbour: see [`FOLLOWS`]
//! same     8                                              and so has who answers that: see [`FOLLOWS_TOO`]
//! mapped   9 | address or 0                               where the sender's router passes on all that comes, to its neighbours, and
//!                                                         to those that ask for meetings with it
//! also    10 | number 8 | address                         where the router of the node of a `meet` does, right after that
//! address  4 | IPv4 4 | port 2    or    6 | IPv6 16 | port 2
//! ```
//! Big-endian; one way to write each message.

use crate::class::Mapping;
use std::net::{IpAddr, SocketAddr};
use virga_ebpf::header::NodeId;

/// Bytes of the longest message.
pub const MESSAGE_BYTES_MAX: usize = 17 + 19;

/// The sender takes the receiver for a neighbour from now on, in the middle of their session or since it began: once
/// both have said so, each can tell the other what neighbours are told. Whoever adds and takes away neighbours says it.
pub const FOLLOWS: [u8; 1] = [7];
/// The answer of one that does the same: where the one end ceased to do so and does again, and the other did all the
/// while, it alone tells the first one.
pub const FOLLOWS_TOO: [u8; 1] = [8];

/// Why there is no meeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum No {
    /// Who was asked does not have both as neighbours that it reaches by UDP, and that do this.
    NotCommon,
    /// Both are behind symmetric NATs.
    Symmetric,
    /// It was asked too often, or has no room.
    Busy,
    /// It sends to another node straight that is at the same IP address.
    Taken,
}

impl No {
    const ALL: [Self; 4] = [Self::NotCommon, Self::Symmetric, Self::Busy, Self::Taken];

    fn code(self) -> u8 {
        let place = Self::ALL.iter().position(|&no| no == self);
        place.and_then(|n| u8::try_from(n).ok()).unwrap_or(u8::MAX)
    }
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// How the sender's NAT maps, as far as it knows.
    About(Mapping),
    /// Where the sender sees the receiver.
    Seen(SocketAddr),
    /// Have us two meet.
    Ask {
        /// The answer carries it.
        number: u64,
        /// Whom.
        node: NodeId,
    },
    /// Ask it for an answer now.
    Meet {
        /// Of this meeting.
        number: u64,
        /// Who.
        node: NodeId,
        /// Where the sender sees it.
        address: SocketAddr,
    },
    /// There is none.
    No {
        /// Of what was asked.
        number: u64,
        /// Why.
        why: No,
    },
    /// The receiver has answered.
    Proven {
        /// Of the meeting.
        number: u64,
        /// Where it was asked.
        address: SocketAddr,
    },
    /// The sender's router passes on to it what comes there from anybody; none: no more.
    Mapped(Option<SocketAddr>),
    /// The node that [`Self::Meet`] names is there as well, by its own word, at the IP address where it is seen.
    Also {
        /// Of the meeting.
        number: u64,
        /// Where.
        address: SocketAddr,
    },
}

impl Message {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::About(mapping) => out.extend([1, mapping.code()]),
            Self::Seen(address) => {
                out.push(2);
                write(&mut out, *address);
            }
            Self::Ask { number, node } => {
                out.push(3);
                out.extend(number.to_be_bytes());
                out.extend(node.0.to_be_bytes());
            }
            Self::Meet {
                number,
                node,
                address,
            } => {
                out.push(4);
                out.extend(number.to_be_bytes());
                out.extend(node.0.to_be_bytes());
                write(&mut out, *address);
            }
            Self::No { number, why } => {
                out.push(5);
                out.extend(number.to_be_bytes());
                out.push(why.code());
            }
            Self::Proven { number, address } => {
                out.push(6);
                out.extend(number.to_be_bytes());
                write(&mut out, *address);
            }
            Self::Mapped(address) => {
                out.push(9);
                match address {
                    Some(address) => write(&mut out, *address),
                    None => out.push(0),
                }
            }
            Self::Also { number, address } => {
                out.push(10);
                out.extend(number.to_be_bytes());
                write(&mut out, *address);
            }
        }
        out
    }

    /// Reads one, all of `bytes`; none where the form is not right.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let message = match rest.byte()? {
            1 => Self::About(Mapping::of(rest.byte()?)?),
            2 => Self::Seen(rest.address()?),
            3 => Self::Ask {
                number: rest.number()?,
                node: NodeId(rest.number()?),
            },
            4 => Self::Meet {
                number: rest.number()?,
                node: NodeId(rest.number()?),
                address: rest.address()?,
            },
            5 => Self::No {
                number: rest.number()?,
                why: *No::ALL.get(usize::from(rest.byte()?))?,
            },
            6 => Self::Proven {
                number: rest.number()?,
                address: rest.address()?,
            },
            9 if rest.0 == [0] => {
                rest.byte()?;
                Self::Mapped(None)
            }
            9 => Self::Mapped(Some(rest.address()?)),
            10 => Self::Also {
                number: rest.number()?,
                address: rest.address()?,
            },
            _ => return None,
        };
        rest.0.is_empty().then_some(message)
    }
}

fn write(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(address.port().to_be_bytes());
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip = match self.byte()? {
            4 => IpAddr::from(self.take::<4>()?),
            6 => IpAddr::from(self.take::<16>()?),
            _ => return None,
        };
        let port = u16::from_be_bytes(self.take()?);
        Some(SocketAddr::new(ip, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = SocketAddr> {
        any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
    }

    fn message() -> impl Strategy<Value = Message> {
        let node = || any::<u64>().prop_map(NodeId);
        prop_oneof![
            (0..Mapping::ALL.len()).prop_map(|n| Message::About(Mapping::ALL[n])),
            address().prop_map(Message::Seen),
            (any::<u64>(), node()).prop_map(|(number, node)| Message::Ask { number, node }),
            (any::<u64>(), node(), address()).prop_map(|(number, node, address)| Message::Meet {
                number,
                node,
                address
            }),
            (any::<u64>(), 0..No::ALL.len()).prop_map(|(number, n)| Message::No {
                number,
                why: No::ALL[n]
            }),
            (any::<u64>(), address())
                .prop_map(|(number, address)| Message::Proven { number, address }),
            proptest::option::of(address()).prop_map(Message::Mapped),
            (any::<u64>(), address())
                .prop_map(|(number, address)| Message::Also { number, address }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_nothing_else_is(message in message(), cut in any::<usize>()) {
            let bytes = message.encode();
            prop_assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            prop_assert_eq!(Message::parse(&bytes), Some(message));
            prop_assert_eq!(Message::parse(&bytes[..cut % bytes.len()]), None);
            let mut longer = bytes;
            longer.push(0);
            prop_assert_eq!(Message::parse(&longer), None);
        }

        #[test]
        fn no_message_is_what_neighbours_say(message in message()) {
            for follows in [FOLLOWS, FOLLOWS_TOO] {
                prop_assert_ne!(message.encode(), follows.to_vec());
                prop_assert_eq!(Message::parse(&follows), None);
            }
        }

        #[test]
        fn any_bytes_are_read_one_way_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..48)) {
            if let Some(message) = Message::parse(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
