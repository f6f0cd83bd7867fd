use super::{
    ready::{AddWins, Counters, LastWriterWins, Latest},
    snapshot::SnapshotError,
    *,
};
use crate::{
    Cursor, Link, Log, Options, Retention, files::Files, format::LogId, recover,
    tests::forgetful::Forgetful,
};
use serde_json::{Value, json};
use virga_ebpf::header::OriginHash;

fn name(text: &str) -> LogName {
    LogName::parse(text).unwrap()
}

/// A log with events of these texts.
struct World {
    disk: Forgetful,
    name: LogName,
    log: Log,
    files: Files<Forgetful>,
    now: u64,
}

impl World {
    fn new(text: &str) -> Self {
        Self::with_id(text, [u8::try_from(text.len()).unwrap(); 16])
    }

    fn with_id(text: &str, id: LogId) -> Self {
        let (disk, name) = (Forgetful::default(), name(text));
        let (state, _) = recover(&disk, &name, id).unwrap();
        let options = Options {
            segment_bytes: 4_096,
            ..Options::default()
        };
        Self {
            log: Log::new(state, options),
            files: Files::open(disk.clone()).unwrap(),
            disk,
            name,
            now: 1_000,
        }
    }

    fn append(&mut self, event: &Value) -> Token {
        self.append_bytes(event.to_string().as_bytes())
    }

    fn append_bytes(&mut self, event: &[u8]) -> Token {
        let link = Link {
            entity: OriginHash(1),
            observed: 0,
            parent: 0,
        };
        self.now += 1;
        let offset = self.log.append(self.now, &link, event).unwrap();
        while self.files.step(&mut self.log, self.now) {}
        let log = self.name.clone();
        Token { log, offset }
    }

    fn reader(&self) -> Reader<Forgetful> {
        Reader::open(self.disk.clone(), &self.name, Cursor::Start).unwrap()
    }
}

fn catch_up<F: Fold>(folding: &mut Folding<F>, world: &World) -> Vec<F::Change> {
    let mut changes = Vec::new();
    let mut reader = world.reader();
    let changed = |_: &Token, change| changes.push(change);
    folding.catch_up(&world.name, &mut reader, changed).unwrap();
    changes
}

fn counted(world: &mut World, count: u64) {
    for n in 0..count {
        world.append(&json!({"key": format!("k{}", n % 7), "add": n}));
    }
}

#[test]
fn the_same_logs_give_the_same_state_whoever_is_read_first() {
    let mut worlds = [World::new("a"), World::new("b/c"), World::new("long")];
    for (index, world) in (0u64..).zip(&mut worlds) {
        for n in 0..200 {
            let key = format!("k{}", (n * 31 + index) % 11);
            let time = (n * 7_919 + index * 13) % 997;
            world.append(&json!({"key": key, "value": n, "time": time}));
        }
    }
    let mut hashes = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut folding = Folding::new(LastWriterWins, Policy::Stop);
        let mut readers = order.map(|index: usize| (index, worlds[index].reader()));
        // In pieces, too.
        for limit in [17, 90, 200] {
            for (index, reader) in &mut readers {
                reader.set_limit((limit + *index as u64).min(200));
                let name = &worlds[*index].name;
                folding.catch_up(name, reader, |_, _| {}).unwrap();
            }
        }
        for (index, reader) in &mut readers {
            reader.set_limit(u64::MAX);
            let name = &worlds[*index].name;
            folding.catch_up(name, reader, |_, _| {}).unwrap();
            assert_eq!(folding.next(name), 200);
        }
        hashes.push(folding.hash());
    }
    assert!(hashes.windows(2).all(|two| two[0] == two[1]));
}

