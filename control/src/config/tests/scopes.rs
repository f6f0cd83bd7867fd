//! `[[scopes]]`: what holds for a subtree of channels only ever takes away.

use super::*;
use crate::rights::{Evidence, Operation, Policy, Refusal, Revocations};
use proptest::{collection::vec, prelude::*, sample::select, sample::subsequence};
use virga_ebpf::{
    header::ChannelHash,
    image::exports_of,
    subnet::{SubnetPrefix, may_cross},
};

fn scope(name: &str, rest: &str) -> String {
    format!("\n[[scopes]]\nname = \"{name}\"\n{rest}\n")
}

#[test]
fn a_channel_is_what_the_scopes_around_it_leave_of_it() {
    let text = mesh()
        + "\n[[channels]]\nname = \"s/lab/x\"\npublish = [\"us\", \"one\", \"two\"]\nsubscribe = [\"one\", \"two\"]\n\
           max_rate_pps = 100\n"
        + &channel("t", "subscribe = [\"one\"]")
        // In any order: the broader one is the one with the shorter name.
        + &scope("s/lab", "publish = [\"us\", \"far\"]\nmax_rate_pps = 500\nvisibility = \"parent-visible\"")
        + &scope("s", "publish = [\"us\", \"one\"]\nsubscribe = [\"two\"]\nmax_rate_pps = 50\nrequire_token = true\nissuers = [\"one\"]")
        + &scope("sx", "publish = []");
    let config = parse(&text).unwrap();
    let names = |scopes: &[ScopeConfig]| -> Vec<String> {
        scopes.iter().map(|scope| scope.name.to_string()).collect()
    };
    assert_eq!(names(&config.scopes), ["s", "sx", "s/lab"]);
    let [narrowed, other] = &config.channels[..] else {
        panic!("{:?}", config.channels);
    };
    assert_eq!(names(&narrowed.scopes), ["s", "s/lab"]);
    let us = config.entities[0].entity;
    let two = config.peers[1].entity_key;
    assert_eq!(narrowed.publish, Listed::Only(vec![us]));
    assert_eq!(
        narrowed.subscribe,
        Listed::Only(vec![Entity::from_key(two)])
    );
    assert_eq!(narrowed.max_rate_pps, Some(50));
    assert_eq!(narrowed.visibility, Visibility::ParentVisible);
    assert!(narrowed.asks_for_token() && narrowed.issuers.is_empty());
    assert!(other.scopes.is_empty() && !other.asks_for_token());
    // Whom only a token lets in, no forwarder admits by the list.
    let pairs: Vec<_> = crate::image::configured_pairs(&config).collect();
    assert!(
        pairs
            .iter()
            .all(|pair| pair.channel != u32::from(narrowed.hash.0))
    );
    assert!(
        pairs
            .iter()
            .any(|pair| pair.channel == u32::from(other.hash.0))
    );
    let mut again = narrowed.clone();
    again.narrow(&config.scopes);
    assert_eq!(again, *narrowed);
}

#[test]
fn rules_of_scopes() {
    for (block, key, say) in [
        (
            scope("s", "require_token = true"),
            "require_token",
            "nobody's tokens count",
        ),
        (
            scope("s", "publish_caps = \"a\""),
            "capability_issuers",
            "nobody's word",
        ),
        (
            scope("s", "visibility = \"exported\""),
            "visibility",
            "nothing would cross",
        ),
        (scope("s//x", ""), "name", "single slashes"),
        (
            scope("s", "publish = [\"nobody\"]"),
            "publish",
            "neither a peer's name",
        ),
        (scope("s", "priority = 3"), "priority", "unknown key"),
    ] {
        refused(&(mesh() + &block), &format!("scopes[0].{key}"), say);
    }
    let twice = mesh() + &scope("s", "") + &scope("s", "publish = [\"us\"]");
    refused(&twice, "scopes[1].name", "keep one block");
    let kept = mesh()
        + &scope("a", "subscribe = [\"one\"]")
        + &channel("a/b", "subscribe = [\"us\"]\npersist = true");
    refused(&kept, "channels[0].persist", "a scope around the channel");
}

const SUBNETS: [u32; 6] = [
    0,
    0x0100_0000,
    0x0101_0000,
    0x0102_0000,
    0x0200_0000,
    0x0101_0100,
];

