//! Starting and stopping a node's workers together.

use super::{
    COMMANDS_MAX, Command, Commander, Exit, Parts, Refused, Service, Worker, WorkerConfig,
    WorkerError, mailbox,
    mailbox::{Mailbox, Slots},
    panic_message,
};
use crate::{
    config::NodeConfig,
    forward::Forwarder,
    io::{
        clock::Clock,
        driver::{Driver, DriverConfig},
        socket::Socket,
        steer::{self, Steer, Steering},
        wake::Wake,
    },
    node::Node,
    share::Share,
};
use std::{
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

/// How all workers of a node shall run.
#[derive(Clone, Debug)]
pub struct WorkersConfig {
    /// Where their UDP sockets listen: one address for all.
    pub listen: SocketAddr,
    /// One worker for each: the core that it stays on, or none. None at all is one worker.
    pub cores: Vec<Option<usize>>,
    /// Whether the kernel is asked to bring each datagram to its worker.
    pub steer: Steer,
    /// What moves their datagrams.
    pub driver: DriverConfig,
}

/// What one worker begins with.
pub struct Beginning<S> {
    /// The node's configuration, with this worker's share.
    pub node: NodeConfig,
    /// The routes.
    pub forwarder: Forwarder,
    /// What runs above.
    pub service: S,
}

/// A running worker. Dropping it leaves the worker running; [`WorkerHandle::stop`] ends it.
pub struct WorkerHandle<S: Service> {
    commander: Commander<S>,
    thread: JoinHandle<()>,
    address: SocketAddr,
}

impl<S: Service> WorkerHandle<S> {
    /// How to reach it.
    #[must_use]
    pub fn commander(&self) -> &Commander<S> {
        &self.commander
    }

    /// See [`Commander::command`].
    ///
    /// # Errors
    /// Gives the command back when the queue is full or the worker has ended.
    pub fn command(&self, command: S::Command) -> Result<(), Refused<S::Command>> {
        self.commander.command(command)
    }

    /// Where its socket listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the worker: no new work; its peers get what was accepted for them, within a bounded time, and
    /// are told of the end. Waits for it.
    pub fn stop(self) {
        self.begin_stop();
        let _exit_was_reported = self.thread.join();
    }

    fn begin_stop(&self) {
        // The queue may be full: its worker empties it, so this waits for a bounded time.
        let _ended = self
            .commander
            .commands
            .send(self.commander.asked(Command::Stop));
        self.commander.wake.ring();
    }
}

/// All workers of a node, running. Dropping it leaves them running; [`Workers::stop`] ends them.
///
/// The kernel's steering goes by the places of their sockets, which change when one is closed: a
/// worker that ends by itself is the end of the node.
pub struct Workers<S: Service> {
    handles: Vec<WorkerHandle<S>>,
    steering: Steering,
}

impl<S: Service> Workers<S> {
    /// How to reach each of them.
    pub fn commanders(&self) -> impl Iterator<Item = &Commander<S>> {
        self.handles.iter().map(WorkerHandle::commander)
    }

    /// Where they listen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.handles[0].address
    }

    /// The clock that all of them go by.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.handles[0].commander.clock
    }

    /// How datagrams find their worker.
    #[must_use]
    pub fn steering(&self) -> &Steering {
        &self.steering
    }

    /// Ends all of them, at the same time, and waits for it: see [`WorkerHandle::stop`].
    pub fn stop(self) {
        for handle in &self.handles {
            handle.begin_stop();
        }
        for handle in self.handles {
            let _exit_was_reported = handle.thread.join();
        }
    }
}

/// Binds the sockets, makes a node for each worker's share and starts the threads. `exited` is called
/// on a worker's thread when it ends, for whatever reason.
///
/// # Errors
/// See [`WorkerError`]; nothing is left running then.
pub fn spawn_all<S: Service>(
    config: &WorkersConfig,
    mut beginning: impl FnMut(Share) -> Beginning<S>,
    exited: impl Fn(Share, Exit) + Clone + Send + 'static,
) -> Result<Workers<S>, WorkerError> {
    let shares: Vec<Share> = Share::split(config.cores.len()).collect();
    let (seats, steering) = seats(config, shares.len())?;
    let cores = config.cores.iter().copied().chain([None]);
    let mut handles: Vec<WorkerHandle<S>> = Vec::new();
    for ((seat, share), core) in seats.into_iter().zip(shares).zip(cores) {
        let exited = exited.clone();
        let told = move |exit| exited(share, exit);
        match seat.take(core, share, beginning(share), told) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                handles.into_iter().for_each(WorkerHandle::stop);
                return Err(error);
            }
        }
    }
    Ok(Workers { handles, steering })
}

