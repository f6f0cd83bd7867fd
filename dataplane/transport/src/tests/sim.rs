//! A small mesh of nodes on a network that is not there. Everything depends on the seed alone.

use crate::{
    Answers, ChannelName, CloseReason, DropReason, Event, Handled, HandshakePolicy, Heard, Mode,
    Node, NodeConfig, NodeLimits, Pattern, PeerConfig, Pq, StreamSpec, Toward,
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};
use virga_ebpf::{
    header::{Header, NodeId, StreamId, Subnet},
    limits::HEADER_BYTES,
};
use x25519_dalek::{PublicKey, StaticSecret};

pub(crate) use crate::sim::{MS, Network, SECOND, Weather};

pub(crate) fn node_key(number: u8) -> [u8; 32] {
    [number + 1; 32]
}

pub(crate) fn entity_key(number: u8) -> [u8; 32] {
    [number + 101; 32]
}

pub(crate) fn peer(number: u8) -> PeerConfig {
    PeerConfig {
        node_key: PublicKey::from(&StaticSecret::from(node_key(number)))
            .to_bytes()
            .into(),
        entity_key: ed25519_dalek::SigningKey::from_bytes(&entity_key(number))
            .verifying_key()
            .to_bytes(),
        handshake: None,
    }
}

/// Node `number` of `count`, each knowing all others.
pub(crate) fn config(number: u8, count: u8, seed: u64, limits: &NodeLimits) -> NodeConfig {
    let mut bytes = [number; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    NodeConfig {
        network_id: "test".into(),
        psk: [9; 32],
        psk_generation: 1,
        node_key: node_key(number),
        entity_key: entity_key(number),
        subnet: Subnet(1 << 24),
        peers: (0..count).filter(|&n| n != number).map(peer).collect(),
        share: crate::Share::WHOLE,
        handshake: HandshakePolicy {
            pattern: Some(Pattern::Nk),
            pq: Pq::Off,
        },
        limits: limits.clone(),
        started_unix_ns: seed,
        seed: bytes,
    }
}

pub(crate) fn spec(name: &str, mode: Mode) -> StreamSpec {
    StreamSpec {
        name: ChannelName::parse(name).unwrap(),
        salt: 0,
        priority: 4,
        mode,
    }
}

/// Ingress address of what node `number` sent.
pub(crate) fn source(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(number).unwrap()], 4783))
}

pub(crate) struct Sim {
    pub(crate) now_ns: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) ids: Vec<NodeId>,
    pub(crate) network: Network,
    /// Every datagram that was put on the wire, with its sender.
    pub(crate) wire: Vec<(usize, Vec<u8>)>,
    pub(crate) keep_wire: bool,
    /// What each node's owner was told; a node named in `deaf` is not asked.
    pub(crate) told: Vec<VecDeque<Event>>,
    pub(crate) deaf: Vec<usize>,
    pub(crate) runs: Vec<(usize, usize)>,
    /// Where each node is, and where each sends what is for another.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) next_hops: Vec<Vec<SocketAddr>>,
    /// Where a node gets what is sent, beside its own address.
    pub(crate) also: Option<(SocketAddr, usize)>,
    /// What sends echoes back; without it they are lost.
    pub(crate) echoes: Option<Answers>,
    /// When a node heard one of its own last, by its place.
    heard: BTreeMap<(usize, u32), u64>,
    /// Bytes that went where no node is.
    pub(crate) elsewhere_bytes: usize,
}

impl Sim {
    pub(crate) fn new(seed: u64, count: u8, limits: &NodeLimits, weather: Weather) -> Self {
        // What their first link carries, nodes know.
        let mut limits = limits.clone();
        limits.datagram_bytes_max = limits.datagram_bytes_max.min(weather.datagram_bytes);
        let nodes: Vec<Node> = (0..count)
            .map(|n| Node::new(config(n, count, seed, &limits), 0).unwrap())
            .collect();
        Self {
            now_ns: 0,
            ids: nodes.iter().map(Node::id).collect(),
            told: nodes.iter().map(|_| VecDeque::new()).collect(),
            nodes,
            network: Network::new(seed, weather),
            wire: Vec::new(),
            keep_wire: false,
            deaf: Vec::new(),
            runs: Vec::new(),
            elsewhere_bytes: 0,
            also: None,
            echoes: None,
            heard: BTreeMap::new(),
            addresses: (0..usize::from(count)).map(source).collect(),
            next_hops: vec![(0..usize::from(count)).map(source).collect(); usize::from(count)],
        }
    }

