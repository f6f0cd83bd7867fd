//! Peers that lie: what they can make a node send, and how much it keeps.

use crate::world::{A, B, By, C, MS, R, S, World};
use virga_ebpf::header::NodeId;
use virga_nat::{Mapping, Reason, limits, wire::Message};

const CONE: Option<(By, By)> = Some((By::Endpoint, By::Port));

fn meet(number: u64, node: NodeId, address: &str) -> Vec<u8> {
    let address = address.parse().expect("an address");
    Message::Meet {
        number,
        node,
        address,
    }
    .encode()
}

/// Packets that went to an address.
fn probes(world: &mut World, node: NodeId, address: &str) -> u32 {
    let probed = &world.node(node).probed;
    probed
        .get(&address.parse().expect("an address"))
        .copied()
        .unwrap_or(0)
}

#[test]
fn a_neighbour_that_lies_sends_few_packets_to_a_third_party_and_no_member_any() {
    let victim = "203.0.113.9:53";
    let mut world = World::new([CONE, CONE], 1);
    world.is_cut = true;
    world.run(S);
    // As a neighbour, all the time.
    let seconds = 300;
    for n in 0..seconds * 100 {
        world.say(R[0], B, meet(n, A, victim));
        world.run(10 * MS);
    }
    let sent = u64::from(probes(&mut world, B, victim));
    // Nobody is heard from there.
    let most = u64::from(limits::PROBES_TOLD) * (seconds * S / limits::MEETING_NS + 1);
    assert!(sent > 0 && sent <= most, "{sent} in {seconds} s");
    assert!(world.node(B).nat.refused(Reason::Late) > 0);
    assert!(world.node(B).nat.refused(Reason::Rate) > seconds * 90);
    // As the peer itself, that no address is believed of.
    let mut world = World::new([CONE, CONE], 1);
    world.run(S / 10);
    for n in 0..1_000 {
        world.say(A, B, meet(n, A, victim));
        world.say(A, B, Message::Seen(victim.parse().unwrap()).encode());
        world.run(10 * MS);
    }
    assert_eq!(probes(&mut world, B, victim), 0);
    assert!(world.node(B).nat.refused(Reason::Stranger) > 0);
}

#[test]
fn nobody_is_asked_at_addresses_that_no_node_has() {
    let mut world = World::new([CONE, CONE], 1);
    world.is_cut = true;
    world.run(S);
    let addresses = [
        "0.0.0.0:1",
        "127.0.0.1:22",
        "224.0.0.1:5",
        "255.255.255.255:1",
        "192.0.2.7:0",
        "[2001:db8::1]:9",
    ];
    for (n, address) in (0..).zip(addresses) {
        world.say(R[0], B, meet(n, A, address));
        world.run(2 * S);
        assert_eq!(probes(&mut world, B, address), 0, "{address}");
    }
    assert_eq!(
        world.node(B).nat.refused(Reason::Address),
        addresses.len() as u64
    );
}

#[test]
fn a_node_that_nobody_wants_is_not_asked_and_strangers_say_nothing() {
    let mut world = World::new([CONE, CONE], 1);
    world.run(S);
    world.say(R[0], B, meet(1, NodeId(99), "203.0.113.9:53"));
    assert_eq!(world.node(B).nat.refused(Reason::Unwanted), 1);
    for message in [meet(2, A, "203.0.113.9:53"), vec![], vec![9; 40]] {
        world.say(NodeId(99), B, message);
    }
    world.run(S);
    assert_eq!(world.node(B).nat.refused(Reason::Stranger), 3);
    world.say(R[0], B, vec![7]);
    assert_eq!(world.node(B).nat.refused(Reason::Malformed), 1);
    assert_eq!(probes(&mut world, B, "203.0.113.9:53"), 0);
}

