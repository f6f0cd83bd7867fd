//! What `virga sub` says of a subscription that waits, is confirmed, or is refused.

use crate::stage::{Channel, Node, RELIABLE, Stage, eventually};
use std::{
    fs,
    process::{Child, Stdio},
};

/// `virga sub`, and the file that its standard error goes to.
struct Subscriber {
    process: Child,
    words: tempfile::NamedTempFile,
}

impl Subscriber {
    fn start(node: &Node, arguments: &[&str]) -> Self {
        let words = tempfile::NamedTempFile::new().unwrap();
        let mut command = node.command(arguments);
        command
            .stdout(Stdio::null())
            .stderr(words.reopen().unwrap());
        let process = command.spawn().unwrap();
        Self { process, words }
    }

    /// Waits until this is the last that it has said.
    async fn says(&self, line: &str) {
        let wanted = format!("virga: {line}\n");
        eventually(&wanted, async || {
            let said = fs::read_to_string(self.words.path()).unwrap();
            said.ends_with(&wanted).then_some(())
        })
        .await;
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_says_who_is_waited_for_and_who_has_confirmed() {
    let mut stage = Stage::new(&[RELIABLE]);
    for name in ["router", "b"] {
        stage.start(name).await;
    }
    let waiting = "subscribed to channel test/reliable; no publisher has confirmed; \
                   no session yet with: a";
    let confirmed = "subscribed to channel test/reliable; 1 publisher has confirmed (a)";
    let subscriber = Subscriber::start(stage.node("b"), &["sub", RELIABLE.name]);
    subscriber.says(waiting).await;
    stage.start("a").await;
    subscriber.says(confirmed).await;
    let prefix = Subscriber::start(stage.node("b"), &["sub", "test", "--prefix"]);
    let confirmed_prefix = "subscribed to prefix test; 1 publisher has confirmed (a)";
    prefix.says(confirmed_prefix).await;
    let status = stage.node("b").run(&["status"]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.contains("  subscribed to prefix test at a: granted\n"),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_says_who_refuses_and_why() {
    let at_a = Channel {
        subscribe: &["router"],
        ..RELIABLE
    };
    let mut stage = Stage::new(&[RELIABLE]);
    stage.configure("a", &[at_a]);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let subscriber = Subscriber::start(stage.node("b"), &["sub", RELIABLE.name]);
    let refused = "subscribed to channel test/reliable; no publisher has confirmed; \
                   a refuses: its configuration does not let this node's entity subscribe";
    subscriber.says(refused).await;
    let output = stage.node("a").run(&["sub", RELIABLE.name]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        words.contains("may not subscribe to test/reliable"),
        "{words}"
    );
}
