//! Channels that ask their publishers for capabilities: what issuers say gives the pairs.

mod shares;

use super::*;
use crate::{
    capability::{Capabilities, Capability, Filter, Statement, statement::Claim},
    channel::capabilities::STATEMENTS_MAX,
    rights::Revocations,
};

/// A channel for whoever has a GPU, as 100 or 101 says it, beside one that also requires a token of 100.
fn asking() -> Store {
    let rules = |issuers: &[u8]| CapabilityRules {
        publish: Some(Filter::parse("hardware.gpu").unwrap()),
        subscribe: None,
        issuers: issuers
            .iter()
            .map(|&n| Entity::from_key(key(n).public))
            .collect(),
    };
    let (mut alone, mut both) = (channel("gpu", &[]), channel("a/x", &[100]));
    (alone.capabilities, both.capabilities) = (rules(&[100, 101]), rules(&[100]));
    // Who only wants to read is nothing to a forwarder.
    let mut readers = channel("readers", &[]);
    readers.capabilities.subscribe = Some(Filter::parse("hardware.gpu").unwrap());
    readers.capabilities.issuers = vec![Entity::from_key(key(102).public)];
    Store::new(Some(key(OWN).public), &[alone, both, readers], 1_000)
}

fn statement(issuer: u8, about: u8, version: u64, has: &str) -> Statement {
    until(issuer, about, version, has, NOW_S + 10 * DAY_S)
}

fn until(issuer: u8, about: u8, version: u64, has: &str, not_after_s: u64) -> Statement {
    let claim = Claim {
        subject: key(about).public,
        version,
        not_before_s: NOW_S,
        not_after_s,
        capabilities: Capabilities::new(vec![Capability::parse(has).unwrap()]).unwrap(),
    };
    Statement::issue(claim, 0, &key(issuer))
}

fn piece(statement: &Statement) -> Piece {
    Piece::Statement(statement.as_bytes().to_vec())
}

const GPU: &str = "hardware.gpu";
const NONE: &str = "hardware.none";

#[test]
fn a_statement_gives_the_pairs_of_the_channels_that_trust_its_issuer() {
    let mut held = asking();
    for (issuer, about, expected) in [
        (100, 2, Ok(())),
        (101, 3, Ok(())),
        (102, 4, Err(Verdict::Issuer)),
        (100, OWN, Ok(())),
    ] {
        let taken = held.take(&piece(&statement(issuer, about, 1, GPU)), NOW_S);
        assert_eq!(taken.map(|_| ()), expected);
    }
    let by_statement = BTreeSet::from([pair(2, "gpu"), pair(3, "gpu")]);
    assert_eq!(*held.publish(), by_statement);
    assert_eq!(held.size(), (3, 3));
    // Where a token is asked for as well, both are needed, and both of that channel's issuers.
    for holder in [2, 3] {
        held.take(&token(&Words { holder, ..WORDS }), NOW_S)
            .unwrap();
    }
    assert!(held.has_changed());
    let mut both = by_statement;
    both.insert(pair(2, "a/x"));
    assert_eq!(*held.publish(), both);
    // The token ends first.
    let until_s = held.until_s(&key(2).public, &pair(2, "a/x"));
    assert_eq!(until_s, Some(NOW_S + DAY_S));
    held.pass(NOW_S + DAY_S);
    both.remove(&pair(2, "a/x"));
    assert_eq!(*held.publish(), both);
    held.pass(NOW_S + 10 * DAY_S);
    assert_eq!((held.size(), held.pairs().len()), ((0, 0), 0));
    assert_eq!(held.next_change_s(), u64::MAX);
}

#[test]
fn what_an_entity_says_of_itself_and_what_is_forged_or_over_is_no_evidence() {
    let mut held = asking();
    let itself = Statement::announce(statement(100, 2, 1, GPU).claim().clone(), &key(2));
    let mut forged = statement(100, 2, 1, GPU).as_bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    for (piece, verdict) in [
        (piece(&itself), Verdict::Issuer),
        (Piece::Statement(forged), Verdict::Forged),
        (piece(&until(100, 2, 1, GPU, NOW_S)), Verdict::Ended),
    ] {
        assert_eq!(held.take(&piece, NOW_S), Err(verdict));
    }
    assert_eq!((held.size(), held.pairs().len()), ((0, 0), 0));
}

