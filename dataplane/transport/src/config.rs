//! What a node is told at the start.

use crate::{
    limits,
    policy::{HandshakePolicy, PeerKey},
    share::Share,
};
use thiserror::Error;
use virga_ebpf::header::{NodeId, Subnet};
use zeroize::Zeroize;

/// Everything that a [`crate::Node`] needs to know; its secrets are wiped on drop.
pub struct NodeConfig {
    /// Name of the network; both ends must have the same.
    pub network_id: String,
    /// The network's pre-shared key.
    pub psk: [u8; 32],
    /// Which pre-shared key that is.
    pub psk_generation: u16,
    /// This node's X25519 secret key.
    pub node_key: [u8; 32],
    /// The ed25519 seed of the entity on this node.
    pub entity_key: [u8; 32],
    /// This node's subnet, as its headers carry it.
    pub subnet: Subnet,
    /// The nodes that this node may have sessions with; [`crate::Node::set_peers`] gives others later.
    pub peers: Vec<PeerConfig>,
    /// Which of them this [`crate::Node`] has sessions with: another worker has the others.
    pub share: Share,
    /// How sessions begin, with peers that say nothing else.
    pub handshake: HandshakePolicy,
    /// Numbers that an operator or a test may change.
    pub limits: NodeLimits,
    /// Unix time at `now_ns` 0: their sum dates this node's initiations, and must grow from one start
    /// to the next. Peers take an initiation older than the last one that was proven for a replay,
    /// and answer it only when it returns their cookie.
    pub started_unix_ns: u64,
    /// Seed of all session ids, ephemeral keys and jitter: fresh from the system at each start.
    pub seed: [u8; 32],
}

impl Drop for NodeConfig {
    fn drop(&mut self) {
        self.psk.zeroize();
        self.node_key.zeroize();
        self.entity_key.zeroize();
        self.seed.zeroize();
    }
}

/// One node that sessions are allowed with, and an entity that may prove itself there. Where several
/// entities may, the node is listed once with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its X25519 public key, or its id alone.
    pub node_key: PeerKey,
    /// Its entity's ed25519 public key.
    pub entity_key: [u8; 32],
    /// How sessions with it begin; none where the node's own policy says.
    pub handshake: Option<HandshakePolicy>,
}

/// What keeps a session from sending more than its path carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Congestion {
    /// CUBIC (RFC 9438): what most traffic on the Internet runs under.
    #[default]
    Cubic,
    /// BBR version 1: follows the rate that the path delivers at; for paths that lose packets at
    /// random, or have deep buffers.
    Bbr,
}

impl Congestion {
    /// As the configuration spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

/// The numbers that an operator or a test may change; the rest is in [`limits`]. Those of all sessions
/// together, or of all handshakes, are the whole node's: each worker has its part of them, rounded up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLimits {
    /// Sessions of all kinds, half-open ones included.
    pub sessions_max: usize,
    /// Sessions whose peer has not proven its entity; at most `sessions_max`.
    pub half_open_max: usize,
    /// Streams of one session that each side may open.
    pub streams_max: usize,
    /// Handshakes a second above which a cookie is asked for; 0 asks always.
    pub handshakes_per_second: u64,
    /// Handshakes a second that one ingress source may have, once a cookie is asked for.
    pub handshakes_per_second_per_source: u64,
    /// A handshake that has not become a proven session by then is forgotten.
    pub handshake_deadline_ns: u64,
    /// An unanswered initiation travels again after this, doubling each time.
    pub handshake_retry_ns: u64,
    /// Shortest wait between two attempts to connect.
    pub backoff_ns_min: u64,
    /// Longest wait between two attempts to connect.
    pub backoff_ns_max: u64,
    /// A session that was silent this long sends a ping.
    pub keepalive_ns: u64,
    /// A session whose peer was silent this long is closed; more than `keepalive_ns`.
    pub idle_ns_max: u64,
    /// A link that is watched carries a frame of the keepalive this often, in whole microseconds; 0: none is
    /// watched.
    pub link_interval_ns: u64,
    /// A watched link on which nothing came for so many intervals is dead.
    pub link_misses: u32,
    /// A challenge that came straight from where the peer is known to be is answered there, too: where what else goes
    /// to it goes over routers, that is how it learns that the straight way carries packets.
    pub answers_straight: bool,
    /// A closed session is remembered this long, so that late packets are not answered by a reset.
    pub drain_ns: u64,
    /// Keys are replaced after this long.
    pub rekey_after_ns: u64,
    /// Keys are replaced after this many packets in one direction.
    pub rekey_after_packets: u64,
    /// Keys are replaced after this many bytes in one direction.
    pub rekey_after_bytes: u64,
    /// Keys are replaced after this many failed opens.
    pub failed_opens_rekey: u64,
    /// A session is closed after this many failed opens under one key; more than the former.
    pub failed_opens_close: u64,
    /// A session is closed before a sequence passes this.
    pub sequence_max: u64,
    /// What keeps sessions from sending more than their paths carry.
    pub congestion: Congestion,
    /// Largest datagram that sessions try, from [`limits::DATAGRAM_BYTES_MIN`] (which is not
    /// tried, but known) to [`limits::DATAGRAM_BYTES_MAX`].
    pub datagram_bytes_max: usize,
}

