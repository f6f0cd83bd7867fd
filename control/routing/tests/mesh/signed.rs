//! Real signatures, and the bytes that they are over.

use crate::world::{SETUP, UNIX_S, node_key};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use proptest::prelude::*;
use virga_ebpf::{
    header::{NodeId, Subnet},
    subnet::SubnetPrefix,
};
use virga_routing::{
    Announcement, Authority, Claim, Destination, Doubt, Now, Reason, Router,
    message::{self, Item, MessageError},
};

/// A node with real keys that knows nodes 0 to 9.
struct Real(usize);

fn signing(index: usize) -> SigningKey {
    SigningKey::from_bytes(&node_key(index).map(|byte| byte ^ 0x55))
}

impl Authority for Real {
    fn node_key(&self) -> [u8; 32] {
        node_key(self.0)
    }

    fn entity_key(&self) -> [u8; 32] {
        signing(self.0).verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        signing(self.0).sign(message).to_bytes()
    }

    fn check(&self, announcement: &Announcement) -> Result<(), Doubt> {
        let index = (0..10).find(|&i| node_key(i) == announcement.node_key());
        let key = signing(index.ok_or(Doubt::Stranger)?)
            .verifying_key()
            .to_bytes();
        let signature = Signature::from_bytes(&announcement.signature());
        let verified = VerifyingKey::from_bytes(&announcement.entity_key())
            .is_ok_and(|key| key.verify_strict(announcement.signed(), &signature).is_ok());
        match verified && announcement.entity_key() == key {
            true => Ok(()),
            false => Err(Doubt::Forged),
        }
    }
}

fn exchange(now: Now, a: &mut Router<Real>, b: &mut Router<Real>) {
    for _ in 0..8 {
        for (from, to) in [(&mut *a, &mut *b)] {
            from.handle_timeout(now);
            while from.poll_route().is_some() {}
            while let Some((id, bytes)) = from.poll_transmit() {
                assert_eq!(id, to.node());
                to.handle(now, from.node(), &bytes);
            }
        }
        b.handle_timeout(now);
        while b.poll_route().is_some() {}
        while let Some((id, bytes)) = b.poll_transmit() {
            assert_eq!(id, a.node());
            a.handle(now, b.node(), &bytes);
        }
    }
}

#[test]
fn routers_with_real_keys_find_each_other() {
    let now = Now {
        ns: 1,
        unix_s: UNIX_S,
    };
    let [mut a, mut b] = [0, 1].map(|index| Router::new(now, SETUP, Real(index)));
    a.neighbour_up(now, b.node(), Subnet(0), 300);
    b.neighbour_up(now, a.node(), Subnet(0), 300);
    exchange(now, &mut a, &mut b);
    for (one, other) in [(&a, &b), (&b, &a)] {
        let routes: Vec<_> = one
            .routes()
            .map(|r| (r.destination, r.metric, r.seqno))
            .collect();
        assert_eq!(
            routes,
            [(Destination::Node(other.node()), 300, SETUP.seqno)]
        );
    }
}

#[test]
fn every_changed_bit_of_an_announcement_is_noticed() {
    let now = Now {
        ns: 1,
        unix_s: UNIX_S,
    };
    let mut router = Router::new(now, SETUP, Real(0));
    let own = Real(5);
    let claim = Claim {
        node_key: own.node_key(),
        entity_key: own.entity_key(),
        subnet: Subnet(0x0102_0000),
        announced: 0,
        seqno: 5,
        not_after_s: UNIX_S + 100,
    };
    let announcement = Announcement::issue(&claim, |message| own.sign(message)).unwrap();
    let bytes = announcement.bytes();
    assert_eq!(Announcement::parse(bytes).as_ref(), Some(&announcement));
    for bit in 0..8 * bytes.len() {
        let mut changed = *bytes;
        changed[bit / 8] ^= 1 << (bit % 8);
        // A new stream each time: too many forged ones and it would not be listened to.
        router.neighbour_up(now, NodeId(9), Subnet(0), 300);
        let mut message = vec![1, 0, 0, 0, 1];
        message.extend(changed);
        router.handle(now, NodeId(9), &message);
        assert_eq!(router.len().0, 1, "bit {bit}");
    }
    let refused = [
        Reason::Malformed,
        Reason::Forged,
        Reason::Stranger,
        Reason::Expired,
        Reason::Scope,
    ];
    let all: u64 = refused.into_iter().map(|reason| router.count(reason)).sum();
    assert_eq!(all, 8 * bytes.len() as u64);
    // Unchanged it is taken.
    let mut message = vec![1, 0, 0, 0, 1];
    message.extend(bytes);
    router.handle(now, NodeId(9), &message);
    assert_eq!(router.len().0, 2);
}

