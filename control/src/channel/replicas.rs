//! What nodes tell each other about logs that are on several of them: the worker looks whether the sender may, and
//! passes it on to the thread that owns the logs.

use super::{
    delivery::Outlet, entry::Index, message::Message, reason::Reason, service::ChannelService,
};
use crate::{
    replicas::{
        Outcome, Replicas,
        wire::{Answer, Kind, Part, split},
    },
    rights::Operation,
};
use virga_ebpf::header::NodeId;
use virga_transport::Node;

/// Control messages towards one peer that may wait before those about logs find no room: a message of the largest
/// size has fewer parts.
pub(super) const WAITING_MAX: usize = 512;

impl<O: Outlet> ChannelService<O> {
    /// Tells `replicas` what peers say about logs that are on several nodes.
    #[must_use]
    pub fn replicating(mut self, replicas: &Replicas) -> Self {
        self.replicas = replicas.clone();
        self
    }

    pub(crate) fn on_replica(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, part: Part) {
        let Some(entity) = self.sessions.get(&peer).map(|session| session.entity) else {
            return;
        };
        if matches!(part.kind, Kind::Read | Kind::Given) {
            return self.on_reading(now_ns, node, peer, part);
        }
        let group = self.replicas.group(&part.channel);
        let (is_member, is_of_it) = group.map_or((false, false), |g| (g.is_member, g.has(peer)));
        let (channel, number, kind) = (part.channel.clone(), part.number, part.kind);
        let refused = match kind {
            Kind::Answer if is_of_it => {
                if let Some(answer) = Answer::parse(&part.bytes) {
                    let outcome = Outcome::Answered(answer);
                    return self.replicas.answered(peer, number, outcome);
                }
                Some((Reason::ControlMalformed, Answer::Full))
            }
            Kind::Between if is_member && is_of_it => None,
            // Of a message whose begin was refused nothing more is taken.
            Kind::Submission if is_member && part.at > 0 => None,
            Kind::Submission if is_member => {
                let may = self.may_submit(now_ns, peer, &part);
                may.and_then(|index| self.rate(now_ns, peer, (index, &part)))
                    .err()
            }
            _ => {
                let words = "that node holds no copy of the channel's log".to_owned();
                Some((Reason::ReplicaStranger, Answer::Refused(words)))
            }
        };
        let refused = refused.or_else(|| {
            let has_room = self.replicas.hear(peer, entity, part);
            (!has_room).then_some((Reason::ReplicaFull, Answer::Full))
        });
        let Some((reason, answer)) = refused else {
            return;
        };
        self.reasons.add(reason);
        if kind == Kind::Submission {
            let parts = split(Kind::Answer, &channel, number, &answer.encode());
            self.say_replica(now_ns, node, peer, parts);
        }
    }

    /// Whether a peer may publish on the channel, and to this node.
    fn may_submit(
        &self,
        now_ns: u64,
        peer: NodeId,
        part: &Part,
    ) -> Result<Index, (Reason, Answer)> {
        let refused = |reason: Reason| {
            let words = format!("its entity may not publish there: {}", reason.meaning());
            (reason, Answer::Refused(words))
        };
        let index = self.names.get(&part.channel).copied();
        let index = index.ok_or_else(|| refused(Reason::StreamUnknownChannel))?;
        let entry = &self.entries[index];
        let session = self.sessions.get(&peer);
        let session = session.ok_or_else(|| refused(Reason::PeerGone))?;
        if !entry.publishers.contains(&session.entity) {
            return Err(refused(Reason::StreamPublisher));
        }
        if !entry.crosses(session.subnet, self.subnets.own) {
            return Err(refused(Reason::SubscribeSubnet));
        }
        let rights = &self.rights;
        let right = rights.peer_may(now_ns, entry, session, Operation::Publish);
        right.map_err(|refusal| refused(refusal.fault().into()))?;
        Ok(index)
    }

    /// Whether the channel's rate leaves it room: publishing waits, here as there.
    fn rate(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        (index, part): (Index, &Part),
    ) -> Result<(), (Reason, Answer)> {
        let config = self.entries[index].config.as_ref();
        let Some(rate) = config.and_then(|config| config.max_rate_pps) else {
            return Ok(());
        };
        let costs = self.costs.entry(peer).or_default();
        let rated = costs.submitted.entry(index).or_default();
        if rated.wait_ns(now_ns) > 0 {
            return Err((Reason::SubmissionRate, Answer::Full));
        }
        rated.note(now_ns, part.total as usize, rate);
        Ok(())
    }

    /// Says something to a peer about a log; what is lost is said again by those who need it.
    pub(crate) fn say_replica(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        parts: Vec<Part>,
    ) {
        let session = self.sessions.get(&peer);
        let waiting = session.map_or(usize::MAX, |session| session.outbox.len());
        if waiting >= WAITING_MAX {
            if session.is_some() {
                self.reasons.add(Reason::ReplicaFull);
            }
            let unsent = parts.iter().filter(|part| part.kind == Kind::Submission);
            for part in unsent {
                self.replicas.answered(peer, part.number, Outcome::Unsent);
            }
            return;
        }
        for part in parts {
            self.tell(now_ns, node, peer, &Message::Replica(part));
        }
    }
}
