//! The daemon: one worker, the forwarding path, the local API, and the signals.
//!
//! A daemon that ends leaves the NIC path as it is, so packets of others still pass; `virga node
//! detach` removes it.

mod down;
mod facts;
pub mod path;

use crate::{
    api::{
        self, Api, Service,
        outlet::Queue,
        server::{Connections, Server},
        socket::{self, Place, SocketError},
    },
    channel::{ChannelService, Setup},
    config::Config,
    doctor,
};
use path::{Path, PathError};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};
use virga_transport::{
    NodeConfig, NodeLimits, PeerConfig, Share,
    forward::Forwarder,
    worker::{Commander, Exit, Refused, Task, Worker, WorkerConfig, WorkerError, WorkerHandle},
};

/// Threads of the control plane; the packet path has its own.
const CONTROL_THREADS: usize = 2;
/// How long answers that are under way get when the daemon stops.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The local API's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The forwarding path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The worker did not start.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The configuration does not fit the forwarder's tables.
    #[error("the forwarder's tables: {0}")]
    Tables(String),
    /// The operating system refused something.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The worker ended by itself: a fault of this program, or of the machine.
    #[error("the worker ended: {0}")]
    Ended(String),
}

fn system(operation: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::System { operation, source }
}

/// Runs a node until a signal ends it.
///
/// # Errors
/// See [`DaemonError`]; the NIC path, where it was set up, goes on forwarding.
pub fn run(config: Config) -> Result<(), DaemonError> {
    start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("virga-control")
        .enable_all()
        .build()
        .map_err(system("start the control plane's threads"))?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(FAREWELL);
    result
}

/// Lines to standard error; `RUST_LOG` says how many.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // A second daemon in one process (a test) keeps the first one's log.
    let _already_started = builder
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .try_init();
}

async fn serve(config: Config) -> Result<(), DaemonError> {
    let config = Arc::new(config);
    let mut signals = Signals::new().map_err(system("listen for signals"))?;
    let socket = socket::listen(&Place {
        path: config.node.socket.clone(),
        group: config.node.socket_group.clone(),
    })?;
    let path = Path::start(Arc::clone(&config)).await?;
    tracing::info!(mode = path.mode(), why = path.why(), "forwarding path");
    warn_of_checksums(&config, &path);

    let (exit, mut exited) = oneshot::channel();
    let worker = start_worker(&config, &path, exit)?;
    let commander = worker.commander().clone();
    let (stop_api, api_stopped) = watch::channel(());
    let connections = Arc::new(Connections::default());
    let api = Arc::new(Api {
        config: Arc::clone(&config),
        commander: commander.clone(),
        path: path.run(commander.clone()),
        stopping: api_stopped.clone(),
        connections: Arc::clone(&connections),
        unix_zero_ns: unix_zero_ns(&commander).await?,
        started: Instant::now(),
    });
    let server = Server::new(socket, api::router(api), connections);
    let server = tokio::spawn(server.map_err(system("serve the socket"))?.run(api_stopped));
    tracing::info!(
        node = %config.node.name, id = %config.node.id, listen = %worker.address(),
        socket = %config.node.socket.display(), "node is running"
    );

    let ended = tokio::select! {
        exit = &mut exited => Some(exit),
        () = signals.stop() => None,
    };
    drop(stop_api);
    let result = match ended {
        Some(exit) => Err(DaemonError::Ended(describe(exit.ok()))),
        None => stop(worker, exited).await,
    };
    // Open subscriptions end with the worker; whatever else is under way gets a moment.
    let _late = tokio::time::timeout(FAREWELL, server).await;
    match &result {
        Ok(()) => tracing::info!("node has stopped; a NIC path, if there is one, goes on"),
        Err(error) => tracing::error!(%error, "node has ended"),
    }
    result
}

