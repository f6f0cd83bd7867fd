use super::*;
use crate::{LogName, batch::Batch, feed::FeedEnd};
use ed25519_dalek::SigningKey;
use std::collections::BTreeMap;

mod hostile;

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // Steele, Lea, Flood: splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % end as u64).unwrap()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

/// An entity on a channel.
struct Author {
    key: SigningKey,
    end: FeedEnd,
    id: FeedId,
    /// All that was observed, of each feed how much: what is not newer is not observed anew.
    observed: BTreeMap<FeedId, u64>,
}

impl Author {
    fn new(seed: u8, channel: &str) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let entity = key.verifying_key().to_bytes();
        let channel = LogName::parse(channel).unwrap();
        Self {
            id: FeedId::of(&channel, &entity),
            end: FeedEnd::new(channel, entity),
            key,
            observed: BTreeMap::new(),
        }
    }

    fn sign(&mut self, frontier: Vec<Observed>, events: u8) -> Verified {
        let payloads: Vec<[u8; 1]> = (0..events).map(|event| [event]).collect();
        let payloads = || payloads.iter().map(|payload| &payload[..]);
        let batch = self.end.sign(&self.key, frontier, payloads()).unwrap();
        batch.verify(payloads()).unwrap()
    }
}

fn seen(batch: &Verified) -> Observed {
    let statement = batch.statement();
    Observed {
        feed: statement.feed(),
        count: statement.last(),
        head: statement.head,
    }
}

fn id(author: &Author, sequence: u64) -> EventId {
    let feed = author.id;
    EventId { feed, sequence }
}

/// A history, and of each event all that was before it, event by event.
#[derive(Default)]
struct History {
    batches: Vec<Verified>,
    before: BTreeMap<EventId, BTreeSet<EventId>>,
}

impl History {
    /// Batches of some entities on two channels, each after it has observed some of what there is.
    fn random(random: &mut Random, batches: usize) -> Self {
        let channels = ["a", "b/c"];
        let seeds = 1..u8::try_from(3 + random.below(4)).unwrap();
        let of = |seed| channels.map(|channel| Author::new(seed, channel));
        let mut authors: Vec<Author> = seeds.flat_map(of).collect();
        let mut history = Self::default();
        for _ in 0..batches {
            let author = random.below(authors.len());
            let author = &mut authors[author];
            let mut frontier = BTreeMap::new();
            for _ in 0..random.below(4).min(history.batches.len()) {
                let batch = &history.batches[random.below(history.batches.len())];
                let seen = seen(batch);
                if seen.feed != author.id && author.observed.get(&seen.feed) < Some(&seen.count) {
                    author.observed.insert(seen.feed, seen.count);
                    frontier.insert(seen.feed, seen);
                }
            }
            let events = u8::try_from(1 + random.below(4)).unwrap();
            let batch = author.sign(frontier.into_values().collect(), events);
            history.push(batch);
        }
        history
    }

    fn push(&mut self, batch: Verified) {
        let statement = batch.statement();
        let mut before = BTreeSet::new();
        let parent = Observed {
            feed: statement.feed(),
            count: statement.first - 1,
            head: statement.parent,
        };
        for seen in batch.batch().frontier.iter().chain([&parent]) {
            for sequence in 1..=seen.count {
                let feed = seen.feed;
                let event = EventId { feed, sequence };
                before.insert(event);
                before.extend(&self.before[&event]);
            }
        }
        for sequence in statement.first..=statement.last() {
            let feed = statement.feed();
            let event = EventId { feed, sequence };
            self.before.insert(event, before.clone());
            before.insert(event);
        }
        self.batches.push(batch);
    }

