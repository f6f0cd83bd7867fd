use super::{
    forgetful::{Faults, Forgetful},
    world::{World, assert_reads, read, small},
};
use crate::{Cursor, Durability, Finding, Options, Retention};

/// Small, fast, and the same each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Runs, crashes and opens a log again and again; whether all that was acknowledged is there, and
/// every event that is there is good, in order, once.
fn survives(seed: u64, durability: Durability, faults: Faults) -> Result<(), String> {
    let mut random = Random(seed * 0x9e37_79b9 + 1);
    let options = Options {
        durability,
        ..small()
    };
    let disk = Forgetful::default();
    for round in 0..6 {
        let at = |what: String| format!("seed {seed}, round {round}: {what}");
        let mut world = World::try_open(&disk, options).map_err(|e| at(e.to_string()))?;
        let damaged = |f: &&Finding| {
            !matches!(
                f,
                Finding::Torn { .. } | Finding::Manifest { is_lost: false, .. }
            )
        };
        if let Some(finding) = world.findings.iter().find(damaged) {
            return Err(at(finding.to_string()));
        }
        disk.set(faults);
        for _ in 0..random.below(40) {
            world.append(random.below(6));
            for _ in 0..random.below(4) {
                match random.below(3) {
                    0 => world.step_beside(random.below(4)),
                    _ => drop(world.step()),
                }
            }
        }
        if random.below(4) == 0 {
            world.log.close();
            world.settle();
        }
        let acknowledged = world.log.acknowledged();
        let appended = world.log.end();
        drop(world);
        disk.set(Faults::default());
        let keeps = random.below(5);
        disk.crash(|| random.below(4) < keeps);
        let world = World::try_open(&disk, options).map_err(|e| at(e.to_string()))?;
        let end = world.log.end();
        if durability == Durability::Synced && end < acknowledged {
            return Err(at(format!(
                "{acknowledged} were acknowledged, {end} are there"
            )));
        }
        if end > appended {
            return Err(at(format!("{appended} were appended, {end} are there")));
        }
        if let Some(finding) = world.findings.iter().find(damaged) {
            return Err(at(finding.to_string()));
        }
        let (good, bad) = read(&disk, Cursor::Start);
        if !good.iter().copied().eq(0..end) || !bad.is_empty() {
            return Err(at(format!("of {end} are read {good:?}, {bad:?}")));
        }
    }
    Ok(())
}

#[test]
fn unsynced_writes_may_be_lost_in_any_subset() {
    for seed in 1..400 {
        for durability in Durability::ALL {
            survives(seed, durability, Faults::default()).unwrap();
        }
    }
}

/// What a process had written and not synced is read after it was killed; the power goes later.
#[test]
fn what_a_killed_process_wrote_is_on_disk_before_the_log_goes_on() {
    for durability in Durability::ALL {
        let options = Options {
            durability,
            segment_bytes: 16 << 10,
            ..Options::default()
        };
        let disk = Forgetful::default();
        let mut world = World::open(&disk, options);
        world.append(30);
        disk.set(Faults {
            sync_lies: true,
            ..Faults::default()
        });
        world.append_each(3);
        drop(world);
        disk.set(Faults::default());
        let world = World::open(&disk, options);
        let acknowledged = world.log.acknowledged();
        assert_eq!(acknowledged, 33);
        drop(world);
        disk.crash(|| false);
        let world = World::open(&disk, options);
        assert_eq!((world.log.end(), world.findings.len()), (33, 0));
        assert_reads(&disk, Cursor::Start, 0..33);
    }
}

#[test]
fn a_manifest_that_a_killed_process_wrote_is_on_disk_before_segments_go() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.append_each(200);
    drop(world);
    let options = Options {
        retention: Retention {
            events_max: Some(50),
            ..Retention::default()
        },
        ..small()
    };
    let mut world = World::open(&disk, options);
    disk.set(Faults {
        sync_lies: true,
        ..Faults::default()
    });
    // The mark alone.
    world.step();
    let first = world.log.first();
    assert!(first > 0);
    drop(world);
    disk.set(Faults::default());
    drop(World::open(&disk, small()));
    disk.crash(|| false);
    let world = World::open(&disk, small());
    assert_eq!((world.log.first(), world.findings.len()), (first, 0));
}

#[test]
fn a_disk_that_only_says_that_it_synced_is_noticed_by_these_tests() {
    let lies = Faults {
        sync_lies: true,
        ..Faults::default()
    };
    let lost = (1..40).filter(|seed| survives(*seed, Durability::Synced, lies).is_err());
    assert!(lost.count() > 20);
}

/// Every subset of the pieces of one write, the first of a segment and a later one.
#[test]
fn a_write_that_is_cut_short_anyhow_is_no_damage() {
    for before in [0, 7] {
        let disk = Forgetful::default();
        let mut world = World::open(&disk, small());
        world.append(before);
        world.settle();
        disk.set(Faults {
            sync_lies: true,
            ..Faults::default()
        });
        world.append(16);
        world.settle();
        drop(world);
        disk.set(Faults::default());
        let mut pieces = 0;
        disk.copy_unsynced().crash(|| {
            pieces += 1;
            true
        });
        assert!((4..10).contains(&pieces), "{pieces}");
        for subset in 0u32..1 << pieces {
            let some = disk.copy_unsynced();
            let mut piece = 0;
            some.crash(|| {
                piece += 1;
                subset >> (piece - 1) & 1 == 1
            });
            let mut world = World::open(&some, small());
            let end = world.log.end();
            let whole = subset + 1 == 1 << pieces;
            assert_eq!(end, if whole { before + 16 } else { before }, "{subset:b}");
            world.append_each(3);
            assert_reads(&some, Cursor::Start, 0..end + 3);
            // Nor is anything missed later.
            world.append(60);
            world.settle();
            drop(world);
            let world = World::open(&some, small());
            assert!(
                world.findings.is_empty(),
                "{subset:b}: {:?}",
                world.findings
            );
        }
    }
}
