//! Subnets that an issuer vouches for: the router's entity is the issuer, and a never asks itself whether it
//! may send.

use crate::{
    payloads,
    rights::token,
    stage::{Channel, Node, RELIABLE, Stage, eventually},
};
use std::{path::PathBuf, process::Command, time::Duration};
use virga::channel::explain::Outcome;

/// a in 1.0.0.0, the others in the root; the router and b ask the issuer.
async fn stage() -> Stage {
    let mut stage = Stage::new(&[RELIABLE]);
    stage.edit("a", "[node]\n", "[node]\nsubnet = \"1.0.0.0\"\n");
    for node in ["router", "b"] {
        let issuers = "[subnets]\nissuers = [\"router\"]\n[forwarding]";
        stage.edit(node, "[forwarding]", issuers);
        stage.edit(
            node,
            "name = \"a\"\n",
            "name = \"a\"\nsubnet = \"1.0.0.0\"\n",
        );
    }
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    stage
}

fn subnet(arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
    let output = command.arg("subnet").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
}

fn path(path: PathBuf) -> String {
    path.display().to_string()
}

fn present(stage: &Stage, issuer: &str, holder: &str, place: &str) {
    vouch(stage.node(issuer), stage.node(holder), place);
}

/// Signs with one node's key that another is in a subnet, and has that one present it.
pub(crate) fn vouch(issuer: &Node, holder: &Node, place: &str) {
    let (key, out) = (
        path(issuer.file("entity.key")),
        path(holder.file("membership")),
    );
    let subject = holder.entity_key.as_str();
    subnet(&[
        "issue",
        "--key",
        &key,
        "--subject",
        subject,
        "--subnet",
        place,
        "--for",
        "1h",
        "--out",
        &out,
    ]);
    subnet(&["inspect", &out]);
    subnet(&["present", &out, "--socket", &path(holder.socket())]);
}

/// Why the router lets nothing of a neighbour's pass.
async fn unvouched(stage: &Stage, neighbour: &str) -> Option<String> {
    let links = stage.status("router").await.forwarding.links;
    let link = links.into_iter().find(|link| link.peer == neighbour);
    link.unwrap().unvouched
}

