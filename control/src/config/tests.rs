//! The example file, what a valid file comes to, and how errors read.

use super::{file, *};
use crate::{
    hex,
    keys::{EntityKey, NodeKey, Secret},
};
use virga_transport::io::driver::Choice;

mod capabilities;
mod fallback;
mod gateways;
mod handshake;
mod kept;
mod metrics;
mod peers;
mod replicas;
mod routing;
mod rules;
mod scopes;
mod settings;
mod subnets;
mod three_hosts;
mod written;

const EXAMPLE: &str = include_str!("../../example.toml");

fn secret(fill: u8) -> Secret {
    Secret::new([fill; 32])
}

fn node_key(fill: u8) -> String {
    hex::encode(&NodeKey::from(secret(fill)).public)
}

fn entity_key(fill: u8) -> String {
    hex::encode(&EntityKey::from(secret(fill)).public)
}

fn keys() -> Keys {
    Keys {
        node: secret(1).into(),
        entity: secret(2).into(),
        psk: secret(3),
    }
}

const NODE: &str = r#"
[node]
name = "us"
network = "demo"
node_key_file = "node.key"
entity_key_file = "entity.key"
psk_file = "network.psk"
listen = "10.0.0.1:4783"
"#;

/// A node with two neighbours, `one` and `two`, and `far` behind both.
fn mesh() -> String {
    let mut text = NODE.to_owned();
    for (name, fill, rest) in [
        ("one", 10, "address = \"10.0.0.2:4783\""),
        ("two", 20, "address = \"10.0.0.3:4783\""),
        ("far", 30, "via = [\"one\", \"two\"]"),
    ] {
        text.push_str(&peer(name, fill, rest));
    }
    text
}

fn peer(name: &str, fill: u8, rest: &str) -> String {
    let (node_key, entity_key) = (node_key(fill), entity_key(fill + 1));
    format!(
        "\n[[peers]]\nname = \"{name}\"\nnode_key = \"{node_key}\"\nentity_key = \"{entity_key}\"\n{rest}\n"
    )
}

fn channel(name: &str, rest: &str) -> String {
    format!("\n[[channels]]\nname = \"{name}\"\npublish = [\"us\"]\n{rest}\n")
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::from_toml(text, Path::new("/etc/virga/us.toml"), keys())
}

fn problems(text: &str) -> Vec<Problem> {
    match parse(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => error.problems().to_vec(),
    }
}

/// The only problem of `text`, which must be about `key` and say `what` or `fix`.
#[track_caller]
fn refused(text: &str, key: &str, say: &str) -> Problem {
    let problems = problems(text);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    let problem = problems[0].clone();
    assert_eq!(problem.key, key, "{problem}");
    assert!(problem.to_string().contains(say), "{problem}");
    problem
}

#[test]
fn the_example_is_valid_and_shows_every_key() {
    let config = parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.node.name, "edge-a");
    assert_eq!(
        (
            config.peers.len(),
            config.entities.len(),
            config.channels.len()
        ),
        (4, 6, 3)
    );
    let table: toml::Table = EXAMPLE.parse().unwrap();
    let blocks = |name: &str| table[name].as_array().unwrap().clone();
    let has =
        |blocks: &[toml::Value], key: &str| blocks.iter().any(|block| block.get(key).is_some());
    for key in file::fields::<file::File>() {
        assert!(table.contains_key(key), "{key}");
    }
    for (section, keys) in [
        ("node", file::fields::<file::Node>()),
        ("forwarding", file::fields::<file::Forwarding>()),
        ("subnets", file::fields::<file::Subnets>()),
        ("routing", file::fields::<file::Routing>()),
        ("handshake", file::fields::<file::Handshake>()),
        ("metrics", file::fields::<file::Metrics>()),
        ("fallback", file::fields::<file::Fallback>()),
    ] {
        for key in keys {
            assert!(table[section].get(key).is_some(), "{section}.{key}");
        }
    }
    for (section, keys) in [
        ("peers", file::fields::<file::Peer>()),
        ("channels", file::fields::<file::Channel>()),
        (
            "channel_authorities",
            file::fields::<file::ChannelAuthority>(),
        ),
        ("scopes", file::fields::<file::Scope>()),
        ("subnet_gateways", file::fields::<file::SubnetGateway>()),
    ] {
        for key in keys {
            assert!(has(&blocks(section), key), "{section}.{key}");
        }
    }
}

