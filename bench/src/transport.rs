//! End nodes: what a packet, an event, a round trip, an idle node and an idle session cost.
//!
//! The limits, with AVX2 at 3 GHz where sealing a packet takes 110 to 130 ns and 0.42 ns a byte
//! (`benches/seal.rs`), and GSO and GRO over loopback some 150 ns a datagram on each side:
//!
//! - `seal_*`: the AEAD is all; the header's 64 bytes are written and read beside it, 10 to 20 ns.
//! - `single_64b`, `batch_64x64b`: events that wait share a packet, of up to the path's size; 17 fill a datagram of
//!   1,232 bytes: 0.6 µs to seal or open, 0.15 in the kernel, so 47 ns an event: 21 million a second. Larger
//!   datagrams leave the 0.42 ns a byte: 30 ns an event, and the copies. The reference sends and opens the same
//!   datagrams without a protocol.
//! - `single_64b_outside`: `single_64b` from a program of its own, through the `Mesh` API and the daemon's socket. On
//!   the sending core an event costs the program a copy (25 ns), a place in a queue (two semaphores and a list, 100),
//!   and being taken out and framed (40); the socket's write and read of 256 events, 17 KiB, and the switches between
//!   the two processes are 8 µs, 30 ns an event; the daemon cuts them out (30) and hands them over to the worker (10),
//!   whose own 47 follow: 280 ns, 3.5 million a second. The receiving core does as much the other way, with the
//!   channel's name in each frame.
//! - `reliable_1k`: 0.8 of what `ring` seals cannot be had: `reliable_1k_bare` sends the same datagrams, sealed, without
//!   a protocol, and the kernel's work for them is the same core's. Over loopback (61 KB a datagram) `ring` seals a KiB
//!   in 455 ns, and the bare sender takes 600: 60 are the kernel's copy, the rest its memory, its way through the stack,
//!   and the other side's wake-up; 0.76 is left. In datagrams of 1,472 bytes it is 605 of 1,045: 0.58. Ours takes 665
//!   over loopback: one copy into the packet (30; the message itself is shared with the application), and 35 for queue,
//!   acknowledgements and frames. The receiver takes 670, bare 575: one copy out of the packet, so that its buffer is
//!   the kernel's again at once, and one event handed over for each message. (Medians of the processor time of the two
//!   threads; on a busy machine the rate is less than that of the slower one.)
//! - `rtt_*`: two system calls and two wake-ups each way, 10 to 20 µs with a sleeping receiver; two seals
//!   and two opens add 0.6 µs, so that 1.05 can be had.
//! - `two_cores`: sender and receiver share a core, then two such pairs have two, the senders being two workers of one
//!   node: nothing is shared on the way, so 2; memory bandwidth and the kernel's shared queues take some of it.
//! - `loss_1pct`: CUBIC at 1 % loss, 20 ms and packets of 1,472 bytes is where it follows Reno (RFC 9438, 4.3): about
//!   1.22 / sqrt(0.01) = 12 packets in flight, 0.83 MB/s, less what acknowledgements wait; quinn-proto's CUBIC meets the same path, so what is measured
//!   is rules, not cycles. `reorder_5pct`: beside the same path without it; 1 can be had.
//! - `idle_rss_mib`: one worker's flow cache and tables are some MiB, the binary some more. Its receive buffers (64 of 64 KiB
//!   on io_uring, 16 on plain system calls) cost what datagrams have touched of them: nothing yet.
//!   With huge pages, which a node does without, all of its tables would be resident: some 42 MiB more. Neither
//!   forwarding in user space nor any figure here was slower without them.
//! - `session_bytes`: two epochs' keys of 1.3 KiB, the replay window of 512 bytes, maps and queues that are empty.
//!
//! Sender and receiver have a core each; the application is a service on its worker's thread, so that an event
//! crosses no thread, but for `single_64b_outside`. A worker sleeps in the kernel when it has nothing to
//! do, on both sides: nothing polls.

