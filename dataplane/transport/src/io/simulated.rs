//! The driver on a network that is not there ([`Network`]): sockets with buffers, kernels that cut runs and join
//! datagrams, links with a rate, and a clock that goes when it is told to. Everything depends on the seed alone.
//!
//! ```text
//!  a worker ──► Simulated ──► socket, full while more waits to leave ──► link ──► Network: late, lost, doubled …
//!  a worker ◄── Simulated ◄── socket, which loses what it has no room for ◄──────────┘
//! ```
//!
//! Waits do not sleep: whoever has the workers ([`crate::worker::stepped`]) asks for the moment at which each one's
//! ends, brings the [`Wire`] there, and gives that worker its turn.

use super::{
    clock::Now,
    counters::{ErrorKind, IoCounters},
    driver::{Outlet, Run, Sent, Stamp},
    wake::{Ready, Wake},
};
use crate::{
    limits::{DATAGRAM_BYTES_MAX, TRANSMIT_BYTES_MAX, TRANSMIT_SEGMENTS_MAX},
    random::Generator,
    sim::{Network, SECOND, Weather},
};
use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use virga_ebpf::hash;

/// Runs of one receive call.
const RUNS_MAX: usize = 16;

/// The time on a [`Wire`].
#[derive(Clone, Debug)]
pub struct VirtualClock(Arc<AtomicU64>);

impl Now for VirtualClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a node's socket, kernel and NIC are like.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    /// Largest datagram that the link takes: a larger one is refused to its sender, and never cut.
    pub datagram_bytes: usize,
    /// Bytes a second that leave; 0: all at once.
    pub rate: u64,
    /// Bytes that wait to leave before the socket is full.
    pub send_buffer_bytes: u64,
    /// Bytes that wait to be read at most: more is lost, and counted.
    pub receive_buffer_bytes: usize,
    /// Datagrams that one call sends at most; 1 where the kernel does not segment.
    pub segments_max: usize,
    /// Datagrams that the kernel joins into one run at most; 1 where it does not.
    pub joins_max: usize,
}

impl Interface {
    /// A link without end, and buffers of a size that Linux gives.
    pub const FAST: Self = Self {
        datagram_bytes: DATAGRAM_BYTES_MAX,
        rate: 0,
        send_buffer_bytes: 4 * 1024 * 1024,
        receive_buffer_bytes: 4 * 1024 * 1024,
        segments_max: TRANSMIT_SEGMENTS_MAX,
        joins_max: TRANSMIT_SEGMENTS_MAX,
    };
}

/// One socket.
struct Port {
    address: SocketAddr,
    interface: Interface,
    /// Until when what was sent takes to leave.
    busy_until_ns: u64,
    inbox: VecDeque<(SocketAddr, Vec<u8>)>,
    inbox_bytes: usize,
    lost: u64,
}

impl Port {
    /// When less waits to leave than the buffer holds.
    fn room_ns(&self) -> u64 {
        let Interface {
            rate,
            send_buffer_bytes,
            ..
        } = self.interface;
        let held_ns = (send_buffer_bytes * SECOND).checked_div(rate);
        self.busy_until_ns
            .saturating_sub(held_ns.unwrap_or(u64::MAX))
    }

    /// When a datagram has left that is given to the link now.
    fn leave(&mut self, now_ns: u64, bytes: usize) -> u64 {
        let takes_ns = (bytes as u64 * SECOND).checked_div(self.interface.rate);
        self.busy_until_ns = self.busy_until_ns.max(now_ns) + takes_ns.unwrap_or(0);
        self.busy_until_ns
    }
}

/// What happened to a datagram, as the trace has it.
#[derive(Clone, Copy)]
enum Happened {
    Sent = 1,
    Refused = 2,
    Arrived = 3,
    Lost = 4,
}

struct Inner {
    network: Network,
    dice: Generator,
    ports: Vec<Port>,
    trace: [u8; 32],
}

