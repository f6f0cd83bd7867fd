//! Handshake messages: the published Noise vectors, every check before the first DH, and policies.

use super::*;
use crate::policy::Pq;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn key(text: &str) -> [u8; 32] {
    hex(text).try_into().unwrap()
}

/// The vector of the Cacophony set, as snow publishes it; our packet keys start from this split.
#[test]
fn noise_nkpsk0_vector() {
    let psk = key("54686973206973206d7920417573747269616e20706572737065637469766521");
    let resp_static = key("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893");
    let resp_public = key("31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62");
    let init_e = key("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a");
    let resp_e = key("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b");
    let network = Network {
        id: String::new(),
        psk,
        psk_generation: 0,
    };
    let prologue = hex("4a6f686e2047616c74");
    let mut generator = Generator::new(&[0; 32], b"");
    let mut a = builder(&network, Pattern::Nk, &mut generator, &prologue)
        .and_then(|b| b.remote_public_key(&resp_public))
        .and_then(|b| {
            b.fixed_ephemeral_key_for_testing_only(&init_e)
                .build_initiator()
        })
        .unwrap();
    let mut b = builder(&network, Pattern::Nk, &mut generator, &prologue)
        .and_then(|b| b.local_private_key(&resp_static))
        .and_then(|b| {
            b.fixed_ephemeral_key_for_testing_only(&resp_e)
                .build_responder()
        })
        .unwrap();
    let (mut first, mut second, mut clear) = (vec![0; 64], vec![0; 63], [0; 64]);
    a.write_message(&hex("4c756477696720766f6e204d69736573"), &mut first)
        .unwrap();
    assert_eq!(
        first,
        hex(
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944\
             27635ede06947b2d3acd77a36788aaaf17e9f5a8ac252e560fb421ba161a2cf8"
        )
    );
    b.read_message(&first, &mut clear).unwrap();
    b.write_message(&hex("4d757272617920526f746862617264"), &mut second)
        .unwrap();
    assert_eq!(
        second,
        hex(
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843\
             d682eb9cf4fee6816c8c8cfd34c15774321e234e3a426d7cfd3f13e5e84d04"
        )
    );
    a.read_message(&second, &mut clear).unwrap();
    let split = a.dangerously_get_raw_split();
    assert_eq!(split, b.dangerously_get_raw_split());
    assert_eq!(
        a.get_handshake_hash(),
        hex("6bd69bd4066f41f32e47134976f5bf01606f7a4a0e04369fe61158b06f3a144e")
    );
    let from_initiator = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &split.0).unwrap());
    let mut third = hex("b6645684db57679aa08f0b3352d58f32ec7f1e1a02083d5bd54277");
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let opened = from_initiator
        .open_in_place(nonce, Aad::empty(), &mut third)
        .unwrap();
    assert_eq!(opened, b"F. A. Hayek");
}

/// A vector of the Cacophony set: keys as above, payloads and ciphertexts by message, the handshake hash.
fn cacophony(pattern: Pattern, messages: &[(&str, &str)], hash: &str) {
    let init_static = key("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1");
    let resp_static = key("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893");
    let resp_public = key("31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62");
    let init_e = key("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a");
    let resp_e = key("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b");
    let network = Network {
        id: String::new(),
        psk: key("54686973206973206d7920417573747269616e20706572737065637469766521"),
        psk_generation: 0,
    };
    let prologue = hex("4a6f686e2047616c74");
    let mut generator = Generator::new(&[0; 32], b"");
    let mut a = builder(&network, pattern, &mut generator, &prologue)
        .and_then(|b| b.local_private_key(&init_static))
        .unwrap();
    if pattern == Pattern::Ik {
        a = a.remote_public_key(&resp_public).unwrap();
    }
    let a = a.fixed_ephemeral_key_for_testing_only(&init_e);
    let b = builder(&network, pattern, &mut generator, &prologue)
        .and_then(|b| b.local_private_key(&resp_static))
        .unwrap();
    let b = b.fixed_ephemeral_key_for_testing_only(&resp_e);
    let mut ends = [a.build_initiator().unwrap(), b.build_responder().unwrap()];
    for (n, (payload, ciphertext)) in messages.iter().enumerate() {
        let (mut sealed, mut clear) = ([0; 256], [0; 256]);
        let bytes = ends[n % 2]
            .write_message(&hex(payload), &mut sealed)
            .unwrap();
        assert_eq!(sealed[..bytes], hex(ciphertext), "message {n}");
        let read = ends[1 - n % 2]
            .read_message(&sealed[..bytes], &mut clear)
            .unwrap();
        assert_eq!(clear[..read], hex(payload));
    }
    for end in &mut ends {
        assert!(end.is_handshake_finished());
        assert_eq!(end.get_handshake_hash(), hex(hash));
    }
    let split = ends[0].dangerously_get_raw_split();
    assert_eq!(split, ends[1].dangerously_get_raw_split());
}

