//! One thing after the other.

use super::cluster::{Cluster, World};
use crate::{
    Retention,
    log::Boundary,
    replica::{
        Acks, Event,
        message::{Body, Fetch},
    },
};

/// Has the leader append events, and waits until they are acknowledged.
fn publish(cluster: &mut Cluster, count: usize) {
    let before = cluster.acknowledged.len();
    for _ in 0..400 {
        let missing = before + count - cluster.acknowledged.len().min(before + count);
        if missing == 0 {
            return;
        }
        if let Some(leader) = cluster.leader() {
            cluster.publish(leader);
        }
        cluster.run(50);
    }
    panic!("{:?}", cluster.broken);
}

fn settled(count: usize, acks: Acks) -> (Cluster, usize) {
    let mut cluster = Cluster::new(count, acks, World::Sound, 7);
    cluster.run(6_000);
    let leader = cluster.leader().unwrap();
    (cluster, leader)
}

/// Cuts a node off from all others.
fn isolate(cluster: &mut Cluster, node: usize) {
    let others = (0..cluster.nodes.len()).filter(|other| *other != node);
    cluster.cut = others
        .map(|other| (node.min(other), node.max(other)))
        .collect();
}

#[test]
fn one_node_alone_is_its_own_quorum() {
    let (mut cluster, _) = settled(1, Acks::Quorum);
    publish(&mut cluster, 5);
    cluster.stop(0, true);
    cluster.heal().unwrap();
}

#[test]
fn a_leader_that_is_alone_commits_nothing_and_its_events_are_kept_aside() {
    let (mut cluster, old) = settled(3, Acks::Quorum);
    publish(&mut cluster, 10);
    cluster.run(500);
    isolate(&mut cluster, old);
    let acknowledged = cluster.acknowledged.len();
    for _ in 0..5 {
        cluster.publish(old).unwrap();
        cluster.run(20);
    }
    assert_eq!(cluster.acknowledged.len(), acknowledged);
    let alone = cluster.up(old).log.end();
    cluster.run(8_000);
    let new = cluster.leader().unwrap();
    assert_ne!(new, old);
    publish(&mut cluster, 3);
    cluster.heal().unwrap();
    let cut = cluster.events.iter().find_map(|(node, event)| match event {
        Event::CutOff(cut) if *node == old => Some(cut.clone()),
        _ => None,
    });
    let cut = cut.unwrap();
    assert_eq!((cut.to, alone - cut.from), (alone, 5));
    let files = crate::disk::Disk::list(&cluster.nodes[old].disk).unwrap();
    assert!(!cut.kept.is_empty() && cut.kept.iter().all(|name| files.contains(name)));
}

#[test]
fn all_means_all_and_leader_means_the_leader() {
    let (mut cluster, leader) = settled(3, Acks::All);
    publish(&mut cluster, 3);
    let other = (leader + 1) % 3;
    cluster.stop(other, false);
    let offset = cluster.publish(leader).unwrap();
    cluster.run(1_000);
    assert!(cluster.up(leader).replica.committed() > offset);
    assert!(!cluster.acknowledged.contains_key(&offset));
    cluster.start(other);
    cluster.run(2_000);
    assert!(cluster.acknowledged.contains_key(&offset));

    let (mut cluster, leader) = settled(3, Acks::Leader);
    isolate(&mut cluster, leader);
    cluster.publish(leader).unwrap();
    cluster.run(100);
    assert_eq!(cluster.acknowledged.len(), 1);
    assert_eq!(cluster.up(leader).replica.committed(), 0);
}

#[test]
fn an_emptied_replica_is_filled_again_and_does_not_count_before() {
    let (mut cluster, leader) = settled(3, Acks::Quorum);
    publish(&mut cluster, 200);
    let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.wipe(one);
    cluster.stop(leader, true);
    cluster.start(one);
    cluster.run(10_000);
    assert!(
        cluster.leader().is_none(),
        "most of those that know are not there"
    );
    cluster.start(leader);
    cluster.agree().unwrap();
    cluster.run(2_000);
    assert!(cluster.up(one).replica.promise().is_whole);
    cluster.stop(two, false);
    cluster.agree().unwrap();
}

#[test]
fn a_copy_of_one_that_has_forgotten_its_votes_does_not_count() {
    let (mut cluster, leader) = settled(3, Acks::Quorum);
    publish(&mut cluster, 5);
    let (emptied, other) = ((leader + 1) % 3, (leader + 2) % 3);
    isolate(&mut cluster, other);
    cluster.wipe(emptied);
    cluster.start(emptied);
    cluster.run(600);
    let offset = cluster.publish(leader).unwrap();
    cluster.run(600);
    let epoch = cluster.up(leader).replica.promise().epoch;
    let copy = cluster.up(emptied);
    assert_eq!(copy.log.boundary(), cluster.up(leader).log.boundary());
    assert_eq!(copy.replica.promise().settled, epoch);
    assert!(!cluster.acknowledged.contains_key(&offset));
    cluster.heal().unwrap();
    assert!(cluster.up(emptied).replica.promise().is_whole);
}

