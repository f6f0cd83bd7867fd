//! How packets of others pass: verdicts and drops, in the NIC and in user space.

use crate::{
    api::status::{Count, Status, Verdicts},
    daemon::path::{GuardStatus, LinkStatus},
    filters::held::FilterStatus,
    metrics::{Rows, Series, Value},
};
use std::collections::BTreeMap;

pub(super) const SERIES: &[Series] = &[
    Series::gauge(
        "virga_forwarding_info",
        "none",
        &["mode", "asked"],
        "Always 1; the labels say which forwarding path is in use (`native`, `generic` or `userspace`), and what the configuration asks for.",
        |status, rows| {
            let forwarding = &status.forwarding;
            rows.put([&*forwarding.mode, &forwarding.mode_asked], 1_u64);
        },
    ),
    Series::gauge(
        "virga_forwarding_degraded",
        "none",
        &[],
        "1 while something of the forwarding path is not as configured (`virga status` says what), else 0.",
        |status, rows| rows.put([], status.forwarding.problem.is_some()),
    ),
    Series::gauge(
        "virga_interface_attached",
        "none",
        &["interface", "xdp_mode", "program"],
        "1 for each XDP program that is on an interface.",
        |status, rows| {
            for one in &status.forwarding.interfaces {
                rows.put([&*one.interface, &one.xdp_mode, &one.program], 1_u64);
            }
        },
    ),
    Series::counter(
        "virga_verdict_packets_total",
        "packets",
        &["path", "verdict"],
        "Packets that were not dropped, by where it was decided (`nic` or `userspace`) and what became of them.",
        |status, rows| packets(status, rows, |verdicts| &verdicts.outcomes),
    ),
    Series::counter(
        "virga_verdict_bytes_total",
        "bytes",
        &["path", "verdict"],
        "Their bytes: of whole frames in the NIC, of UDP payloads in user space.",
        |status, rows| bytes(status, rows, |verdicts| &verdicts.outcomes),
    ),
    Series::counter(
        "virga_drop_packets_total",
        "packets",
        &["path", "reason"],
        "Packets that were dropped before they reached a session, by where and why.",
        |status, rows| packets(status, rows, |verdicts| &verdicts.drops),
    ),
    Series::counter(
        "virga_drop_bytes_total",
        "bytes",
        &["path", "reason"],
        "Their bytes: of whole frames in the NIC, of UDP payloads in user space.",
        |status, rows| bytes(status, rows, |verdicts| &verdicts.drops),
    ),
    Series::gauge(
        "virga_guard_pairs",
        "pairs",
        &[],
        "Pairs of entity and channel in the NIC path's guard.",
        |status, rows| guard(status, rows, |guard| guard.pairs.into()),
    ),
    Series::gauge(
        "virga_guard_banks",
        "banks",
        &[],
        "Banks of 4 KiB that the guard has.",
        |status, rows| guard(status, rows, |guard| guard.banks.into()),
    ),
    Series::gauge(
        "virga_guard_fill_ratio",
        "ratio",
        &[],
        "Share of the guard's bits that are set.",
        |status, rows| guard(status, rows, |guard| guard.fill.into()),
    ),
    Series::gauge(
        "virga_guard_false_positive_ratio",
        "ratio",
        &[],
        "Estimated share of strangers that the guard alone would let through to the exact set.",
        |status, rows| guard(status, rows, |guard| guard.false_positive_rate.into()),
    ),
    Series::gauge(
        "virga_link_resolved",
        "none",
        &["peer"],
        "1 if the kernel knows the link-layer address of the next hop to a neighbour, else 0.",
        |status, rows| each_link(status, rows, |link| link.resolved),
    ),
    Series::gauge(
        "virga_link_down",
        "none",
        &["peer"],
        "1 if an operator took a neighbour's link down, else 0.",
        |status, rows| each_link(status, rows, |link| link.down),
    ),
    Series::gauge(
        "virga_link_unvouched",
        "none",
        &["peer"],
        "1 if nothing but handshakes and control traffic is let in from a neighbour, because it has shown no membership of its subnet; else 0.",
        |status, rows| each_link(status, rows, |link| link.unvouched.is_some()),
    ),
    Series::gauge(
        "virga_link_tags_checked",
        "none",
        &["peer"],
        "1 if what comes from a neighbour without a right link tag is dropped, else 0.",
        |status, rows| each_link(status, rows, |link| link.tags.checked),
    ),
    Series::gauge(
        "virga_link_tags_sent",
        "none",
        &["peer"],
        "1 if what goes to a neighbour has link tags, else 0.",
        |status, rows| each_link(status, rows, |link| link.tags.sent),
    ),
    Series::gauge(
        "virga_filter_used",
        "none",
        &["subnet", "gateway"],
        "1 if destinations in another subnet are judged by that gateway's filter now, else 0.",
        |status, rows| each_filter(status, rows, |filter| filter.is_used.into()),
    ),
    Series::gauge(
        "virga_filter_version",
        "versions",
        &["subnet", "gateway"],
        "Version of the filter that is held of a gateway; 0 where nothing was heard of it.",
        |status, rows| each_filter(status, rows, |filter| filter.version.into()),
    ),
    Series::gauge(
        "virga_filter_expiry_seconds",
        "seconds",
        &["subnet", "gateway"],
        "Seconds until that filter ends; 0 where it has, or where there is none: then nothing goes to that subnet by it.",
        |status, rows| {
            each_filter(status, rows, |filter| {
                filter.expires_in_s.unwrap_or(0).into()
            })
        },
    ),
    Series::gauge(
        "virga_filter_banks",
        "banks",
        &["subnet", "gateway"],
        "Banks of 4 KiB that the filter has.",
        |status, rows| each_filter(status, rows, |filter| filter.banks.into()),
    ),
    Series::gauge(
        "virga_filter_fill_ratio",
        "ratio",
        &["subnet", "gateway"],
        "Share of its bits that are set.",
        |status, rows| each_filter(status, rows, |filter| filter.fill.into()),
    ),
    Series::gauge(
        "virga_filter_false_positive_ratio",
        "ratio",
        &["subnet", "gateway"],
        "Estimated share of strangers that it would let through.",
        |status, rows| each_filter(status, rows, |filter| filter.false_positive_rate.into()),
    ),
    Series::gauge(
        "virga_filter_withdrawn_pairs",
        "pairs",
        &["subnet", "gateway"],
        "Pairs that were withdrawn from it.",
        |status, rows| each_filter(status, rows, |filter| filter.withdrawn.into()),
    ),
    Series::counter(
        "virga_filter_refusals_total",
        "filters",
        &["reason"],
        "What peers sent of gateways and was not taken in, by why.",
        |status, rows| {
            for (reason, count) in &status.admissions.filters.refused {
                rows.put([reason], *count);
            }
        },
    ),
];

