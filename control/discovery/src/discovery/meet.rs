//! Which nodes are known, and how far this node is with each.

use super::{Authority, Discovery, Notice, Now};
use crate::{
    book::{Known, Stage},
    limits::{DIALS_MAX, FORGET_NS, RENEW_S, TELLER_SHARE, TORN_NS},
    reason::Reason,
    record::{Claim, Record},
    source::{Origin, Pinned, Teller},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};
use virga_ebpf::{hash, header::NodeId};

impl<A: Authority> Discovery<A> {
    pub(super) fn pin(&mut self, now: Now, origin: Origin, pinned: Pinned) {
        if !pinned.is_valid() || pinned.node() == self.node() {
            return;
        }
        let keys = (pinned.node(), pinned.node_key, pinned.entity_key);
        let known = self.book.entry(pinned.entity_key);
        let known = known.or_insert_with(|| Known::new(keys, &pinned.name, origin, now.ns));
        // Its keys are the operator's word, whatever somebody has said before.
        if (known.node, known.node_key) != (keys.0, keys.1) {
            self.is_changed |= known.is_adopted();
            *known = Known::new(keys, &pinned.name, origin, now.ns);
        }
        known.pinned.insert(origin, pinned.addresses);
        if let Stage::Waiting { at_ns } = &mut known.stage {
            *at_ns = now.ns;
        }
    }

    /// It is known on, as any other is, while its own word counts.
    pub(super) fn unpin(&mut self, origin: Origin, node: NodeId) {
        for known in self.book.values_mut().filter(|known| known.node == node) {
            known.pinned.remove(&origin);
        }
        self.forget_unnamed();
    }

    /// Forgets those of whom the operator says nothing more, and whose own word, if there is one, admits them no more.
    pub(super) fn forget_unnamed(&mut self) {
        let configured = &self.setup.configured;
        let is_named = |known: &Known| {
            let peer = configured.get(&known.node);
            let is_peer = peer.is_some_and(|peer| peer.entities.contains(&known.entity_key));
            let record = known.record.as_ref();
            let is_admitted = || record.is_some_and(|r| self.authority.admits(r.claim()));
            known.is_pinned() || is_peer || is_admitted()
        };
        let gone = self.book.iter().filter(|(_, known)| !is_named(known));
        for entity_key in gone.map(|(&key, _)| key).collect::<Vec<_>>() {
            self.forget(entity_key);
        }
    }

    /// Takes in what a node says of itself.
    pub(super) fn learn(
        &mut self,
        now: Now,
        origin: Origin,
        record: Record,
        (seen_at, teller): (Option<SocketAddr>, Teller),
    ) -> Result<(), Reason> {
        let entity_key = record.claim().entity_key;
        // Before any signature is looked at: most of what is said is known already.
        let known = self.book.get_mut(&entity_key);
        if let Some((known, before)) =
            known.and_then(|known| known.record.clone().map(|r| (known, r)))
            && before.node() == record.node()
            && before.claim().sequence >= record.claim().sequence
        {
            if before != record {
                return Err(Reason::Old);
            }
            // Who introduces itself is there, and is not answered unless it is dialled.
            if let (Origin::Introduction, Stage::Waiting { at_ns }) = (origin, &mut known.stage)
                && known.torn_until_ns.is_none()
            {
                *at_ns = now.ns.min(*at_ns);
            }
            return Ok(());
        }
        record.check(&self.setup.network, now.unix_s)?;
        if record.node() == self.node() || entity_key == self.setup.entity_key {
            return self.hear_of_self(now, &record);
        }
        self.has_place(&record)?;
        let is_known = self.book.contains_key(&entity_key);
        if !is_known {
            self.make_room(now, teller)?;
        }
        let keys = (record.node(), record.claim().node_key, entity_key);
        let known = self.book.entry(entity_key);
        let known = known.or_insert_with(|| {
            let mut new = Known::new(keys, &record.claim().name, origin, now.ns);
            new.teller = Some(teller);
            new
        });
        if known.is_torn() {
            return Err(Reason::Twin);
        }
        let is_news = known.record.as_ref().is_none_or(|r| is_news(r, &record));
        let (node, was_adopted) = (known.node, known.is_adopted());
        let done = renew(now, known, record, seen_at);
        let (is_adopted, is_proven) = (known.is_adopted(), known.stage == Stage::Proven);
        self.is_changed |= was_adopted != is_adopted;
        match done {
            Ok(()) if is_proven && is_news => self.announce(node),
            Err(Reason::Twin) => self.tear(now, entity_key),
            _ => {}
        }
        done
    }

