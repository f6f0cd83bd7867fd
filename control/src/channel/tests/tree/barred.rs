//! What a relay may not be sent yet: it waits, and is given up when nobody waits for it any longer.

use super::*;
use crate::channel::tree::wire::Why;

/// What never comes to a relay: that it is to pass nothing more on.
pub(super) fn is_stop(relay: usize) -> impl FnMut((usize, usize), &What) -> bool {
    move |(_, to), what| to == relay && matches!(what, What::Strike(_) | What::Leave(_))
}

impl Grove {
    pub(super) fn is_barred(&self, relay: usize) -> bool {
        self.entry(0).roster[&self.id(relay)].is_barred()
    }

    /// A node unsubscribes; nothing is carried yet.
    pub(super) fn leave(&mut self, at: usize) {
        let ids = self.net.sides[at].service.subscribers.keys();
        let id = *ids.last().unwrap();
        self.net.command(at, Command::Unsubscribe(id));
    }

    /// Publishes events of so many bytes that have so many seconds, and says what becomes of them.
    pub(super) fn publish_tallied(
        &mut self,
        (count, bytes): (u64, usize),
        in_flight_max: usize,
        within_s: u64,
    ) -> Arc<Tally> {
        let plan = Plan {
            policy: Policy::BestEffort,
            in_flight_max,
            within: Duration::from_secs(600),
        };
        let tally = Arc::new(Tally::new(plan, count, true));
        let text = "x".repeat(bytes);
        let batches = (0..count).map(|_| batch(&mut self.feed, 0, &text));
        let batch = Batch::new(batches.collect(), Box::new(|_| {}))
            .within(Some(Duration::from_secs(within_s)))
            .tallied(Some(Arc::clone(&tally)));
        let channel = name("a");
        self.net.command(0, Command::Publish { channel, batch });
        tally
    }
}

/// Of a tally, how many events nobody knows of yet at a node, and how many expired before they were there.
pub(super) fn undelivered(tally: &Tally, id: NodeId) -> (u64, u64) {
    let outcome = tally.now().nodes[&id].clone();
    (outcome.pending, outcome.expired)
}

/// A relay that is not reached and was waited for: one event is on its way there, and what follows is kept for it.
fn out_of_reach() -> (Grove, usize) {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    grove.net.cut_off = Some(relay);
    let _report = grove.publish(1);
    grove.net.pass(10);
    grove.leave(children[0]);
    grove.net.pass(1_100);
    assert!(grove.is_barred(relay));
    (grove, relay)
}

/// Whoever publishes there as well, by the relay's publisher: its own events would wait as long as there are others.
#[test]
fn a_relay_that_has_not_answered_in_time_is_brought_nothing_of_others() {
    let mut channels = signed(7, 2);
    let all: Vec<Entity> = (0..7).map(|n| Entity::from_key(entity(n))).collect();
    for channels in &mut channels {
        channels[0].subscribe = Listed::Only(all.clone());
    }
    let mut grove = Grove::of(channels);
    let inbox = grove.inboxes[0].clone();
    grove.net.subscribe(0, only("a"), &inbox);
    grove.grow();
    let (relay, children) = grove.branch();
    let other = RELAYS[usize::from(relay == RELAYS[0])];
    let number = u8::try_from(other).unwrap();
    let mut others = feed(number);
    let mut next = || batch(&mut others, number, "other");
    let _report = grove.net.publish(other, "a", vec![next()]);
    grove.net.settle();
    grove.tell(relay, 0, 99, What::Feed(entity(number)));
    assert_eq!(grove.feeds(0, relay), 1);
    let (id, publisher) = (grove.id(relay), grove.id(other));
    let bring = |grove: &mut Grove, batch: &Bytes| {
        let now_ns = grove.net.now_ns;
        let Side { node, service } = &mut grove.net.sides[0];
        let stream = service.sessions[&publisher].streams_of(0)[0];
        service.relay(now_ns, node, (0, publisher, stream), batch);
        let to = service.entries[0].roster[&id].stream;
        to.map_or(0, |to| node.queued_on(id, to))
    };
    let roster = &mut grove.net.sides[0].service.entries[0].roster;
    let feeds = &mut roster.get_mut(&id).unwrap().feeds;
    feeds.get_mut(&publisher).unwrap().set_from(0);
    assert!(bring(&mut grove, &next()) > 0);
    grove.leave(children[0]);
    grove.settle_losing(&mut is_stop(relay));
    assert!(grove.is_barred(relay));
    for _ in 0..990 {
        assert!(bring(&mut grove, &next()) > 0, "it may answer yet");
        grove.pass_losing(1, is_stop(relay));
    }
    assert_eq!(grove.net.count(0, Reason::RelayFull), 0);
    grove.net.cut_off = Some(relay);
    for _ in 0..20 {
        let _queued = bring(&mut grove, &next());
        grove.pass_losing(1, is_stop(relay));
    }
    assert!(grove.is_barred(relay));
    assert_eq!(grove.net.count(0, Reason::RelayFull), 1);
    assert_eq!(grove.feeds(0, relay), 0);
    grove.net.cut_off = None;
    grove.pass_losing(3_000, is_stop(relay));
    assert!(!grove.is_barred(relay), "it gets what follows otherwise");
}

