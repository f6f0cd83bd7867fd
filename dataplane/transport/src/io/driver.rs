//! How a worker's datagrams come and go: one interface over what the machine offers.
//!
//! A driver runs one [`Socket`] on one thread, and is made on that thread. A worker's turn:
//!
//! 1. [`Driver::receive`] hands over what is there, run by run, in the driver's own memory. What is
//!    to be sent on goes into the [`Outlet`] that comes with each run.
//! 2. [`Driver::room`] gives an empty buffer to write a run into, [`Driver::commit`] queues it, and
//!    [`Driver::flush`] has the kernel take all that was queued. `room` gives none while the driver
//!    holds all that it can: the caller goes on once [`Driver::wait`] says that there is room.
//! 3. [`Driver::wait`] sleeps until a datagram, room, a ring or the time-out.
//!
//! Neither what the network nor what a single datagram does stops a driver: errors are counted.

#[cfg(any(test, feature = "sim"))]
use super::simulated::{self, Simulated};
use super::{
    counters::IoCounters,
    mmsg::{self, Mmsg},
    socket::Socket,
    uring::{self, Uring},
    wake::{Ready, Wake},
    xsk::{self, Xsk, queue::Queue},
};
use std::{io, net::SocketAddr, sync::Arc};
use thiserror::Error;
use virga_ebpf::tables::NextHop;

/// Which driver is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Choice {
    /// io_uring where it can be had, else plain system calls.
    #[default]
    Auto,
    /// io_uring, or nothing.
    Uring,
    /// Plain system calls.
    Mmsg,
    /// AF_XDP where queues are given to it, and plain system calls beside.
    Xsk,
}

impl Choice {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Auto, Self::Uring, Self::Mmsg, Self::Xsk];

    /// What the configuration calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Mmsg => "mmsg",
            Self::Xsk => "xsk",
        }
    }
}

/// How long a wait that nothing else ends goes on once datagrams come, so that more come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// It ends with this many: runs of datagrams, and whatever else completes.
    pub completions: usize,
    /// It ends this long after it began, if there is one by then.
    pub within_us: u32,
}

/// How a driver shall run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverConfig {
    /// Which one.
    pub choice: Choice,
    /// Microseconds of busy polling. On io_uring waits poll the NIC's queue for so long before they sleep; elsewhere each call on a
    /// socket polls it once, and waits do it where the system's net.core.busy_poll says so.
    pub busy_poll_us: Option<u32>,
    /// Waits go on until datagrams come in numbers; where the driver is io_uring.
    pub batching: Option<Batching>,
}

/// Why there is no driver.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DriverError {
    /// The one that was asked for cannot run here; any other might.
    #[error(
        "the driver \"{driver}\" cannot run: {reason}; with driver = \"auto\" another one takes over"
    )]
    Refused {
        /// Its name.
        driver: &'static str,
        /// What refused it, and why that may be.
        reason: String,
    },
}

/// When the kernel got a run of datagrams: its network stack notes that as it takes packets from the NIC's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// Then, in nanoseconds since 1970 by the host's clock: one time for all of the run.
    At(u64),
    /// The kernel does not say; nobody may have asked it to.
    Untold,
    /// It did not pass the kernel's network stack: AF_XDP.
    Bypassed,
}

/// A run of datagrams of one source: each `segment_bytes` long, the last perhaps shorter.
#[derive(Debug)]
pub struct Run<'a> {
    /// Where they came from.
    pub source: SocketAddr,
    /// The interface that they came in on; 0 where the system does not say.
    pub ifindex: u32,
    /// The datagrams, one after another.
    pub bytes: &'a mut [u8],
    /// Bytes of each but the last; never 0.
    pub segment_bytes: usize,
    /// When the kernel got them, after [`Driver::set_stamped`].
    pub stamp: Stamp,
}

/// What became of a run of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// Taken, or counted as an error: nothing is left to do.
    Done,
    /// There is no room: the bytes from `from` on were not taken and may be offered again.
    Blocked {
        /// Where the rest of the run begins.
        from: usize,
    },
}

/// What moves a worker's datagrams.
#[derive(Debug)]
pub struct Driver {
    kind: Kind,
    why: String,
}

#[derive(Debug)]
enum Kind {
    Mmsg(Box<Mmsg>),
    Uring(Box<Uring>),
    Xsk(Box<Xsk>),
    #[cfg(any(test, feature = "sim"))]
    Simulated(Box<Simulated>),
}