impl Default for NodeLimits {
    fn default() -> Self {
        const SECOND_NS: u64 = 1_000_000_000;
        Self {
            sessions_max: 16_384,
            half_open_max: 1_024,
            streams_max: 1_024,
            handshakes_per_second: 512,
            handshakes_per_second_per_source: 32,
            handshake_deadline_ns: 10 * SECOND_NS,
            handshake_retry_ns: SECOND_NS / 2,
            backoff_ns_min: SECOND_NS / 5,
            backoff_ns_max: 30 * SECOND_NS,
            keepalive_ns: 10 * SECOND_NS,
            idle_ns_max: 35 * SECOND_NS,
            link_interval_ns: SECOND_NS / 100,
            link_misses: 4,
            answers_straight: false,
            drain_ns: 3 * SECOND_NS,
            rekey_after_ns: 120 * SECOND_NS,
            rekey_after_packets: 1 << 32,
            rekey_after_bytes: 1 << 40,
            failed_opens_rekey: limits::FAILED_OPENS_REKEY,
            failed_opens_close: limits::FAILED_OPENS_CLOSE,
            sequence_max: limits::SEQUENCE_MAX,
            congestion: Congestion::Cubic,
            datagram_bytes_max: limits::DATAGRAM_BYTES_MAX,
        }
    }
}

/// Why a [`NodeConfig`] cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No network, or too long a name.
    #[error(
        "the network id must have 1 to {} bytes, not {bytes}",
        limits::NETWORK_ID_BYTES_MAX
    )]
    NetworkId {
        /// How many it has.
        bytes: usize,
    },
    /// Two peers with one node id: the same keys, or a collision.
    #[error("two peers have the node id {0}: remove one, or make a new node key")]
    DuplicatePeer(NodeId),
    /// A peer is this very node.
    #[error("peer {0} is this node itself: remove it from the peers")]
    PeerIsSelf(NodeId),
    /// More than the table holds.
    #[error("{peers} peers are configured; at most {} fit", limits::PEERS_MAX)]
    TooManyPeers {
        /// How many there are.
        peers: usize,
    },
    /// A peer's entity key is not a point that a signature could be verified with.
    #[error("the entity key of peer {0} is not a valid ed25519 public key")]
    EntityKey(NodeId),
    /// A limit that contradicts another.
    #[error("limit {limit}: {must}")]
    Limit {
        /// Its name.
        limit: &'static str,
        /// What it must be.
        must: &'static str,
    },
}

impl NodeLimits {
    /// One worker's part of what is the whole node's; it has the sessions with `peers` of them. Where chance
    /// gave it many, their sessions fit all the same, with one more each that ends or begins: the parts may then
    /// sum to more than the whole.
    pub(crate) fn part(&self, share: Share, peers: usize) -> Self {
        let per_second = |all: u64| all.div_ceil(u64::from(share.workers()));
        let most = |all: usize, least: usize| {
            let part = all.div_ceil(usize::from(share.workers()));
            part.max(least.min(all))
        };
        Self {
            sessions_max: most(self.sessions_max, 2 * peers),
            half_open_max: most(self.half_open_max, limits::HALF_OPEN_PART_MIN),
            handshakes_per_second: per_second(self.handshakes_per_second),
            handshakes_per_second_per_source: per_second(self.handshakes_per_second_per_source),
            ..self.clone()
        }
    }

