//! Signed objects that a worker learned of from a peer: the control plane tells the other workers,
//! and keeps them over a restart.

use crate::rights::catalogue::DECLARATIONS_MAX;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;

/// Objects of one peer that wait: all that it may show when a session begins.
pub const PER_PEER_MAX: usize = DECLARATIONS_MAX + 512;
/// Bytes of one peer's objects that wait.
const PER_PEER_BYTES_MAX: usize = 16 << 20;
/// Of those, what has room however much all others have waiting.
const PER_PEER_BYTES_SURE: usize = 1 << 20;
/// Bytes of all that waits, beyond what each peer has for sure.
const BYTES_MAX: usize = 128 << 20;

/// What has been told and not yet taken: the newest signed list of each issuer, and what entities have
/// signed about themselves.
#[derive(Clone, Debug, Default)]
pub struct Notices(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    newest: Mutex<BTreeMap<[u8; 32], Newest>>,
    changed: Notify,
    shown: Mutex<BTreeMap<NodeId, Waiting>>,
    shown_changed: Notify,
}

/// What one peer has shown, and nobody has looked at yet.
#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Shown>,
    bytes: usize,
    /// Something found no room: it is to be shown again.
    is_behind: bool,
}

/// What a peer has shown, as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A placement or succession.
    Identity(Vec<u8>),
    /// A declared channel.
    Channel(Vec<u8>),
}

impl Shown {
    const fn bytes(&self) -> usize {
        match self {
            Self::Identity(signed) | Self::Channel(signed) => signed.len(),
        }
    }
}

#[derive(Debug)]
struct Newest {
    version: u64,
    signed: Vec<u8>,
}

impl Notices {
    /// There is a new list of an issuer that some channel trusts, of that version.
    pub fn tell(&self, issuer: [u8; 32], version: u64, signed: Vec<u8>) {
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = newest.get(&issuer);
        if known.is_none_or(|known| known.version < version) {
            newest.insert(issuer, Newest { version, signed });
        }
        self.0.changed.notify_one();
    }

    /// Waits until something was told.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<NodeId, Waiting>> {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer has shown something; whether there was room for it. Each peer has room of its own.
    #[must_use]
    pub fn tell_shown(&self, peer: NodeId, shown: Shown) -> bool {
        let mut all = self.waiting();
        let total: usize = all.values().map(|one| one.bytes).sum();
        let waiting = all.entry(peer).or_default();
        let bytes = waiting.bytes + shown.bytes();
        let has_room = waiting.queue.len() < PER_PEER_MAX
            && (bytes <= PER_PEER_BYTES_SURE
                || bytes <= PER_PEER_BYTES_MAX && total + shown.bytes() <= BYTES_MAX);
        if has_room {
            waiting.bytes = bytes;
            waiting.queue.push_back(shown);
            self.0.shown_changed.notify_one();
        }
        waiting.is_behind |= !has_room;
        has_room
    }

    /// Waits until something was shown.
    pub async fn shown(&self) {
        self.0.shown_changed.notified().await;
    }

    /// At most so much of what each peer has shown, in its order. What is left is told of again.
    #[must_use]
    pub fn take_shown(&self, per_peer_max: usize) -> Vec<(NodeId, Shown)> {
        let mut taken = Vec::new();
        let mut all = self.waiting();
        for (&peer, waiting) in all.iter_mut() {
            let count = waiting.queue.len().min(per_peer_max);
            for shown in waiting.queue.drain(..count) {
                waiting.bytes -= shown.bytes();
                taken.push((peer, shown));
            }
        }
        all.retain(|_, waiting| waiting.is_behind || !waiting.queue.is_empty());
        if all.values().any(|waiting| !waiting.queue.is_empty()) {
            self.0.shown_changed.notify_one();
        }
        taken
    }

    /// Peers of which something found no room, and all else was looked at: they are to show it again. Each is
    /// named once.
    #[must_use]
    pub fn behind(&self) -> Vec<NodeId> {
        let mut all = self.waiting();
        let is_due = |waiting: &Waiting| waiting.is_behind && waiting.queue.is_empty();
        let due = all.iter().filter(|(_, waiting)| is_due(waiting));
        let due: Vec<NodeId> = due.map(|(&peer, _)| peer).collect();
        all.retain(|_, waiting| !is_due(waiting));
        due
    }

    /// What was told since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<Vec<u8>> {
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let told = std::mem::take(&mut *newest).into_values();
        told.map(|list| list.signed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_workers_that_heard_of_different_versions_the_later_counts() {
        let notices = Notices::default();
        for (issuer, version) in [(1, 5), (1, 4), (2, 1), (2, 3)] {
            notices.tell(
                [issuer; 32],
                version,
                vec![issuer, u8::try_from(version).unwrap()],
            );
        }
        assert_eq!(notices.take(), [[1, 5], [2, 3]]);
        assert!(notices.take().is_empty());
    }

    #[test]
    fn a_peer_that_shows_too_much_takes_no_room_from_others_and_shows_it_again() {
        let notices = Notices::default();
        let junk = |number: usize| Shown::Channel(number.to_be_bytes().to_vec());
        let (eager, other) = (NodeId(1), NodeId(2));
        let taken = (0..PER_PEER_MAX + 10).filter(|&n| notices.tell_shown(eager, junk(n)));
        assert_eq!(taken.count(), PER_PEER_MAX);
        let removal = Shown::Channel(b"removed".to_vec());
        assert!(notices.tell_shown(other, removal.clone()));
        let first = notices.take_shown(64);
        assert_eq!(first.len(), 65);
        assert!(
            first.contains(&(other, removal)),
            "not behind all of the other's"
        );
        assert_eq!(notices.behind(), [], "not before all of it was looked at");
        while !notices.take_shown(64).is_empty() {}
        assert_eq!(notices.behind(), [eager]);
        assert_eq!(notices.behind(), []);
    }

    #[test]
    fn large_objects_are_bounded_by_their_bytes() {
        let notices = Notices::default();
        let large = || Shown::Channel(vec![0; 1 << 20]);
        let mut taken = 0;
        for peer in 0..100 {
            taken += (0..20)
                .filter(|_| notices.tell_shown(NodeId(peer), large()))
                .count();
        }
        // Eight peers have all that one may have, and each other one its share.
        assert_eq!(taken, 8 * 16 + 92);
        assert_eq!(notices.take_shown(20).len(), taken);
    }
}
