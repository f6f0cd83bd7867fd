//! What the guard costs in user space: the filter, and its confirmation by the exact set.
//!
//! The limit: two multiplications for the hash and one for its end, 3 to 4 cycles each in a chain with shifts
//! between, about 5 ns at 3 GHz for one probe alone; one cache line from L1. Probes that do not depend on each
//! other overlap, so that in a batch each costs 2 to 3 ns. A hit is looked up in the exact set: one more line of five
//! pairs, and two more multiplications.
//!
//! Which pair comes next is drawn anew for each round (`guard.hit_ns`, `guard.miss_ns`): branches that depend on it
//! are guessed, and a wrong guess costs 15 to 20 cycles, 5 ns. A hit's branches always go the same way but for the
//! pairs that lie in their second line (few in a hundred); one stranger in 35 passes the first four words of its line.
//! `guard.hit_repeated_ns` and `guard.miss_repeated_ns` probe the same thousand in the same order again and again: a
//! predictor learns that, as it learns a few busy flows.
//!
//! With more pairs both outgrow the caches. What that costs is asked of whole verdicts, of flows whose shares
//! follow Zipf's law (the nth of n pairs sends 1/n of what the first sends): frequent ones stay in the flow cache.
//! 1.3 times is asked for 100,000 pairs. A third of their packets are of flows that are not in the cache, so that
//! leaves such a packet 15 ns above the 16 of one that is. It takes a branch that no predictor learns (5 ns), some 150
//! instructions (10), and a line each of guard, exact set and directory (5 ns each from L2 where they do not overlap):
//! `guard.pairs_10k`, whose tables all lie in L2, is the floor, 1.5 to 1.6 times; `guard.pairs_100k` has 2 MiB of exact
//! set, 256 KiB of guard, 384 KiB of flows and 256 KiB of seen packets, more than many an L2, and was 2.4 to 2.6 times
//! with one of 2 MiB. A flow cache of four times the slots changed nothing (2.5), one of sixteen, in which nearly every
//! flow stays, is 6 MiB itself (3.3); open addressing with 4 MiB of single pairs was 2.7.
//!
//! Asking for 32 packets' lines of the exact set before the first of them is decided takes up to 25 % off, and with
//! sixteen times the flows and their slots asked for as well it is 1.5 to 1.6 times. But that puts 1 to 5 ns on every
//! packet, where one takes 2 to 5 µs through the forwarder's sockets (`forward.vs_userspace`).
//!
//! Likewise, 32 pairs checked in one call with AVX2, those in a second line after all others, take 5.0 ns a hit
//! and 2.4 a miss. The forwarder has no use for it: it asks half of the guard before the flow cache, and the datagrams
//! that the kernel hands over as one are of one sender. What is measured is what it does: one pair by itself.

use std::{hint::black_box, time::Instant};

use virga_ebpf::{
    decide::{Verdict, decide, is_authorised},
    header::Header,
    memory::MemoryTables,
    tables::{Pair, Settings, mix},
};

use crate::{
    report::{Entry, Skip, failed},
    rounds::{low, median},
    world,
};

/// Probes in one round.
const PROBES: u32 = 1 << 16;
/// Pairs that are probed in a fixed order: few enough for a branch predictor.
const REPEATED: u32 = 1_024;

/// Which pairs a round probes, one after another: `known` of them in an order that no earlier round had, or the first
/// ones in turn.
fn order(known: u32, drawn_for: Option<u32>) -> Vec<u64> {
    let place = |n: u32| match drawn_for {
        Some(round) => mix(u64::from(round) + 1, u64::from(n)) % u64::from(known),
        None => u64::from(n % REPEATED.min(known)),
    };
    (0..PROBES).map(|n| 1 + place(n)).collect()
}

/// Nanoseconds of a probe of these pairs, all of which are authorised, or none.
fn probe_ns(
    tables: &MemoryTables,
    settings: &Settings,
    pairs: &[Pair],
    are_members: bool,
) -> Result<f64, Skip> {
    let mut hits = 0;
    let start = Instant::now();
    for pair in black_box(pairs) {
        hits += u32::from(is_authorised(tables, settings, pair));
    }
    let nanoseconds = start.elapsed().as_secs_f64() * 1e9 / f64::from(PROBES);
    let wanted = if are_members { PROBES } else { 0 };
    if hits == wanted {
        Ok(nanoseconds)
    } else {
        Err(failed(format!("{hits} hits instead of {wanted}")))
    }
}

