//! The forwarding chain, generator to router to sink over veth, with each forwarder in turn.
//!
//! The limit: the whole chain runs on one core, as a veth hands frames on in the sender's softirq. A chain with a bare
//! redirect costs 1 / (its rate) a packet; ours adds what `xdp.forward_ns` says, less the redirect that both
//! make. At 3 million packets a second, 333 ns each, 15 ns more are 0.96 of the rate, 35 ns more 0.90. The
//! kernel's own forwarding takes an skb, a route look-up and a neighbour look-up a packet, 600 to 1,000 ns.
//!
//! All chains stand at once and are measured in turn, round by round, in alternating order; a rate is what arrived at
//! the sink over the time that sending took, less the fixed cost of the generator's system call, which is measured in
//! each round by calls that send a packet.
//!
//! Hostile packets: generator on one CPU, router and sink on another, a ring of 256 frames between them, so that a
//! router that is too slow loses packets. In each round the router is flooded with authorised packets: what
//! arrives is what forwarding alone sustains. Then all arrivals together are held at [`HELD`] of that, and what
//! counts is the share of the authorised that arrived of those that were sent. A generator that is kept from its CPU
//! now and then sends less than it is asked for: it is asked for so much more, [`TRIES`] times.

use std::{path::PathBuf, time::Duration};

use virga::generate::{
    live::Until,
    plan::{Plan, Sizes, Spread},
};

use crate::{
    hosts::Hosts,
    report::{Entry, Skip, failed, remark, skipped},
    rounds::median,
    stage::{Chain, Kind, Run},
};

/// Packets in a run of a forwarder in XDP: half a second.
const FAST: Until = Until::Count(4_000_000);
/// The same of the slower ones.
const SLOW: Until = Until::Count(1_000_000);
/// How long hostile packets are sent.
const HOSTILE: Until = Until::Elapsed(Duration::from_secs(1));
/// Of the rate that forwarding alone sustains, what all arrivals together are held at.
const HELD: f64 = 1.0;
/// Of that again, what must have been reached for a round to count.
const REACHED: f64 = 0.95;
/// Runs of a mix in a round, each asked for as much more as the one before fell short.
const TRIES: usize = 4;
/// Of a flood, what must have been lost at the least: with less, the router is not what is too slow.
const FLOODED: f64 = 0.02;
/// Packets that a late generator makes up for: half of what the ring between it and the router holds.
const BURST: f64 = 128.0;

/// What is varied between our forwarder and the bare redirect.
struct Case {
    name: &'static str,
    sizes: Sizes,
    flows: u32,
}

const SMALLEST: u16 = 122;
const CASES: [Case; 9] = [
    Case::new("forward.vs_minimal_redirect", Sizes::Fixed(SMALLEST), 1),
    Case::new("forward.bytes_256", Sizes::Fixed(256), 1),
    Case::new("forward.bytes_512", Sizes::Fixed(512), 1),
    Case::new("forward.bytes_1024", Sizes::Fixed(1_024), 1),
    Case::new("forward.bytes_1500", Sizes::Fixed(1_500), 1),
    Case::new("forward.imix", Sizes::Imix, 1),
    Case::new("forward.routes_1k", Sizes::Fixed(SMALLEST), 1_000),
    Case::new("forward.routes_100k", Sizes::Fixed(SMALLEST), 100_000),
    Case::new("forward.routes_1m", Sizes::Fixed(SMALLEST), 1_000_000),
];

impl Case {
    const fn new(name: &'static str, sizes: Sizes, flows: u32) -> Self {
        Self { name, sizes, flows }
    }

    fn plan(&self, plan: Plan) -> Plan {
        Plan {
            sizes: self.sizes,
            flows: self.flows,
            spread: Spread::Destinations,
            ..plan
        }
    }
}

/// Other forwarders, smallest frames, one destination; and what is asked of the ratio.
const OTHERS: [(&str, Kind, Option<f64>); 3] = [
    ("forward.vs_kernel_ip", Kind::KernelIp, Some(4.0)),
    ("forward.vs_xdp_bench", Kind::XdpBench, None),
    ("forward.vs_userspace", Kind::Userspace, None),
];

/// Of a thousand arrivals, so many hostile; and what is asked of the share delivered.
const MIXES: [(&str, u16, Option<f64>); 4] = [
    ("forward.legit_at_0pct_hostile", 0, None),
    ("forward.legit_at_50pct_hostile", 500, None),
    ("forward.legit_at_90pct_hostile", 900, Some(0.9)),
    ("forward.legit_at_99pct_hostile", 990, None),
];

