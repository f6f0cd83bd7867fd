//! Forwarders that admit by token: the channel has no lists, the router's entity is the issuer, and the
//! router knows nothing but what it is told.

use crate::{
    payloads,
    rights::{issued, token},
    stage::{RELIABLE, Stage, eventually},
};
use std::time::{Duration, Instant};

const LISTS: &str = "publish = [\"a\"]\nsubscribe = [\"b\"]\n";
const REQUIRED: &str = "require_token = true\nissuers = [\"router\"]\n";

/// The stage with nodes in whose files a token says who may, and nothing else.
fn by_token(nodes: &[&str]) -> Stage {
    let stage = Stage::new(&[RELIABLE]);
    for node in nodes {
        stage.edit(node, LISTS, REQUIRED);
    }
    stage
}

async fn start_all(stage: &mut Stage) {
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
}

/// Presents a token at a node until its neighbour, the router, says what that is.
async fn presented(stage: &Stage, node: &str, allow: &str, answer: &str) {
    let file = issued(stage, node, allow);
    let socket = stage.node(node).socket();
    eventually(&format!("the router answers {answer}"), async || {
        let said = token(&[&"present", &file, &"--socket", &socket]).unwrap();
        said.contains(&format!("router: {answer}")).then_some(())
    })
    .await;
}

const ADMITTED: &str = "has it in its guard";

async fn pairs(stage: &Stage, node: &str, count: usize) {
    eventually(&format!("{node} admits {count} pairs"), async || {
        let held = stage.status(node).await.admissions;
        (held.pairs == count).then_some(())
    })
    .await;
}

/// Has the issuer take back all that an entity has; announced at a node.
fn revoke(stage: &Stage, holder: &str, at: &str) {
    let router = stage.node("router");
    let (list, key) = (router.file("list"), router.file("entity.key"));
    let subject = &stage.node(holder).entity_key;
    token(&[&"revoke", &list, &"--key", &key, &"--subject", subject]).unwrap();
    token(&[&"announce", &list, &"--socket", &stage.node(at).socket()]).unwrap();
}

async fn drops(stage: &Stage) -> u64 {
    let drops = stage.status("router").await.userspace.drops;
    drops["unauthorised"].packets
}

#[tokio::test(flavor = "multi_thread")]
async fn what_neighbours_have_confirmed_passes_and_what_is_revoked_does_not() {
    let mut stage = by_token(&["a", "router", "b"]);
    start_all(&mut stage).await;
    // Forwarders have no use for this one, and are not told of it.
    let subscribe = issued(&stage, "b", "subscribe");
    token(&[
        &"present",
        &subscribe,
        &"--socket",
        &stage.node("b").socket(),
    ])
    .unwrap();
    let acknowledged = {
        presented(&stage, "a", "publish", ADMITTED).await;
        Instant::now()
    };
    assert_eq!(stage.status("router").await.admissions.pairs, 1);
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"first").await.unwrap();
    publisher.finish().await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["first"]);
    println!(
        "{} ms from the answer to the event",
        acknowledged.elapsed().as_millis()
    );
    assert_eq!(
        drops(&stage).await,
        0,
        "it was there before the first packet"
    );

    let start = Instant::now();
    revoke(&stage, "a", "b");
    pairs(&stage, "router", 0).await;
    let took = start.elapsed();
    println!(
        "revoked at b, out of the router's guard {} ms later",
        took.as_millis()
    );
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// a and b require nothing: a sender and a receiver that skip their own checks.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_lets_nothing_pass_that_it_has_no_token_for() {
    let mut stage = by_token(&["router"]);
    start_all(&mut stage).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"late").await.unwrap();
    eventually("the router drops it", async || {
        (drops(&stage).await > 0).then_some(())
    })
    .await;
    // Its session with the router shows the token; a itself trusts no issuer.
    let file = issued(&stage, "a", "publish");
    let said = token(&[&"present", &file, &"--socket", &stage.node("a").socket()]).unwrap_err();
    assert!(said.contains("gives nothing here"), "{said}");
    pairs(&stage, "router", 1).await;
    assert_eq!(payloads(&mut events, 1).await, ["late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_forwarder_knows_what_it_knew_and_hears_what_it_missed() {
    let mut stage = by_token(&["a", "router", "b"]);
    start_all(&mut stage).await;
    presented(&stage, "a", "publish", ADMITTED).await;
    let file = stage.node("router").file("state/evidence");
    eventually("the router keeps it", async || file.exists().then_some(())).await;
    stage.kill("router");
    stage.start("router").await;
    assert_eq!(stage.status("router").await.admissions.pairs, 1);

    // Without the file it admits nobody, until a neighbour tells it again.
    stage.kill("router");
    std::fs::remove_file(&file).unwrap();
    stage.start("router").await;
    pairs(&stage, "router", 1).await;

    // What is revoked while it is down ends with the first session.
    eventually("the router keeps it", async || file.exists().then_some(())).await;
    stage.kill("router");
    revoke(&stage, "a", "b");
    stage.start("router").await;
    pairs(&stage, "router", 0).await;
    stage.kill("router");
    stage.start("router").await;
    assert_eq!(stage.status("router").await.admissions.pairs, 0);
}

/// a's file requires tokens; the router hears of the channel later.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_came_before_its_channel_is_told_again() {
    let mut stage = by_token(&["a", "b"]);
    let router = stage.node("router").config();
    let text = std::fs::read_to_string(&router).unwrap();
    let (without, _) = text.split_once("[[channels]]").unwrap();
    let heeds = "[[channel_authorities]]\nentity = \"router\"\n";
    std::fs::write(&router, format!("{without}{heeds}")).unwrap();
    start_all(&mut stage).await;
    presented(&stage, "a", "publish", "no channel there trusts its issuer").await;
    let router = stage.node("router");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_virga"));
    command.args(["channel", "create", RELIABLE.name, "--issuer", "router"]);
    command.arg("--key").arg(router.file("entity.key"));
    let output = command
        .arg("--socket")
        .arg(router.socket())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    pairs(&stage, "router", 1).await;
}