    /// Whether there is anything against having sessions with such a node.
    fn has_place(&self, record: &Record) -> Result<(), Reason> {
        let (node, claim) = (record.node(), record.claim());
        if let Some(configured) = self.setup.configured.get(&node) {
            return match configured.entities.contains(&claim.entity_key) {
                true => Ok(()),
                false => Err(Reason::KeyTaken),
            };
        }
        let is_pinned = self.book.get(&claim.entity_key);
        let is_pinned = is_pinned.is_some_and(|known| known.is_pinned() && known.node == node);
        if !is_pinned && !self.authority.admits(claim) {
            return Err(Reason::Unnamed);
        }
        let mut others = self.book.values();
        let is_taken = |known: &&Known| {
            known.node == node
                && known.entity_key != claim.entity_key
                && (known.is_pinned() || known.proven_ns.is_some())
        };
        match others.find(is_taken) {
            Some(_) => Err(Reason::KeyTaken),
            None => Ok(()),
        }
    }

    /// One more may be known: or whoever has told of most that were never reached gives one up.
    fn make_room(&mut self, now: Now, teller: Teller) -> Result<(), Reason> {
        let max = self.setup.peers_max;
        let is_free = |known: &&Known| {
            let is_trusted = known.is_pinned() || known.proven_ns.is_some();
            !is_trusted && !self.setup.configured.contains_key(&known.node)
        };
        let mut told: BTreeMap<Teller, usize> = BTreeMap::new();
        for known in self.book.values().filter(is_free) {
            if let Some(teller) = known.teller {
                *told.entry(teller).or_default() += 1;
            }
        }
        let own = told.get(&teller).copied().unwrap_or(0);
        if own >= (max / TELLER_SHARE).max(1) {
            return Err(Reason::TellerFull);
        }
        let unreached: usize = told.values().sum();
        if unreached >= max {
            let loudest = told.iter().max_by_key(|&(_, count)| count);
            let loudest = loudest.filter(|&(_, &count)| count > own + 1);
            let (&loudest, _) = loudest.ok_or(Reason::Full)?;
            self.give_up(|known| known.teller == Some(loudest) && known.proven_ns.is_none())?;
        }
        let is_reached = |known: &&Known| !known.is_pinned() && known.proven_ns.is_some();
        let reached = self.book.values().filter(is_reached).count();
        if reached >= max {
            // Of those that are not there any more, the one that has been away for longest.
            let is_away = |known: &Known| {
                let is_over = matches!(known.stage, Stage::Waiting { at_ns } if at_ns > now.ns);
                !known.is_pinned() && known.proven_ns.is_some() && is_over
            };
            self.give_up(is_away)?;
        }
        Ok(())
    }

    /// Forgets the one of those that was seen longest ago.
    fn give_up(&mut self, is_meant: impl Fn(&Known) -> bool) -> Result<(), Reason> {
        let meant = self.book.iter().filter(|(_, known)| is_meant(known));
        let first = meant.min_by_key(|(_, known)| (known.proven_ns, known.introduce_ns));
        let entity_key = *first.ok_or(Reason::Full)?.0;
        self.forget(entity_key);
        Ok(())
    }

    pub(super) fn forget(&mut self, entity_key: [u8; 32]) {
        if let Some(known) = self.book.remove(&entity_key) {
            self.is_changed |= known.is_adopted();
            self.told.remove(&known.node);
            if !self.sessions.contains_key(&known.node) {
                self.swim.forget(known.node);
            }
        }
    }