#[test]
fn noise_ikpsk1_vector() {
    let messages = [
        (
            "4c756477696720766f6e204d69736573",
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944\
             98e192a0a94102bd8fa1a182979c012f4fa2558d899e2e58d4d4aba041a56b35\
             297560de33bf7fe93f8e567791039539f59e76a00721ea7c1095fbccf10a13df\
             79f3b5605bfb0617c309698737c73429",
        ),
        (
            "4d757272617920526f746862617264",
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843\
             4523a21bc9f1ce57af3dc28365e1e33c25f577fc4aa2149d5d6a2ab0911beb",
        ),
    ];
    cacophony(
        Pattern::Ik,
        &messages,
        "a02debd3baac76b19863f7d1175927193fcee661e9f7ae87b6d086cb4926c783",
    );
}

#[test]
fn noise_xxpsk3_vector() {
    let messages = [
        (
            "4c756477696720766f6e204d69736573",
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944\
             325ea71699951ece20f284b6ad9604a029eb335bf84564c308b6ade90ae45078",
        ),
        (
            "4d757272617920526f746862617264",
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843\
             2645535233ffe1432564d66a85227b677ced6fc2730ae0998ff49aa1dc56b818\
             6e31b16e416f5d9c03c71f6c34fd37ec013105020070a8b00c000ce7ed56629c\
             119795f96463274bc05519d5c24dc1",
        ),
        (
            "462e20412e20486179656b",
            "adf16c5375ec4172576783fd59f2bfa5c7a320d0a13b759592e1a2ddf5524cce\
             59ccbb92ff5d321fced3bdb2840596df562c0e68aad41b090abd285f6d300130\
             072e06964a6ba494e58d47",
        ),
    ];
    cacophony(
        Pattern::Xx,
        &messages,
        "fc0819f08aebc23de9a783653d8d7d6395b7d243d9deec12f5d6fe2f4c206673",
    );
}

const OWN_KEY: [u8; 32] = [6; 32];

fn public(key: [u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(key)).to_bytes()
}

struct Ends {
    network: Network,
    generator: Generator,
    responder_key: [u8; 32],
    /// The responder as the initiator sees it, and the other way around.
    responder: Other,
    initiator: Other,
    route: Route,
}

fn ends(pattern: Pattern) -> Ends {
    let responder_key = [7; 32];
    let other = |key: [u8; 32]| Other {
        id: virga_ebpf::hash::node_id(&public(key)),
        key: Some(public(key)),
        policy: HandshakePolicy {
            pattern: Some(pattern),
            pq: Pq::Preferred,
        },
    };
    let (responder, initiator) = (other(responder_key), other(OWN_KEY));
    let route = Route {
        sender: initiator.id,
        origin: OriginHash(6),
        subnet: Subnet(1 << 24),
        receiver: responder.id,
    };
    let network = Network {
        id: "demo".into(),
        psk: [9; 32],
        psk_generation: 3,
    };
    let generator = Generator::new(&[1; 32], b"test");
    Ends {
        network,
        generator,
        responder_key,
        responder,
        initiator,
        route,
    }
}

