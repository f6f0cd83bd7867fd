//! The daemon: the workers, the forwarding path, the local API, and the signals.
//!
//! A daemon that ends leaves the NIC path as it is, so packets of others still pass; `virga node
//! detach` removes it.

pub mod clock;
pub mod declared;
pub mod discovery;
mod down;
pub(crate) mod embedded;
mod facts;
pub mod flood;
pub mod identity;
pub mod lock;
pub mod log;
mod mapping;
pub mod nat;
mod notify;
pub mod path;
mod privileges;
pub mod reload;
pub mod rights;
pub mod tracer;
mod workers;

use crate::{
    admissions::Inbox,
    api::{
        self, Api,
        server::{Connections, Server},
        socket::{self, Place, SocketError},
    },
    capture::run::Captures,
    config::Config,
    dispatch::{Dispatch, Ended},
    doctor,
    fallback::{self, ListenError, Parted},
    flow::run::Flows,
    kept::{self, KeptError},
    notices::Notices,
    reading::Reading,
    replicas::Replicas,
    rights::file::FileError,
    signing::Signing,
    trace,
};
use clock::Clock;
use discovery::Finder;
use flood::Flood;
use identity::{Registry, Start};
use nat::Crossing;
use path::{Path, PathError};
use privileges::Privileges;
use reload::Reloading;
use rights::Keeper;
use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};
use tracer::Tracer;
use virga_transport::worker::{Exit, WorkerError};
use workers::Running;

/// Threads of the control plane; the packet path has its own.
const CONTROL_THREADS: usize = 2;
/// How long answers that are under way get when the daemon stops.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon runs the node.
    #[error(transparent)]
    Taken(#[from] lock::Taken),
    /// The local API's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The forwarding path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The workers did not start.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A revocation list that was kept.
    #[error(
        "what is known to be revoked cannot be read, and without it the node would let it in: {0}; remove the file to start nevertheless"
    )]
    Revocations(#[from] FileError),
    /// A placement or succession that was kept.
    #[error(
        "where entities have moved cannot be read, and without it the node might believe one where it is no more: {0}; remove the file to start nevertheless"
    )]
    Identities(FileError),
    /// A declared channel that was kept.
    #[error(
        "a channel that was declared cannot be read, and without it an older declaration might count again: {0}; remove the file to start nevertheless"
    )]
    Declared(FileError),
    /// The configuration does not fit the forwarder's tables.
    #[error("the forwarder's tables: {0}")]
    Tables(String),
    /// A channel cannot be kept.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// Nothing can listen where metrics are to be had.
    #[error(
        "cannot listen for metrics at {address}: {source}; give `listen` in [metrics] another address or port"
    )]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing can listen for fallback transports.
    #[error(transparent)]
    Fallback(#[from] ListenError),
    /// The operating system refused something.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// A worker ended by itself: a fault of this program, or of the machine.
    #[error("a worker ended: {0}")]
    Ended(String),
}

impl From<Ended> for DaemonError {
    fn from(Ended: Ended) -> Self {
        Self::Ended("right after its start".into())
    }
}

fn system(operation: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::System { operation, source }
}

/// Runs a node until a signal ends it.
///
/// # Errors
/// See [`DaemonError`]; the NIC path, where it was set up, goes on forwarding.
pub fn run(config: Config) -> Result<(), DaemonError> {
    log::start();
    // Tables are mostly zeros, of which huge pages would make all resident: some 40 MiB of an idle node.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::warn!("cannot do without huge pages, the node takes more memory: {error}");
    }
    // Nobody connects but by the socket, and nobody waits for the start.
    let (_, local) = mpsc::channel(1);
    let (ready, _) = oneshot::channel();
    // One that comes while another is under way is not lost, and more would read the same file.
    let (reload, reloads) = mpsc::channel(1);
    let signals = async {
        let mut signals = Signals::new().map_err(system("listen for signals"))?;
        Ok(async move { signals.stop(&reload).await })
    };
    let own = Some(Privileges::all());
    serve_on((config, own), signals, (local, reloads), ready)
}

/// Connections to the API beside those of its socket, and demands to read the configuration anew.
type Asked = (
    mpsc::Receiver<std::os::unix::net::UnixStream>,
    mpsc::Receiver<()>,
);

