//! The forwarding path: set up at the start, then kept in step with the kernel and the operator.
//!
//! One task owns the NIC path, the kernel's facts and the links that an operator took down; others
//! ask it.

mod asker;
mod links;
mod members;
mod moved;
mod routing;
mod samples;
mod status;
mod tables;
mod tagging;

use asker::Ask;
use members::Members;
use routing::Routing;
use tables::{apply_to_workers, leave_nic};
use tagging::Listening;

pub use asker::Asker;
pub use status::{ForwardingStatus, GuardStatus, InterfaceStatus, KeepaliveStatus, LinkStatus};

use super::{down, facts::Watch, monotonic_ns};
use crate::{
    cause,
    config::{Config, ForwardingMode, Reach},
    dispatch::{Dispatch, Service},
    filters::Foreign,
    image::{self, Down},
    links::Links,
    moves::Moves,
    nic::{
        self, Nic, NicError, Update,
        kernel::{Facts, KernelError},
        xsk::Opened,
    },
    rights::identity::Retired,
    tags::Tags,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt, io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::mpsc, task::block_in_place, time::Instant};
use virga_ebpf::{hash::keyed, header::NodeId, image::Image, tables::Pair};
use virga_transport::{
    io::{driver::Choice, xsk::queue::Queue},
    worker::Parts,
};

/// Requests that wait for the task.
const ASKS_MAX: usize = 64;
/// What could not be applied is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Neighbours that are missing are looked for this often, also when the kernel tells nothing.
const REFRESH: Duration = Duration::from_secs(5);

/// Why there is no forwarding path.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The NIC path was asked for and cannot be had.
    #[error("forwarding mode {mode} was asked for: {source}")]
    Nic {
        /// What was asked for.
        mode: ForwardingMode,
        /// What is in the way.
        source: NicError,
    },
    /// The kernel's facts were needed.
    #[error("forwarding mode {mode} was asked for: {source}")]
    Kernel {
        /// What was asked for.
        mode: ForwardingMode,
        /// What is in the way.
        source: KernelError,
    },
    /// An earlier run's NIC path is attached, and cannot be taken over.
    #[error(
        "the NIC path of an earlier run cannot be taken over: {1}; what is attached goes on forwarding as it is; \
         `virga node detach {0}` gives it up"
    )]
    Attached(String, #[source] Box<dyn Error + Send + Sync>),
    /// There are no keys for link tags.
    #[error("the system gives no random numbers: {0}")]
    Random(io::Error),
}

/// The forwarding path of one node.
#[derive(Debug)]
pub struct Path {
    config: Arc<Config>,
    watch: Watch,
    facts: Facts,
    down: Down,
    /// Pairs that follow from tokens.
    admitted: BTreeSet<Pair>,
    /// What other subnets admit; none where that is the same everywhere.
    foreign: Option<Foreign>,
    /// The kernel's monotonic time at the workers' time 0.
    workers_zero_ns: u64,
    moves: Moves,
    links: Links,
    /// Neighbours whose links were found dead.
    dead: BTreeSet<NodeId>,
    /// How often each link was found dead, as of the last look.
    falls: BTreeMap<NodeId, u64>,
    members: Members,
    tags: Tags,
    /// None where the configuration says who leads where.
    routing: Option<Routing>,
    /// Some table does not hold the tags' keys yet.
    tables_behind: bool,
    listening: Listening,
    nic: Option<Nic>,
    why: String,
    /// What AF_XDP sockets were opened on, where the worker's driver runs them.
    queues: BTreeMap<String, String>,
    problem: Option<Problem>,
}

/// What is not as configured.
#[derive(Debug)]
struct Problem {
    text: String,
    /// Whether time may mend it; otherwise the kernel tells when to try again.
    is_retried: bool,
}

impl Problem {
    fn retried(error: impl fmt::Display) -> Self {
        let text = error.to_string();
        Self {
            text,
            is_retried: true,
        }
    }

