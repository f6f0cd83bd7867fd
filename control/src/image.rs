//! From the configuration and the kernel's facts to what the tables shall say.

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::SocketAddr};

use virga_ebpf::{
    header::{ChannelHash, Subnet},
    image::{ChannelRules, Image, Link, NextHopKey, Place, Via},
    limits::PAIRS_MAX,
    tables::{NextHop, Pair},
};

use crate::{
    config::{Config, PeerConfig, PeerSubnet, Reach},
    nic::kernel::Facts,
};

/// MTU assumed for a link whose interface the kernel does not tell.
const MTU_UNKNOWN: u32 = 1_500;

/// Peers that an operator has marked dead (`virga node link NODE PEER down`), by their index in
/// [`Config::peers`].
pub type Down = BTreeSet<usize>;

/// The image of the NIC path: interfaces and link-layer addresses as the kernel knows them.
/// `egress_place` gives an interface's place in the device map.
///
/// # Errors
/// What `egress_place` returns.
pub fn of_nic<E>(
    config: &Config,
    facts: &Facts,
    down: &Down,
    mut egress_place: impl FnMut(u32) -> Result<u32, E>,
) -> Result<Image, E> {
    let mut image = policy(config);
    let listen = config.node.listen.ip();
    image.addresses = if listen.is_unspecified() {
        // An IPv6 socket takes IPv4 as well; an IPv4 socket leaves IPv6 to others.
        let own = facts
            .addresses
            .iter()
            .filter(|ip| listen.is_ipv6() || ip.is_ipv4());
        own.map(|ip| (*ip).into()).collect()
    } else {
        [listen.into()].into()
    };
    // A NAT lets in what comes from where something was sent to, port and all, here and at the neighbour's end.
    let source_port = match config.routing.crosses_nats {
        true => u32::from(config.node.listen.port()),
        false => 0,
    };
    let mut keys: Vec<Option<NextHopKey>> = vec![None; config.peers.len()];
    for (index, peer) in config.peers.iter().enumerate() {
        let Reach::Adjacent { address, .. } = &peer.reach else {
            continue;
        };
        // One that is carried is reached through a worker: no frame of the NIC's gets there.
        if address.ip().is_loopback() {
            continue;
        }
        let mut next_hop = NextHop {
            target: address.ip().into(),
            port: address.port(),
            source_port,
            ..NextHop::default()
        };
        if let Some(link) = facts.links.get(&index) {
            let interface = facts.interfaces.get(&link.ifindex);
            // Frames of a VLAN device are seen and sent, with their tag, on the interface below it.
            let (ifindex, vlan) = interface.and_then(|i| i.vlan).unwrap_or((link.ifindex, 0));
            // Neighbours know this node by the address that it listens on, if that is one.
            let is_told = !listen.is_unspecified() && listen.is_ipv4() == address.is_ipv4();
            next_hop.source = if is_told { listen } else { link.source }.into();
            next_hop.ifindex = ifindex;
            next_hop.vlan = vlan;
            next_hop.egress = egress_place(ifindex)?;
            next_hop.source_mac = interface.map(|i| i.mac).unwrap_or_default();
            next_hop.target_mac = link.mac.unwrap_or_default();
            next_hop.mtu = interface.map_or(MTU_UNKNOWN, |i| i.mtu);
            let is_up = interface.is_some_and(|i| i.is_up);
            if is_up && link.mac.is_some() && !down.contains(&index) {
                next_hop.flags |= NextHop::ALIVE;
            }
            let address = address.ip().into();
            let place = Place {
                ifindex,
                vlan: u32::from(vlan),
                address,
            };
            image.neighbours.insert(place, enforced(peer));
        }
        keys[index] = Some(image.add_next_hop(next_hop));
    }
    add_routes(&mut image, config, &keys);
    Ok(image)
}

/// The image of the user-space forwarder: the kernel picks interfaces and link-layer addresses.
#[must_use]
pub fn of_userspace(config: &Config, facts: &Facts, down: &Down) -> Image {
    let mut image = policy(config);
    let mut keys: Vec<Option<NextHopKey>> = vec![None; config.peers.len()];
    for (index, peer) in config.peers.iter().enumerate() {
        let Reach::Adjacent { address, .. } = &peer.reach else {
            continue;
        };
        let link = facts.links.get(&index);
        let interface = link.and_then(|l| facts.interfaces.get(&l.ifindex));
        // Without any facts (no netlink) the kernel is trusted to find a way.
        let is_up = facts.interfaces.is_empty() || interface.is_some_and(|i| i.is_up);
        let is_alive = is_up && !down.contains(&index);
        let next_hop = NextHop {
            target: address.ip().into(),
            port: address.port(),
            mtu: interface.map_or(MTU_UNKNOWN, |i| i.mtu),
            flags: if is_alive { NextHop::ALIVE } else { 0 },
            ..NextHop::default()
        };
        // A neighbour without a route is none; without any facts it is known by its address alone.
        let ifindex = link.map(|l| l.ifindex);
        if let Some(ifindex) = ifindex.or(facts.interfaces.is_empty().then_some(0)) {
            let place = Place::new(ifindex, address.ip().into());
            image.neighbours.insert(place, enforced(peer));
        }
        keys[index] = Some(image.add_next_hop(next_hop));
    }
    add_routes(&mut image, config, &keys);
    image
}