#[test]
fn retention_does_not_pass_what_is_committed() {
    let mut cluster = Cluster::new(3, Acks::Quorum, World::Sound, 3);
    cluster.keep_only(Retention {
        events_max: Some(5),
        ..Retention::default()
    });
    for node in 0..3 {
        cluster.stop(node, false);
        cluster.start(node);
    }
    cluster.run(6_000);
    publish(&mut cluster, 100);
    let old = cluster.leader().unwrap();
    cluster.run(1_000);
    isolate(&mut cluster, old);
    for _ in 0..100 {
        cluster.publish(old);
        cluster.run(10);
    }
    let up = cluster.up(old);
    assert!(up.log.end() > up.replica.committed() + 50);
    assert!(up.log.first() > 0 && up.log.first() <= up.replica.committed());
    cluster.run(8_000);
    cluster.heal().unwrap();
}

#[test]
fn an_epoch_that_cannot_be_is_not_entered() {
    let (mut cluster, leader) = settled(3, Acks::Quorum);
    let epoch = cluster.up(leader).replica.promise().epoch;
    cluster.say_of(u64::MAX, leader, (leader + 1) % 3, Body::Newer);
    cluster.run(3_000);
    cluster.agree().unwrap();
    assert_eq!(cluster.up(leader).replica.promise().epoch, epoch);
}

#[test]
fn a_damaged_replica_is_cut_where_the_damage_begins_and_filled_again() {
    let (mut cluster, leader) = settled(3, Acks::Quorum);
    publish(&mut cluster, 8);
    let other = (leader + 1) % 3;
    cluster.stop(other, false);
    let name = crate::format::segment_name(1);
    // In the records of the first batch.
    let at = crate::format::SEGMENT_HEADER_BYTES + crate::format::BATCH_HEADER_BYTES + 60;
    cluster.nodes[other].disk.flip(&name, at, 1);
    cluster.start(other);
    assert!(!cluster.up(other).replica.promise().is_whole);
    cluster.agree().unwrap();
    cluster.run(2_000);
    assert!(cluster.up(other).replica.promise().is_whole);
}

#[test]
fn a_follower_that_retention_has_passed_begins_where_the_leader_does() {
    let mut cluster = Cluster::new(3, Acks::Quorum, World::Sound, 3);
    let retention = Retention {
        events_max: Some(50),
        ..Retention::default()
    };
    cluster.keep_only(retention);
    for node in 0..3 {
        cluster.stop(node, false);
        cluster.start(node);
    }
    cluster.run(6_000);
    let other = (cluster.leader().unwrap() + 1) % 3;
    cluster.stop(other, false);
    publish(&mut cluster, 200);
    cluster.start(other);
    cluster.agree().unwrap();
    let first = |node: usize| cluster.says(node).first().map(|(offset, _)| *offset);
    assert!(first(other) >= Some(100), "{:?}", first(other));
}

#[test]
fn a_replica_that_was_cut_off_deposes_nobody() {
    let (mut cluster, leader) = settled(3, Acks::Quorum);
    publish(&mut cluster, 5);
    let epoch = cluster.up(leader).replica.promise().epoch;
    let lonely = (leader + 1) % 3;
    isolate(&mut cluster, lonely);
    cluster.run(20_000);
    publish(&mut cluster, 5);
    cluster.cut.clear();
    cluster.run(5_000);
    // Of the leader alone: it is heard of by the third.
    cluster.cut = [(leader.min(lonely), leader.max(lonely))].into();
    cluster.run(20_000);
    publish(&mut cluster, 5);
    cluster.heal().unwrap();
    assert_eq!(cluster.leader(), Some(leader));
    let promised = (0..3).map(|node| cluster.up(node).replica.promise().epoch);
    assert!(promised.into_iter().all(|promised| promised == epoch));
}

#[test]
fn what_a_replica_said_before_it_was_started_again_does_not_count() {
    let (mut cluster, leader) = settled(3, Acks::Quorum);
    publish(&mut cluster, 5);
    let (emptied, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let before = cluster.up(emptied).replica.lives.own;
    isolate(&mut cluster, other);
    cluster.wipe(emptied);
    cluster.start(emptied);
    cluster.run(600);
    let offset = cluster.publish(leader).unwrap();
    cluster.run(600);
    let up = cluster.up(leader);
    let (epoch, at) = (up.replica.promise().epoch, up.log.boundary());
    assert!(at.offset > offset);
    let fetch = Body::Fetch(Fetch {
        at,
        settled: epoch,
        round: 1,
        is_whole: true,
        is_probe: false,
    });
    cluster.say_in(before, epoch, (emptied, leader), fetch.clone());
    cluster.run(20);
    assert!(!cluster.acknowledged.contains_key(&offset));
    // The same, said by the life that is: it is believed.
    cluster.say_of(epoch, emptied, leader, fetch);
    cluster.run(20);
    assert!(cluster.acknowledged.contains_key(&offset));
}

#[test]
fn a_log_that_begins_where_none_can_is_not_followed() {
    let (mut cluster, leader) = settled(3, Acks::Quorum);
    publish(&mut cluster, 5);
    let follower = (leader + 1) % 3;
    let end = cluster.up(follower).log.end();
    let begin = Boundary {
        offset: u64::MAX,
        chain: [1; 32],
    };
    cluster.say(leader, follower, Body::Gone(begin));
    assert_eq!(cluster.up(follower).log.end(), end);
    let is_told = |(node, event): &(usize, Event)| {
        *node == follower && matches!(event, Event::Trouble(what) if what.contains("cannot be"))
    };
    assert!(cluster.events.iter().any(is_told));
    publish(&mut cluster, 5);
}
