use super::*;
use tokio::{runtime::Handle, task::AbortHandle};

const NAMER: Entity = [1; 32];
const OTHER: Entity = [2; 32];

fn feed(number: usize) -> FeedId {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.to_be_bytes());
    FeedId(id)
}

/// A search that never ends by itself.
fn search() -> AbortHandle {
    Handle::current()
        .spawn(std::future::pending::<()>())
        .abort_handle()
}

/// Somebody looks for a feed as an entity names it, and ends with that.
fn look(
    names: &mut Names,
    looked: (FeedId, Entity),
    found: Result<(), Unfound>,
    now: Instant,
) -> Ended {
    names.begin(looked, (0, 1), search());
    names.ended((looked.0, 1), found, now)
}

/// Begins to look for all that has a place; which feeds these are.
fn begin(names: &mut Names, now: Instant, last: &mut u64) -> Vec<(FeedId, Entity)> {
    let mut begun = Vec::new();
    while let Some((feed, namer, _)) = names.next(now + NAMED_AFTER, |_| true) {
        *last += 1;
        names.begin((feed, namer), (0, *last), search());
        begun.push((feed, namer));
    }
    begun
}

#[tokio::test]
async fn who_names_what_nobody_has_costs_little_and_is_told_of_once() {
    let (mut names, start) = (Names::default(), Instant::now());
    let (mut now, mut last, mut told, mut searches) = (start, 0, 0, 0);
    // More new names a second than there are places, for ten minutes; all are looked for in vain, in no time.
    let mut of_feed = BTreeMap::<FeedId, Vec<Instant>>::new();
    let mut next = 0;
    while now < start + Duration::from_secs(600) {
        for _ in 0..NAMES_PER_NAMER_MAX + 4 {
            next += 1;
            let name = feed(next % 5_000);
            told += usize::from(names.note((name, 9), (NAMER, 0), now));
        }
        assert!(names.waiting.len() <= NAMES_PER_NAMER_MAX);
        assert_eq!(names.counts.values().sum::<usize>(), names.waiting.len());
        told += names.forget_late(now, |_, _| false).len();
        let begun = begin(&mut names, now, &mut last);
        assert!(begun.len() <= NAMED_SEARCHES_PER_NAMER_MAX);
        for (at, (name, namer)) in begun.iter().rev().enumerate() {
            assert_eq!(*namer, NAMER);
            of_feed.entry(*name).or_default().push(now);
            searches += 1;
            let number = last - at as u64;
            let ended = names.ended((*name, number), Err(Unfound::Nobody), now);
            assert_eq!(ended, Ended::Told(Unfound::Nobody));
        }
        now += Duration::from_secs(1);
    }
    // It is looked a moment ahead each time.
    let pauses = 1 + 600 / (NAMER_PAUSE - NAMED_AFTER).as_secs();
    assert!((1..=2 * pauses).contains(&searches), "{searches}");
    assert!((1..=10).contains(&told), "told {told} times");
    for times in of_feed.values() {
        let is_apart = |pair: &[Instant]| pair[1] - pair[0] >= VAIN_PAUSE;
        assert!(times.windows(2).all(is_apart));
    }
    // Another's names have their places all the while.
    assert!(!names.note((feed(1_000_000), 9), (OTHER, 0), now));
    let begun = begin(&mut names, now, &mut last);
    assert!(begun.contains(&(feed(1_000_000), OTHER)));
}

