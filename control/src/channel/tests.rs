//! Services over real nodes, joined in memory: no clock, no socket, no thread.

use super::{
    command::Command,
    delivery::{Delivery, Fill, Offer, Outlet, SubscriberId},
    message::{Message, Pattern},
    presence::Presence,
    publish::Batch,
    reason::Reason,
    report::{PublishError, PublishReport},
    service::ChannelService,
    setup::Setup,
    status::ServiceStatus,
    subnets::Subnets,
    subscribe::{ASK_AGAIN_NS, SubscribeError},
};
use crate::{
    capability::Statements,
    config::{CapabilityRules, ChannelConfig, Entity, Listed},
};
use bytes::Bytes;
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use virga_ebpf::{
    header::{NodeId, Subnet},
    subnet::Visibility,
};
use virga_transport::{
    ChannelName, HandshakePolicy, Mode, Node, NodeConfig, NodeLimits, PeerConfig, Share,
    limits::{MESSAGE_BYTES_MAX, STREAM_QUEUE_BYTES},
    worker::Service,
};

mod beside;
mod capabilities;
mod declared;
mod explain;
mod membership;
mod publish;
mod reading;
mod replicas;
mod rights;
mod scopes;
mod slow;
mod subscribe;
mod tally;
mod tree;

const MS: u64 = 1_000_000;

/// A subscriber's queue that holds `room` events, and counts as slow when it is half full.
#[derive(Clone, Default)]
struct Inbox {
    events: Arc<Mutex<Vec<Delivery>>>,
    taken_events: Arc<AtomicU64>,
    end: Arc<Mutex<Option<String>>>,
    room: usize,
}

impl Outlet for Inbox {
    fn offer(&mut self, delivery: &Delivery) -> Offer {
        if Arc::strong_count(&self.events) == 1 {
            return Offer::Gone;
        }
        let mut events = self.events.lock().unwrap();
        if events.len() == self.room {
            return Offer::Full;
        }
        events.push(delivery.clone());
        if events.len() * 2 == self.room {
            return Offer::TakenSlow;
        }
        Offer::Taken
    }

    fn fill(&self) -> Fill {
        let waiting = self.events.lock().unwrap().len();
        Fill {
            queued_bytes: waiting,
            taken_events: self.taken_events.load(Ordering::Relaxed),
            is_slow: waiting * 2 >= self.room,
            is_ended: self.end.lock().unwrap().is_some(),
        }
    }

    fn end(self, why: String) {
        *self.end.lock().unwrap() = Some(why);
    }
}

impl Inbox {
    fn with_room(room: usize) -> Self {
        Self {
            room,
            ..Self::default()
        }
    }

    fn take(&self) -> Vec<Delivery> {
        let taken = std::mem::take(&mut *self.events.lock().unwrap());
        let events = u64::try_from(taken.len()).unwrap();
        self.taken_events.fetch_add(events, Ordering::Relaxed);
        taken
    }

    fn texts(&self) -> Vec<String> {
        let texts = self.take().into_iter();
        texts
            .map(|d| String::from_utf8(d.payload.to_vec()).unwrap())
            .collect()
    }
}

struct Side {
    node: Node,
    service: ChannelService<Inbox>,
}

/// Nodes that all reach each other, without loss or delay.
struct Net {
    sides: Vec<Side>,
    last_subscriber: u64,
    now_ns: u64,
    /// Datagrams are lost: all,
    is_cut: bool,
    /// or those from and to one node.
    cut_off: Option<usize>,
}

fn keys(number: u8) -> NodeConfig {
    NodeConfig {
        network_id: "test".into(),
        psk: [9; 32],
        psk_generation: 0,
        node_key: [number + 1; 32],
        entity_key: [number + 101; 32],
        subnet: Subnet(0),
        peers: Vec::new(),
        share: Share::WHOLE,
        handshake: HandshakePolicy::default(),
        limits: NodeLimits::default(),
        started_unix_ns: 0,
        seed: [number; 32],
    }
}

