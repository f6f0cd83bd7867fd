//! Nodes with disks and a network, a clock, and what has to hold at every moment.

use crate::{
    Cursor, Durability, Link, Log, LogName, Options, Reader, Retention,
    files::Files,
    format::Hash,
    recover,
    replica::{
        Acks, Event, Group, Replica, Role, Store, log_id,
        message::{Body, Message},
    },
    tests::forgetful::{Faults, Forgetful},
};
use std::collections::{BTreeMap, BTreeSet};
use virga_ebpf::header::{NodeId, OriginHash};

pub(super) const MS: u64 = 1_000_000;
/// A step of the clock.
const STEP: u64 = 5 * MS;

pub(super) fn name() -> LogName {
    LogName::parse("town/square").unwrap()
}

/// Small, fast, and the same each time.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// What is wrong with this world, so that the tests can be seen to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum World {
    Sound,
    /// Leaders of earlier epochs are heard too, and hear of no later one.
    NoFence,
    /// Disks say that they have synced, and have not.
    NoSync,
}

pub(super) struct Up {
    pub(super) log: Log,
    files: Files<Forgetful>,
    pub(super) replica: Replica<Forgetful>,
}

impl Up {
    fn with<T>(
        &mut self,
        f: impl FnOnce(&mut Replica<Forgetful>, &mut Store<'_, Forgetful>) -> T,
    ) -> T {
        let mut store = Store {
            log: &mut self.log,
            files: &mut self.files,
        };
        f(&mut self.replica, &mut store)
    }
}

pub(super) struct Node {
    pub(super) disk: Forgetful,
    pub(super) up: Option<Up>,
    /// Events that it appended and that are not acknowledged yet.
    open: BTreeMap<u64, u64>,
}

struct Post {
    due: u64,
    from: usize,
    to: usize,
    message: Vec<u8>,
}

pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) now: u64,
    pub(super) random: Random,
    world: World,
    acks: Acks,
    retention: Retention,
    post: Vec<Post>,
    /// Pairs that do not hear each other.
    pub(super) cut: BTreeSet<(usize, usize)>,
    pub(super) loses: u64,
    /// Of what was committed anywhere, at each offset.
    committed: BTreeMap<u64, Hash>,
    /// What was acknowledged, by its offset.
    pub(super) acknowledged: BTreeMap<u64, u64>,
    /// The next event says this.
    next: u64,
    pub(super) events: Vec<(usize, Event)>,
    pub(super) broken: Option<String>,
}

impl Cluster {
    pub(super) fn new(count: usize, acks: Acks, world: World, seed: u64) -> Self {
        let node = || Node {
            disk: Forgetful::default(),
            up: None,
            open: BTreeMap::new(),
        };
        let mut cluster = Self {
            nodes: (0..count).map(|_| node()).collect(),
            now: MS,
            random: Random::new(seed),
            world,
            acks,
            retention: Retention::default(),
            post: Vec::new(),
            cut: BTreeSet::new(),
            loses: 0,
            committed: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            next: 0,
            events: Vec::new(),
            broken: None,
        };
        for node in 0..count {
            cluster.start(node);
        }
        cluster
    }

    pub(super) fn keep_only(&mut self, retention: Retention) {
        self.retention = retention;
    }

    fn id(node: usize) -> NodeId {
        NodeId(node as u64 + 1)
    }

    pub(super) fn start(&mut self, node: usize) {
        let disk = self.nodes[node].disk.clone();
        disk.set(Faults {
            sync_lies: self.world == World::NoSync,
            ..Faults::default()
        });
        let ids: Vec<NodeId> = (0..self.nodes.len()).map(Self::id).collect();
        let group = Group::new(Self::id(node), &ids).unwrap();
        let id = log_id(b"net", &name());
        let (state, findings) = recover(&disk, &name(), id).unwrap();
        let options = Options {
            durability: Durability::Synced,
            segment_bytes: 4_096,
            retention: self.retention,
        };
        let mut log = Log::new(state, options);
        let mut files = Files::open(disk).unwrap();
        let mut store = Store {
            log: &mut log,
            files: &mut files,
        };
        let seed = self.random.below(u64::MAX);
        let now = self.now;
        let name = name();
        let replica = Replica::open(now, group, (&name, id), &findings, seed, &mut store);
        match replica {
            Ok(replica) => {
                self.nodes[node].up = Some(Up {
                    replica,
                    log,
                    files,
                });
            }
            Err(error) => {
                let text = format!("node {node} does not start: {error}");
                self.broken.get_or_insert(text);
            }
        }
    }

    /// Ends the process; also takes the power away where asked for: of what was not synced any part is there.
    pub(super) fn stop(&mut self, node: usize, loses_power: bool) {
        self.nodes[node].up = None;
        self.nodes[node].open.clear();
        if loses_power {
            let random = &mut self.random;
            let keeps = random.below(5);
            self.nodes[node].disk.crash(|| random.below(4) < keeps);
        }
    }

