//! Link tags: sessions with the neighbours that they are agreed on with, and what is said in them.

use super::{delivery::Outlet, message::Message, service::ChannelService};
use crate::tags::{Heard, Said};
use virga_ebpf::header::NodeId;
use virga_transport::Node;

impl<O: Outlet> ChannelService<O> {
    /// Tells `heard` what neighbours say of link tags.
    #[must_use]
    pub fn tagging(mut self, heard: &Heard) -> Self {
        self.heard = heard.clone();
        self
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
