//! The links to neighbours, as their keepalive finds them, and how packets get to peers.

use crate::{
    api::status::Status,
    daemon::path::KeepaliveStatus,
    metrics::{Rows, Series, Value},
};

pub(super) const SERIES: &[Series] = &[
    Series::gauge(
        "virga_link_state",
        "none",
        &["peer", "state"],
        "1 for what is known of the link to a neighbour: up; silent or one-way, dead; unknown, there is no session or the neighbour does not speak the keepalive; off, not watched.",
        |status, rows| {
            for link in &status.forwarding.links {
                rows.put([&link.peer, &link.keepalive.state], 1_u32);
            }
        },
    ),
    Series::gauge(
        "virga_peer_transport",
        "none",
        &["peer", "transport"],
        "1 for what carries packets to a neighbour that something else than UDP could reach: udp, tcp, ws or wss.",
        |status, rows| {
            for peer in &status.peers {
                if let Some(transport) = &peer.transport {
                    rows.put([&peer.name, transport], 1_u32);
                }
            }
        },
    ),
    Series::gauge(
        "virga_fallback_carried",
        "neighbours",
        &["transport"],
        "Neighbours that a connection carries now, dialled from here or there.",
        |status, rows| {
            for (transport, count) in &status.fallback.carried {
                rows.put([transport], *count);
            }
        },
    ),
    Series::counter(
        "virga_fallback_packets_total",
        "packets",
        &["direction"],
        "Packets that such connections carried: sent, or received and passed on.",
        |status, rows| {
            rows.put(["sent"], status.fallback.sent);
            rows.put(["received"], status.fallback.received);
        },
    ),
    Series::counter(
        "virga_fallback_drops_total",
        "drops",
        &["reason"],
        "Connections that were closed (full, slow, garbage, stranger, second, broken, malformed, useless), and packets that connections dropped (queue, rate, local).",
        |status, rows| {
            for (reason, count) in &status.fallback.dropped {
                rows.put([reason], *count);
            }
        },
    ),
    Series::gauge(
        "virga_link_state_age_seconds",
        "seconds",
        &["peer"],
        "How long it is so.",
        |status, rows| each(status, rows, |found| seconds(found.since_ms)),
    ),
    Series::gauge(
        "virga_link_nic_answers",
        "none",
        &["peer"],
        "1 if the neighbour's NIC path answers for it, 0 if its worker does: then silence must last longer.",
        |status, rows| {
            each(status, rows, |found| {
                u32::from(found.answers == "nic").into()
            })
        },
    ),
    Series::gauge(
        "virga_link_keepalive_interval_seconds",
        "seconds",
        &["peer"],
        "Time between two packets of the keepalive.",
        |status, rows| each(status, rows, |found| seconds(found.interval_ms)),
    ),
    Series::gauge(
        "virga_link_detection_seconds",
        "seconds",
        &["peer"],
        "Time without any packet after which the link is dead.",
        |status, rows| each(status, rows, |found| seconds(found.detect_ms)),
    ),
    Series::counter(
        "virga_link_detections_total",
        "times",
        &["peer"],
        "How often the link was found dead.",
        |status, rows| each(status, rows, |found| found.detections.into()),
    ),
    Series::gauge(
        "virga_link_gap_seconds",
        "seconds",
        &["peer"],
        "How long no packet had come when the link was found dead the last time.",
        |status, rows| each(status, rows, |found| seconds(found.gap_ms)),
    ),
    Series::counter(
        "virga_link_keepalives_received_total",
        "frames",
        &["peer"],
        "Frames of the neighbour's keepalive that came.",
        |status, rows| each(status, rows, |found| found.received.into()),
    ),
    Series::counter(
        "virga_link_keepalives_missed_total",
        "frames",
        &["peer"],
        "Frames of it that did not come, or came late.",
        |status, rows| each(status, rows, |found| found.missed.into()),
    ),
    Series::gauge(
        "virga_link_loss_ratio",
        "ratio",
        &["peer", "direction"],
        "Share of the packets over the link that is lost of late: to the neighbour, by its word, and from it.",
        |status, rows| {
            for link in &status.forwarding.links {
                let found = &link.keepalive;
                let both = [("to", found.lost_ppm), ("from", found.lost_back_ppm)];
                for (direction, ppm) in both {
                    if let Some(ppm) = ppm {
                        rows.put([&*link.peer, direction], f64::from(ppm) / 1e6);
                    }
                }
            }
        },
    ),
    Series::gauge(
        "virga_peer_path",
        "none",
        &["peer", "path"],
        "1 for the path that packets to a peer take now: direct; punched, straight through NATs; relayed, over a neighbour; none, no live next hop leads there.",
        |status, rows| {
            for peer in &status.peers {
                rows.put([&peer.name, &peer.path], 1_u32);
            }
        },
    ),
];

/// Of each neighbour whose link is watched.
fn each(status: &Status, rows: &mut Rows, value: fn(&KeepaliveStatus) -> Value) {
    let links = status.forwarding.links.iter();
    for link in links.filter(|link| link.keepalive.state != "off") {
        rows.put([&link.peer], value(&link.keepalive));
    }
}

fn seconds(ms: u64) -> Value {
    std::time::Duration::from_millis(ms).as_secs_f64().into()
}