/// A later statement may say less, and one that was taken back does not make an earlier one count again.
#[test]
fn an_earlier_statement_never_comes_back() {
    let (first, second) = (statement(100, 2, 1, GPU), statement(100, 2, 2, NONE));
    let mut held = asking();
    held.take(&piece(&first), NOW_S).unwrap();
    assert_eq!(held.pairs().len(), 1);
    held.take(&piece(&second), NOW_S).unwrap();
    assert_eq!((held.size(), held.pairs().len()), ((1, 1), 0));
    assert_eq!(held.take(&piece(&first), NOW_S), Err(Verdict::Replaced));

    let third = statement(100, 2, 3, GPU);
    let list = List::new(key(100).public);
    let list = list.revoke(Entry::Link(third.id()), NOW_S + 20 * DAY_S, NOW_S);
    let list = list.unwrap();
    // Whether the list comes first or last.
    for is_first in [true, false] {
        let mut held = asking();
        held.take(&piece(&first), NOW_S).unwrap();
        if is_first {
            assert!(held.learn(list.clone(), NOW_S));
            assert_eq!(held.take(&piece(&third), NOW_S), Err(Verdict::Revoked));
        } else {
            held.take(&piece(&third), NOW_S).unwrap();
            assert_eq!(held.pairs().len(), 1);
            assert!(held.learn(list.clone(), NOW_S));
        }
        assert_eq!((held.size(), held.pairs().len()), ((1, 1), 0));
        assert_eq!(held.take(&piece(&third), NOW_S), Err(Verdict::Revoked));
        assert_eq!(held.take(&piece(&first), NOW_S), Err(Verdict::Replaced));
    }
}

#[test]
fn what_is_said_of_one_entity_is_bounded() {
    let mut held = asking();
    let issuers: Vec<u8> = (100..=100 + u8::try_from(STATEMENTS_MAX).unwrap()).collect();
    let mut wide = channel("gpu", &[]);
    wide.capabilities.publish = Some(Filter::parse(GPU).unwrap());
    wide.capabilities.issuers = issuers
        .iter()
        .map(|&n| Entity::from_key(key(n).public))
        .collect();
    follow(&mut held, Some(OWN), &[wide], &Retired::default());
    let (last, others) = issuers.split_last().unwrap();
    for &issuer in others {
        held.take(&piece(&statement(issuer, 2, 1, GPU)), NOW_S)
            .unwrap();
    }
    let more = piece(&statement(*last, 2, 1, GPU));
    assert_eq!(held.take(&more, NOW_S), Err(Verdict::Full));
    // A later one takes the place of an earlier one, also where there is no room.
    held.take(&piece(&statement(100, 2, 2, GPU)), NOW_S)
        .unwrap();
    assert_eq!(held.size(), (STATEMENTS_MAX, 1));
    assert_eq!(
        held.take(&piece(&statement(*last, 3, 1, GPU)), NOW_S)
            .map(|_| ()),
        Ok(())
    );
}

/// As much as there is room for: of issuer 100 about one entity after the other, from a number on.
fn fill(held: &mut Store, from: u8, has: &str) -> u8 {
    let abouts = from..100;
    let verdicts = abouts.map(|about| held.take(&piece(&statement(100, about, 1, has)), NOW_S));
    let taken = verdicts.take_while(|verdict| *verdict != Err(Verdict::Full));
    u8::try_from(taken.inspect(|one| assert!(one.is_ok())).count()).unwrap()
}

