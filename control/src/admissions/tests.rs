//! Evidence in any order, from anyone: what follows from it, and what never does.

mod vouched;
mod wire;

use super::{
    inbox::{Full, Heard, Inbox, PER_PEER_MAX},
    store::{EvidenceId, Kind, PER_GRANTEE_MAX, PER_HOLDER_MAX, Store, Taken},
    wire::{BUCKETS, Digest, Piece, Publication, Verdict},
};
use crate::{
    channel::message::{Message, MessageError},
    config::{CapabilityRules, ChannelConfig, Entity, Listed},
    keys::{EntityKey, Secret},
    rights::{
        Chain, Grant, List, Operation, Operations, Reach, Scope, identity::Retired,
        revocation::Entry,
    },
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use virga_ebpf::{
    decide::is_authorised, header::NodeId, image::Image, memory::MemoryTables, publish::Publisher,
    subnet::Visibility, tables::Pair,
};
use virga_transport::{ChannelName, Mode};

const NOW_S: u64 = 1_800_000_000;
const DAY_S: u64 = 86_400;
const OWN: u8 = 1;
const KINDS: &[Kind] = &[Kind::Token, Kind::Statement];

fn key(number: u8) -> EntityKey {
    EntityKey::from(Secret::new([number; 32]))
}

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text).unwrap()
}

fn channel(text: &str, issuers: &[u8]) -> ChannelConfig {
    let issuers = issuers.iter().map(|&n| Entity::from_key(key(n).public));
    ChannelConfig {
        name: name(text),
        salt: 0,
        hash: name(text).hash(0),
        priority: 0,
        mode: Mode::Ordered,
        hold_max_s: 1,
        fan_out: 0,
        max_rate_pps: None,
        publish: Listed::Anyone,
        subscribe: Listed::Anyone,
        issuers: issuers.collect(),
        capabilities: CapabilityRules::default(),
        keep: None,
        scopes: Vec::new(),
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
    }
}

/// Two strict channels of issuers 100 and 101, and one that asks for nothing.
fn store() -> Store {
    let channels = [
        channel("a/x", &[100]),
        channel("a/y", &[100, 101]),
        channel("free", &[]),
    ];
    Store::new(Some(key(OWN).public), &channels, 1_000)
}

/// What a token says; the rest is the same for all.
#[derive(Clone, Copy, Debug)]
struct Words {
    issuer: u8,
    holder: u8,
    scope: &'static str,
    operation: Operation,
    from_s: u64,
    until_s: u64,
    nonce: u8,
}

const WORDS: Words = Words {
    issuer: 100,
    holder: 2,
    scope: "a",
    operation: Operation::Publish,
    from_s: NOW_S,
    until_s: NOW_S + DAY_S,
    nonce: 0,
};

fn chain(words: &Words) -> Chain {
    let grant = Grant {
        subject: key(words.holder).public,
        scope: Scope::new(&name(words.scope), Reach::Subtree),
        operations: Operations::new(&[words.operation]).unwrap(),
        delegations: 0,
        not_before_s: words.from_s,
        not_after_s: words.until_s,
        generation: 0,
        nonce: [words.nonce; 8],
    };
    Chain::issue(grant, &key(words.issuer))
}

fn token(words: &Words) -> Piece {
    Piece::Token(chain(words).encode())
}

/// Goes by other channels and keys; the configuration names no entity but those of the channels.
fn follow(held: &mut Store, own: Option<u8>, channels: &[ChannelConfig], retired: &Retired) {
    let own = own.map(|number| key(number).public);
    held.follow(own, (channels, std::iter::empty()), retired.clone(), NOW_S);
}

fn pair(holder: u8, channel: &str) -> Pair {
    let entity = Entity::from_key(key(holder).public);
    Pair::new(entity.origin, name(channel).hash(0))
}