    /// Of interfaces without a program; `None` where there is none of them.
    fn of(missing: &[NicError]) -> Option<Self> {
        let texts: Vec<String> = missing.iter().map(|e| cause::chain(e)).collect();
        let is_absent = |error: &NicError| matches!(error, NicError::NoInterface(_));
        (!texts.is_empty()).then(|| Self {
            text: texts.join("; "),
            is_retried: !missing.iter().all(is_absent),
        })
    }
}

/// 64 random bits a call, for slot and guard keys, from a seed of the operating system's.
///
/// # Errors
/// When it has none to give.
pub(super) fn entropy() -> io::Result<impl FnMut() -> u64 + Send> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    Ok(draws(seed))
}

fn draws(seed: [u8; 32]) -> impl FnMut() -> u64 + Send {
    let mut drawn = 0_u64;
    move || {
        drawn += 1;
        let [a, b, c, d, e, f, g, h, ..] = keyed(&seed, &[&drawn.to_be_bytes()]);
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl Path {
    /// Sets up what the configuration asks for; in mode `auto` user space where there is no NIC path.
    ///
    /// # Errors
    /// When a mode was asked for by name and cannot be had, or what an earlier run attached not be taken over.
    pub async fn start(
        config: Arc<Config>,
        (admitted, foreign): (BTreeSet<Pair>, Option<Foreign>),
        (revocations, retired): (&[Vec<u8>], &Retired),
    ) -> Result<Self, PathError> {
        let mode = config.forwarding.mode;
        let must = matches!(mode, ForwardingMode::Native | ForwardingMode::Generic);
        let down = down::read(&config);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| PathError::Random(io::Error::other(error)))?;
        let mut tags = Tags::new(&config, seed);
        tagging::restore(&config, &mut tags);
        let mut path = Self {
            members: Members::recall(&config, revocations, retired),
            tags,
            routing: Routing::new(&config),
            tables_behind: false,
            listening: Listening::default(),
            config,
            watch: Watch::default(),
            facts: Facts::default(),
            down,
            admitted,
            foreign,
            // Until they run: they begin right after this.
            workers_zero_ns: monotonic_ns(),
            moves: Moves::default(),
            links: Links::default(),
            dead: BTreeSet::new(),
            falls: BTreeMap::new(),
            nic: None,
            why: String::new(),
            queues: BTreeMap::new(),
            problem: None,
        };
        let known = path.read_facts().await;
        if let Err(error) = &known {
            path.note(Some(Problem::retried(error)));
        }
        match (path.config.forwarding.mode, known) {
            (_, Err(source)) if must => return Err(PathError::Kernel { mode, source }),
            (ForwardingMode::Userspace, _) => path.why = "asked for by the configuration".into(),
            (_, _) if path.config.forwarding.interfaces.is_empty() => {
                path.why = "the configuration names no interfaces for the NIC path".into();
            }
            // Its tables are made of what the kernel knows.
            (_, Err(error)) => path.fall_back(error)?,
            (asked, Ok(())) => path.start_nic(asked)?,
        }
        path.warn_of_missing_interfaces();
        if path.nic.is_none() {
            leave_nic(&path.config.node.name).map_err(|source| PathError::Nic { mode, source })?;
        }
        if let Err(error) = path.take_over_neighbours().await {
            path.note(Some(Problem::retried(error)));
        }
        Ok(path)
    }

    /// What an earlier run had kept resolved is left to itself, unless this one needs it.
    async fn take_over_neighbours(&mut self) -> Result<(), KernelError> {
        let kernel = self.watch.kernel()?;
        if self.nic.is_none() {
            return kernel.release_others(&Facts::default()).await;
        }
        kernel.release_others(&self.facts).await?;
        kernel.resolve(&self.facts).await;
        Ok(())
    }

    fn start_nic(&mut self, mode: ForwardingMode) -> Result<(), PathError> {
        let started = block_in_place(|| {
            let entropy = entropy().map_err(NicError::Random)?;
            let learned = |image: &mut Image| self.learned(0, image);
            Nic::start(&self.config, &self.facts, &self.down, learned, entropy)
        });
        match started {
            Ok((nic, update)) => {
                self.nic = Some(nic);
                self.why = match mode {
                    ForwardingMode::Auto => "native XDP attaches on this machine".into(),
                    _ => "asked for by the configuration".into(),
                };
                let problem = Problem::of(&update.missing);
                if let Some(problem) = problem.as_ref().filter(|_| self.is_waiting()) {
                    tracing::warn!(problem = %problem.text, "forwards in user space until an interface runs the XDP program");
                }
                self.note(problem);
            }
            // Another daemon of this name is no reason for user space: two would share one identity. Nor is a NIC
            // path of another version's, which would end with it.
            Err(source @ (NicError::Running(_) | NicError::Layout { .. })) => {
                return Err(PathError::Nic { mode, source });
            }
            Err(error) if mode == ForwardingMode::Auto => self.fall_back(error)?,
            Err(source) => return Err(PathError::Nic { mode, source }),
        }
        Ok(())
    }

    /// Mode `auto` with interfaces, and no NIC path to be had: that is slower than what was hoped for.
    /// What an earlier run has attached is not given up for that: it forwards, and this may be mended.
    fn fall_back(&mut self, source: impl Error + Send + Sync + 'static) -> Result<(), PathError> {
        let (node, source) = (self.config.node.name.clone(), Box::new(source));
        if nic::is_attached(&node) {
            return Err(PathError::Attached(node, source));
        }
        let why = format!("no NIC path: {}", cause::chain(&*source));
        tracing::warn!(%why, "mode \"auto\" forwards in user space; `virga doctor --config FILE` tells more");
        self.why = why;
        Ok(())
    }

    /// Neighbours whose interface is not there are reached once it is.
    fn warn_of_missing_interfaces(&self) {
        if self.facts.interfaces.is_empty() {
            return;
        }
        for peer in &self.config.peers {
            if let Reach::Adjacent {
                interface: Some(name),
                ..
            } = &peer.reach
                && self.facts.interface(name).is_none()
            {
                tracing::warn!(peer = %peer.name, interface = %name,
                    "the neighbour's interface does not exist (yet): `ip link` lists those that do");
            }
        }
    }

    /// Where the workers tell which neighbours have moved.
    #[must_use]
    pub fn moves(&self) -> &Moves {
        &self.moves
    }

    /// Where the workers tell which links are dead.
    #[must_use]
    pub fn found(&self) -> &Links {
        &self.links
    }

    /// `native`, `generic` or `userspace`.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        match (&self.nic, self.config.forwarding.mode) {
            (None, _) => "userspace",
            _ if self.is_waiting() => "userspace",
            (Some(_), ForwardingMode::Generic) => "generic",
            (Some(_), _) => "native",
        }
    }

    /// Why that one.
    #[must_use]
    pub fn why(&self) -> &str {
        match self.is_waiting() {
            true => "until a configured interface runs the XDP program: none does now",
            false => &self.why,
        }
    }

    /// Whether there is a NIC path, which neighbours are kept resolved for.
    #[must_use]
    pub fn has_nic(&self) -> bool {
        self.nic.is_some()
    }

    /// Whether there is a NIC path that runs on no interface yet, or no more.
    fn is_waiting(&self) -> bool {
        self.nic
            .as_ref()
            .is_some_and(|nic| nic.forwarding().is_empty())
    }

    /// The workers' tables: they route what this node sends, and decide over what reaches its socket.
    #[must_use]
    pub fn image(&self) -> Image {
        let mut image = match &self.nic {
            Some(nic) => image::of_worker(&self.config, &self.facts, &self.down, &nic.forwarding()),
            None => image::of_userspace(&self.config, &self.facts, &self.down),
        };
        self.learned(self.workers_zero_ns, &mut image);
        image
    }

    /// Reads what the kernel knows. The NIC path needs next hops resolved; user space sends through the
    /// kernel, which does that by itself.
    async fn read_facts(&mut self) -> Result<(), KernelError> {
        let facts = self.watch.facts(&self.config).await?;
        if self.nic.is_some() {
            let kernel = self.watch.kernel()?;
            let now = facts.gateways();
            let before = self.facts.gateways();
            kernel.release(before.difference(&now).copied()).await;
            kernel.resolve(&facts).await;
        }
        self.facts = facts;
        Ok(())
    }

    /// Follows the kernel and answers questions, until nobody can ask any more. What it changes, it
    /// applies to the NIC path and to the workers' forwarders.
    #[must_use]
    pub fn run(mut self, dispatch: Dispatch) -> Asker {
        let (asker, mut asks) = mpsc::channel(ASKS_MAX);
        self.workers_zero_ns = monotonic_ns().saturating_sub(dispatch.now_ns());
        tokio::spawn(async move {
            if let Err(error) = self.feed_drivers(&dispatch).await {
                self.note(Some(Problem::retried(error)));
            }
            if let Err(error) = self.show_echoes(&dispatch).await {
                self.note(Some(Problem::retried(error)));
            }
            // However often somebody asks something.
            let mut looked = Instant::now();
            let mut links = self.links.follow();
            loop {
                let is_retried = self.problem.as_ref().is_some_and(|p| p.is_retried);
                let pause = if is_retried { RETRY } else { REFRESH };
                tokio::select! {
                    ask = asks.recv() => match ask {
                        Some(ask) => self.answer(ask, &dispatch).await,
                        None => return,
                    },
                    () = self.watch.changed() => self.follow(&dispatch).await,
                    // It ends no sooner than the path that tells.
                    Ok(()) = links.changed() => {
                        let found = links.borrow_and_update().clone();
                        self.follow_links(found, &dispatch).await;
                    }
                    () = self.moves.changed() => self.follow_moves(&dispatch).await,
                    () = self.tags_due() => self.follow_tags(&dispatch).await,
                    () = self.members.due() => self.follow_members(&dispatch).await,
                    () = self.routing_due() => self.follow_routing(&dispatch).await,
                    () = tokio::time::sleep_until(looked + pause) => {
                        self.follow(&dispatch).await;
                        looked = Instant::now();
                    }
                }
            }
        });
        Asker(asker)
    }

    async fn follow(&mut self, dispatch: &Dispatch) {
        let before = self.facts.clone();
        if let Err(error) = self.read_facts().await {
            return self.note(Some(Problem::retried(error)));
        }
        if before != self.facts || self.problem.as_ref().is_some_and(|p| p.is_retried) {
            // It is logged, shown in `status` and tried again.
            let _shown = self.apply(dispatch).await;
        }
    }

    /// Brings the NIC path and the workers' forwarders to what is known now. An interface that has no
    /// program is a problem, and no error: the others and the tables are in step.
    async fn apply(&mut self, dispatch: &Dispatch) -> Result<(), String> {
        // Before any table has them: whatever ends this daemon, the next one knows no less than the tables.
        tagging::save(&self.config, &self.tags);
        // It waits where the kernel takes its time to release an interface.
        let mut nic = self.nic.take();
        let updated = block_in_place(|| match &mut nic {
            Some(nic) => {
                let entropy = entropy().map_err(NicError::Random)?;
                let learned = |image: &mut Image| self.learned(0, image);
                nic.update(&self.config, &self.facts, &self.down, learned, entropy)
            }
            None => Ok(Update::default()),
        });
        self.nic = nic;
        let (result, missing) = match updated {
            Ok(Update { attached, missing }) => {
                for one in attached {
                    tracing::info!(interface = %one.interface, program = one.program,
                        mode = one.xdp_mode, "XDP program attached");
                }
                (Ok(()), missing)
            }
            Err(error) => (Err(error.to_string()), Vec::new()),
        };
        let result = result.and(apply_to_workers(self.image(), dispatch).await);
        self.tables_behind = result.is_err();
        let result = result.and(self.feed_drivers(dispatch).await);
        self.note(match &result {
            Ok(()) => Problem::of(&missing),
            Err(error) => Some(Problem::retried(error)),
        });
        self.say(dispatch).await;
        result
    }

    /// Gives workers on AF_XDP sockets on the queues of interfaces that are new, in turn, and what their
    /// frames' headers say.
    async fn feed_drivers(&mut self, dispatch: &Dispatch) -> Result<(), String> {
        if self.config.node.driver.choice != Choice::Xsk {
            return Ok(());
        }
        let (facts, zero_copy) = (&self.facts, self.config.node.zero_copy);
        let opened = block_in_place(|| match &mut self.nic {
            Some(nic) => nic.open_sockets(facts, zero_copy),
            None => Ok(Opened::default()),
        });
        let opened = opened.map_err(|error| error.to_string())?;
        let (queues, next_hops) = (
            opened.queues,
            self.nic.as_ref().map(Nic::next_hops).unwrap_or_default(),
        );
        for (interface, told) in opened.told {
            tracing::info!(%interface, queues = %told, "AF_XDP");
            self.queues.insert(interface, told);
        }
        let running = self.nic.as_ref().map(Nic::forwarding).unwrap_or_default();
        self.queues
            .retain(|interface, _| running.contains(interface));
        let told: Vec<String> = self
            .queues
            .iter()
            .map(|(interface, told)| format!("{interface}: {told}"))
            .collect();
        let told = match told.is_empty() {
            true => {
                "no interface runs the XDP program, so the kernel's socket carries all".to_owned()
            }
            false => told.join("; "),
        };
        let queues = Arc::new(Mutex::new(queues));
        let feed = move |_, parts: &mut Parts<Service>| {
            let (worker, workers) = (parts.share().worker(), parts.share().workers());
            let is_its =
                |queue: &mut Queue| queue.number() % u32::from(workers) == u32::from(worker);
            let own = match queues.lock() {
                Ok(mut queues) => queues.extract_if(.., is_its).collect(),
                Err(_) => Vec::new(),
            };
            let driver = parts.driver_mut();
            driver.run_queues(own, &told);
            driver.set_next_hops(next_hops.clone());
        };
        let fed = dispatch.with_all(feed).await;
        fed.map(drop)
            .map_err(|_| "the workers have ended".to_owned())
    }

    /// Remembers and logs what is wrong now.
    fn note(&mut self, problem: Option<Problem>) {
        let text = |problem: &Option<Problem>| problem.as_ref().map(|p| p.text.clone());
        let (before, now) = (text(&self.problem), text(&problem));
        match &now {
            Some(problem) if before != now => {
                tracing::warn!(%problem, "the forwarding path is not as configured; trying again");
            }
            None if before.is_some() => {
                tracing::info!("the forwarding path is as configured again");
            }
            _ => {}
        }
        self.problem = problem;
    }

    async fn answer(&mut self, ask: Ask, dispatch: &Dispatch) {
        match ask {
            // The request may have been given up meanwhile.
            Ask::Status(reply) => {
                let watched = status::watched(dispatch).await;
                let _given_up = reply.send(self.status(&watched));
            }
            Ask::Routes(reply) => {
                let _given_up = reply.send(self.routes());
            }
            Ask::NextHop { destination, reply } => {
                let _given_up = reply.send(self.next_hop(destination));
            }
            Ask::Admits { pair, reply } => {
                let _given_up = reply.send(self.image().pairs.contains(&pair));
            }
            Ask::Admit { pairs, reply } => {
                self.admitted = pairs;
                let _given_up = reply.send(self.apply(dispatch).await);
            }
            Ask::Foreign { foreign, reply } => {
                self.foreign = Some(*foreign);
                let _given_up = reply.send(self.apply(dispatch).await);
            }
            Ask::Revoked(signed) => {
                self.members.revoked(&signed);
                self.follow_members(dispatch).await;
            }
            Ask::Config {
                config,
                retired,
                anew,
                reply,
            } => {
                self.members.follow(&config, retired);
                let result = self.follow_config(config, &anew, dispatch).await;
                let _given_up = reply.send(result);
            }
            Ask::Link { peer, state, reply } => {
                let result = self.set_link(&peer, state, dispatch).await;
                let _given_up = reply.send(result);
            }
            Ask::Places(reply) => {
                let _given_up = reply.send(self.places());
            }
            Ask::Interfaces(reply) => {
                let _given_up = reply.send(self.interfaces());
            }
            Ask::Sample { order, reply } => {
                // Whoever gave it up is not there to end it.
                if reply.send(self.sample(&order)).is_err() {
                    self.no_samples();
                }
            }
            Ask::NoSamples(reply) => {
                self.no_samples();
                let _given_up = reply.send(());
            }
        }
    }
}
