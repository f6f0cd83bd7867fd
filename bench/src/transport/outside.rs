//! The same event from a program that is not the node: published through [`virga::mesh::Mesh`], one event a call, over
//! the daemon's socket to its worker, and from the other daemon's worker to another program that has subscribed.
//!
//! Publisher and its daemon share a core, subscriber and its daemon the other: two threads and their switches a core.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use virga::mesh::{Mesh, MeshError};
use virga_bench::load::{Running, Task, thread_cpu_ns};
use virga_transport::Mode;

use super::{
    CORES, Path,
    flow::{self, SETTLE, WARM_UP, WINDOW, float},
    for_a_window,
};
use crate::{
    hosts::Hosts,
    interrupt,
    report::{Entry, Skip, failed},
    rounds::median,
};

const NAME: &str = "transport.single_64b_outside";
const EVENT_BYTES: usize = 64;
/// What is asked of the rate, in million events a second.
const ASKED: f64 = 1.5;
const CHANNEL: &str = "bench/outside";
/// The daemons' names.
const ENDS: [&str; 2] = ["from", "to"];
/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What both programs have done by some moment; times are of their threads' processors.
#[derive(Default)]
struct Counted {
    published: AtomicU64,
    publisher_cpu_ns: AtomicU64,
    taken: AtomicU64,
    subscriber_cpu_ns: AtomicU64,
}

/// What the programs share with who measures.
#[derive(Default)]
struct Shared {
    counted: Counted,
    is_sending: AtomicBool,
    is_over: AtomicBool,
}

/// A look at [`Counted`], and when.
struct Look {
    at: Instant,
    published: u64,
    taken: u64,
    cpu_ns: [u64; 2],
}

impl Shared {
    fn look(&self) -> Look {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counted {
            published,
            publisher_cpu_ns,
            taken,
            subscriber_cpu_ns,
        } = &self.counted;
        Look {
            at: Instant::now(),
            published: read(published),
            taken: read(taken),
            cpu_ns: [read(publisher_cpu_ns), read(subscriber_cpu_ns)],
        }
    }
}

/// Measures: beside the same events from an application on the worker's thread.
pub(super) fn measure(rounds: u32) -> Result<Entry, Skip> {
    let hosts = daemons()?;
    let inside = Path::Loopback.workers(Task::Offer {
        event_bytes: EVENT_BYTES,
        batch: 1,
        mode: Mode::Unreliable,
    })?;
    let sockets = ENDS.map(|end| hosts.socket(end));
    let shared = Arc::new(Shared::default());
    let (ready, is_ready) = mpsc::channel();
    let subscriber = program(CORES[1], {
        let (shared, socket) = (Arc::clone(&shared), sockets[1].clone());
        move |runtime| runtime.block_on(take(&socket, &shared, &ready))
    });
    is_ready.recv_timeout(PATIENCE).map_err(failed)?;
    let publisher = program(CORES[0], {
        let (shared, socket) = (Arc::clone(&shared), sockets[0].clone());
        move |runtime| runtime.block_on(publish(&socket, &shared))
    });
    let measured = compare(rounds, &shared, &inside);
    shared.is_over.store(true, Ordering::Relaxed);
    inside.into_iter().for_each(Running::stop);
    publisher
        .join()
        .map_err(|_| failed("the publisher panicked"))??;
    // The subscriber ends with its daemon's connection.
    drop(hosts);
    subscriber
        .join()
        .map_err(|_| failed("the subscriber panicked"))??;
    measured
}

/// Two daemons on this machine, a core each.
fn daemons() -> Result<Hosts, Skip> {
    let mut hosts = Hosts::new("virga-bench", &crate::forward::virga()?).map_err(failed)?;
    ENDS.iter()
        .try_for_each(|end| hosts.add_here(end))
        .map_err(failed)?;
    let listen = [Path::Loopback.port(0)?, Path::Loopback.port(1)?];
    for (at, (end, other)) in [(ENDS[0], ENDS[1]), (ENDS[1], ENDS[0])]
        .into_iter()
        .enumerate()
    {
        let rest = format!(
            "worker_cores = [{}]\n[forwarding]\nmode = \"userspace\"\n\
             [[peers]]\nname = \"{{{other}.name}}\"\nnode_key = \"{{{other}.node}}\"\n\
             entity_key = \"{{{other}.entity}}\"\naddress = \"{}\"\n\
             [[channels]]\nname = \"{CHANNEL}\"\nreliable = false\npublish = [\"{{from.name}}\"]\n\
             subscribe = [\"{{to.name}}\"]\n",
            CORES[at],
            listen[1 - at]
        );
        hosts
            .configure(end, &listen[at].to_string(), &rest)
            .map_err(failed)?;
    }
    for (end, core) in ENDS.iter().zip(CORES) {
        // Its other threads, too.
        let core = core.to_string();
        hosts
            .start_under(end, "taskset", &["-c", &core])
            .map_err(failed)?;
    }
    Ok(hosts)
}