#[test]
fn a_token_gives_the_pairs_of_the_channels_that_it_covers_and_no_others() {
    let mut held = store();
    let x = Words {
        scope: "a/x",
        ..WORDS
    };
    assert!(matches!(held.take(&token(&x), NOW_S), Ok(Taken::New(_))));
    assert!(matches!(held.take(&token(&x), NOW_S), Ok(Taken::Known(_))));
    assert_eq!(*held.publish(), BTreeSet::from([pair(2, "a/x")]));
    let other_issuer = Words {
        issuer: 101,
        holder: 3,
        ..WORDS
    };
    held.take(&token(&other_issuer), NOW_S).unwrap();
    assert!(held.has_changed());
    let expected = BTreeSet::from([pair(2, "a/x"), pair(3, "a/y")]);
    assert_eq!(*held.pairs(), expected);
    let until_s = held.until_s(&key(2).public, &pair(2, "a/x"));
    assert_eq!(until_s, Some(NOW_S + DAY_S));
    // This node's own packets do not pass its guard; its token is passed on nevertheless.
    let own = Words {
        holder: OWN,
        ..WORDS
    };
    held.take(&token(&own), NOW_S).unwrap();
    assert_eq!(*held.pairs(), expected);
    assert_eq!(held.size(), (3, 3));
}

/// Entity 2 has key 12 now, for which its tokens count, until those of an issuer with another key end.
#[test]
fn pairs_follow_an_entity_to_its_new_key_and_to_where_it_lives() {
    let channels = [channel("a/x", &[100, 102])];
    let mut held = Store::new(Some(key(OWN).public), &channels, 1_000);
    let mut retired = Retired::default();
    retired.add(key(2).public, key(12).public, 0);
    for (holder, nonce) in [(2, 0), (2, 1), (12, 0), (OWN, 0)] {
        let words = Words {
            holder,
            nonce,
            ..WORDS
        };
        held.take(&token(&words), NOW_S).unwrap();
    }
    let before = BTreeSet::from([pair(2, "a/x"), pair(12, "a/x")]);
    assert_eq!(*held.publish(), before);
    follow(&mut held, Some(OWN), &channels, &retired);
    assert!(held.has_changed());
    assert_eq!(*held.publish(), BTreeSet::from([pair(12, "a/x")]));
    assert_eq!(held.size(), (4, 2));

    // This node's own entity lives elsewhere: its packets come by here.
    follow(&mut held, None, &channels, &retired);
    let with_own = BTreeSet::from([pair(12, "a/x"), pair(OWN, "a/x")]);
    assert_eq!(*held.publish(), with_own);

    // The issuer has another key: what the old one signed counts for ten seconds more.
    retired.add(key(100).public, key(102).public, NOW_S + 10);
    follow(&mut held, None, &channels, &retired);
    assert_eq!(*held.publish(), with_own);
    assert_eq!(held.next_change_s(), NOW_S + 10);
    assert_eq!(
        held.until_s(&key(12).public, &pair(12, "a/x")),
        Some(NOW_S + 10)
    );
    held.pass(NOW_S + 10);
    assert!(held.pairs().is_empty());
    assert_eq!(held.size(), (0, 0));
    assert_eq!(held.take(&token(&WORDS), NOW_S + 10), Err(Verdict::Revoked));
}

#[test]
fn a_list_is_the_upper_bound_of_what_tokens_give() {
    let mut listed = channel("a/x", &[100]);
    listed.publish = Listed::Only(vec![Entity::from_key(key(3).public)]);
    let mut held = Store::new(Some(key(OWN).public), &[listed], 1_000);
    for holder in [2, 3] {
        let words = Words { holder, ..WORDS };
        held.take(&token(&words), NOW_S).unwrap();
    }
    assert_eq!(*held.pairs(), BTreeSet::from([pair(3, "a/x")]));
}

