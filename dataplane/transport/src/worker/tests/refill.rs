//! Who fills a queue, and again whenever there is room, is told of the room at once.

use super::*;
use crate::tests::sim;
use std::time::Duration;

/// How often the queue is filled.
const FILLS: u64 = 40;

/// Fills an unreliable stream, and again when told that there is room.
struct Filler {
    peer: NodeId,
    stream: Option<virga_ebpf::header::StreamId>,
    fills: u64,
    done: mpsc::Sender<()>,
}

impl Filler {
    fn fill(&mut self, now_ns: u64, node: &mut Node) {
        let Some(stream) = self.stream else {
            return;
        };
        while node.send(now_ns, self.peer, stream, b"event").is_ok() {}
        self.fills += 1;
        if self.fills == FILLS {
            self.done.send(()).unwrap();
        }
    }
}

impl Service for Filler {
    type Command = ();
    fn start(&mut self, now_ns: u64, node: &mut Node) {
        node.connect(now_ns, self.peer).unwrap();
    }
    fn on_event(&mut self, now_ns: u64, node: &mut Node, event: Event) {
        match event {
            Event::Connected { .. } => {
                let spec = sim::spec("fill", crate::Mode::Unreliable);
                self.stream = node.open_stream(now_ns, self.peer, &spec).ok();
                self.fill(now_ns, node);
            }
            Event::Writable { .. } => self.fill(now_ns, node),
            _ => {}
        }
    }
    fn on_command(&mut self, _now_ns: u64, _node: &mut Node, (): ()) {}
    fn poll_timeout(&self) -> Option<u64> {
        None
    }
    fn handle_timeout(&mut self, _now_ns: u64, _node: &mut Node) {}
    fn stop(&mut self, _now_ns: u64, _node: &mut Node) {}
}

/// A port of this machine that nobody listens on.
pub(super) fn free() -> SocketAddr {
    let any = "127.0.0.1:0".parse().unwrap();
    Socket::bind(any).unwrap().address()
}

/// Lets both entities send, and routes to `there`.
pub(super) fn way(here: &Node, there: &Node, via: SocketAddr) -> Forwarder {
    let mut image = Image {
        node_id: here.id(),
        subnet: Subnet(1 << 24),
        port: 4783,
        ..Image::default()
    };
    let from = Place::new(0, via.ip().into());
    image.neighbours.insert(from, Link::default());
    let channel = virga_ebpf::hash::channel_hash(0, "fill");
    for origin in [here.origin(), there.origin()] {
        image.pairs.insert(Pair::new(origin, ChannelHash(0)));
        image.pairs.insert(Pair::new(origin, channel));
    }
    let primary = image.add_next_hop(NextHop {
        target: via.ip().into(),
        port: via.port(),
        mtu: 65_535,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    });
    let backup = None;
    image.routes.insert(there.id(), Via { primary, backup });
    let mut forwarder = Forwarder::new();
    forwarder.apply(&image, || 7).unwrap();
    forwarder
}

#[test]
fn room_is_told_of_when_it_is_made_and_not_with_the_next_timer() {
    let limits = NodeLimits::default();
    let config = |number| sim::config(number, 2, 1, &limits);
    let [here, there] = [0, 1].map(|number| Node::new(config(number), 0).unwrap());
    let listen = [free(), free()];
    let worker = |number: usize| WorkerConfig {
        listen: listen[number],
        core: None,
        driver: DriverConfig::default(),
    };
    let (done, filled) = mpsc::channel();
    let filler = Filler {
        peer: there.id(),
        stream: None,
        fills: 0,
        done,
    };
    let back = way(&there, &here, listen[0]);
    let receiver = Worker::spawn(&worker(1), config(1), back, Probe::default(), |_| {}).unwrap();
    let forth = way(&here, &there, listen[1]);
    let sender = Worker::spawn(&worker(0), config(0), forth, filler, |_| {}).unwrap();
    // The next timer is the session's keepalive, 10 s away: one fill a timer would take minutes.
    let told = filled.recv_timeout(Duration::from_secs(60));
    assert_eq!(told, Ok(()), "the queue was not filled {FILLS} times");
    sender.stop();
    receiver.stop();
}
