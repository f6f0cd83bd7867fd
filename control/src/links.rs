//! The links to neighbours, as the workers find them: alive, dead, or not known. Whoever routes follows.

use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;
use virga_ebpf::header::NodeId;
use virga_transport::LinkState;

/// What was found of one link last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub state: LinkState,
    /// How long nothing had been heard of the neighbour then.
    pub gap_ns: u64,
}

/// The latest of each link. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Links(Arc<watch::Sender<BTreeMap<NodeId, Found>>>);

impl Default for Links {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Links {
    /// The state of a link has changed.
    pub fn tell(&self, peer: NodeId, state: LinkState, gap_ns: u64) {
        let found = Found { state, gap_ns };
        self.0.send_modify(|links| {
            links.insert(peer, found);
        });
    }

    /// Follows all links: what changes twice between two looks is seen once.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<BTreeMap<NodeId, Found>> {
        self.0.subscribe()
    }
}
