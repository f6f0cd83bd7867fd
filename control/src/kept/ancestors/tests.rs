//! Nodes that say what a test has them say, feeds, and what is kept of events that wait.

use super::{search::Asking, *};
use crate::reading::{
    Outcome,
    wire::{Given, Want},
};
use ed25519_dalek::SigningKey;
use std::{
    collections::BTreeMap,
    future::pending,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};
use tokio::sync::mpsc;
use virga_ebpf::header::NodeId;
use virga_state::{Cursor, LogName, batch::Observed, feed::FeedEnd};

/// What a node answers; none: nothing, and whoever asks waits.
type Says = dyn Fn(Wanted, Cursor) -> Option<Given> + Send + Sync;

/// A node.
#[derive(Clone)]
pub(super) struct Node {
    says: Arc<Says>,
    asked: Arc<AtomicUsize>,
    /// How long its answers are on their way, and whether parts of them come all the while.
    way: Duration,
    is_seen: bool,
    arrived: Arc<AtomicU64>,
}

impl Node {
    pub(super) fn new(
        says: impl Fn(Wanted, Cursor) -> Option<Given> + Send + Sync + 'static,
    ) -> Self {
        Self {
            says: Arc::new(says),
            asked: Arc::default(),
            way: Duration::ZERO,
            is_seen: false,
            arrived: Arc::default(),
        }
    }

    /// The same over a thin link.
    pub(super) fn after(self, way: Duration) -> Self {
        Self { way, ..self }
    }

    /// The same, and parts of each answer come all the while.
    pub(super) fn in_parts(self) -> Self {
        Self {
            is_seen: true,
            ..self
        }
    }

    /// How often it was asked.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Asking for Node {
    async fn ask(&self, want: Want, cursor: Cursor) -> Outcome {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (Want::Batches(wanted) | Want::Named(wanted)) = want else {
            panic!("it is asked for batches alone");
        };
        let Some(given) = (self.says)(wanted, cursor) else {
            return pending().await;
        };
        let whole = Instant::now() + self.way;
        while Instant::now() < whole {
            self.arrived
                .fetch_add(self.is_seen.into(), Ordering::Relaxed);
            let part = (Instant::now() + Duration::from_millis(50)).min(whole);
            tokio::time::sleep_until(part).await;
        }
        self.arrived.fetch_add(1, Ordering::Relaxed);
        Outcome::Given(given)
    }

    fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// Those that may keep the channel, by their numbers from 1 on.
#[derive(Clone, Default)]
pub(super) struct Town {
    nodes: BTreeMap<NodeId, Node>,
    pub(super) may_not_say: bool,
}

impl Town {
    pub(super) fn new(nodes: &[&Node]) -> Self {
        let nodes = nodes.iter().zip(1..);
        Self {
            nodes: nodes
                .map(|(&node, id)| (NodeId(id), node.clone()))
                .collect(),
            may_not_say: false,
        }
    }
}

impl Around for Town {
    type Node = Node;

    async fn keepers(&self, _channel: &ChannelName) -> Result<Vec<NodeId>, Unfound> {
        Ok(self.nodes.keys().copied().collect())
    }

    async fn reach(&self, node: NodeId, _channel: &ChannelName) -> Result<Node, Unfound> {
        Ok(self.nodes[&node].clone())
    }

    async fn may_say(&self, _channel: &ChannelName, _entity: [u8; 32]) -> bool {
        !self.may_not_say
    }
}

/// What an entity says on a channel.
#[derive(Clone)]
pub(in crate::kept) struct Author {
    key: SigningKey,
    pub(in crate::kept) end: FeedEnd,
}

impl Author {
    pub(in crate::kept) fn new(seed: u8, channel: &str) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let channel = LogName::parse(channel).unwrap();
        let end = FeedEnd::new(channel, key.verifying_key().to_bytes());
        Self { key, end }
    }

    /// Its next event, a batch of its own.
    pub(in crate::kept) fn say(&mut self, payload: &[u8]) -> Bytes {
        self.say_after(Vec::new(), payload)
    }

    /// Says that many events that nobody hears.
    pub(super) fn skip(&mut self, channel: &str, count: u64) {
        let channel = LogName::parse(channel).unwrap();
        let (said, head) = self.end.end();
        let entity = self.key.verifying_key().to_bytes();
        self.end = FeedEnd::at(channel, entity, Some((said + count, head)));
    }

    /// The same when it has observed these.
    pub(in crate::kept) fn say_after(&mut self, frontier: Vec<Observed>, payload: &[u8]) -> Bytes {
        let batch = self
            .end
            .sign(&self.key, frontier, [payload].into_iter())
            .unwrap();
        bundle::encode(&batch, &[payload]).into()
    }
}

/// Whose a batch is, and on which channel.
pub(in crate::kept) fn feed_of(message: &Bytes) -> FeedId {
    let (batch, _) = bundle::parse(message).unwrap();
    batch.signed.statement.feed()
}