#[tokio::test]
async fn many_namers_have_few_searches_together_and_what_nobody_had_waits_a_minute() {
    let (mut names, now, mut last) = (Names::default(), Instant::now(), 0);
    for namer in 0..20 {
        for at in 0..3 {
            let entity = [u8::try_from(namer).unwrap(); 32];
            names.note((feed(namer * 3 + at), 1), (entity, 0), now);
        }
    }
    let begun = begin(&mut names, now, &mut last);
    assert_eq!(begun.len(), NAMED_SEARCHES_MAX);
    assert_eq!(begun[0], (feed(0), [0; 32]));
    assert_eq!(begun[2], (feed(3), [1; 32]), "two of an entity at a time");
    // Another number is another search.
    let ended = names.ended((feed(0), 99), Ok(()), now);
    assert_eq!(ended, Ended::NotThis);
    let before = names.waiting[&(feed(0), [0; 32])].number;
    let ended = names.ended((feed(0), 1), Err(Unfound::Nobody), now);
    assert_eq!(ended, Ended::Told(Unfound::Nobody));
    let behind = names.waiting[&(feed(0), [0; 32])].number;
    assert!(behind > before + 50, "behind all others");
    assert!(names.has(feed(0)), "somebody may have it later");
    // Whoever else names it waits until the minute is over, too.
    names.note((feed(0), 1), (OTHER, 0), now);
    let other = names.waiting[&(feed(0), OTHER)];
    names.searched.clear();
    let is_next = |names: &Names, now| names.next(now, |one| one == feed(0));
    assert_eq!(is_next(&names, now), None);
    let later = now + VAIN_PAUSE;
    let again = names.waiting[&(feed(0), [0; 32])];
    assert_eq!(is_next(&names, later), Some((feed(0), [0; 32], again)));
    names.forget(feed(0), [0; 32]);
    assert_eq!(is_next(&names, later), Some((feed(0), OTHER, other)));
    assert!(names.forget_late(later, |_, _| false).is_empty());
    let told = names.forget_late(now + NAMED_WITHIN, |_, _| false);
    assert_eq!(told.len(), 20, "once an entity: {told:?}");
    assert!(names.waiting.is_empty() && names.counts.is_empty());
}

#[test]
fn what_comes_by_itself_for_long_is_never_late() {
    let (mut names, start) = (Names::default(), Instant::now());
    names.note((feed(1), 1), (NAMER, 0), start);
    // It is named again shortly before its time would be over, and what was named first is there.
    let last = start + NAMED_WITHIN - NAMED_AFTER;
    names.note((feed(1), 2), (NAMER, 0), last);
    names.came(feed(1), NAMER, last);
    let late = start + NAMED_WITHIN;
    assert!(names.forget_late(late, |_, count| count < 2).is_empty());
    let name = names.waiting[&(feed(1), NAMER)];
    assert_eq!((name.count, name.until), (2, last + NAMED_WITHIN));
    let late = last + NAMED_WITHIN;
    assert_eq!(names.forget_late(late, |_, count| count < 2), [0]);
}

#[tokio::test]
async fn what_is_of_no_log_here_keeps_no_place_from_what_is() {
    let (mut names, now, mut last) = (Names::default(), Instant::now(), 0);
    let later = now + NAMED_AFTER;
    for at in 0..9 {
        names.note_unknown((feed(at), 1), (NAMER, 0), now);
        names.note_unknown((feed(100 + at), 1), (OTHER, 0), now);
    }
    assert_eq!(
        names.next_unknown((now, 1), |_| true).pop(),
        None,
        "not at once"
    );
    let mut begun = Vec::new();
    while let Some((next, one)) = names.next_unknown((later, 1), |_| true).pop() {
        last += 1;
        names.begin((next, one.by.namer), (0, last), search());
        begun.push(next);
    }
    assert_eq!(begun, [feed(0), feed(100)], "one of an entity at a time");
    for at in 0..9 {
        names.note((feed(200 + at), 1), (NAMER, 0), now);
    }
    let known = begin(&mut names, now, &mut last);
    assert_eq!(known.len(), NAMED_SEARCHES_PER_NAMER_MAX);
    // Nothing comes of one: that is told once, and pauses nothing else.
    let nobody = Err(Unfound::Nobody);
    let ended = names.ended((feed(0), 1), nobody, later);
    assert_eq!(ended, Ended::Told(Unfound::Unknown));
    assert!(!names.has(feed(0)) && names.has(feed(1)));
    names.suspend(feed(200));
    assert_eq!(begin(&mut names, now, &mut last).len(), 1);
    let again = later + VAIN_PAUSE;
    names.suspend(feed(100));
    let is_first = |one| one == feed(0);
    assert!(names.next_unknown((again, 1), is_first).pop().is_some());
    let ended = look(&mut names, (feed(0), NAMER), nobody, again);
    assert_eq!(ended, Ended::Quiet);
    assert_eq!(
        names.next_unknown((again + VAIN_PAUSE, 1), is_first).pop(),
        None
    );
    // What is known meanwhile is as all else.
    names.begin((feed(1), NAMER), (0, 78), search());
    names.unknown.take_known(|one| one == feed(1));
    names.note((feed(1), 1), (NAMER, 0), now);
    assert_eq!(
        names.ended((feed(1), 78), nobody, again),
        Ended::Told(Unfound::Nobody)
    );
    let ended = look(&mut names, (feed(2), NAMER), Ok(()), again);
    assert_eq!(ended, Ended::Quiet);
    assert!(!names.has(feed(2)));
}

