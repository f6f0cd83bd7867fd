//! The driver on AF_XDP: packets for this node come from the XDP program straight into this process's memory,
//! and its own go straight to the NIC's queue, past the kernel's stack.
//!
//! - [`queue`]: a socket on one receive queue of an interface; [`ring`]: the memory shared with the kernel.
//! - `packets`: outer headers, off and on.
//! - [`sender`]: a queue that only sends, whole frames as they are written.
//!
//! The kernel's UDP socket stays beside it: it receives what comes in by queues without a socket, and sends to
//! whom no link-layer address is known of yet. Queues come and go while the driver runs: the control plane
//! opens them, puts them into the XDP program's map, and adds them here. One whose interface is gone is
//! dropped, and with this process they all end; the XDP program then hands packets to the kernel's stack.
//! While an interface is down its queues stay, and what goes out by them is lost and counted.

mod packets;
pub mod queue;
mod ring;
pub mod sender;

use super::{
    counters::{ErrorKind, IoCounters},
    driver::{Outlet as AnyOutlet, Run, Sent, Stamp},
    mmsg::{self, Mmsg},
    socket::Socket,
    wake::{Ready, Wake, timespec},
};
use crate::limits::TRANSMIT_BYTES_MAX;
use queue::{Inlet, Outflow, Queue, Unsent};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};
use virga_ebpf::tables::NextHop;

/// Queues that one driver runs at most.
pub const QUEUES_MAX: usize = 16;
/// How often a wait looks whether a queue has room: the kernel tells of room in the ring, not of frames that
/// came back, and of neither to whoever waits for packets. A ring of frames a pause is ten million packets a second.
const LOOK_AGAIN_NS: u64 = 100_000;

/// See the module.
#[derive(Debug)]
pub struct Xsk {
    kernel: Mmsg,
    /// Whether the last wait found something at the kernel's socket, or it had more than was read.
    is_kernel_ready: bool,
    busy_poll_us: Option<u32>,
    /// What became of that: at the kernel's socket, and at the queues.
    polls: [Option<String>; 2],
    inlets: Vec<Inlet>,
    links: Links,
    outgoing: Vec<u8>,
    blocked: Option<Blocked>,
    counted: Counted,
}

/// What only this driver counts.
#[derive(Debug, Default)]
struct Counted {
    received: u64,
    unreadable: u64,
    gone: u64,
    /// Of queues that are gone.
    lost: u64,
    wakeups: u64,
    waits: u64,
}

/// Where the rest of `outgoing` begins that there was no room for.
#[derive(Debug)]
struct Blocked {
    to: SocketAddr,
    from: usize,
    segment_bytes: usize,
}

/// The sockets' sending halves, and what is reached through them.
#[derive(Debug)]
pub struct Links {
    outflows: Vec<(u32, Outflow)>,
    next_hops: Vec<NextHop>,
    /// The next hop at an address, and the place of the half that leads there.
    ways: HashMap<SocketAddr, (NextHop, usize)>,
    source_port: u16,
    sent: u64,
}

/// Where runs go out: by AF_XDP, or by the kernel's socket.
#[derive(Debug)]
pub struct Outlet<'a> {
    kernel: &'a mut mmsg::Sender,
    links: &'a mut Links,
}

impl Outlet<'_> {
    /// Sends a run of datagrams, each `segment_bytes` long but the last.
    pub fn send(&mut self, to: SocketAddr, run: &[u8], segment_bytes: usize) -> Sent {
        let Some((next_hop, place)) = self.links.ways.get(&known_as(to)) else {
            return self.kernel.send(to, run, segment_bytes);
        };
        let (_, outflow) = &mut self.links.outflows[*place];
        let counters = self.kernel.counters_mut();
        let mut from = 0;
        for datagram in run.chunks(segment_bytes.max(1)) {
            match outflow.put(next_hop, self.links.source_port, datagram) {
                Ok(()) => {
                    counters.add_run(datagram.len(), datagram.len());
                    self.links.sent += 1;
                }
                Err(Unsent::TooBig) => counters.add_error(ErrorKind::TooBig),
                // A run that waits for it would hold up all others.
                Err(Unsent::Down) => counters.add_error(ErrorKind::Unreachable),
                Err(Unsent::Full) => {
                    counters.would_block +=
                        (run.len() - from).div_ceil(segment_bytes.max(1)) as u64;
                    return Sent::Blocked { from };
                }
            }
            from += datagram.len();
        }
        Sent::Done
    }
}

