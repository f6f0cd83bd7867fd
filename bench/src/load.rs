//! A worker over a real socket, with an application on its thread: one that offers events as fast as they are
//! taken, one that takes them, one that asks and waits for the answer, one that answers.

use std::{
    io,
    net::SocketAddr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use virga_ebpf::{
    hash,
    header::{ChannelHash, NodeId, OriginHash, StreamId},
    image::{Image, Link, Place, Via},
    tables::{NextHop, Pair},
};
use virga_transport::{
    ChannelName, Event, Mode, Node, NodeConfig, NodeLimits, SendError, Share, StreamSpec,
    forward::Forwarder,
    io::{driver::DriverConfig, steer::Steer},
    worker::{
        Beginning, Commander, Parts, Service, Worker, WorkerConfig, WorkerHandle, Workers,
        WorkersConfig, spawn_all,
    },
};

use crate::{session, world};

/// The channel that everything travels on.
const CHANNEL: &str = "bench/load";
/// Events that are offered before the worker gets to its other work.
const BURST: usize = 4_096;
/// An answer that has not come by then will not come: the question is asked anew.
const ANSWER_NS_MAX: u64 = 200_000_000;
/// Round trips that are kept.
const ROUND_TRIPS_MAX: usize = 1 << 20;
/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the application does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Offers events of a size until the queue is full, and again when it is not.
    Offer {
        /// Bytes of an event.
        event_bytes: usize,
        /// Events of one call.
        batch: usize,
        /// What the stream promises.
        mode: Mode,
    },
    /// Counts what comes.
    Take,
    /// Sends one event, waits for the answer, sends the next.
    Ask {
        /// Bytes of an event.
        event_bytes: usize,
    },
    /// Sends every event back.
    Answer,
}

/// One end.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Its number, which its keys go by.
    pub number: u32,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The core that its worker stays on.
    pub core: Option<usize>,
    /// The other end's number.
    pub peer: u32,
    /// Where the other end, or the first forwarder on the way there, listens.
    pub via: SocketAddr,
    /// What its application does.
    pub task: Task,
}

/// What an end has done by some moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The moment, on the worker's clock.
    pub now_ns: u64,
    /// Processor time of the worker's thread.
    pub cpu_ns: u64,
    /// Whether there is a session.
    pub is_connected: bool,
    /// Events that the node took for sending.
    pub offered: u64,
    /// Events that came.
    pub taken: u64,
    /// Bytes of those.
    pub taken_bytes: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Bytes of those.
    pub datagram_bytes: u64,
    /// System calls that sent them.
    pub sends: u64,
    /// Datagrams sent on for others.
    pub forwarded: u64,
}

/// The application.
pub struct Load {
    task: Task,
    peer: NodeId,
    event: Bytes,
    stream: Option<StreamId>,
    is_running: bool,
    is_full: bool,
    asked_ns: u64,
    seen: Seen,
    round_trips_ns: Vec<u64>,
}

/// Whether the application sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// From now on.
    On,
    /// No more; what is queued still goes out.
    Off,
}

impl Load {
    fn new(task: Task, peer: NodeId) -> Self {
        let bytes = match task {
            Task::Offer { event_bytes, .. } | Task::Ask { event_bytes } => event_bytes,
            Task::Take | Task::Answer => 0,
        };
        Self {
            task,
            peer,
            event: vec![0x5a; bytes].into(),
            stream: None,
            is_running: false,
            is_full: false,
            asked_ns: 0,
            seen: Seen::default(),
            round_trips_ns: Vec::new(),
        }
    }

    fn open(&mut self, now_ns: u64, node: &mut Node) {
        let mode = match self.task {
            Task::Offer { mode, .. } => mode,
            Task::Take | Task::Ask { .. } | Task::Answer => Mode::Unreliable,
        };
        let spec = StreamSpec {
            name: ChannelName::parse(CHANNEL).expect("a channel's name"),
            salt: 0,
            priority: 4,
            mode,
        };
        // Without a session there is nothing to open; `Connected` comes again.
        self.stream = node.open_stream(now_ns, self.peer, &spec).ok();
    }

