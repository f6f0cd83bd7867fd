//! What is read is written the same, and nothing that is read makes anything fail.

use crate::world::{World, claim, entity_key, id, signed};
use proptest::prelude::*;
use virga_discovery::{
    MemberState, Record, limits,
    swim::{Kind, Said, Update},
    wire::{Ask, MESSAGE_BYTES_MAX, Message},
};
use virga_ebpf::header::NodeId;

fn update() -> impl Strategy<Value = Update> {
    let state = prop_oneof![
        Just(MemberState::Alive),
        Just(MemberState::Suspect),
        Just(MemberState::Dead)
    ];
    (any::<u64>(), state, any::<u64>(), any::<u64>()).prop_map(|(node, state, incarnation, by)| {
        Update {
            node: NodeId(node),
            state,
            incarnation,
            by: NodeId(by),
        }
    })
}

fn message() -> impl Strategy<Value = Message> {
    let kind = prop_oneof![
        Just(Kind::Ping),
        Just(Kind::Ack),
        any::<u64>().prop_map(|n| Kind::Ask { target: NodeId(n) }),
        Just(Kind::Nack),
        Just(Kind::Tell),
    ];
    let said = (
        any::<u64>(),
        kind,
        any::<u32>(),
        prop::collection::vec(update(), 0..=16),
    );
    let said = said.prop_map(|(incarnation, kind, number, updates)| {
        Message::Swim(Said {
            incarnation,
            kind,
            number,
            updates,
        })
    });
    let known = prop::collection::btree_map(any::<u64>(), any::<u64>(), 0..=limits::ASKED_MAX);
    let ask = known.prop_map(|known| {
        Message::Ask(Ask {
            from: 0,
            to: u64::MAX,
            known: known.into_iter().map(|(n, s)| (NodeId(n), s)).collect(),
        })
    });
    let records = prop::collection::vec((1..50_u16, any::<u64>()), 1..=16);
    let records = records.prop_map(|all| {
        let now = World::default().now();
        let all = all.into_iter();
        Message::Records(all.map(|(n, s)| signed(&claim(n, now, s), n)).collect())
    });
    prop_oneof![said, ask, records]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_written_is_read_and_is_written_the_same(message in message()) {
        let bytes = message.encode();
        prop_assert!(bytes.len() <= MESSAGE_BYTES_MAX);
        prop_assert_eq!(Message::parse(&bytes), Some(message));
    }

    #[test]
    fn a_message_with_something_changed_is_another_or_none(
        message in message(), at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<prop::sample::Index>()
    ) {
        let bytes = message.encode();
        let mut changed = bytes.clone();
        changed[at.index(bytes.len())] ^= 1 << bit;
        if let Some(read) = Message::parse(&changed) {
            prop_assert_eq!(read.encode(), changed);
        }
        if let Some(read) = Message::parse(&bytes[..cut.index(bytes.len())]) {
            prop_assert_ne!(read, message);
        }
    }

    #[test]
    fn whatever_comes_nothing_fails(
        all in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20)
    ) {
        let mut world = World::default();
        world.start(1, &[]);
        let now = world.now();
        world.nodes[0].core.session_began(now, id(2), entity_key(2));
        for mut bytes in all {
            let _ = Record::parse(&bytes);
            world.nodes[0].core.introduced(now, "10.0.0.9:1".parse().unwrap(), &bytes);
            world.nodes[0].core.handle(now, id(2), &bytes);
            for kind in 1..=3 {
                bytes.insert(0, kind);
                world.nodes[0].core.handle(now, id(2), &bytes);
            }
        }
        world.run(1);
    }
}