/// What waits in front of log 0 of channel `test/signed`, where nobody has what is missing.
struct Front {
    ancestors: Ancestors<Town>,
    channel: ChannelName,
    coming: Coming,
    _to: mpsc::Sender<Input>,
    _inputs: mpsc::Receiver<Input>,
}

impl Front {
    fn new() -> Self {
        let (to, inputs) = mpsc::channel(8);
        let coming = Coming::default();
        let (around, runtime) = (Town::default(), Handle::current());
        Self {
            ancestors: Ancestors::new(
                around,
                (coming.clone(), Places::default()),
                to.downgrade(),
                runtime,
            ),
            channel: ChannelName::parse("test/signed").unwrap(),
            coming,
            _to: to,
            _inputs: inputs,
        }
    }

    fn arrived(&mut self, message: &Bytes) -> Arrived {
        let now = Instant::now();
        self.ancestors.arrived((0, &self.channel), message, now)
    }

    /// The log has taken it.
    fn has(&mut self, message: &Bytes) {
        let (batch, payloads) = bundle::parse(message).unwrap();
        let payloads = payloads.into_iter().map(|range| &message[range]);
        let batch = batch.verify(payloads).unwrap();
        self.ancestors.note((0, 0), &batch, 1);
    }

    /// An entity's first event is in the log, its second is not.
    fn skips(&mut self, seed: u8, channel: &str) -> Author {
        let mut author = Author::new(seed, channel);
        let first = author.say(b"first");
        assert_eq!(self.arrived(&first), Arrived::Next);
        self.has(&first);
        author.say(b"second");
        author
    }
}

#[tokio::test]
async fn a_batch_waits_while_what_it_follows_is_not_there() {
    let mut front = Front::new();
    let mut author = front.skips(1, "test/signed");
    let (third, fourth) = (author.say(b"third"), author.say(b"fourth"));
    let feed = feed_of(&third);
    // One that was changed on its way is refused where it is appended, and nobody is asked for what it names.
    let mut changed = third.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(front.arrived(&changed.into()), Arrived::Next);
    assert_eq!(front.arrived(&third), Arrived::Waits);
    assert_eq!(front.arrived(&fourth), Arrived::Waits);
    let bytes = (third.len() + fourth.len()) as u64;
    let waiting = |front: &Front| [0, 1].map(|log| front.ancestors.waiting_bytes(log));
    assert_eq!(waiting(&front), [bytes, 0]);
    assert!(!front.ancestors.is_next(0, feed, &third));
    // Another gap's end is not this one's.
    assert!(front.ancestors.end(feed, 2).is_empty());
    assert_eq!(front.ancestors.end(feed, 1), [third, fourth]);
    assert_eq!(waiting(&front), [0, 0]);
}

#[tokio::test]
async fn only_what_follows_the_head_is_next() {
    let mut front = Front::new();
    let mut author = Author::new(1, "test/signed");
    let first = author.say(b"first");
    front.has(&first);
    let feed = feed_of(&first);
    let mut twin = Author::new(1, "test/signed");
    twin.say(b"another first");
    let (second, of_twin) = (author.say(b"second"), twin.say(b"second"));
    assert!(front.ancestors.is_next(0, feed, &second));
    assert!(!front.ancestors.is_next(0, feed, &of_twin));
    assert!(!front.ancestors.is_next(0, feed, &first));
    let other = Author::new(2, "test/signed").say(b"first");
    assert!(!front.ancestors.is_next(0, feed_of(&other), &other));
}

#[tokio::test]
async fn of_a_feed_that_there_is_no_room_to_know_nothing_is_had() {
    let mut front = Front::new();
    let mut author = Author::new(1, "test/signed");
    let (first, second) = (author.say(b"first"), author.say(b"second"));
    let feed = feed_of(&first);
    front.has(&first);
    assert!(front.ancestors.is_behind(feed, &first));
    assert!(!front.ancestors.is_behind(feed, &second));
    let end = front.ancestors.ends[&feed];
    for number in 0..CAUSAL_FEEDS_MAX as u64 {
        let mut other = [3; 32];
        other[..8].copy_from_slice(&number.to_be_bytes());
        front.ancestors.ends.insert(FeedId(other), end);
    }
    let other = Author::new(2, "test/signed").say(b"first");
    front.has(&other);
    assert!(!front.ancestors.is_behind(feed_of(&other), &other));
    front.has(&second);
    assert!(front.ancestors.is_behind(feed, &second));
}