#[tokio::test]
async fn what_one_names_has_a_budget_of_its_own() {
    let (mut names, now) = (Names::default(), Instant::now());
    for (namer, at) in [(NAMER, 1), (OTHER, 2)] {
        names.note((feed(at), 1), (namer, 0), now);
        names.begin((feed(at), namer), (0, at as u64), search());
    }
    assert_eq!(names.bytes_left(&NAMER, now), NAMED_BYTES_MAX);
    names.took(feed(1), NAMED_BYTES_MAX, now);
    names.took(feed(9), 1, now);
    assert_eq!(names.bytes_left(&NAMER, now), 0);
    assert_eq!(names.bytes_left(&OTHER, now), NAMED_BYTES_MAX);
    names.note((feed(3), 1), (NAMER, 0), now);
    assert_eq!(names.next(now + NAMED_AFTER, |_| true), None);
    let later = now + FETCHED_WITHIN;
    assert_eq!(names.bytes_left(&NAMER, later), NAMED_BYTES_MAX);
    // And all together have one.
    for namer in 10..13 {
        let searched = feed(usize::from(namer));
        names.begin((searched, [namer; 32]), (0, 7), search());
        names.took(searched, NAMED_BYTES_MAX, now);
    }
    assert_eq!(names.bytes_left(&OTHER, now), 0);
}

#[tokio::test]
async fn a_log_that_is_left_is_asked_nothing_for() {
    let (mut names, now) = (Names::default(), Instant::now());
    names.note((feed(1), 1), (NAMER, 0), now);
    names.note((feed(2), 1), (NAMER, 1), now);
    names.note((feed(2), 5), (NAMER, 1), now);
    names.note((feed(2), 3), (NAMER, 1), now);
    let two = names.waiting[&(feed(2), NAMER)];
    assert_eq!((two.count, two.most), (1, 5));
    let (one, other) = (search(), search());
    names.begin((feed(1), NAMER), (0, 1), one);
    names.begin((feed(2), NAMER), (1, 2), other);
    assert_eq!(names.leave(0), [feed(1)]);
    assert!(!names.has(feed(1)) && !names.is_searched(feed(1)));
    assert!(names.is_searched(feed(2)));
    // What a live event takes over is named as before.
    names.suspend(feed(2));
    assert!(names.has(feed(2)) && !names.is_searched(feed(2)));
    let later = now + NAMED_AFTER;
    assert_eq!(names.next(later, |_| true), Some((feed(2), NAMER, two)));
    assert_eq!(names.next(later, |_| false), None);
}