async fn dropped(stage: &Stage) -> u64 {
    let drops = stage.status("router").await.userspace.drops;
    drops["subnet"].packets
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_a_neighbour_passes_while_an_issuer_vouches_for_its_subnet() {
    let mut stage = stage().await;
    present(&stage, "router", "router", "0.0.0.0");
    present(&stage, "router", "b", "0.0.0.0");
    eventually("b is vouched for", async || {
        unvouched(&stage, "b").await.is_none().then_some(())
    })
    .await;
    let why = unvouched(&stage, "a").await;
    assert_eq!(why.as_deref(), Some("nobody has vouched for its subnet"));

    // Sessions and subscriptions are control traffic; events are not.
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"first").await.unwrap();
    eventually("the router drops it", async || {
        (dropped(&stage).await > 0).then_some(())
    })
    .await;
    // Somebody else's word changes nothing.
    present(&stage, "b", "a", "1.0.0.0");
    eventually("it is refused", async || {
        let reasons = stage.status("router").await.channel_reasons;
        (reasons["membership_issuer"] > 0).then_some(())
    })
    .await;
    assert!(unvouched(&stage, "a").await.is_some());
    let early = tokio::time::timeout(Duration::from_millis(300), events.next_delivery()).await;
    assert!(early.is_err(), "nothing arrives: {early:?}");

    present(&stage, "router", "a", "1.0.0.0");
    assert_eq!(payloads(&mut events, 1).await, ["first"]);
    assert_eq!(unvouched(&stage, "a").await, None);
    let why = stage.mesh("b").await.why(RELIABLE.name, "a").await.unwrap();
    let check = why.operations[0].checks.iter().find(|c| c.name == "subnet");
    assert_eq!(check.unwrap().outcome, Outcome::Passed, "{why:?}");

    stage.kill("router");
    stage.start("router").await;
    assert_eq!(unvouched(&stage, "a").await, None, "it is kept");
    publisher.publish(b"second").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["second"]);

    let (router, a) = (stage.node("router"), stage.node("a"));
    let (list, key) = (router.file("list"), router.file("entity.key"));
    token(&[
        &"revoke",
        &list,
        &"--key",
        &key,
        &"--subject",
        &a.entity_key,
    ])
    .unwrap();
    token(&[&"announce", &list, &"--socket", &router.socket()]).unwrap();
    eventually("it is taken back", async || {
        let why = unvouched(&stage, "a").await?;
        why.contains("revoked").then_some(())
    })
    .await;
    let before = dropped(&stage).await;
    // Accepted or not: nothing arrives.
    let _refused = publisher.publish(b"third").await;
    let late = tokio::time::timeout(Duration::from_millis(500), events.next_delivery()).await;
    assert!(late.is_err(), "nothing arrives: {late:?}");
    println!(
        "{} dropped after it was taken back",
        dropped(&stage).await - before
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_node_asks_as_well_where_routers_do_not() {
    let mut stage = Stage::new(&[RELIABLE]);
    stage.edit(
        "b",
        "[forwarding]",
        "[subnets]\nissuers = [\"router\"]\n[forwarding]",
    );
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    // b's neighbour, so that a's packets reach b at all.
    present(&stage, "router", "router", "0.0.0.0");
    eventually("the router is vouched for at b", async || {
        let links = stage.status("b").await.forwarding.links;
        links[0].unvouched.is_none().then_some(())
    })
    .await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    let _refused = publisher.publish(b"early").await;
    eventually("b refuses a's stream", async || {
        let reasons = stage.status("b").await.channel_reasons;
        (reasons["membership"] > 0).then_some(())
    })
    .await;
    let why = stage.mesh("b").await.why(RELIABLE.name, "a").await.unwrap();
    assert!(!why.operations[0].is_allowed, "{why:?}");
    present(&stage, "router", "a", "0.0.0.0");
    stage.subscribers(RELIABLE.name, 1).await;
    let published = eventually("it arrives", async || {
        publisher.publish(b"later").await.unwrap();
        let arrived = events.next_delivery();
        tokio::time::timeout(Duration::from_millis(500), arrived)
            .await
            .ok()
    })
    .await;
    assert_eq!(published.unwrap().unwrap().payload, "later");
}

/// a's file keeps the channel in 1.1.0.0; b's own lets it go everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_where_a_channel_does_not_go_is_refused_and_why_says_so() {
    const PLACES: [(&str, &str); 3] = [("a", "1.1.0.0"), ("router", "1.0.0.0"), ("b", "1.2.0.0")];
    const EXPORTED: Channel = Channel {
        name: "test/exported",
        ..RELIABLE
    };
    let mut stage = Stage::new(&[RELIABLE, EXPORTED]);
    for (node, own) in PLACES {
        for (peer, subnet) in PLACES.iter().filter(|(peer, _)| *peer != node) {
            let length = if *peer == "router" { "/0" } else { "" };
            let name = format!("name = \"{peer}\"\n");
            let placed = format!("{name}subnet = \"{subnet}{length}\"\n");
            stage.edit(node, &name, &placed);
        }
        stage.edit(node, "[node]\n", &format!("[node]\nsubnet = \"{own}\"\n"));
    }
    for (channel, words) in [
        (RELIABLE, "visibility = \"subnet-local\""),
        (
            EXPORTED,
            "visibility = \"exported\"\nexport_to = [\"1.2.0.0/16\"]",
        ),
    ] {
        let name = format!("name = \"{}\"\n", channel.name);
        stage.edit("a", &name, &format!("{name}{words}\n"));
    }
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let _kept_in = stage
        .mesh("b")
        .await
        .subscribe(RELIABLE.name)
        .await
        .unwrap();
    eventually("a refuses b", async || {
        let reasons = stage.status("a").await.channel_reasons;
        (reasons["subscribe_subnet"] > 0).then_some(())
    })
    .await;
    let why = |at: &str, channel: &str, entity: &str, to: &str| {
        let output = stage.node(at).run(&["why", channel, entity, "--to", to]);
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, words) = why("a", RELIABLE.name, "b", "subscribe");
    let refused = "✗ visibility   the channel is subnet-local and does not go from 1.1.0.0 to 1.2.0.0, where b is";
    assert!(code == Some(1) && words.contains(refused), "{words}");

    let mut events = stage.subscribed(EXPORTED.name).await;
    let publisher = stage.publisher(EXPORTED.name).await;
    publisher.publish(b"exported").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["exported"]);
    let (code, words) = why("a", EXPORTED.name, "b", "subscribe");
    let allowed = "✓ visibility   the channel is exported and goes from 1.1.0.0 to 1.2.0.0";
    assert!(code == Some(0) && words.contains(allowed), "{words}");
    // b's own file says that it goes everywhere.
    let (code, words) = why("b", RELIABLE.name, "a", "publish");
    assert!(code == Some(0) && !words.contains("visibility"), "{words}");
}
