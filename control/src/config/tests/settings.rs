//! The table of keys: complete, marked in the example, and what differs between two configurations.

use super::{
    super::settings::{self, Change, Effect},
    *,
};
use std::collections::BTreeSet;

/// Sections and their keys, as the file is read.
fn keys_of_the_file() -> BTreeSet<(&'static str, &'static str)> {
    let sections = [
        ("node", file::fields::<file::Node>()),
        ("forwarding", file::fields::<file::Forwarding>()),
        ("routing", file::fields::<file::Routing>()),
        ("nat", file::fields::<file::Nat>()),
        ("handshake", file::fields::<file::Handshake>()),
        ("discovery", file::fields::<file::Discovery>()),
        ("metrics", file::fields::<file::Metrics>()),
        ("fallback", file::fields::<file::Fallback>()),
        ("subnets", file::fields::<file::Subnets>()),
        ("subnet_gateways", file::fields::<file::SubnetGateway>()),
        ("peers", file::fields::<file::Peer>()),
        ("channels", file::fields::<file::Channel>()),
        ("scopes", file::fields::<file::Scope>()),
        (
            "channel_authorities",
            file::fields::<file::ChannelAuthority>(),
        ),
    ];
    let named: BTreeSet<&str> = sections.iter().map(|(section, _)| *section).collect();
    let all: BTreeSet<&str> = file::fields::<file::File>().into_iter().collect();
    assert_eq!(named, all, "a section is missing here");
    let keys = sections
        .into_iter()
        .flat_map(|(section, keys)| keys.into_iter().map(move |key| (section, key)));
    keys.collect()
}

#[test]
fn the_table_has_every_key_once_and_no_other() {
    let lines = settings::KEYS.iter();
    let listed: Vec<(&str, &str)> = lines
        .flat_map(|(section, _, keys)| keys.iter().map(|key| (*section, *key)))
        .collect();
    let unique: BTreeSet<(&str, &str)> = listed.iter().copied().collect();
    assert_eq!(listed.len(), unique.len(), "a key stands twice");
    assert_eq!(unique, keys_of_the_file());
}

#[test]
fn the_example_says_behind_each_key_what_a_change_of_it_takes() {
    let (mut section, mut seen) = (String::new(), BTreeSet::new());
    for line in EXAMPLE.lines() {
        if let Some(rest) = line.strip_prefix('[') {
            rest.trim_matches(['[', ']']).clone_into(&mut section);
        }
        let Some((key, value)) = line.split_once(" = ") else {
            continue;
        };
        if line.starts_with('#') || !seen.insert((section.clone(), key.to_owned())) {
            continue;
        }
        let effect = settings::effect(&section, key).unwrap();
        let mark = format!("  # {}", effect.word());
        assert!(value.ends_with(&mark), "{section}: {line}: not{mark}");
    }
    assert_eq!(seen.len(), keys_of_the_file().len());
}

/// What a block is called stands in the path of its other keys.
const TITLES: [(&str, &str); 5] = [
    ("peers", "name"),
    ("channels", "name"),
    ("scopes", "name"),
    ("channel_authorities", "entity"),
    ("subnet_gateways", "entity"),
];

#[test]
fn what_a_configuration_says_has_every_key() {
    let all = settings::of(&parse(EXAMPLE).unwrap());
    for (section, key) in keys_of_the_file() {
        let is_it = |path: &str| {
            let (block, last) = path.rsplit_once('.').unwrap();
            last == key && block.split('[').next() == Some(section)
        };
        let is_there = all.iter().any(|setting| is_it(&setting.key));
        assert_ne!(
            is_there,
            TITLES.contains(&(section, key)),
            "{section}.{key}"
        );
    }
    let paths: BTreeSet<&str> = all.iter().map(|setting| setting.key.as_str()).collect();
    assert_eq!(paths.len(), all.len(), "two settings of one name");
}

fn differs(before: &str, after: &str) -> Vec<String> {
    let [before, after] = [before, after].map(|text| settings::of(&parse(text).unwrap()));
    assert_eq!(settings::changes(&before, &before), []);
    let changes = settings::changes(&before, &after);
    changes.iter().map(Change::to_string).collect()
}

#[test]
fn what_differs_is_told_with_both_values_and_what_it_takes() {
    let text = mesh() + &channel("a", "subscribe = [\"far\"]");
    // A default that is written down changes nothing, and nor does the order of blocks.
    let same = text.replace("[node]", "[routing]\nenabled = false\n[node]");
    assert_eq!(differs(&text, &same), Vec::<String>::new());
    let moved = text.replace("10.0.0.2", "10.0.0.9");
    assert_eq!(
        differs(&text, &moved),
        ["peers[one].address: 10.0.0.2:4783 -> 10.0.0.9:4783 (reload)"]
    );
    let other = text.replace("listen = \"10.0.0.1:4783\"", "listen = \"10.0.0.1:4784\"");
    assert_eq!(
        differs(&text, &other),
        ["node.listen: 10.0.0.1:4783 -> 10.0.0.1:4784 (restart)"]
    );
    let more = text.clone() + &peer("new", 40, "via = [\"two\"]");
    let (node, entity) = (node_key(40), entity_key(41));
    assert_eq!(
        differs(&text, &more),
        [
            format!("peers[new].entity_key: not set -> {entity} (reload)"),
            format!("peers[new].node_key: not set -> {node} (reload)"),
            "peers[new].via: not set -> two (reload)".to_owned(),
        ]
    );
    let kept = text.replace(
        "subscribe = [\"far\"]",
        "subscribe = [\"us\"]\npersist = true",
    );
    assert_eq!(
        differs(&text, &kept),
        [
            "channels[a].durability: not set -> synced (restart)",
            "channels[a].persist: not set -> true (restart)",
            "channels[a].subscribe: far -> us (reload)",
        ]
    );
}

#[test]
fn other_secrets_differ_and_none_is_told() {
    let text = mesh();
    let with = |psk: u8| {
        let keys = Keys {
            psk: secret(psk),
            ..keys()
        };
        let config = Config::from_toml(&text, Path::new("/etc/virga/us.toml"), keys).unwrap();
        settings::of(&config)
    };
    let changes = settings::changes(&with(3), &with(4));
    let keys_changed: Vec<&str> = changes.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(keys_changed, ["node.psk_file"]);
    assert_eq!(changes[0].effect, Effect::Restart);
    let told = serde_json::to_string(&with(3)).unwrap();
    for fill in [1, 2, 3] {
        let secret = hex::encode(secret(fill).expose());
        assert!(!told.contains(&secret[..16]), "{told}");
    }
}
