//! Frames: sent out of the kernel, written to a file, or read from one.

use std::{
    fs,
    io::{self, BufReader, BufWriter, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use virga_ebpf::header::{ChannelHash, NodeId, OriginHash};
use virga_transport::io::xsk::queue::Copying;

use super::{Arguments, Failure};
use crate::{
    cli::print_json,
    files,
    generate::{
        live::{self, Core, Generator, LiveError, Sent, Until},
        pcap,
        plan::{Path, Plan, Spread},
        profile::Profile,
        socket::Kind,
        xsk::{self, What, XskError},
    },
    hw::Kernel,
    nic::kernel::{Interface, Kernel as Netlink, Link},
};

/// How often, and how long apart, the kernel is asked for the next hop's address while it resolves it.
const RESOLVE_ATTEMPTS: u32 = 20;
const RESOLVE_PAUSE: Duration = Duration::from_millis(50);
/// Where a packet is sent to make the kernel resolve a next hop: discard (RFC 863).
const DISCARD: u16 = 9;
/// Since when a program runs over frames that leave.
const LIVE_SINCE: Kernel = Kernel(5, 18);
/// Frames of a file, when neither a number nor a rate is said.
const FILE_FRAMES: u64 = 10_000;
/// Packets a second by a file's time stamps, when nothing is said.
const FILE_RATE: u32 = 1_000_000;

/// Sends out of the kernel.
pub(super) fn send(
    arguments: &Arguments,
    to: SocketAddr,
    destination: NodeId,
) -> Result<(), Failure> {
    let (path, interface) = path(arguments, to)?;
    let interface = interface.ok_or_else(|| {
        Failure::Usage("--interface is missing: nothing says where to send".into())
    })?;
    let plan = plan(arguments, path, destination)?;
    let cpus = cpus(arguments.frames.cores)?;
    let bytes = plan.frame_bytes_max().map_err(LiveError::from)?;
    let by = way(arguments, &interface, bytes)?;
    let sent = match by {
        Way::Live => Generator::new(&interface, &plan, &cpus)?.run(until(arguments))?,
        Way::AfXdp(copying) => {
            let what = What::Plan(&plan);
            xsk::send(&interface, what, &cpus, copying, until(arguments))?
        }
    };
    tell(arguments, &interface, by, &sent)
}

/// How frames are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From inside the kernel.
    Live,
    /// Through AF_XDP sockets.
    AfXdp(Copying),
}

impl Way {
    const fn text(self) -> &'static str {
        match self {
            Self::Live => "xdp",
            Self::AfXdp(Copying::Always) => "af-xdp, copied",
            Self::AfXdp(Copying::Avoided | Copying::Never) => "af-xdp, zero-copy",
        }
    }
}

/// As asked; AF_XDP instead where nothing can be sent from inside the kernel.
fn way(arguments: &Arguments, interface: &str, frame_bytes_max: u32) -> Result<Way, Failure> {
    let frames = &arguments.frames;
    if frames.af_xdp {
        return Ok(Way::AfXdp(if frames.zero_copy {
            Copying::Never
        } else {
            Copying::Always
        }));
    }
    let why = match live::check(interface, frame_bytes_max) {
        Err(error @ LiveError::NoTarget(_)) => error.to_string(),
        Err(error) => return Err(error.into()),
        Ok(()) if Kernel::running().is_some_and(|kernel| kernel < LIVE_SINCE) => {
            format!("live test runs need Linux {LIVE_SINCE}")
        }
        Ok(()) => return Ok(Way::Live),
    };
    // With nobody to read it there is nobody to tell.
    let _told = writeln!(io::stderr(), "sending through AF_XDP: {why}");
    Ok(Way::AfXdp(Copying::Always))
}

/// Sends a capture.
pub(super) fn replay(arguments: &Arguments, file: &FilePath) -> Result<(), Failure> {
    let failed = |e: pcap::PcapError| Failure::Runtime(named(file, e).into());
    let open = files::open(file).map_err(|e| failed(e.into()))?;
    let frames = pcap::read(BufReader::new(open)).map_err(failed)?;
    // Clap asks for it along with the capture.
    let interface = arguments.frames.interface.clone().unwrap_or_default();
    let cpu = cpus(1)?[0];
    let largest = frames
        .iter()
        .map(Vec::len)
        .max()
        .ok_or(LiveError::NoFrames)?;
    let by = way(
        arguments,
        &interface,
        u32::try_from(largest).unwrap_or(u32::MAX),
    )?;
    let rate = arguments.rate.map(u64::from);
    let sent = match by {
        Way::Live => {
            Generator::of_capture(&interface, &frames, rate, cpu)?.run(until(arguments))?
        }
        Way::AfXdp(copying) => {
            let what = What::Captured(&frames, rate);
            xsk::send(&interface, what, &[cpu], copying, until(arguments))?
        }
    };
    tell(arguments, &interface, by, &sent)
}

