//! The keys of a `[[channels]]` block that say which nodes hold the channel's log together.

use super::{
    ChannelConfig, Config, file,
    peers::Roster,
    problem::{Report, Section, suggest},
    rules::Checker,
    values,
};
use std::{ops::Range, slice::from_ref};
use toml::Spanned;
use virga_ebpf::{
    header::{NodeId, Subnet},
    image::exports_of,
    subnet::may_cross,
};
use virga_state::{Durability, limits::REPLICAS_MAX, replica::Acks};
use virga_transport::ChannelName;

/// A channel whose log is on several nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicated {
    /// Which one.
    pub channel: ChannelName,
    /// Where; no duplicates.
    pub replicas: Vec<ReplicaNode>,
    /// When what this node publishes counts as published.
    pub acks: Acks,
    /// Whether a command said so ([`crate::kept::chosen`]), and not the file.
    pub is_by_command: bool,
}

/// A node that holds a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaNode {
    /// What the header calls it.
    pub node: NodeId,
    /// What the file calls it.
    pub name: String,
}

/// The keys, taken out of a block.
pub(super) struct Keys {
    replicas: Option<Spanned<Vec<Spanned<String>>>>,
    acks: Option<Spanned<String>>,
    durability: Option<Range<usize>>,
}

impl Keys {
    pub(super) fn take(block: &mut file::Channel) -> Self {
        Self {
            replicas: block.replicas.take(),
            acks: block.acks.take(),
            durability: block.durability.as_ref().map(Spanned::span),
        }
    }

    /// Where the channel's log is, if it is on several nodes.
    pub(super) fn resolve(
        self,
        section: &Section,
        channel: &ChannelConfig,
        roster: &Roster,
        report: &mut Report<'_>,
    ) -> Option<Replicated> {
        let Some(words) = self.replicas else {
            if let Some(acks) = self.acks {
                let what = "belongs to a channel whose log is on several nodes";
                let fix = "add replicas = [\"edge-a\", \"edge-b\", \"edge-c\"], or remove it";
                report.add(acks.span(), section.key("acks"), what, fix);
            }
            return None;
        };
        let span = words.span();
        let count = words.get_ref().len();
        let replicas = nodes(section, words.into_inner(), roster, report);
        let acks = Checker { section, report }.text("acks", self.acks, acks);
        let mut wrong = |key, span, what: String, fix: &str| {
            report.add(span, section.key(key), what, fix);
        };
        if !(1..=REPLICAS_MAX).contains(&count) {
            let what = format!("names {count} nodes, and 1 to {REPLICAS_MAX} hold a log");
            wrong("replicas", span.clone(), what, "name three or five");
        }
        if !channel.mode.is_reliable() {
            let what = "belongs to a reliable channel".to_owned();
            wrong("replicas", span.clone(), what, "remove it");
        }
        let own = roster.own.as_ref().map(|own| own.node);
        let is_member = replicas.iter().any(|replica| Some(replica.node) == own);
        let compacted = channel
            .keep
            .as_ref()
            .filter(|keeping| keeping.compaction.is_some());
        if compacted.is_some() {
            let what = "is of a log that is compacted, and replicas hold it whole, byte for byte"
                .to_owned();
            wrong("replicas", span.clone(), what, "remove it, or compact_by");
        }
        match &channel.keep {
            None if is_member => {
                let what = "names this node, which does not keep the channel".to_owned();
                wrong("replicas", span, what, "add persist = true");
            }
            Some(_) if !is_member && own.is_some() => {
                let what = "does not name this node, which keeps the channel".to_owned();
                let fix = "add this node's name, the same on all nodes, or remove persist = true";
                wrong("replicas", span, what, fix);
            }
            Some(keeping) if keeping.options.durability != Durability::Synced => {
                let what = "is not \"synced\", and what replicas promise each other rests on what is on disk".to_owned();
                wrong(
                    "durability",
                    self.durability.unwrap_or(span),
                    what,
                    "remove it",
                );
            }
            _ => {}
        }
        Some(Replicated {
            channel: channel.name.clone(),
            replicas,
            acks: acks.unwrap_or_default(),
            is_by_command: false,
        })
    }
}