fn peer(number: u8) -> PeerConfig {
    let keys = keys(number);
    let node = crate::keys::NodeKey::from(crate::keys::Secret::new(keys.node_key));
    PeerConfig {
        node_key: node.public.into(),
        entity_key: entity(number),
        handshake: None,
    }
}

fn entity(number: u8) -> [u8; 32] {
    let seed = crate::keys::Secret::new(keys(number).entity_key);
    crate::keys::EntityKey::from(seed).public
}

fn id(number: u8) -> NodeId {
    peer(number).node_key.id()
}

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text).unwrap()
}

fn only(text: &str) -> Pattern {
    Pattern::Channel(name(text))
}

fn within(text: &str) -> Pattern {
    Pattern::Prefix(name(text))
}

/// A reliable channel.
fn channel(text: &str, publish: &[u8], subscribe: &[u8]) -> ChannelConfig {
    let entities =
        |who: &[u8]| Listed::Only(who.iter().map(|&n| Entity::from_key(entity(n))).collect());
    ChannelConfig {
        name: name(text),
        salt: 0,
        hash: name(text).hash(0),
        priority: 3,
        mode: Mode::Ordered,
        hold_max_s: 2,
        fan_out: 0,
        max_rate_pps: None,
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        publish: entities(publish),
        subscribe: entities(subscribe),
        issuers: Vec::new(),
        capabilities: CapabilityRules::default(),
        keep: None,
        scopes: Vec::new(),
    }
}

fn side(number: u8, count: u8, channels: &[ChannelConfig], seed: u8, now_ns: u64) -> Side {
    let others = || (0..count).filter(|&other| other != number);
    let mut config = keys(number);
    config.peers = others().map(peer).collect();
    config.seed = [seed; 32];
    let mut node = Node::new(config, now_ns).unwrap();
    let mut service = ChannelService::new(&Setup {
        entity: entity(number),
        peers: others().map(|n| (id(n), entity(n))).collect(),
        channels: channels.to_vec(),
        share: Share::WHOLE,
        presence: Arc::new(Presence::new(channels, 1)),
        tokens: Vec::new(),
        statements: Statements::default(),
        revocations: Vec::new(),
        unix_zero_ns: rights::UNIX_S * 1_000_000_000,
        neighbours: BTreeSet::new(),
        kept_up: BTreeSet::new(),
    });
    service.start(now_ns, &mut node);
    Side { node, service }
}

impl Net {
    /// `count` nodes with the same channels.
    fn new(count: u8, channels: &[ChannelConfig]) -> Self {
        Self::with(&vec![channels.to_vec(); count.into()])
    }

    /// One node for each list of channels.
    fn with(channels: &[Vec<ChannelConfig>]) -> Self {
        let count = u8::try_from(channels.len()).unwrap();
        let sides = (0..count).zip(channels);
        Self {
            sides: sides.map(|(n, c)| side(n, count, c, n, 1)).collect(),
            last_subscriber: 0,
            now_ns: 1,
            is_cut: false,
            cut_off: None,
        }
    }

    /// A node starts anew: it knows nothing of its sessions.
    fn restart(&mut self, number: u8, channels: &[ChannelConfig]) {
        let count = u8::try_from(self.sides.len()).unwrap();
        self.sides[usize::from(number)] = side(number, count, channels, number + 50, self.now_ns);
    }

    /// Carries datagrams and events until nothing moves; `deaf` services hear nothing.
    fn settle_but(&mut self, deaf: &[usize]) {
        let mut moved = true;
        while moved {
            moved = false;
            for at in 0..self.sides.len() {
                moved |= self.carry_from(at);
                while !deaf.contains(&at)
                    && let Some(event) = self.sides[at].node.poll()
                {
                    let Side { node, service } = &mut self.sides[at];
                    service.on_event(self.now_ns, node, event);
                    moved = true;
                }
            }
        }
    }

    fn settle(&mut self) {
        self.settle_but(&[]);
    }

