//! The traffic programs (`ebpf/src/traffic.rs`), loaded: generator, sink, and the references that a
//! forwarder is held against.
//!
//! The generator sends by live test runs of its program (`BPF_PROG_TEST_RUN`, Linux 5.18): the kernel
//! runs it over frames of its own, in batches, and what it redirects leaves through the interface's
//! XDP transmit path. Each call costs the kernel some tens of milliseconds, whatever it sends: it waits for
//! all CPUs to leave what they read (RCU). Everything here acts in the network namespace of the calling thread.

use std::{fmt, io, net::UdpSocket};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{DevMap, Map, MapData, MapError},
    programs::{ProgramError, Xdp, XdpMode},
};
use virga_ebpf::workload::{CAPTURED_BYTES_MAX, CAPTURED_MAX};

pub use super::plan::Plan;
use super::plan::PlanError;
use crate::doctor::interface::FactsError;

pub(super) mod egress;
pub(super) mod generator;
mod sink;

pub use egress::check;
pub use generator::{Core, Generator, Sent, Until};
pub use sink::{Latency, Measured, Sink};

/// The built object; `scripts/build-ebpf` makes it from `ebpf/src/traffic.rs`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../ebpf/prebuilt/traffic.bpf.o"
));

/// The program that sends every frame to another interface as it is.
pub const REDIRECT: &str = "virga_redirect";
/// The program that does nothing.
pub const NULL: &str = "virga_null";

/// Why traffic could not be made or measured.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LiveError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("the traffic programs' maps could not be made: {0}; root is needed")]
    Load(Box<aya::EbpfError>),
    #[error("the built object has no `{0}`: rebuild it with `scripts/build-ebpf`")]
    Object(&'static str),
    #[error("the kernel refuses program `{0}`: {1}")]
    Program(&'static str, Box<ProgramError>),
    #[error("map {0}: {1}")]
    Map(&'static str, MapError),
    #[error("interface {0}: {1}")]
    Interface(String, io::Error),
    #[error("live test run on CPU {cpu}: {source}; it needs Linux 5.18")]
    Run { cpu: u32, source: Box<ProgramError> },
    #[error("CPU {0} cannot be run on: {1}")]
    Cpu(u32, io::Error),
    #[error("interface {0}: {1}")]
    Facts(String, Box<FactsError>),
    #[error("{0} is down and would send nothing: ip link set dev {0} up")]
    Down(String),
    #[error("{0} has no carrier and would send nothing: its cable, or the other end, is not up")]
    NoCarrier(String),
    #[error(
        "frames of {bytes} bytes: with its MTU of {mtu}, {interface} sends at most {takes_max}: \
         make them smaller, or ip link set dev {interface} mtu {}", bytes.saturating_sub(14)
    )]
    TooBig {
        bytes: u32,
        mtu: u32,
        takes_max: u32,
        interface: String,
    },
    #[error(
        "{0} takes no redirected frames now: a veth takes them when its other end runs a native program \
         (`virga sink` is one) or has GRO on, some cards while they run a program; see `virga doctor --interface {0}`"
    )]
    NoTarget(String),
    #[error("the capture holds no frames: there is nothing to send")]
    NoFrames,
    #[error("{0} captured frames: {CAPTURED_MAX} can be sent at most")]
    Captured(usize),
    #[error("captured frame {number} has {bytes} bytes: 14 to {CAPTURED_BYTES_MAX} can be sent")]
    CapturedBytes { number: u32, bytes: usize },
    #[error("the generator's program sends nothing more after {0} packets")]
    Stuck(u64),
    #[error("no randomness: {0}")]
    Random(getrandom::Error),
    #[error("the interface's counters cannot be read: {0}")]
    Counters(io::Error),
}

/// Where in the driver a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// In the driver.
    Native,
    /// After the driver; any interface has it.
    Generic,
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Native => Self::Driver,
            Mode::Generic => Self::Skb,
        }
    }
}

/// Loads one of the object's programs, and maps of as many entries. The program comes first: it finds
/// its maps by descriptors, which close when whoever took a map is done with it.
fn load(name: &'static str, entries: &[(&'static str, u32)]) -> Result<Ebpf, LiveError> {
    let mut loader = EbpfLoader::new();
    loader.btf(None).verifier_log_level(VerifierLogLevel::STATS);
    for (map, count) in entries {
        loader.map_max_entries(map, *count);
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|e| LiveError::Load(Box::new(e)))?;
    let loaded = program(&mut ebpf, name)?.load();
    loaded.map_err(|e| LiveError::Program(name, Box::new(e)))?;
    Ok(ebpf)
}

fn map<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, LiveError> {
    let map = ebpf.take_map(name).ok_or(LiveError::Object(name))?;
    M::try_from(map).map_err(|e| LiveError::Map(name, e))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, LiveError> {
    let program = ebpf.program_mut(name).ok_or(LiveError::Object(name))?;
    program.try_into().map_err(|_| LiveError::Object(name))
}

/// Attaches a program until `ebpf` is dropped.
fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    interface: &str,
    mode: Mode,
) -> Result<(), LiveError> {
    let ifindex = ifindex(interface)?;
    program(ebpf, name)?
        .attach_to_if_index(ifindex, mode.into())
        .map_err(|e| LiveError::Interface(interface.to_owned(), io::Error::other(e)))?;
    Ok(())
}

/// Index of an interface in this thread's namespace.
fn ifindex(interface: &str) -> Result<u32, LiveError> {
    // Any address: in a new namespace even loopback may be down.
    UdpSocket::bind("0.0.0.0:0")
        .or_else(|_| UdpSocket::bind("[::]:0"))
        .and_then(|socket| Ok(rustix::net::netdevice::name_to_index(&socket, interface)?))
        .map_err(|e| LiveError::Interface(interface.to_owned(), e))
}

/// Makes an interface the one that `ebpf`'s programs send through.
fn set_egress(ebpf: &mut Ebpf, interface: &str) -> Result<(), LiveError> {
    let mut egress: DevMap<MapData> = map(ebpf, "egress")?;
    egress
        .set(0, ifindex(interface)?, None, 0)
        .map_err(|e| LiveError::Interface(interface.to_owned(), io::Error::other(e)))
}

/// A program that stays on its interface as long as this lives.
pub struct Attached {
    _ebpf: Ebpf,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

impl Attached {
    /// Sends all that arrives at one interface out of another, as it is: the least that a forwarder in
    /// XDP can do.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn redirect(from: &str, to: &str, mode: Mode) -> Result<Self, LiveError> {
        let mut ebpf = load(REDIRECT, &[])?;
        set_egress(&mut ebpf, to)?;
        attach(&mut ebpf, REDIRECT, from, mode)?;
        Ok(Self { _ebpf: ebpf })
    }

    /// Lets all that arrives at an interface through: what a veth needs for its peer to be a redirect
    /// target.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn null(interface: &str, mode: Mode) -> Result<Self, LiveError> {
        let mut ebpf = load(NULL, &[])?;
        attach(&mut ebpf, NULL, interface, mode)?;
        Ok(Self { _ebpf: ebpf })
    }
}
