//! Failover: a link that falls silent while packets pass, and how long it takes until the backup carries them.
//!
//! A router has two ways to a node; the first passes through a switch that stops carrying anything, while both ends
//! keep their carrier. Neighbours hear each other each 8 to 10 ms and are silent after 40 ms, so a dead link is found 30
//! to 40 ms after it died; then one write of the next hop's liveness has the NIC path use the backup: 0.1 to 1 ms, most
//! of it until the daemon's thread wakes. What is sent meanwhile is lost: at an event a millisecond some 35 of them.
//! And the same diamond with a cable in the switch's place, one end of which is set down: both kernels report that, and
//! the daemon does without the link by what they say, or by the silence, whichever comes first.
//! Then, simulated, the whole mesh: [`converge`].

mod converge;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use virga::mesh::blocking::{Mesh, Subscription};

use crate::{
    diamond::{CHANNEL, Hand, Middle, detected, diamond, missing},
    forward::virga,
    hosts::Hosts,
    interrupt,
    report::{Entry, Skip, failed, remark},
    rounds::median,
};

/// Rounds of what takes some seconds each.
const ROUNDS_MAX: u32 = 9;
/// Between two events.
const PERIOD: Duration = Duration::from_millis(1);
/// How long traffic passes before the cut, and how long nobody mends it.
const BEFORE: Duration = Duration::from_millis(500);
const CUT: Duration = Duration::from_millis(3_000);
/// Far above what anything here takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a dead link may cost, and what is lost meanwhile at an event a [`PERIOD`].
const LIMIT_MS: f64 = 50.0;

/// When net-mesh 0.46 (crates.io) suspects a silent neighbour, by the defaults of its released code.
const SUSPECT_MS: f64 = 60_000.0;
/// What the peers' released code has for the same, by its defaults; nobody measured it here.
const PEERS: [(&str, &str); 4] = [
    (
        "failover.detect_ms",
        "the reference is a default, not measured: net-mesh 0.46 (crates.io) suspects a neighbour that is silent after 60,000 ms and \
         gives it up after 90,000 ms; genesis-mesh 1.8 (PyPI) and clawft-kernel 0.8.4 (crates.io) have no routes that would depend on it",
    ),
    (
        "failover.switch_ms",
        "the reference is a default, not measured: net-mesh 0.46 forwards over a neighbour until it suspects it, after 60,000 ms; \
         genesis-mesh 1.8 withdraws no route, and clawft-kernel 0.8.4 has none over others: there is no figure",
    ),
    (
        "failover.lost_packets",
        "at an event a millisecond net-mesh 0.46 would lose 60,000 until it suspects the neighbour: computed from its default, not measured",
    ),
    (
        "failover.converge_100_ms",
        "no figure of the peers': net-mesh 0.46 names none; genesis-mesh 1.8, a distance vector without split horizon or withdrawal, \
         kept a loop to a dead node; clawft-kernel 0.8.4 forwards over nobody",
    ),
];

/// What one round gave.
struct Round {
    /// None where the kernel said so first.
    detect_ms: Option<f64>,
    switch_ms: f64,
    lost: f64,
}

/// Measures; needs root and a built `virga` beside this program.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    if !rustix::process::geteuid().is_root() {
        return Err(Skip::Missing("namespaces and XDP need root".to_owned()));
    }
    let rounds = rounds.min(ROUNDS_MAX);
    let silent = cuts(Middle::Switch, rounds)?;
    let reported = cuts(Middle::Cable, rounds)?;
    for (figure, said) in PEERS {
        remark(figure, said);
    }
    let of =
        |all: &[Round], figure: fn(&Round) -> f64| all.iter().map(figure).collect::<Vec<f64>>();
    let detected: Option<Vec<f64>> = silent.iter().map(|round| round.detect_ms).collect();
    let detected =
        detected.ok_or_else(|| Skip::Failed("a silent link was not found dead".to_owned()))?;
    let entry = |name, unit, figures: Vec<f64>| {
        let entry = Entry::new(name, unit, median(&figures)).spread(&figures);
        entry.limit(LIMIT_MS)
    };
    Ok(vec![
        entry("failover.detect_ms", "ms", detected).beside(SUSPECT_MS),
        entry("failover.switch_ms", "ms", of(&silent, |r| r.switch_ms)).beside(SUSPECT_MS),
        entry(
            "failover.switch_reported_ms",
            "ms",
            of(&reported, |r| r.switch_ms),
        ),
        entry("failover.lost_packets", "packets", of(&silent, |r| r.lost)),
        converge::measure(rounds)?,
    ])
}

