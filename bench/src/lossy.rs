//! Two nodes over a simulated path: what a reliable stream carries in some seconds of its time. The path is 20 ms there
//! and back at 100 Mbit/s, with a queue of one product of both.

use std::net::{Ipv4Addr, SocketAddr};

use virga_ebpf::limits::UDP_PORT;
use virga_transport::{
    ChannelName, Event, Mode, Node, NodeLimits, StreamSpec,
    sim::{MS, Network, SECOND, Weather},
};

use crate::session::{config, public};

/// Nothing is lost or late.
pub const CALM: Weather = Weather {
    latency_ns: 10 * MS,
    datagram_bytes: 1_472,
    rate: 12_500_000,
    queue_bytes: 250_000,
    ..Weather::CALM
};
/// 1 % is lost, in each direction.
pub const LOSSY: Weather = Weather { loss: 1, ..CALM };
/// 5 % are overtaken, in each direction.
pub const OVERTAKING: Weather = Weather {
    reordering: 5,
    late_ns: 2 * MS,
    ..CALM
};

/// Simulated time that is measured, after [`WARM_UP_NS`].
pub const MEASURED_NS: u64 = 20 * SECOND;
/// Handshake, and the end of slow start.
pub const WARM_UP_NS: u64 = 3 * SECOND;
/// Bytes of a message.
const MESSAGE_BYTES: usize = 1_024;

struct Pair {
    now_ns: u64,
    nodes: [Node; 2],
    network: Network,
    buffer: Vec<u8>,
    taken_bytes: u64,
    stream: Option<virga_ebpf::header::StreamId>,
}

fn address(end: usize) -> SocketAddr {
    let last = if end == 0 { 1 } else { 2 };
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, last), UDP_PORT))
}

/// Bytes a second that arrive, in order. Panics where there is no session: nothing but the path is in between.
#[must_use]
pub fn goodput(weather: Weather, seed: u64) -> f64 {
    let node = |number, peer| {
        let config = config(number, vec![public(peer)], NodeLimits::default());
        Node::new(config, 0).expect("a configuration that the node accepts")
    };
    let mut pair = Pair {
        now_ns: 0,
        nodes: [node(1, 2), node(2, 1)],
        network: Network::new(seed, weather),
        buffer: Vec::new(),
        taken_bytes: 0,
        stream: None,
    };
    let receiver = pair.nodes[1].id();
    pair.nodes[0]
        .connect(0, receiver)
        .expect("the peer is configured");
    pair.run_until(WARM_UP_NS);
    let before = pair.taken_bytes;
    pair.run_until(WARM_UP_NS + MEASURED_NS);
    assert!(pair.stream.is_some(), "no session after {WARM_UP_NS} ns");
    rate(pair.taken_bytes - before)
}

/// Bytes over [`MEASURED_NS`], a second.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub fn rate(bytes: u64) -> f64 {
    bytes as f64 * 1e9 / MEASURED_NS as f64
}

impl Pair {
    fn run_until(&mut self, end_ns: u64) {
        loop {
            self.offer();
            self.transmit();
            let due = self.nodes.iter().filter_map(Node::poll_timeout);
            let next_ns = due.chain(self.network.next_ns()).min().unwrap_or(u64::MAX);
            if next_ns > end_ns {
                self.now_ns = end_ns;
                return;
            }
            self.now_ns = self.now_ns.max(next_ns);
            while let Some(mut arrival) = self.network.receive(self.now_ns) {
                let source = address(arrival.from);
                // The node counts what it drops.
                let _counted =
                    self.nodes[arrival.to].handle(self.now_ns, source, &mut arrival.bytes);
            }
            for node in &mut self.nodes {
                if node.poll_timeout().is_some_and(|due| due <= self.now_ns) {
                    node.handle_timeout(self.now_ns);
                }
            }
            self.listen();
        }
    }

    /// Keeps the stream's queue full.
    fn offer(&mut self) {
        let Some(stream) = self.stream else {
            return;
        };
        let receiver = self.nodes[1].id();
        let message = [0x5a; MESSAGE_BYTES];
        while self.nodes[0]
            .send(self.now_ns, receiver, stream, &message)
            .is_ok()
        {}
    }

    fn transmit(&mut self) {
        for (from, node) in self.nodes.iter_mut().enumerate() {
            self.buffer.clear();
            while let Some(run) = node.poll_transmit(self.now_ns, &mut self.buffer) {
                for datagram in self.buffer.chunks(run.segment_bytes) {
                    self.network
                        .send(self.now_ns, from, 1 - from, datagram.to_vec());
                }
                self.buffer.clear();
            }
        }
    }

    fn listen(&mut self) {
        let receiver = self.nodes[1].id();
        while let Some(event) = self.nodes[0].poll() {
            if matches!(event, Event::Connected { .. }) {
                let spec = StreamSpec {
                    name: ChannelName::parse("bench").expect("a channel's name"),
                    salt: 0,
                    priority: 4,
                    mode: Mode::Ordered,
                };
                self.stream = self.nodes[0].open_stream(self.now_ns, receiver, &spec).ok();
            }
        }
        while let Some(event) = self.nodes[1].poll() {
            if let Event::Message { event, .. } = event {
                self.taken_bytes += event.len() as u64;
            }
        }
    }
}
