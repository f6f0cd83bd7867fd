//! How other threads reach a worker: commands and closures over a bounded queue.

use super::{Parts, Service};
use crate::io::{
    clock::{Clock, Now},
    wake::Wake,
};
use std::sync::Arc;

/// A closure that runs on the worker's thread.
pub type Task<S> = Box<dyn FnOnce(u64, &mut Parts<S>) + Send>;

pub(super) enum Command<S: Service> {
    Service(S::Command),
    Task(Task<S>),
    Stop,
}

/// A command, and when it was asked.
pub(super) struct Asked<S: Service> {
    pub(super) asked_ns: u64,
    pub(super) command: Command<S>,
}

/// A command that the worker did not take; it is the caller's again.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<C> {
    /// [`super::COMMANDS_MAX`] are waiting already.
    Full(C),
    /// The worker has ended.
    Ended(C),
}

/// How other threads reach a worker; clone it freely.
pub struct Commander<S: Service, C = Clock> {
    pub(super) commands: crossbeam_channel::Sender<Asked<S>>,
    pub(super) wake: Arc<Wake>,
    pub(super) clock: C,
}

impl<S: Service, C: Clone> Clone for Commander<S, C> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            wake: Arc::clone(&self.wake),
            clock: self.clock.clone(),
        }
    }
}

impl<S: Service, C: Now> Commander<S, C> {
    /// Has the service do something.
    ///
    /// # Errors
    /// Gives the command back when the queue is full or the worker has ended.
    pub fn command(&self, command: S::Command) -> Result<(), Refused<S::Command>> {
        self.offer(Command::Service(command))
            .map_err(|refused| match refused {
                Refused::Full(Command::Service(command)) => Refused::Full(command),
                Refused::Ended(Command::Service(command)) => Refused::Ended(command),
                _ => unreachable!("what was offered comes back"),
            })
    }

    /// Runs a closure on the worker's thread, between its turns: a snapshot, or new routes.
    ///
    /// # Errors
    /// Gives the closure back when the queue is full or the worker has ended.
    pub fn run(&self, task: Task<S>) -> Result<(), Refused<Task<S>>> {
        self.offer(Command::Task(task))
            .map_err(|refused| match refused {
                Refused::Full(Command::Task(task)) => Refused::Full(task),
                Refused::Ended(Command::Task(task)) => Refused::Ended(task),
                _ => unreachable!("what was offered comes back"),
            })
    }

    pub(super) fn asked(&self, command: Command<S>) -> Asked<S> {
        Asked {
            asked_ns: self.clock.now_ns(),
            command,
        }
    }

    fn offer(&self, command: Command<S>) -> Result<(), Refused<Command<S>>> {
        use crossbeam_channel::TrySendError;
        match self.commands.try_send(self.asked(command)) {
            Ok(()) => {
                self.wake.ring();
                Ok(())
            }
            Err(TrySendError::Full(asked)) => Err(Refused::Full(asked.command)),
            Err(TrySendError::Disconnected(asked)) => Err(Refused::Ended(asked.command)),
        }
    }
}