/// A program's thread, on a core of its own.
fn program<T: Send + 'static>(
    core: usize,
    run: impl FnOnce(tokio::runtime::Runtime) -> Result<T, Skip> + Send + 'static,
) -> thread::JoinHandle<Result<T, Skip>> {
    thread::spawn(move || {
        let _pinned = core_affinity::set_for_current(core_affinity::CoreId { id: core });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        run(runtime.map_err(failed)?)
    })
}

async fn publish(socket: &std::path::Path, shared: &Shared) -> Result<(), Skip> {
    let mesh = Mesh::open(socket).await.map_err(failed)?;
    let subscribed = mesh.wait_for_subscribers(CHANNEL, 1);
    let subscribed = tokio::time::timeout(PATIENCE, subscribed).await;
    let late = |_| failed("the subscription does not reach the publisher");
    subscribed.map_err(late)?.map_err(failed)?;
    let publisher = mesh.publisher(CHANNEL).await.map_err(failed)?;
    let event = [0x5a; EVENT_BYTES];
    let mut published = 0;
    while !shared.is_over.load(Ordering::Relaxed) {
        if !shared.is_sending.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        for _ in 0..256 {
            publisher.publish(&event).await.map_err(failed)?;
        }
        published += 256;
        shared.counted.published.store(published, Ordering::Relaxed);
        shared
            .counted
            .publisher_cpu_ns
            .store(thread_cpu_ns(), Ordering::Relaxed);
    }
    publisher.finish().await.map(drop).map_err(failed)
}

async fn take(
    socket: &std::path::Path,
    shared: &Shared,
    ready: &mpsc::Sender<()>,
) -> Result<(), Skip> {
    let mesh = Mesh::open(socket).await.map_err(failed)?;
    let mut events = mesh.subscribe(CHANNEL).await.map_err(failed)?;
    // Who waits may have lost patience.
    let _told = ready.send(());
    let mut taken = 0_u64;
    while let Some(delivery) = events.next_delivery().await {
        match delivery {
            Ok(delivery) if delivery.payload.len() == EVENT_BYTES => taken += 1,
            Ok(delivery) => return Err(failed(format!("{} bytes came", delivery.payload.len()))),
            Err(MeshError::Ended(_) | MeshError::Broken(_))
                if shared.is_over.load(Ordering::Relaxed) =>
            {
                break;
            }
            Err(error) => return Err(failed(error)),
        }
        shared.counted.taken.store(taken, Ordering::Relaxed);
        if taken.is_multiple_of(256) {
            shared
                .counted
                .subscriber_cpu_ns
                .store(thread_cpu_ns(), Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Alternating rounds of both.
fn compare(rounds: u32, shared: &Shared, inside: &[Running; 2]) -> Result<Entry, Skip> {
    let (mut ours, mut reference, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        interrupt::check()?;
        let of_inside = flow::of_workers(inside)?.million_events();
        let (rate, said) = window(shared)?;
        // The first round finds the path's size.
        if round == 0 {
            continue;
        }
        ours.push(rate);
        reference.push(of_inside);
        ratios.push(rate / of_inside);
        if round == rounds {
            eprintln!("{NAME}: {said}");
        }
    }
    Ok(Entry::new(NAME, "million events/s", median(&ours))
        .beside(median(&reference))
        .ratio(median(&ratios))
        .spread(&ratios)
        // Of a rate a ratio is asked.
        .limit(ASKED / median(&reference)))
}

/// One round: million events a second that came, and what they were made of.
fn window(shared: &Shared) -> Result<(f64, String), Skip> {
    shared.is_sending.store(true, Ordering::Relaxed);
    for_a_window(WARM_UP);
    let before = shared.look();
    for_a_window(WINDOW);
    let after = shared.look();
    shared.is_sending.store(false, Ordering::Relaxed);
    for_a_window(SETTLE);
    let (published, taken) = (
        after.published - before.published,
        after.taken - before.taken,
    );
    if taken == 0 {
        return Err(failed(format!("nothing came of {published} events")));
    }
    let cpu_ns = |at: usize| float(after.cpu_ns[at] - before.cpu_ns[at]) / float(taken);
    let rate = float(taken) / 1e6 / after.at.duration_since(before.at).as_secs_f64();
    let said = format!(
        "{:.2} of those published came; {:.0} ns of the publishing program's processor an event, {:.0} of the \
         subscribing one's",
        float(taken) / float(published.max(1)),
        cpu_ns(0),
        cpu_ns(1)
    );
    Ok((rate, said))
}