impl<S: Service> Worker<S> {
    /// Starts the one worker of a node: see [`spawn_all`].
    ///
    /// # Errors
    /// See [`WorkerError`]; nothing is left running then.
    pub fn spawn(
        config: &WorkerConfig,
        node: NodeConfig,
        forwarder: Forwarder,
        service: S,
        exited: impl FnOnce(Exit) + Send + 'static,
    ) -> Result<WorkerHandle<S>, WorkerError> {
        let group = WorkersConfig {
            listen: config.listen,
            cores: vec![config.core],
            steer: Steer::Kernel,
            driver: config.driver,
        };
        let (mut seats, _alone) = seats(&group, 1)?;
        let beginning = Beginning {
            node,
            forwarder,
            service,
        };
        seats
            .remove(0)
            .take(config.core, Share::WHOLE, beginning, exited)
    }
}

/// What a worker shares with the others, and its socket among theirs.
struct Seat {
    clock: Clock,
    driver: DriverConfig,
    socket: Socket,
    wake: Arc<Wake>,
    mailbox: Mailbox,
    slots: Slots,
}

/// The sockets are bound before any worker runs, in the workers' order: the kernel steers by it.
fn seats(config: &WorkersConfig, workers: usize) -> Result<(Vec<Seat>, Steering), WorkerError> {
    let clock = Clock::start();
    let address = config.listen;
    let bind = |source| WorkerError::Bind { address, source };
    let (sockets, steering) = steer::bind(address, workers, config.steer).map_err(bind)?;
    let wakes = sockets.iter().map(|_| Ok(Arc::new(Wake::new()?)));
    let wakes = wakes.collect::<std::io::Result<Vec<_>>>()?;
    let rings = mailbox::connect(&wakes);
    let seats = sockets.into_iter().zip(wakes).zip(rings);
    let seats = seats.map(|((socket, wake), (mailbox, slots))| {
        Ok(Seat {
            clock,
            driver: config.driver,
            socket: Socket::new(socket)?,
            wake,
            mailbox,
            slots,
        })
    });
    let seats = seats.collect::<std::io::Result<_>>().map_err(bind)?;
    Ok((seats, steering))
}

impl Seat {
    /// Makes the node and starts the thread.
    fn take<S: Service>(
        self,
        core: Option<usize>,
        share: Share,
        beginning: Beginning<S>,
        exited: impl FnOnce(Exit) + Send + 'static,
    ) -> Result<WorkerHandle<S>, WorkerError> {
        let Self {
            clock,
            driver,
            socket,
            wake,
            mailbox,
            slots,
        } = self;
        let (node, forwarder, service) = (beginning.node, beginning.forwarder, beginning.service);
        let address = socket.address();
        let (commands_in, commands) = crossbeam_channel::bounded(COMMANDS_MAX);
        let commander = Commander {
            commands: commands_in,
            wake: Arc::clone(&wake),
            clock,
        };
        let (tell_started, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("virga-worker-{}", share.worker()))
            .spawn(move || {
                // Both are made on the thread that uses them: their memory is then of the core's own NUMA node.
                let made = pin(core).and_then(|()| {
                    let node = Node::new(node, clock.now_ns())?;
                    Ok((node, Driver::open(socket, wake, &driver)?))
                });
                let (node, driver) = match made {
                    Ok(made) => made,
                    Err(error) => {
                        // Whoever spawns it waits for this.
                        let _is_told = tell_started.send(Err(error));
                        return;
                    }
                };
                let _is_told = tell_started.send(Ok(()));
                let parts = Parts::new((node, forwarder, service), (share, core), driver);
                let worker = Worker::new(parts, commands, (mailbox, slots), clock);
                let ended = catch_unwind(AssertUnwindSafe(|| worker.run()));
                exited(match ended {
                    Ok(Ok(())) => Exit::Stopped,
                    Ok(Err(error)) => Exit::System(error),
                    Err(panic) => Exit::Panicked(panic_message(&*panic)),
                });
            })?;
        match started.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let _ended_at_once = thread.join();
                return Err(error);
            }
            // It panicked before it could say anything.
            Err(_) => {
                if let Err(panic) = thread.join() {
                    std::panic::resume_unwind(panic);
                }
                let silent = std::io::Error::other("it ended before it began");
                return Err(silent.into());
            }
        }
        Ok(WorkerHandle {
            commander,
            thread,
            address,
        })
    }
}

/// Keeps this thread on a core.
fn pin(core: Option<usize>) -> Result<(), WorkerError> {
    match core {
        Some(id) if !core_affinity::set_for_current(core_affinity::CoreId { id }) => {
            Err(WorkerError::Core { core: id })
        }
        _ => Ok(()),
    }
}
