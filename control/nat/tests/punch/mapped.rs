//! Sites whose router maps a port to them.

use crate::world::{A, B, By, MS, R, S, World};
use std::net::SocketAddr;
use virga_nat::{Reason, limits, wire::Message};

const SYMMETRIC: Option<(By, By)> = Some((By::Port, By::Port));
const CONE: Option<(By, By)> = Some((By::Endpoint, By::Port));
const PORT: u16 = 5_000;

#[test]
fn of_two_behind_symmetric_nats_one_with_a_mapped_port_is_met_there() {
    for site in [A, B] {
        let mut world = World::new([SYMMETRIC; 2], 2);
        world.run(5 * S);
        assert!(!world.is_punched());
        world.map_port(site, Some(PORT));
        world.run(40 * S);
        assert!(world.is_punched(), "{site}: {:?}", world.why());
    }
}

/// Both have tried in vain for long, and have their pauses; a port is mapped at the one that asks for meetings, or at the
/// other one.
#[test]
fn a_port_that_is_mapped_late_is_used_within_seconds_whichever_of_the_two_has_it() {
    for kinds in [[SYMMETRIC; 2], [CONE, SYMMETRIC]] {
        for site in [A, B] {
            let mut world = World::new(kinds, 2);
            world.run(1_200 * S);
            assert!(!world.is_punched());
            world.map_port(site, Some(PORT));
            world.run(6 * S);
            assert!(world.is_punched(), "{kinds:?}, {site}: {:?}", world.why());
        }
    }
}

/// The one that asks for meetings is told of the port once more, whether it learns that the port is gone while it sends there
/// or after it has given that up.
#[test]
fn the_same_port_mapped_anew_is_used_within_seconds() {
    for kinds in [[SYMMETRIC; 2], [CONE, SYMMETRIC]] {
        for said_after_ns in [0, 20 * S] {
            let mut world = World::new(kinds, 2);
            world.map_port(B, Some(PORT));
            world.run(70 * S);
            assert!(world.is_punched(), "{kinds:?}: {:?}", world.why());
            world.give_port(B, None);
            world.run(said_after_ns);
            assert_eq!(world.has_adopted(A, B), said_after_ns == 0);
            world.say_port(B, None);
            world.run(1_200 * S);
            assert!(!world.is_punched());
            world.map_port(B, Some(PORT));
            world.run(6 * S);
            let why = world.why();
            assert!(world.is_punched(), "{kinds:?}, {said_after_ns}: {why:?}");
        }
    }
}

#[test]
fn a_peer_that_tells_of_new_ports_all_the_time_is_not_tried_all_the_time() {
    let mut world = World::new([CONE, SYMMETRIC], 2);
    world.run(1_200 * S);
    let tries = |world: &mut World| world.node(A).nat.counted()[2];
    let before = tries(&mut world);
    let seconds = 300;
    for n in 0..seconds {
        let port = 1_000 + u16::try_from(n).unwrap();
        let there = SocketAddr::from(([192, 0, 2, 20], port));
        world.say(B, A, Message::Mapped(Some(there)).encode());
        world.run(S);
    }
    let hints = u64::from(limits::HINTS_BURST) + seconds * S / limits::HINTS_PAUSE_NS + 1;
    let tried = tries(&mut world) - before;
    assert!((2..=2 * hints).contains(&tried), "{tried} tries");
    assert!(world.node(A).nat.refused(Reason::Rate) > 200);
    // Nor does what the other one hears of this one change anything.
    let before = world.node(B).nat.refused(Reason::Stranger);
    let there = SocketAddr::from(([192, 0, 2, 10], 1_000));
    world.say(A, B, Message::Mapped(Some(there)).encode());
    assert_eq!(world.node(B).nat.refused(Reason::Stranger), before + 1);
}

#[test]
fn a_mapping_that_is_told_before_the_node_is_seen_to_have_moved_counts_once_it_is() {
    let mut world = World::new([CONE; 2], 1);
    world.is_cut = true;
    world.run(500 * MS);
    let [there, seen] = [5_000, 4_783].map(|port| SocketAddr::from(([192, 0, 2, 200], port)));
    world.say(A, R[0], Message::Mapped(Some(there)).encode());
    assert_eq!(world.node(R[0]).nat.refused(Reason::Address), 1);
    world.see(R[0], A, seen);
    world.run(5 * S);
    let probed = &world.node(B).probed;
    assert!(
        probed.contains_key(&seen) && probed.contains_key(&there),
        "{probed:?}"
    );
}

#[test]
fn a_port_that_leads_nowhere_keeps_nobody_from_being_met_where_it_is_seen() {
    let mut world = World::new([CONE; 2], 1);
    for site in [A, B] {
        world.say_port(site, Some(PORT));
    }
    world.run(20 * S);
    assert!(world.is_punched(), "{:?}", world.why());
    let probed = &world.node(A).probed;
    assert!(probed.keys().any(|at| at.port() == PORT), "{probed:?}");
}

#[test]
fn a_mapping_at_another_ip_address_than_the_node_is_seen_at_is_not_believed() {
    let mut world = World::new([CONE; 2], 1);
    let elsewhere: SocketAddr = "192.0.2.200:5000".parse().unwrap();
    world.run(100 * MS);
    world.say(A, R[0], Message::Mapped(Some(elsewhere)).encode());
    assert_eq!(world.node(R[0]).nat.refused(Reason::Address), 1);
    world.run(20 * S);
    assert!(world.is_punched(), "{:?}", world.why());
    assert_eq!(world.node(B).probed.get(&elsewhere), None);
}

#[test]
fn a_neighbour_that_lies_of_a_mapped_port_has_nobody_asked_at_another_ip_address() {
    let mut world = World::new([CONE; 2], 1);
    world.is_cut = true;
    // Before the true neighbour arranges anything.
    world.run(500 * MS);
    let there: SocketAddr = "192.0.2.10:40007".parse().unwrap();
    let meet = Message::Meet {
        number: 9,
        node: A,
        address: there,
    };
    world.say(R[0], B, meet.encode());
    let elsewhere: SocketAddr = "192.0.2.200:5000".parse().unwrap();
    for number in [9, 10] {
        let also = Message::Also {
            number,
            address: elsewhere,
        };
        world.say(R[0], B, also.encode());
    }
    let nat = &world.node(B).nat;
    let refused = [Reason::Address, Reason::Late].map(|reason| nat.refused(reason));
    assert_eq!(refused, [1, 1]);
    world.run(15 * S);
    assert!(world.node(B).probed.contains_key(&there));
    assert_eq!(world.node(B).probed.get(&elsewhere), None);
}