/// Where a run goes out that is not the driver's to keep: it is sent or copied before
/// [`Outlet::send`] returns.
#[derive(Debug)]
pub enum Outlet<'a> {
    /// On plain system calls.
    Mmsg(&'a mut mmsg::Sender),
    /// On io_uring.
    Uring(&'a mut uring::Ring),
    /// On AF_XDP, or on plain system calls.
    Xsk(xsk::Outlet<'a>),
    /// On a network that is not there.
    #[cfg(any(test, feature = "sim"))]
    Simulated(&'a mut simulated::Sender),
}

impl Outlet<'_> {
    /// Sends a run of datagrams, each `segment_bytes` long but the last; by [`Driver::flush`] at
    /// the latest.
    pub fn send(&mut self, to: SocketAddr, run: &[u8], segment_bytes: usize) -> Sent {
        match self {
            Self::Mmsg(sender) => sender.send(to, run, segment_bytes),
            Self::Uring(ring) => ring.send(to, run, segment_bytes),
            Self::Xsk(outlet) => outlet.send(to, run, segment_bytes),
            #[cfg(any(test, feature = "sim"))]
            Self::Simulated(sender) => sender.send(to, run, segment_bytes),
        }
    }
}

impl Driver {
    /// Runs a socket; to be called on the thread that will use it. Whoever rings `wake` ends this
    /// driver's [`Driver::wait`].
    ///
    /// # Errors
    /// When the driver that the configuration insists on cannot run.
    pub fn open(
        socket: Socket,
        wake: Arc<Wake>,
        config: &DriverConfig,
    ) -> Result<Self, DriverError> {
        let asked = "the configuration asks for it";
        let (socket, wake, why) = match config.choice {
            Choice::Mmsg => (socket, wake, asked.to_owned()),
            Choice::Xsk => return Ok(Self::with_xsk(socket, wake, config)),
            Choice::Auto | Choice::Uring => match Uring::open(socket, wake, config) {
                Ok(uring) => return Ok(Self::with_uring(uring, config)),
                Err((_, _, reason)) if config.choice == Choice::Uring => {
                    let driver = config.choice.name();
                    return Err(DriverError::Refused { driver, reason });
                }
                Err(refused) => refused,
            },
        };
        Ok(Self::with_mmsg(socket, wake, config, why))
    }

    fn with_uring(uring: Uring, config: &DriverConfig) -> Self {
        let mut why = match config.choice {
            Choice::Uring => "the configuration asks for it".to_owned(),
            Choice::Auto | Choice::Mmsg | Choice::Xsk => {
                "it runs here, and needs the fewest calls a packet".to_owned()
            }
        };
        if let Some(busy_poll) = uring.busy_poll() {
            why = format!("{why}; {busy_poll}");
        }
        if let Some(batching) = config.batching {
            why = format!(
                "{why}; waits take {} completions, or {} µs",
                batching.completions, batching.within_us
            );
        }
        Self {
            kind: Kind::Uring(Box::new(uring)),
            why,
        }
    }

    fn with_xsk(socket: Socket, wake: Arc<Wake>, config: &DriverConfig) -> Self {
        let mut driver = Self {
            kind: Kind::Xsk(Box::new(Xsk::open(socket, wake, config.busy_poll_us))),
            why: String::new(),
        };
        driver.run_queues(Vec::new(), "no queue is given to it");
        driver
    }

    /// Gives AF_XDP sockets to a driver that runs them; any other closes them. `told` says which all of
    /// its queues are, or why there is none.
    pub fn run_queues(&mut self, queues: Vec<Queue>, told: &str) {
        if let Kind::Xsk(xsk) = &mut self.kind {
            let busy_poll = xsk.add(queues).map(|text| format!("; {text}"));
            let busy_poll: String = busy_poll.collect();
            self.why = format!("the configuration asks for it; {told}{busy_poll}");
        }
    }

    /// Next hops with all that an outer header says, where the driver writes headers: what goes to them
    /// leaves by a queue of their interface, if one is run, all else through the kernel.
    pub fn set_next_hops(&mut self, next_hops: Vec<NextHop>) {
        if let Kind::Xsk(xsk) = &mut self.kind {
            xsk.set_next_hops(next_hops);
        }
    }

    /// Has runs say from now on when the kernel got them, or no more.
    pub fn set_stamped(&mut self, is_stamped: bool) {
        if let Some(socket) = self.socket() {
            socket.set_stamped(is_stamped);
        }
    }

    fn with_mmsg(
        mut socket: Socket,
        wake: Arc<Wake>,
        config: &DriverConfig,
        mut why: String,
    ) -> Self {
        if let Some(us) = config.busy_poll_us {
            why = format!("{why}; {}", socket.busy_poll(us));
        }
        Self {
            kind: Kind::Mmsg(Box::new(Mmsg::open(socket, wake))),
            why,
        }
    }

    /// Hands over a bounded batch of what has arrived; whether there may be more already.
    pub fn receive(&mut self, handle: impl FnMut(&mut Outlet<'_>, Run<'_>)) -> bool {
        match &mut self.kind {
            Kind::Mmsg(mmsg) => mmsg.receive(handle),
            Kind::Uring(uring) => uring.receive(handle),
            Kind::Xsk(xsk) => xsk.receive(handle),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(simulated) => simulated.receive(handle),
        }
    }

    /// An empty buffer for the next run; `None` while there is no room for one.
    pub fn room(&mut self) -> Option<&mut Vec<u8>> {
        match &mut self.kind {
            Kind::Mmsg(mmsg) => mmsg.room(),
            Kind::Uring(uring) => uring.room(),
            Kind::Xsk(xsk) => xsk.room(),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(simulated) => simulated.room(),
        }
    }

    /// Queues what was written into the buffer of the last [`Driver::room`]: a run of datagrams,
    /// each `segment_bytes` long but the last. What is empty is not sent.
    pub fn commit(&mut self, to: SocketAddr, segment_bytes: usize) {
        match &mut self.kind {
            Kind::Mmsg(mmsg) => mmsg.commit(to, segment_bytes),
            Kind::Uring(uring) => uring.commit(to, segment_bytes),
            Kind::Xsk(xsk) => xsk.commit(to, segment_bytes),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(simulated) => simulated.commit(to, segment_bytes),
        }
    }

    /// Has the kernel take what is queued, as far as it has room; whether all of it was taken.
    pub fn flush(&mut self) -> bool {
        match &mut self.kind {
            Kind::Mmsg(mmsg) => mmsg.flush(),
            Kind::Uring(uring) => uring.flush(),
            Kind::Xsk(xsk) => xsk.flush(),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(simulated) => simulated.flush(),
        }
    }

    /// Waits until datagrams are there, until [`Driver::room`] has some again where it had none,
    /// for a ring, or until `timeout_ns` has passed (`None`: without end). Rings are forgotten with
    /// the wait that they ended.
    ///
    /// # Errors
    /// What the system says; an interrupting signal is not an error, the wait just ends.
    pub fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<Ready> {
        match &mut self.kind {
            Kind::Mmsg(mmsg) => mmsg.wait(timeout_ns),
            Kind::Uring(uring) => uring.wait(timeout_ns),
            Kind::Xsk(xsk) => xsk.wait(timeout_ns),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(simulated) => simulated.wait(timeout_ns),
        }
    }

    /// Where runs go out that the caller keeps.
    pub fn outlet(&mut self) -> Outlet<'_> {
        match &mut self.kind {
            Kind::Mmsg(mmsg) => mmsg.outlet(),
            Kind::Uring(uring) => uring.outlet(),
            Kind::Xsk(xsk) => xsk.outlet(),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(simulated) => simulated.outlet(),
        }
    }

    /// What the configuration calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Mmsg(_) => Choice::Mmsg.name(),
            Kind::Uring(_) => Choice::Uring.name(),
            Kind::Xsk(_) => Choice::Xsk.name(),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(_) => "simulated",
        }
    }

    /// Why this driver runs and no other: a sentence for whoever operates the node.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What was sent.
    #[must_use]
    pub fn sent(&self) -> &IoCounters {
        match &self.kind {
            Kind::Mmsg(mmsg) => mmsg.sent(),
            Kind::Uring(uring) => uring.sent(),
            Kind::Xsk(xsk) => xsk.sent(),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(simulated) => simulated.sent(),
        }
    }

    /// What was received.
    #[must_use]
    pub fn received(&self) -> &IoCounters {
        match &self.kind {
            Kind::Mmsg(mmsg) => mmsg.received(),
            Kind::Uring(uring) => uring.received(),
            Kind::Xsk(xsk) => xsk.received(),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(simulated) => simulated.received(),
        }
    }

    /// What this kind of driver counts beside, each with its label.
    #[must_use]
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        match &self.kind {
            Kind::Mmsg(mmsg) => mmsg.figures(),
            Kind::Uring(uring) => uring.figures(),
            Kind::Xsk(xsk) => xsk.figures(),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(simulated) => simulated.figures(),
        }
    }

    /// Its socket; none where there is no network.
    #[must_use]
    pub fn socket(&self) -> Option<&Socket> {
        match &self.kind {
            Kind::Mmsg(mmsg) => Some(mmsg.socket()),
            Kind::Uring(uring) => Some(uring.socket()),
            Kind::Xsk(xsk) => Some(xsk.socket()),
            #[cfg(any(test, feature = "sim"))]
            Kind::Simulated(_) => None,
        }
    }
}

#[cfg(any(test, feature = "sim"))]
impl Driver {
    /// The driver on a network that is not there.
    #[must_use]
    pub fn simulated(end: Simulated) -> Self {
        Self {
            kind: Kind::Simulated(Box::new(end)),
            why: "the network is not there".to_owned(),
        }
    }

    /// When a wait ends that began with no more than this to wait for: see [`Simulated::due_ns`]. `None`
    /// for a driver that waits by itself.
    #[must_use]
    pub fn due_ns(&self, deadline_ns: Option<u64>) -> Option<u64> {
        match &self.kind {
            Kind::Simulated(simulated) => simulated.due_ns(deadline_ns),
            Kind::Mmsg(_) | Kind::Uring(_) | Kind::Xsk(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
