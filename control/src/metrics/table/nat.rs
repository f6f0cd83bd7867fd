//! Ways through NATs.

use crate::metrics::Series;

pub(super) const SERIES: &[Series] = &[
    Series::gauge(
        "virga_nat_class",
        "none",
        &["class"],
        "1 for what NAT this node is behind, as others see its address: open (none), cone, symmetric, unknown.",
        |status, rows| {
            if status.nat.is_on {
                rows.put([&status.nat.class], 1_u32);
            }
        },
    ),
    Series::counter(
        "virga_nat_arranged_total",
        "meetings",
        &[],
        "Meetings of two neighbours behind NATs that this node has arranged.",
        |status, rows| rows.put([], status.nat.arranged),
    ),
    Series::counter(
        "virga_nat_reached_total",
        "tries",
        &[],
        "Tries to send to a peer straight that succeeded.",
        |status, rows| rows.put([], status.nat.reached),
    ),
    Series::counter(
        "virga_nat_failed_total",
        "tries",
        &[],
        "Tries to send to a peer straight that failed, and ways that fell silent: routers lead to it.",
        |status, rows| rows.put([], status.nat.failed),
    ),
    Series::counter(
        "virga_nat_refused_total",
        "messages",
        &["reason"],
        "What was said of ways through NATs and not followed, by reason.",
        |status, rows| {
            for (reason, &count) in &status.nat.refused {
                rows.put([reason], count);
            }
        },
    ),
];
