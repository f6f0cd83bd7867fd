//! Many subscribing nodes, served by one thread: real sessions, one socket for some of them.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use virga::channel::{
    Pattern,
    message::{Answer, Message},
};
use virga_bench::session;
use virga_ebpf::header::{Header, NodeId};
use virga_transport::{Event, Node, NodeLimits};

use super::{PUBLISHER, name, node_id, until};

/// Nodes that share a socket: what all of them are sent at once fits its buffer.
const NODES_A_SOCKET: u32 = 32;
/// Handshakes that are under way at a time.
const CONNECTING_MAX: usize = 16;
/// How often timers are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
/// A datagram of the largest size that a path is probed with.
const BUFFER_BYTES: usize = 65_536;

/// Sockets for so many subscribers.
pub(super) fn sockets(subscribers: u32) -> usize {
    usize::try_from(subscribers.div_ceil(NODES_A_SOCKET)).unwrap_or(usize::MAX)
}

#[derive(Debug, Default)]
struct Counts {
    granted: AtomicU64,
    came: AtomicU64,
    is_stopped: AtomicBool,
}

/// All of them.
pub(super) struct Subscribers {
    places: Vec<(u32, SocketAddr)>,
    counts: Arc<Counts>,
    thread: JoinHandle<io::Result<()>>,
}

impl Subscribers {
    /// Starts nodes numbered from 1; they connect to the publisher and subscribe.
    pub(super) fn start(count: u32, publisher: SocketAddr, core: usize) -> io::Result<Self> {
        let bind = |_| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let sockets: Vec<UdpSocket> = (0..sockets(count)).map(bind).collect::<io::Result<_>>()?;
        let mut places = Vec::new();
        for number in 1..=count {
            let socket = (number - 1) / NODES_A_SOCKET;
            let socket = &sockets[usize::try_from(socket).unwrap_or(usize::MAX)];
            places.push((number, socket.local_addr()?));
        }
        let counts = Arc::new(Counts::default());
        let told = Arc::clone(&counts);
        let thread = thread::spawn(move || {
            let _pinned = core_affinity::set_for_current(core_affinity::CoreId { id: core });
            Served::new(count, sockets, publisher, told).run()
        });
        Ok(Self {
            places,
            counts,
            thread,
        })
    }

    /// Every subscriber's number, and where it is reached.
    pub(super) fn places(&self) -> impl Iterator<Item = (u32, SocketAddr)> + '_ {
        self.places.iter().copied()
    }

    /// Subscriptions that the publisher has acknowledged.
    pub(super) fn granted(&self) -> u64 {
        self.counts.granted.load(Ordering::Acquire)
    }

    /// Events that came, at all of them.
    pub(super) fn came(&self) -> u64 {
        self.counts.came.load(Ordering::Acquire)
    }

    /// Waits until a count is reached.
    pub(super) fn await_all(
        &self,
        wanted: u64,
        patience: Duration,
        count: impl Fn(&Self) -> u64,
    ) -> io::Result<()> {
        until(patience, || {
            count(self) >= wanted || self.thread.is_finished()
        })?;
        match count(self) >= wanted {
            true => Ok(()),
            false => Err(io::Error::other("the subscribers' thread has ended")),
        }
    }

    /// Ends them.
    pub(super) fn stop(self) {
        self.counts.is_stopped.store(true, Ordering::Relaxed);
        // What went wrong there was noticed by what did not come.
        let _ended = self.thread.join();
    }
}

/// What the thread has.
struct Served {
    nodes: Vec<Node>,
    by_id: BTreeMap<NodeId, usize>,
    sockets: Vec<UdpSocket>,
    publisher: SocketAddr,
    counts: Arc<Counts>,
    start: Instant,
    /// Nodes that have been told to connect.
    begun: usize,
    run: Vec<u8>,
}

