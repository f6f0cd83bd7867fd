//! Subscribers on this machine that do not keep up.

use super::*;

#[test]
fn a_slow_subscriber_of_a_reliable_channel_pauses_its_publisher_and_loses_nothing() {
    let mut net = Net::new(3, &[channel("a", &[0], &[0, 1, 2])]);
    let (slow, fast, local) = (
        Inbox::with_room(20),
        Inbox::with_room(9_999),
        Inbox::with_room(9_999),
    );
    let id = net.subscribe(1, only("a"), &slow);
    net.subscribe(2, only("a"), &fast);
    net.subscribe(0, only("a"), &local);
    // One by one, so that the pause gets there before the queue is full.
    let mut sent = 0;
    let waiting = loop {
        let answer = net.publish(0, "a", texts(sent..sent + 1));
        sent += 1;
        net.settle();
        if !answer.is_there() {
            break answer;
        }
    };
    assert_eq!(sent, 11);
    assert_eq!(net.sides[0].service.status().channels[0].remote_holding, 1);
    let mut got = slow.texts();
    net.command(1, Command::Drained(id));
    net.settle();
    assert_eq!(waiting.report().published, 1);
    got.extend(slow.texts());
    let all: Vec<String> = (0..sent).map(|n| n.to_string()).collect();
    assert_eq!(got, all);
    assert_eq!(fast.texts(), all);
    assert_eq!(local.texts(), all);
}

#[test]
fn a_slow_subscriber_on_the_publishers_own_node_pauses_it_too() {
    let mut net = Net::new(1, &[channel("a", &[0], &[0])]);
    let inbox = Inbox::with_room(10);
    let id = net.subscribe(0, only("a"), &inbox);
    let answer = net.publish(0, "a", texts(0..8));
    assert!(!answer.is_there());
    assert_eq!(inbox.take().len(), 5);
    net.command(0, Command::Drained(id));
    assert_eq!(answer.report().published, 8);
    assert_eq!(inbox.take().len(), 3);
}

#[test]
fn a_slow_subscriber_that_leaves_holds_nobody_up() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let (slow, other) = (Inbox::with_room(4), Inbox::with_room(9_999));
    let id = net.subscribe(1, only("a"), &slow);
    net.subscribe(1, only("a"), &other);
    net.say(0, "a", &["1", "2"]);
    let waiting = net.publish(0, "a", texts(3..6));
    net.settle();
    assert!(!waiting.is_there());
    net.command(1, Command::Unsubscribe(id));
    net.settle();
    assert_eq!(waiting.report().published, 3);
    assert_eq!(other.texts(), ["1", "2", "3", "4", "5"]);
}

#[test]
fn a_subscriber_without_room_loses_unreliable_events_and_that_is_counted() {
    let unreliable = ChannelConfig {
        reliable: false,
        ..channel("a", &[0], &[1])
    };
    let mut net = Net::new(2, &[unreliable]);
    let inbox = Inbox::with_room(8);
    let id = net.subscribe(1, only("a"), &inbox);
    assert_eq!(net.publish(0, "a", texts(0..10)).report().published, 10);
    net.settle();
    assert_eq!(net.count(1, Reason::SubscriberFull), 2);
    assert_eq!(net.sides[1].service.entries[0].counters.dropped, 2);
    inbox.take();
    net.command(1, Command::Drained(id));
    net.say(0, "a", &["after"]);
    let after = inbox.take();
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].sequence, 11, "the gap shows what was lost");
}
