//! One log on several nodes, of which most are enough: what is acknowledged at quorum survives the loss of any
//! minority.
//!
//! One node leads and appends; the others fetch its batches and append them as they are, so that the logs are
//! the same byte by byte, chain included (the logs share one id). This is Viewstamped Replication Revisited
//! (Liskov and Cowling, MIT-CSAIL-TR-2012-021, section 4) with Raft's votes (Ongaro and Ousterhout 2014,
//! section 5.2) in place of its round of views, and pull in place of push.
//!
//! **Epochs.** Each has at most one leader: a node that hears of none asks all others for the next epoch, and leads
//! when most of them grant it. A vote is on disk before it is given, and whoever votes hears nothing of earlier
//! epochs from then on: a leader of an earlier epoch gets no answer from most, so it commits nothing more. That is
//! the fence.
//!
//! **Settled.** A follower whose log has all that the leader's had when it began to lead, and nothing else, is
//! settled in that epoch; it notes that on disk. Only whole and settled replicas count when events are committed, and a vote
//! goes only to whoever is settled in no earlier epoch than the voter and, within the same, has a log as long.
//! Then every leader has every committed event: let e be the epoch that it was committed in. Most were settled in
//! e and had it on disk; one of these voted for the leader of a later epoch. Its log still had the event: it is
//! only cut where it differs from a later leader's log, which by induction has it. If the leader was settled
//! behind e, it has had the whole begin of a later leader's log; if in e itself, its log is a part of a log that
//! has the event, and at least as long as the voter's.
//!
//! **Divergence.** A follower names its log's end and the chain there. Where the leader has another chain, or no
//! batch that ends there, the follower seeks, by halving, the last end that both have, cuts its log there and
//! keeps what it cut off aside, with its offsets reported. Nothing below what is known as committed is ever cut:
//! a log that differs there takes no part until somebody has looked at it.
//!
//! **Whole.** A replica whose folder was emptied, or whose log or promise is damaged, has forgotten what it
//! promised. It is not whole: its copy does not count, and its vote only together with those of all others. It is whole again when it
//! has all that is committed, and the leader has since heard from all replicas in its own epoch, so that no
//! promise of a later one is forgotten.
//!
//! **Trial.** Before a replica asks for votes, it asks whether it would get them, and changes nothing by that. Whoever
//! has just heard of a leader would not vote: a replica that was cut off does not depose a leader that works
//! (Ongaro 2014, section 9.6).
//!
//! **Lives.** A replica that was started again may have lost what it said before; `life` has what is still on
//! its way from then not heard.
//!
//! [`promise`] is what is kept on disk, [`message`] what is said; `serve` reads a leader's log, `cut` cuts a
//! follower's, `vote`, `lead` and `follow` are the three roles.

mod cut;
mod follow;
mod group;
mod lead;
mod life;
pub mod message;
pub mod promise;
mod serve;
#[cfg(test)]
mod tests;
mod vote;

pub use cut::CutOff;
pub use group::{Acks, Group, NoGroup, group_hash, log_id};

use crate::{
    Durability, Finding, Log, LogName,
    catalog::OpenError,
    disk::Disk,
    files::Files,
    format::LogId,
    limits::{EPOCHS_AHEAD_MAX, LEADERLESS_NS_MIN, NOTE_COMMITTED_EVERY},
    recover,
};
use follow::Following;
use lead::Leading;
use life::Lives;
use message::{Body, Message};
use promise::{Promise, PromiseFile};
use std::{collections::VecDeque, io};
use virga_ebpf::header::NodeId;
use vote::{Asking, Round};

/// The log of a replica, and its files.
#[derive(Debug)]
pub struct Store<'a, D: Disk> {
    /// What is appended to.
    pub log: &'a mut Log,
    /// Where it is.
    pub files: &'a mut Files<D>,
}

/// What a replica tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It leads, and takes events.
    Leads {
        /// Since this epoch.
        epoch: u64,
    },
    /// It follows, and takes none; who leads, where that is known.
    Follows {
        /// In this epoch.
        epoch: u64,
        /// Who leads it.
        leader: Option<NodeId>,
    },
    /// Its log differed from the leader's: this is not in it any more.
    CutOff(CutOff),
    /// The other replica has another list of replicas; nothing of it is heard.
    OtherGroup(NodeId),
    /// Something of the log cannot be read, or is not taken.
    Trouble(String),
    /// It takes no part any more until it is started again.
    Ended(String),
}