/// Measures; needs root and a built `virga` beside this program.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    if !rustix::process::geteuid().is_root() {
        return Err(Skip::Missing("namespaces and XDP need root".to_owned()));
    }
    let rounds = rounds.min(9);
    let mut hosts = Hosts::new("virga-bench", &virga()?).map_err(failed)?;
    let mut ours = Chain::new(&mut hosts, Kind::Ours)?;
    let mut bare = Chain::new(&mut hosts, Kind::Bare)?;
    let mut others = Vec::new();
    for (name, kind, limit) in OTHERS {
        match Chain::new(&mut hosts, kind) {
            Ok(chain) => others.push((name, chain, limit)),
            Err(Skip::Missing(reason)) => skipped(name, reason),
            Err(failure) => return Err(failure),
        }
    }
    remark(
        "forward.vs_kernel_ip",
        "the sink is an XDP program on a veth: the kernel's packets are copied into a fresh page for it where their \
         headroom is short, which a NIC's sink would not need",
    );
    let mut entries = against_bare(&hosts, &mut ours, &mut bare, rounds)?;
    entries.extend(against_others(&hosts, &mut ours, &mut others, rounds)?);
    drop((ours, bare, others));
    match Chain::on_two_cpus(&mut hosts) {
        Ok(mut ours) => entries.extend(among_the_hostile(&hosts, &mut ours, rounds)?),
        Err(Skip::Missing(reason)) => MIXES.iter().for_each(|mix| skipped(mix.0, &reason)),
        Err(failure) => return Err(failure),
    }
    Ok(entries)
}

/// The binary that nodes run.
pub(crate) fn virga() -> Result<PathBuf, Skip> {
    let here = std::env::current_exe().map_err(failed)?;
    let virga = here.with_file_name("virga");
    if virga.exists() {
        Ok(virga)
    } else {
        let at = virga.display();
        Err(failed(format!(
            "{at} is not built: run `cargo build --release -p virga`"
        )))
    }
}

const PACKETS: &str = "million packets/s";
const AUTHORISED: &str = "million authorised packets/s";

/// The rounds' figures: ours, the reference's, their ratios, and what was lost of ours.
#[derive(Clone, Default)]
struct Figures {
    ours: Vec<f64>,
    reference: Vec<f64>,
    ratios: Vec<f64>,
    lost: Vec<f64>,
}

impl Figures {
    /// Of one round, a second.
    fn push(&mut self, ours: f64, reference: f64, lost: f64) {
        self.ours.push(million(ours));
        self.reference.push(million(reference));
        self.ratios.push(ours / reference);
        self.lost.push(lost);
    }

    fn entry(&self, name: &'static str, unit: &'static str, asked: Option<f64>) -> Entry {
        let entry = Entry::new(name, unit, median(&self.ours))
            .beside(median(&self.reference))
            .ratio(median(&self.ratios))
            .lost(median(&self.lost))
            .spread(&self.ratios);
        match asked {
            Some(asked) => entry.limit(asked),
            None => entry,
        }
    }
}

fn million(rate: f64) -> f64 {
    rate / 1e6
}

/// One round of two chains, ours first in even rounds.
fn alternate(
    hosts: &Hosts,
    round: u32,
    ours: &mut Chain,
    other: &mut Chain,
    untils: [Until; 2],
    change: impl Fn(Plan) -> Plan,
) -> Result<[Run; 2], Skip> {
    let [of_ours, of_other] = untils;
    if round.is_multiple_of(2) {
        let one = ours.run(hosts, of_ours, &change)?;
        return Ok([one, other.run(hosts, of_other, &change)?]);
    }
    let reference = other.run(hosts, of_other, &change)?;
    Ok([ours.run(hosts, of_ours, &change)?, reference])
}

fn against_bare(
    hosts: &Hosts,
    ours: &mut Chain,
    bare: &mut Chain,
    rounds: u32,
) -> Result<Vec<Entry>, Skip> {
    let mut figures = vec![Figures::default(); CASES.len()];
    for round in 0..rounds {
        ours.measure_call(hosts)?;
        bare.measure_call(hosts)?;
        for (case, figures) in CASES.iter().zip(&mut figures) {
            let plan = |plan| case.plan(plan);
            let [one, other] = alternate(hosts, round, ours, bare, [FAST; 2], plan)?;
            figures.push(one.rate(), other.rate(), one.lost());
        }
    }
    let entries = CASES.iter().zip(&figures).map(|(case, figures)| {
        let asked = (case.name == "forward.vs_minimal_redirect").then_some(0.9);
        figures.entry(case.name, PACKETS, asked)
    });
    Ok(entries.collect())
}

