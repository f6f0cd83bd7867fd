//! Channels that require tokens: who gets in, who is put out, and when. A sender that does not check
//! itself is one whose own configuration requires no token.

use super::*;
use crate::{
    channel::rights::{TOKENS_PER_PEER_MAX, Taken},
    keys::{EntityKey, Secret},
    rights::{
        Authentic, Chain, Fault, Grant, List, Operation, Operations, Reach, Refusal, Scope,
        revocation::Entry,
    },
};

/// Unix time at the nodes' time 0.
pub(super) const UNIX_S: u64 = 1_800_000_000;
pub(super) const ISSUER: u8 = 9;
pub(super) const DAY_S: u64 = 86_400;

fn key(number: u8) -> EntityKey {
    EntityKey::from(Secret::new(keys(number).entity_key))
}

/// 0 publishes, 1 and 2 subscribe, by tokens of [`ISSUER`].
fn strict(text: &str) -> ChannelConfig {
    ChannelConfig {
        issuers: vec![Entity::from_key(entity(ISSUER))],
        ..lax(text)
    }
}

/// The same without tokens.
fn lax(text: &str) -> ChannelConfig {
    channel(text, &[0], &[1, 2])
}

pub(super) fn token(holder: u8, scope: &str, operation: Operation, lasts_s: u64) -> Authentic {
    token_of(ISSUER, holder, scope, operation, lasts_s)
}

fn token_of(issuer: u8, holder: u8, scope: &str, operation: Operation, lasts_s: u64) -> Authentic {
    let grant = Grant {
        subject: entity(holder),
        scope: Scope::new(&name(scope), Reach::Subtree),
        operations: Operations::new(&[operation]).unwrap(),
        delegations: 0,
        not_before_s: UNIX_S,
        not_after_s: UNIX_S + lasts_s,
        generation: 0,
        nonce: [0; 8],
    };
    Chain::issue(grant, &key(issuer)).authenticate().unwrap()
}

impl Net {
    pub(super) fn give(&mut self, at: usize, token: &Authentic) {
        let Side { node, service } = &mut self.sides[at];
        service.take_token(self.now_ns, node, token).unwrap();
        self.settle();
    }

    /// Hands a list to one node, and carries what that node sends.
    pub(super) fn announce(&mut self, at: usize, list: &List) -> Taken {
        let signed = list.sign(&key(ISSUER));
        let Side { node, service } = &mut self.sides[at];
        let taken = service.on_revocations(self.now_ns, node, &signed);
        self.settle();
        taken
    }

    fn state(&self, at: usize) -> String {
        self.status(at).subscriptions[0].state.clone()
    }

    /// What all nodes counted for want of a token.
    fn refused(&self, at: usize) -> Vec<(&'static str, u64)> {
        let reasons = self.sides[at].service.reasons.iter();
        let tokens = reasons.filter(|(reason, count)| reason.is_of_right() && *count > 0);
        tokens
            .map(|(reason, count)| (reason.name(), count))
            .collect()
    }
}

/// Nobody is named anywhere: tokens alone say who may, and every peer is asked.
#[test]
fn without_lists_whoever_has_a_token_may() {
    let open = ChannelConfig {
        publish: Listed::Anyone,
        subscribe: Listed::Anyone,
        ..strict("a")
    };
    let mut net = Net::new(4, &[open]);
    let inbox = Inbox::with_room(10);
    let refused = net.try_subscribe(1, only("a"), &inbox).unwrap_err();
    assert_eq!(refused, SubscribeError::Token(name("a"), Refusal::Missing));
    net.give(1, &token(1, "a", Operation::Subscribe, DAY_S));
    net.subscribe(1, only("a"), &inbox);
    let refused = net.publish(3, "a", texts(0..1)).result();
    assert_eq!(
        refused.unwrap_err(),
        PublishError::Token(name("a"), Refusal::Missing)
    );
    net.give(3, &token(3, "a", Operation::Publish, DAY_S));
    assert_eq!(net.say(3, "a", &["x"]).published, 1);
    assert_eq!(inbox.texts(), ["x"]);
    let askers = net.status(1).subscriptions[0].state.clone();
    assert_eq!(net.roster(0, "a"), 1, "{askers}");
}

