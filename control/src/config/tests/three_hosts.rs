//! The example of three hosts: each file is valid, and they fit together.

use super::*;

/// Name, file, and the bytes that its example keys repeat: node, entity.
const HOSTS: [(&str, &str, [&str; 2]); 3] = [
    (
        "edge-a",
        include_str!("../../../examples/three-hosts/edge-a.toml"),
        ["a1", "aa"],
    ),
    (
        "router",
        include_str!("../../../examples/three-hosts/router.toml"),
        ["c1", "cc"],
    ),
    (
        "edge-b",
        include_str!("../../../examples/three-hosts/edge-b.toml"),
        ["b1", "bb"],
    ),
];

/// A host's keys, in the place of the example's.
fn keys_of(host: usize) -> Keys {
    let fill = u8::try_from(40 + 2 * host).unwrap();
    Keys {
        node: secret(fill).into(),
        entity: secret(fill + 1).into(),
        psk: secret(3),
    }
}

/// The three files with real keys, changed by `change`.
fn configs(change: impl Fn(&str, String) -> String) -> Vec<Config> {
    let hosts = HOSTS.iter().enumerate();
    let parsed = hosts.map(|(host, (name, text, _))| {
        let mut text = (*text).to_owned();
        for (other, (_, _, examples)) in HOSTS.iter().enumerate() {
            let keys = keys_of(other);
            for (example, key) in examples.iter().zip([keys.node.public, keys.entity.public]) {
                text = text.replace(&example.repeat(32), &hex::encode(&key));
            }
        }
        let path = Path::new("/etc/virga/node.toml");
        Config::from_toml(&change(name, text), path, keys_of(host))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    });
    parsed.collect()
}

/// What keeps the three from working together.
fn misfits(configs: &[Config]) -> Vec<String> {
    let mut found = Vec::new();
    let mut expect = |is_so: bool, what: String| {
        if !is_so {
            found.push(what);
        }
    };
    for config in configs {
        let us = &config.node.name;
        expect(
            config.node.network == configs[0].node.network,
            format!("{us}: network"),
        );
        expect(
            config.channels == configs[0].channels,
            format!("{us}: channels"),
        );
        for other in configs.iter().filter(|other| other.node.name != *us) {
            let them = &other.node.name;
            let Some(peer) = config.peer(them) else {
                expect(false, format!("{us}: no peer {them}"));
                continue;
            };
            let keys = (peer.node_key, peer.entity_key);
            let theirs = (other.keys.node.public.into(), other.keys.entity.public);
            expect(keys == theirs, format!("{us}: keys of {them}"));
            if let Reach::Adjacent { address, .. } = &peer.reach {
                let listen = other.node.listen;
                let is_there = listen.ip().is_unspecified() || listen.ip() == address.ip();
                expect(
                    is_there && listen.port() == address.port(),
                    format!("{us}: address of {them}"),
                );
            }
        }
        let own = config.keys.entity.public;
        for channel in &config.channels {
            if channel.subscribe.contains(&own) {
                let is_peer = |key| config.peers.iter().any(|peer| peer.entity_key == key);
                let publishers = channel
                    .publish
                    .named()
                    .iter()
                    .filter(|entity| entity.key != own);
                for publisher in publishers {
                    let name = config.entity_name(&publisher.key).unwrap_or("?");
                    expect(
                        is_peer(publisher.key),
                        format!("{us}: nobody to ask: {name}"),
                    );
                }
            }
        }
    }
    found
}

#[test]
fn the_three_files_are_valid_and_fit_together() {
    let configs = configs(|_, text| text);
    assert_eq!(misfits(&configs), Vec::<String>::new());
    for (config, (name, text, _)) in configs.iter().zip(HOSTS) {
        assert_eq!((config.node.name.as_str(), config.peers.len()), (name, 2));
        assert_eq!(config.channels.len(), 2);
        assert_eq!(config.forwarding.mode, ForwardingMode::Auto);
        // No secret, and no public key that might be someone's.
        assert!(!text.contains("-key-v1"));
        let long = text.split('"').filter(|word| word.len() == 64);
        assert!(long.clone().all(|key| key == key[..2].repeat(32)), "{name}");
        assert_eq!(long.count(), 4, "{name}");
    }
}

/// What newcomers do to them.
#[test]
fn files_that_do_not_fit_are_noticed() {
    let at = |host: &'static str, from: &'static str, to: &'static str| {
        let changed = configs(|name, text| match name == host {
            true => {
                assert!(text.contains(from));
                text.replace(from, to)
            }
            false => text,
        });
        misfits(&changed)
    };
    let second = HOSTS[1].1.split("[[channels]]").nth(2).unwrap();
    assert_eq!(
        at("router", second, "\nname = \"b\"\npublish = [\"router\"]\n"),
        ["router: channels"]
    );
    assert_eq!(
        at("edge-b", "10.77.2.1:4783", "10.77.2.1:4784"),
        ["edge-b: address of router"]
    );
    assert_eq!(
        at("router", "10.77.1.2:4783", "10.77.1.3:4783"),
        ["router: address of edge-a"]
    );
    let node_key = format!("node_key = \"{}\"\n", hex::encode(&keys_of(0).node.public));
    let without = configs(|name, text| match name {
        "edge-b" => text
            .replace(&node_key, "")
            .replace("via = [\"router\"]\n", ""),
        _ => text,
    });
    assert_eq!(
        misfits(&without),
        ["edge-b: no peer edge-a", "edge-b: nobody to ask: edge-a"]
    );
}