impl Inner {
    fn note(&mut self, now_ns: u64, happened: Happened, port: usize, datagram: &[u8]) {
        let place = [now_ns, happened as u64, port as u64].map(u64::to_be_bytes);
        self.trace = hash::keyed(&self.trace, &[place.as_flattened(), datagram]);
    }

    /// The port at an address; of several that share it (a node's workers), any: steering is a hint.
    fn port_at(&mut self, address: SocketAddr) -> Option<usize> {
        let places = self.ports.iter().enumerate();
        let there: Vec<usize> = places
            .filter(|(_, port)| port.address == address)
            .map(|(n, _)| n)
            .collect();
        let n = match there.len() {
            0 | 1 => 0,
            several => self.dice.below(several as u64),
        };
        there.get(usize::try_from(n).ok()?).copied()
    }

    fn put(&mut self, now_ns: u64, from: usize, to: SocketAddr, datagram: &[u8]) {
        self.note(now_ns, Happened::Sent, from, datagram);
        let leaves_ns = self.ports[from].leave(now_ns, datagram.len());
        if let Some(to) = self.port_at(to) {
            self.network.send(leaves_ns, from, to, datagram.to_vec());
        }
    }

    fn land(&mut self, now_ns: u64, (from, to): (usize, usize), datagram: Vec<u8>) {
        let source = self.ports[from].address;
        let port = &mut self.ports[to];
        let is_lost = port.inbox_bytes + datagram.len() > port.interface.receive_buffer_bytes;
        let happened = match is_lost {
            true => Happened::Lost,
            false => Happened::Arrived,
        };
        self.note(now_ns, happened, to, &datagram);
        let port = &mut self.ports[to];
        if is_lost {
            port.lost += 1;
        } else {
            port.inbox_bytes += datagram.len();
            port.inbox.push_back((source, datagram));
        }
    }

    /// Moves the next run of a port's datagrams to `buffer`: where they came from, and bytes of each but the last.
    fn take_run(&mut self, port: usize, buffer: &mut Vec<u8>) -> Option<(SocketAddr, usize)> {
        let joins_max = self.ports[port].interface.joins_max as u64;
        let most = match joins_max {
            0 | 1 => 1,
            most => 1 + self.dice.below(most),
        };
        let port = &mut self.ports[port];
        let (source, first) = port.inbox.pop_front()?;
        let segment_bytes = first.len();
        buffer.clear();
        buffer.extend_from_slice(&first);
        for _ in 1..most {
            // A shorter one ends the run, as it does where the kernel joins them.
            let is_open = buffer.len().is_multiple_of(segment_bytes);
            let fits = |(from, next): &(SocketAddr, Vec<u8>)| {
                *from == source
                    && next.len() <= segment_bytes
                    && buffer.len() + next.len() <= DATAGRAM_BYTES_MAX
            };
            if !is_open || !port.inbox.front().is_some_and(fits) {
                break;
            }
            let Some((_, next)) = port.inbox.pop_front() else {
                break;
            };
            buffer.extend_from_slice(&next);
        }
        port.inbox_bytes -= buffer.len();
        Some((source, segment_bytes))
    }
}

