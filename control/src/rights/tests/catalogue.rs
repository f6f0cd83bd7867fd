//! Which declared channels hold: the same on every node that has heard the same.

use super::*;
use crate::{
    config::{CapabilityRules, Entity, Listed},
    keys::{EntityKey, Secret},
};
use proptest::prelude::*;
use virga_ebpf::subnet::Visibility;
use virga_transport::Mode;

const NOW_NS: u64 = 1_800_000_000_000_000_000;

fn key(number: u8) -> EntityKey {
    Secret::new([number; 32]).into()
}

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text).unwrap()
}

fn policy(text: &str, salt: u32) -> ChannelConfig {
    let everyone = Listed::Only(vec![Entity::from_key(key(1).public)]);
    ChannelConfig {
        name: name(text),
        salt,
        hash: name(text).hash(salt),
        priority: 0,
        mode: Mode::Ordered,
        hold_max_s: 30,
        fan_out: 0,
        keep: None,
        scopes: Vec::new(),
        max_rate_pps: None,
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        publish: everyone.clone(),
        subscribe: everyone,
        issuers: Vec::new(),
        capabilities: CapabilityRules::default(),
    }
}

fn catalogue(configured: &[ChannelConfig]) -> Catalogue {
    let authority = |number, within: Option<&str>| Authority {
        entity: Entity::from_key(key(number).public),
        within: within.map(name),
    };
    let authorities = vec![authority(1, None), authority(2, Some("s"))];
    Catalogue::new(configured.to_vec(), authorities)
}

fn signed(owner: u8, since_ns: u64, policy: ChannelConfig) -> Vec<u8> {
    Declaration::new(key(owner).public, since_ns, policy)
        .sign(&key(owner))
        .unwrap()
}

/// Two names below `s` that share a hash.
fn colliding() -> [String; 2] {
    let mut seen = BTreeMap::new();
    for number in 0.. {
        let text = format!("s/{number}");
        if let Some(other) = seen.insert(name(&text).hash(0).0, text.clone()) {
            return [other, text];
        }
    }
    unreachable!("there are more names than hashes");
}

fn names(catalogue: &Catalogue) -> Vec<String> {
    let channels = catalogue.resolve().0.into_iter();
    channels.map(|channel| channel.name.to_string()).collect()
}

#[test]
fn only_authorities_declare_and_each_within_its_names() {
    let mut known = catalogue(&[]);
    for (owner, text, is_taken) in [
        (1, "a", true),
        (2, "s/a", true),
        (2, "a", false),
        (3, "s/b", false),
    ] {
        let declared = known.declare(&signed(owner, 5, policy(text, 0)), NOW_NS);
        let denied = matches!(declared, Err(Denied::Authority { .. }));
        assert_eq!(
            (declared.is_ok(), denied),
            (is_taken, !is_taken),
            "{owner} {text}"
        );
    }
    let mut held = names(&known);
    held.sort();
    assert_eq!(held, ["a", "s/a"]);
    let ahead = signed(1, NOW_NS + AHEAD_NS_MAX + 1, policy("b", 0));
    assert_eq!(known.declare(&ahead, NOW_NS), Err(Denied::Ahead(name("b"))));
}

#[test]
fn scopes_count_by_the_word_of_authorities_and_take_no_name() {
    let scope = |text| ScopeConfig {
        name: name(text),
        publish: Listed::Anyone,
        ..ScopeConfig::of(&policy(text, 0))
    };
    let signed = |owner: u8, text| {
        let declared = Declaration::of_scope(key(owner).public, 5, &scope(text));
        declared.sign(&key(owner)).unwrap()
    };
    let mut known = catalogue(&[policy("s/a", 0)]);
    known.declare(&signed(1, "s/a"), NOW_NS).unwrap();
    known.declare(&signed(2, "s"), NOW_NS).unwrap();
    let denied = known.declare(&signed(2, "t"), NOW_NS);
    assert!(
        matches!(denied, Err(Denied::Authority { .. })),
        "{denied:?}"
    );
    assert_eq!(names(&known), ["s/a"]);
    let held: BTreeSet<String> = known.scopes().iter().map(|s| s.name.to_string()).collect();
    assert_eq!(held, BTreeSet::from(["s".to_owned(), "s/a".to_owned()]));
    assert!(
        known
            .resolve()
            .1
            .values()
            .all(|standing| *standing == Standing::Holds)
    );

    let removed = Declaration::of_scope(key(2).public, 5, &scope("s")).next(None);
    known
        .declare(&removed.sign(&key(2)).unwrap(), NOW_NS)
        .unwrap();
    assert_eq!(known.scopes(), [scope("s/a")]);
    // Whoever is no authority any more has taken nothing away.
    known.configure(vec![policy("s/a", 0)], Vec::new());
    assert_eq!(known.scopes(), []);
}

