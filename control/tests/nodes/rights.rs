//! Channels that require tokens, over real daemons: the command line makes tokens, passes them on,
//! presents them and takes them back. The router's entity is the issuer.

use crate::{
    numbered, payloads,
    stage::{RELIABLE, Stage, eventually},
};
use std::{path::Path, process::Command, time::Instant};

const REQUIRED: &str = "reliable = true\nrequire_token = true\nissuers = [\"router\"]\n";

/// The stage with nodes in whose files the channel requires a token.
fn requiring(nodes: &[&str]) -> Stage {
    let stage = Stage::new(&[RELIABLE]);
    for node in nodes {
        stage.edit(node, "reliable = true\n", REQUIRED);
    }
    stage
}

/// Runs `virga token`, and gives what it printed, or what it said when it failed.
pub(crate) fn token(arguments: &[&dyn AsRef<Path>]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
    command.arg("token");
    let output = command
        .args(arguments.iter().map(|argument| argument.as_ref()))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

/// A token from the issuer, as a file beside the holder's keys.
pub(crate) fn issued(stage: &Stage, holder: &str, allow: &str) -> std::path::PathBuf {
    let (router, holder) = (stage.node("router"), stage.node(holder));
    let file = holder.file(&format!("{allow}.token"));
    let delegations = if allow.contains("delegate") { "1" } else { "0" };
    let (key, subject) = (router.file("entity.key"), &holder.entity_key);
    token(&[
        &"issue",
        &"--key",
        &key,
        &"--subject",
        subject,
        &"--subtree",
        &"test",
        &"--allow",
        &allow,
        &"--delegations",
        &delegations,
        &"--for",
        &"1h",
        &"--out",
        &file,
    ])
    .unwrap();
    file
}

/// What a's node says to a publisher, unless it lets it publish.
pub(crate) async fn refusal(stage: &Stage) -> Option<String> {
    let publisher = match stage.mesh("a").await.publisher(RELIABLE.name).await {
        Ok(publisher) => publisher,
        Err(error) => return Some(error.to_string()),
    };
    let published = publisher.publish(b"x").await;
    let finished = publisher.finish().await;
    published.err().or(finished.err()).map(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_let_in_and_revocations_put_out() {
    let mut stage = requiring(&["a", "b"]);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let refused = stage.mesh("b").await.subscribe(RELIABLE.name).await.err();
    let words = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(
        words.contains("a token is required there, and none was shown"),
        "{words}"
    );
    let words = refusal(&stage).await.unwrap();
    assert!(words.contains("and none was shown"), "{words}");

    // b may subscribe, and gets a right to publish, which it passes on to a.
    let (a, b) = (stage.node("a"), stage.node("b"));
    let (subscribe, publish) = (
        issued(&stage, "b", "subscribe"),
        issued(&stage, "b", "publish,delegate"),
    );
    let passed_on = a.file("publish.token");
    token(&[
        &"delegate",
        &publish,
        &"--key",
        &b.file("entity.key"),
        &"--subject",
        &a.entity_key,
        &"--channel",
        &RELIABLE.name,
        &"--allow",
        &"publish",
        &"--for",
        &"30m",
        &"--out",
        &passed_on,
    ])
    .unwrap();
    let said = token(&[&"present", &subscribe, &"--socket", &b.socket()]).unwrap();
    assert!(
        said.contains("this node's entity may subscribe to test/reliable"),
        "{said}"
    );
    token(&[&"present", &passed_on, &"--socket", &a.socket()]).unwrap();
    let others = token(&[&"present", &subscribe, &"--socket", &a.socket()]).unwrap_err();
    assert!(others.contains("belongs to another entity"), "{others}");

    let mut events = stage.subscribed(RELIABLE.name).await;
    let sent = numbered(100);
    let publisher = stage.publisher(RELIABLE.name).await;
    for event in &sent {
        publisher.publish(event).await.unwrap();
    }
    publisher.finish().await.unwrap();
    assert!(payloads(&mut events, 100).await == sent);

    // The issuer takes back what b passed on; b's node hears of it first.
    let list = stage.node("router").file("list");
    let key = stage.node("router").file("entity.key");
    let revoke =
        |what: [&dyn AsRef<Path>; 2]| token(&[&"revoke", &list, &"--key", &key, what[0], what[1]]);
    revoke([&"--subject", &"00".repeat(32)]).unwrap();
    let old = std::fs::read(&list).unwrap();
    let words = revoke([&"--token", &publish]).unwrap();
    assert!(words.contains("version 2: 2 entries"), "{words}");
    let start = Instant::now();
    token(&[&"announce", &list, &"--socket", &b.socket()]).unwrap();
    let words = eventually("a's publisher is refused", async || refusal(&stage).await).await;
    let why = "link 1 was revoked: the issuer's list has link ";
    assert!(words.contains(why), "{words}");
    println!(
        "revoked at b, refused at a {} ms later",
        start.elapsed().as_millis()
    );

    // Neither an old list nor a restart brings the right back.
    std::fs::write(&list, old).unwrap();
    let replayed =
        token(&[&"announce", &list, &"--socket", &stage.node("a").socket()]).unwrap_err();
    assert!(replayed.contains("a later one is known"), "{replayed}");
    let kept = stage.node("a").file("state/revocations");
    eventually("a has kept the list", async || {
        let mut files = std::fs::read_dir(&kept).ok()?.flatten();
        let is_kept = |name: String| name.ends_with(".revocations");
        files
            .any(|f| is_kept(f.file_name().to_string_lossy().into_owned()))
            .then_some(())
    })
    .await;
    stage.kill("a");
    stage.kill("b");
    stage.edit("a", "state = ", "tokens = [\"publish.token\"]\nstate = ");
    stage.start("a").await;
    let words = refusal(&stage).await.unwrap();
    assert!(words.contains("was revoked"), "{words}");
    assert!(stage.status("a").await.channel_reasons["token_revoked"] > 0);
}

/// a's own file requires no token: a sender that does not check itself.
#[tokio::test(flavor = "multi_thread")]
async fn no_event_of_a_sender_that_skips_its_own_checks_gets_through() {
    let mut stage = requiring(&["b"]);
    let subscribe = issued(&stage, "b", "subscribe");
    stage.edit(
        "b",
        "state = ",
        &format!("tokens = [{subscribe:?}]\nstate = "),
    );
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"early").await.unwrap();
    publisher.finish().await.unwrap();
    eventually("b's guard drops it", async || {
        let drops = stage.status("b").await.userspace.drops;
        (drops["unauthorised"].packets > 1).then_some(())
    })
    .await;
    let received = |status: virga::api::status::Status| status.channels[0].received;
    assert_eq!(received(stage.status("b").await), 0);
    let publish = issued(&stage, "a", "publish");
    // a's own channels require none, so it says that the token is of no use at a.
    let said = token(&[&"present", &publish, &"--socket", &stage.node("a").socket()]).unwrap_err();
    assert!(
        said.contains("no channel of this node's configuration requires a token"),
        "{said}"
    );
    stage.subscribers(RELIABLE.name, 1).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    publisher.publish(b"allowed").await.unwrap();
    publisher.finish().await.unwrap();
    // What was sent too early is sent again, and counts from when the right does.
    assert_eq!(payloads(&mut events, 2).await, ["early", "allowed"]);
}

#[test]
fn what_is_passed_on_fits_what_it_comes_from_and_nobody_who_is_revoked_gets_more() {
    let stage = Stage::new(&[RELIABLE]);
    let (router, a, b) = (stage.node("router"), stage.node("a"), stage.node("b"));
    let (key, list) = (router.file("entity.key"), router.file("list"));
    let narrow = b.file("narrow.token");
    let issue = |more: &[&dyn AsRef<Path>]| {
        let mut arguments: Vec<&dyn AsRef<Path>> = vec![&"issue", &"--key", &key];
        arguments.extend([
            &"--subject" as &dyn AsRef<Path>,
            &b.entity_key,
            &"--channel",
            &"test",
        ]);
        arguments.extend([
            &"--allow" as &dyn AsRef<Path>,
            &"publish,delegate",
            &"--for",
            &"1h",
        ]);
        arguments.extend([&"--delegations" as &dyn AsRef<Path>, &"1"]);
        arguments.extend(more);
        token(&arguments)
    };
    issue(&[&"--out", &narrow]).unwrap();
    let (b_key, passed_on) = (b.file("entity.key"), a.file("passed-on.token"));
    let delegate = |reach: &str| {
        token(&[
            &"delegate",
            &narrow,
            &"--key",
            &b_key,
            &"--subject",
            &a.entity_key,
            &reach,
            &"test",
            &"--allow",
            &"publish",
            &"--for",
            &"2h",
            &"--out",
            &passed_on,
        ])
    };
    let wide = delegate("--subtree").unwrap_err();
    assert!(
        wide.contains("test and all below it is more than the token covers: test"),
        "{wide}"
    );
    delegate("--channel").unwrap();
    let shown = |file: &Path| {
        let shown = token(&[&"inspect", &file, &"--json"]).unwrap();
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()
    };
    let links = shown(&passed_on)["links"].clone();
    assert_eq!(links[0]["not_after_s"], links[1]["not_after_s"]);

    token(&[&"revoke", &list, &"--key", &key, &"--generation", &"3"]).unwrap();
    issue(&[&"--list", &list, &"--out", &narrow]).unwrap();
    assert_eq!(shown(&narrow)["links"][0]["generation"], 3);
    let id = links[1]["id"].as_str().unwrap().to_owned();
    let said = token(&[&"revoke", &list, &"--key", &key, &"--link", &id]).unwrap();
    assert!(said.contains("1 entries"), "{said}");
    token(&[
        &"revoke",
        &list,
        &"--key",
        &key,
        &"--subject",
        &b.entity_key,
    ])
    .unwrap();
    let void = issue(&[&"--list", &list]).unwrap_err();
    assert!(void.contains("a token of it would be void"), "{void}");
}

#[test]
fn tokens_are_inspected_verified_and_refused_with_the_reason() {
    let stage = Stage::new(&[RELIABLE]);
    let (router, b) = (stage.node("router"), stage.node("b"));
    let file = issued(&stage, "b", "publish");
    let shown = token(&[&"inspect", &file]).unwrap();
    for words in [
        &router.entity_key,
        &b.entity_key,
        "test and all below it",
        "publish",
    ] {
        assert!(shown.contains(words), "{words} is not in\n{shown}");
    }
    let verify = |channel: &str, operation: &str, issuer: &str| {
        token(&[
            &"verify",
            &file,
            &"--issuer",
            &issuer,
            &"--channel",
            &channel,
            &"--operation",
            &operation,
        ])
    };
    let yes = verify("test/x", "publish", &router.entity_key).unwrap();
    assert!(yes.contains("may publish on test/x until 20"), "{yes}");
    for (channel, operation, issuer, words) in [
        (
            "other",
            "publish",
            &router.entity_key,
            "link 1 is for test and all below it",
        ),
        (
            "test/x",
            "subscribe",
            &router.entity_key,
            "does not allow to subscribe",
        ),
        (
            "test/x",
            "publish",
            &b.entity_key,
            "is not one of the channel's",
        ),
    ] {
        let said = verify(channel, operation, issuer).unwrap_err();
        assert!(said.contains(words), "{said}");
    }
    let key = b.file("entity.key");
    let delegate = token(&[
        &"delegate",
        &file,
        &"--key",
        &key,
        &"--subject",
        &router.entity_key,
        &"--channel",
        &"test/x",
        &"--allow",
        &"publish",
        &"--for",
        &"1m",
    ]);
    let said = delegate.unwrap_err();
    assert!(
        said.contains("link 2 follows one that may not be delegated"),
        "{said}"
    );
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("virga-token-v1", "virga-token-v2")).unwrap();
    let said = token(&[&"inspect", &file]).unwrap_err();
    assert!(
        said.contains("expected one line, `virga-token-v1 <base64url>`"),
        "{said}"
    );
}