    /// Somebody says something under this node's own keys.
    fn hear_of_self(&mut self, now: Now, record: &Record) -> Result<(), Reason> {
        let (own, said) = (self.own.claim(), record.claim());
        if (said.node_key, said.entity_key) != (own.node_key, own.entity_key) {
            return Err(Reason::KeyTaken);
        }
        if said.instance == own.instance || said.sequence < own.sequence {
            return Ok(());
        }
        // An earlier life whose clock was ahead is outdone once. A life that goes on after that is lived now.
        let before = self.rival.replace((said.instance, said.sequence));
        let is_alive = before.is_some_and(|(instance, sequence)| {
            instance == said.instance && said.sequence > sequence
        });
        self.renew(now, said.sequence.saturating_add(1));
        if !is_alive {
            return Ok(());
        }
        let node = self.node();
        if self.told.insert(node) {
            self.notice(Notice::Twins { node, is_own: true });
        }
        Err(Reason::Twin)
    }

    /// Two nodes have these keys: nobody has sessions with either, for some time.
    fn tear(&mut self, now: Now, entity_key: [u8; 32]) {
        let Some(known) = self.book.get_mut(&entity_key) else {
            return;
        };
        known.torn_until_ns = Some(now.ns + TORN_NS);
        known.life_before = None;
        known.stage = Stage::Waiting {
            at_ns: now.ns + TORN_NS,
        };
        let node = known.node;
        self.is_changed = true;
        // Anybody may claim a node's key: whoever else does may be its holder.
        if self
            .book
            .values()
            .filter(|known| known.node == node)
            .count()
            == 1
        {
            self.swim.forget(node);
        }
        self.notice(Notice::Twins {
            node,
            is_own: false,
        });
    }

    /// A session with a node has begun: its keys are proven.
    pub(super) fn reach(&mut self, now: Now, node: NodeId) {
        let Some(known) = self.dialled_mut(node) else {
            return;
        };
        let is_new = known.proven_ns.is_none();
        known.stage = Stage::Proven;
        known.proven_ns = Some(now.ns);
        known.failures = 0;
        let (name, origin, entity_key) = (known.name.clone(), known.origin, known.entity_key);
        if is_new {
            self.notice(Notice::Reached { node, name, origin });
        }
        // Whoever else has claimed the node's key has lied.
        let liars = self.book.values();
        let liars = liars.filter(|known| known.node == node && known.entity_key != entity_key);
        for liar in liars.map(|known| known.entity_key).collect::<Vec<_>>() {
            self.reasons.add(Reason::KeyTaken);
            self.forget(liar);
        }
        self.announce(node);
    }

    /// What is not said again counts no more; nodes that there was a session with are tried for a day.
    pub(super) fn expire(&mut self, now: Now) {
        let mut gone = Vec::new();
        for (&entity_key, known) in &mut self.book {
            if known.torn_until_ns.is_some_and(|until| until <= now.ns) {
                known.torn_until_ns = None;
            }
            let counts = known.record.as_ref().is_none_or(|r| r.counts(now.unix_s));
            let is_reached = known.proven_ns.is_some();
            if !counts && !is_reached {
                known.record = None;
            }
            let is_waiting = matches!(known.stage, Stage::Waiting { .. });
            let last_ns = known.proven_ns.unwrap_or(0);
            let is_over = match is_reached {
                true => is_waiting && now.ns.saturating_sub(last_ns) > FORGET_NS,
                false => known.record.is_none(),
            };
            if is_over && !known.is_pinned() {
                gone.push(entity_key);
            }
        }
        for entity_key in gone {
            self.forget(entity_key);
        }
    }

    /// Dials that are over, and nodes that did not come back.
    pub(super) fn follow_dials(&mut self, now: Now) {
        let mut gone = Vec::new();
        for (&entity_key, known) in &mut self.book {
            let (Stage::Dialling { until_ns } | Stage::Lost { until_ns }) = known.stage else {
                continue;
            };
            if now.ns < until_ns || self.setup.configured.contains_key(&known.node) {
                continue;
            }
            self.is_changed = true;
            if !known.failed(now.ns, &mut self.random) {
                gone.push(entity_key);
            }
        }
        for entity_key in gone {
            self.forget(entity_key);
        }
    }

