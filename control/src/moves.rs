//! Neighbours that answer from another address than the configuration says: the workers tell, the
//! forwarding path follows. And those that are carried, for as long as they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use virga_carrier::relay::{NETWORK, is_relays};
use virga_ebpf::header::NodeId;
use virga_transport::limits::CARRIED_NETWORK;

// The forwarding path knows a relay's address when it sees it.
const _: () = assert!(NETWORK[0] == CARRIED_NETWORK[0] && NETWORK[1] == CARRIED_NETWORK[1]);

/// What has been told and not yet followed; the newest address of each neighbour.
#[derive(Clone, Debug, Default)]
pub struct Moves(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    inner: Mutex<Inner>,
    changed: Notify,
    reached: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    moved: BTreeMap<NodeId, SocketAddr>,
    /// Where each that is carried was before, once that is known.
    carried: BTreeMap<NodeId, Option<SocketAddr>>,
    /// The relay that each was at last.
    relays: BTreeMap<NodeId, SocketAddr>,
    /// Interfaces that the configuration names for those that are, or were, carried.
    interfaces: BTreeMap<NodeId, String>,
    /// Carried ones that have answered by UDP, and where.
    reached: BTreeMap<NodeId, SocketAddr>,
    /// Where those are that cannot be followed there yet.
    put_off: BTreeMap<NodeId, SocketAddr>,
}

/// Where a neighbour is, and the interface that the configuration names for it.
pub(crate) type Before = (SocketAddr, Option<String>);

impl Inner {
    fn is_relay_of(&self, peer: NodeId, address: SocketAddr) -> bool {
        // IPv6 has no addresses that only relays have.
        is_relays(address) || self.relays.get(&peer) == Some(&address)
    }
}

impl Moves {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A neighbour is at another address. One that is carried stays where its carrier is.
    pub fn tell(&self, peer: NodeId, address: SocketAddr) {
        let mut inner = self.inner();
        inner.put_off.remove(&peer);
        // The workers go by the tables again where one is carried, or is carried no more.
        if !inner.carried.contains_key(&peer) && !inner.is_relay_of(peer, address) {
            inner.moved.insert(peer, address);
        }
        self.0.changed.notify_one();
    }

    /// A neighbour is carried from now on: the workers find it at `relay`.
    pub fn carry(&self, peer: NodeId, relay: SocketAddr) {
        let mut inner = self.inner();
        // Where it was told to be and nobody has followed yet is where it was.
        let told = inner.moved.get(&peer).copied();
        let told = told.filter(|at| !inner.is_relay_of(peer, *at));
        inner.carried.entry(peer).or_insert(told);
        inner.relays.insert(peer, relay);
        inner.reached.remove(&peer);
        inner.put_off.remove(&peer);
        inner.moved.insert(peer, relay);
        self.0.changed.notify_one();
    }

    /// A neighbour is carried no more; where it is now: at `address`, or where it was before.
    pub fn release(&self, peer: NodeId, address: Option<SocketAddr>) -> Option<SocketAddr> {
        let mut inner = self.inner();
        let before = inner.carried.remove(&peer)?;
        inner.moved.remove(&peer);
        inner.reached.remove(&peer);
        let now = address.or(before);
        if let Some(now) = now {
            inner.moved.insert(peer, now);
        }
        self.0.changed.notify_one();
        now
    }

    /// Neighbours have other node keys, and so other ids: they are where they were.
    pub(crate) fn renamed(&self, ids: &[(NodeId, NodeId)]) {
        fn rename<T>(all: &mut BTreeMap<NodeId, T>, ids: &[(NodeId, NodeId)]) {
            let found = ids.iter().filter(|(before, now)| before != now);
            let found = found.filter_map(|(before, now)| Some((*now, all.remove(before)?)));
            let found: Vec<(NodeId, T)> = found.collect();
            all.extend(found);
        }
        let mut inner = self.inner();
        rename(&mut inner.moved, ids);
        rename(&mut inner.carried, ids);
        rename(&mut inner.relays, ids);
        rename(&mut inner.interfaces, ids);
        rename(&mut inner.reached, ids);
        rename(&mut inner.put_off, ids);
        drop(inner);
        self.0.changed.notify_one();
    }

