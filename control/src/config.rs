//! A node's configuration file: read, checked as a whole, and resolved into typed values.
//!
//! [`Config::load`] reads the TOML file and the three key files it names. Every rule is checked here and every
//! broken one is reported, each with its line and what to do, so that whatever comes later can take a [`Config`] at its
//! word: names refer to something, keys are valid points, routes lead over a peer that has an address, no two channels share a hash.

mod authorities;
mod channels;
pub(crate) mod discovery;
mod evidence;
mod fallback;
mod file;
mod handshake;
pub mod keeping;
mod metrics;
mod peers;
mod problem;
mod replicas;
mod routing;
mod rules;
pub(crate) mod scopes;
pub(crate) mod secrets;
pub mod settings;
mod subnets;
mod syntax;
pub(crate) mod values;

#[cfg(test)]
mod tests;

pub use authorities::Authority;
pub use channels::FAN_OUT_MAX;
pub use discovery::{Admit, DiscoverySection};
pub use evidence::CapabilityRules;
pub use fallback::FallbackSection;
pub use problem::{ConfigError, Problem};
pub use replicas::{ReplicaNode, Replicated, may_hold, named_replicas, noted_replicas};
pub use routing::RoutingSection;
pub use scopes::ScopeConfig;

use crate::{
    capability::Statements, kept::Keeping, keys::Keys, membership::Memberships, rights::Authentic,
};
use problem::Report;
use rules::KeySource;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};
use virga_ebpf::{
    hash,
    header::{ChannelHash, NodeId, OriginHash, Subnet},
    subnet::{SubnetPrefix, Visibility},
};
use virga_transport::{
    ChannelName, Congestion, HandshakePolicy, Mode, PeerKey, io::driver::DriverConfig,
};

/// Where the daemon of a node named NAME listens for `pub`, `sub` and `status`: `NAME.sock` here.
pub const SOCKET_DIRECTORY: &str = "/run/virga";
/// Folder of the nodes' state folders unless the configuration names others.
pub const STATE_DIRECTORY: &str = "/var/lib/virga";

/// A configuration file has no more bytes than this: many times what the largest mesh needs.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Everything one node is told, checked and resolved.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from, for messages.
    pub path: PathBuf,
    /// This node.
    pub node: NodeSection,
    /// How this node forwards.
    pub forwarding: ForwardingSection,
    /// Whether this node learns from its neighbours who leads where.
    pub routing: RoutingSection,
    /// Whether nodes that the file does not name are looked for; `None`: they are not.
    pub discovery: Option<DiscoverySection>,
    /// How sessions begin, with peers that say nothing else.
    pub handshake: HandshakePolicy,
    /// The other nodes, in the file's order; [`Reach::Via`] holds indices into this.
    pub peers: Vec<PeerConfig>,
    /// Entities that have a name: this node's own first, then the peers', then those named for their entity alone.
    pub entities: Vec<NamedEntity>,
    /// Who may publish and subscribe where.
    pub channels: Vec<ChannelConfig>,
    /// Channels whose log is on several nodes.
    pub replicated: Vec<Replicated>,
    /// What holds for whole subtrees of channels, the broadest first; [`Self::channels`] are narrowed by them.
    pub scopes: Vec<ScopeConfig>,
    /// Who vouches for subnets; where there is nobody, what is configured counts.
    pub subnet_issuers: Vec<Entity>,
    /// Whose filters of subnets count; where there is nobody, the exact pairs hold everywhere.
    pub subnet_gateways: Vec<SubnetGateway>,
    /// Seconds for which a filter counts that this node signs.
    pub filter_life_s: u32,
    /// `[[channel_authorities]]`
    pub channel_authorities: Vec<Authority>,
    /// TCP address that answers for metrics and health; `None`: none does.
    pub metrics: Option<SocketAddr>,
    /// What carries packets where UDP does not get through.
    pub fallback: FallbackSection,
    /// The secrets of the three key files.
    pub keys: Keys,
    /// Why this node does not speak for its entity; no file says that, but an entity moves ([`crate::identity`]).
    pub absence: Option<String>,
    /// Neighbours that were reached through NATs, and where; no file says that ([`Self::with_punched`]).
    pub punched: BTreeMap<NodeId, SocketAddr>,
}

impl Config {
    /// Where the exact pairs hold that this node has: the longest prefix of a gateway that its subnet lies in,
    /// or that subnet alone. `None` where no gateway is named: everywhere.
    #[must_use]
    pub fn exact_within(&self) -> Option<SubnetPrefix> {
        let prefixes = self.subnet_gateways.iter().map(|gateway| gateway.prefix);
        let around = prefixes.filter(|prefix| prefix.contains(self.node.subnet));
        let alone = SubnetPrefix {
            subnet: self.node.subnet,
            mask: u32::MAX,
        };
        let longest = around.max_by_key(|prefix| prefix.mask);
        (!self.subnet_gateways.is_empty()).then(|| longest.unwrap_or(alone))
    }