#[test]
fn a_restart_from_a_snapshot_comes_to_the_same_as_none() {
    let mut world = World::new("a");
    counted(&mut world, 300);
    let mut whole = Folding::new(Counters, Policy::Stop);
    catch_up(&mut whole, &world);
    for cut in [0, 1, 150, 299, 300] {
        let mut first = Folding::new(Counters, Policy::Stop);
        let mut reader = world.reader();
        reader.set_limit(cut);
        first.catch_up(&world.name, &mut reader, |_, _| {}).unwrap();
        let Some(bytes) = first.snapshot(&world.name) else {
            assert_eq!(cut, 0);
            continue;
        };
        let mut second = Folding::new(Counters, Policy::Stop);
        let mut reader = second
            .restore(&world.name, &bytes, world.disk.clone())
            .unwrap();
        assert_eq!(second.hash(), first.hash());
        let applied = second
            .catch_up(&world.name, &mut reader, |_, _| {})
            .unwrap();
        assert_eq!((applied, second.hash()), (300 - cut, whole.hash()));
    }
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused() {
    let mut world = World::new("a");
    counted(&mut world, 20);
    let mut folding = Folding::new(Counters, Policy::Stop);
    catch_up(&mut folding, &world);
    let bytes = folding.snapshot(&world.name).unwrap();
    let restored = |name: &LogName, bytes: &[u8], disk: &Forgetful| {
        let mut fresh = Folding::new(Counters, Policy::Stop);
        let restored = fresh.restore(name, bytes, disk.clone()).map(|_| ());
        assert_eq!(fresh.next(name) > 0, restored.is_ok());
        restored
    };
    assert!(restored(&world.name, &bytes, &world.disk).is_ok());
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        assert!(matches!(
            restored(&world.name, &flipped, &world.disk),
            Err(SnapshotError::Damaged)
        ));
        assert!(restored(&world.name, &bytes[..at], &world.disk).is_err());
    }
    let wrong_log = restored(&name("b"), &bytes, &world.disk);
    assert!(matches!(wrong_log, Err(SnapshotError::Log { .. })));
    let latest = Folding::new(Latest::by("key"), Policy::Stop).restore(
        &world.name,
        &bytes,
        world.disk.clone(),
    );
    assert!(matches!(latest, Err(SnapshotError::Fold { .. })));
    // Another log of the same name: shorter, or with other events.
    for count in [19, 20] {
        let mut other = World::new("a");
        for n in 0..count {
            other.append(&json!({"key": "x", "add": n}));
        }
        let refused = restored(&world.name, &bytes, &other.disk);
        assert!(
            matches!(refused, Err(SnapshotError::OtherEvents(19))),
            "{refused:?}"
        );
    }
}

/// All else is the same.
#[test]
fn a_snapshot_of_a_log_that_was_begun_anew_is_refused() {
    let [mut world, mut anew] = [1, 2].map(|id| World::with_id("a", [id; 16]));
    counted(&mut world, 20);
    counted(&mut anew, 20);
    let mut folding = Folding::new(Counters, Policy::Stop);
    catch_up(&mut folding, &world);
    let bytes = folding.snapshot(&world.name).unwrap();
    let restore = |bytes: &[u8], world: &World| {
        let mut fresh = Folding::new(Counters, Policy::Stop);
        let restored = fresh.restore(&world.name, bytes, world.disk.clone());
        let hash = fresh.hash();
        restored.map(|_| hash)
    };
    assert_eq!(restore(&bytes, &world).unwrap(), folding.hash());
    let refused = restore(&bytes, &anew);
    assert!(
        matches!(refused, Err(SnapshotError::OtherLog(_))),
        "{refused:?}"
    );
    // As an earlier program made it, without the id.
    let mut earlier = [&bytes[..83], &bytes[99..bytes.len() - 32]].concat();
    earlier[11] = 1;
    let hash = blake3::hash(&earlier);
    earlier.extend(hash.as_bytes());
    for world in [&world, &anew] {
        assert_eq!(restore(&earlier, world).unwrap(), folding.hash());
    }
}

/// Counters as an earlier and a later program had them.
#[derive(Clone, Debug)]
struct Versioned<const V: u32>;

impl<const V: u32> Fold for Versioned<V> {
    type State = u64;
    type Change = u64;
    const NAME: &'static str = "versioned";
    const VERSION: u32 = V;

    fn begin(&self) -> u64 {
        0
    }

    fn apply(&self, state: &mut u64, _event: &Sourced<'_>) -> Result<Option<u64>, String> {
        *state += u64::from(V);
        Ok(Some(*state))
    }

    fn merge(&self, into: &mut u64, other: &u64) {
        *into += other;
    }

    fn encode(&self, state: &u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&state.to_be_bytes());
    }

    fn decode(&self, bytes: &[u8]) -> Option<u64> {
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }

    fn migrate(&self, version: u32, bytes: &[u8]) -> Option<u64> {
        (version == 1)
            .then(|| self.decode(bytes))?
            .map(|state| state * u64::from(V))
    }
}

#[test]
fn a_changed_state_is_migrated_or_refused() {
    let mut world = World::new("a");
    counted(&mut world, 10);
    let mut first = Folding::new(Versioned::<1>, Policy::Stop);
    catch_up(&mut first, &world);
    let bytes = first.snapshot(&world.name).unwrap();
    let mut second = Folding::new(Versioned::<3>, Policy::Stop);
    second
        .restore(&world.name, &bytes, world.disk.clone())
        .unwrap();
    assert_eq!(second.view().state, 30);
    let later = second.snapshot(&world.name).unwrap();
    let back = first.restore(&world.name, &later, world.disk.clone());
    assert!(
        matches!(back, Err(SnapshotError::Version(3))),
        "{:?}",
        back.err()
    );
    assert_eq!(first.view().state, 10);
}