fn nodes(
    section: &Section,
    words: Vec<Spanned<String>>,
    roster: &Roster,
    report: &mut Report<'_>,
) -> Vec<ReplicaNode> {
    let mut nodes: Vec<ReplicaNode> = Vec::new();
    let peers = roster.peers.iter().map(|peer| (peer.id, &peer.name));
    let own = roster.own.iter().map(|own| (own.node, &own.name));
    let known: Vec<(NodeId, &String)> = own.chain(peers).collect();
    for word in words {
        let text = word.get_ref();
        let found = known
            .iter()
            .find(|(node, name)| *name == text || node.to_string() == *text);
        match found {
            Some((node, _)) if nodes.iter().any(|known| known.node == *node) => {
                let what = format!("{text:?} is in the list already");
                report.add(word.span(), section.key("replicas"), what, "name each once");
            }
            Some((node, name)) => nodes.push(ReplicaNode {
                node: *node,
                name: (*name).clone(),
            }),
            // A node whose block is wrong is reported there.
            None if roster.names.contains_key(text) && !report.is_clean() => {}
            None => {
                let what = format!("{text:?} is neither a node's name nor the id of a node");
                let fix = suggest(text, known.iter().map(|(_, name)| name.as_str()));
                report.add(word.span(), section.key("replicas"), what, fix);
            }
        }
    }
    nodes
}

/// The nodes that a command names: this one and its peers, by name or id.
///
/// # Errors
/// Which word means none of them, or one again.
pub fn named_replicas(words: &[String], config: &Config) -> Result<Vec<ReplicaNode>, String> {
    let peers = config.peers.iter().map(|peer| (peer.id, &peer.name));
    let known: Vec<_> = [(config.node.id, &config.node.name)]
        .into_iter()
        .chain(peers)
        .collect();
    let mut nodes: Vec<ReplicaNode> = Vec::new();
    for word in words {
        let mut known = known.iter();
        let found = known.find(|(node, name)| *name == word || node.to_string() == *word);
        let Some(&(node, name)) = found else {
            return Err(format!(
                "replicas: {word:?} is neither a node's name here nor the id of a peer"
            ));
        };
        if nodes.iter().any(|known| known.node == node) {
            return Err(format!("replicas: {word:?} is named twice"));
        }
        nodes.push(ReplicaNode {
            node,
            name: name.clone(),
        });
    }
    Ok(nodes)
}

/// The same of words that were noted when they were right: an id that is no peer's any more is a node all the same, so
/// that nobody here publishes past the others.
///
/// # Errors
/// Which word is no node's name and no id, or means one again.
pub fn noted_replicas(words: &[String], config: &Config) -> Result<Vec<ReplicaNode>, String> {
    let mut nodes: Vec<ReplicaNode> = Vec::new();
    for word in words {
        let found = match (
            named_replicas(from_ref(word), config),
            values::read_node_id(word),
        ) {
            (Ok(found), _) => found,
            (Err(_), Some(node)) => vec![ReplicaNode {
                node,
                name: word.clone(),
            }],
            (Err(why), None) => return Err(why),
        };
        for replica in found {
            if nodes.iter().any(|known| known.node == replica.node) {
                return Err(format!("replicas: {word:?} is named twice"));
            }
            nodes.push(replica);
        }
    }
    Ok(nodes)
}

/// Whether nodes may hold a channel's log together: each may have its events, and they cross between all. Nothing is said
/// of a channel that is not known here.
///
/// # Errors
/// Which node may not, and why.
pub fn may_hold(
    nodes: &[ReplicaNode],
    channel: &ChannelName,
    config: &Config,
) -> Result<(), String> {
    let Some(channel) = config.channels.iter().find(|c| c.name == *channel) else {
        return Ok(());
    };
    let mut subnets = vec![(&config.node.name, config.node.subnet)];
    for replica in nodes {
        let peer = config.peers.iter().find(|peer| peer.id == replica.node);
        let own = [config.keys.entity.public];
        let entities = peer.map_or(&own[..], |peer| &peer.entities);
        if !entities.iter().any(|key| channel.subscribe.contains(key)) {
            return Err(format!(
                "replicas: the entity of {} may not subscribe to {}; leave that node out, or have the channel's authority list it",
                replica.name, channel.name
            ));
        }
        if let Some(peer) = peer {
            let subnet = peer.subnet.map_or(Subnet(0), |subnet| subnet.subnet);
            subnets.push((&replica.name, subnet));
        }
    }
    let exports = exports_of(&channel.export_to);
    let crosses = |from, to| {
        may_cross(
            channel.hash,
            channel.visibility,
            || Some(&exports),
            from,
            to,
        )
    };
    for (at, (one, from)) in subnets.iter().enumerate() {
        for (other, to) in &subnets[at + 1..] {
            if !crosses(*from, *to) || !crosses(*to, *from) {
                return Err(format!(
                    "replicas: {} does not cross between the subnets of {one} and {other}; name nodes of one subnet, or export the channel",
                    channel.name
                ));
            }
        }
    }
    Ok(())
}

pub(super) fn acks(word: &str) -> Result<Acks, values::Fault> {
    match Acks::ALL.into_iter().find(|acks| acks.name() == word) {
        Some(acks) => Ok(acks),
        None => values::fault(
            format!("{word:?} is no number of replicas"),
            "write \"leader\", \"quorum\" or \"all\"",
        ),
    }
}
