//! What carries each neighbour, and what was counted, as `virga status` and `virga peers` show it.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use virga_carrier::{Counters, Kind, Reason};
use virga_ebpf::header::NodeId;

/// What plain datagrams are called beside [`Kind::name`].
const UDP: &str = "udp";

/// What carries one neighbour.
#[derive(Clone, Debug)]
struct By {
    transport: &'static str,
    why: String,
    relay: Option<SocketAddr>,
}

/// The latest of each. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counters: Arc<Counters>,
    by: Mutex<BTreeMap<NodeId, By>>,
}

/// The fallback transports together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackStatus {
    /// Neighbours that are carried now, by what: `tcp`, `ws`, `wss`.
    pub carried: BTreeMap<String, u64>,
    /// Packets that were put on connections.
    pub sent: u64,
    /// Packets that came over them and were passed on.
    pub received: u64,
    /// Connections that were closed and packets that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Shown {
    fn by(&self) -> MutexGuard<'_, BTreeMap<NodeId, By>> {
        self.0.by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    pub(super) fn udp(&self, peer: NodeId, why: String) {
        let by = By {
            transport: UDP,
            why,
            relay: None,
        };
        self.by().insert(peer, by);
    }

    pub(super) fn carried(&self, peer: NodeId, kind: Kind, why: String, relay: SocketAddr) {
        let by = By {
            transport: kind.name(),
            why,
            relay: Some(relay),
        };
        self.by().insert(peer, by);
    }

    pub(super) fn forget(&self, peer: NodeId) {
        self.by().remove(&peer);
    }

    /// What carries a neighbour, and why; none where nothing but UDP could.
    #[must_use]
    pub fn of(&self, peer: NodeId) -> Option<(&'static str, String)> {
        let all = self.by();
        let by = all.get(&peer)?;
        Some((by.transport, by.why.clone()))
    }

    /// The neighbour that the workers find at a relay's address.
    #[must_use]
    pub fn at(&self, relay: SocketAddr) -> Option<NodeId> {
        let all = self.by();
        let found = all.iter().find(|(_, by)| by.relay == Some(relay));
        found.map(|(peer, _)| *peer)
    }

    /// All of it.
    #[must_use]
    pub fn status(&self) -> FallbackStatus {
        let counters = self.counters();
        let all = self.by();
        let carried = |kind: Kind| {
            let by = all.values().filter(|by| by.transport == kind.name());
            (kind.name().to_owned(), by.count() as u64)
        };
        FallbackStatus {
            carried: Kind::ALL.map(carried).into(),
            sent: counters.sent(),
            received: counters.received(),
            dropped: Reason::ALL
                .map(|reason| (reason.name().to_owned(), counters.dropped(reason)))
                .into(),
        }
    }
}
