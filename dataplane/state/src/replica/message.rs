//! What replicas of one log tell each other.
//!
//! ```text
//! version 1 | kind 1 | group 8 | life 8 | to 8 | epoch 8 | then by kind, big-endian:
//! 1 ask       settled 8 | end 8
//! 2 vote      granted 1 | whole 1
//! 3 leads     committed 8
//! 4 fetch     at 8 | chain 32 | settled 8 | round 8 | whole 1 | probe 1
//! 5 batches   at 8 | chain 32 | begin 8 | committed 8 | round 8 | whole 1 | batches, as in the log
//! 6 matches   at 8 | chain 32
//! 7 diverges  at 8 | chain 32
//! 8 gone      at 8 | chain 32
//! 9 newer     nothing
//! 10 try      settled 8 | end 8
//! 11 would    granted 1 | whole 1
//! 12 who      number 8
//! 13 here     number 8
//! ```

use crate::{
    format::{Hash, array_at, u64_at},
    limits::{BATCH_BYTES_MAX, FETCH_BYTES},
    log::Boundary,
};
use thiserror::Error;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 34;
/// Bytes of the largest message.
pub const MESSAGE_BYTES_MAX: usize =
    HEAD_BYTES + 65 + FETCH_BYTES + crate::format::BATCH_HEADER_BYTES + BATCH_BYTES_MAX;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which nodes hold the log, as the sender has it: a hash.
    pub group: u64,
    /// Drawn by the sender when it began.
    pub life: u64,
    /// The receiver's, as the sender knows it; 0 where it is asked for or told.
    pub to: u64,
    /// The latest that the sender knows.
    pub epoch: u64,
    /// What it says.
    pub body: Body,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The sender wants to lead: it was settled last in that epoch, and its log ends there.
    Ask {
        /// See [`super::promise`].
        settled: u64,
        /// Its log's end.
        end: u64,
    },
    /// To one who asked.
    Vote {
        /// Whether the sender hears no other in this epoch.
        granted: bool,
        /// Whether the sender knows all that it ever promised.
        is_whole: bool,
    },
    /// The sender leads.
    Leads {
        /// How far its log is committed.
        committed: u64,
    },
    /// A follower has all before that on disk, and asks for what is behind it.
    Fetch(Fetch),
    /// What is behind it; none where there is none.
    Batches(Batches),
    /// The leader's log has that chain there.
    Matches(Boundary),
    /// It has not.
    Diverges(Boundary),
    /// The leader's log begins only there.
    Gone(Boundary),
    /// There is a newer epoch than that of what was received.
    Newer,
    /// The sender wants to know whether it would have the receiver's vote if it asked for it.
    Try {
        /// As in [`Body::Ask`].
        settled: u64,
        /// As in [`Body::Ask`].
        end: u64,
    },
    /// To one who tried.
    Would {
        /// Whether it would: the sender knows of no leader.
        granted: bool,
        /// As in [`Body::Vote`].
        is_whole: bool,
    },
    /// Which life is the receiver in?
    Who(u64),
    /// In this one, with the question's number.
    Here(u64),
}

/// See [`Body::Fetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Where to read on.
    pub at: Boundary,
    /// In which epoch the follower was settled last.
    pub settled: u64,
    /// The leader's round that was heard last.
    pub round: u64,
    /// Whether the follower knows all that it ever promised.
    pub is_whole: bool,
    /// Whether it only asks whether the leader has that chain there.
    pub is_probe: bool,
}

/// See [`Body::Batches`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batches {
    /// As in the fetch.
    pub at: Boundary,
    /// Where the leader's log ended when it began to lead.
    pub begin: u64,
    /// Events below are committed.
    pub committed: u64,
    /// Counts up when the leader has to know that all have heard it.
    pub round: u64,
    /// Whether the follower counts as whole from now on.
    pub is_whole: bool,
    /// As they are in the log.
    pub bytes: Vec<u8>,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Another version or kind.
    #[error("a replica's message of version {0} and kind {1} is not known here")]
    Kind(u8, u8),
    /// Too short or too long.
    #[error("a replica's message has another length than its kind has")]
    Length,
}

