//! Entities that lie, and indices that are full.

use super::*;
use crate::batch::{frontier_hash, next_head};

/// One event behind any head, signed.
fn behind(author: &Author, count: u64, head: Hash, payload: u8) -> Verified {
    let statement = author
        .end
        .clone()
        .sign(&author.key, Vec::new(), [&[0][..]].into_iter());
    let statement = statement.unwrap().signed.statement;
    let mut end = FeedEnd::at(statement.channel, statement.entity, Some((count, head)));
    let payloads = [&[payload][..]];
    let batch = end.sign(&author.key, Vec::new(), payloads.into_iter());
    batch.unwrap().verify(payloads.into_iter()).unwrap()
}

fn unknown(order: &Order) -> bool {
    matches!(order, Order::Unknown(missing) if !missing.is_empty())
}

#[test]
fn a_head_that_another_entity_claims_stays_its_feeds() {
    let (mut alice, mallory) = (Author::new(1, "b"), Author::new(2, "a"));
    let middle = next_head(&alice.id.0, 1, &frontier_hash(&[]), &[0]);
    let whole = alice.sign(Vec::new(), 2);
    let next = alice.sign(Vec::new(), 1);
    let first_claim = behind(&mallory, 1, middle, 1);
    let next_claim = behind(&mallory, 2, whole.statement().head, 0);
    assert_eq!(first_claim.statement().head, whole.statement().head);
    assert_eq!(next_claim.statement().head, next.statement().head);
    let mut liar = Author::new(3, "a");
    let named = Observed {
        feed: mallory.id,
        ..seen(&whole)
    };
    let named = liar.sign(vec![named], 1);
    for seed in 0..120 {
        let mut arriving = [&whole, &next, &first_claim, &next_claim, &named].map(Clone::clone);
        Random(seed).shuffle(&mut arriving);
        let index = index_of(arriving);
        assert_eq!((index.held(), index.pending()), (2, 3), "seed {seed}");
        assert_eq!(index.order(id(&alice, 1), id(&alice, 3)), Order::Before);
        for claimed in [id(&mallory, 2), id(&mallory, 3), id(&liar, 1)] {
            for sequence in 1..=3 {
                let order = index.order(claimed, id(&alice, sequence));
                assert!(unknown(&order), "seed {seed}: {order:?}");
            }
        }
    }
}

#[test]
fn a_fork_is_found_though_what_proves_it_is_refused() {
    let (mut other, mut one) = (Author::new(1, "a"), Author::new(2, "a"));
    let truth = other.sign(Vec::new(), 1);
    let lie = Observed {
        count: 7,
        ..seen(&truth)
    };
    let begin = one.end.clone();
    let liar = one.sign(vec![lie], 1);
    one.end = begin.clone();
    let twin = one.sign(Vec::new(), 1);
    one.end = begin;
    let second_liar = one.sign(vec![lie], 2);
    for (arriving, refusals) in [
        ([&truth, &liar, &twin], 1),
        ([&liar, &truth, &twin], 1),
        ([&liar, &twin, &truth], 1),
        ([&truth, &twin, &liar], 1),
        ([&truth, &liar, &second_liar], 2),
    ] {
        let mut index = Index::default();
        let forks = arriving.map(|batch| index.insert(batch.clone()).fork.is_some());
        assert!(forks.contains(&true), "{forks:?}");
        assert_eq!((index.refusals(), index.forks().count()), (refusals, 1));
        let forked = Order::Forked(one.id);
        assert_eq!(index.order(id(&one, 1), id(&one, 2)), forked);
    }
    // Nor has it an order where its place is taken.
    let index = &mut Index::default();
    for batch in [&truth, &liar] {
        let _place = index.insert(batch.clone());
    }
    assert!(unknown(&index.order(id(&one, 1), id(&other, 1))));
}

