//! What peers say and are told.

use super::{Nat, Peer, Relation, Why};
use crate::{
    class::Mapping,
    limits::{EARLY_MAX, EARLY_OF_ONE_MAX, HINTED_IN_VAIN_MAX, SETTLE_NS, TELL_NS},
    reason::Reason,
    wire::{Message, No},
};
use std::net::{IpAddr, SocketAddr};
use virga_ebpf::header::NodeId;
use virga_routing::allowance::Allowance;

impl Nat {
    /// Tells neighbours how this node's NAT maps, and those that do the same where they are seen: what is new, and those
    /// that do the same all of it now and then, for this node may not have been a neighbour at their end yet. Whoever
    /// comes to be one last is heard by the other, and is told again so.
    pub(super) fn tell(&mut self, now_ns: u64) {
        let mapping = self.evidence.mapping();
        for (&peer, known) in self.peers.iter_mut().filter(|(_, known)| known.is_near()) {
            let is_again = known.mapping.is_some() && now_ns >= known.told_ns + TELL_NS;
            if is_again {
                (known.told, known.told_ns) = ((None, None), now_ns);
            }
            let has_news = known.told_mapped != Some(self.mapped) || is_again;
            if known.mapping.is_some()
                && has_news
                && (self.mapped.is_some() || known.told_mapped.is_some())
            {
                known.told_mapped = Some(self.mapped);
                self.out.push_back((peer, Message::Mapped(self.mapped)));
            }
            if known.told.0 != Some(mapping) {
                known.told.0 = Some(mapping);
                self.out.push_back((peer, Message::About(mapping)));
            }
            if known.mapping.is_some()
                && let Some(seen) = known.sight.seen
                && known.told.1 != Some(seen)
            {
                known.told.1 = Some(seen);
                self.out.push_back((peer, Message::Seen(seen)));
            }
        }
        self.tell_those_that_ask();
        self.handle_timeout(now_ns);
    }

    /// A peer with a lower id asks for meetings with this node, and waits longer and longer from one to the next: it is told
    /// of a new mapped port as well, once, and of the same one where it was gone in between. What it makes of that is to ask
    /// again, and no more.
    fn tell_those_that_ask(&mut self) {
        let (own, mapped) = (self.setup.own, self.mapped);
        for (&peer, known) in self.peers.iter_mut().filter(|(peer, _)| **peer < own) {
            let is_news = known.told_mapped.flatten() != mapped;
            if known.sight.relation == Relation::Wanted && is_news {
                known.told_mapped = Some(mapped);
                if mapped.is_some() {
                    self.out.push_back((peer, Message::Mapped(mapped)));
                }
            }
        }
    }

    /// A peer that is relayed says that its router maps a port: whoever has the two meet knows of it too, and is asked now.
    /// It may be the one that was there before. One that comes too soon after others is found by a try that those brought
    /// forward, or by the one behind that.
    fn on_hint(&mut self, now_ns: u64, peer: NodeId, address: Option<SocketAddr>) {
        let own = self.setup.own;
        let known = self.peers.get_mut(&peer);
        let known = known.filter(|known| known.sight.relation == Relation::Wanted);
        let Some(known) = known.filter(|_| own < peer) else {
            return self.refuse(Reason::Stranger);
        };
        if address.is_none() {
            return;
        }
        match known.hints.take(now_ns) {
            true => self.hurry(now_ns, peer, HINTED_IN_VAIN_MAX),
            false => self.refuse(Reason::Rate),
        }
    }

