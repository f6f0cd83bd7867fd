//! Fan-out trees: every event once and in order, whoever brings it; what becomes of it when a relay fails; and what nobody
//! gets who has no right to it.

use super::*;
use crate::channel::{
    Plan, Policy, Tally,
    entry::Entry,
    tree::{
        TAIL_BYTES_MAX,
        wire::{Said, What},
    },
};
use ed25519_dalek::SigningKey;
use std::collections::BTreeMap;
use virga_state::{LogName, bundle, feed::FeedEnd};
use virga_transport::Event;

mod again;
mod barred;
mod deadlines;
mod hostile;
mod places;
mod rights;
mod underway;

const RELAYS: [usize; 2] = [1, 2];

/// Node 0 publishes to all others; 1 and 2 pass on to two each.
struct Grove {
    net: Net,
    channels: Vec<Vec<ChannelConfig>>,
    feed: FeedEnd,
    inboxes: Vec<Inbox>,
    said: usize,
    /// What has come to a node from the publisher and waits before its service.
    late: Vec<(usize, Event)>,
}

/// As each node is configured.
fn signed(count: u8, fan_out: u8) -> Vec<Vec<ChannelConfig>> {
    let others: Vec<u8> = (1..count).collect();
    let block = ChannelConfig {
        mode: Mode::Signed,
        fan_out,
        ..channel("a", &[0, 1, 2], &others)
    };
    vec![vec![block]; count.into()]
}

fn feed(number: u8) -> FeedEnd {
    FeedEnd::new(LogName::parse("a").unwrap(), entity(number))
}

/// The next batch of a feed, by whoever has the key.
fn batch(feed: &mut FeedEnd, number: u8, text: &str) -> Bytes {
    let key = SigningKey::from_bytes(&keys(number).entity_key);
    let payloads = [text.as_bytes()];
    let batch = feed.sign(&key, Vec::new(), payloads.into_iter()).unwrap();
    bundle::encode(&batch, &payloads).into()
}

impl Grove {
    fn new(count: u8) -> Self {
        Self::of(signed(count, 2))
    }

    fn of(channels: Vec<Vec<ChannelConfig>>) -> Self {
        let net = Net::with(&channels);
        Self::on(net, channels)
    }

    fn on(mut net: Net, channels: Vec<Vec<ChannelConfig>>) -> Self {
        let inboxes: Vec<Inbox> = net
            .sides
            .iter()
            .map(|_| Inbox::with_room(100_000))
            .collect();
        for (at, inbox) in inboxes.iter().enumerate().skip(1) {
            net.subscribe(at, only("a"), inbox);
        }
        Self {
            net,
            channels,
            feed: feed(0),
            inboxes,
            said: 0,
            late: Vec::new(),
        }
    }

    /// With the tree as it is to be.
    fn grown(count: u8) -> Self {
        let mut grove = Self::new(count);
        grove.grow();
        grove
    }

    fn grow(&mut self) {
        for _ in 0..4 {
            self.say(1);
            self.net.pass(600);
        }
        self.heard();
    }

    fn batches(&mut self, count: usize) -> Vec<Bytes> {
        let texts = (self.said..self.said + count).map(|n| n.to_string());
        self.said += count;
        texts.map(|text| batch(&mut self.feed, 0, &text)).collect()
    }

    /// Publishes so many events, each in a batch.
    fn publish(&mut self, count: usize) -> Answer {
        let batches = self.batches(count);
        self.net.publish(0, "a", batches)
    }

    fn say(&mut self, count: usize) {
        let _report = self.publish(count);
        self.net.settle();
    }

    /// What each subscriber has heard since the last time.
    fn heard(&self) -> Vec<Vec<String>> {
        self.inboxes[1..].iter().map(Inbox::texts).collect()
    }

    fn relayed(&self) -> BTreeMap<usize, Vec<usize>> {
        let relayed = self.net.status(0).channels[0].relayed.clone();
        let children = |all: Vec<String>| all.iter().map(|child| self.number(child)).collect();
        let relayed = relayed.into_iter();
        relayed
            .map(|(relay, all)| (self.number(&relay), children(all)))
            .collect()
    }

    fn number(&self, id: &str) -> usize {
        let mut ids = self.net.sides.iter().map(|side| side.node.id().to_string());
        ids.position(|known| known == id).unwrap()
    }

    fn id(&self, at: usize) -> NodeId {
        self.net.sides[at].node.id()
    }

