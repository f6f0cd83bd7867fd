//! Chance: crashes with and without power loss, partitions, messages lost, doubled and out of order, slow disks,
//! emptied folders.

use super::cluster::{Cluster, World};
use crate::replica::Acks;

/// One schedule; what does not hold.
fn schedule(seed: u64, count: usize, world: World) -> Result<usize, String> {
    let at = |what: String| format!("seed {seed}, {count} nodes: {what}");
    let acks = [Acks::Quorum, Acks::All][usize::from(seed.is_multiple_of(5))];
    let mut cluster = Cluster::new(count, acks, world, seed);
    cluster.run(5_000);
    for _ in 0..60 {
        let node = usize::try_from(cluster.random.below(count as u64)).unwrap();
        match cluster.random.below(12) {
            0 | 1 => {
                let loses_power = cluster.random.below(3) > 0;
                cluster.stop(node, loses_power);
            }
            2 | 3 => {
                let leader = cluster.leader().unwrap_or(node);
                cluster.stop(leader, cluster.now.is_multiple_of(2));
            }
            4 | 5 => {
                // This one hears nobody.
                let others = (0..count).filter(|other| *other != node);
                cluster.cut = others
                    .map(|other| (node.min(other), node.max(other)))
                    .collect();
            }
            6 => cluster.cut.clear(),
            7 => cluster.loses = cluster.random.below(30),
            8 => {
                let up = cluster.nodes.iter().map(|node| node.up.as_ref());
                let is_whole = up.map(|up| up.is_some_and(|up| up.replica.promise().is_whole));
                // A minority at once, and no more before what was lost is there again.
                if is_whole.collect::<Vec<_>>().iter().all(|whole| *whole) {
                    for lost in 0..(count - 1) / 2 {
                        cluster.wipe((node + lost) % count);
                    }
                }
            }
            _ => {
                for node in 0..count {
                    if cluster.nodes[node].up.is_none() {
                        cluster.start(node);
                    }
                }
            }
        }
        for _ in 0..1 + cluster.random.below(60) {
            // Whoever takes events gets some, also one that only thinks that it leads.
            for node in 0..count {
                if cluster.random.below(3) == 0 {
                    cluster.publish(node);
                }
            }
            let pause = 5 + cluster.random.below(60);
            cluster.run(pause);
        }
        if let Some(broken) = &cluster.broken {
            return Err(at(broken.clone()));
        }
    }
    cluster.heal().map_err(at)?;
    Ok(cluster.acknowledged.len())
}

#[test]
fn what_is_acknowledged_at_quorum_survives_every_schedule() {
    let mut acknowledged = 0;
    for seed in 1..400 {
        acknowledged += schedule(seed, 3, World::Sound).unwrap();
        if seed % 4 == 0 {
            acknowledged += schedule(seed, 5, World::Sound).unwrap();
        }
    }
    assert!(acknowledged > 40_000, "{acknowledged}");
}

/// A leader is alone until another is elected, and both get events, while some messages are lost.
fn contest(seed: u64, world: World) -> Result<bool, String> {
    let mut cluster = Cluster::new(3, Acks::Quorum, world, seed);
    cluster.run(5_000);
    let mut is_contested = false;
    for _ in 0..8 {
        let Some(old) = cluster.leader() else {
            cluster.run(500);
            continue;
        };
        let others = (0..3).filter(|other| *other != old);
        cluster.cut = others
            .map(|other| (old.min(other), old.max(other)))
            .collect();
        for _ in 0..60 {
            cluster.publish(old);
            cluster.run(50);
            if cluster.leader().is_some_and(|leader| leader != old) {
                break;
            }
        }
        cluster.cut.clear();
        for _ in 0..60 {
            let published = [0, 1, 2].map(|node| cluster.publish(node).is_some());
            is_contested |= published.iter().filter(|is| **is).count() > 1;
            cluster.run(20);
        }
        if let Some(broken) = cluster.broken {
            return Err(format!("seed {seed}: {broken}"));
        }
    }
    cluster
        .heal()
        .map_err(|what| format!("seed {seed}: {what}"))?;
    Ok(is_contested)
}

/// Runs in which something acknowledged was lost, or two things were committed at one offset.
fn losses<T>(run: impl Fn(u64) -> Result<T, String>) -> usize {
    let broken = (1..20).filter_map(|seed| run(seed).err());
    // What is only not agreed on, or does not start, does not count; that a leader's log lacks what another replica
    // knows as committed does.
    let signs = [
        "something else",
        "were acknowledged",
        "was acknowledged",
        "although it is committed",
    ];
    let is_loss = |what: &String| signs.iter().any(|sign| what.contains(sign));
    broken.filter(is_loss).count()
}

#[test]
fn of_two_that_think_that_they_lead_one_commits() {
    let contested = (1..20).filter(|seed| contest(*seed, World::Sound).unwrap());
    assert!(contested.count() > 3);
}

#[test]
fn without_the_fence_these_tests_fail() {
    assert!(losses(|seed| contest(seed, World::NoFence)) > 3);
}

#[test]
fn with_acknowledgements_before_the_sync_these_tests_fail() {
    assert!(losses(|seed| schedule(seed, 3, World::NoSync)) > 3);
}