#[test]
fn a_fold_that_stands_still_before_damage_does_so_again() {
    let mut world = World::new("a");
    for n in 0..200 {
        world.append(&json!({"key": "x", "add": n}));
    }
    world.disk.flip(&crate::format::segment_name(2), 2_000, 4);
    let mut folding = Folding::new(Counters, Policy::Stop);
    let mut reader = world.reader();
    let stopped = folding.catch_up(&world.name, &mut reader, |_, _| {});
    assert!(
        matches!(stopped, Err(FoldError::Read { .. })),
        "{stopped:?}"
    );
    let next = folding.next(&world.name);
    // The reader has gone on behind the damage.
    let again = folding.catch_up(&world.name, &mut reader, |_, _| {});
    assert!(
        matches!(again, Err(FoldError::Order { wanted, .. }) if wanted == next),
        "{again:?}"
    );
    assert_eq!(folding.next(&world.name), next);
}

#[test]
fn what_was_appended_is_read_once_its_place_is_reached() {
    let mut world = World::new("a");
    let mut folding = Folding::new(Counters, Policy::Stop);
    let token = world.append(&json!({"key": "x", "add": 2}));
    assert!(!folding.has_reached(&token));
    let changes = catch_up(&mut folding, &world);
    assert!(folding.has_reached(&token));
    assert_eq!((changes.len(), changes[0].value), (1, Some(2)));
    let view = folding.view();
    let later = world.append(&json!({"key": "x", "add": 5}));
    catch_up(&mut folding, &world);
    // The view is of its place, whatever came since.
    assert_eq!(view.state["x"], 2);
    assert_eq!(view.places[&world.name].next, 1);
    assert_eq!(folding.view().state["x"], 7);
    assert!(folding.has_reached(&later));
}

#[test]
fn an_event_that_makes_no_sense_stops_the_fold_or_is_counted() {
    let mut world = World::new("a");
    world.append(&json!({"key": "x", "add": 1}));
    world.append_bytes(b"no JSON");
    world.append(&json!({"key": "x", "add": i64::MAX}));
    world.append(&json!({"key": "x", "add": 1}));
    let mut strict = Folding::new(Counters, Policy::Stop);
    for _ in 0..2 {
        let stopped = strict.catch_up(&world.name, &mut world.reader(), |_, _| {});
        assert!(
            matches!(stopped, Err(FoldError::Refused { offset: 1, .. })),
            "{stopped:?}"
        );
    }
    assert_eq!(strict.view().state["x"], 1);
    let mut lenient = Folding::new(Counters, Policy::Skip);
    catch_up(&mut lenient, &world);
    let progress = lenient.progress(&world.name);
    assert_eq!((progress.next, progress.refused), (4, 2));
    assert_eq!(lenient.view().state["x"], 2);
}

#[test]
fn what_retention_removed_stops_the_fold_or_is_counted() {
    let mut world = World::new("a");
    let (state, _) = recover(&world.disk, &world.name, [1; 16]).unwrap();
    let options = Options {
        segment_bytes: 4_096,
        retention: Retention {
            events_max: Some(10),
            ..Retention::default()
        },
        ..Options::default()
    };
    world.log = Log::new(state, options);
    counted(&mut world, 5);
    let mut early = Folding::new(Counters, Policy::Skip);
    catch_up(&mut early, &world);
    let snapshot = early.snapshot(&world.name).unwrap();
    counted(&mut world, 400);
    let first = world.log.first();
    assert!(first > 5);
    let from = |cursor| Reader::open(world.disk.clone(), &world.name, cursor).unwrap();
    let mut strict = Folding::new(Counters, Policy::Stop);
    let stopped = strict.catch_up(&world.name, &mut from(Cursor::Offset(0)), |_, _| {});
    let is_gone = |error: &FoldError| matches!(error, FoldError::Read { source: ReadError::Gone { from: 0, to }, .. } if *to == first);
    assert!(stopped.as_ref().is_err_and(is_gone), "{stopped:?}");
    let mut lenient = Folding::new(Counters, Policy::Skip);
    let mut reader = from(Cursor::Offset(0));
    let applied = lenient
        .catch_up(&world.name, &mut reader, |_, _| {})
        .unwrap();
    assert_eq!(
        (applied, lenient.progress(&world.name).missing),
        (405 - first, first)
    );
    let late = early.restore(&world.name, &snapshot, world.disk.clone());
    assert!(matches!(
        late,
        Err(SnapshotError::Read(ReadError::Gone { .. }))
    ));
}