    /// What a node keeps of the channel.
    fn entry(&self, at: usize) -> &Entry {
        &self.net.sides[at].service.entries[0]
    }

    /// Whom a node has asked to pass something on to, or does.
    fn feeds(&self, relay: usize, child: usize) -> usize {
        let remote = self.entry(relay).roster.get(&self.id(child));
        remote.map_or(0, |remote| remote.feeds.len())
    }

    /// A relay and whom it serves.
    fn branch(&self) -> (usize, Vec<usize>) {
        self.relayed().into_iter().next().unwrap()
    }

    fn all_heard(&self, texts: std::ops::Range<usize>) {
        self.all_heard_but(&[], texts);
    }

    fn all_heard_but(&self, others: &[usize], texts: std::ops::Range<usize>) {
        let expected: Vec<String> = texts.map(|n| n.to_string()).collect();
        for at in (1..self.inboxes.len()).filter(|at| !others.contains(at)) {
            assert_eq!(self.inboxes[at].texts(), expected, "subscriber {at}");
        }
    }

    /// Lets time pass while some services hear nothing.
    fn pass_but(&mut self, deaf: &[usize], milliseconds: u64) {
        for _ in 0..milliseconds {
            self.tick(deaf);
            self.net.settle_but(deaf);
        }
    }

    fn tick(&mut self, deaf: &[usize]) {
        let net = &mut self.net;
        net.now_ns += MS;
        for (at, Side { node, service }) in net.sides.iter_mut().enumerate() {
            if node.poll_timeout().is_some_and(|due| due <= net.now_ns) {
                node.handle_timeout(net.now_ns);
            }
            let is_due = service.poll_timeout().is_some_and(|due| due <= net.now_ns);
            if is_due && !deaf.contains(&at) {
                service.handle_timeout(net.now_ns, node);
            }
        }
    }

    /// Carries everything, but what the publisher's stream brings to one node waits before its service.
    fn settle_late(&mut self, late: usize) {
        let publisher = self.id(0);
        let mut moved = true;
        while moved {
            moved = false;
            for at in 0..self.net.sides.len() {
                moved |= self.net.carry_from(at);
                while let Some(event) = self.net.sides[at].node.poll() {
                    moved = true;
                    match event {
                        Event::Message { peer, .. } if at == late && peer == publisher => {
                            self.late.push((at, event));
                        }
                        event => self.hand(at, event),
                    }
                }
            }
        }
    }

    fn pass_late(&mut self, late: usize, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.tick(&[]);
            self.settle_late(late);
        }
    }

    fn hand(&mut self, at: usize, event: Event) {
        let Side { node, service } = &mut self.net.sides[at];
        service.on_event(self.net.now_ns, node, event);
    }

    /// What waited comes after all.
    fn hand_late(&mut self) {
        for (at, event) in std::mem::take(&mut self.late) {
            self.hand(at, event);
        }
        self.net.settle();
    }

    fn tell(&mut self, from: usize, to: usize, number: u64, what: What) {
        self.put(from, to, number, what);
        self.net.settle();
    }

    /// The same, and it is not carried yet.
    fn put(&mut self, from: usize, to: usize, number: u64, what: What) {
        let said = Said {
            channel: name("a"),
            number,
            what,
        };
        let to = self.id(to);
        let Side { node, service } = &mut self.net.sides[from];
        service.tell(self.net.now_ns, node, to, &Message::Tree(said));
    }

    fn unsubscribe(&mut self, at: usize) {
        let ids = self.net.sides[at].service.subscribers.keys();
        let id = *ids.last().unwrap();
        self.net.command(at, Command::Unsubscribe(id));
        self.net.settle();
    }

    fn counts(&self, reason: Reason) -> u64 {
        let all = 0..self.net.sides.len();
        all.map(|at| self.net.count(at, reason)).sum()
    }

    /// Messages that have come to a node, whatever became of them.
    fn arrived(&self, at: usize) -> u64 {
        let reasons = [
            Reason::RelayStranger,
            Reason::RelayForged,
            Reason::RelayEarly,
            Reason::RelayDuplicate,
            Reason::UnknownStream,
            Reason::Unsigned,
        ];
        let dropped: u64 = reasons
            .map(|reason| self.net.count(at, reason))
            .iter()
            .sum();
        dropped + self.net.status(at).channels[0].received
    }
}

