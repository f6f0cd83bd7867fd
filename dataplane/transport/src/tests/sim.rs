//! A small mesh of nodes under a seeded network: latency, loss, reordering, duplication,
//! corruption. Everything depends on the seed alone.

use crate::{
    ChannelName, CloseReason, DropReason, Event, Handled, Mode, Node, NodeConfig, NodeLimits,
    PeerConfig, StreamSpec, limits::DATAGRAM_BYTES_MIN, random::Generator,
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

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;

/// What the network does to each datagram, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) latency_ns: u64,
    pub(crate) jitter_ns: u64,
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) corruption: u64,
    /// Datagrams that are overtaken: they take `late_ns` longer at most.
    pub(crate) reordering: u64,
    pub(crate) late_ns: u64,
    /// Largest datagram that gets through.
    pub(crate) datagram_bytes: usize,
    /// Bytes a second of each node's link, and what waits for it at most; 0 for an endless one.
    pub(crate) rate: u64,
    pub(crate) queue_bytes: u64,
}

impl Weather {
    pub(crate) const CALM: Self = Self {
        latency_ns: 5 * MS,
        jitter_ns: 0,
        loss: 0,
        duplication: 0,
        corruption: 0,
        reordering: 0,
        late_ns: 0,
        rate: 0,
        queue_bytes: 0,
        datagram_bytes: DATAGRAM_BYTES_MIN,
    };
    pub(crate) const STORM: Self = Self {
        latency_ns: 5 * MS,
        jitter_ns: 20 * MS,
        loss: 20,
        duplication: 10,
        corruption: 5,
        reordering: 0,
        late_ns: 0,
        rate: 0,
        queue_bytes: 0,
        datagram_bytes: DATAGRAM_BYTES_MIN,
    };
}

pub(crate) fn node_key(number: u8) -> [u8; 32] {
    [number + 1; 32]
}

pub(crate) fn entity_key(number: u8) -> [u8; 32] {
    [number + 101; 32]
}

pub(crate) fn peer(number: u8) -> PeerConfig {
    PeerConfig {
        node_key: PublicKey::from(&StaticSecret::from(node_key(number))).to_bytes(),
        entity_key: ed25519_dalek::SigningKey::from_bytes(&entity_key(number))
            .verifying_key()
            .to_bytes(),
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
    pub(crate) weather: Weather,
    /// Every datagram that was put on the wire, with its sender.
    pub(crate) wire: Vec<(usize, Vec<u8>)>,
    pub(crate) keep_wire: bool,
    /// What each node's owner was told; a node named in `deaf` is not asked.
    pub(crate) told: Vec<VecDeque<Event>>,
    pub(crate) deaf: Vec<usize>,
    /// Datagrams over this link are lost.
    pub(crate) cut: bool,
    pub(crate) runs: Vec<(usize, usize)>,
    /// Until when each node's link is busy.
    busy_until_ns: Vec<u64>,
    flying: BTreeMap<(u64, u64), (usize, usize, Vec<u8>)>,
    generator: Generator,
    count: u64,
}

impl Sim {
    pub(crate) fn new(seed: u64, count: u8, limits: &NodeLimits, weather: Weather) -> Self {
        // What their first link carries, nodes know.
        let mut limits = limits.clone();
        limits.datagram_bytes_max = limits.datagram_bytes_max.min(weather.datagram_bytes);
        let nodes: Vec<Node> = (0..count)
            .map(|n| Node::new(config(n, count, seed, &limits), 0).unwrap())
            .collect();
        let mut bytes = [0xee; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        Self {
            now_ns: 0,
            ids: nodes.iter().map(Node::id).collect(),
            told: nodes.iter().map(|_| VecDeque::new()).collect(),
            nodes,
            weather,
            wire: Vec::new(),
            keep_wire: false,
            deaf: Vec::new(),
            cut: false,
            runs: Vec::new(),
            busy_until_ns: vec![0; usize::from(count)],
            flying: BTreeMap::new(),
            generator: Generator::new(&bytes, b"sim"),
            count: 0,
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

    /// One chance in a hundred, `percent` times.
    fn chance(&mut self, percent: u64) -> bool {
        percent > 0 && self.generator.below(100) < percent
    }

    /// Puts a datagram on the wire.
    pub(crate) fn fly(&mut self, from: usize, to: usize, mut bytes: Vec<u8>) {
        let is_too_big = bytes.len() > self.weather.datagram_bytes;
        if self.chance(self.weather.loss) || self.cut || is_too_big {
            return;
        }
        if !self.queue(from, bytes.len() as u64) {
            return;
        }
        if self.chance(self.weather.duplication) {
            self.land_later(from, to, bytes.clone());
        }
        if self.chance(self.weather.corruption) {
            let at = self.generator.below(bytes.len() as u64);
            let bit = self.generator.below(8);
            bytes[usize::try_from(at).unwrap()] ^= 1 << bit;
        }
        self.land_later(from, to, bytes);
    }

    /// Puts a datagram into the queue of its sender's link; `false` when that is full.
    fn queue(&mut self, from: usize, bytes: u64) -> bool {
        let Weather {
            rate, queue_bytes, ..
        } = self.weather;
        if rate == 0 {
            return true;
        }
        let from_ns = self.busy_until_ns[from].max(self.now_ns);
        if (from_ns - self.now_ns) * rate / SECOND > queue_bytes {
            return false;
        }
        self.busy_until_ns[from] = from_ns + bytes * SECOND / rate;
        true
    }

    fn land_later(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let mut jitter_ns = self.generator.below(self.weather.jitter_ns + 1);
        if self.chance(self.weather.reordering) {
            jitter_ns += 1 + self.generator.below(self.weather.late_ns);
        }
        self.count += 1;
        let left_ns = self.busy_until_ns[from].max(self.now_ns);
        let at = (left_ns + self.weather.latency_ns + jitter_ns, self.count);
        self.flying.insert(at, (from, to, bytes));
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
                let to = self.ids.iter().position(|&id| id == run.destination);
                self.runs.push((run.bytes, run.segment_bytes));
                for datagram in buf.chunks(run.segment_bytes) {
                    let header = Header::decode(datagram[..HEADER_BYTES].try_into().unwrap());
                    let payload_bytes = datagram.len() - HEADER_BYTES;
                    assert_eq!(
                        usize::from(header.payload_len),
                        payload_bytes,
                        "a false segment"
                    );
                    assert_eq!(header.destination, run.destination);
                    sent += 1;
                    if self.keep_wire {
                        self.wire.push((from, datagram.to_vec()));
                    }
                    if let Some(to) = to {
                        self.fly(from, to, datagram.to_vec());
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
                self.told[at].push_back(event);
            }
        }
    }

    /// Moves to the next moment at which something happens, up to `end_ns`; `false` when that
    /// is reached.
    pub(crate) fn step(&mut self, end_ns: u64) -> bool {
        self.transmit();
        let landing = self.flying.first_key_value().map(|(&(at, _), _)| at);
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
        while let Some(entry) = self.flying.first_entry().filter(|e| e.key().0 <= next_ns) {
            let (from, to, mut bytes) = entry.remove();
            let _ = self.nodes[to].handle(next_ns, source(from), &mut bytes);
        }
        for node in &mut self.nodes {
            if node.poll_timeout().is_some_and(|at| at <= next_ns) {
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
