use super::*;
use crate::{
    config::Reach,
    hex,
    image::{self, Down},
    keys::{EntityKey, Keys, NodeKey, Secret},
    nic::kernel::Facts,
};
use proptest::{prelude::*, sample::select};
use std::path::Path;
use virga_ebpf::{header::ChannelHash, image::Image, tables::Pair};

const NOW_S: u64 = 1_000;

fn entity(number: u8) -> EntityKey {
    Secret::new([number; 32]).into()
}

fn node(number: u8) -> NodeKey {
    Secret::new([number + 100; 32]).into()
}

/// Node and entity 1 are this one's; 2 is next to it, 3 behind 2; 4 is an entity without a node. 2 and 1
/// publish on `log`, for which 3 issues tokens, and on `free`.
fn config() -> Config {
    let mut text = "[node]\nname = \"n1\"\nnetwork = \"test\"\nnode_key_file = \"n\"\n\
         entity_key_file = \"e\"\npsk_file = \"p\"\nlisten = \"10.0.0.1:4783\"\n"
        .to_owned();
    for (number, reach) in [
        (2, "address = \"10.0.0.2:4783\""),
        (3, "via = [\"n2\"]"),
        (4, ""),
    ] {
        let node_key = match reach {
            "" => String::new(),
            _ => format!("node_key = \"{}\"\n", hex::encode(&node(number).public)),
        };
        let entity_key = hex::encode(&entity(number).public);
        text += &format!(
            "[[peers]]\nname = \"n{number}\"\n{node_key}entity_key = \"{entity_key}\"\n{reach}\n"
        );
    }
    text += "[[channels]]\nname = \"log\"\npublish = [\"n1\", \"n2\"]\nsubscribe = [\"n3\"]\n\
             require_token = true\nissuers = [\"n3\"]\n[[channels]]\nname = \"free\"\n\
             publish = [\"n1\", \"n2\"]\nsubscribe = [\"n3\"]\n";
    let keys = Keys {
        node: node(1),
        entity: entity(1),
        psk: Secret::new([9; 32]),
    };
    Config::from_toml(&text, Path::new("/nowhere/n1.toml"), keys).unwrap()
}

fn placed(who: u8, at: u8, version: u64) -> Claim {
    let key = entity(who);
    let placement = Placement {
        entity: key.public,
        node_key: node(at).public,
        version,
    };
    placement.sign(&key)
}

fn follows(old: u8, new: u8, from_s: u64) -> Claim {
    let succession = Succession {
        old: entity(old).public,
        new: entity(new).public,
        from_s,
        honoured_until_s: from_s + 50,
    };
    succession.sign(&entity(old), &entity(new))
}

fn learned(claims: &[Claim]) -> Book {
    let mut book = Book::default();
    for claim in claims {
        assert_eq!(book.learn(&config(), claim), Ok(Learned::New));
    }
    book
}

/// Which entities live at nodes 2 and 3, by their numbers.
fn homes(book: &Book, now_s: u64) -> [Vec<u8>; 2] {
    let present = book.present(&config(), now_s);
    let number = |key: &[u8; 32]| (1..20).find(|&n| entity(n).public == *key).unwrap();
    let at = |index: usize| present.config.peers[index].entities.iter().map(number);
    [at(0).collect(), at(1).collect()].map(|mut numbers: Vec<u8>| {
        numbers.sort_unstable();
        numbers
    })
}

#[test]
fn an_entity_is_where_its_latest_placement_says_and_takes_nothing_from_others() {
    let mut book = learned(&[]);
    assert_eq!(homes(&book, NOW_S), [vec![2], vec![3]]);
    let config = config();
    assert_eq!(book.learn(&config, &placed(2, 3, 5)), Ok(Learned::New));
    assert_eq!(homes(&book, NOW_S), [vec![], vec![2, 3]]);
    assert_eq!(book.learn(&config, &placed(2, 3, 5)), Ok(Learned::Known));
    let old = Rejected::Old { known: 5, is: 4 };
    assert_eq!(book.learn(&config, &placed(2, 2, 4)), Err(old));
    assert_eq!(homes(&book, NOW_S), [vec![], vec![2, 3]]);
    // Who still looks for it at the old place is told; the node there is reached as before.
    let present = book.present(&config, NOW_S);
    assert_eq!(present.former, [(node(2).id, entity(2).public)]);
    assert_eq!(present.config.peers[0].id, node(2).id);
    assert_eq!(book.learn(&config, &placed(2, 2, 6)), Ok(Learned::New));
    assert_eq!(homes(&book, NOW_S), [vec![2], vec![3]]);
    // One that had no node has one.
    assert_eq!(book.learn(&config, &placed(4, 2, 1)), Ok(Learned::New));
    assert_eq!(homes(&book, NOW_S), [vec![2, 4], vec![3]]);
}

