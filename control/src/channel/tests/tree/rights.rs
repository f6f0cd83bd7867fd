//! Fan-out trees and rights: who has none gets nothing by a relay, and no relay takes events where they may not go.

use super::{
    super::rights::{DAY_S, ISSUER, UNIX_S, token},
    barred::is_stop,
    *,
};
use crate::{
    channel::{rights::Taken, tree::wire::Why},
    keys::{EntityKey, Secret},
    rights::{List, Operation, revocation::Entry},
};

/// Everybody has a token; the nodes that are not lax ask for them.
fn with_tokens(lax: &[u8]) -> Grove {
    let mut channels = signed(7, 2);
    for (number, channels) in (0..).zip(&mut channels) {
        if !lax.contains(&number) {
            channels[0].issuers = vec![Entity::from_key(entity(ISSUER))];
        }
    }
    let mut net = Net::with(&channels);
    for number in 0..3 {
        let publish = token(number, "a", Operation::Publish, DAY_S);
        net.give(number.into(), &publish);
    }
    for number in 1..7 {
        let subscribe = token(number, "a", Operation::Subscribe, DAY_S);
        net.give(number.into(), &subscribe);
    }
    let mut grove = Grove::on(net, channels);
    grove.grow();
    assert_eq!(grove.relayed().values().map(Vec::len).sum::<usize>(), 4);
    grove
}

fn without(number: usize) -> Vec<u8> {
    without_all(&[number])
}

fn without_all(numbers: &[usize]) -> Vec<u8> {
    let mut list = List::new(entity(ISSUER));
    for &number in numbers {
        let subject = Entry::Subject(entity(u8::try_from(number).unwrap()));
        list = list.revoke(subject, u64::MAX, UNIX_S).unwrap();
    }
    list.sign(&EntityKey::from(Secret::new(keys(ISSUER).entity_key)))
}

impl Grove {
    /// One node learns of a list; nothing is carried yet.
    fn learn(&mut self, at: usize, signed: &[u8]) {
        let Side { node, service } = &mut self.net.sides[at];
        let taken = service.on_revocations(self.net.now_ns, node, signed);
        assert!(matches!(taken, Taken::New(..)));
    }
}

#[test]
fn nothing_arrives_at_a_child_once_its_relay_knows_that_its_right_is_gone() {
    // The children ask themselves for nothing.
    let mut grove = with_tokens(&[3, 4, 5, 6]);
    let (relay, children) = grove.branch();
    let child = children[0];
    let arrived = grove.arrived(child);
    let said = grove.said;
    // They wait before the relay's service when it learns of it, and more is published at once.
    let _report = grove.publish(10);
    grove.settle_late(relay);
    let list = without(child);
    grove.learn(relay, &list);
    assert_eq!(grove.net.status(relay).channels[0].children, 1);
    for (at, event) in std::mem::take(&mut grove.late) {
        grove.hand(at, event);
    }
    grove.learn(0, &list);
    let _report = grove.publish(10);
    grove.net.settle();
    grove.net.pass(8_000);
    grove.say(10);
    assert_eq!(grove.arrived(child), arrived);
    grove.all_heard_but(&[child], said..said + 30);
    assert_eq!(grove.inboxes[child].texts(), [""; 0]);
    // Asking the relay does not help.
    grove.tell(child, relay, 99, What::Feed(entity(0)));
    assert_eq!(grove.net.count(relay, Reason::RelayRefused), 1);
    grove.say(1);
    assert_eq!(grove.arrived(child), arrived);
}

#[test]
fn a_child_gets_nothing_of_the_time_before_it_was_let_in() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let child = children[0];
    grove.unsubscribe(child);
    let arrived = grove.arrived(child);
    // What is published meanwhile is slow on its way to the relay, and control messages overtake it.
    let _report = grove.publish(10);
    grove.pass_late(relay, 100);
    let again = Inbox::with_room(1_000);
    grove.net.try_subscribe(child, only("a"), &again).unwrap();
    grove.settle_late(relay);
    let said = grove.said;
    let _report = grove.publish(1);
    grove.pass_late(relay, 700);
    let id = grove.id(child);
    let (entry, publisher) = (&grove.net.sides[relay].service.entries[0], grove.id(0));
    let feed = &entry.roster[&id].feeds[&publisher];
    assert!(feed.has_begun(), "the publisher has said where");
    assert_eq!(grove.late.len(), 11);
    grove.hand_late();
    assert_eq!(grove.arrived(child), arrived + 1, "the publisher's own");
    for _ in 0..3 {
        grove.say(1);
        grove.net.pass(600);
    }
    let expected: Vec<String> = (said..said + 4).map(|n| n.to_string()).collect();
    assert_eq!(again.texts(), expected);
    assert!(grove.relayed()[&relay].contains(&child));
    assert_eq!(grove.inboxes[child].texts(), [""; 0]);
}