/// A network that is not there, its clock, and the sockets on it. Its clones are the same one.
#[derive(Clone)]
pub struct Wire {
    clock: VirtualClock,
    inner: Arc<Mutex<Inner>>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl Wire {
    /// A wire without sockets.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        let mut key = [0xd1; 32];
        key[..8].copy_from_slice(&seed.to_be_bytes());
        let inner = Inner {
            network: Network::new(seed, weather),
            dice: Generator::new(&key, b"wire"),
            ports: Vec::new(),
            trace: [0; 32],
        };
        Self {
            clock: VirtualClock(Arc::new(AtomicU64::new(1))),
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> VirtualClock {
        self.clock.clone()
    }

    /// A socket at an address, and the driver that runs it. Several may share an address: a datagram comes to any.
    #[must_use]
    pub fn attach(&self, address: SocketAddr, interface: Interface, wake: Arc<Wake>) -> Simulated {
        let mut inner = self.lock();
        inner.ports.push(Port {
            address,
            interface,
            busy_until_ns: 0,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            lost: 0,
        });
        Simulated {
            sender: Sender {
                wire: self.clone(),
                port: inner.ports.len() - 1,
                counters: IoCounters::default(),
            },
            wake,
            buffer: Vec::with_capacity(DATAGRAM_BYTES_MAX),
            received: IoCounters::default(),
            outgoing: Vec::with_capacity(TRANSMIT_BYTES_MAX),
            blocked: None,
            waits: 0,
        }
    }

    /// Changes the weather, from now on.
    pub fn set_weather(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.lock().network.weather);
    }

    /// Nothing that is sent at `from` gets to `to` any more; see [`Wire::mend`].
    pub fn part(&self, from: SocketAddr, to: SocketAddr) {
        let mut inner = self.lock();
        let at = |address| {
            let places = inner.ports.iter().enumerate();
            let there = places.filter(move |(_, port)| port.address == address);
            there.map(|(n, _)| n).collect::<Vec<_>>()
        };
        let (from, to) = (at(from), at(to));
        let pairs = from
            .iter()
            .flat_map(|&from| to.iter().map(move |&to| (from, to)));
        inner.network.parted.extend(pairs);
    }

    /// Everything gets everywhere again.
    pub fn mend(&self) {
        self.lock().network.parted.clear();
    }

    /// When the next datagram arrives.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        self.lock().network.next_ns()
    }

    /// It is later: what has arrived by then waits in the sockets.
    pub fn advance(&self, now_ns: u64) {
        let mut inner = self.lock();
        debug_assert!(now_ns >= self.clock.now_ns(), "time goes one way");
        self.clock.0.store(now_ns, Ordering::Relaxed);
        while let Some(arrival) = inner.network.receive(now_ns) {
            let way = (arrival.from, arrival.to);
            inner.land(now_ns, way, arrival.bytes);
        }
    }

    /// A digest of all that happened: every datagram, when, and what became of it.
    #[must_use]
    pub fn trace(&self) -> [u8; 32] {
        self.lock().trace
    }
}

/// The half that sends.
#[derive(Debug)]
pub struct Sender {
    wire: Wire,
    port: usize,
    counters: IoCounters,
}

impl Sender {
    /// Sends a run of datagrams, each `segment_bytes` long but the last: as many a call as the kernel segments.
    pub fn send(&mut self, to: SocketAddr, run: &[u8], segment_bytes: usize) -> Sent {
        if run.is_empty() || segment_bytes == 0 {
            return Sent::Done;
        }
        let now_ns = self.wire.clock.now_ns();
        let mut wire = self.wire.lock();
        let interface = wire.ports[self.port].interface;
        let call_bytes = segment_bytes.saturating_mul(interface.segments_max.max(1));
        let mut from = 0;
        for call in run.chunks(call_bytes) {
            if wire.ports[self.port].room_ns() > now_ns {
                self.counters.would_block += (run.len() - from).div_ceil(segment_bytes) as u64;
                return Sent::Blocked { from };
            }
            let is_too_big = call.len().min(segment_bytes) > interface.datagram_bytes;
            for datagram in call.chunks(segment_bytes) {
                if is_too_big {
                    wire.note(now_ns, Happened::Refused, self.port, datagram);
                    self.counters.add_error(ErrorKind::TooBig);
                } else {
                    wire.put(now_ns, self.port, to, datagram);
                }
            }
            if !is_too_big {
                self.counters.batches += 1;
                self.counters.add_run(call.len(), segment_bytes);
            }
            from += call.len();
        }
        Sent::Done
    }
}

