//! Two workers over real sockets on loopback, with an application at each.

use std::{
    net::{IpAddr, SocketAddr},
    sync::mpsc,
};

use ed25519_dalek::SigningKey;
use virga_ebpf::{
    hash,
    header::{ChannelHash, NodeId, StreamId, Subnet},
    image::{Image, Link, Place, Via},
    tables::{NextHop, Pair},
};
use virga_transport::{
    ChannelName, Event, HandshakePolicy, Mode, Node, NodeConfig, NodeLimits, PeerConfig, SendError,
    Share, StreamSpec,
    forward::Forwarder,
    io::driver::DriverConfig,
    worker::{Parts, Service, Task, Worker, WorkerConfig, WorkerHandle},
};
use x25519_dalek::{PublicKey, StaticSecret};

/// What is sent.
const EVENT: [u8; 64] = [7; 64];

/// One end of a session: sends as many events as it is told to, and counts those that come.
pub(crate) struct Application {
    peer: NodeId,
    mode: Mode,
    stream: Option<StreamId>,
    pub(crate) to_send: u64,
    pub(crate) received: u64,
}

impl Application {
    fn pump(&mut self, now_ns: u64, node: &mut Node) {
        let Some(stream) = self.stream else {
            return;
        };
        while self.to_send > 0 {
            match node.send(now_ns, self.peer, stream, &EVENT) {
                Ok(()) => self.to_send -= 1,
                Err(SendError::Full) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Service for Application {
    /// How many events more to send.
    type Command = u64;

    fn start(&mut self, now_ns: u64, node: &mut Node) {
        node.connect(now_ns, self.peer).unwrap();
    }

    fn on_event(&mut self, now_ns: u64, node: &mut Node, event: Event) {
        match event {
            Event::Connected { peer, .. } => {
                let spec = StreamSpec {
                    name: ChannelName::parse("a").unwrap(),
                    salt: 0,
                    priority: 0,
                    mode: self.mode,
                };
                self.stream = Some(node.open_stream(now_ns, peer, &spec).unwrap());
                self.pump(now_ns, node);
            }
            Event::Message { .. } => self.received += 1,
            Event::Writable { .. } => self.pump(now_ns, node),
            _ => {}
        }
    }

    fn on_command(&mut self, now_ns: u64, node: &mut Node, events: u64) {
        self.to_send += events;
        self.pump(now_ns, node);
    }

    fn poll_timeout(&self) -> Option<u64> {
        None
    }

    fn handle_timeout(&mut self, _now_ns: u64, _node: &mut Node) {}

    fn stop(&mut self, _now_ns: u64, _node: &mut Node) {}
}

fn key(number: u8) -> [u8; 32] {
    [number; 32]
}

pub(crate) fn peer(number: u8) -> PeerConfig {
    PeerConfig {
        node_key: PublicKey::from(&StaticSecret::from(key(number)))
            .to_bytes()
            .into(),
        entity_key: SigningKey::from_bytes(&key(number + 100))
            .verifying_key()
            .to_bytes(),
        handshake: None,
    }
}

pub(crate) fn id(number: u8) -> NodeId {
    peer(number).node_key.id()
}

fn image(own: u8, other: u8, to: SocketAddr) -> Image {
    let mut image = Image {
        node_id: id(own),
        port: 4783,
        ..Image::default()
    };
    let place = Place::new(0, IpAddr::from([127, 0, 0, 1]).into());
    image.neighbours.insert(place, Link::default());
    let origin = hash::origin_hash(&peer(other).entity_key);
    let hashes = [ChannelHash(0), ChannelName::parse("a").unwrap().hash(0)];
    image.pairs.extend(hashes.map(|h| Pair::new(origin, h)));
    let primary = image.add_next_hop(NextHop {
        target: to.ip().into(),
        port: to.port(),
        mtu: 65_535,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    });
    let via = Via {
        primary,
        backup: None,
    };
    image.routes.insert(id(other), via);
    image
}

pub(crate) fn spawn(
    own: u8,
    other: u8,
    mode: Mode,
    limits: NodeLimits,
) -> WorkerHandle<Application> {
    let config = WorkerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        core: None,
        driver: DriverConfig::default(),
    };
    let node = NodeConfig {
        network_id: "test".into(),
        psk: [1; 32],
        psk_generation: 0,
        node_key: key(own),
        entity_key: key(own + 100),
        subnet: Subnet(0),
        peers: vec![peer(other)],
        share: Share::WHOLE,
        handshake: HandshakePolicy::default(),
        limits,
        started_unix_ns: 1,
        seed: [own; 32],
    };
    let application = Application {
        peer: id(other),
        mode,
        stream: None,
        to_send: 0,
        received: 0,
    };
    Worker::spawn(&config, node, Forwarder::new(), application, |_| {}).unwrap()
}

pub(crate) fn route(worker: &WorkerHandle<Application>, own: u8, other: u8, to: SocketAddr) {
    let image = image(own, other, to);
    look(worker, move |parts| {
        let mut drawn = 0;
        let entropy = || {
            drawn += 1;
            drawn
        };
        parts.forwarder.apply(&image, entropy).unwrap();
    });
}

/// Looks at a worker on its thread; allocates nothing there by itself.
pub(crate) fn look<T: Send + 'static>(
    worker: &WorkerHandle<Application>,
    look: impl FnOnce(&mut Parts<Application>) -> T + Send + 'static,
) -> T {
    let (reply, answer) = mpsc::sync_channel(1);
    let task: Task<Application> = Box::new(move |_, parts| {
        reply.send(look(parts)).unwrap();
    });
    assert!(worker.commander().run(task).is_ok());
    answer.recv().unwrap()
}
