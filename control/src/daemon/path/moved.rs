//! A neighbour that moved: facts, tables and status go by its new address from then on. After a restart
//! the configured one counts again. And entities that moved, or have another key: tables go by where they
//! are.

use super::{Path, Problem};
use crate::{
    config::{Config, Reach},
    dispatch::Dispatch,
};
use std::sync::Arc;

impl Path {
    /// Goes by another configuration, but for addresses that neighbours have moved to.
    pub(super) async fn follow_config(
        &mut self,
        mut config: Arc<Config>,
        dispatch: &Dispatch,
    ) -> Result<(), String> {
        let now = Arc::make_mut(&mut config);
        for (peer, before) in now.peers.iter_mut().zip(&self.config.peers) {
            if let (Reach::Adjacent { address, .. }, Reach::Adjacent { address: at, .. }) =
                (&mut peer.reach, &before.reach)
            {
                *address = *at;
            }
        }
        let peers = self.config.peers.iter().zip(&config.peers);
        let ids: Vec<_> = peers.map(|(before, now)| (before.id, now.id)).collect();
        self.tags.renamed(&ids);
        self.config = config;
        if let Some(routing) = &mut self.routing {
            routing.set_config(&self.config);
        }
        self.follow_members(dispatch).await;
        self.apply(dispatch).await
    }

    /// Takes up where neighbours are now.
    pub(super) async fn follow_moves(&mut self, dispatch: &Dispatch) {
        let moved = self.moves.take();
        let config = Arc::make_mut(&mut self.config);
        for peer in &mut config.peers {
            if let Some(&now) = moved.get(&peer.id)
                && let Reach::Adjacent { address, .. } = &mut peer.reach
            {
                if !self.tags.may_move(peer.id, now) {
                    tracing::warn!(peer = %peer.name, from = %address, to = %now,
                        "a neighbour moved to the IP address of another, and link tags could not tell their packets apart: its packets in transit are looked for where it was");
                    continue;
                }
                tracing::info!(peer = %peer.name, from = %address, to = %now, "a neighbour has moved");
                *address = now;
                self.tags.moved(peer.id, now);
            }
        }
        if let Err(error) = self.read_facts().await {
            return self.note(Some(Problem::retried(error)));
        }
        // It is logged, shown in `status` and tried again.
        let _shown = self.apply(dispatch).await;
    }
}
