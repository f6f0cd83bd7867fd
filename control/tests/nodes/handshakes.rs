//! How sessions between real nodes begin: each pattern with each policy of ML-KEM, and policies that contradict
//! each other, and peers that are named by their ids alone.

use crate::{
    payloads,
    stage::{RELIABLE, Stage, eventually},
};
use virga::{
    api::status::{SessionStatus, Status},
    hex,
    keys::{EntityKey, Secret},
};

/// Stops a and b, and starts them with these patterns and policies.
async fn begin(stage: &mut Stage, policies: [(&str, &str); 2]) {
    for (name, (pattern, pq)) in ["a", "b"].into_iter().zip(policies) {
        stage.kill(name);
        stage.configure(name, &[RELIABLE]);
        let section = format!("[handshake]\npattern = \"{pattern}\"\npq = \"{pq}\"\n[forwarding]");
        stage.edit(name, "[forwarding]", &section);
    }
    for name in ["b", "a"] {
        stage.start(name).await;
    }
}

fn session(status: &Status, peer: &str) -> Option<SessionStatus> {
    let mut sessions = status.sessions.iter();
    let live = sessions.find(|s| s.name == peer && s.state == "established");
    live.cloned()
}

/// Over a router that forwards, messages pass in the session that both ends show.
#[tokio::test(flavor = "multi_thread")]
async fn every_pattern_with_and_without_ml_kem_carries_messages() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    for pattern in ["auto", "nk", "ik", "xx"] {
        for (pq, other, is_hybrid) in [
            ("off", "off", false),
            ("preferred", "preferred", true),
            ("required", "required", true),
            ("preferred", "off", false),
            ("off", "preferred", false),
            ("required", "preferred", true),
        ] {
            let case = format!("{pattern} {pq} {other}");
            begin(&mut stage, [(pattern, pq), (pattern, other)]).await;
            let mut events = stage.subscribed(RELIABLE.name).await;
            let a = stage.mesh("a").await;
            a.publish(RELIABLE.name, case.as_bytes()).await.unwrap();
            assert_eq!(payloads(&mut events, 1).await, [case.as_bytes()]);
            let shown = if pattern == "auto" { "ik" } else { pattern };
            for (at, peer) in [("a", "b"), ("b", "a")] {
                let status = stage.status(at).await;
                let live = session(&status, peer).unwrap();
                assert_eq!(
                    (live.pattern.as_str(), live.hybrid),
                    (shown, is_hybrid),
                    "{case}"
                );
                assert!(status.transport.established_by_pattern[shown] > 0);
                // The router's session is one more.
                assert!(!is_hybrid || status.transport.established_hybrid > 0);
            }
            let printed = stage.node("a").run(&["status"]).stdout;
            let printed = String::from_utf8(printed).unwrap();
            let line = if is_hybrid {
                format!("{shown} + ML-KEM-768")
            } else {
                shown.to_owned()
            };
            let line = format!("b: established, {line}, epoch");
            assert!(printed.contains(&line), "{line} is not in\n{printed}");
        }
    }
}

/// Neither end gives in, whoever begins, and both say what contradicts what.
#[tokio::test(flavor = "multi_thread")]
async fn policies_that_contradict_each_other_give_no_session_and_both_ends_say_why() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    for (policies, expected) in [
        (
            [("auto", "required"), ("auto", "off")],
            [
                "this node requires ML-KEM-768",
                "the peer requires ML-KEM-768",
            ],
        ),
        (
            [("xx", "off"), ("xx", "required")],
            [
                "the peer requires ML-KEM-768",
                "this node requires ML-KEM-768",
            ],
        ),
    ] {
        begin(&mut stage, policies).await;
        let _subscription = stage
            .mesh("b")
            .await
            .subscribe(RELIABLE.name)
            .await
            .unwrap();
        for (at, say) in ["a", "b"].into_iter().zip(expected) {
            let what = format!("{at} of {policies:?} says that {say}");
            eventually(&what, async || {
                let printed = stage.node(at).run(&["status"]).stdout;
                let printed = String::from_utf8(printed).ok()?;
                let mut lines = printed.lines();
                lines
                    .find(|l| l.contains("no session with") && l.contains(say))
                    .map(drop)
            })
            .await;
        }
        let (a, b) = (stage.status("a").await, stage.status("b").await);
        assert!(session(&a, "b").is_none() && session(&b, "a").is_none());
        let refused = |s: &Status| s.transport.refusals_sent + s.transport.refusals_received;
        assert!(refused(&a) > 0 && refused(&b) > 0);
        let dropped = |s: &Status| s.transport.drops["handshake_policy"];
        assert!(dropped(&a) + dropped(&b) > 0);
    }
    // A peer's block says otherwise, and that is all it takes.
    let name = "name = \"b\"\nnode_key";
    stage.kill("b");
    stage.edit("b", "pq = \"required\"", "pq = \"preferred\"");
    stage.kill("a");
    stage.edit("a", name, "name = \"b\"\npq = \"required\"\nnode_key");
    for name in ["b", "a"] {
        stage.start(name).await;
    }
    let _events = stage.subscribed(RELIABLE.name).await;
    assert!(session(&stage.status("a").await, "b").unwrap().hybrid);
}

/// Has a node's file name a peer by its id, or again by its key.
fn by_id(stage: &Stage, at: &str, peer: &str, is_by_id: bool) {
    let peer = stage.node(peer);
    let key = format!("node_key = \"{}\"", peer.node_key);
    let id = format!("node_id = \"{}\"", peer.id);
    match is_by_id {
        true => stage.edit(at, &key, &id),
        false => stage.edit(at, &id, &key),
    }
}

/// The first contact tells the key, and sessions after it use that; an entity that the file does not name gets none.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_named_by_its_id_proves_its_key_and_its_entity() {
    let mut stage = Stage::new(&[RELIABLE]);
    by_id(&stage, "a", "b", true);
    by_id(&stage, "b", "a", true);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    for expected in ["xx", "ik"] {
        let mut events = stage.subscribed(RELIABLE.name).await;
        let a = stage.mesh("a").await;
        a.publish(RELIABLE.name, expected.as_bytes()).await.unwrap();
        assert_eq!(payloads(&mut events, 1).await, [expected.as_bytes()]);
        for (at, peer) in [("a", "b"), ("b", "a")] {
            let live = session(&stage.status(at).await, peer).unwrap();
            assert_eq!(live.pattern, expected, "{at}");
        }
        if expected == "xx" {
            // b forgets, and is told the key; a goes by what it has learned.
            drop(events);
            stage.kill("b");
            by_id(&stage, "b", "a", false);
            stage.start("b").await;
            // Until then a would publish to the node that was killed.
            eventually("a's session with the new b", async || {
                let status = stage.mesh("a").await.status().await.ok()?;
                (session(&status, "b")?.pattern == "ik").then_some(())
            })
            .await;
        }
    }
    stage.kill("a");
    let other = EntityKey::from(Secret::generate().unwrap()).public;
    let theirs = stage.node("b").entity_key.clone();
    stage.edit("a", &theirs, &hex::encode(&other));
    stage.start("a").await;
    let _subscription = stage
        .mesh("b")
        .await
        .subscribe(RELIABLE.name)
        .await
        .unwrap();
    eventually("b's entity is refused", async || {
        let status = stage.mesh("a").await.status().await.ok()?;
        assert!(session(&status, "b").is_none());
        // It is dropped for the entity that it names, before any proof.
        (status.transport.drops["handshake_peer"] > 0).then_some(())
    })
    .await;
}