    /// Reads the file at `path` and the key files that it names; those are relative to its folder.
    ///
    /// # Errors
    /// [`ConfigError`] with every broken rule, each with its line and what to do.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read {
            path: path.into(),
            source,
        };
        let mut bytes = Vec::new();
        let file = crate::files::open(path).map_err(unreadable)?;
        let mut most = file.take(FILE_BYTES_MAX + 1);
        most.read_to_end(&mut bytes).map_err(unreadable)?;
        if most.limit() == 0 {
            return Err(ConfigError::TooLarge { path: path.into() });
        }
        let text = problem::text(&bytes).map_err(|(line, what)| ConfigError::NotText {
            path: path.into(),
            line,
            what,
        })?;
        Self::parse(text, path, KeySource::Files)
    }

    /// The same from a text that is already there, with keys that are already there: the key files
    /// must be named and are not read.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every broken rule.
    pub fn from_toml(text: &str, path: &Path, keys: Keys) -> Result<Self, ConfigError> {
        Self::parse(text, path, KeySource::Given(keys))
    }

    fn parse(text: &str, path: &Path, source: KeySource) -> Result<Self, ConfigError> {
        let mut report = Report::new(text);
        let config = file::read(text, &mut report)
            .and_then(|file| rules::resolve(path, file, source, &mut report));
        config.ok_or_else(|| ConfigError::Invalid {
            path: path.into(),
            problems: report.into_problems(),
        })
    }

    /// What the file calls an entity.
    #[must_use]
    pub fn entity_name(&self, key: &[u8; 32]) -> Option<&str> {
        let named = self
            .entities
            .iter()
            .find(|named| named.entity.key == *key)?;
        Some(&named.name)
    }

    /// Whether packets to and from a neighbour carry link tags.
    #[must_use]
    pub fn link_tags(&self, peer: &PeerConfig) -> LinkTags {
        peer.link_tags.unwrap_or(self.forwarding.link_tags)
    }

    /// How sessions with a peer begin.
    #[must_use]
    pub fn handshake_with(&self, peer: &PeerConfig) -> HandshakePolicy {
        peer.handshake.unwrap_or(self.handshake)
    }

    /// Neighbours that link tags are to be agreed on with.
    pub fn tagged(&self) -> impl Iterator<Item = NodeId> + '_ {
        let neighbours = self.peers.iter().filter(|peer| {
            matches!(peer.reach, Reach::Adjacent { .. })
                && self.link_tags(peer) != LinkTags::Off
                && self.shares_address(peer).is_none()
        });
        neighbours.map(|peer| peer.id)
    }

    /// Who else has a neighbour's IP address: what arrives from there does not tell which of them sent it.
    #[must_use]
    pub fn shares_address(&self, peer: &PeerConfig) -> Option<&str> {
        let ip = |peer: &PeerConfig| match peer.reach {
            Reach::Adjacent { address, .. } => Some(address.ip()),
            Reach::Via { .. } | Reach::Learned => None,
        };
        let own = ip(peer)?;
        let mut others = self.peers.iter().filter(|other| other.id != peer.id);
        let other = others.find(|other| ip(other) == Some(own))?;
        Some(&other.name)
    }

    /// The peer of that name.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&PeerConfig> {
        self.peers.iter().find(|peer| peer.name == name)
    }
}

pub(crate) use values::{is_low_order, is_weak, read_node_id};

/// A node's name as the command line takes it.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn valid_name(text: &str) -> Result<String, String> {
    values::name(text).map_err(|fault| fault.to_string())
}

/// A peer's address as the command line takes it.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn valid_address(text: &str) -> Result<SocketAddr, String> {
    values::address(text).map_err(|fault| fault.to_string())
}

/// An address to listen on, as the command line takes it.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn valid_listen(text: &str) -> Result<SocketAddr, String> {
    values::listen(text).map_err(|fault| fault.to_string())
}

