use super::*;
use crate::{
    feed::FeedEnd,
    fork::{ForkProof, NoFork},
};
use ed25519_dalek::{Signer as _, SigningKey};

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// The key that the vectors are of.
fn vector_key() -> SigningKey {
    SigningKey::from_bytes(&std::array::from_fn(|at| u8::try_from(at).unwrap()))
}

fn channel() -> LogName {
    LogName::parse("metrics/edge-a").unwrap()
}

fn feed(key: &SigningKey) -> FeedEnd {
    FeedEnd::new(channel(), key.verifying_key().to_bytes())
}

fn observed() -> Vec<Observed> {
    let observed = |byte: u8| Observed {
        feed: FeedId([byte; 32]),
        count: 5,
        head: [2 * byte; 32],
    };
    vec![observed(0x11)]
}

fn sign(feed: &mut FeedEnd, key: &SigningKey, events: &[&str]) -> Batch {
    let payloads = events.iter().map(|event| event.as_bytes());
    feed.sign(key, Vec::new(), payloads).unwrap()
}

fn verify(batch: &Batch, events: &[&str]) -> Result<Verified, BatchError> {
    let payloads = events.iter().map(|event| event.as_bytes());
    batch.clone().verify(payloads)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_vectors_of_the_module_are_right() {
    let key = vector_key();
    let mut feed = feed(&key);
    let none = frontier_hash(&[]);
    let first = next_head(&feed.end().1, 1, &none, b"a");
    let second = next_head(&first, 2, &none, b"bc");
    let before = feed.end().1;
    let one = sign(&mut feed, &key, &["a", "bc"]);
    assert_eq!(one.signed.statement.head, second);
    let payloads = [&b"d"[..]];
    let two = feed.sign(&key, observed(), payloads.into_iter()).unwrap();
    let batch_hash = |batch: &Batch| *blake3::hash(&batch.encode()).as_bytes();
    let doc = include_str!("../batch.rs");
    let vectors = [
        ("feed", before),
        ("head after the event `a`", first),
        ("head after `a`, `bc`", second),
        (
            "hash of the frontier of 5 events of the feed 11 … 11, head 22 … 22",
            frontier_hash(&observed()),
        ),
        (
            "BLAKE3 of the batch of `a`, `bc`, nothing observed",
            batch_hash(&one),
        ),
        (
            "BLAKE3 of the batch of `d` after it, with that frontier",
            batch_hash(&two),
        ),
    ];
    let line = |(what, value): &(&str, Hash)| format!("//! | {what} | `{}` |\n", hex(value));
    let lines: String = vectors.iter().map(line).collect();
    assert!(doc.contains(&lines), "{lines}");
}

#[test]
fn a_batch_is_laid_out_as_drawn() {
    let key = key(1);
    let mut feed = feed(&key);
    sign(&mut feed, &key, &["a"]);
    let parent = feed.end().1;
    let payloads = [&b"b"[..], b"c"];
    let batch = feed.sign(&key, observed(), payloads.into_iter()).unwrap();
    let bytes = batch.encode();
    assert_eq!(&bytes[..7], b"virga\x0b\x01");
    assert_eq!(&bytes[9..41], key.verifying_key().as_bytes());
    assert_eq!(bytes[43..51], 2u64.to_be_bytes());
    assert_eq!(bytes[53..57], 2u32.to_be_bytes());
    assert_eq!(bytes[59..91], parent);
    assert_eq!(bytes[93..125], feed.end().1);
    assert_eq!(bytes[127..159], frontier_hash(&observed()));
    assert_eq!(&bytes[161..175], b"metrics/edge-a");
    assert_eq!(bytes[175 + 64..175 + 68], 1u32.to_be_bytes());
    assert_eq!(bytes.len(), 175 + 64 + 4 + OBSERVED_BYTES);
    assert_eq!(Batch::parse(&bytes), Ok(batch));
}

#[test]
fn any_changed_byte_and_any_cut_is_noticed() {
    let key = key(1);
    let mut feed = feed(&key);
    let payloads = [&b"b"[..], b"c"];
    let batch = feed.sign(&key, observed(), payloads.into_iter()).unwrap();
    assert!(verify(&batch, &["b", "c"]).is_ok());
    let bytes = batch.encode();
    for at in 0..bytes.len() {
        assert!(Batch::parse(&bytes[..at]).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let checked = Batch::parse(&changed).and_then(|b| verify(&b, &["b", "c"]));
            assert!(checked.is_err(), "bit {bit} of byte {at}");
        }
    }
    let longer = [&bytes[..], b"x"].concat();
    assert_eq!(Batch::parse(&longer), Err(BatchError::Trailing(1)));
    assert_eq!(
        Batch::parse_first(&longer),
        Ok((batch, &b"x"[..])),
        "what follows is given back"
    );
}

#[test]
fn each_check_has_its_own_error() {
    let (key, other) = (key(1), key(2));
    let mut feed = feed(&key);
    let batch = sign(&mut feed, &key, &["a", "b"]);
    assert_eq!(
        verify(&batch, &["a"]),
        Err(BatchError::Count {
            first: 1,
            signed: 2,
            found: 1
        })
    );
    let head = BatchError::Head { first: 1, last: 2 };
    assert_eq!(verify(&batch, &["a", "c"]), Err(head));
    assert_eq!(verify(&batch, &["b", "a"]), Err(head));
    let mut forged = batch.clone();
    forged.signed.signature[0] ^= 1;
    assert_eq!(verify(&forged, &["a", "b"]), Err(BatchError::Signature));
    let mut early = batch.clone();
    early.signed.statement.parent = [1; 32];
    let parsed = Batch::parse(&early.encode());
    assert_eq!(parsed, Err(BatchError::Genesis));
    let mut elsewhere = batch.clone();
    elsewhere.frontier = observed();
    let parsed = Batch::parse(&elsewhere.encode());
    assert_eq!(parsed, Err(BatchError::FrontierHash));
    let mut empty = batch;
    empty.signed.statement.count = 0;
    let parsed = Batch::parse(&empty.encode());
    assert_eq!(parsed, Err(BatchError::Events { first: 1, count: 0 }));
    // Whoever signs is told too, and the feed stays where it was.
    let end = feed.end();
    let payloads = || [&b"x"[..]].into_iter();
    let signed = feed.sign(&other, Vec::new(), payloads());
    assert_eq!(signed, Err(BatchError::Signature));
    let own = Observed {
        feed: FeedId::of(&channel(), key.verifying_key().as_bytes()),
        count: 1,
        head: [0; 32],
    };
    let signed = feed.sign(&key, vec![own], payloads());
    assert_eq!(signed, Err(BatchError::Frontier(0)));
    let twice = [observed(), observed()].concat();
    let signed = feed.sign(&key, twice, payloads());
    assert_eq!(signed, Err(BatchError::Frontier(1)));
    let none = feed.sign(&key, Vec::new(), std::iter::empty());
    assert_eq!(none, Err(BatchError::Events { first: 3, count: 0 }));
    assert_eq!(feed.end(), end);
}

#[test]
fn links_are_what_was_signed() {
    let key = key(1);
    let mut feed = feed(&key);
    let one = sign(&mut feed, &key, &["a"]);
    let payloads = [&b"b"[..], b"c"];
    let two = feed.sign(&key, observed(), payloads.into_iter()).unwrap();
    let entity = origin_hash(key.verifying_key().as_bytes());
    let link = |observed, parent| Link {
        entity,
        observed,
        parent,
    };
    assert_eq!(one.links().collect::<Vec<_>>(), [link(0, 0)]);
    let seen = u64_at(&frontier_hash(&observed()), 0);
    let links = [link(seen, 1), link(seen, 2)];
    assert_eq!(two.links().collect::<Vec<_>>(), links);
}

#[test]
fn a_fork_is_proven_by_two_signed_statements_and_by_nothing_less() {
    let key = key(1);
    let mut left = feed(&key);
    let root = sign(&mut left, &key, &["a", "b"]);
    let mut right = left.clone();
    let one = sign(&mut left, &key, &["c"]);
    let two = sign(&mut right, &key, &["d"]);
    let proof = ForkProof::of(&two.signed, &one.signed).unwrap();
    let feed_id = FeedId::of(&channel(), key.verifying_key().as_bytes());
    assert_eq!(proof.verify(), Ok((feed_id, 3)));
    // What follows on the other branch contradicts this one, too.
    let three = sign(&mut right, &key, &["e"]);
    let proof = ForkProof::of(&three.signed, &one.signed).unwrap();
    assert_eq!(proof.verify(), Ok((feed_id, 3)));
    // One feed, cut in two batches, is none; nor are two entities' feeds.
    assert_eq!(ForkProof::of(&root.signed, &one.signed), None);
    assert_eq!(ForkProof::of(&one.signed, &one.signed), None);
    assert_eq!(ForkProof::of(&root.signed, &three.signed), None);
    let stranger = self::key(2);
    let mut theirs = feed(&stranger);
    let theirs = sign(&mut theirs, &stranger, &["a", "c"]);
    assert_eq!(ForkProof::of(&root.signed, &theirs.signed), None);
    let made_up = ForkProof {
        one: root.signed.clone(),
        other: one.signed.clone(),
    };
    assert_eq!(made_up.verify(), Err(NoFork::Compatible));
    let mut forged = two.signed;
    forged.signature[3] ^= 1;
    let forged = ForkProof::of(&one.signed, &forged).unwrap();
    let unsigned = NoFork::Unsigned(BatchError::Signature);
    assert_eq!(forged.verify(), Err(unsigned));
}

/// What `parse` refuses is not verified either, whoever made it and signed it.
#[test]
fn what_cannot_be_read_again_is_not_verified() {
    let key = key(1);
    let end = feed(&key).end().1;
    let signed = |first: u64, events: usize, frontier: Vec<Observed>| {
        let hash = frontier_hash(&frontier);
        let numbers = (first..).take(events);
        let head = numbers.fold(end, |head, number| next_head(&head, number, &hash, b""));
        let statement = Statement {
            entity: key.verifying_key().to_bytes(),
            first,
            count: u32::try_from(events).unwrap(),
            parent: end,
            head,
            frontier: hash,
            channel: channel(),
        };
        let signature = key.sign(&statement.encode()).to_bytes();
        let signed = Signed {
            statement,
            signature,
        };
        let batch = Batch { signed, frontier };
        let read = Batch::parse(&batch.encode()).map(drop);
        let verified = batch.verify(vec![&b""[..]; events].into_iter()).map(drop);
        assert_eq!(read, verified);
        verified
    };
    let wide = |entries: u16| {
        let feed = |entry: u16| {
            let mut feed = FeedId([0; 32]);
            feed.0[..2].copy_from_slice(&entry.to_be_bytes());
            feed
        };
        let observed = |entry| Observed {
            feed: feed(entry),
            count: 1,
            head: end,
        };
        (0..entries).map(observed).collect()
    };
    assert_eq!(signed(1, BATCH_EVENTS_MAX, wide(1_024)), Ok(()));
    for (first, events) in [(0, 1), (1, BATCH_EVENTS_MAX + 1), (1, 0)] {
        let count = u32::try_from(events).unwrap();
        let refused = Err(BatchError::Events { first, count });
        assert_eq!(signed(first, events, Vec::new()), refused);
    }
    let refused = Err(BatchError::Frontier(FRONTIER_FEEDS_MAX));
    assert_eq!(signed(1, 1, wide(1_025)), refused);
}
