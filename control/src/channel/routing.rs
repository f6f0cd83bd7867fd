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
use virga_nat::wire::{FOLLOWS, FOLLOWS_TOO};
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
    /// Neighbours that were reached through NATs: each end takes the other for one in its own time.
    pub(crate) punched: BTreeSet<NodeId>,
    /// Peers that have said in their session that they take this node for a neighbour, since it does the same.
    followers: BTreeSet<NodeId>,
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

    /// Whether a peer and this node are neighbours at both ends: of one that was reached through NATs, once it has said so.
    fn is_beside(&self, peer: NodeId) -> bool {
        let routes = &self.routes;
        let is_said = !routes.punched.contains(&peer) || routes.followers.contains(&peer);
        self.neighbours.contains(&peer) && is_said
    }

    /// All that are.
    pub(crate) fn beside(&self) -> BTreeSet<NodeId> {
        let neighbours = self.neighbours.iter();
        neighbours
            .copied()
            .filter(|&peer| self.is_beside(peer))
            .collect()
    }

    fn began(&self, peer: NodeId) -> Option<Heard> {
        let session = self.sessions.get(&peer)?;
        Some(Heard::Began {
            session: session.number,
            entity: session.entity,
        })
    }

    pub(crate) fn routes_began(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        let Some(began) = self.began(peer) else {
            return;
        };
        if self.is_beside(peer) {
            let _always_room = self.told(peer, began.clone());
        }
        self.discovery_began(peer, began);
        self.say_follows(now_ns, node, peer);
    }

    pub(crate) fn routes_ended(&mut self, peer: NodeId) {
        self.routes.followers.remove(&peer);
        let _always_room = self.told(peer, Heard::Ended);
        self.discovery_ended(peer);
    }

    /// A neighbour that looks for ways through NATs as well waits for this.
    fn say_follows(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        if self.routes.nat.is_some() && self.neighbours.contains(&peer) {
            let follows = Message::Nat(FOLLOWS.to_vec());
            self.tell(now_ns, node, peer, &follows);
        }
    }

    /// A peer takes this node for a neighbour from now on: what it says about routes and link tags comes after this. One
    /// that did so before has ceased to meanwhile, and knows nothing any more of what it was told.
    pub(crate) fn on_follows(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        if self.routes.punched.contains(&peer) {
            self.routes.followers.remove(&peer);
        }
        self.on_follows_too(peer);
        if self.routes.nat.is_some() && self.neighbours.contains(&peer) {
            let too = Message::Nat(FOLLOWS_TOO.to_vec());
            self.tell(now_ns, node, peer, &too);
        }
    }

    /// A peer takes this node for a neighbour, and knows that this one does the same.
    pub(crate) fn on_follows_too(&mut self, peer: NodeId) {
        let was_beside = self.is_beside(peer);
        self.routes.followers.insert(peer);
        if !was_beside && self.is_beside(peer) {
            self.begin_beside(peer);
        }
    }

    fn begin_beside(&self, peer: NodeId) {
        let Some(began) = self.began(peer) else {
            return;
        };
        let _always_room = self.told(peer, began);
        if self.routes.punched.contains(&peer) {
            self.heard.session_began(peer);
        }
    }

    /// Peers that have become neighbours in the middle of a session, or are none any more.
    pub(crate) fn neighbours_followed(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (neighbours, beside): (&BTreeSet<NodeId>, &BTreeSet<NodeId>),
    ) {
        for &peer in neighbours.difference(&self.neighbours) {
            // It says so anew before it is one again: this node was none to it meanwhile.
            self.routes.followers.remove(&peer);
        }
        let new = self.neighbours.difference(neighbours);
        for peer in new.copied().collect::<Vec<_>>() {
            self.say_follows(now_ns, node, peer);
        }
        let now = self.beside();
        if let Some(routes) = &self.routes.inbox {
            for &peer in beside.difference(&now) {
                let _always_room = routes.tell(peer, Heard::Ended);
            }
        }
        for &peer in now.difference(beside) {
            self.begin_beside(peer);
        }
    }

    pub(crate) fn on_routes(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, items: Vec<u8>) {
        if self.routes.inbox.is_some() && !self.is_beside(peer) {
            return self.reasons.add(Reason::RoutesStranger);
        }
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
