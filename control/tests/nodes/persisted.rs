//! Channels that a node keeps by command: from then on, over a restart, and no more.

use crate::{
    declared::{ALL, NAME, channel, create, stage, version},
    numbered,
    stage::{Channel, RELIABLE, Stage, eventually, in_time},
};
use std::{fs, process::Command};
use virga::mesh::{Cursor, MeshError, Replay, Replayed};

/// b publishes nothing and keeps; a publishes.
async fn running() -> Stage {
    let mut stage = stage(&ALL);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    stage
}

/// Publishes once b's log hears it, and waits until it has so many events.
async fn publish(stage: &Stage, events: &[Vec<u8>], end: u64) {
    eventually("b's log has subscribed", async || {
        let subscriptions = stage.mesh("b").await.subscriptions().await.unwrap();
        let mut named = subscriptions.iter().filter(|s| s.name == NAME);
        named.any(|s| s.state == "granted").then_some(())
    })
    .await;
    let mesh = stage.mesh("a").await;
    let published = in_time("publishing", mesh.publish_batch(NAME, events)).await;
    assert_eq!(published.unwrap().published, events.len() as u64);
    eventually("b's log has them", async || {
        let logs = stage.status("b").await.logs;
        (logs.first()?.readable == end).then_some(())
    })
    .await;
}

/// The next events of a log that b keeps.
async fn events(replay: &mut Replay, count: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < count {
        let next = in_time("the log's next event", replay.next_kept()).await;
        match next.unwrap().unwrap() {
            Replayed::Event(event) => all.push(event.payload.to_vec()),
            Replayed::Gap(why) => panic!("{why}"),
        }
    }
    all
}