/// The image of a worker beside a NIC path that runs on `interfaces`: it routes what this node itself
/// sends, takes what is for this node, and sends on only what comes in elsewhere. Nothing gets around
/// the NIC path through the socket.
#[must_use]
pub fn of_worker(config: &Config, facts: &Facts, down: &Down, interfaces: &[String]) -> Image {
    let mut image = of_userspace(config, facts, down);
    let is_in_nic = |ifindex: u32| {
        let Some(interface) = facts.interfaces.get(&ifindex) else {
            return false;
        };
        // Frames of a VLAN device pass the program of the interface below it.
        let below = interface
            .vlan
            .and_then(|(ifindex, _)| facts.interfaces.get(&ifindex));
        interfaces.contains(&below.unwrap_or(interface).name)
    };
    let neighbours = &mut image.neighbours;
    neighbours.retain(|place, _| !is_in_nic(place.ifindex));
    // The NIC path has measured what it lets through. Measured again here, all neighbours as one and a
    // whole backlog at one time, some of it would be lost.
    if image.neighbours.is_empty() {
        for rules in image.channels.values_mut() {
            (rules.interval_ns, rules.tolerance_ns) = (0, 0);
        }
    }
    image
}

/// What does not depend on where packets go: who may publish on what, and how much.
fn policy(config: &Config) -> Image {
    let mut image = Image {
        node_id: config.node.id,
        port: config.node.listen.port(),
        subnet: config.node.subnet,
        ..Image::default()
    };
    for (peer, subnet) in config.peers.iter().filter_map(|p| Some((p.id, p.subnet?))) {
        image.subnets.insert(peer, subnet.subnet);
    }
    // No packet of this node's own comes to its guard, but for an entity that lives elsewhere now.
    let is_another = |pair: &Pair| pair.origin != config.node.origin || config.absence.is_some();
    image.pairs = configured_pairs(config).filter(is_another).collect();
    for channel in &config.channels {
        let rules = ChannelRules {
            visibility: channel.visibility,
            exports: channel.export_to.clone(),
            ..ChannelRules::default()
        };
        image.channels.insert(channel.hash.0, rules);
        if let Some(rate) = channel.max_rate_pps {
            image.add_rate(channel.hash, u64::from(rate));
        }
    }
    image
}

/// Who may publish on what as the configuration alone says it, this node's entity too.
pub fn configured_pairs(config: &Config) -> impl Iterator<Item = Pair> {
    // Where something has to be shown, what was shown says which pairs there are.
    let listed = config.channels.iter().filter(|c| !c.asks_publishers());
    let listed = listed.flat_map(|channel| {
        let named = channel.publish.named().iter();
        named.map(|entity| Pair::new(entity.origin, channel.hash))
    });
    // Control traffic of every member: sessions between others pass through this node too.
    let members = config.entities.iter().map(|e| e.entity.origin);
    listed.chain(members.map(|origin| Pair::new(origin, ChannelHash(0))))
}

/// Pairs that the guards have room for beside those of the configuration.
#[must_use]
pub fn room(config: &Config) -> usize {
    let pairs_max = usize::try_from(PAIRS_MAX).unwrap_or(usize::MAX);
    let listed = config.channels.iter().map(|c| c.publish.named().len());
    let configured = listed.sum::<usize>() + config.entities.len();
    pairs_max.saturating_sub(configured)
}

fn enforced(peer: &PeerConfig) -> Link {
    peer.subnet
        .map_or_else(Link::default, |PeerSubnet { subnet, mask }| Link {
            subnet: Subnet(subnet.0 & mask),
            mask,
            ..Link::default()
        })
}

fn add_routes(image: &mut Image, config: &Config, keys: &[Option<NextHopKey>]) {
    for (index, peer) in config.peers.iter().enumerate() {
        let via = match peer.reach {
            Reach::Adjacent { address, .. } => {
                let at = SocketAddr::new(address.ip(), address.port());
                image.adjacent.insert(peer.id, at);
                keys[index].map(|primary| Via {
                    primary,
                    backup: None,
                })
            }
            Reach::Via { primary, backup } => keys[primary].map(|primary| Via {
                primary,
                backup: backup.and_then(|b| keys[b]),
            }),
            // Written when it is learned.
            Reach::Learned => None,
        };
        if let Some(via) = via {
            image.routes.insert(peer.id, via);
        }
    }
}