impl Ends {
    fn initiation(&mut self) -> (Initiator, Vec<u8>) {
        let session = SessionId(0x1100);
        let started = Initiator::start(
            &self.network,
            &mut self.generator,
            &OWN_KEY,
            (self.route.sender, session),
            &self.responder,
            5,
        );
        let started = started.unwrap();
        let kind = (Kind::Initiation, started.pattern());
        let body = started.body().to_vec();
        let (network, route) = (&self.network, &self.route);
        let bytes = build(network, kind, route, SessionId(0), session, &body, &[0; 16]);
        (started, bytes)
    }

    fn parse(&self, bytes: &[u8]) -> Result<Message, DropReason> {
        let header = Header::decode(&array(bytes, 0));
        parse(
            &self.network,
            &self.network.tag_key(self.route.receiver),
            &header,
            bytes,
        )
    }

    fn answer(&mut self, bytes: &[u8], message: &Message) -> Result<(Answer, Vec<u8>), Refused> {
        let own = (self.route.receiver, SessionId(0x2200));
        let body = &bytes[message.body.clone()];
        respond(
            &self.network,
            &mut self.generator,
            &self.responder_key,
            own,
            &self.initiator,
            message,
            body,
        )
    }

    fn response(&self, message: &Message) -> Message {
        Message {
            kind: Kind::Response,
            pattern: message.pattern,
            sender: self.route.receiver,
            origin: message.origin,
            session: SessionId(0x2200),
            body: 0..0,
            cookie: [0; 16],
        }
    }
}

const NOISE_FAILED: Refused = Refused::Dropped(DropReason::HandshakeNoise);

#[test]
fn both_ends_agree_and_a_forgery_changes_nothing() {
    for pattern in Pattern::ALL {
        let mut ends = ends(pattern);
        let (mut initiator, bytes) = ends.initiation();
        let message = ends.parse(&bytes).unwrap();
        assert_eq!(
            (message.kind, message.pattern, message.sender),
            (Kind::Initiation, pattern, ends.route.sender)
        );
        let (answer, body) = ends.answer(&bytes, &message).unwrap();
        let response = ends.response(&message);
        let (network, responder) = (&ends.network, &ends.responder);
        for at in [0, 40, body.len() - 1] {
            let mut forged = body.clone();
            forged[at] ^= 1;
            let refused = initiator.finish(network, responder, &response, &forged);
            assert_eq!(refused.err(), Some(NOISE_FAILED), "{pattern:?} {at}");
        }
        let finished = initiator.finish(network, responder, &response, &body);
        let (here, completion) = finished.unwrap();
        assert_eq!(completion.is_some(), pattern == Pattern::Xx);
        let there = match answer {
            Answer::Agreed(there) => *there,
            Answer::Awaiting(awaiting) => awaiting
                .finish(&ends.initiator, &completion.unwrap())
                .unwrap(),
        };
        assert_eq!(here.hash, there.hash);
        assert!(here.is_hybrid && there.is_hybrid);
        let proven = |proves: bool, key| proves.then(|| public(key));
        assert_eq!(
            (here.peer_key, there.peer_key),
            (
                proven(pattern != Pattern::Nk, [7; 32]),
                proven(pattern != Pattern::Nk, OWN_KEY)
            )
        );
        let mut packet = [&Header::default().encode()[..], &[1; 4], &[0; 16]].concat();
        here.epoch.sealing.seal(0, &mut packet);
        let header = array(&packet, 0);
        assert_eq!(
            there.epoch.opening.open(&header, 0, &mut packet[64..]),
            Ok(&[1; 4][..])
        );
    }
}

