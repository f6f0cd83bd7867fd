//! The `[[peers]]` blocks: who the other nodes are and how packets get there.

use super::{
    Entity, LinkTags, NamedEntity, PeerConfig, PeerSubnet, Reach, ReplicaNode, RoutingSection,
    fallback, file, handshake,
    problem::{Report, Section, suggest},
    rules::Checker,
    values,
};
use crate::keys::{EntityKey, NodeKey};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::{IpAddr, SocketAddr},
    ops::Range,
};
use toml::Spanned;
use virga_carrier::Target;
use virga_ebpf::{hash, limits};
use virga_transport::{HandshakePolicy, PeerKey};

/// One primary and one backup.
const VIA_MAX: usize = 2;

/// What is known of this node itself; `None` where that is wrong.
pub(super) struct Own<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) node: Option<&'a NodeKey>,
    pub(super) entity: Option<&'a EntityKey>,
    /// Whether the entity has moved here from a peer, which the file still names with it.
    pub(super) is_moved_here: bool,
    /// Whether it learns who leads to a peer.
    pub(super) routing: RoutingSection,
    /// How sessions begin.
    pub(super) handshake: HandshakePolicy,
}

/// Everyone that the file names.
#[derive(Default)]
pub(super) struct Roster {
    /// This node; `None` where its name or key is wrong.
    pub(super) own: Option<ReplicaNode>,
    /// The nodes; complete only when nothing is wrong.
    pub(super) peers: Vec<PeerConfig>,
    /// All entities but this node's own.
    pub(super) entities: Vec<NamedEntity>,
    /// Every name that the file gives, this node's too; without an entity where its key is wrong.
    pub(super) names: BTreeMap<String, Option<Entity>>,
}

/// A block while some of it may be wrong.
struct Draft {
    section: Section,
    span: Range<usize>,
    name: Option<String>,
    node_key: Option<PeerKey>,
    entity_key: Option<[u8; 32]>,
    address: Option<Spanned<SocketAddr>>,
    interface: Option<String>,
    subnet: Option<PeerSubnet>,
    link_tags: Option<LinkTags>,
    handshake: Option<HandshakePolicy>,
    via: Option<Spanned<Vec<Spanned<String>>>>,
    fallback: Vec<Target>,
    /// What the block says it is, whether or not its values are right.
    shape: Shape,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Has `address`.
    Adjacent,
    /// Has `via`.
    Behind,
    /// Has neither, and is found by what neighbours say.
    Learned,
    /// Names no node: stands for its entity alone.
    EntityOnly,
    /// Contradicts itself.
    Broken,
}

/// Applies every rule to the blocks.
pub(super) fn resolve(
    blocks: Vec<Spanned<file::Peer>>,
    own: &Own<'_>,
    report: &mut Report<'_>,
) -> Roster {
    let mut unique = Unique::of(own);
    let drafts: Vec<Draft> = blocks
        .into_iter()
        .enumerate()
        .map(|(index, block)| draft(index, block, own, &mut unique, report))
        .collect();
    check_capacity(&drafts, report);
    check_shared_addresses(&drafts, report);
    // Where each node will stand in the list of peers.
    let is_node = |draft: &&Draft| draft.shape != Shape::EntityOnly;
    let places: HashMap<String, (usize, Shape)> = drafts
        .iter()
        .filter(is_node)
        .enumerate()
        .filter_map(|(place, draft)| Some((draft.name.clone()?, (place, draft.shape))))
        .collect();
    let mut roster = Roster {
        own: own.name.zip(own.node).map(|(name, key)| ReplicaNode {
            node: key.id,
            name: name.into(),
        }),
        ..Roster::default()
    };
    for draft in &drafts {
        let entity = draft.entity_key.map(Entity::from_key);
        roster
            .names
            .extend(draft.name.clone().map(|name| (name, entity)));
    }
    let us = own.entity.map(|key| Entity::from_key(key.public));
    roster.names.extend(own.name.map(|name| (name.into(), us)));
    for draft in drafts {
        finish(draft, own, &places, &mut roster, report);
    }
    roster
}