#[test]
fn what_gives_no_right_is_refused_with_the_reason() {
    let mut held = store();
    let mut forged = chain(&WORDS).encode();
    *forged.last_mut().unwrap() ^= 1;
    let of = |words: Words| token(&words);
    for (bytes, verdict) in [
        (Piece::Token(vec![1, 2, 3]), Verdict::Malformed),
        (Piece::Statement(vec![1, 2, 3]), Verdict::Malformed),
        (Piece::Token(forged), Verdict::Forged),
        (
            of(Words {
                issuer: 102,
                ..WORDS
            }),
            Verdict::Issuer,
        ),
        (
            of(Words {
                operation: Operation::Subscribe,
                ..WORDS
            }),
            Verdict::Operation,
        ),
        (
            of(Words {
                until_s: NOW_S,
                from_s: 0,
                ..WORDS
            }),
            Verdict::Ended,
        ),
    ] {
        assert_eq!(held.take(&bytes, NOW_S), Err(verdict));
    }
    assert_eq!((held.size(), held.pairs().len()), ((0, 0), 0));
}

#[test]
fn time_brings_pairs_and_takes_them() {
    let mut held = store();
    let late = Words {
        from_s: NOW_S + 100,
        until_s: NOW_S + 200,
        ..WORDS
    };
    held.take(&token(&late), NOW_S).unwrap();
    assert!(held.pairs().is_empty());
    // Clocks may differ by half a minute.
    assert_eq!(held.next_change_s(), NOW_S + 70);
    held.pass(NOW_S + 69);
    assert!(held.pairs().is_empty());
    held.pass(NOW_S + 70);
    assert_eq!(held.pairs().len(), 2);
    assert_eq!(held.next_change_s(), NOW_S + 200);
    held.pass(NOW_S + 200);
    assert_eq!((held.size(), held.pairs().len()), ((0, 0), 0));
    assert_eq!(held.next_change_s(), u64::MAX);
}

#[test]
fn what_is_revoked_goes_and_does_not_come_back() {
    let mut held = store();
    let (two, three) = (WORDS, Words { holder: 3, ..WORDS });
    for words in [two, three] {
        held.take(&token(&words), NOW_S).unwrap();
    }
    let list = List::new(key(100).public);
    let subject = Entry::Subject(key(2).public);
    let list = list.revoke(subject, NOW_S + DAY_S, NOW_S).unwrap();
    assert!(held.learn(list.clone(), NOW_S));
    assert!(!held.learn(list.clone(), NOW_S));
    let left = BTreeSet::from([pair(3, "a/x"), pair(3, "a/y")]);
    assert_eq!(*held.pairs(), left);
    assert_eq!(held.take(&token(&two), NOW_S), Err(Verdict::Revoked));
    let generation = list.begin_generation(1).unwrap();
    assert!(held.learn(generation, NOW_S));
    assert_eq!((held.size(), held.pairs().len()), ((0, 0), 0));
}

