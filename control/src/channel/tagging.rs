//! Links: sessions with the neighbours that link tags are agreed on with, and what is said in them; and with
//! those whose links are watched.

use super::{delivery::Outlet, message::Message, service::ChannelService};
use crate::{
    links::Links,
    moves::Moves,
    tags::{Heard, Said},
};
use std::collections::BTreeSet;
use virga_ebpf::header::NodeId;
use virga_transport::Node;

impl<O: Outlet> ChannelService<O> {
    /// Tells `heard` what neighbours say of link tags.
    #[must_use]
    pub fn tagging(mut self, heard: &Heard) -> Self {
        self.heard = heard.clone();
        self
    }

    /// Tells `moves` where neighbours are.
    #[must_use]
    pub fn telling(mut self, moves: &Moves) -> Self {
        self.moves = moves.clone();
        self
    }

    /// Tells `links` which of them are dead.
    #[must_use]
    pub fn finding(mut self, links: &Links) -> Self {
        self.links = links.clone();
        self
    }

    /// Has the link to each neighbour watched, in a session that is kept up, unless the configuration says
    /// that none is, or this node does not speak for its entity.
    pub(crate) fn watch_links(&mut self, now_ns: u64, node: &mut Node) {
        let none = BTreeSet::new();
        let watched = match self.absence() {
            None => &self.neighbours,
            Some(_) => &none,
        };
        node.watch_links(now_ns, watched);
        self.kept_up.extend(node.links().map(|link| link.peer));
        if node.links().next().is_some() {
            self.losses.begin(now_ns);
        }
    }

    /// Tells a neighbour something about link tags; where there is no session, the next one begins with it.
    pub fn say(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, said: Said) {
        self.tell(now_ns, node, peer, &Message::LinkTags(said));
    }

    /// Until keys are agreed on, a neighbour that knows this node from before drops what it sends on; and until
    /// routes are, this node leads nowhere.
    pub(crate) fn connect_kept_up(&self, now_ns: u64, node: &mut Node) {
        for &peer in &self.kept_up {
            // Every one of them is configured.
            let _known = node.connect(now_ns, peer);
        }
    }
}
