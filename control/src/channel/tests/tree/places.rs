//! Who is a relay, whose places it gives, and what is left to be counted when its streams are gone.

use super::*;
use crate::{
    channel::{owed::Owed, tally::Tallied},
    rights::Refusal,
};
use std::num::NonZeroU64;
use virga_ebpf::header::StreamId;

#[test]
fn who_may_not_publish_is_nobodys_relay() {
    let mut grove = Grove::new(7);
    grove.say(1);
    grove.tell(6, 0, 0, What::Able(u16::MAX));
    grove.grow();
    let relayed = grove.relayed();
    assert!(relayed.keys().eq(&RELAYS), "{relayed:?}");
    assert!(relayed.values().all(|children| children.len() == 2));
    assert_eq!(grove.counts(Reason::RelayFailed), 0);
}

#[test]
fn a_relay_has_no_places_but_for_whom_the_publisher_has_sent_there() {
    let mut channels = signed(9, 2);
    // The relays let it in, and the publisher does not.
    let others: Vec<Entity> = (1..8).map(|n| Entity::from_key(entity(n))).collect();
    channels[0][0].subscribe = Listed::Only(others);
    let mut grove = Grove::of(channels);
    grove.say(1);
    for relay in RELAYS {
        for child in [5, 6, 7, 8] {
            grove.tell(child, relay, 99, What::Feed(entity(0)));
            assert_eq!(grove.feeds(relay, child), 1);
        }
    }
    grove.say(1);
    assert_eq!(grove.arrived(8), 0);
    grove.grow();
    let relayed = grove.relayed();
    assert!(relayed.values().all(|children| children.len() == 2));
    assert_eq!(relayed.len(), 2);
    assert_eq!(grove.arrived(8), 0);
    // What the publisher says nothing to is not asked for without end.
    grove.net.pass(600);
    assert_eq!(RELAYS.map(|relay| grove.feeds(relay, 8)), [0, 0]);
}

/// A relay might be paid in another stream, and take for new what it has got by others; what another is owed is behind what
/// a relay would bring.
#[test]
fn nobody_is_a_relay_or_is_named_one_while_it_is_owed_something() {
    for owed_to in [1..3, 3..7] {
        let mut grove = Grove::new(7);
        grove.say(1);
        let batch = grove.batches(1).remove(0);
        for at in owed_to {
            let id = grove.id(at);
            let roster = &mut grove.net.sides[0].service.entries[0].roster;
            roster.get_mut(&id).unwrap().owed.push(Owed {
                batch: batch.clone(),
                deadline_ns: None,
                receipt: None,
            });
        }
        grove.net.pass(1_200);
        let mut roster = grove.entry(0).roster.values();
        assert!(roster.all(|remote| remote.branch.number() == 0));
        grove.grow();
        assert!(grove.relayed().keys().eq(&RELAYS));
    }
}

#[test]
fn what_is_owed_on_a_stream_that_is_gone_is_counted_and_awaited_by_nobody() {
    let mut grove = Grove::grown(3);
    let (id, now_ns) = (grove.id(1), grove.net.now_ns);
    let batch = grove.batches(1).remove(0);
    let tally = Arc::new(Tally::new(Plan::default(), 2, true));
    let tallied = Tallied::new(Arc::clone(&tally), NonZeroU64::MIN, 0);
    let Side { node, service } = &mut grove.net.sides[0];
    let owe = |service: &mut ChannelService<Inbox>| {
        let remote = service.entries[0].roster.get_mut(&id).unwrap();
        remote.stream = Some(StreamId(99_999));
        remote.owed.push(Owed {
            batch: batch.clone(),
            deadline_ns: None,
            receipt: Some(tallied.receipt),
        });
        for _ in 0..2 {
            tally.sent(id);
            remote.pending.add(id, &tallied);
        }
    };
    owe(service);
    let Entry { spec, roster, .. } = &mut service.entries[0];
    let remote = roster.get_mut(&id).unwrap();
    assert_eq!(remote.pay(now_ns, node, (spec, id)), Err(1));
    assert_eq!(remote.pending.events(), 0, "nothing more is heard of them");
    assert!(remote.stream.is_none());
    assert_eq!(tally.now().nodes[&id].lost, 2);
    // The same where it may not publish any more.
    owe(service);
    let dropped = service.entries[0].counters.dropped;
    service.fail_channel(now_ns, node, 0, &Refusal::Missing);
    assert_eq!(service.entries[0].counters.dropped, dropped + 1);
    assert_eq!(service.reasons.count(Reason::TokenMissing), 1);
    let remote = &service.entries[0].roster[&id];
    assert_eq!(remote.pending.events(), 0);
    assert!(remote.owed.is_empty());
    assert_eq!(tally.now().nodes[&id].pending, 0);
}
