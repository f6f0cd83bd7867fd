//! Scopes around channels: authority goes from broader ones to narrower ones, and a subscription to many channels gets
//! exactly what each of them allows. A node that does not check itself is one whose own file has no scopes.

use super::*;
use crate::{
    channel::{costs::ASKS_MAX, explain::Outcome, message::Message},
    config::ScopeConfig,
    keys::{EntityKey, Secret},
    rights::{
        Authentic, Chain, Fault, Grant, List, Operation, Operations, Reach, Refusal, Scope,
        revocation::Entry,
    },
};
use rights::UNIX_S;

/// Whose tokens the scopes ask for, and whose the channels.
const ABOVE: u8 = 8;
const ISSUER: u8 = 9;
const DAY_S: u64 = 86_400;

fn key(number: u8) -> EntityKey {
    EntityKey::from(Secret::new(keys(number).entity_key))
}

fn listed(who: &[u8]) -> Listed {
    Listed::Only(who.iter().map(|&n| Entity::from_key(entity(n))).collect())
}

/// A scope that keeps nobody out.
fn scope(text: &str) -> ScopeConfig {
    ScopeConfig {
        name: name(text),
        publish: Listed::Anyone,
        subscribe: Listed::Anyone,
        issuers: Vec::new(),
        capabilities: CapabilityRules::default(),
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        max_rate_pps: None,
    }
}

/// Channels below scopes, the broadest first.
fn below(channels: &[ChannelConfig], scopes: &[ScopeConfig]) -> Vec<ChannelConfig> {
    let mut channels = channels.to_vec();
    channels
        .iter_mut()
        .for_each(|channel| channel.narrow(scopes));
    channels
}

/// 0 publishes, 1 and 2 subscribe.
fn sensors() -> Vec<ChannelConfig> {
    ["s/a", "s/lab/x", "s/lab/y"]
        .map(|text| channel(text, &[0], &[1, 2]))
        .into()
}

fn token(
    issuer: u8,
    holder: u8,
    scope: &str,
    operation: Operation,
    (from_s, to_s): (u64, u64),
) -> Authentic {
    let grant = Grant {
        subject: entity(holder),
        scope: Scope::new(&name(scope), Reach::Subtree),
        operations: Operations::new(&[operation]).unwrap(),
        delegations: 0,
        not_before_s: UNIX_S + from_s,
        not_after_s: UNIX_S + to_s,
        generation: 0,
        nonce: [0; 8],
    };
    Chain::issue(grant, &key(issuer)).authenticate().unwrap()
}

fn give(net: &mut Net, at: usize, token: &Authentic) {
    let Side { node, service } = &mut net.sides[at];
    service.take_token(net.now_ns, node, token).unwrap();
    net.settle();
}

fn said(net: &mut Net, inbox: &Inbox) -> Vec<String> {
    for to in ["s/a", "s/lab/x", "s/lab/y"] {
        net.say(0, to, &[to]);
    }
    inbox.texts()
}

#[test]
fn a_narrower_scope_takes_away_and_gives_nothing_back() {
    let all = below(
        &sensors(),
        &[
            ScopeConfig {
                subscribe: listed(&[1, 2]),
                ..scope("s")
            },
            // 3 stands in this one alone, 2 in the one above alone.
            ScopeConfig {
                subscribe: listed(&[1, 3]),
                ..scope("s/lab")
            },
        ],
    );
    let mut net = Net::new(4, &all);
    let [one, two] = [Inbox::with_room(10), Inbox::with_room(10)];
    net.subscribe(1, within("s"), &one);
    net.subscribe(2, within("s"), &two);
    assert_eq!(said(&mut net, &one), ["s/a", "s/lab/x", "s/lab/y"]);
    assert_eq!(two.texts(), ["s/a"]);
    let refused = net
        .try_subscribe(3, within("s"), &Inbox::with_room(1))
        .unwrap_err();
    assert_eq!(refused, SubscribeError::NotAuthorised(within("s")));
}

