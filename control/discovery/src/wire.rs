//! What nodes tell each other in their sessions.
//!
//! ```text
//! records   1 | 1 to 16, each: length 2 | record (see `record`)
//! ask       2 | from 8 | to 8 | up to 400, each: node 8 | sequence 8, nodes ascending, from..=to
//! swim      3 | see `swim`
//! ```
//! Big-endian; one way to write each message. Whoever is asked answers with the records of nodes from..=to that it
//! has had a session with, where the asker has none or an older one.

use crate::{
    limits::{ASKED_MAX, RECORDS_MAX, UPDATES_MAX},
    record::{RECORD_BYTES_MAX, Record},
    swim,
};
use virga_ebpf::header::NodeId;

/// Bytes of the longest message.
pub const MESSAGE_BYTES_MAX: usize = 1 + RECORDS_MAX * (2 + RECORD_BYTES_MAX);

const _: () = assert!(1 + 16 + 16 * ASKED_MAX <= MESSAGE_BYTES_MAX);
const _: () = assert!(1 + swim::HEAD_BYTES + UPDATES_MAX * swim::UPDATE_BYTES <= MESSAGE_BYTES_MAX);

/// Which nodes are known already, of a range of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The first id.
    pub from: u64,
    /// The last one.
    pub to: u64,
    /// Those that are known, ascending, each with the sequence number of its record.
    pub known: Vec<(NodeId, u64)>,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// What nodes say of themselves.
    Records(Vec<Record>),
    /// Asks for what the asker lacks.
    Ask(Ask),
    /// About who lives.
    Swim(swim::Said),
}

impl Message {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Records(records) => {
                out.push(1);
                for record in records {
                    // It has a few hundred.
                    let length = u16::try_from(record.bytes().len()).unwrap_or(u16::MAX);
                    out.extend(length.to_be_bytes());
                    out.extend(record.bytes());
                }
            }
            Self::Ask(ask) => {
                out.push(2);
                out.extend(ask.from.to_be_bytes());
                out.extend(ask.to.to_be_bytes());
                for (node, sequence) in &ask.known {
                    out.extend(node.0.to_be_bytes());
                    out.extend(sequence.to_be_bytes());
                }
            }
            Self::Swim(said) => {
                out.push(3);
                said.write(&mut out);
            }
        }
        out
    }

    /// Reads one, all of `bytes`; none where the form is not right.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        match kind {
            1 => records(rest).map(Self::Records),
            2 => ask(rest).map(Self::Ask),
            3 => swim::Said::parse(rest).map(Self::Swim),
            _ => None,
        }
    }
}

fn records(mut rest: &[u8]) -> Option<Vec<Record>> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk()?;
        let (record, behind) = behind.split_at_checked(u16::from_be_bytes(*length).into())?;
        if all.len() == RECORDS_MAX {
            return None;
        }
        all.push(Record::parse(record)?);
        rest = behind;
    }
    (!all.is_empty()).then_some(all)
}

fn ask(rest: &[u8]) -> Option<Ask> {
    let (from, rest) = rest.split_first_chunk()?;
    let (to, mut rest) = rest.split_first_chunk()?;
    let mut ask = Ask {
        from: u64::from_be_bytes(*from),
        to: u64::from_be_bytes(*to),
        known: Vec::new(),
    };
    while !rest.is_empty() {
        let (node, behind) = rest.split_first_chunk()?;
        let (sequence, behind) = behind.split_first_chunk()?;
        let node = NodeId(u64::from_be_bytes(*node));
        let is_next = ask.known.last().is_none_or(|(last, _)| *last < node);
        let is_within = (ask.from..=ask.to).contains(&node.0);
        if ask.known.len() == ASKED_MAX || !is_next || !is_within {
            return None;
        }
        ask.known.push((node, u64::from_be_bytes(*sequence)));
        rest = behind;
    }
    (ask.from <= ask.to).then_some(ask)
}
