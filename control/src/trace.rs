//! The way that packets for a node take, asked from neighbour to neighbour: each says itself to which neighbour it
//! would send them, and how the link to that one is doing.
//!
//! ```text
//! ask      0 | number 8 | destination 8 | hops 1       so many neighbours it may yet pass
//! answer   1 | number 8 | end 1 | hops, 20 bytes each, the nearest first
//! hop      node 8 | round trip 4 | lost 4 | answered 4  microseconds, of a million, microseconds;
//!                                                     0xffffffff: not measured
//! ```
//! Big-endian; one way to write each. What a node says of the way behind it is its word, and that of those
//! behind it: a member that lies about it lies to whoever asks.

use crate::channel::Measured;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;

/// Neighbours on one way at most; as many as packets pass.
pub const HOPS_MAX: u8 = 32;
/// What waits for the task that follows traces.
pub const WAITING_MAX: usize = 256;
/// Bytes of the longest message.
pub const TRACE_BYTES_MAX: usize = ANSWER_BYTES + HOPS_MAX as usize * HOP_BYTES;

const ASK_BYTES: usize = 18;
const ANSWER_BYTES: usize = 10;
const HOP_BYTES: usize = 20;
const UNKNOWN: u32 = u32::MAX;

/// Where a way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// At the destination.
    Arrived,
    /// The last one knows no way to it.
    NoRoute,
    /// The one before has no session with the last one.
    NoSession,
    /// The last one does not answer.
    Silent,
    /// The last one is asked too often.
    Busy,
    /// It is longer than packets may go.
    TooLong,
}

impl End {
    const ALL: [Self; 6] = [
        Self::Arrived,
        Self::NoRoute,
        Self::NoSession,
        Self::Silent,
        Self::Busy,
        Self::TooLong,
    ];

    fn code(self) -> u8 {
        let place = Self::ALL.iter().position(|&end| end == self);
        place.and_then(|n| u8::try_from(n).ok()).unwrap_or(u8::MAX)
    }

    /// What it says of the last node.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Arrived => "is the destination",
            Self::NoRoute => "has no way to it: look at `virga routes` there",
            Self::NoSession => {
                "has no session with the one before it: look at `virga status` on both"
            }
            Self::Silent => "does not answer: look whether it runs, and at the link to it",
            Self::Busy => "is asked too often: try again in a second",
            Self::TooLong => "is as far as packets go",
        }
    }
}

/// A neighbour on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Who it is.
    pub node: NodeId,
    /// Smoothed round-trip time between it and the one before.
    pub rtt_us: Option<u32>,
    /// Packets of a million that are lost of late on the way to it from the one before.
    pub loss_ppm: Option<u32>,
    /// After this the one before it had the answer from it and from all behind it.
    pub answered_us: Option<u32>,
}

impl Hop {
    /// By what was measured of the link to it.
    #[must_use]
    pub fn new(node: NodeId, measured: Option<Measured>, answered_us: Option<u64>) -> Self {
        let number = |n: u64| u32::try_from(n).unwrap_or(UNKNOWN - 1).min(UNKNOWN - 1);
        Self {
            node,
            rtt_us: measured.map(|m| number(m.rtt_us)),
            loss_ppm: measured.and_then(|m| m.lost.to_ppm),
            answered_us: answered_us.map(number),
        }
    }
}

/// A way, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// How it ends.
    pub end: End,
    /// All on it but the node that asks, the nearest first.
    pub hops: Vec<Hop>,
}

impl Way {
    /// Ends where it began.
    #[must_use]
    pub const fn ends(end: End) -> Self {
        Self {
            end,
            hops: Vec::new(),
        }
    }
}

/// What neighbours say to each other about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Which way do packets go from you?
    Ask {
        /// The answer carries it.
        number: u64,
        /// Where to.
        destination: NodeId,
        /// Neighbours that it may yet pass.
        hops: u8,
    },
    /// This way.
    Answer {
        /// The question's.
        number: u64,
        /// From the one that answers.
        way: Way,
    },
}

impl Said {
    /// Writes it behind other bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ask {
                number,
                destination,
                hops,
            } => {
                out.push(0);
                out.extend(number.to_be_bytes());
                out.extend(destination.0.to_be_bytes());
                out.push(*hops);
            }
            Self::Answer { number, way } => {
                out.push(1);
                out.extend(number.to_be_bytes());
                out.push(way.end.code());
                for hop in &way.hops {
                    out.extend(hop.node.0.to_be_bytes());
                    for part in [hop.rtt_us, hop.loss_ppm, hop.answered_us] {
                        out.extend(part.unwrap_or(UNKNOWN).to_be_bytes());
                    }
                }
            }
        }
    }

    /// Reads all of `bytes`; none where they have not this form.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (number, rest) = rest.split_first_chunk()?;
        let number = u64::from_be_bytes(*number);
        match kind {
            0 if bytes.len() == ASK_BYTES => {
                let (destination, rest) = rest.split_first_chunk()?;
                let hops = *rest.first()?;
                (hops <= HOPS_MAX).then_some(Self::Ask {
                    number,
                    destination: NodeId(u64::from_be_bytes(*destination)),
                    hops,
                })
            }
            1 if bytes.len() <= TRACE_BYTES_MAX => {
                let (&end, rest) = rest.split_first()?;
                let end = *End::ALL.get(usize::from(end))?;
                let (hops, left) = rest.as_chunks::<HOP_BYTES>();
                let hops = hops.iter().map(read_hop).collect::<Option<_>>()?;
                let way = Way { end, hops };
                left.is_empty().then_some(Self::Answer { number, way })
            }
            _ => None,
        }
    }
}

fn read_hop(bytes: &[u8; HOP_BYTES]) -> Option<Hop> {
    let (node, rest) = bytes.split_first_chunk()?;
    let (parts, _) = rest.as_chunks::<4>();
    let part = |n: usize| {
        let part = u32::from_be_bytes(*parts.get(n)?);
        (part != UNKNOWN).then_some(part)
    };
    Some(Hop {
        node: NodeId(u64::from_be_bytes(*node)),
        rtt_us: part(0),
        loss_ppm: part(1),
        answered_us: part(2),
    })
}

/// What neighbours said, on its way from the workers to the task that follows it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    waiting: Mutex<VecDeque<(NodeId, Said)>>,
    changed: Notify,
}

impl Inbox {
    /// Whether there was room.
    #[must_use]
    pub fn tell(&self, peer: NodeId, said: Said) -> bool {
        let waiting = self.0.waiting.lock();
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        let has_room = waiting.len() < WAITING_MAX;
        if has_room {
            waiting.push_back((peer, said));
            self.0.changed.notify_one();
        }
        has_room
    }

    /// Waits until something was told.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What was told since the last time.
    #[must_use]
    pub fn take(&self) -> VecDeque<(NodeId, Said)> {
        let waiting = self.0.waiting.lock();
        std::mem::take(&mut *waiting.unwrap_or_else(PoisonError::into_inner))
    }
}

/// A way, as `virga trace` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The destination's id.
    pub destination: String,
    /// How it ends.
    pub end: End,
    /// All on it but this node, the nearest first.
    pub hops: Vec<TraceHop>,
}

/// A neighbour on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceHop {
    /// Its id.
    pub node: String,
    /// Its name, where the configuration here has one.
    pub name: Option<String>,
    /// See [`Hop::rtt_us`].
    pub rtt_us: Option<u32>,
    /// See [`Hop::loss_ppm`].
    pub loss_ppm: Option<u32>,
    /// See [`Hop::answered_us`].
    pub answered_us: Option<u32>,
}

#[cfg(test)]
mod tests;
