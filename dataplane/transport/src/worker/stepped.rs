//! A worker without a thread: whoever has it gives it its turns, on a clock that goes when it is told to. Its loop, its
//! queues and its rings are every worker's; the driver is the one on a network that is not there.

use super::{
    Beginning, COMMANDS_MAX, Command, Commander, Parts, Service, Worker, WorkerError, mailbox,
};
use crate::{
    io::{
        clock::Now,
        driver::Driver,
        simulated::{Interface, VirtualClock, Wire},
        wake::Wake,
    },
    node::Node,
    share::Share,
};
use std::{io, net::SocketAddr, ops::ControlFlow, sync::Arc};

/// A worker that somebody has in hand.
pub struct Stepped<S: Service> {
    worker: Worker<S, VirtualClock>,
    commander: Commander<S, VirtualClock>,
    state: State,
}

/// How far its loop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Begun,
    /// It waits, until then at the latest.
    Waiting(Option<u64>),
    Stopped,
}

/// The workers of one node at one address of a wire, in the order of their shares: what
/// [`super::spawn_all`] is for threads.
///
/// # Errors
/// See [`WorkerError`].
pub fn attach_all<S: Service>(
    wire: &Wire,
    (address, interface): (SocketAddr, Interface),
    workers: usize,
    mut beginning: impl FnMut(Share) -> Beginning<S>,
) -> Result<Vec<Stepped<S>>, WorkerError> {
    let shares: Vec<Share> = Share::split(workers).collect();
    let wakes = shares.iter().map(|_| Ok(Arc::new(Wake::new()?)));
    let wakes = wakes.collect::<io::Result<Vec<_>>>()?;
    let rings = mailbox::connect(&wakes);
    let seats = shares.into_iter().zip(wakes).zip(rings);
    let attach = |((share, wake), rings)| {
        let Beginning {
            node,
            forwarder,
            service,
        } = beginning(share);
        let clock = wire.clock();
        let node = Node::new(node, clock.now_ns())?;
        let end = wire.attach(address, interface, Arc::clone(&wake));
        let driver = Driver::simulated(end);
        let parts = Parts::new((node, forwarder, service), (share, None), driver);
        let (commands_in, commands) = crossbeam_channel::bounded(COMMANDS_MAX);
        Ok(Stepped {
            worker: Worker::new(parts, commands, rings, clock.clone()),
            commander: Commander {
                commands: commands_in,
                wake,
                clock,
            },
            state: State::Begun,
        })
    };
    seats.map(attach).collect()
}

impl<S: Service> Stepped<S> {
    /// How to reach it, as other threads would.
    #[must_use]
    pub fn commander(&self) -> &Commander<S, VirtualClock> {
        &self.commander
    }

    /// What it owns.
    #[must_use]
    pub fn parts(&self) -> &Parts<S> {
        &self.worker.parts
    }

    /// The same, to be changed, as between two turns.
    pub fn parts_mut(&mut self) -> &mut Parts<S> {
        &mut self.worker.parts
    }

    /// Asks it to end, once its queue has room: no new work; its peers get what was accepted for them, within a
    /// bounded time. Whether there was room.
    #[must_use]
    pub fn stop(&self) -> bool {
        let stop = self.commander.asked(Command::Stop);
        let is_taken = self.commander.commands.try_send(stop).is_ok();
        self.commander.wake.ring();
        is_taken
    }

    /// Whether it has.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// When its wait ends; `None`: with what is still to come, or never.
    #[must_use]
    pub fn due_ns(&self) -> Option<u64> {
        match self.state {
            State::Begun => Some(self.worker.clock.now_ns()),
            State::Waiting(deadline_ns) => self.worker.parts.driver.due_ns(deadline_ns),
            State::Stopped => None,
        }
    }

    /// Ends its wait and gives it one turn.
    ///
    /// # Errors
    /// What the driver's wait says.
    pub fn turn(&mut self) -> io::Result<()> {
        let now_ns = self.worker.clock.now_ns();
        match self.state {
            State::Begun => self.worker.start(),
            State::Waiting(deadline_ns) => {
                let left_ns = deadline_ns.map(|deadline_ns| deadline_ns.saturating_sub(now_ns));
                let _ready = self.worker.parts.driver.wait(left_ns)?;
            }
            State::Stopped => return Ok(()),
        }
        self.state = match self.worker.go_on() {
            ControlFlow::Continue(wait_ns) => {
                State::Waiting(wait_ns.map(|wait_ns| now_ns.saturating_add(wait_ns)))
            }
            ControlFlow::Break(()) => State::Stopped,
        };
        Ok(())
    }
}