    /// Two nodes on a calm network, connected.
    pub(crate) fn pair(limits: &NodeLimits) -> Self {
        let mut sim = Self::new(1, 2, limits, Weather::CALM);
        sim.connect(0, 1);
        sim
    }

    pub(crate) fn connect(&mut self, from: usize, to: usize) {
        let (now_ns, id) = (self.now_ns, self.ids[to]);
        self.nodes[from].connect(now_ns, id).unwrap();
        self.run_until(10 * SECOND, |sim| {
            sim.is_connected(from, to) && sim.is_connected(to, from)
        });
        assert!(
            self.is_connected(from, to),
            "{from} is not connected to {to}"
        );
        self.told[from].clear();
        self.told[to].clear();
    }

    pub(crate) fn is_connected(&self, at: usize, to: usize) -> bool {
        self.nodes[at]
            .sessions()
            .any(|s| s.peer == self.ids[to] && s.state == crate::SessionState::Established)
    }

    /// Puts a datagram on the wire.
    pub(crate) fn fly(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        self.network.send(self.now_ns, from, to, bytes);
    }

    /// Everything that the nodes want to send now; gives how much that was.
    pub(crate) fn transmit(&mut self) -> usize {
        let mut sent = 0;
        for from in 0..self.nodes.len() {
            let mut buf = Vec::new();
            while let Some(run) = self.nodes[from].poll_transmit(self.now_ns, &mut buf) {
                assert_eq!(run.bytes, buf.len());
                assert!(run.bytes.div_ceil(run.segment_bytes) <= 64);
                assert!(run.bytes <= 65_000 || run.bytes == run.segment_bytes);
                let peer = self.ids.iter().position(|&id| id == run.destination);
                let address = match run.toward {
                    Toward::Address(address) => address,
                    Toward::Route | Toward::Link => {
                        peer.map_or(source(from), |peer| self.next_hops[from][peer])
                    }
                };
                let also = self.also.filter(|&(at, _)| at == address);
                let to = self.addresses.iter().position(|&at| at == address);
                let to = to.or(also.map(|(_, node)| node));
                self.runs.push((run.bytes, run.segment_bytes));
                for datagram in buf.chunks(run.segment_bytes) {
                    let header = Header::decode(datagram[..HEADER_BYTES].try_into().unwrap());
                    let payload_bytes = datagram.len() - HEADER_BYTES;
                    assert_eq!(
                        usize::from(header.payload_len),
                        payload_bytes,
                        "a false segment"
                    );
                    if header.is_echo() {
                        assert_eq!(header.destination, self.ids[from]);
                        if let (Some(to), Some(_)) = (to, self.echoes) {
                            self.fly(from, to, datagram.to_vec());
                        }
                        continue;
                    }
                    assert_eq!(header.destination, run.destination);
                    sent += 1;
                    if self.keep_wire {
                        self.wire.push((from, datagram.to_vec()));
                    }
                    match to {
                        Some(to) => self.fly(from, to, datagram.to_vec()),
                        None => self.elsewhere_bytes += datagram.len(),
                    }
                }
                buf.clear();
            }
        }
        sent
    }

    /// Asks every owner that listens.
    pub(crate) fn listen(&mut self) {
        for at in 0..self.nodes.len() {
            if self.deaf.contains(&at) {
                continue;
            }
            while let Some(event) = self.nodes[at].poll() {
                if let Event::AddressChanged { peer, address } = event {
                    let peer = self.ids.iter().position(|&id| id == peer).unwrap();
                    self.next_hops[at][peer] = address;
                }
                self.told[at].push_back(event);
            }
        }
    }