/// There is no more room: in bytes, and in events that may be unacknowledged.
#[test]
fn what_is_kept_for_a_relay_that_is_not_reached_makes_room_when_its_time_is_over() {
    for (bytes, in_flight_max) in [(50_000, 1_000), (10, 21)] {
        let (mut grove, relay) = out_of_reach();
        let id = grove.id(relay);
        let first = grove.publish_tallied((21, bytes), in_flight_max, 2);
        grove.net.pass(1_900);
        assert_eq!(undelivered(&first, id), (21, 0));
        assert_eq!(grove.net.count(0, Reason::Expired), 0);
        grove.net.pass(200);
        let dropped = grove.entry(0).counters.dropped;
        let second = grove.publish_tallied((3, bytes), in_flight_max, 2);
        assert_eq!(undelivered(&first, id), (0, 21));
        assert_eq!(undelivered(&second, id), (3, 0), "it waits for nothing");
        assert_eq!(grove.net.count(0, Reason::Expired), 21);
        assert_eq!(grove.entry(0).counters.dropped, dropped + 21);
        // Also where nothing else is published.
        grove.net.pass(2_600);
        assert!(grove.is_barred(relay));
        assert_eq!(undelivered(&second, id), (0, 3));
        assert_eq!(grove.net.count(0, Reason::Expired), 24);
        assert_eq!(grove.entry(0).counters.dropped, dropped + 24);
    }
}

#[test]
fn what_is_kept_for_a_relay_that_is_not_reached_is_no_more_than_may_be() {
    let (mut grove, relay) = out_of_reach();
    let text = "x".repeat(50_000);
    let batches = (0..30).map(|_| batch(&mut grove.feed, 0, &text)).collect();
    let answer = grove.net.publish(0, "a", batches);
    grove.net.pass(200);
    assert!(!answer.is_there(), "publishing waits");
    let kept = grove.entry(0).roster[&grove.id(relay)].owed.bytes();
    assert!((TAIL_BYTES_MAX..TAIL_BYTES_MAX + 60_000).contains(&kept));
}

#[test]
fn what_a_relay_is_owed_goes_as_soon_as_it_has_another_stream() {
    let (mut grove, relay) = out_of_reach();
    let id = grove.id(relay);
    assert!(grove.publish(1).is_there());
    let is_owed = |grove: &Grove| !grove.entry(0).roster[&id].owed.is_empty();
    assert!(grove.is_barred(relay) && is_owed(&grove));
    grove.net.cut_off = None;
    while grove.is_barred(relay) {
        grove.pass_losing(1, is_stop(relay));
    }
    grove.pass_losing(1, is_stop(relay));
    assert!(!is_owed(&grove));
}

/// Each time another one has left by then.
#[test]
fn a_relay_that_answers_just_in_time_is_waited_for_no_longer_than_one_that_does_not() {
    let mut grove = Grove::of(signed(9, 3));
    grove.grow();
    let relayed = grove.relayed();
    let (&relay, children) = relayed.iter().find(|(_, all)| all.len() == 3).unwrap();
    let id = grove.id(children[0]);
    let number = grove.entry(0).roster[&id].branch.number();
    grove.leave(children[0]);
    grove.settle_losing(&mut is_stop(relay));
    grove.pass_losing(800, is_stop(relay));
    grove.leave(children[1]);
    grove.settle_losing(&mut is_stop(relay));
    grove.put(relay, 0, number, What::Struck);
    grove.settle_losing(&mut is_stop(relay));
    let waits = grove.publish(1);
    grove.pass_losing(199, is_stop(relay));
    assert!(grove.is_barred(relay) && !waits.is_there());
    grove.pass_losing(1, is_stop(relay));
    assert!(!grove.is_barred(relay) && waits.is_there());
}

/// The second one leaves while the first is waited for, or after that.
#[test]
fn a_relay_that_never_answers_is_waited_for_once_whoever_else_leaves() {
    for is_soon in [true, false] {
        let mut grove = Grove::grown(7);
        let (deaf, children) = grove.branch();
        let leave = |grove: &mut Grove, child| {
            grove.leave(child);
            grove.net.settle_but(&[deaf]);
        };
        let said = grove.said;
        leave(&mut grove, children[0]);
        grove.pass_but(&[deaf], 900);
        assert!(grove.is_barred(deaf));
        if is_soon {
            leave(&mut grove, children[1]);
        }
        let waits = grove.publish(1);
        grove.pass_but(&[deaf], 99);
        assert!(!waits.is_there());
        grove.pass_but(&[deaf], 1);
        assert!(waits.is_there());
        if !is_soon {
            leave(&mut grove, children[1]);
        }
        assert!(!grove.is_barred(deaf));
        assert!(grove.publish(1).is_there());
        grove.pass_but(&[deaf], 100);
        grove.net.pass(1_000);
        grove.all_heard_but(&children, said..said + 2);
    }
}

#[test]
fn a_relay_that_has_answered_for_those_that_left_keeps_others_while_it_owes_another_answer() {
    let mut grove = Grove::of(signed(9, 3));
    grove.grow();
    let relayed = grove.relayed();
    let (&relay, children) = relayed.iter().find(|(_, all)| all.len() == 3).unwrap();
    let [gone, back, other] = children[..] else {
        panic!("{children:?}");
    };
    let id = grove.id(back);
    let number = grove.entry(0).roster[&id].branch.number();
    let mut lost = |(_, to): (usize, usize), what: &What| to == relay && *what == What::Strike(id);
    grove.put(back, 0, number, What::Back(0, Why::Gone));
    grove.settle_losing(&mut lost);
    grove.leave(gone);
    grove.settle_losing(&mut lost);
    assert!(!grove.is_barred(relay));
    grove.pass_losing(2_000, lost);
    assert!(grove.is_struck(relay));
    assert!(grove.relayed()[&relay].contains(&other));
}
