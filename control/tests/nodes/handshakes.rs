//! How sessions between real nodes begin: each pattern with each policy of ML-KEM, and policies that contradict
//! each other.

use crate::{
    payloads,
    stage::{RELIABLE, Stage, eventually},
};
use virga::api::status::{SessionStatus, Status};

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
