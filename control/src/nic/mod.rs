//! The NIC path: the XDP program on this node's interfaces, and its maps.
//!
//! - [`maps`]: the object, loaded; its maps as a [`virga_ebpf::publish::Store`].
//! - [`pins`]: where both outlive the daemon.
//! - `start`: which interfaces can be attached to, and when a node starts without one of them.
//! - [`fill`]: how full its maps are.
//! - [`echoes`]: what it notes of links, for the workers.
//! - [`samples`]: packets that somebody wants to see, with what it decided.
//! - [`xsk`]: AF_XDP sockets on the queues of its interfaces.
//! - [`kernel`]: interfaces, addresses and neighbours as the kernel knows them, by netlink.
//!
//! The daemon may stop, start and be replaced while packets pass: maps and links are pinned, a new
//! daemon takes the maps as they are, brings them to its own image, and replaces the program in place.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use aya::{Ebpf, programs::XdpMode};
use virga_ebpf::{
    image::Image,
    limits::{LAYOUT_VERSION, PORTS_MAX},
    publish::{GuardStatus, PublishError, Publisher, Store},
    reason::Counter,
};

use crate::{
    cause,
    config::{Config, ForwardingMode},
    image::{self, Down},
};

pub mod echoes;
pub mod fill;
pub mod kernel;
mod links;
pub mod maps;
pub mod pins;
pub mod pod;
pub mod samples;
mod start;
pub mod xsk;

use self::{
    kernel::{Facts, Interface},
    maps::Maps,
    pins::Pins,
    samples::Samples,
};

/// The program that forwards.
pub const FORWARD: &str = "virga";
/// The same, taking samples of what it decides.
pub const SAMPLE: &str = "virga_sample";
/// The program that lets everything through.
pub const PASS: &str = "virga_pass";
/// Largest MTU that native XDP takes without fragments support: a page less headroom and tail.
pub const NATIVE_MTU_MAX: u32 = 3_498;

/// Why the NIC path could not be set up or changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NicError {
    #[error("the XDP program's maps could not be made: {}", refused(.0.as_ref()))]
    Load(Box<dyn std::error::Error + Send + Sync>),
    #[error("the built object has no `{0}`: rebuild it with `scripts/build-ebpf`")]
    Object(&'static str),
    #[error("{} program `{program}`: {}", refuser(.error.as_ref()), refused(.error.as_ref()))]
    Verifier {
        program: &'static str,
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("map {0}: {1}")]
    Map(&'static str, aya::maps::MapError),
    #[error("pin {}: {}", path.display(), refused(source))]
    Pin { path: PathBuf, source: io::Error },
    #[error(
        "the pinned maps are of layout {found}, and this version's are of {LAYOUT_VERSION}: what is attached goes on forwarding as \
         it is; start the version that made them, or run `virga node detach NODE` and start again"
    )]
    Layout { found: u32 },
    #[error("cannot attach to {interface} ({mode}): {source}; {fix}")]
    Attach {
        interface: String,
        mode: &'static str,
        fix: String,
        source: Box<aya::programs::ProgramError>,
    },
    #[error("another daemon runs node {0}, or detaches it: stop it first")]
    Running(String),
    #[error("interface {0} does not exist: `ip link` lists those that do")]
    NoInterface(String),
    #[error(
        "{interface} is a VLAN device: name {below} under `interfaces`, which carries its frames"
    )]
    Vlan { interface: String, below: String },
    #[error("interface {0} cannot be a redirect target: {1}")]
    Egress(u32, io::Error),
    #[error("more than {PORTS_MAX} egress interfaces: name fewer")]
    Ports,
    #[error("the system gives no random numbers: {0}")]
    Random(io::Error),
    #[error("the NIC path shows no packets to captures: {0}; the node's log has all of it")]
    NoSamples(String),
    #[error("{0}")]
    Publish(#[from] PublishError<maps::StoreError>),
    #[error("maps could not be read back: {0}")]
    Recover(maps::StoreError),
}

