//! What is known of another node that evidence is exchanged with, and what it may cost.

use crate::{
    admissions::{EvidenceId, Kind},
    config::Config,
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;
use virga_ebpf::header::NodeId;

/// What earlier versions take, and what this one takes.
pub(super) const TOKENS: &[Kind] = &[Kind::Token];
pub(super) const ALL: &[Kind] = &[Kind::Token, Kind::Statement];
/// About so many bytes are sent for one answer to a digest.
const SENT_BYTES_AT_ONCE_MAX: usize = 1 << 20;
/// Bytes that one peer is sent in a microsecond for its asking, and how many may go at once.
const SENT_BYTES_PER_US: u64 = 1;
const SENT_BYTES_BURST: usize = 16 << 20;
/// Pieces of one peer that are verified a second, and how many may come at once.
const VERIFIED_PER_S: f64 = 500.0;
const VERIFIED_AT_ONCE: f64 = 4_096.0;

/// See the module.
pub(super) struct Peer {
    pub(super) name: String,
    /// It is told of what is new.
    pub(super) is_neighbour: bool,
    pub(super) is_connected: bool,
    /// What it takes.
    pub(super) kinds: &'static [Kind],
    /// What it refused in this session.
    pub(super) refused: BTreeSet<EvidenceId>,
    pub(super) budget: f64,
    pub(super) filled: Instant,
    /// Bytes that may be sent for its asking.
    pub(super) sendable: usize,
    pub(super) sent: Instant,
}

impl Peer {
    /// Whether another of its tokens may be looked at.
    pub(super) fn has_budget(&mut self, now: Instant) -> bool {
        let passed_s = now.duration_since(self.filled).as_secs_f64();
        self.budget = (self.budget + passed_s * VERIFIED_PER_S).min(VERIFIED_AT_ONCE);
        self.filled = now;
        self.budget >= 1.0
    }

    /// How many bytes may be sent to it at once for its asking.
    pub(super) fn sendable(&mut self, now: Instant) -> usize {
        let passed_us = u64::try_from(now.duration_since(self.sent).as_micros());
        let more = passed_us
            .unwrap_or(u64::MAX)
            .saturating_mul(SENT_BYTES_PER_US);
        let more = usize::try_from(more).unwrap_or(usize::MAX);
        self.sendable = self.sendable.saturating_add(more).min(SENT_BYTES_BURST);
        self.sent = now;
        self.sendable.min(SENT_BYTES_AT_ONCE_MAX)
    }
}

/// The other nodes, of which nothing is heard yet.
pub(super) fn all(config: &Config) -> BTreeMap<NodeId, Peer> {
    let now = Instant::now();
    let peers = config.peers.iter().map(|peer| {
        let known = Peer {
            name: peer.name.clone(),
            is_neighbour: peer.is_adjacent(),
            is_connected: false,
            kinds: TOKENS,
            refused: BTreeSet::new(),
            budget: VERIFIED_AT_ONCE,
            filled: now,
            sendable: SENT_BYTES_BURST,
            sent: now,
        };
        (peer.id, known)
    });
    peers.collect()
}
