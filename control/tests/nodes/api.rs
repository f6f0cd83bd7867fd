//! The local API's socket, spoken to by hand.

use crate::stage::{Node, RELIABLE, Stage, eventually, in_time};
use serde_json::Value;
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    time::{Duration, Instant},
};
use virga::{
    api::server::{CONNECTIONS_MAX, HEAD_TIMEOUT},
    mesh::Mesh,
};

/// Longer than any answer here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(node.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request's head and reads what comes until the end of the connection.
fn ask(node: &Node, method: &str, uri: &str) -> (u16, String) {
    let mut stream = connect(node);
    let head = format!(
        "{method} {uri} HTTP/1.1\r\nhost: node\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    answer(&mut stream)
}

fn answer(stream: &mut UnixStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    (code.unwrap_or(0), text)
}

/// The one key of an error's JSON object.
fn error(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json"), "{answer}");
    let body: Value = serde_json::from_str(body).unwrap();
    let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["error"], "{answer}");
    body["error"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_a_json_object_of_one_shape() {
    let mut stage = Stage::new(&[RELIABLE]);
    stage.start("a").await;
    let a = stage.node("a");
    for (method, uri, code, words) in [
        ("GET", "/nowhere", 404, "there are GET /status"),
        ("GET", "/publish?channel=a", 405, "there are GET /status"),
        ("POST", "/status", 405, "there are GET /status"),
        ("POST", "/publish", 400, "/publish: "),
        ("POST", "/publish?channel=a&more=1", 400, "more"),
        ("POST", "/publish?channel=%2F", 400, "channel"),
        ("POST", "/publish?channel=nowhere", 404, "[[channels]]"),
        ("GET", "/subscribe", 400, "channel=NAME or prefix=NAME"),
        ("GET", "/subscribe?prefix=test", 403, "may not subscribe"),
        ("POST", "/link?peer=b&state=sideways", 400, "sideways"),
        ("POST", "/link?peer=nobody&state=up", 404, "nobody"),
    ] {
        let (found, text) = ask(a, method, uri);
        assert_eq!(found, code, "{method} {uri}: {text}");
        let error = error(&text);
        assert!(error.contains(words), "{method} {uri}: {error}");
    }
    let (code, text) = ask(a, "POST", "/status");
    assert_eq!(code, 405);
    assert!(text.to_lowercase().contains("\r\nallow: get"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_or_replaced_socket_comes_back_and_other_files_are_left_alone() {
    let mut stage = Stage::new(&[RELIABLE]);
    stage.start("a").await;
    let a = stage.node("a");
    let answers = async |what: &str| {
        eventually(what, async || {
            Mesh::open(a.socket()).await.ok()?.status().await.ok()
        })
        .await
    };

    fs::remove_file(a.socket()).unwrap();
    answers("a new socket").await;
    assert!(a.log().contains("listening on a new one"), "{}", a.log());

    // The directory too.
    fs::remove_dir_all(a.socket().parent().unwrap()).unwrap();
    answers("a new directory and socket").await;

    // A dead socket of someone else is replaced.
    fs::remove_file(a.socket()).unwrap();
    drop(UnixListener::bind(a.socket()).unwrap());
    answers("a socket in place of a dead one").await;

    // A file is not: somebody put it there.
    fs::remove_file(a.socket()).unwrap();
    fs::write(a.socket(), "kept").unwrap();
    eventually("the complaint", async || {
        a.log().contains("is not a socket").then_some(())
    })
    .await;
    assert_eq!(fs::read_to_string(a.socket()).unwrap(), "kept");
    fs::remove_file(a.socket()).unwrap();
    answers("a socket once the file is gone").await;

    // A socket that answers belongs to somebody, and outlives this daemon.
    fs::remove_file(a.socket()).unwrap();
    let _other = UnixListener::bind(a.socket()).unwrap();
    eventually("the other complaint", async || {
        a.log()
            .contains("is in use by a running node")
            .then_some(())
    })
    .await;
    let socket = a.socket();
    assert!(stage.terminate("a").success());
    assert!(socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_few_and_end_and_subscriptions_do_not() {
    let stage = Stage::running(&[RELIABLE]).await;
    let b = stage.node("b");
    let mut events = stage.subscribed(RELIABLE.name).await;
    let start = Instant::now();

    // One more than there are places, beside the subscription.
    let silent: Vec<UnixStream> = (0..CONNECTIONS_MAX).map(|_| connect(b)).collect();
    let (code, text) = ask(b, "GET", "/status");
    assert_eq!(code, 503, "{text}");
    assert!(error(&text).contains("API connections already"), "{text}");
    let output = b.run(&["status"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(words.contains("API connections already"), "{words}");

    // The daemon ends them, and a request that never ends its head.
    let mut slow = silent.into_iter().next().unwrap();
    // It may be closed already where this machine is slow.
    let _closed = slow.write_all(b"GET /status HTTP/1.1\r\nhost: ");
    let mut rest = Vec::new();
    // Closed with or without unread bytes.
    let _reset = slow.read_to_end(&mut rest);
    assert!(start.elapsed() >= HEAD_TIMEOUT);
    let status = eventually("a place", async || {
        Mesh::open(b.socket()).await.ok()?.status().await.ok()
    })
    .await;
    assert!(status.api.refused >= 2, "{:?}", status.api);
    assert_eq!(status.api.connections_max, CONNECTIONS_MAX);
    let log = b.log();
    assert_eq!(
        log.matches("as many connections as it may").count(),
        1,
        "{log}"
    );

    // The subscription is older than any of them.
    let a = stage.mesh("a").await;
    a.publish(RELIABLE.name, b"still here").await.unwrap();
    let delivery = in_time("the event", events.next_delivery()).await;
    assert_eq!(delivery.unwrap().unwrap().payload, &b"still here"[..]);
}