#[test]
fn the_file_wins_and_an_old_version_is_not_taken_for_a_new_one() {
    let mut known = catalogue(&[policy("a", 0)]);
    let declared = known.declare(&signed(1, 5, policy("a", 9)), NOW_NS);
    let words = declared.unwrap_err().to_string();
    assert!(
        words.contains("the configuration file has this channel"),
        "{words}"
    );

    let first = Declaration::new(key(1).public, 5, policy("b", 0));
    let (one, two) = (
        first.sign(&key(1)).unwrap(),
        first.next(None).sign(&key(1)).unwrap(),
    );
    known.declare(&one, NOW_NS).unwrap();
    assert_eq!(names(&known), ["a", "b"]);
    known.declare(&two, NOW_NS).unwrap();
    assert_eq!(names(&known), ["a"]);
    let replayed = known.learn(&one, NOW_NS);
    assert!(matches!(replayed, Err(Denied::Old { .. })), "{replayed:?}");
    assert_eq!(known.learn(&two, NOW_NS), Ok(Learned::Known));
    assert_eq!(names(&known), ["a"]);
    let words = known.declare(&one, NOW_NS).unwrap_err().to_string();
    assert!(
        words.contains("version 2 of b is known, and this is version 1"),
        "{words}"
    );
}

#[test]
fn on_a_taken_hash_the_error_names_a_salt_that_works() {
    let [one, two] = colliding();
    let mut known = catalogue(&[]);
    known
        .declare(&signed(1, 5, policy(&one, 0)), NOW_NS)
        .unwrap();
    let Err(Denied::Collision {
        free: Some(salt),
        with,
        ..
    }) = known.declare(&signed(2, 6, policy(&two, 0)), NOW_NS)
    else {
        panic!("both hold");
    };
    assert_eq!(with, name(&one));
    known
        .declare(&signed(2, 6, policy(&two, salt)), NOW_NS)
        .unwrap();
    assert_eq!(names(&known), [one, two]);
}

#[test]
fn of_a_concurrent_collision_the_earlier_holds_wherever_it_was_heard_of_first() {
    let [one, two] = colliding();
    let (early, late) = (signed(2, 5, policy(&two, 0)), signed(1, 6, policy(&one, 0)));
    for order in [[&early, &late], [&late, &early]] {
        let mut known = catalogue(&[]);
        for signed in order {
            assert_eq!(known.learn(signed, NOW_NS), Ok(Learned::New));
        }
        assert_eq!(names(&known), std::slice::from_ref(&two));
        let standing = &known.resolve().1[&(name(&one), key(1).public)];
        assert_eq!(*standing, Standing::Collides { with: name(&two) });
    }
    // The same for one name that two authorities declare.
    let (early, late) = (
        signed(2, 5, policy("s/x", 1)),
        signed(1, 6, policy("s/x", 2)),
    );
    for order in [[&early, &late], [&late, &early]] {
        let mut known = catalogue(&[]);
        for signed in order {
            known.learn(signed, NOW_NS).unwrap();
        }
        assert_eq!(known.resolve().0[0].salt, 1);
    }
}

/// An authority's later key is one too; what the earlier one declared counts for as long as was said.
#[test]
fn an_authority_with_another_key_goes_on_and_what_the_old_one_said_ends() {
    let mut known = catalogue(&[]);
    known
        .declare(&signed(1, 5, policy("a", 0)), NOW_NS)
        .unwrap();
    let by_new = signed(9, 6, policy("b", 0));
    assert!(known.declare(&by_new, NOW_NS).is_err());
    let mut retired = Retired::new();
    retired.add(key(1).public, key(9).public, 100);
    known.follow(retired.clone(), 99);
    known.declare(&by_new, NOW_NS).unwrap();
    assert_eq!(names(&known), ["a", "b"]);
    known.follow(retired, 100);
    assert_eq!(names(&known), ["b"]);
    let late = known.learn(&signed(1, 7, policy("c", 0)), NOW_NS);
    assert!(matches!(late, Err(Denied::Authority { .. })), "{late:?}");
}