/// What a replica does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes events.
    Leader,
    /// It copies this one's log; none: it waits for one.
    Follower(Option<NodeId>),
    /// It asks for votes.
    Candidate,
    /// It takes no part.
    Ended,
}

#[derive(Debug)]
enum Part<D: Disk> {
    Follows(Following),
    Asks(Asking),
    Leads(Box<Leading<D>>),
    Ended,
}

/// See the module.
#[derive(Debug)]
pub struct Replica<D: Disk> {
    group: Group,
    lives: Lives,
    name: LogName,
    promise: Promise,
    file: PromiseFile<D>,
    part: Part<D>,
    committed: u64,
    /// Events below are on disk at all replicas, as far as a leader has heard.
    everywhere: u64,
    /// When somebody else is to be asked for votes, or asked again.
    due_ns: u64,
    /// When whoever leads this epoch was heard last.
    heard_ns: Option<u64>,
    random: u64,
    out: VecDeque<(NodeId, Message)>,
    events: VecDeque<Event>,
}

impl<D: Disk> Replica<D> {
    /// Of a log that was opened with [`log_id`]; `seed` is a number that no replica and no earlier life of this one
    /// had.
    ///
    /// # Errors
    /// When the system refuses something, the log is another than the group's, or compaction has taken events of it.
    pub fn open(
        now_ns: u64,
        group: Group,
        (name, id): (&LogName, LogId),
        findings: &[Finding],
        seed: u64,
        store: &mut Store<'_, D>,
    ) -> Result<Self, OpenError> {
        if *store.log.id() != id {
            let fault = crate::format::Fault::OtherLog;
            let file = crate::format::MANIFEST_NAME.to_owned();
            return Err(OpenError::Fault { file, fault });
        }
        if store.log.options().durability != Durability::Synced {
            let what = "a log on several nodes is kept as `synced`: votes rest on what is on disk";
            let error = io::Error::new(io::ErrorKind::InvalidInput, what);
            return Err(OpenError::io("its durability")(error));
        }
        // Before anything is mended: what cannot be served would be cut.
        let compacted = serve::compacted(store.log, store.files.disk());
        if let Some(segment) = compacted.map_err(OpenError::io("the log"))? {
            return Err(OpenError::Compacted(segment));
        }
        let (file, promise) = PromiseFile::open(store.files.disk(), id)?;
        let mut replica = Self {
            lives: Lives::new(seed, &group.others),
            group,
            name: name.clone(),
            committed: promise.committed,
            promise,
            file,
            part: Part::Follows(Following::default()),
            everywhere: 0,
            due_ns: 0,
            heard_ns: None,
            random: seed | 1,
            out: VecDeque::new(),
            events: VecDeque::new(),
        };
        replica.put_off(now_ns);
        replica.mend(findings, store)?;
        replica.note_ends(store)?;
        for node in replica.group.others.clone() {
            replica.ask_life(node);
        }
        Ok(replica)
    }

    /// A log that lost anything that it had acknowledged ends where that was, and is not whole.
    fn mend(&mut self, findings: &[Finding], store: &mut Store<'_, D>) -> Result<(), OpenError> {
        let damaged = findings.iter().find_map(|finding| match finding {
            Finding::Damaged { from, .. } => Some(*from),
            _ => None,
        });
        let is_lost = |finding: &Finding| match finding {
            Finding::Damaged { .. } | Finding::Missing { .. } => true,
            Finding::Manifest { is_lost, .. } => *is_lost,
            Finding::Header { .. } | Finding::Torn { .. } => false,
        };
        let is_short = self.promise.committed > store.log.end();
        match is_short || findings.iter().any(is_lost) {
            true => self.end_at(damaged, store),
            false => Ok(()),
        }
    }

    /// Counts as one that has forgotten what it promised; where the log is damaged, it ends there.
    fn end_at(&mut self, damaged: Option<u64>, store: &mut Store<'_, D>) -> Result<(), OpenError> {
        (self.promise.is_whole, self.promise.settled) = (false, 0);
        let end = damaged.unwrap_or(store.log.end());
        self.committed = self.committed.min(end);
        self.promise.committed = self.committed;
        let kept = self.file.keep(&self.promise);
        kept.map_err(OpenError::io(promise::PROMISE_NAME))?;
        damaged.map_or(Ok(()), |offset| self.cut(offset, store))
    }

