//! Each way to take a token back, over real daemons that all ask for one: what passed a moment before ends at the
//! publisher, at the forwarder, and at the subscriber.

use crate::{
    admissions::{ADMITTED, by_token, pairs, start_all},
    payloads,
    rights::{refusal, token},
    stage::{RELIABLE, Stage, eventually},
};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// A token of the issuer's present generation, as a file beside the holder's keys.
fn issued(stage: &Stage, list: &Path, holder: &str, allow: &str) -> PathBuf {
    let (router, node) = (stage.node("router"), stage.node(holder));
    let (key, file) = (
        router.file("entity.key"),
        node.file(&format!("{allow}.token")),
    );
    let mut issue: Vec<&dyn AsRef<Path>> = vec![&"issue", &"--key", &key, &"--subject"];
    issue.extend([
        &node.entity_key as &dyn AsRef<Path>,
        &"--channel",
        &RELIABLE.name,
    ]);
    issue.extend([&"--allow" as &dyn AsRef<Path>, &allow, &"--for", &"1h"]);
    issue.extend([&"--out" as &dyn AsRef<Path>, &file]);
    if list.exists() {
        issue.extend([&"--list" as &dyn AsRef<Path>, &list]);
    }
    token(&issue).unwrap();
    file
}

fn present(stage: &Stage, holder: &str, file: &Path) -> String {
    let socket = stage.node(holder).socket();
    token(&[&"present", &file, &"--socket", &socket]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_by_link_by_generation_and_by_subject_ends_at_every_node() {
    let mut stage = by_token(&["a", "router", "b"]);
    start_all(&mut stage).await;
    let (router, a, b) = (stage.node("router"), stage.node("a"), stage.node("b"));
    let (list, key) = (router.file("list"), router.file("entity.key"));
    let revoked = async |node: &str| stage.status(node).await.channel_reasons["token_revoked"];
    for (way, words) in [
        ("--token", "the issuer's list has link "),
        (
            "--generation",
            "it is of generation 0, and the issuer's begin with 1",
        ),
        ("--subject", "the issuer's list has subject "),
    ] {
        let subscribe = issued(&stage, &list, "b", "subscribe");
        present(&stage, "b", &subscribe);
        let publish = issued(&stage, &list, "a", "publish");
        eventually("the router admits a", async || {
            let said = present(&stage, "a", &publish);
            said.contains(&format!("router: {ADMITTED}")).then_some(())
        })
        .await;
        let mut events = stage.subscribed(RELIABLE.name).await;
        assert_eq!(refusal(&stage).await, None, "{way}");
        assert_eq!(payloads(&mut events, 1).await, ["x"], "{way}");

        let what: &dyn AsRef<Path> = match way {
            "--token" => &publish,
            "--generation" => &"1",
            _ => &a.entity_key,
        };
        let before = revoked("b").await;
        token(&[&"revoke", &list, &"--key", &key, &way, what]).unwrap();
        let start = Instant::now();
        token(&[&"announce", &list, &"--socket", &b.socket()]).unwrap();
        let at_b = start.elapsed();
        pairs(&stage, "router", 0).await;
        let at_router = start.elapsed();
        let said = eventually("a is refused", async || refusal(&stage).await).await;
        let at_a = start.elapsed();
        assert!(said.contains(words), "{way}: {said}");
        assert!(revoked("b").await > before, "{way}: b has ended a's stream");
        let why = router.run(&["why", RELIABLE.name, "a", "--to", "publish"]);
        let why = String::from_utf8(why.stdout).unwrap();
        assert!(why.contains(words), "{way}: {why}");
        println!(
            "{way}: ended at b {} ms after it was announced there, in the router's guard {} ms, at a {} ms",
            at_b.as_millis(),
            at_router.as_millis(),
            at_a.as_millis()
        );
    }
}
