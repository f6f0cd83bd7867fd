//! What relays and children say that lie, what comes late, and what finds no room.

use super::*;
use crate::channel::{costs::REDIRECTS_MAX, tree::wire::Why};
use virga_state::batch::STATEMENT_BYTES_MIN;

impl Grove {
    /// Has a relay send a child something on its stream.
    fn bring(&mut self, relay: usize, child: usize, batch: &Bytes) {
        let (now_ns, child) = (self.net.now_ns, self.id(child));
        let Side { node, service } = &mut self.net.sides[relay];
        let stream = service.entries[0].roster[&child].stream.unwrap();
        let taken = node.send_all(now_ns, child, stream, [batch], None);
        assert!(taken.refused.is_none());
        self.net.settle();
    }

    /// The number of a child's assignment.
    fn assignment(&self, child: usize) -> u64 {
        let child = self.id(child);
        self.net.sides[0].service.entries[0].roster[&child]
            .branch
            .number()
    }
}

#[test]
fn what_a_relay_makes_up_reaches_nobody_and_the_publisher_sends_the_rest() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let (child, other) = (children[0], children[1]);
    // The publisher's next one, with one byte of it changed.
    let mut copy = grove.feed.clone();
    let mut changed = batch(&mut copy, 0, "changed").to_vec();
    *changed.last_mut().unwrap() ^= 1;
    grove.bring(relay, child, &changed.into());
    assert_eq!(grove.net.count(child, Reason::RelayForged), 1);
    // One that it has not signed: the signature stands behind the channel's name.
    let mut copy = grove.feed.clone();
    let mut forged = batch(&mut copy, 0, "forged").to_vec();
    forged[STATEMENT_BYTES_MIN + 1] ^= 1;
    grove.bring(relay, other, &forged.into());
    assert_eq!(grove.net.count(other, Reason::RelayForged), 1);
    assert_eq!(grove.net.count(0, Reason::RelayFailed), 2);
    let said = grove.said;
    grove.say(10);
    grove.net.pass(100);
    grove.all_heard(said..said + 10);
}

#[test]
fn what_a_relay_repeats_is_delivered_once_and_what_it_leaves_out_the_publisher_sends() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let child = children[0];
    let publisher = grove.id(0);
    let said = grove.said;
    let batches = grove.batches(3);
    let _report = grove.net.publish(0, "a", batches.clone());
    grove.net.settle();
    for batch in &batches {
        grove.bring(relay, child, batch);
    }
    assert_eq!(grove.net.count(child, Reason::RelayDuplicate), 4);
    grove.all_heard(said..said + 3);
    // It begins to leave some out.
    let id = grove.id(child);
    let next = u64::try_from(grove.said).unwrap() + 6;
    let roster = &mut grove.net.sides[relay].service.entries[0].roster;
    roster
        .get_mut(&id)
        .unwrap()
        .feeds
        .get_mut(&publisher)
        .unwrap()
        .set_from(next);
    let said = grove.said;
    grove.say(20);
    grove.net.pass(100);
    grove.all_heard(said..said + 20);
    assert_eq!(grove.net.count(0, Reason::RelayFailed), 1);
    assert_eq!(grove.relayed()[&relay], [children[1]]);
}

#[test]
fn nobody_brings_events_who_was_not_asked_for_them() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let (other, _) = grove.relayed().into_iter().next_back().unwrap();
    let child = children[0];
    let mut copy = grove.feed.clone();
    let next = batch(&mut copy, 0, "next");
    // The other relay has no stream to it yet.
    let mut own = feed(u8::try_from(other).unwrap());
    let own = batch(&mut own, u8::try_from(other).unwrap(), "own");
    let _report = grove.net.publish(other, "a", vec![own]);
    grove.net.settle();
    assert_eq!(grove.inboxes[child].texts(), ["own"]);
    grove.bring(other, child, &next);
    assert_eq!(grove.net.count(child, Reason::Unsigned), 1);
    // Of a publisher that it was not asked for.
    let mut third = feed(9);
    let third = batch(&mut third, 9, "third");
    grove.bring(relay, child, &third);
    assert_eq!(grove.net.count(child, Reason::Unsigned), 2);
    // And of one that it was, and is not any more.
    let number = grove.assignment(child);
    grove.tell(0, child, number, What::Alone);
    grove.bring(relay, child, &next);
    assert_eq!(grove.net.count(child, Reason::RelayStranger), 1);
    assert_eq!(grove.inboxes[child].texts(), [""; 0]);
}

