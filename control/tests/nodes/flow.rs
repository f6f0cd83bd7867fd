//! `virga trace --flow` at running nodes: every stage of a channel's events is timed, at both ends, while somebody asks.

use crate::stage::{Channel, Program, RELIABLE, Stage, eventually, in_time};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use virga::{
    flow::{Asked, RATE_MAX, Report},
    mesh::{Flow, MeshError, Publisher, Subscription},
};

const UNRELIABLE: Channel = Channel {
    name: "test/unreliable",
    reliable: false,
    ..RELIABLE
};
/// Of each stage that an event passes there are so many times before it is looked at them.
const ENOUGH: u64 = 10;

async fn begun(stage: &Stage, node: &str, asked: &Asked) -> Flow {
    stage.mesh(node).await.flow(asked).await.unwrap()
}

/// Publishes an event and waits until it has arrived; how long that took.
async fn publish(publisher: &Publisher, events: &mut Subscription) -> Duration {
    let began = Instant::now();
    publisher.publish(b"event").await.unwrap();
    let arrived = in_time("the event", events.next_delivery()).await;
    arrived.unwrap().unwrap();
    began.elapsed()
}

/// Times of each stage, by name.
fn counts(report: &Report) -> BTreeMap<&str, u64> {
    let stages = report.publishing.iter().chain(&report.receiving);
    stages.map(|one| (&*one.stage, one.count)).collect()
}

fn has_enough(report: &Report, stages: &[&str]) -> bool {
    let counts = counts(report);
    stages
        .iter()
        .all(|stage| counts.get(stage).is_some_and(|&n| n >= ENOUGH))
}

