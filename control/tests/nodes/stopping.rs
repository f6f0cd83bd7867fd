//! What a node that is stopped still does for its peers.

use crate::{
    payloads,
    stage::{RELIABLE, Stage, eventually, in_time},
};
use std::{fs, process::Command, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_before_sigterm_arrives() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let a = stage.mesh("a").await;
    stage.signal("b", "-STOP");
    let sent: Vec<Vec<u8>> = (0..300)
        .map(|n| format!("{n:01000}").into_bytes())
        .collect();
    let publishing = a.publish_batch(RELIABLE.name, &sent);
    let published = in_time("all are accepted", publishing).await.unwrap();
    assert_eq!((published.published, published.lost), (300, 0));
    // Most of it waits at a for acknowledgements.
    stage.signal("a", "-TERM");
    let stops = async || {
        let log = stage.node("a").log();
        log.contains("SIGTERM: stopping").then_some(())
    };
    eventually("a stops", stops).await;
    stage.signal("b", "-CONT");
    let arrived = payloads(&mut events, sent.len()).await;
    assert!(arrived == sent, "out of order");
    assert!(stage.terminate("a").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_acknowledges_nothing_holds_up_the_end_for_a_bounded_time() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    let _events = stage.subscribed(RELIABLE.name).await;
    let a = stage.mesh("a").await;
    stage.signal("b", "-STOP");
    let publishing = a.publish(RELIABLE.name, b"never heard");
    in_time("it is accepted", publishing).await.unwrap();
    let begun = std::time::Instant::now();
    assert!(stage.terminate("a").success());
    let took = begun.elapsed();
    assert!(
        took > Duration::from_secs(1),
        "nothing was waited for: {took:?}"
    );
    // The session itself would end after 35 s.
    assert!(took < Duration::from_secs(30), "{took:?}");
    stage.signal("b", "-CONT");
}

/// What `virga doctor` finds out about the node itself: verdicts by name.
fn doctor(stage: &Stage, node: &str) -> Vec<(String, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
    command.args(["doctor", "--json", "--config"]);
    let output = command.arg(stage.node(node).config()).output().unwrap();
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap().to_owned();
    let own = checks
        .iter()
        .map(|check| (text(check, "name"), text(check, "verdict")));
    own.filter(|(name, _)| name == "node" || name == "sockets")
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_a_node_that_answers_from_one_that_is_stopped() {
    let mut stage = Stage::new(&[RELIABLE]);
    assert_eq!(doctor(&stage, "a"), [], "it does not run");
    stage.start("a").await;
    let ok = |name: &str| (name.to_owned(), "ok".to_owned());
    eventually("doctor finds it well", async || {
        (doctor(&stage, "a") == [ok("node"), ok("sockets")]).then_some(())
    })
    .await;
    stage.signal("a", "-STOP");
    let found = doctor(&stage, "a");
    stage.signal("a", "-CONT");
    assert_eq!(found, [("node".to_owned(), "fail".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_of_a_node_in_user_space_is_refused_until_the_first_is_gone() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let node = stage.node("a");
    let elsewhere = tempfile::tempdir().unwrap();
    let other = |name: &str| elsewhere.path().join(name).display().to_string();
    let (state, socket) = (node.file("state"), node.socket());
    let key = node.file("node.key");
    let [state, socket, key] = [&state, &socket, &key].map(|path| path.display().to_string());
    let made = Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(["keygen", "--dir", &other("keys")])
        .output();
    assert!(made.unwrap().status.success());
    let port = node.listen.port().to_string();
    let listen = std::net::UdpSocket::bind("127.0.0.19:0").unwrap();
    let listen = listen.local_addr().unwrap();
    let text = fs::read_to_string(node.config()).unwrap();
    let text = text.replace(&format!("127.0.0.2:{port}"), &listen.to_string());
    let folder = node.socket().parent().unwrap().to_path_buf();
    let beside = folder.join("second.sock").display().to_string();
    let another =
        |held: &str| format!("another daemon runs node a: it holds {held}; stop it first");
    let own_key = (&key, other("keys/node.key"));
    // Each shares one thing with the first, and the last its name alone.
    for (own, say) in [
        (
            vec![(&socket, other("a.sock"))],
            another(&format!("{state}/lock")),
        ),
        (
            vec![(&socket, other("a.sock")), (&state, other("state"))],
            another(&key),
        ),
        (
            vec![(&state, other("state")), own_key.clone()],
            format!("{socket} is in use by a running node: stop that one first"),
        ),
        (
            vec![
                (&socket, beside.clone()),
                (&state, other("state")),
                own_key.clone(),
            ],
            another(&folder.join("a.lock").display().to_string()),
        ),
    ] {
        let text = own.iter().fold(text.clone(), |text, (from, to)| {
            text.replace(from.as_str(), to)
        });
        let config = elsewhere.path().join("second.toml");
        fs::write(&config, text).unwrap();
        let mut second = Command::new(env!("CARGO_BIN_EXE_virga"));
        let second = second.args(["node", "run", "--config"]).arg(config);
        let second = second.output().unwrap();
        let words = String::from_utf8(second.stderr).unwrap();
        assert_eq!(second.status.code(), Some(1), "{words}");
        assert!(words.contains(&say), "{say}: {words}");
    }
    assert!(
        !std::path::Path::new(&beside).exists(),
        "it leaves no socket"
    );
    let a = stage.mesh("a").await;
    a.publish(RELIABLE.name, b"on").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, [&b"on"[..]]);
    // Whatever the first has left, it holds nothing.
    stage.kill("a");
    assert!(folder.join("a.lock").exists());
    stage.start("a").await;
}
