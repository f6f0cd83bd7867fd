//! Services over real nodes, joined in memory: no clock, no socket, no thread.

use super::{
    delivery::{Delivery, Offer, Outlet, SubscriberId},
    message::{Message, Pattern},
    publish::{Batch, PublishError, PublishReport},
    reason::Reason,
    service::{ChannelService, Command, Setup},
    subscribe::{ASK_AGAIN_NS, SubscribeError},
};
use crate::config::{ChannelConfig, Entity};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use virga_ebpf::header::{NodeId, Subnet};
use virga_transport::{
    ChannelName, Node, NodeConfig, NodeLimits, PeerConfig,
    limits::{EVENT_BYTES_MAX, EVENT_QUEUE_MAX},
    worker::Service,
};

const MS: u64 = 1_000_000;

/// A subscriber's queue that holds `room` events, and counts as slow when it is half full.
#[derive(Clone, Default)]
struct Inbox {
    events: Arc<Mutex<Vec<Delivery>>>,
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
}

impl Inbox {
    fn with_room(room: usize) -> Self {
        Self {
            events: Arc::default(),
            room,
        }
    }

    fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.events.lock().unwrap())
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
    now_ns: u64,
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
        limits: NodeLimits::default(),
        started_unix_ns: 0,
        seed: [number; 32],
    }
}

fn peer(number: u8) -> PeerConfig {
    let keys = keys(number);
    let node = crate::keys::NodeKey::from(crate::keys::Secret::new(keys.node_key));
    PeerConfig {
        node_key: node.public,
        entity_key: entity(number),
    }
}

fn entity(number: u8) -> [u8; 32] {
    let seed = crate::keys::Secret::new(keys(number).entity_key);
    crate::keys::EntityKey::from(seed).public
}