#[test]
fn a_relay_whose_right_is_gone_passes_nothing_on_and_nothing_is_missing() {
    let mut grove = with_tokens(&[]);
    let (relay, _) = grove.branch();
    let said = grove.said;
    let _report = grove.publish(10);
    grove.settle_late(relay);
    let before = grove.net.status(relay).channels[0].relayed_events;
    grove.learn(relay, &without(relay));
    grove.hand_late();
    let _report = grove.publish(10);
    grove.net.pass(2_000);
    assert_eq!(grove.net.status(relay).channels[0].relayed_events, before);
    grove.all_heard_but(&[relay], said..said + 20);
}

#[test]
fn a_publisher_whose_right_is_gone_reaches_nobody_by_a_relay() {
    // The publisher and the relays ask for nothing.
    let mut grove = with_tokens(&[0, 1, 2]);
    let (relay, children) = grove.branch();
    let list = without(0);
    for &child in &children {
        grove.learn(child, &list);
    }
    grove.say(5);
    grove.net.pass(100);
    for &child in &children {
        assert_eq!(grove.inboxes[child].texts(), [""; 0]);
    }
    assert_eq!(grove.net.status(relay).channels[0].children, 0);
}

#[test]
fn who_asks_a_relay_without_being_let_in_there_gets_nothing() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let child = children[0];
    grove.unsubscribe(child);
    let arrived = grove.arrived(child);
    grove.tell(child, relay, 99, What::Feed(entity(0)));
    assert_eq!(grove.net.count(relay, Reason::RelayRefused), 1);
    // Nor anybody what does not come there from its publisher, or more than there is room for.
    let other = *grove.relayed().values().last().unwrap().first().unwrap();
    for entity in [entity(1), entity(9), entity(3)] {
        grove.tell(other, relay, 99, What::Feed(entity));
    }
    assert_eq!(grove.net.count(relay, Reason::RelayRefused), 4);
    for (count, at) in [(4, other), (5, 0)] {
        grove.tell(at, relay, 99, What::Feed(entity(0)));
        assert_eq!(grove.net.count(relay, Reason::RelayRefused), count);
    }
    // What was ended may come late.
    grove.tell(relay, child, 99, What::Ended(entity(0), Why::Refused));
    grove.say(1);
    assert_eq!(grove.arrived(child), arrived);
}

/// An exported channel goes from the publisher's subnet to others, and from these nowhere.
#[test]
fn no_relay_brings_events_where_the_channel_does_not_go_from_its_subnet() {
    let (home, abroad) = (Subnet(0x0100_0000), Subnet(0x0200_0000));
    let mut channels = signed(7, 2);
    for channels in &mut channels {
        channels[0].visibility = Visibility::Exported;
        channels[0].export_to = [abroad.with_descendants()].into();
    }
    let mut net = Net::with(&channels);
    let all: Vec<NodeId> = net.sides.iter().map(|side| side.node.id()).collect();
    let subnet = |at: usize| if (1..5).contains(&at) { abroad } else { home };
    for (at, side) in net.sides.iter_mut().enumerate() {
        let peers = all.iter().enumerate();
        side.service.subnets = Subnets {
            own: subnet(at),
            peers: peers.map(|(at, &id)| (id, subnet(at))).collect(),
            ..Subnets::default()
        };
    }
    let mut grove = Grove::on(net, channels);
    grove.grow();
    let mut children: Vec<usize> = grove.relayed().into_values().flatten().collect();
    children.sort_unstable();
    assert!(
        children.iter().all(|child| [3, 4].contains(child)),
        "{children:?}"
    );
    let said = grove.said;
    grove.say(10);
    grove.net.pass(6_000);
    grove.all_heard(said..said + 10);
}

#[test]
fn what_is_published_after_a_right_has_ended_waits_for_the_relays_word() {
    // The publisher alone asks for tokens: no relay learns of what has ended.
    let mut grove = with_tokens(&[1, 2, 3, 4, 5, 6]);
    let (relay, children) = grove.branch();
    let (child, other) = (children[0], children[1]);
    let (arrived, said) = (grove.arrived(child), grove.said);
    grove.learn(0, &without(child));
    let answer = grove.publish(3);
    assert!(!answer.is_there(), "the relay has not said so yet");
    // The child itself says nothing to the relay.
    grove.net.settle_but(&[child]);
    assert!(answer.is_there());
    assert_eq!(grove.net.status(relay).channels[0].children, 1);
    grove.net.settle();
    grove.say(2);
    grove.net.pass(100);
    assert_eq!(grove.arrived(child), arrived);
    grove.all_heard_but(&[child], said..said + 5);
    // One that does not answer is not waited for without end.
    grove.learn(0, &without_all(&[child, other]));
    let answer = grove.publish(1);
    grove.pass_but(&[relay], 900);
    assert!(!answer.is_there());
    grove.pass_but(&[relay], 900);
    assert!(answer.is_there());
}

