//! Three nodes on the loopback, each a process of its own: a -- router -- b.

use serde_json::Value;
use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};
use virga::{
    api::status::Status,
    hex,
    keys::{self, EntityKey, Existing, KeyKind, NodeKey, Secret},
    mesh::{Mesh, Publisher, Subscription},
};
use virga_ebpf::header::{NodeId, OriginHash};

/// Far above what anything here takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often something awaited is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A `[[channels]]` block, as one node's file has it.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    pub(crate) name: &'static str,
    pub(crate) reliable: bool,
    /// Written only where the channel is reliable.
    pub(crate) hold_max_s: u32,
    pub(crate) publish: &'static [&'static str],
    pub(crate) subscribe: &'static [&'static str],
}

/// From a to b, reliable.
pub(crate) const RELIABLE: Channel = Channel {
    name: "test/reliable",
    reliable: true,
    hold_max_s: 30,
    publish: &["a"],
    subscribe: &["b"],
};

impl Channel {
    pub(crate) fn block(&self) -> String {
        let mut text = format!(
            "[[channels]]\nname = \"{}\"\nreliable = {}\npublish = {:?}\nsubscribe = {:?}\n",
            self.name, self.reliable, self.publish, self.subscribe
        );
        if self.reliable {
            text += &format!("hold_max_s = {}\n", self.hold_max_s);
        }
        text
    }
}

/// One node: its files, and its process while it runs; whatever happens, that does not outlive it.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) listen: SocketAddr,
    pub(crate) id: NodeId,
    pub(crate) origin: OriginHash,
    folder: PathBuf,
    pub(crate) node_key: String,
    pub(crate) entity_key: String,
    process: Option<Child>,
}

/// All three.
pub(crate) struct Stage {
    pub(crate) nodes: [Node; 3],
    /// The network's key, which all three have.
    pub(crate) psk: Secret,
    /// Goes last.
    _folder: tempfile::TempDir,
}

/// Waits until `look` gives something.
pub(crate) async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look).await
}

