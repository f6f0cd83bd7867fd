//! One end in a process of its own. It prints `ready`, and what the others must know of it, once they may come, then answers each line
//! on standard input with what it has done so far, as one line of JSON, and ends with standard input.

use std::{
    io::{BufRead as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::system::{self, Name};

/// Events of a batch.
pub(crate) const BATCH: usize = 64;

/// What an end may say has gone wrong.
pub(crate) type Problem = Box<dyn std::error::Error + Send + Sync>;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// Events of 64 bytes, handed over one by one; they may be lost.
    Single,
    /// The same, 64 handed over at once; each is an event of its own at the receiver.
    Batch,
    /// The same, 64 packed into one message by the application, where a system has no batches.
    Packed,
    /// Events of 1 KiB, none lost where the system has such a thing.
    Reliable,
    /// One event of 64 bytes there and back.
    RoundTrip,
}

impl Workload {
    pub(crate) const fn event_bytes(self) -> usize {
        match self {
            Self::Single | Self::Batch | Self::Packed | Self::RoundTrip => 64,
            Self::Reliable => 1_024,
        }
    }

    /// Events that one message carries.
    pub(crate) const fn events(self) -> usize {
        match self {
            Self::Packed => BATCH,
            Self::Single | Self::Batch | Self::Reliable | Self::RoundTrip => 1,
        }
    }

    pub(crate) const fn message_bytes(self) -> usize {
        self.event_bytes() * self.events()
    }
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Send,
    Receive,
    /// Between the two.
    Relay,
}

/// Everything that an end is told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    pub(crate) system: Name,
    #[arg(long)]
    pub(crate) role: Role,
    #[arg(long)]
    pub(crate) workload: Workload,
    /// The core of all of this process' threads.
    #[arg(long)]
    pub(crate) core: usize,
    /// Where this end listens.
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// Where the other end, or the server or relay between, listens.
    #[arg(long)]
    pub(crate) next: SocketAddr,
    /// Where the end behind a relay listens.
    #[arg(long)]
    pub(crate) far: Option<SocketAddr>,
    /// Certificate and key: `cert.pem`, `key.pem`.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// What others said when they were ready: the receiver, then the relay.
    #[arg(long = "said")]
    pub(crate) said: Vec<String>,
}

/// What an end counts, on whatever thread.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    taken: AtomicU64,
    taken_bytes: AtomicU64,
    sent: AtomicU64,
    round_trips_ns: Mutex<Vec<u64>>,
}

impl Tally {
    pub(crate) fn take(&self, events: u64, bytes: usize) {
        self.taken.fetch_add(events, Ordering::Relaxed);
        self.taken_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn send(&self, events: u64) {
        self.sent.fetch_add(events, Ordering::Relaxed);
    }

    pub(crate) fn round_trip(&self, asked: Instant) {
        let ns = u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut all = self
            .round_trips_ns
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.push(ns);
    }
}

/// What an end has done since it began; round trips since it was asked last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) elapsed_ns: u64,
    /// Processor time of the process.
    pub(crate) cpu_ns: u64,
    pub(crate) taken: u64,
    pub(crate) taken_bytes: u64,
    pub(crate) sent: u64,
    pub(crate) round_trips_ns: Vec<u64>,
}

/// Says that the others may come, and what they must know; then answers on a thread of its own.
pub(crate) fn ready(said: &str, read: impl Fn() -> Done + Send + 'static) {
    println!("ready {said}");
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let told = line.is_ok() && answer(&read()).is_ok();
            if !told {
                break;
            }
        }
        // Whoever asks is gone.
        std::process::exit(0);
    });
}

fn answer(done: &Done) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, done)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// [`ready`], answering what a tally says.
pub(crate) fn ready_with(said: &str, tally: &Arc<Tally>) {
    let (tally, start) = (Arc::clone(tally), Instant::now());
    ready(said, move || Done {
        elapsed_ns: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
        cpu_ns: process_cpu_ns(),
        taken: tally.taken.load(Ordering::Relaxed),
        taken_bytes: tally.taken_bytes.load(Ordering::Relaxed),
        sent: tally.sent.load(Ordering::Relaxed),
        round_trips_ns: std::mem::take(
            &mut tally
                .round_trips_ns
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        ),
    });
}

/// Processor time of all threads so far.
pub(crate) fn process_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Runs an end until standard input ends.
pub(crate) fn run(args: &Args) -> Result<(), Problem> {
    // Threads that are started later stay there too.
    if !core_affinity::set_for_current(core_affinity::CoreId { id: args.core }) {
        return Err(format!("core {} cannot be had", args.core).into());
    }
    // Several crates bring rustls, and each its own provider: this one is for all.
    let _first = rustls::crypto::ring::default_provider().install_default();
    let tally = Arc::new(Tally::default());
    if args.system == Name::Virga {
        return system::virga::run(args);
    }
    // One core: a runtime of one thread spares the others' wake-ups. zenoh refuses to run in such a one.
    let mut runtime = if args.system == Name::Zenoh {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1);
        builder
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime.enable_all().build()?;
    runtime.block_on(async {
        match args.system {
            #[cfg(feature = "net-mesh")]
            Name::NetMesh => system::net_mesh::run(args, tally).await,
            #[cfg(feature = "zenoh")]
            Name::Zenoh => system::zenoh::run(args, tally).await,
            #[cfg(feature = "nats")]
            Name::Nats => system::nats::run(args, tally).await,
            #[cfg(feature = "quinn")]
            Name::Quinn => system::quinn::run(args, tally).await,
            Name::Nebula | Name::Plain => system::plain::run(args, tally).await,
            #[allow(
                unreachable_patterns,
                reason = "reached where a system is not built in"
            )]
            name => Err(format!("{} is not built in", name.text()).into()),
        }
    })
}

/// Never ends: what is left is done by other tasks and threads.
#[cfg(any(feature = "net-mesh", feature = "zenoh"))]
pub(crate) async fn rest() -> Result<(), Problem> {
    std::future::pending().await
}