/// What the kernel said, and what to do about it.
fn refused(error: &(dyn std::error::Error + 'static)) -> String {
    let text = cause::chain(error);
    if cause::is_out_of_files(error) {
        return format!("{text}; {}", cause::FILES_LIMIT);
    }
    match cause::is_not_permitted(error) {
        true => format!("{text}; {}", cause::NIC_RIGHTS),
        false => format!("{text}; see `virga doctor`"),
    }
}

/// Who does not load a program: the verifier has not seen it where files are lacking.
fn refuser(error: &(dyn std::error::Error + 'static)) -> &'static str {
    match cause::is_out_of_files(error) {
        true => "the kernel does not load",
        false => "the kernel's verifier refuses",
    }
}

/// A program's error without the verifier's output, which has thousands of lines.
fn brief(error: &NicError) -> String {
    let text = error.to_string();
    let whole = text.split(" Verifier output:").next().unwrap_or_default();
    whole.trim_end_matches('.').to_owned()
}

fn pin_error(path: &Path, source: io::Error) -> NicError {
    NicError::Pin {
        path: path.to_path_buf(),
        source,
    }
}

/// What runs on an interface.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Attached {
    /// The interface's name.
    pub interface: String,
    /// Its index when the program was attached.
    pub ifindex: u32,
    /// `native` or `generic`.
    pub xdp_mode: &'static str,
    /// [`FORWARD`], [`SAMPLE`] or [`PASS`].
    pub program: &'static str,
}

/// What an update of the NIC path did.
#[derive(Debug, Default)]
pub struct Update {
    /// What was attached.
    pub attached: Vec<Attached>,
    /// Why configured interfaces do not run the program.
    pub missing: Vec<NicError>,
}

/// The loaded NIC path of one node.
pub struct Nic {
    pins: Pins,
    mode: XdpMode,
    destinations_max: u32,
    ebpf: Ebpf,
    maps: Maps,
    publisher: Publisher,
    egress: BTreeMap<u32, u32>,
    attached: BTreeMap<u32, (Attached, PathBuf)>,
    /// What interfaces that forward run: [`FORWARD`] or [`SAMPLE`].
    forward: &'static str,
    samples: Arc<Mutex<Samples>>,
    /// Why the kernel has not loaded [`SAMPLE`].
    no_samples: Option<String>,
    /// Interfaces that AF_XDP sockets were opened on.
    ports: Vec<xsk::Port>,
    /// Held while this daemon runs.
    _lock: Arc<fs::File>,
}

/// The mode's name in logs and status.
#[must_use]
pub fn mode_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Skb => "generic",
        _ => "native",
    }
}

impl fmt::Debug for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nic")
            .field("pins", &self.pins)
            .field("attached", &self.attached)
            .finish()
    }
}

impl Nic {
    /// Loads the NIC path, brings its maps to what configuration and kernel say, and attaches it to the
    /// configured interfaces. Maps come first: an interface never runs a program without its tables. An
    /// interface that is missing for the moment is followed as [`Self::update`] does.
    ///
    /// # Errors
    /// When there can be no NIC path; what was attached by an earlier daemon goes on as it was.
    pub fn start(
        config: &Config,
        facts: &Facts,
        down: &Down,
        learned: impl Fn(&mut Image),
        entropy: impl FnMut() -> u64,
    ) -> Result<(Self, Update), NicError> {
        let pins = Pins::of(&config.node.name);
        let failed = |e| pin_error(pins.root(), e);
        pins.create_root().map_err(failed)?;
        let lock = pins.lock().map_err(failed)?;
        let lock = lock.ok_or_else(|| NicError::Running(config.node.name.clone()))?;
        // Nobody else changes the pins from here on.
        let lock = Arc::new(lock);
        if let Some(newer) = pins.newer_layout() {
            tracing::warn!(
                newer,
                own = LAYOUT_VERSION,
                "a newer version's maps are pinned: its program goes on until this version's own maps are filled"
            );
        }
        let (is_new, before) = (pins.is_empty(), pins.links());
        let opened = Self::open(config, pins.clone(), Arc::clone(&lock));
        let started = opened.and_then(|mut nic| {
            let update = nic.update(config, facts, down, learned, entropy)?;
            // What goes on in the mode that it had is not what is asked for.
            let asked = mode_name(nic.mode);
            let mut attached = nic.attached.values().map(|(attached, _)| attached);
            let is_forwarding = attached.any(|one| one.program != PASS && one.xdp_mode == asked);
            let update = start::judge(
                config.forwarding.mode,
                is_forwarding,
                !before.is_empty(),
                update,
            )?;
            Ok((nic, update))
        });
        if started.is_err() {
            // What this start attached and pinned goes again; the error is the one worth telling.
            let _removed = pins.remove_other_links(&before);
            if is_new {
                let _removed = pins.remove();
            }
        }
        started
    }

