//! Each refusal is explained by the check that makes it, and everything that is not in the way is said too.

use super::*;
use crate::{
    capability::{Capabilities, Capability, Filter, Statement, statement::Claim},
    channel::explain::{Check, Outcome},
    keys::{EntityKey, Secret},
    rights::{
        Authentic, Chain, Grant, List, Operation, Operations, Reach, Scope, revocation::Entry,
    },
};
use rights::UNIX_S;

const ISSUER: u8 = 9;
const DAY_S: u64 = 86_400;

fn key(number: u8) -> EntityKey {
    EntityKey::from(Secret::new(keys(number).entity_key))
}

/// 0 publishes, 1 subscribes, both by a token and with a tag of [`ISSUER`]'s.
fn strict() -> ChannelConfig {
    let filter = || Some(Filter::parse("tier.production").unwrap());
    let issuers = || vec![Entity::from_key(entity(ISSUER))];
    ChannelConfig {
        issuers: issuers(),
        capabilities: CapabilityRules {
            publish: filter(),
            subscribe: filter(),
            issuers: issuers(),
        },
        ..channel("a", &[0], &[1])
    }
}

fn token(operation: Operation, channel: &str, lasts_s: u64) -> Authentic {
    let grant = Grant {
        subject: entity(0),
        scope: Scope::new(&name(channel), Reach::Subtree),
        operations: Operations::new(&[operation]).unwrap(),
        delegations: 0,
        not_before_s: UNIX_S,
        not_after_s: UNIX_S + lasts_s,
        generation: 0,
        nonce: [0; 8],
    };
    Chain::issue(grant, &key(ISSUER)).authenticate().unwrap()
}

fn tagged(lasts_s: u64) -> Statement {
    let tag = Capability::parse("tier.production").unwrap();
    let claim = Claim {
        subject: entity(0),
        version: 1,
        not_before_s: UNIX_S,
        not_after_s: UNIX_S + lasts_s,
        capabilities: Capabilities::new(vec![tag]).unwrap(),
    };
    Statement::issue(claim, 0, &key(ISSUER))
}

/// Node 0 holding these, and nothing else.
fn holding(tokens: &[Authentic], statements: &[Statement]) -> Net {
    let mut net = Net::new(2, &[strict()]);
    let Side { node, service } = &mut net.sides[0];
    for token in tokens {
        service.take_token(net.now_ns, node, token).unwrap();
    }
    for statement in statements {
        service.take_statement(net.now_ns, node, statement).unwrap();
    }
    net
}

/// What node 0 says of an entity that wants to publish.
fn checks(net: &Net, who: u8) -> Vec<Check> {
    let explained = net.sides[0]
        .service
        .explain(net.now_ns, &name("a"), &entity(who));
    let [(operation, checks), _] = explained.unwrap().operations;
    assert_eq!(operation, Operation::Publish);
    checks
}

fn failed(net: &Net, who: u8) -> Vec<(String, String)> {
    let failed = checks(net, who)
        .into_iter()
        .filter(|c| c.outcome == Outcome::Failed);
    failed.map(|check| (check.name, check.words)).collect()
}

#[test]
fn the_check_that_refuses_says_so() {
    let publish = || token(Operation::Publish, "a", DAY_S);
    let all = holding(&[publish()], &[tagged(DAY_S)]);
    assert_eq!(failed(&all, 0), []);
    let names: Vec<String> = checks(&all, 0)
        .into_iter()
        .map(|check| check.name)
        .collect();
    assert_eq!(names, ["list", "token", "capabilities", "revocations"]);

    let subscribe = token(Operation::Subscribe, "a", DAY_S);
    let elsewhere = token(Operation::Publish, "b", DAY_S);
    for (tokens, statements, name, words) in [
        (vec![], vec![tagged(DAY_S)], "token", "none was shown"),
        (
            vec![subscribe],
            vec![tagged(DAY_S)],
            "token",
            "does not allow to publish",
        ),
        (
            vec![elsewhere],
            vec![tagged(DAY_S)],
            "token",
            "link 1 is for b and all below it",
        ),
        (
            vec![publish()],
            vec![],
            "capabilities",
            "tier.production is not there",
        ),
    ] {
        let found = failed(&holding(&tokens, &statements), 0);
        let [(by, said)] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(by, name);
        assert!(said.contains(words), "{said}");
    }

    // Of those that are refused twice both are told.
    let mut late = holding(&[token(Operation::Publish, "a", 3)], &[tagged(3)]);
    late.pass(4_000);
    let found = failed(&late, 0);
    assert!(found[0].1.contains("link 1 ended 1 s ago"), "{found:?}");
    assert!(
        found[1]
            .1
            .contains("a statement that says so ended 1 s ago"),
        "{found:?}"
    );

    let mut revoked = holding(&[publish()], &[tagged(DAY_S)]);
    let list = List::new(entity(ISSUER));
    let list = list
        .revoke(Entry::Subject(entity(0)), u64::MAX, UNIX_S)
        .unwrap();
    let Side { node, service } = &mut revoked.sides[0];
    service.on_revocations(revoked.now_ns, node, &list.sign(&key(ISSUER)));
    let found = failed(&revoked, 0);
    assert!(
        found.iter().all(|(_, said)| said.contains("was revoked")),
        "{found:?}"
    );
    assert_eq!(found.len(), 2);
    let told = checks(&revoked, 0).pop().unwrap();
    assert_eq!(told.outcome, Outcome::Told);
    assert!(
        told.words.contains("the issuer's list has subject"),
        "{}",
        told.words
    );
}

#[test]
fn of_whom_nothing_is_known_that_is_said() {
    let net = holding(&[], &[]);
    let found = failed(&net, 1);
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["list", "token", "capabilities"]);
    let service = &net.sides[0].service;
    let explain = |channel: &str, who| service.explain(net.now_ns, &name(channel), &entity(who));
    assert!(!explain("a", 1).unwrap().is_known);
    assert!(explain("a", 0).unwrap().is_known);
    assert_eq!(explain("b", 0), None);
}

#[test]
fn what_is_presented_is_told_what_it_gives() {
    let mut net = holding(&[], &[tagged(DAY_S)]);
    let given =
        |net: &Net, token: &Authentic| net.sides[0].service.given_by_token(net.now_ns, token);
    let publish = given(&net, &token(Operation::Publish, "a", DAY_S));
    // It counts, and the node does not hold it yet.
    let refused = publish.rights[0].refused.as_deref().unwrap();
    assert!(refused.contains("none was shown"), "{refused}");
    let useless = |net: &Net, token: &Authentic| given(net, token).useless.unwrap_or_default();
    assert!(useless(&net, &token(Operation::Publish, "b", DAY_S)).contains("is for b"));
    assert!(useless(&net, &token(Operation::Admin, "a", DAY_S)).contains("does not allow"));
    net.pass(5_000);
    assert!(useless(&net, &token(Operation::Publish, "a", 3)).contains("ended 2 s ago"));

    let service = &net.sides[0].service;
    let given = service.given_by_statement(net.now_ns, &tagged(3));
    assert!(given.useless.unwrap().contains("ended 2 s ago"));
    let subscribe = service
        .given_by_statement(net.now_ns, &tagged(DAY_S))
        .rights;
    let operations: Vec<_> = subscribe
        .iter()
        .map(|right| right.operation.as_str())
        .collect();
    assert_eq!(operations, ["publish", "subscribe"]);
    let refused = subscribe[1].refused.as_deref().unwrap();
    assert!(
        refused.contains("`subscribe` list does not name this node's entity"),
        "{refused}"
    );
}