/// Runs a node on this thread and some more, until what `until` gives is over; `ready` is told once its API
/// answers. In a process of its own there are privileges to give up, and a service manager that may wait for news.
fn serve_on<U: Future<Output = ()>>(
    (config, own): (Config, Option<Privileges>),
    until: impl Future<Output = Result<U, DaemonError>>,
    asked: Asked,
    ready: oneshot::Sender<()>,
) -> Result<(), DaemonError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime
        .worker_threads(CONTROL_THREADS)
        .thread_name("virga-control")
        .enable_all();
    if let Some(privileges) = own.clone() {
        let begun = privileges.clone();
        runtime
            .on_thread_start(move || begun.follow())
            .on_thread_unpark(move || privileges.follow());
    }
    let runtime = runtime
        .build()
        .map_err(system("start the control plane's threads"))?;
    let is_process = own.is_some();
    let result = runtime.block_on(async {
        let until = until.await?;
        serve((config, own), until, asked, ready).await
    });
    if is_process {
        // Its threads end with the process: a task that is polled while a runtime shuts down may panic at its timer.
        std::mem::forget(runtime);
    } else {
        runtime.shutdown_timeout(FAREWELL);
    }
    result
}

async fn serve(
    (config, own): (Config, Option<Privileges>),
    until: impl Future<Output = ()>,
    (local, reloads): Asked,
    ready: oneshot::Sender<()>,
) -> Result<(), DaemonError> {
    let start = Start::read(kept::chosen::join(config)?)?;
    let config = Arc::new(start.present.config.clone());
    let _lock = lock::take(&config)?;
    let socket = socket::listen(&Place {
        path: config.node.socket.clone(),
        group: config.node.socket_group.clone(),
    })?;
    let _name = lock::take_name(&config)?;
    let metrics = reload::listen(config.metrics).await;
    let metrics = metrics.map_err(|(address, source)| DaemonError::Metrics { address, source })?;
    let carriers = fallback::listen(&config).await?;
    // Those that were left by a crash are made whole.
    let logs = tokio::task::block_in_place(|| kept::Opened::open(&config))?;
    let revocations = rights::kept(&config.node.state)?;
    let mut store = flood::recall(&start.present, &revocations);
    let admitted = store.publish().clone();
    let known = (&revocations[..], &start.present.retired);
    let filtering = flood::Filtering::recall(&config);
    let foreign = filtering.as_ref().map(|one| one.foreign().clone());
    let path = Path::start(Arc::clone(&config), (admitted, foreign), known).await?;
    tracing::info!(mode = path.mode(), why = path.why(), "forwarding path");
    let (mode, has_nic) = (path.mode(), path.has_nic());
    if let Some(privileges) = &own {
        privileges.loaded();
    }
    warn_of_checksums(&config, &path);

    let (notices, inbox) = (Notices::default(), Inbox::default());
    let traces = trace::Inbox::default();
    let discovered = config
        .discovery
        .as_ref()
        .map(|_| crate::discovery::Inbox::default());
    let crossed = config.routing.crosses_nats.then(crate::nat::Inbox::default);
    let signing = Signing::new(&config.node.state, &config.keys.entity);
    let replicas = Replicas::new(&config, kept::random()?);
    let reading = Reading::default();
    let mut workers = Running::start(
        (&*config, &start.directory),
        &path,
        revocations,
        (&notices, &inbox, &traces),
        (discovered.as_ref(), crossed.as_ref()),
        (&signing, &replicas, &reading),
    )?;
    let dispatch = workers.dispatch().clone();
    if let Some(privileges) = own.clone() {
        privileges.opened(&config, has_nic);
        dispatch.with_all(move |_, _| privileges.follow()).await?;
    }
    let (stop_api, api_stopped) = watch::channel(());
    let connections = Arc::new(Connections::default());
    let (moves, links) = (path.moves().clone(), path.found().follow());
    let asker = path.run(dispatch.clone());
    let flood = Flood::run((store, filtering), &config, &inbox, &dispatch, &asker);
    let state = &config.node.state;
    let clock = Clock::new(unix_zero_ns(&dispatch).await?);
    let follow = (flood.clone(), asker.clone(), clock.clone());
    let keeper = Keeper::new(dispatch.clone(), state, follow);
    let following = (asker.clone(), flood.clone());
    let registry = Registry::new(start, dispatch.clone(), following);
    let finder = Finder::run(discovered, &dispatch, &registry, api_stopped.clone());
    let finder = finder.map_err(system("begin to look for other nodes"))?;
    let by = nat::Parted {
        registry: registry.clone(),
        dispatch: dispatch.clone(),
        moves: moves.clone(),
        links: links.clone(),
        path: asker.clone(),
    };
    let crossing = Crossing::run(crossed, by);
    let crossing = crossing.map_err(system("begin to look for ways through NATs"))?;
    let logs = logs
        .run(&dispatch, &signing, (&replicas, &reading))
        .map_err(system("start the logs' thread"))?;
    let parted = Parted {
        registry: registry.clone(),
        dispatch: dispatch.clone(),
        moves,
        links,
    };
    let api = Arc::new(Api {
        fallback: fallback::run(carriers, parted),
        identity: registry.clone(),
        dispatch: dispatch.clone(),
        steering: workers.steering().why(),
        placement: workers.placement().to_vec(),
        tracer: Tracer::run(config.node.id, &dispatch, &asker, traces),
        captures: Captures::new(&dispatch, &asker, &api_stopped),
        flows: Flows::new(&dispatch, &api_stopped),
        path: asker,
        finder,
        crossing: crossing.clone(),
        rights: keeper.clone(),
        stopping: api_stopped.clone(),
        kept: logs.kept().clone(),
        reading: reading.clone(),
        connections: Arc::clone(&connections),
        reloading: Reloading::default(),
        clock,
        started: Instant::now(),
    });
    // Ends with the runtime.
    let _reading = tokio::spawn(reading.serve(logs.kept().clone(), dispatch.clone()));
    Reloading::serve_metrics(&api, metrics).await;
    let watched = Arc::clone(&api);
    // Ends with the runtime.
    let _reloads = tokio::spawn(reload::by_signal(Arc::clone(&api), reloads));
    let server = Server::new(socket, api::router(api), connections);
    let server = server.map_err(system("serve the socket"))?;
    let server = tokio::spawn(server.run(local, api_stopped));
    keeper.warn_of_useless(&config.node).await?;
    // Ends with the workers.
    let _rights = tokio::spawn(keeper.run(notices.clone()));
    let _identity = tokio::spawn(registry.run(notices));
    tracing::info!(
        node = %config.node.name, id = %config.node.id, listen = %workers.address(),
        socket = %config.node.socket.display(), "node is running"
    );
    // A daemon's start is waited for by its service manager alone.
    let _unheard = ready.send(());
    if own.is_some() {
        notify::ready(mode);
        let _signs = tokio::spawn(notify::watch(watched));
    }

    let ended = tokio::select! {
        exit = workers.ended() => Some(exit),
        () = until => None,
    };
    if own.is_some() {
        notify::stopping();
    }
    drop(stop_api);
    let result = match ended {
        Some(exit) => {
            crossing.end().await;
            Err(DaemonError::Ended(describe(exit)))
        }
        // The router takes back what it maps while the workers say good-bye.
        None => tokio::join!(workers.stop(), crossing.end()).0,
    };
    // What the workers took in is kept.
    logs.stop().await;
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

pub(crate) fn unix_ns() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    unix.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// The kernel's monotonic time, which the NIC path goes by.
pub(crate) fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// Unix time at the workers' time 0, which is the same for all.
async fn unix_zero_ns(dispatch: &Dispatch) -> Result<u64, DaemonError> {
    let zeros = dispatch.with_all(|now_ns, _| unix_ns().saturating_sub(now_ns));
    Ok(zeros.await?[0])
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

    /// Waits for a signal that ends the daemon, and passes on those that ask for a reload.
    async fn stop(&mut self, reload: &mpsc::Sender<()>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return tracing::info!("SIGTERM: stopping"),
                _ = self.interrupt.recv() => return tracing::info!("SIGINT: stopping"),
                _ = self.hang_up.recv() => {
                    tracing::info!("SIGHUP: reading the configuration anew");
                    // One that waits already will do.
                    let _waits = reload.try_send(());
                }
            }
        }
    }
}
