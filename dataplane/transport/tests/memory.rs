//! What a session costs in memory, counted by the allocator: idle, after use, and over many lives.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use ed25519_dalek::SigningKey;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::SocketAddr,
    sync::atomic::{AtomicIsize, Ordering::Relaxed},
};
use virga_ebpf::header::{NodeId, StreamId, Subnet};
use virga_transport::{
    ChannelName, Event, HandshakePolicy, Mode, Node, NodeConfig, NodeLimits, PeerConfig, Share,
    StreamSpec,
};
use x25519_dalek::{PublicKey, StaticSecret};

/// Bytes that are allocated now.
static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

struct Counting;

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: every call goes to the system's allocator as it is; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps `GlobalAlloc`'s rules for this call: a layout of some size.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(signed(layout.size()), Relaxed);
        // SAFETY: the caller keeps this function's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps `GlobalAlloc`'s rules: the memory came from here, with this layout.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(signed(layout.size()), Relaxed);
        // SAFETY: `memory` came from `alloc` above, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SESSIONS: usize = 200;
const SECOND: u64 = 1_000_000_000;
/// What a session may hold while nothing happens on it.
const IDLE_BYTES_MAX: isize = 8 * 1024;

fn key(number: usize, of: u8) -> [u8; 32] {
    let mut key = [of; 32];
    key[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
    key
}

fn peer(number: usize) -> PeerConfig {
    PeerConfig {
        node_key: PublicKey::from(&StaticSecret::from(key(number, 1)))
            .to_bytes()
            .into(),
        entity_key: SigningKey::from_bytes(&key(number, 2))
            .verifying_key()
            .to_bytes(),
        handshake: None,
    }
}

fn node(number: usize, peers: impl Iterator<Item = usize>) -> Node {
    let config = NodeConfig {
        network_id: "memory".into(),
        psk: [9; 32],
        psk_generation: 1,
        node_key: key(number, 1),
        entity_key: key(number, 2),
        subnet: Subnet(0),
        peers: peers.map(peer).collect(),
        share: Share::WHOLE,
        handshake: HandshakePolicy::default(),
        limits: NodeLimits::default(),
        started_unix_ns: 1,
        seed: key(number, 3),
    };
    Node::new(config, 0).unwrap()
}

/// A hub with many spokes, all in one place; what the hub allocates is counted apart.
struct Wheel {
    now_ns: u64,
    hub: Node,
    hub_bytes: isize,
    spokes: Vec<Node>,
    ids: Vec<NodeId>,
    messages: usize,
    buffer: Vec<u8>,
}

impl Wheel {
    fn new() -> Self {
        let spokes: Vec<Node> = (1..=SESSIONS)
            .map(|number| node(number, std::iter::once(0)))
            .collect();
        Self {
            now_ns: 0,
            hub: node(0, 1..=SESSIONS),
            hub_bytes: 0,
            ids: spokes.iter().map(Node::id).collect(),
            spokes,
            messages: 0,
            buffer: Vec::with_capacity(128 * 1024),
        }
    }

    /// Lets the hub do something; what it allocates meanwhile and keeps is its own.
    fn hub<T>(&mut self, act: impl FnOnce(&mut Node, &mut Vec<u8>, u64) -> T) -> T {
        let before = ALLOCATED.load(Relaxed);
        let done = act(&mut self.hub, &mut self.buffer, self.now_ns);
        self.hub_bytes += ALLOCATED.load(Relaxed) - before;
        done
    }

    /// Carries what there is to say until nobody has more; gives how many datagrams that was.
    fn carry(&mut self) -> usize {
        let source = |n: usize| SocketAddr::from(([10, 0, 0, 1], u16::try_from(n).unwrap()));
        let mut carried = 0;
        loop {
            self.buffer.clear();
            let Some(run) = self.hub(|hub, buffer, now_ns| hub.poll_transmit(now_ns, buffer))
            else {
                break;
            };
            let to = self
                .ids
                .iter()
                .position(|&id| id == run.destination)
                .unwrap();
            for datagram in self.buffer.chunks_mut(run.segment_bytes) {
                let _ = self.spokes[to].handle(self.now_ns, source(9), datagram);
                carried += 1;
            }
        }
        for from in 0..self.spokes.len() {
            let mut buffer = Vec::new();
            while let Some(run) = self.spokes[from].poll_transmit(self.now_ns, &mut buffer) {
                for datagram in buffer.chunks_mut(run.segment_bytes) {
                    self.hub(|hub, _, now_ns| {
                        let _ = hub.handle(now_ns, source(10 + from), datagram);
                    });
                    carried += 1;
                }
                buffer.clear();
            }
            while let Some(event) = self.spokes[from].poll() {
                self.messages += usize::from(matches!(event, Event::Message { .. }));
            }
        }
        self.hub(|hub, _, _| while hub.poll().is_some() {});
        carried
    }

    /// Lets time pass, all timers served.
    fn run(&mut self, for_ns: u64) {
        let end_ns = self.now_ns + for_ns;
        loop {
            if self.carry() > 0 {
                self.now_ns += 1_000;
                continue;
            }
            let timers = self.spokes.iter().chain([&self.hub]);
            let due_ns = timers.filter_map(Node::poll_timeout).min();
            let due_ns = due_ns.unwrap_or(u64::MAX).max(self.now_ns);
            if due_ns > end_ns {
                self.now_ns = end_ns;
                return;
            }
            self.now_ns = due_ns;
            self.hub(|hub, _, now_ns| {
                if hub.poll_timeout().is_some_and(|at| at <= now_ns) {
                    hub.handle_timeout(now_ns);
                }
            });
            for spoke in &mut self.spokes {
                if spoke.poll_timeout().is_some_and(|at| at <= due_ns) {
                    spoke.handle_timeout(due_ns);
                }
            }
        }
    }

    fn connect(&mut self) {
        let hub = self.hub.id();
        for spoke in &mut self.spokes {
            spoke.connect(self.now_ns, hub).unwrap();
        }
        self.run(20 * SECOND);
        assert_eq!(self.hub.sessions().count(), SESSIONS);
    }

    /// A stream to each spoke, with messages.
    fn talk(&mut self) {
        let spec = StreamSpec {
            name: ChannelName::parse("memory").unwrap(),
            salt: 0,
            priority: 4,
            mode: Mode::Ordered,
        };
        self.messages = 0;
        for id in self.ids.clone() {
            let stream: StreamId = self.hub(|hub, _, now_ns| {
                let stream = hub.open_stream(now_ns, id, &spec).unwrap();
                for _ in 0..20 {
                    hub.send(now_ns, id, stream, &[7; 10_000]).unwrap();
                }
                stream
            });
            self.hub(|hub, _, now_ns| hub.finish_stream(now_ns, id, stream).unwrap());
        }
        self.run(5 * SECOND);
        assert_eq!(self.messages, 20 * SESSIONS);
    }

    fn close(&mut self) {
        for id in self.ids.clone() {
            self.hub(|hub, _, now_ns| hub.close(now_ns, id));
        }
        let hub = self.hub.id();
        for spoke in &mut self.spokes {
            spoke.close(self.now_ns, hub);
        }
        self.run(10 * SECOND);
        assert_eq!(self.hub.sessions().count(), 0);
    }
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn idle_sessions_are_small_and_thousands_of_them_leave_nothing() {
    let mut wheel = Wheel::new();
    wheel.connect();
    wheel.run(60 * SECOND);
    let sessions = signed(SESSIONS);
    let fresh = wheel.hub_bytes / sessions;
    wheel.talk();
    wheel.run(60 * SECOND);
    let used = wheel.hub_bytes / sessions;
    wheel.close();
    let empty = wheel.hub_bytes;
    println!("a session: {fresh} bytes idle, {used} after use; {empty} left by {SESSIONS}");
    assert!(fresh > 512, "{fresh} bytes: nothing was counted");
    assert!(fresh < IDLE_BYTES_MAX, "{fresh} bytes idle");
    assert!(used < IDLE_BYTES_MAX, "{used} bytes idle, after use");
    for round in 1..=10 {
        wheel.connect();
        wheel.talk();
        wheel.close();
        let grown = wheel.hub_bytes - empty;
        assert!(
            grown < 64 * 1024,
            "{grown} bytes more after {} sessions",
            (round + 1) * SESSIONS
        );
    }
}
