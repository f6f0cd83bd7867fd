use super::*;
use crate::{
    format::{MANIFEST_NAME, MANIFEST_SLOTS_AT},
    tests::{
        forgetful::Forgetful,
        signed::Author,
        world::{SECOND, World, name, small},
    },
};

/// Events of two entities in many segments; what each has signed.
struct Told {
    disk: Forgetful,
    world: World,
    authors: [Author; 2],
    /// Of the first one.
    messages: Vec<Vec<u8>>,
}

const PER_BATCH: usize = 3;

impl Told {
    fn new(rounds: usize) -> Self {
        let disk = Forgetful::default();
        let world = World::open(&disk, small());
        let authors = [1, 2].map(|seed| Author::new(seed, &name()));
        let mut told = Self {
            disk,
            world,
            authors,
            messages: Vec::new(),
        };
        for _ in 0..rounds {
            told.say(0);
            told.say(1);
            told.world.append(1);
            told.world.settle();
        }
        told
    }

    fn say(&mut self, who: usize) {
        let payload = [7; 100];
        let payloads = [&payload[..]; PER_BATCH];
        let batch = self.authors[who].sign(&payloads);
        self.world.now += 1;
        let appended = self
            .world
            .log
            .append_signed(self.world.now, &batch, &payloads);
        appended.unwrap();
        if who == 0 {
            self.messages.push(bundle::encode(&batch, &payloads));
        }
    }

    /// The first one's events behind some, up to one.
    fn wanted(&self, after: u64, to: u64) -> Wanted {
        Wanted {
            feed: self.feed(),
            after,
            to,
        }
    }

    fn feed(&self) -> FeedId {
        let (batch, _) = bundle::parse(&self.messages[0]).unwrap();
        batch.signed.statement.feed()
    }

    fn look(&self, cursor: Cursor, wanted: Wanted) -> Looked {
        let looked = look(
            &self.disk,
            &name(),
            (cursor, u64::MAX, u64::MAX),
            wanted,
            (None, || false),
        );
        looked.unwrap()
    }
}

#[test]
fn events_of_a_feed_are_found_from_any_place_on_and_no_others() {
    let told = Told::new(20);
    let batches = 60;
    let all = told.look(Cursor::Start, told.wanted(0, batches));
    assert_eq!(all.messages, told.messages);
    // Events 16 to 30 are the batches 5 to 9.
    let some = told.wanted(15, 30);
    for cursor in [
        Cursor::Start,
        Cursor::Offset(7 * 5),
        Cursor::Time(0),
        Cursor::Time(SECOND + 16),
    ] {
        let looked = told.look(cursor, some);
        assert_eq!(looked.messages, told.messages[5..10], "{cursor}");
    }
    // What lacks some of them is not looked for any further.
    let late = told.look(Cursor::Offset(7 * 7), some);
    assert_eq!(late, Looked::default());
    let late = told.look(Cursor::Time(u64::MAX), some);
    assert_eq!(late, Looked::default());
    // Nor where what was asked for ends within a batch, as then another batch was signed.
    let looked = told.look(Cursor::Start, told.wanted(15, 29));
    assert_eq!(looked.messages, told.messages[5..9]);
    assert_eq!(looked.next, None);
    let looked = told.look(Cursor::Start, told.wanted(14, 30));
    assert_eq!((looked.messages.len(), looked.next), (0, None));
    // The last ones, and what is not there yet.
    let looked = told.look(Cursor::Start, told.wanted(batches - 3, batches + 3));
    assert_eq!(looked.messages, told.messages[19..]);
    let next = Cursor::Offset(looked.next.unwrap());
    let looked = told.look(next, told.wanted(batches, batches + 3));
    assert_eq!(looked, Looked::default());
    let looked = told.look(Cursor::Start, told.wanted(u64::MAX, 0));
    assert_eq!(looked, Looked::default());
}

#[test]
fn only_what_may_be_read_is_given() {
    let told = Told::new(5);
    let end = told.world.log.end();
    for limit in 0..=end {
        let looked = look(
            &told.disk,
            &name(),
            (Cursor::Start, u64::MAX, limit),
            told.wanted(0, 15),
            (None, || false),
        );
        // Each of the log's batches has 7 events.
        let whole = usize::try_from(limit / 7).unwrap();
        assert_eq!(looked.unwrap().messages, told.messages[..whole]);
    }
}

