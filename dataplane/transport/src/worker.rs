//! The worker: one thread that owns a socket, a [`Node`], a [`Forwarder`] and a [`Service`].
//!
//! Nothing that it owns is shared: others reach it by closures and commands over a bounded queue.
//! Each turn does a bounded amount of every kind of work, so that a flood on the socket starves
//! neither timers nor commands, and commands starve no packet.

use crate::{
    config::ConfigError,
    event::{Event, Heard, Toward, Watch},
    flow::Flow,
    forward::Forwarder,
    io::{
        clock::{Clock, Now},
        driver::{Driver, DriverConfig, DriverError},
    },
    limits::{DATAGRAM_BYTES_MIN, TRANSMIT_BYTES_MAX},
    node::Node,
    share::Share,
};
use std::{io, net::SocketAddr, ops::ControlFlow};
use thiserror::Error;
use virga_ebpf::tables::Address;

mod commander;
mod counters;
mod group;
mod inward;
mod mailbox;
#[cfg(any(test, feature = "sim"))]
pub mod stepped;
pub use crate::times::{Times, TimesSummary, WorkerTimes};
use commander::{Asked, Command};
pub use commander::{Commander, Refused, Task};
pub use counters::{Waiting, WorkerCounters};
pub use group::{Beginning, WorkerHandle, Workers, WorkersConfig, spawn_all};
use inward::{Inward, follow};
pub use mailbox::{HANDED_OVER_MAX, HANDSHAKES_HANDED_OVER_MAX};
use mailbox::{Mailbox, Slots};

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
/// How long a timer that is due waits at least while the socket has no room: what it has to send cannot
/// go, and the wait ends once it can.
const BLOCKED_NS_MIN: u64 = 1_000_000;
/// How long a stopping worker's peers have to acknowledge what was accepted for them.
const DRAIN_NS_MAX: u64 = 2_000_000_000;
/// How long a stopping worker goes on, so that its close frames get out.
const STOP_NS_MAX: u64 = DRAIN_NS_MAX + 500_000_000;

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
    /// Called once, before the sessions end; what their streams hold by then is still sent.
    fn stop(&mut self, now_ns: u64, node: &mut Node);
}

/// The NIC path's notes of echoes, as a worker reads them.
pub trait Echoes: Send {
    /// What came back of a link whose neighbour is at `from`, on the worker's clock. A place that has another link's
    /// gets this one's.
    fn heard(&mut self, watch: &Watch, from: Address) -> Heard;
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
    waiting: Waiting,
    times: WorkerTimes,
    driver: Driver,
    echoes: Option<Box<dyn Echoes>>,
}

impl<S> Parts<S> {
    fn new(
        (node, forwarder, service): (Node, Forwarder, S),
        (share, core): (Share, Option<usize>),
        driver: Driver,
    ) -> Self {
        Self {
            node,
            forwarder,
            service,
            share,
            core,
            counters: WorkerCounters::default(),
            waiting: Waiting::default(),
            times: WorkerTimes::default(),
            driver,
            echoes: None,
        }
    }

    /// Has links heard by what the NIC path notes, too.
    pub fn set_echoes(&mut self, echoes: Box<dyn Echoes>) {
        self.echoes = Some(echoes);
    }

    /// Times messages from now on, or none any more; gives back what was there.
    pub fn set_flow(&mut self, flow: Option<Box<Flow>>) -> Option<Box<Flow>> {
        self.driver.set_stamped(flow.is_some());
        self.node.set_flow(flow)
    }

    /// What the worker counted.
    #[must_use]
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// What waited for it when this turn began.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        self.waiting
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

/// What makes workers.
pub struct Worker<S: Service, C = Clock> {
    parts: Parts<S>,
    commands: crossbeam_channel::Receiver<Asked<S>>,
    mailbox: Mailbox,
    slots: Slots,
    clock: C,
    stopping_since_ns: Option<u64>,
    /// The driver had no room for what the node may have to send.
    is_blocked: bool,
}

/// What became of one transmit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Taken,
    Nothing,
    NoRoom,
}

impl<S: Service, C: Now> Worker<S, C> {
    fn new(
        parts: Parts<S>,
        commands: crossbeam_channel::Receiver<Asked<S>>,
        (mailbox, slots): (Mailbox, Slots),
        clock: C,
    ) -> Self {
        Self {
            parts,
            commands,
            mailbox,
            slots,
            clock,
            stopping_since_ns: None,
            is_blocked: false,
        }
    }

    fn run(mut self) -> io::Result<()> {
        self.start();
        while let ControlFlow::Continue(timeout_ns) = self.go_on() {
            // Each turn looks after everything, whatever ended the wait.
            let _ready = self.parts.driver.wait(timeout_ns)?;
        }
        Ok(())
    }

    fn start(&mut self) {
        let now_ns = self.clock.now_ns();
        self.parts.service.start(now_ns, &mut self.parts.node);
    }

    /// One turn, and how long the driver waits before the next (`None`: until something comes), or that there is
    /// none.
    fn go_on(&mut self) -> ControlFlow<(), Option<u64>> {
        let more = self.turn();
        if self.has_stopped(more) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(if more { Some(0) } else { self.sleep_ns() })
    }