/// Writes a capture, and what another generator needs with it.
pub(super) fn write(
    arguments: &Arguments,
    to: SocketAddr,
    destination: NodeId,
    file: &FilePath,
) -> Result<(), Failure> {
    let (path, _) = path(arguments, to)?;
    let plan = plan(arguments, path, destination)?;
    let count = match (arguments.frames.count, arguments.rate) {
        (Some(count), _) => count,
        (None, Some(rate)) => u64::from(rate) * arguments.seconds,
        (None, None) => FILE_FRAMES,
    };
    let count = usize::try_from(count).map_err(Failure::runtime)?;
    let run = getrandom::u32().map_err(Failure::runtime)?.max(1);
    let frames = || plan.frames(run).map(|frames| frames.take(count));
    let profile = match arguments.frames.profile {
        Some(profile) => Some(profile_of(
            profile,
            file,
            count,
            frames().map_err(usage)?,
            to.port(),
        )?),
        None => None,
    };
    let failed = |e: io::Error| Failure::Runtime(named(file, e).into());
    let out = BufWriter::new(fs::File::create(file).map_err(failed)?);
    let interval_ns = 1_000_000_000 / u64::from(arguments.rate.unwrap_or(FILE_RATE));
    pcap::write(out, frames().map_err(usage)?, interval_ns).map_err(failed)?;
    if let Some((beside, text)) = profile {
        fs::write(&beside, text).map_err(|e| Failure::Runtime(named(&beside, e).into()))?;
    }
    if arguments.json {
        return print_json(&serde_json::json!({ "written": count }));
    }
    Ok(writeln!(
        io::stdout(),
        "{count} frames written to {}",
        file.display()
    )?)
}

/// A profile's file beside a capture, and what is to be in it.
fn profile_of(
    profile: Profile,
    file: &FilePath,
    count: usize,
    frames: impl Iterator<Item = Vec<u8>>,
    port: u16,
) -> Result<(PathBuf, String), Failure> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    if name.contains(['"', '\\', '\n']) {
        return Err(Failure::Usage(
            format!("{name}: a profile cannot name this file").into(),
        ));
    }
    let beside = file.with_extension(profile.extension());
    if beside == file {
        let why = format!("{name} is the profile's own file: let the capture's end in .pcap");
        return Err(Failure::Usage(why.into()));
    }
    let text = profile.text(&name, count, frames, port).map_err(usage)?;
    Ok((beside, text))
}

fn named(file: &FilePath, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", file.display())
}

fn usage(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::Usage(error.into())
}

impl From<LiveError> for Failure {
    fn from(error: LiveError) -> Self {
        match error {
            LiveError::Plan(error) => Self::Usage(error.into()),
            _ => Self::Runtime(error.into()),
        }
    }
}

impl From<XskError> for Failure {
    fn from(error: XskError) -> Self {
        match error {
            XskError::Live(error) => error.into(),
            _ => Self::Runtime(error.into()),
        }
    }
}

fn until(arguments: &Arguments) -> Until {
    match arguments.frames.count {
        Some(count) => Until::Count(count),
        None => Until::Elapsed(Duration::from_secs(arguments.seconds)),
    }
}

fn plan(arguments: &Arguments, path: Path, destination: NodeId) -> Result<Plan, Failure> {
    let frames = &arguments.frames;
    let (origin, channel) = (OriginHash(arguments.origin), ChannelHash(arguments.channel));
    let plan = Plan::new(path, destination, origin, channel);
    let hostile_permille = match arguments.kind {
        Kind::Plain => frames.hostile,
        Kind::Unauthorised => 1_000,
        Kind::Handshake | Kind::Malformed => {
            let why = "--kind: handshakes and malformed packets go through a socket only";
            return Err(Failure::Usage(why.into()));
        }
    };
    Ok(Plan {
        spread: if frames.destinations {
            Spread::Destinations
        } else {
            Spread::Sessions
        },
        flows: frames.flows,
        subnet: arguments.subnet(),
        hostile_permille,
        sizes: frames.size.unwrap_or(plan.sizes),
        rate: arguments.rate.map(u64::from),
        is_stamped: frames.stamp,
        ..plan
    })
}

