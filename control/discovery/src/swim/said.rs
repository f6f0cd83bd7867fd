//! What members say about who lives.
//!
//! ```text
//! said      kind 1 | incarnation 8 | number 4 | target 8 | up to 16 updates
//! kind      1 ping, 2 ack, 3 ask (to probe the target), 4 nack, 5 tell; the target is 0 but for 3
//! update    node 8 | state 1 | incarnation 8 | by 8     state: 1 alive, 2 suspect, 3 dead
//! ```
//! Big-endian; the first incarnation is the sender's.

use super::MemberState;
use crate::limits::UPDATES_MAX;
use virga_ebpf::header::NodeId;

/// Bytes before the updates.
pub const HEAD_BYTES: usize = 1 + 8 + 4 + 8;
/// Bytes of each update.
pub const UPDATE_BYTES: usize = 8 + 1 + 8 + 8;

/// What is said of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// Which one.
    pub node: NodeId,
    /// What it is.
    pub state: MemberState,
    /// In which of its incarnations.
    pub incarnation: u64,
    /// Who has found that by itself.
    pub by: NodeId,
}

/// What it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Asks for an ack.
    Ping,
    /// The answer to a ping, or that one has come from the target.
    Ack,
    /// Asks to ping somebody else.
    Ask {
        /// Whom.
        target: NodeId,
    },
    /// No answer has come from the target so far.
    Nack,
    /// Only tells; the number counts for nothing.
    Tell,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The sender's.
    pub incarnation: u64,
    /// What it is for.
    pub kind: Kind,
    /// Comes back in the answer.
    pub number: u32,
    /// What it tells beside.
    pub updates: Vec<Update>,
}

impl Said {
    /// Writes it behind other bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (kind, target) = match self.kind {
            Kind::Ping => (1, NodeId(0)),
            Kind::Ack => (2, NodeId(0)),
            Kind::Ask { target } => (3, target),
            Kind::Nack => (4, NodeId(0)),
            Kind::Tell => (5, NodeId(0)),
        };
        out.push(kind);
        out.extend(self.incarnation.to_be_bytes());
        out.extend(self.number.to_be_bytes());
        out.extend(target.0.to_be_bytes());
        for update in &self.updates {
            out.extend(update.node.0.to_be_bytes());
            out.push(match update.state {
                MemberState::Alive => 1,
                MemberState::Suspect => 2,
                MemberState::Dead => 3,
            });
            out.extend(update.incarnation.to_be_bytes());
            out.extend(update.by.0.to_be_bytes());
        }
    }

    /// Reads all of `bytes`; none where the form is not right.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let (&kind, head) = head.split_first()?;
        let (&incarnation, head) = head.split_first_chunk()?;
        let (&number, target) = head.split_first_chunk()?;
        let target = u64::from_be_bytes(target.try_into().ok()?);
        let kind = match (kind, target) {
            (1, 0) => Kind::Ping,
            (2, 0) => Kind::Ack,
            (3, _) => Kind::Ask {
                target: NodeId(target),
            },
            (4, 0) => Kind::Nack,
            (5, 0) => Kind::Tell,
            _ => return None,
        };
        if rest.len() > UPDATES_MAX * UPDATE_BYTES || !rest.len().is_multiple_of(UPDATE_BYTES) {
            return None;
        }
        let updates = rest.chunks_exact(UPDATE_BYTES).map(update);
        Some(Self {
            incarnation: u64::from_be_bytes(incarnation),
            kind,
            number: u32::from_be_bytes(number),
            updates: updates.collect::<Option<_>>()?,
        })
    }
}

fn update(bytes: &[u8]) -> Option<Update> {
    let (&node, rest) = bytes.split_first_chunk()?;
    let (&state, rest) = rest.split_first()?;
    let (&incarnation, by) = rest.split_first_chunk()?;
    Some(Update {
        node: NodeId(u64::from_be_bytes(node)),
        state: match state {
            1 => MemberState::Alive,
            2 => MemberState::Suspect,
            3 => MemberState::Dead,
            _ => return None,
        },
        incarnation: u64::from_be_bytes(incarnation),
        by: NodeId(u64::from_be_bytes(by.try_into().ok()?)),
    })
}