fn draft(
    index: usize,
    block: Spanned<file::Peer>,
    own: &Own<'_>,
    unique: &mut Unique,
    report: &mut Report<'_>,
) -> Draft {
    let span = block.span();
    let section = Section::new(format!("peers[{index}]"), span.clone());
    let peer = block.into_inner();
    let shape = shape(&section, &span, &peer, own.routing, report);
    let address_span = peer.address.as_ref().map(Spanned::span);
    let name = report.required(&section, "name", peer.name, "\"router\"");
    let entity_key = report.required(
        &section,
        "entity_key",
        peer.entity_key,
        "\"<64 hex digits>\"",
    );
    let node = peer.node_key.as_ref().or(peer.node_id.as_ref());
    let spans = [name.as_ref(), node, entity_key.as_ref()].map(|value| value.map(Spanned::span));
    let is_adjacent = peer.address.is_some();
    if let (None, Some(fallback)) = (&peer.node_key, &peer.fallback) {
        let what =
            "is dialled at a node key, and this peer's is not known before the first contact";
        let fix = "write its `node_key` in place of `node_id`";
        report.add(fallback.span(), section.key("fallback"), what, fix);
    }
    let fallback = fallback::targets(&section, peer.fallback, is_adjacent, report);
    let mut check = Checker {
        section: &section,
        report,
    };
    let draft = Draft {
        name: check.text("name", name, values::name),
        node_key: check
            .text("node_key", peer.node_key, values::node_key)
            .map(PeerKey::Known)
            .or(check
                .text("node_id", peer.node_id, values::node_id)
                .map(PeerKey::Id)),
        entity_key: check.text("entity_key", entity_key, values::entity_key),
        address: check
            .text("address", peer.address, values::address)
            .zip(address_span)
            .map(|(address, span)| Spanned::new(span, address)),
        interface: check.text("interface", peer.interface, values::interface),
        subnet: check.text("subnet", peer.subnet, values::peer_subnet),
        link_tags: check.text("link_tags", peer.link_tags, values::link_tags),
        handshake: handshake::of_peer(&mut check, (peer.pattern, peer.pq), own.handshake),
        via: peer.via,
        fallback,
        section,
        span,
        shape,
    };
    unique.check(&draft, &spans, report);
    check_family(&draft, own, report);
    draft
}

/// Which kind of block this is; a block that is of none is reported.
fn shape(
    section: &Section,
    span: &Range<usize>,
    peer: &file::Peer,
    routing: RoutingSection,
    report: &mut Report<'_>,
) -> Shape {
    let is_node = peer.node_key.is_some() || peer.node_id.is_some();
    // It is a neighbour for as long as there is a way through NATs.
    let may_be_near = is_node && peer.via.is_none() && routing.crosses_nats;
    if let (None, Some(interface)) = (&peer.address, &peer.interface) {
        let what = "belongs to a neighbour, and this peer has no address";
        report.add(
            interface.span(),
            section.key("interface"),
            what,
            "remove it",
        );
    }
    if let (None, Some(subnet)) = (&peer.address, &peer.subnet) {
        let (levels, length) = match subnet.get_ref().split_once('/') {
            Some((levels, _)) => (levels, true),
            None => (subnet.get_ref().as_str(), false),
        };
        let (what, fix) = if !is_node {
            let what = "belongs to a node, and this block gives an entity a name";
            (what, "remove it".to_owned())
        } else {
            let what = "has a /length, which is checked where packets arrive, and none arrive straight from here";
            (what, format!("write \"{levels}\""))
        };
        if (length && !may_be_near) || !is_node {
            report.add(subnet.span(), section.key("subnet"), what, fix);
        }
    }
    if let (None, Some(link_tags), false) = (&peer.address, &peer.link_tags, may_be_near) {
        let what = "is about a neighbour's link, and this peer has no address";
        let fix = "set it on the neighbour that packets come through";
        report.add(link_tags.span(), section.key("link_tags"), what, fix);
    }
    if let (Some(_), Some(id)) = (&peer.node_key, &peer.node_id) {
        let what = "stands beside `node_key`, which says it";
        report.add(id.span(), section.key("node_id"), what, "remove it");
    }
    match (is_node, &peer.address, &peer.via) {
        (true, Some(_), None) => return Shape::Adjacent,
        (true, None, Some(_)) => return Shape::Behind,
        (false, None, None) => return Shape::EntityOnly,
        (true, None, None) if routing.is_enabled => return Shape::Learned,
        (_, Some(_), Some(via)) => {
            let fix = "keep `address` if it is a neighbour, `via` if others forward to it";
            report.add(
                via.span(),
                section.key("via"),
                "stands beside `address`",
                fix,
            );
        }
        (false, ..) => {
            let fix = "add the node key that `virga id` prints there, or its node id as `node_id`, or remove `address` and `via` if only its entity is meant";
            report.add(span.clone(), section.key("node_key"), "is missing", fix);
        }
        (true, None, None) => {
            let fix = "add `address` if it is a neighbour, `via` if others forward to it, or [routing] with `enabled = true` if neighbours shall say who leads to it; remove `node_key` if only its entity is meant";
            report.add(
                span.clone(),
                section.key("address"),
                "no way leads to this peer",
                fix,
            );
        }
    }
    Shape::Broken
}

