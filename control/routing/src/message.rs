//! What neighbours tell each other, on a stream that keeps the order.
//!
//! ```text
//! message   items, at least one
//!
//! route     1 | metric 4 | announcement 202   the sender leads there, by this announcement
//! metric    2 | metric 4 | destination        the last announcement holds, with another metric;
//!                                             0xffffffff: the sender does not lead there any more
//! request   3 | hops 1   | announcement 202   a higher sequence number than this one's is needed
//! request   5 | hops 1   | announcement 202   one at least as high is
//! again     4 | destination                   what was said of it was not taken, and may be now
//!
//! destination   0 | node id 8, or  bits 1 (8, 16, 24, 32) | subnet 4
//! ```
//! Big-endian; one way to write each message; what is unknown, too short or too long is refused as a whole.

use crate::{
    announcement::{ANNOUNCEMENT_BYTES, Announcement, Destination},
    limits::{HOPS_MAX, MESSAGE_BYTES_MAX, UNREACHABLE},
};
use thiserror::Error;
use virga_ebpf::{
    header::{NodeId, Subnet},
    subnet::SubnetPrefix,
};

/// Which sequence number is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// One at least as high: another of those that announce it has that.
    AsHigh,
    /// A higher one.
    Higher,
}

impl Number {
    /// The lowest that will do; none: there is none.
    #[must_use]
    pub const fn than(self, seqno: u64) -> Option<u64> {
        match self {
            Self::AsHigh => Some(seqno),
            Self::Higher => seqno.checked_add(1),
        }
    }
}

/// One thing that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The sender leads there.
    Route {
        /// How far that is from the sender.
        metric: u32,
        /// The destination's own word.
        announcement: Announcement,
    },
    /// How far it is now.
    Metric {
        /// [`UNREACHABLE`]: the sender does not lead there any more.
        metric: u32,
        /// Where to.
        destination: Destination,
    },
    /// Another sequence number is needed.
    Request {
        /// Neighbours that it may yet pass.
        hops: u8,
        /// Which.
        number: Number,
        /// Measured by this one, by the destination's own word.
        announcement: Announcement,
    },
    /// What was said of it is to be said again.
    Again {
        /// Of what.
        destination: Destination,
    },
}

/// Why bytes are no message; the sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Nothing, or too much.
    #[error("it has {0} bytes, and a message has 1 to {MESSAGE_BYTES_MAX}")]
    Size(usize),
    /// Ends in the middle of an item.
    #[error("it ends in the middle of an item")]
    Short,
    /// An item that there is not.
    #[error("an item of kind {0} is not known")]
    Kind(u8),
    /// An announcement that cannot be read.
    #[error("its announcement is not one")]
    Announcement,
    /// A destination that there is not.
    #[error("its destination is not one")]
    Destination,
    /// A number out of its range.
    #[error("its {0} is out of range")]
    Range(&'static str),
}

impl Item {
    /// Bytes of it.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Route { .. } => 5 + ANNOUNCEMENT_BYTES,
            Self::Request { .. } => 2 + ANNOUNCEMENT_BYTES,
            Self::Metric { destination, .. } => 5 + destination_len(destination),
            Self::Again { destination } => 1 + destination_len(destination),
        }
    }

    /// No item has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Writes it behind others.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Route {
                metric,
                announcement,
            } => {
                out.push(1);
                out.extend(metric.to_be_bytes());
                out.extend(announcement.bytes());
            }
            Self::Metric {
                metric,
                destination,
            } => {
                out.push(2);
                out.extend(metric.to_be_bytes());
                write_destination(destination, out);
            }
            Self::Again { destination } => {
                out.push(4);
                write_destination(destination, out);
            }
            Self::Request {
                hops,
                number,
                announcement,
            } => {
                let kind = match number {
                    Number::Higher => 3,
                    Number::AsHigh => 5,
                };
                out.extend([kind, *hops]);
                out.extend(announcement.bytes());
            }
        }
    }
}

const fn destination_len(destination: &Destination) -> usize {
    match destination {
        Destination::Node(_) => 9,
        Destination::Subnet(_) => 5,
    }
}

fn write_destination(destination: &Destination, out: &mut Vec<u8>) {
    match destination {
        Destination::Node(node) => {
            out.push(0);
            out.extend(node.0.to_be_bytes());
        }
        Destination::Subnet(SubnetPrefix { subnet, mask }) => {
            out.push(u8::try_from(mask.leading_ones()).unwrap_or(u8::MAX));
            out.extend(subnet.0.to_be_bytes());
        }
    }
}

/// Reads a message, all of `bytes`.
///
/// # Errors
/// [`MessageError`]; nothing of the message counts then.
pub fn parse(bytes: &[u8]) -> Result<Vec<Item>, MessageError> {
    if bytes.is_empty() || bytes.len() > MESSAGE_BYTES_MAX {
        return Err(MessageError::Size(bytes.len()));
    }
    let mut rest = Rest(bytes);
    let mut items = Vec::new();
    while !rest.0.is_empty() {
        items.push(rest.item()?);
    }
    Ok(items)
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], MessageError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(MessageError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, MessageError> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let bytes = self.take(N)?.first_chunk().ok_or(MessageError::Short)?;
        Ok(*bytes)
    }

    fn u32(&mut self) -> Result<u32, MessageError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn announcement(&mut self) -> Result<Announcement, MessageError> {
        let bytes = self.take(ANNOUNCEMENT_BYTES)?;
        Announcement::parse(bytes).ok_or(MessageError::Announcement)
    }

    fn item(&mut self) -> Result<Item, MessageError> {
        match self.byte()? {
            1 => {
                let (metric, announcement) = (self.u32()?, self.announcement()?);
                if metric == UNREACHABLE {
                    return Err(MessageError::Range("metric"));
                }
                Ok(Item::Route {
                    metric,
                    announcement,
                })
            }
            2 => {
                let (metric, destination) = (self.u32()?, self.destination()?);
                Ok(Item::Metric {
                    metric,
                    destination,
                })
            }
            kind @ (3 | 5) => {
                let (hops, announcement) = (self.byte()?, self.announcement()?);
                if hops == 0 || hops > HOPS_MAX {
                    return Err(MessageError::Range("number of hops"));
                }
                let number = match kind {
                    3 => Number::Higher,
                    _ => Number::AsHigh,
                };
                Ok(Item::Request {
                    hops,
                    number,
                    announcement,
                })
            }
            4 => {
                let destination = self.destination()?;
                Ok(Item::Again { destination })
            }
            kind => Err(MessageError::Kind(kind)),
        }
    }

    fn destination(&mut self) -> Result<Destination, MessageError> {
        match self.byte()? {
            0 => Ok(Destination::Node(NodeId(u64::from_be_bytes(self.array()?)))),
            bits @ (8 | 16 | 24 | 32) => {
                let mask = u32::MAX << (32 - u32::from(bits));
                let subnet = Subnet(self.u32()?);
                if subnet.0 & !mask != 0 {
                    return Err(MessageError::Destination);
                }
                Ok(Destination::Subnet(SubnetPrefix { subnet, mask }))
            }
            _ => Err(MessageError::Destination),
        }
    }
}