    pub(super) fn wipe(&mut self, node: usize) {
        self.stop(node, false);
        self.nodes[node].disk = Forgetful::default();
    }

    pub(super) fn up(&self, node: usize) -> &Up {
        self.nodes[node].up.as_ref().unwrap()
    }

    pub(super) fn leader(&self) -> Option<usize> {
        let leads = |node: &usize| {
            let up = self.nodes[*node].up.as_ref();
            up.is_some_and(|up| up.replica.role() == Role::Leader)
        };
        let epoch = |node: &usize| self.up(*node).replica.promise().epoch;
        (0..self.nodes.len()).filter(leads).max_by_key(epoch)
    }

    /// Has a node append an event, if it takes any.
    pub(super) fn publish(&mut self, node: usize) -> Option<u64> {
        let (now, says) = (self.now, self.next);
        let Node { up, open, .. } = &mut self.nodes[node];
        let up = up.as_mut()?;
        if !up.replica.takes_events(&up.log) {
            return None;
        }
        let link = Link {
            entity: OriginHash(says % 3),
            observed: 0,
            parent: 0,
        };
        let length = usize::try_from(8 + says * 37 % 211).unwrap();
        let mut payload = vec![7; length];
        payload[..8].copy_from_slice(&says.to_be_bytes());
        let offset = up.log.append(now, &link, &payload).ok()?;
        open.insert(offset, says);
        self.next += 1;
        Some(offset)
    }