/// One UDP socket speaks one family.
fn check_family(draft: &Draft, own: &Own<'_>, report: &mut Report<'_>) {
    if let (Some(address), Some(listen)) = (&draft.address, own.listen)
        && address.get_ref().is_ipv4() != listen.is_ipv4()
    {
        let what = format!(
            "{} is not of the family of node.listen, {listen}",
            address.get_ref()
        );
        report.add(
            address.span(),
            draft.section.key("address"),
            what,
            "use IPv4 for both, or IPv6 for both",
        );
    }
}

fn check_capacity(drafts: &[Draft], report: &mut Report<'_>) {
    let is_neighbour = |draft: &&Draft| draft.shape == Shape::Adjacent;
    let neighbours = drafts.iter().filter(is_neighbour).count();
    let max =
        usize::try_from(limits::NEIGHBOURS_MAX.min(limits::NEXT_HOPS_MAX)).unwrap_or(usize::MAX);
    if let Some(first_over) = drafts.iter().filter(is_neighbour).nth(max) {
        let fix =
            format!("one node can have {max} neighbours; reach the rest over others with `via`");
        report.add(
            first_over.span.clone(),
            first_over.section.key("address"),
            "is one neighbour too many",
            fix,
        );
    }
    let mut routes: BTreeSet<Vec<&str>> = BTreeSet::new();
    for via in drafts.iter().filter_map(|draft| draft.via.as_ref()) {
        routes.insert(
            via.get_ref()
                .iter()
                .map(|name| name.get_ref().as_str())
                .collect(),
        );
    }
    let routes = routes.len() + neighbours;
    let routes_max = usize::try_from(limits::ROUTES_MAX).unwrap_or(usize::MAX);
    if routes > routes_max {
        let fix = format!("a node holds {routes_max}; let peers share their `via`");
        report.add(
            0..0,
            "peers",
            format!("{routes} distinct routes are too many"),
            fix,
        );
    }
}

/// What arrives from one address is judged by one rule: ports do not tell neighbours apart there.
fn check_shared_addresses(drafts: &[Draft], report: &mut Report<'_>) {
    let mut first: HashMap<IpAddr, &Draft> = HashMap::new();
    for draft in drafts {
        let Some(address) = &draft.address else {
            continue;
        };
        let ip = address.get_ref().ip();
        let earlier = *first.entry(ip).or_insert(draft);
        if earlier.subnet != draft.subnet {
            let what = format!("differs from that of another peer at {ip}");
            let fix = "give peers at one IP address the same subnet, or none";
            report.add(draft.span.clone(), draft.section.key("subnet"), what, fix);
        }
    }
}

/// Turns a draft into a peer or an entity, when nothing is wrong with it.
fn finish(
    draft: Draft,
    own: &Own<'_>,
    places: &HashMap<String, (usize, Shape)>,
    roster: &mut Roster,
    report: &mut Report<'_>,
) {
    let via = draft
        .via
        .as_ref()
        .and_then(|via| resolve_via(&draft, via, own, places, report));
    let (Some(name), Some(entity_key)) = (draft.name, draft.entity_key) else {
        return;
    };
    let entity = Entity::from_key(entity_key);
    let origin = entity.origin;
    roster.entities.push(NamedEntity {
        name: name.clone(),
        entity,
    });
    let reach = match (draft.address, via) {
        (Some(address), _) => Reach::Adjacent {
            address: address.into_inner(),
            interface: draft.interface,
        },
        (None, Some(reach)) => reach,
        (None, None) if draft.shape == Shape::Learned => Reach::Learned,
        (None, None) => return,
    };
    let Some(node_key) = draft.node_key else {
        return;
    };
    let id = node_key.id();
    roster.peers.push(PeerConfig {
        name,
        node_key,
        id,
        entity_key,
        origin,
        entities: vec![entity_key],
        reach,
        subnet: draft.subnet,
        link_tags: draft.link_tags,
        handshake: draft.handshake,
        fallback: draft.fallback,
    });
}