#[test]
fn a_node_that_nobody_knows_takes_the_place_of_the_entitys_own() {
    let book = learned(&[placed(2, 9, 1), placed(3, 2, 1)]);
    let present = book.present(&config(), NOW_S);
    let renewed = &present.config.peers[0];
    assert_eq!(
        (renewed.id, renewed.node_key),
        (node(9).id, node(9).public.into())
    );
    assert!(matches!(renewed.reach, Reach::Adjacent { .. }));
    // What was placed on it by its old key is there by its new one.
    assert_eq!(homes(&book, NOW_S), [vec![2, 3], vec![]]);
    assert_eq!(present.config.absence, None);
}

#[test]
fn this_nodes_own_entity_is_here_or_it_says_why_not() {
    let present = |claims: &[Claim]| learned(claims).present(&config(), NOW_S).config;
    let absence = |claims: &[Claim]| present(claims).absence;
    assert_eq!(absence(&[placed(1, 1, 1)]), None);
    let words = absence(&[placed(1, 2, 7)]).unwrap();
    assert!(
        words.contains("lives on n2") && words.contains("version 7"),
        "{words}"
    );
    let words = absence(&[follows(1, 11, NOW_S)]).unwrap();
    assert!(words.contains(&hex::encode(&entity(11).public)), "{words}");
    assert_eq!(absence(&[follows(1, 11, NOW_S + 1)]), None, "not yet");
    // Its packets are another node's now, and pass the guard here on their way.
    for (claims, is_admitted) in [(vec![], false), (vec![placed(1, 2, 7)], true)] {
        let image = image::of_userspace(&present(&claims), &Facts::default(), &Down::new());
        let control = Pair::new(entity(1).origin, ChannelHash(0));
        assert_eq!(image.pairs.contains(&control), is_admitted);
    }
}

#[test]
fn a_new_key_has_the_old_ones_name_rights_and_place_from_its_time_on() {
    let config = config();
    let book = learned(&[
        follows(2, 12, NOW_S),
        follows(12, 13, NOW_S + 10),
        follows(3, 14, 0),
    ]);
    assert_eq!(book.next_s(NOW_S), Some(NOW_S + 10));
    let keys = |listed: &Listed| listed.named().iter().map(|e| e.key).collect::<Vec<_>>();
    for (now_s, number) in [(NOW_S - 1, 2), (NOW_S, 12), (NOW_S + 10, 13)] {
        let current = entity(number);
        let present = book.present(&config, now_s);
        let (peer, channel) = (&present.config.peers[0], &present.config.channels[0]);
        assert_eq!(
            (peer.entity_key, peer.origin),
            (current.public, current.origin)
        );
        assert_eq!(peer.entities, [current.public]);
        assert_eq!(present.config.entity_name(&current.public), Some("n2"));
        assert_eq!(keys(&channel.publish), [entity(1).public, current.public]);
        // The old issuer's tokens count on, for a while.
        let issuers: Vec<_> = channel.issuers.iter().map(|e| e.key).collect();
        assert_eq!(issuers, [entity(14).public, entity(3).public]);
        assert_eq!(
            present.retired.honoured_until_s(&entity(3).public),
            Some(50)
        );
        let former = (node(2).id, entity(2).public);
        assert_eq!(present.former.contains(&former), number != 2);
    }
}

#[test]
fn guard_and_routes_follow() {
    let book = learned(&[follows(2, 12, NOW_S), placed(12, 9, 1)]);
    let image = |now_s| {
        let config = book.present(&config(), now_s).config;
        image::of_userspace(&config, &Facts::default(), &Down::new())
    };
    let (before, after) = (image(NOW_S - 1), image(NOW_S));
    for channel in [ChannelHash(0), hash::channel_hash(0, "free")] {
        let pair = |number| Pair::new(entity(number).origin, channel);
        assert!(before.pairs.contains(&pair(2)) && !before.pairs.contains(&pair(12)));
        assert!(after.pairs.contains(&pair(12)) && !after.pairs.contains(&pair(2)));
    }
    let way = |image: &Image, number| image.routes.get(&node(number).id).copied();
    assert_eq!((way(&before, 9), way(&after, 2)), (None, None));
    assert_eq!(way(&after, 9), way(&before, 2));
    assert!(way(&after, 3).is_some() && way(&after, 3) == way(&before, 3));
}