fn destination() -> impl Strategy<Value = Destination> {
    let prefix = |(bits, subnet): (u32, u32)| {
        let mask = u32::MAX << (32 - 8 * bits);
        Destination::Subnet(SubnetPrefix {
            subnet: Subnet(subnet & mask),
            mask,
        })
    };
    prop_oneof![
        any::<u64>().prop_map(|id| Destination::Node(NodeId(id))),
        (1_u32..=4, any::<u32>()).prop_map(prefix),
    ]
}

fn announcement() -> impl Strategy<Value = Announcement> {
    (
        any::<[u8; 32]>(),
        any::<u32>(),
        0_u8..=4,
        any::<u64>(),
        any::<u64>(),
    )
        .prop_filter_map(
            "its subnet has not so many levels",
            |(key, subnet, levels, seqno, not_after_s)| {
                let claim = Claim {
                    node_key: key,
                    entity_key: key,
                    subnet: Subnet(subnet),
                    announced: 8 * levels,
                    seqno,
                    not_after_s,
                };
                Announcement::issue(&claim, |_| [9; 64])
            },
        )
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        (0..u32::MAX, announcement()).prop_map(|(metric, announcement)| Item::Route {
            metric,
            announcement
        }),
        (any::<u32>(), destination()).prop_map(|(metric, destination)| Item::Metric {
            metric,
            destination
        }),
        (1_u8..=64, announcement())
            .prop_map(|(hops, announcement)| Item::Request { hops, announcement }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_there_is_one_way_to_write_it(items in prop::collection::vec(item(), 1..5)) {
        let mut bytes = Vec::new();
        for item in &items {
            let before = bytes.len();
            item.write(&mut bytes);
            prop_assert_eq!(bytes.len() - before, item.len());
        }
        prop_assert_eq!(message::parse(&bytes), Ok(items));
        prop_assert!(message::parse(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(items) = message::parse(&bytes) {
            let mut again = Vec::new();
            items.iter().for_each(|item| item.write(&mut again));
            prop_assert_eq!(again, bytes);
        }
    }
}

#[test]
fn what_is_out_of_range_is_refused() {
    let word = |bits: u8, rest: &[u8]| [&[2, 0, 0, 0, 1, bits], rest].concat();
    for (bytes, error) in [
        (vec![], MessageError::Size(0)),
        (vec![2; 1_025], MessageError::Size(1_025)),
        (vec![4], MessageError::Kind(4)),
        (word(9, &[1, 0, 0, 0]), MessageError::Destination),
        (word(8, &[1, 1, 0, 0]), MessageError::Destination),
        (word(0, &[1, 1, 0, 0]), MessageError::Short),
        (
            [&[1][..], &[0xff; 4], &[0; 168]].concat(),
            MessageError::Announcement,
        ),
    ] {
        assert_eq!(message::parse(&bytes), Err(error));
    }
    let own = Real(1);
    let claim = Claim {
        node_key: own.node_key(),
        entity_key: own.entity_key(),
        subnet: Subnet(0),
        announced: 0,
        seqno: 5,
        not_after_s: 9,
    };
    let announcement = Announcement::issue(&claim, |message| own.sign(message)).unwrap();
    let unreachable = [&[1][..], &[0xff; 4], announcement.bytes()].concat();
    assert_eq!(
        message::parse(&unreachable),
        Err(MessageError::Range("metric"))
    );
    for hops in [0, 65] {
        let request = [&[3, hops][..], announcement.bytes()].concat();
        assert_eq!(
            message::parse(&request),
            Err(MessageError::Range("number of hops"))
        );
    }
}
