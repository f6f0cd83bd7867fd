//! A log that is on several nodes: this node's replica of it, on the thread that owns the logs.

use super::KeptError;
use crate::{
    config::{Config, Replicated},
    dispatch::Dispatch,
    replicas::{
        Group, Outcome, Replicas,
        wire::{Answer, Kind, split},
    },
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use virga_ebpf::header::NodeId;
use virga_state::{
    Finding, LogName,
    io::{clock, folder::Folder, open::OpenLog},
    replica::{Acks, Event, Group as Members, Replica, Role, Store, log_id, message::Message},
};
use virga_transport::ChannelName;

/// Submissions of one log that wait until enough replicas have them.
const PENDING_MAX: usize = 4_096;

/// How the replicas of a log stand, as this node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationStatus {
    /// What this node does: `leader`, `follower`, `candidate`, or `ended` where it takes no part.
    pub role: String,
    /// Counts leaders: what an earlier one says is not heard any more.
    pub epoch: u64,
    /// Who leads, where that is known.
    pub leader: Option<String>,
    /// Events below are at most replicas for good.
    pub committed: u64,
    /// Whether all that this node ever had and promised is there. Its copy does not count otherwise.
    pub is_whole: bool,
    /// Where this node leads: the others.
    pub copies: Vec<CopyStatus>,
    /// Submissions whose events were appended here.
    pub submissions: u64,
    /// Events of this node's log that the leader's did not have; files beside the log have them.
    pub cut_events: u64,
    /// What was not taken, by why.
    pub dropped: BTreeMap<String, u64>,
}

/// What a leader knows of another replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Which one.
    pub node: String,
    /// It has all events below for good.
    pub end: u64,
    /// Events that it has not.
    pub lag: u64,
    /// Whether it counts when events are committed: it knows what it promised, and has what the leader began with.
    pub counts: bool,
}

/// Why something was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drop {
    /// A message that does not parse.
    Malformed,
    /// A part of a message whose other parts are missing.
    Missing,
    /// A message, or a submission, of a node that has another list of replicas.
    OtherGroup,
    /// A submission while another node leads.
    Follows,
    /// A submission that found no room.
    Full,
    /// Something that the worker did not take; it is said again.
    Unsent,
    /// Something that the replica could not use.
    Trouble,
}

impl Drop {
    /// Every one there is.
    pub const ALL: [Self; 7] = [
        Self::Malformed,
        Self::Missing,
        Self::OtherGroup,
        Self::Follows,
        Self::Full,
        Self::Unsent,
        Self::Trouble,
    ];

    /// Its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Missing => "missing_part",
            Self::OtherGroup => "other_group",
            Self::Follows => "not_leader",
            Self::Full => "full",
            Self::Unsent => "unsent",
            Self::Trouble => "trouble",
        }
    }
}

/// A submission that is appended, until enough replicas have it.
struct Pending {
    /// It was appended by the leader of that epoch.
    epoch: u64,
    end: u64,
    acks: Acks,
    to: NodeId,
    number: u64,
}

/// This node's replica of a log.
pub(super) struct Seat {
    replica: Replica<Folder>,
    channel: ChannelName,
    group: Group,
    /// What is to be answered.
    pending: Vec<Pending>,
    submissions: u64,
    cut_events: u64,
    dropped: [u64; Drop::ALL.len()],
    /// What it complained of last.
    trouble: String,
}

