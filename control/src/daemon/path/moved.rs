//! A neighbour that moved: facts, tables and status go by its new address from then on. After a restart, or when
//! its block has changed, the configured one counts again. And entities that moved, or have another key, and
//! configurations that were read anew: tables go by what they say.

use super::{Path, Problem};
use crate::{
    config::{Config, PeerConfig, Reach},
    dispatch::Dispatch,
    nic::kernel::KernelError,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use virga_ebpf::header::NodeId;

impl Path {
    /// Goes by another configuration, but for addresses that neighbours have moved to. Of peers that are `anew`
    /// nothing counts that was learned before.
    pub(super) async fn follow_config(
        &mut self,
        mut config: Arc<Config>,
        anew: &BTreeSet<NodeId>,
        dispatch: &Dispatch,
    ) -> Result<(), String> {
        let before = std::mem::replace(&mut self.config, Arc::clone(&config));
        let places = before.peers.iter().enumerate();
        let places: BTreeMap<&str, usize> = places.map(|(i, peer)| (&*peer.name, i)).collect();
        // Where each peer that goes on stood before; one whose entity moved may have another id since.
        let goes_on = |peer: &PeerConfig| {
            let place = places.get(&*peer.name).copied();
            place.filter(|_| !anew.contains(&peer.id))
        };
        let stood: Vec<Option<usize>> = config.peers.iter().map(goes_on).collect();
        let now = Arc::make_mut(&mut config);
        let mut ids = Vec::new();
        for (peer, place) in now.peers.iter_mut().zip(&stood) {
            let Some(earlier) = place.map(|place| &before.peers[place]) else {
                continue;
            };
            ids.push((earlier.id, peer.id));
            if let (Reach::Adjacent { address, interface }, Reach::Adjacent { address: at, .. }) =
                (&mut peer.reach, &earlier.reach)
            {
                *address = *at;
                let is_carried = |id| self.moves.is_carried(id);
                if is_carried(earlier.id) || is_carried(peer.id) {
                    *interface = None;
                }
            }
        }
        self.config = config;
        self.moves.renamed(&ids);
        self.moves.forget(anew);
        self.tags.renamed(&ids);
        self.tags.follow(&self.config, anew);
        self.forget_links(anew);
        if let Some(routing) = &mut self.routing {
            routing.set_config(&self.config);
        }
        let is_as_before = before.peers.len() == stood.len()
            && stood.iter().enumerate().all(|(i, place)| *place == Some(i));
        let known = match is_as_before {
            true => Ok(()),
            false => self.follow_places(&before, &stood).await,
        };
        self.follow_members(dispatch).await;
        let applied = self.apply(dispatch).await;
        if let Err(error) = known {
            self.note(Some(Problem::retried(error)));
        }
        applied
    }

    /// What is known by a peer's place in the configuration. An operator's word stays with its name.
    async fn follow_places(
        &mut self,
        before: &Config,
        stood: &[Option<usize>],
    ) -> Result<(), KernelError> {
        let down = std::mem::take(&mut self.down);
        let names: BTreeSet<&str> = down.iter().map(|&i| &*before.peers[i].name).collect();
        let peers = self.config.peers.iter().enumerate();
        let is_down = |peer: &PeerConfig| peer.is_adjacent() && names.contains(&*peer.name);
        self.down = peers
            .filter(|(_, peer)| is_down(peer))
            .map(|(index, _)| index)
            .collect();
        let known = self.read_facts().await;
        if known.is_err() {
            // Until the kernel tells, those that go on are where they were.
            let mut links = std::mem::take(&mut self.facts.links);
            let kept = stood.iter().enumerate();
            self.facts.links = kept
                .filter_map(|(index, place)| Some((index, links.remove(place.as_ref()?)?)))
                .collect();
        }
        known
    }

    /// What the workers found of links that are none any more, or others.
    fn forget_links(&mut self, anew: &BTreeSet<NodeId>) {
        let adjacent = self.config.peers.iter().filter(|peer| peer.is_adjacent());
        let adjacent: BTreeSet<NodeId> = adjacent.map(|peer| peer.id).collect();
        let is_over = |peer: NodeId| anew.contains(&peer) || !adjacent.contains(&peer);
        self.links.forget(is_over);
        self.dead.retain(|peer| !is_over(*peer));
    }

    /// Takes up where neighbours are now.
    pub(super) async fn follow_moves(&mut self, dispatch: &Dispatch) {
        let moved = self.moves.take();
        let config = Arc::make_mut(&mut self.config);
        for peer in &mut config.peers {
            let (Some(&now), Reach::Adjacent { address, interface }) =
                (moved.get(&peer.id), &mut peer.reach)
            else {
                continue;
            };
            // One that was given back meanwhile is told once more.
            if *address == now || self.moves.is_past(peer.id, now) {
                continue;
            }
            if !self.tags.may_move(peer.id, now) {
                if self.moves.is_carried(peer.id) {
                    // It is looked for there again, whether UDP works.
                    self.moves.note_before(peer.id, (*address, None));
                }
                tracing::warn!(peer = %peer.name, from = %address, to = %now,
                    "a neighbour moved to the IP address of another, and link tags could not tell their packets apart: its packets in transit are looked for where it was");
                continue;
            }
            if self.moves.is_carried(peer.id) {
                // No interface but loopback leads there.
                self.moves
                    .note_before(peer.id, (*address, interface.take()));
            } else {
                tracing::info!(peer = %peer.name, from = %address, to = %now, "a neighbour has moved");
                if let Some(name) = self.moves.take_interface(peer.id) {
                    *interface = Some(name);
                }
            }
            *address = now;
            self.tags.moved(peer.id, now);
        }
        if let Err(error) = self.read_facts().await {
            return self.note(Some(Problem::retried(error)));
        }
        // It is logged, shown in `status` and tried again.
        let _shown = self.apply(dispatch).await;
    }
}