    /// Follows a change of the kernel's facts or of an operator's mind. Interfaces that came back get
    /// their program again; one that refuses keeps what it has, and the others their own.
    ///
    /// # Errors
    /// When a map or a pin refuses; the next update tries again.
    pub fn update(
        &mut self,
        config: &Config,
        facts: &Facts,
        down: &Down,
        learned: impl Fn(&mut Image),
        entropy: impl FnMut() -> u64,
    ) -> Result<Update, NicError> {
        self.forget_gone(facts);
        let mut image = image::of_nic(config, facts, down, |ifindex| self.egress_place(ifindex))?;
        learned(&mut image);
        self.publisher.apply(&mut self.maps, &image, entropy)?;
        let mut update = Update::default();
        let mut wanted: Vec<&Interface> = Vec::new();
        for name in &config.forwarding.interfaces {
            let done = start::attachable(facts, name).and_then(|interface| {
                wanted.push(interface);
                self.ensure(interface, self.forward)
            });
            match done {
                Ok(one) => update.attached.extend(one),
                Err(error) => update.missing.push(error),
            }
        }
        if matches!(self.mode, XdpMode::Driver) {
            for interface in redirect_targets(config, facts, &image) {
                wanted.push(interface);
                match self.ensure(interface, PASS) {
                    Ok(one) => update.attached.extend(one),
                    // Whatever runs there already serves as well.
                    Err(error) => {
                        tracing::debug!(interface = %interface.name, %error, "redirect target kept as it is");
                    }
                }
            }
        }
        self.remove_others(&wanted)?;
        Ok(update)
    }

    /// Has routes that have another next hop do without a neighbour, until the next update says otherwise.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn avoid(&mut self, neighbour: SocketAddr) -> Result<(), NicError> {
        let (target, port) = (neighbour.ip().into(), neighbour.port());
        let avoided = self.publisher.avoid(&mut self.maps, target, port);
        avoided.map_err(PublishError::Store)?;
        Ok(())
    }

    /// Removes links that no `wanted` interface has, and maps that no link's program reads any more.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    fn remove_others(&self, wanted: &[&Interface]) -> Result<(), NicError> {
        let failed = |e| pin_error(self.pins.root(), e);
        // An interface that refused this daemon's program keeps the earlier one.
        let on = |i: &&Interface| self.pins.links_on(i.ifindex);
        let attached = self.attached.values().map(|(_, pin)| pin.clone());
        let kept: Vec<PathBuf> = attached.chain(wanted.iter().flat_map(on)).collect();
        for pin in self.pins.remove_other_links(&kept).map_err(failed)? {
            tracing::info!(pin = %pin.display(), "XDP program detached: the interface is gone or not configured");
        }
        let is_new = |pin: &PathBuf| self.attached.values().any(|(_, one)| one == pin);
        if self.pins.links().iter().all(is_new) {
            let others = self.pins.remove_other_maps(self.destinations_max);
            others.map_err(failed)?;
        }
        Ok(())
    }

    /// Loads the programs and takes the node's pinned maps, or makes them. Attaches nothing yet.
    ///
    /// # Errors
    /// When bpffs, maps or verifier refuse.
    fn open(config: &Config, pins: Pins, lock: Arc<fs::File>) -> Result<Self, NicError> {
        let destinations_max = config.forwarding.destinations_max;
        pins.create(destinations_max)
            .map_err(|e| pin_error(pins.root(), e))?;
        let (mut ebpf, maps) = maps::load(Some(&pins.maps(destinations_max)), destinations_max)?;
        let samples = Arc::new(Mutex::new(Samples::take(&mut ebpf)?));
        let publisher = Publisher::recover(&maps).map_err(NicError::Recover)?;
        let layout = maps.settings().map_err(NicError::Recover)?.layout;
        if layout != 0 && layout != LAYOUT_VERSION {
            return Err(NicError::Layout { found: layout });
        }
        for name in [FORWARD, PASS] {
            let program = maps::program(&mut ebpf, name)?;
            let pin = pins.program(name);
            if pin.exists() {
                fs::remove_file(&pin).map_err(|e| pin_error(&pin, e))?;
            }
            program
                .pin(&pin)
                .map_err(|e| pin_error(&pin, io::Error::other(e)))?;
        }
        // Now, as the daemon soon gives up what loading takes. A kernel that refuses it forwards all the same.
        let no_samples = maps::program(&mut ebpf, SAMPLE).err();
        let no_samples = no_samples.map(|error| {
            tracing::warn!(%error, "the NIC path shows no packets to captures");
            brief(&error)
        });
        let mode = match config.forwarding.mode {
            ForwardingMode::Generic => XdpMode::Skb,
            _ => XdpMode::Driver,
        };
        let egress = maps
            .egress()
            .into_iter()
            .map(|(place, ifindex)| (ifindex, place))
            .collect();
        let attached = BTreeMap::new();
        Ok(Self {
            pins,
            mode,
            destinations_max,
            ebpf,
            maps,
            publisher,
            egress,
            attached,
            forward: FORWARD,
            samples,
            no_samples,
            ports: Vec::new(),
            _lock: lock,
        })
    }

    /// Forgets interfaces that are no more or run something else, and the places of redirect targets
    /// that are no more.
    fn forget_gone(&mut self, facts: &Facts) {
        let ids = [FORWARD, SAMPLE, PASS].map(|name| maps::program_id(&self.ebpf, name));
        let runs_ours = |i: &Interface| i.xdp_program.is_some() && ids.contains(&i.xdp_program);
        self.attached
            .retain(|ifindex, _| facts.interfaces.get(ifindex).is_some_and(runs_ours));
        let listed = self.maps.egress();
        self.egress.retain(|ifindex, place| {
            facts.interfaces.contains_key(ifindex) && listed.contains(&(*place, *ifindex))
        });
    }

    /// Place of an egress interface in the device map; a place is kept while its interface is there.
    ///
    /// # Errors
    /// When there are too many, or the kernel refuses the interface.
    fn egress_place(&mut self, ifindex: u32) -> Result<u32, NicError> {
        if let Some(place) = self.egress.get(&ifindex) {
            return Ok(*place);
        }
        let used: Vec<u32> = self.egress.values().copied().collect();
        let place = (0..PORTS_MAX)
            .find(|p| !used.contains(p))
            .ok_or(NicError::Ports)?;
        self.maps.set_egress(place, ifindex)?;
        self.egress.insert(ifindex, place);
        Ok(place)
    }

    /// Sees to it that `program` runs on the interface, also after the interface went and came back.
    /// Returns what was attached, if anything had to be.
    ///
    /// # Errors
    /// When the kernel refuses, with the fix.
    fn ensure(
        &mut self,
        interface: &Interface,
        program: &'static str,
    ) -> Result<Option<Attached>, NicError> {
        let held = self.attached.get(&interface.ifindex);
        if held.is_some_and(|(a, _)| a.interface == interface.name && a.program == program) {
            return Ok(None);
        }
        let xdp = maps::program(&mut self.ebpf, program)?;
        let done = links::attach(&self.pins, xdp, interface, self.mode);
        let (pin, mode) = match &done {
            Ok(pin) => (pin.clone(), self.mode),
            // It goes on in the mode that it had, and is not taken off that again and again.
            Err(_) => {
                let other = links::other(self.mode);
                let (name, ifindex) = (&interface.name, interface.ifindex);
                (self.pins.link(name, ifindex, mode_name(other)), other)
            }
        };
        if !pin.exists() {
            return done.map(|_| None);
        }
        let attached = Attached {
            interface: interface.name.clone(),
            ifindex: interface.ifindex,
            xdp_mode: mode_name(mode),
            program,
        };
        self.attached
            .insert(interface.ifindex, (attached.clone(), pin));
        done.map(|_| Some(attached))
    }

    /// What runs where.
    #[must_use]
    pub fn attached(&self) -> Vec<Attached> {
        self.attached
            .values()
            .map(|(attached, _)| attached.clone())
            .collect()
    }

    /// Names of the interfaces that forward.
    #[must_use]
    pub fn forwarding(&self) -> Vec<String> {
        let all = self.attached.values().map(|(attached, _)| attached);
        all.filter(|one| one.program != PASS)
            .map(|one| one.interface.clone())
            .collect()
    }

    /// Sums of all CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<Counter>, NicError> {
        self.maps.counters()
    }

    /// The live guard.
    #[must_use]
    pub fn guard(&self) -> Option<GuardStatus> {
        self.publisher.guard()
    }
}

