//! What forwarding costs while somebody captures, by the program that takes samples, and beside it, as the reference,
//! while nobody does: then the usual program runs, in which captures have no code.

use virga::nic::{FORWARD, SAMPLE};
use virga_ebpf::{
    reason::Reason,
    sample::{ANY_CHANNEL, Order},
};

use super::{Bench, Case, NULL, PASS, cases};
use crate::{
    report::{Entry, Skip, failed},
    rounds::median,
};

/// The case that is measured.
const FORWARD_NS: &str = "xdp.forward_ns";
/// A capture's usual rate, and the bytes of the headers that it keeps.
const RATE_INTERVAL_NS: u64 = 1_000_000;
const HEADERS_BYTES: u32 = 320;

/// Each order, and the figure's name.
fn orders() -> [(&'static str, Order); 2] {
    let order = |counters| Order {
        until_ns: u64::MAX,
        counters,
        interval_ns: RATE_INTERVAL_NS,
        channel: ANY_CHANNEL,
        one_in: 1,
        bytes: HEADERS_BYTES,
        ..Order::default()
    };
    let unauthorised = 1 << Reason::Unauthorised.counter();
    [
        ("xdp.forward_drops_captured_ns", order(unauthorised)),
        ("xdp.forward_captured_ns", order(u64::MAX)),
    ]
}

/// Rounds of both, above a program that does nothing; each round measures off and on one after the other.
pub(super) fn measure(bench: &mut Bench, all: &[Case], rounds: u32) -> Result<Vec<Entry>, Skip> {
    let case = all.iter().find(|case| case.name == FORWARD_NS);
    let case = case.ok_or_else(|| failed(FORWARD_NS))?;
    let bare = cases::not_ours();
    let mut entries = Vec::new();
    for (name, order) in orders() {
        bench.samples.begin(&order).map_err(failed)?;
        let (mut off, mut on) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let null = bench.run(&bare, NULL, PASS)?;
            off.push(bench.run_ours(case, FORWARD)? - null);
            on.push(bench.run_ours(case, SAMPLE)? - null);
        }
        bench.samples.begin(&Order::default()).map_err(failed)?;
        let entry = Entry::new(name, "ns above null", median(&on)).spread(&on);
        entries.push(entry.beside(median(&off)));
    }
    Ok(entries)
}
