//! Looking through logs for other nodes: few at a time, one for a node, and no longer than somebody waits for it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use virga_ebpf::header::NodeId;

/// How many look through logs at a time: each reads up to [`virga_state::limits::LOOK_BYTES`].
const LOOKS_MAX: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Looks {
    all: Arc<Semaphore>,
    /// Of each node that one looks or waits for: its only place.
    peers: Mutex<BTreeMap<NodeId, Weak<Semaphore>>>,
}

/// A place, until it is dropped: whoever reads files has it, whether or not somebody waits still.
#[derive(Debug)]
pub(super) struct Place {
    _of_peer: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Dropped by who waits no more.
#[derive(Debug, Default)]
pub(super) struct WaitedFor(Arc<AtomicBool>);

impl Drop for WaitedFor {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl WaitedFor {
    /// Whether it is still there.
    pub(super) fn asker(&self) -> impl Fn() -> bool + Send + 'static {
        let is_over = Arc::clone(&self.0);
        move || !is_over.load(Ordering::Relaxed)
    }
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(LOOKS_MAX)),
            peers: Mutex::default(),
        }
    }
}

impl Looks {
    /// Waits for a place to look for a node.
    pub(super) async fn place(&self, peer: NodeId) -> Option<Place> {
        let of_peer = {
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.retain(|_, of_peer| of_peer.strong_count() > 0);
            match peers.get(&peer).and_then(Weak::upgrade) {
                Some(of_peer) => of_peer,
                None => {
                    let of_peer = Arc::new(Semaphore::new(1));
                    peers.insert(peer, Arc::downgrade(&of_peer));
                    of_peer
                }
            }
        };
        // A node with many questions waits for itself, and stands in line with others once.
        let of_peer = of_peer.acquire_owned().await.ok()?;
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Place {
            _of_peer: of_peer,
            _of_all: of_all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn a_node_has_one_place_and_all_have_few() {
        let looks = Looks::default();
        let place = |peer| looks.place(NodeId(peer)).now_or_never().flatten();
        let first = place(1).unwrap();
        assert!(place(1).is_none(), "a second one of the same node");
        let others: Vec<Place> = (2..=4).map(|peer| place(peer).unwrap()).collect();
        assert!(place(5).is_none(), "more than may look");
        drop(first);
        let fifth = place(5).unwrap();
        assert!(place(1).is_none());
        drop((others, fifth));
        assert!(place(1).is_some());
        assert_eq!(looks.peers.lock().unwrap().len(), 1, "those that ask");
    }

    #[test]
    fn who_looks_hears_that_nobody_waits() {
        let waits = WaitedFor::default();
        let is_waited_for = waits.asker();
        assert!(is_waited_for());
        drop(waits);
        assert!(!is_waited_for());
    }
}
