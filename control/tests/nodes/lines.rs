//! A daemon whose log nobody takes: the disk is full, or the program that read it is gone.

use crate::stage::{RELIABLE, Stage, eventually};
use std::{fs, process::Stdio};

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_nobody_takes_are_counted_and_end_no_node() {
    let mut stage = Stage::new(&[RELIABLE]);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    stage
        .start_with("router", |command| {
            command.stderr(full);
        })
        .await;
    stage
        .start_with("b", |command| {
            command.stderr(Stdio::from(writer));
        })
        .await;
    stage.start("a").await;
    stage.subscribed(RELIABLE.name).await;
    let mut counts = Vec::new();
    for name in ["router", "b"] {
        let before = stage.status(name).await.node.log_lines_lost;
        assert!(before > 0, "{name}");
        // What a file that is read anew says is one more line.
        stage.signal(name, "-HUP");
        let after = eventually("another line is lost", async || {
            let lost = stage.status(name).await.node.log_lines_lost;
            (lost > before).then_some(lost)
        })
        .await;
        counts.push(after);
        let shown = stage.node(name).run(&["status"]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("lines of its log could not"), "{shown}");
    }
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"an event").await.unwrap();
    publisher.finish().await.unwrap();
    assert_eq!(stage.status("a").await.node.log_lines_lost, 0);
    assert!(stage.terminate("router").success());
    println!("lost at the router and at b: {counts:?}");
}