/// Who may delegate makes as many tokens as it likes; others find their room nevertheless.
#[test]
fn a_flood_of_grants_is_bounded_and_crowds_out_nobody() {
    let mut held = store();
    let flooder = 2;
    let root = Grant {
        subject: key(flooder).public,
        scope: Scope::new(&name("a"), Reach::Subtree),
        operations: Operations::new(&[Operation::Publish, Operation::Delegate]).unwrap(),
        delegations: 1,
        not_before_s: NOW_S,
        not_after_s: NOW_S + DAY_S,
        generation: 0,
        nonce: [0; 8],
    };
    let root = Chain::issue(root, &key(100));
    let mut verdicts: BTreeMap<Verdict, usize> = BTreeMap::new();
    let mut flood = |holder: [u8; 32], nonce: u8| {
        let grant = Grant {
            subject: holder,
            operations: Operations::new(&[Operation::Publish]).unwrap(),
            delegations: 0,
            nonce: [nonce; 8],
            scope: Scope::new(&name("a"), Reach::Subtree),
            not_before_s: NOW_S,
            not_after_s: NOW_S + DAY_S,
            generation: 0,
        };
        let token = root.delegate(grant, &key(flooder)).unwrap();
        let taken = held.take(&Piece::Token(token.encode()), NOW_S);
        *verdicts
            .entry(taken.err().unwrap_or(Verdict::Admitted))
            .or_default() += 1;
    };
    for nonce in 0..u8::try_from(PER_HOLDER_MAX).unwrap() + 1 {
        flood(key(3).public, nonce);
    }
    let mut holder = [0; 32];
    for number in 0..u32::try_from(PER_GRANTEE_MAX).unwrap() {
        holder[..4].copy_from_slice(&number.to_be_bytes());
        flood(holder, 0);
    }
    assert_eq!(verdicts[&Verdict::Admitted], PER_GRANTEE_MAX);
    assert_eq!(verdicts[&Verdict::Full], 1 + PER_HOLDER_MAX);
    let other = Words { holder: 9, ..WORDS };
    held.take(&token(&other), NOW_S).unwrap();
    // Its pairs find no room while others have it all, and that is counted.
    assert_eq!(held.pairs().len(), 1_000);
    assert!(held.pairs_refused > 0);
}

#[test]
fn one_peer_that_says_much_leaves_the_others_their_turn() {
    let inbox = Inbox::default();
    let said = || Publication::Evidence(Piece::Token(vec![1]));
    let (loud, quiet) = (NodeId(1), NodeId(2));
    let told = (0..PER_PEER_MAX + 5).filter(|_| inbox.tell(loud, said()).is_ok());
    assert_eq!(told.count(), PER_PEER_MAX);
    assert_eq!(inbox.tell(loud, said()), Err(Full));
    inbox.tell(quiet, said()).unwrap();
    let turn = inbox.take(2);
    let of = |peer| (peer, Heard::Said(said()));
    assert_eq!(turn, [of(loud), of(loud), of(quiet)]);
    inbox.connected(loud);
    assert_eq!(inbox.take(9), [(loud, Heard::Connected)]);
    assert!(inbox.take(9).is_empty());
}

/// Something that happens to a store.
#[derive(Clone, Debug)]
enum Step {
    Grant(Words),
    /// The issuer takes back all of a holder's.
    Revoke(u8, u8),
    Generation(u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let words = (
        100..102_u8,
        1..6_u8,
        0..3_usize,
        0..400_u64,
        1..400_u64,
        0..3_u8,
    );
    let grant = words.prop_map(|(issuer, holder, scope, from_s, lasts_s, nonce)| {
        Step::Grant(Words {
            issuer,
            holder,
            scope: ["a", "a/x", "a/y"][scope],
            from_s: NOW_S + from_s,
            until_s: NOW_S + from_s + lasts_s,
            nonce,
            ..WORDS
        })
    });
    prop_oneof![
        6 => grant,
        2 => (100..102_u8, 1..6_u8).prop_map(|(issuer, holder)| Step::Revoke(issuer, holder)),
        1 => (100..102_u8).prop_map(Step::Generation),
        2 => (1..100_u64).prop_map(Step::Pass),
    ]
}

/// All that was ever said: tokens, and each issuer's newest list.
#[derive(Clone, Default)]
struct Said {
    tokens: Vec<Piece>,
    lists: BTreeMap<u8, List>,
    now_s: u64,
}

impl Said {
    fn list(&self, issuer: u8) -> List {
        let known = self.lists.get(&issuer).cloned();
        known.unwrap_or_else(|| List::new(key(issuer).public))
    }

