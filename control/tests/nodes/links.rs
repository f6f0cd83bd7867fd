//! The keepalive between neighbours, and what a node shows of its links.

use super::stage::{RELIABLE, Stage, eventually};
use serde_json::Value;

fn peers(stage: &Stage, name: &str) -> Value {
    stage.node(name).json(&["peers", "--json"])
}

fn peer(stage: &Stage, name: &str, other: &str) -> Value {
    let all = peers(stage, name);
    let mut all = all.as_array().unwrap().iter();
    all.find(|peer| peer["name"] == other).unwrap().clone()
}

fn link(stage: &Stage, name: &str, other: &str) -> String {
    let peer = peer(stage, name, other);
    peer["link"]["state"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_stands_still_is_found_silent_and_comes_back() {
    let stage = Stage::running(&[RELIABLE]).await;
    let is = async |name, other, state: &'static str| {
        let look = async || (link(&stage, name, other) == state).then_some(());
        eventually(state, look).await;
    };
    for (name, other) in [
        ("a", "router"),
        ("router", "a"),
        ("router", "b"),
        ("b", "router"),
    ] {
        is(name, other, "up").await;
    }
    let far = peer(&stage, "a", "b");
    assert_eq!(
        (&far["path"], &far["over"]),
        (&"relayed".into(), &"router".into())
    );
    assert_eq!(far["link"], Value::Null);
    let near = peer(&stage, "a", "router");
    assert_eq!(
        (&near["path"], &near["session"]),
        (&"direct".into(), &"established".into())
    );
    // Between two that forward in user space their workers answer.
    assert_eq!(near["link"]["answers"], "worker");
    assert!(near["link"]["detect_ms"].as_u64().unwrap() >= 200, "{near}");

    stage.signal("router", "-STOP");
    is("a", "router", "silent").await;
    is("b", "router", "silent").await;
    let found = peer(&stage, "a", "router");
    // There is no other way, and so this one stays in use.
    assert_eq!(found["path"], "direct");
    assert!(
        found["link"]["detections"].as_u64().unwrap() >= 1,
        "{found}"
    );
    let shown = stage.node("a").run(&["peers"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("(silent); found dead"), "{shown}");
    assert!(stage.node("a").log().contains("a link is dead"));
    stage.signal("router", "-CONT");
    is("a", "router", "up").await;
    is("router", "a", "up").await;
    assert!(stage.node("a").log().contains("in use again"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_watches_no_links_is_left_alone() {
    let mut stage = Stage::new(&[RELIABLE]);
    stage.edit("router", "[forwarding]", "[forwarding]\nkeepalive_ms = 0");
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let look = async || {
        let near = peer(&stage, "a", "router");
        (near["session"] == "established").then_some(near)
    };
    let near = eventually("a session", look).await;
    assert_eq!(near["link"]["state"], "unknown", "{near}");
    assert_eq!(link(&stage, "router", "a"), "off");
    stage.signal("router", "-STOP");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(link(&stage, "a", "router"), "unknown");
    stage.signal("router", "-CONT");
}
