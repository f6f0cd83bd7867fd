//! Small meshes of workers on a network that is not there. All that a worker does is what it does on a thread, over its
//! driver's interface: what is not real is the wire, and the clock. Everything depends on the seed alone.

use super::*;
use crate::{
    CloseReason, Mode,
    io::simulated::{Interface, Wire},
    sim::{MS, Weather},
    tests::sim,
    worker::stepped::{Stepped, attach_all},
};
use std::collections::BTreeMap;
use virga_ebpf::{hash, header::StreamId};

/// What a turn costs its worker.
const TURN_NS: u64 = 2_000;
/// Far above what any life takes: a worker that finds no rest is a fault.
const TURNS_MAX: u64 = 4_000_000;
/// How often there is a look whether something is done.
const LOOK_NS: u64 = 10 * MS;
const CHANNEL: &str = "log";

/// Messages tell which they are and how long; the rest follows from it.
pub(super) fn message(number: usize, bytes: usize) -> Vec<u8> {
    let head = [number, bytes].map(|n| u32::try_from(n).unwrap().to_be_bytes());
    let rest = (0..bytes).map(|at| (at.wrapping_mul(31) ^ number).to_le_bytes()[0]);
    head.as_flattened().iter().copied().chain(rest).collect()
}

/// Which message this is; it is whole.
fn number(event: &[u8]) -> usize {
    let number = |at: usize| u32::from_be_bytes(*event[at..].first_chunk().unwrap()) as usize;
    let (number, bytes) = (number(0), number(4));
    assert!(event == message(number, bytes), "message {number} is whole");
    number
}

/// What one node says to another in one mode.
pub(super) struct Flow {
    peer: NodeId,
    mode: Mode,
    stream: Option<StreamId>,
    /// Bytes of the messages that it was asked for; of those, `sent` were taken.
    asked: Vec<usize>,
    sent: usize,
}

/// A stream as its receiver knows it: numbers of the messages that came.
pub(super) struct Came {
    pub(super) mode: Mode,
    pub(super) numbers: Vec<usize>,
}

/// Says what it is asked to, as soon as there is room for it, and keeps what it is told.
pub(super) struct Talker {
    share: Share,
    connects: Vec<NodeId>,
    pub(super) flows: Vec<Flow>,
    pub(super) came: BTreeMap<(NodeId, StreamId), Came>,
    pub(super) closed: Vec<CloseReason>,
}

/// A message of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Say {
    peer: NodeId,
    mode: Mode,
    bytes: usize,
}

impl Talker {
    /// Sends what there is room for.
    fn talk(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        let is_connected = node
            .sessions()
            .any(|s| s.peer == peer && s.state == crate::SessionState::Established);
        for flow in self.flows.iter_mut().filter(|flow| flow.peer == peer) {
            if !is_connected {
                continue;
            }
            let stream = *flow.stream.get_or_insert_with(|| {
                let spec = sim::spec(CHANNEL, flow.mode);
                node.open_stream(now_ns, peer, &spec).unwrap()
            });
            while let Some(&bytes) = flow.asked.get(flow.sent) {
                match node.send(now_ns, peer, stream, &message(flow.sent, bytes)) {
                    Ok(()) => flow.sent += 1,
                    Err(crate::SendError::Full) => break,
                    Err(error) => panic!("to {peer}: {error}"),
                }
            }
        }
    }
}

impl Service for Talker {
    type Command = Say;

    fn start(&mut self, now_ns: u64, node: &mut Node) {
        for &peer in &self.connects {
            if self.share.owns(peer) {
                node.connect(now_ns, peer).unwrap();
            }
        }
    }

    fn on_event(&mut self, now_ns: u64, node: &mut Node, event: Event) {
        match event {
            Event::Connected { peer, .. } | Event::Writable { peer } => {
                self.talk(now_ns, node, peer);
            }
            Event::StreamOpened {
                peer, stream, mode, ..
            } => {
                let numbers = Vec::new();
                let before = self.came.insert((peer, stream), Came { mode, numbers });
                assert!(before.is_none(), "a stream is opened once");
            }
            Event::Message {
                peer,
                stream,
                event,
            } => {
                let came = self.came.get_mut(&(peer, stream)).unwrap();
                came.numbers.push(number(&event));
            }
            Event::Closed { reason, .. } => self.closed.push(reason),
            _ => {}
        }
    }