fn id(number: u8) -> NodeId {
    virga_ebpf::hash::node_id(&peer(number).node_key)
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
    let entities = |who: &[u8]| who.iter().map(|&n| Entity::from_key(entity(n))).collect();
    ChannelConfig {
        name: name(text),
        salt: 0,
        hash: name(text).hash(0),
        priority: 3,
        reliable: true,
        max_rate_pps: None,
        publish: entities(publish),
        subscribe: entities(subscribe),
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
            now_ns: 1,
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
        let Side { node, service } = &mut self.sides[at];
        service.subscribe(self.now_ns, node, pattern, inbox.clone())
    }

    /// Publishes, without carrying anything yet; the report is there once all is on its way.
    fn publish(&mut self, at: usize, channel: &str, events: Vec<Bytes>) -> Answer {
        let answer = Answer::default();
        let told = Arc::clone(&answer.0);
        let done = Box::new(move |report| *told.lock().unwrap() = Some(report));
        let batch = Batch::new(events, done);
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
fn an_event_reaches_every_subscriber_once_with_its_proven_entity() {
    let mut net = Net::new(3, &[channel("a/b", &[0], &[0, 1, 2])]);
    let inboxes: [Inbox; 4] = std::array::from_fn(|_| Inbox::with_room(100));
    net.subscribe(0, only("a/b"), &inboxes[0]);
    net.subscribe(1, only("a/b"), &inboxes[1]);
    net.subscribe(1, within("a"), &inboxes[2]);
    net.subscribe(2, within("a"), &inboxes[3]);
    let report = net.say(0, "a/b", &["x", "y"]);
    assert_eq!((report.published, report.subscribers), (2, 3));
    for inbox in &inboxes {
        let got = inbox.take();
        let seen: Vec<_> = got.iter().map(|d| (d.sequence, &d.payload[..])).collect();
        assert_eq!(seen, [(1, &b"x"[..]), (2, b"y")]);
        assert!(
            got.iter()
                .all(|d| d.entity == entity(0) && d.channel == name("a/b"))
        );
    }
    assert_eq!(net.sides[0].service.entries[0].counters.sent, 4);
}

#[test]
fn a_prefix_gets_what_it_may_have_and_nothing_beside_it() {
    let all = [
        channel("s/1", &[0], &[1]),
        channel("s/2/x", &[0], &[1]),
        channel("s/secret", &[0], &[]),
        channel("s2", &[0], &[1]),
    ];
    let mut net = Net::new(2, &all);
    let inbox = Inbox::with_room(100);
    net.subscribe(1, within("s"), &inbox);
    for to in ["s/1", "s/2/x", "s/secret", "s2"] {
        net.say(0, to, &[to]);
    }
    assert_eq!(inbox.texts(), ["s/1", "s/2/x"]);
    assert_eq!((net.roster(0, "s/secret"), net.roster(0, "s2")), (0, 0));
}

#[test]
fn publishing_and_subscribing_need_a_channel_and_a_right_to_it() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let inbox = Inbox::with_room(1);
    let unknown = net.publish(0, "b", texts(0..1)).result();
    assert_eq!(unknown, Err(PublishError::UnknownChannel(name("b"))));
    let refused = net.publish(1, "a", texts(0..1)).result();
    assert_eq!(refused, Err(PublishError::NotAuthorised(name("a"))));
    let unknown = net.try_subscribe(1, only("b"), &inbox);
    assert_eq!(unknown, Err(SubscribeError::UnknownChannel(only("b"))));
    let refused = net.try_subscribe(0, within("a"), &inbox);
    assert_eq!(refused, Err(SubscribeError::NotAuthorised(within("a"))));
    assert!(
        net.publish(0, "a", Vec::new()).report()
            == PublishReport {
                event_bytes_max: virga_transport::limits::MESSAGE_BYTES_MAX,
                ..PublishReport::default()
            }
    );
}

#[test]
fn a_publisher_refuses_subscribers_that_its_own_configuration_does_not_know() {
    for (at_0, state) in [
        (vec![channel("x", &[0], &[1])], "unknown_channel"),
        (vec![channel("a", &[0], &[])], "not_authorised"),
        (vec![channel("a", &[], &[1])], "not_published"),
    ] {
        let mut net = Net::with(&[at_0, vec![channel("a", &[0], &[1])]]);
        net.subscribe(1, only("a"), &Inbox::with_room(1));
        assert_eq!(net.sides[1].service.status().subscriptions[0].state, state);
        assert_eq!(net.count(0, Reason::SubscribeRefused), 1);
    }
}

/// Both have channel `good`, so that a subscription to all puts 1 on 0's roster of the other too.
#[test]
fn a_subscriber_refuses_streams_that_its_own_configuration_does_not_know() {
    let at_0 = channel("all/odd", &[0], &[1]);
    let salted = ChannelConfig {
        salt: 7,
        hash: name("all/odd").hash(7),
        ..at_0.clone()
    };
    let unreliable = ChannelConfig {
        reliable: false,
        ..at_0.clone()
    };
    for (at_1, reason) in [
        (None, Reason::StreamUnknownChannel),
        (Some(salted), Reason::StreamSalt),
        (Some(unreliable), Reason::StreamMode),
        (Some(channel("all/odd", &[], &[1])), Reason::StreamPublisher),
        (
            Some(channel("all/odd", &[0], &[])),
            Reason::StreamSubscriber,
        ),
    ] {
        let good = channel("all/good", &[0], &[1]);
        let of_1 = [good.clone()].into_iter().chain(at_1).collect();
        let mut net = Net::with(&[vec![good, at_0.clone()], of_1]);
        let inbox = Inbox::with_room(10);
        net.subscribe(1, within("all"), &inbox);
        net.say(0, "all/odd", &["odd"]);
        assert_eq!(net.count(1, reason), 1, "{reason:?}");
        assert_eq!(net.count(0, Reason::PeerRefused), 1, "{reason:?}");
        assert_eq!(net.roster(0, "all/odd"), 0);
        net.say(0, "all/good", &["good"]);
        assert_eq!(inbox.texts(), ["good"]);
    }
}

#[test]
fn the_roster_forgets_who_unsubscribes_when_nothing_else_keeps_it_there() {
    let mut net = Net::new(2, &[channel("a/b", &[0], &[1])]);
    let inboxes = [Inbox::with_room(10), Inbox::with_room(10)];
    let first = net.subscribe(1, only("a/b"), &inboxes[0]);
    let second = net.subscribe(1, within("a"), &inboxes[1]);
    net.say(0, "a/b", &["both"]);
    net.command(1, Command::Unsubscribe(first));
    net.settle();
    assert_eq!(net.roster(0, "a/b"), 1);
    net.say(0, "a/b", &["second"]);
    net.command(1, Command::Unsubscribe(second));
    net.settle();
    assert_eq!(net.roster(0, "a/b"), 0);
    assert_eq!(net.say(0, "a/b", &["nobody"]).subscribers, 0);
    assert_eq!(inboxes[0].texts(), ["both"]);
    assert_eq!(inboxes[1].texts(), ["both", "second"]);
    net.subscribe(1, only("a/b"), &inboxes[0]);
    net.say(0, "a/b", &["again"]);
    assert_eq!(inboxes[0].texts(), ["again"]);
}

#[test]
fn a_subscriber_that_is_gone_is_noticed_with_the_next_event() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    net.subscribe(1, only("a"), &Inbox::with_room(10));
    net.say(0, "a", &["x"]);
    assert!(net.sides[1].service.subscribers.is_empty());
    assert_eq!(net.roster(0, "a"), 0);
}