/// Where the rest of `outgoing` begins that the socket had no room for.
#[derive(Debug)]
struct Blocked {
    to: SocketAddr,
    from: usize,
    segment_bytes: usize,
}

/// The driver. It holds at most one run that the socket had no room for.
#[derive(Debug)]
pub struct Simulated {
    sender: Sender,
    wake: Arc<Wake>,
    buffer: Vec<u8>,
    received: IoCounters,
    outgoing: Vec<u8>,
    blocked: Option<Blocked>,
    waits: u64,
}

impl Simulated {
    pub(super) fn receive(&mut self, mut handle: impl FnMut(&mut Outlet<'_>, Run<'_>)) -> bool {
        for n in 0..RUNS_MAX {
            let run = self
                .sender
                .wire
                .lock()
                .take_run(self.sender.port, &mut self.buffer);
            let Some((source, segment_bytes)) = run else {
                return false;
            };
            self.received.batches += u64::from(n == 0);
            self.received.add_run(self.buffer.len(), segment_bytes);
            let run = Run {
                source,
                ifindex: 0,
                bytes: &mut self.buffer,
                segment_bytes,
                stamp: Stamp::Untold,
            };
            handle(&mut Outlet::Simulated(&mut self.sender), run);
        }
        true
    }

    pub(super) fn room(&mut self) -> Option<&mut Vec<u8>> {
        if !self.flush() {
            return None;
        }
        self.outgoing.clear();
        Some(&mut self.outgoing)
    }

    pub(super) fn commit(&mut self, to: SocketAddr, segment_bytes: usize) {
        self.blocked = Some(Blocked {
            to,
            from: 0,
            segment_bytes,
        });
        let _goes_on_later = self.flush();
    }

    pub(super) fn flush(&mut self) -> bool {
        let Some(blocked) = &mut self.blocked else {
            return true;
        };
        let rest = &self.outgoing[blocked.from..];
        match self.sender.send(blocked.to, rest, blocked.segment_bytes) {
            Sent::Done => {
                self.blocked = None;
                true
            }
            Sent::Blocked { from } => {
                blocked.from += from;
                false
            }
        }
    }

    /// What there is of what a wait is for. It does not sleep.
    pub(super) fn wait(&mut self, _timeout_ns: Option<u64>) -> io::Result<Ready> {
        self.waits += 1;
        let now_ns = self.sender.wire.clock.now_ns();
        let woken = self.wake.is_rung();
        if woken {
            self.wake.clear();
        }
        let wire = self.sender.wire.lock();
        let port = &wire.ports[self.sender.port];
        Ok(Ready {
            readable: !port.inbox.is_empty(),
            writable: self.blocked.is_some() && port.room_ns() <= now_ns,
            woken,
        })
    }

    /// When a wait ends: now where there is something, or somebody rang; else once there is room where there was none, or
    /// at the deadline. `None`: with what is still to come.
    #[must_use]
    pub fn due_ns(&self, deadline_ns: Option<u64>) -> Option<u64> {
        let now_ns = self.sender.wire.clock.now_ns();
        let wire = self.sender.wire.lock();
        let port = &wire.ports[self.sender.port];
        if !port.inbox.is_empty() || self.wake.is_rung() {
            return Some(now_ns);
        }
        let room_ns = self.blocked.is_some().then(|| port.room_ns().max(now_ns));
        room_ns.into_iter().chain(deadline_ns).min()
    }

    pub(super) fn outlet(&mut self) -> Outlet<'_> {
        Outlet::Simulated(&mut self.sender)
    }

    pub(super) fn sent(&self) -> &IoCounters {
        &self.sender.counters
    }

    pub(super) fn received(&self) -> &IoCounters {
        &self.received
    }

    pub(super) fn figures(&self) -> Vec<(&'static str, u64)> {
        let lost = self.sender.wire.lock().ports[self.sender.port].lost;
        vec![("waits", self.waits), ("socket_lost", lost)]
    }
}

#[cfg(test)]
mod tests;