#[test]
fn who_claims_what_was_never_published_is_served_directly() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let child = children[0];
    let number = grove.assignment(child);
    // Another's word, and another assignment's, are nobody's.
    grove.tell(children[1], 0, number, What::Have(u64::MAX));
    grove.tell(child, 0, number + 100, What::Back(1, Why::Gap));
    grove.tell(child, 0, number, What::Gap(1..u64::MAX));
    assert_eq!(grove.relayed()[&relay], [children[1]], "it misses nothing");
    assert_eq!(grove.net.count(0, Reason::RelayClaim), 0);
    let number = grove.assignment(children[1]);
    grove.tell(children[1], 0, number, What::Have(u64::MAX));
    assert_eq!(grove.net.count(0, Reason::RelayClaim), 1);
    assert!(!grove.relayed().contains_key(&relay));
    let said = grove.said;
    grove.say(10);
    grove.net.pass(100);
    grove.all_heard(said..said + 10);
}

#[test]
fn a_relay_passes_nothing_on_before_it_knows_where_to_begin() {
    let mut grove = Grove::new(7);
    grove.say(1);
    grove.net.pass(450);
    // The publisher redirects, and hears nothing more for a while.
    for _ in 0..100 {
        grove.tick(&[]);
        grove.net.settle_but(&[0]);
    }
    let child = (3..7).find(|&child| grove.feeds(1, child) == 1).unwrap();
    let arrived = grove.arrived(child);
    let _report = grove.publish(1);
    grove.net.settle_but(&[0]);
    assert_eq!(grove.arrived(child), arrived + 1, "the publisher's own");
    grove.net.settle();
    grove.say(1);
    assert_eq!(
        grove.arrived(child),
        arrived + 3,
        "and the relay's, of the next"
    );
}

#[test]
fn what_a_relay_brings_before_the_publisher_does_is_in_its_place_all_the_same() {
    let mut grove = Grove::new(7);
    grove.say(1);
    let child = 3;
    // The publisher's stream to it is slow while it is redirected.
    for _ in 0..4 {
        let _report = grove.publish(5);
        grove.pass_late(child, 600);
    }
    assert!(grove.net.count(child, Reason::RelayEarly) > 0);
    assert_eq!(grove.inboxes[child].texts(), ["0"]);
    grove.hand_late();
    grove.net.pass(1_000);
    let expected: Vec<String> = (1..grove.said).map(|n| n.to_string()).collect();
    assert_eq!(grove.inboxes[child].texts(), expected);
    for _ in 0..3 {
        grove.say(1);
        grove.net.pass(600);
    }
    assert!(grove.relayed().values().flatten().any(|&at| at == child));
    let expected: Vec<String> = (grove.said - 3..grove.said)
        .map(|n| n.to_string())
        .collect();
    assert_eq!(grove.inboxes[child].texts(), expected);
}

