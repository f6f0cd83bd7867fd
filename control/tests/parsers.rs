//! Every parser of the control plane that libFuzzer does not drive (`scripts/fuzz`), with bytes that are nearly right:
//! what peers say, signed objects, files, an invitation's line. None panics, and what is read is written as it came.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{path::Path, sync::LazyLock};

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*, sample::select};
use virga::{
    admissions::Publication,
    api::frames::{Delivered, Frames, parse_end},
    capability::{self, Capability, Filter, Key, Value},
    channel::message::Message,
    config::Config,
    enrol::Invitation,
    filters, hex,
    keys::{EntityKey, Keys, NodeKey, Secret},
    membership::Membership,
    reading::wire::{Ask, Given},
    rights::{Chain, Declaration, Link, LinkId, List, file, identity},
    trace,
};
use virga_transport::ChannelName;

/// Lengths that fields have: ids, times, keys, signatures, and others.
const LENGTHS: [u16; 11] = [0, 1, 2, 4, 7, 8, 16, 32, 33, 64, 300];

/// A signed object's form: magic, a type, a version, fields with lengths, a signature.
fn object() -> impl Strategy<Value = Vec<u8>> {
    let field = (select(&LENGTHS[..]), any::<bool>(), any::<u8>());
    let fields = vec(field, 0..14);
    (1..13_u8, fields, vec(any::<u8>(), 0..80)).prop_map(|(kind, fields, rest)| {
        let mut bytes = b"virga".to_vec();
        bytes.extend([kind, 1]);
        for (length, is_text, byte) in fields {
            bytes.extend(length.to_be_bytes());
            let byte = if is_text { b'a' + byte % 26 } else { byte };
            bytes.resize(bytes.len() + usize::from(length), byte);
        }
        bytes.extend(rest);
        bytes
    })
}

/// A message's form: a type, a version or a code, then lengths and what they may be of.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        select(&LENGTHS[..]).prop_map(|length| length.to_be_bytes().to_vec()),
        Just(b"\x00\x03a/b".to_vec()),
        vec(any::<u8>(), 0..40),
        any::<u64>().prop_map(|number| number.to_be_bytes().to_vec()),
    ];
    (0..32_u8, 0..4_u8, vec(part, 0..10)).prop_map(|(kind, code, parts)| {
        let mut bytes = vec![kind, code];
        bytes.extend(parts.concat());
        bytes
    })
}

/// A text that is changed here and there, and cut.
fn changed(text: &'static str) -> impl Strategy<Value = String> {
    let piece = select(
        &[
            "",
            "\"",
            "[",
            "]]",
            "=",
            "\n",
            "-1",
            "9999999999999999999",
            "é",
            "#",
            "true",
        ][..],
    );
    let changes = vec((any::<prop::sample::Index>(), 0..9_usize, piece), 0..6);
    (changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(changes, cut, is_cut)| {
        let mut letters: Vec<char> = text.chars().collect();
        for (at, gone, piece) in changes {
            let at = at.index(letters.len());
            let end = (at + gone).min(letters.len());
            letters.splice(at..end, piece.chars());
        }
        if is_cut {
            letters.truncate(cut.index(letters.len()));
        }
        letters.into_iter().collect()
    })
}

fn keys() -> Keys {
    Keys {
        node: NodeKey::from(Secret::new([1; 32])),
        entity: EntityKey::from(Secret::new([2; 32])),
        psk: Secret::new([3; 32]),
    }
}

static EXAMPLE: &str = include_str!("../example.toml");

static LINE: LazyLock<&'static str> = LazyLock::new(|| {
    let invitation = Invitation {
        address: "192.0.2.1:4783".parse().unwrap(),
        node_key: [7; 32],
        secret: Secret::new([8; 32]),
        ends_s: 1_800_000_000,
    };
    invitation.line().to_string().leak()
});

/// Reads bytes as every signed object.
fn as_objects(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(read) = Chain::parse(bytes) {
        prop_assert_eq!(read.encode(), bytes);
    }
    if let Ok(read) = Link::parse(bytes) {
        prop_assert_eq!(read.as_bytes(), bytes);
    }
    if let Ok(read) = identity::Claim::parse(bytes) {
        prop_assert_eq!(read.as_bytes(), bytes);
    }
    let _ = List::parse(bytes);
    let _ = Declaration::parse(bytes);
    let _ = capability::Statement::parse(bytes).map(|read| read.verify());
    let _ = filters::Statement::parse(bytes).map(|read| read.verify());
    let _ = Membership::parse(bytes).map(|read| read.verify());
    let _ = file::parse_identities(bytes);
    Ok(())
}

/// Reads bytes as everything that peers, and programs of this machine, say.
fn as_messages(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(read) = Message::parse(bytes) {
        prop_assert_eq!(read.encode(), bytes);
    }
    if let Some(read) = Ask::parse(bytes) {
        prop_assert_eq!(read.encode(), bytes);
    }
    let whole = Bytes::copy_from_slice(bytes);
    if let Some(read) = Given::parse(whole.clone()) {
        prop_assert_eq!(read.encode(), bytes);
    }
    if let Some((kind, body)) = bytes.split_first()
        && let Some(read) = Publication::parse(*kind, body)
    {
        let mut written = Vec::new();
        read.write(&mut written);
        prop_assert_eq!(written, bytes);
    }
    if let Some(read) = trace::Said::parse(bytes) {
        let mut written = Vec::new();
        read.write(&mut written);
        prop_assert_eq!(written, bytes);
    }
    if let Ok(read) = Delivered::parse(whole) {
        let mut written = BytesMut::new();
        read.write(&mut written);
        prop_assert_eq!(&written[written.len() - bytes.len()..], bytes);
    }
    let _ = parse_end(bytes);
    let mut frames = Frames::default();
    frames.extend(bytes);
    let mut taken = 0;
    while let Ok(Some(frame)) = frames.next_frame() {
        taken += 4 + frame.len();
    }
    prop_assert!(taken <= bytes.len());
    Ok(())
}

fn as_texts(text: &str) {
    let _ = Invitation::parse(text);
    let _ = ChannelName::parse(text);
    let _ = Filter::parse(text);
    let _ = Capability::parse(text);
    let _ = Key::parse(text);
    let _ = Value::parse(text);
    let _ = LinkId::parse(text);
    let _ = hex::decode_bytes(text);
    let _ = virga::hw::parse(text);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_end_a_parser_of_the_control_plane(object in object(), message in message(), cut in any::<prop::sample::Index>()) {
        for bytes in [&object[..], &message, &object[..cut.index(object.len())]] {
            as_objects(bytes)?;
            as_messages(bytes)?;
        }
    }

    #[test]
    fn no_text_ends_a_parser_of_the_control_plane(
        line in changed(&LINE),
        filter in changed("site=north and (speed>10 or not color=\"red\")"),
        profile in changed("[cpu]\ncores = 4\nmodel = \"x\"\n"),
        any in ".{0,80}",
    ) {
        for text in [&line, &filter, &profile, &any] {
            as_texts(text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_configuration_ends_its_parser(text in changed(EXAMPLE)) {
        // What is wrong is said, and where.
        if let Err(error) = Config::from_toml(&text, Path::new("/etc/virga/node.toml"), keys()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
