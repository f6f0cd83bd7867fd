//! The forwarding chain, generator to router to sink over veth, with each forwarder in turn.
//!
//! The limit: the whole chain runs on one core, as a veth hands frames on in the sender's softirq. A chain with a bare
//! redirect costs 1 / (its rate) a packet; ours adds what `xdp.forward_ns` says, less the redirect that both
//! make. At 3 million packets a second, 333 ns each, 15 ns more are 0.96 of the rate, 35 ns more 0.90. The
//! kernel's own forwarding takes an skb, a route look-up and a neighbour look-up a packet, 600 to 1,000 ns.
//!
//! All chains stand at once and are measured in turn, round by round; a rate is what arrived at the sink over the
//! time that sending took. Hostile packets: all arrivals together are held at the rate that this chain sustained in
//! the same round without them; what counts is the share of the authorised that arrived.

use std::{path::PathBuf, time::Duration};

use virga::generate::{
    live::Until,
    plan::{Plan, Sizes, Spread},
};

use crate::{
    hosts::Hosts,
    report::{Entry, Skip, failed},
    rounds::median,
    stage::{Chain, Kind, Run, per_second},
};

/// Packets in a run of a forwarder in XDP: the fixed cost of a run, 30 ms, is then a twentieth of it.
const FAST: Until = Until::Count(2_000_000);
/// The same of the slower ones.
const SLOW: Until = Until::Count(300_000);
/// How long hostile packets are sent.
const HOSTILE: Until = Until::Elapsed(Duration::from_millis(700));

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
const MIXES: [(&str, u16, Option<f64>); 3] = [
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
            Err(Skip::Missing(reason)) => eprintln!("skipped: {name}: {reason}"),
            Err(failure) => return Err(failure),
        }
    }
    let mut entries = against_bare(&hosts, &mut ours, &mut bare, rounds)?;
    entries.extend(against_others(&hosts, &mut ours, &mut others, rounds)?);
    entries.extend(among_the_hostile(&hosts, &mut ours, rounds)?);
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

/// The rounds' figures: ours, the reference's, and their ratios.
#[derive(Clone, Default)]
struct Figures {
    ours: Vec<f64>,
    reference: Vec<f64>,
    ratios: Vec<f64>,
}

impl Figures {
    /// Of one round, a second.
    fn push(&mut self, ours: f64, reference: f64) {
        self.ours.push(million(ours));
        self.reference.push(million(reference));
        self.ratios.push(ours / reference);
    }

    fn entry(&self, name: &'static str, unit: &'static str, asked: Option<f64>) -> Entry {
        let entry = Entry::new(name, unit, median(&self.ours))
            .beside(median(&self.reference))
            .ratio(median(&self.ratios));
        match asked {
            Some(asked) => entry.limit(asked),
            None => entry,
        }
    }
}

fn million(rate: f64) -> f64 {
    rate / 1e6
}

fn against_bare(
    hosts: &Hosts,
    ours: &mut Chain,
    bare: &mut Chain,
    rounds: u32,
) -> Result<Vec<Entry>, Skip> {
    let mut figures = vec![Figures::default(); CASES.len()];
    for _ in 0..rounds {
        for (case, figures) in CASES.iter().zip(&mut figures) {
            let one = ours.run(hosts, FAST, |plan| case.plan(plan))?.rate();
            let other = bare.run(hosts, FAST, |plan| case.plan(plan))?.rate();
            figures.push(one, other);
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
    for _ in 0..rounds {
        for ((_, chain, _), figures) in others.iter_mut().zip(&mut figures) {
            let one = ours.run(hosts, FAST, |plan| plan)?.rate();
            let until = if chain.kind == Kind::XdpBench {
                FAST
            } else {
                SLOW
            };
            let other = chain.run(hosts, until, |plan| plan)?.rate();
            figures.push(one, other);
        }
    }
    let entries = others.iter().zip(&figures);
    let entries = entries.map(|((name, _, asked), figures)| figures.entry(name, PACKETS, *asked));
    Ok(entries.collect())
}

fn among_the_hostile(hosts: &Hosts, ours: &mut Chain, rounds: u32) -> Result<Vec<Entry>, Skip> {
    let mut figures = vec![Figures::default(); MIXES.len()];
    for _ in 0..rounds {
        let alone = ours.run(hosts, FAST, |plan| plan)?.rate();
        for ((_, permille, _), figures) in MIXES.iter().zip(&mut figures) {
            let run = ours.run(hosts, HOSTILE, |plan| Plan {
                hostile_permille: *permille,
                rate: Some(whole(alone)),
                ..plan
            })?;
            if run.measured.strangers != 0 {
                return Err(failed(format!(
                    "{} strangers got through",
                    run.measured.strangers
                )));
            }
            figures.push(run.rate(), authorised(&run));
            eprintln!(
                "{permille} of 1,000 hostile: {:.2} of {:.2} million arrivals a second",
                million(per_second(run.sent.packets(), run.sent.elapsed_ns)),
                million(alone)
            );
        }
    }
    let entries = MIXES.iter().zip(&figures);
    let entries =
        entries.map(|((name, _, asked), figures)| figures.entry(name, AUTHORISED, *asked));
    Ok(entries.collect())
}

fn authorised(run: &Run) -> f64 {
    per_second(run.sent.authorised, run.sent.elapsed_ns)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate of some millions"
)]
fn whole(rate: f64) -> u64 {
    rate.max(1.0) as u64
}