#[test]
fn what_one_issuer_says_leaves_the_others_their_share_and_tokens_theirs() {
    // Two issuers of statements, and one of tokens.
    let one = statement(100, 2, 1, GPU).as_bytes().len();
    for (count, bytes, share) in [(24, 1_000 * one, 6), (1_000, 14 * one + 13, 7)] {
        let mut held = asking();
        held.set_most(count, bytes);
        assert_eq!(fill(&mut held, 2, GPU), share);
        assert_eq!(held.statements_refused, 1);
        for about in 2..2 + share {
            held.take(&piece(&statement(101, about, 1, GPU)), NOW_S)
                .unwrap();
        }
        let more = piece(&statement(101, 99, 1, GPU));
        assert_eq!(held.take(&more, NOW_S), Err(Verdict::Full));
        let held_of = |held: &Store| held.statements().count();
        assert_eq!(
            (held_of(&held), held.statements_refused),
            (2 * usize::from(share), 2)
        );
        let words = |holder| Words { holder, ..WORDS };
        let tokens = (2..).map_while(|holder| held.take(&token(&words(holder)), NOW_S).ok());
        assert_eq!(tokens.take(12).count(), 12);
        if count == 24 {
            assert_eq!(held.take(&token(&words(20)), NOW_S), Err(Verdict::Full));
        }
        // What ends leaves its place to others of the same issuer.
        held.pass(NOW_S + DAY_S);
        let list = List::new(key(100).public);
        assert!(held.learn(list, NOW_S + DAY_S));
        held.pass(NOW_S + 10 * DAY_S);
        assert_eq!(held.size(), (0, 0));
    }
}

/// Else an issuer that says little of many would make much of that by saying more of each.
#[test]
fn a_later_statement_takes_no_more_than_the_earlier_one_where_there_is_no_room() {
    let one = statement(100, 2, 1, GPU).as_bytes().len();
    let mut held = asking();
    held.set_most(1_000, 2 * 5 * one);
    assert_eq!(fill(&mut held, 2, GPU), 5);
    let longer = statement(100, 2, 2, "hardware.gpu=very-large");
    assert_eq!(held.take(&piece(&longer), NOW_S), Err(Verdict::Full));
    assert_eq!(held.pairs().len(), 5);
    for version in 3..6 {
        let later = statement(100, 3, version, "tier=small");
        assert!(later.as_bytes().len() <= one);
        held.take(&piece(&later), NOW_S).unwrap();
    }
    assert_eq!((held.pairs().len(), held.statements_refused), (4, 2));
    // What that one left is the room of another.
    held.take(&piece(&statement(100, 3, 6, "x")), NOW_S)
        .unwrap();
    let short = statement(100, 3, 6, "x").as_bytes().len();
    let text = format!("tier={}", "y".repeat(one - short - 4));
    held.take(&piece(&statement(100, 4, 2, &text)), NOW_S)
        .unwrap();
}

/// What asks for a GPU, as these issuers say it.
fn vouched_by(issuers: &[u8]) -> ChannelConfig {
    let mut gpu = channel("gpu", &[]);
    gpu.capabilities.publish = Some(Filter::parse(GPU).unwrap());
    let issuers = issuers.iter();
    let issuers = issuers.map(|&n| Entity::from_key(key(n).public));
    gpu.capabilities.issuers = issuers.collect();
    gpu
}

#[test]
fn who_has_more_than_its_share_by_now_may_still_say_something_later_of_each() {
    let mut held = asking();
    held.set_most(12, 1_000_000);
    let alone = [vouched_by(&[100])];
    follow(&mut held, Some(OWN), &alone, &Retired::default());
    assert_eq!(fill(&mut held, 2, GPU), 12);
    let both = [vouched_by(&[100, 101])];
    follow(&mut held, Some(OWN), &both, &Retired::default());
    let more = statement(100, 50, 1, GPU);
    assert_eq!(held.take(&piece(&more), NOW_S), Err(Verdict::Full));
    let refused = held.statements_refused;
    let mut forged = more.as_bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let verdict = held.take(&Piece::Statement(forged), NOW_S);
    assert_eq!(verdict, Err(Verdict::Forged));
    assert_eq!(held.statements_refused, refused);
    // It says less, in more bytes.
    let later = statement(100, 2, 2, "hardware.none=nothing-at-all");
    assert!(later.as_bytes().len() > statement(100, 2, 1, GPU).as_bytes().len());
    held.take(&piece(&later), NOW_S).unwrap();
    assert_eq!((held.size(), held.pairs().len()), ((12, 12), 11));
}