#[test]
fn a_closed_session_is_reaped_and_subscribed_again_when_it_comes_back() {
    let channels = [channel("a", &[0], &[1])];
    let mut net = Net::new(2, &channels);
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    // The publisher starts anew; it connects, and the subscription is told to it again.
    net.restart(0, &channels);
    net.pass(2_000);
    assert_eq!(net.roster(0, "a"), 1);
    net.say(0, "a", &["new"]);
    assert_eq!(inbox.texts(), ["new"]);
    // The subscriber closes: the roster is empty at once.
    let Side { node, service } = &mut net.sides[1];
    service.stop(net.now_ns, node);
    node.close(net.now_ns, id(0));
    net.settle();
    assert_eq!(net.roster(0, "a"), 0);
    assert!(net.sides[0].service.sessions.is_empty());
}

#[test]
fn a_subscription_that_is_not_answered_is_sent_again() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    net.pass(2_000);
    let inbox = Inbox::with_room(10);
    net.try_subscribe(1, only("a"), &inbox).unwrap();
    net.settle_but(&[0]);
    assert_eq!(
        net.sides[1].service.status().subscriptions[0].state,
        "asked"
    );
    assert_eq!(
        net.sides[1].service.poll_timeout(),
        Some(net.now_ns + ASK_AGAIN_NS)
    );
    net.now_ns += ASK_AGAIN_NS;
    let Side { node, service } = &mut net.sides[1];
    service.handle_timeout(net.now_ns, node);
    net.settle();
    assert_eq!(
        net.sides[1].service.status().subscriptions[0].state,
        "granted"
    );
    net.say(0, "a", &["once"]);
    assert_eq!(inbox.texts(), ["once"]);
}

#[test]
fn a_slow_subscriber_of_a_reliable_channel_pauses_its_publisher_and_loses_nothing() {
    let mut net = Net::new(3, &[channel("a", &[0], &[0, 1, 2])]);
    let (slow, fast, local) = (
        Inbox::with_room(20),
        Inbox::with_room(9_999),
        Inbox::with_room(9_999),
    );
    let id = net.subscribe(1, only("a"), &slow);
    net.subscribe(2, only("a"), &fast);
    net.subscribe(0, only("a"), &local);
    // One by one, so that the pause gets there before the queue is full.
    let mut sent = 0;
    let waiting = loop {
        let answer = net.publish(0, "a", texts(sent..sent + 1));
        sent += 1;
        net.settle();
        if !answer.is_there() {
            break answer;
        }
    };
    assert_eq!(sent, 11);
    assert_eq!(net.sides[0].service.status().channels[0].remote_holding, 1);
    let mut got = slow.texts();
    net.command(1, Command::Drained(id));
    net.settle();
    assert_eq!(waiting.report().published, 1);
    got.extend(slow.texts());
    let all: Vec<String> = (0..sent).map(|n| n.to_string()).collect();
    assert_eq!(got, all);
    assert_eq!(fast.texts(), all);
    assert_eq!(local.texts(), all);
}

#[test]
fn a_slow_subscriber_on_the_publishers_own_node_pauses_it_too() {
    let mut net = Net::new(1, &[channel("a", &[0], &[0])]);
    let inbox = Inbox::with_room(10);
    let id = net.subscribe(0, only("a"), &inbox);
    let answer = net.publish(0, "a", texts(0..8));
    assert!(!answer.is_there());
    assert_eq!(inbox.take().len(), 5);
    net.command(0, Command::Drained(id));
    assert_eq!(answer.report().published, 8);
    assert_eq!(inbox.take().len(), 3);
}

#[test]
fn a_slow_subscriber_that_leaves_holds_nobody_up() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let (slow, other) = (Inbox::with_room(4), Inbox::with_room(9_999));
    let id = net.subscribe(1, only("a"), &slow);
    net.subscribe(1, only("a"), &other);
    net.say(0, "a", &["1", "2"]);
    let waiting = net.publish(0, "a", texts(3..6));
    net.settle();
    assert!(!waiting.is_there());
    net.command(1, Command::Unsubscribe(id));
    net.settle();
    assert_eq!(waiting.report().published, 3);
    assert_eq!(other.texts(), ["1", "2", "3", "4", "5"]);
}

#[test]
fn a_subscriber_without_room_loses_unreliable_events_and_that_is_counted() {
    let unreliable = ChannelConfig {
        reliable: false,
        ..channel("a", &[0], &[1])
    };
    let mut net = Net::new(2, &[unreliable]);
    let inbox = Inbox::with_room(8);
    let id = net.subscribe(1, only("a"), &inbox);
    assert_eq!(net.publish(0, "a", texts(0..10)).report().published, 10);
    net.settle();
    assert_eq!(net.count(1, Reason::SubscriberFull), 2);
    assert_eq!(net.sides[1].service.entries[0].counters.dropped, 2);
    inbox.take();
    net.command(1, Command::Drained(id));
    net.say(0, "a", &["after"]);
    let after = inbox.take();
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].sequence, 11, "the gap shows what was lost");
}