#[tokio::test]
async fn nobody_is_asked_again_at_once_where_nothing_came_of_it() {
    let mut front = Front::new();
    let mut author = front.skips(1, "test/signed");
    let third = author.say(b"third");
    let feed = feed_of(&third);
    assert_eq!(front.arrived(&third), Arrived::Waits);
    front.ancestors.pause(feed);
    front.ancestors.give_up(feed);
    assert_eq!(front.arrived(&third), Arrived::Without(Unfound::Often));
    // Another's feed is none of this one's business.
    let mut other = front.skips(2, "test/signed");
    assert_eq!(front.arrived(&other.say(b"third")), Arrived::Waits);
}

#[tokio::test]
async fn what_is_missing_of_an_entity_has_its_turn_and_no_more_waits_than_may() {
    let mut front = Front::new();
    let feeds: Vec<FeedId> = (0..=GAPS_PER_ENTITY_MAX)
        .map(|at| {
            let third = front.skips(1, &format!("test/{at}")).say(b"third");
            let expected = match at < GAPS_PER_ENTITY_MAX {
                true => Arrived::Waits,
                false => Arrived::Without(Unfound::Full),
            };
            assert_eq!(front.arrived(&third), expected, "{at}");
            feed_of(&third)
        })
        .collect();
    let searched = |front: &Front| {
        let is_searched = |feed: &FeedId| {
            let gap = front.ancestors.gaps.get(feed);
            gap.is_some_and(|gap| gap.search.is_some())
        };
        feeds.iter().map(is_searched).collect::<Vec<bool>>()
    };
    let few = SEARCHES_PER_ENTITY_MAX;
    let first: Vec<bool> = (0..feeds.len()).map(|at| at < few).collect();
    assert_eq!(searched(&front), first);
    // Another entity's has a place.
    let third = front.skips(2, "test/0").say(b"third");
    assert_eq!(front.arrived(&third), Arrived::Waits);
    assert!(front.ancestors.gaps[&feed_of(&third)].search.is_some());
    // Once one is through, the next is looked for.
    assert_eq!(front.ancestors.turn(), None);
    assert_eq!(front.ancestors.end(feeds[0], 1).len(), 1);
    assert_eq!(front.ancestors.turn(), None);
    let next: Vec<bool> = (0..feeds.len()).map(|at| (1..=few).contains(&at)).collect();
    assert_eq!(searched(&front), next);
    // One whose turn does not come is given up.
    let late = feeds[few + 1];
    let gap = front.ancestors.gaps.get_mut(&late).unwrap();
    gap.since = Instant::now().checked_sub(TURN_WITHIN).unwrap();
    assert_eq!(front.ancestors.turn(), Some((0, late)));
    assert_eq!(front.ancestors.give_up(late).len(), 1);
    assert_eq!(front.ancestors.turn(), None);
}

#[tokio::test]
async fn a_feed_is_given_so_much_and_no_more() {
    let mut front = Front::new();
    let third = front.skips(2, "test/0").say(b"third");
    assert_eq!(front.arrived(&third), Arrived::Waits);
    let feed = feed_of(&third);
    front.ancestors.took(feed, FETCHED_BYTES_MAX);
    front.ancestors.give_up(feed);
    assert_eq!(front.arrived(&third), Arrived::Without(Unfound::Full));
}

#[tokio::test]
async fn the_one_that_waits_with_most_makes_room() {
    let mut front = Front::new();
    let mut small = front.skips(1, "test/signed");
    let small_third = small.say(b"third");
    assert_eq!(front.arrived(&small_third), Arrived::Waits);
    let mut large = front.skips(2, "test/signed");
    let payload = vec![7; 800 << 10];
    let count = WAITING_BYTES_MAX / payload.len();
    for _ in 0..count {
        assert_eq!(front.arrived(&large.say(&payload)), Arrived::Waits);
    }
    let one_more = large.say(&payload);
    let feed = feed_of(&one_more);
    assert_eq!(front.arrived(&one_more), Arrived::Evict(0, feed));
    assert_eq!(front.ancestors.give_up(feed).len(), count);
    // It is not asked for again at once, and the other waits still.
    let next = large.say(b"next");
    assert_eq!(front.arrived(&next), Arrived::Without(Unfound::Often));
    assert_eq!(
        front.ancestors.give_up(feed_of(&small_third)),
        [small_third]
    );
}

#[tokio::test]
async fn what_a_log_gets_itself_may_be_asked_for_again() {
    let mut front = Front::new();
    let mut author = front.skips(1, "test/signed");
    let third = author.say(b"third");
    let feed = feed_of(&third);
    assert_eq!(front.arrived(&third), Arrived::Waits);
    let comes = |front: &Front| front.coming.has(&front.channel, feed);
    assert!(!comes(&front), "nobody gave any yet");
    front.ancestors.took(feed, 1);
    assert!(comes(&front));
    let other = ChannelName::parse("test/other").unwrap();
    assert!(!front.coming.has(&other, feed), "to that log it does not");
    front.ancestors.end(feed, 1);
    assert!(!comes(&front));
    front.ancestors.took(feed, 1);
    assert!(!comes(&front), "nobody looks for it");
}
