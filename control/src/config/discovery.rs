//! `[discovery]`: whether nodes that this file does not name are looked for, where, and who of them is admitted.

use super::{
    Config, Entity, NamedEntity, PeerConfig, PeerSubnet, Reach, file,
    problem::{Report, Section, suggest},
    rules::Checker,
    secrets,
    values::{self, Fault},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
};
use toml::Spanned;
use virga_discovery::{Adopted, Pinned, limits::PEERS_MAX};
use virga_ebpf::{hash, header::NodeId, limits};

/// Half of the neighbours that a node can have: the file's own find room.
const PEERS_MAX_MAX: i64 = 512;
const EXAMPLE: &str =
    "write NAME NODE_KEY ENTITY_KEY ADDRESS, as `virga id` prints them on that node";

const _: () = assert!(PEERS_MAX_MAX < limits::NEIGHBOURS_MAX as i64);

/// The `[discovery]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverySection {
    /// Which nodes that were found are dialled.
    pub admit: Admit,
    /// Nodes to begin with.
    pub seeds: Vec<Pinned>,
    /// Whether peers tell each other of third nodes.
    pub exchange: bool,
    /// A file that lists nodes, and may change.
    pub file: Option<PathBuf>,
    /// Where others reach this node.
    pub advertise: Vec<SocketAddr>,
    /// Nodes that are known at a time.
    pub peers_max: usize,
    /// Whether it is announced in the LAN, and others are looked for there.
    pub lan: bool,
}

/// Which nodes that were found are dialled, and let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admit {
    /// Those whose entity the file names.
    #[default]
    Named,
    /// Whoever has the network's key.
    Any,
}

impl Admit {
    /// As the file spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Any => "any",
        }
    }
}

fn admit(text: &str) -> Result<Admit, Fault> {
    let all = [Admit::Named, Admit::Any];
    match all.into_iter().find(|one| one.name() == text) {
        Some(admit) => Ok(admit),
        None => values::fault(
            format!("{text:?} does not say who is admitted"),
            suggest(text, all.map(Admit::name)),
        ),
    }
}

/// A node as seeds and lines of the file have it.
pub(crate) fn pinned(text: &str) -> Result<Pinned, Fault> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [name, node_key, entity_key, addresses @ ..] = &words[..] else {
        return values::fault(format!("{text:?} is no node"), EXAMPLE);
    };
    let addresses = addresses.iter().map(|address| values::address(address));
    let pinned = Pinned {
        name: values::name(name)?,
        node_key: values::node_key(node_key)?,
        entity_key: values::entity_key(entity_key)?,
        addresses: addresses.collect::<Result<_, _>>()?,
    };
    match pinned.is_valid() {
        true => Ok(pinned),
        false => values::fault(format!("{name:?} has no address, or too many"), EXAMPLE),
    }
}

/// The nodes of a file: one a line, and what follows `#` is for people. What is wrong with each line that is not.
pub(crate) fn pinned_of(text: &str) -> (Vec<Pinned>, Vec<String>) {
    let (mut all, mut wrong) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match pinned(line) {
            Ok(_) if all.len() >= PEERS_MAX => {
                wrong.push(format!("line {}: more than {PEERS_MAX} nodes", number + 1));
                break;
            }
            Ok(pinned) => all.push(pinned),
            Err(fault) => wrong.push(format!("line {}: {fault}", number + 1)),
        }
    }
    (all, wrong)
}

/// The section; none without it.
pub(super) fn resolve(
    file: Option<Spanned<file::Discovery>>,
    directory: &Path,
    listen: Option<SocketAddr>,
    report: &mut Report<'_>,
) -> Option<DiscoverySection> {
    let file = file?;
    let span = file.span();
    let section = Section::new("discovery", span.clone());
    let file = file.into_inner();
    let mut check = Checker {
        section: &section,
        report,
    };
    let seeds = file.seeds.into_iter().flat_map(Spanned::into_inner);
    let seeds: Vec<_> = seeds
        .map(|seed| check.text("seeds", Some(seed), pinned))
        .collect();
    let said = file.advertise.into_iter().flat_map(Spanned::into_inner);
    let said: Vec<_> = said
        .map(|one| check.text("advertise", Some(one), values::address))
        .collect();
    let resolved = DiscoverySection {
        admit: check.text("admit", file.admit, admit).unwrap_or_default(),
        seeds: seeds.into_iter().flatten().collect(),
        exchange: file.exchange.is_none_or(Spanned::into_inner),
        file: check
            .text("file", file.file, |text| secrets::file(directory, text))
            .map(|named| named.path),
        advertise: said.into_iter().flatten().collect(),
        peers_max: check
            .number("max_peers", file.max_peers, 1, PEERS_MAX_MAX)
            .unwrap_or(PEERS_MAX),
        lan: file.lan.is_some_and(Spanned::into_inner),
    };
    let nodes: BTreeSet<_> = resolved.seeds.iter().map(Pinned::node).collect();
    if nodes.len() < resolved.seeds.len() {
        let fix = "a node has one line, with all its addresses";
        report.add(span.clone(), section.key("seeds"), "name a node twice", fix);
    }
    let most = virga_discovery::limits::ADDRESSES_MAX;
    if resolved.advertise.len() > most {
        let what = format!("has more than {most} addresses");
        report.add(
            span.clone(),
            section.key("advertise"),
            what,
            "leave some out",
        );
    }
    let is_anywhere = listen.is_some_and(|listen| listen.ip().is_unspecified());
    if is_anywhere && resolved.advertise.is_empty() {
        let what =
            "is missing, and node.listen does not say at which address others reach this node";
        let fix = "add a line such as: advertise = [\"10.77.1.2:4783\"]";
        report.add(span, section.key("advertise"), what, fix);
    }
    Some(resolved)
}

