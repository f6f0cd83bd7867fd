//! Declarations are read as they were signed, to the last bit, or not at all.

use super::*;
use crate::keys::Secret;

pub(crate) fn key(number: u8) -> EntityKey {
    Secret::new([number; 32]).into()
}

pub(crate) fn policy(text: &str) -> ChannelConfig {
    let name = ChannelName::parse(text).unwrap();
    let entity = |number| Entity::from_key(key(number).public);
    ChannelConfig {
        hash: name.hash(7),
        name,
        salt: 7,
        priority: 3,
        mode: Mode::Unordered,
        hold_max_s: 30,
        fan_out: 0,
        keep: None,
        scopes: Vec::new(),
        max_rate_pps: Some(1_000),
        visibility: Visibility::Exported,
        export_to: BTreeSet::from([SubnetPrefix {
            subnet: Subnet(0x0200_0000),
            mask: 0xff00_0000,
        }]),
        publish: Listed::Only(sorted([entity(1), entity(2)])),
        subscribe: Listed::Anyone,
        issuers: vec![entity(3)],
        capabilities: CapabilityRules {
            publish: Some(Filter::parse("hardware.gpu and software.cuda >= 12").unwrap()),
            subscribe: None,
            issuers: vec![entity(4)],
        },
    }
}

fn sorted<const N: usize>(mut entities: [Entity; N]) -> Vec<Entity> {
    entities.sort_by_key(|entity| entity.key);
    entities.to_vec()
}

#[test]
fn a_declaration_is_read_as_it_was_signed() {
    let owner = key(9);
    let first = Declaration::new(owner.public, 5, policy("a/b"));
    for one in [
        first.clone(),
        first.next(None),
        first.next(Some(policy("a/b"))),
    ] {
        let signed = one.sign(&owner).unwrap();
        assert!(signed.len() <= DECLARATION_BYTES_MAX);
        assert_eq!(Declaration::parse(&signed), Ok(one));
    }
    assert_eq!(first.next(None).version(), 2);
}

#[test]
fn a_published_vector() {
    let owner = key(9);
    let removed = Declaration::new(owner.public, 5, policy("ab")).next(None);
    let signed = removed.sign(&owner).unwrap();
    let expected = [
        &b"virga\x05\x01\x00\x20"[..],
        &owner.public,
        b"\x00\x02ab",
        b"\x00\x08\x00\x00\x00\x00\x00\x00\x00\x05",
        b"\x00\x08\x00\x00\x00\x00\x00\x00\x00\x02",
        &[0; 16],
    ]
    .concat();
    assert_eq!(signed[..signed.len() - 64], expected);
}

#[test]
fn one_changed_bit_is_refused_and_so_is_anything_shorter_or_longer() {
    let owner = key(9);
    let signed = Declaration::new(owner.public, 5, policy("a/b"))
        .sign(&owner)
        .unwrap();
    for at in 0..signed.len() {
        let mut changed = signed.clone();
        changed[at] ^= 1;
        assert!(Declaration::parse(&changed).is_err(), "byte {at}");
        assert!(Declaration::parse(&signed[..at]).is_err(), "{at} bytes");
    }
    assert!(Declaration::parse(&[&signed[..], &[0]].concat()).is_err());
}

#[test]
fn a_policy_that_nothing_can_pass_or_everything_can_is_not_signed() {
    let owner = key(9);
    let refused = |change: &dyn Fn(&mut ChannelConfig)| {
        let mut policy = policy("a");
        change(&mut policy);
        Declaration::new(owner.public, 5, policy)
            .sign(&owner)
            .unwrap_err()
            .to_string()
    };
    for (words, say) in [
        (refused(&|p| p.issuers.clear()), "keeps nobody out"),
        (
            refused(&|p| p.capabilities.issuers.clear()),
            "whose word about capabilities",
        ),
        (refused(&|p| p.export_to.clear()), "where it is exported"),
        (
            refused(&|p| p.publish = Listed::Only(Vec::new())),
            "lets nobody publish",
        ),
        (refused(&|p| p.priority = 7), "priority above 6"),
        (refused(&|p| p.max_rate_pps = Some(0)), "its rate is 0"),
    ] {
        assert!(words.contains(say), "{words}");
    }
}

#[test]
fn a_scope_is_read_as_it_was_signed_and_is_no_channel() {
    let owner = key(9);
    let scope = ScopeConfig {
        publish: Listed::Anyone,
        ..ScopeConfig::of(&policy("a"))
    };
    let first = Declaration::of_scope(owner.public, 5, &scope);
    let channel = first.next(Some(policy("a")));
    for one in [first.clone(), first.next_scope(&scope), channel.clone()] {
        let signed = one.sign(&owner).unwrap();
        assert_eq!(Declaration::parse(&signed).as_ref(), Ok(&one));
        for at in 0..signed.len() {
            let mut changed = signed.clone();
            changed[at] ^= 1;
            assert!(Declaration::parse(&changed).is_err(), "byte {at}");
        }
    }
    assert_eq!((first.scope(), first.policy()), (Some(scope.clone()), None));
    assert_eq!((channel.scope(), channel.is_removed()), (None, false));

    let refused = |change: &dyn Fn(&mut Declaration)| {
        let mut one = first.clone();
        change(&mut one);
        one.sign(&owner).unwrap_err().to_string()
    };
    let said = refused(&|one| one.policy.as_mut().unwrap().priority = 1);
    assert!(said.contains("what only a channel can have"), "{said}");
    let said = refused(&|one| one.policy.as_mut().unwrap().export_to.clear());
    assert!(said.contains("where it is exported"), "{said}");
    let open = ScopeConfig {
        publish: Listed::Anyone,
        subscribe: Listed::Anyone,
        issuers: Vec::new(),
        capabilities: CapabilityRules::default(),
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        max_rate_pps: None,
        ..scope
    };
    let said = refused(&|one| *one = one.next_scope(&open));
    assert!(said.contains("takes nothing away"), "{said}");
}