/// The `[node]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSection {
    /// 1 to 32 of `a-z 0-9 -`: names the pins and the socket.
    pub name: String,
    /// Id of the network; nodes of another one are refused in the handshake.
    pub network: String,
    /// What the header calls this node.
    pub id: NodeId,
    /// What the header calls this node's entity.
    pub origin: OriginHash,
    /// Which generation of the network PSK `psk_file` holds.
    pub psk_generation: u16,
    /// The X25519 node key.
    pub node_key_file: PathBuf,
    /// The ed25519 entity key.
    pub entity_key_file: PathBuf,
    /// The network's pre-shared key.
    pub psk_file: PathBuf,
    /// UDP address and port of the mesh; never multicast, port never 0.
    pub listen: SocketAddr,
    /// This node's own subnet.
    pub subnet: Subnet,
    /// The local API's Unix socket; absolute, short enough for `sun_path`.
    pub socket: PathBuf,
    /// Group that may use the socket, beside root.
    pub socket_group: Option<String>,
    /// The threads that have the sessions.
    pub workers: Workers,
    /// What moves the workers' datagrams.
    pub driver: DriverConfig,
    /// Whether AF_XDP may do without copies.
    pub zero_copy: ZeroCopy,
    /// What keeps sessions from sending more than their paths carry.
    pub congestion: Congestion,
    /// Tokens of this node's entity, each authentic and its own.
    pub tokens: Vec<Authentic>,
    /// What issuers say of this node's entity, and it of itself.
    pub statements: Statements,
    /// Where issuers say that this node is.
    pub memberships: Memberships,
    /// Folder of what the node keeps over a restart; made when there is something.
    pub state: PathBuf,
    /// Folder of the logs of channels that are kept; made when there is one.
    pub logs: PathBuf,
}

/// How many workers a node has, and where they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One for each physical core that the process may use, pinned to it.
    Auto,
    /// So many, 1 to 256; the kernel places them.
    Number(usize),
    /// One for each of these cores, pinned to it; at least one, none twice.
    Cores(Vec<usize>),
}

/// Whether AF_XDP leaves packets in the NIC's own memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// It copies them.
    #[default]
    Off,
    /// It leaves them where the driver's profile in `hw/` says that it can.
    Listed,
}

/// The `[forwarding]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardingSection {
    /// Which forwarding path is asked for.
    pub mode: ForwardingMode,
    /// Interfaces that get the XDP program; never empty in the modes `native` and `generic`.
    pub interfaces: Vec<String>,
    /// Destinations that the route table is made for; at least as many as there are peers.
    pub destinations_max: u32,
    /// Whether packets between this node and its neighbours carry link tags.
    pub link_tags: LinkTags,
    /// Seconds after which a link's key gives way to the next, at least [`LINK_KEY_S_MIN`].
    pub link_key_s: u32,
    /// Milliseconds between two packets of a link's keepalive; 0: links are not watched.
    pub keepalive_ms: u32,
    /// Such times without any packet after which a link is dead.
    pub detect_multiplier: u32,
}

/// Milliseconds between two packets of a link's keepalive where the file does not say: with
/// [`DETECT_MULTIPLIER`] a dead link is found within 50.
pub const KEEPALIVE_MS: u32 = 10;
/// See [`ForwardingSection::detect_multiplier`], where the file does not say.
pub const DETECT_MULTIPLIER: u32 = 4;

/// Shortest life of a link's key in seconds: well above what agreeing on the next one takes.
pub const LINK_KEY_S_MIN: u32 = 5;
/// Life of a link's key in seconds where the file does not say.
pub const LINK_KEY_S: u32 = 3_600;

/// Whether packets between two neighbours carry link tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkTags {
    /// Where both can, from when they have agreed on keys.
    #[default]
    Auto,
    /// Always: what comes without one is dropped, also before keys are agreed on.
    Require,
    /// Never.
    Off,
}

impl LinkTags {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Require, Self::Off];

    /// As the file spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Require => "require",
            Self::Off => "off",
        }
    }
}

/// Which forwarding path is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardingMode {
    /// Native XDP where it attaches, else user space, with the reason logged and in `status`.
    #[default]
    Auto,
    /// XDP in the driver, or the node does not start.
    Native,
    /// XDP after the driver, in the kernel's generic path: slower, and only when asked for.
    Generic,
    /// No XDP: the same verdicts over the UDP socket.
    Userspace,
}

/// One `[[peers]]` block that names a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// 1 to 32 of `a-z 0-9 -`, unlike any other name in the file.
    pub name: String,
    /// X25519 public key, never of low order; or the id alone, before the first contact.
    pub node_key: PeerKey,
    /// What the header calls this node; unlike any other in the file.
    pub id: NodeId,
    /// ed25519 public key, never weak.
    pub entity_key: [u8; 32],
    /// What the header calls its entity; unlike any other in the file.
    pub origin: OriginHash,
    /// The entities that live there; the file's own one alone, until others move ([`crate::identity`]).
    pub entities: Vec<[u8; 32]>,
    /// How packets get there.
    pub reach: Reach,
    /// Its subnet, and what those of packets that arrive from it must lie in; `None`: the root, and any.
    pub subnet: Option<PeerSubnet>,
    /// Whether packets to and from this neighbour carry link tags; `None`: as those of all.
    pub link_tags: Option<LinkTags>,
    /// How sessions with it begin; `None`: as those with all.
    pub handshake: Option<HandshakePolicy>,
    /// Where this neighbour is dialled when UDP does not get through, the best first.
    pub fallback: Vec<virga_carrier::Target>,
}