    fn on_command(&mut self, now_ns: u64, node: &mut Node, say: Say) {
        let Say { peer, mode, bytes } = say;
        let mut flows = self.flows.iter();
        let place = flows.position(|flow| (flow.peer, flow.mode) == (peer, mode));
        let place = place.unwrap_or_else(|| {
            self.flows.push(Flow {
                peer,
                mode,
                stream: None,
                asked: Vec::new(),
                sent: 0,
            });
            self.flows.len() - 1
        });
        self.flows[place].asked.push(bytes);
        self.talk(now_ns, node, peer);
    }

    fn poll_timeout(&self) -> Option<u64> {
        None
    }
    fn handle_timeout(&mut self, _now_ns: u64, _node: &mut Node) {}
    fn stop(&mut self, _now_ns: u64, _node: &mut Node) {}
}

/// What a mesh is like.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) weather: Weather,
    /// Of each node: what its socket is like, and how many workers it has.
    pub(super) nodes: Vec<(Interface, usize)>,
    /// Who is no neighbour in the line is reached through those between.
    pub(super) is_line: bool,
    /// Nodes know what their links carry; else the kernel refuses what is larger.
    pub(super) knows_links: bool,
    pub(super) limits: NodeLimits,
}

impl Shape {
    /// Nodes with a worker each on a calm network that carries what Ethernet does.
    pub(super) fn calm(nodes: usize) -> Self {
        Self {
            weather: Weather {
                datagram_bytes: 1_472,
                ..Weather::CALM
            },
            nodes: vec![(Interface::FAST, 1); nodes],
            is_line: false,
            knows_links: true,
            limits: NodeLimits::default(),
        }
    }

    /// The node that `from` sends to what is for `to`.
    fn next(&self, from: usize, to: usize) -> usize {
        match self.is_line {
            true if to > from => from + 1,
            true => from - 1,
            false => to,
        }
    }

    fn image(&self, here: usize, ids: &[(NodeId, OriginHash)]) -> Image {
        let subnet = Subnet(1 << 24);
        let mut image = Image {
            node_id: ids[here].0,
            subnet,
            port: 4783,
            ..Image::default()
        };
        let channel = hash::channel_hash(0, CHANNEL);
        for &(id, origin) in ids {
            image.pairs.insert(Pair::new(origin, ChannelHash(0)));
            image.pairs.insert(Pair::new(origin, channel));
            image.subnets.insert(id, subnet);
        }
        for (there, &(id, _)) in ids.iter().enumerate().filter(|&(there, _)| there != here) {
            let next = self.next(here, there);
            let at = sim::source(next);
            let place = Place::new(0, at.ip().into());
            image.neighbours.insert(place, Link::default());
            if next == there {
                image.adjacent.insert(id, at);
            }
            let datagram_bytes = self.nodes[here].0.datagram_bytes;
            let primary = image.add_next_hop(NextHop {
                target: at.ip().into(),
                port: at.port(),
                mtu: match self.knows_links {
                    true => u32::try_from(datagram_bytes + 28).unwrap(),
                    false => 65_535,
                },
                flags: NextHop::ALIVE,
                ..NextHop::default()
            });
            let backup = None;
            image.routes.insert(id, Via { primary, backup });
        }
        image
    }
}

/// A worker, and until when it has no processor.
struct Body {
    node: usize,
    worker: Stepped<Talker>,
    rests_until_ns: u64,
}