#[test]
fn the_defaults_are_those_that_the_example_states() {
    let config = parse(&format!("{NODE}{}", channel("a", ""))).unwrap();
    assert_eq!(config.node.psk_generation, 0);
    assert_eq!(config.node.subnet, Subnet(0));
    assert_eq!(config.node.socket, Path::new("/run/virga/us.sock"));
    assert_eq!(
        (config.node.socket_group, config.node.workers),
        (None, Workers::Number(1))
    );
    assert_eq!(config.metrics, None);
    assert_eq!(config.forwarding.link_tags, LinkTags::Auto);
    assert_eq!(config.forwarding.link_key_s, LINK_KEY_S);
    let detect_ms = config.forwarding.keepalive_ms * config.forwarding.detect_multiplier;
    assert!((1..50).contains(&detect_ms));
    assert_eq!(config.node.driver, DriverConfig::default());
    assert_eq!(config.node.driver.choice, Choice::Auto);
    assert_eq!(config.forwarding.mode, ForwardingMode::Auto);
    assert!(config.forwarding.interfaces.is_empty());
    assert_eq!(config.forwarding.destinations_max, 65_536);
    let channel = &config.channels[0];
    assert_eq!(
        (channel.salt, channel.priority, channel.mode),
        (0, 0, Mode::Ordered)
    );
    assert_eq!(channel.hold_max_s, 30);
    assert_eq!(channel.max_rate_pps, None);
    assert_eq!(channel.visibility, Visibility::Global);
    assert_eq!(channel.subscribe, Listed::Only(Vec::new()));
}

#[test]
fn reliable_and_ordered_say_what_a_channel_promises() {
    for (lines, mode) in [
        ("reliable = true\nordered = true", Mode::Ordered),
        ("ordered = false", Mode::Unordered),
        ("reliable = false", Mode::Unreliable),
    ] {
        let config = parse(&format!("{NODE}{}", channel("a", lines))).unwrap();
        assert_eq!(config.channels[0].mode, mode);
    }
}

#[test]
fn everything_is_resolved() {
    let config = parse(&format!(
        "{}{}",
        mesh(),
        channel(
            "metrics/$node",
            &format!("subscribe = [\"far\", \"{}\"]", entity_key(99))
        )
    ))
    .unwrap();
    let keys = keys();
    assert_eq!(
        (config.node.id, config.node.origin),
        (keys.node.id, keys.entity.origin)
    );
    assert_eq!(config.node.node_key_file, Path::new("/etc/virga/node.key"));
    let far = config.peer("far").unwrap();
    assert_eq!(
        far.reach,
        Reach::Via {
            primary: 0,
            backup: Some(1)
        }
    );
    assert_eq!(far.id, hash::node_id(&far.node_key.known().unwrap()));
    assert_eq!(far.origin, hash::origin_hash(&far.entity_key));
    let address = "10.0.0.2:4783".parse().unwrap();
    assert_eq!(
        config.peers[0].reach,
        Reach::Adjacent {
            address,
            interface: None
        }
    );
    let channel = &config.channels[0];
    assert_eq!(channel.name.as_str(), "metrics/us");
    assert_eq!(channel.hash, hash::channel_hash(0, "metrics/us"));
    assert_eq!(
        channel.publish.named(),
        [Entity::from_key(keys.entity.public)]
    );
    assert_eq!(channel.subscribe.named()[0].key, far.entity_key);
    assert_eq!(config.entity_name(&far.entity_key), Some("far"));
    assert_eq!(config.entity_name(&keys.entity.public), Some("us"));
    assert_eq!(config.entity_name(&channel.subscribe.named()[1].key), None);
}

