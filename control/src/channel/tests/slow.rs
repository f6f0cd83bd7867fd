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
    assert_eq!(net.status(0).channels[0].remote_holding, 1);
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
        mode: Mode::Unreliable,
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

#[test]
fn a_subscriber_that_reads_nothing_for_too_long_is_ended_and_the_others_go_on() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let (stuck, other) = (Inbox::with_room(4), Inbox::with_room(9_999));
    let id = net.subscribe(1, only("a"), &stuck);
    net.subscribe(1, only("a"), &other);
    assert_eq!(net.status(1).subscribers[0].slow_ms, None);
    net.say(0, "a", &["0", "1"]);
    let waiting = net.publish(0, "a", texts(2..6));
    net.pass(1_500);
    assert!(!waiting.is_there());
    let status = net.status(1);
    assert_eq!(status.channels[0].paused_ms, Some(1_500));
    let slow = &status.subscribers[0];
    assert_eq!(
        (slow.id, slow.kind.as_str(), slow.name.as_str()),
        (id.0, "channel", "a")
    );
    assert_eq!((slow.slow_ms, slow.unread_ms), (Some(1_500), Some(1_500)));
    assert_eq!(
        (slow.queued_bytes, net.count(1, Reason::SubscriberStalled)),
        (2, 0)
    );
    assert_eq!(status.subscribers[1].unread_ms, None);

    net.pass(1_000);
    assert_eq!(waiting.report().published, 4);
    assert_eq!(net.count(1, Reason::SubscriberStalled), 1);
    let why = stuck.end.lock().unwrap().take().unwrap();
    assert!(
        why.starts_with("nothing was read for 2 s, and the reliable channel a"),
        "{why}"
    );
    assert_eq!(stuck.texts(), ["0", "1"], "what was queued is kept for it");
    assert_eq!(other.texts(), ["0", "1", "2", "3", "4", "5"]);
    let status = net.status(1);
    assert_eq!(
        (status.subscribers.len(), status.channels[0].paused_ms),
        (1, None)
    );
    assert_eq!(net.sides[1].service.look_at_slow_ns, None);
}

#[test]
fn a_subscriber_that_reads_slowly_is_waited_for() {
    let mut net = Net::new(1, &[channel("a", &[0], &[0])]);
    let inbox = Inbox::with_room(10);
    let id = net.subscribe(0, only("a"), &inbox);
    let answer = net.publish(0, "a", texts(0..8));
    for _ in 0..4 {
        net.pass(1_500);
        // One event is read, which is not enough to go on.
        let first = inbox.events.lock().unwrap().remove(0);
        assert!(first.payload.len() == 1);
        inbox.taken_events.fetch_add(1, Ordering::Relaxed);
        assert!(!answer.is_there());
        assert_eq!(
            net.status(0).subscribers[0]
                .slow_ms
                .map(|ms| ms / 1_500 > 0),
            Some(true)
        );
    }
    inbox.take();
    net.command(0, Command::Drained(id));
    assert_eq!(answer.report().published, 8);
    assert_eq!(net.count(0, Reason::SubscriberStalled), 0);
}

#[test]
fn a_subscriber_that_filled_up_again_before_its_word_arrived_is_still_slow() {
    let mut net = Net::new(1, &[channel("a", &[0], &[0])]);
    let inbox = Inbox::with_room(10);
    let id = net.subscribe(0, only("a"), &inbox);
    let answer = net.publish(0, "a", texts(0..8));
    net.command(0, Command::Drained(id));
    assert!(!answer.is_there());
    inbox.take();
    net.command(0, Command::Drained(id));
    assert_eq!(answer.report().published, 8);
}

#[test]
fn an_unreliable_channel_waits_for_nobody_and_ends_nobody() {
    let unreliable = ChannelConfig {
        mode: Mode::Unreliable,
        ..channel("a", &[0], &[0])
    };
    let mut net = Net::new(1, &[unreliable]);
    let inbox = Inbox::with_room(10);
    net.subscribe(0, only("a"), &inbox);
    assert_eq!(net.publish(0, "a", texts(0..8)).report().published, 8);
    net.pass(5_000);
    let status = net.status(0);
    assert_eq!(
        (status.subscribers.len(), status.channels[0].paused_ms),
        (1, None)
    );
    assert_eq!(status.subscribers[0].unread_ms, Some(5_000));
}
