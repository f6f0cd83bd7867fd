//! One member, by hand.

use super::*;

const OWN: NodeId = NodeId(1);
const UNIX_S: u64 = 1_800_000_000;

fn at(ms: u64) -> Now {
    Now {
        ns: ms * 1_000_000,
        unix_s: UNIX_S + ms / 1_000,
    }
}

fn update(node: u64, state: MemberState, incarnation: u64, by: u64) -> Update {
    Update {
        node: NodeId(node),
        state,
        incarnation,
        by: NodeId(by),
    }
}

fn said(kind: Kind, number: u32, updates: &[Update]) -> Said {
    Said {
        incarnation: 5,
        kind,
        number,
        updates: updates.to_vec(),
    }
}

/// With members 2 to `count`, in incarnation 5.
fn member(count: u64) -> Swim {
    let mut swim = Swim::new(OWN, 10, 3);
    for node in 2..=count {
        swim.join(at(0), NodeId(node));
        swim.handle(at(0), NodeId(node), &said(Kind::Nack, 0, &[]));
    }
    while swim.poll_change().is_some() {}
    swim
}

fn transmitted(swim: &mut Swim) -> Vec<(NodeId, Said)> {
    std::iter::from_fn(|| swim.poll_transmit()).collect()
}

fn state(swim: &Swim, node: u64) -> MemberState {
    swim.members()[&NodeId(node)].state
}

#[test]
fn who_does_not_answer_is_probed_by_others_then_suspected_then_dead() {
    let mut swim = member(6);
    swim.handle_timeout(at(1));
    let sent = transmitted(&mut swim);
    let [
        (
            target,
            Said {
                kind: Kind::Ping, ..
            },
        ),
    ] = &sent[..]
    else {
        panic!("{sent:?}");
    };
    let target = *target;
    // All others answer.
    let run = |swim: &mut Swim, from_ms, to_ms| {
        let mut asks = 0;
        for ms in (from_ms..to_ms).step_by(100) {
            swim.handle_timeout(at(ms));
            for (to, heard) in transmitted(swim) {
                asks += usize::from(heard.kind == Kind::Ask { target });
                if to != target && heard.kind == Kind::Ping {
                    swim.handle(at(ms), to, &said(Kind::Ack, heard.number, &[]));
                }
            }
        }
        asks
    };
    assert_eq!(run(&mut swim, 1, 1_001), PROXIES);
    assert_eq!(state(&swim, target.0), MemberState::Alive);
    run(&mut swim, 1_001, 1_300);
    assert_eq!(state(&swim, target.0), MemberState::Suspect);
    assert!(swim.health() > 0, "no proxy has said anything");
    run(&mut swim, 1_300, 60_000);
    assert_eq!(swim.members()[&target].state, MemberState::Dead);
    let others = swim.members().iter().filter(|(node, _)| **node != target);
    assert!(
        others
            .map(|(_, m)| m.state)
            .all(|state| state == MemberState::Alive)
    );
}

#[test]
fn a_suspicion_that_others_come_to_by_themselves_is_shorter() {
    let swim = member(100);
    let each: Vec<u64> = (1..6).map(|accusers| swim.suspicion_ns(accusers)).collect();
    assert!(each[0] > each[1] && each[1] > each[2] && each[2] > each[3]);
    assert_eq!(each[3], each[4]);
    assert_eq!(each[0], SUSPICION_MAX * each[3]);
    // Nobody else could confirm it.
    assert_eq!(member(2).suspicion_ns(1), SUSPICION_MIN * PROBE_NS);
}

#[test]
fn a_suspect_hears_of_it_first_and_a_higher_incarnation_alone_clears_it() {
    let mut swim = member(4);
    let accused = update(2, MemberState::Suspect, 5, 3);
    swim.handle(at(1), NodeId(3), &said(Kind::Nack, 0, &[accused]));
    assert_eq!(state(&swim, 2), MemberState::Suspect);
    swim.handle(at(2), NodeId(2), &said(Kind::Ping, 7, &[]));
    let (_, answer) = transmitted(&mut swim).pop().unwrap();
    assert_eq!((answer.kind, answer.number), (Kind::Ack, 7));
    assert_eq!(answer.updates[0], update(2, MemberState::Suspect, 5, 1));
    assert_eq!(state(&swim, 2), MemberState::Suspect);
    let mut refuted = said(Kind::Nack, 0, &[]);
    refuted.incarnation = 6;
    swim.handle(at(3), NodeId(2), &refuted);
    assert_eq!(state(&swim, 2), MemberState::Alive);
    // What was said of the life before counts no more.
    let dead = update(2, MemberState::Dead, 5, 3);
    swim.handle(at(4), NodeId(3), &said(Kind::Nack, 0, &[accused, dead]));
    assert_eq!(state(&swim, 2), MemberState::Alive);
    swim.handle(
        at(5),
        NodeId(3),
        &said(Kind::Nack, 0, &[update(2, MemberState::Dead, 6, 3)]),
    );
    assert_eq!(state(&swim, 2), MemberState::Dead);
}

