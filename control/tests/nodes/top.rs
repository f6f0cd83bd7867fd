//! `virga top` in a terminal, at a node that gives no answer.

use crate::stage::{Node, RELIABLE, Stage, eventually};
use std::{
    io::{Read, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

const ROWS: u16 = 30;
const COLUMNS: u16 = 118;

/// `virga top` in a pseudo terminal, which script(1) gives it.
struct Top {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Top {
    fn start(node: &Node) -> Self {
        let top = node.command(&["top"]);
        let words = [top.get_program()].into_iter().chain(top.get_args());
        let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
        let line = format!("stty rows {ROWS} cols {COLUMNS}; exec {}", words.join(" "));
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, mut written) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let screen = Arc::new(Mutex::new(vt100::Parser::new(
            ROWS.try_into().unwrap(),
            COLUMNS.try_into().unwrap(),
            0,
        )));
        let shown = Arc::clone(&screen);
        thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(count @ 1..) = written.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self {
            child,
            keys,
            screen,
        }
    }

    fn press(&mut self, key: &[u8]) {
        self.keys.write_all(key).unwrap();
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits until the screen has these words.
    async fn shows(&self, words: &str) {
        eventually(words, async || self.text().contains(words).then_some(())).await;
    }

    /// For how many seconds it is said that no answer has come.
    fn silent_s(&self) -> Option<u64> {
        let text = self.text();
        let (_, rest) = text.split_once("no answer for ")?;
        rest.split_once(" s, asking on")?.0.parse().ok()
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_count_while_the_node_gives_no_answer_and_it_is_said_for_how_long() {
    let mut stage = Stage::new(&[RELIABLE]);
    stage.start("a").await;
    let mut top = Top::start(stage.node("a"));
    top.shows("Workers").await;
    stage.signal("a", "-STOP");
    eventually("it is said for how long", async || {
        top.silent_s().filter(|seconds| *seconds >= 2)
    })
    .await;
    top.press(b"s");
    top.shows("most sent first").await;
    stage.signal("a", "-CONT");
    eventually("it answers again", async || {
        top.silent_s().is_none().then_some(())
    })
    .await;
    stage.signal("a", "-STOP");
    eventually("it is silent again", async || top.silent_s()).await;
    top.press(b"q");
    let ended = eventually("it ends", async || top.child.try_wait().unwrap()).await;
    stage.signal("a", "-CONT");
    assert!(ended.success(), "{ended}");
}