    /// Notes a step, and takes it.
    fn take(&mut self, step: &Step, held: &mut Store) {
        let list = match step {
            Step::Grant(words) => {
                let token = token(words);
                // Refused ones are said nevertheless.
                let _verdict = held.take(&token, self.now_s);
                self.tokens.push(token);
                return;
            }
            Step::Pass(seconds) => {
                self.now_s += seconds;
                held.pass(self.now_s);
                return;
            }
            Step::Revoke(issuer, holder) => {
                let subject = Entry::Subject(key(*holder).public);
                let list = self.list(*issuer);
                (
                    *issuer,
                    list.revoke(subject, NOW_S + DAY_S, self.now_s).unwrap(),
                )
            }
            Step::Generation(issuer) => {
                let list = self.list(*issuer);
                (
                    *issuer,
                    list.begin_generation(list.generation() + 1).unwrap(),
                )
            }
        };
        held.learn(list.1.clone(), self.now_s);
        self.lists.insert(list.0, list.1);
    }

    /// From scratch, in another order.
    fn rebuilt(&self, by: impl Fn(&mut Vec<Piece>)) -> Store {
        let mut held = store();
        let mut tokens = self.tokens.clone();
        by(&mut tokens);
        for token in &tokens {
            let _verdict = held.take(token, self.now_s);
        }
        for list in self.lists.values() {
            held.learn(list.clone(), self.now_s);
        }
        held
    }
}

fn ids(held: &Store) -> Vec<EvidenceId> {
    (0..BUCKETS)
        .flat_map(|bucket| held.ids(bucket, KINDS))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any sequence of grants and revocations leaves guard and exact set equal to a rebuild from scratch,
    /// whatever the order.
    #[test]
    fn pairs_and_guard_are_what_a_rebuild_gives(
        steps in proptest::collection::vec(step(), 1..60),
        seed in any::<u64>(),
    ) {
        let (mut held, mut said) = (store(), Said { now_s: NOW_S, ..Said::default() });
        let mut memory = MemoryTables::with_destinations(64);
        let mut publisher = Publisher::recover(&memory).unwrap();
        let mut drawn = seed;
        let mut entropy = move || {
            drawn = drawn.wrapping_add(0x9E37_79B9_7F4A_7C15);
            drawn
        };
        for step in &steps {
            said.take(step, &mut held);
            let image = Image { pairs: held.publish().clone(), ..Image::default() };
            publisher.apply(&mut memory, &image, &mut entropy).unwrap();
        }
        let rebuilt = said.rebuilt(|tokens| tokens.reverse());
        prop_assert_eq!(held.pairs(), rebuilt.pairs());
        prop_assert_eq!(ids(&held), ids(&rebuilt));
        prop_assert_eq!(held.digest(KINDS), rebuilt.digest(KINDS));
        for holder in 1..6 {
            for text in ["a/x", "a/y", "free", "a"] {
                let pair = pair(holder, text);
                let passes = is_authorised(&memory, &memory.current(), &pair);
                prop_assert_eq!(passes, rebuilt.pairs().contains(&pair));
            }
        }
    }

    /// Two nodes that tell each other what they have, have the same: whoever begins, and however often.
    #[test]
    fn merging_is_commutative_associative_and_idempotent(
        steps in proptest::collection::vec((step(), 0..3_usize), 1..60),
    ) {
        let mut said = [(); 3].map(|()| Said { now_s: NOW_S, ..Said::default() });
        let mut held = [(); 3].map(|()| store());
        for (step, at) in &steps {
            // An issuer's lists have one order; time is the same for all.
            if matches!(step, Step::Grant(_)) {
                said[*at].take(step, &mut held[*at]);
            }
        }
        let merge = |into: &Store, from: &Store| {
            let mut merged = into.clone();
            for id in ids(from) {
                let _verdict = merged.take(&from.piece(id).unwrap(), NOW_S);
            }
            merged
        };
        let [a, b, c] = &held;
        let one = merge(&merge(a, b), c);
        let other = merge(a, &merge(c, b));
        for merged in [&other, &merge(&one, &other), &merge(c, &merge(b, a))] {
            prop_assert_eq!(ids(&one), ids(merged));
            prop_assert_eq!(one.pairs(), merged.pairs());
        }
    }
}