/// Only the present key says where the entity is: whoever has found the old one moves nothing.
#[test]
fn a_placement_by_an_old_key_moves_nothing() {
    let book = learned(&[follows(2, 12, NOW_S), placed(2, 3, 99), placed(12, 2, 1)]);
    assert_eq!(homes(&book, NOW_S - 1), [vec![], vec![2, 3]]);
    assert_eq!(homes(&book, NOW_S), [vec![12], vec![3]]);
}

#[test]
fn what_does_not_count_says_why_and_changes_nothing() {
    let mut book = learned(&[follows(2, 12, NOW_S), placed(3, 2, 5)]);
    let before = format!("{book:?}");
    let unsigned = |claim: Claim| {
        let mut bytes = claim.as_bytes().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        Claim::parse(&bytes).unwrap()
    };
    let weak = Placement {
        entity: entity(3).public,
        node_key: [0; 32],
        version: 9,
    };
    for (claim, words) in [
        (
            placed(8, 2, 1),
            "no entity that this node's configuration names",
        ),
        (
            follows(8, 9, 0),
            "no entity that this node's configuration names",
        ),
        (follows(2, 15, 0), "another key is known to have taken"),
        (follows(4, 12, 0), "has taken another one's place"),
        (follows(3, 4, 0), "names both keys"),
        (follows(12, 2, 0), "had that place before"),
        (weak.sign(&entity(3)), "point of low order"),
        (unsigned(placed(3, 2, 9)), "is not signed by"),
        (unsigned(follows(3, 13, 9)), "is not signed by"),
    ] {
        let rejected = book.learn(&config(), &claim).unwrap_err().to_string();
        assert!(rejected.contains(words), "{rejected}");
        assert_eq!(format!("{book:?}"), before, "{words}");
    }
    // An entity has so many keys and no more.
    let mut last = 12;
    let full = loop {
        match book.learn(&config(), &follows(last, last + 1, 0)) {
            Ok(_) => last += 1,
            Err(error) => break error,
        }
    };
    assert!(
        full.to_string().contains("as many keys as it may"),
        "{full}"
    );
    assert_eq!(usize::from(last - 12) + 2, LINEAGE_MAX);
}

#[test]
fn what_was_kept_is_known_again_in_any_order() {
    let mut claims = vec![placed(13, 3, 1), follows(12, 13, 0), follows(2, 12, 0)];
    let all = book(&config(), claims.clone());
    assert_eq!(all.claims().len(), 3);
    claims.reverse();
    let passed_on: Vec<Claim> = all.claims().into_iter().cloned().collect();
    assert_eq!(passed_on, claims, "each after what makes it known");
    assert!(is_placed(&claims, &entity(13).public, &node(3).public));
    assert!(has_followed(&claims, &entity(2).public, &entity(13).public));
    assert!(!has_followed(
        &claims,
        &entity(13).public,
        &entity(2).public
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Taking in is commutative, associative and idempotent.
    #[test]
    fn the_order_of_objects_does_not_matter(
        (claims, shuffled) in prop::collection::vec(
            (select(vec![1_u8, 2, 3, 4]), 1_u8..6, 0_u64..4), 1..12
        ).prop_flat_map(|all| {
            let mut claims = vec![follows(2, 12, NOW_S), follows(4, 13, NOW_S + 1)];
            claims.extend(all.into_iter().map(|(who, at, version)| placed(who, at, version)));
            (Just(claims.clone()), Just(claims).prop_shuffle())
        })
    ) {
        let config = config();
        let take = |claims: &[Claim]| {
            let mut book = Book::default();
            for claim in claims {
                // One that is older than what is known is refused.
                let _may_be_old = book.learn(&config, claim);
            }
            book
        };
        let (one, other) = (take(&claims), take(&shuffled));
        let twice = take(&[&claims[..], &shuffled[..], &claims[..]].concat());
        for book in [&other, &twice] {
            prop_assert_eq!(one.claims(), book.claims());
            prop_assert_eq!(homes(&one, NOW_S), homes(book, NOW_S));
        }
    }
}

/// One brings a new key to its own node, and then another entity moves there.
#[test]
fn a_new_key_of_a_node_goes_to_the_block_of_whoever_signed_for_it_first() {
    for (rotates, moves, block) in [(2, 3, 0), (3, 2, 1)] {
        let book = learned(&[placed(rotates, 7, 5), placed(moves, 7, 6)]);
        let mut expected = [vec![], vec![]];
        expected[block] = vec![2, 3];
        assert_eq!(homes(&book, NOW_S), expected);
        let present = book.present(&config(), NOW_S);
        let ids = [0, 1].map(|index: usize| present.config.peers[index].id);
        let mut expected = [node(2).id, node(3).id];
        expected[block] = node(7).id;
        assert_eq!(ids, expected, "{rotates} has the new key");
    }
}
