//! Every pair of NATs.

use crate::world::{A, B, By, C, MS, NEIGHBOURS_MAX, R, S, World};
use std::net::{IpAddr, SocketAddr};
use virga_ebpf::header::NodeId;
use virga_nat::{Class, Filtering, Reason, limits, wire::Message};

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
    for (loss_percent, latency_ms, lossy) in [
        (30, 20, None),
        (50, 5, None),
        (0, 300, None),
        (10, 250, None),
        // One direction alone.
        (60, 20, Some(A)),
        (60, 20, Some(B)),
    ] {
        let mut world = World::new([cone, cone], 1);
        (world.loss_percent, world.latency_ns) = (loss_percent, latency_ms * 1_000_000);
        world.lossy = lossy;
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

/// A symmetric NAT gives out the same port again: packets from there show nothing new.
#[test]
fn a_symmetric_nat_is_met_again_at_the_port_that_it_was_met_at_before() {
    for mapping in [By::Address, By::Port] {
        for filtering in By::ALL {
            for other in [By::Endpoint, By::Address] {
                let kinds = [Some((mapping, filtering)), Some((By::Endpoint, other))];
                for kinds in [kinds, [kinds[1], kinds[0]]] {
                    let mut world = World::new(kinds, 2);
                    world.run(10 * S);
                    assert!(world.is_punched(), "{kinds:?}: {:?}", world.why());
                    let found = [A, B].map(|id| world.node(id).nat.evidence().filtering());
                    let tries = |world: &mut World| world.node(A).nat.counted()[1..].iter().sum();
                    world.is_cut = true;
                    world.run(limits::SILENT_NS + 2 * S);
                    assert!(world.why().is_some());
                    let before: u64 = tries(&mut world);
                    world.is_cut = false;
                    world.run(limits::RETRY_NS + limits::MEETING_NS + 2 * limits::RETRY_NS + S);
                    assert!(world.is_punched(), "{kinds:?}: {:?}", world.why());
                    let took = tries(&mut world) - before;
                    assert!(took <= 2, "{kinds:?}: {took} tries");
                    // Nothing that was known of the NATs is known otherwise now.
                    let now = [A, B].map(|id| world.node(id).nat.evidence().filtering());
                    assert_eq!(now, found, "{kinds:?}");
                }
            }
        }
    }
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

/// A site's NAT has one address, whichever of its nodes sends.
#[test]
fn of_two_nodes_behind_one_nat_one_is_sent_to_straight_and_the_other_stays_relayed_and_says_why() {
    let cone = Some((By::Endpoint, By::Port));
    let mut world = World::new([cone, cone], 1);
    world.add_beside_a();
    world.run(20 * S);
    let (first, second) = match world.are_punched(A, B) {
        true => (A, C),
        false => (C, A),
    };
    assert!(world.are_punched(first, B), "{:?}", world.why_of(first));
    for _ in 0..60 {
        world.run(S);
        // Who was there first stays, and neither end takes the other one up alone.
        assert!(world.are_punched(first, B));
    }
    let mut adoptions = world.adoptions.iter();
    let is_second = |(_, id, peer): &&(u64, NodeId, NodeId)| [*id, *peer].contains(&second);
    assert_eq!(adoptions.find(is_second), None, "not for a moment");
    let why = world.why_of(second).unwrap();
    assert!(
        why.contains("at the IP address where it sees this one"),
        "{why}"
    );
    assert!(world.node(B).nat.refused(Reason::Taken) > 0);
}

/// Two sites behind cones, and a hub.
fn cones() -> World {
    let cone = Some((By::Endpoint, By::Port));
    World::new([cone, cone], 1)
}

const NEIGHBOUR: NodeId = NodeId(99);

fn nat_of_a() -> IpAddr {
    "192.0.2.10".parse().expect("an address")
}

#[test]
fn neither_end_sends_straight_where_one_has_a_neighbour_at_the_others_ip_address() {
    for node in [A, B] {
        let mut world = cones();
        let at = match node {
            A => "192.0.2.20".parse().unwrap(),
            _ => nat_of_a(),
        };
        world.node(node).places = [(NEIGHBOUR, at)].into();
        world.run(30 * S);
        assert_eq!(world.adoptions, [], "{node}");
        assert!(world.node(node).probed.is_empty(), "{node} asks nobody");
        assert!(world.node(node).nat.refused(Reason::Taken) > 0, "{node}");
        let why = world.why().unwrap();
        assert!(why.contains("IP address"), "{why}");
        // Once it is gone nothing is in the way.
        world.node(node).places.clear();
        world.run(60 * S);
        assert!(world.is_punched(), "{:?}", world.why());
    }
}

#[test]
fn a_neighbour_that_comes_to_be_at_a_peers_ip_address_has_it_at_once_and_both_ends_know() {
    let mut world = cones();
    world.run(10 * S);
    assert!(world.is_punched());
    world.node(B).places.insert((NEIGHBOUR, nat_of_a()));
    world.run(S);
    assert!(!world.has_adopted(B, A) && !world.has_adopted(A, B));
    assert!(world.why().unwrap().contains("IP address"));
}

#[test]
fn a_peer_that_moves_to_a_neighbours_ip_address_is_relayed_at_once() {
    let mut world = cones();
    world.run(10 * S);
    assert!(world.is_punched());
    let ip = IpAddr::from([203, 0, 113, 7]);
    world.node(B).places.insert((NEIGHBOUR, ip));
    world.run(S);
    assert!(world.is_punched());
    world.see(B, A, (ip, 9).into());
    world.look(B);
    world.run(MS);
    assert!(!world.has_adopted(B, A));
    world.run(S);
    assert!(!world.has_adopted(A, B));
}

#[test]
fn a_peer_that_may_be_no_neighbour_is_told_so_at_once() {
    for (node, peer) in [(A, B), (B, A)] {
        let mut world = cones();
        world.run(10 * S);
        assert!(world.is_punched());
        world.refuse(node, peer);
        world.run(S);
        assert!(
            !world.has_adopted(A, B) && !world.has_adopted(B, A),
            "{node}"
        );
        let why = world.why().unwrap();
        assert!(why.contains("no room"), "{why}");
    }
}

/// The end that asks may give a way up sooner than the other one.
#[test]
fn a_meeting_with_one_whose_way_is_silent_is_held_and_with_one_that_is_heard_is_refused() {
    let mut world = cones();
    world.run(10 * S);
    let at = SocketAddr::new(nat_of_a(), 40_007);
    let meet = |number| Message::Meet {
        number,
        node: A,
        address: at,
    };
    let late = world.node(B).nat.refused(Reason::Late);
    world.say(R[0], B, meet(7).encode());
    world.run(S);
    assert!(world.is_punched());
    assert_eq!(world.node(B).nat.refused(Reason::Late), late + 1);
    world.is_cut = true;
    world.run(2 * S);
    assert!(world.has_adopted(B, A), "not silent for long");
    world.say(R[0], B, meet(8).encode());
    assert!(!world.has_adopted(B, A));
    let asked = |world: &mut World| world.node(B).probed.get(&at).copied().unwrap_or(0);
    let before = asked(&mut world);
    world.run(limits::SECOND_NS + S);
    assert!(asked(&mut world) > before);
}

/// One that answers there before it is told to stay away is not adopted either.
#[test]
fn a_neighbour_that_comes_while_a_peer_is_asked_keeps_both_ends_from_sending_straight() {
    for after_ms in (50..1_500).step_by(50) {
        let mut world = cones();
        world.run(after_ms * MS);
        world.node(B).places.insert((NEIGHBOUR, nat_of_a()));
        world.run(3 * S);
        let adopted = [world.has_adopted(A, B), world.has_adopted(B, A)];
        assert_eq!(adopted, [false; 2], "{after_ms} ms");
        // Once it has looked, the one with the neighbour takes up nobody, not for a moment.
        let looked_ns = (after_ms + 110) * MS;
        let late = |(at_ns, id, _): &&(u64, NodeId, NodeId)| *id == B && *at_ns > looked_ns;
        assert_eq!(world.adoptions.iter().find(late), None, "{after_ms} ms");
    }
}

#[test]
fn a_peer_that_is_heard_from_a_neighbours_ip_address_is_not_asked_there() {
    for is_there in [false, true] {
        let mut world = World::new([Some((By::Endpoint, By::Port)), None], 1);
        (world.liar, world.lied_to) = (Some(R[0]), Some(B));
        if is_there {
            world.node(B).places = [(NEIGHBOUR, nat_of_a())].into();
        }
        world.run(10 * S);
        assert_eq!(world.is_punched(), !is_there, "{:?}", world.why());
        let mut asked = world.node(B).probed.keys();
        let is_asked = asked.any(|address| address.ip() == nat_of_a());
        assert_eq!(is_asked, !is_there);
    }
}

#[test]
fn a_node_with_as_many_neighbours_as_it_may_have_says_so_and_neither_end_sends_straight() {
    for node in [A, B] {
        let mut world = cones();
        let full = (0..NEIGHBOURS_MAX).map(|n| {
            let last = u8::try_from(n).unwrap();
            (
                NodeId(100 + u64::from(last)),
                IpAddr::from([10, 9, 9, last]),
            )
        });
        world.node(node).places = full.collect();
        world.run(20 * S);
        assert!(
            !world.has_adopted(A, B) && !world.has_adopted(B, A),
            "{node}"
        );
        assert!(world.why().is_some());
        let is_told = world.node(B).nat.refused(Reason::Full) > 0;
        assert_eq!(is_told, node == B, "who begins asks nobody without room");
        world.node(node).places.pop_first();
        world.run(60 * S);
        assert!(world.is_punched(), "{node}: {:?}", world.why());
    }
}

#[test]
fn nodes_that_look_at_other_times_and_seldom_meet_all_the_same() {
    let cone = Some((By::Endpoint, By::Port));
    for phases in [
        [0, 700, 400],
        [900, 100, 500],
        [300, 600, 0],
        [10, 990, 980],
    ] {
        let mut world = World::new([cone, cone], 1);
        world.look_every_ns = S;
        for (node, phase_ms) in [A, B, R[0]].into_iter().zip(phases) {
            world.node(node).next_look_ns = phase_ms * MS;
        }
        world.run(20 * S);
        assert!(world.is_punched(), "{phases:?}: {:?}", world.why());
        // What was said before the other end had looked is said again.
        for node in [A, B] {
            let class = world.node(node).nat.evidence().class();
            assert_eq!(class, Class::Cone, "{node}, {phases:?}");
        }
    }
}

#[test]
fn after_a_try_that_failed_another_neighbour_is_asked() {
    let cone = Some((By::Endpoint, By::Port));
    let mut world = World::new([cone, cone], 2);
    // Whatever this one tells them leads nowhere.
    world.liar = Some(R[0]);
    world.run(60 * S);
    assert!(world.is_punched(), "{:?}", world.why());
    let [arranged, ..] = world.node(R[0]).nat.counted();
    assert!(arranged > 0);
}
