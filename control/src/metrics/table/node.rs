//! The node as a whole, its API, and who may publish by a token.

use crate::metrics::Series;

pub(super) const SERIES: &[Series] = &[
    Series::gauge(
        "virga_node_info",
        "none",
        &["node", "id", "network", "version"],
        "Always 1; the labels say which node this is, and which version of Virga it runs.",
        |status, rows| {
            let node = &status.node;
            rows.put([&*node.name, &node.id, &node.network, &node.version], 1_u64);
        },
    ),
    Series::gauge(
        "virga_uptime_seconds",
        "seconds",
        &[],
        "How long the daemon has been running.",
        |status, rows| rows.put([], status.node.uptime_s),
    ),
    Series::gauge(
        "virga_declarations_unwritten",
        "declarations",
        &[],
        "Peers' declarations of channels that count and could not be written yet: a restart would forget them.",
        |status, rows| rows.put([], status.node.unwritten),
    ),
    Series::counter(
        "virga_log_lines_lost_total",
        "lines",
        &[],
        "Lines of the daemon's log that could not be written: the disk is full, or whoever read them is gone.",
        |status, rows| rows.put([], status.node.log_lines_lost),
    ),
    Series::gauge(
        "virga_api_connections",
        "connections",
        &[],
        "Programs' connections to the node's API now.",
        |status, rows| rows.put([], status.api.connections),
    ),
    Series::gauge(
        "virga_api_connections_max",
        "connections",
        &[],
        "As many connections as the API may have.",
        |status, rows| rows.put([], status.api.connections_max),
    ),
    Series::counter(
        "virga_api_refused_connections_total",
        "connections",
        &[],
        "Connections that the API refused because it had as many as it may.",
        |status, rows| rows.put([], status.api.refused),
    ),
    Series::gauge(
        "virga_admission_tokens",
        "tokens",
        &[],
        "Tokens that are held for the guard.",
        |status, rows| rows.put([], status.admissions.tokens),
    ),
    Series::gauge(
        "virga_admission_statements",
        "statements",
        &[],
        "Statements of issuers that are held for the guard.",
        |status, rows| rows.put([], status.admissions.statements),
    ),
    Series::gauge(
        "virga_admission_holders",
        "entities",
        &[],
        "Entities that those tokens and statements are about.",
        |status, rows| rows.put([], status.admissions.holders),
    ),
    Series::gauge(
        "virga_admission_pairs",
        "pairs",
        &[],
        "Pairs of entity and channel that the guard lets through because of both.",
        |status, rows| rows.put([], status.admissions.pairs),
    ),
    Series::counter(
        "virga_admission_refused_pairs_total",
        "pairs",
        &[],
        "Pairs of entity and channel that found no room.",
        |status, rows| rows.put([], status.admissions.pairs_refused),
    ),
    Series::counter(
        "virga_admission_refused_statements_total",
        "statements",
        &[],
        "Times that a statement found no room: of all, of its issuer's share or of those about one entity.",
        |status, rows| rows.put([], status.admissions.statements_refused),
    ),
    Series::counter(
        "virga_admission_refused_tokens_total",
        "tokens",
        &["reason"],
        "Tokens that peers sent and that were refused, by the reason; they are among the verdicts.",
        |status, rows| {
            for (reason, count) in &status.admissions.tokens_refused {
                rows.put([reason], *count);
            }
        },
    ),
    Series::counter(
        "virga_admission_verdicts_total",
        "pieces",
        &["verdict"],
        "Tokens and statements that peers sent, by what became of them.",
        |status, rows| {
            for (verdict, count) in &status.admissions.verdicts {
                rows.put([verdict], *count);
            }
        },
    ),
    Series::gauge(
        "virga_admission_neighbours",
        "peers",
        &[],
        "Neighbours that there is a session with, and that are told of tokens and statements.",
        |status, rows| rows.put([], status.admissions.neighbours),
    ),
];
