use super::*;

fn feed(number: usize) -> FeedId {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.to_be_bytes());
    FeedId(id)
}

fn of(unknown: &mut Unknown, number: usize, namer: u16) -> Room {
    let mut entity = [0; 32];
    entity[..2].copy_from_slice(&namer.to_be_bytes());
    unknown.note((feed(number), 1), (entity, 0), Instant::now())
}

/// Whoever's turn it is, nothing came of that.
fn vain(unknown: &mut Unknown, feed: FeedId, now: Instant) -> Option<bool> {
    let namer = unknown.feeds[&feed].by.namer;
    unknown.in_vain((feed, namer), now)
}

/// Whoever's turn it is, that came.
fn came(unknown: &mut Unknown, feed: FeedId) {
    let namer = unknown.feeds[&feed].by.namer;
    unknown.came((feed, namer));
}

#[test]
fn what_nobody_has_is_asked_for_less_and_less_often_however_often_it_is_named() {
    let (mut unknown, start) = (Unknown::default(), Instant::now());
    let (mut times, while_named) = (Vec::new(), Duration::from_secs(70 * 60));
    let mut now = start;
    while now < start + while_named {
        assert_eq!(unknown.note((feed(1), 1), ([1; 32], 0), now), Room::Is);
        if let Some((one, _)) = unknown.next(now, |_, _| true) {
            unknown.begin(one);
            let is_first = times.is_empty();
            assert_eq!(vain(&mut unknown, one, now), is_first.then_some(false));
            times.push(now - start);
        }
        now += Duration::from_secs(10);
    }
    let minutes: Vec<u64> = times.iter().map(|at| at.as_secs() / 60).collect();
    let doubled = (0..=DOUBLED_MAX).map(|doubled| (1_u64 << doubled) - 1);
    let later = [2_u64, 3, 4].map(|longest| (longest << DOUBLED_MAX) - 1);
    assert_eq!(minutes, doubled.chain(later).collect::<Vec<u64>>());
    assert_eq!(unknown.take_known(|one| one == feed(1)).len(), 1);
    assert!(!unknown.has(feed(1)) && unknown.namers.is_empty());
}

#[test]
fn what_was_asked_for_in_vain_makes_room_for_what_the_same_entity_names_next() {
    let (mut unknown, now) = (Unknown::default(), Instant::now());
    for number in 0..UNKNOWN_PER_NAMER_MAX {
        assert_eq!(of(&mut unknown, number, 1), Room::Is);
    }
    vain(&mut unknown, feed(7), now);
    assert_eq!(of(&mut unknown, 1_000_000, 1), Room::None, "once is little");
    vain(&mut unknown, feed(7), now);
    assert_eq!(of(&mut unknown, 1_000_000, 1), Room::Is);
    assert!(!unknown.has(feed(7)) && unknown.has(feed(1_000_000)));
    assert_eq!(unknown.feeds.len(), UNKNOWN_PER_NAMER_MAX);
    assert_eq!(of(&mut unknown, 1_000_001, 1), Room::Told);
}

#[test]
fn what_one_named_in_vain_is_asked_for_soon_as_another_names_it() {
    let (mut unknown, start) = (Unknown::default(), Instant::now());
    unknown.note((feed(1), u64::MAX), ([1; 32], 0), start);
    for _ in 0..9 {
        vain(&mut unknown, feed(1), start);
    }
    let is_due = |unknown: &Unknown, at| unknown.next(at, |_, _| true).is_some();
    let soon = start + VAIN_PAUSE;
    unknown.note((feed(1), u64::MAX), ([1; 32], 0), start);
    assert!(!is_due(&unknown, soon), "its first namer is no other one");
    unknown.note((feed(1), 10), ([2; 32], 0), start);
    assert!(is_due(&unknown, soon) && !is_due(&unknown, soon - Duration::from_secs(1)));
    // Each has that once, and few do.
    for namer in 2..=u8::try_from(OTHERS_MAX).unwrap() + 1 {
        unknown.note((feed(1), 10), ([namer; 32], 0), start);
    }
    for _ in 0..OTHERS_MAX {
        assert!(is_due(&unknown, soon));
        vain(&mut unknown, feed(1), start);
    }
    for namer in 1..=4 {
        unknown.note((feed(1), 10), ([namer; 32], 0), start);
    }
    assert!(!is_due(&unknown, soon));
    assert!(is_due(&unknown, start + Duration::from_secs(16 * 60)));
}