impl Message {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.body.kind()];
        let head = [self.group, self.life, self.to, self.epoch];
        out.extend(head.into_iter().flat_map(u64::to_be_bytes));
        let boundary = |out: &mut Vec<u8>, at: &Boundary| {
            out.extend(at.offset.to_be_bytes());
            out.extend(at.chain);
        };
        match &self.body {
            Body::Ask { settled, end } | Body::Try { settled, end } => {
                out.extend([*settled, *end].into_iter().flat_map(u64::to_be_bytes));
            }
            Body::Vote { granted, is_whole } | Body::Would { granted, is_whole } => {
                out.extend([*granted, *is_whole].map(u8::from));
            }
            Body::Who(number) | Body::Here(number) => out.extend(number.to_be_bytes()),
            Body::Leads { committed } => out.extend(committed.to_be_bytes()),
            Body::Fetch(fetch) => {
                boundary(&mut out, &fetch.at);
                let numbers = [fetch.settled, fetch.round];
                out.extend(numbers.into_iter().flat_map(u64::to_be_bytes));
                out.extend([fetch.is_whole, fetch.is_probe].map(u8::from));
            }
            Body::Batches(batches) => {
                boundary(&mut out, &batches.at);
                let numbers = [batches.begin, batches.committed, batches.round];
                out.extend(numbers.into_iter().flat_map(u64::to_be_bytes));
                out.push(batches.is_whole.into());
                out.extend(&batches.bytes);
            }
            Body::Matches(at) | Body::Diverges(at) | Body::Gone(at) => boundary(&mut out, at),
            Body::Newer => {}
        }
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (head, rest) = bytes
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or(Malformed::Length)?;
        let [version, kind] = [head[0], head[1]];
        let fixed = match (version, kind) {
            (VERSION, 1 | 10) => 16,
            (VERSION, 2 | 11) => 2,
            (VERSION, 3 | 12 | 13) => 8,
            (VERSION, 4) => 58,
            (VERSION, 5) => 65,
            (VERSION, 6..=8) => 40,
            (VERSION, 9) => 0,
            _ => return Err(Malformed::Kind(version, kind)),
        };
        let is_long = bytes.len() > MESSAGE_BYTES_MAX || rest.len() > fixed && kind != 5;
        if rest.len() < fixed || is_long {
            return Err(Malformed::Length);
        }
        let number = |at| u64_at(rest, at);
        let boundary = || Boundary {
            offset: number(0),
            chain: array_at::<{ size_of::<Hash>() }>(rest, 8),
        };
        let body = match kind {
            1 => Body::Ask {
                settled: number(0),
                end: number(8),
            },
            2 => Body::Vote {
                granted: rest[0] == 1,
                is_whole: rest[1] == 1,
            },
            3 => Body::Leads {
                committed: number(0),
            },
            4 => Body::Fetch(Fetch {
                at: boundary(),
                settled: number(40),
                round: number(48),
                is_whole: rest[56] == 1,
                is_probe: rest[57] == 1,
            }),
            5 => Body::Batches(Batches {
                at: boundary(),
                begin: number(40),
                committed: number(48),
                round: number(56),
                is_whole: rest[64] == 1,
                bytes: rest[fixed..].to_vec(),
            }),
            6 => Body::Matches(boundary()),
            7 => Body::Diverges(boundary()),
            8 => Body::Gone(boundary()),
            10 => Body::Try {
                settled: number(0),
                end: number(8),
            },
            11 => Body::Would {
                granted: rest[0] == 1,
                is_whole: rest[1] == 1,
            },
            12 => Body::Who(number(0)),
            13 => Body::Here(number(0)),
            _ => Body::Newer,
        };
        Ok(Self {
            group: u64_at(head, 2),
            life: u64_at(head, 10),
            to: u64_at(head, 18),
            epoch: u64_at(head, 26),
            body,
        })
    }
}

impl Body {
    const fn kind(&self) -> u8 {
        match self {
            Self::Ask { .. } => 1,
            Self::Vote { .. } => 2,
            Self::Leads { .. } => 3,
            Self::Fetch(_) => 4,
            Self::Batches(_) => 5,
            Self::Matches(_) => 6,
            Self::Diverges(_) => 7,
            Self::Gone(_) => 8,
            Self::Newer => 9,
            Self::Try { .. } => 10,
            Self::Would { .. } => 11,
            Self::Who(_) => 12,
            Self::Here(_) => 13,
        }
    }
}