impl Seat {
    /// Of a log that was opened with the id that [`id`] gives.
    pub(super) fn open(
        config: &Config,
        (replicated, name): (&Replicated, &LogName),
        open: &mut OpenLog,
    ) -> Result<Self, KeptError> {
        let failed = |source| KeptError::Open {
            channel: replicated.channel.clone(),
            folder: config.node.logs.clone(),
            source,
        };
        let nodes: Vec<NodeId> = replicated.replicas.iter().map(|r| r.node).collect();
        let members = Members::new(config.node.id, &nodes);
        let members = members.map_err(|source| KeptError::Group {
            channel: replicated.channel.clone(),
            source,
        })?;
        let group = Replicas::new(config, 0).group(&replicated.channel).cloned();
        let group = group.ok_or_else(|| KeptError::Group {
            channel: replicated.channel.clone(),
            source: virga_state::replica::NoGroup::Stranger,
        })?;
        let findings: Vec<Finding> = open.findings.clone();
        let mut store = Store {
            log: &mut open.log,
            files: &mut open.files,
        };
        let replica = Replica::open(
            clock::now_ns(),
            members,
            (name, id(config, name)),
            &findings,
            super::random()?,
            &mut store,
        );
        Ok(Self {
            replica: replica.map_err(failed)?,
            channel: replicated.channel.clone(),
            group,
            pending: Vec::new(),
            submissions: 0,
            cut_events: 0,
            dropped: [0; Drop::ALL.len()],
            trouble: String::new(),
        })
    }

    pub(super) const fn channel(&self) -> &ChannelName {
        &self.channel
    }

    pub(super) const fn group(&self) -> &Group {
        &self.group
    }

    pub(super) fn drop_one(&mut self, why: Drop) {
        let place = Drop::ALL.iter().position(|known| *known == why);
        if let Some(count) = place.and_then(|place| self.dropped.get_mut(place)) {
            *count += 1;
        }
    }

    /// What another replica said.
    pub(super) fn handle(&mut self, from: NodeId, message: &[u8], open: &mut OpenLog) {
        match Message::parse(message) {
            Ok(message) => {
                let mut store = Store {
                    log: &mut open.log,
                    files: &mut open.files,
                };
                let now_ns = clock::now_ns();
                self.replica.handle(now_ns, from, message, &mut store);
            }
            Err(_) => self.drop_one(Drop::Malformed),
        }
    }

    /// Goes on after the log's actions were performed.
    pub(super) fn go_on(&mut self, open: &mut OpenLog) {
        let mut store = Store {
            log: &mut open.log,
            files: &mut open.files,
        };
        let now_ns = clock::now_ns();
        self.replica.handle_log(now_ns, &mut store);
        if self.replica.poll_timeout() <= now_ns {
            self.replica.handle_timeout(now_ns, &mut store);
        }
    }

    /// In how many nanoseconds there is something to do without anybody saying anything.
    pub(super) fn due_in_ns(&self) -> u64 {
        let due_ns = self.replica.poll_timeout();
        due_ns.saturating_sub(clock::now_ns())
    }

    /// Why nothing can be appended here now, if so.
    pub(super) fn refusal(&mut self, open: &OpenLog) -> Option<Answer> {
        let refused = match self.replica.role() {
            Role::Leader => {
                let is_room = self.replica.takes_events(&open.log);
                match is_room && self.pending.len() < PENDING_MAX {
                    true => return None,
                    false => (Drop::Full, Answer::Full),
                }
            }
            Role::Follower(leader) => (Drop::Follows, Answer::Follows(leader)),
            Role::Candidate | Role::Ended => (Drop::Follows, Answer::Follows(None)),
        };
        self.drop_one(refused.0);
        Some(refused.1)
    }

    /// Answers once enough replicas have what was appended last.
    pub(super) fn wait(&mut self, open: &OpenLog, acks: Acks, (to, number): (NodeId, u64)) {
        self.submissions += 1;
        self.pending.push(Pending {
            epoch: self.replica.promise().epoch,
            end: open.log.end(),
            acks,
            to,
            number,
        });
    }

    /// Answers whoever can be answered, says what is to be said, and tells what happened.
    pub(super) fn speak(&mut self, open: &OpenLog, replicas: &Replicas, dispatch: &Dispatch) {
        while let Some(event) = self.replica.poll() {
            self.tell(event, replicas);
        }
        while let Some((to, message)) = self.replica.poll_transmit() {
            let number = replicas.next_number();
            let parts = split(Kind::Between, &self.channel, number, &message.encode());
            if !dispatch.send_parts(to, parts) {
                self.drop_one(Drop::Unsent);
            }
        }
        let leads = self.replica.role() == Role::Leader;
        let epoch = self.replica.promise().epoch;
        for pending in std::mem::take(&mut self.pending) {
            let acknowledged = self.replica.acknowledged(&open.log, pending.acks);
            let answer = match leads && pending.epoch == epoch {
                true if acknowledged < pending.end => {
                    self.pending.push(pending);
                    continue;
                }
                true => Answer::Kept,
                false => Answer::Unknown,
            };
            self.answer((pending.to, pending.number), answer, replicas, dispatch);
        }
    }

