//! Nodes that were found, and which members of the mesh live.

use crate::metrics::Series;
use std::collections::BTreeMap;

pub(super) const SERIES: &[Series] = &[
    Series::gauge(
        "virga_discovery_nodes",
        "nodes",
        &["stage"],
        "Nodes that are known beside those that the file names, by how far this node is with them: waiting, dialling, proven (there is a session), lost.",
        |status, rows| {
            let mut stages: BTreeMap<&str, u64> = BTreeMap::new();
            for node in &status.discovery.nodes {
                *stages.entry(&node.stage).or_default() += 1;
            }
            for (stage, count) in stages {
                rows.put([stage], count);
            }
        },
    ),
    Series::gauge(
        "virga_discovery_twins",
        "nodes",
        &[],
        "Nodes of which another one that runs has the keys: both are refused.",
        |status, rows| {
            let nodes = status.discovery.nodes.iter();
            rows.put([], nodes.filter(|node| node.is_twin).count());
        },
    ),
    Series::counter(
        "virga_discovery_messages_total",
        "messages",
        &[],
        "Messages about other nodes that were sent in sessions.",
        |status, rows| rows.put([], status.discovery.messages),
    ),
    Series::counter(
        "virga_discovery_introductions_total",
        "messages",
        &[],
        "Introductions to nodes that there is no session with.",
        |status, rows| rows.put([], status.discovery.introductions),
    ),
    Series::counter(
        "virga_discovery_refused_total",
        "records",
        &["reason"],
        "What was found or said of other nodes and not taken, by reason.",
        |status, rows| {
            for (reason, &count) in &status.discovery.refused {
                rows.put([reason], count);
            }
        },
    ),
    Series::gauge(
        "virga_lan_up",
        "none",
        &["address"],
        "1 where this node is announced in the LAN in which it has this address, 0 where that is not possible: `virga status` says why.",
        |status, rows| {
            for place in &status.discovery.lan.places {
                rows.put([&place.address], u32::from(place.problem.is_none()));
            }
        },
    ),
    Series::gauge(
        "virga_lan_nodes",
        "nodes",
        &[],
        "Other nodes whose announcements in the LAN count now, be they true or not.",
        |status, rows| rows.put([], status.discovery.lan.nodes),
    ),
    Series::counter(
        "virga_lan_messages_total",
        "messages",
        &["direction"],
        "mDNS messages that were sent, and that were heard of whoever speaks it.",
        |status, rows| {
            rows.put(["sent"], status.discovery.lan.sent);
            rows.put(["heard"], status.discovery.lan.heard);
        },
    ),
    Series::counter(
        "virga_lan_refused_total",
        "records",
        &["reason"],
        "What was heard in the LAN and not taken, by reason.",
        |status, rows| {
            for (reason, &count) in &status.discovery.lan.refused {
                rows.put([reason], count);
            }
        },
    ),
    Series::gauge(
        "virga_member_state",
        "none",
        &["peer", "state"],
        "1 for what members have found of another one: alive, suspect or dead.",
        |status, rows| {
            for member in &status.discovery.members {
                rows.put([&member.name, &member.state], 1_u32);
            }
        },
    ),
    Series::gauge(
        "virga_member_state_age_seconds",
        "seconds",
        &["peer"],
        "How long it is so.",
        |status, rows| {
            for member in &status.discovery.members {
                rows.put([&member.name], member.since_s);
            }
        },
    ),
    Series::gauge(
        "virga_members_slowness",
        "none",
        &[],
        "0 while this node answers and asks in time; higher, up to 8: it gives others more time before it judges them.",
        |status, rows| rows.put([], status.discovery.slowness),
    ),
    Series::counter(
        "virga_members_refuted_total",
        "times",
        &[],
        "How often this node had to say that it lives.",
        |status, rows| rows.put([], status.discovery.refuted),
    ),
    Series::counter(
        "virga_members_ignored_total",
        "updates",
        &[],
        "What was said about members, and was about none here or could not be true.",
        |status, rows| rows.put([], status.discovery.ignored),
    ),
];