    /// One turn; whether some kind of work was cut short and waits for the next.
    fn turn(&mut self) -> bool {
        self.parts.counters.turns += 1;
        self.parts.waiting = Waiting {
            commands: self.commands.len(),
            handed_over: self.mailbox.len(),
        };
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
        for n in 0..TAKEN_OVER_PER_TURN {
            let Some(mut parcel) = self.mailbox.next_parcel(n) else {
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
        let Parts {
            node,
            forwarder,
            service,
            echoes,
            ..
        } = &mut self.parts;
        if node.poll_timeout().is_some_and(|due| due <= now_ns) {
            node.take_echoes(now_ns, |watch| {
                let Some(from) = forwarder.neighbours_address(watch.peer) else {
                    return Heard::default();
                };
                let here = forwarder.heard(watch, from);
                let nic = echoes.as_mut().map(|nic| nic.heard(watch, from));
                let nic = nic.unwrap_or_default();
                Heard {
                    worker_ns: here.worker_ns.max(nic.worker_ns),
                    ..nic
                }
            });
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
        let mut steps = (0..TRANSMITS_PER_TURN).map(|_| self.transmit_one());
        let last = steps.find(|&step| step != Step::Taken);
        self.is_blocked = last == Some(Step::NoRoom);
        let more = last.is_none();
        // Where there is still no room for all of it, the wait ends once there is.
        let Parts { node, driver, .. } = &mut self.parts;
        let has_flushed = driver.flush();
        if let (true, Some(flow)) = (has_flushed, node.flow_mut()) {
            flow.flushed();
        }
        let has_room = has_flushed && driver.room().is_some();
        if self.is_blocked && has_room {
            self.is_blocked = false;
            return true;
        }
        more
    }

    fn transmit_one(&mut self) -> Step {
        let Parts {
            node,
            forwarder,
            counters,
            driver,
            ..
        } = &mut self.parts;
        let Some(buffer) = driver.room() else {
            return Step::NoRoom;
        };
        let Some(transmit) = node.poll_transmit(self.clock.now_ns(), buffer) else {
            return Step::Nothing;
        };
        debug_assert!(
            transmit.bytes <= TRANSMIT_BYTES_MAX || transmit.bytes == transmit.segment_bytes
        );
        debug_assert_eq!(transmit.bytes, buffer.len());
        let datagrams = transmit.bytes.div_ceil(transmit.segment_bytes.max(1)) as u64;
        let way = match transmit.toward {
            Toward::Link => forwarder.link(transmit.destination),
            Toward::Route | Toward::Address(_) => forwarder.way(transmit.destination),
        };
        match way {
            // A link that this machine itself knows to be down carries no keepalive.
            None if transmit.toward == Toward::Link => {}
            None => counters.unroutable += datagrams,
            Some(way)
                if transmit.segment_bytes > way.datagram_bytes_max.max(DATAGRAM_BYTES_MIN) =>
            {
                counters.too_big += datagrams;
                node.limit_datagrams(transmit.destination, way.datagram_bytes_max);
            }
            Some(way) => {
                let to = match transmit.toward {
                    Toward::Address(address) => address,
                    Toward::Route | Toward::Link => way.to,
                };
                way.tag(buffer, transmit.segment_bytes);
                driver.commit(to, transmit.segment_bytes);
            }
        }
        Step::Taken
    }

    /// How long there is nothing to do; `None`: until something comes.
    fn sleep_ns(&self) -> Option<u64> {
        let stop = self.stopping_since_ns.map(|since| since + STOP_NS_MAX);
        let timers = [
            self.parts.node.poll_timeout(),
            self.parts.service.poll_timeout(),
            stop,
        ];
        let due_ns = timers.into_iter().flatten().min()?;
        Some(pause_ns(self.clock.now_ns(), due_ns, self.is_blocked))
    }

    fn begin_stop(&mut self, now_ns: u64) {
        if self.stopping_since_ns.is_some() {
            return;
        }
        self.stopping_since_ns = Some(now_ns);
        let Parts { node, service, .. } = &mut self.parts;
        service.stop(now_ns, node);
        node.stop(now_ns, now_ns + DRAIN_NS_MAX);
    }

    /// Stopped once the peers have what was accepted for them and all are told of the end, or when that
    /// took too long.
    fn has_stopped(&mut self, more: bool) -> bool {
        let Some(since_ns) = self.stopping_since_ns else {
            return false;
        };
        let now_ns = self.clock.now_ns();
        if now_ns.saturating_sub(since_ns) >= STOP_NS_MAX {
            return true;
        }
        let Parts { node, driver, .. } = &mut self.parts;
        !more && !node.is_draining() && driver.flush()
    }
}

/// How long to wait for a timer.
fn pause_ns(now_ns: u64, due_ns: u64, is_blocked: bool) -> u64 {
    let least_ns = if is_blocked { BLOCKED_NS_MIN } else { 0 };
    due_ns.saturating_sub(now_ns).max(least_ns)
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests;