#[test]
fn a_full_stream_makes_the_publisher_wait_until_there_is_room() {
    for reliable in [true, false] {
        let config = ChannelConfig {
            reliable,
            ..channel("a", &[0], &[1])
        };
        let mut net = Net::new(2, &[config]);
        let inbox = Inbox::with_room(1_000_000);
        net.subscribe(1, only("a"), &inbox);
        let event = Bytes::from(vec![1; if reliable { 8 * 1024 } else { 64 }]);
        let count = EVENT_QUEUE_MAX + 10;
        let first = net.publish(0, "a", vec![event.clone(); count]);
        let second = net.publish(0, "a", texts(0..1));
        assert!(!first.is_there() && !second.is_there());
        assert_eq!(net.sides[0].service.status().channels[0].batches_waiting, 2);
        net.pass(2_000);
        assert_eq!(first.report().published, count as u64);
        assert_eq!(second.report().published, 1);
        let got = inbox.take();
        assert_eq!(got.len(), count + 1);
        assert_eq!(got[count].payload, &b"0"[..], "in order");
    }
}

#[test]
fn an_unreliable_event_waits_for_nobody_as_long_as_someone_takes_it() {
    let unreliable = ChannelConfig {
        reliable: false,
        ..channel("a", &[0], &[0, 1])
    };
    let mut net = Net::new(2, &[unreliable]);
    let (remote, local) = (Inbox::with_room(99_999), Inbox::with_room(99_999));
    net.subscribe(1, only("a"), &remote);
    net.subscribe(0, only("a"), &local);
    let count = EVENT_QUEUE_MAX + 10;
    let report = net.publish(0, "a", texts(0..count)).report();
    assert_eq!(report.published, count as u64);
    assert_eq!(local.take().len(), count);
    let lost = net.count(0, Reason::PeerFull);
    assert!(lost > 0);
    net.pass(2_000);
    assert_eq!(remote.take().len() as u64, count as u64 - lost);
}

#[test]
fn too_large_an_event_is_refused_alone() {
    let unreliable = ChannelConfig {
        reliable: false,
        ..channel("a", &[0], &[1])
    };
    let mut net = Net::new(2, &[unreliable]);
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    let large = |bytes: usize| Bytes::from(vec![0; bytes]);
    let events = vec![large(EVENT_BYTES_MAX + 1), large(EVENT_BYTES_MAX), large(0)];
    let answer = net.publish(0, "a", events);
    net.settle();
    let report = answer.report();
    assert_eq!((report.published, report.refused), (2, 1));
    assert_eq!(report.event_bytes_max, EVENT_BYTES_MAX);
    assert_eq!(inbox.take().len(), 2);
    assert_eq!(net.count(0, Reason::TooLarge), 1);
}

#[test]
fn nonsense_and_unasked_answers_change_nothing_but_a_counter() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    let nonsense: [&[u8]; 4] = [b"", b"\x02", b"\x01\x09", &[1; 300]];
    for bytes in nonsense {
        net.sides[1]
            .node
            .send_control(net.now_ns, id(0), bytes)
            .unwrap();
    }
    let answer = super::message::Answer::NotAuthorised;
    let unasked = [
        Message::Ack {
            request: 999,
            answer,
        },
        Message::Hold(name("nowhere")),
        Message::Release(name("a")),
        Message::Unsubscribe {
            request: 1,
            pattern: within("a"),
        },
    ];
    for message in unasked {
        let bytes = message.encode();
        net.sides[1]
            .node
            .send_control(net.now_ns, id(0), &bytes)
            .unwrap();
    }
    net.settle();
    assert_eq!(net.count(0, Reason::ControlMalformed), 4);
    net.say(0, "a", &["still"]);
    assert_eq!(inbox.texts(), ["still"]);
}

#[test]
fn a_stopping_node_answers_every_waiting_publisher() {
    let mut net = Net::new(1, &[channel("a", &[0], &[0])]);
    net.subscribe(0, only("a"), &Inbox::with_room(2));
    let inbox = Inbox::with_room(2);
    net.subscribe(0, only("a"), &inbox);
    let waiting = net.publish(0, "a", texts(0..9));
    assert!(!waiting.is_there());
    let Side { node, service } = &mut net.sides[0];
    service.stop(net.now_ns, node);
    assert_eq!(waiting.result(), Err(PublishError::Stopping));
}

#[test]
fn every_reason_has_its_own_name() {
    let mut names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Reason::ALL.len());
}
