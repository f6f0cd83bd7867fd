//! `GET /trace`: the way that packets for a node take, from neighbour to neighbour.

use super::{
    Api,
    error::{ApiError, Query},
};
use crate::{
    config::{Config, read_node_id},
    trace::{Trace, TraceHop},
};
use axum::{Json, extract::State};
use serde::Deserialize;
use std::sync::Arc;
use virga_ebpf::header::NodeId;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// A peer's name, or a node's id in hex.
    to: String,
}

/// The node that is meant by its name, or by its id in hex.
pub(super) fn node(config: &Config, to: &str) -> Result<NodeId, ApiError> {
    let named = config.peers.iter().find(|peer| peer.name == to);
    let own = (config.node.name == to).then_some(config.node.id);
    let found = named
        .map(|peer| peer.id)
        .or(own)
        .or_else(|| read_node_id(to));
    found.ok_or_else(|| {
        let known: Vec<&str> = config.peers.iter().map(|peer| &*peer.name).collect();
        ApiError::Missing(format!(
            "there is no peer {to:?}, and a node's id has 16 hex digits; the configuration has: {}",
            known.join(", ")
        ))
    })
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(Question { to }): Query<Question>,
) -> Result<Json<Trace>, ApiError> {
    let config = api.identity.config();
    let destination = node(&config, &to)?;
    let way = api.tracer.trace(destination).await;
    let name = |id: NodeId| {
        let peer = config.peers.iter().find(|peer| peer.id == id);
        peer.map(|peer| peer.name.clone())
    };
    let hops = way.hops.into_iter().map(|hop| TraceHop {
        node: hop.node.to_string(),
        name: name(hop.node),
        rtt_us: hop.rtt_us,
        loss_ppm: hop.loss_ppm,
        answered_us: hop.answered_us,
    });
    Ok(Json(Trace {
        destination: destination.to_string(),
        end: way.end,
        hops: hops.collect(),
    }))
}
