//! A queue that only sends: frames are written where the kernel, or the NIC, takes them from. Nothing is received on it, as no
//! XDP program knows of it.

use super::queue::{Outflow, Queue, Unsent};
use crate::io::wake::timespec;
use rustix::event::{PollFd, PollFlags, poll};
use std::{io, os::fd::AsFd as _};

/// See the module.
#[derive(Debug)]
pub struct Sender {
    queue: Queue,
}

impl From<Queue> for Sender {
    fn from(queue: Queue) -> Self {
        Self { queue }
    }
}

impl Sender {
    fn outflow(&mut self) -> &mut Outflow {
        &mut self.queue.outflow
    }

    /// Whether there is room for a frame, after a look at what has been sent.
    pub fn has_room(&mut self) -> bool {
        self.outflow().has_room()
    }

    /// Queues what is written into a frame; it may have been sent before, and holds what it held then. The closure says how
    /// many bytes that are, `None` where the frame is too small.
    ///
    /// # Errors
    /// When there is no room, or it does not fit.
    pub fn put(&mut self, write: impl FnOnce(&mut [u8]) -> Option<u32>) -> Result<(), Unsent> {
        self.outflow().put_with(write)
    }

    /// Has the kernel send what is queued, and takes back the frames of what was sent.
    pub fn kick(&mut self) {
        self.outflow().kick();
    }

    /// Packets queued that have not been sent yet.
    #[must_use]
    pub fn on_the_way(&self) -> usize {
        self.queue.outflow.on_the_way()
    }

    /// Whether the interface is gone or down: nothing is sent any more.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.queue.outflow.is_dead() || self.queue.outflow.is_down()
    }

    /// Calls into the kernel so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.queue.outflow.wakeups()
    }

    /// Waits until there may be room, or the time is over.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn wait(&self, timeout_ns: u64) -> io::Result<()> {
        let mut fds = [PollFd::from_borrowed_fd(self.queue.as_fd(), PollFlags::OUT)];
        match poll(&mut fds, Some(&timespec(timeout_ns))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
