//! Subscribing: who gets what, who is refused, and sessions that come and go.

use super::*;
use crate::channel::service::OUTBOX_MAX;

#[test]
fn a_prefix_gets_what_it_may_have_and_nothing_beside_it() {
    let all = [
        channel("s/1", &[0], &[1]),
        channel("s/2/x", &[0], &[1]),
        channel("s/secret", &[0], &[]),
        channel("s2", &[0], &[1]),
    ];
    let mut net = Net::new(2, &all);
    let inbox = Inbox::with_room(100);
    net.subscribe(1, within("s"), &inbox);
    for to in ["s/1", "s/2/x", "s/secret", "s2"] {
        net.say(0, to, &[to]);
    }
    assert_eq!(inbox.texts(), ["s/1", "s/2/x"]);
    assert_eq!((net.roster(0, "s/secret"), net.roster(0, "s2")), (0, 0));
}

#[test]
fn a_publisher_refuses_subscribers_that_its_own_configuration_does_not_know() {
    for (at_0, state) in [
        (vec![channel("x", &[0], &[1])], "unknown_channel"),
        (vec![channel("a", &[0], &[])], "not_authorised"),
        (vec![channel("a", &[], &[1])], "not_published"),
    ] {
        let mut net = Net::with(&[at_0, vec![channel("a", &[0], &[1])]]);
        net.subscribe(1, only("a"), &Inbox::with_room(1));
        assert_eq!(net.status(1).subscriptions[0].state, state);
        assert_eq!(net.count(0, Reason::SubscribeRefused), 1);
    }
}

/// What went there would be dropped on the way, and a reliable channel wait for it.
#[test]
fn a_publisher_refuses_subscribers_in_subnets_that_its_channel_does_not_go_to() {
    let (one, below) = (Subnet(0x0100_0000), Subnet(0x0102_0000));
    for (visibility, own, theirs, is_granted) in [
        (Visibility::SubnetLocal, one, one, true),
        (Visibility::SubnetLocal, below, one, false),
        (Visibility::ParentVisible, below, one, true),
        (Visibility::ParentVisible, one, below, false),
        (Visibility::Exported, one, Subnet(0), false),
        (Visibility::Exported, one, below, true),
        (Visibility::Global, one, Subnet(0), true),
    ] {
        let configured = ChannelConfig {
            visibility,
            export_to: [below.with_descendants()].into(),
            ..channel("a", &[0], &[1])
        };
        let mut net = Net::new(2, &[configured]);
        net.sides[0].service.subnets = Subnets {
            own,
            peers: [(id(1), theirs)].into(),
            ..Subnets::default()
        };
        net.subscribe(1, only("a"), &Inbox::with_room(1));
        let what = format!("{visibility:?} from {own:?} to {theirs:?}");
        assert_eq!(net.roster(0, "a"), usize::from(is_granted), "{what}");
        let refused = net.count(0, Reason::SubscribeSubnet);
        assert_eq!(refused, u64::from(!is_granted), "{what}");
    }
}

/// Both have channel `good`, so that a subscription to all puts 1 on 0's roster of the other too.
#[test]
fn a_subscriber_refuses_streams_that_its_own_configuration_does_not_know() {
    let at_0 = channel("all/odd", &[0], &[1]);
    let salted = ChannelConfig {
        salt: 7,
        hash: name("all/odd").hash(7),
        ..at_0.clone()
    };
    let unreliable = ChannelConfig {
        mode: Mode::Unreliable,
        ..at_0.clone()
    };
    for (at_1, reason) in [
        (None, Reason::StreamUnknownChannel),
        (Some(salted), Reason::StreamSalt),
        (Some(unreliable), Reason::StreamMode),
        (Some(channel("all/odd", &[], &[1])), Reason::StreamPublisher),
        (
            Some(channel("all/odd", &[0], &[])),
            Reason::StreamSubscriber,
        ),
    ] {
        let good = channel("all/good", &[0], &[1]);
        let of_1 = [good.clone()].into_iter().chain(at_1).collect();
        let mut net = Net::with(&[vec![good, at_0.clone()], of_1]);
        let inbox = Inbox::with_room(10);
        net.subscribe(1, within("all"), &inbox);
        net.say(0, "all/odd", &["odd"]);
        assert_eq!(net.count(1, reason), 1, "{reason:?}");
        assert_eq!(net.count(0, Reason::PeerRefused), 1, "{reason:?}");
        assert_eq!(net.roster(0, "all/odd"), 0);
        net.say(0, "all/good", &["good"]);
        assert_eq!(inbox.texts(), ["good"]);
    }
}