    fn truth(&self, one: EventId, other: EventId) -> Order {
        match () {
            () if one == other => Order::Same,
            () if self.before[&other].contains(&one) => Order::Before,
            () if self.before[&one].contains(&other) => Order::After,
            () => Order::Concurrent,
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (EventId, EventId)> {
        let events: Vec<EventId> = self.before.keys().copied().collect();
        let all = events.clone().into_iter();
        all.flat_map(move |one| events.clone().into_iter().map(move |other| (one, other)))
    }

    /// The batch that is asked for.
    fn fetch(&self, missing: Missing) -> &Verified {
        let has = |batch: &&Verified| {
            let statement = batch.statement();
            let numbers = statement.first..=statement.last();
            let is_head = missing.head.is_none_or(|head| head == statement.head);
            statement.feed() == missing.feed && numbers.contains(&missing.sequence) && is_head
        };
        self.batches
            .iter()
            .find(has)
            .expect("only what there is is asked for")
    }
}

fn index_of(batches: impl IntoIterator<Item = Verified>) -> Index {
    let mut index = Index::default();
    for batch in batches {
        let inserted = index.insert(batch);
        assert!(
            inserted.place.is_ok() && inserted.fork.is_none(),
            "{inserted:?}"
        );
    }
    index
}

#[test]
fn any_order_of_arrival_gives_every_answer_as_it_is() {
    for seed in 0..150 {
        let random = &mut Random(seed);
        let size = 1 + random.below(24);
        let history = History::random(random, size);
        let mut arriving = history.batches.clone();
        random.shuffle(&mut arriving);
        let index = index_of(arriving);
        assert_eq!((index.held(), index.pending()), (history.batches.len(), 0));
        assert_eq!(index.missing().next(), None);
        assert_eq!((index.pending_entries, index.waiters.len()), (0, 0));
        for (one, other) in history.pairs() {
            let (answer, truth) = (index.order(one, other), history.truth(one, other));
            assert_eq!(answer, truth, "seed {seed}: {one:?} {other:?}");
        }
    }
}

#[test]
fn what_is_withheld_makes_an_answer_unknown_or_leaves_it_right() {
    let (mut known, mut unknown) = (0, 0);
    for seed in 1_000..1_150 {
        let random = &mut Random(seed);
        let size = 2 + random.below(20);
        let history = History::random(random, size);
        let mut arriving = history.batches.clone();
        random.shuffle(&mut arriving);
        arriving.truncate(random.below(arriving.len()) + 1);
        let index = index_of(arriving.clone());
        for (one, other) in history.pairs() {
            match index.order(one, other) {
                Order::Unknown(missing) => {
                    unknown += 1;
                    assert!(!missing.is_empty(), "seed {seed}");
                    let is_there = |missing| arriving.contains(history.fetch(missing));
                    assert!(!missing.into_iter().any(is_there), "seed {seed}");
                }
                answer => {
                    known += 1;
                    assert_eq!(answer, history.truth(one, other), "seed {seed}");
                }
            }
        }
    }
    assert!(known > 1_000 && unknown > 1_000, "{known} {unknown}");
}

#[test]
fn who_comes_late_knows_what_is_before_what_from_then_on() {
    let (mut one, mut two) = (Author::new(1, "a"), Author::new(2, "b"));
    let _missed = one.sign(Vec::new(), 2);
    let third = one.sign(Vec::new(), 2);
    let begin = two.sign(Vec::new(), 1);
    let answer = two.sign(vec![seen(&third)], 1);
    let fifth = one.sign(Vec::new(), 1);
    let last = one.sign(vec![seen(&answer)], 1);
    let index = index_of([third, fifth, begin, answer, last]);
    assert_eq!((index.held(), index.pending()), (1, 4));
    for (before, after) in [
        (id(&one, 3), id(&one, 4)),
        (id(&one, 3), id(&one, 5)),
        (id(&one, 4), id(&two, 2)),
        (id(&two, 1), id(&one, 6)),
        (id(&two, 2), id(&one, 6)),
    ] {
        assert_eq!(index.order(before, after), Order::Before);
        assert_eq!(index.order(after, before), Order::After);
    }
    // That nothing leads from one to the other says nothing while something is missing.
    for (one, other) in [
        (id(&one, 5), id(&two, 2)),
        (id(&two, 1), id(&one, 3)),
        (id(&one, 2), id(&one, 3)),
    ] {
        let order = index.order(one, other);
        assert!(matches!(order, Order::Unknown(_)), "{order:?}");
    }
}

#[test]
fn fetching_what_is_missing_leads_to_the_answer() {
    for seed in 2_000..2_060 {
        let random = &mut Random(seed);
        let history = History::random(random, 20);
        let pairs: Vec<_> = history.pairs().collect();
        let (one, other) = pairs[random.below(pairs.len())];
        let mut index = Index::default();
        let mut fetched = 0;
        let answer = loop {
            match index.order(one, other) {
                Order::Unknown(missing) => {
                    for missing in missing {
                        fetched += 1;
                        let inserted = index.insert(history.fetch(missing).clone());
                        assert!(inserted.place.is_ok());
                    }
                    assert!(fetched <= 100, "seed {seed}: it goes on and on");
                }
                answer => break answer,
            }
        };
        assert_eq!(answer, history.truth(one, other), "seed {seed}");
    }
}

#[test]
fn what_an_index_forgets_it_does_not_guess() {
    let (mut known, mut unknown) = (0, 0);
    for seed in 3_000..3_040 {
        let random = &mut Random(seed);
        let history = History::random(random, 40);
        let mut index = Index::new(Bounds {
            batches: 12,
            clock_entries: 40,
            ..Bounds::default()
        });
        for batch in &history.batches {
            // What it follows may be forgotten: then it waits.
            let _place = index.insert(batch.clone());
            assert!(index.held() <= 12 && index.clock_entries <= 40);
        }
        for (one, other) in history.pairs() {
            match index.order(one, other) {
                Order::Unknown(_) => unknown += 1,
                answer => {
                    known += 1;
                    assert_eq!(answer, history.truth(one, other), "seed {seed}");
                }
            }
        }
    }
    assert!(known > 500 && unknown > 500, "{known} {unknown}");
}

#[test]
fn what_waits_is_bounded_and_goes_in_when_it_comes_again() {
    let mut author = Author::new(1, "a");
    let batches: Vec<Verified> = (0..5).map(|_| author.sign(Vec::new(), 1)).collect();
    let mut index = Index::new(Bounds {
        pending_entries: 2,
        ..Bounds::default()
    });
    let mut place = |at: usize| index.insert(batches[at].clone()).place;
    assert_eq!(place(1), Ok(Place::Pending));
    assert_eq!(place(1), Ok(Place::Known));
    assert_eq!(place(3), Ok(Place::Pending));
    assert_eq!(place(4), Err(Refused::Pending));
    assert_eq!(place(0), Ok(Place::Held));
    assert_eq!(place(4), Ok(Place::Pending));
    assert_eq!(place(2), Ok(Place::Held));
    assert_eq!(place(4), Ok(Place::Known));
    assert_eq!((index.held(), index.pending()), (5, 0));
    let mut few = Index::new(Bounds {
        feeds: 1,
        ..Bounds::default()
    });
    let inserted = few.insert(batches[0].clone());
    assert_eq!(inserted.place, Ok(Place::Held));
    let inserted = few.insert(Author::new(2, "a").sign(Vec::new(), 1));
    assert_eq!(inserted.place, Err(Refused::Feeds));
}

#[test]
fn a_head_that_is_not_what_a_frontier_says_is_refused() {
    let (mut one, mut two) = (Author::new(1, "a"), Author::new(2, "a"));
    let first = one.sign(Vec::new(), 2);
    let named = Observed {
        count: 1,
        ..seen(&first)
    };
    let liar = two.sign(vec![named], 1);
    let mut index = index_of([first.clone()]);
    let inserted = index.insert(liar.clone());
    assert_eq!(inserted.place, Err(Refused::Contradiction));
    // Also if it was there before.
    let mut index = index_of([liar, first]);
    assert_eq!((index.held(), index.pending()), (1, 0));
    let inserted = index.insert(two.sign(Vec::new(), 1));
    assert_eq!(inserted.place, Ok(Place::Pending));
}

/// An author that has signed two batches behind its first; and what another said after each of these.
fn forked() -> (Author, Author, [Verified; 5]) {
    let (mut one, mut two) = (Author::new(1, "a"), Author::new(2, "a"));
    let root = one.sign(Vec::new(), 2);
    let mut end = one.end.clone();
    let left = one.sign(Vec::new(), 1);
    std::mem::swap(&mut end, &mut one.end);
    let right = one.sign(Vec::new(), 2);
    let after_left = two.sign(vec![seen(&left)], 1);
    let after_right = two.sign(vec![seen(&right)], 1);
    let batches = [root, left, right, after_left, after_right];
    (one, two, batches)
}

#[test]
fn a_fork_is_proven_and_never_ordered_in_whatever_order_it_comes() {
    let (one, two, batches) = forked();
    for seed in 0..120 {
        let mut arriving = batches.clone();
        Random(seed).shuffle(&mut arriving);
        let mut index = Index::default();
        let mut proofs = Vec::new();
        for batch in arriving {
            let inserted = index.insert(batch);
            assert!(inserted.place.is_ok());
            proofs.extend(inserted.fork);
        }
        assert_eq!(proofs.len(), 1, "seed {seed}");
        assert_eq!(proofs[0].verify(), Ok((one.id, 3)));
        assert_eq!(index.forks().collect::<Vec<_>>(), [&*proofs[0]]);
        assert_eq!((index.held(), index.pending()), (5, 0), "seed {seed}");
        let forked = Order::Forked(one.id);
        for sequence in [3, 4] {
            let event = id(&one, sequence);
            for other in [id(&one, 1), id(&one, 3), id(&two, 1), id(&two, 2)] {
                assert_eq!(index.order(event, other), forked);
                assert_eq!(index.order(other, event), forked);
            }
        }
        // What was before the fork, and what others said, has its order.
        assert_eq!(index.order(id(&one, 2), id(&two, 1)), Order::Before);
        assert_eq!(index.order(id(&one, 1), id(&one, 2)), Order::Before);
        assert_eq!(index.order(id(&two, 2), id(&two, 1)), Order::After);
    }
}

#[test]
fn the_same_events_cut_otherwise_are_a_fork() {
    let mut author = Author::new(1, "a");
    let mut begin = author.end.clone();
    let whole = author.sign(Vec::new(), 2);
    std::mem::swap(&mut begin, &mut author.end);
    let half = author.sign(Vec::new(), 1);
    // The second of the events that were signed together.
    let payloads = || [&[1u8][..]].into_iter();
    let rest: Batch = author
        .end
        .sign(&author.key, Vec::new(), payloads())
        .unwrap();
    let rest = rest.verify(payloads()).unwrap();
    assert_eq!(rest.statement().head, whole.statement().head);
    // What came first and waits makes way for what does not.
    let mut index = index_of([rest.clone()]);
    let inserted = index.insert(whole.clone());
    assert_eq!(inserted.place, Ok(Place::Held));
    assert_eq!(inserted.fork.unwrap().verify(), Ok((author.id, 1)));
    let inserted = index.insert(half);
    assert_eq!((inserted.place, inserted.fork), (Ok(Place::Held), None));
    let inserted = index.insert(rest);
    assert_eq!(inserted.place, Ok(Place::Known));
    let order = index.order(id(&author, 1), id(&author, 2));
    assert_eq!(order, Order::Forked(author.id));
}