#[test]
fn entities_take_turns_and_who_names_most_makes_room() {
    let mut unknown = Unknown::default();
    for number in 0..UNKNOWN_PER_NAMER_MAX {
        assert_eq!(of(&mut unknown, number, 1), Room::Is);
    }
    assert_eq!(of(&mut unknown, 1_000_000, 1), Room::None);
    assert_eq!(of(&mut unknown, 1_000_001, 1), Room::Told);
    let mut number = UNKNOWN_PER_NAMER_MAX;
    while unknown.feeds.len() < UNKNOWN_MAX {
        let namer = u16::try_from(1 + number / UNKNOWN_PER_NAMER_MAX).unwrap();
        assert_eq!(of(&mut unknown, number, namer), Room::Is);
        number += 1;
    }
    // One that comes later has its place, and its turn next to the others'.
    for late in 0..UNKNOWN_PER_NAMER_MAX {
        let room = of(&mut unknown, number + late, 99);
        let has_fewer = late < UNKNOWN_PER_NAMER_MAX - 17;
        assert!(room == Room::Is || !has_fewer, "{late}");
        assert!(unknown.feeds.len() <= UNKNOWN_MAX);
    }
    let counted: usize = unknown.namers.values().map(|known| known.feeds).sum();
    assert_eq!(counted, unknown.feeds.len());
    let mut turns = Vec::new();
    for _ in 0..2 * unknown.namers.len() {
        let (next, one) = unknown.next(Instant::now(), |_, _| true).unwrap();
        unknown.begin(next);
        vain(&mut unknown, next, Instant::now());
        turns.push(one.by.namer);
    }
    let (first, second) = turns.split_at(unknown.namers.len());
    assert_eq!(first, second);
    unknown.leave(0);
    assert!(unknown.feeds.is_empty() && unknown.namers.is_empty());
}

/// The entity of that number.
fn entity(number: u8) -> Entity {
    [number; 32]
}

/// All is counted as it is.
fn is_counted(unknown: &Unknown) {
    for (namer, known) in &unknown.namers {
        let of_namer = unknown.feeds.values().filter(|one| one.by.namer == *namer);
        let in_vain = of_namer.clone().filter(|one| one.in_vain >= 2).count();
        assert_eq!((known.feeds, known.in_vain), (of_namer.count(), in_vain));
    }
    let counted: usize = unknown.namers.values().map(|known| known.feeds).sum();
    assert_eq!(counted, unknown.feeds.len());
}

#[test]
fn what_several_name_is_each_ones_in_turn_and_none_has_it_forgotten_alone() {
    let (mut unknown, now) = (Unknown::default(), Instant::now());
    unknown.note((feed(0), u64::MAX), (entity(1), 0), now);
    unknown.note((feed(0), 5), (entity(2), 1), now);
    unknown.note((feed(0), 7), (entity(2), 1), now);
    unknown.note((feed(0), 6), (entity(3), 0), now);
    let turns = (0..4).map(|at| {
        let by = unknown.feeds[&feed(0)].by;
        assert_eq!(vain(&mut unknown, feed(0), now), (at == 0).then_some(false));
        is_counted(&unknown);
        (by.namer[0], by.log, by.most)
    });
    let expected = [(1, 0, u64::MAX), (2, 1, 7), (3, 0, 6), (1, 0, u64::MAX)];
    assert_eq!(turns.collect::<Vec<_>>(), expected);
    // Who named it first names so much that it has no place there.
    while unknown.feeds[&feed(0)].by.namer != entity(1) {
        vain(&mut unknown, feed(0), now);
    }
    for number in 1..=UNKNOWN_PER_NAMER_MAX {
        assert_eq!(
            unknown.note((feed(number), 1), (entity(1), 0), now),
            Room::Is
        );
    }
    is_counted(&unknown);
    let all: Vec<u8> = unknown.feeds[&feed(0)]
        .all()
        .map(|by| by.namer[0])
        .collect();
    assert_eq!(all, [2, 3]);
    // What one of them named is there, what the other did is not; then nobody is left.
    unknown.begin(feed(0));
    came(&mut unknown, feed(0));
    assert_eq!(unknown.feeds[&feed(0)].by.namer, entity(3));
    unknown.leave(1);
    is_counted(&unknown);
    assert!(unknown.has(feed(0)));
    unknown.begin(feed(0));
    unknown.note((feed(0), 9), (entity(3), 0), now);
    came(&mut unknown, feed(0));
    assert!(unknown.has(feed(0)), "more was named meanwhile");
    unknown.leave(0);
    assert!(unknown.feeds.is_empty() && unknown.namers.is_empty());
}

