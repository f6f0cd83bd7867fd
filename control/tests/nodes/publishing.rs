//! What `virga pub` says: of lines that are too long, of nobody listening, of a node that goes away.

use crate::{
    payloads,
    stage::{Node, RELIABLE, Stage, eventually, in_time},
};
use std::{
    fs,
    io::{Read as _, Write as _},
    process::{Child, Stdio},
};
use virga_transport::limits::MESSAGE_BYTES_MAX;

/// `virga pub` with a pipe to its standard input.
fn publishing(node: &Node, more: &[&str]) -> Child {
    let mut arguments = vec!["pub", RELIABLE.name];
    arguments.extend(more);
    let mut command = node.command(&arguments);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Closes its input, waits for its end, and returns the exit code and what it said.
fn end(mut child: Child) -> (Option<i32>, String) {
    drop(child.stdin.take());
    let mut words = String::new();
    let mut errors = child.stderr.take().unwrap();
    errors.read_to_string(&mut words).unwrap();
    (child.wait().unwrap().code(), words)
}

/// Most memory that a process has had, in KiB.
fn peak_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_are_too_long_are_refused_one_by_one_and_never_held() {
    let stage = Stage::running(&[RELIABLE]).await;
    let b = stage.mesh("b").await;
    let mut events = b.subscribe(RELIABLE.name).await.unwrap();
    let mut child = publishing(stage.node("a"), &["--subscribers", "1", "--timeout", "60"]);
    let mut input = child.stdin.take().unwrap();
    let line = |bytes: usize| [&vec![b'x'; bytes][..], b"\n"].concat();
    input.write_all(b"one\n").unwrap();
    input.write_all(&line(MESSAGE_BYTES_MAX)).unwrap();
    input.write_all(&line(MESSAGE_BYTES_MAX + 1)).unwrap();
    input.write_all(b"two\n").unwrap();
    for _ in 0..100 {
        input.write_all(&vec![b'y'; 1024 * 1024]).unwrap();
    }
    input.write_all(b"\nthree\n").unwrap();
    let arrived = payloads(&mut events, 4).await;
    assert_eq!(arrived[0], &b"one"[..]);
    assert_eq!(arrived[1].len(), MESSAGE_BYTES_MAX);
    assert_eq!(arrived[2..], [&b"two"[..], b"three"]);
    let peak = peak_kib(child.id());
    assert!(peak < 64 * 1024, "{peak} KiB for lines of 100 MiB");
    drop(input);
    let (code, words) = end(child);
    assert_eq!(code, Some(1), "{words}");
    for say in [
        &format!("line 3 is not published: it is longer than the {MESSAGE_BYTES_MAX} bytes"),
        "line 5 is not published",
        "published 4 events; the last went to 1 subscriber; refused 2\n",
        &format!("virga: not published: 2 events, larger than the {MESSAGE_BYTES_MAX} bytes"),
    ] {
        assert!(words.contains(say), "{say:?} is not in {words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_refuses_what_is_too_large_and_publishes_the_rest_of_the_request() {
    let stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let a = stage.mesh("a").await;
    // Beyond the channel's limit, and beyond what the API keeps of any event.
    let sent = [
        b"one".to_vec(),
        vec![1; MESSAGE_BYTES_MAX + 1],
        vec![2; 5 * 1024 * 1024],
        b"two".to_vec(),
    ];
    let published = in_time("publishing", a.publish_batch(RELIABLE.name, &sent)).await;
    let published = published.unwrap();
    assert_eq!((published.published, published.refused), (2, 2));
    assert_eq!(payloads(&mut events, 2).await, [&b"one"[..], b"two"]);
    let status = stage.status("a").await;
    assert_eq!(status.channel_reasons["too_large"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_to_nobody_is_said_and_subscribers_can_be_awaited() {
    let mut stage = Stage::new(&[RELIABLE]);
    for name in ["router", "a"] {
        stage.start(name).await;
    }
    let a = stage.node("a");
    let output = a.run(&["pub", RELIABLE.name, "--data", "x", "--count", "2"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success());
    assert_eq!(
        words,
        "published 2 events\nvirga: warning: 2 of 2 events reached nobody: test/reliable had no \
         subscriber then; --subscribers 1 waits for one\n"
    );
    let json = a.json(&["pub", RELIABLE.name, "--data", "x", "--json"]);
    assert_eq!(
        (json["published"].as_u64(), json["unheard"].as_u64()),
        (Some(1), Some(1))
    );

    let patient = [
        "pub",
        RELIABLE.name,
        "--data",
        "x",
        "--subscribers",
        "1",
        "--timeout",
    ];
    let output = a.run(&[&patient[..], &["1"]].concat());
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        words.contains("nothing was published: after 1 s test/reliable has 0 of the 1 subscribers"),
        "{words}"
    );
    assert_eq!(stage.status("a").await.channels[0].published, 3);

    let waiting = a.command(&[&patient[..], &["80"]].concat()).spawn();
    let mut waiting = waiting.unwrap();
    stage.start("b").await;
    let b = stage.mesh("b").await;
    let mut events = b.subscribe(RELIABLE.name).await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, [&b"x"[..]]);
    assert!(waiting.wait().unwrap().success());
    let a = stage.mesh("a").await;
    assert_eq!(a.wait_for_subscribers(RELIABLE.name, 1).await.unwrap(), 1);
    let published = a.publish(RELIABLE.name, b"y").await.unwrap();
    assert_eq!((published.subscribers, published.unheard), (1, 0));
}

/// What is under way when the node goes is told by the node's last words.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_says_how_much_was_published() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    let published = |count: u64| {
        let stage = &stage;
        eventually("the events", async move || {
            let status = stage.status("a").await;
            (status.channels[0].published == count).then_some(())
        })
    };
    let mut idle = publishing(stage.node("a"), &[]);
    idle.stdin
        .as_mut()
        .unwrap()
        .write_all(b"1\n2\n3\n")
        .unwrap();
    published(3).await;
    assert!(stage.terminate("a").success());
    // Its input is still open: it is the node that ended it.
    let mut words = String::new();
    idle.stderr
        .take()
        .unwrap()
        .read_to_string(&mut words)
        .unwrap();
    assert_eq!(idle.wait().unwrap().code(), Some(1));
    assert_eq!(
        words,
        "virga: the node is shutting down; before that, 3 of this request's events were published \
         and 0 refused (3 events had been handed to the node by then)\n"
    );

    stage.start("a").await;
    let mut busy = publishing(stage.node("a"), &[]);
    let mut input = busy.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let lines = "some text of a line\n".repeat(1_000);
        while input.write_all(lines.as_bytes()).is_ok() {}
    });
    eventually("events", async || {
        let status = stage.status("a").await;
        (status.channels[0].published > 1_000).then_some(())
    })
    .await;
    assert!(stage.terminate("a").success());
    let (code, words) = end(busy);
    writer.join().unwrap();
    assert_eq!(code, Some(1), "{words}");
    assert!(
        words.contains("the node is shutting down; before that, "),
        "{words}"
    );
}