/// No relay learns of what has ended, and one hears nothing of its publisher's either.
#[test]
fn a_relay_that_does_not_answer_gets_what_it_does_not_pass_on() {
    let mut grove = with_tokens(&[1, 2, 3, 4, 5, 6]);
    let (relay, children) = grove.branch();
    let child = children[0];
    let (arrived, said) = (grove.arrived(child), grove.said);
    grove.learn(0, &without(child));
    let answer = grove.publish(3);
    let lost = |(_, to): (usize, usize), what: &What| {
        to == relay && matches!(what, What::Strike(_) | What::Leave(_))
    };
    grove.pass_losing(900, lost);
    assert!(!answer.is_there());
    grove.pass_losing(900, lost);
    assert!(answer.is_there());
    let _report = grove.publish(3);
    grove.pass_losing(4_000, lost);
    assert_eq!(grove.arrived(child), arrived);
    grove.all_heard_but(&[child], said..said + 6);
    // It passes on again once it has answered, to those that may have it.
    grove.net.pass(600);
    let said = grove.said;
    for _ in 0..4 {
        grove.say(1);
        grove.net.pass(600);
    }
    assert!(grove.relayed()[&relay].contains(&children[1]));
    grove.all_heard_but(&[child], said..said + 4);
    assert_eq!(grove.arrived(child), arrived);
}

#[test]
fn a_relay_that_is_not_reached_is_owed_what_it_might_pass_on_and_nobody_waits_for_it() {
    let mut grove = with_tokens(&[1, 2, 3, 4, 5, 6]);
    let (relay, children) = grove.branch();
    let child = children[0];
    let (arrived, said) = (grove.arrived(child), grove.said);
    grove.net.cut_off = Some(relay);
    let _report = grove.publish(5);
    grove.net.pass(100);
    grove.learn(0, &without(child));
    let answer = grove.publish(3);
    grove.net.pass(900);
    assert!(!answer.is_there());
    grove.net.pass(1_000);
    assert!(answer.is_there());
    grove.all_heard_but(&[relay, child], said..said + 8);
    assert_eq!(grove.inboxes[relay].texts(), [""; 0]);
    grove.net.cut_off = None;
    grove.net.pass(4_000);
    let expected: Vec<String> = (said..said + 8).map(|n| n.to_string()).collect();
    assert_eq!(grove.inboxes[relay].texts(), expected);
    // What was published while it had a right may still come.
    assert!(grove.arrived(child) <= arrived + 5);
    let said = grove.said;
    let before = grove.arrived(child);
    grove.say(5);
    grove.net.pass(100);
    grove.all_heard_but(&[child], said..said + 5);
    assert_eq!(grove.arrived(child), before);
}

/// A relay that is not reached and was waited for, and three events that are kept for it from the moment on when they are
/// published: no look at the trees came since.
fn kept_for_a_relay() -> (Grove, usize, usize) {
    let mut grove = with_tokens(&[1, 2, 3, 4, 5, 6]);
    let (relay, children) = grove.branch();
    grove.net.cut_off = Some(relay);
    let _report = grove.publish(1);
    grove.net.pass(100);
    grove.learn(0, &without(children[0]));
    grove.net.pass(2_000);
    let answer = grove.publish(3);
    assert!(answer.is_there());
    (grove, relay, children[0])
}

#[test]
fn what_is_kept_for_a_relay_that_is_not_reached_is_counted_when_its_publisher_stops() {
    let (mut grove, _, _) = kept_for_a_relay();
    let before = grove.net.count(0, Reason::PeerGone);
    let Side { node, service } = &mut grove.net.sides[0];
    service.stop(grove.net.now_ns, node);
    assert_eq!(grove.net.count(0, Reason::PeerGone), before + 3);
}

#[test]
fn what_is_kept_for_a_relay_is_counted_when_its_session_its_stream_or_its_right_ends() {
    for end in ["session", "stream", "right"] {
        let (mut grove, relay, child) = kept_for_a_relay();
        let (before, id) = (grove.net.count(0, Reason::PeerGone), grove.id(relay));
        let dropped = grove.entry(0).counters.dropped;
        let stream = grove.entry(0).roster[&id].stream.unwrap();
        let list = without_all(&[child, relay]);
        let Side { node, service } = &mut grove.net.sides[0];
        match end {
            "session" => service.on_closed(grove.net.now_ns, node, id),
            "stream" => service.on_refused(grove.net.now_ns, node, id, stream),
            _ => grove.learn(0, &list),
        }
        assert!(!grove.entry(0).roster.contains_key(&id));
        assert_eq!(grove.net.count(0, Reason::PeerGone), before + 3);
        assert_eq!(grove.entry(0).counters.dropped, dropped + 3);
    }
}