/// Else one whose key has got about keeps the others out for as long as it likes.
#[test]
fn what_issuers_said_that_are_named_no_more_is_let_go() {
    let mut held = asking();
    held.set_most(12, 1_000_000);
    follow(
        &mut held,
        Some(OWN),
        &[vouched_by(&[100])],
        &Retired::default(),
    );
    assert_eq!(fill(&mut held, 2, GPU), 12);
    let other = [vouched_by(&[101])];
    follow(&mut held, Some(OWN), &other, &Retired::default());
    assert_eq!((held.size(), held.pairs().len()), ((0, 0), 0));
    let taken = (2..20).map_while(|n| held.take(&piece(&statement(101, n, 1, GPU)), NOW_S).ok());
    assert_eq!(taken.count(), 12);
    held.pass(NOW_S + 10 * DAY_S);
    assert_eq!(held.size(), (0, 0));
    let late = |n| until(101, n, 2, GPU, NOW_S + 20 * DAY_S);
    let taken = (2..20).map_while(|n| held.take(&piece(&late(n)), NOW_S + 10 * DAY_S).ok());
    assert_eq!(taken.count(), 12);

    // The same of tokens, beside an entity whose statements still count.
    let mut held = asking();
    for holder in [2, 3] {
        let words = Words { holder, ..WORDS };
        held.take(&token(&words), NOW_S).unwrap();
    }
    held.take(&piece(&statement(101, 2, 1, GPU)), NOW_S)
        .unwrap();
    assert_eq!(held.size(), (3, 2));
    follow(&mut held, Some(OWN), &other, &Retired::default());
    assert_eq!(held.size(), (1, 1));
    assert_eq!(*held.pairs(), BTreeSet::from([pair(2, "gpu")]));
    assert_eq!((held.tokens().count(), ids(&held).len()), (0, 1));
}

/// Entity 2 has key 12 now: what was said of its old key counts until the issuer speaks of the new one.
#[test]
fn statements_follow_an_entity_to_its_new_key() {
    let mut held = asking();
    held.take(&piece(&statement(100, 2, 1, GPU)), NOW_S)
        .unwrap();
    let mut retired = Retired::default();
    retired.add(key(2).public, key(12).public, 0);
    let channels = {
        let mut gpu = channel("gpu", &[]);
        gpu.capabilities.publish = Some(Filter::parse(GPU).unwrap());
        gpu.capabilities.issuers = vec![Entity::from_key(key(100).public)];
        [gpu]
    };
    follow(&mut held, None, &channels, &retired);
    assert_eq!(*held.pairs(), BTreeSet::from([pair(12, "gpu")]));
    held.take(&piece(&statement(100, 12, 1, NONE)), NOW_S)
        .unwrap();
    assert!(held.pairs().is_empty());
    assert_eq!(held.size(), (2, 1));
}

/// A filter that holds of one of whom nothing is said lets in whom the configuration names, and the rest of what a node
/// holds changes nothing in that.
#[test]
fn who_lacks_nothing_is_admitted_as_long_as_nothing_is_said_against_it() {
    let calm = || {
        let mut calm = channel("calm", &[]);
        calm.publish = Listed::Only([2, 3].map(|n| Entity::from_key(key(n).public)).to_vec());
        calm.capabilities.publish = Some(Filter::parse("not hardware.none").unwrap());
        calm.capabilities.issuers = vec![Entity::from_key(key(100).public)];
        calm
    };
    let known = |held: &mut Store, channels: &[ChannelConfig]| {
        let entities = [2, 3, 4].map(|n| key(n).public).into_iter();
        let own = Some(key(OWN).public);
        held.follow(own, (channels, entities), Retired::default(), NOW_S);
    };
    let mut held = Store::new(Some(key(OWN).public), &[], 1_000);
    known(&mut held, &[calm()]);
    let both = BTreeSet::from([pair(2, "calm"), pair(3, "calm")]);
    assert_eq!((held.size(), held.publish()), ((0, 0), &both));

    let second = NOW_S + 1;
    held.take(&piece(&until(100, 2, 1, "tier=x", second)), NOW_S)
        .unwrap();
    assert_eq!(*held.pairs(), both);
    held.pass(second);
    assert_eq!((held.size(), held.pairs()), ((0, 0), &both));
    held.take(&piece(&until(100, 2, 2, NONE, second + 5)), second)
        .unwrap();
    assert_eq!(*held.publish(), BTreeSet::from([pair(3, "calm")]));
    held.pass(second + 5);
    assert!(held.has_changed());
    assert_eq!(*held.publish(), both);

    // Whom the configuration no longer names has nothing left once all that was said has ended.
    held.take(&piece(&until(100, 2, 3, "tier=x", second + 9)), NOW_S)
        .unwrap();
    held.follow(
        None,
        (&[calm()], std::iter::empty()),
        Retired::default(),
        NOW_S,
    );
    assert_eq!(*held.pairs(), BTreeSet::from([pair(2, "calm")]));
    held.pass(second + 9);
    assert!(held.has_changed());
    assert_eq!((held.size(), held.publish().len()), ((0, 0), 0));
}