#[test]
fn what_comes_by_itself_is_not_asked_for_however_much_is_named_meanwhile() {
    let (mut names, start) = (Names::default(), Instant::now());
    // Each is named half a second before it comes.
    let half = NAMED_AFTER / 2;
    for count in 1..=100 {
        let now = start + half * u32::try_from(count).unwrap();
        names.note((feed(1), count), (NAMER, 0), now);
        let has = count - 1;
        while let Some((one, namer, name)) = names.next(now, |_| true) {
            assert!(name.count <= has, "{} of {has}", name.count);
            names.came(one, namer, now);
        }
        assert!(names.has(feed(1)));
    }
    // As nothing comes any more, it is asked for all that is named.
    let name = names.waiting[&(feed(1), NAMER)];
    assert_eq!((name.count, name.most), (99, 100));
    let later = start + half * 200;
    assert!(names.next(later, |_| true).is_some());
    names.came(feed(1), NAMER, later);
    assert_eq!(names.waiting[&(feed(1), NAMER)].count, 100);
    names.came(feed(1), NAMER, later);
    assert!(!names.has(feed(1)));
    // What is there when its time is over is not told of.
    names.note((feed(1), 1), (NAMER, 0), start);
    let late = start + NAMED_WITHIN;
    assert!(names.forget_late(late, |_, count| count == 1).is_empty());
    assert!(!names.has(feed(1)));
}

#[tokio::test]
async fn what_nobody_had_for_long_or_had_no_place_is_asked_for_until_it_is_there() {
    let (mut names, start) = (Names::default(), Instant::now());
    names.note((feed(1), 60), (NAMER, 0), start);
    for at in 1..NAMES_PER_NAMER_MAX {
        names.note((feed(1_000 + at), 1), (NAMER, 0), start);
    }
    assert!(
        !names.note((feed(2), 1), (NAMER, 0), start),
        "it has a place"
    );
    let late = start + NAMED_WITHIN;
    assert_eq!(names.forget_late(late, |one, _| one != feed(1)), [0]);
    assert!(names.waiting.is_empty());
    // It is not asked for as what is new, and what is known of its feed does not have it forgotten.
    assert!(!names.has(feed(1)));
    assert!(names.unknown.take_known(|_| true).is_empty());
    let mut now = late;
    for _ in 0..20 {
        let is_this = |one: FeedId| one == feed(1);
        while names.next_unknown((now, 1), is_this).pop().is_none() {
            now += Duration::from_secs(30);
            assert!(now < late + Duration::from_secs(14 * 24 * 3_600));
        }
        let (_, one) = names.next_unknown((now, 1), is_this).pop().unwrap();
        assert_eq!((one.by.most, one.by.namer), (60, NAMER));
        let ended = look(&mut names, (feed(1), NAMER), Err(Unfound::Nobody), now);
        assert_eq!(ended, Ended::Quiet, "that was told of");
    }
    let (other, _) = names
        .next_unknown((now, 1), |one| one == feed(2))
        .pop()
        .unwrap();
    assert_eq!(other, feed(2));
    let ended = look(&mut names, (feed(2), NAMER), Err(Unfound::Nobody), now);
    assert_eq!(ended, Ended::Told(Unfound::Nobody), "of this it was not");
    // What is named of it again has its turn at once, and that it comes leaves what more was named.
    names.note((feed(1), 50), (NAMER, 0), now);
    let later = now + 2 * VAIN_PAUSE + NAMED_WITHIN;
    let (_, _, name) = names.next(later, |one| one == feed(1)).unwrap();
    assert_eq!(name.most, 50);
    assert_eq!(
        names.next_unknown((later, 1), |one| one == feed(1)).pop(),
        None
    );
    let ended = look(&mut names, (feed(1), NAMER), Ok(()), later);
    assert_eq!(ended, Ended::Quiet);
    assert!(names.unknown.has(feed(1)) && !names.has(feed(1)));
    let ended = look(&mut names, (feed(1), NAMER), Ok(()), later);
    assert_eq!(ended, Ended::Quiet);
    assert!(!names.unknown.has(feed(1)));
}

