//! Which worker a peer belongs to, and so every datagram of its sessions.
//!
//! A node's peers are spread over its workers by their node ids. A session's id, chosen by the
//! worker that has it, names that worker in its low 8 bits; a handshake names its sender in the
//! clear. So the owner can be read off a datagram before it is opened, by the kernel
//! ([`crate::io::steer`]) and by a worker that got what is another's.

use crate::handshake::SENDER_AT;
use virga_ebpf::{
    header::{Flags, NodeId, SessionId, offset},
    limits::HEADER_BYTES,
};

/// Workers of one node at most: a session's id has 8 bits for them.
pub const WORKERS_MAX: u16 = 256;

/// One worker's part of a node's peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    worker: u8,
    workers: u16,
}

impl Share {
    /// The share of a worker that is alone: all peers.
    pub const WHOLE: Self = Self {
        worker: 0,
        workers: 1,
    };

    /// The shares of so many workers, at least one and at most [`WORKERS_MAX`].
    pub fn split(workers: usize) -> impl Iterator<Item = Self> {
        let workers = u16::try_from(workers)
            .unwrap_or(WORKERS_MAX)
            .clamp(1, WORKERS_MAX);
        (0..=u8::MAX)
            .take(usize::from(workers))
            .map(move |worker| Self { worker, workers })
    }

    /// Which worker this is, counted from 0.
    #[must_use]
    pub const fn worker(self) -> u8 {
        self.worker
    }

    /// How many workers there are.
    #[must_use]
    pub const fn workers(self) -> u16 {
        self.workers
    }

    /// Whether the peer is one of this worker's.
    #[must_use]
    pub fn owns(self, peer: NodeId) -> bool {
        self.owner_of(peer) == self.worker
    }

    /// Whose peer it is. Only the id's low 32 bits count: classic BPF has no more.
    #[must_use]
    pub const fn owner_of(self, peer: NodeId) -> u8 {
        let low = peer.0 & 0xffff_ffff;
        low_8_bits(low % self.workers as u64)
    }

    /// A session's id as this worker gives it: its own number in the low 8 bits.
    #[must_use]
    pub const fn mark(self, session: SessionId) -> SessionId {
        SessionId(session.0 & !0xff | self.worker as u64)
    }

    /// Whose a datagram for this node is. Ids from before a restart with fewer workers, and
    /// datagrams that are too short to say, are somebody's too.
    #[must_use]
    pub fn owner_of_datagram(self, datagram: &[u8]) -> u8 {
        if self.workers == 1 {
            return 0;
        }
        let flags = datagram.get(FLAGS_AT).copied().unwrap_or(0);
        if !Flags(flags).contains(Flags::HANDSHAKE) {
            let last = datagram.get(SESSION_BYTE_AT).copied().unwrap_or(0);
            return low_8_bits(u64::from(last) % u64::from(self.workers));
        }
        let sender = datagram.get(SENDER_AT..).and_then(<[u8]>::first_chunk);
        sender.map_or(0, |sender| {
            self.owner_of(NodeId(u64::from_be_bytes(*sender)))
        })
    }
}

/// Where the flags are.
pub(crate) const FLAGS_AT: usize = 3;
/// Where a session id's low 8 bits are.
pub(crate) const SESSION_BYTE_AT: usize = offset::SESSION_ID + 7;
/// Where a handshake's sender's low 32 bits are.
pub(crate) const SENDER_WORD_AT: usize = SENDER_AT + 4;

const _: () = assert!(SESSION_BYTE_AT < HEADER_BYTES && SENDER_WORD_AT >= HEADER_BYTES);

#[allow(clippy::cast_possible_truncation)] // of a remainder by at most 256
const fn low_8_bits(number: u64) -> u8 {
    (number & 0xff) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use virga_ebpf::header::Header;

    fn shares(workers: usize) -> Vec<Share> {
        Share::split(workers).collect()
    }

    #[test]
    fn every_peer_has_one_owner_and_sessions_name_theirs() {
        for workers in [1, 2, 3, 256] {
            for id in [0, 1, 2, 0xffff_ffff, 0x1234_5678_9abc_def0] {
                let owners = shares(workers).into_iter().filter(|s| s.owns(NodeId(id)));
                assert_eq!(owners.count(), 1, "{workers} workers, node {id}");
            }
            for share in shares(workers) {
                let header = Header {
                    session_id: share.mark(SessionId(u64::MAX)),
                    ..Header::default()
                };
                let owner = share.owner_of_datagram(&header.encode());
                assert_eq!(owner, share.worker());
            }
        }
        assert_eq!((shares(0).len(), shares(1_000).len()), (1, 256));
    }

    #[test]
    fn what_is_too_short_or_of_an_earlier_run_is_somebodys() {
        let share = shares(3)[2];
        assert_eq!(share.owner_of_datagram(&[]), 0);
        let mut handshake = Header {
            flags: Flags::HANDSHAKE,
            ..Header::default()
        }
        .encode()
        .to_vec();
        assert_eq!(share.owner_of_datagram(&handshake), 0);
        handshake.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5]);
        assert_eq!(share.owner_of_datagram(&handshake), 2);
        let header = Header {
            session_id: SessionId(0x1107),
            ..Header::default()
        };
        assert_eq!(share.owner_of_datagram(&header.encode()), 1);
    }
}
