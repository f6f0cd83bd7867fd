//! What neighbours say about routes, on its way from the workers to the task that owns the router, and the
//! routes as `virga routes` shows them.

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;

/// Messages that wait.
const WAITING_MAX: usize = 65_536;

/// What a worker tells of a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A session, by its number.
    Began {
        /// What is meant for another one is not said in it.
        session: u64,
    },
    /// A message of it.
    Said(Vec<u8>),
    /// It is over.
    Ended,
}

/// What waits to be followed, in its order. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    waiting: Mutex<VecDeque<(NodeId, Heard)>>,
    changed: Notify,
}

impl Inbox {
    /// Whether there was room; for beginnings and ends there always is.
    #[must_use]
    pub fn tell(&self, peer: NodeId, heard: Heard) -> bool {
        let mut waiting = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &heard {
            Heard::Said(_) if waiting.len() >= WAITING_MAX => return false,
            Heard::Said(_) => {}
            // What was said before, in a session that is over, counts no more.
            Heard::Began { .. } | Heard::Ended => waiting.retain(|(from, _)| *from != peer),
        }
        waiting.push_back((peer, heard));
        self.0.changed.notify_one();
        true
    }

    /// Waits until something was told.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What was told since the last time.
    #[must_use]
    pub fn take(&self) -> VecDeque<(NodeId, Heard)> {
        std::mem::take(
            &mut *self
                .0
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// Who leads where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesStatus {
    /// Whether neighbours say who leads where.
    pub is_enabled: bool,
    /// Whether it still waits for its neighbours to know that it has started.
    pub is_quiet: bool,
    /// Destinations that the router knows of.
    pub destinations: usize,
    /// Messages that it has made.
    pub messages: u64,
    /// Nodes whose keys another node has as well.
    pub twins: Vec<String>,
    /// Neighbours that there is a session with.
    pub links: Vec<LinkStatus>,
    /// What neighbours said and was not taken, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Every peer that is a node.
    pub routes: Vec<RouteStatus>,
}

/// A link, as routes go by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The neighbour.
    pub peer: String,
    /// What a packet over it costs.
    pub cost: u32,
    /// Smoothed round-trip time; none before it is measured.
    pub rtt_us: Option<u64>,
    /// Packets lost of a million.
    pub loss_ppm: u32,
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// The node's id.
    pub destination: String,
    /// Its name.
    pub name: String,
    /// The neighbour that packets go to; none: it is not reached.
    pub primary: Option<String>,
    /// The one that they go to while the first one's link is dead.
    pub backup: Option<String>,
    /// `adjacent`, `static` (the configuration says `via`) or `learned`.
    pub by: String,
    /// What was announced: the node, or a subnet that it is in. None where nothing was learned.
    pub follows: Option<String>,
    /// How far it is.
    pub metric: Option<u32>,
    /// The destination's own number.
    pub seqno: Option<u64>,
    /// Since when it goes over these neighbours.
    pub age_s: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_session_that_is_over_nothing_is_followed_and_of_the_others_all_in_order() {
        let inbox = Inbox::default();
        let [one, two] = [NodeId(1), NodeId(2)];
        let said = |byte: u8| Heard::Said(vec![byte]);
        for (peer, heard) in [
            (one, Heard::Began { session: 1 }),
            (one, said(1)),
            (two, said(2)),
            (one, Heard::Began { session: 2 }),
            (one, said(3)),
        ] {
            assert!(inbox.tell(peer, heard));
        }
        let all = [
            (two, said(2)),
            (one, Heard::Began { session: 2 }),
            (one, said(3)),
        ];
        assert_eq!(inbox.take(), all);
    }

    #[test]
    fn what_finds_no_room_is_refused_and_ends_and_beginnings_find_some() {
        let inbox = Inbox::default();
        for _ in 0..WAITING_MAX {
            assert!(inbox.tell(NodeId(1), Heard::Said(Vec::new())));
        }
        assert!(!inbox.tell(NodeId(1), Heard::Said(Vec::new())));
        assert!(inbox.tell(NodeId(2), Heard::Ended));
    }
}