#[test]
fn a_relay_without_room_says_so_and_nothing_is_missing() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let child = children[0];
    let number = u8::try_from(relay).unwrap();
    let (mut own, long) = (feed(number), "x".repeat(50_000));
    let batches = (0..200).map(|_| batch(&mut own, number, &long));
    let batches: Vec<Bytes> = batches.collect();
    let answer = grove.net.publish(relay, "a", batches);
    grove.pass_but(&[child], 100);
    assert!(!answer.is_there(), "there is no room towards the child");
    let batches: Vec<Bytes> = (0..5)
        .map(|n| batch(&mut grove.feed, 0, &format!("{n}{long}")))
        .collect();
    let _report = grove.net.publish(0, "a", batches);
    grove.pass_but(&[child], 100);
    assert_eq!(grove.net.count(relay, Reason::RelayFull), 1);
    grove.net.pass(4_000);
    assert!(answer.is_there());
    let events = grove.inboxes[child].take().into_iter();
    let events = events.filter(|delivery| delivery.entity == entity(0));
    let firsts: Vec<u8> = events.map(|delivery| delivery.payload[0]).collect();
    assert_eq!(firsts, *b"01234");
    assert_eq!(grove.relayed()[&relay], [children[1]]);
}

#[test]
fn where_datagrams_are_lost_everything_comes_once_and_in_order() {
    let mut grove = Grove::new(7);
    let mut random = 1_u32;
    for _ in 0..6_000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if random >> 30 == 0 {
            let _report = grove.publish(1);
        }
        grove.net.is_cut = random >> 24 & 7 == 0;
        grove.net.pass(1);
    }
    grove.net.is_cut = false;
    grove.net.pass(8_000);
    assert!(grove.said > 1_000);
    grove.all_heard(0..grove.said);
    assert_eq!(grove.relayed().values().map(Vec::len).sum::<usize>(), 4);
}

#[test]
fn a_publisher_that_names_relays_without_end_is_not_heeded() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let child = children[0];
    let relays = RELAYS.map(|at| grove.id(at));
    let times = 10 * u64::from(REDIRECTS_MAX);
    for number in 0..times {
        let relay = relays[usize::try_from(number % 2).unwrap()];
        grove.tell(0, child, 1_000 + number, What::Redirect(relay));
    }
    let refused = grove.net.count(child, Reason::RelayRate);
    assert!(refused >= times - u64::from(REDIRECTS_MAX), "{refused}");
    // Nothing is missing, and what it asks for itself it gets.
    let said = grove.said;
    grove.say(5);
    grove.net.pass(8_000);
    grove.all_heard(said..said + 5);
    let before = grove.net.roster(relay, "a");
    grove.unsubscribe(child);
    grove.net.subscribe(child, only("a"), &Inbox::with_room(10));
    assert_eq!(grove.net.roster(relay, "a"), before);
    assert_eq!(grove.counts(Reason::SubscribeRate), 0);
}

#[test]
fn what_is_passed_on_leaves_room_for_a_relays_own_and_is_given_up_when_nobody_waits_for_it() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let (child, publisher) = (children[0], grove.id(0));
    let long = "x".repeat(50_000);
    let batches = (0..100).map(|_| batch(&mut grove.feed, 0, &long));
    let batches: Vec<Bytes> = batches.collect();
    let now_ns = grove.net.now_ns;
    let Side { node, service } = &mut grove.net.sides[relay];
    let stream = service.sessions[&publisher].streams_of(0)[0];
    // Its publisher waits for nobody.
    for batch in &batches {
        service.relay(now_ns, node, (0, publisher, stream), batch);
    }
    assert_eq!(grove.net.count(relay, Reason::RelayFull), 2);
    assert_eq!(grove.feeds(relay, child), 0);
    let number = u8::try_from(relay).unwrap();
    let mut own = feed(number);
    let own = (0..5).map(|_| batch(&mut own, number, &long)).collect();
    let answer = grove.net.publish(relay, "a", own);
    assert!(answer.is_there(), "they find room at once");
    // By now the publisher sends them itself.
    grove.net.now_ns += 5_001 * MS;
    let Side { node, service } = &mut grove.net.sides[relay];
    node.handle_timeout(grove.net.now_ns);
    while let Some(event) = node.poll() {
        service.on_event(grove.net.now_ns, node, event);
    }
    assert!(grove.net.count(relay, Reason::Expired) > 0);
}