/// Something that is said of who has a GPU.
#[derive(Clone, Debug)]
enum Step {
    Say(Statement),
    Back(u8, Entry),
}

fn step() -> impl Strategy<Value = Step> {
    let said = || (100..102_u8, 1..5_u8, 1..5_u64, any::<bool>());
    let say = |(issuer, about, version, has): (u8, u8, u64, bool)| {
        statement(issuer, about, version, if has { GPU } else { NONE })
    };
    prop_oneof![
        6 => said().prop_map(move |words| Step::Say(say(words))),
        1 => said().prop_map(move |words| Step::Back(words.0, Entry::Link(say(words).id()))),
        1 => (100..102_u8, 1..5_u8)
            .prop_map(|(issuer, about)| Step::Back(issuer, Entry::Subject(key(about).public))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In whatever order statements and lists come, the latest statements are held, and the pairs are theirs.
    #[test]
    fn pairs_are_those_of_the_latest_statements_in_any_order(
        steps in proptest::collection::vec(step(), 1..40),
        turn in 0..40_usize,
    ) {
        let mut lists = BTreeMap::from([100, 101].map(|n| (n, List::new(key(n).public))));
        let mut all = Vec::new();
        let mut held = asking();
        for step in &steps {
            match step {
                Step::Say(statement) => {
                    let _verdict = held.take(&piece(statement), NOW_S);
                    all.push(statement.clone());
                }
                Step::Back(issuer, entry) => {
                    let list = lists[issuer].revoke(*entry, NOW_S + 20 * DAY_S, NOW_S).unwrap();
                    held.learn(list.clone(), NOW_S);
                    lists.insert(*issuer, list);
                }
            }
        }
        let mut rebuilt = asking();
        for list in lists.values() {
            rebuilt.learn(list.clone(), NOW_S);
        }
        let turn = turn % all.len().max(1);
        all.rotate_left(turn);
        for statement in &all {
            let _verdict = rebuilt.take(&piece(statement), NOW_S);
        }
        prop_assert_eq!(held.pairs(), rebuilt.pairs());
        prop_assert_eq!(ids(&held), ids(&rebuilt));
        prop_assert_eq!(held.digest(KINDS), rebuilt.digest(KINDS));

        // By the definition, without a store.
        let mut revocations = Revocations::default();
        for list in lists.values() {
            revocations.learn(list.clone());
        }
        let trusted = [100, 101].map(|n| key(n).public);
        let latest = |about: u8, issuer: u8| {
            let of = all.iter().filter(|one| {
                one.claim().subject == key(about).public
                    && one.by() == crate::capability::statement::By::Issuer(key(issuer).public)
            });
            of.max_by_key(|one| (one.claim().version, one.as_bytes()))
        };
        for about in 2..5 {
            let vouched = [100, 101].into_iter().any(|issuer| {
                latest(about, issuer).is_some_and(|one| {
                    let has = one.claim().capabilities.as_slice()[0].key.as_str() == GPU;
                    has && one.counts(&trusted, NOW_S, &revocations).is_ok()
                })
            });
            prop_assert_eq!(held.pairs().contains(&pair(about, "gpu")), vouched);
        }
    }
}
