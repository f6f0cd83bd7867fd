//! Links that died by themselves, and links that an operator took down.
//!
//! A dead link costs one write of its next hop's liveness in each table; all else follows later.

use super::{Path, Problem};
use crate::{
    api::status::LinkState,
    config::{PeerConfig, Reach},
    daemon::down,
    dispatch::Dispatch,
    links::Found,
    nic::echoes::Echoes,
};
use std::collections::{BTreeMap, BTreeSet};
use virga_ebpf::{header::NodeId, image::Image};
use virga_transport::LinkState as Heard;

/// Has the routes of an image that have another next hop do without dead links.
pub(super) fn avoid(dead: &BTreeSet<NodeId>, image: &mut Image) {
    for peer in dead {
        if let Some(at) = image.adjacent.get(peer).copied() {
            image.avoid(at.ip().into(), at.port());
        }
    }
}

impl Path {
    /// Neighbours that were reached through NATs, and that are not heard and heard by straight: until then, and again
    /// once they fall silent, routers lead there.
    pub(super) fn unheard(&self, found: &BTreeMap<NodeId, Found>) -> BTreeSet<NodeId> {
        let is_up = |peer: &NodeId| found.get(peer).is_some_and(|f| f.state == Heard::Up);
        let punched = self.config.punched.keys();
        punched.filter(|peer| !is_up(peer)).copied().collect()
    }

    /// Has the workers hear links by what the NIC path notes of them.
    pub(super) async fn show_echoes(&self, dispatch: &Dispatch) -> Result<(), String> {
        let Some(nic) = &self.nic else {
            return Ok(());
        };
        let (pin, zero_ns) = (nic.echoes(), self.workers_zero_ns);
        let show = move |_, parts: &mut virga_transport::worker::Parts<_>| {
            let echoes = Echoes::open(&pin, zero_ns)?;
            parts.set_echoes(Box::new(echoes));
            Ok(())
        };
        let shown = dispatch.with_all(show).await;
        let shown = shown.map_err(|_| "the workers have ended".to_owned())?;
        let shown: Result<(), crate::nic::NicError> = shown.into_iter().collect();
        shown.map_err(|error| error.to_string())
    }

    /// Takes up what the workers have found of links.
    pub(super) async fn follow_links(
        &mut self,
        found: BTreeMap<NodeId, Found>,
        dispatch: &Dispatch,
    ) {
        let dead = found.iter().filter(|(_, found)| found.state.is_dead());
        let mut dead: BTreeSet<NodeId> = dead.map(|(peer, _)| *peer).collect();
        dead.extend(self.unheard(&found));
        let before = std::mem::replace(&mut self.dead, dead);
        let falls: BTreeMap<NodeId, u64> = found.iter().map(|(peer, f)| (*peer, f.falls)).collect();
        let seen = std::mem::replace(&mut self.falls, falls);
        // The worker that found it dead goes round it: it does not know what is alive again.
        let has_flapped = self.falls.iter().any(|(peer, falls)| {
            !self.dead.contains(peer) && seen.get(peer).copied().unwrap_or(0) != *falls
        });
        let fallen: Vec<NodeId> = self.dead.difference(&before).copied().collect();
        // Before anything is logged.
        let avoided = self.avoid_in_nic(&fallen);
        let peers = fallen.clone();
        let avoid = move |_, parts: &mut virga_transport::worker::Parts<_>| {
            for &peer in &peers {
                parts.forwarder.avoid(peer);
            }
        };
        // With the workers, the node ends.
        let _ended = dispatch.with_all(avoid).await;
        self.log_links(&found, &before);
        if let Err(error) = &avoided {
            self.note(Some(Problem::retried(error)));
        }
        if avoided.is_err() || has_flapped || before.difference(&self.dead).next().is_some() {
            // It is logged, shown in `status` and tried again.
            let _shown = self.apply(dispatch).await;
        }
        if self.dead != before {
            // Neighbours are told of what goes another way, or nowhere.
            self.follow_routing(dispatch).await;
        }
    }

    fn avoid_in_nic(&mut self, fallen: &[NodeId]) -> Result<(), crate::nic::NicError> {
        let Some(nic) = &mut self.nic else {
            return Ok(());
        };
        for peer in self.config.peers.iter().filter(|p| fallen.contains(&p.id)) {
            if let Reach::Adjacent { address, .. } = &peer.reach {
                nic.avoid(*address)?;
            }
        }
        Ok(())
    }

    fn log_links(&self, found: &BTreeMap<NodeId, Found>, before: &BTreeSet<NodeId>) {
        let name = |id: &NodeId| {
            let peer = self.config.peers.iter().find(|peer| peer.id == *id);
            peer.map_or("", |peer: &PeerConfig| peer.name.as_str())
        };
        for (id, found) in found {
            let Found {
                state,
                gap_ns,
                falls,
            } = found;
            match (state.is_dead(), before.contains(id)) {
                (true, false) => tracing::warn!(
                    neighbour = name(id),
                    found = state.name(),
                    unheard_ms = gap_ns / 1_000_000,
                    "a link is dead: what has another next hop goes there"
                ),
                (false, true) if *falls > 0 => {
                    tracing::info!(neighbour = name(id), "a link that was dead is in use again");
                }
                _ => {}
            }
        }
    }

    pub(super) async fn set_link(
        &mut self,
        peer: &str,
        state: LinkState,
        dispatch: &Dispatch,
    ) -> Result<(), String> {
        let mut peers = self.config.peers.iter().enumerate();
        let found = peers.find(|(_, known)| known.name == peer);
        let (index, peer) = found.ok_or_else(|| format!("there is no peer {peer:?} any more"))?;
        if !matches!(peer.reach, Reach::Adjacent { .. }) {
            return Err(format!(
                "{} is not adjacent: only next hops can be taken up or down",
                peer.name
            ));
        }
        tracing::info!(peer = %peer.name, state = state.name(), "next hop set by the operator");
        match state {
            LinkState::Up => self.down.remove(&index),
            LinkState::Down => self.down.insert(index),
        };
        self.apply(dispatch).await?;
        down::write(&self.config, &self.down).map_err(|error| {
            let file = down::file(&self.config);
            format!(
                "set, but not remembered: cannot write {}: {error}",
                file.display()
            )
        })
    }
}
