//! Fan-out trees over real daemons: a publishes and serves b and c itself, and these pass it on to the others of b to g, all
//! by way of one router.

use crate::{
    payloads,
    rights::token,
    stage::{eventually, in_time},
    town::Town,
};
use std::{collections::BTreeMap, time::Duration};
use virga::{
    api::status::Status,
    channel::{Plan, Policy, status::ChannelStatus},
    mesh::Subscription,
};

const CHANNEL: &str = "test/tree";
const RELAYS: [&str; 2] = ["b", "c"];
const SUBSCRIBERS: [&str; 6] = ["b", "c", "d", "e", "f", "g"];
const ALL: [&str; 8] = ["router", "a", "b", "c", "d", "e", "f", "g"];

fn block(more: &str) -> String {
    format!(
        "[[channels]]\nname = \"{CHANNEL}\"\nsigned = true\nfan_out = 2\n\
         publish = [\"a\", \"b\", \"c\"]\nsubscribe = {SUBSCRIBERS:?}\n{more}"
    )
}

async fn town(more: &str) -> Town {
    let links: Vec<(&str, &str)> = ALL[1..].iter().map(|name| ("router", *name)).collect();
    let blocks = ALL.map(|name| (name, block(more)));
    let files = blocks.each_ref().map(|(name, block)| (*name, &**block));
    Town::running_with(&ALL, (&links, &[]), &files).await
}

async fn subscribed(town: &Town) -> BTreeMap<&'static str, Subscription> {
    let mut all = BTreeMap::new();
    for name in SUBSCRIBERS {
        let mesh = town.mesh(name).await;
        all.insert(name, mesh.subscribe(CHANNEL).await.unwrap());
    }
    town.subscribers("a", CHANNEL, SUBSCRIBERS.len()).await;
    for relay in RELAYS {
        town.subscribers(relay, CHANNEL, SUBSCRIBERS.len() - 1)
            .await;
    }
    all
}

fn channel(status: Status) -> ChannelStatus {
    let mut channels = status.channels.into_iter();
    channels.find(|channel| channel.name == CHANNEL).unwrap()
}

/// Relays and their children, by name.
async fn tree(town: &Town) -> BTreeMap<&'static str, Vec<&'static str>> {
    let relayed = channel(town.mesh("a").await.status().await.unwrap()).relayed;
    let name = |id: &String| {
        let mut names = SUBSCRIBERS.into_iter();
        names
            .find(|name| town.node(name).id.to_string() == *id)
            .unwrap()
    };
    let branches = relayed.iter();
    branches
        .map(|(relay, children)| (name(relay), children.iter().map(name).collect()))
        .collect()
}

async fn publish(town: &Town, events: &[Vec<u8>]) {
    let mesh = town.mesh("a").await;
    let published = in_time("publishing", mesh.publish_batch(CHANNEL, events)).await;
    assert_eq!(published.unwrap().published, events.len() as u64);
}

fn events(from: usize, to: usize) -> Vec<Vec<u8>> {
    (from..to).map(|n| format!("event {n}").into()).collect()
}

