//! A neighbour that moved: facts, tables and status go by its new address from then on. After a restart, or when
//! its block has changed, the configured one counts again. And entities that moved, or have another key, and
//! configurations that were read anew: tables go by what they say. And ways through NATs, which are neighbours' for as
//! long as they last: where there is one, no other neighbour is at that IP address.

use super::{Path, Problem};
use crate::{
    config::{Config, PeerConfig, Reach},
    dispatch::Dispatch,
    nic::kernel::KernelError,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use virga_ebpf::header::NodeId;

/// Whether packets of a peer and of another neighbour would come from one IP address, and one of the two was reached
/// through NATs: nobody could tell them apart, neither by link tags nor by subnets.
fn is_kept_apart(config: &Config, peer: NodeId, ip: IpAddr) -> bool {
    let is_punched = |id: NodeId| config.punched.contains_key(&id);
    let mut others = config.peers.iter().filter(|one| one.id != peer);
    others.any(|one| match &one.reach {
        Reach::Adjacent { address, .. } => {
            address.ip() == ip && (is_punched(one.id) || is_punched(peer))
        }
        Reach::Via { .. } | Reach::Learned => false,
    })
}

/// Has peers relayed that were reached through NATs and are at the IP address of a neighbour: of one that is not where
/// its block says, or that the configuration has put where such a peer has moved to. Of two that were reached so the
/// first one stays.
fn keep_apart(before: &Config, config: &mut Config) {
    let is_new = |peer: NodeId| before.punched.get(&peer) != config.punched.get(&peer);
    let has_block_at = |ip: IpAddr| {
        let mut others = config.peers.iter();
        others.any(|one| match &one.reach {
            Reach::Adjacent { address, .. } => {
                address.ip() == ip && !config.punched.contains_key(&one.id)
            }
            Reach::Via { .. } | Reach::Learned => false,
        })
    };
    let punched = config
        .peers
        .iter()
        .filter(|peer| config.punched.contains_key(&peer.id));
    let taken = punched.filter(|peer| match &peer.reach {
        Reach::Adjacent { address, .. } if is_new(peer.id) => {
            is_kept_apart(config, peer.id, address.ip())
        }
        Reach::Adjacent { address, .. } => has_block_at(address.ip()),
        Reach::Via { .. } | Reach::Learned => false,
    });
    let taken: BTreeSet<NodeId> = taken.map(|peer| peer.id).collect();
    for peer in config
        .peers
        .iter_mut()
        .filter(|peer| taken.contains(&peer.id))
    {
        tracing::warn!(peer = %peer.name, "a neighbour is at the IP address of a peer that was reached through NATs: it is relayed");
        peer.reach = Reach::Learned;
        config.punched.remove(&peer.id);
    }
}

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
        let is_new_way = |punched: &BTreeMap<NodeId, SocketAddr>, peer: NodeId| {
            before.punched.get(&peer) != punched.get(&peer)
        };
        for (peer, place) in now.peers.iter_mut().zip(&stood) {
            let Some(earlier) = place.map(|place| &before.peers[place]) else {
                continue;
            };
            ids.push((earlier.id, peer.id));
            if is_new_way(&now.punched, peer.id) {
                continue;
            }
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
        keep_apart(&before, now);
        let mut found_anew = anew.clone();
        let ways = now.punched.keys().copied();
        found_anew.extend(ways.filter(|&peer| is_new_way(&now.punched, peer)));
        self.config = config;
        self.moves.renamed(&ids);
        self.moves.forget(anew);
        self.moves.look_again();
        self.tags.renamed(&ids);
        self.tags.follow(&self.config, anew);
        self.forget_links(&found_anew);
        if let Some(routing) = &mut self.routing {
            routing.set_config(&self.config);
        }
        let is_there = |(i, place): (usize, &Option<usize>)| {
            *place == Some(i) && before.peers[i].reach == self.config.peers[i].reach
        };
        let is_as_before =
            before.peers.len() == stood.len() && stood.iter().enumerate().all(is_there);
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

    /// The IP addresses where neighbours are, and where those were that are carried.
    pub(super) fn places(&self) -> BTreeSet<(NodeId, IpAddr)> {
        let peers = self.config.peers.iter();
        let of = |peer: &PeerConfig| {
            let at = match &peer.reach {
                Reach::Adjacent { address, .. } => Some(*address),
                Reach::Via { .. } | Reach::Learned => None,
            };
            let both = [at, self.moves.before(peer.id)].into_iter().flatten();
            both.map(|at| (peer.id, at.ip())).collect::<Vec<_>>()
        };
        peers.flat_map(of).collect()
    }

    /// What the workers found of links that are none any more, or others.
    fn forget_links(&mut self, anew: &BTreeSet<NodeId>) {
        let adjacent = self.config.peers.iter().filter(|peer| peer.is_adjacent());
        let adjacent: BTreeSet<NodeId> = adjacent.map(|peer| peer.id).collect();
        let is_over = |peer: NodeId| anew.contains(&peer) || !adjacent.contains(&peer);
        self.links.forget(is_over);
        self.dead.retain(|peer| !is_over(*peer));
        let unheard = self.unheard(&self.links.follow().borrow());
        self.dead.extend(unheard);
    }

    /// Takes up where neighbours are now.
    pub(super) async fn follow_moves(&mut self, dispatch: &Dispatch) {
        let moved = self.moves.take();
        let config = Arc::make_mut(&mut self.config);
        let apart = moved
            .iter()
            .filter(|(peer, at)| is_kept_apart(config, **peer, at.ip()));
        let apart: BTreeSet<NodeId> = apart.map(|(peer, _)| *peer).collect();
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
            if apart.contains(&peer.id) && address.ip() != now.ip() {
                // The way through NATs gives way to whoever has a block with an address.
                self.moves.put_off(peer.id, now);
                tracing::info!(peer = %peer.name, from = %address, to = %now,
                    "a neighbour moved to the IP address of a peer that is reached through NATs, or the other way round: it is looked for there once that one is relayed again");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hex,
        keys::{EntityKey, Keys, NodeKey, Secret},
    };
    fn config() -> Config {
        let mut text = "[node]\nname = \"us\"\nnetwork = \"test\"\nnode_key_file = \"n\"\nentity_key_file = \"e\"\n\
             psk_file = \"p\"\nlisten = \"10.0.0.1:4783\"\n[routing]\nenabled = true\n[nat]\nenabled = true\n"
            .to_owned();
        for (name, fill, more) in [
            ("near", 40, "address = \"10.0.0.9:4783\"\n"),
            ("far", 50, ""),
            ("farther", 60, ""),
        ] {
            let node = NodeKey::from(Secret::new([fill; 32])).public;
            let entity = EntityKey::from(Secret::new([fill + 1; 32])).public;
            let keys = [&node, &entity].map(hex::encode);
            text += &format!(
                "[[peers]]\nname = \"{name}\"\nnode_key = \"{}\"\nentity_key = \"{}\"\n{more}",
                keys[0], keys[1]
            );
        }
        let keys = Keys {
            node: Secret::new([1; 32]).into(),
            entity: Secret::new([2; 32]).into(),
            psk: Secret::new([3; 32]),
        };
        Config::from_toml(&text, std::path::Path::new("/nowhere/us.toml"), keys).unwrap()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn moved(config: &mut Config, index: usize, to: &str) {
        config.peers[index].reach = Reach::Adjacent {
            address: at(to),
            interface: None,
        };
    }

    #[test]
    fn a_way_through_nats_to_where_a_neighbour_has_moved_is_none() {
        let config = config();
        let ids: Vec<NodeId> = config.peers.iter().map(|peer| peer.id).collect();
        let mut now = config.with_punched(&[(ids[1], at("192.0.2.1:7"))].into());
        keep_apart(&config, &mut now);
        assert!(now.peers[1].is_adjacent() && now.punched.contains_key(&ids[1]));
        // The neighbour's block says something else than where it is.
        moved(&mut now, 0, "192.0.2.1:4783");
        keep_apart(&config, &mut now);
        assert_eq!(now.peers[1].reach, Reach::Learned);
        assert!(now.punched.is_empty() && now.peers[0].is_adjacent());
    }

    #[test]
    fn a_neighbour_that_the_configuration_puts_where_a_peer_has_moved_to_has_that_place() {
        let config = config();
        let ids: Vec<NodeId> = config.peers.iter().map(|peer| peer.id).collect();
        let mut before = config.with_punched(&[(ids[1], at("192.0.2.1:7"))].into());
        moved(&mut before, 1, "192.0.2.5:7");
        let mut now = before.clone();
        keep_apart(&before, &mut now);
        assert!(now.peers[1].is_adjacent());
        moved(&mut now, 0, "192.0.2.5:4783");
        keep_apart(&before, &mut now);
        assert_eq!(now.peers[1].reach, Reach::Learned);
        assert!(now.punched.is_empty() && now.peers[0].is_adjacent());
    }

    #[test]
    fn who_was_there_first_stays() {
        let config = config();
        let ids: Vec<NodeId> = config.peers.iter().map(|peer| peer.id).collect();
        let before = config.with_punched(&[(ids[1], at("192.0.2.1:7"))].into());
        assert!(is_kept_apart(&before, ids[0], at("192.0.2.1:1").ip()));
        assert!(is_kept_apart(&before, ids[1], at("10.0.0.9:1").ip()));
        assert!(!is_kept_apart(&before, ids[1], at("192.0.2.1:8").ip()));
        assert!(!is_kept_apart(&before, ids[0], at("192.0.2.2:1").ip()));
        assert!(!is_kept_apart(&config, ids[0], at("192.0.2.1:1").ip()));
        let mut now = before.clone();
        moved(&mut now, 2, "192.0.2.1:8");
        now.punched.insert(ids[2], at("192.0.2.1:8"));
        keep_apart(&before, &mut now);
        assert!(now.peers[1].is_adjacent() && !now.peers[2].is_adjacent());
    }
}
