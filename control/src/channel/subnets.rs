//! Where this node and its peers are.

use crate::config::Config;
use std::collections::BTreeMap;
use virga_ebpf::header::{NodeId, Subnet};

/// Where this node and its peers are.
#[derive(Clone, Debug, Default)]
pub struct Subnets {
    /// This node's subnet.
    pub own: Subnet,
    /// Those of its peers; of one that is not here, the root.
    pub peers: BTreeMap<NodeId, Subnet>,
}

impl Subnets {
    /// As they are configured.
    #[must_use]
    pub fn configured(config: &Config) -> Self {
        let peers = config.peers.iter();
        Self {
            own: config.node.subnet,
            peers: peers
                .filter_map(|peer| Some((peer.id, peer.subnet?.subnet)))
                .collect(),
        }
    }

    pub(crate) fn of(&self, peer: NodeId) -> Subnet {
        self.peers.get(&peer).copied().unwrap_or_default()
    }
}
