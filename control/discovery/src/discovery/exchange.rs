//! What sessions' peers tell each other of third nodes.

use super::{Authority, Discovery, Now};
use crate::{
    book::{Known, Stage},
    limits::{
        ANSWERS_MAX, ASK_NS, ASK_SOON_NS, ASKED_MAX, FANOUT, NEWS_A_TICK, NEWS_MAX, RECORDS_MAX,
    },
    reason::Reason,
    record::Record,
    source::{Origin, Teller},
    wire::{Ask, Message},
};
use virga_ebpf::header::NodeId;

impl<A: Authority> Discovery<A> {
    pub(super) fn on_records(&mut self, now: Now, from: NodeId, records: Vec<Record>) {
        let mut is_new = false;
        for record in records {
            let is_own = record.node() == from;
            let Some(session) = self.sessions.get_mut(&from) else {
                return;
            };
            if !session.records.take(now.ns) {
                return self.reasons.add(Reason::Busy);
            }
            if is_own && !std::mem::replace(&mut session.has_spoken, true) {
                self.swim.join(now, from);
                self.follow_swim(now);
            }
            if !is_own && !self.setup.exchanges {
                continue;
            }
            let entity_key = record.claim().entity_key;
            let before = self.book.get(&entity_key).map_or(0, Known::sequence);
            let origin = match self.setup.configured.contains_key(&record.node()) {
                true => Origin::Configured,
                false => Origin::Exchange,
            };
            let done = self.learn(now, origin, record, (None, Teller::Peer(from)));
            // Whoever is asked after another one tells the same again.
            if done != Err(Reason::Old) {
                self.count(done);
            }
            is_new |= self.book.get(&entity_key).map_or(0, Known::sequence) != before;
        }
        if is_new {
            // There may be more.
            self.ask_ns = self.ask_ns.min(now.ns + self.random.jittered(ASK_SOON_NS));
        }
        self.meet_configured(now, from);
    }

    /// A peer that the configuration has is not dialled here: its session proves it.
    fn meet_configured(&mut self, now: Now, from: NodeId) {
        let Some(session) = self.sessions.get(&from) else {
            return;
        };
        if !self.setup.configured.contains_key(&from) {
            return;
        }
        let known = self.book.get_mut(&session.entity_key);
        if let Some(known) = known.filter(|known| known.node == from)
            && known.stage != Stage::Proven
        {
            known.stage = Stage::Proven;
            known.proven_ns = Some(now.ns);
            self.announce(from);
        }
    }

    /// The records that an asker lacks, of nodes that this one has had a session with. Of the asker itself another
    /// life may have said more.
    pub(super) fn on_ask(&mut self, now: Now, from: NodeId, ask: &Ask) {
        if !self.setup.exchanges {
            return;
        }
        let proven = self.book.values().filter(|known| known.proven_ns.is_some());
        let told = proven.filter(|known| !known.is_torn());
        let records = told.filter_map(|known| known.record.as_ref());
        let mut lacking = Vec::new();
        for record in records.chain([&self.own]) {
            let node = record.node();
            let place = ask.known.binary_search_by_key(&node, |(known, _)| *known);
            let known = place.ok().and_then(|at| ask.known.get(at));
            let is_older = known.map(|(_, sequence)| *sequence < record.claim().sequence);
            let is_asked = (ask.from..=ask.to).contains(&node.0) && record.counts(now.unix_s);
            if is_asked && is_older.unwrap_or(node != from) {
                lacking.push(record.clone());
            }
        }
        let most = ANSWERS_MAX * RECORDS_MAX;
        if lacking.len() > most {
            // The asker may take none of the first ones, each time.
            let first = self.random.below(lacking.len());
            lacking.rotate_left(first);
            lacking.truncate(most);
        }
        for part in lacking.chunks(RECORDS_MAX) {
            self.say(from, &Message::Records(part.to_vec()));
        }
    }

    /// A node's record is to be passed on.
    pub(super) fn announce(&mut self, node: NodeId) {
        if self.news.len() < NEWS_MAX && !self.news.contains(&node) {
            self.news.push_back(node);
        }
    }

    /// Tells some peers what is new; about this node itself, all of them.
    pub(super) fn pass_on(&mut self, now: Now) {
        for _ in 0..NEWS_A_TICK {
            let Some(node) = self.news.pop_front() else {
                return;
            };
            let is_own = node == self.own.node();
            let record = match is_own {
                true => Some(self.own.clone()),
                false if !self.setup.exchanges => None,
                false => self.proven_record(node),
            };
            let Some(record) = record.filter(|record| record.counts(now.unix_s)) else {
                continue;
            };
            let speaking = self.sessions.iter();
            let speaking = speaking.filter(|&(&peer, session)| session.has_spoken && peer != node);
            let peers: Vec<NodeId> = speaking.map(|(&peer, _)| peer).collect();
            let peers = match is_own {
                true => peers,
                false => self.random.some(peers, FANOUT),
            };
            for peer in peers {
                self.say(peer, &Message::Records(vec![record.clone()]));
            }
        }
    }

    fn proven_record(&self, node: NodeId) -> Option<Record> {
        let mut all = self.book.values().filter(|known| known.node == node);
        let known = all.find(|known| known.proven_ns.is_some() && !known.is_torn())?;
        known.record.clone()
    }

    /// Asks one peer, any of them, for what this node lacks: often at first and while there is something new.
    pub(super) fn ask(&mut self, now: Now) {
        if now.ns < self.ask_ns || !self.setup.exchanges {
            return;
        }
        self.ask_ns = now.ns + self.random.jittered(ASK_NS);
        let speaking = self
            .sessions
            .iter()
            .filter(|(_, session)| session.has_spoken);
        let peers: Vec<NodeId> = speaking.map(|(&peer, _)| peer).collect();
        let Some(peer) = self.random.some(peers, 1).pop() else {
            self.ask_ns = now.ns + self.random.jittered(ASK_SOON_NS);
            return;
        };
        let records = self.book.values().filter_map(|known| known.record.as_ref());
        let records = records.chain([&self.own]);
        let said = records.map(|record| (record.node(), record.claim().sequence));
        let mut known: Vec<(NodeId, u64)> = said.collect();
        known.sort_unstable();
        known.dedup_by_key(|(node, _)| *node);
        let from = self.ask_from;
        known.retain(|(node, _)| node.0 >= from);
        let to = known
            .get(ASKED_MAX)
            .map_or(u64::MAX, |(next, _)| next.0 - 1);
        known.truncate(ASKED_MAX);
        self.ask_from = to.wrapping_add(1);
        self.say(peer, &Message::Ask(Ask { from, to, known }));
    }
}
