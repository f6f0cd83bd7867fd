//! Forwarders that admit by token, or by what issuers vouch for: the channel has no lists, the router's entity is the
//! issuer, and the router knows nothing but what it is told.

use crate::{
    capabilities::{present, vouched},
    payloads,
    rights::{issued, token},
    stage::{RELIABLE, Stage, eventually},
};
use std::time::{Duration, Instant};

const LISTS: &str = "publish = [\"a\"]\nsubscribe = [\"b\"]\n";
const REQUIRED: &str = "require_token = true\nissuers = [\"router\"]\n";

const VOUCHED: &str =
    "publish_caps = \"hardware.gpu\"\ncapability_issuers = [\"router\"]\nsubscribe = [\"b\"]\n";

/// The stage with nodes in whose files a token says who may, and nothing else.
pub(crate) fn by_token(nodes: &[&str]) -> Stage {
    let stage = Stage::new(&[RELIABLE]);
    for node in nodes {
        stage.edit(node, LISTS, REQUIRED);
    }
    stage
}

pub(crate) async fn start_all(stage: &mut Stage) {
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

pub(crate) const ADMITTED: &str = "has it in its guard";

pub(crate) async fn pairs(stage: &Stage, node: &str, count: usize) {
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
    let admissions = stage.status("router").await.admissions;
    let refused = admissions.tokens_refused["issuer"];
    assert_eq!((refused > 0, admissions.tokens), (true, 0));
    assert_eq!(admissions.verdicts["issuer"], refused);
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

/// a and b ask for nothing: a sender and a receiver that skip their own checks.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_lets_nothing_pass_that_no_issuer_vouches_for() {
    let mut stage = Stage::new(&[RELIABLE]);
    stage.edit("router", LISTS, VOUCHED);
    start_all(&mut stage).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"late").await.unwrap();
    eventually("the router drops it", async || {
        (drops(&stage).await > 0).then_some(())
    })
    .await;
    // Its session with the router shows the statement; a itself trusts no issuer.
    let gpu = vouched(&stage, "a", &["hardware.gpu"], "2h");
    let (code, said) = present(&stage, &gpu, "a");
    assert_eq!(code, Some(1), "{said}");
    pairs(&stage, "router", 1).await;
    assert_eq!(payloads(&mut events, 1).await, ["late"]);

    // What it was told of it has after a restart.
    let file = stage.node("router").file("state/evidence-statements");
    eventually("the router keeps it", async || file.exists().then_some(())).await;
    // Nobody is there to tell it again.
    stage.kill("router");
    stage.kill("a");
    stage.start("router").await;
    let held = stage.status("router").await.admissions;
    assert_eq!((held.statements, held.pairs), (1, 1));
    stage.start("a").await;
    stage.subscribers(RELIABLE.name, 1).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"kept").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["kept"]);

    // A later one says less.
    eventually("the later statement has a later version", async || {
        let none = vouched(&stage, "a", &["hardware.none"], "2h");
        present(&stage, &none, "a");
        let held = stage.status("router").await.admissions;
        (held.pairs == 0).then_some(())
    })
    .await;
    let before = drops(&stage).await;
    publisher.publish(b"never").await.unwrap();
    eventually("the router drops it", async || {
        (drops(&stage).await > before).then_some(())
    })
    .await;
    let more = tokio::time::timeout(Duration::from_millis(300), payloads(&mut events, 1));
    assert!(more.await.is_err(), "it came nevertheless");
}

/// Who holds statements for those who subscribe hears of them again when publishers are asked as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_came_before_publishers_were_asked_counts_after_a_reload() {
    const READERS: &str =
        "publish = [\"a\"]\nsubscribe_caps = \"hardware.gpu\"\ncapability_issuers = [\"router\"]\n";
    const BOTH: &str = "publish_caps = \"hardware.gpu\"\nsubscribe_caps = \"hardware.gpu\"\n\
                        capability_issuers = [\"router\"]\n";
    let mut stage = Stage::new(&[RELIABLE]);
    for node in ["a", "router", "b"] {
        stage.edit(node, LISTS, READERS);
    }
    start_all(&mut stage).await;
    for (node, has) in [("b", "hardware.gpu"), ("a", "hardware.gpu")] {
        let gpu = vouched(&stage, node, &[has], "2h");
        let (code, said) = present(&stage, &gpu, node);
        assert_eq!(code, Some(0), "{said}");
    }
    assert_eq!(stage.status("router").await.admissions.statements, 0);
    for node in ["router", "b", "a"] {
        stage.edit(node, READERS, BOTH);
        let output = stage.node(node).run(&["reload"]);
        assert!(output.status.success(), "{output:?}");
    }
    // a's and b's.
    pairs(&stage, "router", 2).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"after").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["after"]);
}

/// Whoever presents it waits for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_in_the_neighbours_guards_when_it_was_presented() {
    let mut stage = Stage::new(&[RELIABLE]);
    for node in ["a", "router"] {
        stage.edit(node, LISTS, VOUCHED);
    }
    start_all(&mut stage).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let gpu = vouched(&stage, "a", &["hardware.gpu"], "2h");
    eventually("the router admits it", async || {
        let (code, said) = present(&stage, &gpu, "a");
        assert_eq!(code, Some(0), "{said}");
        said.contains(&format!("router: {ADMITTED}")).then_some(())
    })
    .await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"first").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["first"]);
    assert_eq!(drops(&stage).await, 0);
    revoke(&stage, "a", "a");
    pairs(&stage, "router", 0).await;
}