    /// Moves to the next moment at which something happens, up to `end_ns`; `false` when that
    /// is reached.
    pub(crate) fn step(&mut self, end_ns: u64) -> bool {
        self.transmit();
        let landing = self.network.next_ns();
        let timers = self.nodes.iter().filter_map(Node::poll_timeout);
        let next_ns = timers
            .chain(landing)
            .min()
            .unwrap_or(u64::MAX)
            .max(self.now_ns);
        if next_ns > end_ns {
            self.now_ns = end_ns;
            return false;
        }
        self.now_ns = next_ns;
        while let Some(arrival) = self.network.receive(next_ns) {
            let (from, mut bytes) = (self.addresses[arrival.from], arrival.bytes);
            let header = Header::decode(bytes[..HEADER_BYTES].try_into().unwrap());
            if header.is_echo() {
                if header.destination == self.ids[arrival.to] {
                    let place = (arrival.to, header.stream_id.0);
                    self.heard.insert(place, next_ns);
                } else {
                    self.fly(arrival.to, arrival.from, bytes);
                }
                continue;
            }
            let _ = self.nodes[arrival.to].handle(next_ns, from, &mut bytes);
        }
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if node.poll_timeout().is_some_and(|at| at <= next_ns) {
                node.take_echoes(next_ns, |watch| {
                    let heard_ns = self.heard.get(&(at, watch.place)).copied().unwrap_or(0);
                    match self.echoes {
                        Some(Answers::Nic) => Heard {
                            nic_ns: heard_ns,
                            worker_ns: 0,
                        },
                        _ => Heard {
                            nic_ns: 0,
                            worker_ns: heard_ns,
                        },
                    }
                });
                node.handle_timeout(next_ns);
            }
        }
        self.listen();
        true
    }

    pub(crate) fn run(&mut self, for_ns: u64) {
        let end_ns = self.now_ns + for_ns;
        while self.step(end_ns) {}
    }

    /// Runs until `done`, at most `for_ns`; gives whether it is.
    pub(crate) fn run_until(&mut self, for_ns: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end_ns = self.now_ns + for_ns;
        while !done(self) {
            if !self.step(end_ns) {
                return done(self);
            }
        }
        true
    }

    /// Gives `bytes` to node `to` as they are.
    pub(crate) fn give(&mut self, to: usize, bytes: &[u8]) -> Handled {
        self.nodes[to].handle(self.now_ns, source(9), &mut bytes.to_vec())
    }

    pub(crate) fn open(&mut self, from: usize, to: usize, spec: &StreamSpec) -> StreamId {
        let (now_ns, id) = (self.now_ns, self.ids[to]);
        self.nodes[from].open_stream(now_ns, id, spec).unwrap()
    }

    pub(crate) fn send(
        &mut self,
        from: usize,
        to: usize,
        stream: StreamId,
        event: &[u8],
    ) -> Result<(), crate::SendError> {
        let (now_ns, id) = (self.now_ns, self.ids[to]);
        self.nodes[from].send(now_ns, id, stream, event)
    }

    pub(crate) fn dropped(&self, at: usize, reason: DropReason) -> u64 {
        self.nodes[at].counters().dropped(reason)
    }

    /// Messages that the owner of node `at` was given, in order.
    pub(crate) fn messages(&self, at: usize) -> Vec<Vec<u8>> {
        let message = |event: &Event| match event {
            Event::Message { event, .. } => Some(event.to_vec()),
            _ => None,
        };
        self.told[at].iter().filter_map(message).collect()
    }

    pub(crate) fn closed(&self, at: usize) -> Vec<CloseReason> {
        let reason = |event: &Event| match event {
            Event::Closed { reason, .. } => Some(*reason),
            _ => None,
        };
        self.told[at].iter().filter_map(reason).collect()
    }

    pub(crate) fn epoch(&self, at: usize) -> u64 {
        self.nodes[at].sessions().next().unwrap().epoch
    }
}