    pub(super) fn answer(
        &mut self,
        (to, number): (NodeId, u64),
        answer: Answer,
        replicas: &Replicas,
        dispatch: &Dispatch,
    ) {
        if to == replicas.own() {
            return replicas.answered(to, number, Outcome::Answered(answer));
        }
        let parts = split(Kind::Answer, &self.channel, number, &answer.encode());
        if !dispatch.send_parts(to, parts) {
            self.drop_one(Drop::Unsent);
        }
    }

    fn tell(&mut self, event: Event, replicas: &Replicas) {
        let channel = &self.channel;
        match event {
            Event::Leads { epoch } => {
                tracing::info!(%channel, epoch, "leads the channel's log");
                replicas.led_by(channel, replicas.own());
            }
            Event::Follows { epoch, leader } => {
                if let Some(node) = leader {
                    let leader = self.group.name(node);
                    tracing::info!(%channel, epoch, %leader, "follows in the channel's log");
                    replicas.led_by(channel, node);
                }
            }
            Event::CutOff(cut) => {
                tracing::warn!(%channel, from = cut.from, to = cut.to, kept = ?cut.kept,
                    "events that were never acknowledged at quorum differ from the leader's: taken out of the log, and kept aside in its folder");
                self.cut_events += cut.to - cut.from;
            }
            Event::OtherGroup(node) => {
                self.drop_one(Drop::OtherGroup);
                let node = self.group.name(node);
                self.complain(format!(
                    "{node} has another list of replicas: give the channel the same `replicas` on all nodes"
                ));
            }
            Event::Trouble(what) => {
                self.drop_one(Drop::Trouble);
                self.complain(what);
            }
            Event::Ended(why) => {
                tracing::error!(%channel, %why, "takes no part in the channel's log until the node is started again");
                self.trouble = why;
            }
        }
    }

    /// Once for each thing.
    fn complain(&mut self, what: String) {
        if self.trouble != what {
            tracing::warn!(channel = %self.channel, "{what}");
            self.trouble = what;
        }
    }

    /// Events below can be read: no replica will ever cut them off.
    pub(super) fn readable(&self, open: &OpenLog) -> u64 {
        self.replica.committed().min(open.log.readable())
    }

    /// Why it takes no part any more, if so.
    pub(super) fn failure(&self) -> Option<&str> {
        (self.replica.role() == Role::Ended).then_some(&self.trouble)
    }

    pub(super) fn status(&self, open: &OpenLog, own: NodeId) -> ReplicationStatus {
        let (role, leader) = match self.replica.role() {
            Role::Leader => ("leader", Some(own)),
            Role::Follower(leader) => ("follower", leader),
            Role::Candidate => ("candidate", None),
            Role::Ended => ("ended", None),
        };
        let end = open.log.end();
        let copies = self.replica.copies().map(|(node, durable, counts)| {
            let node = self.group.name(node);
            CopyStatus {
                node,
                end: durable,
                lag: end.saturating_sub(durable),
                counts,
            }
        });
        let dropped = Drop::ALL.iter().zip(self.dropped);
        ReplicationStatus {
            role: role.to_owned(),
            epoch: self.replica.promise().epoch,
            leader: leader.map(|node| self.group.name(node)),
            committed: self.replica.committed(),
            is_whole: self.replica.promise().is_whole,
            copies: copies.collect(),
            submissions: self.submissions,
            cut_events: self.cut_events,
            dropped: dropped
                .map(|(why, count)| (why.name().to_owned(), count))
                .collect(),
        }
    }
}

/// The id that all replicas of a log have.
pub(super) fn id(config: &Config, name: &LogName) -> virga_state::format::LogId {
    log_id(config.node.network.as_bytes(), name)
}
