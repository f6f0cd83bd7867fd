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
    Series::gauge(
        "virga_port_mapping",
        "none",
        &["protocol"],
        "1 for the protocol by which the router maps a port to this node, where it does: PCP, NAT-PMP, UPnP.",
        |status, rows| {
            if let Some(protocol) = &status.nat.port_mapping.protocol {
                rows.put([protocol], 1_u32);
            }
        },
    ),
    Series::counter(
        "virga_port_mapping_made_total",
        "mappings",
        &["protocol"],
        "Ports that the router was asked to map and did, by protocol; those that it had forgotten among them.",
        |status, rows| {
            for (protocol, &count) in &status.nat.port_mapping.made {
                rows.put([protocol], count);
            }
        },
    ),
    Series::counter(
        "virga_port_mapping_renewed_total",
        "mappings",
        &["protocol"],
        "Mappings of the router's that were renewed, by protocol.",
        |status, rows| {
            for (protocol, &count) in &status.nat.port_mapping.renewed {
                rows.put([protocol], count);
            }
        },
    ),
    Series::counter(
        "virga_port_mapping_failed_total",
        "requests",
        &["protocol"],
        "Requests for a mapping that no router granted, by protocol.",
        |status, rows| {
            for (protocol, &count) in &status.nat.port_mapping.failed {
                rows.put([protocol], count);
            }
        },
    ),
    Series::counter(
        "virga_port_mapping_taken_total",
        "ports",
        &[],
        "Ports that the router gave to another host while they were mapped to this node, which asked for others.",
        |status, rows| rows.put([], status.nat.port_mapping.taken),
    ),
    Series::counter(
        "virga_port_mapping_panics_total",
        "panics",
        &[],
        "Panics of what keeps the mapped port, which was begun again each time: defects, to be reported.",
        |status, rows| rows.put([], status.nat.port_mapping.panics),
    ),
];
