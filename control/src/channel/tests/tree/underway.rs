//! What is still under way while a node is redirected, or taken back: each event comes once, none is lost, and none is of
//! before the node was let in.

use super::*;
use crate::channel::tree::wire::Why;
use virga_state::batch::STATEMENT_BYTES_MIN;

impl Grove {
    fn number_at(&self, publisher: usize, child: usize) -> u64 {
        let child = self.id(child);
        self.entry(publisher).roster[&child].branch.number()
    }
}

#[test]
fn a_child_that_refuses_a_relay_at_once_gets_nothing_twice() {
    let mut channels = signed(7, 2);
    // It has no part in trees.
    channels[6][0].fan_out = 0;
    let mut grove = Grove::of(channels);
    grove.say(1);
    grove.net.pass(400);
    // The next is still under way when it is redirected and says no.
    let _report = grove.publish(1);
    grove.pass_late(6, 200);
    assert_eq!(grove.number_at(0, 6), 0);
    grove.hand_late();
    grove.net.pass(100);
    grove.all_heard(0..2);
    assert_eq!(grove.arrived(6), 2, "it is sent nothing again");
    grove.grow();
    assert_eq!(grove.arrived(6), 6);
    let children: Vec<usize> = grove.relayed().into_values().flatten().collect();
    assert!(
        !children.contains(&6) && children.len() == 3,
        "{children:?}"
    );
}

#[test]
fn nobody_is_owed_what_was_published_before_it_was_let_in() {
    let mut grove = Grove::of(signed(5, 1));
    let (publisher, child) = (1, 4);
    grove.unsubscribe(3);
    grove.unsubscribe(child);
    let mut own = feed(1);
    let early = batch(&mut own, 1, "early");
    let _report = grove.net.publish(publisher, "a", vec![early]);
    grove.net.settle();
    let inbox = grove.inboxes[child].clone();
    grove.net.subscribe(child, only("a"), &inbox);
    // It gets another's events by this one: the stream to it is there, and none of its own has gone out in it.
    let (now_ns, id) = (grove.net.now_ns, grove.id(child));
    let Side { node, service } = &mut grove.net.sides[publisher];
    let Entry { spec, roster, .. } = &mut service.entries[0];
    let remote = roster.get_mut(&id).unwrap();
    remote.stream(now_ns, node, (spec, id)).unwrap();
    grove.net.pass(1_200);
    let claim = |grove: &mut Grove| {
        let number = grove.number_at(publisher, child);
        grove.tell(child, publisher, number, What::Have(0));
        grove.tell(child, publisher, number, What::Back(0, Why::Gap));
        grove.net.pass(10);
        number
    };
    assert_eq!(claim(&mut grove), 0, "it is not redirected");
    assert_eq!(inbox.texts(), [""; 0]);
    let next = batch(&mut own, 1, "next");
    let _report = grove.net.publish(publisher, "a", vec![next]);
    grove.net.pass(1_200);
    assert_eq!(inbox.texts(), ["next"]);
    assert_ne!(claim(&mut grove), 0);
    assert_eq!(inbox.texts(), [""; 0]);
}

/// What the publisher has sent to a node is slow, and a relay says that it has something.
fn lagging(is_forged: bool) -> u64 {
    let mut grove = Grove::new(7);
    let mut old = grove.batches(1);
    let _report = grove.net.publish(0, "a", old.clone());
    grove.net.settle();
    let child = 3;
    let _report = grove.publish(5);
    grove.pass_late(child, 600);
    let relay = RELAYS.into_iter().find(|&at| grove.feeds(at, child) == 1);
    let relay = relay.unwrap();
    let newest = grove.batches(1);
    let _report = grove.net.publish(0, "a", newest.clone());
    grove.settle_late(child);
    assert_eq!(grove.net.count(child, Reason::RelayEarly), 1);
    // It repeats what was heard long ago, and then what it brought last.
    if is_forged {
        let mut bytes = old[0].to_vec();
        bytes[STATEMENT_BYTES_MIN + 1] ^= 1;
        old[0] = bytes.into();
    }
    let id = grove.id(child);
    let stream = grove.entry(relay).roster[&id].stream.unwrap();
    for batch in [&old[0], &newest[0]] {
        let node = &mut grove.net.sides[relay].node;
        let taken = node.send_all(grove.net.now_ns, id, stream, [batch], None);
        assert!(taken.refused.is_none());
        grove.settle_late(child);
    }
    let _report = grove.publish(1);
    grove.settle_late(child);
    grove.hand_late();
    grove.net.pass(1_000);
    grove.all_heard(0..8);
    grove.net.count(child, Reason::RelayForged)
}

#[test]
fn what_the_publisher_has_sent_and_is_slow_is_no_hole() {
    assert_eq!(lagging(false), 0);
    assert_eq!(lagging(true), 1, "what was not signed joins nothing");
}
