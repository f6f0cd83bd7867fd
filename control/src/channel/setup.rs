//! What the service has to know of the configuration.

use super::{follow, presence::Presence};
use crate::{
    capability::Statements,
    config::{ChannelConfig, Config},
    rights::Authentic,
};
use std::{collections::BTreeSet, sync::Arc};
use virga_ebpf::header::NodeId;
use virga_transport::Share;

/// What the service has to know of the configuration.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This node's entity.
    pub entity: [u8; 32],
    /// The other nodes and their entities.
    pub peers: Vec<(NodeId, [u8; 32])>,
    /// The channels.
    pub channels: Vec<ChannelConfig>,
    /// Which worker's sessions it has; `peers` are that worker's.
    pub share: Share,
    /// Where it tells who has subscribed.
    pub presence: Arc<Presence>,
    /// Tokens of this node's entity.
    pub tokens: Vec<Authentic>,
    /// What is said of it.
    pub statements: Statements,
    /// Signed revocation lists that were known before.
    pub revocations: Vec<Vec<u8>>,
    /// Unix time at the workers' time 0, in nanoseconds.
    pub unix_zero_ns: u64,
    /// Those of `peers` that are next to this node.
    pub neighbours: BTreeSet<NodeId>,
    /// Neighbours that there is always a session with, of those in `peers`: link tags or routes are agreed on.
    pub kept_up: BTreeSet<NodeId>,
}

impl Setup {
    /// What one worker's service has to know.
    #[must_use]
    pub fn of(config: &Config, share: Share, presence: &Arc<Presence>) -> Self {
        let peers = follow::peers(config).into_iter();
        let peers = peers.filter(|(peer, _)| share.owns(*peer));
        let neighbours = follow::neighbours(config).into_iter();
        let kept_up = follow::kept_up(config).into_iter();
        Self {
            neighbours: neighbours.filter(|&peer| share.owns(peer)).collect(),
            kept_up: kept_up.filter(|&peer| share.owns(peer)).collect(),
            entity: config.keys.entity.public,
            peers: peers
                .flat_map(|(peer, keys)| keys.into_iter().map(move |key| (peer, key)))
                .collect(),
            channels: config.channels.clone(),
            share,
            presence: Arc::clone(presence),
            tokens: config.node.tokens.clone(),
            statements: config.node.statements.clone(),
            revocations: Vec::new(),
            unix_zero_ns: 0,
        }
    }
}