    /// A peer says something. Where its session was not seen yet, that waits for the next [`Nat::look`].
    pub fn handle(&mut self, now_ns: u64, peer: NodeId, said: &[u8]) {
        let Some(known) = self.peers.get_mut(&peer) else {
            let own = self.early.iter().filter(|(from, _)| *from == peer).count();
            return match self.early.len() < EARLY_MAX && own < EARLY_OF_ONE_MAX {
                true => self.early.push((peer, said.to_vec())),
                false => self.refuse(Reason::Stranger),
            };
        };
        if !known.said.take(now_ns) {
            return self.refuse(Reason::Rate);
        }
        let Some(message) = Message::parse(said) else {
            return self.refuse(Reason::Malformed);
        };
        let (is_near, is_neighbour) = (known.is_near(), known.is_neighbour());
        match message {
            Message::Proven { number, address } => self.on_proven(now_ns, peer, number, address),
            Message::No { number, why } => self.on_no(now_ns, peer, number, why),
            Message::Mapped(address) if !is_near => self.on_hint(now_ns, peer, address),
            _ if !is_near => self.refuse(Reason::Stranger),
            Message::About(mapping) => {
                let is_first = known.mapping.replace(mapping).is_none();
                let waiting = self.tried.values_mut();
                for tried in waiting.filter(|tried| is_first && tried.why == Why::Nobody) {
                    tried.next_ns = now_ns + SETTLE_NS;
                }
                self.tell(now_ns);
            }
            Message::Seen(address) => {
                let from = known.sight.seen.map(|seen| seen.ip());
                match from.filter(|_| self.is_possible(address)) {
                    Some(from) => self.evidence.note(peer, from, address),
                    None => self.refuse(Reason::Address),
                }
                self.tell(now_ns);
            }
            // What its router is said to pass on counts where the peer is seen at the same IP address when others are to
            // meet it: its word sends nobody's packets elsewhere, and one that has just moved need not say it again.
            Message::Mapped(address) => {
                let seen = known.sight.seen.map(|seen| seen.ip());
                known.mapped = address.filter(|at| at.port() != 0);
                let is_there = |at: SocketAddr| Some(at.ip()) == seen && at.port() != 0;
                if address.is_some_and(|at| !is_there(at)) {
                    self.refuse(Reason::Address);
                }
            }
            _ if !is_neighbour => self.refuse(Reason::Stranger),
            Message::Also { number, address } => self.on_also(peer, number, address),
            Message::Ask { number, node } => {
                if let Err(why) = self.arrange(now_ns, peer, number, node) {
                    self.out.push_back((peer, Message::No { number, why }));
                }
            }
            Message::Meet {
                number,
                node,
                address,
            } => self.on_meet(now_ns, peer, (number, node), address),
        }
    }

    /// Whether a node may be there, as far as this one's socket reaches.
    pub(super) fn is_possible(&self, address: SocketAddr) -> bool {
        let (ip, own) = (address.ip(), self.setup.listen.ip());
        let is_one_host = match ip {
            IpAddr::V4(ip) => !ip.is_broadcast() && ip.octets()[0] != 0,
            IpAddr::V6(ip) => ip.to_ipv4_mapped().is_none() && !ip.is_unicast_link_local(),
        };
        is_one_host
            && address.port() != 0
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && ip.is_loopback() == own.is_loopback()
            && ip.is_ipv4() == own.is_ipv4()
    }

    /// Has two neighbours meet.
    fn arrange(&mut self, now_ns: u64, asker: NodeId, number: u64, node: NodeId) -> Result<(), No> {
        let found = |peer: NodeId| {
            let known = self.peers.get(&peer).filter(|known| known.is_neighbour())?;
            let seen = known.sight.seen.filter(|&at| self.is_possible(at))?;
            let mapped = known.mapped.filter(|at| at.ip() == seen.ip());
            Some((seen, known.mapping?, mapped))
        };
        let (Some(one), Some(other)) = (found(asker), found(node).filter(|_| node != asker)) else {
            return Err(No::NotCommon);
        };
        let is_open = one.2.is_some() || other.2.is_some();
        if one.1 == Mapping::Dependent && other.1 == Mapping::Dependent && !is_open {
            return Err(No::Symmetric);
        }
        let mut is_seldom = |peer: NodeId, of: fn(&mut Peer) -> &mut Allowance| {
            let known = self.peers.get_mut(&peer);
            known.is_some_and(|known| of(known).take(now_ns))
        };
        if !is_seldom(asker, |known| &mut known.asks) || !is_seldom(node, |known| &mut known.met) {
            return Err(No::Busy);
        }
        for (to, node, (address, _, mapped)) in [(node, asker, one), (asker, node, other)] {
            let meet = Message::Meet {
                number,
                node,
                address,
            };
            self.out.push_back((to, meet));
            if let Some(address) = mapped.filter(|&at| at != address) {
                self.out.push_back((to, Message::Also { number, address }));
            }
        }
        self.counted[0] += 1;
        Ok(())
    }
}
