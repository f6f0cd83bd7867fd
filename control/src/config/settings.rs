//! What a configuration says of every key, as the node understands it: defaults filled in, names resolved, secrets as
//! fingerprints; and what two of them have otherwise.

mod keys;

use super::{
    CapabilityRules, ChannelConfig, Config, Entity, FallbackSection, LinkTags, Listed, PeerConfig,
    Reach, Replicated, ScopeConfig, Workers, ZeroCopy, values,
};
use crate::{capability::Statement, hex, kept::Keeping, keys::Secret, membership::Membership};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};
use virga_ebpf::hash::keyed;
use virga_routing::Aggregation;
use virga_transport::{HandshakePolicy, Mode, Pattern, PeerKey};

pub use keys::{Effect, KEYS, effect};

/// One key of one configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Where it stands: `node.listen`, or `peers[router].address`.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What a change of it takes.
    pub effect: Effect,
}

/// What differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// As in [`Setting::key`].
    pub key: String,
    /// As the node runs; none where it is not set.
    pub running: Option<String>,
    /// As the file says; none where it is not set.
    pub new: Option<String>,
    /// What it takes.
    pub effect: Effect,
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [running, new] =
            [&self.running, &self.new].map(|value| value.as_deref().unwrap_or("not set"));
        let (key, word) = (&self.key, self.effect.word());
        write!(out, "{key}: {running} -> {new} ({word})")
    }
}

/// What differs, by key.
#[must_use]
pub fn changes(running: &[Setting], new: &[Setting]) -> Vec<Change> {
    let by_key = |all: &[Setting]| -> BTreeMap<String, (String, Effect)> {
        let all = all.iter().cloned();
        all.map(|one| (one.key, (one.value, one.effect))).collect()
    };
    let (running, new) = (by_key(running), by_key(new));
    let keys: BTreeSet<&String> = running.keys().chain(new.keys()).collect();
    let change = |key: &String| {
        let (before, after) = (running.get(key), new.get(key));
        let effect = before.or(after)?.1;
        let value = |of: Option<&(String, Effect)>| of.map(|(value, _)| value.clone());
        let change = Change {
            key: key.clone(),
            running: value(before),
            new: value(after),
            effect,
        };
        (change.running != change.new).then_some(change)
    };
    keys.into_iter().filter_map(change).collect()
}

/// Everything that a configuration says.
#[must_use]
pub fn of(config: &Config) -> Vec<Setting> {
    let mut all = Writer {
        config,
        settings: Vec::new(),
    };
    all.node();
    all.forwarding();
    all.sections();
    all.gateways();
    all.authorities();
    let entities = config.entities.iter().skip(1);
    for named in entities {
        let block = Block("peers", Some(&named.name));
        all.put(&block, "entity_key", hex::encode(&named.entity.key));
    }
    for peer in &config.peers {
        all.peer(peer);
    }
    for channel in &config.channels {
        all.channel(channel);
    }
    for replicated in config.replicated.iter().filter(|one| !one.is_by_command) {
        all.replicated(replicated);
    }
    for scope in &config.scopes {
        all.scope(scope);
    }
    all.settings
}

/// A section, and which of its blocks.
struct Block<'a>(&'static str, Option<&'a str>);

struct Writer<'a> {
    config: &'a Config,
    settings: Vec<Setting>,
}

/// Who may be what, as channels and scopes have it.
struct Asked<'a> {
    publish: &'a Listed,
    subscribe: &'a Listed,
    issuers: &'a [Entity],
    capabilities: &'a CapabilityRules,
}