fn against_others(
    hosts: &Hosts,
    ours: &mut Chain,
    others: &mut [(&'static str, Chain, Option<f64>)],
    rounds: u32,
) -> Result<Vec<Entry>, Skip> {
    let mut figures = vec![Figures::default(); others.len()];
    for round in 0..rounds {
        ours.measure_call(hosts)?;
        for ((_, chain, _), figures) in others.iter_mut().zip(&mut figures) {
            chain.measure_call(hosts)?;
            let until = if chain.kind == Kind::XdpBench {
                FAST
            } else {
                SLOW
            };
            let [one, other] = alternate(hosts, round, ours, chain, [FAST, until], |plan| plan)?;
            figures.push(one.rate(), other.rate(), one.lost());
        }
    }
    let entries = others.iter().zip(&figures);
    let entries = entries.map(|((name, _, asked), figures)| figures.entry(name, PACKETS, *asked));
    Ok(entries.collect())
}

fn among_the_hostile(hosts: &Hosts, ours: &mut Chain, rounds: u32) -> Result<Vec<Entry>, Skip> {
    let mut mixes = vec![Mixed::default(); MIXES.len()];
    let mut held = Vec::new();
    for _ in 0..rounds {
        ours.measure_call(hosts)?;
        let flood = ours.run(hosts, FAST, |plan| plan)?;
        if flood.lost() < FLOODED {
            continue;
        }
        let target = HELD * flood.rate();
        held.push(million(target));
        for ((_, permille, _), mixed) in MIXES.iter().zip(&mut mixes) {
            let run = held_at(hosts, ours, *permille, target)?;
            mixed.push(&run, target);
        }
    }
    let entries = MIXES.iter().zip(&mixes);
    let entries = entries.filter_map(|((name, _, asked), mixed)| {
        match mixed.obstacle(rounds, &held) {
            Some(reason) => skipped(name, reason),
            None => remark(name, mixed.reached(&held)),
        }
        (!mixed.figures.ours.is_empty()).then(|| mixed.figures.entry(name, AUTHORISED, *asked))
    });
    Ok(entries.collect())
}

/// Sends with so many hostile packets of a thousand, all arrivals held at `target` a second: the run that came nearest.
fn held_at(hosts: &Hosts, ours: &mut Chain, permille: u16, target: f64) -> Result<Run, Skip> {
    let mut asked = target;
    let mut nearest: Option<Run> = None;
    for _ in 0..TRIES {
        let run = ours.run(hosts, HOSTILE, |plan| Plan {
            hostile_permille: permille,
            rate: Some(whole(asked)),
            burst: Duration::from_secs_f64(BURST / target),
            ..plan
        })?;
        if run.measured.strangers != 0 {
            let got = run.measured.strangers;
            return Err(failed(format!("{got} strangers got through")));
        }
        asked *= target / run.arrivals();
        let off = |run: &Run| (run.arrivals() / target - 1.0).abs();
        if nearest
            .as_ref()
            .is_none_or(|nearest| off(&run) < off(nearest))
        {
            nearest = Some(run);
        }
        if nearest.as_ref().is_some_and(|run| off(run) < 1.0 - REACHED) {
            break;
        }
    }
    nearest.ok_or_else(|| failed("no run of a mix"))
}

/// What one mix gave, round by round.
#[derive(Clone, Default)]
struct Mixed {
    figures: Figures,
    /// Million arrivals a second, also of rounds that do not count.
    arrivals: Vec<f64>,
}

impl Mixed {
    /// A round in which all arrivals were to be held at `target` a second.
    fn push(&mut self, run: &Run, target: f64) {
        self.arrivals.push(million(run.arrivals()));
        if run.arrivals() >= REACHED * target {
            let (came, sent) = (run.rate(), run.authorised());
            self.figures.push(came, sent, run.lost());
        }
    }

    /// Why there is no figure.
    fn obstacle(&self, rounds: u32, held: &[f64]) -> Option<String> {
        if held.is_empty() {
            return Some(format!(
                "in {rounds} rounds the generator was never faster than the router: nothing could be lost"
            ));
        }
        self.figures.ours.is_empty().then(|| self.reached(held))
    }

    fn reached(&self, held: &[f64]) -> String {
        format!(
            "{:.2} million arrivals a second where {:.2} were to be held; {} of {} rounds came near enough",
            median(&self.arrivals),
            median(held),
            self.figures.ours.len(),
            self.arrivals.len()
        )
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate of some millions"
)]
fn whole(rate: f64) -> u64 {
    rate.max(1.0) as u64
}
