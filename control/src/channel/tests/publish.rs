//! Publishing: every event once to everyone, refusals, and who waits for room.

use super::*;
use crate::channel::Signature;

#[test]
fn an_event_reaches_every_subscriber_once_with_its_proven_entity() {
    let mut net = Net::new(3, &[channel("a/b", &[0], &[0, 1, 2])]);
    let inboxes: [Inbox; 4] = std::array::from_fn(|_| Inbox::with_room(100));
    net.subscribe(0, only("a/b"), &inboxes[0]);
    net.subscribe(1, only("a/b"), &inboxes[1]);
    net.subscribe(1, within("a"), &inboxes[2]);
    net.subscribe(2, within("a"), &inboxes[3]);
    let report = net.say(0, "a/b", &["x", "y"]);
    assert_eq!((report.published, report.subscribers), (2, 3));
    for inbox in &inboxes {
        let got = inbox.take();
        let seen: Vec<_> = got.iter().map(|d| (d.sequence, &d.payload[..])).collect();
        assert_eq!(seen, [(1, &b"x"[..]), (2, b"y")]);
        assert!(
            got.iter()
                .all(|d| d.entity == entity(0) && d.channel == name("a/b"))
        );
    }
    assert_eq!(net.sides[0].service.entries[0].counters.sent, 4);
}

#[test]
fn publishing_and_subscribing_need_a_channel_and_a_right_to_it() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let inbox = Inbox::with_room(1);
    let unknown = net.publish(0, "b", texts(0..1)).result();
    assert_eq!(unknown, Err(PublishError::UnknownChannel(name("b"))));
    let refused = net.publish(1, "a", texts(0..1)).result();
    assert_eq!(refused, Err(PublishError::NotAuthorised(name("a"))));
    let unknown = net.try_subscribe(1, only("b"), &inbox);
    assert_eq!(unknown, Err(SubscribeError::UnknownChannel(only("b"))));
    let refused = net.try_subscribe(0, within("a"), &inbox);
    assert_eq!(refused, Err(SubscribeError::NotAuthorised(within("a"))));
    assert!(
        net.publish(0, "a", Vec::new()).report()
            == PublishReport {
                event_bytes_max: MESSAGE_BYTES_MAX,
                ..PublishReport::default()
            }
    );
}

#[test]
fn a_full_stream_makes_the_publisher_wait_until_there_is_room() {
    for mode in [Mode::Unreliable, Mode::Ordered, Mode::Unordered] {
        let config = ChannelConfig {
            mode,
            ..channel("a", &[0], &[1])
        };
        let mut net = Net::new(2, &[config]);
        let inbox = Inbox::with_room(1_000_000);
        net.subscribe(1, only("a"), &inbox);
        let event = Bytes::from(vec![1; 1_024]);
        let count = STREAM_QUEUE_BYTES / event.len() + 10;
        let first = net.publish(0, "a", vec![event.clone(); count]);
        let second = net.publish(0, "a", texts(0..1));
        assert!(!first.is_there() && !second.is_there());
        assert_eq!(net.status(0).channels[0].batches_waiting, 2);
        net.pass(2_000);
        assert_eq!(first.report().published, count as u64);
        assert_eq!(second.report().published, 1);
        let got = inbox.take();
        assert_eq!(got.len(), count + 1);
        assert_eq!(got[count].payload, &b"0"[..], "in order");
    }
}

#[test]
fn an_unreliable_event_waits_for_nobody_as_long_as_someone_takes_it() {
    let unreliable = ChannelConfig {
        mode: Mode::Unreliable,
        ..channel("a", &[0], &[0, 1])
    };
    let mut net = Net::new(2, &[unreliable]);
    let (remote, local) = (Inbox::with_room(99_999), Inbox::with_room(99_999));
    net.subscribe(1, only("a"), &remote);
    net.subscribe(0, only("a"), &local);
    let event = Bytes::from(vec![1; 1_024]);
    let count = STREAM_QUEUE_BYTES / event.len() + 10;
    let report = net.publish(0, "a", vec![event; count]).report();
    assert_eq!(report.published, count as u64);
    assert_eq!(local.take().len(), count);
    let lost = net.count(0, Reason::PeerFull);
    assert!(lost > 0);
    net.pass(2_000);
    assert_eq!(remote.take().len() as u64, count as u64 - lost);
}