use std::{
    net::SocketAddr,
    path::Path as File,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use virga_bench::load::{End, Running, Switch, Task};
use virga_transport::Mode;

use crate::{
    hosts::Hosts,
    interrupt,
    report::{Entry, Skip, failed, skipped},
    rounds::median,
};

pub(crate) mod bare;
mod cores;
mod flow;
mod loss;
mod outside;
mod seal;

use flow::{FLOWS, Figures, Flow};

/// Rounds of what takes a second each.
const LONG_ROUNDS_MAX: u32 = 11;
/// The cores of the sender and the receiver.
const CORES: [usize; 2] = [0, 1];
const MIB: f64 = 1024.0 * 1024.0;
/// How long a node is left alone before its memory is looked at.
const IDLE: Duration = Duration::from_secs(2);

/// What the two ends are joined by.
pub(crate) enum Path {
    Loopback,
    /// Two hosts, `a` and `b`.
    Veth(Box<Hosts>),
}

impl Path {
    fn veth() -> Result<Self, Skip> {
        let mut hosts = Hosts::new("virga-bench", &crate::forward::virga()?).map_err(failed)?;
        for host in ["a", "b"] {
            hosts.add(host).map_err(failed)?;
        }
        hosts
            .join(("a", "m0", "10.78.9.1/24"), ("b", "m0", "10.78.9.2/24"))
            .map_err(failed)?;
        for host in ["a", "b"] {
            // Nothing redirects here: checksums may stay unfinished, and runs of datagrams whole.
            hosts
                .run(host, "ethtool", &["-K", "m0", "tx", "on"])
                .map_err(failed)?;
        }
        Ok(Self::Veth(Box::new(hosts)))
    }

    /// An address of an end, its port not yet chosen.
    fn address(&self, end: usize) -> SocketAddr {
        let ip = match (self, end) {
            (Self::Loopback, _) => [127, 0, 0, 1],
            (Self::Veth(_), 0) => [10, 78, 9, 1],
            (Self::Veth(_), _) => [10, 78, 9, 2],
        };
        SocketAddr::from((ip, 0))
    }

    /// The same with a port that nobody listens on.
    fn port(&self, end: usize) -> Result<SocketAddr, Skip> {
        self.inside(end, || {
            std::net::UdpSocket::bind(self.address(end))?.local_addr()
        })
    }

    /// Runs where an end is.
    pub(crate) fn inside<T: Send>(
        &self,
        end: usize,
        run: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> Result<T, Skip> {
        match self {
            Self::Loopback => run().map_err(failed),
            Self::Veth(hosts) => {
                let host = ["a", "b"][end];
                hosts.inside(host, run).map_err(failed)?.map_err(failed)
            }
        }
    }

    /// A bare socket at each end.
    pub(crate) fn sockets(&self) -> Result<[bare::Socket; 2], Skip> {
        let one = |end| self.inside(end, || bare::Socket::bind(self.address(end)));
        Ok([one(0)?, one(1)?])
    }

    /// Two workers with a session; the first one's application does `task`, the other's the rest.
    pub(crate) fn workers(&self, task: Task) -> Result<[Running; 2], Skip> {
        let answer = match task {
            Task::Ask { .. } => Task::Answer,
            _ => Task::Take,
        };
        let listen = [self.port(0)?, self.port(1)?];
        let start = |end: usize, number: u32, task| {
            let other = 1 - end;
            let end_of = End {
                number,
                listen: listen[end],
                core: Some(CORES[end]),
                peer: 3 - number,
                via: listen[other],
                task,
            };
            self.inside(end, || Running::start(&end_of))
        };
        // The receiver first: the sender connects at once.
        let receiver = start(1, 2, answer)?;
        let sender = start(0, 1, task)?;
        sender.await_session().map_err(failed)?;
        Ok([sender, receiver])
    }
}

/// Measures.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores < CORES.len() {
        return Err(Skip::Missing(format!(
            "sender and receiver want a core each, and there is {cores}"
        )));
    }
    let mut entries = seal::measure(rounds)?;
    let rounds = rounds.min(LONG_ROUNDS_MAX);
    entries.extend(over(&Path::Loopback, rounds, 0)?);
    if rustix::process::geteuid().is_root() {
        entries.extend(over(&Path::veth()?, rounds, 1)?);
    } else {
        skipped("transport over veth", "namespaces need root");
    }
    entries.push(outside::measure(rounds)?);
    entries.extend(cores::measure(rounds)?);
    entries.extend(loss::measure()?);
    match sessions() {
        Ok(entry) => entries.push(entry),
        Err(Skip::Missing(reason)) => skipped("transport.session_bytes", reason),
        Err(failure) => return Err(failure),
    }
    entries.push(idle()?);
    Ok(entries)
}

