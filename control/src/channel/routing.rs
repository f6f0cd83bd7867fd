//! What neighbours tell each other about routes: the worker passes it on, whole and in order, or ends the session.

use super::{
    Lost,
    delivery::Outlet,
    message::Message,
    reason::Reason,
    service::{ChannelService, OUTBOX_MAX},
};
use crate::{
    discovery, nat,
    routes::{Heard, Inbox},
};
use std::collections::BTreeSet;
use virga_ebpf::header::NodeId;
use virga_transport::{Node, SessionState};

/// Where a worker tells of what neighbours say.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// None where this node learns no routes.
    inbox: Option<Inbox>,
    /// None where this node looks for no others; all peers are told of there, neighbours or not.
    pub(crate) discovery: Option<discovery::Inbox>,
    /// None where this node looks for no ways through NATs.
    pub(crate) nat: Option<nat::Inbox>,
    last_session: u64,
}

impl Routes {
    /// What the next session is called.
    pub(crate) const fn next_session(&mut self) -> u64 {
        self.last_session += 1;
        self.last_session
    }
}

/// How the link to a neighbour that there is a session with is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Smoothed, of the session.
    pub rtt_us: u64,
    /// How much is lost on the link.
    pub lost: Lost,
}

impl<O: Outlet> ChannelService<O> {
    /// Tells `routes` what neighbours say about them.
    #[must_use]
    pub fn routing(mut self, routes: Option<&Inbox>) -> Self {
        self.routes.inbox = routes.cloned();
        self
    }

    fn told(&self, peer: NodeId, heard: Heard) -> bool {
        let routes = self.routes.inbox.as_ref();
        let routes = routes.filter(|_| self.neighbours.contains(&peer));
        routes.is_none_or(|routes| routes.tell(peer, heard))
    }

    pub(crate) fn routes_began(&self, peer: NodeId) {
        let Some(session) = self.sessions.get(&peer) else {
            return;
        };
        let began = Heard::Began {
            session: session.number,
            entity: session.entity,
        };
        let _always_room = self.told(peer, began.clone());
        self.discovery_began(peer, began);
    }

    pub(crate) fn routes_ended(&self, peer: NodeId) {
        let _always_room = self.told(peer, Heard::Ended);
        self.discovery_ended(peer);
    }

    /// Peers that have become neighbours in the middle of a session, or are none any more.
    pub(crate) fn neighbours_followed(&self, before: &BTreeSet<NodeId>) {
        let Some(routes) = &self.routes.inbox else {
            return;
        };
        for &peer in before.difference(&self.neighbours) {
            let _always_room = routes.tell(peer, Heard::Ended);
        }
        for &peer in self.neighbours.difference(before) {
            if let Some(session) = self.sessions.get(&peer) {
                let (session, entity) = (session.number, session.entity);
                let _always_room = routes.tell(peer, Heard::Began { session, entity });
            }
        }
    }

    pub(crate) fn on_routes(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, items: Vec<u8>) {
        if !self.told(peer, Heard::Said(items)) {
            self.begin_anew(now_ns, node, peer);
        }
    }

    /// Something was lost, and with it the order: the next session begins with all that there is.
    fn begin_anew(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        self.reasons.add(Reason::ControlFull);
        node.close(now_ns, peer);
        // It is configured.
        let _known = node.connect(now_ns, peer);
    }

    /// Tells a neighbour something about routes, in the session that it is meant for.
    pub fn say_routes(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (peer, number): (NodeId, u64),
        items: Vec<u8>,
    ) {
        let session = self.sessions.get(&peer);
        let Some(session) = session.filter(|session| session.number == number) else {
            return;
        };
        match session.outbox.len() >= OUTBOX_MAX {
            true => self.begin_anew(now_ns, node, peer),
            false => self.tell(now_ns, node, peer, &Message::Routes(items)),
        }
    }

    /// How the links to neighbours are doing.
    #[must_use]
    pub fn measured(&self, node: &Node) -> Vec<(NodeId, Measured)> {
        let established = |status: &virga_transport::SessionStatus| {
            status.state == SessionState::Established && self.neighbours.contains(&status.peer)
        };
        let sessions = node.sessions().filter(established);
        let measured = sessions.filter_map(|status| {
            let measured = Measured {
                rtt_us: status.path.rtt_us?,
                lost: self.lost(status.peer),
            };
            Some((status.peer, measured))
        });
        measured.collect()
    }
}
