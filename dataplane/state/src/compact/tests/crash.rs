//! What of a compacted log is there after a crash, at any of its steps, with retention beside it.

use super::{
    removals::{fill, removals_after},
    *,
};
use crate::{
    Action, Durability, Finding, OpenError, Retention,
    replica::{Group, Replica, Store, promise::PROMISE_NAME},
};
use virga_ebpf::header::NodeId;

/// Of each key the offset that it was said at last, and whether that is a removal.
fn last_said(said: &[(u64, bool)]) -> BTreeMap<u64, (u64, bool)> {
    let said = said.iter().zip(0..);
    said.map(|((key, is_removal), offset)| (*key, (offset, *is_removal)))
        .collect()
}

/// Of each key the last that a log has.
fn last_found(disk: &Forgetful, at: &str) -> BTreeMap<u64, u64> {
    let (events, errors) = events(disk.clone(), Cursor::Start);
    assert!(errors.is_empty(), "{at}: {errors:?}");
    let key = |payload: &[u8]| {
        let object: serde_json::Value = serde_json::from_slice(payload).unwrap();
        object["key"].as_u64().unwrap()
    };
    let found = events
        .iter()
        .map(|(offset, payload)| (key(payload), *offset));
    found.collect()
}

fn say_one(world: &mut World, random: &mut Random, keys: u64) -> (u64, bool) {
    let (key, is_removal) = (random.below(keys), random.below(4) == 0);
    let fill = match is_removal {
        true => "null".to_owned(),
        false => format!(
            "\"{}\"",
            "x".repeat(usize::try_from(random.below(900)).unwrap())
        ),
    };
    say(
        world,
        format!("{{\"key\":{key},\"fill\":{fill}}}").as_bytes(),
    );
    (key, is_removal)
}

/// Events, removals, passes and retention, with steps of the log left undone; then it is killed, or the power goes. What was
/// acknowledged and has no successor is there, and what was removed does not come back. How many events went, and how
/// many passes ended early.
fn survives(seed: u64) -> (u64, u64) {
    let mut random = Random(seed * 0x9e37_79b9);
    let durability = Durability::ALL[usize::try_from(seed % 3).unwrap()];
    let events_max = seed.is_multiple_of(2).then(|| 60 + random.below(200));
    let retention = Retention {
        events_max,
        ..Retention::default()
    };
    let options = Options {
        durability,
        retention,
        ..options()
    };
    let disk = Forgetful::default();
    let mut said: Vec<(u64, bool)> = Vec::new();
    let mut world = World::open(&disk, options);
    let (mut removed, mut ended) = (0, 0);
    for round in 0..8 {
        let at = format!("seed {seed}, round {round}");
        for _ in 0..random.below(30) {
            for _ in 0..1 + random.below(6) {
                said.push(say_one(&mut world, &mut random, 2 + seed % 30));
            }
            for _ in 0..random.below(5) {
                world.step();
            }
        }
        if random.below(2) == 0 {
            world.settle();
        }
        if random.below(3) == 0 {
            disk.die_after(random.below(60));
        }
        let keys_max = 4 + usize::try_from(random.below(40)).unwrap();
        let pages_max = 1 + usize::try_from(random.below(3)).unwrap();
        match compact_in((keys_max, pages_max), &mut world, &removals_after(0)) {
            Ok(outcome) => removed += outcome.removed_events,
            Err(_) => ended += 1,
        }
        let (acknowledged, now) = (world.log.acknowledged(), world.now);
        drop(world);
        let keeps = random.below(5);
        match random.below(3) {
            // All that was written is with the kernel still.
            0 => disk.revive(),
            _ => disk.crash(|| random.below(4) < keeps),
        }
        world = World::open(&disk, options);
        world.now = now;
        let is_harmless = |finding: &Finding| {
            matches!(
                finding,
                Finding::Torn { .. } | Finding::Manifest { is_lost: false, .. }
            )
        };
        assert!(
            world.findings.iter().all(is_harmless),
            "{at}: {:?}",
            world.findings
        );
        let is_kept = world.log.end() >= acknowledged || durability != Durability::Synced;
        assert!(is_kept, "{at}");
        said.truncate(usize::try_from(world.log.end()).unwrap());
        let (first, found) = (world.log.first(), last_found(&disk, &at));
        for (key, (offset, is_removal)) in last_said(&said) {
            let there = found.get(&key).copied();
            let is_right = match (offset < first, is_removal) {
                (true, _) => there.is_none(),
                (false, false) => there == Some(offset),
                (false, true) => there.is_none_or(|there| there == offset),
            };
            assert!(
                is_right,
                "{at}: key {key} was said last at {offset}, and ends with {there:?}"
            );
        }
        assert_whole(&disk);
    }
    (removed, ended)
}