impl Config {
    /// Those that are peers already come first, in the same order: who is found later takes no name from them.
    #[must_use]
    pub fn peers_first(&self, mut found: Vec<Adopted>) -> Vec<Adopted> {
        let peers = self.peers.iter().enumerate();
        let places: BTreeMap<NodeId, usize> = peers.map(|(n, peer)| (peer.id, n)).collect();
        found.sort_by_key(|one| places.get(&one.node).copied().unwrap_or(usize::MAX));
        found
    }

    /// The same with nodes that were found as peers. What the file says comes first: nobody takes a name, a key, an
    /// address or room from its peers.
    #[must_use]
    pub fn with_found(&self, found: &[Adopted]) -> Self {
        let mut config = self.clone();
        let mut names: BTreeSet<String> = config.entities.iter().map(|e| e.name.clone()).collect();
        names.extend(config.peers.iter().map(|peer| peer.name.clone()));
        names.insert(config.node.name.clone());
        let neighbours = config
            .peers
            .iter()
            .filter(|peer| peer.is_adjacent())
            .count();
        let [neighbours_max, destinations_max] = [
            limits::NEIGHBOURS_MAX.min(limits::NEXT_HOPS_MAX),
            config.forwarding.destinations_max,
        ]
        .map(|max| usize::try_from(max).unwrap_or(usize::MAX));
        let room = neighbours_max.saturating_sub(neighbours);
        let room = room.min(destinations_max.saturating_sub(config.peers.len()));
        for one in found.iter().take(room) {
            let origin = hash::origin_hash(&one.entity_key);
            let is_taken = |peer: &PeerConfig| {
                let has_address = matches!(&peer.reach, Reach::Adjacent { address, .. } if *address == one.address);
                peer.id == one.node || peer.origin == origin || has_address
            };
            let is_own = one.node == config.node.id || origin == config.node.origin;
            if is_own || one.address == config.node.listen || config.peers.iter().any(is_taken) {
                continue;
            }
            let named = config.entity_name(&one.entity_key).map(str::to_owned);
            let is_named = named.is_some();
            let name = named.unwrap_or_else(|| match names.contains(&one.name) {
                false => one.name.clone(),
                true => format!("node-{}", one.node),
            });
            names.insert(name.clone());
            if !is_named {
                config.entities.push(NamedEntity {
                    name: name.clone(),
                    entity: Entity::from_key(one.entity_key),
                });
            }
            config.peers.push(PeerConfig {
                fallback: Vec::new(),
                name,
                node_key: one.node_key.into(),
                id: one.node,
                entity_key: one.entity_key,
                origin,
                entities: vec![one.entity_key],
                reach: Reach::Adjacent {
                    address: one.address,
                    interface: None,
                },
                subnet: Some(PeerSubnet {
                    subnet: one.subnet,
                    mask: one.subnet.mask(),
                }),
                link_tags: None,
                handshake: None,
            });
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ConfigError,
        hex,
        keys::{EntityKey, Keys, NodeKey, Secret},
    };
    use virga_ebpf::header::Subnet;

    fn node(number: u8) -> NodeKey {
        Secret::new([number; 32]).into()
    }

    fn entity(number: u8) -> EntityKey {
        Secret::new([100 + number; 32]).into()
    }

    fn line(number: u8) -> String {
        let keys = [&node(number).public, &entity(number).public].map(hex::encode);
        format!("n{number} {} 10.0.0.{number}:4783", keys.join(" "))
    }

    fn parse(listen: &str, more: &str) -> Result<Config, ConfigError> {
        let text = format!(
            "[node]\nname = \"n1\"\nnetwork = \"test\"\nnode_key_file = \"n\"\nentity_key_file = \"e\"\n\
             psk_file = \"p\"\nlisten = \"{listen}\"\n{more}"
        );
        let keys = Keys {
            node: node(1),
            entity: entity(1),
            psk: Secret::new([9; 32]),
        };
        Config::from_toml(&text, Path::new("/nowhere/n.toml"), keys)
    }

    fn adopted(number: u8, name: &str) -> Adopted {
        Adopted {
            node: node(number).id,
            node_key: node(number).public,
            entity_key: entity(number).public,
            name: name.to_owned(),
            address: SocketAddr::from(([10, 0, 0, number], 4783)),
            subnet: Subnet(0x0100_0000),
        }
    }

    #[test]
    fn without_the_section_nobody_is_looked_for_and_each_key_has_its_default() {
        assert_eq!(parse("10.0.0.1:4783", "").unwrap().discovery, None);
        let section = parse("10.0.0.1:4783", "[discovery]\n")
            .unwrap()
            .discovery
            .unwrap();
        assert_eq!((section.admit, section.exchange), (Admit::Named, true));
        assert_eq!((section.peers_max, section.file), (PEERS_MAX, None));
        assert!(!section.lan);
        let seeds = format!(
            "[discovery]\nadmit = \"any\"\nseeds = [{:?}]\nfile = \"list\"\n",
            line(2)
        );
        let section = parse("10.0.0.1:4783", &seeds).unwrap().discovery.unwrap();
        assert_eq!(section.seeds[0].node(), node(2).id);
        assert_eq!(section.file, Some(PathBuf::from("/nowhere/list")));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let twice = format!("seeds = [{:?}, {:?}]", line(2), line(2));
        for (listen, more, key, fix) in [
            ("0.0.0.0:4783", "", "discovery.advertise", "advertise = ["),
            ("10.0.0.1:4783", "admit = \"all\"", "discovery.admit", "any"),
            (
                "10.0.0.1:4783",
                "seeds = [\"hub\"]",
                "discovery.seeds",
                "NODE_KEY",
            ),
            (
                "10.0.0.1:4783",
                "max_peers = 0",
                "discovery.max_peers",
                "1 to 512",
            ),
            ("10.0.0.1:4783", &twice, "discovery.seeds", "one line"),
        ] {
            let error = parse(listen, &format!("[discovery]\n{more}\n")).unwrap_err();
            let problem = &error.problems()[0];
            assert_eq!(problem.key, key);
            assert!(problem.fix.contains(fix), "{problem}");
        }
        let (listed, wrong) = pinned_of(&format!("{}\nhub\n# nothing\n", line(2)));
        assert_eq!((listed.len(), wrong.len()), (1, 1));
    }

    #[test]
    fn nobody_takes_anything_from_the_peers_of_the_file() {
        let block = |name: &str, number: u8, is_node: bool| {
            let node = match is_node {
                true => format!(
                    "node_key = \"{}\"\naddress = \"10.0.0.{number}:4783\"\n",
                    hex::encode(&node(number).public)
                ),
                false => String::new(),
            };
            let key = hex::encode(&entity(number).public);
            format!("[[peers]]\nname = \"{name}\"\nentity_key = \"{key}\"\n{node}")
        };
        let file = block("two", 2, true) + &block("three", 3, false);
        let config = parse("10.0.0.1:4783", &file).unwrap();
        let at = |number: u8, of: u8| Adopted {
            address: SocketAddr::from(([10, 0, 0, of], 4783)),
            ..adopted(number, "liar")
        };
        let found = [
            adopted(1, "own"),
            adopted(2, "again"),
            at(4, 2),
            at(5, 1),
            adopted(3, "itself"),
            adopted(6, "two"),
            adopted(7, "seven"),
        ];
        let now = config.with_found(&found);
        let names: Vec<&str> = now.peers.iter().map(|peer| peer.name.as_str()).collect();
        let renamed = format!("node-{}", node(6).id);
        assert_eq!(names, ["two", "three", &renamed, "seven"]);
        assert_eq!(now.entities.len(), config.entities.len() + 2);
        assert_eq!(now.peers[3].place().subnet, Subnet(0x0100_0000));
        assert_eq!(config.with_found(&[]).peers, config.peers);
    }

    #[test]
    fn who_is_found_later_takes_no_name_from_who_is_a_peer() {
        let config = parse("10.0.0.1:4783", "").unwrap();
        let [five, six, seven] = [5, 6, 7].map(|number| adopted(number, "hub"));
        let before = config.with_found(&[six.clone(), seven.clone()]);
        assert_eq!(before.peers[0].name, "hub");
        let found = before.peers_first(vec![five, seven, six]);
        let now = config.with_found(&found);
        assert_eq!(now.peers[..2], before.peers[..]);
        assert_ne!(now.peers[2].name, "hub");
    }
}
