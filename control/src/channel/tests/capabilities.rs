//! Channels that ask for capabilities: who gets in, who is put out, and when. A sender that does not check
//! itself is one whose own configuration asks for none.

use super::*;
use crate::{
    capability::{Capabilities, Capability, Filter, Statement, statement::Claim},
    channel::{
        capabilities::{STATEMENTS_MAX, Unusable},
        costs::LOOKS_MAX,
        explain::Outcome,
    },
    keys::{EntityKey, Secret},
    rights::{List, Operation, Refusal, revocation::Entry},
};

const ISSUER: u8 = 9;
const DAY_S: u64 = 86_400;
use rights::UNIX_S;

fn key(number: u8) -> EntityKey {
    EntityKey::from(Secret::new(keys(number).entity_key))
}

/// 0 publishes with a GPU, 1 and 2 subscribe in production, by [`ISSUER`]'s word.
fn strict(text: &str) -> ChannelConfig {
    ChannelConfig {
        capabilities: CapabilityRules {
            publish: Some(Filter::parse("hardware.gpu and software.cuda >= 12").unwrap()),
            subscribe: Some(Filter::parse("tier = production").unwrap()),
            issuers: vec![Entity::from_key(entity(ISSUER))],
        },
        ..lax(text)
    }
}

/// The same without asking for anything.
fn lax(text: &str) -> ChannelConfig {
    channel(text, &[0], &[1, 2])
}

fn claim(about: u8, version: u64, lasts_s: u64, all: &[&str]) -> Claim {
    let all = all.iter().map(|text| Capability::parse(text).unwrap());
    Claim {
        subject: entity(about),
        version,
        not_before_s: UNIX_S,
        not_after_s: UNIX_S + lasts_s,
        capabilities: Capabilities::new(all.collect()).unwrap(),
    }
}

fn gpu(version: u64, lasts_s: u64) -> Statement {
    let all = ["hardware.gpu", "software.cuda=12.4"];
    Statement::issue(claim(0, version, lasts_s, &all), 0, &key(ISSUER))
}

fn production(about: u8, version: u64, lasts_s: u64) -> Statement {
    let claim = claim(about, version, lasts_s, &["tier=production"]);
    Statement::issue(claim, 0, &key(ISSUER))
}

impl Net {
    fn vouch(&mut self, at: usize, statement: &Statement) {
        let Side { node, service } = &mut self.sides[at];
        service
            .take_statement(self.now_ns, node, statement)
            .unwrap();
        self.settle();
    }

    fn take_back(&mut self, at: usize, list: &List) {
        let signed = list.sign(&key(ISSUER));
        let Side { node, service } = &mut self.sides[at];
        service.on_revocations(self.now_ns, node, &signed);
        self.settle();
    }

    /// Has a node tell node 0 something that its service would not.
    fn show_statement(&mut self, at: usize, bytes: &[u8]) {
        let Side { node, service } = &mut self.sides[at];
        let message = Message::Statement(bytes.to_vec());
        service.tell(self.now_ns, node, id(0), &message);
        self.settle();
    }

    fn stands(&self, at: usize) -> (String, String) {
        let one = self.status(at).subscriptions.remove(0);
        (one.state, one.words)
    }

    fn may(&self, at: usize, operation: Operation, who: u8) -> Result<(), String> {
        let service = &self.sides[at].service;
        let explained = service.explain(self.now_ns, &name("a"), &entity(who));
        let mut operations = explained.unwrap().operations.into_iter();
        let (_, checks) = operations.find(|(one, _)| *one == operation).unwrap();
        match checks.into_iter().find(|c| c.outcome == Outcome::Failed) {
            Some(check) => Err(format!("{}: {}", check.name, check.words)),
            None => Ok(()),
        }
    }
}

#[test]
fn without_what_is_asked_for_nothing_is_published_or_subscribed_and_with_it_it_is() {
    let mut net = Net::new(2, &[strict("a")]);
    let inbox = Inbox::with_room(10);
    let refused = net.try_subscribe(1, only("a"), &inbox).unwrap_err();
    let words = refused.to_string();
    assert!(
        words.contains("the channel asks for tier = production"),
        "{words}"
    );
    assert!(words.contains("virga capability present"), "{words}");
    let refused = net.publish(0, "a", texts(0..1)).result().unwrap_err();
    let words = refused.to_string();
    assert!(
        words.contains("asks for hardware.gpu, and of what counts hardware.gpu is not there"),
        "{words}"
    );

    // What an entity says of itself opens nothing.
    net.vouch(
        1,
        &Statement::announce(claim(1, 1, DAY_S, &["tier=production"]), &key(1)),
    );
    let refused = net.try_subscribe(1, only("a"), &inbox).unwrap_err();
    assert!(
        refused.to_string().contains("it only says so itself"),
        "{refused}"
    );

    net.vouch(0, &gpu(1, DAY_S));
    net.vouch(1, &production(1, 1, DAY_S));
    net.subscribe(1, only("a"), &inbox);
    assert_eq!(net.stands(1).0, "granted");
    assert_eq!(net.say(0, "a", &["x"]).subscribers, 1);
    assert_eq!(inbox.texts(), ["x"]);
    for (at, who) in [(0, 1), (1, 1)] {
        assert_eq!(net.may(at, Operation::Subscribe, who), Ok(()));
    }
    assert_eq!(net.may(1, Operation::Publish, 0), Ok(()));
    let listed = net.may(1, Operation::Publish, 1).unwrap_err();
    assert!(listed.starts_with("list: "), "{listed}");

    let Side { node, service } = &mut net.sides[1];
    let refused = service.take_statement(net.now_ns, node, &production(2, 1, DAY_S));
    assert_eq!(refused, Err(Unusable::Subject(entity(2))));
}

