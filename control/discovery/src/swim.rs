//! Who lives: SWIM (Das, Gupta, Motivala, DSN 2002) with the refinements of Lifeguard (Dadgar, Phillips, Currey, 2018).
//!
//! Each member probes another one each [`PROBE_NS`], in an order of its own that comes to all of them. Where no
//! answer comes, [`PROXIES`] others are asked to probe it; where none of them hears of it either, it is suspected.
//! It has some time to hear of that and to say otherwise, with a higher incarnation, which it alone makes; then it is dead.
//! All of that travels on probes and answers. Of Lifeguard: a member that finds itself slow takes more time
//! before it judges others (a proxy that has no answer says so, and a proxy that says nothing counts against who asked); a
//! suspicion is long while one member alone has it, and shorter with each other one that has found the same; and
//! whoever is suspected hears of it first.
//!
//! Beyond both: a member that was not run for a while, as its own timer shows, gives everybody that time.
//!
//! **Why not the crate `foca`.** It has SWIM with suspicion and custom broadcasts, sans-IO; its
//! times are fixed by its configuration, so there is no health of the member itself and no suspicion that gets
//! shorter, and these are what keeps a loaded machine from calling others dead. It would also bring identities,
//! announcements and feeds of its own, where here sessions say who speaks and the book says who is a member.
//!
//! A member's word is believed as SWIM does: one that lies about others makes them refute, each time.

mod member;
mod said;
#[cfg(test)]
mod tests;

pub use member::{Change, Member, MemberState};
pub use said::{HEAD_BYTES, Kind, Said, UPDATE_BYTES, Update};