/// It might be brought events while others are kept for it until it has answered.
#[test]
fn a_relay_whose_right_is_gone_is_served_by_its_publisher_until_it_has_answered() {
    let mut grove = Grove::of(signed(4, 1));
    grove.grow();
    let (relay, children) = grove.branch();
    let number = |grove: &Grove, at| grove.entry(0).roster[&grove.id(at)].branch.number();
    let assignment = number(&grove, children[0]);
    // The other relay has a place, and nobody else is to be named to it.
    grove.leave(children[0]);
    grove.settle_losing(&mut is_stop(relay));
    grove.put(relay, 0, 0, What::Able(0));
    grove.pass_losing(700, is_stop(relay));
    assert!(grove.is_struck(relay));
    assert_eq!(number(&grove, relay), 0);
    grove.tell(relay, 0, assignment, What::Struck);
    grove.net.pass(600);
    assert_ne!(number(&grove, relay), 0);
}

#[test]
fn a_relay_that_got_nothing_in_its_new_stream_yet_is_not_asked_for_any() {
    let mut grove = with_tokens(&[1, 2, 3, 4, 5, 6]);
    let (relay, children) = grove.branch();
    grove.learn(0, &without(children[0]));
    grove.pass_losing(2_500, |(_, to), what| {
        to == relay && matches!(what, What::Strike(_) | What::Leave(_))
    });
    let mut refused = 0;
    grove.pass_losing(3_000, |_, what| {
        refused += usize::from(matches!(what, What::Ended(..)));
        false
    });
    assert_eq!(refused, 0);
    for _ in 0..4 {
        grove.say(1);
        grove.net.pass(600);
    }
    assert!(grove.relayed()[&relay].contains(&children[1]));
}

#[test]
fn a_relay_says_so_when_its_right_begins_and_when_it_ends() {
    // The publisher asks for no tokens: it knows what the relays say.
    let mut channels = signed(7, 2);
    for channels in &mut channels[1..3] {
        channels[0].issuers = vec![Entity::from_key(entity(ISSUER))];
    }
    let mut net = Net::with(&channels);
    for number in 1..7 {
        let subscribe = token(number, "a", Operation::Subscribe, DAY_S);
        net.give(number.into(), &subscribe);
    }
    net.give(0, &token(0, "a", Operation::Publish, DAY_S));
    let mut grove = Grove::on(net, channels);
    grove.grow();
    assert!(grove.relayed().is_empty());
    for (number, lasts_s) in [(1, 20), (2, DAY_S)] {
        let publish = token(number, "a", Operation::Publish, lasts_s);
        grove.net.give(number.into(), &publish);
    }
    // Whoever has asked a node that could not publish then asks again.
    grove.net.pass(5_000);
    for _ in 0..10 {
        grove.say(1);
        grove.net.pass(600);
    }
    assert!(grove.relayed().keys().eq(&RELAYS), "{:?}", grove.relayed());
    grove.net.pass(12_000);
    for _ in 0..20 {
        grove.say(1);
        grove.net.pass(600);
    }
    assert!(grove.relayed().keys().eq(&RELAYS[1..]));
    assert_eq!(
        grove.net.count(1, Reason::RelayRefused),
        0,
        "nobody is sent there"
    );
    grove.all_heard(4..34);
}

/// What a relay is told to stop it is waited for once, and not for others who leave.
#[test]
fn a_relay_that_never_answers_holds_up_nobody_for_longer_than_it_may() {
    let mut grove = Grove::grown(7);
    let relayed = grove.relayed();
    let [(&deaf, first), (_, second)] = relayed.iter().collect::<Vec<_>>()[..] else {
        panic!("{relayed:?}");
    };
    let leave = |grove: &mut Grove, at: usize| {
        let ids = grove.net.sides[at].service.subscribers.keys();
        let id = *ids.last().unwrap();
        grove.net.command(at, Command::Unsubscribe(id));
        grove.net.settle_but(&[deaf]);
    };
    let is_barred = |grove: &Grove| grove.entry(0).roster[&grove.id(deaf)].is_barred();
    leave(&mut grove, first[0]);
    assert!(is_barred(&grove), "it may still pass on what it gets");
    grove.pass_but(&[deaf], 900);
    assert!(is_barred(&grove));
    leave(&mut grove, second[0]);
    grove.pass_but(&[deaf], 200);
    assert!(!is_barred(&grove));
    let said = grove.said;
    let _report = grove.publish(3);
    grove.pass_but(&[deaf], 100);
    grove.net.pass(10_000);
    grove.all_heard_but(&[first[0], second[0]], said..said + 3);
}