#[test]
fn where_the_first_is_not_in_time_the_rest_of_the_log_is_not_gone_through() {
    let told = Told::new(20);
    let wanted = told.wanted(15, 60);
    let of = |first_before| {
        let from = (Cursor::Offset(7 * 4), first_before, u64::MAX);
        look(&told.disk, &name(), from, wanted, (None, || false)).unwrap()
    };
    // The log's batch with the first begins at 35. All others follow, however far on they are.
    assert_eq!(of(36).messages, told.messages[5..]);
    assert_eq!(of(35), Looked::default());
}

#[test]
fn an_answer_has_a_bound_and_the_next_goes_on_behind_it() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, crate::Options::default());
    let mut author = Author::new(1, &name());
    let large = vec![1; 100_000];
    let mut messages = Vec::new();
    for _ in 0..8 {
        let batch = author.sign(&[&large]);
        messages.push(bundle::encode(&batch, &[&large]));
        world.now += 1;
        world
            .log
            .append_signed(world.now, &batch, &[&large])
            .unwrap();
        world.settle();
    }
    let (batch, _) = bundle::parse(&messages[0]).unwrap();
    let mut wanted = Wanted {
        feed: batch.signed.statement.feed(),
        after: 0,
        to: 8,
    };
    let (mut found, mut next, mut place) = (Vec::new(), Cursor::Start, None);
    let mut answers = 0;
    while wanted.after < wanted.to {
        let from = (next, u64::MAX, u64::MAX);
        let looked = look(&disk, &name(), from, wanted, (place, || false)).unwrap();
        // It is the same wherever the look begins.
        let anew = look(&disk, &name(), from, wanted, (None, || false)).unwrap();
        assert_eq!(looked, anew);
        place = looked.place;
        assert!(place.is_some());
        assert!(looked.messages.len() <= 2);
        wanted.after += looked.messages.len() as u64;
        found.extend(looked.messages);
        next = Cursor::Offset(looked.next.unwrap());
        answers += 1;
    }
    assert_eq!((found, answers), (messages, 4));
}

#[test]
fn what_is_damaged_is_not_given() {
    let told = Told::new(20);
    let all = told.wanted(0, 60);
    let segment = "0000000002.seg";
    let bytes = told.disk.content(segment);
    let used = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    // A batch of the log has one of the feed's, in front of segment 2 as in it.
    let catalog = Catalog::read(&told.disk, &name()).unwrap();
    let mut segments = catalog.used();
    let second = segments.find(|found| found.number == 2).unwrap();
    let before = usize::try_from(second.first_offset().unwrap() / 7).unwrap();
    assert!(before > 0);
    for at in (SEGMENT_HEADER_BYTES..=used).step_by(37) {
        told.disk.flip(segment, at, 0x20);
        let looked = told.look(Cursor::Start, all);
        let count = looked.messages.len();
        assert_eq!(looked.messages, told.messages[..count], "byte {at}");
        assert!(
            (before..told.messages.len()).contains(&count),
            "byte {at}: {count}"
        );
        told.disk.flip(segment, at, 0x20);
    }
}

