//! Where this node and its peers are: configured, and vouched for where issuers are named.

use super::{
    delivery::Outlet, explain::Given, message::Message, reason::Reason, service::ChannelService,
};
use crate::{
    config::{Config, PeerSubnet},
    membership::{MEMBERSHIPS_MAX, Membership, Memberships, Shown},
};
use std::collections::BTreeMap;
use thiserror::Error;
use virga_ebpf::header::{NodeId, Subnet};
use virga_transport::Node;

/// Where this node and its peers are.
#[derive(Clone, Debug, Default)]
pub struct Subnets {
    /// This node's subnet.
    pub own: Subnet,
    /// Those of its peers; of one that is not here, the root.
    pub peers: BTreeMap<NodeId, Subnet>,
    /// Who vouches for them; where there is nobody, nobody is asked.
    pub issuers: Vec<[u8; 32]>,
    /// Whether neighbours tell each other what subnets admit.
    pub has_gateways: bool,
    /// What there is to show peers.
    pub memberships: Memberships,
    /// Where it is told what peers have shown.
    pub shown: Shown,
}

/// Why a membership is of no use to this node.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Useless {
    /// It is about somebody else.
    #[error("it is another entity's, {}", crate::hex::encode(.0))]
    Subject([u8; 32]),
    /// A later one is held already.
    #[error("a later one by the same issuer is held already; this one has version {0}")]
    Old(u64),
    /// There are as many as there may be.
    #[error("the node holds {MEMBERSHIPS_MAX} memberships already")]
    Full,
}

impl Subnets {
    /// As they are configured; `shown` is told what peers show.
    #[must_use]
    pub fn configured(config: &Config, shown: &Shown) -> Self {
        let peers = config.peers.iter();
        Self {
            own: config.node.subnet,
            peers: peers
                .filter_map(|peer| Some((peer.id, peer.subnet?.subnet)))
                .collect(),
            issuers: config.subnet_issuers.iter().map(|one| one.key).collect(),
            has_gateways: !config.subnet_gateways.is_empty(),
            memberships: config.node.memberships.clone(),
            shown: shown.clone(),
        }
    }

    /// Goes by where nodes are now, and by who vouches for them.
    pub(crate) fn follow(&mut self, now: &Self) {
        self.peers.clone_from(&now.peers);
        self.issuers.clone_from(&now.issuers);
    }

    pub(crate) fn of(&self, peer: NodeId) -> Subnet {
        self.peers.get(&peer).copied().unwrap_or_default()
    }
}

impl<O: Outlet> ChannelService<O> {
    /// Lets peers have the channels that go to their subnets, if they are vouched for there.
    #[must_use]
    pub fn among(mut self, subnets: Subnets) -> Self {
        self.rights.subnet_issuers.clone_from(&subnets.issuers);
        self.rights.own_memberships.clone_from(&subnets.memberships);
        self.subnets = subnets;
        self
    }

    /// Holds one more membership of this node's entity, and shows it to all peers.
    ///
    /// # Errors
    /// [`Useless`].
    pub fn take_membership(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        membership: &Membership,
    ) -> Result<(), Useless> {
        let claim = membership.claim();
        if *self.rights.revocations.current(&claim.subject) != self.entity {
            return Err(Useless::Subject(claim.subject));
        }
        let now_s = self.rights.now_s(now_ns);
        let own = &mut self.rights.own_memberships;
        own.expire(now_s);
        if own.has(membership) {
            return match own.iter().any(|one| one == membership) {
                true => Ok(()),
                false => Err(Useless::Old(claim.version)),
            };
        }
        if own.len() >= MEMBERSHIPS_MAX && !own.replaces(membership) {
            return Err(Useless::Full);
        }
        own.learn(membership.clone());
        let peers: Vec<NodeId> = self.sessions.keys().copied().collect();
        for peer in peers {
            let bytes = membership.as_bytes().to_vec();
            self.tell(now_ns, node, peer, &Message::Membership(bytes));
            self.ask_all(now_ns, node, peer);
        }
        Ok(())
    }

    /// What a membership of this node's entity is good for: it has to say where this node is configured.
    #[must_use]
    pub fn given_by_membership(&self, now_ns: u64, membership: &Membership) -> Given {
        let asked = PeerSubnet {
            subnet: self.subnets.own,
            mask: u32::MAX,
        };
        // Whom the peers trust is theirs to say.
        let issuers = [*membership.issuer()];
        let trust = crate::membership::Trust {
            issuers: &issuers,
            ..self.rights.trust(now_ns)
        };
        let useless = membership.counts(asked, &trust).err();
        Given {
            useless: useless.map(|why| why.to_string()),
            ..Given::default()
        }
    }

    /// Takes in what a peer shows.
    pub(crate) fn on_membership(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        bytes: &[u8],
    ) {
        match self.learn_membership(now_ns, peer, bytes) {
            Err(reason) => self.reasons.add(reason),
            Ok(None) => {}
            Ok(Some(membership)) => {
                self.subnets.shown.tell(membership);
                // A later one may also end what the one before it gave.
                self.review(now_ns, node);
                self.ask_all(now_ns, node, peer);
            }
        }
    }

    /// The membership, if it is new.
    fn learn_membership(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        bytes: &[u8],
    ) -> Result<Option<Membership>, Reason> {
        let now_s = self.rights.now_s(now_ns);
        let (issuers, session) = (&self.rights.subnet_issuers, self.sessions.get_mut(&peer));
        // Where nobody is asked, it says nothing.
        let Some(session) = session.filter(|_| !issuers.is_empty()) else {
            return Ok(None);
        };
        let shown = &mut session.shown;
        if !self.costs.entry(peer).or_default().looks.take(now_ns) {
            return Err(Reason::MembershipsFull);
        }
        let read = Membership::parse(bytes).map_err(|_| Reason::MembershipMalformed)?;
        let claimed = read.claimed();
        if *self.rights.revocations.current(&claimed.claim().subject) != session.entity {
            return Err(Reason::MembershipSubject);
        }
        if !issuers.contains(claimed.issuer()) {
            return Err(Reason::MembershipIssuer);
        }
        if claimed.claim().not_after_s <= now_s {
            return Err(Reason::MembershipExpired);
        }
        shown.memberships.expire(now_s);
        if shown.memberships.has(claimed) {
            return Ok(None);
        }
        if shown.memberships.len() >= MEMBERSHIPS_MAX && !shown.memberships.replaces(claimed) {
            return Err(Reason::MembershipsFull);
        }
        let membership = read.verify().map_err(|_| Reason::MembershipSignature)?;
        shown.memberships.learn(membership.clone());
        Ok(Some(membership))
    }
}