#[test]
fn too_large_an_event_is_refused_alone() {
    let unreliable = ChannelConfig {
        mode: Mode::Unreliable,
        ..channel("a", &[0], &[1])
    };
    let mut net = Net::new(2, &[unreliable]);
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    let large = |bytes: usize| Bytes::from(vec![0; bytes]);
    let events = vec![
        large(MESSAGE_BYTES_MAX + 1),
        large(MESSAGE_BYTES_MAX),
        large(0),
    ];
    let answer = net.publish(0, "a", events);
    net.settle();
    let report = answer.report();
    assert_eq!((report.published, report.refused), (2, 1));
    assert_eq!(report.event_bytes_max, MESSAGE_BYTES_MAX);
    assert_eq!(inbox.take().len(), 2);
    assert_eq!(net.count(0, Reason::TooLarge), 1);
}

#[test]
fn a_stopping_node_answers_every_waiting_publisher() {
    let mut net = Net::new(1, &[channel("a", &[0], &[0])]);
    net.subscribe(0, only("a"), &Inbox::with_room(2));
    let inbox = Inbox::with_room(2);
    net.subscribe(0, only("a"), &inbox);
    let waiting = net.publish(0, "a", texts(0..9));
    assert!(!waiting.is_there());
    let Side { node, service } = &mut net.sides[0];
    service.stop(net.now_ns, node);
    assert_eq!(waiting.result(), Err(PublishError::Stopping));
}

/// 1,030 channels to one node, whose session carries 1,024 streams.
#[test]
fn more_channels_than_streams_lose_no_reliable_event() {
    for mode in [Mode::Unreliable, Mode::Ordered, Mode::Unordered] {
        let count = NodeLimits::default().streams_max + 6;
        let named = |n: usize| format!("c/{n}");
        let channels: Vec<ChannelConfig> = (0..count)
            .map(|n| ChannelConfig {
                mode,
                ..channel(&named(n), &[0], &[1])
            })
            .collect();
        let mut net = Net::new(2, &channels);
        let inbox = Inbox::with_room(9_999);
        let ids: Vec<SubscriberId> = (0..count)
            .map(|n| net.subscribe(1, only(&named(n)), &inbox))
            .collect();
        net.pass(100);
        let answers: Vec<Answer> = (0..count)
            .map(|n| net.publish(0, &named(n), texts(n..n + 1)))
            .collect();
        net.pass(100);
        assert_eq!(inbox.take().len(), count - 6);
        if !mode.is_reliable() {
            assert_eq!(net.count(0, Reason::StreamsFull), 6);
            let reports = answers.iter().map(Answer::report);
            let lost: u64 = reports.map(|r| r.lost).sum();
            assert_eq!(lost, 6);
            continue;
        }
        assert!(answers[..count - 6].iter().all(Answer::is_there));
        assert!(!answers[count - 6..].iter().any(Answer::is_there));
        for &id in &ids[..6] {
            net.command(1, Command::Unsubscribe(id));
        }
        net.pass(1_000);
        assert_eq!(inbox.take().len(), 6);
        assert_eq!(net.count(0, Reason::StreamsFull), 0);
        for answer in &answers {
            let report = answer.report();
            assert_eq!(
                (report.published, report.subscribers, report.lost),
                (1, 1, 0)
            );
        }
    }
}

#[test]
fn a_publisher_is_told_what_was_lost_and_who_took_the_last_event() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    net.subscribe(1, only("a"), &Inbox::with_room(9));
    // The session ends, and the service has not heard of it yet.
    net.sides[0].node.close(net.now_ns, id(1));
    let report = net.publish(0, "a", texts(0..3)).report();
    assert_eq!(
        (report.published, report.lost, report.subscribers),
        (3, 3, 0)
    );
    assert_eq!(net.count(0, Reason::PeerGone), 3);
    let unreliable = ChannelConfig {
        mode: Mode::Unreliable,
        ..channel("a", &[0], &[0])
    };
    let mut net = Net::new(1, &[unreliable]);
    let inbox = Inbox::with_room(2);
    net.subscribe(0, only("a"), &inbox);
    let report = net.publish(0, "a", texts(0..5)).report();
    assert_eq!(
        (report.published, report.lost, report.subscribers),
        (5, 3, 0)
    );
}

#[test]
fn a_stopping_node_publishes_nothing_more() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    net.subscribe(1, only("a"), &Inbox::with_room(9));
    let Side { node, service } = &mut net.sides[0];
    service.stop(net.now_ns, node);
    let late = net.publish(0, "a", texts(0..3));
    assert_eq!(late.result(), Err(PublishError::Stopping));
    assert_eq!(net.status(0).channels[0].published, 0);
}