/// All flows, and round trips, over one path; names are picked by `path`.
fn over(path: &Path, rounds: u32, names: usize) -> Result<Vec<Entry>, Skip> {
    let mut entries = Vec::new();
    for flow in &FLOWS {
        entries.push(unreliable(path, flow, rounds, names)?);
    }
    entries.extend(reliable(path, rounds, names)?);
    entries.extend(round_trips(path, rounds, names)?);
    Ok(entries)
}

/// Events that come, beside what the same datagrams carry without a protocol.
fn unreliable(path: &Path, flow: &Flow, rounds: u32, names: usize) -> Result<Entry, Skip> {
    let ends = path.workers(Task::Offer {
        event_bytes: flow.event_bytes,
        batch: flow.batch,
        mode: Mode::Unreliable,
    })?;
    let sockets = path.sockets()?;
    let mut figures = Figures::default();
    for _ in 0..rounds {
        interrupt::check()?;
        let ours = flow::of_workers(&ends)?;
        let shape = ours.shape(flow.event_bytes);
        let sockets = [&sockets[0], &sockets[1]];
        let came = bare::flow(sockets, CORES, shape, flow::WINDOW).map_err(failed)?;
        figures.push(&ours, &came);
    }
    ends.into_iter().for_each(Running::stop);
    figures.explain(flow.names[names]);
    Ok(figures.entry(flow.names[names], Some(flow.asked)))
}

/// Bytes of events that come, all of them, beside what `ring` alone seals; and what of that the same datagrams reach
/// without a protocol.
fn reliable(path: &Path, rounds: u32, names: usize) -> Result<[Entry; 2], Skip> {
    const EVENT_BYTES: usize = 1_024;
    let name = ["transport.reliable_1k", "transport.reliable_1k_veth"][names];
    let bare_name = [
        "transport.reliable_1k_bare",
        "transport.reliable_1k_bare_veth",
    ][names];
    let ends = path.workers(Task::Offer {
        event_bytes: EVENT_BYTES,
        batch: 1,
        mode: Mode::Ordered,
    })?;
    let sockets = path.sockets()?;
    let (mut ours, mut reference, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bare, mut bare_ratios) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        interrupt::check()?;
        let one = flow::of_workers(&ends)?;
        let payload_bytes = one.payload_bytes();
        let other = seal::ring_rate(CORES[0], payload_bytes);
        ours.push(one.gigabytes());
        reference.push(other);
        ratios.push(one.gigabytes() / other);
        one.explain(name);
        let shape = one.shape(EVENT_BYTES);
        let sockets = [&sockets[0], &sockets[1]];
        let came = bare::flow(sockets, CORES, shape, flow::WINDOW).map_err(failed)?;
        let rate = came.gigabytes(EVENT_BYTES as u64);
        bare.push(rate);
        bare_ratios.push(rate / other);
    }
    ends.into_iter().for_each(Running::stop);
    let entry = |name, rates: &[f64], ratios: &[f64]| {
        Entry::new(name, "GB/s", median(rates))
            .beside(median(&reference))
            .ratio(median(ratios))
            .spread(ratios)
    };
    Ok([
        entry(name, &ours, &ratios).limit(0.8),
        entry(bare_name, &bare, &bare_ratios),
    ])
}