#[test]
fn nodes_that_ask_for_no_scope_are_held_to_those_of_the_others() {
    // 2 believes that it may have everything, and so does 3 of its publishing.
    let open: Vec<ChannelConfig> = ["s/a", "s/lab/x", "s/lab/y"]
        .map(|text| channel(text, &[0, 3], &[1, 2]))
        .into();
    let scopes = [
        ScopeConfig {
            publish: listed(&[0]),
            ..scope("s")
        },
        ScopeConfig {
            subscribe: listed(&[1]),
            ..scope("s/lab")
        },
    ];
    let strict = below(&open, &scopes);
    let mut net = Net::with(&[strict.clone(), strict, open.clone(), open]);
    let [one, two] = [Inbox::with_room(10), Inbox::with_room(10)];
    net.subscribe(2, within("s"), &two);
    net.subscribe(1, within("s"), &one);
    assert_eq!(said(&mut net, &one).len(), 3);
    assert_eq!(two.texts(), ["s/a"]);
    assert_eq!((net.roster(0, "s/a"), net.roster(0, "s/lab/x")), (2, 1));
    // 1 asked 3 for nothing; 2 did, and gets it.
    net.say(3, "s/lab/x", &["by 3"]);
    assert_eq!(
        (one.texts(), two.texts()),
        (vec![], vec!["by 3".to_owned()])
    );
    let Side { node, .. } = &mut net.sides[1];
    node.connect(net.now_ns, id(3)).unwrap();
    net.settle();
    let Side { node, service } = &mut net.sides[1];
    let asks = Message::Subscribe {
        request: 77,
        pattern: within("s"),
    };
    service.tell(net.now_ns, node, id(3), &asks);
    net.settle();
    net.say(3, "s/lab/x", &["by 3"]);
    assert_eq!(one.texts(), Vec::<String>::new());
    assert_eq!(net.count(1, Reason::StreamPublisher), 1);
}

#[test]
fn tokens_of_a_scope_come_on_top_of_those_of_the_channel_and_the_refusal_names_it() {
    let asking = |issuer| vec![Entity::from_key(entity(issuer))];
    let mut all = sensors();
    all[0].issuers = asking(ISSUER);
    let all = below(
        &all,
        &[ScopeConfig {
            issuers: asking(ABOVE),
            ..scope("s")
        }],
    );
    let mut net = Net::new(3, &all);
    for issuer in [ABOVE, ISSUER] {
        give(
            &mut net,
            0,
            &token(issuer, 0, "s", Operation::Publish, (0, DAY_S)),
        );
    }
    let inbox = Inbox::with_room(10);
    let missing = |refusal| {
        let scope = name("s");
        SubscribeError::Token(
            name("s/a"),
            Refusal::Within {
                scope,
                refusal: Box::new(refusal),
            },
        )
    };
    let refused = net.try_subscribe(1, only("s/a"), &inbox).unwrap_err();
    assert_eq!(refused, missing(Refusal::Missing));
    assert!(
        refused.to_string().contains("the scope s around it"),
        "{refused}"
    );
    // The channel's own issuer cannot let anybody into the scope, nor the scope's into the channel.
    give(
        &mut net,
        1,
        &token(ISSUER, 1, "s", Operation::Subscribe, (0, DAY_S)),
    );
    let refused = net.try_subscribe(1, only("s/a"), &inbox).unwrap_err();
    assert_eq!(refused, missing(Refusal::Issuer(entity(ISSUER))));
    give(
        &mut net,
        2,
        &token(ABOVE, 2, "s", Operation::Subscribe, (0, DAY_S)),
    );
    let refused = net.try_subscribe(2, only("s/a"), &inbox).unwrap_err();
    assert_eq!(
        refused,
        SubscribeError::Token(name("s/a"), Refusal::Issuer(entity(ABOVE)))
    );
    give(
        &mut net,
        1,
        &token(ABOVE, 1, "s", Operation::Subscribe, (0, DAY_S)),
    );
    net.subscribe(1, within("s"), &inbox);
    assert_eq!(said(&mut net, &inbox).len(), 3);

    let explained = net.sides[2]
        .service
        .explain(net.now_ns, &name("s/a"), &entity(2));
    let [_, (_, checks)] = explained.unwrap().operations;
    let found = |wanted| {
        let mut all = checks.iter();
        let check = all.find(|check| check.name == wanted).unwrap();
        (check.outcome, check.words.as_str())
    };
    assert_eq!(found("scope"), (Outcome::Passed, "s does not keep it out"));
    assert_eq!(found("list").0, Outcome::Passed);
    let (outcome, words) = found("token");
    assert_eq!(outcome, Outcome::Failed);
    assert!(words.contains("is not one of the channel's"), "{words}");

    // The scope's issuer takes back what it gave: the subtree is closed, whatever the channel's says.
    let list = List::new(entity(ABOVE));
    let list = list
        .revoke(Entry::Subject(entity(1)), u64::MAX, UNIX_S)
        .unwrap();
    let signed = list.sign(&key(ABOVE));
    let Side { node, service } = &mut net.sides[0];
    service.on_revocations(net.now_ns, node, &signed);
    net.settle();
    assert_eq!(net.roster(0, "s/a") + net.roster(0, "s/lab/x"), 0);
    let explained = net.sides[0]
        .service
        .explain(net.now_ns, &name("s/a"), &entity(1));
    let [_, (_, checks)] = explained.unwrap().operations;
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| check.outcome == Outcome::Failed)
        .map(|check| check.name.as_str())
        .collect();
    assert_eq!(failed, ["scope"]);
}