#[test]
fn the_roster_forgets_who_unsubscribes_when_nothing_else_keeps_it_there() {
    let mut net = Net::new(2, &[channel("a/b", &[0], &[1])]);
    let inboxes = [Inbox::with_room(10), Inbox::with_room(10)];
    let first = net.subscribe(1, only("a/b"), &inboxes[0]);
    let second = net.subscribe(1, within("a"), &inboxes[1]);
    net.say(0, "a/b", &["both"]);
    net.command(1, Command::Unsubscribe(first));
    net.settle();
    assert_eq!(net.roster(0, "a/b"), 1);
    net.say(0, "a/b", &["second"]);
    net.command(1, Command::Unsubscribe(second));
    net.settle();
    assert_eq!(net.roster(0, "a/b"), 0);
    assert_eq!(net.say(0, "a/b", &["nobody"]).subscribers, 0);
    assert_eq!(inboxes[0].texts(), ["both"]);
    assert_eq!(inboxes[1].texts(), ["both", "second"]);
    net.subscribe(1, only("a/b"), &inboxes[0]);
    net.say(0, "a/b", &["again"]);
    assert_eq!(inboxes[0].texts(), ["again"]);
}

#[test]
fn a_subscriber_that_is_gone_is_noticed_with_the_next_event() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    net.subscribe(1, only("a"), &Inbox::with_room(10));
    net.say(0, "a", &["x"]);
    assert!(net.sides[1].service.subscribers.is_empty());
    assert_eq!(net.roster(0, "a"), 0);
}

#[test]
fn a_closed_session_is_reaped_and_subscribed_again_when_it_comes_back() {
    let channels = [channel("a", &[0], &[1])];
    let mut net = Net::new(2, &channels);
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    // The publisher starts anew; it connects, and the subscription is told to it again.
    net.restart(0, &channels);
    net.pass(2_000);
    assert_eq!(net.roster(0, "a"), 1);
    net.say(0, "a", &["new"]);
    assert_eq!(inbox.texts(), ["new"]);
    // The subscriber closes: the roster is empty at once.
    let Side { node, service } = &mut net.sides[1];
    service.stop(net.now_ns, node);
    node.close(net.now_ns, id(0));
    net.settle();
    assert_eq!(net.roster(0, "a"), 0);
    assert!(net.sides[0].service.sessions.is_empty());
}

#[test]
fn a_subscription_that_is_not_answered_is_sent_again() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    net.pass(2_000);
    let inbox = Inbox::with_room(10);
    net.try_subscribe(1, only("a"), &inbox).unwrap();
    net.settle_but(&[0]);
    assert_eq!(net.status(1).subscriptions[0].state, "asked");
    assert_eq!(
        net.sides[1].service.poll_timeout(),
        Some(net.now_ns + ASK_AGAIN_NS)
    );
    net.now_ns += ASK_AGAIN_NS;
    let Side { node, service } = &mut net.sides[1];
    service.handle_timeout(net.now_ns, node);
    net.settle();
    assert_eq!(net.status(1).subscriptions[0].state, "granted");
    net.say(0, "a", &["once"]);
    assert_eq!(inbox.texts(), ["once"]);
}

#[test]
fn nonsense_and_unasked_answers_change_nothing_but_a_counter() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    let nonsense: [&[u8]; 4] = [b"", b"\x02", b"\x01\x09", &[1; 300]];
    for bytes in nonsense {
        net.sides[1]
            .node
            .send_control(net.now_ns, id(0), bytes)
            .unwrap();
    }
    let answer = crate::channel::message::Answer::NotAuthorised;
    let unasked = [
        Message::Ack {
            request: 999,
            answer,
        },
        Message::Hold(name("nowhere")),
        Message::Release(name("a")),
        Message::Unsubscribe {
            request: 1,
            pattern: within("a"),
        },
    ];
    for message in unasked {
        let bytes = message.encode();
        net.sides[1]
            .node
            .send_control(net.now_ns, id(0), &bytes)
            .unwrap();
    }
    net.settle();
    assert_eq!(net.count(0, Reason::ControlMalformed), 4);
    net.say(0, "a", &["still"]);
    assert_eq!(inbox.texts(), ["still"]);
}

