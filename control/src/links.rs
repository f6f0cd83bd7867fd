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
    /// How often it was found dead: it may live again before anybody looks.
    pub falls: u64,
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
        self.0.send_modify(|links| {
            let falls = links.get(&peer).map_or(0, |found| found.falls);
            let found = Found {
                state,
                gap_ns,
                falls: falls + u64::from(state.is_dead()),
            };
            links.insert(peer, found);
        });
    }

    /// Forgets what was found of these links: whoever watches them finds it anew.
    pub fn forget(&self, is_over: impl Fn(NodeId) -> bool) {
        self.0.send_if_modified(|links| {
            let before = links.len();
            links.retain(|peer, _| !is_over(*peer));
            links.len() != before
        });
    }

    /// Follows all links: of what changes twice between two looks, the latest is seen and the falls are counted.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<BTreeMap<NodeId, Found>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fall_between_two_looks_is_counted() {
        let links = Links::default();
        let seen = links.follow();
        for state in [LinkState::Up, LinkState::Silent, LinkState::Up] {
            links.tell(NodeId(1), state, 0);
        }
        let found = seen.borrow()[&NodeId(1)];
        assert_eq!((found.state, found.falls), (LinkState::Up, 1));
    }
}