/// A completion with a byte changed by whoever knows the network's key gives no session.
#[test]
fn a_forged_completion_is_refused() {
    for at in [0, 47, 48, 63] {
        let mut ends = ends(Pattern::Xx);
        let (mut initiator, bytes) = ends.initiation();
        let message = ends.parse(&bytes).unwrap();
        let (Answer::Awaiting(awaiting), body) = ends.answer(&bytes, &message).unwrap() else {
            panic!("XX has a completion");
        };
        let about = ends.response(&message);
        let finished = initiator.finish(&ends.network, &ends.responder, &about, &body);
        let mut third = finished.unwrap().1.unwrap();
        third[at] ^= 1;
        let refused = awaiting.finish(&ends.initiator, &third);
        assert_eq!(refused.err(), Some(NOISE_FAILED), "byte {at}");
    }
}

#[test]
fn every_byte_is_bound_before_any_dh() {
    for pattern in Pattern::ALL {
        let mut ends = ends(pattern);
        let (_, bytes) = ends.initiation();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x80;
            let in_flight = matches!(at, 5 | 6 | 56..=63);
            assert_eq!(ends.parse(&changed).is_ok(), in_flight, "byte {at}");
        }
        for length in 64..bytes.len() {
            assert_eq!(
                ends.parse(&bytes[..length]).err(),
                Some(DropReason::HandshakeMalformed)
            );
        }
    }
}

#[test]
fn a_wrong_network_key_fails_at_the_tag_and_a_wrong_network_in_noise() {
    let mut ends = ends(Pattern::Nk);
    let (_, bytes) = ends.initiation();
    ends.network.psk = [8; 32];
    assert_eq!(ends.parse(&bytes).err(), Some(DropReason::HandshakeTag));
    ends.network.psk = [9; 32];
    ends.network.psk_generation = 4;
    assert_eq!(
        ends.parse(&bytes).err(),
        Some(DropReason::HandshakePskGeneration)
    );
    ends.network.psk_generation = 3;
    ends.network.id = "other".into();
    let message = ends.parse(&bytes).unwrap();
    assert_eq!(ends.answer(&bytes, &message).err(), Some(NOISE_FAILED));
}

/// Cookie, refusal, response: nothing that is sent to an address that has not answered is larger than its cause.
#[test]
fn no_answer_is_larger_than_its_cause() {
    for pattern in Pattern::ALL {
        let mut ends = ends(pattern);
        let (_, bytes) = ends.initiation();
        let message = ends.parse(&bytes).unwrap();
        let (_, response) = ends.answer(&bytes, &message).unwrap();
        let (session, cookie) = (SessionId(0x1100), [4; 16]);
        let reply = |kind, body: &[u8]| {
            let (network, route) = (&ends.network, &ends.route);
            build(
                network,
                (kind, pattern),
                route,
                session,
                SessionId(0),
                body,
                &cookie,
            )
        };
        assert!(reply(Kind::Response, &response).len() <= bytes.len());
        assert!(reply(Kind::Refusal, &[0]).len() < bytes.len());
        let cookie_reply = reply(Kind::Cookie, &[]);
        assert!(cookie_reply.len() < bytes.len());
        let message = ends.parse(&cookie_reply).unwrap();
        assert_eq!((message.kind, message.cookie), (Kind::Cookie, cookie));
    }
}

