//! What neighbours say about routes, on its way from the workers to the task that owns the router, and the
//! routes as `virga routes` shows them.

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;

/// Messages that wait.
const WAITING_MAX: usize = 65_536;
/// Those of one neighbour, unless told otherwise: all that it can say of a full table fits, twice.
const WAITING_OF_ONE_MAX: usize = 8_192;
/// So many of each find room, however much others say.
const WAITING_OF_EACH: usize = 64;

const _: () = assert!(WAITING_OF_ONE_MAX < WAITING_MAX && WAITING_OF_EACH < WAITING_OF_ONE_MAX);

/// What a worker tells of a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A session, by its number.
    Began {
        /// What is meant for another one is not said in it.
        session: u64,
        /// The entity that the neighbour has shown.
        entity: [u8; 32],
    },
    /// A message of it.
    Said(Vec<u8>),
    /// It is over.
    Ended,
}

/// What waits to be followed, each neighbour's in its order. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<Told>);

#[derive(Debug)]
struct Told {
    waiting: Mutex<Waiting>,
    changed: Notify,
    of_one_max: usize,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            changed: Notify::new(),
            of_one_max: WAITING_OF_ONE_MAX,
        }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    /// No queue is empty.
    of: BTreeMap<NodeId, VecDeque<Heard>>,
    count: usize,
    /// Whose turn it was last.
    last: Option<NodeId>,
}

impl Waiting {
    fn has_room(&self, peer: NodeId, of_one_max: usize) -> bool {
        let own = self.of.get(&peer).map_or(0, VecDeque::len);
        own < WAITING_OF_EACH || own < of_one_max && self.count < WAITING_MAX
    }

    /// Of whoever's turn it is.
    fn pop(&mut self) -> Option<(NodeId, Heard)> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.of.range((behind, Bound::Unbounded)).next();
        let (&peer, _) = next.or_else(|| self.of.first_key_value())?;
        let queue = self.of.get_mut(&peer)?;
        let heard = queue.pop_front()?;
        if queue.is_empty() {
            self.of.remove(&peer);
        }
        self.count -= 1;
        self.last = Some(peer);
        Some((peer, heard))
    }
}

impl Inbox {
    /// One in which so many messages of one neighbour wait at most.
    #[must_use]
    pub fn with_room(of_one_max: usize) -> Self {
        Self(Arc::new(Told {
            of_one_max,
            ..Told::default()
        }))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room; for beginnings and ends there always is.
    #[must_use]
    pub fn tell(&self, peer: NodeId, heard: Heard) -> bool {
        let mut waiting = self.waiting();
        match &heard {
            Heard::Said(_) if !waiting.has_room(peer, self.0.of_one_max) => return false,
            Heard::Said(_) => {}
            // What was said before, in a session that is over, counts no more.
            Heard::Began { .. } | Heard::Ended => {
                let over = waiting.of.remove(&peer);
                waiting.count -= over.map_or(0, |queue| queue.len());
            }
        }
        waiting.of.entry(peer).or_default().push_back(heard);
        waiting.count += 1;
        self.0.changed.notify_one();
        true
    }

    /// Waits until something was told, or some was left.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// The next thing that was told: neighbours take turns.
    #[must_use]
    pub fn pop(&self) -> Option<(NodeId, Heard)> {
        self.waiting().pop()
    }

    /// Whoever waits comes back for what is left.
    pub fn leave(&self) {
        if self.waiting().count > 0 {
            self.0.changed.notify_one();
        }
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
    /// Packets of a million that are lost on the way to it; none before it is measured.
    pub loss_ppm: Option<u32>,
    /// And on the way back.
    #[serde(default)]
    pub loss_back_ppm: Option<u32>,
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
        let began = |session| Heard::Began {
            session,
            entity: [1; 32],
        };
        for (peer, heard) in [
            (one, began(1)),
            (one, said(1)),
            (two, said(2)),
            (one, began(2)),
            (one, said(3)),
        ] {
            assert!(inbox.tell(peer, heard));
        }
        let all = [(one, began(2)), (two, said(2)), (one, said(3))];
        assert!(std::iter::from_fn(|| inbox.pop()).eq(all));
    }

    #[test]
    fn what_finds_no_room_is_refused_and_ends_beginnings_and_other_neighbours_find_some() {
        let inbox = Inbox::default();
        let say = |peer: u64| inbox.tell(NodeId(peer), Heard::Said(Vec::new()));
        let flood = |peer: u64| (0..WAITING_MAX).take_while(|_| say(peer)).count();
        assert_eq!(flood(1), WAITING_OF_ONE_MAX);
        assert!(inbox.tell(NodeId(2), Heard::Ended));
        let all: usize = (3..20).map(flood).sum();
        assert!(all < WAITING_MAX && all > WAITING_MAX - 2 * WAITING_OF_ONE_MAX);
        // However much the others say, and neighbours take turns.
        assert_eq!(flood(30), WAITING_OF_EACH);
        let mut turn = std::iter::from_fn(|| inbox.pop()).map(|(peer, _)| peer.0);
        assert!(turn.by_ref().take(4).eq([1, 2, 3, 4]));
        assert_eq!(turn.filter(|&peer| peer == 30).count(), WAITING_OF_EACH);
        assert_eq!(flood(1), WAITING_OF_ONE_MAX);
    }
}
