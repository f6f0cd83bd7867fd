//! Chains that give a right, and every way in which one does not.

mod properties;
mod retired;
mod signatures;

use super::{
    chain::{CHAIN_BYTES_MAX, CLOCK_SKEW_S_MAX, ChainError, LINKS_MAX},
    revocation::{ENTRIES_MAX, Entry, Learned, ListError, Revoked},
    signed::ObjectError,
    token::LINK_BYTES_MAX,
    *,
};
use crate::keys::{EntityKey, Secret};
use virga_transport::ChannelName;

/// The time of all questions that do not say another, in Unix seconds.
const NOW_S: u64 = 1_800_000_000;

fn key(number: u8) -> EntityKey {
    Secret::new([number; 32]).into()
}

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text).unwrap()
}

fn subtree(text: &str) -> Scope {
    Scope::new(&name(text), Reach::Subtree)
}

fn channel(text: &str) -> Scope {
    Scope::new(&name(text), Reach::Channel)
}

fn all() -> Operations {
    Operations::new(&Operation::ALL).unwrap()
}

/// Everything below `sensors`, for a day, twice delegable.
fn grant(subject: &EntityKey) -> Grant {
    Grant {
        subject: subject.public,
        scope: subtree("sensors"),
        operations: all(),
        delegations: 2,
        not_before_s: NOW_S,
        not_after_s: NOW_S + 86_400,
        generation: 1,
        nonce: [7; 8],
    }
}

/// The same, narrower.
fn narrower(subject: &EntityKey) -> Grant {
    Grant {
        scope: channel("sensors/lidar"),
        operations: Operations::new(&[Operation::Publish, Operation::Delegate]).unwrap(),
        delegations: 1,
        not_after_s: NOW_S + 3_600,
        ..grant(subject)
    }
}

/// Issuer 1 to entity 2 to entity 3.
fn chain() -> Chain {
    let first = Chain::issue(grant(&key(2)), &key(1));
    first.delegate(narrower(&key(3)), &key(2)).unwrap()
}

struct Ask {
    holder: u8,
    operation: Operation,
    channel: &'static str,
    now_s: u64,
    issuer: u8,
    revocations: Revocations,
}

/// A question that [`chain`] answers with yes.
fn ask() -> Ask {
    Ask {
        holder: 3,
        operation: Operation::Publish,
        channel: "sensors/lidar",
        now_s: NOW_S,
        issuer: 1,
        revocations: Revocations::default(),
    }
}

impl Ask {
    fn of(&self, chain: Chain) -> Result<(), Refusal> {
        chain.authenticate()?.allows(&Question {
            holder: &key(self.holder).public,
            operation: self.operation,
            channel: &name(self.channel),
            now_s: self.now_s,
            issuers: &[key(self.issuer).public],
            revocations: &self.revocations,
        })
    }
}

#[test]
fn a_chain_allows_what_its_links_all_allow_and_nothing_else() {
    assert_eq!(ask().of(chain()), Ok(()));
    let parsed = Chain::parse(&chain().encode()).unwrap();
    assert_eq!(parsed, chain(), "reading is the inverse of writing");
    assert_eq!(ask().of(parsed), Ok(()));

    let cases = [
        (Ask { holder: 2, ..ask() }, "token_holder"),
        (Ask { issuer: 4, ..ask() }, "token_issuer"),
        (
            Ask {
                operation: Operation::Subscribe,
                ..ask()
            },
            "token_operation",
        ),
        (
            Ask {
                operation: Operation::Admin,
                ..ask()
            },
            "token_operation",
        ),
        (
            Ask {
                channel: "sensors",
                ..ask()
            },
            "token_scope",
        ),
        (
            Ask {
                channel: "sensors/lidar/front",
                ..ask()
            },
            "token_scope",
        ),
        (
            Ask {
                channel: "sensors/lidars",
                ..ask()
            },
            "token_scope",
        ),
        (
            Ask {
                channel: "other",
                ..ask()
            },
            "token_scope",
        ),
        (
            Ask {
                now_s: NOW_S - CLOCK_SKEW_S_MAX - 1,
                ..ask()
            },
            "token_not_yet_valid",
        ),
        (
            Ask {
                now_s: NOW_S + 3_600,
                ..ask()
            },
            "token_expired",
        ),
        (
            Ask {
                now_s: u64::MAX - CLOCK_SKEW_S_MAX,
                ..ask()
            },
            "token_expired",
        ),
    ];
    for (ask, expected) in cases {
        let refusal = ask.of(chain()).unwrap_err();
        assert_eq!(refusal.fault().name(), expected, "{refusal}");
    }
    let early = Ask {
        now_s: NOW_S - CLOCK_SKEW_S_MAX,
        ..ask()
    };
    assert_eq!(early.of(chain()), Ok(()), "clocks may differ a little");
    let late = Ask {
        now_s: NOW_S + 3_599,
        ..ask()
    };
    assert_eq!(late.of(chain()), Ok(()));
}