#[test]
fn without_a_token_nothing_is_published_or_subscribed_and_with_one_it_is() {
    let mut net = Net::new(2, &[strict("a/b")]);
    let inbox = Inbox::with_room(10);
    let missing = Refusal::Missing;
    let refused = net.try_subscribe(1, only("a/b"), &inbox).unwrap_err();
    assert_eq!(refused, SubscribeError::Token(name("a/b"), missing.clone()));
    let refused = net.publish(0, "a/b", texts(0..1)).result();
    assert_eq!(refused, Err(PublishError::Token(name("a/b"), missing)));

    net.give(0, &token(0, "a", Operation::Publish, DAY_S));
    net.give(1, &token(1, "a", Operation::Subscribe, DAY_S));
    net.subscribe(1, only("a/b"), &inbox);
    assert_eq!(net.state(1), "granted");
    assert_eq!(net.say(0, "a/b", &["x"]).subscribers, 1);
    assert_eq!(inbox.texts(), ["x"]);

    let others = token(2, "a", Operation::Subscribe, DAY_S);
    let Side { node, service } = &mut net.sides[1];
    let refused = service.take_token(net.now_ns, node, &others);
    assert_eq!(refused, Err(Refusal::Holder(entity(2))));
}

#[test]
fn a_subscriber_that_does_not_check_itself_is_refused_until_it_shows_a_token() {
    let mut net = Net::with(&[vec![strict("a")], vec![lax("a")]]);
    net.give(0, &token(0, "a", Operation::Publish, DAY_S));
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    assert_eq!(
        (net.state(1).as_str(), net.roster(0, "a")),
        ("token_missing", 0)
    );
    assert_eq!(net.count(0, Reason::SubscribeRefused), 1);
    for (wrong, state) in [
        (token(1, "b", Operation::Subscribe, DAY_S), "token_scope"),
        (token(1, "a", Operation::Publish, DAY_S), "token_operation"),
        (
            token_of(8, 1, "a", Operation::Subscribe, DAY_S),
            "token_operation",
        ),
    ] {
        net.give(1, &wrong);
        assert_eq!((net.state(1).as_str(), net.roster(0, "a")), (state, 0));
    }
    net.say(0, "a", &["too early"]);
    net.give(1, &token(1, "a", Operation::Subscribe, DAY_S));
    assert_eq!((net.state(1).as_str(), net.roster(0, "a")), ("granted", 1));
    net.say(0, "a", &["x"]);
    assert_eq!(inbox.texts(), ["x"]);
}

#[test]
fn no_event_of_a_publisher_without_a_token_reaches_a_subscriber() {
    let mut net = Net::with(&[vec![lax("a")], vec![strict("a")]]);
    net.give(1, &token(1, "a", Operation::Subscribe, DAY_S));
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    net.say(0, "a", &["stolen"]);
    net.say(0, "a", &["words"]);
    assert_eq!(inbox.texts(), [""; 0]);
    assert_eq!(net.refused(1), [("token_missing", 1)]);
    net.give(0, &token(0, "a", Operation::Publish, DAY_S));
    net.say(0, "a", &["x"]);
    assert_eq!(inbox.texts(), ["x"], "it is asked again as soon as it may");
}

#[test]
fn rights_end_with_their_tokens() {
    let mut net = Net::with(&[vec![strict("a")], vec![lax("a")], vec![strict("a")]]);
    net.give(0, &token(0, "a", Operation::Publish, 8));
    net.give(1, &token(1, "a", Operation::Subscribe, 3));
    net.give(2, &token(2, "a", Operation::Subscribe, DAY_S));
    let (first, second) = (Inbox::with_room(10), Inbox::with_room(10));
    net.subscribe(1, only("a"), &first);
    net.subscribe(2, only("a"), &second);
    net.say(0, "a", &["both"]);
    assert_eq!(
        (first.texts(), second.texts()),
        (vec!["both".into()], vec!["both".into()])
    );

    net.pass(4_100);
    assert_eq!(
        (net.state(1).as_str(), net.roster(0, "a")),
        ("token_expired", 1)
    );
    net.say(0, "a", &["second alone"]);
    assert_eq!(
        (first.texts(), second.texts()),
        (vec![], vec!["second alone".into()])
    );

    net.pass(5_000);
    let late = net.publish(0, "a", texts(0..1)).result();
    assert!(
        matches!(
            late,
            Err(PublishError::Token(_, Refusal::Expired { link: 1, .. }))
        ),
        "{late:?}"
    );
    assert!(
        net.refused(2).contains(&("token_expired", 1)),
        "{:?}",
        net.refused(2)
    );
    net.give(0, &token(0, "a", Operation::Publish, DAY_S));
    net.say(0, "a", &["again"]);
    assert_eq!(second.texts(), ["again"]);
}

