//! Every pair of NATs.

use crate::world::{A, B, By, S, World};
use virga_nat::{Class, Filtering, limits};

type Kind = Option<(By, By)>;

fn kinds() -> Vec<Kind> {
    let nats = By::ALL
        .into_iter()
        .flat_map(|m| By::ALL.map(|f| Some((m, f))));
    nats.chain([None]).collect()
}

fn maps_one(kind: Kind) -> bool {
    kind.is_none_or(|(mapping, _)| mapping == By::Endpoint)
}

/// Whether packets from another port than the one that was sent to come in.
fn takes_other_ports(kind: Kind) -> bool {
    kind.is_none_or(|(_, filtering)| filtering != By::Port)
}

/// By the rules of the NATs alone: two cones always; a cone and a symmetric NAT if the cone takes packets of other
/// ports; two symmetric ones are not tried.
fn can_meet(one: Kind, other: Kind) -> bool {
    match (maps_one(one), maps_one(other)) {
        (true, true) => true,
        (true, false) => takes_other_ports(one),
        (false, true) => takes_other_ports(other),
        (false, false) => false,
    }
}

#[test]
fn of_all_pairs_of_nats_those_that_can_meet_do_and_the_others_stay_relayed() {
    for one in kinds() {
        for other in kinds() {
            let mut world = World::new([one, other], 2);
            world.run(15 * S);
            let can = can_meet(one, other);
            let why = world.why();
            assert_eq!(world.is_punched(), can, "{one:?} and {other:?}: {why:?}");
            let is_never_tried = !maps_one(one) && !maps_one(other);
            let probed: u32 = world.node(A).probed.values().sum();
            assert_eq!(probed == 0, is_never_tried, "{one:?} and {other:?}");
            if is_never_tried {
                assert!(why.unwrap().contains("symmetric"));
            } else if !can {
                let why = why.unwrap();
                assert!(
                    why.contains("no packet came through") || why.contains("asked for an answer"),
                    "{why}"
                );
            }
        }
    }
}

#[test]
fn what_nat_a_node_is_behind_shows() {
    for kind in kinds() {
        let mut world = World::new([kind, None], 2);
        world.run(15 * S);
        let evidence = world.node(A).nat.evidence();
        let class = match kind {
            None => Class::Open,
            Some((By::Endpoint, _)) => Class::Cone,
            Some(_) => Class::Symmetric,
        };
        assert_eq!(evidence.class(), class, "{kind:?}: {}", evidence.words());
    }
    // What comes in unasked shows at the one that waits: the one with the higher id.
    for (filtering, found) in [
        (By::Endpoint, Filtering::Unfiltered),
        (By::Address, Filtering::Filtered),
        (By::Port, Filtering::Filtered),
    ] {
        let mut world = World::new([None, Some((By::Endpoint, filtering))], 2);
        world.run(15 * S);
        assert_eq!(
            world.node(B).nat.evidence().filtering(),
            found,
            "{filtering:?}"
        );
    }
}

#[test]
fn with_one_router_nobody_knows_the_nat_before_and_it_is_tried_all_the_same() {
    let cone = Some((By::Endpoint, By::Port));
    let mut world = World::new([cone, cone], 1);
    world.run(S / 5);
    assert_eq!(world.node(A).nat.evidence().class(), Class::Unknown);
    world.run(10 * S);
    assert!(world.is_punched());
    // The peer that was reached sees this node, too.
    assert_eq!(world.node(A).nat.evidence().class(), Class::Cone);
    let symmetric = Some((By::Port, By::Port));
    let mut world = World::new([symmetric, symmetric], 1);
    world.run(60 * S);
    assert!(world.why().is_some());
}

#[test]
fn packets_that_are_lost_and_long_ways_only_take_longer() {
    let cone = Some((By::Endpoint, By::Port));
    for (loss_percent, latency_ms) in [(30, 20), (50, 5), (0, 300), (10, 250)] {
        let mut world = World::new([cone, cone], 1);
        (world.loss_percent, world.latency_ns) = (loss_percent, latency_ms * 1_000_000);
        let mut turns = 0;
        while world.why().is_some() || world.node(A).nat.punched().is_empty() {
            world.run(S);
            turns += 1;
            assert!(
                turns < 120,
                "{loss_percent} % lost, {latency_ms} ms: {:?}",
                world.why()
            );
        }
    }
}

#[test]
fn a_hole_that_closes_is_left_for_the_relay_and_tried_again_less_and_less_often() {
    let cone = Some((By::Endpoint, By::Port));
    let mut world = World::new([cone, cone], 1);
    world.run(10 * S);
    assert!(world.is_punched());
    world.is_cut = true;
    world.run(limits::SILENT_NS + 2 * S);
    assert!(world.why().is_some() && world.node(B).nat.punched().is_empty());
    let failed = |world: &mut World| world.node(A).nat.counted()[2];
    let before = failed(&mut world);
    world.run(120 * S);
    let soon = failed(&mut world) - before;
    world.run(600 * S);
    let late = failed(&mut world) - before - soon;
    assert!(
        (2..9).contains(&soon) && late < soon + 3,
        "{soon} tries in 2 minutes, {late} in 10 more"
    );
    world.is_cut = false;
    world.run(limits::RETRY_NS_MAX + 20 * S);
    assert!(world.is_punched(), "{:?}", world.why());
}

#[test]
fn a_nat_that_gives_out_other_ports_is_met_again() {
    let cone = Some((By::Endpoint, By::Port));
    let mut world = World::new([cone, cone], 2);
    world.run(10 * S);
    assert!(world.is_punched());
    world.rebind(A);
    world.run(60 * S);
    assert!(world.is_punched(), "{:?}", world.why());
}

#[test]
fn without_a_common_neighbour_it_says_so() {
    let cone = Some((By::Endpoint, By::Port));
    let mut world = World::new([cone, cone], 0);
    world.run(30 * S);
    assert!(world.why().unwrap().contains("no neighbour here"));
    assert!(world.node(A).probed.is_empty());
}
