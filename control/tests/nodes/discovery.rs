//! Nodes of whose files none names more than one other: how they find each other, and who of them lives.

use crate::{
    rights::token,
    stage::{Node, eventually, in_time, within},
};
use std::{fs, net::UdpSocket, time::Duration};
use virga::{api::status::Status, keys::Secret, mesh::Mesh};

const CHANNEL: &str = "test/open";
/// Nodes that are slow themselves give others minutes before they call them dead.
const JUDGED_WITHIN: Duration = Duration::from_secs(300);

/// Nodes that look for each other; whatever happens, no process outlives it.
struct Strangers {
    nodes: Vec<Node>,
    /// Goes last.
    _folder: tempfile::TempDir,
}

impl Strangers {
    /// Keys and folders; nothing runs yet.
    fn new(names: &[&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let psk = Secret::generate().unwrap();
        let nodes = (0_u8..).zip(names).map(|(n, name)| {
            let ip = format!("127.0.5.{}", n + 2);
            Node::new(name, &ip, folder.path(), &psk)
        });
        let nodes = nodes.collect();
        Self {
            _folder: folder,
            nodes,
        }
    }

    fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    fn node_mut(&mut self, name: &str) -> &mut Node {
        let mut nodes = self.nodes.iter_mut();
        nodes.find(|node| node.name == name).unwrap()
    }

    /// A node as a line of seeds.
    fn line(&self, name: &str) -> String {
        let node = self.node(name);
        let (node_key, entity_key) = (&node.node_key, &node.entity_key);
        format!("{name} {node_key} {entity_key} {}", node.listen)
    }

    /// Writes a node's file: `section` is what its [discovery] says.
    fn configure(&self, name: &str, section: &str) {
        let text = self.node(name).head() + "[discovery]\n" + section;
        fs::write(self.node(name).config(), text).unwrap();
    }

    async fn start(&mut self, name: &str) {
        self.node_mut(name).spawn(|_| {});
        eventually(&format!("{name} answers"), async || {
            let mesh = Mesh::open(self.node(name).socket()).await.ok()?;
            mesh.status().await.ok()
        })
        .await;
    }

    async fn mesh(&self, name: &str) -> Mesh {
        Mesh::open(self.node(name).socket()).await.unwrap()
    }

    async fn status(&self, name: &str) -> Status {
        self.mesh(name).await.status().await.unwrap()
    }

    /// Waits until these have sessions with each other, and each calls all others alive.
    async fn know(&self, names: &[&str]) {
        for at in names {
            for of in names.iter().filter(|of| *of != at) {
                eventually(&format!("{at} knows {of}"), async || {
                    let status = self.status(at).await;
                    let peer = status.peers.iter().find(|peer| peer.name == *of)?;
                    let is_on = peer.session.as_deref() == Some("established");
                    (is_on && peer.member.as_deref() == Some("alive")).then_some(())
                })
                .await;
            }
        }
    }

    /// Waits until a node calls another one that.
    async fn called(&self, at: &str, of: &str, state: &str) {
        let id = self.node(of).id.to_string();
        within(
            JUDGED_WITHIN,
            &format!("{at} calls {of} {state}"),
            async || {
                let members = self.status(at).await.discovery.members;
                let member = members.into_iter().find(|member| member.id == id)?;
                (member.state == state).then_some(())
            },
        )
        .await;
    }
}

/// A port that is free at a node's address.
fn another_port(node: &Node) -> std::net::SocketAddr {
    let free = UdpSocket::bind((node.listen.ip(), 0)).unwrap();
    free.local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_of_five_by_one_seed_each_their_events_a_death_and_a_return_elsewhere() {
    let names = ["a", "b", "c", "d", "e"];
    let mut nodes = Strangers::new(&names);
    let issuer = nodes.node("c").entity_key.clone();
    let channel = format!(
        "[[channels]]\nname = \"{CHANNEL}\"\nrequire_token = true\nissuers = [\"{issuer}\"]\n"
    );
    for (n, name) in names.iter().enumerate() {
        // In a ring, so that nobody is everybody's seed.
        let seed = nodes.line(names[(n + 1) % names.len()]);
        nodes.configure(
            name,
            &format!("admit = \"any\"\nseeds = [\"{seed}\"]\n{channel}"),
        );
    }
    let allow = |holder: &str, allow: &str| {
        let (key, node) = (nodes.node("c").file("entity.key"), nodes.node(holder));
        let file = node.file(&format!("{allow}.token"));
        let (subject, allow) = (&node.entity_key, allow);
        let arguments: [&dyn AsRef<std::path::Path>; 13] = [
            &"issue",
            &"--key",
            &key,
            &"--subject",
            subject,
            &"--subtree",
            &"test",
            &"--allow",
            &allow,
            &"--for",
            &"1h",
            &"--out",
            &file,
        ];
        token(&arguments).unwrap();
        let config = fs::read_to_string(node.config()).unwrap();
        let tokens = format!("tokens = [\"{}\"]\n[forwarding]", file.display());
        fs::write(node.config(), config.replace("[forwarding]", &tokens)).unwrap();
    };
    allow("a", "publish");
    allow("d", "subscribe");
    for name in names {
        nodes.start(name).await;
    }
    nodes.know(&names).await;

    // Neither file names the other's node.
    let mut events = nodes.mesh("d").await.subscribe(CHANNEL).await.unwrap();
    eventually("d subscribes at a", async || {
        let status = nodes.status("a").await;
        let channel = status.channels.iter().find(|c| c.name == CHANNEL)?;
        (channel.remote_subscribers == 1).then_some(())
    })
    .await;
    let publisher = nodes.mesh("a").await.publisher(CHANNEL).await.unwrap();
    publisher.publish(b"hello").await.unwrap();
    let delivery = in_time("an event", events.next_delivery()).await;
    assert_eq!(&delivery.unwrap().unwrap().payload[..], b"hello");

    let shown = eventually("a shows that all others live", async || {
        let shown = nodes.node("a").run(&["peers"]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        (shown.matches("  member: alive").count() == 4).then_some(shown)
    })
    .await;
    let told = ["  found: exchange", "  found: introduction"];
    assert!(
        shown.contains("  found: seed") && told.iter().any(|found| shown.contains(found)),
        "{shown}"
    );

    nodes.node_mut("e").end();
    for at in ["a", "b", "c", "d"] {
        nodes.called(at, "e", "dead").await;
    }
    let elsewhere = another_port(nodes.node("e"));
    let before = nodes.node("e").listen;
    let file = nodes.node("e").config();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        file,
        text.replace(&before.to_string(), &elsewhere.to_string()),
    )
    .unwrap();
    nodes.start("e").await;
    nodes.know(&names).await;
    let status = nodes.status("b").await;
    let mut found = status.discovery.nodes.iter();
    let address = found
        .find(|node| node.name == "e")
        .and_then(|node| node.address.clone());
    assert_eq!(address, Some(elsewhere.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_admits_whom_the_file_names_and_reads_its_list_again() {
    let mut nodes = Strangers::new(&["hub", "known", "stranger"]);
    let (hub, known) = (nodes.line("hub"), nodes.node("known").entity_key.clone());
    let block = format!("[[peers]]\nname = \"partner\"\nentity_key = \"{known}\"\n");
    nodes.configure("hub", &block);
    let list = nodes.node("known").file("nodes");
    fs::write(&list, "# nobody yet\n").unwrap();
    nodes.configure("known", &format!("file = \"{}\"\n", list.display()));
    nodes.configure("stranger", &format!("seeds = [\"{hub}\"]\n"));
    for name in ["hub", "known", "stranger"] {
        nodes.start(name).await;
    }
    eventually("the stranger is refused", async || {
        let refused = nodes.status("hub").await.discovery.refused;
        (refused["unnamed"] > 0).then_some(())
    })
    .await;
    fs::write(&list, format!("{hub} # the hub\n")).unwrap();
    eventually(
        "the other one is found, by the name that the file has for it",
        async || {
            let status = nodes.status("hub").await;
            let peer = status.peers.iter().find(|peer| peer.name == "partner")?;
            (peer.session.as_deref() == Some("established")).then_some(())
        },
    )
    .await;
    nodes.called("known", "hub", "alive").await;
    let status = nodes.status("hub").await;
    let stranger = nodes.node("stranger").id.to_string();
    assert!(status.peers.iter().all(|peer| peer.id != stranger));
    // A reload knows of those that were found, and leaves them alone.
    let reloaded = nodes.node("hub").run(&["reload"]);
    assert!(reloaded.status.success());
    let checked = nodes.status("hub").await;
    let session = |status: &Status| {
        status
            .sessions
            .iter()
            .map(|s| s.session.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(session(&checked), session(&status));
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_refuses_two_nodes_with_one_key_and_says_so() {
    let mut nodes = Strangers::new(&["hub", "a", "twin"]);
    let hub = nodes.line("hub");
    nodes.configure("hub", "admit = \"any\"\n");
    for name in ["a", "twin"] {
        nodes.configure(name, &format!("admit = \"any\"\nseeds = [\"{hub}\"]\n"));
    }
    for key in ["node.key", "entity.key"] {
        fs::copy(nodes.node("a").file(key), nodes.node("twin").file(key)).unwrap();
    }
    for name in ["hub", "a"] {
        nodes.start(name).await;
    }
    nodes.know(&["hub", "a"]).await;
    nodes.start("twin").await;
    let id = nodes.node("a").id.to_string();
    eventually("both are refused", async || {
        let status = nodes.status("hub").await;
        let mut known = status.discovery.nodes.iter();
        let is_twin = known.any(|node| node.id == id && node.is_twin);
        let is_gone = status.peers.iter().all(|peer| peer.id != id);
        (is_twin && is_gone && status.discovery.refused["twin"] > 0).then_some(())
    })
    .await;
    let log = nodes.node("hub").log();
    assert!(log.contains("two nodes run with a node's keys"), "{log}");
}
