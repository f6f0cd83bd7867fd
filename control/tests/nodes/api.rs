//! The local API's socket, spoken to by hand.

use crate::stage::{Node, RELIABLE, Stage, eventually, in_time};
use serde_json::Value;
use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    thread,
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

/// The user and the group that own nothing.
const NOBODY: u32 = 65_534;

/// Connects as that user and as a member of one group, on a thread that is it.
fn connect_as(user: u32, group: u32, path: &Path) -> io::Result<UnixStream> {
    let (user, group) = (
        rustix::process::Uid::from_raw(user),
        rustix::process::Gid::from_raw(group),
    );
    let path = path.to_owned();
    let other = thread::spawn(move || {
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(group, group, group)?;
        rustix::thread::set_thread_res_uid(user, user, user)?;
        UnixStream::connect(path)
    });
    other.join().unwrap()
}

/// Sockets of a process in one of the kernel's lists: those that listen, or all.
fn sockets(process: u32, list: &str, is_listening: bool) -> usize {
    let folder = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let targets = folder.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let own: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    let text = fs::read_to_string(format!("/proc/{process}/net/{list}")).unwrap();
    let rows = text.lines().skip(1).filter(|row| {
        let cells: Vec<&str> = row.split_whitespace().collect();
        let is_own = own.contains(&format!("socket:[{}]", cells[9]));
        is_own && (!is_listening || cells[3] == "0A")
    });
    rows.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_neither_owner_nor_of_the_group_is_not_let_in_and_no_tcp_port_is_open() {
    let mut stage = Stage::new(&[RELIABLE]);
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        // Each Debian has it.
        let node = "[node]\n";
        stage.edit("a", node, &format!("{node}socket_group = \"daemon\"\n"));
    }
    stage.start("a").await;
    let process = stage.process("a");
    assert!(
        sockets(process, "udp", false) > 0,
        "what it listens on is found"
    );
    for list in ["tcp", "tcp6"] {
        assert_eq!(sockets(process, list, true), 0, "{list}");
    }
    if !is_root {
        return println!("skipped: to be somebody else needs root");
    }

    let path = stage.node("a").socket();
    let run = path.parent().unwrap();
    let group = fs::metadata(&path).unwrap().gid();
    assert_eq!(fs::metadata(run).unwrap().gid(), group);
    assert!(group != 0, "the group's, not the owner's");
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let refused = |why: &str| {
        let error = connect_as(NOBODY, NOBODY, &path).expect_err(why);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{why}");
    };
    // The test's own folder is for anybody.
    set(run.ancestors().nth(2).unwrap(), 0o755);
    refused("by its folder");
    let mut member = connect_as(NOBODY, group, &path).unwrap();
    member.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "GET /status HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n";
    member.write_all(head.as_bytes()).unwrap();
    assert_eq!(answer(&mut member).0, 200);
    set(run, 0o755);
    refused("by its own mode");
}