/// A mesh.
pub(super) struct World {
    pub(super) wire: Wire,
    ids: Vec<NodeId>,
    bodies: Vec<Body>,
    /// How many messages each was asked to say to each.
    said: BTreeMap<(usize, usize, &'static str), (Mode, usize)>,
    pub(super) turns: u64,
}

impl World {
    /// A mesh in which each has, or gets, a session with each.
    pub(super) fn new(seed: u64, shape: &Shape) -> Self {
        let wire = Wire::new(seed, shape.weather);
        let count = u8::try_from(shape.nodes.len()).unwrap();
        let config = |number| sim::config(number, count, seed, &shape.limits);
        let ids: Vec<_> = (0..count)
            .map(|number| Node::new(config(number), 1).unwrap())
            .map(|node| (node.id(), node.origin()))
            .collect();
        let mut bodies = Vec::new();
        for number in 0..count {
            let node = usize::from(number);
            let (interface, workers) = shape.nodes[node];
            let mut entropy = seed;
            let begin = |share| {
                let mut forwarder = Forwarder::new();
                let draw = || {
                    entropy = entropy.wrapping_add(1);
                    entropy
                };
                forwarder.apply(&shape.image(node, &ids), draw).unwrap();
                let mut node_config = config(number);
                node_config.share = share;
                Beginning {
                    node: node_config,
                    forwarder,
                    service: Talker {
                        share,
                        connects: ids[node + 1..].iter().map(|(id, _)| *id).collect(),
                        flows: Vec::new(),
                        came: BTreeMap::new(),
                        closed: Vec::new(),
                    },
                }
            };
            let place = (sim::source(node), interface);
            let workers = attach_all(&wire, place, workers, begin).unwrap();
            bodies.extend(workers.into_iter().map(|worker| Body {
                node,
                worker,
                rests_until_ns: 0,
            }));
        }
        Self {
            wire,
            ids: ids.into_iter().map(|(id, _)| id).collect(),
            bodies,
            said: BTreeMap::new(),
            turns: 0,
        }
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.wire.clock().now_ns()
    }

    /// Lets so much time pass: each worker has its turn when its wait ends.
    pub(super) fn run(&mut self, for_ns: u64) {
        let end_ns = self.now_ns() + for_ns;
        loop {
            let now_ns = self.now_ns();
            let due = |(n, body): (usize, &Body)| {
                let due_ns = body.worker.due_ns()?;
                Some((due_ns.max(body.rests_until_ns).max(now_ns), n))
            };
            let due = self.bodies.iter().enumerate().filter_map(due).min();
            let landing_ns = self.wire.next_ns().map(|at_ns| at_ns.max(now_ns));
            let due_ns = due.map(|(due_ns, _)| due_ns);
            let next_ns = due_ns.into_iter().chain(landing_ns).min();
            let Some(at_ns) = next_ns.filter(|&at_ns| at_ns <= end_ns) else {
                return self.wire.advance(end_ns);
            };
            self.wire.advance(at_ns);
            if let Some((_, n)) = due.filter(|&(due_ns, _)| due_ns == at_ns) {
                let body = &mut self.bodies[n];
                body.worker.turn().unwrap();
                body.rests_until_ns = at_ns + TURN_NS;
                self.turns += 1;
                assert!(self.turns < TURNS_MAX, "a worker finds no rest");
            }
        }
    }

    /// Runs until `done`, at most `for_ns`; whether it is.
    #[must_use]
    pub(super) fn run_until(&mut self, for_ns: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end_ns = self.now_ns() + for_ns;
        while !done(self) {
            if self.now_ns() >= end_ns {
                return false;
            }
            self.run(LOOK_NS);
        }
        true
    }

    /// The worker of one node that has the sessions with another.
    pub(super) fn at(&self, node: usize, peer: usize) -> &Parts<Talker> {
        let peer = self.ids[peer];
        let mut own = self.parts().filter(|(n, _)| *n == node);
        let found = own.find(|(_, parts)| parts.share().owns(peer));
        found.unwrap().1
    }

    /// All workers, each with its node.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, &Parts<Talker>)> {
        self.bodies
            .iter()
            .map(|body| (body.node, body.worker.parts()))
    }

    /// Every two nodes, both ways.
    pub(super) fn pairs(&self) -> Vec<(usize, usize)> {
        let all = 0..self.ids.len();
        let pairs = all
            .clone()
            .flat_map(|from| all.clone().map(move |to| (from, to)));
        pairs.filter(|(from, to)| from != to).collect()
    }