#[test]
fn a_revocation_ends_rosters_streams_and_local_subscriptions_wherever_it_gets() {
    let mut net = Net::with(&[vec![strict("a")], vec![lax("a")], vec![strict("a")]]);
    let publish = token(0, "a", Operation::Publish, DAY_S);
    let subscribe = token(1, "a", Operation::Subscribe, DAY_S);
    net.give(0, &publish);
    net.give(1, &subscribe);
    net.give(2, &token(2, "a", Operation::Subscribe, DAY_S));
    let (first, second) = (Inbox::with_room(10), Inbox::with_room(10));
    net.subscribe(1, only("a"), &first);
    net.subscribe(2, only("a"), &second);
    net.say(0, "a", &["both"]);
    assert_eq!((first.take().len(), second.take().len()), (1, 1));

    // 2 hears of it, and tells 0; no time passes.
    let list = List::new(entity(ISSUER));
    let now_s = UNIX_S;
    let link = |token: &Authentic| Entry::Link(token.chain().links()[0].id());
    let without_1 = list.revoke(link(&subscribe), u64::MAX, now_s).unwrap();
    assert_eq!(net.announce(2, &without_1), Taken::New(entity(ISSUER), 1));
    assert_eq!(
        (net.state(1).as_str(), net.roster(0, "a")),
        ("token_revoked", 1)
    );
    net.say(0, "a", &["second alone"]);
    assert_eq!(
        (first.take().len(), second.texts()),
        (0, vec!["second alone".into()])
    );

    let without_0 = without_1.revoke(link(&publish), u64::MAX, now_s).unwrap();
    net.announce(2, &without_0);
    let refused = net.publish(0, "a", texts(0..1)).result();
    assert!(
        matches!(
            refused,
            Err(PublishError::Token(_, Refusal::Revoked { .. }))
        ),
        "{refused:?}"
    );

    assert_eq!(
        net.announce(0, &without_1),
        Taken::No,
        "an old list is replayed"
    );
    assert_eq!(net.count(0, Reason::RevocationsOld), 1);
    let other = without_1
        .revoke(Entry::Subject([1; 32]), u64::MAX, now_s)
        .unwrap();
    assert_eq!(net.announce(0, &other), Taken::No);
    assert_eq!(net.count(0, Reason::RevocationsConflict), 1);

    net.announce(0, &without_0.begin_generation(1).unwrap());
    assert!(
        second
            .end
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .contains("generation 0")
    );
}

#[test]
fn a_node_that_starts_anew_learns_from_its_peers_what_was_revoked() {
    let channels = [strict("a")];
    let mut net = Net::new(2, &channels);
    let publish = token(0, "a", Operation::Publish, DAY_S);
    net.give(0, &publish);
    net.give(1, &token(1, "a", Operation::Subscribe, DAY_S));
    net.subscribe(1, only("a"), &Inbox::with_room(10));
    let list = List::new(entity(ISSUER));
    let list = list
        .revoke(Entry::Subject(entity(0)), u64::MAX, UNIX_S)
        .unwrap();
    net.announce(1, &list);
    net.restart(0, &channels);
    net.give(0, &publish);
    net.pass(30_000);
    let refused = net.publish(0, "a", texts(0..1)).result();
    assert!(
        matches!(
            refused,
            Err(PublishError::Token(_, Refusal::Revoked { .. }))
        ),
        "{refused:?}"
    );
}