    /// Has the log know where its batches end; where one cannot be read, it ends there.
    fn note_ends(&mut self, store: &mut Store<'_, D>) -> Result<(), OpenError> {
        let mut last = u64::MAX;
        loop {
            let ends = serve::ends(store.log, store.files.disk(), self.committed);
            let (ends, damage) = ends.map_err(OpenError::io("the log"))?;
            let Some(damage) = damage else {
                store.log.note_ends(ends);
                store.log.retain_from(self.committed);
                return Ok(());
            };
            let first = store.log.first();
            let offset = ends.back().map_or(first, |end| end.offset);
            if offset >= last {
                return Err(OpenError::io("the log")(damage));
            }
            last = offset;
            self.events.push_back(Event::Trouble(damage.to_string()));
            self.end_at(Some(offset), store)?;
        }
    }

    /// Ends the log at a batch's begin, and opens it again there.
    fn cut(&mut self, offset: u64, store: &mut Store<'_, D>) -> Result<(), OpenError> {
        while store.files.step(store.log, 0) {}
        let cut = cut::cut(store, offset)?;
        let options = *store.log.options();
        let (state, _findings) = recover(store.files.disk(), &self.name, *store.log.id())?;
        *store.log = Log::new(state, options);
        if cut.from < cut.to {
            self.events.push_back(Event::CutOff(cut));
        }
        Ok(())
    }

    /// What another replica said.
    pub fn handle(
        &mut self,
        now_ns: u64,
        from: NodeId,
        message: Message,
        store: &mut Store<'_, D>,
    ) {
        if self.has_ended(store) || !self.group.others.contains(&from) {
            return;
        }
        if message.group != self.group.hash {
            self.events.push_back(Event::OtherGroup(from));
            return;
        }
        if !self.is_of_this_life(from, &message) {
            return;
        }
        if message.epoch.saturating_sub(self.promise.epoch) > EPOCHS_AHEAD_MAX {
            let what = format!("{from} speaks of epoch {}, which cannot be", message.epoch);
            self.events.push_back(Event::Trouble(what));
            return;
        }
        let is_ask = matches!(message.body, Body::Ask { .. });
        if message.epoch < self.promise.epoch {
            if !matches!(message.body, Body::Newer) {
                self.say(from, Body::Newer);
            }
            return;
        }
        if message.epoch > self.promise.epoch && !is_ask {
            self.enter(now_ns, message.epoch, None);
        }
        match message.body {
            Body::Ask { settled, end } => {
                self.handle_ask(now_ns, from, message.epoch, (settled, end), store);
            }
            Body::Vote { granted, is_whole } => {
                let vote = granted.then_some(is_whole);
                self.handle_vote(now_ns, from, (Round::Vote, vote), store);
            }
            Body::Try { settled, end } => self.handle_try(now_ns, from, (settled, end), store),
            Body::Would { granted, is_whole } => {
                let vote = granted.then_some(is_whole);
                self.handle_vote(now_ns, from, (Round::Trial, vote), store);
            }
            Body::Fetch(fetch) => self.handle_fetch(now_ns, from, fetch, store),
            Body::Newer => {}
            body => self.handle_leader(now_ns, from, body, store),
        }
        self.has_ended(store);
    }