/// What waits for a subscriber that does not read is given up in time, and its publisher goes on.
#[test]
fn events_with_a_deadline_are_given_up_and_the_publisher_is_told() {
    for mode in [Mode::Unreliable, Mode::Ordered, Mode::Unordered] {
        let config = ChannelConfig {
            mode,
            ..channel("a", &[0], &[1])
        };
        let mut net = Net::new(2, &[config]);
        let inbox = Inbox::with_room(1_000_000);
        net.subscribe(1, only("a"), &inbox);
        net.say(0, "a", &["first"]);
        let large = Bytes::from(vec![1; MESSAGE_BYTES_MAX]);
        net.is_cut = true;
        let soon = Some(Duration::from_millis(50));
        // The first ones find room in the stream; the others never do.
        let hasty = net.publish_within(0, "a", vec![large.clone(); 5], soon);
        net.pass(20);
        assert!(!hasty.is_there(), "{mode:?}");
        net.pass(200);
        let report = hasty.report();
        assert_eq!(report.published + report.expired, 5, "{mode:?}");
        assert!(report.expired >= 2, "{mode:?}: {report:?}");
        // Nor do those behind a publisher that waits for ever.
        let patient = net.publish(0, "a", vec![large.clone(); 4]);
        let hasty = net.publish_within(0, "a", vec![large; 5], soon);
        net.pass(200);
        assert_eq!(hasty.report().expired, 5, "{mode:?}");
        assert!(!patient.is_there(), "{mode:?}");
        assert!(net.count(0, Reason::Expired) >= 7);
        net.is_cut = false;
        net.pass(10_000);
        assert_eq!(patient.report().expired, 0, "{mode:?}");
        net.say(0, "a", &["last"]);
        net.pass(1_000);
        assert!(inbox.take().iter().any(|d| d.payload == "last"), "{mode:?}");
    }
}

/// A batch of events by an entity, as it goes out on a channel.
fn signed(number: u8, channel: &str, events: &[&str]) -> Bytes {
    let key = ed25519_dalek::SigningKey::from_bytes(&keys(number).entity_key);
    let channel = virga_state::LogName::parse(channel).unwrap();
    let payloads: Vec<&[u8]> = events.iter().map(|event| event.as_bytes()).collect();
    let mut feed = virga_state::feed::FeedEnd::new(channel, entity(number));
    let batch = feed
        .sign(&key, Vec::new(), payloads.iter().copied())
        .unwrap();
    virga_state::bundle::encode(&batch, &payloads).into()
}

#[test]
fn a_signed_batch_is_delivered_event_by_event_with_its_signature() {
    let config = ChannelConfig {
        mode: Mode::Signed,
        ..channel("a", &[0], &[0, 1])
    };
    let mut net = Net::new(2, &[config]);
    let inboxes: [Inbox; 2] = std::array::from_fn(|_| Inbox::with_room(100));
    net.subscribe(0, only("a"), &inboxes[0]);
    net.subscribe(1, only("a"), &inboxes[1]);
    let message = signed(0, "a", &["x", "y"]);
    let report = net.publish(0, "a", vec![message.clone()]);
    net.settle();
    let report = report.report();
    assert_eq!((report.published, report.subscribers), (2, 2));
    for inbox in &inboxes {
        let got = inbox.take();
        let seen: Vec<_> = got.iter().map(|d| (d.sequence, &d.payload[..])).collect();
        assert_eq!(seen, [(1, &b"x"[..]), (2, b"y")]);
        let signatures: Vec<_> = got.iter().map(|d| d.signature.clone()).collect();
        let here = Signature::Here(message.clone());
        assert_eq!(signatures, [Signature::Later, here]);
    }
    let counters = net.sides[1].service.entries[0].counters;
    assert_eq!((counters.received, counters.delivered), (2, 2));
}

#[test]
fn what_is_no_batch_of_the_sessions_entity_on_the_channel_is_dropped() {
    let config = ChannelConfig {
        mode: Mode::Signed,
        ..channel("a", &[0], &[1])
    };
    let mut net = Net::new(2, &[config]);
    let inbox = Inbox::with_room(100);
    net.subscribe(1, only("a"), &inbox);
    let others = signed(1, "a", &["x"]);
    let elsewhere = signed(0, "b", &["x"]);
    for message in [Bytes::from_static(b"x"), others, elsewhere] {
        let _report = net.publish(0, "a", vec![message]);
        net.settle();
    }
    assert!(inbox.take().is_empty());
    let service = &net.sides[1].service;
    assert_eq!(service.reasons.count(Reason::Unsigned), 3);
    assert_eq!(service.entries[0].counters.dropped, 3);
}
