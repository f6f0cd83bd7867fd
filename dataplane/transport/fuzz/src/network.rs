//! Nodes that have sessions with each other and a network between them that the fuzzer rules, and how an input is read.

use std::net::{Ipv4Addr, SocketAddr};

use arbitrary::{Arbitrary, Unstructured};
use ed25519_dalek::SigningKey;
use virga_ebpf::{
    header::{NodeId, Subnet},
    limits::UDP_PORT,
};
use x25519_dalek::{PublicKey, StaticSecret};

use super::transport::{
    DropReason, Event, Handled, HandshakePolicy, Node, NodeConfig, NodeLimits, PeerConfig, Share,
};

/// What an input says, as libFuzzer's own macro reads it.
pub(crate) fn read<'a, T: Arbitrary<'a>>(input: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(input)).ok()
}

/// A millisecond.
pub const MS: u64 = 1_000_000;

/// Exchanges after which a quiet network has nothing left to carry.
const EXCHANGES_MAX: u32 = 20_000;

/// Nodes in full mesh; the time that they are told.
pub struct Network {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// What each told its owner, in order.
    pub events: Vec<Vec<Event>>,
    /// Nanoseconds since the start.
    pub now_ns: u64,
    buffer: Vec<u8>,
}

/// Where node `index` seems to be.
#[must_use]
pub fn address(index: usize) -> SocketAddr {
    let last = u8::try_from(index + 1).unwrap_or(u8::MAX);
    SocketAddr::new(Ipv4Addr::new(192, 0, 2, last).into(), UDP_PORT)
}

fn config(own: u8, count: u8, limits: &NodeLimits, handshake: HandshakePolicy) -> NodeConfig {
    let node_key = |n: u8| [n + 1; 32];
    let entity_key = |n: u8| [n + 101; 32];
    let others = (0..count).filter(|&n| n != own);
    NodeConfig {
        network_id: "fuzz".to_owned(),
        psk: [9; 32],
        psk_generation: 1,
        node_key: node_key(own),
        entity_key: entity_key(own),
        subnet: Subnet(0),
        peers: others
            .map(|n| PeerConfig {
                node_key: PublicKey::from(&StaticSecret::from(node_key(n)))
                    .to_bytes()
                    .into(),
                entity_key: SigningKey::from_bytes(&entity_key(n))
                    .verifying_key()
                    .to_bytes(),
                handshake: None,
            })
            .collect(),
        limits: limits.clone(),
        share: Share::WHOLE,
        handshake,
        started_unix_ns: 1,
        // The same in every run: an input replays exactly.
        seed: [own; 32],
    }
}

impl Network {
    /// `count` nodes; node 0 has a proven session with each of the others.
    #[must_use]
    pub fn connected(count: u8) -> Self {
        Self::with_limits(count, &NodeLimits::default())
    }

    /// The same with limits of one's own.
    #[must_use]
    pub fn with_limits(count: u8, limits: &NodeLimits) -> Self {
        let policies = vec![HandshakePolicy::default(); count.into()];
        let mut network = Self::apart(&policies, limits);
        for peer in 1..usize::from(count) {
            let peer = network.id(peer);
            network.nodes[0]
                .connect(0, peer)
                .expect("the peer is configured");
        }
        network.settle();
        for (index, events) in network.events.iter_mut().enumerate() {
            let connected = events
                .iter()
                .filter(|e| matches!(e, Event::Connected { .. }))
                .count();
            assert_eq!(
                connected,
                if index == 0 {
                    usize::from(count) - 1
                } else {
                    1
                }
            );
            events.clear();
        }
        network
    }

    /// Nodes that have no session yet, one with each of these policies.
    #[must_use]
    pub fn apart(policies: &[HandshakePolicy], limits: &NodeLimits) -> Self {
        let count = u8::try_from(policies.len()).expect("few nodes");
        let nodes = (0..count).zip(policies).map(|(n, &policy)| {
            Node::new(config(n, count, limits, policy), 0).expect("a valid configuration")
        });
        Self {
            nodes: nodes.collect(),
            events: vec![Vec::new(); count.into()],
            now_ns: 0,
            buffer: Vec::new(),
        }
    }

    /// A node's name.
    #[must_use]
    pub fn id(&self, index: usize) -> NodeId {
        self.nodes[index].id()
    }

    /// Which node has that name.
    #[must_use]
    pub fn index(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id() == id)
    }

    /// What node `from` wants to send now: the index of the receiver, and the datagrams.
    pub fn take(&mut self, from: usize) -> Option<(usize, Vec<Vec<u8>>)> {
        self.buffer.clear();
        let run = self.nodes[from].poll_transmit(self.now_ns, &mut self.buffer)?;
        let to = self
            .index(run.destination)
            .expect("nodes send to known nodes");
        Some((
            to,
            self.buffer
                .chunks(run.segment_bytes)
                .map(<[u8]>::to_vec)
                .collect(),
        ))
    }

    /// Hands a datagram over, and reads what the node tells; one that is dropped is counted.
    pub fn give(&mut self, from: usize, to: usize, datagram: &mut [u8]) {
        let counters = |node: &Node| -> Vec<u64> {
            let each = DropReason::ALL.iter();
            each.map(|&reason| node.counters().dropped(reason))
                .collect()
        };
        let node = &mut self.nodes[to];
        let before = counters(node);
        let handled = node.handle(self.now_ns, address(from), datagram);
        let after = counters(node);
        for ((reason, before), after) in DropReason::ALL.iter().zip(before).zip(after) {
            // What an accepted packet carries may be dropped for a reason of its own.
            let is_counted = match handled {
                Handled::Dropped(of) if of == *reason => after > before,
                _ => after >= before,
            };
            assert!(
                is_counted,
                "{handled:?}: {} {before} {after}",
                reason.name()
            );
        }
        self.read(to);
    }

    /// Reads what a node tells.
    pub fn read(&mut self, index: usize) {
        while let Some(event) = self.nodes[index].poll() {
            self.events[index].push(event);
        }
    }

    /// Lets time pass; timers go off in order.
    pub fn advance(&mut self, by_ns: u64) {
        self.now_ns += by_ns;
        for index in 0..self.nodes.len() {
            if self.nodes[index]
                .poll_timeout()
                .is_some_and(|due| due <= self.now_ns)
            {
                self.nodes[index].handle_timeout(self.now_ns);
            }
            self.read(index);
        }
    }

    /// One exchange without loss; whether anything moved.
    pub fn exchange(&mut self) -> bool {
        let mut moved = false;
        for from in 0..self.nodes.len() {
            while let Some((to, datagrams)) = self.take(from) {
                moved = true;
                for mut datagram in datagrams {
                    self.give(from, to, &mut datagram);
                }
            }
        }
        moved
    }

    /// Exchanges, a millisecond apart, until nothing has moved for a while: longer than any
    /// acknowledgement or pace keeps a packet waiting.
    pub fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..EXCHANGES_MAX {
            quiet = if self.exchange() { 0 } else { quiet + 1 };
            if quiet > 30 {
                return;
            }
            self.advance(MS);
        }
        panic!("the nodes never come to rest");
    }
}
