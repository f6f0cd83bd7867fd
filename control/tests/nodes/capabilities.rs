//! Channels that ask for capabilities, over real daemons: the command line vouches, announces, presents,
//! lists and explains. The router's entity is the issuer.

use crate::{
    payloads,
    stage::{RELIABLE, Stage, eventually},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use virga::api::why::Why;

const ASKED: &str = "reliable = true\npublish_caps = [\"hardware.gpu\", \"software.cuda >= 12\"]\n\
                     subscribe_caps = \"tier = production\"\ncapability_issuers = [\"router\"]\n";

/// The stage with nodes in whose files the channel asks for capabilities.
fn asking(nodes: &[&str]) -> Stage {
    let stage = Stage::new(&[RELIABLE]);
    for node in nodes {
        stage.edit(node, "reliable = true\n", ASKED);
    }
    stage
}

/// Runs `virga`: its exit code, and what it printed and said.
fn virga(arguments: &[&dyn AsRef<Path>]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
    command.args(arguments.iter().map(|argument| argument.as_ref()));
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// A statement by the router about a node's entity, as a file beside its keys.
pub(super) fn vouched(stage: &Stage, about: &str, has: &[&str], lasts: &str) -> PathBuf {
    let subject = stage.node(about);
    let file = subject.file(&format!("{}.capability", has.join("+")));
    let key = stage.node("router").file("entity.key");
    let mut arguments: Vec<&dyn AsRef<Path>> = vec![&"capability", &"issue", &"--key", &key];
    arguments.extend([
        &"--subject" as &dyn AsRef<Path>,
        &subject.entity_key,
        &"--for",
        &lasts,
    ]);
    arguments.extend([&"--out" as &dyn AsRef<Path>, &file]);
    for one in has {
        arguments.extend([&"--has" as &dyn AsRef<Path>, one]);
    }
    let (code, said) = virga(&arguments);
    assert_eq!(code, Some(0), "{said}");
    file
}

pub(super) fn present(stage: &Stage, file: &Path, to: &str) -> (Option<i32>, String) {
    let socket = stage.node(to).socket();
    virga(&[&"capability", &"present", &file, &"--socket", &socket])
}

/// What the node at `at` says of an entity: the exit code, and the failed check of each operation.
fn why(stage: &Stage, at: &str, entity: &str) -> (Option<i32>, Vec<(String, Option<String>)>) {
    let socket = stage.node(at).socket();
    let (code, said) = virga(&[
        &"why",
        &RELIABLE.name,
        &entity,
        &"--json",
        &"--socket",
        &socket,
    ]);
    let why: Why = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let failed = why.operations.into_iter().map(|one| {
        let mut checks = one.checks.into_iter();
        let failed = checks.find(|check| check.outcome == virga::channel::explain::Outcome::Failed);
        assert_eq!(one.is_allowed, failed.is_none());
        (
            one.operation,
            failed.map(|check| format!("{}: {}", check.name, check.words)),
        )
    });
    (code, failed.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_let_in_when_an_issuer_vouches_and_put_out_when_that_ends() {
    let mut stage = asking(&["a", "b"]);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let refusal = async |stage: &Stage| {
        let refused = stage.mesh("b").await.subscribe(RELIABLE.name).await.err();
        refused.map(|error| error.to_string()).unwrap_or_default()
    };
    let words = refusal(&stage).await;
    assert!(
        words.contains("the channel asks for tier = production"),
        "{words}"
    );
    let refused = stage
        .mesh("a")
        .await
        .publisher(RELIABLE.name)
        .await
        .err()
        .unwrap();
    assert!(
        refused.to_string().contains("asks for hardware.gpu"),
        "{refused}"
    );

    // What b says of itself is known to all, and opens nothing.
    let b = stage.node("b");
    let (code, said) = virga(&[
        &"capability",
        &"announce",
        &"--key",
        &b.file("entity.key"),
        &"--has",
        &"tier=production",
        &"--for",
        &"1h",
        &"--socket",
        &b.socket(),
    ]);
    assert_eq!(code, Some(0), "{said}");
    assert!(refusal(&stage).await.contains("it only says so itself"));
    let (code, failed) = why(&stage, "b", "b");
    assert_eq!(code, Some(1));
    let [(publish, listed), (subscribe, lacking)] = &failed[..] else {
        panic!("{failed:?}");
    };
    assert_eq!(
        (publish.as_str(), subscribe.as_str()),
        ("publish", "subscribe")
    );
    assert!(
        listed.as_deref().unwrap().starts_with("list: "),
        "{failed:?}"
    );
    let lacking = lacking.as_deref().unwrap();
    assert!(
        lacking.starts_with("capabilities: the channel asks for tier = production"),
        "{lacking}"
    );

    let (old, gpu) = (
        vouched(&stage, "a", &["hardware.gpu", "software.cuda=11.8"], "1h"),
        vouched(&stage, "a", &["hardware.gpu", "software.cuda=12.4.1"], "2h"),
    );
    let (code, said) = present(&stage, &old, "a");
    assert_eq!(code, Some(0), "{said}");
    let words = "may not yet publish on test/reliable: the channel asks for software.cuda >= 12, and of \
                 what counts software.cuda is 11.8";
    assert!(said.contains(words), "{said}");
    let (code, said) = present(&stage, &gpu, "b");
    assert_eq!(code, Some(1));
    assert!(said.contains("it is about another entity"), "{said}");
    eventually("the later statement has a later version", async || {
        let gpu = vouched(&stage, "a", &["hardware.gpu", "software.cuda=12.4.1"], "2h");
        let (_, said) = present(&stage, &gpu, "a");
        said.contains("may publish on test/reliable").then_some(())
    })
    .await;

    // b's does not last.
    let production = vouched(&stage, "b", &["tier=production"], "40s");
    let (code, said) = present(&stage, &production, "b");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("may subscribe to test/reliable"), "{said}");
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"allowed").await.unwrap();
    assert_eq!(payloads(&mut events, 1).await, ["allowed"]);
    assert_eq!(why(&stage, "a", "b").1[1].1, None);
    assert_eq!(why(&stage, "b", "a").1[0].1, None);
    let socket = stage.node("a").socket();
    let (_, said) = virga(&[
        &"why",
        &RELIABLE.name,
        &"b",
        &"--to",
        &"subscribe",
        &"--socket",
        &socket,
    ]);
    assert!(
        said.contains("✓ capabilities tier = production is vouched for"),
        "{said}"
    );
    let (_, said) = virga(&[&"capability", &"ls", &"--socket", &socket]);
    assert!(
        said.contains("b: tier=production; announced by itself"),
        "{said}"
    );
    assert!(
        said.contains("b: tier=production; vouched for by router"),
        "{said}"
    );

    // What nobody can have is said as such.
    let ask =
        |channel: &str, entity: &str| virga(&[&"why", &channel, &entity, &"--socket", &socket]);
    for (channel, entity, words) in [
        (
            "no/such",
            "b",
            "channel no/such is not configured on this node",
        ),
        (
            RELIABLE.name,
            "nobody",
            "neither a public key of 64 hex digits nor an entity",
        ),
        (
            RELIABLE.name,
            &"ab".repeat(32),
            "✗ session      no peer of this node's configuration has it",
        ),
        (
            RELIABLE.name,
            "router",
            "✗ list         the channel's `publish` list does not name it",
        ),
    ] {
        let (code, said) = ask(channel, entity);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(words), "{words} is not in\n{said}");
    }

    stage.subscribers(RELIABLE.name, 0).await;
    let (code, failed) = why(&stage, "a", "b");
    assert_eq!(code, Some(1));
    assert!(
        failed[1]
            .1
            .as_deref()
            .unwrap()
            .contains("tier is not there"),
        "{failed:?}"
    );
    assert!(stage.status("a").await.channel_reasons["capability"] > 0);
}

/// a's own file asks for nothing: a sender that does not check itself.
#[tokio::test(flavor = "multi_thread")]
async fn no_event_of_a_sender_that_asks_itself_for_nothing_gets_through() {
    let mut stage = asking(&["b"]);
    let production = vouched(&stage, "b", &["tier=production"], "1h");
    stage.edit(
        "b",
        "state = ",
        &format!("capabilities = [{production:?}]\nstate = "),
    );
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let mut events = stage.subscribed(RELIABLE.name).await;
    let a = stage.node("a");
    let announced = a.file("announced");
    let (code, said) = virga(&[
        &"capability",
        &"announce",
        &"--key",
        &a.file("entity.key"),
        &"--has",
        &"hardware.gpu",
        &"--has",
        &"software.cuda=12",
        &"--for",
        &"1h",
        &"--out",
        &announced,
    ]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(present(&stage, &announced, "a").0, Some(0));
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"late").await.unwrap();
    eventually("b's guard drops it", async || {
        let drops = stage.status("b").await.userspace.drops;
        (drops["unauthorised"].packets > 0).then_some(())
    })
    .await;
    let gpu = vouched(&stage, "a", &["hardware.gpu", "software.cuda=12"], "1h");
    // a's own channels ask for nothing, so it tells that the statement is of no use at a.
    let (code, said) = present(&stage, &gpu, "a");
    assert_eq!(code, Some(1));
    assert!(
        said.contains("no channel of this node's configuration asks for capabilities"),
        "{said}"
    );
    assert_eq!(payloads(&mut events, 1).await, ["late"]);
}

/// b's own file asks for nothing: a's node refuses it, and b's operator reads why.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_asks_itself_for_nothing_is_refused_and_told_why() {
    let mut stage = asking(&["a"]);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let _events = stage
        .mesh("b")
        .await
        .subscribe(RELIABLE.name)
        .await
        .unwrap();
    let socket = stage.node("b").socket();
    let words = "subscribed to channel test/reliable at a: capability (the channel asks for tier = \
                 production, and of what counts tier is not there)";
    eventually("b hears why", async || {
        let (_, said) = virga(&[&"status", &"--socket", &socket]);
        said.contains(words).then_some(())
    })
    .await;
    let gpu = vouched(&stage, "a", &["hardware.gpu", "software.cuda=12"], "1h");
    let (code, said) = present(&stage, &gpu, "a");
    assert_eq!(code, Some(0), "{said}");
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"kept").await.unwrap();
    publisher.finish().await.unwrap();
    let a = stage.status("a").await;
    assert_eq!(
        (a.channels[0].remote_subscribers, a.channels[0].sent),
        (0, 0)
    );
}

#[test]
fn statements_are_inspected_and_refused_with_the_reason() {
    let stage = Stage::new(&[RELIABLE]);
    let file = vouched(&stage, "b", &["hardware.gpu", "software.cuda=12"], "1h");
    let (code, said) = virga(&[&"capability", &"inspect", &file]);
    assert_eq!(code, Some(0), "{said}");
    let (router, b) = (
        &stage.node("router").entity_key,
        &stage.node("b").entity_key,
    );
    for words in [
        router,
        b,
        "capability    software.cuda=12",
        "its signature is right",
    ] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let changed = text.replacen("dmlyZ2ED", "dmlyZ2EI", 1);
    std::fs::write(&file, changed).unwrap();
    let (code, said) = virga(&[&"capability", &"inspect", &file]);
    assert_eq!(code, Some(2), "{said}");
    let key = stage.node("router").file("entity.key");
    let (code, said) = virga(&[
        &"capability",
        &"issue",
        &"--key",
        &key,
        &"--subject",
        b,
        &"--has",
        &"Hardware",
        &"--for",
        &"1h",
    ]);
    assert_eq!(code, Some(2));
    assert!(said.contains("levels of a-z 0-9 - _"), "{said}");
}