/// Interfaces that packets are redirected to and that have no forwarding program: some drivers give
/// their transmit rings only to interfaces with a program of their own, and a veth hands a redirected
/// frame only to a peer that has one.
fn redirect_targets<'a>(config: &Config, facts: &'a Facts, image: &Image) -> Vec<&'a Interface> {
    let egress = image
        .next_hops
        .values()
        .filter_map(|n| facts.interfaces.get(&n.ifindex));
    let peers = egress
        .clone()
        .filter_map(|i| facts.interfaces.get(&i.peer_here?));
    let mut targets: Vec<&Interface> = egress
        .chain(peers)
        .filter(|i| !config.forwarding.interfaces.contains(&i.name))
        .collect();
    targets.sort_by_key(|i| i.ifindex);
    targets.dedup_by_key(|i| i.ifindex);
    targets
}

/// Whether an earlier daemon's programs are attached, or this one's.
#[must_use]
pub fn is_attached(node: &str) -> bool {
    !Pins::of(node).links().is_empty()
}

/// Detaches a node's programs and removes its pins. True if there was something.
///
/// # Errors
/// When the node's daemon runs, or a pin cannot be removed.
pub fn detach(node: &str) -> Result<bool, NicError> {
    let pins = Pins::of(node);
    let failed = |e| pin_error(pins.root(), e);
    // Who may not look cannot say that there is none.
    if !pins.root().try_exists().map_err(failed)? {
        return Ok(false);
    }
    let lock = pins.lock().map_err(failed)?;
    if lock.is_none() {
        return Err(NicError::Running(node.to_owned()));
    }
    pins.remove().map_err(failed)
}
