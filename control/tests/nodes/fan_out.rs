//! Publishes with a report: what arrived at each subscribing node, and when that is enough.

use crate::{
    numbered, payloads,
    stage::{Channel, RELIABLE, Stage, in_time},
};
use std::time::Duration;
use virga::{
    channel::{Plan, Policy},
    mesh::{FanOutError, Subscription},
};

const TO_BOTH: Channel = Channel {
    subscribe: &["b", "router"],
    ..RELIABLE
};

async fn subscribed(stage: &Stage) -> [Subscription; 2] {
    let b = stage.mesh("b").await.subscribe(TO_BOTH.name).await;
    let router = stage.mesh("router").await.subscribe(TO_BOTH.name).await;
    stage.subscribers(TO_BOTH.name, 2).await;
    [b.unwrap(), router.unwrap()]
}

fn plan(policy: Policy, seconds: u64) -> Plan {
    Plan {
        policy,
        within: Duration::from_secs(seconds),
        ..Plan::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_says_what_every_node_acknowledged() {
    let stage = Stage::running(&[TO_BOTH]).await;
    let mut subscribed = subscribed(&stage).await;
    let publisher = stage.mesh("a").await;
    let publisher = publisher.channel_publisher(TO_BOTH.name, plan(Policy::FailFast, 60));
    let publisher = publisher.await.unwrap();
    let sent = numbered(500);
    let report = in_time("publishing", publisher.publish_batch(&sent)).await;
    let report = report.unwrap();
    assert_eq!((report.published, report.withheld), (500, 0));
    let mut names: Vec<_> = report.nodes.iter().map(|n| n.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["b", "router"]);
    for node in &report.nodes {
        let outcome = &node.outcome;
        let counts = (outcome.sent, outcome.acknowledged, outcome.pending);
        assert_eq!(counts, (500, 500, 0), "{}", node.name);
    }
    for events in &mut subscribed {
        assert!(payloads(events, 500).await == sent);
    }

    let json = stage.node("a").json(&[
        "pub",
        TO_BOTH.name,
        "--data",
        "x",
        "--count",
        "3",
        "--report",
        "--json",
    ]);
    assert_eq!(json["is_met"], true);
    assert_eq!(json["nodes"][0]["acknowledged"], 3);
    assert_eq!(json["nodes"][1]["acknowledged"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_does_not_wait_for_a_node_that_stands_still() {
    let stage = Stage::running(&[TO_BOTH]).await;
    let _subscribed = subscribed(&stage).await;
    let a = stage.mesh("a").await;
    let too_many = a.channel_publisher(TO_BOTH.name, plan(Policy::Quorum(3), 60));
    let refused = too_many.await.unwrap().publish(b"x").await.unwrap_err();
    let words = refused.to_string();
    assert!(
        words.contains("nothing was published: 2 nodes have subscribed to test/reliable, and it was to arrive at 3"),
        "{words}"
    );
    assert_eq!(stage.status("a").await.channels[0].published, 0);

    stage.signal("b", "-STOP");
    let one = a.channel_publisher(TO_BOTH.name, plan(Policy::Quorum(1), 60));
    let report = in_time("publishing", one.await.unwrap().publish(b"y")).await;
    let report = report.unwrap();
    let of = |name: &str| {
        &report
            .nodes
            .iter()
            .find(|n| n.name == name)
            .unwrap()
            .outcome
    };
    assert_eq!(of("router").acknowledged, 1);
    assert_eq!(of("b").acknowledged, 0);
    for policy in [Policy::Quorum(2), Policy::FailFast] {
        let all = a.channel_publisher(TO_BOTH.name, plan(policy, 5));
        let not_met = in_time("publishing", all.await.unwrap().publish(b"z")).await;
        let Err(FanOutError::NotMet(report)) = not_met else {
            panic!("{not_met:?}");
        };
        let b = report.nodes.iter().find(|node| node.name == "b").unwrap();
        assert_eq!((b.outcome.sent, b.outcome.pending), (1, 1));
    }
    let a = stage.node("a");
    let output = a.run(&[
        "pub",
        TO_BOTH.name,
        "--data",
        "z",
        "--quorum",
        "2",
        "--deadline",
        "5s",
    ]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    for say in [
        "1 sent, 1 not acknowledged yet",
        "virga: not everything arrived at 1 of 2 subscribing nodes; at b 0 expired, 0 were lost",
    ] {
        assert!(words.contains(say), "{say:?} is not in {words}");
    }
    stage.signal("b", "-CONT");
}