impl PeerConfig {
    /// Whether it is next to this node: such nodes tell each other who may publish where.
    #[must_use]
    pub const fn is_adjacent(&self) -> bool {
        matches!(self.reach, Reach::Adjacent { .. })
    }
}

/// How packets get to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Next to this node.
    Adjacent {
        /// Where its UDP socket listens; unlike any other peer's.
        address: SocketAddr,
        /// Egress interface; `None`: the kernel's route decides.
        interface: Option<String>,
    },
    /// Over another peer, given as index into [`Config::peers`] and itself adjacent.
    Via {
        /// The next hop while it is alive.
        primary: usize,
        /// The next hop when `primary` is dead; never the same.
        backup: Option<usize>,
    },
    /// As neighbours say; only with [`RoutingSection::is_enabled`].
    Learned,
}

/// Where a peer is, and what it may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSubnet {
    /// Its subnet.
    pub subnet: Subnet,
    /// The bits of it that the subnet of whatever arrives from this neighbour must share.
    pub mask: u32,
}

/// Who says which pairs a subnet admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetGateway {
    /// The gateway.
    pub entity: Entity,
    /// The subnet, or all that lie in one.
    pub prefix: SubnetPrefix,
}

impl PeerSubnet {
    /// The root, and all.
    pub const ALL: Self = Self {
        subnet: Subnet(0),
        mask: 0,
    };

    /// Reads `1.2.0.0`, or `1.2.0.0/8` where less than all of its levels counts.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        values::peer_subnet(text).map_err(|fault| fault.to_string())
    }
}

impl fmt::Display for PeerSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels = Ipv4Addr::from_bits(self.subnet.0);
        write!(f, "{levels}/{}", self.mask.leading_ones())
    }
}

impl PeerConfig {
    /// Where it is, and what it may carry.
    #[must_use]
    pub fn place(&self) -> PeerSubnet {
        self.subnet.unwrap_or(PeerSubnet::ALL)
    }
}

/// An entity's public key and what the header calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entity {
    /// ed25519 public key, never weak.
    pub key: [u8; 32],
    /// Its keyed hash.
    pub origin: OriginHash,
}

impl Entity {
    /// The entity of a key that was checked already.
    #[must_use]
    pub fn from_key(key: [u8; 32]) -> Self {
        Self {
            key,
            origin: hash::origin_hash(&key),
        }
    }
}

/// An entity that the file gives a name to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEntity {
    /// The name of its `[[peers]]` block, or of this node.
    pub name: String,
    /// Who it is.
    pub entity: Entity,
}

/// Whom a channel's list names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// There is no list: whoever proves the right by a token or capabilities. Only where they are asked for.
    Anyone,
    /// These at most; no duplicates.
    Only(Vec<Entity>),
}

impl Listed {
    /// Whether the list does not keep this entity out.
    #[must_use]
    pub fn contains(&self, key: &[u8; 32]) -> bool {
        match self {
            Self::Anyone => true,
            Self::Only(entities) => entities.iter().any(|entity| entity.key == *key),
        }
    }

    /// Those that stand in it.
    #[must_use]
    pub fn named(&self) -> &[Entity] {
        match self {
            Self::Anyone => &[],
            Self::Only(entities) => entities,
        }
    }
}

/// One `[[channels]]` block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelConfig {
    /// The full name, `$node` expanded.
    pub name: ChannelName,
    /// Keeps two names apart that would share a hash.
    pub salt: u32,
    /// What the header calls it; unlike any other channel's in the file.
    pub hash: ChannelHash,
    /// Class 0 to 6.
    pub priority: u8,
    /// What streams of this channel promise: `reliable` and `ordered` in one.
    pub mode: Mode,
    /// Seconds after which a subscriber that does not read holds a reliable channel up no longer.
    pub hold_max_s: u32,
    /// Nodes that a publisher serves itself, where others pass its events on; 0: all.
    pub fan_out: u8,
    /// Packets a second that one origin may send; at least 1.
    pub max_rate_pps: Option<u32>,
    /// How far its packets go among subnets.
    pub visibility: Visibility,
    /// Where an exported channel goes; empty for others.
    pub export_to: BTreeSet<SubnetPrefix>,
    /// Who may publish.
    pub publish: Listed,
    /// Who may subscribe.
    pub subscribe: Listed,
    /// Whose tokens count; no duplicates. Where it is empty, none is required.
    pub issuers: Vec<Entity>,
    /// What is asked of capabilities.
    pub capabilities: CapabilityRules,
    /// How this node keeps it; `None`: it does not.
    pub keep: Option<Keeping>,
    /// The scopes around it, the broadest first. Lists, visibility and rate are what they leave of the channel's own;
    /// the tokens and capabilities that they ask for come on top.
    pub scopes: Vec<ScopeConfig>,
}
