//! An entity that moves to another node, and keys that are replaced, over real daemons.

use crate::{
    numbered, payloads,
    stage::{Channel, RELIABLE, Stage, eventually},
};
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use virga::mesh::Subscription;

const REQUIRED: &str = "reliable = true\nrequire_token = true\nissuers = [\"b\"]\n";

/// Runs `virga`, and gives what it printed, or what it said when it failed.
fn virga(arguments: &[&dyn AsRef<Path>]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
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

fn announce(stage: &Stage, at: &str, file: &Path) -> Result<String, String> {
    virga(&[
        &"entity",
        &"announce",
        &file,
        &"--socket",
        &stage.node(at).socket(),
    ])
}

/// A token from b for the holder, as a file beside its keys and in its configuration.
fn give_token(stage: &Stage, holder: &str, allow: &str) {
    let (b, node) = (stage.node("b"), stage.node(holder));
    let file = node.file("own.token");
    virga(&[
        &"token",
        &"issue",
        &"--key",
        &b.file("entity.key"),
        &"--subject",
        &node.entity_key,
        &"--channel",
        &RELIABLE.name,
        &"--allow",
        &allow,
        &"--for",
        &"1h",
        &"--out",
        &file,
    ])
    .unwrap();
    stage.edit(
        holder,
        "state = ",
        &format!("tokens = [{file:?}]\nstate = "),
    );
}

/// a's entity may publish to b, with a token.
async fn running() -> Stage {
    let mut stage = Stage::new(&[RELIABLE]);
    for node in ["a", "router", "b"] {
        stage.edit(node, "reliable = true\n", REQUIRED);
    }
    give_token(&stage, "a", "publish");
    give_token(&stage, "b", "subscribe");
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    stage
}

/// A placement of a's entity, in a file.
fn moved(stage: &Stage, to: &str, version: &str) -> std::path::PathBuf {
    let file = stage.node("a").file(&format!("to-{to}-{version}"));
    virga(&[
        &"entity",
        &"move",
        &"--key",
        &stage.node("a").file("entity.key"),
        &"--to",
        &stage.node(to).node_key,
        &"--version",
        &version,
        &"--out",
        &file,
    ])
    .unwrap();
    file
}

/// Waits until a node has kept so many objects.
async fn kept(stage: &Stage, at: &str, count: usize) {
    let folder = stage.node(at).file("state/identity");
    eventually(&format!("{at} has kept {count}"), async || {
        let files = fs::read_dir(&folder).ok()?.flatten();
        let names = files.map(|file| file.file_name().into_string().unwrap());
        (names.filter(|name| name.ends_with(".identity")).count() == count).then_some(())
    })
    .await;
}

/// The router takes a's entity over: key, token and all.
async fn take_over(stage: &mut Stage) {
    stage.terminate("router");
    let (a, router) = (stage.node("a"), stage.node("router"));
    for file in ["entity.key", "own.token"] {
        fs::copy(a.file(file), router.file(file)).unwrap();
    }
    let token = router.file("own.token");
    stage.edit(
        "router",
        "state = ",
        &format!("tokens = [{token:?}]\nstate = "),
    );
    stage.start("router").await;
}

/// What a node says to a publisher, unless it lets it publish.
async fn refusal(stage: &Stage, at: &str) -> Option<String> {
    let publisher = match stage.mesh(at).await.publisher(RELIABLE.name).await {
        Ok(publisher) => publisher,
        Err(error) => return Some(error.to_string()),
    };
    let published = publisher.publish(b"x").await;
    let finished = publisher.finish().await;
    published.err().or(finished.err()).map(|e| e.to_string())
}

/// Packets that the router's guard has let nobody pass with.
async fn drops(stage: &Stage) -> u64 {
    let drops = stage.status("router").await.userspace.drops;
    drops["unauthorised"].packets
}

/// Publishes at a node once b is on its roster, and b gets it.
async fn gets_through(stage: &Stage, at: &str, events: &mut Subscription, count: u32) {
    eventually(&format!("b is on {at}'s roster"), async || {
        let status = stage.mesh(at).await.status().await.ok()?;
        let channel = status.channels.iter().find(|c| c.name == RELIABLE.name)?;
        (channel.remote_subscribers == 1).then_some(())
    })
    .await;
    let sent = numbered(count);
    let publisher = stage.mesh(at).await.publisher(RELIABLE.name).await.unwrap();
    for event in &sent {
        publisher.publish(event).await.unwrap();
    }
    publisher.finish().await.unwrap();
    assert!(payloads(events, sent.len()).await == sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_moves_in_the_middle_of_a_stream_and_is_followed() {
    let mut stage = running().await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let publisher = stage.publisher(RELIABLE.name).await;
    for event in &numbered(50) {
        publisher.publish(event).await.unwrap();
    }
    assert!(payloads(&mut events, 50).await == numbered(50));
    let start = Instant::now();
    announce(&stage, "b", &moved(&stage, "router", "7")).unwrap();
    eventually("a's publisher is told", async || {
        publisher.publish(b"late").await.err()
    })
    .await;
    let words = publisher.finish().await.unwrap_err().to_string();
    println!(
        "announced at b, a's publisher ended {} ms later",
        start.elapsed().as_millis()
    );
    assert!(words.contains("lives on router"), "{words}");
    let words = refusal(&stage, "a").await.unwrap();
    assert!(words.contains("lives on router"), "{words}");
    let refused = stage.mesh("a").await.subscribe(RELIABLE.name).await.err();
    let words = refused.unwrap().to_string();
    assert!(words.contains("lives on router"), "{words}");
    kept(&stage, "router", 1).await;

    // The new place speaks for it, by its token; b's subscription is the same one.
    take_over(&mut stage).await;
    gets_through(&stage, "router", &mut events, 30).await;

    // Neither an old placement nor a kill brings it back.
    let old = announce(&stage, "a", &moved(&stage, "a", "6")).unwrap_err();
    assert!(
        old.contains("version 7 is known, and this is version 6"),
        "{old}"
    );
    let replayed = announce(&stage, "b", &moved(&stage, "a", "6")).unwrap_err();
    assert!(replayed.contains("version 7 is known"), "{replayed}");
    stage.kill("a");
    stage.kill("b");
    stage.start("b").await;
    stage.start("a").await;
    let words = refusal(&stage, "a").await.unwrap();
    assert!(words.contains("lives on router"), "{words}");
    let mut events = stage
        .mesh("b")
        .await
        .subscribe(RELIABLE.name)
        .await
        .unwrap();
    gets_through(&stage, "router", &mut events, 10).await;

    // It comes back when it says so itself.
    announce(&stage, "b", &moved(&stage, "a", "8")).unwrap();
    announce(&stage, "a", &moved(&stage, "a", "8")).unwrap();
    gets_through(&stage, "a", &mut events, 10).await;
    let words = eventually("the router is told", async || {
        refusal(&stage, "router").await
    })
    .await;
    assert!(words.contains("lives on a"), "{words}");
}

/// The old place cannot keep what it is told, and goes on: a sender that ignores that its entity is gone.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_old_place_that_goes_on_gets_through() {
    let mut stage = running().await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    gets_through(&stage, "a", &mut events, 5).await;
    let state = stage.node("a").file("state");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("identity"), "in the way").unwrap();
    announce(&stage, "b", &moved(&stage, "router", "7")).unwrap();
    let words = announce(&stage, "a", &moved(&stage, "router", "7")).unwrap_err();
    assert!(
        words.contains("it does not count, because it cannot be kept"),
        "{words}"
    );
    kept(&stage, "router", 1).await;
    take_over(&mut stage).await;
    eventually("b turns a away", async || {
        (stage.status("b").await.channel_reasons["entity_moved"] > 0).then_some(())
    })
    .await;
    // a still publishes, and speaks to b whenever it can.
    for _ in 0..20 {
        assert_eq!(refusal(&stage, "a").await, None, "a goes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    gets_through(&stage, "router", &mut events, 30).await;
    // The router's guard knows no origin but its own by that name.
    let before = drops(&stage).await;
    eventually("a tries again, and the router drops it", async || {
        assert_eq!(refusal(&stage, "a").await, None, "a goes on");
        (drops(&stage).await > before).then_some(())
    })
    .await;
    gets_through(&stage, "router", &mut events, 30).await;
}

/// Puts a key file that was written beside another in its place.
fn swap(stage: &Stage, file: &str) {
    let a = stage.node("a");
    fs::rename(a.file(file), a.file(&format!("{file}.old"))).unwrap();
    fs::rename(a.file(&format!("{file}.new")), a.file(file)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_key_is_replaced_and_its_routes_and_sessions_follow() {
    let mut stage = running().await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    gets_through(&stage, "a", &mut events, 5).await;
    let a = stage.node("a");
    let (key, out) = (a.file("node.key"), a.file("placement"));
    let rotate = |key: &Path| {
        virga(&[
            &"node",
            &"rotate-key",
            &"--key",
            &key,
            &"--entity-key",
            &a.file("entity.key"),
            &"--out",
            &out,
        ])
    };
    rotate(&key).unwrap();
    let again = rotate(&key).unwrap_err();
    assert!(again.contains("exists already"), "{again}");
    announce(&stage, "a", &out).unwrap();
    for node in ["router", "b"] {
        kept(&stage, node, 1).await;
    }
    let words = refusal(&stage, "a").await.unwrap();
    assert!(words.contains("lives on a node that is no peer"), "{words}");
    stage.terminate("a");
    swap(&stage, "node.key");
    stage.start("a").await;
    gets_through(&stage, "a", &mut events, 30).await;
    let (old, sessions) = (
        stage.node("a").id.to_string(),
        stage.status("b").await.sessions,
    );
    assert!(sessions.iter().any(|s| s.name == "a" && s.peer != old));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entitys_key_is_replaced_and_its_rights_and_tokens_follow() {
    let mut stage = running().await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    gets_through(&stage, "a", &mut events, 5).await;
    let a = stage.node("a");
    let (key, out) = (a.file("entity.key"), a.file("succession"));
    virga(&[
        &"entity",
        &"rotate",
        &"--key",
        &key,
        &"--node-key",
        &a.file("node.key"),
        &"--honour",
        &"1day",
        &"--out",
        &out,
    ])
    .unwrap();
    let shown = virga(&[&"entity", &"inspect", &out]).unwrap();
    assert!(
        shown.contains(&format!("has the place of {}", a.entity_key)),
        "{shown}"
    );
    announce(&stage, "a", &out).unwrap();
    for node in ["router", "b"] {
        kept(&stage, node, 2).await;
    }
    let words = refusal(&stage, "a").await.unwrap();
    assert!(
        words.contains("has taken the place of this node's entity key"),
        "{words}"
    );
    stage.terminate("a");
    swap(&stage, "entity.key");
    // Its token is still the old key's.
    stage.start("a").await;
    gets_through(&stage, "a", &mut events, 30).await;

    // The old key has no right any more, wherever it is put.
    stage.terminate("a");
    let a = stage.node("a");
    fs::copy(a.file("entity.key.old"), a.file("entity.key")).unwrap();
    fs::remove_dir_all(a.file("state/identity")).unwrap();
    let before = drops(&stage).await;
    stage.start("a").await;
    eventually("the router drops what comes with the old key", async || {
        assert_eq!(refusal(&stage, "a").await, None, "a has heard of nothing");
        (drops(&stage).await > before).then_some(())
    })
    .await;
    let late = tokio::time::timeout(Duration::from_millis(500), events.next_delivery()).await;
    assert!(late.is_err(), "{late:?}");
}

/// What no entity's key has signed moves nobody.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_moves_another() {
    let channel = Channel {
        publish: &["a"],
        ..RELIABLE
    };
    let stage = Stage::running(&[channel]).await;
    let file = moved(&stage, "router", "7");
    let text = fs::read_to_string(&file).unwrap();
    // Version 7 is 71 now.
    let changed = text.replacen("AAAAAAAAAB", "AAAAAAAAAR", 1);
    assert_ne!(text, changed, "the version is in it");
    fs::write(&file, changed).unwrap();
    let said = announce(&stage, "b", &file).unwrap_err();
    assert!(said.contains("is not signed by"), "{said}");
    assert_eq!(refusal(&stage, "a").await, None);
}
