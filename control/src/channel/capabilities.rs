//! What is said about this node's entity and about peers: taken in, shown to peers, and told to people.

use super::{delivery::Outlet, message::Message, reason::Reason, service::ChannelService};
use crate::{
    admissions::{Piece, Publication},
    capability::{Statement, Statements, statement::By},
};
use thiserror::Error;
use virga_ebpf::header::NodeId;
use virga_transport::Node;

/// Statements about one entity that a node has at a time, one an issuer and its own announcement.
pub const STATEMENTS_MAX: usize = 16;
/// Why a statement is of no use to this node.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// It is about somebody else.
    #[error("it is about another entity, {}", crate::hex::encode(.0))]
    Subject([u8; 32]),
    /// A later one is held already.
    #[error("a later one by the same signer is held already; this one has version {0}")]
    Old(u64),
    /// There are as many as there may be.
    #[error("the node holds {STATEMENTS_MAX} statements about its entity already")]
    Full,
}

impl<O: Outlet> ChannelService<O> {
    /// Holds one more statement about this node's entity, and shows it to all peers.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn take_statement(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        statement: &Statement,
    ) -> Result<(), Unusable> {
        let claim = statement.claim();
        if *self.rights.revocations.current(&claim.subject) != self.entity {
            return Err(Unusable::Subject(claim.subject));
        }
        let now_s = self.rights.now_s(now_ns);
        let own = &mut self.rights.own_statements;
        own.expire(now_s);
        if own.has(statement) {
            let is_known = own.iter().any(|one| one == statement);
            return match is_known {
                true => Ok(()),
                false => Err(Unusable::Old(claim.version)),
            };
        }
        if own.len() >= STATEMENTS_MAX && !own.replaces(statement) {
            return Err(Unusable::Full);
        }
        own.learn(statement.clone());
        // A later statement may also say less than the one before it.
        self.review(now_ns, node);
        self.admit_locals(now_ns);
        let peers: Vec<NodeId> = self.sessions.keys().copied().collect();
        for peer in peers {
            let bytes = statement.as_bytes().to_vec();
            self.tell(now_ns, node, peer, &Message::Statement(bytes));
            self.ask_all(now_ns, node, peer);
        }
        Ok(())
    }

    /// Takes in what a peer shows.
    pub(crate) fn on_statement(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        bytes: &[u8],
    ) {
        match self.learn_statement(now_ns, peer, bytes) {
            Err(reason) => self.reasons.add(reason),
            Ok(false) => {}
            Ok(true) => {
                self.hear(
                    peer,
                    Publication::Evidence(Piece::Statement(bytes.to_vec())),
                );
                // A later statement may also say less than the one before it.
                self.review(now_ns, node);
                if let Some(session) = self.sessions.get_mut(&peer)
                    && std::mem::take(&mut session.shown.is_refused)
                {
                    // What it could not send before it may send now, if it is asked to.
                    self.ask_all(now_ns, node, peer);
                }
            }
        }
    }

    /// Whether rights may have changed.
    fn learn_statement(&mut self, now_ns: u64, peer: NodeId, bytes: &[u8]) -> Result<bool, Reason> {
        let now_s = self.rights.now_s(now_ns);
        let (entries, revocations) = (&self.entries, &self.rights.revocations);
        let Some(session) = self.sessions.get_mut(&peer) else {
            return Ok(false);
        };
        let shown = &mut session.shown;
        if !self.costs.entry(peer).or_default().looks.take(now_ns) {
            return Err(Reason::CapabilitiesFull);
        }
        let read = Statement::parse(bytes).map_err(|_| Reason::CapabilityMalformed)?;
        let claimed = read.claimed();
        if *revocations.current(&claimed.claim().subject) != session.entity {
            return Err(Reason::CapabilitySubject);
        }
        if let By::Issuer(issuer) = claimed.by()
            && !entries
                .iter()
                .any(|e| e.policy.trusts_statements_of(&issuer))
        {
            return Err(Reason::CapabilityIssuer);
        }
        if claimed.claim().not_after_s <= now_s {
            return Err(Reason::CapabilityExpired);
        }
        shown.statements.expire(now_s);
        if shown.statements.has(claimed) {
            return Ok(false);
        }
        if shown.statements.len() >= STATEMENTS_MAX && !shown.statements.replaces(claimed) {
            return Err(Reason::CapabilitiesFull);
        }
        let statement = read.verify().map_err(|_| Reason::CapabilitySignature)?;
        let is_vouched = statement.by() != By::Itself;
        shown.statements.learn(statement);
        Ok(is_vouched)
    }

    /// What is known of this node's entity, and of those that it has a session with.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        let peers = self.sessions.values().map(|s| &s.shown.statements);
        let all = [&self.rights.own_statements].into_iter().chain(peers);
        all.flat_map(Statements::iter)
    }
}