/// The same where it may take so long.
pub(crate) async fn within<T>(
    patience: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    while start.elapsed() < patience {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    panic!("{what}: not within {patience:?}");
}

/// Within a time that only a failure takes.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(result) => result,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

impl Stage {
    /// Makes keys and files for all three; nothing runs yet. Every node's file has `channels`.
    pub(crate) fn new(channels: &[Channel]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let psk = Secret::generate().unwrap();
        let names = [
            ("a", "127.0.0.2"),
            ("router", "127.0.0.3"),
            ("b", "127.0.0.4"),
        ];
        let nodes = names.map(|(name, ip)| Node::new(name, ip, folder.path(), &psk));
        let stage = Self {
            _folder: folder,
            nodes,
            psk,
        };
        for name in ["a", "router", "b"] {
            stage.configure(name, channels);
        }
        stage
    }

    /// All three, running, with these channels in every file.
    pub(crate) async fn running(channels: &[Channel]) -> Self {
        let mut stage = Self::new(channels);
        for name in ["router", "b", "a"] {
            stage.start(name).await;
        }
        stage
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.name == name)
            .unwrap()
    }

    /// Writes a node's configuration file.
    pub(crate) fn configure(&self, name: &str, channels: &[Channel]) {
        let own = self.node(name);
        let mut text = own.head();
        for peer in self.nodes.iter().filter(|peer| peer.name != name) {
            let reach = if name == "router" || peer.name == "router" {
                format!("address = \"{}\"", peer.listen)
            } else {
                "via = [\"router\"]".to_owned()
            };
            text += &format!(
                "[[peers]]\nname = \"{}\"\nnode_key = \"{}\"\nentity_key = \"{}\"\n{reach}\n",
                peer.name, peer.node_key, peer.entity_key
            );
        }
        for channel in channels {
            text += &channel.block();
        }
        fs::write(own.config(), text).unwrap();
    }

    /// Replaces something in a node's configuration file.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let path = self.node(name).config();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} is not in\n{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Starts a node and waits until it answers.
    pub(crate) async fn start(&mut self, name: &str) {
        self.start_with(name, |_| {}).await;
    }

    /// Starts a node by a command that is changed first, and waits until it answers.
    pub(crate) async fn start_with(&mut self, name: &str, change: impl FnOnce(&mut Command)) {
        let node = self.node_mut(name);
        node.spawn(change);
        let node = self.node(name);
        eventually(&format!("{name} answers"), async || {
            Mesh::open(node.socket()).await.ok()?.status().await.ok()
        })
        .await;
    }

    pub(crate) async fn mesh(&self, name: &str) -> Mesh {
        Mesh::open(self.node(name).socket()).await.unwrap()
    }

    pub(crate) async fn status(&self, name: &str) -> Status {
        self.mesh(name).await.status().await.unwrap()
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut process = self.node_mut(name).process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Sends a node a signal.
    pub(crate) fn signal(&self, name: &str, signal: &str) {
        send_signal(self.node(name).process.as_ref().unwrap(), signal);
    }

    /// The id of a running node's process.
    pub(crate) fn process(&self, name: &str) -> u32 {
        self.node(name).process.as_ref().unwrap().id()
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn terminate(&mut self, name: &str) -> ExitStatus {
        self.signal(name, "-TERM");
        let mut process = self.node_mut(name).process.take().unwrap();
        process.wait().unwrap()
    }

    /// Subscribes b to a channel, and waits until it is on a's roster.
    pub(crate) async fn subscribed(&self, channel: &str) -> Subscription {
        let subscription = self.mesh("b").await.subscribe(channel).await.unwrap();
        self.subscribers(channel, 1).await;
        subscription
    }

    /// a's publisher on a channel.
    pub(crate) async fn publisher(&self, channel: &str) -> Publisher {
        self.mesh("a").await.publisher(channel).await.unwrap()
    }

    /// Waits until so many nodes are on a's roster of a channel.
    pub(crate) async fn subscribers(&self, channel: &str, count: usize) {
        eventually(&format!("{count} subscribers of {channel}"), async || {
            let status = self.mesh("a").await.status().await.ok()?;
            let channel = status.channels.iter().find(|c| c.name == channel)?;
            (channel.remote_subscribers == count).then_some(())
        })
        .await;
    }
}

impl Node {
    pub(crate) fn new(name: &'static str, ip: &str, folder: &Path, psk: &Secret) -> Self {
        let folder = folder.join(name);
        fs::create_dir(&folder).unwrap();
        let write = |kind: KeyKind, secret: &Secret| {
            let path = folder.join(kind.file_name());
            keys::write(kind, &path, secret, Existing::Keep).unwrap();
        };
        let node = Secret::generate().unwrap();
        let entity = Secret::generate().unwrap();
        write(KeyKind::Node, &node);
        write(KeyKind::Entity, &entity);
        write(KeyKind::Psk, psk);
        let (node, entity) = (NodeKey::from(node), EntityKey::from(entity));
        // The port stays free unless someone takes it within a moment: on an address of its own.
        let free = UdpSocket::bind((ip, 0)).unwrap();
        Self {
            name,
            listen: free.local_addr().unwrap(),
            id: node.id,
            origin: entity.origin,
            node_key: hex::encode(&node.public),
            entity_key: hex::encode(&entity.public),
            folder,
            process: None,
        }
    }

    /// What its file begins with.
    pub(crate) fn head(&self) -> String {
        let file = |kind: KeyKind| self.folder.join(kind.file_name()).display().to_string();
        format!(
            "[node]\nname = \"{}\"\nnetwork = \"test\"\nnode_key_file = \"{}\"\n\
             entity_key_file = \"{}\"\npsk_file = \"{}\"\nlisten = \"{}\"\nsocket = \"{}\"\n\
             state = \"{}\"\n\
             [forwarding]\nmode = \"userspace\"\n",
            self.name,
            file(KeyKind::Node),
            file(KeyKind::Entity),
            file(KeyKind::Psk),
            self.listen,
            self.socket().display(),
            self.file("state").display(),
        )
    }

    /// SIGKILL, and waits for the end, if it runs.
    pub(crate) fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ended = process.kill();
            let _reaped = process.wait();
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("run").join("node.sock")
    }

    /// A file of the node's.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("node.toml")
    }

    /// Replaces the network's key in this node's file.
    pub(crate) fn replace_psk(&self) {
        let psk = Secret::generate().unwrap();
        let path = self.folder.join(KeyKind::Psk.file_name());
        keys::write(KeyKind::Psk, &path, &psk, Existing::Replace).unwrap();
    }

    /// What the daemon has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(crate) fn spawn(&mut self, change: impl FnOnce(&mut Command)) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
        command
            .args(["node", "run", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stderr(log.unwrap());
        change(&mut command);
        self.process = Some(command.spawn().unwrap());
    }

    /// `virga ARGUMENTS --socket SOCKET`, not yet started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virga"));
        command
            .args(arguments)
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed, and reads the JSON object it prints.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// A client of a node; whatever happens, it does not outlive the test.
pub(crate) struct Program(Child);

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(piped.spawn().unwrap())
    }

    pub(crate) fn signal(&self, signal: &str) {
        send_signal(&self.0, signal);
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// How it ended, and what it wrote to standard output and standard error.
    pub(crate) fn wait(&mut self) -> (ExitStatus, String, String) {
        let mut text = String::new();
        let mut words = String::new();
        let mut out = self.0.stdout.take().unwrap();
        let mut errors = self.0.stderr.take().unwrap();
        out.read_to_string(&mut text).unwrap();
        errors.read_to_string(&mut words).unwrap();
        (self.0.wait().unwrap(), text, words)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn send_signal(process: &Child, signal: &str) {
    let id = process.id().to_string();
    let told = Command::new("kill").args([signal, &id]).status().unwrap();
    assert!(told.success());
    // All its threads stand still only a little later.
    let is_stopped = || {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        stat.contains(") T ")
    };
    while signal == "-STOP" && !is_stopped() {
        std::thread::yield_now();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
        }
    }
}