#[test]
fn what_is_delegated_is_never_more_than_there_was() {
    let first = Chain::issue(grant(&key(2)), &key(1));
    let widened = [
        (
            "number of further delegations",
            Grant {
                delegations: 2,
                ..narrower(&key(3))
            },
        ),
        (
            "time",
            Grant {
                not_after_s: NOW_S + 86_401,
                ..narrower(&key(3))
            },
        ),
        (
            "time",
            Grant {
                not_before_s: NOW_S - 1,
                ..narrower(&key(3))
            },
        ),
    ];
    for (expected, grant) in widened {
        let refusal = first.delegate(grant, &key(2)).unwrap_err();
        assert_eq!(
            refusal,
            Refusal::Widened {
                link: 2,
                what: expected
            }
        );
    }
    let more = Grant {
        operations: all(),
        delegations: 0,
        ..narrower(&key(4))
    };
    let refusal = chain().delegate(more, &key(3)).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::Widened {
            link: 3,
            what: "set of operations"
        }
    );
    let stranger = first.delegate(narrower(&key(3)), &key(4)).unwrap_err();
    assert_eq!(stranger, Refusal::Holder(key(2).public));

    // A wider scope is refused on every channel that it adds, and on those that it names itself.
    for scope in [
        subtree("sensors"),
        subtree("sensors/lidar"),
        subtree("other"),
    ] {
        let wide = Grant {
            scope,
            delegations: 0,
            ..narrower(&key(4))
        };
        let wide = chain().delegate(wide, &key(3)).unwrap();
        for channel in ["sensors", "sensors/lidar", "sensors/lidar/front", "other"] {
            let ask = Ask {
                holder: 4,
                channel,
                ..ask()
            };
            let refusal = ask.of(wide.clone()).unwrap_err();
            assert!(
                matches!(refusal.fault(), Fault::Widened | Fault::Scope),
                "{channel}: {refusal}"
            );
        }
    }
}

#[test]
fn only_so_many_links_may_follow() {
    let last = Grant {
        delegations: 0,
        ..narrower(&key(4))
    };
    let three = chain().delegate(last.clone(), &key(3)).unwrap();
    let further = Grant {
        subject: key(5).public,
        ..last
    };
    let refusal = three.delegate(further, &key(4)).unwrap_err();
    assert_eq!(refusal, Refusal::TooDeep(4));

    let publish = Operations::new(&[Operation::Publish]).unwrap();
    let no_more = Grant {
        operations: publish,
        ..grant(&key(2))
    };
    let refusal = Chain::issue(no_more, &key(1)).delegate(narrower(&key(3)), &key(2));
    assert_eq!(refusal.unwrap_err(), Refusal::NotDelegable(2));

    let mut long = Chain::issue(
        Grant {
            delegations: u8::MAX,
            ..grant(&key(2))
        },
        &key(1),
    );
    for left in (0..=u8::MAX - 1).rev() {
        match long.delegate(
            Grant {
                delegations: left,
                ..grant(&key(2))
            },
            &key(2),
        ) {
            Ok(longer) => long = longer,
            Err(refusal) => {
                assert_eq!(refusal, Refusal::TooDeep(LINKS_MAX + 1));
                break;
            }
        }
    }
    assert_eq!(long.links().len(), LINKS_MAX);
    assert!(long.encode().len() <= CHAIN_BYTES_MAX);
}

#[test]
fn links_of_other_chains_or_in_another_order_are_not_signed_by_the_right_one() {
    let bytes = chain().encode();
    let (links_at, first) = (34, chain().links()[0].as_bytes().len() + 2);
    let (head, links) = bytes.split_at(links_at);
    let (one, two) = links.split_at(first);
    let turned = Chain::parse(&[head, two, one].concat()).unwrap();
    assert_eq!(turned.authenticate(), Err(Refusal::Signature(1)));
    let twice = [&head[..33], &[3], one, two, two].concat();
    assert_eq!(
        Chain::parse(&twice).unwrap().authenticate(),
        Err(Refusal::Signature(3))
    );
    let only_second = [&head[..33], &[1], two].concat();
    assert_eq!(
        Chain::parse(&only_second).unwrap().authenticate(),
        Err(Refusal::Signature(1))
    );
    let mut other_issuer = bytes.clone();
    other_issuer[1..33].copy_from_slice(&key(9).public);
    assert_eq!(
        Chain::parse(&other_issuer).unwrap().authenticate(),
        Err(Refusal::Signature(1))
    );
}