use crate::{
    discovery::Now,
    limits::{
        CONFIRMATIONS, DEAD_NS, HEALTH_MAX, PROBE_NS, PROBE_WAIT_NS, PROXIES, RELAYS_MAX,
        SUSPICION_MAX, SUSPICION_MIN, TELL, TICK_NS, UPDATES_MAX,
    },
    random::Random,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use virga_ebpf::header::NodeId;

/// Each so many probes one goes to a member that is dead: after a partition both sides may think that of the other.
const DEAD_EACH: u64 = 10;
/// An incarnation is at most so much above the time in milliseconds: a higher one could not be exceeded.
const INCARNATION_AHEAD_MS: u64 = 24 * 3_600_000;

/// A probe under way.
#[derive(Clone, Debug)]
struct Probe {
    target: NodeId,
    number: u32,
    ask_ns: u64,
    end_ns: u64,
    is_answered: bool,
    asked: u32,
    nacks: u32,
}

/// Somebody else's probe, under way here.
#[derive(Clone, Debug)]
struct Relay {
    asker: NodeId,
    their_number: u32,
    target: NodeId,
    /// Then it is told that there is no answer, once.
    nack_ns: Option<u64>,
    end_ns: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Swim {
    own: NodeId,
    incarnation: u64,
    members: BTreeMap<NodeId, Member>,
    /// Whom to probe next; the last one first.
    order: Vec<NodeId>,
    probe: Option<Probe>,
    relays: BTreeMap<u32, Relay>,
    /// What is told, and how often it was.
    news: BTreeMap<NodeId, (Update, u32)>,
    health: u32,
    probes: u64,
    last_number: u32,
    due_ns: u64,
    /// Before this nothing is told but with probes and answers.
    tell_ns: u64,
    random: Random,
    out: VecDeque<(NodeId, Said)>,
    changes: VecDeque<Change>,
    /// Times that a living node had to say so.
    refuted: u64,
    /// Updates about nodes that are no members here, or that nobody could have made.
    ignored: u64,
}

impl Swim {
    /// A node alone; `incarnation` is above those of its earlier lives, as the time in milliseconds is.
    #[must_use]
    pub fn new(own: NodeId, incarnation: u64, seed: u64) -> Self {
        Self {
            own,
            incarnation,
            members: BTreeMap::new(),
            order: Vec::new(),
            probe: None,
            relays: BTreeMap::new(),
            news: BTreeMap::new(),
            health: 0,
            probes: 0,
            last_number: 0,
            due_ns: 0,
            tell_ns: 0,
            random: Random::new(seed),
            out: VecDeque::new(),
            changes: VecDeque::new(),
            refuted: 0,
            ignored: 0,
        }
    }

    /// The members, but for this node itself.
    #[must_use]
    pub const fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// 0: this node is in time; higher: it takes more time before it judges others.
    #[must_use]
    pub const fn health(&self) -> u32 {
        self.health
    }

    /// Times that this node had to say that it lives.
    #[must_use]
    pub const fn refuted(&self) -> u64 {
        self.refuted
    }

    /// Updates that were not taken.
    #[must_use]
    pub const fn ignored(&self) -> u64 {
        self.ignored
    }

    /// This node's incarnation.
    #[must_use]
    pub const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// There is a session with a node that speaks this: it is a member from now on. What is thought of it otherwise,
    /// it hears at once.
    pub fn join(&mut self, now: Now, node: NodeId) {
        if node == self.own {
            return;
        }
        let is_known = self.members.contains_key(&node);
        let member = self.members.entry(node).or_insert_with(|| Member {
            state: MemberState::Alive,
            incarnation: 0,
            since_ns: now.ns,
            accusers: BTreeSet::new(),
        });
        if member.state != MemberState::Alive {
            let number = self.next_number();
            self.say(node, Kind::Ping, number);
        }
        if !is_known {
            let at = self.random.below(self.order.len() + 1);
            self.order.insert(at, node);
            self.changes.push_back(Change {
                node,
                state: MemberState::Alive,
                incarnation: 0,
            });
        }
    }

    /// A node is no member any more.
    pub fn forget(&mut self, node: NodeId) {
        self.members.remove(&node);
        self.news.remove(&node);
        self.order.retain(|&other| other != node);
        self.relays
            .retain(|_, relay| relay.asker != node && relay.target != node);
        if self.probe.as_ref().is_some_and(|p| p.target == node) {
            self.probe = None;
        }
    }

    /// What members are, where that changed.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// What to say to whom, in their sessions.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, Said)> {
        self.out.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub const fn poll_timeout(&self) -> u64 {
        self.due_ns
    }

    /// A member has said something.
    pub fn handle(&mut self, now: Now, from: NodeId, said: &Said) {
        if !self.members.contains_key(&from) {
            self.ignored += 1;
            return;
        }
        self.apply(
            now,
            &Update {
                node: from,
                state: MemberState::Alive,
                incarnation: said.incarnation,
                by: from,
            },
        );
        for update in &said.updates {
            self.apply(now, update);
        }
        match said.kind {
            Kind::Ping => self.say(from, Kind::Ack, said.number),
            Kind::Ack => self.on_ack(from, said.number),
            Kind::Ask { target } => self.on_ask(now, from, said.number, target),
            Kind::Nack => {
                let probe = self.probe.as_mut().filter(|p| p.number == said.number);
                if let Some(probe) = probe {
                    probe.nacks = (probe.nacks + 1).min(probe.asked);
                }
            }
            Kind::Tell => {}
        }
    }

    fn on_ack(&mut self, from: NodeId, number: u32) {
        if let Some(relay) = self.relays.get(&number) {
            if relay.target == from {
                let (asker, their_number) = (relay.asker, relay.their_number);
                self.relays.remove(&number);
                self.say(asker, Kind::Ack, their_number);
            }
            return;
        }
        // From the target, or from one that has reached it.
        let probe = self.probe.as_mut().filter(|p| p.number == number);
        if let Some(probe) = probe
            && !std::mem::replace(&mut probe.is_answered, true)
        {
            self.health = self.health.saturating_sub(1);
        }
    }

    fn on_ask(&mut self, now: Now, asker: NodeId, their_number: u32, target: NodeId) {
        if !self.members.contains_key(&target) || self.relays.len() >= RELAYS_MAX {
            return self.say(asker, Kind::Nack, their_number);
        }
        let number = self.next_number();
        let relay = Relay {
            asker,
            their_number,
            target,
            // In time for the asker, who waits for as long again.
            nack_ns: Some(now.ns + PROBE_WAIT_NS * 4 / 5),
            end_ns: now.ns + PROBE_NS,
        };
        self.relays.insert(number, relay);
        self.say(target, Kind::Ping, number);
    }

    /// Takes in what is said of a member.
    fn apply(&mut self, now: Now, update: &Update) {
        let ahead_ms = now.unix_s.saturating_mul(1_000) + INCARNATION_AHEAD_MS;
        if update.incarnation > ahead_ms {
            self.ignored += 1;
            return;
        }
        if update.node == self.own {
            return self.apply_own(update);
        }
        let Some(member) = self.members.get_mut(&update.node) else {
            self.ignored += 1;
            return;
        };
        let (before, is_newer) = (member.state, update.incarnation > member.incarnation);
        let is_news = match (update.state, before) {
            (MemberState::Alive, _) => is_newer,
            (MemberState::Suspect, MemberState::Suspect) if !is_newer => {
                let is_same = update.incarnation == member.incarnation;
                let most = CONFIRMATIONS as usize + 1;
                is_same && member.accusers.len() < most && member.accusers.insert(update.by)
            }
            (MemberState::Suspect, MemberState::Alive) => update.incarnation >= member.incarnation,
            (MemberState::Suspect, _) => is_newer,
            (MemberState::Dead, MemberState::Dead) => is_newer,
            (MemberState::Dead, _) => update.incarnation >= member.incarnation,
        };
        if !is_news {
            return;
        }
        if before != update.state || is_newer {
            member.accusers.clear();
            if update.state == MemberState::Suspect {
                member.accusers.insert(update.by);
                member.since_ns = now.ns;
            }
        }
        member.incarnation = update.incarnation;
        if before != update.state {
            (member.state, member.since_ns) = (update.state, now.ns);
            self.changes.push_back(Change {
                node: update.node,
                state: update.state,
                incarnation: update.incarnation,
            });
        }
        self.news.insert(update.node, (*update, 0));
    }

    /// Of this node others may know an incarnation of an earlier life, or think that it is dead.
    fn apply_own(&mut self, update: &Update) {
        let is_accused = update.state != MemberState::Alive;
        let is_outdone = update.incarnation > self.incarnation;
        let is_meant = is_accused && update.incarnation == self.incarnation;
        if !is_outdone && !is_meant {
            return;
        }
        self.incarnation = update.incarnation + 1;
        if is_accused {
            self.refuted += 1;
            self.health = (self.health + 1).min(HEALTH_MAX);
        }
        let update = Update {
            node: self.own,
            state: MemberState::Alive,
            incarnation: self.incarnation,
            by: self.own,
        };
        self.news.insert(self.own, (update, 0));
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        if now.ns < self.due_ns {
            return;
        }
        let late_ns = match self.due_ns {
            0 => 0,
            due_ns => now.ns - due_ns,
        };
        self.due_ns = now.ns + TICK_NS;
        if late_ns > PROBE_WAIT_NS / 2 {
            self.excuse(late_ns);
        }
        self.end_suspicions(now);
        self.end_relays(now);
        self.follow_probe(now);
        self.tell(now);
        let is_over = |member: &Member| {
            member.state == MemberState::Dead && now.ns.saturating_sub(member.since_ns) >= DEAD_NS
        };
        let over = self.members.iter().filter(|(_, member)| is_over(member));
        for node in over.map(|(&node, _)| node).collect::<Vec<_>>() {
            self.forget(node);
        }
    }

    /// This node was not run for so long: answers may wait to be read, so nobody is judged by that time.
    fn excuse(&mut self, late_ns: u64) {
        self.health = (self.health + 1).min(HEALTH_MAX);
        if let Some(probe) = &mut self.probe {
            probe.ask_ns += late_ns;
            probe.end_ns += late_ns;
        }
        for member in self.members.values_mut() {
            if member.state == MemberState::Suspect {
                member.since_ns += late_ns;
            }
        }
    }

    /// How long a suspicion lasts that so many others have come to by themselves.
    fn suspicion_ns(&self, accusers: usize) -> u64 {
        let living = self.living().count() + 1;
        // Whoever is slow itself is later to hear that a suspect lives.
        let slow = u64::from(self.health / 2 + 1);
        let shortest_ns = SUSPICION_MIN * tenfold(living) * PROBE_NS * slow;
        let most = u32::try_from(living.saturating_sub(2)).unwrap_or(u32::MAX);
        let most = most.min(CONFIRMATIONS);
        let others = u32::try_from(accusers.saturating_sub(1)).unwrap_or(u32::MAX);
        if most == 0 || others >= most {
            return shortest_ns;
        }
        let longest_ns = shortest_ns * SUSPICION_MAX;
        let share = f64::from(others + 1).ln() / f64::from(most + 1).ln();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of 0 to 1 of some seconds"
        )]
        let shorter_ns = ((longest_ns - shortest_ns) as f64 * share) as u64;
        longest_ns - shorter_ns
    }

    fn living(&self) -> impl Iterator<Item = NodeId> + '_ {
        let living = self.members.iter();
        let living = living.filter(|(_, member)| member.state != MemberState::Dead);
        living.map(|(&node, _)| node)
    }

    fn end_suspicions(&mut self, now: Now) {
        let mut ended = Vec::new();
        let suspects = self.members.iter();
        let suspects = suspects.filter(|(_, member)| member.state == MemberState::Suspect);
        for (&node, member) in suspects {
            let lasts_ns = self.suspicion_ns(member.accusers.len());
            if now.ns.saturating_sub(member.since_ns) >= lasts_ns {
                ended.push(Update {
                    node,
                    state: MemberState::Dead,
                    incarnation: member.incarnation,
                    by: self.own,
                });
            }
        }
        for update in ended {
            self.apply(now, &update);
        }
    }

    fn end_relays(&mut self, now: Now) {
        let mut nacks = Vec::new();
        for relay in self.relays.values_mut() {
            if relay.nack_ns.is_some_and(|due_ns| due_ns <= now.ns) {
                relay.nack_ns = None;
                nacks.push((relay.asker, relay.their_number));
            }
        }
        self.relays.retain(|_, relay| now.ns < relay.end_ns);
        for (asker, number) in nacks {
            self.say(asker, Kind::Nack, number);
        }
    }

    fn follow_probe(&mut self, now: Now) {
        let Some(probe) = &mut self.probe else {
            return self.begin_probe(now);
        };
        if now.ns >= probe.end_ns {
            if let Some(probe) = self.probe.take() {
                self.judge(now, &probe);
            }
            return self.begin_probe(now);
        }
        if probe.is_answered || probe.asked > 0 || now.ns < probe.ask_ns {
            return;
        }
        let (target, number) = (probe.target, probe.number);
        let living = self.living().filter(|&node| node != target).collect();
        let proxies = self.random.some(living, PROXIES);
        if let Some(probe) = &mut self.probe {
            probe.asked = u32::try_from(proxies.len()).unwrap_or(u32::MAX);
        }
        for proxy in proxies {
            self.say(proxy, Kind::Ask { target }, number);
        }
    }

    /// What is new goes on as fast as with probes in time, also where they are not.
    fn tell(&mut self, now: Now) {
        if self.health == 0 || self.news.is_empty() || now.ns < self.tell_ns {
            return;
        }
        self.tell_ns = now.ns + PROBE_WAIT_NS;
        let living = self.living().collect();
        for to in self.random.some(living, 1) {
            self.say(to, Kind::Tell, 0);
        }
    }

    fn judge(&mut self, now: Now, probe: &Probe) {
        let member = self.members.get(&probe.target);
        let judged = member.filter(|member| member.state != MemberState::Dead);
        let Some(member) = judged.filter(|_| !probe.is_answered) else {
            return;
        };
        let worse = match probe.asked {
            0 => 1,
            asked => asked - probe.nacks,
        };
        let update = Update {
            node: probe.target,
            state: MemberState::Suspect,
            incarnation: member.incarnation,
            by: self.own,
        };
        self.health = (self.health + worse).min(HEALTH_MAX);
        self.apply(now, &update);
    }

    fn begin_probe(&mut self, now: Now) {
        self.probes += 1;
        let Some(target) = self.next_target() else {
            return;
        };
        let slow = u64::from(self.health + 1);
        let number = self.next_number();
        self.probe = Some(Probe {
            target,
            number,
            ask_ns: now.ns + PROBE_WAIT_NS * slow,
            end_ns: now.ns + PROBE_NS * slow,
            is_answered: false,
            asked: 0,
            nacks: 0,
        });
        self.say(target, Kind::Ping, number);
    }

    fn next_target(&mut self) -> Option<NodeId> {
        if self.probes.is_multiple_of(DEAD_EACH) {
            let dead = self.members.iter();
            let dead = dead.filter(|(_, member)| member.state == MemberState::Dead);
            let dead = dead.map(|(&node, _)| node).collect();
            if let Some(node) = self.random.some(dead, 1).pop() {
                return Some(node);
            }
        }
        for _ in 0..2 {
            while let Some(node) = self.order.pop() {
                let member = self.members.get(&node);
                if member.is_some_and(|member| member.state != MemberState::Dead) {
                    return Some(node);
                }
            }
            let living = self.living().collect();
            self.order = self.random.shuffled(living);
        }
        None
    }

    const fn next_number(&mut self) -> u32 {
        self.last_number = self.last_number.wrapping_add(1);
        self.last_number
    }

    /// What is thought of the one that is spoken to comes first, then what was told least.
    fn say(&mut self, to: NodeId, kind: Kind, number: u32) {
        let mut updates = Vec::new();
        if let Some(member) = self.members.get(&to)
            && member.state != MemberState::Alive
        {
            updates.push(Update {
                node: to,
                state: member.state,
                incarnation: member.incarnation,
                by: self.own,
            });
        }
        let most = TELL * u32::try_from(tenfold(self.members.len() + 1)).unwrap_or(u32::MAX);
        let mut news: Vec<(u32, NodeId)> = self.news.iter().map(|(&n, told)| (told.1, n)).collect();
        news.sort_unstable();
        for (_, node) in news {
            if updates.len() == UPDATES_MAX {
                break;
            }
            let Some((update, told)) = self.news.get_mut(&node) else {
                continue;
            };
            *told += 1;
            let is_told = *told >= most;
            if node != to {
                updates.push(*update);
            }
            if is_told {
                self.news.remove(&node);
            }
        }
        let said = Said {
            incarnation: self.incarnation,
            kind,
            number,
            updates,
        };
        self.out.push_back((to, said));
    }
}

/// The decimal logarithm, rounded up; at least 1.
fn tenfold(count: usize) -> u64 {
    let mut power = 10;
    let mut log = 1;
    while power < count {
        power = power.saturating_mul(10);
        log += 1;
    }
    log
}
