//! What the guard costs in user space: the filter, and its confirmation by the exact set.
//!
//! The limit: two multiplications for the hash and one for its end, 3 to 4 cycles each in a chain with shifts
//! between, about 5 ns at 3 GHz for one probe alone; one cache line from L1. Probes that do not depend on each
//! other overlap, so that in a batch each costs 2 to 3 ns. A hit is looked up in the exact set: one more line,
//! and one more multiplication.

use std::{hint::black_box, time::Instant};

use virga_ebpf::{decide::is_authorised, tables::Pair};

use crate::{
    report::{Entry, Skip, failed},
    rounds::{low, median},
    world,
};

/// Probes in one round.
const PROBES: u64 = 200 * DIFFERENT;
/// Different pairs that are probed, in turn: more than a branch predictor learns.
const DIFFERENT: u64 = 1_024;

/// Measures.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let tables = world::tables(&world::image(1));
    let settings = tables.current();
    let members: Vec<Pair> = (1..=DIFFERENT).map(world::pair).collect();
    let strangers: Vec<Pair> = (1..=DIFFERENT).map(world::stranger).collect();
    let probe = |pairs: &[Pair], expected: bool| -> Result<f64, Skip> {
        let mut hits = 0;
        let start = Instant::now();
        for _ in 0..PROBES / DIFFERENT {
            for pair in black_box(pairs) {
                hits += u64::from(is_authorised(&tables, &settings, pair));
            }
        }
        let nanoseconds = start.elapsed().as_secs_f64() * 1e9
            / f64::from(u32::try_from(PROBES).unwrap_or(u32::MAX));
        let wanted = if expected { PROBES } else { 0 };
        if hits == wanted {
            Ok(nanoseconds)
        } else {
            Err(failed(format!("{hits} hits instead of {wanted}")))
        }
    };
    let (mut hit, mut miss) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        hit.push(probe(&members, true)?);
        miss.push(probe(&strangers, false)?);
    }
    eprintln!(
        "guard: a tenth of the rounds below {:.1} ns for a hit, {:.1} ns for a miss",
        low(&hit),
        low(&miss)
    );
    Ok(vec![
        Entry::new("guard.hit_ns", "ns", median(&hit)).limit(5.0),
        Entry::new("guard.miss_ns", "ns", median(&miss)).limit(3.0),
    ])
}
