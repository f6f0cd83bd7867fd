//! The worker: one thread that owns a socket, a [`Node`], a [`Forwarder`] and a [`Service`].
//!
//! Nothing that it owns is shared: others reach it by closures and commands over a bounded queue.
//! Each turn does a bounded amount of every kind of work, so that a flood on the socket starves
//! neither timers nor commands, and commands starve no packet.

use crate::{
    config::ConfigError,
    event::Event,
    forward::{Forwarder, Forwarding},
    io::{
        clock::Clock,
        driver::{Driver, DriverConfig, DriverError, Outlet, Run, Sent},
    },
    limits::{DATAGRAM_BYTES_MIN, TRANSMIT_BYTES_MAX},
    node::Node,
    share::Share,
};
use std::{io, net::SocketAddr};
use thiserror::Error;

mod commander;
mod group;
mod mailbox;
mod times;
use commander::{Asked, Command};
pub use commander::{Commander, Refused, Task};
pub use group::{Beginning, WorkerHandle, Workers, WorkersConfig, spawn_all};
pub use mailbox::HANDED_OVER_MAX;
use mailbox::{Mailbox, Slots};
pub use times::{Times, TimesSummary, WorkerTimes};

/// Commands that wait for the worker at most; one more is refused to its sender.
pub const COMMANDS_MAX: usize = 1_024;
/// Commands of one turn.
const COMMANDS_PER_TURN: usize = 64;
/// Receive calls of one turn.
const RECEIVES_PER_TURN: usize = 4;
/// Datagrams of one turn that other workers handed over.
const TAKEN_OVER_PER_TURN: usize = 256;
/// Events of one turn.
const EVENTS_PER_TURN: usize = 4_096;
/// Transmits of one turn.
const TRANSMITS_PER_TURN: usize = 64;
/// How long a stopping worker goes on, so that its close frames get out.
const STOP_NS_MAX: u64 = 1_000_000_000;

const _: () = assert!(COMMANDS_PER_TURN <= COMMANDS_MAX);

/// What runs above the sessions, on the worker's thread: it is told everything and never waits.
pub trait Service: Send + 'static {
    /// What other threads can ask of it.
    type Command: Send + 'static;

    /// Called once, before anything else.
    fn start(&mut self, now_ns: u64, node: &mut Node);
    /// Something happened on a session.
    fn on_event(&mut self, now_ns: u64, node: &mut Node, event: Event);
    /// Another thread asks.
    fn on_command(&mut self, now_ns: u64, node: &mut Node, command: Self::Command);
    /// When [`Service::handle_timeout`] is due.
    fn poll_timeout(&self) -> Option<u64>;
    /// Does what is due.
    fn handle_timeout(&mut self, now_ns: u64, node: &mut Node);
    /// Called once, before the sessions are closed.
    fn stop(&mut self, now_ns: u64, node: &mut Node);
}

/// How a worker shall run.
#[derive(Clone, Copy, Debug)]
pub struct WorkerConfig {
    /// Where its UDP socket listens.
    pub listen: SocketAddr,
    /// The core that it stays on.
    pub core: Option<usize>,
    /// What moves its datagrams.
    pub driver: DriverConfig,
}

/// Why there is no worker.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The address could not be bound.
    #[error(
        "cannot listen on UDP {address}: {source}; is another node running there, and is the address this machine's?"
    )]
    Bind {
        /// Which one.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The worker cannot stay on the core that it shall stay on.
    #[error(
        "the worker cannot stay on core {core}: it is offline, or this process may not use it; name another core, or none"
    )]
    Core {
        /// Which one.
        core: usize,
    },
    /// The driver that the configuration insists on cannot run.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The system gave no eventfd or thread.
    #[error("cannot start a worker thread: {0}")]
    System(#[from] io::Error),
    /// The node's configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What the worker itself counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerCounters {
    /// Turns of its loop.
    pub turns: u64,
    /// Datagrams that were sent on, or were to be.
    pub forwarded: u64,
    /// Datagrams that were to be sent on while the socket was full: lost.
    pub forward_blocked: u64,
    /// Datagrams of this node's own to a node that no live next hop leads to: lost.
    pub unroutable: u64,
    /// Datagrams of this node's own that the next hop's link does not take: lost, and the session was
    /// told. Probes of the packet size end so.
    pub too_big: u64,
    /// Commands taken.
    pub commands: u64,
    /// Datagrams that were another worker's, and were handed over.
    pub handed_over: u64,
    /// Datagrams that were another worker's, whose ring was full: lost.
    pub hand_over_full: u64,
    /// Datagrams that other workers handed over.
    pub taken_over: u64,
}

