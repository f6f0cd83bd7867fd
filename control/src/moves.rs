//! Neighbours that answer from another address than the configuration says: the workers tell, the
//! forwarding path follows.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;

/// What has been told and not yet followed; the newest address of each neighbour.
#[derive(Clone, Debug, Default)]
pub struct Moves(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    moved: Mutex<BTreeMap<NodeId, SocketAddr>>,
    changed: Notify,
}

impl Moves {
    /// A neighbour is at another address.
    pub fn tell(&self, peer: NodeId, address: SocketAddr) {
        let mut moved = self.0.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.insert(peer, address);
        self.0.changed.notify_one();
    }

    /// Waits until something was told.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What was told since the last time.
    #[must_use]
    pub fn take(&self) -> BTreeMap<NodeId, SocketAddr> {
        std::mem::take(&mut *self.0.moved.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
