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

use super::{
    counters::IoCounters,
    mmsg::{self, Mmsg},
    socket::Socket,
    wake::{Ready, Wake},
};
use std::{io, net::SocketAddr, sync::Arc};

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
pub enum Driver {
    /// `recvmmsg` and `sendmsg`.
    Mmsg(Mmsg),
}

/// Where a run goes out that is not the caller's to keep: it is sent or copied before
/// [`Outlet::send`] returns.
#[derive(Debug)]
pub enum Outlet<'a> {
    /// Of [`Driver::Mmsg`].
    Mmsg(&'a mut mmsg::Sender),
}

impl Outlet<'_> {
    /// Sends a run of datagrams, each `segment_bytes` long but the last.
    pub fn send(&mut self, to: SocketAddr, run: &[u8], segment_bytes: usize) -> Sent {
        match self {
            Self::Mmsg(sender) => sender.send(to, run, segment_bytes),
        }
    }
}

impl Driver {
    /// Runs a socket; to be called on the thread that will use it. Whoever rings `wake` ends this
    /// driver's [`Driver::wait`].
    #[must_use]
    pub fn open(socket: Socket, wake: Arc<Wake>) -> Self {
        Self::Mmsg(Mmsg::open(socket, wake))
    }

    /// Hands over a bounded batch of what has arrived; whether there may be more already.
    pub fn receive(&mut self, handle: impl FnMut(&mut Outlet<'_>, Run<'_>)) -> bool {
        match self {
            Self::Mmsg(mmsg) => mmsg.receive(handle),
        }
    }

    /// An empty buffer for the next run; `None` while there is no room for one.
    pub fn room(&mut self) -> Option<&mut Vec<u8>> {
        match self {
            Self::Mmsg(mmsg) => mmsg.room(),
        }
    }

    /// Queues what was written into the buffer of the last [`Driver::room`]: a run of datagrams,
    /// each `segment_bytes` long but the last. What is empty is not sent.
    pub fn commit(&mut self, to: SocketAddr, segment_bytes: usize) {
        match self {
            Self::Mmsg(mmsg) => mmsg.commit(to, segment_bytes),
        }
    }

    /// Has the kernel take what is queued, as far as it has room; whether all of it was taken.
    pub fn flush(&mut self) -> bool {
        match self {
            Self::Mmsg(mmsg) => mmsg.flush(),
        }
    }

    /// Waits until datagrams are there, until [`Driver::room`] has some again where it had none,
    /// for a ring, or until `timeout_ns` has passed (`None`: without end). Rings are forgotten with
    /// the wait that they ended.
    ///
    /// # Errors
    /// What the system says; an interrupting signal is not an error, the wait just ends.
    pub fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<Ready> {
        match self {
            Self::Mmsg(mmsg) => mmsg.wait(timeout_ns),
        }
    }

    /// Where runs go out that the caller keeps.
    pub fn outlet(&mut self) -> Outlet<'_> {
        match self {
            Self::Mmsg(mmsg) => mmsg.outlet(),
        }
    }

    /// What the configuration calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mmsg(_) => "mmsg",
        }
    }

    /// Why this driver runs and no other: a sentence for whoever operates the node.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Mmsg(_) => "plain system calls work on every kernel",
        }
    }

    /// What was sent.
    #[must_use]
    pub fn sent(&self) -> &IoCounters {
        match self {
            Self::Mmsg(mmsg) => mmsg.sent(),
        }
    }

    /// What was received.
    #[must_use]
    pub fn received(&self) -> &IoCounters {
        match self {
            Self::Mmsg(mmsg) => mmsg.received(),
        }
    }

    /// What this kind of driver counts beside, each with its label.
    #[must_use]
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Mmsg(mmsg) => mmsg.figures(),
        }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Mmsg(mmsg) => mmsg.socket(),
        }
    }
}

#[cfg(test)]
mod tests;