    /// Checks each number against its relatives.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let longest_ns = [
            self.handshake_deadline_ns,
            self.handshake_retry_ns,
            self.backoff_ns_max,
            self.idle_ns_max,
            self.drain_ns,
            self.rekey_after_ns,
        ]
        .into_iter()
        .fold(0, u64::max);
        let rules = [
            (self.half_open_max > 0, "half_open_max", "must be above 0"),
            (
                self.half_open_max <= self.sessions_max,
                "half_open_max",
                "is above sessions_max",
            ),
            (
                longest_ns <= limits::DURATION_NS_MAX,
                "a duration",
                "is above a year",
            ),
            (self.streams_max > 0, "streams_max", "must be above 0"),
            (
                self.handshake_retry_ns > 0,
                "handshake_retry_ns",
                "must be above 0",
            ),
            (
                self.handshake_deadline_ns > 0,
                "handshake_deadline_ns",
                "must be above 0",
            ),
            (self.backoff_ns_min > 0, "backoff_ns_min", "must be above 0"),
            (
                self.backoff_ns_min <= self.backoff_ns_max,
                "backoff_ns_min",
                "is above the maximum",
            ),
            (self.keepalive_ns > 0, "keepalive_ns", "must be above 0"),
            (
                self.keepalive_ns < self.idle_ns_max,
                "keepalive_ns",
                "must be below idle_ns_max",
            ),
            (
                self.link_interval_ns == 0
                    || (1_000..=limits::LINK_INTERVAL_NS_MAX).contains(&self.link_interval_ns),
                "link_interval_ns",
                "must be 0, or a microsecond to ten seconds",
            ),
            (
                (2..=limits::LINK_MISSES_MAX).contains(&self.link_misses),
                "link_misses",
                "must be 2 to 255",
            ),
            (self.rekey_after_ns > 0, "rekey_after_ns", "must be above 0"),
            (
                self.rekey_after_packets > 0,
                "rekey_after_packets",
                "must be above 0",
            ),
            (
                self.rekey_after_bytes > 0,
                "rekey_after_bytes",
                "must be above 0",
            ),
            (
                self.failed_opens_rekey > 0,
                "failed_opens_rekey",
                "must be above 0",
            ),
            (
                self.failed_opens_rekey < self.failed_opens_close,
                "failed_opens_close",
                "must be above failed_opens_rekey",
            ),
            (
                self.sequence_max <= limits::SEQUENCE_MAX,
                "sequence_max",
                "must be below 2^62",
            ),
            (
                (limits::DATAGRAM_BYTES_MIN..=limits::DATAGRAM_BYTES_MAX)
                    .contains(&self.datagram_bytes_max),
                "datagram_bytes_max",
                "must be 1232 to 65507",
            ),
        ];
        match rules.into_iter().find(|rule| !rule.0) {
            Some((_, limit, must)) => Err(ConfigError::Limit { limit, must }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_chance_gave_many_peers_has_places_for_all() {
        let limits = NodeLimits::default();
        let shares: Vec<Share> = Share::split(64).collect();
        assert_eq!(limits.part(shares[0], 0).sessions_max, 256);
        assert_eq!(limits.part(shares[0], 300).sessions_max, 600);
        assert_eq!(limits.part(Share::WHOLE, 20_000).sessions_max, 16_384);
        let few = NodeLimits {
            sessions_max: 8,
            half_open_max: 4,
            ..limits.clone()
        };
        let part = few.part(shares[0], 300);
        assert_eq!((part.sessions_max, part.half_open_max), (8, 4));
        for share in Share::split(256) {
            let part = limits.part(share, 60);
            assert!(part.half_open_max > limits::HALF_OPEN_PER_PEER_MAX);
        }
    }
}
