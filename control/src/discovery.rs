//! Nodes that the configuration does not name: what is heard of them on its way from the workers, the places where
//! they are looked for, and what is shown of them.
//!
//! - [`Inbox`]: what peers and strangers say.
//! - [`lists`]: a file that lists nodes.
//! - [`lan`]: what is announced in the LAN.

pub mod lan;
pub mod lists;

use crate::routes;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;

/// Messages of one peer that wait: what it may say at once, twice.
const SAID_MAX: usize = 512;
/// Introductions that wait.
const INTRODUCTIONS_MAX: usize = 256;

/// What waits to be followed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    /// What peers say, in their sessions.
    pub sessions: routes::Inbox,
    introduced: Arc<Introduced>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            sessions: routes::Inbox::with_room(SAID_MAX),
            introduced: Arc::default(),
        }
    }
}

#[derive(Debug, Default)]
struct Introduced {
    waiting: Mutex<VecDeque<(SocketAddr, Bytes)>>,
    changed: Notify,
}

impl Inbox {
    /// Somebody says who it is; whether there was room.
    #[must_use]
    pub fn introduce(&self, source: SocketAddr, words: Bytes) -> bool {
        let waiting = self.introduced.waiting.lock();
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        let has_room = waiting.len() < INTRODUCTIONS_MAX;
        if has_room {
            waiting.push_back((source, words));
            self.introduced.changed.notify_one();
        }
        has_room
    }

    /// Waits until somebody has said who it is.
    pub async fn introduced(&self) {
        self.introduced.changed.notified().await;
    }

    /// All that have.
    #[must_use]
    pub fn take_introduced(&self) -> VecDeque<(SocketAddr, Bytes)> {
        let waiting = self.introduced.waiting.lock();
        std::mem::take(&mut *waiting.unwrap_or_else(PoisonError::into_inner))
    }
}

/// The nodes that were looked for, and who of the mesh's members lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoveryStatus {
    /// Whether this node looks for others.
    pub is_on: bool,
    /// Each node that was found.
    pub nodes: Vec<FoundStatus>,
    /// Each other member.
    pub members: Vec<MemberStatus>,
    /// 0: this node is in time; higher: it gives others more time, because it was slow itself.
    pub slowness: u32,
    /// Times that this node had to say that it lives.
    pub refuted: u64,
    /// What was said about members, and could not be true or was about none.
    pub ignored: u64,
    /// Messages that were sent in sessions.
    pub messages: u64,
    /// Introductions that were sent.
    pub introductions: u64,
    /// What was found or said and not taken, by reason.
    pub refused: BTreeMap<String, u64>,
    /// The LANs that it is in.
    pub lan: lan::LanStatus,
}

/// A node that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundStatus {
    /// What it calls itself.
    pub name: String,
    /// Its id, in hex.
    pub id: String,
    /// Where it was found first: `seed`, `file`, `exchange`, `introduction`, `lan`, `configured`.
    pub origin: String,
    /// `waiting`, `dialling`, `proven` (there is a session) or `lost`.
    pub stage: String,
    /// Where it is tried, or was reached.
    pub address: Option<String>,
    /// Whether another node that runs has its keys: both are refused.
    pub is_twin: bool,
}

/// A member of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Its id, in hex.
    pub id: String,
    /// `alive`, `suspect` or `dead`.
    pub state: String,
    /// Seconds since it is so.
    pub since_s: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Heard;
    use virga_ebpf::header::NodeId;

    #[test]
    fn what_one_peer_says_takes_so_much_room_and_no_more() {
        let inbox = Inbox::default();
        let say = |peer| inbox.sessions.tell(NodeId(peer), Heard::Said(Vec::new()));
        assert_eq!((0..2 * SAID_MAX).filter(|_| say(1)).count(), SAID_MAX);
        assert!(say(2));
    }

    #[test]
    fn a_flood_of_introductions_takes_so_much_room_and_no_more() {
        let inbox = Inbox::default();
        let introduce = |n: u16| {
            let source = SocketAddr::from(([10, 0, 0, 1], n));
            inbox.introduce(source, Bytes::from_static(b"hello"))
        };
        assert_eq!(
            (1..2_000).filter(|&n| introduce(n)).count(),
            INTRODUCTIONS_MAX
        );
        assert_eq!(inbox.take_introduced().len(), INTRODUCTIONS_MAX);
        assert!(introduce(1));
    }
}
