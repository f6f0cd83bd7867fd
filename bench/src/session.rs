//! Two nodes with an established session, and no network between them: what one sends, the other is handed.

use std::net::{Ipv4Addr, SocketAddr};

use ed25519_dalek::SigningKey;
use virga_ebpf::{
    header::{NodeId, StreamId, Subnet},
    limits::UDP_PORT,
};
use virga_transport::{
    ChannelName, Event, Handled, HandshakePolicy, Mode, Node, NodeConfig, NodeLimits, Pattern,
    PeerConfig, Pq, Share, StreamSpec,
};
use x25519_dalek::{PublicKey, StaticSecret};

/// Time between two events: what the clock moves on by where nothing waits for a timer.
const STEP_NS: u64 = 1_000;
/// Turns of exchange after which a message that has not come will not come.
const TURNS_MAX: u32 = 10_000;
/// Where datagrams seem to come from.
const SOURCE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), UDP_PORT);

/// Both ends of a session, and a stream from `sender` to `receiver`.
pub struct Ends {
    now_ns: u64,
    sender: Node,
    receiver: Node,
    stream: StreamId,
    buffer: Vec<u8>,
    carried: u64,
    /// Every datagram of this number is lost on its way to the receiver; 0 loses none.
    lost_every: u64,
}

/// The secrets of a numbered node: the same in every run, so that runs can be compared.
fn secret(kind: u8, number: u32) -> [u8; 32] {
    let mut bytes = [kind; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// What benches of anything but handshakes begin a session with.
const PLAIN: HandshakePolicy = HandshakePolicy {
    pattern: Some(Pattern::Nk),
    pq: Pq::Off,
};

/// What others know of a numbered node.
#[must_use]
pub fn public(number: u32) -> PeerConfig {
    PeerConfig {
        node_key: PublicKey::from(&StaticSecret::from(secret(1, number)))
            .to_bytes()
            .into(),
        entity_key: SigningKey::from_bytes(&secret(2, number))
            .verifying_key()
            .to_bytes(),
        handshake: None,
    }
}

/// A numbered node that knows others.
#[must_use]
pub fn config(number: u32, peers: Vec<PeerConfig>, limits: NodeLimits) -> NodeConfig {
    NodeConfig {
        network_id: "bench".to_owned(),
        psk: [9; 32],
        psk_generation: 1,
        node_key: secret(1, number),
        entity_key: secret(2, number),
        subnet: Subnet(0),
        peers,
        share: Share::WHOLE,
        handshake: PLAIN,
        limits,
        started_unix_ns: 1,
        seed: secret(3, number),
    }
}

fn node(number: u32, peer: u32, handshake: HandshakePolicy) -> Node {
    let mut config = config(number, vec![public(peer)], NodeLimits::default());
    config.handshake = handshake;
    Node::new(config, 0).expect("a configuration that the node accepts")
}

/// Carries all that `from` wants to send now to `to`; every `lost_every`th datagram is lost.
fn carry(
    now_ns: u64,
    from: &mut Node,
    to: &mut Node,
    buffer: &mut Vec<u8>,
    carried: &mut u64,
    lost_every: u64,
) {
    buffer.clear();
    while let Some(run) = from.poll_transmit(now_ns, buffer) {
        for datagram in buffer.chunks_mut(run.segment_bytes) {
            *carried += 1;
            if lost_every == 0 || !carried.is_multiple_of(lost_every) {
                assert_eq!(to.handle(now_ns, SOURCE, datagram), Handled::Accepted);
            }
        }
        buffer.clear();
    }
}

impl Ends {
    /// Two nodes that have proven themselves to each other, and a reliable stream that has carried one
    /// message. Panics when they cannot: there is no network that could be at fault.
    #[must_use]
    pub fn connect() -> Self {
        Self::connect_by(Mode::Ordered)
    }

    /// Two nodes that have not met yet, with this policy.
    #[must_use]
    pub fn unmet(handshake: HandshakePolicy) -> Self {
        Self {
            now_ns: 0,
            sender: node(1, 2, handshake),
            receiver: node(2, 1, handshake),
            stream: StreamId(0),
            buffer: Vec::new(),
            carried: 0,
            lost_every: 0,
        }
    }

    /// The first calls the other, until each knows that the other has proven itself. Panics when that does not come.
    pub fn meet(&mut self) {
        let peer = self.receiver.id();
        self.sender
            .connect(self.now_ns, peer)
            .expect("the peer is configured");
        let mut is_told = [false; 2];
        for _ in 0..TURNS_MAX {
            self.exchange();
            for (is_told, node) in is_told
                .iter_mut()
                .zip([&mut self.sender, &mut self.receiver])
            {
                while let Some(event) = node.poll() {
                    *is_told |= matches!(event, Event::Connected { .. });
                }
            }
            if is_told == [true; 2] {
                return;
            }
        }
        panic!("no session after {TURNS_MAX} exchanges");
    }

    /// The same as [`Ends::connect`], with a stream of this mode.
    #[must_use]
    pub fn connect_by(mode: Mode) -> Self {
        let mut ends = Self::unmet(PLAIN);
        ends.meet();
        let peer = ends.receiver.id();
        let spec = StreamSpec {
            name: ChannelName::parse("bench").expect("a channel's name"),
            salt: 0,
            priority: 4,
            mode,
        };
        ends.stream = ends
            .sender
            .open_stream(ends.now_ns, peer, &spec)
            .expect("an established session");
        ends.pass(b"first", 1);
        ends
    }

    /// The same, where every `number`th datagram towards the receiver is lost.
    #[must_use]
    pub fn connect_losing(number: u64) -> Self {
        Self {
            lost_every: number,
            ..Self::connect()
        }
    }

    /// The node that shall open what the sender seals.
    #[must_use]
    pub fn receiver(&self) -> NodeId {
        self.receiver.id()
    }

    /// One exchange: what each end has to say, the acknowledgements included.
    fn exchange(&mut self) {
        let Self {
            now_ns,
            sender,
            receiver,
            buffer,
            carried,
            lost_every,
            ..
        } = self;
        carry(*now_ns, sender, receiver, buffer, carried, *lost_every);
        carry(*now_ns, receiver, sender, buffer, &mut 0, 0);
        *now_ns += STEP_NS;
        for end in [sender, receiver] {
            if end.poll_timeout().is_some_and(|due_ns| due_ns <= *now_ns) {
                end.handle_timeout(*now_ns);
            }
        }
    }

    /// Exchanges until the receiver was told `count` events of a kind. Where nothing moves the clock
    /// goes on to the next timer.
    fn exchange_until(&mut self, count: usize, is_wanted: impl Fn(&Event) -> bool) -> bool {
        let mut told = 0;
        for _ in 0..TURNS_MAX {
            let before = self.carried;
            self.exchange();
            while let Some(event) = self.receiver.poll() {
                told += usize::from(is_wanted(&event));
            }
            while self.sender.poll().is_some() {}
            if told >= count {
                return told == count;
            }
            if self.carried == before {
                let due = [&self.sender, &self.receiver].map(Node::poll_timeout);
                self.now_ns = due
                    .into_iter()
                    .flatten()
                    .fold(u64::MAX, u64::min)
                    .max(self.now_ns);
            }
        }
        false
    }

    /// Passes `count` messages equal to `event` through: queued, sealed, opened, put in order, read,
    /// acknowledged. Panics when not all of them come, once.
    pub fn pass(&mut self, event: &[u8], count: usize) {
        let peer = self.receiver.id();
        for _ in 0..count {
            self.sender
                .send(self.now_ns, peer, self.stream, event)
                .expect("the queue holds what one call passes");
        }
        let is_whole = |told: &Event| match told {
            Event::Message { event: came, .. } => came.len() == event.len(),
            _ => false,
        };
        assert!(self.exchange_until(count, is_whole), "{count} messages");
    }

    /// The same, all handed over in one call.
    pub fn pass_all(&mut self, event: &[u8], count: usize) {
        let (peer, events) = (self.receiver.id(), std::iter::repeat_n(event, count));
        let taken = self
            .sender
            .send_all(self.now_ns, peer, self.stream, events, None);
        assert_eq!(
            taken.messages, count,
            "the queue holds what one call passes"
        );
        let is_whole = |told: &Event| match told {
            Event::Message { event: came, .. } => came.len() == event.len(),
            _ => false,
        };
        assert!(self.exchange_until(count, is_whole), "{count} messages");
    }

    /// The next datagram that carries `event`, on its way: the receiver has not seen it.
    pub fn datagram(&mut self, event: &[u8]) -> Vec<u8> {
        let peer = self.receiver.id();
        self.sender
            .send(self.now_ns, peer, self.stream, event)
            .expect("an empty queue");
        self.buffer.clear();
        let run = self
            .sender
            .poll_transmit(self.now_ns, &mut self.buffer)
            .expect("something to send");
        self.buffer[..run.segment_bytes].to_vec()
    }

    /// Hands a datagram to the receiver.
    pub fn hand(&mut self, datagram: &mut [u8]) -> Handled {
        self.receiver.handle(self.now_ns, SOURCE, datagram)
    }
}

/// One node that others visit, one after another; their sessions stay.
pub struct Hub {
    now_ns: u64,
    node: Node,
    buffer: Vec<u8>,
}

/// The hub's own number.
const HUB: u32 = 0;
/// How long a hub's sessions rest: acknowledgements have gone and streams are forgotten, none is idle too long.
const REST_NS: u64 = 5_000_000_000;

impl Hub {
    /// A hub that nobody has visited. Panics where the configuration is refused.
    #[must_use]
    pub fn new(peers: Vec<PeerConfig>, limits: NodeLimits) -> Self {
        let node = Node::new(config(HUB, peers, limits), 0);
        Self {
            now_ns: 0,
            node: node.expect("a configuration that the node accepts"),
            buffer: Vec::new(),
        }
    }

    /// A session with a numbered node, over which one message travels on a stream that is finished; then the
    /// other node is gone. Panics when that cannot be had.
    pub fn visit(&mut self, number: u32) {
        let mut visitor = node(number, HUB, PLAIN);
        let hub = self.node.id();
        visitor
            .connect(self.now_ns, hub)
            .expect("the hub is configured");
        let is_connected = |event: &Event| matches!(event, Event::Connected { .. });
        assert!(
            self.exchange_until(&mut visitor, is_connected),
            "no session with {number}"
        );
        // The hub's own proof is on its way.
        for _ in 0..4 {
            self.exchange(&mut visitor);
        }
        let spec = StreamSpec {
            name: ChannelName::parse("bench").expect("a channel's name"),
            salt: 0,
            priority: 4,
            mode: Mode::Ordered,
        };
        let stream = visitor
            .open_stream(self.now_ns, hub, &spec)
            .expect("an established session");
        visitor
            .send(self.now_ns, hub, stream, b"a visit")
            .and_then(|()| visitor.finish_stream(self.now_ns, hub, stream))
            .expect("an empty queue");
        let is_finished = |event: &Event| matches!(event, Event::StreamFinished { .. });
        assert!(
            self.exchange_until(&mut visitor, is_finished),
            "no message of {number}"
        );
        for _ in 0..4 {
            self.exchange(&mut visitor);
        }
    }

    fn exchange(&mut self, visitor: &mut Node) {
        let Self {
            now_ns,
            node,
            buffer,
        } = self;
        carry(*now_ns, visitor, node, buffer, &mut 0, 0);
        carry(*now_ns, node, visitor, buffer, &mut 0, 0);
        *now_ns += STEP_NS;
    }

    /// Exchanges until the hub is told an event.
    fn exchange_until(&mut self, visitor: &mut Node, is_wanted: impl Fn(&Event) -> bool) -> bool {
        for _ in 0..TURNS_MAX {
            self.exchange(visitor);
            while visitor.poll().is_some() {}
            let mut is_told = false;
            while let Some(event) = self.node.poll() {
                is_told |= is_wanted(&event);
            }
            if is_told {
                return true;
            }
        }
        false
    }

    /// Lets all sessions rest; what they still want to send leads nowhere.
    pub fn rest(&mut self) {
        let end_ns = self.now_ns + REST_NS;
        loop {
            while self
                .node
                .poll_transmit(self.now_ns, &mut self.buffer)
                .is_some()
            {
                self.buffer.clear();
            }
            while self.node.poll().is_some() {}
            match self.node.poll_timeout() {
                Some(due_ns) if due_ns <= end_ns => {
                    self.now_ns = self.now_ns.max(due_ns);
                    self.node.handle_timeout(self.now_ns);
                }
                _ => break,
            }
        }
        self.now_ns = end_ns;
    }

    /// Sessions that there are.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.node.sessions().count()
    }
}