/// Measures.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let tables = world::tables(&world::image(1));
    let settings = tables.current();
    let members = u32::try_from(world::PAIRS - 1).unwrap_or(u32::MAX);
    let [mut hit, mut miss, mut hit_repeated, mut miss_repeated] = [const { Vec::new() }; 4];
    for round in 0..rounds {
        for (drawn_for, hit, miss) in [
            (Some(round), &mut hit, &mut miss),
            (None, &mut hit_repeated, &mut miss_repeated),
        ] {
            let order = order(members, drawn_for);
            let pairs: Vec<Pair> = order.iter().map(|n| world::pair(*n)).collect();
            hit.push(probe_ns(&tables, &settings, &pairs, true)?);
            let pairs: Vec<Pair> = order.iter().map(|n| world::stranger(*n)).collect();
            miss.push(probe_ns(&tables, &settings, &pairs, false)?);
        }
    }
    eprintln!(
        "guard: a tenth of the rounds below {:.1} ns for a hit, {:.1} ns for a miss",
        low(&hit),
        low(&miss)
    );
    let mut entries = vec![
        Entry::new("guard.hit_ns", "ns", median(&hit))
            .spread(&hit)
            .limit(5.0),
        Entry::new("guard.miss_ns", "ns", median(&miss))
            .spread(&miss)
            .limit(3.0),
        Entry::new("guard.hit_repeated_ns", "ns", median(&hit_repeated)).spread(&hit_repeated),
        Entry::new("guard.miss_repeated_ns", "ns", median(&miss_repeated)).spread(&miss_repeated),
    ];
    entries.extend(of_many_pairs(rounds)?);
    Ok(entries)
}

/// Packets of one round, drawn from that many pairs.
const DRAWS: u32 = 1 << 16;

/// A router with so many pairs, and the senders of the packets that it meets.
struct Crowd {
    tables: MemoryTables,
    senders: Vec<Pair>,
    /// Sequence number of the last packet: no two are the same.
    sent: u64,
}

impl Crowd {
    fn new(pairs: u32) -> Self {
        let mut image = world::image(1);
        image.pairs = (1..=u64::from(pairs)).map(world::pair).collect();
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=pairs)
            .map(|n| {
                sum += f64::from(n).recip();
                sum
            })
            .collect();
        let senders = (0..u64::from(DRAWS)).map(|draw| {
            let uniform = f64::from(u32::try_from(mix(0x21bf, draw) >> 32).unwrap_or(0));
            let at = uniform / f64::from(u32::MAX) * sum;
            let rank = sums.partition_point(|sum| *sum < at).min(sums.len() - 1);
            world::pair(1 + rank as u64)
        });
        Self {
            senders: senders.collect(),
            tables: world::tables(&image),
            sent: 0,
        }
    }

    /// Nanoseconds for the verdict on a packet.
    fn round_ns(&mut self) -> Result<f64, Skip> {
        let settings = self.tables.current();
        let arrival = world::arrival();
        let mut header = Header {
            hop_limit: 32,
            ..world::header()
        };
        let mut forwarded = 0;
        let start = Instant::now();
        for sender in black_box(&self.senders) {
            self.sent += 1;
            header.origin_hash = sender.origin;
            header.sequence = self.sent;
            let verdict = decide(&self.tables, &settings, &header, &arrival);
            forwarded += u32::from(matches!(verdict, Verdict::Forward(_)));
        }
        let nanoseconds = start.elapsed().as_secs_f64() * 1e9 / f64::from(DRAWS);
        match forwarded {
            DRAWS => Ok(nanoseconds),
            _ => Err(failed(format!("{forwarded} of {DRAWS} packets forwarded"))),
        }
    }
}

/// What the verdict on a packet costs with more pairs, over what it costs with 100.
fn of_many_pairs(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let [mut few, mut more, mut many] = [100, 10_000, 100_000].map(Crowd::new);
    let (mut costs, mut ratios) = ([const { Vec::new() }; 3], [const { Vec::new() }; 2]);
    for round in 0..=rounds {
        let took = [few.round_ns()?, more.round_ns()?, many.round_ns()?];
        // What the first round finds cold is not counted.
        if round == 0 {
            continue;
        }
        for (costs, ns) in costs.iter_mut().zip(took) {
            costs.push(ns);
        }
        for (ratios, ns) in ratios.iter_mut().zip(&took[1..]) {
            ratios.push(ns / took[0]);
        }
    }
    let [few, more, many] = costs.each_ref().map(|costs| median(costs));
    eprintln!(
        "guard: a verdict takes {few:.1} ns with 100 pairs, {more:.1} with 10,000, {many:.1} with 100,000"
    );
    let entry = |name, ratios: &[f64]| Entry::new(name, "times", median(ratios)).spread(ratios);
    Ok(vec![
        entry("guard.pairs_10k", &ratios[0]),
        entry("guard.pairs_100k", &ratios[1]).limit(1.3),
    ])
}