fn each_filter(status: &Status, rows: &mut Rows, value: fn(&FilterStatus) -> Value) {
    for filter in &status.admissions.filters.filters {
        rows.put([&filter.subnet, &filter.gateway], value(filter));
    }
}

fn guard(status: &Status, rows: &mut Rows, value: fn(&GuardStatus) -> Value) {
    if let Some(guard) = &status.forwarding.guard {
        rows.put([], value(guard));
    }
}

fn each_link(status: &Status, rows: &mut Rows, is_so: fn(&LinkStatus) -> bool) {
    for link in &status.forwarding.links {
        rows.put([&link.peer], is_so(link));
    }
}

type Counts = BTreeMap<String, Count>;

/// Each path that is there, with its counts.
fn paths(
    status: &Status,
    counts: fn(&Verdicts) -> &Counts,
) -> impl Iterator<Item = (&'static str, &Counts)> {
    let nic = status.forwarding.nic.iter().map(|nic| ("nic", nic));
    let paths = nic.chain([("userspace", &status.userspace)]);
    paths.map(move |(path, verdicts)| (path, counts(verdicts)))
}

fn packets(status: &Status, rows: &mut Rows, counts: fn(&Verdicts) -> &Counts) {
    for (path, counts) in paths(status, counts) {
        for (name, count) in counts {
            rows.put([path, name], count.packets);
        }
    }
}

fn bytes(status: &Status, rows: &mut Rows, counts: fn(&Verdicts) -> &Counts) {
    for (path, counts) in paths(status, counts) {
        for (name, count) in counts {
            rows.put([path, name], count.bytes);
        }
    }
}