#[test]
fn this_node_refutes_what_is_said_of_it_and_outdoes_an_earlier_life() {
    let mut swim = member(3);
    swim.handle(
        at(1),
        NodeId(2),
        &said(Kind::Ping, 1, &[update(1, MemberState::Dead, 10, 3)]),
    );
    assert_eq!((swim.incarnation(), swim.refuted()), (11, 1));
    let (_, answer) = transmitted(&mut swim).pop().unwrap();
    assert_eq!(answer.incarnation, 11);
    swim.handle(
        at(2),
        NodeId(2),
        &said(Kind::Nack, 1, &[update(1, MemberState::Suspect, 9, 3)]),
    );
    assert_eq!(swim.incarnation(), 11);
    swim.handle(
        at(3),
        NodeId(2),
        &said(Kind::Nack, 1, &[update(1, MemberState::Alive, 500, 1)]),
    );
    assert_eq!((swim.incarnation(), swim.refuted()), (501, 1));
    // One that could not be exceeded is nobody's.
    let highest = update(1, MemberState::Dead, u64::MAX, 3);
    swim.handle(at(4), NodeId(2), &said(Kind::Nack, 1, &[highest]));
    assert_eq!((swim.incarnation(), swim.ignored()), (501, 1));
}

#[test]
fn a_proxy_tells_of_an_answer_or_that_there_is_none() {
    let mut swim = member(4);
    let target = NodeId(3);
    swim.handle(at(1), NodeId(2), &said(Kind::Ask { target }, 70, &[]));
    let (to, ping) = transmitted(&mut swim).pop().unwrap();
    assert_eq!((to, ping.kind), (target, Kind::Ping));
    swim.handle(at(2), NodeId(4), &said(Kind::Ack, ping.number, &[]));
    assert!(transmitted(&mut swim).is_empty(), "it was not the target");
    swim.handle(at(2), target, &said(Kind::Ack, ping.number, &[]));
    let (to, ack) = transmitted(&mut swim).pop().unwrap();
    assert_eq!((to, ack.kind, ack.number), (NodeId(2), Kind::Ack, 70));
    swim.handle(at(3), NodeId(2), &said(Kind::Ask { target }, 71, &[]));
    drop(transmitted(&mut swim));
    swim.handle_timeout(at(450));
    let nacks = transmitted(&mut swim);
    let mut nacks = nacks.iter().filter(|(_, s)| s.kind == Kind::Nack);
    assert_eq!(
        nacks.next().map(|(to, s)| (*to, s.number)),
        Some((NodeId(2), 71))
    );
    let unknown = Kind::Ask { target: NodeId(99) };
    swim.handle(at(4), NodeId(2), &said(unknown, 72, &[]));
    assert_eq!(transmitted(&mut swim).pop().unwrap().1.kind, Kind::Nack);
}

#[test]
fn who_was_not_run_for_a_while_judges_nobody_by_that_time() {
    let mut swim = member(4);
    swim.handle_timeout(at(1));
    drop(transmitted(&mut swim));
    // The answer waits to be read.
    swim.handle_timeout(at(9_000));
    assert!((2..=4).all(|node| state(&swim, node) == MemberState::Alive));
    assert_eq!(swim.health(), 1);
}

#[test]
fn who_has_said_that_it_lives_and_is_suspected_again_has_all_the_time_again() {
    let mut swim = member(4);
    let suspected = |ms, incarnation, swim: &mut Swim| {
        let update = update(2, MemberState::Suspect, incarnation, 3);
        swim.handle(at(ms), NodeId(3), &said(Kind::Nack, 0, &[update]));
    };
    suspected(1, 5, &mut swim);
    let lasts_ms = swim.suspicion_ns(1) / 1_000_000;
    // What it said in between came to others, and not here.
    suspected(lasts_ms, 6, &mut swim);
    swim.handle_timeout(at(lasts_ms + 100));
    assert_eq!(state(&swim, 2), MemberState::Suspect);
    assert_eq!(swim.members()[&NodeId(2)].since_ns, lasts_ms * 1_000_000);
}