    fn send(&mut self, now_ns: u64, node: &mut Node) -> Result<(), SendError> {
        let stream = self.stream.ok_or(SendError::NoStream)?;
        // A reliable stream shares a large one with the application, as it does the subscribers of a channel.
        let taken = node.send_all(now_ns, self.peer, stream, [&self.event], None);
        self.seen.offered += taken.messages as u64;
        taken.refused.map_or(Ok(()), Err)
    }

    fn offer(&mut self, now_ns: u64, node: &mut Node, batch: usize) {
        for _ in 0..BURST / batch {
            let is_taken = match batch {
                1 => self.send(now_ns, node).is_ok(),
                _ => self.send_batch(now_ns, node, batch),
            };
            if !is_taken {
                self.is_full = true;
                return;
            }
        }
    }

    /// Whether all of a batch were taken.
    fn send_batch(&mut self, now_ns: u64, node: &mut Node, batch: usize) -> bool {
        let Some(stream) = self.stream else {
            return false;
        };
        let events = std::iter::repeat_n(&self.event, batch);
        let taken = node.send_all(now_ns, self.peer, stream, events, None);
        self.seen.offered += taken.messages as u64;
        taken.refused.is_none()
    }

    fn ask(&mut self, now_ns: u64, node: &mut Node) {
        self.asked_ns = now_ns;
        // Where it cannot be sent it is asked anew later.
        let _sent = self.send(now_ns, node);
    }

    fn on_message(&mut self, now_ns: u64, node: &mut Node, event: Bytes) {
        self.seen.taken += 1;
        self.seen.taken_bytes += event.len() as u64;
        match self.task {
            Task::Ask { .. } if self.is_running => {
                if self.round_trips_ns.len() < ROUND_TRIPS_MAX {
                    self.round_trips_ns.push(now_ns - self.asked_ns);
                }
                self.ask(now_ns, node);
            }
            Task::Answer => {
                self.event = event;
                // What cannot be sent back is asked anew.
                let _sent = self.send(now_ns, node);
            }
            Task::Offer { .. } | Task::Take | Task::Ask { .. } => {}
        }
    }
}

impl Service for Load {
    type Command = Switch;

    fn start(&mut self, now_ns: u64, node: &mut Node) {
        if matches!(self.task, Task::Offer { .. } | Task::Ask { .. }) {
            node.connect(now_ns, self.peer)
                .expect("the peer is configured");
        }
    }

    fn on_event(&mut self, now_ns: u64, node: &mut Node, event: Event) {
        match event {
            Event::Connected { .. } => {
                self.seen.is_connected = true;
                if self.task != Task::Take {
                    self.open(now_ns, node);
                }
            }
            Event::Closed { .. } => {
                self.seen.is_connected = false;
                self.stream = None;
            }
            Event::Message { event, .. } => self.on_message(now_ns, node, event),
            Event::Writable { .. } => self.is_full = false,
            _ => {}
        }
    }

    fn on_command(&mut self, now_ns: u64, node: &mut Node, switch: Switch) {
        self.is_running = switch == Switch::On;
        self.is_full = false;
        self.round_trips_ns.clear();
        if self.is_running && matches!(self.task, Task::Ask { .. }) {
            self.ask(now_ns, node);
        }
    }

    fn poll_timeout(&self) -> Option<u64> {
        match self.task {
            _ if !self.is_running => None,
            Task::Offer { .. } => (!self.is_full).then_some(0),
            Task::Ask { .. } => Some(self.asked_ns + ANSWER_NS_MAX),
            Task::Take | Task::Answer => None,
        }
    }

    fn handle_timeout(&mut self, now_ns: u64, node: &mut Node) {
        match self.task {
            Task::Offer { batch, .. } => self.offer(now_ns, node, batch),
            Task::Ask { .. } => self.ask(now_ns, node),
            Task::Take | Task::Answer => {}
        }
    }

    fn stop(&mut self, _now_ns: u64, _node: &mut Node) {
        self.is_running = false;
    }
}