#[test]
fn nothing_is_lost_and_nothing_comes_back_whenever_it_ends() {
    let (mut removed, mut ended) = (0, 0);
    for seed in 1..80 {
        let more = survives(seed);
        removed += more.0;
        ended += more.1;
    }
    assert!(removed > 1_000 && ended > 20, "{removed} {ended}");
}

/// A log whose retention has just let go of the first segment, with that not on disk yet; and the segments that there were before.
fn letting_go(disk: &Forgetful) -> (World, Vec<Closed>) {
    let retention = Retention {
        age_ns_max: Some(100 * SECOND),
        ..Retention::default()
    };
    let options = Options {
        retention,
        ..options()
    };
    let mut world = World::open(disk, options);
    say(&mut world, &event(1, 1, 700));
    while world.log.closed().is_empty() {
        fill(&mut world, 1);
    }
    say(&mut world, br#"{"key":"k1","value":null}"#);
    while world.log.closed().len() < 2 {
        fill(&mut world, 1);
    }
    world.now += 80 * SECOND;
    fill(&mut world, 60);
    let closed = world.log.closed();
    world.now += 40 * SECOND;
    let action = world.log.poll_action(world.now);
    assert!(matches!(action, Some(Action::Mark { .. })), "{action:?}");
    (world, closed)
}

#[test]
fn a_removal_stays_until_what_it_hides_is_gone_by_retention_for_good() {
    for was_begun in [false, true] {
        let disk = Forgetful::default();
        let (mut world, before) = letting_go(&disk);
        // A pass that was begun before goes through all segments; one that begins now through none.
        let closed = world.log.closed();
        let subject = Subject {
            id: *world.log.id(),
            closed: if was_begun { before } else { closed },
        };
        let World {
            log, files, now, ..
        } = &mut world;
        let ended = pass(
            &disk,
            &subject,
            (&removals_after(0), *now),
            &|| true,
            &mut |rewritten| put(log, files, &rewritten).map_err(CompactError::io("put")),
        );
        assert_eq!(ended.is_err(), was_begun, "{ended:?}");
        drop(world);
        disk.crash(|| false);
        let state = latest(disk).view().state;
        let value = &state["k1"].value;
        assert!(value.ends_with(b"null}"), "{value:?}");
    }
}

#[test]
fn what_takes_anothers_place_is_on_disk_also_where_it_was_killed_between() {
    let disk = Forgetful::default();
    let options = Options {
        durability: Durability::Memory,
        ..options()
    };
    let mut world = World::open(&disk, options);
    for value in 0..40 {
        say(&mut world, &event(1, value, 500));
        world.settle();
    }
    // Killed with a last segment that is not synced; then that is full.
    drop(world);
    let mut world = World::open(&disk, options);
    for value in 0..40 {
        say(&mut world, &event(3, value, 500));
        world.settle();
    }
    compact(&mut world, &RULES()).unwrap();
    drop(world);
    disk.crash(|| false);
    let world = World::open(&disk, options);
    assert!(world.findings.is_empty(), "{:?}", world.findings);
    let state = latest(disk).view().state;
    assert_eq!(state["k1"].value, event(1, 39, 500));
}

/// What a pass has put in place is there for good when the next goes on from it.
#[test]
fn a_segment_that_was_put_in_place_stays_in_place() {
    let disk = Forgetful::default();
    let (new, old) = ("0000000001.seg.new", "0000000001.seg");
    disk.put(old, b"old".to_vec());
    disk.put(new, b"new".to_vec());
    disk.rename(old, new).unwrap();
    disk.crash(|| false);
    assert_eq!(
        (disk.content(old), disk.content(new)),
        (b"old".to_vec(), b"new".to_vec())
    );
    disk.replace(old, new).unwrap();
    disk.crash(|| false);
    assert_eq!(disk.content(old), b"new");
    disk.create("made", 1).unwrap();
    disk.crash(|| false);
    assert_eq!(disk.list().unwrap(), [old, "made"]);
}

#[test]
fn a_compacted_log_is_no_replica() {
    let (disk, mut world, _) = compacted();
    let before = disk.content(&segment_name(1));
    let id = *world.log.id();
    let group = Group::new(NodeId(1), &[1, 2].map(NodeId)).unwrap();
    let World { log, files, .. } = &mut world;
    let mut store = Store { log, files };
    let opened = Replica::open(1, group, (&name(), id), &[], 1, &mut store);
    assert!(matches!(opened, Err(OpenError::Compacted(1))), "{opened:?}");
    // Nothing was cut as damage.
    assert_eq!(disk.content(&segment_name(1)), before);
    assert!(disk.list().unwrap().iter().all(|file| file != PROMISE_NAME));
}