/// Cuts the link in the middle of a diamond, and mends it, some times.
fn cuts(middle: Middle, rounds: u32) -> Result<Vec<Round>, Skip> {
    let hosts = diamond("virga-bench", &virga()?, middle).map_err(failed)?;
    let hand = match middle {
        Middle::Switch => Hand::new(&hosts),
        Middle::Cable => Hand::at_cable(&hosts),
    };
    let mut hand = hand.map_err(failed)?;
    let publisher = Mesh::open(hosts.socket("a")).map_err(failed)?;
    let subscriber = Mesh::open(hosts.socket("b")).map_err(failed)?;
    let mut events = subscriber.subscribe(CHANNEL).map_err(failed)?;
    let subscribed = publisher.wait_for_subscribers(CHANNEL, 1, PATIENCE);
    if subscribed.map_err(failed)?.is_none() {
        let silent = format!("b's subscription does not reach a within {PATIENCE:?}");
        return Err(Skip::Failed(silent));
    }
    let mut all = Vec::new();
    for _ in 0..rounds {
        interrupt::check()?;
        all.push(round(&hosts, &mut hand, &publisher, &mut events)?);
    }
    Ok(all)
}

fn round(
    hosts: &Hosts,
    hand: &mut Hand,
    publisher: &Mesh,
    events: &mut Subscription,
) -> Result<Round, Skip> {
    is_up(hosts)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(publisher, &stop));
        let taking = scope.spawn(|| take(events));
        let cut = (|| {
            thread::sleep(BEFORE);
            let at = hand.cut()?;
            thread::sleep(CUT);
            hand.mend()?;
            thread::sleep(BEFORE);
            Ok::<_, std::io::Error>(at)
        })();
        stop.store(true, Ordering::Relaxed);
        let ended = || Skip::Failed("a thread of the measurement has ended".to_owned());
        let count = sending.join().map_err(|_| ended())??;
        let mut taken = taking.join().map_err(|_| ended())??;
        let cut = cut.map_err(failed)?;
        taken.sort_unstable();
        let numbers: Vec<u64> = taken.iter().map(|(number, _)| *number).collect();
        let (_, lost) = missing(&numbers, count);
        // Some may be lost at either end of the round, too.
        let gaps = taken
            .windows(2)
            .filter(|w| w[1].0 - w[0].0 > 1 && w[1].1 > cut);
        let after = gaps.max_by_key(|w| w[1].0 - w[0].0).map(|w| w[1].1);
        let Some(after) = after else {
            let log = hosts.log("r1");
            return Err(Skip::Failed(format!("the cut did nothing; r1:\n{log}")));
        };
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let lost = f64::from(u32::try_from(lost).unwrap_or(u32::MAX));
        Ok(Round {
            detect_ms: detected(hosts, cut).map(ms),
            switch_ms: ms(after.saturating_sub(cut)),
            lost,
        })
    })
}

/// Waits until the link to be cut is found alive from both ends.
fn is_up(hosts: &Hosts) -> Result<(), Skip> {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        let up = |host: &str, neighbour: &str| {
            let status = hosts.status(host).map_err(failed)?;
            let mut peers = status["peers"].as_array().into_iter().flatten();
            let found = peers.find(|peer| peer["name"] == neighbour);
            Ok::<_, Skip>(found.is_some_and(|peer| peer["link"]["state"] == "up"))
        };
        if up("r1", "r2")? && up("r2", "r1")? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(Skip::Failed("the link does not come up".to_owned()))
}

/// Publishes numbers until told to stop, and then some times the mark that ends them; how many.
fn send(mesh: &Mesh, stop: &AtomicBool) -> Result<u64, Skip> {
    let publisher = mesh.publisher(CHANNEL).map_err(failed)?;
    let start = Instant::now();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        publisher
            .publish(&u64::to_be_bytes(count))
            .map_err(failed)?;
        count += 1;
        let due = PERIOD * u32::try_from(count).unwrap_or(u32::MAX);
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(50));
        publisher.publish(&u64::MAX.to_be_bytes()).map_err(failed)?;
    }
    publisher.finish().map_err(failed)?;
    Ok(count)
}

/// The numbers that come until the mark, and when each came, in Unix time. Marks of a round before are
/// passed over.
fn take(events: &mut Subscription) -> Result<Vec<(u64, Duration)>, Skip> {
    let mut taken = Vec::new();
    loop {
        let Some(Some(event)) = events.next_within(PATIENCE) else {
            return Err(Skip::Failed(format!("no event within {PATIENCE:?}")));
        };
        let event = event.map_err(failed)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        match event
            .payload
            .first_chunk()
            .map(|bytes| u64::from_be_bytes(*bytes))
        {
            Some(u64::MAX) if taken.is_empty() => {}
            Some(u64::MAX) => return Ok(taken),
            Some(number) => taken.push((number, now.unwrap_or_default())),
            None => {}
        }
    }
}