#[test]
fn what_is_said_before_a_session_is_seen_waits_in_bounded_room_and_counts_then() {
    let mut world = World::new([CONE, CONE], 1);
    world.say(R[0], B, Message::About(Mapping::None).encode());
    for _ in 0..1_000 {
        world.say(NodeId(99), B, meet(1, A, "203.0.113.9:53"));
    }
    let left = 1_000 - limits::EARLY_OF_ONE_MAX as u64;
    assert_eq!(world.node(B).nat.refused(Reason::Stranger), left);
    assert!(world.node(B).nat.is_busy());
    for n in 0..1_000 {
        world.say(NodeId(1_000 + n), B, meet(1, A, "203.0.113.9:53"));
    }
    let early = limits::EARLY_MAX as u64;
    assert_eq!(world.node(B).nat.refused(Reason::Stranger), 2_001 - early);
    world.look(B);
    assert_eq!(world.node(B).nat.refused(Reason::Stranger), 2_000);
    let said = std::iter::from_fn(|| world.node(B).nat.poll_transmit());
    let is_seen = |(to, said): &(NodeId, Vec<u8>)| {
        *to == R[0] && matches!(Message::parse(said), Some(Message::Seen(_)))
    };
    assert_eq!(
        said.filter(is_seen).count(),
        1,
        "it is told where it is seen"
    );
}

#[test]
fn who_says_it_was_answered_without_being_it_moves_nobody() {
    let mut world = World::new([CONE, CONE], 1);
    world.is_cut = true;
    world.run(S);
    world.say(R[0], B, meet(7, A, "203.0.113.9:53"));
    let address = "203.0.113.9:53".parse().unwrap();
    world.say(A, B, Message::Proven { number: 7, address }.encode());
    world.run(5 * S);
    assert!(world.node(B).nat.punched().is_empty());
}

#[test]
fn who_asks_for_meetings_all_the_time_has_few_and_the_others_neighbour_is_believed_still() {
    let mut world = World::new([CONE, CONE], 1);
    world.is_cut = true;
    world.run(S);
    let seconds = 120;
    for number in 0..seconds * 100 {
        world.say(A, R[0], Message::Ask { number, node: B }.encode());
        world.run(10 * MS);
    }
    let [arranged, ..] = world.node(R[0]).nat.counted();
    let most = u64::from(limits::ASKS_BURST) + seconds * S / limits::ASKS_PAUSE_NS + 2;
    assert!(arranged > 2 && arranged <= most, "{arranged}");
    assert_eq!(world.node(B).nat.refused(Reason::Rate), 0);
}

#[test]
fn who_was_punched_through_to_says_nothing_of_others() {
    let mut world = World::new([CONE, CONE], 1);
    world.add_beside_a();
    world.run(20 * S);
    let (punched, other) = match world.are_punched(A, B) {
        true => (A, C),
        false => (C, A),
    };
    assert!(world.are_punched(punched, B), "{:?}", world.why());
    let before = world.node(B).nat.refused(Reason::Stranger);
    world.say(punched, B, meet(1, other, "203.0.113.9:53"));
    world.say(
        punched,
        B,
        Message::Ask {
            number: 2,
            node: other,
        }
        .encode(),
    );
    world.run(2 * S);
    assert_eq!(world.node(B).nat.refused(Reason::Stranger), before + 2);
    assert_eq!(probes(&mut world, B, "203.0.113.9:53"), 0);
    assert!(world.are_punched(punched, B));
}

#[test]
fn a_neighbour_that_does_none_of_this_is_told_once() {
    let mut world = World::new([CONE, CONE], 1);
    // It says nothing.
    world.node(R[0]).next_look_ns = u64::MAX;
    world.run(60 * S);
    assert_eq!(world.node(A).told.get(&R[0]), Some(&1));
    // One that does is told again now and then: it may not have taken this node for a neighbour before.
    let mut world = World::new([CONE, CONE], 1);
    world.run(60 * S);
    assert!(world.node(A).told.get(&R[0]) > Some(&8));
}