    /// What was known of these neighbours counts no more.
    pub fn forget(&self, peers: &BTreeSet<NodeId>) {
        let mut inner = self.inner();
        inner.carried.retain(|peer, _| !peers.contains(peer));
        inner.moved.retain(|peer, _| !peers.contains(peer));
        inner.interfaces.retain(|peer, _| !peers.contains(peer));
        inner.relays.retain(|peer, _| !peers.contains(peer));
        inner.reached.retain(|peer, _| !peers.contains(peer));
        inner.put_off.retain(|peer, _| !peers.contains(peer));
    }

    /// A neighbour cannot be followed to where it is now.
    pub(crate) fn put_off(&self, peer: NodeId, address: SocketAddr) {
        self.inner().put_off.insert(peer, address);
    }

    /// What stood in the way may not any more.
    pub(crate) fn look_again(&self) {
        let mut inner = self.inner();
        let put_off = std::mem::take(&mut inner.put_off);
        if put_off.is_empty() {
            return;
        }
        for (peer, address) in put_off {
            // What was told since is newer.
            inner.moved.entry(peer).or_insert(address);
        }
        drop(inner);
        self.0.changed.notify_one();
    }

    /// Whether `address` is a relay's that carries the neighbour no more.
    #[must_use]
    pub(crate) fn is_past(&self, peer: NodeId, address: SocketAddr) -> bool {
        let inner = self.inner();
        !inner.carried.contains_key(&peer) && inner.is_relay_of(peer, address)
    }

    /// Whether a neighbour is carried.
    #[must_use]
    pub fn is_carried(&self, peer: NodeId) -> bool {
        self.inner().carried.contains_key(&peer)
    }

    /// Where a neighbour that is carried was before.
    #[must_use]
    pub fn before(&self, peer: NodeId) -> Option<SocketAddr> {
        *self.inner().carried.get(&peer)?
    }

    /// Notes where a neighbour that is carried is, by address and interface, when it is first found to be.
    pub(crate) fn note_before(&self, peer: NodeId, (address, interface): Before) {
        let mut inner = self.inner();
        // The path may not have followed from one relay to the next.
        let is_relay = inner.is_relay_of(peer, address);
        let Some(before) = inner.carried.get_mut(&peer) else {
            return;
        };
        if !is_relay {
            before.get_or_insert(address);
        }
        inner.interfaces.extend(interface.map(|name| (peer, name)));
    }

    /// The interface that a neighbour was behind before it was carried, if the configuration names one; asked once.
    pub(crate) fn take_interface(&self, peer: NodeId) -> Option<String> {
        self.inner().interfaces.remove(&peer)
    }

    /// A neighbour has answered from the address that was asked about.
    pub fn tell_reached(&self, peer: NodeId, address: SocketAddr) {
        self.inner().reached.insert(peer, address);
        self.0.reached.notify_one();
    }

    /// Waits until one has.
    pub async fn reached(&self) -> BTreeMap<NodeId, SocketAddr> {
        self.0.reached.notified().await;
        std::mem::take(&mut self.inner().reached)
    }