/// Of each bit of a token: the chain is not read, or not authentic.
#[test]
fn no_bit_can_be_changed() {
    let bytes = Chain::issue(grant(&key(2)), &key(1)).encode();
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let is_refused = Chain::parse(&changed).map_or(true, |c| c.authenticate().is_err());
        assert!(is_refused, "bit {bit}");
    }
}

#[test]
fn what_is_cut_short_or_too_long_is_refused_with_its_reason() {
    let bytes = chain().encode();
    for length in 0..bytes.len() {
        assert!(Chain::parse(&bytes[..length]).is_err(), "{length} bytes");
    }
    assert_eq!(
        Chain::parse(&[&bytes[..], &[0]].concat()),
        Err(ChainError::Trailing(1))
    );
    assert_eq!(
        Chain::parse(&[&[2], &bytes[1..]].concat()),
        Err(ChainError::Version(2))
    );
    for links in [0, 9, 255] {
        let mut changed = bytes.clone();
        changed[33] = links;
        assert_eq!(
            Chain::parse(&changed),
            Err(ChainError::Links(usize::from(links)))
        );
    }
    let mut list = bytes.clone();
    list[41] = 2;
    let error = ObjectError::Kind {
        kind: 2,
        version: 1,
        expected: 1,
    };
    assert_eq!(
        Chain::parse(&list),
        Err(ChainError::Link { link: 1, error })
    );
}

#[test]
fn names_of_every_length_fit_a_link() {
    for length in [1, 103, 104, 105, 254, 255] {
        let text = "x".repeat(length);
        let scope = channel(&text);
        let link = Link::sign(
            Grant {
                scope,
                ..grant(&key(2))
            },
            &key(1),
        );
        assert!(link.as_bytes().len() <= LINK_BYTES_MAX, "{length}");
        assert_eq!(Link::parse(link.as_bytes()).unwrap(), link);
        assert!(link.grant().scope.covers(&name(&text)));
        assert!(!link.grant().scope.covers(&name(
            &"x".repeat(length.max(2) - 1 + 2 * usize::from(length == 1))
        )));
    }
    let long = format!("{}/{}", "a".repeat(120), "b".repeat(120));
    let below = subtree(&"a".repeat(120));
    assert!(below.covers(&name(&long)) && below.covers(&name(&"a".repeat(120))));
    assert!(!below.covers(&name(&"a".repeat(121))));
    assert!(!channel(&"a".repeat(120)).covers(&name(&long)));
    // Short levels, then long ones: each scope means its own level, by name or by digest.
    let levels: Vec<String> = (1..=5).map(|n| vec!["x".repeat(50); n].join("/")).collect();
    let deepest = name(&levels[4]);
    for (one, text) in levels.iter().enumerate() {
        assert!(subtree(text).covers(&deepest), "{one}");
        assert_eq!(channel(text).covers(&deepest), one == 4);
        for (other, wider) in levels.iter().enumerate() {
            let is_within = subtree(text).is_within(&subtree(wider), &deepest);
            assert_eq!(is_within, one >= other, "{one} in {other}");
        }
    }
}

#[test]
fn a_link_a_subject_and_a_generation_can_be_revoked() {
    let revoked = |list: List| {
        let mut revocations = Revocations::default();
        assert_eq!(revocations.learn(list), Learned::New);
        Ask {
            revocations,
            ..ask()
        }
        .of(chain())
    };
    let list = List::new(key(1).public);
    let until_s = NOW_S + 86_400;
    let revoke = |entry| list.revoke(entry, until_s, NOW_S).unwrap();
    for (index, link) in chain().links().iter().enumerate() {
        let entry = Entry::Link(link.id());
        let what = Revoked::Entry(entry);
        let expected = Refusal::Revoked {
            link: index + 1,
            what,
        };
        assert_eq!(revoked(revoke(entry)), Err(expected));
        let entry = Entry::Subject(link.grant().subject);
        let what = Revoked::Entry(entry);
        let expected = Refusal::Revoked {
            link: index + 1,
            what,
        };
        assert_eq!(revoked(revoke(entry)), Err(expected));
    }
    assert_eq!(revoked(revoke(Entry::Subject(key(9).public))), Ok(()));
    let same_generation = list.begin_generation(1).unwrap();
    assert_eq!(revoked(same_generation), Ok(()));
    let what = Revoked::Generation { is: 1, least: 2 };
    assert_eq!(
        revoked(list.begin_generation(2).unwrap()),
        Err(Refusal::Revoked { link: 1, what })
    );

    let others = List::new(key(2).public);
    let others = others
        .revoke(Entry::Subject(key(3).public), until_s, NOW_S)
        .unwrap();
    assert_eq!(
        revoked(others),
        Ok(()),
        "a list means its own issuer's chains only"
    );
}

