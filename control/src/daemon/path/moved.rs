//! A neighbour that moved: facts, tables and status go by its new address from then on. After a restart
//! the configured one counts again.

use super::{Path, Problem};
use crate::{config::Reach, dispatch::Dispatch};
use std::sync::Arc;

impl Path {
    /// Takes up where neighbours are now.
    pub(super) async fn follow_moves(&mut self, dispatch: &Dispatch) {
        let moved = self.moves.take();
        let config = Arc::make_mut(&mut self.config);
        for peer in &mut config.peers {
            if let Some(&now) = moved.get(&peer.id)
                && let Reach::Adjacent { address, .. } = &mut peer.reach
            {
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
