//! Three real nodes (a -- router -- b) over real sockets, forwarding in user space: no root needed.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

mod admissions;
mod ancestors;
mod api;
mod blocking;
mod bundle;
mod capabilities;
mod capture;
mod chains;
mod declared;
mod discovery;
mod driver;
mod drops;
mod examples;
mod fallback;
mod fan_out;
mod flow;
mod folds;
mod gateways;
mod handshakes;
mod hostile;
mod identity;
mod kept;
mod liar;
mod lines;
mod links;
mod metrics;
mod named;
mod persisted;
mod publishing;
mod reading;
mod receiver;
mod reload;
mod replicas;
mod revocations;
mod rights;
mod roaming;
mod routes;
mod scopes;
mod stage;
mod stopping;
mod subnets;
mod subscribing;
mod top;
mod town;
mod tree;
mod workers;

use bytes::Bytes;
use stage::{Channel, Program, RELIABLE, Stage, eventually, in_time};
use std::{
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use virga::{
    api::status::LinkState,
    mesh::{MeshError, Subscription, TryPublishError},
};

/// The payloads of the next `count` deliveries.
async fn payloads(subscription: &mut Subscription, count: usize) -> Vec<Bytes> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let what = format!("delivery {} of {count}", all.len());
        let delivery = in_time(&what, subscription.next_delivery()).await;
        all.push(delivery.unwrap().unwrap().payload);
    }
    all
}

