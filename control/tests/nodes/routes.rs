//! Routes that are learned: nobody's file says `via`.

use crate::{
    payloads,
    stage::{Channel, eventually},
    town::Town,
};
use virga::routes::RouteStatus;

const NEWS: Channel = Channel {
    name: "test/news",
    reliable: true,
    hold_max_s: 30,
    publish: &["a"],
    subscribe: &["d"],
};

/// What a node knows of the way to another.
async fn route(town: &Town, from: &str, to: &str) -> RouteStatus {
    let status = town.mesh(from).await.routes().await.unwrap();
    let mut routes = status.routes.into_iter();
    routes.find(|route| route.name == to).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn along_a_line_events_reach_a_node_that_no_file_says_a_way_to() {
    let links = [("a", "b"), ("b", "c"), ("c", "d")];
    let town = Town::running(&["a", "b", "c", "d"], &links, &[NEWS]).await;
    let mut events = town.mesh("d").await.subscribe(NEWS.name).await.unwrap();
    town.subscribers("a", NEWS.name, 1).await;
    let publisher = town.mesh("a").await.publisher(NEWS.name).await.unwrap();
    publisher.publish(b"from afar").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["from afar"]);

    let learned = route(&town, "a", "d").await;
    let by = (
        learned.primary.as_deref(),
        learned.backup.as_deref(),
        &*learned.by,
    );
    assert_eq!(by, (Some("b"), None, "learned"));
    assert!(
        learned.metric > route(&town, "a", "c").await.metric,
        "{learned:?}"
    );
    let shown = town.run("a", &["routes"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    let is_said =
        |line: &str| line.starts_with("d ") && line.contains(": over b, learned, metric ");
    assert!(text.lines().any(is_said), "{text}");
    let json = town.run("a", &["routes", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["routes"][2]["name"], "d");
    assert_eq!(json["links"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_diamond_events_go_the_other_way_round_when_a_node_on_the_way_is_killed() {
    let links = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")];
    let mut town = Town::running(&["a", "b", "c", "d"], &links, &[NEWS]).await;
    let mut events = town.mesh("d").await.subscribe(NEWS.name).await.unwrap();
    town.subscribers("a", NEWS.name, 1).await;
    let publisher = town.mesh("a").await.publisher(NEWS.name).await.unwrap();
    publisher.publish(b"one").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["one"]);
    let used = eventually("a has a primary and a backup to d", async || {
        let route = route(&town, "a", "d").await;
        route.backup.and(route.primary)
    })
    .await;

    town.kill(&used);
    // As an operator, or whoever watches the link, says.
    for node in ["a", "d"] {
        town.run(node, &["node", "link", node, &used, "down"]);
    }
    publisher.publish(b"two").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["two"]);
    let other = if used == "b" { "c" } else { "b" };
    eventually("the other is the primary", async || {
        let route = route(&town, "a", "d").await;
        (route.primary.as_deref() == Some(other)).then_some(())
    })
    .await;
}