    fn carry_from(&mut self, at: usize) -> bool {
        let mut moved = false;
        let mut run = Vec::new();
        while let Some(transmit) = self.sides[at].node.poll_transmit(self.now_ns, &mut run) {
            let mut ids = self.sides.iter().map(|side| side.node.id());
            let target = ids.position(|id| id == transmit.destination).unwrap();
            for datagram in run.chunks_mut(transmit.segment_bytes) {
                if self.is_cut || self.cut_off.is_some_and(|cut| [at, target].contains(&cut)) {
                    continue;
                }
                let source = ([10, 0, 0, u8::try_from(at).unwrap()], 4783).into();
                let _counted = self.sides[target]
                    .node
                    .handle(self.now_ns, source, datagram);
            }
            run.clear();
            moved = true;
        }
        moved
    }

    /// Lets time pass, in steps that no timer is too fine for.
    fn pass(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.now_ns += MS;
            for Side { node, service } in &mut self.sides {
                if node.poll_timeout().is_some_and(|due| due <= self.now_ns) {
                    node.handle_timeout(self.now_ns);
                }
                if service.poll_timeout().is_some_and(|due| due <= self.now_ns) {
                    service.handle_timeout(self.now_ns, node);
                }
            }
            self.settle();
        }
    }

    fn command(&mut self, at: usize, command: Command<Inbox>) {
        let Side { node, service } = &mut self.sides[at];
        service.on_command(self.now_ns, node, command);
    }

    fn subscribe(&mut self, at: usize, pattern: Pattern, inbox: &Inbox) -> SubscriberId {
        let subscribed = self.try_subscribe(at, pattern, inbox).unwrap();
        self.settle();
        subscribed
    }

    fn try_subscribe(
        &mut self,
        at: usize,
        pattern: Pattern,
        inbox: &Inbox,
    ) -> Result<SubscriberId, SubscribeError> {
        self.last_subscriber += 1;
        let id = SubscriberId(self.last_subscriber);
        let Side { node, service } = &mut self.sides[at];
        let subscribed = service.subscribe(self.now_ns, node, id, pattern, inbox.clone());
        subscribed.map(|()| id)
    }

    /// Publishes, without carrying anything yet; the report is there once all is on its way.
    fn publish(&mut self, at: usize, channel: &str, events: Vec<Bytes>) -> Answer {
        self.publish_within(at, channel, events, None)
    }

    fn publish_within(
        &mut self,
        at: usize,
        channel: &str,
        events: Vec<Bytes>,
        within: Option<Duration>,
    ) -> Answer {
        let answer = Answer::default();
        let told = Arc::clone(&answer.0);
        let done = Box::new(move |report| *told.lock().unwrap() = Some(report));
        let batch = Batch::new(events, done).within(within);
        let channel = name(channel);
        self.command(at, Command::Publish { channel, batch });
        answer
    }

    /// Publishes texts, and carries them.
    fn say(&mut self, at: usize, channel: &str, texts: &[&str]) -> PublishReport {
        let events = texts.iter().map(|t| Bytes::copy_from_slice(t.as_bytes()));
        let answer = self.publish(at, channel, events.collect());
        self.settle();
        answer.report()
    }

    fn status(&self, at: usize) -> ServiceStatus {
        self.sides[at].service.status(self.now_ns)
    }

    fn count(&self, at: usize, reason: Reason) -> u64 {
        self.sides[at].service.reasons.count(reason)
    }

    fn roster(&self, at: usize, channel: &str) -> usize {
        let service = &self.sides[at].service;
        service.entries[service.names[&name(channel)]].roster.len()
    }
}

#[derive(Default)]
struct Answer(Arc<Mutex<Option<Result<PublishReport, PublishError>>>>);

impl Answer {
    fn is_there(&self) -> bool {
        self.0.lock().unwrap().is_some()
    }

    fn result(&self) -> Result<PublishReport, PublishError> {
        self.0.lock().unwrap().take().expect("an answer")
    }

    fn report(&self) -> PublishReport {
        self.result().unwrap()
    }
}

fn texts(range: std::ops::Range<usize>) -> Vec<Bytes> {
    range.map(|n| Bytes::from(n.to_string())).collect()
}

#[test]
fn every_reason_has_its_own_name() {
    let mut names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Reason::ALL.len());
}