    /// When [`Replica::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> u64 {
        match &self.part {
            Part::Follows(following) => self.due_ns.min(following.due_ns()),
            Part::Asks(_) => self.due_ns,
            Part::Leads(leading) => leading.due_ns,
            Part::Ended => u64::MAX,
        }
    }

    /// Does what is due by now.
    pub fn handle_timeout(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        if self.has_ended(store) {
            return;
        }
        match &self.part {
            Part::Leads(leading) if now_ns >= leading.due_ns => self.lead_on(now_ns, store),
            Part::Follows(_) | Part::Asks(_) if now_ns >= self.due_ns => {
                self.try_out(now_ns, store)
            }
            Part::Follows(_) => self.follow_on(now_ns, store),
            Part::Leads(_) | Part::Asks(_) | Part::Ended => {}
        }
        self.has_ended(store);
    }

    /// To be called whenever the log was appended to, or actions of it were performed.
    pub fn handle_log(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        if self.has_ended(store) {
            return;
        }
        match &self.part {
            Part::Leads(_) => self.serve_waiting(store),
            Part::Follows(_) => self.follow_on(now_ns, store),
            Part::Asks(_) | Part::Ended => {}
        }
        self.has_ended(store);
    }

    /// What is to be sent to whom.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, Message)> {
        self.out.pop_front()
    }

    /// What happened.
    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What it does now.
    #[must_use]
    pub fn role(&self) -> Role {
        match &self.part {
            Part::Leads(_) => Role::Leader,
            Part::Follows(following) => Role::Follower(following.leader()),
            Part::Asks(_) => Role::Candidate,
            Part::Ended => Role::Ended,
        }
    }

    /// What it has promised.
    #[must_use]
    pub const fn promise(&self) -> &Promise {
        &self.promise
    }

    /// Events below are at most replicas for good; later ones may still be cut off.
    #[must_use]
    pub const fn committed(&self) -> u64 {
        self.committed
    }

    /// Where it leads: events below are acknowledged to whoever published them, by what that one waits for.
    #[must_use]
    pub fn acknowledged(&self, log: &Log, acks: Acks) -> u64 {
        match acks {
            Acks::Leader => log.acknowledged(),
            Acks::Quorum => self.committed,
            Acks::All => self.everywhere.min(self.committed),
        }
    }

    /// Whether the log may be appended to by this node now.
    #[must_use]
    pub fn takes_events(&self, log: &Log) -> bool {
        let is_room = log.ends().len() < crate::limits::UNCOMMITTED_BATCHES_MAX;
        matches!(self.part, Part::Leads(_)) && is_room && !log.is_closing()
    }

    /// Whether it takes no part any more; so where its log failed.
    fn has_ended(&mut self, store: &Store<'_, D>) -> bool {
        if matches!(self.part, Part::Ended) {
            return true;
        }
        if let Some(failure) = store.log.failure() {
            self.end(failure.to_owned());
            return true;
        }
        false
    }

    fn end(&mut self, why: String) {
        self.events.push_back(Event::Ended(why));
        self.part = Part::Ended;
        self.out.clear();
    }

    /// Has the promise on disk; where that cannot be, this replica says nothing more.
    fn keep(&mut self) -> bool {
        self.promise.committed = self.committed;
        match self.file.keep(&self.promise) {
            Ok(()) => true,
            Err(error) => {
                let file = promise::PROMISE_NAME;
                self.end(format!("{file}: {error}: nothing is promised any more"));
                false
            }
        }
    }

    /// Hears nothing of earlier epochs from now on.
    fn enter(&mut self, now_ns: u64, epoch: u64, voted: Option<NodeId>) -> bool {
        let is_newer = epoch > self.promise.epoch;
        if is_newer {
            self.heard_ns = None;
        }
        (self.promise.epoch, self.promise.voted) = (epoch, voted);
        if is_newer {
            if matches!(self.part, Part::Leads(_)) {
                self.put_off(now_ns);
            }
            self.follow(None);
        }
        self.keep()
    }

    fn follow(&mut self, leader: Option<NodeId>) {
        let epoch = self.promise.epoch;
        self.part = Part::Follows(Following::new(leader));
        self.events.push_back(Event::Follows { epoch, leader });
    }

    /// Votes are not asked for before another while.
    fn put_off(&mut self, now_ns: u64) {
        // Replicas shall not ask at the same time.
        let wait_ns = LEADERLESS_NS_MIN + self.draw() % LEADERLESS_NS_MIN;
        self.due_ns = now_ns.saturating_add(wait_ns);
    }

    /// Xorshift.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn say_all(&mut self, body: &Body) {
        for node in self.group.others.clone() {
            self.say(node, body.clone());
        }
    }

    /// Takes over that so much is committed.
    fn commit(&mut self, committed: u64, log: &mut Log) {
        if committed <= self.committed {
            return;
        }
        self.committed = committed;
        log.forget_ends(committed);
        log.retain_from(committed);
        if committed >= self.promise.committed + NOTE_COMMITTED_EVERY {
            self.keep();
        }
    }
}