impl Writer<'_> {
    fn put(&mut self, Block(section, block): &Block<'_>, key: &str, value: impl fmt::Display) {
        let path = match block {
            Some(block) => format!("{section}[{block}].{key}"),
            None => format!("{section}.{key}"),
        };
        self.settings.push(Setting {
            key: path,
            value: value.to_string(),
            // A key that the table does not have is taken for the graver one; a test knows of none.
            effect: effect(section, key).unwrap_or(Effect::Restart),
        });
    }

    fn put_some(&mut self, block: &Block<'_>, key: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.put(block, key, value);
        }
    }

    fn names(&self, entities: &[Entity]) -> String {
        let name = |entity: &Entity| match self.config.entity_name(&entity.key) {
            Some(name) => name.to_owned(),
            None => hex::encode(&entity.key),
        };
        list(entities.iter().map(name))
    }

    fn node(&mut self) {
        let (node, keys) = (&self.config.node, &self.config.keys);
        let block = Block("node", None);
        let held = |path: &std::path::Path, what: &str, key: String| {
            format!("{} ({what} {key})", path.display())
        };
        let node_key = hex::encode(&keys.node.public);
        let entity_key = hex::encode(&keys.entity.public);
        self.put(&block, "name", &node.name);
        self.put(&block, "network", &node.network);
        let value = held(&node.node_key_file, "public key", node_key);
        self.put(&block, "node_key_file", value);
        let value = held(&node.entity_key_file, "public key", entity_key);
        self.put(&block, "entity_key_file", value);
        let value = held(&node.psk_file, "fingerprint", fingerprint(&keys.psk));
        self.put(&block, "psk_file", value);
        self.put(&block, "psk_generation", node.psk_generation);
        self.put(&block, "listen", node.listen);
        self.put(&block, "subnet", values::subnet_word(node.subnet));
        self.put(&block, "socket", node.socket.display());
        self.put_some(&block, "socket_group", node.socket_group.as_ref());
        self.put(&block, "congestion", node.congestion.name());
        match &node.workers {
            Workers::Auto => self.put(&block, "workers", "auto"),
            Workers::Number(workers) => self.put(&block, "workers", workers),
            Workers::Cores(cores) => {
                self.put(&block, "workers", cores.len());
                self.put(&block, "worker_cores", list(cores));
            }
        }
        self.put(&block, "driver", node.driver.choice.name());
        self.put_some(&block, "busy_poll_us", node.driver.busy_poll_us);
        let batching = node.driver.batching.as_ref();
        self.put_some(&block, "wake_completions", batching.map(|b| b.completions));
        self.put(&block, "zero_copy", node.zero_copy == ZeroCopy::Listed);
        let tokens = node.tokens.iter();
        let tokens = tokens.filter_map(|token| Some(token.chain().links().last()?.id()));
        self.put(&block, "tokens", list(tokens));
        let statements = node.statements.iter().map(Statement::id);
        self.put(&block, "capabilities", list(statements));
        let memberships = node.memberships.iter().map(Membership::id);
        self.put(&block, "memberships", list(memberships));
        self.put(&block, "state", node.state.display());
        self.put(&block, "logs", node.logs.display());
    }

    fn forwarding(&mut self) {
        let forwarding = &self.config.forwarding;
        let block = Block("forwarding", None);
        self.put(&block, "mode", forwarding.mode);
        self.put(&block, "interfaces", list(&forwarding.interfaces));
        self.put(&block, "destinations_max", forwarding.destinations_max);
        self.put(&block, "link_tags", forwarding.link_tags.name());
        self.put(&block, "link_key_s", forwarding.link_key_s);
        self.put(&block, "keepalive_ms", forwarding.keepalive_ms);
        self.put(&block, "detect_multiplier", forwarding.detect_multiplier);
    }

    fn sections(&mut self) {
        let config = self.config;
        let block = Block("routing", None);
        self.put(&block, "enabled", config.routing.is_enabled);
        let is_by_subnet = config.routing.aggregation == Aggregation::BySubnet;
        self.put(&block, "by_subnet", is_by_subnet);
        let block = Block("nat", None);
        self.put(&block, "enabled", config.routing.crosses_nats);
        self.put(&block, "port_mapping", config.routing.maps_ports);
        self.discovery();
        self.handshake(&Block("handshake", None), config.handshake);
        self.put_some(&Block("metrics", None), "listen", config.metrics);
        self.fallback(&Block("fallback", None), &config.fallback);
        let block = Block("subnets", None);
        self.put(&block, "issuers", self.names(&config.subnet_issuers));
        self.put(&block, "filter_life_s", config.filter_life_s);
    }

    fn discovery(&mut self) {
        let Some(discovery) = &self.config.discovery else {
            return;
        };
        let block = Block("discovery", None);
        self.put(&block, "admit", discovery.admit.name());
        let seeds = discovery.seeds.iter().map(|seed| {
            let addresses = seed.addresses.iter().map(ToString::to_string);
            let addresses = addresses.collect::<Vec<_>>().join(" ");
            let keys = [&seed.node_key, &seed.entity_key].map(hex::encode);
            format!("{} {} {addresses}", seed.name, keys.join(" "))
        });
        self.put(&block, "seeds", list(seeds));
        self.put(&block, "exchange", discovery.exchange);
        self.put_some(&block, "file", discovery.file.as_ref().map(|f| f.display()));
        self.put(&block, "advertise", list(&discovery.advertise));
        self.put(&block, "max_peers", discovery.peers_max);
        self.put(&block, "lan", discovery.lan);
    }

    fn fallback(&mut self, block: &Block<'_>, fallback: &FallbackSection) {
        self.put_some(block, "listen_tcp", fallback.listen_tcp);
        self.put_some(block, "listen_ws", fallback.listen_ws);
        if let Some((certificate, key)) = &fallback.certificate {
            self.put(block, "certificate", certificate.display());
            self.put(block, "certificate_key", key.display());
        }
        self.put(block, "trust", &fallback.trust);
        self.put(block, "after_ms", fallback.pace.after.as_millis());
        self.put(block, "probe_s", fallback.pace.probe_every.as_secs());
    }

    fn handshake(&mut self, block: &Block<'_>, policy: HandshakePolicy) {
        self.put(
            block,
            "pattern",
            policy.pattern.map_or("auto", Pattern::name),
        );
        self.put(block, "pq", policy.pq.name());
    }

    /// An entity may have several blocks: those of one are one value.
    fn gateways(&mut self) {
        let mut subnets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for gateway in &self.config.subnet_gateways {
            let of = subnets.entry(self.names(&[gateway.entity])).or_default();
            of.insert(values::prefix_word(&gateway.prefix));
        }
        for (entity, subnets) in subnets {
            let block = Block("subnet_gateways", Some(&entity));
            self.put(&block, "subnet", list(subnets));
        }
    }

    fn authorities(&mut self) {
        let mut within: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for authority in &self.config.channel_authorities {
            let of = within.entry(self.names(&[authority.entity])).or_default();
            let prefix = authority.within.as_ref();
            of.insert(prefix.map_or_else(|| "any".to_owned(), ToString::to_string));
        }
        for (entity, within) in within {
            let block = Block("channel_authorities", Some(&entity));
            self.put(&block, "within", list(within));
        }
    }

    fn peer(&mut self, peer: &PeerConfig) {
        let block = Block("peers", Some(&peer.name));
        let name = |index: usize| {
            let peer = self.config.peers.get(index);
            peer.map_or("", |peer| peer.name.as_str())
        };
        let reach = match &peer.reach {
            Reach::Adjacent { address, interface } => {
                Some(("address", address.to_string(), interface.clone()))
            }
            Reach::Via { primary, backup } => {
                let hops = [Some(*primary), *backup].into_iter().flatten();
                Some(("via", list(hops.map(name)), None))
            }
            Reach::Learned => None,
        };
        match peer.node_key {
            PeerKey::Known(key) => self.put(&block, "node_key", hex::encode(&key)),
            PeerKey::Id(id) => self.put(&block, "node_id", id),
        }
        if let Some((key, value, interface)) = reach {
            self.put(&block, key, value);
            self.put_some(&block, "interface", interface);
        }
        self.put_some(&block, "subnet", peer.subnet);
        self.put_some(&block, "link_tags", peer.link_tags.map(LinkTags::name));
        if !peer.fallback.is_empty() {
            self.put(&block, "fallback", list(&peer.fallback));
        }
        if let Some(policy) = peer.handshake {
            self.handshake(&block, policy);
        }
    }

    fn channel(&mut self, channel: &ChannelConfig) {
        let block = Block("channels", Some(channel.name.as_str()));
        self.put(&block, "salt", channel.salt);
        self.put(&block, "priority", channel.priority);
        self.put(&block, "reliable", channel.mode.is_reliable());
        let is_ordered = matches!(channel.mode, Mode::Ordered | Mode::Signed);
        self.put(&block, "ordered", is_ordered);
        self.put(&block, "signed", channel.mode == Mode::Signed);
        self.put(&block, "hold_max_s", channel.hold_max_s);
        self.put(&block, "fan_out", channel.fan_out);
        self.put_some(&block, "max_rate_pps", channel.max_rate_pps);
        let visibility = values::visibility_word(channel.visibility);
        self.put(&block, "visibility", visibility);
        let exports = channel.export_to.iter().map(values::prefix_word);
        self.put(&block, "export_to", list(exports));
        self.asked(
            &block,
            &Asked {
                publish: &channel.publish,
                subscribe: &channel.subscribe,
                issuers: &channel.issuers,
                capabilities: &channel.capabilities,
            },
        );
        let kept = channel.keep.iter();
        kept.for_each(|keeping| self.keeping(&block, keeping));
    }

    fn keeping(&mut self, block: &Block<'_>, keeping: &Keeping) {
        let (retention, rules) = (&keeping.options.retention, keeping.compaction.as_ref());
        self.put(block, "persist", true);
        self.put(block, "durability", keeping.options.durability);
        self.put_some(block, "keep_events", retention.events_max);
        self.put_some(block, "keep_bytes", retention.bytes_max);
        self.put_some(block, "compact_by", rules.map(|rules| &rules.key));
        let removals = rules.and_then(|rules| rules.removals_after_ns);
        for (key, ns) in [
            ("keep_for", retention.age_ns_max),
            ("compact_after", rules.map(|rules| rules.after_ns)),
            ("compact_removals_after", removals),
        ] {
            let age = ns.map(Duration::from_nanos);
            self.put_some(block, key, age.map(humantime::format_duration));
        }
    }

    fn replicated(&mut self, replicated: &Replicated) {
        let block = Block("channels", Some(replicated.channel.as_str()));
        let nodes = replicated.replicas.iter().map(|replica| &replica.name);
        self.put(&block, "replicas", list(nodes));
        self.put(&block, "acks", replicated.acks);
    }

    fn scope(&mut self, scope: &ScopeConfig) {
        let block = Block("scopes", Some(scope.name.as_str()));
        self.put_some(&block, "max_rate_pps", scope.max_rate_pps);
        let visibility = values::visibility_word(scope.visibility);
        self.put(&block, "visibility", visibility);
        let exports = scope.export_to.iter().map(values::prefix_word);
        self.put(&block, "export_to", list(exports));
        self.asked(
            &block,
            &Asked {
                publish: &scope.publish,
                subscribe: &scope.subscribe,
                issuers: &scope.issuers,
                capabilities: &scope.capabilities,
            },
        );
    }

    fn asked(&mut self, block: &Block<'_>, asked: &Asked<'_>) {
        for (key, listed) in [("publish", asked.publish), ("subscribe", asked.subscribe)] {
            let names = match listed {
                Listed::Anyone => "anyone".to_owned(),
                Listed::Only(entities) => self.names(entities),
            };
            self.put(block, key, names);
        }
        self.put(block, "require_token", !asked.issuers.is_empty());
        self.put(block, "issuers", self.names(asked.issuers));
        let capabilities = asked.capabilities;
        self.put_some(block, "publish_caps", capabilities.publish.as_ref());
        self.put_some(block, "subscribe_caps", capabilities.subscribe.as_ref());
        let issuers = self.names(&capabilities.issuers);
        self.put(block, "capability_issuers", issuers);
    }
}

fn list<T: fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    match words.is_empty() {
        true => "none".to_owned(),
        false => words.join(", "),
    }
}

/// Tells one secret from another, and nothing of it: it is random and has 256 bits.
fn fingerprint(secret: &Secret) -> String {
    hex::encode_bytes(&keyed(b"virga fingerprint v1", &[secret.expose()])[..8])
}
