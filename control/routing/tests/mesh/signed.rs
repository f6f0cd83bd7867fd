//! Real signatures, and the bytes that they are over.

use crate::world::{SETUP, UNIX_S, node_key};
use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;
use virga_ebpf::{
    header::{NodeId, Subnet},
    subnet::SubnetPrefix,
};
use virga_routing::{
    Announcement, Authority, Claim, Destination, Doubt, Now, Reason, Router, Speaker, announcement,
    message::{self, Item, MessageError, Number},
};

/// A node with real keys that knows nodes 0 to 9.
struct Real(usize);

fn signing(index: usize) -> SigningKey {
    SigningKey::from_bytes(&node_key(index).map(|byte| byte ^ 0x55))
}

impl Authority for Real {
    fn network(&self) -> [u8; 32] {
        announcement::network("demo")
    }

    fn node_key(&self) -> [u8; 32] {
        node_key(self.0)
    }

    fn entity_key(&self) -> [u8; 32] {
        signing(self.0).verifying_key().to_bytes()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        signing(self.0).sign(message).to_bytes()
    }

    fn knows(&self, speaker: &Speaker) -> Result<(), Doubt> {
        let index = (0..10).find(|&i| node_key(i) == speaker.node_key);
        let key = signing(index.ok_or(Doubt::Stranger)?)
            .verifying_key()
            .to_bytes();
        match speaker.entity_key == key {
            true => Ok(()),
            false => Err(Doubt::Stranger),
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
        network: own.network(),
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
        Reason::OtherNetwork,
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
                    network: key,
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
        destination().prop_map(|destination| Item::Again { destination }),
        (1_u8..=64, any::<bool>(), announcement()).prop_map(|(hops, is_higher, announcement)| {
            let number = match is_higher {
                true => Number::Higher,
                false => Number::AsHigh,
            };
            Item::Request {
                hops,
                number,
                announcement,
            }
        }),
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
        (vec![6], MessageError::Kind(6)),
        (vec![4, 0, 1], MessageError::Short),
        (vec![4, 8, 1, 1, 0, 0], MessageError::Destination),
        (word(9, &[1, 0, 0, 0]), MessageError::Destination),
        (word(8, &[1, 1, 0, 0]), MessageError::Destination),
        (word(0, &[1, 1, 0, 0]), MessageError::Short),
        (
            [&[1][..], &[0xff; 4], &[0; 202]].concat(),
            MessageError::Announcement,
        ),
    ] {
        assert_eq!(message::parse(&bytes), Err(error));
    }
    let own = Real(1);
    let claim = Claim {
        network: own.network(),
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

/// A published vector: the bytes before the signature by hand, the signature and the hash of the mesh's name made
/// once with Python (`cryptography`, `hashlib.blake2s(message, key=domain)`).
#[test]
fn published_vectors() {
    let key = SigningKey::from_bytes(&std::array::from_fn(|i| u8::try_from(i).unwrap()));
    let claim = Claim {
        network: announcement::network("demo"),
        node_key: [0x22; 32],
        entity_key: key.verifying_key().to_bytes(),
        subnet: Subnet(0x0102_0300),
        announced: 16,
        seqno: 1_800_000_000_000,
        not_after_s: 1_800_003_600,
    };
    let announcement = Announcement::issue(&claim, |m| key.sign(m).to_bytes()).unwrap();
    let hex: String = announcement
        .bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, VECTOR);
}

const VECTOR: &str = concat!(
    "76697267610c0100202222222222222222222222222222222222222222222222222222222222222222002003",
    "a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b800011000040102030000080000",
    "01a3185c50000008000000006b49e01000200adfde787432fabd44e02783dd7ce63e1fc24c8ca653c5169822",
    "cc0f5ee31a046131f2502f2b5c80babdae04e3ae08fbfc497b10c041c8095b94630ce31251fb531016a58d28",
    "8231a7126e9c612f972a8ea3cb8e28f28b36e7936dc18ed29406",
);