/// All that a worker owns and others may look at and change, on its thread.
pub struct Parts<S> {
    /// The protocol.
    pub node: Node,
    /// The routes, and the decisions over what arrives.
    pub forwarder: Forwarder,
    /// What runs above.
    pub service: S,
    share: Share,
    core: Option<usize>,
    counters: WorkerCounters,
    times: WorkerTimes,
    driver: Driver,
}

impl<S> Parts<S> {
    /// What the worker counted.
    #[must_use]
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// How long its work took and waited.
    #[must_use]
    pub fn times(&self) -> &WorkerTimes {
        &self.times
    }

    /// Which of the node's workers this is.
    #[must_use]
    pub fn share(&self) -> Share {
        self.share
    }

    /// The core that it stays on.
    #[must_use]
    pub fn core(&self) -> Option<usize> {
        self.core
    }

    /// What moves its datagrams, to be changed.
    pub fn driver_mut(&mut self) -> &mut Driver {
        &mut self.driver
    }

    /// What moves its datagrams, and what that counted.
    #[must_use]
    pub fn driver(&self) -> &Driver {
        &self.driver
    }
}

/// Why a worker ended.
#[derive(Debug)]
pub enum Exit {
    /// It was asked to, and its sessions are closed.
    Stopped,
    /// It panicked; the message.
    Panicked(String),
    /// The operating system refused to let it wait.
    System(io::Error),
}

/// What a datagram meets on its way in.
struct Inward<'a, S> {
    node: &'a mut Node,
    forwarder: &'a mut Forwarder,
    service: &'a mut S,
    counters: &'a mut WorkerCounters,
    others: &'a mut Slots,
}

impl<S: Service> Inward<'_, S> {
    /// Sends on what is for others, and hands over what is for this node.
    fn take_in(&mut self, now_ns: u64, outlet: &mut Outlet<'_>, run: Run<'_>) {
        let mut onward = Onward::new(run.segment_bytes);
        for at in (0..run.bytes.len()).step_by(run.segment_bytes) {
            let end = run.bytes.len().min(at + run.segment_bytes);
            let datagram = &mut run.bytes[at..end];
            match self
                .forwarder
                .handle(now_ns, run.ifindex, run.source, datagram)
            {
                Forwarding::Forward { to } => {
                    self.counters.forwarded += 1;
                    if !onward.extend(to, at, end) {
                        self.counters.forward_blocked += onward.flush(outlet, run.bytes);
                        onward.begin(to, at, end);
                    }
                }
                Forwarding::Local => self.deliver(now_ns, run.source, datagram),
                // The forwarder has counted it.
                Forwarding::Drop(_) => {}
            }
        }
        self.counters.forward_blocked += onward.flush(outlet, run.bytes);
    }

    /// Opens a datagram, or hands it over to the worker whose session it is.
    fn deliver(&mut self, now_ns: u64, source: SocketAddr, datagram: &mut [u8]) {
        let Some(owner) = self.others.other_owner(datagram) else {
            return self.open(now_ns, source, datagram);
        };
        if self.others.hand_over(now_ns, owner, source, datagram) {
            self.counters.handed_over += 1;
        } else {
            self.counters.hand_over_full += 1;
        }
    }

    /// Opens a datagram and tells the service at once: the node holds only so many unread events.
    fn open(&mut self, now_ns: u64, source: SocketAddr, datagram: &mut [u8]) {
        // The node counts what it drops.
        let _counted = self.node.handle(now_ns, source, datagram);
        while let Some(event) = self.node.poll() {
            follow(self.forwarder, &event);
            self.service.on_event(now_ns, self.node, event);
        }
    }
}

/// A neighbour that moved is sent to where it is.
fn follow(forwarder: &mut Forwarder, event: &Event) {
    if let Event::AddressChanged { peer, address } = event {
        forwarder.follow(*peer, *address);
    }
}

