//! Fan-out trees and deadlines: what has no time for a relay goes to all by its publisher.

use super::*;

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