/// A member in the middle of XX makes the first message anew, with the initiator's own ephemeral key and an offer
/// without ML-KEM: its payload is under no secret. The two transcripts differ then.
#[test]
fn an_offer_that_is_stripped_on_the_way_gives_no_session() {
    let mut ends = ends(Pattern::Xx);
    let session = SessionId(0x1100);
    let kind = (Kind::Initiation, Pattern::Xx);
    let clear = prefix(&ends.network, kind, ends.route.sender, session);
    let prologue = ends.network.prologue(&clear, 5);
    let started = |generator: &mut Generator, pq| {
        let mut state = builder(&ends.network, Pattern::Xx, generator, &prologue)
            .and_then(|b| b.local_private_key(&OWN_KEY))
            .and_then(|b| {
                b.fixed_ephemeral_key_for_testing_only(&[8; 32])
                    .build_initiator()
            })
            .unwrap();
        let policy = HandshakePolicy { pattern: None, pq };
        let mut payload = vec![policy.offer().byte()];
        payload.resize(1 + SEALED_KEY_BYTES, 0);
        let mut body = vec![0; TIME_BYTES + NOISE_BYTES_MAX];
        body[..TIME_BYTES].copy_from_slice(&5u64.to_be_bytes());
        state
            .write_message(&payload, &mut body[TIME_BYTES..])
            .unwrap();
        let pattern = Pattern::Xx;
        Initiator {
            state,
            pattern,
            body,
        }
    };
    let mut honest = started(&mut ends.generator, Pq::Preferred);
    let stripped = started(&mut ends.generator, Pq::Off);
    assert_eq!(
        honest.body[..TIME_BYTES + DH_BYTES],
        stripped.body[..TIME_BYTES + DH_BYTES]
    );
    for (body, is_taken) in [(stripped.body, false), (honest.body.clone(), true)] {
        let (network, route) = (&ends.network, &ends.route);
        let bytes = build(network, kind, route, SessionId(0), session, &body, &[0; 16]);
        let message = ends.parse(&bytes).unwrap();
        let (_, response) = ends.answer(&bytes, &message).unwrap();
        let about = ends.response(&message);
        let finished = honest.finish(&ends.network, &ends.responder, &about, &response);
        assert_eq!(finished.is_ok(), is_taken);
        if let Err(refused) = finished {
            assert_eq!(refused, NOISE_FAILED);
        }
    }
}

/// A responder that answers without ML-KEM, or a node that answers for another, gets no session.
#[test]
fn policies_and_node_keys_are_checked_at_both_ends() {
    for pattern in Pattern::ALL {
        let mut ends = ends(pattern);
        ends.responder.policy.pq = Pq::Required;
        ends.initiator.policy.pq = Pq::Off;
        let (_, bytes) = ends.initiation();
        let message = ends.parse(&bytes).unwrap();
        assert_eq!(
            ends.answer(&bytes, &message).err(),
            Some(Refused::Conflict(Conflict::PqRequiredThere))
        );
        // The initiator asks for more only once its offer is on the way.
        ends.responder.policy.pq = Pq::Preferred;
        let (mut initiator, bytes) = ends.initiation();
        let message = ends.parse(&bytes).unwrap();
        let (_, body) = ends.answer(&bytes, &message).unwrap();
        ends.responder.policy.pq = Pq::Required;
        let about = ends.response(&message);
        let finished = initiator.finish(&ends.network, &ends.responder, &about, &body);
        assert_eq!(
            finished.err(),
            Some(Refused::Conflict(Conflict::PqRequiredHere))
        );
    }
    let wrong = Refused::Dropped(DropReason::HandshakeNodeKey);
    for pattern in [Pattern::Ik, Pattern::Xx] {
        let mut ends = ends(pattern);
        ends.initiator.key = Some([3; 32]);
        let (mut initiator, bytes) = ends.initiation();
        let message = ends.parse(&bytes).unwrap();
        let answered = ends.answer(&bytes, &message);
        if pattern == Pattern::Ik {
            assert_eq!(answered.err(), Some(wrong));
            continue;
        }
        let (Answer::Awaiting(awaiting), body) = answered.unwrap() else {
            panic!("XX has a completion");
        };
        let about = ends.response(&message);
        let finished = initiator.finish(&ends.network, &ends.responder, &about, &body);
        let third = finished.unwrap().1.unwrap();
        assert_eq!(awaiting.finish(&ends.initiator, &third).err(), Some(wrong));
        // The initiator before the first contact: by the id alone.
        let (mut initiator, bytes) = ends.initiation();
        let message = ends.parse(&bytes).unwrap();
        let (_, body) = ends.answer(&bytes, &message).unwrap();
        let stranger = Other {
            id: NodeId(1),
            key: None,
            ..ends.responder
        };
        let finished = initiator.finish(&ends.network, &stranger, &about, &body);
        assert_eq!(finished.err(), Some(wrong));
    }
}