/// What all times of some stages make together at least: half of each stage's are as long as their median.
fn least_ns(report: &Report, stages: &[&str]) -> u64 {
    let all = report.publishing.iter().chain(&report.receiving);
    let meant = all.filter(|one| stages.contains(&&*one.stage));
    // The median is up to a hundredth above the time that it stands for.
    meant.map(|one| one.p50_ns * one.count / 2 * 98 / 100).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stage_is_timed_at_both_ends_and_together_they_are_no_longer_than_the_whole() {
    let stage = Stage::running(&[RELIABLE, UNRELIABLE]).await;
    for (channel, out, inward) in [
        (
            RELIABLE.name,
            &[
                "accept",
                "hand_over",
                "admit",
                "queue",
                "send",
                "acknowledge",
            ][..],
            &["receive", "order", "open", "check", "deliver"][..],
        ),
        (
            UNRELIABLE.name,
            &["accept", "hand_over", "admit", "queue", "send"],
            &["receive", "open", "check", "deliver"],
        ),
    ] {
        let mut events = stage.subscribed(channel).await;
        let publisher = stage.publisher(channel).await;
        let asked = Asked {
            channel: channel.to_owned(),
            rate: Some(RATE_MAX),
            ..Asked::default()
        };
        let mut at_a = begun(&stage, "a", &asked).await;
        let mut at_b = begun(&stage, "b", &asked).await;
        let mut whole = Duration::ZERO;
        let (a, b) = eventually("times of every stage", async || {
            for _ in 0..20 {
                whole += publish(&publisher, &mut events).await;
            }
            let a = in_time("a's report", at_a.next_report())
                .await
                .unwrap()
                .unwrap();
            let b = in_time("b's report", at_b.next_report())
                .await
                .unwrap()
                .unwrap();
            (has_enough(&a, out) && has_enough(&b, inward)).then_some((a, b))
        })
        .await;
        assert!(a.published >= ENOUGH && a.sent >= ENOUGH && b.received >= ENOUGH);
        // Of an event on its way to b alone a times nothing that arrives, and b nothing that is published.
        assert!(a.receiving.iter().all(|one| one.count == 0), "{a:?}");
        assert!(b.publishing.iter().all(|one| one.count == 0), "{b:?}");
        assert_eq!(a.paths[0].name.as_deref(), Some("b"));
        assert_eq!(b.paths[0].name.as_deref(), Some("a"));
        assert!(a.paths[0].rtt_us.is_some());
        // What is acknowledged goes beside, and all else one after the other.
        let mut one_after_the_other = out.to_vec();
        one_after_the_other.retain(|stage| *stage != "acknowledge");
        let least = least_ns(&a, &one_after_the_other) + least_ns(&b, inward);
        assert!(
            u128::from(least) <= whole.as_nanos(),
            "{least} ns of {whole:?}: {a:?} {b:?}"
        );
        for one in a.publishing.iter().chain(&b.receiving) {
            assert!(
                one.p50_ns <= one.p99_ns && one.p99_ns <= one.max_ns,
                "{one:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_events_wait_in_the_kernel_is_timed_with_every_driver_of_its_socket() {
    const STILL: Duration = Duration::from_millis(60);
    for driver in ["auto", "mmsg"] {
        let mut stage = Stage::new(&[RELIABLE]);
        let line = format!("driver = \"{driver}\"\n[forwarding]");
        stage.edit("b", "[forwarding]", &line);
        for name in ["router", "b", "a"] {
            stage.start(name).await;
        }
        let mut events = stage.subscribed(RELIABLE.name).await;
        let publisher = stage.publisher(RELIABLE.name).await;
        let asked = Asked {
            channel: RELIABLE.name.to_owned(),
            rate: Some(RATE_MAX),
            ..Asked::default()
        };
        let began = Instant::now();
        let mut flow = begun(&stage, "b", &asked).await;
        let report = eventually("events are timed", async || {
            for _ in 0..20 {
                publish(&publisher, &mut events).await;
            }
            let report = in_time("a report", flow.next_report()).await;
            let report = report.unwrap().unwrap();
            has_enough(&report, &["receive", "open"]).then_some(report)
        })
        .await;
        let receive = &report.receiving[0];
        assert_eq!(receive.stage, "receive");
        assert_eq!(receive.not_timed, Some(report.received - receive.count));
        assert!(receive.why_not.is_empty(), "{driver}: {receive:?}");
        let longest = Duration::from_nanos(receive.max_ns);
        assert!(longest <= began.elapsed(), "{driver}: {receive:?}");
        // What comes while b stands still waits as long.
        eventually("an event has waited", async || {
            stage.signal("b", "-STOP");
            publisher.publish(b"event").await.unwrap();
            tokio::time::sleep(2 * STILL).await;
            stage.signal("b", "-CONT");
            let arrived = in_time("the event", events.next_delivery()).await;
            arrived.unwrap().unwrap();
            let report = in_time("a report", flow.next_report()).await;
            let longest = report.unwrap().unwrap().receiving[0].max_ns;
            (Duration::from_nanos(longest) >= STILL).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_entity_that_is_asked_for_is_timed_and_the_rest_is_counted() {
    let stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    let asked = |origin: &str| Asked {
        channel: RELIABLE.name.to_owned(),
        origin: Some(origin.to_owned()),
        ..Asked::default()
    };
    for (origin, is_timed) in [("router", false), ("a", true)] {
        let mut flow = eventually("the place is free", async || {
            stage.mesh("b").await.flow(&asked(origin)).await.ok()
        })
        .await;
        let report = eventually("the events are counted", async || {
            publish(&publisher, &mut events).await;
            let report = in_time("a report", flow.next_report())
                .await
                .unwrap()
                .unwrap();
            (report.received >= ENOUGH).then_some(report)
        })
        .await;
        let open = &report.receiving[2];
        assert_eq!((&*open.stage, open.count > 0), ("open", is_timed));
        assert_eq!(open.not_timed, Some(report.received - open.count));
        assert!(report.publishing.iter().all(|one| one.count == 0));
    }
    let refused = |error| match error {
        Err(MeshError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    };
    let b = stage.mesh("b").await;
    let (code, words) = refused(b.flow(&asked("nobody")).await.map(drop));
    assert!(code == 400 && words.contains("nobody"), "{words}");
    let unknown = Asked {
        channel: "test/none".to_owned(),
        ..Asked::default()
    };
    // The last one's place is free a little later.
    eventually("the channel is not known", async || {
        let (code, words) = refused(b.flow(&unknown).await.map(drop));
        (code == 404 && words.contains("virga channel list")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_off_again_when_the_asker_is_killed_and_one_goes_on_at_a_time() {
    let stage = Stage::running(&[RELIABLE]).await;
    let a = stage.node("a");
    let trace = ["trace", "--flow", RELIABLE.name];
    let mut asker = Program::start(&mut a.command(&[&trace[..], &["--seconds", "600"]].concat()));
    eventually("it is on", async || {
        a.log().contains("a flow is timed asked=").then_some(())
    })
    .await;
    let second = a.run(&[&trace[..], &["--count", "1"]].concat());
    let words = String::from_utf8_lossy(&second.stderr);
    assert!(
        !second.status.success() && words.contains("one at a time"),
        "{words}"
    );
    asker.signal("-KILL");
    assert!(!asker.wait().0.success());
    eventually("it is off", async || {
        let log = a.log();
        log.contains("a flow is timed no more why=whoever asked is gone")
            .then_some(())
    })
    .await;

    // The next one has the place, and ends by itself once it has what it was asked for.
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    let mut asker = Program::start(&mut a.command(&[&trace[..], &["--count", "3"]].concat()));
    let ended = tokio::task::spawn_blocking(move || asker.wait());
    while !ended.is_finished() {
        publish(&publisher, &mut events).await;
    }
    let (status, text, words) = ended.await.unwrap();
    assert!(status.success(), "{words}");
    for part in [
        "events were published here",
        "hand_over",
        "receive",
        "deliver",
        "path to b: round trip",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // So does one of which only the numbers are wanted, by its time.
    let told = a.json(&[&trace[..], &["--seconds", "1", "--json"]].concat());
    assert_eq!(told["ended"], "the time asked for is over");
    assert_eq!(told["publishing"][3]["stage"], "queue");
}