#[test]
fn a_fork_is_found_though_too_much_waits_and_what_is_refused_is_bounded() {
    let mut index = Index::new(Bounds {
        pending_entries: 0,
        refused: 3,
        ..Bounds::default()
    });
    let author = Author::new(1, "a");
    let twins = [0, 1].map(|payload| behind(&author, 40, [9; 32], payload));
    for (twin, has_fork) in twins.iter().zip([false, true]) {
        let inserted = index.insert(twin.clone());
        assert_eq!(inserted.place, Err(Refused::Pending));
        assert_eq!(inserted.fork.is_some(), has_fork);
    }
    let quiet = Author::new(2, "a");
    let inserted = index.insert(behind(&quiet, 40, [9; 32], 0));
    assert_eq!(inserted.place, Err(Refused::Pending));
    for count in 50..60 {
        let inserted = index.insert(behind(&author, 2 * count, [9; 32], 0));
        assert_eq!(inserted.place, Err(Refused::Pending));
        let refused = index.feeds.iter().map(|feed| feed.refused.len());
        assert_eq!((index.refused, refused.sum()), (3, 3));
    }
    // What a feed has refused pushes out its own.
    assert!(index.insert(behind(&quiet, 40, [9; 32], 1)).fork.is_some());
    assert_eq!(index.refusals(), 14);
}

#[test]
fn what_was_refused_goes_in_when_it_comes_again() {
    let mut author = Author::new(1, "a");
    let batches: Vec<Verified> = (0..2).map(|_| author.sign(Vec::new(), 1)).collect();
    let mut index = Index::new(Bounds {
        pending_entries: 0,
        ..Bounds::default()
    });
    for (at, place) in [
        (1, Err(Refused::Pending)),
        (1, Err(Refused::Pending)),
        (0, Ok(Place::Held)),
        (1, Ok(Place::Held)),
    ] {
        assert_eq!(index.insert(batches[at].clone()).place, place);
    }
    assert_eq!(
        (index.held(), index.refused, index.forks().count()),
        (2, 0, 0)
    );
    assert_eq!(index.order(id(&author, 1), id(&author, 2)), Order::Before);
}

#[test]
fn what_contradicts_forgotten_events_is_never_ordered() {
    let (mut one, mut near, mut far) = (
        Author::new(1, "a"),
        Author::new(2, "a"),
        Author::new(3, "a"),
    );
    let mut twin = Author::new(1, "a");
    let many: Vec<Verified> = (0..10).map(|_| one.sign(Vec::new(), 1)).collect();
    let other: Vec<Verified> = (0..2).map(|_| far.sign(Vec::new(), 1)).collect();
    let seen_by = [&many[9], &other[0], &other[1]].map(seen);
    let last = seen_by.map(|seen| near.sign(vec![seen], 1));
    let mut index = Index::new(Bounds {
        clock_entries: 3,
        ..Bounds::default()
    });
    for batch in many.iter().chain(&other).chain(&last) {
        assert_eq!(index.insert(batch.clone()).place, Ok(Place::Held));
    }
    assert!(index.held() < 15 && index.clock_entries <= 3);
    let twins: Vec<Verified> = (0..9).map(|_| twin.sign(Vec::new(), 2)).collect();
    let inserted = index.insert(twins[0].clone());
    assert_eq!(inserted.place, Err(Refused::Forgotten));
    for sequence in [3, 10] {
        for event in [id(&one, 1), id(&one, 2)] {
            let order = index.order(event, id(&one, sequence));
            assert!(unknown(&order), "{order:?}");
            assert!(unknown(&index.order(event, id(&near, 3))));
        }
    }
    for twin in &twins[1..] {
        let place = index.insert(twin.clone()).place;
        assert_ne!(place, Ok(Place::Held));
    }
    let order = index.order(id(&one, 10), id(&near, 3));
    assert_eq!(order, Order::Forked(one.id));
    assert!(unknown(&index.order(id(&one, 1), id(&near, 3))));
}

#[test]
fn what_makes_way_leaves_nothing_behind() {
    let mut author = Author::new(1, "a");
    let mut index = Index::default();
    for _ in 0..50 {
        let (count, head) = author.end.end();
        let middle = next_head(&head, count + 1, &frontier_hash(&[]), &[0]);
        let rest = behind(&author, count + 1, middle, 1);
        let whole = author.sign(Vec::new(), 2);
        assert_eq!(rest.statement().head, whole.statement().head);
        assert_eq!(index.insert(rest).place, Ok(Place::Pending));
        assert_eq!(index.insert(whole).place, Ok(Place::Held));
    }
    assert_eq!((index.held(), index.pending()), (50, 0));
    assert_eq!((index.waiters.len(), index.pending_entries), (0, 0));
}
