//! The local API's socket, spoken to by hand.

use crate::stage::{Node, RELIABLE, Stage};
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
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