#[test]
fn a_subscription_to_many_joins_and_leaves_as_rights_begin_and_end() {
    let mut all = sensors();
    for strict in &mut all[1..] {
        strict.issuers = vec![Entity::from_key(entity(ISSUER))];
    }
    let mut net = Net::new(2, &all);
    give(
        &mut net,
        0,
        &token(ISSUER, 0, "s", Operation::Publish, (0, DAY_S)),
    );
    // Clocks may differ by 30 s: the right begins 30 s earlier than it says.
    give(
        &mut net,
        1,
        &token(ISSUER, 1, "s/lab/x", Operation::Subscribe, (32, 38)),
    );
    let inbox = Inbox::with_room(10);
    net.subscribe(1, within("s"), &inbox);
    assert_eq!(said(&mut net, &inbox), ["s/a"]);
    net.pass(4_000);
    assert_eq!(said(&mut net, &inbox), ["s/a", "s/lab/x"]);
    assert_eq!(net.status(1).subscriptions[0].state, "granted");
    net.pass(36_000);
    assert_eq!(said(&mut net, &inbox), ["s/a"]);
}

#[test]
fn whoever_asks_without_end_is_told_so_and_counted_and_a_new_session_gives_no_more() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let inbox = Inbox::with_room(1);
    net.subscribe(1, only("a"), &inbox);
    let ask = |net: &mut Net, times: u32| {
        for request in 0..times {
            let Side { node, service } = &mut net.sides[1];
            let asks = Message::Subscribe {
                request,
                pattern: only("b"),
            };
            service.tell(net.now_ns, node, id(0), &asks);
            if request % 64 == 0 {
                net.settle();
            }
        }
        net.settle();
    };
    // One it has asked for already.
    ask(&mut net, ASKS_MAX - 1);
    assert_eq!(net.count(0, Reason::SubscribeRate), 0);
    assert_eq!(
        net.count(0, Reason::SubscribeRefused),
        u64::from(ASKS_MAX) - 1
    );
    ask(&mut net, 10);
    assert_eq!(net.count(0, Reason::SubscribeRate), 10);
    assert_eq!(
        net.count(0, Reason::SubscribeRefused),
        u64::from(ASKS_MAX) - 1
    );
    let Side { node, service } = &mut net.sides[0];
    service.on_closed(net.now_ns, node, id(1));
    let connected = virga_transport::Event::Connected {
        peer: id(1),
        entity: entity(1),
    };
    service.on_event(net.now_ns, node, connected);
    ask(&mut net, 10);
    assert_eq!(net.count(0, Reason::SubscribeRate), 20);
    net.pass(1_000);
    ask(&mut net, 500);
    assert_eq!(net.count(0, Reason::SubscribeRate), 20);
}

/// A grant flood: what is not looked at costs no signature, and gives nothing.
#[test]
fn a_flood_of_tokens_over_many_sessions_is_bounded_and_counted() {
    let strict = ChannelConfig {
        issuers: vec![Entity::from_key(entity(ISSUER))],
        ..channel("a", &[0], &[1])
    };
    let mut net = Net::with(&[vec![strict], vec![channel("a", &[0], &[1])]]);
    give(
        &mut net,
        0,
        &token(ISSUER, 0, "a", Operation::Publish, (0, DAY_S)),
    );
    net.subscribe(1, only("a"), &Inbox::with_room(1));
    let mut shown = 0;
    for _session in 0..20 {
        for _ in 0..60 {
            shown += 1;
            let forged = token(ISSUER - 1, 1, "a", Operation::Subscribe, (0, DAY_S + shown));
            let mut bytes = forged.chain().encode();
            *bytes.last_mut().unwrap() ^= 1;
            let Side { node, service } = &mut net.sides[0];
            service.on_token(net.now_ns, node, id(1), &bytes);
        }
        let Side { node, service } = &mut net.sides[0];
        service.on_closed(net.now_ns, node, id(1));
        let connected = virga_transport::Event::Connected {
            peer: id(1),
            entity: entity(1),
        };
        service.on_event(net.now_ns, node, connected);
        net.settle();
    }
    let verified = net.count(0, Fault::Signature.into());
    assert!(
        verified <= u64::from(super::super::costs::LOOKS_MAX),
        "{verified}"
    );
    assert_eq!(verified + net.count(0, Reason::TokensFull), shown);
    assert_eq!(net.roster(0, "a"), 0);
}
