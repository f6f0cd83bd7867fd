//! Peers that are sent to straight through their NATs: neighbours for as long as that works, in the same sessions.

use super::{Registry, locked};
use crate::{config::Config, dispatch::Ended};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use virga_ebpf::header::NodeId;

impl Registry {
    /// These peers are neighbours at these addresses from now on, beside those that the file names and those that were
    /// found. No session ends by it.
    pub(in crate::daemon) async fn set_punched(
        &self,
        punched: BTreeMap<NodeId, SocketAddr>,
    ) -> Result<(), Ended> {
        let mut state = self.0.state.lock().await;
        *locked(&self.0.punched) = punched;
        let (before, next) = (self.configured(), self.with_all_found(&self.filed()));
        if before.peers == next.peers {
            return Ok(());
        }
        let none = std::collections::BTreeSet::new();
        self.log(self.change(&mut state, &next, &none).await)
    }

    /// What a file says, with the nodes that were found and the ways that there are.
    pub(super) fn with_all_found(&self, filed: &Config) -> Arc<Config> {
        let found = filed.with_found(&locked(&self.0.found));
        Arc::new(found.with_punched(&locked(&self.0.punched)))
    }
}
