//! Signed objects that a worker learned of from a peer: the control plane tells the other workers,
//! and keeps them over a restart.

use crate::channel::follow::CLAIMS_WAITING_MAX;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;

/// What has been told and not yet taken: the newest signed list of each issuer, and what entities have
/// signed about themselves.
#[derive(Clone, Debug, Default)]
pub struct Notices(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    newest: Mutex<BTreeMap<[u8; 32], Newest>>,
    changed: Notify,
    shown: Mutex<VecDeque<(NodeId, Shown)>>,
    shown_changed: Notify,
}

/// What a peer has shown, as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A placement or succession.
    Identity(Vec<u8>),
    /// A declared channel.
    Channel(Vec<u8>),
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

    /// A peer has shown something; whether there was room for it.
    #[must_use]
    pub fn tell_shown(&self, peer: NodeId, shown: Shown) -> bool {
        let waiting = self.0.shown.lock();
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        if waiting.iter().any(|(_, known)| *known == shown) {
            return true;
        }
        let has_room = waiting.len() < CLAIMS_WAITING_MAX;
        if has_room {
            waiting.push_back((peer, shown));
            self.0.shown_changed.notify_one();
        }
        has_room
    }

    /// Waits for the next that was shown, and who has shown it.
    pub async fn shown(&self) -> (NodeId, Shown) {
        loop {
            let waiting = self.0.shown.lock();
            let next = waiting.unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(next) => return next,
                None => self.0.shown_changed.notified().await,
            }
        }
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
}
