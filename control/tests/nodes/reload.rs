//! Configuration files read anew by running nodes: what has changed counts and disturbs nobody else, or nothing
//! has changed, and the node says why.

use crate::{
    metrics::{ask, with_metrics},
    payloads,
    stage::{Channel, Node, RELIABLE, Stage, eventually, in_time},
};
use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinHandle;
use virga::{api::status::Status, config::settings::Setting, mesh::Mesh};

/// Appends to a node's file.
fn append(node: &Node, text: &str) {
    let file = fs::read_to_string(node.config()).unwrap();
    fs::write(node.config(), file + text).unwrap();
}

/// A neighbour's block.
fn block(of: &Node) -> String {
    format!(
        "[[peers]]\nname = \"{}\"\nnode_key = \"{}\"\nentity_key = \"{}\"\naddress = \"{}\"\n",
        of.name, of.node_key, of.entity_key, of.listen
    )
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// `virga reload` at a node, which must succeed; what it printed.
#[track_caller]
fn reload(node: &Node) -> String {
    let output = node.run(&["reload"]);
    let (printed, errors) = said(&output);
    assert!(output.status.success(), "{errors}");
    printed
}

/// The established sessions, by peer.
fn sessions(status: &Status) -> BTreeMap<String, String> {
    let sessions = status.sessions.iter();
    let live = sessions.filter(|session| session.state == "established");
    live.map(|session| (session.name.clone(), session.session.clone()))
        .collect()
}

async fn session_with(stage: &Stage, at: &str, peer: &str) -> String {
    eventually(&format!("a session of {at} with {peer}"), async || {
        sessions(&stage.status(at).await).remove(peer)
    })
    .await
}

/// Events from a to b, one after the other, until it is told to stop.
struct Flow {
    done: Arc<AtomicBool>,
    publisher: JoinHandle<u32>,
    reader: JoinHandle<Vec<u32>>,
}

impl Flow {
    async fn start(stage: &Stage) -> Self {
        let mut events = stage.subscribed(RELIABLE.name).await;
        let publisher = stage.publisher(RELIABLE.name).await;
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let publisher = tokio::spawn(async move {
            let mut number = 0_u32;
            while !is_done.load(Ordering::Relaxed) {
                publisher.publish(&number.to_be_bytes()).await.unwrap();
                number += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            publisher.publish(b"").await.unwrap();
            publisher.finish().await.unwrap();
            number
        });
        let reader = tokio::spawn(async move {
            let mut numbers = Vec::new();
            while let Some(event) = events.next_delivery().await {
                match <[u8; 4]>::try_from(&event.unwrap().payload[..]) {
                    Ok(number) => numbers.push(u32::from_be_bytes(number)),
                    Err(_) => break,
                }
            }
            numbers
        });
        Self {
            done,
            publisher,
            reader,
        }
    }

    /// All that was published has come, in order.
    async fn end(self) {
        self.done.store(true, Ordering::Relaxed);
        let sent = in_time("publishing", self.publisher).await.unwrap();
        let read = in_time("reading", self.reader).await.unwrap();
        assert!(sent > 0);
        assert_eq!(read, (0..sent).collect::<Vec<u32>>());
    }
}

/// A fourth node, `c`, which knows the router alone, running.
async fn newcomer(stage: &Stage, folder: &tempfile::TempDir) -> Node {
    let mut node = Node::new("c", "127.0.0.5", folder.path(), &stage.psk);
    fs::write(node.config(), node.head() + &block(stage.node("router"))).unwrap();
    node.spawn(|_| {});
    eventually("c answers", async || {
        let mesh = Mesh::open(node.socket()).await.ok()?;
        mesh.status().await.ok()
    })
    .await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_come_and_go_by_a_reload_and_no_other_session_hears_of_it() {
    let stage = Stage::running(&[RELIABLE]).await;
    let flow = Flow::start(&stage).await;
    for peer in ["a", "b"] {
        session_with(&stage, "router", peer).await;
    }
    let before = sessions(&stage.status("router").await);
    let folder = tempfile::tempdir().unwrap();
    let mut c = newcomer(&stage, &folder).await;
    let router = stage.node("router");
    let file = fs::read_to_string(router.config()).unwrap();

    append(router, &block(&c));
    let printed = reload(router);
    let line = format!("peers[c].address: not set -> {} (reload)\n", c.listen);
    assert!(printed.contains(&line), "{printed}");
    assert!(printed.contains("3 changes in force"), "{printed}");
    session_with(&stage, "router", "c").await;
    let status = stage.status("router").await;
    assert!(status.peers.iter().any(|peer| peer.name == "c"));
    assert!(status.forwarding.links.iter().any(|link| link.peer == "c"));

    // Gone again: at the router at once, and c hears of it.
    fs::write(router.config(), &file).unwrap();
    reload(router);
    let status = stage.status("router").await;
    assert!(status.peers.iter().all(|peer| peer.name != "c"));
    assert!(status.forwarding.links.iter().all(|link| link.peer != "c"));
    assert_eq!(sessions(&status), before);
    let strangers = status.transport.drops["handshake_peer"];
    eventually("c has no session", async || {
        let status = Mesh::open(c.socket()).await.ok()?.status().await.ok()?;
        let closed = &status.transport.closed_by_reason;
        (sessions(&status).is_empty() && closed["peer"] > 0).then_some(())
    })
    .await;
    eventually("c says why", async || {
        let shown = c.run(&["peers"]);
        let shown = String::from_utf8_lossy(&shown.stdout);
        let say = "no session (the last one ended: ";
        shown.contains(say).then_some(())
    })
    .await;
    // It tries again, and is a stranger.
    eventually("c is refused", async || {
        let status = stage.status("router").await;
        assert_eq!(sessions(&status), before);
        (status.transport.drops["handshake_peer"] > strangers).then_some(())
    })
    .await;

    // It comes back, and what was agreed on with it before counts for nothing.
    append(router, &block(&c));
    reload(router);
    session_with(&stage, "router", "c").await;
    eventually("link tags with c", async || {
        let status = stage.status("router").await;
        let link = status.forwarding.links.into_iter();
        let c = link.into_iter().find(|link| link.peer == "c")?;
        (c.tags.checked && c.tags.sent).then_some(())
    })
    .await;
    let mut now = sessions(&stage.status("router").await);
    now.remove("c");
    assert_eq!(now, before);
    flow.end().await;
    c.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_whose_address_changes_is_found_there_and_its_session_is_another() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    let before = session_with(&stage, "router", "b").await;
    let with_a = session_with(&stage, "router", "a").await;
    let old = stage.node("b").listen;
    let free = std::net::UdpSocket::bind("127.0.0.6:0").unwrap();
    let new = free.local_addr().unwrap();
    drop(free);
    stage.terminate("b");
    stage.edit("b", &old.to_string(), &new.to_string());
    stage.start("b").await;
    // b would tell by itself where it is; from there on the file says the same.
    stage.edit("router", &old.to_string(), &new.to_string());
    reload(stage.node("router"));
    let status = stage.status("router").await;
    let link = status.forwarding.links.iter().find(|link| link.peer == "b");
    assert_eq!(link.unwrap().address, new.to_string());
    assert_ne!(session_with(&stage, "router", "b").await, before);
    assert_eq!(session_with(&stage, "router", "a").await, with_a);
    let mut events = stage.subscribed(RELIABLE.name).await;
    stage
        .mesh("a")
        .await
        .publish(RELIABLE.name, b"there")
        .await
        .unwrap();
    assert_eq!(payloads(&mut events, 1).await, [&b"there"[..]]);
}

/// What a node runs by and with whom.
#[derive(Debug, PartialEq)]
struct State {
    settings: Vec<Setting>,
    sessions: BTreeMap<String, String>,
    peers: Vec<String>,
    channels: Vec<String>,
}

async fn state(stage: &Stage, at: &str) -> State {
    let status = stage.status(at).await;
    State {
        settings: stage.mesh(at).await.settings().await.unwrap(),
        sessions: sessions(&status),
        peers: status.peers.into_iter().map(|peer| peer.name).collect(),
        channels: status.channels.into_iter().map(|one| one.name).collect(),
    }
}

/// Has a node read its file by command and by signal: neither changes anything, and both say why.
async fn refused(stage: &Stage, at: &str, words: &[&str]) {
    let before = state(stage, at).await;
    let node = stage.node(at);
    let output = node.run(&["reload"]);
    let (printed, errors) = said(&output);
    assert_eq!(output.status.code(), Some(2), "{printed}{errors}");
    for word in words {
        assert!(errors.contains(word), "{word} is not in {errors}");
    }
    assert_eq!(state(stage, at).await, before);

    let logged = || {
        node.log()
            .matches("the configuration was not taken up")
            .count()
    };
    let so_far = logged();
    assert!(so_far > 0, "{}", node.log());
    stage.signal(at, "-HUP");
    eventually("the answer to SIGHUP", async || {
        (logged() > so_far).then_some(())
    })
    .await;
    let log = node.log();
    let (_, answer) = log
        .rsplit_once("SIGHUP: reading the configuration anew")
        .unwrap();
    for word in words {
        assert!(answer.contains(word), "{word} is not in {answer}");
    }
    assert_eq!(state(stage, at).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_up_changes_nothing_and_is_said() {
    let stage = Stage::running(&[RELIABLE]).await;
    let flow = Flow::start(&stage).await;
    for peer in ["a", "b"] {
        session_with(&stage, "router", peer).await;
    }
    let router = stage.node("router");
    let file = fs::read_to_string(router.config()).unwrap();
    let other = Channel {
        name: "test/other",
        ..RELIABLE
    };

    // Two faults, each with its line, and a new channel that would be right.
    let broken = file.replace("name = \"b\"", "name = \"B b\"") + &other.block() + "priority = 9\n";
    fs::write(router.config(), &broken).unwrap();
    let words = [
        "nothing has changed",
        "peers[1].name",
        "channels[1].priority",
    ];
    refused(&stage, "router", &words).await;
    fs::write(router.config(), "[node\n").unwrap();
    refused(&stage, "router", &["nothing has changed", "not valid TOML"]).await;
    fs::remove_file(router.config()).unwrap();
    refused(&stage, "router", &["nothing has changed", "node.toml"]).await;

    // Valid, and something that takes a restart beside the channel.
    let fixed = file.replace(
        "mode = \"userspace\"",
        "mode = \"userspace\"\nkeepalive_ms = 500",
    );
    fs::write(router.config(), fixed.clone() + &other.block()).unwrap();
    let words = [
        "nothing has changed: restart the node",
        "forwarding.keepalive_ms: 10 -> 500 (restart)",
    ];
    refused(&stage, "router", &words).await;
    let config = router.config().display().to_string();
    let check = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_virga"));
        let output = command.args(arguments).arg(&config).output().unwrap();
        let (printed, errors) = said(&output);
        assert!(output.status.success(), "{errors}");
        printed
    };
    let printed = check(&["check-config"]);
    for line in [
        "the running node differs:\n",
        "  channels[test/other].publish: not set -> a (reload)\n",
        "  forwarding.keepalive_ms: 10 -> 500 (restart)\n",
        "it takes a restart: a reload changes nothing\n",
    ] {
        assert!(printed.contains(line), "{line} is not in {printed}");
    }
    // A key file that holds another key is found too.
    let psk = fs::read(router.file("network.psk")).unwrap();
    fs::write(router.config(), &file).unwrap();
    router.replace_psk();
    refused(
        &stage,
        "router",
        &["node.psk_file", "fingerprint", "(restart)"],
    )
    .await;
    fs::write(router.file("network.psk"), psk).unwrap();

    // Metrics where something else listens: nothing is taken up, the channel neither.
    let taken = std::net::TcpListener::bind((router.listen.ip(), 0)).unwrap();
    let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
    let metrics = format!("[metrics]\nlisten = \"{}\"\n", taken.1);
    fs::write(router.config(), file.clone() + &other.block() + &metrics).unwrap();
    let before = state(&stage, "router").await;
    let output = router.run(&["reload"]);
    let (_, errors) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("cannot listen for metrics at"), "{errors}");
    assert_eq!(state(&stage, "router").await, before);

    fs::write(router.config(), &file).unwrap();
    assert!(reload(router).contains("nothing differs from what the node runs by"));
    assert!(check(&["check-config"]).contains("the running node has it just so"));
    let json: serde_json::Value =
        serde_json::from_str(&check(&["check-config", "--json"])).unwrap();
    assert_eq!(json["differs"], serde_json::json!([]));
    flow.end().await;
}

/// At all three nodes, which a channel takes.
fn reload_all(stage: &Stage) {
    for name in ["router", "b", "a"] {
        reload(stage.node(name));
    }
}

async fn passes(stage: &Stage, channel: &str, text: &str) {
    let mut events = stage.subscribed(channel).await;
    let published = stage
        .mesh("a")
        .await
        .publish(channel, text.as_bytes())
        .await;
    assert_eq!(published.unwrap().published, 1);
    assert_eq!(payloads(&mut events, 1).await, [text.as_bytes()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_scopes_and_authorities_are_taken_up_beside_a_flow() {
    let stage = Stage::running(&[RELIABLE]).await;
    let flow = Flow::start(&stage).await;
    let session = session_with(&stage, "a", "b").await;
    let other = Channel {
        name: "other/one",
        ..RELIABLE
    };
    for name in ["a", "router", "b"] {
        append(stage.node(name), &other.block());
    }
    reload_all(&stage);
    passes(&stage, other.name, "new").await;

    // Its policy changes.
    let mut events = stage.subscribed(other.name).await;
    for name in ["a", "router", "b"] {
        stage.edit(name, &other.block(), &(other.block() + "priority = 5\n"));
    }
    reload_all(&stage);
    stage.subscribers(other.name, 1).await;
    stage
        .mesh("a")
        .await
        .publish(other.name, b"other")
        .await
        .unwrap();
    assert_eq!(payloads(&mut events, 1).await, [&b"other"[..]]);

    // A scope takes b's right to it away.
    let scope = "[[scopes]]\nname = \"other\"\nsubscribe = [\"router\"]\n";
    for name in ["a", "router", "b"] {
        append(stage.node(name), scope);
    }
    reload_all(&stage);
    in_time("the end", async {
        while events
            .next_delivery()
            .await
            .is_some_and(|event| event.is_ok())
        {}
    })
    .await;
    stage.subscribers(other.name, 0).await;
    let refused = stage
        .mesh("b")
        .await
        .subscribe(other.name)
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("may not subscribe"),
        "{refused}"
    );

    // The router's entity may declare channels, at all nodes; a said no before.
    let key = stage
        .node("router")
        .file("entity.key")
        .display()
        .to_string();
    let declare = || {
        let channel = ["channel", "create", "by/command"];
        let who = ["--publish", "a", "--subscribe", "b", "--key", &key];
        stage.node("a").run(&[&channel[..], &who].concat())
    };
    assert!(said(&declare()).1.contains("is no authority"));
    for name in ["a", "router", "b"] {
        append(
            stage.node(name),
            "[[channel_authorities]]\nentity = \"router\"\n",
        );
    }
    reload_all(&stage);
    let declared = declare();
    assert!(declared.status.success(), "{}", said(&declared).1);
    eventually("b has the channel", async || {
        let known = stage.mesh("b").await.channels().await.ok()?.channels;
        known
            .iter()
            .any(|one| one.name == "by/command" && one.holds)
            .then_some(())
    })
    .await;
    passes(&stage, "by/command", "declared").await;

    // And is none any more.
    for name in ["a", "router", "b"] {
        stage.edit(name, "[[channel_authorities]]\nentity = \"router\"\n", "");
        stage.edit(name, &(other.block() + "priority = 5\n"), "");
        stage.edit(name, scope, "");
    }
    reload_all(&stage);
    for channel in ["by/command", other.name] {
        let error = stage
            .mesh("a")
            .await
            .publish(channel, b"x")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("is not configured"), "{error}");
    }
    assert_eq!(session_with(&stage, "a", "b").await, session);
    flow.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_move_to_another_address_and_end() {
    let mut stage = Stage::new(&[RELIABLE]);
    let first = with_metrics(&stage, "a");
    stage.start("a").await;
    assert_eq!(ask(first, "GET", "/healthz").0, 200);
    let free = std::net::TcpListener::bind((first.ip(), 0)).unwrap();
    let second = free.local_addr().unwrap();
    drop(free);
    stage.edit("a", &format!("\"{first}\""), &format!("\"{second}\""));
    reload(stage.node("a"));
    assert_eq!(ask(second, "GET", "/healthz").0, 200);
    let ended = |address| {
        eventually("it answers no more", async move || {
            TcpStream::connect(address).err()
        })
    };
    ended(first).await;
    stage.edit("a", &format!("[metrics]\nlisten = \"{second}\"\n"), "");
    reload(stage.node("a"));
    ended(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_and_link_tags_are_agreed_on_anew_with_those_whom_it_concerns() {
    let stage = Stage::running(&[RELIABLE]).await;
    let with_a = session_with(&stage, "router", "a").await;
    let with_b = session_with(&stage, "router", "b").await;
    let peer = format!("address = \"{}\"", stage.node("b").listen);
    let tags = async |at: &str, peer: &str| {
        let links = stage.status(at).await.forwarding.links;
        links
            .into_iter()
            .find(|link| link.peer == peer)
            .unwrap()
            .tags
    };
    eventually("tags with b", async || {
        tags("router", "b").await.checked.then_some(())
    })
    .await;

    stage.edit(
        "router",
        &peer,
        &format!("{peer}\nlink_tags = \"off\"\npattern = \"xx\"\npq = \"off\""),
    );
    reload(stage.node("router"));
    let session = eventually("another session with b", async || {
        let sessions = stage.status("router").await.sessions;
        let mut live = sessions.into_iter().filter(|s| s.state == "established");
        live.find(|session| session.name == "b" && session.session != with_b)
    })
    .await;
    assert!(!session.hybrid);
    assert!(!tags("router", "b").await.checked);
    assert!(
        tags("router", "a")
            .await
            .checked_why
            .is_none_or(|why| !why.contains("configuration"))
    );
    assert_eq!(session_with(&stage, "router", "a").await, with_a);
    // What b sends on through the router passes without tags.
    passes(&stage, RELIABLE.name, "untagged").await;

    // For all: the section says the same of everyone whose block says nothing.
    stage.edit(
        "router",
        "[forwarding]\n",
        "[handshake]\npq = \"off\"\n[forwarding]\nlink_key_s = 60\n",
    );
    reload(stage.node("router"));
    let session = eventually("another session with a", async || {
        let sessions = stage.status("router").await.sessions;
        let mut live = sessions.into_iter().filter(|s| s.state == "established");
        live.find(|session| session.name == "a" && session.session != with_a)
    })
    .await;
    assert!(!session.hybrid);
    passes(&stage, RELIABLE.name, "without ML-KEM").await;
}