    /// One step of the clock: messages arrive, disks work, timers run out.
    pub(super) fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.post)
            .into_iter()
            .partition(|post| post.due <= now);
        self.post = later;
        for post in due {
            self.deliver(post);
        }
        for node in 0..self.nodes.len() {
            let works = self.random.below(4);
            if let Some(up) = &mut self.nodes[node].up {
                for _ in 0..works {
                    up.files.step(&mut up.log, now);
                }
                up.with(|replica, store| replica.handle_log(now, store));
                if up.replica.poll_timeout() <= now {
                    up.with(|replica, store| replica.handle_timeout(now, store));
                }
            }
            self.collect(node);
        }
    }

    pub(super) fn run(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds * MS / STEP {
            self.step();
        }
    }

    /// Has a node hear something of its own epoch.
    pub(super) fn say(&mut self, from: usize, to: usize, body: Body) {
        let epoch = self.up(to).replica.promise().epoch;
        self.say_of(epoch, from, to, body);
    }

    /// Has a node hear something of an epoch.
    pub(super) fn say_of(&mut self, epoch: u64, from: usize, to: usize, body: Body) {
        let life = self.up(from).replica.lives.own;
        self.say_in(life, epoch, (from, to), body);
    }

    /// Has a node hear something that a life of another said.
    pub(super) fn say_in(&mut self, life: u64, epoch: u64, (from, to): (usize, usize), body: Body) {
        let replica = &self.up(to).replica;
        let message = Message {
            group: replica.group.hash,
            life,
            to: replica.lives.own,
            epoch,
            body,
        };
        self.deliver(Post {
            due: self.now,
            from,
            to,
            message: message.encode(),
        });
    }

    fn deliver(&mut self, post: Post) {
        let (one, other) = (post.from.min(post.to), post.from.max(post.to));
        if self.cut.contains(&(one, other)) {
            return;
        }
        let message = Message::parse(&post.message).unwrap();
        let now = self.now;
        let Some(up) = &mut self.nodes[post.to].up else {
            return;
        };
        let from = Self::id(post.from);
        let is_leaders = matches!(message.body, Body::Leads { .. } | Body::Batches(_));
        let is_old = message.epoch < up.replica.promise().epoch;
        let is_leader = up.replica.role() == Role::Leader;
        let is_new = message.epoch > up.replica.promise().epoch;
        if self.world == World::NoFence && is_leader && is_new {
            return;
        }
        if self.world == World::NoFence && is_leaders && is_old {
            up.replica.promise.epoch = message.epoch;
            up.replica.follow(Some(from));
        }
        up.with(|replica, store| replica.handle(now, from, message, store));
        self.collect(post.to);
    }

    /// Takes what a node says, and looks whether all holds that has to.
    fn collect(&mut self, node: usize) {
        let count = self.nodes.len();
        let Some(up) = &mut self.nodes[node].up else {
            return;
        };
        let mut said = Vec::new();
        while let Some((to, message)) = up.replica.poll_transmit() {
            said.push((usize::try_from(to.0).unwrap() - 1, message));
        }
        while let Some(event) = up.replica.poll() {
            self.events.push((node, event));
        }
        for (to, message) in said {
            assert!(to < count && to != node);
            let copies = match self.random.below(100) {
                roll if roll < self.loses => 0,
                roll if roll > 95 => 2,
                _ => 1,
            };
            for _ in 0..copies {
                let delay = 1 + self.random.below(40);
                self.post.push(Post {
                    due: self.now + delay * MS,
                    from: node,
                    to,
                    message: message.encode(),
                });
            }
        }
        self.check(node);
    }

    fn check(&mut self, node: usize) {
        let Node { up, open, .. } = &mut self.nodes[node];
        let Some(up) = up else {
            return;
        };
        let committed = up.replica.committed();
        // Where the log is known to end a batch, all before it is in its chain.
        let end = up.log.ends().find(|end| end.offset == committed);
        if let Some(end) = end {
            let known = *self.committed.entry(committed).or_insert(end.chain);
            if known != end.chain {
                let text = format!("node {node} has committed something else before {committed}");
                self.broken.get_or_insert(text);
            }
        }
        if up.replica.role() == Role::Leader {
            let acknowledged = up.replica.acknowledged(&up.log, self.acks);
            let later = open.split_off(&acknowledged);
            for (offset, says) in std::mem::replace(open, later) {
                if self
                    .acknowledged
                    .insert(offset, says)
                    .is_some_and(|other| other != says)
                {
                    let text = format!("two events were acknowledged at {offset}");
                    self.broken.get_or_insert(text);
                }
            }
        } else {
            // Nobody is told any more.
            open.clear();
        }
        if let Role::Ended = up.replica.role() {
            let ended = self
                .events
                .iter()
                .rev()
                .find(|(n, e)| *n == node && matches!(e, Event::Ended(_)));
            let text = format!("node {node}: {ended:?}");
            self.broken.get_or_insert(text);
        }
    }

    /// What a node's log says from its first event on.
    pub(super) fn says(&self, node: usize) -> Vec<(u64, u64)> {
        let disk = self.nodes[node].disk.clone();
        let mut reader = Reader::open(disk, &name(), Cursor::Start).unwrap();
        let mut says = Vec::new();
        while let Some(event) = reader.next_event().unwrap() {
            let first = event.payload.first_chunk().unwrap();
            says.push((event.offset, u64::from_be_bytes(*first)));
        }
        says
    }

    /// Heals everything, and waits until all replicas are the same, with an event more.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.cut.clear();
        self.loses = 0;
        for node in 0..self.nodes.len() {
            if self.nodes[node].up.is_none() {
                self.start(node);
            }
        }
        self.agree()
    }

    /// Waits until all that are up are the same, with an event more.
    pub(super) fn agree(&mut self) -> Result<(), String> {
        self.run(6_000);
        let mut published = None;
        for _ in 0..8_000 {
            if let Some(broken) = &self.broken {
                return Err(broken.clone());
            }
            let ends: Vec<_> = self
                .nodes
                .iter()
                .filter_map(|node| node.up.as_ref())
                .collect();
            let is_same = |offset: u64| {
                ends.iter().all(|up| {
                    up.log.boundary() == ends[0].log.boundary()
                        && up.replica.committed() == up.log.end()
                        && up.log.end() > offset
                })
            };
            let leader = self.leader();
            match published {
                Some(offset) if is_same(offset) => return self.look(),
                None => published = leader.and_then(|leader| self.publish(leader)),
                Some(_) => {}
            }
            self.step();
        }
        let stand = |node: &Node| {
            let up = node.up.as_ref()?;
            let promise = up.replica.promise();
            Some((
                up.replica.role(),
                *promise,
                up.log.end(),
                up.replica.committed(),
            ))
        };
        let stand: Vec<_> = self.nodes.iter().map(stand).collect();
        Err(format!("they do not agree: {published:?} {stand:#?}"))
    }

    /// Whether every node that is up has all that was acknowledged, in order, once.
    fn look(&self) -> Result<(), String> {
        for node in (0..self.nodes.len()).filter(|node| self.nodes[*node].up.is_some()) {
            let says = self.says(node);
            let offsets: Vec<u64> = says.iter().map(|(offset, _)| *offset).collect();
            let first = offsets.first().copied().unwrap_or(0);
            if !offsets.iter().copied().eq(first..self.up(node).log.end()) {
                return Err(format!("node {node} has the events {offsets:?}"));
            }
            let says: BTreeMap<u64, u64> = says.into_iter().collect();
            let lost = self
                .acknowledged
                .range(first..)
                .find(|(offset, event)| says.get(offset) != Some(event));
            if let Some((offset, event)) = lost {
                let there = says.get(offset);
                return Err(format!(
                    "node {node} has {there:?} at {offset}, where {event} was acknowledged"
                ));
            }
        }
        Ok(())
    }
}
