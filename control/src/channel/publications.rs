//! Between the control plane and the sessions: what nodes tell each other about evidence
//! ([`crate::admissions`]) and about what subnets admit ([`crate::filters`]).

use super::{
    delivery::Outlet, entry::Entry, message::Message, reason::Reason, service::ChannelService,
};
use crate::{
    admissions::{Inbox, Piece, Publication},
    capability::statement::By,
    rights::Operation,
};
use virga_ebpf::header::NodeId;
use virga_transport::Node;

impl<O: Outlet> ChannelService<O> {
    /// Tells `inbox` what peers say about evidence, and which sessions begin and end.
    #[must_use]
    pub fn hearing(mut self, inbox: &Inbox) -> Self {
        self.inbox = inbox.clone();
        self
    }

    /// Sends each to its peer, where this worker has a session with it.
    pub fn send_publications(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        publications: &[(NodeId, Publication)],
    ) {
        for (peer, publication) in publications {
            if self.sessions.contains_key(peer) {
                let message = Message::Publication(publication.clone());
                self.tell(now_ns, node, *peer, &message);
            }
        }
    }

    pub(crate) fn hear(&mut self, peer: NodeId, said: Publication) {
        if self.inbox.tell(peer, said).is_err() {
            self.reasons.add(Reason::PublicationsFull);
        }
    }

    /// Channels are others: what peers have shown may count now.
    pub(crate) fn hear_again(&mut self) {
        let shown = self.sessions.iter().flat_map(|(&peer, session)| {
            let shown = &session.shown;
            let tokens = shown.tokens.iter();
            let tokens = tokens.map(|token| Piece::Token(token.chain().encode()));
            let statements = shown.statements.iter();
            let vouched = statements.filter(|one| one.by() != By::Itself);
            let vouched = vouched.map(|one| Piece::Statement(one.as_bytes().to_vec()));
            tokens.chain(vouched).map(move |piece| (peer, piece))
        });
        for (peer, piece) in shown.collect::<Vec<_>>() {
            self.hear(peer, Publication::Evidence(piece));
        }
    }

    /// Whether a session with a peer is held for evidence, declared channels and subnets' filters alone, or for
    /// what vouches for its subnet.
    pub(crate) fn is_told(&self, peer: NodeId) -> bool {
        let is_asked = !self.rights.subnet_issuers.is_empty();
        let asks = |e: &Entry| {
            e.policy.asks_for_token() || e.policy.asks_for_capabilities(Operation::Publish)
        };
        let is_needed = is_asked || self.entries.iter().any(asks);
        (is_needed || self.directory.heeds || self.subnets.has_gateways)
            && self.absence().is_none()
            && self.neighbours.contains(&peer)
    }

    /// Connects to the neighbours that are to be told of evidence, if `is_due` says so.
    pub(crate) fn connect_told(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        is_due: impl Fn(NodeId) -> bool,
    ) {
        let told = self.neighbours.iter().copied();
        let told = told.filter(|&peer| self.is_told(peer) && is_due(peer));
        for peer in told.collect::<Vec<_>>() {
            // Every one of them is configured.
            let _known = node.connect(now_ns, peer);
        }
    }
}