#[test]
fn a_peer_that_refused_a_stream_may_ask_for_the_channel_again() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    let subscribe = Message::Subscribe {
        request: 77,
        pattern: only("a"),
    };
    let ask = |net: &mut Net| {
        let bytes = subscribe.encode();
        let node = &mut net.sides[1].node;
        node.send_control(net.now_ns, id(0), &bytes).unwrap();
        net.settle();
    };
    net.say(0, "a", &["first"]);
    let stream = net.sides[0].service.entries[0].roster[&id(1)].stream;
    let node = &mut net.sides[1].node;
    node.refuse_stream(net.now_ns, id(0), stream.unwrap())
        .unwrap();
    net.settle();
    assert_eq!(net.roster(0, "a"), 0);
    ask(&mut net);
    ask(&mut net);
    assert_eq!(net.roster(0, "a"), 1);
    net.say(0, "a", &["again"]);
    assert_eq!(inbox.texts(), ["first", "again"]);
    // It asked three times for one and the same, so once is enough to leave.
    let subscriber = *net.sides[1].service.subscribers.keys().next().unwrap();
    net.command(1, Command::Unsubscribe(subscriber));
    net.settle();
    assert_eq!(net.roster(0, "a"), 0);
}

#[test]
fn an_answer_that_comes_after_the_subscription_was_repeated_counts() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    net.pass(2_000);
    net.try_subscribe(1, only("a"), &Inbox::with_room(10))
        .unwrap();
    let request = net.sides[1].service.wanted[&only("a")].asked[&id(0)].request;
    net.now_ns += ASK_AGAIN_NS;
    let Side { node, service } = &mut net.sides[1];
    service.handle_timeout(net.now_ns, node);
    let answer = crate::channel::message::Answer::Granted(1);
    let ack = Message::Ack { request, answer }.encode();
    let event = virga_transport::Event::Control {
        peer: id(0),
        message: ack.into(),
    };
    service.on_event(net.now_ns, node, event);
    assert_eq!(net.status(1).subscriptions[0].state, "granted");
}

#[test]
fn nobody_is_called_for_what_nobody_wants_any_more() {
    let channels = [channel("a", &[0], &[1]), channel("b", &[1], &[2])];
    let mut net = Net::new(3, &channels);
    let subscribe = |net: &mut Net| {
        let inbox = Inbox::with_room(10);
        net.try_subscribe(1, only("a"), &inbox).unwrap()
    };
    // Node 0 hears nothing, and is called again and again.
    let calls = |net: &mut Net, seconds: u64| {
        let before = net.sides[1].node.counters().initiations_sent;
        for _ in 0..seconds * 10 {
            net.now_ns += 100 * MS;
            let Side { node, service } = &mut net.sides[1];
            node.handle_timeout(net.now_ns);
            let mut run = Vec::new();
            while node.poll_transmit(net.now_ns, &mut run).is_some() {
                run.clear();
            }
            while let Some(event) = node.poll() {
                service.on_event(net.now_ns, node, event);
            }
        }
        net.sides[1].node.counters().initiations_sent - before
    };
    let first = subscribe(&mut net);
    let second = subscribe(&mut net);
    assert!(calls(&mut net, 100) > 5);
    net.command(1, Command::Unsubscribe(first));
    assert!(calls(&mut net, 100) > 1, "one subscriber is left");
    net.command(1, Command::Unsubscribe(second));
    assert_eq!(calls(&mut net, 100), 0);
    subscribe(&mut net);
    assert!(calls(&mut net, 100) > 5);
    // Whoever may subscribe here is called in any case.
    assert!(net.sides[1].service.needs(id(2)));
}

/// What a peer is told waits while the path to it is cut, and no more of it than there is room for.
#[test]
fn what_finds_no_room_on_the_way_to_a_peer_is_counted_and_a_subscription_is_asked_for_again() {
    let mut net = Net::new(2, &[channel("s/1", &[0], &[1])]);
    let inbox = Inbox::with_room(100);
    net.subscribe(1, only("s/1"), &inbox);
    net.is_cut = true;
    let full = |net: &Net| net.count(1, Reason::ControlFull);
    let turns = (0..20 * OUTBOX_MAX).take_while(|_| {
        let turn = net.try_subscribe(1, within("s"), &inbox).unwrap();
        net.command(1, Command::Unsubscribe(turn));
        full(&net) == 0
    });
    let turns = turns.count();
    assert!(turns > OUTBOX_MAX / 4, "{turns} turns filled it");
    assert_ne!(full(&net), 0);
    let waits = net.try_subscribe(1, within("s"), &inbox).unwrap();
    net.is_cut = false;
    net.pass(20_000);
    assert_eq!(net.roster(0, "s/1"), 1);
    net.command(1, Command::Unsubscribe(waits));
    net.say(0, "s/1", &["still there"]);
    assert_eq!(inbox.texts(), ["still there"]);
}
