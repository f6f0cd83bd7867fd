//! When what is said, and what is kept of what was heard.

use crate::{
    limits::{
        ANNOUNCE_AGAIN_NS, ASK_NS, ASK_NS_MAX, HEARD_MAX, HEARD_OF_ONE_MAX, SAY_AGAIN_NS, WAIT_NS,
    },
    message::{self, Said},
    reason::{Reason, Reasons},
    socket::PORT,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
};
use virga_discovery::{Found, Origin, Record, Source, limits::SECOND_NS, source::Teller};
use virga_ebpf::header::NodeId;

/// How often something new is announced.
const ANNOUNCEMENTS: u32 = 2;

/// A LAN that this node is in.
#[derive(Clone, Debug)]
struct Link {
    /// When it is asked who is there, and how long after that again.
    ask_ns: u64,
    pause_ns: u64,
    /// Announcements that are left, and when the next one is due.
    announcements: u32,
    announce_ns: u64,
    /// When somebody's question is answered.
    answer_ns: Option<u64>,
    said_ns: Option<u64>,
    /// What was said before of this node, and is said no more.
    before: Option<Record>,
}

/// A record that was heard.
#[derive(Clone, Debug)]
struct Heard {
    node: NodeId,
    from: IpAddr,
    until_ns: u64,
    /// Whether it was looked at elsewhere: until then it waits.
    is_told: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Speaker {
    own: Record,
    links: Vec<Option<Link>>,
    /// By a record's bytes: whoever makes one up for a node does not take the place of the node's own.
    heard: BTreeMap<Box<[u8]>, Heard>,
    /// Those of them that were not looked at yet, in order.
    waiting: VecDeque<Box<[u8]>>,
    reasons: Reasons,
    random: fastrand::Rng,
}

impl Speaker {
    /// One in so many LANs, each closed.
    #[must_use]
    pub fn new(own: &Record, links: usize, seed: u64) -> Self {
        Self {
            own: own.clone(),
            links: vec![None; links],
            heard: BTreeMap::new(),
            waiting: VecDeque::new(),
            reasons: Reasons::default(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Speaks in a LAN from now on, from the beginning.
    pub fn open(&mut self, now_ns: u64, link: usize) {
        let first_ns = now_ns + self.wait_ns();
        if let Some(place) = self.links.get_mut(link) {
            *place = Some(Link {
                ask_ns: first_ns,
                pause_ns: ASK_NS,
                announcements: ANNOUNCEMENTS,
                announce_ns: first_ns,
                answer_ns: None,
                said_ns: None,
                before: None,
            });
        }
    }

    /// Speaks there no more.
    pub fn close(&mut self, link: usize) {
        if let Some(place) = self.links.get_mut(link) {
            *place = None;
        }
    }

    /// What this node says of itself from now on.
    pub fn announce(&mut self, now_ns: u64, own: &Record) {
        if self.own == *own {
            return;
        }
        let before = std::mem::replace(&mut self.own, own.clone());
        for link in self.links.iter_mut().flatten() {
            link.before = Some(before.clone());
            (link.announcements, link.announce_ns) = (ANNOUNCEMENTS, now_ns);
        }
    }

    /// Somebody in a LAN has said something.
    pub fn handle(&mut self, now_ns: u64, link: usize, source: SocketAddr, bytes: &[u8]) {
        if source.port() != PORT {
            return self.reasons.add(Reason::Port);
        }
        match message::read(self.own.node(), bytes) {
            Err(reason) => self.reasons.add(reason),
            Ok(Said::Nothing) => {}
            Ok(Said::Question) => self.answer(now_ns, link),
            Ok(Said::Services(services)) => {
                for service in services {
                    let (record, ttl) = match service {
                        Ok(service) => service,
                        Err(reason) => {
                            self.reasons.add(reason);
                            continue;
                        }
                    };
                    if record.bytes() == self.own.bytes() {
                        continue;
                    }
                    if let Err(reason) = self.hear(now_ns, source.ip(), &record, ttl) {
                        self.reasons.add(reason);
                    }
                }
            }
        }
    }

    /// Something was said that was not looked at.
    pub fn overhear(&mut self) {
        self.reasons.add(Reason::Busy);
    }

    fn answer(&mut self, now_ns: u64, link: usize) {
        let soon_ns = now_ns + self.wait_ns();
        if let Some(Some(link)) = self.links.get_mut(link) {
            let again_ns = link.said_ns.map_or(0, |said_ns| said_ns + SAY_AGAIN_NS);
            link.answer_ns.get_or_insert(soon_ns.max(again_ns));
        }
    }

    fn hear(&mut self, now_ns: u64, from: IpAddr, record: &Record, ttl: u32) -> Result<(), Reason> {
        let until_ns = now_ns + u64::from(ttl) * SECOND_NS;
        if let Some(heard) = self.heard.get_mut(record.bytes()) {
            let is_its_own = heard.from == from && heard.is_told;
            match ttl {
                // Others' words go on counting, and what waits is looked at first.
                0 if is_its_own => drop(self.heard.remove(record.bytes())),
                0 => {}
                _ => heard.until_ns = until_ns,
            }
            return Ok(());
        }
        if ttl == 0 {
            return Ok(());
        }
        let of_one = self.heard.values().filter(|heard| heard.from == from);
        if of_one.count() >= HEARD_OF_ONE_MAX && !self.give_up(|heard| heard.from == from) {
            return Err(Reason::SenderFull);
        }
        if self.heard.len() >= HEARD_MAX && !self.give_up(|_| true) {
            return Err(Reason::Full);
        }
        let bytes: Box<[u8]> = record.bytes().into();
        let heard = Heard {
            node: record.node(),
            from,
            until_ns,
            is_told: false,
        };
        self.heard.insert(bytes.clone(), heard);
        self.waiting.push_back(bytes);
        Ok(())
    }

    /// Forgets one of those that were looked at, the one that would end first; whether there is one.
    fn give_up(&mut self, is_meant: impl Fn(&Heard) -> bool) -> bool {
        let told = self.heard.iter();
        let told = told.filter(|(_, heard)| heard.is_told && is_meant(heard));
        let first = told.min_by_key(|(_, heard)| heard.until_ns);
        let first = first.map(|(bytes, _)| bytes.clone());
        first.is_some_and(|bytes| self.heard.remove(&bytes).is_some())
    }

    /// What is to be said now, and where.
    #[must_use]
    pub fn transmit(&mut self, now_ns: u64) -> Vec<(usize, Vec<u8>)> {
        self.heard
            .retain(|_, heard| !heard.is_told || now_ns < heard.until_ns);
        let mut said = Vec::new();
        for (number, link) in self.links.iter_mut().enumerate() {
            let Some(link) = link else {
                continue;
            };
            let is_new = link.announcements > 0 && now_ns >= link.announce_ns;
            if is_new || link.answer_ns.is_some_and(|at_ns| now_ns >= at_ns) {
                let before = link
                    .before
                    .take()
                    .and_then(|before| message::take_back(&before));
                let own = message::announcement(&self.own);
                said.extend(before.into_iter().chain(own).map(|words| (number, words)));
                (link.said_ns, link.answer_ns) = (Some(now_ns), None);
                link.announcements -= u32::from(is_new);
                link.announce_ns = now_ns + ANNOUNCE_AGAIN_NS;
            }
            if now_ns >= link.ask_ns {
                said.extend(message::question().map(|words| (number, words)));
                link.ask_ns = now_ns + link.pause_ns + self.random.u64(..link.pause_ns / 4);
                link.pause_ns = (link.pause_ns * 2).min(ASK_NS_MAX);
            }
        }
        said
    }

    /// What is to be said before this node leaves.
    #[must_use]
    pub fn goodbye(&self) -> Option<Vec<u8>> {
        message::goodbye(&self.own)
    }

    /// Other nodes whose announcements count now, be they true or not.
    #[must_use]
    pub fn nodes(&self) -> usize {
        let nodes: BTreeSet<NodeId> = self.heard.values().map(|heard| heard.node).collect();
        nodes.len()
    }

    /// How often something was not taken.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> u64 {
        self.reasons.count(reason)
    }

    fn wait_ns(&mut self) -> u64 {
        self.random.u64(WAIT_NS..6 * WAIT_NS)
    }
}

impl Source for Speaker {
    fn origin(&self) -> Origin {
        Origin::Lan
    }

    fn poll(&mut self, max: usize) -> Vec<Found> {
        let count = self.waiting.len().min(max);
        let mut found = Vec::new();
        for bytes in self.waiting.drain(..count) {
            let heard = self.heard.get_mut(&bytes);
            if let (Some(heard), Some(record)) = (heard, Record::parse(&bytes)) {
                heard.is_told = true;
                found.push(Found::Record {
                    record: Box::new(record),
                    seen_at: None,
                    teller: Teller::Address(heard.from),
                });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{limits::TTL_S, text::tests::record};

    const MS: u64 = SECOND_NS / 1_000;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], PORT))
    }

    fn speaker(number: u8) -> Speaker {
        let mut speaker = Speaker::new(&record(number, 1), 1, number.into());
        speaker.open(0, 0);
        speaker
    }

    fn found(speaker: &mut Speaker) -> Vec<NodeId> {
        let found = speaker
            .poll(usize::MAX)
            .into_iter()
            .map(|found| match found {
                Found::Record { record, .. } => record.node(),
                other => panic!("{other:?}"),
            });
        found.collect()
    }

    fn announced(number: u8, sequence: u64) -> Vec<u8> {
        message::announcement(&record(number, sequence)).unwrap()
    }

    #[test]
    fn two_that_speak_in_one_lan_find_each_other_and_grow_quiet() {
        let mut both = [speaker(1), speaker(2)];
        let mut said = 0;
        for now_ns in (0..600).map(|tick| tick * 100 * MS) {
            for from in 0..2 {
                for (_, words) in both[from].transmit(now_ns) {
                    said += 1;
                    // What a node says itself comes back to it.
                    let source = at(u8::try_from(from).unwrap());
                    both.iter_mut()
                        .for_each(|one| one.handle(now_ns, 0, source, &words));
                }
            }
        }
        let [one, two] = &mut both;
        assert_eq!(found(one), [record(2, 1).node()]);
        assert_eq!(found(two), [record(1, 1).node()]);
        assert_eq!((one.nodes(), found(one).len()), (1, 0));
        // In a minute seven questions each, an answer to each of them, two announcements.
        assert!((20..40).contains(&said), "{said}");
        assert!(Reason::ALL.iter().all(|&reason| one.refused(reason) == 0));
    }

    #[test]
    fn who_leaves_is_heard_no_more_and_who_was_killed_for_as_long_as_it_said() {
        let mut own = speaker(1);
        for number in [2, 3] {
            own.handle(0, 0, at(number), &announced(number, 1));
        }
        assert_eq!((found(&mut own).len(), own.nodes()), (2, 2));
        let goodbye = message::goodbye(&record(2, 1)).unwrap();
        own.handle(1, 0, at(9), &goodbye);
        assert_eq!(own.nodes(), 2, "another one says it");
        own.handle(1, 0, at(2), &goodbye);
        assert_eq!(own.nodes(), 1);
        let ended_ns = u64::from(TTL_S) * SECOND_NS;
        let _said = own.transmit(ended_ns - 1);
        assert_eq!(own.nodes(), 1);
        let _said = own.transmit(ended_ns);
        assert_eq!(own.nodes(), 0);
        assert_eq!(found(&mut own), [], "nothing is told of it");
    }

    #[test]
    fn a_newer_record_is_announced_and_the_one_before_taken_back() {
        let (mut own, mut other) = (speaker(1), speaker(2));
        let mut pass = |own: &mut Speaker, now_ns| {
            for (_, words) in own.transmit(now_ns) {
                other.handle(now_ns, 0, at(1), &words);
            }
            (found(&mut other).len(), other.nodes())
        };
        assert_eq!(pass(&mut own, SECOND_NS), (1, 1));
        own.announce(2 * SECOND_NS, &record(1, 2));
        assert_eq!(pass(&mut own, 2 * SECOND_NS), (1, 1));
        own.announce(3 * SECOND_NS, &record(1, 2));
        assert_eq!(pass(&mut own, 9 * SECOND_NS), (0, 1));
        assert_eq!(other.heard.len(), 1);
    }

    #[test]
    fn questions_are_answered_once_a_second_whoever_asks() {
        let mut own = speaker(1);
        let (asked, own_words) = (message::question().unwrap(), announced(1, 1));
        let mut answers = 0;
        for now_ns in (0..10_000).map(|ms| ms * MS) {
            own.handle(now_ns, 0, at(2), &asked);
            let said = own.transmit(now_ns);
            answers += said.iter().filter(|(_, words)| *words == own_words).count();
        }
        assert!((5..=11).contains(&answers), "{answers}");
        own.handle(0, 0, SocketAddr::from(([10, 0, 0, 2], 5_354)), &asked);
        assert_eq!(own.refused(Reason::Port), 1);
    }

    #[test]
    fn a_flood_of_services_takes_bounded_room_and_leaves_some_for_others() {
        let mut own = speaker(1);
        for sequence in 0..500 {
            own.handle(0, 0, at(2), &announced(2, sequence));
        }
        assert_eq!(own.heard.len(), HEARD_OF_ONE_MAX);
        let most = u64::try_from(HEARD_OF_ONE_MAX).unwrap();
        assert_eq!(own.refused(Reason::SenderFull), 500 - most);
        own.handle(0, 0, at(3), &announced(3, 1));
        assert_eq!(found(&mut own).last(), Some(&record(3, 1).node()));

        // From addresses that are made up, too: then the place is full, until what waits was looked at.
        for from in 10..200 {
            for sequence in 0..50 {
                own.handle(0, 0, at(from), &announced(from, sequence));
            }
        }
        assert_eq!((own.heard.len(), own.waiting.len()), (HEARD_MAX, HEARD_MAX));
        assert!(own.refused(Reason::Full) > 5_000);
        assert_eq!(own.poll(64).len(), 64);
        own.handle(0, 0, at(4), &announced(4, 1));
        assert_eq!(own.heard.len(), HEARD_MAX);
        assert_eq!(found(&mut own).last(), Some(&record(4, 1).node()));
    }
}