    /// Dials those that are due, the ones that the operator named first; so many at a time.
    pub(super) fn begin_dials(&mut self, now: Now) {
        let is_dialled = |known: &&Known| matches!(known.stage, Stage::Dialling { .. });
        let mut room = DIALS_MAX.saturating_sub(self.book.values().filter(is_dialled).count());
        let configured = &self.setup.configured;
        let mut due: Vec<(bool, u64, [u8; 32])> = Vec::new();
        for (&entity_key, known) in &self.book {
            let Stage::Waiting { at_ns } = known.stage else {
                continue;
            };
            if at_ns <= now.ns && !known.is_torn() && !configured.contains_key(&known.node) {
                due.push((!known.is_pinned(), at_ns, entity_key));
            }
        }
        due.sort_unstable();
        let in_use = |known: &&Known| !matches!(known.stage, Stage::Waiting { .. });
        let used = self.book.values().filter(in_use);
        let (mut addresses, mut nodes): (BTreeSet<SocketAddr>, BTreeSet<NodeId>) = (
            used.clone().filter_map(|known| known.address).collect(),
            used.map(|known| known.node).collect(),
        );
        addresses.extend(configured.values().filter_map(|one| one.address));
        let adopted = nodes.len();
        let most = self.setup.peers_max.saturating_sub(adopted);
        room = room.min(most);
        for (_, _, entity_key) in due {
            if room == 0 {
                return;
            }
            let is_ipv4 = self.setup.is_ipv4;
            let Some(known) = self.book.get_mut(&entity_key) else {
                continue;
            };
            let mut all = known.addresses();
            all.retain(|address| address.is_ipv4() == is_ipv4);
            let mut free = all.clone();
            free.retain(|address| !addresses.contains(address));
            let is_elsewhere = free.is_empty() && !all.is_empty();
            if is_elsewhere || nodes.contains(&known.node) {
                // Another one claims its key or its address: that shows itself first.
                known.put_off(now.ns, &mut self.random);
                continue;
            }
            if !known.dial(now.ns, &free) {
                if !known.failed(now.ns, &mut self.random) {
                    self.forget(entity_key);
                }
                continue;
            }
            nodes.insert(known.node);
            addresses.extend(known.address);
            self.is_changed = true;
            room -= 1;
        }
    }
}

/// Whether others have to hear of it now: it says something else, or what they have ends soon.
fn is_news(before: &Record, now: &Record) -> bool {
    let (before, now) = (before.claim(), now.claim());
    let what = |claim: &Claim| (claim.instance, claim.subnet, claim.name.clone());
    what(before) != what(now)
        || before.addresses != now.addresses
        || now.issued_s.saturating_sub(before.issued_s) >= RENEW_S / 2
}

/// Another word of a node that is known, by its own signature.
fn renew(
    now: Now,
    known: &mut Known,
    record: Record,
    seen_at: Option<SocketAddr>,
) -> Result<(), Reason> {
    let said = record.claim();
    if (known.node, known.node_key) != (hash::node_id(&said.node_key), said.node_key) {
        // An entity that has another node now; which of them runs, a session shows.
        if known.stage == Stage::Proven || known.is_pinned() {
            return Err(Reason::KeyTaken);
        }
        (known.node, known.node_key) = (record.node(), said.node_key);
        known.record = None;
        known.stage = Stage::Waiting { at_ns: now.ns };
    }
    if let Some(before) = &known.record {
        let before = before.claim();
        if said.sequence <= before.sequence {
            return Err(Reason::Old);
        }
        if said.instance != before.instance {
            if known.life_before == Some(said.instance) {
                return Err(Reason::Twin);
            }
            known.life_before = Some(before.instance);
            let is_elsewhere = known
                .address
                .is_some_and(|at| !said.addresses.contains(&at));
            if is_elsewhere && known.is_adopted() {
                // It has started again at another place: it is dialled there, at once.
                known.stage = Stage::Waiting { at_ns: now.ns };
                known.place = 0;
            }
        }
    }
    if let Stage::Waiting { at_ns } = &mut known.stage {
        // Something new is known of where it is.
        *at_ns = now.ns.min(*at_ns);
    }
    known.seen_at = seen_at.or(known.seen_at);
    known.record = Some(record);
    Ok(())
}
