//! Looking through logs for other nodes: few at a time, one for a node, not for long, and half of the time at most.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use virga_ebpf::header::NodeId;

/// How many look through logs at a time: each reads up to [`virga_state::limits::LOOK_BYTES`].
const LOOKS_MAX: usize = 4;
/// So long one look goes on, but for a batch of the log: who asks is told where it got to.
pub(super) const LOOK_WITHIN: Duration = Duration::from_millis(75);

/// See the module.
#[derive(Debug)]
pub(super) struct Looks {
    all: Arc<Semaphore>,
    peers: Peers,
}

/// Nodes that one looks, waits or rests for.
type Peers = Arc<Mutex<BTreeMap<NodeId, Peer>>>;

#[derive(Debug)]
struct Peer {
    /// Its only place.
    place: Arc<Semaphore>,
    /// As long as the last look took.
    rests_until: Instant,
}

/// A place, until it is dropped: whoever reads files has it, whether or not somebody waits still.
#[derive(Debug)]
pub(super) struct Place {
    began: Instant,
    peer: NodeId,
    peers: Peers,
    _of_peer: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = Instant::now();
        if let Some(peer) = lock(&self.peers).get_mut(&self.peer) {
            peer.rests_until = now + now.duration_since(self.began);
        }
    }
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
            peers: Peers::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Looks {
    /// Waits for a place to look for a node.
    pub(super) async fn place(&self, peer: NodeId) -> Option<Place> {
        let of_peer = {
            let (now, mut peers) = (Instant::now(), lock(&self.peers));
            peers.retain(|_, peer| Arc::strong_count(&peer.place) > 1 || now < peer.rests_until);
            let known = peers.entry(peer).or_insert_with(|| Peer {
                place: Arc::new(Semaphore::new(1)),
                rests_until: now,
            });
            Arc::clone(&known.place)
        };
        // A node with many questions waits for itself, and stands in line with others once.
        let of_peer = of_peer.acquire_owned().await.ok()?;
        let rests_until = lock(&self.peers).get(&peer).map(|peer| peer.rests_until);
        if let Some(until) = rests_until.filter(|until| Instant::now() < *until) {
            sleep_until(until).await;
        }
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Place {
            began: Instant::now(),
            peer,
            peers: Arc::clone(&self.peers),
            _of_peer: of_peer,
            _of_all: of_all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_node_has_one_place_and_all_have_few() {
        let looks = Looks::default();
        let place = |peer| looks.place(NodeId(peer)).now_or_never().flatten();
        let first = place(1).unwrap();
        assert!(place(1).is_none(), "a second one of the same node");
        let others: Vec<Place> = (2..=4).map(|peer| place(peer).unwrap()).collect();
        assert!(place(5).is_none(), "more than may look");
        drop(first);
        let fifth = place(5).unwrap();
        assert!(place(6).is_none());
        drop((others, fifth));
        // It may rest before.
        assert!(looks.place(NodeId(1)).await.is_some());
    }

    #[tokio::test]
    async fn a_node_is_looked_for_half_of_the_time() {
        let looks = Looks::default();
        let began = Instant::now();
        let place = looks.place(NodeId(1)).await;
        let took = Duration::from_millis(300);
        tokio::time::sleep(took).await;
        drop(place);
        assert!(looks.place(NodeId(2)).now_or_never().flatten().is_some());
        assert!(looks.place(NodeId(1)).await.is_some());
        assert!(began.elapsed() >= 2 * took);
        // Who asks no more is forgotten.
        eventually_only(&looks, NodeId(3)).await;
    }

    /// Waits until no other node is known.
    async fn eventually_only(looks: &Looks, peer: NodeId) {
        loop {
            let place = looks.place(peer).await;
            if lock(&looks.peers).keys().eq([&peer]) {
                return;
            }
            drop(place);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
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
