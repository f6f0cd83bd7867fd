//! What workers heard from peers about evidence, for the control plane: each peer's in a bounded queue of
//! its own, so that one that says much crowds out none of the others.

use super::wire::Publication;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;

/// What one peer has said and nobody has looked at yet.
pub const PER_PEER_MAX: usize = 1_024;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A session began.
    Connected,
    /// It ended.
    Closed,
    /// The peer said something.
    Said(Publication),
}

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    peers: Mutex<BTreeMap<NodeId, VecDeque<Heard>>>,
    changed: Notify,
}

/// The peer's queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Inbox {
    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, VecDeque<Heard>>> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer said something.
    ///
    /// # Errors
    /// [`Full`]; it was not taken.
    pub fn tell(&self, peer: NodeId, said: Publication) -> Result<(), Full> {
        let mut peers = self.peers();
        let queue = peers.entry(peer).or_default();
        if queue.len() >= PER_PEER_MAX {
            return Err(Full);
        }
        queue.push_back(Heard::Said(said));
        self.0.changed.notify_one();
        Ok(())
    }

    /// A session began; what was said in the one before matters no more.
    pub fn connected(&self, peer: NodeId) {
        self.begin(peer, Heard::Connected);
    }

    /// The session ended.
    pub fn closed(&self, peer: NodeId) {
        self.begin(peer, Heard::Closed);
    }

    fn begin(&self, peer: NodeId, heard: Heard) {
        self.peers().insert(peer, VecDeque::from([heard]));
        self.0.changed.notify_one();
    }

    /// Waits until something was told.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// At most so much of each peer, in its order. What is left is told of again.
    #[must_use]
    pub fn take(&self, per_peer_max: usize) -> Vec<(NodeId, Heard)> {
        let mut taken = Vec::new();
        let mut peers = self.peers();
        for (&peer, queue) in peers.iter_mut() {
            let count = queue.len().min(per_peer_max);
            taken.extend(queue.drain(..count).map(|heard| (peer, heard)));
        }
        peers.retain(|_, queue| !queue.is_empty());
        if !peers.is_empty() {
            self.0.changed.notify_one();
        }
        taken
    }
}