#[test]
fn a_subscriber_that_does_not_check_itself_is_told_which_part_of_the_filter_failed() {
    let mut net = Net::with(&[vec![strict("a")], vec![lax("a")]]);
    net.vouch(0, &gpu(1, DAY_S));
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    let (state, words) = net.stands(1);
    assert_eq!((state.as_str(), net.roster(0, "a")), ("capability", 0));
    assert_eq!(
        words,
        "the channel asks for tier = production, and of what counts tier is not there"
    );
    let announced = claim(1, 1, DAY_S, &["tier=production"]);
    net.vouch(1, &Statement::announce(announced.clone(), &key(1)));
    let (state, words) = net.stands(1);
    assert_eq!((state.as_str(), net.roster(0, "a")), ("capability", 0));
    assert!(words.ends_with("it only says so itself"), "{words}");
    // By a stranger, who is not listened to.
    net.vouch(1, &Statement::issue(announced, 0, &key(8)));
    assert_eq!(net.count(0, Reason::CapabilityIssuer), 1);
    net.say(0, "a", &["too early"]);
    net.vouch(1, &production(1, 1, DAY_S));
    assert_eq!(
        (net.stands(1).0.as_str(), net.roster(0, "a")),
        ("granted", 1)
    );
    net.say(0, "a", &["x"]);
    assert_eq!(inbox.texts(), ["x"]);
}

#[test]
fn no_event_of_a_publisher_without_capabilities_reaches_a_subscriber() {
    let mut net = Net::with(&[vec![lax("a")], vec![strict("a")]]);
    net.vouch(1, &production(1, 1, DAY_S));
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("a"), &inbox);
    net.vouch(
        0,
        &Statement::announce(
            claim(0, 1, DAY_S, &["hardware.gpu", "software.cuda=12"]),
            &key(0),
        ),
    );
    net.say(0, "a", &["stolen"]);
    assert_eq!(inbox.texts(), [""; 0]);
    assert_eq!(net.count(1, Reason::Capability), 1);
    let refused = net.may(1, Operation::Publish, 0).unwrap_err();
    assert!(refused.starts_with("capabilities: "), "{refused}");
    net.vouch(0, &gpu(1, DAY_S));
    net.say(0, "a", &["x"]);
    assert_eq!(inbox.texts(), ["x"], "it is asked again as soon as it may");
}

#[test]
fn rights_end_with_the_statement_and_come_back_with_a_new_one() {
    let mut net = Net::with(&[vec![strict("a")], vec![lax("a")], vec![strict("a")]]);
    net.vouch(0, &gpu(1, 8));
    net.vouch(1, &production(1, 1, 3));
    net.vouch(2, &production(2, 1, DAY_S));
    let (first, second) = (Inbox::with_room(10), Inbox::with_room(10));
    net.subscribe(1, only("a"), &first);
    net.subscribe(2, only("a"), &second);
    net.say(0, "a", &["both"]);
    assert_eq!((first.take().len(), second.take().len()), (1, 1));
    net.pass(4_100);
    assert_eq!(
        (net.stands(1).0.as_str(), net.roster(0, "a")),
        ("capability", 1)
    );
    net.pass(5_000);
    let late = net.publish(0, "a", texts(0..1)).result();
    assert!(
        matches!(late, Err(PublishError::Token(_, Refusal::Capability(_)))),
        "{late:?}"
    );
    net.vouch(0, &gpu(2, DAY_S));
    net.say(0, "a", &["again"]);
    assert_eq!(
        (first.take().len(), second.texts()),
        (0, vec!["again".into()])
    );
}

#[test]
fn a_later_statement_that_says_less_and_a_revocation_end_rights() {
    let mut net = Net::with(&[vec![strict("a")], vec![lax("a")], vec![lax("a")]]);
    net.vouch(0, &gpu(1, DAY_S));
    let of_2 = production(2, 1, DAY_S);
    net.vouch(1, &production(1, 1, DAY_S));
    net.vouch(2, &of_2);
    for at in [1, 2] {
        net.subscribe(at, only("a"), &Inbox::with_room(10));
    }
    assert_eq!(net.roster(0, "a"), 2);
    let less = claim(1, 2, DAY_S, &["tier=test"]);
    net.vouch(1, &Statement::issue(less, 0, &key(ISSUER)));
    assert_eq!(net.roster(0, "a"), 1);
    assert!(net.stands(1).1.contains("tier is test"));

    let list = List::new(entity(ISSUER));
    let without_2 = list
        .revoke(Entry::Link(of_2.id()), u64::MAX, UNIX_S)
        .unwrap();
    net.take_back(0, &without_2);
    assert_eq!(net.roster(0, "a"), 0);
    let (state, words) = net.stands(2);
    assert_eq!(state, "capability");
    assert!(
        words.contains("was revoked: the issuer's list has link"),
        "{words}"
    );

    assert_eq!(net.may(0, Operation::Publish, 0), Ok(()));
    net.take_back(0, &without_2.begin_generation(1).unwrap());
    assert!(
        net.may(0, Operation::Publish, 0)
            .unwrap_err()
            .contains("of generation 0")
    );
}