#[test]
fn worthless_tokens_and_lists_are_counted_and_change_nothing() {
    let mut net = Net::with(&[vec![strict("a")], vec![lax("a")]]);
    net.give(0, &token(0, "a", Operation::Publish, DAY_S));
    net.subscribe(1, only("a"), &Inbox::with_room(1));
    let right = token(1, "a", Operation::Subscribe, DAY_S).chain().encode();
    let mut forged = right.clone();
    *forged.last_mut().unwrap() ^= 1;
    let others = token(2, "a", Operation::Subscribe, DAY_S).chain().encode();
    let cases = [
        (vec![1, 2, 3], Reason::TokenMalformed),
        (forged, Fault::Signature.into()),
        (others, Reason::TokenHolder),
    ];
    let tries = cases.len();
    for (chain, reason) in cases {
        net.show(1, Message::Token(chain));
        assert_eq!(net.count(0, reason), 1, "{reason:?}");
    }
    for _ in tries..TOKENS_PER_PEER_MAX {
        net.show(1, Message::Token(vec![1]));
    }
    net.show(1, Message::Token(right));
    assert_eq!(net.count(0, Reason::TokensFull), 1, "even a right one");
    assert_eq!(net.roster(0, "a"), 0);

    net.show(1, Message::Revocations(vec![1, 2, 3]));
    assert_eq!(net.count(0, Reason::RevocationsMalformed), 1);
    let stranger = List::new(entity(8)).begin_generation(1).unwrap();
    net.show(1, Message::Revocations(stranger.sign(&key(8))));
    assert_eq!(net.count(0, Reason::RevocationsIssuer), 1);
}

impl Net {
    /// Has a node tell node 0 something that its service would not.
    fn show(&mut self, at: usize, message: Message) {
        let Side { node, service } = &mut self.sides[at];
        service.tell(self.now_ns, node, id(0), &message);
        self.settle();
    }
}

#[test]
fn a_token_that_begins_later_is_asked_for_again_by_itself() {
    let mut net = Net::with(&[vec![strict("a")], vec![strict("a")]]);
    net.give(1, &token(1, "a", Operation::Subscribe, DAY_S));
    net.give(0, &token(0, "a", Operation::Publish, DAY_S));
    // 0's clock is a minute behind: to it, 1's token is not valid yet.
    let behind_s = 60;
    net.sides[0]
        .service
        .set_clock((UNIX_S - behind_s) * 1_000_000_000);
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    assert_eq!(
        (net.state(1).as_str(), net.roster(0, "a")),
        ("token_not_yet_valid", 0)
    );
    net.sides[0].service.set_clock(UNIX_S * 1_000_000_000);
    net.pass(ASK_AGAIN_NS / MS + 100);
    assert_eq!((net.state(1).as_str(), net.roster(0, "a")), ("granted", 1));
    net.say(0, "a", &["x"]);
    assert_eq!(inbox.texts(), ["x"]);
}

#[test]
fn a_subscription_to_many_channels_gets_back_the_one_whose_token_is_renewed() {
    let mut net = Net::new(2, &[strict("s/1"), strict("s/2")]);
    net.give(0, &token(0, "s", Operation::Publish, DAY_S));
    net.give(1, &token(1, "s/1", Operation::Subscribe, 3));
    net.give(1, &token(1, "s/2", Operation::Subscribe, DAY_S));
    let inbox = Inbox::with_room(10);
    net.subscribe(1, within("s"), &inbox);
    let said = |net: &mut Net| {
        net.say(0, "s/1", &["1"]);
        net.say(0, "s/2", &["2"]);
        inbox.texts()
    };
    assert_eq!(said(&mut net), ["1", "2"]);
    net.pass(4_100);
    assert_eq!(said(&mut net), ["2"]);
    net.give(1, &token(1, "s/1", Operation::Subscribe, DAY_S));
    assert_eq!(said(&mut net), ["1", "2"]);
}

#[test]
fn renewals_without_end_find_room() {
    let mut net = Net::new(2, &[strict("a")]);
    net.give(0, &token(0, "a", Operation::Publish, DAY_S));
    net.give(1, &token(1, "a", Operation::Subscribe, DAY_S));
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    for renewal in 1..=3 * u64::try_from(TOKENS_PER_PEER_MAX).unwrap() {
        net.pass(1_000);
        let lasts_s = net.now_ns / 1_000_000_000 + 3;
        net.give(1, &token(1, "a", Operation::Subscribe, lasts_s));
        assert_eq!(net.count(0, Reason::TokensFull), 0, "renewal {renewal}");
    }
    net.say(0, "a", &["x"]);
    assert_eq!(inbox.texts(), ["x"]);
}
