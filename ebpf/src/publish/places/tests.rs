//! Every destination that is promised a place has one, whoever picks the ids, and keeps it in the sight of
//! every reader.

use core::convert::Infallible;
use std::{collections::BTreeMap, println};

use super::*;
use crate::{directory::lines_for, limits::ROUTES_MAX, tables::mix};

const KEY: u64 = 0x6d79_2073_6563_7265;

fn empty(lines: u32, key: u64) -> Places {
    let mut places = Places::recover(vec![[0; 8]; lines as usize], key);
    let Ok(()) = places.check(&mut |_, _: &Line| Ok::<(), Infallible>(()));
    places
}

fn nowhere(_: u32, _: &Line) -> Result<(), Infallible> {
    Ok(())
}

/// As many ids as are promised a place, one by one, each found with its own route when all are in.
fn fill(key: u64, count: u32, id: impl Fn(u64) -> u64) -> Places {
    let mut places = empty(lines_for(count), key);
    let all = || (0..u64::from(count)).map(|n| (NodeId(id(n)), route_of(n)));
    for (id, number) in all() {
        let Ok(is_placed) = places.set(&mut nowhere, id, number);
        assert!(is_placed, "key {key:x}: no place for {id:?} of {count}");
    }
    for (id, number) in all() {
        assert_eq!(places.get(id), Some(number), "key {key:x}: {id:?}");
    }
    places
}

fn route_of(n: u64) -> u32 {
    u32::try_from(n % u64::from(ROUTES_MAX)).unwrap()
}

#[test]
fn a_million_destinations_have_a_place_and_nearly_all_in_the_first_of_their_lines() {
    let count = 1_000_000;
    let places = fill(KEY, count, |n| mix(mix(1, n), 2));
    assert!(places.capacity() >= count);
    assert_eq!(places.get(NodeId(0)), None);
    let in_first = |id: &NodeId| {
        let [first, _] = places.lines_of(*id);
        find(&places.lines[first as usize], *id) != 0
    };
    let (mut first, mut all) = (0, 0);
    for (id, _) in places.iter() {
        first += u32::from(in_first(&id));
        all += 1;
    }
    println!("{first} of {all} in their first line");
    assert_eq!(all, count);
    assert!(f64::from(first) > 0.97 * f64::from(all));
}

