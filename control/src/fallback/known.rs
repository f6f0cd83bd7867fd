//! What a configuration says of neighbours that may be carried.

use crate::config::{Config, PeerConfig, Reach};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};
use virga_carrier::{Choice, Keyring};
use virga_ebpf::header::NodeId;

/// What is proven to whom; to nobody where nothing listens and nobody is dialled.
pub(super) fn keyring(config: &Config) -> Keyring {
    let section = &config.fallback;
    let is_used = section.listen_tcp.is_some()
        || section.listen_ws.is_some()
        || config.peers.iter().any(|peer| !peer.fallback.is_empty());
    let adjacent = config.peers.iter();
    let adjacent = adjacent.filter(|peer| is_used && peer.is_adjacent());
    Keyring::new(
        (config.node.id, config.keys.node.secret.expose()),
        (&config.node.network, config.keys.psk.expose()),
        adjacent.filter_map(|peer| Some((peer.id, peer.node_key.known()?))),
    )
}

/// One for each neighbour that can be dialled; those that were there go on.
pub(super) fn choices(
    config: &Config,
    before: &BTreeMap<NodeId, Choice>,
) -> BTreeMap<NodeId, Choice> {
    let dialled = config.peers.iter().filter(|peer| !peer.fallback.is_empty());
    let one = |peer: &PeerConfig| {
        let new = || Choice::new(config.fallback.pace, peer.fallback.len());
        let choice = before.get(&peer.id).cloned().unwrap_or_else(new);
        (peer.id, choice)
    };
    dialled.map(one).collect()
}

/// The peer with this id.
pub(super) fn peer_of(config: &Config, id: NodeId) -> Option<&PeerConfig> {
    config.peers.iter().find(|peer| peer.id == id)
}

/// Whether it has one with an address.
pub(super) fn is_neighbour(config: &Config, id: NodeId) -> bool {
    peer_of(config, id).is_some_and(PeerConfig::is_adjacent)
}

/// Where the configuration has a neighbour.
pub(super) fn address_of(peer: &PeerConfig) -> Option<SocketAddr> {
    match peer.reach {
        Reach::Adjacent { address, .. } => Some(address),
        Reach::Via { .. } | Reach::Learned => None,
    }
}

/// The next place for a relay after the last one, in turn, but for those that are held: what is under way to an earlier
/// one is not taken for another neighbour's.
pub(super) fn free_place(last: u16, held: &BTreeSet<u16>) -> Option<u16> {
    let mut places = (last.saturating_add(1)..=u16::MAX).chain(1..=last);
    places.find(|place| !held.contains(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_relays_have_one_place_and_one_that_is_free_again_comes_last() {
        let held = [2, 3, u16::MAX].into();
        assert_eq!(free_place(0, &held), Some(1));
        assert_eq!(free_place(1, &held), Some(4));
        assert_eq!(free_place(u16::MAX - 1, &held), Some(1));
        assert_eq!(free_place(u16::MAX, &held), Some(1));
        assert_eq!(free_place(7, &(1..=u16::MAX).collect()), None);
    }
}