#[test]
fn who_names_it_in_a_log_that_is_left_leaves_it_to_who_names_it_elsewhere() {
    let (mut unknown, now) = (Unknown::default(), Instant::now());
    for namer in 1..=3 {
        let log = usize::from(namer == 2);
        unknown.note((feed(0), 1), (entity(namer), log), now);
    }
    unknown.leave(0);
    is_counted(&unknown);
    let all: Vec<Entity> = unknown.feeds[&feed(0)].all().map(|by| by.namer).collect();
    assert_eq!(all, [entity(2)]);
}

#[test]
fn who_may_have_no_more_taken_keeps_nobody_from_what_both_name() {
    let (mut unknown, now) = (Unknown::default(), Instant::now());
    for namer in 1..=2 {
        unknown.note((feed(0), 1), (entity(namer), 0), now);
    }
    let owner = |unknown: &Unknown| unknown.feeds[&feed(0)].by.namer;
    unknown.pass_by(now, |_| true);
    assert_eq!(owner(&unknown), entity(1));
    for _ in 0..2 {
        unknown.pass_by(now, |namer| *namer == entity(1));
        assert_eq!(owner(&unknown), entity(2));
        is_counted(&unknown);
    }
    unknown.pass_by(now, |namer| *namer == entity(2));
    assert_eq!(owner(&unknown), entity(1));
    // It does not wait for one that named it in vain, either.
    let mut unknown = Unknown::default();
    unknown.note((feed(0), 1), (entity(1), 0), now);
    for _ in 0..3 {
        vain(&mut unknown, feed(0), now);
    }
    unknown.note((feed(0), 1), (entity(2), 0), now);
    assert_eq!(owner(&unknown), entity(2));
    let soon = now + VAIN_PAUSE;
    unknown.pass_by(soon, |namer| *namer == entity(2));
    assert_eq!(owner(&unknown), entity(2));
    assert!(unknown.next(soon, |_, _| true).is_some());
}

#[test]
fn what_had_no_place_or_makes_room_is_told_of_once() {
    let (mut unknown, now) = (Unknown::default(), Instant::now());
    // It was asked of nobody before: that nobody has it is told of.
    unknown.note_late((feed(0), 1), (entity(1), 0), (now, Came::Late));
    unknown.note_late((feed(1), 1), (entity(1), 0), (now, Came::Told));
    assert!(!unknown.is_new(feed(0)) && !unknown.is_new(feed(1)));
    assert_eq!(vain(&mut unknown, feed(0), now), Some(true));
    assert_eq!(vain(&mut unknown, feed(0), now), None);
    assert_eq!(vain(&mut unknown, feed(1), now), None);
    unknown.leave(0);
    let mut number = 0;
    for namer in 1..=16 {
        for _ in 0..UNKNOWN_PER_NAMER_MAX {
            let by = (entity(namer), usize::from(namer));
            assert_eq!(unknown.note((feed(number), 1), by, now), Room::Is);
            number += 1;
        }
    }
    assert_eq!(unknown.feeds.len(), UNKNOWN_MAX);
    for more in 0..32 {
        let by = (entity(17), 17);
        assert_eq!(unknown.note((feed(number + more), 1), by, now), Room::Is);
    }
    let mut told = unknown.take_dropped();
    told.sort_unstable();
    assert_eq!(told, (1..=16).collect::<Vec<usize>>(), "each once");
    assert!(unknown.take_dropped().is_empty());
    is_counted(&unknown);
}

#[test]
fn who_names_it_fifth_has_its_turn_once_one_before_had_it_in_vain() {
    let (mut unknown, now) = (Unknown::default(), Instant::now());
    for namer in 1..=4 {
        unknown.note((feed(0), u64::MAX), (entity(namer), 0), now);
    }
    let late = |unknown: &mut Unknown, most| unknown.note((feed(0), most), (entity(5), 1), now);
    assert_eq!(late(&mut unknown, 10), Room::None);
    vain(&mut unknown, feed(0), now);
    assert_eq!(late(&mut unknown, 10), Room::Is);
    // Those that have their place keep it, and theirs.
    assert_eq!(
        unknown.note((feed(0), u64::MAX), (entity(1), 0), now),
        Room::None
    );
    let turns = (0..4).map(|_| {
        let by = unknown.feeds[&feed(0)].by;
        vain(&mut unknown, feed(0), now);
        (by.namer[0], by.log, by.most)
    });
    let most = u64::MAX;
    let expected = [(2, 0, most), (3, 0, most), (4, 0, most), (5, 1, 10)];
    assert_eq!(turns.collect::<Vec<_>>(), expected);
    is_counted(&unknown);
}

