//! Fan-out trees and deadlines: what has no time for a relay goes to all by its publisher.

use super::{barred::undelivered, *};

#[test]
fn what_has_no_time_for_a_relay_the_publisher_sends_to_all() {
    let mut grove = Grove::grown(7);
    let said = grove.said;
    let batches = grove.batches(5);
    let within = Some(Duration::from_secs(1));
    let _report = grove.net.publish_within(0, "a", batches, within);
    assert!(grove.relayed().is_empty());
    grove.pass_but(&RELAYS, 100);
    grove.all_heard_but(&RELAYS, said..said + 5);
    grove.net.settle();
    for relay in RELAYS {
        assert_eq!(grove.inboxes[relay].texts().len(), 5);
    }
    assert_eq!(grove.counts(Reason::Expired), 0);
    // Nobody is redirected for a while, and then as before: no relay has failed.
    let said = grove.said;
    for _ in 0..6 {
        grove.say(1);
        grove.net.pass(600);
        assert!(grove.relayed().is_empty());
    }
    for _ in 0..6 {
        grove.say(1);
        grove.net.pass(600);
    }
    assert_eq!(grove.relayed().values().map(Vec::len).sum::<usize>(), 4);
    grove.all_heard(said..said + 12);
    // With more time there is enough to notice that a relay brings nothing.
    let said = grove.said;
    let batches = grove.batches(5);
    let within = Some(Duration::from_secs(10));
    let _report = grove.net.publish_within(0, "a", batches, within);
    assert_eq!(grove.relayed().values().map(Vec::len).sum::<usize>(), 4);
    let (relay, _) = grove.branch();
    grove.pass_but(&[relay], 7_000);
    grove.all_heard_but(&[relay], said..said + 5);
    assert_eq!(grove.counts(Reason::Expired), 0);
}

/// It is not reached, and its stream is full: this node passes others' events on in it, too.
#[test]
fn what_a_child_is_owed_makes_room_when_its_time_is_over() {
    let mut grove = Grove::grown(7);
    let (_, children) = grove.branch();
    let (child, id) = (children[0], grove.id(children[0]));
    grove.net.cut_off = Some(child);
    let in_flight_max = 21;
    let first = grove.publish_tallied((21, 10), in_flight_max, 7);
    let stream = grove.entry(0).roster[&id].stream.unwrap();
    let mut others = feed(1);
    for bytes in [50_000, 1] {
        let other = batch(&mut others, 1, &"x".repeat(bytes));
        let (now_ns, node) = (grove.net.now_ns, &mut grove.net.sides[0].node);
        let mut send = || node.send_all(now_ns, id, stream, [&other], None);
        while send().refused.is_none() {}
    }
    grove.net.pass(6_000);
    assert!(!grove.is_relayed(child) && !grove.is_barred(child));
    assert!(!grove.entry(0).roster[&id].owed.is_empty());
    grove.net.pass(1_100);
    assert_eq!(undelivered(&first, id), (21, 0));
    let (dropped, expired) = (
        grove.entry(0).counters.dropped,
        grove.net.count(0, Reason::Expired),
    );
    let second = grove.publish_tallied((3, 10), in_flight_max, 7);
    assert_eq!(undelivered(&first, id), (0, 21));
    assert_eq!(grove.net.count(0, Reason::Expired), expired + 21);
    assert_eq!(grove.entry(0).counters.dropped, dropped + 21);
    // What made room for it goes there as soon as there is some on the stream.
    grove.net.cut_off = None;
    grove.net.pass(3_000);
    assert_eq!(second.now().nodes[&id].acknowledged, 3);
}
