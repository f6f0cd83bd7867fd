//! What peers tell each other of ways through NATs, on its way between the workers and the task that looks for them.

use super::{delivery::Outlet, message::Message, reason::Reason, service::ChannelService};
use crate::nat::{Inbox, Seen};
use std::net::SocketAddr;
use virga_ebpf::header::NodeId;
use virga_nat::wire::{FOLLOWS, FOLLOWS_TOO};
use virga_transport::{Node, SessionState};

impl<O: Outlet> ChannelService<O> {
    /// Tells `nat` what peers say, and from where they answer.
    #[must_use]
    pub fn crossing(mut self, nat: Option<&Inbox>) -> Self {
        self.routes.nat = nat.cloned();
        self
    }

    pub(crate) fn on_nat(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, said: Vec<u8>) {
        if said == FOLLOWS {
            return self.on_follows(now_ns, node, peer);
        }
        if said == FOLLOWS_TOO {
            return self.on_follows_too(peer);
        }
        let inbox = self.routes.nat.as_ref();
        if !inbox.is_some_and(|inbox| inbox.said(peer, said)) {
            self.reasons.add(Reason::NatRefused);
        }
    }

    /// A peer has answered from an address that it was asked about: by whoever carries it, or looks for ways to it.
    pub(crate) fn on_reached(&self, peer: NodeId, address: SocketAddr) {
        self.moves.tell_reached(peer, address);
        if let Some(inbox) = &self.routes.nat {
            inbox.reached(peer, address);
        }
    }

    /// Says something in the sessions of this worker's peers, where there are such.
    pub fn say_nat(&mut self, now_ns: u64, node: &mut Node, said: &[(NodeId, Vec<u8>)]) {
        for (peer, message) in said {
            if self.sessions.contains_key(peer) {
                self.tell(now_ns, node, *peer, &Message::Nat(message.clone()));
            }
        }
    }

    /// The sessions of this worker, and where each peer's packets come from.
    #[must_use]
    pub fn seen(&self, node: &Node) -> Vec<Seen> {
        let established = |status: &virga_transport::SessionStatus| {
            status.state == SessionState::Established && self.sessions.contains_key(&status.peer)
        };
        let sessions = node.sessions().filter(established);
        let seen = sessions.map(|status| Seen {
            peer: status.peer,
            session: status.session.0,
            address: status.path.address,
        });
        seen.collect()
    }
}
