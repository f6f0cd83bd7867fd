//! What peers tell each other of other nodes, on its way between the workers and the task that looks for them.

use super::{delivery::Outlet, message::Message, reason::Reason, service::ChannelService};
use crate::{discovery::Inbox, routes::Heard};
use bytes::Bytes;
use std::net::SocketAddr;
use virga_ebpf::header::NodeId;
use virga_transport::Node;

impl<O: Outlet> ChannelService<O> {
    /// Tells `discovery` what peers, and those that introduce themselves, say.
    #[must_use]
    pub fn discovering(mut self, discovery: Option<&Inbox>) -> Self {
        self.routes.discovery = discovery.cloned();
        self
    }

    pub(crate) fn discovery_began(&self, peer: NodeId, began: Heard) {
        if let Some(inbox) = &self.routes.discovery {
            let _always_room = inbox.sessions.tell(peer, began);
        }
    }

    pub(crate) fn discovery_ended(&self, peer: NodeId) {
        if let Some(inbox) = &self.routes.discovery {
            let _always_room = inbox.sessions.tell(peer, Heard::Ended);
        }
    }

    pub(crate) fn on_discovery(&mut self, peer: NodeId, said: Vec<u8>) {
        let inbox = self.routes.discovery.as_ref();
        if !inbox.is_some_and(|inbox| inbox.sessions.tell(peer, Heard::Said(said))) {
            self.reasons.add(Reason::DiscoveryRefused);
        }
    }

    pub(crate) fn on_introduced(&mut self, source: SocketAddr, words: Bytes) {
        let inbox = self.routes.discovery.as_ref();
        if !inbox.is_some_and(|inbox| inbox.introduce(source, words)) {
            self.reasons.add(Reason::DiscoveryRefused);
        }
    }

    /// Says something in the sessions of this worker's peers, where there are such, and introduces this node to
    /// others of them.
    pub fn say_discovery(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        said: &[(NodeId, Vec<u8>)],
        (introduced, words): (&[NodeId], &[u8]),
    ) {
        for (peer, message) in said {
            self.tell(now_ns, node, *peer, &Message::Discovery(message.clone()));
        }
        for &peer in introduced.iter().filter(|peer| self.share.owns(**peer)) {
            // It may be no peer any more.
            let _gone = node.introduce(peer, words);
        }
    }
}
