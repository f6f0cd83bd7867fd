//! Tokens and lists of those who have had another key since.

use super::*;
use crate::{
    capability::{Capabilities, Capability, Filter, Statement, Statements, statement::Claim},
    config::{CapabilityRules, ChannelConfig, Entity, Listed},
    rights::identity::Retired,
};
use std::collections::BTreeSet;
use virga_ebpf::subnet::Visibility;
use virga_transport::Mode;

/// Entity 3 has key 13 now, and issuer 1 and entity 2 have others too: what they signed counts for a while.
#[test]
fn tokens_follow_their_holder_and_outlive_their_signers_keys_for_as_long_as_was_said() {
    let mut retired = Retired::default();
    retired.add(key(3).public, key(13).public, NOW_S);
    let mut new = ask();
    new.holder = 13;
    assert_eq!(new.of(chain()), Err(Refusal::Holder(key(3).public)));
    new.revocations.set_retired(retired.clone());
    assert_eq!(new.of(chain()), Ok(()), "a holder signs nothing");
    let mut old = ask();
    old.revocations.set_retired(retired.clone());
    assert_eq!(old.of(chain()), Err(Refusal::Holder(key(3).public)));
    for (signer, link) in [(1, 1), (2, 2)] {
        let mut retired = retired.clone();
        retired.add(key(signer).public, key(14).public, NOW_S + 10);
        new.revocations.set_retired(retired);
        new.now_s = NOW_S + 9;
        assert_eq!(new.of(chain()), Ok(()));
        new.now_s = NOW_S + 10;
        let refused = new.of(chain()).unwrap_err();
        assert!(
            matches!(refused, Refusal::Revoked { link: at, .. } if at == link),
            "{refused}"
        );
        assert!(
            refused
                .to_string()
                .contains("another key has taken the place")
        );
    }
}

/// Who has a key's place now takes back what the old key signed, and who is named by the later key is meant
/// by the earlier one.
#[test]
fn whoever_has_a_keys_place_revokes_for_it_and_is_revoked_for_it() {
    let mut retired = Retired::default();
    for (old, new) in [(1, 11), (3, 13)] {
        retired.add(key(old).public, key(new).public, NOW_S + 1_000);
    }
    for (issuer, subject) in [(1, 3), (1, 13), (11, 3), (11, 13)] {
        let mut asked = ask();
        asked.holder = 13;
        asked.revocations.set_retired(retired.clone());
        assert_eq!(asked.of(chain()), Ok(()));
        let list = List::new(key(issuer).public);
        let subject = Entry::Subject(key(subject).public);
        let list = list.revoke(subject, NOW_S + 1_000, NOW_S).unwrap();
        asked.revocations.learn(list);
        let refused = asked.of(chain()).unwrap_err();
        assert!(matches!(refused, Refusal::Revoked { .. }), "{refused}");
    }
}

/// What a channel lets an entity with key 13 do, of which its issuer 1 has said this and that.
fn vouched(said: &[(u8, &str)], retired: Retired, now_s: u64) -> Result<u64, Refusal> {
    let name = name("ops");
    let config = ChannelConfig {
        hash: name.hash(0),
        name,
        salt: 0,
        priority: 0,
        mode: Mode::Ordered,
        hold_max_s: 1,
        fan_out: 0,
        max_rate_pps: None,
        publish: Listed::Anyone,
        subscribe: Listed::Anyone,
        issuers: Vec::new(),
        capabilities: CapabilityRules {
            publish: Some(Filter::parse("hardware.gpu").unwrap()),
            subscribe: None,
            issuers: [1, 11].map(|n| Entity::from_key(key(n).public)).into(),
        },
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        keep: None,
        scopes: Vec::new(),
    };
    let mut statements = Statements::default();
    for (subject, words) in said {
        let claim = Claim {
            subject: key(*subject).public,
            version: 1,
            not_before_s: NOW_S,
            not_after_s: NOW_S + 100,
            capabilities: Capabilities::new(vec![Capability::parse(words).unwrap()]).unwrap(),
        };
        statements.learn(Statement::issue(claim, 0, &key(1)));
    }
    let mut revocations = Revocations::default();
    revocations.set_retired(retired);
    let holder = key(13).public;
    let evidence = Evidence {
        holder: &holder,
        tokens: &[],
        statements: &statements,
    };
    Policy::of(&config).allows(evidence, Operation::Publish, now_s, &revocations)
}

#[test]
fn what_an_issuer_said_of_an_entity_holds_for_its_later_key_until_it_speaks_of_that() {
    let gpu = "hardware.gpu";
    let mut retired = Retired::default();
    assert!(vouched(&[(3, gpu)], retired.clone(), NOW_S).is_err());
    retired.add(key(3).public, key(13).public, NOW_S);
    let until_s = Ok(NOW_S + 100);
    assert_eq!(vouched(&[(3, gpu)], retired.clone(), NOW_S), until_s);
    assert_eq!(vouched(&[(13, gpu)], retired.clone(), NOW_S), until_s);
    let less = [(3, gpu), (13, "software.cuda")];
    assert!(vouched(&less, retired.clone(), NOW_S).is_err());
    // The issuer itself has another key, and the old one's word ends.
    retired.add(key(1).public, key(11).public, NOW_S + 10);
    let until_s = Ok(NOW_S + 10);
    assert_eq!(vouched(&[(3, gpu)], retired.clone(), NOW_S + 9), until_s);
    assert!(vouched(&[(3, gpu)], retired, NOW_S + 10).is_err());
}