/// A running end; dropping it leaves it running, [`Running::stop`] ends it.
pub struct Running {
    worker: WorkerHandle<Load>,
}

impl Running {
    /// Starts an end, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no worker to be had.
    pub fn start(end: &End) -> io::Result<Self> {
        let numbers = [end.number, end.peer];
        let image = image(end.number, end.listen, &numbers, &[(end.peer, end.via)]);
        let peer = session::public(end.peer);
        let config = session::config(end.number, vec![peer], NodeLimits::default());
        let load = Load::new(end.task, peer.node_key.id());
        Self::spawn(end.listen, end.core, config, &image, load)
    }

    /// Starts a forwarder between two ends, which it has no sessions with.
    ///
    /// # Errors
    /// When there is no worker to be had.
    pub fn relay(
        number: u32,
        listen: SocketAddr,
        core: usize,
        to: [(u32, SocketAddr); 2],
    ) -> io::Result<Self> {
        let image = image(number, listen, &to.map(|(number, _)| number), &to);
        let config = session::config(number, Vec::new(), NodeLimits::default());
        let load = Load::new(Task::Take, image.node_id);
        Self::spawn(listen, Some(core), config, &image, load)
    }

    fn spawn(
        listen: SocketAddr,
        core: Option<usize>,
        config: NodeConfig,
        image: &Image,
        load: Load,
    ) -> io::Result<Self> {
        let mut forwarder = Forwarder::new();
        forwarder
            .apply(image, world::entropy())
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        let worker = WorkerConfig {
            listen,
            core,
            driver: DriverConfig::default(),
        };
        let worker =
            Worker::spawn(&worker, config, forwarder, load, |_| {}).map_err(io::Error::other)?;
        Ok(Self { worker })
    }

    /// Tells the application whether to send.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn switch(&self, switch: Switch) -> io::Result<()> {
        self.worker
            .command(switch)
            .map_err(|_| io::Error::other("the worker has ended"))
    }

    /// What it has done.
    ///
    /// # Errors
    /// When the worker has ended, or does not answer.
    pub fn seen(&self) -> io::Result<Seen> {
        seen(self.worker.commander())
    }

    /// Round trips since the application was last told to send; they are forgotten.
    ///
    /// # Errors
    /// When the worker has ended, or does not answer.
    pub fn round_trips_ns(&self) -> io::Result<Vec<u64>> {
        look(self.worker.commander(), |_, parts| {
            std::mem::take(&mut parts.service.round_trips_ns)
        })
    }

    /// Waits until there is a session.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn await_session(&self) -> io::Result<()> {
        await_session(|| self.seen())
    }

    /// Ends it.
    pub fn stop(self) {
        self.worker.stop();
    }
}

/// Several workers of one node, each with the peers that are its share; their applications offer unreliable events.
pub struct Group {
    workers: Workers<Load>,
}

impl Group {
    /// Starts one worker for each core. Each offers to the first of the peers that is its own.
    ///
    /// # Errors
    /// When a worker has no peer, or there are no workers to be had.
    pub fn start(
        number: u32,
        listen: SocketAddr,
        cores: &[usize],
        event_bytes: usize,
        peers: &[(u32, SocketAddr)],
    ) -> io::Result<Self> {
        let mut numbers = vec![number];
        numbers.extend(peers.iter().map(|&(peer, _)| peer));
        let image = image(number, listen, &numbers, peers);
        let ids: Vec<NodeId> = peers.iter().map(|&(peer, _)| node_id(peer)).collect();
        for share in Share::split(cores.len()) {
            if !ids.iter().any(|&id| share.owns(id)) {
                return Err(io::Error::other("a worker has no peer among those"));
            }
        }
        let task = Task::Offer {
            event_bytes,
            batch: 1,
            mode: Mode::Unreliable,
        };
        let config = WorkersConfig {
            listen,
            cores: cores.iter().copied().map(Some).collect(),
            steer: Steer::Kernel,
            driver: DriverConfig::default(),
        };
        let beginning = |share: Share| {
            let own = ids.iter().copied().find(|&id| share.owns(id));
            let mut forwarder = Forwarder::new();
            forwarder
                .apply(&image, world::entropy())
                .expect("an image that fits");
            let known = peers.iter().map(|&(peer, _)| session::public(peer));
            let mut node = session::config(number, known.collect(), NodeLimits::default());
            node.share = share;
            Beginning {
                node,
                forwarder,
                service: Load::new(task, own.expect("every share was seen to have a peer")),
            }
        };
        let workers = spawn_all(&config, beginning, |_, _| {}).map_err(io::Error::other)?;
        Ok(Self { workers })
    }

