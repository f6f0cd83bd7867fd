//! Logs of more keys than are held at a time, and of more that goes than there is room to note.

use super::{
    removals::{fill, removals_after},
    *,
};

/// Small events, of which a piece has several with keys of several parts, and signed batches of such.
#[test]
fn more_keys_than_are_held_are_gone_through_in_parts_and_what_goes_is_the_same() {
    let made = |bounds| {
        let disk = Forgetful::default();
        let mut world = World::open(&disk, options());
        let key = SigningKey::from_bytes(&[1; 32]);
        let mut feed = FeedEnd::new(name(), key.verifying_key().to_bytes());
        for value in 0..600 {
            for key in 0..20 {
                say(&mut world, &event((value + key) % 60, value, 10));
            }
            let signed = [event(value % 3, value, 20), event(value % 5, value, 20)];
            let payloads: Vec<&[u8]> = signed.iter().map(Vec::as_slice).collect();
            let batch = feed.sign(&key, Vec::new(), payloads.iter().copied());
            world.now += 1;
            let appended = world
                .log
                .append_signed(world.now, &batch.unwrap(), &payloads);
            appended.unwrap();
            world.settle();
        }
        let outcome = compact_in(bounds, &mut world, &RULES());
        (disk, outcome)
    };
    let left = |disk: &Forgetful| -> Vec<(u64, Vec<u8>)> {
        let mut reader = Reader::open(disk.clone(), &name(), Cursor::Start).unwrap();
        let mut left = Vec::new();
        while let Some(event) = reader.next_event().unwrap() {
            left.push((event.offset, event.payload.to_vec()));
        }
        left
    };
    let (whole, at_once) = made((COMPACTION_KEYS_MAX, 0));
    let at_once = at_once.unwrap();
    assert_eq!((at_once.parts, at_once.problem()), (1, None));
    assert!(at_once.removed_events > 5_000, "{at_once:?}");
    // The second has room for a small part of the log at a time.
    for pages_max in [COMPACTION_PAGES_MAX, 9] {
        let (disk, outcome) = made((8, pages_max));
        let outcome = outcome.unwrap();
        assert!(outcome.parts > 4, "{outcome:?}");
        let but_parts = Outcome {
            parts: 1,
            ..outcome
        };
        assert_eq!(but_parts, at_once);
        assert_eq!(left(&disk), left(&whole));
        assert_whole(&disk);
    }
    let none = made((0, COMPACTION_PAGES_MAX)).1;
    assert!(matches!(none, Err(CompactError::Keys)));
}

/// A pass goes through what is behind the room for what it notes after that: what a removal hides has just gone then.
#[test]
fn a_removal_stays_in_a_pass_that_takes_what_it_hides_little_by_little() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    say(&mut world, &event(1, 1, 300));
    fill(&mut world, 300);
    let removal = world.log.end();
    say(&mut world, br#"{"key":"k1","value":null}"#);
    fill(&mut world, 60);
    let has =
        |disk: &Forgetful, offset| events(disk.clone(), Cursor::Start).0.contains_key(&offset);
    // Room for what goes of 256 events.
    let once = compact_in((1, 1), &mut world, &removals_after(0)).unwrap();
    assert!(once.parts > 1, "{once:?}");
    assert!(!has(&disk, 0) && has(&disk, removal));
    compact_in((1, 10), &mut world, &removals_after(0)).unwrap();
    assert!(!has(&disk, removal));
    assert_whole(&disk);
}

#[test]
fn what_went_is_counted_once_however_many_parts_there_are() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    for value in 0..400 {
        say(&mut world, &event(value % 20, value, 500));
        world.settle();
    }
    let closed: u64 = world.log.closed().iter().map(|closed| closed.bytes).sum();
    let outcome = compact_within(8, &mut world, &RULES()).unwrap();
    assert!(outcome.parts > 2, "{outcome:?}");
    let left: u64 = world.log.closed().iter().map(|closed| closed.bytes).sum();
    assert_eq!(outcome.removed_bytes, closed - left);
    let report = assert_whole(&disk);
    assert_eq!(outcome.removed_events, report.removed_events);
}

/// As retention does it, at any moment of a pass.
#[test]
fn a_segment_that_is_removed_meanwhile_is_passed_over() {
    let without = |moment: usize| {
        let folder = tempfile::tempdir().unwrap();
        let disk = Folder::lock(folder.path()).unwrap();
        let (state, _) = recover(&disk, &name(), [7; 16]).unwrap();
        let mut log = Log::new(state, options());
        let mut files = Files::open(disk.share().unwrap()).unwrap();
        for value in 0..200 {
            let payload = event(value % 4, value, 500);
            log.append(SECOND + value, &link(value), &payload).unwrap();
            while value % 10 == 9 && files.step(&mut log, SECOND + value) {}
        }
        let subject = Subject {
            id: *log.id(),
            closed: log.closed(),
        };
        let looked = std::cell::Cell::new(0);
        let goes_on = || {
            looked.set(looked.get() + 1);
            if looked.get() == moment {
                disk.remove(&segment_name(1)).unwrap();
            }
            true
        };
        let outcome = pass_within(
            (2, COMPACTION_PAGES_MAX),
            &disk,
            &subject,
            (&RULES(), 9 * SECOND),
            &goes_on,
            &mut |rewritten| {
                let is_there = disk.open(&segment_name(rewritten.segment)).is_ok();
                Ok(is_there && put(&mut log, &mut files, &rewritten).unwrap())
            },
        );
        (outcome, looked.get())
    };
    let (whole, looks) = without(0);
    let whole = whole.unwrap();
    assert!(whole.parts > 1 && whole.segments > 2, "{whole:?}");
    for moment in (1..=looks).step_by(11) {
        match without(moment).0 {
            Ok(outcome) => {
                assert_eq!(outcome.damaged, BTreeSet::new(), "{moment}");
                let is_rest = outcome.segments + 1 >= whole.segments;
                assert!(is_rest, "{moment}: {outcome:?}");
            }
            // It went between being written anew and being put in place.
            Err(error) => assert!(matches!(error, CompactError::Stopped), "{moment}: {error}"),
        }
    }
}