/// What a command says at b; whether it succeeded, too.
fn said(stage: &Stage, arguments: &[&str]) -> (bool, String) {
    let output = stage.node("b").run(arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_kept_by_command_over_a_restart_until_another_ends_it() {
    let mut stage = running().await;
    let sent = numbered(40);
    let limits = ["--persist", "--keep-events", "1000"];
    let words = create(&stage, "b", NAME, &limits).unwrap();
    assert!(
        words.contains("this node keeps by/command: from now on"),
        "{words}"
    );
    version(&stage, "a", NAME, 1).await;
    publish(&stage, &sent[..10], 10).await;
    // Another node reads it there.
    let mesh = stage.mesh("b").await;
    let mut replay = mesh.replay(NAME, Cursor::Start).await.unwrap();
    assert_eq!(events(&mut replay, 10).await, sent[..10]);

    let kept = "kept here by command (synced, keep_events 1000)";
    for arguments in [&["channel", "ls"][..], &["channel", "show", NAME]] {
        let (is_done, text) = said(&stage, arguments);
        assert!(is_done && text.contains(kept), "{text}");
    }
    let config = stage.node("b").config();
    let checked = Command::new(env!("CARGO_BIN_EXE_virga"))
        .arg("check-config")
        .arg(config)
        .output()
        .unwrap();
    let text = String::from_utf8(checked.stdout).unwrap();
    assert!(
        text.contains(&format!("channel by/command: {kept}")),
        "{text}"
    );

    // SIGKILL, and all is as before.
    stage.kill("b");
    stage.start("b").await;
    publish(&stage, &sent[10..20], 20).await;
    let mesh = stage.mesh("b").await;
    let mut replay = mesh.replay(NAME, Cursor::Start).await.unwrap();
    assert_eq!(events(&mut replay, 20).await, sent[..20]);

    // Otherwise from the next start on; the log is open as it is.
    let other = ["channel", "keep", NAME, "--durability", "flushed"];
    let (is_done, text) = said(&stage, &other);
    assert!(
        is_done && text.contains("once the node is started again"),
        "{text}"
    );

    // No more: nothing comes, nobody reads, the files stay.
    let (is_done, text) = said(&stage, &["channel", "keep", NAME, "--end"]);
    assert!(is_done && text.contains("the log's files stay"), "{text}");
    let ended = in_time("the end", replay.next_kept()).await.unwrap();
    assert!(
        matches!(&ended, Err(MeshError::Ended(why)) if why.contains("no more")),
        "{ended:?}"
    );
    assert!(mesh.replay(NAME, Cursor::Start).await.is_err());
    assert_eq!(stage.status("b").await.logs, []);
    stage.subscribers(NAME, 0).await;
    let published = stage.mesh("a").await.publish(NAME, b"unheard").await;
    assert_eq!(published.unwrap().subscribers, 0);
    let (is_done, text) = said(&stage, &["channel", "keep", NAME, "--end"]);
    assert!(
        !is_done && text.contains("no command had by/command"),
        "{text}"
    );

    // Again: the log goes on where it was, here and after a restart.
    let (is_done, text) = said(&stage, &["channel", "keep", NAME]);
    assert!(is_done, "{text}");
    publish(&stage, &sent[20..30], 30).await;
    stage.kill("b");
    stage.start("b").await;
    publish(&stage, &sent[30..], 40).await;
    let mesh = stage.mesh("b").await;
    let mut replay = mesh.replay(NAME, Cursor::Start).await.unwrap();
    assert_eq!(events(&mut replay, 40).await, sent);

    // With the channel goes that it is kept.
    let removed = channel(stage.node("b"), stage.node("router"), &["rm", NAME]).unwrap();
    assert!(removed.contains("keeps by/command no more"), "{removed}");
    stage.kill("b");
    stage.start("b").await;
    assert_eq!(stage.status("b").await.logs, []);
    let logs = fs::read_dir(stage.node("b").file("state/logs"));
    assert_eq!(logs.unwrap().count(), 1, "its files");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_would_come_to_is_not_kept_and_what_the_file_says_holds() {
    let mut stage = Stage::new(&[Channel {
        name: NAME,
        ..RELIABLE
    }]);
    let line = format!("name = \"{NAME}\"\n");
    stage.edit("b", &line, &format!("{line}persist = true\n"));
    for name in ["router", "b"] {
        stage.start(name).await;
    }
    for end in [&[][..], &["--end"]] {
        let (is_done, text) = said(&stage, &[&["channel", "keep", NAME], end].concat());
        assert!(!is_done && text.contains("configuration file"), "{text}");
    }
    let (_, text) = said(&stage, &["channel", "ls"]);
    assert!(text.contains("kept here (synced)"), "{text}");
    // The router may not subscribe.
    let refused = stage.node("router").run(&["channel", "keep", NAME]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("may subscribe to"), "{text}");
    for wrong in [
        &["--durability", "safe"][..],
        &["--keep-events", "0"],
        &["--compact-after", "1day"],
        &["--end", "--keep-for", "1day"],
    ] {
        let (is_done, text) = said(&stage, &[&["channel", "keep", NAME], wrong].concat());
        assert!(!is_done && !text.is_empty(), "{wrong:?}: {text}");
    }
}

const NODES: [&str; 3] = ["a", "router", "b"];

/// Starts all anew, and waits until all know who leads the log that they hold together.
async fn restart(stage: &mut Stage) {
    for name in NODES {
        stage.kill(name);
    }
    for name in NODES {
        stage.start(name).await;
    }
    eventually("one leads the log", async || {
        for name in NODES {
            let logs = stage.status(name).await.logs;
            let leader = logs.first()?.replication.as_ref()?.leader.clone();
            leader?;
        }
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_hold_a_log_together_by_command_from_their_next_start_on() {
    let mut stage = running().await;
    let everybody = "a,b,router";
    let made = ["create", NAME, "--publish", "a", "--subscribe", everybody];
    channel(stage.node("b"), stage.node("router"), &made).unwrap();
    for name in NODES {
        version(&stage, name, NAME, 1).await;
    }
    for (wrong, why) in [
        (&["--replicas", "a,nobody,b"][..], "\"nobody\" is neither"),
        (&["--replicas", "a,b,a"], "\"a\" is named twice"),
        (&["--replicas", "b", "--compact-by", "id"], "byte for byte"),
        (&["--replicas", "b", "--durability", "memory"], "on disk"),
        (
            &["--replicas", "b", "--acks", "most"],
            "no number of replicas",
        ),
        (&["--acks", "all"], "say replicas, too"),
    ] {
        let (is_done, text) = said(&stage, &[&["channel", "keep", NAME], wrong].concat());
        assert!(!is_done && text.contains(why), "{wrong:?}: {text}");
    }
    let replicas = ["channel", "keep", NAME, "--replicas", "a,router,b"];
    for name in NODES {
        let output = stage.node(name).run(&replicas);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let expected = "on its replicas once this node is started again";
        assert!(text.contains(expected), "{name}: {text}");
        assert_eq!(stage.status(name).await.logs, []);
    }
    restart(&mut stage).await;
    let sent = numbered(40);
    let publish = async |stage: &Stage, events: &[Vec<u8>]| {
        let mesh = stage.mesh("a").await;
        let published = in_time("publishing", mesh.publish_batch(NAME, events)).await;
        assert_eq!(published.unwrap().published, events.len() as u64);
    };
    publish(&stage, &sent[..20]).await;
    for name in NODES {
        eventually("the replica has them", async || {
            (stage.status(name).await.logs.first()?.readable == 20).then_some(())
        })
        .await;
    }
    let kept = "kept here by command (synced, replicas a router b)";
    let (_, text) = said(&stage, &["channel", "ls"]);
    assert!(text.contains(kept), "{text}");
    // What a command said is no change of the file.
    let (is_done, text) = said(&stage, &["reload"]);
    assert!(is_done, "{text}");
    // Two of three are enough, over another restart, too.
    restart(&mut stage).await;
    stage.kill("b");
    publish(&stage, &sent[20..]).await;
    let mesh = stage.mesh("router").await;
    let mut replay = mesh.replay(NAME, Cursor::Start).await.unwrap();
    assert_eq!(events(&mut replay, 40).await, sent);
    stage.start("b").await;
    eventually("b has the rest", async || {
        (stage.status("b").await.logs.first()?.readable == 40).then_some(())
    })
    .await;
    // No more from the next start on; a log of its own is no copy of that one.
    let (is_done, text) = said(&stage, &["channel", "keep", NAME, "--end"]);
    assert!(
        is_done && text.contains("until it is started again"),
        "{text}"
    );
    stage.kill("b");
    stage.start("b").await;
    assert_eq!(stage.status("b").await.logs, []);
    // Its log of those is none that it may go on with alone.
    let (is_done, text) = said(&stage, &["channel", "keep", NAME]);
    assert!(
        !is_done && text.contains("several nodes hold together"),
        "{text}"
    );
    let other = NAME.replace("command", "itself");
    let made = [
        "create",
        &other,
        "--publish",
        "a",
        "--subscribe",
        everybody,
        "--persist",
    ];
    channel(stage.node("b"), stage.node("router"), &made).unwrap();
    let replicas = ["channel", "keep", &other, "--replicas", "a,router,b"];
    let (is_done, text) = said(&stage, &replicas);
    assert!(!is_done && text.contains("this node holds alone"), "{text}");
}

/// What is in the way of b's configuration, by the command that looks.
fn checked(stage: &Stage) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
    let output = command.arg("check-config").arg(stage.node("b").config());
    let output = output.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_whatever_became_of_those_that_hold_a_log_with_it_by_command() {
    let mut stage = running().await;
    let everybody = "a,b,router";
    let made = ["create", NAME, "--publish", "a", "--subscribe", everybody];
    channel(stage.node("b"), stage.node("router"), &made).unwrap();
    // Who may not have the events holds no log of them.
    let other = NAME.replace("command", "few");
    create(&stage, "b", &other, &[]).unwrap();
    for name in NODES {
        version(&stage, name, NAME, 1).await;
    }
    version(&stage, "b", &other, 1).await;
    let replicas = ["channel", "keep", &other, "--replicas", "b,a"];
    let (is_done, text) = said(&stage, &replicas);
    assert!(
        !is_done && text.contains("of a may not subscribe"),
        "{text}"
    );
    let replicas = ["channel", "keep", NAME, "--replicas", "a,router,b"];
    for name in NODES {
        let output = stage.node(name).run(&replicas);
        assert!(output.status.success(), "{name}: {output:?}");
    }
    restart(&mut stage).await;
    // Said again it holds already.
    let (is_done, text) = said(&stage, &replicas);
    assert!(is_done && text.contains("from now on"), "{text}");
    // Another name for a node changes nothing.
    let path = stage.node("b").config();
    let whole = fs::read_to_string(&path).unwrap();
    let block = "[[peers]]\nname = \"a\"";
    stage.edit("b", block, "[[peers]]\nname = \"renamed\"");
    let (is_done, text) = checked(&stage);
    assert!(
        is_done && text.contains("replicas renamed router b"),
        "{text}"
    );
    stage.kill("b");
    stage.start("b").await;
    eventually("b takes part", async || {
        let logs = stage.status("b").await.logs;
        let leader = logs.first()?.replication.as_ref()?.leader.clone();
        leader.is_some().then_some(())
    })
    .await;
    // Without the node the log is not kept, and all else is as it was.
    let text = fs::read_to_string(&path).unwrap();
    let (before, after) = text.split_once("[[peers]]\nname = \"renamed\"").unwrap();
    let rest = after.find("\n[[").map_or("", |at| &after[at..]);
    fs::write(&path, format!("{before}{rest}")).unwrap();
    let (is_done, text) = checked(&stage);
    assert!(!is_done && text.contains("neither a node's name"), "{text}");
    stage.kill("b");
    stage.start("b").await;
    let logs = stage.status("b").await.logs;
    let problem = logs[0].problem.clone().unwrap();
    assert!(
        logs[0].has_ended && problem.contains("neither a node's name"),
        "{problem}"
    );
    let (_, text) = said(&stage, &["channel", "ls"]);
    assert!(text.contains("not kept here, although"), "{text}");
    fs::write(&path, whole).unwrap();
    // A note that has this node go on alone with what several hold is not followed.
    stage.kill("b");
    let notes = stage.node("b").file("state").join("kept.json");
    fs::write(&notes, format!("{{\"channels\": {{\"{NAME}\": {{}}}}}}")).unwrap();
    stage.start("b").await;
    let logs = stage.status("b").await.logs;
    let problem = logs[0].problem.clone().unwrap();
    assert!(problem.contains("several nodes hold together"), "{problem}");
    let (is_done, text) = said(&stage, &replicas);
    assert!(
        is_done && text.contains("once this node is started"),
        "{text}"
    );
    stage.kill("b");
    stage.start("b").await;
    eventually("b takes part again", async || {
        let logs = stage.status("b").await.logs;
        let leader = logs.first()?.replication.as_ref()?.leader.clone();
        leader.is_some().then_some(())
    })
    .await;
}
