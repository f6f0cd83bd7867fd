//! Routes that are learned: nobody's file says `via`.

use crate::{
    payloads,
    rights::token,
    stage::{Channel, eventually},
    subnets::vouch,
    town::Town,
};
use std::time::Duration;
use virga::{
    daemon::tracer::FOLLOWED_HERE_MAX,
    routes::RouteStatus,
    trace::{End, Trace, TraceHop},
};

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

#[tokio::test(flavor = "multi_thread")]
async fn no_way_leads_over_a_neighbour_whose_membership_was_taken_back() {
    let links = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")];
    let asks = [("a", "[subnets]\nissuers = [\"a\"]\n")];
    let town = Town::running_with(&["a", "b", "c", "d"], (&links, &[]), &asks).await;
    let over = async |primary: Option<&str>, backup: bool| {
        eventually(&format!("a's way to d is over {primary:?}"), async || {
            let route = route(&town, "a", "d").await;
            let is_so = primary.is_none_or(|name| route.primary.as_deref() == Some(name));
            (is_so && route.primary.is_some() && route.backup.is_some() == backup).then_some(())
        })
        .await;
    };
    vouch(town.node("a"), town.node("b"), "0.0.0.0");
    over(Some("b"), false).await;
    vouch(town.node("a"), town.node("c"), "0.0.0.0");
    over(None, true).await;

    let (a, b) = (town.node("a"), town.node("b"));
    let (list, key) = (a.file("list"), a.file("entity.key"));
    let revoke: [&dyn AsRef<std::path::Path>; 6] = [
        &"revoke",
        &list,
        &"--key",
        &key,
        &"--subject",
        &b.entity_key,
    ];
    token(&revoke).unwrap();
    token(&[&"announce", &list, &"--socket", &a.socket()]).unwrap();
    over(Some("c"), false).await;
    // It is a neighbour all the same.
    let near = route(&town, "a", "b").await;
    assert_eq!(
        (near.primary.as_deref(), &*near.by),
        (Some("b"), "adjacent")
    );
}

fn names(trace: &Trace) -> Vec<&str> {
    let names = trace.hops.iter().map(|hop| hop.name.as_deref());
    names.map(Option::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_shows_every_link_on_the_way_and_where_it_breaks() {
    let links = [("a", "b"), ("b", "c"), ("c", "d")];
    let mut town = Town::running(&["a", "b", "c", "d"], &links, &[]).await;
    let mesh = town.mesh("a").await;
    let trace = eventually("the way to d is known and measured", async || {
        // Neighbours follow ten a second.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let trace = mesh.trace("d").await.ok()?;
        let has_both = |hop: &TraceHop| hop.rtt_us.is_some() && hop.loss_ppm.is_some();
        let is_measured = trace.hops.iter().all(has_both);
        (trace.end == End::Arrived && is_measured).then_some(trace)
    })
    .await;
    assert_eq!(names(&trace), ["b", "c", "d"]);
    let answered: Vec<u32> = trace
        .hops
        .iter()
        .map(|hop| hop.answered_us.unwrap())
        .collect();
    // Each waits for all that are behind it.
    assert!(
        answered.is_sorted_by(|near, far| near > far),
        "{answered:?}"
    );
    assert_eq!(mesh.trace(&trace.destination).await.unwrap().hops.len(), 3);
    let own = mesh.trace("a").await.unwrap();
    assert_eq!((own.end, own.hops.len()), (End::Arrived, 0));
    assert!(mesh.trace("nobody").await.is_err());

    let shown = town.run("a", &["trace", "d"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with(" 1  b ") && lines[0].contains(": link "),
        "{text}"
    );
    assert_eq!(lines[3..], ["d is the destination"]);
    let json = town.run("a", &["trace", "d", "--json"]);
    let json: Trace = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (json.end, names(&json)),
        (End::Arrived, vec!["b", "c", "d"])
    );

    // What c says of d ends with d, and before c has found out, d is silent.
    town.kill("d");
    let broken = mesh.trace("d").await.unwrap();
    assert_ne!(broken.end, End::Arrived);
    assert!(
        names(&broken).starts_with(&["b", "c"]) || broken.end == End::NoRoute,
        "{broken:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_ways_too_often_is_told_so_and_it_is_counted() {
    let town = Town::running(&["a", "b", "c"], &[("a", "b"), ("b", "c")], &[]).await;
    let mesh = town.mesh("a").await;
    eventually("the way to c is known", async || {
        (mesh.trace("c").await.ok()?.end == End::Arrived).then_some(())
    })
    .await;
    // As many at once as a node follows for its programs: one after the other may be slower than what is let through.
    let busy = eventually("more are asked than one may", async || {
        let asked = (0..FOLLOWED_HERE_MAX).map(|_| mesh.trace("c"));
        let ways = futures_util::future::join_all(asked).await;
        let is_busy = |way: &&Trace| way.end == End::Busy;
        let busy = ways.iter().flatten().filter(is_busy).count() as u64;
        (busy > 0).then_some(busy)
    })
    .await;
    // What one after the other lets through just so may be too much for the one behind it.
    let mut counted = 0;
    for node in ["b", "c"] {
        let status = town.mesh(node).await.status().await.unwrap();
        counted += status.channel_reasons["trace_refused"];
    }
    assert!(counted >= busy, "{counted} {busy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_peers_ways_drops_workers_and_cores() {
    let town = Town::running(&["a", "b", "c"], &[("a", "b"), ("b", "c")], &[]).await;
    eventually("a has a way to c", async || {
        route(&town, "a", "c").await.primary
    })
    .await;
    let shown = town.run("a", &["top", "--once"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    let words = |begins: &str| {
        let mut lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines
            .find(|words| words.first() == Some(&begins))
            .unwrap_or_else(|| panic!("{text}"))
    };
    assert!(
        text.starts_with("a ") && text.contains(" of 2 peers live"),
        "{text}"
    );
    assert_eq!(words("b")[1..5], ["established", "b", "-", "adjacent"]);
    assert_eq!(words("c")[2..5], ["b", "-", "learned"]);
    for title in ["Drops by reason", "Workers", "This machine's cores"] {
        assert!(text.lines().any(|line| line.starts_with(title)), "{text}");
    }
    assert!(words("0").iter().any(|word| word.contains('.')), "{text}");
}
