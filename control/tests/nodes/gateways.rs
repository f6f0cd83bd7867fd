//! Two subnets: a and the router in 1.0.0.0, b in 2.0.0.0. The router and b are their gateways. Who may publish
//! to b is known in b's subnet alone: by a token, of an issuer that the router's file does not name.

use crate::{
    payloads,
    rights::{issued, token},
    stage::{RELIABLE, Stage, eventually},
};
use std::time::{Duration, Instant};
use virga::filters::FilterStatus;

const LISTS: &str = "publish = [\"a\"]\nsubscribe = [\"b\"]\n";
const REQUIRED: &str = "require_token = true\nissuers = [\"router\"]\n";
const OTHERS: &str = "publish = [\"router\"]\nsubscribe = [\"router\"]\n";
const LIFE_S: u64 = 12;
const THERE: &str = "2.0.0.0/8";

async fn stage() -> Stage {
    let mut stage = Stage::new(&[RELIABLE]);
    let subnets = [("a", "1.0.0.0"), ("router", "1.0.0.0"), ("b", "2.0.0.0")];
    let gateways = format!(
        "[subnets]\nfilter_life_s = {LIFE_S}\n[[subnet_gateways]]\nentity = \"router\"\nsubnet = \"1.0.0.0/8\"\n\
         [[subnet_gateways]]\nentity = \"b\"\nsubnet = \"{THERE}\"\n[forwarding]"
    );
    for (node, own) in subnets {
        for (peer, subnet) in subnets.iter().filter(|(peer, _)| *peer != node) {
            // The router brings what others send.
            let length = if *peer == "router" { "/0" } else { "" };
            let name = format!("name = \"{peer}\"\n");
            let placed = format!("{name}subnet = \"{subnet}{length}\"\n");
            stage.edit(node, &name, &placed);
        }
        stage.edit(node, "[node]\n", &format!("[node]\nsubnet = \"{own}\"\n"));
    }
    for node in ["router", "b"] {
        stage.edit(node, "[forwarding]", &gateways);
    }
    for (node, rule) in [("a", REQUIRED), ("router", OTHERS), ("b", REQUIRED)] {
        stage.edit(node, LISTS, rule);
    }
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    stage
}

/// The filter of a subnet at a node.
async fn filter(stage: &Stage, node: &str, subnet: &str) -> FilterStatus {
    let filters = stage.status(node).await.admissions.filters.filters;
    filters
        .into_iter()
        .find(|one| one.subnet == subnet)
        .unwrap()
}

/// What the router does with a's packets to b.
async fn crossing(stage: &Stage) -> String {
    let router = stage.mesh("router").await;
    let why = router.why(RELIABLE.name, "a").await.unwrap();
    let publish = why.operations.iter().find(|o| o.operation == "publish");
    let checks = &publish.unwrap().checks;
    let mut found = checks.iter().filter(|c| c.name == "gateway");
    found
        .find(|c| c.words.contains(THERE))
        .unwrap()
        .words
        .clone()
}

async fn drops(stage: &Stage, reason: &str) -> u64 {
    stage.status("router").await.userspace.drops[reason].packets
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_subnet_admits_passes_the_gateway_until_that_takes_it_back_or_says_nothing_more()
 {
    let mut stage = stage().await;
    let first = eventually("the router has b's filter", async || {
        let there = filter(&stage, "router", THERE).await;
        (there.version > 0).then_some(there)
    })
    .await;
    assert!(
        first.is_used && !first.is_own && first.fill > 0.0,
        "{first:?}"
    );
    let words = crossing(&stage).await;
    assert!(words.contains("not in that subnet's filter"), "{words}");

    let (a, b) = (stage.node("a").socket(), stage.node("b").socket());
    for (holder, socket, allow) in [("b", &b, "subscribe"), ("a", &a, "publish")] {
        let file = issued(&stage, holder, allow);
        token(&[&"present", &file, &"--socket", socket]).unwrap();
    }
    let mut events = stage.subscribed(RELIABLE.name).await;
    // a shows its token to b, whose subnet tells the router's.
    eventually("the router's tables let it pass", async || {
        crossing(&stage).await.contains(": pass").then_some(())
    })
    .await;
    let none = stage.status("router").await.admissions.pairs;
    assert_eq!(none, 0, "the router itself knows of no token");
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"across").await.unwrap();
    publisher.finish().await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["across"]);
    assert_eq!(drops(&stage, "unauthorised").await, 0);

    let router = stage.node("router");
    let (list, key) = (router.file("list"), router.file("entity.key"));
    let subject = &stage.node("a").entity_key;
    token(&[&"revoke", &list, &"--key", &key, &"--subject", subject]).unwrap();
    let start = Instant::now();
    token(&[&"announce", &list, &"--socket", &b]).unwrap();
    eventually("the router denies it", async || {
        crossing(&stage)
            .await
            .contains("has withdrawn")
            .then_some(())
    })
    .await;
    println!(
        "revoked at b, denied at the router after {:?}",
        start.elapsed()
    );
    assert_eq!(filter(&stage, "router", THERE).await.withdrawn, 1);

    // What b has said is kept, and counts no longer than it says.
    let file = router.file("state/filters");
    eventually("it is kept", async || file.exists().then_some(())).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.kill("b");
    stage.kill("router");
    stage.start("router").await;
    let kept = filter(&stage, "router", THERE).await;
    assert!(kept.version > first.version && kept.is_used, "{kept:?}");
    eventually("it ends", async || {
        crossing(&stage).await.contains("no filter").then_some(())
    })
    .await;
    let ended = filter(&stage, "router", THERE).await;
    assert!(!ended.is_used && ended.expires_in_s.is_none(), "{ended:?}");
    stage.start("b").await;
    eventually("b says it again", async || {
        crossing(&stage)
            .await
            .contains("not in that subnet's filter")
            .then_some(())
    })
    .await;
}