#[test]
fn two_nodes_bring_four_others_everything_once_and_in_order() {
    let mut grove = Grove::new(7);
    grove.say(3);
    grove.all_heard(0..3);
    assert!(grove.relayed().is_empty());
    for n in 3..8 {
        grove.say(1);
        grove.net.pass(600);
        grove.all_heard(n..n + 1);
    }
    let relayed = grove.relayed();
    assert!(relayed.keys().eq(&RELAYS));
    assert!(relayed.values().all(|children| children.len() == 2));
    let sent = |grove: &Grove| {
        let sessions = grove.net.sides[0].node.sessions();
        let bytes = sessions.map(|s| (grove.number(&s.peer.to_string()), s.sent_bytes));
        bytes.collect::<BTreeMap<_, _>>()
    };
    let (twice, before) = (grove.counts(Reason::RelayDuplicate), sent(&grove));
    let report = grove.publish(500);
    grove.net.pass(400);
    assert_eq!(report.report().published, 500);
    grove.all_heard(8..508);
    // The publisher has sent them to two nodes, and each once.
    assert_eq!(grove.counts(Reason::RelayDuplicate), twice);
    for (peer, bytes) in sent(&grove) {
        let is_relay = RELAYS.contains(&peer);
        assert_eq!(bytes - before[&peer] > 100_000, is_relay, "{peer}");
    }
    let status = |at: usize| grove.net.status(at).channels[0].clone();
    let passed_on: u64 = RELAYS.iter().map(|&at| status(at).relayed_events).sum();
    assert!(passed_on >= 2_000);
    assert!(RELAYS.iter().all(|&at| status(at).children == 2));
    assert_eq!(grove.counts(Reason::RelayFailed), 0);
    // Relays' own events go on as ever, to all.
    let mut own = feed(1);
    let mine = batch(&mut own, 1, "mine");
    let _report = grove.net.publish(1, "a", vec![mine]);
    grove.net.settle();
    assert_eq!(grove.inboxes[3].texts(), ["mine"]);
    assert_eq!(grove.inboxes[6].texts(), ["mine"]);
}

#[test]
fn no_tree_without_being_asked_and_no_more_of_it_than_there_is_room_for() {
    assert!(Grove::grown(3).relayed().is_empty(), "two are not too many");
    let mut unasked = Grove::of(signed(7, 0));
    unasked.grow();
    assert!(unasked.relayed().is_empty());
    let mut alone = signed(7, 2);
    for relay in RELAYS {
        alone[relay][0].fan_out = 0;
    }
    let mut alone = Grove::of(alone);
    alone.grow();
    assert!(
        alone.relayed().is_empty(),
        "nobody passes on who was not asked to"
    );
    // Two of each, and the publisher serves the others itself.
    let mut large = Grove::grown(10);
    assert!(large.relayed().values().all(|children| children.len() == 2));
    let said = large.said;
    large.say(10);
    large.net.pass(100);
    large.all_heard(said..said + 10);
}

#[test]
fn nodes_that_come_and_go_miss_nothing_while_they_are_there() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    grove.unsubscribe(children[0]);
    assert_eq!(grove.net.status(relay).channels[0].children, 1);
    let said = grove.said;
    grove.say(5);
    grove.net.pass(100);
    assert_eq!(grove.inboxes[children[0]].texts(), [""; 0]);
    grove.all_heard_but(&[children[0]], said..said + 5);
    // The relay does: its children are the publisher's own again.
    grove.unsubscribe(relay);
    let said = grove.said;
    grove.say(20);
    grove.net.pass(1_000);
    grove.all_heard_but(&[relay, children[0]], said..said + 20);
    assert!(!grove.relayed().contains_key(&relay));
    // Both come again.
    for at in [relay, children[0]] {
        let inbox = grove.inboxes[at].clone();
        grove.net.subscribe(at, only("a"), &inbox);
    }
    for _ in 0..15 {
        let said = grove.said;
        grove.say(1);
        grove.net.pass(600);
        grove.all_heard(said..said + 1);
    }
    assert_eq!(grove.relayed().values().map(Vec::len).sum::<usize>(), 4);
}

#[test]
fn a_relay_that_is_silent_is_replaced_and_nothing_is_missing() {
    let mut grove = Grove::grown(7);
    let said = grove.said;
    let (relay, children) = grove.branch();
    let report = grove.publish(20);
    grove.pass_but(&[relay], 1_000);
    assert_eq!(report.report().subscribers, 6, "its stream took them");
    for &child in &children {
        assert_eq!(grove.inboxes[child].texts(), [""; 0]);
    }
    grove.pass_but(&[relay], 6_000);
    grove.all_heard_but(&[relay], said..said + 20);
    assert_eq!(grove.net.count(0, Reason::RelayFailed), 2);
    // It hears all of it after all, and so do the others what comes then.
    grove.net.settle();
    let expected: Vec<String> = (said..said + 20).map(|n| n.to_string()).collect();
    assert_eq!(grove.inboxes[relay].texts(), expected);
    let said = grove.said;
    grove.say(20);
    grove.net.pass(100);
    grove.all_heard(said..said + 20);
}

