//! Every key of the configuration file by section, and whether a running node takes a change of it up.

use serde::{Deserialize, Serialize};

/// What it takes to have a change of a key count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// `virga reload`, or SIGHUP.
    Reload,
    /// A restart.
    Restart,
}

impl Effect {
    /// A word for people, as the comments of `control/example.toml` have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Restart => "restart",
        }
    }
}

/// Every key, by section: what a reload applies, and what takes a restart.
pub const KEYS: &[(&str, Effect, &[&str])] = &[
    (
        "node",
        Effect::Restart,
        &[
            "name",
            "network",
            "node_key_file",
            "entity_key_file",
            "psk_file",
            "psk_generation",
            "listen",
            "subnet",
            "socket",
            "socket_group",
            "congestion",
            "workers",
            "worker_cores",
            "driver",
            "busy_poll_us",
            "wake_completions",
            "zero_copy",
            "tokens",
            "capabilities",
            "memberships",
            "state",
            "logs",
        ],
    ),
    (
        "forwarding",
        Effect::Restart,
        &[
            "mode",
            "interfaces",
            "destinations_max",
            "keepalive_ms",
            "detect_multiplier",
        ],
    ),
    ("forwarding", Effect::Reload, &["link_tags", "link_key_s"]),
    ("routing", Effect::Restart, &["enabled", "by_subnet"]),
    ("nat", Effect::Restart, &["enabled"]),
    ("nat", Effect::Reload, &["port_mapping"]),
    (
        "discovery",
        Effect::Restart,
        &[
            "admit",
            "seeds",
            "exchange",
            "file",
            "advertise",
            "max_peers",
            "lan",
        ],
    ),
    ("handshake", Effect::Reload, &["pattern", "pq"]),
    ("metrics", Effect::Reload, &["listen"]),
    (
        "fallback",
        Effect::Restart,
        &[
            "listen_tcp",
            "listen_ws",
            "certificate",
            "certificate_key",
            "trust",
            "after_ms",
            "probe_s",
        ],
    ),
    ("subnets", Effect::Restart, &["issuers", "filter_life_s"]),
    ("subnet_gateways", Effect::Restart, &["entity", "subnet"]),
    (
        "peers",
        Effect::Reload,
        &[
            "name",
            "node_key",
            "node_id",
            "entity_key",
            "address",
            "interface",
            "subnet",
            "link_tags",
            "pattern",
            "pq",
            "via",
            "fallback",
        ],
    ),
    (
        "channels",
        Effect::Reload,
        &[
            "name",
            "salt",
            "priority",
            "reliable",
            "ordered",
            "signed",
            "hold_max_s",
            "fan_out",
            "max_rate_pps",
            "visibility",
            "export_to",
            "publish",
            "subscribe",
            "require_token",
            "issuers",
            "publish_caps",
            "subscribe_caps",
            "capability_issuers",
        ],
    ),
    (
        "channels",
        Effect::Restart,
        &[
            "persist",
            "durability",
            "keep_events",
            "keep_bytes",
            "keep_for",
            "compact_by",
            "compact_after",
            "compact_removals_after",
            "replicas",
            "acks",
        ],
    ),
    (
        "scopes",
        Effect::Reload,
        &[
            "name",
            "max_rate_pps",
            "visibility",
            "export_to",
            "publish",
            "subscribe",
            "require_token",
            "issuers",
            "publish_caps",
            "subscribe_caps",
            "capability_issuers",
        ],
    ),
    ("channel_authorities", Effect::Reload, &["entity", "within"]),
];

/// What a change of a key takes; none where there is no such key.
#[must_use]
pub fn effect(section: &str, key: &str) -> Option<Effect> {
    let mut lines = KEYS.iter().filter(|(name, ..)| *name == section);
    let line = lines.find(|(.., keys)| keys.contains(&key))?;
    Some(line.1)
}