/// What a reliable channel held back is not published after all.
#[test]
fn what_waits_when_the_right_to_publish_ends_goes_to_nobody() {
    let patient = |channel| ChannelConfig {
        hold_max_s: 60,
        ..channel
    };
    let mut net = Net::with(&[vec![patient(strict("a"))], vec![patient(lax("a"))]]);
    net.vouch(0, &gpu(1, 3));
    net.vouch(1, &production(1, 1, DAY_S));
    let inbox = Inbox::with_room(4);
    let id = net.subscribe(1, only("a"), &inbox);
    net.say(0, "a", &["1", "2"]);
    let answer = net.publish(0, "a", texts(3..100));
    net.settle();
    assert!(!answer.is_there(), "the subscriber is slow");
    net.pass(4_100);
    let refused = answer.result();
    assert!(
        matches!(refused, Err(PublishError::Token(_, Refusal::Capability(_)))),
        "{refused:?}"
    );
    assert_eq!(inbox.texts(), ["1", "2"]);
    net.command(1, Command::Drained(id));
    net.settle();
    net.pass(1_000);
    assert_eq!(inbox.texts(), [""; 0]);
}

#[test]
fn worthless_words_are_counted_bounded_and_change_nothing() {
    let mut net = Net::with(&[vec![strict("a")], vec![lax("a")]]);
    net.vouch(0, &gpu(1, DAY_S));
    net.subscribe(1, only("a"), &Inbox::with_room(1));
    let right = production(1, 1, DAY_S).as_bytes().to_vec();
    let mut forged = right.clone();
    *forged.last_mut().unwrap() ^= 1;
    let cases = [
        (vec![1, 2, 3], Reason::CapabilityMalformed),
        (forged, Reason::CapabilitySignature),
        (
            production(2, 1, DAY_S).as_bytes().to_vec(),
            Reason::CapabilitySubject,
        ),
        (
            production(1, 1, 0).as_bytes().to_vec(),
            Reason::CapabilityExpired,
        ),
    ];
    for (bytes, reason) in &cases {
        net.show_statement(1, bytes);
        assert_eq!(net.count(0, *reason), 1, "{reason:?}");
    }
    for _ in cases.len()..usize::try_from(LOOKS_MAX).unwrap() {
        net.show_statement(1, &[1]);
    }
    net.show_statement(1, &right);
    assert_eq!(
        net.count(0, Reason::CapabilitiesFull),
        1,
        "even a right one"
    );
    assert_eq!(net.roster(0, "a"), 0);
    net.pass(1_100);
    net.show_statement(1, &right);
    assert_eq!(net.roster(0, "a"), 0, "nobody has asked again yet");
    net.pass(ASK_AGAIN_NS / MS + 100);
    assert_eq!(net.roster(0, "a"), 1);
}

#[test]
fn a_node_holds_so_many_statements_and_the_expired_make_room() {
    let issuer = |number: u8| key(100 + number);
    let issuers = (0..u8::try_from(STATEMENTS_MAX).unwrap() + 1)
        .map(|number| Entity::from_key(issuer(number).public))
        .collect();
    let mut wide = strict("a");
    wide.capabilities.issuers = issuers;
    let mut net = Net::new(1, &[wide]);
    let say = |number: u8, version, lasts_s| {
        let claim = claim(0, version, lasts_s, &["tier=test"]);
        Statement::issue(claim, 0, &issuer(number))
    };
    net.vouch(0, &say(0, 1, 3));
    for number in 1..u8::try_from(STATEMENTS_MAX).unwrap() {
        net.vouch(0, &say(number, 1, DAY_S));
    }
    let last = say(u8::try_from(STATEMENTS_MAX).unwrap(), 1, DAY_S);
    let take = |net: &mut Net, one: &Statement| {
        let Side { node, service } = &mut net.sides[0];
        service.take_statement(net.now_ns, node, one)
    };
    assert_eq!(take(&mut net, &last), Err(Unusable::Full));
    assert_eq!(
        take(&mut net, &say(1, 2, DAY_S)),
        Ok(()),
        "a later one takes the place"
    );
    assert_eq!(take(&mut net, &say(1, 1, DAY_S)), Err(Unusable::Old(1)));
    net.pass(3_100);
    assert_eq!(take(&mut net, &last), Ok(()));
}