/// Publishes until each of two serves two others; how many events that took.
async fn grown(town: &Town, heard: &mut BTreeMap<&'static str, Subscription>) -> usize {
    let mut said = 0;
    eventually("the tree", async || {
        publish(town, &events(said, said + 1)).await;
        said += 1;
        let sizes: Vec<usize> = tree(town).await.values().map(Vec::len).collect();
        (sizes == [2, 2]).then_some(())
    })
    .await;
    for (name, subscription) in heard {
        assert!(
            payloads(subscription, said).await == events(0, said),
            "{name}"
        );
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn six_nodes_get_everything_once_and_in_order_of_which_the_publisher_serves_two() {
    let town = town("").await;
    let mut heard = subscribed(&town).await;
    let said = grown(&town, &mut heard).await;
    let plan = Plan {
        policy: Policy::FailFast,
        ..Plan::default()
    };
    let a = town.mesh("a").await;
    let publisher = a.channel_publisher(CHANNEL, plan).await.unwrap();
    let sent = events(said, said + 2_000);
    let mut reports = Vec::new();
    for some in sent.chunks(10) {
        let report = in_time("publishing", publisher.publish_batch(some)).await;
        reports.push(report.unwrap());
    }
    // Batches are counted: each node says itself that it has one.
    for report in &reports {
        assert_eq!(report.nodes.len(), 6);
        for node in &report.nodes {
            let outcome = (node.outcome.acknowledged, node.outcome.pending);
            assert_eq!(outcome, (node.outcome.sent, 0), "{}", node.name);
        }
    }
    for (name, subscription) in &mut heard {
        assert!(payloads(subscription, 2_000).await == sent, "{name}");
    }
    let tree = tree(&town).await;
    assert_eq!(tree.values().map(Vec::len).sum::<usize>(), 4);
    let mut passed_on = 0;
    for name in SUBSCRIBERS {
        let channel = channel(town.mesh(name).await.status().await.unwrap());
        assert_eq!(
            channel.children,
            tree.get(name).map_or(0, Vec::len),
            "{name}"
        );
        passed_on += channel.relayed_events;
    }
    assert!(passed_on >= 4 * 2_000);
    let shown = town.run("a", &["status"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    let (relay, children) = tree.first_key_value().unwrap();
    let line = format!("{relay} passes its events on to {}", children.join(", "));
    assert!(text.contains(&line), "{line} is not in\n{text}");
    // Nobody was let through who may not publish.
    let router = town.mesh("router").await.status().await.unwrap();
    assert_eq!(router.userspace.drops["unauthorised"].packets, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_relay_is_killed_its_children_miss_nothing() {
    let mut town = town("").await;
    let mut heard = subscribed(&town).await;
    let said = grown(&town, &mut heard).await;
    let relay = *tree(&town).await.keys().next().unwrap();
    // It stays a subscriber until it is killed.
    let own = heard.remove(relay);
    let sent = events(said, said + 3_000);
    let publisher = town.mesh("a").await.publisher(CHANNEL).await.unwrap();
    let all = sent.clone();
    let publishing = tokio::spawn(async move {
        for event in &all {
            publisher.publish(event).await.unwrap();
            // Some are still to come when the relay is killed.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        publisher.finish().await.unwrap()
    });
    eventually("some are passed on", async || {
        let channel = channel(town.mesh(relay).await.status().await.ok()?);
        (channel.relayed_events > 200).then_some(())
    })
    .await;
    town.kill(relay);
    drop(own);
    for (name, subscription) in &mut heard {
        assert!(payloads(subscription, 3_000).await == sent, "{name}");
    }
    let published = in_time("publishing", publishing).await.unwrap();
    assert_eq!(published.published, 3_000);
    let status = town.mesh("a").await.status().await.unwrap();
    assert!(status.channel_reasons["relay_failed"] > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_whose_right_is_taken_back_gets_nothing_more_also_when_it_asks_again() {
    let town = town("require_token = true\nissuers = [\"router\"]\n").await;
    let key = town.node("router").file("entity.key");
    for name in &ALL[1..] {
        let node = town.node(name);
        let allow = match *name {
            "a" => "publish",
            "b" | "c" => "publish,subscribe",
            _ => "subscribe",
        };
        let file = node.file("own.token");
        token(&[
            &"issue",
            &"--key",
            &key,
            &"--subject",
            &node.entity_key,
            &"--channel",
            &CHANNEL,
            &"--allow",
            &allow,
            &"--for",
            &"1h",
            &"--out",
            &file,
        ])
        .unwrap();
        token(&[&"present", &file, &"--socket", &node.socket()]).unwrap();
    }
    let mut heard = subscribed(&town).await;
    let said = grown(&town, &mut heard).await;
    let (relay, children) = tree(&town).await.pop_first().unwrap();
    let child = children[0];
    let list = town.node("router").file("list");
    let subject = &town.node(child).entity_key;
    token(&[&"revoke", &list, &"--key", &key, &"--subject", subject]).unwrap();
    token(&[&"announce", &list, &"--socket", &town.node("a").socket()]).unwrap();
    eventually("the relay serves one less", async || {
        let channel = channel(town.mesh(relay).await.status().await.ok()?);
        (channel.children == 1).then_some(())
    })
    .await;
    let mut ended = heard.remove(child).unwrap();
    publish(&town, &events(said, said + 100)).await;
    for (name, subscription) in &mut heard {
        let expected = events(said, said + 100);
        assert!(payloads(subscription, 100).await == expected, "{name}");
    }
    let end = in_time("the end", ended.next_delivery()).await;
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    let again = town
        .mesh(child)
        .await
        .subscribe(CHANNEL)
        .await
        .err()
        .unwrap();
    assert!(again.to_string().contains("revoked"), "{again}");
    let status = channel(town.mesh(child).await.status().await.unwrap());
    assert_eq!(status.received, said as u64);
}
