//! Ways through NATs: what is heard of them on its way from the workers, and what is shown.

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use virga_ebpf::header::NodeId;

/// What waits to be followed.
const WAITING_MAX: usize = 1_024;
/// Of one peer.
const WAITING_OF_ONE_MAX: usize = 32;

/// A session, as a worker has it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// With whom.
    pub peer: NodeId,
    /// Its id at this end.
    pub session: u64,
    /// Where the peer's packets come from, where they come straight.
    pub address: Option<SocketAddr>,
}

/// What a worker tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A peer says something.
    Said(Vec<u8>),
    /// It has answered from there.
    Reached(SocketAddr),
}

/// What waits to be followed. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Inbox(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    waiting: Mutex<VecDeque<(NodeId, Heard)>>,
    changed: Notify,
}

impl Inbox {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<(NodeId, Heard)>> {
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, peer: NodeId, heard: Heard) -> bool {
        let mut waiting = self.waiting();
        let own = waiting.iter().filter(|(from, _)| *from == peer).count();
        let has_room = waiting.len() < WAITING_MAX && own < WAITING_OF_ONE_MAX;
        if has_room {
            waiting.push_back((peer, heard));
            self.0.changed.notify_one();
        }
        has_room
    }

    /// A peer says something; whether there was room.
    #[must_use]
    pub fn said(&self, peer: NodeId, said: Vec<u8>) -> bool {
        self.tell(peer, Heard::Said(said))
    }

    /// A peer has answered from an address. Where there is no room it is asked again.
    pub fn reached(&self, peer: NodeId, address: SocketAddr) {
        let _asked_again = self.tell(peer, Heard::Reached(address));
    }

    /// Waits until something was told.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// All that was.
    #[must_use]
    pub fn take(&self) -> VecDeque<(NodeId, Heard)> {
        std::mem::take(&mut *self.waiting())
    }
}

/// What is known of the NAT that this node is behind, and of ways through others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatStatus {
    /// Whether this node looks for ways through NATs.
    pub is_on: bool,
    /// `open` (there is none), `cone`, `symmetric` or `unknown`.
    pub class: String,
    /// What says so.
    pub why: String,
    /// Where others see this node.
    pub addresses: Vec<String>,
    /// Meetings of two neighbours that this node has arranged.
    pub arranged: u64,
    /// Tries to send to a peer straight that succeeded.
    pub reached: u64,
    /// And that failed.
    pub failed: u64,
    /// What was said of it and not followed, by reason.
    pub refused: BTreeMap<String, u64>,
    /// The port of the router's that leads to this node.
    #[serde(default)]
    pub port_mapping: PortMappingStatus,
}

/// A port of the router in front of this node that leads to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMappingStatus {
    /// Whether there is to be one.
    pub is_on: bool,
    /// How the router was asked: `PCP`, `NAT-PMP` or `UPnP`; none: there is no mapping.
    pub protocol: Option<String>,
    /// Where others send to.
    pub external: Option<String>,
    /// Seconds until the router forgets it, unless it is renewed; none: it has no end.
    pub lease_left_s: Option<u64>,
    /// What becomes of it, or why there is none.
    pub why: String,
    /// Mappings that were made, by protocol.
    pub made: BTreeMap<String, u64>,
    /// And renewed.
    pub renewed: BTreeMap<String, u64>,
    /// Requests in vain.
    pub failed: BTreeMap<String, u64>,
    /// Ports that the router gave to another host while they were this node's.
    #[serde(default)]
    pub taken: u64,
    /// Panics of what keeps the mapping, which was begun again each time.
    #[serde(default)]
    pub panics: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_peer_says_takes_so_much_room_and_no_more() {
        let inbox = Inbox::default();
        let say = |peer| inbox.said(NodeId(peer), Vec::new());
        assert_eq!((0..99).filter(|_| say(1)).count(), WAITING_OF_ONE_MAX);
        assert!(say(2));
        for peer in 0..2_000 {
            inbox.reached(NodeId(peer), SocketAddr::from(([10, 0, 0, 1], 1)));
        }
        assert_eq!(inbox.take().len(), WAITING_MAX);
        assert!(say(1));
    }
}