#[tokio::test]
async fn what_is_more_than_may_be_taken_at_a_time_was_not_looked_for_in_vain() {
    let (mut names, start) = (Names::default(), Instant::now());
    // One feed of a log here, and one of which it is not known whose it is, that another names, too.
    names.note((feed(1), 90), (NAMER, 0), start);
    names.note_unknown((feed(2), 90), (NAMER, 0), start);
    names.note_unknown((feed(2), 90), (OTHER, 0), start);
    let (mut now, full) = (start + NAMED_AFTER, Err(Unfound::Full));
    let next = |names: &Names, now| names.next_unknown((now, 1), |_| true).pop();
    for round in 0..5 {
        let mut turns = [(); 2].map(|()| {
            let (looked, one) = next(&names, now).unwrap();
            names.begin((looked, one.by.namer), (0, 2), search());
            names.took(looked, 1, now);
            assert_eq!(names.ended((looked, 2), full, now), Ended::Quiet);
            (looked, one.by.namer)
        });
        turns.sort_unstable();
        assert_eq!(turns, [(feed(2), NAMER), (feed(2), OTHER)], "{round}");
        names.begin((feed(1), NAMER), (0, 1), search());
        names.took(feed(1), NAMED_BYTES_MAX - 100, now);
        assert_eq!(names.ended((feed(1), 1), full, now), Ended::Quiet);
        let again = now + FETCHED_WITHIN;
        let soon = again - Duration::from_secs(1);
        assert!(names.next(soon, |_| true).is_none() && next(&names, soon).is_none());
        assert!(names.forget_late(again, |_, _| false).is_empty());
        assert!(names.next(again, |_| true).is_some());
        now = again;
    }
    // It is asked for no later than what was never asked for in vain, and told of as that.
    let (_, one) = next(&names, now).unwrap();
    let ended = look(
        &mut names,
        (feed(2), one.by.namer),
        Err(Unfound::Nobody),
        now,
    );
    assert_eq!(ended, Ended::Told(Unfound::Unknown));
    assert!(next(&names, now + VAIN_PAUSE).is_some());
}

/// Else who names much that is too large has it asked for without an end.
#[tokio::test]
async fn what_finds_more_than_may_be_taken_pauses_its_namer_and_is_in_vain_if_nothing_was_taken() {
    let (mut names, start) = (Names::default(), Instant::now());
    let full = Err(Unfound::Full);
    let mut now = start + NAMED_AFTER;
    let is_paused = |names: &Names, now| {
        names.next(now, |_| true).is_none() && names.next_unknown((now, 1), |_| true).is_empty()
    };
    // What is known and what is not, each with something that was taken and with nothing.
    for (at, is_known, bytes) in [(1, true, 1), (2, true, 0), (3, false, 1), (4, false, 0)] {
        for more in [0, 100, 200] {
            let named = (feed(at + more), 1);
            match is_known {
                true => _ = names.note(named, (NAMER, 0), now),
                false => _ = names.note_unknown(named, (NAMER, 0), now),
            }
        }
        now += NAMED_AFTER;
        assert!(!is_paused(&names, now), "{at}");
        names.begin((feed(at), NAMER), (0, 1), search());
        if bytes > 0 {
            names.took(feed(at), bytes, now);
        }
        let ended = match bytes {
            0 => Ended::Told(Unfound::Full),
            _ => Ended::Quiet,
        };
        assert_eq!(names.ended((feed(at), 1), full, now), ended, "{at}");
        let soon = now + NAMER_PAUSE - Duration::from_millis(1);
        assert!(is_paused(&names, soon), "{at}");
        now += NAMER_PAUSE;
        assert!(!is_paused(&names, now), "{at}");
        assert_eq!(names.vain.contains_key(&feed(at)), at == 2);
    }
    let in_vain = [3, 4].map(|at| !names.unknown.is_new(feed(at)));
    assert_eq!(in_vain, [false, true]);
}

#[tokio::test]
async fn who_is_paused_keeps_nobody_from_what_both_name() {
    let (mut names, start) = (Names::default(), Instant::now());
    for (number, namer) in [(1, NAMER), (2, NAMER), (2, OTHER)] {
        names.note_unknown((feed(number), 1), (namer, 0), start);
    }
    let now = start + NAMED_AFTER;
    let ended = look(&mut names, (feed(1), NAMER), Err(Unfound::Full), now);
    assert_eq!(ended, Ended::Told(Unfound::Full));
    names.pass_by(now);
    let next = names.next_unknown((now, 1), |_| true).pop();
    let next = next.map(|(feed, one)| (feed, one.by.namer));
    assert_eq!(next, Some((feed(2), OTHER)));
}