#[test]
fn feeds_end_where_their_newest_batch_does() {
    let mut told = Told::new(20);
    told.say(0);
    told.world.settle();
    let newest_of = |told: &Told, bytes, is_waited_for: bool| {
        let mut met = Vec::new();
        let newest = newest_of_feeds(
            &told.disk,
            &name(),
            bytes,
            || is_waited_for,
            |offset, batch| met.push((offset, batch.signed.statement.last())),
        );
        (newest.unwrap(), met)
    };
    let (newest, met) = newest_of(&told, u64::MAX, true);
    let Newest {
        last,
        is_whole,
        end,
    } = newest;
    assert_eq!((is_whole, end), (true, told.world.log.end()));
    let first = |round: u64| [(7 * round, 3 * round + 3), (7 * round + 3, 3 * round + 3)];
    let all: Vec<_> = (0..20).flat_map(first).chain([(140, 63)]).collect();
    assert_eq!(met, all);
    let ends = |last: &[Last]| -> Vec<(u64, [u8; 32])> {
        let mut ends: Vec<_> = last
            .iter()
            .map(|last| {
                let statement = last.batch.statement();
                (statement.last(), statement.head)
            })
            .collect();
        ends.sort_unstable();
        ends
    };
    let mut signed = told.authors.each_ref().map(|author| author.end.end());
    signed.sort_unstable();
    assert_eq!(ends(&last), signed);
    assert!(last.iter().any(|last| last.time_unix_ns == told.world.now));
    // The newest segment has but the last word, and the one before it the other's.
    let (newest, _) = newest_of(&told, 0, true);
    assert!(
        newest.last.len() <= 2 && ends(&newest.last).contains(&signed[1]),
        "{newest:?}"
    );
    let (two, _) = newest_of(&told, 1, true);
    assert_eq!(ends(&two.last), signed);
    assert!(!newest.is_whole && !two.is_whole, "there are older ones");
    let (none, _) = newest_of(&told, u64::MAX, false);
    assert_eq!(none, Newest::default());
    let empty = newest_of_feeds(&Forgetful::default(), &name(), 1, || true, |_, _| ());
    let empty = empty.unwrap();
    assert!(empty.last.is_empty() && empty.is_whole);
    // What cannot be read is no part of it.
    told.disk
        .flip("0000000002.seg", SEGMENT_HEADER_BYTES + 8, 1);
    assert!(!newest_of(&told, u64::MAX, true).0.is_whole);
    told.disk
        .flip("0000000002.seg", SEGMENT_HEADER_BYTES + 8, 1);
    assert!(newest_of(&told, u64::MAX, true).0.is_whole);
    // Nor where nothing is left but what says that there was more.
    let catalog = Catalog::read(&told.disk, &name()).unwrap();
    let files: Vec<String> = catalog.used().map(|one| segment_name(one.number)).collect();
    for file in &files {
        told.disk.remove(file).unwrap();
    }
    assert!(
        newest_of(&told, u64::MAX, true).0.is_whole,
        "as a log that never had any"
    );
    let mut manifest = catalog.manifest.unwrap();
    (manifest.first_segment, manifest.generation) = (7, manifest.generation + 1);
    let file = told.disk.open(MANIFEST_NAME).unwrap();
    file.write_full(MANIFEST_SLOTS_AT[0], &manifest.encode())
        .unwrap();
    assert!(!newest_of(&told, u64::MAX, true).0.is_whole);
}

#[test]
fn a_look_goes_on_where_the_last_one_ended() {
    let told = Told::new(20);
    let wanted = told.wanted(15, 60);
    let from = (Cursor::Offset(7 * 5), u64::MAX, u64::MAX);
    let of = |place| look(&told.disk, &name(), from, wanted, (place, || false)).unwrap();
    let catalog = Catalog::read(&told.disk, &name()).unwrap();
    let mut places = Vec::new();
    let begin = (0, SEGMENT_HEADER_BYTES as u64);
    let gone = each_batch(&told.disk, &catalog, begin, |_, _, place| {
        places.push(place);
        ControlFlow::Continue(())
    });
    gone.unwrap();
    assert_eq!(places.len(), 20);
    // One that is too far on, and one that no batch is at, are not believed.
    for place in &places {
        assert_eq!(of(Some(*place)).messages, told.messages[5..], "{place:?}");
        let wrong = Place {
            at: place.at + 1,
            ..*place
        };
        assert_eq!(of(Some(wrong)).messages, told.messages[5..], "{place:?}");
    }
}

#[test]
fn a_look_that_is_ended_early_gets_further_each_time() {
    let told = Told::new(20);
    for begin in [Cursor::Start, Cursor::Offset(7 * 5), Cursor::Time(SECOND)] {
        let (mut wanted, mut cursor, mut place) = (told.wanted(15, 60), begin, None);
        let mut found = Vec::new();
        for looks in 1.. {
            let from = (cursor, u64::MAX, u64::MAX);
            let looked = look(&told.disk, &name(), from, wanted, (place, || true)).unwrap();
            assert!(looked.messages.len() <= 1, "of one batch of the log");
            wanted.after += (PER_BATCH * looked.messages.len()) as u64;
            found.extend(looked.messages);
            if wanted.after == wanted.to {
                break;
            }
            // One look for each batch of the log is the most that it takes.
            assert!(looks < 20, "{begin}");
            let next = looked.next.unwrap();
            let (before, moved) = (place.replace(looked.place.unwrap()), cursor);
            cursor = Cursor::Offset(next);
            assert!(place != before || cursor != moved, "{begin}: it stands");
        }
        assert_eq!(found, told.messages[5..], "{begin}");
    }
}