/// What makes workers.
pub struct Worker<S: Service> {
    parts: Parts<S>,
    commands: crossbeam_channel::Receiver<Asked<S>>,
    mailbox: Mailbox,
    slots: Slots,
    clock: Clock,
    stopping_since_ns: Option<u64>,
}

impl<S: Service> Worker<S> {
    fn run(mut self) -> io::Result<()> {
        let now_ns = self.clock.now_ns();
        self.parts.service.start(now_ns, &mut self.parts.node);
        loop {
            let more = self.turn();
            if self.has_stopped(more) {
                return Ok(());
            }
            let timeout_ns = if more { Some(0) } else { self.sleep_ns() };
            // Each turn looks after everything, whatever ended the wait.
            let _ready = self.parts.driver.wait(timeout_ns)?;
        }
    }

    /// One turn; whether some kind of work was cut short and waits for the next.
    fn turn(&mut self) -> bool {
        self.parts.counters.turns += 1;
        let more_commands = self.take_commands();
        let more_datagrams = self.receive() | self.take_over();
        self.handle_timeouts();
        self.handle_events();
        let more_transmits = self.transmit();
        // Sending has made room: who waits for it is told now, not when something else ends the wait.
        let has_told = self.handle_events();
        more_commands || more_datagrams || more_transmits || has_told
    }

    fn take_commands(&mut self) -> bool {
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(asked) = self.commands.try_recv() else {
                return false;
            };
            let now_ns = self.clock.now_ns();
            let Parts {
                node,
                service,
                counters,
                times,
                ..
            } = &mut self.parts;
            counters.commands += 1;
            times
                .command_wait
                .record(now_ns.saturating_sub(asked.asked_ns));
            match asked.command {
                Command::Service(command) => service.on_command(now_ns, node, command),
                Command::Task(task) => task(now_ns, &mut self.parts),
                Command::Stop => self.begin_stop(now_ns),
            }
        }
        !self.commands.is_empty()
    }

    fn receive(&mut self) -> bool {
        let Parts {
            node,
            forwarder,
            service,
            counters,
            times,
            driver,
            ..
        } = &mut self.parts;
        let mut inward = Inward {
            node,
            forwarder,
            service,
            counters,
            others: &mut self.slots,
        };
        let clock = &self.clock;
        let mut first_ns = None;
        let more = (0..RECEIVES_PER_TURN).all(|_| {
            driver.receive(|outlet, run| {
                let now_ns = clock.now_ns();
                first_ns.get_or_insert(now_ns);
                inward.take_in(now_ns, outlet, run);
            })
        });
        if let Some(first_ns) = first_ns {
            times
                .handling
                .record(clock.now_ns().saturating_sub(first_ns));
        }
        self.slots.ring();
        more
    }

    /// Takes what other workers handed over.
    fn take_over(&mut self) -> bool {
        for _ in 0..TAKEN_OVER_PER_TURN {
            let Some(mut parcel) = self.mailbox.next_parcel() else {
                return false;
            };
            let Parts {
                node,
                forwarder,
                service,
                counters,
                times,
                ..
            } = &mut self.parts;
            let now_ns = self.clock.now_ns();
            counters.taken_over += 1;
            times
                .hand_over_wait
                .record(now_ns.saturating_sub(parcel.handed_ns));
            let mut inward = Inward {
                node,
                forwarder,
                service,
                counters,
                others: &mut self.slots,
            };
            inward.open(now_ns, parcel.source, &mut parcel.datagram);
            self.mailbox.give_back(parcel);
        }
        !self.mailbox.is_empty()
    }

    fn handle_timeouts(&mut self) {
        let now_ns = self.clock.now_ns();
        let Parts { node, service, .. } = &mut self.parts;
        if node.poll_timeout().is_some_and(|due| due <= now_ns) {
            node.handle_timeout(now_ns);
        }
        if service.poll_timeout().is_some_and(|due| due <= now_ns) {
            service.handle_timeout(now_ns, node);
        }
    }

    /// Tells the service what happened; whether there was anything to tell.
    fn handle_events(&mut self) -> bool {
        let now_ns = self.clock.now_ns();
        let Parts {
            node,
            forwarder,
            service,
            ..
        } = &mut self.parts;
        let mut has_told = false;
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = node.poll() else {
                break;
            };
            follow(forwarder, &event);
            service.on_event(now_ns, node, event);
            has_told = true;
        }
        has_told
    }

    /// Sends what the node has, and what was to be sent on.
    fn transmit(&mut self) -> bool {
        let more = (0..TRANSMITS_PER_TURN).all(|_| self.transmit_one());
        // Where there was no room for all of it, the wait ends once there is.
        let _rest_goes_later = self.parts.driver.flush();
        more
    }

    fn transmit_one(&mut self) -> bool {
        let Parts {
            node,
            forwarder,
            counters,
            driver,
            ..
        } = &mut self.parts;
        let Some(buffer) = driver.room() else {
            return false;
        };
        let Some(transmit) = node.poll_transmit(self.clock.now_ns(), buffer) else {
            return false;
        };
        debug_assert!(
            transmit.bytes <= TRANSMIT_BYTES_MAX || transmit.bytes == transmit.segment_bytes
        );
        debug_assert_eq!(transmit.bytes, buffer.len());
        let datagrams = transmit.bytes.div_ceil(transmit.segment_bytes.max(1)) as u64;
        match forwarder.way(transmit.destination) {
            None => counters.unroutable += datagrams,
            Some(way)
                if transmit.segment_bytes > way.datagram_bytes_max.max(DATAGRAM_BYTES_MIN) =>
            {
                counters.too_big += datagrams;
                node.limit_datagrams(transmit.destination, way.datagram_bytes_max);
            }
            Some(way) => {
                let to = transmit.address.unwrap_or(way.to);
                driver.commit(to, transmit.segment_bytes);
            }
        }
        true
    }

    /// How long there is nothing to do; `None`: until something comes.
    fn sleep_ns(&self) -> Option<u64> {
        let now_ns = self.clock.now_ns();
        let stop = self.stopping_since_ns.map(|since| since + STOP_NS_MAX);
        [
            self.parts.node.poll_timeout(),
            self.parts.service.poll_timeout(),
            stop,
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|due| due.saturating_sub(now_ns))
    }

    fn begin_stop(&mut self, now_ns: u64) {
        if self.stopping_since_ns.is_some() {
            return;
        }
        self.stopping_since_ns = Some(now_ns);
        let Parts { node, service, .. } = &mut self.parts;
        service.stop(now_ns, node);
        let peers: Vec<_> = node.sessions().map(|session| session.peer).collect();
        for peer in peers {
            node.close(now_ns, peer);
        }
    }

    /// Stopped once nothing is left to send, or when that took too long.
    fn has_stopped(&mut self, more: bool) -> bool {
        let Some(since_ns) = self.stopping_since_ns else {
            return false;
        };
        let late = self.clock.now_ns().saturating_sub(since_ns) >= STOP_NS_MAX;
        late || !more && self.parts.driver.flush()
    }
}