    /// Tells all applications whether to send.
    ///
    /// # Errors
    /// When a worker has ended.
    pub fn switch(&self, switch: Switch) -> io::Result<()> {
        for commander in self.workers.commanders() {
            commander
                .command(switch)
                .map_err(|_| io::Error::other("a worker has ended"))?;
        }
        Ok(())
    }

    /// What each worker has done.
    ///
    /// # Errors
    /// When a worker has ended, or does not answer.
    pub fn seen(&self) -> io::Result<Vec<Seen>> {
        self.workers.commanders().map(seen).collect()
    }

    /// Waits until every worker has its session.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn await_sessions(&self) -> io::Result<()> {
        self.workers
            .commanders()
            .try_for_each(|commander| await_session(|| seen(commander)))
    }

    /// Ends all.
    pub fn stop(self) {
        self.workers.stop();
    }
}

/// A numbered node's id.
#[must_use]
pub fn node_id(number: u32) -> NodeId {
    session::public(number).node_key.id()
}

/// Has a worker look at its parts.
fn look<T: Send + 'static>(
    commander: &Commander<Load>,
    look: impl FnOnce(u64, &mut Parts<Load>) -> T + Send + 'static,
) -> io::Result<T> {
    let (reply, answer) = mpsc::channel();
    let task = Box::new(move |now_ns, parts: &mut Parts<Load>| {
        // Whoever asked may have lost patience.
        let _told = reply.send(look(now_ns, parts));
    });
    commander
        .run(task)
        .map_err(|_| io::Error::other("the worker has ended"))?;
    answer.recv_timeout(PATIENCE).map_err(io::Error::other)
}

fn seen(commander: &Commander<Load>) -> io::Result<Seen> {
    look(commander, |now_ns, parts| {
        let sent = *parts.driver().sent();
        Seen {
            now_ns,
            cpu_ns: thread_cpu_ns(),
            datagrams: sent.datagrams,
            datagram_bytes: sent.bytes,
            sends: sent.batches,
            forwarded: parts.counters().forwarded,
            ..parts.service.seen.clone()
        }
    })
}

fn await_session(seen: impl Fn() -> io::Result<Seen>) -> io::Result<()> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if seen()?.is_connected {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err(io::Error::other(
        "there is no session with the other end after 10 s",
    ))
}

/// Processor time of the calling thread.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// What numbered nodes may send, and the ways to others.
fn image(number: u32, listen: SocketAddr, members: &[u32], to: &[(u32, SocketAddr)]) -> Image {
    let mut image = Image {
        node_id: node_id(number),
        port: listen.port(),
        ..Image::default()
    };
    let channel = hash::channel_hash(0, CHANNEL);
    for &member in members {
        let origin: OriginHash = hash::origin_hash(&session::public(member).entity_key);
        image.pairs.insert(Pair::new(origin, channel));
        image.pairs.insert(Pair::new(origin, ChannelHash(0)));
    }
    for &(number, at) in to {
        let neighbour = Place::new(0, at.ip().into());
        image.neighbours.insert(neighbour, Link::default());
        let primary = image.add_next_hop(NextHop {
            target: at.ip().into(),
            port: at.port(),
            mtu: 65_535,
            flags: NextHop::ALIVE,
            ..NextHop::default()
        });
        let via = Via {
            primary,
            backup: None,
        };
        let destination = node_id(number);
        image.routes.insert(destination, via);
    }
    image
}
