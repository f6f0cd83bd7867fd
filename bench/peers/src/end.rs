//! One end in a process of its own. It prints `ready` once the other end may come, then answers each line
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

use serde::{Deserialize, Serialize};

use crate::system::{self, Name};

/// What an end may say has gone wrong.
pub(crate) type Problem = Box<dyn std::error::Error + Send + Sync>;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// Events of 64 bytes, handed over one by one; they may be lost.
    Single,
    /// The same, 64 handed over at once.
    Batch,
    /// Events of 1 KiB, none lost where the system has such a thing.
    Reliable,
    /// One event of 64 bytes there and back.
    RoundTrip,
}

impl Workload {
    pub(crate) const fn event_bytes(self) -> usize {
        match self {
            Self::Single | Self::Batch | Self::RoundTrip => 64,
            Self::Reliable => 1_024,
        }
    }
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Send,
    Receive,
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
    /// Where the other end, or the server between, listens.
    #[arg(long)]
    pub(crate) next: SocketAddr,
    /// Certificate and key: `cert.pem`, `key.pem`.
    #[arg(long)]
    pub(crate) folder: PathBuf,
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
    pub(crate) taken: u64,
    pub(crate) taken_bytes: u64,
    pub(crate) sent: u64,
    pub(crate) round_trips_ns: Vec<u64>,
}

/// Says that the other end may come; then answers on a thread of its own.
pub(crate) fn ready(read: impl Fn() -> Done + Send + 'static) {
    println!("ready");
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
pub(crate) fn ready_with(tally: &Arc<Tally>) {
    let (tally, start) = (Arc::clone(tally), Instant::now());
    ready(move || Done {
        elapsed_ns: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
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

/// Runs an end until standard input ends.
pub(crate) fn run(args: &Args) -> Result<(), Problem> {
    // Threads that are started later stay there too.
    if !core_affinity::set_for_current(core_affinity::CoreId { id: args.core }) {
        return Err(format!("core {} cannot be had", args.core).into());
    }
    // Several crates bring rustls, and each its own provider: this one is for all.
    let _first = rustls::crypto::ring::default_provider().install_default();
    let tally = Arc::new(Tally::default());
    // One core: a runtime of one thread spares the others' wake-ups.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match args.system {
            Name::Virga => system::virga::run(args),
            Name::Quinn => system::quinn::run(args, tally).await,
            Name::Nats => system::nats::run(args, tally).await,
            Name::Plain => system::plain::run(args, tally).await,
        }
    })
}