#[test]
fn who_names_what_never_was_delays_nobody_and_is_told_of_once() {
    let (mut unknown, start) = (Unknown::default(), Instant::now());
    let (hostile, honest) = (entity(1), entity(2));
    unknown.note((feed(0), u64::MAX), (hostile, 0), start);
    unknown.note((feed(0), 1), (honest, 0), start);
    let (mut told, mut in_vain, mut named, mut last) = (0, 0, 1, start);
    let mut waits = Duration::ZERO;
    // The honest one names one more every other minute, and each is there.
    for second in 0..4 * 3_600 {
        let now = start + Duration::from_secs(second);
        if second % 120 == 119 {
            named += 1;
            last = now;
            unknown.note((feed(0), named), (honest, 0), now);
        }
        let Some((next, one)) = unknown.next(now, |_, _| true) else {
            continue;
        };
        unknown.begin(next);
        if one.by.namer == honest {
            waits = waits.max(now - last);
            came(&mut unknown, next);
        } else {
            in_vain += 1;
            told += usize::from(vain(&mut unknown, next, now).is_some());
        }
        is_counted(&unknown);
    }
    assert_eq!(told, 1);
    // Five times while that is doubled, and then every 16 minutes.
    assert!((15..=21).contains(&in_vain), "{in_vain}");
    assert!(waits <= VAIN_PAUSE, "{waits:?}");
    // Once what was told of as its own is there, it is to be told of what is not there then.
    let mut unknown = Unknown::default();
    unknown.note((feed(0), 1), (honest, 0), start);
    assert!(vain(&mut unknown, feed(0), start).is_some());
    unknown.begin(feed(0));
    unknown.note((feed(0), 2), (honest, 0), start);
    came(&mut unknown, feed(0));
    assert!(vain(&mut unknown, feed(0), start).is_some());
}

#[test]
fn what_is_anothers_turn_by_the_time_it_was_looked_for_leaves_that_its_turn() {
    let (mut unknown, now) = (Unknown::default(), Instant::now());
    for namer in 1..=3 {
        unknown.note((feed(0), 5), (entity(namer), namer.into()), now);
    }
    let turn = |unknown: &Unknown| {
        let one = unknown.feeds[&feed(0)];
        (one.by.namer[0], one.in_vain, one.from - now)
    };
    unknown.begin(feed(0));
    unknown.pass_by(now, |namer| *namer == entity(1));
    assert_eq!(unknown.in_vain((feed(0), entity(1)), now), Some(false));
    assert_eq!(turn(&unknown), (2, 1, VAIN_PAUSE));
    // One that is gone.
    unknown.leave(2);
    assert_eq!(unknown.in_vain((feed(0), entity(2)), now), None);
    assert_eq!(turn(&unknown), (3, 1, VAIN_PAUSE));
    unknown.came((feed(0), entity(1)));
    let all = unknown.feeds[&feed(0)].all().map(|by| by.namer[0]);
    assert_eq!(all.collect::<Vec<u8>>(), [3]);
    is_counted(&unknown);
}

/// However long these were asked in vain.
#[test]
fn who_names_what_is_there_behind_three_that_name_what_never_was_waits_for_minutes_at_most() {
    for before in [0, 1, 2, 3, 40] {
        let (mut unknown, start) = (Unknown::default(), Instant::now());
        let honest = entity(4);
        for namer in 1..=3 {
            unknown.note((feed(0), u64::MAX), (entity(namer), 0), start);
        }
        let next = |unknown: &Unknown, mut now: Instant| {
            while unknown.next(now, |_, _| true).is_none() {
                now += Duration::from_secs(1);
            }
            now
        };
        let mut now = start;
        for _ in 0..before {
            now = next(&unknown, now);
            vain(&mut unknown, feed(0), now);
        }
        // It is named as the others' pause begins.
        let named = now;
        unknown.note((feed(0), 5), (honest, 0), named);
        loop {
            now = next(&unknown, now);
            if unknown.feeds[&feed(0)].by.namer == honest {
                break;
            }
            vain(&mut unknown, feed(0), now);
            is_counted(&unknown);
        }
        let waits = now - named;
        assert!(waits <= 3 * VAIN_PAUSE, "{before}: {waits:?}");
    }
}