#[test]
fn a_typo_is_an_error_with_its_place_and_a_suggestion() {
    let typo = refused(
        &NODE.replace("listen =", "lissten ="),
        "node.lissten",
        "unknown key; did you mean `listen`?",
    );
    assert_eq!((typo.line, typo.column), (8, 1));
    refused(
        &format!("{NODE}[fowarding]\n"),
        "fowarding",
        "did you mean `forwarding`?",
    );
    refused(
        &format!("{}priorty = 1\n", mesh()),
        "peers[2].priorty",
        "unknown key",
    );
    refused(
        &format!("{NODE}[forwarding]\nmode = \"natve\"\n"),
        "forwarding.mode",
        "did you mean `native`?",
    );
    refused(
        &format!("{NODE}zzz = 1\n"),
        "node.zzz",
        "known are `name`, `network`",
    );
}

#[test]
fn all_problems_are_listed_in_the_file_order_with_the_file_name() {
    let text = mesh()
        .replace("listen = \"10.0.0.1:4783\"", "listen = 4783")
        .replace("address = \"10.0.0.3:4783\"", "address = \"here\"")
        .replace("\"demo\"", "\"\"");
    let error = parse(&text).unwrap_err();
    let keys: Vec<&str> = error
        .problems()
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    assert_eq!(keys, ["node.network", "node.listen", "peers[1].address"]);
    let message = error.to_string();
    assert!(
        message.starts_with("3 problems in the configuration file /etc/virga/us.toml\n"),
        "{message}"
    );
    assert!(
        message.contains("\n  /etc/virga/us.toml:8:10: node.listen: invalid type: integer"),
        "{message}"
    );
}

#[test]
fn key_files_are_read_and_complained_about_where_they_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("us.toml");
    std::fs::write(&path, NODE).unwrap();
    let error = Config::load(&path).unwrap_err();
    let keys: Vec<&str> = error
        .problems()
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "node.node_key_file",
            "node.entity_key_file",
            "node.psk_file"
        ]
    );
    let line = format!(
        "virga keygen --kind node --out {}/node.key",
        folder.path().display()
    );
    assert!(error.problems()[0].what.contains(&line), "{error}");
    use crate::keys::{Existing, KeyKind, write};
    for (kind, fill) in [(KeyKind::Node, 1), (KeyKind::Entity, 2), (KeyKind::Psk, 3)] {
        write(
            kind,
            &folder.path().join(kind.file_name()),
            &secret(fill),
            Existing::Keep,
        )
        .unwrap();
    }
    let config = Config::load(&path).unwrap();
    assert_eq!(config.node.id, NodeKey::from(secret(1)).id);
    assert_eq!(config.keys.psk, secret(3));
    let missing = Config::load(&folder.path().join("no.toml")).unwrap_err();
    assert!(matches!(missing, ConfigError::Read { .. }));
}

#[test]
fn secrets_are_never_printed() {
    let printed = format!("{:?}", parse(NODE).unwrap());
    assert!(printed.contains("Secret(..)"));
    for secret in ["01010101", "1, 1, 1", "2, 2, 2", "3, 3, 3"] {
        assert!(!printed.contains(secret), "{secret}");
    }
}

#[test]
fn addresses_that_are_no_ones_or_anyones_are_refused() {
    for (address, say) in [
        ("10.0.0.3:0", "port 0"),
        ("0.0.0.0:4783", "no destination"),
        ("224.0.0.1:4783", "not one host's"),
        ("[::ffff:10.0.0.3]:4783", "written as IPv6"),
        ("[fe80::1]:4783", "another host on each link"),
    ] {
        let text = mesh().replace("10.0.0.3:4783", address);
        refused(&text, "peers[1].address", say);
    }
}