/// The first CPUs that this process may run on.
fn cpus(count: u32) -> Result<Vec<u32>, Failure> {
    let allowed = rustix::thread::sched_getaffinity(None).map_err(io::Error::from)?;
    let all = 0..u32::try_from(rustix::thread::CpuSet::MAX_CPU).unwrap_or(u32::MAX);
    let cpus: Vec<u32> = all
        .filter(|cpu| allowed.is_set(*cpu as usize))
        .take(count as usize)
        .collect();
    if cpus.len() < count as usize {
        let why = format!("--cores {count}: this process may use {}", cpus.len());
        return Err(Failure::Usage(why.into()));
    }
    Ok(cpus)
}

/// The outer headers, and the interface: as said, and where nothing is said as the kernel would send.
fn path(arguments: &Arguments, to: SocketAddr) -> Result<(Path, Option<String>), Failure> {
    let frames = &arguments.frames;
    let said = (arguments.from, frames.from_mac, frames.to_mac);
    let (source, source_mac, target_mac, interface) = match said {
        (Some(source), Some(from), Some(to)) if frames.interface.is_some() || !frames.xdp => {
            (source, from, to, frames.interface.clone())
        }
        (source, from_mac, to_mac) => {
            let (interface, link) = resolve(to.ip(), to_mac.is_none())?;
            let name = frames.interface.as_ref().unwrap_or(&interface.name);
            if *name != interface.name && (from_mac.is_none() || to_mac.is_none()) {
                let why = format!(
                    "the kernel's route to {} is through {}, not {name}: say --from-mac and --to-mac",
                    to.ip(),
                    interface.name
                );
                return Err(Failure::Usage(why.into()));
            }
            let no_mac = || {
                let why = format!(
                    "the link-layer address of {} is not known: say --to-mac",
                    link.gateway
                );
                Failure::Runtime(why.into())
            };
            (
                source.unwrap_or(link.source),
                from_mac.unwrap_or(interface.mac),
                to_mac.or(link.mac).ok_or_else(no_mac)?,
                Some(name.clone()),
            )
        }
    };
    let path = Path {
        source_mac,
        target_mac,
        vlan: frames.vlan,
        source,
        target: to.ip(),
        port: to.port(),
    };
    Ok((path, interface))
}

/// How the kernel sends to an address. Where it must know the next hop's link-layer address, it is given
/// a reason to ask for it, and time.
fn resolve(target: IpAddr, wants_mac: bool) -> Result<(Interface, Link), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (kernel, _changes) = Netlink::connect().map_err(Failure::runtime)?;
        let mut attempts = RESOLVE_ATTEMPTS;
        loop {
            let found = kernel.link_to(target).await.map_err(Failure::runtime)?;
            let no_route = || Failure::Runtime(format!("no route to {target}").into());
            let (interface, link) = found.ok_or_else(no_route)?;
            if link.mac.is_some() || !wants_mac || attempts == 0 {
                return Ok((interface, link));
            }
            attempts -= 1;
            let socket = UdpSocket::bind((link.source, 0))?;
            // What comes of it shows in the kernel's table.
            let _asked = socket.send_to(&[], (target, DISCARD));
            tokio::time::sleep(RESOLVE_PAUSE).await;
        }
    })
}

/// Says what was sent.
fn tell(arguments: &Arguments, interface: &str, by: Way, sent: &Sent) -> Result<(), Failure> {
    if arguments.json {
        return print_json(&serde_json::json!({
            "by": by.text(),
            "sent": sent.packets(),
            "authorised": sent.authorised,
            "hostile": sent.hostile,
            "refused": sent.refused,
            "counted": sent.counted,
            "bytes": sent.bytes,
            "elapsed_ns": sent.elapsed_ns,
            "cores": sent.cores,
        }));
    }
    let seconds = Duration::from_nanos(sent.elapsed_ns).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    let per_second = |count: u64| count as f64 / seconds.max(1e-9);
    let each = |core: &Core| format!("CPU {} {}", core.cpu, core.authorised + core.hostile);
    let each: Vec<String> = sent.cores.iter().map(each).collect();
    let words = format!(
        "{} packets ({} of unknown origins) made in {seconds:.3} s by {}: {:.3} million a second, {:.3} Gbit/s of frames; \
         {interface} dropped {} and counted {} as sent; made by {}",
        sent.authorised + sent.hostile,
        sent.hostile,
        by.text(),
        per_second(sent.authorised + sent.hostile) / 1e6,
        per_second(sent.bytes * 8) / 1e9,
        sent.refused,
        sent.counted,
        each.join(", ")
    );
    Ok(writeln!(io::stdout(), "{words}")?)
}