proptest! {
    /// Whatever is heard, in whatever order and however often, nodes agree in the end.
    #[test]
    fn nodes_that_heard_the_same_agree(
        heard in prop::collection::vec((1_u8..=2, 0_u64..3, 1_u64..4, 0_u32..3, 0_u8..3, any::<bool>()), 1..12),
        seed in any::<u64>(),
    ) {
        let objects: Vec<Vec<u8>> = heard.iter().map(|&(owner, since_ns, version, salt, channel, is_removed)| {
            let text = format!("s/{channel}");
            let mut declaration = Declaration::new(key(owner).public, since_ns, policy(&text, salt));
            for _ in 1..version {
                declaration = declaration.next((!is_removed).then(|| policy(&text, salt)));
            }
            declaration.sign(&key(owner)).unwrap()
        }).collect();
        let mut other: Vec<&Vec<u8>> = objects.iter().chain(&objects).collect();
        let count = other.len() as u64;
        other.sort_by_key(|object| object.iter().fold(seed, |sum, &byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        }) % count);
        let (mut a, mut b) = (catalogue(&[]), catalogue(&[]));
        for object in &objects {
            // One that is older than what is known is refused.
            let _may_be_old = a.learn(object, NOW_NS);
        }
        for object in other {
            let _may_be_old = b.learn(object, NOW_NS);
        }
        prop_assert_eq!(a.kept(), b.kept());
        prop_assert_eq!(a.resolve(), b.resolve());
    }
}

#[test]
fn an_authority_that_declares_many_shuts_out_no_other() {
    let mut known = catalogue(&[]);
    let share = DECLARATIONS_MAX / 2;
    for number in 0..share {
        let one = signed(2, 5, policy(&format!("s/{number}"), 0));
        assert_eq!(known.learn(&one, NOW_NS), Ok(Learned::New));
    }
    let more = signed(2, 5, policy("s/more", 0));
    assert_eq!(known.learn(&more, NOW_NS), Err(Denied::Full(share)));
    let changed = Declaration::new(key(2).public, 5, policy("s/0", 0)).next(None);
    let changed = changed.sign(&key(2)).unwrap();
    assert_eq!(known.learn(&changed, NOW_NS), Ok(Learned::New));
    for number in 0..share {
        let one = signed(1, 5, policy(&format!("a/{number}"), 0));
        assert_eq!(known.learn(&one, NOW_NS), Ok(Learned::New), "{number}");
    }
}

#[test]
fn more_publishers_than_guards_have_room_for_are_denied() {
    let mut known = catalogue(&[]);
    let listed = |text: &str, count: u16| {
        let entity = |number: u16| {
            let mut key = [7; 32];
            key[..2].copy_from_slice(&number.to_be_bytes());
            Entity::from_key(key)
        };
        ChannelConfig {
            publish: Listed::Only((0..count).map(entity).collect()),
            ..policy(text, 0)
        }
    };
    let mut hashes = BTreeSet::new();
    let mut free = (0..)
        .map(|number| format!("p/{number}"))
        .filter(|text| hashes.insert(name(text).hash(0).0));
    for _ in 0..PUBLISHERS_MAX / 512 {
        let one = signed(1, 5, listed(&free.next().unwrap(), 512));
        assert_eq!(known.learn(&one, NOW_NS), Ok(Learned::New));
    }
    assert_eq!(names(&known).len(), PUBLISHERS_MAX / 512);
    let last = free.next().unwrap();
    let denied = known.declare(&signed(1, 6, listed(&last, 1)), NOW_NS);
    let standing = Standing::NoRoom {
        publishers: PUBLISHERS_MAX,
    };
    let name = name(&last);
    assert_eq!(denied, Err(Denied::Standing { name, standing }));
    // Tokens say who may there, and have room of their own.
    let by_token = ChannelConfig {
        issuers: vec![Entity::from_key(key(1).public)],
        ..listed(&last, 1)
    };
    assert_eq!(known.declare(&signed(1, 6, by_token), NOW_NS), Ok(()));
}
