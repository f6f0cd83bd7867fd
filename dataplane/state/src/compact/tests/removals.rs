//! Removals, keys that are none, and what a pass says of itself.

use super::*;

pub(super) fn removals_after(after_ns: u64) -> Rules {
    Rules {
        removals_after_ns: Some(after_ns),
        ..RULES()
    }
}

/// Events of other keys, so that segments are full of what goes.
pub(super) fn fill(world: &mut World, count: u64) {
    for value in 0..count {
        say(world, &event(2, value, 700));
        world.settle();
    }
}

#[test]
fn a_removal_goes_once_nothing_is_left_that_it_hides() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    say(&mut world, &event(1, 1, 700));
    fill(&mut world, 20);
    let removal = world.log.end();
    say(&mut world, br#"{"key":"k1","value":null}"#);
    fill(&mut world, 60);
    let of_first = |disk: &Forgetful| {
        let (left, errors) = events(disk.clone(), Cursor::Start);
        assert!(errors.is_empty(), "{errors:?}");
        let is_of_first = |payload: &Vec<u8>| payload.starts_with(br#"{"key":"k1""#);
        let left = left.into_iter().filter(|(_, payload)| is_of_first(payload));
        left.map(|(offset, _)| offset).collect::<Vec<_>>()
    };
    compact(&mut world, &removals_after(u64::MAX)).unwrap();
    assert_eq!(of_first(&disk), [removal], "young, it stays");
    fill(&mut world, 60);
    compact(&mut world, &removals_after(0)).unwrap();
    assert!(of_first(&disk).is_empty());
    assert_whole(&disk);
}

/// A reader that has a segment open goes on in it as it was, and in the next as that is now.
#[test]
fn a_removal_stays_in_the_pass_that_takes_what_it_hides() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Folder::lock(folder.path()).unwrap();
    let (state, _) = recover(&disk, &name(), [7; 16]).unwrap();
    let mut log = Log::new(state, options());
    let mut files = Files::open(disk.share().unwrap()).unwrap();
    let removal = 30;
    for offset in 0..120 {
        let payload = match offset {
            0 => event(1, 1, 700),
            _ if offset == removal => br#"{"key":"k1","value":null}"#.to_vec(),
            _ => event(2, offset, 700),
        };
        log.append(SECOND + offset, &link(offset), &payload)
            .unwrap();
        while files.step(&mut log, SECOND + offset) {}
    }
    let closed = log.closed();
    assert!(closed[0].end <= removal && closed.last().unwrap().end > removal);
    let reader = || Reader::open(Folder::read(folder.path()).unwrap(), &name(), Cursor::Start);
    let mut before = reader().unwrap();
    let first = before.next_event().unwrap().map(|event| event.offset);
    assert_eq!(first, Some(0));
    let rest = |mut reader: Reader<Folder>| {
        let mut offsets = BTreeSet::new();
        while let Some(event) = reader.next_event().unwrap() {
            offsets.insert(event.offset);
        }
        offsets
    };
    let mut compact = || {
        let subject = Subject {
            id: *log.id(),
            closed: log.closed(),
        };
        let rules = (&removals_after(0), 9 * SECOND);
        let outcome = pass(&disk, &subject, rules, &|| true, &mut |rewritten| {
            Ok(put(&mut log, &mut files, &rewritten).unwrap())
        });
        assert!(outcome.unwrap().damaged.is_empty());
        rest(reader().unwrap())
    };
    let left = compact();
    assert!(!left.contains(&0) && left.contains(&removal), "{left:?}");
    assert!(rest(before).contains(&removal));
    let left = compact();
    assert!(!left.contains(&removal) && left.contains(&119), "{left:?}");
}

#[test]
fn a_removal_stays_where_what_it_hides_does() {
    for is_damaged in [false, true] {
        let disk = Forgetful::default();
        let mut world = World::open(&disk, options());
        // Of the first segment too little goes to write it anew.
        say(&mut world, &event(1, 1, 10));
        while world.log.closed().is_empty() {
            let key = 100 + world.log.end();
            say(&mut world, &event(key, 1, 700));
            world.settle();
        }
        let removal = world.log.end();
        say(&mut world, br#"{"key":"k1","value":null}"#);
        fill(&mut world, 60);
        if is_damaged {
            disk.flip(&segment_name(1), 3_000, 4);
        }
        let outcome = compact(&mut world, &removals_after(0)).unwrap();
        assert!(outcome.segments > 0 && outcome.removed_events > 20);
        let (left, _) = events(disk.clone(), Cursor::Offset(removal));
        assert!(left.contains_key(&removal), "{is_damaged}");
    }
}

/// Both ids read as 1e20.
#[test]
fn a_number_that_reads_as_others_is_no_key() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    let reads: serde_json::Value = serde_json::from_str("100000000000000000001").unwrap();
    assert!(reads.is_f64());
    for id in ["100000000000000000001", "100000000000000000002", "0.5"] {
        say(
            &mut world,
            format!("{{\"key\":{id},\"value\":1}}").as_bytes(),
        );
    }
    // A fold has this instead of the numbers.
    say(&mut world, format!("{{\"key\":\"{reads}\"}}").as_bytes());
    world.settle();
    say(&mut world, br#"{"key":"other"}"#);
    world.settle();
    for value in 0..60 {
        say(&mut world, format!("{{\"key\":{value}.25}}").as_bytes());
        world.settle();
        fill(&mut world, 1);
    }
    let before = latest(disk.clone()).view().state;
    // They count like keys.
    let too_many = compact_within(0, &mut world, &removals_after(0));
    assert!(matches!(too_many, Err(CompactError::Keys)));
    let outcome = compact_within(80, &mut world, &removals_after(0)).unwrap();
    assert!(outcome.removed_events > 20, "{outcome:?}");
    let (left, _) = events(disk.clone(), Cursor::Start);
    assert!((0..4).all(|offset| left.contains_key(&offset)), "{left:?}");
    assert!(!left.contains_key(&4));
    let after = latest(disk).view().state;
    assert_eq!(after[&reads.to_string()], before[&reads.to_string()]);
}

#[test]
fn a_pass_that_ends_leaves_no_file_behind() {
    type How<'a> = &'a mut dyn FnMut() -> Result<bool, CompactError>;
    let stopping = |disk: &Forgetful, world: &mut World, how: How<'_>| {
        world.now += SECOND;
        let subject = Subject {
            id: *world.log.id(),
            closed: world.log.closed(),
        };
        let ended = pass(disk, &subject, (&RULES(), world.now), &|| true, &mut |_| {
            how()
        });
        let files = disk.list().unwrap();
        assert!(
            !files.iter().any(|file| file.ends_with(".compacting")),
            "{files:?}"
        );
        ended
    };
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    for value in 0..100 {
        say(&mut world, &event(1, value, 500));
        world.settle();
    }
    let mut asked = 0;
    let refused = stopping(&disk, &mut world, &mut || {
        asked += 1;
        Ok(false)
    });
    assert!(matches!(refused, Err(CompactError::Stopped)), "{refused:?}");
    assert_eq!(asked, 1, "nothing is tried behind what was refused");
    let failed = stopping(&disk, &mut world, &mut || Err(CompactError::Keys));
    assert!(matches!(failed, Err(CompactError::Keys)), "{failed:?}");
}