#[test]
fn ids_picked_in_ignorance_of_the_key_have_a_place_too() {
    let count = 50_000_u32;
    // All that lie in the first sixteenth of the lines, under another key.
    let other = KEY.rotate_left(9) ^ 77;
    let lines = lines_for(count);
    let crowded: Vec<u64> = (0..)
        .filter(|n| {
            lines_of(other, lines, NodeId(*n))
                .iter()
                .all(|l| *l < lines / 4)
        })
        .take(count as usize)
        .collect();
    for key in (0..8).map(|n| mix(KEY, n)).chain([0, 1, u64::MAX]) {
        fill(key, count, |n| n);
        fill(key, count, |n| n.rotate_right(16));
        fill(key, count, |n| n.reverse_bits());
        fill(key, count, |n| n << 20);
        fill(key, count, |n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Lines that differ in their upper half only, and in one word of three values.
        fill(key, count, |n| n << 32 | 0x1234_5678);
        fill(key, count, |n| crowded[usize::try_from(n).unwrap()]);
    }
}

#[test]
fn the_smallest_directories_hold_what_they_promise() {
    for count in [1, 2, 3, 191, 192, 193, 1_000] {
        for key in 0..200 {
            fill(mix(KEY, key), count, |n| mix(n, 9));
        }
    }
}

/// What a reader finds in lines, as the NIC path reads them.
fn read(lines: &[Line], id: NodeId) -> Option<u32> {
    let count = u32::try_from(lines.len()).unwrap();
    let mut own = lines_of(KEY, count, id).into_iter();
    own.find_map(|line| find(&lines[line as usize], id).checked_sub(1))
}

/// Places filled far above what is promised, so that nearly every insertion moves others.
#[test]
fn no_write_hides_a_destination_or_shows_anothers_route() {
    const LINES: u32 = 64;
    let mut held: BTreeMap<u64, u32> = BTreeMap::new();
    let mut places = empty(LINES, KEY);
    let mut lines = vec![[0; 8]; LINES as usize];
    let (mut writes, mut moves) = (0, 0);
    for step in 0..3_000_u64 {
        let random = mix(mix(step, 3), KEY);
        let (id, number) = (random >> 8 & 0x1ff, route_of(random >> 32));
        let is_removed = held.len() > 350;
        let mut steps = 0;
        let mut write = |line: u32, entries: &Line| {
            lines[line as usize] = *entries;
            steps += 1;
            for (other, route) in &held {
                let now = read(&lines, NodeId(*other));
                let expected = now == Some(*route);
                assert!(expected || *other == id, "step {step}: {other} {now:?}");
                let is_own = now.is_none() || now == Some(number) || expected;
                assert!(is_own, "step {step}: {other} has {now:?}");
            }
            Ok::<(), Infallible>(())
        };
        if is_removed {
            let Ok(()) = places.remove(&mut write, NodeId(id));
            held.remove(&id);
        } else {
            let Ok(is_placed) = places.set(&mut write, NodeId(id), number);
            assert!(is_placed, "step {step}: {} held", held.len());
            held.insert(id, number);
        }
        writes += steps;
        moves += usize::from(steps > 3);
        let found = places.iter().map(|(id, route)| (id.0, route)).collect();
        assert_eq!(held, found, "step {step}");
    }
    assert!(
        writes > 4_000 && moves > 100,
        "{writes} writes, {moves} moves"
    );
}

#[test]
fn whoever_is_killed_between_two_writes_leaves_lines_that_the_next_puts_right() {
    const LINES: u32 = 16;
    for left in 0..400 {
        let mut lines = vec![[0; 8]; LINES as usize];
        let mut writes_left = left;
        let mut first = empty(LINES, KEY);
        let mut write = |line: u32, entries: &Line| {
            writes_left = u32::checked_sub(writes_left, 1).ok_or("killed")?;
            lines[line as usize] = *entries;
            Ok::<(), &str>(())
        };
        let id = |n: u64| NodeId(mix(n, 5) >> 40);
        let killed = (0..90).try_for_each(|n| match first.set(&mut write, id(n), 1) {
            Ok(true) => Ok(()),
            Ok(false) => panic!("no place for {n}"),
            Err(error) => Err(error),
        });
        let mut write = |line: u32, entries: &Line| {
            lines[line as usize] = *entries;
            Ok::<(), Infallible>(())
        };
        let mut second = Places::recover(first.lines.clone(), KEY);
        let Ok(()) = second.check(&mut write);
        // All have another route now: one that is left in two places would show the earlier.
        for n in 0..90 {
            let Ok(is_placed) = second.set(&mut write, id(n), 2);
            assert!(is_placed, "{left}: no place for {n}");
        }
        let every: Vec<Option<u32>> = (0..90).map(|n| read(&lines, id(n))).collect();
        assert!(every.iter().all(|r| *r == Some(2)), "{left}: {killed:?}");
    }
}

#[test]
fn what_another_key_has_placed_is_taken_out() {
    let before = fill(KEY ^ 1, 150, |n| n);
    let mut lines = before.lines.clone();
    let mut after = Places::recover(before.lines, KEY);
    let Ok(()) = after.check(&mut |line, entries: &Line| {
        lines[line as usize] = *entries;
        Ok::<(), Infallible>(())
    });
    for (id, _) in after.iter() {
        assert!(after.get(id).is_some(), "{id:?} is where it is looked for");
    }
    let used = |n: usize| lines.iter().filter(move |line| route(line, n).is_some());
    let left: usize = (0..ENTRIES).map(|n| used(n).count()).sum();
    assert_eq!(left, after.iter().count());
    assert!(
        left < 75,
        "{left} of 150 are where the other key would put them"
    );
}