impl Served {
    fn new(
        count: u32,
        sockets: Vec<UdpSocket>,
        publisher: SocketAddr,
        counts: Arc<Counts>,
    ) -> Self {
        let node = |number| {
            let peers = vec![session::public(PUBLISHER)];
            let config = session::config(number, peers, NodeLimits::default());
            Node::new(config, 0).expect("a configuration that the node accepts")
        };
        let ids = (1..=count).map(node_id).enumerate();
        Self {
            by_id: ids.map(|(index, id)| (id, index)).collect(),
            nodes: (1..=count).map(node).collect(),
            sockets,
            publisher,
            counts,
            start: Instant::now(),
            begun: 0,
            run: Vec::new(),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut looked = Instant::now();
        while !self.counts.is_stopped.load(Ordering::Relaxed) {
            self.connect_more()?;
            let mut is_idle = true;
            for socket in 0..self.sockets.len() {
                while let Some((bytes, from)) = receive(&self.sockets[socket], &mut buffer)? {
                    is_idle = false;
                    self.take(from, &mut buffer[..bytes])?;
                }
            }
            if looked.elapsed() >= LOOK_AGAIN {
                looked = Instant::now();
                self.look_at_timers()?;
            } else if is_idle {
                self.wait()?;
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let sockets = self.sockets.iter();
        let mut fds: Vec<_> = sockets.map(|s| PollFd::new(s, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&WAIT)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn connect_more(&mut self) -> io::Result<()> {
        let granted = usize::try_from(self.counts.granted.load(Ordering::Relaxed));
        let granted = granted.unwrap_or(usize::MAX);
        while self.begun < self.nodes.len().min(granted + CONNECTING_MAX) {
            let (now_ns, index) = (self.now_ns(), self.begun);
            let to = node_id(PUBLISHER);
            self.nodes[index]
                .connect(now_ns, to)
                .map_err(io::Error::other)?;
            self.begun += 1;
            self.serve(now_ns, index)?;
        }
        Ok(())
    }

    fn take(&mut self, from: SocketAddr, datagram: &mut [u8]) -> io::Result<()> {
        let Some(header) = datagram.first_chunk() else {
            return Ok(());
        };
        let Some(&index) = self.by_id.get(&Header::decode(header).destination) else {
            return Ok(());
        };
        let now_ns = self.now_ns();
        // What is dropped is sent again.
        let _counted = self.nodes[index].handle(now_ns, from, datagram);
        self.serve(now_ns, index)
    }

    fn look_at_timers(&mut self) -> io::Result<()> {
        let now_ns = self.now_ns();
        for index in 0..self.begun {
            if self.nodes[index]
                .poll_timeout()
                .is_some_and(|due| due <= now_ns)
            {
                self.nodes[index].handle_timeout(now_ns);
                self.serve(now_ns, index)?;
            }
        }
        Ok(())
    }

    /// Reads what a node tells, and sends what it has to say.
    fn serve(&mut self, now_ns: u64, index: usize) -> io::Result<()> {
        let socket = index / usize::try_from(NODES_A_SOCKET).unwrap_or(1);
        let (node, socket) = (&mut self.nodes[index], &self.sockets[socket]);
        while let Some(event) = node.poll() {
            match event {
                Event::Connected { peer, .. } => {
                    let pattern = Pattern::Channel(name());
                    let subscribe = Message::Subscribe {
                        request: 1,
                        pattern,
                    };
                    node.send_control(now_ns, peer, &subscribe.encode())
                        .map_err(io::Error::other)?;
                }
                Event::Control { message, .. } => {
                    if let Ok(Message::Ack {
                        answer: Answer::Granted(1..),
                        ..
                    }) = Message::parse(&message)
                    {
                        self.counts.granted.fetch_add(1, Ordering::Release);
                    }
                }
                Event::Message { .. } => {
                    self.counts.came.fetch_add(1, Ordering::Release);
                }
                _ => {}
            }
        }
        while let Some(transmit) = node.poll_transmit(now_ns, &mut self.run) {
            for datagram in self.run.chunks(transmit.segment_bytes) {
                // What the kernel does not take, or what is too large for it, counts as lost.
                let _sent = socket.send_to(datagram, self.publisher);
            }
            self.run.clear();
        }
        Ok(())
    }
}

/// The next datagram, if there is one.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
    match socket.recv_from(buffer) {
        Ok(came) => Ok(Some(came)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