fn numbered(count: u32) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("event {n}").into()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn reliable_events_cross_the_router_whole_and_in_order() {
    let stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;

    // Read while they are published: a subscriber that does not read stops its publisher.
    let reader = tokio::spawn(async move { (payloads(&mut events, 20_000).await, events) });
    let sent = numbered(20_000);
    let publisher = stage.publisher(RELIABLE.name).await;
    for event in &sent {
        publisher.publish(event).await.unwrap();
    }
    let published = in_time("publishing", publisher.finish()).await.unwrap();
    assert_eq!((published.published, published.refused), (20_000, 0));
    assert_eq!(published.subscribers, 1);
    let (arrived, _events) = reader.await.unwrap();
    assert!(arrived == sent, "out of order");

    let router = stage.status("router").await;
    assert!(router.userspace.outcomes["redirect"].packets > 0);
    assert_eq!(router.forwarding.mode, "userspace");
    assert_eq!(router.forwarding.why, "asked for by the configuration");
    let a = stage.status("a").await;
    assert_eq!(a.channels[0].published, 20_000);
    let mut sessions = a.sessions.iter();
    assert!(sessions.any(|s| s.name == "b" && s.state == "established"));
    let b = stage.status("b").await;
    assert_eq!(b.channels[0].delivered, 20_000);
    assert_eq!(b.subscriptions[0].state, "granted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_slows_the_publisher_and_loses_nothing() {
    let stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    let event = Bytes::from(vec![7; 16 * 1024]);
    // Nobody reads: every queue on the way fills up, until the publisher gives an event back and
    // b has asked a for a pause.
    let mut sent = 0;
    eventually("back-pressure", async || {
        while publisher.try_publish(event.clone()).is_ok() {
            sent += 1;
        }
        let held = stage.status("a").await.channels[0].remote_holding > 0;
        let full = match publisher.try_publish(event.clone()) {
            Err(TryPublishError::Full(given_back)) => {
                assert_eq!(given_back, event);
                true
            }
            _ => false,
        };
        if !full {
            sent += 1;
        }
        (held && full).then_some(())
    })
    .await;
    let all = payloads(&mut events, sent).await;
    assert!(all.iter().all(|payload| *payload == event));
    let published = in_time("publishing", publisher.finish()).await.unwrap();
    assert_eq!(published.published, u64::try_from(sent).unwrap());
    assert_eq!(stage.status("b").await.channels[0].dropped, 0);
}

/// Stops a subscribing process (SIGSTOP): the channel pauses for all, which `status` shows, until the
/// node ends that subscription.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_subscriber_is_ended_in_time_and_the_others_go_on() {
    let channel = Channel {
        hold_max_s: 10,
        ..RELIABLE
    };
    let stage = Stage::running(std::slice::from_ref(&channel)).await;
    let mut stopped = Program::start(&mut stage.node("b").command(&["sub", channel.name, "--raw"]));
    stage.subscribers(channel.name, 1).await;
    stopped.signal("-STOP");
    let mut events = stage.mesh("b").await.subscribe(channel.name).await.unwrap();

    let event = Bytes::from(vec![7; 16 * 1024]);
    let sent = 1_000;
    let reader = tokio::spawn(async move { (payloads(&mut events, sent).await, events) });
    let publisher = stage.publisher(channel.name).await;
    let publishing = tokio::spawn(async move {
        for _ in 0..sent {
            publisher.publish(&event).await.unwrap();
        }
        publisher.finish().await.unwrap()
    });
    let status = eventually("the pause shows", async || {
        let status = stage.status("b").await;
        status.channels[0]
            .paused_ms
            .is_some_and(|ms| ms > 500)
            .then_some(status)
    })
    .await;
    let slow = &status.subscribers[0];
    assert!(
        slow.queued_bytes > 1024 * 1024 && slow.unread_ms > Some(500),
        "{slow:?}"
    );
    assert_eq!(status.subscribers[1].slow_ms, None);
    let human = stage.node("b").run(&["status"]);
    let human = String::from_utf8(human.stdout).unwrap();
    assert!(
        human.contains("by a program here that does not keep up"),
        "{human}"
    );
    assert!(
        human.contains("slow subscriber 1 of channel test/reliable: "),
        "{human}"
    );

    assert_eq!(
        in_time("publishing", publishing).await.unwrap().published,
        sent as u64
    );
    let (read, _events) = in_time("reading", reader).await.unwrap();
    assert_eq!(read.len(), sent);
    let status = stage.status("b").await;
    assert_eq!(status.channel_reasons["subscriber_stalled"], 1);
    assert_eq!(
        (
            status.channels[0].local_subscribers,
            status.channels[0].paused_ms
        ),
        (1, None)
    );

    // What had been queued for it comes before the reason.
    stopped.signal("-CONT");
    let ended = in_time(
        "the end",
        tokio::task::spawn_blocking(move || stopped.wait()),
    );
    let (status, text, words) = ended.await.unwrap();
    assert!(!status.success());
    for say in [
        "the node ended the subscription: nothing was read for 10 s",
        "raise the channel's hold_max_s",
    ] {
        assert!(words.contains(say), "{words}");
    }
    assert!(!words.contains("no other node publishes"), "{words}");
    let log = stage.node("b").log();
    let line = "a local subscription was ended subscription=channel test/reliable why=";
    assert!(log.contains(line), "{log}");
    assert!(text.len() >= slow.queued_bytes / 2 && text.len() % (16 * 1024) == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_means_all_channels_below_it_that_one_may_have() {
    let channel = |name, subscribe| Channel {
        name,
        subscribe,
        ..RELIABLE
    };
    let channels = [
        channel("room/1/light", &["b"]),
        channel("room/2", &["b"]),
        channel("room/secret", &["router"]),
        channel("roomy", &["b"]),
    ];
    let stage = Stage::running(&channels).await;
    let mut events = stage
        .mesh("b")
        .await
        .subscribe_prefix("room")
        .await
        .unwrap();
    stage.subscribers("room/1/light", 1).await;
    stage.subscribers("room/2", 1).await;
    let a = stage.mesh("a").await;
    for name in ["roomy", "room/secret", "room/2", "room/1/light"] {
        a.publish(name, name.as_bytes()).await.unwrap();
    }
    let mut arrived = payloads(&mut events, 2).await;
    arrived.sort();
    assert_eq!(arrived, [&b"room/1/light"[..], b"room/2"]);
    stage.subscribers("roomy", 0).await;
    stage.subscribers("room/secret", 0).await;
    assert_eq!(stage.status("b").await.channels[2].received, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_right_is_refused_on_the_spot() {
    let stage = Stage::running(&[RELIABLE]).await;
    let code = |error| match error {
        MeshError::Refused { code, message } => (code, message),
        other => panic!("{other}"),
    };
    let b = stage.mesh("b").await;
    let (status, message) = code(b.publish(RELIABLE.name, b"x").await.unwrap_err());
    assert_eq!(status, 403);
    assert!(
        message.contains("may not publish on test/reliable"),
        "{message}"
    );
    let a = stage.mesh("a").await;
    assert_eq!(code(a.subscribe(RELIABLE.name).await.unwrap_err()).0, 403);
    assert_eq!(code(a.subscribe("test/other").await.unwrap_err()).0, 404);
    assert_eq!(
        code(a.publish("test/other", b"x").await.unwrap_err()).0,
        404
    );
    assert!(matches!(
        a.publish("/", b"x").await,
        Err(MeshError::Name(_))
    ));
    let output = stage.node("b").run(&["pub", RELIABLE.name, "--data", "x"]);
    assert!(!output.status.success());
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("may not publish"), "{words}");
}

/// b's file says that it may have what a's says it may not: a refuses, and both say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_is_refused_by_the_publisher_whatever_its_own_file_says() {
    let at_a = Channel {
        subscribe: &["router"],
        ..RELIABLE
    };
    let mut stage = Stage::new(&[RELIABLE]);
    stage.configure("a", &[at_a]);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let _events = stage
        .mesh("b")
        .await
        .subscribe(RELIABLE.name)
        .await
        .unwrap();
    eventually("a's refusal", async || {
        let status = stage.status("b").await;
        let answer = status
            .subscriptions
            .iter()
            .find(|s| s.state == "not_authorised");
        answer.map(|_| ())
    })
    .await;
    let status = stage.status("a").await;
    assert!(status.channel_reasons["subscribe_refused"] > 0);
    assert_eq!(status.channels[0].remote_subscribers, 0);
}

/// a's file says that it may publish what b's says it may not: b's guard lets none of it in, and
/// what a may publish still gets through.
#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_is_refused_by_the_subscriber_whatever_its_own_file_says() {
    let rogue = Channel {
        name: "test/rogue",
        ..RELIABLE
    };
    let at_b = Channel {
        publish: &["router"],
        ..rogue.clone()
    };
    let mut stage = Stage::new(&[RELIABLE, rogue.clone()]);
    stage.configure("b", &[RELIABLE, at_b]);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let mut events = stage
        .mesh("b")
        .await
        .subscribe_prefix("test")
        .await
        .unwrap();
    stage.subscribers(RELIABLE.name, 1).await;
    stage.subscribers(rogue.name, 1).await;
    let a = stage.mesh("a").await;
    a.publish(rogue.name, b"rogue").await.unwrap();
    eventually("b's drops", async || {
        let status = stage.status("b").await;
        (status.userspace.drops["unauthorised"].packets > 0).then_some(())
    })
    .await;
    a.publish(RELIABLE.name, b"right").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, [&b"right"[..]]);
    assert_eq!(stage.status("b").await.channels[1].received, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_end_nodes_come_back() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let a = stage.mesh("a").await;
    a.publish(RELIABLE.name, b"one").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, [&b"one"[..]]);

    // The subscriber: its subscription ends with it, a new one takes its place at the publisher.
    stage.kill("b");
    assert!(!matches!(
        in_time("the end", events.next_delivery()).await,
        Some(Ok(_))
    ));
    stage.start("b").await;
    let mut events = stage
        .mesh("b")
        .await
        .subscribe(RELIABLE.name)
        .await
        .unwrap();
    eventually("b's new subscription", async || {
        let status = stage.status("b").await;
        (status.subscriptions[0].state == "granted").then_some(())
    })
    .await;
    a.publish(RELIABLE.name, b"two").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, [&b"two"[..]]);

    // The publisher: the subscription stays, and is told again to the new process.
    stage.kill("a");
    stage.start("a").await;
    stage.subscribers(RELIABLE.name, 1).await;
    let a = stage.mesh("a").await;
    a.publish(RELIABLE.name, b"three").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, [&b"three"[..]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_node_cleanly_and_its_peers_know_at_once() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let socket = stage.node("b").socket();
    stage.signal("b", "-HUP");
    eventually("the answer to SIGHUP", async || {
        stage.node("b").log().contains("SIGHUP").then_some(())
    })
    .await;
    stage.status("b").await;
    let status = stage.terminate("b");
    assert!(status.success(), "{status}");
    assert!(!socket.exists());
    assert!(in_time("the end", events.next_delivery()).await.is_none());
    // The close frame, not a time-out, took b off the roster.
    stage.subscribers(RELIABLE.name, 0).await;
    let log = stage.node("b").log();
    assert!(log.contains("forwarding path"), "{log}");
    assert!(log.contains("node has stopped"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_owner_and_group_and_for_one_daemon() {
    let mut stage = Stage::new(&[RELIABLE]);
    stage.start("a").await;
    let node = stage.node("a");
    let mode = |path: &std::path::Path| {
        let metadata = std::fs::metadata(path).unwrap();
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!(mode(&node.socket()), 0o660);
    assert_eq!(mode(node.socket().parent().unwrap()), 0o750);
    let config = node.config();
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(["node", "run", "--config"])
        .arg(config)
        .output()
        .unwrap();
    assert!(!second.status.success());
    let words = String::from_utf8(second.stderr).unwrap();
    assert!(words.contains("another daemon runs node a"), "{words}");
    // By another socket, or another folder, it is the same node.
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(node.config()).unwrap();
    let elsewhere = |name: &str| folder.path().join(name).display().to_string();
    let second = |from: String, to: String| {
        let config = folder.path().join("second.toml");
        assert!(text.contains(&from));
        std::fs::write(&config, text.replace(&from, &to)).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_virga"));
        let command = command.args(["node", "run", "--config"]).arg(config);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let words = second(node.socket().display().to_string(), elsewhere("a.sock"));
    assert!(words.contains("another daemon runs node a"), "{words}");
    let words = second(node.file("state").display().to_string(), elsewhere("state"));
    assert!(words.contains("another daemon runs node a"), "{words}");
    // The first one is none the worse, and a killed one's socket is no obstacle.
    stage.status("a").await;
    stage.kill("a");
    assert!(stage.node("a").socket().exists());
    stage.start("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_another_network_key_gets_no_session_and_is_counted() {
    let mut stage = Stage::new(&[RELIABLE]);
    stage.node("b").replace_psk();
    hostile::without_tags(&mut stage);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let _events = stage
        .mesh("b")
        .await
        .subscribe(RELIABLE.name)
        .await
        .unwrap();
    for name in ["a", "b"] {
        eventually(&format!("{name} counts"), async || {
            let status = stage.status(name).await;
            (status.transport.drops["handshake_tag"] > 0).then_some(())
        })
        .await;
        let status = stage.status(name).await;
        assert!(status.sessions.iter().all(|s| s.state != "established"));
        let human = stage.node(name).run(&["status"]);
        let human = String::from_utf8(human.stdout).unwrap();
        let line = "refused here (handshake_tag): The keyed tag is wrong: another network key";
        assert!(human.contains(line), "{human}");
    }
    let status = stage.status("b").await;
    assert_eq!(status.subscriptions[0].state, "connecting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_hop_taken_down_stops_traffic_until_it_is_up_again() {
    let stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let a = stage.mesh("a").await;
    let router = stage.mesh("router").await;
    router.set_link("b", LinkState::Down).await.unwrap();
    a.publish(RELIABLE.name, b"late").await.unwrap();
    eventually("the router's drops", async || {
        let status = stage.status("router").await;
        (status.userspace.drops["next_hop_down"].packets > 0).then_some(())
    })
    .await;
    router.set_link("b", LinkState::Up).await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, [&b"late"[..]]);
    let error = router.set_link("nobody", LinkState::Up).await.unwrap_err();
    assert!(error.to_string().contains("there is no peer"), "{error}");
    let error = a.set_link("b", LinkState::Down).await.unwrap_err();
    assert!(error.to_string().contains("not adjacent"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_garbage_starves_neither_sessions_nor_the_api() {
    let stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let target = stage.status("b").await.node.listen;
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    let flood = std::thread::spawn(move || {
        let socket = std::net::UdpSocket::bind("127.0.0.9:0").unwrap();
        while !is_done.load(Ordering::Relaxed) {
            for bytes in [&[0; 1_200][..], &[0x56; 63], b""] {
                // A full socket is what a flood is about.
                let _full = socket.send_to(bytes, &target);
            }
        }
    });
    let sent = numbered(2_000);
    let a = stage.mesh("a").await;
    let published = a.publish_batch(RELIABLE.name, &sent);
    let published = in_time("publishing", published).await.unwrap();
    assert_eq!(published.published, 2_000);
    assert!(payloads(&mut events, 2_000).await == sent);
    eventually("the garbage is counted", async || {
        let drops = stage.status("b").await.userspace.drops;
        (drops["magic"].packets > 0 && drops["truncated"].packets > 0).then_some(())
    })
    .await;
    done.store(true, Ordering::Relaxed);
    flood.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_publishes_lines_and_prints_them_again() {
    let stage = Stage::running(&[RELIABLE]).await;
    let mut subscriber = stage
        .node("b")
        .command(&["sub", RELIABLE.name, "--count", "3"]);
    let mut subscriber = subscriber.stdout(Stdio::piped()).spawn().unwrap();
    stage.subscribers(RELIABLE.name, 1).await;
    let published = stage.node("a").json(&[
        "pub",
        RELIABLE.name,
        "--json",
        "--data",
        "hello",
        "--count",
        "3",
    ]);
    assert_eq!(published["published"], 3);
    assert_eq!(published["refused"], 0);
    let mut text = String::new();
    let mut out = subscriber.stdout.take().unwrap();
    out.read_to_string(&mut text).unwrap();
    assert!(subscriber.wait().unwrap().success());
    assert_eq!(text, "hello\nhello\nhello\n");

    let status = stage.node("a").json(&["status", "--json"]);
    assert_eq!(status["node"]["name"], "a");
    assert_eq!(status["channels"][0]["published"], 3);
    let human = stage.node("a").run(&["status"]);
    let human = String::from_utf8(human.stdout).unwrap();
    assert!(human.contains("userspace"), "{human}");
    assert!(human.contains("drops and refusals of the channels: none\n"));

    let between = stage.node("router").run(&["status"]);
    let between = String::from_utf8(between.stdout).unwrap();
    assert!(between.contains("\n    link tags: "), "{between}");
}