/// Neighbouring datagrams of one received run that go to the same next hop: sent on in one call.
struct Onward {
    segment_bytes: usize,
    to: Option<SocketAddr>,
    from: usize,
    end: usize,
}

impl Onward {
    fn new(segment_bytes: usize) -> Self {
        Self {
            segment_bytes,
            to: None,
            from: 0,
            end: 0,
        }
    }

    /// Takes the datagram in when it follows the others and goes the same way.
    fn extend(&mut self, to: SocketAddr, at: usize, end: usize) -> bool {
        let fits = self.to == Some(to) && self.end == at && end - self.from <= TRANSMIT_BYTES_MAX;
        if fits {
            self.end = end;
        }
        fits
    }

    fn begin(&mut self, to: SocketAddr, at: usize, end: usize) {
        self.to = Some(to);
        self.from = at;
        self.end = end;
    }

    /// Sends what was taken in; for how many datagrams there was no room.
    fn flush(&mut self, outlet: &mut Outlet<'_>, run: &[u8]) -> u64 {
        let Some(to) = self.to.take() else {
            return 0;
        };
        let bytes = &run[self.from..self.end];
        match outlet.send(to, bytes, self.segment_bytes) {
            Sent::Done => 0,
            Sent::Blocked { from } => (bytes.len() - from).div_ceil(self.segment_bytes) as u64,
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests;