/// Round trips of one event of 64 bytes, beside plain datagrams of the same size as ours.
fn round_trips(path: &Path, rounds: u32, names: usize) -> Result<Vec<Entry>, Skip> {
    const EVENT_BYTES: usize = 64;
    let ends = path.workers(Task::Ask {
        event_bytes: EVENT_BYTES,
    })?;
    let sockets = path.sockets()?;
    let mut quantiles = [
        (0.50, Vec::new(), Vec::new()),
        (0.99, Vec::new(), Vec::new()),
    ];
    for _ in 0..rounds {
        interrupt::check()?;
        let ours = flow::round_trips(&ends[0])?;
        let sockets = [&sockets[0], &sockets[1]];
        let bare = bare::ping_pong(sockets, CORES, EVENT_BYTES, flow::WINDOW).map_err(failed)?;
        for (part, of_ours, of_bare) in &mut quantiles {
            of_ours.push(flow::quantile_us(&ours, *part));
            of_bare.push(flow::quantile_us(&bare, *part));
        }
    }
    ends.into_iter().for_each(Running::stop);
    let names = [
        ["transport.rtt_p50", "transport.rtt_p50_veth"][names],
        ["transport.rtt_p99", "transport.rtt_p99_veth"][names],
    ];
    let entry = |(name, (_, ours, bare)): (&'static str, (f64, Vec<f64>, Vec<f64>))| {
        let ratios: Vec<f64> = ours.iter().zip(&bare).map(|(a, b)| a / b).collect();
        Entry::new(name, "µs", median(&ours))
            .beside(median(&bare))
            .ratio(median(&ratios))
            .spread(&ours)
            .limit(1.3 * median(&bare))
    };
    Ok(names.into_iter().zip(quantiles).map(entry).collect())
}

/// Bytes that a node allocates for a session that rests, as `virga-sessions` counts them.
fn sessions() -> Result<Entry, Skip> {
    let here = std::env::current_exe().map_err(failed)?;
    let counter = here.with_file_name("virga-sessions");
    let output = Command::new(&counter)
        .output()
        .map_err(|e| Skip::Missing(format!("{}: {e}", counter.display())))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().parse::<f64>() {
        Ok(bytes) if output.status.success() => {
            Ok(Entry::new("transport.session_bytes", "bytes", bytes).limit(8_192.0))
        }
        _ => Err(failed(format!(
            "{}: {said}{}",
            counter.display(),
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}

/// Resident memory of a node that nobody talks to.
fn idle() -> Result<Entry, Skip> {
    let mut hosts = Hosts::new("virga-bench", &crate::forward::virga()?).map_err(failed)?;
    hosts.add_here("idle").map_err(failed)?;
    let listen = Path::Loopback.port(0)?.to_string();
    hosts
        .configure("idle", &listen, "[forwarding]\nmode = \"userspace\"\n")
        .map_err(failed)?;
    hosts.start("idle").map_err(failed)?;
    thread::sleep(IDLE);
    let pid = hosts
        .pid("idle")
        .ok_or_else(|| failed("the node has ended"))?;
    let bytes = resident_bytes(pid)?;
    Ok(Entry::new("transport.idle_rss_mib", "MiB", bytes / MIB).limit(48.0))
}

fn resident_bytes(pid: u32) -> Result<f64, Skip> {
    let status = File::new("/proc").join(pid.to_string()).join("status");
    let text = std::fs::read_to_string(&status).map_err(failed)?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0)
        .ok_or_else(|| failed(format!("{} says nothing of VmRSS", status.display())))
}

/// Runs for a while.
fn for_a_window(time: Duration) {
    let start = Instant::now();
    while let Some(left) = time.checked_sub(start.elapsed()) {
        thread::sleep(left);
    }
}

/// Has the first end send for a while.
fn sending<T>(sender: &Running, run: impl FnOnce() -> Result<T, Skip>) -> Result<T, Skip> {
    sender.switch(Switch::On).map_err(failed)?;
    let result = run();
    sender.switch(Switch::Off).map_err(failed)?;
    result
}
