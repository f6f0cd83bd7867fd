//! Who is called dead, and who is not.

use crate::world::World;
use virga_discovery::{MemberState, limits::SECOND_NS};

fn whole(count: u16) -> World {
    let mut world = World::default();
    world.start(1, &[]);
    for number in 2..=count {
        world.start(number, &[1]);
    }
    world.run_until("all have sessions", 120, World::is_whole);
    world.run(10);
    world
}

#[test]
fn a_node_that_is_gone_is_called_dead_by_all_and_nobody_else_is() {
    let mut world = whole(20);
    world.kill(7);
    let took_s = world.run_until("all call it dead", 120, |world| {
        (0..20).all(|at| at == 7 || world.state(at, 7) == Some(MemberState::Dead))
    });
    println!("20 nodes: dead everywhere after {took_s} s");
    world.run(60);
    assert_eq!(world.deaths(), 19);
}

/// Of each ten seconds a third of the nodes does nothing for four, each at another time, as on a machine with too
/// much to do.
#[test]
fn nodes_that_are_slow_for_want_of_a_processor_are_not_called_dead() {
    let mut world = whole(30);
    for round in 0..60 {
        for at in (0..30).filter(|at| (at + round) % 3 == 0) {
            world.nodes[at].stopped_until_ns = world.now_ns + [2, 3, 4][at % 3] * SECOND_NS;
        }
        world.run(10);
    }
    assert_eq!(world.deaths(), 0);
}

/// A node that does not run for half a minute is dead to the others; it calls nobody dead for that, and lives again.
#[test]
fn a_node_that_was_stopped_refutes_its_death_and_accuses_nobody() {
    let mut world = whole(10);
    world.nodes[3].stopped_until_ns = world.now_ns + 40 * SECOND_NS;
    world.run_until("it is called dead", 40, |world| {
        world.state(0, 3) == Some(MemberState::Dead)
    });
    world.run_until("it lives again", 120, |world| {
        (0..10).all(|at| at == 3 || world.state(at, 3) == Some(MemberState::Alive))
    });
    assert!(world.nodes[3].core.swim().refuted() > 0);
    world.run(30);
    let dead: Vec<_> = (0..10).filter(|&of| of != 3).collect();
    assert!(
        dead.iter()
            .all(|&of| world.state(3, of) != Some(MemberState::Dead))
    );
    assert!(dead.iter().all(|&at| {
        dead.iter()
            .all(|&of| at == of || world.state(at, of) == Some(MemberState::Alive))
    }));
}

/// Two nodes do not hear each other, and others hear both: who is asked to probe says so.
#[test]
fn a_link_that_is_cut_makes_nobody_dead() {
    let mut world = whole(8);
    world.cut.insert((2, 5));
    world.run(300);
    assert_eq!(world.deaths(), 0);
}

/// What is lost comes later, in sessions: nobody who lives is called dead for it, and who is gone is, in time.
#[test]
fn loss_makes_nobody_dead_and_hides_nobodys_death() {
    let mut world = whole(20);
    world.loss = |_, _| 20;
    world.run(600);
    assert_eq!(world.deaths(), 0);
    world.kill(7);
    let took_s = world.run_until("all call it dead", 120, |world| {
        (0..20).all(|at| at == 7 || world.state(at, 7) == Some(MemberState::Dead))
    });
    println!("20 nodes, a fifth of packets lost: dead everywhere after {took_s} s");
    world.run(60);
    assert_eq!(world.deaths(), 19);
}

/// One node is heard badly and hears well, another hears badly and is heard well.
#[test]
fn who_is_heard_badly_or_hears_badly_is_not_called_dead_and_calls_nobody_so() {
    let mut world = whole(12);
    world.loss = |from, to| if from == 3 || to == 8 { 50 } else { 0 };
    world.run(600);
    assert_eq!(world.deaths(), 0);
}