#[test]
fn a_relay_that_dies_takes_nothing_of_others_with_it() {
    let mut grove = Grove::grown(7);
    let (relay, _) = grove.branch();
    let said = grove.said;
    let report = grove.publish(50);
    // It has some of them, and its children fewer.
    for at in 0..3 {
        grove.net.carry_from(at);
    }
    let number = u8::try_from(relay).unwrap();
    let channels = grove.channels[relay].clone();
    grove.net.restart(number, &channels);
    grove.net.pass(60_000);
    drop(report);
    grove.all_heard_but(&[relay], said..said + 50);
    let said = grove.said;
    grove.say(20);
    grove.net.pass(100);
    grove.all_heard_but(&[relay], said..said + 20);
}

#[test]
fn what_was_never_published_is_not_waited_for() {
    let mut grove = Grove::grown(7);
    for _ in 0..3 {
        // Signed, and given up before anybody got it.
        let _never = batch(&mut grove.feed, 0, "never");
        let said = grove.said;
        grove.say(10);
        grove.net.pass(100);
        grove.all_heard(said..said + 10);
    }
    assert_eq!(grove.relayed().len(), 2);
    assert_eq!(grove.counts(Reason::RelayFailed), 0);
}

#[test]
fn what_a_child_has_not_confirmed_is_not_acknowledged() {
    let mut grove = Grove::grown(7);
    let (_, children) = grove.branch();
    let child = children[0];
    let plan = Plan {
        policy: Policy::BestEffort,
        in_flight_max: 10_000,
        within: Duration::from_secs(600),
    };
    let tally = Arc::new(Tally::new(plan, 100, true));
    let batches = Batch::new(grove.batches(100), Box::new(|_| {}));
    let batch = batches.tallied(Some(Arc::clone(&tally)));
    let channel = name("a");
    grove.net.command(0, Command::Publish { channel, batch });
    grove.pass_but(&[child], 1_000);
    let of = |grove: &Grove, at| {
        let outcome = tally.now().nodes[&grove.id(at)].clone();
        (outcome.acknowledged, outcome.pending, outcome.lost)
    };
    assert_eq!(of(&grove, child), (0, 100, 0));
    assert_eq!(of(&grove, children[1]), (100, 0, 0));
    grove.pass_but(&[], 8_000);
    assert_eq!(of(&grove, child), (100, 0, 0));
    assert_eq!(grove.inboxes[child].texts().len(), 100);
    assert_eq!(tally.now().nodes.len(), 6);
}

#[test]
fn a_slow_child_is_waited_for_and_then_served_by_the_publisher() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let child = children[0];
    let long = "x".repeat(50_000);
    let count = 2 * TAIL_BYTES_MAX / long.len();
    let batches = (0..count).map(|_| batch(&mut grove.feed, 0, &long));
    let batches: Vec<Bytes> = batches.collect();
    let answer = grove.net.publish(0, "a", batches);
    grove.pass_but(&[child], 2_000);
    assert!(!answer.is_there(), "the publisher waits");
    let got = grove.inboxes[children[1]].texts().len();
    assert!(
        (count / 2..=count / 2 + 3).contains(&got),
        "{got} of {count}"
    );
    grove.pass_but(&[child], 6_000);
    assert!(answer.is_there(), "and not for ever");
    assert_eq!(grove.relayed()[&relay].len(), 1);
    grove.net.pass(1_000);
    assert_eq!(grove.inboxes[child].texts().len(), count);
    assert_eq!(grove.inboxes[children[1]].texts().len(), count - got);
}

#[test]
fn a_publisher_that_stops_sends_by_itself_what_was_not_confirmed() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let _report = grove.publish(30);
    grove.pass_but(&[relay], 100);
    let Side { node, service } = &mut grove.net.sides[0];
    service.stop(grove.net.now_ns, node);
    grove.pass_but(&[relay], 100);
    for child in children {
        assert_eq!(grove.inboxes[child].texts().len(), 30);
    }
}
