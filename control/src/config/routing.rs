//! `[routing]`: whether this node learns from its neighbours who leads where.

use super::{Config, Reach, file, problem::Report};
use std::{collections::BTreeMap, net::SocketAddr};
use toml::Spanned;
use virga_ebpf::{header::NodeId, limits};
use virga_routing::Aggregation;

/// The `[routing]` section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingSection {
    /// Whether neighbours tell each other who leads where. Off, the file's `address` and `via` say all.
    pub is_enabled: bool,
    /// Whether other subnets are one destination each; the same in the whole mesh.
    pub aggregation: Aggregation,
    /// `[nat]`: whether peers that routers lead to are sent to straight where their NATs let packets through.
    pub crosses_nats: bool,
    /// And whether the router in front of this node is asked for a port.
    pub maps_ports: bool,
}

pub(super) fn resolve(
    routing: Option<Spanned<file::Routing>>,
    (nat, forwarding): (
        Option<Spanned<file::Nat>>,
        Option<&Spanned<file::Forwarding>>,
    ),
    report: &mut Report<'_>,
) -> RoutingSection {
    let is_enabled = |key: &Option<Spanned<bool>>| key.as_ref().is_some_and(|key| *key.get_ref());
    let is_routed = routing
        .as_ref()
        .is_some_and(|routing| is_enabled(&routing.get_ref().enabled));
    let keepalive = forwarding.and_then(|forwarding| forwarding.get_ref().keepalive_ms.as_ref());
    let is_unwatched = keepalive.is_some_and(|ms| *ms.get_ref() == 0);
    let maps_ports = nat
        .as_ref()
        .is_some_and(|nat| is_enabled(&nat.get_ref().port_mapping));
    let is_useless = |nat: &&Spanned<file::Nat>| maps_ports && !is_enabled(&nat.get_ref().enabled);
    if let Some(nat) = nat.as_ref().filter(is_useless) {
        let what = "has a router pass on what comes to a port, of which nobody is told";
        let fix = "add `enabled = true`, or remove it";
        report.add(nat.span(), "nat.port_mapping", what, fix);
    }
    let nat = nat.filter(|nat| is_enabled(&nat.get_ref().enabled));
    let crosses_nats = nat.is_some();
    if let Some(nat) = nat
        && (!is_routed || is_unwatched)
    {
        let what = "needs learned routes, which lead over routers where nothing goes straight, and watched links, which tell when";
        let fix = "add `enabled = true` to [routing], and let `keepalive_ms` be more than 0";
        report.add(nat.span(), "nat.enabled", what, fix);
    }
    let Some(routing) = routing else {
        return RoutingSection::default();
    };
    let span = routing.span();
    let file::Routing { enabled, by_subnet } = routing.into_inner();
    let [is_enabled, is_by_subnet] = [&enabled, &by_subnet].map(is_enabled);
    if is_by_subnet && !is_enabled {
        let what = "says how routes are learned, and none are";
        let fix = "add `enabled = true`, or remove it";
        report.add(span, "routing.by_subnet", what, fix);
    }
    RoutingSection {
        is_enabled,
        aggregation: match is_by_subnet {
            true => Aggregation::BySubnet,
            false => Aggregation::Exact,
        },
        crosses_nats,
        maps_ports,
    }
}

impl Config {
    /// The same with these peers, which were reached through NATs, as neighbours at these addresses ([`Self::punched`]):
    /// those that routers lead to, where there is room, and whose packets are told apart from other neighbours' by their
    /// IP address.
    #[must_use]
    pub fn with_punched(&self, punched: &BTreeMap<NodeId, SocketAddr>) -> Self {
        let mut config = self.clone();
        let max = limits::NEIGHBOURS_MAX.min(limits::NEXT_HOPS_MAX);
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        for (peer, &address) in punched {
            let adjacent = config.peers.iter().filter_map(|peer| match &peer.reach {
                Reach::Adjacent { address, .. } => Some(address.ip()),
                Reach::Via { .. } | Reach::Learned => None,
            });
            let taken: Vec<_> = adjacent.collect();
            if taken.len() >= max || taken.contains(&address.ip()) {
                continue;
            }
            let mut peers = config.peers.iter_mut();
            if let Some(found) = peers.find(|one| one.id == *peer)
                && found.reach == Reach::Learned
            {
                found.reach = Reach::Adjacent {
                    address,
                    interface: None,
                };
                config.punched.insert(*peer, address);
            }
        }
        config
    }
}