/// Nobody else could say why sessions do not come up: the kernel of the receiving host drops the packets.
fn warn_of_checksums(config: &Config, path: &Path) {
    let mut interfaces = doctor::configured(config);
    interfaces.extend(path.links().into_iter().filter_map(|link| link.interface));
    let checks = tokio::task::block_in_place(|| doctor::unfinished_checksums(interfaces));
    for check in checks {
        tracing::warn!(
            interface = check.interface,
            fix = check.fix,
            "TX checksums are {}, and sessions with them do not come up",
            check.found
        );
    }
}

fn start_worker(
    config: &Config,
    path: &Path,
    exit: oneshot::Sender<Exit>,
) -> Result<WorkerHandle<Service>, DaemonError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(io::Error::other)
        .map_err(system("draw random numbers"))?;
    let entropy = path::entropy().map_err(system("draw random numbers"))?;
    let mut forwarder = Forwarder::with_destinations(config.forwarding.destinations_max);
    forwarder
        .apply(&path.image(), entropy)
        .map_err(|error| DaemonError::Tables(error.to_string()))?;
    let service = ChannelService::<Queue>::new(&Setup::from(config));
    let worker_config = WorkerConfig {
        listen: config.node.listen,
        core: config.node.worker_core,
    };
    let exited = move |how| {
        // When the daemon stopped waiting, it is ending anyway.
        let _ending = exit.send(how);
    };
    let node_config = node_config(config, seed);
    Ok(Worker::spawn(
        &worker_config,
        node_config,
        forwarder,
        service,
        exited,
    )?)
}

fn node_config(config: &Config, seed: [u8; 32]) -> NodeConfig {
    let peers = config.peers.iter().map(|peer| PeerConfig {
        node_key: peer.node_key,
        entity_key: peer.entity_key,
    });
    NodeConfig {
        network_id: config.node.network.clone(),
        psk: *config.keys.psk.expose(),
        psk_generation: config.node.psk_generation,
        node_key: *config.keys.node.secret.expose(),
        entity_key: *config.keys.entity.seed.expose(),
        subnet: config.node.subnet,
        peers: peers.collect(),
        share: Share::WHOLE,
        limits: NodeLimits::default(),
        started_unix_ns: unix_ns(),
        seed,
    }
}

fn unix_ns() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    unix.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Unix time at the worker's time 0.
async fn unix_zero_ns(commander: &Commander<Service>) -> Result<u64, DaemonError> {
    let (reply, answer) = oneshot::channel();
    let task: Task<Service> = Box::new(move |now_ns, _| {
        // The daemon waits for it.
        let _gone = reply.send(unix_ns().saturating_sub(now_ns));
    });
    match commander.run(task) {
        Ok(()) => {}
        Err(Refused::Full(_) | Refused::Ended(_)) => {
            return Err(DaemonError::Ended("right after its start".into()));
        }
    }
    answer
        .await
        .map_err(|_| DaemonError::Ended("right after its start".into()))
}

/// Closes the sessions and ends the worker.
async fn stop(
    worker: WorkerHandle<Service>,
    exited: oneshot::Receiver<Exit>,
) -> Result<(), DaemonError> {
    let stopped = tokio::task::spawn_blocking(move || worker.stop()).await;
    match (stopped, exited.await) {
        (Ok(()), Ok(Exit::Stopped)) => Ok(()),
        (_, exit) => Err(DaemonError::Ended(describe(exit.ok()))),
    }
}

fn describe(exit: Option<Exit>) -> String {
    match exit {
        Some(Exit::Stopped) => "it was not asked to".into(),
        Some(Exit::Panicked(message)) => format!("it panicked: {message}"),
        Some(Exit::System(error)) => format!("the system does not let it wait: {error}"),
        None => "without a word".into(),
    }
}

/// The signals that a daemon answers.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal that ends the daemon.
    async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return tracing::info!("SIGTERM: stopping"),
                _ = self.interrupt.recv() => return tracing::info!("SIGINT: stopping"),
                _ = self.hang_up.recv() => tracing::warn!(
                    "SIGHUP: the configuration is read at the start only; restart the node instead"
                ),
            }
        }
    }
}
