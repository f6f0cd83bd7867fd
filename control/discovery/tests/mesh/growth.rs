//! How a mesh forms, heals, and what that costs.

use crate::world::{World, address, id};
use virga_discovery::MemberState;

/// Nodes 1 to `count`, each of which knows the one before it; the first knows nobody.
fn line(count: u16) -> World {
    let mut world = World::default();
    world.start(1, &[]);
    for number in 2..=count {
        world.start(number, &[number - 1]);
    }
    world
}

#[test]
fn five_of_which_each_knows_one_know_all() {
    let mut world = line(5);
    world.run_until("all have sessions", 60, World::is_whole);
    world.run(30);
    for at in 0..5 {
        let members = world.nodes[at].core.swim().members();
        assert_eq!(members.len(), 4);
        assert!(members.values().all(|m| m.state == MemberState::Alive));
    }
}

#[test]
fn a_node_that_comes_back_elsewhere_is_found_again_by_all() {
    let mut world = line(6);
    world.run_until("all have sessions", 60, World::is_whole);
    world.kill(4);
    world.run_until("all call it dead", 60, |world| {
        [0, 1, 2, 3, 5]
            .iter()
            .all(|&at| world.state(at, 4) == Some(MemberState::Dead))
    });
    let mut elsewhere = address(5);
    elsewhere.set_port(9_999);
    world.start_with(5, elsewhere, &[4], |_| {});
    world.run_until("all have sessions again", 120, World::is_whole);
    world.run(20);
    for at in [0, 1, 2, 3, 5] {
        assert_eq!(world.state(at, 6), Some(MemberState::Alive));
        assert_eq!(world.nodes[at].adopted[&id(5)].address, elsewhere);
    }
}

#[test]
fn after_a_partition_of_hours_both_sides_find_each_other() {
    let mut world = line(8);
    world.run_until("all have sessions", 60, World::is_whole);
    for a in 0..4 {
        for b in 4..8 {
            world.cut.insert((a, b));
        }
    }
    world.run(600);
    assert_eq!(world.state(0, 7), Some(MemberState::Dead));
    world.run(2 * 3_600);
    assert_eq!(world.state(0, 1), Some(MemberState::Alive));
    world.cut.clear();
    world.run_until("all have sessions again", 600, World::is_whole);
    world.run_until("all live", 120, |world| {
        (0..8).all(|a| (0..8).all(|b| a == b || world.state(a, b) == Some(MemberState::Alive)))
    });
}

/// What a restart costs grows with the number of nodes, and not with its square.
#[test]
fn one_of_two_hundred_that_restarts_makes_no_storm() {
    const NODES: u16 = 200;
    let mut world = World::default();
    world.start(1, &[]);
    for number in 2..=NODES {
        world.start(number, &[1]);
    }
    let took_s = world.run_until("all have sessions", 600, World::is_whole);
    world.run(60);
    let (said, introduced) = (world.said, world.introduced);
    world.run(60);
    let (calm, calm_introduced) = (world.said - said, world.introduced - introduced);
    assert_eq!(calm_introduced, 0);

    let (said, introduced, dialled) = (world.said, world.introduced, world.dialled);
    world.kill(99);
    world.start(100, &[1]);
    let again_s = world.run_until("all have sessions again", 60, World::is_whole);
    world.run(60 - again_s.min(59));
    let (more, introduced) = (
        (world.said - said).saturating_sub(calm),
        world.introduced - introduced,
    );
    let dialled = world.dialled - dialled;
    println!(
        "{NODES} nodes: whole after {took_s} s, then {calm} messages a minute; one restarts: whole after \
         {again_s} s, {more} messages more, {introduced} introductions, {dialled} sessions"
    );
    let nodes = u64::from(NODES);
    assert!(more < 20 * nodes, "{more}");
    assert!(introduced < 10 * nodes, "{introduced}");
    assert!(dialled < 2 * nodes, "{dialled}");
    assert_eq!(world.deaths(), 0, "it came back before it was missed");
}