/// How a next hop's address is written, whatever the socket's family.
fn known_as(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Links {
    /// Finds the ways anew: next hops on interfaces that have a socket.
    fn find_ways(&mut self) {
        self.ways.clear();
        for next_hop in self.next_hops.iter().filter(|n| n.is(NextHop::ALIVE)) {
            let place = self
                .outflows
                .iter()
                .position(|(ifindex, outflow)| *ifindex == next_hop.ifindex && !outflow.is_dead());
            if let Some(place) = place {
                let to = SocketAddr::new(IpAddr::from(next_hop.target), next_hop.port);
                self.ways.insert(to, (*next_hop, place));
            }
        }
    }

    fn kick(&mut self) {
        for (_, outflow) in &mut self.outflows {
            outflow.kick();
        }
    }

    /// Whether the kernel left packets where they are that nobody asks it to take again.
    fn is_stalled(&self) -> bool {
        self.outflows
            .iter()
            .any(|(_, outflow)| outflow.is_stalled())
    }
}

impl Xsk {
    pub(super) fn open(mut socket: Socket, wake: Arc<Wake>, busy_poll_us: Option<u32>) -> Self {
        let polls = busy_poll_us.map(|us| format!("the kernel's socket: {}", socket.busy_poll(us)));
        let source_port = socket.address().port();
        Self {
            kernel: Mmsg::open(socket, wake),
            is_kernel_ready: true,
            busy_poll_us,
            polls: [polls, None],
            inlets: Vec::new(),
            links: Links {
                outflows: Vec::new(),
                next_hops: Vec::new(),
                ways: HashMap::new(),
                source_port,
                sent: 0,
            },
            outgoing: Vec::with_capacity(TRANSMIT_BYTES_MAX),
            blocked: None,
            counted: Counted::default(),
        }
    }

    /// Runs more queues, as many as a driver can; the others close. What became of busy polling, where it
    /// was asked for.
    pub(super) fn add(&mut self, queues: Vec<Queue>) -> impl Iterator<Item = &str> {
        let room = QUEUES_MAX - self.inlets.len();
        for queue in queues.into_iter().take(room) {
            if let Some(us) = self.busy_poll_us {
                match queue.set_busy_poll(us) {
                    // What one of them refuses is told, whatever the others take.
                    Ok(()) if self.polls[1].is_some() => {}
                    Ok(()) => {
                        self.polls[1] = Some(format!(
                            "the queues: each call polls the NIC once (SO_BUSY_POLL = {us} µs, SO_PREFER_BUSY_POLL); waits do \
                             where net.core.busy_poll is not 0, for that long"
                        ));
                    }
                    Err(error) => {
                        self.polls[1] =
                            Some(format!("the queues: busy polling was refused: {error}"));
                    }
                }
            }
            self.inlets.push(queue.inlet);
            self.links.outflows.push((queue.ifindex, queue.outflow));
        }
        self.links.find_ways();
        self.polls.iter().flatten().map(String::as_str)
    }

    /// Sends to these next hops by the queues of their interfaces, and to all others through the kernel.
    pub(super) fn set_next_hops(&mut self, next_hops: Vec<NextHop>) {
        self.links.next_hops = next_hops;
        self.links.find_ways();
    }

    pub(super) fn receive(&mut self, mut handle: impl FnMut(&mut AnyOutlet<'_>, Run<'_>)) -> bool {
        let mut has_more = false;
        let (sender, received) = self.kernel.halves();
        for inlet in &mut self.inlets {
            let (packets, unreadable) = inlet.receive(|ifindex, source, bytes| {
                received.add_run(bytes.len(), bytes.len());
                let segment_bytes = bytes.len().max(1);
                let run = Run {
                    source,
                    ifindex,
                    bytes,
                    segment_bytes,
                    stamp: Stamp::Bypassed,
                };
                let outlet = Outlet {
                    kernel: &mut *sender,
                    links: &mut self.links,
                };
                handle(&mut AnyOutlet::Xsk(outlet), run);
            });
            self.counted.received += packets as u64 - unreadable;
            self.counted.unreadable += unreadable;
            received.batches += u64::from(packets > 0);
            has_more |= packets == queue::BATCH;
        }
        if self.is_kernel_ready {
            let links = &mut self.links;
            self.is_kernel_ready = self.kernel.receive_with(|kernel, run| {
                let outlet = Outlet { kernel, links };
                handle(&mut AnyOutlet::Xsk(outlet), run);
            });
        }
        self.links.kick();
        has_more || self.is_kernel_ready
    }

    pub(super) fn room(&mut self) -> Option<&mut Vec<u8>> {
        if !self.offer() {
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
        let _goes_on_later = self.offer();
    }

    pub(super) fn flush(&mut self) -> bool {
        let is_taken = self.offer();
        self.links.kick();
        is_taken
    }

    /// Offers what is left of the outgoing run; whether all of it was taken.
    fn offer(&mut self) -> bool {
        let Some(blocked) = &mut self.blocked else {
            return true;
        };
        let (kernel, _) = self.kernel.halves();
        let mut outlet = Outlet {
            kernel,
            links: &mut self.links,
        };
        let rest = self.outgoing.get(blocked.from..).unwrap_or_default();
        match outlet.send(blocked.to, rest, blocked.segment_bytes) {
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

    pub(super) fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<Ready> {
        self.counted.waits += 1;
        let mut left_ns = timeout_ns;
        loop {
            self.links.kick();
            let place = self.blocked_at();
            if place.is_none() && !self.links.is_stalled() {
                return Ok(self.wait_once(left_ns)?.unwrap_or_default());
            }
            let pause_ns = left_ns.map_or(LOOK_AGAIN_NS, |left_ns| left_ns.min(LOOK_AGAIN_NS));
            let Some(mut ready) = self.wait_once(Some(pause_ns))? else {
                return Ok(Ready::default());
            };
            // The queue may be gone; the next offer then goes another way.
            ready.writable |= place.is_some_and(|place| {
                let outflow = self.links.outflows.get_mut(place);
                outflow.is_none_or(|(_, outflow)| outflow.has_room() || outflow.is_down())
            });
            left_ns = left_ns.map(|left_ns| left_ns - pause_ns);
            if ready != Ready::default() || left_ns == Some(0) {
                return Ok(ready);
            }
        }
    }

    /// The queue that the outgoing run waits for; `None` where it waits for the kernel's socket, or for nothing.
    fn blocked_at(&self) -> Option<usize> {
        let blocked = self.blocked.as_ref()?;
        let way = self.links.ways.get(&known_as(blocked.to));
        way.map(|(_, place)| *place)
    }

    /// Sleeps until something is there to read, the kernel's socket has room for a run that waits for it, a ring, or the
    /// time-out; `None` when a signal came.
    fn wait_once(&mut self, timeout_ns: Option<u64>) -> io::Result<Option<Ready>> {
        let read = PollFlags::IN;
        // The kernel's socket has room whether or not a queue has.
        let waits_for_kernel = self.blocked.is_some() && self.blocked_at().is_none();
        let write = if waits_for_kernel {
            PollFlags::OUT
        } else {
            PollFlags::empty()
        };
        let wake = Arc::clone(self.kernel.wake());
        // The kernel's socket, the wake, then the queues; what is left of the places is not looked at.
        let mut fds: [PollFd<'_>; 2 + QUEUES_MAX] = std::array::from_fn(|n| match n {
            0 => PollFd::from_borrowed_fd(self.kernel.socket().as_fd(), read | write),
            n => match n.checked_sub(2).and_then(|n| self.inlets.get(n)) {
                Some(inlet) => PollFd::new(inlet, read),
                None => PollFd::new(&wake, read),
            },
        });
        let fds = &mut fds[..2 + self.inlets.len()];
        let timeout = timeout_ns.map(timespec);
        match poll(fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let over = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        let has = |fd: &PollFd<'_>, flags| fd.revents().intersects(flags);
        let ready = Ready {
            readable: fds[0..1]
                .iter()
                .chain(&fds[2..])
                .any(|fd| has(fd, over | read)),
            writable: has(&fds[0], write),
            woken: has(&fds[1], read),
        };
        self.is_kernel_ready |= has(&fds[0], over | read);
        let mut gone = [false; QUEUES_MAX];
        for (gone, fd) in gone.iter_mut().zip(&fds[2..]) {
            *gone = has(fd, over);
        }
        if ready.woken {
            wake.clear();
        }
        self.drop_gone(&gone);
        Ok(Some(ready))
    }

    /// Drops the queues whose interface is gone.
    fn drop_gone(&mut self, gone: &[bool]) {
        let before = self.inlets.len();
        for place in (0..before).rev() {
            if !gone[place] && !self.links.outflows[place].1.is_dead() {
                continue;
            }
            let inlet = self.inlets.remove(place);
            let (_, outflow) = self.links.outflows.remove(place);
            self.counted.gone += 1;
            self.counted.lost += inlet.lost();
            self.counted.wakeups += inlet.wakeups() + outflow.wakeups();
        }
        if self.inlets.len() < before {
            self.links.find_ways();
        }
    }

    pub(super) fn outlet(&mut self) -> AnyOutlet<'_> {
        let (kernel, _) = self.kernel.halves();
        AnyOutlet::Xsk(Outlet {
            kernel,
            links: &mut self.links,
        })
    }

    pub(super) fn sent(&self) -> &IoCounters {
        self.kernel.sent()
    }

    pub(super) fn received(&self) -> &IoCounters {
        self.kernel.received()
    }

    pub(super) fn figures(&self) -> Vec<(&'static str, u64)> {
        let Counted {
            received,
            unreadable,
            gone,
            lost,
            wakeups,
            waits,
        } = self.counted;
        let lost = lost + self.inlets.iter().map(Inlet::lost).sum::<u64>();
        let inlets = self.inlets.iter().map(Inlet::wakeups).sum::<u64>();
        let outflows = || self.links.outflows.iter().map(|(_, outflow)| outflow);
        let wakeups = wakeups + inlets + outflows().map(Outflow::wakeups).sum::<u64>();
        let unsent: usize = outflows().map(Outflow::on_the_way).sum();
        vec![
            ("xsk_queues", self.inlets.len() as u64),
            ("xsk_queues_gone", gone),
            ("xsk_unsent", unsent as u64),
            ("xsk_received", received),
            ("xsk_sent", self.links.sent),
            ("xsk_lost", lost),
            ("xsk_unreadable", unreadable),
            ("xsk_wakeups", wakeups),
            ("waits", waits),
            ("socket_lost", self.socket().lost()),
        ]
    }

    pub(super) fn socket(&self) -> &Socket {
        self.kernel.socket()
    }
}

#[cfg(test)]
mod tests;