    pub(super) fn connect(&mut self, within_ns: u64) {
        let pairs = self.pairs();
        let is_connected = |world: &Self, (from, to): (usize, usize)| {
            let mut sessions = world.at(from, to).node.sessions();
            let state = crate::SessionState::Established;
            sessions.any(|s| s.peer == world.ids[to] && s.state == state)
        };
        let all = |world: &Self| pairs.iter().all(|&pair| is_connected(world, pair));
        assert!(self.run_until(within_ns, all), "not all are connected");
    }

    /// Has a node say something, by its worker's queue of commands.
    pub(super) fn say(&mut self, (from, to): (usize, usize), mode: Mode, bytes: usize) {
        let peer = self.ids[to];
        let mut own = self.bodies.iter().filter(|body| body.node == from);
        let body = own.find(|body| body.worker.parts().share().owns(peer));
        let commander = body.unwrap().worker.commander().clone();
        while let Err(refused) = commander.command(Say { peer, mode, bytes }) {
            assert!(matches!(refused, Refused::Full(_)), "{refused:?}");
            self.run(LOOK_NS);
        }
        let said = self.said.entry((from, to, mode.name()));
        said.or_insert((mode, 0)).1 += 1;
    }

    /// A node's workers have no processor for so long.
    pub(super) fn put_to_sleep(&mut self, node: usize, for_ns: u64) {
        let until_ns = self.now_ns() + for_ns;
        for body in self.bodies.iter_mut().filter(|body| body.node == node) {
            body.rests_until_ns = body.rests_until_ns.max(until_ns);
        }
    }

    /// Numbers of the messages that came from one node to another in one mode.
    pub(super) fn came(&self, (from, to): (usize, usize), mode: Mode) -> &[usize] {
        let mut streams = self.at(to, from).service.came.iter();
        let found = streams.find(|(key, came)| key.0 == self.ids[from] && came.mode == mode);
        found.map_or(&[], |(_, came)| &came.numbers)
    }

    /// Messages that one node was asked to say to another, by mode.
    fn asked(&self, (from, to): (usize, usize)) -> impl Iterator<Item = (Mode, usize)> {
        let own = self
            .said
            .iter()
            .filter(move |((f, t, _), _)| (*f, *t) == (from, to));
        own.map(|(_, &said)| said)
    }

    /// Whether all that does not get lost has come.
    pub(super) fn is_told(&self) -> bool {
        self.pairs().into_iter().all(|pair| {
            let mut asked = self.asked(pair).filter(|(mode, _)| mode.is_reliable());
            asked.all(|(mode, messages)| self.came(pair, mode).len() >= messages)
        })
    }

    /// What each mode promises of what came.
    pub(super) fn check(&self) {
        for pair in self.pairs() {
            for (mode, messages) in self.asked(pair) {
                let came = self.came(pair, mode);
                let mut sorted = came.to_vec();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), came.len(), "none comes twice");
                assert!(!mode.is_ordered() || came.is_sorted(), "in order");
                assert!(came.iter().all(|&number| number < messages));
                if mode.is_reliable() {
                    assert_eq!(came.len(), messages, "{mode:?} from {pair:?}");
                }
            }
        }
        for (node, parts) in self.parts() {
            assert_eq!(parts.service.closed, [], "node {node}");
        }
    }

    /// Whether nothing is on its way, nothing is to be told, and no credit is lost.
    pub(super) fn is_settled(&self) -> bool {
        self.pairs().into_iter().all(|(near, far)| {
            let [here, there] = [self.at(near, far), self.at(far, near)];
            let (used, _, _) = here.node.credit(self.ids[far]);
            let (_, highest, read) = there.node.credit(self.ids[near]);
            here.node.kept(self.ids[far]) == (0, 0) && used == highest && highest == read
        })
    }

    /// Ends all workers, as a daemon does.
    pub(super) fn stop(&mut self, within_ns: u64) {
        let asked = self.bodies.iter().all(|body| body.worker.stop());
        assert!(asked, "there is room for the word");
        let all = |world: &Self| world.bodies.iter().all(|body| body.worker.has_stopped());
        assert!(self.run_until(within_ns, all), "not all have stopped");
    }
}