#[test]
fn an_old_list_that_is_sent_again_changes_nothing() {
    let first = List::new(key(1).public).begin_generation(5).unwrap();
    let second = first
        .revoke(Entry::Subject(key(3).public), NOW_S + 9, NOW_S)
        .unwrap();
    let mut known = Revocations::default();
    assert_eq!(known.learn(second.clone()), Learned::New);
    assert_eq!(known.learn(first.clone()), Learned::Old);
    assert_eq!(known.learn(second.clone()), Learned::Known);
    let other = first
        .revoke(Entry::Subject(key(4).public), NOW_S + 9, NOW_S)
        .unwrap();
    assert_eq!(known.learn(other), Learned::Conflict);
    assert_eq!(known.of(&key(1).public), Some(&second));
    assert_eq!(
        first.begin_generation(5),
        Err(ListError::Generation { is: 5 })
    );
}

#[test]
fn lists_are_signed_sorted_bounded_and_forget_what_has_expired() {
    let mut list = List::new(key(1).public);
    for number in 0..=255 {
        list = list
            .revoke(Entry::Subject([number; 32]), NOW_S + 1, NOW_S)
            .unwrap();
    }
    let link = Entry::Link(LinkId([9; 16]));
    list = list.revoke(link, NOW_S + 1, NOW_S).unwrap();
    let bytes = list.sign(&key(1));
    assert_eq!(List::parse(&bytes), Ok(list.clone()));
    let mut forged = bytes.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(
        List::parse(&forged),
        Err(ListError::Signature(key(1).public))
    );
    for length in 0..bytes.len() {
        assert!(List::parse(&bytes[..length]).is_err());
    }
    let later = list.revoke(link, NOW_S + 9, NOW_S + 1).unwrap();
    assert_eq!(later.entries().collect::<Vec<_>>(), [(link, NOW_S + 9)]);
    assert_eq!(later.version(), list.version() + 1);

    let mut full = List::new(key(1).public);
    for number in 0..ENTRIES_MAX {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        full = full.revoke(Entry::Subject(key), NOW_S + 1, NOW_S).unwrap();
    }
    assert_eq!(full.revoke(link, NOW_S + 1, NOW_S), Err(ListError::Full));
    assert!(full.sign(&key(1)).len() <= revocation::LIST_BYTES_MAX);
}

/// Published vectors: object bytes before the signature by hand, signatures and digests made once with
/// Python (`cryptography`, `hashlib.blake2s(message, key=domain)`).
#[test]
fn published_vectors() {
    let seed: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
    let issuer = EntityKey::from(Secret::new(seed));
    let grant = Grant {
        subject: [0x22; 32],
        scope: subtree("sensors/lidar"),
        operations: Operations::new(&[Operation::Publish, Operation::Delegate]).unwrap(),
        delegations: 3,
        not_before_s: 1_800_000_000,
        not_after_s: 1_800_086_400,
        generation: 7,
        nonce: *b"\x01\x02\x03\x04\x05\x06\x07\x08",
    };
    let link = Link::sign(grant, &issuer);
    assert_eq!(crate::hex::encode_bytes(link.as_bytes()), LINK_VECTOR);
    assert_eq!(link.id().to_string(), LINK_ID_VECTOR);
}

const LINK_VECTOR: &str = concat!(
    "7669726761010100202222222222222222222222222222222222222222222222222222222222222222000e02",
    "73656e736f72732f6c696461720001090001030008000000006b49d2000008000000006b4b23800004000000",
    "0700080102030405060708605d42abcd4be6d6bebd3afc8212af31c429816c48e830f238abf7a16f4e99719a",
    "6dc6f2e5e12aa0c8cf9e334dfe0200377035a3b1de8b89a86f78645c187a0e",
);
const LINK_ID_VECTOR: &str = "0043adac97988a80d158cd0468651d0f";