fn resolve_via(
    draft: &Draft,
    via: &Spanned<Vec<Spanned<String>>>,
    own: &Own<'_>,
    places: &HashMap<String, (usize, Shape)>,
    report: &mut Report<'_>,
) -> Option<Reach> {
    let key = draft.section.key("via");
    let names = via.get_ref();
    if names.is_empty() || names.len() > VIA_MAX {
        let what = format!("names {} next hops", names.len());
        report.add(
            via.span(),
            key,
            what,
            "name the next hop, and one backup where there is one",
        );
        return None;
    }
    let mut hops = Vec::new();
    for name in names {
        let word = name.get_ref().as_str();
        match places.get(word) {
            Some((_, Shape::Broken)) => {}
            _ if draft.name.as_deref() == Some(word) => {
                report.add(
                    name.span(),
                    &key,
                    "names the peer itself",
                    "name a neighbour that forwards to it",
                );
            }
            _ if own.name == Some(word) => {
                report.add(
                    name.span(),
                    &key,
                    "names this node itself",
                    "give the peer an `address` if it is a neighbour",
                );
            }
            Some((place, Shape::Adjacent)) if hops.contains(place) => {
                report.add(
                    name.span(),
                    &key,
                    format!("{word:?} is named twice"),
                    "a backup must be another neighbour",
                );
            }
            Some((place, Shape::Adjacent)) => hops.push(*place),
            Some(_) => {
                let what = format!("{word:?} has no address, so it is no next hop");
                report.add(
                    name.span(),
                    &key,
                    what,
                    "name the neighbour that leads there",
                );
            }
            None => {
                let neighbours = places
                    .iter()
                    .filter(|(_, (_, shape))| *shape == Shape::Adjacent);
                let mut known: Vec<&str> = neighbours.map(|(name, _)| name.as_str()).collect();
                known.sort_unstable();
                let what = format!("{word:?} is not a peer with an address");
                report.add(name.span(), &key, what, suggest(word, known));
            }
        }
    }
    let primary = *hops.first()?;
    Some(Reach::Via {
        primary,
        backup: hops.get(1).copied(),
    })
}

/// What no two blocks may share, with the name of who has it.
#[derive(Default)]
struct Unique {
    names: HashMap<String, String>,
    node_keys: HashMap<[u8; 32], String>,
    nodes: HashMap<u64, String>,
    entity_keys: HashMap<[u8; 32], String>,
    origins: HashMap<u64, String>,
    addresses: HashMap<SocketAddr, String>,
}

impl Unique {
    fn of(own: &Own<'_>) -> Self {
        let us = || "this node itself".to_owned();
        let mut unique = Self::default();
        unique
            .names
            .extend(own.name.map(|name| (name.into(), us())));
        unique
            .addresses
            .extend(own.listen.map(|listen| (listen, us())));
        if let Some(node) = own.node {
            unique.node_keys.insert(node.public, us());
            unique.nodes.insert(node.id.0, us());
        }
        if let Some(entity) = own.entity.filter(|_| !own.is_moved_here) {
            unique.entity_keys.insert(entity.public, us());
            unique.origins.insert(entity.origin.0, us());
        }
        unique
    }

    /// `spans` are those of name, node key and entity key.
    fn check(&mut self, draft: &Draft, spans: &[Option<Range<usize>>; 3], report: &mut Report<'_>) {
        let who = draft
            .name
            .clone()
            .map_or_else(|| "a peer before".into(), |name| format!("peer {name:?}"));
        let section = &draft.section;
        let [name_span, node_span, entity_span] =
            spans.clone().map(|span| span.unwrap_or(draft.span.clone()));
        let mut complain = |span: &Range<usize>, key: &str, holder: Option<String>, fix: &str| {
            if let Some(holder) = &holder {
                report.add(
                    span.clone(),
                    section.key(key),
                    format!("is the same as that of {holder}"),
                    fix,
                );
            }
            holder.is_some()
        };
        if let Some(name) = &draft.name {
            let holder = take(&mut self.names, name.clone(), &who);
            complain(&name_span, "name", holder, "give each its own name");
        }
        const RENEW: &str = "each has its own; `virga id` prints it";
        const REHASH: &str =
            "two keys share a hash by chance; make that one a new key with `virga keygen`";
        match draft.node_key {
            Some(PeerKey::Known(key)) => {
                let holder = take(&mut self.node_keys, key, &who);
                if !complain(&node_span, "node_key", holder, RENEW) {
                    let holder = take(&mut self.nodes, hash::node_id(&key).0, &who);
                    complain(&node_span, "node_key", holder, REHASH);
                }
            }
            Some(PeerKey::Id(id)) => {
                let holder = take(&mut self.nodes, id.0, &who);
                complain(&node_span, "node_id", holder, RENEW);
            }
            None => {}
        }
        if let Some(key) = draft.entity_key {
            let holder = take(&mut self.entity_keys, key, &who);
            if !complain(&entity_span, "entity_key", holder, RENEW) {
                let holder = take(&mut self.origins, hash::origin_hash(&key).0, &who);
                complain(&entity_span, "entity_key", holder, REHASH);
            }
        }
        if let Some(address) = &draft.address {
            let holder = take(&mut self.addresses, *address.get_ref(), &who);
            complain(
                &address.span(),
                "address",
                holder,
                "each node listens on its own address and port",
            );
        }
    }
}

/// Claims `key` for `who`; the holder, when there is one already.
fn take<K: Hash + Eq>(holders: &mut HashMap<K, String>, key: K, who: &str) -> Option<String> {
    match holders.get(&key) {
        Some(holder) => Some(holder.clone()),
        None => {
            holders.insert(key, who.into());
            None
        }
    }
}