#[test]
fn the_latest_event_of_each_key() {
    let mut worlds = [World::new("a"), World::new("b")];
    worlds[0].now = 5_000;
    worlds[0].append(&json!({"host": "x", "load": 1}));
    worlds[1].append(&json!({"host": "x", "load": 2}));
    worlds[1].append(&json!({"host": 7, "load": 3}));
    let mut folding = Folding::new(Latest::by("host"), Policy::Stop);
    for world in &worlds {
        catch_up(&mut folding, world);
    }
    let state = folding.view().state;
    let load =
        |key: &str| serde_json::from_slice::<Value>(&state[key].value).unwrap()["load"].clone();
    assert_eq!((load("x"), load("7"), state.len()), (json!(1), json!(3), 2));
}

#[test]
fn the_latest_by_another_member_does_not_go_on_from_this() {
    let mut world = World::new("a");
    world.append(&json!({"host": "x", "rack": "y"}));
    for by in ["host", &"h".repeat(300)] {
        let mut by_host = Folding::new(Latest::by(by), Policy::Skip);
        catch_up(&mut by_host, &world);
        let bytes = by_host.snapshot(&world.name).unwrap();
        let disk = || world.disk.clone();
        assert!(by_host.restore(&world.name, &bytes, disk()).is_ok());
        let mut by_rack = Folding::new(Latest::by("rack"), Policy::Skip);
        let refused = by_rack.restore(&world.name, &bytes, disk());
        assert!(matches!(refused, Err(SnapshotError::Fold { .. })));
    }
}

#[test]
fn numbers_are_the_same_after_a_snapshot() {
    let mut world = World::new("a");
    for n in 0..500_u32 {
        let value = 1.0 / f64::from(n * 7 + 3);
        world.append(&json!({"key": format!("k{n}"), "value": value}));
    }
    let mut folding = Folding::new(LastWriterWins, Policy::Stop);
    catch_up(&mut folding, &world);
    let before = folding.view().state;
    let bytes = folding.snapshot(&world.name).unwrap();
    folding
        .restore(&world.name, &bytes, world.disk.clone())
        .unwrap();
    assert_eq!(folding.view().state, before);
}

#[test]
fn the_last_writer_wins_and_removed_keys_stay_removed() {
    let mut world = World::new("a");
    for event in [
        json!({"key": "x", "value": 1, "time": 10}),
        json!({"key": "x", "value": 2, "time": 9}),
        json!({"key": "y", "value": {"b": 1, "a": 2}, "time": 1}),
        json!({"key": "y", "time": 5}),
        json!({"key": "y", "value": 3, "time": 4}),
    ] {
        world.append(&event);
    }
    let mut folding = Folding::new(LastWriterWins, Policy::Stop);
    let changes = catch_up(&mut folding, &world);
    let state = folding.view().state;
    assert_eq!(
        LastWriterWins::values(&state).collect::<Vec<_>>(),
        [("x", &json!(1))]
    );
    assert_eq!(changes.len(), 3);
    assert_eq!(changes[2].value, None);
}

#[test]
fn an_addition_wins_over_a_removal_that_has_not_seen_it() {
    let mut worlds = [World::new("a"), World::new("b")];
    worlds[0].append(&json!({"add": "x", "value": 1}));
    worlds[1].append(&json!({"add": "x", "value": 2}));
    worlds[1].append(&json!({"add": "y", "value": 3}));
    // b has seen a's first addition, and removes that alone; a removes its own.
    worlds[1].append(&json!({"remove": "x", "observed": ["a:0"]}));
    worlds[0].append(&json!({"add": "y", "value": 4}));
    worlds[0].append(&json!({"remove": "y", "observed": ["a:1", "b:1"]}));
    worlds[0].append(&json!({"add": "z", "value": 5}));
    for order in [[0, 1], [1, 0]] {
        let mut folding = Folding::new(AddWins, Policy::Stop);
        for index in order {
            catch_up(&mut folding, &worlds[index]);
        }
        let state = folding.view().state;
        let values: Vec<_> = state.values().collect();
        assert_eq!(values, [("x", &json!(2)), ("z", &json!(5))]);
        assert_eq!(state.observed("x"), ["b:0"]);
        let bytes = folding.snapshot(&name("b")).unwrap();
        let mut again = folding.clone();
        again
            .restore(&name("b"), &bytes, worlds[1].disk.clone())
            .unwrap();
        assert_eq!(again.hash(), folding.hash());
    }
}