fn lists() -> impl Strategy<Value = Listed> {
    let named = subsequence(vec![1u8, 2, 3, 4], 0..=4);
    prop_oneof![
        Just(Listed::Anyone),
        named.prop_map(|who| {
            let entities = who.into_iter().map(|n| Entity::from_key([n; 32]));
            Listed::Only(entities.collect())
        })
    ]
}

prop_compose! {
    fn scopes()(
        name in select(&["s", "s/a", "s/a/b", "s/b", "t"][..]),
        publish in lists(),
        subscribe in lists(),
        visibility in select(&[Visibility::SubnetLocal, Visibility::ParentVisible, Visibility::Exported, Visibility::Global][..]),
        exports in subsequence(SUBNETS[1..].to_vec(), 1..4),
        issuer in proptest::option::of(1u8..4),
        max_rate_pps in proptest::option::of(1u32..9),
    ) -> ScopeConfig {
        let prefix = |levels| Subnet(levels).with_descendants();
        let export_to: BTreeSet<SubnetPrefix> = match visibility {
            Visibility::Exported => exports.into_iter().map(prefix).collect(),
            _ => BTreeSet::new(),
        };
        ScopeConfig {
            name: ChannelName::parse(name).unwrap(),
            publish,
            subscribe,
            issuers: issuer.map(|n| Entity::from_key([n; 32])).into_iter().collect(),
            capabilities: CapabilityRules::default(),
            visibility,
            export_to,
            max_rate_pps,
        }
    }
}

/// A channel that says the same as a scope.
fn like(scope: &ScopeConfig) -> ChannelConfig {
    let name = ChannelName::parse("s/a/b").unwrap();
    ChannelConfig {
        hash: name.hash(0),
        name,
        salt: 0,
        priority: 0,
        mode: Mode::Ordered,
        hold_max_s: 1,
        fan_out: 0,
        max_rate_pps: scope.max_rate_pps,
        visibility: scope.visibility,
        export_to: scope.export_to.clone(),
        publish: scope.publish.clone(),
        subscribe: scope.subscribe.clone(),
        issuers: scope.issuers.clone(),
        capabilities: CapabilityRules::default(),
        keep: None,
        scopes: Vec::new(),
    }
}

/// Everything that a channel lets through: who may what without showing anything, and between which subnets.
fn allowed(channel: &ChannelConfig) -> BTreeSet<(u32, u32, u32)> {
    let exports = exports_of(&channel.export_to);
    let policy = Policy::of(channel);
    let none = Statements::default();
    let mut all = BTreeSet::new();
    for who in 1..5u8 {
        let holder = [who; 32];
        let evidence = Evidence {
            holder: &holder,
            tokens: &[],
            statements: &none,
        };
        for (number, operation, list) in [
            (0, Operation::Publish, &channel.publish),
            (1, Operation::Subscribe, &channel.subscribe),
        ] {
            let right: Result<u64, Refusal> =
                policy.allows(evidence, operation, 0, &Revocations::default());
            if list.contains(&holder) && right.is_ok() {
                all.insert((number, who.into(), 0));
            }
        }
    }
    for (from, to) in SUBNETS
        .iter()
        .flat_map(|from| SUBNETS.map(|to| (*from, to)))
    {
        let (hash, visibility) = (ChannelHash(1), channel.visibility);
        if may_cross(
            hash,
            visibility,
            || Some(&exports),
            Subnet(from),
            Subnet(to),
        ) {
            all.insert((2, from, to));
        }
    }
    all.extend((1..channel.max_rate_pps.unwrap_or(10)).map(|pps| (3, pps, 0)));
    all
}

proptest! {
    /// What is left is what the channel and every scope around it let through, or less; and one more scope never
    /// gives anything back.
    #[test]
    fn scopes_only_ever_take_away(own in scopes(), around in vec(scopes(), 0..5)) {
        let own = like(&own);
        let mut narrowed = own.clone();
        narrowed.narrow(&around);
        let left = allowed(&narrowed);
        prop_assert!(left.is_subset(&allowed(&own)));
        for scope in &around {
            if own.name.is_within(&scope.name) {
                prop_assert!(left.is_subset(&allowed(&like(scope))));
            }
        }
        let mut more = own;
        more.narrow(&around[..around.len().saturating_sub(1)]);
        prop_assert!(left.is_subset(&allowed(&more)));
    }
}