    /// Waits until something was told.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What was told since the last time.
    #[must_use]
    pub fn take(&self) -> BTreeMap<NodeId, SocketAddr> {
        std::mem::take(&mut self.inner().moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(1);

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_carried_neighbour_stays_at_its_carrier_and_is_where_it_was_afterwards() {
        let (moves, relay, udp) = (Moves::default(), at("127.86.0.1:9"), at("10.0.0.2:4783"));
        moves.carry(PEER, relay);
        assert_eq!(moves.take(), [(PEER, relay)].into());
        moves.note_before(PEER, (udp, Some("eth0".into())));
        moves.note_before(PEER, (relay, None));
        moves.tell(PEER, at("10.0.0.3:1"));
        assert!(moves.take().is_empty() && moves.is_carried(PEER));
        assert_eq!(moves.before(PEER), Some(udp));
        assert_eq!(moves.release(PEER, None), Some(udp));
        assert_eq!(moves.take(), [(PEER, udp)].into());
        assert_eq!(moves.take_interface(PEER).as_deref(), Some("eth0"));
        // What a worker says too late leads nowhere.
        moves.tell(PEER, relay);
        assert!(moves.take().is_empty() && !moves.is_carried(PEER));
        assert!(moves.is_past(PEER, relay) && !moves.is_past(PEER, udp));
        assert_eq!(moves.release(PEER, None), None);
    }

    #[test]
    fn a_relay_on_the_one_loopback_address_of_ipv6_is_told_apart_as_well() {
        let (moves, relay) = (Moves::default(), at("[::1]:9"));
        moves.carry(PEER, relay);
        assert_eq!(
            moves.release(PEER, Some(at("[fd00::2]:1"))),
            Some(at("[fd00::2]:1"))
        );
        moves.tell(PEER, relay);
        assert_eq!(moves.take(), [(PEER, at("[fd00::2]:1"))].into());
        moves.tell(PEER, at("[::1]:8"));
        assert_eq!(moves.take(), [(PEER, at("[::1]:8"))].into());
    }

    #[test]
    fn one_that_is_carried_again_before_anybody_followed_is_where_it_was() {
        let (moves, udp) = (Moves::default(), at("10.0.0.2:4783"));
        for (first, second) in [("127.86.0.1:9", "127.86.0.2:9"), ("[::1]:8", "[::1]:9")] {
            moves.carry(PEER, at(first));
            assert_eq!(moves.take(), [(PEER, at(first))].into());
            moves.note_before(PEER, (udp, None));
            assert_eq!(moves.release(PEER, None), Some(udp));
            moves.carry(PEER, at(second));
            // The path was at the first one all the while.
            assert_eq!(moves.take(), [(PEER, at(second))].into());
            assert_eq!(moves.before(PEER), Some(udp));
            moves.note_before(PEER, (at(first), None));
            assert_eq!(moves.before(PEER), Some(udp));
            assert_eq!(moves.release(PEER, None), Some(udp));
            let _followed = moves.take();
        }
        // Not even the first relay is taken for its place where nothing else was told.
        moves.carry(PEER, at("127.86.0.1:9"));
        moves.note_before(PEER, (at("127.86.0.3:9"), None));
        assert_eq!(moves.before(PEER), None);
    }

    #[test]
    fn one_with_another_node_key_is_given_back_to_where_it_was() {
        const RENEWED: NodeId = NodeId(PEER.0 + 1);
        let (moves, relay, udp) = (Moves::default(), at("[::1]:9"), at("10.0.0.2:4783"));
        moves.carry(PEER, relay);
        assert_eq!(moves.take(), [(PEER, relay)].into());
        moves.note_before(PEER, (udp, Some("m0".into())));
        moves.renamed(&[(PEER, RENEWED), (NodeId(7), NodeId(7))]);
        assert_eq!(moves.release(PEER, None), None);
        assert_eq!(moves.release(RENEWED, None), Some(udp));
        assert_eq!(moves.take(), [(RENEWED, udp)].into());
        assert!(moves.is_past(RENEWED, relay));
        assert_eq!(moves.take_interface(RENEWED).as_deref(), Some("m0"));
    }

    #[test]
    fn a_move_that_was_put_off_is_told_again_unless_something_newer_is() {
        let (moves, there, elsewhere) = (Moves::default(), at("10.0.0.2:1"), at("10.0.0.3:1"));
        moves.look_again();
        assert!(moves.take().is_empty());
        for (newer, told) in [(None, there), (Some(elsewhere), elsewhere)] {
            moves.put_off(PEER, there);
            if let Some(newer) = newer {
                moves.tell(PEER, newer);
            }
            moves.look_again();
            assert_eq!(moves.take(), [(PEER, told)].into());
            moves.look_again();
            assert!(moves.take().is_empty());
        }
        moves.put_off(PEER, there);
        moves.forget(&[PEER].into());
        moves.look_again();
        assert!(moves.take().is_empty());
    }

    #[test]
    fn one_that_is_released_before_anybody_followed_has_not_moved() {
        let moves = Moves::default();
        moves.carry(PEER, at("127.86.0.1:9"));
        assert_eq!(moves.release(PEER, None), None);
        assert!(moves.take().is_empty());
        moves.carry(PEER, at("127.86.0.1:9"));
        moves.forget(&[PEER].into());
        assert!(!moves.is_carried(PEER) && moves.take().is_empty());
    }
}
